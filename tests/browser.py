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
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


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
            [find(), *FLAGS, f"--user-data-dir={folder}/profile", "about:blank"],
            preexec_fn=pipes,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser), os.close(from_browser)
        self.buffer, self.number, self.session, self.errors = b"", 0, None, []
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")[
            "targetId"
        ]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self("Page.enable"), self("Runtime.enable"), self("Log.enable")

    def __call__(self, method, **params):
        """Send one command, wait for its answer. Page errors that arrive meanwhile are kept in
        .errors."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | (
            {"sessionId": self.session} if self.session else {}
        )
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(
                    answer["params"]["exceptionDetails"]
                    .get("exception", {})
                    .get("description", "unknown")
                )
            elif (
                answer.get("method") == "Log.entryAdded"
                and answer["params"]["entry"]["level"] == "error"
            ):
                self.errors.append(answer["params"]["entry"]["text"])
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

    def open(self, url, width=1280, height=720, scale=1, dark=False, touch=False):
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=touch,
        )
        self("Emulation.setTouchEmulationEnabled", enabled=touch)
        self(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self("Page.navigate", url="about:blank")
        self("Page.navigate", url=url)
        self.wait("document.readyState == 'complete' && !!window.player && player.stats.ms > 0")

    def js(self, code):
        answer = self("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, code, seconds=20):
        end = time.monotonic() + seconds
        while not self.js(code):
            assert (
                time.monotonic() < end
            ), f"the page never came to: {code}; its errors: {self.errors}"
            time.sleep(0.02)

    def settle(self):
        """Wait until what was asked for has been drawn."""
        self.js(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
        )

    def mouse(self, kind, x, y, **more):
        self(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            **({"button": "left", "clickCount": 1} | more),
        )

    def drag(self, start, end, steps=5):
        self.mouse("mousePressed", *start)
        for i in range(1, steps + 1):
            self.mouse(
                "mouseMoved", *[a + (b - a) * i / steps for a, b in zip(start, end)], buttons=1
            )
        self.mouse("mouseReleased", *end)
        self.settle()

    def click(self, selector):
        x, y = self.js(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y), self.mouse("mouseReleased", x, y)
        self.settle()

    def touch(self, *paths, steps=5):
        """Fingers down at the start of each path ((x, y), (x, y)), moved along, and up."""
        for i in range(steps + 1):
            points = [
                {
                    "x": a[0] + (b[0] - a[0]) * i / steps,
                    "y": a[1] + (b[1] - a[1]) * i / steps,
                    "id": n,
                }
                for n, (a, b) in enumerate(paths)
            ]
            self(
                "Input.dispatchTouchEvent",
                type="touchMove" if i else "touchStart",
                touchPoints=points,
            )
        self("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def key(self, key):
        text = {"text": key} if len(key) == 1 else {}
        self("Input.dispatchKeyEvent", type="keyDown", key=key, code="Space" if key == " " else key,
             windowsVirtualKeyCode=32 if key == " " else 0, **text)
        self("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.settle()

    def screenshot(self):
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
