"""Motion capture files (BVH): read any rig onto the 22 joints of HumanML3D, and write motions that other software opens.

    bvh = read_bvh("walk.bvh")                # names, parents, and world positions of every joint
    joints = to_t2m_joints(bvh)               # (T, 22, 3) metres at 20 frames a second; the rig is recognised by its names
    write_bvh("out.bvh", joints)              # metres, 20 frames a second

CMU, Mixamo, LaFAN1 and Bandai-Namco rigs are known. For another rig write a small text file, one line per joint, and
give it to `read_table`:

    # HumanML3D joint = joint of the file,  or a point between two of them: from, to, fraction
    pelvis = Hips, Spine, 0.44
    left_hip = LeftThigh

Conventions, where BVH files disagree: a joint's position channels REPLACE its OFFSET, as in Blender; rotations are applied
in the order of the CHANNELS line, R = R1 R2 R3 for column vectors, degrees; Y is up unless said otherwise.
"""
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import atomic_write
from motion import T2M, rotation_between, unit_rows

# ----------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Bvh:
    """One file. End Sites count as joints and are named after their parent: "LeftToeBase_end"."""
    path: str
    names: tuple  # J names
    parents: tuple  # J numbers, -1 for a root
    offsets: np.ndarray  # (J, 3) in file units
    joints: np.ndarray  # (T, J, 3) world positions in file units, after forward kinematics
    fps: float


TOKEN = re.compile(
    r"(?:ROOT|JOINT)[ \t]+(?P<joint>[^\n{}]+)|(?P<end>End[ \t]+Site)"
    r"|OFFSET(?P<offset>(?:\s+[-+]?(?:\d+\.?\d*|\.\d+)(?:E[-+]?\d+)?){3})(?=\s)"
    r"|CHANNELS\s+(?P<count>\d+)(?P<channels>(?:\s+[XYZ](?:position|rotation))*)|(?P<brace>[{}])|(?P<other>\S+)", re.I)


def _read_hierarchy(text, path):
    """-> names, parents, offsets (J, 3), and per joint its channels as (axis 0..2, is a rotation)."""
    names, parents, offsets, channels, open_joints, last = [], [], [], [], [], -1
    for token in TOKEN.finditer(text):
        if token["joint"] or token["end"]:
            parents.append(open_joints[-1] if open_joints else -1)
            names.append(token["joint"].strip() if token["joint"] else names[parents[-1]] + "_end")
            offsets.append(np.zeros(3))
            channels.append(())
            last = len(names) - 1
        elif token["brace"] == "{" and last not in open_joints and last >= 0:
            open_joints.append(last)
        elif token["brace"] == "}" and open_joints:
            open_joints.pop()
        elif token["offset"] and open_joints:
            offsets[open_joints[-1]] = np.array(token["offset"].split(), float)
        elif token["count"] and open_joints and int(token["count"]) == len(token["channels"].split()):
            channels[open_joints[-1]] = tuple(("xyz".index(c[0]), c.endswith("rotation"))
                                              for c in token["channels"].lower().split())
        else:
            line = text[:token.start()].count("\n") + 1
            raise ValueError(f"{path}, near line {line}: cannot make sense of {token[0].strip()!r} in a BVH hierarchy")
    if open_joints or not names:
        raise ValueError(f"{path}: the hierarchy has {'an unclosed {' if names else 'no ROOT'}; this is not a whole BVH file")
    return names, parents, np.stack(offsets), channels


