"""The toy dataset: over a thousand short motions with action labels and captions.

It is made from 2 MB of real clips, in four ways:

    real       clips that the DeepMimic paper imitated, put on the 22-joint body (clips.py)
    gaits      cycles of the real walks and runs along any path, forwards and backwards, from and
               to a standstill
    steps      turning, spinning and stepping aside with planted feet
    keyframed  the rest, on real standing poses; jumps fly on a parabola

`build` makes the set. Each function above it makes one clip from a random generator and the real
motion: a segment (see segments.py) and the facts for its captions. What has a side is made on the
left; the mirrored clip does it on the right. Everything follows from the clips and SEED: the same
folder gives the same numbers.
"""
from functools import partial

import numpy as np

import motion
from formats.pack import Clip
from motion import turn_about_y as turn
from toy.body import (ARM_PAIRS, ARMS, CF, CU, FPS, HF, HU, LEGS, P, PF, PLACES, TOE_Y, X, Y, Z,
                      ease, lock_feet, mirror, pitch, place, smooth, solve)
from toy.captions import captions
from toy.clips import Real, hands_to_floor
from toy.segments import both, gait, jumps, keyed, lean, overlay, steps, still, then

SEED = 7
# the joints that do not reach for the floor by themselves
OFF_FLOOR = [j for j in range(22) if j not in (7, 8, 10, 11, 18, 19, 20, 21)]


def pick(rng, *options):
    return options[rng.integers(len(options))]


def chance(rng, share):
    return rng.random() < share


# --------------------------------------------------------------------------------------------------
# On foot


def _weight(rng, n, start, stop):
    """How much of a gait is done in each of n frames.

    It begins from a standstill if `start`, and ends in one if `stop`.
    """
    x, w = np.arange(n), np.ones(n)
    if start:
        w = w * ease((x - rng.integers(2, 8)) / 13)
    if stop:
        w = w * ease((n - rng.integers(5, 14) - x) / 14)
    return w


def _pace(path):
    """Metres a second over the moving part of a path."""
    step = np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1) * FPS
    return float(np.median(step[step > 0.3 * step.max()]))


def _looking_aside():
    left, right = (dict(head=(0, 50 * s, 0), chest=(0, 8 * s, 0)) for s in (1, -1))
    return [(0, {}), (0.6, {}), (0.5, left), (0.7, left), (0.7, right), (0.6, {}), (2.5, {})]


def _held(pose):
    return [(0, pose), (5.9, pose)]


STYLES = {'hips': _held(both('hips')), 'tired': _held(lean(chest=24, head=12)),
          'proud': _held(lean(chest=-8, head=-10)), 'aside': _looking_aside()}


def walk(rng, real, back=False, bend=0, n=None, start=None, stop=None):
    """bend: radians to turn to the left, somewhere on the way; more than 4: all the way."""
    stand = real.stand(rng)
    start = chance(rng, 0.35) if start is None else start
    stop = chance(rng, 0.35) if stop is None else stop
    rate, stride = rng.uniform(0.8, 1.15), rng.uniform(0.78, 1.12)
    if back:
        rate, stride = -rng.uniform(0.75, 1.05), rng.uniform(0.55, 0.85)
    n = n or int(rng.integers(46, 76) + 12 * (start + stop) + 14 * back)
    heading = np.radians(rng.normal(0, 4)) * np.linspace(0, 1, n)
    cycle = pick(rng, *real.walks)
    if bend:
        span = min(n - 28, max(22, np.degrees(bend) / rng.uniform(45, 75) * FPS))
        if bend > 4:
            heading = bend * np.linspace(0, 1, n)
        else:
            heading = bend * ease((np.arange(n) - rng.uniform(13, n - 13 - span)) / span)
        cycle = real.walks[0] if chance(rng, 0.5) else pick(rng, *real.left)
    segment = gait(cycle, stand, _weight(rng, n, start, stop), heading, rate, stride,
                   rng.uniform(0.9, 1.2), rng.random())
    style = ''
    if not bend and not back and chance(rng, 0.3):
        style = pick(rng, *STYLES)
        segment = overlay(segment, keyed(stand, STYLES[style]), stand)
    return segment, dict(pace=_pace(segment[2]), start=start, stop=stop, style=style)


def walk_turn(rng, real):
    angle = rng.uniform(65, 150)
    segment, facts = walk(rng, real, bend=np.radians(angle), n=int(rng.integers(66, 102)))
    return segment, dict(facts, angle=angle)


