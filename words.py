"""Words: how a sentence is cut into them, their vectors, and what a prompt's words are taken for.

    words_of("A man side-steps!")              ["a", "man", "side", "steps"]
    report = understand("a man saunters", vocabulary)
    report.text, report.notes                  what the model reads; what the user should be told

word_vectors.bin has vectors for 20,000 frequent English words and for words about motion. They are
GloVe's, made smaller by toy/word_vectors.py; all forms of a word share one. Words with vectors at a
small angle mean similar things, so a word that training never saw is understood by its neighbours.
docs/words.md tells how well that works, and where it does not.
"""
import functools
import hashlib
import os
import re
import unicodedata
from typing import NamedTuple

import numpy as np

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "word_vectors.bin")
TITLE = "nanoMLD word vectors 1"

# --------------------------------------------------------------------------------------------------
# The words of a text

WORD = re.compile(r"\w+(?:'\w+)?")
# what is one word in a prompt, unknown to all: numbers that no count is (-3, .5, 2.5, 2-3, 2 or 3),
# times, more than one body, what no clip does, and what turns the rest into its opposite
DASH, COUNT = "-\u2010-\u2015\u2212~", r"\d+(?:[.,]\d+)*"
ONE = r"(?:\d+|two|three|four|five|once|twice)"
ODD = (rf"\d+(?: ?[{DASH}] ?\d+|[.,:/'\u2044]\d+)+|\d+\+"
       rf"|(?<!\w)(?:[{DASH}<>\u2264\u2265\xb1][.,]?|[.,]){COUNT}"
       rf"|\b(?:{ONE}|one) (?:or|to) {ONE}\b"
       r"|\b\d+ ?(?:s|secs?|seconds?|mins?|minutes?|hours?)\b"
       r"|\b(?:one|two|three|four|five|six|seven|eight|nine|ten) (?:secs?|seconds?|minutes?)\b"
       r"|\b(?:rather than|instead of|each other|one another)\b"
       r"|\b(?:two|three|four|five|six|seven|eight|nine|ten|several|many|\d+) (?:people|persons|men"
       r"|women|kids|children|guys|girls|boys|friends|dancers|boxers|fighters|players|actors"
       r"|soldiers|wrestlers)\b"
       r"|(?<!nearly )(?<!almost )\b(?:falls?|fell|falling) (?:down|over|to|on|onto|flat|off"
       r"|forwards?|backwards?)\b(?! (?:(?:on|to) )?(?:\w+ ){0,3}knees?\b)"
       r"|\bfigure (?:of )?(?:eight|8)\b"
       r"|\bplay(?:s|ed|ing)? (?:the |a |his |her |my |your |their )?piano\b")
TIME = re.compile(r"\d ?(?:s\b|sec|min|hour)|(?:sec|second|minute)s?$")
PROMPT = re.compile(f"{ODD}|{WORD.pattern}")


def words_of(text):
    """The words of a text, in lower case, as a list."""
    return WORD.findall(text.lower())


def vocabulary_of(texts):
    """The sorted list of the words in an iterable of texts, for WordEncoder."""
    return sorted({word for text in texts for word in words_of(text)})


def drop_words(text, rng, share, rows=0.0):
    """Replace a `share` of the words by _, which stands for the unknown word. That word is trained
    in this way, and prompts are understood with a word missing. A further share, `rows`, gets a _
    in front: of such a word the encoder reads the vector and not the row. rng: numpy Generator."""
    words = words_of(text)
    drawn = rng.random(len(words))
    return " ".join("_" if x < share else "_" * bool(x < share + rows) + word
                    for word, x in zip(words, drawn))


DIGITS = "zero one two three four five six seven eight nine ten eleven twelve".split()
NUMBERS = {str(i): word for i, word in enumerate(DIGITS)} | {
    word: str(i) for i, word in enumerate(DIGITS)}
