"""Whether a person can have made a motion, and which way is up in it.

    for fault in faults(joints, fps): ...    # what no person can do, with its frames
    cut = rest_frames(joints, fps)           # a calibration pose before the motion begins
    up = find_up(joints, rest)               # the axis on which the head is above the feet

The limits lie above what people were measured to do and below what broken recordings hold. In 350
windows of CMU's recordings, 2,900 clips of Bandai-Namco's and 681 of DeepMimic's, all real, the
largest numbers are: pelvis 6.9 m/s and 88 m/s2, any joint 15 m/s and 281 m/s2, a bone 2 cm off its
median. Broken stretches of the same CMU recordings begin at 26 m/s and 437 m/s2.
"""
from collections import namedtuple

import numpy as np

from motion import FEATURE_SLICES, SKELETONS, T2M, floor_height, to_metres

ROOT_SPEED = 12.5  # metres a second; the fastest sprinter reaches 12.4
SPEED = 25.0  # of any joint
ROOT_ACCELERATION = 150.0  # metres a second squared
ACCELERATION = 500.0
SPAN = 0.05  # seconds over which speeds are measured, whatever the frame rate
BONE = 0.1, 0.3  # a bone's length may change by this many metres, or by this share of it
LEG = 0.4, 1.3  # metres from hip to ankle
HEIGHT = -0.5, 6.0  # metres of the pelvis above the floor
RISE = 2.0  # metres that the pelvis goes up within a second; in the toy set up to 0.83
SLOW, FAST = 1.2, 0.18  # see `pace`

Fault = namedtuple("Fault", "first last frame reason")


def _groups(values, limit, shift, gap, reason, worst=False):
    """Faults of runs of values (n,) above `limit`, at frames n + shift; runs closer than `gap`
    frames are one. reason: a function of n and the value, at the first or the worst of a run."""
    at = np.flatnonzero(values > limit)
    for run in np.split(at, np.flatnonzero(np.diff(at) > gap) + 1) if len(at) else ():
        named = run[values[run].argmax() if worst else 0]
        yield Fault(int(run[0]) + shift, int(run[-1]) + shift, int(named) + shift,
                    reason(named, values[named]))


def faults(joints, fps, skeleton=T2M):
    """Joints (T, J, 3) in metres, Y up -> list of Faults, the plainest first: steps that are too
    large, bones that change their length, a body or a height of no person, and changes of speed."""
    joints = np.asarray(joints, np.float64)
    if not len(joints):
        return []
    names, parents = skeleton.joint_names, skeleton.parents
    lag = max(1, round(fps * SPAN))
    seconds, found = lag / fps, []

    def moving(size, what, unit, root_limit, limit):  # size (n, J) of each joint's step or turn
        for first, last, most in ((0, 1, root_limit), (1, size.shape[1], limit)):
            part = size[:, first:last]
            if part.size:
                fastest = first + part.argmax(1)
                found.extend(_groups(
                    part.max(1), most, lag, 2 * lag, lambda n, value: f"{names[fastest[n]]} {what} "
                    f"{value:.4g} {unit} (people: up to {most:g})", worst=unit == "m/s2"))

    steps = joints[lag:] - joints[:-lag]
    moving(np.linalg.norm(steps, axis=-1) / seconds, "moves at", "m/s", ROOT_SPEED, SPEED)
    bones = np.linalg.norm(joints[:, 1:] - joints[:, list(parents[1:])], axis=-1)
    usual = np.median(bones, axis=0)
    off = np.abs(bones - usual) / np.maximum(BONE[0], BONE[1] * usual)
    which = off.argmax(1)
    found.extend(_groups(
        off.max(1), 1, 0, 1, lambda t, _: f"the bone to {names[which[t] + 1]} is "
        f"{bones[t, which[t]]:.4g} m long, {usual[which[t]]:.2f} m in most frames"))

    whole = len(joints) - 1
    leg = usual[[joint - 1 for joint in skeleton.leg]].sum()
    if not LEG[0] <= leg <= LEG[1]:
        found.append(Fault(0, whole, 0, f"a leg is {leg:.4g} m long (people: {LEG[0]} to "
                                        f"{LEG[1]} m)"))
    height = joints[:, 0, 1] - floor_height(joints, 1.0)
    beyond = np.abs(height - sum(HEIGHT) / 2) - (HEIGHT[1] - HEIGHT[0]) / 2
    found.extend(_groups(beyond, 0, 0, 1, lambda t, _: f"the pelvis is {height[t]:.4g} m above "
                         "the floor"))
    second = max(1, round(fps))
    rise = joints[second:, 0, 1] - joints[:-second, 0, 1]
    found.extend(_groups(rise, RISE, second, second, lambda n, value: f"the pelvis rises by "
                         f"{value:.4g} m within a second (people: up to {RISE:g})"))
    turns = (steps[lag:] - steps[:-lag]) / seconds**2
    moving(np.linalg.norm(turns, axis=-1), "changes its speed by", "m/s2", ROOT_ACCELERATION,
           ACCELERATION)
    return found


