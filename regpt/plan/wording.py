"""Print a plan: aligned lines for a terminal. `plan/warning_wording.py` words its warnings."""

import math
from collections.abc import Iterator

from regpt.base.format import (
    byte_size,
    duration_range,
    gigabytes,
    money,
    number_range,
    percent,
    percent_range,
    scientific,
    teraflops,
)
from regpt.data.sizes import epochs_text, tokens_origin, train_tokens
from regpt.optimizer.sizes import newton_schulz_share
from regpt.plan.estimate import POWER, Estimate
from regpt.plan.memory import USABLE_SHARE, Memory, block_weights
from regpt.plan.roofline import BEYOND, FITTED_PARAMETERS, HIGH, LOW
from regpt.plan.run_time import RunTime
from regpt.plan.summary import CardPlan, CpuPlan, DiskPlan, MicroBatch, MicroBatchFit, Plan
from regpt.plan.warning_wording import warning_text
from regpt.plan.workload import Workload
from regpt.recipe.recipe import Recipe

NAME_WIDTH = 26
MEMORY_PARTS = {
    "weights": "weights, float32",
    "gradients": "gradients, float32",
    "moments": "optimizer moments, float32",
    "gathered": "gathered from other ranks",
    "casts": "weights, bfloat16 copies",
    "activations": "activations",
    "loss": "loss",
    "orthogonalization": "Muon, beyond the passes",
}
TIME_PARTS = {
    "training": "training",
    "validation": "validation",
    "tasks": "HellaSwag",
    "samples": "samples",
    "checkpoints": "checkpoints",
    "start": "start",
}
NO_PRICE = "not estimated; add --price USD (per card and hour)"


def row(name: str, value: str) -> str:
    """Format one aligned line of a section."""
    return f"  {name:<{NAME_WIDTH}}  {value}".rstrip()


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield the lines of a plan."""
    yield from model_lines(plan.recipe)
    yield ""
    if isinstance(plan.target, CardPlan):
        yield from card_lines(plan.recipe, plan.work, plan.target)
    elif isinstance(plan.target, CpuPlan):
        yield from cpu_lines(plan.recipe, plan.work, plan.target)
    else:
        yield from table_lines(plan.target)
    yield ""
    yield from disk_lines(plan.recipe, plan.disk)
    if plan.warnings:
        yield ""
        yield "Warnings"
        yield from (f"  {warning_text(warning)}" for warning in plan.warnings)


def model_lines(recipe: Recipe) -> Iterator[str]:
    """Yield the sections about the model and the length of the run."""
    model, run = recipe.model, recipe.run
    blocks = model.n_layer * block_weights(model)
    outside = model.parameters - blocks
    yield f"Model: {recipe.name}"
    yield row("parameters", f"{model.parameters:,} (blocks {blocks:,}, embeddings and norms {outside:,})")
    if model.experts:
        yield row("active parameters", f"{model.active_parameters:,} ({model.experts_text} per token)")
    yield row("FLOPs per token", f"{model.flops_per_token:,}")
    yield ""
    yield "Run"
    tokens = recipe.data.total_batch_tokens
    if recipe.data.batch_ramp:
        yield row("steps", f"{run.max_steps:,} = {recipe.total_tokens:,} tokens")
        yield row("", f"{recipe.data.batch_ramp}, then {tokens:,} tokens a step")
    else:
        yield row("steps", f"{run.max_steps:,} x {tokens:,} tokens = {recipe.total_tokens:,} tokens")
    yield row("epochs", epochs_text(recipe))
    yield row("FLOPs", scientific(recipe.total_tokens * model.flops_per_token, 3))
    if share := newton_schulz_share(recipe):
        yield row("Muon", f"{percent(share)} of the FLOPs of a step, in addition")


def card_lines(recipe: Recipe, work: Workload, plan: CardPlan) -> Iterator[str]:
    """Yield the sections about one kind of card."""
    card, found = plan.hardware.card, plan.estimate
    yield f"Hardware: {plan.ranks} x {card.name}"
    yield row(f"peak, {card.precision}", f"{teraflops(card.peak)} ({card.source})")
    yield row("memory", f"{card.gigabytes:g} GB, {card.gigabytes_per_second:,.0f} GB/s")
    yield row("board power", f"{card.watts:g} W")
    if found is None or plan.micro_batch is None:
        yield ""
        yield "Memory per card"
        yield row("total", f"{does_not_fit_text(plan)};")
        yield row("", "try run.activation_checkpointing=true, more cards or a smaller model.block_size")
        return
    yield ""
    yield from memory_lines("Memory per card", found.memory, plan.memory_limit, f"{percent(USABLE_SHARE)} of the card")
    yield ""
    yield "Batch"
    yield row("micro-batch", micro_batch_text(plan.micro_batch, recipe.model.block_size))
    per_card = " on each card" if plan.ranks > 1 else ""
    yield row("accumulation", f"{accumulation_text(found.layout.accumulation)}{per_card}")
    if plan.ranks > 1:
        yield row("parallelism", parallelism_text(recipe, found))
        yield row("communication", f"{found.network_seconds:.2g} s per step if not overlapped with compute")
    yield ""
    yield from cost_lines(work, found)


def cpu_lines(recipe: Recipe, work: Workload, plan: CpuPlan) -> Iterator[str]:
    """Yield the sections about this machine's CPU."""
    yield f"Hardware: this machine, {plan.name}, {'bfloat16' if plan.layout.bfloat16 else 'float32'}"
    yield ""
    is_limited = math.isfinite(plan.memory_limit)
    limited = f" below the container's limit of {byte_size(plan.memory_limit)}" if is_limited else ""
    yield from memory_lines("Memory", plan.memory, plan.memory_free, f"free now{limited}")
    yield ""
    yield "Batch"
    yield row("micro-batch", micro_batch_text(plan.micro_batch, recipe.model.block_size))
    yield row("accumulation", accumulation_text(plan.layout.accumulation))
    yield ""
    yield "Time"
    yield row("step", f"{number_range(*plan.step_seconds)} s, {number_range(*plan.tokens_per_second)} tokens/s")
    yield from time_lines(work, plan.time)
    yield row("", "Estimated from one block, the loss and the optimizer, measured just now on this machine (±25%).")
    yield row("", "Excludes preparing the data. For a GPU, use --gpu NAME or --gpu all.")


