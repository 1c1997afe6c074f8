"""What a prompt asks for one after the other: "a man walks, then sits down" says two things.

    parts("a man walks, then sits down")       ["a man walks", "sits down"]
    parts("sit down after walking")            ["walking", "sit down"]
    parts("walks while waving")                ["walks while waving"]

sample.py makes a story of such parts (story.py), since one latent of the model that ships seldom
holds two actions. These are rules of English and no parser: docs/words.md counts how often they are
right. What they do not understand stays whole.
"""
import re

from words import SUBJECTS, stems, understand

MOST, LONGEST = 20, 1000  # parts, letters; a longer text is a tale, and stays whole
NAMES = 3  # words of who acts, after "before jumping,"

# what can be done by one body; words that are as often things (hand, back, face) are not here
ACTIONS = set("""
agree answer applaud ate backflip balance beckon bend block bounce bow box bring call cartwheel
catch celebrate cheer chop chuck circle clap clean climb conduct cook cover crawl creep crept
cross crouch curtsy dance danced dash did dig do dodge drag drank dribble drink drop duck eat
embrace extend faint fall fell flap flew fling flip flung fly fold freeze gallop gave gaze gesture
get give glance got grab greet halt held hide hit hobble hold hook hop hug hurl hurry jab jog jump
kick kneel knelt knock lay lean leap leapt lie lift limp lob look lower lunge made make march mix
moonwalk nod open paddle pause perform pick pirouette pivot play point polish ponder pose prance
pray press pretend pull pump punch push put race raise ran reach read rejoice retreat return rise
roll rose rotate row rub run salute sat saunter scamper scoop scramble scratch scurry search shake
shook shove shrug shuffle sidestep signal sip sit skip slam slap slid slide sneak somersault spin
spread sprint spun squat stagger stamp stand step stir stomp stood stop stretch stride strike
stroll strum strut stumble sway sweep swim swing swung take tap think threw throw tilt tiptoe took
toss touch trip trot tug tumble turn twirl twist uppercut wait walk waltz wander wash wave whirl
wipe wobble wonder write wrote yawn
""".split())
MOVES, WHERE = {"go", "move", "come", "went", "came"}, set("""
forward forwards backward backwards ahead back left right around sideways up down away""".split())
GETS = {"get", "got"}  # out of bed: it only says when the rest is done
BEGINS = {"start", "begin"}  # and then an action; so does "slow" before "down"
KEEPS = {"keep", "continue"}
# how an action begins, and how it ends: parts of it, unless more is said
PREPARES = set("""
bend bring come crouch extend get go grab hold lean lift lower open push put raise reach rise
stand stood swing take went
""".split())
RISES = {"stand", "rise", "get", "stood", "rose", "got"}
RESTS = {"sit", "lie", "sat", "lay"}  # down; who then rises does something else
ENDS = set("lower stop halt return pause".split())
# one of the first, and then one of the second: that is one action
ONE = [[set(words.split()) for words in pair.split("|")] for pair in """\
squat crouch kneel bend bow duck lunge lean knelt roll fall fell|stand rise get stood rose got
pick grab touch reach trip stumble sit lie sat lay|stand rise get stood rose got
jump leap hop leapt spin spun|spin turn rotate flip backflip kick twist twirl spun
trip stumble stagger tumble|stumble stagger fall fell trip
pick lift|lift raise put lower
skip gallop|hop jump skip gallop
walk run jog march stroll stride sprint trot pace sneak tiptoe crawl hop ran crept saunter \
scamper scurry retreat|\
wave clap raise point salute lift swing punch reach stretch flap shake nod look throw box shook \
swung turn rotate spin circle pivot""".splitlines()]
GAITS = ONE[-1][0]
PARTS = set("head body palm torso shoulder hip arm chest trunk".split())  # "turns her head and"
THINGS = set("answer box block call drink drop hook play race stamp tap".split())  # after a, the
PASSIVE = set("is are was were be been being".split())  # before what is done to somebody
PRONOUNS = set("he she they it you i we".split())
ARTICLES = set("a an the one another this that his her their your".split())
BETWEEN = PRONOUNS | ARTICLES | SUBJECTS | set(
    "then again also just finally lastly next now please do does is are was quickly slowly "
    "suddenly carefully immediately simply".split())

