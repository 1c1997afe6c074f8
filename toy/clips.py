"""The real clips behind the toy dataset, moved to our body.

They are the clips that the DeepMimic paper imitated (Peng et al., SIGGRAPH 2018), as pybullet
ships them. Its humanoid faces +X and has its right at +Z; ours has left = -Z, up = Y, forward = X.
"""
import json
import os

import numpy as np

import motion
from motion import turn_about_y as turn, unit_rows as unit
from toy.body import (ARM_PAIRS, CF, CU, FOOT, FOREARM, FPS, HF, HIP, LEGS, P, PF, PLACES, PU,
                      SHIN, THIGH, TOE_Y, TOES, TURNED, UPPER_ARM, X, Y, Z, between, ease, frame,
                      mirror, place, runs, seen, smooth, solve, swing, turned, two_bone)

TO_OURS = np.array([[0, 0, -1.], [0, 1, 0], [1, 0, 0]])
# The humanoid's joints seen from the one before, and how far its soles are below the ankles.
CHEST_AT, KNEE_AT, ANKLE_AT, ELBOW_AT, WRIST_AT = (
    y * Y for y in (.236151, -.421546, -.40987, -.274788, -.258947))
HIP_AT, SHOULDER_AT, SOLE = (0, 0, .084887), (-.02405, .2435, .18311), 0.05  # right side
SCALE = (THIGH + SHIN).mean() / -(KNEE_AT + ANKLE_AT)[1]
RAISE = (TOE_Y - FOOT[0][1] - SOLE * SCALE) * Y


def _slerp(t, q, x):
    """Quaternions q (K, 4) at times t, read at times x, the short way round."""
    i, u = between(t, x)
    a, b, u = unit(q[i]), unit(q[i + 1]), u[:, None]
    cos = (a * b).sum(-1, keepdims=True)
    b, angle = np.where(cos < 0, -b, b), np.arccos(np.minimum(np.abs(cos), 1))
    sin = np.where(angle < 1e-4, 1, np.sin(angle))
    arc = (a * np.sin((1 - u) * angle) + b * np.sin(u * angle)) / sin
    return np.where(angle < 1e-4, a * (1 - u) + b * u, arc)


def _rows(path):
    with open(path) as file:
        rows = np.array(json.load(file)['Frames'])
    if rows.ndim != 2 or rows.shape[1] != 44:
        raise ValueError(f'{path}: expected motion frames of 44 numbers, found {rows.shape}; '
                         'it must come from pybullet 3.2.7.')
    return rows


def read_clip(path, fps=FPS):
    """A DeepMimic motion file -> frames (T, 19, 3) on our body, and who stands (T, 2).

    A frame of the file is: duration, root place 3, root quaternion 4 (w, x, y, z), then the joints'
    rotations: chest 4, neck 4, then hip 4, knee 1, ankle 4, shoulder 4, elbow 1 of the right side
    and of the left. ValueError for a file of another form.
    """
    rows = _rows(path)
    t = np.concatenate([[0], rows[:-1, 0].cumsum()])
    x = np.arange(int(t[-1] * fps + 1e-6) + 1) / fps

    def rotation(a, size):
        if size == 4:
            return motion.quaternion_to_matrix(_slerp(t, rows[:, a:a + 4], x))
        return motion.axis_angle_to_matrix(np.interp(x, t, rows[:, a])[:, None] * Z)

    def chain(parent, a, size):
        return np.einsum('tij,tjk->tik', parent, rotation(a, size))

    def ours(vectors):
        return np.einsum('ij,tj->ti', TO_OURS, vectors)

    root = np.stack([np.interp(x, t, rows[:, i]) for i in (1, 2, 3)], axis=1)
    pelvis = rotation(4, 4)
    chest = chain(pelvis, 8, 4)
    v, wrists = np.zeros((len(x), 19, 3)), []
    for i, axes in ((PF, pelvis), (CF, chest), (HF, chain(chest, 12, 4))):
        v[:, i], v[:, i + 1] = ours(axes[..., 0]), ours(axes[..., 1])
    v[:, P] = SCALE * ours(root) + RAISE - v[:, PU] * HIP[0][1]
    hips, ribs = frame(v[:, PF], v[:, PU]), frame(v[:, CF], v[:, CU])
    for side, (at, z) in enumerate(((30, -1), (16, 1))):
        toe, f, u, knee = LEGS[side]
        thigh = chain(pelvis, at, 4)
        shin = chain(thigh, at + 4, 1)
        foot = chain(shin, at + 5, 4)
        upper = chain(chest, at + 9, 4)
        fore = chain(upper, at + 13, 1)
        at_hip = root + turned(pelvis, HIP_AT * np.array([1, 1, z]))
        at_knee = at_hip + turned(thigh, KNEE_AT)
        at_ankle = at_knee + turned(shin, ANKLE_AT)
        at_shoulder = (root + turned(pelvis, CHEST_AT)
                       + turned(chest, SHOULDER_AT * np.array([1, 1, z])))
        wrist = at_shoulder + turned(upper, ELBOW_AT) + turned(fore, WRIST_AT)
        wrists.append(wrist[:, 1] * SCALE)
        v[:, f], v[:, u] = ours(foot[..., 0]), ours(foot[..., 1])
        v[:, toe] = SCALE * ours(at_ankle) + RAISE + turned(frame(v[:, f], v[:, u]), FOOT[side])
        # Straight legs have knees that point nowhere: these are made to point a little forward.
        bend = seen(hips, ours(at_knee - (at_hip + at_ankle) / 2))
        v[:, knee] = swing(unit(seen(hips, ours(at_ankle - at_hip))), -Y, bend) + 0.03 * Z
        for i, axes in zip(ARM_PAIRS[side], (upper, fore)):
            v[:, i] = seen(ribs, ours(-axes[..., 1]))
    contact = standing(v, fps)
    return hands_to_floor(v, contact, wrists), contact


