"""BVH files are read right (by hand, an independent reader, real capture) and fitted."""
import csv
import io
import re
import tarfile
import time

import numpy as np
import pytest
import torch

from formats import bvh, rigs
from formats.bvh import read_bvh
from formats.rigs import RIGS, find_rig, read_table, resample, to_t2m_joints
from motion import (
    T2M,
    T2M_OFFSETS,
    axis_angle_to_matrix,
    canonical_joints,
    features_to_joints,
    forward_kinematics,
)

SMALL = """HIERARCHY
ROOT hip
{
  OFFSET 9 9 9
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT knee
  {
    OFFSET 0 -4 0
    CHANNELS 3 Yrotation Zrotation Xrotation
    End Site
    {
      OFFSET 0 -3 0
    }
  }
}
MOTION
Frames: 2
Frame Time: 0.033333
1 2 3 0 0 0 0 0 0
1 2 3 90 0 0 0 0 90
"""


def write(folder, text, name="clip.bvh"):
    path = folder / name
    path.write_bytes(text.encode())
    return path


def dancing(frames=40, seed=0, stretch=0.0):
    """A body that turns every joint smoothly and a lot, walks about and turns over; `stretch`
    metres of noise on all joints."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, frames)[:, None, None]
    angles = sum(
        np.sin(2 * np.pi * (k * time + rng.random((22, 3)))) * rng.normal(0, 0.6, (22, 3))
        for k in (1, 2)
    )
    root = np.concatenate([time[:, 0] * 2, 1 + 0 * time[:, 0], time[:, 0]], axis=1)
    joints = forward_kinematics(axis_angle_to_matrix(angles), root, T2M_OFFSETS, T2M.parents)
    return joints + rng.normal(0, 1, joints.shape) * stretch


def independent(path):
    """(T, joints without End Sites, 3), in the order of the file, from the reader and kinematics
    of the package bvhio."""
    bvhio = pytest.importorskip(
        "bvhio", reason="NOT TESTED against an independent reader: pip install bvhio"
    )
    root = bvhio.readAsHierarchy(str(path))
    last = root.getKeyframeRange()[1]
    return np.array(
        [
            [list(joint.PositionWorld) for joint, _, _ in root.loadPose(frame).layout()]
            for frame in range(last + 1)
        ]
    )


# --------------------------------------------------------------------------------------------------
# Reading


def test_hand_computed_pose(tmp_path):
    clip = read_bvh(write(tmp_path, SMALL))
    assert (
        clip.names == ("hip", "knee", "knee_end") and clip.parents == (-1, 0, 1) and clip.fps == 30
    )
    np.testing.assert_allclose(clip.joints[0], [[1, 2, 3], [1, -2, 3], [1, -5, 3]], atol=1e-12)
    # the root turns by 90 degrees about Z: the thigh points to +X; the knee by 90 about its own
    # X: the shin points to -Z
    np.testing.assert_allclose(clip.joints[1], [[1, 2, 3], [5, 2, 3], [5, 2, 0]], atol=1e-12)
    np.testing.assert_array_equal(clip.offsets, [[9, 9, 9], [0, -4, 0], [0, -3, 0]])


@pytest.mark.parametrize("change", [
    lambda s: s.replace("\n", "\r\n"),
    lambda s: s.replace("  ", "\t").replace(": ", ":\t"),
    lambda s: "\ufeff" + s.replace("\n{", " {").replace("OFFSET 0", "\n OFFSET  0.0"),
    lambda s: s.rstrip("\n").replace("HIERARCHY", "Hierarchy"),
    lambda s: s.replace("0 0 0 0 0 0\n", "0 0 0 0 0 0 \n\n"),
    lambda s: s.replace("knee", "left knee"),
])
def test_layout_of_the_text_does_not_matter(tmp_path, change):
    expected = read_bvh(write(tmp_path, SMALL)).joints
    np.testing.assert_array_equal(
        read_bvh(write(tmp_path, change(SMALL), "b.bvh")).joints, expected
    )


def test_any_channels_against_an_independent_reader(tmp_path):
    rng = np.random.default_rng(1)
    orders = [
        "Zrotation Xrotation Yrotation",
        "Xrotation Yrotation Zrotation",
        "Yrotation Zrotation Xrotation",
    ]
    lines, pad = ["HIERARCHY"], ""
    for i, kind in enumerate(["ROOT", "JOINT", "JOINT", "JOINT"]):
        position = "Xposition Yposition Zposition " if i != 2 else ""
        lines += [
            f"{pad}{kind} j{i}",
            pad + "{",
            f"{pad} OFFSET 1 2.5 -3e-1",
            f"{pad} CHANNELS {6 if position else 3} {position}{orders[i % 3]}",
        ]
        pad += "\t"
    lines += (
        ["End Site", "{", "OFFSET 0 1 0", "}"]
        + ["}"] * 4
        + ["MOTION", "Frames: 7", "Frame Time: 0.01"]
    )
    lines += [" ".join(f"{x:.4f}" for x in rng.uniform(-180, 180, 21)) for _ in range(7)]
    path = write(tmp_path, "\n".join(lines) + "\n")
    # bvhio counts in float32
    np.testing.assert_allclose(read_bvh(path).joints[:, :4], independent(path), atol=2e-3)


@pytest.mark.parametrize(
    "seconds, fps",
    [
        ("0.0333333", 30),
        ("0.033333", 30),
        (".0083333", 120),
        ("0.00833", 120),
        ("0.016667", 60),
        ("0.05", 20),
        ("0.0333667", 1 / 0.0333667),
    ],
)
def test_frame_rate(tmp_path, seconds, fps):
    assert read_bvh(write(tmp_path, SMALL.replace("0.033333", seconds))).fps == pytest.approx(
        fps, rel=1e-9
    )


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda s: "", "not a BVH file"),
        (lambda s: "PK\x03\x04 some zip", "not a BVH file"),
        (lambda s: s[: s.index("MOTION")], "not a BVH file"),
        (lambda s: s[:-20], "truncated: the header says 2 frames of 9 numbers, but there are 1"),
        (lambda s: s[: s.index("1 2 3")], "truncated: .*, but there are 0"),
        (lambda s: s + "1 2 3 0 0 0 0 0 0\n", "too long: .*, but there are 3"),
        (
            lambda s: s.replace("1 2 3 0 0 0 0 0 0", "1 2 3 0 0 0 0 0"),
            "2 frames of 9 numbers, but frame 0 has 8",
        ),
        (lambda s: s.replace("1 2 3 90", "1 nan 3 90"), "frame 1, channel 1 is nan"),
        (lambda s: s.replace("1 2 3 90", "1 2 inf 90"), "frame 1, channel 2 is inf"),
        (lambda s: s.replace("1 2 3 90", "1 two 3 90"), "not a number .*two"),
        (lambda s: s.replace("Frames: 2", "Frames: 0"), "at least one frame"),
        (lambda s: s.replace("0.033333", "0"), "expected 'Frames: N' and 'Frame Time"),
        (lambda s: s.replace("0.033333", "fast"), "Frame Time: fast"),
        (lambda s: s.replace("Frames: 2", "2 frames"), "expected 'Frames: N'"),
        (lambda s: s.replace("Yrotation Zrotation Xrotation", "Zrotation Zrotation Zrotation"),
         "near line 9: .*CHANNELS 3"),
        (lambda s: s.replace("MOTION", "ROOT b\n{\n}\nMOTION", 1), "cannot make sense of 'ROOT b'"),
        (lambda s: s.replace("CHANNELS 3", "CHANNELS 4"), "near line 9: .*CHANNELS 4"),
        (lambda s: s.replace("OFFSET 0 -4 0", "OFFSET 0 -4"), "near line 8: .*OFFSET"),
        (lambda s: s.replace("OFFSET 0 -4 0", "OFFSET 0 -4 e"), "near line 8: .*OFFSET"),
        (lambda s: s.replace("OFFSET 0 -4 0", "OFFSET 0 nan 0"), "near line 8: .*OFFSET"),
        (lambda s: s.replace("End Site", "Ende"), "near line 10: .*Ende"),
        (lambda s: s.replace("}\nMOTION", "MOTION"), "unclosed"),
        (lambda s: s.replace("ROOT hip", ""), "cannot make sense"),
    ],
)
def test_broken_files_are_refused_in_one_sentence(tmp_path, change, says):
    path = write(tmp_path, change(SMALL))
    with pytest.raises(ValueError, match=says) as error:
        read_bvh(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


FRAME = "1 2 3 0 0 0 0 0 0\n"


def nested(n, kind="JOINT knee"):
    """n joints, each inside the one before it."""
    opened = f"{kind}\n{{\nOFFSET 0 -4 0\n" * n
    return SMALL.replace("  JOINT knee", opened + "}\n" * n + "  JOINT knee")


@pytest.mark.parametrize("make", [
    lambda n: "\n" * n + SMALL.replace("MOTION", "\n" * n + "MOTION" + "\n" * n) + " \n" * n,
    lambda n: "HIERARCHY" + "\n" * n, lambda n: "HIERARCHY" + " " * n + "x",
    lambda n: SMALL.split("Frames")[0] + "\n" * n + "x",
    lambda n: SMALL.replace("1 2 3 90", f"1 {'9' * n} 3 90"),
    lambda n: SMALL.replace("1 2 3 90", f"1 0.{'9' * n} 3 90"),
    lambda n: SMALL.replace("OFFSET 0 -4", f"OFFSET 0 -{'4' * n}x"),
    lambda n: SMALL.replace("Frames: 2", f"Frames: {'2' * n}"),
    lambda n: SMALL.replace("0.033333", f"0.0{'3' * n}x"),
    lambda n: SMALL.replace("CHANNELS 3", f"CHANNELS {'3' * n}"),
    lambda n: SMALL.replace("knee", "knee" + " " * n + "{" * 2),
    nested, lambda n: nested(n, "End Site"),
    lambda n: SMALL.replace("Frames: 2", f"Frames: {n}") + FRAME * (n - 2),
])
def test_reading_is_linear(tmp_path, make):
    """Ten times as much text takes about ten times as long, whatever it is."""
    def seconds(n):
        path, times = write(tmp_path, make(n)), []
        for _ in range(3):
            start = time.process_time()
            try:
                read_bvh(path)
            except ValueError as error:
                assert str(path) in str(error) and len(str(error)) < 400 + len(str(path))
            times.append(time.process_time() - start)
        return min(times)
    assert seconds(50_000) < 40 * seconds(5_000) + 0.01  # squared would be 100


def test_many_joints_without_numbers_are_refused(tmp_path):
    """Memory is bounded by the size of the file, not by joints times frames."""
    text = nested(20_000).replace("Frames: 2", "Frames: 20000") + FRAME * 19_998
    with pytest.raises(ValueError, match="20003 joints are too many for 9 numbers a frame"):
        read_bvh(write(tmp_path, text))


def test_an_end_site_ends_there(tmp_path):
    for text in (SMALL.replace("ROOT hip", "End Site"), nested(2, "End Site")):
        with pytest.raises(ValueError, match="near line .*cannot make sense of 'End Site'"):
            read_bvh(write(tmp_path, text))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_bvh(tmp_path / "none.bvh")
    with pytest.raises(FileNotFoundError, match="table of joint names"):
        read_table(tmp_path / "none.txt")


# --------------------------------------------------------------------------------------------------
# Rigs, units, frame rates


def capture(names, joints=None, fps=20.0, metres=0.01):
    """A Bvh whose joints stand where those of a written body do, by name: {name: one of the 22 or
    a point (x, y, z)}."""
    joints = dancing() if joints is None else joints
    places = [
        joints[:, T2M.joint_names.index(at)] if isinstance(at, str) else joints[:, 0] + np.array(at)
        for at in names.values()
    ]
    return bvh.Bvh(
        "clip.bvh",
        tuple(names),
        (-1,) * len(names),
        np.zeros((len(names), 3)),
        np.stack(places, axis=1) / metres,
        fps,
    )


def sides(words):
    return {
        f"{mark}{theirs}": f"{side}_{ours}"
        for theirs, ours in words.items()
        for mark, side in (("Left", "left"), ("Right", "right"))
    }


LIMBS = sides(
    {
        "UpLeg": "hip",
        "Leg": "knee",
        "Foot": "ankle",
        "ToeBase": "foot",
        "Shoulder": "collar",
        "Arm": "shoulder",
        "ForeArm": "elbow",
        "Hand": "wrist",
    }
)
MIDDLE = {"Hips": "pelvis", "Spine": "spine1", "Spine1": "spine2", "Neck": "neck", "Head": "head"}
MIXAMO = MIDDLE | LIMBS | {"Spine2": "spine3", "LeftHandThumb1": "left_wrist"}


@pytest.mark.parametrize(
    "prefix", ["", "mixamorig:", "mixamorig1:", "mixamorig_", "mixamorig", "Bob:mixamorig:"]
)
def test_mixamo_with_any_prefix_is_taken_over_joint_by_joint(prefix):
    joints = dancing()
    clip = capture({prefix + name: at for name, at in MIXAMO.items()}, joints)
    assert find_rig(clip) == "mixamo"
    np.testing.assert_allclose(to_t2m_joints(clip), joints, atol=1e-9)


def test_other_rigs_put_joints_between_theirs():
    joints = dancing()
    at = dict(zip(T2M.joint_names, np.moveaxis(joints, 1, 0)))

    cmu = capture(
        MIDDLE | LIMBS | {"LowerBack": "pelvis", "Neck1": "neck", "LHipJoint": "pelvis"}, joints
    )
    assert find_rig(cmu) == "cmu"
    ours = dict(zip(T2M.joint_names, np.moveaxis(to_t2m_joints(cmu), 1, 0)))
    np.testing.assert_allclose(ours["spine1"], 0.35 * at["pelvis"] + 0.65 * at["spine1"], atol=1e-9)
    np.testing.assert_allclose(
        ours["left_collar"], 0.65 * at["left_collar"] + 0.35 * at["left_shoulder"], atol=1e-9
    )
    np.testing.assert_allclose(ours["right_foot"], at["right_foot"], atol=1e-9)

    lafan = capture(
        {n.replace("ToeBase", "Toe"): a for n, a in (MIDDLE | LIMBS).items()}
        | {"Spine2": "spine3"},
        joints,
    )
    assert find_rig(lafan) == "lafan1"
    ours = dict(zip(T2M.joint_names, np.moveaxis(to_t2m_joints(lafan), 1, 0)))
    np.testing.assert_allclose(ours["pelvis"], at["spine1"], atol=1e-9)
    np.testing.assert_allclose(ours["spine3"], 0.75 * at["spine3"] + 0.25 * at["neck"], atol=1e-9)
    np.testing.assert_allclose(ours["left_foot"], at["left_foot"], atol=1e-9)


def test_every_rig_names_all_joints_and_mirrors():
    swap = {"left": "right", "Left": "Right", "_L": "_R"}
    for rig, table in RIGS.items():
        assert set(table) == set(T2M.joint_names), rig
        for joint in (j for j in table if j.startswith("left")):
            theirs = table[joint][0]
            for left, right in swap.items():
                theirs = theirs.replace(left, right)
            theirs = re.sub("^l(?=[A-Z])", "r", theirs)
            assert table[joint.replace("left", "right")][0] == theirs


def test_unknown_rig_names_what_is_missing(tmp_path):
    names = {name: at for name, at in MIXAMO.items() if name not in ("LeftHand", "Spine2")}
    with pytest.raises(ValueError, match=r"the nearest, mixamo, also has LeftHand, Spine2;.*table"):
        find_rig(capture(names))
    with pytest.raises(ValueError, match="has no joint LeftHand, Spine2; it has Hips"):
        to_t2m_joints(capture(names), RIGS["mixamo"])


def test_own_table(tmp_path):
    table = tmp_path / "mine.txt"
    lines = [f"{joint} = my {joint}" for joint in T2M.joint_names[1:]]
    table.write_text(
        "# my rig\npelvis = my low, my high, 0.25  # a point between two\n\n" + "\n".join(lines)
    )
    joints = dancing()
    clip = capture(
        {f"my {joint}": joint for joint in T2M.joint_names[1:]}
        | {"my low": (0, -0.1, 0), "my high": (0, 0.3, 0)},
        joints,
    )
    np.testing.assert_allclose(to_t2m_joints(clip, read_table(table)), joints, atol=1e-9)
    for line, says in [
        ("pelvi = Hips", "'pelvi = Hips'; expected"),
        ("pelvis = A, B", "'pelvis = A, B'"),
        ("pelvis Hips", "'pelvis Hips'"),
        ("pelvis = A, B, half", "half"),
        ("neck = Neck", "no line for pelvis, left_hip"),
    ]:
        table.write_text(line)
        with pytest.raises(ValueError, match=says) as error:
            read_table(table)
        assert str(table) in str(error.value)


@pytest.mark.parametrize("unit, metres", rigs.UNITS.items())
def test_units_are_measured(unit, metres):
    clip = capture(MIXAMO, metres=metres)
    np.testing.assert_allclose(to_t2m_joints(clip), dancing(), atol=1e-9)
    np.testing.assert_allclose(to_t2m_joints(clip, unit="m"), dancing() / metres, rtol=1e-9)


def test_impossible_units():
    with pytest.raises(ValueError, match="clip.bvh: a leg .* not 0.5 to 1.15 m in any .*--unit"):
        to_t2m_joints(capture(MIXAMO, metres=10))
    with pytest.raises(ValueError, match="--unit is furlong"):
        to_t2m_joints(capture(MIXAMO), unit="furlong")


def test_z_up():
    joints = dancing()
    clip = capture(MIXAMO, np.stack([joints[..., 0], -joints[..., 2], joints[..., 1]], axis=-1))
    np.testing.assert_allclose(to_t2m_joints(clip, up="z"), joints, atol=1e-9)


def test_resampling_is_a_cubic_spline():
    cubics = lambda time: np.stack([time ** 3 - time, 2 * time ** 2, 0 * time + 5], axis=-1)
    time, new = np.arange(31) / 30, np.arange(21) / 20
    np.testing.assert_allclose(resample(cubics(time), 30, 20), cubics(new), atol=1e-12)
    np.testing.assert_allclose(
        resample(cubics(time), 30, 120), cubics(np.arange(121) / 120), atol=1e-12
    )
    wave = resample(np.sin(2 * np.pi * time), 30, 20)
    # linear interpolation is wrong by 5e-3 here
    assert np.abs(wave - np.sin(2 * np.pi * new)).max() < 1e-4
    long = np.random.default_rng(0).normal(size=(121, 22, 3))
    np.testing.assert_allclose(resample(long, 120, 20), long[::6], atol=1e-9)
    np.testing.assert_array_equal(resample(long, 20, 20), long)
    assert len(resample(long, 30, 20)) == 81 and len(resample(long[:68], 30, 20)) == 45
    np.testing.assert_allclose(resample(np.array([0.0, 1.0]), 1, 4), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(resample(np.array([0.0, 1.0, 4.0]), 1, 2), [0, 0.25, 1, 2.25, 4])
    assert resample(long[:1], 30, 20).shape == (1, 22, 3)


def test_real_files_agree_with_their_converted_clips(shared):
    samples, archive = (
        shared / "data" / "bvh_samples",
        shared / "data" / "bandai" / "bandai_humanml3d.tar.gz",
    )
    if not samples.is_dir() or not archive.is_file():
        pytest.skip(f"NOT TESTED on real files: {samples} or {archive} is absent")
    ids = {
        row["source_file"]: row["id"]
        for row in csv.DictReader((archive.parent / "labels.csv").open())
    }
    files = {
        f"bandai_humanml3d/new_joint_vecs/{ids[path.name]}.npy": path
        for path in samples.glob("*.bvh")
    }
    assert len(files) == 4
    seen = 0
    with tarfile.open(archive, "r|gz") as stream:
        for member in stream:
            if member.name not in files:
                continue
            features = np.load(io.BytesIO(stream.extractfile(member).read()))
            expected = features_to_joints(
                torch.from_numpy(features.astype(np.float32)), T2M
            ).numpy()
            joints = canonical_joints(to_t2m_joints(read_bvh(files[member.name])), T2M, T2M_OFFSETS)
            assert len(joints) == len(expected) + 1
            assert np.linalg.norm(joints[:-1] - expected, axis=-1).max() < 0.003, files[member.name]
            seen += 1
            if seen == len(files):
                break
    assert seen == 4
