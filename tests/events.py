"""When things happen in a motion: lists of frames, from joints as in kinematics.py."""
import numpy as np

from kinematics import (
    L_ANKLE, L_KNEE, L_TOE, L_WRIST, PELVIS, R_ANKLE, R_KNEE, R_WRIST, down, feet_apart,
    hands_apart, head_pitch, head_turn, heading, lean, peaks, raised, reach, seen, smooth, spans)


def flights(j):
    """[(first, behind the last)] frames of each time that no foot is down."""
    return spans(~down(j).any(1), 2)


def jumps(j):
    """Tops of jumps: the pelvis comes 12 cm up, above where it is when standing, feet in the
    air."""
    air, y = ~down(j).any(1), j[:, PELVIS, 1]
    return [t for t in peaks(y, 0.12) if y[t] > 0.99 and air[max(t - 2, 0):t + 3].sum() >= 2]


def hops(j):
    """First frames of the flights that end on a foot from which they started."""
    feet, found = down(j), []
    for a, b in flights(j):
        before, after = feet[max(a - 2, 0):a].any(0), feet[b:b + 2].any(0)
        if (before & after).any():
            found.append(a)
    return found


def steps(j):
    """First frames of steps: a foot moves over the floor by 15 cm or more, and stands again."""
    found = []
    for side in (0, 1):
        at = smooth(j[:, L_ANKLE + side] + j[:, L_TOE + side])[:, [0, 2]] / 2
        moves = np.linalg.norm(np.diff(at, axis=0), axis=1) * 20 > 0.3
        found += [a for a, b in spans(moves, 3) if np.linalg.norm(at[b] - at[a]) > 0.15]
    return sorted(found)


def knee_lifts(j):
    """Tops of the lifts of a knee, by 10 cm or more."""
    return sorted(t for knee in (L_KNEE, R_KNEE) for t in peaks(j[:, knee, 1], 0.1))


def foot_lifts(j):
    """Tops of the lifts of an ankle, by 6 cm or more."""
    return sorted(t for ankle in (L_ANKLE, R_ANKLE) for t in peaks(j[:, ankle, 1], 0.06))


def claps(j):
    """Frames in which the wrists meet, in front of the body or above the head."""
    apart = hands_apart(j)
    return [t for t in peaks(-apart, 0.1) if apart[t] < 0.3 and j[t, L_WRIST, 1] > 0.9]


def waves_of(j, side):
    """Outermost frames of the swings of a raised forearm, or of the arm, from side to side."""
    up, found = raised(j, side), []
    for a, b in spans(up, 6):
        part = j[a:b]
        arm = seen(part, part[:, L_WRIST + side] - part[:, L_WRIST + side - 2])
        swing = np.arctan2(arm[:, 0] * (1 - 2 * side), arm[:, 1])
        tops = peaks(np.unwrap(swing), 0.2)
        if tops and b < len(j) and tops[-1] >= b - a - 2:
            tops.pop()  # the arm is on its way down
        found += [a + t for t in tops]
    return found


def waves(j):
    return max((waves_of(j, side) for side in (0, 1)), key=len)


def kicks_of(j, side):
    """Frames in which a leg is farthest out ahead or to its side, its foot up: 40 cm at least from
    under the pelvis. A foot behind the body is one that walks."""
    gap, up = j[:, L_ANKLE + side] - j[:, PELVIS], j[:, L_ANKLE + side, 1] > 0.2
    fore = seen(j, gap)[:, 2] > -0.3
    out = smooth(np.hypot(gap[:, 0], gap[:, 2])) * up * fore
    moves = np.linalg.norm(np.diff(j[:, L_ANKLE + side], axis=0, append=j[-1:, L_ANKLE + side]),
                           axis=1) * 20
    return [t for t in peaks(out, 0.25) if out[t] > 0.38 and moves[max(t - 8, 0):t + 1].max() > 1.5]


def kicks(j):
    return sorted(kicks_of(j, 0) + kicks_of(j, 1))


