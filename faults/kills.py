"""Kill a run at random moments of training, at points within a save, and while old checkpoints are removed."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from faults.laboratory import CHECKPOINT_FILES, Laboratory, Result, newest_step
from faults.process import KILLED, at_call, kill_this_process
from regpt.base import files
from regpt.checkpoint import store


def kills_in_training(lab: Laboratory, kills: int) -> Result:
    """Kill runs at random moments until they finish, as often as `kills` in total."""
    done = 0
    while done < kills:
        while True:
            path = lab.path("killed")
            before = newest_step(path) if path.exists() else 0
            if path.exists() and before == 0:
                lab.remove("killed")  # killed before its first checkpoint: start again, as the message advises
            act = lab.resume if before else lab.start
            outcome = act("killed", kill_after=lab.random.uniform(0.05, 1.1 * lab.seconds) if done < kills else None)
            if outcome.code != KILLED:
                assert outcome.code == 0, outcome.output
                break
            done += 1
            assert newest_step(path) >= before if path.exists() else before == 0, "a committed checkpoint was lost"
        lab.assert_same_as_baseline("killed")
        lab.remove("killed")
    return Result("kill -9 at random moments of training", done, "resumed, bit-identical")


KILL_POINTS: dict[str, Callable[[int], None]] = {
    "after the first file": lambda n: at_call(store, "write_tensors", 2 * n - 1, kill_this_process, after=True),
    "before a flush": lambda n: at_call(files, "flush_file", 4 * n - 2, kill_this_process),
    "before the rename": lambda n: at_call(Path, "rename", n, kill_this_process, only=".step_"),
    "after the rename": lambda n: at_call(Path, "rename", n, kill_this_process, after=True, only=".step_"),
    "before the manifest": lambda n: at_call(store, "write_json", 2 * n, kill_this_process),
}


def kills_in_saving(lab: Laboratory, kills: int) -> Result:
    """Kill runs at chosen points within a random save."""
    done = 0
    while done < kills:
        for name, inject in list(KILL_POINTS.items())[: kills - done]:
            number = lab.random.randint(1, 6)
            outcome = lab.start("saving", partial(inject, number))
            assert outcome.code == KILLED, f"{name}: {outcome.output}"
            done += 1
            newest = newest_step(lab.path("saving"))
            assert newest >= 5 * (number - 1), f"{name}: a committed checkpoint was lost"
            if newest == 0:
                lab.remove("saving")
                lab.start("saving")
                lab.assert_same_as_baseline("saving")
            else:
                lab.finish("saving")
            lab.remove("saving")
    return Result(f"kill -9 during a save: {', '.join(KILL_POINTS)}", done, "no checkpoint lost; bit-identical")


def kills_in_retention(lab: Laboratory, times: int) -> Result:
    """Kill runs while they remove an old checkpoint."""
    keep = ["checkpoint.keep_last=2", "checkpoint.keep_best=false"]
    done = 0
    for number in (1, 2, 4)[:times]:  # of the removal
        inject = partial(at_call, shutil, "rmtree", number, kill_this_process, only=".removed")
        outcome = lab.start("kept", inject, settings=keep)
        assert outcome.code == KILLED, outcome.output
        assert newest_step(lab.path("kept")) >= 10
        lab.finish("kept")
        assert [step for step, _ in store.list_checkpoints(lab.path("kept"))] == [35, 40]
        lab.remove("kept")
        done += 1
    return Result("kill -9 while an old checkpoint is removed (keep_last = 2)", done, "the newest two are intact")


def files_are_flushed_before_the_rename(lab: Laboratory, bug: Callable[[], None] = lambda: None) -> bool:
    """Return whether all four files of every checkpoint are flushed before the rename, by the order of the calls."""
    log = lab.folder / "order"

    def inject() -> None:
        bug()
        flush, rename = files.flush_file, Path.rename

        def log_call(text: str) -> None:
            with log.open("a") as file:
                file.write(text + "\n")

        def flush_file(path: Path) -> None:
            log_call(f"flush {path.name}")
            flush(path)

        def renamed(self: Path, target: Path) -> Path:
            log_call("rename" if self.name.startswith(".step_") else "other")
            return rename(self, target)

        files.flush_file = flush_file
        Path.rename = renamed  # type: ignore[method-assign,assignment]

    outcome = lab.start("order", inject)
    assert outcome.code == 0, outcome.output
    lines, ordered = log.read_text().split("\n"), True
    log.unlink()
    lab.remove("order")
    for place, line in enumerate(lines):
        if line == "rename":
            before = {word.removeprefix("flush ") for word in lines[max(0, place - 4) : place]}
            ordered = ordered and before == set(CHECKPOINT_FILES)
    return ordered


def flush_order(lab: Laboratory, times: int) -> Result:
    """Record the order of flushes and renames."""
    assert files_are_flushed_before_the_rename(lab)
    return Result("flushes and renames in each save", 1, "all four files flushed before the rename")
