"""A run directory, written and read: journal, status, predictions, trackers. Imports no PyTorch."""
