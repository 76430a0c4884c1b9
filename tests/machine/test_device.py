"""Devices are opened or refused by name, and random numbers follow from the step."""

import pytest
import torch

from regpt.base.errors import UserError
from regpt.machine import device as device_module
from regpt.machine.device import choose_precision, open_device, seed_micro_batch
from regpt.recipe.run_settings import RunRecipe


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


@pytest.mark.parametrize(("rates", "peak"), [((5e10, 4.9e10, 5e10, 5e10, 4.6e10), 5e10), ((5e10, 4e10) * 3, 0.0)])
def test_cpu_peak_is_measured_several_times(
    monkeypatch: pytest.MonkeyPatch, rates: tuple[float, ...], peak: float
) -> None:
    """Measurements that differ by more than a tenth are not used."""
    measured = iter(rates)
    monkeypatch.setattr(device_module, "measure_matmul_rate", lambda device, precision: next(measured))
    found = device_module.peak_rate.__wrapped__(torch.device("cpu"), torch.float32)
    assert (found.flops, found.measurements) == (peak, 5 if peak else 0)


def test_cpu_rate_of_matrix_products_is_measured() -> None:
    assert device_module.measure_matmul_rate(torch.device("cpu"), torch.float32, seconds=0.01) > 1e9
