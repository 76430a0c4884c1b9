"""Out of memory in the first steps: the micro-batch is halved, all ranks alike, and the run is the same run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regpt.base.errors import DONE, UserError
from regpt.machine.oom import is_out_of_memory, smaller_micro_batch
from regpt.model.gpt import GPT
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe, to_toml
from regpt.tracking.events import Event, OutOfMemory
from regpt.tracking.journal import RunState, read_history
from regpt.tracking.layout import RunPaths
from regpt.tracking.predictions import read_predictions
from regpt.training.reproduce import replay, reproduce
from regpt.training.start import resume, train
from tests.conftest import tiny_recipe
from tests.helpers.ranks import run_ranks


def room_for(monkeypatch: pytest.MonkeyPatch, sequences: int, from_pass: int = 1) -> None:
    """Let the device run out of memory with more than `sequences` at once, from training pass `from_pass` on."""
    forward, passes = GPT.forward, 0

    def limited(self: GPT, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes >= from_pass and len(tokens) > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total …")
        return forward(self, tokens, targets)

    monkeypatch.setattr(GPT, "forward", limited)


@pytest.fixture
def four(tmp_path: Path, texts: Path) -> Recipe:
    return tiny_recipe(tmp_path, data={"micro_batch": 4})


def run_of(recipe: Recipe, path: Path) -> tuple[list[float], list[str]]:
    """(losses, batch digests)"""
    assert train(recipe, path).history.status is RunState.FINISHED
    steps = read_history(path).steps
    return [step.loss for step in steps], [step.batch for step in steps]


def test_micro_batch_is_halved_until_it_fits(four: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, batches = run_of(four, tmp_path / "four")
    small, _ = run_of(tiny_recipe(tmp_path, data={"micro_batch": 1}), tmp_path / "one")
    room_for(monkeypatch, 1)
    halved, its_batches = run_of(four, tmp_path / "halved")
    assert halved == small and its_batches == batches
    halvings = [
        (e.micro_batch_before, e.micro_batch_after) for e in read_history(tmp_path / "halved").details(OutOfMemory)
    ]
    assert halvings == [(4, 2), (2, 1)]
    assert load_recipe(tmp_path / "halved" / "recipe.toml").data.micro_batch == 1


def test_evaluation_uses_the_smaller_micro_batch_after_memory_ran_out(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of validation and HellaSwag are to the bit those of a run that had the smaller one from the start."""
    rows: list[int] = []
    losses = GPT.losses

    def counted(self: GPT, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows.append(len(tokens))
        return losses(self, tokens, targets)

    evaluations = {"validation_every": 1, "hellaswag_every": 2, "hellaswag_items": 6}
    recipes = {size: tiny_recipe(tmp_path, data={"micro_batch": size}, evaluation=evaluations) for size in (1, 4)}
    train(recipes[1], tmp_path / "one")
    monkeypatch.setattr(GPT, "losses", counted)
    room_for(monkeypatch, 1)
    train(recipes[4], tmp_path / "halved")
    assert rows[0] == 4  # before the first step, and so before memory runs out
    assert set(rows[-8:]) == {1}
    one, halved = (read_history(tmp_path / name) for name in ("one", "halved"))
    assert [record.loss for record in halved.validations[1:]] == [record.loss for record in one.validations[1:]]
    for record in halved.tasks[1:]:
        mine, other = (read_predictions(tmp_path / name / record.path) for name in ("halved", "one"))
        assert (mine.losses == other.losses).all()


def test_steps_before_memory_ran_out_are_repeated(
    four: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, _ = run_of(tiny_recipe(tmp_path, data={"micro_batch": 2}), tmp_path / "two")
    room_for(monkeypatch, 2, from_pass=3)  # the third step: the moments are allocated too
    halved, _ = run_of(four, tmp_path / "halved")
    assert halved == small


def test_retry_in_a_resumed_run_begins_at_its_checkpoint(
    four: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_of(tiny_recipe(tmp_path, run={"max_steps": 3}, data={"micro_batch": 4}), tmp_path / "halved")
    run_of(tiny_recipe(tmp_path, run={"max_steps": 3}, data={"micro_batch": 4}), tmp_path / "small")
    assert resume(tmp_path / "small", ["run.max_steps=6", "data.micro_batch=2"]).history.status is RunState.FINISHED
    room_for(monkeypatch, 2)
    assert resume(tmp_path / "halved", ["run.max_steps=6"]).history.status is RunState.FINISHED
    one, other = (read_history(tmp_path / name).steps for name in ("small", "halved"))
    assert [step.loss for step in one] == [step.loss for step in other]
    assert [step.step for step in other] == [1, 2, 3, 4, 5, 6]


def test_checkpoints_of_an_abandoned_attempt_are_removed(
    four: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout the halved run's masks are others, so a checkpoint of before is another run's."""
    settings: dict[str, dict[str, object]] = {"model": {"dropout": 0.3}, "checkpoint": {"every": 1}}
    run_of(tiny_recipe(tmp_path, data={"micro_batch": 2}, **settings), tmp_path / "two")
    room_for(monkeypatch, 2, from_pass=3)
    run_of(tiny_recipe(tmp_path, data={"micro_batch": 4}, **settings), tmp_path / "halved")
    for step in range(1, 7):
        files = [RunPaths(tmp_path / name).checkpoint(step) / "model.safetensors" for name in ("two", "halved")]
        assert files[0].read_bytes() == files[1].read_bytes(), step


def test_excluded_batches_stay_excluded_after_a_retry(
    four: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, data={"micro_batch": 4}, guard={"max_skips": 1})
    forward, passes = GPT.forward, 0

    def poisoned(self: GPT, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes >= 5 and len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, tokens, targets) * (float("nan") if passes in (2, 3) else 1.0)

    monkeypatch.setattr(GPT, "forward", poisoned)
    assert train(recipe, tmp_path / "run").history.status is RunState.FINISHED
    history = read_history(tmp_path / "run")
    assert [event.event for event in history.events][:3] == [Event.STARTED, Event.ROLLBACK, Event.OUT_OF_MEMORY]
    monkeypatch.undo()
    for step in range(1, history.step + 1):  # raises where a step trained on another batch than it should
        assert list(replay(tmp_path / "run", step, False))


def test_reproduce_uses_the_micro_batch_before_a_retry(
    four: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_of(tiny_recipe(tmp_path, run={"max_steps": 3}, data={"micro_batch": 4}), tmp_path / "run")
    room_for(monkeypatch, 2)
    assert resume(tmp_path / "run", ["run.max_steps=6"]).history.status is RunState.FINISHED
    monkeypatch.undo()
    assert reproduce(tmp_path / "run", 3, lambda text: None) is None


def test_micro_batch_of_one_that_does_not_fit_is_an_error(
    four: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(monkeypatch, 0)
    with pytest.raises(UserError, match=r"data.micro_batch = 1 .*regpt plan.*run.activation_checkpointing=true"):
        train(four, tmp_path / "run")


def test_late_out_of_memory_is_an_error_and_keeps_checkpoints(
    four: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(monkeypatch, 2, from_pass=5)
    with pytest.raises(UserError, match=r"step 5: out of memory .*regpt resume .* data.micro_batch="):
        train(four, tmp_path / "run")
    monkeypatch.undo()
    assert resume(tmp_path / "run", ["data.micro_batch=2"]).history.status is RunState.FINISHED
    assert read_history(tmp_path / "run").status is RunState.FINISHED


@pytest.mark.parametrize(("step", "fix"), [(0, "delete that run"), (6, "regpt resume .* data.micro_batch=")])
def test_out_of_memory_in_an_evaluation_is_an_error_with_a_remedy(
    four: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, fix: str
) -> None:
    losses, passes = GPT.losses, 0

    def limited(self: GPT, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes > (0 if step == 0 else 4):  # two micro-batches a validation: after steps 0 and 3
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return losses(self, tokens, targets)

    monkeypatch.setattr(GPT, "losses", limited)
    with pytest.raises(UserError, match=rf"out of memory in validation.* at step {step} — .*{fix}"):
        train(four, tmp_path / "run")
    if step:
        monkeypatch.undo()
        assert resume(tmp_path / "run", ["data.micro_batch=2"]).history.status is RunState.FINISHED


def test_evaluation_that_runs_out_of_memory_is_repeated_in_smaller_groups(
    four: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses are those of a run with room; training keeps its micro-batch."""
    train(four, tmp_path / "room")
    losses, sizes = GPT.losses, []

    def limited(self: GPT, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return losses(self, tokens, targets)

    monkeypatch.setattr(GPT, "losses", limited)
    train(four, tmp_path / "run")
    assert sizes[:2] == [4, 2] and set(sizes[2:]) == {1}
    ours, theirs = (read_history(tmp_path / name) for name in ("run", "room"))
    assert [one.loss for one in ours.validations] == pytest.approx([one.loss for one in theirs.validations], rel=1e-6)
    assert [step.loss for step in ours.steps] == [step.loss for step in theirs.steps]


def test_other_errors_are_not_taken_for_out_of_memory(
    four: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(GPT, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        train(four, tmp_path / "run")


def second_has_less(rank: int) -> None:
    if rank == 1:
        room_for(pytest.MonkeyPatch(), 1)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_halve_together_when_one_runs_out_of_memory(tmp_path: Path, texts: Path, parallel: str) -> None:
    recipe = tiny_recipe(tmp_path, run={"parallel": parallel, "rank_timeout": 20}, data={"micro_batch": 2})
    file = tmp_path / "tiny.toml"
    file.write_text(to_toml(recipe))
    root = str(tmp_path / "runs")
    small = ["train", str(file), "--runs", root, "--name", "one", "data.micro_batch=1"]
    assert [end.code for end in run_ranks(2, small, tmp_path / "a")] == [DONE, DONE]
    words = ["train", str(file), "--runs", root, "--name", "halved"]
    plant = second_has_less if parallel == "ddp" else both_have_less
    ends = run_ranks(2, words, tmp_path / "b", plant)
    assert [end.code for end in ends] == [DONE, DONE], ends
    one, halved = (read_history(tmp_path / "runs" / name) for name in ("one", "halved"))
    assert [step.loss for step in halved.steps] == [step.loss for step in one.steps]
    assert [(e.micro_batch_before, e.micro_batch_after) for e in halved.details(OutOfMemory)] == [(2, 1)]


def both_have_less(rank: int) -> None:
    """A sharded model gathers its weights from everybody, and its ranks need the same memory."""
    room_for(pytest.MonkeyPatch(), 1)


LIMITED = """
import resource, sys, torch
from regpt.machine.oom import is_out_of_memory
torch.zeros(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
try:
    torch.zeros(2**30)
except RuntimeError as error:
    print(is_out_of_memory(error), str(error)[:80])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a limit on address space")
def test_out_of_memory_message_of_a_cpu_is_recognized() -> None:
    shown = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("True"), shown


def test_out_of_memory_messages_of_mps_and_cuda_are_recognized() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 17.66 GB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_smaller_micro_batch_divides_the_share_of_each_rank() -> None:
    recipe = load_recipe("gpt2-modern")
    assert smaller_micro_batch(recipe, 1) == 16 and smaller_micro_batch(recipe, 8) == 16
    odd = load_recipe("gpt2-modern", ["data.micro_batch=12", f"data.total_batch_tokens={12 * 7 * 1024}"])
    assert smaller_micro_batch(odd, 1) == 6
    assert smaller_micro_batch(odd, 3) == 4  # 28 windows a rank
