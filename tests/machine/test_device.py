"""Devices are opened or refused by name, and random numbers follow from the step."""

import pytest
import torch

from regpt.base.errors import UserError
from regpt.base.sections import RunRecipe
from regpt.machine.device import choose_precision, open_device, seed_micro_batch


def test_device_that_does_not_exist_is_refused_by_name() -> None:
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(UserError, match=f"run.device = '{missing}' is not available"):
        open_device(RunRecipe(device=missing))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
    ],
)
def test_cpu_uses_bfloat16_only_where_it_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert choose_precision("auto", "cpu") == expected
    assert choose_precision("float32", "cpu") == torch.float32


def test_random_numbers_follow_from_seed_step_and_micro_batch() -> None:
    def drawn(seed: int, step: int, number: int) -> float:
        seed_micro_batch(seed, step, number)
        return float(torch.rand(()))

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({drawn(seed, step, number) for seed in range(4) for step in range(4) for number in range(4)}) == 64


def test_cpu_peak_rate_is_measured_and_says_so() -> None:
    device = open_device(RunRecipe(device="cpu", precision="float32"))
    assert device.peak_flops > 1e9 and "measured" in device.peak_source
