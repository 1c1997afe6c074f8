"""Puts a motion capture file of any rig onto the 22 joints of HumanML3D.

    joints = to_t2m_joints(read_bvh("walk.bvh"))    # (T, 22, 3) metres at 20 frames a second

The rigs of CMU, Mixamo, LaFAN1 and Bandai-Namco are recognised by their joint names. For any other
rig, write a small text file with one line per joint and give it to `read_table`:

    # joint of HumanML3D = joint of the file, or a point between two: FROM, TO, FRACTION
    pelvis = Hips, Spine, 0.44
    left_hip = LeftThigh
"""
import re
from pathlib import Path

import numpy as np

from formats.plausible import AXES, Unclear, find_up, is_mirrored, turn_up
from formats.text import read_text
from motion import T2M

# --------------------------------------------------------------------------------------------------
# Rigs: where each of the 22 joints is found

def parse_table(text, path="table"):
    """Lines (or parts between ;) "pelvis = Hips, Spine, 0.44" -> {joint: (from, to, fraction)}.
    ValueError names `path` and a line that is wrong, or which of the 22 joints are missing."""
    table = {}
    for line in re.split(r"[\n;]", text):
        line = line.split("#")[0].strip()
        if not line:
            continue
        joint, _, source = (part.strip() for part in line.partition("="))
        parts = [part.strip() for part in source.split(",")]
        if len(parts) == 1:
            parts = [source, source, "0"]
        whole = len(parts) == 3 and all(parts) and re.fullmatch(r"\d+(\.\d*)?|\.\d+", parts[2])
        if joint not in T2M.joint_names or not whole:
            raise ValueError(f"{path}: cannot use the line {line!r}; expected 'JOINT = NAME' or "
                             "'JOINT = FROM, TO, FRACTION', where JOINT is one of "
                             f"{', '.join(T2M.joint_names)}")
        table[joint] = parts[0], parts[1], float(parts[2])
    missing = [joint for joint in T2M.joint_names if joint not in table]
    if missing:
        raise ValueError(f"{path}: no line for {', '.join(missing)}; all 22 joints need one")
    return table


def read_table(path, encoding=None):
    """The table of your own rig (see the top of this file) -> the `mapping` of `to_t2m_joints`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; expected a table of joint names")
    return parse_table(read_text(path, encoding), path)


def _rig(middle, sides, left="Left", right="Right"):
    """A table from lines for the middle joints and lines for one side, where * is the side."""
    both = [sides.replace("*_", f"{ours}_").replace("*", theirs)
            for ours, theirs in (("left", left), ("right", right))]
    return parse_table(";".join([middle, *both]))


# HumanML3D's pelvis is about 9 cm above the line through the hips; spine1, spine2 and spine3 are
# 13, 28 and 34 cm above the pelvis, and the neck is 56 cm above it. Where a rig has its joints
# elsewhere, the table names the point at the same height on the rig's own bones.
LIMBS = """*_hip = *UpLeg; *_knee = *Leg; *_ankle = *Foot; *_foot = *ToeBase
           *_collar = *Shoulder; *_shoulder = *Arm; *_elbow = *ForeArm; *_wrist = *Hand"""
RIGS = {
    "mixamo": _rig(
        """pelvis = Hips; spine1 = Spine; spine2 = Spine1; spine3 = Spine2
           neck = Neck; head = Head""", LIMBS),
    # LaFAN1's Hips are level with the hip joints, and its Spine is 7 cm above them.
    "lafan1": _rig(
        """pelvis = Spine; spine1 = Spine1; spine2 = Spine2; spine3 = Spine2, Neck, 0.25
           neck = Neck; head = Head""", LIMBS.replace("ToeBase", "Toe")),
    # In CMU's files LowerBack is in the place of Hips; Neck and *Shoulder are in that of Spine1.
    "cmu": _rig(
        """pelvis = Hips; spine1 = Hips, Spine, 0.65; spine2 = Spine, Spine1, 0.4
           spine3 = Spine, Spine1, 0.7; neck = Neck1; head = Head""",
        LIMBS.replace("*Shoulder", "*Shoulder, *Arm, 0.35")),
    # CMU's recordings as converted for DAZ: the hip is 3 cm below the line through the hips, and
    # the toe is the end of the foot.
    "daz": _rig(
        """pelvis = hip, abdomen, 0.56; spine1 = abdomen, chest, 0.33; spine2 = chest, neck, 0.32
           spine3 = chest, neck, 0.59; neck = neck; head = head""",
        """*_hip = *Thigh; *_knee = *Shin; *_ankle = *Foot; *_foot = *Foot_end
           *_collar = *Collar; *_shoulder = *Shldr; *_elbow = *ForeArm; *_wrist = *Hand""",
        "l", "r"),
    "bandai": _rig(
        """pelvis = Hips, Spine, 0.44; spine1 = Spine; spine2 = Chest
           spine3 = Chest, Neck, 0.25; neck = Neck; head = Head""",
        """*_hip = UpperLeg_*; *_knee = LowerLeg_*; *_ankle = Foot_*; *_foot = Toes_*
           *_collar = Shoulder_*; *_shoulder = UpperArm_*; *_elbow = LowerArm_*; *_wrist = Hand_*
        """, "L", "R"),
}


def _plain(name):
    """A joint's name in lower case, without a namespace such as mixamorig: or Bob:mixamorig1."""
    return re.sub(r"^(.*:)?(mixamorig\d*_?)?", "", name).lower()


def _missing(bvh, table):
    names = {_plain(name) for name in bvh.names}
    wanted = {name for start, end, _ in table.values() for name in (start, end)}
    return sorted(name for name in wanted if _plain(name) not in names)


