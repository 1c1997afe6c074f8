"""What people do passes, what nobody can do is named; up, sides, pace and rest poses are found."""
import io
import tarfile

import numpy as np
import pytest
import torch

import motion
from conftest import ROOT
from formats import bvh, plausible, rigs
from formats.pack import Pack
from formats.plausible import (
    AXES, Unclear, faults, find_up, is_mirrored, pace, rest_frames, turn_up)
from test_data import walking

T2M = motion.T2M
WRIST = np.eye(22)[21][:, None] * [0, 0, 1]  # ahead, of the right wrist


def strider(seconds=8.0, fps=20.0, step=0.65, period=0.55):
    """(T, 22, 3) somebody whose feet swing to and fro under a body that walks ahead."""
    joints = walking(int(seconds * fps))
    joints = joints[:1] + 0 * joints
    time = np.arange(len(joints)) / fps
    joints[..., 2] += (time / period * step)[:, None]
    for side, leg in ((1, (4, 7, 10)), (-1, (5, 8, 11))):
        for share, joint in zip((0.5, 1, 1), leg):
            joints[:, joint, 2] += side * share * step / 2 * np.sin(np.pi * time / period)
    return joints


@pytest.mark.parametrize("fps", [12.5, 20, 30, 60, 120, 240])
@pytest.mark.parametrize("change, reason, at", [
    (lambda j: j + [3.6, 0, 0], "pelvis moves at", 50),  # a jump of all of it
    (lambda j: j * [1, 0, 1], "the bone to", 50),
    (lambda j: j + WRIST * 9.0, "right_wrist moves at", 50),
    (lambda j: j + WRIST * 0.5, "the bone to right_wrist is", 50),
])
def test_what_nobody_can_do_is_named_with_its_frame(fps, change, reason, at):
    joints = strider(seconds=100 / fps + 1, fps=fps)
    assert faults(joints, fps) == []
    joints[at:at + 3] = change(joints[at:at + 3])
    found = faults(joints, fps)
    assert any(reason in fault.reason and fault.frame == at for fault in found), found
    assert min(fault.first for fault in found) >= at - 2 * max(1, round(fps / 20))


def test_speed_is_measured_over_the_same_time_at_every_rate():
    for fps in (20, 60, 120):
        for speed, bad in ((12, False), (13, True)):
            joints = walking(1) + (np.arange(200) / fps * speed)[:, None, None] * [0, 0, 1]
            assert bool(faults(joints, fps)) == bad


def test_bodies_and_heights_of_no_person():
    for scale, legs in ((0.4, "a leg is 0.33"), (1, ""), (1.7, "a leg is 1.4"), (99, "a leg is 8")):
        reasons = " ".join(fault.reason for fault in faults(strider() * scale, 20.0))
        assert legs in reasons and bool(legs) == ("leg" in reasons)
    joints = strider()
    joints[100:, :, 1] += np.linspace(0, 7, len(joints) - 100)[:, None]
    assert any("above the floor" in fault.reason for fault in faults(joints, 20.0))
    assert faults(joints[:0], 20.0) == [] == faults(strider()[:1], 20.0)


def test_features_of_kit_are_in_millimetres():
    body = motion.KIT
    features = np.zeros((40, body.num_features))
    features[:, 3] = 950
    at = motion.FEATURE_SLICES(body)["velocities"].start
    for size, bad in ((1900.0, False), (2100.0, True)):  # 24 and 26 m/s at 12.5 frames a second
        features[5, at] = size
        reasons = [f.reason for f in plausible.feature_faults(features, "kit", 12.5)]
        assert any("velocities hold" in reason for reason in reasons) == bad


def test_smpl_features_are_held_against_gross_errors_only():
    features = np.zeros((60, 150), np.float32)
    features[7, 145] = 99
    assert plausible.feature_faults(features, "smpl", 30.0) == []
    features[7, 145], features[9, 0] = 1e6, 1e6
    first, second = plausible.feature_faults(features, "smpl", 30.0)
    assert (first.frame, second.frame) == (9, 7) and "path hold 1e+06" in second.reason


# --------------------------------------------------------------------------------------------------
# Up, sides, pace, rest poses

@pytest.mark.parametrize("up", AXES)
def test_every_axis_can_be_up(up):
    order, signs = AXES[up]
    matrix = turn_up(np.eye(3), up)
    assert np.linalg.det(matrix) == pytest.approx(1)  # a rotation: no mirror image
    joints = strider() @ matrix.T  # the same, with `up` up
    np.testing.assert_allclose(turn_up(joints, up), strider(), atol=1e-12)
    assert find_up(joints) == up  # by the walk
    still = joints - joints[:, :1]
    rest = still[0]
    assert find_up(still, rest) == up  # by the rest pose
    if up != "y":
        with pytest.raises(Unclear, match=f"Give --up=y or --up={up}"):
            find_up(still)
        with pytest.raises(Unclear):
            find_up(still, walking(1)[0])


def test_y_is_up_where_the_body_does_not_tell():
    turns = motion.axis_angle_to_matrix(np.linspace(0, 40, 160)[:, None] * [1.0, 0, 0])
    tumbling = strider() @ turns.swapaxes(-1, -2)
    assert find_up(tumbling[:, :, [0, 2, 1]]) == find_up(tumbling) == "y"
    gets_up = np.concatenate([strider()[:100] @ turn_up(np.eye(3), "z").T, strider()[:60]])
    assert find_up(gets_up) == "y"


def test_left_and_right_that_are_exchanged():
    assert not is_mirrored(strider()) and is_mirrored(strider() * (-1, 1, 1))
    assert not is_mirrored(strider()[..., [0, 2, 1]])  # lies: nothing to tell it by


