"""Every clip of the toy set that ships does what it says, looks human, and can be made again."""
import collections
import os
import re

import numpy as np
import pytest

import motion
import words
from toy import body as toy_body
from toy import captions as toy_captions
from toy import clips as toy_clips
from toy import motions as toy
from formats.pack import Pack
from detectors import squat
from kinematics import (CHECKS, L_ANKLE, L_KNEE, L_SHOULDER, L_TOE, PELVIS, R_ANKLE, R_KNEE,
                        R_SHOULDER, R_TOE, airborne, heading, speed)

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# the folder pybullet_data/data/motions, to build the set again
CLIPS_DIR = os.environ.get('NANOMLD_TOY_CLIPS', '')
LENGTHS = toy_body.LENGTH[1:]  # T2M_OFFSETS', averaged over both sides
LIVELY = ('backflip', 'spin kick', 'kick', 'roll', 'dance', 'throw')  # real clips of fast limbs
NUMBERS = {'once': 1, 'one time': 1, 'twice': 2, 'two times': 2, '2 times': 2, 'three times': 3,
           '3 times': 3, 'four times': 4, '4 times': 4, 'five times': 5, '5 times': 5}
EVEN_WORDS = ('once', 'twice', 'three', 'four', 'five', 'slowly', 'quickly', 'left', 'right',
              'again', 'repeatedly', 'several', 'small', 'big', 'calmly', 'carefully', 'lightly',
              'happily', 'politely', 'quietly', 'gently', 'easily', 'away', 'along', 'off', 'here')
# real words that are too rare for word_vectors.bin, or that it leaves out
RARE = ('a u 180 2 3 4 5 60 90 amuse armchair backflipping barbell beginner broom brow '
        'disagreeing disagrees drawer fencer fiddle fireman forehands fridge golfing golfs '
        'grandma grandpa handshake hiker kickers lifeguard mum ninja overarm paces pacing '
        'pretends puddle raining rejoice rejoices rejoicing rotations scalp seaweed stool tease '
        'teeing tees thanking tiptoeing trampoline uppercutting wakes windmill windmilling '
        'windmills').split()


@pytest.fixture(scope='module')
def pack():
    return Pack.open(os.path.join(HERE, 'data', 'toy', 'toy.pack'))


@pytest.fixture(scope='module')
def clips(pack, toy_joints):
    """[(id, action, joints (T, 22, 3))] of the whole pack."""
    return [(id, pack.action(i), toy_joints[i]) for i, id in enumerate(pack.ids)]


@pytest.fixture(scope='module')
def texts(pack):
    return [[caption.text for caption in pack.captions(i)] for i in range(len(pack))]


def test_size_and_splits(pack):
    assert pack.fps == 20 and pack.skeleton == 't2m'
    assert len(pack) >= 3000 and len(pack.actions) >= 39
    assert pack.lengths.min() >= 40 and pack.lengths.max() <= 120
    split = dict(zip(pack.ids, pack.splits))
    assert all(split['M' + id] == split[id] for id in pack.ids if id[0] != 'M')
    share = {name: pack.splits.count(name) / len(pack) for name in ('train', 'val', 'test')}
    assert (
        0.75 < share['train'] < 0.85 and 0.05 < share['val'] < 0.12 and 0.09 < share['test'] < 0.16
    )
    sources = collections.Counter(
        pack.action(i).replace('right', 'left') for i, id in enumerate(pack.ids) if id[0] != 'M'
    )
    assert all(sources[name] >= 8 for name in sources)
    assert sources[''] >= 700  # sequences and combinations have no label
    assert len(sources) == len(toy.ACTIONS) + 1
    for i, id in enumerate(pack.ids):
        if id[0] == 'M' and pack.action(i)[-4:] in ('left', 'right'):
            assert pack.action(i) == pack.action(pack.index(id[1:])).replace('left', 'right')
    assert os.path.getsize(pack.path) < 12e6


def test_everybody_has_the_same_bones(clips):
    for id, _, j in clips:
        lengths = np.linalg.norm(j[:, 1:] - j[:, motion.T2M.parents[1:]], axis=-1)
        assert np.abs(lengths.mean(0) / LENGTHS - 1).max() < 0.005, id
        assert (lengths.std(0) / LENGTHS).max() < 0.01, id  # the pack's grid is half a millimetre


