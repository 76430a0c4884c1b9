"""The commands report, compare, runs, watch and serve."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import DONE, UserError
from regpt.base.format import NO_VALUE, with_error
from regpt.cli.arguments import add_command, add_float32, add_run, add_runs, add_step, at_least
from regpt.cli.output import print_table

if TYPE_CHECKING:
    from rich.table import Table

    from regpt.cli.arguments import Subparsers


def add_watch(commands: "Subparsers") -> None:
    watch = add_command(
        commands,
        "watch",
        run_watch,
        "watch a run live: loss curve, speed, time left",
        "example: regpt watch gpt2-modern      in a second terminal, or on another machine that sees the folder\n\n"
        "Only reads, so it never disturbs the run; shows stopped and killed runs too. q or Ctrl-C leaves the view\n"
        "and the run continues. In a pipe, or with --once, it prints one plain view. docs/running.md explains the\n"
        "time left.",
    )
    add_run(watch)
    watch.add_argument(
        "--every", type=at_least(float, 0.1), default=1.0, metavar="SECONDS", help="time between updates (default: 1)"
    )
    watch.add_argument("--once", action="store_true", help="print the current state once")
    watch.add_argument("--wait", action="store_true", help="wait for a run that does not exist yet")


def add_runs_command(commands: "Subparsers") -> None:
    add_runs(add_command(commands, "runs", run_runs, "list the runs with their state, losses and speed"))


def add_serve(commands: "Subparsers") -> None:
    serve = add_command(
        commands,
        "serve",
        run_serve,
        "show the runs in a browser, and answer OpenAI clients with a model",
        "examples: regpt serve                 then open http://127.0.0.1:8000\n"
        "          regpt serve demo-modern     also answers http://127.0.0.1:8000/v1/completions\n"
        "          regpt serve demo-modern demo-classic     both, next to each other in the page's playground\n"
        "          regpt serve demo-modern --step 120     this checkpoint, as the model demo-modern-step-120\n\n"
        "Only reads, so it never disturbs a run. It needs: pip install 'regpt[serve]'. Only this machine can connect,\n"
        "unless --host names another address, which needs a --token. docs/serve.md shows the page.",
    )
    serve.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        help="models as in `regpt evaluate`, each under its name (default: only the runs)",
    )
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, metavar="PORT", help="port (default: 8000; 0: any free one)")
    serve.add_argument("--token", metavar="TOKEN", help="secret that every request must have, of 16 characters or more")
    add_step(serve)
    add_float32(serve)
    add_runs(serve)


def add_compare(commands: "Subparsers") -> None:
    compare = add_command(
        commands,
        "compare",
        run_compare,
        "compare models: caveats, paired significance tests, losses at equal tokens and time",
        "examples: regpt compare demo-modern demo-classic\n"
        "          regpt compare runs/base-* runs/muon-*\n\n"
        "The first model is compared with each of the others. Where both scored the same items, McNemar's exact test\n"
        "decides; losses on the same windows are compared by a paired t-test. Writes comparison.md and its figures to\n"
        "comparisons/A-vs-B. docs/compare.md explains the tests.\n\n"
        "Runs whose recipes differ only in seeds form one group. Two or more groups with at least two seeds each are\n"
        "compared over seeds, by a paired or Welch's t-test; the first group is the reference.",
    )
    compare.add_argument(
        "models",
        metavar="RUN",
        nargs="+",
        help="a run, a folder written by `regpt evaluate`, or a recipe with published results",
    )
    compare.add_argument("--into", type=Path, metavar="FOLDER", help="write the comparison to another folder")
    compare.add_argument("--html", action="store_true", help="also write comparison.html, one self-contained file")
    add_runs(compare)


def add_report(commands: "Subparsers") -> None:
    report = add_command(
        commands,
        "report",
        run_report,
        "write the report of a run",
        "examples: regpt report demo-modern --against demo-classic --html\n"
        "          regpt report mine --against hub:openai-community/gpt2\n\n"
        "Writes report.md and its figures to the run's folder. The run may still be training. A model that is no run\n"
        "is validated on the run's windows first.",
    )
    add_run(report)
    report.add_argument(
        "--against",
        metavar="OTHER",
        nargs="+",
        action="extend",
        default=[],
        help="runs, models (as regpt evaluate takes them), or recipes with published figures, to compare with",
    )
    add_step(report, "--against")
    report.add_argument("--html", action="store_true", help="also write report.html, one self-contained file")


def run_watch(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run
    from regpt.watch.view import wait_for, watch

    where = (arguments.run, arguments.runs)
    try:
        path = wait_for(*where, arguments.every, print_note) if arguments.wait else find_run(*where)
        return watch(path, arguments.every, arguments.once)
    except KeyboardInterrupt:  # one more way to leave
        return DONE


def print_note(text: str) -> None:
    print(text, file=sys.stderr)


def run_runs(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import run_paths

    paths = run_paths(arguments.runs)
    if not paths:
        print(f"no runs in {arguments.runs}/ yet; `regpt demo` makes two")
        return DONE
    print_table(runs_table(paths))
    return DONE


def run_serve(arguments: argparse.Namespace) -> int:
    try:
        from regpt.serve.server import ServedModel, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise UserError(f"{error.name} is not installed", "pip install 'regpt[serve]'") from None
    given = (arguments.runs, arguments.host, arguments.port, arguments.token, print_line)
    choice = arguments.step, arguments.averaged
    has_choice = arguments.step is not None or arguments.averaged
    if not arguments.models:
        if has_choice:
            raise UserError(
                "--step and --averaged choose among the models of a run", "name one: regpt serve RUN --step N"
            )
        return serve(*given)
    from regpt.endpoint.routes import model_routes
    from regpt.endpoint.served_models import ServedModels, check_count
    from regpt.interop.open_model import open_model

    check_count(arguments.models)
    opened = [open_model(model, arguments.runs, (), *choice) for model in arguments.models]
    models = ServedModels(opened, has_choice, half_weights=not arguments.float32)
    try:
        return serve(*given, ServedModel(", ".join(models.names), model_routes(models)))
    finally:
        models.close()


def print_line(text: str) -> None:
    print(text, flush=True)


def run_compare(arguments: argparse.Namespace) -> int:
    from regpt.fairness.loading import load_models

    models = load_models(arguments.models, arguments.runs)
    from regpt.cli.output import print_comparison
    from regpt.comparison.page import default_directory, write_comparison

    written = write_comparison(models, arguments.into or default_directory(models, Path()), arguments.html)
    print_comparison(models)
    print(f"comparison: {' and '.join(map(str, written))}")
    return DONE


def run_report(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run, open_run

    run = open_run(find_run(arguments.run, arguments.runs))
    from regpt.fairness.baselines import open_baseline
    from regpt.reporting.page import write_page, write_report

    choice = arguments.step, arguments.averaged
    others = [open_baseline(other, arguments.runs, run, *choice) for other in arguments.against]
    written = [write_report(run, others), *([write_page(run, others)] if arguments.html else [])]
    print(f"report: {' and '.join(map(str, written))}")
    return DONE


def runs_table(paths: Sequence[Path]) -> "Table":
    """Return a table with a row for each run. The state comes from the process, as in `regpt watch`."""
    from rich.table import Table

    from regpt.tracking.run import open_run, primary_accuracy
    from regpt.tracking.status import state_of

    table = Table(
        "run", "state", "step", "tokens", "validation loss", "HellaSwag", "tokens/s", box=None, pad_edge=False
    )
    for path in paths:
        try:
            run = open_run(path)
        except UserError as error:
            table.add_row(path.name, f"cannot be read: {error.problem}")
            continue
        state = state_of(run)
        loss = f"{run.validation_loss:.4f}" if run.validation_loss is not None else NO_VALUE
        step = f"{run.history.step:,}/{run.recipe.run.max_steps:,}"
        share = with_error(*primary_accuracy(run.hellaswag[-1])) if run.hellaswag else NO_VALUE
        speed = f"{run.tokens_per_second:,.0f}"
        table.add_row(run.id, state, step, f"{run.tokens:,}", loss, share, speed)
    return table
