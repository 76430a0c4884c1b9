"""The package layout that docs/architecture.md describes: a package imports only from packages above it in the list."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "regpt"
PACKAGES = [
    "base",
    "recipe",
    "filesystem",
    "machine",
    "data",
    "tokenization",
    "corpus",
    "conversations",
    "preparation",
    "inspection",
    "tasks",
    "tracking",
    "model",
    "distributed",
    "optimizer",
    "checkpoint",
    "console",
    "interop",
    "generation",
    "evaluation",
    "parallel",
    "training",
    "branching",
    "plan",
    "bench",
    "new_recipe",
    "stats",
    "rendering",
    "fairness",
    "reporting",
    "export",
    "comparison",
    "watch",
    "serve",
    "endpoint",
    "doctor",
    "ablation",
    "cli",
]
MAY_NOT_IMPORT = {
    "base": {"numpy", "torch"},
    "recipe": {"numpy", "torch"},
    "model": {"time", "os", "pathlib"},
    "optimizer": {"time", "os", "pathlib"},
}
WITHOUT_COMPILER = {"model", "distributed", "optimizer", "checkpoint", "interop", "evaluation", "training", "branching"}
MOST_LINES_OF_A_MODULE = 300
MOST_LINES_OF_A_FUNCTION = 60
LONG_MODULES: set[str] = set()
LONG_FUNCTIONS: set[tuple[str, str]] = set()  # declarations of arguments may be longer
WITHOUT_TORCH = [
    "base",
    "recipe",
    "filesystem",
    "data",
    "tokenization",
    "corpus",
    "conversations",
    "preparation",
    "inspection",
    "tasks",
    "tracking",
    "console",
    "stats",
    "rendering",
    "fairness",
    "reporting",
    "comparison",
    "watch",
    "serve",
]


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package's __init__ under the package's name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def syntax_tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


@cache
def imports(name: str) -> frozenset[str]:
    """Every module that a module imports, inside functions too; a name imported from a module counts as the module."""
    found = set()
    for node in ast.walk(syntax_tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & modules().keys()
            found.update(whole or {node.module})
    return frozenset(found)


def package_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_layout_lists_every_package() -> None:
    assert sorted({package_of(name) for name in modules()} - {"", "__main__", "library"}) == sorted(PACKAGES)


def test_packages_have_two_to_twelve_modules() -> None:
    sizes = {package: sum(name.startswith(f"regpt.{package}.") for name in modules()) for package in PACKAGES}
    assert not {package: size for package, size in sizes.items() if not 2 <= size <= 12}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_from_packages_above(package: str) -> None:
    allowed = {"", *PACKAGES[: PACKAGES.index(package) + 1]}
    wrong = {
        (name, other)
        for name in modules()
        if package_of(name) == package
        for other in imports(name) & modules().keys()
        if package_of(other) not in allowed
    }
    assert not wrong


def test_modules_import_each_other_without_a_circle() -> None:
    graph = {name: {other for other in imports(name) & modules().keys() if other != name} for name in modules()}
    graph["regpt"] = set()  # `import regpt` loads regpt.library on first use only
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("package", MAY_NOT_IMPORT)
def test_package_does_without_forbidden_libraries(package: str) -> None:
    for name in modules():
        if package_of(name) == package:
            assert not {other.split(".")[0] for other in imports(name)} & MAY_NOT_IMPORT[package], name


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_package_does_not_load_torch(package: str) -> None:
    """Import every module of the package in a fresh process; what they import at module level must not be torch."""
    if package == "serve":
        pytest.importorskip("fastapi")  # in the extra `serve`
    names = [name for name in modules() if package_of(name) == package]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_packages_that_training_may_lack_are_not_imported_with_a_module() -> None:
    """A machine with a card may have only PyTorch and a few more (docs/gpu.md)."""
    lacking = {"zstandard", "psutil", "matplotlib", "huggingface_hub", "transformers", "filelock", "pyarrow"}
    for name in modules():
        if package_of(name) in PACKAGES[: PACKAGES.index("training") + 1]:
            nodes = [node for node in syntax_tree(name).body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = {alias.name for node in nodes for alias in node.names} | {getattr(n, "module", "") for n in nodes}
            assert not {str(other).split(".")[0] for other in names} & lacking, name


def test_training_and_sampling_uncompiled_do_not_import_the_compiler() -> None:
    """Importing it doubles the time that every process takes to start."""
    code = f"""import sys, torch, {", ".join(name for name in modules() if package_of(name) in WITHOUT_COMPILER)}
from regpt.model.gpt import GPT
from regpt.optimizer.making import make_optimizer
from regpt.recipe.settings import load_recipe
recipe = load_recipe("demo-next", ["model.n_embd=16", "model.n_head=2", "model.n_layer=2", "optimizer.average_steps=2"])
model = GPT(recipe.model)
model(torch.arange(64).view(2, 32), torch.arange(1, 65).view(2, 32)).backward()
make_optimizer(model, recipe).step()
sys.exit("torch._dynamo" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_environment_variables_are_read_in_one_module() -> None:
    readers = {
        name
        for name, path in modules().items()
        if "os.environ" in path.read_text(encoding="utf-8") or "getenv" in path.read_text(encoding="utf-8")
    }
    assert readers <= {"regpt.machine.env"}


def test_module_has_a_docstring() -> None:
    assert not [name for name in modules() if not ast.get_docstring(syntax_tree(name))]


def test_module_is_short() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    long = {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_MODULE}
    assert not {name: count for name, count in long.items() if name not in LONG_MODULES}


def test_function_is_short() -> None:
    functions = [
        (name, node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for name in modules()
        for node in ast.walk(syntax_tree(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [found for found in functions if found[2] > MOST_LINES_OF_A_FUNCTION and found[:2] not in LONG_FUNCTIONS]
    assert not long