def test_mirror_images_are_exact(pack, clips):
    swap = list(motion.T2M.mirror)
    for (id, _, j), (other, _, mirrored) in zip(clips[::2], clips[1::2]):
        assert other == 'M' + id
        assert np.abs(j[:, swap] * (-1, 1, 1) - mirrored).max() < 0.0021, id  # by the pack's grid


def test_on_the_floor_at_the_origin_facing_z(clips):
    for id, _, j in clips:
        assert -0.03 < j[..., 1].min() < 0.03, id
        assert np.abs(j[0, PELVIS, [0, 2]]).max() < 1e-3, id
        across = j[0, 1] - j[0, 2] + j[0, L_SHOULDER] - j[0, R_SHOULDER]
        assert abs(np.arctan2(-across[2], across[0])) < 0.02, id


def test_standing_feet_do_not_slide(clips):
    by_action = collections.defaultdict(list)
    for _, action, j in clips:
        toes = j[:, [L_TOE, R_TOE]]
        step = np.linalg.norm(np.diff(toes[..., [0, 2]], axis=0), axis=-1) * 2000  # cm/s
        low = toes[..., 1] < 0.01
        by_action[action].append(step[low[1:] & low[:-1]])
    means = {action: np.concatenate(steps).mean() for action, steps in by_action.items()}
    assert max(means.values()) < 8, means
    assert np.concatenate([s for steps in by_action.values() for s in steps]).mean() < 1.5


def test_nothing_jerks(clips):
    for id, action, j in clips:
        bend = np.linalg.norm(np.diff(j, 2, axis=0), axis=-1).max()  # metres per frame, per frame
        most = 0.9 if not action else 0.75 if action in LIVELY else 0.45  # '': several in a row
        assert bend < most, (id, action, bend)


def test_knees_bend_forward(clips):
    for id, _, j in clips:
        left = j[:, 1] - j[:, 2]
        for hip, knee, ankle in ((1, L_KNEE, L_ANKLE), (2, R_KNEE, R_ANKLE)):
            leg = j[:, ankle] - j[:, hip]
            out = j[:, knee] - (j[:, hip] + j[:, ankle]) / 2
            forward = np.cross(leg, left)  # of the leg, wherever it points
            forward /= np.linalg.norm(forward, axis=1, keepdims=True)
            assert ((out * forward).sum(1) > -0.03).mean() > 0.97, (id, knee)


@pytest.mark.parametrize('action', sorted(set(CHECKS) - {'walk and jump'}))
def test_does_what_it_says(clips, action):
    check = squat if action == 'squat' else CHECKS[action]  # some clips stay down
    found = [(id, check(j)) for id, name, j in clips if name == action]
    assert len(found) >= 6
    assert not [id for id, good in found if not good]


def test_captions_are_many_and_well_formed(pack, texts):
    assert all(len(set(t)) == len(t) == 8 for t in texts)
    assert len({t for each in texts for t in each}) > 15000
    for i in range(len(pack)):
        for caption in pack.captions(i):
            text, tokens = caption.text, caption.tokens.split()
            assert re.fullmatch(r"[a-z0-9 ,]+\.?", text) and '  ' not in text, text
            assert all(re.fullmatch(r"[a-z0-9]+/[A-Z]+", token) for token in tokens), tokens
            assert len(tokens) == len(text.split())


def test_captions_name_the_right_side(clips, texts):
    for (id, action, _), lines in zip(clips, texts):
        waves = action.startswith('wave ') and 'both' not in action
        if waves or action.split(' ')[-1] in ('left', 'right'):
            wrong = 'left' if 'right' in action else 'right'
            assert not any(re.search(rf'\b{wrong}\b', line) for line in lines), (id, lines)


def test_captions_count_jumps(clips, texts):
    checked = collections.Counter()
    for (id, action, j), lines in zip(clips, texts):
        if action not in ('jump', 'jump forward', 'jump left', 'hop', 'hop forward'):
            continue
        up = airborne(j).astype(int)
        if 'hop' in action:  # one foot is up all the time
            toes = j[:, [L_TOE, R_TOE], 1]
            up = (toes[:, np.median(toes, axis=0).argmin()] > 0.035).astype(int)
        count = (np.diff(up, prepend=0) == 1).sum()
        for line in lines:
            once = line.replace('once, then once more', 'twice')
            said = [number for words, number in NUMBERS.items()
                    if re.search(rf'\b{words}\b', once)]
            checked[action.split()[0]] += len(said)
            assert all(number == count for number in said), (id, line, count)
    assert checked['jump'] > 200 and checked['hop'] > 100


