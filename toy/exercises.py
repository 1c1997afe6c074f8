"""Exercises and other actions of the whole body, with planted feet. acting.py has the rules.

What has a side is made on the left: the left leg lunges, the body bends to the left.
"""
from toy.acting import perform
from toy.segments import both, keyed, lean, pick


def jumping_jacks(rng, real, brief=False):
    wide, top = rng.uniform(0.18, 0.28), 'up' if rng.random() < 0.7 else 'v'
    half = both('side', p=(0, 0.045, 0), lt=(wide / 2, 0.07, 0, 25), rt=(-wide / 2, 0.07, 0, 25))
    down, low = (both(top, p=(0, y, 0), lt=(wide, 0, 0, 0), rt=(-wide, 0, 0, 0))
                 for y in (-0.05, -0.07))
    keys = [(0.24, half), (0.2, down), (0.08, low), (0.24, half), (0.18, dict(p=(0, -0.03, 0))),
            (0.08, dict(p=(0, -0.06, 0)))]
    return perform(rng, real, keys, out=[(0.2, {})], fast=1.3, brief=brief)


def squat(rng, real, brief=False):
    depth, hold = rng.uniform(0.3, 0.48), 0.05 if brief else rng.uniform(0.08, 0.4)
    arms = pick(rng, 'front', 'guard', 'hips')
    down = lean(55 * depth, 35 * depth, -60 * depth, p=(0, -depth, -0.32 * depth), **both(arms))
    keys = [(0.55, down), (hold, down), (0.55, {}), (0.08, {})]
    return perform(rng, real, keys, brief=brief, fast=1.45, depth=depth)


def bow(rng, real, brief=False):
    deep, arms = rng.uniform(38, 90), pick(rng, None, None, 'lap', 'hips')
    down = lean(0.4 * deep, 0.6 * deep, 0.15 * deep, p=(0, -0.02, -0.0016 * deep), **both(arms))
    hold = 0.1 if brief else rng.uniform(0.15, 0.6)
    return perform(rng, real, [(0.6, down), (hold, down), (0.6, {}), (0.1, {})], most=4, fast=1.4,
                   brief=brief, holds=pick(rng, down, None, None), deep=deep)


HALF_SEATED = lean(28, 18, -25, p=(0, -0.2, -0.24), L='low', R='low')


def _seated(rng):
    low, bend = rng.uniform(0.4, 0.46), rng.uniform(0, 10)
    return lean(-4, bend, p=(0, -low, -0.4), L='lap', R='lap')


def sit(rng, real, brief=False):
    """A brief clip ends seated; otherwise, some stand up again."""
    seated, rises = _seated(rng), not brief and rng.random() < 0.3
    keys = [(0.55, HALF_SEATED), (0.55, seated), (0.2, seated)]
    rest = 0.2 if brief else rng.uniform(0.3, 1.2)
    out = [(rest, seated), (0.55, HALF_SEATED), (0.55, {})] if rises else [(rest, seated)]
    return perform(rng, real, keys, out=out, most=1, fast=1.4, brief=brief,
                   ends=None if rises else seated, rises=rises)


def stand_up(rng, real, brief=False):
    seated, tempo = _seated(rng), pick(rng, 0.6, 0.68, 0.95, 1.0, 1.05, 1.3, 1.4)
    tempo = 1.0 if brief else tempo
    keys = [(0, seated), (0.2 if brief else rng.uniform(0.3, 0.9), seated), (0.55, HALF_SEATED),
            (0.6, {}), (0.3 if brief else rng.uniform(0.3, 0.8), {})]
    pace = tempo if not 0.75 < tempo < 1.25 else 1.0
    return keyed(real.stand(rng), keys, pace=tempo), dict(pace=pace, count=1)


