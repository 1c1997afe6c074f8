"""motion.py has the published features' numbers, inverts and mirrors them, refuses bad input."""
import dataclasses
import io
import re
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import motion
from conftest import GOLDEN
from motion import KIT, T2M, T2M_OFFSETS, FEATURE_SLICES, features_to_joints, joints_to_features

BOTH = pytest.mark.parametrize('skeleton', [T2M, KIT], ids=lambda s: s.name)


def golden(skeleton):
    with np.load(GOLDEN / 'motion_features.npz', allow_pickle=False) as file:
        return {
            key.split('/')[1]: file[key]
            for key in file.files
            if key.startswith(skeleton.name + '/')
        }


@BOTH
def test_the_floor_is_the_lowest_joint_but_for_lost_frames(skeleton):
    """A fall of one to three frames does not lift the motion; stairs and jumps change nothing."""
    joints, metre = tumble(skeleton, seed=1, frames=120), 1 / skeleton.unit
    joints[..., 1] += 5 * metre
    floor = motion.floor_height(joints, skeleton.unit)
    assert floor == joints[..., 1].min()
    for frames in (1, 3):
        lost = joints.copy()
        lost[60:60 + frames, :, 1] -= 0.95 * metre
        assert motion.floor_height(lost, skeleton.unit) >= floor
        assert motion.floor_height(lost, skeleton.unit) < floor + 0.2 * metre
        found = joints_to_features(lost, skeleton)[:, 3]
        np.testing.assert_allclose(found[:50], joints_to_features(joints, skeleton)[:50, 3],
                                   atol=0.2 * metre)
    stairs = joints - np.linspace(0, 3, 120)[:, None, None] * [0, metre, 0]
    assert motion.floor_height(stairs, skeleton.unit) == stairs[..., 1].min()
    hops = joints + 0.8 * metre * np.abs(np.sin(np.arange(120) / 4))[:, None, None] * [0, 1, 0]
    assert motion.floor_height(hops, skeleton.unit) == hops[..., 1].min()
    assert motion.floor_height(joints[:1], skeleton.unit) == joints[:1, :, 1].min()


def symmetric_offsets(skeleton):
    """A body whose left is as long as its right, in the skeleton's unit."""
    lengths = np.linalg.norm(golden(skeleton)['target_offsets'], axis=-1)
    offsets = skeleton.offsets_dir * ((lengths + lengths[list(skeleton.mirror)]) / 2)[:, None]
    wide = [
        j for j, name in enumerate(skeleton.joint_names) if 'collar' in name or 'shoulder' in name
    ]
    offsets[wide] *= 2  # shoulders as wide as hips would leave the published heading to chance
    return offsets