def test_captions_count_steps(clips, texts):
    words = dict(a=1, one=1, two=2, three=3, four=4, five=5)
    checked = 0
    for (id, action, j), lines in zip(clips, texts):
        if action not in ('step forward', 'step left', 'step right', 'step backward'):
            continue
        toes = j[:, [L_TOE, R_TOE]]
        heights = [np.convolve(toes[:, side, 1], np.ones(5) / 5, 'same') for side in range(2)]
        swings = [((y[1:] > 0.035) & (y[:-1] <= 0.035)).sum() for y in heights]
        count = sum(swings) - 1 if 'left' not in action and 'right' not in action else swings[0]
        for line in lines:
            said = re.search(r'\b(a|one|two|three|four|five) '
                             r'((small|short|little|big|long|large) )?steps?\b', line)
            if said:
                checked += 1
                assert words[said[1]] == count, (id, line, swings)
    assert checked > 100


def test_no_word_betrays_an_action(pack, texts):
    """An attribute that suits many actions is not said of one of them most of the time."""
    said, of = collections.defaultdict(collections.Counter), collections.Counter()
    for i, lines in enumerate(texts):
        action = re.sub(r'\b(left|right)\b', 'SIDE', pack.action(i))
        if pack.splits[i] == 'train' and action:
            of[action] += len(lines)
            for line in lines:
                for word in set(line.rstrip('.').split()) & set(EVEN_WORDS):
                    said[word][action] += 1
    for word in EVEN_WORDS:
        possible = {action: of[action] for action in said[word]}
        share = {action: said[word][action] / said[word].total() for action in possible}
        ratio = {action: share[action] / (possible[action] / sum(possible.values()))
                 for action in possible}
        worst = max(share, key=share.get)
        assert len(possible) >= 8 and share[worst] < 0.45, (word, worst, share[worst])
        highest = max(ratio, key=ratio.get)
        limit = 5 if word in EVEN_WORDS[:12] else 9  # the others are said of few clips
        assert ratio[highest] < limit, (word, highest, ratio[highest])


def test_captions_are_made_of_english_words(texts):
    """Not of "troting", "nearlies" or "punchs"."""
    found = {word for lines in texts for line in lines for word in re.findall('[a-z0-9]+', line)}
    assert len(found) > 900
    assert sorted(found - words.vectors().number.keys() - set(RARE)) == []


def test_sequences_are_many_and_in_order(pack, texts):
    """Both parts are named, and 'walk, turn around and walk back' ends near where it began."""
    joined = [i for i in range(len(pack)) if not pack.action(i)]
    links = r'\b(then|and|before|after|followed|while|first|as)\b|,'
    assert all(re.search(links, line) for i in joined for line in texts[i])
    back = [i for i in joined
            if any(re.search(r'turn.*(walks?|comes?) back', line) for line in texts[i])
            and any(re.search('walks? back to the start', line) for line in texts[i])]
    assert len(back) >= 10
    for i in back:
        j = pack.joints(i)
        far, end = np.linalg.norm(j[:, 0, [0, 2]] - j[0, 0, [0, 2]], axis=1), j[-1, 0, [0, 2]]
        assert far.max() > 0.5 and np.linalg.norm(end) < 0.85 * far.max()
        assert abs(abs(heading(j)[-1]) - np.pi) < 0.6


def test_captions_know_kicking_and_hopping_legs(clips, texts):
    for (id, action, j), lines in zip(clips, texts):
        if action in ('kick', 'hop', 'hop forward'):
            ankles = j[:, [L_ANKLE, R_ANKLE], 1]
            height = ankles.max(0) if action == 'kick' else -np.median(ankles, axis=0)
            side = ('left', 'right')[int(height.argmax())]
            for line in lines:
                said = re.search(r'\b(left|right) (leg|foot)\b', line)
                assert not said or said[1] == side, (id, line)


def test_captions_know_fast_from_slow(clips, texts):
    pace = {True: [], False: []}
    for (_, action, j), lines in zip(clips, texts):
        if action == 'walk' and any(re.search('slow', line) for line in lines):
            pace[False].append(speed(j))
        if action == 'walk' and any(re.search('quick|fast|brisk', line) for line in lines):
            pace[True].append(speed(j))
    assert np.mean(pace[True]) > 1.3 * np.mean(pace[False])


# --------------------------------------------------------------------------------------------------
# The parts


