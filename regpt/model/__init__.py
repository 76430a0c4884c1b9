"""The model, its loss and its optimizer."""