# in what a prompt says
ALIKE = NUMBERS | {"secs": "seconds", "reps": "times"} | dict(
    pair.split(":") for pair in """faster:fast slower:slow quicker:quick higher:high highest:high
    deeper:deep deepest:deep bigger:big biggest:big larger:large wider:wide further:far farther:far
    longer:long harder:hard softer:soft""".split())


def stems(word):
    """What a word may be a form of: walks, walking, walked -> walk; hurries -> hurry."""
    found = []
    for ending, others in (("'s", ("",)), ("ies", ("y", "ie")), ("es", ("", "e")), ("s", ("",)),
                           ("ing", ("", "e", "ie")), ("ied", ("y", "ie")), ("ed", ("", "e"))):
        stem = word.removesuffix(ending)
        if stem == word or len(stem) < 2:
            continue
        found += [stem + other for other in others]
        if ending in ("ing", "ed") and stem[-1] == stem[-2]:
            found.append(stem[:-1])
    return found


# --------------------------------------------------------------------------------------------------
# The vectors


class Vectors(NamedTuple):
    number: dict  # word -> its row of the table; all forms of a word have the same
    forms: list  # of rows: the words that share each
    table: np.ndarray  # (rows, D) int8; times scale, these are vectors of about length 1
    scale: float
    digest: str  # SHA-256 of all of it, which checkpoints keep

    def unit(self, words):
        """(len(words), D) float32, of length 1; KeyError for a word without a vector."""
        rows = self.table[[self.number[word] for word in words]].astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@functools.cache
def vectors(path=PATH):
    """The Vectors in a file, which is read once. FileNotFoundError or ValueError in one sentence
    for a file that is not there or not whole."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no {path}, which has the word vectors: get it again, or "
                                "make it with: python -m toy.word_vectors") from None
    return unpack(data, path)


def unpack(data, path="the file"):
    """The Vectors in the bytes of a file, which `pack` made."""
    head, _, body = data.partition(b"\n")
    title, *rest = head.decode(errors="replace").rsplit(" ", 4)
    if title != TITLE or hashlib.sha256(body).hexdigest() != rest[-1]:
        raise ValueError(f"{path} is not a whole file of word vectors; get it again.")
    rows, width, scale = int(rest[0]), int(rest[1]), float(rest[2])
    table = np.frombuffer(body, np.int8, rows * width)
    forms = [line.split(" ") for line in body[rows * width:].decode().splitlines()]
    number = {word: row for row, line in enumerate(forms) for word in line}
    return Vectors(number, forms, table.reshape(rows, width), scale, rest[-1])


def pack(forms, table):
    """The bytes of a file with these lists of words, and a vector (len(forms), D) for each."""
    scale = float(f"{np.abs(table).max() / 127:.6g}")
    body = np.clip(np.rint(table / scale), -127, 127).astype(np.int8).tobytes()
    body += "".join(" ".join(words) + "\n" for words in forms).encode()
    digest = hashlib.sha256(body).hexdigest()
    return f"{TITLE} {len(table)} {table.shape[1]} {scale:.6g} {digest}\n".encode() + body


def row_of(word):
    """A word's row of the table, or that of what it may be a form of, or None. A _ in front, with
    which drop_words marks it, does not count."""
    number, word = vectors().number, word.lstrip("_")
    word = word if word in number else NUMBERS.get(word, word)
    return next((number[one] for one in (word, *stems(word)) if one in number), None)


def table_of(vocabulary):
    """(2 + len(vocabulary) + rows, D) int8: nothing for the unknown word and the end token, then
    the vectors of a vocabulary's words, nothing for one without, then the whole table."""
    rows, table = [row_of(word) for word in vocabulary], vectors().table
    own = [table[row] if row is not None else 0 * table[0] for row in rows]
    return np.concatenate([[0 * table[0]] * 2, *([row] for row in own), table])


