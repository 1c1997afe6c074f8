"""Several actions in one clip: one after another, or one of the arms during one of the legs.

Any two actions that can follow each other are put together: the first ends upright on both feet,
and the second begins so, whatever they are. Each part is short, made again until it fits, and its
idle frames at either end are cut off.
"""
import inspect
from functools import partial

import numpy as np

from motion import turn_about_y as turn
from toy.body import P, PF, PLACES, TOE_Y, TOES, TURNED, ease
from toy.locomotion import turn_in_place, walk
from toy.segments import overlay, pick, then

LONGEST = 119  # frames
TWO, THREE, AT_ONCE = 720, 60, 170  # clips besides their mirror images
COMMON = ('walk, run, jump, turn LEFT, turn around, wave LEFT hand, walk backward, jump forward, '
          'kick, punch, squat, sit, step LEFT, spin, hop, clap, bow, jog').split(', ')  # drawn more
ON_FOOT = ('walk, walk, walk backward, walk in a circle, jog, run, march, march, march forward, '
           'jog in place, step LEFT, step forward, tiptoe, turn LEFT').split(', ')
TRIES = 40


class Standing:
    """The real motion with one standing pose for all parts of a clip."""

    def __init__(self, real, pose):
        self._real, self._pose = real, pose

    def __getattr__(self, name):
        return getattr(self._real, name)

    def stand(self, rng):
        return self._pose.copy()


def trim(segment, spare=2):
    """Cut off what stands still at both ends, but for `spare` frames."""
    v, contact, path = segment
    for row in (0, -1):
        moved = np.abs(v - v[row]).max((1, 2)) + np.abs(path - path[row]).max(1) > 0.03
        if not moved.any():
            return segment
        if row == 0:
            cut = slice(max(0, moved.argmax() - spare), None)
        else:
            cut = slice(0, len(v) - max(0, moved[::-1].argmax() - spare))
        v, contact, path = v[cut], contact[cut], path[cut]
    return v, contact, path


def upright(segment, row, stand):
    """Whether in that frame one stands on both feet, not far from how `stand` does."""
    v, contact, _ = segment
    return (contact[row].all() and abs(v[row, P, 1] - stand[P, 1]) < 0.12
            and np.abs(v[row, TOES, 1] - TOE_Y).max() < 0.03
            and np.linalg.norm(v[row, TOES] - v[row, P] - stand[TOES] + stand[P],
                               axis=1).max() < 0.4)


def bridge(a, b):
    """Segment a, then b: with a step or two between them if they do not meet in one pose."""
    heading = np.arctan2(a[0][-1, PF, 0], a[0][-1, PF, 2])
    begins = np.arctan2(b[0][0, PF, 0], b[0][0, PF, 2])
    first = a[0][-1].copy()
    first[TURNED] = turn(begins - heading, first[TURNED])
    gap = np.abs(first[PLACES] - b[0][0, PLACES]).max()
    if gap < 0.01 and abs(heading - begins) < 0.02 and np.abs(first - b[0][0]).max() < 0.05:
        return then(a, b)
    n = 12 if gap > 0.02 or abs(heading - begins) > 0.05 else 7
    share = ease((np.arange(n) + 1) / (n + 1))[:, None, None]
    contact, half = np.ones((n, 2), bool), n // 2
    if n == 12:  # one foot after the other
        contact[1:half, 0] = contact[half:-1, 1] = False
    path = np.zeros((n, 3))
    path[:, 2] = heading - begins
    return then(then(a, (first + share * (b[0][0] - first), contact, path)), b)


def _made(make, rng, real):
    """A trimmed clip of an action, in its brief form if it has one."""
    function = make.func if isinstance(make, partial) else make
    brief = {'brief': True} if 'brief' in inspect.signature(function).parameters else {}
    segment, facts = make(rng, real, **brief)
    return trim(segment), facts


def two(rng, real, actions):
    """Two actions, one after the other."""
    labels = [label for label in actions if ' and ' not in label and label != 'stand']
    weight = np.array([2.5 if label in COMMON else 1.0 for label in labels])
    while True:
        a, b = map(str, rng.choice(labels, 2, replace=False, p=weight / weight.sum()))
        pair = follow(rng, real, [(a, actions[a][0]), (b, actions[b][0])], tries=8)
        if pair:
            return pair[0], dict(how='then', parts=pair[1])


