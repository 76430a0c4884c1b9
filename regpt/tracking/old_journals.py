"""What journals of version 0.1 call differently, and what they record only as text."""

import re
from collections.abc import Mapping
from typing import Any

OLD_EVENTS = {"went back": "rollback", "out of memory": "out_of_memory", "not saved": "checkpoint_failed"}
OLD_FIELDS = {
    "from": "from_step",
    "left_out": "excluded_batches",
    "at": "at_step",
    "passed_over": "skipped_checkpoints",
}
REASON_KINDS = {
    ("loss", "nan"): "loss_nan",
    ("loss", "inf"): "loss_infinite",
    ("norm of the gradients", "nan"): "gradient_norm_nan",
    ("norm of the gradients", "inf"): "gradient_norm_infinite",
}
SPIKE_KINDS = {"loss": "loss_spike", "norm of the gradients": "gradient_norm_spike"}
REASON = re.compile(
    r"the (?P<name>loss|norm of the gradients) is (?P<value>\S+?)"
    r"(?P<spike>, above (?P<limit>\S+): (?P<deviations>\S+) deviations over the usual)?"
)
ITEMS = re.compile(r"(?:subset of (?P<count>[\d,]+) of )?(?P<size>[\d,]+) items?(?P<origin> of .+)?")


def current_task_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a task's record under the names that this version gives them.

    Until version 0.2 the standard errors of the metrics had the name of a validation's one, `standard_error`. One name
    for a number and for a table keeps some readers of JSON lines (pyarrow) from opening a journal.
    """
    older = {"standard_errors": values["standard_error"]} if "standard_error" in values else {}
    return {**counts_of(values["items"]), **older, **values}


def counts_of(description: str) -> dict[str, Any]:
    """Read the counts from the description of the items: version 0.1 recorded no others.

    It is '10,042 items' or 'subset of 20 of 10,042 items', followed by ' of FILE' unless they are the published ones.
    """
    found = ITEMS.fullmatch(description)
    if not found:
        return {}
    size = int(found["size"].replace(",", ""))
    count = int(found["count"].replace(",", "")) if found["count"] else size
    return {"count": count, "dataset_size": size, "published": not found["origin"]}


def parse_reason(text: str) -> dict[str, Any]:
    """Read why a step was rejected: the kind and, of a spike, its numbers.

    The text is 'the loss is nan' or 'the loss is 32.34, above 11.08: 20 deviations over the usual'. Raises ValueError
    for another one.
    """
    found = REASON.fullmatch(text)
    if found and found["spike"]:
        numbers = {name: float(found[name]) for name in ("value", "limit", "deviations")}
        return {"kind": SPIKE_KINDS[found["name"]], **numbers}
    if found and (known := REASON_KINDS.get((found["name"], found["value"].removeprefix("-")))):
        return {"kind": known}
    raise ValueError(f"no reason that version 0.1 recorded: {text!r}")


def new_fields(detail: Mapping[str, Any]) -> dict[str, Any]:
    """Return the details of an event under the names that this version gives them."""
    known = {OLD_FIELDS.get(name, name): value for name, value in detail.items()}
    if "micro_batch" in known:
        known["micro_batch_before"], known["micro_batch_after"] = known["micro_batch"]
    if "hellaswag" in known:
        known["hellaswag_unavailable"] = known["hellaswag"].removeprefix("not measured: ")
    return known
