"""Several ranks are one run: the same batches, curve, decisions and files, whatever their number and the mode."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from regpt.base.errors import CheckpointError
from regpt.base.settings import load_recipe, to_toml
from regpt.checkpoint import store
from regpt.data.batches import Batch
from regpt.distributed.signals import GracefulStop
from regpt.interop.open_model import load_model
from regpt.model.gpt import GPT
from regpt.preparation.dataset import prepare
from regpt.tracking.events import Event, Started
from regpt.tracking.journal import History, RunState, SkippedRecord, StepRecord, read_history
from regpt.tracking.layout import RunPaths
from regpt.training import trainer
from regpt.training.parallel import Parallel
from tests.conftest import tiny_recipe, wait_until
from tests.helpers.ranks import Outcome, run_ranks, start_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun")]
STEPS = 20
MODES = {"ddp": [], "strict": ["run.strict_sum=true"], "fsdp": ["run.parallel=fsdp"]}


class Place:
    """A folder with a recipe and prepared data, in which commands are run on several ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name

    def words(self, command: str, name: str, settings: Sequence[str] = ()) -> list[str]:
        where = ["--runs", str(self.folder / "runs")]
        if command == "train":
            return ["train", str(self.folder / "tiny.toml"), *where, "--name", name, *settings]
        return [command, name, *where, *settings]

    def carry_out(
        self,
        command: str,
        ranks: int,
        name: str,
        settings: Sequence[str] = (),
        plant: Callable[[int], None] | None = None,
    ) -> list[Outcome]:
        return run_ranks(ranks, self.words(command, name, settings), self.folder / "output", plant)

    def train(self, ranks: int, name: str, settings: Sequence[str] = ()) -> History:
        ended = self.carry_out("train", ranks, name, settings)
        assert [outcome.code for outcome in ended] == [0] * ranks, ended
        return read_history(self.path(name))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Place:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.py").write_text(real_text, encoding="utf-8")
    recipe = tiny_recipe(
        folder,
        run={"max_steps": STEPS, "rank_timeout": 60},
        data={"micro_batch": 1, "total_batch_tokens": 128},
        checkpoint={"every": 5},
        evaluation={"validation_every": 5, "validation_batches": 3, "validation_batch_size": 3, "sample_every": 10},
    )
    (folder / "tiny.toml").write_text(to_toml(recipe), encoding="utf-8")
    prepare(recipe)
    return Place(folder)


@pytest.fixture(scope="module")
def alone(place: Place) -> History:
    return place.train(1, "alone")


def losses(history: History) -> list[float]:
    return [step.loss for step in history.steps]


def batches(history: History) -> list[str]:
    return [step.batch for step in history.steps]


