"""More gestures for gestures.py: where hands rest, what both do together, how legs are held.

Joints as in kinematics.py; each asks for no more than one who watches would.
"""
import numpy as np

from detectors import hop, jump, march, run
from events import foot_lifts, jacks, jumps, waves
from gestures import calm, held, still
from kinematics import (
    HEAD, L_ANKLE, L_KNEE, L_SHOULDER, L_WRIST, NECK, PELVIS, R_ANKLE, R_WRIST, gone, hands_apart,
    head_pitch, head_turn, heading, lean, peaks, reach, seen, smooth, spans, speed, upright)

LEFT, RIGHT = 0, 1
TWO = (LEFT, RIGHT)


def longest(mask):
    return max([b - a for a, b in spans(mask)], default=0)


def hand(j, side, base=NECK):
    """(T, 3) metres from a joint to a wrist: outward, up, ahead."""
    return seen(j, j[:, L_WRIST + side] - j[:, base]) * (1 - 2 * side, 1, 1)


def near(j, side, joint, metres):
    return np.linalg.norm(j[:, L_WRIST + side] - j[:, joint], axis=1) < metres


def swings(x, least):
    """How often x goes up by that much, and down again."""
    return len(peaks(smooth(x), least))


# --------------------------------------------------------------------------------------------------
# On foot


def jump_to(side, ahead):
    """A jump that ends 12 cm or more that way: (1, 0) left, (0, 1) ahead."""
    def check(j):
        way = gone(j)
        return jump(j) and way @ (side, ahead) > max(0.12, 0.9 * np.abs(way).max())
    return check


def jump_and_turn(j):
    return jump(j) and np.ptp(heading(j)) > 0.6


def long_jump(j):
    return jump(j) and gone(j)[1] > 0.6


def hop_forward(j):
    return hop(j) and gone(j)[1] > 0.15


def jog(j):
    return run(j) and speed(j) < 3.2


def march_forward(j):
    return march(j) and gone(j)[1] > 0.4


def step_ahead(sign):
    def check(j):
        side, ahead = gone(j)
        return (upright(j) and ahead * sign > max(0.12, abs(side)) and speed(j) < 1.6
                and len(foot_lifts(j)) < 12)
    return check


def balance(j):
    """One foot up by 10 cm for a second, the other one standing."""
    gap = j[:, L_ANKLE, 1] - j[:, R_ANKLE, 1]
    return still(j) and max(longest(gap > 0.1), longest(gap < -0.1)) >= 20


def knee_raises(j):
    """A knee up to 15 cm under the hips or higher, the foot not behind."""
    return still(j) and any(
        ((j[:, L_KNEE + s, 1] > j[:, PELVIS, 1] - 0.22)
         & (seen(j, j[:, L_ANKLE + s] - j[:, PELVIS])[:, 2] > -0.1)).sum() >= 2 for s in TWO)


def heel_kicks(j):
    """A heel up behind, the knee hanging down."""
    return still(j) and any(
        ((j[:, L_ANKLE + s, 1] > 0.3) & (j[:, L_KNEE + s, 1] < 0.64)
         & (seen(j, j[:, L_ANKLE + s] - j[:, PELVIS])[:, 2] < -0.2)).sum() >= 2 for s in TWO)


def stomp(j):
    """A foot goes up by 10 cm and comes down faster than 0.9 m/s."""
    falls = [-np.diff(j[:, L_ANKLE + s, 1]).min() * 20 for s in TWO]
    return still(j) and max(falls) > 0.9 and not jacks(j) and np.ptp(heading(j)) < 0.5


def duck(j):
    """The head goes down by 20 cm or more within 0.9 s, over feet that stay, and comes back."""
    y = smooth(j[:, HEAD, 1])
    low = [t for t in peaks(-y, 0.2) if y[max(t - 18, 0):t + 1].max() - y[t] > 0.2]
    return (bool(low) and not jumps(j) and lean(j).max() > 0.35 and y[-1] > 1.2
            and np.abs(gone(j)).max() < 0.5)


# --------------------------------------------------------------------------------------------------
# Head and trunk


def look_to(side):
    def check(j):
        turn = (head_turn(j) + heading(j)) * (1 - 2 * side)
        return still(j) and calm(j) and turn.max() > 0.45 and turn.min() > -0.35
    return check


def look_pitch(sign):
    def check(j):
        pitch = head_pitch(j) * sign
        return still(j) and calm(j) and longest(pitch > pitch.min() + 0.3) >= 4 and (
            pitch.max() - np.median(pitch[:3]) > 0.25)
    return check


def side_bend(side):
    def check(j):
        x, y, _ = seen(j, j[:, NECK] - j[:, PELVIS]).T
        bent = np.arctan2(x, y) * (1 - 2 * side)
        return still(j) and longest(bent > 0.22) >= 4 and bent.min() > -0.2
    return check


def touch_toes(j):
    """Both hands down to the shins over legs that stay nearly straight."""
    low = j[:, [L_WRIST, R_WRIST], 1].max(1) < 0.5
    return bool((low & (lean(j) > 0.8) & (j[:, PELVIS, 1] > 0.65)).sum() >= 2)


# --------------------------------------------------------------------------------------------------
# Hands


