"""Measure the time of a token of every arm on this machine, one arm at a time, before an ablation at equal time.

`regpt bench` trains the arm for a few steps on synthetic tokens after a warm-up. The figures are stored, so that an
ablation that continues has the same numbers of steps.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from regpt.ablation.design import RUNS_DIR, Design, Trial
from regpt.ablation.equality import Equal, Speed
from regpt.ablation.workers import Executor, Workers
from regpt.base.errors import UserError
from regpt.base.files import write_json
from regpt.data.shards import read_json_or_empty

CALIBRATION_FILE = "calibration.json"
SECONDS = 10.0  # of timed steps, at least three


def with_stored_speeds(folder: Path, design: Design) -> Design:
    """Return the design with the speeds that were measured in a folder; without any if it has none."""
    stored = read_json_or_empty(folder / CALIBRATION_FILE)
    return replace(design, speeds={name: Speed(**values) for name, values in stored.items()})


def calibrated(
    folder: Path,
    design: Design,
    executor: Executor,
    finished: Callable[[str, Speed], None],
    check_stop: Callable[[], None],
) -> Design:
    """Return the design with the speed of every arm, of which missing ones are measured; unchanged at other equalities.

    Raises UserError with the last line of a measurement that fails.
    """
    if design.equal is not Equal.TIME:
        return design
    speeds = dict(with_stored_speeds(folder, design).speeds)
    for arm in design.arms:
        if arm.is_null or arm.name in speeds:
            continue
        task = partial(measure, folder, replace(design, speeds={}), arm.name)
        measured = executor.run_all({f"bench-{arm.name}": task}, lambda _, speed: None, check_stop)
        (speeds[arm.name],) = measured.values()
        finished(arm.name, speeds[arm.name])
        write_json(folder / CALIBRATION_FILE, {name: asdict(speed) for name, speed in speeds.items()})
    return replace(design, speeds=speeds)


def measure(folder: Path, design: Design, arm: str, workers: Workers, place: str) -> Speed:
    """Measure an arm with `regpt bench` in a process of its own."""
    file, runs = folder / f".bench-{arm}.json", folder / RUNS_DIR
    runs.mkdir(exist_ok=True)
    settings = design.words_of(Trial(arm, design.seeds[0]))
    options = ["--steps-only", "--seconds", str(SECONDS), "--runs", str(runs), "--json", str(file)]
    words = ["bench", *options, design.recipe, *settings]
    code, output = workers.call(words, f"bench of {arm}", place)
    if code:
        last = output.strip().splitlines()[-1:] or [f"exit code {code}"]
        raise UserError(f"bench of arm {arm} failed: {last[0]}", f"see: regpt {' '.join(words)}")
    found = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    share = found["other_programs_share"]
    is_on_cpu = found["machine"]["type"] == "cpu"
    return Speed(1.0 / found["tokens_per_second"]["median"], -1.0 if share is None else share, is_on_cpu)
