"""The model and its loss."""
