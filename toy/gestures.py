"""The keyframed actions of the toy dataset: made with the arms, or with the feet mostly planted.

As in motions.py, each function makes one clip: a segment and the facts for its captions. Keys are
(seconds since the last, changes for `pose`).
"""
from toy.segments import both, keyed, lean, pick


def _act(rng, real, keys, settle=True, tempo=1.0, **facts):
    """Stand for a moment, go through the keys at a tempo, and stay in the last if `settle`."""
    before, after = rng.uniform(0.05, 0.35), rng.uniform(0.05, 0.35)
    keys = [(0, {}), (before, {})] + keys + [(after, keys[-1][1])] * settle
    return keyed(real.stand(rng), keys, pace=tempo), facts


def jumping_jacks(rng, real):
    count, p, wide = int(rng.integers(2, 5)), rng.uniform(0.8, 1.05), rng.uniform(0.18, 0.28)
    top = 'up' if rng.random() < 0.7 else 'v'
    half = both('side', p=(0, 0.045, 0), lt=(wide / 2, 0.07, 0, 25), rt=(-wide / 2, 0.07, 0, 25))
    down, low = (both(top, p=(0, y, 0), lt=(wide, 0, 0, 0), rt=(-wide, 0, 0, 0))
                 for y in (-0.05, -0.07))
    keys = [(0.24 * p, half), (0.2 * p, down), (0.08 * p, low), (0.24 * p, half),
            (0.18 * p, dict(p=(0, -0.03, 0))), (0.08 * p, dict(p=(0, -0.06, 0)))]
    return _act(rng, real, keys * count + [(0.25, {})], pace=1 / p, count=count)


def wave(rng, real, hands='L', lowered=None, most=6):
    count, p = int(rng.integers(3, most + 1)), rng.uniform(0.36, 0.56)
    lowered = rng.random() < 0.75 if lowered is None else lowered
    high, head = 'high ' if rng.random() < 0.4 else '', (0, 0, rng.uniform(-8, 8))
    into, out = ({'head': head, **dict.fromkeys(hands, high + name)} for name in ('in', 'out'))
    keys = [(rng.uniform(0.55, 0.8), into)]
    keys += [(p / 2, out), (p / 2, into)] * (count - 1) + [(p / 2, out)]
    keys += [(rng.uniform(0.55, 0.8), {})] * lowered
    return _act(rng, real, keys, settle=lowered, count=count, high=high, pace=1 / p,
                lowered=lowered)


def raise_arms(rng, real):
    way, up = pick(rng, 'front', 'side'), pick(rng, 'up', 'up', 'v')
    count = pick(rng, 1, 1, 1, 2)
    lowered = count > 1 or rng.random() < 0.7
    a, b = both(way), both(up, chest=(-4, 0, 0), head=(-rng.uniform(0, 15), 0, 0))
    keys = [(rng.uniform(0.3, 0.5), a), (rng.uniform(0.3, 0.5), b),
            (rng.uniform(0.3, 1.2) / count, b), (0.4, a), (0.45, {}), (0.2, {})]
    keys = keys * count if lowered else keys[:3] + [(0.6, b)]
    return _act(rng, real, keys, tempo=rng.uniform(0.75, 1.2), way=way, count=count,
                lowered=lowered)


def clap(rng, real):
    count, p = int(rng.integers(3, 9)), rng.uniform(0.34, 0.5)
    keys = [(p / 2, both('clap')), (p / 2, both('open'))] * count
    return _act(rng, real, [(0.45, both('open'))] + keys + [(0.5, {})], count=count)


def squat(rng, real):
    count, depth = pick(rng, 1, 1, 1, 2, 2, 3), rng.uniform(0.32, 0.48)
    arms, hold = pick(rng, 'front', 'guard', 'hips'), rng.uniform(0.1, 1.0) / count
    down = lean(55 * depth, 35 * depth, -60 * depth, p=(0, -depth, -0.32 * depth), **both(arms))
    keys = [(rng.uniform(0.6, 0.9), down), (hold, down), (rng.uniform(0.6, 0.9), {}), (0.12, {})]
    return _act(rng, real, keys * count, tempo=rng.uniform(0.8, 1.15), count=count, depth=depth,
                hold=hold)


