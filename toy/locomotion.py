"""On foot: walks and runs of real cycles, counted steps, turns, and gaits put together by hand.

Each function makes one clip from a random generator and the real motion: a segment (see
segments.py) and the facts for its captions. What has a side is made on the left.

Speed, number and size are drawn independently of the action, from the same words: `tempo` is slow,
even or fast ('' where nothing is to be said of it), `count` how often, `size` small or big. Slow
is at most .75 of what is even, and fast at least 1.25 times.
"""
import numpy as np

from toy.body import FPS, LEGS, P, ease, pitch
from toy.segments import (both, bounce, gait, keyed, lean, overlay, pick, steps, swing_arms, tilt)

TIMES = 1, 1, 1, 2, 2, 2, 3, 3, 4, 5  # how often what can be counted is done


def tempo_of(rng, slow, even, fast):
    """A tempo, and a pace within that one of the three ranges."""
    tempo, between = pick(rng, ('slow', slow), ('even', even), ('even', even), ('fast', fast))
    return tempo, rng.uniform(*between)


def size_of(rng, small, middle, big, often=0.4):
    """A size, '' for a middling one, and a number within that one of the three ranges."""
    size, between = '', middle
    if rng.random() < often:
        size, between = pick(rng, ('small', small), ('big', big))
    return size, rng.uniform(*between)


# --------------------------------------------------------------------------------------------------
# Real cycles


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


def _ends(rng, start, stop):
    return (rng.random() < 0.4 if start is None else start,
            rng.random() < 0.4 if stop is None else stop)


def _frames(rng, speed, start, stop, metres, least, most):
    """As many frames as those metres take, and a few more."""
    return int(np.clip(metres / speed * FPS + 14 * (start + stop) + rng.integers(0, 14),
                       least, most))


STYLES = {style: [(0, pose), (5.9, pose)] for style, pose in {
    'hips': both('hips'), 'tired': lean(chest=24, head=12),
    'proud': lean(chest=-8, head=-10)}.items()}
ASIDE = [dict(head=(0, 50 * s, 0), chest=(0, 8 * s, 0)) for s in (1, -1)]
STYLES['aside'] = list(zip((0, 0.6, 0.5, 0.7, 0.7, 0.6, 2.5),
                           ({}, {}, ASIDE[0], *ASIDE, {}, {})))
WALK = (0.55, 0.7), (0.95, 1.12), (1.38, 1.6)  # rates of a walk: slow, even, fast
STRIDE = {'slow': 0.88, 'even': 1.0, 'fast': 1.08}


def walk(rng, real, back=False, n=None, start=None, stop=None, tempo=None):
    """Walk straight ahead, or backward; `tempo` may be chosen, and the number of frames."""
    start, stop = _ends(rng, start, stop)
    tempo, rate = (tempo, rng.uniform(*WALK[1])) if tempo else tempo_of(rng, *WALK)
    size, stride = size_of(rng, (0.42, 0.55), (0.8, 1.0), (1.12, 1.25), 0.25)
    if size:
        tempo, rate = '', rng.uniform(*WALK[1])
    stride *= STRIDE.get(tempo, 1.0) * (0.72 if back else 1)
    least = 1.35 + 0.25 * rng.random()
    n = n or _frames(rng, 0.97 * rate * stride, start, stop, least, 46, 104)
    heading = np.radians(rng.normal(0, 4)) * np.linspace(0, 1, n)
    stand = real.stand(rng)
    segment = gait(pick(rng, *real.walks), stand, _weight(rng, n, start, stop), heading,
                   -rate if back else rate, stride, rng.uniform(0.9, 1.2), rng.random())
    style = ''
    if not back and not size and rng.random() < 0.25:
        style = pick(rng, *STYLES)
        segment = overlay(segment, keyed(stand, STYLES[style]), stand)
    return segment, dict(tempo=tempo, size=size, start=start, stop=stop, style=style)


