"""The text of `regpt plan`, compared with golden files."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from regpt.plan.run_time import Rates
from regpt.plan.summary import plan_for_cards, plan_for_this_machine
from regpt.plan.wording import plan_lines
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe
from tests.helpers.golden import assert_golden

RUNS = Path("runs")
RATES = Rates(  # a step of demo-modern takes 0.9 s
    block=1e-4, loss=4e-4, micro_batch=0.0, optimizer=1e-8, block_forward=3e-5, loss_forward=2e-4, sampling_round=0.02
)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def fixed_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan in a folder without data, on a disk with 1 TB free."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))


def example(settings: list[str]) -> Recipe:
    """Return the modern recipe with a fixed name and, unless set, no published record."""
    recipe = load_recipe("gpt2-modern", ["published.hours=0", *settings])
    return replace(recipe, name="example", published=replace(recipe.published, origin="the record"))


@pytest.mark.parametrize(
    ("name", "settings", "card", "ranks", "price"),
    [
        ("one-card", [], "RTX 5090", 1, 0.5),
        ("impossible-record", ["published.hours=22"], "RTX 5090", 1, None),
        ("eight-cards", ["run.parallel=fsdp"], "H100", 8, None),
        ("all-cards", [], "all", 1, 2.0),
        ("too-large", ["model.n_layer=48", "model.n_embd=4096", "model.n_head=32"], "RTX 5090", 1, None),
        ("float32", ["run.precision=float32", "run.max_steps=100", "data.micro_batch=512"], "H100", 2, None),
    ],
)
def test_plan_for_cards_reads_like_the_golden_file(
    name: str, settings: list[str], card: str, ranks: int, price: float | None
) -> None:
    plan = plan_for_cards(example(settings), card, ranks, price, RUNS)
    assert_golden(f"plan/{name}.txt", "\n".join(plan_lines(plan)) + "\n")


def test_plan_for_a_cpu_reads_like_the_golden_file() -> None:
    recipe = replace(load_recipe("demo-modern"), name="example")
    plan = plan_for_this_machine(recipe, "a CPU, 2 threads", RATES, 8e9, False, RUNS, start_seconds=4.0)
    assert_golden("plan/cpu.txt", "\n".join(plan_lines(plan)) + "\n")


def test_plan_with_long_evaluation_reads_like_the_golden_file() -> None:
    short = ["run.max_steps=60", "optimizer.warmup_steps=3", "evaluation.hellaswag_items=0", "data.path=data/mine"]
    recipe = replace(load_recipe("demo-modern", [*short, "checkpoint.every=20", "data.source=texts"]), name="example")
    plan = plan_for_this_machine(recipe, "a CPU, 2 threads", RATES, 8e9, False, RUNS)
    assert_golden("plan/long-evaluation.txt", "\n".join(plan_lines(plan)) + "\n")


def test_plan_counts_the_second_copy_of_the_tokens() -> None:
    divided = plan_for_cards(example(["data.validation=documents"]), "H100", 1, None, RUNS)
    lines = [line.strip() for line in plan_lines(divided)]
    assert "39.8 GB while the text is divided by documents" in lines  # twice 19.9 GB
    assert not [line for line in plan_lines(plan_for_cards(example([]), "H100", 1, None, RUNS)) if "divided" in line]


def test_plan_in_a_container_names_its_memory_limit() -> None:
    plan = plan_for_this_machine(load_recipe("demo-modern"), "a CPU", RATES, 3.1e9, False, RUNS, memory_limit=4.25e9)
    (line,) = [line for line in plan_lines(plan) if "free now" in line]
    assert "3.1 GB" in line and "4.25 GB" in line


def test_full_disk_reads_like_the_golden_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**9))
    plan = plan_for_cards(example(["run.max_steps=80000"]), "H100", 1, None, RUNS)
    assert_golden("plan/warnings.txt", "\n".join(plan_lines(plan)) + "\n")
