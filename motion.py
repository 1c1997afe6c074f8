"""Skeletons; joints <-> the numbers per frame that the networks see; rotations.

The features of a frame ("Generating Diverse and Natural 3D Human Motions from Text", CVPR 2022):

| part                  | T2M     | KIT     | numbers | meaning                                   |
| --------------------- | ------- | ------- | ------- | ----------------------------------------- |
| root_angular_velocity | 0:1     | 0:1     | 1       | HALF the turn to the next frame, radians  |
| root_linear_velocity  | 1:3     | 1:3     | 2       | root's step in X and Z to the next frame  |
| root_height           | 3:4     | 3:4     | 1       | Y of the root above the floor             |
| positions             | 4:67    | 4:64    | (J-1)x3 | joints 1..J-1; Y is above the floor       |
| rotations             | 67:193  | 64:184  | (J-1)x6 | bones 1..J-1, each relative to its parent |
| velocities            | 193:259 | 184:247 | J x 3   | every joint's step to the next frame      |
| contacts              | 259:263 | 247:251 | 4       | 1 where left ankle, left toe, right ankle |
|                       |         |         |         | or right toe stands on the floor          |

T2M has J = 22 joints, in metres at 20 frames a second; KIT has 21, in millimetres at 12.5. Turns to
the right are positive. Steps and positions are seen from the body: turned about Y so that the
person faces +Z, and positions are relative to the root in X and Z. T frames of joints give T-1
frames of features. `FEATURE_SLICES(skeleton)` is this table as slices.

The heading is odd in three ways, which are kept because published features and weights have them:
- it is the normal of the shoulder line MINUS the hip line, smoothed over two seconds to each side;
- frame 0 always faces +Z, whatever the smoothing says, so a clip's first turn is often large;
- a chain that starts at the chest has rotations relative to the root.
One oddity is not kept: where the heading passes 180 degrees, the published code turns the wrong way
for a frame, which bends the rest of the path. Here it turns the short way, and joints come back.
"""
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F

# --------------------------------------------------------------------------------------------------
# Skeletons

X, Y, Z = np.eye(3)
SMPL_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)


@dataclass(frozen=True, eq=False)
class Skeleton:
    """The joints of a body."""
    name: str
    joint_names: tuple
    chains: tuple  # kinematic chains of joint numbers, each from where it branches off
    offsets_dir: np.ndarray  # (J, 3) unit directions from parent to joint that mean "no rotation"
    face_joints: tuple  # right hip, left hip, right shoulder, left shoulder
    feet: tuple  # (right ankle, right toe), (left ankle, left toe)
    leg: tuple  # two bones; their length scales the root's path onto another body
    feet_threshold: float  # a foot stands where its squared step is below this
    fps: float
    unit: float  # metres in one unit of length

    @property
    def num_joints(self):
        return len(self.joint_names)

    @property
    def num_features(self):
        return 12 * self.num_joints - 1

    @cached_property
    def parents(self):
        """The joint at the other end of each joint's bone; -1 for the root."""
        parent = {child: joint for chain in self.chains for joint, child in zip(chain, chain[1:])}
        return tuple(parent.get(j, -1) for j in range(self.num_joints))

    @cached_property
    def rotation_parents(self):
        """What each bone's rotation is relative to: its parent, or 0 at a chain's start."""
        first = {chain[1] for chain in self.chains}
        return tuple(0 if j in first else p for j, p in enumerate(self.parents))

    @cached_property
    def mirror(self):
        """The joint on the other side of the body, for each joint."""
        swap = {'left': 'right', 'right': 'left'}
        words = [name.split('_') for name in self.joint_names]
        return tuple(words.index([swap.get(word, word) for word in name]) for name in words)


T2M = Skeleton(
    name='t2m', joint_names=tuple(
        '''pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle
        spine3 left_foot right_foot neck left_collar right_collar head left_shoulder right_shoulder
        left_elbow right_elbow left_wrist right_wrist'''.split()),
    chains=((0, 2, 5, 8, 11), (0, 1, 4, 7, 10), (0, 3, 6, 9, 12, 15), (9, 14, 17, 19, 21),
            (9, 13, 16, 18, 20)),
    offsets_dir=np.array([0 * X, X, -X, Y, -Y, -Y, Y, -Y, -Y, Y, Z, Z, Y, X, -X, Z,
                          -Y, -Y, -Y, -Y, -Y, -Y]),
    face_joints=(2, 1, 17, 16), feet=((8, 11), (7, 10)), leg=(5, 8), feet_threshold=0.002,
    fps=20.0, unit=1.0)