def standing(v, fps, speed=0.6, height=0.055):
    """Who stands, (T, 2): toes that are low and slow for at least two frames."""
    contact = np.zeros((len(v), 2), bool)
    for side, toe in enumerate(TOES):
        step = np.linalg.norm(np.gradient(v[:, toe], axis=0), axis=1) * fps
        y = v[:, toe, 1]
        for a, b in runs((y < height) & (step < speed) | (y < 0.022) & (step < 1.5)):
            contact[a:b, side] = b - a > 1
    return contact


def hands_to_floor(v, contact, heights):
    """Bend the arms so that hands near the floor are at `heights`, (T,) for each side.

    Our back is longer than the humanoid's, so that its arms would not put our hands there.
    """
    joints, v, chest = solve(v, contact), v.copy(), frame(v[:, CF], v[:, CU])
    for side, (upper, fore) in enumerate(ARM_PAIRS):
        shoulder, elbow, wrist = (joints[:, j + side] for j in (16, 18, 20))
        share = ease((0.40 - heights[side]) / 0.25)[:, None]
        lower = np.maximum(heights[side], 0.03) - wrist[:, 1]
        gap = wrist - shoulder + share * lower[:, None] * Y
        d = np.linalg.norm(gap, axis=1, keepdims=True)
        reach = 0.99 * (UPPER_ARM[side] + FOREARM[side])
        target = shoulder + gap / d * np.clip(d, 0.12, reach)
        pole = elbow - (shoulder + wrist) / 2 - 0.02 * v[:, CF]
        middle = two_bone(shoulder, target, UPPER_ARM[side], FOREARM[side], pole)
        for i, old, new in ((upper, elbow - shoulder, middle - shoulder),
                            (fore, wrist - elbow, target - middle)):
            v[:, i] = seen(chest, unit(old) * (1 - share) + unit(new) * share)
    return v


def travelled(speed):
    """Where (T, ...) one is after moving at `speed` per frame, from 0."""
    return np.concatenate([0 * speed[:1], np.cumsum((speed[1:] + speed[:-1]) / 2, axis=0)])


