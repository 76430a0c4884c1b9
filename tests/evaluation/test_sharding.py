"""Work is dealt to ranks completely, in rounds of one piece per rank."""

import numpy as np
import pytest
import torch

from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.sharding import gather_pieces, shares_of_rank
from regpt.model.evaluation_mode import evaluation_mode


class PlannedGroup(RankGroup):
    """One of several ranks, which knows what the others would send."""

    def __init__(self, rank: int, by_rank: np.ndarray) -> None:
        super().__init__()
        self.rank, self.size, self.by_rank = rank, len(by_rank), by_rank

    def all_gather(self, values: np.ndarray) -> np.ndarray:
        np.testing.assert_array_equal(values, self.by_rank[self.rank])
        return self.by_rank


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("pieces", [0, 1, 2, 3, 7, 8])
def test_shares_contain_every_piece_once_and_gather_in_order(pieces: int, ranks: int) -> None:
    groups = [PlannedGroup(rank, np.zeros((ranks, 0))) for rank in range(ranks)]
    shares = [shares_of_rank(pieces, group) for group in groups]
    assert len({len(of_rank) for of_rank in shares}) == 1  # the same number of rounds on every rank
    own = [share.piece for of_rank in shares for share in of_rank if not share.is_repeat]
    assert sorted(own) == list(range(pieces))
    assert all(share.piece == pieces - 1 for of_rank in shares for share in of_rank if share.is_repeat)
    results = np.array([[[share.piece, 10 * share.piece] for share in of_rank] for of_rank in shares])
    for rank in range(ranks if pieces else 0):
        gathered = gather_pieces(results[rank], pieces, PlannedGroup(rank, results))
        assert gathered.tolist() == [[piece, 10 * piece] for piece in range(pieces)]


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_returns_to_the_earlier_mode_after_an_error(training: bool) -> None:
    model = torch.nn.Dropout().train(training)
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not model.training
        raise KeyError
    assert model.training is training
