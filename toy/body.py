"""The body behind the toy dataset: frames of 19 vectors, real clips, gaits, steps, poses, jumps -> joints.

Everything that toy.py plays with is a "segment": frames (T, 19, 3) seen from a path, who stands (T, 2), and the path (T, 3),
a point on the floor and a heading (x, z, radians to the left). ONE pass then keeps standing feet in their place and ONE solver
turns the vectors into joints, legs by inverse kinematics. No vector is a bone length, so the bones of all clips are those of
T2M_OFFSETS; all vectors look the same way in a mirror, so mirroring is exact.
"""
import json

import numpy as np

import motion
from motion import turn_about_y as turn, unit_rows as unit

FPS = 20
X, Y, Z = np.eye(3)
GRAVITY = 9.81
TOE_Y = 0.010  # height of the toe joint of a foot that stands
SHORTEST, LONGEST = 2.1, 5.9  # seconds of a keyframed segment

# The vectors of a frame. P, LT, RT are places (metres); the rest are directions, of any length > 0. Arms are seen from the
# chest, knees from the pelvis, everything else from the path.
(P,          # pelvis
 PF, PU,     # where the pelvis points: forward, up
 CF, CU,     # chest
 HF, HU,     # head
 LU, LF, RU, RF,      # upper arms and forearms
 LT, RT,              # toes
 LFF, LFU, RFF, RFU,  # feet: forward, up
 LK, RK) = range(19)  # where the knees would point if the legs hung straight down
PLACES, ARMS, TOES = [P, LT, RT], [LU, LF, RU, RF], [LT, RT]
LEGS = ((LT, LFF, LFU, LK), (RT, RFF, RFU, RK))
TURNED = [i for i in range(19) if i not in ARMS + [LK, RK]]  # seen from the path
MIRROR = [P, PF, PU, CF, CU, HF, HU, RU, RF, LU, LF, RT, LT, RFF, RFU, LFF, LFU, RK, LK]

# ----------------------------------------------------------------------------------------------------------------------
# The body

LENGTH = np.linalg.norm(motion.T2M_OFFSETS, axis=1)
THIGH, SHIN, UPPER_ARM, FOREARM = LENGTH[4:6], LENGTH[7:9], LENGTH[18:20], LENGTH[20:22]  # left, right


def frame(forward, up):
    """Axes (..., 3, 3) as columns: left, up, forward; `up` is kept, `forward` made perpendicular to it."""
    up = unit(up)
    left = unit(np.cross(up, forward))
    return np.stack([left, up, np.cross(left, up)], axis=-1)


def turned(axes, vector):
    """A vector seen from `axes (..., 3, 3)` -> seen from the world; `seen` is the way back."""
    return (axes * np.asarray(vector)[..., None, :]).sum(-1)


def seen(axes, vector):
    return (axes * vector[..., :, None]).sum(-2)


def _bone(joint, x, y, z):
    return unit(np.array([x, y, z])) * LENGTH[joint]


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
    return a + along * line + out * unit(pole - (pole * line).sum(-1, keepdims=True) * line)


def _swing(a, b, x):
    """Turn x by the shortest rotation that takes unit vector a to b (not its opposite)."""
    c = np.cross(a, b)
    return x + np.cross(c, x) + np.cross(c, np.cross(c, x)) / (1 + (a * b).sum(-1, keepdims=True)).clip(0.05)