def _read_frames(text, path, channels):
    """The text after MOTION -> (T, C) numbers, frames a second."""
    header = re.match(r"\s*Frames\s*:\s*(\d+)\s+Frame\s+Time\s*:\s*(\S+)[ \t]*\r?\n?", text, re.I)
    if not header:
        raise ValueError(f"{path}: expected 'Frames: N' and 'Frame Time: SECONDS' after MOTION")
    try:
        frames, seconds = int(header[1]), float(header[2])
    except ValueError:
        frames, seconds = int(header[1]), 0
    if frames < 1 or not 1e-4 < seconds < 10:
        raise ValueError(f"{path}: expected some frames and a frame time in seconds, found Frames: {header[1]}, "
                         f"Frame Time: {header[2]}")
    rows = [row.split() for row in text[header.end():].splitlines() if row.strip()]
    values = [value for row in rows for value in row]
    if len(values) != frames * channels:
        wrong = next((i for i, row in enumerate(rows) if len(row) != channels), None)
        if wrong is None or (len(rows) < frames and wrong == len(rows) - 1):
            raise ValueError(f"{path}: the motion block is {'truncated' if len(rows) <= frames else 'too long'}: the header "
                             f"says {frames} frames, found {len(rows) if wrong is None else wrong} whole ones")
        raise ValueError(f"{path}: frame {wrong} has {len(rows[wrong])} numbers, expected {channels}, one for each channel")
    try:
        motion = np.array(values, dtype=np.float64).reshape(frames, channels)
    except ValueError as error:
        raise ValueError(f"{path}: the motion block holds something that is not a number ({error})") from None
    if not np.isfinite(motion).all():
        frame, channel = np.argwhere(~np.isfinite(motion))[0]
        raise ValueError(f"{path}: frame {frame}, channel {channel} is {motion[frame, channel]}, expected a finite number")
    fps = 1 / seconds
    # frame times are printed with few digits: 0.033333 means 30 a second, but 29.97 and 59.94 stay what they are
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
    """Forward kinematics, all frames at once: motion (T, C) -> (T, J, 3)."""
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
            position = joints[:, parent] + np.einsum("tij,tj->ti", rotations[:, parent], position)
            rotation = rotations[:, parent] @ rotation
        joints[:, j], rotations[:, j] = position, rotation
    return joints


def read_bvh(path):
    """A BVH file -> Bvh. Any channel order, frame rate, line ends; position channels on any joint.

    FileNotFoundError or ValueError with one sentence that names the file if it is not a whole, finite BVH.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; expected a BVH motion capture file")
    text = path.read_bytes().decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    parts = re.match(r"\s*HIERARCHY\b(.*?)^\s*MOTION\b(.*)", text, re.S | re.M | re.I)
    if not parts:
        raise ValueError(f"{path}: not a BVH file: expected it to begin with HIERARCHY and to have a MOTION block")
    names, parents, offsets, channels = _read_hierarchy(parts[1], path)
    motion, fps = _read_frames(parts[2], path, sum(map(len, channels)))
    joints = _world_positions(parents, offsets, channels, motion)
    return Bvh(str(path), tuple(names), tuple(parents), offsets, joints, fps)


# ----------------------------------------------------------------------------------------------------------------------
# Rigs: where each of the 22 joints is found

def parse_table(text, path="table"):
    """Lines (or ;) "pelvis = Hips, Spine, 0.44" -> {"pelvis": ("Hips", "Spine", 0.44)}; all 22 joints are needed.

    A source is one joint, or a point between two: from, to, fraction. ValueError names the line that is wrong.
    """
    table = {}
    for line in re.split(r"[\n;]", text):
        line = line.split("#")[0].strip()
        if not line:
            continue
        joint, _, source = (part.strip() for part in line.partition("="))
        parts = [part.strip() for part in source.split(",")]
        if len(parts) == 1:
            parts = [source, source, "0"]
        if joint not in T2M.joint_names or len(parts) != 3 or not all(parts) or not re.fullmatch(r"\d*\.?\d+", parts[2]):
            raise ValueError(f"{path}: cannot use the line {line!r}; expected 'JOINT = NAME' or 'JOINT = FROM, TO, FRACTION' "
                             f"with JOINT one of {', '.join(T2M.joint_names)}")
        table[joint] = (parts[0], parts[1], float(parts[2]))
    missing = [joint for joint in T2M.joint_names if joint not in table]
    if missing:
        raise ValueError(f"{path}: no line for {', '.join(missing)}; all 22 joints need one")
    return table


def read_table(path):
    """A user's own rig, a text file as in this file's docstring -> the `mapping` of `to_t2m_joints`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; expected a table of joint names, one 'pelvis = Hips' a line")
    return parse_table(path.read_text(encoding="utf-8-sig"), path)


def _rig(middle, sides, left="Left", right="Right"):
    """A table from the lines of the middle joints and those of one side, where * stands for the side."""
    both = [sides.replace("*_", f"{ours}_").replace("*", theirs) for ours, theirs in (("left", left), ("right", right))]
    return parse_table(";".join([middle, *both]))


