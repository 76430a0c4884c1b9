"""Training runs on several ranks in one folder, and comparisons of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from regpt.tracking.journal import History, read_history
from tests.helpers.ranks import Outcome, run_ranks

STEPS = 12
MODES = {"ddp": [], "strict": ["run.strict_sum=true"], "fsdp": ["run.parallel=fsdp"]}


class Workspace:
    """A folder with a recipe and prepared data, in which tests run commands on several ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the directory of the run `name`."""
        return self.folder / "runs" / name

    def words(self, command: str, name: str, settings: Sequence[str] = ()) -> list[str]:
        """Return the arguments of a command about the run `name`."""
        where = ["--runs", str(self.folder / "runs")]
        if command == "train":
            return ["train", str(self.folder / "tiny.toml"), *where, "--name", name, *settings]
        return [command, name, *where, *settings]

    def run(
        self,
        command: str,
        ranks: int,
        name: str,
        settings: Sequence[str] = (),
        inject: Callable[[int], None] | None = None,
    ) -> list[Outcome]:
        """Run a command on several ranks, each of which calls `inject(rank)` first; return their outcomes."""
        return run_ranks(ranks, self.words(command, name, settings), self.folder / "output", inject)

    def train(self, ranks: int, name: str, settings: Sequence[str] = ()) -> History:
        """Train the run `name` to its end and return its history."""
        ended = self.run("train", ranks, name, settings)
        assert [outcome.code for outcome in ended] == [0] * ranks, ended
        return read_history(self.path(name))


def losses(history: History) -> list[float]:
    return [step.loss for step in history.steps]


def batches(history: History) -> list[str]:
    return [step.batch for step in history.steps]


def evaluations(history: History) -> tuple[list[float], list[list[str]]]:
    """Return the validation losses and the texts of the samples."""
    return [v.loss for v in history.validations], [sample.texts for sample in history.samples]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint that is not sharded."""
    found: dict[str, torch.Tensor] = {}
    for kind in ("model", "optimizer"):
        with safe_open(path / f"{kind}.safetensors", "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def same_tensors(one: Path, other: Path) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def at_step(workspace: Workspace, name: str, step: int) -> Callable[[], bool]:
    """Return a function that tells whether the run `name` has completed `step` steps."""
    return lambda: read_history(workspace.path(name)).step >= step
