"""Whether a motion does what a sentence of everyday.txt asks for. A detector takes joints, as in
kinematics.py, and says yes or no. Legs and the whole body are here, gestures in gestures.py; times,
then and shift make detectors of others.
"""
import numpy as np

from events import (
    arm_raises, flights, foot_lifts, hops, jacks, jumps, kicks, kicks_of, squats, steps)
from kinematics import (
    CHECKS, HEAD, L_ANKLE, L_KNEE, L_SHOULDER, L_TOE, L_WRIST, NECK, PELVIS, R_ANKLE, R_KNEE,
    R_SHOULDER, R_TOE, R_WRIST, both_up, down, feet_apart, gone, heading, in_place, lean, peaks,
    rise, seen, smooth, spans, speed, upright, window)

LEFT, RIGHT = 0, 1
TWO = (LEFT, RIGHT)


# --------------------------------------------------------------------------------------------------
# On foot


def running(j):
    """Both feet in the air again and again, each time from one foot to the other, on a way."""
    return speed(j) > 1 and len(flights(j)) >= 2 and len(hops(j)) < len(flights(j)) / 2


def run(j):
    """Running ahead, or faster than anybody walks."""
    return upright(j) and gone(j)[1] > 1 and (running(j) or speed(j) > 2.2)


def walk(j):
    """0.45 m ahead at least, at no more than 2.2 m/s, in steps, a foot always down."""
    side, ahead = gone(j)
    return (upright(j) and ahead > 0.45 and abs(side) < 0.6 * ahead and speed(j) < 2.2
            and len(steps(j)) >= 2 and len(flights(j)) <= 1 and not jumps(j))


def walk_backward(j):
    side, ahead = gone(j)
    return upright(j) and ahead < -0.6 and abs(side) < -0.8 * ahead and len(steps(j)) >= 2


def on_the_spot(j):
    return upright(j) and np.hypot(*gone(j)) < 0.8


def jog_in_place(j):
    """Feet come up in turn, more than 2 of them a second, without going anywhere; both in the air
    between steps, or hands held up as runners do."""
    lifts, legs = foot_lifts(j), [len(peaks(j[:, a, 1], 0.06)) for a in (L_ANKLE, R_ANKLE)]
    hands = np.median(j[:, [L_WRIST, R_WRIST], 1], axis=0).min()
    return (on_the_spot(j) and min(legs) >= 2 and not jacks(j) and np.ptp(heading(j)) < 2
            and (len(lifts) - 1) * 20 > 2 * (lifts[-1] - lifts[0])
            and len(hops(j)) < max(2, len(flights(j)) / 2)
            and (hands > 0.98 or len(flights(j)) >= 2))


def march(j):
    """Knees come up in turn, higher than in walking and 3 times at least, at walking pace."""
    sides = [len(peaks(j[:, knee, 1], 0.12)) for knee in (L_KNEE, R_KNEE)]
    return (upright(j) and sum(sides) >= 3 and min(sides) >= 1 and len(flights(j)) <= 1
            and abs(sides[0] - sides[1]) <= 2 and speed(j) < 1.6)


def jump(j):
    return len(jumps(j)) >= 1 and not running(j)


def low_jump(j):
    """Both feet in the air, however low."""
    return len(flights(j)) >= 1 and rise(j) > 0.02 and np.abs(gone(j)).max() < 1.5


def hop(j):
    """Flights that end on the foot (or feet) from which they started; on one leg, or on both."""
    return upright(j) and len(hops(j)) >= 1 and len(hops(j)) > len(flights(j)) / 2


def hop_on(side):
    """Hops with the other foot held up."""
    def check(j):
        feet = [np.median(np.minimum(j[:, a, 1], j[:, t, 1]))
                for a, t in ((L_ANKLE, L_TOE), (R_ANKLE, R_TOE))]
        return hop(j) and feet[1 - side] > feet[side] + 0.08
    return check


def skip(j):
    """Ahead in hops, on one leg and then on the other."""
    legs = [int(j[max(t - 1, 0), L_ANKLE, 1] > j[max(t - 1, 0), R_ANKLE, 1]) for t in hops(j)]
    return upright(j) and len(legs) >= 2 and len(set(legs)) == 2 and gone(j)[1] > 0.7


