"""environment.json of this version, of version 0.1 and of early versions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from regpt.base.errors import UserError
from regpt.cli.main import main
from regpt.corpus.public_corpora import PublicCorpus
from regpt.data.token_statistics import measure
from regpt.fairness.learning_curves import training_seconds
from regpt.fairness.loading import load_run
from regpt.inspection.duplicate_record import store_duplicates, stored_duplicates
from regpt.inspection.duplicates import Search
from regpt.machine.device import open_device
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe
from regpt.stats.verdicts import device_counts
from regpt.tracking.environment import DataInfo, DeviceInfo, Environment, Packages, SourceInfo, TokenizerBackend
from regpt.tracking.run import open_run
from regpt.training.environment import environment

OLD_RUN = Path(__file__).parent.parent / "fixtures" / "version_0_1" / "runs" / "old-modern"
FILE = "environment.json"


def stored() -> dict[str, Any]:
    return dict(json.loads((OLD_RUN / FILE).read_text(encoding="utf-8")))


def test_environment_of_version_0_1_is_read_and_written_unchanged() -> None:
    environment = Environment.read(OLD_RUN)
    assert environment.device == DeviceInfo(
        place="cpu",
        name="AMD EPYC, 1 threads",
        precision="float32",
        peak_flops=43037565136.2539,
        peak_source="measured, large matrix product",
    )
    assert environment.packages == Packages(python="3.11.7", torch="2.13.0+cpu", numpy="2.4.6")
    assert environment.data.made_with == TokenizerBackend(tokenizer_backend="tiktoken", version="0.14.0")
    assert environment.data.source == SourceInfo(asked="texts", description="texts", other={"parts": 3})
    assert environment.to_json() == stored()


def test_environment_of_imported_shards_is_read_and_written_unchanged() -> None:
    source = {"asked": "shards", "description": "shards of edu", "imported": True}
    known = stored()
    known["data"] |= {"source": source, "made_with": {}}
    environment = Environment.from_json(known)
    assert environment.data.source == SourceInfo(asked="shards", description="shards of edu", imported=True)
    assert environment.data.made_with is None and environment.to_json() == known


def test_missing_and_malformed_entries_have_their_defaults() -> None:
    assert Environment.from_json({}) == Environment()
    broken = {"data": {"digest": 5, "train_tokens": "many", "source": []}, "device": None, "ranks": 2}
    assert Environment.from_json(broken) == Environment(ranks=2, data=DataInfo())


@pytest.mark.parametrize("content", [None, "", "[]", '{"ranks": '])
def test_missing_or_incomplete_file_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError) as caught:
        Environment.read(tmp_path)
    assert str(tmp_path / FILE) in caught.value.problem


@pytest.mark.parametrize("content", ["{}", '{"recipe_name": "old", "data": {"digest": "abc"}}'])
@pytest.mark.usefixtures("undrawn_figures")
def test_run_with_an_early_environment_is_listed_watched_reported_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    shutil.copytree(OLD_RUN.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    Path("runs/old-modern", FILE).write_text(content)
    run = open_run(Path("runs/old-modern"))
    assert run.share_of_peak is None and run.epochs is None
    for command in (
        ["runs"],
        ["watch", "old-modern", "--once"],
        ["report", "old-modern", "--against", "old-classic"],
        ["report", "old-classic", "--against", "old-modern"],
        ["compare", "old-modern", "old-classic", "--into", "compared"],
    ):
        assert main(command) == 0


@pytest.mark.parametrize(
    ("source", "path", "corpus"),
    [
        (SourceInfo(asked="hub:HuggingFaceFW/fineweb-edu/sample/10BT"), "data/x", PublicCorpus.FINEWEB_EDU),
        (SourceInfo(asked="hub:HuggingFaceFW/fineweb/sample/10BT"), "data/fineweb-edu", PublicCorpus.FINEWEB),
        (SourceInfo(asked="hub:somebody/fineweb-edu-copy"), "data/fineweb-edu", PublicCorpus.OTHER),
        (SourceInfo(asked="my-fineweb-edu", description="my-fineweb-edu"), "data/fineweb-edu", PublicCorpus.OTHER),
        (SourceInfo(asked="a", description="shards of a", imported=True), "edu_fineweb10B", PublicCorpus.FINEWEB_EDU),
        (SourceInfo(asked="b", description="shards of fineweb10B", imported=True), "b", PublicCorpus.FINEWEB),
        (SourceInfo(asked="c", description="shards of c", imported=True), "c", PublicCorpus.OTHER),
        (SourceInfo(), "data/fineweb-edu", PublicCorpus.OTHER),
    ],
)
def test_public_corpus_follows_from_the_source_and_only_for_imported_shards_from_the_folder(
    source: SourceInfo, path: str, corpus: PublicCorpus
) -> None:
    assert DataInfo(source=source).corpus(path) is corpus


def test_split_and_statistics_of_a_dataset_are_stored_and_read(tmp_path: Path, tiny: Recipe) -> None:
    manifest = prepare(tiny)
    before = environment(tiny, open_device(tiny.run), manifest, ranks=1)
    assert before.data.duplicates is None and "duplicates" not in before.to_json()["data"]
    search = Search(tiny.data.directory, manifest)
    store_duplicates(tiny.data.directory, manifest, search.run(search.build_index()).record)
    known = environment(tiny, open_device(tiny.run), manifest, ranks=1)
    assert known.data.duplicates == stored_duplicates(tiny.data.directory, manifest) is not None
    assert known.data.split == manifest.validation
    assert known.data.statistics == measure(tiny.data.directory, manifest) is not None
    written = json.loads(json.dumps(known.to_json()))
    assert Environment.from_json(written) == known
    assert written["data"]["split"]["rule"] == manifest.validation.rule


@pytest.mark.parametrize("broken", [3, [], {}, {"rule": "files"}, {"train": {}}])
def test_split_and_statistics_that_are_malformed_are_unknown(broken: object) -> None:
    known = stored()
    known["data"] |= {"split": broken, "statistics": broken, "duplicates": broken}
    read = Environment.from_json(known)
    assert read.data.split is None and read.data.statistics is None and read.data.duplicates is None
    assert read.to_json() == stored()


def test_device_of_one_thread_has_one_name_in_all_versions() -> None:
    run = open_run(OLD_RUN)
    assert run.environment.device.name == "AMD EPYC, 1 threads" and run.device_name == "AMD EPYC, 1 thread"
    assert device_counts(run) == {("AMD EPYC, 1 thread", 1)}
    assert load_run(run, run.id).device == "AMD EPYC, 1 thread"


def test_training_time_of_a_run_includes_skipped_steps() -> None:
    run = open_run(OLD_RUN)
    skipped = sum(record.seconds for record in run.history.skipped)
    assert skipped > 0
    assert run.training_seconds == pytest.approx(sum(step.seconds for step in run.history.steps) + skipped)
    assert run.training_seconds == pytest.approx(training_seconds(load_run(run, run.id)))
