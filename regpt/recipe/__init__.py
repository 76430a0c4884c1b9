"""Recipes: every setting of a run, its check, and the files that hold them."""