WORD = r"[^\W_]+(?:['\u2019-][^\W_]+)*"
THEN = re.compile(r"""
    (?:\s*[,;.!?]\s*|\s+(?=(?:and|then)\b))(?:and\s+)?(?:then\s+)?
        (?:finish|end)(?:es|s|ed|ing)?\s+(?:off\s+)?with(?=\s+(?:an?|one|two|three)\b)
    | [\s,;.!?]+ (?:and\s+|but\s+)? (?:then|afterwards?|finally|lastly|followed\s+by|until|
        (?:right\s+|soon\s+|shortly\s+)?after\s+(?:that|this|which|a\s+(?:while|moment|bit))|
        (?:a\s+(?:while|moment|bit)|moments|(?:\d+\s+|a\s+few\s+)?seconds)\s+later)\b (?:\s*,)?
        (?:\s+(?:and\s+)?then\b)?
    | (?:[,;.]\s*|\s+and\s+)(?:next|after\s+it)\b (?:\s*,)?
    | (?:\s*,\s*(?:and\s+)?|\s+and\s+)stop(?:s|ping)?\s+to\b
    | [.;!?]\s+ (?:(?:second|third|fourth|fifth)(?:ly)?,\s+)?
    | \s*[\n\u3001\uff1b\uff01]\s* | \s+[\u2013\u2014]\s+
    | \s*(?:[-=]+>|[\u2190-\u21ff\u2794\u279c-\u27bf\u27f0-\u27ff])\s* """, re.X | re.I)
BEFORE = re.compile(r"[\s,]+before\s+", re.I)
AFTER = re.compile(r"[\s,]+(?:(?:right\s+|just\s+)?after|once\s+(?:you|he|she|they)"
                   r"(?:['\u2019](?:re|s|ve))?\s+(?:(?:have|has|are|is)\s+)?"
                   r"(?:finished|done)(?=\s+\w+ing\b))\s+", re.I)
FRONT = re.compile(r"\s*(after|before)\s+([^,]+),\s*(.+)", re.I | re.S)
WHEN = re.compile(r"\s*(?:before|after|when|once|if|because)\b", re.I)
JOINT = re.compile(r"\s*,\s*(?:and\s+)?|\s+(?:and|&|\+)\s+", re.I)
TOGETHER = re.compile(r"\b(?:while|whilst|as (?:he|she|it|they|you|if|though)|simultaneously|"
                      r"together|at the same time|both(?! (?:sides|ways|directions))|"
                      r"alternat(?:ely|ing)|repeatedly|each other|"
                      r"another (?:person|man|woman|one|guy|girl|boy))\b", re.I)
NEGATED = re.compile(r"\b(?:not|cannot|never|without|(?<!head )no|rather than|instead of)\b|"
                     r"^(?:nobody|noone)\b|n['\u2019]t\b", re.I)
ASIDE = re.compile(r"\b(?:left|right)(?! (?:leg|foot|knee|hand))\b|"
                   r"\b(?:around|aside|sideways|back)\b", re.I)
ROUND = re.compile(r"\bturn\w* a?round\b(?!.*\b(?:twice|times|full|circle)\b)", re.I)
TIMES = re.compile(r"\b(?:once|twice|thrice|times|\d)\b", re.I)
ITEM = re.compile(r"(?:^|[\s,;.]+)\(?\d{1,2}[.)]\s+")  # of a list that begins with "1."
FIRST = re.compile(r"^\s*(?:first(?:ly)?|at first|to begin with)\b[\s,]*|"
                   r"[\s,]+(?:at first|first)\s*$", re.I)


def is_any(word, those):
    """Whether a word or what it may be a form of is one of those."""
    return not those.isdisjoint({word, *stems(word)})


def words_in(text):
    return re.findall(WORD, text.lower())


def acts(text):
    """The actions of a text, in order."""
    found = ["", *words_in(text), "", "", ""]
    some = [i for i, word in enumerate(found) if word and (
        is_any(word, ACTIONS) and not (is_any(word, GETS) and "bed" in found[i + 1:i + 4])
        or is_any(word, MOVES) and found[i + 1] in WHERE)]
    true = [i for i in some if not is_thing(*found[i - 1:i + 2])]
    return [found[i] for i in true or some]  # "a hook" alone is one


def is_thing(before, word, after):
    """Whether a word between two others is no action beside one: the answer, a waiting room, is
    called."""
    return before in ARTICLES and (is_any(word, THINGS) or word.endswith("ing") and after != "") \
        or before in PASSIVE and word.endswith("ed")


def begins(text, names=0):
    """Whether a text begins with an action, perhaps after its subject: "the man quickly sits".
    names: how many words of the subject need not be known, before an action with an s: "mr Brown
    sits"."""
    found, others = ["", *words_in(text), "", ""], 0
    for i, (before, word, after) in enumerate(zip(found, found[1:], found[2:-1])):
        first = is_any(word, ACTIONS | MOVES | BEGINS) or after == "down" and is_any(
            word, {"slow"}) or is_any(word, KEEPS) and any(
                is_any(one, GAITS) for one in found[i + 2:i + 4])
        if first and not is_thing(before, word, after):
            return bool(acts(text)) and (not others or word.endswith("s"))
        others += word not in BETWEEN
        if others > names:
            return False
    return False


