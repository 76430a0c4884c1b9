"""Errors, files, formats and cards. Imports neither NumPy nor PyTorch."""