def sideways(side=None):
    """0.5 m or more to a side, more than ahead, at a gallop: legs never cross, 0.45 m/s or more."""
    def check(j):
        left, ahead = gone(j)
        return (upright(j) and abs(left) > max(0.5, 1.5 * abs(ahead)) and speed(j) > 0.45
                and (side is None or (left > 0) == (side == LEFT)))
    return check


def step_to(side=None):
    """A step or a few to a side: 15 cm or more, and more than ahead."""
    def check(j):
        left, ahead = gone(j)
        return (upright(j) and abs(left) > max(0.15, abs(ahead)) and not jumps(j)
                and abs(heading(j)[-1]) < 0.7
                and (side is None or (left > 0) == (side == LEFT)))
    return check


def turned(low, high, side=None, walking=False):
    """The body turns by low to high radians, on the spot or while walking."""
    def check(j):
        by = heading(j)
        by = by[np.abs(by).argmax()] if not walking else by[-1]
        way = np.hypot(*np.ptp(j[:, PELVIS][:, [0, 2]], axis=0))
        return (upright(j) and low < abs(by) < high and (side is None or (by > 0) == (side == LEFT))
                and (way > 0.6 and speed(j) > 0.3 if walking else way < 0.9))
    return check


def circle(j):
    """A walk that turns by more than 200 degrees on its way."""
    return upright(j) and abs(heading(j)[-1]) > 3.5 and np.hypot(*gone(j)) > 1.2


def tiptoe(j):
    """Ahead in steps, the heels of standing feet 5 cm higher than flat feet have them."""
    feet = down(j)
    heels = np.concatenate([(j[:, a, 1] - j[:, t, 1])[feet[:, i]]
                            for i, (a, t) in enumerate(((L_ANKLE, L_TOE), (R_ANKLE, R_TOE)))])
    return upright(j) and len(steps(j)) >= 2 and np.median(heels) > 0.105 and gone(j)[1] > 0.4


def limp(j):
    """Ahead in uneven steps. One foot stands longer than the other, steps are longer on one side,
    the body is lower on one leg: two of these, or one of them by far. First and last steps do not
    count."""
    feet, y = down(j), smooth(j[:, PELVIS, 1])
    stands = sorted((a, b - a, side) for side in TWO for a, b in spans(feet[:, side], 3))[1:-1]
    ahead = seen(j, j[:, L_ANKLE] - j[:, R_ANKLE])[:, 2]
    lengths = [[x[t] for t in peaks(x, 0.1)][1:-1] for x in (ahead, -ahead)]
    longs = [[n for _, n, foot in stands if foot == side] for side in TWO]
    single = [feet[:, side] & ~feet[:, 1 - side] for side in TWO]
    if not upright(j) or gone(j)[1] < 0.5 or len(flights(j)) > 1:
        return False

    def ratio(a, b):
        middles = sorted([np.median(a), np.median(b)]) if len(a) and len(b) else (1, 1)
        return middles[1] / max(middles[0], 0.02)

    dip = min(mask.sum() for mask in single) > 4 and abs(
        np.median(y[single[0]]) - np.median(y[single[1]]))
    found = ratio(*longs) / 1.2, ratio(*lengths) / 1.25, dip / 0.015
    return sorted(found)[1] > 1 or max(found[0] / 1.5, found[1] / 1.5, found[2] / 2.2) > 1


def stumble(j):
    """On the way ahead, the trunk pitches forward by 12 degrees more than it was, or the pelvis
    dips by 9 cm, within half a second, and comes back."""
    bent, y = smooth(lean(j)), smooth(j[:, PELVIS, 1])
    pitch = [t for t in peaks(bent, 0.15) if bent[t] - bent[max(t - 10, 0)] > 0.2]
    dip = [t for t in peaks(-y, 0.08) if y[max(t - 10, 0)] - y[t] > 0.09]
    return (gone(j)[1] > 0.4 and bool(pitch or dip) and len(steps(j)) >= 2 and not jumps(j)
            and len(flights(j)) <= 1 and speed(j) < 2)


# --------------------------------------------------------------------------------------------------
# Up, down and over


def sit(j):
    """From standing to a pelvis 25 cm lower, which stays so for half a second, trunk up."""
    y = j[:, PELVIS, 1]
    low = spans(y < min(y[:3].mean(), 0.95) - 0.25, 10)
    knees = j[:, [L_KNEE, R_KNEE], 1].min(1)
    return any(lean(j)[a:b].min() < 0.8 and y[a:b].min() > 0.2 and knees[a:b].min() > 0.2
               and y[a:b].min() > 0.3 for a, b in low)