def extended(rows, vocabulary, more, vectors=True):
    """For fine-tuning: the rows (2 + V, W) of an encoder's token_embedding.weight, array or tensor,
    and its vocabulary -> both with the words of `more` that it lacks, added at the end. A new word
    with a vector starts with a row of zeros, as training has seen it all along when rows were
    dropped; one without, or all without text.vectors (`vectors`), as the unknown word."""
    new = sorted({*more} - {*vocabulary})
    longer = rows[[*range(len(rows)), *[0] * len(new)]]
    for i, word in enumerate(new, len(rows)):
        if vectors and row_of(word) is not None:
            longer[i] *= 0
    return longer, [*vocabulary, *new]


# Words on one side of the bar never stand for words on its other side. Vectors cannot see this:
# newspapers say left where they could have said right.
OPPOSITES = [[side.split() for side in pair.split(" | ")] for pair in """\
left leftward leftwards | right rightward rightwards
forward forwards ahead onward onwards | backward backwards
up upward upwards upstairs | down downward downwards downstairs
quickly fast rapidly swiftly briskly hastily hurriedly | slowly sluggishly leisurely lazily
quick rapid swift brisk speedy | slow sluggish unhurried
clockwise | counterclockwise anticlockwise
raise lift hoist elevate | lower drop
push shove thrust | pull tug yank drag haul
high | low
stand rise arise | sit kneel crouch squat lie
start begin | stop halt end
ascend climb | descend
throw toss hurl | catch
front | back
before | after
happily joyfully | sadly
straighten | bend
open | close
in | out
above | below
tall | short
approach advance | retreat withdraw""".splitlines()]

# What words mean here, where their vectors are far from it or near something else.
MEANS = {word: meant for meant, words in (line.split(": ") for line in """\
quickly: frantically wildly
energetically: angrily furiously
powerfully: violently forcefully
very: extremely incredibly super
couple: pair
big: giant
points: aim
stands: freeze""".splitlines()) for word in words.split()}

# --------------------------------------------------------------------------------------------------
# What a prompt's words are taken for

LIKE = 0.65  # cosine from which a known word may stand for one that training never saw
MARGIN = 0.1  # by which it must be nearer than its opposite
# words that carry no meaning here: nobody needs to hear that one of them is unknown
SMALL = set("""
a an the this that these those some any each every all both such same other another own one its his
her their my your our it he she they we you i him them me us himself herself themselves itself who
which whose whom what where why how when while whilst as if than so and or but yet also too just
only of in into onto to at by for from on upon off with within through about like is are was were
be been being am has have had having do does did doing done can could will would shall should may
might must everyone everybody nobody there here then now very quite rather really bit lot kind sort
way please
let lets make makes made show
video animation motion s t""".split())
# words that stand for no other: they are like very many
VAGUE = set("""
something nothing anything everything thing things object several many few multiple whole half
times degrees easy normal full make makes making get gets getting place forth speed know""".split())
# words that stand for nothing, since vectors have them near what they do not mean: cry laugh
UNLIKE = set("""
want wants wanted maybe perhaps else cry cries cried crying weep weeps nowhere love loves loved
finger fingers drunk minute minutes hour hours first second third fourth fifth
horizontal horizontally vertical vertically
collapse collapses collapsed collapsing faint faints fainted fainting topple topples""".split())
SUBJECTS = set("""
man men woman women person people human humans someone somebody anyone guy girl boy lady gentleman
figure character individual child kid adult actor subject body""".split())
# unknown even where captions had them: a few of these teach nobody to leave something out
NOT = {"not", "no", "never", "without", "neither", "nor", "cannot", "none"}
NOBODY = {"nobody", "noone"}  # as the first word
# around who acts; an unknown word stands for one of these only after a SMALL one: a creek is
# like a lake, but who "rides" is no bike
SCENERY = set("""
airport altar angry apple armchair ask attention awake bag bank bar barely basket bear bed began
bench better bike birds boat brave bride bridge brother bus butler cable cake came captain cars
cart castle church circus city classroom clock club coffee combination corridor court cradle crowd
curtain customer day desert desk detective distance dog drawer edge end ending ends exam excited
family farm feel fence field film fire fireman flag flat forest fridge gate general goal grandpa
grave guest hear hearing heat help hole horse hospital hotel hunter index interview
invisible judge juice knowing ladder lake lamp lane level library life lifeguard lonely maid map
market meal mechanic meeting milk money monkey moon more mountain mum museum name news night
office officer oven pain path patient pen photographer piano pillow pilot plane plant playground
police pond prison puddle pupil question quiet rain restaurant river root rope scared screen sea
shadow shelf ship shoe shoes shop shy sign sink sister sofa speech stairs stars station statue
storm store stove stream stuck taxi tea teddy tent theater tower train truck tunnel understand
village wake wakes waking war warm watching weather wire witness zoo
""".split())
# of these words alone nobody can make a motion
SAY_NOTHING = SMALL | SUBJECTS | SCENERY | {*DIGITS, *map(str, range(100)), *"""
_ once twice thrice times time second seconds minute minutes slowly quickly fast rapidly
calmly freely carefully politely happily lightly quietly easily gently firmly naturally simply
suddenly cheerfully nicely properly proudly gracefully cautiously lazily sleepily eagerly
energetically excitedly hastily room outside outdoors park garden hall morning stage home gym work
street front camera mirror audience over today moment while fun alone friend kitchen house school
party beach grass practice behind near beside next opposite against before after table car tree
door wall window chair teacher boss guests children neighbor master king judges mother opponent
enemy wind thank impress amuse warn tease surprise honor joke test usual game baby robot machine
hero clown cat pro beginner athlete joy care ease smile confidence effort lunch dinner nap
greeting thanks exactly total student worker player performer stranger old young tall give see
try because style passion concert class training scene movie late ready hears music song noise won
lost match bet knows cares raining cold hot waiter policeman grandma uncle nurse pirate ninja queen
tourist chef toddler coach singer wizard referee gymnast farmer princess dad mom fan monk sailor
visitor teenager knight
calm careful during ever great polite spot win happy hard merrily frantically strong
single""".split()}
SIDE = {word: (number, side) for number, pair in enumerate(OPPOSITES)
        for side, words in enumerate(pair) for word in words}


