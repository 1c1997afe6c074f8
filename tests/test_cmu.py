"""HumanML3D's part of the CMU database: which frames are taken, and what is missing is counted."""
import re
import zipfile

import numpy as np
import pytest

from formats import bvh, cmu, rigs
from formats.found import Found
from formats.pack import Pack
from formats.recordings import read_recording
from test_data import walking
from test_prepare import refused, run

INDEX = """source_path,start_frame,end_frame,new_name
./pose_data/KIT/3/kick_high_left02_poses.npy,0,117,000000.npy
./pose_data/CMU/01/01_02_poses.npy,10,70,000001.npy
./pose_data/CMU/01/01_02_poses.npy,0,30,000002.npy
./pose_data/CMU/01/01_02_poses.npy,60,150,000003.npy
./pose_data/CMU/60/60_03_poses.npy,10,60,000004.npy
./pose_data/CMU/02/02_09_poses.npy,0,60,000005.npy
./pose_data/CMU/01/01_02_poses.npy,0,60,000006.npy
./pose_data/CMU/01/01_02_poses.npy,0,61,000007.npy
"""


def tpose_first(frames, fps):
    """`frames` of 20 a second at `fps`, after a pose that stands 4 m away."""
    joints = rigs.resample(walking(frames), 20, fps)
    away = np.repeat(joints[:1], 1, axis=0) + [4.0, 0, 3.0]
    return np.concatenate([away, joints])


@pytest.fixture
def database(tmp_path):
    """A small database (01_02 at 120 a second; 60_03, which says 120 and has 60) and HumanML3D."""
    (tmp_path / "bvh" / "01").mkdir(parents=True)
    (tmp_path / "bvh" / "60").mkdir()
    bvh.write_bvh(tmp_path / "bvh/01/01_02.bvh", tpose_first(100, 120), 120, exact=True)
    bvh.write_bvh(tmp_path / "bvh/60/60_03.bvh", tpose_first(80, 60), 120, exact=True)
    folder = tmp_path / "h3d"
    (folder / "texts").mkdir(parents=True)
    (folder / "index.csv").write_text(INDEX)
    ids = {"train": ["000001", "M000001", "000002", "000003"], "val": ["000004", "000005"],
           "test": ["000007"]}
    for split, names in ids.items():
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    for n in (1, 2, 3, 4, 5, 6):
        (folder / f"texts/00000{n}.txt").write_text(
            f"clip {n} goes left#clip/NOUN go/VERB left/ADV#0.0#0.0\n"
            "it turns clockwise#it/PRON turn/VERB#0.5#2.6\n")
    (folder / "texts/M000004.txt").write_text("an image of its own#image/NOUN#0.0#0.0\n")
    return tmp_path


def pack(capsys, folder, *options):
    code, printed, error = run(capsys, "cmu", folder / "bvh", "--humanml3d", folder / "h3d",
                               "--out", folder / "cmu.pack", *options)
    assert code == 0, error
    return Pack.open(str(folder / "cmu.pack")), printed


def test_clips_have_the_frames_texts_and_splits_of_humanml3d(database, capsys):
    made, printed = pack(capsys, database)
    assert made.ids == ["000001", "A_000001", "M000001", "A_M000001", "000004", "M000004"]
    assert made.lengths.tolist() == [59, 42, 59, 42, 49, 49]  # 39 are left out
    assert made.splits == ["train"] * 4 + ["val"] * 2
    assert made.captions(0)[0].text == "clip 1 goes left"
    assert made.captions(0)[0].tokens == "clip/NOUN go/VERB left/ADV"
    assert made.captions(2)[0].text == "clip 1 goes right"
    assert made.captions(2)[0].tokens == "clip/NOUN go/VERB right/ADV"
    assert made.captions(3)[0].text == "it turns counterclockwise"
    assert made.captions(5)[0].text == "an image of its own"
    assert made.encoding == "joints" and (made._arrays["mirror"] >= 0).sum() == 2


def test_what_is_missing_is_counted(database, capsys):
    _, printed = pack(capsys, database)
    for line in ("left out, recording not there: 1 (000005)", "left out, without text: 1 (000007)",
                 "left out, in no split list: 1 (000006)",
                 "left out, outside 40..199 frames: 1 (000002)",
                 "000003: frames 60 to 150 of 01/01_02.bvh lead out of the recording",
                 "index.csv and", "1 only in index.csv (02_09)"):
        assert line in printed, printed
    assert "windows of CMU in index.csv" in printed
    assert re.search(r"windows of CMU in index.csv +7 +2,913  <- differs", printed)
    assert re.search(r"recordings there +2 *\n", printed)


