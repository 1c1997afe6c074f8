"""Kicks, punches and guards. acting.py has the rules; single kicks and punches are of the right."""
from toy.acting import perform
from toy.segments import both, pick

KICK_HEIGHTS = {'front': (0.55, 0.75), 'high': (0.85, 1.05), 'low': (0.2, 0.35),
                'side': (0.5, 0.75)}


def kick(rng, real, brief=False):
    """With the right leg: back or knee up, out, back again."""
    kind = pick(rng, 'front', 'front', 'high', 'low', 'side', 'side', 'high', 'low')
    if kind == 'high' and not brief and rng.random() < 0.2:
        return real.whole(rng, 'kick'), dict(kind='high', count=1, pace=1.0)
    shift = (0.055, -0.025, 0)
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
    keys = [(0.34, before), (0.23, out), (0.07, out), (0.24, after), (0.32, guard), (0.06, guard)]
    ready, leave = ([(0.25, guard)], [(0.3, {})]) if guard else ([], [])
    return perform(rng, real, keys, ready, leave, fast=1.35, brief=brief, kind=kind)


def punch(rng, real, brief=False):
    if rng.random() < 0.06 and not brief:
        return real.whole(rng, 'punch'), dict(kind='straight', count=1, pace=1.0)
    kind = pick(rng, 'straight', 'straight', 'straight', 'hook', 'hook', 'upper', 'upper')
    turns, fighting = rng.random() < 0.5, not brief and rng.random() < 0.4
    guard = both('guard', p=(0, -0.03, 0))
    if fighting:  # in a stance, left foot first
        guard.update(p=(0, -0.05, 0.11), lt=(0.02, 0, 0.26, 0), rt=(0, 0, 0, 14),
                     chest=(6, -12, 0), head=(0, 12, 0))

    def once(number):
        side = 'RL'[number % 2 * turns]
        yaw = 30 if side == 'R' else -28
        hit = {**guard, 'chest': (8, yaw, 0), 'head': (0, -yaw * 0.7, 0),
               'pelvis': (2, yaw * 0.35, 0), side: kind}
        return [(0.24, hit), (0.08, hit), (0.3, guard), (0.1, guard)]

    step = dict(guard, p=(-0.02, -0.03, 0.05), lt=(0.01, 0.06, 0.13, 8), rt=(0, 0, 0, 0))
    into = [(0.3, step), (0.2, guard)] if fighting else [(0.42, guard)]
    out = [(0.2, step), (0.3, {})] if fighting else [(0.42, {})]
    return perform(rng, real, once, into, out, fast=1.3, brief=brief, kind=kind,
                   fewest=2 if turns else 1, alternating=turns)


def block(rng, real, brief=False):
    """Take a boxer's guard with both fists up, and stay in it, or shield the face."""
    kind = pick(rng, 'guard', 'guard', 'shield')
    bend = rng.uniform(4, 12)
    pose = both('guard' if kind == 'guard' else 'face', p=(0, -0.05, 0), chest=(bend, -10, 0),
                head=(4 if kind == 'guard' else 14, 8, 0))
    low = dict(pose, p=(0, -0.08, 0))
    hold = [(0.25, low), (0.25, pose)] * (1 if brief else int(rng.integers(1, 5)))
    half = both('half', p=(0, -0.03, 0))
    return perform(rng, real, [(0.25, half), (0.25, pose), *hold, (0.25, half), (0.25, {})], most=2,
                   fast=1.4, brief=brief, holds=pose, kind=kind)


FIGHTS = {'kick': (kick, 25), 'punch': (punch, 25), 'block': (block, 14)}
