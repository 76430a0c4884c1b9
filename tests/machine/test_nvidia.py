"""A card that cannot be used is named, and never replaced by the CPU in silence."""

from pathlib import Path

import pytest
import torch

from regpt.base.errors import UserError
from regpt.machine import nvidia
from regpt.machine.device import open_device
from regpt.machine.nvidia import idle_cards_note, refuse_card_without_kernels, runs_on
from regpt.recipe.run_settings import RunRecipe

ON_ANY = RunRecipe(precision="float32")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A card that PyTorch does not see."""
    (tmp_path / "nvidia0").touch()
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n")
    monkeypatch.setattr(nvidia, "DEVICES", tmp_path)
    monkeypatch.setattr(nvidia, "DRIVER", tmp_path / "version")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_card_with_an_old_driver_is_named_with_both_versions(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError) as caught:
        open_device(ON_ANY)
    assert "535.183.01" in caught.value.problem and "CUDA 13.0" in caught.value.problem
    assert "run.device=cpu" in caught.value.fix


def test_card_with_a_build_for_the_cpu_is_named(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="without CUDA"):
        open_device(ON_ANY)


@pytest.mark.parametrize("how", ["hidden", "asked for the CPU", "no card"])
def test_cpu_is_used_where_it_was_meant(card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    recipe = ON_ANY
    match how:
        case "hidden":
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        case "asked for the CPU":
            recipe = RunRecipe(device="cpu", precision="float32")
        case "no card":
            (tmp_path / "nvidia0").unlink()
    assert open_device(recipe).torch_device.type == "cpu"


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("sm_75", (7, 5), True),
        ("sm_80", (8, 9), True),  # a later minor version
        ("sm_89", (8, 6), False),
        ("sm_80", (9, 0), False),  # another major version
        ("sm_75", (7, 0), False),  # V100 with a build for CUDA 13
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
        ("compute_90", (12, 0), True),  # PTX
        ("compute_120", (9, 0), False),
        ("gfx942", (9, 4), True),
    ],
)
def test_kernels_run_on_the_cards_that_nvidia_says(name: str, capability: tuple[int, int], expected: bool) -> None:
    """CUDA C++ Programming Guide, "Binary Compatibility" and "Family-Specific Features"."""
    assert runs_on(name, capability) is expected


def test_card_without_kernels_is_refused_before_the_first_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90", "compute_90"])
    with pytest.raises(UserError) as caught:
        refuse_card_without_kernels()
    assert "V100" in caught.value.problem and "7.0" in caught.value.problem
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    refuse_card_without_kernels()


@pytest.mark.parametrize(("cards", "ranks", "noted"), [(8, 1, True), (8, 8, False), (1, 1, False), (0, 1, False)])
def test_idle_cards_are_noted(monkeypatch: pytest.MonkeyPatch, cards: int, ranks: int, noted: bool) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    note = idle_cards_note(ranks)
    assert bool(note) is noted
    assert not noted or "--nproc_per_node=8" in note
