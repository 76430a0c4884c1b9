"""Choices have the losses that single sequences have, for any packing and grouping and any number of ranks."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from regpt.data.tokenizer import encode
from regpt.evaluation.scoring import (
    PackedQuestions,
    PackedTask,
    choice_losses,
    choice_losses_and_greedy,
    make_predictions,
)
from regpt.machine.device import Device, open_device
from regpt.model.gpt import GPT
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.run_settings import RunRecipe
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
    """Return a small model with large weights, so that a wrong position or a wrong neighbour changes its losses."""
    parts: dict[str, Any] = KINDS[kind]
    model = GPT(
        ModelRecipe(n_layer=2, n_head=4, n_embd=32, mlp_hidden=64, block_size=block_size, init_std=0.3, **parts)
    )
    model.initialize(5)
    return model.eval()


def losses_of_single_sequences(model: GPT, packed: PackedQuestions) -> NDArray[np.float64]:
    """Score each choice as a sequence of its own, after its context.  -> (questions, choices)"""
    questions = packed.questions
    sums = np.full((len(questions), max(len(question.choices) for question in questions)), np.inf)
    for row, question in enumerate(questions):
        for number, (context, ending) in enumerate(zip(question.contexts, question.choices, strict=True)):
            whole = torch.from_numpy(np.concatenate([context, ending]))[None]
            logits = model.logits(model.hidden(whole[:, :-1])[:, -len(ending) :])[0]
            losses = F.cross_entropy(logits, whole[0, -len(ending) :], reduction="none")
            sums[row, number] = losses.double().sum().item()
    return sums


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["hellaswag", "hellaswag_lm_eval", "arc_challenge", "winogrande", "sciq", "boolq"])
def test_choice_losses_equal_those_of_single_sequences(kind: str, name: str, device: Device) -> None:
    """The tasks have long and short items, of two to five choices, with one context or one for each choice."""
    model = model_of(kind)
    exam = PackedTask(open_items(TASKS[name], count=8), 512, 1024)
    assert any(len(group.numbers) > 1 for group in exam.groups)
    losses = choice_losses(model, exam, device)
    np.testing.assert_allclose(losses, losses_of_single_sequences(model, exam), rtol=0, atol=1e-4)


@pytest.mark.parametrize("most", [512 * rows for rows in (2, 4, 16)])
def test_choice_losses_are_independent_of_the_group_size(most: int, device: Device) -> None:
    model, items = model_of(), open_items(HELLASWAG, count=16)
    one_row = choice_losses(model, PackedTask(items, 512, 512), device)
    losses = choice_losses(model, PackedTask(items, 512, most), device)
    np.testing.assert_allclose(losses, one_row, rtol=0, atol=1e-4)
    assert (losses.argmin(axis=1) == one_row.argmin(axis=1)).all()


def test_planted_leak_between_choices_is_seen(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice that sees the one before it, or has later positions, has another loss."""
    model, exam = model_of(), PackedTask(open_items(HELLASWAG, count=6), 512, 1024)
    right = losses_of_single_sequences(model, exam)

    def largest_difference() -> float:
        return float(np.abs(choice_losses(model, exam, device) - right).max())

    assert largest_difference() < 1e-4
    real = exam.groups
    exam.groups = [dataclasses.replace(rows, segments=np.minimum(rows.segments, 1)) for rows in real]
    assert largest_difference() > 0.1
    exam.groups = [
        dataclasses.replace(rows, positions=np.tile(np.arange(rows.tokens.shape[1]), (len(rows.tokens), 1)))
        for rows in real
    ]
    assert largest_difference() > 0.1


@pytest.mark.compile
@pytest.mark.slow
def test_compiled_blocks_give_equal_losses_from_few_graphs(device: Device) -> None:
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


def test_repeating_model_solves_items_that_repeat(device: Device) -> None:
    """Without attention and MLPs, and with the embedding as head, the most likely next token is the last one."""
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
    assert answers.chosen(BY_SUM).tolist() == [1, 0, 0]  # the third is wrong by design
    assert answers.accuracy(BY_SUM).value == pytest.approx(2 / 3)


def exam_of(task: Task, rows: Sequence[Row], most: int = 1024) -> PackedTask:
    items = tuple(items_of(task, rows, "by hand"))
    return PackedTask(Items(task, items, len(items), "by hand", False), 512, most)