KIT = Skeleton(
    name='kit', joint_names=tuple(
        '''pelvis belly thorax neck head right_shoulder right_elbow right_wrist left_shoulder
        left_elbow left_wrist right_hip right_knee right_ankle right_midfoot right_toe left_hip
        left_knee left_ankle left_midfoot left_toe'''.split()),
    chains=((0, 11, 12, 13, 14, 15), (0, 16, 17, 18, 19, 20), (0, 1, 2, 3, 4), (3, 5, 6, 7),
            (3, 8, 9, 10)),
    offsets_dir=np.array([0 * X, Y, Y, Y, Y, X, -Y, -Y, -X, -Y, -Y, X, -Y, -Y, Z, Z,
                          -X, -Y, -Y, Z, Z]),
    face_joints=(11, 16, 5, 8), feet=((14, 15), (19, 20)), leg=(17, 18), feet_threshold=0.05,
    fps=12.5, unit=0.001)

SKELETONS = {'t2m': T2M, 'kit': KIT}

# HumanML3D puts everybody on one body: bone lengths in metres, measured on its example clip.
T2M_OFFSETS = T2M.offsets_dir * np.array([
    0.0, 0.1030740, 0.1098834, 0.1315682, 0.3936232, 0.3901882, 0.1431902, 0.4324330, 0.4256434,
    0.0573647, 0.1433817, 0.1494190, 0.2193600, 0.1374868, 0.1433828, 0.1030392, 0.1316140,
    0.1229844, 0.2568399, 0.2630918, 0.2660118, 0.2698763])[:, None]


def _feature_sizes(skeleton):
    j = skeleton.num_joints
    return {'root_angular_velocity': 1, 'root_linear_velocity': 2, 'root_height': 1,
            'positions': 3 * (j - 1), 'rotations': 6 * (j - 1), 'velocities': 3 * j, 'contacts': 4}


def FEATURE_SLICES(skeleton):
    """Name -> slice of the last axis of the features; the table at the top of this file."""
    sizes = _feature_sizes(skeleton).items()
    ends = accumulate(size for _, size in sizes)
    return {name: slice(end - size, end) for (name, size), end in zip(sizes, ends)}


# --------------------------------------------------------------------------------------------------
# Rotations of column vectors, with gradients that are finite at zero; quaternions are (w, x, y, z)

def _numpy_too(function):
    """Let a torch function take a numpy array as its first argument, and then return numpy."""
    @wraps(function)
    def either(first, *rest, **named):
        if isinstance(first, torch.Tensor):
            return function(first, *rest, **named)
        array = np.array(first, np.result_type(np.asarray(first), np.float32))
        return function(torch.from_numpy(array), *rest, **named).numpy()
    return either


# Products are sums because training may round matrix products to bfloat16: centimetres of error.
def _apply(matrix, vector):
    return (matrix * vector[..., None, :]).sum(-1)


def _compose(a, b):
    return (a[..., None] * b[..., None, :, :]).sum(-2)


def _unit(vector):
    square = vector.square().sum(-1, keepdim=True)
    return vector * (square + 1e-12).rsqrt()  # the root of 0 would have no finite gradient


@_numpy_too
def axis_angle_to_matrix(axis_angle):
    """(..., 3) rotation vectors in radians -> (..., 3, 3), by Rodrigues' formula."""
    square = axis_angle.square().sum(-1)[..., None, None]
    small = square < 1e-8
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    a = torch.where(small, 1 - square / 6, angle.sin() / angle)
    cosine = 2 * ((angle / 2).sin() / angle).square()  # (1 - cos) / angle^2
    b = torch.where(small, 0.5 - square / 24, cosine)
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.eye(3, dtype=k.dtype, device=k.device) + a * k + b * _compose(k, k)


@_numpy_too
def matrix_to_axis_angle(matrix):
    """(..., 3, 3) -> (..., 3) rotation vectors, of length 0 to pi."""
    quaternion = matrix_to_quaternion(matrix)
    w, v = quaternion[..., :1], quaternion[..., 1:]
    square = v.square().sum(-1, keepdim=True)
    small = square < 1e-12
    length = torch.where(small, torch.ones_like(square), square).sqrt()
    return v * torch.where(small, 2 / w.clamp_min(0.5), 2 * torch.atan2(length, w) / length)