def test_solve_keeps_bones_whatever_it_is_told():
    rng = np.random.default_rng(0)
    v = rng.normal(0, 1, (50, 19, 3))
    j = toy_body.solve(v, rng.random((50, 2)) < 0.5)
    lengths = np.linalg.norm(j[:, 1:] - j[:, motion.T2M.parents[1:]], axis=-1)
    assert np.abs(lengths / LENGTHS - 1).max() < 1e-9


def test_mirror_twice_is_nothing_and_joints_agree():
    rng = np.random.default_rng(1)
    v = rng.normal(0, 1, (5, 19, 3))
    assert np.array_equal(toy_body.mirror(toy_body.mirror(v)), v)
    path = rng.normal(0, 1, (5, 3))
    assert np.allclose(
        toy_body.mirror(toy_body.place(v, path)),
        toy_body.place(toy_body.mirror(v), path * (-1, 1, -1)),
    )


def test_lock_feet_holds_each_stance():
    rng = np.random.default_rng(2)
    v = np.cumsum(rng.normal(0, 0.01, (60, 19, 3)), axis=0) + rng.normal(0, 1, (19, 3))
    contact = np.zeros((60, 2), bool)
    contact[:20, 0] = contact[30:50, 0] = contact[10:35, 1] = True
    locked = toy_body.lock_feet(v, contact)
    for toe, a, b in ((toy_body.LT, 0, 20), (toy_body.LT, 30, 50), (toy_body.RT, 10, 35)):
        assert np.ptp(locked[a:b, toe], axis=0).max() < 1e-9
        assert np.allclose(locked[a:b, toe, 1], toy_body.TOE_Y)
    assert np.abs(np.diff(locked[:, toy_body.LT], axis=0)).max() < 0.2  # no jump between stances


def test_interpolate_meets_its_keys_without_overshoot():
    t, y = [0, 0.5, 0.8, 2.0], np.array([[0.0], [1.0], [1.0], [-1.0]])
    x = np.linspace(0, 2, 201)
    curve = toy_body.interpolate(t, y, x)[:, 0]
    assert np.allclose(toy_body.interpolate(t, y, np.array(t)), y)
    assert curve.max() <= 1 + 1e-12 and curve.min() >= -1 - 1e-12
    fall = toy_body.interpolate([0, 1], [0.0, 0.0], np.array([0.5]), [2.0, -2.0])
    assert np.allclose(fall, 0.5)  # a parabola from its end slopes


def test_verbs():
    third = [toy_captions._third(v) for v in ('jump', 'crouch', 'carry', 'do', 'sway', 'have')]
    assert third == ['jumps', 'crouches', 'carries', 'does', 'sways', 'has']
    ing = [toy_captions._ing(v) for v in ('run', 'wave', 'lie', 'flee', 'bow', 'tiptoe', 'trot')]
    assert ing == ['running', 'waving', 'lying', 'fleeing', 'bowing', 'tiptoeing', 'trotting']


def test_a_count_says_something_of_a_clip_though_it_may_be_left_out():
    told = [toy_captions._told('*clap {counted}', {'count': count}) for count in (1, 2, 3, 4, 5, 7)]
    assert told == [0, 1, 1, 1, 1, 1]


def test_nouns_are_asked_for_in_many_ways():
    rng = np.random.default_rng(0)
    kicks = {toy_captions._asked('= a high kick', rng) for _ in range(300)}
    assert {'= a high kick', '= high kick', '= a high kick, please', '= show me a high kick',
            '*do a high kick', '*perform a high kick', '= now a high kick'} <= kicks
    two = {toy_captions._asked('= two kicks', rng) for _ in range(300)}
    assert '= give me two kicks' in two and '= two kicks' in two
    assert not [x for x in (toy_captions._asked('= ~march in place', rng) for _ in range(100))
                if x[0] == '*']  # nobody does marching
    assert not [x for x in (toy_captions._asked('= two sips', rng) for _ in range(100))
                if x[0] == '*']
    assert '*perform two punches' in {toy_captions._asked('= two punches', rng)
                                      for _ in range(300)}


def test_whose_arm_one_is_asked_to_move():
    rng, said = np.random.default_rng(0), set()
    for _ in range(300):
        phrase, whose = toy_captions._framed('*raise their arm', rng)
        said.add(toy_captions._sentence(phrase, rng, 'command', whose).text)
    assert {'let him raise his arm', 'have her raise her arm', 'let them raise their arm',
            'make the figure raise its arm', 'have the man raise his arm', 'please raise your arm',
            'you raise the arm'} <= said
    assert not [text for text in said
                if re.match('(let|make|have)', text) and re.search('(your|the) arm', text)]


