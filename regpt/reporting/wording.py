"""The wording of a report's cells and lists."""

from datetime import UTC

from regpt.base.format import byte_size, clock_time, duration, money, percent, short_count, teraflops
from regpt.recipe.recipe import Recipe
from regpt.rendering.markdown import code, escaped
from regpt.reporting.improvements import model_improvements
from regpt.reporting.scores import NOT_MEASURED
from regpt.tracking.events import Branched, Ended, Event, OutOfMemory, Resumed, Started, Stopped
from regpt.tracking.journal import EventRecord
from regpt.tracking.resume_changes import changes_of_resume
from regpt.tracking.run import MachineLoad, Run


def model_type(recipe: Recipe) -> str:
    return f"GPT-2 {recipe.model.parameters / 1e6:.0f}M"


SDPA = "scaled_dot_product_attention"
ATTENTION = {  # by the names in the journal
    "": f"{SDPA} (Flash Attention where the device has it)",
    "flash": f"{SDPA} (Flash Attention)",
    "efficient": f"{SDPA} (memory-efficient attention)",
    "cudnn": f"{SDPA} (cuDNN's fused attention)",
    "math": f"{SDPA} (matrix products and softmax one by one)",
    "flex": "FlexAttention",
    "blocks": "Flash Attention's algorithm in matrix products of large blocks",
}


def attention_of(run: Run) -> str:
    """Return the attention backend of the last attempt; empty if unknown."""
    starts = run.history.details(Started)
    return starts[-1].attention if starts else ""


