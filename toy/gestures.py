"""Gestures of the arms and the head, and the list of all keyframed actions of the toy dataset.

acting.py says how a maker is called. What is done with one hand is done with the left one here.
"""
from functools import partial

from toy.acting import hand, perform, there
from toy.exercises import EXERCISES
from toy.fights import FIGHTS
from toy.mime import MIME
from toy.segments import both, pick


def _head(lean=0, yaw=0, roll=0, chest=(0, 0, 0), **more):
    return dict(head=(lean, yaw, roll), chest=chest, **more)


def wave(rng, real, hands='L', lowered=None, most=6, brief=False):
    period, high = rng.uniform(0.46, 0.58), 'high ' if rng.random() < 0.4 else ''
    head = (0, 0, rng.uniform(-8, 8))
    into, out = ({'head': head, **dict.fromkeys(hands, high + name)} for name in ('in', 'out'))
    return perform(rng, real, [(period / 2, out), (period / 2, into)],
                   [(rng.uniform(0.5, 0.65), into)], [(rng.uniform(0.5, 0.65), {})], most,
                   fewest=2, brief=brief, holds=None if lowered else into, high=high)


def raise_arms(rng, real, hands='LR', brief=False):
    way, top, hold = pick(rng, 'front', 'side'), 'skyward', rng.uniform(0.1, 0.6)
    if hands == 'LR':
        top = pick(rng, 'up', 'up', 'v')
    half = dict.fromkeys(hands, way)
    up = dict(dict.fromkeys(hands, top), chest=(-3, 0, 0), head=(-rng.uniform(0, 15), 0, 0))
    keys = [(0.33, half), (0.33, up), (hold, up), (0.33, half), (0.36, {}), (0.1, {})]
    return perform(rng, real, keys, brief=brief, holds=up, way=way)


def clap(rng, real, brief=False):
    period, apart = rng.uniform(0.4, 0.5), both('open')
    return perform(rng, real, [(period / 2, both('palms')), (period / 2, apart)],
                   [(0.45, apart)], [(0.45, {})], most=9, fast=1.4, brief=brief,
                   fewest=pick(rng, 1, 2, 2, 2, 2, 2))


def look_around(rng, real, brief=False):
    """Once is left, right and back."""
    a, b = (_head(rng.uniform(-5, 10), side * rng.uniform(45, 62), 0,
                  (0, side * rng.uniform(5, 16), 0)) for side in (1, -1))
    hold = 0.08 if brief else rng.uniform(0.1, 0.5)
    keys = [(0.45, a), (hold, a), (0.7, b), (hold, b)]
    return perform(rng, real, keys, out=[(0.5, {})], most=3, fast=1.4, brief=brief)


LOOKS = {'aside': lambda size: _head(0, 45 + 20 * size, 0, (0, 6 + 10 * size, 0)),
         'up': lambda size: _head(-30 - 20 * size, 0, 0, (-4 - 6 * size, 0, 0)),
         'down': lambda size: _head(30 + 18 * size, 0, 0, (5 + 8 * size, 0, 0))}


def look(rng, real, way, brief=False):
    size = rng.random()
    pose = LOOKS[way](size)
    keys = there(pose, rng.uniform(0.35, 0.5), rng.uniform(0.2, 0.7), 0.45, 0.12)
    return perform(rng, real, keys, most=4, brief=brief, holds=pose, far=size > 0.6)


def nod(rng, real, brief=False):
    size, period = rng.random(), rng.uniform(0.5, 0.62)
    down, up = _head(18 + 14 * size, chest=(2, 0, 0)), _head(-6)
    return perform(rng, real, [(period / 2, down), (period / 2, up)], out=[(0.2, {})], fast=1.4,
                   brief=brief, far=size > 0.6)


def shake_head(rng, real, brief=False):
    size, period = rng.random(), rng.uniform(0.56, 0.68)
    a, b = _head(3, 24 + 16 * size), _head(3, -24 - 16 * size)
    return perform(rng, real, [(period / 2, a), (period / 2, b)], out=[(0.25, {})], fast=1.4,
                   fewest=2, brief=brief, far=size > 0.6)


