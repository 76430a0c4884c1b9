"""A run's trained model, ready for use on the CPU."""

from pathlib import Path

from regpt.base.settings import load_recipe
from regpt.model.gpt import GPT
from regpt.run import checkpoint


def load_model(run: Path) -> GPT:
    """The model of a run's newest whole checkpoint, in evaluation mode, float32."""
    path = checkpoint.newest(run)
    model = GPT(load_recipe(run / "recipe.toml").model)
    checkpoint.load_weights(path, model)
    return model.eval()
