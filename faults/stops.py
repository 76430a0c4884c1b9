"""Stop a run by signals: at chosen steps, in each phase, twice in a row, and during data preparation."""

import signal
import time
from collections.abc import Callable
from functools import partial

from faults.laboratory import Laboratory, Result, newest_step, send
from faults.process import at_call
from regpt.checkpoint import store
from regpt.distributed.signals import GracefulStop
from regpt.preparation import encoders
from regpt.tracking.journal import read_history
from regpt.training import periodic_eval, trainer


def ctrl_c_at_steps(lab: Laboratory, times: int) -> Result:
    """Send SIGINT at chosen calls of the stop check: within steps, at the first, at an epoch boundary, at a save."""
    checks = [61, 1, 2, 15, 40, 58, 59, 60][:times]
    for number in checks:
        outcome = lab.start(
            "stopped", partial(at_call, GracefulStop, "stop_reason", number, partial(send, signal.SIGINT))
        )
        assert outcome.code == 130, outcome.output
        assert "regpt resume" in outcome.output.splitlines()[-1], outcome.output
        lab.finish("stopped")
        lab.remove("stopped")
    return Result(
        "Ctrl-C between micro-batches, steps, validation and samples",
        len(checks),
        "exit 130; resumed, bit-identical",
    )


PHASES: dict[str, Callable[[], None]] = {
    "a step": lambda: at_call(trainer.Trainer, "train_step", 7, partial(send, signal.SIGTERM)),
    "validation": lambda: at_call(periodic_eval, "validation", 2, partial(send, signal.SIGTERM)),
    "sampling": lambda: at_call(periodic_eval, "continuations", 1, partial(send, signal.SIGTERM)),
    "a save": lambda: at_call(store, "write", 2, partial(send, signal.SIGTERM)),
}


def sigterm_in_each_phase(lab: Laboratory, times: int) -> Result:
    """Send SIGTERM in a step, validation, sampling and a save."""
    for name, inject in list(PHASES.items())[:times]:
        outcome = lab.start("terminated", inject)
        assert outcome.code == 143, f"{name}: {outcome.output}"
        assert outcome.seconds < 10 + lab.seconds
        assert newest_step(lab.path("terminated")) == read_history(lab.path("terminated")).step, name
        lab.finish("terminated")
        lab.remove("terminated")
    places = ", in ".join(list(PHASES)[:times])
    return Result(f"SIGTERM in {places}", min(times, len(PHASES)), "exit 143; that step is saved")


def sigterm_twice(lab: Laboratory, times: int) -> Result:
    """Send SIGTERM twice: the second must end the process at once."""

    def twice() -> None:
        send(signal.SIGTERM)
        time.sleep(0.05)
        send(signal.SIGTERM)

    outcome = lab.start("twice", partial(at_call, trainer.Trainer, "train_step", 13, twice))
    assert outcome.code == -signal.SIGTERM, outcome.output
    assert newest_step(lab.path("twice")) == 10
    lab.finish("twice")
    lab.remove("twice")
    return Result("a second SIGTERM", 1, "ends at once; the previous checkpoint is intact")


def sigterm_during_preparation(lab: Laboratory, times: int) -> Result:
    """Send SIGTERM while text is tokenized; the same command must continue."""
    settings = [f"data.path={lab.folder}/later"]
    inject = partial(at_call, encoders, "encode_chunk", 1, partial(send, signal.SIGTERM))
    outcome = lab.start("unprepared", inject, settings=settings)
    assert outcome.code == 143 and "SIGTERM" in outcome.output, outcome.output
    assert not lab.path("unprepared").exists() and lab.start("unprepared", settings=settings).code == 0
    lab.assert_same_as_baseline("unprepared")
    lab.remove("unprepared")
    return Result("SIGTERM during data preparation", 1, "exit 143; repeated, bit-identical")
