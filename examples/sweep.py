"""Train the same recipe with several learning rates and print the validation loss of each.

python examples/sweep.py [section.key=value ...]

One seed for each rate shows a trend, not a proof: repeat it with other values of run.seed before you trust a small
difference. Finished runs are kept in runs/ and are not trained again.
"""

import sys
from pathlib import Path

import regpt

RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def main(*overrides: str) -> None:
    runs = []
    for rate in RATES:
        recipe = regpt.load_recipe(
            "demo-modern",
            [f"optimizer.max_lr={rate}", f"optimizer.min_lr={rate / 10}", "evaluation.hellaswag_every=0", *overrides],
        )
        path = Path("runs") / f"sweep-{rate:g}"
        runs.append(regpt.open_run(path) if path.exists() else regpt.train(recipe, path))
        print(f"max_lr {rate:g}: validation loss {runs[-1].validation_loss:.4f}")
    best = min(runs, key=lambda run: run.validation_loss or float("inf"))
    print(f"lowest: {best.id}; comparison of all: {regpt.compare(*runs, html=True)}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except regpt.UserError as error:
        sys.exit(f"error: {error}")