def bow(rng, real):
    count, deep = pick(rng, 1, 1, 1, 2), rng.uniform(40, 90)
    arms = pick(rng, None, None, 'lap', 'hips')
    down = lean(0.4 * deep, 0.6 * deep, 0.15 * deep, p=(0, -0.02, -0.0016 * deep), **both(arms))
    keys = [(rng.uniform(0.7, 1.0), down), (rng.uniform(0.2, 1.1) / count, down),
            (rng.uniform(0.7, 1.0), {}), (0.15, {})]
    return _act(rng, real, keys * count, tempo=rng.uniform(0.8, 1.1), count=count, deep=deep)


HALF_SEATED = lean(28, 18, -25, p=(0, -0.2, -0.24), L='low', R='low')


def _seated(rng):
    low, bend = rng.uniform(0.4, 0.46), rng.uniform(0, 10)
    return lean(-4, bend, p=(0, -low, -0.4), L='lap', R='lap')


def sit(rng, real):
    seated, rises = _seated(rng), rng.random() < 0.25
    keys = [(rng.uniform(0.5, 0.7), HALF_SEATED), (rng.uniform(0.5, 0.7), seated),
            (rng.uniform(0.4, 1.4), seated)]
    keys += [(0.6, HALF_SEATED), (0.6, {}), (0.2, {})] * rises
    return _act(rng, real, keys, tempo=rng.uniform(0.8, 1.1), rises=rises)


def stand_up(rng, real):
    seated = _seated(rng)
    keys = [(0, seated), (rng.uniform(0.3, 1.0), seated), (0.6, HALF_SEATED), (0.65, {}),
            (rng.uniform(0.4, 1.2), {})]
    return keyed(real.stand(rng), keys, pace=rng.uniform(0.8, 1.1)), {}


def pick_up(rng, real):
    down = dict(p=(0, -0.36, -0.16), pelvis=(38, 0, 0), chest=(38, 12, 0), R='low', L='lap')
    up = dict(R='guard', chest=(4, 0, 0))
    keys = [(rng.uniform(0.7, 0.95), down), (rng.uniform(0.15, 0.4), down),
            (rng.uniform(0.7, 0.95), up), (rng.uniform(0.2, 0.6), up), (0.5, {})]
    return _act(rng, real, keys, tempo=rng.uniform(0.85, 1.1))


KICK_HEIGHTS = {'front': (0.55, 0.75), 'high': (0.85, 1.05), 'low': (0.2, 0.35),
                'side': (0.5, 0.75)}


def kick(rng, real):
    """With the right leg: back or knee up, out, back again."""
    kind = pick(rng, 'front', 'front', 'high', 'low', 'side', 'real')
    if kind == 'real':
        return real.whole(rng, 'kick'), dict(kind='high')
    count, shift = 1 if rng.random() < 0.6 else 2, (0.055, -0.025, 0)
    guard = both('guard') if kind != 'low' and rng.random() < 0.6 else {}
    up = rng.uniform(*KICK_HEIGHTS[kind])
    before = after = dict(guard, p=shift, rt=(0.02, 0.42, 0.14, 35), pelvis=(-4, 0, 0))
    if kind == 'low':
        before = dict(p=shift, rt=(0.02, 0.14, -0.32, 50), chest=(6, 12, 0), L='swing')
        out = dict(p=(0.05, -0.02, -0.03), rt=(0.04, up, 0.55, -8), pelvis=(-6, 8, 0),
                   chest=(0, -10, 0), R='swing')
        after = dict(p=shift, rt=(0.02, 0.1, 0.25, 10))
    elif kind == 'side':
        out = dict(guard, p=(0.1, -0.03, 0), rt=(-0.68, up, 0, 0), pelvis=(0, 0, -22),
                   chest=(0, 0, -12), head=(0, -20, 15))
    else:
        out = dict(guard, p=(0.05, -0.01, 0.02), rt=(0.03, up, 0.98 - 0.38 * up, -25),
                   pelvis=(-16, 8, 0), chest=(8 if kind == 'high' else -2, 0, 0))
    keys = [(rng.uniform(0.3, 0.45), before), (rng.uniform(0.2, 0.26), out), (0.07, out),
            (0.24, after), (rng.uniform(0.3, 0.4), guard), (0.12, guard)]
    return _act(rng, real, [(0.3, guard)] + keys * count + [(0.35, {})], kind=kind, count=count)