@pytest.mark.slow
def test_untrained_model_guesses(device: Device) -> None:
    """Accuracy by each metric is 25 % within three standard errors; seeds are fixed."""
    model = GPT(ModelRecipe(n_layer=1, n_head=2, n_embd=16, mlp_hidden=32, block_size=256))
    model.initialize(1337)
    exam = PackedTask(open_items(HELLASWAG, count=150), 256, 2048)
    answers = make_predictions(exam, choice_losses(model, exam, device))
    for rule in (BY_TOKEN, BY_SUM, BY_BYTE):
        accuracy = answers.accuracy(rule)
        assert accuracy.error == pytest.approx(0.035, abs=0.003)
        assert abs(accuracy.value - 0.25) < 3 * accuracy.error, rule


@pytest.mark.slow
def test_overfitted_model_predicts_its_training_items(device: Device) -> None:
    rows = from_package(HELLASWAG)[0][:6]  # from ActivityNet, which are short
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
    for _ in range(25):
        optimizer.zero_grad()
        model(padded[:, :-1], padded[:, 1:]).backward()
        optimizer.step()
    assert model.training
    after = make_predictions(exam, choice_losses(model, exam, device)).accuracy(BY_TOKEN).value
    assert model.training  # as before
    assert before < 0.7
    assert after == 1.0


def test_greedy_misses_equal_the_argmax_of_the_logits(device: Device) -> None:
    model, exam = model_of(), PackedTask(open_items(HELLASWAG, count=8), 512, 1024)
    losses, others = choice_losses_and_greedy(model, exam, device)
    np.testing.assert_allclose(losses, choice_losses(model, exam, device), rtol=0, atol=1e-4)
    for row, question in enumerate(exam.questions):
        for number, (context, ending) in enumerate(zip(question.contexts, question.choices, strict=True)):
            whole = torch.from_numpy(np.concatenate([context, ending]))[None]
            likeliest = model.logits(model.hidden(whole[:, :-1])[:, -len(ending) :])[0].argmax(dim=1).numpy()
            assert others[row, number] == (likeliest != ending).sum()


def by_hand(losses: list[list[float]], label: int = 0) -> Predictions:
    """One item with choices of 1, 2 and 4 tokens, 4, 4 and 24 characters, 8, 4 and 24 bytes."""
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


def test_metrics_choose_as_their_names_say() -> None:
    answers = by_hand([[4.0, 5.0, 18.0]])
    assert answers.chosen(BY_SUM).tolist() == [0]  # 4, 5, 18
    assert answers.chosen(BY_TOKEN).tolist() == [1]  # 4, 2.5, 4.5
    assert answers.chosen(BY_CHARACTER).tolist() == [2]  # 1, 1.25, 0.75
    assert answers.chosen(BY_BYTE).tolist() == [0]  # 0.5, 1.25, 0.75


def test_standard_error_is_that_of_a_mean() -> None:
    answers = by_hand([[1.0, 9.0, 9.0]] * 3 + [[9.0, 1.0, 9.0]])
    accuracy = answers.accuracy(BY_SUM)
    right = np.array([1.0, 1.0, 1.0, 0.0])
    assert accuracy.value == 0.75
    assert accuracy.error == pytest.approx(right.std(ddof=1) / 2)
    assert str(accuracy) == "0.7500 ± 0.2500"


def test_nan_losses_give_no_prediction() -> None:
    answers = by_hand([[np.nan, 1.0, 2.0], [np.nan] * 3, [1.0, 2.0, np.inf]])
    assert answers.chosen(BY_SUM).tolist() == [-1, -1, 0]
    assert answers.accuracy(BY_SUM).value == pytest.approx(1 / 3)


def test_predictions_are_read_as_written(tmp_path: Path, device: Device) -> None:
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


def test_items_with_several_contexts_share_their_prefix(device: Device) -> None:
    """WinoGrande's two contexts differ in a name only; they part there."""
    item = Item(0, "", ("Ann saw Bob because Ann", "Ann saw Bob because Bob"), (" looked.", " looked."), 0)
    task = TASKS["winogrande"]
    exam = PackedTask(Items(task, (item,), 1, "by hand", False), 512, 512)
    (group,) = exam.groups
    assert int((group.segments == 0).sum()) == len(encode("Ann saw Bob because"))
    model = model_of()
    np.testing.assert_allclose(
        choice_losses(model, exam, device), losses_of_single_sequences(model, exam), rtol=0, atol=1e-4
    )
