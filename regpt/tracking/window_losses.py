"""The validation loss of each window, and of each block of text, as .npy files in the run directory.

Paired tests need them: by windows for models with one tokenizer, by blocks of text for different ones.
"""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import write_bytes

BLOCK_BYTES = 256  # of text, from the beginning of its document on
TEXT_LOSS = np.dtype([("text", "<u8"), ("nats", "<f8")])  # hash of the document up to the block's end; its loss


def window_losses_file(data: str, windows: int) -> str:
    """Return the file's name; it has the data digest, because a step's folder may hold losses on several datasets."""
    return f"validation-{data[:8]}-{windows}.npy"


def text_losses_file(window_losses: Path) -> Path:
    """Return the file of the losses of blocks of text, next to that of the windows."""
    return window_losses.with_name(window_losses.name.replace("validation-", "text-", 1))


def write_window_losses(path: Path, losses: NDArray[np.float64]) -> None:
    """Write the loss of each window as a .npy file, atomically.  (windows)"""
    write_array(path, losses)


def write_text_losses(path: Path, losses: NDArray[np.void]) -> None:
    """Write the loss of each block of text, of type TEXT_LOSS, atomically.  (blocks)"""
    write_array(path, losses)


def write_array(path: Path, array: NDArray[Any]) -> None:
    memory = io.BytesIO()
    np.save(memory, array)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, memory.getvalue())


def read_window_losses(path: Path, windows: int, mean: float) -> NDArray[np.float64]:
    """Read the loss of each window.  (windows)

    Raises DataError where the file is missing or has another number of windows or another mean: an evaluation in
    another precision overwrites it.
    """
    try:
        losses = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise DataError(f"{path}: is missing or not whole", "evaluate again") from None
    if not isinstance(losses, np.ndarray) or losses.shape != (windows,) or losses.dtype != np.float64:
        raise DataError(f"{path}: does not hold the losses of {windows:,} windows", "evaluate again")
    if not math.isclose(float(losses.mean()), mean, rel_tol=1e-9):
        raise DataError(f"{path}: holds other losses than those whose mean is {mean:.4f}", "evaluate again")
    return losses


def read_text_losses(path: Path) -> NDArray[np.void]:
    """Read the losses of blocks of text. Raises DataError where the file is missing or holds something else."""
    try:
        losses = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise DataError(f"{path}: is missing or not whole", "evaluate again") from None
    if not isinstance(losses, np.ndarray) or losses.dtype != TEXT_LOSS or losses.ndim != 1:
        raise DataError(f"{path}: does not hold the losses of blocks of text", "evaluate again")
    return losses
