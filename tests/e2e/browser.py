"""Debian's chromium, told what to do by its DevTools protocol: real clicks and keys, no driver to install."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websocket import WebSocket, create_connection

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 120.0
# Texts, elements by CSS selector, and frames, whatever their size; the last that is seen is the one on top.
FIND = """(selector, text) => [...document.querySelectorAll(selector)].filter(
    e => e.getClientRects().length && (!text || e.textContent.trim() === text || e.ariaLabel === text)).at(-1)"""


def program() -> str | None:
    """The browser of this machine, or None."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Page:
    """One page of a browser of its own, which ends with `close`."""

    def __init__(self, profile: Path) -> None:
        found = program()
        assert found is not None
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options += ["--remote-debugging-port=0", "--window-size=1280,860", f"--user-data-dir={profile}"]
        options += [
            "--remote-allow-origins=*",
            "--no-first-run",
            "--lang=en-US",
            "--force-device-scale-factor=1",
            "about:blank",
        ]
        profile.mkdir()
        with (profile / "log").open("wb") as log:
            self._process = subprocess.Popen([found, *options], stdout=log, stderr=log, start_new_session=True)
        self._numbers = count(1)
        self._socket = self._connect(profile / "DevToolsActivePort")

    def go(self, address: str) -> None:
        self.do("Page.navigate", url=address)

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise's when it is kept."""
        told = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> Any:
        """Wait until a JavaScript expression is true; its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < deadline, f"not on the page: {expression}\n{self.text()[:2000]}"
            time.sleep(0.5)
        return value

    def sees(self, text: str, seconds: float = SECONDS) -> None:
        """Wait until the page shows a text."""
        self.wait(f"document.body && document.body.innerText.includes({json.dumps(text)})", seconds)

    def text(self) -> str:
        return self.js("document.body ? document.body.innerText : ''")

    def click(self, selector: str, text: str = "") -> None:
        """Click the middle of the last element that fits and is to be seen, once it is there."""
        found = f"({FIND})({json.dumps(selector)}, {json.dumps(text)})"
        self.wait(f"!!{found}")
        self.js(f"{found}.scrollIntoView({{block: 'center'}})")
        time.sleep(0.5)  # dialogs slide in
        x, y = self.js(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({found}.getBoundingClientRect())")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def fill(self, selector: str, text: str) -> None:
        """Type into a field, over what stands in it."""
        self.click(selector)
        self.js(f"({FIND})({json.dumps(selector)}, '').select()")
        self.do("Input.insertText", text=text)

    def type_date(self, selector: str, day: str) -> None:
        """Type `MMDDYYYY` into a date's field, which takes keys alone."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        for key in day:
            self.do("Input.dispatchKeyEvent", type="keyDown", text=key)
            self.do("Input.dispatchKeyEvent", type="keyUp")

    def picture(self, path: Path) -> None:
        """Write what is to be seen as a PNG."""
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"]))

    def do(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol; events in between are passed over."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def close(self) -> None:
        self._socket.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def _connect(self, told: Path) -> WebSocket:
        deadline = time.monotonic() + SECONDS
        while not (told.exists() and told.read_text().count("\n")):
            assert time.monotonic() < deadline and self._process.poll() is None, (told.parent / "log").read_text()
            time.sleep(0.1)
        with urlopen(f"http://127.0.0.1:{told.read_text().split()[0]}/json/list", timeout=60) as answer:
            (page,) = (target for target in json.load(answer) if target["type"] == "page")
        return create_connection(page["webSocketDebuggerUrl"], timeout=SECONDS)
