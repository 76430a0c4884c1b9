"""Snapshots: copies of a rank's weights and optimizer state in memory."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regpt.distributed.dtensor import is_sharded, local_rows, to_local
from regpt.model.gpt import GPT
from regpt.model.moe import balances
from regpt.optimizer.base import Optimizer


@dataclass(frozen=True)
class Snapshot:
    """Copies of a rank's tensors that training does not modify; checkpoint files are written from them."""

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    rows: dict[str, list[int]]  # sharded tensors: first local row, number of rows in full
    state: dict[str, Any]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensors in (self.weights, self.moments) for tensor in tensors.values())


def snapshot(
    step: int, model: GPT, optimizer: Optimizer, state: dict[str, Any], reuse: Snapshot | None = None
) -> Snapshot:
    """Copy this rank's weights, moments and state after `step` steps; reuse the memory of an earlier snapshot."""
    weights, moments = named_weights(model), named_moments(model, optimizer)
    rows = {
        name: [local_rows(tensor)[0], tensor.shape[0]]
        for name, tensor in (weights | moments).items()
        if is_sharded(tensor)
    }
    return Snapshot(
        step,
        copy_tensors(weights, reuse.weights if reuse else {}),
        copy_tensors(moments, reuse.moments if reuse else {}),
        rows,
        state,
    )


def copy_tensors(tensors: dict[str, Tensor], memory: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: memory[name].copy_(to_local(tensor))
        if name in memory
        else to_local(tensor).to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
    }


def named_weights(model: GPT) -> dict[str, Tensor]:
    """Return the parameters by name, a tied one once, and the balance of each mixture of experts."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()} | balances(model)


def named_moments(model: GPT, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return AdamW's state in a fixed order, named like 'blocks.0.mlp.down.weight/exp_avg'."""
    return {
        f"{name}/{key}": torch.as_tensor(value).detach()
        for name, parameter in model.named_parameters()
        for key, value in sorted(optimizer.state[parameter].items())
    }
