"""docs/scale.md shows the table that benchmarks.scale prints."""

from pathlib import Path

from benchmarks.scale import table


def test_scale_page_shows_the_current_table() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in page
