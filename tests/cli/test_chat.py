"""`regpt chat`: a model trained on conversations answers, remembers, stops at Ctrl-C, and forgets the oldest turns."""

import builtins
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import regpt
from regpt.base.errors import DONE, USAGE
from regpt.cli.main import main
from regpt.evaluation import chat as chat_module
from regpt.evaluation.chat import Chat
from regpt.evaluation.chat_terminal import PROMPT
from regpt.generation.drawing import Sampling
from regpt.interop.open_model import LoadedModel, open_model
from regpt.recipe.recipe import Recipe
from regpt.tokenization.chat_template import Message, prompt_tokens
from regpt.tokenization.chat_tokens import CHAT_TEMPLATE, ChatTokenizer
from regpt.tracking.journal import read_history
from tests.conftest import tiny_recipe
from tests.helpers.conversations import train_on_colours
from tests.helpers.typed import CONTROL_C, CONTROL_D, typed_program

pytestmark = pytest.mark.slow
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedModel:
    return open_model(run, run.parent)


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> list[str]:
    """Let a terminal type these lines, or raise these errors, then Ctrl-D. Returns the prompts shown."""
    script: Iterator[str | type[BaseException]] = iter([*lines, EOFError])
    prompts: list[str] = []

    def read(prompt: str = "") -> str:
        prompts.append(prompt)
        line = next(script)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", read)
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    return prompts


