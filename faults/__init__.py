"""Experiments in what a run survives. `make faults` carries them all out and writes docs/faults.md."""
