"""The scripts in examples/ run, with a recipe small enough for a test."""

import subprocess
import sys
from pathlib import Path

import pytest

import regpt

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = [
    "run.max_steps=6", "run.device=cpu", "run.threads=1", "data.shard_tokens=20000", "data.validation_tokens=4000",
    "data.micro_batch=2", "data.total_batch_tokens=128", "model.n_layer=1", "model.n_head=2", "model.n_embd=16",
    "model.block_size=32", "optimizer.warmup_steps=2", "evaluation.validation_every=3",
    "evaluation.validation_batches=2", "evaluation.validation_batch_size=4",
]  # fmt: skip


def run_example(folder: Path, name: str, *words: str) -> str:
    """Run a script in `folder`, as a user would; returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_library_page_example_runs(tmp_path: Path) -> None:
    """The script that docs/library.md shows, as it is, with the small model of the demo."""
    example = EXAMPLES.parent / "docs" / "library_example.py"
    done = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = regpt.open_run(tmp_path / "runs" / "short")
    assert run.history.step == 30
    assert "hellaswag" in done.stdout and "run.max_steps" in done.stdout
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
    printed = run_example(tmp_path, "own_data.py", str(text), *SMALL)
    run = regpt.open_run(tmp_path / "runs" / "my-texts")
    assert run.history.step == 6
    assert f"{run.validation_loss:.4f}" in printed
    assert (run.path / "report.html").is_file()


@pytest.mark.slow
def test_sweep_trains_one_run_per_rate_and_compares_them(tmp_path: Path, text: Path) -> None:
    words = [f"data.source={text}", "data.path=data/mine", *SMALL]
    printed = run_example(tmp_path, "sweep.py", *words)
    runs = [regpt.open_run(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert sorted(run.recipe.optimizer.max_lr for run in runs) == [3e-4, 1e-3, 3e-3, 1e-2]
    assert all(f"{run.validation_loss:.4f}" in printed for run in runs)
    assert list((tmp_path / "comparisons").rglob("comparison.html"))
    assert run_example(tmp_path, "sweep.py", *words) == printed  # finished runs are reused


@pytest.mark.slow
def test_replace_part_trains_another_mlp(tmp_path: Path, text: Path) -> None:
    small = [word for word in SMALL if not word.startswith("model.mlp")]
    run_example(tmp_path, "replace_part.py", f"data.source={text}", "data.path=data/mine", *small)
    gelu, squared = (regpt.open_run(tmp_path / "runs" / name) for name in ("gelu", "squared-relu"))
    assert gelu.history.steps[0].batch == squared.history.steps[0].batch
    assert gelu.history.steps[-1].loss != squared.history.steps[-1].loss
    with pytest.raises(regpt.UserError):  # a process without the new class refuses the checkpoint
        regpt.load_model(squared)