def interrupted_after(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Press Ctrl-C after a number of tokens of each answer."""
    generate: Callable[..., Iterator[object]] = chat_module.generate_tokens

    def until(*given: object) -> Iterator[object]:
        for number, drawn in enumerate(generate(*given)):
            if number == tokens:
                raise KeyboardInterrupt
            yield drawn

    monkeypatch.setattr(chat_module, "generate_tokens", until)


def test_fine_tuning_lowers_the_loss_of_held_out_answers(run: Path) -> None:
    first, *_, last = read_history(run).validations
    assert first.loss > 5 and last.loss < 0.1


def test_trained_questions_are_answered_from_a_pipe(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi, grass?\n\nYo! the sky?\nSo; coal?\n"))
    assert main(["chat", str(run), "--temperature", "0", "--tokens", "12"]) == DONE
    assert capsys.readouterr().out == "Green.\nBlue.\nBlack.\n"


def test_terminal_answers_until_the_user_leaves(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = typed(monkeypatch, "Hi, snow?", "", "/new", "Oh, a lemon?", "exit", "Hi, coal?")
    assert main(["chat", str(run), "--temperature", "0", "--tokens", "12"]) == DONE
    assert capsys.readouterr().out == "White.\nYellow.\n"
    assert len(prompts) == 5  # nothing is read after exit


def test_control_c_stops_the_answer_and_not_the_program(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted_after(monkeypatch, 3)
    prompts = typed(monkeypatch, "Hi, grass?", "/new", "Yo! the sky?")
    assert main(["chat", str(run), "--temperature", "0", "--tokens", "12"]) == DONE
    assert capsys.readouterr().out == "Gre\nBlu\n\n"
    assert len(prompts) == 4


def stop_after_two_tokens(asked: Path) -> None:
    """Let the first answer wait after two tokens, and write the turns of each question to a file."""
    generate, fit = chat_module.generate_tokens, Chat.fit

    def waiting(*given: Any) -> Iterator[object]:
        is_first = len(asked.read_text(encoding="utf-8").splitlines()) == 1
        for number, drawn in enumerate(generate(*given), 1):
            yield drawn
            if is_first and number == 2:
                time.sleep(60)

    def recorded(self: Chat, turns: list[Message], block_size: int) -> object:
        with asked.open("a", encoding="utf-8") as file:
            file.write(json.dumps([turn.content for turn in turns]) + "\n")
        return fit(self, turns, block_size)

    chat_module.generate_tokens, Chat.fit = waiting, recorded  # type: ignore[assignment,method-assign]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
@pytest.mark.parametrize("leave", [CONTROL_C, CONTROL_D], ids=["Ctrl-C", "Ctrl-D"])
def test_control_c_in_a_real_terminal_stops_the_answer_only(run: Path, tmp_path: Path, leave: str) -> None:
    plant = partial(stop_after_two_tokens, tmp_path / "asked")
    with typed_program(["chat", str(run), "--temperature", "0", "--tokens", "12"], plant) as program:
        program.wait_for(PROMPT)
        program.type("Hi, grass?\n")
        program.wait_for("Gr")
        program.type(CONTROL_C)
        assert program.wait_for(PROMPT).strip() in ("", "^C")
        program.type("Yo! the sky?\n")
        program.wait_for("Blue.")
        program.wait_for(PROMPT)
        program.type(CONTROL_C)
        assert "Ctrl-C again" in program.wait_for(PROMPT)
        program.type(leave)
        assert program.exit_code() == DONE
        assert "Traceback" not in program.rest()
    first, second = map(json.loads, (tmp_path / "asked").read_text(encoding="utf-8").splitlines())
    assert first == ["Hi, grass?"] and second == ["Hi, grass?", "Gr", "Yo! the sky?"]


@pytest.mark.parametrize(
    ("keys", "prompts"),
    [
        ([KeyboardInterrupt, KeyboardInterrupt], 2),
        ([KeyboardInterrupt, "", KeyboardInterrupt, KeyboardInterrupt], 4),
        ([EOFError], 1),
        (["QUIT"], 1),
    ],
)
def test_control_c_twice_and_control_d_leave(
    run: Path, monkeypatch: pytest.MonkeyPatch, keys: list[str | type[BaseException]], prompts: int
) -> None:
    shown = typed(monkeypatch, *keys, "Hi, grass?")
    assert main(["chat", str(run)]) == DONE
    assert len(shown) == prompts


def test_stopped_answer_stays_in_the_history(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(loaded, GREEDY, 12)
    answer = chat.ask("Hi, grass?")
    assert [next(answer), next(answer)] == ["G", "r"]
    answer.close()
    assert chat.turns == [Message("user", "Hi, grass?"), Message("assistant", "Gr")]


def test_answer_continues_the_whole_conversation(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[list[int]] = []
    generate = chat_module.generate_tokens

    def spy(model: object, prompt: object, *given: object) -> Iterator[object]:
        prompts.append(prompt[0].tolist())  # type: ignore[index]
        return generate(model, prompt, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(chat_module, "generate_tokens", spy)
    chat = Chat(loaded, GREEDY, 8, system="S")
    for question in ("a", "b"):
        list(chat.ask(question))
    assert isinstance(loaded.tokenizer, ChatTokenizer)
    first = chat.turns[1]
    expected = [Message("system", "S"), Message("user", "a"), first, Message("user", "b")]
    if chat.forgotten:
        expected[1:3] = []
    assert prompts[1] == prompt_tokens(expected, loaded.tokenizer).tolist()


def test_oldest_turns_are_forgotten_and_the_user_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi, grass?\nYo! the sky?\n" + "long " * 40 + "\nHi, coal?\n"))
    assert main(["chat", str(run), "--temperature", "0", "--tokens", "12"]) == DONE
    out, err = capsys.readouterr()
    assert out == "Green.\nBlue.\n\nBlack.\n"
    assert "oldest 2 messages" in err and "has room for 52" in err


def test_answer_ends_at_its_end_token(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[object] = []
    generate = chat_module.generate_tokens

    def spy(*given: object) -> Iterator[object]:
        for drawn in generate(*given):  # type: ignore[arg-type]
            rounds.append(drawn)
            yield drawn

    monkeypatch.setattr(chat_module, "generate_tokens", spy)
    assert "".join(Chat(loaded, GREEDY, 20).ask("Hi, grass?")) == "Green."
    assert len(rounds) == len("Green.") + 1


def test_seed_determines_an_answer(loaded: LoadedModel) -> None:
    hot = Sampling(temperature=2.0, seed=3)
    one, same = ("".join(Chat(loaded, hot, 20).ask("Hi, grass?")) for _ in range(2))
    assert one == same


def test_model_without_a_chat_template_is_refused_with_the_remedy(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe: Recipe = tiny_recipe(tmp_path, run={"max_steps": 1}, evaluation={"sample_count": 0})
    regpt.train(recipe, tmp_path / "base")
    assert main(["chat", str(tmp_path / "base")]) == USAGE
    error = capsys.readouterr().err
    assert "base" in error and "chat template" in error and "regpt sample" in error


def test_exported_chat_model_answers_in_transformers_and_here(
    run: Path, loaded: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["export", str(run), str(tmp_path / "exported")]) == DONE
    theirs = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert isinstance(loaded.tokenizer, ChatTokenizer)
    messages = [Message("system", "Be\n short."), Message("user", "Hi!\n\n it's ü🙂"), Message("assistant", "Yes.")]
    rows = [message._asdict() for message in messages]
    for asked, rest in ((False, []), (True, [Message("user", "grass?")])):
        given = [*rows, *(one._asdict() for one in rest)]
        ids = theirs.apply_chat_template(given, add_generation_prompt=asked, return_dict=False)
        ours = prompt_tokens([*messages, *rest], loaded.tokenizer)
        assert ids == (ours if asked else ours[: -len(loaded.tokenizer.encode("assistant\n")) - 1]).tolist()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    question = [{"role": "user", "content": "Hi, grass?"}]
    inputs = theirs.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert theirs.decode(tokens) == "Green.<|im_end|>"
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi, grass?\n"))
    assert main(["chat", str(tmp_path / "exported"), "--temperature", "0", "--tokens", "12"]) == DONE
    assert capsys.readouterr().out == "Green.\n"


def test_gguf_of_a_chat_model_holds_its_template_and_tokens(run: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    assert main(["export", str(run), "--gguf", str(tmp_path / "chat.gguf")]) == DONE
    fields = gguf.GGUFReader(tmp_path / "chat.gguf").fields
    found = {name: fields[f"tokenizer.{name}"].contents() for name in ("chat_template", "ggml.eos_token_id")}
    assert found == {"chat_template": CHAT_TEMPLATE, "ggml.eos_token_id": 258}
    assert fields["tokenizer.ggml.tokens"].contents()[256:] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
