"""studio.py and view/studio.js: the studio's motions and files are sample.py's, whoever should not
be answered is not, and every control works in a browser.

    PYTHONPATH=. python tests/test_studio.py        how long it takes from Enter to the first frame
"""
import json
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time

import browser
import numpy as np
import pytest
import warm
from conftest import ROOT

import sample
import studio
from view import page
from view import server as serving

needs_browser = pytest.mark.skipif(
    browser.find() is None, reason="NOT TESTED: the studio in a browser; Chromium is not installed")
JOB = {"text": "a man jumps", "seed": 5, "num": 1, "frames": 40, "guidance": 2.5, "steps": 4,
       "model": 0}
READY = ("!!window.studio && !!studio.made && stage.contentWindow?.player?.stats.ms > 0"
         " && stage.contentWindow.player.motions.length == CELLS")


def started(maker, token=""):
    server = serving.Server(("127.0.0.1", 0), maker, token)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def maker():
    return studio.Maker([str(ROOT / "checkpoints" / "toy.pt")], "cpu")


@pytest.fixture(scope="module")
def server(maker):
    server = started(maker)
    yield server
    server.shutdown(), server.server_close()


def raw(server, data, seconds=60):
    """Bytes sent to the server -> what it answers until it hangs up."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=seconds) as line:
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it may have hung up already
        answer = b""
        try:
            while piece := line.recv(1 << 20):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def post(server, job, path="/make", **headers):
    """-> (status, body)"""
    body = job if isinstance(job, bytes) else json.dumps(job).encode()
    wanted = {"Host": f"127.0.0.1:{server.server_port}", "Content-Type": "application/json",
              "Content-Length": len(body)} | {k.replace("_", "-"): v for k, v in headers.items()}
    lines = "".join(f"{k}: {v}\r\n" for k, v in wanted.items() if v is not None)
    answer = raw(server, f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


# --------------------------------------------------------------------------------------------------
# Motions and files


def sampled(folder, *more):
    """The only file that sample.py writes."""
    done = warm.run("sample.py", *more, "--out", folder)
    assert done.returncode == 0, done.stderr
    path, = folder.iterdir()
    return path.read_bytes()


@pytest.mark.parametrize("kind, num", [("npy", 1), ("glb", 2), ("bvh", 1), ("vrma", 1)])
def test_a_file_is_the_one_that_sample_py_writes(server, tmp_path, kind, num):
    status, data = post(server, JOB | {"num": num, "kind": kind, "frames": 0}, "/file")
    assert status == 200
    assert data == sampled(tmp_path, "a man jumps", "--num", str(num), "--seed", "5", "--guidance",
                           "2.5", "--sampler", "dpm++", "--steps", "4", "--format", kind)


def test_files_to_look_at_and_usd_are_those_of_sample_py(server, tmp_path):
    """Each can be read, too: the player has its motion, the GIF its frames, USD its joints."""
    from PIL import Image
    job, files = JOB | {"frames": 24, "text": "-jumps"}, {}
    for kind in ("html", "gif", "usda"):
        status, files[kind] = post(server, job | {"kind": kind}, "/file")
        assert status == 200
    done = warm.run("sample.py", "--seconds", "1.2", "--seed", "5", "--guidance", "2.5",
                    "--sampler", "dpm++", "--steps", "4", "--format", "html,gif,usda", "--out",
                    tmp_path, "--", "-jumps")
    assert done.returncode == 0, done.stderr
    for path in tmp_path.iterdir():
        assert path.read_bytes() == files.pop(path.suffix[1:])
        if path.suffix == ".gif":
            with Image.open(path) as image:
                assert image.n_frames == 24 and image.size[0] >= 200
                assert len(image.convert("RGB").getcolors(1 << 20)) > 20
        elif path.suffix == ".html":
            data = re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"))[1]
            shown, = json.loads(data)["motions"]
            assert shown["frames"] == 24 and shown["caption"] == "-jumps"
        else:
            text = path.read_text(encoding="utf-8")
            assert text.startswith("#usda 1.0") and text.count("{") == text.count("}")
            joints = re.search(r"joints = \[(.*?)\]", text, re.S)[1]
            assert joints.count(",") + 1 == 22 and "rotations.timeSamples" in text
    assert not files


def test_what_the_page_is_told(server):
    status, body = post(server, JOB | {"num": 2, "text": "a dragon jumps", "frames": 0})
    found = json.loads(body)
    assert status == 200 and [one["seed"] for one in found["made"]] == [5, 6]
    report = found["made"][0]["report"]
    assert "dragon" in report["taken"] or "dragon" in report["unknown"]
    for one, made in zip(found["motions"], found["made"]):
        assert one["frames"] == made["frames"] and one["turns"] and one["caption"] == \
            "a dragon jumps"
    assert [one["title"] for one in found["motions"]] == ["seed 5", "seed 6"]
    assert found["motions"][0]["positions"] != found["motions"][1]["positions"]


def test_what_sample_py_says_on_the_side_stands_in_the_page(server):
    status, body = post(server, JOB | {"text": "a man jumps " * 30, "frames": 20})
    notes = json.loads(body)["made"][0]["report"]["notes"]
    assert status == 200 and "words of a prompt" in notes[0] and "shorter than any" in notes[1]


@pytest.mark.parametrize("change, says", [
    ({"text": "qwertyuiop"}, "qwertyuiop"), ({"text": "?!"}, "says nothing"),
    ({"frames": 121}, "longer than any motion"), ({"model": 1}, "no such model"),
    ({"text": ""}, "text must be"), ({"text": "a\nb"}, "control characters"),
    ({"text": "\ud800"}, "broken letters"), ({"text": "a" * 501}, "from 1 to 500"),
    ({"seed": 2**53}, "seed must be"), ({"seed": True}, "seed must be"), ({"num": 7}, "1 to 6"),
    ({"guidance": float("nan")}, "guidance must"), ({"guidance": -1}, "guidance must"),
    ({"steps": 0}, "steps must"), ({"steps": 1e9}, "steps must"), ({"ckpt": "/etc/passwd"}, "JSON"),
])
def test_bad_jobs_are_refused_in_a_sentence(server, change, says):
    status, body = post(server, JOB | change)
    assert status == 400 and says.lower() in json.loads(body)["error"].lower()
    assert "--" not in json.loads(body)["error"], "the page has no flags"


def test_files_that_hold_one_motion_are_refused_several(server):
    assert post(server, JOB | {"num": 2, "kind": "bvh"}, "/file")[0] == 400
    for kind in ("../x", "exe", ""):
        assert post(server, JOB | {"kind": kind}, "/file")[0] == 400


# --------------------------------------------------------------------------------------------------
# Who is answered


def test_other_hosts_and_other_pages_are_refused(server):
    port = server.server_port
    assert post(server, JOB, Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert post(server, JOB, Host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1:1", "", None,
                 f"127.0.0.1:{port}.evil.example"):
        assert post(server, JOB, Host=host)[0] == 403
        asked = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        assert raw(server, asked).split()[1] == b"403"
    for origin in ("null", "http://evil.example", f"https://127.0.0.1:{port}", "http://127.0.0.1"):
        assert post(server, JOB, Origin=origin)[0] == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        assert post(server, JOB, Content_Type=kind)[0] == 415
    assert server.server_address[0] == "127.0.0.1"


def test_a_token_is_asked_for(maker):
    server = started(maker, "secret")
    ask = "GET /{} HTTP/1.1\r\nHost: any.example\r\n\r\n"
    try:
        for query, status in (("", b"401"), ("?token=wrong", b"401"), ("?token=secret", b"200")):
            assert raw(server, ask.format(query).encode()).split()[1] == status
        for given, status in ((None, 401), ("Bearer no", 401), ("Bearer secret", 200)):
            assert post(server, JOB, Authorization=given)[0] == status
    finally:
        server.shutdown(), server.server_close()


def test_only_the_page_is_served_and_with_the_right_headers(server):
    ask = "GET {} HTTP/1.1\r\nHost: 127.0.0.1:" + str(server.server_port) + "\r\n\r\n"
    for path in ("/../studio.py", "/studio.py", "//etc/passwd", "/%2e%2e/README.md", "/make",
                 "http://[", "http://127.0.0.1/x"):
        assert raw(server, ask.format(path).encode()).split()[1] in (b"404", b"400")
    head, _, body = raw(server, ask.format("/").encode()).partition(b"\r\n\r\n")
    for wanted in (b"X-Frame-Options: DENY", b"nosniff", b"no-store", b"frame-ancestors 'none'"):
        assert wanted in head
    policy = re.search(r'Policy" content="([^"]*)"', body.decode())[1]
    assert "connect-src 'self'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert not re.findall(r"%[A-Z]+%", body.decode()) and str(ROOT) not in body.decode()


def test_sizes_are_bounded(server):
    assert post(server, b"x" * 10_001)[0] == 413
    for length, status in (("9" * 11, 413), ("-1", 411), ("1e3", 411), (None, 411), ("²", 411)):
        assert post(server, JOB, Content_Length=length)[0] == status
    assert post(server, b"[" * 9999)[0] == 400


def test_500_malformed_requests(server):
    """Whatever comes, the answer is a refusal or nothing, and the server lives on."""
    draw = random.Random(0)
    good = (f"POST /make HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Type: "
            f"application/json\r\nContent-Length: 120\r\n\r\n{json.dumps(JOB)}").encode()
    codes = set()
    for i in range(500):
        data = bytearray(good)
        if i % 5 == 0:
            data = bytearray(draw.randbytes(draw.randrange(200)))
        elif i % 5 == 1:
            del data[draw.randrange(len(data) - 40):]
        elif i % 5 == 2:  # a job that is cut, or has something else in it
            data[-draw.randrange(2, 90):] = draw.randbytes(draw.randrange(60))
        else:
            for _ in range(1 + i % 20):
                data[draw.randrange(len(data) - 20)] = draw.randrange(128, 256)
        answer = raw(server, bytes(data)).split(None, 2)
        codes |= {answer[1] if answer[:1] == [b"HTTP/1.0"] else b"none"}
    assert codes <= {b"none", *(str(n).encode() for n in (
        400, 403, 404, 411, 413, 414, 415, 431, 501, 505))}, codes
    assert post(server, JOB)[0] == 200


def test_50_clients_at_once(server):
    """Each gets a motion, or is told to come again; one that gets none is not lost."""
    found = []
    clients = [threading.Thread(target=lambda i=i: found.append(
        (i, *post(server, JOB | {"seed": i})))) for i in range(50)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    assert len(found) == 50 and {status for _, status, _ in found} <= {200, 429}
    served = [(i, json.loads(body)) for i, status, body in found if status == 200]
    assert len(served) >= serving.WAITING
    assert all(body["made"][0]["seed"] == i for i, body in served)
    assert post(server, JOB)[0] == 200


def test_the_queue_is_bounded(maker, server):
    go = threading.Event()
    held = [threading.Thread(target=lambda: maker.queue.do(go.wait, 60))
            for _ in range(serving.WAITING + 1)]
    for one in held:
        one.start()
    deadline = time.monotonic() + 10
    while maker.queue.waiting.acquire(blocking=False):
        maker.queue.waiting.release()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    status, body = post(server, JOB)
    go.set()
    for one in held:
        one.join()
    assert status == 429 and "try again" in json.loads(body)["error"]
    assert post(server, JOB)[0] == 200


def test_nobody_waits_for_another_ones_file(maker, server, monkeypatch):
    """Drawing a GIF of six motions can take half a minute."""
    begun, go, write, answers = threading.Event(), threading.Event(), maker.written, []

    def slowly(*given):
        begun.set(), go.wait(60)
        return write(*given)

    monkeypatch.setattr(maker, "written", slowly)
    client = threading.Thread(
        target=lambda: answers.append(post(server, JOB | {"kind": "npy"}, "/file")))
    client.start()
    try:
        assert begun.wait(30)
        assert post(server, JOB)[0] == 200 and not answers
    finally:
        go.set(), client.join()
    assert answers[0][0] == 200 and answers[0][1].startswith(b"\x93NUMPY")


def test_slow_clients_do_not_hold_the_others(maker, monkeypatch):
    """Some send a byte now and then, some never read their answer; all are sent away in the end."""
    monkeypatch.setattr(serving, "PATIENCE", 1.5)
    server, lines = started(maker), []
    address = "127.0.0.1", server.server_port
    body = json.dumps(JOB | {"num": 6, "frames": 120, "steps": 1}).encode()
    try:
        for i in range(20):
            line = socket.socket()
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            line.connect(address)
            line.sendall(b"POST /make HT" if i else (
                f"POST /make HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\nContent-Type: application/"
                f"json\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body)
            lines.append(line)
        end = time.monotonic() + 30
        assert post(server, JOB)[0] == 200
        while server.until and time.monotonic() < end:
            for line in lines[1:]:
                try:
                    line.send(b"T")
                except OSError:
                    pass
            time.sleep(0.2)
        assert not server.until
    finally:
        server.shutdown(), server.server_close()
        for line in lines:
            line.close()


def test_connections_are_bounded(maker, monkeypatch):
    monkeypatch.setattr(serving, "CONNECTIONS", 5)
    server = started(maker)
    lines = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(6)]
    try:
        lines[5].settimeout(10)
        assert lines[5].recv(1) == b""  # hung up on, while the others may go on
        for line in lines:
            line.close()
        end = time.monotonic() + 10
        while server.until:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert post(server, JOB)[0] == 200
    finally:
        server.shutdown(), server.server_close()


def test_the_program_says_where_it_is_and_what_is_wrong(capsys):
    for flags, says in ((["--port", "70000"], "--port must be"), (["--ckpt", "no.pt"], "no.pt"),
                        (["--host", "::"], "cannot listen on ::, port any .*IPv4 address")):
        with pytest.raises(SystemExit, match=says):
            studio.main(flags)
    line = subprocess.Popen([sys.executable, "studio.py", "--port", "0"], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE)
    try:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", line.stdout.readline())
    finally:
        line.terminate(), line.wait(), line.stdout.close()


# --------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("studio")) as tab:
        yield tab


def ready(cells=1):
    return READY.replace("CELLS", str(cells))


def address(server):
    return f"http://127.0.0.1:{server.server_port}/"


def opened(tab, server, **more):
    tab("Page.navigate", url="about:blank")  # a page that is left may still write
    tab("Storage.clearDataForOrigin", origin=address(server), storageTypes="local_storage")
    tab.open(address(server), ready=ready(), **more)


def enter(tab):
    tab("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r",
        windowsVirtualKeyCode=13)
    tab("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter")


def made_by(tab, act, cells=1):
    tab.js("studio.made = null")
    act()
    tab.wait(ready(cells))


def typed(tab, text):
    tab.js("document.getElementById('prompt').select()")
    for letter in text:
        tab.key(letter)
    made_by(tab, lambda: enter(tab))


def choose(tab, name, value):
    tab.js(f"(e => {{ e.value = {value!r}; e.dispatchEvent(new Event('change')); }})"
           f"(document.getElementById('{name}'))")


@needs_browser
def test_type_press_enter_and_look(tab, server):
    opened(tab, server)
    typed(tab, "a dragon jumps")
    assert "dragon" in tab.js("said.querySelector('b').textContent")
    assert tab.js("stage.contentDocument.querySelector('.cell h2').textContent") == "a dragon jumps"
    assert tab.js("!!stage.contentWindow.player.mannequin && "
                  "stage.contentWindow.player.isMannequin(stage.contentWindow.player.motions[0])")
    tab.js("document.getElementById('prompt').value = 'qwertyuiop'")
    enter(tab)
    tab.wait("said.textContent.includes('qwertyuiop')")
    text = "a <img src=x onerror=alert(1)> jumps"
    made_by(tab, lambda: tab.js(f"studio.make({text!r})"))
    assert tab.js("stage.contentDocument.querySelector('.cell h2').textContent") == text
    assert tab.js("document.querySelectorAll('img').length") == 0
    tab.errors = [one for one in tab.errors if "400" not in one]  # what was refused above
    assert not tab.errors


@needs_browser
@pytest.mark.parametrize("text", ["-jumps", "--num", "jump! it's \"$HOME\" `ls` \\n"])
def test_the_command_takes_any_prompt(tab, server, text):
    opened(tab, server)
    line = tab.js(f"commandOf({{...studio.job, text: {json.dumps(text)}}})")
    shell = line.replace("python sample.py", f"{sys.executable} -c "
                         "'import json, sys; print(json.dumps(sys.argv[1:]))'")
    found = json.loads(subprocess.run(["sh", "-c", shell], capture_output=True, text=True).stdout)
    args = sample.arguments(found)
    assert args.prompts == [text] and args.seed == 1234 and args.num == 1


@needs_browser
def test_six_at_once_and_one_is_kept(tab, server):
    opened(tab, server)
    made_by(tab, lambda: choose(tab, "count", "6"), 6)
    assert "--num 6 " in tab.js("command.textContent")
    assert tab.js("pick.children.length") == 6
    third = tab.js("stage.contentWindow.player.motions[2].frames")
    made_by(tab, lambda: tab.click("#pick button:nth-child(3)"))
    assert tab.js("[studio.made[0].seed, studio.made[0].frames]") == [1236, third]
    assert tab.js("pick.hidden")


@needs_browser
@pytest.mark.parametrize("size", [(390, 844), (1280, 720)])
@pytest.mark.parametrize("dark, still", [(False, True), (True, False)])
def test_six_small_cells_on_any_screen(tab, server, size, dark, still):
    opened(tab, server, width=size[0], height=size[1], dark=dark, touch=size[0] < 500)
    tab("Emulation.setEmulatedMedia", features=[
        {"name": "prefers-reduced-motion", "value": "reduce" if still else ""},
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
    tab("Page.reload")
    tab.wait(ready())
    made_by(tab, lambda: choose(tab, "count", "6"), 6)
    assert tab.js("stage.contentWindow.player.clock.playing") is not still
    cells = tab.js("""[...stage.contentDocument.querySelectorAll(".cell")].map(cell => {
      const box = cell.getBoundingClientRect(), text = cell.querySelector("small");
      return [box.left, box.top, box.right, box.bottom, text.textContent]; })""")
    wide, high = tab.js("[stage.clientWidth, stage.contentDocument.getElementById('stage')"
                        ".clientHeight]")
    assert [cell[4] for cell in cells] == [f"seed {1234 + i}" for i in range(6)]
    for left, top, right, bottom, _ in cells:  # all of it can be seen, and a person in it
        assert 0 <= left and right <= wide + 1 and 0 <= top and bottom <= high + 1
        assert right - left > 110 and bottom - top > 140
    assert tab.js("[...pick.children].every(e => e.getBoundingClientRect().right <= innerWidth)")
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        with open(f"{folder}/six-{size[0]}-{'dark' if dark else 'light'}.png", "wb") as file:
            file.write(tab.screenshot())
    tab("Emulation.setEmulatedMedia", features=[])
    tab.resize(1280, 720)


@needs_browser
def test_a_sentence_that_says_two_things(tab, server):
    opened(tab, server)
    typed(tab, "a man walks, then jmups")
    assert tab.js("said.textContent").startswith(
        "Made one after the other: \u201ca man walks\u201d, then \u201cjumps\u201d. "
        "Read \u201cjmups\u201d as \u201cjumps\u201d.")
    names = "Array.from(document.querySelectorAll('#strip button'), e => e.textContent)"
    assert tab.js(names) == ["a man walks", "jumps"]
    parts = tab.js("studio.made[0].report.parts")
    assert sum(parts) == tab.js("studio.made[0].frames") and len(parts) == 2
    assert '"a man walks, then jmups" --seed 1234' in tab.js("command.textContent")

    made = tab.js("studio.made[0].report")
    made_by(tab, lambda: tab.click("#other"))  # in one piece, as sample.py --whole makes it
    assert "--whole" in tab.js("command.textContent")
    assert tab.js("said.textContent").endswith("s.One after the other")
    assert tab.js("studio.made[0].report.parts") == [tab.js("studio.made[0].frames")]
    assert tab.js(names) == ["a man walks, then jmups"]
    typed(tab, "a woman walks, then jumps")  # another prompt has not been told to
    assert len(tab.js("studio.made[0].report.parts")) == len(made["parts"])
    assert not tab.errors


@needs_browser
def test_history_stars_and_two_side_by_side(tab, server):
    opened(tab, server)
    assert tab.js("document.getElementById('history').hidden")
    typed(tab, "a person waves")
    typed(tab, "a man sits down")
    names = "Array.from(document.getElementById('history').children, e => e.textContent)"
    assert tab.js(names) == ["a man sits down · 1234☆", "a person waves · 1234☆"]
    assert tab.js("document.querySelector('#history button').title") == \
        "a man sits down · 1234 · guidance 2, 10 steps"
    tab.click("#history span:nth-child(2) button:last-child")
    assert tab.js(names) == ["a person waves · 1234★", "a man sits down · 1234☆"]
    assert tab.js("document.activeElement.ariaPressed") == "true"
    tab.open(address(server), ready=ready())  # a reload
    assert tab.js(names)[0] == "a person waves · 1234★"
    assert tab.js("document.getElementById('prompt').value") == "a man sits down"
    tab.click("#compare")
    made_by(tab, lambda: tab.click("#history span:first-child button"), 2)
    cells = "Array.from(stage.contentDocument.querySelectorAll('.cell h2'), e => e.textContent)"
    assert tab.js(cells) == ["a man sits down", "a person waves"]
    made_by(tab, lambda: tab.click("#compare"))
    assert tab.js("document.getElementById('compare').ariaPressed") == "false"
    tab.js("localStorage.setItem('nanomld', '[{\"text\": 3}]')")  # others' leftovers do no harm
    tab.open(address(server), ready=ready())
    assert not tab.errors


@needs_browser
@pytest.mark.parametrize("kind", ["glb", "npy"])
def test_download_and_the_command_make_the_very_same_file(tab, server, tmp_path, kind):
    opened(tab, server)
    made_by(tab, lambda: choose(tab, "steps", "3"))
    choose(tab, "kind", kind)
    tab.js("studio.file = null")
    tab.click("#download")
    tab.wait("!!studio.file && said.textContent.includes('kB')")
    found = bytes(tab.js("studio.file.arrayBuffer().then(b => Array.from(new Uint8Array(b)))"))
    line = shlex.split(tab.js("command.textContent"))
    assert line[:2] == ["python", "sample.py"] and line[-2:] == ["--format", kind]
    tab("Page.navigate", url="about:blank")  # drawing takes the processor from sample.py
    assert found == sampled(tmp_path, *line[2:])


@needs_browser
@pytest.mark.parametrize("size", [(390, 844), (1280, 720)])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen_and_everything_has_a_name(tab, server, size, dark):
    opened(tab, server, width=size[0], height=size[1], dark=dark, touch=size[0] < 500)
    made_by(tab, lambda: tab.js("studio.touched = true; studio.make('a person waves')"))
    assert tab.js("document.documentElement.scrollWidth") == size[0]
    assert tab.js("document.documentElement.scrollHeight") <= size[1]
    assert tab.js("stage.clientHeight") > size[1] * 0.4
    nameless = tab.js("""[...document.querySelectorAll("input, button, select, iframe")].filter(
      one => !(one.ariaLabel || one.title || one.textContent.trim() || one.labels?.[0]?.innerText)
      ).map(one => one.id)""")
    assert nameless == []
    assert tab.js("document.activeElement.id") == "prompt"
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        with open(f"{folder}/studio-{size[0]}-{'dark' if dark else 'light'}.png", "wb") as file:
            file.write(tab.screenshot())
    tab.resize(1280, 720)


@needs_browser
def test_everything_can_be_reached_with_the_tab_key(tab, server):
    opened(tab, server)
    typed(tab, "a person waves")
    reached = set()
    for _ in range(60):
        tab("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab",
            windowsVirtualKeyCode=9)
        reached.add(tab.js("document.activeElement.id"))
    for name in ("prompt", "make", "auto", "guidance", "seed", "again", "count", "steps", "compare",
                 "copy", "kind", "download", "stage"):
        assert name in reached, name


@needs_browser
def test_reduced_motion_stands_still(tab, server):
    opened(tab, server)
    tab("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion",
                                                 "value": "reduce"}])
    tab("Page.reload")
    tab.wait(ready())
    assert tab.js("stage.contentWindow.player.clock.playing") is False
    tab("Emulation.setEmulatedMedia", features=[])


def contrast(a, b):
    """WCAG 2's ratio of two colours as #rrggbb."""
    def light(colour):
        rgb = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)
    more, less = sorted((light(a), light(b)), reverse=True)
    return (more + 0.05) / (less + 0.05)


