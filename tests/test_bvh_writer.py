"""BVH files are written so that other programs read them, within the errors that are promised."""

import numpy as np
import pytest
import warm
from test_bvh import dancing, independent
from test_rotations import ROOT, bandai, toy

from formats.bvh import read_bvh
from formats.bvh_writer import names_of, write_bvh, zxy_degrees
from formats.rigs import find_rig, to_t2m_joints
from formats.rotations import T_POSES, continuous
from motion import (
    T2M, T2M_OFFSETS, axis_angle_to_matrix, forward_kinematics, matrix_to_quaternion)

NAMES = names_of(T_POSES[22])


def errors(path, joints, metres=1.0):
    """Distances (T, J) in metres between joints and what our reader and the one of bvhio find."""
    clip, names = read_bvh(path), names_of(T_POSES[joints.shape[1]])
    ours = clip.joints[:, [clip.names.index(name) for name in names]] * metres
    order = [names.index(name) for name in clip.names if not name.endswith("_end")]
    np.testing.assert_allclose(independent(path) * metres, ours[:, order], atol=1e-4)
    return np.linalg.norm(ours - joints, axis=-1)


def rest_of(path):
    """{name: (3,)} of the joints at rest."""
    clip = read_bvh(path)
    places = clip.offsets.copy()
    for j, parent in enumerate(clip.parents):
        places[j] += places[parent] if parent >= 0 else 0
    return dict(zip(clip.names, places))


def check_layout(path, count=22):
    text = path.read_text()
    assert text.count("CHANNELS 3 Zrotation Xrotation Yrotation") == count - 1
    assert text.count("position") == 3 and "CHANNELS 6 Xposition" in text.split("JOINT")[0]


# --------------------------------------------------------------------------------------------------
# Rotations only

def test_toy_motions_come_back_within_what_is_promised(tmp_path):
    means = []
    for joints in toy()[::10]:
        write_bvh(tmp_path / "a.bvh", joints)
        check_layout(tmp_path / "a.bvh")
        error = errors(tmp_path / "a.bvh", joints)
        assert error.max() < 0.010
        means.append(error.mean())
    assert 1e-4 < np.mean(means) and max(means) < 0.0025 and np.mean(means) < 0.002


def test_recordings_come_back_within_what_is_promised(tmp_path, shared):
    means = []
    for joints in bandai(shared)[::5]:
        write_bvh(tmp_path / "a.bvh", joints)
        error = errors(tmp_path / "a.bvh", joints)
        assert error.max() < 0.010
        means.append(error.mean())
    assert len(means) == 20 and max(means) < 0.0025 and np.mean(means) < 0.002


def test_rest_is_a_symmetric_t_pose_on_the_floor(tmp_path):
    write_bvh(tmp_path / "a.bvh", dancing())
    rest = rest_of(tmp_path / "a.bvh")
    np.testing.assert_allclose(min(place[1] for place in rest.values()), 0, atol=1e-6)
    for name, place in rest.items():
        twin = name.replace("Left", "?").replace("Right", "Left").replace("?", "Right")
        np.testing.assert_allclose(rest[twin], place * (-1, 1, 1), atol=2e-6)
    arm = [rest[f"Left{name}"] for name in ("Arm", "ForeArm", "Hand")]
    assert np.ptp(np.array(arm)[:, 1:], axis=0).max() < 1e-5 and arm[2][0] > arm[0][0] + 0.4
    assert rest["LeftToeBase"][2] > rest["LeftFoot"][2] + 0.1 and rest["Head"][1] > 1.4
    assert find_rig(read_bvh(tmp_path / "a.bvh")) == "mixamo"


def test_units_and_frame_rates(tmp_path):
    joints = dancing()
    write_bvh(tmp_path / "m.bvh", joints, 30)
    write_bvh(tmp_path / "cm.bvh", joints, 30, unit="cm")
    metres, centimetres = read_bvh(tmp_path / "m.bvh"), read_bvh(tmp_path / "cm.bvh")
    assert metres.fps == centimetres.fps == 30
    np.testing.assert_allclose(centimetres.joints / 100, metres.joints, atol=1e-5)
    np.testing.assert_allclose(centimetres.offsets / 100, metres.offsets, atol=1e-6)
    for wrong in ({"unit": "inch"}, {"fps": 0}, {"fps": np.nan}, {"fps": 1e6}):
        with pytest.raises(ValueError, match="unit of m or cm and 1000 frames a second at most"):
            write_bvh(tmp_path / "b.bvh", joints, **wrong)
    assert not (tmp_path / "b.bvh").exists()


