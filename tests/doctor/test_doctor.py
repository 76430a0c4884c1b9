"""`regpt doctor` passes on a healthy recipe, and each check fails when a fault is injected for it."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console as Terminal

from regpt.base.errors import CHECKPOINT, DATA, DONE, INTERRUPTED, NUMERICS, RANKS, TERMINATED, USAGE
from regpt.checkpoint import store
from regpt.cli.main import main
from regpt.distributed.signals import StopRequested
from regpt.doctor import artifacts
from regpt.doctor import runner as doctor_module
from regpt.doctor.checks import CheckResult, Status
from regpt.doctor.rehearsal import Rehearsal
from regpt.doctor.resources import expected_seconds
from regpt.doctor.runner import CHECKS, doctor, run_checks
from regpt.interop import open_model
from regpt.model.gpt import GPT
from regpt.optimizer.adam import AdamW
from regpt.parallel import model as parallel_model
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import to_toml
from regpt.reporting import page
from tests.conftest import tiny_recipe, wait_until
from tests.helpers import strange_disks
from tests.helpers.forked import fork_command

Inject = Callable[[pytest.MonkeyPatch, Rehearsal], None]


OVERRIDES: dict[str, object] = {"max_lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 1}


@pytest.fixture
def healthy_rehearsal(tmp_path: Path, texts: Path) -> Rehearsal:
    """Return a rehearsal of a healthy recipe with prepared data; nothing has been trained yet."""
    recipe = tiny_recipe(tmp_path, optimizer=OVERRIDES)
    prepare(recipe)
    return make_rehearsal(recipe, tmp_path)


@pytest.fixture(scope="module")
def shared_rehearsal(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Rehearsal:
    """Return a healthy rehearsal whose uninterrupted run is complete. Tests use copies of it (`trained_rehearsal`)."""
    folder = tmp_path_factory.mktemp("healthy")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.py").write_text(real_text, encoding="utf-8")
    recipe = tiny_recipe(folder, optimizer=OVERRIDES)
    prepare(recipe)
    rehearsal = make_rehearsal(recipe, folder)
    assert rehearsal.run.exists()
    return rehearsal


@dataclass
class Command:
    """A finished `regpt doctor` on two ranks: its exit code, what it printed, and a copy of its runs."""

    code: int
    output: str
    recipe: Recipe
    runs: Path
    rehearsal: Path


@pytest.fixture(scope="module")
def healthy_command(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Command:
    """Run `regpt doctor` with all its processes. Tests use copies of its runs (`complete_rehearsal`)."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.py").write_text(real_text, encoding="utf-8")
    recipe = tiny_recipe(folder, optimizer=OVERRIDES)
    (folder / "tiny.toml").write_text(to_toml(recipe).replace("max_lr = 0.01", "max_lr = 0.05"), encoding="utf-8")
    words = ["doctor", str(folder / "tiny.toml"), "--runs", str(folder / "runs"), "--ranks", "2"]
    temporary_folder = doctor_module.temporary_folder

    @contextmanager
    def copied_folder(runs: Path, prefix: str) -> Iterator[Path]:
        with temporary_folder(runs, prefix) as path:
            yield path
            shutil.copytree(path, folder / "kept")

    printed = StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(printed):
        patched.setattr(doctor_module, "temporary_folder", copied_folder)
        code = main([*words, "optimizer.max_lr=1e-2"])
    return Command(code, printed.getvalue(), recipe, folder / "runs", folder / "kept")


@pytest.fixture
def complete_rehearsal(healthy_command: Command, tmp_path: Path) -> Rehearsal:
    """Return a healthy rehearsal with all runs of the command except the resumed one."""
    rehearsal = Rehearsal(healthy_command.recipe, tmp_path / "rehearsal")
    shutil.copytree(healthy_command.rehearsal, rehearsal.folder, ignore=shutil.ignore_patterns("resumed", "exported"))
    rehearsal.completed |= {"straight", "killed", "ranks"}
    return rehearsal


@pytest.fixture
def trained_rehearsal(shared_rehearsal: Rehearsal, tmp_path: Path) -> Rehearsal:
    """Return a copy of the shared rehearsal, with its uninterrupted run."""
    rehearsal = Rehearsal(shared_rehearsal.recipe, tmp_path / "rehearsal")
    shutil.copytree(shared_rehearsal.folder, rehearsal.folder)
    rehearsal.completed.add("straight")
    return rehearsal


