"""`regpt bench` trains real steps on a CPU without a dataset, times the other parts, and leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from regpt.base.errors import DONE, USAGE, UserError
from regpt.bench import parts as bench_parts
from regpt.bench.prediction import prediction_of
from regpt.bench.runner import bench
from regpt.bench.steps import MIN_STEPS, WARM_UP_STEPS
from regpt.checkpoint.store import find_faults
from regpt.cli.main import main
from regpt.console.training import quiet_console
from regpt.model.gpt import GPT
from regpt.plan.estimate import Estimate
from regpt.plan.summary import CardPlan, plan_for_cards
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import to_toml
from tests.conftest import tiny_recipe
from tests.training.test_oom import room_for


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the command once, in a folder without data, and return the JSON that it wrote."""
    folder = tmp_path_factory.mktemp("bench")
    recipe, file = tiny_recipe(folder), folder / "bench.json"
    (folder / "tiny.toml").write_text(to_toml(recipe), encoding="utf-8")
    words = ["bench", str(folder / "tiny.toml"), "--seconds", "0", "--json", str(file), "--runs", str(folder / "runs")]
    assert main(words) == DONE
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "tiny.toml"]
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_bench_times_at_least_three_steps_of_one_micro_batch(measured: dict[str, Any]) -> None:
    steps = measured["steps"]
    assert (steps["micro_batches_of_a_step"], steps["micro_batches_of_a_timed_step"]) == (2, 1)
    assert (len(steps["warm_up"]), len(steps["timed"])) == (WARM_UP_STEPS, MIN_STEPS)
    seconds = sorted(2 * step["gradients"] + step["update"] for step in steps["timed"])
    assert measured["step_seconds"]["median"] == pytest.approx(seconds[1])
    assert measured["tokens_per_second"]["median"] == pytest.approx(128 / seconds[1])


def test_bench_measures_every_part_of_a_run(measured: dict[str, Any]) -> None:
    parts, parameters = measured["parts"], tiny_recipe(Path()).model.parameters
    assert {name: parts[name]["size"] for name in ("validation", "tasks", "samples")} == {
        "validation": 2,
        "tasks": 1,  # 64 tokens hold no second question
        "samples": 2,
    }
    assert all(parts[name]["seconds"] > 0 for name in ("validation", "tasks", "samples"))
    assert parts["checkpoint"]["bytes"] == pytest.approx(12 * parameters, rel=0.05)
    run = measured["run_seconds"]
    assert run["training"] == pytest.approx(6 * measured["step_seconds"]["median"])
    assert run["validation"] == pytest.approx(3 * 8 / 2 * parts["validation"]["seconds"])
    assert run["samples"] == pytest.approx(measured["parts"]["samples"]["seconds"] * 2 * samples_of_a_set())
    assert run["tasks"] == run["start"] == 0


def samples_of_a_set() -> int:
    from regpt.plan.workload import count_work

    return count_work(tiny_recipe(Path())).sample_tokens


def test_bench_of_steps_alone_measures_and_prints_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, file = tmp_path / "tiny.toml", tmp_path / "bench.json"
    recipe.write_text(to_toml(tiny_recipe(tmp_path)), encoding="utf-8")
    options = ["--steps-only", "--seconds", "0", "--json", str(file), "--runs", str(tmp_path / "runs")]
    assert main(["bench", *options, str(recipe)]) == DONE
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["tokens_per_second"]["median"] > 0 and found["prediction"] is None
    assert not any(found["parts"].values())
    printed = capsys.readouterr().out
    assert "Training" in printed and not any(
        title in printed for title in ("In comparison", "Other parts", "whole run")
    )


def test_bench_compares_with_the_plan_of_this_cpu(measured: dict[str, Any]) -> None:
    found, memory = measured["prediction"], measured["memory_bytes"]
    middle = sum(found["tokens_per_second"].values()) / 2
    assert found["speed_ratio"] == pytest.approx(measured["tokens_per_second"]["median"] / middle)
    assert found["memory_ratio"] == pytest.approx((memory["peak"] - memory["before"]) / found["memory_bytes"])
    assert memory["peak"] >= memory["before"] > 0 and memory["reserved"] == 0
    assert measured["published"] == []


def test_bench_halves_the_micro_batch_when_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room_for(monkeypatch, 1)
    recipe = tiny_recipe(tmp_path, data={"micro_batch": 4})
    (tmp_path / "tiny.toml").write_text(to_toml(recipe), encoding="utf-8")
    assert main(["bench", str(tmp_path / "tiny.toml"), "--seconds", "0", "--runs", str(tmp_path / "runs")]) == DONE
    printed = capsys.readouterr().out
    assert "data.micro_batch = 4; measuring with 2" in printed and "data.micro_batch = 2; measuring with 1" in printed
    assert "1 x 32 tokens, 4 micro-batches per step; out of memory with 4" in printed


def test_bench_names_the_remedies_where_not_even_one_sequence_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(monkeypatch, 0)
    with pytest.raises(UserError, match=r"data\.micro_batch = 1"):
        bench(tiny_recipe(tmp_path), tmp_path, tmp_path, 0.0, quiet_console())


def test_part_that_runs_out_of_memory_is_left_out(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GPT, "losses", fail)
    monkeypatch.setattr(bench_parts, "time_sampling", fail)
    result = bench(tiny, tmp_path, tmp_path, 0.0, quiet_console())
    assert result.parts.validation is None and result.parts.samples is None
    assert result.parts.tasks is not None and result.parts.checkpoint is not None
    assert result.run_time.validation.middle == 0
    assert list(find_faults(tmp_path / "checkpoints" / "step_000001")) == []


def test_json_file_that_cannot_be_written_is_refused_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "missing" / "bench.json"
    assert main(["bench", "demo-modern", "--json", str(file), "--runs", str(tmp_path)]) == USAGE
    assert str(file) in capsys.readouterr().err


def test_prediction_is_that_of_plan_for_the_card() -> None:
    plan = plan_for_cards(tiny_recipe(Path()), "V100 16GB", 1, None, Path("runs"))
    assert isinstance(plan.target, CardPlan) and isinstance(plan.target.estimate, Estimate)
    found, estimate = prediction_of(plan), plan.target.estimate
    assert found is not None
    assert found.tokens_per_second == estimate.tokens_per_second and found.memory_bytes == estimate.memory.total
    assert [seconds / 3600 for seconds in found.seconds] == pytest.approx(list(estimate.hours))
    assert prediction_of(plan_for_cards(tiny_recipe(Path()), "H100", 1, None, Path("runs"))) is None  # for float32