def walk_circle(rng, real):
    bend, n = np.radians(rng.uniform(300, 350)), int(rng.integers(106, 120))
    return walk(rng, real, bend=bend, n=n, start=False, stop=False)


def run(rng, real):
    start = chance(rng, 0.2)
    n = int(rng.integers(64, 80) if start else rng.integers(42, 66))
    heading = np.radians(rng.normal(0, 5)) * np.linspace(0, 1, n)
    segment = gait(real.run, real.stand(rng), _weight(rng, n, start, False), heading,
                   rng.uniform(0.9, 1.05), rng.uniform(0.8, 1.02), rng.uniform(0.75, 1),
                   rng.random())
    return segment, dict(pace=_pace(segment[2]), start=start)


def march(rng, real):
    n, rate = int(rng.integers(50, 100)), rng.uniform(0.85, 1.25)
    weight = _weight(rng, n, True, True)
    segment = gait(real.walks[0], real.stand(rng), weight, 0 * weight, rate, 0.0,
                   rng.uniform(2.2, 3.2), rng.random())
    return segment, dict(pace=rate)


def _stepping(rng, real, count, start, frames, x=0.0, angle=0.0, lift=0.07):
    """Move by x to the left or turn by an angle, with small steps; then stand for a while."""
    stop = start + int(frames)
    n = max(44, stop + int(rng.integers(7, 18)))
    u = np.clip((np.arange(n) - start) / (stop - start), 0, 1)
    path = ((u * u * (3 - 2 * u) + u) / 2)[:, None] * (x, 0, angle)
    stand = real.stand(rng)
    return steps(stand, path, start, stop, count, lift), stand


def turn_in_place(rng, real):
    angle = rng.uniform(70, 125) if chance(rng, 0.65) else rng.uniform(150, 185)
    pace = rng.uniform(60, 95)
    segment, _ = _stepping(rng, real, max(1, round(angle / 68)), rng.integers(5, 14),
                           angle / pace * FPS, angle=np.radians(angle))
    return segment, dict(angle=angle, pace=pace)


def spin(rng, real):
    count, start = 1 if chance(rng, 0.65) else 2, rng.integers(4, 10)
    pace = rng.uniform(100 + 30 * count, 190)
    angle = 360 * count + rng.uniform(-10, 15)
    segment, stand = _stepping(rng, real, round(angle / rng.uniform(60, 72)), start,
                               angle / pace * FPS, angle=np.radians(angle), lift=0.05)
    arms = 'side' if chance(rng, 0.4) else ''
    if arms:
        spread = both(arms)
        keys = [(0, {}), (start / FPS + 0.4, spread), (angle / pace - 0.4, spread), (0.4, {})]
        segment = overlay(segment, keyed(stand, keys, amount=rng.uniform(0.75, 1)), stand)
    return segment, dict(count=count, arms=arms)


def sidestep(rng, real):
    count = int(rng.integers(1, 5))
    segment, _ = _stepping(rng, real, count, rng.integers(6, 14), count * rng.uniform(13, 19),
                           x=count * rng.uniform(0.28, 0.42))
    return segment, dict(count=count)


def crawl(rng, real):
    """On hands and knees, or the real one, flat on the floor.

    Opposite hand and knee move together while the others stand.
    """
    if chance(rng, 0.2):
        return whole(rng, real, 'crawl')[0], dict(low=True)
    n, period = int(rng.integers(52, 92)), rng.uniform(1.0, 1.5)
    stride = rng.uniform(0.34, 0.5)
    x = np.arange(n) / FPS
    phase = x / period + rng.random()
    v, contact = np.repeat(real.stand(rng)[None], n, axis=0), np.ones((n, 2), bool)

    def limb(offset):
        """Place along the path in metres, height from 0 to 1, and whether the limb stands."""
        u = (phase + offset) % 1
        swing = np.clip((u - 0.6) / 0.4, 0, 1)
        along = stride * np.where(u < 0.6, 0.3 - u, -0.3 + 0.6 * ease(swing))
        return along, np.sin(np.pi * swing) ** 2, u < 0.6

    sway, chest, head = np.sin(2 * np.pi * phase), rng.uniform(74, 82), rng.uniform(35, 60)
    bob = 0.445 + 0.008 * np.cos(4 * np.pi * phase)
    v[:, P] = np.stack([0.015 * sway, bob, 0 * x], axis=1)
    for first, degrees, yaw in ((PF, 84, 5), (CF, chest, -4), (HF, head, -2)):
        for i, axis in ((first, Z), (first + 1, Y)):
            v[:, i] = turn(np.radians(yaw) * sway, pitch(degrees, np.tile(axis, (n, 1))))
    heights = []
    for side, (toe, f, u, knee) in enumerate(LEGS):
        out, (upper, fore) = 1 - 2 * side, ARM_PAIRS[side]
        along, up, contact[:, side] = limb(0.5 * side)
        v[:, toe] = np.stack([0 * x + 0.1 * out, TOE_Y + 0.05 * up, along - 0.6], axis=1)
        v[:, f], v[:, u], v[:, knee] = (0, -0.6, -1), (0, -1, 0.6), (0.05 * out, 0, 1)
        along, up, _ = limb(0.55 - 0.5 * side)
        reach = np.clip((along + 0.03) / 0.53, -0.9, 0.9)
        v[:, fore] = np.stack([0 * x + 0.08 * out, reach, np.sqrt(1 - reach**2)], axis=1)
        v[:, upper] = v[:, fore] + (0.1 * out, 0, 0)
        heights.append(0.045 + 0.07 * up)
    turning = np.radians(rng.normal(0, 4)) * x / x[-1]
    path = np.stack([0 * x, stride / period * x, turning], axis=1)
    return (hands_to_floor(v, contact, heights), contact, path), dict(pace=stride / period)


