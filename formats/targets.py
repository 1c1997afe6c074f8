"""Constraints -> numbers: which joint must be where in which frame, and what became of it.

    targets = targets_of(constraints, frames=80, fps=20, pose=pose, lengths=lengths)
    for row in report(targets, joints, 20, pose): ...

formats/constraints.py says what can be asked. Inside, a motion starts at the origin and faces +Z;
`Targets.place` says where that is in the world.
"""
from dataclasses import dataclass, field, replace

import numpy as np

from config import nearest
from formats.constraints import FASTEST, KINDS, loaded
from formats.pins import ancestors, kept_apart
from motion import turn_about_y

SLACK = 1.02  # a body may be this much longer than ours
JUMP = 0.9  # metres; by so much a standing person comes up at most, by a jump or onto something


@dataclass
class Targets:
    """Constraints of a motion of T frames, in its own frame: it starts at the origin, facing +Z."""
    places: np.ndarray  # (T, J, 3) metres
    pinned: np.ndarray  # (T, J, 3) bool
    place: tuple = (0.0, 0.0, 0.0)  # x, z, and radians to the left, of the own frame in the world
    facing: np.ndarray = None  # (T,) radians to the left of the first frame's, or NaN
    way: np.ndarray = None  # (T, 2) x and z of the path between its rows, or NaN
    kept: list = field(default_factory=list)  # [(fork, joints, clip (T, J, 3))], seen from the fork
    speeds: list = field(default_factory=list)  # [(joint, frame, metres a second)]
    floor: bool = False
    rows: list = field(default_factory=list)  # [(words, kind, joints, frames, value)], to report


def heading(joints, pose):
    """Joints (..., J, 3) -> radians to the left of +Z that hips and shoulders face."""
    left, right = ([pose.joint_names.index(f"{side}_{part}") for part in ("hip", "shoulder")]
                   for side in ("left", "right"))
    across = (joints[..., left, :] - joints[..., right, :]).sum(-2)
    return np.arctan2(-across[..., 2], across[..., 0])


def to_own(points, place):
    """World -> own frame; points (..., 3)."""
    x, z, turn = place
    return turn_about_y(-turn, points - np.array([x, 0, z]))


def to_world(points, place):
    """Own frame -> world; points (..., 3)."""
    x, z, turn = place
    return turn_about_y(turn, points) + np.array([x, 0, z])


def place_of(joints, pose):
    """A pose (J, 3) -> where the frame is in which it stands over the origin and faces +Z."""
    return joints[0, 0], joints[0, 2], float(heading(joints, pose))


# --------------------------------------------------------------------------------------------------
# Checking


def targets_of(constraints, frames, fps, pose, lengths, folder=""):
    """Constraints (dicts) for a motion of so many frames -> Targets. ValueError in one sentence for
    what is misspelled, out of time or out of reach, or contradicts itself.

    pose: TPose of formats.rotations; lengths (J,): of its bones, in metres; folder: of the files
    that are named"""
    J = len(pose.joint_names)
    t = Targets(np.zeros((frames, J, 3)), np.zeros((frames, J, 3), bool))
    t.facing, t.way = np.full(frames, np.nan), np.full((frames, 2), np.nan)
    read = []
    for number, one in enumerate(constraints, 1):
        where = f"Constraint {number}: "
        kind = next((k for k in KINDS if isinstance(one, dict) and k in one), None)
        if kind is None:
            near = nearest(next(iter(one)), KINDS) if isinstance(one, dict) and one else ""
            raise ValueError(f"{where}expected one of {', '.join(KINDS)}, found {one!r}.{near}")
        for key in set(one) - KINDS[kind]:
            raise ValueError(f"{where}{kind!r} takes no {key!r}.{nearest(key, KINDS[kind])}")
        read.append((where, kind, loaded(one, kind, where, frames, fps, pose, folder)))
    t.place = beginning(read, pose)
    for where, kind, one in read:
        add(t, where, kind, one, fps, pose)
    check_reach(t, fps, pose, lengths)
    return t


def beginning(read, pose):
    """x, z and turn of the motion's first frame, from what says most about it."""
    found = {}
    for where, kind, one in read:
        if kind == "start":
            if 0 in found:
                raise ValueError(f"{where}there is a start already.")
            found[0] = (*one["start"], float(one["turn"]))
        if kind == "pose" and one["at"] == 0:
            found[1] = place_of(one["joints"], pose)
        if kind == "keep" and one["part"][0] is None:
            found[2] = place_of(one["clip"][0], pose)
        if kind == "path" and one["at"][0] == 0:
            rows = one["path"]
            ahead = rows[1, 1:3] - rows[0, 1:3] if len(rows) > 1 else (0, 1)
            turn = np.radians(rows[0, 3]) if rows.shape[1] == 4 else np.arctan2(*ahead)
            turn = 0.0 if one["facing"] == "free" and rows.shape[1] == 3 else turn
            found[3] = (*rows[0, 1:3], float(turn))
    place = tuple(map(float, found[min(found)])) if found else (0.0, 0.0, 0.0)
    others = [other for other in found.values() if np.hypot(*np.subtract(other, place)[:2]) > 0.01]
    if 0 in found and others:
        raise ValueError("The start lies at x {:g}, z {:g}, and another constraint begins at x "
                         "{:g}, z {:g}.".format(*place[:2], *map(float, others[0][:2])))
    return place


