"""Floor 5: before a run. What it will take, reckoned; and a rehearsal of all that it will do."""
