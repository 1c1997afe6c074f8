"""The toy dataset: thousands of short motions with action labels and captions.

It is made from 2 MB of real clips, in five ways:

    real       clips that the DeepMimic paper imitated, put on the 22-joint body (clips.py)
    gaits      cycles of the real walks and runs along any path (locomotion.py)
    steps      counted steps, turns, skips and gallops with planted feet (locomotion.py)
    keyframed  the rest, on real standing poses; jumps fly on a parabola (here and gestures.py)
    combined   two or three of them, one after another or at once (sequences.py)

ACTIONS is the table of actions and `build` makes the set. Each function in the table makes one clip
from a random generator and the real motion: a segment (see segments.py) and the facts for its
captions. What has a side is made on the left; the mirrored clip does it on the right. Everything
follows from the clips and SEED: the same folder gives the same numbers.
"""
from functools import partial

import numpy as np

import motion
from formats.pack import Clip
from motion import turn_about_y as turn
from toy.body import (ARM_PAIRS, ARMS, CF, CU, FPS, HF, HU, LEGS, P, PF, TOE_Y, Y, Z, ease,
                      lock_feet, pitch, place, smooth, solve)
from toy.captions import captions
from toy.clips import Real, hands_to_floor
from toy.gestures import GESTURES, OVERLAYS
from toy.locomotion import (TIMES, gallop, limp, on_the_spot, run, sidestep, size_of, skip, sneak,
                            spin, step, stumble, tempo_of, tiptoe, turn_in_place, walk, walk_bend)
from toy.segments import both, jumps, keyed, pick
from toy.sequences import combinations

SEED = 7
# the joints that do not reach for the floor by themselves
OFF_FLOOR = [j for j in range(22) if j not in (7, 8, 10, 11, 18, 19, 20, 21)]


# --------------------------------------------------------------------------------------------------
# With the whole body


def crawl(rng, real):
    """On hands and knees, or the real one, flat on the floor.

    Opposite hand and knee move together while the others stand.
    """
    if rng.random() < 0.2:
        tempo, pace = tempo_of(rng, (0.55, 0.65), (0.85, 1.0), (1.25, 1.4))
        return real.whole(rng, 'crawl', pace), dict(low=True, tempo=tempo)
    tempo, period = tempo_of(rng, (1.9, 2.2), (1.15, 1.4), (0.78, 0.9))
    n = int(rng.integers(52, 72) + 22 * (tempo == 'slow'))
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
    return (hands_to_floor(v, contact, heights), contact, path), dict(tempo=tempo)


HEIGHTS = (0.12, 0.15), (0.2, 0.27), (0.37, 0.46)  # low, middling, high


def jump(rng, real, kind='up'):
    """Jump up, forward, back or to the left, or turn in the air: once or several times."""
    count = pick(rng, *TIMES)
    size, height = size_of(rng, *HEIGHTS, often=0.5 if kind == 'up' else 0.0)
    far, metres = size_of(rng, (0.2, 0.3), (0.4, 0.6), (0.75, 1.0), often=0.5)
    if kind in ('back', 'side'):
        metres *= 0.6
    if kind == 'turn':
        count = pick(rng, 1, 1, 1, 1, 2, 3)
    if kind == 'long':  # one leap with both feet, as far as it goes
        count, height, metres, far = 1, rng.uniform(0.26, 0.36), rng.uniform(1.3, 1.8), ''
    if count > 3:
        height = min(height, 0.24)
        size = '' if size == 'big' else size
    angle = np.radians(pick(rng, 90, 180)) if kind == 'turn' else 0
    move = {'up': (0, 0, 0), 'forward': (0, metres, 0), 'long': (0, metres, 0),
            'back': (0, -metres, 0), 'side': (metres, 0, 0), 'turn': (0, 0, angle)}[kind]
    tempo, gap = tempo_of(rng, (0.4, 0.6), (0.05, 0.15), (0, 0)) if count > 1 else ('', 0)
    if tempo == 'slow' and count > 3:
        tempo, gap = 'even', 0.1
    flights = [(height * rng.uniform(0.93, 1.07), *move) for _ in range(count)]
    crouch = rng.uniform(0.12, 0.18) if size == 'small' else rng.uniform(0.2, 0.3)
    up = kind == 'up' and size != 'small' and count < 3 and rng.random() < 0.4
    segment = jumps(real.stand(rng), flights, crouch, 'up' if up else 'swing',
                    tuck=rng.uniform(0, 0.12) if size == 'big' else rng.uniform(0, 0.03), gap=gap)
    return segment, dict(kind=kind, count=count, tempo=tempo, high=size == 'big',
                         low=size == 'small', size=far if kind not in ('up', 'turn') else '',
                         angle=np.degrees(angle))


