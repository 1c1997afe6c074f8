"""Everyday actions with things that are not there: cups, doors, balls. acting.py has the rules.

What is done with one hand is done with the left one here, but for throwing, picking up and
bowing a violin.
"""
from toy.acting import hand, perform
from toy.segments import both, lean, pick


def drink(rng, real, brief=False):
    back, hold = rng.uniform(12, 22), 0.2 if brief else rng.uniform(0.25, 0.6)
    low = hand('cup')
    sip = hand('mouth', head=(-back, 0, 0), chest=(-4, 0, 0))
    keys = [(0.45, sip), (hold, sip), (0.45, low)]
    return perform(rng, real, keys, [(0.4, low)], [(0.4, {})], most=4, fast=1.4, brief=brief)


def shake_hands(rng, real, brief=False):
    period, bend = rng.uniform(0.42, 0.5), rng.uniform(4, 10)
    up, down = (hand(arm, chest=(bend, -12, 0), head=(0, 8, 0)) for arm in ('grip', 'grip low'))
    return perform(rng, real, [(period / 2, up), (period / 2, down)], [(0.5, down)], [(0.5, {})],
                   fewest=2, fast=1.35, brief=brief)


def knock(rng, real, brief=False):
    period = rng.uniform(0.4, 0.46)
    away, at = (hand(arm, chest=(3, -8, 0)) for arm in ('rap', 'rapped'))
    return perform(rng, real, [(period / 2, at), (period / 2, away)], [(0.5, away)], [(0.45, {})],
                   fast=1.3, brief=brief)


def open_door(rng, real, brief=False):
    """Take the handle and pull, or push."""
    way = pick(rng, 'pull', 'push')
    at = hand('handle', chest=(4, -8, 0))
    far = hand('ahead', chest=(12, -18, 0), head=(-6, 14, 0))
    wide = hand('opened', chest=(-2, 20, 0), head=(0, -14, 0))
    end = wide if way == 'pull' else far
    keys = [(0.45, at), (0.2, at), (0.5, end), (rng.uniform(0.15, 0.5), end), (0.5, {})]
    return perform(rng, real, keys, most=2, fast=1.4, brief=brief, way=way)


def answer_phone(rng, real, brief=False):
    pose = hand('to ear', head=(rng.uniform(0, 8), 0, -rng.uniform(4, 12)))
    low = hand('cup', head=(14, 0, 0))
    hold = 0.3 if brief else rng.uniform(0.7, 1.6)
    keys = [(0.4, low), (0.4, pose), (hold, pose), (0.3, low), (0.3, {})]
    return perform(rng, real, keys, most=1, brief=brief, holds=pose)


def bounce_ball(rng, real, brief=False):
    period, bend = rng.uniform(0.48, 0.58), rng.uniform(12, 24)
    up, down = (dict(lean(4, bend, -8), p=(0, -y, -0.03), L=arm)
                for arm, y in (('ball up', 0.05), ('ball down', 0.07)))
    return perform(rng, real, [(period / 2, down), (period / 2, up)], [(0.4, up)], [(0.4, {})],
                   most=7, fast=1.3, brief=brief)


STANCE = dict(p=(0, -0.05, 0))


def golf(rng, real, brief=False):
    """Swing a club to the left: both hands low, up to the right, and through."""
    low = dict(STANCE, L='club', R='club', chest=(30, 0, 0), head=(8, 0, 0), pelvis=(6, 0, 0))
    top = dict(STANCE, L='club across', R='club up', chest=(16, -52, 0), head=(8, 40, 0),
               pelvis=(4, -18, 0))
    done = dict(p=(0.04, -0.02, 0), L='club up', R='club across', chest=(4, 55, 0),
                head=(0, 6, 0), pelvis=(0, 28, 0), rt=(0, 0, 0, 30))
    hold = 0.1 if brief else rng.uniform(0.15, 0.5)
    keys = [(0.55, low), (0.1, low), (0.55, top), (0.08, top), (0.2, low), (0.26, done),
            (hold, done), (0.5, {})]
    return perform(rng, real, keys, most=2, fast=1.3, brief=brief)


