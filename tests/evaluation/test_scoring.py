"""Endings are scored as one sequence at a time would score them, however they are packed, grouped and shared out."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from regpt.base.architecture import ModelRecipe
from regpt.base.sections import RunRecipe
from regpt.data.tokenizer import encode
from regpt.distributed.device import Device, open_device
from regpt.evaluation.scoring import (
    PackedQuestions,
    PackedTask,
    choice_losses,
    choice_losses_and_greedy,
    make_predictions,
)
from regpt.model.gpt import GPT
from regpt.tasks.catalog import BY_BYTE, BY_CHARACTER, BY_SUM, BY_TOKEN, TASKS, Item, Row, Task
from regpt.tasks.items import Items, from_package, items_of, open_items
from regpt.tracking.predictions import Predictions, read_predictions
from tests.tasks.test_catalog import ROW

CLASSIC = {"positions": "learned", "activation": "gelu", "normalization": "layernorm", "bias": True}
KINDS = {"modern": {}, "classic": CLASSIC}
HELLASWAG = TASKS["hellaswag"]


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device(RunRecipe(device="cpu", precision="float32", threads=2))


def model_of(kind: str = "modern", block_size: int = 512) -> GPT:
    """Small, and lively enough that a wrong position or a wrong neighbour shows."""
    parts: dict[str, Any] = KINDS[kind]
    model = GPT(
        ModelRecipe(n_layer=2, n_head=4, n_embd=32, mlp_hidden=64, block_size=block_size, init_std=0.3, **parts)
    )
    model.initialize(5)
    return model.eval()


def plainly(model: GPT, paper: PackedQuestions) -> NDArray[np.float64]:
    """Each ending by itself behind its context: all losses, of which those of the ending are added up."""
    questions = paper.questions
    sums = np.full((len(questions), max(len(question.choices) for question in questions)), np.inf)
    for row, question in enumerate(questions):
        for number, (context, ending) in enumerate(zip(question.contexts, question.choices, strict=True)):
            whole = torch.from_numpy(np.concatenate([context, ending]))[None]
            losses = model.losses(whole[:, :-1], whole[:, 1:])[0]
            sums[row, number] = losses[-len(ending) :].double().sum().item()
    return sums


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["hellaswag", "hellaswag_lm_eval", "arc_challenge", "winogrande", "sciq", "boolq"])
def test_every_ending_has_the_loss_that_it_has_alone(kind: str, name: str, device: Device) -> None:
    """Mixed items: long and short, of two to five endings, with one context or one for each."""
    model = model_of(kind)
    exam = PackedTask(open_items(TASKS[name], count=16), 512, 1024)
    assert any(len(group.numbers) > 1 for group in exam.groups)
    losses = choice_losses(model, exam, device)
    np.testing.assert_allclose(losses, plainly(model, exam), rtol=0, atol=1e-4)


@pytest.mark.parametrize("most", [512 * rows for rows in (2, 4, 16)])
def test_scores_do_not_depend_on_how_many_are_scored_at_once(most: int, device: Device) -> None:
    model, items = model_of(), open_items(HELLASWAG, count=30)
    one = choice_losses(model, PackedTask(items, 512, 512), device)
    several = PackedTask(items, 512, most)
    losses = choice_losses(model, several, device)
    np.testing.assert_allclose(losses, one, rtol=0, atol=1e-4)
    assert (losses.argmin(axis=1) == one.argmin(axis=1)).all()


def test_a_planted_leak_between_endings_is_seen(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were an ending to see the one before it, or to stand at a later position, its loss would be another."""
    model, exam = model_of(), PackedTask(open_items(HELLASWAG, count=6), 512, 1024)
    right = plainly(model, exam)

    def off_by_how_much() -> float:
        return float(np.abs(choice_losses(model, exam, device) - right).max())

    assert off_by_how_much() < 1e-4
    real = exam.groups
    exam.groups = [dataclasses.replace(rows, segments=np.minimum(rows.segments, 1)) for rows in real]
    assert off_by_how_much() > 0.1
    exam.groups = [
        dataclasses.replace(rows, positions=np.tile(np.arange(rows.tokens.shape[1]), (len(rows.tokens), 1)))
        for rows in real
    ]
    assert off_by_how_much() > 0.1


