"""A model with every switch on several ranks."""

import sys
from typing import Any

import pytest

from tests.helpers.parallel_runs import MODES, Workspace, losses
from tests.helpers.switches import ALONE

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun"),
]


@pytest.mark.parametrize("mode", [pytest.param("strict", marks=pytest.mark.nightly), "ddp", "fsdp"])
def test_two_ranks_give_the_losses_of_one(workspace: Workspace, mode: str) -> None:
    every: dict[str, Any] = {name: value for values in ALONE.values() for name, value in values.items()}
    settings = [f"model.{name}={value}" for name, value in every.items()]
    settings += ["run.max_steps=6", "evaluation.validation_every=0"]
    alone = workspace.train(1, f"alone-{mode}", settings)
    two = workspace.train(2, mode, [*settings, *MODES[mode]])
    if mode == "strict":
        assert losses(two) == losses(alone)
    assert losses(two) == pytest.approx(losses(alone), rel=1e-5)
