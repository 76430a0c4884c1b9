"""The improvements of a recipe: compiled as eager, with FlexAttention where documents are masked, and Muon."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.gpu.bench import Bench, Training, free_memory, relative
from benchmarks.gpu.results import Bound, Measured
from regpt.data.batches import Batch
from regpt.data.tokenizer import END_OF_TEXT

STEPS = 4
DOCUMENT_TOKENS = 100  # between two beginnings of documents in the synthetic batches
VARIANTS = {
    "document mask": ["model.document_mask=true"],
    "Muon": ["optimizer.kind=muon"],
    "all": [
        "optimizer.kind=muon",
        "model.tied_head=false",
        "model.head_init=zero",
        "model.activation=relu2",
        *(f"model.{name}=true" for name in ("document_mask", "embedding_norm", "qk_norm", "residual_scalars")),
        *(f"model.{name}=true" for name in ("value_embeddings", "value_residual", "zero_init")),
        "model.embedding_init_std=1.0",
        "model.logit_softcap=15",
        "model.z_loss=1e-4",
    ],
}


def switches(bench: Bench) -> Iterator[Measured]:
    """Train each variant with and without torch.compile; the eager one masks documents with a plain mask."""
    for name, settings in VARIANTS.items():
        recipe = bench.recipe("gpt2-modern", "optimizer.warmup_steps=3", *settings, short=True)
        batches = [with_documents(batch, recipe.model.vocab_size) for batch in bench.batches(recipe)]
        found = {}
        for compiled in (False, True):
            free_memory()
            training = Training(bench, recipe, bench.device(recipe, compiled, torch.float32))
            torch.set_float32_matmul_precision("highest")
            found[compiled] = [training.step(batches[step % 4])[0] for step in range(STEPS)]
        largest = max(relative(mine, theirs) for mine, theirs in zip(found[True], found[False], strict=True))
        yield Measured(f"{name}: losses, compiled and eager", largest, "", Bound(most=1e-3))
    torch.set_float32_matmul_precision("high" if bench.on_card else "highest")


def with_documents(batch: Batch, vocabulary: int) -> Batch:
    """Return a batch in which documents begin at regular places, where the vocabulary has their first token."""
    if vocabulary <= END_OF_TEXT:
        return batch
    inputs = batch.inputs.copy()
    inputs[..., DOCUMENT_TOKENS // 2 :: DOCUMENT_TOKENS] = END_OF_TEXT
    return replace(batch, inputs=inputs)
