"""Print a measurement: aligned lines for a terminal, as `regpt plan` prints its estimates."""

from collections.abc import Iterator

from regpt.base.format import (
    byte_size,
    duration,
    duration_range,
    gigabytes,
    number_range,
    percent,
    teraflops,
    three_digits,
    time_unit,
)
from regpt.bench.result import BenchResult, Part
from regpt.bench.steps import MIN_STEPS
from regpt.plan.wording import TIME_PARTS, accumulation_text, amounts_of_work, row

NOT_MEASURED = "not measured"
LONG_SECONDS = 60.0


def bench_lines(result: BenchResult) -> Iterator[str]:
    """Yield the lines of a measurement."""
    machine = result.machine
    compiled = ["compiled"] if machine.compiled else []
    yield " · ".join([result.recipe.name, machine.name, machine.precision, *compiled, f"torch {machine.torch}"])
    yield ""
    yield from step_lines(result)
    if result.steps_only:
        return
    yield ""
    yield from comparison_lines(result)
    yield ""
    yield from part_lines(result)
    yield ""
    yield from run_lines(result)


def step_lines(result: BenchResult) -> Iterator[str]:
    """Yield the section about training steps."""
    steps, machine, data = result.steps, result.machine, result.recipe.data
    speed, count = steps.tokens_per_second, len(steps.timed)
    yield f"Training, {count} steps on synthetic tokens after {len(steps.warm_up)} of warm-up"
    quartiles = number_range(speed.lower, speed.upper)
    yield row("tokens/s", f"{three_digits(speed.median)} (median; quartiles {quartiles})")
    yield row("step", f"{seconds_text(steps.seconds.median)} for {steps.tokens:,} tokens")
    if steps.micro_batches < steps.accumulation:
        shorter = f"computed from {steps.micro_batches} of its {steps.accumulation} micro-batches and the optimizer"
        yield row("", f"{shorter}: --seconds is too short for {MIN_STEPS} whole steps")
    if machine.peak_flops:
        yield row(
            "share of peak",
            f"{percent(result.share_of_peak)} of {teraflops(machine.peak_flops)} ({machine.peak_source})",
        )
    else:
        yield row("share of peak", f"unknown: {machine.peak_source}")
    if machine.compiled:
        yield row("torch.compile", duration(result.compile_seconds))
    halved = (
        f"; out of memory with {result.configured_micro_batch}"
        if data.micro_batch < result.configured_micro_batch
        else ""
    )
    size = f"{data.micro_batch} x {result.recipe.model.block_size:,} tokens"
    yield row("micro-batch", f"{size}, {accumulation_text(steps.accumulation)}{halved}")
    yield row("memory", memory_text(result))
    if result.is_busy:
        yield row("other programs", f"used {percent(result.other_share)} of the processors: expect more without them")
    elif result.other_share < 0:
        yield row("other programs", "their use of the processors could not be measured")


def memory_text(result: BenchResult) -> str:
    """Describe the peak memory: on CUDA what was allocated and reserved, else what the process had."""
    memory = result.memory
    if memory.reserved:
        return f"{gigabytes(memory.peak)} allocated at the peak, {gigabytes(memory.reserved)} reserved"
    return f"{gigabytes(memory.peak)} at the peak, {gigabytes(memory.before)} of it before the model was built"


def comparison_lines(result: BenchResult) -> Iterator[str]:
    """Yield the section that compares the measurement with `plan` and with published speeds."""
    yield "In comparison"
    found = result.prediction
    if found is None or result.speed_ratio is None or result.memory_ratio is None:
        yield row("plan", "has no prediction for this device")
    else:
        yield row(
            "plan",
            f"{number_range(*found.tokens_per_second)} tokens/s; measured {result.speed_ratio:.2f} x its middle",
        )
        yield row("plan, memory", f"{gigabytes(found.memory_bytes)}; measured {result.memory_ratio:.2f} x that")
        if result.machine.type == "cuda":
            yield row("", "The plan's figures for GPUs are derived: this project has measured an H200 only.")
    for speed in result.published:
        yield row(f"published, {speed.model}", f"{three_digits(speed.tokens_per_second)} tokens/s ({speed.source})")


def part_lines(result: BenchResult) -> Iterator[str]:
    """Yield the section about the parts of a run besides training."""
    parts = result.parts
    yield "Other parts"
    yield row("validation batch", part_text(parts.validation, "windows"))
    yield row("HellaSwag group", part_text(parts.tasks, "items"))
    yield row("sampled token", part_text(parts.samples, "texts"))
    saved = parts.checkpoint
    yield row(
        "checkpoint",
        f"{seconds_text(saved.copy)} to copy and {seconds_text(saved.write)} to write {byte_size(saved.bytes)}"
        if saved
        else NOT_MEASURED,
    )


def part_text(part: Part | None, unit: str) -> str:
    return f"{seconds_text(part.seconds)} for {part.size:,} {unit}" if part else NOT_MEASURED


def seconds_text(seconds: float) -> str:
    """Format a duration with three digits if it is short: '0.0124 s', '5 min 53 s'."""
    return f"{three_digits(seconds)} s" if seconds < LONG_SECONDS else duration(seconds)


def run_lines(result: BenchResult) -> Iterator[str]:
    """Yield the time of the whole run by part, at the measured speeds."""
    time = result.run_time
    amounts = {**amounts_of_work(result.work), "start": "torch.compile"}
    yield "The whole run at these speeds"
    for part, seconds in time.parts.items():
        if seconds.middle > 0:
            share = percent(round(time.share(part), 3))
            yield row(TIME_PARTS[part], f"{duration(seconds.middle):<16} {share:>7}  {amounts[part]}")
    whole = time.total.middle
    size, unit = time_unit(whole)
    planned = f" (plan: {duration_range(*result.prediction.seconds)})" if result.prediction else ""
    yield row("whole run", f"{three_digits(whole / size)} {unit}{planned}")