def follow(rng, real, parts, tries=TRIES):
    """Parts [(label, maker), ...] as one segment and [(label, facts), ...], or None if it is too
    long however often it is tried, or if one cannot follow the other."""
    stand = real.stand(rng)
    same = Standing(real, stand)
    for _ in range(tries):
        segment, said = None, []
        for number, (label, make) in enumerate(parts):
            part, facts = _made(make, rng, same)
            most = LONGEST * (0.62 if len(parts) == 2 else 0.45)
            begins = not number or upright(part, 0, stand)
            ends = number == len(parts) - 1 or upright(part, -1, stand)
            if len(part[0]) > most or not (begins and ends):
                break
            segment = bridge(segment, part) if number else part
            said.append((label, facts))
        else:
            if 40 <= len(segment[0]) <= LONGEST:
                return segment, said
    return None


# A walk there, and one on or back; what the captions call the parts of three in a row.
THERE = 'walk', partial(walk, tempo='even', n=43, start=False, stop=True)
ON = 'walk', partial(walk, tempo='even', n=39, start=True, stop=False)
AHEAD = '[*walk|*go] [forward|forwards]'
AGAIN = '[*walk on|*keep ~walk|*walk forward again|*walk again]'
BACK = '[*walk back|*walk back again|*come back|*walk back to the start]'
SHORT = ('turn LEFT, jump, clap, kick, hop, step LEFT, bow, punch, squat, jump forward, '
         'step forward, step backward, wave LEFT hand').split(', ')


def three(rng, real, actions):
    """Walk, turn around and walk back; or walk, do something and walk on; or three short ones."""
    kind = pick(rng, 'back', 'back', 'on', 'short')
    while True:
        if kind == 'back':
            parts = [THERE, ('turn around', partial(turn_in_place, angles=(180,))), ON]
        elif kind == 'on':
            label = pick(rng, *SHORT)
            parts = [THERE, (label, actions[label][0]), ON]
        else:
            parts = [(str(label), actions[label][0]) for label in rng.permutation(SHORT)[:3]]
        made = follow(rng, real, parts)
        if made:
            far = np.linalg.norm(made[0][2][:, :2] - made[0][2][0, :2], axis=1)
            if kind != 'back' or far[-1] < 0.6 * far.max():  # nearly where it began
                break
    segment, said = made
    for number, (label, facts) in enumerate(said):
        if kind != 'short' and label == 'walk':
            later = BACK if kind == 'back' else AGAIN
            said[number] = label, {'said': later if number else AHEAD}
    return segment, dict(how='three', parts=said)


def at_once(rng, real, actions, overlays):
    """A gesture of the arms during something on foot."""
    arms = sorted(set(overlays) & set(actions))
    stand = real.stand(rng)
    same = Standing(real, stand)
    while True:
        on_foot, gesture = pick(rng, *ON_FOOT), pick(rng, *arms)
        legs, of_legs = actions[on_foot][0](rng, same)
        change, of_arms = _made(actions[gesture][0], rng, same)
        n, m = len(legs[0]), len(change[0])
        if of_legs.get('style') or of_legs.get('arms') or not 0.45 * n < m < n + 8:
            continue
        if np.abs(change[0][:, PLACES] - stand[PLACES]).max() > 0.1:
            continue
        wait = int(rng.integers(0, max(1, n - m)))
        change = np.concatenate([np.repeat(change[0][:1], wait, axis=0), change[0]])
        segment = overlay(legs, (change,), stand)
        return segment, dict(how='while', parts=[(on_foot, of_legs), (gesture, of_arms)])


def combinations(actions, overlays):
    """Rows for the table of `build`; overlays: the gestures that can be made during a walk."""
    return [('two in a row', (partial(two, actions=actions), TWO)),
            ('three in a row', (partial(three, actions=actions), THREE)),
            ('at once', (partial(at_once, actions=actions, overlays=overlays), AT_ONCE))]
