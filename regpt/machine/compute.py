"""What the machine and its software decide about a computation. Another value may change the last bits of a result."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from regpt.machine.device import Device, device_model


@dataclass(frozen=True, kw_only=True)
class ComputeEnvironment:
    """The facts that a recipe leaves to the machine, as a checkpoint stores them."""

    device: str  # the model of the processor or card
    precision: str  # of matrix products
    compiled: bool  # by torch.compile
    threads: int  # of the CPU
    instructions: str  # of the CPU, that PyTorch uses
    attention: str  # PyTorch's enabled backends
    torch: str  # version
    cuda: str  # version of CUDA or ROCm; empty on a CPU
    ranks: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compute_environment(device: Device, ranks: int) -> ComputeEnvironment:
    """Return the facts of this process, which has opened its device."""
    on_cpu = device.torch_device.type == "cpu"
    return ComputeEnvironment(
        device=device_model(device.torch_device.type),
        precision=device.precision_name,
        compiled=device.compiled,
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        attention=", ".join(enabled_attention()),
        torch=torch.__version__,
        cuda="" if on_cpu else torch.version.cuda or torch.version.hip or "",
        ranks=ranks,
    )


def enabled_attention() -> list[str]:
    """Return the backends that PyTorch may choose for scaled_dot_product_attention."""
    backends: Any = torch.backends.cuda  # its functions have no types; they hold for CPUs too
    enabled = {
        "flash": backends.flash_sdp_enabled(),
        "memory-efficient": backends.mem_efficient_sdp_enabled(),
        "cuDNN": backends.cudnn_sdp_enabled(),
        "math": backends.math_sdp_enabled(),
    }
    return [name for name, is_enabled in enabled.items() if is_enabled]
