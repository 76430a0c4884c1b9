"""regpt retrains GPT-2 (124M) from nothing and writes down what came out."""

__version__ = "0.2.0"