def cycle(path):
    """One period of a real gait, seen from a path at even pace.

    Returns frames (400, 19, 3), who stands (400, 2), seconds and metres of the period.
    """
    seconds = sum(_rows(path)[:-1, 0])
    v, contact = read_clip(path, fps=40 / seconds)
    u = np.linspace(0, 1, len(v))
    angle = np.arctan2(v[[0, -1], PF, 0], v[[0, -1], PF, 2])
    bend = np.arctan2(np.sin(angle[1] - angle[0]), np.cos(angle[1] - angle[0]))
    chord = v[-1, P] - v[0, P]  # of an arc
    heading = np.arctan2(chord[0], chord[2]) + bend * (u - 0.5)
    metres = np.hypot(chord[0], chord[2]) / np.sinc(bend / 2 / np.pi)
    ahead = np.stack([np.sin(heading), 0 * u, np.cos(heading)], axis=1)
    v[:, PLACES] -= travelled(metres / 40 * ahead)[:, None]
    v[:, TURNED] = turn(-heading[:, None], v[:, TURNED])
    v = (v - u[:, None, None] * (v[-1] - v[0]))[:-1]
    v[:, PLACES] -= v[:, P].mean(0) * (X + Z)
    fine = np.fft.irfft(np.fft.rfft(v, axis=0), 400, axis=0) * 10
    return fine, np.repeat(contact[:-1], 10, axis=0), seconds, metres


class Real:
    """The real motion: gait cycles, whole clips at 60 frames a second, standing poses."""

    def __init__(self, folder):
        def at(name):
            return os.path.join(folder, name + '.txt')

        self.walks = [cycle(at(name)) for name in ('humanoid3d_walk', 'walker/0walk_forward')]
        self.left = [cycle(at(f'walker/turn_left{i}')) for i in (0, 1)]
        self.run = cycle(at('humanoid3d_run'))
        names = ('jump backflip getup_facedown getup_faceup cartwheel crawl dance_a dance_b kick '
                 'punch roll spin spinkick').split()
        self.clips = {name: read_clip(at('humanoid3d_' + name), fps=60) for name in names}
        self.stands = [self._upright(self.clips[name][0][i])
                       for name, i in (('backflip', 0), ('getup_facedown', -1), ('jump', 0))]

    @staticmethod
    def _upright(v):
        """A real pose made symmetric, at the origin, facing +Z, with flat feet."""
        v = place(v[None], np.array([[-v[P, 0], -v[P, 2], 0]]))
        v = place(v, np.array([[0, 0, -np.arctan2(v[0, PF, 0], v[0, PF, 2])]]))
        v = ((v + mirror(v)) / 2)[0]
        for (toe, f, u, _), out in zip(LEGS, (0.12, -0.12)):
            v[toe, 1], v[f], v[u] = TOE_Y, (out, 0, 1), Y
        return v

    def stand(self, rng):
        """A mixture of the real standing poses, with the feet a little closer or wider."""
        v = (rng.dirichlet([1.2, 1.2, 0.4])[:, None, None] * self.stands).sum(0)
        v[TOES, 0] = rng.uniform(0.085, 0.14) * np.array([1, -1])
        v[TOES, 2] += rng.normal(0, 0.015, 2)
        v[P, 1] -= 0.008
        return v

    def whole(self, rng, name, pace=0.0, back=False):
        """A clip as a segment, with a pause before and after and its path bent.

        pace: in that of the clip, 0 for any near it; back: from its end to its beginning.
        """
        v, contact = self.clips[name]
        if back:
            v, contact = v[::-1], contact[::-1]
            v = place(v, np.array([[-v[0, P, 0], -v[0, P, 2], 0]]))
            v = place(v, np.array([[0, 0, -np.arctan2(v[0, PF, 0], v[0, PF, 2])]]))
        pace = pace or rng.uniform(0.75, 1.05)
        seconds, pause = len(v) / 60 / pace, rng.uniform(0.15, 0.5, 2)
        pause *= max(1, (2.3 - seconds) / pause.sum())
        x = np.arange(min(121, int((seconds + pause.sum()) * FPS))) / FPS
        moving = (x > pause[0]) & (x < x[-1] - pause[1])
        at = np.cumsum(smooth(moving.astype(float), 2.0) + 1e-3)
        at = (at - at[0]) / (at[-1] - at[0]) * (len(v) - 1)
        i = np.minimum(at.astype(int), len(v) - 2)
        v = v[i] + (at - i)[:, None, None] * (v[i + 1] - v[i])
        bend, root = np.radians(rng.uniform(-25, 25)) * np.linspace(0, 1, len(v)), v[:, P] * (X + Z)
        bent = turn(bend[1:], np.diff(root, axis=0))
        moved = np.cumsum(np.concatenate([root[:1], bent]), axis=0)
        v[:, PLACES] -= root[:, None]
        path = np.stack([moved[:, 0], moved[:, 2], bend], axis=1)
        return v, contact[np.rint(at).astype(int)], path
