"""What `regpt data show` says about a dataset. Imports no PyTorch."""
