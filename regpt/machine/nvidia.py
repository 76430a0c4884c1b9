"""NVIDIA cards that this machine has and PyTorch cannot use, or that a run leaves idle."""

import re
from pathlib import Path

import torch

from regpt.base.errors import UserError
from regpt.machine.env import visible_cuda_devices

DEVICES, DRIVER = Path("/dev"), Path("/proc/driver/nvidia/version")


def refuse_unusable_card() -> None:
    """Raise UserError if the machine has an NVIDIA card, but this PyTorch or the driver cannot use it.

    Falling back to the CPU silently would turn a day into years. CUDA_VISIBLE_DEVICES="" hides the cards.
    """
    if torch.cuda.is_available() or visible_cuda_devices() == "" or not any(DEVICES.glob("nvidia[0-9]*")):
        return
    insist = "or set run.device=cpu to train on the CPU"
    if torch.version.cuda is None:
        raise UserError(
            f"this machine has an NVIDIA card, but torch {torch.__version__} was built without CUDA",
            f"install PyTorch for CUDA (https://pytorch.org/get-started), {insist}",
        )
    raise UserError(
        f"this machine has an NVIDIA card, but torch {torch.__version__} for CUDA {torch.version.cuda} cannot use it"
        f" (driver {driver_version() or 'unknown'})",
        f"update the driver, install PyTorch for an older CUDA (https://pytorch.org/get-started), {insist}",
    )


def driver_version() -> str:
    """Return the version of NVIDIA's kernel driver; empty if it cannot be read."""
    try:
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", DRIVER.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found.group() if found else ""


def refuse_card_without_kernels() -> None:
    """Raise UserError if this build of PyTorch has no kernels for the card, which then fails at its first product.

    A build has kernels for some compute capabilities (sm_80). They also run on later minor versions, and PTX
    (compute_90) on all later ones.
    """
    capability = torch.cuda.get_device_capability()
    names = torch.cuda.get_arch_list()
    if names and not any(runs_on(name, capability) for name in names):
        raise UserError(
            f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}, for which torch"
            f" {torch.__version__} has no kernels ({', '.join(names)})",
            "install PyTorch for another CUDA version (https://pytorch.org/get-started), or set run.device=cpu",
        )


def runs_on(name: str, capability: tuple[int, int]) -> bool:
    """Return whether kernels named as 'sm_86', 'sm_90a' or 'compute_90' run on a card of that capability."""
    kind, _, version = name.partition("_")
    digits = re.match(r"\d+", version)
    if digits is None:
        return True  # AMD's names, such as gfx942
    major, minor = divmod(int(digits.group()), 10)
    if kind == "compute":
        return (major, minor) <= capability
    if version[-1].isalpha():  # for exactly this card, or for its family
        return (major, minor) == capability or (
            version[-1] == "f" and major == capability[0] and minor <= capability[1]
        )
    return major == capability[0] and minor <= capability[1]


def idle_cards_note(ranks: int) -> str:
    """Return a note if this machine has several cards and one process uses only the first; else empty."""
    cards = torch.cuda.device_count()
    if ranks > 1 or cards < 2:
        return ""
    return (
        f"this machine has {cards} cards and this run uses one; for all of them:"
        f" torchrun --standalone --nproc_per_node={cards} -m regpt train …"
    )
