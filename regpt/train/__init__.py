"""Floor 3: a run: device, disk and time."""