def walk_bend(rng, real, bend, frames, tempo=None):
    """Walk and turn left by a number of degrees in the range `bend`, or in a circle."""
    bend = np.radians(rng.uniform(*bend))
    n, circle = int(rng.integers(*frames)), bend > 4
    start, stop = _ends(rng, False if circle else None, False if circle else None)
    tempo, rate = tempo_of(rng, (0.62, 0.74), WALK[1], (1.3, 1.45))
    span = min(n - 28, max(22, np.degrees(bend) / rng.uniform(45, 75) / rate * FPS))
    heading = bend * np.linspace(0, 1, n)
    if not circle:  # somewhere on the way
        heading = bend * ease((np.arange(n) - rng.uniform(13, n - 13 - span)) / span)
    cycle = real.walks[0] if rng.random() < 0.5 else pick(rng, *real.left)
    segment = gait(cycle, real.stand(rng), _weight(rng, n, start, stop), heading, rate,
                   rng.uniform(0.72, 0.95), rng.uniform(0.9, 1.2), rng.random())
    return segment, dict(tempo=tempo, start=start, stop=stop, angle=np.degrees(bend))


def run(rng, real, jog=False):
    if jog:
        tempo, rate = tempo_of(rng, (0.7, 0.76), (0.82, 0.9), (0.96, 1.02))
        stride = rng.uniform(0.5, 0.62)
    else:
        tempo, rate = tempo_of(rng, (0.84, 0.88), (0.96, 1.06), (1.18, 1.28))
        stride = rng.uniform(0.78, 0.84) * {'slow': 0.88, 'even': 1, 'fast': 1.22}[tempo]
    start = rng.random() < 0.3 and tempo != 'slow'
    stop = jog and rng.random() < 0.3
    n = int(rng.integers(44, 62)) + 14 * start + 12 * stop
    heading = np.radians(rng.normal(0, 5)) * np.linspace(0, 1, n)
    segment = gait(real.run, real.stand(rng), _weight(rng, n, start, stop), heading, rate, stride,
                   rng.uniform(0.75, 1), rng.random())
    return segment, dict(tempo=tempo, start=start)


def on_the_spot(rng, real, running=False, stride=0.0):
    """March, or jog, in place; with a stride, forward."""
    tempo, rate = tempo_of(rng, (0.55, 0.7), (0.85, 1.0), (1.25, 1.45))
    size, lift = size_of(rng, (1.6, 1.9), (2.3, 2.7), (3.3, 3.8))
    cycle = real.walks[0]
    if running:
        cycle, rate, lift = real.run, 0.62 + 0.3 * rate, {'small': 0.6, '': 0.85, 'big': 1.05}[size]
    if stride:
        lift *= 1.3  # a long stride takes from the knee's height
    n = int(rng.integers(68, 92) + 24 * (tempo == 'slow'))
    weight = _weight(rng, n, True, True)
    segment = gait(cycle, real.stand(rng), weight, 0 * weight, rate, stride, lift, rng.random())
    return segment, dict(tempo=tempo, high=size == 'big', low=size == 'small', ahead=stride > 0)


def tiptoe(rng, real):
    """Walk with the heels up."""
    start, stop = _ends(rng, None, None)
    tempo, rate = tempo_of(rng, (0.5, 0.62), (0.8, 0.95), (1.2, 1.4))
    stride = rng.uniform(0.5, 0.68)
    n = _frames(rng, 0.97 * rate * stride, start, stop, 1.1, 48, 100)
    stand, weight = real.stand(rng), _weight(rng, n, start, stop)
    up = weight[:, None] * rng.uniform(38, 48)
    v, contact, path = gait(pick(rng, *real.walks), stand, weight,
                            np.radians(rng.normal(0, 4)) * np.linspace(0, 1, n), rate, stride, 1.0,
                            rng.random())
    for _, f, u, _ in LEGS:
        v[:, [f, u]] = pitch(up, stand[[f, u]] + 0.25 * (v[:, [f, u]] - stand[[f, u]]))
    v[:, P, 1] += 0.075 * weight
    return (v, contact, path), dict(tempo=tempo, start=start, stop=stop)


def sneak(rng, real):
    """Slow steps, lifted high, with bent knees and back."""
    n, stand = int(rng.integers(66, 100)), real.stand(rng)
    weight = _weight(rng, n, False, False)
    segment = gait(real.walks[0], stand, weight, 0 * weight, rng.uniform(0.48, 0.62),
                   rng.uniform(0.6, 0.75), rng.uniform(1.6, 2.2), rng.random())
    crouched = both('guard', chest=(rng.uniform(20, 30), 0, 0), head=(-14, 0, 0))
    segment = overlay(segment, keyed(stand, [(0, crouched), (5.9, crouched)], amount=0.8), stand)
    segment[0][:, P, 1] -= rng.uniform(0.09, 0.15)
    return segment, dict(tempo='slow')


