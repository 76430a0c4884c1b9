"""Floor 1: from text to batches of tokens. numpy, no torch."""
