"""Floor 4: what can be made of a run directory, live, finished or copied."""