def stand(rng, real, brief=False):
    kind = pick(rng, '', '', 'shift')
    n, aside = 2.2 if brief else rng.uniform(2.2, 5.0), 0.035 if kind == 'shift' else 0.01
    keys = [(0, {})]
    for _ in range(4):
        p = rng.normal(0, aside), -abs(rng.normal(0, 0.006)), rng.normal(0, 0.008)
        keys += [(n / 4, dict(p=p, chest=rng.normal(0, 2.5, 3), head=rng.normal(0, 5, 3)))]
    return keyed(real.stand(rng), keys), dict(kind=kind, pace=1.0)


def lunge(rng, real, brief=False):
    """With the left leg forward, back to standing after each; or right and left by turns."""
    depth, far = rng.uniform(0.24, 0.34), rng.uniform(0.62, 0.74)
    arms, hold = pick(rng, None, 'hips', 'guard'), 0.06 if brief else rng.uniform(0.1, 0.3)

    def on(side):
        toe, other = ('lt', 'rt')[side], ('rt', 'lt')[side]
        up = both(arms, p=(0.03 * (2 * side - 1), -0.05, 0.12), **{toe: (0, 0.1, 0.5 * far, 5)})
        down = both(arms, p=(0, -depth, 0.4 * far),
                    **{toe: (0, 0, far, 0), other: (0, 0, 0, 42)})
        return [(0.32, up), (0.34, down), (hold, down), (0.34, up), (0.32, {}), (0.06, {})]

    turns = rng.random() < 0.3
    return perform(rng, real, lambda number: on(number % 2 * turns), most=4, fast=1.4, brief=brief,
                   fewest=2 if turns and not brief else 1, turns=turns and not brief, depth=depth)


def stretch(rng, real, brief=False):
    """Reach up with both arms on the toes, or lean back."""
    kind = pick(rng, 'toes', 'back', 'high')
    heels = dict(p=(0, 0.05, 0.01), lt=(0, 0, 0, 25), rt=(0, 0, 0, 25)) if kind == 'toes' else {}
    top = both('overhead', chest=(-16 if kind == 'back' else -4, 0, 0), head=(-14, 0, 0), **heels)
    hold = 0.25 if brief else rng.uniform(0.5, 1.3)
    keys = [(0.4, both('side')), (0.45, top), (hold, top), (0.4, both('side')), (0.4, {})]
    return perform(rng, real, keys, most=2, fast=1.4, brief=brief, kind=kind)


def side_bend(rng, real, brief=False):
    size = rng.random()
    arms = dict(R='arc', L='hang') if rng.random() < 0.6 else dict(R='hips', L='hang')
    over = dict(arms, chest=(0, 0, -22 - 16 * size), pelvis=(0, 0, -4 - 4 * size),
                head=(0, 0, -8), p=(-0.04, 0, 0))
    half = dict(R='side') if arms['R'] == 'arc' else {}
    keys = [(0.3, half), (0.4, over), (0.1 if brief else rng.uniform(0.2, 0.6), over),
            (0.4, half), (0.3, {})]
    return perform(rng, real, keys, most=4, fast=1.4, brief=brief, holds=over, far=size > 0.6)


def touch_toes(rng, real, brief=False):
    down = lean(60, 66, 20, p=(0, -0.1, -0.16), **both('toes'))
    half = lean(28, 30, 0, p=(0, -0.02, -0.07), **both('low'))
    hold = 0.1 if brief else rng.uniform(0.15, 0.6)
    keys = [(0.35, half), (0.35, down), (hold, down), (0.35, half), (0.4, {}), (0.06, {})]
    return perform(rng, real, keys, most=4, fast=1.4, brief=brief, holds=down)


def sway(rng, real, brief=False):
    """From side to side, to the left first."""
    period, size = rng.uniform(0.95, 1.2), rng.uniform(0.05, 0.09)
    arms = pick(rng, None, None, 'hips')
    a, b = (both(arms, p=(s * size, -0.01, 0), chest=(0, 0, -s * 110 * size),
                 pelvis=(0, 0, -s * 30 * size), head=(0, 0, s * 4)) for s in (1, -1))
    return perform(rng, real, [(period / 2, a), (period / 2, b)], out=[(0.4, {})], fast=1.4,
                   fewest=2, brief=brief, into=[(0.3, both(arms))] * bool(arms),
                   arms=arms or '')


