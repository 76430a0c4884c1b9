"""The commands. The only place that parses arguments and prints an error to a user.

Nothing heavy is imported here: each command imports what it needs when it runs, so that --help answers at once.
"""

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from regpt import __version__
from regpt.base.errors import CHECKPOINT, DATA, DONE, INTERRUPTED, NUMERICS, USAGE, RecipeError, UserError
from regpt.run.launch import launched, leave
from regpt.run.stopping import Stopped

if TYPE_CHECKING:
    from rich.table import Table

DESCRIPTION = "Retrain GPT-2 (124M) from nothing, classic and modern, and write down what came out."
EPILOG = """\
from text to report:
  regpt demo                                            all of it in miniature, in a few minutes
  regpt recipe show gpt2-050226 --against gpt2-230126   what a run will do, before it does it
  regpt plan gpt2-050226 --gpu "RTX 5090"               memory, hours, energy, money; and what cannot be
  regpt doctor gpt2-050226                              a rehearsal on this machine, in two minutes
  regpt prepare gpt2-050226                             text of the hub, or data.source=FOLDER -> token shards
  regpt train gpt2-050226                               token shards -> runs/gpt2-050226
  regpt watch gpt2-050226                               look on from another terminal
  regpt resume gpt2-050226                              go on after Ctrl-C or a crash
  regpt report gpt2-050226 --against gpt2-230126        the record, with pictures
  regpt evaluate gpt2-050226 --tasks hellaswag,piqa     a finished model asked more, or somebody else's
  regpt compare gpt2-050226 gpt2-230126                 which differences are differences

RECIPE is a .toml file or the name of one that regpt comes with. Any setting can be changed for one command by writing
section.key=value behind it, as in: regpt train demo-modern run.max_steps=20 optimizer.max_lr=1e-3
`regpt recipe help` lists all settings. RUN is the name of a folder in runs/, or a path.

on several cards: torchrun --standalone --nproc_per_node=4 -m regpt train gpt2-050226   (docs/scale.md)

exit codes: 0 done, 2 usage or recipe, 3 data, 4 checkpoint, 5 numbers that are none, 6 locked, 7 a rank was lost,
            130 stopped by Ctrl-C after saving, 143 by SIGTERM, SIGUSR1 or run.time_limit after saving
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. As one rank of several it ends the process."""
    return carry_out(parsed(words)) if launched().ranks == 1 else carry_out_as_rank(words)


def carry_out_as_rank(words: Sequence[str] | None) -> NoReturn:
    """What all ranks would say, the first says; errors of one rank alone, that rank."""
    nowhere = Path(os.devnull).open("w", encoding="utf-8") if launched().rank else None  # noqa: SIM115  to the end
    sys.stdout = nowhere or sys.stdout
    code = 1
    try:
        with contextlib.redirect_stderr(nowhere or sys.stderr):
            arguments = parsed(words)
        if arguments.command not in (run_train, run_resume, run_reproduce, run_evaluate):
            arguments.command = refuse_ranks
        code = carry_out(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    leave(code)


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    top = parser()
    if words is None and len(sys.argv) == 1:
        top.print_help()
        sys.exit(USAGE)
    arguments, left = top.parse_known_args(words)
    # argparse takes settings in one group only; those behind a later option are left over
    if left and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in left)):
        top.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.overrides += left
    return arguments


