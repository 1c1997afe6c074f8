"""view/timeline.js, view/floor.js and their part of studio.py: several prompts, a path, pins and
poses, by mouse and by keyboard; the copied command makes the very same file."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from test_studio import (  # fixtures, too
    JOB, choose, enter, made_by, maker, needs_browser, opened, post, ready, sampled, server, tab,
    typed)

__all__ = ["maker", "server", "tab"]
WALK = JOB | {"text": "a person walks forward", "frames": 60}
WAY = {"path": [[0, 0, 0], [1, 0.5, 0.8], [2.95, 1.5, 2]]}
PIN = {"joint": "left_wrist", "time": 2, "position": [1, 1.3, 1.7]}
POSE = {"pose": [[[0, 1, 0]] * 22], "time": 0}  # all joints in one place


def joints_of(data):
    """The bytes of an .npy file -> its joints (T, J, 3)."""
    assert data[:6] == b"\x93NUMPY"
    return np.frombuffer(data[-(len(data) // 264 * 264):], "<f4").reshape(-1, 22, 3)


# --------------------------------------------------------------------------------------------------
# What the server makes of it


@pytest.mark.parametrize("more, flags", [
    ({"then": [{"text": "a man sits down", "frames": 40}], "num": 2},
     ["--story", "a person walks forward", "a man sits down", "--seconds", "3,2", "--num", "2",
      "--format", "glb"]),
    ({"then": [{"text": "a man sits down", "frames": 0}], "frames": 0},
     ["--story", "a person walks forward", "a man sits down", "--format", "bvh"]),
    ({"loop": True}, ["a person walks forward", "--loop", "--seconds", "3", "--format", "npy"]),
    ({"constraints": [WAY, PIN]}, ["a person walks forward", "--seconds", "3", "--format", "npy",
                                   "--constraints", "c.json"]),
    ({"then": [{"text": "a man jumps", "frames": 40}], "constraints": [WAY, PIN]},
     ["--story", "a person walks forward", "a man jumps", "--seconds", "3,2", "--format", "npy",
      "--constraints", "c.json"])], ids=["story", "auto", "loop", "pins", "story with pins"])
def test_a_file_is_the_one_that_sample_py_writes(server, tmp_path, more, flags):
    kind = flags[flags.index("--format") + 1]
    status, data = post(server, WALK | more | {"kind": kind}, "/file")
    assert status == 200
    if "c.json" in flags:
        tmp_path.joinpath("c.json").write_text(json.dumps(more["constraints"]))
        flags = [str(tmp_path / flag) if flag == "c.json" else flag for flag in flags]
    assert data == sampled(tmp_path / "out", *flags, "--seed", "5", "--guidance", "2.5",
                           "--sampler", "dpm++", "--steps", "4")
    if kind == "npy":
        joints = joints_of(data)
        assert len(joints) == 60 + sum(one["frames"] for one in more.get("then", ()))
        if "constraints" in more:
            assert np.abs(joints[59, 0, ::2] - [1.5, 2]).max() < 0.01
            assert np.abs(joints[40, 20] - PIN["position"]).max() < 0.01


def test_every_prompt_of_a_story_takes_a_seed(server):
    job = WALK | {"then": [{"text": "a man jumps", "frames": 0}], "frames": 0, "num": 2}
    status, body = post(server, job)
    found = json.loads(body)
    assert status == 200 and [one["seed"] for one in found["made"]] == [5, 7]
    assert found["motions"][0]["caption"] == "a person walks forward, then a man jumps"
    parts = found["made"][0]["report"]["parts"]
    assert len(parts) == 2 and sum(parts) == found["made"][0]["frames"]


def test_parts_add_up_where_a_prompt_lasts_as_long_as_can_be(server):
    """A segment as long as the training's motions gives up what it shares."""
    job = WALK | {"then": [{"text": "a man jumps", "frames": 120}], "constraints": [
        {"joint": "pelvis", "time": 8.45, "position": [0.5, 0.9, 1]}]}
    status, body = post(server, job)
    made = json.loads(body)["made"][0]
    assert status == 200 and made["report"]["parts"] == [60, 110] and made["frames"] == 170
    status, body = post(server, job | {"constraints": [job["constraints"][0] | {"time": 8.6}]})
    assert status == 400 and "which has 8.5 seconds" in json.loads(body)["error"]