# HumanML3D's pelvis lies some 9 cm over the line between the hips, spine1, 2 and 3 then 13, 28 and 34 cm over the pelvis
# and the neck 56 cm. Where a rig has its joints elsewhere, the point in the same place of the same bone is taken.
ARMS_AND_LEGS = ("*_hip = *UpLeg; *_knee = *Leg; *_ankle = *Foot; *_foot = *ToeBase; "
                 "*_collar = *Shoulder; *_shoulder = *Arm; *_elbow = *ForeArm; *_wrist = *Hand")
RIGS = {
    "mixamo": _rig("pelvis = Hips; spine1 = Spine; spine2 = Spine1; spine3 = Spine2; neck = Neck; head = Head", ARMS_AND_LEGS),
    # its Hips lie on the hip line, its Spine 7 cm above
    "lafan1": _rig("pelvis = Spine; spine1 = Spine1; spine2 = Spine2; spine3 = Spine2, Neck, 0.25; neck = Neck; head = Head",
                   ARMS_AND_LEGS.replace("ToeBase", "Toe")),
    # LowerBack lies in Hips, Neck and *Shoulder lie in Spine1
    "cmu": _rig("pelvis = Hips; spine1 = Hips, Spine, 0.65; spine2 = Spine, Spine1, 0.4; spine3 = Spine, Spine1, 0.7; "
                "neck = Neck1; head = Head", ARMS_AND_LEGS.replace("*Shoulder", "*Shoulder, *Arm, 0.35")),
    "bandai": _rig("pelvis = Hips, Spine, 0.44; spine1 = Spine; spine2 = Chest; spine3 = Chest, Neck, 0.25; neck = Neck; head = Head",
                   "*_hip = UpperLeg_*; *_knee = LowerLeg_*; *_ankle = Foot_*; *_foot = Toes_*; *_collar = Shoulder_*; "
                   "*_shoulder = UpperArm_*; *_elbow = LowerArm_*; *_wrist = Hand_*", "L", "R"),
}


def _plain(name):
    """A joint's name without namespace ("mixamorig:Hips", "Bob:mixamorig1Hips") and in lower case."""
    return re.sub(r"^(.*:)?(mixamorig\d*_?)?", "", name).lower()


def _missing(bvh, table):
    names = {_plain(name) for name in bvh.names}
    return sorted({name for start, end, _ in table.values() for name in (start, end) if _plain(name) not in names})


def find_rig(bvh):
    """-> the name in RIGS whose joints are all in the file. ValueError says what the nearest rig lacks."""
    missing = {rig: _missing(bvh, table) for rig, table in RIGS.items()}
    rig = min(missing, key=lambda name: len(missing[name]))
    if missing[rig]:
        raise ValueError(f"{bvh.path}: its joints fit none of the known rigs ({', '.join(RIGS)}); the nearest, {rig}, misses "
                         f"{', '.join(missing[rig])}; write a table of joint names for it (see bvh.py)")
    return rig


# ----------------------------------------------------------------------------------------------------------------------
# Onto the 22 joints, in metres, at 20 frames a second

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254, "cmu": 0.0254 / 0.45}  # in metres; cmu is one inch / 0.45


def find_unit(joints, path=""):
    """The unit in which the legs of joints (T, 22, 3) have a person's length, 0.5 to 1.15 m. ValueError if none does."""
    at = [T2M.joint_names.index(name) for name in ("left_hip", "left_knee", "left_ankle")]
    leg = np.median(np.linalg.norm(np.diff(joints[:, at], axis=1), axis=-1).sum(1))
    for unit, metres in UNITS.items():
        if 0.5 <= leg * metres <= 1.15:
            return unit
    raise ValueError(f"{path}: a leg {leg:.4g} units long fits none of the units {', '.join(UNITS)}; say which with --unit")


