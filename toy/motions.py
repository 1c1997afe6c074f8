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
from toy.body import (ARM_PAIRS, ARMS, CF, CU, FPS, HF, HU, LEGS, P, PF, TOE_Y, Y, Z,
                      ease, lock_feet, mirror, pitch, place, smooth, solve)
from toy.captions import captions
from toy.clips import Real, hands_to_floor
from toy.gestures import GESTURES, wave
from toy.segments import both, gait, jumps, keyed, lean, overlay, pick, steps, still, then

SEED = 7
# the joints that do not reach for the floor by themselves
OFF_FLOOR = [j for j in range(22) if j not in (7, 8, 10, 11, 18, 19, 20, 21)]


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


STYLES = {style: [(0, pose), (5.9, pose)] for style, pose in {
    'hips': both('hips'), 'tired': lean(chest=24, head=12),
    'proud': lean(chest=-8, head=-10)}.items()}
ASIDE = [dict(head=(0, 50 * s, 0), chest=(0, 8 * s, 0)) for s in (1, -1)]
STYLES['aside'] = list(zip((0, 0.6, 0.5, 0.7, 0.7, 0.6, 2.5),
                           ({}, {}, ASIDE[0], *ASIDE, {}, {})))


def walk(rng, real, back=False, bend=0, n=None, start=None, stop=None):
    """Walk for n frames; with a range of degrees to turn left by, `bend`, n is a range as well."""
    if bend:
        bend, n = np.radians(rng.uniform(*bend)), int(rng.integers(*n))
    stand = real.stand(rng)
    start = rng.random() < 0.35 if start is None else start
    stop = rng.random() < 0.35 if stop is None else stop
    rate, stride = rng.uniform(0.8, 1.15), rng.uniform(0.78, 1.12)
    if back:
        rate, stride = -rng.uniform(0.75, 1.05), rng.uniform(0.55, 0.85)
    n = n or int(rng.integers(46, 76) + 12 * (start + stop) + 14 * back)
    heading = np.radians(rng.normal(0, 4)) * np.linspace(0, 1, n)
    cycle = pick(rng, *real.walks)
    if bend:
        span = min(n - 28, max(22, np.degrees(bend) / rng.uniform(45, 75) * FPS))
        if bend > 4:  # nearly a circle: all the way; otherwise, somewhere on the way
            heading = bend * np.linspace(0, 1, n)
        else:
            heading = bend * ease((np.arange(n) - rng.uniform(13, n - 13 - span)) / span)
        cycle = real.walks[0] if rng.random() < 0.5 else pick(rng, *real.left)
    segment = gait(cycle, stand, _weight(rng, n, start, stop), heading, rate, stride,
                   rng.uniform(0.9, 1.2), rng.random())
    style = ''
    if not bend and not back and rng.random() < 0.3:
        style = pick(rng, *STYLES)
        segment = overlay(segment, keyed(stand, STYLES[style]), stand)
    return segment, dict(pace=_pace(segment[2]), start=start, stop=stop, style=style,
                         angle=np.degrees(bend))


def run(rng, real):
    start = rng.random() < 0.2
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
    angle = rng.uniform(70, 125) if rng.random() < 0.65 else rng.uniform(150, 185)
    pace = rng.uniform(60, 95)
    segment, _ = _stepping(rng, real, max(1, round(angle / 68)), rng.integers(5, 14),
                           angle / pace * FPS, angle=np.radians(angle))
    return segment, dict(angle=angle, pace=pace)


def spin(rng, real):
    count, start = 1 if rng.random() < 0.65 else 2, rng.integers(4, 10)
    pace = rng.uniform(100 + 30 * count, 190)
    angle = 360 * count + rng.uniform(-10, 15)
    segment, stand = _stepping(rng, real, round(angle / rng.uniform(60, 72)), start,
                               angle / pace * FPS, angle=np.radians(angle), lift=0.05)
    arms = 'side' if rng.random() < 0.4 else ''
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
    if rng.random() < 0.2:
        return real.whole(rng, 'crawl'), dict(low=True)
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


