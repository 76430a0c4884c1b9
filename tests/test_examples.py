"""The scripts in examples/ run, with a recipe small enough for a test."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import regpt

Script = Callable[..., str]
EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = [
    "run.max_steps=6", "run.device=cpu", "run.threads=1", "data.shard_tokens=20000", "data.validation_tokens=4000",
    "data.micro_batch=2", "data.total_batch_tokens=128", "model.n_layer=1", "model.n_head=2", "model.n_embd=16",
    "model.block_size=32", "optimizer.warmup_steps=2", "evaluation.validation_every=3",
    "evaluation.validation_batches=2", "evaluation.validation_batch_size=4",
]  # fmt: skip


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Return a function that runs a script in `tmp_path` and returns what it printed.

    It runs in this process: an interpreter that imports torch again takes longer than most scripts.
    """
    monkeypatch.chdir(tmp_path)

    def run(path: Path, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(path), *words])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_library_page_example_runs(tmp_path: Path, run_script: Script) -> None:
    """The script that docs/library.md shows, as it is."""
    printed = run_script(EXAMPLES.parent / "docs" / "library_example.py")
    run = regpt.open_run(tmp_path / "runs" / "short")
    assert run.history.step == 6
    assert "hellaswag" in printed and "run.max_steps" in printed
    assert (run.path / "report.html").is_file()
    assert list((tmp_path / "comparisons").rglob("comparison.md"))


@pytest.fixture
def text(tmp_path: Path, real_text: str) -> Path:
    path = tmp_path / "my-texts"
    path.mkdir()
    (path / "a.txt").write_text(real_text, encoding="utf-8")
    return path


@pytest.mark.slow
def test_own_data_trains_and_writes_a_report(tmp_path: Path, text: Path) -> None:
    """In a process of its own, as a user would: the script imports all that it needs."""
    command = [sys.executable, str(EXAMPLES / "own_data.py"), str(text), *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = regpt.open_run(tmp_path / "runs" / "my-texts")
    assert run.history.step == 6
    assert f"{run.validation_loss:.4f}" in done.stdout
    assert (run.path / "report.html").is_file()


@pytest.mark.slow
def test_sweep_trains_one_run_per_rate_and_compares_them(tmp_path: Path, text: Path, run_script: Script) -> None:
    words = [f"data.source={text}", "data.path=data/mine", *SMALL]
    printed = run_script(EXAMPLES / "sweep.py", *words)
    runs = [regpt.open_run(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert sorted(run.recipe.optimizer.max_lr for run in runs) == [3e-4, 1e-3, 3e-3, 1e-2]
    assert all(f"{run.validation_loss:.4f}" in printed for run in runs)
    assert list((tmp_path / "comparisons").rglob("comparison.html"))
    assert run_script(EXAMPLES / "sweep.py", *words) == printed  # finished runs are reused


@pytest.mark.slow
def test_replace_part_trains_another_mlp(tmp_path: Path, text: Path, run_script: Script) -> None:
    small = [word for word in SMALL if not word.startswith("model.mlp")]
    run_script(EXAMPLES / "replace_part.py", f"data.source={text}", "data.path=data/mine", *small)
    gelu, squared = (regpt.open_run(tmp_path / "runs" / name) for name in ("gelu", "squared-relu"))
    assert gelu.history.steps[0].batch == squared.history.steps[0].batch
    assert gelu.history.steps[-1].loss != squared.history.steps[-1].loss
    with pytest.raises(regpt.UserError):  # a process without the new class refuses the checkpoint
        regpt.load_model(squared)