@pytest.mark.parametrize("count", [21, 22, 24])
@pytest.mark.parametrize("frames", [1, 2, 40])
def test_every_skeleton_and_any_number_of_frames(tmp_path, count, frames):
    pose = T_POSES[count]
    rng = np.random.default_rng(count)
    lengths = rng.uniform(0.1, 0.4, count)
    lengths = (lengths + lengths[pose.mirror]) / 2
    spread = pose.directions * lengths[:, None]
    for left, right, _ in pose.forks.values():
        spread[[left, right]] += (0, -0.05, 0) if left < 3 else (0, 0.1, 0)
    time = np.arange(frames)[:, None, None] / 20
    angles = 0.4 * np.sin(2 * time + rng.uniform(0, 6, (count, 3)))
    joints = forward_kinematics(axis_angle_to_matrix(angles), np.zeros((frames, 3)), spread,
                                pose.parents)
    for exact in (False, True):
        write_bvh(tmp_path / "a.bvh", joints, exact=exact)
        # the middle of chest and pelvis need not stand where the fork's other bones put it
        assert errors(tmp_path / "a.bvh", joints).max() < (0.001 if exact else 0.005)
    write_bvh(tmp_path / "a.bvh", joints)
    check_layout(tmp_path / "a.bvh", count)


def test_bones_without_length_and_collapsed_frames(tmp_path):
    joints = dancing()
    joints[:, 18] = joints[:, 16]  # no upper arm at all
    joints[:, 10] = joints[:, 7]
    write_bvh(tmp_path / "a.bvh", joints)
    assert np.isfinite(read_bvh(tmp_path / "a.bvh").joints).all()
    sound = errors(tmp_path / "a.bvh", joints)
    joints[3, 1] = joints[3, 2]  # both hips in one place
    joints[5] = joints[5, :1]  # everything in one place
    write_bvh(tmp_path / "a.bvh", joints)
    broken = errors(tmp_path / "a.bvh", joints)
    others = np.setdiff1d(np.arange(40), (3, 5))
    np.testing.assert_allclose(broken[others], sound[others], atol=0.003)


# --------------------------------------------------------------------------------------------------
# Euler angles

def matrices(degrees):
    a, b, c = (axis_angle_to_matrix(np.radians(degrees[..., i, None]) * np.eye(3)[k])
               for i, k in enumerate((2, 0, 1)))
    return a @ b @ c


def test_angles_give_the_rotations_back_and_take_the_nearest_branch():
    rng = np.random.default_rng(0)
    axes = axis_angle_to_matrix(rng.normal(0, 3, (50, 1, 3)))
    walk = axis_angle_to_matrix(np.cumsum(rng.normal(0, 0.05, (400, 50, 3)), axis=0))
    rotations = axes[:, 0] @ walk
    angles = zxy_degrees(rotations)
    assert angles.shape == (400, 50, 3)
    np.testing.assert_allclose(matrices(angles), rotations, atol=1e-9)
    step = np.diff(angles, axis=0)
    other = angles[1:] * (1, -1, 1) + 180 - angles[:-1]
    other = (other + 180) % 360 - 180
    assert (np.square(step).sum(-1) <= np.square(other).sum(-1) + 1e-6).all()
    assert np.abs(step).max() <= 180 + 1e-6


def test_a_turn_straight_through_the_pole_is_smooth():
    """b runs from 60 over 90, where a and c are not known, to 120 degrees."""
    wanted = np.zeros((13, 3)) + (20, 0, -35)
    wanted[:, 1] = np.arange(60, 121, 5)
    angles = zxy_degrees(matrices(wanted))
    np.testing.assert_allclose(angles, wanted, atol=1e-3)
    still = zxy_degrees(matrices(np.zeros((3, 3)) + (30, -90, 10)))  # never anything else
    np.testing.assert_allclose(matrices(still), matrices(np.zeros((3, 3)) + (30, -90, 10)),
                               atol=1e-9)


def test_quaternion_signs_never_jump():
    angles = np.linspace(0, 30, 300)[:, None] * np.array([0.6, 0.8, 0])
    quaternions = continuous(matrix_to_quaternion(axis_angle_to_matrix(angles)))
    assert np.linalg.norm(np.diff(quaternions, axis=0), axis=-1).max() < 0.06


# --------------------------------------------------------------------------------------------------
# The program

