"""A Chromium without a window, driven over its DevTools pipe with the standard library alone:
real mouse, touch and keys."""
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader",
         "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--remote-debugging-pipe")
PLAYER = "!!window.player && player.stats.ms > 0"  # the player has drawn


def find():
    """Path of an installed Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """with Browser(folder) as page: page.open(url); page.js("1 + 1"); page.key("ArrowLeft");
    page.click("#play") ..."""

    def __init__(self, folder):
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()

        def pipes():  # Chromium reads commands from 3 and writes answers to 4
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
            os.dup2(ends[0], 3), os.dup2(ends[1], 4)

        self.process = subprocess.Popen(
            [find(), *FLAGS, f"--user-data-dir={folder}/profile", "about:blank"], preexec_fn=pipes,
            close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser), os.close(from_browser)
        self.buffer, self.number, self.session, self.errors = b"", 0, None, []
        targets = self("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self("Page.enable"), self("Runtime.enable"), self("Log.enable")

    def __call__(self, method, **params):
        """Send one command, wait for its answer. Page errors that arrive meanwhile are kept in
        .errors."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            said = answer.get("params", {})
            if answer.get("method") == "Runtime.exceptionThrown":
                thrown = said["exceptionDetails"].get("exception", {})
                self.errors.append(thrown.get("description", "unknown"))
            elif answer.get("method") == "Log.entryAdded" and said["entry"]["level"] == "error":
                self.errors.append(said["entry"]["text"])
            elif answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self):
        while b"\0" not in self.buffer:
            assert select.select([self.read], [], [], 60)[0], "Chromium does not answer"
            chunk = os.read(self.read, 1 << 20)
            assert chunk, "Chromium has ended"
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def resize(self, width, height, scale=1, mobile=False):
        self("Emulation.setDeviceMetricsOverride", width=width, height=height,
             deviceScaleFactor=scale, mobile=mobile)

    def open(self, url, width=1280, height=720, scale=1, dark=False, touch=False, ready=PLAYER):
        """Load a page, and wait until the expression `ready` is true in it."""
        self.resize(width, height, scale, touch)
        self("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url="about:blank")
        self("Page.navigate", url=url)
        self.wait(f"location.href != 'about:blank' && document.readyState == 'complete' && {ready}")

    def js(self, code):
        answer = self("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        found = answer["result"]
        if "unserializableValue" in found:  # -0, NaN, Infinity: no JSON
            return float(found["unserializableValue"].replace("Infinity", "inf"))
        return found.get("value")

    def wait(self, code, seconds=20):
        end = time.monotonic() + seconds
        while not self.js(code):
            late = time.monotonic() > end
            assert not late, f"the page never came to: {code}; its errors: {self.errors}"
            time.sleep(0.02)

    def settle(self):
        """Wait until what was asked for has been drawn."""
        self.js("new Promise(done => requestAnimationFrame("
                "() => requestAnimationFrame(() => done(1))))")

    def mouse(self, kind, x, y, **more):
        more = {"button": "left", "clickCount": 1} | more
        self("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, start, end, steps=5):
        self.mouse("mousePressed", *start)
        for i in range(1, steps + 1):
            place = [a + (b - a) * i / steps for a, b in zip(start, end)]
            self.mouse("mouseMoved", *place, buttons=1)
        self.mouse("mouseReleased", *end)
        self.settle()

    def click(self, selector):
        x, y = self.js("(r => [r.x + r.width / 2, r.y + r.height / 2])"
                       f"(document.querySelector({selector!r}).getBoundingClientRect())")
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y), self.mouse("mouseReleased", x, y)
        self.settle()

    def touch(self, *paths, steps=5):
        """Fingers down at the start of each path ((x, y), (x, y)), moved along, and up."""
        for i in range(steps + 1):
            points = [{"x": a[0] + (b[0] - a[0]) * i / steps,
                       "y": a[1] + (b[1] - a[1]) * i / steps, "id": n}
                      for n, (a, b) in enumerate(paths)]
            kind = "touchMove" if i else "touchStart"
            self("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        self("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def key(self, key):
        text = {"text": key} if len(key) == 1 else {}
        self("Input.dispatchKeyEvent", type="keyDown", key=key, code="Space" if key == " " else key,
             windowsVirtualKeyCode=32 if key == " " else 0, **text)
        self("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.settle()

    def screenshot(self, settle=True):
        if settle:
            self.settle()
        return base64.b64decode(self("Page.captureScreenshot", format="png")["data"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.session = None
            self("Browser.close")
        except (AssertionError, OSError):
            self.process.kill()
        self.process.wait(20)
        os.close(self.read), os.close(self.write)
