"""HTML pages: one self-contained file with the content of the Markdown, checked in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from regpt.cli.main import main
from regpt.rendering.html import html_page
from tests.helpers.browser import Page, opened_browser

TRIALS = Path(__file__).parent.parent / "fixtures" / "runs"
HOSTILE = """<script>document.title = "taken"</script><img src=x onerror="document.title='taken'">
```
</pre></code><iframe src="https://example.com/"></iframe> ![](https://example.com/x.png) <b id="injected">bold</b>
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write report.html of the modern trial, compared with the classic one."""
    root = tmp_path_factory.mktemp("pages") / "runs"
    shutil.copytree(TRIALS, root)
    words = ["report", "trial-050226", "--against", "trial-230126", "--html", "--runs", str(root)]
    assert main(words) == 0
    return root / "trial-050226" / "report.html"


class Reader(HTMLParser):
    """Collect every tag with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_command_ends_with_the_paths_of_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(TRIALS / "trial-230126", tmp_path / "trial-230126")
    assert main(["report", "trial-230126", "--html", "--runs", str(tmp_path)]) == 0
    folder = tmp_path / "trial-230126"
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {folder / 'report.md'} and {folder / 'report.html'}"


def test_html_page_loads_no_other_file_and_runs_no_script(report: Path) -> None:
    reader = Reader(report.read_text(encoding="utf-8"))
    addresses = [
        value or ""
        for _, attributes in reader.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "action", "data", "poster", "xlink:href", "background")
    ]
    assert sum(address.startswith("data:image/svg+xml;base64,") for address in addresses) == 6  # 3, light and dark
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in reader.tags}
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    policy = next(a["content"] or "" for tag, a in reader.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_html_page_has_all_cells_and_headings_of_the_markdown(report: Path) -> None:
    markdown = report.with_suffix(".md").read_text(encoding="utf-8")
    reader = Reader(report.read_text(encoding="utf-8"))
    for row in re.findall(r"^\| (.*) \|$", markdown, re.MULTILINE):
        for cell in re.split(r" +\| +", row):
            shown = re.sub(r"\\(.)", r"\1", cell).replace("`", "").strip(" |")
            assert shown in reader.text, shown
    headings = re.findall(r"^##+ (.*)$", markdown, re.MULTILINE)
    targets = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    links = [(a["href"] or "")[1:] for tag, a in reader.tags if tag == "a"]
    assert len(links) == len(headings) == len(set(links)) and set(links) <= targets