def test_what_is_not_met_is_said(server):
    status, body = post(server, WALK | {"constraints": [POSE]})  # nobody can stand like this
    note = json.loads(body)["made"][0]["report"]["notes"][0]
    assert status == 200 and "pose at 0.00 s" in note and float(note.split()[-3]) > 0.01, note
    assert note.endswith(" m off")


@pytest.mark.parametrize("change, says", [
    ({"then": [{"text": "jumps", "frames": 0}]}, "every prompt its seconds"),
    ({"then": [{"text": "jumps", "frames": 5}]}, "at least 1 s"),
    ({"then": [{"text": "", "frames": 40}]}, "text must be"),
    ({"then": [{"text": "qwertyuiop", "frames": 40}]}, "“qwertyuiop”"),
    ({"then": [{"text": "jumps"}]}, "text and frames"), ({"then": "jumps"}, "then must be a list"),
    ({"then": [{"text": "jumps", "frames": 40}] * 8}, "at most 7"),
    ({"loop": 1}, "loop must be"), ({"whole": None}, "whole must be"),
    ({"loop": True, "constraints": [PIN]}, "does not repeat"),
    ({"constraints": [PIN | {"joint": "left_wirst"}]}, "Did you mean left_wrist"),
    ({"constraints": [PIN | {"time": 9}]}, "outside the motion"),
    ({"constraints": [PIN | {"position": [0, 1, float("nan")]}]}, "A constraint is"),
    ({"constraints": [PIN | {"position": [0, 1, 1e9]}]}, "A constraint is"),
    ({"constraints": [PIN | {"position": [0, 1, "2"]}]}, "A constraint is"),
    ({"constraints": [PIN | {"time": True}]}, "A constraint is"),
    ({"constraints": [{"pose": "/etc/passwd", "time": 0}]}, "A constraint is"),
    ({"constraints": [{"path": "way.csv"}]}, "A constraint is"),
    ({"constraints": [{"keep": "arms", "from": "clip.npy"}]}, "A constraint is"),
    ({"constraints": [{"pose": [[[0, 1, 0]] * 23], "time": 0}]}, "of shape (frames, 22, 3)"),
    ({"constraints": [{"path": [[0, 0, 0], [1, 0]]}]}, "A constraint is"),
    ({"constraints": [{"path": [[1, 0, 0], [0, 0, 1]]}]}, "times of a path must rise"),
    ({"constraints": [{}]}, "expected one of joint"), ({"constraints": [7]}, "A constraint is"),
    ({"constraints": [PIN] * 31}, "at most 30")])
def test_bad_wishes_are_refused_in_a_sentence(server, change, says):
    status, body = post(server, WALK | change)
    assert status == 400 and says in json.loads(body)["error"]


# --------------------------------------------------------------------------------------------------
# In a browser


