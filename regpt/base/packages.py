"""Optional packages: whether they are installed."""

import importlib.util


def is_installed(package: str) -> bool:
    """Return whether a package can be imported. An empty folder of its name in the current folder does not count."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