def stand_up(j):
    """From a seat, or a crouch, with the trunk up: the pelvis ends 20 cm higher, and straight."""
    y = j[:, PELVIS, 1]
    return y[:5].min() < 0.75 and y[-1] > 0.83 and y[-1] > y[:5].min() + 0.2 and lean(j)[0] < 1


def get_up(j):
    """From lying or sitting on the floor to standing."""
    low = (j[:, PELVIS, 1] < 0.45) & (j[:, HEAD, 1] < 1)
    return low[:10].any() and j[-1, PELVIS, 1] > 0.75 and j[-1, HEAD, 1] > 1.3


def squat(j):
    """Down by 20 cm or more over feet that stay where they are: the pelvis is no more than 20 cm
    behind them, as it would be on a chair, and the hands do not go to the floor. It stays down for
    half a second, or stands for 0.2 s afterwards; otherwise it is a jump's run-up."""
    moved = [np.ptp(smooth(j[:, t]), axis=0)[[0, 2]].max() for t in (L_TOE, R_TOE)]
    knees, t = j[:, [L_KNEE, R_KNEE], 1].min(), int(j[:, PELVIS, 1].argmin())
    behind = seen(j, (j[:, L_ANKLE] + j[:, R_ANKLE]) / 2 - j[:, PELVIS])[t, 2]
    low, straight = j[:, PELVIS, 1] < 0.75, j[t:, PELVIS, 1] > 0.86
    settled = len(spans(low, 10)) or len(spans(straight, 4))
    return bool(len(squats(j)) >= 1 and settled and max(moved) < 0.35 and behind < 0.2
                and knees > 0.2 and lean(j).max() < 1.2 and not jumps(j)
                and j[:, [L_WRIST, R_WRIST], 1].min() > 0.35)


def kneel(j):
    """A knee on the floor, the trunk up."""
    low = j[:, [L_KNEE, R_KNEE], 1].min(1) < 0.17
    return (low & (lean(j) < 0.7) & (j[:, HEAD, 1] > 0.7)).sum() >= 8


