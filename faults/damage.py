"""Damage checkpoints: flipped bits, truncated and missing files, hostile contents, an older format."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from faults.laboratory import CHECKPOINT_FILES, STEPS, Laboratory, Result, flip_bit, newest_step
from faults.process import run
from regpt.base.files import sha256_of_file
from regpt.checkpoint import store
from regpt.tracking.layout import RunPaths

DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit flipped": flip_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
    "taken from another checkpoint": lambda path: shutil.copy(path.parent.parent / "step_000005" / path.name, path),
}


def damaged_files(lab: Laboratory, times: int) -> Result:
    """Damage the two newest checkpoints; a resume must use the third newest."""
    done = 0
    for file in CHECKPOINT_FILES:
        for name, damage in DAMAGES.items():
            if done == times:
                break
            run_dir = lab.copy("damaged")
            for step in (35, 40):
                damage(RunPaths(run_dir).checkpoint(step) / file)
            outcome = lab.finish("damaged")
            assert "step_000030" in outcome.output, (file, name, outcome.output)
            lab.remove("damaged")
            done += 1
    return Result(
        f"the two newest checkpoints damaged: each file with {', '.join(DAMAGES)}",
        done,
        "reported and not used; bit-identical",
    )


def all_damaged(lab: Laboratory, times: int) -> Result:
    """Damage every checkpoint; a resume must refuse and change nothing."""
    run_dir = lab.copy("hopeless")
    for _, path in store.list_checkpoints(run_dir):
        flip_bit(path / "model.safetensors")
    before = (run_dir / "journal.jsonl").read_bytes()
    outcome = lab.resume("hopeless")
    assert outcome.code == 4 and "Traceback" not in outcome.output, outcome.output
    assert newest_step(run_dir) == 0
    assert (run_dir / "journal.jsonl").read_bytes() == before
    lab.remove("hopeless")
    return Result("all checkpoints damaged", 1, "exit 4; no file changed")


class Payload:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (os.system, (f"touch {self.marker}",))  # type: ignore[return-value]


def hostile_checkpoints(lab: Laboratory, times: int) -> Result:
    """Replace the weights by hostile content with a valid hash; no command may execute it."""
    run_dir = lab.copy("hostile")
    marker = lab.folder / "executed"
    hostile = pickle.dumps(Payload(marker))
    model = RunPaths(run_dir).checkpoint(STEPS) / "model.safetensors"
    done = 0
    for content in (hostile, struct.pack("<Q", 1 << 40) + b"{}", struct.pack("<Q", 8) + b"{broken}"):
        model.write_bytes(content)
        manifest = model.with_name("manifest.json")
        values = json.loads(manifest.read_text())
        values["files"][model.name] = {"bytes": len(content), "sha256": sha256_of_file(model)}
        manifest.write_text(json.dumps(values))
        distributed = RunPaths(run_dir).checkpoint(99)
        distributed.mkdir(exist_ok=True)
        (distributed / ".metadata").write_bytes(hostile)
        (distributed / "__0_0.distcp").write_bytes(hostile)
        runs = ["--runs", str(lab.runs)]
        for arguments in (
            ["resume", "hostile", "run.max_steps=41"],
            ["sample", "hostile", "--tokens", "2"],
            ["export", "hostile", str(lab.folder / "exported")],
            ["checkpoints", "hostile"],
        ):
            outcome = run([*arguments, *runs])
            assert outcome.code == 4 and "Traceback" not in outcome.output, outcome.output
            assert not marker.exists(), "a pickle was loaded"
            done += 1
        assert run(["report", "hostile", *runs]).code == 0
    lab.remove("hostile")
    return Result(
        "a pickle, a header of 2^40 bytes or a DCP folder in place of a checkpoint; every command",
        done,
        "exit 4; no code executed",
    )


def older_format(lab: Laboratory, times: int) -> Result:
    """Mark every checkpoint as written by an older format."""
    run_dir = lab.copy("older")
    for _, path in store.list_checkpoints(run_dir):
        manifest = path / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    outcome = lab.resume("older")
    assert outcome.code == 4, outcome.output
    assert "version 1" in outcome.output and "version 2" in outcome.output, outcome.output
    lab.remove("older")
    return Result("checkpoints of an older format", 1, "exit 4, naming both versions")
