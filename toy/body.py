"""The body behind the toy dataset: 19 vectors describe a frame, and one solver makes joints of it.

No vector is a bone length, so all clips have the bones of T2M_OFFSETS, averaged over both sides.
Mirroring treats all vectors alike, so it is exact. Frames are (T, 19, 3); contact (T, 2) says which
foot stands, left and right; a path (T, 3) is a point on the floor and a heading (x, z, radians to
the left).
"""
import numpy as np

import motion
from formats.pins import two_bone
from motion import turn_about_y as turn, unit_rows as unit

FPS = 20
X, Y, Z = np.eye(3)
TOE_Y = 0.010  # height of the toe joint of a foot that stands

# P, LT and RT are places (metres); the rest are directions of any length > 0. Arms are seen from
# the chest, knees from the pelvis, everything else from the path.
(P,                   # pelvis
 PF, PU,              # where the pelvis points: forward, up
 CF, CU,              # chest
 HF, HU,              # head
 LU, LF, RU, RF,      # upper arms and forearms
 LT, RT,              # toes
 LFF, LFU, RFF, RFU,  # feet: forward, up
 LK, RK) = range(19)  # where the knees would point if the legs hung straight down
PLACES, TOES = [P, LT, RT], [LT, RT]
ARMS, ARM_PAIRS = [LU, LF, RU, RF], ((LU, LF), (RU, RF))
LEGS = ((LT, LFF, LFU, LK), (RT, RFF, RFU, RK))
TURNED = [i for i in range(19) if i not in ARMS + [LK, RK]]  # seen from the path
MIRROR = [P, PF, PU, CF, CU, HF, HU, RU, RF, LU, LF, RT, LT, RFF, RFU, LFF, LFU, RK, LK]


def frame(forward, up):
    """Axes (..., 3, 3) in columns: left, up, forward. `up` is kept and `forward` straightened."""
    up = unit(up)
    left = unit(np.cross(up, forward))
    return np.stack([left, up, np.cross(left, up)], axis=-1)


def turned(axes, vector):
    """A vector seen from `axes (..., 3, 3)`, as seen from the world."""
    return (axes * np.asarray(vector)[..., None, :]).sum(-1)


def seen(axes, vector):
    """A vector of the world as seen from `axes`: the way back from `turned`."""
    return (axes * vector[..., :, None]).sum(-2)


def swing(a, b, x):
    """Turn x by the shortest rotation that takes unit vector a to b (not to its opposite)."""
    c = np.cross(a, b)
    one_plus_cos = (1 + (a * b).sum(-1, keepdims=True)).clip(0.05)
    return x + np.cross(c, x) + np.cross(c, np.cross(c, x)) / one_plus_cos


def pitch(degrees, v):
    """Lean vectors (..., 3) forward about X; the degrees broadcast against v[..., 0]."""
    a, (x, y, z) = np.radians(degrees), np.moveaxis(v, -1, 0)
    c, s = np.cos(a), np.sin(a)
    return np.stack(np.broadcast_arrays(x, c * y - s * z, s * y + c * z), axis=-1)


def flat(xz):
    """(..., 2) -> (..., 3) on the floor."""
    return xz[..., :1] * X + xz[..., 1:2] * Z


def smooth(x, sigma):
    """Gaussian filter over frames, with the first and last frame repeated."""
    r = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-r, r + 1) / sigma) ** 2)
    padded = np.concatenate([x[:1]] * r + [x] + [x[-1:]] * r)
    return sum(w * padded[i:i + len(x)] for i, w in enumerate(weights / weights.sum()))


def ease(u):
    """0 to 1 with no speed and no acceleration at either end."""
    u = np.clip(u, 0, 1)
    return u * u * u * (10 - 15 * u + 6 * u * u)


def between(t, x):
    """For times x: the index of the key of t before each, and the share of the way to the next."""
    i = np.clip(np.searchsorted(t, x, side='right') - 1, 0, len(t) - 2)
    return i, np.clip((x - t[i]) / (t[i + 1] - t[i]), 0, 1)


