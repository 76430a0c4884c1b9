"""Floor 5: a rehearsal before a run. Trains, saves, kills and uses a small copy of what a recipe asks for."""
