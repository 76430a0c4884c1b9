"""Figures need no matplotlib backend, so MPLBACKEND does not matter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "regpt"
IMPORT = """
import os
from regpt.rendering.matplotlib_import import Figure, matplotlib
print(os.environ["MPLBACKEND"], matplotlib.rcParams._get_backend_or_none())
"""


@pytest.mark.parametrize(
    ("backend", "used_later"),
    [("module://matplotlib_inline.backend_inline", None), ("nonsense", None), ("svg", "svg")],
    ids=["notebook", "nonsense", "svg"],
)
def test_matplotlib_is_imported_with_any_mplbackend(backend: str, used_later: str | None) -> None:
    """A valid one is still used for the user's own figures."""
    environment = {**os.environ, "MPLBACKEND": backend}
    printed = subprocess.check_output([sys.executable, "-c", IMPORT], env=environment, text=True)
    assert printed.split() == [backend, str(used_later)]


def test_matplotlib_is_imported_in_one_module() -> None:
    lines = re.compile(r"^\s*(?:import|from) matplotlib", re.MULTILINE)
    found = [path.name for path in PACKAGE.rglob("*.py") if lines.search(path.read_text(encoding="utf-8"))]
    assert found == ["matplotlib_import.py"]
