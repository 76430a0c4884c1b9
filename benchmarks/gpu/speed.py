"""Steps of the 124M recipes: time, share of the card's peak, memory next to the estimate, and where the time goes."""

from collections.abc import Generator, Iterator
from functools import partial

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench, Training, free_memory, if_it_fits, median, quartiles
from benchmarks.gpu.results import Bound, Measured
from regpt.machine.device import memory_bytes, reserved_bytes
from regpt.plan.memory import ParallelLayout, estimate_memory
from regpt.plan.published_speeds import PUBLISHED
from regpt.plan.roofline import seconds_per_token, speed_range
from regpt.recipe.recipe import Recipe

WARM_UPS = 3
EAGER_STEPS = 3
SHARE_OF_PUBLISHED = 0.95  # of the published tokens/s of GPT-2 124M that gpt2-modern should reach on the same card
PUBLISHED_MODEL = "GPT-2 124M"
MODERN_SPEED = "tokens/s of gpt2-modern"  # a key of `Bench.found`
# Parts of kernel names, in the order in which they are tried.
KERNELS = {
    "compiled": ("triton", "cpp_fused"),  # first: their names list the operations that they fuse
    "attention": ("flash", "fmha", "sdpa", "attention"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "::mm", "::addmm", "::linear"),
    "copies": ("memcpy", "memset", "copy"),
}
OTHER = "other kernels"
LONGEST = 12  # kernels that are listed by name
NAME_CHARACTERS = 70  # of a kernel's name


