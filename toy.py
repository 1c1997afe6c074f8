"""The toy dataset: some thousand short motions with an action label and captions each, made from a 2 MB folder of clips.

    real      the clips that the DeepMimic paper imitated (Peng et al., SIGGRAPH 2018), put on the 22-joint body
    gaits     cycles of the real walks and runs along any path, forwards and backwards, from and to a standstill
    steps     turning, spinning and stepping aside with planted feet
    keyframed the rest, on real standing poses; jumps fly on a parabola

All four make frames of the same 19 vectors (the table below) and say which foot stands. Then ONE pass keeps standing feet in
their place and ONE solver turns the vectors into joints, legs by inverse kinematics. Since no vector is a bone length, the
bones of all clips are those of T2M_OFFSETS; since all vectors are seen the same way in a mirror, mirroring is exact.
Nothing here depends on anything but the clips and SEED: the same folder gives the same numbers.
"""
import json
import os

import numpy as np

import motion
import toy_captions
from pack import Clip

FPS, SEED = 20, 7
X, Y, Z = np.eye(3)
GRAVITY = 9.81
TOE_Y = 0.010  # height of the toe joint of a foot that stands
SHORTEST, LONGEST = 2.1, 5.9  # seconds

# The 19 vectors of a frame. P, LT, RT are places (metres); the rest are directions, of any length > 0. Arms are seen from the
# chest, knees from the pelvis, everything else from the body's path: a point on the floor and a heading, (x, z, angle) per frame.
(P,          # pelvis
 PF, PU,     # where the pelvis points: forward, up
 CF, CU,     # chest
 HF, HU,     # head
 LU, LF, RU, RF,      # upper arms and forearms
 LT, RT,              # toes
 LFF, LFU, RFF, RFU,  # feet: forward, up
 LK, RK) = range(19)  # where the knees would point if the legs hung straight down
PLACES, ARMS, TOES, FEET = [P, LT, RT], [LU, LF, RU, RF], [LT, RT], [LT, LFF, LFU, RT, RFF, RFU]
TURNED = [i for i in range(19) if i not in ARMS + [LK, RK]]  # seen from the path
MIRROR = [P, PF, PU, CF, CU, HF, HU, RU, RF, LU, LF, RT, LT, RFF, RFU, LFF, LFU, RK, LK]

# ----------------------------------------------------------------------------------------------------------------------
# The body

REST = [j for j in range(22) if j not in (7, 8, 10, 11, 18, 19, 20, 21)]  # what does not reach for the floor by itself
LENGTH = np.linalg.norm(motion.T2M_OFFSETS, axis=1)


def _unit(v):
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)


def _frame(forward, up):
    """Axes (..., 3, 3) as columns: left, up, forward; `up` is kept, `forward` made perpendicular to it."""
    up = _unit(up)
    left = _unit(np.cross(up, forward))
    return np.stack([left, up, np.cross(left, up)], axis=-1)


def _turned(frame, vector):
    return (frame * np.asarray(vector)[..., None, :]).sum(-1)


def _seen(frame, vector):
    return (frame * vector[..., :, None]).sum(-2)


def _bone(joint, x, y, z):
    return _unit(np.array([x, y, z])) * LENGTH[joint]


# rest directions of the bones that the chain of pelvis, chest and feet carries along
HIP = _bone(1, .56, -.83, -.05), _bone(2, -.56, -.83, -.05)
SPINE = _bone(3, 0, 1, -.25), _bone(6, 0, 1, .12), _bone(9, 0, 1, .05)
NECK, HEAD = _bone(12, 0, 1, -.12), _bone(15, 0, .85, .52)
COLLAR = _bone(13, .53, .84, -.12), _bone(14, -.53, .84, -.12)
FOOT = _bone(10, .12, -.335, .93), _bone(11, -.12, -.335, .93)


def two_bone(a, c, upper, lower, pole):
    """Middle joint (T, 3) of the limb from a to c (T, 3), bent towards `pole`; c must be within reach."""
    line = c - a
    d = np.maximum(np.linalg.norm(line, axis=-1, keepdims=True), 1e-6)
    line = line / d
    along = (upper**2 - lower**2 + d**2) / (2 * d)
    out = np.sqrt(np.maximum(upper**2 - along**2, 0))
    return a + along * line + out * _unit(pole - (pole * line).sum(-1, keepdims=True) * line)


def _swing(a, b, x):
    """Turn x by the shortest rotation that takes unit vector a to b (not its opposite)."""
    c = np.cross(a, b)
    return x + np.cross(c, x) + np.cross(c, np.cross(c, x)) / (1 + (a * b).sum(-1, keepdims=True)).clip(0.05)


def _soft_max0(x, width=0.01):
    return 0.5 * (x + np.sqrt(x * x + width * width))  # max(x, 0) without the corner


def solve(v, contact):
    """Vectors (T, 19, 3) seen from the world (but for the arms) and who stands (T, 2) -> joints (T, 22, 3), metres."""
    joints = np.zeros((len(v), 22, 3))
    pelvis, chest, head = _frame(v[:, PF], v[:, PU]), _frame(v[:, CF], v[:, CU]), _frame(v[:, HF], v[:, HU])
    ankles = []
    for side, (toe, f, u) in enumerate(((LT, LFF, LFU), (RT, RFF, RFU))):
        ankles.append(v[:, toe] - _turned(_frame(v[:, f], v[:, u]), FOOT[side]))
    # a pelvis too high for the legs comes down, as far as the feet that stand ask for
    drop = np.zeros(len(v))
    stands = _smooth(contact.astype(float), 1.0)
    for side in range(2):
        gap = v[:, P] + _turned(pelvis, HIP[side]) - ankles[side]
        reach = 0.992 * (LENGTH[4 + side] + LENGTH[7 + side])
        level = np.sqrt(np.maximum(reach**2 - gap[:, 0]**2 - gap[:, 2]**2, 0.05))
        drop = np.maximum(drop, stands[:, side] * _soft_max0(gap[:, 1] - level))
    joints[:, 0] = v[:, P] - _smooth(drop[:, None], 0.8) * Y
    for j, parent, share in ((3, 0, 0.15), (6, 3, 0.45), (9, 6, 0.8)):  # the spine bends from the pelvis' to the chest's frame
        bend = _frame(v[:, PF] * (1 - share) + v[:, CF] * share, v[:, PU] * (1 - share) + v[:, CU] * share)
        joints[:, j] = joints[:, parent] + _turned(bend, SPINE[(3, 6, 9).index(j)])
    joints[:, 12] = joints[:, 9] + _turned(chest, NECK)
    joints[:, 15] = joints[:, 12] + _turned(head, HEAD)
    for side, (upper, fore) in enumerate(((LU, LF), (RU, RF))):
        out = 1 - 2 * side
        u, f = _unit(v[:, upper]), _unit(v[:, fore])
        lift = np.clip(u[:, 1] + 0.35, 0, 1.2)  # raising an arm raises the shoulder
        shoulder = _unit(np.stack([np.full(len(v), out), 0.25 + 0.45 * lift, -0.1 + 0.25 * u[:, 2]], axis=1))
        joints[:, 13 + side] = joints[:, 9] + _turned(chest, COLLAR[side])
        for j, direction in ((16, shoulder), (18, u), (20, f)):
            parent = 13 + side if j == 16 else j - 2 + side
            joints[:, j + side] = joints[:, parent] + _turned(chest, direction) * LENGTH[j + side]
    for side, (pole, f, u) in enumerate(((LK, LFF, LFU), (RK, RFF, RFU))):
        hip = joints[:, 0] + _turned(pelvis, HIP[side])
        gap = ankles[side] - hip
        d, reach = np.linalg.norm(gap, axis=-1, keepdims=True), 0.998 * (LENGTH[4 + side] + LENGTH[7 + side])
        ankle = hip + gap * np.minimum(1, reach / np.maximum(d, 1e-6))
        joints[:, 1 + side], joints[:, 7 + side] = hip, ankle
        bend = _swing(-Y, _unit(_seen(pelvis, gap)), v[:, pole])
        joints[:, 4 + side] = two_bone(hip, ankle, LENGTH[4 + side], LENGTH[7 + side], _turned(pelvis, bend))
        joints[:, 10 + side] = ankle + _turned(_frame(v[:, f], v[:, u]), FOOT[side])
    return joints


# ----------------------------------------------------------------------------------------------------------------------
# Frames in general


def _smooth(x, sigma):
    """Gaussian filter over frames, the ends repeated."""
    r = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-r, r + 1) / sigma) ** 2)
    padded = np.concatenate([x[:1]] * r + [x] + [x[-1:]] * r)
    return sum(w * padded[i:i + len(x)] for i, w in enumerate(weights / weights.sum()))


def _ease(u):
    u = np.clip(u, 0, 1)
    return u * u * u * (10 - 15 * u + 6 * u * u)


