"""How keyframed actions are performed: the arms' poses, and how often and how fast.

The makers in gestures.py, mime.py, exercises.py and fights.py are called with (rng, real,
brief=False) and return a segment and the facts for its captions. Keys are (seconds since the last,
changes for `pose`) at the natural pace of the action; `perform` repeats and times them. A brief
clip has about 50 frames and begins and ends standing, so that another action can follow it.
"""
import numpy as np

from motion import unit_rows as unit
from toy.body import COLLAR, FOREARM, LENGTH, NECK, UPPER_ARM, two_bone
from toy.segments import ARM, LONGEST, keyed, pick

BRIEF = 2.4  # seconds
SLOW, EVEN = (0.55, 0.7), (0.92, 1.06)
COUNTS = np.array([0.28, 0.22, 0.2, 0.15, 0.15])  # of one to five times


def reach(x, y, z, elbow=(1, -1, 0)):
    """Upper arm and forearm of the left arm whose wrist is at a place seen from the neck.

    x is to the left, y up, z forward, in metres and in the chest's directions; the elbow points
    towards `elbow`.
    """
    upper, wrist = np.array([0.3, -1.0, 0.3]), np.array([[x, y, z]])
    for _ in range(20):  # the shoulder follows the upper arm, as in `solve`
        u = unit(upper)
        lift = np.clip(u[1] + 0.35, 0, 1.2)
        shoulder = unit(np.array([1, 0.25 + 0.45 * lift, -0.1 + 0.25 * u[2]])) * LENGTH[16]
        shoulder = (COLLAR[0] - NECK + shoulder)[None]
        gap = wrist - shoulder
        far = np.linalg.norm(gap)
        wrist_near = shoulder + gap * min(1, 0.98 * (UPPER_ARM[0] + FOREARM[0]) / far)
        middle = two_bone(shoulder, wrist_near, UPPER_ARM[0], FOREARM[0], np.array([elbow]))
        upper = (upper + unit(middle - shoulder)[0]) / 2
    return unit(middle - shoulder)[0], unit(wrist_near - middle)[0]


# More poses for the left arm, seen from the chest; those of `reach` from the neck.
POSES = {
    'half': ((.3, -.8, .5), (.1, .1, 1)), 'ahead': ((.08, .08, 1), (0, .08, 1)),
    'skyward': ((.2, 1, .15), (.02, 1, .05)),
    'palm': ((.15, 0, 1), (.02, .85, .6)), 'arc': ((.25, 1, 0), (-.75, .75, .1)),
    'hang': ((.12, -1, .05), (.05, -1, .12)), 'toes': ((.06, .4, .9), (-.03, .5, .87)),
    'shrug': ((.75, -.6, .25), (.75, .3, .65)), 'shrug low': ((.4, -.85, .2), (.65, -.1, .7)),
    'come out': ((.15, -.5, .85), (.1, .2, 1)), 'come in': ((.2, -.6, .75), (-.2, .95, .25)),
    'welcome': ((.75, -.15, .65), (.55, .1, .85)), 'embrace': ((.4, -.2, .9), (-.85, .02, .5)),
    'wing up': ((.9, .5, .05), (.9, .4, .05)), 'wing': ((.9, -.1, .05), (.9, .1, .05)),
    'wing down': ((.8, -.65, .1), (.75, -.7, .1)),
    'beat up': ((.35, -.35, .85), (.1, .85, .5)), 'beat down': ((.3, -.7, .6), (0, .02, 1)),
    'beat out': ((.65, -.45, .55), (.65, .35, .65)),
    'fists up': ((.45, -.55, .35), (.1, .95, .3)), 'behind': ((.25, -.85, -.5), (.2, -.9, -.25)),
    'pulled': ((.45, -.55, -.7), (-.05, .1, 1)), 'pressing': ((.4, -.75, .25), (-.1, .5, .85)),
    'rack': ((.4, -.7, .55), (-.05, .95, .3)), 'overhead': ((.3, 1, .12), (-.05, 1, 0)),
    'weight': ((.1, -.25, .95), (-.1, -.35, .95)),
    'grip': ((.05, -.45, .9), (-.05, .15, 1)), 'grip low': ((.05, -.6, .8), (-.05, -.1, 1)),
    'rap': ((.15, -.2, .95), (-.05, .8, .6)), 'rapped': ((.12, -.1, 1), (-.05, .42, .9)),
    'handle': ((.1, -.6, .8), (.0, -.05, 1)), 'opened': ((.6, -.6, .1), (.35, -.1, .9)),
    'ball up': ((.2, -.85, .35), (.02, .02, 1)), 'ball down': ((.12, -.75, .6), (0, -.75, .65)),
    'racket': ((.85, -.25, -.45), (.8, .1, -.55)), 'racket hit': ((.5, -.25, .85), (.35, 0, .9)),
    'racket after': ((-.35, .15, .9), (-.85, .45, .35)),
    'club': ((-.05, -.55, .8), (-.3, -.5, .8)),
    'club up': ((.55, .05, .75), (.4, .85, .35)), 'club across': ((-.35, .0, .9), (-.75, .6, .35)),
    'neck of guitar': ((.6, -.7, .35), (.5, .35, .8)),
    'violin': ((.3, -.25, .9), (.02, .6, .75)),
    'wipe in': ((.2, -.05, .95), (-.45, .75, .6)), 'wipe out': ((.6, .0, .75), (.5, .75, .5)),
    'sweep low': ((.25, -.85, .35), (-.25, -.35, .9)), 'sweep': ((.35, -.6, .55), (-.5, .1, .85)),
    'catching': ((.15, -.3, .95), (-.1, .25, .95)), 'caught': ((.3, -.8, .3), (-.45, .3, .85)),
    'salute': reach(.13, .17, .12, (1, -.2, .2)), 'mouth': reach(.03, .02, .17, (.9, -1, .3)),
    'to ear': reach(.14, .11, .06, (.8, -1, .4)), 'chin': reach(.03, -.02, .16, (.3, -1, .4)),
    'elbow': reach(-.14, -.24, .2, (.8, -1, -.2)), 'crossed': reach(-.15, -.19, .17, (.9, -1, .1)),
    'palms': reach(.04, -.22, .36, (1, -.8, -.3)),
    'face': reach(.05, .09, .17, (.8, -1, .5)), 'scalp': reach(.07, .27, .03, (1, .1, .4)),
    'scalp 2': reach(.12, .21, .0, (1, .1, .4)), 'cup': reach(.12, -.32, .33, (.6, -1, -.2)),
    'head': reach(.1, .24, .03, (1, .2, .4)),
    'strum': reach(.02, -.4, .2, (1, -.3, -.3)), 'strummed': reach(.07, -.54, .17, (1, -.3, -.3)),
    'bow in': reach(.06, -.06, .25, (1, -.5, .1)), 'bow out': reach(.42, -.2, .28, (1, -1, -.1)),
}
POSES |= {f'circle {i}': ((.3 + .25 * max(0, -np.cos(a)), np.sin(a), np.cos(a)),) * 2
          for i, a in enumerate(np.arange(8) * np.pi / 4)}
