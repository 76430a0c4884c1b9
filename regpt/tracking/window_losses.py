"""The validation loss of each window, as a .npy file in the run directory; paired tests need it."""

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import write_bytes


def window_losses_file(data: str, windows: int) -> str:
    """Return the file's name; it has the data digest, because a step's folder may hold losses on several datasets."""
    return f"validation-{data[:8]}-{windows}.npy"


def write_window_losses(path: Path, losses: NDArray[np.float64]) -> None:
    """Write the loss of each window as a .npy file, atomically.  (windows)"""
    memory = io.BytesIO()
    np.save(memory, losses)
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