def _interpolate(t, y, x, slopes=None):
    """Cubic through y (K, ...) at times t, read at x; without overshoot and at rest at both ends, or with given slopes."""
    t, y = np.asarray(t, float), np.asarray(y, float)
    shape = (-1,) + (1,) * (y.ndim - 1)
    h, d = np.diff(t).reshape(shape), np.diff(y, axis=0) / np.diff(t).reshape(shape)
    m = np.zeros_like(y)
    both = d[:-1] * d[1:]
    m[1:-1] = np.where(both > 0, 2 * both / np.where(both > 0, d[:-1] + d[1:], 1), 0)
    m = m if slopes is None else np.asarray(slopes, float)
    i = np.clip(np.searchsorted(t, x, side='right') - 1, 0, len(t) - 2)
    u = np.clip((x - t[i]) / (t[i + 1] - t[i]), 0, 1).reshape(shape)
    a, b = y[i] + u * u * (3 - 2 * u) * (y[i + 1] - y[i]), u * (1 - u) * h[i]
    return a + b * ((1 - u) * m[i] - u * m[i + 1])


def _turn(angle, v):
    """Turn vectors (..., 3) about Y, from Z towards X (to the left), radians."""
    return motion._turn(angle, v)


def place(v, path):
    """Frames seen from the path -> seen from the world (arms stay with the chest)."""
    world = v.copy()
    world[:, TURNED] = _turn(path[:, 2, None], v[:, TURNED])
    world[:, PLACES] += path[:, None, 0, None] * X + path[:, None, 1, None] * Z
    return world


def mirror(v):
    return v[:, MIRROR] * np.array([-1, 1, 1])


def _runs(mask):
    """[first, last + 1) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return edges.reshape(-1, 2)


def lock_feet(v, contact):
    """Hold each standing foot where it stands: same place, same heading, toes on the floor; a swing leads from one to the next."""
    v, frames = v.copy(), np.arange(len(v))
    for side, (toe, f, u) in enumerate(((LT, LFF, LFU), (RT, RFF, RFU))):
        heading = np.unwrap(np.arctan2(v[:, f, 0], v[:, f, 2]))
        shift = []  # (frame, dx, dy, dz, dheading): what takes the foot to its place, in frames in which it stands
        for a, b in _runs(contact[:, side]):
            span = slice(a, a + 1) if a == 0 else slice(b - 1, b) if b == len(v) else slice(a, b)
            spot, angle = v[span, toe].mean(0), heading[span].mean()
            for i in range(a, b):
                shift.append((i, spot[0] - v[i, toe, 0], TOE_Y - v[i, toe, 1], spot[2] - v[i, toe, 2], angle - heading[i]))
        if shift:
            shift = np.array(shift)
            i = np.clip(np.searchsorted(shift[:, 0], frames, side='right') - 1, 0, len(shift) - 1)
            j = np.minimum(i + 1, len(shift) - 1)
            gap = np.maximum(shift[j, 0] - shift[i, 0], 1)
            part = _ease((frames - shift[i, 0]) / gap)[:, None]
            d = shift[i, 1:] * (1 - part) + shift[j, 1:] * part
            d[frames < shift[0, 0]] = shift[0, 1:]
            v[:, toe] += d[:, :3]
            v[:, [f, u]] = _turn(d[:, 3:], v[:, [f, u]])
        v[:, toe, 1] = np.maximum(v[:, toe, 1], TOE_Y)
        for a, b in _runs(~contact[:, side]):  # a foot that goes somewhere leaves the floor
            if a > 0 and b < len(v):
                far = np.hypot(*(v[b, toe] - v[a - 1, toe])[[0, 2]])
                lift = max(0, min(0.06, 0.4 * far, 0.012 * (b - a)) + TOE_Y - v[a:b, toe, 1].max())
                v[a:b, toe, 1] += lift * np.sin(np.pi * np.arange(1, b - a + 1) / (b - a + 1))
    return v


# ----------------------------------------------------------------------------------------------------------------------
# The real clips

# DeepMimic's humanoid faces +X with its right at +Z; metres. Ours: left = -Z, up = Y, forward = X.
TO_OURS = np.array([[0, 0, -1.], [0, 1, 0], [1, 0, 0]])
CHEST_AT, NECK_AT, HIP_AT, KNEE_AT, ANKLE_AT, ELBOW_AT, WRIST_AT = .236151, .223894, .084887, -.421546, -.40987, -.274788, -.258947
SHOULDER_AT, SOLE = (-.02405, .2435, .18311), 0.05
SCALE = LENGTH[[4, 5, 7, 8]].sum() / 2 / -(KNEE_AT + ANKLE_AT)


def _slerp(t, q, x):
    """Unit quaternions q (K, 4) at times t, read at times x, the short way round."""
    i = np.clip(np.searchsorted(t, x, side='right') - 1, 0, len(t) - 2)
    u = np.clip((x - t[i]) / (t[i + 1] - t[i]), 0, 1)[:, None]
    a, b = _unit(q[i]), _unit(q[i + 1])
    cos = (a * b).sum(-1, keepdims=True)
    b, angle = np.where(cos < 0, -b, b), np.arccos(np.minimum(np.abs(cos), 1))
    sin = np.where(angle < 1e-4, 1, np.sin(angle))
    return np.where(angle < 1e-4, a * (1 - u) + b * u, (a * np.sin((1 - u) * angle) + b * np.sin(u * angle)) / sin)


def read_clip(path, fps=FPS):
    """A DeepMimic motion file -> frames (T, 19, 3) on our body, and who stands (T, 2).

    A frame of the file is: duration, root place 3, root quaternion 4 (w, x, y, z), then the joints' rotations: chest 4,
    neck 4, then hip 4, knee 1, ankle 4, shoulder 4, elbow 1 of the right side and of the left.
    """
    with open(path) as file:
        rows = np.array(json.load(file)['Frames'])
    if rows.ndim != 2 or rows.shape[1] != 44:
        raise ValueError(f'{path}: expected motion frames of 44 numbers, found {rows.shape}; it must come from pybullet 3.2.7.')
    t = np.concatenate([[0], rows[:-1, 0].cumsum()])
    x = np.arange(int(t[-1] * fps + 1e-6) + 1) / fps

    def turn(a, size):
        if size == 4:
            return motion.quaternion_to_matrix(_slerp(t, rows[:, a:a + 4], x))
        return motion.axis_angle_to_matrix(np.interp(x, t, rows[:, a])[:, None] * Z)

    root = np.stack([np.interp(x, t, rows[:, i]) for i in (1, 2, 3)], axis=1)
    compose = lambda a, b: np.einsum('tij,tjk->tik', a, b)
    pelvis = turn(4, 4)
    chest = compose(pelvis, turn(8, 4))
    head = compose(chest, turn(12, 4))
    v = np.zeros((len(x), 19, 3))
    down, wrists = np.array([0, -1, 0]), []
    for i, rotation in ((PF, pelvis), (CF, chest), (HF, head)):
        v[:, i], v[:, i + 1] = rotation[..., 0] @ TO_OURS.T, rotation[..., 1] @ TO_OURS.T
    v[:, P] = (root * SCALE) @ TO_OURS.T + (TOE_Y + 0.048 - SOLE * SCALE) * Y - (_unit(v[:, PU]) * HIP[0][1])
    ribs = _frame(v[:, CF], v[:, CU])
    for side, (start, sign) in enumerate(((30, -1), (16, 1))):
        hip = compose(pelvis, turn(start, 4))
        knee = compose(hip, turn(start + 4, 1))
        foot = compose(knee, turn(start + 5, 4))
        arm = compose(chest, turn(start + 9, 4))
        fore = compose(arm, turn(start + 13, 1))
        at_hip = root + _turned(pelvis, [0, 0, sign * HIP_AT])
        at_knee = at_hip + _turned(hip, KNEE_AT * Y)
        at_ankle = at_knee + _turned(knee, ANKLE_AT * Y)
        wrists.append(root + _turned(pelvis, CHEST_AT * Y) + _turned(chest, np.array(SHOULDER_AT) * [1, 1, sign])
                      + _turned(arm, ELBOW_AT * Y) + _turned(fore, WRIST_AT * Y))
        v[:, (LFF, RFF)[side]], v[:, (LFU, RFU)[side]] = foot[..., 0] @ TO_OURS.T, foot[..., 1] @ TO_OURS.T
        ours = (at_ankle * SCALE) @ TO_OURS.T + (TOE_Y + 0.048 - SOLE * SCALE) * Y
        v[:, (LT, RT)[side]] = ours + _turned(_frame(v[:, (LFF, RFF)[side]], v[:, (LFU, RFU)[side]]), FOOT[side])
        # the knee's own direction, and a little forward for straight legs, whose knees point nowhere
        ours = _frame(v[:, PF], v[:, PU])
        knee, leg = _seen(ours, (at_knee - (at_hip + at_ankle) / 2) @ TO_OURS.T), _seen(ours, (at_ankle - at_hip) @ TO_OURS.T)
        v[:, (LK, RK)[side]] = _swing(_unit(leg), -Y, knee) + 0.03 * Z
        v[:, (LU, RU)[side]] = _seen(ribs, _turned(arm, down) @ TO_OURS.T)
        v[:, (LF, RF)[side]] = _seen(ribs, _turned(fore, down) @ TO_OURS.T)
    contact = standing(v, fps)
    return hands_to_floor(v, contact, [wrist[:, 1] * SCALE for wrist in wrists]), contact


def standing(v, fps, speed=0.6, height=0.055):
    """Who stands, (T, 2): toes low and slow for at least two frames."""
    contact = np.zeros((len(v), 2), bool)
    for side, toe in enumerate(TOES):
        step = np.linalg.norm(np.gradient(v[:, toe], axis=0), axis=1) * fps
        y = v[:, toe, 1]
        for a, b in _runs((y < height) & (step < speed) | (y < 0.022) & (step < 1.5)):
            contact[a:b, side] = b - a > 1
    return contact


def hands_to_floor(v, contact, heights):
    """Bend the arms so that hands near the floor are at `heights` (2 x (T,)), though our back is longer than the humanoid's."""
    joints, v = solve(v, contact), v.copy()
    chest = _frame(v[:, CF], v[:, CU])
    for side, (upper, fore) in enumerate(((LU, LF), (RU, RF))):
        shoulder, elbow, wrist = (joints[:, j + side] for j in (16, 18, 20))
        share = _ease((0.40 - heights[side]) / 0.25)
        target = wrist + (share * (np.maximum(heights[side], 0.03) - wrist[:, 1]))[:, None] * Y
        a, b = LENGTH[18 + side], LENGTH[20 + side]
        gap = target - shoulder
        d = np.linalg.norm(gap, axis=1, keepdims=True)
        target = shoulder + gap / d * np.clip(d, 0.12, 0.99 * (a + b))
        middle = two_bone(shoulder, target, a, b, elbow - (shoulder + wrist) / 2 - 0.02 * _unit(v[:, CF]))
        share = share[:, None]
        v[:, upper] = _seen(chest, _unit(elbow - shoulder) * (1 - share) + _unit(middle - shoulder) * share)
        v[:, fore] = _seen(chest, _unit(wrist - elbow) * (1 - share) + _unit(target - middle) * share)
    return v


