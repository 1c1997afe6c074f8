"""prepare.py packs every kind of dataset right, and answers bad input with one sentence."""
import hashlib
import os
import pickle
import shutil
import tarfile
import types
import zipfile

import numpy as np
import pytest
import warm

import motion
import prepare
from conftest import ROOT
from formats import bvh, datasets, recordings
from formats.pack import Caption, Clip, Pack
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


def moving(frames, seed=0, skeleton=motion.T2M):
    """Features (frames, F) of a stiff figure that glides and sways, as a person could."""
    joints = walking(frames + 1, seed)
    if skeleton is motion.KIT:  # the same with its own joints, in millimetres
        joints, sway = np.zeros((frames + 1, 21, 3)), joints - joints[0]
        for j, parent in enumerate(motion.KIT.parents[1:], start=1):
            size = 400 if parent in (11, 12, 16, 17) else 120
            wide = 2 if "shoulder" in motion.KIT.joint_names[j] else 1
            joints[:, j] = joints[:, parent] + wide * size * motion.KIT.offsets_dir[j]
        joints += 1000 * sway[:, :21]
    return motion.joints_to_features(joints, skeleton).astype(np.float32)


@pytest.fixture
def layout(tmp_path):
    """A small dataset in HumanML3D's layout: seven ids that are listed, one that is not."""
    folder = tmp_path / "set"
    for name in ("new_joint_vecs", "texts"):
        (folder / name).mkdir(parents=True)
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
                moving(lengths.get(id, 120), seed=len(id) + int(id[-1])),
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
    for name in ("Mean.npy", "Std.npy"):
        np.save(layout / name, np.load(layout / name)[:251])
    for path in (layout / "new_joint_vecs").iterdir():
        np.save(path, moving(len(np.load(path)), skeleton=motion.KIT))
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
        (spoil("test.txt", b"000006\n000001\n"), "test.txt: id 000001 is also in train.txt"),
        (
            lambda f: [spoil(f"{s}.txt", b"")(f) for s in ("train", "val", "test")],
            "test.txt name no clip",
        ),
        (lambda f: [p.unlink() for p in (f / "new_joint_vecs").iterdir()],
         "the split lists and new_joint_vecs: 0 names are in both; 7 only in the split lists"),
        (spoil("train.txt", b"../000001\n"), "train.txt: '../000001' is not the name of a clip"),
        (spoil("val.txt", b"A_000001\n"), "name A_000001, which is also what a part of 000001"),
        (spoil("val.txt", "\u00e4\n".encode("cp1252")), "val.txt, line 1: this is not UTF-8 text"),
    ],
)
def test_a_bad_layout_is_refused_with_one_sentence(layout, tmp_path, capsys, change, sentence):
    change(layout)
    assert sentence in refused(capsys, tmp_path, "humanml3d", layout)


@pytest.mark.parametrize("change, sentence", [
    (spoil(CLIP, np.zeros((120, 251), np.float32)),
     "000001.npy: expected frames x 263 floating-point numbers, found float32 of shape (120, 251)"),
    (spoil(CLIP, np.zeros((120, 22, 3))), "expected frames x 263 floating-point numbers"),
    (spoil(CLIP, np.zeros((10**7, 0))), "found float64 of shape (10000000, 0)"),
    (spoil(CLIP, np.array([{"a": 1}], object)), "000001.npy is not a readable .npy file"),
    (spoil(CLIP, b"\x93NUMPY\x01\x00"), "000001.npy is not a readable .npy file"),
    (spoil(CLIP, b""), "000001.npy is not a readable .npy file"),
    (spoil(CLIP, b"PK\x03\x04 an archive"), "000001.npy is not a readable .npy file"),
    (spoil(CLIP, b"\x93NUMPY\x01\x00\x02\x00{\n"), "000001.npy is not a readable .npy file"),
    (spoil("texts/000001.txt", b"\na man#a/DET#zero#0.0\n"), "000001.txt, line 2: expected"),
    (spoil("texts/000001.txt", b"a man#a/DET#0.0\n"), "000001.txt, line 1: expected"),
    (spoil("texts/000001.txt", b"a\nman \xff\xfe#a/DET#0.0#0.0\n"),
     "000001.txt, line 2: this is not UTF-8 text; name its encoding with --encoding"),
])
def test_one_broken_file_is_named_and_the_others_are_packed(layout, tmp_path, capsys, change,
                                                            sentence):
    change(layout)
    code, printed, _ = run(capsys, "humanml3d", layout, "--out", tmp_path / "a.pack")
    assert code == 0 and "left out, cannot be used: 1\n    000001: " in printed
    assert sentence in printed
    assert "000001" not in Pack.open(str(tmp_path / "a.pack")).ids
    assert "1 of 7 cannot be used, and --strict allows none" in refused(
        capsys, tmp_path, "humanml3d", layout, "--strict")


