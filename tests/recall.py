"""How far detectors can be trusted: recall on real clips that say a thing, false alarms on others.

    python tests/everyday.py --validate                       the toy set
    python tests/everyday.py --validate PACK [LABELS.csv]     another pack; id,label lines name its
                                                              actions, where it has none

A clip says an action by its label, and counts, sides, manner and sequences by its captions. It does
not say an action if neither its label nor any of its captions has a word for it.
"""
import csv
import re
from dataclasses import dataclass

import numpy as np

import detectors
import events
import gestures
import kinematics
import poses

NAMES = {name: value for module in (kinematics, events, gestures, detectors, poses)
         for name, value in vars(module).items() if not name.startswith("_")}

WORDS = {  # detector: what its action is called, in labels and captions
    "walk": r"walk|stroll|strid|stride|step|pace|wander|ambl|forward|strut|saunter|turn|foot|move"
            r"|march|limp|stagger|tiptoe|stumbl|proceed|go(es|ing)?\b|head|path|circle",
    "walk_backward": r"back|revers|retreat",
    "run": r"run|ran\b|jog|sprint|dash|rac(es|ing|e)|hurr|rush|speed|flee",
    "jog_in_place": r"jog|run|jump|hop|skip|march|danc|salsa|step|walk",
    "jump": r"jump|leap|hop|bounc|spring|vault|bound|skip|cartwheel|flip|kick|swing|climb",
    "hop": r"hop|jump|bounc|leap|skip|bound|danc|kick|salsa|jack|flip|climb|spring",
    "skip": r"skip|hop|gallop|danc|jump",
    "turn_any": r"turn|spin|twirl|pivot|rotat|face|round|whirl|danc|salsa|circle|twist|swing|revol",
    "spin": r"spin|turn|twirl|rotat|pirouet|whirl|round|danc|salsa|circle|cartwheel|revol",
    "sit": r"sit|sat\b|seat|chair|squat|crouch|kneel|lie|lay|roll|stool|climb|low|knee|crawl",
    "stand_up": r"stand|ris(e|ing)|get|got|squat|crouch|sit|climb|straight|jump|roll",
    "get_up": r"get|got|up\b|ris|stand|roll|feet",
    "squat": r"squat|crouch|duck|jump|leap|lunge|scoop|bend|low|knee|sink",
    "kneel": r"kneel|knee|crawl|fours|crouch|get|roll",
    "lie_down": r"lie|lay|lying|down|roll|fall",
    "crawl": r"crawl|fours|hands and knees|creep",
    "roll": r"roll|somersault|tumbl|get|flip|lie|lay",
    "cartwheel": r"cartwheel|wheel|handspring|flip",
    "backflip": r"flip|somersault|cartwheel|wheel",
    "kick": r"kick|leg|danc|salsa|jump|leap|knee|climb|swing|ladder|karate",
    "punch": r"punch|box|jab|fight|str[iu]k|blow|karate|fist|hit|sword|block|knife|dribbl|shot"
             r"|shoot|kick|wash|wip|reach|danc|salsa|traffic|circl|laugh",
    "wave": r"wav|greet|hello|goodbye|danc|salsa|wash|wip|traffic|circl|sword|karate|laugh",
    "clap": r"clap|applau|danc|salsa|wash|bottle|sword|laugh|traffic|box",
    "bow": r"bow|bend|bent|lean|greet|pick|reach|wash|scoop|lift|toe|laugh|danc|salsa|down|sit|kick"
           r"|squat|sword|polite|duck|stoop|climb|low",
    "throw": r"throw|toss|pitch|hurl|fling|ball|punch|box|danc|salsa|karate|sword|wash|fight|kick"
             r"|flip|wheel|laugh|traffic|circl",
    "pick_up": r"pick|lift|grab|scoop|wash|toe|floor|ground|crawl|roll|get|wheel|flip|sword",
    "raise_arms": r"arm|hand|reach|jack|stretch|danc|salsa|traffic|wheel|flip|sword|roll|climb"
                  r"|ladder|laugh|shot|wash",
    "jumping_jacks": r"jack|jump",
    "march": r"march|knee|step|danc|salsa|walk|run|jog|climb|stair|ladder|stamp|kick|jump|hop",
    "dance": r"danc|salsa|groov|boogie|jack|swing|spin|karate|box|fight|kick|twist|sword|punch|flip"
             r"|roll|jump|wheel|hop|run|jog|skip|turn|laugh|walk|crawl|wav|throw|clap|traffic|get",
    "look_around": r"look|turn|head|glanc|watch|spin|danc|salsa|around|round|circle|laugh|twist"
                   r"|swing",
    "step_aside": r"side|left|right|step|danc|salsa|turn|circle|dribbl|kick|jump|spin|wheel",
    "stand": r"stand|still|wait|idle|motionless|look|nod|head|drink|hand|rest|nothing|place",
}
LABELS = {  # action labels of the toy set, of the CMU windows and of Bandai: a detector
    "turn left": "turn_left", "turn right": "turn_right", "walk and turn left": "walk_turn_left",
    "walk and turn right": "walk_turn_right", "wave left hand": "wave_left",
    "wave right hand": "wave_right", "wave both hands": "wave_both", "raise both arms":
    "raise_arms", "walk and jump": "then(walk, jump)", "walk in a circle": "circle",
    "spin kick": "spin", "walk slowly": "walk", "walk quickly": "walk", "stride": "walk",
    "soccer kick": "kick", "karate side kick": "kick", "boxing": "punch", "forward jump": "jump",
    "jump and reach": "jump", "scoop and lift": "pick_up", "salsa": "dance", "indian dance":
    "dance", "walk-turn-left": "walk_turn_left", "walk-turn-right": "walk_turn_right",
    "wave-left-hand": "wave_left", "wave-right-hand": "wave_right", "wave-both-hands": "wave_both",
    "raise-up-both-hands": "raise_both", "raise-up-left-hand": "raise_left",
    "raise-up-right-hand": "raise_right", "sway side to side": "sway", "shake the head":
    "shake_head", "side step left": "step_left", "side step right": "step_right",
    "walk on tiptoe": "tiptoe", "kneel and stand up": "then(kneel, stand_up)",
    "walk and turn around": "walk_turn_around", "point left hand": "point_left",
    "point right hand": "point_right", "raise left arm": "raise_left", "raise right arm":
    "raise_right", "sneak": "walk",
}
COUNTED = {  # labels that begin so: their event
    "jumping jack": "jacks", "jump": "jumps", "hop": "hops", "clap": "claps", "squat": "squats",
    "kick": "kicks", "punch": "punches", "wave": "waves", "nod": "nods", "bow": "bows",
    "spin": "spins", "raise both": "arm_raises", "step": "steps",
}
SIDED = {  # detectors that have a left and a right form
    "kick": "kick", "punch": "punch", "hop": "hop", "throw": "throw", "point": "point",
    "raise": "raise", "turn": "turn", "spin": "spin", "step": "step", "side gallop": "side_gallop",
    "wave": "wave",
}
PACE = {  # label: what is less when it is done slowly
    "walk": "speed", "run": "speed", "walk backward": "speed", "crawl": "speed", "squat": "pace",
    "sit": "pace", "spin": "turn_rate", "wave": "hand_pace", "clap": "clap_rate", "turn":
    "turn_rate", "bow": "lean_rate", "march": "lift_rate", "stand up": "pace",
}
HEIGHT = {"jump": "rise", "kick": "kick_height", "squat": "drop", "bow": "tilt", "march": "knees"}
NUMBERS = ("once(?!, then| more)|one time", "twice|two times|once, then once more",
           "three times", "four times", "five times")