def point(rng, real, brief=False):
    way = pick(rng, 'forward', 'up', 'side')
    arm = {'forward': 'ahead', 'up': 'skyward', 'side': 'side'}[way]
    pose = _head(-22 if way == 'up' else 0, 40 if way == 'side' else 0, 0,
                 (-3 if way == 'up' else 3, -6 if way == 'forward' else 0, 0), L=arm)
    keys = there(pose, rng.uniform(0.4, 0.5), rng.uniform(0.25, 0.7))
    return perform(rng, real, keys, most=4, brief=brief, holds=pose, way=way)


def held_pose(rng, real, poses, most=3, fast=1.5, by=None, brief=False):
    """Take one of several poses, of which each lasts for a while."""
    pose = pick(rng, *poses)
    keys = there(pose, rng.uniform(0.45, 0.6), rng.uniform(0.3, 0.7), 0.5, by=by)
    return perform(rng, real, keys, most=most, fast=fast, brief=brief, holds=pose)


def strokes(rng, real, into, a, b, period=0.5, most=5, fast=1.5, by=None, brief=False):
    """Go into a pose, by way of another, and once or more from pose a to b and back."""
    period *= rng.uniform(0.92, 1.1)
    keys = [(period / 2, b), (period / 2, a)]
    go, leave = [(0.45, into)], [(0.45, {})]
    if by:
        go, leave = [(0.25, by), (0.3, into)], [(0.28, by), (0.25, {})]
    return perform(rng, real, keys, go, leave, most, fast=fast, brief=brief)


def _strokes(a, b, into=None, **more):
    return partial(strokes, into=into or a, a=a, b=b, **more)


def shrug(rng, real, brief=False):
    roll = rng.uniform(-7, 7)
    up = both('shrug', head=(-2, 0, roll), chest=(-3, 0, 0))
    down = both('shrug low', head=(2, 0, 0))
    return perform(rng, real, [(0.25, up), (0.22, up), (0.28, down)], [(0.3, down)], [(0.35, {})],
                   most=4, brief=brief)


def arm_circles(rng, real, brief=False):
    """From the arms hanging down, forwards and up or the other way round."""
    period, back = rng.uniform(0.85, 1.1), rng.random() < 0.4
    hands = 'LR' if rng.random() < 0.7 else 'L'
    way = (7, 0, 1, 2, 3, 4, 5, 6) if back else (5, 4, 3, 2, 1, 0, 7, 6)
    keys = [(period / 8, dict.fromkeys(hands, f'circle {i}')) for i in way]
    hang = dict.fromkeys(hands, 'circle 6')
    return perform(rng, real, keys, [(0.2, hang)], [(0.3, {})], fast=1.35, brief=brief,
                   back=back, both=hands == 'LR')


def swing_arms(rng, real, brief=False):
    together, period = rng.random() < 0.5, rng.uniform(0.8, 1.0)
    a, b = (both('swing', chest=(-2, 0, 0)), both('behind', chest=(6, 0, 0))) if together else (
        dict(L='swing', R='behind', chest=(2, -10, 0)),
        dict(L='behind', R='swing', chest=(2, 10, 0)))
    hang = both('hang')
    keys = [(period / 4, a), (period / 4, hang), (period / 4, b), (period / 4, hang)]
    return perform(rng, real, keys, [(0.15, hang)], [(0.25, {})], fast=1.35, brief=brief,
                   together=together)


def celebrate(rng, real, brief=False):
    """Throw up both arms, and pump them."""
    up = both('v', chest=(-6, 0, 0), head=(-12, 0, 0))
    low = both('fists up', p=(0, -0.03, 0), chest=(2, 0, 0))
    return perform(rng, real, [(0.22, up), (0.12, up), (0.24, low)], [(0.35, low)], [(0.4, {})],
                   brief=brief, holds=up)


def cheer(rng, real, brief=False):
    """The same with one fist."""
    up = hand('skyward', chest=(-3, 0, 0), head=(-8, 0, 0))
    low = hand('fists up', chest=(2, 0, 0))
    return perform(rng, real, [(0.2, up), (0.1, up), (0.24, low)], [(0.35, low)], [(0.4, {})],
                   brief=brief, holds=up)


