"""Imported once by the process from which helpers/ranks.py forks ranks: what every rank would otherwise do again."""

# ruff: noqa: F401

import torch

import regpt.cli.main
import regpt.training.reproduce
import tests.conftest
from regpt.data import tokenizer
from regpt.machine.device import peak_rate

torch.set_num_threads(1)  # a process with more threads cannot be forked safely
tokenizer.bytes_of_tokens()
peak_rate(torch.device("cpu"), torch.float32)
