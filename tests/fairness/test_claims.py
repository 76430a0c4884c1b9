"""A difference is claimed only where nothing but the recipes differs: 30 unfair pairs of runs, 10 fair ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regpt.fairness.caveats import CaveatKind
from regpt.fairness.checks import find_caveats
from regpt.fairness.claims import Limit, PairedTests, paired_tests
from regpt.fairness.condition_checks import DataOrder, SkippedSteps
from regpt.fairness.loading import load_models
from regpt.fairness.wording import no_claim, significance_lines
from regpt.rendering.markup import MARKDOWN
from regpt.stats.outcome import Outcome, Quantity
from regpt.tracking.window_losses import read_window_losses, write_window_losses
from tests.fairness import test_checks as planted
from tests.helpers.compared_runs import edit_environment, edit_journal, edit_recipe

Plant = Callable[[Path], None]
K = CaveatKind


def setting(old: str, new: str) -> Plant:
    """Change a line of the recipe of run b."""
    return lambda b: edit_recipe(b, old, new)


def add_records(run: Path, *records: dict[str, Any]) -> None:
    with (run / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def insert_event(run: Path, after: int, **event: Any) -> None:
    """Insert an event after the first `after` lines of the journal."""
    path = run / "journal.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines.insert(after, json.dumps({"kind": "event", "at": 2e9, **event}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def moved_schedule(b: Path) -> None:
    """Run b was first to end at step 4, and was resumed to step 6."""
    records = [json.loads(line) for line in (b / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    after = next(n for n, record in enumerate(records) if record["kind"] == "step" and record["step"] == 5)
    insert_event(b, after, event="resumed", step=4, detail={"changed": {"run.max_steps": [4, 6]}})


def skipped_step(b: Path) -> None:
    def skip(record: dict[str, Any]) -> dict[str, Any]:
        if (record["kind"], record.get("step")) != ("step", 2):
            return record
        return {key: record[key] for key in ("step", "tokens", "batch", "seconds")} | {
            "kind": "skipped",
            "reason": "the loss is nan",
        }

    edit_journal(b, skip)


def rolled_back(b: Path) -> None:
    insert_event(b, 1, event="rollback", step=0, detail={"from_step": 3, "excluded_batches": [1, 2]})


def several_epochs(b: Path) -> None:
    """Run b read a shorter text three times, and was validated on the windows of run a."""
    trained_on_other_data(b)
    edit_environment(b, "data", train_tokens=6 * 128 // 3)


def trained_on_other_data(b: Path) -> None:
    """Run b was trained on other data, and evaluated on the windows of run a."""
    a = b.parent / "a"
    evaluated_on_data_of(a, b)
    edit_environment(b, "data", digest="f" * 64)


def evaluated_on_data_of(a: Path, b: Path) -> None:
    """Write what `regpt evaluate b data.path=…` stores."""
    digest = json.loads((a / "environment.json").read_text(encoding="utf-8"))["data"]["digest"]
    last = [json.loads(line) for line in (b / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    record = [entry for entry in last if entry["kind"] == "validation"][-1]
    folder = b / "evaluations" / "step_000006"
    shutil.copy(b / record["path"], folder / f"validation-{digest[:12]}-{record['windows']}.npy")
    task = {
        "loss": record["loss"],
        "standard_error": record["standard_error"],
        "bits_per_byte": record["bits_per_byte"],
        "windows": record["windows"],
        "block_size": 32,
        "data": digest,
    }
    results = {"model": "b at step 6", "tokens": 768, "step": 6, "tasks": {"validation": task}}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


# What makes a pair unfair, and the caveats that must name it.
UNFAIR: dict[str, tuple[Plant, CaveatKind]] = {
    "sequential order": (setting('order = "shuffled"', 'order = "sequential"'), K.OTHER_ORDER),
    "seed": (setting("seed = 1337", "seed = 1338"), K.OTHER_SEED),
    "half the batch": (setting("total_batch_tokens = 128", "total_batch_tokens = 64"), K.OTHER_BATCH),
    "twice the batch": (setting("total_batch_tokens = 128", "total_batch_tokens = 256"), K.OTHER_BATCH),
    "twice the tokens": (setting("total_batch_tokens = 128", "total_batch_tokens = 256"), K.OTHER_TOKENS),
    "other training data": (trained_on_other_data, K.OTHER_TRAINING_DATA),
    "several epochs": (several_epochs, K.OTHER_EPOCHS),
    "a resume that moved the schedule": (moved_schedule, K.MOVED_SCHEDULE),
    "a skipped step": (skipped_step, K.SKIPPED_STEPS),
    "a rollback": (rolled_back, K.SKIPPED_STEPS),
    "stopped early": (planted.unfinished, K.UNFINISHED),
    "another dataset": (planted.other_data, K.OTHER_DATA),
    "another tokenizer": (planted.other_tokenizer, K.OTHER_TOKENIZER),
    "an unknown tokenizer": (planted.unknown_tokenizer, K.UNKNOWN_TOKENIZER),
    "other windows": (planted.other_windows, K.OTHER_WINDOWS),
    "another context length": (planted.other_block, K.OTHER_BLOCK_SIZE),
    "bfloat16": (planted.other_precision, K.OTHER_PRECISION),
    "no validation": (planted.not_validated, K.MISSING_LOSS),
    "a lower loss before the end": (planted.lower_loss_at_step_3, K.LAST_ABOVE_BEST),
}
UNFAIR_SCORES: dict[str, tuple[Plant, CaveatKind]] = {
    "all items": (planted.full_set, K.SUBSET_AND_FULL_SET),
    "other items": (planted.other_items, K.OTHER_ITEMS),
    "another metric": (planted.other_metric, K.OTHER_METRIC),
    "other prompts": (planted.other_prompts, K.OTHER_PROMPTS),
    "no score": (planted.not_scored, K.MISSING_SCORE),
    "an earlier score": (planted.scored_earlier, K.EARLIER_SCORE),
    "truncated contexts": (planted.truncated_contexts, K.TRUNCATED_CONTEXTS),
    "sequential order": (setting('order = "shuffled"', 'order = "sequential"'), K.OTHER_ORDER),
    "another seed": (setting("seed = 1337", "seed = 1338"), K.OTHER_SEED),
}
UNFAIR_SPEED: dict[str, tuple[Plant, CaveatKind]] = {
    "another device": (planted.other_device, K.OTHER_DEVICE),
    "torch.compile": (planted.compiled, K.OTHER_COMPILE),
}
FAIR: dict[str, Plant] = {
    "weight decay": setting("weight_decay = 0.1", "weight_decay = 0.2"),
    "beta2": setting("beta2 = 0.95", "beta2 = 0.99"),
    "clipping": setting("grad_clip = 1.0", "grad_clip = 0.5"),
    "warm-up": setting("warmup_steps = 2", "warmup_steps = 1"),
    "lowest rate": setting("min_lr = 0.001", "min_lr = 0.0001"),
    "activation": setting('activation = "swiglu"', 'activation = "gelu"'),
    "normalization": setting('normalization = "rmsnorm"', 'normalization = "layernorm"'),
    "positions": setting('positions = "rope"', 'positions = "learned"'),
    "hidden width": setting("mlp_hidden = 40", "mlp_hidden = 48"),
    "micro-batch": setting("micro_batch = 2", "micro_batch = 4"),
}


@pytest.fixture
def clear(runs: Path) -> Path:
    """Lower each window's loss of run b by 0.5 nats, so that only the conditions can forbid a claim."""
    for path in (runs / "b" / "evaluations").glob("*/validation-*.npy"):
        losses = np.load(path)
        noise = np.random.default_rng(0).normal(0, 0.01, len(losses))
        write_window_losses(path, losses - 0.5 + noise - noise.mean())

    def lower(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "loss": record["loss"] - 0.5} if record["kind"] == "validation" else record

    edit_journal(runs / "b", lower)
    return runs


