"""How long a motion is that a sentence asks for, by its verbs: for weights that cannot tell.

    seconds("a person walks in a circle, then sits down")

The published model is told its length and has no opinion of its own. This is a rule, not a network:
the seconds of a plain sentence, and what each kind of verb adds. The numbers are a least-squares
fit to clips of HumanML3D's index, with their files' names for captions, and to captioned windows of
CMU's motion capture (`dev/fit_lengths.py`; docs/weights.md says how near it comes).
"""
import re

PLAIN = 7.0  # seconds
SHORTEST, LONGEST = 2.0, 9.8  # of HumanML3D's clips
ENDING = "(?:e?s|ing|ed|e)?"
# kind of verb or adverb, the beginnings of its forms: seconds that it adds
ADDS = {
    "walk|strid|stroll|march": -1.2,
    "jog": -1.9,
    "run|runn|ran|sprint": -2.2,
    "jump|leap|leapt": -1.8,
    "hop|hopp|skip|skipp": -1.3,
    "kick": -1.0,
    "punch|box|strik|hit": 0.9,
    "throw|threw|toss|catch|caught": -0.5,
    "sit|sat|sitt": 1.3,
    "stand|stood": -0.7,
    "squat|squatt|crouch|kneel|knelt|bend|bent|bow": -1.2,
    "step|stepp": -1.0,
    "turn|rotat": -0.4,
    "spin|spinn|spun|twirl|circl": 0.7,
    "danc|salsa|waltz": 1.4,
    "stretch|reach": -0.7,
    "crawl": 0.4,
    "drink|drank|eat|ate": 0.7,
    "wash|wip|clean|scrub": 1.3,
    "swing|swung|swim|swam": -0.7,
    "shak|shook": -1.2,
    "laugh|talk|speak|gestur": 0.8,
    "pick|lift|lay|plac|put|rais": -0.5,
    "pour|stir|mix|cut|open|clos": 0.3,
    "push|shov|trip|stumbl|recover": -1.2,
    "balanc": 0.2,
    "slow|slowly": 0.6,
    "quick|quickly|fast": -1.1,
    "twic|three|four|five|sever|times|repeatedly|again": 0.6,
}
PATTERNS = {kind: re.compile(rf"\b(?:{kind}){ENDING}\b") for kind in ADDS}


def verbs(text):
    """The kinds of verbs, rows of ADDS, that are in a text."""
    return [kind for kind, pattern in PATTERNS.items() if pattern.search(text.lower())]


def seconds(text):
    """The length of the motion that a text asks for, 2 to 9.8 seconds; 7.0 for no known verb."""
    return min(max(PLAIN + sum(ADDS[kind] for kind in verbs(text)), SHORTEST), LONGEST)