def limp(rng, real):
    """Walk with a left leg that hurts: off it soon, and leaning over it."""
    start, stop = _ends(rng, None, None)
    stands = real.walks[0][1]
    alone = stands[:, 0] & ~stands[:, 1]  # on the left leg only
    middle = np.angle(np.exp(2j * np.pi * np.flatnonzero(alone) / 400).mean()) / 2 / np.pi
    tempo, base = tempo_of(rng, (0.48, 0.58), (0.72, 0.85), (1.05, 1.2))
    n = _frames(rng, 0.97 * base * 0.7, start, stop, 1.5, 66, 110)
    phase, uneven, seconds = np.zeros(n), rng.uniform(0.55, 0.68), real.walks[0][2]
    phase[0] = first = rng.random()
    rate = np.zeros(n)
    for i in range(n):
        rate[i] = base * (1 + uneven * np.cos(2 * np.pi * (phase[i] - middle)))
        phase[i + 1:i + 2] = phase[i] + rate[i] / seconds / FPS
    weight = _weight(rng, n, start, stop)
    v, contact, path = gait(real.walks[0], real.stand(rng), weight, 0 * weight, rate,
                            rng.uniform(0.7, 0.85), 1.4, first)
    over = weight * np.maximum(0, np.cos(2 * np.pi * (phase - middle))) ** 2
    v[:, P, 1] -= 0.085 * over
    v[:, P, 0] += 0.03 * over
    tilt(v, 6 * weight + 6 * over, -rng.uniform(9, 14) * over)
    return (v, contact, path), dict(tempo=tempo, start=start, stop=stop)


def stumble(rng, real):
    """Walk, trip, catch oneself with quick steps, and walk on."""
    n, stand = int(rng.integers(62, 84)), real.stand(rng)
    x, at = np.arange(n), rng.integers(20, 30)
    trip = ease((x - at) / 7) * ease((at + 22 - x) / 14)
    weight = _weight(rng, n, False, rng.random() < 0.4)
    rate = rng.uniform(0.85, 1.0) * (1 + 0.6 * trip)
    v, contact, path = gait(pick(rng, *real.walks), stand, weight, 0 * weight, rate, 0.9, 1.0,
                            rng.random())
    fall = dict(both('low'), chest=(14, rng.uniform(-8, 8), 0), head=(-20, 0, 0))
    keys = [(0, {}), (at / FPS, {}), (0.35, fall), (0.3, fall), (0.5, {}), (3, {})]
    v, contact, path = overlay((v, contact, path), keyed(stand, keys), stand)
    tilt(v, rng.uniform(16, 26) * trip)
    v[:, P, 1] -= 0.07 * trip
    return (v, contact, path), {}


# --------------------------------------------------------------------------------------------------
# Steps with planted feet


def _stepping(rng, real, count, frames, x=0.0, z=0.0, angle=0.0, lift=0.07, arms=0.0):
    """Move by x to the left and z ahead, and turn by an angle, with `count` steps; then stand."""
    start = int(rng.integers(5, 13))
    stop = start + int(frames)
    n = max(44, stop + int(rng.integers(7, 16)))
    u = np.clip((np.arange(n) - start) / (stop - start), 0, 1)
    path = ((u * u * (3 - 2 * u) + u) / 2)[:, None] * (x, z, angle)
    stand = real.stand(rng)
    return steps(stand, path, start, stop, count, lift, arms), stand


def step(rng, real, back=False):
    """A number of steps forward or backward, by turns; the other foot closes up at the end."""
    count = pick(rng, *TIMES)
    size, metres = size_of(rng, (0.2, 0.3), (0.4, 0.55), (0.65, 0.8))
    metres *= 0.75 if back else 1
    tempo, frames = tempo_of(rng, (16, 20), (11, 13), (8, 9))
    count = min(count, int(88 / frames - 0.9))
    segment, _ = _stepping(rng, real, count + 1, frames * (count + 0.9),
                           z=metres * count * (-1 if back else 1), lift=0.05 + 0.08 * metres,
                           arms=0.45 * metres)
    return segment, dict(count=count, size=size, tempo=tempo)