def test_more_broken_files_than_good_ones_are_refused(layout, tmp_path, capsys):
    for id in ("000001", "000002", "000003", "000004"):
        (layout / "new_joint_vecs" / f"{id}.npy").write_bytes(b"")
    error = refused(capsys, tmp_path, "humanml3d", layout)
    assert "4 of 7 cannot be used, which is more than half. The first is 000001: " in error


def test_hidden_files_are_no_clips(layout, tmp_path, capsys):
    (layout / "new_joint_vecs" / "._000001.npy").write_bytes(b"\0\5\26\7")
    (layout / "texts" / "._000001.txt").write_bytes(b"\0\5\26\7")
    code, printed, _ = run(capsys, "humanml3d", layout, "--out", tmp_path / "a.pack")
    assert code == 0 and "._" not in printed


def test_captions_with_fewer_fields_are_taken_and_that_is_said(layout, tmp_path, capsys):
    (layout / "texts" / "000001.txt").write_text(
        "a man walks.\nplayer #1 walks\nhe stops##0.0#0.0\nhe turns#he/PRON turn/VERB\n")
    code, printed, _ = run(capsys, "humanml3d", layout, "--out", tmp_path / "a.pack")
    captions = Pack.open(str(tmp_path / "a.pack")).captions(0)
    assert code == 0 and [(c.text, c.tokens) for c in captions] == [
        ("a man walks.", ""), ("player #1 walks", ""), ("he stops", ""),
        ("he turns", "he/PRON turn/VERB")]
    assert printed.count("captions without tags") == 1


LOOSE = [
    ("positions", 1e6, "frame 7: positions hold 1e+06 (people: up to 10)"),
    ("root_linear_velocity", 3.6, "frame 7: root_linear_velocity hold 3.6 (people: up to 0.625)"),
    ("rotations", 40.0, "frame 7: rotations hold 40 (people: up to 1.5)"),
    ("velocities", -1e6, "frame 7: velocities hold 1e+06 (people: up to 1.25)"),
    ("contacts", 1e6, "frame 7: contacts hold 1e+06"),
    ("root_height", 9.0, "frame 7: root_height hold 9 (people: up to 6)"),
    ("root_angular_velocity", 3.0, "frame 7: root_angular_velocity hold 3 (people: up to 1.6)"),
]


@pytest.mark.parametrize("part, number, sentence", LOOSE)
def test_features_of_no_person_are_left_out_or_kept(layout, tmp_path, capsys, part, number,
                                                    sentence):
    path = layout / "new_joint_vecs" / "000001.npy"
    features = np.load(path)
    features[7, motion.FEATURE_SLICES(motion.T2M)[part].start] = number
    np.save(path, features)
    code, printed, _ = run(capsys, "humanml3d", layout, "--out", tmp_path / "a.pack")
    assert code == 0 and "no person can move like this (--keep takes it): 1\n" in printed
    assert f"    000001: {sentence}" in printed
    assert "000001" not in Pack.open(str(tmp_path / "a.pack")).ids
    run(capsys, "humanml3d", layout, "--keep", "--out", tmp_path / "b.pack")
    assert "000001" in Pack.open(str(tmp_path / "b.pack")).ids


@pytest.mark.parametrize("turn, sentence", [
    (lambda joints: joints[..., [0, 2, 1]] * (1, 1, -1),
     "warning: the head is above the feet in only 0 of 5 clips; does Y point up in this set?"),
    (lambda joints: joints * (-1, 1, 1), "warning: the toes point backwards in 5 of 5 clips; are "
                                         "left and right exchanged in this set?"),
    (lambda joints: joints, "")])
def test_a_set_that_lies_or_has_its_sides_exchanged_is_said(layout, tmp_path, capsys, turn,
                                                            sentence):
    for path in (layout / "new_joint_vecs").iterdir():
        frames = len(np.load(path)) + 1
        joints = turn(walking(frames))
        np.save(path, motion.joints_to_features(joints, motion.T2M).astype(np.float32))
    _, printed, _ = run(capsys, "humanml3d", layout, "--keep", "--out", tmp_path / "a.pack")
    assert sentence in printed and sentence.count("warning") == printed.count("clips; ")


