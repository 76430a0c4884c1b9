"""The functions of `import regpt`: what the commands do, for scripts and notebooks.

They return runs, models, paths and numbers. They print nothing unless `progress=True`, install no signal handlers
unless `handle_signals=True`, and raise UserError (with `.problem` and `.fix`) for everything that the caller can fix.
Each function imports what it needs when it is called.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regpt.base.errors import UserError
from regpt.recipe.recipe import Recipe
from regpt.tracking.run import Run, find_run
from regpt.tracking.run import open_run as open_run_directory

if TYPE_CHECKING:
    from regpt.console.training import Console
    from regpt.data.shards import Manifest
    from regpt.evaluation.results import Result
    from regpt.interop.open_model import LoadedModel

__all__ = [
    "Run",
    "UserError",
    "compare",
    "cooldown",
    "evaluate",
    "generate",
    "load_model",
    "load_recipe",
    "open_run",
    "prepare",
    "report",
    "resume",
    "train",
]

RUNS = Path("runs")  # where runs lie unless the caller names another folder
AnyPath = str | PathLike[str]


def load_recipe(recipe: AnyPath, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Load a recipe: a .toml file, or the name of one that regpt ships, such as "gpt2-modern".

    `overrides` change settings: {"run.max_steps": 20}, or ["run.max_steps=20"] as on the command line. Raises UserError
    that lists every problem at once.
    """
    from regpt.recipe.settings import load_recipe as load

    if isinstance(overrides, Mapping):
        overrides = [override_word(setting, value) for setting, value in overrides.items()]
    return load(Path(recipe) if isinstance(recipe, PathLike) else recipe, overrides)


def override_word(setting: str, value: Any) -> str:
    """Return 'section.key=value' for text, a path, a bool or a number, also NumPy's. Raises UserError for others."""
    from regpt.recipe.settings import toml_value

    match value:
        case PathLike():
            value = fspath(value)
        case str() | bool():
            pass
        case Integral():
            value = int(value)
        case Real():
            value = float(value)
        case _:
            raise UserError(
                f"{setting} = {value!r} is not a value of a setting", "give text, a path, a number or a bool"
            )
    return f"{setting}={toml_value(value)}"


def prepare(recipe: Recipe, *, progress: bool = False) -> "Manifest":
    """Prepare the dataset at `data.path` from `data.source`, or open it if it exists. Returns its manifest.

    An interrupted preparation continues where it stopped. Raises DataError if the text cannot be read or is too short.
    """
    from regpt.preparation import dataset

    make = dataset.open_or_prepare if recipe.data.directory.exists() else dataset.prepare
    if not progress:
        return make(recipe)
    from regpt.console.preparation import PreparationConsole
    from regpt.console.training import Console

    with Console() as console:
        return make(recipe, PreparationConsole(console))


def train(
    recipe: Recipe,
    run_dir: AnyPath | None = None,
    *,
    progress: bool = False,
    handle_signals: bool = False,
) -> Run:
    """Train a new run until it is finished or stopped, and return it.

    `run_dir` defaults to runs/NAME, with the recipe's name; it must not exist yet. Missing data is prepared first.
    Under torchrun every rank calls this; ranks other than 0 need to see the same file system. With `handle_signals`,
    SIGINT and SIGTERM save a checkpoint before the run stops.
    """
    from regpt.training.start import train as start

    path = Path(run_dir) if run_dir is not None else RUNS / recipe.name
    run = start(recipe, path, console=console_for(progress), handle_signals=handle_signals)
    return run if run is not None else open_run_directory(path)


def resume(
    run: "Run | AnyPath",
    overrides: Sequence[str] = (),
    *,
    progress: bool = False,
    handle_signals: bool = False,
) -> Run:
    """Resume a run from its newest valid checkpoint, for example with ["run.max_steps=400"], and return it.

    Raises CheckpointError if there is no checkpoint, or if a setting would change the results of earlier steps.
    """
    from regpt.training.start import resume as start

    path = run_path(run)
    resumed = start(path, overrides, console=console_for(progress), handle_signals=handle_signals)
    return resumed if resumed is not None else open_run_directory(path)


def cooldown(
    run: "Run | AnyPath",
    run_dir: AnyPath | None = None,
    *,
    at: int | None = None,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    progress: bool = False,
    handle_signals: bool = False,
) -> Run:
    """Branch a trapezoid run after `at` steps, train the branch through its cooldown, and return it.

    The result is that of a run that cooled down there from the start. The source is only read; it may be training. `at`
    defaults to its newest intact checkpoint, `steps` to the recipe's cooldown_steps, or a quarter of `at` if that is 0.
    `run_dir` defaults to RUN-cooldown-STEP next to the source; it must not exist yet. Raises UserError if the run has
    no constant part or cools down already, CheckpointError if there is no intact checkpoint of that step.
    """
    from regpt.branching.branch import start_cooldown

    target = Path(run_dir) if run_dir is not None else None
    started = start_cooldown(
        run_path(run), target, at, steps, overrides, console=console_for(progress), handle_signals=handle_signals
    )
    return started.open() or open_run_directory(started.run_dir)


