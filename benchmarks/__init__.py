"""What is measured, against whom. `make bench` runs all of it and writes results.md with machine and date."""
