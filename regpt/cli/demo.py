"""`regpt demo`: the whole way in miniature, from text to report, on the embedded corpus."""

from collections.abc import Sequence
from pathlib import Path

from regpt.base.errors import DONE
from regpt.comparison.page import default_directory, write_comparison
from regpt.console.training import Console
from regpt.fairness.baselines import open_baseline
from regpt.fairness.loading import load_models
from regpt.recipe.settings import load_recipe
from regpt.reporting.page import write_page, write_report
from regpt.tracking.run import open_run
from regpt.training.start import start_training

RECIPES = ("demo-classic", "demo-modern", "demo-next")  # the report is about the last one, compared with the others


def demo(root: Path, overrides: Sequence[str] = ()) -> int:
    """Prepare, train the three miniatures and compare them; return the exit code.

    The last two lines name report and comparison, each as Markdown and as a page.
    """
    recipes = [load_recipe(name, overrides) for name in RECIPES]
    number = next(n for n in range(1, 1_000_000) if not any(path_of(root, name, n).exists() for name in RECIPES))
    runs = [path_of(root, name, number) for name in RECIPES]
    for recipe, run in zip(recipes, runs, strict=True):
        result = start_training(recipe, run, console=Console(), handle_signals=True)
        if result.stopped_by:
            return result.exit_code
    others = [open_baseline(str(run), root) for run in runs[:-1]]
    for other in others:
        assert other.run is not None
        write_report(other.run, [])
    last = open_run(runs[-1])
    report = [write_report(last, others), write_page(last, others)]
    models = load_models([run.name for run in reversed(runs)], root)
    comparison = write_comparison(models, default_directory(models, root.parent), html=True)
    for name, written in (("report", report), ("comparison", comparison)):
        print(f"{name}: {' and '.join(map(str, written))}")
    return DONE


def path_of(root: Path, name: str, number: int) -> Path:
    """The first demo's runs bear the recipes' names, later ones a number as well."""
    return root / (name if number == 1 else f"{name}-{number}")
