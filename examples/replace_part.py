"""Replace one part of the model, the MLP, and compare the run with the unchanged recipe.

python examples/replace_part.py [section.key=value ...]

GPT's blocks look up their parts in regpt.model.gpt when a model is built, so a class put there is used for training,
evaluation and sampling in this process. A change that lasts belongs in regpt/model with a setting of its own
(CONTRIBUTING.md shows how): only then recipe and report know about it.
"""

import sys
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

import regpt
from regpt.model import gpt
from regpt.recipe.architecture import ModelRecipe


class SquaredReLUMLP(nn.Module):
    """Position-wise feed-forward with relu(x)² (So et al. 2021, arXiv 2109.08668).  (B, T, C) -> (B, T, C)

    The layer `up` is called `expand` in regpt's own MLP: with another name, a process that does not know this class
    refuses the checkpoints instead of reading them as a GELU model.
    """

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.up = nn.Linear(recipe.n_embd, recipe.mlp_hidden, bias=recipe.bias)
        self.down = nn.Linear(recipe.mlp_hidden, recipe.n_embd, bias=recipe.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.up(x)).square()
        return self.down(hidden)  # type: ignore[no-any-return]


def main(*overrides: str) -> None:
    """Train with GELU, then with squared ReLU, and compare the two runs."""
    recipe = regpt.load_recipe(
        "demo-modern",
        ["model.activation=gelu", "model.mlp_hidden=512", "evaluation.hellaswag_every=0", *overrides],
    )
    gelu = regpt.train(recipe, Path("runs") / "gelu")
    original, gpt.MLP = gpt.MLP, SquaredReLUMLP  # type: ignore[misc, assignment]
    try:
        squared = regpt.train(recipe, Path("runs") / "squared-relu")
    finally:
        gpt.MLP = original  # type: ignore[misc]
    for run in (gelu, squared):
        print(f"{run.id}: validation loss {run.validation_loss:.4f}")
    print(f"comparison: {regpt.compare(squared, gelu)}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except regpt.UserError as error:
        sys.exit(f"error: {error}")
