"""Motion capture in BVH files: reads any of them, and writes motions that other software opens.

    bvh = read_bvh("walk.bvh")              # names, parents, and world positions of every joint
    joints = rigs.to_t2m_joints(bvh)        # (T, 22, 3) metres at 20 frames a second
    write_bvh("out.bvh", joints)

Where BVH files disagree, this is how they are read: the position channels of a joint REPLACE its
OFFSET, as in Blender; rotations are in degrees, applied in the order of the CHANNELS line,
R = R1 R2 R3 for column vectors.
"""
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import atomic_write
from formats.rigs import RIGS
from formats.text import read_text
from motion import T2M, rotation_between, unit_rows

# --------------------------------------------------------------------------------------------------
# Reading

@dataclass(frozen=True)
class Bvh:
    """The contents of a file. End Sites are joints too, named like "LeftToeBase_end"."""
    path: str
    names: tuple  # J names
    parents: tuple  # J numbers, -1 for a root
    offsets: np.ndarray  # (J, 3) in the file's unit
    joints: np.ndarray  # (T, J, 3) world positions in the file's unit, by forward kinematics
    fps: float


# No two parts of these patterns can match the same text, or reading would not be linear.
NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:E[-+]?\d+)?"
HEADER = rf"\s*Frames\s*:\s*(\d{{1,9}})\s+Frame\s+Time\s*:\s*({NUMBER})(?=\s|$)"
TOKEN = re.compile(
    r"(?:ROOT|JOINT)[ \t]+(?P<joint>[^\n{}]+)|(?P<end>End[ \t]+Site)"
    rf"|OFFSET(?P<offset>(?:\s+{NUMBER}){{3}})(?=\s)"
    r"|CHANNELS\s+(?P<count>\d{1,4})(?P<channels>(?:\s+[XYZ](?:position|rotation))*)"
    r"|(?P<brace>[{}])|(?P<other>\S+)", re.I)


def _read_hierarchy(text, path):
    """-> names, parents, offsets (J, 3), and per joint channels (axis 0..2, is it a rotation)."""
    names, parents, offsets, channels = [], [], [], []
    open_joints, last, leaves = [], None, set()
    for token in TOKEN.finditer(text):
        here = open_joints[-1] if open_joints else -1
        named = (token["channels"] or "").lower().split()
        if (token["joint"] or token["end"] and open_joints) and here not in leaves:
            names.append(token["joint"].strip() if token["joint"] else names[here] + "_end")
            parents.append(here)
            offsets.append(np.zeros(3))
            channels.append(())
            last = len(names) - 1
            leaves |= {last} if token["end"] else set()
        elif token["brace"] == "{" and last is not None:
            open_joints.append(last)
            last = None
        elif token["brace"] == "}" and open_joints:
            open_joints.pop()
        elif token["offset"] and open_joints:
            offsets[here] = np.array(token["offset"].split(), float)
        elif token["count"] and open_joints and int(token["count"]) == len(named):
            channels[here] = tuple(("xyz".index(c[0]), c.endswith("rotation")) for c in named)
        else:
            line = text[:token.start()].count("\n") + 1
            raise ValueError(f"{path}, near line {line}: cannot make sense of "
                             f"{token[0].strip()[:60]!r} in a BVH hierarchy")
    if open_joints or not names:
        fault = "an unclosed {" if names else "no ROOT"
        raise ValueError(f"{path}: the hierarchy has {fault}; this is not a whole BVH file")
    return names, parents, np.stack(offsets), channels


def _read_frames(text, path, channels):
    """The text after MOTION -> (T, C) numbers, frames a second."""
    header = re.match(HEADER, text, re.I)
    if not header or int(header[1]) < 1 or not 1e-4 < float(header[2]) < 10:
        raise ValueError(f"{path}: expected 'Frames: N' and 'Frame Time: SECONDS' after MOTION, "
                         f"with at least one frame, found {text[:60].strip()!r}")
    frames, fps = int(header[1]), 1 / float(header[2])
    rows = [row.split() for row in text[header.end():].splitlines() if row.strip()]
    values = [value for row in rows for value in row]
    if len(values) != frames * channels:
        fault = "truncated" if len(values) < frames * channels else "too long"
        found = [f"frame {i} has {len(row)}" for i, row in enumerate(rows) if len(row) != channels]
        raise ValueError(f"{path}: the motion block is {fault}: the header says {frames} frames of "
                         f"{channels} numbers, but {[*found, f'there are {len(rows)} frames'][0]}")
    try:
        motion = np.array(values, dtype=np.float64).reshape(frames, channels)
    except ValueError as error:
        raise ValueError(f"{path}: the motion block holds something that is not a number "
                         f"({str(error)[:100]})") from None
    if not np.isfinite(motion).all():
        frame, channel = np.argwhere(~np.isfinite(motion))[0]
        raise ValueError(f"{path}: frame {frame}, channel {channel} is {motion[frame, channel]}, "
                         "expected a finite number")
    # Frame times have few digits: 0.033333 means 30 a second; 29.97 and 59.94 are left alone.
    return motion, float(round(fps)) if abs(fps - round(fps)) < 6e-4 * fps else fps