def add(t, where, kind, one, fps, pose):
    """Put a constraint into the Targets."""
    def pin(frame, joint, place, axes=(0, 1, 2)):
        axes = list(axes)
        before = t.pinned[frame, joint, axes]
        gap = np.abs(t.places[frame, joint, axes] - place[axes])[before].max(initial=0)
        if gap > 0.01:
            raise ValueError(f"{where}{pose.joint_names[joint]} at {frame / fps:.2f} s contradicts "
                             f"an earlier constraint by {100 * gap:.0f} cm.")
        t.places[frame, joint, axes], t.pinned[frame, joint, axes] = place[axes], True

    if kind == "joint":
        joint, frame = pose.joint_names.index(one["joint"]), one["at"]
        words = f"{one['joint']} at {frame / fps:.2f} s"
        if "position" in one:
            pin(frame, joint, to_own(one["value"], t.place))
            t.rows.append((words, "position", [joint], [frame], one["value"]))
        elif "height" in one:
            pin(frame, joint, np.array([0, float(one["value"]), 0]), (1,))
            t.rows.append((words, "height", [joint], [frame], one["value"]))
        else:
            frame = min(max(frame, 1), len(t.places) - 2)
            if len(t.places) < 3:
                raise ValueError(f"{where}a speed needs a motion of at least 3 frames.")
            t.speeds.append((joint, frame, float(one["value"])))
            t.rows.append((words, "speed", [joint], [frame], one["value"]))
    elif kind == "pose":
        own = to_own(one["joints"], t.place)
        for joint in range(len(own)):
            pin(one["at"], joint, own[joint])
        words = f"pose at {one['at'] / fps:.2f} s"
        t.rows.append((words, "pose", list(range(len(own))), [one["at"]], one["joints"]))
    elif kind == "path":
        add_path(t, one, pin)
    elif kind == "keep":
        fork, joints = one["part"]
        frames = min(len(one["clip"]), len(t.places))
        clip = to_own(one["clip"][:frames], t.place)
        if fork is None:
            for frame in range(frames):
                for joint in joints:
                    pin(frame, joint, clip[frame, joint])
        else:
            t.kept.append((fork, joints, clip))
        t.rows.append((one["keep"], "keep", joints, list(range(frames)), (fork, one["clip"])))
    elif kind == "floor" and one["floor"]:
        t.floor = True
        t.rows.append(("floor", "floor", [], [], None))


def add_path(t, one, pin):
    rows, at = one["path"], one["at"]
    world = np.stack([rows[:, 1], 0 * rows[:, 1], rows[:, 2]], axis=1)
    own = to_own(world, t.place)
    for frame, place in zip(at, own):
        pin(frame, 0, place, (0, 2))
    inside = np.arange(at[0], at[-1] + 1)
    t.way[inside] = np.stack([np.interp(inside, at, own[:, axis]) for axis in (0, 2)], axis=1)
    if rows.shape[1] == 4:
        turns = np.unwrap(np.radians(rows[:, 3]))
        t.facing[inside] = np.interp(inside, at, turns) - t.place[2]
    elif one["facing"] == "follow" and len(at) > 1:
        step = np.gradient(t.way[inside], axis=0)
        goes = np.hypot(*step.T) > 0.005
        t.facing[inside[goes]] = np.arctan2(*step[goes].T)
    t.rows.append((f"path of {len(at)} rows", "path", [0], at, world))


