"""The load of experts in a report: its section, its rows and its figure; a dense model has none of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from regpt.rendering.figure_style import COLORS, DARK, PAPER
from regpt.reporting import expert_load
from regpt.reporting.expert_load import draw_expert_load, extremes, load_rows, shares
from regpt.reporting.page import write_report
from regpt.tracking.journal import ExpertLoadRecord
from regpt.tracking.run import Run, open_run

TRIALS = Path(__file__).parent.parent / "fixtures" / "runs"
RECORDS = [
    ExpertLoadRecord(step=2, tokens=8_192, loads=[[100, 0, 60, 40], [50, 50, 50, 50]]),
    ExpertLoadRecord(step=4, tokens=16_384, loads=[[60, 40, 50, 50], [90, 10, 40, 60]]),
]


@pytest.fixture
def mixture(tmp_path: Path) -> Run:
    """Return a run that says of itself to have two layers of four experts."""
    shutil.copytree(next(TRIALS.iterdir()), tmp_path / "run")
    run = open_run(tmp_path / "run")
    model = replace(run.recipe.model, n_layer=2, experts=4, bias=False)
    history = replace(run.history, expert_loads=RECORDS)
    return replace(run, recipe=replace(run.recipe, model=model), history=history)


def test_shares_add_up_to_one_in_each_layer() -> None:
    assert shares(RECORDS[1]) == [[0.3, 0.2, 0.25, 0.25], [0.45, 0.05, 0.2, 0.3]]
    assert extremes(RECORDS[1]) == ((0.05, 1, 1), (0.45, 1, 0))


@pytest.mark.usefixtures("undrawn_figures")
def test_report_has_the_largest_and_smallest_share_of_experts(mixture: Run) -> None:
    page = write_report(mixture, []).read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert ["Largest", "45 %", "1", "0"] in rows and ["Smallest", "5 %", "1", "1"] in rows
    active = next(cells[1] for cells in rows if cells[0] == "Active Parameters")
    assert active.startswith(f"{mixture.recipe.model.active_parameters:,} ")
    assert "/expert_load.png" in page and (mixture.paths.images / "expert_load-dark.png").exists()


@pytest.mark.usefixtures("undrawn_figures")
def test_report_of_a_dense_model_has_no_section_about_experts(mixture: Run) -> None:
    dense = open_run(mixture.path)
    assert not load_rows(dense)
    page = write_report(dense, []).read_text(encoding="utf-8")
    assert "xpert" not in page and not (dense.paths.images / "expert_load.png").exists()


def test_figure_of_expert_load_has_a_cell_for_each_expert(mixture: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(expert_load, "save_figure", lambda figure, path: figures.append(figure))
    draw_expert_load(mixture, mixture.paths.images / "expert_load.png")
    above, below = figures[0].axes
    drawn = {line.get_label(): [float(y) for y in line.get_ydata()] for line in above.lines}  # type: ignore[union-attr]
    assert drawn["largest share of an expert"] == [50.0, 45.0] and drawn["smallest share of an expert"] == [0.0, 5.0]
    opacities = [cell.get_facecolor()[3] for cell in below.patches]
    assert opacities == pytest.approx([0.6, 0.4, 0.5, 0.5, 0.9, 0.1, 0.4, 0.6])


def test_figure_of_expert_load_is_light_and_dark(mixture: Run) -> None:
    path = mixture.paths.images / "expert_load.png"
    draw_expert_load(mixture, path)
    for ending, paper in (("", PAPER), ("-dark", DARK[PAPER])):
        corner = Image.open(path.with_name(f"expert_load{ending}.png")).convert("RGB").getpixel((2, 2))
        assert corner == tuple(bytes.fromhex(paper[1:]))
    svg = path.with_name("expert_load-dark.svg").read_text()
    assert DARK[COLORS[0]] in svg and COLORS[0] not in svg