def hand_at_head(j):
    """One hand at the head or the face for 0.3 s, the other one not."""
    times = [longest(near(j, s, HEAD, 0.33)) for s in TWO]
    return still(j) and max(times) >= 6 and min(times) < 4


def cover_face(j):
    """Both hands in front of the face for 0.3 s."""
    front = [near(j, s, HEAD, 0.33) & (hand(j, s)[:, 2] > 0.05) for s in TWO]
    return still(j) and longest(np.all(front, axis=0)) >= 6


def drink(j):
    """A hand comes from below up to the mouth."""
    return still(j) and any(near(j, s, HEAD, 0.33).sum() >= 3 and (hand(j, s)[:, 2] > 0.05)[
        near(j, s, HEAD, 0.33)].all() and not near(j, 1 - s, HEAD, 0.33).any() for s in TWO)


def cross_arms(j):
    """Both wrists beyond the middle of the chest, at its height, for 0.3 s."""
    over = [(hand(j, s)[:, 0] < -0.03) & (np.abs(hand(j, s)[:, 1] + 0.22) < 0.15) for s in TWO]
    return still(j) and longest(np.all(over, axis=0)) >= 6


def hands_on_hips(j):
    """Both wrists at the hips, elbows out, for 0.3 s."""
    at = [near(j, s, 1 + s, 0.36) & (hand(j, s, L_SHOULDER + s)[:, 1] > -0.5) for s in TWO]
    wide = np.linalg.norm(j[:, 18] - j[:, 19], axis=1) > 0.6
    return still(j) and longest(np.all(at, axis=0) & wide) >= 6


def hug(j):
    """Arms wide, then closed in front of the breast."""
    apart, out = hands_apart(j), np.min([hand(j, s)[:, 2] for s in TWO], axis=0)
    level = np.abs(np.array([hand(j, s)[:, 1] for s in TWO]) + 0.1).max(0) < 0.35
    closed = (apart < 0.35) & (out > 0.1) & level
    return still(j) and longest(closed) >= 4 and bool((apart[:closed.argmax()] > 0.8).any())


def flap_arms(j):
    """Both arms up and down at the sides, far apart."""
    ups = [swings(reach(j, s)[:, 1], 0.2) for s in TWO]
    return still(j) and min(ups) >= 1 and not jacks(j) and np.quantile(hands_apart(j), 0.6) > 1


def arm_circles(j):
    """A wrist goes around its shoulder, seen from the side."""
    def turns(side):
        _, up, ahead = reach(j, side).T
        return np.ptp(np.unwrap(np.arctan2(ahead, up)))
    return still(j) and max(map(turns, TWO)) > 5


def swing_arms(j):
    """Low hands go far ahead and back, straight."""
    return still(j) and min(np.ptp(reach(j, s)[:, 2]) for s in TWO) > 0.4 and max(
        reach(j, s)[:, 1].max() for s in TWO) < 0.15


def celebrate(j):
    """Both hands above the head, in one or more pumps."""
    high = np.min([hand(j, s, HEAD)[:, 1] for s in TWO], axis=0)
    return still(j) and not jacks(j) and high.max() > 0.05


def fist_pump(j):
    """One hand goes above the head, and does not wave."""
    high = [hand(j, s, HEAD)[:, 1].max() for s in TWO]
    return still(j) and max(high) > 0.1 and min(high) < -0.1 and len(waves(j)) < 2


def stop_sign(j):
    """A hand rests out ahead at the shoulder's height or above, the other hangs."""
    out = [(hand(j, s)[:, 2] > 0.25) & (hand(j, s)[:, 1] > -0.15) & held(j, s) for s in TWO]
    return still(j) and max(map(longest, out)) >= 5 and min(map(longest, out)) < 3


def swung(least, together=False):
    """A wrist flies across the body; with both hands on the grip if together."""
    def check(j):
        x = [hand(j, s)[:, 0] for s in TWO]
        grip = longest(hands_apart(j) < 0.35) >= 6
        return still(j) and max(map(np.ptp, x)) > least and (grip or not together)
    return check


def lift(j):
    """Both hands low, then both at the shoulders or above."""
    low = j[:, [L_WRIST, R_WRIST], 1].max(1) < 0.65
    high = np.min([hand(j, s)[:, 1] for s in TWO], axis=0) > 0
    return bool(low.any() and high[low.argmax():].any())


def violin(j):
    """One hand up ahead, the other one bows at breast height, to and fro."""
    def plays(s):
        neck, bow = hand(j, s), hand(j, 1 - s)
        up = (neck[:, 1] > -0.12) & (bow[:, 1] > -0.3) & (bow[:, 2] > 0.15)
        return longest(up) if up.any() and np.ptp(bow[up, 0]) > 0.2 else 0
    return still(j) and max(map(plays, TWO)) >= 16


jump_forward, jump_backward = jump_to(0, 1), jump_to(0, -1)
jump_left, jump_right = jump_to(1, 0), jump_to(-1, 0)
step_forward, step_backward = step_ahead(1), step_ahead(-1)
look_left, look_right = map(look_to, TWO)
look_down, look_up = look_pitch(1), look_pitch(-1)
side_bend_left, side_bend_right = map(side_bend, TWO)
think = scratch_head = answer_phone = hand_at_head
tennis, golf = swung(0.7), swung(0.6, together=True)
