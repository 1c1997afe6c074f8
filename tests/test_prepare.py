"""prepare.py packs every kind of dataset right, and answers bad input with one sentence."""
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest

import motion
import prepare
from conftest import ROOT
from formats import bvh, datasets
from formats.pack import Clip, Pack
from test_data import walking
from toy import motions as toy_motions
from view import render


def run(capsys, *argv):
    """-> (exit code, standard output, standard error)"""
    code = prepare.main([str(word) for word in argv])
    return code, *capsys.readouterr()


def refused(capsys, tmp_path, *argv):
    """Run, expect one sentence and no pack; return the sentence."""
    out = tmp_path / "packs" / "a.pack"
    code, _, error = run(capsys, *argv, "--out", out)
    assert code == 1 and error.startswith("error: ") and error.count("\n") == 1, error
    assert not out.parent.exists() or os.listdir(out.parent) == []
    return error


@pytest.fixture
def layout(tmp_path):
    """A small dataset in HumanML3D's layout: seven ids that are listed, one that is not."""
    folder = tmp_path / "set"
    for name in ("new_joint_vecs", "texts"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    ids = {
        "train": ["000001", "M000001", "000002", "000003", "000004"],
        "val": ["000005"],
        "test": ["000006"],
    }
    lengths = {"000003": 39, "000004": 200}
    for split, names in ids.items():
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
        for id in names:
            np.save(
                folder / "new_joint_vecs" / f"{id}.npy",
                rng.normal(size=(lengths.get(id, 120), 263)).astype(np.float32),
            )
            (folder / "texts" / f"{id}.txt").write_text(
                f"a man # {id} walks.#a/DET man/NOUN walk/VERB#0.0#0.0\n"
                "he stops#he/PRON stop/VERB#nan#nan\n"
                "he turns#he/PRON turn/VERB#1.5#4.0\n"
            )
    for id in ("007975", "M007975"):
        np.save(folder / "new_joint_vecs" / f"{id}.npy", np.full((50, 263), np.nan, np.float32))
    np.save(folder / "Mean.npy", np.zeros(263, np.float32))
    np.save(folder / "Std.npy", np.ones(263, np.float32))
    return folder


# --------------------------------------------------------------------------------------------------
# HumanML3D's layout


def test_humanml3d_is_checked_counted_and_packed(layout, tmp_path, capsys):
    broken = layout / "new_joint_vecs" / "000002.npy"
    np.save(
        broken, np.where(np.arange(120)[:, None] == 7, np.inf, np.load(broken)).astype(np.float32)
    )
    code, printed, _ = run(capsys, "humanml3d", layout, "--out", tmp_path / "a.pack")
    assert code == 0
    rows = {line[:24].strip(): line[24:].split() for line in printed.splitlines()}
    assert rows["ids in train.txt"] == ["5", "23,384", "<-", "differs"] and rows["test items"] == [
        "2",
        "4,648",
        "<-",
        "differs",
    ]
    for line in (
        "left out, in no split list, and not finite: 2 (007975, M007975)",
        "left out, not finite: 1 (000002)",
        "left out, outside 40..199 frames: 2 (000003, 000004)",
    ):
        assert line in printed
    pack = Pack.open(str(tmp_path / "a.pack"))
    assert pack.ids == [
        "000001",
        "A_000001",
        "M000001",
        "A_M000001",
        "000005",
        "A_000005",
        "000006",
        "A_000006",
    ]
    assert (
        pack.lengths.tolist() == [120, 50] * 4
        and pack.splits == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    )
    whole = np.load(layout / "new_joint_vecs" / "000001.npy")
    np.testing.assert_array_equal(pack.features(0), whole)
    np.testing.assert_array_equal(pack.features(1), whole[30:80])
    assert [(c.text, c.tokens) for c in pack.captions(0)] == [
        ("a man # 000001 walks.", "a/DET man/NOUN walk/VERB"),
        ("he stops", "he/PRON stop/VERB"),
    ]
    assert [c.text for c in pack.captions(1)] == ["he turns"]


def test_action_labels_from_a_file(layout, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "id,content,style\n000001,turn-left,tired\n000002,walk,proud\n000006,walk,tired\n"
    )
    out = tmp_path / "a.pack"
    code, _, _ = run(capsys, "humanml3d", layout, "--actions", labels, "--out", out)
    pack = Pack.open(str(out))
    found = {pack.ids[i]: pack.action(i) for i in range(len(pack)) if "_" not in pack.ids[i]}
    assert code == 0 and found == {
        "000001": "turn-left/tired",
        "M000001": "turn-right/tired",
        "000002": "walk/proud",
        "000005": "",
        "000006": "walk/tired",
    }
    labels.write_text("id,file\n" + "".join(f"{i:06d},file{i}\n" for i in range(20)))
    assert "20 labels are too many for 20 clips" in refused(
        capsys, tmp_path, "humanml3d", layout, "--actions", labels
    )
    labels.write_text("id,content\n000001\n")
    assert "000001" in refused(capsys, tmp_path, "humanml3d", layout, "--actions", labels)


def test_kit_has_its_own_frame_rate_length_and_skeleton(layout, tmp_path, capsys):
    for path in [*(layout / "new_joint_vecs").iterdir(), layout / "Mean.npy", layout / "Std.npy"]:
        np.save(path, np.load(path)[..., :251])
    code, printed, _ = run(capsys, "kit", layout, "--out", tmp_path / "a.pack")
    pack = Pack.open(str(tmp_path / "a.pack"))
    assert (
        code == 0
        and pack.fps == 12.5
        and pack.skeleton == "kit"
        and "000003" in pack.ids
        and "4,888" in printed
    )
    assert pack.lengths[pack.index("A_000001")] == int(4.0 * 12.5) - int(1.5 * 12.5)


def test_files_that_lists_name_and_folders_lack_are_counted(layout, tmp_path, capsys):
    (layout / "new_joint_vecs" / "000002.npy").unlink()
    (layout / "texts" / "M000001.txt").unlink()
    (layout / "texts" / "000005.txt").write_text("\n")
    _, printed, _ = run(
        capsys,
        "humanml3d",
        layout,
        "--out",
        tmp_path / "a.pack",
        "--min-length",
        24,
        "--name",
        "mine",
    )
    assert (
        "left out, without motion: 1 (000002)" in printed
        and "left out, without text: 2 (M000001, 000005)" in printed
    )
    assert "000003" in Pack.open(str(tmp_path / "a.pack")).ids and "differs" not in printed


def spoil(name, content):
    def change(folder):
        path = folder / name
        if content is None:
            path.unlink()
        elif isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_bytes(content)
    return change


CLIP = "new_joint_vecs/000001.npy"


@pytest.mark.parametrize(
    "change, sentence",
    [
        (spoil("Std.npy", None), "lacks Std.npy; expected new_joint_vecs"),
        (spoil("val.txt", None), "lacks val.txt"),
        (
            spoil("Mean.npy", np.zeros(251, np.float32)),
            "Mean.npy: expected 263 floating-point numbers, found float32 of shape (251,)",
        ),
        (
            spoil("Std.npy", np.arange(263.0)),
            "Std.npy: number 0 is 0.0, which cannot normalise motion",
        ),
        (spoil("Mean.npy", np.full(263, np.nan)), "Mean.npy: number 0 is nan"),
        (
            spoil(CLIP, np.zeros((120, 251), np.float32)),
            "000001.npy: expected frames x 263 floating-point numbers, found float32 of shape "
            "(120, 251)",
        ),
        (spoil(CLIP, np.zeros((120, 22, 3))), "expected frames x 263 floating-point numbers"),
        (spoil(CLIP, np.array([{"a": 1}], object)), "000001.npy is not a readable .npy file"),
        (spoil(CLIP, b"\x93NUMPY\x01\x00"), "000001.npy is not a readable .npy file"),
        (spoil(CLIP, b""), "000001.npy is not a readable .npy file"),
        (spoil(CLIP, b"PK\x03\x04 an archive"), "000001.npy is not a readable .npy file"),
        (spoil(CLIP, b"\x93NUMPY\x01\x00\x02\x00{\n"), "000001.npy is not a readable .npy file"),
        (
            spoil("texts/000001.txt", b"a man walks.\n"),
            "000001.txt, line 1: expected `caption#word/TAG word/TAG#from#to`, "
            "found 'a man walks.'",
        ),
        (spoil("texts/000001.txt", b"\na man#a/DET#zero#0.0\n"), "000001.txt, line 2: expected"),
        (
            spoil("texts/000001.txt", b"a man \xff\xfe#a/DET#0.0#0.0\n"),
            "000001.txt is not UTF-8 text",
        ),
        (spoil("test.txt", b"000006\n000001\n"), "test.txt: id 000001 is also in train.txt"),
        (
            lambda f: [spoil(f"{s}.txt", b"")(f) for s in ("train", "val", "test")],
            "test.txt name no clip",
        ),
        (lambda f: [p.unlink() for p in (f / "new_joint_vecs").iterdir()], "no clip to pack"),
    ],
)
def test_a_bad_layout_is_refused_with_one_sentence(layout, tmp_path, capsys, change, sentence):
    change(layout)
    assert sentence in refused(capsys, tmp_path, "humanml3d", layout)


def test_lengths_that_contradict_each_other_are_refused(layout, tmp_path, capsys):
    assert "--min-length must be at least 1 and below --max-length" in refused(
        capsys, tmp_path, "humanml3d", layout, "--min-length", 300
    )


def test_a_name_that_leads_elsewhere_and_an_output_that_is_a_folder_are_refused(
    layout, tmp_path, capsys
):
    assert "--name must be a plain word, found '../toy'" in refused(
        capsys, tmp_path, "humanml3d", layout, "--name", "../toy"
    )
    code, _, error = run(capsys, "humanml3d", layout, "--out", tmp_path)
    assert (
        code == 1
        and error == f"error: {tmp_path} is a folder; expected the name of a file to write.\n"
    )


def test_a_set_of_test_clips_only_is_packed(layout, tmp_path, capsys):
    for split in ("train", "val"):
        (layout / f"{split}.txt").write_text("")
    assert run(capsys, "humanml3d", layout, "--out", tmp_path / "a.pack")[::2] == (0, "")


def test_real_motion_capture_in_this_layout(shared, tmp_path, capsys):
    """Sixty clips of the real set: all of them arrive, unchanged."""
    archive = shared / "data" / "bandai" / "bandai_humanml3d.tar.gz"
    if not archive.exists():
        pytest.skip(f"NOT TESTED on real data: {archive} is absent")
    wanted = {f"{m}{n:06d}" for n in range(30) for m in ("", "M")}
    with tarfile.open(archive) as tar:
        for member in tar:
            stem, ext = os.path.splitext(os.path.basename(member.name))
            if (
                stem in wanted
                or ext == ".txt"
                and "/texts/" not in member.name
                or stem in ("Mean", "Std")
            ):
                tar.extract(member, tmp_path, filter="data")
    folder = tmp_path / "bandai_humanml3d"
    code, printed, _ = run(
        capsys,
        "humanml3d",
        folder,
        "--name",
        "bandai",
        "--min-length",
        24,
        "--out",
        tmp_path / "b.pack",
    )
    pack = Pack.open(str(tmp_path / "b.pack"))
    assert code == 0 and set(pack.ids) == wanted and "left out, without motion" in printed
    np.testing.assert_array_equal(
        pack.features(3),
        np.load(folder / "new_joint_vecs" / f"{pack.ids[3]}.npy").astype(np.float32),
    )
    assert os.path.getsize(pack.path) < 2.2 * 263 * pack.lengths.sum()  # stays float16
    heads = np.concatenate([pack.joints(i)[:, 15, 1] for i in range(10)])
    assert 1.2 < heads.mean() < 1.8


def test_the_published_lists_of_humanml3d_have_the_expected_lengths(shared, tmp_path, capsys):
    sample = shared / "data" / "humanml3d_sample"
    if not sample.is_dir():
        pytest.skip(f"NOT TESTED on HumanML3D's own files: {sample} is absent")
    folder = tmp_path / "HumanML3D"
    shutil.copytree(sample, folder)
    (folder / "texts").mkdir()
    (folder / "texts" / "012314.txt").write_text(
        "a person moves.#a/DET person/NOUN move/VERB#0.0#0.0\n"
    )
    code, printed, error = run(capsys, "humanml3d", folder, "--out", tmp_path / "a.pack")
    assert code == 0, error
    for line in printed.splitlines():
        assert "differs" not in line or line.startswith("test items")
    assert printed.count("29,228") == 2 and "without motion: 29,227" in printed
    pack = Pack.open(str(tmp_path / "a.pack"))
    assert pack.ids == ["012314"]
    np.testing.assert_allclose(
        pack.joints(0), np.load(folder / "new_joints" / "012314.npy"), atol=1e-5
    )


# --------------------------------------------------------------------------------------------------
# HumanAct12 and UESTC


def humanact12(lengths=(40, 60, 95), **changes):
    rng = np.random.default_rng(0)
    data = {
        "poses": [rng.normal(size=(t, 72)).astype(np.float32) for t in lengths],
        "joints3D": [rng.normal(size=(t, 24, 3)).astype(np.float32) for t in lengths],
        "y": list(range(len(lengths))),
    }
    return data | changes


def dump(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(data))
    return path.parent


def test_humanact12_becomes_25_rows_of_six_numbers(tmp_path, capsys):
    data = humanact12()
    data["poses"].append(np.full((70, 72), np.nan, np.float32))
    data["joints3D"].append(np.zeros((70, 24, 3), np.float32))
    data["poses"].append([])
    data["joints3D"].append([])
    data["y"] = [0, np.int64(8), 11, 3, 4]
    code, printed, _ = run(
        capsys,
        "humanact12",
        dump(tmp_path / "h" / "humanact12poses.pkl", data),
        "--out",
        tmp_path / "a.pack",
    )
    pack = Pack.open(str(tmp_path / "a.pack"))
    assert (
        code == 0
        and pack.lengths.tolist() == [60, 60, 95]
        and pack.labels.tolist() == [0, 8, 11]
        and pack.nfeats == 150
    )
    assert (
        pack.actions[8] == "turn steering wheel"
        and pack.action(2) == "throw"
        and len(pack.actions) == 12
        and set(pack.splits) == {"train"}
    )
    assert (
        "left out, not finite: 1 (0003)" in printed
        and "left out, empty: 1 (0004)" in printed
        and "1,191" in printed
    )
    rows = pack.features(0).reshape(60, 25, 6)
    matrices = motion.axis_angle_to_matrix(data["poses"][0].reshape(-1, 24, 3))
    np.testing.assert_allclose(rows[:40, :24], matrices[..., :2, :].reshape(40, 24, 6), atol=1e-5)
    roots = data["joints3D"][0][:, 0]
    np.testing.assert_allclose(rows[:40, 24], np.pad(roots - roots[0], ((0, 0), (0, 3))), atol=1e-6)
    # 40 frames, then the last pose stays
    np.testing.assert_array_equal(rows[40:], np.repeat(rows[39:40], 20, 0))
    bones = np.linalg.norm(pack.joints(2)[:, 4] - pack.joints(2)[:, 1], axis=-1)
    np.testing.assert_allclose(
        bones, np.linalg.norm(datasets.DEFAULT_REST[4] - datasets.DEFAULT_REST[1]), rtol=1e-4
    )


@pytest.mark.parametrize("form", ["J", "regressor", "npz"])
def test_rest_joints_of_an_smpl_file(tmp_path, form):
    joints = np.random.default_rng(0).normal(size=(24, 3))
    path = tmp_path / ("smpl.npz" if form == "npz" else "smpl.pkl")
    vertices = np.concatenate([joints, np.zeros((7, 3))])
    regressor = {"J_regressor": np.eye(24, 31), "v_template": vertices}
    if form == "npz":
        np.savez(path, **regressor)
    else:
        dump(path, {"J": joints} if form == "J" else regressor)
    np.testing.assert_allclose(datasets.rest_joints(str(path)), joints - joints[0])


def uestc(folder, names, lengths, poses=None, frames=None, actions=40):
    rng = np.random.default_rng(0)
    data = {
        "pose": poses or [rng.normal(size=(t, 72)) for t in lengths],
        "joints3d": [rng.normal(size=(t, 49, 3)) for t in lengths],
        "orig_cam": [rng.uniform(0.5, 1, size=(t, 4)) for t in lengths],
    }
    dump(folder / "vibe_cache_refined.pkl", data)
    (folder / "info").mkdir()
    (folder / "info" / "names.txt").write_text("".join(f"{name}_color.avi\n" for name in names))
    (folder / "info" / "num_frames_min.txt").write_text(
        "".join(f"{n}\n" for n in frames or lengths)
    )
    (folder / "info" / "action_classes.txt").write_text(
        "".join(f"action {n}\n" for n in range(actions))
    )
    return data


def test_uestc_is_split_by_person_and_turned_to_the_front(tmp_path, capsys):
    names = [
        "a0_d0_p001_c1",
        "a39_d2_p003_c2",
        "a5_d8_p002_c2",
        "a6_d3_p006_c1",
        "a7_d1_p118_c1",
        "a8_d0_p113_c1",
    ]
    folder = tmp_path / "u"
    data = uestc(folder, names, [80, 70, 90, 44, 20, 100], frames=[75, 99, 90, 44, 20, 100])
    code, printed, _ = run(capsys, "uestc", folder, "--out", tmp_path / "a.pack")
    pack = Pack.open(str(tmp_path / "a.pack"))
    assert code == 0 and pack.ids == [names[i] for i in (0, 1, 4, 5)] and pack.fps == 30
    assert (
        pack.splits == ["train", "test", "test", "train"]
        and pack.labels.tolist() == [0, 39, 7, 8]
        and pack.lengths.tolist() == [75, 70, 60, 100]
    )
    assert (
        "of view 8: 1 (a5_d8_p002_c2)" in printed
        and "shorter than 45 frames: 1 (a6_d3_p006_c1)" in printed
        and "25,600" in printed
    )
    # view 2 of the second camera: two eighths of a turn
    for item, source, turn in ((0, 0, 0), (1, 1, -np.pi / 2)):
        turned = motion.axis_angle_to_matrix(np.array([0, turn, 0]))
        rows = pack.features(item).reshape(-1, 25, 6)
        length = len(rows)
        pose = motion.axis_angle_to_matrix(data["pose"][source][:length].reshape(-1, 24, 3))
        np.testing.assert_allclose(
            rows[:, 0], (turned @ pose[:, 0])[:, :2].reshape(-1, 6), atol=1e-5
        )
        np.testing.assert_allclose(rows[:, 1:24], pose[:, 1:, :2].reshape(-1, 23, 6), atol=1e-5)
        scale, _, x, y = data["orig_cam"][source][:length].T
        path = data["joints3d"][source][:length, 8] + np.stack([x, y, 500 / (0.5 * 540 * scale)], 1)
        np.testing.assert_allclose(rows[:, 24, :3], (path - path[0]) @ turned.T, atol=1e-5)


class Trap:
    def __reduce__(self):
        return os.system, (f"touch {os.environ.get('NANOMLD_TRAP', 'nowhere')}",)


@pytest.mark.parametrize(
    "data, sentence",
    [
        ({"poses": []}, "has no joints3D; expected a pickled dict with poses, joints3D"),
        ([1, 2], "has no poses, joints3D"),
        (humanact12(()), "should be lists of the same length, found 0, 0"),
        (humanact12(y=[0]), "y should be 3 actions of 0..11, found 1"),
        (humanact12(y=5), "y should be 3 actions of 0..11, found 0"),
        (humanact12(poses=None), "should be lists of the same length, found 0, 3"),
        (
            humanact12(poses=[np.zeros((t, 2, 72)) for t in (40, 60, 95)]),
            "poses[0] should be some frames of (72,) numbers, found (40, 2, 72)",
        ),
        (
            humanact12(poses=[np.array(1.0)] * 3),
            "poses[0] should be some frames of (72,) numbers, found ()",
        ),
        (humanact12(y=[0, 1, 12]), "y should be 3 actions of 0..11, found 3 with 12"),
        (
            humanact12(joints3D=[np.zeros((t, 22, 3)) for t in (40, 60, 95)]),
            "joints3D[0] should be 40 frames of (24, 3) numbers, found (40, 22, 3)",
        ),
        (
            humanact12(joints3D=[np.zeros((t, 24, 3)) for t in (40, 60, 94)]),
            "joints3D[2] should be 95 frames of (24, 3) numbers, found (94, 24, 3)",
        ),
        (humanact12(poses=[[1.0], 2, 3]), "poses[0] should be"),
        (humanact12(poses=[np.array(["x"] * 72)[None]] * 3), "poses[0] should be"),
    ],
)
def test_a_bad_pickle_is_refused_with_one_sentence(tmp_path, capsys, data, sentence):
    assert sentence in refused(
        capsys, tmp_path, "humanact12", dump(tmp_path / "h" / "humanact12poses.pkl", data)
    )


def test_a_pickle_with_a_foreign_class_is_refused_and_nothing_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NANOMLD_TRAP", str(tmp_path / "ran"))
    error = refused(
        capsys,
        tmp_path,
        "humanact12",
        dump(tmp_path / "h" / "humanact12poses.pkl", humanact12(y=Trap())),
    )
    assert "humanact12poses.pkl" in error and "system" in error and not (tmp_path / "ran").exists()


def test_bad_uestc_folders_and_smpl_files_are_refused(tmp_path, capsys):
    uestc(tmp_path / "a", ["a0_d0_p001_c1", "jump"], [60, 60])
    assert "found 'jump_color.avi'" in refused(capsys, tmp_path, "uestc", tmp_path / "a")
    uestc(tmp_path / "b", ["a40_d0_p001_c1"], [60])
    assert "found 'a40_d0_p001_c1_color.avi'" in refused(capsys, tmp_path, "uestc", tmp_path / "b")
    uestc(tmp_path / "c", ["a0_d0_p001_c1"], [60], frames=["60", "61"])
    assert "1 names, 2 lengths and 1 poses" in refused(capsys, tmp_path, "uestc", tmp_path / "c")
    (tmp_path / "c" / "info" / "names.txt").unlink()
    assert "lacks names.txt" in refused(capsys, tmp_path, "uestc", tmp_path / "c")
    folder = dump(tmp_path / "h" / "humanact12poses.pkl", humanact12())
    assert "no.pkl is not a file; expected an SMPL body model" in refused(
        capsys, tmp_path, "humanact12", folder, "--smpl", tmp_path / "no.pkl"
    )
    for model in (
        {"J": np.zeros((23, 3))},
        {"J": np.full((24, 3), np.nan)},
        {"v_template": np.zeros(3)},
        [1],
    ):
        dump(tmp_path / "smpl.pkl", model)
        assert "is not an SMPL body model" in refused(
            capsys, tmp_path, "humanact12", folder, "--smpl", tmp_path / "smpl.pkl"
        )


# --------------------------------------------------------------------------------------------------
# BVH


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "bvh"
    (folder / "more").mkdir(parents=True)
    for name, frames in (("walk", 90), ("long walk", 450), ("short", 20), ("more/silent", 60)):
        bvh.write_bvh(folder / f"{name}.bvh", walking(frames, seed=frames), 20, exact=True)
    (tmp_path / "captions.txt").write_text(
        "# mine\nwalk: a man walks: left, then clockwise\nwalk.bvh\tthe figure glides\n\n"
        "long walk: someone walks\nshort: a step\n"
    )
    return folder


def test_bvh_files_become_clips_windows_and_mirrored_copies(recordings, tmp_path, capsys):
    code, printed, error = run(
        capsys,
        "bvh",
        recordings,
        "--captions",
        tmp_path / "captions.txt",
        "--name",
        "mine",
        "--mirror",
        "--out",
        tmp_path / "a.pack",
    )
    assert code == 0, error
    pack = Pack.open(str(tmp_path / "a.pack"))
    windows = [f"{m}long_walk_{n}" for n in range(3) for m in ("", "M")]
    assert (
        pack.ids == [*windows, "walk", "Mwalk"]
        and pack.lengths.tolist() == [150] * 2 + [149] * 2 + [150] * 2 + [89] * 2
    )
    assert [c.text for c in pack.captions(6)] == [
        "a man walks: left, then clockwise",
        "the figure glides",
    ]
    assert pack.captions(7)[0].text == "a man walks: right, then counterclockwise"
    assert (
        "left out, without caption: 1 (more/silent.bvh)" in printed
        and "left out, shorter than 40 frames: 1 (short)" in printed
    )
    for item, joints in (
        (6, walking(90, seed=90)),
        (7, motion.mirror_joints(walking(90, seed=90), motion.T2M)),
    ):
        want = motion.joints_to_features(joints, motion.T2M, motion.T2M_OFFSETS)
        # contacts flip at a threshold
        np.testing.assert_allclose(pack.features(item)[:, :-4], want[:, :-4], atol=2e-3)
    assert "all of them are in the train split" in printed and set(pack.splits) == {"train"}


def test_bvh_splits_are_drawn_by_name_and_keep_mirrored_copies_together(recordings):
    found = prepare.Found()
    captions = {f"{n}.bvh": ["walks"] for n in range(40)}
    for name in captions:
        (recordings / name).symlink_to(recordings / "walk.bvh")
    splits = {
        clip.id: clip.split
        for clip in datasets.read_bvhs(
            captions, str(recordings), found, min_length=40, max_length=60, mirror=True
        )
    }
    assert len(splits) == 160 and set(splits.values()) == {"train", "val", "test"}
    for n in range(40):
        assert len({splits[f"{mark}{n}_{window}"] for mark in ("", "M") for window in (0, 1)}) == 1
    assert 25 <= sum(splits[f"{n}_0"] == "train" for n in range(40)) <= 38


def test_recordings_in_which_nobody_moves_are_named_and_left_out(recordings, tmp_path, capsys):
    bvh.write_bvh(recordings / "short.bvh", np.repeat(walking(1), 90, axis=0), 20)
    code, printed, _ = run(
        capsys,
        "bvh",
        recordings,
        "--captions",
        tmp_path / "captions.txt",
        "--out",
        tmp_path / "a.pack",
    )
    assert (
        code == 0
        and "left out, all 90 frames are the same pose, and a motion must move: 1 (short)"
        in printed
    )
    assert "walk" in Pack.open(str(tmp_path / "a.pack")).ids
    (recordings / "walk.bvh").write_text((recordings / "walk.bvh").read_text() + "\n")
    with pytest.raises(ValueError, match="stale: .*walk.bvh has changed"):
        Pack.open(str(tmp_path / "a.pack"))


def test_sides_are_swapped_in_captions():
    for ours, theirs in (
        ("Left hand, leftwards", "Right hand, rightwards"),
        ("turns clockwise", "turns counterclockwise"),
        ("turns anti-clockwise to the right", "turns clockwise to the left"),
        ("a bright rightly lit man", "a bright rightly lit man"),
    ):
        assert datasets.swap_sides(ours) == theirs


@pytest.mark.parametrize(
    "captions, sentence",
    [
        (
            "a man walks\n",
            "captions.txt, line 1: expected `file name: caption` or `file name<TAB>caption`, "
            "found 'a man walks'",
        ),
        ("walk:\n", "captions.txt, line 1: expected"),
        ("# nothing\n\n", "captions.txt holds no caption"),
        ("walk: walks\nrun: runs\n", "captions.txt, line 2: there is no run.bvh in"),
        ("short: a step\n", "no clip to pack"),
        ("broken: falls\n", "broken.bvh"),
        ("strange: falls\n", "strange.bvh: its joints fit none of the known rigs"),
    ],
)
def test_bad_captions_and_recordings_are_refused_with_one_sentence(
    recordings, tmp_path, capsys, captions, sentence
):
    text = (recordings / "walk.bvh").read_text()
    (recordings / "broken.bvh").write_text(text[:len(text) // 2])
    (recordings / "strange.bvh").write_text(text.replace("Hand", "Claw"))
    (tmp_path / "captions.txt").write_text(captions)
    assert sentence in refused(
        capsys, tmp_path, "bvh", recordings, "--captions", tmp_path / "captions.txt"
    )


def test_missing_paths_of_bvh_are_refused(recordings, tmp_path, capsys):
    assert "no.txt is not a file" in refused(
        capsys, tmp_path, "bvh", recordings, "--captions", tmp_path / "no.txt"
    )
    assert "is not a folder" in refused(
        capsys, tmp_path, "bvh", tmp_path / "no", "--captions", tmp_path / "captions.txt"
    )
    assert "my.rig" in refused(
        capsys,
        tmp_path,
        "bvh",
        recordings,
        "--captions",
        tmp_path / "captions.txt",
        "--rig",
        tmp_path / "my.rig",
    )


# --------------------------------------------------------------------------------------------------
# The toy set: where its motions come from


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of the right form with two short files, and a toy.py that makes a clip of each."""
    path = tmp_path / "pybullet-3.2.7.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("a.txt", "10"), ("walker/b.txt", "20"), ("laikago.urdf", "no")):
            archive.writestr(prepare.MOTIONS + name, content)
        archive.writestr("pybullet_data/plane.txt", "no")

    def build(folder):
        names = sorted(
            os.path.relpath(os.path.join(top, f), folder)
            for top, _, files in os.walk(folder)
            for f in files
        )
        return [
            Clip(os.path.splitext(n)[0], [], action=n[0], joints=walking(40 + k))
            for k, n in enumerate(names)
        ]
    monkeypatch.setattr(toy_motions, "build", build)
    return path


def test_toy_comes_out_the_same_from_a_wheel_its_folder_and_pip(
    wheel, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        prepare, "MOTIONS_SHA256", hashlib.sha256(b"a.txt\x0010walker/b.txt\x0020").hexdigest()
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")

    def pip(command, **_):
        with open(os.path.join(command[command.index("--dest") + 1], wheel.name), "wb") as file:
            file.write(wheel.read_bytes())
        return types.SimpleNamespace(returncode=0, stderr="")
    monkeypatch.setattr(prepare.subprocess, "run", pip)
    (tmp_path / "unpacked" / prepare.MOTIONS / "laikago.urdf").unlink()
    for n, source in enumerate(
        ([wheel], [tmp_path / "unpacked"], [tmp_path / "unpacked" / prepare.MOTIONS], [])
    ):
        code, _, error = run(capsys, "toy", *source, "--out", tmp_path / f"{n}.pack")
        assert code == 0, error
    assert len({(tmp_path / f"{n}.pack").read_bytes() for n in range(4)}) == 1
    pack = Pack.open(str(tmp_path / "0.pack"))
    assert pack.ids == ["a", "walker/b"] and pack.actions == ["a", "w"] and pack.name == "toy"


def test_a_wrong_wheel_or_none_is_refused(wheel, tmp_path, capsys, monkeypatch):
    assert "does not hold the motions of pybullet 3.2.7 (2 files, checksum" in refused(
        capsys, tmp_path, "toy", wheel
    )
    (tmp_path / "text.whl").write_text("text")
    assert "text.whl is not a wheel" in refused(capsys, tmp_path, "toy", tmp_path / "text.whl")
    assert "is not a folder" in refused(capsys, tmp_path, "toy", tmp_path / "no.whl")
    monkeypatch.setattr(
        prepare.subprocess,
        "run",
        lambda *_, **__: types.SimpleNamespace(returncode=1, stderr="x\nno network\n"),
    )
    assert "pip could not fetch pybullet==3.2.7 (no network)" in refused(capsys, tmp_path, "toy")


# --------------------------------------------------------------------------------------------------
# Looking


def test_show_check_and_time(layout, tmp_path, capsys, monkeypatch):
    path = tmp_path / "a.pack"
    run(capsys, "humanml3d", layout, "--out", path)
    shown = {}
    player = render.write_player
    monkeypatch.setattr(
        render,
        "write_player",
        lambda out, motions: (player(out, motions), shown.update(motions=motions)),
    )
    page = tmp_path / "new" / "x.html"
    code, printed, _ = run(capsys, "show", path, "000001", "A_000006", "--out", page)
    first, second = shown["motions"]
    assert (
        code == 0
        and f"wrote {page}" in printed
        and "he turns" in page.read_text()
        and first["joints"].shape == (120, 22, 3)
        and second["joints"].shape == (50, 22, 3)
    )
    assert (
        first["caption"] == "a man # 000001 walks. / he stops"
        and first["fps"] == 20
        and first["contacts"].shape == (120, 4)
    )
    assert first["joints"][..., 1].min() == 0
    run(capsys, "show", path, "--out", page)  # without ids: the first four
    titles = [entry["title"] for entry in shown["motions"]]
    assert titles == [f"humanml3d {id}" for id in Pack.open(str(path)).ids[:4]]
    assert run(capsys, "check", path) == (0, f"{path}: 10 items, the checksum is right\n", "")
    code, printed, _ = run(capsys, "time", path, layout)
    assert (
        code == 0
        and "5 loose .npy and .txt files read" in printed
        and printed.count("times faster") == 2
    )
    code, _, error = run(capsys, "show", path, "000009")
    assert code == 1 and "has no item '000009'" in error
    path.write_bytes(path.read_bytes()[:-100])
    code, _, error = run(capsys, "check", path)
    assert code == 1 and "cut off" in error and "python prepare.py" in error


@pytest.mark.parametrize(
    "argv, code, sentence",
    [
        (
            ["humanml3d", "nowhere"],
            1,
            "error: nowhere is not a folder; give the folder of the dataset.\n",
        ),
        (
            ["show", "nothing", "000001"],
            1,
            "nothing.pack does not exist; make it with: python prepare.py",
        ),
        (["humanml3d"], 2, "the following arguments are required: folder"),
        (["dance"], 2, "invalid choice: 'dance'"),
        (["bvh", "."], 2, "the following arguments are required: --captions"),
    ],
)
def test_the_program_itself_exits_with_a_sentence(argv, code, sentence):
    done = program(*argv)
    assert done.returncode == code and sentence in done.stderr and "Traceback" not in done.stderr


def program(*argv, **options):
    command = [sys.executable, str(ROOT / "prepare.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_the_program_runs_from_another_folder(tmp_path):
    done = program("show", "toy", cwd=tmp_path)
    page = os.path.join("out", "toy.html")
    assert (done.returncode, done.stdout) == (0, f"wrote {page}\n"), done.stderr
    assert (tmp_path / page).stat().st_size > 10_000


def test_help_shows_the_commands_and_their_options():
    assert "python prepare.py bvh DIR --captions FILE" in program("--help").stdout
    done = program("kit", "--help")
    assert "--min-length" in done.stdout and "(24)" in done.stdout and done.returncode == 0