def jump(rng, real):
    kind = pick(rng, 'up', 'up', 'up', 'many up', 'forward', 'forward', 'many forward', 'real',
                'back', 'side', 'turn')
    if kind == 'real':
        return real.whole(rng, 'jump'), dict(kind='forward')
    many, kind = 'many' in kind, kind.removeprefix('many ')
    count = int(rng.integers(2, 4)) if many else 1
    move = {'up': (0, 0, 0), 'forward': (0, rng.uniform(0.4, 1.0) / (1 + 0.4 * many), 0),
            'back': (0, -rng.uniform(0.3, 0.5), 0), 'side': (rng.uniform(0.3, 0.6), 0, 0),
            'turn': (0, 0, np.radians(rng.choice([90, 180])))}[kind]
    heights = rng.uniform(0.17, 0.42 if kind == 'up' and not many else 0.3, count)
    flights = [(height, *move) for height in heights]
    segment = jumps(real.stand(rng), flights, rng.uniform(0.2, 0.34),
                    'up' if kind == 'up' and rng.random() < 0.4 else 'swing',
                    tuck=rng.uniform(0, 0.14), gap=rng.choice([0, 0.15]))
    return segment, dict(kind=kind, count=count, high=heights.max(), angle=np.degrees(move[2]))


def hop(rng, real):
    count = int(rng.integers(2, 5))
    ahead = rng.uniform(0.15, 0.35) if rng.random() < 0.5 else 0
    flights = [(rng.uniform(0.07, 0.12), 0, ahead, 0) for _ in range(count)]
    arms = 'hips' if rng.random() < 0.3 else 'swing'
    segment = jumps(real.stand(rng), flights, rng.uniform(0.1, 0.15), arms, hop=True)
    return segment, dict(count=count, ahead=ahead > 0)


# --------------------------------------------------------------------------------------------------
# Real clips as they are, and one thing after another


def whole(rng, real, clips):
    name = pick(rng, *clips.split())
    return real.whole(rng, name), dict(name=name)


def _arrive(rng, real, n):
    return walk(rng, real, n=n, start=rng.random() < 0.5, stop=True)[0]


def walk_jump(rng, real):
    first = _arrive(rng, real, int(rng.integers(44, 60)))
    ahead = rng.uniform(0.3, 0.8) if rng.random() < 0.5 else 0
    flight = rng.uniform(0.18, 0.32), 0, ahead, 0
    segment = then(first, jumps(first[0][-1], [flight], rng.uniform(0.2, 0.3)))
    return segment, dict(kind='forward' if ahead else 'up')


def walk_wave(rng, real):
    gesture = wave(rng, real, lowered=True, most=3)[0]
    if rng.random() < 0.5:
        n = int(rng.integers(70, 110))
        first = walk(rng, real, n=n, start=False, stop=False)[0]
        return overlay(first, gesture, gesture[0][0]), dict(together=True)
    first = _arrive(rng, real, int(rng.integers(38, 46)))
    second = still(first[0][-1], len(gesture[0]) / FPS)
    return then(first, overlay(second, gesture, gesture[0][0])), dict(together=False)


# label: (how a clip is made, how many besides their mirror images, where LEFT is right)
ACTIONS = {
    'walk': (walk, 36), 'walk backward': (partial(walk, back=True), 30),
    'walk and turn LEFT': (partial(walk, bend=(65, 150), n=(66, 102)), 30),
    'walk in a circle': (partial(walk, bend=(300, 350), n=(106, 120), start=False, stop=False), 6),
    'turn LEFT': (turn_in_place, 32), 'spin': (spin, 32), 'step LEFT': (sidestep, 8),
    'run': (run, 36), 'march': (march, 7), 'crawl': (crawl, 30), 'jump': (jump, 42),
    'hop': (hop, 7),
    'walk and jump': (walk_jump, 7), 'walk and wave': (walk_wave, 7)}
for label, clips in {'dance': 'dance_a dance_b spin', 'get up': 'getup_facedown getup_faceup',
                     'cartwheel': 'cartwheel', 'backflip': 'backflip', 'roll': 'roll',
                     'spin kick': 'spinkick'}.items():
    ACTIONS[label] = partial(whole, clips=clips), 8
ACTIONS |= GESTURES  # what is done with the arms, or with planted feet


def alive(rng, segment):
    """Add breath, sway and a bearing of one's own, so that no two clips share a pose.

    Head and chest also turn before the body does.
    """
    v, contact, path = segment
    x, size = np.arange(len(v))[:, None, None] / FPS, np.zeros((19, 1))
    size[[P, CF, CU, HF, HU, *ARMS], 0] = [0.003] + [0.018] * 4 + [0.03] * 4
    for _ in range(3):
        direction, rate = rng.normal(0, 1, (19, 3)), rng.uniform(0.12, 0.5)
        swing = np.sin(2 * np.pi * rate * x + rng.uniform(0, 6.28, (19, 1)))
        v = v + size * direction * swing
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
