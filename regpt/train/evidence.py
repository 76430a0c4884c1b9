"""What a bad step leaves behind for a person to look at: its windows, their text, and the gradients layer by layer."""

from dataclasses import asdict
from pathlib import Path

from regpt.base.files import write_json, write_text
from regpt.data.batches import Batch
from regpt.data.shards import TokenWindows
from regpt.data.tokenizer import decode
from regpt.distributed.dtensor import full_scalar
from regpt.model.gpt import GPT
from regpt.tracking.journal import SkippedRecord
from regpt.tracking.layout import RunPaths
from regpt.train.guard import Verdict


def gradient_norms(model: GPT) -> dict[str, str]:
    """Of every tensor, as text: JSON has no word for what is no number. All ranks call it, because some hold shares."""
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
) -> Path:
    """Write a folder for a step that the guard objected to, with all windows of its batch; returns its path."""
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
    rows = windows.rows(batch.windows)[:, :-1]
    texts = (f"=== window {window}\n{decode(row)}" for window, row in zip(batch.windows, rows, strict=True))
    write_text(folder / "text.txt", "\n".join(texts) + "\n")
    return folder
