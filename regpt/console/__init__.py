"""What commands print while they work: lines, and in a terminal a progress bar."""
