"""Statistical tests between two runs. Imports no PyTorch."""
