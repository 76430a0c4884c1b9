"""The miniature, fine-tuned on 200 conversations, answers what it was trained on: the example of docs/chat.md."""

import io
from pathlib import Path

import pytest

from regpt.base.errors import DONE
from regpt.cli.main import main
from regpt.tracking.journal import read_history
from tests.conftest import write_texts
from tests.helpers.conversations import COLOURS, colours, write_lines

MUON = (
    "optimizer.kind=muon optimizer.muon_lr=0.01 optimizer.muon_momentum=0.9 optimizer.embedding_lr=0.01"
    " optimizer.vector_lr=0.01 optimizer.eps=1e-5 optimizer.weight_decay=0 optimizer.warmup_steps=4"
)
QUIET = "evaluation.hellaswag_every=0 evaluation.sample_every=0 evaluation.sample_count=0 run.threads=1"


@pytest.mark.nightly
def test_fine_tuned_miniature_answers_a_trained_question(
    tmp_path: Path, real_text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "texts", real_text)
    base = f"data.source=texts data.path=data/base data.validation_tokens=600 run.max_steps=4 {QUIET}"
    assert main(["train", "demo-next", "--name", "base", *base.split(), "evaluation.validation_every=0"]) == DONE
    write_lines(tmp_path / "chats.jsonl", ({"messages": turns} for turns in colours()))
    data = "data.source=chats.jsonl data.path=data/chats data.validation_tokens=600 data.total_batch_tokens=1024"
    words = f"run.init_from=base {data} data.micro_batch=4 run.max_steps=60 {MUON} {QUIET}"
    assert main(["train", "gpt2-chat", "--name", "mine", *words.split(), "evaluation.validation_every=60"]) == DONE
    before, after = (one.loss for one in read_history(tmp_path / "runs" / "mine").validations)
    assert before > 5 and after < 0.1
    questions = [f"Now, {thing}?" for thing in COLOURS]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(questions) + "\n"))
    capsys.readouterr()
    assert main(["chat", "mine", "--temperature", "0"]) == DONE
    assert capsys.readouterr().out.split() == list(COLOURS.values())