class Report(NamedTuple):
    """What became of a prompt."""
    prompt: str
    text: str  # what the model should read; the prompt itself where every word is known
    spelled: dict  # {a word that is not spelled so: the known word}
    taken: dict  # {a word that training never saw: the known word that is like it}
    unknown: list  # words that nothing known is like; the model reads them as a missing word
    says: bool  # whether anything is left that tells what to do

    @property
    def notes(self):
        """Sentences for the user, one for each kind of thing to know; none if all is known."""
        said = []
        if self.spelled:
            said.append(f"Read {and_so_on(f'{a!r} as {b!r}' for a, b in self.spelled.items())}.")
        if self.taken:
            pairs = and_so_on(f"{a!r} is taken for {b!r}" for a, b in self.taken.items())
            said.append(f"Not among the words of the training: {pairs}.")
        if self.unknown:
            said.append(f"Unknown, and like nothing that is known: "
                        f"{and_so_on(map(repr, self.unknown))}. This model's actions are listed "
                        "by --list."
                        + " --seconds says how long." * any(map(TIME.search, self.unknown)))
        return said

    @property
    def error(self):
        """Why no motion can be made of the prompt, or an empty string."""
        if self.says:
            return ""
        why = f": it does not know {and_so_on(map(repr, self.unknown))}" if self.unknown else ""
        return (f"Nothing in the prompt {self.prompt!r} tells this model what to do{why}. Its "
                "actions are listed by --list; --unconditional makes any motion.")


def and_so_on(parts):
    *some, last = parts
    return f"{', '.join(some)} and {last}" if some else last


def distance(a, b, most):
    """How many letters must be put in, left out, changed or swapped with the next one to turn a
    into b; most + 1 if they are more than `most`."""
    if abs(len(a) - len(b)) > most:
        return most + 1
    before, row = None, list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > most:
            return most + 1
    return min(row[-1], most + 1)