def looks(history: History) -> tuple[list[float], list[list[str]]]:
    return [v.loss for v in history.validations], [sample.texts for sample in history.samples]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint of one part."""
    found = {}
    for kind in ("model", "optimizer"):
        with safe_open(path / f"{kind}.safetensors", "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def same_tensors(one: Path, other: Path) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# The same run


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (2, []),
        pytest.param(4, [], marks=pytest.mark.slow),
        pytest.param(1, ["data.micro_batch=2"], marks=pytest.mark.slow),
        (2, ["data.micro_batch=2"]),
        (2, ["run.parallel=fsdp"]),
        pytest.param(4, ["run.parallel=fsdp"], marks=pytest.mark.slow),
        (2, ["run.parallel=fsdp", "run.gradients_reduced=micro-batch", "run.activation_checkpointing=true"]),
    ],
)
def test_the_same_batches_and_the_same_curve(place: Place, alone: History, ranks: int, settings: list[str]) -> None:
    name = f"on-{ranks}-{'-'.join(settings)}"
    history = place.train(ranks, name, settings)
    assert batches(history) == batches(alone)
    assert losses(history) == pytest.approx(losses(alone), rel=1e-6)
    assert [s.gradient_norm for s in history.steps] == pytest.approx([s.gradient_norm for s in alone.steps], rel=1e-5)
    validations, samples = looks(history)
    assert validations == pytest.approx(looks(alone)[0], rel=1e-6) and samples == looks(alone)[1]
    assert json.loads((place.path(name) / "environment.json").read_text())["ranks"] == ranks


@pytest.mark.slow
def test_a_sharded_model_in_bfloat16_computes_what_a_whole_one_does(place: Place) -> None:
    settings = ["run.precision=bfloat16", "run.max_steps=8"]
    whole, sharded = (place.train(2, f"bfloat16-{mode}", [*settings, *MODES[mode]]) for mode in ("ddp", "fsdp"))
    assert losses(sharded) == pytest.approx(losses(whole), rel=1e-6)
    assert looks(sharded)[0] == pytest.approx(looks(whole)[0], rel=1e-6)


@pytest.mark.slow
def test_strict_sums_are_equal_to_the_bit_on_any_number_of_ranks(place: Place) -> None:
    settings = ["run.strict_sum=true", "model.dropout=0.1"]
    histories = {ranks: place.train(ranks, f"strict-{ranks}", settings) for ranks in (1, 2, 4)}
    assert losses(histories[1]) == losses(histories[2]) == losses(histories[4])
    assert looks(histories[1]) == looks(histories[2]) == looks(histories[4])
    last = [RunPaths(place.path(f"strict-{ranks}")).checkpoint(STEPS) for ranks in (1, 2, 4)]
    assert same_tensors(last[0], last[1]) and same_tensors(last[0], last[2])


@pytest.mark.slow
def test_what_is_validated_does_not_depend_on_the_ranks(place: Place, alone: History) -> None:
    """Nine windows on four ranks: the weights are drawn, so the first validation is the same to the bit."""
    history = place.train(4, "validated", ["run.max_steps=1"])
    assert history.validations[0].loss == alone.validations[0].loss


# Stopped, and on other ranks


def stopped_before(look: int, of_rank: int, rank: int) -> None:
    """SIGTERM to one of the ranks, before its so-many-th look at the signals."""
    real, looked = GracefulStop.stop_reason, 0

    def wanted(self: GracefulStop) -> str:
        nonlocal looked
        looked += 1
        if rank == of_rank and looked == look:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        return real(self)

    GracefulStop.stop_reason = wanted  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "parallel"), [("strict", ["ddp", "ddp", "ddp"]), ("ddp", ["fsdp", "ddp", "fsdp"]), ("ddp", ["ddp"] * 3)]
)
def test_two_ranks_then_one_then_four_give_the_curve_of_an_uninterrupted_run(
    place: Place, alone: History, mode: str, parallel: list[str]
) -> None:
    name = f"moved-{mode}-{parallel[0]}"
    settings = [[*MODES[mode], f"run.parallel={one}"] for one in parallel]
    ended = place.carry_out("train", 2, name, settings[0], partial(stopped_before, 45, 1))
    assert [outcome.code for outcome in ended] == [143, 143], ended
    first = read_history(place.path(name)).step
    ended = place.carry_out("resume", 1, name, settings[1], partial(stopped_before, 30, 0))
    assert [outcome.code for outcome in ended] == [143], ended
    second = read_history(place.path(name)).step
    assert 0 < first < second < STEPS
    ended = place.carry_out("resume", 4, name, settings[2])
    assert [outcome.code for outcome in ended] == [0] * 4, ended
    history = read_history(place.path(name))
    assert [step.step for step in history.steps] == list(range(1, STEPS + 1))
    assert batches(history) == batches(alone)
    assert [start.ranks for start in history.details(Started)] == [2, 1, 4]
    if mode == "strict":
        assert losses(history) == losses(alone) and looks(history) == looks(alone)
        assert same_tensors(*(RunPaths(place.path(run)).checkpoint(STEPS) for run in (name, "alone")))
    else:
        assert losses(history) == pytest.approx(losses(alone), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_a_signal_to_one_rank_saves_the_same_step_on_all(place: Place, mode: str) -> None:
    for of_rank, look in ((0, 3), (1, 31)):  # in the first validation, in a step
        name = f"signalled-{mode}-{of_rank}"
        ended = place.carry_out("train", 2, name, MODES[mode], partial(stopped_before, look, of_rank))
        assert [outcome.code for outcome in ended] == [143, 143], ended
        assert store.newest_valid(place.path(name)).name == f"step_{read_history(place.path(name)).step:06d}"
        assert ended[1].output.count("regpt resume") == 0 and ended[0].output.count("regpt resume") == 1


# Sharded checkpoints


@pytest.mark.slow
def test_a_sharded_checkpoint_is_a_part_a_rank_and_opens_as_a_whole_one(place: Place, alone: History) -> None:
    place.train(4, "parts", MODES["fsdp"])
    path = store.newest_valid(place.path("parts"))
    names = {file.name for file in path.iterdir()}
    assert {f"model-{part:05d}-of-00004.safetensors" for part in range(1, 5)} < names and len(names) == 10
    sizes = [(path / f"model-{part:05d}-of-00004.safetensors").stat().st_size for part in range(1, 5)]
    whole_size = (RunPaths(place.path("alone")).checkpoint(STEPS) / "model.safetensors").stat().st_size
    assert max(sizes) < 0.3 * whole_size
    ours, theirs = load_model(place.path("parts")), load_model(place.path("alone"))
    assert all(
        torch.allclose(one, other, atol=2e-5) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    for command in (["sample", "--prompt", "def f(", "--tokens", "4"], ["report"], ["checkpoints"]):
        words = [command[0], "parts", "--runs", str(place.folder / "runs"), *command[1:]]
        (outcome,) = run_ranks(1, words, place.folder / "output")
        assert outcome.code == 0, outcome.output
    (outcome,) = run_ranks(
        1, ["export", "parts", str(place.folder / "hf"), "--runs", str(place.folder / "runs")], place.folder / "output"
    )
    assert outcome.code == 0 and (place.folder / "hf" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "missing", "another part's"])
def test_damage_to_one_part_is_found(place: Place, damage: str) -> None:
    if not place.path("whole-parts").exists():
        place.train(2, "whole-parts", [*MODES["fsdp"], "run.max_steps=10"])
    where = place.path("damaged-parts")
    shutil.rmtree(where, ignore_errors=True)
    shutil.copytree(place.path("whole-parts"), where)
    part = RunPaths(where).checkpoint(10) / "optimizer-00002-of-00002.safetensors"
    if damage == "flipped":
        content = bytearray(part.read_bytes())
        content[-100] ^= 1
        part.write_bytes(content)
    elif damage == "missing":
        part.unlink()
    else:
        shutil.copy(part.with_name("optimizer-00001-of-00002.safetensors"), part)
    ended = place.carry_out("resume", 2, "damaged-parts", [*MODES["fsdp"], "run.max_steps=12"])
    assert [outcome.code for outcome in ended] == [0, 0], ended
    note = " ".join(ended[0].output.split())
    assert part.name in note and "step_000005" in note
    assert read_history(where).step == 12


def test_a_part_that_lacks_rows_is_refused(place: Place) -> None:
    """Hashes that fit and rows that do not: a manifest by another hand."""
    if not place.path("whole-parts").exists():
        place.train(2, "whole-parts", [*MODES["fsdp"], "run.max_steps=10"])
    path = RunPaths(place.path("whole-parts")).checkpoint(10)
    names = [path / f"model-0000{part}-of-00002.safetensors" for part in (1, 1)]
    saved = store.SavedTensors(names)
    name = "token_embedding.weight"
    assert saved.shapes[name] == (50_304, 16)
    with pytest.raises(CheckpointError, match=r"lacks rows 25,152 to 50,304 of token_embedding\.weight"):
        saved.rows(name, 0, 50_304)


def no_room(of_rank: int, steps: tuple[int, ...], rank: int) -> None:
    """Writing fails on one of the ranks, for these steps."""
    real = store.write_tensors

    def write_tensors(path: Path, *what: Any) -> Any:
        if rank == of_rank and any(f"step_{step:06d}" in str(path) for step in steps):
            raise OSError(28, "No space left on device")
        return real(path, *what)

    store.write_tensors = write_tensors  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_part_that_cannot_be_written_is_no_checkpoint_and_all_ranks_know(place: Place) -> None:
    ended = place.carry_out("train", 2, "full", MODES["fsdp"], partial(no_room, 1, (5, 20)))
    assert [outcome.code for outcome in ended] == [4, 4], ended
    assert [step for step, _ in store.list_checkpoints(place.path("full"))] == [10, 15]
    assert not list((place.path("full") / "checkpoints").glob(".*"))
    assert "step_000005: cannot be written" in " ".join(ended[0].output.split())
    assert (ended[0].output + ended[1].output).count("error: ") == 1


# What is refused


def test_ranks_that_do_not_divide_the_batch_are_refused_before_anything_is_made(place: Place) -> None:
    ended = place.carry_out("train", 3, "thirds")
    assert [outcome.code for outcome in ended] == [2, 2, 2], ended
    told = [outcome.output for outcome in ended if outcome.output.strip()]
    assert len(told) == 1 and "Traceback" not in told[0]
    assert "= 1 x 32 x 3 ranks = 96; try 1 or 2 or 4 ranks" in " ".join(told[0].split())
    assert not place.path("thirds").exists()


def test_a_misspelt_setting_is_told_once(place: Place) -> None:
    ended = place.carry_out("train", 2, "misspelt", ["train.parallel=fsdp"])
    assert [outcome.code for outcome in ended] == [2, 2]
    assert "did you mean 'run.parallel'?" in ended[0].output and not ended[1].output.strip()


def other_data(of_rank: int, folder: str, rank: int) -> None:
    """One of the ranks sees a dataset of other tokens."""
    if rank == of_rank:
        from regpt.training import start

        real = start.read_manifest
        start.read_manifest = lambda path: real(Path(folder))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_ranks_that_see_other_data_are_refused(place: Place, tmp_path: Path) -> None:
    recipe = load_recipe(place.folder / "tiny.toml", [f"data.path={tmp_path / 'other'}", "data.validation_tokens=3000"])
    prepare(recipe)
    ended = place.carry_out("train", 2, "apart", (), partial(other_data, 1, str(tmp_path / "other")))
    assert [outcome.code for outcome in ended] == [3, 3], ended
    assert (ended[0].output + ended[1].output).count("is not the same on all ranks") == 1
    assert not place.path("apart").exists()


def other_recipe(of_rank: int, rank: int) -> None:
    from regpt.training import start

    if rank == of_rank:
        real = start.recipe_digest
        start.recipe_digest = lambda recipe: real(recipe)[::-1]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_ranks_that_have_another_recipe_are_refused(place: Place) -> None:
    ended = place.carry_out("train", 2, "apart", (), partial(other_recipe, 1))
    assert [outcome.code for outcome in ended] == [2, 2], ended
    assert (ended[0].output + ended[1].output).count("is not the same on all ranks") == 1


def lost_before_a_checkpoint(rank: int) -> None:
    os.environ["TORCHELASTIC_MAX_RESTARTS"] = "1"


@pytest.mark.slow
def test_a_run_of_another_recipe_is_not_gone_on_with_where_torchrun_starts_anew(place: Place) -> None:
    place.train(1, "foreign", ["run.max_steps=2"])
    shutil.rmtree(place.path("foreign") / "checkpoints")
    before = (place.path("foreign") / "journal.jsonl").read_bytes()
    ended = place.carry_out("train", 2, "foreign", ["model.n_embd=32"], lost_before_a_checkpoint)
    assert [outcome.code for outcome in ended] == [4, 4], ended
    assert "model.n_embd was 16, is 32" in ended[0].output
    assert (place.path("foreign") / "journal.jsonl").read_bytes() == before
    ended = place.carry_out("train", 2, "foreign", (), lost_before_a_checkpoint)
    assert [outcome.code for outcome in ended] == [0, 0], ended
    history = read_history(place.path("foreign"))
    assert history.step == STEPS and load_recipe(place.path("foreign") / "recipe.toml").run.max_steps == STEPS


def cut_shard(of_rank: int, rank: int) -> None:
    """From the fourth batch on, one of the ranks cannot read."""
    from regpt.base.errors import DataError
    from regpt.data.shards import TokenWindows

    real, read = TokenWindows.rows, 0

    def rows(self: TokenWindows, wanted: Any) -> Any:
        nonlocal read
        read += 1
        if rank == of_rank and read > 8:
            raise DataError("train_000001.npy: was cut short", "get it again")
        return real(self, wanted)

    TokenWindows.rows = rows  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("of_rank", [0, 1])
def test_an_error_of_one_rank_is_told_once_and_ends_all_with_its_code(place: Place, of_rank: int) -> None:
    ended = place.carry_out("train", 2, f"cut-{of_rank}", (), partial(cut_shard, of_rank))
    assert [outcome.code for outcome in ended] == [3, 3], ended
    assert (ended[0].output + ended[1].output).count("error: ") == 1
    assert "train_000001.npy: was cut short" in ended[of_rank].output
    assert "Traceback" not in ended[0].output + ended[1].output


# Numbers that are none


def poisoned(of_rank: int, what: str, steps: tuple[int, ...], rank: int) -> None:
    """On one of the ranks the loss, or one gradient after it was reduced, is no number at these steps."""
    if rank != of_rank:
        return
    real_step, real_square = trainer.Trainer.train_step, Parallel.squared_norm

    def train_step(self: trainer.Trainer, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        bad = self.state.guard.batch_of(step) in steps
        forward = self.model.forward

        def squared_norm(parallel: Parallel) -> float:
            if bad and what == "gradient":
                parallel.gradients()[3].view(-1)[0] = float("nan")
            return real_square(parallel)

        Parallel.squared_norm = squared_norm  # type: ignore[method-assign]
        if bad and what == "loss":
            self.model.__dict__["forward"] = lambda *given: forward(*given) * float("inf")
        try:
            return real_step(self, step, batch)
        finally:
            self.model.__dict__.pop("forward", None)

    trainer.Trainer.train_step = train_step  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "mode"), [("loss", "ddp"), ("gradient", "ddp"), ("loss", "fsdp"), ("gradient", "fsdp")]
)
def test_numbers_that_are_none_on_one_rank_are_passed_over_by_all(place: Place, what: str, mode: str) -> None:
    name = f"poisoned-{what}-{mode}"
    ended = place.carry_out("train", 2, name, MODES[mode], partial(poisoned, 1, what, (4, 5)))
    assert [outcome.code for outcome in ended] == [0, 0], ended
    history = read_history(place.path(name))
    assert [record.step for record in history.skipped] == [5, 6]
    before, after = (history.validations[number].loss for number in (1, 2))
    assert [step.step for step in history.steps] == [*range(1, 5), *range(7, STEPS + 1)]
    assert np.isfinite(before) and np.isfinite(after)
    evidence = json.loads((place.path(name) / "evidence" / "step_000005" / "step.json").read_text())
    text = (place.path(name) / "evidence" / "step_000005" / "text.txt").read_text()
    assert all(f"=== window {window}\n" in text for window in evidence["windows"]) and len(evidence["windows"]) == 4


@pytest.mark.slow
def test_numbers_that_are_none_for_long_end_all_ranks_with_5_and_nothing_bad_is_saved(place: Place) -> None:
    ended = place.carry_out("train", 2, "hopeless", (), partial(poisoned, 1, "loss", tuple(range(8, 100))))
    assert [outcome.code for outcome in ended] == [5, 5], ended
    assert (ended[0].output + ended[1].output).count("error: ") == 1
    for _, path in store.list_checkpoints(place.path("hopeless")):
        model = GPT(load_recipe(place.folder / "tiny.toml").model)
        store.load_weights(path, model)
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


# Around the training


@pytest.mark.slow
def test_rank_0_prepares_and_the_others_wait(place: Place, tmp_path: Path) -> None:
    settings = [f"data.path={tmp_path / 'made'}", "run.max_steps=1"]
    history = place.train(2, "prepares", settings)
    assert history.status is RunState.FINISHED and (tmp_path / "made" / "manifest.json").exists()


@pytest.mark.slow
def test_a_step_of_two_ranks_can_be_replayed_and_reproduced(place: Place) -> None:
    place.train(2, "again", ["run.max_steps=3"])
    (outcome,) = place.carry_out("replay", 1, "again", ["--step", "2"])
    assert outcome.code == 0 and "digest" in outcome.output
    ended = place.carry_out("reproduce", 2, "again", ["--steps", "3"])
    assert [outcome.code for outcome in ended] == [0, 0], ended
    assert "identical to the bit" in ended[0].output and not ended[1].output


# Silence


def frozen_in_a_save(of_rank: int, rank: int) -> None:
    real = store.write_tensors

    def write_tensors(path: Path, *what: Any) -> Any:
        if rank == of_rank and "step_000005" in str(path):
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(path, *what)

    store.write_tensors = write_tensors  # type: ignore[attr-defined]


def frozen_in_a_step(of_rank: int, rank: int) -> None:
    real = trainer.Trainer.train_step

    def train_step(self: trainer.Trainer, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        if rank == of_rank and step == 6:
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(self, step, batch)

    trainer.Trainer.train_step = train_step  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_rank_that_freezes_while_all_wait_for_a_save_is_given_up(place: Place) -> None:
    """Nobody is in a collective then: the watching threads notice."""
    settings = [*MODES["fsdp"], "run.rank_timeout=3", "checkpoint.background=false"]
    folder = place.folder / "frozen"
    ranks = start_ranks(2, place.words("train", "frozen", settings), folder, partial(frozen_in_a_save, 1))
    ranks[0].join(40)
    ranks[1].kill()
    assert ranks[0].exitcode == 7, (folder / "rank0").read_text()
    told = (folder / "rank0").read_text()
    assert "rank 1 did not answer within 3 s" in told
    assert re.search(r"checkpointing\.py\", line \d+, in collect\b", told)


@pytest.mark.slow
def test_a_second_signal_ends_a_rank_that_waits_for_another(place: Place) -> None:
    folder = place.folder / "waiting"
    ranks = start_ranks(2, place.words("train", "waiting"), folder, partial(frozen_in_a_step, 1))
    wait_until(at_step(place, "waiting", 6), 60)
    time.sleep(0.5)
    for _ in range(2):
        assert ranks[0].pid is not None and ranks[0].is_alive()
        os.kill(ranks[0].pid, signal.SIGTERM)
        time.sleep(3.5)
    ranks[0].join(5)
    ranks[1].kill()
    assert ranks[0].exitcode == 143
    assert store.newest_valid(place.path("waiting")).name == "step_000005"


# Under torchrun itself


def torchrun(
    place: Place, name: str, settings: Sequence[str] = (), *, restarts: int = 0, module: Sequence[str] = ("regpt",)
) -> "subprocess.Popen[str]":
    words = ["--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}", "-m", *module]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *words, *place.words("train", name, settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ranks_of(agent: "subprocess.Popen[str]") -> list[int]:
    """The processes that torchrun has started, by rank."""
    import psutil

    def rank(process: psutil.Process) -> int:
        return int(process.environ().get("RANK", -1))

    children = psutil.Process(agent.pid).children()
    return [process.pid for process in sorted(children, key=rank) if rank(process) >= 0]


def at_step(place: Place, name: str, step: int) -> Callable[[], bool]:
    return lambda: read_history(place.path(name)).step >= step


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_on_all_ranks(place: Place) -> None:
    agent = torchrun(place, "terminated", ["run.max_steps=100000"])
    wait_until(at_step(place, "terminated", 5), 60)
    began_at = time.monotonic()
    agent.send_signal(signal.SIGTERM)
    agent.communicate(timeout=40)
    assert time.monotonic() - began_at < 30
    history = read_history(place.path("terminated"))
    assert history.status is RunState.STOPPED and store.newest_valid(place.path("terminated")).name.endswith(
        f"{history.step:06d}"
    )


@pytest.mark.slow
def test_a_run_that_is_stopped_stays_stopped_though_torchrun_starts_its_ranks_anew(place: Place) -> None:
    agent = torchrun(place, "stopped", ["run.max_steps=100000"], restarts=1)
    wait_until(at_step(place, "stopped", 5), 60)
    os.kill(ranks_of(agent)[1], signal.SIGTERM)
    output, _ = agent.communicate(timeout=60)
    assert agent.returncode != 0 and "the run ended with exit code 143" in output
    assert [event.event for event in read_history(place.path("stopped")).events] == [Event.STARTED, Event.STOPPED]


@pytest.mark.slow
@pytest.mark.parametrize("of_rank", [0, 1])
def test_a_rank_that_is_killed_is_started_again_and_the_run_comes_out_the_same(place: Place, of_rank: int) -> None:
    clean = place.train(2, f"clean-{of_rank}")
    agent = torchrun(place, f"killed-{of_rank}", restarts=1)
    wait_until(at_step(place, f"killed-{of_rank}", 7), 60)
    os.kill(ranks_of(agent)[of_rank], signal.SIGKILL)
    output, _ = agent.communicate(timeout=120)
    assert agent.returncode == 0, output
    history = read_history(place.path(f"killed-{of_rank}"))
    assert [event.event for event in history.events] == [Event.STARTED, Event.RESUMED, Event.FINISHED]
    assert losses(history) == losses(clean) and looks(history) == looks(clean)
    last = [RunPaths(place.path(f"{name}-{of_rank}")).checkpoint(STEPS) for name in ("clean", "killed")]
    assert same_tensors(*last)


@pytest.mark.slow
def test_an_error_that_is_nobodys_is_tried_again_where_torchrun_starts_ranks_anew(place: Place) -> None:
    agent = torchrun(place, "failing", restarts=1, module=("faults.rank", "fails in a step", "0"))
    output, _ = agent.communicate(timeout=120)
    assert agent.returncode == 0, output
    assert "a fault of our own" in output
    assert [event.event for event in read_history(place.path("failing")).events] == [
        Event.STARTED,
        Event.RESUMED,
        Event.FINISHED,
    ]


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up_with_a_stack(place: Place) -> None:
    agent = torchrun(place, "hangs", ["run.max_steps=100000", "run.rank_timeout=3"])
    wait_until(at_step(place, "hangs", 7), 60)
    stopped = ranks_of(agent)[1]
    os.kill(stopped, signal.SIGSTOP)
    time.sleep(5)
    os.kill(stopped, signal.SIGKILL)  # torchrun would do so after its own 30 s
    output, _ = agent.communicate(timeout=60)
    assert agent.returncode != 0
    assert "rank 0 of 2 waited here:" in output and "regpt/training/trainer.py" in output
    assert "another rank did not answer within 3 s" in output
    newest = store.newest_valid(place.path("hangs"))
    assert int(newest.name.removeprefix("step_")) >= 5
    assert not [p for p in (place.path("hangs") / "checkpoints").glob("*") if p.name.startswith(".")]