def _on_one_leg(side, height, back=0.0, heel=35, **more):
    """Lift a leg (0 left, 1 right), the weight on the other."""
    shift = (-0.055 if side == 0 else 0.055, -0.015, 0)
    return dict(more, p=shift, **{('lt', 'rt')[side]: (0, height, back, heel)})


def balance(rng, real, brief=False):
    """On the right leg."""
    arms = both(pick(rng, 'side', 'side', 'hips', None))
    up = _on_one_leg(0, rng.uniform(0.24, 0.42), rng.uniform(-0.2, 0.14), 35, **arms)
    hold = 0.6 if brief else rng.uniform(1.2, 3.0)
    return perform(rng, real, [(0.5, up), (hold, up), (0.5, {})], [(0.25, arms)], most=1,
                   brief=brief, holds=up)


def _legs(rng, real, lift, period, most, brief, arms=None, fast=1.35, **facts):
    """Lift one leg after the other, or the left one again and again; `lift(side)` is a pose."""
    turns = rng.random() < 0.65
    down = both(arms)

    def once(number):
        side = number % 2 * turns
        return [(period / 2, lift(side)), (period / 2, down)]

    return perform(rng, real, once, [(0.25, down)] * bool(arms), [(0.25, {})], most, fast=fast,
                   fewest=2 if turns else 1, brief=brief, turns=turns, **facts)


def knee_raises(rng, real, brief=False):
    arms, height = pick(rng, None, 'guard', 'hips'), rng.uniform(0.36, 0.46)
    return _legs(rng, real, lambda side: _on_one_leg(side, height, 0.16, 25, **both(arms)),
                 rng.uniform(0.75, 0.9), 6, brief, arms)


def heel_kicks(rng, real, brief=False):
    arms, height = pick(rng, None, 'guard', 'hips'), rng.uniform(0.34, 0.42)
    return _legs(rng, real, lambda side: _on_one_leg(side, height, -0.34, 85, **both(arms),
                                                     chest=(6, 0, 0)),
                 rng.uniform(0.62, 0.75), 6, brief, arms)


def stomp(rng, real, brief=False):
    """Lift a foot slowly, bring it down fast."""
    turns, height = rng.random() < 0.35, rng.uniform(0.2, 0.3)

    def once(number):
        side = number % 2 * turns
        up = _on_one_leg(side, height, 0.12, 10, chest=(-2, 0, 0))
        return [(0.36, up), (0.04, up), (0.15, dict(p=(0, -0.04, 0), chest=(6, 0, 0))),
                (0.15, dict(p=(0, -0.02, 0)))]

    return perform(rng, real, once, out=[(0.2, {})], fast=1.3, brief=brief,
                   fewest=2 if turns else 1, turns=turns)


def duck(rng, real, brief=False):
    depth, arms = rng.uniform(0.26, 0.38), pick(rng, None, 'head', 'guard')
    down = lean(85 * depth, 90 * depth, 25, p=(0, -depth, -0.22 * depth), **both(arms))
    half = lean(42 * depth, 45 * depth, 12, p=(0, -depth / 2, -0.11 * depth),
                **both(arms and 'half'))
    keys = [(0.17, half), (0.21, down), (rng.uniform(0.15, 0.5), down), (0.26, half),
            (0.24, {}), (0.1, {})]
    return perform(rng, real, keys, most=4, fast=1.3, brief=brief, holds=down)


EXERCISES = {
    'jumping jacks': (jumping_jacks, 22), 'squat': (squat, 24), 'bow': (bow, 22), 'sit': (sit, 22),
    'stand up': (stand_up, 18), 'stand': (stand, 22), 'lunge': (lunge, 17),
    'stretch': (stretch, 14), 'side bend LEFT': (side_bend, 14), 'touch toes': (touch_toes, 14),
    'sway': (sway, 14), 'balance': (balance, 14), 'knee raises': (knee_raises, 14),
    'heel kicks': (heel_kicks, 14), 'stomp': (stomp, 14), 'duck': (duck, 14)}