SLOW = r"slow|lazi|leisure|unhurr"  # calm and gentle is also what is done at an even pace
FAST = r"fast|quick|rapid|brisk|hurr|swift|speed"
HIGH, LOW = r"\bhigh|deep", r"small|slight|shallow|halfway|not (very )?(high|deep|low)"


@dataclass
class Clip:
    id: str
    label: str
    texts: list
    joints: np.ndarray


def detector(words):
    """'times(jumps, 2)' -> the detector, of the names in the five files."""
    return eval(words, dict(NAMES))


def named(label):
    """A label -> the words of its detector, or None where there is none."""
    words = LABELS.get(label, label.replace(" ", "_").replace("-", "_"))
    if "(" in words or words in NAMES:
        return words
    for between, kind in ((r" and then | then |, ", "then"), (r" while | and ", "together")):
        parts = re.split(between, label, maxsplit=1)
        parts = [named(part) for part in parts] if len(parts) == 2 else [None]
        if all(parts):
            return f"{kind}({parts[0]}, {parts[1]})"
    return None


def clips_of(path, labels=None, joints=None):
    """The clips of a pack; labels: {id: label} where the pack has none; joints: of each clip, if
    they are unpacked already."""
    from formats.pack import Pack

    pack = Pack.open(path)
    return [Clip(pack.ids[i], labels.get(pack.ids[i], "") if labels else pack.action(i),
                 [caption.text for caption in pack.captions(i)],
                 joints[i] if joints else pack.joints(i).astype(np.float64))
            for i in range(len(pack.ids))]


