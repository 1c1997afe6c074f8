"""What a motion does, told from its joints by plain kinematics: for test_toy, test_weights.

Everything takes joints (T, 22, 3) in metres at 20 frames a second, Y up, facing +Z at frame 0, the
person's left at +X. Who stands straight has the pelvis at 0.94, the head at 1.56, knees at 0.46 and
ankles at 0.05 to 0.1. Measures are numbers, or one for each frame; events.py has the frames at
which something happens, detectors.py and gestures.py what is made of both.
"""
import numpy as np

PELVIS, L_KNEE, R_KNEE, L_ANKLE, R_ANKLE, L_TOE, R_TOE, NECK, HEAD = 0, 4, 5, 7, 8, 10, 11, 12, 15
L_SHOULDER, R_SHOULDER, L_WRIST, R_WRIST = 16, 17, 20, 21


def heading(j):
    """Radians to the left of the first frame's heading, (T,), unwrapped."""
    across = j[:, 1] - j[:, 2] + j[:, L_SHOULDER] - j[:, R_SHOULDER]
    angle = np.unwrap(np.arctan2(-across[:, 2], across[:, 0]))
    return angle - angle[0]


def speed(j):
    """Metres a second of the pelvis over the floor, over the whole clip."""
    step = np.diff(j[:, PELVIS], axis=0)
    return np.hypot(step[:, 0], step[:, 2]).mean() * 20


def rise(j):
    """How far the pelvis comes up over where it was at first."""
    return j[:, PELVIS, 1].max() - j[:3, PELVIS, 1].mean()


def airborne(j):
    """(T,) both feet, heel and toe, off the floor."""
    return j[:, [L_ANKLE, R_ANKLE, L_TOE, R_TOE], 1].min(1) > 0.05


def hand_up(j, side):
    """Seconds in which a wrist is above its shoulder; side 0 left, 1 right."""
    return (j[:, L_WRIST + side, 1] > j[:, L_SHOULDER + side, 1]).mean() * len(j) / 20


def both_up(j):
    return (j[:, [L_WRIST, R_WRIST], 1].min(1) > j[:, HEAD, 1]).any()


def top_speed(j, joint):
    """Metres a second of a joint seen from the pelvis."""
    return np.linalg.norm(np.diff(j[:, joint] - j[:, PELVIS], axis=0), axis=1).max() * 20


def foot_out(j, side):
    """Metres from pelvis to ankle over the floor, times two if the foot is up: how far a leg is
    kicked out."""
    gap = j[:, L_ANKLE + side] - j[:, PELVIS]
    return (np.hypot(gap[:, 0], gap[:, 2]) * (j[:, L_ANKLE + side, 1] > 0.2)).max()


def drop(j):
    return j[:2, PELVIS, 1].mean() - j[:, PELVIS, 1].min()