def tennis(rng, real, brief=False):
    back = dict(STANCE, L='racket', R='swing', chest=(4, 32, 0), head=(0, -28, 0),
                pelvis=(0, 14, 0))
    hit = dict(STANCE, L='racket hit', R='low', chest=(8, -8, 0), head=(0, 4, 0))
    after = dict(STANCE, L='racket after', R='low', chest=(6, -32, 0), head=(0, 22, 0),
                 pelvis=(0, -14, 0))
    low = hand('half')
    keys = [(0.5, back), (0.1, back), (0.25, hit), (0.26, after), (0.1, after), (0.24, low),
            (0.24, {})]
    return perform(rng, real, keys, most=4, fast=1.35, brief=brief)


def guitar(rng, real, brief=False):
    period, sway = rng.uniform(0.44, 0.56), rng.uniform(-4, 4)
    up, down = (dict(L='neck of guitar', R=arm, head=(12, 12, 0), chest=(4, 0, roll))
                for arm, roll in (('strum', sway), ('strummed', -sway)))
    return perform(rng, real, [(period / 2, down), (period / 2, up)], [(0.5, up)], [(0.5, {})],
                   most=8, fewest=3, fast=1.35, brief=brief)


def violin(rng, real, brief=False):
    period = rng.uniform(0.7, 0.95)
    near, far = (dict(L='violin', R=arm, head=(6, 22, -12), chest=(0, -roll, roll))
                 for arm, roll in (('bow in', 2), ('bow out', -2)))
    return perform(rng, real, [(period / 2, far), (period / 2, near)], [(0.5, near)], [(0.5, {})],
                   fewest=2, fast=1.35, brief=brief)


def lift(rng, real, brief=False):
    """Pick up a weight with both hands and press it overhead, once or more."""
    depth = rng.uniform(0.3, 0.36)
    down = lean(38, 26, -20, p=(0, -depth, -0.16), **both('weight'))
    rack, top = both('rack', p=(0, -0.02, 0)), both('overhead', chest=(-3, 0, 0))
    press = [(0.42, top), (0.22, top), (0.42, rack)]
    into = [(0.6, down), (0.15, down), (0.6, rack), (0.1, rack)]
    return perform(rng, real, press, into, [(0.5, {})], most=4, fast=1.4, brief=brief)


def stir(rng, real, brief=False):
    period, back = rng.uniform(0.75, 0.95), -1 if rng.random() < 0.5 else 1
    poses = [hand(f'stir {back * i % 8}', head=(16, 0, 0), chest=(6, 0, 0)) for i in range(8)]
    keys = [(period / 8, poses[i % 8]) for i in range(1, 9)]
    return perform(rng, real, keys, [(0.45, poses[0])], [(0.45, {})], fewest=2, fast=1.35,
                   brief=brief)


def sweep(rng, real, brief=False):
    """With a broom in both hands, from the right to the left."""
    period, bend = rng.uniform(0.75, 0.95), rng.uniform(12, 22)
    a, b = (dict(lean(4, bend, 8), p=(0, -0.03, 0)) | dict(
        L='sweep low', R='sweep', chest=(bend, yaw, 0)) for yaw in (-24, 24))
    return perform(rng, real, [(period / 2, b), (period / 2, a)], [(0.5, a)], [(0.45, {})],
                   fast=1.35, brief=brief)


def wipe(rng, real, brief=False):
    period, sway = rng.uniform(0.6, 0.75), rng.uniform(0, 5)
    a, b = (hand(arm, chest=(2, yaw, 0)) for arm, yaw in (('wipe in', -sway), ('wipe out', sway)))
    return perform(rng, real, [(period / 2, b), (period / 2, a)], [(0.5, a)], [(0.45, {})],
                   fast=1.35, brief=brief)