def _turns(axis, degrees):
    """Rotations about one axis: degrees (T,) -> (T, 3, 3)."""
    matrix = np.zeros((len(degrees), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, axis, axis] = 1
    matrix[:, i, i] = matrix[:, j, j] = np.cos(np.radians(degrees))
    matrix[:, j, i] = np.sin(np.radians(degrees))
    matrix[:, i, j] = -matrix[:, j, i]
    return matrix


def _world_positions(parents, offsets, channels, motion):
    """Forward kinematics of all frames at once: motion (T, C) -> (T, J, 3)."""
    columns = iter(motion.T)
    joints = np.empty((len(motion), len(parents), 3))
    rotations = np.empty((len(motion), len(parents), 3, 3))
    for j, parent in enumerate(parents):
        position = np.tile(offsets[j], (len(motion), 1))  # (T, 3)
        rotation = np.eye(3)[None]
        for axis, is_rotation in channels[j]:
            if is_rotation:
                rotation = rotation @ _turns(axis, next(columns))
            else:
                position[:, axis] = next(columns)
        if parent >= 0:
            before = rotations[:, parent]
            position = joints[:, parent] + np.einsum("tij,tj->ti", before, position)
            rotation = before @ rotation
        joints[:, j], rotations[:, j] = position, rotation
    return joints


BOUND = 0.5  # joints of all frames for each byte of a file; a usual file has 0.04


def read_bvh(path, encoding=None):
    """A BVH file -> Bvh. Any order of channels, frame rate and line ends; any joint may move.
    encoding: of a file that is neither UTF-8 nor UTF-16. FileNotFoundError or ValueError naming the
    file if it is not a whole one with finite numbers."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; expected a BVH file")
    text = read_text(path, encoding)
    begin = re.match(r"\s*HIERARCHY\b", text, re.I)
    middle = re.search(r"^[ \t]*MOTION\b", text, re.M | re.I)
    if not begin or not middle:
        raise ValueError(f"{path}: not a BVH file: expected it to begin with HIERARCHY and to "
                         "have a MOTION block")
    hierarchy = text[begin.end():middle.start()]
    names, parents, offsets, channels = _read_hierarchy(hierarchy, path)
    motion, fps = _read_frames(text[middle.end():], path, sum(map(len, channels)))
    if len(names) * len(motion) > 1e5 + BOUND * len(text):
        raise ValueError(f"{path}: {len(names)} joints are too many for {motion.shape[1]} numbers "
                         "a frame")
    joints = _world_positions(parents, offsets, channels, motion)
    return Bvh(str(path), tuple(names), tuple(parents), offsets, joints, fps)


# --------------------------------------------------------------------------------------------------
# Writing

# The rest pose that is written: T2M's directions, but with the head up and the arms sideways.
T_POSE = T2M.offsets_dir.copy()
T_POSE[15] = T_POSE[12]
T_POSE[[16, 18, 20]], T_POSE[[17, 19, 21]] = T_POSE[1], T_POSE[2]
# Pelvis and spine3, where three bones meet (left, right, upward), turn as these three turn.
FORKS = {0: (1, 2, 3), 9: (13, 14, 12)}
NAMES = tuple(RIGS["mixamo"][joint][0] for joint in T2M.joint_names)  # retargeting tools know them
CHILDREN = {j: [c for c, parent in enumerate(T2M.parents) if parent == j]
            for j in range(T2M.num_joints)}
SLACK = 0.0005  # metres; a bone that stretches by more gets position channels


def _rotation_of_fork(bones):
    """bones (T, 3, 3): rows to left, right, up -> (T, 3, 3): columns to left, up, forward."""
    across = unit_rows(bones[:, 0] - bones[:, 1])
    forward = unit_rows(np.cross(across, bones[:, 2] - (bones[:, 0] + bones[:, 1]) / 2))
    frame = np.stack([across, np.cross(forward, across), forward], axis=-1)
    valid = np.linalg.det(frame)[:, None, None] > 0.5
    return np.where(valid, frame, np.eye(3))  # bones in one line do not define a rotation


def _rotations_and_offsets(joints):
    """Inverse kinematics, joint by joint from the root, all frames at once: joints (T, 22, 3) ->
    rotations in the world (T, 22, 3, 3), OFFSETs (22, 3), positions relative to the parent
    (T, 22, 3), and whether these vary so much that the OFFSET is not enough (22,)."""
    rotations = np.tile(np.eye(3), (len(joints), 22, 1, 1))
    offsets, local, moves = np.zeros((22, 3)), joints.copy(), np.arange(22) == 0
    placed = joints.copy()  # where the forward kinematics of the file will put the joints
    for j, parent in enumerate(T2M.parents):
        before = rotations[:, max(parent, 0)]
        if parent >= 0:
            local[:, j] = np.einsum("tji,tj->ti", before, joints[:, j] - placed[:, parent])
            length = np.median(np.linalg.norm(local[:, j], axis=-1))
            in_fork = parent in FORKS
            offsets[j] = np.median(local[:, j], axis=0) if in_fork else T_POSE[j] * length
            moves[j] = np.linalg.norm(local[:, j] - offsets[j], axis=-1).max() > SLACK
            if not moves[j]:
                placed[:, j] = placed[:, parent] + before @ offsets[j]
        rotations[:, j] = before  # head, wrists and toes have no bone that would show a rotation
        if j in FORKS:
            rotations[:, j] = _rotation_of_fork(joints[:, FORKS[j]] - placed[:, j, None])
        elif CHILDREN[j]:
            child = CHILDREN[j][0]
            rest = T_POSE[child]
            bone = np.einsum("tji,tj->ti", before, joints[:, child] - placed[:, j])
            bone = unit_rows(bone + 1e-8 * rest)  # a bone of length 0 points as at rest
            rotations[:, j] = before @ rotation_between(rest, bone)
    return rotations, offsets, local, moves


def _zxy_degrees(matrix):
    """R = Rz(a) Rx(b) Ry(c), (T, 3, 3) -> degrees a, b, c (T, 3), with no jumps of 360 degrees."""
    b = np.arcsin(np.clip(matrix[:, 2, 1], -1, 1))
    locked = np.abs(np.cos(b)) < 1e-6  # a and c turn about the same axis: a takes all of it
    a = np.where(locked, np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0]),
                 np.arctan2(-matrix[:, 0, 1], matrix[:, 1, 1]))
    c = np.where(locked, 0, np.arctan2(-matrix[:, 2, 0], matrix[:, 2, 2]))
    return np.degrees(np.unwrap(np.stack([a, b, c], axis=-1), axis=0))


def write_bvh(path, joints, fps=T2M.fps):
    """joints (T, 22, 3), metres, Y up -> a BVH file in metres with Mixamo's names and a T-pose.

    Forward kinematics of the file gives the joints back within 1 mm. Bones of constant length have
    rotations only. Where a bone stretches by more than 0.5 mm, its joint has position channels,
    which replace its OFFSET. ValueError for another shape or for numbers that are not finite."""
    joints = np.asarray(joints, dtype=np.float64)
    finite = np.isfinite(joints).all()
    if joints.ndim != 3 or joints.shape[1:] != (22, 3) or not len(joints) or not finite:
        bad = "" if finite else " with NaN or infinity"
        raise ValueError(f"{path}: BVH export needs joints of shape (frames, 22, 3), all finite; "
                         f"found {joints.shape}{bad}")
    rotations, offsets, local, moves = _rotations_and_offsets(joints)
    lines, columns = ["HIERARCHY"], []

    def write_joint(j, pad):
        parent = T2M.parents[j]
        before = rotations[:, parent] if parent >= 0 else np.eye(3)[None]
        if moves[j]:
            columns.append(local[:, j])
        columns.append(_zxy_degrees(before.swapaxes(-1, -2) @ rotations[:, j]))
        channels = "6 Xposition Yposition Zposition" if moves[j] else "3"
        lines.extend([f"{pad}{'ROOT' if parent < 0 else 'JOINT'} {NAMES[j]}", pad + "{",
                      f"{pad}  OFFSET {numbers(offsets[j])}",
                      f"{pad}  CHANNELS {channels} Zrotation Xrotation Yrotation"])
        for child in CHILDREN[j]:
            write_joint(child, pad + "  ")
        if not CHILDREN[j]:
            lines.extend([pad + "  End Site", pad + "  {",
                          f"{pad}    OFFSET {numbers(0.1 * T_POSE[j])}", pad + "  }"])
        lines.append(pad + "}")

    def numbers(row):
        return " ".join(f"{number:.6f}" for number in row)

    write_joint(0, "")
    lines += ["MOTION", f"Frames: {len(joints)}", f"Frame Time: {1 / fps:.8f}"]
    lines += [numbers(row) for row in np.concatenate(columns, axis=1)]
    with atomic_write(path, "w") as file:
        file.write("\n".join(lines) + "\n")