# ----------------------------------------------------------------------------------------------------------------------
# Segments: frames seen from a path, who stands, and the path. They begin and end standing, so that one can follow another.


def then(a, b):
    """Segment a and, from where it ends, segment b."""
    x, z, angle = a[2][-1]
    path = np.concatenate([_turn(angle, b[2][:, 0, None] * X + b[2][:, 1, None] * Z)[:, [0, 2]] + (x, z), b[2][:, 2:] + angle], axis=1)
    return tuple(np.concatenate(pair) for pair in ((a[0], b[0]), (a[1], b[1]), (a[2], path)))


def overlay(segment, gesture, stand):
    """Do a gesture of arms, chest and head during another motion."""
    v, n = segment[0].copy(), min(len(segment[0]), len(gesture[0]))
    change = gesture[0][:n] - stand
    v[:n, CF:HU + 1] += change[:, CF:HU + 1]
    for arm in ([LU, LF], [RU, RF]):
        share = 1 - np.exp(-(change[:, arm] ** 2).sum((1, 2)) / 0.1)[:, None, None]
        v[:n, arm] += share * (gesture[0][:n, arm] - v[:n, arm])
    return (v,) + segment[1:]


def still(stand, seconds):
    n = round(seconds * FPS)
    return np.repeat(stand[None], n, axis=0), np.ones((n, 2), bool), np.zeros((n, 3))


def cycle(path):
    """One period of a real gait: frames (400, 19, 3) seen from a path at even pace, who stands, seconds, metres, turn."""
    with open(path) as file:
        seconds = sum(row[0] for row in json.load(file)['Frames'][:-1])
    v, contact = read_clip(path, fps=40 / seconds)
    u = np.linspace(0, 1, len(v))
    angle = np.arctan2(v[[0, -1], PF, 0], v[[0, -1], PF, 2])
    turn = np.arctan2(np.sin(angle[1] - angle[0]), np.cos(angle[1] - angle[0]))
    chord = v[-1, P] - v[0, P]
    heading = np.arctan2(chord[0], chord[2]) - turn / 2 + turn * u
    metres = np.hypot(chord[0], chord[2]) * (turn / 2 / np.sin(turn / 2) if turn else 1)
    steps = metres / 40 * np.stack([np.sin(heading), 0 * u, np.cos(heading)], axis=1)
    at = np.cumsum(np.concatenate([0 * X[None], (steps[1:] + steps[:-1]) / 2]), axis=0)
    v[:, PLACES] -= at[:, None]
    v[:, TURNED] = _turn(-heading[:, None], v[:, TURNED])
    v = (v - u[:, None, None] * (v[-1] - v[0]))[:-1]
    v[:, PLACES] -= v[:, P].mean(0) * (X + Z)
    fine = np.fft.irfft(np.fft.rfft(v, axis=0), 400, axis=0) * 10
    return fine, np.repeat(contact[:-1], 10, axis=0), seconds, metres, turn


def gait(gait_cycle, stand, weight, heading, rate=1.0, stride=1.0, lift=1.0, phase=0.0):
    """Walk or run along a path.

    weight (T,): 0 stands, 1 walks; heading (T,) radians; rate: of the cycle, negative = backwards; stride: length of the
    steps, 0 = on the spot; lift: height of the steps. The path moves as fast as the standing foot is left behind.
    """
    fine, stands, seconds, metres, _ = gait_cycle
    n = len(weight)
    at = (phase + np.arange(n) * rate / seconds / FPS) % 1 * 400
    i, part = at.astype(int) % 400, (at % 1)[:, None, None]
    v = fine[i] * (1 - part) + fine[(i + 1) % 400] * part
    middle = fine.mean(0)
    for toe in TOES:
        v[:, toe, 2] = stand[toe, 2] + stride * (v[:, toe, 2] - middle[toe, 2])
        v[:, toe, 1] = TOE_Y + lift * (v[:, toe, 1] - TOE_Y)
    swing = 0.35 + 0.65 * stride
    v[:, ARMS] = middle[ARMS] + swing * (v[:, ARMS] - middle[ARMS])
    v = stand + weight[:, None, None] * (v - stand)
    speed = weight * stride * metres * rate / seconds / FPS
    steps = np.stack([speed * np.sin(heading), speed * np.cos(heading)], axis=1)
    path = np.concatenate([np.cumsum(np.concatenate([np.zeros((1, 2)), (steps[1:] + steps[:-1]) / 2]), axis=0), heading[:, None]], axis=1)
    return v, stands[i] | (weight < 0.12)[:, None], path


def steps(stand, path, start, stop, count, lift=0.07, lead=0):
    """Follow a path with small steps, `count` by each foot, between the frames `start` and `stop`; foot `lead` goes first."""
    v, contact = np.repeat(stand[None], len(path), axis=0), np.ones((len(path), 2), bool)
    u = (np.arange(len(path)) - start) / (stop - start) * count
    for side, (toe, f, up) in enumerate(((LT, LFF, LFU), (RT, RFF, RFU))):
        phase = (u - (0.5 if side != lead else 0.0)) % 1 / 0.46
        swing = (u > 0) & (u < count) & (phase < 1)
        contact[:, side] = ~swing
        height = np.where(swing, np.sin(np.pi * np.clip(phase, 0, 1)), 0)
        v[:, toe, 1] += lift * height
        v[:, [f, up]] = _pitch(25 * height, v[:, [f, up]])
        v[:, P] += height[:, None] * ((-1 if side == 0 else 1) * 0.025 * X - 0.012 * Y)
    return v, contact, path


def _pitch(degrees, v):
    """Lean vectors (T, K, 3) forward, about X."""
    a = np.radians(np.asarray(degrees, float))[..., None]
    return np.stack([v[..., 0], np.cos(a) * v[..., 1] - np.sin(a) * v[..., 2], np.sin(a) * v[..., 1] + np.cos(a) * v[..., 2]], axis=-1)


# ----------------------------------------------------------------------------------------------------------------------
# Keyframes: poses as changes to a stand

# upper arm and forearm of the left arm, seen from the chest; the right arm's are their mirror image
ARM = {name: np.array(vectors) for name, vectors in {
    'side': ((1, 0, .1), (1, .05, .15)), 'up': ((.3, 1, .1), (.1, 1, .05)), 'front': ((.12, 0, 1), (0, .05, 1)),
    'v': ((.7, .75, .1), (.65, .8, .1)), 'head': ((.75, .5, .15), (-.9, .5, .1)),
    'in': ((.75, .2, .3), (-.35, 1, .2)), 'out': ((.75, .2, .3), (.65, .85, .2)),
    'high in': ((.5, .85, .2), (-.35, 1, .2)), 'high out': ((.5, .85, .2), (.7, .75, .15)),
    'hips': ((.75, -.65, -.3), (-.75, -.4, .5)), 'guard': ((.25, -.85, .35), (-.3, .65, .7)),
    'hit': ((-.02, .02, 1), (-.15, .03, 1)), 'hook': ((.75, .0, .65), (-.9, .05, .45)), 'upper': ((.1, -.3, .95), (-.1, .9, .45)),
    'back': ((.2, -.85, -.55), (.1, -.95, 0)), 'lap': ((.15, -.85, .5), (-.05, -.35, 1)), 'low': ((.1, -.45, .9), (0, -.55, .85)),
    'open': ((.6, -.4, .6), (.4, .1, 1)), 'clap': ((.3, -.5, .75), (-.72, .12, .7)), 'cocked': ((.75, .25, -.5), (.25, .9, -.35)),
    'thrown': ((.05, .25, 1), (-.1, -.1, 1)), 'after': ((-.2, -.7, .7), (-.5, -.6, .6)), 'across': ((-.3, -.1, .95), (-.7, .1, .7)),
    'floor': ((.05, -.1, 1), (0, .1, 1)), 'mouth': ((.3, -.55, .7), (-.45, .85, .3)), 'wide low': ((.7, -.7, .1), (.6, -.75, .25)),
    'swing': ((.15, -.6, .75), (0, -.1, 1))}.items()}


