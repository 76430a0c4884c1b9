"""Compare an exported model, read back from the disk, with the model that was exported."""

import torch
from torch import nn

from regpt.base.errors import UserError
from regpt.export.precision import Precision
from regpt.model.gpt import GPT

POSITIONS = 64  # of each of two rows of tokens
SMALLEST_DEVIATION = 1e-6  # of logits that are all equal, as those of a head of zeros


class ReadBackError(UserError):
    """The exported model does not give the logits of the model."""


def check_read_back(model: GPT, again: nn.Module, rows: int, precision: Precision, end_of_text: frozenset[int]) -> None:
    """Raise ReadBackError if the logits of `again` differ by more than rounding to a precision explains.

    `again` returns logits of the first `rows` of the vocabulary. The tokens have no end of text, after which a model
    with document_mask sees less than the exported one.
    """
    error = error_of_logits(model, again, rows, end_of_text)
    if error <= precision.bound:
        return
    remedy = "please report this with the recipe"
    if precision is not Precision.FLOAT32:
        remedy = f"export with --dtype {Precision.FLOAT32}"
    raise ReadBackError(
        f"nothing was exported: read back from the disk, the model's logits differ by {error:.2g} of their standard"
        f" deviation; rounding to {precision} explains up to {precision.bound:.2g}",
        remedy,
    )


@torch.no_grad()
def error_of_logits(model: GPT, again: nn.Module, rows: int, end_of_text: frozenset[int]) -> float:
    """Return the error of the logits of `again`, in standard deviations of those of `model`: RMS, median of positions.

    The median, because in a mixture of experts rounding can send a few tokens to other experts.
    """
    device, length = model.token_embedding.weight.device, min(POSITIONS, model.recipe.block_size)
    usable = torch.tensor([token for token in range(rows) if token not in end_of_text])
    drawn = torch.randint(len(usable), (2, length), generator=torch.Generator().manual_seed(0))
    tokens = usable[drawn]
    expected = model(tokens.to(device))[..., :rows].float().cpu()  # (2, T, V)
    errors = (again(tokens).float() - expected).square().mean(-1).sqrt()
    deviations = expected.std(-1).clamp(min=SMALLEST_DEVIATION)
    return float((errors / deviations).nan_to_num(nan=torch.inf).median())
