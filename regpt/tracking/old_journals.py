"""What journals of version 0.1 call differently, and what they record only in a description."""

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
ITEMS = re.compile(r"(?:subset of (?P<count>[\d,]+) of )?(?P<size>[\d,]+) items?(?P<origin> of .+)?")


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


def new_fields(detail: Mapping[str, Any]) -> dict[str, Any]:
    """Return the details of an event under the names that this version gives them."""
    known = {OLD_FIELDS.get(name, name): value for name, value in detail.items()}
    if "micro_batch" in known:
        known["micro_batch_before"], known["micro_batch_after"] = known["micro_batch"]
    if "hellaswag" in known:
        known["hellaswag_unavailable"] = known["hellaswag"].removeprefix("not measured: ")
    return known