# --------------------------------------------------------------------------------------------------
# Jumps


def jump(rng, real):
    kind = pick(rng, 'up', 'up', 'up', 'many up', 'forward', 'forward', 'many forward', 'real',
                'back', 'side', 'turn')
    if kind == 'real':
        return whole(rng, real, 'jump')[0], dict(kind='forward')
    many, kind = 'many' in kind, kind.removeprefix('many ')
    count = int(rng.integers(2, 4)) if many else 1
    move = {'up': (0, 0, 0), 'forward': (0, rng.uniform(0.4, 1.0) / (1 + 0.4 * many), 0),
            'back': (0, -rng.uniform(0.3, 0.5), 0), 'side': (rng.uniform(0.3, 0.6), 0, 0),
            'turn': (0, 0, np.radians(rng.choice([90, 180])))}[kind]
    heights = rng.uniform(0.17, 0.42 if kind == 'up' and not many else 0.3, count)
    flights = [(height, *move) for height in heights]
    segment = jumps(real.stand(rng), flights, rng.uniform(0.2, 0.34),
                    'up' if kind == 'up' and chance(rng, 0.4) else 'swing',
                    tuck=rng.uniform(0, 0.14), gap=rng.choice([0, 0.15]))
    return segment, dict(kind=kind, count=count, high=heights.max(), angle=np.degrees(move[2]))


def hop(rng, real):
    count = int(rng.integers(2, 5))
    ahead = rng.uniform(0.15, 0.35) if chance(rng, 0.5) else 0
    flights = [(rng.uniform(0.07, 0.12), 0, ahead, 0) for _ in range(count)]
    arms = 'hips' if chance(rng, 0.3) else 'swing'
    segment = jumps(real.stand(rng), flights, rng.uniform(0.1, 0.15), arms, hop=True)
    return segment, dict(count=count, ahead=ahead > 0)


def jumping_jacks(rng, real):
    count, p, wide = int(rng.integers(2, 5)), rng.uniform(0.8, 1.05), rng.uniform(0.18, 0.28)
    top = 'up' if chance(rng, 0.7) else 'v'
    half = both('side', p=(0, 0.045, 0), lt=(wide / 2, 0.07, 0, 25), rt=(-wide / 2, 0.07, 0, 25))
    down, low = (both(top, p=(0, y, 0), lt=(wide, 0, 0, 0), rt=(-wide, 0, 0, 0))
                 for y in (-0.05, -0.07))
    keys = [(0.24 * p, half), (0.2 * p, down), (0.08 * p, low), (0.24 * p, half),
            (0.18 * p, dict(p=(0, -0.03, 0))), (0.08 * p, dict(p=(0, -0.06, 0)))]
    return _act(rng, real, keys * count + [(0.25, {})], pace=1 / p, count=count)


# --------------------------------------------------------------------------------------------------
# Keyframed: rows of (seconds since the last, changes of `pose`)


def _act(rng, real, keys, settle=True, tempo=1.0, **facts):
    """Stand for a moment, go through the keys at a tempo, and stay in the last if `settle`."""
    before, after = rng.uniform(0.05, 0.35), rng.uniform(0.05, 0.35)
    keys = [(0, {}), (before, {})] + keys + [(after, keys[-1][1])] * settle
    return keyed(real.stand(rng), keys, pace=tempo), facts


