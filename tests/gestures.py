"""Gestures: whether arms, head and trunk do what is asked, from joints as in kinematics.py.

They must be made standing, more or less on the spot, so that a wave on the run is no wave.
"""
import numpy as np

from events import (
    bows, claps, foot_lifts, hops, jacks, jumps, nods, punches, punches_of, shakes, waves,
    waves_of)
from kinematics import (
    HEAD, L_ANKLE, L_SHOULDER, L_WRIST, NECK, PELVIS, R_ANKLE, R_WRIST, both_up, drop, gone,
    hands_apart, head_turn, heading, lean, peaks, raised, reach, seen, smooth, spans, speed,
    top_speed, upright)

LEFT, RIGHT = 0, 1
TWO = (LEFT, RIGHT)


def still(j):
    """On two feet, more or less on the spot."""
    return upright(j) and np.abs(gone(j)).max() < 0.8 and not jumps(j)


def calm(j, most=1.2):
    """Hands that make no gesture: no wrist is faster than that, seen from the pelvis."""
    return max(top_speed(j, L_WRIST), top_speed(j, R_WRIST)) < most


def wave(j):
    """A hand at the shoulder's height or above for 0.5 s, and swings from side to side twice; the
    hands do not meet, and there are no jumping jacks."""
    return still(j) and not jacks(j) and len(claps(j)) < 2 and any(
        raised(j, side).sum() >= 10 and len(waves_of(j, side)) >= 2 for side in TWO)


def wave_with(side):
    """Waves that hand, and leaves the other one down."""
    return lambda j: (wave(j) and len(waves_of(j, side)) >= 2 and raised(j, 1 - side).sum() < 5)


def raise_arms(j):
    """Both hands above the head."""
    return upright(j) and both_up(j) and not jacks(j)


def raise_hand(side):
    """That hand up to the shoulder's height or above for 0.3 s, the other one not."""
    return lambda j: (still(j) and (reach(j, side)[:, 1] > -0.05).sum() >= 6
                      and (reach(j, 1 - side)[:, 1] > -0.05).sum() < 4)


def punch(j):
    """An arm shoots out ahead at breast height, once or more, and only one at a time."""
    return (upright(j) and bool(punches(j)) and speed(j) < 1.1 and not jumps(j) and not jacks(j)
            and len(hops(j)) < 4)


def punch_with(side):
    """Punches with that fist, which is the faster one."""
    return lambda j: (punch(j) and bool(punches_of(j, side))
                      and top_speed(j, L_WRIST + side) > top_speed(j, R_WRIST - side))


def clap(j):
    return still(j) and len(claps(j)) >= 2


def bow(j):
    """The trunk bends by 17 degrees or more and comes back, over legs that stay straight."""
    return (j[:, PELVIS, 1].min() > 0.62 and np.abs(gone(j)).max() < 0.8
            and any(j[t, PELVIS, 1] > 0.8 and lean(j)[t:].min() < lean(j)[t] - 0.1 for t in bows(j))
            and drop(j) < 0.2 and not jumps(j))


def slight_bow(j):
    """As bow, from 6 degrees on."""
    return still(j) and bool(peaks(smooth(lean(j)), 0.1)) and drop(j) < 0.2


def throws_of(j, side):
    """Frames at which a wrist is fastest ahead, 2.5 m/s or more seen from the pelvis, having
    been at the shoulder's height, or, if it is faster than 3.5 m/s, far behind, just before."""
    arm = reach(j, side)
    velocity = np.linalg.norm(np.diff(j[:, L_WRIST + side] - j[:, PELVIS], axis=0), axis=1) * 20
    ahead = np.diff(arm[:, 2]) * 20
    t = int(velocity.argmax())
    before = arm[max(t - 16, 0):t + 1]
    fit = velocity[t] > 2.2 and ahead[max(t - 3, 0):t + 4].max() > 2.2
    under = before[:, 2].min() < -0.1 and velocity[t] > 3.5
    return [t] if fit and (under or before[:, 1].max() > -0.1) else []


def throw(j):
    """One hand flies ahead, faster than the other one, in no jump."""
    fast = sorted([top_speed(j, L_WRIST), top_speed(j, R_WRIST)])
    return (upright(j) and any(throws_of(j, side) for side in TWO) and speed(j) < 1.1
            and fast[1] > 1.15 * fast[0] and not jumps(j) and not jacks(j))


def throw_with(side):
    return lambda j: (throw(j) and bool(throws_of(j, side))
                      and top_speed(j, L_WRIST + side) > top_speed(j, R_WRIST - side))


