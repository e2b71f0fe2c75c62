"""A headless Chromium through its DevTools protocol: how a page looks to it, and what it complains about."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_START_S, _LOAD_S = 60.0, 60.0


def find_browser() -> str | None:
    """Its program, or None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page. `errors` collects what a console would show as an error, and exceptions."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.errors: list[str] = []
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            found = message.json()
            if "id" in found:
                self._answers.pop(found["id"]).set_result(found)
                continue
            params = found.get("params", {})
            match found["method"]:
                case "Runtime.exceptionThrown":
                    details = params["exceptionDetails"]
                    self.errors.append(details.get("exception", {}).get("description", details["text"]))
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                    self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
                case "Log.entryAdded" if params["entry"]["level"] == "error":
                    self.errors.append(params["entry"]["text"])

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; returns its result."""
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        found = await asyncio.wait_for(answer, _LOAD_S)
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']}")
        result: dict[str, Any] = found["result"]
        return result

    async def evaluate(self, script: str) -> Any:
        """The value of a script, awaited if it is a promise."""
        found = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", found))
        return found["result"].get("value")

    async def look(self, *, width: int, height: int, dark: bool = False, media: str = "") -> None:
        """The size of the window and the theme; `media`: `print` for paper."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.send("Emulation.setEmulatedMedia", media=media, features=theme)

    async def open(self, address: str, ready: str = "document.readyState === 'complete'") -> None:
        """Load a page, and wait until a script says that it is ready."""
        await self.send("Page.navigate", url=address)
        limit = time.monotonic() + _LOAD_S
        while not await self.evaluate(f"document.readyState === 'complete' && ({ready})"):
            if time.monotonic() > limit:
                raise TimeoutError(f"{address} is not ready after {_LOAD_S:.0f} s: {self.errors}")
            await asyncio.sleep(0.05)

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        found = await self.send("Page.captureScreenshot", captureBeyondViewport=whole, format="png", **(
            {"clip": {**(await self.send("Page.getLayoutMetrics"))["cssContentSize"], "scale": 1}} if whole else {}
        ))  # fmt: skip
        path.write_bytes(base64.b64decode(found["data"]))

    async def pdf(self, path: Path) -> None:
        """On paper, as the page's own style asks for."""
        found = await self.send("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        path.write_bytes(base64.b64decode(found["data"]))

    async def close(self) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader


@contextlib.asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Tab]:
    """A browser with one empty page, whose profile lies in `folder`; it ends with the block.

    Raises:
        FileNotFoundError: there is none on this machine.
        TimeoutError: it does not start.
    """
    program = find_browser()
    if program is None:
        raise FileNotFoundError(f"none of {', '.join(_NAMES)} is on this machine")
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
        f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    log = folder / "browser.log"
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        port = await _port(folder / "DevToolsActivePort", process, log)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [page for page in await answer.json() if page["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await tab.send(f"{domain}.enable")
                yield tab
                await tab.close()
    finally:
        with contextlib.suppress(ProcessLookupError):  # it is over already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _port(file: Path, process: subprocess.Popen[bytes], log: Path) -> int:
    limit = time.monotonic() + _START_S
    while time.monotonic() < limit and process.poll() is None:
        if file.exists() and (text := file.read_text()):
            return int(text.splitlines()[0])
        await asyncio.sleep(0.05)
    raise TimeoutError(f"the browser did not start: {log.read_text(errors='replace')[-2000:]}")