def open_run(run: AnyPath, runs: AnyPath = RUNS) -> Run:
    """Open a run by its directory, or by its name in `runs`; it may still be training."""
    return open_run_directory(find_run(str(run), Path(runs)))


def load_model(model: "Run | AnyPath", runs: AnyPath = RUNS, *, step: int | None = None) -> "LoadedModel":
    """Load a model on the CPU, in float32 and evaluation mode.

    `model` is a run, the directory of a checkpoint, or a Hugging Face directory (GPT-2, Llama, Mistral, Qwen2).
    `step` selects a checkpoint of a run; the default is the newest valid one. The result has a `tokenizer`, and as
    `.model` a torch.nn.Module. Called with token ids, it returns logits: (B, T) -> (B, T, V). V is `model.vocab_size`,
    which may be larger than the tokenizer's vocabulary.
    """
    from regpt.interop.open_model import open_model

    return open_model(model.path if isinstance(model, Run) else model, Path(runs), step=step)


def generate(
    model: "LoadedModel | Run | AnyPath",
    prompt: str = "",
    *,
    tokens: int = 64,
    count: int = 1,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 42,
) -> list[str]:
    """Continue a prompt `count` times by up to `tokens` new tokens; returns prompt and continuation of each.

    Temperature 0 takes the most likely token. The same seed gives the same texts. A text ends early where the model
    ends its document.
    """
    from regpt.evaluation.sampling import stream_texts
    from regpt.generation.drawing import Sampling

    loaded = loaded_model(model)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    texts = [""] * count
    for number, piece in stream_texts(loaded.model, prompt, count, tokens, sampling, loaded.tokenizer):
        texts[number] += piece
    return texts


def evaluate(
    model: "LoadedModel | Run | AnyPath",
    tasks: Sequence[str] | None = None,
    *,
    items: int = 0,
    into: AnyPath | None = None,
) -> "list[Result]":
    """Measure the validation loss and multiple-choice tasks; returns one result for each task and metric.

    `tasks` are names such as "validation" or "hellaswag"; the default is these two, the first if the model's dataset
    exists. `items` limits a task to a fixed subset; 0 takes all. Predictions and losses are kept in `into`, by default
    in the run's evaluations/ directory.
    """
    from regpt.distributed.rank_group import RankGroup
    from regpt.evaluation.evaluate import default_tasks, parse_tasks
    from regpt.evaluation.evaluate import evaluate as measure
    from regpt.evaluation.results import evaluation_dir
    from regpt.machine.device import open_device_for_evaluation

    loaded = loaded_model(model)
    names = parse_tasks(",".join(tasks)) if tasks else default_tasks(loaded)
    target = Path(into) if into is not None else evaluation_dir(loaded)
    return measure(loaded, names, target, open_device_for_evaluation(loaded.recipe.run), RankGroup(), items)


def compare(
    *models: "Run | AnyPath",
    into: AnyPath | None = None,
    runs: AnyPath = RUNS,
    html: bool = False,
) -> Path:
    """Compare runs and evaluated models; returns the path of comparison.md, or of comparison.html with `html`.

    Runs whose recipes differ only in seeds are one group; two groups or more are compared over seeds.
    """
    from regpt.comparison.page import default_directory, write_comparison
    from regpt.fairness.loading import load_models

    names = [str(model.path if isinstance(model, Run) else model) for model in models]
    opened = load_models(names, Path(runs))
    target = Path(into) if into is not None else default_directory(opened, Path())
    return write_comparison(opened, target, html)[-1]


def report(
    run: "Run | AnyPath",
    against: "Sequence[Run | AnyPath]" = (),
    *,
    runs: AnyPath = RUNS,
    html: bool = False,
) -> Path:
    """Write the report of a run, compared with runs, models or recipes; return the path of report.md, or .html."""
    from regpt.fairness.baselines import open_baseline
    from regpt.reporting.page import write_page, write_report

    opened = run if isinstance(run, Run) else open_run(run, runs)
    baselines = [open_baseline(str(one.path if isinstance(one, Run) else one), Path(runs), opened) for one in against]
    path = write_report(opened, baselines)
    return write_page(opened, baselines) if html else path


def run_path(run: "Run | AnyPath") -> Path:
    return run.path if isinstance(run, Run) else find_run(str(run), RUNS)


def loaded_model(model: "LoadedModel | Run | AnyPath") -> "LoadedModel":
    from regpt.interop.open_model import LoadedModel

    return model if isinstance(model, LoadedModel) else load_model(model)


def console_for(progress: bool) -> "Console | None":
    from regpt.console.training import Console

    return Console() if progress else None
