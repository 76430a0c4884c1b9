"""Run `regpt prepare`, and die without warning at the so-manieth call of a function of its own.

    python -m tests.helpers.killed_preparation CALLS WORD …

WORD … are the command's. A kill falls anywhere between two calls: before and after a write, a flush, a rename.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any

from regpt.base import files
from regpt.cli.main import main
from regpt.data import shards
from regpt.prepare import dataset, hub, job, sections, shard_writer, state

OURS = {module.__file__ for module in (files, hub, state, job, dataset, sections, shards, shard_writer)}


class Killer:
    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "return") and frame.f_code.co_filename in OURS:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sections.SECTION_BYTES = 10_000  # many sections of little text
    job.SAVE_EVERY_SECONDS = 0.0
    killer = Killer(int(sys.argv[1]))
    sys.setprofile(killer)
    code = main(sys.argv[2:])
    sys.setprofile(None)
    print(f"calls left: {killer.left}")
    sys.exit(code)
