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

from formats.bvh_writer import write_bvh  # noqa: F401, so that one import reads and writes
from formats.text import read_text

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
        joint = token["joint"] and (open_joints or not names)  # a second ROOT is a second body
        if (joint or token["end"] and open_joints) and here not in leaves:
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
        elif token["count"] and open_joints and int(token["count"]) == len(named) == len({*named}):
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
                         "with at least one frame and 0.0001 to 10 seconds for each, found "
                         f"{text[:60].strip()!r}")
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
