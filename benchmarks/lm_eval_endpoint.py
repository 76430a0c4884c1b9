"""Run lm-eval's `local-completions` against `regpt serve`, and compare with what regpt itself computes.

    pip install 'lm-eval[api]'
    python -m benchmarks.lm_eval_endpoint                 a tiny model that is trained first
    python -m benchmarks.lm_eval_endpoint RUN --items 200

Three tasks on items of HellaSwag, all local: its choices (log-likelihoods), the last words of its contexts (whether
they are greedy, too), and texts that continue the contexts (greedy, up to a stop word). Half of the targets of the
last two are the model's own, so that their scores are about one half. lm-eval asks one by one, in batches of 8, and
four at once.

Both sides compute in float32. The endpoint normalizes probabilities over the tokens that exist, `regpt evaluate` over
all rows of the embedding, as in training. The tiny model has no rows of padding, so its figures agree within rounding.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regpt import __version__
from regpt.data.tokenizer import VOCABULARY
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.evaluate import ignore_task_progress
from regpt.evaluation.lm_eval import make_harness_model
from regpt.evaluation.sampling import continuations
from regpt.export.directory import ExportOptions
from regpt.export.opened import export_directory
from regpt.generation.drawing import Sampling
from regpt.interop.open_model import LoadedModel, open_model
from regpt.machine.device import open_device
from regpt.tasks.catalog import TASKS
from regpt.tasks.items import from_package
from regpt.training.start import train
from tests.conftest import tiny_recipe
from tests.helpers.served_runs import served

COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
validation_split: validation
"""
CHOICES = """
task: choices
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
LAST_WORDS = """
task: last_words
output_type: loglikelihood
doc_to_text: "{{before}}"
doc_to_target: "{{last}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: perplexity}]
"""
TEXTS = """
task: texts
output_type: generate_until
doc_to_text: "{{query}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: [" the", ".", "\\n", ",", " of", "?"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""
UNTIL, NEW_TOKENS = (" the", ".", "\n", ",", " of", "?"), 12
KINDS = {"choices": CHOICES, "last_words": LAST_WORDS, "texts": TEXTS}
WAYS: dict[str, dict[str, int]] = {
    "one by one": {"batch_size": 1},
    "batches of 8": {"batch_size": 8},
    "4 at once": {"batch_size": 1, "num_concurrent": 4},
}


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.lm_eval_endpoint", description=__doc__)
    options.add_argument("run", nargs="?", help="a run in --runs (default: a tiny one, which is trained)")
    options.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    options.add_argument("--way", choices=WAYS, help="how lm-eval asks (default: in all three ways)")
    options.add_argument("--items", type=int, default=60, help="items of each task (default: 60)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.setdefault("HF_HOME", str(folder / "hf"))
        runs, run = (arguments.runs, arguments.run) if arguments.run else (folder / "runs", train_tiny(folder))
        loaded = open_model(run, runs, ["run.precision=float32"])
        export_directory(loaded, folder / "exported", ExportOptions())
        write_tasks(loaded, folder, arguments.items)
        print(f"regpt {__version__}, lm-eval {version('lm_eval')}, {arguments.items} items a task, {loaded.name}")
        ours = results_of(own_model(loaded), folder)
        with served(runs.resolve(), run) as (_, port):
            differ = [
                compare(way, ours, results_of(api_model(run, port, folder, loaded, **how), folder))
                for way, how in WAYS.items()
                if arguments.way in (None, way)
            ]
    return int(any(differ))


def train_tiny(folder: Path) -> str:
    """Train a model of two layers on this program's own source for 40 steps; return its run's name."""
    (folder / "texts").mkdir()
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path("regpt").rglob("*.py")))
    (folder / "texts" / "a.txt").write_text(text, encoding="utf-8")
    recipe = tiny_recipe(
        folder,
        run={"max_steps": 40},
        model={"block_size": 256, "vocab_size": VOCABULARY},
        data={"total_batch_tokens": 1024},
        evaluation={"sample_count": 0, "validation_every": 0},
        checkpoint={"every": 0},
    )
    train(recipe, folder / "runs" / "tiny")
    return "tiny"