def test_names_that_do_not_meet_are_counted_and_shown(layout, tmp_path, capsys):
    (layout / "texts" / "000002.txt").unlink()
    (layout / "texts" / "stranger.txt").write_text("a man walks.\n")
    code, printed, _ = run(capsys, "humanml3d", layout, "--out", tmp_path / "a.pack")
    assert code == 0
    assert ("warning: the split lists and new_joint_vecs: 7 names are in both; 2 only in "
            "new_joint_vecs (007975, M007975)") in printed
    assert ("warning: new_joint_vecs and texts: 6 names are in both; 1 only in new_joint_vecs "
            "(000002); 1 only in texts (stranger)") in printed
    for path in (layout / "texts").iterdir():
        path.rename(path.with_name("x" + path.name))
    assert "new_joint_vecs and texts: 0 names are in both" in refused(
        capsys, tmp_path, "humanml3d", layout)


def labels_of(layout, tmp_path, capsys, table):
    """-> (exit code, what was printed, {id: label})"""
    (tmp_path / "labels.csv").write_text(table)
    out = tmp_path / "a.pack"
    code, printed, error = run(capsys, "humanml3d", layout, "--actions", tmp_path / "labels.csv",
                               "--out", out)
    pack = Pack.open(str(out)) if code == 0 else None
    return code, printed + error, pack and {
        pack.ids[i]: pack.action(i) for i in range(len(pack)) if "_" not in pack.ids[i]}


@pytest.mark.parametrize("table", [
    "000001,walk\n000002,run\n000005,run\n000006,walk\n",  # no header
    "id,label\n000001.npy,walk\n000002.npy,run\n000005.npy,run\n000006.npy,walk\n",
    "id , label\n 000001 , walk \n000002\t,run\n000005,run  \n000006,walk\n",
])
def test_forms_of_action_tables_that_do_no_harm(layout, tmp_path, capsys, table):
    code, printed, labels = labels_of(layout, tmp_path, capsys, table)
    assert code == 0 and labels == {"000001": "walk", "M000001": "walk", "000002": "run",
                                    "000005": "run", "000006": "walk"}
    assert ("has no header line" in printed) == table.startswith("0")
    assert ("labels.csv and the split lists: 4 names are in both; "
            "2 only in the split lists") in printed


def test_action_tables_that_label_nothing_or_contradict_themselves_are_refused(
    layout, tmp_path, capsys
):
    code, said, _ = labels_of(layout, tmp_path, capsys, "id,label\n1,walk\n2,run\n")
    assert code == 1 and ("0 names are in both; 2 only in " in said and "(1, 2)" in said
                          and "(000001, 000002, 000003, ...)" in said and "zeros" in said)
    code, said, _ = labels_of(layout, tmp_path, capsys, "id,label\n000001,walk\n000001,run\n")
    assert code == 1 and "expected one label for 000001, found 000001,run" in said.replace("'", "")
    code, said, _ = labels_of(layout, tmp_path, capsys, 'id,label\n000001,"walk\n')
    assert code == 1 and "labels.csv is not a CSV file" in said


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
    (tmp_path / "file").write_text("kept")
    for out, said in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.pack", "is a file, no")):
        code, _, error = run(capsys, "join", "x", tmp_path / "absent.pack", "--out", out)
        assert code == 1 and said in error and "absent" not in error  # before anything is read


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
        (humanact12(poses=[[1.0], 2, 3]), "poses[0] should be"),
        (humanact12(poses=[np.array(["x"] * 72)[None]] * 3), "poses[0] should be"),
    ],
)
def test_a_bad_pickle_is_refused_with_one_sentence(tmp_path, capsys, data, sentence):
    assert sentence in refused(
        capsys, tmp_path, "humanact12", dump(tmp_path / "h" / "humanact12poses.pkl", data)
    )