def press(tab, key, times=1):
    for _ in range(times):
        tab("Input.dispatchKeyEvent", type="keyDown", key=key, code=key)
        tab("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)


def began(tab, server, text="a person walks forward", **more):
    opened(tab, server, **more)
    typed(tab, text)
    tab.click("#timeline")


def same_file(tab, folder):
    """Download as npy, run the command that the page shows -> the joints, if both are the same."""
    choose(tab, "kind", "npy")
    tab.js("studio.file = null")
    tab.click("#download")
    tab.wait("!!studio.file && said.textContent.includes('kB')", 60)
    found = bytes(tab.js("studio.file.arrayBuffer().then(b => Array.from(new Uint8Array(b)))"))
    line = tab.js("command.textContent")
    assert line.count("python sample.py ") == 1
    line = line.replace("python sample.py ", f"{sys.executable} {ROOT / 'sample.py'} --out out ")
    tab("Page.navigate", url="about:blank")  # drawing takes the processor from sample.py
    done = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, = folder.joinpath("out").iterdir()
    assert path.read_bytes() == found
    return joints_of(found)


@needs_browser
def test_prompts_in_a_row(tab, server, tmp_path):
    began(tab, server)
    made_by(tab, lambda: tab.click("#auto"))
    tab.click("#add")
    assert tab.js("document.activeElement.ariaLabel") == "What comes next"
    enter(tab)
    tab.wait("said.textContent.includes('Prompt 2 is empty')")
    for letter in "-sits down":
        tab.key(letter)
    made_by(tab, lambda: enter(tab))
    assert tab.js("Array.from(strip.querySelectorAll('button'), e => e.textContent)") == [
        "a person walks forward", "-sits down"]
    tab.click("#strip button:nth-child(2)")
    assert tab.js("stage.contentWindow.player.clock.time") == pytest.approx(3)
    assert tab.js("document.getElementById('asked').disabled") is False
    made_by(tab, lambda: tab.click("#again"))
    assert tab.js("seed.value") == "1236"
    assert len(same_file(tab, tmp_path)) == 120


@needs_browser
def test_a_path_leads_through_prompts_in_a_row(tab, server, tmp_path):
    began(tab, server)
    tab.click("#add")
    for letter in "a man runs":
        tab.key(letter)
    made_by(tab, lambda: enter(tab))
    drawn = tab.js("studio.made[0].report.parts")
    assert sum(drawn) == tab.js("studio.made[0].frames")
    draw = "path = [[0, 0], [0, 2], [1.5, 3]]; fixLength(); drawPath(); make()"
    made_by(tab, lambda: tab.js(draw))
    parts = tab.js("studio.made[0].report.parts")
    assert parts == drawn
    way, = tab.js("studio.job.constraints")
    assert way["path"][-1][0] == pytest.approx((sum(parts) - 1) / 20, abs=1e-3)
    assert tab.js("document.getElementById('only').hidden") is True
    made_by(tab, lambda: tab.click("#auto"))  # the path still needs a length
    assert tab.js("[auto.checked, studio.made[0].report.parts]") == [False, drawn]
    joints = same_file(tab, tmp_path)
    assert len(joints) == sum(parts) and np.abs(joints[-1, 0, ::2] - [1.5, 3]).max() < 0.01


@needs_browser
@pytest.mark.parametrize("repeats", [False, True])
def test_one_of_several_stories_is_kept(tab, server, repeats):
    began(tab, server)
    if repeats:
        made_by(tab, lambda: tab.js("loop.click()"))
    else:
        tab.click("#add")
        for letter in "a man waves":
            tab.key(letter)
        made_by(tab, lambda: enter(tab))
    made_by(tab, lambda: choose(tab, "count", "2"), 2)
    shown = "(i => Array.from(stage.contentWindow.player.motions[i].joints))"
    second = tab.js(f"{shown}(1)")
    tab.js("document.querySelector('#pick button:nth-child(2)').scrollIntoView()")
    made_by(tab, lambda: tab.click("#pick button:nth-child(2)"))
    assert tab.js("seed.value") == ("1235" if repeats else "1236")
    assert tab.js(f"{shown}(0)") == second


@needs_browser
def test_one_types_on_while_motions_are_made(tab, server):
    """Six variations with a path take seconds, in which the page answers and the box takes keys."""
    began(tab, server)
    tab.js("path = [[0, 0], [0, 1], [0.5, 2]]; fixLength(); drawPath(); count.value = '6'")
    tab.js("studio.made = null; make(); document.getElementById('prompt').select()")
    assert "Making" in tab.js("said.textContent")
    for letter in "he runs":
        tab.key(letter)
    assert tab.js("[document.getElementById('prompt').value, studio.made]") == ["he runs", None]
    tab.wait(ready(6))


@needs_browser
def test_a_path_is_drawn_with_a_finger(tab, server):
    began(tab, server, width=390, height=844, touch=True)
    tab.js("document.getElementById('floor').scrollIntoView()")
    x, y = tab.js("(r => [r.x + r.width / 2, r.y + r.height * 3 / 4])"
                  "(document.getElementById('floor').getBoundingClientRect())")
    made_by(tab, lambda: tab.touch(((x, y), (x + 30, y - 75)), steps=8))
    way = tab.js("studio.job.constraints[0].path")
    assert np.allclose(way[-1][1:], [-1, 2.5], atol=0.05) and len(way) > 4
    tab.resize(1280, 720)


@needs_browser
def test_a_path_is_drawn_with_the_mouse_and_comes_back_from_the_history(tab, server, tmp_path):
    began(tab, server)
    tab.js("document.getElementById('floor').scrollIntoView()")
    x, y = tab.js("(r => [r.x + r.width / 2, r.y + r.height * 3 / 4])"
                  "(document.getElementById('floor').getBoundingClientRect())")
    made_by(tab, lambda: tab.drag((x, y), (x - 45, y - 60), 9))  # 30 pixels are a metre
    asked = tab.js("studio.job.constraints")
    assert len(asked) == 1 and np.allclose(asked[0]["path"][-1][1:], [1.5, 2], atol=0.05)
    assert asked[0]["path"][0] == [0, 0, 0]
    assert tab.js("document.getElementById('auto').checked") is False
    before = tab.js("command.textContent")
    tab.js("studio.touched = true")
    made_by(tab, lambda: tab.click("#clear"))
    assert tab.js("studio.job.constraints") == []
    made_by(tab, lambda: tab.js("document.querySelector('#history span:nth-child(2) button')"
                                ".click()"))
    assert tab.js("command.textContent") == before
    joints = same_file(tab, tmp_path)
    assert np.abs(joints[-1, 0, ::2] - asked[0]["path"][-1][1:]).max() < 0.01


@needs_browser
def test_everything_is_done_with_the_keyboard(tab, server, tmp_path):
    opened(tab, server)
    typed(tab, "a person walks forward")
    tab.js("timeline.focus()")
    tab.key(" ")
    reached = set()
    for _ in range(14):
        tab("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab",
            windowsVirtualKeyCode=9)
        reached.add(tab.js("document.activeElement.id"))
    assert {"add", "loop", "floor", "clear", "pin", "begin", "end"} <= reached
    tab.js("document.getElementById('floor').focus()")
    press(tab, "ArrowUp", 6), press(tab, "ArrowLeft", 2)
    assert tab.js("where.value") == "0.50 m left, 1.50 m ahead"
    made_by(tab, lambda: press(tab, "Enter"))
    press(tab, "ArrowUp", 4)
    made_by(tab, lambda: press(tab, "Enter"))
    assert tab.js("studio.job.constraints[0].path.map(row => row.slice(1))") == [
        [0, 0], [0.5, 1.5], [0.5, 2.5]]
    made_by(tab, lambda: press(tab, "Backspace"))
    assert tab.js("studio.job.constraints[0].path.length") == 2
    tab.js("document.getElementById('pin').focus()")
    made_by(tab, lambda: tab.key(" "))
    assert tab.js("document.activeElement.ariaLabel") == "Joint"
    pin = tab.js("studio.job.constraints[1]")
    assert pin["joint"] == "right_wrist" and tab.js("!!strip.querySelector('i')")
    row = "document.querySelector('#pins .row')."
    made_by(tab, lambda: tab.js(f"{row}querySelector('.y').value = 1.5; {row}querySelector('.y')"
                                ".dispatchEvent(new Event('change'))"))
    joints = same_file(tab, tmp_path)
    assert joints[round(20 * pin["time"]), 21, 1] == pytest.approx(1.5, abs=0.01)


@needs_browser
def test_a_motion_begins_like_the_end_of_another(tab, server):
    began(tab, server, "a man sits down")
    sits = np.array(tab.js("jointsAt(last, last.frames - 1)"))
    typed(tab, "a man stands up")
    options = tab.js("Array.from(document.getElementById('begin').options, o => o.textContent)")
    wanted = options.index("like the end of “a man sits down” · 1234")
    tab.js(f"document.getElementById('begin').selectedIndex = {wanted}")
    made_by(tab, lambda: tab.js("document.getElementById('begin').dispatchEvent("
                                "new Event('change'))"))
    begins = np.array(tab.js("jointsAt(last, 0)"))
    assert np.abs(begins[0, ::2]).max() < 0.02  # at the origin, and facing ahead
    assert abs(tab.js("placeOf(jointsAt(last, 0))[2]")) < 3
    assert begins[:, 1] == pytest.approx(sits[:, 1], abs=0.03)
    assert begins[0, 1] < 0.75  # it does sit
    made_by(tab, lambda: choose(tab, "end", "0 0"))
    assert tab.js("studio.job.constraints.map(one => one.time)") == [
        0, pytest.approx(tab.js("(last.frames - 1) / fps"), abs=1e-3)]
    assert tab.js("document.getElementById('place').hidden") is False
    asked = tab.js("[command.textContent, JSON.stringify(studio.job.constraints)]")
    made_by(tab, lambda: tab.js("again(past[0])"))
    assert tab.js("[command.textContent, JSON.stringify(studio.job.constraints)]") == asked


@needs_browser
def test_what_goes_wrong_is_said_in_the_page(tab, server):
    began(tab, server)
    made_by(tab, lambda: tab.click("#pin"))
    tab.js("(e => { e.value = 9; e.dispatchEvent(new Event('change')); })"
           "(document.querySelector('#pins .y'))")
    tab.wait("said.querySelector('b')?.textContent.includes('than a person reaches')")
    assert tab.js("document.querySelectorAll('#pins .row').length") == 1  # it can be mended
    made_by(tab, lambda: tab.click("#pins button"))
    assert tab.js("studio.job.constraints") == []
    made_by(tab, lambda: tab.js("loop.click()"))
    assert tab.js("studio.job.loop") is True and "--loop" in tab.js("command.textContent")
    made_by(tab, lambda: tab.click("#timeline"))  # closed, it asks for nothing
    assert tab.js("studio.job.loop") is False
    tab.errors = [one for one in tab.errors if "400" not in one]
    assert not tab.errors


@needs_browser
@pytest.mark.parametrize("size, dark", [((390, 844), True), ((1280, 720), False)])
def test_it_fits_the_screen_and_everything_has_a_name(tab, server, size, dark):
    began(tab, server, width=size[0], height=size[1], dark=dark, touch=size[0] < 500)
    made_by(tab, lambda: tab.js("document.getElementById('pin').click()"))
    tab.js("cursor = [0.5, 2]; path = [[0, 0], [0, 1], [0.5, 2]]; drawPath()")
    made_by(tab, lambda: tab.js("ends.end = jointsAt(last, 0); arrange(); make()"))
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        name = f"{folder}/timeline-{size[0]}-{'dark' if dark else 'light'}"
        with open(f"{name}.png", "wb") as file:
            file.write(tab.screenshot())
    tab.js("loop.click(); document.getElementById('add').click()")
    assert tab.js("document.documentElement.scrollWidth") == size[0]
    assert tab.js("document.documentElement.scrollHeight") <= size[1]
    assert tab.js("stage.clientHeight") > size[1] * 0.25
    assert tab.js("(e => e.scrollWidth <= e.clientWidth)(document.getElementById('more'))")
    nameless = tab.js("""[...document.querySelectorAll("input, button, select, svg")].filter(
      one => !(one.ariaLabel || one.title || one.textContent.trim() || one.labels?.[0]?.innerText)
      ).map(one => one.id)""")
    assert nameless == []
    tab.resize(1280, 720)
