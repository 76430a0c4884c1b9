"""Run `regpt prepare`, and kill the process at the nth call or return of a function of regpt/preparation.

    python -m tests.helpers.killed_preparation CALLS WORD …

WORD … are the arguments of regpt. Kills occur before and after each write, flush and rename.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any

from regpt.base import files
from regpt.cli.main import main
from regpt.corpus import chunks, parquet, text_files
from regpt.data import shard_writer, shards
from regpt.preparation import dataset, downloads, hub, job, split, state

OURS = {
    module.__file__
    for module in (files, hub, downloads, state, job, dataset, chunks, text_files, parquet, shards, shard_writer, split)
}


class Killer:
    """A profile function that kills this process after `calls` calls and returns."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "return") and frame.f_code.co_filename in OURS:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    chunks.CHUNK_BYTES = 10_000  # many chunks of little text
    job.SAVE_SECONDS = 0.0
    killer = Killer(int(sys.argv[1]))
    sys.setprofile(killer)
    code = main(sys.argv[2:])
    sys.setprofile(None)
    print(f"calls left: {killer.left}")
    sys.exit(code)