def table_lines(plans: tuple[CardPlan, ...]) -> Iterator[str]:
    """Yield a table with one row per kind of card."""
    yield f"Hardware: {plans[0].ranks} x each known card"
    head = ("micro-batch", "tokens/s", "hours", "kWh", "USD")
    yield "  {:<24} {:>12} {:>22} {:>16} {:>16} {:>16}".format("card", *head)
    for plan in plans:
        found, name = plan.estimate, f"  {plan.hardware.card.name:<24}"
        if found is None:
            yield f"{name} {does_not_fit_text(plan)}"
            continue
        batch = f"{found.layout.micro_batch} x {found.layout.accumulation}"
        if not found.is_speed_known:
            yield f"{name} {batch:>12} speed is not estimated for {plan_precision(found)}"
            continue
        usd = number_range(*found.usd) if found.usd is not None else "add --price"
        speed, hours, energy = (
            number_range(*ends) for ends in (found.tokens_per_second, found.hours, found.kilowatt_hours)
        )
        yield f"{name} {batch:>12} {speed:>22} {hours:>16} {energy:>16} {usd:>16}"
    yield "  Hours, energy and cost are those of the whole run, with evaluation and checkpoints."


def time_lines(work: Workload, time: RunTime) -> Iterator[str]:
    """Yield the time of each part of a run, with its share and what it consists of, and the time of the whole run."""
    amounts = amounts_of_work(work)
    for part, seconds in time.parts.items():
        if seconds.conservative > 0:
            share = percent(round(time.share(part), 3))
            yield row(TIME_PARTS[part], f"{duration_range(*seconds):<24} {share:>7}  {amounts[part]}")
    yield row("whole run", duration_range(*time.total))


def amounts_of_work(work: Workload) -> dict[str, str]:
    """Describe the work in each part of a run's time."""
    validations = work.validations + work.averaged_validations
    tasks = work.task_evaluations + work.averaged_task_evaluations
    waited = "" if work.waited_checkpoints == work.checkpoints else ", written while training continues"
    return {
        "training": f"{work.steps:,} steps",
        "validation": f"{validations:,} x {work.validation_windows:,} windows of {work.block_size:,} tokens",
        "tasks": f"{tasks:,} x {work.task_items:,} items",
        "samples": f"{work.sample_sets:,} x {work.sample_texts:,} texts, {work.sample_tokens:,} new tokens each",
        "checkpoints": f"{work.checkpoints:,} x {byte_size(work.checkpoint_bytes)}{waited}",
        "start": "loading the program",
    }