def check_reach(t, fps, pose, lengths):
    """ValueError for pins that no body meets: joints of one frame farther apart than their bones
    reach, and ways that are too long for the time."""
    full = t.pinned.all(-1)  # (T, J)
    names, parents = pose.joint_names, pose.parents
    pelvis = t.pinned[:, 0, ::2].all(-1, keepdims=True)
    known = np.where(pelvis, t.places[:, 0, ::2], t.way)  # (T, 2)
    known[0] = np.where(np.isnan(known[0]), 0.0, known[0])
    for frame in np.flatnonzero(full.any(1)):
        joints = np.flatnonzero(full[frame])
        for b in joints:
            for a in [a for a in joints if a < b] or ([0] if not np.isnan(known[frame, 0]) else []):
                up = [{j, *ancestors(parents, j)} for j in (a, b)]
                reach = SLACK * lengths[list((up[0] ^ up[1]) - {0})].sum() + 0.02
                gap = t.places[frame, b] - t.places[frame, a]
                if not full[frame, a]:  # of the pelvis only x and z are known
                    gap = t.places[frame, b, ::2] - known[frame]
                    reach += 0.1
                if np.linalg.norm(gap) > reach:
                    raise ValueError(
                        f"{names[b]} and {names[a]} at {frame / fps:.2f} s are "
                        f"{np.linalg.norm(gap):.2f} m apart, and the bones between them reach "
                        f"{reach:.2f} m.")

    def chain(joint):  # the longest way from the pelvis to a joint
        return SLACK * lengths[[j for j in {joint, *ancestors(parents, joint)} if j]].sum()

    leg = max(chain(foot) for foot in range(len(parents)) if names[foot].endswith("ankle"))
    for frame, joint in np.argwhere(t.pinned[..., 1]):
        height, most = t.places[frame, joint, 1], leg + JUMP + chain(joint)
        if height > most:
            raise ValueError(f"{names[joint]} at {height:.2f} m at {frame / fps:.2f} s is higher "
                             f"than a person brings it ({most:.2f} m).")
    over = t.pinned[..., ::2].all(-1)  # (T, J): where over the floor is known
    for joint in np.flatnonzero(over.any(0)):
        frames, arm = np.flatnonzero(over[:, joint]), chain(joint)
        points, tall = t.places[frames, joint], t.pinned[frames, joint, 1]
        steps = np.diff(points, axis=0)
        steps[:, 1] *= tall[1:] & tall[:-1]
        gaps = np.linalg.norm(steps, axis=-1)
        gaps = np.append(gaps, max(np.hypot(*points[0, ::2]) - arm - 0.1, 0))  # from the start
        times = np.append(np.diff(frames), max(frames[0], 1)) / fps
        worst = (gaps / times).argmax()
        if gaps[worst] > FASTEST * times[worst]:
            when = frames[0] if worst == len(gaps) - 1 else frames[worst + 1]
            speed = gaps[worst] / times[worst]
            raise ValueError(f"{names[joint]} would have to move at {speed:.0f} m/s to be where it "
                             f"is asked to be at {when / fps:.2f} s; a person reaches {FASTEST:g}.")


def cut(t, start, stop, place):
    """The Targets of frames start to stop of a motion, for a motion of its own that lies at `place`
    in the whole one's frame. Its rows are the whole one's to report."""
    part = slice(start, stop)
    way = np.stack([t.way[part, 0], 0 * t.way[part, 0], t.way[part, 1]], axis=1)
    return replace(
        t, places=to_own(t.places[part], place), pinned=t.pinned[part], place=place,
        facing=t.facing[part] - place[2], way=to_own(way, place)[:, ::2], rows=[],
        kept=[(fork, joints, clip[part]) for fork, joints, clip in t.kept if len(clip) > start],
        speeds=[(joint, frame - start, speed) for joint, frame, speed in t.speeds
                if start < frame < stop - 1])


# --------------------------------------------------------------------------------------------------
# Reporting


def speed_at(joints, joint, frame, fps):
    """Metres a second of a joint, from the frame before to the frame after."""
    return float(np.linalg.norm(joints[frame + 1, joint] - joints[frame - 1, joint]) * fps / 2)


def report(t, joints, fps, pose):
    """Targets and a motion (T, J, 3) in the world's frame -> a dict for each constraint: "what" was
    asked, "asked" and "reached" in words, and the "error", in metres (m/s for a speed)."""
    found = []
    for what, kind, which, frames, value in t.rows:
        now = joints[np.ix_(frames, which)]  # (n, J, 3)
        asked = reached = ""
        if kind == "position":
            asked, reached = in_words(value), in_words(now[0, 0])
            error = np.linalg.norm(now[0, 0] - value)
        elif kind == "height":
            asked, reached = f"{value:.3f} m high", f"{now[0, 0, 1]:.3f} m"
            error = abs(now[0, 0, 1] - value)
        elif kind == "speed":
            speed = speed_at(joints, which[0], frames[0], fps)
            asked, reached, error = f"{value:.2f} m/s", f"{speed:.2f} m/s", abs(speed - value)
        elif kind == "floor":
            error = max(-joints[..., 1].min(), 0.0)
            asked, reached = "nothing under 0 m", f"{joints[..., 1].min():.3f} m"
        else:
            if kind == "pose":
                gaps = np.linalg.norm(now[0] - value, axis=-1)
            elif kind == "path":
                gaps = np.linalg.norm((now[:, 0] - value)[:, ::2], axis=-1)
            else:
                gaps = kept_apart(joints, which, *value, pose)
            error = gaps.max()
            asked, reached = "every joint" if kind == "pose" else "all of it", \
                f"{100 * gaps.mean():.1f} cm off on average, {100 * error:.1f} cm at most"
        found.append({"what": what, "kind": kind, "asked": asked, "reached": reached,
                      "error": float(error)})
    return found


def in_words(place):
    return "(" + ", ".join(f"{x:.3f}" for x in place) + ") m"
