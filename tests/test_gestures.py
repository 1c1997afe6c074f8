"""The keyframed actions of the toy dataset: each does what its name and its facts say."""
import collections
import os
import re

import numpy as np
import pytest

import motion
from formats import plausible
from kinematics import (HEAD, L_ANKLE, L_KNEE, L_SHOULDER, L_WRIST, NECK, PELVIS, R_ANKLE, R_KNEE,
                        R_SHOULDER, R_WRIST)
from toy import motions
from toy.body import mirror
from toy.captions import captions
from toy.clips import Real
from toy.gestures import GESTURES, OVERLAYS, STANDING

CLIPS_DIR = os.environ.get('NANOMLD_TOY_CLIPS', '')
SEEDS = 12
pytestmark = pytest.mark.skipif(
    not CLIPS_DIR,
    reason='NOT MADE: NANOMLD_TOY_CLIPS does not name pybullet_data/data/motions of 3.2.7')


@pytest.fixture(scope='module')
def real():
    return Real(CLIPS_DIR)


@pytest.fixture(scope='module')
def made(real):
    """{label: [(joints (T, 22, 3), the mirror image's, facts)]}, brief ones under (label,)."""
    found = {}
    for number, (label, (make, _)) in enumerate(GESTURES.items()):
        for brief in (False, True):
            rows = found[(label,) if brief else label] = []
            for seed in range(SEEDS // (1 + brief)):
                segment, facts = make(np.random.default_rng([5, number, seed]), real, brief=brief)
                v, contact, path = segment
                mirrored = mirror(v), contact[:, ::-1], path * (-1, 1, -1)
                rows.append((motions.joints_of(segment), motions.joints_of(mirrored), facts))
    return found


def swapped(j):
    """Joints with left and right exchanged, so that the mirror image reads as the original."""
    order = np.arange(22)
    for a, b in ((1, 2), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (18, 19), (20, 21)):
        order[[a, b]] = b, a
    return j[:, order] * (-1, 1, 1)


def humps(x, share=0.5, margin=0.15):
    """How often x rises above a share of its range, having been below it."""
    low, high = np.percentile(x, 2), x.max()
    up, count = False, 0
    for value in (x - low) / (high - low):
        if not up and value > share + margin:
            up, count = True, count + 1
        elif up and value < share - margin:
            up = False
    return count


def across(j):
    """Unit vector to the person's left on the floor, (T, 3)."""
    a = (j[:, 1] - j[:, 2]) * (1, 0, 1)
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def head_way(j):
    return (j[:, HEAD] - j[:, NECK]) / np.linalg.norm(j[:, HEAD] - j[:, NECK], axis=1)[:, None]


def yaw(j):
    """How far the head is turned to the left, from -1 to 1."""
    return (head_way(j) * (1, 0, 1) * across(j)).sum(1)


def lifted(j, side=0):
    """Wrist over shoulder."""
    return j[:, L_WRIST + side, 1] - j[:, L_SHOULDER + side, 1]


def ahead(j, joint):
    return j[:, joint, 2] - j[:, PELVIS, 2]


def apart(j):
    return np.linalg.norm(j[:, L_WRIST] - j[:, R_WRIST], axis=1)


def near(j, joint, place):
    return np.linalg.norm(j[:, joint] - j[:, place], axis=1).min()


def low(j):
    return j[0, PELVIS, 1] - j[:, PELVIS, 1]


def knees(j):
    return j[:, [L_KNEE, R_KNEE], 1] - j[0, [L_KNEE, R_KNEE], 1]


# label: what holds for the joints j and facts f of every clip, made on the left
DOES = {
    'wave LEFT hand': lambda j, f: lifted(j).max() > 0.1 > lifted(j, 1).max(),
    'wave both hands': lambda j, f: min(lifted(j).max(), lifted(j, 1).max()) > 0.1,
    'raise both arms': lambda j, f: min(lifted(j).max(), lifted(j, 1).max()) > 0.3,
    'raise LEFT arm': lambda j, f: lifted(j).max() > 0.35 and lifted(j, 1).max() < 0,
    'clap': lambda j, f: apart(j).min() < 0.15,
    'look around': lambda j, f: yaw(j).max() > 0.2 and yaw(j).min() < -0.2,
    'look LEFT': lambda j, f: yaw(j).max() > 0.2 and yaw(j).min() > -0.12,
    'look up': lambda j, f: head_way(j)[:, 1].max() > 0.97,
    'look down': lambda j, f: head_way(j)[:, 1].min() < 0.45,
    'nod': lambda j, f: np.ptp(head_way(j)[:, 1]) > 0.12 and np.ptp(yaw(j)) < 0.2,
    'shake head': lambda j, f: yaw(j).max() > 0.15 and yaw(j).min() < -0.15,
    'point LEFT hand': lambda j, f: lifted(j, 1).max() < 0 and {
        'forward': ahead(j, L_WRIST).max() > 0.5, 'up': lifted(j).max() > 0.4,
        'side': (j[:, L_WRIST] - j[:, L_SHOULDER])[:, 0].max() > 0.45}[f['way']],
    'salute': lambda j, f: near(j, L_WRIST, HEAD) < 0.2 and lifted(j, 1).max() < 0,
    'shrug': lambda j, f: apart(j).max() > 0.9,
    'cross arms': lambda j, f: (j[:, L_WRIST, 0] - j[:, R_WRIST, 0]).min() < -0.1,
    'hands on hips': lambda j, f: near(j, L_WRIST, 1) < 0.32,
    'scratch head': lambda j, f: lifted(j).max() > 0.25 and near(j, L_WRIST, HEAD) < 0.25,
    'arm circles': lambda j, f: lifted(j).max() > 0.4 and ahead(j, L_WRIST).min() < -0.15,
    'swing arms': lambda j, f: np.ptp(j[:, L_WRIST, 2]) > 0.5,
    'cover face': lambda j, f: max(near(j, L_WRIST, HEAD), near(j, R_WRIST, HEAD)) < 0.2,
    'think': lambda j, f: near(j, L_WRIST, HEAD) < 0.22,
    'celebrate': lambda j, f: min(lifted(j).max(), lifted(j, 1).max()) > 0.35,
    'fist pump': lambda j, f: lifted(j).max() > 0.4 and lifted(j, 1).max() < 0,
    'stop sign': lambda j, f: ahead(j, L_WRIST).max() > 0.3 and lifted(j).max() > 0.05,
    'hug': lambda j, f: apart(j).max() > 0.6 and apart(j).min() < 0.25,
    'flap arms': lambda j, f: np.ptp(j[:, L_WRIST, 1]) > 0.4 and np.ptp(j[:, R_WRIST, 1]) > 0.4,
    'drink': lambda j, f: near(j, L_WRIST, HEAD) < 0.2,
    'shake hands': lambda j, f: ahead(j, L_WRIST).max() > 0.3 and lifted(j).max() < 0.0,
    'knock': lambda j, f: ahead(j, L_WRIST).max() > 0.3,
    'open door': lambda j, f: ahead(j, L_WRIST).max() > 0.3,
    'answer phone': lambda j, f: near(j, L_WRIST, HEAD) < 0.2,
    'bounce ball': lambda j, f: lifted(j).max() < 0 and np.ptp(j[:, L_WRIST, 1]) > 0.15,
    'lift': lambda j, f: low(j).max() > 0.25 and lifted(j).max() > 0.4,
    'catch': lambda j, f: apart(j).min() < 0.4,
    'push': lambda j, f: ahead(j, L_WRIST).max() > 0.45 and ahead(j, R_WRIST).max() > 0.45,
    'pull': lambda j, f: np.ptp(ahead(j, L_WRIST)) > 0.3 and np.ptp(ahead(j, R_WRIST)) > 0.3,
    'pick up': lambda j, f: j[:, R_WRIST, 1].min() < 0.35,
    'throw': lambda j, f: (np.linalg.norm(np.diff(j[:, R_WRIST], axis=0), axis=1).max()
                           > np.linalg.norm(np.diff(j[:, L_WRIST], axis=0), axis=1).max()),
    'squat': lambda j, f: low(j).max() > 0.24,
    'bow': lambda j, f: ahead(j, HEAD).max() > 0.35,
    'sit': lambda j, f: low(j).max() > 0.33,
    'stand up': lambda j, f: j[-1, PELVIS, 1] - j[0, PELVIS, 1] > 0.33,
    'stand': lambda j, f: np.ptp(j, axis=0).max() < 0.3,
    'lunge': lambda j, f: ahead(j, L_ANKLE).max() > 0.15 and low(j).max() > 0.15,
    'stretch': lambda j, f: min(lifted(j).max(), lifted(j, 1).max()) > 0.4,
    'side bend LEFT': lambda j, f: (j[:, HEAD] - j[:, PELVIS])[:, 0].max() > 0.18,
    'touch toes': lambda j, f: j[:, [L_WRIST, R_WRIST], 1].max(1).min() < 0.3,
    'sway': lambda j, f: np.ptp(j[:, HEAD, 0]) > 0.15,
    'balance': lambda j, f: (j[:, L_ANKLE, 1] > 0.2).sum() > 8 and j[:, R_ANKLE, 1].max() < 0.15,
    'knee raises': lambda j, f: knees(j).max() > 0.25,
    'heel kicks': lambda j, f: j[:, L_ANKLE, 1].max() > 0.35 and knees(j).max() < 0.25,
    'stomp': lambda j, f: j[:, L_ANKLE, 1].max() > 0.2,
    'duck': lambda j, f: low(j).max() > 0.2 and j[0, HEAD, 1] - j[:, HEAD, 1].min() > 0.35,
    'kick': lambda j, f: j[:, R_ANKLE, 1].max() > j[:, L_ANKLE, 1].max(),
    'block': lambda j, f: max(near(j, L_WRIST, HEAD), near(j, R_WRIST, HEAD)) < 0.4}

# label: the curve that rises once each time that the action is done
CURVES = {
    'clap': lambda j: -apart(j), 'raise both arms': lifted, 'raise LEFT arm': lifted,
    'look LEFT': yaw, 'look up': lambda j: head_way(j)[:, 1], 'nod': lambda j: -head_way(j)[:, 1],
    'look down': lambda j: -head_way(j)[:, 1], 'shake head': yaw, 'salute': lifted,
    'look around': yaw, 'arm circles': lifted, 'celebrate': lifted, 'fist pump': lifted,
    'flap arms': lifted, 'drink': lambda j: -np.linalg.norm(j[:, L_WRIST] - j[:, HEAD], axis=1),
    'push': lambda j: j[:, L_WRIST, 2] - j[:, L_SHOULDER, 2], 'squat': low, 'duck': low,
    'bow': lambda j: -j[:, HEAD, 1], 'pick up': lambda j: -j[:, R_WRIST, 1],
    'touch toes': lambda j: -j[:, L_WRIST, 1], 'side bend LEFT': lambda j: j[:, HEAD, 0],
    'lunge': low, 'knee raises': lambda j: knees(j).max(1),
    'heel kicks': lambda j: j[:, [L_ANKLE, R_ANKLE], 1].max(1),
    'stomp': lambda j: j[:, [L_ANKLE, R_ANKLE], 1].max(1),
    'jumping jacks': lambda j: lifted(j), 'lift': lifted, 'stretch': lifted,
    'sway': lambda j: j[:, HEAD, 0]}


# those that between two times do not come all the way down
HIGH = 'celebrate', 'fist pump', 'drink', 'push', 'lift'


def test_there_are_enough_of_each():
    assert sum(count for _, count in GESTURES.values()) > 1000
    assert min(count for _, count in GESTURES.values()) >= 14
    assert STANDING < set(GESTURES) and OVERLAYS < set(GESTURES)


@pytest.mark.parametrize('label', DOES)
def test_does_what_it_says(made, label):
    for clips in (made[label], made[(label,)]):
        for number, (j, mirrored, facts) in enumerate(clips):
            assert DOES[label](j, facts), (number, facts)
            assert DOES[label](swapped(mirrored), facts), (number, facts, 'mirrored')


@pytest.mark.parametrize('label', CURVES)
def test_is_done_as_often_as_it_says(made, label):
    for clips in (made[label], made[(label,)]):
        for number, (j, mirrored, facts) in enumerate(clips):
            for joints in (j, swapped(mirrored)):
                curve = CURVES[label](joints)
                found = humps(curve, 0.82, 0.1) if label in HIGH else humps(curve)
                assert found == facts['count'], (number, facts)


def test_counts_and_speeds_are_everywhere(real):
    """Neither a number nor a speed is to tell which action is meant."""
    facts = {label: [make(np.random.default_rng([6, n, seed]), real)[1] for seed in range(40)]
             for n, (label, (make, _)) in enumerate(GESTURES.items())}
    single = {'sit', 'stand up', 'stand', 'think', 'answer phone', 'balance'}
    for label in set(GESTURES) - single:
        counts = {row['count'] for row in facts[label]}
        assert len(counts) > 1 and max(counts) < 10, (label, counts)
    for label in set(GESTURES) - {'stand'}:
        paces = np.array([row['pace'] for row in facts[label]])
        assert (paces < 0.8).mean() > 0.03 and (paces > 1.2).mean() > 0.03, (label, paces)


def test_slow_ones_are_slower(made):
    def top(j):
        return np.linalg.norm(np.diff(j, axis=0), axis=-1).max()

    for label in ('nod', 'squat', 'raise LEFT arm', 'bow', 'drink', 'punch'):
        speed = collections.defaultdict(list)
        for j, _, facts in made[label]:
            speed['slow' if facts['pace'] < 0.8 else 'fast' if facts['pace'] > 1.2
                  else 'even'].append(top(j) / facts.get('deep', 1))  # deep bows are faster
        means = [np.mean(speed[tempo]) for tempo in ('slow', 'even', 'fast') if tempo in speed]
        assert means == sorted(means), (label, dict(speed))


def test_brief_ones_are_brief_and_begin_and_end_standing(made, real):
    for label in GESTURES:
        for j, _, facts in made[(label,)]:
            assert len(j) <= 55, (label, len(j))
            if label in STANDING:
                for t in (0, -1):
                    hands = j[t, [L_WRIST, R_WRIST], 1] - j[t, [L_SHOULDER, R_SHOULDER], 1]
                    assert hands.max() < -0.3 and j[t, PELVIS, 1] > 0.85, (label, t)


def test_they_move_like_a_person(made):
    parents = motion.T2M.parents
    for label, clips in made.items():
        sliding = []
        for j, _, facts in clips:
            assert 40 <= len(j) <= 120
            assert not plausible.faults(j, 20), (label, facts)
            bones = j[:, 1:] - j[:, parents[1:]]
            bones /= np.linalg.norm(bones, axis=-1, keepdims=True)
            turns = np.degrees(np.arccos(np.clip((bones[1:] * bones[:-1]).sum(-1), -1, 1)))
            assert turns.max() < 85, (label, facts, turns.max())
            toes = j[:, [10, 11]]
            step = np.linalg.norm(np.diff(toes[..., [0, 2]], axis=0), axis=-1) * 2000  # cm/s
            flat = toes[..., 1] < 0.01
            sliding.append(step[flat[1:] & flat[:-1]])
        assert np.concatenate(sliding).mean() < 3, label


def test_captions_are_many_true_and_well_formed(made):
    words = {'once': 1, 'one time': 1, 'twice': 2, 'two': 2, '2': 2, 'couple': 2, 'three': 3,
             '3': 3, 'four': 4, '4': 4, 'five': 5, '5': 5}
    for label in GESTURES:
        found = set()
        for number, (_, _, facts) in enumerate(made[label]):
            for mirrored in (False, True):
                rng = np.random.default_rng([number, mirrored])
                for caption in captions(label, facts, mirrored, rng, short=4, detailed=4):
                    text = caption.text
                    found.add(text)
                    assert re.fullmatch(r'[a-z0-9 ,]+\.?', text) and '  ' not in text, text
                    assert len(caption.tokens.split()) == len(text.split())
                    text = text.replace('once, then once more', 'twice')
                    for word, count in words.items():
                        if re.search(rf'\b{word}\b(?! (hands|arms)\b)', text):
                            assert facts.get('count', 1) == count, (text, facts)
                    if 'slow' in text or 'quick' in text or 'rapid' in text:
                        assert ('slow' in text) == (facts['pace'] < 0.8), (text, facts)
        assert len(found) > 80, (label, len(found))
