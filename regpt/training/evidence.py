"""Evidence of a bad step for a person to inspect: its windows, their text, and the gradient norm of each tensor."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import write_json, write_text
from regpt.data.batches import Batch
from regpt.data.shards import TokenWindows
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer, text_with_ends
from regpt.distributed.dtensor import full_scalar
from regpt.model.gpt import GPT
from regpt.tracking.journal import SkippedRecord
from regpt.tracking.layout import RunPaths
from regpt.training.guard import Verdict


def gradient_norms(model: GPT) -> dict[str, str]:
    """Return the gradient norm of every tensor, as text because JSON has no NaN. All ranks must call it."""
    return {
        name: str(full_scalar(parameter.grad.norm()).item())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def write_evidence(
    run: Path,
    record: SkippedRecord,
    verdict: Verdict,
    number: int,
    batch: Batch,
    windows: TokenWindows,
    norms: dict[str, str],
    tokenizer: Tokenizer = GPT2_TOKENIZER,
) -> Path:
    """Write a directory for a step that the guard rejected, with all windows of its batch; return its path."""
    folder = RunPaths(run).evidence(record.step)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        **asdict(record),
        "verdict": verdict,
        "batch_number": number,
        "windows": batch.windows.tolist(),
        "gradient_norms": norms,
    }
    write_json(folder / "step.json", about)
    texts = texts_of(windows.rows(batch.windows)[:, :-1], tokenizer)
    lines = (f"=== window {window}\n{text}" for window, text in zip(batch.windows, texts, strict=True))
    write_text(folder / "text.txt", "\n".join(lines) + "\n")
    return folder


def texts_of(rows: NDArray[np.integer], tokenizer: Tokenizer) -> list[str]:
    """Return the text of each row of tokens; their ids where the vocabulary is not available.  (B, T) -> (B)"""
    try:
        return [text_with_ends(row, tokenizer) for row in rows]
    except DataError:
        return [" ".join(map(str, row.tolist())) for row in rows]
