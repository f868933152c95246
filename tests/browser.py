"""A headless Chromium that is asked one question, over its debugging pipe (two file handles)."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any

_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
_SECONDS = 60.0


class Browser:
    """Opens one page; ``ask`` evaluates JavaScript there, and waits for a promise's value."""

    def __init__(self, url: str, profile: Path) -> None:
        theirs, self._out = os.pipe()
        self._in, back = os.pipe()
        flags = [*_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(  # the handles must be 3 and 4
            ["bash", "-c", f'exec chromium "$@" 3<&{theirs} 4>&{back}', "chromium", *flags],
            pass_fds=(theirs, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(back)
        self._said = b""
        self._count = 0
        self._session: dict[str, Any] = {}
        pages = self._call("Target.getTargets", {})["targetInfos"]
        page = next(target["targetId"] for target in pages if target["type"] == "page")
        attached = self._call("Target.attachToTarget", {"targetId": page, "flatten": True})
        self._session = {"sessionId": attached["sessionId"]}
        self._call("Page.navigate", {"url": url})  # answered once the old page is gone

    def ask(self, script: str) -> Any:
        """What the script comes to."""
        wanted = {"expression": script, "awaitPromise": True, "returnByValue": True}
        return self._call("Runtime.evaluate", wanted)["result"].get("value")

    def _call(self, method: str, given: dict[str, Any]) -> Any:
        self._count += 1
        message = {"id": self._count, "method": method, "params": given} | self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            pass  # an event
        assert "result" in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._said:
            assert select.select([self._in], [], [], _SECONDS)[0], "the browser says nothing"
            read = os.read(self._in, 1 << 16)
            assert read, "the browser ended"
            self._said += read
        first, _, self._said = self._said.partition(b"\0")
        found: dict[str, Any] = json.loads(first)
        return found

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)