def pose(stand, p=(0, 0, 0), pelvis=(0, 0, 0), chest=(0, 0, 0), head=(0, 0, 0), L=None, R=None, lt=(0, 0, 0, 0), rt=(0, 0, 0, 0)):
    """A stand with changes: pelvis moved by p; pelvis, chest and head leaning forward, turned left, leaning right (degrees,
    each carries the next ones along); arms by name; toes moved and heels up (x, y, z, degrees)."""
    v = stand.copy()
    v[P] += p
    for angles, first in ((pelvis, PF), (chest, CF), (head, HF)):
        pitch, yaw, roll = np.radians(angles)
        turn = motion.axis_angle_to_matrix(yaw * Y) @ motion.axis_angle_to_matrix(pitch * X) @ motion.axis_angle_to_matrix(roll * Z)
        v[first:HU + 1] = v[first:HU + 1] @ turn.T
    for arm, upper, out in ((L, LU, 1), (R, RU, -1)):
        if arm:
            v[upper:upper + 2] = ARM[arm] * (out, 1, 1)
    for (dx, dy, dz, lift), toe, f in ((lt, LT, LFF), (rt, RT, RFF)):
        v[toe] += (dx, dy, dz)
        v[f:f + 2] = _pitch(lift, v[f:f + 2])
    return v


def keyed(stand, keys, amount=1.0, pace=1.0):
    """Segment through keys [(seconds since the last, changes for `pose`), ...]; it begins at the first key.

    amount: how far the poses go from the stand; pace: how fast.
    """
    t = np.cumsum([seconds for seconds, _ in keys]) / pace
    poses = stand + amount * (np.array([pose(stand, **changes) for _, changes in keys]) - stand)
    t, poses[:, ARMS] = t * min(1, LONGEST / t[-1]), _unit(poses[:, ARMS])
    t[-1] = max(t[-1], SHORTEST)
    x = np.arange(round(t[-1] * FPS) + 1) / FPS
    v = _interpolate(t, poses, x)
    # half-way between two opposite directions is none: an arm goes round by the front and the side
    short = 1 - np.minimum(1, np.linalg.norm(v[:, ARMS], axis=-1, keepdims=True))
    v[:, ARMS] += short * [[0.7, 0, 0.7], [0.5, 0, 0.9], [-0.7, 0, 0.7], [-0.5, 0, 0.9]]
    still_feet = [np.abs(np.gradient(v[:, toe], axis=0)).max(1) < 0.006 for toe in TOES]
    contact = np.stack([f & (v[:, toe, 1] < TOE_Y + 0.015) for f, toe in zip(still_feet, TOES)], axis=1)
    return v, contact, np.zeros((len(v), 3))


def jumps(stand, flights, crouch=0.25, arms='swing', tuck=0.0, hop=False, gap=0.0):
    """Jump once for each (height over take-off, sideways, forwards, turn) of `flights`, metres and radians.

    Pelvis and feet fly on the parabola of free fall. hop: on the right foot.
    """
    knots, flying, keys, travel = [(0, 0, 0), (0.15, 0, 0)], [], [(0.15, {})], [(0, 0, 0, 0, 0, 0, 0)]
    t, at, top = 0.15, np.zeros(3), 0.05
    leg = dict(lt=(0, 0.24, -0.22, 60)) if hop else {}
    swing = {'swing': ('back', 'swing', 'swing'), 'up': ('back', 'swing', 'up'), 'hips': ('hips', 'hips', 'hips')}[arms]
    low = lambda depth, **more: dict(pelvis=(60 * depth, 0, 0), chest=(50 * depth, 0, 0), head=(-60 * depth, 0, 0), **more, **leg)
    off, air = dict(L=swing[1], R=swing[1], **leg), dict(L=swing[2], R=swing[2], **leg)
    for number, (height, *move) in enumerate(flights):
        speed, seconds = np.sqrt(2 * GRAVITY * height), np.sqrt(8 * height / GRAVITY)
        depth = crouch if number == 0 else crouch * 0.8
        if number == 0:
            t += 0.2 + 0.7 * depth
            knots.append((t, -depth, 0))
            keys.append((0.2 + 0.7 * depth, low(depth, L=swing[0], R=swing[0])))
            travel.append((t, *at, 0, 0, 0))
        push, fall = 2 * (depth + top) / speed, 2 * (crouch * 0.8 + top) / speed
        flying.append((t + push, t + push + seconds))
        travel.append((t + push, *(at + 0.2 * np.array(move) * (1, 1, .5)), *(0.6 * np.array(move) * (1, 1, 1.3) / seconds)))
        heels = lambda degrees: dict(rt=(0, 0, 0, degrees)) if hop else dict(lt=(0, 0, 0, degrees), rt=(0, 0, 0, degrees))
        keys.append((push, dict(chest=(-4, 0, 0), **off, **heels(50))))
        keys.append((seconds / 2, dict(chest=(5 + 40 * tuck, 0, 0), **air, **heels(28))))
        at = at + move
        travel.append((t + push + seconds, *(at - 0.2 * np.array(move) * (1, 1, .5)), *(0.6 * np.array(move) * (1, 1, 1.3) / seconds)))
        keys.append((seconds / 2, dict(**leg, **heels(12))))
        knots += [(t + push, top, speed), (t + push + seconds, top, -speed), (t + push + seconds + fall, -crouch * 0.8, 0)]
        t += push + seconds + fall
        keys.append((fall, low(crouch * 0.8)))
        travel.append((t, *at, 0, 0, 0))
        if gap and number < len(flights) - 1:
            t += gap
            knots.append((t, -crouch * 0.8, 0))
            keys.append((gap, keys[-1][1]))
            travel.append((t, *at, 0, 0, 0))
    keys += [(0.25 + crouch, dict(leg) if hop else {}), (0.3, {})]
    knots.append((t + 0.25 + crouch, 0, 0))
    travel.append((t + 0.25 + crouch, *at, 0, 0, 0))
    v, contact, path = keyed(stand, [(0, {})] + keys)
    x = np.arange(len(v)) / FPS
    knots, travel = np.array(knots), np.array(travel)
    rise = _interpolate(knots[:, 0], knots[:, 1], x, knots[:, 2])
    path = _interpolate(travel[:, 0], travel[:, 1:4], x, travel[:, 4:])
    v[:, P, 1] += rise
    feet_at, air = np.zeros((len(x), 3)), np.zeros(len(x), bool)
    for (a, b), (_, *move) in zip(flying, flights):
        u = np.clip((x - a) / (b - a), 0, 1)
        air |= (u > 0) & (u < 1)
        feet_at += (u * u * (3 - 2 * u))[:, None] * move
        v[:, TOES, 1] += np.where((u > 0) & (u < 1), rise - top + tuck * np.sin(np.pi * u) ** 2, 0)[:, None]
    # the feet stay behind the pelvis before the jump and arrive before it
    behind = _turn(-path[:, 2], (feet_at - path)[:, 0, None] * X + (feet_at - path)[:, 1, None] * Z)
    for toe in [RT] if hop else TOES:
        v[:, toe] += behind
    lifted = v[:, TOES, 1] > TOE_Y + 0.01
    contact = ~air[:, None] & ~(lifted & [hop, False])
    return v, contact, path


# ----------------------------------------------------------------------------------------------------------------------
# The actions. Each function makes one clip from a random generator and the real motion: (segment, facts for the captions).
# What has a side is made on one and mirrored.


class Real:
    """The real motion: gait cycles, standing poses, whole clips."""

    def __init__(self, folder):
        at = lambda name: os.path.join(folder, name + '.txt')
        self.walks = [cycle(at(name)) for name in ('humanoid3d_walk', 'walker/0walk_forward')]
        self.left = [cycle(at(f'walker/turn_left{i}')) for i in (0, 1)]
        self.right = [cycle(at(f'walker/turn_right{i}')) for i in (0, 1)]
        self.run = cycle(at('humanoid3d_run'))
        self.clips = {name: read_clip(at('humanoid3d_' + name), fps=60) for name in
                      ('backflip', 'cartwheel', 'crawl', 'dance_a', 'dance_b', 'getup_facedown', 'getup_faceup', 'jump', 'kick', 'punch',
                       'roll', 'spin', 'spinkick')}
        frames = [self.clips[name][0][i] for name, i in (('backflip', 0), ('getup_facedown', -1), ('jump', 0))]
        self.stands = [self._stand(v) for v in frames]

    @staticmethod
    def _stand(v):
        """A real pose made symmetric, facing +Z at the origin, feet flat."""
        v = v - v[P] * (X + Z) * np.isin(np.arange(19), PLACES)[:, None]
        turned = _turn(-np.arctan2(v[PF, 0], v[PF, 2]), v)
        turned[ARMS], turned[[LK, RK]] = v[ARMS], v[[LK, RK]]
        v = (turned + mirror(turned[None])[0]) / 2
        v[TOES, 1] = TOE_Y
        v[FEET[1:3] + FEET[4:]] = (0.12, 0, 1), Y, (-0.12, 0, 1), Y
        return v

    def stand(self, rng):
        """Some mixture of the real standing poses; feet a little closer or wider."""
        v = np.tensordot(rng.dirichlet([1.2, 1.2, 0.4]), np.array(self.stands), 1)
        v[LT, 0] = rng.uniform(0.085, 0.14)
        v[RT, 0] = -v[LT, 0]
        v[TOES, 2] += rng.normal(0, 0.015, 2)
        v[P, 1] -= 0.008
        return v


