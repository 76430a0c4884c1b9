"""Copies of the journal's figures elsewhere: TensorBoard, Weights & Biases, trackio. One that fails is let go."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from regpt.base.errors import UserError
from regpt.run.journal import Record, StepRecord, TaskRecord, ValidationRecord

PROJECT = "regpt"


class Sink(Protocol):
    """Where figures go."""

    def log(self, figures: dict[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's own folder: tensorboard --logdir runs"""

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"))

    def log(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Client:
    """Weights & Biases, and trackio, which has the same functions. Their own settings say where it goes."""

    module: str

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        self.client = importlib.import_module(self.module)
        self.client.init(project=PROJECT, name=run.name, config=settings, resume="allow", **self.where(run))

    def where(self, run: Path) -> dict[str, Any]:
        return {}

    def log(self, figures: dict[str, float], step: int) -> None:
        self.client.log(figures, step=step)

    def close(self) -> None:
        self.client.finish()


class WeightsAndBiases(Client):
    module = "wandb"

    def where(self, run: Path) -> dict[str, Any]:
        return {"id": run.name, "dir": str(run)}


class Trackio(Client):
    module = "trackio"


KINDS: dict[str, tuple[str, Callable[[Path, dict[str, Any]], Sink]]] = {  # by name: (package, how to open it)
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
    "trackio": ("trackio", Trackio),
}


class Sinks:
    """The sinks that a recipe names. Whatever one of them raises is said once; the others and the run go on."""

    def __init__(self, names: Sequence[str], warn: Callable[[str], None]) -> None:
        """Raises UserError where the package of one is missing: that is better known before the run than after."""
        self.names, self.warn = names, warn
        self.open: dict[str, Sink] = {}
        for name in names:
            package = KINDS[name][0]
            if importlib.util.find_spec(package) is None:
                raise UserError(f"run.sinks = '{name}': it is not installed", f"pip install 'regpt[{name}]'")

    def begin(self, run: Path, settings: dict[str, Any]) -> None:
        for name in self.names:
            self.attempt(name, lambda name=name: self.open.update({name: KINDS[name][1](run, settings)}))  # type: ignore[misc]

    def write(self, record: Record, tokens_per_step: int) -> None:
        figures = figures_of(record, tokens_per_step)
        for name in list(self.open) if figures else []:
            self.attempt(name, lambda name=name: self.open[name].log(figures, record.step))  # type: ignore[misc]

    def close(self) -> None:
        for name in list(self.open):
            self.attempt(name, lambda name=name: self.open[name].close())  # type: ignore[misc]
        self.open.clear()

    def attempt(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a sink may raise whatever it likes
            self.open.pop(name, None)
            self.warn(f"the sink '{name}' failed and is let go ({type(error).__name__}: {error})")


def figures_of(record: Record, tokens_per_step: int) -> dict[str, float]:
    """What is worth a curve in a record; nothing for the others."""
    if isinstance(record, StepRecord):
        return {
            "train/loss": record.loss,
            "train/gradient_norm": record.gradient_norm,
            "train/learning_rate": record.learning_rate,
            "train/tokens": float(record.tokens),
            "train/tokens_per_second": tokens_per_step / max(record.seconds, 1e-9),
        }
    if isinstance(record, ValidationRecord):
        return {"validation/loss": record.loss, "validation/tokens": float(record.tokens)}
    if isinstance(record, TaskRecord):
        return {f"{record.task}/{rule}": share for rule, share in record.accuracy.items()}
    return {}
