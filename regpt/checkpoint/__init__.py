"""Checkpoints: their format, verification and asynchronous writing."""