def solve(v, contact):
    """Vectors (T, 19, 3), the path's already turned to the world, and who stands (T, 2) -> joints (T, 22, 3), metres."""
    joints = np.zeros((len(v), 22, 3))
    pelvis, chest, head = (frame(v[:, i], v[:, i + 1]) for i in (PF, CF, HF))
    feet = [frame(v[:, f], v[:, u]) for _, f, u, _ in LEGS]
    ankles = [v[:, toe] - turned(feet[side], FOOT[side]) for side, toe in enumerate(TOES)]
    # a pelvis too high for the legs comes down, as far as the feet that stand ask for
    drop, stands = np.zeros(len(v)), smooth(contact.astype(float), 1.0)
    for side in range(2):
        gap = v[:, P] + turned(pelvis, HIP[side]) - ankles[side]
        reach = 0.992 * (THIGH[side] + SHIN[side])
        above = gap[:, 1] - np.sqrt(np.maximum(reach**2 - gap[:, 0]**2 - gap[:, 2]**2, 0.05))
        drop = np.maximum(drop, stands[:, side] * (above + np.sqrt(above**2 + 1e-4)) / 2)  # max(above, 0) without the corner
    joints[:, 0] = v[:, P] - smooth(drop, 0.8)[:, None] * Y
    for j, parent, share, bone in ((3, 0, 0.15, SPINE[0]), (6, 3, 0.45, SPINE[1]), (9, 6, 0.8, SPINE[2])):
        bend = frame(v[:, PF] * (1 - share) + v[:, CF] * share, v[:, PU] * (1 - share) + v[:, CU] * share)
        joints[:, j] = joints[:, parent] + turned(bend, bone)
    joints[:, 12] = joints[:, 9] + turned(chest, NECK)
    joints[:, 15] = joints[:, 12] + turned(head, HEAD)
    for side, (upper, fore) in enumerate(((LU, LF), (RU, RF))):
        u, f = unit(v[:, upper]), unit(v[:, fore])
        lift = np.clip(u[:, 1] + 0.35, 0, 1.2)  # raising an arm raises the shoulder
        shoulder = unit(np.stack([np.full(len(v), 1 - 2 * side), 0.25 + 0.45 * lift, -0.1 + 0.25 * u[:, 2]], axis=1))
        joints[:, 13 + side] = joints[:, 9] + turned(chest, COLLAR[side])
        for j, parent, direction in ((16, 13, shoulder), (18, 16, u), (20, 18, f)):
            joints[:, j + side] = joints[:, parent + side] + turned(chest, direction) * LENGTH[j + side]
    for side, (_, _, _, knee) in enumerate(LEGS):
        hip = joints[:, 0] + turned(pelvis, HIP[side])
        gap, reach = ankles[side] - hip, 0.998 * (THIGH[side] + SHIN[side])
        ankle = hip + gap * np.minimum(1, reach / np.linalg.norm(gap, axis=-1, keepdims=True))
        pole = turned(pelvis, _swing(-Y, unit(seen(pelvis, gap)), v[:, knee]))
        joints[:, 1 + side], joints[:, 7 + side] = hip, ankle
        joints[:, 4 + side] = two_bone(hip, ankle, THIGH[side], SHIN[side], pole)
        joints[:, 10 + side] = ankle + turned(feet[side], FOOT[side])
    return joints


# ----------------------------------------------------------------------------------------------------------------------
# Frames in general


def smooth(x, sigma):
    """Gaussian filter over frames, the ends repeated."""
    r = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-r, r + 1) / sigma) ** 2)
    padded = np.concatenate([x[:1]] * r + [x] + [x[-1:]] * r)
    return sum(w * padded[i:i + len(x)] for i, w in enumerate(weights / weights.sum()))


def ease(u):
    u = np.clip(u, 0, 1)
    return u * u * u * (10 - 15 * u + 6 * u * u)


def interpolate(t, y, x, slopes=None):
    """Cubic through y (K, ...) at times t, read at x; without overshoot and at rest at both ends, or with given slopes."""
    t, y = np.asarray(t, float), np.asarray(y, float)
    shape = (-1,) + (1,) * (y.ndim - 1)
    h = np.diff(t).reshape(shape)
    if slopes is None:
        d = np.diff(y, axis=0) / h
        same = d[:-1] * d[1:] > 0
        slopes = np.zeros_like(y)
        slopes[1:-1] = np.where(same, 2 * d[:-1] * d[1:] / np.where(same, d[:-1] + d[1:], 1), 0)  # harmonic mean
    m, i = np.asarray(slopes, float), np.clip(np.searchsorted(t, x, side='right') - 1, 0, len(t) - 2)
    u = np.clip((x - t[i]) / (t[i + 1] - t[i]), 0, 1).reshape(shape)
    return y[i] + u * u * (3 - 2 * u) * (y[i + 1] - y[i]) + u * (1 - u) * h[i] * ((1 - u) * m[i] - u * m[i + 1])