def test_a_broken_sequence_of_a_pickle_is_named_and_the_others_are_packed(tmp_path, capsys):
    data = humanact12(joints3D=[np.zeros((t, 24, 3)) for t in (40, 60, 94)])
    code, printed, _ = run(capsys, "humanact12", dump(tmp_path / "h" / "humanact12poses.pkl", data),
                           "--out", tmp_path / "a.pack")
    assert code == 0 and len(Pack.open(str(tmp_path / "a.pack"))) == 2
    assert "joints3D[2] should be 95 frames of (24, 3) numbers, found (94, 24, 3)" in printed


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
    uestc(tmp_path / "d", ["a0_d0_p001_c1"] * 2, [60, 60])
    assert "a0_d0_p001_c1 is there twice" in refused(capsys, tmp_path, "uestc", tmp_path / "d")
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
def tapes(tmp_path):
    folder = tmp_path / "bvh"
    (folder / "more").mkdir(parents=True)
    for name, frames in (("walk", 90), ("long walk", 450), ("short", 20), ("more/silent", 60)):
        bvh.write_bvh(folder / f"{name}.bvh", walking(frames, seed=frames), 20, exact=True)
    (tmp_path / "captions.txt").write_text(
        "# mine\nwalk: a man walks: left, then clockwise\nwalk.bvh\tthe figure glides\n\n"
        "long walk: someone walks\nshort: a step\n"
    )
    return folder


