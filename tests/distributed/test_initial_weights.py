"""Runs on several ranks that start from the weights of a model."""

import sys

import pytest

from tests.helpers.parallel_runs import MODES, Workspace, losses

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun"),
]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_ranks_start_from_the_weights_that_one_starts_from(workspace: Workspace, mode: str) -> None:
    short = ["run.max_steps=4", "evaluation.sample_every=0", "evaluation.validation_every=4"]
    source = workspace.train(1, f"source-{mode}", short)
    settings = [*short, f"run.init_from=source-{mode}"]
    alone = workspace.train(1, f"alone-{mode}", settings)
    two = workspace.train(2, f"two-{mode}", [*settings, *MODES[mode]])
    assert alone.validations[0].loss == source.validations[-1].loss
    assert two.validations[0].loss == pytest.approx(source.validations[-1].loss, abs=1e-6)
    assert losses(two) == pytest.approx(losses(alone), rel=1e-5)