def lie_down(j):
    """From the feet (or a seat) to lying: head and pelvis at the floor at the end."""
    high = j[:max(len(j) // 2, 1), HEAD, 1].max() > 0.9
    return high and j[-3:, PELVIS, 1].max() < 0.4 and j[-3:, HEAD, 1].max() < 0.55


def crawl(j):
    """On hands and knees, 25 cm ahead or more."""
    low = (j[:, PELVIS, 1] < 0.65) & (j[:, [L_WRIST, R_WRIST], 1].min(1) < 0.3) & (lean(j) > 0.8)
    return low.mean() > 0.6 and abs(gone(j)[1]) > 0.25


def roll(j):
    """Over the head with the pelvis near the floor, or lying, over from front to back."""
    low = j[:, PELVIS, 1] < 0.8
    over = (j[:, NECK, 1] < j[:, PELVIS, 1]) & low & (j[:, HEAD, 1] < 0.45)
    ribs = j[:, L_SHOULDER, 1] - j[:, R_SHOULDER, 1]
    lying = (j[:, PELVIS, 1] < 0.35) & (j[:, HEAD, 1] < 0.6)
    return bool(over.sum() >= 2) or lying.sum() > 8 and np.ptp(ribs[lying]) > 0.35


def upside_down(j):
    """(T,) the ankles above the pelvis, and that above the neck."""
    return (j[:, [L_ANKLE, R_ANKLE], 1].max(1) > j[:, PELVIS, 1] + 0.1) & (
        j[:, PELVIS, 1] > j[:, NECK, 1] + 0.1) & (j[:, PELVIS, 1] > 0.5)


def cartwheel(j):
    """Upside down on the hands."""
    return bool((upside_down(j) & (j[:, [L_WRIST, R_WRIST], 1].min(1) < 0.3)).sum() >= 2)


def backflip(j):
    """Upside down in the air."""
    return bool((upside_down(j) & (j[:, :, 1].min(1) > 0.1)).any())


def pick_up(j):
    """From standing, a hand down below the knees and up again, without going head over heels."""
    low = j[:, [L_WRIST, R_WRIST], 1].min(1)
    return (len([t for t in peaks(-low, 0.25) if low[t] < 0.5]) >= 1 and j[-1, HEAD, 1] > 1.1
            and j[0, HEAD, 1] > 1.1 and lean(j).max() < 2.3 and not jumps(j))


def lunge(j):
    """Feet 60 cm apart or more with the pelvis lower by 10 cm or more, one knee well bent."""
    deep = (feet_apart(j) > 0.55) & (j[:, PELVIS, 1] < j[:3, PELVIS, 1].mean() - 0.1)
    ahead = np.abs(seen(j, j[:, L_ANKLE] - j[:, R_ANKLE])[:, 2])
    return bool((deep & (ahead > 0.45)).sum() >= 3) and lean(j).max() < 1 and not jumps(j)


def kick(j):
    """One leg out fast, its foot up, the other foot standing."""
    return bool(kicks(j)) and speed(j) < 1.6 and j[:, PELVIS, 1].min() > 0.5 and lean(j).max() < 1.5


def kick_with(side):
    return lambda j: kick(j) and len(kicks_of(j, side)) > len(kicks_of(j, 1 - side))


def jumping_jacks(j):
    return len(jacks(j)) >= 1 and bool(both_up(j) or len(arm_raises(j)) >= 2)


def dance(j):
    """Hands and feet both keep moving, the body turns or sways, and there is no long way ahead."""
    def moving(at, base):
        return np.linalg.norm(np.diff(j[:, at] - base, axis=0), axis=-1) * 20
    hands = moving([L_WRIST, R_WRIST], j[:, [PELVIS]])
    feet = moving([L_ANKLE, R_ANKLE], 0).max(1)
    way = np.hypot(*(j[-1] - j[0])[PELVIS, [0, 2]]) * 20 / len(j)
    sways = np.ptp(j[:, PELVIS][:, [0, 2]], axis=0).max() > 0.12 or np.ptp(heading(j)) > 0.35
    return bool(hands.mean() > 0.38 and (feet > 0.3).mean() > 0.4 and way < 0.75 and sways
                and j[:, PELVIS, 1].min() > 0.4 and len(jacks(j)) < 2)


def stand(j):
    return bool(CHECKS['stand'](j))


step_aside, step_left, step_right = step_to(), step_to(LEFT), step_to(RIGHT)
side_gallop, side_gallop_left, side_gallop_right = sideways(), sideways(LEFT), sideways(RIGHT)
walk_turn_around = turned(2.2, 4.4, walking=True)
turn_any, turn_around = turned(0.8, 5), turned(2.2, 4.4)
turn_left, turn_right = turned(0.8, 5, LEFT), turned(0.8, 5, RIGHT)
walk_turn_left, walk_turn_right = (turned(0.6, 4.5, side, walking=True) for side in TWO)
spin, spin_left, spin_right = (turned(4.7, 99, side) for side in (None, LEFT, RIGHT))
hop_left, hop_right = map(hop_on, TWO)
kick_left, kick_right = map(kick_with, TWO)


# --------------------------------------------------------------------------------------------------
# Detectors made of others


def times(events, n):
    """Exactly n of them. Where steps are counted, one more will do, as who stops closes up, and to
    the side each may be closed up."""
    def check(j):
        found = len(events(j))
        if events is not steps or n <= found <= n + 1:
            return n <= found <= n + (events is steps)
        side, ahead = np.abs(gone(j))
        return side > ahead and 2 * n - 1 <= found <= 2 * n
    return check


def then(first, second):
    """Somewhere the motion can be cut so that the first part does one and the second the other."""
    def check(j):
        return any(first(window(j, 0, t)) and second(window(j, t, len(j)))
                   for t in range(8, len(j) - 7, 4))
    return check


def together(legs, arms):
    """Legs do the one while arms do the other, which is judged as if the body stayed in place."""
    return lambda j: legs(j) and arms(in_place(j))


class shift:
    """Does the action, and a measured quantity lies on the asked side of the middle that the plain
    sentence's samples have (`middle`, which the caller sets), by 5% of it at least."""

    def __init__(self, action, quantity, sign, plain):
        self.action, self.quantity, self.sign, self.plain = action, quantity, sign, plain
        self.middle = None

    def __call__(self, j):
        away = self.sign * (self.quantity(j) - self.middle)
        return bool(self.action(j)) and away > 0.05 * abs(self.middle)