def test_bvh_files_become_clips_windows_and_mirrored_copies(tapes, tmp_path, capsys):
    code, printed, error = run(
        capsys,
        "bvh",
        tapes,
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


def test_bvh_splits_are_drawn_by_name_and_keep_mirrored_copies_together(tapes):
    folder = tapes
    found = prepare.Found()
    captions = {f"{n}.bvh": [recordings.Window(captions=[Caption("walks")])] for n in range(40)}
    for name in captions:
        (tapes / name).symlink_to(tapes / "walk.bvh")
    splits = {
        clip.id: clip.split
        for clip in recordings.read_bvhs(
            captions, str(folder), found, min_length=40, max_length=60, mirror=True
        )
    }
    assert len(splits) == 160 and set(splits.values()) == {"train", "val", "test"}
    for n in range(40):
        assert len({splits[f"{mark}{n}_{window}"] for mark in ("", "M") for window in (0, 1)}) == 1
    assert 25 <= sum(splits[f"{n}_0"] == "train" for n in range(40)) <= 38


def test_recordings_in_which_nobody_moves_are_named_and_left_out(tapes, tmp_path, capsys):
    bvh.write_bvh(tapes / "short.bvh", np.repeat(walking(1), 90, axis=0), 20)
    code, printed, _ = run(
        capsys,
        "bvh",
        tapes,
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
    (tapes / "walk.bvh").write_text((tapes / "walk.bvh").read_text() + "\n")
    with pytest.raises(ValueError, match="stale: .*walk.bvh has changed"):
        Pack.open(str(tmp_path / "a.pack"))


# Recordings as others have reported them; tests/cases holds a walk at 120 frames a second, the same
# with the root lost for three frames, and one with Z, Y and -Y up.
CASES = ROOT / "tests" / "cases"
WALK = (CASES / "walk.bvh").read_text()


def pack_of(tmp_path, capsys, files, *options, captions=None):
    """Pack {name: text or bytes} -> (exit code, what was printed, the pack or None)"""
    folder = tmp_path / "recordings"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(content)
    lines = captions or "".join(f"{name}: a man walks\n" for name in files)
    lines = lines.encode() if isinstance(lines, str) else lines
    (tmp_path / "captions.txt").write_bytes(lines)
    code, printed, error = run(capsys, "bvh", folder, "--captions", tmp_path / "captions.txt",
                               "--min-length", 20, *options, "--out", tmp_path / "c.pack")
    return code, printed + error, Pack.open(str(tmp_path / "c.pack")) if code == 0 else None


def frames_of(text):
    """-> the lines of a BVH file up to its frames, and those of its frames"""
    head, frames = text.rstrip("\n").split("Frame Time: ")
    seconds, *rows = frames.split("\n")
    return f"{head}Frame Time: {seconds}\n", rows


def first_frames(text, count, change=lambda rows: rows):
    head, rows = frames_of(text)
    rows = change(rows[:count])
    return head.replace("Frames: 600", f"Frames: {len(rows)}") + "\n".join(rows) + "\n"


T_POSE = " ".join(["0", "95", "0"] + ["0"] * 66)


@pytest.mark.parametrize("rests, before, after", [(1, 1, 0), (5, 5, 0), (3, 0, 3), (0, 0, 0)])
def test_a_rest_pose_far_away_is_left_out_and_said(tmp_path, capsys, rests, before, after):
    clean = pack_of(tmp_path, capsys, {"walk.bvh": WALK})[2].features(0)
    text = first_frames(WALK, 600, lambda rows: [T_POSE] * before + rows + [T_POSE] * after)
    code, said, pack = pack_of(tmp_path, capsys, {"walk.bvh": text})
    assert code == 0
    np.testing.assert_allclose(pack.features(0)[:, :-4], clean[:, :-4], atol=1e-5)
    place = "before" if before else "after"
    line = f"a rest pose {place} the motion is left out: 1 (walk.bvh: {rests} frames)"
    assert (line in said) == bool(rests) and ("rest pose" in said) == bool(rests)
    _, said, pack = pack_of(tmp_path, capsys, {"walk.bvh": text}, "--keep")
    assert len(pack.features(0)) == (600 + rests - 1) // 6 and "rest pose" not in said


def test_a_rest_pose_in_the_same_place_is_left_out(tmp_path, capsys):
    """Only the arms jump; the person stands where the walk begins."""
    text = first_frames(WALK, 600, lambda rows: [
        " ".join(rows[0].split()[:6] + ["0"] * 63)] + rows)
    _, said, _ = pack_of(tmp_path, capsys, {"walk.bvh": text})
    assert "a rest pose before the motion is left out: 1 (walk.bvh: 1 frames)" in said


def test_lost_tracking_is_named_with_its_frame_and_can_be_kept(tmp_path, capsys):
    lost = (CASES / "dropout.bvh").read_text()
    files = {"lost.bvh": lost, "walk.bvh": WALK}
    code, said, pack = pack_of(tmp_path, capsys, files)
    assert code == 0 and pack.ids == ["walk"]
    assert "no person can move like this (--keep takes it): 1\n" in said
    assert "    lost: lost.bvh, frame 40: " in said
    assert "pelvis moves at" in said and "m/s (people: up to 12.5)" in said
    assert pack_of(tmp_path, capsys, files, "--strict")[0] == 1
    _, said, pack = pack_of(tmp_path, capsys, files, "--keep")
    assert pack.ids == ["lost", "walk"] and "no person" not in said
    heights = pack.features(0)[:, 3]  # of the pelvis; the floor is not where the body fell to
    assert 0.9 < np.median(heights) < 1.05
    code, said, _ = pack_of(tmp_path, capsys, {"lost.bvh": lost, "walk.bvh": lost})
    assert code == 1 and "2 of 2 cannot be used, which is more than half (--keep packs" in said


@pytest.mark.parametrize("lost, left", [
    ([300], [0, 1, 3, 4]), ([200, 300], [0, 3, 4]), ([100, 200, 300], None)])
def test_only_the_windows_with_lost_tracking_are_left_out(tmp_path, capsys, lost, left):
    def lose(rows):
        for frame in lost:
            rows[frame] = " ".join(["0", "0", "0"] + rows[frame].split()[3:])
        return rows
    code, said, pack = pack_of(tmp_path, capsys, {"walk.bvh": first_frames(WALK, 600, lose)},
                               "--min-length", 10, "--max-length", 21)
    assert f"walk.bvh, frame {lost[0]}: pelvis moves at" in said
    if left is None:
        assert code == 1 and "3 of 5 cannot be used, which is more than half" in said
    else:
        assert pack.ids == [f"walk_{number}" for number in left]


def test_names_of_files_that_are_no_text_can_be_printed(tmp_path, capsys):
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff\x1b[31m.bvh")).write_text(WALK)
    code, said, _ = pack_of(tmp_path, capsys, {"walk.bvh": WALK}, captions="walk: walks\n")
    assert code == 0 and "left out, without caption: 1 (??[31m.bvh)" in said


@pytest.mark.parametrize("name, unit, up", [
    ("y_up", "m", "y"), ("z_up", "m", "z"), ("y_down", "cm", "-y")])
def test_the_axis_that_points_up_is_found_from_the_body(tmp_path, capsys, name, unit, up):
    text = (CASES / f"{name}.bvh").read_text()
    code, said, pack = pack_of(tmp_path, capsys, {"a.bvh": text})
    assert code == 0 and f"read with {unit} as the unit, {up} up, 30 frames a second: 1" in said
    want = pack_of(tmp_path, capsys, {"a.bvh": (CASES / "y_up.bvh").read_text()})[2].features(0)
    np.testing.assert_allclose(pack.features(0)[:, :-4], want[:, :-4], atol=2e-3)


def lying(frames):
    """Somebody on the back along Z, Y up, who only sways."""
    rows = walking(frames) - walking(frames)[:, :1] * (0, 0, 1)
    return rows[..., [0, 2, 1]] * (1, -1, 1)


def test_somebody_who_lies_is_decided_by_the_other_recordings_or_by_the_user(tmp_path, capsys):
    for name, joints in (("lies", lying(90)), ("walks", walking(90))):
        bvh.write_bvh(tmp_path / f"{name}.bvh", joints, 20)
    lies, walks = ((tmp_path / f"{name}.bvh").read_text() for name in ("lies", "walks"))
    code, said, _ = pack_of(tmp_path, capsys, {"lies.bvh": lies})
    assert code == 1
    assert "is somebody lying there, or does z point up? Give --up=y or --up=z" in said
    (tmp_path / "recordings" / "lies.bvh").unlink()
    code, said, pack = pack_of(tmp_path, capsys, {"lies.bvh": lies, "walks.bvh": walks})
    assert code == 0 and len(pack) == 2
    assert "somebody lies there: y is taken to point up, as in most other recordings: 1" in said
    assert pack.joints(pack.index("lies"))[..., 1].max() < 0.6
    for up, high in (("y", 0.6), ("z", 2.0)):
        _, said, pack = pack_of(tmp_path, capsys, {"lies.bvh": lies}, f"--up={up}",
                                captions="lies: lies\n")
        assert ("with --up=y the head is beside or below the feet" in said) == (up == "y")
        assert high - 0.7 < pack.joints(0)[..., 1].max() < high


def test_left_handed_coordinates_are_turned_round_and_that_is_said(tmp_path, capsys):
    joints = walking(90) * (-1, 1, 1)  # the left hand is on the right side
    bvh.write_bvh(tmp_path / "a.bvh", joints, 20, exact=True)
    _, said, pack = pack_of(tmp_path, capsys, {"a.bvh": (tmp_path / "a.bvh").read_text()})
    assert "left and right are exchanged (left-handed coordinates); x is turned round: 1" in said
    want = motion.joints_to_features(walking(90), motion.T2M, motion.T2M_OFFSETS)
    np.testing.assert_allclose(pack.features(0)[:, :-4], want[:, :-4], atol=2e-3)


@pytest.mark.parametrize("seconds, sentence", [
    ("0.041667", "at 24 frames a second, people walk too slowly: one step of 0.67 m every 2.79 s. "
                 "Give the true rate, perhaps --fps 120, or --keep"),
    ("0.002", "at 500 frames a second, people walk too quickly: one step of 0.67 m every 0.13 s. "
              "Give the true rate, perhaps --fps 120, or --keep"),
])
def test_a_wrong_frame_time_is_found_by_the_pace(tmp_path, capsys, seconds, sentence):
    text = WALK.replace("0.008333", seconds)
    code, said, _ = pack_of(tmp_path, capsys, {"walk.bvh": text})
    assert code == 1 and sentence in said
    pack = pack_of(tmp_path, capsys, {"walk.bvh": text}, "--fps", 120)[2]
    want = pack_of(tmp_path, capsys, {"walk.bvh": WALK})[2]
    np.testing.assert_allclose(pack.features(0), want.features(0), atol=1e-5)
    code, said, _ = pack_of(tmp_path, capsys, {"walk.bvh": text}, "--fps", 0)
    assert code == 1 and "--fps must be 2 to 1000" in said
    code, said, _ = pack_of(tmp_path, capsys, {"walk.bvh": WALK.replace("0.008333", "8.333")})
    assert code == 1 and "0.120005 frames a second cannot be; give the true rate with --fps" in said


def test_one_unreadable_recording_is_named_and_the_others_are_packed(tmp_path, capsys):
    short, long = (WALK.replace("Frames: 600", f"Frames: {n}") for n in (599, 601))
    files = {"a.bvh": WALK, "b.bvh": WALK, "long.bvh": long, "short.bvh": short}
    files |= {"._a.bvh": b"\0\1", ".hidden/a.bvh": WALK}
    captions = "".join(f"{name}: a man walks\n" for name in ("a", "b", "long", "short"))
    code, said, pack = pack_of(tmp_path, capsys, files, captions=captions)
    assert code == 0 and pack.ids == ["a", "b"] and "._" not in said and ".hidden" not in said
    assert "left out, cannot be used: 2\n    long.bvh: " in said
    assert "says 601 frames of 69" in said and "\n    short.bvh: " in said
    code, said, _ = pack_of(tmp_path, capsys, files, "--strict", captions=captions)
    assert code == 1 and "2 of 4 cannot be used, and --strict allows none" in said


def test_captions_and_recordings_that_do_not_meet_are_counted(tmp_path, capsys):
    files = {f"{name}.bvh": WALK for name in "abcde"}
    code, said, pack = pack_of(tmp_path, capsys, files, captions="a: walks\nx: x\n../b: up\n")
    assert code == 0 and pack.ids == ["a"]
    assert ": 1 names are in both; 2 only in " in said and "(x, ../b)" in said
    assert "4 only in " in said and "(b.bvh, c.bvh, d.bvh, ...)" in said and "warning: " in said
    assert "left out, without caption: 4 (b.bvh, c.bvh, d.bvh, e.bvh)" in said
    code, said, _ = pack_of(tmp_path, capsys, files, captions="x: walks\n")
    assert code == 1 and ": 0 names are in both; 1 only in " in said


@pytest.mark.parametrize("line", [
    "sub/take: he walks: left", "sub\\take.bvh: he walks: left", "sub/take\the walks: left",
    "sub/take:he walks: left", "./sub/take.bvh :  he walks: left"])
def test_forms_of_a_line_of_captions(tmp_path, capsys, line):
    code, said, pack = pack_of(tmp_path, capsys, {"sub/take.bvh": WALK}, captions=line + "\n")
    assert code == 0 and pack.ids == ["sub/take"]
    assert pack.captions(0)[0].text == "he walks: left"


def test_a_tab_in_a_caption_is_a_blank(tmp_path, capsys):
    pack = pack_of(tmp_path, capsys, {"a.bvh": WALK}, captions="a: he walks\tthen stops\n")[2]
    assert pack.captions(0)[0].text == "he walks then stops"


@pytest.mark.parametrize("files, options, ids", [
    (["walk 1", "walk_1"], [], {"walk 1", "walk_1"}),
    (["Mwalk", "walk"], ["--mirror"], {"Mwalk", "MMwalk", "walk", "Mwalk_"}),
    (["walk", "walk_0"], ["--max-length", 60], {"walk_0_", "walk_1", "walk_0_0", "walk_0_1"}),
    (["walk", "walk_1"], ["--max-length", 60], {"walk_0", "walk_1_", "walk_1_0", "walk_1_1"}),
])
def test_ids_that_would_be_the_same_are_made_different(tmp_path, capsys, files, options, ids):
    code, said, pack = pack_of(tmp_path, capsys, {f"{name}.bvh": WALK for name in files}, *options)
    assert code == 0, said
    assert set(pack.ids) == ids
    assert ("called differently" in said) == any(id.endswith("_") for id in ids)


RIG = (CASES / "rig-utf8.txt").read_text(encoding="utf-8")
CHINESE = (CASES / "chinese.bvh").read_text(encoding="utf-8") + "MOTION" + WALK.split("MOTION")[1]


@pytest.mark.parametrize("encoding, option", [
    ("utf-8", None), ("utf-8-sig", None), ("utf-16", None), ("gbk", "gbk"), ("utf-8", "gbk"),
    ("utf-16-le", "utf-16-le"), ("utf-16", "gbk")])
def test_every_text_file_may_be_in_any_encoding(tmp_path, capsys, encoding, option):
    (tmp_path / "rig.txt").write_bytes(RIG.encode(encoding))
    options = ["--rig", tmp_path / "rig.txt", *(["--encoding", option] if option else [])]
    code, said, pack = pack_of(tmp_path, capsys, {"a.bvh": CHINESE.encode(encoding)}, *options,
                               captions="a: 一个人走路\n".encode(encoding))
    assert code == 0, said
    assert pack.captions(0)[0].text == "一个人走路"


def test_text_that_cannot_be_read_is_named_with_file_and_line(tmp_path, capsys):
    (tmp_path / "rig.txt").write_text(RIG, encoding="utf-8")
    gbk = CASES / "rig-gbk.txt"
    bvhs = {"a.bvh": CHINESE.encode("gbk")}
    what = "text; name its encoding with --encoding, for example --encoding gbk or cp1252."
    for options, captions, sentence in (
        (["--rig", gbk], None, f"rig-gbk.txt, line 1: this is not UTF-8 {what}"),
        (["--rig", tmp_path / "rig.txt"], None, f"a.bvh, line 2: this is not UTF-8 {what}"),
        ([], b"# mine\na: \xff walks\n", f"captions.txt, line 2: this is not UTF-8 {what}"),
        ([], "# \na: walks\n".encode("utf-16-le"), f"line 1: this is not UTF-8 {what}"),
        (["--encoding", "ascii"], b"a: \xff", f"line 1: this is not UTF-8 or ASCII {what}"),
        (["--encoding", "klingon"], b"a: \xff", "--encoding klingon: there is no such text"),
        (["--encoding", "base64"], b"a: \xff", "--encoding base64: there is no such text"),
    ):
        code, said, _ = pack_of(tmp_path, capsys, bvhs, *options, captions=captions)
        assert code == 1 and sentence in said, said


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
        ("run: runs\n", "0 names are in both; 1 only in "),
        ("../bvh/walk: walks\n", "0 names are in both"),
        (f"walk{' ' * 100_000}\n", "captions.txt, line 1: expected"),
        ("short: a step\n", "no clip to pack"),
        ("broken: falls\n", "broken.bvh"),
        ("strange: falls\n", "strange.bvh: its joints fit none of the known rigs"),
    ],
)
def test_bad_captions_and_recordings_are_refused_with_one_sentence(
    tapes, tmp_path, capsys, captions, sentence
):
    text = (tapes / "walk.bvh").read_text()
    (tapes / "broken.bvh").write_text(text[:len(text) // 2])
    (tapes / "strange.bvh").write_text(text.replace("Hand", "Claw"))
    (tmp_path / "captions.txt").write_text(captions)
    assert sentence in refused(
        capsys, tmp_path, "bvh", tapes, "--captions", tmp_path / "captions.txt"
    )


def test_missing_paths_of_bvh_are_refused(tapes, tmp_path, capsys):
    assert "no.txt is not a file" in refused(
        capsys, tmp_path, "bvh", tapes, "--captions", tmp_path / "no.txt"
    )
    assert "is not a folder" in refused(
        capsys, tmp_path, "bvh", tmp_path / "no", "--captions", tmp_path / "captions.txt"
    )
    assert "my.rig" in refused(
        capsys,
        tmp_path,
        "bvh",
        tapes,
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

    def build(folder, times=1, sequences=None):
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


@pytest.mark.parametrize("words, message", [
    ("--times 0 --name big", "must be at least 1, found 0"),
    ("--sequences 0 --name big", "must be at least 1, found 0"),
    ("--times 2", "needs a --name of its own"), ("--sequences 2", "needs a --name of its own")])
def test_a_larger_toy_set_has_its_own_name(wheel, capsys, words, message):
    assert prepare.main(["toy", str(wheel), *words.split()]) == 1
    assert message in capsys.readouterr().err


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
    return warm.run(ROOT / "prepare.py", *argv, **options)


def test_the_program_runs_from_another_folder(tmp_path):
    done = program("show", "toy", cwd=tmp_path)
    page = os.path.join("out", "toy.html")
    assert (done.returncode, done.stdout) == (0, f"wrote {page}\n"), done.stderr
    assert (tmp_path / page).stat().st_size > 10_000


def test_help_shows_the_commands_and_their_options():
    assert "python prepare.py bvh DIR --captions FILE" in program("--help").stdout
    done = program("kit", "--help")
    assert "--min-length" in done.stdout and "(24)" in done.stdout and done.returncode == 0


def test_a_train_list_that_meets_nothing_is_refused(layout, tmp_path, capsys):
    """Its names lost their zeros, those of val.txt did not: half a set must not pass for one."""
    folder = layout
    names = (folder / "train.txt").read_text().split()
    (folder / "train.txt").write_text("\n".join("9" + name for name in names) + "\n")
    said = refused(capsys, tmp_path, "humanml3d", folder)
    assert "none of train.txt's names is in new_joint_vecs" in said


def test_a_number_that_is_broken_is_named_with_its_frame(tmp_path, capsys):
    bvh.write_bvh(tmp_path / "a.bvh", walking(90), 20)
    lines = (tmp_path / "a.bvh").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Frame Time")) + 1
    lines[first + 4] = "1e300 " + lines[first + 4].split(" ", 1)[1]
    (tmp_path / "captions.txt").write_text("a: a man walks\n")
    (tmp_path / "a.bvh").write_text("\n".join(lines) + "\n")
    said = refused(capsys, tmp_path, "bvh", tmp_path, "--captions", tmp_path / "captions.txt",
                   "--name", "x")
    assert "frame 4: a joint is" in said
