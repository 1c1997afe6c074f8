"""What a motion does, told from its joints by plain kinematics: for test_toy, test_weights."""
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
