"""The playground in a real browser: samples of two models with the probability of each token, stopped and reloaded."""

import json
import math
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regpt.data.tokenizer import GPT2_TOKENIZER
from regpt.interop.open_model import LoadedModel
from regpt.tokenization.chat_tokens import ChatTokenizer
from tests.conftest import tiny_recipe, wait_until
from tests.helpers.browser import Browser, Page
from tests.helpers.served_app import served_app
from tests.model.test_gpt import SMALL, model_of

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RUN = Path(__file__).parent.parent / "fixtures" / "runs" / "trial-050226"
TOKENIZERS = {"one": GPT2_TOKENIZER, "two": GPT2_TOKENIZER, "talker": ChatTokenizer(GPT2_TOKENIZER)}
FIELDS = {"mode": "text", "first": "one", "second": "two", "prompt": "Once upon a time", "temperature": 1, "top_k": 0}
FIELDS |= {"top_p": 1, "max_tokens": 12, "n": 2, "seed": 5}  # a tab keeps those of the test before
LEAST = (0.5, 0.2, 0.05, 0.01, 0.0)  # probability of each level of colour


@pytest.fixture(scope="module")
def models() -> Iterator[Any]:
    from regpt.endpoint.served_models import ServedModels

    recipe = replace(tiny_recipe(Path("nowhere")), model=replace(SMALL, block_size=64))
    found = []
    for seed, (name, tokenizer) in enumerate(TOKENIZERS.items()):
        model = model_of(recipe.model, seed)
        for parameter in model.parameters():
            parameter.data *= 10  # so that tokens differ in their probabilities
        found.append(LoadedModel(name, model, recipe, tokenizer))
    served = ServedModels(found)
    yield served
    served.close()