def make_rehearsal(recipe: Recipe, tmp_path: Path, ranks: int = 1) -> Rehearsal:
    folder = tmp_path / "rehearsal"
    folder.mkdir(exist_ok=True)
    return Rehearsal(recipe, folder, ranks)


def results_of(rehearsal: Rehearsal, *names: str) -> dict[str, CheckResult]:
    return {result.name: result for result in run_checks(rehearsal, names or tuple(CHECKS))}


def without(rehearsal: Rehearsal, name: str) -> None:
    """Let the next check that needs this run train it again."""
    rehearsal.completed.discard(name)
    shutil.rmtree(rehearsal.folder / name)


@pytest.mark.slow
@pytest.mark.ranks
def test_healthy_recipe_passes_every_check_and_leaves_no_folder(healthy_command: Command) -> None:
    assert healthy_command.code == DONE, healthy_command.output
    lines = healthy_command.output.splitlines()
    assert [line.split("  ")[2].strip() for line in lines[1:-1]] == list(CHECKS)
    assert all(line.startswith("  PASS") for line in lines[1:-1]), healthy_command.output
    assert f" {len(CHECKS)} checks" in lines[-1]
    assert not healthy_command.runs.exists()


def test_ranks_are_not_compared_on_one(trained_rehearsal: Rehearsal) -> None:
    result = results_of(trained_rehearsal, "ranks agree")["ranks agree"]
    assert result.status is Status.SKIP and not result.depends_on


@pytest.mark.nightly
def test_healthy_recipe_fails_no_check_on_one_rank(complete_rehearsal: Rehearsal) -> None:
    results = results_of(complete_rehearsal)
    assert list(results) == list(CHECKS)
    assert {result.name for result in results.values() if result.status is not Status.PASS} == {"ranks agree"}
    assert results["ranks agree"].status is Status.SKIP and not results["ranks agree"].depends_on


# Injected faults


def flipped_shard(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    shard = next(rehearsal.recipe.data.directory.glob("train_*.npy"))
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)


def too_many_checkpoints(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    rehearsal.recipe = replace(rehearsal.recipe, run=replace(rehearsal.recipe.run, max_steps=10**8))
    rehearsal.recipe = replace(rehearsal.recipe, checkpoint=replace(rehearsal.recipe.checkpoint, every=1))


def nan_loss(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    forward = GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda *inputs: forward(*inputs) * float("nan"))


def no_free_memory(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))


