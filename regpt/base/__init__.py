"""Errors, files, recipes and formats. Imports neither NumPy nor PyTorch."""