def resample(values, fps, new_fps):
    """Cubic splines through values (T, ...) at `fps`, read at `new_fps` -> (T', ...); the ends as in "not-a-knot" splines."""
    steps = len(values) - 1
    bend = np.zeros_like(values)  # second derivatives at the knots: bend[i-1] + 4 bend[i] + bend[i+1] = 6 kink[i]
    if steps > 1:
        kink = np.diff(values, n=2, axis=0)  # (T-2, ...)
        bend[1], bend[-2] = kink[0], kink[-1]  # not-a-knot: the third derivative is the same on both sides of these
        shrink = np.zeros(steps)
        for i in range(2, steps - 1):  # tridiagonal elimination, first down
            shrink[i] = 1 / (4 - shrink[i - 1])
            bend[i] = (6 * kink[i - 1] - bend[i - 1]) * shrink[i]
        for i in range(steps - 2, 1, -1):  # and then up
            bend[i] -= shrink[i] * bend[i + 1]
        bend[0], bend[-1] = (2 * bend[1] - bend[2], 2 * bend[-2] - bend[-3]) if steps > 2 else (kink[0], kink[0])
    time = np.arange(int(steps / fps * new_fps + 1e-6) + 1) * (fps / new_fps)
    i = np.minimum(time.astype(int), max(steps - 1, 0))
    b = (time - i).reshape(-1, *[1] * (values.ndim - 1))
    a, j = 1 - b, np.minimum(i + 1, steps)
    return a * values[i] + b * values[j] + ((a ** 3 - a) * bend[i] + (b ** 3 - b) * bend[j]) / 6


def to_t2m_joints(bvh, mapping=None, unit=None, up="y"):
    """Bvh -> (T', 22, 3) float64, metres, 20 frames a second, Y up, where the file puts them (see motion.canonical_joints).

    mapping: None recognises the rig, else an entry of RIGS or what `read_table` gives. unit: None measures a leg, else one
    of UNITS. up: "y", or "z" for files whose Z points up. ValueError names the joints that the file lacks.
    """
    table = RIGS[find_rig(bvh)] if mapping is None else mapping
    missing = _missing(bvh, table)
    if missing:
        raise ValueError(f"{bvh.path}: the file has no joint {', '.join(missing)}; it has {', '.join(bvh.names)}")
    if unit is not None and unit not in UNITS or up not in ("y", "z"):
        raise ValueError(f"--unit is {unit} and --up is {up}; expected a unit of {', '.join(UNITS)}, and y or z")
    at = {_plain(name): j for j, name in reversed(list(enumerate(bvh.names)))}
    start, end, fraction = zip(*(table[joint] for joint in T2M.joint_names))
    start, end = (bvh.joints[:, [at[_plain(name)] for name in names]] for names in (start, end))  # (T, 22, 3)
    joints = start + np.array(fraction)[:, None] * (end - start)
    if up == "z":
        joints = joints[..., [0, 2, 1]] * (1, 1, -1)
    return resample(joints * UNITS[unit or find_unit(joints, bvh.path)], bvh.fps, T2M.fps)


# ----------------------------------------------------------------------------------------------------------------------
# Writing

# At rest the written body stands in a T-pose: the directions of T2M, but with the head up and the arms to the sides.
T_POSE = T2M.offsets_dir.copy()
T_POSE[15] = T_POSE[12]
T_POSE[[16, 18, 20]], T_POSE[[17, 19, 21]] = T_POSE[1], T_POSE[2]
# Where three bones leave a joint: left, right, upward. Pelvis and spine3, whose rotation all three follow.
FORKS = {0: (1, 2, 3), 9: (13, 14, 12)}
NAMES = tuple(RIGS["mixamo"][joint][0] for joint in T2M.joint_names)  # names that retargeting tools know
CHILDREN = {j: [c for c, parent in enumerate(T2M.parents) if parent == j] for j in range(T2M.num_joints)}
SLACK = 0.0005  # metres; a bone that stretches by more gets position channels


def _frame_of_fork(bones):
    """bones (T, 3, 3), one row each to left, right and up -> rotations (T, 3, 3): columns to the left, up, forward."""
    across = unit_rows(bones[:, 0] - bones[:, 1])
    forward = unit_rows(np.cross(across, bones[:, 2] - (bones[:, 0] + bones[:, 1]) / 2))
    frame = np.stack([across, np.cross(forward, across), forward], axis=-1)
    return np.where(np.linalg.det(frame)[:, None, None] > 0.5, frame, np.eye(3))  # no turn for bones in one line


