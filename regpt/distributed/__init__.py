"""Processes, devices, signals and what several ranks share."""
