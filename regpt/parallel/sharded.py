"""Sharded: each rank has rows of every parameter, and weights are gathered where they are used (fully_shard)."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from regpt.model.gpt import GPT, Block
from regpt.model.rotary import rotary_table
from regpt.optimizer.exchange import Exchange, ShardedExchange
from regpt.parallel.model import Parallel


class FSDPParallel(Parallel):
    """Sharded by fully_shard: each rank has rows of every parameter, its gradient and its moments.

    Matrix products have the same inputs as without shards, and gradients are reduced in float32.
    """

    name = "fsdp"

    model: Any  # both a GPT and an FSDPModule

    def build_model(self) -> GPT:
        with torch.device("meta"):
            model = GPT(self.recipe.model)
        mesh = init_device_mesh(self.device.torch_device.type, (self.ranks.size,))
        # Weights that autocast would cast are sent in that type; norms, embedding and head stay float32, as in DDP.
        cast = None if self.device.precision == torch.float32 else self.device.precision
        policy = MixedPrecisionPolicy(param_dtype=cast, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in model.blocks:
            assert isinstance(block, Block)
            for part in (block.attention, block.mlp):
                if self.device.compiled:
                    part.compile()
                fully_shard(part, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh)
        for method in GPT.FORWARD_METHODS:
            register_fsdp_forward_method(model, method)
        model.to_empty(device=self.device.torch_device)
        if self.recipe.model.positions == "rope":
            model.rotations = rotary_table(self.recipe.model).to(self.device.torch_device)
        return model

    def exchange(self) -> Exchange:
        return ShardedExchange(self.ranks)

    def build_train_module(self) -> nn.Module:
        model: nn.Module = self.model
        return model

    def load(self, path: Path) -> None:
        """Load the rows of this rank; all ranks must see the directory."""
        self.read(path)

    def reduce_squared_norm(self, squares: NDArray[np.float64]) -> float:
        return float(np.sum(squares))

    def shared_casts(self) -> contextlib.AbstractContextManager[None]:
        """Return a context without effect: weights are gathered in the lower precision, for each pass again."""
        return contextlib.nullcontext()

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(last or self.recipe.run.gradients_reduced == "micro-batch")
        yield

    def trial(self) -> contextlib.AbstractContextManager[None]:
        """Return the context with reduction: FSDP keeps unreduced gradients and adds them to the next ones."""
        return self.micro_batch(last=True)

    @contextmanager
    def eval_mode(self) -> Iterator[GPT]:
        """Yield the model; all ranks must make the same number of passes, because each pass gathers the weights."""
        try:
            eager = torch.compiler.set_stance("force_eager") if self.device.compiled else contextlib.nullcontext()
            with eager, self.device.autocast():  # also for sampling: FSDP gathers the weights in the lower precision
                yield self.model
        finally:
            self.model.reshard()