def _beats(rng, stand, keys, facts, amount=1.0, pace=1.0, settle=True):
    """A keyframed segment that begins, and mostly ends, with a moment of standing."""
    keys = [(0, {}), (rng.uniform(0.05, 0.35), {})] + keys + ([(rng.uniform(0.05, 0.35), keys[-1][1])] if settle else [])
    return keyed(stand, keys, amount, pace), facts


def _weight(rng, n, start, stop):
    """How much of a gait is done in each of n frames: from a standstill if `start`, to one if `stop`."""
    x, w = np.arange(n), np.ones(n)
    if start:
        w = w * _ease((x - rng.integers(2, 8)) / 13)
    if stop:
        w = w * _ease((n - rng.integers(5, 14) - x) / 14)
    return w


def _step_path(n, start, stop, x=0.0, z=0.0, angle=0.0):
    u = (np.arange(n) - start) / (stop - start)
    u = np.clip(u, 0, 1)
    return (u * u * (3 - 2 * u) * 0.5 + u * 0.5)[:, None] * (x, z, angle)


def _pace(path):
    """Metres a second over the moving part of a path."""
    step = np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1) * FPS
    return float(np.median(step[step > 0.3 * step.max()])) if step.max() > 0 else 0.0


def walk(rng, real, back=False, turn=None, n=None, start=None, stop=None):
    stand, n = real.stand(rng), n or int(rng.integers(46, 88))
    start, stop = rng.random() < 0.35 if start is None else start, rng.random() < 0.35 if stop is None else stop
    rate, stride = rng.uniform(0.8, 1.15), rng.uniform(0.75, 1.12)
    if back:
        rate, stride = -rng.uniform(0.75, 1.05), rng.uniform(0.55, 0.85)
    curve = np.radians(rng.normal(0, 4)) * np.linspace(0, 1, n)
    gait_cycle = real.walks[rng.integers(2)]
    if turn:
        span = min(n - 28, max(22, abs(np.degrees(turn)) / rng.uniform(45, 75) * FPS))
        curve = turn * _ease((np.arange(n) - rng.uniform(13, n - 13 - span)) / span) if abs(turn) < 4 else turn * np.linspace(0, 1, n)
        gait_cycle = real.walks[0] if rng.random() < 0.5 else real.left[rng.integers(2)] if turn > 0 else real.right[rng.integers(2)]
    segment = gait(gait_cycle, stand, _weight(rng, n, start, stop), curve, rate, stride, rng.uniform(0.9, 1.2), rng.random())
    facts = dict(pace=_pace(segment[2]), start=start, stop=stop, style='')
    if not turn and not back and rng.random() < 0.3:
        facts['style'] = style = ('hips', 'tired', 'proud', 'aside')[rng.integers(4)]
        changes = {'hips': dict(L='hips', R='hips'), 'tired': dict(chest=(24, 0, 0), head=(12, 0, 0)), 'proud': dict(chest=(-8, 0, 0), head=(-10, 0, 0)),
                   'aside': dict(head=(0, 50, 0), chest=(0, 8, 0))}[style]
        keys = [(0, changes), (n / FPS, changes)] if style != 'aside' else [
            (0, {}), (0.6, {}), (0.5, changes), (0.7, changes), (0.7, dict(head=(0, -50, 0), chest=(0, -8, 0))), (0.6, {}), (4, {})]
        segment = overlay(segment, keyed(stand, keys), stand)
    return segment, facts


def walk_turn(rng, real):
    angle = rng.uniform(65, 150)
    segment, facts = walk(rng, real, turn=np.radians(angle), n=int(rng.integers(66, 102)))
    return segment, dict(facts, angle=angle)


def walk_circle(rng, real):
    return walk(rng, real, turn=np.radians(rng.uniform(300, 350)), n=int(rng.integers(106, 120)), start=False, stop=False)


def run(rng, real, n=None, start=None, stop=False):
    stand, n = real.stand(rng), n or int(rng.integers(42, 66))
    start = rng.random() < 0.2 if start is None else start
    rate, stride = rng.uniform(0.88, 1.05), rng.uniform(0.78, 1.02)
    curve = np.radians(rng.normal(0, 5)) * np.linspace(0, 1, n)
    segment = gait(real.run, stand, _weight(rng, n, start, stop), curve, rate, stride, rng.uniform(0.75, 1), rng.random())
    return segment, dict(pace=_pace(segment[2]), start=start, stop=stop)


def run_stop(rng, real):
    return run(rng, real, n=int(rng.integers(56, 90)), start=rng.random() < 0.3, stop=True)


def march(rng, real):
    stand, n = real.stand(rng), int(rng.integers(46, 88))
    rate = rng.uniform(0.85, 1.25)
    w = _weight(rng, n, True, True)
    return gait(real.walks[0], stand, w, 0 * w, rate, 0.0, rng.uniform(2.2, 3.2), rng.random()), dict(pace=rate)


def turn(rng, real):
    angle = rng.uniform(70, 125) if rng.random() < 0.65 else rng.uniform(150, 185)
    count = max(1, round(angle / 68))
    start = int(rng.integers(5, 14))
    stop = start + int(angle / rng.uniform(60, 95) * FPS)
    path = _step_path(max(44, stop + int(rng.integers(8, 22))), start, stop, angle=np.radians(angle))
    return steps(real.stand(rng), path, start, stop, count), dict(angle=angle, pace=angle / (stop - start) * FPS)


def spin(rng, real):
    count = 1 if rng.random() < 0.65 else 2
    angle, start = 360 * count + rng.uniform(-10, 15), int(rng.integers(4, 10))
    stop = start + int(angle / rng.uniform(130, 190) * FPS)
    stand = real.stand(rng)
    path = _step_path(stop + int(rng.integers(6, 16)), start, stop, angle=np.radians(angle))
    segment = steps(stand, path, start, stop, round(angle / rng.uniform(60, 72)), lift=0.05)
    arms = 'side' if rng.random() < 0.4 else ''
    if arms:
        keys = [(0, {}), (start / FPS + 0.4, dict(L='side', R='side')), ((stop - start) / FPS - 0.4, dict(L='side', R='side')), (0.4, {}), (2, {})]
        segment = overlay(segment, keyed(stand, keys, rng.uniform(0.75, 1)), stand)
    return segment, dict(count=count, arms=arms, pace=angle / (stop - start) * FPS)


def sidestep(rng, real):
    count = int(rng.integers(1, 5))
    start = int(rng.integers(6, 14))
    stop = start + int(count * rng.uniform(13, 19))
    n = max(44, stop + int(rng.integers(8, 18)))
    path = _step_path(n, start, stop, x=count * rng.uniform(0.28, 0.42))
    return steps(real.stand(rng), path, start, stop, count), dict(count=count)


def jump(rng, real):
    kind = ('up', 'up', 'many', 'forward', 'forward', 'real', 'back', 'side', 'turn', 'forward many')[rng.integers(10)]
    if kind == 'real':
        return whole(rng, real, 'jump')[0], dict(kind='forward', count=1)
    many, forward = 'many' in kind, 'forward' in kind
    count = int(rng.integers(2, 4)) if many else 1
    move = {'forward': (0, rng.uniform(0.4, 1.0) / (1 + 0.4 * many), 0), 'back': (0, -rng.uniform(0.3, 0.5), 0), 'side': (rng.uniform(0.3, 0.6), 0, 0),
            'turn': (0, 0, np.radians(rng.choice([90, 180])))}.get(kind.split()[0], (0, 0, 0))
    heights = rng.uniform(0.17, 0.3, count) if many or kind != 'up' else [rng.uniform(0.18, 0.42)]
    segment = jumps(real.stand(rng), [(h, *move) for h in heights], rng.uniform(0.2, 0.34), 'up' if kind == 'up' and rng.random() < 0.5 else 'swing',
                    tuck=rng.uniform(0, 0.14), gap=rng.choice([0, 0.15]))
    return segment, dict(kind='side' if kind == 'side' else kind.split()[0] if not kind == 'many' else 'up', count=count, high=float(max(heights)),
                         angle=float(np.degrees(move[2])))