def micro_batch_out_of_memory(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    forward = GPT.forward

    def limited(self: GPT, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, tokens, targets)

    monkeypatch.setattr(GPT, "forward", limited)


def large_initial_weights(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    rehearsal.recipe = replace(rehearsal.recipe, model=replace(rehearsal.recipe.model, init_std=2.0))


def targets_equal_inputs(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    losses = GPT.losses
    monkeypatch.setattr(GPT, "losses", lambda self, tokens, targets: 0.5 * losses(self, tokens, tokens))


def optimizer_does_nothing(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    monkeypatch.setattr(AdamW, "step", lambda self: None)


def unseeded_weights(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    without(rehearsal, "straight")
    drawn = GPT.initial_weights
    monkeypatch.setattr(GPT, "initial_weights", lambda self, seed: drawn(self, torch.seed() % 2**31))


def disk_flips_a_bit(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    write = store.write

    def written(run: Path, *rest: object, **more: object) -> store.SavedCheckpoint:
        saved = write(run, *rest, **more)  # type: ignore[arg-type]
        file = saved.path / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        return saved

    monkeypatch.setattr(store, "write", written)


def moments_not_restored(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    monkeypatch.setattr(parallel_model, "load_moments", lambda path, model, optimizer: None)


def different_loss_on_ranks(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    without(rehearsal, "straight")
    rehearsal.ranks = 2
    forward = GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda *inputs: forward(*inputs) * 1.001)


def weights_change_on_loading(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    load = open_model.load_checkpoint_model

    def loaded(path: Path, recipe: Recipe) -> GPT:
        model = load(path, recipe)
        with torch.no_grad():
            model.token_embedding.weight.mul_(3.0)
        return model

    monkeypatch.setattr(open_model, "load_checkpoint_model", loaded)


def export_transposes_a_weight(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    export = artifacts.export

    def turned(model: GPT, target: Path, **options: Any) -> None:
        with torch.no_grad():
            weight = model.blocks[0].attention.out.weight
            weight.copy_(weight.t().clone())
            export(model, target, **options)
            weight.copy_(weight.t().clone())

    monkeypatch.setattr(artifacts, "export", turned)


def report_without_figures(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    monkeypatch.setattr(page, "draw_losses", lambda *inputs: None)


def endless_steps(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    rehearsal.recipe = replace(rehearsal.recipe, run=replace(rehearsal.recipe.run, max_steps=10**11))


def bucket_without_folder_renames(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    strange_disks.without_folder_rename(monkeypatch)


# (check, fault, exit code, text that the message must contain: the value or the thing that is wrong).
FAULTS: list[tuple[str, Inject, int, str]] = [
    ("data", flipped_shard, DATA, ".npy"),
    ("disk", too_many_checkpoints, USAGE, "100,000,000"),
    ("disk", bucket_without_folder_renames, USAGE, "cannot rename a folder"),
    ("train", nan_loss, NUMERICS, "nan"),
    ("memory", no_free_memory, USAGE, "1 MB free"),
    ("memory", micro_batch_out_of_memory, USAGE, "data.micro_batch = 2"),
    ("first loss", large_initial_weights, NUMERICS, "50,304"),
    ("first loss", targets_equal_inputs, NUMERICS, "50,304"),
    ("overfit one batch", optimizer_does_nothing, NUMERICS, "32 tokens"),
    ("deterministic start", unseeded_weights, NUMERICS, "losses differ"),
    ("save", disk_flips_a_bit, CHECKPOINT, "model.safetensors"),
    ("kill and resume", moments_not_restored, CHECKPOINT, "differ"),
    ("ranks agree", different_loss_on_ranks, RANKS, "2 ranks"),
    ("evaluate", weights_change_on_loading, CHECKPOINT, "validation loss"),
    ("sample", weights_change_on_loading, CHECKPOINT, "checkpoint"),
    ("export", export_transposes_a_weight, CHECKPOINT, "logits"),
    ("report", report_without_figures, USAGE, "loss_curve.png"),
    ("time", endless_steps, USAGE, "more than 100 years"),
]
# Faults outside of the uninterrupted run: these checks use the shared one instead of training it again.
USES_SHARED_RUN = {
    too_many_checkpoints,
    bucket_without_folder_renames,
    no_free_memory,
    weights_change_on_loading,
    export_transposes_a_weight,
    report_without_figures,
    endless_steps,
}
# Faults that show in a comparison with the run that was killed or the one on two ranks: these use the command's.
USES_COMMAND_RUNS = {unseeded_weights, moments_not_restored, different_loss_on_ranks}
QUICK = {flipped_shard, no_free_memory}


def test_every_check_has_an_injected_fault() -> None:
    assert {"machine", *(name for name, *_ in FAULTS)} == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "inject", "exit_code", "value"),
    [
        pytest.param(
            *fault, marks=[] if fault[1] in QUICK else [pytest.mark.slow], id=f"{fault[0]}-{fault[1].__name__}"
        )
        for fault in FAULTS
    ],
)
def test_injected_fault_fails_its_check(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    inject: Inject,
    exit_code: int,
    value: str,
) -> None:
    fixture = "trained_rehearsal" if inject in USES_SHARED_RUN else "healthy_rehearsal"
    fixture = "complete_rehearsal" if inject in USES_COMMAND_RUNS else fixture
    rehearsal: Rehearsal = request.getfixturevalue(fixture)
    inject(monkeypatch, rehearsal)
    result = results_of(rehearsal, name)[name]
    assert result.status is Status.FAIL, result
    assert value in result.message and result.fix and result.exit_code == exit_code, result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("after", "sent", "code"),
    [
        ("machine", signal.SIGTERM, 143),
        ("disk", signal.SIGHUP, 129),
        ("first loss", signal.SIGINT, 130),
        ("deterministic start", signal.SIGTERM, 143),
        pytest.param("deterministic start", signal.SIGINT, 130, marks=pytest.mark.nightly),
    ],
)
def test_signal_ends_the_command_at_once_and_leaves_nothing(
    tmp_path: Path, texts: Path, after: str, sent: signal.Signals, code: int
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(to_toml(tiny_recipe(tmp_path)), encoding="utf-8")
    program = fork_command(["doctor", str(recipe), "--runs", str(tmp_path / "runs")], tmp_path / "printed")

    def has_printed_the_check() -> bool:
        whole_lines = program.output().split("\n")[:-1]
        return any(f" {after}" in line for line in whole_lines)

    wait_until(has_printed_the_check, 60)
    program.send(sent)
    ended = program.outcome(60)
    assert ended.code == code, ended.output
    assert ended.output.endswith(f"stopped by {sent.name}\n")
    assert not (tmp_path / "runs").exists()


def is_training(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # the process has just ended
        return "train" in process.cmdline()
    return False


@pytest.mark.slow
@pytest.mark.ranks
def test_signal_ends_torchrun_and_its_ranks(tmp_path: Path, texts: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(to_toml(tiny_recipe(tmp_path)), encoding="utf-8")
    words = ["doctor", str(recipe), "--ranks", "2", "--runs", str(tmp_path / "runs")]
    program = fork_command(words, tmp_path / "printed")
    command, until = psutil.Process(program.pid), time.monotonic() + 120
    while len(ranks := [one for one in command.children(recursive=True) if is_training(one)]) < 3:
        assert time.monotonic() < until and command.is_running()
        time.sleep(0.05)
    program.send(signal.SIGTERM)
    assert program.outcome(30).code == 143
    assert not any(map(is_training, ranks))  # torchrun and two ranks have ended before the command did
    assert not (tmp_path / "runs").exists()


def test_signal_within_a_line_and_another_during_cleanup(
    healthy_rehearsal: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopsWithinLine(StringIO):
        def write(self, text: str) -> int:
            written = super().write(text)
            if " machine" in text:
                signal.raise_signal(signal.SIGTERM)
            return written

    def signalled_rmtree(path: Path, **_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        remove(path)

    remove, printed = shutil.rmtree, StopsWithinLine()
    monkeypatch.setattr(shutil, "rmtree", signalled_rmtree)
    assert doctor(healthy_rehearsal.recipe, tmp_path / "runs", 1, Terminal(file=printed, soft_wrap=True)) == TERMINATED
    assert printed.getvalue().count(" machine") == 1 and printed.getvalue().endswith("stopped by SIGTERM\n")
    assert not (tmp_path / "runs").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_first_signal_during_cleanup_leaves_nothing(
    healthy_rehearsal: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled_rmtree(path: Path, **_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        remove(path)

    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", signalled_rmtree)
    monkeypatch.setattr(doctor_module, "run_checks", lambda *_, **__: iter([]))
    assert doctor(healthy_rehearsal.recipe, tmp_path / "runs", 1, Terminal(file=StringIO())) == DONE
    assert not (tmp_path / "runs").exists()


def test_signal_swallowed_by_a_check_ends_the_command_after_it(
    healthy_rehearsal: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowed(_: Rehearsal) -> str:
        with suppress(StopRequested):
            signal.raise_signal(signal.SIGINT)
        return "fine"

    monkeypatch.setitem(CHECKS, "data", (swallowed, DATA))
    printed = StringIO()
    assert doctor(healthy_rehearsal.recipe, tmp_path / "runs", 1, Terminal(file=printed, soft_wrap=True)) == INTERRUPTED
    assert " data" in printed.getvalue() and " disk" not in printed.getvalue()


def test_batch_that_does_not_divide_among_ranks_ends_the_checks(healthy_rehearsal: Rehearsal, tmp_path: Path) -> None:
    shown = results_of(make_rehearsal(healthy_rehearsal.recipe, tmp_path, ranks=3))
    assert list(shown) == ["machine"]
    assert shown["machine"].status is Status.FAIL and "3 ranks" in shown["machine"].message


def test_check_that_needs_a_failed_run_is_skipped(
    healthy_rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_loss(monkeypatch, healthy_rehearsal)
    shown = results_of(healthy_rehearsal, "train", "first loss", "save", "report", "disk")
    assert {name: result.status for name, result in shown.items()} == {
        "train": Status.FAIL,
        "first loss": Status.SKIP,
        "save": Status.SKIP,
        "report": Status.SKIP,
        "disk": Status.PASS,
    }


def test_error_is_reported_once_and_dependent_checks_name_it(healthy_rehearsal: Rehearsal) -> None:
    recipe, missing = healthy_rehearsal.recipe, healthy_rehearsal.folder / "none.jsonl"
    evaluation = replace(recipe.evaluation, hellaswag_every=1, hellaswag_file=str(missing))
    healthy_rehearsal.recipe = replace(recipe, evaluation=evaluation)
    shown = results_of(healthy_rehearsal)
    assert [result.name for result in shown.values() if result.status is Status.FAIL] == ["train"]
    assert "none.jsonl" in shown["train"].message
    for name in ("kill and resume", "report"):
        assert shown[name].status is Status.SKIP and shown[name].depends_on == "train"
        assert "train" in shown[name].message


@pytest.mark.compile
@pytest.mark.parametrize("first", ["measuring the CPU", "training"])  # what compiles first; on a card it is training
def test_broken_compiler_fails_the_steps_with_its_remedy(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The rehearsal trains with the recipe's run.compile, so that it meets what a run would meet."""
    import torch._inductor.config as inductor

    recipe = tiny_recipe(tmp_path, optimizer=OVERRIDES, run={"compile": "on"})
    prepare(recipe)
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    if first == "training":
        monkeypatch.setattr(Rehearsal, "quick_micro_batch", lambda self: 2)
    with inductor.patch({"cpp.cxx": (None, "/bin/false")}):
        results = results_of(make_rehearsal(recipe, tmp_path), "machine", "train", "memory")
    failed = results["train"]
    assert results["machine"].status is Status.PASS
    assert failed.status is Status.FAIL and "torch.compile" in failed.message and "compiler" in failed.message
    assert "run.compile=off" in failed.fix
    assert results["memory"].depends_on == "train"


def test_unexpected_error_fails_its_check_and_the_others_run(
    trained_rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by a plot")

    monkeypatch.setattr(artifacts, "write_report", broken)
    shown = results_of(trained_rehearsal, "report", "sample")
    assert shown["report"].status is Status.FAIL and shown["report"].message == "ZeroDivisionError: by a plot"
    assert shown["sample"].status is Status.PASS


def test_expected_time_grows_with_steps_and_evaluations(trained_rehearsal: Rehearsal) -> None:
    def seconds(steps: int, every: int) -> float:
        changed = replace(trained_rehearsal.recipe, run=replace(trained_rehearsal.recipe.run, max_steps=steps))
        trained_rehearsal.recipe = replace(changed, evaluation=replace(changed.evaluation, validation_every=every))
        return expected_seconds(trained_rehearsal)

    trained_rehearsal.run  # noqa: B018  rehearsed once, with the recipe as it was
    one, two, three = (seconds(steps, 0) for steps in (1_000, 2_000, 3_000))
    assert two - one == pytest.approx(three - two) and two > one
    evaluation = seconds(1_000, 500) - seconds(1_000, 0)  # one more: the last step is always evaluated
    assert seconds(1_000, 100) - seconds(1_000, 0) == pytest.approx(9 * evaluation)
    assert evaluation > 0


def test_expected_time_on_several_ranks_uses_their_steps(trained_rehearsal: Rehearsal) -> None:
    alone = expected_seconds(trained_rehearsal)
    together = trained_rehearsal.folder / "ranks"  # as if torchrun had trained at a quarter of the speed
    shutil.copytree(trained_rehearsal.run, together)
    slower = [json.loads(line) for line in (together / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    slower = [record | {"seconds": 4 * record["seconds"]} if "seconds" in record else record for record in slower]
    (together / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in slower), encoding="utf-8")
    trained_rehearsal.completed.add("ranks")
    trained_rehearsal.ranks = 2
    assert expected_seconds(trained_rehearsal) == pytest.approx(4 * alone)