def carry_out(arguments: argparse.Namespace) -> int:
    """Run a command, and say what went wrong."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):  # a model's text may hold what a console cannot show
            sys.stdout.reconfigure(errors="replace")
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        if error.tells or (error.tells is None and launched().local_rank == 0):
            print(f"error: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # whoever read our output has left, as `head` does
        sys.stdout = None  # nothing is left to flush at exit
        return DONE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        problem = f"{where}{error.strerror or error}"
        print(f"error: {problem} — check the path, its permissions and the space left", file=sys.stderr)
        return USAGE
    except Stopped as stopped:  # a preparation; a run of training has its own last line
        if launched().rank == 0:
            print(f"stopped by {stopped.name}; the same command goes on from there", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="regpt",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"regpt {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], help: str, more: str = ""
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=run)
        return added

    demo = command("demo", run_demo, "prepare, train classic, train modern, compare: the whole way in miniature")
    add_runs(demo)
    add_overrides(demo)

    prepare = command(
        "prepare",
        run_prepare,
        "turn text into a sealed data set of token shards",
        "example: regpt prepare demo-modern data.source=my-texts data.path=data/mine data.validation_tokens=20000\n\n"
        "data.source is a file or a folder of text (.txt, .md, .py …), JSON lines (.jsonl, .jsonl.gz, .jsonl.zst)\n"
        "or parquet; 'stdlib', the sources of Python's standard library; or hub:OWNER/NAME/FOLDER.\n\n"
        "Stopped or killed, the same command goes on where it was. docs/data.md tells the whole way.",
    )
    prepare.add_argument(
        "--executor",
        choices=["local", "slurm", "ray"],
        help="prepare by datatrove, a file a task, on a cluster (pip install 'regpt[cluster]')",
    )
    prepare.add_argument("--tasks", type=at_least(int, 1), metavar="N", help="of the executor (default: 14)")
    prepare.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="of the executor, such as partition=cpu, time=04:00:00, cpus_per_task=2",
    )
    add_recipe(prepare)

    data = command("data", run_data_show, "take over other people's shards; verify and look at data sets")
    handled = data.add_subparsers(metavar="import|verify|show", required=True)
    taken_over = handled.add_parser(
        "import",
        help="use a folder of build-nanogpt's .npy, or llm.c's or modded-nanogpt's .bin shards",
        description="Read a folder of token shards once and give it a manifest. The shards stay as they are.",
        epilog="example: regpt data import edu_fineweb10B && regpt train gpt2-050226 data.path=edu_fineweb10B",
    )
    taken_over.set_defaults(command=run_data_import)
    add_directory(taken_over)
    taken_over.add_argument(
        "--into", type=Path, metavar="FOLDER", help="make a folder of links instead, where DIR cannot be written"
    )
    verified = handled.add_parser("verify", help="read all of a data set again and hold it against its manifest")
    verified.set_defaults(command=run_data_verify)
    add_directory(verified)
    shown = handled.add_parser(
        "show",
        help="what is in a data set",
        epilog="example: regpt data show data/fineweb-edu-10BT --window 12 --text",
    )
    shown.set_defaults(command=run_data_show)
    add_directory(shown)
    shown.add_argument("--window", type=at_least(int, 0), metavar="N", help="print this window's tokens")
    shown.add_argument("--text", action="store_true", help="… as text")
    shown.add_argument("--split", choices=["train", "val"], default="train", help="of the window (default: train)")
    shown.add_argument(
        "--block-size", type=at_least(int, 1), default=1024, metavar="N", help="tokens in a window (default: 1024)"
    )

    plan = command(
        "plan",
        run_plan,
        "tell what a recipe will take: memory, time, energy, money, disk; and what cannot be",
        "examples: regpt plan gpt2-050226 --gpu 'RTX 5090' --price 0.5\n"
        "          regpt plan gpt2-050226 --gpu H100 --gpus 8\n"
        "          regpt plan gpt2-050226 --gpu all\n"
        "          regpt plan demo-modern           this machine, measured for two seconds\n\n"
        "Nothing is trained and nothing is written. docs/plan.md tells what the ranges rest on.",
    )
    plan.add_argument("--gpu", metavar="NAME", help="a card, or 'all' (default: what this machine has)")
    plan.add_argument("--gpus", type=at_least(int, 1), default=1, metavar="N", help="how many (default: 1)")
    plan.add_argument("--price", type=at_least(float, 0), metavar="USD", help="of one card for an hour")
    add_runs(plan)
    add_recipe(plan)

    doctor = command(
        "doctor",
        run_doctor,
        "rehearse a run: everything it will do, small, before it; green or red, with the remedy",
        "example: regpt doctor demo-modern\n\n"
        "A few small steps with the recipe's own model, data and machine, in a folder that goes afterwards: data\n"
        "verified, first loss, one batch overfitted, two starts equal, saved, killed, resumed, ranks, evaluated,\n"
        "sampled, exported, reported; memory, disk and time. Two minutes or less, but for large models on a CPU.\n"
        "The exit code is that of the first red.",
    )
    doctor.add_argument(
        "--ranks",
        type=at_least(int, 1),
        metavar="N",
        help="that the run shall have (default: as many as there are cards)",
    )
    add_runs(doctor)
    add_recipe(doctor)

    train = command(
        "train",
        run_train,
        "train a model from nothing",
        "example: regpt train demo-modern run.max_steps=20 --name trial\n\n"
        "A data set that is missing is prepared first, where its text is at hand. Ctrl-C saves and says how to go on.",
    )
    train.add_argument("--name", metavar="NAME", help="of the run; the recipe's name if not given")
    add_runs(train)
    add_recipe(train)

    resume = command(
        "resume",
        run_resume,
        "go on from a run's newest whole checkpoint",
        "Settings that change no result may be given anew, such as data.path when the data set has moved; and more\n"
        "steps (run.max_steps=…) and other looks (evaluation.…), which is written down. The rest is refused.",
    )
    add_run(resume)
    add_overrides(resume)

    checkpoints = command(
        "checkpoints",
        run_checkpoints,
        "list a run's checkpoints and hold each against its hashes; exit code 4 if one is not",
    )
    add_run(checkpoints)

    replay = command(
        "replay",
        run_replay,
        "show what a step trained on, and that it is what the journal says",
        "example: regpt replay gpt2-050226 --step 1200 | head",
    )
    add_run(replay)
    replay.add_argument("--step", type=at_least(int, 1), required=True, metavar="N", help="the step, counted from 1")
    replay.add_argument("--text", action="store_true", help="all of the text, not only its beginning")

    reproduce = command(
        "reproduce",
        run_reproduce,
        "train a run's first steps again and say where, if anywhere, the two part; exit code 5 if they do",
    )
    add_run(reproduce)
    reproduce.add_argument("--steps", type=at_least(int, 1), default=10, metavar="K", help="to train (default: 10)")

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
        "          regpt evaluate runs/gpt2-050226/checkpoints/step_005000 --tasks hellaswag,arc_easy,piqa\n"
        "          regpt evaluate some/hugging-face-directory --tasks validation data.path=data/fineweb-edu-10BT\n"
        "          regpt evaluate gpt2-050226 --tasks lambada_openai --lm-eval\n\n"
        "tasks: validation, hellaswag, hellaswag_lm_eval, arc_easy, arc_challenge, piqa, sciq, winogrande,\n"
        "       openbookqa, social_iqa, boolq\n\n"
        "Every accuracy stands with its standard error and the rule by which endings are judged. The answer to each\n"
        "item is kept in RUN/evaluations/step_N (of a model that is no run's, in evaluations/NAME), for regpt compare.",
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

    watch = command(
        "watch",
        run_watch,
        "look on while a run goes: curve, figures, speed, time left",
        "example: regpt watch gpt2-050226      in a second terminal, or on another machine that sees the folder\n\n"
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

    export = command("export", run_export, "write a run's newest checkpoint as a Hugging Face directory")
    add_run(export)
    export.add_argument("target", type=Path, metavar="DIRECTORY", help="to make")

    recipe = command("recipe", run_recipe_help, "look at recipes and settings")
    looks = recipe.add_subparsers(metavar="show|list|help", required=True)
    show = looks.add_parser("show", help="a recipe, resolved, and what follows from it")
    show.set_defaults(command=run_recipe_show)
    show.add_argument("--against", metavar="RECIPE", help="another one; prints what differs")
    show.add_argument(
        "--ranks", type=at_least(int, 1), default=1, metavar="N", help="that it shall run on (default: 1)"
    )
    add_recipe(show)
    looks.add_parser("list", help="the recipes that regpt comes with").set_defaults(command=run_recipe_list)
    looks.add_parser("help", help="every setting, its default and its meaning").set_defaults(command=run_recipe_help)
    return top


def add_recipe(to: argparse.ArgumentParser) -> None:
    to.add_argument("recipe", metavar="RECIPE", help="a .toml file, or the name of one that regpt comes with")
    add_overrides(to)


def add_directory(to: argparse.ArgumentParser) -> None:
    to.add_argument("directory", type=Path, metavar="DIR", help="the folder of shards")


def add_overrides(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="settings to change (`regpt recipe help`)"
    )


def add_run(to: argparse.ArgumentParser) -> None:
    to.add_argument("run", metavar="RUN", help="a run's name or folder")
    add_runs(to)


def add_runs(to: argparse.ArgumentParser) -> None:
    to.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="where runs lie (default: runs)")


def at_least(kind: Callable[[str], float], least: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    number.__name__ = "whole number" if kind is int else "number"
    return number


# The commands


def refuse_ranks(arguments: argparse.Namespace) -> int:
    raise UserError(
        f"torchrun started {launched().ranks} ranks for a command that runs on one",
        "start it without torchrun; train, resume, reproduce and evaluate run on several",
    )


def run_demo(arguments: argparse.Namespace) -> int:
    from regpt.demo import demo

    return demo(arguments.runs, arguments.overrides)


def run_prepare(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import load_recipe
    from regpt.data.prepare import prepare
    from regpt.run.console import Console

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.executor is None and (arguments.option or arguments.tasks is not None):
        raise UserError("--tasks and --option are for an executor", "add --executor local, slurm or ray")
    if arguments.executor is not None:
        from regpt.data.cluster import folder_of_logs, prepare_on

        options = dict(option_of_executor(word) for word in arguments.option)
        made = prepare_on(arguments.executor, recipe, arguments.tasks or 14, options)
        if made is None:
            print(f"queued; {recipe.data.path} is there when the last job has ended. Logs: {folder_of_logs(recipe)}")
            return DONE
        manifest = made
    else:
        with Console() as console, console.stoppable():
            manifest = prepare(recipe, console)
    print(f"digest {manifest.digest}")
    return DONE


def option_of_executor(word: str) -> tuple[str, str | int]:
    key, equals, value = word.partition("=")
    if not (key and equals):
        raise UserError(f"--option {word}: is no KEY=VALUE", "write it as in --option partition=cpu")
    return key, int(value) if value.isdecimal() else value


def run_data_import(arguments: argparse.Namespace) -> int:
    from regpt.data.adopt import adopt, find_shards
    from regpt.run.console import Console

    found = find_shards(arguments.directory)
    with Console() as console:
        advance = console.reading("import", sum(2 * one.tokens for one in found))
        manifest = adopt(arguments.directory, found, arguments.into, advance)
    where = arguments.into or arguments.directory
    print(
        f"{where}: {manifest.tokens('train'):,} training and {manifest.tokens('val'):,} validation tokens"
        f" in {len(manifest.shards)} shards; train on it with data.path={where}"
    )
    print(f"digest {manifest.digest}")
    return DONE


def run_data_verify(arguments: argparse.Namespace) -> int:
    from regpt.data.adopt import verify
    from regpt.data.shards import read_manifest
    from regpt.run.console import Console

    shards = read_manifest(arguments.directory).shards
    with Console() as console:
        advance = console.reading("verify", sum(2 * shard.tokens for shard in shards))
        problems = list(verify(arguments.directory, advance))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        fix = "get or make these again before training on them"
        print(f"error: {len(problems)} of {len(shards)} shards are not what was sealed — {fix}", file=sys.stderr)
        return DATA
    print(f"{arguments.directory}: all {len(shards)} shards are what was sealed")
    return DONE


def run_data_show(arguments: argparse.Namespace) -> int:
    from regpt.data.show import describe, describe_window

    if arguments.window is None:
        lines = describe(arguments.directory, arguments.block_size)
    else:
        wanted = (arguments.split, arguments.window, arguments.block_size, arguments.text)
        lines = describe_window(arguments.directory, *wanted)
    for line in lines:
        print(line)
    return DONE


def run_plan(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import load_recipe
    from regpt.before.plan import plan_for_cards, plan_for_this_machine

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    price = recipe.run.price_per_hour / arguments.gpus if arguments.price is None else arguments.price
    name = arguments.gpu
    if name is None:
        from regpt.run.devices import card_of, free_memory, open_device

        device = open_device(recipe.run)
        card = card_of(device.place)
        if card is None:
            from regpt.run.rates import measured_rates

            if device.place.type == "cuda":
                raise UserError(f"{device.name}: its peak is not known here", "name a card that is near: --gpu NAME")
            if arguments.gpus > 1:
                raise UserError(f"--gpus {arguments.gpus}: this machine has no card", "say which: --gpu NAME")
            seconds = measured_rates(recipe, device).step_seconds(recipe)
            bfloat16 = device.precision_name == "bfloat16"
            lines = plan_for_this_machine(
                recipe, device.name, seconds, free_memory(device.place), bfloat16, arguments.runs
            )
            print("\n".join(lines))
            return DONE
        name = card.name
    print("\n".join(plan_for_cards(recipe, name, arguments.gpus, price, arguments.runs)))
    return DONE


def run_doctor(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from rich.console import Console as Terminal

    from regpt.before.doctor import doctor
    from regpt.run.devices import count_of_cards

    ranks = arguments.ranks or count_of_cards(recipe.run)
    return doctor(recipe, arguments.runs, ranks, Terminal(highlight=False, soft_wrap=True))


def run_train(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    name = recipe.name if arguments.name is None else arguments.name
    if not name or name != Path(name).name:
        raise UserError(f"--name '{name}' is no name of a run", "use letters, digits, '-', '_' and '.', no slash")
    from regpt.run.start import train

    return train(recipe, arguments.runs / name)


def run_resume(arguments: argparse.Namespace) -> int:
    from regpt.results.runs import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.run.start import resume

    return resume(path, arguments.overrides)


def run_checkpoints(arguments: argparse.Namespace) -> int:
    from regpt.results.runs import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.results.tables import checkpoints_table

    all_whole, lines = checkpoints_table(path)
    print("\n".join(lines))
    return DONE if all_whole else CHECKPOINT


def run_replay(arguments: argparse.Namespace) -> int:
    from regpt.results.runs import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.run.repeat import replay

    for line in replay(path, arguments.step, arguments.text):
        print(line)
    return DONE


def run_reproduce(arguments: argparse.Namespace) -> int:
    from regpt.results.runs import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.run.repeat import reproduce

    parting = reproduce(path, arguments.steps, print)
    if parting is None:
        print(f"{path}: comes out the same, to the bit")
        return DONE
    print(
        f"{path}: parts at step {parting.step:,}: {parting.what} {parting.then} in the journal, {parting.now} now;"
        " another machine, number of ranks or threads, or version of torch is reason enough (environment.json)"
    )
    return NUMERICS


def run_sample(arguments: argparse.Namespace) -> int:
    from regpt.results.runs import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.results.models import load_model
    from regpt.run.sample import Sampling, continuations

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
    from regpt.results.evaluation import default_tasks, evaluate, folder_of, known_tasks
    from regpt.results.models import open_model
    from regpt.results.tables import results_table
    from regpt.run.console import Console, quiet_console
    from regpt.run.devices import open_device
    from regpt.run.ranks import open_ranks

    by_harness, tasks = arguments.lm_eval, arguments.tasks
    names = known_tasks(tasks) if tasks and not by_harness else []
    if arguments.include_path and not by_harness:
        raise UserError("--include-path is for lm-eval's tasks", "add --lm-eval")
    opened = open_model(arguments.model, arguments.runs, arguments.overrides)
    device = open_device(opened.recipe.run)
    into = arguments.into or folder_of(opened)
    try:
        with (
            open_ranks(device, opened.recipe.run.rank_timeout) as ranks,
            Console() if ranks.first else quiet_console() as console,
            console.stoppable(several_ranks=ranks.count > 1),
        ):
            given = (into, device, ranks, arguments.items, console.looking)
            if by_harness:
                from regpt.results.harness import ask_harness

                results = ask_harness(opened, tasks, *given, arguments.include_path)
            else:
                results = evaluate(opened, names or default_tasks(opened), *given)
    except Stopped as stopped:
        if launched().rank == 0:
            print(f"stopped by {stopped.name}; what was finished is kept in {into}", file=sys.stderr)
        return stopped.code
    if results:
        print_table(results_table(results))
        print(f"kept in {into}")
    return DONE


def run_compare(arguments: argparse.Namespace) -> int:
    from regpt.results.compare import open_all

    models = open_all(arguments.models, arguments.runs)
    from regpt.results.comparison import write_comparison
    from regpt.results.contrast import in_short

    page = write_comparison(models, arguments.into)
    for line in in_short(models):
        print(line)
    print(f"comparison: {page}")
    return DONE


def run_report(arguments: argparse.Namespace) -> int:
    from regpt.results.runs import find_run, open_run

    run = open_run(find_run(arguments.run, arguments.runs))
    from regpt.results.report import write_page, write_report
    from regpt.results.scores import open_other

    others = [open_other(other, arguments.runs) for other in arguments.against]
    written = [write_report(run, others), *([write_page(run, others)] if arguments.html else [])]
    print(f"report: {' and '.join(map(str, written))}")
    return DONE


def run_watch(arguments: argparse.Namespace) -> int:
    from regpt.results.live import wait_for, watch
    from regpt.results.runs import find_run

    where = (arguments.run, arguments.runs)
    try:
        path = wait_for(*where, arguments.every, tell) if arguments.wait else find_run(*where)
        return watch(path, arguments.every, arguments.once)
    except KeyboardInterrupt:  # a look ends as it likes
        return DONE


def tell(text: str) -> None:
    print(text, file=sys.stderr)


def run_runs(arguments: argparse.Namespace) -> int:
    from regpt.results.runs import run_paths
    from regpt.results.tables import runs_table

    paths = run_paths(arguments.runs)
    if not paths:
        print(f"no runs in {arguments.runs}/ yet; `regpt demo` makes two")
        return DONE
    print_table(runs_table(paths))
    return DONE


def run_export(arguments: argparse.Namespace) -> int:
    from regpt.results.runs import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.results.export import export
    from regpt.results.models import load_model

    export(load_model(path), arguments.target)
    print(f"exported: {arguments.target}")
    return DONE


def run_recipe_show(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import differences, load_recipe, to_toml
    from regpt.data.shards import read_manifest
    from regpt.results.references import KNOWN_TRAIN_TOKENS

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    print(to_toml(recipe))
    micro_batch = f"{recipe.data.micro_batch} x {recipe.model.block_size} tokens"
    if problems := list(recipe.batch_problems(arguments.ranks)):
        raise RecipeError(recipe.name, problems)
    on = f"each of {arguments.ranks} ranks" if arguments.ranks > 1 else "one device"
    follows = {
        "parameters": f"{recipe.model.parameters:,}",
        "accumulation": f"{recipe.accumulation_steps(arguments.ranks)} micro-batches of {micro_batch} on {on}",
        "tokens": f"{recipe.total_tokens:,} in {recipe.run.max_steps:,} steps",
        "warm-up": f"{recipe.warmup_tokens:,} tokens in {recipe.optimizer.warmup_steps:,} steps",
        "FLOPs per token": f"{recipe.model.flops_per_token:,}",
        "FLOPs in all": f"{recipe.total_tokens * recipe.model.flops_per_token:.3g}",
    }
    try:
        tokens, where = read_manifest(recipe.data.directory).tokens("train"), f"in {recipe.data.path}"
    except UserError:
        tokens, where = KNOWN_TRAIN_TOKENS.get(recipe.data.source, 0), "by the public preparation, rounded"
    epochs = f"{recipe.total_tokens / tokens:.3f} of {tokens:,} training tokens ({where})" if tokens else ""
    follows["epochs"] = epochs or f"not known until {recipe.data.path} is prepared"
    print("# What follows")
    print("\n".join(f"#   {name:<16} {value}" for name, value in follows.items()))
    if arguments.against:
        other = load_recipe(arguments.against)
        print(f"\n# What differs from {other.name}")
        for setting, ours, theirs in differences(recipe, other) or [("nothing", "", "")]:
            print(f"#   {setting:<32} {ours}{f'   (there: {theirs})' if theirs != '' else ''}")
    return DONE


def run_recipe_list(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import shipped_recipes

    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"{name:<16} {first}")
    return DONE


def run_recipe_help(arguments: argparse.Namespace) -> int:
    from dataclasses import fields

    from regpt.base.recipe import SECTIONS, Recipe
    from regpt.base.settings import toml_value

    for section in SECTIONS:
        print(f"[{section}]")
        for f in fields(getattr(Recipe(name="defaults"), section)):
            print(f"  {f.name} = {toml_value(f.default)}\n      {f.metadata['help']}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
