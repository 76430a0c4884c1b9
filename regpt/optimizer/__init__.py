"""The optimizer: which parameters it updates how, and the schedule of its learning rates."""
