"""The pieces that toy motions are put together from: gaits, small steps, keyframes and jumps.

A segment is frames (T, 19, 3) seen from a path, who stands (T, 2), and the path (T, 3). It begins
and ends standing, so that one can follow another.
"""
import numpy as np

import motion
from motion import turn_about_y as turn, unit_rows as unit
from toy.body import (ARM_PAIRS, ARMS, CF, FPS, HF, HU, LEGS, LFF, LT, LU, P, PF, RFF, RT, RU,
                      TOE_Y, TOES, X, Y, Z, ease, flat, interpolate, pitch, smooth)
from toy.clips import travelled

GRAVITY = 9.81
SHORTEST, LONGEST = 2.1, 5.9  # seconds of a keyframed segment


def pick(rng, *options):
    return options[rng.integers(len(options))]


def then(a, b):
    """Segment a and, from where it ends, segment b."""
    end, path = a[2][-1], b[2]
    places = end[:2] + turn(end[2], flat(path))[:, [0, 2]]
    moved = np.concatenate([places, end[2] + path[:, 2:]], axis=1)
    return tuple(np.concatenate(pair) for pair in zip(a, (b[0], b[1], moved)))


def overlay(segment, gesture, stand):
    """Make a gesture of arms, chest and head during another motion."""
    v, n = segment[0].copy(), min(len(segment[0]), len(gesture[0]))
    change = gesture[0][:n] - stand
    v[:n, CF:HU + 1] += change[:, CF:HU + 1]
    for arm in map(list, ARM_PAIRS):
        share = 1 - np.exp(-(change[:, arm] ** 2).sum((1, 2)) / 0.1)[:, None, None]
        v[:n, arm] += share * (gesture[0][:n, arm] - v[:n, arm])
    return (v,) + segment[1:]


def still(stand, seconds):
    n = round(seconds * FPS)
    return np.repeat(stand[None], n, axis=0), np.ones((n, 2), bool), np.zeros((n, 3))


def gait(cycle, stand, weight, heading, rate=1.0, stride=1.0, lift=1.0, phase=0.0):
    """Walk or run along a path, which moves as fast as the standing foot is left behind.

    weight (T,)   0 stands, 1 walks
    heading (T,)  radians
    rate          of the cycle, a number or (T,); negative walks backwards
    stride, lift  length and height of the steps, in those of the cycle; stride 0 is on the spot
    """
    fine, stands, seconds, metres = cycle
    rate = np.broadcast_to(rate, len(weight))
    at = (phase + travelled(rate) / seconds / FPS) % 1 * 400
    i, part = at.astype(int) % 400, (at % 1)[:, None, None]
    v = fine[i] * (1 - part) + fine[(i + 1) % 400] * part
    middle = fine.mean(0)
    for toe in TOES:
        v[:, toe, 2] = stand[toe, 2] + stride * (v[:, toe, 2] - middle[toe, 2])
        v[:, toe, 1] = TOE_Y + lift * (v[:, toe, 1] - TOE_Y)
    v[:, ARMS] = middle[ARMS] + (0.35 + 0.65 * stride) * (v[:, ARMS] - middle[ARMS])
    v = stand + weight[:, None, None] * (v - stand)
    speed = weight * stride * metres * rate / seconds / FPS
    at = travelled(speed[:, None] * np.stack([np.sin(heading), np.cos(heading)], axis=1))
    path = np.concatenate([at, heading[:, None]], axis=1)
    return v, stands[i] | (weight < 0.12)[:, None], path


def swing_arms(v, ahead):
    """Swing the arms, in place: the left one forward by ahead (T,), the right one back."""
    for (upper, fore), out in zip(ARM_PAIRS, (1, -1)):
        v[:, upper] += (out * ahead)[:, None] * Z
        v[:, fore] += 1.2 * (out * ahead + 0.2 * np.abs(ahead))[:, None] * Z