def strokes(j, side):
    """[(frame, metres a second)] in which a fist is farthest out from over the pelvis, and farther
    than the other one, or farthest across the body as in a hook; at breast height, and not on
    a way up or down. Fists that cross the body together clap."""
    hips = (j[:, 1] - j[:, 2])[:, [0, 2]]
    hips = hips / np.linalg.norm(hips, axis=1, keepdims=True).clip(1e-6)
    gaps = j[:, [L_WRIST, R_WRIST]] - j[:, [PELVIS]]
    out, high = np.hypot(gaps[..., 0], gaps[..., 2]), gaps[:, side, 1]
    across = (gaps[:, side][:, [0, 2]] * hips).sum(1) * (2 * side - 1)
    own, other = out[:, side], out[:, 1 - side]
    mirrored = (gaps[:, 1 - side][:, [0, 2]] * hips).sum(1) * (1 - 2 * side)
    meeting = peaks(mirrored, 0.1)

    def found(x, least):
        fast = np.diff(smooth(x), prepend=x[:1]) * 20
        return [(t, fast[max(t - 6, 0):t + 1].max()) for t in peaks(x, least)
                if 0.2 < high[t] < 0.68 and np.ptp(high[max(t - 6, 0):t + 7]) < 0.42]

    straight = [(t, v) for t, v in found(own, 0.1) if own[t] > max(0.38, other[t] + 0.04)]
    hooks = [(t, v) for t, v in found(across, 0.15) if high[t] > 0.25 and own[t] > 0.3
             and all(abs(t - other) > 3 for other in meeting)]
    return [(t, v) for t, v in straight + hooks if v > 0.9]


def punches_of(j, side):
    """Frames in which a fist strikes. Where two strokes, of whichever hand, are within half a
    second, one much slower than the other is the arm that swings back; within 0.2 s they are
    one."""
    both = [(t, v, hand) for hand in (0, 1) for t, v in strokes(j, hand)]
    kept = []
    for t, v, hand in sorted(both, key=lambda stroke: -stroke[1]):
        if all(abs(t - a) > (10 if v < 0.8 * b else 4) for a, b, _ in kept):
            kept.append((t, v, hand))
    return sorted(t for t, _, hand in kept if hand == side)


def punches(j):
    return sorted(punches_of(j, 0) + punches_of(j, 1))


def bows(j):
    """Frames in which the trunk is bent forward the most, by 17 degrees or more."""
    bent = smooth(lean(j))
    return [t for t in peaks(bent, 0.15) if bent[t] > 0.3]


def squats(j):
    return peaks(-smooth(j[:, PELVIS, 1]), 0.2)


def nods(j):
    """Frames in which the head is bent forward, by 7 degrees or more within half a second."""
    pitch = smooth(head_pitch(j))
    return [t for t in peaks(pitch, 0.1) if pitch[t] - pitch[max(t - 10, 0):t + 1].min() > 0.12]


def shakes(j):
    """Frames in which the head is turned the farthest to the left, and was not a second ago."""
    turn = smooth(head_turn(j))
    return [t for t in peaks(turn, 0.2) if turn[t] - turn[max(t - 16, 0):t + 1].min() > 0.2]


def arm_raises(j):
    low = np.minimum(reach(j, 0)[:, 1], reach(j, 1)[:, 1])
    return [t for t in peaks(low, 0.3) if low[t] > 0.1]


def jacks(j):
    """Frames in which the feet are the farthest apart, side by side, both hands going up around
    then, and coming down."""
    low, apart = np.minimum(reach(j, 0)[:, 1], reach(j, 1)[:, 1]), feet_apart(j)
    beside = np.abs(seen(j, j[:, L_ANKLE] - j[:, R_ANKLE])[:, 0])
    hands = [low[max(t - 12, 0):t + 13] for t in range(len(j))]
    return [t for t in peaks(apart, 0.15) if beside[t] > max(0.35, 0.85 * apart[t])
            and hands[t].max() > 0.1 and hands[t].min() < -0.15
            and apart[max(t - 14, 0):t + 15].min() < 0.55 * apart[t]]


def spins(j):
    """Whole turns about the vertical, to the nearest, as that many frames."""
    turned = np.abs(heading(j))
    return list(range(round(turned.max() / (2 * np.pi))))


def clap_rate(j):
    """Claps a second, from the first to the last."""
    found = claps(j)
    return 20 * (len(found) - 1) / (found[-1] - found[0]) if len(found) > 1 else 0