def real_jump(rng, real):
    return (real.whole(rng, 'jump') if rng.random() < 0.4 else jump(rng, real, 'long')[0]), {}


def hop(rng, real, ahead=False):
    """Hop on the right leg, in place or forward."""
    count = pick(rng, 1, 2, 2, 3, 3, 4, 5, 6)
    tempo, gap = tempo_of(rng, (0.3, 0.45), (0.03, 0.1), (0, 0)) if count > 1 else ('', 0)
    if tempo == 'slow' and count > 4:
        tempo, gap = 'even', 0.05
    size, metres = size_of(rng, (0.08, 0.12), (0.2, 0.3), (0.4, 0.5))
    flights = [(rng.uniform(0.07, 0.12), 0, metres * ahead, 0) for _ in range(count)]
    arms = 'hips' if rng.random() < 0.3 else 'swing'
    segment = jumps(real.stand(rng), flights, rng.uniform(0.1, 0.15), arms, hop=True, gap=gap)
    return segment, dict(count=count, ahead=ahead, tempo=tempo, size=size * ahead)


def kneel(rng, real, rises=False):
    """Down on the right knee, or on both; and up again if it `rises`."""
    two = rng.random() < 0.5
    tempo, pace = tempo_of(rng, (0.55, 0.68), (0.95, 1.1), (1.35, 1.5))
    arms = pick(rng, {}, both('lap')) if two else pick(rng, {}, dict(L='lap'), both('lap'))
    back = dict(p=(0.03, -0.1, -0.12), rt=(0, 0.03, -0.34, 45), chest=(10, 0, 0))
    one = dict(arms, p=(0.02, -0.44, -0.16), pelvis=(4, 0, 0), rt=(0, 0, -0.62, 92))
    low = dict(arms, p=(0, -0.46, -0.18), lt=(0, 0.0, -0.64, 108), rt=(0, 0, -0.64, 108))
    half = dict(arms, p=(-0.02, -0.43, -0.16), lt=(0, 0.07, -0.3, 70), rt=(0, 0, -0.63, 100))
    down = [(0.4, back), (0.45, one)] + [(0.35, half), (0.35, low)] * two
    end = low if two else one
    rest = rng.uniform(0.3, 0.8) if rises else rng.uniform(0.6, 1.5)
    up = [(0.35, half), (0.35, one)] * two + [(0.45, back), (0.4, {}), (0.2, {})]
    keys = [(0, {}), (rng.uniform(0.1, 0.3), {})] + down + [(rest * pace, end)] + up * rises
    return keyed(real.stand(rng), keys, pace=pace), dict(knees=2 if two else 1, tempo=tempo)


def whole(rng, real, clips, back=False, steady=False):
    """A real clip as it is; slower or faster unless `steady`, and from its end if `back`."""
    name = pick(rng, *clips.split())
    tempo, pace = tempo_of(rng, (0.55, 0.68), (0.88, 1.02), (1.25, 1.4))
    if steady:  # who flies through the air falls at one pace
        tempo, pace = '', rng.uniform(0.9, 1.05)
    return real.whole(rng, name, pace, back), dict(name=name, tempo=tempo)


