"""torch.compile is used where it can work; otherwise the missing part is named with its remedy."""

from pathlib import Path

import pytest
import torch

from regpt.base.errors import UserError
from regpt.machine import compilation
from regpt.machine.compilation import choose_compilation, compilation_errors, find_obstacle


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make `compilation` find a card, Triton, a compiler and headers; return the folder of the headers."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(compilation, "has_triton", lambda: True)
    monkeypatch.setenv("CC", "true")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    return tmp_path


def test_card_with_all_parts_is_compiled_for(card: Path) -> None:
    assert choose_compilation("auto", "cuda") == (True, "")
    assert choose_compilation("off", "cuda") == (False, "")


def test_cpu_is_compiled_for_on_request_only(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "true")
    assert choose_compilation("auto", "cpu") == (False, "")
    assert choose_compilation("on", "cpu") == (True, "")


@pytest.mark.parametrize(
    ("missing", "named", "remedy"),
    [
        ("capability", "6.1", "run.compile=off"),
        ("triton", "triton", "pip install triton"),
        ("compiler", "C compiler", "apt install"),
        ("headers", "Python.h", "python3-dev"),
    ],
)
def test_missing_part_turns_compilation_off_with_a_note(
    card: Path, monkeypatch: pytest.MonkeyPatch, missing: str, named: str, remedy: str
) -> None:
    """And is an error where compilation was asked for."""
    match missing:
        case "capability":
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
        case "triton":
            monkeypatch.setattr(compilation, "has_triton", lambda: False)
        case "compiler":
            monkeypatch.delenv("CC")
            monkeypatch.setenv("PATH", str(card))
        case "headers":
            (card / "Python.h").unlink()
    compiled, note = choose_compilation("auto", "cuda")
    assert not compiled and named in note and remedy in note
    with pytest.raises(UserError) as caught:
        choose_compilation("on", "cuda")
    assert named in caught.value.problem and remedy in caught.value.fix and "run.compile=off" in caught.value.fix


def test_this_machine_has_what_the_compile_tests_need() -> None:
    assert find_obstacle("cpu") is None


@pytest.mark.compile
def test_failure_of_torch_compile_is_one_line_with_a_remedy() -> None:
    def backend(*unused: object) -> None:
        raise RuntimeError("ptxas fatal: value 'sm_121a' is not defined")

    with pytest.raises(UserError) as caught, compilation_errors():
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert "sm_121a" in caught.value.problem and "\n" not in caught.value.problem
    assert caught.value.fix == "set run.compile=off"


@pytest.mark.compile
def test_running_out_of_memory_is_not_taken_for_a_failure_of_torch_compile() -> None:
    def backend(*unused: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(RuntimeError, match="out of memory"), compilation_errors():
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(ValueError, match="other"), compilation_errors():
        raise ValueError("other")