def test_texts_may_be_zipped_and_in_the_repositorys_own_folder(database, capsys):
    want, _ = pack(capsys, database)
    want = [(want.ids, [want.captions(i) for i in range(len(want))])]
    folder = database / "h3d"
    (folder / "HumanML3D").mkdir()
    with zipfile.ZipFile(folder / "HumanML3D" / "texts.zip", "w") as archive:
        for path in (folder / "texts").iterdir():
            archive.write(path, f"texts/{path.name}")
        archive.writestr("__MACOSX/texts/000001.txt", b"\0\0")
        archive.writestr("../../000001.txt.sh", "no")
    for path in (folder / "texts").iterdir():
        path.unlink()
    (folder / "texts").rmdir()
    for name in ("train", "val", "test"):
        (folder / f"{name}.txt").rename(folder / "HumanML3D" / f"{name}.txt")
    made, _ = pack(capsys, database)
    assert [(made.ids, [made.captions(i) for i in range(len(made))])] == want


@pytest.mark.parametrize("name, fps, trial, trimmed, frames", [
    # Capture frame k of 120 a second is the file's frame k + 1, after its T-pose.
    ("01/01_02.bvh", None, (1, 2), 0, (1 + 6 * 10, 1 + 6 * 69 + 1)),
    # 60_03 has 60 a second.
    ("60/60_03.bvh", 60.0, (60, 3), 0, (1 + 3 * 10, 1 + 3 * 69 + 1))])
def test_frames_are_counted_from_the_first_one_after_the_t_pose(database, name, fps, trial,
                                                                trimmed, frames):
    recording = read_recording(str(database / "bvh"), name, None, Found(), fps=fps)
    assert recording.first == 1
    assert cmu.frames_of(("x", 10, 70), recording, trial, trimmed) == frames


def test_frames_of_a_copy_whose_t_pose_was_cut_away(tmp_path):
    bvh.write_bvh(tmp_path / "01_02.bvh", rigs.resample(walking(100), 20, 40), 40, exact=True)
    recording = read_recording(str(tmp_path), "01_02.bvh", None, Found())
    assert recording.first == 0
    # 9 frames of 120 a second are missing: 0.075 s, 3 frames of 40 a second.
    assert cmu.frames_of(("x", 10, 70), recording, (1, 2), 9) == (20 - 3, 2 * 69 - 3 + 1)
    # 9 frames of 60 a second are 0.15 s, 6 frames.
    assert cmu.frames_of(("x", 10, 70), recording, (60, 3), 9) == (20 - 6, 2 * 69 - 6 + 1)
    assert cmu.frames_of(("x", 0, 60), recording, (1, 2), 9)[0] == 0  # what is not there
    with pytest.raises(ValueError, match="frames 60 to 150 of 01_02.bvh lead out"):
        cmu.frames_of(("x", 60, 150), recording, (1, 2), 9)


@pytest.mark.parametrize("harm, sentence", [
    (lambda f: (f / "index.csv").unlink(), "lacks index.csv"),
    (lambda f: (f / "train.txt").unlink(), "lacks train.txt"),
    (lambda f: (f / "texts").rename(f / "words"), "lacks texts or texts.zip"),
    (lambda f: (f / "index.csv").write_text(INDEX.split("\n")[1]), "names no recording of CMU"),
    (lambda f: (f / "index.csv").write_text(INDEX.replace(",10,", ",ten,")),
     "index.csv, line 3: expected"),
    (lambda f: (f / "index.csv").write_text(INDEX.replace("01_02", "03_02").replace("60_03",
                                                                                    "03_03")),
     "0 names are in both")])
def test_what_is_no_humanml3d_is_refused(database, capsys, harm, sentence):
    harm(database / "h3d")
    error = refused(capsys, database, "cmu", database / "bvh", "--humanml3d", database / "h3d")
    assert sentence in error, error


def test_the_published_index_has_as_many_windows_as_it_should(shared, tmp_path):
    source = shared / "data" / "cmu" / "humanml3d"
    if not source.is_dir():
        pytest.skip(f"NOT TESTED on the real index: {source} is absent")
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "texts").mkdir()
    index = cmu.read_humanml3d(str(tmp_path), str(tmp_path))
    assert list(index.rows.values()) == [2913, 2035]
    assert all(id in index.splits for ids in index.windows.values() for id, _, _ in ids)
