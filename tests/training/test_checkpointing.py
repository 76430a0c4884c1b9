"""The state of a run besides its weights: what a reset and a checkpoint's state.json give back."""

import json

from regpt.recipe.settings import load_recipe
from regpt.training.checkpointing import TrainState


def used_state() -> TrainState:
    state = TrainState(load_recipe("demo-modern"), "digest")
    state.guard.accept(3.0, 1.0)
    state.guard.reject(5, 5)
    state.guard.exclude([4], rollbacks=1)
    state.training_seconds = 12.5
    return state


def test_train_state_after_a_reset_is_that_of_a_new_run() -> None:
    """A rollback to step 0 resets: the losses of undone steps must not define what is normal."""
    state = used_state()
    state.reset()
    assert state == TrainState(load_recipe("demo-modern"), "digest")


def test_train_state_is_restored_from_what_state_json_stores() -> None:
    stored = json.loads(json.dumps(used_state().to_json(best=None)))
    state = TrainState(load_recipe("demo-modern"), "digest")
    state.restore(stored)
    assert state == used_state()
    assert state.training_seconds == 12.5 and state.guard.losses == [3.0]
