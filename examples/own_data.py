"""Train a small model on your own text, write its report, and let it continue a sentence.

python examples/own_data.py FOLDER [section.key=value ...]

FOLDER holds .txt, .md, .py, .jsonl or .parquet files (or is one such file). It takes about three minutes on two CPU
cores; add run.max_steps=2000 and more text for a better model.
"""

import sys
from pathlib import Path

import regpt


def main(source: str, *overrides: str) -> None:
    name = Path(source).stem or "own-data"
    recipe = regpt.load_recipe(
        "demo-modern",
        [
            f"data.source={source}",
            f"data.path=data/{name}",
            "data.validation_tokens=20000",
            "evaluation.hellaswag_every=0",
            *overrides,
        ],
    )
    run = regpt.train(recipe, Path("runs") / name, progress=True)
    print(f"validation loss: {run.validation_loss:.4f} nats per token after {run.tokens:,} tokens")
    print(f"report: {regpt.report(run, html=True)}")
    print(regpt.generate(run, "The ", tokens=40, seed=1)[0])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except regpt.UserError as error:
        sys.exit(f"error: {error}")