def hop(rng, real):
    count = int(rng.integers(2, 5))
    ahead = rng.uniform(0.15, 0.35) if rng.random() < 0.5 else 0
    flights = [(rng.uniform(0.07, 0.12), 0, ahead, 0) for _ in range(count)]
    return jumps(real.stand(rng), flights, rng.uniform(0.1, 0.15), 'hips' if rng.random() < 0.3 else 'swing', hop=True), dict(count=count, ahead=ahead > 0)


def jumping_jacks(rng, real):
    count, p, wide = int(rng.integers(2, 5)), rng.uniform(0.8, 1.05), rng.uniform(0.18, 0.28)
    half = dict(p=(0, 0.045, 0), L='side', R='side', lt=(wide / 2, 0.07, 0, 25), rt=(-wide / 2, 0.07, 0, 25))
    top = 'up' if rng.random() < 0.7 else 'v'
    wide_feet = dict(lt=(wide, 0, 0, 0), rt=(-wide, 0, 0, 0))
    rep = [(0.24 * p, half), (0.2 * p, dict(p=(0, -0.05, 0), L=top, R=top, **wide_feet)), (0.08 * p, dict(p=(0, -0.07, 0), L=top, R=top, **wide_feet)),
           (0.24 * p, half), (0.18 * p, dict(p=(0, -0.03, 0))), (0.08 * p, dict(p=(0, -0.06, 0)))]
    return _beats(rng, real.stand(rng), rep * count + [(0.25, {})], dict(count=count, pace=1 / p))


def wave(rng, real, both=False, lowered=None):
    stand, count, p = real.stand(rng), int(rng.integers(3, 7)), rng.uniform(0.36, 0.56)
    high = 'high ' if rng.random() < 0.4 else ''
    arms = lambda name: {side: high + name for side in ('LR' if both else 'L')}
    head = dict(head=(0, 0, rng.uniform(-8, 8)))
    keys = [(rng.uniform(0.55, 0.8), dict(arms('in'), **head))] + [(p / 2, dict(arms(('out', 'in')[i % 2]), **head)) for i in range(2 * count - 1)]
    lowered = rng.random() < 0.75 if lowered is None else lowered
    keys += [(rng.uniform(0.55, 0.8), {})] if lowered else []
    return _beats(rng, stand, keys, dict(count=count, high=bool(high), pace=1 / p, lowered=lowered), settle=lowered)


def wave_both(rng, real):
    return wave(rng, real, both=True)


def raise_arms(rng, real):
    way, up = ('front', 'side')[rng.integers(2)], ('up', 'up', 'v')[rng.integers(3)]
    count, lowered = (1, 1, 1, 2)[rng.integers(4)], rng.random() < 0.7
    a, b = dict(L=way, R=way), dict(L=up, R=up, chest=(-4, 0, 0), head=(-rng.uniform(0, 15), 0, 0))
    rep = [(rng.uniform(0.3, 0.5), a), (rng.uniform(0.3, 0.5), b), (rng.uniform(0.3, 1.2) / count, b), (0.4, a), (0.45, {}), (0.2, {})]
    keys = rep * count if lowered or count > 1 else rep[:3] + [(0.6, b)]
    return _beats(rng, real.stand(rng), keys, dict(way=way, count=count, lowered=lowered or count > 1), pace=rng.uniform(0.75, 1.2))


def arm_circles(rng, real):
    count = int(rng.integers(2, 5))
    order = ['front', 'up', 'v', 'side', 'wide low']
    if rng.random() < 0.4:
        order = order[::-1]
    keys = [(0.22, dict(L=a, R=a)) for _ in range(count) for a in order] + [(0.4, {})]
    return _beats(rng, real.stand(rng), keys, dict(count=count, way='backward' if order[0] == 'front' else 'forward'), pace=rng.uniform(0.8, 1.15))


def clap(rng, real):
    count, p = int(rng.integers(3, 9)), rng.uniform(0.34, 0.5)
    keys = [(0.45, dict(L='open', R='open'))] + [(p / 2, dict(L=a, R=a)) for _ in range(count) for a in ('clap', 'open')] + [(0.5, {})]
    return _beats(rng, real.stand(rng), keys, dict(count=count), amount=rng.uniform(0.95, 1.02))


def squat(rng, real):
    count, depth = (1, 1, 1, 2, 2, 3)[rng.integers(6)], rng.uniform(0.32, 0.48)
    arms = (dict(L='front', R='front'), dict(L='guard', R='guard'), dict(L='hips', R='hips'), dict(L='floor', R='floor'))[rng.integers(4)]
    down = dict(p=(0, -depth, -0.32 * depth), pelvis=(55 * depth, 0, 0), chest=(35 * depth, 0, 0), head=(-60 * depth, 0, 0), **arms)
    hold = rng.uniform(0.1, 1.0) / count
    rep = [(rng.uniform(0.6, 0.9), down), (hold, down), (rng.uniform(0.6, 0.9), {}), (0.12, {})]
    return _beats(rng, real.stand(rng), rep * count, dict(count=count, depth=depth, hold=hold), pace=rng.uniform(0.8, 1.15))


def bow(rng, real):
    count, deep = (1, 1, 1, 2)[rng.integers(4)], rng.uniform(40, 90)
    arms = ({}, {}, dict(L='lap', R='lap'), dict(L='hips', R='hips'))[rng.integers(4)]
    down = dict(p=(0, -0.02, -0.0016 * deep), pelvis=(0.4 * deep, 0, 0), chest=(0.6 * deep, 0, 0), head=(0.15 * deep, 0, 0), **arms)
    rep = [(rng.uniform(0.7, 1.0), down), (rng.uniform(0.2, 1.1) / count, down), (rng.uniform(0.7, 1.0), {}), (0.15, {})]
    return _beats(rng, real.stand(rng), rep * count, dict(count=count, deep=deep), pace=rng.uniform(0.8, 1.1))


def _seated(rng):
    return dict(p=(0, -rng.uniform(0.4, 0.46), -0.4), pelvis=(-4, 0, 0), chest=(rng.uniform(0, 10), 0, 0), L='lap', R='lap')


LEAN = dict(p=(0, -0.2, -0.24), pelvis=(28, 0, 0), chest=(18, 0, 0), head=(-25, 0, 0), L='low', R='low')


def sit(rng, real):
    seated, rises = _seated(rng), rng.random() < 0.25
    hold = rng.uniform(0.4, 1.4)
    keys = [(rng.uniform(0.5, 0.7), LEAN), (rng.uniform(0.5, 0.7), seated), (hold, seated)]
    keys += [(0.6, LEAN), (0.6, {}), (0.2, {})] if rises else []
    return _beats(rng, real.stand(rng), keys, dict(rises=rises), pace=rng.uniform(0.8, 1.1))


def stand_up(rng, real):
    seated = _seated(rng)
    keys = [(0, seated), (rng.uniform(0.3, 1.0), seated), (0.6, LEAN), (0.65, {}), (rng.uniform(0.4, 1.2), {})]
    return keyed(real.stand(rng), keys, pace=rng.uniform(0.8, 1.1)), {}


def kneel(rng, real):
    rises = rng.random() < 0.5
    back = dict(rt=(0, 0.08, -0.2, 45), p=(0.03, -0.06, 0))
    down = dict(p=(0, -0.475, -0.02), lt=(0, 0, 0.26, 0), rt=(0, 0, -0.36, 62), pelvis=(4, 0, 0))
    half = dict(p=(0, -0.25, -0.02), lt=(0, 0.02, 0.2, 0), rt=(0, 0, -0.36, 55), chest=(10, 0, 0))
    keys = [(0.4, back), (0.4, half), (0.6, down), (rng.uniform(0.4, 1.5), down)] + ([(0.6, half), (0.5, {}), (0.2, {})] if rises else [])
    return _beats(rng, real.stand(rng), keys, dict(rises=rises), pace=rng.uniform(0.85, 1.1))


def pick_up(rng, real):
    down = dict(p=(0, -0.36, -0.16), pelvis=(38, 0, 0), chest=(38, 12, 0), R='low', L='lap')
    up = dict(R='guard', chest=(4, 0, 0))
    keys = [(rng.uniform(0.7, 0.95), down), (rng.uniform(0.15, 0.4), down), (rng.uniform(0.7, 0.95), up), (rng.uniform(0.2, 0.6), up), (0.5, {})]
    return _beats(rng, real.stand(rng), keys, {}, pace=rng.uniform(0.85, 1.1))


def lunge(rng, real):
    count, far = (1, 1, 2)[rng.integers(3)], rng.uniform(0.5, 0.7)
    arms = dict(L='hips', R='hips') if rng.random() < 0.6 else {}
    lift = dict(p=(-0.03, -0.04, 0.12 * far), lt=(0, 0.09, 0.5 * far, 10), **arms)
    down = dict(p=(0, -0.34, 0.5 * far), lt=(0, 0, far, 0), rt=(0, 0, 0, 48), **arms)
    rep = [(0.35, lift), (0.3, dict(p=(0, -0.15, 0.4 * far), lt=(0, 0, far, 0), rt=(0, 0, 0, 20), **arms)), (0.4, down), (rng.uniform(0.1, 0.5), down),
           (0.4, dict(p=(-0.02, -0.13, 0.35 * far), lt=(0, 0, far, 0), rt=(0, 0, 0, 18), **arms)), (0.3, lift), (0.3, {}), (0.1, {})]
    return _beats(rng, real.stand(rng), rep * count, dict(count=count), pace=rng.uniform(0.95, 1.2))