@pytest.mark.parametrize("slower, says", [(0.25, "quickly"), (1, ""), (1.6, ""), (5, "slowly")])
def test_pace_of_a_walk(slower, says):
    joints = strider(seconds=10, fps=120)
    length, time = pace(joints, 120 / slower)
    assert length == pytest.approx(0.65, abs=0.03)
    assert time == pytest.approx(0.55 * slower, abs=0.02)
    if says:
        with pytest.raises(ValueError, match=f"too {says}: .*perhaps --fps 120"):
            plausible.check_pace(joints, 120 / slower)
    else:
        plausible.check_pace(joints, 120 / slower)


def test_nothing_is_said_about_the_pace_of_those_who_do_not_walk():
    for joints in (walking(400), strider(seconds=2), strider(seconds=20, step=0.2)):
        assert pace(joints, 20.0) is None


@pytest.mark.parametrize("fps", [20, 30, 60, 120])
def test_rest_poses_before_and_after(fps):
    joints = strider(fps=fps)
    far, near = joints[:1] - [3, 0, 2], joints[:1].copy()
    near[:, [18, 20, 19, 21]] += [[0.4, 0.3, 0], [0.8, 0.5, 0], [-0.4, 0.3, 0], [-0.8, 0.5, 0]]
    assert rest_frames(joints, fps) == 0
    for rest in (far, near):
        for count in (1, 3):
            assert rest_frames(np.concatenate([rest] * count + [joints]), fps) == count
            turned = np.concatenate([joints] + [rest] * count)[::-1]
            assert rest_frames(turned, fps, blend=False) == count
    if fps == 120:  # and the blend from it, as a filter leaves it
        blend = far + np.linspace(0, 1, 9)[:-1, None, None] * (joints[:1] - far)
        assert rest_frames(np.concatenate([blend, joints]), fps) == 8
        assert rest_frames(np.concatenate([blend, joints]), fps, blend=False) == 0
    assert rest_frames(joints[:2], fps) == rest_frames(joints[:1], fps) == 0


def test_reading_is_linear():
    import timeit

    def seconds(n):
        joints = np.tile(strider(), (n, 1, 1))
        joints[::7] += 100  # a fault in every seventh frame
        return min(timeit.repeat(lambda: faults(joints, 20.0), number=1, repeat=3))
    assert seconds(100) < 25 * seconds(10)


# --------------------------------------------------------------------------------------------------
# Real motion

def test_every_clip_of_the_set_that_ships_is_plausible():
    pack = Pack.open(str(ROOT / "data" / "toy" / "toy.pack"))
    for i in range(0, len(pack), 5):
        joints = pack.joints(i).astype(np.float64)
        assert not faults(joints, 20.0) and not rest_frames(joints, 20.0), pack.ids[i]
        assert not rest_frames(joints[::-1], 20.0, blend=False)
        assert not is_mirrored(joints)
        assert motion.floor_height(joints) == joints[..., 1].min()  # the same as published
        plausible.check_pace(joints, 20.0)


def test_real_clips_are_plausible(shared):
    archive = shared / "data" / "bandai" / "bandai_humanml3d.tar.gz"
    if not archive.exists():
        pytest.skip(f"NOT TESTED on real data: {archive} is absent")
    seen = 0
    with tarfile.open(archive, "r|gz") as stream:
        for member in stream:
            if "/new_joint_vecs/0" in member.name and member.name.endswith("0.npy"):
                features = np.load(io.BytesIO(stream.extractfile(member).read()))
                assert not plausible.feature_faults(features, "t2m", 20.0), member.name
                joints = motion.features_to_joints(torch.from_numpy(np.float64(features)), T2M)
                assert find_up(joints.numpy()) == "y" and not is_mirrored(joints.numpy())
                seen += 1
                if seen == 80:
                    break
    assert seen == 80


def test_real_recordings_pass_and_their_known_broken_frames_do_not(shared, tmp_path):
    archive, table = (shared / "data" / "cmu" / name for name in ("cmu_bvh.tar.xz", "daz.table"))
    if not archive.exists():
        pytest.skip(f"NOT TESTED on real data: {archive} is absent")
    broken = {"05_05": 123, "05_06": 153}  # legs in ballet spins, as the set's own README says
    good, table = ["01_01", "02_03", "05_02", "05_03", "05_04"], rigs.read_table(table)
    with tarfile.open(archive, "r|xz") as stream:
        for member in stream:
            id = member.name[4:9]
            if id in broken or id in good:
                stream.extract(member, tmp_path, filter="data")
            if id > "05_06":
                break
    for id in [*broken, *good]:
        recording = bvh.read_bvh(tmp_path / "bvh" / f"{id}.bvh")
        joints, what = rigs.to_metres(recording, table)
        assert what == {"unit": "cm", "up": "y", "mirrored": False}
        found = faults(joints, recording.fps)
        if id in broken:
            assert any(fault.first <= broken[id] <= fault.last for fault in found)
        else:
            assert not found
        assert rest_frames(joints, recording.fps) == 0
        plausible.check_pace(joints, recording.fps)


@pytest.mark.parametrize("fps", [12.5, 30, 120])
def test_nobody_walks_up_a_lift(fps):
    joints = strider(seconds=4, fps=fps)
    climb = np.arange(len(joints)) / fps
    assert faults(joints + climb[:, None, None] * [0, 1.0, 0], fps) == []  # a ladder, quickly
    found = faults(joints + climb[:, None, None] * [0, 2.7, 0], fps)
    assert found and any("the pelvis rises by 2." in fault.reason for fault in found), found
