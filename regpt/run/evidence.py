"""What a bad step leaves behind for a person to look at: its windows, their text, and the gradients layer by layer."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from regpt.base.files import write_json, write_text
from regpt.data.batches import Batch
from regpt.data.tokenizer import decode
from regpt.model.gpt import GPT
from regpt.run.guard import Verdict
from regpt.run.journal import SkippedRecord

FOLDER = "evidence"


def write_evidence(run: Path, record: SkippedRecord, verdict: Verdict, number: int, batch: Batch, model: GPT) -> Path:
    """Write a folder for a step that the guard objected to, before its gradients are thrown away; returns its path."""
    folder = run / FOLDER / f"step_{record.step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    norms = {name: str(p.grad.norm().item()) for name, p in model.named_parameters() if p.grad is not None}
    about = {
        **asdict(record),
        "verdict": verdict,
        "batch_number": number,
        "windows": batch.windows.tolist(),
        "gradient_norms": norms,  # as text: JSON has no word for what is no number
    }
    write_json(folder / "step.json", about)
    rows = batch.inputs.reshape(-1, batch.inputs.shape[-1])
    texts = (
        f"=== window {window}\n{decode(row)}" for window, row in zip(batch.windows, np.asarray(rows), strict=False)
    )
    write_text(folder / "text.txt", "\n".join(texts) + "\n")
    return folder
