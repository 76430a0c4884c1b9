"""Commands for what has come out, or is coming: watch, runs, sample, evaluate, compare, report, export."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import DONE, UserError
from regpt.cli.arguments import Commands, add_overrides, add_run, add_runs, at_least
from regpt.distributed.env import current_launch
from regpt.distributed.signals import StopRequested

if TYPE_CHECKING:
    from rich.table import Table


def add(command: Commands) -> None:
    watch = command(
        "watch",
        run_watch,
        "look on while a run goes: curve, figures, speed, time left",
        "example: regpt watch gpt2-modern      in a second terminal, or on another machine that sees the folder\n\n"
        "It only reads, so it disturbs no run, and shows stopped and killed ones too. q or Ctrl-C leaves, and the run\n"
        "goes on; when the run has finished it leaves by itself. In a pipe, or with --once, it prints one plain view.\n"
        "docs/running.md says what is counted in the time left.",
    )
    add_run(watch)
    watch.add_argument(
        "--every", type=at_least(float, 0.1), default=1.0, metavar="SECONDS", help="between two looks (default: 1)"
    )
    watch.add_argument("--once", action="store_true", help="print what is now, and leave")
    watch.add_argument("--wait", action="store_true", help="for a run that is not there yet")

    runs = command("runs", run_runs, "list the runs")
    add_runs(runs)

    sample = command(
        "sample",
        run_sample,
        "let a model continue a prompt",
        "example: regpt sample demo-modern --prompt 'def main(' --tokens 40 --temperature 0.8",
    )
    add_run(sample)
    sample.add_argument("--prompt", default="", help="what to continue; nothing begins a new document")
    sample.add_argument(
        "--tokens", type=at_least(int, 1), default=64, metavar="N", help="new ones in each text (default 64)"
    )
    sample.add_argument("--count", type=at_least(int, 1), default=1, metavar="N", help="texts (default 1)")
    sample.add_argument(
        "--temperature",
        type=at_least(float, 0),
        default=1.0,
        metavar="X",
        help="0 takes the likeliest (default 1)",
    )
    sample.add_argument(
        "--top-k", type=at_least(int, 0), default=50, metavar="K", help="choose among K; 0: all (default 50)"
    )
    sample.add_argument(
        "--top-p", type=at_least(float, 0), default=1.0, metavar="P", help="nucleus; 1: all (default 1)"
    )
    sample.add_argument("--seed", type=at_least(int, 0), default=42, metavar="N", help="of the choice (default 42)")

    evaluate = command(
        "evaluate",
        run_evaluate,
        "ask a model multiple-choice tasks, and measure its validation loss",
        "examples: regpt evaluate demo-modern\n"
        "          regpt evaluate runs/gpt2-modern/checkpoints/step_005000 --tasks hellaswag,arc_easy,piqa\n"
        "          regpt evaluate some/hugging-face-directory --tasks validation data.path=data/fineweb-edu-10BT\n"
        "          regpt evaluate gpt2-modern --tasks lambada_openai --lm-eval\n\n"
        "tasks: validation, hellaswag, hellaswag_lm_eval, arc_easy, arc_challenge, piqa, sciq, winogrande,\n"
        "       openbookqa, social_iqa, boolq\n\n"
        "Every accuracy stands with its standard error and the rule by which endings are judged. The answer to each\n"
        "item is kept in RUN/evaluations/step_N (of a model that is no run's, in evaluations/NAME), for regpt compare.",
        on_ranks=True,
    )
    evaluate.add_argument("model", metavar="MODEL", help="a run, a checkpoint's folder, or a Hugging Face directory")
    evaluate.add_argument(
        "--tasks", metavar="A,B", help="(default: hellaswag, and validation where there is its data set)"
    )
    evaluate.add_argument(
        "--items",
        type=at_least(int, 1),
        default=0,
        metavar="N",
        help="a fixed choice of N (default: all); of lm-eval the first",
    )
    evaluate.add_argument("--into", type=Path, metavar="FOLDER", help="where to keep the answers instead")
    evaluate.add_argument(
        "--lm-eval", action="store_true", help="tasks of lm-evaluation-harness, by it (pip install 'regpt[lm-eval]')"
    )
    evaluate.add_argument(
        "--include-path", type=Path, metavar="FOLDER", help="with --lm-eval, tasks of your own (.yaml)"
    )
    add_runs(evaluate)
    add_overrides(evaluate)

    compare = command(
        "compare",
        run_compare,
        "hold models against each other: what is unfair, what differs, and which differences are differences",
        "example: regpt compare demo-modern demo-classic\n\n"
        "The first is held against each other one. Where both were asked the same items: McNemar's exact test on the\n"
        "items that only one got right, and the interval of 10,000 resamples. The page comparisons/RUN-vs-RUN/\n"
        "comparison.md has the losses at equal tokens and at equal time, pictures, samples, and all that differs.",
    )
    compare.add_argument(
        "models",
        metavar="RUN",
        nargs="+",
        help="a run, live or finished; a folder that `regpt evaluate` made; a .toml recipe with recorded figures",
    )
    compare.add_argument("--into", type=Path, metavar="FOLDER", help="where to write the page and its pictures instead")
    compare.add_argument(
        "--html", action="store_true", help="also write comparison.html: all of it in one page that needs no other file"
    )
    add_runs(compare)

    report = command("report", run_report, "write a run's record: report.md and its pictures, in the run's folder")
    add_run(report)
    report.add_argument(
        "--against",
        metavar="OTHER",
        nargs="+",
        action="extend",
        default=[],
        help="runs, or .toml recipes with recorded figures",
    )
    report.add_argument(
        "--html", action="store_true", help="also write report.html: all of it in one page that needs no other file"
    )

    export = command("export", run_export, "write a run's newest checkpoint as a Hugging Face directory")
    add_run(export)
    export.add_argument("target", type=Path, metavar="DIRECTORY", help="to make")


def run_watch(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run
    from regpt.watch.view import wait_for, watch

    where = (arguments.run, arguments.runs)
    try:
        path = wait_for(*where, arguments.every, tell) if arguments.wait else find_run(*where)
        return watch(path, arguments.every, arguments.once)
    except KeyboardInterrupt:  # a look ends as it likes
        return DONE


def tell(text: str) -> None:
    print(text, file=sys.stderr)


def run_runs(arguments: argparse.Namespace) -> int:
    from regpt.cli.tables import runs_table
    from regpt.tracking.run import run_paths

    paths = run_paths(arguments.runs)
    if not paths:
        print(f"no runs in {arguments.runs}/ yet; `regpt demo` makes two")
        return DONE
    print_table(runs_table(paths))
    return DONE


def run_sample(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.evaluation.sampling import Sampling, continuations
    from regpt.interop.open_model import load_model

    texts = continuations(
        load_model(path),
        arguments.prompt,
        arguments.count,
        arguments.tokens,
        Sampling(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p, seed=arguments.seed),
    )
    print("\n---\n".join(texts))
    return DONE


def print_table(table: "Table") -> None:
    """As wide as the terminal; in a pipe no line is broken."""
    from rich.console import Console as Terminal

    Terminal(highlight=False, width=None if sys.stdout.isatty() else 400).print(table)


def run_evaluate(arguments: argparse.Namespace) -> int:
    from regpt.cli.tables import results_table
    from regpt.console.training import Console, EvaluationConsole, quiet_console
    from regpt.distributed.device import open_device
    from regpt.distributed.rendezvous import open_rank_group
    from regpt.evaluation.evaluate import default_tasks, evaluate, parse_tasks
    from regpt.evaluation.results import evaluation_dir
    from regpt.interop.open_model import open_model

    by_harness, tasks = arguments.lm_eval, arguments.tasks
    names = parse_tasks(tasks) if tasks and not by_harness else []
    if arguments.include_path and not by_harness:
        raise UserError("--include-path is for lm-eval's tasks", "add --lm-eval")
    opened = open_model(arguments.model, arguments.runs, arguments.overrides)
    device = open_device(opened.recipe.run)
    into = arguments.into or evaluation_dir(opened)
    try:
        with (
            open_rank_group(device, opened.recipe.run.rank_timeout) as ranks,
            Console() if ranks.is_main else quiet_console() as console,
            console.stoppable(several_ranks=ranks.size > 1),
        ):
            given = (into, device, ranks, arguments.items, EvaluationConsole(console).evaluating)
            if by_harness:
                from regpt.evaluation.lm_eval import evaluate_with_lm_eval

                results = evaluate_with_lm_eval(opened, tasks, *given, arguments.include_path)
            else:
                results = evaluate(opened, names or default_tasks(opened), *given)
    except StopRequested as stopped:
        if current_launch().rank == 0:
            print(f"stopped by {stopped.name}; what was finished is kept in {into}", file=sys.stderr)
        return stopped.code
    if results:
        print_table(results_table(results))
        print(f"kept in {into}")
    return DONE


def run_compare(arguments: argparse.Namespace) -> int:
    from regpt.comparison.loading import load_models

    models = load_models(arguments.models, arguments.runs)
    from regpt.cli.comparison import print_summary
    from regpt.comparison.page import default_directory, write_comparison

    written = write_comparison(models, arguments.into or default_directory(models, Path()), arguments.html)
    print_summary(models)
    print(f"comparison: {' and '.join(map(str, written))}")
    return DONE


def run_report(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run, open_run

    run = open_run(find_run(arguments.run, arguments.runs))
    from regpt.reporting.page import write_page, write_report
    from regpt.reporting.scores import open_baseline

    others = [open_baseline(other, arguments.runs) for other in arguments.against]
    written = [write_report(run, others), *([write_page(run, others)] if arguments.html else [])]
    print(f"report: {' and '.join(map(str, written))}")
    return DONE


def run_export(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.interop.huggingface import export
    from regpt.interop.open_model import load_model

    export(load_model(path), arguments.target)
    print(f"exported: {arguments.target}")
    return DONE
