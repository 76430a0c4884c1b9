"""Inject NaN and spikes into the loss."""

from collections.abc import Callable
from functools import partial

from faults.laboratory import Laboratory, Result, newest_step
from regpt.data.batches import Batch
from regpt.tracking.journal import SkippedRecord, StepRecord, read_history
from regpt.training import trainer


def nan_losses(lab: Laboratory, times: int) -> Result:
    nan = float("nan")
    outcome = lab.start("once", partial(poison, {17: nan}))
    history = read_history(lab.path("once"))
    assert outcome.code == 0 and [record.step for record in history.skipped] == [18]
    outcome = lab.start("often", partial(poison, dict.fromkeys(range(17, 1000), nan)))
    assert outcome.code == 5 and "nan" in outcome.output and "Traceback" not in outcome.output
    assert newest_step(lab.path("often")) >= 15
    for name in ("once", "often"):
        lab.remove(name)
    return Result(
        "NaN in one loss; NaN in every loss from some step on",
        2,
        "skipped; rollback, then exit 5 with good weights",
    )


def poison(values: dict[int, float]) -> None:
    """Multiply the loss of the given batches by the given factors."""
    real = trainer.Trainer.train_step

    def train_step(self: trainer.Trainer, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        forward, factor = self.model.forward, values.get(self.state.guard.batch_of(step), 1.0)
        self.model.__dict__["forward"] = lambda *given: forward(*given) * factor
        try:
            return real(self, step, batch)
        finally:
            del self.model.__dict__["forward"]

    trainer.Trainer.train_step = train_step  # type: ignore[method-assign]


def spike_after_nan_is_skipped(lab: Laboratory, bug: Callable[[], None] = lambda: None) -> bool:
    """Return whether a tenfold loss is skipped after many NaN losses."""

    def inject() -> None:
        bug()
        poison({**dict.fromkeys(range(5, 30, 2), float("nan")), 30: 10.0})

    settings = ["guard.window=16", "guard.loss_deviations=10.0"]
    outcome = lab.start("spike", inject, settings=settings)
    assert outcome.code == 0, outcome.output
    skipped = [record.step for record in read_history(lab.path("spike")).skipped]
    lab.remove("spike")
    assert skipped[:13] == list(range(6, 31, 2)), skipped
    return 31 in skipped


def loss_spike(lab: Laboratory, times: int) -> Result:
    """Multiply one loss by ten after many NaN losses."""
    assert spike_after_nan_is_skipped(lab)
    return Result("a tenfold loss after NaN in every second loss", 1, "skipped")
