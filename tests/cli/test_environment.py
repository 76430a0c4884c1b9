"""Commands work, or say in one line what is wrong, in an environment that is not the usual one."""

import os
import platform
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from regpt.cli.main import main
from regpt.machine.env import ignore_empty_terminal_size, use_huge_pages

PYTHON_M_REGPT = [sys.executable, "-m", "regpt"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | variables
    command = ["sh", "-c", words.replace("REGPT", f"{sys.executable} -m regpt")]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, check=False)


def test_command_runs_without_docstrings_and_assertions(tmp_path: Path) -> None:
    ended = shell("REGPT recipe list && REGPT --help | head -1", tmp_path, PYTHONOPTIMIZE="2", PYTHONWARNINGS="error")
    assert ended.returncode == 0 and ended.stderr == b""


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_command_runs_with_closed_streams(tmp_path: Path, streams: str) -> None:
    ended = shell(f"REGPT recipe list {streams}", tmp_path)
    assert ended.returncode == 0 and b"Traceback" not in ended.stderr + ended.stdout


def test_output_on_a_full_disk_is_an_error(tmp_path: Path) -> None:
    ended = shell("REGPT recipe list > /dev/full", tmp_path)
    assert ended.returncode == 2 and ended.stderr.startswith(b"error: No space left on device")


def test_text_setting_in_utf8_is_read_in_a_locale_of_ascii(tmp_path: Path) -> None:
    words = [*PYTHON_M_REGPT, "recipe", "show", "demo-modern", "evaluation.sample_prompt=h\u00e9 \U0001f642"]
    shown = subprocess.run(words, env={**os.environ, **ASCII, "PYTHONIOENCODING": "utf-8"}, capture_output=True)
    assert 'sample_prompt = "h\u00e9 \U0001f642"'.encode() in shown.stdout


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["train", "demo-modern", "evaluation.sample_prompt=a\udcff"], "evaluation.sample_prompt = 'a\\udcff'"),
        (["train", "demo-modern", "--name", "a\udcff"], "--name 'a\udcff'"),
    ],
)
def test_bytes_that_are_not_utf8_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], names: str
) -> None:
    monkeypatch.chdir(tmp_path)
    errors = StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    assert main(words) == 2
    assert names in errors.getvalue() and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("columns", ["0", "00", ""])
def test_terminal_of_no_width_prints_in_the_usual_one(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", "0")
    ignore_empty_terminal_size()
    text = StringIO()
    console = Console(file=text)
    console.print("step 1")
    assert text.getvalue() == "step 1\n" and console.size.height > 0


@pytest.mark.skipif(sys.platform != "linux", reason="advises Linux")
def test_large_tensors_of_a_command_ask_for_huge_pages(tmp_path: Path) -> None:
    """The flag hg of a mapping (proc(5), smaps) says that it was asked for, whether or not the kernel gives them."""
    code = """if True:
        import sys
        from pathlib import Path
        from regpt.cli.main import main
        main(["recipe", "list"])
        import torch
        tensor = torch.ones(1 << 23)
        mappings = Path("/proc/self/smaps").read_text().split("VmFlags:")
        sys.exit(not any(" hg" in flags.splitlines()[0] for flags in mappings[1:]))"""
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks the GNU C library")
@pytest.mark.parametrize(("variables", "keeps"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "1000000"}, False)])
def test_run_on_a_cpu_reuses_the_memory_of_freed_tensors(variables: dict[str, str], keeps: bool) -> None:
    """Unless the user has set how memory is kept. 16 MiB are 4,096 pages."""
    code = """if True:
        import resource
        import torch
        from regpt.machine.device import open_device
        from regpt.recipe.run_settings import RunRecipe
        open_device(RunRecipe(device="cpu", precision="float32"))
        def faults():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            before = faults()
            torch.empty(1 << 22).fill_(1.0)
        print(faults() - before)"""
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0", **variables}
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, check=True)
    assert (int(run.stdout) < 400) is keeps


def test_huge_pages_that_the_user_turned_off_stay_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