def feature_faults(features, name, fps):
    """Features (T, F), not normalised, of skeleton "t2m", "kit" or "smpl" -> list of Faults.

    Speeds and bones are those of the joints that the positions give. The other numbers are held
    against what they can be: parts of rotations, steps, contacts of 0 or 1. The motion of "smpl"
    was estimated from video: its path jumps back and forth, and only its size is looked at."""
    features = np.asarray(features, np.float64)
    if name == "smpl":
        rows = features.reshape(len(features), 25, 6)
        parts = {"rotations": (rows[:, :24].reshape(len(rows), -1), 1.5),
                 "the root's path": (rows[:, 24], 100.0)}
    else:
        body = SKELETONS[name]
        at = FEATURE_SLICES(body)
        frame = 1 / fps / body.unit  # a frame's step at one metre a second
        limits = {"root_angular_velocity": 1.6, "root_linear_velocity": ROOT_SPEED * frame,
                  "root_height": HEIGHT[1] / body.unit, "positions": 10 / body.unit,
                  "rotations": 1.5, "velocities": SPEED * frame, "contacts": 1.5}
        parts = {part: (features[:, at[part]], limit) for part, limit in limits.items()}
    found = []
    for part, (numbers, limit) in parts.items():
        largest = np.abs(numbers).max(1)
        found.extend(_groups(largest, limit, 0, 1, lambda t, value: f"{part} hold {value:.4g} "
                             f"(people: up to {limit:.3g})"))
    if not found and name != "smpl":  # sums over wrong steps would only repeat what is known
        found = faults(to_metres(features, name), fps, SKELETONS[name])
    return found


def rest_frames(joints, fps, blend=True):
    """How many frames before the motion hold a calibration pose, such as the T-pose far away that
    CMU's files begin with, and the blend from it: up to a jump within the first quarter second, in
    which at least four joints (elbows and wrists) are faster than 6 m/s and three times as fast as
    in the second after it. Without `blend`, only a pose held still before the jump counts."""
    most = min(int(fps / 4) + 1, len(joints) - 2)
    speed = np.linalg.norm(np.diff(joints[:most + int(fps) + 1], axis=0), axis=-1) * fps
    speed = np.sort(speed, axis=1)[:, -4]
    for k in range(most, 0, -1):
        still = blend or k == 1 or speed[:k - 1].max() < 1
        if still and speed[k - 1] > 6 and speed[k - 1] > 3 * speed[k:k + int(fps)].max():
            return k
    return 0


def pace(joints, fps):
    """How people walk in joints (T, 22, 3), metres, Y up -> (metres, seconds) of a usual step, or
    None unless somebody walks at least six even steps straight ahead.

    People take longer steps more quickly: a step's length times its time hardly varies. It is 0.16
    to 0.77 metre seconds in all real walks looked at, 1.9 in one that is shown five times too
    slowly. Nobody takes 5 steps a second."""
    left = joints[:, 1] - joints[:, 2]
    ahead = np.stack([-left[:, 2], left[:, 0]], axis=-1)
    ahead /= np.maximum(np.linalg.norm(ahead, axis=-1, keepdims=True), 1e-9)
    gap = ((joints[:, 7] - joints[:, 8])[:, [0, 2]] * ahead).sum(-1)  # left foot before right
    apart = np.flatnonzero(np.abs(gap) > 0.15)
    side = np.sign(gap[apart])
    at = apart[1:][side[1:] != side[:-1]]  # where the other foot has come to the front
    if len(at) < 7:
        return None
    path, times = joints[at, 0][:, [0, 2]], np.diff(at) / fps
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=-1)
    even = []
    for i in range(len(times) - 3):
        four, long = times[i:i + 4], lengths[i:i + 4]
        straight = np.linalg.norm(path[i + 4] - path[i]) > 0.8 * long.sum()
        if straight and four.max() < 1.5 * four.min() and long.min() > 0.3:
            even.append((np.median(long), np.median(four)))
    return tuple(np.median(even, axis=0)) if len(even) >= 3 else None


def check_pace(joints, fps):
    """ValueError, with the flag to give, if people walk far too slowly or too quickly."""
    step = pace(joints, fps)
    if step and (step[0] * step[1] > SLOW or step[1] < FAST):
        likely = fps * (step[0] * step[1] / 0.39 if step[1] > FAST else step[1] / 0.55)
        near = min((12.5, 20, 24, 25, 30, 50, 60, 100, 120, 240), key=lambda f: abs(
            np.log(f / likely)))
        slow = "slowly" if step[1] > FAST else "quickly"
        raise ValueError(f"at {fps:g} frames a second, people walk too {slow}: one step of "
                         f"{step[0]:.2f} m every {step[1]:.2f} s. Give the true rate, perhaps "
                         f"--fps {near:g}, or --keep")


