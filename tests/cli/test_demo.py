"""The whole way in miniature ends with a report and a comparison of its three runs, for a reader and for a browser."""

import re
from pathlib import Path

import pytest

from regpt.base.errors import DONE
from regpt.cli.main import main

SMALL = """run.max_steps=4 run.precision=float32 run.threads=1 model.n_layer=2 model.n_head=2 model.n_embd=16
model.block_size=32 model.mlp_hidden=40 optimizer.warmup_steps=2 data.micro_batch=2 data.total_batch_tokens=128
data.validation_tokens=4000 data.shard_tokens=5000 data.source=texts data.path=data evaluation.hellaswag_every=0
evaluation.validation_every=2 evaluation.sample_tokens=8 checkpoint.every=0"""


@pytest.mark.slow
def test_the_demo_names_its_report_and_its_comparison_and_a_second_one_writes_beside_them(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(texts.parent)
    for end in ("", "-2"):
        assert main(["demo", *SMALL.split()]) == DONE
        last = capsys.readouterr().out.splitlines()[-2:]
        classic, modern, newest = (f"demo-{name}{end}" for name in ("classic", "modern", "next"))
        report, comparison = f"runs/{newest}/report", f"comparisons/{newest}-vs-{modern}-vs-{classic}/comparison"
        assert last == [f"report: {report}.md and {report}.html", f"comparison: {comparison}.md and {comparison}.html"]
        text = Path(f"{comparison}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# Comparison: {newest}, {modern}, {classic}\n")
        assert f"**{newest}** is a GPT-2 of " in text
        assert all(f"**{newest} compared with {other}**" in text for other in (modern, classic))
        assert "| model.positions | rope | rope | learned |" in text
        page = Path(f"{comparison}.html").read_text(encoding="utf-8")
        assert len(re.findall(r'<img [^>]*src="data:image/svg', page)) == len(re.findall("<picture>", text)) > 1
        assert f"Compared with <strong>{classic}</strong>" in Path(f"{report}.html").read_text(encoding="utf-8")
