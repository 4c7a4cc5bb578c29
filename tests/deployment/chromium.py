"""Headless Chromium for tests, driven through its DevTools protocol: pages, clicks, keys, files, requests."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

PATH = shutil.which("chromium") or shutil.which("chromium-browser")
_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Space": 32}


class Browser:
    """One tab: ``requests`` has the addresses that it asked for, ``errors`` what its console reported."""

    def __init__(self, command=(PATH,)):
        self.requests, self.errors, self._answers, self._numbers = [], [], {}, itertools.count(1)
        self._folder = tempfile.mkdtemp(prefix="chromium-")
        (read, self._to), (self._from, write) = os.pipe(), os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        options += [f"--user-data-dir={self._folder}", "about:blank"]
        script = f'exec "$@" 3<&{read} 4>&{write}'  # the protocol's fixed descriptors
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command, *options],
            pass_fds=(read, write),
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._buffer, self._session = b"", None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def close(self):
        with contextlib.suppress(Exception):
            self._session = None
            self.call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method, seconds=120, **parameters):
        """Send a command and return its answer; events that come before are noted."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._to, content) :]
        end = time.monotonic() + seconds
        while number not in self._answers:
            self._read(end - time.monotonic())
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _read(self, seconds):
        if not select.select([self._from], [], [], max(0, seconds))[0]:
            raise TimeoutError("Chromium did not answer")
        content = os.read(self._from, 1 << 20)
        if not content:
            raise EOFError("Chromium ended")
        *messages, self._buffer = (self._buffer + content).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"].get("exception")))

    def open(self, url):
        self.call("Page.navigate", url=url)

    def evaluate(self, expression, seconds=120):
        """Return the value of a JavaScript expression or promise; an exception raises RuntimeError."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        result = self.call("Runtime.evaluate", seconds, expression=expression, **options)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"].get("exception", {}).get("description")))
        return result["result"].get("value")

    def wait(self, condition, seconds=60):
        """Wait until a JavaScript condition holds."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition}; status: {self.text('#status')}")
            time.sleep(0.05)

    def text(self, selector):
        """Return the text of an element as it is shown."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText")

    def click(self, selector):
        """Click into the middle of an element with the mouse."""
        query = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{query}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        left, top, width, height = self.evaluate(
            f"(box => [box.x, box.y, box.width, box.height])({query}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            middle = {"x": left + width / 2, "y": top + height / 2}
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **middle)

    def press(self, key):
        """Press a key on what has the focus."""
        code = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        code |= {"text": "\r"} if key == "Enter" else {"text": " "} if key == "Space" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **code)

    def choose(self, selector, paths):
        """Choose files in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def screenshot(self, path, width, height, dark=False, whole=True):
        """Write a PNG of the page at a width, light or dark."""
        media = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[media])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.evaluate("new Promise(done => setTimeout(done, 300))")
        content = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(content))