def steps(stand, path, start, stop, count, lift, arms=0.0):
    """Follow a path with `count` small steps between two frames, left and right by turns.

    lift: how high the feet go, in metres; arms: how far the arms swing.
    """
    v, contact, _ = still(stand, len(path) / FPS)
    u = (np.arange(len(path)) - start) / (stop - start) * count / 2
    for side, (toe, f, up, _) in enumerate(LEGS):
        phase = (u - 0.5 * side) % 1 / 0.46
        swings = (u > 0) & (u < count / 2) & (phase < 1)
        contact[:, side] = ~swings
        height = np.where(swings, np.sin(np.pi * np.clip(phase, 0, 1)), 0)
        v[:, toe, 1] += lift * height
        v[:, [f, up]] = pitch(25 * height[:, None], v[:, [f, up]])
        v[:, P] += height[:, None] * ((-1 if side == 0 else 1) * 0.025 * X - 0.012 * Y)
    swing_arms(v, arms * ease(4 * u) * ease(2 * count - 4 * u) * np.cos(2 * np.pi * u))
    return v, contact, path


def bounce(stand, path, phase, seconds, stances, lift, apart=0.0):
    """Follow a path with a springy gait, such as skipping.

    phase (T,)  cycles of `seconds` each; at whole numbers both feet stand
    stances     for each side the parts of the cycle [(from, to), ...] in which the foot stands
    lift        for each side how high the foot is lifted between stances, in metres
    apart       metres by which the left foot keeps to the left and the right one to the right

    While neither foot stands, the body flies on the parabola of free fall.
    """
    v, contact, _ = still(stand, len(path) / FPS)
    u, moving = phase % 1, (phase > 0) & (phase < phase[-1])
    on = np.linspace(0, 1, 401)[:-1]
    stands = [np.any([(on >= a - 1e-9) & (on < b) for a, b in each], axis=0) for each in stances]
    rise = np.zeros(len(path))
    flying = ~(stands[0] | stands[1])
    for mask, airborne in ((flying, True), (~flying, False)):
        for a, b in _around(mask):
            length = (b - a) * seconds
            part = np.clip((u + (u < a - 1e-9)) - a, 0, None) * seconds
            inside = moving & (part < length)
            if airborne:
                rise += inside * GRAVITY / 2 * part * (length - part)
            else:  # sinking in and pushing off, so that it flies for as long as it does
                air = flying.sum() / 400 * seconds / max(1, len(_around(flying)))
                rise -= inside * GRAVITY * air * length / 2 / np.pi * np.sin(np.pi * part / length)
    v[:, P, 1] += smooth(rise, 0.7)
    v[:, P, 1] += 0.02 * smooth(moving.astype(float), 3.0)
    for side, (toe, f, up, _) in enumerate(LEGS):
        contact[:, side] = ~moving | stands[side][(u * 400).astype(int) % 400]
        v[:, toe, 0] += (1 - 2 * side) * apart * moving
        for a, b in _around(~stands[side]):
            part = (u + (u < a - 1e-9) - a) / (b - a)
            inside = moving & (part >= 0) & (part < 1)
            height = inside * np.sin(np.pi * np.clip(part, 0, 1)) * (lift[side] if b - a > 0.3 else
                                                                   0.03)
            v[:, toe, 1] += height + inside * np.maximum(rise, 0)
            v[:, [f, up]] = pitch(30 * (height / 0.2)[:, None], v[:, [f, up]])
    return v, contact, path


def _around(mask):
    """[from, to) of each run of True in one period, in parts of it; `to` may go beyond 1."""
    if mask.all() or not mask.any():
        return [(0.0, 1.0)] if mask.all() else []
    first = np.flatnonzero(mask & ~np.roll(mask, 1))
    return [(a / len(mask), (a + np.argmin(np.roll(mask, -a))) / len(mask)) for a in first]


def tilt(v, lean, roll=0.0, first=PF):
    """Lean a body forward, and to the right by `roll`, in place: degrees (T,), from `first` up."""
    roll = np.radians(np.broadcast_to(roll, len(v)))[:, None]
    x, y = v[:, first:HU + 1, 0].copy(), v[:, first:HU + 1, 1].copy()
    v[:, first:HU + 1, 0] = np.cos(roll) * x + np.sin(roll) * y
    v[:, first:HU + 1, 1] = np.cos(roll) * y - np.sin(roll) * x
    v[:, first:HU + 1] = pitch(np.broadcast_to(lean, len(v))[:, None], v[:, first:HU + 1])


# --------------------------------------------------------------------------------------------------
# Keyframes: poses as changes to a standing pose

