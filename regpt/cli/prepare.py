"""The commands prepare, data and tokenizer."""

import argparse
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import DATA, DONE, UserError
from regpt.cli.arguments import add_command, add_directory, add_recipe, at_least
from regpt.cli.output import terminal_width

if TYPE_CHECKING:
    from regpt.cli.arguments import Subparsers


def add_prepare(commands: "Subparsers") -> None:
    prepare = add_command(
        commands,
        "prepare",
        run_prepare,
        "turn text into token shards",
        "example: regpt prepare demo-modern data.source=my-texts data.path=data/mine data.validation_tokens=20000\n\n"
        "data.source is a file or a folder of text (.txt, .md, .py, ...), JSON lines (.jsonl, .ndjson), both also\n"
        "compressed, or parquet; 'stdlib', the source code of Python's standard library; or hub:OWNER/NAME/FOLDER.\n\n"
        "If it is stopped or killed, run the same command again: it continues. docs/data.md has the details.",
    )
    prepare.add_argument(
        "--executor",
        choices=["local", "slurm"],
        help="run with datatrove, one task per file, for clusters (pip install 'regpt[cluster]')",
    )
    prepare.add_argument("--tasks", type=at_least(int, 1), metavar="N", help="tasks of the executor (default: 14)")
    prepare.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="option of the executor, such as partition=cpu, time=04:00:00 or cpus_per_task=2",
    )
    add_recipe(prepare)


def add_data(commands: "Subparsers") -> None:
    data = add_command(commands, "data", run_data_show, "import, export, verify and show datasets")
    actions = data.add_subparsers(metavar="import|export|verify|show", required=True)
    imported = actions.add_parser(
        "import",
        help="use the shards of build-nanogpt (.npy), llm.c, modded-nanogpt or nanoGPT (.bin)",
        description="Read a folder of token shards once and make a dataset of links to them. DIR is not changed.",
        epilog="example: regpt data import edu_fineweb10B && regpt train gpt2-modern data.path=data/edu_fineweb10B",
    )
    imported.set_defaults(command=run_data_import)
    add_directory(imported)
    where = imported.add_mutually_exclusive_group()
    where.add_argument(
        "--into", type=Path, metavar="FOLDER", help="the dataset to make (default: data/ and DIR's name)"
    )
    where.add_argument("--in-place", action="store_true", help="write the manifest into DIR instead")
    imported.add_argument(
        "--form", choices=["nanogpt"], help="nanogpt: uint16 tokens without a header, such as train.bin and val.bin"
    )
    imported.add_argument(
        "--tokenizer",
        default="gpt2",
        metavar="TOKENIZER",
        help="tokenizer that made the tokens: gpt2, cl100k, o200k or the path of a tokenizer.json (default: gpt2)",
    )
    add_export_data(actions)
    verified = actions.add_parser("verify", help="read a whole dataset and compare it with its manifest")
    verified.set_defaults(command=run_data_verify)
    add_directory(verified)
    add_show(actions)


def add_export_data(actions: "Subparsers") -> None:
    exported = actions.add_parser(
        "export",
        help="write the shards for llm.c and modded-nanogpt, or for nanoGPT",
        description="Copy the tokens of a dataset into files that other programs read. DIR is not changed.",
        epilog="example: regpt data export data/fineweb-edu-10BT --form nanogpt --into nanoGPT/data/edu",
    )
    exported.set_defaults(command=run_data_export)
    add_directory(exported)
    exported.add_argument(
        "--form",
        choices=["llm.c", "nanogpt"],
        required=True,
        help="llm.c: a .bin file with a header for each shard; nanogpt: train.bin and val.bin, uint16 without a header",
    )
    exported.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="folder to make")