def catch(rng, real, brief=False):
    """With both hands, at the chest or above the head."""
    high = rng.random() < 0.4
    out = both('overhead' if high else 'catching', head=(-16 if high else 0, 0, 0),
               p=(0, 0 if high else -0.03, 0))
    caught = both('caught', chest=(8, 0, 0), head=(10, 0, 0), p=(0, -0.05, 0))
    keys = [(0.36, out), (0.12, out), (0.24, caught), (0.3, caught), (0.4, {})]
    return perform(rng, real, keys, most=4, fast=1.4, brief=brief, high=high)


def push(rng, real, brief=False):
    far, depth = rng.uniform(8, 16), rng.uniform(0.02, 0.06)
    step = dict(lt=(0, 0, 0.3, 0), rt=(0, 0, 0, 20))
    lifted = both('pressing', p=(0.0, -0.03, 0.05), lt=(0, 0.07, 0.15, 8))
    back = both('pressing', p=(0, -depth, 0.1), chest=(0, 0, 0), **step)
    out = both('ahead', p=(0, -depth - 0.03, 0.18), chest=(far, 0, 0), **step)
    into, leave = [(0.32, lifted), (0.2, back)], [(0.2, back), (0.25, lifted), (0.3, {})]
    return perform(rng, real, [(0.36, out), (0.2, out), (0.36, back)], into, leave, most=4,
                   fast=1.4, brief=brief)


def pull(rng, real, brief=False):
    """Something heavy, with both hands."""
    out = both('ahead', p=(0, -0.06, -0.03), chest=(12, 0, 0), head=(-8, 0, 0))
    back = both('pulled', p=(0, -0.1, -0.1), chest=(-10, 0, 0), head=(4, 0, 0))
    return perform(rng, real, [(0.5, back), (0.16, back), (0.42, out)], [(0.5, out), (0.1, out)],
                   [(0.45, {})], most=4, fast=1.4, brief=brief)


def pick_up(rng, real, brief=False):
    low = rng.uniform(0.32, 0.4)
    down = dict(p=(0, -low, -0.16), pelvis=(38, 0, 0), chest=(38, 12, 0), R='low', L='lap')
    up = dict(R='guard', chest=(4, 0, 0))
    keys = [(0.7, down), (0.15, down), (0.7, up), (0.15 if brief else rng.uniform(0.2, 0.5), up),
            (0.45, {}), (0.05, {})]
    return perform(rng, real, keys, most=3, fast=1.4, brief=brief, holds=up)


def throw(rng, real, brief=False):
    """With the right hand."""
    over, hard = rng.random() < 0.6, rng.random()
    a, b, c = ('cocked', 'thrown', 'after') if over else ('back', 'swing', 'front')
    twist = 24 + 10 * hard
    back = dict(R=a, L='swing', chest=(0 if over else 12, -twist, 0), head=(0, 28, 0),
                p=(0, -0.03, -0.05))
    hit = dict(R=b, chest=(12, 22, 0), head=(0, -15, 0), p=(0, -0.03, 0.05))
    after = dict(R=c, chest=(20 if over else 4, 30, 0), head=(-10, -20, 0), p=(0, -0.03, 0.06))
    keys = [(0.5, back), (0.08, back), (0.25, hit), (0.24, after), (0.45, {}), (0.06, {})]
    return perform(rng, real, keys, most=4, fast=1.3, brief=brief,
                   kind='overhand' if over else 'underhand')


MIME = {
    'drink': (drink, 14), 'shake hands': (shake_hands, 14), 'knock': (knock, 14),
    'open door': (open_door, 14), 'answer phone': (answer_phone, 14),
    'bounce ball': (bounce_ball, 14), 'golf': (golf, 14), 'tennis': (tennis, 14),
    'guitar': (guitar, 14), 'violin': (violin, 14), 'lift': (lift, 14), 'stir': (stir, 14),
    'sweep': (sweep, 14), 'wipe window': (wipe, 14), 'catch': (catch, 14), 'push': (push, 14),
    'pull': (pull, 14), 'pick up': (pick_up, 18), 'throw': (throw, 22)}