def write_tasks(loaded: LoadedModel, folder: Path, count: int) -> None:
    """Write the items of HellaSwag that fit the model's context, and the three tasks on them."""
    room = loaded.model.recipe.block_size - 2 * NEW_TOKENS
    docs: list[dict[str, Any]] = []
    for number, row in enumerate(from_package(TASKS["hellaswag"])[0]):
        item = TASKS["hellaswag_lm_eval"].item(number, row)
        query, choices = item.contexts[0], [choice[1:] for choice in item.choices]
        if max(len(loaded.tokenizer.encode(f"{query} {choice}")) for choice in choices) > room:
            continue
        before, _, last = query.rpartition(" ")
        is_own = len(docs) % 2 == 1
        docs.append(
            {
                "query": query,
                "choices": choices,
                "label": item.label,
                "before": before,
                "last": own_text(loaded, before, (), 1) if is_own else f" {last}",
                "text": own_text(loaded, query, UNTIL, NEW_TOKENS) if is_own else "another text",
            }
        )
        if len(docs) == count:
            break
    file = folder / "items.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    (folder / "tasks").mkdir()
    for name, text in KINDS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(text + COMMON.format(file=file), encoding="utf-8")


def own_text(loaded: LoadedModel, prompt: str, until: Sequence[str], new_tokens: int) -> str:
    """Return the greedy text of `regpt sample`, up to the first stop word."""
    (text,) = continuations(loaded.model, prompt, 1, new_tokens, Sampling(temperature=0.0), tokenizer=loaded.tokenizer)
    text = text.removeprefix(prompt)
    return text[: min((at for word in until if (at := text.find(word)) >= 0), default=len(text))]


def own_model(loaded: LoadedModel) -> Any:
    """Return regpt's model for lm-eval, with texts by `own_text`."""
    model = make_harness_model(loaded, open_device(loaded.recipe.run), RankGroup(), ignore_task_progress)

    def generate_until(requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        asked = (request.args for request in requests)
        return [own_text(loaded, prompt, how["until"], how["max_gen_toks"]) for prompt, how in asked]

    model.generate_until = generate_until
    return model


def api_model(run: str, port: int, folder: Path, loaded: LoadedModel, **how: int) -> Any:
    """Return lm-eval's client of the endpoint."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        model=run,
        base_url=f"http://127.0.0.1:{port}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=str(folder / "exported"),
        max_length=loaded.model.recipe.block_size,
        max_retries=1,
        **how,
    )


def results_of(model: Any, folder: Path) -> dict[str, Any]:
    """Return what lm-eval finds for the three tasks."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    return dict(simple_evaluate(model, tasks=list(KINDS), task_manager=manager, bootstrap_iters=0))


def compare(way: str, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Print the scores of both sides; return whether any differs."""
    differ = False
    for task in KINDS:
        pairs = list(zip(answers(ours, task), answers(theirs, task), strict=True))
        numbers = [(float(one[0]), float(other[0])) for one, other in pairs if isinstance(one, tuple)]
        unequal = sum(one[1:] != other[1:] if isinstance(one, tuple) else one != other for one, other in pairs)
        distance = max((abs(one - other) for one, other in numbers), default=0.0)
        for metric, value in ours["results"][task].items():
            if isinstance(value, float) and "stderr" not in metric:
                found = theirs["results"][task][metric]
                same = abs(value - found) <= 1e-5 * max(1.0, abs(value))
                differ |= not same
                name = metric.removesuffix(",none")
                sides = f"regpt {value:<12.6g} endpoint {found:<12.6g}"
                print(f"{way:14} {task:12} {name:12} {sides} {'' if same else 'DIFFERS'}")
        differ |= unequal > 0
        print(f"{way:14} {task:12} {len(pairs)} answers, {unequal} unequal, log-likelihoods within {distance:.1e}")
    return differ


def answers(results: dict[str, Any], task: str) -> Iterator[Any]:
    """Yield each answer in the order of the items: (log-likelihood, is greedy), or a text."""
    for sample in sorted(results["samples"][task], key=lambda one: int(one["doc_id"])):
        for response in sample["resps"]:
            first = response[0]
            yield tuple(first) if isinstance(first, list | tuple) else first


if __name__ == "__main__":
    raise SystemExit(main())