def pitch(degrees, v):
    """Lean vectors (..., 3) forward about X, by degrees that broadcast against v[..., 0]."""
    a, (x, y, z) = np.radians(degrees), np.moveaxis(v, -1, 0)
    return np.stack(np.broadcast_arrays(x, np.cos(a) * y - np.sin(a) * z, np.sin(a) * y + np.cos(a) * z), axis=-1)


def flat(xz):
    """(..., 2) -> (..., 3) on the floor."""
    return xz[..., :1] * X + xz[..., 1:2] * Z


def place(v, path):
    """Frames seen from the path -> seen from the world."""
    world = v.copy()
    world[:, TURNED] = turn(path[:, 2, None], v[:, TURNED])
    world[:, PLACES] += flat(path)[:, None]
    return world


def mirror(v):
    return v[:, MIRROR] * np.array([-1, 1, 1])


def _runs(mask):
    """[first, last + 1) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return edges.reshape(-1, 2)


def lock_feet(v, contact):
    """Hold each standing foot where it stands: one place, one heading, toes on the floor; a swing leads from one to the next."""
    v, frames = v.copy(), np.arange(len(v))
    for side, (toe, f, u, _) in enumerate(LEGS):
        now = np.concatenate([v[:, toe], np.unwrap(np.arctan2(v[:, f, 0], v[:, f, 2]))[:, None]], axis=1)  # x, y, z, heading
        shift = np.zeros_like(now)
        for a, b in _runs(contact[:, side]):  # a clip's first and last stance count as they begin and end
            spot = now[0] if a == 0 else now[-1] if b == len(v) else now[a:b].mean(0)
            shift[a:b] = spot * (1, 0, 1, 1) + (0, TOE_Y, 0, 0) - now[a:b]
        known = np.flatnonzero(contact[:, side])
        if len(known):
            i = known[np.clip(np.searchsorted(known, frames, side='right') - 1, 0, None)]
            j = known[np.clip(np.searchsorted(known, frames), None, len(known) - 1)]
            part = ease((frames - i) / np.maximum(j - i, 1))[:, None]
            shift = shift[i] * (1 - part) + shift[j] * part
            v[:, toe] += shift[:, :3]
            v[:, [f, u]] = turn(shift[:, 3:], v[:, [f, u]])
        v[:, toe, 1] = np.maximum(v[:, toe, 1], TOE_Y)
        for a, b in _runs(~contact[:, side]):  # a foot that goes somewhere leaves the floor
            if a > 0 and b < len(v):
                far = np.linalg.norm((v[b, toe] - v[a - 1, toe]) * (X + Z))
                arc = min(0.035, 0.4 * far, 0.012 * (b - a)) * np.sin(np.pi * np.arange(1, b - a + 1) / (b - a + 1))
                v[a:b, toe, 1] = np.maximum(v[a:b, toe, 1], TOE_Y + arc)
    return v


# ----------------------------------------------------------------------------------------------------------------------
# The real clips

# DeepMimic's humanoid faces +X with its right at +Z; metres. Ours: left = -Z, up = Y, forward = X.
TO_OURS = np.array([[0, 0, -1.], [0, 1, 0], [1, 0, 0]])
CHEST_AT, KNEE_AT, ANKLE_AT, ELBOW_AT, WRIST_AT = (y * Y for y in (.236151, -.421546, -.40987, -.274788, -.258947))
HIP_AT, SHOULDER_AT, SOLE = (0, 0, .084887), (-.02405, .2435, .18311), 0.05  # right side; the sole is below the ankle
SCALE = (THIGH + SHIN).mean() / -(KNEE_AT + ANKLE_AT)[1]
RAISE = (TOE_Y - FOOT[0][1] - SOLE * SCALE) * Y


def _slerp(t, q, x):
    """Unit quaternions q (K, 4) at times t, read at times x, the short way round."""
    i = np.clip(np.searchsorted(t, x, side='right') - 1, 0, len(t) - 2)
    u = np.clip((x - t[i]) / (t[i + 1] - t[i]), 0, 1)[:, None]
    a, b = unit(q[i]), unit(q[i + 1])
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

    def rotation(a, size):
        if size == 4:
            return motion.quaternion_to_matrix(_slerp(t, rows[:, a:a + 4], x))
        return motion.axis_angle_to_matrix(np.interp(x, t, rows[:, a])[:, None] * Z)

    def compose(a, b):
        return np.einsum('tij,tjk->tik', a, b)

    def ours(vectors):
        return np.einsum('ij,tj->ti', TO_OURS, vectors)

    root = np.stack([np.interp(x, t, rows[:, i]) for i in (1, 2, 3)], axis=1)
    pelvis = rotation(4, 4)
    chest = compose(pelvis, rotation(8, 4))
    v, wrists = np.zeros((len(x), 19, 3)), []
    for i, axes in ((PF, pelvis), (CF, chest), (HF, compose(chest, rotation(12, 4)))):
        v[:, i], v[:, i + 1] = ours(axes[..., 0]), ours(axes[..., 1])
    v[:, P] = SCALE * ours(root) + RAISE - v[:, PU] * HIP[0][1]
    hips, ribs = frame(v[:, PF], v[:, PU]), frame(v[:, CF], v[:, CU])
    for side, (at, mirrored) in enumerate(((30, (1, 1, -1)), (16, 1))):
        toe, f, u, knee = LEGS[side]
        thigh = compose(pelvis, rotation(at, 4))
        shin = compose(thigh, rotation(at + 4, 1))
        foot = compose(shin, rotation(at + 5, 4))
        upper = compose(chest, rotation(at + 9, 4))
        fore = compose(upper, rotation(at + 13, 1))
        at_hip = root + turned(pelvis, HIP_AT * np.array(mirrored))
        at_knee = at_hip + turned(thigh, KNEE_AT)
        at_ankle = at_knee + turned(shin, ANKLE_AT)
        at_shoulder = root + turned(pelvis, CHEST_AT) + turned(chest, SHOULDER_AT * np.array(mirrored))
        wrists.append((at_shoulder + turned(upper, ELBOW_AT) + turned(fore, WRIST_AT))[:, 1] * SCALE)
        v[:, f], v[:, u] = ours(foot[..., 0]), ours(foot[..., 1])
        v[:, toe] = SCALE * ours(at_ankle) + RAISE + turned(frame(v[:, f], v[:, u]), FOOT[side])
        # the knee's own direction, and a little forward for straight legs, whose knees point nowhere
        bend, leg = (seen(hips, ours(line)) for line in (at_knee - (at_hip + at_ankle) / 2, at_ankle - at_hip))
        v[:, knee] = _swing(unit(leg), -Y, bend) + 0.03 * Z
        for i, axes in zip(ARMS[2 * side:], (upper, fore)):
            v[:, i] = seen(ribs, ours(-axes[..., 1]))
    contact = standing(v, fps)
    return hands_to_floor(v, contact, wrists), contact


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
    joints, v, chest = solve(v, contact), v.copy(), frame(v[:, CF], v[:, CU])
    for side, (upper, fore) in enumerate(((LU, LF), (RU, RF))):
        shoulder, elbow, wrist = (joints[:, j + side] for j in (16, 18, 20))
        share = ease((0.40 - heights[side]) / 0.25)[:, None]
        gap = wrist - shoulder + share * (np.maximum(heights[side], 0.03) - wrist[:, 1])[:, None] * Y
        d = np.linalg.norm(gap, axis=1, keepdims=True)
        target = shoulder + gap / d * np.clip(d, 0.12, 0.99 * (UPPER_ARM[side] + FOREARM[side]))
        pole = elbow - (shoulder + wrist) / 2 - 0.02 * v[:, CF]
        middle = two_bone(shoulder, target, UPPER_ARM[side], FOREARM[side], pole)
        v[:, upper] = seen(chest, unit(elbow - shoulder) * (1 - share) + unit(middle - shoulder) * share)
        v[:, fore] = seen(chest, unit(wrist - elbow) * (1 - share) + unit(target - middle) * share)
    return v


# ----------------------------------------------------------------------------------------------------------------------
# Segments: frames seen from a path, who stands, and the path. They begin and end standing, so that one can follow another.


def then(a, b):
    """Segment a and, from where it ends, segment b."""
    end, (v, contact, path) = a[2][-1], b
    moved = np.concatenate([end[:2] + turn(end[2], flat(path))[:, [0, 2]], end[2] + path[:, 2:]], axis=1)
    return np.concatenate([a[0], v]), np.concatenate([a[1], contact]), np.concatenate([a[2], moved])


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


def _sum(speed):
    """Where (T, ...) one is after moving at `speed` per frame, from 0."""
    return np.concatenate([0 * speed[:1], np.cumsum((speed[1:] + speed[:-1]) / 2, axis=0)])


def cycle(path):
    """One period of a real gait: frames (400, 19, 3) seen from a path at even pace, who stands, seconds, metres."""
    with open(path) as file:
        seconds = sum(row[0] for row in json.load(file)['Frames'][:-1])
    v, contact = read_clip(path, fps=40 / seconds)
    u = np.linspace(0, 1, len(v))
    angle = np.arctan2(v[[0, -1], PF, 0], v[[0, -1], PF, 2])
    bend = np.arctan2(np.sin(angle[1] - angle[0]), np.cos(angle[1] - angle[0]))
    chord = v[-1, P] - v[0, P]  # of an arc at even pace
    heading = np.arctan2(chord[0], chord[2]) + bend * (u - 0.5)
    metres = np.hypot(chord[0], chord[2]) / np.sinc(bend / 2 / np.pi)
    v[:, PLACES] -= _sum(metres / 40 * np.stack([np.sin(heading), 0 * u, np.cos(heading)], axis=1))[:, None]
    v[:, TURNED] = turn(-heading[:, None], v[:, TURNED])
    v = (v - u[:, None, None] * (v[-1] - v[0]))[:-1]
    v[:, PLACES] -= v[:, P].mean(0) * (X + Z)
    fine = np.fft.irfft(np.fft.rfft(v, axis=0), 400, axis=0) * 10
    return fine, np.repeat(contact[:-1], 10, axis=0), seconds, metres


def gait(gait_cycle, stand, weight, heading, rate=1.0, stride=1.0, lift=1.0, phase=0.0):
    """Walk or run along a path.

    weight (T,): 0 stands, 1 walks; heading (T,) radians; rate: of the cycle, negative = backwards; stride: length of the
    steps, 0 = on the spot; lift: height of the steps. The path moves as fast as the standing foot is left behind.
    """
    fine, stands, seconds, metres = gait_cycle
    n = len(weight)
    at = (phase + np.arange(n) * rate / seconds / FPS) % 1 * 400
    i, part = at.astype(int) % 400, (at % 1)[:, None, None]
    v = fine[i] * (1 - part) + fine[(i + 1) % 400] * part
    middle = fine.mean(0)
    for toe in TOES:
        v[:, toe, 2] = stand[toe, 2] + stride * (v[:, toe, 2] - middle[toe, 2])
        v[:, toe, 1] = TOE_Y + lift * (v[:, toe, 1] - TOE_Y)
    v[:, ARMS] = middle[ARMS] + (0.35 + 0.65 * stride) * (v[:, ARMS] - middle[ARMS])
    v = stand + weight[:, None, None] * (v - stand)
    speed = weight * stride * metres * rate / seconds / FPS
    at = _sum(speed[:, None] * np.stack([np.sin(heading), np.cos(heading)], axis=1))
    return v, stands[i] | (weight < 0.12)[:, None], np.concatenate([at, heading[:, None]], axis=1)


def steps(stand, path, start, stop, count, lift=0.07, lead=0):
    """Follow a path with small steps, `count` by each foot, between the frames `start` and `stop`; foot `lead` goes first."""
    v, contact, _ = still(stand, len(path) / FPS)
    u = (np.arange(len(path)) - start) / (stop - start) * count
    for side, (toe, f, up) in enumerate(leg[:3] for leg in LEGS):
        phase = (u - (0.5 if side != lead else 0.0)) % 1 / 0.46
        swing = (u > 0) & (u < count) & (phase < 1)
        contact[:, side] = ~swing
        height = np.where(swing, np.sin(np.pi * np.clip(phase, 0, 1)), 0)
        v[:, toe, 1] += lift * height
        v[:, [f, up]] = pitch(25 * height[:, None], v[:, [f, up]])
        v[:, P] += height[:, None] * ((-1 if side == 0 else 1) * 0.025 * X - 0.012 * Y)
    return v, contact, path


# ----------------------------------------------------------------------------------------------------------------------
# Keyframes: poses as changes to a stand

# upper arm and forearm of the left arm, seen from the chest; the right arm's are their mirror image
ARM = {name: np.array(vectors) for name, vectors in {
    'side': ((1, 0, .1), (1, .05, .15)), 'up': ((.3, 1, .1), (.1, 1, .05)), 'front': ((.12, 0, 1), (0, .05, 1)),
    'v': ((.7, .75, .1), (.65, .8, .1)), 
    'in': ((.75, .2, .3), (-.35, 1, .2)), 'out': ((.75, .2, .3), (.65, .85, .2)),
    'high in': ((.5, .85, .2), (-.35, 1, .2)), 'high out': ((.5, .85, .2), (.7, .75, .15)),
    'hips': ((.75, -.65, -.3), (-.75, -.4, .5)), 'guard': ((.25, -.85, .35), (-.3, .65, .7)),
    'straight': ((-.02, .02, 1), (-.15, .03, 1)), 'hook': ((.75, .0, .65), (-.9, .05, .45)), 'upper': ((.1, -.3, .95), (-.1, .9, .45)),
    'back': ((.2, -.85, -.55), (.1, -.95, 0)), 'lap': ((.15, -.85, .5), (-.05, -.35, 1)), 'low': ((.1, -.45, .9), (0, -.55, .85)),
    'open': ((.6, -.4, .6), (.4, .1, 1)), 'clap': ((.3, -.5, .75), (-.72, .12, .7)), 'cocked': ((.75, .25, -.5), (.25, .9, -.35)),
    'thrown': ((.05, .25, 1), (-.1, -.1, 1)), 'after': ((-.2, -.7, .7), (-.5, -.6, .6)), 
    'swing': ((.15, -.6, .75), (0, -.1, 1))}.items()}


def pose(stand, p=(0, 0, 0), pelvis=(0, 0, 0), chest=(0, 0, 0), head=(0, 0, 0), L=None, R=None, lt=(0, 0, 0, 0), rt=(0, 0, 0, 0)):
    """A stand with changes: pelvis moved by p; pelvis, chest and head leaning forward, turned left, leaning right (degrees,
    each carries the next ones along); arms by name; toes moved and heels up (x, y, z, degrees)."""
    v = stand.copy()
    v[P] += p
    for angles, first in ((pelvis, PF), (chest, CF), (head, HF)):
        lean, yaw, roll = angles
        rows = np.einsum('ij,kj->ki', motion.axis_angle_to_matrix(np.radians(roll) * Z), v[first:HU + 1])
        v[first:HU + 1] = turn(np.radians(yaw), pitch(lean, rows))
    for arm, upper, out in ((L, LU, 1), (R, RU, -1)):
        if arm:
            v[upper:upper + 2] = ARM[arm] * (out, 1, 1)
    for (dx, dy, dz, lift), toe, f in ((lt, LT, LFF), (rt, RT, RFF)):
        v[toe] += (dx, dy, dz)
        v[f:f + 2] = pitch(lift, v[f:f + 2])
    return v


def keyed(stand, keys, amount=1.0, pace=1.0):
    """Segment through keys [(seconds since the last, changes for `pose`), ...]; it begins at the first key.

    amount: how far the poses go from the stand; pace: how fast.
    """
    t = np.cumsum([seconds for seconds, _ in keys]) / pace
    poses = stand + amount * (np.array([pose(stand, **changes) for _, changes in keys]) - stand)
    t, poses[:, ARMS] = t * min(1, LONGEST / t[-1]), unit(poses[:, ARMS])
    t[-1] = max(t[-1], SHORTEST)
    x = np.arange(round(t[-1] * FPS) + 1) / FPS
    v = interpolate(t, poses, x)
    # half-way between two opposite directions is none: an arm goes round by the front and the side
    short = 1 - np.minimum(1, np.linalg.norm(v[:, ARMS], axis=-1, keepdims=True))
    v[:, ARMS] += short * [[0.7, 0, 0.7], [0.5, 0, 0.9], [-0.7, 0, 0.7], [-0.5, 0, 0.9]]
    still_feet = [np.abs(np.gradient(v[:, toe], axis=0)).max(1) < 0.006 for toe in TOES]
    contact = np.stack([f & (v[:, toe, 1] < TOE_Y + 0.015) for f, toe in zip(still_feet, TOES)], axis=1)
    return v, contact, np.zeros((len(v), 3))


def jumps(stand, flights, crouch=0.25, arms='swing', tuck=0.0, hop=False, gap=0.0):
    """Jump once for each (height over take-off, sideways, forwards, turn) of `flights`, metres and radians.

    Pelvis and feet fly on the parabola of free fall. arms: swing, up or hips; tuck: metres; hop: on the right foot.
    """
    back, off, air = {'swing': ('back', 'swing', 'swing'), 'up': ('back', 'swing', 'up'), 'hips': ('hips', 'hips', 'hips')}[arms]
    leg, at, dip, top = dict(lt=(0, 0.24, -0.22, 60)) if hop else {}, np.zeros(3), 0.8 * crouch, 0.05

    def low(depth):
        return dict(pelvis=(60 * depth, 0, 0), chest=(50 * depth, 0, 0), head=(-60 * depth, 0, 0), **leg)

    def heels(degrees, arm=None, bend=0):
        return {'lt': (0, 0, 0, degrees), 'rt': (0, 0, 0, degrees), 'chest': (bend, 0, 0), 'L': arm, 'R': arm, **leg}

    # rows of: seconds since the last, pose, pelvis' rise and its speed, place on the path and its speed
    rows = [(0, {}, 0, 0, at, at), (0.15, {}, 0, 0, at, at), (0.2 + 0.7 * crouch, dict(low(crouch), L=back, R=back), -crouch, 0, at, at)]
    flying, depth = [], crouch
    for number, (height, *move) in enumerate(flights):
        speed, half = np.sqrt(2 * GRAVITY * height), np.sqrt(2 * height / GRAVITY)
        ahead, drift = np.array(move) * (0.2, 0.2, 0.1), np.array(move) * (0.6, 0.6, 0.8) / 2 / half
        flying.append((len(rows), len(rows) + 2, move))
        rows += [(2 * (depth + top) / speed, heels(50, off, -4), top, speed, at + ahead, drift),
                 (half, heels(28, air, 5 + 40 * tuck), top + height, 0, at + np.array(move) / 2, drift),
                 (half, heels(12), top, -speed, at + move - ahead, drift),
                 (2 * (dip + top) / speed, low(dip), -dip, 0, at + move, 0 * at)]
        at, depth = at + move, dip
        if gap and number < len(flights) - 1:
            rows.append((gap, low(dip), -dip, 0, at, 0 * at))
    rows += [(0.25 + crouch, leg, 0, 0, at, 0 * at), (0.3, {}, 0, 0, at, 0 * at)]
    t = np.cumsum([row[0] for row in rows])
    v, _, _ = keyed(stand, [row[:2] for row in rows])
    x = np.arange(len(v)) / FPS
    rise = interpolate(t, [row[2] for row in rows], x, [row[3] for row in rows])
    path = interpolate(t, [row[4] for row in rows], x, [row[5] for row in rows])
    v[:, P, 1] += rise
    feet, air = np.zeros((len(x), 3)), np.zeros(len(x), bool)
    for a, b, move in flying:
        u = np.clip((x - t[a]) / (t[b] - t[a]), 0, 1)
        up = (u > 0) & (u < 1)
        air |= up
        feet += (u * u * (3 - 2 * u))[:, None] * move
        v[:, TOES, 1] += np.where(up, rise - top + tuck * np.sin(np.pi * u) ** 2, 0)[:, None]
    # the feet stay behind the pelvis before the jump and arrive before it
    behind = turn(-path[:, 2], (feet - path)[:, 0, None] * X + (feet - path)[:, 1, None] * Z)
    v[:, [RT] if hop else TOES] += behind[:, None]
    return v, ~air[:, None] & ~((v[:, TOES, 1] > TOE_Y + 0.01) & np.array([hop, False])), path