@_numpy_too
def quaternion_to_matrix(quaternion):
    """(..., 4) as (w, x, y, z), of any length but 0 -> (..., 3, 3)."""
    square = quaternion.square().sum(-1, keepdim=True).clamp_min(1e-12)
    w, x, y, z = (quaternion * (2 / square).sqrt()).unbind(-1)
    rows = [1 - y * y - z * z, x * y - w * z, x * z + w * y,
            x * y + w * z, 1 - x * x - z * z, y * z - w * x,
            x * z - w * y, y * z + w * x, 1 - x * x - y * y]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


@_numpy_too
def matrix_to_quaternion(matrix):
    """(..., 3, 3) -> (..., 4) unit quaternions (w, x, y, z) with w >= 0."""
    a, b, c, d, e, f, g, h, i = matrix.flatten(-2).unbind(-1)
    # Row i of 4 q q^T is 4 q_i q; the row of the largest q_i is never near zero.
    rows = torch.stack([1 + a + e + i, h - f, c - g, d - b,
                        h - f, 1 + a - e - i, b + d, c + g,
                        c - g, b + d, 1 - a + e - i, f + h,
                        d - b, c + g, f + h, 1 - a - e + i], dim=-1).unflatten(-1, (4, 4))
    largest = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    row = rows.gather(-2, largest.expand(*rows.shape[:-2], 1, 4)).squeeze(-2)
    quaternion = F.normalize(row, dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


@_numpy_too
def matrix_to_6d(matrix):
    """(..., 3, 3) -> (..., 6): the first two COLUMNS (Zhou et al., CVPR 2019); ACTOR has ROWS."""
    return matrix[..., :2].mT.flatten(-2)


@_numpy_too
def matrix_from_6d(numbers):
    """(..., 6), any numbers -> (..., 3, 3); the second column is perpendicular to the first."""
    x = _unit(numbers[..., :3])
    z = _unit(torch.linalg.cross(x, numbers[..., 3:]))
    return torch.stack([x, torch.linalg.cross(z, x), z], dim=-1)


@_numpy_too
def forward_kinematics(rotations, root, offsets, parents):
    """Joint positions (..., J, 3) of a tree of rotations as in SMPL and BVH, where joint j turns
    the bones after it. rotations (..., J, 3, 3) relative to the parent; root (..., 3); offsets
    (J, 3) from the parent at rest, row 0 unused; parents (J,), each before its children."""
    root, offsets = (torch.as_tensor(a, dtype=rotations.dtype, device=rotations.device)
                     for a in (root, offsets))
    turned, positions = [rotations[..., 0, :, :]], [root.expand(rotations.shape[:-3] + (3,))]
    for j, p in enumerate(parents[1:], start=1):
        turned.append(_compose(turned[p], rotations[..., j, :, :]))
        positions.append(positions[p] + _apply(turned[p], offsets[j]))
    return torch.stack(positions, dim=-2)


def keep_bones(joints, lengths, parents):
    """Generated joints (..., J, 3) -> the same with constant bone lengths (J,), row 0 unused.
    Each joint moves along the line to its parent. parents (J,), each before its children."""
    placed = [joints[..., 0, :]]
    for j, p in enumerate(parents[1:], start=1):
        bone = joints[..., j, :] - placed[p]
        length = np.linalg.norm(bone, axis=-1, keepdims=True).clip(1e-9)
        placed.append(placed[p] + bone * lengths[j] / length)
    return np.stack(placed, axis=-2)


# --------------------------------------------------------------------------------------------------
# Joints -> features (numpy, one clip, float64 inside)

def turn_about_y(angle, points):
    """Turn `points (..., 3)` about Y, from Z towards X; angle (...) in radians broadcasts."""
    c, s = np.cos(angle), np.sin(angle)
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack(np.broadcast_arrays(c * x + s * z, y, c * z - s * x), axis=-1)


def _refuse(clip, reason):
    raise ValueError(f'{f"clip {clip}" if clip else "this motion"}: {reason}')


def _refuse_frames(bad, clip, reason):
    if bad.any():  # (T, ...)
        _refuse(clip, f'{reason} in frame {np.argwhere(bad)[0, 0]}')


def _checked(joints, skeleton, clip):
    """Joints as float64; ValueError for poses whose features would be NaN or noise."""
    name, names, parents = skeleton.name, skeleton.joint_names, skeleton.parents
    if joints.ndim != 3 or joints.shape[1:] != (len(names), 3):
        _refuse(clip, f'{name} joints must have shape (T, {len(names)}, 3), found {joints.shape}')
    if len(joints) < 2:
        _refuse(clip, f'features need at least 2 frames, found {len(joints)}')
    joints = joints.astype(np.float64)
    _refuse_frames(~np.isfinite(joints), clip, 'joint positions are not finite numbers')
    size = np.abs(joints - joints[:, :1]).max()
    if np.abs(joints - joints[0]).max() <= 1e-7 * size:
        _refuse(clip, f'all {len(joints)} frames are the same pose, and a motion must move')
    for j, p in enumerate(parents[1:], start=1):
        short = np.linalg.norm(joints[:, j] - joints[:, p], axis=-1) <= 1e-6 * size
        _refuse_frames(short, clip, f'joints {names[p]} and {names[j]} are in the same place')
    centred = joints - joints.mean(axis=1, keepdims=True)
    spread = np.linalg.eigvalsh(centred.swapaxes(1, 2) @ centred)  # (T, 3) ascending
    _refuse_frames(spread[:, 1] <= 1e-8 * spread[:, 2], clip, 'all joints lie on one line')
    return joints


def _facing(across, clip):
    """Lines from left to right (T, 3) -> angle about Y (T,) from +Z to where the person faces."""
    x, _, z = across.T
    _refuse_frames(np.hypot(x, z) < 1e-9, clip, 'hips and shoulders do not tell where the person '
                   'faces')
    return np.arctan2(z, -x)  # of the cross product Y x across; in (-pi, pi]


def _sides(joints, skeleton):
    """The lines from left to right (T, 3) through the hips and through the shoulders."""
    hip_r, hip_l, shoulder_r, shoulder_l = joints[:, list(skeleton.face_joints)].swapaxes(0, 1)
    return hip_r - hip_l, shoulder_r - shoulder_l


def floor_height(joints, unit=1.0):
    """Y of the floor under joints (T, J, 3), Y up: the lowest joint of all frames, as published.

    Frames in which tracking was lost do not count. They are few (5% of all, and at least one may
    be), and their lowest joint is 0.2 m below the median of the nine frames around them. unit:
    metres in one unit of the joints."""
    lowest = joints[..., 1].min(axis=1)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(lowest, 4, mode='edge'), 9)
    lost = lowest < np.median(around, axis=1) - 0.2 / unit
    if not lost.any() or lost.sum() > max(1, 0.05 * len(lost)):
        return lowest.min()
    return lowest[~lost].min()


