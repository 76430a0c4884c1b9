"""How this process gets memory for tensors on the CPU."""

import contextlib
import ctypes
import sys

from regpt.machine.env import has_allocator_settings

# Numbers of mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER = 2**31 - 1
TOP_PAD = 64 << 20  # bytes


def keep_freed_memory() -> None:
    """Let the C library of Linux keep freed memory for the next tensor instead of returning it to the system.

    Every step frees and allocates tensors of the same sizes, and new memory costs a fault for each page. The process
    keeps its peak until it ends. What the user set in the environment, and other C libraries, stay as they are.
    """
    if sys.platform != "linux" or has_allocator_settings():
        return
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, TOP_PAD)):
            mallopt(parameter, value)