def compare_b_with_a() -> PairedTests:
    return paired_tests(*load_models(["b", "a"], Path("runs")))


def kinds() -> set[CaveatKind]:
    return {caveat.kind for caveat in find_caveats(load_models(["b", "a"], Path("runs")))}


def test_loss_of_a_fair_pair_is_claimed_with_its_limits(clear: Path) -> None:
    """The two recipes differ in the learning rate alone, so another rate is no explanation; another seed is."""
    claim = compare_b_with_a().loss
    assert claim and claim.is_difference and claim.verdict.outcome is Outcome.LOWER
    assert claim.limits == (Limit.ONE_SEED,)
    assert [score.limits for score in compare_b_with_a().accuracies] == [claim.limits]
    edit_recipe(clear / "b", "weight_decay = 0.1", "weight_decay = 0.2")
    claim = compare_b_with_a().loss
    assert claim and claim.is_difference and claim.limits == (Limit.ONE_SEED, Limit.ONE_RATE)


@pytest.mark.parametrize("change", FAIR.values(), ids=FAIR)
def test_fair_pair_is_not_flagged(clear: Path, change: Plant) -> None:
    change(clear / "b")
    assert kinds() == set()
    claim = compare_b_with_a().loss
    assert claim and claim.is_difference


@pytest.mark.parametrize(("change", "kind"), UNFAIR.values(), ids=UNFAIR)
def test_unfair_pair_is_named_and_its_loss_is_not_claimed(clear: Path, change: Plant, kind: CaveatKind) -> None:
    change(clear / "b")
    assert kind in kinds()
    tests = compare_b_with_a()
    assert tests.loss is None or (not tests.loss.is_difference and kind in {one.kind for one in tests.loss.caveats})
    assert not any(score.is_difference for score in tests.accuracies)
    text = "\n".join(significance_lines(tests, MARKDOWN))
    assert tests.loss is None or no_claim("").rstrip(".") in text


