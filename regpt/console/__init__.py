"""Print lines and, in a terminal, progress bars while a command runs."""