@pytest.mark.compile
@pytest.mark.slow
def test_compiled_blocks_give_the_same_scores_and_are_compiled_once_not_for_each_group(device: Device) -> None:
    model, exam = model_of(), PackedTask(open_items(HELLASWAG, count=14), 512, 512)
    plain = choice_losses(model, exam, device)
    assert len({group.tokens.shape for group in exam.groups}) > 5
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for block in model.blocks:
        block.compile(dynamic=True)
    compiled = choice_losses(model, exam, device)
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


def test_a_model_that_repeats_itself_gets_the_hand_made_items_right_that_repeat(device: Device) -> None:
    """Its attention and MLPs add nothing and its head is its embedding: the likeliest next token is the last one."""
    model = model_of()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.out.weight.zero_()  # type: ignore[union-attr]
            block.mlp.down.weight.zero_()  # type: ignore[union-attr]
    rows = [
        {**ROW, "ctx": "no no no", "endings": ["yes yes", "no no", "cat cat", "no cat"], "label": 1},
        {
            **ROW,
            "ctx": "cat cat",
            "endings": ["cat cat cat", "dog cat cat", "cat dog dog", "dog dog dog"],
            "label": "0",
        },
        {**ROW, "ctx": "dog dog", "endings": ["dog", "cat cat cat cat", "dog cat dog cat", "cat"], "label": 1},
    ]
    exam = exam_of(HELLASWAG, rows)
    answers = make_predictions(exam, choice_losses(model, exam, device))
    assert answers.chosen(BY_SUM).tolist() == [1, 0, 0]  # the third is wrong on purpose
    assert answers.accuracy(BY_SUM).value == pytest.approx(2 / 3)


def exam_of(task: Task, rows: Sequence[Row], most: int = 1024) -> PackedTask:
    items = tuple(items_of(task, rows, "by hand"))
    return PackedTask(Items(task, items, len(items), "by hand", False), 512, most)


@pytest.mark.slow
def test_an_untrained_model_guesses(device: Device) -> None:
    """All numbers fixed: 25 % within three standard errors, judged by any rule."""
    model = GPT(ModelRecipe(n_layer=1, n_head=2, n_embd=16, mlp_hidden=32, block_size=256))
    model.initialize(1337)
    exam = PackedTask(open_items(HELLASWAG, count=300), 256, 2048)
    answers = make_predictions(exam, choice_losses(model, exam, device))
    for rule in (BY_TOKEN, BY_SUM, BY_BYTE):
        accuracy = answers.accuracy(rule)
        assert accuracy.error == pytest.approx(0.025, abs=0.002)
        assert abs(accuracy.value - 0.25) < 3 * accuracy.error, rule


@pytest.mark.slow
def test_a_model_overfitted_on_right_endings_gets_them_right(device: Device) -> None:
    rows = from_package(HELLASWAG)[0][:10]  # ActivityNet's, which are short
    model, exam = model_of(block_size=128), exam_of(HELLASWAG, rows)
    items = exam.items
    model.initialize(3)
    before = make_predictions(exam, choice_losses(model, exam, device)).accuracy(BY_TOKEN).value
    texts = [encode(item.contexts[0] + item.choices[item.label]).astype(np.int64) for item in items.items]
    width = max(map(len, texts))
    rows_of_tokens = [np.pad(text, (0, width - len(text)), constant_values=50_256) for text in texts]
    padded = torch.from_numpy(np.stack(rows_of_tokens))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        model(padded[:, :-1], padded[:, 1:]).backward()
        optimizer.step()
    assert model.training
    after = make_predictions(exam, choice_losses(model, exam, device)).accuracy(BY_TOKEN).value
    assert model.training  # left as it was
    assert before < 0.7
    assert after == 1.0


def test_the_likeliest_tokens_are_counted_for_those_who_ask(device: Device) -> None:
    model, exam = model_of(), PackedTask(open_items(HELLASWAG, count=8), 512, 1024)
    losses, others = choice_losses_and_greedy(model, exam, device)
    np.testing.assert_allclose(losses, choice_losses(model, exam, device), rtol=0, atol=1e-4)
    for row, question in enumerate(exam.questions):
        for number, (context, ending) in enumerate(zip(question.contexts, question.choices, strict=True)):
            whole = torch.from_numpy(np.concatenate([context, ending]))[None]
            likeliest = model.logits(model.hidden(whole[:, :-1]))[0, -len(ending) :].argmax(dim=1).numpy()
            assert others[row, number] == (likeliest != ending).sum()


