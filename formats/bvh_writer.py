"""Writes a motion as a BVH file that other software opens.

    write_bvh("out.bvh", joints)                          # rotations only, for any reader
    write_bvh("out.bvh", joints, fps=30, unit="cm")
    write_bvh("out.bvh", joints, exact=True)              # joints may move, too: within 1 mm

Rotations only: the bones are rigid and the same on both sides, and only the root has a position.
That moves joints by 1.8 mm on average and 6 mm at most on the toy motions, by 1.7 and 4 mm on
recordings. Motions of a model are less rigid: 2 mm on average, and up to 26 mm in single frames
that bend the pelvis or the chest itself. `exact` keeps every joint within 1 mm, by position
channels on joints whose bone stretches; some programs refuse those, or add them to the OFFSET.

At rest both are in a T-pose with Mixamo's names. Rotations only: standing on the floor. Position
channels replace the OFFSET, as in Blender. (The loader of three.js adds the two: there, take the
OFFSET of Hips off the root's track.)
"""
import numpy as np

from files import atomic_write
from formats.rotations import fit_body, fork_frame, t_pose_of
from motion import T2M, rotation_between, unit_rows

UNITS = {"m": 1, "cm": 100}  # in a metre
SLACK = 0.0005  # metres; in exact files a bone that stretches by more gets position channels
MIXAMO = {  # retargeting tools know these names; KIT and SMPL have some joints more
    "pelvis": "Hips", "spine1": "Spine", "spine2": "Spine1", "spine3": "Spine2", "neck": "Neck",
    "head": "Head", "hip": "UpLeg", "knee": "Leg", "ankle": "Foot", "foot": "ToeBase",
    "collar": "Shoulder", "shoulder": "Arm", "elbow": "ForeArm", "wrist": "Hand",
    "hand": "HandMiddle1", "belly": "Spine", "thorax": "Spine1", "midfoot": "ToeBase",
    "toe": "Toe_End"}


def names_of(pose):
    """The names that are written, for each joint of a TPose."""
    parts = [name.rpartition("_") for name in pose.joint_names]
    return tuple(side.capitalize() + MIXAMO[part] for side, _, part in parts)


def write_bvh(path, joints, fps=T2M.fps, exact=False, unit="m"):
    """joints (T, J, 3), metres, Y up, of T2M's 22 joints, KIT's 21 or SMPL's 24 -> a BVH file.

    ValueError for other shapes, numbers that are not finite, and impossible settings."""
    if unit not in UNITS or not 0 < fps <= 1000:
        raise ValueError(f"{path}: BVH export needs a unit of m or cm and 1000 frames a second at "
                         f"most, found {unit} and {fps:g}")
    pose, joints = t_pose_of(joints, path)
    if exact:
        rotations, offsets, local, moves = _stretching(joints, pose)
    else:
        body = fit_body(joints, fps)
        rotations, offsets, local = body.rotations, body.offsets, body.joints
        moves = np.arange(len(offsets)) == 0
    angles = zxy_degrees(rotations)  # (T, J, 3)
    offsets, local = offsets * UNITS[unit], local * UNITS[unit]
    names, lines, columns = names_of(pose), ["HIERARCHY"], []

    def write_joint(j, pad):
        if moves[j]:
            columns.append(local[:, j])
        columns.append(angles[:, j])
        channels = "6 Xposition Yposition Zposition" if moves[j] else "3"
        lines.extend([f"{pad}{'JOINT' if j else 'ROOT'} {names[j]}", pad + "{",
                      f"{pad}  OFFSET {numbers(offsets[j])}",
                      f"{pad}  CHANNELS {channels} Zrotation Xrotation Yrotation"])
        for child in pose.children[j]:
            write_joint(child, pad + "  ")
        if not pose.children[j]:
            end = pose.directions[j] * (1, pose.joint_names[j][-4:] not in ("foot", "_toe"), 1)
            lines.extend([pad + "  End Site", pad + "  {",
                          f"{pad}    OFFSET {numbers(0.1 * UNITS[unit] * end)}", pad + "  }"])
        lines.append(pad + "}")

    def numbers(row):
        return " ".join(f"{number:.6f}" for number in row)

    write_joint(0, "")
    lines += ["MOTION", f"Frames: {len(joints)}", f"Frame Time: {1 / fps:.8f}"]
    lines += [numbers(row) for row in np.concatenate(columns, axis=1)]
    with atomic_write(path, "w") as file:
        file.write("\n".join(lines) + "\n")


# --------------------------------------------------------------------------------------------------
# Euler angles

