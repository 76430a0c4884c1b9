"""Ablations: the effect of changes to a recipe, over seeds, with an interval."""