def hug(rng, real, brief=False):
    wide = both('welcome', chest=(-2, 0, 0))
    closed = both('embrace', chest=(9, 0, 0), head=(6, 0, rng.uniform(-12, 12)))
    keys = [(0.4, wide), (0.45, closed), (rng.uniform(0.3, 0.8), closed), (0.4, wide), (0.4, {})]
    return perform(rng, real, keys, most=2, fast=1.4, brief=brief, holds=closed)


def flap(rng, real, brief=False):
    period = rng.uniform(0.6, 0.75)
    up, down = both('wing up', p=(0, 0, 0)), both('wing down', p=(0, -0.03, 0))
    keys = [(period / 4, both('wing')), (period / 4, up), (period / 4, both('wing')),
            (period / 4, down)]
    return perform(rng, real, keys, [(0.3, down)], [(0.3, {})], most=7, fast=1.35, brief=brief)


def conduct(rng, real, brief=False):
    period = rng.uniform(0.85, 1.05)
    up, down, out = both('beat up'), both('beat down', head=(6, 0, 0)), both('beat out')
    keys = [(0.3 * period, down), (0.3 * period, out), (0.4 * period, up)]
    return perform(rng, real, keys, [(0.45, up)], [(0.45, {})], fewest=2, fast=1.35, brief=brief)


SALUTE = [hand('salute', chest=(-3, 0, 0)), hand('salute')]
CROSSED = [dict(L='elbow', R='crossed'), dict(L='crossed', R='elbow', chest=(-3, 0, 0))]
HIPS = [both('hips'), both('hips', chest=(-4, 0, 0)), both('hips', head=(0, 0, 6))]
FACE = [both('face', head=(16, 0, 0), chest=(8, 0, 0)), both('face', head=(8, 0, 0))]
CHIN = [dict(L='chin', R='elbow', head=(6, 0, 6)), dict(L='chin', R='elbow', head=(-6, 8, 5)),
        hand('chin', head=(8, 0, 4))]
STOP = [hand('palm', chest=(2, -6, 0)), hand('palm', chest=(-2, -10, 0), head=(0, 6, 0))]
SCRATCH = hand('scalp', head=(6, 0, 8)), hand('scalp 2', head=(6, 0, 8))
BECKON = hand('come out', chest=(2, 0, 0)), hand('come in')

# label: (how a clip is made, how many besides their mirror images, where LEFT is right)
ARMS_AND_HEAD = {
    'wave LEFT hand': (wave, 24), 'wave both hands': (partial(wave, hands='LR'), 18),
    'raise both arms': (raise_arms, 22), 'raise LEFT arm': (partial(raise_arms, hands='L'), 18),
    'clap': (clap, 18), 'look around': (look_around, 18),
    'look LEFT': (partial(look, way='aside'), 14), 'look up': (partial(look, way='up'), 14),
    'look down': (partial(look, way='down'), 14), 'nod': (nod, 14), 'shake head': (shake_head, 14),
    'point LEFT hand': (point, 17), 'salute': (partial(held_pose, poses=SALUTE), 14),
    'beckon': (_strokes(*BECKON, period=0.6), 14), 'shrug': (shrug, 14),
    'cross arms': (partial(held_pose, poses=CROSSED, most=2), 14),
    'hands on hips': (partial(held_pose, poses=HIPS, most=2), 14),
    'scratch head': (_strokes(*SCRATCH, period=0.46, most=7, fast=1.3, by=hand('half')), 14),
    'arm circles': (arm_circles, 14), 'swing arms': (swing_arms, 14),
    'cover face': (partial(held_pose, poses=FACE, most=2, by=both('half')), 14),
    'think': (partial(held_pose, poses=CHIN, most=1), 14),
    'celebrate': (celebrate, 14), 'fist pump': (cheer, 14),
    'stop sign': (partial(held_pose, poses=STOP), 14), 'hug': (hug, 14), 'flap arms': (flap, 14),
    'conduct': (conduct, 14)}

GESTURES = ARMS_AND_HEAD | MIME | EXERCISES | FIGHTS
# Those whose brief clips begin and end standing, and those of arms, chest and head alone, which
# can be laid over a walk.
STANDING = set(GESTURES) - {'sit', 'stand up'}
OVERLAYS = set(ARMS_AND_HEAD) | {
    'drink', 'answer phone', 'knock', 'guitar', 'violin', 'wipe window', 'throw', 'catch'}