def read_labels(path):
    with open(path, newline="", encoding="utf-8") as file:
        return {row[0]: row[1] for row in csv.reader(file)}


def label_recall(clips):
    """{label: (detector's words or None, clips, share that it finds, ids it does not find)}"""
    found = {}
    for label in sorted({clip.label for clip in clips} - {""}):
        group, words = [clip for clip in clips if clip.label == label], named(label)
        hits = [words is not None and bool(detector(words)(clip.joints)) for clip in group]
        found[label] = (words, len(group), np.mean(hits),
                        [clip.id for clip, hit in zip(group, hits) if not hit])
    return found


def false_alarms(clips):
    """{detector: (clips that have no word for it, share of them in which it sees it, labels)}"""
    found = {}
    for name, words in WORDS.items():
        group = [clip for clip in clips
                 if not re.search(words, " ".join([clip.label, *clip.texts]), re.I)]
        hits = [clip.label for clip in group if NAMES[name](clip.joints)]
        found[name] = (len(group), len(hits) / max(len(group), 1), sorted(set(hits)))
    return found


def start_of(table, label):
    """The entry whose key the label begins with, the longest first, or None."""
    return next((table[key] for key in sorted(table, key=len, reverse=True)
                 if label.startswith(key)), None)


def said(clips):
    """[(attribute, clip, whether the joints agree with it)] of what captions say beyond the action:
    how many times, which side."""
    for clip in clips:
        text, events, side = " ".join(clip.texts), *(start_of(t, clip.label)
                                                     for t in (COUNTED, SIDED))
        numbers = [n for n, words in enumerate(NUMBERS, 1) if re.search(rf"\b({words})\b", text)]
        if events and len(numbers) == 1:
            yield f"{events}", clip, bool(detector(f"times({events}, {numbers[0]})")(clip.joints))
        sides = {word for word in ("left", "right") if re.search(rf"\b{word}\b", text)}
        if side and len(sides) == 1 and f"{side}_{min(sides)}" in NAMES:
            yield f"{side} left/right", clip, bool(NAMES[f"{side}_{min(sides)}"](clip.joints))


def shifted(clips):
    """[(attribute, clip, whether)]: slow, fast, high and low ones against the middle of the clips
    of their label that say none of it."""
    for table, less, more in ((PACE, SLOW, FAST), (HEIGHT, LOW, HIGH)):
        for label in sorted({clip.label for clip in clips}):
            quantity = table.get(label)
            if quantity is None or quantity not in NAMES:
                continue
            measure, group = NAMES[quantity], [c for c in clips if c.label == label]
            says = [[bool(re.search(words, " ".join(c.texts))) for words in (less, more)]
                    for c in group]
            plain = [measure(c.joints) for c, word in zip(group, says) if not any(word)]
            if not plain:
                continue
            for clip, (is_less, is_more) in zip(group, says):
                if is_less != is_more:
                    sign = 1 if is_more else -1
                    yield (f"{label} {('less', 'more')[is_more]} {quantity}", clip,
                           sign * (measure(clip.joints) - np.median(plain)) > 0)


def attribute_recall(clips):
    """{attribute: (clips that say it, share in which the joints agree, ids of the others)}"""
    found = {}
    for name, clip, agrees in [*said(clips), *shifted(clips)]:
        found.setdefault(name, []).append((agrees, clip.id))
    return {name: (len(rows), np.mean([a for a, _ in rows]), [i for a, i in rows if not a])
            for name, rows in sorted(found.items())}


def report(clips):
    print("label: detector, clips, recall")
    for label, (words, count, share, missed) in label_recall(clips).items():
        print(f"  {label:24s}{words or 'no detector':24s}{count:5d} {share:7.1%}  "
              + " ".join(missed[:6]))
    print("what captions add: clips, agreement")
    for name, (count, share, missed) in attribute_recall(clips).items():
        print(f"  {name:32s}{count:5d} {share:7.1%}  " + " ".join(missed[:6]))
    print("detector: clips without a word for it, false alarms")
    for name, (count, share, labels) in false_alarms(clips).items():
        print(f"  {name:24s}{count:5d} {share:7.1%}  " + ", ".join(labels[:5]))
