"""Benchmarks against other programs. `make bench` runs all of them, adds to history.json, and writes results.md."""