class Known:
    """A vocabulary, and how its words are found from others."""

    def __init__(self, vocabulary, held=None):
        self.words, self.held = set(vocabulary), held or vectors()
        forms = [word for word in vocabulary if word in self.held.number and word not in
                 SMALL | NUMBERS.keys()]
        self.of_row = {}
        for word in forms:
            self.of_row.setdefault(self.held.number[word], []).append(word)
        meant = [word for word in forms if word not in VAGUE]  # got is gets, but obtain is not
        self.meant, self.unit = np.array(meant), self.held.unit(meant)

    def find(self, word):
        """(how, known word or None) for a word: how is "same", "small", "form", "like", "spelled",
        or None."""
        if word in NOT:
            return None, None
        if word in self.words:
            return "same", word
        if ALIKE.get(word) in self.words:
            return "same", ALIKE[word]
        if word in SMALL:
            return "small", None
        options = [word, *stems(word)]
        for option in options:
            if option in self.words:
                return "form", self.same_ending(word, self.of_row.get(
                    self.held.number.get(option), [option]))
        row = next((self.held.number[o] for o in options if o in self.held.number), None)
        if row is None:
            return None, None
        if row in self.of_row:
            return "form", self.same_ending(word, self.of_row[row])
        if word in UNLIKE:
            return None, None
        like = self.meaning(row) or self.like(row, word)[1]
        return ("like" if like else None), like

    def meaning(self, row):
        """The known word of MEANS for one of a row's forms, or None."""
        return next((MEANS[form] for form in self.held.forms[row]
                     if MEANS.get(form) in self.words), None)

    def like(self, row, word="", least=LIKE):
        """(cosine, the known word nearest to a row of the table, or None if none is near)."""
        if not len(self.meant):
            return 0.0, None
        table = self.held.table[row].astype(np.float32)
        cosine = self.unit @ (table / np.linalg.norm(table))
        sides = [SIDE[form] for form in self.held.forms[row] if form in SIDE]
        pairs = [{SIDE[f] for f in self.held.forms[self.held.number[w]] if f in SIDE}
                 for w in self.meant]
        for number, side in sides:  # known to be the opposite
            cosine[[(number, 1 - side) in pair for pair in pairs]] = -1
        best = cosine.argmax()
        if cosine[best] < least:
            return 0.0, None
        for number, side in pairs[best]:  # perhaps the opposite: both are about as near
            other = cosine[[(number, 1 - side) in pair for pair in pairs]]
            if (number, side) not in sides and other.max(initial=-1) > cosine[best] - MARGIN:
                return 0.0, None
        others = self.of_row[self.held.number[self.meant[best]]]
        return cosine[best], self.same_ending(word, [one for one in others if one not in VAGUE])

    def same_ending(self, word, others):
        """Of several forms of a word, the one that ends as `word` does; or that with an s, in
        which most captions are written."""
        def ending(one):
            return next((e for e in ("ing", "ed", "s") if one.endswith(e)), "")

        wanted, row = ending(word), self.held.number.get(word)
        if row is not None and word != self.held.forms[row][0]:
            wanted = wanted or "s"  # ran
        return min(others, key=lambda one: (ending(one) != wanted, not one.endswith("s"),
                                            len(one), one))

    def spell(self, word):
        """The known word that a misspelled one stands for, or None. Words of three letters may be
        wrong by one, words of seven by two; of words as near, one who acts comes last (kik: kick,
        kid). What is no known word may be one with a vector that is like a known one: watlz, waltz,
        dance."""
        if not 3 <= len(word) <= 40 or not word.isascii() or not word.isalpha():
            return None
        for once in (r"\1\1", r"\1"):  # slooow, runnning
            shorter = re.sub(r"(.)\1{2,}", once, word)
            if shorter != word and (shorter in self.words or shorter in self.held.number):
                return shorter
        for i, letter in enumerate(word):
            twice = word[:i] + letter + word[i:]  # realy, which is no "ready"
            if twice in SMALL:
                return twice
        most = 2 if len(word) >= 7 else 1

        def rank(other):
            far = distance(word, other, most)
            common = self.held.number.get(other, len(self.held.forms))
            return (far + (word[0] != other[0]), sorted(word) != sorted(other), other in SUBJECTS,
                    len(word) != len(other), common, other)

        near = min(map(rank, self.words), default=(9,))
        if near[0] <= most and (len(word) > 3 or near[-1] not in SAY_NOTHING
                                or sorted(word) == sorted(near[-1])):  # bum is no bus
            return near[-1]
        near = min(map(rank, (w for w in self.held.number if w[0] == word[0]
                              and abs(len(w) - len(word)) <= 1 and {*w} == {*word})), default=(9,))
        if near[0] <= 1:
            return near[-1]
        return next((f"{word[:i]} {word[i:]}" for i in range(3, len(word) - 2)
                     if {word[:i], word[i:]} <= self.words - NOT), None)  # handclap, sitdown