def test_nobody_acts_for_two_purposes():
    rng = np.random.default_rng(0)
    said = {toy_captions._beside('clap', '*clap for someone', {}, rng) for _ in range(400)}
    assert len(said) > 10
    assert not [text for text in said
                if re.search(r'someone (because|so|as|to|like)\b', text)]


def test_what_is_said_beside_an_action_fits_it():
    rng, facts = np.random.default_rng(0), {'tempo': 'fast'}
    said = {label: [toy_captions._beside(label, '*walk', facts, rng) for _ in range(600)]
            for label in ('walk', 'stumble')}
    moods = {label: sum(any(mood in text for mood in ('happily', 'eagerly', 'hastily'))
                        for text in lines) for label, lines in said.items()}
    assert moods['walk'] > 10 and not moods['stumble']
    for lines in said.values():
        assert any(re.search('like (a|an) ', text) for text in lines)
        assert 0.25 < np.mean([text != '*walk' for text in lines]) < 0.45
    assert toy_captions._beside('walk', '= a walk', facts, rng) == '= a walk'


def test_a_clip_of_another_form_is_refused(tmp_path):
    (tmp_path / 'a.txt').write_text('{"Frames": [[0.1, 0, 0, 0], [0.1, 0, 0, 0]]}')
    with pytest.raises(ValueError, match='44 numbers'):
        toy_clips.read_clip(tmp_path / 'a.txt')


def test_a_larger_set_has_the_same_clips_and_more_for_training(monkeypatch):
    """How build() counts, with a stand-in for the real clips and makers."""
    def make(rng, real):
        return rng.random(3), {}

    monkeypatch.setattr(toy, 'Real', lambda folder: None)
    monkeypatch.setattr(toy, 'ACTIONS', {'jump': (make, 25), 'step LEFT': (make, 10)})
    monkeypatch.setattr(toy, 'combinations', lambda *_: [])
    monkeypatch.setattr(toy, 'alive', lambda rng, segment: segment)
    monkeypatch.setattr(toy, 'joints_of', lambda segment: np.tile(segment, (2, 22, 1)))
    monkeypatch.setattr(toy, 'captions', lambda *_: [])
    one, three = toy.build('', 1), toy.build('', 3)
    assert len(one) == 70 and len(three) == 210
    assert len({clip.id for clip in three}) == 210
    for split, count in (('val', 6), ('test', 8), ('train', 56)):  # 2 + 1 and 3 + 1, and mirrors
        here, there = ([clip for clip in clips if clip.split == split] for clips in (one, three))
        assert len(here) == count and len(there) == count + 140 * (split == 'train')
        kept = [[clip for clip in there if clip.action == c.action and np.array_equal(
            clip.joints, c.joints)] for c in here]
        assert all(len(found) == 1 for found in kept)
    assert len({clip.joints.tobytes() for clip in three}) == 210
    monkeypatch.setattr(toy, 'combinations',
                        lambda *_: [('two in a row', (make, 30)), ('at once', (make, 5))])
    assert len(toy.build('', 3)) == 210 + 210 and len(toy.build('', 3, 1)) == 210 + 60 + 30
    same = toy.build('', 3, 1)[210:270]
    assert all(np.array_equal(a.joints, b.joints) for a, b in zip(same, toy.build('')[70:130]))
    monkeypatch.setattr(toy, 'combinations', lambda *_: [])
    monkeypatch.setattr(toy, 'HARD', {'jump': 4})
    more = toy.build('', 3)
    assert len(more) == 510 and sum(clip.split == 'train' for clip in more) == 496


@pytest.mark.skipif(
    not CLIPS_DIR,
    reason='NOT BUILT AGAIN: NANOMLD_TOY_CLIPS does not name pybullet_data/data/motions of 3.2.7',
)
def test_the_wheel_gives_the_same_pack_again(pack, texts):
    built = toy.build(CLIPS_DIR)
    assert [clip.id for clip in built] == pack.ids and [clip.split for clip in built] == pack.splits
    for i, clip in enumerate(built):
        assert [caption.text for caption in clip.captions] == texts[i]
        assert clip.action == pack.action(i)
        if i % 9 == 0:
            # the grid may turn a long path by a hair
            far = np.abs(clip.joints).max()  # metres
            assert np.abs(pack.joints(i) - clip.joints[:-1]).max() < 4e-3 + 1e-3 * far