def by_hand(losses: list[list[float]], label: int = 0) -> Predictions:
    """One item; endings of 1, 2 and 4 tokens, 4, 4 and 24 characters, 8, 4 and 24 bytes."""
    return Predictions(
        task="hellaswag",
        description="1 item",
        digest="d",
        dataset_size=len(losses),
        published=True,
        truncated=0,
        numbers=np.arange(len(losses)),
        kinds=("",) * len(losses),
        labels=np.full(len(losses), label),
        losses=np.array(losses),
        tokens=np.tile([1, 2, 4], (len(losses), 1)),
        bytes=np.tile([8, 4, 24], (len(losses), 1)),
        characters=np.tile([4, 4, 24], (len(losses), 1)),
    )


def test_each_rule_judges_as_its_name_says() -> None:
    answers = by_hand([[4.0, 5.0, 18.0]])
    assert answers.chosen(BY_SUM).tolist() == [0]  # 4, 5, 18
    assert answers.chosen(BY_TOKEN).tolist() == [1]  # 4, 2.5, 4.5
    assert answers.chosen(BY_CHARACTER).tolist() == [2]  # 1, 1.25, 0.75
    assert answers.chosen(BY_BYTE).tolist() == [0]  # 0.5, 1.25, 0.75


def test_the_standard_error_is_that_of_a_mean() -> None:
    answers = by_hand([[1.0, 9.0, 9.0]] * 3 + [[9.0, 1.0, 9.0]])
    accuracy = answers.accuracy(BY_SUM)
    right = np.array([1.0, 1.0, 1.0, 0.0])
    assert accuracy.value == 0.75
    assert accuracy.error == pytest.approx(right.std(ddof=1) / 2)
    assert str(accuracy) == "0.7500 ± 0.2500"


def test_losses_that_are_no_numbers_are_no_answer() -> None:
    answers = by_hand([[np.nan, 1.0, 2.0], [np.nan] * 3, [1.0, 2.0, np.inf]])
    assert answers.chosen(BY_SUM).tolist() == [-1, -1, 0]
    assert answers.accuracy(BY_SUM).value == pytest.approx(1 / 3)


def test_answers_are_read_as_they_were_written(tmp_path: Path, device: Device) -> None:
    every = open_items(TASKS["arc_easy"])
    unlike = [item for item in every.items if len(item.choices) != 4]
    assert unlike
    some = dataclasses.replace(every, items=(*every.items[:20], *unlike))
    exam = PackedTask(some, 512, 1024)
    answers = make_predictions(exam, choice_losses(model_of(), exam, device))
    path = tmp_path / "new" / answers.file_name
    answers.write(path)
    again = read_predictions(path)
    assert path.name == "arc_easy-23.parquet"
    assert [path.name] == [file.name for file in path.parent.iterdir()]
    for f in dataclasses.fields(Predictions):
        np.testing.assert_array_equal(getattr(again, f.name), getattr(answers, f.name), err_msg=f.name)
    broken = by_hand([[np.nan, 1.0, 2.0]])
    broken.write(tmp_path / "nan.parquet")
    np.testing.assert_array_equal(read_predictions(tmp_path / "nan.parquet").losses, broken.losses)


def test_items_of_several_contexts_share_what_they_can(device: Device) -> None:
    """WinoGrande's two contexts differ in a name only; they part there."""
    item = Item(0, "", ("Ann saw Bob because Ann", "Ann saw Bob because Bob"), (" looked.", " looked."), 0)
    task = TASKS["winogrande"]
    exam = PackedTask(Items(task, (item,), 1, "by hand", False), 512, 512)
    (group,) = exam.groups
    assert int((group.segments == 0).sum()) == len(encode("Ann saw Bob because"))
    model = model_of()
    np.testing.assert_allclose(choice_losses(model, exam, device), plainly(model, exam), rtol=0, atol=1e-4)