def wave(rng, real, hands='L', lowered=None, most=6):
    count, p = int(rng.integers(3, most + 1)), rng.uniform(0.36, 0.56)
    lowered = chance(rng, 0.75) if lowered is None else lowered
    high, head = 'high ' if chance(rng, 0.4) else '', (0, 0, rng.uniform(-8, 8))
    into, out = ({'head': head, **dict.fromkeys(hands, high + name)} for name in ('in', 'out'))
    keys = [(rng.uniform(0.55, 0.8), into)]
    keys += [(p / 2, out), (p / 2, into)] * (count - 1) + [(p / 2, out)]
    keys += [(rng.uniform(0.55, 0.8), {})] * lowered
    return _act(rng, real, keys, settle=lowered, count=count, high=high, pace=1 / p,
                lowered=lowered)


def raise_arms(rng, real):
    way, up = pick(rng, 'front', 'side'), pick(rng, 'up', 'up', 'v')
    count = pick(rng, 1, 1, 1, 2)
    lowered = count > 1 or chance(rng, 0.7)
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
    seated, rises = _seated(rng), chance(rng, 0.25)
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
        return whole(rng, real, 'kick')[0], dict(kind='high')
    count, shift = 1 if chance(rng, 0.6) else 2, (0.055, -0.025, 0)
    guard = both('guard') if kind != 'low' and chance(rng, 0.6) else {}
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
    if chance(rng, 0.12):
        return whole(rng, real, 'punch')[0], dict(kind='straight')
    kind = pick(rng, 'straight', 'straight', 'straight', 'hook', 'upper')
    count, fighting = int(rng.integers(1, 5)), chance(rng, 0.5)
    sides = 'R' * count if chance(rng, 0.45) else ('RL' * 4)[:count]
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
    over = chance(rng, 0.7)
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


# --------------------------------------------------------------------------------------------------
# Real clips as they are, and one thing after another


def whole(rng, real, *names):
    """A real clip, with its own pace, a pause before and after, and a slight bend of its path."""
    name = pick(rng, *names)
    v, contact = real.clips[name]
    seconds, pause = len(v) / 60 / rng.uniform(0.75, 1.05), rng.uniform(0.15, 0.5, 2)
    pause *= max(1, (2.3 - seconds) / pause.sum())
    x = np.arange(min(121, int((seconds + pause.sum()) * FPS))) / FPS
    moving = (x > pause[0]) & (x < x[-1] - pause[1])
    at = np.cumsum(smooth(moving.astype(float), 2.0) + 1e-3)
    at = (at - at[0]) / (at[-1] - at[0]) * (len(v) - 1)
    i = np.minimum(at.astype(int), len(v) - 2)
    v = v[i] + (at - i)[:, None, None] * (v[i + 1] - v[i])
    contact = contact[np.rint(at).astype(int)]
    bend = np.radians(rng.uniform(-25, 25)) * np.linspace(0, 1, len(v))
    root = v[:, P] * (X + Z)
    bent = turn(bend[1:], np.diff(root, axis=0))
    moved = np.cumsum(np.concatenate([root[:1], bent]), axis=0)
    v[:, PLACES] -= root[:, None]
    path = np.stack([moved[:, 0], moved[:, 2], bend], axis=1)
    return (v, contact, path), dict(name=name)


def _arrive(rng, real, n):
    return walk(rng, real, n=n, start=chance(rng, 0.5), stop=True)[0]


def walk_jump(rng, real):
    first = _arrive(rng, real, int(rng.integers(44, 60)))
    ahead = rng.uniform(0.3, 0.8) if chance(rng, 0.5) else 0
    flight = rng.uniform(0.18, 0.32), 0, ahead, 0
    segment = then(first, jumps(first[0][-1], [flight], rng.uniform(0.2, 0.3)))
    return segment, dict(kind='forward' if ahead else 'up')


def walk_wave(rng, real):
    gesture = wave(rng, real, lowered=True, most=3)[0]
    if chance(rng, 0.5):
        n = int(rng.integers(70, 110))
        first = walk(rng, real, n=n, start=False, stop=False)[0]
        return overlay(first, gesture, gesture[0][0]), dict(together=True)
    first = _arrive(rng, real, int(rng.integers(38, 46)))
    second = still(first[0][-1], len(gesture[0]) / FPS)
    return then(first, overlay(second, gesture, gesture[0][0])), dict(together=False)