def tumble(skeleton, seed=0, frames=90, spin=0.0, sway=0.3):
    """Smooth random motion of that body (T, J, 3): joints sway, the whole of it wanders and turns
    `spin` radians a frame."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames)[:, None, None] / 12
    speed, phase = rng.uniform(0.5, 1.5, (skeleton.num_joints, 3)), rng.uniform(
        0, 6, (skeleton.num_joints, 3)
    )
    angles = sway * np.sin(time * speed + phase)
    angles[:, 0] = [0, 1, 0] * np.arange(frames)[:, None] * spin + 0.1 * angles[:, 0]
    root = np.cumsum(rng.normal(0, 0.02, (frames, 3)), axis=0) / skeleton.unit
    rotations = motion.axis_angle_to_matrix(angles)
    return motion.forward_kinematics(rotations, root, symmetric_offsets(skeleton), skeleton.parents)


# --------------------------------------------------------------------------------------------------
# The published numbers

@BOTH
def test_joints_to_features_equal_the_published_ones(skeleton):
    g = golden(skeleton)
    assert skeleton.feet_threshold == g['feet_threshold']
    features = joints_to_features(g['joints'], skeleton, g['target_offsets'])
    assert (
        features.shape == (len(g['joints']) - 1, skeleton.num_features)
        and features.dtype == np.float64
    )
    for name, part in FEATURE_SLICES(skeleton).items():
        ours, theirs = features[:, part], g['features'][:, part]
        # the published code makes its rotations in float32, which loses digits for bones turned
        # by almost 180 degrees
        tolerance = 1e-4 if name == 'rotations' else 1e-5 * np.abs(g['canonical_joints']).max()
        tolerance = 1e-6 if name == 'root_angular_velocity' else tolerance
        assert np.abs(ours - theirs).max() <= tolerance, name
    assert np.array_equal(features[:, -4:], g['features'][:, -4:])


@BOTH
def test_rotations_are_closer_still_where_the_published_rounding_is_small(skeleton):
    g = golden(skeleton)
    part = FEATURE_SLICES(skeleton)['rotations']
    error = np.abs(joints_to_features(g['joints'], skeleton, g['target_offsets']) - g['features'])[
        :, part
    ]
    assert np.median(error) < 5e-7 and np.quantile(error, 0.99) < 1e-5


@BOTH
def test_canonical_joints_equal_the_published_ones(skeleton):
    g = golden(skeleton)
    ours = motion.canonical_joints(g['joints'], skeleton, g['target_offsets'])
    np.testing.assert_allclose(
        ours * skeleton.unit, g['canonical_joints'] * skeleton.unit, rtol=0, atol=1e-5
    )


@BOTH
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_features_to_joints_equal_the_published_ones(skeleton, dtype):
    g = golden(skeleton)
    features = torch.tensor(g['features'], dtype=dtype)
    ric = features_to_joints(features, skeleton)
    rot = motion.features_to_joints_from_rotations(features, skeleton, g['target_offsets'])
    assert ric.dtype == rot.dtype == dtype
    np.testing.assert_allclose(
        ric * skeleton.unit, g['recovered_from_ric'] * skeleton.unit, rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(
        rot * skeleton.unit, g['recovered_from_rot'] * skeleton.unit, rtol=0, atol=2e-6
    )


def test_a_published_clip(shared):
    folder = shared / 'data' / 'humanml3d_sample'
    joints = np.load(folder / 'new_joints' / '012314.npy')
    published = np.load(folder / 'new_joint_vecs' / '012314.npy')
    ours = joints_to_features(joints, T2M, T2M_OFFSETS, clip='012314')
    assert ours.dtype == np.float32
    # the published features saw one more frame, and the smoothed heading of the last 80 frames
    # saw it too
    assert np.abs(ours - published[:len(ours)])[:85].max() < 1e-5
    assert np.abs(ours - published[:len(ours)]).max() < 0.014
    np.testing.assert_allclose(
        features_to_joints(torch.tensor(published), T2M), joints, rtol=0, atol=1e-6
    )
    bones = np.linalg.norm(joints[0, 1:] - joints[0, list(T2M.parents[1:])], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(T2M_OFFSETS[1:], axis=-1), bones, rtol=0, atol=1e-6)


def test_real_motion_capture_comes_back(shared):
    path = shared / 'data' / 'bandai' / 'bandai_humanml3d.tar.gz'
    if not path.is_file():
        pytest.skip(f'NOT TESTED on real motion capture: {path} is absent')
    with tarfile.open(path) as archive:
        for member in archive:
            if '/new_joint_vecs/' in member.name and member.name.endswith('.npy'):
                break
        features = np.load(io.BytesIO(archive.extractfile(member).read())).astype(np.float64)
    joints = features_to_joints(torch.tensor(features), T2M).numpy()
    again = joints_to_features(joints, T2M)
    # the joints of the stored features are rounded to a millimetre, and so are ours then
    height = FEATURE_SLICES(T2M)['root_height']
    np.testing.assert_allclose(again[:, height], features[:-1, height], atol=0.005)
    np.testing.assert_allclose(
        features_to_joints(torch.tensor(again), T2M)[:, 0], joints[:-1, 0], atol=0.005
    )


# --------------------------------------------------------------------------------------------------
# The layout and the skeletons

def test_the_table_in_the_docstring_is_the_layout():
    rows = re.findall(r'^\| (\w+) +\| (\d+):(\d+) +\| (\d+):(\d+)', motion.__doc__, re.M)
    assert [row[0] for row in rows] == list(FEATURE_SLICES(T2M)) and len(rows) == 7
    for name, *numbers in rows:
        a, b, c, d = map(int, numbers)
        assert FEATURE_SLICES(T2M)[name] == slice(a, b) and FEATURE_SLICES(KIT)[name] == slice(c, d)
    assert (T2M.num_features, KIT.num_features) == (263, 251)


@BOTH
def test_skeletons_are_trees_with_two_equal_sides(skeleton):
    names, mirror = skeleton.joint_names, list(skeleton.mirror)
    assert len(set(names)) == len(names) == len(skeleton.offsets_dir)
    assert skeleton.parents[0] == -1 and all(
        0 <= p < j for j, p in enumerate(skeleton.parents) if j
    )
    assert [mirror[m] for m in mirror] == list(range(len(names)))
    assert all(
        skeleton.mirror[p] == skeleton.parents[mirror[j]]
        for j, p in enumerate(skeleton.parents)
        if j
    )
    np.testing.assert_array_equal(skeleton.offsets_dir[mirror], skeleton.offsets_dir * [-1, 1, 1])
    assert [names[j].split('_')[0] for j in skeleton.face_joints] == [
        'right',
        'left',
        'right',
        'left',
    ]
    assert [names[j].split('_')[0] for foot in skeleton.feet for j in foot] == [
        'right',
        'right',
        'left',
        'left',
    ]
    assert motion.SMPL_PARENTS[:22] == T2M.parents and len(motion.SMPL_PARENTS) == 24


# --------------------------------------------------------------------------------------------------
# Joints -> features -> joints

@BOTH
@pytest.mark.parametrize('spin', [0.0, 0.06, -0.06, 0.3])
def test_joints_come_back_even_when_the_heading_passes_180_degrees(skeleton, spin):
    offsets = symmetric_offsets(skeleton)
    joints = motion.canonical_joints(tumble(skeleton, frames=250, spin=spin, sway=0.1), skeleton)
    features = torch.tensor(joints_to_features(joints, skeleton))
    ric = features_to_joints(features, skeleton)
    np.testing.assert_allclose(ric * skeleton.unit, joints[:-1] * skeleton.unit, atol=1e-9)
    rot = motion.features_to_joints_from_rotations(features, skeleton, offsets)
    np.testing.assert_allclose(rot * skeleton.unit, joints[:-1] * skeleton.unit, atol=1e-9)
    if 0 < abs(spin) < 0.1:  # faster ones are smoothed away, though not lost
        turned = 2 * features[1:, 0].sum().item()  # frame 0 is not smoothed
        assert (
            np.sign(turned) == -np.sign(spin) and abs(turned) > np.pi
        ), 'a turn to the left counts as negative'


@BOTH
def test_canonical_joints_stand_on_the_floor_at_the_origin_facing_z(skeleton):
    joints = motion.canonical_joints(tumble(skeleton, seed=3) + [5, 7, -2], skeleton)
    assert abs(joints[..., 1].min()) < 1e-9 and np.abs(joints[0, 0, [0, 2]]).max() < 1e-9
    hip_r, hip_l, shoulder_r, shoulder_l = joints[0, list(skeleton.face_joints)]
    across = hip_r - hip_l + shoulder_r - shoulder_l
    assert abs(across[2]) < 1e-9 and across[0] < 0  # the right is at -X of somebody who faces +Z


@BOTH
def test_features_ignore_where_the_motion_happens_and_which_way_it_faces(skeleton):
    joints = tumble(skeleton, seed=1, spin=0.02)
    turn = motion.axis_angle_to_matrix(np.array([0, 2.5, 0]))
    moved = joints @ turn.T + np.array([3, -2, 8]) / skeleton.unit
    np.testing.assert_allclose(
        joints_to_features(moved, skeleton), joints_to_features(joints, skeleton), atol=1e-6
    )


@BOTH
def test_retargeting_changes_lengths_and_keeps_directions(skeleton):
    target, joints = golden(skeleton)['target_offsets'], tumble(skeleton, seed=2)
    ours = motion.canonical_joints(joints, skeleton, target)
    bones, before = (x[:, 1:] - x[:, list(skeleton.parents[1:])] for x in (ours, joints))
    lengths = np.linalg.norm(bones, axis=-1)
    np.testing.assert_allclose(
        lengths, np.broadcast_to(np.linalg.norm(target[1:], axis=-1), lengths.shape)
    )
    bones, before = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (bones, before))
    # but for facing
    np.testing.assert_allclose(
        bones @ bones.swapaxes(1, 2), before @ before.swapaxes(1, 2), atol=1e-9
    )


def test_bones_keep_their_lengths_and_joints_nearly_their_places():
    joints, lengths = tumble(T2M), np.linalg.norm(T2M_OFFSETS, axis=1)
    exact = motion.keep_bones(joints, lengths, T2M.parents)
    bones = np.linalg.norm(exact[:, 1:] - exact[:, list(T2M.parents[1:])], axis=-1)
    assert np.abs(bones - lengths[1:]).max() < 1e-12 and np.array_equal(exact[:, 0], joints[:, 0])
    shaken = exact + np.random.default_rng(0).normal(0, 0.002, exact.shape)
    again = motion.keep_bones(shaken, lengths, T2M.parents)
    assert np.linalg.norm(again - exact, axis=-1).max() < 0.03
    assert np.abs(motion.keep_bones(exact, lengths, T2M.parents) - exact).max() < 1e-12


def test_bones_exactly_opposite_to_their_rest_direction():
    """Half a turn has no shortest way: any is right as long as it is a rotation that ends there."""
    joints = tumble(T2M, sway=0.0)
    # the neck points straight down
    joints[:, [12, 15]] = joints[:, [9]] - np.array([[0.0, 0.2, 0.0], [0.0, 0.2, 0.1]])
    features = joints_to_features(joints, T2M)
    rotations = motion.matrix_from_6d(
        features[:, FEATURE_SLICES(T2M)['rotations']].reshape(len(features), -1, 6)
    )
    assert np.isfinite(features).all()
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-9)
    np.testing.assert_allclose(rotations @ rotations.swapaxes(-1, -2) - np.eye(3), 0, atol=1e-9)
    lengths = np.linalg.norm(joints[0, 1:] - joints[0, list(T2M.parents[1:])], axis=-1)
    offsets = T2M.offsets_dir * np.concatenate([[0], lengths])[:, None]
    back = motion.features_to_joints_from_rotations(torch.tensor(features), T2M, offsets)
    np.testing.assert_allclose(back, motion.canonical_joints(joints, T2M)[:-1], atol=1e-9)


def test_rotation_between_is_exact_close_to_half_a_turn():
    u = np.array([0.0, 1.0, 0.0])
    for angle in (1e-9, 1e-7, 1e-5, 1e-3):
        v = np.array([np.sin(angle), -np.cos(angle), 0.0])
        rotation = motion.rotation_between(u, v)
        np.testing.assert_allclose(rotation @ u, v, atol=2e-9)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)


@BOTH
def test_foot_contacts(skeleton):
    """A foot stands while its squared step is below the threshold; left ankle, left toe, right
    ankle, right toe."""
    limit = np.sqrt(skeleton.feet_threshold)
    joints = np.repeat(tumble(skeleton, frames=2, sway=0.0)[:1], 9, axis=0)
    for row, (foot, factor) in enumerate([(1, 0.99), (1, 1.01), (0, 0.99), (0, 1.01)]):
        joints[2 * row + 1:, skeleton.feet[foot][0], 1] += factor * limit
        joints[2 * row + 2:, skeleton.feet[foot][1], 2] += factor * limit
    contacts = joints_to_features(joints, skeleton)[:, FEATURE_SLICES(skeleton)['contacts']]
    expected = np.ones((8, 4))
    expected[2, 0] = expected[3, 1] = expected[6, 2] = expected[7, 3] = 0
    np.testing.assert_array_equal(contacts, expected)
    strict = dataclasses.replace(skeleton, feet_threshold=0.9 * skeleton.feet_threshold)
    assert joints_to_features(joints, strict)[:, -4:].sum() == expected.sum() - 4


# --------------------------------------------------------------------------------------------------
# Mirror

@BOTH
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), spin=st.floats(-0.2, 0.2))
def test_mirrored_features_are_the_features_of_mirrored_joints(skeleton, seed, spin):
    joints, target = tumble(skeleton, seed, frames=30, spin=spin), symmetric_offsets(skeleton)
    for offsets in (None, target):
        features = joints_to_features(joints, skeleton, offsets)
        mirrored = joints_to_features(motion.mirror_joints(joints, skeleton), skeleton, offsets)
        ours = motion.mirror_features(features, skeleton)
        np.testing.assert_allclose(ours, mirrored, rtol=0, atol=1e-9 / skeleton.unit)
        assert np.abs(mirrored - features).max() > 0.01


@BOTH
def test_mirroring_golden_motion_twice_changes_nothing_and_once_changes_sides(skeleton):
    g = golden(skeleton)
    features = torch.tensor(g['features'])
    mirrored = motion.mirror_features(features, skeleton)
    assert torch.equal(motion.mirror_features(mirrored, skeleton), features)
    np.testing.assert_array_equal(motion.mirror_features(g['features'], skeleton), mirrored)
    np.testing.assert_array_equal(mirrored[:, -4:], features[:, [-2, -1, -4, -3]])
    np.testing.assert_allclose(
        features_to_joints(mirrored, skeleton) * skeleton.unit,
        motion.mirror_joints(features_to_joints(features, skeleton), skeleton) * skeleton.unit,
        atol=1e-9,
    )
    joints = motion.mirror_joints(g['joints'], skeleton)
    left, right = skeleton.joint_names.index('left_wrist'), skeleton.joint_names.index(
        'right_wrist'
    )
    np.testing.assert_array_equal(joints[:, left], g['joints'][:, right] * [-1, 1, 1])
    np.testing.assert_array_equal(joints[:, 0], g['joints'][:, 0] * [-1, 1, 1])


# --------------------------------------------------------------------------------------------------
# Batches, gradients, precision

@BOTH
def test_a_batch_is_its_clips(skeleton):
    features = torch.tensor(golden(skeleton)['features'])
    batch = torch.stack(
        [features, motion.mirror_features(features, skeleton), 0.5 * features]
    ).unflatten(0, (1, 3))
    offsets = golden(skeleton)['target_offsets']
    for function in (lambda f: features_to_joints(f, skeleton),
                     lambda f: motion.features_to_joints_from_rotations(f, skeleton, offsets)):
        joints = function(batch)
        assert joints.shape == (1, 3, len(features), skeleton.num_joints, 3)
        for k in range(3):
            torch.testing.assert_close(joints[0, k], function(batch[0, k]))
        assert function(features[:1]).shape == (1, skeleton.num_joints, 3)


def test_gradients_are_right():
    torch.manual_seed(0)
    features = torch.randn(2, 3, 263, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor(T2M_OFFSETS, requires_grad=True)
    rotations = torch.randn(2, 22, 6, dtype=torch.float64, requires_grad=True)
    root = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    for function, inputs in [
            (lambda f: features_to_joints(f, T2M), (features,)),
            (lambda f, o: motion.features_to_joints_from_rotations(f, T2M, o), (features, offsets)),
            (lambda r, p, o: motion.forward_kinematics(motion.matrix_from_6d(r), p, o, T2M.parents),
             (rotations, root, offsets))]:
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    for function, width in CONVERSIONS:
        value = torch.randn(5, width, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(function, value)


CONVERSIONS = [
    (motion.axis_angle_to_matrix, 3),
    (motion.quaternion_to_matrix, 4),
    (motion.matrix_from_6d, 6),
    (lambda v: motion.matrix_to_quaternion(motion.axis_angle_to_matrix(v)), 3),
    (lambda v: motion.matrix_to_axis_angle(motion.axis_angle_to_matrix(v)), 3),
]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_gradients_at_zero_are_finite(dtype):
    features = torch.zeros(1, 4, 263, dtype=dtype, requires_grad=True)
    features_to_joints(features, T2M).sum().backward()
    motion.features_to_joints_from_rotations(features, T2M, T2M_OFFSETS).sum().backward()
    assert features.grad.isfinite().all()
    for function, width in CONVERSIONS:
        value = torch.zeros(2, width, dtype=dtype, requires_grad=True)
        function(value).square().sum().backward()
        assert value.grad.isfinite().all()


def test_half_precision_features_are_summed_in_single():
    features = torch.tensor(golden(T2M)['features'])
    for dtype in (torch.bfloat16, torch.float16):
        joints = features_to_joints(features.to(dtype), T2M)
        assert joints.dtype == torch.float32
        torch.testing.assert_close(joints, features_to_joints(features.to(dtype).float(), T2M))
    with torch.autocast('cpu', torch.bfloat16):
        rot = motion.features_to_joints_from_rotations(
            features.float(), T2M, golden(T2M)['target_offsets']
        )
    np.testing.assert_allclose(rot, golden(T2M)['recovered_from_rot'], atol=2e-6)


# --------------------------------------------------------------------------------------------------
# Rotations and forward kinematics

def test_known_rotations():
    quarter = np.pi / 2
    about_y = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # takes Z to X
    np.testing.assert_allclose(
        motion.axis_angle_to_matrix(np.array([0, quarter, 0])), about_y, atol=1e-12
    )
    np.testing.assert_allclose(
        motion.quaternion_to_matrix(np.array([1.0, 0, 1, 0])), about_y, atol=1e-12
    )
    np.testing.assert_allclose(motion.matrix_to_6d(about_y), [0, 0, -1, 0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(
        motion.matrix_from_6d(np.array([0, 0, -3, 0, 2, 1])), about_y, atol=1e-9
    )
    np.testing.assert_allclose(motion.matrix_to_axis_angle(about_y), [0, quarter, 0], atol=1e-12)
    assert motion.axis_angle_to_matrix(np.zeros((2, 3), np.float32)).dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    st.sampled_from([1e-9, 1e-5, 1e-3, 0.1, 1.0, np.pi, 3.5]),
)
def test_conversions_agree(axis, angle):
    size = np.linalg.norm(axis)
    vector = np.array(axis) * (angle / size if size > 1e-3 else 0)
    matrix = motion.axis_angle_to_matrix(vector)
    np.testing.assert_allclose(
        matrix,
        torch.linalg.matrix_exp(
            torch.tensor(
                [[0, -vector[2], vector[1]], [vector[2], 0, -vector[0]], [-vector[1], vector[0], 0]]
            )
        ),
        atol=1e-9,
    )
    quaternion = motion.matrix_to_quaternion(matrix)
    assert abs(np.linalg.norm(quaternion) - 1) < 1e-9 and quaternion[0] >= 0
    np.testing.assert_allclose(motion.quaternion_to_matrix(3 * quaternion), matrix, atol=1e-9)
    np.testing.assert_allclose(
        motion.matrix_from_6d(motion.matrix_to_6d(matrix)), matrix, atol=1e-9
    )
    np.testing.assert_allclose(
        motion.axis_angle_to_matrix(motion.matrix_to_axis_angle(matrix)), matrix, atol=1e-9
    )
    if angle < np.pi:
        np.testing.assert_allclose(motion.matrix_to_axis_angle(matrix), vector, atol=1e-9)


def test_forward_kinematics_of_an_arm():
    """Shoulder turned a quarter about Z, elbow a quarter about Z: upper arm up, forearm back."""
    turn = motion.axis_angle_to_matrix(np.array([[0, 0, np.pi / 2], [0, 0, np.pi / 2], [0, 0, 0]]))
    offsets = np.array([[9, 9, 9], [2, 0, 0], [1, 0, 0]])
    joints = motion.forward_kinematics(turn, np.array([1, 1, 1]), offsets, (-1, 0, 1))
    np.testing.assert_allclose(joints, [[1, 1, 1], [1, 3, 1], [0, 3, 1]], atol=1e-12)
    batch = motion.forward_kinematics(
        torch.tensor(turn).expand(4, 5, 3, 3, 3), torch.ones(3), offsets, (-1, 0, 1)
    )
    np.testing.assert_allclose(batch[2, 3], joints)


# --------------------------------------------------------------------------------------------------
# Bad input: one sentence that names the clip

def degenerate(name):
    joints = tumble(T2M, frames=6)
    if name == 'nan':
        joints[3, 7, 1] = np.nan
    if name == 'infinite':
        joints[3, 7, 1] = np.inf
    if name == 'one frame':
        joints = joints[:1]
    if name == 'no frames':
        joints = joints[:0]
    if name == 'constant pose':
        joints = np.repeat(joints[:1], 6, axis=0)
    if name == 'one point':
        joints = np.repeat(joints[:, :1], 22, axis=1)
    if name == 'all zero':
        joints = np.zeros_like(joints)
    if name == 'one bone':
        joints[3, 7] = joints[3, 4]
    if name == 'collinear upright':
        joints[..., [0, 2]] = joints[:, :1, [0, 2]]
        joints[..., 1] = np.linspace(0, 2, 22) + np.arange(6)[:, None]
    if name == 'collinear level':
        joints = joints[:, :1] + np.linspace(0, 2, 22)[None, :, None] * [1.0, 0, 0]
    if name == 'steep':  # hips and shoulders one over the other
        joints[0, [2, 17]] = joints[0, [1, 16]] + [0, 0.3, 0]
    if name == 'equal widths':  # shoulder line minus hip line is nothing
        joints[:, 17] = joints[:, 16] + joints[:, 2] - joints[:, 1]
    if name == 'wrong joints':
        joints = joints[:, :21]
    if name == 'flat':
        joints = joints.reshape(6, -1)
    return joints


@pytest.mark.parametrize(
    'name, message',
    [
        ('nan', 'not finite numbers in frame 3'),
        ('infinite', 'not finite numbers in frame 3'),
        ('one frame', 'at least 2 frames, found 1'),
        ('no frames', 'at least 2 frames, found 0'),
        ('constant pose', 'all 6 frames are the same pose'),
        ('all zero', 'all 6 frames are the same pose'),
        ('one point', 'are in the same place in frame 0'),
        ('one bone', 'joints left_knee and left_ankle are in the same place in frame 3'),
        ('collinear upright', 'all joints lie on one line in frame 0'),
        ('collinear level', 'all joints lie on one line in frame 0'),
        ('steep', 'do not tell where the person faces in frame 0'),
        ('equal widths', 'shoulders are only as wide as hips in frame 0'),
        ('wrong joints', r'shape \(T, 22, 3\), found \(6, 21, 3\)'),
        ('flat', r'shape \(T, 22, 3\), found \(6, 66\)'),
    ],
)
def test_degenerate_motion_is_refused_by_name(name, message):
    # a body of other proportions would resolve the last two
    for offsets in (None,) if name in ('steep', 'equal widths') else (None, T2M_OFFSETS):
        with pytest.raises(ValueError, match=f'^clip M007975: .*{message}'):
            joints_to_features(degenerate(name), T2M, offsets, clip='M007975')


@pytest.mark.filterwarnings('error')
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
    st.sampled_from([0.0, 1e-12, 1e-6, 1e-2]),
)
def test_features_are_finite_or_refused(seed, size, noise):
    """Random, almost collinear or almost constant joints: never NaN, never a warning from numpy."""
    rng = np.random.default_rng(seed)
    joints = size * (
        rng.normal(size=(1, 22, 1)) * rng.normal(size=3) + noise * rng.normal(size=(5, 22, 3))
    )
    try:
        assert np.isfinite(joints_to_features(joints, T2M, T2M_OFFSETS)).all()
    except ValueError as error:
        assert str(error).startswith('this motion: ')


def test_wrong_number_of_features_is_refused():
    for function in (lambda f: features_to_joints(f, KIT),
                     lambda f: motion.features_to_joints_from_rotations(f, KIT, None)):
        with pytest.raises(
            ValueError, match='the kit skeleton has 251 features per frame, found 263'
        ):
            function(torch.zeros(2, 5, 263))


@pytest.mark.filterwarnings('error')
def test_a_rest_pose_that_cannot_be_written_is_no_reason_to_warn():
    rest, features = np.zeros((24, 3)), np.zeros((2, 150), np.float32)
    rest.flags.writeable = False
    assert motion.to_metres(features, 'smpl', rest).shape == (2, 24, 3)