def memory_lines(heading: str, memory: Memory, limit: float, limit_name: str) -> Iterator[str]:
    """Yield the memory by part, the total and the limit."""
    yield heading
    for part, size in memory.parts.items():
        yield row(MEMORY_PARTS[part], f"{gigabytes(size):>9}")
    fits = "" if memory.total <= limit else ": does not fit"
    yield row("total", f"{gigabytes(memory.total):>9} of {byte_size(limit)} ({limit_name}){fits}")


def micro_batch_text(batch: MicroBatch, block_size: int) -> str:
    """Describe the micro-batch that the estimate uses and the largest one that fits."""
    if not batch.largest:
        return "not even one sequence fits"
    largest = f"largest that fits: {batch.largest}"
    if 0 < batch.largest_dividing < batch.largest:
        largest += f", or {batch.largest_dividing} to divide the batch"
    text = f"{batch.used} x {block_size:,} tokens ({largest})"
    match batch.fit:
        case MicroBatchFit.FITS:
            return text
        case MicroBatchFit.DOES_NOT_FIT if batch.used == batch.configured:
            return f"{text}; it does not fit"
        case MicroBatchFit.DOES_NOT_FIT:
            return f"{text}; the recipe's {batch.configured} does not fit"
        case MicroBatchFit.DOES_NOT_DIVIDE:
            return f"{text}; the recipe's {batch.configured} does not divide the batch among the ranks"


def accumulation_text(count: int) -> str:
    return f"{count} micro-batch{'es' if count > 1 else ''} per step"


def parallelism_text(recipe: Recipe, found: Estimate) -> str:
    """Describe whether the ranks hold the full training state or a shard of it."""
    if not found.layout.sharded:
        return "ddp: the full model on each rank"
    if recipe.run.parallel == "fsdp":
        return "fsdp: a shard of the model on each rank"
    return "fsdp: the full model does not fit on one card; set run.parallel=fsdp"


def does_not_fit_text(plan: CardPlan) -> str:
    return f"does not fit: {byte_size(plan.smallest_memory)} with a micro-batch of 1"


def plan_precision(found: Estimate) -> str:
    return "bfloat16" if found.layout.bfloat16 else "float32"


def cost_lines(work: Workload, found: Estimate) -> Iterator[str]:
    """Yield speed, time, energy and cost, and what their ranges assume."""
    yield "Time and cost (estimated)"
    card = found.hardware.card
    if not found.is_speed_known:
        yield row(
            "", f"Not estimated for {plan_precision(found)}: the peak of the {card.name} is for {card.precision}."
        )
        return
    yield row(
        "speed", f"{number_range(*found.tokens_per_second)} tokens/s ({percent_range(*found.share_of_peak)} of peak)"
    )
    yield from time_lines(work, found.time)
    yield row("energy", f"{number_range(*found.kilowatt_hours)} kWh (cards only)")
    usd, price = found.usd, found.hardware.usd_per_hour
    if usd is None or price is None:
        yield row("cost", NO_PRICE)
    else:
        yield row("cost", f"{number_range(*usd)} USD at {money(price)} per card and hour")
    if found.recipe.model.parameters <= FITTED_PARAMETERS:
        basis = f"{LOW:g} to {HIGH:g} times a roofline model fitted to published speeds"
        basis += " in bfloat16" if card.precision == "float32" else ""
    else:
        basis = f"{percent_range(*BEYOND)} of peak, as published for 7 to 8 B models"
    yield row("", f"Assumes {basis} (docs/plan.md)")
    yield row("", f"and {percent_range(*POWER)} of board power. Evaluation counts by its FLOPs.")
    yield row("", "Excludes loading, torch.compile and preparing the data.")
    yield row("", "This project has measured an H200 only (docs/gpu.md).")


def disk_lines(recipe: Recipe, disk: DiskPlan) -> Iterator[str]:
    """Yield the size of the dataset and of the checkpoints."""
    yield "Disk"
    tokens = train_tokens(recipe)
    divided = disk.dataset_copies > 1
    size = disk.dataset_bytes
    if tokens is None or size is None:
        while_dividing = ", twice that while it is divided by documents" if divided else ""
        yield row("data", f"unknown until {recipe.data.path} is prepared (2 bytes per token{while_dividing})")
    else:
        yield row("data", f"{byte_size(size)} of shards ({tokens_origin(recipe, tokens)})")
        if divided:
            yield row("", f"{byte_size(disk.dataset_copies * size)} while the text is divided by documents")
    count, size = disk.checkpoints, disk.checkpoint_bytes
    yield row("checkpoints", f"{count} x {byte_size(size)} = {byte_size(count * size)}")
