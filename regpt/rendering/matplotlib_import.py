"""The parts of matplotlib that figures use. All other modules import them from here.

Figures need no pyplot and so no backend. Notebooks export MPLBACKEND to their shells, and importing matplotlib fails if
that backend is not installed.
"""

from regpt.machine.env import without_matplotlib_backend

with without_matplotlib_backend():
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

__all__ = [
    "Axes",
    "Figure",
    "FixedLocator",
    "FuncFormatter",
    "Line2D",
    "MaxNLocator",
    "NullFormatter",
    "NullLocator",
    "matplotlib",
    "to_hex",
]
