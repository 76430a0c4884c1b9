"""`regpt serve` in a process of its own."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import wait_until
from tests.helpers.forked import Program


@contextlib.contextmanager
def served(root: Path, *words: str) -> Iterator[tuple[Program, int]]:
    """Start `regpt serve` on a free port; yield the process and the port.

    It is not forked from a process with torch, as other commands: without torch it starts in a second.
    """
    printed = root.parent / "printed"
    command = [sys.executable, "-m", "regpt", "serve", "--runs", str(root), "--port", "0", *words]
    with printed.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        program = Program(process, printed)
        try:
            wait_until(lambda: "Ctrl-C" in program.output() or process.poll() is not None, 60)
            found = re.search(r"http://\S+:(\d+)/", program.output())
            assert found, program.output()
            yield program, int(found[1])
        finally:
            process.kill()