def _rotations_and_offsets(joints):
    """Inverse kinematics, joint by joint from the root, all frames at once.

    joints (T, 22, 3) -> rotations in the world (T, 22, 3, 3), OFFSETs (22, 3), positions in the parent's frame (T, 22, 3)
    and whether these move, so that OFFSET alone would not do (22,).
    """
    rotations = np.tile(np.eye(3), (len(joints), 22, 1, 1))
    offsets, local, moves = np.zeros((22, 3)), joints.copy(), np.arange(22) == 0
    placed = joints.copy()  # where the file's own forward kinematics will put the joints
    for j, parent in enumerate(T2M.parents):
        before = rotations[:, max(parent, 0)]
        if parent >= 0:
            local[:, j] = np.einsum("tji,tj->ti", before, joints[:, j] - placed[:, parent])
            length = np.median(np.linalg.norm(local[:, j], axis=-1))
            offsets[j] = np.median(local[:, j], axis=0) if parent in FORKS else T_POSE[j] * length
            moves[j] = np.linalg.norm(local[:, j] - offsets[j], axis=-1).max() > SLACK
            if not moves[j]:
                placed[:, j] = placed[:, parent] + before @ offsets[j]
        rotations[:, j] = before  # head, wrists and toes have no bone of their own to show a rotation
        if j in FORKS:
            rotations[:, j] = _frame_of_fork(joints[:, FORKS[j]] - placed[:, j, None])
        elif CHILDREN[j]:
            rest = T_POSE[CHILDREN[j][0]]
            bone = np.einsum("tji,tj->ti", before, joints[:, CHILDREN[j][0]] - placed[:, j])
            rotations[:, j] = before @ rotation_between(rest, unit_rows(bone + 1e-8 * rest))  # no turn for no bone
    return rotations, offsets, local, moves


def _zxy_degrees(matrix):
    """R = Rz(a) Rx(b) Ry(c), (T, 3, 3) -> degrees a, b, c (T, 3), without jumps of 360 from frame to frame."""
    b = np.arcsin(np.clip(matrix[:, 2, 1], -1, 1))
    locked = np.abs(np.cos(b)) < 1e-6  # then a and c turn about the same axis: all of it goes to a
    a = np.where(locked, np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0]), np.arctan2(-matrix[:, 0, 1], matrix[:, 1, 1]))
    c = np.where(locked, 0, np.arctan2(-matrix[:, 2, 0], matrix[:, 2, 2]))
    return np.degrees(np.unwrap(np.stack([a, b, c], axis=-1), axis=0))


def write_bvh(path, joints, fps=T2M.fps):
    """joints (T, 22, 3), metres, Y up -> a BVH file in metres with Mixamo's joint names and a T-pose at rest.

    The file's own forward kinematics gives the joints back within 1 mm. Bones of constant length have rotations only; where
    a generated body's bones stretch by more than 0.5 mm, their joints have position channels, which replace OFFSET.
    ValueError for another shape or for numbers that are not finite.
    """
    joints = np.asarray(joints, dtype=np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (22, 3) or not len(joints) or not np.isfinite(joints).all():
        bad = "" if np.isfinite(joints).all() else " with NaN or infinity"
        raise ValueError(f"{path}: BVH export needs joints of shape (frames, 22, 3), all finite; found {joints.shape}{bad}")
    rotations, offsets, local, moves = _rotations_and_offsets(joints)
    lines, columns = ["HIERARCHY"], []

    def write_joint(j, pad):
        parent = T2M.parents[j]
        world, before = rotations[:, j], rotations[:, parent] if parent >= 0 else np.eye(3)[None]
        columns.extend(([local[:, j]] if moves[j] else []) + [_zxy_degrees(before.swapaxes(-1, -2) @ world)])
        position = "Xposition Yposition Zposition " if moves[j] else ""
        lines.extend([f"{pad}{'ROOT' if parent < 0 else 'JOINT'} {NAMES[j]}", pad + "{",
                      f"{pad}  OFFSET {offsets[j, 0]:.6f} {offsets[j, 1]:.6f} {offsets[j, 2]:.6f}",
                      f"{pad}  CHANNELS {6 if moves[j] else 3} {position}Zrotation Xrotation Yrotation"])
        for child in CHILDREN[j]:
            write_joint(child, pad + "  ")
        if not CHILDREN[j]:
            x, y, z = 0.1 * T_POSE[j]
            lines.extend([pad + "  End Site", pad + "  {", f"{pad}    OFFSET {x:.6f} {y:.6f} {z:.6f}", pad + "  }"])
        lines.append(pad + "}")

    write_joint(0, "")
    lines += ["MOTION", f"Frames: {len(joints)}", f"Frame Time: {1 / fps:.8f}"]
    lines += [" ".join(f"{number:.6f}" for number in row) for row in np.concatenate(columns, axis=1)]
    with atomic_write(path, "w") as file:
        file.write("\n".join(lines) + "\n")
