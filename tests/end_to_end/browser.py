"""A headless Chromium that opens a page, waits until something is on it, and takes a picture.

    python tests/end_to_end/browser.py install                  (root, on Debian)
    python tests/end_to_end/browser.py URL FILE.png [EXPRESSION [WIDTH HEIGHT]]

The browser is driven through its DevTools protocol, so that a page counts as ready when a JavaScript expression says
so, not after a while.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import debian

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PACKAGE = "chromium"
START_SECONDS = 60
MOUSE = "primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
"""There is a mouse: charts keep their tools hidden until it is over them."""
# MLflow's assistant opens on a first visit.
QUIET_MLFLOW = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}


@dataclass(frozen=True)
class Seen:
    """The text of a page when it was ready, and where its picture lies."""

    text: str
    picture: Path


def program() -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def install() -> str | None:
    """Install Chromium if it is not there. Returns why there is none, or None."""
    if program():
        return None
    problem = debian.install(PACKAGE)
    return None if program() else f"no browser ({', '.join(PROGRAMS)}): {problem}"


def look(
    url: str,
    picture: Path,
    *,
    until: str = "document.readyState == 'complete'",
    size: tuple[int, int] = (1600, 1000),
    storage: dict[str, str] | None = None,
    timeout: float = 120,
) -> Seen:
    """Open a page of ``size`` CSS pixels and save a PNG of it as soon as ``until`` holds.

    ``storage``: what the page finds in its local storage. Raises TimeoutError with the page's text if ``until`` never
    holds.
    """
    return asyncio.run(_look(url, picture, until, size, storage or {}, timeout))


async def _look(
    url: str, picture: Path, until: str, size: tuple[int, int], storage: dict[str, str], timeout: float
) -> Seen:
    with _browser(size) as port:
        async with _page(port) as ask:
            shape = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
            await ask("Emulation.setDeviceMetricsOverride", **shape)
            await ask("Page.enable")
            kept = f"for (const [k, v] of Object.entries({json.dumps(storage)})) localStorage.setItem(k, v)"
            await ask("Page.addScriptToEvaluateOnNewDocument", source=kept)
            await ask("Page.navigate", url=url)
            deadline = time.monotonic() + timeout
            while not await _value(ask, f"Boolean({until})"):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{url}: {until} never held; the page says: {await _text(ask)}")
                await asyncio.sleep(0.3)
            await asyncio.sleep(1.0)  # transitions
            shot = await ask("Page.captureScreenshot", format="png")
            picture.write_bytes(base64.b64decode(shot["data"]))
            return Seen(await _text(ask), picture)


@contextmanager
def _browser(size: tuple[int, int]):
    """A browser with a fresh profile; yields the port of its DevTools."""
    found = program()
    assert found, "no browser"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        flags += [f"--blink-settings={MOUSE}"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([found, *flags, "about:blank"], **silent)
        try:
            yield _port(process, Path(profile) / "DevToolsActivePort")
        finally:
            process.terminate()
            process.wait(timeout=30)


def _port(process: subprocess.Popen[bytes], file: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and (lines := file.read_text().split()):
            return int(lines[0])
        time.sleep(0.1)
    raise TimeoutError(f"the browser did not start (status {process.poll()})")


@asynccontextmanager
async def _page(port: int):
    """A function that sends a DevTools command to the browser's tab and returns the result."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as response:
            tab = next(item for item in await response.json(content_type=None) if item["type"] == "page")
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            numbers = itertools.count(1)

            async def ask(method: str, **parameters: Any) -> dict[str, Any]:
                number = next(numbers)
                await socket.send_json({"id": number, "method": method, "params": parameters})
                while (answer := await socket.receive_json()).get("id") != number:
                    pass
                assert "error" not in answer, answer
                return answer["result"]

            yield ask


async def _value(ask: Any, expression: str) -> Any:
    return (await ask("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")


async def _text(ask: Any) -> str:
    return await _value(ask, "document.body ? document.body.innerText : ''") or ""


if __name__ == "__main__":
    if sys.argv[1:] == ["install"]:
        sys.exit(install())
    url, target, *more = sys.argv[1:]
    until, *size = more or ["document.readyState == 'complete'"]
    shape = {"size": (int(size[0]), int(size[1]))} if size else {}
    print(look(url, Path(target), until=until, storage=QUIET_MLFLOW, **shape).text)