# label: (how a clip is made, how many besides their mirror images, where LEFT is right)
AROUND = dict(bend=(300, 350), frames=(106, 119))
ACTIONS = {
    # on foot, by real cycles
    'walk': (walk, 88), 'walk backward': (partial(walk, back=True), 40),
    'walk and turn LEFT': (partial(walk_bend, bend=(60, 125), frames=(66, 100)), 36),
    'walk and turn around': (partial(walk_bend, bend=(168, 190), frames=(84, 112)), 14),
    'walk in a circle': (partial(walk_bend, **AROUND), 14),
    'run': (run, 34), 'jog': (partial(run, jog=True), 24),
    'jog in place': (partial(on_the_spot, running=True), 20), 'march': (on_the_spot, 30),
    'march forward': (partial(on_the_spot, stride=0.55), 14),
    'tiptoe': (tiptoe, 20), 'sneak': (sneak, 14), 'limp': (limp, 22), 'stumble': (stumble, 14),
    # steps, turns and springs
    'step forward': (step, 34), 'step backward': (partial(step, back=True), 26),
    'step LEFT': (sidestep, 34), 'turn LEFT': (turn_in_place, 42),
    'turn around': (partial(turn_in_place, angles=(180,)), 24), 'spin': (spin, 34),
    'skip': (skip, 20), 'side gallop LEFT': (gallop, 20),
    # in the air
    'jump': (jump, 56), 'jump forward': (partial(jump, kind='forward'), 34),
    'jump backward': (partial(jump, kind='back'), 22),
    'jump LEFT': (partial(jump, kind='side'), 24),
    'jump and turn': (partial(jump, kind='turn'), 16), 'long jump': (real_jump, 12),
    'hop': (hop, 36), 'hop forward': (partial(hop, ahead=True), 26),
    # on the floor, and real clips
    'crawl': (crawl, 30), 'kneel': (kneel, 24),
    'kneel and stand up': (partial(kneel, rises=True), 18),
    'get up': (partial(whole, clips='getup_facedown getup_faceup'), 18),
    'lie down': (partial(whole, clips='getup_faceup getup_faceup getup_facedown', back=True), 20),
    'dance': (partial(whole, clips='dance_a dance_b spin'), 16),
    'cartwheel': (partial(whole, clips='cartwheel', steady=True), 9),
    'backflip': (partial(whole, clips='backflip', steady=True), 9),
    'roll': (partial(whole, clips='roll', steady=True), 9),
    'spin kick': (partial(whole, clips='spinkick', steady=True), 8)}
ACTIONS |= GESTURES  # what is done with the arms, or with planted feet
# what a VAE learns last, as it is unlike the rest or small: a larger set has so many times more
HARD = {'cartwheel': 4, 'backflip': 4, 'nod': 2, 'shake head': 2, 'heel kicks': 2, 'clap': 2,
        'lunge': 2, 'look around': 2}


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


def joints_of(segment):
    """Segment -> joints (T, 22, 3) in metres, on the floor, at the origin, facing +Z."""
    v, contact, path = segment
    v = lock_feet(place(v, path), contact)
    joints = solve(v, contact)
    under = np.maximum(0, 0.02 - joints[:, OFF_FLOOR, 1].min(1))
    if under.any():  # our back is longer than the humanoid's, which shows in a roll
        v[:, P, 1] += 1.3 * smooth(under, 1.5)
        joints = solve(v, contact)
    return motion.canonical_joints(joints, motion.T2M)


def splits(label, count):
    """Which split each of `count` clips of an action is in: 12% test and 8% val, drawn by lot."""
    order = np.random.default_rng([SEED, *label.encode()]).permutation(count)
    test, val = max(1, round(0.12 * count)), max(1, round(0.08 * count))
    return ['test' if i < test else 'val' if i < test + val else 'train' for i in order]


def build(clips_dir, times=1, sequences=None):
    """Make the dataset: list[Clip], the same each time.

    times: how many times as large as the set that ships. Its clips are in a larger set as well, and
    the others are all for training, with more of HARD. sequences: the same for clips of actions in
    a row; None: times

    clips_dir is the folder pybullet_data/data/motions of the wheel pybullet 3.2.7. Each clip is
    followed by its mirror image (id M...), in the same split. FileNotFoundError if a file is
    missing.
    """
    real, clips, number = Real(clips_dir), [], 0
    for label, (make, count) in [*ACTIONS.items(), *combinations(ACTIONS, OVERLAYS)]:
        more = times if sequences is None or not label.endswith('in a row') else sequences
        more = count * (more - 1) * HARD.get(label, 1)
        for i, split in enumerate(splits(label, count) + ['train'] * more):
            # of its own label and number, so that no action depends on the ones before it
            seed = [SEED, *label.encode(), i]
            segment, facts = make(np.random.default_rng([*seed, 1]), real)
            joints = joints_of(alive(np.random.default_rng([*seed, 2]), segment))
            for mirrored in (False, True):
                rng = np.random.default_rng([*seed, 3, mirrored])
                texts = captions(label, facts, mirrored, rng)
                name = label.replace('LEFT', 'right' if mirrored else 'left')
                if mirrored:
                    joints = joints[:, list(motion.T2M.mirror)] * (-1, 1, 1)
                clips.append(Clip(f'{"M" * mirrored}{number:06d}', texts, split,
                                  '' if facts.get('parts') else name, joints=joints))
            number += 1
    return clips