def zxy_degrees(matrix):
    """R = Rz(a) Rx(b) Ry(c), (T, ..., 3, 3) -> degrees a, b, c (T, ..., 3).

    Each rotation has two triples, (a, b, c) and (a + 180, 180 - b, c + 180), and full turns: the
    one nearest to the frame before is taken. Where b is 90 degrees, only a + c or a - c is known:
    there c lies between its neighbours'."""
    shape = matrix.shape[:-2]
    matrix = matrix.reshape(len(matrix), -1, 3, 3)
    b = np.arcsin(np.clip(matrix[..., 2, 1], -1, 1))
    a = np.arctan2(-matrix[..., 0, 1], matrix[..., 1, 1])
    c = np.arctan2(-matrix[..., 2, 0], matrix[..., 2, 2])
    locked = np.hypot(matrix[..., 2, 0], matrix[..., 2, 2]) < 1e-4
    angles = np.stack([a, b, c], axis=-1)  # (T, J, 3)
    for j in range(angles.shape[1]):
        free = ~locked[:, j]
        if free.any():
            angles[free, j] = _nearest_branch(angles[free, j])
        if locked[:, j].any():
            _unlock(angles[:, j], free, matrix[:, j])
    return np.degrees(angles).reshape(*shape, 3)


def _nearest_branch(angles):
    """Principal a, b, c (T, 3) in radians -> the equal ones that are nearest to the row before."""
    other = np.stack([angles[:, 0] + np.pi, np.pi - angles[:, 1], angles[:, 2] + np.pi], axis=-1)

    def distance(now):
        step = now[1:] - angles[:-1]
        return np.square((step + np.pi) % (2 * np.pi) - np.pi).sum(-1)

    # The other branch of both rows is as far apart as this one, so only changes need be counted.
    changes = np.cumsum(distance(other) < distance(angles)) % 2 == 1
    return np.unwrap(np.where(np.append(False, changes)[:, None], other, angles), axis=0)


def _unlock(angles, free, matrix):
    """Fill in, in place, the rows of angles (T, 3) at which a and c turn about the same axis."""
    frames = np.arange(len(angles))
    angles[~free, 2] = np.interp(frames[~free], frames[free], angles[free, 2]) if free.any() else 0
    for t in frames[~free]:
        near = angles[t - 1] if t else angles[np.argmax(free)] if free.any() else np.zeros(3)
        sign = np.sign(matrix[t, 2, 1])
        b = sign * np.pi / 2
        a = np.arctan2(matrix[t, 1, 0], matrix[t, 0, 0]) - sign * angles[t, 2]
        angles[t, :2] = near[:2] + ((np.array([a, b]) - near[:2] + np.pi) % (2 * np.pi) - np.pi)


# --------------------------------------------------------------------------------------------------
# Exact files: bones that stretch

def _stretching(joints, pose):
    """Inverse kinematics, joint by joint from the root, all frames at once: joints (T, J, 3) ->
    rotations relative to the parent (T, J, 3, 3), OFFSETs (J, 3), positions relative to the parent
    (T, J, 3), and whether these vary so much that the OFFSET is not enough (J,)."""
    count = len(pose.parents)
    local_turns = np.tile(np.eye(3), (len(joints), count, 1, 1))
    rotations = local_turns.copy()
    offsets, local, moves = np.zeros((count, 3)), joints.copy(), np.arange(count) == 0
    placed = joints.copy()  # where the forward kinematics of the file will put the joints
    for j, parent in enumerate(pose.parents):
        before = rotations[:, max(parent, 0)]
        if parent >= 0:
            local[:, j] = np.einsum("tji,tj->ti", before, joints[:, j] - placed[:, parent])
            length = np.median(np.linalg.norm(local[:, j], axis=-1))
            in_fork = parent in pose.forks
            offsets[j] = np.median(local[:, j], axis=0) if in_fork else pose.directions[j] * length
            moves[j] = np.linalg.norm(local[:, j] - offsets[j], axis=-1).max() > SLACK
            if not moves[j]:
                placed[:, j] = placed[:, parent] + before @ offsets[j]
        rotations[:, j] = before  # head, wrists and toes have no bone that would show a rotation
        if j in pose.forks:
            frame, valid = fork_frame(joints[:, pose.forks[j]] - placed[:, j, None])
            rotations[:, j] = np.where(valid[:, None, None], frame, np.eye(3))
        elif pose.children[j]:
            child = pose.children[j][0]
            rest = pose.directions[child]
            bone = np.einsum("tji,tj->ti", before, joints[:, child] - placed[:, j])
            bone = unit_rows(bone + 1e-8 * rest)  # a bone of length 0 points as at rest
            local_turns[:, j] = rotation_between(rest, bone)
            rotations[:, j] = before @ local_turns[:, j]
        if j in pose.forks:
            local_turns[:, j] = rotations[:, j]
            if parent >= 0:
                local_turns[:, j] = before.swapaxes(-1, -2) @ rotations[:, j]
    return local_turns, offsets, local, moves