@pytest.fixture(scope="module")
def browser(chromium: Page, models: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from regpt.endpoint.routes import model_routes
    from regpt.serve.access import Access
    from regpt.serve.app import create_app

    root = tmp_path_factory.mktemp("played")
    with served_app(create_app(root, Access(), (model_routes(models),))) as port:
        found = Browser(chromium, f"http://127.0.0.1:{port}", root)
        yield found
        found.check_requests()


def enter(browser: Browser, **values: Any) -> None:
    """Fill in fields of the form."""
    for name, value in values.items():
        place = f"document.querySelector('#{name}')"
        told = "['input', 'change'].forEach((kind) => place.dispatchEvent(new Event(kind, {bubbles: true})))"
        browser.value(f"{{ const place = {place}; place.value = {json.dumps(str(value))}; {told}; }}")


def start(browser: Browser, width: int = 1400, scheme: str = "light", **values: Any) -> None:
    browser.open("playground", width, scheme)
    browser.wait("document.querySelector('#prompt')")
    enter(browser, **{**FIELDS, **values})
    browser.value("document.querySelector('button.main').click()")


def finished(browser: Browser) -> None:
    browser.wait("/per second/.test(document.querySelector('.settings [role=status]').innerText)")


def answers(browser: Browser, model: str, path: str = "completions", **values: Any) -> list[dict[str, Any]]:
    """Ask the endpoint for what the page asks for."""
    values = values or {"prompt": "Once upon a time", "n": 2, "max_tokens": 12, "logprobs": 5}
    request = urllib.request.Request(
        f"{browser.base}/v1/{path}", json.dumps({"model": model, "seed": 5, **values}).encode()
    )
    with urllib.request.urlopen(request) as answer:
        return list(json.load(answer)["choices"])


SAMPLES = """[...document.querySelectorAll('.samples article')].map((one) => ({
  name: one.ariaLabel,
  text: [...one.querySelectorAll('.text > :not(.prompt, .end)')].map((span) => span.textContent).join(''),
  levels: [...one.querySelectorAll('.token')].map((span) => Number(/p(\\d)/.exec(span.className)[1])),
  left: one.getBoundingClientRect().left, top: one.getBoundingClientRect().top }))"""


def test_samples_of_two_models_stand_side_by_side_with_the_endpoints_tokens(browser: Browser) -> None:
    start(browser)
    finished(browser)
    found = browser.value(SAMPLES)
    assert [one["name"] for one in found] == ["one, sample 1", "two, sample 1", "one, sample 2", "two, sample 2"]
    expected = {model: answers(browser, model) for model in ("one", "two")}
    compared = 0
    for one in found:
        model, index = one["name"].split(", sample ")
        choice = expected[model][int(index) - 1]
        assert one["text"] == choice["text"]
        log = choice["logprobs"]
        if all(token in choice["text"] for token in log["tokens"]):  # none is part of a character
            levels = [
                next(n for n, least in enumerate(LEAST) if math.exp(one) >= least) for one in log["token_logprobs"]
            ]
            assert one["levels"] == levels
            compared += len(set(levels))
    assert compared > 3
    assert len({one["text"] for one in found}) == 4
    assert found[0]["top"] == found[1]["top"] and found[0]["left"] < found[1]["left"]


def test_arrow_keys_read_the_probability_of_a_token(browser: Browser) -> None:
    start(browser, second="")
    finished(browser)
    log = answers(browser, "one")[0]["logprobs"]
    browser.value("document.querySelector('.samples .text').focus()")
    browser.press("Home", 36)
    browser.press("ArrowRight", 39)
    readout = browser.text(".token-readout")
    assert f"{100 * math.exp(log['token_logprobs'][1]):.1f}" in readout and "token 2" in readout, (readout, log)
    assert browser.value("document.querySelector('.token-readout').ariaLive") == "polite"
    others = [token for token in log["top_logprobs"][1] if token != log["tokens"][1]]
    assert (
        browser.value("[...document.querySelectorAll('.token-readout .quoted')].slice(1).map((one) => one.textContent)")
        == others
    )


def test_stop_cancels_the_requests_of_both_models(
    browser: Browser, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []
    for _, engine in models:
        submit = engine.submit
        monkeypatch.setattr(engine, "submit", lambda job, submit=submit: (jobs.append(job), submit(job)))
    start(browser, max_tokens=4096, n=1)
    browser.wait("document.querySelectorAll('.samples .token').length > 4")
    browser.value("document.querySelector('.settings button[type=button]').click()")
    wait_until(lambda: len(jobs) == 2 and all(job.left.is_set() for job in jobs))
    browser.wait("document.querySelector('.settings [role=status]').innerText.includes('stopped')")
    tokens = browser.value("document.querySelectorAll('.samples .token').length")
    assert 4 < tokens < 4096 and browser.value("document.activeElement.className") == "main"
    assert browser.value("document.querySelector('article > small').innerText.includes('stopped')")


def test_settings_survive_a_reload(browser: Browser) -> None:
    start(browser, prompt="Never again", top_p=0.75, second="")
    browser.open("playground")
    browser.wait("document.querySelector('#prompt')")
    values = "['prompt', 'top_p', 'second', 'seed'].map((id) => document.getElementById(id).value)"
    assert browser.value(values) == ["Never again", "0.75", "", "5"]


def test_error_of_the_endpoint_is_shown_at_its_field(browser: Browser) -> None:
    start(browser, top_p=2)
    browser.wait("document.querySelector('[role=alert]').innerText.includes('top_p')")
    assert "from 0 to 1" in browser.text("[role=alert]") and browser.value("document.activeElement.id") == "top_p"
    assert browser.value("document.querySelectorAll('.samples article').length") == 0
    browser.forget_refusal()


def test_conversation_sends_what_was_said_before(browser: Browser) -> None:
    start(browser, second="", max_tokens=4)
    enter(browser, mode="chat", first="talker")
    messages: list[dict[str, str]] = []
    for content in ("Hello", "Why?"):
        browser.value("document.querySelector('#message').focus()")
        browser.page.call("Input.insertText", text=content)
        browser.press("Enter", 13, "\r")
        finished(browser)
        messages.append({"role": "user", "content": content})
        (choice,) = answers(browser, "talker", "chat/completions", messages=messages, max_tokens=4)
        messages.append({"role": "assistant", "content": choice["message"]["content"]})
        said = browser.value("[...document.querySelectorAll('.talk p')].map((one) => one.textContent)")
        assert (
            said == [one["content"] for one in messages]
            and browser.value("document.querySelector('#message').value") == ""
        )
        browser.value("document.querySelector('.settings [role=status]').textContent = ''")
    assert browser.value("document.querySelectorAll('.talk .token').length") > 0


def test_model_without_a_chat_template_is_named_and_the_message_kept(browser: Browser) -> None:
    start(browser, second="")
    enter(browser, mode="chat", first="one", message="Hello")
    browser.value("document.querySelector('button.main').click()")
    browser.wait("document.querySelector('[role=alert]').innerText.includes('chat template')")
    assert browser.value("document.querySelector('#message').value") == "Hello"
    assert browser.value("document.querySelectorAll('.talk li').length") == 0
    browser.forget_refusal()


CONTRASTS = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (colour) => parts(colour).reduce((sum, c, n) => sum + linear(c) * [0.2126, 0.7152, 0.0722][n], 0);
  return [1, 2, 3, 4].map((level) => {
    const style = getComputedStyle(document.querySelector(`.levels .p${level}`));
    const [a, b] = [light(style.color), light(style.backgroundColor)].sort((one, other) => other - one);
    return (a + 0.05) / (b + 0.05);
  });
})()"""


def test_page_of_a_run_links_to_the_playground_of_its_model(
    browser: Browser, chromium: Page, models: Any, tmp_path: Path
) -> None:
    from regpt.endpoint.routes import model_routes
    from regpt.endpoint.served_models import ServedModels
    from regpt.serve.access import Access
    from regpt.serve.app import create_app

    for name in ("trial", "other"):
        shutil.copytree(RUN, tmp_path / name)
    other = models.of_request({"model": "one"})[1].loaded
    served = ServedModels([other, replace(other, name="trial", run=tmp_path / "trial", step=4)])
    browser.note()  # both share a page, whose requests so far went to the other server
    with served_app(create_app(tmp_path, Access(), (model_routes(served),))) as port:
        browser = Browser(chromium, f"http://127.0.0.1:{port}", tmp_path)
        browser.open("run/trial")
        browser.wait("document.querySelector('main a[href^=\"#/playground\"]')")
        browser.value("document.querySelector('main a[href^=\"#/playground\"]').click()")
        browser.wait("document.querySelector('#first')")
        assert browser.value("document.querySelector('#first').value") == served.names[1]
        assert browser.text("nav [aria-current]") == "Playground"
        browser.open("run/other")
        browser.wait("document.querySelector('.figures dd')")
        assert not browser.value("document.querySelector('main a[href^=\"#/playground\"]')")
        chromium.call("Page.navigate", url="about:blank")
        browser.check_requests()
    served.close()


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_playground_fits_the_window_and_is_legible(browser: Browser, width: int, scheme: str) -> None:
    start(browser, width, scheme)
    finished(browser)
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    contrasts = browser.value(CONTRASTS)
    assert min(contrasts) >= 4.5 and sorted(contrasts, reverse=True) == contrasts  # rarer tokens stand out more
    controls = "[...document.querySelectorAll('input, select, textarea, button')]"
    assert browser.value(f"{controls}.filter((one) => !(one.labels?.length || one.textContent.trim())).length") == 0
