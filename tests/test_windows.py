"""Captions of parts of recordings, with actions; splits of one's own; packs of joints from BVH."""
import csv
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

import motion
from formats import bvh
from formats.pack import Pack
from test_data import walking
from test_prepare import refused, run

LINES = """walk 0.5-2.6 [step left]: a man steps to the left
walk 0.5-2.6: someone goes left: slowly
walk.bvh 2-4.4s\tthe figure glides on
walk [walk]: a man walks
5 - 7.5: a strange name
"""


@pytest.fixture
def tape(tmp_path):
    """A folder with two recordings of 5 s, one with a name like a window, and their captions."""
    folder = tmp_path / "bvh"
    folder.mkdir()
    for name in ("walk", "5 - 7.5"):
        bvh.write_bvh(folder / f"{name}.bvh", walking(101), 20, exact=True)
    (tmp_path / "captions.txt").write_text(LINES)
    return folder


def pack(capsys, tape, *options, code=0):
    out = tape.parent / "a.pack"
    found, printed, error = run(capsys, "bvh", tape, "--captions", tape.parent / "captions.txt",
                                "--out", out, *options)
    assert found == code, error
    return Pack.open(str(out)), printed


def test_windows_become_clips_with_their_captions_and_actions(tape, capsys):
    made, printed = pack(capsys, tape)
    assert made.ids == ["5_-_7.5", "walk_0.5-2.6", "walk_2-4.4", "walk"]
    assert made.lengths.tolist() == [100, 42, 48, 100]
    assert [made.action(i) for i in range(4)] == ["", "step left", "", "walk"]
    assert made.actions == ["step left", "walk"]
    texts = [[caption.text for caption in made.captions(i)] for i in range(4)]
    assert texts == [["a strange name"],
                     ["a man steps to the left", "someone goes left: slowly"],
                     ["the figure glides on"], ["a man walks"]]
    for i, (first, last) in enumerate(((0, 100), (10, 52), (40, 88), (0, 100))):
        want = motion.joints_to_features(walking(101)[first:last + 1], motion.T2M,
                                         motion.T2M_OFFSETS)
        np.testing.assert_allclose(made.features(i)[:, :-4], want[:, :-4], atol=2e-3)


def test_a_recording_with_windows_is_read_once(tape, capsys, monkeypatch):
    read, names = bvh.read_bvh, []
    monkeypatch.setattr(bvh, "read_bvh", lambda path, *rest: names.append(path) or
                        read(path, *rest))
    pack(capsys, tape)
    assert len(names) == 2


def test_mirrored_windows_swap_sides_in_captions_and_actions(tape, capsys):
    made, _ = pack(capsys, tape, "--mirror", "--store", "joints")
    i = made.index("Mwalk_0.5-2.6")
    assert made.action(i) == "step right" and made.action(i - 1) == "step left"
    assert made.captions(i)[0].text == "a man steps to the right"
    assert made.encoding == "joints" and (made._arrays["mirror"] >= 0).sum() == 4
    want = motion.joints_to_features(
        motion.mirror_joints(made._joints_of(int(made._arrays["clip"][i - 1])), motion.T2M),
        motion.T2M)
    np.testing.assert_array_equal(made.features(i), want.astype(np.float32))
    plain, _ = pack(capsys, tape)
    np.testing.assert_allclose(made.features(made.index("walk"))[:, :67],  # root and positions
                               plain.features(plain.index("walk"))[:, :67], atol=2e-3)


def test_a_window_outside_of_its_recording_is_named(tape, capsys):
    (tape.parent / "captions.txt").write_text(LINES + "walk 3-5.5: someone stops\n")
    made, printed = pack(capsys, tape)
    assert len(made) == 4
    assert ("walk_3-5.5: walk.bvh: the window 3-5.5 leads out of the recording, which ends at "
            "5.00 s") in printed


@pytest.mark.parametrize("line, sentence", [
    ("walk 3-2: backwards", "line 6: the window 3-2 of walk.bvh ends before it begins"),
    ("walk 3-3: nothing", "ends before it begins"),
    ("walk 2-4.4 [run]: x\nwalk 2-4.4 [hop]: y", r"line 7: .* two actions, \[run\] and \[hop\]")])
def test_lines_that_make_no_sense_are_refused(tape, tmp_path, capsys, line, sentence):
    (tape.parent / "captions.txt").write_text(LINES + line)
    error = refused(capsys, tmp_path, "bvh", tape, "--captions", tape.parent / "captions.txt")
    assert re.search(sentence, error), error


def test_splits_of_ones_own(tape, tmp_path, capsys):
    (tmp_path / "splits.csv").write_text("file,split\nwalk.bvh,test\n5 - 7.5,train\n")
    made, _ = pack(capsys, tape, "--splits", tmp_path / "splits.csv", "--mirror")
    assert {s for id, s in zip(made.ids, made.splits) if "walk" in id} == {"test"}
    assert {s for id, s in zip(made.ids, made.splits) if "walk" not in id} == {"train"}
    for text, sentence in (("walk,exam\nwalk,exam\n", "expected `file name,split`"),
                           ("walk,val\nwalk.bvh,test\n", "each file once"),
                           ("run,val\n", "0 names are in both")):
        (tmp_path / "splits.csv").write_text(text)
        assert sentence in refused(capsys, tmp_path, "bvh", tape, "--captions", tape.parent /
                                   "captions.txt", "--splits", tmp_path / "splits.csv")


def test_windows_of_real_recordings_are_those_that_were_cut_by_hand(shared, tmp_path, capsys):
    source, trials = shared / "data" / "cmu", ("01_01", "13_11", "60_01")
    if not source.is_dir():
        pytest.skip(f"NOT TESTED on real windows: {source} is absent")
    with tarfile.open(source / "cmu_bvh.tar.xz") as archive:
        for member in archive:
            if member.name.rpartition("/")[2].removesuffix(".bvh") in trials:
                archive.extract(member, tmp_path, filter="data")
    with open(source / "windows.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["trial"] in trials]
    with open(tmp_path / "windows.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    shutil.copy(source / "cut_windows.py", tmp_path)
    subprocess.run([sys.executable, tmp_path / "cut_windows.py", tmp_path / "cut"], check=True,
                   stdout=subprocess.DEVNULL)
    with open(tmp_path / "captions.txt", "w", encoding="utf-8") as file:
        for row in rows:
            for caption in row["captions"].split(" | "):
                file.write(f"{row['trial']} {row['start_s']}-{row['end_s']} [{row['action']}]: "
                           f"{caption}\n")
    packs = []
    for folder, captions in (("bvh", "captions.txt"), ("cut", "cut/captions.txt")):
        code, _, error = run(capsys, "bvh", tmp_path / folder, "--captions", tmp_path / captions,
                             "--min-length", 24, "--out", tmp_path / f"{folder}.pack")
        assert code == 0, error
        packs.append(Pack.open(str(tmp_path / f"{folder}.pack")))
    ours, theirs = packs
    assert len(ours) == len(theirs) == len(rows) >= 8
    for row in rows:
        i = ours.index(f"{row['trial']}_{float(row['start_s']):g}-{float(row['end_s']):g}")
        j = theirs.index(row["clip_id"])
        np.testing.assert_array_equal(ours.features(i), theirs.features(j))
        assert ours.captions(i) == theirs.captions(j) and ours.action(i) == row["action"]
