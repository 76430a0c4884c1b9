"""Share the work of an evaluation among ranks, and evaluate a model without changing it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from numpy.typing import NDArray

from regpt.distributed.rank_group import RankGroup

ReportProgress = Callable[[int, int], None]  # (done, total); may raise to stop the work


def ignore_progress(done: int, total: int) -> None:
    """Report nothing and never stop."""


class Share(NamedTuple):
    """What one rank computes in one round."""

    piece: int
    is_repeat: bool  # whether no piece was left for this rank; its result is dropped


def shares_of_rank(pieces: int, ranks: RankGroup) -> list[Share]:
    """Deal pieces 0, 1, … to the ranks in turn and return the share of this rank, one for each round.

    Every rank gets the same number of rounds, because a sharded model gathers its weights from all ranks in every
    pass. A rank without a piece in the last round repeats the last piece.
    """
    rounds = -(-pieces // ranks.size)
    dealt = (turn * ranks.size + ranks.rank for turn in range(rounds))
    return [Share(min(piece, pieces - 1), is_repeat=piece >= pieces) for piece in dealt]


def gather_pieces(by_round: NDArray[Any], pieces: int, ranks: RankGroup) -> NDArray[Any]:
    """Gather the results of all ranks in the order of the pieces.  (rounds, ...) -> (pieces, ...)"""
    by_rank = ranks.all_gather(by_round)  # (ranks, rounds, ...)
    return by_rank.swapaxes(0, 1).reshape(-1, *by_round.shape[1:])[:pieces]