def test_contrast_is_enough():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    style = page.FOLDER.joinpath("page.html").read_text(encoding="utf-8").split("</style>")[0]
    found = [dict(re.findall(r"--([a-z-]+): (#\w{6})", block))
             for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(found) == 2
    for colours in found:
        for text in ("text", "faint", "warn"):
            assert contrast(colours[text], colours["bar"]) >= 4.5
            assert contrast(colours[text], colours["background"]) >= 4.5
        assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
        line, bar = (bytes.fromhex(colours[name][1:]) for name in ("line", "bar"))
        button = "#" + bytes(  # 28% of the lines' colour over the bar
            round(0.28 * a + 0.72 * b) for a, b in zip(line, bar)).hex()
        assert contrast(colours["text"], button) >= 4.5
        assert contrast(colours["accent"], button) >= 3  # it marks a pressed button


# --------------------------------------------------------------------------------------------------
# How long it takes


def measure(count=40):
    """Milliseconds from Enter to the first frame after the motion was drawn."""
    server = started(studio.Maker([str(ROOT / "checkpoints" / "toy.pt")]))
    with tempfile.TemporaryDirectory() as folder, browser.Browser(folder) as tab:
        opened(tab, server)
        tab.js("""{ const shown = stage.contentWindow.player, show = shown.show.bind(shown);
          addEventListener("keydown", () => { window.pressed = performance.now(); }, true);
          shown.show = motions => { show(motions); requestAnimationFrame(() =>
            requestAnimationFrame(() => { studio.took = performance.now() - pressed; })); }; }""")
        times = []
        for i in range(count):
            tab.js(f"studio.took = 0; seed.value = {i}; document.getElementById('prompt').value = "
                   f"{page.EXAMPLES[i % len(page.EXAMPLES)]!r}; "
                   "document.getElementById('prompt').focus()")
            enter(tab)
            tab.wait("studio.took > 0")
            times.append(tab.js("studio.took"))
    print(f"{count} motions: median {np.median(times):.0f} ms, 95th percentile "
          f"{np.percentile(times, 95):.0f} ms from Enter to the first frame")


if __name__ == "__main__":
    measure()
