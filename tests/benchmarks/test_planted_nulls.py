"""The experiment with planted nulls: what it counts, and that its quick form runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.planted_nulls import BAD, FULL, MUON, QUICK, calls_of, design_of, lines, main, run
from regpt.ablation.design import BASE, Trial, check_design, read_design
from regpt.ablation.effects import Effect, Results
from regpt.stats.paired import holm_adjusted
from tests.conftest import write_texts


def test_planted_arms_differ_from_the_base_as_they_say() -> None:
    design = design_of(FULL, "stdlib", Path("somewhere"))
    check_design(design)
    base, bad, muon, last = (design.recipe_of(Trial(arm, 1)) for arm in (BASE, BAD.name, MUON.name, "a-a-20"))
    assert bad.optimizer.max_lr == pytest.approx(10 * base.optimizer.max_lr) and bad.optimizer.warmup_steps == 0
    assert base.optimizer.warmup_steps == 4 and muon.optimizer.kind == "muon"
    assert len({design.recipe_of(Trial(arm.name, 1)).run.initial_seed for arm in design.arms}) == 21
    assert replace(last, run=base.run) == base and len(design.seed_trials()) == 69


def test_calls_of_nulls_and_planted_changes_are_counted_before_and_after_holm() -> None:
    design = design_of(replace(FULL, nulls=3), "stdlib", Path("somewhere"))
    p_values = {"bad": 1e-4, "muon": 0.03, "a-a": 0.02, "a-a-2": 0.5, "a-a-3": 0.9}
    means = {"bad": 0.4, "muon": -0.1, "a-a": 0.02, "a-a-2": 0.0, "a-a-3": -0.01}
    adjusted = holm_adjusted(list(p_values.values()))
    effects = tuple(
        Effect(arm, (), (means[arm],) * 3, p_value=p, adjusted_p_value=by_holm)
        for (arm, p), by_holm in zip(p_values.items(), adjusted, strict=True)
    )
    results = Results(design, effects, (), {}, 0.01)
    calls = calls_of(results)
    assert (calls.nulls, calls.called, calls.called_by_holm) == (3, 1, 0)
    assert (calls.found, calls.found_by_holm) == ({"bad", "muon"}, {"bad"})
    wrong = replace(results, effects=tuple(replace(e, differences=(-e.mean,) * 3) for e in effects))
    assert not calls_of(wrong).found
    assert [line.split(":")[0] for line in lines(results, calls)][1:] == ["bad", "muon"]


@pytest.mark.slow
def test_quick_form_trains_every_arm_and_continues_where_it_was(
    tmp_path: Path, real_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--quick",
        "--nulls",
        "2",
        "--set",
        "model.n_embd=16",
        "--into",
        str(tmp_path),
        "--source",
        str(write_texts(tmp_path / "texts", real_text)),
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "of 2;" in printed
    journals = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/journal.jsonl")}
    assert len(journals) == 5 * QUICK.seeds and (tmp_path / "ablation.md").exists()
    again = run(tmp_path, read_design(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in journals} == journals
    assert [effect.arm for effect in again.effects] == ["bad", "muon", "a-a", "a-a-2"]
