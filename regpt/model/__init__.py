"""Floor 2: the model, its loss and its optimizer. torch; knows no files, no ranks, no clock."""
