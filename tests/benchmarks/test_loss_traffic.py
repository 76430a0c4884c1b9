"""The loss moves as few bytes as promised."""

import pytest
import torch

from benchmarks.loss_traffic import GOAL, compiled_bytes, kernel_bytes, uncompiled_bytes


def test_uncompiled_loss_moves_few_bytes_a_logit() -> None:
    """By hand: product 2, copy 2 + 4, softmax 8, cast 4 + 2, products 4; float32: product 4, softmax 8, products 8."""
    assert uncompiled_bytes(torch.bfloat16) == (10, 26)
    assert uncompiled_bytes(torch.float32) == (20, 20)


@pytest.mark.compile
def test_compiled_loss_moves_few_bytes_a_logit() -> None:
    assert 12 <= compiled_bytes(torch.bfloat16) <= GOAL


def test_code_of_another_form_is_not_counted_as_nothing() -> None:
    with pytest.raises(SystemExit, match="nothing was counted"):
        kernel_bytes("for (;;) {}")
