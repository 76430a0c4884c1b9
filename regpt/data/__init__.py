"""What training reads: token shards, their order, batches. Imports no PyTorch."""
