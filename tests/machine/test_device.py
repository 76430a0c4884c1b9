"""Devices: what is asked for is given or refused, and random numbers follow from the step."""

import pytest
import torch

from regpt.base.errors import UserError
from regpt.base.sections import RunRecipe
from regpt.machine.device import choose_precision, open_device, seed_micro_batch


def test_a_device_that_is_not_there_is_refused_with_one_that_is() -> None:
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
def test_a_cpu_computes_in_bfloat16_only_where_it_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert choose_precision("auto", "cpu") == expected
    assert choose_precision("float32", "cpu") == torch.float32


def test_random_numbers_follow_from_seed_micro_batch_and_number_of_the_micro_batch() -> None:
    def drawn(seed: int, step: int, number: int) -> float:
        seed_micro_batch(seed, step, number)
        return float(torch.rand(()))

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({drawn(seed, step, number) for seed in range(4) for step in range(4) for number in range(4)}) == 64


def test_a_cpus_peak_is_measured() -> None:
    device = open_device(RunRecipe(device="cpu", precision="float32"))
    assert device.peak_flops > 1e9 and "measured" in device.peak_source