def test_html_in_a_sample_or_a_name_is_shown_as_text(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(TRIALS / "trial-050226", run)
    journal = run / "journal.jsonl"
    lines = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "sample":
            record |= {"texts": [HOSTILE, HOSTILE], "prompt": HOSTILE}
        lines.append(json.dumps(record))
    journal.write_text("\n".join(lines) + "\n", encoding="utf-8")
    environment = run / "environment.json"
    hostile_name = "![x](img/../../secret.svg) <img src=x>|</td> [a](javascript:1)"
    known = json.loads(environment.read_text(encoding="utf-8"))
    known["data"]["source"]["description"] = known["recipe_name"] = hostile_name
    environment.write_text(json.dumps(known), encoding="utf-8")
    assert main(["report", "run", "--html", "--runs", str(tmp_path)]) == 0
    reader = Reader((run / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "iframe", "b"} & {tag for tag, _ in reader.tags}
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == 3 and all((a["src"] or "").startswith("data:") for a in images)
    assert all((a["href"] or "").startswith("#") for tag, a in reader.tags if tag == "a")
    assert reader.text.count("<iframe src=") == 3 and hostile_name in reader.text


def test_html_page_embeds_only_figures_of_its_own_run(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for name in ("secret.svg", "secret-dark.svg"):
        (tmp_path / name).write_text("<svg/>")
    page = html_page("# A\n\n![words](img/../secret.svg) ![more](http://example.com/img/x.svg)\n", tmp_path)
    assert "<img" not in page and "words" in page and "more" in page


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with opened_browser() as page:
        yield page


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_html_page_is_readable_in_a_browser_in_any_scheme(browser: Page, report: Path, width: int, scheme: str) -> None:
    browser.open(report, width, scheme)
    assert browser.value("document.title") == "Training record: trial-050226"
    assert browser.told("Log.entryAdded") == [] == browser.told("Runtime.exceptionThrown")
    asked = [event["request"]["url"] for event in browser.told("Network.requestWillBeSent")]
    assert asked[0] == report.as_uri() and all(url.startswith("data:") for url in asked[1:])

    sizes = browser.value("[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.clientHeight])")
    assert len(sizes) == 3
    for complete, natural, shown, height in sizes:
        assert complete and natural > 300 and height > 150
        assert 0.85 * natural < shown <= natural, "text in a picture is too small to read"
    frames = browser.value("[...document.querySelectorAll('.picture')].map(e => [e.clientWidth, e.scrollWidth])")
    assert len(frames) == 3
    for frame, inside in frames:
        assert frame <= width and (inside > frame) == (width == 400), "a picture scrolls in its own frame"
    assert browser.value("document.documentElement.scrollWidth") == width, "the body scrolls sideways"
    assert browser.value("[...document.querySelectorAll('main > *')].every(e => e.getBoundingClientRect().width > 0)")

    paper, *inks = browser.value(SEEN)
    assert (luminance(paper) > 0.9) if scheme == "light" else (luminance(paper) < 0.02)
    assert len(inks) > 50
    assert min(contrast(ink, paper) for ink in inks) >= 4.5  # WCAG 2
    assert (browser.value(FIRST_PIXEL)[0] > 250) == (scheme == "light"), "the figure has the wrong color scheme"


@pytest.mark.browser
def test_link_in_the_contents_scrolls_to_its_heading(browser: Page, report: Path) -> None:
    browser.open(report, 1200, "light")
    last = "[...document.querySelectorAll('nav a')].at(-1)"
    assert browser.value(f"{last}.innerText") == "Command"
    browser.value(f"{last}.click()")
    assert browser.value("scrollY") > 1000


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1200])
def test_html_comparison_is_complete_in_a_browser(browser: Page, tmp_path: Path, width: int) -> None:
    words = ["compare", "trial-050226", "trial-230126", "--html", "--into", str(tmp_path), "--runs", str(TRIALS)]
    assert main(words) == 0
    browser.open(tmp_path / "comparison.html", width, "light")
    assert browser.value("document.title") == "Comparison: trial-050226, trial-230126"
    assert browser.told("Log.entryAdded") == [] == browser.told("Runtime.exceptionThrown")
    asked = [event["request"]["url"] for event in browser.told("Network.requestWillBeSent")]
    assert all(url.startswith("data:") for url in asked[1:])
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert browser.value("document.images.length") == markdown.count("<picture>") == 2  # the speeds are unknown
    assert browser.value("document.documentElement.scrollWidth") == width, "the body scrolls sideways"
    assert browser.value("document.querySelectorAll('tr').length") == len(re.findall(r"^\| ", markdown, re.MULTILINE))


# The page's background, then the color of every text.
SEEN = """[getComputedStyle(document.body).backgroundColor,
 ...[...document.querySelectorAll('h1, h2, h3, p, li, td, th, a, pre')].map(e => getComputedStyle(e).color)]"""
# Of the first picture, as the browser chose and drew it.
FIRST_PIXEL = """(() => { const c = document.createElement('canvas'); c.width = c.height = 9;
 const paint = c.getContext('2d'); paint.drawImage(document.images[0], 0, 0);
 return [...paint.getImageData(2, 2, 1, 1).data]; })()"""


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    """Of what a browser calls rgb(31, 35, 40); WCAG 2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
