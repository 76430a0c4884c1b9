"""On a CUDA card: the sections of `benchmarks.gpu` in small sizes, as yes or no."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import attention, compilation, evaluations, loss, one_rank, reference, runs, saving, switches
from benchmarks.gpu.__main__ import without_network
from benchmarks.gpu.bench import SMALL, Bench, free_memory
from benchmarks.gpu.children import Child
from benchmarks.gpu.results import Measured
from regpt.machine.attention import NAMES
from regpt.machine.env import use_expandable_segments

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(120),
]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    without_network()
    use_expandable_segments()
    yield Bench("cuda", SMALL, tmp_path)
    Child.kill_all()
    free_memory()


def check(values: Iterator[Measured]) -> list[Measured]:
    """Fail if a value is outside its bound; return all values."""
    found = list(values)
    assert not [one for one in found if one.passed is False]
    assert any(one.passed for one in found)
    return found


def test_losses_are_those_of_a_cpu(bench: Bench) -> None:
    check(reference.same_losses_as_cpu(bench))


def test_loss_and_gradients_are_those_of_float64(bench: Bench) -> None:
    check(loss.parity(bench, loss.draw(bench, 1)))


def test_compiled_training_is_as_eager_and_compiles_once(bench: Bench) -> None:
    check(compilation.compiled_as_eager(bench))


def test_resume_is_exact_in_deterministic_mode(bench: Bench) -> None:
    check(runs.exact_resume(bench))


def test_memory_that_runs_out_halves_the_micro_batch(bench: Bench) -> None:
    bench.sizes = replace(SMALL, micro_batch=32)  # with 16, most of the memory does not depend on the micro-batch
    check(runs.out_of_memory(bench))


def test_attention_has_a_known_backend(bench: Bench) -> None:
    chosen, *times = attention.attention_backends(bench)
    assert chosen.value in NAMES.values()
    assert all(one.value for one in times if one.name.endswith(("default", "ours")))


def test_ddp_and_fsdp_train_over_nccl(bench: Bench) -> None:
    check(one_rank.one_rank(bench))


def test_checkpoint_is_written_while_training_continues(bench: Bench) -> None:
    check(saving.checkpoints(bench))


def test_signals_and_nan_leave_whole_checkpoints(bench: Bench) -> None:
    check(runs.stopping(bench))


def test_questions_have_the_answers_of_a_cpu(bench: Bench) -> None:
    check(evaluations.evaluations(bench))


def test_improvements_train_compiled_as_eager(bench: Bench) -> None:
    check(switches.switches(bench))
