"""The command line: parse arguments, run a command, return an exit code. Only this module prints errors."""

import argparse
import contextlib
import difflib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from regpt import __version__
from regpt.base.errors import DONE, INTERRUPTED, USAGE, UserError, writing_advice
from regpt.cli import ablate, checkpoints, evaluate, plan, prepare, recipe, report, train
from regpt.distributed.errors import is_printed_here
from regpt.distributed.signals import StopRequested
from regpt.machine.env import (
    current_launch,
    exit_process,
    ignore_empty_terminal_size,
    open_standard_streams,
    unused_ranks,
    use_huge_pages,
)
from regpt.recipe.aliases import RenamedSetting

DESCRIPTION = "Train GPT-2 (124M) from scratch and write a report that you can verify."
EPILOG = """\
from text to report:
  regpt demo                                             train three small models and compare them, in minutes
  regpt recipe show gpt2-modern --against gpt2-classic   every setting, and what differs
  regpt plan gpt2-modern --gpu "RTX 5090"                memory, hours, energy, cost
  regpt bench gpt2-modern                                tokens/s of this machine, measured in a minute
  regpt doctor gpt2-modern                               rehearse the run on this machine
  regpt prepare gpt2-modern                              text -> token shards
  regpt train gpt2-modern                                token shards -> runs/gpt2-modern
  regpt watch gpt2-modern                                in another terminal: curve, speed, time left
  regpt serve                                            all runs in a browser, live
  regpt resume gpt2-modern                               continue after Ctrl-C or a crash
  regpt evaluate gpt2-modern --tasks hellaswag,piqa      score a finished model, or a Hugging Face model
  regpt report gpt2-modern --against gpt2-classic        the report, with figures
  regpt compare gpt2-modern gpt2-classic                 caveats and paired significance tests

RECIPE is a .toml file or the name of a shipped recipe. Change any setting for one command by adding section.key=value,
as in: regpt train demo-modern run.max_steps=20 optimizer.max_lr=1e-3
`regpt recipe help` lists all settings. RUN is the name of a folder in runs/, or a path.

on several GPUs: torchrun --standalone --nproc_per_node=4 -m regpt train gpt2-modern   (docs/scale.md)

exit codes: 0 done, 2 usage or recipe, 3 data, 4 checkpoint, 5 NaN or Inf loss, 6 locked by another process,
            7 lost a rank; after saving: 130 stopped by Ctrl-C, 143 by SIGTERM, SIGUSR1 or run.time_limit, 129 by SIGHUP
"""


COMMANDS = (  # in the order of `regpt --help`
    recipe.add_demo,
    recipe.add_recipe_command,
    plan.add_plan,
    plan.add_bench,
    plan.add_doctor,
    prepare.add_prepare,
    prepare.add_data,
    prepare.add_tokenizer,
    train.add_train,
    train.add_resume,
    train.add_cooldown,
    report.add_watch,
    report.add_runs_command,
    report.add_serve,
    checkpoints.add_checkpoints,
    train.add_checks,
    evaluate.add_sample,
    evaluate.add_chat,
    evaluate.add_evaluate,
    report.add_report,
    report.add_compare,
    ablate.add_ablate,
    evaluate.add_export,
)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. As one rank of several, end the process instead."""
    open_standard_streams()
    ignore_empty_terminal_size()
    use_huge_pages()
    return run_command(parse(words)) if current_launch().ranks == 1 else run_as_rank(words)


def run_as_rank(words: Sequence[str] | None) -> NoReturn:
    """Run a command on one rank of several. Rank 0 prints what is common; a rank prints its own errors."""
    nowhere = Path(os.devnull).open("w", encoding="utf-8") if current_launch().rank else None  # noqa: SIM115  to the end
    sys.stdout = nowhere or sys.stdout
    code = 1
    try:
        with contextlib.redirect_stderr(nowhere or sys.stderr):
            arguments = parse(words)
        if not getattr(arguments, "on_ranks", False):
            arguments.command = refuse_ranks
        code = run_command(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    exit_process(code)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    top = parser()
    check_command(top, sys.argv[1:] if words is None else words)
    if words is None and len(sys.argv) == 1:
        top.print_help()
        sys.exit(USAGE)
    arguments, left = top.parse_known_args(words)
    # argparse takes settings in one place only, and until Python 3.12 an optional argument only before the options;
    # those after a later option are left over
    if len(left) == 1 and not left[0].startswith("-") and getattr(arguments, "target", "") is None:
        arguments.target = Path(left.pop())
    if left and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in left)):
        top.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.overrides += left
    return arguments


def check_command(parser: argparse.ArgumentParser, words: Sequence[str], before: str = "") -> None:
    """Exit with a suggestion if the next word is not a command of `parser`; then check its subcommand."""
    known = next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    place = next((place for place, word in enumerate(words) if not word.startswith("-")), None)
    if known is None or place is None:
        return
    word = words[place]
    if word in known:
        check_command(known[word], words[place + 1 :], f"{before}{word} ")
        return
    near = difflib.get_close_matches(word, list(known), n=1)
    advice = f"did you mean '{before}{near[0]}'?" if near else f"commands are {', '.join(before + n for n in known)}"
    print(f"error: no command is named '{before}{word}' — {advice}", file=sys.stderr)
    sys.exit(USAGE)


def run_command(arguments: argparse.Namespace) -> int:
    """Run a command and print its error, if any, as one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):  # a sample may contain characters that the console cannot show
            sys.stdout.reconfigure(errors="replace")
    if getattr(arguments, "on_ranks", False) and (unused := unused_ranks()):
        print(f"note: {unused} is ignored: only torchrun starts ranks (docs/scale.md)", file=sys.stderr)
    try:
        with notes_for_renamed_settings():
            code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        if is_printed_here(error):
            print(f"error: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # the reader of a pipe has left, as `head` does
        sys.stdout = None  # nothing is left to flush at exit
        return DONE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        problem = f"{where}{error.strerror or error}"
        print(f"error: {problem} — {writing_advice(error)}", file=sys.stderr)
        return USAGE
    except StopRequested as stopped:  # preparation; training prints its own last line
        if current_launch().rank == 0:
            print(f"stopped by {stopped.name}; the same command continues from there", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED


@contextlib.contextmanager
def notes_for_renamed_settings() -> Iterator[None]:
    """Print a note, once for each name, where the user wrote a setting under its old name."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RenamedSetting)
        printed: set[str] = set()
        show = warnings.showwarning

        def show_note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, RenamedSetting):
                show(message, category, *where, **more)
            elif str(message) not in printed:
                printed.add(str(message))
                print(f"note: {message}", file=sys.stderr)

        warnings.showwarning = show_note
        yield


class AlignedHelp(argparse.RawDescriptionHelpFormatter):
    """Puts the help of every command in one column, which Python before 3.13 makes too narrow for the longest name."""

    def format_help(self) -> str:
        self._action_max_length = max(self._action_max_length, len("    checkpoints"))
        return super().format_help()


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="regpt",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=AlignedHelp,
    )
    top.add_argument("--version", action="version", version=f"regpt {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return top


def refuse_ranks(arguments: argparse.Namespace) -> int:
    raise UserError(
        f"torchrun started {current_launch().ranks} ranks (WORLD_SIZE) for a command that runs on one",
        "start it without torchrun; train, resume, cooldown, reproduce and evaluate run on several",
    )


if __name__ == "__main__":
    sys.exit(main())