def punch(rng, real):
    if rng.random() < 0.12:
        return real.whole(rng, 'punch'), dict(kind='straight')
    kind = pick(rng, 'straight', 'straight', 'straight', 'hook', 'upper')
    count, fighting = int(rng.integers(1, 5)), rng.random() < 0.5
    sides = 'R' * count if rng.random() < 0.45 else ('RL' * 4)[:count]
    guard = both('guard', p=(0, -0.03, 0))
    if fighting:  # in a stance, left foot first
        guard.update(p=(0, -0.05, 0), lt=(0.02, 0, 0.16, 0), rt=(-0.02, 0, -0.16, 12),
                     chest=(6, -12, 0), head=(0, 12, 0))
    keys = []
    for side in sides:
        yaw = 30 if side == 'R' else -28
        hit = {**guard, 'chest': (8, yaw, 0), 'head': (0, -yaw * 0.7, 0),
               'pelvis': (2, yaw * 0.35, 0), side: kind}
        keys += [(rng.uniform(0.17, 0.24), hit), (0.06, hit), (rng.uniform(0.22, 0.3), guard),
                 (rng.uniform(0.05, 0.25), guard)]
    facts = dict(kind=kind, count=count, alternating='L' in sides)
    if fighting:
        pose, rest = real.stand(rng), rng.uniform(0.5, 1.0)
        return keyed(pose, [(0, guard), (0.45, guard)] + keys + [(rest, guard)]), facts
    return _act(rng, real, [(0.45, guard), (0.1, guard)] + keys + [(0.5, {})], **facts)


def throw(rng, real):
    over = rng.random() < 0.7
    a, b, c = ('cocked', 'thrown', 'after') if over else ('back', 'swing', 'front')
    back = dict(R=a, L='swing', chest=(0 if over else 12, -32, 0), head=(0, 28, 0),
                p=(0, -0.03, -0.05))
    hit = dict(R=b, chest=(12, 22, 0), head=(0, -15, 0), p=(0, -0.03, 0.05))
    after = dict(R=c, chest=(20 if over else 4, 30, 0), head=(-10, -20, 0), p=(0, -0.03, 0.06))
    keys = [(rng.uniform(0.45, 0.65), back), (rng.uniform(0.22, 0.3), hit), (0.24, after),
            (0.6, {})]
    return _act(rng, real, keys, tempo=rng.uniform(0.85, 1.05),
                kind='overhand' if over else 'underhand')


def look_around(rng, real):
    a, b = (dict(head=(rng.uniform(-5, 10), s * rng.uniform(45, 62), 0),
                 chest=(0, s * rng.uniform(5, 16), 0)) for s in (1, -1))
    keys = [(rng.uniform(0.5, 0.7), a), (rng.uniform(0.2, 0.7), a), (rng.uniform(0.7, 1.0), b),
            (rng.uniform(0.2, 0.7), b), (0.6, {})]
    return _act(rng, real, keys)


def stand(rng, real):
    kind, n = pick(rng, '', '', 'hips', 'shift'), rng.uniform(2.2, 4.2)
    arms, aside = both('hips' if kind == 'hips' else None), 0.035 if kind == 'shift' else 0.01
    keys = [(0, arms)]
    for _ in range(4):
        p = rng.normal(0, aside), -abs(rng.normal(0, 0.006)), rng.normal(0, 0.008)
        keys += [(n / 4, dict(arms, p=p, chest=rng.normal(0, 2.5, 3), head=rng.normal(0, 5, 3)))]
    return keyed(real.stand(rng), keys), dict(kind=kind)