def modern_speed(bench: Bench) -> Iterator[Measured]:
    """Measure gpt2-modern at its micro-batch and at twice its size, its memory, and one micro-batch in detail."""
    recipe = bench.recipe("gpt2-modern")
    least, predicted = expected_speed(bench, recipe)
    speed = yield from speed_and_memory(bench, recipe, bench.sizes.steps, least)
    if predicted:
        yield Measured("speed / prediction of `regpt plan`", speed / predicted)
    bench.found[MODERN_SPEED] = speed
    larger = bench.recipe("gpt2-modern", f"data.micro_batch={2 * bench.sizes.micro_batch}")
    yield from if_it_fits("twice the micro-batch", speed_and_memory(bench, larger, bench.sizes.steps // 2))
    yield from eager_memory(bench, recipe)


def classic_speed(bench: Bench) -> Iterator[Measured]:
    """Measure gpt2-classic at the micro-batch of its recipe, 16, and at that of the modern one."""
    half = bench.recipe("gpt2-classic", f"data.micro_batch={bench.sizes.micro_batch // 2}")
    yield from speed_and_memory(bench, half, bench.sizes.steps)
    speed = yield from speed_and_memory(bench, bench.recipe("gpt2-classic"), bench.sizes.steps)
    if MODERN_SPEED in bench.found:
        bound = bench.speed(Bound(least=0.95, most=1.05))
        yield Measured("tokens/s relative to gpt2-modern", speed / bench.found[MODERN_SPEED], "", bound)


def next_speed(bench: Bench) -> Iterator[Measured]:
    """Measure gpt2-next, with Muon and the model's switches, at the micro-batch of gpt2-modern."""
    speed = yield from speed_and_memory(bench, bench.recipe("gpt2-next"), bench.sizes.steps)
    if MODERN_SPEED in bench.found:
        yield Measured("tokens/s relative to gpt2-modern", speed / bench.found[MODERN_SPEED])


def expected_speed(bench: Bench, recipe: Recipe) -> tuple[float, float]:
    """Return tokens/s: the least expected of this card, and what `regpt plan` predicts; zeros for an unknown card.

    The least is a share of the published speed, or the conservative end of the prediction where none is published.
    """
    card = bench.card
    if card is None:
        return 0.0, 0.0
    published = [one.tokens_per_second for one in PUBLISHED if (one.card, one.model) == (card.name, PUBLISHED_MODEL)]
    least = SHARE_OF_PUBLISHED * max(published) if published else speed_range(recipe.model, card)[0]
    return least, 1 / seconds_per_token(recipe.model, card)


def speed_and_memory(bench: Bench, recipe: Recipe, steps: int, least: float = 0.0) -> Generator[Measured, None, float]:
    """Yield speed and memory of compiled training, and the parts of a micro-batch; return the tokens/s."""
    free_memory()
    name = f"{recipe.name}, micro-batch {recipe.data.micro_batch}"
    device = bench.device(recipe, compiled=True)
    training, batches = Training(bench, recipe, device), bench.batches(recipe)
    yield Measured(f"{name}: first step, with compilation", bench.seconds(lambda: training.step(batches[0])), "s")
    for number in range(1, WARM_UPS):
        training.step(batches[number])
    seconds = [bench.seconds(partial(training.step, batches[n % 4])) for n in range(max(2, steps))]
    tokens = recipe.data.total_batch_tokens
    speed = tokens / median(seconds)
    bound = bench.speed(Bound(least=least)) if least else None
    yield Measured(f"{name}: speed", speed, "tokens/s", bound)
    yield from quartiles(f"{name}: speed", [tokens / one for one in seconds], "tokens/s")
    if device.peak_flops:
        share = speed * recipe.model.flops_per_token / device.peak_flops
        yield Measured(f"{name}: share of peak (MFU), {device.peak_source}", 100 * share, "%")
    yield from memory(bench, recipe, compiled=device.compiled)
    yield from parts_of_a_micro_batch(bench, training)
    return speed


def memory(bench: Bench, recipe: Recipe, compiled: bool) -> Iterator[Measured]:
    """Yield the peak of a card's memory next to the estimate of `regpt plan`."""
    layout = ParallelLayout(
        micro_batch=recipe.data.micro_batch,
        accumulation=bench.sizes.accumulation,
        bfloat16=bench.on_card,
        on_cpu=not bench.on_card,
        compiled=compiled,
    )
    estimate = estimate_memory(recipe, layout)
    name = f"{recipe.name}, micro-batch {recipe.data.micro_batch}, {'compiled' if compiled else 'uncompiled'}: memory"
    parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in estimate.parts.items())
    yield Measured(f"{name}, estimate in GB by part", parts)
    yield Measured(f"{name}, estimate", estimate.total / 1e9, "GB")
    if not bench.on_card:
        return
    peak, reserved = memory_bytes(bench.place), reserved_bytes(bench.place)
    yield Measured(f"{name}, allocated", peak / 1e9, "GB")
    yield Measured(f"{name}, reserved", reserved / 1e9, "GB")
    bound = None if compiled else bench.speed(Bound(least=0.85, most=1.15))
    yield Measured(f"{name}, allocated / estimate", peak / estimate.total, "", bound)


def eager_memory(bench: Bench, recipe: Recipe) -> Iterator[Measured]:
    """Yield memory and speed of a few steps without torch.compile."""
    free_memory()
    training, batches = Training(bench, recipe, bench.device(recipe, compiled=False)), bench.batches(recipe)
    seconds = [bench.seconds(partial(training.step, batches[n])) for n in range(EAGER_STEPS)]
    yield Measured("uncompiled: speed", recipe.data.total_batch_tokens / min(seconds), "tokens/s")
    yield from memory(bench, recipe, compiled=False)


def parts_of_a_micro_batch(bench: Bench, training: Training) -> Iterator[Measured]:
    """Yield the milliseconds of one micro-batch by kind of kernel, and the time in which the card did nothing."""
    (batch, *_) = bench.batches(training.recipe, micro_batches=1)
    training.gradients.forward_and_backward(0, batch)
    bench.synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_card else [])]
    with profile(activities=activities) as profiled:
        taken = bench.seconds(lambda: training.gradients.forward_and_backward(0, batch))
    training.parallel.optimizer.zero_grad()
    milliseconds = dict.fromkeys([*KERNELS, OTHER], 0.0)
    calls: dict[str, list[float]] = {}  # milliseconds of each call, by kernel
    kind = DeviceType.CUDA if bench.on_card else DeviceType.CPU
    for event in profiled.events() or []:
        if event.device_type == kind and not getattr(event, "is_user_annotation", False):
            taken_by_call = own_microseconds(event, bench.on_card) / 1e3
            milliseconds[kind_of_kernel(event.name)] += taken_by_call
            calls.setdefault(event.name, []).append(taken_by_call)
    name = f"{training.recipe.name}, micro-batch {training.recipe.data.micro_batch}"
    for part, value in milliseconds.items():
        yield Measured(f"{name}: {part}", value, "ms")
    for kernel, times in sorted(calls.items(), key=lambda one: -sum(one[1]))[:LONGEST]:
        yield Measured(f"{name}: {len(times)} x {kernel[:NAME_CHARACTERS]}", sum(times), "ms")
    if bench.on_card:
        idle = 100 * (1 - sum(milliseconds.values()) / (1e3 * taken))
        yield Measured(f"{name}: card idle, under the profiler", idle, "%")


def own_microseconds(event: object, on_card: bool) -> float:
    """Return the time of a kernel, or of a CPU operation without those that it called."""
    return float(event.time_range.elapsed_us() if on_card else event.self_cpu_time_total)  # type: ignore[attr-defined]


def kind_of_kernel(name: str) -> str:
    low = name.lower()
    return next((kind for kind, words in KERNELS.items() if any(word in low for word in words)), OTHER)
