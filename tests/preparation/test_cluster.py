"""A cluster gives the same bytes as one machine: by datatrove's local executor, and by Slurm's scripts."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from regpt.base.errors import DataError
from regpt.preparation import cluster
from regpt.preparation.cluster import encode_parts, encoded_corpus, prepare_on, seal_pieces
from regpt.preparation.dataset import pieces_folder, prepare
from regpt.recipe.recipe import Recipe
from tests.conftest import tiny_recipe

# A fake Slurm that runs each job as soon as it is queued, and an srun that only runs its command.
SBATCH = r"""#!/bin/bash
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$script")
cp "$script" "$(mktemp "$FAKE_SLURM/job.XXXX")"
for index in $(seq 0 "${last:-0}"); do
    SLURM_ARRAY_TASK_ID=$index SLURM_NODELIST=localhost bash "$script" >>"$FAKE_SLURM/log" 2>&1
done
echo "Submitted batch job 7"
"""
SRUN = '#!/bin/bash\nshift 3\nexec "$@"\n'  # srun -l -n 1 COMMAND
SCONTROL = '#!/bin/bash\necho "${@: -1}"\n'  # scontrol show hostnames NODES


def elsewhere(tiny: Recipe, folder: Path) -> Recipe:
    return tiny_recipe(folder, data={"path": str(folder / "by-cluster"), "source": tiny.data.source})


def same_bytes(one: Path, other: Path) -> bool:
    shards = sorted(path.name for path in one.glob("*.npy"))
    assert shards == sorted(path.name for path in other.glob("*.npy"))
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in [*shards, "manifest.json"])


@pytest.mark.parametrize(("workers", "rule"), [(1, "documents"), (1, "first_tokens"), (2, "first_tokens")])
def test_local_executor_gives_the_bytes_of_one_machine(tiny: Recipe, tmp_path: Path, workers: int, rule: str) -> None:
    data = {"validation": rule, "validation_tokens": 1_000, "source": tiny.data.source}
    assert prepare(tiny_recipe(tmp_path, data=data)).validation.rule == rule
    by_cluster = tiny_recipe(tmp_path, data={**data, "path": str(tmp_path / "by-cluster")})
    manifest = prepare_on("local", by_cluster, 2, {"workers": workers})
    assert manifest is not None and same_bytes(tmp_path / "data", tmp_path / "by-cluster")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by-cluster", "by-cluster-logs", "data", "texts"]


@pytest.mark.slow
def test_slurm_jobs_give_the_bytes_of_one_machine(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(programs))
    prepare(tiny)
    options = {"partition": "cpu", "time": "00:10:00", "workers": 2}
    assert prepare_on("slurm", elsewhere(tiny, tmp_path), 3, options) is None
    assert same_bytes(tmp_path / "data", tmp_path / "by-cluster"), (programs / "log").read_text()
    jobs = "".join(path.read_text() for path in programs.glob("job.*"))
    assert "--array=0-2%2" in jobs and "--partition=cpu" in jobs and str(Path(sys.executable).parent) in jobs


def test_killed_task_alone_is_repeated(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = elsewhere(tiny, tmp_path)
    for rank in (0, 1, 2):
        encode_parts(recipe, None, rank, 3)
    pieces = pieces_folder(recipe)
    (pieces / "000001.json").unlink()  # it is written last
    (pieces / "000001.npy").write_bytes(b"half of it")
    with pytest.raises(DataError, match=r"b\.jsonl: not encoded"):
        encoded_corpus(recipe)
    seal_pieces(recipe, None, 0, 1)  # says it in the job's log
    assert not (tmp_path / "by-cluster").exists()
    encoded = []
    monkeypatch.setattr(
        cluster, "encode_part", lambda *a, real=cluster.encode_part: (encoded.append(a[1].number), real(*a))
    )
    for rank in (0, 1, 2):
        encode_parts(recipe, None, rank, 3)
    assert encoded == [1]
    seal_pieces(recipe, None, 0, 1)
    prepare(tiny)
    assert same_bytes(tmp_path / "data", tmp_path / "by-cluster")


def test_encoded_files_of_other_settings_are_not_used(tiny: Recipe, tmp_path: Path) -> None:
    recipe = elsewhere(tiny, tmp_path)
    encode_parts(recipe, None, 0, 1)
    with pytest.raises(DataError, match="not encoded"):
        encoded_corpus(tiny_recipe(tmp_path, data={"path": recipe.data.path, "text_column": "body"}))


def test_short_text_keeps_encoded_files_for_the_remedy(
    tiny: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "by-cluster")
    greedy = tiny_recipe(tmp_path, data={"path": path, "validation_tokens": 1_000_000})
    with pytest.raises(DataError, match="the training split has 0 of"):
        prepare_on("local", greedy, 2, {"workers": 1})
    err = capfd.readouterr().err.strip().splitlines()
    assert len(err) == 1 and err[0].startswith("error: the training split has 0 of")
    made = sorted(pieces_folder(greedy).glob("*.npy"))
    before = [piece.stat().st_mtime_ns for piece in made]
    prepare(tiny)
    prepare_on("local", elsewhere(tiny, tmp_path), 2, {"workers": 1})
    assert len(before) == 3 and same_bytes(tmp_path / "data", tmp_path / "by-cluster")


def test_deleted_dataset_can_be_prepared_again(tiny: Recipe, tmp_path: Path) -> None:
    for _ in range(2):
        assert prepare_on("local", elsewhere(tiny, tmp_path), 2, {"workers": 1}) is not None
        shutil.rmtree(tmp_path / "by-cluster")


def test_task_error_is_raised_as_one_line(tiny: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts" / "zzz.parquet").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"zzz\.parquet: damaged or not a parquet file"):
        prepare_on("local", elsewhere(tiny, tmp_path), 2, {"workers": 1})
    assert "Traceback" not in capfd.readouterr().err


def test_prepare_refuses_to_touch_work_of_a_cluster(tiny: Recipe, tmp_path: Path) -> None:
    recipe = elsewhere(tiny, tmp_path)
    encode_parts(recipe, None, 0, 3)
    with pytest.raises(DataError, match="a cluster has started"):
        prepare(recipe)


@pytest.mark.parametrize("options", [{"workers": "abc"}, {"workers": 0}, {"partition": "cpu"}])
def test_invalid_executor_option_leaves_no_files(tiny: Recipe, tmp_path: Path, options: dict[str, object]) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=f"{next(iter(options))}"):
        prepare_on("local", elsewhere(tiny, tmp_path), 2, options)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "by-cluster-logs"] == before


def test_unknown_executor_option_is_named(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--executor local: got an unexpected keyword argument 'partition'"):
        prepare_on("local", elsewhere(tiny, tmp_path), 2, {"partition": "cpu"})
