"""The short form of `make faults`, in a process of its own, because it forks."""

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="the experiments fork")
@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_run_survives_the_short_form_of_every_kind_of_fault() -> None:
    words = [sys.executable, "-m", "faults", "--quick"]
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "11 passed, 0 failed" in process.stdout