def find_rig(bvh):
    """The name of the rig whose joints a Bvh has; ValueError says what it lacks of the nearest."""
    missing = {rig: _missing(bvh, table) for rig, table in RIGS.items()}
    rig = min(missing, key=lambda name: len(missing[name]))
    if missing[rig]:
        raise ValueError(f"{bvh.path}: its joints fit none of the known rigs ({', '.join(RIGS)}); "
                         f"the nearest, {rig}, also has {', '.join(missing[rig])}; write a table "
                         "of joint names for it (see formats/rigs.py)")
    return rig


# --------------------------------------------------------------------------------------------------
# Onto the 22 joints, in metres, at 20 frames a second

# Metres in one unit. CMU's unit is an inch divided by 0.45.
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254, "cmu": 0.0254 / 0.45}


def find_unit(joints, path=""):
    """The unit in which a leg of joints (T, 22, 3) is 0.5 to 1.15 m long; ValueError if none."""
    at = [T2M.joint_names.index(name) for name in ("left_hip", "left_knee", "left_ankle")]
    leg = np.median(np.linalg.norm(np.diff(joints[:, at], axis=1), axis=-1).sum(1))
    for unit, metres in UNITS.items():
        if 0.5 <= leg * metres <= 1.15:
            return unit
    raise ValueError(f"{path}: a leg is {leg:.4g} units long, which is not 0.5 to 1.15 m in any of "
                     f"{', '.join(UNITS)}; name the unit with --unit")


def resample(values, fps, new_fps):
    """values (T, ...) at `fps` -> (T', ...) at `new_fps`, read off cubic "not-a-knot" splines."""
    steps = len(values) - 1
    bend = np.zeros_like(values)  # second derivatives: bend[i-1] + 4 bend[i] + bend[i+1] = 6 kink
    if steps > 1:
        kink = np.diff(values, n=2, axis=0)  # (T-2, ...)
        bend[1], bend[-2] = kink[0], kink[-1]  # not-a-knot: same third derivative on both sides
        shrink = np.zeros(steps)
        for i in range(2, steps - 1):  # tridiagonal elimination, first down
            shrink[i] = 1 / (4 - shrink[i - 1])
            bend[i] = (6 * kink[i - 1] - bend[i - 1]) * shrink[i]
        for i in range(steps - 2, 1, -1):  # and then up
            bend[i] -= shrink[i] * bend[i + 1]
        bend[0] = 2 * bend[1] - bend[2] if steps > 2 else kink[0]
        bend[-1] = 2 * bend[-2] - bend[-3] if steps > 2 else kink[0]
    time = np.arange(int(steps / fps * new_fps + 1e-6) + 1) * (fps / new_fps)
    i = np.minimum(time.astype(int), max(steps - 1, 0))
    b = (time - i).reshape(-1, *[1] * (values.ndim - 1))
    a, j = 1 - b, np.minimum(i + 1, steps)
    return a * values[i] + b * values[j] + ((a**3 - a) * bend[i] + (b**3 - b) * bend[j]) / 6


def place(bvh, mapping=None):
    """A Bvh -> its 22 joints in its own unit, axes and frame rate: (T, 22, 3) of the motion and
    (22, 3) of the rest pose. ValueError names the joints that the file lacks."""
    table = RIGS[find_rig(bvh)] if mapping is None else mapping
    missing = _missing(bvh, table)
    if missing:
        raise ValueError(f"{bvh.path}: the file has no joint {', '.join(missing)}; "
                         f"it has {', '.join(bvh.names)}")
    # Of joints with the same plain name, the first is taken.
    at = {_plain(name): j for j, name in reversed(list(enumerate(bvh.names)))}
    start, end, fraction = zip(*(table[joint] for joint in T2M.joint_names))
    start, end = ([at[_plain(name)] for name in names] for names in (start, end))
    rest = bvh.offsets.copy()
    for j, parent in enumerate(bvh.parents):
        rest[j] += rest[parent] if parent >= 0 else 0
    fraction = np.array(fraction)[:, None]
    return tuple(points[..., start, :] + fraction * (points[..., end, :] - points[..., start, :])
                 for points in (bvh.joints, rest))


def to_metres(bvh, mapping=None, unit=None, up=None):
    """A Bvh -> its joints (T, 22, 3) float64 in metres, Y up, at its own frame rate, and what was
    found: {"unit": ..., "up": ..., "mirrored": ...}. The settings are those of `to_t2m_joints`."""
    if unit not in (None, *UNITS) or up not in (None, *AXES):
        raise ValueError(f"--unit is {unit} and --up is {up}; expected one of the units "
                         f"{', '.join(UNITS)}, and one of the axes {', '.join(AXES)}")
    joints, rest = place(bvh, mapping)
    unit = unit or find_unit(joints, bvh.path)
    try:
        up = up or find_up(joints, rest)
    except Unclear as error:
        raise Unclear(f"{bvh.path}: {error}") from None
    joints = turn_up(joints, up) * UNITS[unit]
    mirrored = is_mirrored(joints)
    if mirrored:  # x becomes -x, and every joint keeps its name
        joints = joints * (-1, 1, 1)
    return joints, {"unit": unit, "up": up, "mirrored": mirrored}


def to_t2m_joints(bvh, mapping=None, unit=None, up=None):
    """A Bvh -> joints (T', 22, 3) float64 in metres, Y up, at 20 frames a second.

    mapping: an entry of RIGS or what `read_table` returns; None recognises the rig. unit: one of
    UNITS; None finds it from the length of a leg. up: the axis that points up, "y", "z", "-y" ...;
    None finds it from the body. The motion stays where the file has it (see
    motion.canonical_joints). ValueError names the joints that the file lacks, or what cannot be
    found and which setting to give."""
    return resample(to_metres(bvh, mapping, unit, up)[0], bvh.fps, T2M.fps)
