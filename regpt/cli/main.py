"""The command line: words in, an exit code out. The only place that prints an error to a user."""

import argparse
import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from regpt import __version__
from regpt.base.aliases import RenamedSetting
from regpt.base.errors import DONE, INTERRUPTED, USAGE, UserError
from regpt.cli import before, results, train
from regpt.cli.arguments import adding_to
from regpt.distributed.env import current_launch, exit_process
from regpt.distributed.signals import StopRequested

DESCRIPTION = "Retrain GPT-2 (124M) from nothing, classic and modern, and write down what came out."
EPILOG = """\
from text to report:
  regpt demo                                            all of it in miniature, in a few minutes
  regpt recipe show gpt2-modern --against gpt2-classic   what a run will do, before it does it
  regpt plan gpt2-modern --gpu "RTX 5090"               memory, hours, energy, money; and what cannot be
  regpt doctor gpt2-modern                              a rehearsal on this machine, in two minutes
  regpt prepare gpt2-modern                             text of the hub, or data.source=FOLDER -> token shards
  regpt train gpt2-modern                               token shards -> runs/gpt2-modern
  regpt watch gpt2-modern                               look on from another terminal
  regpt resume gpt2-modern                              go on after Ctrl-C or a crash
  regpt report gpt2-modern --against gpt2-classic        the record, with pictures
  regpt evaluate gpt2-modern --tasks hellaswag,piqa     a finished model asked more, or somebody else's
  regpt compare gpt2-modern gpt2-classic                 which differences are differences

RECIPE is a .toml file or the name of one that regpt comes with. Any setting can be changed for one command by writing
section.key=value behind it, as in: regpt train demo-modern run.max_steps=20 optimizer.max_lr=1e-3
`regpt recipe help` lists all settings. RUN is the name of a folder in runs/, or a path.

on several cards: torchrun --standalone --nproc_per_node=4 -m regpt train gpt2-modern   (docs/scale.md)

exit codes: 0 done, 2 usage or recipe, 3 data, 4 checkpoint, 5 numbers that are none, 6 locked, 7 a rank was lost,
            130 stopped by Ctrl-C after saving, 143 by SIGTERM, SIGUSR1 or run.time_limit after saving
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. As one rank of several it ends the process."""
    return carry_out(parsed(words)) if current_launch().ranks == 1 else carry_out_as_rank(words)


def carry_out_as_rank(words: Sequence[str] | None) -> NoReturn:
    """What all ranks would say, the first says; errors of one rank alone, that rank."""
    nowhere = Path(os.devnull).open("w", encoding="utf-8") if current_launch().rank else None  # noqa: SIM115  to the end
    sys.stdout = nowhere or sys.stdout
    code = 1
    try:
        with contextlib.redirect_stderr(nowhere or sys.stderr):
            arguments = parsed(words)
        if not getattr(arguments, "on_ranks", False):
            arguments.command = refuse_ranks
        code = carry_out(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    exit_process(code)


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
        with notes_for_renamed_settings():
            code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        if error.reported_by_this_rank or (error.reported_by_this_rank is None and current_launch().local_rank == 0):
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
    except StopRequested as stopped:  # a preparation; a run of training has its own last line
        if current_launch().rank == 0:
            print(f"stopped by {stopped.name}; the same command goes on from there", file=sys.stderr)
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


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="regpt",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"regpt {__version__}")
    command = adding_to(top.add_subparsers(title="commands", metavar="COMMAND", required=True))
    for group in (before, train, results):
        group.add(command)
    return top


def refuse_ranks(arguments: argparse.Namespace) -> int:
    raise UserError(
        f"torchrun started {current_launch().ranks} ranks for a command that runs on one",
        "start it without torchrun; train, resume, reproduce and evaluate run on several",
    )


if __name__ == "__main__":
    sys.exit(main())
