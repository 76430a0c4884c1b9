"""A Slurm of shell scripts on this machine: jobs run in the background, at once, and may be queued again."""

import os
import shutil
from pathlib import Path

import psutil
import pytest

# A job is a shell in a session of its own. `scontrol requeue` starts its script again when it has ended.
SBATCH = r"""#!/bin/bash
echo >>"$FAKE_SLURM/count"
number=$(($(cat "$FAKE_SLURM/first") + $(wc -l <"$FAKE_SLURM/count") - 1))
cp "${@: -1}" "$FAKE_SLURM/script.$number"
export SLURM_JOB_ID=$number
setsid bash -c '
    echo $$ >"$FAKE_SLURM/shell.$SLURM_JOB_ID"
    while true; do
        bash "$FAKE_SLURM/script.$SLURM_JOB_ID"
        rm "$FAKE_SLURM/again.$SLURM_JOB_ID" || break
    done
    touch "$FAKE_SLURM/ended.$SLURM_JOB_ID"
' >>"$FAKE_SLURM/log" 2>&1 </dev/null &
echo "Submitted batch job $number"
"""
SRUN = r"""#!/bin/bash
while [[ $1 == --* ]]; do
    [[ $1 == --output ]] && exec >>"${2//%j/$SLURM_JOB_ID}"
    [[ $1 == --unbuffered ]] && shift || shift 2
done
exec "$@"
"""
SCONTROL = '#!/bin/bash\n[[ $1 == requeue ]] && touch "$FAKE_SLURM/again.$2"\n'
SACCT = r"""#!/bin/bash
echo "JobID|State|NodeList"
while [[ $# -gt 0 ]]; do
    if [[ $1 == -j && -e "$FAKE_SLURM/script.$2" ]]; then
        state=RUNNING
        [[ -e "$FAKE_SLURM/ended.$2" ]] && state=COMPLETED
        echo "$2|$state|localhost"
    fi
    shift
done
"""


class FakeSlurm:
    """The state of the fake cluster. No two have jobs of the same number: submitit remembers which have ended."""

    clusters = 0

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        FakeSlurm.clusters += 1
        self.first = 1000 * FakeSlurm.clusters  # number of the first job
        (folder / "first").write_text(str(self.first))
        for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL), ("sacct", SACCT)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        assert shutil.which("setsid")
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_SLURM", str(folder))

    @property
    def scripts(self) -> list[str]:
        """The scripts of all jobs that were submitted."""
        return [path.read_text() for path in sorted(self.folder.glob("script.*"))]

    def signal_job(self, number: int, signal: int) -> None:
        """Send a signal to all processes of a job but the shell of its script, as Slurm does before a time limit."""
        shell = psutil.Process(int((self.folder / f"shell.{number}").read_text()))
        for process in shell.children(recursive=True):
            if process.name() != "bash":
                process.send_signal(signal)