@pytest.mark.parametrize(("change", "kind"), UNFAIR_SCORES.values(), ids=UNFAIR_SCORES)
def test_unfair_scores_are_named_and_not_claimed(clear: Path, change: Plant, kind: CaveatKind) -> None:
    change(clear / "b")
    assert kind in kinds() and kind.can_change(Quantity.HELLASWAG)
    assert not any(score.is_difference for score in compare_b_with_a().accuracies)


@pytest.mark.parametrize(("change", "kind"), UNFAIR_SPEED.values(), ids=UNFAIR_SPEED)
def test_unfair_speed_is_named_and_leaves_the_loss_alone(clear: Path, change: Plant, kind: CaveatKind) -> None:
    change(clear / "b")
    assert kind in kinds() and kind.can_change(Quantity.SPEED)
    tests = compare_b_with_a()
    assert tests.loss and tests.loss.is_difference
    assert tests.speed is None or not tests.speed.is_about_recipes


def test_more_steps_in_the_constant_part_of_a_trapezoid_move_nothing(clear: Path) -> None:
    """Every step before the resume has the learning rate that it has in one schedule."""
    for name in ("a", "b"):
        edit_recipe(clear / name, 'schedule = "cosine"', 'schedule = "trapezoid"')
    moved_schedule(clear / "b")
    assert K.MOVED_SCHEDULE not in kinds()
    edit_recipe(clear / "b", "\ncooldown_steps = 0", "\ncooldown_steps = 2")  # first over steps 3 and 4, then 5 and 6
    assert K.MOVED_SCHEDULE in kinds()


def test_values_say_how_the_pairs_differ(clear: Path) -> None:
    edit_recipe(clear / "b", 'order = "shuffled"', 'order = "sequential"')
    moved_schedule(clear / "b")
    skipped_step(clear / "b")
    found = {caveat.kind: dict(caveat.values) for caveat in find_caveats(load_models(["b", "a"], Path("runs")))}
    order = found[K.OTHER_ORDER]["b"]
    assert isinstance(order, DataOrder) and order.order == "sequential" and 0 < (order.share_read or 0) < 0.1
    assert found[K.MOVED_SCHEDULE] == {"b": (4, 6), "a": (6,)}
    assert found[K.SKIPPED_STEPS] == {"b": SkippedSteps(1, 0), "a": SkippedSteps(0, 0)}


def test_window_losses_are_those_of_the_planted_run(clear: Path) -> None:
    """The planted difference is the one that the paired test sees."""
    (path,) = (clear / "b" / "evaluations" / "step_000006").glob("validation-*.npy")
    loss = compare_b_with_a().loss
    assert loss and loss.verdict.ours is not None
    assert read_window_losses(path, 8, loss.verdict.ours).mean() == pytest.approx(loss.verdict.ours)