# --------------------------------------------------------------------------------------------------
# Which way is up

AXES = {"y": ((0, 1, 2), (1, 1, 1)), "z": ((0, 2, 1), (1, 1, -1)), "x": ((1, 0, 2), (-1, 1, 1)),
        "-y": ((0, 1, 2), (1, -1, -1)), "-z": ((0, 2, 1), (1, -1, 1)),
        "-x": ((1, 0, 2), (1, -1, 1))}  # order and signs of the coordinates that turn it to Y


class Unclear(ValueError):
    """A motion that alone does not tell which way is up; other recordings of the set may."""


UPRIGHT = 0.8  # cosine between the line from feet to head and an axis


def turn_up(joints, up):
    """Joints (..., 3) in which the axis `up` points up -> the same with Y up."""
    order, signs = AXES[up]
    return joints[..., list(order)] * np.array(signs)


def _standing(joints):
    """Unit vectors (..., 3) from between the ankles to the head of joints (..., 22, 3)."""
    line = joints[..., 15, :] - (joints[..., 7, :] + joints[..., 8, :]) / 2
    return line / np.maximum(np.linalg.norm(line, axis=-1, keepdims=True), 1e-9)


def find_up(joints, rest=None):
    """Which axis of joints (T, 22, 3) points up: "y", "z", "-y", ...

    It is the one on which the head is above the feet in most frames; Y, if there is none (as in
    somersaults). Somebody who lies still looks like somebody who stands while another axis is up.
    So an axis other than Y needs a second witness: the skeleton's own rest pose (22, 3), or
    somebody who walks across it. Unclear, with the flag to give, without one."""
    lines = _standing(joints)
    shares = {axis: (turn_up(lines, axis)[:, 1] > UPRIGHT).mean() for axis in AXES}
    up = max(shares, key=shares.get)
    if shares[up] < 0.5 or shares["y"] > 0.1:
        return "y"
    if rest is not None and turn_up(_standing(rest), up)[1] > UPRIGHT:
        return up
    extent = np.ptp(turn_up(joints[:, 0], up), axis=0)
    size = np.median(np.linalg.norm(joints[:, 15] - joints[:, 7], axis=-1))
    if np.hypot(extent[0], extent[2]) > max(0.6 * size, 2 * extent[1]):
        return up
    raise Unclear(f"the head is beside or below the feet in most frames: is somebody lying "
                  f"there, or does {up} point up? Give --up=y or --up={up}")


def lies(joints):
    """Whether the head is beside or below the feet in most frames of joints (T, 22, 3), Y up."""
    return (_standing(joints)[:, 1] > UPRIGHT).mean() < 0.1


def posture(features, name):
    """Features (T, F) of "t2m" or "kit" -> whether the head is above the feet in most frames, and
    whether left and right are exchanged (never for "kit")."""
    body, joints = SKELETONS[name], to_metres(np.asarray(features, np.float64), name)
    feet = [pair[0] for pair in body.feet]
    above = joints[:, body.joint_names.index("head"), 1] - joints[:, feet, 1].mean(1)
    return (above > 0.5).mean() >= 0.5, body is T2M and is_mirrored(joints)


def is_mirrored(joints):
    """Whether left and right are exchanged in joints (T, 22, 3), Y up, as in left-handed
    coordinates: whether people who stand on straight legs have their toes behind them."""
    left = joints[:, 1] - joints[:, 2] + joints[:, 16] - joints[:, 17]
    ahead = np.cross(left, [0.0, 1.0, 0.0])
    toes = joints[:, 10] - joints[:, 7] + joints[:, 11] - joints[:, 8]
    size = np.linalg.norm(toes, axis=-1)
    flat = np.hypot(toes[:, 0], toes[:, 2])
    legs = np.diff(joints[:, [[1, 4, 7], [2, 5, 8]]], axis=2)  # (T, 2, 2, 3): thighs and shins
    whole = np.linalg.norm(legs, axis=-1).sum(2).mean(1)
    high = -legs[..., 1].sum(2).mean(1)  # of hips over ankles: who kneels has toes that point back
    use = (_standing(joints)[:, 1] > UPRIGHT) & (flat > 0.6 * size)
    use &= high > 0.75 * whole
    if use.mean() < 0.5:
        return False
    ahead, toes = ahead[use], toes[use] * (1, 0, 1)
    cosine = (ahead * toes).sum(-1) / np.maximum(np.linalg.norm(ahead, axis=-1) * flat[use], 1e-12)
    return bool(np.median(cosine) < -0.5)