def unit_rows(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def canonical_joints(joints, skeleton, target_offsets=None, clip=''):
    """Joints (T, J, 3), Y up, in the skeleton's unit -> (T, J, 3) on the floor, at the origin and
    facing +Z in frame 0, on the body of `target_offsets (J, 3)` if given. ValueError naming `clip`
    if they are degenerate."""
    joints = np.asarray(joints)
    dtype, joints = np.result_type(joints.dtype, np.float32), _checked(joints, skeleton, clip)
    if target_offsets is not None:
        # The published inverse and forward kinematics come to this: only bone lengths change.
        target = np.linalg.norm(target_offsets, axis=-1)
        bones = joints - joints[:, (0, *skeleton.parents[1:])]
        lengths = np.linalg.norm(bones, axis=-1)
        joints *= sum(target[j] for j in skeleton.leg) / sum(lengths[0, j] for j in skeleton.leg)
        for j, p in enumerate(skeleton.parents[1:], start=1):
            joints[:, j] = joints[:, p] + bones[:, j] * (target[j] / lengths[:, j, None])
    joints = joints - joints[0, 0] * (X + Z) - floor_height(joints, skeleton.unit) * Y
    across = unit_rows(sum(_sides(joints[:1], skeleton)))
    return turn_about_y(-_facing(across, clip), joints).astype(dtype)


def _body_turn(joints, skeleton, clip):
    """The angle about Y (T,) that turns each frame to face +Z; 0 for frame 0, as published."""
    hips, shoulders = _sides(joints, skeleton)
    across = shoulders - hips  # the published code meant the sum, but mixes up its joints
    size, width = np.linalg.norm(across, axis=-1), np.linalg.norm(shoulders, axis=-1)
    _refuse_frames(size < 1e-5 * width, clip, 'shoulders are only as wide as hips')
    # Gaussian filter, sigma 20 frames, cut at 4 sigma, the ends repeated
    weights = np.exp(-0.5 * (np.arange(-80, 81) / 20) ** 2)
    weights /= weights.sum()
    padded = np.pad(across / size[:, None], ((80, 80), (0, 0)), mode='edge')
    smooth = [np.convolve(column, weights, mode='valid') for column in padded.T]
    angle = -_facing(np.stack(smooth, axis=1), clip)
    angle[0] = 0
    return angle


def rotation_between(u, v):
    """The shortest rotation (..., 3, 3) from unit vector u to v (..., 3): I - 2 h h^T + 2 v u^T,
    where h is the unit vector half-way."""
    half = u + v
    size = np.linalg.norm(half, axis=-1, keepdims=True)
    opposite = size < 1e-9  # then half a turn about a coordinate axis perpendicular to u
    half = np.where(opposite, np.roll(u, 1, axis=-1), half / np.where(opposite, 1, size))
    return np.eye(3) - 2 * half[..., None] * half[..., None, :] + 2 * v[..., None] * u[..., None, :]


def joints_to_features(joints, skeleton, target_offsets=None, clip=''):
    """Joints (T, J, 3), Y up, in the skeleton's unit -> features (T-1, 12 J - 1), as in the table.
    target_offsets (J, 3): the body to put the motion on (HumanML3D: `T2M_OFFSETS`); None keeps its
    own. ValueError naming `clip` for a wrong shape, a single frame, NaN, a pose that never changes,
    or joints in one place or on one line."""
    dtype = np.result_type(np.asarray(joints).dtype, np.float32)
    joints = canonical_joints(np.asarray(joints, np.float64), skeleton, target_offsets, clip)
    frames, turn = len(joints) - 1, _body_turn(joints, skeleton, clip)  # turn (T,)
    steps = np.diff(joints, axis=0)  # (T-1, J, 3)

    half_turn = np.arctan2(np.sin(np.diff(turn)), np.cos(np.diff(turn))) / 2  # the short way
    root_step = turn_about_y(turn[1:], steps[:, 0])[:, [0, 2]]
    positions = turn_about_y(turn[:, None], joints - joints[:, :1] * (X + Z))[:-1, 1:]
    velocities = turn_about_y(turn[:-1, None], steps)

    # Rotations of the bones in the world, then relative to their parents. Rows turned by -turn are
    # columns turned by turn.
    bones = joints[:-1, 1:] - joints[:-1, skeleton.parents[1:]]
    world = rotation_between(skeleton.offsets_dir[1:], unit_rows(bones))
    root = turn_about_y(-turn[:-1, None], np.eye(3))[:, None]
    world = np.concatenate([root, world], axis=1)  # (T-1, J, 3, 3)
    rotations = world[:, skeleton.rotation_parents[1:]].swapaxes(-1, -2) @ world[:, 1:]

    feet = steps[:, list(skeleton.feet[1] + skeleton.feet[0])]  # left, then right
    contacts = (feet ** 2).sum(axis=-1) < skeleton.feet_threshold
    rotations, height = matrix_to_6d(rotations), joints[:-1, 0, 1]
    parts = [half_turn, root_step, height, positions, rotations, velocities, contacts]
    return np.concatenate([part.reshape(frames, -1) for part in parts], axis=1).astype(dtype)


# --------------------------------------------------------------------------------------------------
# Features -> joints (torch, batched, differentiable: it is part of the VAE's loss)

def _unpack(features, skeleton):
    """Cosine and sine of the body's turn (..., T); the root's x, y, z; positions (..., T, J-1, 3);
    rotations (..., T, J-1, 6)."""
    sizes = list(_feature_sizes(skeleton).values())
    if features.shape[-1] != sum(sizes):
        raise ValueError(f'the {skeleton.name} skeleton has {sum(sizes)} features per frame, '
                         f'found {features.shape[-1]}')
    features = features if features.dtype == torch.float64 else features.float()  # for long sums
    angular, linear, height, positions, rotations, _, _ = features.split(sizes, dim=-1)
    turn = 2 * F.pad(angular[..., :-1, 0], (1, 0)).cumsum(dim=-1)  # steps lead to the next frame
    c, s = turn.cos(), turn.sin()
    vx, vz = F.pad(linear[..., :-1, :], (0, 0, 1, 0)).unbind(-1)
    root = (c * vx - s * vz).cumsum(dim=-1), height[..., 0], (s * vx + c * vz).cumsum(dim=-1)
    return c, s, root, positions.unflatten(-1, (-1, 3)), rotations.unflatten(-1, (-1, 6))


def features_to_joints(features, skeleton):
    """Features (..., T, F), not normalised -> joints (..., T, J, 3) that start at the origin, from
    the positions ("ric") in the features."""
    c, s, root, positions, _ = _unpack(features, skeleton)
    x, y, z = positions.unbind(-1)  # (..., T, J-1)
    c, s, (root_x, _, root_z) = c[..., None], s[..., None], (r[..., None] for r in root)
    joints = torch.stack([c * x - s * z + root_x, y, s * x + c * z + root_z], dim=-1)
    return torch.cat([torch.stack(root, dim=-1)[..., None, :], joints], dim=-2)


@_numpy_too
def to_metres(features, name, rest=None):
    """Features (..., T, F), not normalised, of skeleton "t2m", "kit" or "smpl" -> joints
    (..., T, J, 3) in metres. Those of "smpl" are rotations of a body rest (24, 3), in metres."""
    if name in SKELETONS:
        return features_to_joints(features, SKELETONS[name]) * SKELETONS[name].unit
    rows = features.unflatten(-1, (25, 6))
    rest = (rest if isinstance(rest, torch.Tensor) else torch.tensor(rest)).to(features)
    offsets = rest - rest[[max(p, 0) for p in SMPL_PARENTS]]
    rotations = matrix_from_6d(rows[..., :24, :]).mT  # ACTOR's six numbers are rows of the matrix
    return forward_kinematics(rotations, rows[..., 24, :3], offsets, SMPL_PARENTS)


def features_to_joints_from_rotations(features, skeleton, offsets):
    """Like `features_to_joints`, but from the rotations, on a body with these offsets (J, 3)."""
    c, s, root, _, rotations = _unpack(features, skeleton)
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    body = torch.stack([c, zero, s, zero, one, zero, -s, zero, c], dim=-1).unflatten(-1, (3, 3))
    turned, joints, rotations = [body], [torch.stack(root, dim=-1)], matrix_from_6d(rotations)
    offsets = torch.as_tensor(offsets, dtype=c.dtype, device=c.device)
    for j in range(1, skeleton.num_joints):  # unlike in SMPL, joint j turns the bone before it
        before = turned[skeleton.rotation_parents[j]]
        turned.append(_compose(before, rotations[..., j - 1, :, :]))
        joints.append(joints[skeleton.parents[j]] + _apply(turned[j], offsets[j]))
    return torch.stack(joints, dim=-2)


# --------------------------------------------------------------------------------------------------
# Mirroring: left becomes right

@_numpy_too
def mirror_joints(joints, skeleton):
    """Joints (..., J, 3), numpy or torch -> those of the mirrored motion: x becomes -x."""
    return joints[..., list(skeleton.mirror), :] * joints.new_tensor([-1, 1, 1])


@lru_cache
def _mirror_table(skeleton):
    """For each feature: where its mirrored value comes from, and its sign."""
    slices, joints = FEATURE_SLICES(skeleton), np.array(skeleton.mirror)
    source, sign = np.arange(skeleton.num_features), np.ones(skeleton.num_features)

    def exchange(part, order, signs):
        source[slices[part]] = source[slices[part]].reshape(-1, len(signs))[order].ravel()
        sign[slices[part]] = np.tile(signs, len(order))

    sign[[0, 1]] = -1  # the turn about Y and the step in X
    exchange('positions', joints[1:] - 1, [-1, 1, 1])
    exchange('rotations', joints[1:] - 1, [1, -1, -1, -1, 1, 1])  # of M R M, M = diag(-1, 1, 1)
    exchange('velocities', joints, [-1, 1, 1])
    exchange('contacts', [1, 0], [1, 1])
    return source, sign


@_numpy_too
def mirror_features(features, skeleton):
    """Features (..., F), not normalised, numpy or torch -> those of the mirrored motion."""
    source, sign = _mirror_table(skeleton)
    return features[..., torch.from_numpy(source).to(features.device)] * features.new_tensor(sign)