def test_sample_takes_rate_unit_and_kind(tmp_path):
    done = warm.run(ROOT / "sample.py", "a man jumps", "--format", "bvh,npy", "--seconds", "2",
                    "--fps", "30", "--unit", "cm", "--device", "cpu", "--steps", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path, = (tmp_path / "out").glob("*.bvh")
    clip, joints = read_bvh(path), np.load(next((tmp_path / "out").glob("*.npy")))
    assert clip.fps == 30 and len(joints) == len(clip.joints) == 59
    check_layout(path)
    assert errors(path, joints, 0.01).mean() < 0.004


# --------------------------------------------------------------------------------------------------
# Exact files: any joint may move


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stretch", [0.0, 0.00005, 0.004])
def test_written_files_give_the_joints_back(tmp_path, seed, stretch):
    joints = dancing(seed=seed, stretch=stretch)
    write_bvh(tmp_path / "a.bvh", joints, exact=True)
    clip = read_bvh(tmp_path / "a.bvh")
    assert clip.fps == 20 and find_rig(clip) == "mixamo"
    assert np.linalg.norm(to_t2m_joints(clip, up="y") - joints, axis=-1).max() < 0.001
    theirs = independent(tmp_path / "a.bvh")
    order = [clip.names.index(name) for name in clip.names if not name.endswith("_end")]
    ours = [NAMES.index(clip.names[j]) for j in order]
    assert np.linalg.norm(theirs - joints[:, ours], axis=-1).max() < 0.001
    text = (tmp_path / "a.bvh").read_text()
    if stretch == 0:
        assert text.count("CHANNELS 3") == 21, "a rigid body needs rotations only"
    if stretch == 0.004:
        assert text.count("CHANNELS 6") == 22


@pytest.mark.parametrize("exact", [False, True])
def test_hierarchy_of_a_written_file(tmp_path, exact):
    write_bvh(tmp_path / "a.bvh", dancing(), exact=exact)
    clip = read_bvh(tmp_path / "a.bvh")
    assert [name for name in clip.names if name.endswith("_end")] == [
        n + "_end" for n in ("LeftToeBase", "RightToeBase", "Head", "LeftHand", "RightHand")]
    for j, parent in enumerate(T2M.parents):
        at = clip.parents[clip.names.index(NAMES[j])]
        assert (clip.names[at] if at >= 0 else None) == (NAMES[parent] if parent >= 0 else None)
    rest = {name: offset for name, offset in zip(clip.names, clip.offsets)}  # a T-pose
    assert (
        rest["LeftForeArm"][0] > 0.2
        and rest["RightForeArm"][0] < -0.2
        and rest["LeftLeg"][1] < -0.3
    )
    thigh = np.linalg.norm(rest["LeftLeg"])  # the right one is 3.4 mm shorter
    assert abs(thigh - np.linalg.norm(T2M_OFFSETS[4])) < (1e-5 if exact else 2e-3)


@pytest.mark.parametrize(
    "turn", [(np.pi / 2, 0, 0), (-np.pi / 2, 0, 0), (0, np.pi, 0), (0, 0, np.pi)]
)
def test_poses_where_euler_angles_lock(tmp_path, turn):
    rotations = np.tile(np.eye(3), (5, 22, 1, 1))
    rotations[:, 0] = axis_angle_to_matrix(np.array(turn))
    rotations[:, 1] = axis_angle_to_matrix(np.array([-np.pi / 2, 0, 0]))
    joints = forward_kinematics(rotations, np.zeros((5, 3)), T2M_OFFSETS, T2M.parents)
    write_bvh(tmp_path / "a.bvh", joints, exact=True)
    assert (
        np.linalg.norm(to_t2m_joints(read_bvh(tmp_path / "a.bvh"), up="y") - joints,
                       axis=-1).max() < 0.001
    )


def test_collapsed_bodies_are_still_written_right(tmp_path):
    joints = dancing()
    joints[3, 1] = joints[3, 2]  # both hips in one place
    joints[5] = joints[5, :1]  # everything in one place
    joints[7, 18] = joints[7, 16]  # no upper arm
    write_bvh(tmp_path / "a.bvh", joints, exact=True)
    assert (
        np.linalg.norm(to_t2m_joints(read_bvh(tmp_path / "a.bvh"), up="y") - joints,
                       axis=-1).max() < 0.001
    )


def test_angles_do_not_jump(tmp_path):
    time = np.linspace(0, 1, 100)
    rotations = np.tile(np.eye(3), (100, 22, 1, 1))
    # turns round twice
    rotations[:, 0] = axis_angle_to_matrix(
        np.stack([0 * time, 4 * np.pi * time, 0 * time], axis=-1)
    )
    write_bvh(
        tmp_path / "a.bvh",
        forward_kinematics(rotations, np.zeros((100, 3)), T2M_OFFSETS, T2M.parents),
    )
    rows = (tmp_path / "a.bvh").read_text().split("Frame Time")[1].splitlines()[1:]
    angles = np.array([row.split()[3:6] for row in rows], float)
    assert np.abs(np.diff(angles, axis=0)).max() < 10 and abs(np.ptp(angles[:, 2]) - 720) < 1


@pytest.mark.parametrize(
    "joints, says",
    [
        (np.zeros((4, 23, 3)), r"\(frames, 22, 3\).*found \(4, 23, 3\)"),
        (np.zeros((22, 3)), r"found \(22, 3\)"),
        (np.zeros((0, 22, 3)), r"found \(0, 22, 3\)"),
        (np.full((2, 22, 3), np.nan), "with NaN"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, joints, says):
    with pytest.raises(ValueError, match=says):
        write_bvh(tmp_path / "a.bvh", joints, exact=True)
    assert not list(tmp_path.iterdir())
