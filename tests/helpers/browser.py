"""Control a headless Chromium through a pipe with the DevTools protocol. It needs no port and no driver."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
KEPT = ("PATH", "LANG", "TMPDIR", "FONTCONFIG_PATH", "LD_LIBRARY_PATH")  # environment variables passed to the browser

# The browser reads commands from file descriptor 3 and answers on 4.
PLACED = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)


def browser_or_skip() -> str:
    """Return the browser's path. Without a browser, skip the test, or fail it if the variable CI is set."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        why = f"no browser on this machine ({', '.join(NAMES)}); apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found


class Page:
    """One page of the browser, controlled by DevTools commands."""

    def __init__(self, orders: int, answers: int) -> None:
        self.orders, self.answers = orders, answers
        self.rest, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result. Events that arrive before it are added to `events`."""
        self.number += 1
        order = {"id": self.number, "method": method, "params": parameters}
        os.write(
            self.orders, json.dumps(order | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        while True:
            message = self.read()
            if message.get("id") == self.number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self.events.append(message)

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            more = os.read(self.answers, 1 << 20)
            assert more, "the browser has exited"
            self.rest += more
        message, self.rest = self.rest.split(b"\0", 1)
        return dict(json.loads(message))

    def open(self, place: Path | str, width: int, scheme: str) -> None:
        """Load a file or a URL in a window `width` pixels wide. `scheme` is the preferred one, light or dark."""
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=media)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        self.call("Page.navigate", url=place.as_uri() if isinstance(place, Path) else place)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def value(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, file: Path, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page, to `file`."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))

    def told(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of each event `method` since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") == method]


class Browser:
    """A page of the server in a browser; it notes every request and every complaint."""

    def __init__(self, page: Page, base: str, root: Path) -> None:
        self.page, self.base, self.root = page, base, root
        self.requests: list[str] = []
        self.complaints: list[dict[str, Any]] = []

    def open(self, place: str = "", width: int = 1400, scheme: str = "light") -> None:
        self.note()
        self.page.call("Page.navigate", url="about:blank")
        self.page.open(f"{self.base}/#/{place}", width, scheme)

    def note(self) -> None:
        """Take what happened since the last call; opening a page forgets it."""
        self.requests += [event["request"]["url"] for event in self.page.told("Network.requestWillBeSent")]
        for method in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints += self.page.told(method)
        self.page.events.clear()

    def value(self, script: str) -> Any:
        return self.page.value(script)

    def text(self, selector: str) -> str:
        return str(self.value(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def wait(self, script: str) -> None:
        wait_until(lambda: bool(self.value(f"!!({script})")), 30)

    def check_requests(self) -> None:
        """Check that every request went to the server, and that the browser has not complained."""
        self.note()
        outside = [url for url in self.requests if not url.startswith((self.base, "about:"))]
        assert self.requests and not outside
        assert not self.complaints, self.complaints

    def forget_refusal(self) -> None:
        """Forget that Chromium logged an answer that is an error."""
        self.note()
        self.complaints.clear()

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind, typed in (("keyDown", text), ("keyUp", "")):
            self.page.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=typed
            )


@contextlib.contextmanager
def opened_browser() -> Iterator[Page]:
    """Start a browser and yield an empty page of it."""
    program = browser_or_skip()
    (read_orders, orders), (answers, write_answers) = os.pipe(), os.pipe()
    # Above 3 and 4, so that moving one to its place does not close the other.
    theirs = [fcntl.fcntl(number, fcntl.F_DUPFD, 20) for number in (read_orders, write_answers)]
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [sys.executable, "-c", PLACED, *map(str, theirs), program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=theirs,
            env={"HOME": profile} | {name: os.environ[name] for name in KEPT if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in (read_orders, write_answers, *theirs):
            os.close(number)
        try:
            page = Page(orders, answers)
            yield page
            page.session = ""
            page.call("Browser.close")
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            os.close(orders)
            os.close(answers)
