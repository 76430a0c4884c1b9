"""Estimate the memory, time, energy, cost and disk space of a run."""
