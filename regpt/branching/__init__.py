"""Branches of a run: a new run that begins at a checkpoint of another one and cools down from there."""
