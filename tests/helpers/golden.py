"""Compare text with the committed files in tests/golden.

`make golden` writes the files again. Read the difference in `git diff` before you commit it.
"""

import difflib
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "golden"

# Set by conftest.py from --update-golden.
update = False


def assert_golden(name: str, text: str) -> None:
    """Assert that `text` equals the file tests/golden/NAME byte for byte.

    With --update-golden, write the file instead. Nothing is normalized: the caller replaces times, paths and hashes.
    """
    path = FOLDER / name
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return
    assert path.exists(), f"tests/golden/{name} does not exist; `make golden` writes it"
    expected = path.read_bytes().decode()
    if text != expected:
        before, after = (string.splitlines(keepends=True) for string in (expected, text))
        lines = difflib.unified_diff(before, after, f"tests/golden/{name}", "the program's text")
        # repr shows a difference in spaces or line ends, which the terminal hides.
        difference = "\n".join(line[0] + repr(line[1:])[1:-1] for line in lines)
        raise AssertionError(f"The text differs from the golden file (`make golden` accepts it):\n{difference}")
