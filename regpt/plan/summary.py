"""`regpt plan`: what a recipe will take: memory by part, time, energy, money, disk; and what cannot be.

Lines for a terminal. Speeds are ranges, and what they rest on is printed with them.
"""

from collections.abc import Iterator
from pathlib import Path

from regpt.base.cards import CARDS, find_card
from regpt.base.errors import UserError
from regpt.base.format import three_digits
from regpt.base.recipe import Recipe, nearest_divisors
from regpt.data.sizes import train_tokens
from regpt.plan.estimate import POWER, Estimate, Hardware, estimate, largest_micro_batch
from regpt.plan.memory import USED, Memory, ParallelLayout, estimate_memory
from regpt.plan.roofline import BEYOND, FITTED_PARAMETERS, HIGH, LOW
from regpt.plan.sizes import checkpoint_bytes, checkpoints_kept
from regpt.plan.warnings import find_warnings

PARTS = {
    "weights": "weights, float32",
    "gradients": "gradients, float32",
    "moments": "optimizer, two moments",
    "gathered": "gathered from other ranks",
    "casts": "weights again in bfloat16",
    "activations": "activations of a micro-batch",
    "loss": "loss: logits in pieces, gradients",
}


SHARDED = {  # by what the recipe asks for
    "fsdp": "a share of the model on each (fsdp)",
    "ddp": "a share of the model on each: whole it does not fit, so set run.parallel=fsdp",
}


def line(name: str, value: str) -> str:
    return f"  {name:<34} {value}"


def heading(recipe: Recipe) -> Iterator[str]:
    """The model and the run, whatever it runs on."""
    model, run = recipe.model, recipe.run
    outside = model.parameters - model.matmul_parameters + model.vocab_size * model.n_embd
    yield f"{recipe.name}: the model"
    yield line(
        "parameters", f"{model.parameters:,}: blocks {model.parameters - outside:,}, embedding and rest {outside:,}"
    )
    yield line("floating-point operations a token", f"{model.flops_per_token:,}")
    yield ""
    yield f"{recipe.name}: the run"
    yield line(
        "steps", f"{run.max_steps:,} of {recipe.data.total_batch_tokens:,} tokens: {recipe.total_tokens:,} tokens"
    )
    yield line("epochs", epochs(recipe))
    yield line("floating-point operations", f"{recipe.total_tokens * model.flops_per_token:.3g}")


def epochs(recipe: Recipe) -> str:
    tokens, where = train_tokens(recipe)
    if not tokens:
        return f"not known until {recipe.data.path} is prepared"
    return f"{recipe.total_tokens / tokens:.3f} of {tokens:,} training tokens ({where})"


# On cards


def on_cards(recipe: Recipe, cards: Hardware, ranks: int) -> Iterator[str]:
    """What the recipe takes on so many cards of a kind."""
    card = cards.card
    room = USED * card.memory
    yield ""
    yield (
        f"on {ranks} x {card.name}: {card.tflops:,.4g} TFLOP/s in bfloat16, {card.gigabytes:g} GB at"
        f" {card.gigabytes_per_second:,.0f} GB/s, {card.watts:g} W"
    )
    as_asked = estimate(recipe, ranks, cards, recipe.data.micro_batch)
    found = as_asked or estimate(recipe, ranks, cards)
    if found is None:
        yield line("memory", too_large(recipe, cards, ranks))
        return
    yield from memory_lines(found.memory, room, f"{USED:.0%} of {card.gigabytes:g} GB")
    most = largest_micro_batch(recipe, found.placing, room)
    yield line("micro-batch", micro_batch_line(recipe, ranks, found.placing, as_asked is not None, most))
    yield line(
        "accumulation", f"{in_accumulation(found.placing.accumulation)} on {'each' if ranks > 1 else 'the'} card"
    )
    if ranks > 1:
        how = SHARDED[recipe.run.parallel] if found.placing.sharded else "the whole model on each (ddp)"
        yield line(
            "ranks", f"{ranks}, {how}; the network takes {found.network_seconds:.2g} s of a step, if none is hidden"
        )
    yield from speed_lines(found)