POSES |= {f'stir {i}': reach(.1 + .1 * np.cos(a), -.36 + .03 * np.sin(a), .3 + .09 * np.sin(a))
          for i, a in enumerate(np.arange(8) * np.pi / 4)}
ARM.update({name: np.array(vectors, float) for name, vectors in POSES.items()})


def there(pose, go=0.45, hold=0.25, back=0.45, rest=0.1, by=None):
    """Keys for going into a pose, staying there and standing again, both ways by another pose.

    A forearm that is to point up after hanging down must go by the front.
    """
    if by:
        return [(go / 2, by), (go / 2, pose), (hold, pose), (back / 2, by), (back / 2, {}),
                (rest, {})]
    return [(go, pose), (hold, pose), (back, {}), (rest, {})]


def hand(arm, **more):
    """Changes for `pose`: the left arm, and more."""
    return dict(L=arm, **more)


def how_often(rng, most=5):
    """One to `most` times, rarer the more; what is at most done twice is mostly done once."""
    if most <= 2:
        return 1 + int(most == 2 and rng.random() < 0.3)
    if most > 5 and rng.random() < 0.2:
        return int(rng.integers(5, most + 1))
    shares = COUNTS[:most]
    return int(rng.choice(np.arange(1, len(shares) + 1), p=shares / shares.sum()))


def _length(keys):
    return sum(seconds for seconds, _ in keys)


def perform(rng, real, once, into=(), out=(), most=5, fewest=1, fast=1.5, brief=False, holds=None,
            count=0, ends=None, **facts):
    """Stand, go `into` the action, do it `once` and again, come `out` of it, and stand.

    once         keys, or a function that makes those of the number it is given
    most         how often it may be done, from `fewest` on; less if 6 seconds are too short for it
    fast         how many times as fast as natural it may be
    holds        a pose in which it may stay at the end, except in a brief clip
    count        how often, if the maker has decided it
    ends         the pose at the end, standing by default
    Facts: count; pace, which is 1 unless clearly slow or fast; held.
    """
    making = once if callable(once) else lambda number: once
    # it is done no faster than this to fit into the time; a brief clip is not to look hurried
    limit, hurry = (BRIEF, 1.2) if brief else (LONGEST - 0.05, fast)
    if not count:
        count = max(fewest, how_often(rng, min(most, 3) if brief else most))
        count = min(count, max(fewest, 2)) if brief else count
    tempo = rng.uniform(*(pick(rng, EVEN, EVEN, SLOW, (1.28, fast)) if not brief else EVEN))
    held = bool(holds) and not brief and rng.random() < 0.25
    edges = rng.uniform(0.05, 0.1 if brief else 0.35, 2)
    while True:
        keys = list(into)
        for number in range(count):
            keys += making(number)
        if held:
            stop = max(i for i, (_, changes) in enumerate(keys) if changes is holds)
            keys = keys[:stop + 1] + [(edges[1] + 0.4, holds)]
        else:
            keys += [*out, (edges[1], ends or {})]
        keys = [(0, {}), (edges[0], {})] + keys
        if _length(keys) / limit <= hurry or count <= fewest:
            break
        count -= 1
    tempo = max(tempo, min(_length(keys) / limit, max(hurry, 1.4)))
    pace = tempo if not 0.75 < tempo < 1.25 else 1.0
    return keyed(real.stand(rng), keys, pace=tempo), dict(facts, count=count, pace=pace, held=held)
