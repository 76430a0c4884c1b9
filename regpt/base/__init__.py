"""Floor 0: errors, files and recipes. No numpy, no torch."""