def architecture(recipe: Recipe, attention: str) -> list[str]:
    """Describe the model. `attention` is the backend as the journal names it; empty if unknown."""
    model = recipe.model
    return [
        f"**Attention:** causal, {ATTENTION.get(attention, attention)}",
        "**Activation Function:** "
        + {
            "swiglu": f"SwiGLU (gated activation), hidden width {model.mlp_hidden:,}",
            "gelu": f"GELU (tanh form), hidden width {model.mlp_hidden:,}",
            "relu2": f"squared ReLU, hidden width {model.mlp_hidden:,}",
        }[model.activation],
        "**Positional Encoding:** "
        + {
            "rope": f"RoPE (Rotary Position Embedding), base {model.rope_theta:,.0f}, split-half form",
            "learned": "learned table, added to the token embedding",
        }[model.positions],
        "**Normalization:** "
        + {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[model.normalization]
        + f" before attention and MLP and at the end, epsilon {model.norm_eps}",
        "**Weight Tying:** "
        + ("token embedding weights shared with LM head" if model.tied_head else "the LM head has its own weights"),
        *(["**Biases:** in linear layers and norms"] if model.bias else []),
        *([f"**Improvements:** {', '.join(used)}"] if (used := model_improvements(model)) else []),
    ]


def start_text(run: Run) -> str:
    """Return when the run was started first."""
    events = run.history.events
    return clock_time(events[0].at, "%Y-%m-%d %H:%M UTC", UTC) if events else "not started"


def source_of(run: Run) -> str:
    asked = run.environment.data.source.asked
    if asked.startswith("hub:"):
        return f"HuggingFace, {code(asked.removeprefix('hub:'))}"
    if asked == "stdlib":
        return "source code of the standard library of the Python that prepared it"
    return f"{code(asked)}, on the machine that prepared it"


def validation_steps(run: Run) -> str:
    """Describe the validation windows, and whether the split has fewer than the recipe asks for."""
    asked, block = run.recipe.evaluation, run.recipe.model.block_size
    windows = asked.validation_batches * asked.validation_batch_size
    read = run.history.validations[-1].windows if run.history.validations else windows
    cut = f"; the split has only {read:,} windows" if read < windows else ""
    return (
        f"{asked.validation_batches} batches of {asked.validation_batch_size} × {block:,} tokens"
        f" ({read * block:,}), always the same{cut}"
    )


def hellaswag_interval(run: Run) -> str:
    asked = run.recipe.evaluation
    every = f"every {asked.hellaswag_every:,} steps"
    if not run.hellaswag:
        why = f": {escaped(run.hellaswag_unmeasured)}" if run.hellaswag_unmeasured else ""
        return f"planned {every}; {NOT_MEASURED}{why}"
    return f"{every.capitalize()}, at the start and the end; {run.hellaswag[-1].items}"


def place_of(run: Run) -> str:
    return run.environment.device.type


def resource_rows(run: Run) -> list[tuple[str, str]]:
    """Return the rows of the table of devices, time and cost; the value is empty where it is unknown."""
    name, count = escaped(run.device_name), ranks(run)
    if place_of(run) == "cpu":
        devices = [("Processor", name), ("Processes", count if max(run.ranks, default=1) > 1 else "")]
    else:
        devices = [("GPU Type", name), ("Number of GPUs", count)]
    speed = f"{run.tokens_per_second:,.0f} tokens/s (median step)" if run.history.steps else ""
    return [
        *devices,
        ("Platform", escaped(run.environment.system)),
        ("Training Duration", durations(run)),
        ("Estimated Cost", cost(run)),
        ("Speed", speed + "; other programs used the processors" * (run.load is MachineLoad.BUSY and bool(speed))),
        ("Share of Peak", share_of_peak(run)),
        ("Memory", memory(run)),
    ]


def share_of_peak(run: Run) -> str:
    """Name the share and the peak; empty where one is unknown."""
    share, device, count = run.share_of_peak, run.environment.device, run.environment.ranks
    if share is None:
        return ""
    several = f"{count} × " if count > 1 else ""
    return f"{percent(share)} of {several}{teraflops(device.peak_flops)} ({device.peak_source})"


def setup_rows(run: Run) -> list[tuple[str, str]]:
    """Return the rows of the table of software; the value is empty where it is unknown or does not apply."""
    device, packages = run.environment.device, run.environment.packages
    framework, backend = framework_and_backend(run)
    matmul = run.recipe.run.matmul_precision
    return [
        ("Framework", framework),
        ("Backend", backend),
        ("Precision", device.precision + " (autocast)" * (device.precision == "bfloat16")),
        ("Compile", "`torch.compile` enabled" if device.compiled else "off"),
        ("matmul precision", f"'{matmul}'" + " (TF32 where the hardware has it)" * (matmul == "high")),
        ("Initial Weights", initial_weights(run)),
        ("Packages", f"Python {packages.python}, torch {packages.torch}, numpy {packages.numpy}"),
    ]


def initial_weights(run: Run) -> str:
    """Name the model whose weights the run started from, and their digest; empty for weights from the seed."""
    origin = run.environment.origin
    if origin is None:
        return ""
    seen = f", after {origin.tokens:,} tokens" if origin.tokens else ""
    return f"{escaped(origin.name)}, {code(origin.where)}{seen}; SHA-256 {origin.weights_sha256[:12]}"


def ranks(run: Run) -> str:
    """Return the number of ranks, of each attempt where it changed, and the kind of parallelism."""
    counts = [count for number, count in enumerate(run.ranks) if number == 0 or count != run.ranks[number - 1]]
    together = run.recipe.run.parallel + (", gradients summed in a fixed order" if run.recipe.run.strict_sum else "")
    return ", then ".join(map(str, counts or [1])) + (f" ({together})" if max(counts, default=1) > 1 else "")


def framework_and_backend(run: Run) -> tuple[str, str]:
    """Return the framework and the backend of its collectives, which one process does not have."""
    if max(run.ranks, default=1) == 1:
        kind = {"cpu": "the CPU", "cuda": "one GPU", "mps": "one Apple GPU"}.get(place_of(run), place_of(run))
        return f"PyTorch, one process on {kind}", ""
    name = {"ddp": "DDP (DistributedDataParallel)", "fsdp": "FSDP (fully_shard)"}[run.recipe.run.parallel]
    return f"{name} over {ranks(run)} ranks", "NCCL, gloo for CPU tensors" if place_of(run) == "cuda" else "gloo"


def durations(run: Run) -> str:
    events = run.history.events
    elapsed = events[-1].at - events[0].at if len(events) > 1 else -1.0  # negative too where the clock was set back
    total = f"; {duration(elapsed)} from first start to last event" if elapsed >= 0 else ""
    return f"{duration(run.training_seconds)} in training steps{total}"


def memory(run: Run) -> str:
    """Return the highest memory use that the ends of attempts recorded."""
    most = max((end.memory_bytes for end in run.history.details(Ended)), default=0)
    of = "(peak on the GPU)" if place_of(run) == "cuda" else "(process, at the end)"
    return f"{byte_size(most)} {of}" if most else ""


def cost(run: Run) -> str:
    price = run.recipe.run.price_per_hour
    if not price:
        return ""
    hours = run.training_seconds / 3600
    return f"{money(hours * price)} ({duration(run.training_seconds)} at {money(price)} per hour, training steps only)"


def tokens_of_steps(steps: int, recipe: Recipe) -> str:
    return f"{steps:,} steps ({short_count(recipe.tokens_after(steps))} tokens)"


EVENT_TEXT = {
    Event.STARTED: "started",
    Event.RESUMED: "resumed",
    Event.BRANCHED: "branched",
    Event.ROLLBACK: "rolled back",
    Event.OUT_OF_MEMORY: "out of memory",
    Event.CHECKPOINT_FAILED: "checkpoint not written",
    Event.STOPPED: "stopped",
    Event.FAILED: "failed",
    Event.FINISHED: "finished",
}


def event_line(event: EventRecord) -> str:
    """Word an event for the report's list of attempts."""
    line = f"{clock_time(event.at, '%Y-%m-%d %H:%M:%S UTC', UTC)}: {EVENT_TEXT[event.event]}"
    line += f" at step {event.step:,}"
    match event.detail:
        case Started(ranks=ranks) as start:
            line += f" on {ranks} ranks" if ranks > 1 else ""
            changed = [escaped(change) for change in changes_of_resume(start)] if isinstance(start, Resumed) else []
            return f"{line} ({'; '.join(changed)})" if changed else line
        case Branched(source=source, checkpoint=digest):
            return f"{line} from the run {escaped(source)} (checkpoint {digest[:12]})"
        case Stopped(signal=signal) if signal:
            return f"{line} ({signal})"
        case OutOfMemory(micro_batch_before=before, micro_batch_after=after) if before:
            return f"{line} (micro-batch {before} halved to {after})"
    return line
