"""Several ranks train one run: the same batches, losses and files for any number of ranks, with DDP and FSDP."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from regpt.base.errors import DONE
from regpt.checkpoint import store
from regpt.distributed.rank_group import RankGroup
from regpt.distributed.rendezvous import open_rank_group
from regpt.distributed.signals import GracefulStop
from regpt.evaluation.scoring import PackedQuestions, choice_losses, choice_losses_and_greedy
from regpt.machine.device import open_device
from regpt.parallel.making import make_parallel
from regpt.recipe.settings import load_recipe
from regpt.tasks.packing import tokenize_together
from regpt.tracking.events import Started
from regpt.tracking.journal import History, RunState, read_history
from regpt.tracking.layout import RunPaths
from tests.helpers.parallel_runs import MODES, STEPS, Workspace, batches, evaluations, losses, same_tensors
from tests.helpers.ranks import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun")]


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
def test_training_on_ranks_gives_the_same_batches_and_curve(
    workspace: Workspace, one_rank: History, ranks: int, settings: list[str]
) -> None:
    name = f"on-{ranks}-{'-'.join(settings)}"
    history = workspace.train(ranks, name, settings)
    assert batches(history) == batches(one_rank)
    assert losses(history) == pytest.approx(losses(one_rank), rel=1e-6)
    assert [s.gradient_norm for s in history.steps] == pytest.approx(
        [s.gradient_norm for s in one_rank.steps], rel=1e-5
    )
    validations, samples = evaluations(history)
    assert validations == pytest.approx(evaluations(one_rank)[0], rel=1e-6) and samples == evaluations(one_rank)[1]
    assert json.loads((workspace.path(name) / "environment.json").read_text())["ranks"] == ranks


@pytest.mark.slow
def test_fsdp_in_bfloat16_computes_the_losses_of_ddp(workspace: Workspace) -> None:
    settings = ["run.precision=bfloat16", "run.max_steps=8"]
    whole, sharded = (workspace.train(2, f"bfloat16-{mode}", [*settings, *MODES[mode]]) for mode in ("ddp", "fsdp"))
    assert losses(sharded) == pytest.approx(losses(whole), rel=1e-6)
    assert evaluations(sharded)[0] == pytest.approx(evaluations(whole)[0], rel=1e-6)


@pytest.mark.slow
def test_strict_sums_are_bit_identical_on_1_2_and_4_ranks(workspace: Workspace) -> None:
    settings = ["run.strict_sum=true", "model.dropout=0.1"]
    histories = {ranks: workspace.train(ranks, f"strict-{ranks}", settings) for ranks in (1, 2, 4)}
    assert losses(histories[1]) == losses(histories[2]) == losses(histories[4])
    assert evaluations(histories[1]) == evaluations(histories[2]) == evaluations(histories[4])
    last = [RunPaths(workspace.path(f"strict-{ranks}")).checkpoint(STEPS) for ranks in (1, 2, 4)]
    assert same_tensors(last[0], last[1]) and same_tensors(last[0], last[2])


@pytest.mark.slow
def test_validation_does_not_depend_on_the_number_of_ranks(workspace: Workspace, one_rank: History) -> None:
    """Nine windows on four ranks: the initial weights are equal, so the first loss is equal to the bit."""
    history = workspace.train(4, "validated", ["run.max_steps=1"])
    assert history.validations[0].loss == one_rank.validations[0].loss


def stop_before(check_number: int, target_rank: int, rank: int) -> None:
    """Send SIGTERM to one of the ranks, before it checks for signals for the `check_number`-th time."""
    real, checks = GracefulStop.stop_reason, 0

    def stop_reason(self: GracefulStop) -> str:
        nonlocal checks
        checks += 1
        if rank == target_rank and checks == check_number:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        return real(self)

    GracefulStop.stop_reason = stop_reason  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "parallel"), [("strict", ["ddp", "ddp", "ddp"]), ("ddp", ["fsdp", "ddp", "fsdp"]), ("ddp", ["ddp"] * 3)]
)
def test_run_moved_between_numbers_of_ranks_keeps_its_curve(
    workspace: Workspace, one_rank: History, mode: str, parallel: list[str]
) -> None:
    name = f"moved-{mode}-{parallel[0]}"
    settings = [[*MODES[mode], f"run.parallel={one}"] for one in parallel]
    ended = workspace.run("train", 2, name, settings[0], partial(stop_before, 28, 1))
    assert [outcome.code for outcome in ended] == [143, 143], ended
    first = read_history(workspace.path(name)).step
    ended = workspace.run("resume", 1, name, settings[1], partial(stop_before, 13, 0))
    assert [outcome.code for outcome in ended] == [143], ended
    second = read_history(workspace.path(name)).step
    assert 0 < first < second < STEPS
    ended = workspace.run("resume", 4, name, settings[2])
    assert [outcome.code for outcome in ended] == [0] * 4, ended
    history = read_history(workspace.path(name))
    assert [step.step for step in history.steps] == list(range(1, STEPS + 1))
    assert batches(history) == batches(one_rank)
    assert [start.ranks for start in history.details(Started)] == [2, 1, 4]
    if mode == "strict":
        assert losses(history) == losses(one_rank) and evaluations(history) == evaluations(one_rank)
        assert same_tensors(*(RunPaths(workspace.path(run)).checkpoint(STEPS) for run in (name, "alone")))
    else:
        assert losses(history) == pytest.approx(losses(one_rank), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_signal_to_one_rank_saves_the_same_step_on_all_ranks(workspace: Workspace, mode: str) -> None:
    for target_rank, check_number in ((0, 3), (1, 28)):  # in the first validation, in a step
        name = f"signalled-{mode}-{target_rank}"
        ended = workspace.run("train", 2, name, MODES[mode], partial(stop_before, check_number, target_rank))
        assert [outcome.code for outcome in ended] == [143, 143], ended
        assert store.newest_valid(workspace.path(name)).name == f"step_{read_history(workspace.path(name)).step:06d}"
        assert ended[1].output.count("regpt resume") == 0 and ended[0].output.count("regpt resume") == 1


@pytest.mark.slow
def test_preparation_runs_on_rank_0_while_the_others_wait(workspace: Workspace, tmp_path: Path) -> None:
    settings = [f"data.path={tmp_path / 'made'}", "run.max_steps=1"]
    history = workspace.train(2, "prepares", settings)
    assert history.status is RunState.FINISHED and (tmp_path / "made" / "manifest.json").exists()


@pytest.mark.slow
def test_step_of_two_ranks_is_replayed_and_reproduced(workspace: Workspace) -> None:
    workspace.train(2, "again", ["run.max_steps=3"])
    (outcome,) = workspace.run("replay", 1, "again", ["--step", "2"])
    assert outcome.code == 0 and "digest" in outcome.output
    ended = workspace.run("reproduce", 2, "again", ["--steps", "3"])
    assert [outcome.code for outcome in ended] == [0, 0], ended
    assert "identical to the bit" in ended[0].output and not ended[1].output


QUESTIONS = [
    ("def main(", [") -> None:", "self, path: Path) -> int:", "):"]),
    ("import os\nimport", [" sys", " argparse as parser"]),
    ("for number in range(10):\n    print(", ["number)", "'a')", "n)"]),
]


def scores(recipe_path: Path, ranks: RankGroup) -> NDArray[np.float64]:
    """Return the losses of the choices, alone and with the greedy misses, under new weights. (3, questions, choices)"""
    recipe = load_recipe(recipe_path, ["run.parallel=fsdp"])
    device = open_device(recipe.run)
    parallel = make_parallel(recipe, device, ranks)
    parallel.initialize(seed=1)
    asked = PackedQuestions(
        [tokenize_together([context] * len(choices), choices) for context, choices in QUESTIONS], 32, 64
    )
    with parallel.eval_mode() as model:
        losses = choice_losses(model, asked, device, ranks=ranks)
    with parallel.eval_mode() as model:  # again, because each method must gather the weights by itself
        both = choice_losses_and_greedy(model, asked, device, ranks=ranks)
    return np.stack([losses, *both])


def score_and_exit(recipe_path: Path, rank: int) -> None:
    """Write the scores of this rank to a file."""
    with open_rank_group(open_device(load_recipe(recipe_path).run), timeout=30) as ranks:
        np.save(recipe_path.with_name(f"scores-{rank}.npy"), scores(recipe_path, ranks))
    sys.exit(DONE)


def test_fsdp_on_two_ranks_scores_choices_like_one_rank(workspace: Workspace) -> None:
    recipe_path = workspace.folder / "tiny.toml"
    ended = run_ranks(2, [], workspace.folder / "output", partial(score_and_exit, recipe_path))
    assert [outcome.code for outcome in ended] == [DONE, DONE], ended
    expected = scores(recipe_path, RankGroup())
    assert expected[1].max() > 10.0 and expected[2].max() > 1.0
    for rank in range(2):
        np.testing.assert_allclose(np.load(workspace.folder / f"scores-{rank}.npy"), expected, rtol=1e-6)


@pytest.mark.slow
def test_ramp_of_the_batch_in_strict_sums_is_bit_identical_on_1_and_2_ranks(workspace: Workspace) -> None:
    settings = ["run.strict_sum=true", "data.batch_ramp=64 until 200", "run.max_steps=6"]
    one, two = (workspace.train(ranks, f"ramp-{ranks}", settings) for ranks in (1, 2))
    assert [step.tokens for step in two.steps] == [64, 128, 192, 256, 384, 512]
    assert losses(one) == losses(two) and batches(one) == batches(two)
    assert same_tensors(*(RunPaths(workspace.path(f"ramp-{ranks}")).checkpoint(6) for ranks in (1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_averaged_weights_are_those_of_one_rank(workspace: Workspace, mode: str) -> None:
    settings = ["optimizer.average_steps=3", "run.max_steps=6", "evaluation.validation_every=2", *MODES[mode]]
    one, two = (workspace.train(ranks, f"average-{mode}-{ranks}", settings) for ranks in (1, 2))
    ours, theirs = ([v.averaged_loss for v in history.validations[1:]] for history in (one, two))
    if mode == "strict":
        assert ours == theirs
        assert same_tensors(*(RunPaths(workspace.path(f"average-strict-{n}")).checkpoint(6) for n in (1, 2)))
    assert theirs == pytest.approx(ours, rel=1e-6)
    workspace.run("resume", 1, f"average-{mode}-2", ["run.max_steps=7"])
    workspace.run("resume", 1, f"average-{mode}-1", ["run.max_steps=7"])
    ended = [read_history(workspace.path(f"average-{mode}-{n}")).validations[-1] for n in (1, 2)]
    assert ended[1].averaged_loss == pytest.approx(ended[0].averaged_loss, rel=1e-6) and ended[0].step == 7


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["strict", "fsdp"])
def test_branch_on_two_ranks_equals_a_run_that_cooled_down_there(workspace: Workspace, mode: str) -> None:
    steady = ["optimizer.schedule=trapezoid", "optimizer.warmup_steps=1", *MODES[mode]]
    workspace.train(2, f"steady-{mode}", ["run.max_steps=10", *steady])
    words = ["cooldown", f"steady-{mode}", "--runs", str(workspace.folder / "runs"), "--at", "5", "--steps", "3"]
    ended = run_ranks(2, words, workspace.folder / "output")
    assert [outcome.code for outcome in ended] == [DONE, DONE], ended
    straight = workspace.train(2, f"cooled-{mode}", ["run.max_steps=8", "optimizer.cooldown_steps=3", *steady])
    branch = read_history(workspace.path(f"steady-{mode}-cooldown-5"))
    assert losses(branch) == losses(straight) and batches(branch) == batches(straight)