CHECKS = {
    'walk': lambda j: j[-1, 0, 2] > 1 and abs(j[-1, 0, 0]) < 0.6 * j[-1, 0, 2],
    'walk backward': lambda j: j[-1, 0, 2] < -1 and abs(j[-1, 0, 0]) < -0.6 * j[-1, 0, 2],
    'walk and turn left': lambda j: heading(j)[-1] > 0.8 and speed(j) > 0.3,
    'walk and turn right': lambda j: heading(j)[-1] < -0.8 and speed(j) > 0.3,
    'turn left': lambda j: heading(j)[-1] > 0.8 and speed(j) < 0.3,
    'turn right': lambda j: heading(j)[-1] < -0.8 and speed(j) < 0.3,
    'run': lambda j: speed(j) > 2 and j[-1, 0, 2] > 3,
    'jump': lambda j: airborne(j).sum() >= 3 and rise(j) > 0.15,
    'hop': lambda j: airborne(j).sum() >= 3 and rise(j) > 0.05,
    'walk and jump': lambda j: airborne(j).sum() >= 3 and rise(j) > 0.15 and speed(j[:40]) > 0.3,
    'wave left hand': lambda j: hand_up(j, 0) > 0.8 and hand_up(j, 1) == 0,
    'wave right hand': lambda j: hand_up(j, 1) > 0.8 and hand_up(j, 0) == 0,
    'wave both hands': lambda j: hand_up(j, 0) > 0.8 and hand_up(j, 1) > 0.8,
    'raise both arms': both_up,
    'jumping jacks': lambda j: both_up(j)
    and np.linalg.norm(j[:, L_ANKLE] - j[:, R_ANKLE], axis=1).max() > 0.45,
    'kick': lambda j: max(foot_out(j, 0), foot_out(j, 1)) > 0.4
    and max(top_speed(j, L_ANKLE), top_speed(j, R_ANKLE)) > 2,
    'punch': lambda j: max(top_speed(j, L_WRIST), top_speed(j, R_WRIST)) > 2
    and max(j[:, L_WRIST, 1].max(), j[:, R_WRIST, 1].max()) > 1,
    'squat': lambda j: drop(j) > 0.25
    and j[-1, 0, 1] > j[0, 0, 1] - 0.06
    and j[:, [L_TOE, R_TOE], 1].max() < 0.05,
    'bow': lambda j: j[0, HEAD, 1] - j[:, HEAD, 1].min() > 0.12 and drop(j) < 0.15,
    'sit': lambda j: drop(j) > 0.3 and (j[:, 0, 1] < j[0, 0, 1] - 0.3).sum() > 8,
    'spin': lambda j: abs(heading(j)[-1]) > 5.5 and np.abs(j[-1, 0, [0, 2]]).max() < 0.5,
    'crawl': lambda j: j[:, PELVIS, 1].max() < 0.65 and j[-1, 0, 2] > 0.4,
    'stand': lambda j: np.abs(j - j[0]).max() < 0.3 and top_speed(j, HEAD) < 0.6,
    'step left': lambda j: j[-1, 0, 0] > 0.2 and abs(j[-1, 0, 2]) < 0.15,
    'step right': lambda j: j[-1, 0, 0] < -0.2 and abs(j[-1, 0, 2]) < 0.15,
}

# --------------------------------------------------------------------------------------------------
# More measures, and what finds events in them


def peaks(x, least):
    """Frames of the maxima of x (T,) that rise by `least` from the low before them, and fall by
    as much after them unless the motion ends."""
    found, rising, low, high, top = [], False, x[0], x[0], 0
    for t, value in enumerate(x):
        if rising and value > high:
            high, top = value, t
        elif rising and value < high - least:
            found.append(top)
            rising, low = False, value
        elif not rising and value > low + least:
            rising, high, top = True, value, t
        elif not rising:
            low = min(low, value)
    return found + [top] * rising