def interpolate(t, y, x, slopes=None):
    """Cubic through y (K, ...) at times t, read at x.

    Without slopes it never overshoots, and it is at rest at both ends.
    """
    t, y = np.asarray(t, float), np.asarray(y, float)
    shape = (-1,) + (1,) * (y.ndim - 1)
    h = np.diff(t).reshape(shape)
    if slopes is None:
        d = np.diff(y, axis=0) / h
        before, after = d[:-1], d[1:]
        same, slopes = before * after > 0, np.zeros_like(y)
        harmonic = 2 * before * after / np.where(same, before + after, 1)
        slopes[1:-1] = np.where(same, harmonic, 0)
    m, (i, u) = np.asarray(slopes, float), between(t, x)
    u = u.reshape(shape)
    return (y[i] + u * u * (3 - 2 * u) * (y[i + 1] - y[i])
            + u * (1 - u) * h[i] * ((1 - u) * m[i] - u * m[i + 1]))


def runs(mask):
    """[first, last + 1) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return edges.reshape(-1, 2)


# --------------------------------------------------------------------------------------------------
# From vectors to joints

LENGTH = np.linalg.norm(motion.T2M_OFFSETS, axis=1)
LENGTH = (LENGTH + LENGTH[list(motion.T2M.mirror)]) / 2  # as long left as right: mirrors are exact
THIGH, SHIN = LENGTH[4:6], LENGTH[7:9]  # left, right
UPPER_ARM, FOREARM = LENGTH[18:20], LENGTH[20:22]


def _bone(joint, x, y, z):
    return unit(np.array([x, y, z])) * LENGTH[joint]


# At rest, the bones that pelvis, chest, head and feet carry along.
HIP = _bone(1, .56, -.83, -.05), _bone(2, -.56, -.83, -.05)
SPINE = _bone(3, 0, 1, -.25), _bone(6, 0, 1, .12), _bone(9, 0, 1, .05)
NECK, HEAD = _bone(12, 0, 1, -.12), _bone(15, 0, .85, .52)
COLLAR = _bone(13, .53, .84, -.12), _bone(14, -.53, .84, -.12)
FOOT = _bone(10, .12, -.335, .93), _bone(11, -.12, -.335, .93)


def _too_high(v, contact, pelvis, ankles):
    """How far the pelvis must come down, (T,), for the legs to reach the feet that stand."""
    drop, stands = np.zeros(len(v)), smooth(contact.astype(float), 1.0)
    for side in range(2):
        gap = v[:, P] + turned(pelvis, HIP[side]) - ankles[side]
        reach = 0.992 * (THIGH[side] + SHIN[side])
        above = gap[:, 1] - np.sqrt(np.maximum(reach**2 - gap[:, 0]**2 - gap[:, 2]**2, 0.05))
        above = (above + np.sqrt(above**2 + 1e-4)) / 2  # max(above, 0) without the corner
        drop = np.maximum(drop, stands[:, side] * above)
    return smooth(drop, 0.8)


def solve(v, contact):
    """Frames (T, 19, 3) as the world sees them, and who stands -> joints (T, 22, 3), metres."""
    joints = np.zeros((len(v), 22, 3))
    pelvis, chest, head = (frame(v[:, i], v[:, i + 1]) for i in (PF, CF, HF))
    feet = [frame(v[:, f], v[:, u]) for _, f, u, _ in LEGS]
    ankles = [v[:, toe] - turned(feet[side], FOOT[side]) for side, toe in enumerate(TOES)]
    joints[:, 0] = v[:, P] - _too_high(v, contact, pelvis, ankles)[:, None] * Y
    for bone, j, parent, share in zip(SPINE, (3, 6, 9), (0, 3, 6), (0.15, 0.45, 0.8)):
        forward, up = (v[:, i] * (1 - share) + v[:, k] * share for i, k in ((PF, CF), (PU, CU)))
        joints[:, j] = joints[:, parent] + turned(frame(forward, up), bone)
    joints[:, 12] = joints[:, 9] + turned(chest, NECK)
    joints[:, 15] = joints[:, 12] + turned(head, HEAD)
    for side, (upper, fore) in enumerate(ARM_PAIRS):
        u, f = unit(v[:, upper]), unit(v[:, fore])
        lift = np.clip(u[:, 1] + 0.35, 0, 1.2)  # raising an arm raises the shoulder
        shoulder = unit(np.stack([np.full(len(v), 1 - 2 * side), 0.25 + 0.45 * lift,
                                  -0.1 + 0.25 * u[:, 2]], axis=1))
        joints[:, 13 + side] = joints[:, 9] + turned(chest, COLLAR[side])
        for j, direction in ((16, shoulder), (18, u), (20, f)):
            j, parent = j + side, motion.T2M.parents[j + side]
            joints[:, j] = joints[:, parent] + turned(chest, direction) * LENGTH[j]
    for side, (_, _, _, knee) in enumerate(LEGS):
        hip = joints[:, 0] + turned(pelvis, HIP[side])
        gap, reach = ankles[side] - hip, 0.998 * (THIGH[side] + SHIN[side])
        ankle = hip + gap * np.minimum(1, reach / np.linalg.norm(gap, axis=-1, keepdims=True))
        pole = turned(pelvis, swing(-Y, unit(seen(pelvis, gap)), v[:, knee]))
        joints[:, 1 + side], joints[:, 7 + side] = hip, ankle
        joints[:, 4 + side] = two_bone(hip, ankle, THIGH[side], SHIN[side], pole)
        joints[:, 10 + side] = ankle + turned(feet[side], FOOT[side])
    return joints


def place(v, path):
    """Frames seen from the path, as seen from the world."""
    world = v.copy()
    world[:, TURNED] = turn(path[:, 2, None], v[:, TURNED])
    world[:, PLACES] += flat(path)[:, None]
    return world


def mirror(v):
    return v[:, MIRROR] * np.array([-1, 1, 1])


def lock_feet(v, contact):
    """Hold each standing foot in one place and heading, toes on the floor, and join the stances."""
    v, frames = v.copy(), np.arange(len(v))
    for side, (toe, f, u, _) in enumerate(LEGS):
        stands, heading = contact[:, side], np.unwrap(np.arctan2(v[:, f, 0], v[:, f, 2]))
        now = np.concatenate([v[:, toe], heading[:, None]], axis=1)  # x, y, z, heading
        shift = np.zeros_like(now)
        for a, b in runs(stands):  # a clip's first stance counts as it begins, its last as it ends
            spot = now[0] if a == 0 else now[-1] if b == len(v) else now[a:b].mean(0)
            shift[a:b] = spot * (1, 0, 1, 1) + (0, TOE_Y, 0, 0) - now[a:b]
        known = np.flatnonzero(stands)
        if len(known):
            i = known[np.clip(np.searchsorted(known, frames, side='right') - 1, 0, None)]
            j = known[np.clip(np.searchsorted(known, frames), None, len(known) - 1)]
            part = ease((frames - i) / np.maximum(j - i, 1))[:, None]
            shift = shift[i] * (1 - part) + shift[j] * part
            v[:, toe] += shift[:, :3]
            v[:, [f, u]] = turn(shift[:, 3:], v[:, [f, u]])
        v[:, toe, 1] = np.maximum(v[:, toe, 1], TOE_Y)
        for a, b in runs(~stands):  # a foot that goes somewhere leaves the floor
            if a > 0 and b < len(v):
                far = np.linalg.norm((v[b, toe] - v[a - 1, toe]) * (X + Z))
                arc = np.sin(np.pi * np.arange(1, b - a + 1) / (b - a + 1))
                arc *= min(0.035, 0.4 * far, 0.012 * (b - a))
                v[a:b, toe, 1] = np.maximum(v[a:b, toe, 1], TOE_Y + arc)
    return v