# Upper arm and forearm of the left arm, seen from the chest; the right arm mirrors them.
ARM = {name: np.array(vectors) for name, vectors in {
'side': ((1, 0, .1), (1, .05, .15)), 'up': ((.3, 1, .1), (.1, 1, .05)),
    'front': ((.12, 0, 1), (0, .05, 1)), 'v': ((.7, .75, .1), (.65, .8, .1)),
    'in': ((.75, .2, .3), (-.35, 1, .2)), 'out': ((.75, .2, .3), (.65, .85, .2)),
    'high in': ((.5, .85, .2), (-.35, 1, .2)), 'high out': ((.5, .85, .2), (.7, .75, .15)),
    'hips': ((.75, -.65, -.3), (-.75, -.4, .5)), 'guard': ((.25, -.85, .35), (-.3, .65, .7)),
    'straight': ((-.02, .02, 1), (-.15, .03, 1)), 'hook': ((.75, .0, .65), (-.9, .05, .45)),
    'upper': ((.1, -.3, .95), (-.1, .9, .45)), 'back': ((.2, -.85, -.55), (.1, -.95, 0)),
    'lap': ((.15, -.85, .5), (-.05, -.35, 1)), 'low': ((.1, -.45, .9), (0, -.55, .85)),
    'open': ((.6, -.4, .6), (.4, .1, 1)), 'clap': ((.3, -.5, .75), (-.72, .12, .7)),
    'cocked': ((.75, .25, -.5), (.25, .9, -.35)), 'thrown': ((.05, .25, 1), (-.1, -.1, 1)),
    'after': ((-.2, -.7, .7), (-.5, -.6, .6)), 'swing': ((.15, -.6, .75), (0, -.1, 1)),
}.items()}
# An arm has no direction half-way between two opposite ones; there it goes by the front and side.
DETOUR = [[0.7, 0, 0.7], [0.5, 0, 0.9], [-0.7, 0, 0.7], [-0.5, 0, 0.9]]


def pose(stand, p=(0, 0, 0), pelvis=(0, 0, 0), chest=(0, 0, 0), head=(0, 0, 0), L=None, R=None,
         lt=(0, 0, 0, 0), rt=(0, 0, 0, 0)):
    """A standing pose with changes.

    p                    how far the pelvis is moved
    pelvis, chest, head  degrees of leaning forward, turning left and leaning right; each carries
                         the next ones along
    L, R                 the arms, by name
    lt, rt               how far the toes are moved, and degrees by which the heels are lifted
    """
    v = stand.copy()
    v[P] += p
    for (lean, yaw, roll), first in ((pelvis, PF), (chest, CF), (head, HF)):
        about_z = motion.axis_angle_to_matrix(np.radians(roll) * Z)
        rows = np.einsum('ij,kj->ki', about_z, v[first:HU + 1])
        v[first:HU + 1] = turn(np.radians(yaw), pitch(lean, rows))
    for arm, upper, out in ((L, LU, 1), (R, RU, -1)):
        if arm:
            v[upper:upper + 2] = ARM[arm] * (out, 1, 1)
    for (*move, lift), toe, f in ((lt, LT, LFF), (rt, RT, RFF)):
        v[toe] += move
        v[f:f + 2] = pitch(lift, v[f:f + 2])
    return v


def lean(pelvis=0, chest=0, head=0, **more):
    """Changes for `pose`: leaning forward by degrees, and more."""
    return dict(pelvis=(pelvis, 0, 0), chest=(chest, 0, 0), head=(head, 0, 0), **more)


def both(arm, **more):
    """Changes for `pose`: both arms alike, and more."""
    return dict(L=arm, R=arm, **more)


def keyed(stand, keys, amount=1.0, pace=1.0):
    """Segment through keys [(seconds since the last, changes for `pose`), ...], from the first.

    amount: how far the poses go from the standing one; pace: how fast.
    """
    t = np.cumsum([seconds for seconds, _ in keys]) / pace
    poses = stand + amount * (np.array([pose(stand, **changes) for _, changes in keys]) - stand)
    t, poses[:, ARMS] = t * min(1, LONGEST / t[-1]), unit(poses[:, ARMS])
    t[-1] = max(t[-1], SHORTEST)
    v = interpolate(t, poses, np.arange(round(t[-1] * FPS) + 1) / FPS)
    short = 1 - np.minimum(1, np.linalg.norm(v[:, ARMS], axis=-1, keepdims=True))
    v[:, ARMS] += short * DETOUR
    rests = [np.abs(np.gradient(v[:, toe], axis=0)).max(1) < 0.006 for toe in TOES]
    contact = np.stack(rests, axis=1) & (v[:, TOES, 1] < TOE_Y + 0.015)
    return v, contact, np.zeros((len(v), 3))


