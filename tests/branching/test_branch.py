"""Branches of a trapezoid run: what they equal, what they record, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest

import regpt
from regpt.base.errors import CHECKPOINT, DONE, USAGE
from regpt.base.files import sha256_of_file
from regpt.branching.branch import start_cooldown
from regpt.branching.journal import lines_before_checkpoint
from regpt.cli.main import main
from regpt.fairness.caveats import CaveatKind
from regpt.fairness.checks import find_caveats
from regpt.fairness.loading import load_models
from regpt.recipe.recipe import Recipe
from regpt.reporting.wording import event_line
from regpt.tracking.events import Branched, CheckpointFailed, Resumed, Rollback, Started
from regpt.tracking.journal import (
    CheckpointRecord,
    EventRecord,
    RunState,
    StepRecord,
    ValidationRecord,
    parse,
    read_history,
    to_json,
)
from regpt.tracking.layout import RunPaths
from regpt.training.start import resume, train
from regpt.training.trainer import Trainer
from regpt.watch.describe import describe_event
from tests.conftest import tiny_recipe, write_texts
from tests.helpers.parallel_runs import same_tensors


def trapezoid(folder: Path, steps: int, cooldown: int, **sections: dict[str, object]) -> Recipe:
    """A dropout shows that the random numbers of each step stay those of that step."""
    shape = {"schedule": "trapezoid", "cooldown_steps": cooldown, "max_lr": 1e-2, "min_lr": 0.0, "warmup_steps": 1}
    return tiny_recipe(
        folder,
        run={"max_steps": steps},
        model={"dropout": 0.1},
        optimizer=shape,
        checkpoint={"every": 2},
        evaluation={"sample_count": 0, "validation_every": 2},
        **sections,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """Run long, of eight steps, was branched at step 4 while it trained; run straight cooled down there by itself."""
    folder = tmp_path_factory.mktemp("branched")
    write_texts(folder / "texts", real_text)
    real = Trainer.evaluate_and_save

    def branch_at_step_six(training: Trainer, step: int) -> None:
        real(training, step)
        if step == 6 and training.run_dir.name == "long":
            Trainer.evaluate_and_save = real  # type: ignore[method-assign]
            start_cooldown(folder / "runs" / "long", folder / "runs" / "branch", at=4, steps=3)

    Trainer.evaluate_and_save = branch_at_step_six  # type: ignore[method-assign]
    try:
        train(trapezoid(folder, 8, 2), folder / "runs" / "long")
    finally:
        Trainer.evaluate_and_save = real  # type: ignore[method-assign]
    train(trapezoid(folder, 7, 3), folder / "runs" / "straight")
    return folder


@pytest.fixture
def place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_branch_of_a_running_run_equals_a_run_that_cooled_down_there(folder: Path) -> None:
    branch, straight = (read_history(folder / "runs" / name) for name in ("branch", "straight"))
    ours, theirs = ([(s.step, s.tokens, s.loss, s.learning_rate, s.batch) for s in h.steps] for h in (branch, straight))
    assert ours == theirs and ours[-1][3] == pytest.approx(1e-2 / 3)
    losses = [{v.step: v.loss for v in history.validations} for history in (branch, straight)]
    assert losses[0] == losses[1] and losses[0].keys() == {0, 2, 4, 6, 7}
    assert same_tensors(*(RunPaths(folder / "runs" / name).checkpoint(7) for name in ("branch", "straight")))
    assert branch.status is RunState.FINISHED


def test_library_and_command_make_the_same_branch(place: Path) -> None:
    assert main(["cooldown", "long", "--at", "4", "--steps", "2", "--name", "ordered"]) == DONE
    called = regpt.cooldown("long", "called", at=4, steps=2)
    assert called.path == Path("called") and called.history.status is RunState.FINISHED
    assert same_tensors(*(RunPaths(path).checkpoint(6) for path in (Path("called"), place / "runs" / "ordered")))
    by_default = regpt.cooldown(regpt.open_run("long"), at=6, steps=1)
    assert by_default.id == "long-cooldown-6" and by_default.history.step == 7
    with pytest.raises(regpt.UserError, match="step 5"):
        regpt.cooldown("long", at=5)


def test_branched_run_is_not_disturbed(folder: Path) -> None:
    history = read_history(folder / "runs" / "long")
    assert history.status is RunState.FINISHED and [step.step for step in history.steps] == list(range(1, 9))
    assert history.attempts == 1 and not history.details(Branched)


def test_branch_records_its_source_and_the_digest_of_the_checkpoint(folder: Path) -> None:
    (event,) = [e for e in read_history(folder / "runs" / "branch").events if isinstance(e.detail, Branched)]
    manifest = RunPaths(folder / "runs" / "long").checkpoint(4) / "manifest.json"
    assert (event.step, event.detail) == (4, Branched(source="long", checkpoint=sha256_of_file(manifest)))
    assert "from the run long" in event_line(event) and "from long" in describe_event(event)
    resumed = read_history(folder / "runs" / "branch").details(Resumed)[0]
    assert resumed.changed == {"run.max_steps": [8, 7], "optimizer.cooldown_steps": [2, 3]}
    assert resumed.learning_rate_changed == []


def test_branch_is_reported_and_compared_without_a_moved_schedule(place: Path, undrawn_figures: None) -> None:
    assert main(["report", "branch"]) == DONE and main(["compare", "branch", "straight"]) == DONE
    assert "branched at step 4 from the run long" in (place / "runs" / "branch" / "report.md").read_text()
    found = {caveat.kind for caveat in find_caveats(load_models(["branch", "straight"], Path("runs")))}
    assert CaveatKind.MOVED_SCHEDULE not in found


def test_branch_killed_before_its_first_step_is_resumed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", killed)
    assert main(["cooldown", "long", "--at", "4", "--steps", "3", "--name", "again"]) != DONE
    monkeypatch.undo()
    resume(place / "runs" / "again")
    assert same_tensors(*(RunPaths(place / "runs" / name).checkpoint(7) for name in ("again", "straight")))


def test_branch_without_options_begins_at_the_newest_checkpoint(place: Path) -> None:
    for step in (7, 8):
        shutil.rmtree(RunPaths(place / "runs" / "long").checkpoint(step), ignore_errors=True)
    assert main(["cooldown", str(place / "runs" / "long")]) == DONE
    history = read_history(place / "runs" / "long-cooldown-6")
    assert [step.step for step in history.steps] == list(range(1, 9))
    long = read_history(place / "runs" / "long")
    assert [step.loss for step in history.steps] == [step.loss for step in long.steps]  # the same two steps


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["--at", "5"], CHECKPOINT, ["step 5", "2, 4, 6, 8"]),
        (["--at", "8"], USAGE, ["step 8", "after step 6", "--at 2, 4, 6"]),
        ([], USAGE, ["step 8", "after step 6", "--at 2, 4, 6"]),
        (["--at", "4", "--name", "straight"], USAGE, ["straight", "exists already", "--name"]),
        (["--at", "4", "--name", "a/b"], USAGE, ["'a/b'"]),
        (["--at", "4", "run.max_steps=9"], USAGE, ["run.max_steps=9", "--steps"]),
        (["--at", "4", "run.seed=5"], CHECKPOINT, ["run.seed was 1337, is 5"]),
        (["--at", "4", "optimizer.cooldown_shape=cubic"], USAGE, ["'cubic'", "1-sqrt"]),
    ],
)
def test_impossible_branch_is_refused_and_nothing_is_written(
    place: Path, words: list[str], code: int, named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    assert main(["cooldown", "long", *words]) == code
    error = capsys.readouterr().err
    assert all(name in error for name in named) and len(error.strip().splitlines()) == 1, error
    assert sorted(place.rglob("*")) == before


def test_cosine_run_and_damaged_checkpoint_are_not_branched(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = RunPaths(place / "runs" / "long").checkpoint(4) / "state.json"
    damaged.write_text(damaged.read_text() + " ")
    assert main(["cooldown", "long", "--at", "4"]) == CHECKPOINT
    assert "state.json" in capsys.readouterr().err and not (place / "runs" / "long-cooldown-4").exists()
    recipe = place / "runs" / "straight" / "recipe.toml"
    text = recipe.read_text().replace('"trapezoid"', '"cosine"').replace("cooldown_steps = 3", "cooldown_steps = 0")
    recipe.write_text(text)
    assert main(["cooldown", "straight", "--at", "4"]) == USAGE
    assert "'cosine'" in capsys.readouterr().err


def test_journal_of_a_branch_ends_where_its_checkpoint_was_written(tmp_path: Path) -> None:
    """Steps that a resume undid, and a rollback to the checkpoint, are not its history."""

    def step(number: int, loss: float) -> StepRecord:
        values = {"tokens": 128 * number, "gradient_norm": 1.0, "learning_rate": 0.1, "seconds": 1.0, "batch": ""}
        return StepRecord(step=number, loss=loss, **values)  # type: ignore[arg-type]

    saved = CheckpointRecord(step=2, path="checkpoints/step_000002", bytes=1, seconds=1.0)
    failed = EventRecord(step=1, detail=CheckpointFailed(problem="full"))
    records = [
        *(EventRecord(step=0, detail=Started()), step(1, 9.0), step(2, 8.5), step(3, 8.0)),
        *(EventRecord(step=1, detail=Resumed()), failed, step(2, 8.0), step(3, 7.0), saved, step(4, 6.0)),
        *(EventRecord(step=2, detail=Rollback(excluded_batches=[3])), step(3, 7.5)),
        *(
            EventRecord(step=2, detail=Resumed()),
            ValidationRecord(step=2, tokens=256, loss=8.0, windows=8, seconds=1.0),
        ),
    ]
    text = "".join(json.dumps(to_json(record)) + "\n" for record in records)
    RunPaths(tmp_path).journal.write_text(text + '{"kind": "st', encoding="utf-8")
    expected = [records[0], records[1], records[4], failed, step(2, 8.0), saved]
    assert [parse(line) for line in lines_before_checkpoint(tmp_path, 2)] == expected
    killed = text[: text.index(json.dumps(to_json(saved)))]  # after the checkpoint was written
    RunPaths(tmp_path).journal.write_text(killed, encoding="utf-8")
    assert [parse(line) for line in lines_before_checkpoint(tmp_path, 2)] == expected[:-1]


@pytest.mark.slow
def test_branch_with_every_switch_of_the_schedule_equals_a_run_from_the_start(tmp_path: Path, texts: Path) -> None:
    """Muon with a cooldown of Adam's own, an average of the weights and a ramp of the batch."""
    shape = {"schedule": "trapezoid", "max_lr": 1e-2, "warmup_steps": 1, "kind": "muon", "average_steps": 3}

    def recipe(steps: int, **cooldown: int) -> Recipe:
        return tiny_recipe(
            tmp_path,
            run={"max_steps": steps},
            data={"batch_ramp": "64 until 200"},
            optimizer=shape | cooldown,
            checkpoint={"every": 2},
            evaluation={"sample_count": 0, "validation_every": 2},
        )

    train(recipe(8, cooldown_steps=2, adam_cooldown_steps=1), tmp_path / "long")
    start_cooldown(tmp_path / "long", tmp_path / "branch", at=4, steps=4)
    train(recipe(8, cooldown_steps=4, adam_cooldown_steps=2), tmp_path / "straight")
    assert same_tensors(*(RunPaths(tmp_path / name).checkpoint(8) for name in ("branch", "straight")))
    looks = [
        [(v.loss, v.averaged_loss) for v in read_history(tmp_path / n).validations] for n in ("branch", "straight")
    ]
    assert looks[0] == looks[1] and looks[0][-1][1] is not None