def kick(rng, real):
    kind = ('front', 'front', 'high', 'low', 'side', 'real')[rng.integers(6)]
    if kind == 'real':
        return whole(rng, real, 'kick')[0], dict(kind='high', count=1)
    count = 1 if kind == 'real' or rng.random() < 0.6 else 2
    guard = dict(L='guard', R='guard') if rng.random() < 0.6 and kind != 'low' else {}
    up = {'front': rng.uniform(0.55, 0.75), 'high': rng.uniform(0.85, 1.05), 'low': rng.uniform(0.2, 0.35), 'side': rng.uniform(0.5, 0.75)}[kind]
    shift = (0.055, -0.025, 0)
    if kind == 'low':
        first = dict(p=shift, rt=(0.02, 0.14, -0.32, 50), chest=(6, 12, 0), L='swing')
        out = dict(p=(0.05, -0.02, -0.03), rt=(0.04, up, 0.55, -8), pelvis=(-6, 8, 0), chest=(0, -10, 0), R='swing')
        then_ = dict(p=shift, rt=(0.02, 0.1, 0.25, 10))
    elif kind == 'side':
        first = dict(p=shift, rt=(-0.02, 0.42, 0.12, 25), pelvis=(0, 0, -6), **guard)
        out = dict(p=(0.1, -0.03, 0), rt=(-0.68, up, 0.0, 0), pelvis=(0, 0, -22), chest=(0, 0, -12), head=(0, -20, 15), **guard)
        then_ = first
    else:
        first = dict(p=shift, rt=(0.02, 0.42, 0.14, 35), pelvis=(-4, 0, 0), **guard)
        out = dict(p=(0.05, -0.01, 0.02), rt=(0.03, up, 0.66 - 0.35 * (up - 0.55), -25), pelvis=(-16, 8, 0), chest=(-2 if kind == 'front' else 8, 0, 0), **guard)
        then_ = first
    rep = [(rng.uniform(0.3, 0.45), first), (rng.uniform(0.2, 0.26), out), (0.07, out), (0.24, then_), (rng.uniform(0.3, 0.4), guard), (0.12, guard)]
    return _beats(rng, real.stand(rng), [(0.3, guard)] + rep * count + [(0.35, {})], dict(kind=kind, count=count))


def punch(rng, real):
    if rng.random() < 0.12:
        return whole(rng, real, 'punch')[0], dict(kind='straight', count=1, sides='R')
    kind, arm = ('straight', 'straight', 'straight', 'hook', 'upper')[rng.integers(5)], dict(straight='hit', hook='hook', upper='upper')
    count = int(rng.integers(1, 5))
    sides = 'R' * count if rng.random() < 0.45 else ('RL' * 4)[:count]
    stand = real.stand(rng)
    fighting = rng.random() < 0.5
    guard = dict(L='guard', R='guard', p=(0, -0.03, 0))
    if fighting:
        guard.update(p=(0, -0.05, 0), lt=(0.02, 0, 0.16, 0), rt=(-0.02, 0, -0.16, 12), chest=(6, -12, 0), head=(0, 12, 0))
    keys = []
    for side in sides:
        yaw = 30 if side == 'R' else -28
        hit = dict(guard, **{side: arm[kind]}, chest=(8, yaw, 0), head=(0, -yaw * 0.7, 0), pelvis=(2, yaw * 0.35, 0))
        keys += [(rng.uniform(0.17, 0.24), hit), (0.06, hit), (rng.uniform(0.22, 0.3), guard), (rng.uniform(0.05, 0.25), guard)]
    facts = dict(kind=kind, count=count, sides=sides)
    if fighting:
        return keyed(stand, [(0, guard), (rng.uniform(0.3, 0.8), guard)] + keys + [(rng.uniform(0.5, 1.0), guard)]), facts
    return _beats(rng, stand, [(0.45, guard), (0.1, guard)] + keys + [(0.5, {})], facts)


def throw(rng, real):
    over = rng.random() < 0.7
    a, b, c = ('cocked', 'thrown', 'after') if over else ('back', 'swing', 'front')
    keys = [(rng.uniform(0.45, 0.65), dict(R=a, chest=(0 if over else 12, -32, 0), head=(0, 28, 0), p=(0, -0.03, -0.05), L='swing')),
            (rng.uniform(0.2, 0.28), dict(R=b, chest=(12, 22, 0), head=(0, -15, 0), p=(0, -0.03, 0.05))),
            (0.22, dict(R=c, chest=(20 if over else 4, 30, 0), head=(-10, -20, 0), p=(0, -0.03, 0.06))), (0.6, {})]
    return _beats(rng, real.stand(rng), keys, dict(kind='overhand' if over else 'underhand'), pace=rng.uniform(0.85, 1.1))


def point(rng, real):
    way = ('front', 'side', 'up')[rng.integers(3)]
    look = {'front': (0, 0, 0), 'side': (0, -50, 0), 'up': (-30, 0, 0)}[way]
    there = dict(R=way, head=look, chest=(0, look[1] * 0.2, 0))
    keys = [(rng.uniform(0.5, 0.7), there), (rng.uniform(0.6, 1.6), there), (rng.uniform(0.5, 0.7), {})]
    return _beats(rng, real.stand(rng), keys, dict(way=way))


def look_around(rng, real):
    a, b = (dict(head=(rng.uniform(-5, 10), s * rng.uniform(45, 62), 0), chest=(0, s * rng.uniform(5, 16), 0)) for s in (1, -1))
    keys = [(rng.uniform(0.5, 0.7), a), (rng.uniform(0.2, 0.7), a), (rng.uniform(0.7, 1.0), b), (rng.uniform(0.2, 0.7), b), (0.6, {})]
    return _beats(rng, real.stand(rng), keys, {})


def stretch(rng, real):
    both = rng.random() < 0.5
    up = dict(L='up', R='up')
    if both:
        keys = [(0.8, up), (0.7, dict(up, pelvis=(0, 0, 6), chest=(0, 0, 22))), (0.3, dict(up, pelvis=(0, 0, 6), chest=(0, 0, 22))),
                (0.8, dict(up, pelvis=(0, 0, -6), chest=(0, 0, -22))), (0.3, dict(up, pelvis=(0, 0, -6), chest=(0, 0, -22))), (0.5, up), (0.8, {})]
    else:
        bend = dict(L='head', R='hips', pelvis=(0, 0, 6), chest=(0, 0, 24))
        keys = [(0.8, dict(L='up', R='hips')), (0.7, bend), (rng.uniform(0.4, 1.2), bend), (0.6, dict(L='up', R='hips')), (0.8, {})]
    return _beats(rng, real.stand(rng), keys, dict(both=both), pace=rng.uniform(0.9, 1.15))


def stand(rng, real):
    poses = [real.stand(rng) for _ in range(2)]
    base = poses[0]
    kind = ('', '', 'hips', 'shift')[rng.integers(4)]
    arms = dict(L='hips', R='hips') if kind == 'hips' else {}
    aside = 0.035 if kind == 'shift' else 0.01
    n = rng.uniform(2.2, 4.2)
    keys = [(0, arms)] + [(n / 4, dict(arms, p=(rng.normal(0, aside), -abs(rng.normal(0, 0.006)), rng.normal(0, 0.008)), chest=tuple(rng.normal(0, 2.5, 3)),
                                       head=tuple(rng.normal(0, 5, 3)))) for _ in range(4)]
    return keyed(base, keys), dict(kind=kind)