JUMPING_ARMS = {  # while crouching, taking off, flying
    'swing': ('back', 'swing', 'swing'), 'up': ('back', 'swing', 'up'), 'hips': ('hips',) * 3}


def _crouch(depth, arms=None):
    return lean(60 * depth, 50 * depth, -60 * depth, **both(arms))


def _on_toes(degrees, arms=None, bend=0):
    heels = 0, 0, 0, degrees
    return lean(chest=bend, lt=heels, rt=heels, **both(arms))


def jumps(stand, flights, crouch=0.25, arms='swing', tuck=0.0, hop=False, gap=0.0):
    """Jump once for each (height over take-off, sideways, forwards, turn) of `flights`.

    All in metres and radians; pelvis and feet fly on the parabola of free fall. arms: swing, up or
    hips; tuck: metres; gap: seconds between jumps; hop: on the right foot.
    """
    back, off, fly = JUMPING_ARMS[arms]
    dip, top, at, none = 0.8 * crouch, 0.05, np.zeros(3), np.zeros(3)
    # rows of: seconds since the last, pose, pelvis' rise and speed, place on the path and speed
    rows = [(0, {}, 0, 0, at, none), (0.15, {}, 0, 0, at, none),
            (0.2 + 0.7 * crouch, _crouch(crouch, back), -crouch, 0, at, none)]
    flying, depth = [], crouch
    for number, (height, *move) in enumerate(flights):
        move = np.array(move)
        speed, half = np.sqrt(2 * GRAVITY * height), np.sqrt(2 * height / GRAVITY)
        ahead, drift = move * (0.2, 0.2, 0.1), move * (0.6, 0.6, 0.8) / 2 / half
        flying.append((len(rows), len(rows) + 2, move))
        rows += [
            (2 * (depth + top) / speed, _on_toes(50, off, -4), top, speed, at + ahead, drift),
            (half, _on_toes(28, fly, 5 + 40 * tuck), top + height, 0, at + move / 2, drift),
            (half, _on_toes(12), top, -speed, at + move - ahead, drift),
            (2 * (dip + top) / speed, _crouch(dip), -dip, 0, at + move, none)]
        at, depth = at + move, dip
        if gap and number < len(flights) - 1:
            rows.append((gap, _crouch(dip), -dip, 0, at, none))
    rows += [(0.25 + crouch, {}, 0, 0, at, none), (0.3, {}, 0, 0, at, none)]
    seconds, poses, rise, climb, places, drifts = zip(*rows)
    if hop:  # the left leg is up from the crouch to the landing
        up = dict(lt=(0, 0.24, -0.22, 60))
        poses = [*poses[:2], *(pose | up for pose in poses[2:-1]), poses[-1]]
    v, _, _ = keyed(stand, list(zip(seconds, poses)))
    t, x = np.cumsum(seconds), np.arange(len(v)) / FPS
    rise, path = interpolate(t, rise, x, climb), interpolate(t, places, x, drifts)
    v[:, P, 1] += rise
    feet, air = np.zeros((len(x), 3)), np.zeros(len(x), bool)
    for a, b, move in flying:
        u = np.clip((x - t[a]) / (t[b] - t[a]), 0, 1)
        up = (u > 0) & (u < 1)
        air |= up
        feet += (u * u * (3 - 2 * u))[:, None] * move
        v[:, TOES, 1] += np.where(up, rise - top + tuck * np.sin(np.pi * u) ** 2, 0)[:, None]
    # the feet stay behind the pelvis before a jump and arrive before it
    behind = turn(-path[:, 2], flat(feet - path))
    v[:, [RT] if hop else TOES] += behind[:, None]
    lifted = (v[:, TOES, 1] > TOE_Y + 0.01) & np.array([hop, False])
    return v, ~air[:, None] & ~lifted, path