def is_whole(text):
    """Whether a clause is an action by itself, and not the beginning of what follows."""
    action, found = acts(text)[-1], words_in(text)
    if is_any(action, {"turn", "step"}):  # to the left, around; but not forward or the head
        return bool(ASIDE.search(text)) and not any(is_any(word, PARTS) for word in found)
    return not is_any(action, PREPARES) or is_any(action, RISES) and "up" in found


def one_motion(a, b, then):
    """Whether two clauses tell of one motion: a walk that turns or waves, down and up again.
    then: whether a word between them says that one comes after the other"""
    first, second, found = acts(a)[-1], acts(b)[0], words_in(b)
    rises = is_any(second, RISES) and ("up" in found or is_any(second, {"rise", "rose"}))
    if is_any(first, RESTS) and "down" in words_in(a) and rises and not TIMES.search(b):
        return False
    if is_any(second, ENDS) or "back" in found and is_any(second, RISES | {"bring"}):
        return True
    if all(is_any(word, {"stand"}) for word in acts(a)) and "up" not in words_in(a):
        return True  # stands, then turns
    if then:
        return is_any(first, ONE[0][0]) and is_any(second, ONE[0][1])
    if is_any(second, RISES) and not rises or any(
            is_any(first, one) and is_any(word, two) for one, two in ONE for word in acts(b)):
        return True
    at, early = found.index(second), [word for word in found[:3] if is_any(word, KEEPS)]
    together = (second.endswith("ing") and not all(word.endswith("ing") for word in acts(a))
                and not any(is_any(word, BEGINS | KEEPS) for word in found[:at]))
    return together or not is_whole(a) or bool(early) and is_any(second, {first, *stems(first)})


def listed(text):
    """Split a text at the commas and "and"s that an action follows."""
    if TOGETHER.search(text):
        return [text]
    found, at = [text], 0
    for link in JOINT.finditer(text):
        a, b = found[-1][:link.start() - at], text[link.end():]
        rest = JOINT.split(b)[0]
        if acts(a) and not WHEN.match(a) and begins(rest) and not one_motion(a, rest, False):
            found[-1:], at = [a, b], link.end()
    return found


def ordered(text):
    """The two parts of "sits down after walking", as they are done; [text] if there are not two."""
    front, after, before = FRONT.fullmatch(text), AFTER.split(text), BEFORE.split(text)
    if front and begins(front[2]) and begins(front[3], NAMES):
        return [front[2], front[3]] if front[1].lower() == "after" else [front[3], front[2]]
    if len(after) == 2 and acts(after[0]) and begins(after[1]):
        return after[::-1]
    if len(before) == 2 and acts(before[0]) and begins(before[1]):
        return before
    return [text]


def parts(text):
    """The parts of a prompt that are to be done one after the other, in their order; [text] where
    it asks for one thing."""
    whole = text
    if len(text) > LONGEST or NEGATED.search(text):
        return [whole]
    text = text.strip()
    if len({*words_in(text)}) == 1:  # Run! Run!
        return [whole]
    if text.startswith(("1. ", "1) ", "(1) ")):
        text = ITEM.sub(". ", text)[2:]
    links = [(0, 0), *(link.span() for link in THEN.finditer(text)), (len(text), len(text))]
    spans = [(a[1], b[0]) for a, b in zip(links, links[1:])]
    pieces = [text[a:b] for a, b in spans]
    if not acts(pieces[0]) or not all(begins(ordered(piece)[0]) for piece in pieces[1:]):
        return [whole]
    first, joined = 0, []
    for (_, end), (start, stop) in zip(spans, spans[1:]):
        if not one_motion(text[first:end], text[start:stop], True):
            joined.append(text[first:end])
            first = start
    found = [part for piece in [*joined, text[first:]] for part in ordered(piece)]
    found = [part for one in found for part in listed(one)]
    found = [FIRST.sub("", part).strip(" \t\n,;.!?\uff0c") for part in found]
    for i, part in enumerate(found):  # who has turned round and walks back walks forward
        act = acts(part)[0]
        if is_any(act, GAITS) and any(ROUND.search(one) for one in found[:i]):
            found[i] = re.sub(rf"\b({act})\s+back\b(?!\s+and\b)", r"\1", part, flags=re.I)
    return found if 1 < len(found) <= MOST else [whole]


def taken_apart(prompt, vocabulary):
    """The parts of a prompt that are done one after the other, spelled right, and {a word that was
    not: the known word}; [prompt] and {} where it asks for one thing, where the model understands
    nothing of a part, or has no vocabulary of its own."""
    spelled = understand(prompt, vocabulary).spelled if vocabulary else {}
    text = re.sub(r"\w+", lambda word: spelled.get(word[0].lower(), word[0]), prompt)
    found = parts(text) if vocabulary else []
    if len(found) > 1 and all(understand(part, vocabulary).says for part in found):
        return found, spelled
    return [prompt], {}
