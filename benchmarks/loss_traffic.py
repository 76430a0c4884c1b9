"""Count the memory traffic of the head and its loss, in bytes per logit.

Uncompiled, each operation reads its inputs and writes its output: counted by intercepting them. On a CPU the copies in
float32 are pieces that stay in its cache; a GPU reads and writes them in memory. Compiled, the loads and stores of
whole rows are counted in the C++ code that inductor generates for the CPU. All include the three matrix products: the
first writes the logits, the other two read their gradient. GPUs have another backend, with at most as many passes (its
softmax finds maximum and sum in one); that is derived, not counted.

    python -m benchmarks.loss_traffic
"""

import re
import sys
from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from regpt.model.loss import LossOptions, mean_loss, softmax_gradient_

ROWS, VOCABULARY, WIDTH = 64, 50_304, 48
GOAL = 14  # bytes per logit
BYTES = {"at::BFloat16": 2, "float": 4}
VIEWS = {"view", "t", "transpose", "detach", "slice", "split", "expand", "alias", "unsqueeze"}
FRESH = {"empty", "empty_like", "new_empty"}
ONE_A_ROW = {"gather", "scatter_add_", "new_full"}  # touch one logit of a row


class Traffic(TorchDispatchMode):
    """Adds up the bytes of logits that operations read or write, by their type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name not in VIEWS | FRESH | ONE_A_ROW:
            read = [one for one in args if is_logits(one)]
            if name in ("copy_", "mm"):  # they overwrite without reading: the target of a copy, the `out` of a product
                read = [one for one in read if one is not out]
            for one in [*read, *filter(is_logits, [out])]:
                self.bytes[one.dtype] += one.numel() * one.element_size()
        return out


def is_logits(value: object) -> bool:
    """Return whether a tensor holds logits: those of some rows, or transposed those of some tokens."""
    if not isinstance(value, Tensor) or value.dim() != 2:
        return False
    rows, columns = value.shape
    return rows != WIDTH and columns in (VOCABULARY, ROWS)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, (ROWS,), generator=generator)


def uncompiled_bytes(dtype: torch.dtype) -> tuple[float, float]:
    """Return the bytes per logit of the uncompiled loss with its gradient: in the type of products, and all."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), Traffic() as traffic:
        mean_loss(*inputs(), LossOptions())
    return traffic.bytes[dtype] / (ROWS * VOCABULARY), traffic.bytes.total() / (ROWS * VOCABULARY)


def compiled_bytes(dtype: torch.dtype) -> float:
    """Return the bytes per logit of the compiled kernel and of the products around it."""
    from torch._inductor.utils import run_and_get_code

    logits, targets = torch.randn(ROWS, VOCABULARY).to(dtype), inputs()[2]
    compiled = torch.compile(softmax_gradient_, dynamic=False)
    _, (code,) = run_and_get_code(compiled, logits, targets, 0.0, 0.0)
    return kernel_bytes(code) + 3 * dtype.itemsize


def kernel_bytes(code: str) -> int:
    """Count the bytes per logit that the loops of generated C++ code load and store, in whole vectors."""
    pointers = {name: BYTES[kind] for kind, name in re.findall(r"(at::BFloat16|float)\* (\w+)", code)}
    at_logit = rf"(\w+) \+ static_cast<int64_t>\(x1 \+ {VOCABULARY}L\*x0\), static_cast<int64_t>\(\d+\)\)"
    touched = re.findall(rf"(?:loadu|store)\({at_logit}", code)
    if not touched:
        raise SystemExit("the generated code has another form than this script reads: nothing was counted")
    return sum(pointers[name] for name in touched)


def main() -> int:
    print("bytes of memory traffic per logit, products included")
    highest = 0.0
    for dtype in (torch.bfloat16, torch.float32):
        compiled, (on_cpu, on_gpu) = compiled_bytes(dtype), uncompiled_bytes(dtype)
        name = str(dtype).removeprefix("torch.")
        print(f"{name}: uncompiled {on_cpu:.0f} on a CPU, {on_gpu:.0f} on a GPU, compiled {compiled:.0f}")
        highest = highest or compiled
    print(f"goal in bfloat16: at most {GOAL}: {'met' if highest <= GOAL else 'MISSED'}")
    return 0 if highest <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
