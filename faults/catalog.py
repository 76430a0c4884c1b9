"""All experiments, in the order of docs/faults.md."""

from faults import damage, environment, invalid, kills, numerics, ranks, self_test, stops
from faults.laboratory import Experiment

EXPERIMENTS = (
    Experiment(kills.kills_in_training, times=100, quick=True),
    Experiment(kills.kills_in_saving, times=30, quick=True),
    Experiment(stops.ctrl_c_at_steps, times=8, quick=True),
    Experiment(stops.sigterm_in_each_phase, times=4),
    Experiment(stops.sigterm_twice, times=1),
    Experiment(stops.sigterm_during_preparation, times=1),
    Experiment(environment.no_prefetch, times=1),
    Experiment(environment.slow_saves, times=1),
    Experiment(kills.kills_in_retention, times=3),
    Experiment(environment.full_disk, times=1),
    Experiment(damage.damaged_files, times=20, quick=True),
    Experiment(damage.all_damaged, times=1),
    Experiment(damage.hostile_checkpoints, times=1),
    Experiment(environment.clock_jumps, times=1),
    Experiment(environment.two_writers, times=1),
    Experiment(damage.older_format, times=1),
    Experiment(numerics.nan_losses, times=1),
    Experiment(numerics.loss_spike, times=1),
    Experiment(kills.flush_order, times=1),
    Experiment(environment.truncated_journal, times=1, quick=True),
    Experiment(environment.closed_output, times=1),
    Experiment(environment.unwritable_journal, times=1),
    Experiment(environment.failing_tracker, times=1),
    Experiment(invalid.invalid_settings, times=1),
)
# Several processes under torchrun: not part of the test suite, whose own tests cover ranks.
RANK_EXPERIMENTS = (
    Experiment(ranks.killed_ranks, times=10),
    Experiment(ranks.killed_in_phases, times=9),
    Experiment(ranks.signalled_ranks, times=6),
    Experiment(ranks.silent_rank, times=2),
    Experiment(ranks.moved_between_ranks, times=3),
    Experiment(ranks.rank_layouts, times=1),
    Experiment(ranks.nan_on_one_rank, times=1),
)
SELF_TESTS = (
    Experiment(self_test.bug_moments, times=1),
    Experiment(self_test.bug_data_position, times=1),
    Experiment(self_test.bug_hashes, times=1),
    Experiment(self_test.bug_guard_window, times=1),
    Experiment(self_test.bug_flush_order, times=1),
)
ALL = (*EXPERIMENTS, *RANK_EXPERIMENTS, *SELF_TESTS)
