"""What makes the results of two models comparable, and what may be claimed about their recipes."""