def memory_lines(memory: Memory, room: float, of: str) -> Iterator[str]:
    for part, size in memory.parts.items():
        yield line(f"memory, {PARTS[part]}", f"{size / 1e9:6.2f} GB")
    yield line("memory together", f"{memory.total / 1e9:6.2f} GB of {room / 1e9:.1f} GB ({of})")


def micro_batch_line(recipe: Recipe, ranks: int, placing: ParallelLayout, fits: bool, most: int) -> str:
    asked, block = recipe.data.micro_batch, recipe.model.block_size
    divides = [n for n in range(1, most + 1) if recipe.batch_windows % (n * ranks) == 0]
    largest = f"the largest that fits is {most} x {block:,}" + (
        f", the largest of these that divides the batch {max(divides)}" if divides and max(divides) != most else ""
    )
    if fits:
        return f"{asked} x {block:,} tokens fit; {largest}"
    reason = "does not divide the batch among the ranks" if recipe.batch_windows % (asked * ranks) else "does not fit"
    return f"the recipe's {asked} {reason}; reckoned with {placing.micro_batch} x {block:,}; {largest}"


def in_accumulation(count: int) -> str:
    return f"{count} micro-batch{'es' if count > 1 else ''} a step"


def too_large(recipe: Recipe, cards: Hardware, ranks: int) -> str:
    least = estimate_memory(recipe, ParallelLayout(ranks, 1, recipe.batch_windows // ranks, ranks > 1))
    remedy = "run.activation_checkpointing=true, more cards, or a smaller model.block_size"
    return f"does not fit: {least.total / 1e9:.1f} GB with one sequence at a time; {remedy}"


def speed_lines(found: Estimate) -> Iterator[str]:
    recipe, cards = found.recipe, found.cards
    if not found.placing.bfloat16:
        yield line(
            "speed, time, energy, money", "not reckoned: published speeds, and peaks here, are those of bfloat16"
        )
        return
    good, careful = found.tokens_per_second
    shares = found.share_of_peak
    yield line("speed", f"{spread(careful, good)} tokens/s, {spread(100 * shares[1], 100 * shares[0])} % of peak")
    yield line("time in training steps", f"{spread(*found.hours)} hours")
    yield line("energy of the cards", f"{spread(*found.kilowatt_hours)} kWh")
    if cards.usd_per_hour is not None:
        yield line("money", f"{spread(*found.usd)} USD at {cards.usd_per_hour:g} USD for a card and hour")
    else:
        yield line("money", "say --price, USD for one card and hour")
    if recipe.model.parameters <= FITTED_PARAMETERS:
        yield line("  the range", f"{LOW:g} to {HIGH:g} times a roofline fitted to published speeds (docs/plan.md);")
    else:
        yield line("  the range", f"{BEYOND[0]:.0%} to {BEYOND[1]:.0%} of peak, published for 7 to 8 B (docs/plan.md);")
    yield line("", f"{POWER[0]:.0%} to {POWER[1]:.0%} of the board power; evaluation and saving come on top")
    yield line("", f"peak: {cards.card.source}. No card has been measured by us")


def spread(low: float, high: float) -> str:
    """Both ends with three digits, as in '113,000 to 193,000'."""
    return f"{three_digits(low)} to {three_digits(high)}"


# Disk


def disk_lines(recipe: Recipe, runs: Path) -> Iterator[str]:
    """What will lie on the disk, and whether there is room."""
    yield ""
    yield "on the disk"
    yield line("data", data_line(recipe))
    count, size = checkpoints_kept(recipe), checkpoint_bytes(recipe)
    yield line("checkpoints", f"{count} x {size / 1e9:.2f} GB = {count * size / 1e9:.1f} GB")


def data_line(recipe: Recipe) -> str:
    tokens, where = train_tokens(recipe)
    if not tokens:
        return f"2 bytes a token, which are not counted until {recipe.data.path} is prepared"
    return f"{2 * (tokens + recipe.data.validation_tokens) / 1e9:.1f} GB of shards ({where})"


# All of it


def plan_for_cards(recipe: Recipe, name: str, ranks: int, usd_per_hour: float | None, runs: Path) -> Iterator[str]:
    """All lines for cards of that name; 'all': a line for each kind. Raises UserError for ranks that do not divide."""
    if recipe.batch_windows % ranks:
        would = nearest_divisors(recipe.batch_windows, ranks)
        problem = f"--gpus {ranks}: the {recipe.batch_windows} sequences of a batch do not divide among so many"
        raise UserError(problem, f"{would} would do")
    yield from heading(recipe)
    if name == "all":
        yield ""
        yield from every_card(recipe, ranks, usd_per_hour)
    else:
        yield from on_cards(recipe, Hardware(find_card(name), usd_per_hour), ranks)
    yield from endings(recipe, runs)


def endings(recipe: Recipe, runs: Path) -> Iterator[str]:
    yield from disk_lines(recipe, runs)
    found = list(find_warnings(recipe, runs))
    if found:
        yield ""
        yield "take care"
        yield from (f"  {doubt}" for doubt in found)


def every_card(recipe: Recipe, ranks: int, usd_per_hour: float | None) -> Iterator[str]:
    """A line for each kind of card that is known."""
    yield f"{ranks} x {'card':<24} {'micro-batch':>12} {'tokens/s':>22} {'hours':>16} {'kWh':>16} {'USD':>16}"
    for card in CARDS:
        found = estimate(recipe, ranks, Hardware(card, usd_per_hour))
        if found is None:
            yield f"    {card.name:<24} {too_large(recipe, Hardware(card), ranks)}"
            continue
        if not found.placing.bfloat16:
            cut = f"{found.placing.micro_batch:>6} x {found.placing.accumulation:<3}"
            yield f"    {card.name:<24} {cut} speed not reckoned in float32"
            continue
        good, careful = found.tokens_per_second
        money = spread(*found.usd) if usd_per_hour is not None else "say --price"
        yield (
            f"    {card.name:<24} {found.placing.micro_batch:>6} x {found.placing.accumulation:<3}"
            f" {spread(careful, good):>22} {spread(*found.hours):>16} {spread(*found.kilowatt_hours):>16} {money:>16}"
        )


def plan_for_this_machine(
    recipe: Recipe, name: str, step_seconds: float, memory_free: float, bfloat16: bool, runs: Path
) -> Iterator[str]:
    """All lines for a processor whose step was just reckoned from parts that were measured."""
    placing = ParallelLayout(1, recipe.data.micro_batch, recipe.accumulation_steps(), bfloat16=bfloat16, on_cpu=True)
    yield from heading(recipe)
    yield ""
    yield f"on this machine: {name}, {'bfloat16' if bfloat16 else 'float32'}"
    needed = estimate_memory(recipe, placing)
    yield from memory_lines(needed, memory_free, "what is free")
    most = largest_micro_batch(recipe, placing, memory_free)
    fits = needed.total <= memory_free
    yield line("micro-batch", micro_batch_line(recipe, 1, placing, fits, most) if most else "not one sequence fits")
    yield line("accumulation", in_accumulation(placing.accumulation))
    low, high = step_seconds / 1.25, step_seconds * 1.25
    tokens = recipe.data.total_batch_tokens
    yield line("a step", f"{spread(low, high)} s, {spread(tokens / high, tokens / low)} tokens/s")
    yield line("time in training steps", duration(recipe.run.max_steps * low, recipe.run.max_steps * high))
    yield line("  the range", "within 25 % of a block, the loss and the optimizer, measured just now for two seconds;")
    yield line("", "evaluation and saving come on top; for a card: --gpu NAME, or --gpu all")
    yield from endings(recipe, runs)


def duration(low: float, high: float) -> str:
    for unit, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if high >= unit:
            return f"{spread(low / unit, high / unit)} {name}"
    return f"{spread(low, high)} seconds"