def ways(j, sign):
    """[metres] that both hands go ahead (sign 1) or come back (-1) together, between turning
    points, at breast height, if the farther end is 25 cm or more ahead of the shoulders."""
    arms = [reach(j, side) for side in TWO]
    level = np.all([np.abs(arm[:, 1] + 0.15) < 0.35 for arm in arms], axis=0)
    both, found = smooth(np.min([arm[:, 2] for arm in arms], axis=0)), []
    for a, b in spans(level, 6):
        part = both[a:b][::sign]
        found += [part[t] - part[max(t - 30, 0):t + 1].min() for t in peaks(part, 0.08)
                  if part[t] > 0.25]
    return found


def push(j):
    """Both hands go ahead together at breast height by 12 cm or more, and do not clap or wave."""
    return (upright(j) and not jumps(j) and max(ways(j, 1), default=0) > 0.12
            and len(claps(j)) < 2 and len(waves(j)) < 4)


def pull(j):
    """Both hands come back together at breast height by 12 cm or more, and do not clap or wave."""
    return (upright(j) and not jumps(j) and max(ways(j, -1), default=0) > 0.12
            and len(claps(j)) < 2 and len(waves(j)) < 4)


def stretch(j):
    """Arms held out long for 0.6 s, above the head or to the sides, or one arm above with the trunk
    bent, standing."""
    ups = [reach(j, side)[:, 1] for side in TWO]
    over, wide = np.min(ups, axis=0) > 0.3, hands_apart(j) > 1.25
    bent = (np.max(ups, axis=0) > 0.35) & (lean(j) > 0.25)
    held = [b - a for mask in (over, wide, bent) for a, b in spans(mask)]
    return still(j) and max(held, default=0) >= 12 and not jacks(j) and len(waves(j)) < 4


def sway(j):
    """Neck or pelvis go from side to side, twice, by 4 cm or more, over feet that stand."""
    middle = (j[:, L_ANKLE] + j[:, R_ANKLE]) / 2
    swings = [peaks(smooth(seen(j, j[:, at] - middle)[:, 0]), 0.04) for at in (PELVIS, NECK)]
    return (still(j) and max(map(len, swings)) >= 2 and len(foot_lifts(j)) <= 1
            and np.ptp(heading(j)) < 1 and calm(j, 2.5))


def nod(j):
    return (still(j) and bool(nods(j)) and lean(j).max() < 0.45 and np.ptp(head_turn(j)) < 0.9
            and calm(j) and not foot_lifts(j))


def shake_head(j):
    """The head goes from side to side, twice and quickly, while chest and hands stay."""
    turns = shakes(j)
    return (still(j) and len(turns) >= 2 and min(np.diff(turns)) < 30 and calm(j)
            and np.ptp(heading(j)) < 0.6)


def look_around(j):
    """The head looks to a side, with the chest or without it, and to another: 35 degrees apart."""
    return (still(j) and np.ptp(head_turn(j) + heading(j)) > 0.6 and np.ptp(heading(j)) < 1.2
            and calm(j))


def held(j, side):
    """(T,) a wrist that rests: slower than 0.5 m/s seen from the pelvis."""
    moves = np.diff(j[:, L_WRIST + side] - j[:, PELVIS], axis=0, prepend=0)
    return smooth(np.linalg.norm(moves, axis=1)) * 20 < 0.5


def pointing(j, side):
    """(T,) the arm rests straight, at breast height or above."""
    arm = reach(j, side)
    long = np.linalg.norm(arm, axis=1) > 0.45
    return long & (arm[:, 1] > -0.25) & held(j, side)


def point(j):
    """One arm points for 0.3 s, and the other one does not; nor does it wave."""
    long = [max([b - a for a, b in spans(pointing(j, side))], default=0) for side in TWO]
    return still(j) and max(long) >= 6 and min(long) < 6 and len(waves(j)) < 3


def point_with(side):
    return lambda j: point(j) and pointing(j, side).sum() > pointing(j, 1 - side).sum()


def salute(j):
    """A hand rests at the head for 0.3 s, the other one does not."""
    def at_head(side):
        near = np.linalg.norm(j[:, L_WRIST + side] - j[:, HEAD], axis=1) < 0.32
        high = j[:, L_WRIST + side, 1] > j[:, L_SHOULDER + side, 1] - 0.05
        return max([b - a for a, b in spans(near & high & held(j, side))], default=0)
    return still(j) and max(map(at_head, TWO)) >= 6 and min(map(at_head, TWO)) < 3


def raise_both(j):
    """Both hands up to the shoulders' height or above for 0.3 s."""
    return still(j) and (np.min([reach(j, s)[:, 1] for s in TWO], axis=0) > -0.08).sum() >= 6


def wave_both(j):
    return still(j) and min(len(waves_of(j, side)) for side in TWO) >= 2


wave_left, wave_right = map(wave_with, TWO)
raise_left, raise_right = map(raise_hand, TWO)
punch_left, punch_right = map(punch_with, TWO)
throw_left, throw_right = map(throw_with, TWO)
point_left, point_right = map(point_with, TWO)
