"""Measure regpt on a GPU: correctness, speed and memory, on one card, in one command.

    python -m benchmarks.gpu --out DIR --budget 470

Runs from a checkout, without installation and without a network. `docs/gpu.md` says what each section measures.
"""