def spans(mask, least=1):
    """[(first, behind the last)] of the runs of true frames that have at least `least`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]).astype(int)))
    return [(a, b) for a, b in edges.reshape(-1, 2) if b - a >= least]


def smooth(x):
    """Mean of each frame and its neighbours, along the first axis."""
    padded = np.concatenate([x[:1], x, x[-1:]])
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def facing(j):
    """(T, 2) unit vectors in x and z, to where the body faces."""
    across = j[:, 1] - j[:, 2] + j[:, L_SHOULDER] - j[:, R_SHOULDER]
    ahead = np.stack([-across[:, 2], across[:, 0]], axis=1)
    return ahead / np.linalg.norm(ahead, axis=1, keepdims=True).clip(1e-6)


def seen(j, vectors):
    """Vectors (T, 3) -> (T, 3) to the left, up, and ahead, as the body faces."""
    f, x, y, z = facing(j), *np.moveaxis(vectors, -1, 0)
    return np.stack([x * f[:, 1] - z * f[:, 0], y, x * f[:, 0] + z * f[:, 1]], axis=1)


def gone(j):
    """Metres that the pelvis went to the left and ahead, each step as the body faced then."""
    step = np.diff(j[:, PELVIS], axis=0, append=j[-1:, PELVIS])
    return seen(j, step).sum(0)[[0, 2]]


def window(j, start, end):
    """Frames of a motion as a motion of its own: it starts at the origin and faces +Z."""
    part = j[start:end] - j[start, PELVIS] * (1, 0, 1)
    x, z = facing(part)[0]
    return part @ np.array([[z, 0, x], [0, 1, 0], [-x, 0, z]])


def in_place(j):
    """The motion as seen by who goes and turns with it: over the origin, facing +Z."""
    return np.stack([window(j, t, t + 1)[0] for t in range(len(j))])


def lean(j):
    """(T,) radians between the trunk and the vertical; upside down is pi."""
    trunk = j[:, NECK] - j[:, PELVIS]
    return np.arccos((trunk[:, 1] / np.linalg.norm(trunk, axis=1).clip(1e-6)).clip(-1, 1))


def upright(j):
    """Nobody lies, sits, crawls or is upside down at any time."""
    return j[:, PELVIS, 1].min() > 0.62 and lean(j).max() < 1.2


def head_turn(j):
    """(T,) radians that the head looks to the left of where hips and shoulders face."""
    side, _, ahead = seen(j, j[:, HEAD] - j[:, NECK]).T
    return np.arctan2(side, ahead)


def head_pitch(j):
    """(T,) radians that the head is bent forward, seen from the trunk."""
    def pitch(vectors):
        _, up, ahead = seen(j, vectors).T
        return np.arctan2(ahead, up)
    return np.unwrap(pitch(j[:, HEAD] - j[:, NECK]) - pitch(j[:, NECK] - j[:, PELVIS]))


def reach(j, side):
    """(T, 3) metres from a shoulder to its wrist: to the left, up, ahead. An arm is 0.53 long."""
    return seen(j, j[:, L_WRIST + side] - j[:, L_SHOULDER + side])


def raised(j, side):
    """(T,) a wrist is above its shoulder, or nearly."""
    return reach(j, side)[:, 1] > -0.08


def hands_apart(j):
    return np.linalg.norm(j[:, L_WRIST] - j[:, R_WRIST], axis=1)


def feet_apart(j):
    gap = j[:, L_ANKLE] - j[:, R_ANKLE]
    return np.hypot(gap[:, 0], gap[:, 2])


def down(j):
    """(T, 2) whether a foot, left or right, is on the floor or next to it, or stands a little above
    it for 0.15 s. The floor is where the lowest foot was within half a second, as some recordings
    drift."""
    feet = j[:, [[L_ANKLE, L_TOE], [R_ANKLE, R_TOE]]]
    low = np.minimum(feet[:, :, 0, 1] - 0.05, feet[:, :, 1, 1])
    lowest, moves = low.min(1), np.diff(feet.mean(2), axis=0, prepend=feet[:1].mean(2))
    floor = np.array([lowest[max(t - 10, 0):t + 11].min() for t in range(len(j))])[:, None]
    found = low < floor + 0.05
    for side in (0, 1):
        slow = np.linalg.norm(moves[:, side], axis=-1) * 20 < 0.4
        for a, b in spans(slow & (low < floor + 0.12)[:, side], 3):
            found[a:b, side] = True
    return found


def pace(j):
    """Metres a second: how fast the pelvis comes up or goes down at most."""
    return np.abs(np.diff(smooth(j[:, PELVIS, 1]))).max() * 20


def hand_pace(j):
    """Metres a second: the faster wrist's mean speed seen from the pelvis, while it is raised."""
    speeds = []
    for side in (0, 1):
        v = np.linalg.norm(np.diff(j[:, L_WRIST + side] - j[:, PELVIS], axis=0), axis=1) * 20
        up = raised(j, side)[1:]
        speeds.append(v[up].mean() if up.sum() > 4 else 0)
    return max(speeds)


def turn_rate(j):
    """Radians a second: how fast the body turns at most, over half a second."""
    h = heading(j)
    return np.abs(h[10:] - h[:-10]).max() * 2 if len(j) > 10 else 0


def kick_height(j):
    return j[:, [L_ANKLE, R_ANKLE], 1].max()


def tilt(j):
    return lean(j).max()


def stride(j):
    """Metres between the feet at a step's widest."""
    return np.quantile(feet_apart(j), 0.9)
