"""The house stands as docs/architecture.md draws it: a module imports only from modules before it on this list."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "regpt"

FLOORS = [
    ["regpt"],
    ["base.errors", "base.files", "base.recipe", "base.settings", "base.cards"],
    [
        "data.sections",
        "data.corpora",
        "data.hub",
        "data.tokenizer",
        "data.gigatoken",
        "data.encoders",
        "data.formats",
        "data.shards",
        "data.writing",
        "data.position",
        "data.preparation",
        "data.prepare",
        "data.cluster",
        "data.adopt",
        "data.show",
        "data.tasks",
        "data.items",
        "data.packing",
        "data.order",
        "data.batches",
    ],
    ["model.loss", "model.elementwise", "model.gpt", "model.optimizer"],
    [
        "run.launch",
        "run.devices",
        "run.fitting",
        "run.rates",
        "run.environment",
        "run.stopping",
        "run.watch",
        "run.ranks",
        "run.tensors",
        "run.checkpoint",
        "run.parallel",
        "run.saving",
        "run.journal",
        "run.guard",
        "run.sinks",
        "run.evidence",
        "run.console",
        "run.gradients",
        "run.evaluate",
        "run.answers",
        "run.scoring",
        "run.sample",
        "run.looks",
        "run.train",
        "run.start",
        "run.repeat",
    ],
    [
        "results.runs",
        "results.sameness",
        "results.curve",
        "results.progress",
        "results.live",
        "results.export",
        "results.pretrained",
        "results.models",
        "results.evaluation",
        "results.harness",
        "results.paired",
        "results.speed",
        "results.compare",
        "results.tables",
        "results.references",
        "results.differences",
        "results.paper",
        "results.plots",
        "results.claims",
        "results.scores",
        "results.words",
        "results.opening",
        "results.page",
        "results.report",
        "results.courses",
        "results.flags",
        "results.fairness",
        "results.curves",
        "results.contrast",
        "results.comparison",
    ],
    [
        "before.memory",
        "before.roofline",
        "before.reckoning",
        "before.counts",
        "before.doubts",
        "before.plan",
        "before.findings",
        "before.rehearsal",
        "before.needs",
        "before.training",
        "before.using",
        "before.doctor",
    ],
    ["demo"],
    ["commands.arguments", "commands.preparing", "commands.training", "commands.results"],
    ["cli", "__main__"],
]
ORDER = [name if name == "regpt" else f"regpt.{name}" for floor in FLOORS for name in floor]
MAY_NOT_IMPORT = {"base": {"numpy", "torch"}, "data": {"torch"}, "model": {"time", "os", "pathlib"}}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            continue  # floors have a docstring and nothing else
        found["regpt" if parts == ("__init__",) else ".".join(("regpt", *parts))] = path
    return found


def imports(path: Path) -> set[str]:
    """Every module that is imported anywhere in a file, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_every_module_has_its_place() -> None:
    assert sorted(modules()) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_what_stands_before_it(name: str) -> None:
    below = ORDER[: ORDER.index(name)]
    above = {other for other in imports(modules()[name]) if other in ORDER and other not in below}
    assert not above


@pytest.mark.parametrize("name", ORDER)
def test_a_floor_does_without_what_it_must_not_know(name: str) -> None:
    floor = name.split(".")[1] if name.count(".") == 2 else ""
    roots = {other.split(".")[0] for other in imports(modules()[name])}
    assert not roots & MAY_NOT_IMPORT.get(floor, set())


def test_only_launch_reads_the_environment() -> None:
    readers = {
        name for name, path in modules().items() if "os.environ" in path.read_text() or "getenv" in path.read_text()
    }
    assert readers <= {"regpt.run.launch"}


def test_every_module_says_what_it_is() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