@functools.lru_cache(8)
def known(vocabulary):
    return Known(vocabulary)


def tokens_of(prompt, known):
    """The words of a prompt, with contractions taken apart, and joined where a known word has no
    hyphen: side-step, sidestep."""
    text = unicodedata.normalize("NFKC", prompt)  # full-width letters, ligatures
    text = text.lower().replace("\u2019", "'").replace("can't", "can not")
    text = re.sub(r"\w+(?:-\w+)+", lambda m: m[0].replace("-", "") if m[0].replace(
        "-", "") in known.words and re.search(r"[^\W\d]", m[0]) else m[0], text)
    text = re.sub(r"\b([1-9])x\b|\bx([1-9])\b", r"\1\2 times", text)
    text = re.sub(r"(?<!every )\b(?:(?:an?|one|just|only) )?single\b"
                  r"(?! (?:leg|foot|arm|hand|file|man|woman|mother|parent|person))", "one", text)
    text = re.sub(r"\b([1-9]|one|two|three|four|five) pace(s?)\b", r"\1 step\2", text)
    text = re.sub(r"\bpick(ing|s|ed)? (?:him|her|my|your|it|them)sel(?:f|ves) up\b",
                  lambda m: {None: "get", "ing": "getting"}.get(m[1], "gets") + " up", text)
    text = re.sub(r"\b(\w{3,}) (?=(\w{3,}))", lambda m: m[1] if m[1] + m[2] in known.words and not {
        m[1], m[2]} <= known.words else m[0], text)
    for word in PROMPT.findall(re.sub(r"\bthrice\b", "three times", text).strip()):
        if word in known.words or not re.search(r"\D'", word):
            yield word
        elif word.endswith("n't"):
            yield from (word[:-3], "not")
        else:
            yield word.split("'")[0]


def understand(prompt, vocabulary):
    """A Report on what a model with this vocabulary (a list of words) makes of a prompt."""
    book = known(tuple(vocabulary))
    found = [(word, *book.find(word)) for word in tokens_of(prompt, book)]
    if found and found[0][0] in NOBODY:
        found[0] = found[0][0], None, None
    # a word with a vector is no mistake; of a sentence in another language nothing is
    foreign = [how is None and not any(one in book.held.number for one in (word, *stems(word)))
               for word, how, _ in found]
    spell = sum(foreign) <= max(1, len(foreign) // 2)
    read, spelled, taken, unknown, before = [], {}, {}, [], ""
    for (word, how, other), strange in zip(found, foreign):
        if (before, word) == ("head", "no") and word in book.words:  # which is how heads are shaken
            how, other = "same", word
        if how == "like" and other in SCENERY and before not in SMALL:
            how, other = None, None
        before = word
        if strange and spell and (other := book.spell(word)):
            spelled[word] = meant = other
            how, other = ("same", other) if " " in other else book.find(other)
            if how == "like":
                taken[meant] = other
        if how in ("like", "form") and word not in spelled:
            taken[word] = other
        if how is None:
            other = "_"
            unknown.append(word)
        if other:
            read.append(other)
    same = read == words_of(prompt)
    says = any(word not in SAY_NOTHING for word in " ".join(read).split())
    return Report(prompt, prompt if same else " ".join(read), spelled, taken,
                  list(dict.fromkeys(unknown)), says)
