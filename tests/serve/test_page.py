"""The page in a real browser: the list, a run that grows, a comparison; with light and dark, phone and desktop."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from regpt.filesystem.locks import locked
from regpt.tracking.layout import RunPaths
from tests.helpers.browser import Browser, Page, opened_browser
from tests.helpers.compared_runs import edit_recipe
from tests.helpers.served_runs import served
from tests.serve.conftest import MadeRun, sample, validation

pytestmark = [pytest.mark.browser, pytest.mark.slow]

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def browser(chromium: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    root = tmp_path_factory.mktemp("page") / "runs"
    for name, loss in (("first", 4.0), ("second", 3.5)):
        made = MadeRun(root, name)
        made.train(1, 300)
        made.write(
            validation(100, loss + 1), validation(300, loss), sample(100, "Once early"), sample(300, "Once late")
        )
        made.stop(300)
    edit_recipe(root / "second", "max_lr = 0.0018", "max_lr = 0.5")
    with served(root) as (_, port):
        found = Browser(chromium, f"http://127.0.0.1:{port}", root)
        yield found
        found.check_requests()


LINE = "document.querySelector('.large svg path.line:not(.faint)')"


def test_list_shows_runs_by_state_and_opens_one_by_keyboard(browser: Browser) -> None:
    browser.open()
    browser.wait("document.querySelectorAll('.runs tbody tr').length >= 2")
    row = browser.text(".runs tbody tr")
    assert "stopped" in row and "300" in row and "± 0.2500" in row
    browser.value("document.querySelector('input[type=search]').focus()")
    for _ in range(2):  # past the compare button, which is disabled, to the checkbox and the link
        browser.press("Tab", 9)
    assert browser.value("document.activeElement.matches('.runs a')")
    name = browser.value("document.activeElement.textContent")
    browser.press("Enter", 13, "\r")
    browser.wait(f"location.hash === '#/run/{name}' && {LINE}")
    assert browser.value("document.title").startswith(name)
    assert browser.value("document.activeElement === document.querySelector('h1')")


def test_curves_grow_and_shrink_with_the_journal(browser: Browser) -> None:
    made = MadeRun(browser.root, "growing")
    made.train(1, 30)
    with locked(RunPaths(made.path).lock):  # the page asks more often for a run that is being written
        check_growth(browser, made)


def check_growth(browser: Browser, made: MadeRun) -> None:
    browser.open("run/growing")
    browser.wait(LINE)
    assert browser.text(".figures dd span") == "30"
    points = browser.value(f"{LINE}.getAttribute('d').length")
    requests = len(browser.page.told("Network.requestWillBeSent"))
    made.train(31, 90)
    made.write(validation(90))
    browser.wait("document.querySelector('.figures dd span').innerText === '90'")
    assert browser.value(f"{LINE}.getAttribute('d').length") > points
    assert browser.value("document.querySelectorAll('.large circle.mark').length") == 1
    assert "4.0000 ± 0.2500" in browser.text(".figures")
    made.resume(20)
    browser.wait("document.querySelector('.figures dd span').innerText === '20'")
    assert browser.value("document.querySelectorAll('.large circle.mark').length") == 0
    assert "resumed at step 20" in browser.text(".events")
    made.train(21, 25)
    browser.wait("document.querySelector('.figures dd span').innerText === '25'")
    assert len(browser.page.told("Network.requestWillBeSent")) > requests  # in place: the page was not loaded again


def test_text_of_a_run_is_shown_as_text(browser: Browser) -> None:
    made = MadeRun(browser.root, "hostile")
    made.train(1, 3)
    made.write(sample(3, f"Once {HOSTILE}"))
    (made.path / "environment.json").write_text(f'{{"recipe_name": "{HOSTILE[:10]}", "x": "{HOSTILE[10:20]}"}}')
    browser.open("run/hostile")
    browser.wait("document.querySelector('.text')")
    assert HOSTILE in browser.text(".text")
    time.sleep(0.2)
    assert browser.value("document.title") == "hostile – regpt"
    assert browser.value("document.querySelectorAll('main img, main script').length") == 0


def test_samples_follow_the_slider(browser: Browser) -> None:
    browser.open("run/first")
    browser.wait("document.querySelector('.text')")
    assert "late" in browser.text(".text")
    browser.value("document.querySelector('input[type=range]').focus()")
    browser.press("ArrowLeft", 37)
    browser.wait("document.querySelector('.text').innerText.includes('early')")
    time.sleep(1.5)  # an update must not move it back
    assert "early" in browser.text(".text")


def test_arrow_keys_read_the_values_of_a_curve(browser: Browser) -> None:
    browser.open("run/first")
    browser.wait(LINE)
    browser.value("document.querySelector('.large svg').focus()")
    browser.press("Home", 36)
    assert "9.9990" in browser.text(".large output")
    browser.press("End", 35)
    assert "1.23 M" in browser.text(".large output")
    label = browser.value("document.querySelector('.large svg').getAttribute('aria-label')")
    assert label.startswith("Loss") and "training, from 9.9990" in label


def test_axes_are_switched_by_buttons(browser: Browser) -> None:
    browser.open("run/first")
    browser.wait(LINE)
    linear = browser.value(f"{LINE}.getAttribute('d')")
    buttons = "document.querySelectorAll('.large button')"
    browser.value(f"{buttons}[0].click()")
    assert browser.value(f"{buttons}[0].getAttribute('aria-pressed')") == "true"
    logarithmic = browser.value(f"{LINE}.getAttribute('d')")
    browser.value(f"{buttons}[1].click()")
    assert len({linear, logarithmic, browser.value(f"{LINE}.getAttribute('d')")}) == 3


def test_picked_runs_are_compared_with_losses_errors_and_settings(browser: Browser) -> None:
    browser.open()
    browser.wait("document.querySelector('[aria-label=\"Compare second\"]')")
    for name in ("first", "second"):
        browser.value(f"document.querySelector('[aria-label=\"Compare {name}\"]').click()")
    browser.value("document.querySelector('.bar button').click()")
    browser.wait("document.querySelectorAll('.large path.thick').length === 2 && document.querySelector('code')")
    browser.wait("document.querySelectorAll('table').length === 2")
    text = browser.text("main")
    assert "4.0000 ± 0.2500" in text and "3.5000 ± 0.2500" in text
    assert "optimizer.max_lr" in text and "0.0018" in text and "0.5" in text
    assert "regpt compare first second" in text


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("place", ["", "run/first", "compare/first/second"])
def test_view_fits_the_window_in_both_schemes(browser: Browser, place: str, width: int, scheme: str) -> None:
    browser.open(place, width, scheme)
    browser.wait("document.querySelector('.runs tbody tr, .large path.thick')")
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    red = int(browser.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"))
    assert (red > 200) == (scheme == "light")
    controls = "[...document.querySelectorAll('input, select, button, progress, svg')]"
    assert browser.value(f"{controls}.filter((one) => !(one.ariaLabel || one.textContent.trim())).length") == 0


def test_unknown_run_is_named_on_the_page(browser: Browser) -> None:
    browser.open("run/nothing")
    browser.wait("document.querySelector('main').innerText.includes(\"there is no run 'nothing'\")")
    browser.forget_refusal()


def test_server_with_a_token_asks_for_it_once(tmp_path: Path) -> None:
    MadeRun(tmp_path / "runs", "a")
    with served(tmp_path / "runs", "--token", TOKEN) as (_, port), opened_browser() as page:
        browser = Browser(page, f"http://127.0.0.1:{port}", tmp_path)
        browser.open("playground")
        browser.wait("document.querySelector('input[type=password]')")

        def submit(token: str) -> None:
            browser.value(f"document.querySelector('input').value = '{token}'")
            browser.value("document.querySelector('main button').click()")

        submit("wrong")
        browser.wait("document.querySelector('[role=alert]').innerText.includes('not the server')")
        submit(TOKEN)
        browser.wait("document.querySelector('main').innerText.includes('regpt serve MODEL')")
        browser.open()
        browser.wait("document.querySelector('.runs tbody tr')")
        browser.open("run/a")
        browser.wait("document.querySelector('.figures dd')")
