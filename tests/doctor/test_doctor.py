"""`regpt doctor`: all green on a recipe that is well; for each check a planted fault that turns it red."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from io import StringIO
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from rich.console import Console as Terminal

from regpt.base.errors import CHECKPOINT, DATA, DONE, INTERRUPTED, NUMERICS, TERMINATED, USAGE
from regpt.base.recipe import Recipe
from regpt.base.settings import to_toml
from regpt.checkpoint import store
from regpt.distributed.signals import StopRequested
from regpt.doctor import artifacts
from regpt.doctor import runner as doctor_module
from regpt.doctor.findings import Finding
from regpt.doctor.rehearsal import Rehearsal
from regpt.doctor.resources import expected_seconds
from regpt.doctor.runner import CHECKS, doctor, findings
from regpt.interop import open_model
from regpt.model.gpt import GPT
from regpt.prepare.dataset import prepare
from regpt.report import page
from regpt.train import parallel
from tests.conftest import tiny_recipe

Plant = Callable[[pytest.MonkeyPatch, Rehearsal], None]


@pytest.fixture
def well(tmp_path: Path, texts: Path) -> Rehearsal:
    recipe = tiny_recipe(tmp_path, optimizer={"max_lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 1})
    prepare(recipe)
    return rehearsal(recipe, tmp_path)


def rehearsal(recipe: Recipe, tmp_path: Path, ranks: int = 1) -> Rehearsal:
    folder = tmp_path / "rehearsal"
    folder.mkdir(exist_ok=True)
    return Rehearsal(recipe, folder, ranks)


def found(of: Rehearsal, *names: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings(of, names or tuple(CHECKS))}


def test_a_recipe_that_is_well_is_all_green_and_the_folder_goes(tmp_path: Path, texts: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(to_toml(tiny_recipe(tmp_path)), encoding="utf-8")
    words = ["doctor", str(recipe), "--runs", str(tmp_path / "runs"), "--ranks", "2", "optimizer.max_lr=1e-2"]
    shown = subprocess.run([sys.executable, "-m", "regpt", *words], capture_output=True, text=True)
    assert shown.returncode == DONE, shown.stdout + shown.stderr
    lines = shown.stdout.splitlines()
    assert [line.split("  ")[2].strip() for line in lines[1:-1]] == list(CHECKS)
    assert all(line.startswith("  green") for line in lines[1:-1]), shown.stdout
    assert f"nothing is red: {len(CHECKS)} checks" in lines[-1]
    assert not (tmp_path / "runs").exists()


# Planted faults


def flipped_shard(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    shard = next(of.recipe.data.directory.glob("train_*.npy"))
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)


def checkpoints_without_end(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    of.recipe = replace(of.recipe, run=replace(of.recipe.run, max_steps=10**8))
    of.recipe = replace(of.recipe, checkpoint=replace(of.recipe.checkpoint, every=1))


def loss_that_is_no_number(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    forward = GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda *inputs: forward(*inputs) * float("nan"))


def no_memory_left(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))


def too_much_at_once(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    forward = GPT.forward

    def limited(self: GPT, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, tokens, targets)

    monkeypatch.setattr(GPT, "forward", limited)


def wide_initial_weights(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    of.recipe = replace(of.recipe, model=replace(of.recipe.model, init_std=2.0))


def targets_that_are_inputs(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    losses = GPT.losses
    monkeypatch.setattr(GPT, "losses", lambda self, tokens, targets: 0.5 * losses(self, tokens, tokens))


def optimizer_that_does_nothing(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)


def weights_by_chance(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    drawn = GPT.initial_weights
    monkeypatch.setattr(GPT, "initial_weights", lambda self, seed: drawn(self, torch.seed() % 2**31))


def disk_that_flips_a_bit(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    write = store.write

    def written(run: Path, *rest: object, **more: object) -> store.SavedCheckpoint:
        saved = write(run, *rest, **more)  # type: ignore[arg-type]
        file = saved.path / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        return saved

    monkeypatch.setattr(store, "write", written)


def moments_not_restored(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    monkeypatch.setattr(parallel, "load_moments", lambda path, model, optimizer: None)


def loss_of_one_rank_is_another(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    of.ranks = 2
    forward = GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda *inputs: forward(*inputs) * 1.001)


def weights_lost_in_loading(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    load = open_model.load_checkpoint_model

    def loaded(path: Path, recipe: Recipe) -> GPT:
        model = load(path, recipe)
        with torch.no_grad():
            model.token_embedding.weight.mul_(3.0)
        return model

    monkeypatch.setattr(open_model, "load_checkpoint_model", loaded)


def export_that_turns_a_weight(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    export = artifacts.export

    def turned(model: GPT, target: Path) -> None:
        with torch.no_grad():
            weight = model.blocks[0].attention.out.weight
            weight.copy_(weight.t().clone())
            export(model, target)
            weight.copy_(weight.t().clone())

    monkeypatch.setattr(artifacts, "export", turned)


def report_without_pictures(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    monkeypatch.setattr(page, "draw_losses", lambda *inputs: None)


def steps_for_ever(monkeypatch: pytest.MonkeyPatch, of: Rehearsal) -> None:
    of.recipe = replace(of.recipe, run=replace(of.recipe.run, max_steps=10**11))


FAULTS: list[tuple[str, Plant, int, str]] = [  # (check, what is planted, exit code, what is said)
    ("data", flipped_shard, DATA, "not those that were sealed"),
    ("disk", checkpoints_without_end, USAGE, "are free"),
    ("train", loss_that_is_no_number, NUMERICS, "nan"),
    ("memory", no_memory_left, USAGE, "are free"),
    ("memory", too_much_at_once, USAGE, "out of memory with data.micro_batch = 2"),
    ("first loss", wide_initial_weights, NUMERICS, "a guess among 50,304"),
    ("first loss", targets_that_are_inputs, NUMERICS, "a guess among 50,304"),
    ("one batch overfitted", optimizer_that_does_nothing, NUMERICS, "token frequencies alone give"),
    ("two starts equal", weights_by_chance, NUMERICS, "losses differ"),
    ("save", disk_that_flips_a_bit, CHECKPOINT, "model.safetensors"),
    ("kill and resume", moments_not_restored, CHECKPOINT, "differ"),
    ("ranks agree", loss_of_one_rank_is_another, 7, "2 ranks and one"),
    ("evaluate", weights_lost_in_loading, CHECKPOINT, "of its checkpoint"),
    ("sample", weights_lost_in_loading, CHECKPOINT, "the run wrote"),
    ("export", export_that_turns_a_weight, CHECKPOINT, "logits differ"),
    ("report", report_without_pictures, USAGE, "train-val_loss.png"),
    ("time", steps_for_ever, USAGE, "days"),
]


def test_every_check_has_a_planted_fault() -> None:
    assert {"machine", *(name for name, *_ in FAULTS)} == set(CHECKS)


@pytest.mark.parametrize(("name", "plant", "code", "said"), FAULTS, ids=[f"{n}-{p.__name__}" for n, p, *_ in FAULTS])
def test_a_planted_fault_turns_its_check_red(
    well: Rehearsal, monkeypatch: pytest.MonkeyPatch, name: str, plant: Plant, code: int, said: str
) -> None:
    plant(monkeypatch, well)
    finding = found(well, name)[name]
    assert finding.color == "red", finding
    assert said in finding.said and finding.remedy and finding.code == code, finding


@pytest.mark.parametrize(
    ("after", "sent", "code"),
    [
        ("machine", signal.SIGTERM, 143),
        ("disk", signal.SIGHUP, 129),
        ("first loss", signal.SIGINT, 130),
        ("two starts equal", signal.SIGTERM, 143),
        ("two starts equal", signal.SIGINT, 130),
    ],
)
def test_a_signal_ends_the_visit_at_once_and_leaves_nothing(
    tmp_path: Path, texts: Path, after: str, sent: signal.Signals, code: int
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(to_toml(tiny_recipe(tmp_path)), encoding="utf-8")
    words = [sys.executable, "-u", "-m", "regpt", "doctor", str(recipe), "--runs", str(tmp_path / "runs")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        before = list(takewhile(lambda line: f" {after}" not in line, process.stdout))
        process.send_signal(sent)
        rest = process.stdout.read()
        assert process.wait(60) == code, (before, rest)
    assert rest.endswith(f"stopped by {sent.name}\n")
    assert not (tmp_path / "runs").exists()


def trains(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # it has just ended
        return "train" in process.cmdline()
    return False


def test_a_signal_ends_torchrun_and_its_ranks_too(tmp_path: Path, texts: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(to_toml(tiny_recipe(tmp_path)), encoding="utf-8")
    words = ["-m", "regpt", "doctor", str(recipe), "--ranks", "2", "--runs", str(tmp_path / "runs")]
    with subprocess.Popen([sys.executable, "-u", *words], stdout=subprocess.PIPE, text=True) as process:
        visit, until = psutil.Process(process.pid), time.monotonic() + 120
        while len(ranks := [one for one in visit.children(recursive=True) if trains(one)]) < 3:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 143
        assert not any(map(trains, ranks))  # torchrun and two ranks are gone by now, not only soon
    assert not (tmp_path / "runs").exists()


def test_a_signal_amid_a_line_and_another_one_amid_the_tidying(
    well: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fatal(StringIO):
        def write(self, text: str) -> int:
            written = super().write(text)
            if " machine" in text:
                signal.raise_signal(signal.SIGTERM)
            return written

    def tidied(path: Path, **_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        remove(path)

    remove, printed = shutil.rmtree, Fatal()
    monkeypatch.setattr(shutil, "rmtree", tidied)
    assert doctor(well.recipe, tmp_path / "runs", 1, Terminal(file=printed, soft_wrap=True)) == TERMINATED
    assert printed.getvalue().count(" machine") == 1 and printed.getvalue().endswith("stopped by SIGTERM\n")
    assert not (tmp_path / "runs").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_first_signal_amid_the_tidying_leaves_nothing_either(
    well: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tidied(path: Path, **_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        remove(path)

    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", tidied)
    monkeypatch.setattr(doctor_module, "findings", lambda *_, **__: iter([]))
    assert doctor(well.recipe, tmp_path / "runs", 1, Terminal(file=StringIO())) == DONE
    assert not (tmp_path / "runs").exists()


def test_a_signal_that_python_swallowed_ends_the_visit_after_the_check(
    well: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowed(_: Rehearsal) -> str:
        with suppress(StopRequested):
            signal.raise_signal(signal.SIGINT)
        return "well"

    monkeypatch.setitem(CHECKS, "data", (swallowed, DATA))
    printed = StringIO()
    assert doctor(well.recipe, tmp_path / "runs", 1, Terminal(file=printed, soft_wrap=True)) == INTERRUPTED
    assert " data" in printed.getvalue() and " disk" not in printed.getvalue()


def test_a_batch_that_the_ranks_cannot_share_ends_the_visit(well: Rehearsal, tmp_path: Path) -> None:
    shown = found(rehearsal(well.recipe, tmp_path, ranks=3))
    assert list(shown) == ["machine"]
    assert shown["machine"].color == "red" and "3 ranks" in shown["machine"].said


def test_what_needs_a_run_that_failed_is_not_tried_and_not_red(
    well: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_that_is_no_number(monkeypatch, well)
    shown = found(well, "train", "first loss", "save", "report", "disk")
    colors = {name: finding.color for name, finding in shown.items()}
    assert colors == {"train": "red", "first loss": "grey", "save": "grey", "report": "grey", "disk": "green"}


def test_a_fault_is_red_once_and_what_depends_on_it_names_its_check(well: Rehearsal) -> None:
    well.recipe = replace(
        well.recipe,
        evaluation=replace(well.recipe.evaluation, hellaswag_every=1, hellaswag_file=str(well.folder / "none.jsonl")),
    )
    shown = found(well)
    assert [finding.name for finding in shown.values() if finding.color == "red"] == ["train"]
    assert shown["train"].said.endswith("none.jsonl: there is no such file")
    assert shown["kill and resume"].said == shown["report"].said == "not tried: train has to be mended first"


def test_an_error_that_nobody_expected_is_red_and_the_visit_goes_on(
    well: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by a plot")

    monkeypatch.setattr(artifacts, "write_report", broken)
    shown = found(well, "report", "sample")
    assert shown["report"].color == "red" and shown["report"].said == "ZeroDivisionError: by a plot"
    assert shown["sample"].color == "green"


def test_the_time_that_is_told_grows_with_the_steps_and_with_the_looks(well: Rehearsal) -> None:
    def seconds(steps: int, every: int) -> float:
        changed = replace(well.recipe, run=replace(well.recipe.run, max_steps=steps))
        well.recipe = replace(changed, evaluation=replace(changed.evaluation, validation_every=every))
        return expected_seconds(well)

    well.run  # noqa: B018  rehearsed once, with the recipe as it was
    one, two, three = (seconds(steps, 0) for steps in (1_000, 2_000, 3_000))
    assert two - one == pytest.approx(three - two) and two > one
    look = seconds(1_000, 500) - seconds(1_000, 0)  # one more: the last step is looked at either way
    assert seconds(1_000, 100) - seconds(1_000, 0) == pytest.approx(9 * look)
    assert look > 0


def test_the_time_on_several_ranks_is_that_of_steps_on_as_many(well: Rehearsal) -> None:
    alone = expected_seconds(well)
    together = well.folder / "ranks"  # as if torchrun had trained it, at a quarter of the speed
    shutil.copytree(well.run, together)
    slower = [json.loads(line) for line in (together / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    slower = [record | {"seconds": 4 * record["seconds"]} if "seconds" in record else record for record in slower]
    (together / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in slower), encoding="utf-8")
    well.made.add("ranks")
    well.ranks = 2
    assert expected_seconds(well) == pytest.approx(4 * alone)