# label: (how a clip is made, how many; as many mirrored ones come on top). LEFT is right in the
# mirror.
ACTIONS = {
    'walk': (walk, 36), 'walk backward': (partial(walk, back=True), 30),
    'walk and turn LEFT': (walk_turn, 30), 'walk in a circle': (walk_circle, 6),
    'turn LEFT': (turn_in_place, 32), 'spin': (spin, 32), 'step LEFT': (sidestep, 8),
    'run': (run, 36), 'march': (march, 7), 'crawl': (crawl, 30), 'jump': (jump, 42),
    'hop': (hop, 7), 'jumping jacks': (jumping_jacks, 30), 'wave LEFT hand': (wave, 32),
    'wave both hands': (partial(wave, hands='LR'), 7), 'raise both arms': (raise_arms, 30),
    'clap': (clap, 7), 'squat': (squat, 30), 'bow': (bow, 30), 'sit': (sit, 32),
    'stand up': (stand_up, 7), 'pick up': (pick_up, 7), 'kick': (kick, 34), 'punch': (punch, 34),
    'throw': (throw, 7), 'look around': (look_around, 6), 'stand': (stand, 30),
    'walk and jump': (walk_jump, 7), 'walk and wave': (walk_wave, 7)}
WHOLE = {'dance': ('dance_a', 'dance_b', 'spin'), 'get up': ('getup_facedown', 'getup_faceup'),
         'cartwheel': ('cartwheel',), 'backflip': ('backflip',), 'roll': ('roll',),
         'spin kick': ('spinkick',)}
for label, names in WHOLE.items():
    ACTIONS[label] = lambda *a, names=names: whole(*a, *names), 8


# --------------------------------------------------------------------------------------------------
# The dataset


def alive(rng, segment):
    """Add breath, sway and a bearing of one's own, so that no two clips share a pose.

    Head and chest also turn before the body does.
    """
    v, contact, path = segment
    x, size = np.arange(len(v))[:, None, None] / FPS, np.zeros((19, 1))
    size[[P, CF, CU, HF, HU, *ARMS], 0] = [0.003] + [0.018] * 4 + [0.03] * 4
    for _ in range(3):
        direction, rate = rng.normal(0, 1, (19, 3)), rng.uniform(0.12, 0.5)
        wave = np.sin(2 * np.pi * rate * x + rng.uniform(0, 6.28, (19, 1)))
        v = v + size * direction * wave
    v = v + 1.5 * size * rng.normal(0, 1, (19, 3)) * (np.arange(19) != P)[:, None]
    after = path[np.minimum(np.arange(len(path)) + 6, len(path) - 1), 2]
    lead = smooth(np.clip(after - path[:, 2], -0.6, 0.6), 2.0)[:, None]
    for pair, share in (([HF, HU], 0.8), ([CF, CU], 0.3)):
        v[:, pair] = turn(share * lead, v[:, pair])
    return v, contact, path


def joints_of(segment, mirrored=False):
    """Segment -> joints (T, 22, 3) in metres, on the floor, at the origin, facing +Z."""
    v, contact, path = segment
    v = place(v, path)
    if mirrored:
        v, contact = mirror(v), contact[:, ::-1]
    v = lock_feet(v, contact)
    joints = solve(v, contact)
    under = np.maximum(0, 0.02 - joints[:, OFF_FLOOR, 1].min(1))
    if under.any():  # our back is longer than the humanoid's, which shows in a roll
        v[:, P, 1] += 1.3 * smooth(under, 1.5)
        joints = solve(v, contact)
    return motion.canonical_joints(joints, motion.T2M)


def build(clips_dir):
    """Make the dataset: list[Clip], the same each time.

    clips_dir is the folder pybullet_data/data/motions of the wheel pybullet 3.2.7. Each clip is
    followed by its mirror image (id M...), in the same split. FileNotFoundError if a file is
    missing.
    """
    real, clips = Real(clips_dir), []
    for label, (make, count) in ACTIONS.items():
        first = len(clips) // 2
        order = np.random.default_rng([SEED, first]).permutation(count)
        test, val = max(1, round(0.12 * count)), max(1, round(0.08 * count))
        for number, i in enumerate(order, first):
            rng = np.random.default_rng([SEED, number, 1])
            segment, facts = make(rng, real)
            segment = alive(rng, segment)
            split = 'test' if i < test else 'val' if i < test + val else 'train'
            for mirrored in (False, True):
                rng = np.random.default_rng([SEED, number, 2, mirrored])
                texts = captions(label, facts, mirrored, rng)
                name = label.replace('LEFT', 'right' if mirrored else 'left')
                joints = joints_of(segment, mirrored)
                clips.append(Clip(f'{"M" * mirrored}{number:06d}', texts, split, name,
                                  joints=joints))
    return clips