def add_tokenizer(commands: "Subparsers") -> None:
    tokenizer = add_command(commands, "tokenizer", run_tokenizer_train, "train a tokenizer on your text")
    actions = tokenizer.add_subparsers(metavar="train", required=True)
    trained = actions.add_parser(
        "train",
        help="train a byte-level BPE tokenizer",
        description="Train a byte-level BPE tokenizer, as GPT-2's, on text and write it as a tokenizer.json.\n\n"
        "A small vocabulary suits a small model, of which GPT-2's 50,257 tokens would take most of the parameters.\n"
        "The losses of models with different tokenizers do not compare; their bits per byte do.",
        epilog="example: regpt tokenizer train my-texts --vocab-size 4096 --into tokenizers/mine\n"
        "         regpt train demo-modern data.source=my-texts data.path=data/mine data.tokenizer=tokenizers/mine"
        " model.vocab_size=0\n\nThe same text gives the same file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    trained.set_defaults(command=run_tokenizer_train)
    trained.add_argument("source", metavar="SOURCE", help="file or folder of text, as data.source; or 'stdlib'")
    trained.add_argument(
        "--vocab-size",
        type=at_least(int, 257),
        required=True,
        metavar="N",
        help="number of tokens: 256 bytes, the merges, and <|endoftext|>; a multiple of 64 leaves no row unused",
    )
    trained.add_argument(
        "--into", type=Path, required=True, metavar="FILE", help="file to write, or a folder for tokenizer.json"
    )
    trained.add_argument(
        "--split",
        choices=["gpt2", "cl100k"],
        default="gpt2",
        help="where tokens may end; cl100k: at most three digits, line ends with punctuation (default: gpt2)",
    )
    trained.add_argument(
        "--text-column", default="text", metavar="NAME", help="field of JSON lines and parquet (default: text)"
    )


def add_show(actions: "Subparsers") -> None:
    shown = actions.add_parser(
        "show",
        help="describe a dataset: its origin, its split, its documents or one window",
        epilog="example: regpt data show data/fineweb-edu-10BT --window 12 --text",
    )
    shown.set_defaults(command=run_data_show)
    add_directory(shown)
    what = shown.add_mutually_exclusive_group()
    what.add_argument("--documents", action="store_true", help="list all validation documents")
    what.add_argument(
        "--duplicates",
        action="store_true",
        help="find validation documents that are in training too: the same tokens, or near-duplicates, which have at"
        " least half of their shingles (8 tokens in a row) in one training document. It reads the whole dataset, and"
        " says first how long that takes",
    )
    what.add_argument("--window", type=at_least(int, 0), metavar="N", help="print the tokens of this window")
    shown.add_argument("--text", action="store_true", help="print text instead of tokens")
    shown.add_argument(
        "--split", choices=["train", "val"], default="train", help="split of the window (default: train)"
    )
    shown.add_argument(
        "--block-size", type=at_least(int, 1), default=1024, metavar="N", help="tokens per window (default: 1024)"
    )


def run_prepare(arguments: argparse.Namespace) -> int:
    from regpt.console.preparation import PreparationConsole
    from regpt.console.training import Console
    from regpt.preparation.dataset import prepare
    from regpt.recipe.settings import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.executor is None and (arguments.option or arguments.tasks is not None):
        raise UserError("--tasks and --option need an executor", "add --executor local or slurm")
    if arguments.executor is not None:
        from regpt.preparation.cluster import logs_folder, prepare_on

        options = dict(option_of_executor(word) for word in arguments.option)
        made = prepare_on(arguments.executor, recipe, arguments.tasks or 14, options)
        if made is None:
            print(f"queued; the last job writes {recipe.data.path}. Logs: {logs_folder(recipe)}")
            return DONE
        manifest = made
    else:
        with Console() as console, console.stoppable():
            manifest = prepare(recipe, PreparationConsole(console))
    print(f"digest {manifest.digest}")
    path = shlex.quote(recipe.data.path)
    print(f"validation documents: regpt data show {path}; --duplicates compares them with training's")
    return DONE


def option_of_executor(word: str) -> tuple[str, str | int]:
    key, equals, value = word.partition("=")
    if not (key and equals):
        raise UserError(f"--option {word}: is not KEY=VALUE", "write for example --option partition=cpu")
    return key, int(value) if value.isdecimal() else value


def run_data_import(arguments: argparse.Namespace) -> int:
    from regpt.console.preparation import ReadingConsole
    from regpt.console.training import Console
    from regpt.data.import_shards import default_target, find_shards, import_shards
    from regpt.tokenization.opening import open_tokenizer

    tokenizer = open_tokenizer(arguments.tokenizer)
    found = find_shards(arguments.directory, arguments.form == "nanogpt", tokenizer)
    into = None if arguments.in_place else arguments.into or default_target(arguments.directory)
    with Console() as console:
        manifest = import_shards(arguments.directory, found, into, ReadingConsole(console, "import"), tokenizer)
    where = into or arguments.directory
    print(
        f"{where}: {manifest.tokens('train'):,} training and {manifest.tokens('val'):,} validation tokens"
        f" in {len(manifest.shards)} shards; train on it with data.path={where}"
    )
    print(f"digest {manifest.digest}")
    return DONE


def run_data_export(arguments: argparse.Namespace) -> int:
    from regpt.console.preparation import ReadingConsole
    from regpt.console.training import Console
    from regpt.data.export_shards import export_shards

    with Console() as console:
        manifest = export_shards(arguments.directory, arguments.into, arguments.form, ReadingConsole(console, "export"))
    print(f"{arguments.into}: {manifest.tokens('train'):,} training and {manifest.tokens('val'):,} validation tokens")
    return DONE


def run_tokenizer_train(arguments: argparse.Namespace) -> int:
    from regpt.console.preparation import ReadingConsole
    from regpt.console.training import Console
    from regpt.corpus.corpora import open_corpus, read_documents
    from regpt.tokenization.training import target_of, train_tokenizer

    target_of(arguments.into)  # before the text is read
    corpus = open_corpus(arguments.source, arguments.text_column)
    with Console() as console, console.stoppable():
        texts = read_documents(corpus, Counter(), ReadingConsole(console, "read"))
        trained = train_tokenizer(texts, arguments.vocab_size, arguments.into, arguments.split)
    print(f"{trained.path}: {trained.tokens:,} tokens, {trained.bytes_per_token:.2f} bytes per token of this text")
    if trained.tokens < arguments.vocab_size:
        print(f"note: the text gives no more than {trained.tokens:,} tokens", file=sys.stderr)
    print(f"use it: data.tokenizer={shlex.quote(str(arguments.into))} model.vocab_size=0")
    return DONE


def run_data_verify(arguments: argparse.Namespace) -> int:
    from regpt.console.preparation import ReadingConsole
    from regpt.console.training import Console
    from regpt.data.import_shards import verify
    from regpt.data.shards import read_manifest

    shards = read_manifest(arguments.directory).shards
    with Console() as console:
        problems = list(verify(arguments.directory, ReadingConsole(console, "verify")))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        fix = "download or prepare them again before training"
        print(f"error: {len(problems)} of {len(shards)} shards differ from the manifest — {fix}", file=sys.stderr)
        return DATA
    print(f"{arguments.directory}: all {len(shards)} shards match the manifest")
    return DONE


def run_data_show(arguments: argparse.Namespace) -> int:
    from regpt.data.shards import read_manifest
    from regpt.inspection.dataset import describe
    from regpt.inspection.documents import list_all
    from regpt.inspection.window import describe_window

    directory, width = arguments.directory, terminal_width()
    if arguments.duplicates:
        return run_duplicates(directory, width)
    if arguments.window is not None:
        wanted = (arguments.split, arguments.window, arguments.block_size, arguments.text)
        lines = describe_window(directory, *wanted)
    elif arguments.documents:
        lines = list_all(directory, read_manifest(directory), width)
    else:
        lines = describe(directory, arguments.block_size, width)
    for line in lines:
        print(line)
    return DONE


def run_duplicates(directory: Path, width: int) -> int:
    from regpt.console.preparation import ReadingTokensConsole
    from regpt.console.training import Console
    from regpt.data.shards import read_manifest
    from regpt.inspection.duplicate_record import store_duplicates
    from regpt.inspection.duplicate_report import describe_cost, describe_findings, describe_seconds
    from regpt.inspection.duplicates import Search

    manifest = read_manifest(directory)
    with Console() as console:
        search = Search(directory, manifest, ReadingTokensConsole(console, "compare"))
        console.print_line(describe_cost(search, manifest))
        index = search.build_index()
        console.print_line(describe_seconds(search.estimated_seconds(index)))
        found = search.run(index)
    store_duplicates(directory, manifest, found.record)
    for line in describe_findings(directory, manifest, found, width):
        print(line)
    return DONE