def sidestep(rng, real):
    count = pick(rng, *TIMES)
    size, metres = size_of(rng, (0.21, 0.25), (0.32, 0.42), (0.52, 0.62))
    tempo, frames = tempo_of(rng, (23, 28), (14, 18), (9, 10))
    count = min(count, int(92 / frames))
    segment, _ = _stepping(rng, real, 2 * count, count * frames, x=count * metres)
    return segment, dict(count=count, size=size, tempo=tempo)


def turn_in_place(rng, real, angles=(60, 90, 90, 90, 135)):
    """Turn by about one of those angles."""
    angle = pick(rng, *angles) + rng.uniform(-7, 7)
    tempo, pace = tempo_of(rng, (38, 52), (75, 100), (150, 190))
    segment, _ = _stepping(rng, real, 2 * max(1, round(angle / 68)), angle / pace * FPS,
                           angle=np.radians(angle))
    return segment, dict(angle=angle, tempo=tempo)


def spin(rng, real):
    count = pick(rng, 1, 1, 1, 2, 2, 3)
    tempo, pace = tempo_of(rng, (85, 105), (140, 165), (230, 270))
    pace = max(pace, 100 + 45 * (count - 1))
    angle = 360 * count + rng.uniform(-10, 15)
    if count > 1 and tempo == 'slow' or count > 2 and tempo == 'even':
        tempo = ''
    pace = max(pace, angle / 90 * FPS)
    segment, stand = _stepping(rng, real, 2 * round(angle / rng.uniform(60, 72)),
                               angle / pace * FPS, angle=np.radians(angle), lift=0.05)
    arms = 'side' if rng.random() < 0.3 else ''
    if arms:
        spread = both(arms)
        keys = [(0, {}), (0.7, spread), (max(0.3, angle / pace - 0.4), spread), (0.4, {})]
        segment = overlay(segment, keyed(stand, keys, amount=rng.uniform(0.75, 1)), stand)
    return segment, dict(count=count, arms=arms, tempo=tempo)


# --------------------------------------------------------------------------------------------------
# Springy gaits


def _bouncing(rng, real, count, seconds, stances, lift, ahead, apart=0.0, aside=False):
    start = int(rng.integers(5, 12))
    stop = start + round(count * seconds * FPS)
    n = max(44, stop + int(rng.integers(8, 15)))
    u = np.clip((np.arange(n) - start) / (stop - start), 0, 1)
    along = (u * u * (3 - 2 * u) + 3 * u) / 4 * count * ahead
    path = np.zeros((n, 3))
    path[:, 0 if aside else 1] = along  # x or z
    return bounce(real.stand(rng), path, u * count, seconds, stances, lift, apart), u * count


def skip(rng, real):
    """Step and hop on one foot, then step and hop on the other."""
    tempo, seconds = tempo_of(rng, (1.2, 1.3), (0.98, 1.08), (0.8, 0.86))
    flight = 0.19 / seconds
    on = 0.5 - flight - 0.12
    stances = [(0, on), (on + flight, 0.5)], [(0.5, 0.5 + on), (0.5 + on + flight, 1)]
    count = int(rng.integers(2, 5 if tempo != 'slow' else 4))
    (v, contact, path), phase = _bouncing(rng, real, count, seconds, stances,
                                          (rng.uniform(0.2, 0.3),) * 2,
                                          rng.uniform(0.9, 1.25) * (seconds / 1.02) ** 0.3)
    swing_arms(v, 0.4 * ease(4 * phase) * ease(4 * (count - phase))
               * -np.sin(2 * np.pi * (phase + 0.05)))
    return (v, contact, path), dict(tempo=tempo)


def gallop(rng, real):
    """Sideways to the left: the left foot goes out, the right one hops after it."""
    count = pick(rng, 2, 3, 4, 4, 5)
    tempo, seconds = tempo_of(rng, (0.8, 0.9), (0.62, 0.7), (0.48, 0.54))
    flight = 0.1 / seconds
    stances = [(0, 0.42)], [(0.42 + flight, 0.97)]
    segment, _ = _bouncing(rng, real, count, seconds, stances, (0.07, 0.07),
                           rng.uniform(0.5, 0.72), 0.1, aside=True)
    if rng.random() < 0.4:
        spread = both(pick(rng, 'side', 'hips'))
        still = segment[0][0]
        keys = [(0, {}), (0.5, spread), (max(0.4, count * seconds - 0.4), spread), (0.5, {})]
        segment = overlay(segment, keyed(still, keys), still)
    return segment, dict(count=count, tempo=tempo)
