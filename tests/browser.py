"""Open a local page in headless Chromium and ask it things, for tests of what a reader sees."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

START = Path(__file__).with_name("start_with_pipes.py")


class Browser:
    """Headless Chromium on one file, spoken to over the DevTools pipe (no port, no package)."""

    FLAGS = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --window-size=1280,900 "
        "--autoplay-policy=no-user-gesture-required --remote-debugging-pipe"
    )

    def __init__(self, file, *flags):
        names = ("chromium", "chromium-browser", "google-chrome", "chrome")
        binary = next(filter(None, map(shutil.which, names)), None)
        if binary is None:
            pytest.skip("no Chromium found: install it (apt-get install chromium) to run this test")
        self.file, self.command = file, [binary, *self.FLAGS.split(), *flags]
        self.count, self.events = 0, []

    def __enter__(self):
        self.profile = tempfile.mkdtemp()
        (read_far, self.write_end), (self.read_end, write_far) = os.pipe(), os.pipe()
        far = [os.dup(fd) for fd in (read_far, write_far)]  # well above 3 and 4
        start = [sys.executable, str(START), *map(str, far), *self.command]
        self.process = subprocess.Popen(
            [*start, f"--user-data-dir={self.profile}", "about:blank"],
            pass_fds=far,
            stderr=subprocess.DEVNULL,
        )
        for fd in (read_far, write_far, *far):
            os.close(fd)
        self.buffer, self.session = b"", None
        targets = self.ask("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Page.navigate", url=self.file.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.read_end)
        os.close(self.write_end)
        shutil.rmtree(self.profile, ignore_errors=True)

    def open_again(self):
        """Show the file in a second tab too; later words go to it. Returns the first's session."""
        first, self.session = self.session, None
        target = self.ask("Target.createTarget", url=self.file.as_uri())["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        return first

    def ask(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while (reply := self.receive()).get("id") != self.count:
            self.events.append(reply)
        assert "error" not in reply, reply
        return reply["result"]

    def receive(self):
        while b"\0" not in self.buffer:
            data = os.read(self.read_end, 1 << 20)
            assert data, "Chromium went away"
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def value(self, script):
        reply = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def problems(self):
        """Return errors in the console and requests that are neither the file nor inside it."""
        problems = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                problems.append(params)
            if event["method"] == "Network.requestWillBeSent":
                url = params["request"]["url"]
                problems += [] if url.startswith(("data:", self.file.as_uri())) else [url]
        return problems