def crawl(rng, real):
    """On hands and knees: opposite hand and knee go together, the rest stands."""
    if rng.random() < 0.2:
        return whole(rng, real, 'crawl')[0], dict(low=True, pace=0.3)
    n, period, stride = int(rng.integers(52, 92)), rng.uniform(1.0, 1.5), rng.uniform(0.34, 0.5)
    x = np.arange(n) / FPS
    v = np.repeat(real.stand(rng)[None], n, axis=0)
    phase = x / period + rng.random()
    contact = np.ones((n, 2), bool)

    def leg(offset):  # place along the path relative to the middle, in strides; height; does it stand
        u = (phase + offset) % 1
        swing = _ease((u - 0.6) / 0.4)
        return np.where(u < 0.6, 0.3 - u, -0.3 + 0.6 * swing), np.sin(np.pi * np.clip((u - 0.6) / 0.4, 0, 1)) ** 2, u < 0.6

    sway = np.sin(2 * np.pi * phase)
    v[:, P] = np.stack([0.015 * sway, 0.445 + 0.008 * np.cos(4 * np.pi * phase), 0 * x], axis=1)
    for first, pitch, yaw in ((PF, 84, 5), (CF, rng.uniform(74, 82), -4), (HF, rng.uniform(35, 60), -2)):
        v[:, first], v[:, first + 1] = _turn(np.radians(yaw) * sway, _pitch(pitch, np.tile(Z, (n, 1, 1))[:, 0])), _turn(np.radians(yaw) * sway, _pitch(pitch, np.tile(Y, (n, 1))))
    for side, (toe, f, u, knee, upper, out) in enumerate(((LT, LFF, LFU, LK, LU, 1), (RT, RFF, RFU, RK, RU, -1))):
        at, up, stands = leg(0.5 * side)
        v[:, toe] = np.stack([out * 0.1 + 0 * x, TOE_Y + 0.05 * up, -0.60 + at * stride], axis=1)
        v[:, f], v[:, u], v[:, knee] = (0, -0.6, -1), (0, -1, 0.6), (out * 0.05, 0, 1)
        contact[:, side] = stands
        at, up, _ = leg(0.5 * (1 - side) + 0.05)
        reach = np.clip((at * stride + 0.03) / 0.53, -0.9, 0.9)
        arm = np.stack([out * 0.08 + 0 * x, reach, np.sqrt(1 - reach**2)], axis=1)
        v[:, upper], v[:, upper + 1] = arm + (out * 0.10, 0, 0), arm
    heights = [0.045 + 0.07 * leg(0.5 * (1 - side) + 0.05)[1] for side in (0, 1)]
    speed = stride / period
    path = np.stack([0 * x, speed * x, np.radians(rng.normal(0, 4)) * x / x[-1]], axis=1)
    return (hands_to_floor(v, contact, heights), contact, path), dict(low=False, pace=speed)


def whole(rng, real, name):
    """A real clip as it is, but for its pace, a pause before and after, and a slight bend of its path."""
    v, contact = real.clips[name]
    seconds, pause = len(v) / 60 / rng.uniform(0.75, 1.05), rng.uniform(0.15, 0.5, 2)
    pause *= max(1, (2.3 - seconds) / pause.sum())
    x = np.arange(int((seconds + pause.sum()) * FPS)) / FPS
    flow = _smooth(((x > pause[0]) & (x < x[-1] - pause[1])).astype(float), 2.0) + 1e-3
    at = np.cumsum(flow)
    at = (at - at[0]) / (at[-1] - at[0]) * (len(v) - 1)
    i = np.minimum(at.astype(int), len(v) - 2)
    part = (at - i)[:, None, None]
    contact = contact[np.rint(at).astype(int)]
    v = v[i] * (1 - part) + v[i + 1] * part
    bend = np.radians(rng.uniform(-25, 25)) * np.linspace(0, 1, len(v))
    root = v[:, P] * (X + Z)
    step = _turn((bend[1:] + bend[:-1]) / 2, np.diff(root, axis=0))
    moved = np.cumsum(np.concatenate([root[:1], step]), axis=0)
    v[:, PLACES] -= root[:, None]
    return (v, contact, np.concatenate([moved[:, [0, 2]], bend[:, None]], axis=1)), dict(name=name)


def dance(rng, real):
    return whole(rng, real, ('dance_a', 'dance_b', 'spin')[rng.integers(3)])


def get_up(rng, real):
    return whole(rng, real, ('getup_facedown', 'getup_faceup')[rng.integers(2)])


def walk_jump(rng, real):
    first, _ = walk(rng, real, n=int(rng.integers(44, 62)), start=rng.random() < 0.5, stop=True)
    ahead = rng.uniform(0.3, 0.8) if rng.random() < 0.5 else 0.0
    return then(first, jumps(first[0][-1], [(rng.uniform(0.18, 0.32), 0, ahead, 0)], rng.uniform(0.2, 0.3))), dict(kind='forward' if ahead else 'up')


def walk_wave(rng, real):
    if rng.random() < 0.5:
        (v, c, path), _ = walk(rng, real, n=int(rng.integers(70, 110)), start=False, stop=False)
        base = real.stand(rng)
        return overlay((v, c, path), wave(rng, real, lowered=True)[0], base), dict(together=True)
    first, _ = walk(rng, real, n=int(rng.integers(44, 60)), start=rng.random() < 0.5, stop=True)
    gesture = wave(rng, real, lowered=True)[0]
    return then(first, overlay(still(first[0][-1], len(gesture[0]) / FPS), gesture, first[0][-1])), dict(together=False)


# label: (how it is made, how many clips; as many mirrored ones come on top). LEFT in a label becomes right in the mirror.
ACTIONS = {
    'walk': (walk, 36), 'walk backward': (lambda rng, real: walk(rng, real, back=True), 30), 'walk and turn LEFT': (walk_turn, 30),
    'walk in a circle': (walk_circle, 6), 'turn LEFT': (turn, 32), 'run': (run, 36), 'run and stop': (run_stop, 6), 'march': (march, 7),
    'jump': (jump, 42), 'hop': (hop, 7), 'jumping jacks': (jumping_jacks, 30), 'wave LEFT hand': (wave, 32), 'wave both hands': (wave_both, 7),
    'raise both arms': (raise_arms, 30), 'arm circles': (arm_circles, 6), 'clap': (clap, 7), 'squat': (squat, 30), 'bow': (bow, 30), 'sit': (sit, 32),
    'stand up': (stand_up, 7), 'kneel': (kneel, 7), 'pick up': (pick_up, 7), 'lunge': (lunge, 7), 'kick': (kick, 34), 'punch': (punch, 34),
    'throw': (throw, 7), 'point': (point, 7), 'look around': (look_around, 6), 'stretch': (stretch, 6), 'stand': (stand, 30), 'spin': (spin, 32),
    'step LEFT': (sidestep, 8), 'crawl': (crawl, 30), 'dance': (dance, 8), 'get up': (get_up, 8),
    'cartwheel': (lambda rng, real: whole(rng, real, 'cartwheel'), 6), 'backflip': (lambda rng, real: whole(rng, real, 'backflip'), 6),
    'roll': (lambda rng, real: whole(rng, real, 'roll'), 6), 'spin kick': (lambda rng, real: whole(rng, real, 'spinkick'), 6),
    'walk and jump': (walk_jump, 7), 'walk and wave': (walk_wave, 7)}


# ----------------------------------------------------------------------------------------------------------------------
# The dataset


def live(rng, v):
    """Breath, sway, and a personal way to hold oneself: small slow changes, so that no two clips share a pose."""
    x = np.arange(len(v))[:, None, None] / FPS
    size = np.zeros((19, 1))
    size[[CF, CU, HF, HU], 0] = 0.018
    size[ARMS, 0] = 0.03
    size[P] = 0.003
    for _ in range(3):
        v = v + size * rng.normal(0, 1, (19, 3)) * np.sin(2 * np.pi * rng.uniform(0.12, 0.5) * x + rng.uniform(0, 6.28, (19, 1)))
    hold = rng.normal(0, 1, (19, 3)) * size * [1.5, 1.5, 1.5]
    hold[P] = 0
    return v + hold


def look_ahead(segment):
    """Head and chest turn before the body does."""
    v, contact, path = segment
    after = path[np.minimum(np.arange(len(path)) + 6, len(path) - 1), 2]
    lead = _smooth(np.clip(after - path[:, 2], -0.6, 0.6)[:, None], 2.0)
    v = v.copy()
    v[:, [HF, HU]] = _turn(0.8 * lead, v[:, [HF, HU]])
    v[:, [CF, CU]] = _turn(0.3 * lead, v[:, [CF, CU]])
    return v, contact, path


def joints_of(segment, mirrored=False):
    """Segment -> joints (T, 22, 3) in metres, on the floor, at the origin, facing +Z."""
    v, contact, path = look_ahead(segment)
    v = place(v, path)
    if mirrored:
        v, contact = mirror(v), contact[:, ::-1]
    v = lock_feet(v, contact)
    joints = solve(v, contact)
    under = np.maximum(0, 0.02 - joints[:, REST].min((1, 2), where=[False, True, False], initial=1))
    if under.any():  # our longer back, upside down
        v[:, P, 1] += _smooth(under, 1.5) * 1.3
        joints = solve(v, contact)
    return motion.canonical_joints(joints, motion.T2M)


def build(clips_dir):
    """The folder pybullet_data/data/motions of the wheel pybullet 3.2.7 -> list[Clip], the same each time.

    Each source clip is followed by its mirror image (id M...), in the same split. FileNotFoundError if the folder lacks a file.
    """
    real, clips = Real(clips_dir), []
    for label, (make, count) in ACTIONS.items():
        number = len(clips) // 2
        order = np.random.default_rng([SEED, number]).permutation(count)
        test, val = max(1, round(0.12 * count)), max(1, round(0.08 * count))
        for i in range(count):
            rng = np.random.default_rng([SEED, number + i, 1])
            segment, facts = make(rng, real)
            segment = (live(rng, segment[0]), *segment[1:])
            split = 'test' if order[i] < test else 'val' if order[i] < test + val else 'train'
            for mirrored in (False, True):
                side = 'right' if mirrored else 'left'
                joints = joints_of(segment, mirrored)[:121]
                texts = toy_captions.captions(label, facts, mirrored, np.random.default_rng([SEED, number + i, 2, mirrored]))
                clips.append(Clip(f'{"M" * mirrored}{number + i:06d}', texts, split, label.replace('LEFT', side), joints=joints))
    return clips
