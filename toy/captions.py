"""Captions for the toy dataset: short sentences in the manner of HumanML3D's annotators.

The files phrases*.txt hold what they say; phrases.txt explains the notation. `captions` fills the
slots of a phrase with facts about the clip, so that every caption is true of it, and conjugates the
verbs.
"""
import glob
import os
import re

from formats.pack import Caption

SLOW, FAST = 0.8, 1.12  # a pace below or above is slow or fast, where no tempo is given
ASIDE = 0.35  # of the captions of one action say something beside it
FRAMED = 0.3  # of the commands begin with "please", "can you" and the like
NAMELESS = 0.08  # of the sentences have no subject: "sits down"
UNSTEADY = {'stumble', 'limp'}  # whose way is no mood


def _read(folder):
    """phrases*.txt of a folder -> {header: its lines}; sections of the same name are joined."""
    found = {}
    for path in sorted(glob.glob(os.path.join(folder, 'phrases*.txt'))):
        with open(path, encoding='utf-8') as file:
            text = re.sub(r'\n {8}', ' ', re.sub(r'^#.*\n', '', file.read(), flags=re.M))
        for header, lines in re.findall(r'^(\S.*)\n((?: .*\n)+)', text, re.M):
            found.setdefault(header, []).extend(line.strip() for line in lines.splitlines())
    return found


def plain(text):
    """A sentence without case and punctuation."""
    return ' '.join(re.findall(r"[a-z0-9']+", text.lower()))


def _prompts(folder):
    """What tests/ asks of a model, which must not have been told so."""
    asked = set()
    for name in ('easy.txt', 'everyday.txt'):
        with open(os.path.join(folder, name), encoding='utf-8') as file:
            asked |= {plain(line.split('\t')[-1]) for line in file if '\t' in line}
    return asked


TEXT = _read(os.path.dirname(__file__))
PROMPTS = _prompts(os.path.join(os.path.dirname(__file__), '..', 'tests'))
SUBJECTS = ', '.join(TEXT['subjects']).split(', ')
THEIR = dict(words.split(': ') for words in TEXT['their'])
POS = {word: header for header, lines in TEXT.items() if header.isupper()
       for word in ' '.join(lines).split()}
DOUBLED = ' '.join(TEXT['doubled']).split()
DONE = set(' '.join(TEXT['done']).split())
DONE |= {re.sub('e$', '', word) for word in DONE}  # a dance, two danc(es)
PURPOSE = re.compile(r'\b(for|as|like|if|to \w+ (some|any|the|it|yes|no)\w*)\b')
PLURALS = {word + 's': word for word in ' '.join(TEXT['plurals']).split()} | {'feet': 'foot'}


def _holds(condition, facts):
    """Whether `fact`, `fact=word`, `fact<number` or `fact>number` is true of a clip."""
    fact, sign, value = re.fullmatch(r'(\w+)([=<>]?)(.*)', condition).groups()
    found = facts.get(fact, 0)
    if sign == '=':
        return str(found) == value
    if not sign:
        return fact == 'else' or bool(found)
    return found < float(value) if sign == '<' else found > float(value)


def _words(slot, facts):
    """What a slot says of a clip: its own lines, or the fact of that name."""
    header = '{' + slot + '}'
    for line in TEXT[header] if header in TEXT else [f'else: {facts[slot]}']:
        conditions, _, words = line.partition(':')
        if all(_holds(condition, facts) for condition in conditions.split()):
            return words
    return ''


def _choose(text, facts, rng):
    """Fill in the slots and take one of each choice, the innermost first."""
    while '{' in text:
        text = re.sub(r'\{(\w+)\}', lambda match: _words(match[1], facts), text)
    while '[' in text:
        text = re.sub(r'\[([^\[\]]*)\]', lambda match: str(rng.choice(match[1].split('|'))),
                      text, count=1)
    return re.sub(r'\s+([,.])', r'\1', ' '.join(text.split()))


def _third(verb):
    if verb == 'have':
        return 'has'
    if re.search('(s|sh|ch|x|o)$', verb):
        return verb + 'es'
    return verb[:-1] + 'ies' if re.search('[^aeiou]y$', verb) else verb + 's'


def _ing(verb):
    if verb == 'lie':
        return 'lying'
    return (verb + verb[-1] if verb in DOUBLED else re.sub('(?<=[^eo])e$', '', verb)) + 'ing'


def _sentence(phrase, rng, form, whose=None):
    """One caption; `form` is third (he walks), is (he is walking), command or gerund.

    A phrase that begins with "=" is a noun and has no subject. Where a phrase has an "@", the
    subject stands there, otherwise in front. "their" is `whose`, if that is given.
    """
    noun, phrase = phrase.startswith('='), phrase.removeprefix('=')
    form = 'command' if noun else form
    subject, named = str(rng.choice(SUBJECTS)), form in ('third', 'is')
    if named:
        their = THEIR.get(subject.split()[-1], 'their')
    else:
        their = whose or ('the', 'your' if form == 'command' else 'their')[rng.integers(2)]
    who = [(word, word, POS.get(word, 'NOUN')) for word in subject.split()] * named
    who *= form != 'third' or rng.random() > NAMELESS
    who += [('is', 'be', 'AUX')] * (form == 'is')
    phrase, said = phrase if '@' in phrase else '@ ' + phrase, []
    for word in phrase.split():
        if word == '@':
            said += who
            continue
        comma, word = ',' * word.endswith(','), word.rstrip(',')
        lemma, pos = PLURALS.get(word, word), POS.get(word, 'NOUN')
        if word[0] in '*~':
            lemma, pos = word[1:], 'VERB'
            gerund = word[0] == '~' or form in ('is', 'gerund')
            word = _ing(lemma) if gerund else _third(lemma) if form == 'third' else lemma
        elif word == 'their':
            word = lemma = their
            pos = POS[their]
        elif said and said[-1][0] == 'to' and word in ('walk', 'run', 'bow', 'pick', 'face'):
            pos = 'VERB'
        said.append((word + comma, lemma, pos))
    stop = '.' * (form == 'third' and rng.random() < 0.15)
    return Caption(' '.join(word for word, _, _ in said) + stop,
                   ' '.join(f'{lemma}/{pos}' for _, lemma, pos in said))


def _facts(facts, mirrored):
    """A clip's facts with those that follow from them."""
    pace, (side, other) = facts.get('pace', 1), ('left', 'right')[::-1 if mirrored else 1]
    tempo = 'slow' if pace < SLOW else 'fast' if pace > FAST else 'even'
    return {'count': 1, 'side': side, 'other': other, 'tempo': tempo, **facts}


def _told(phrase, facts):
    """How many slots of a phrase have something to say of the clip. An ending says nothing, and "a"
    next to nothing."""
    said = [_words(slot, facts).strip() for slot in re.findall(r'\{(\w+)\}', phrase)]
    return sum(len(words) > 2 and not words.startswith(('[|', '[a|')) for words in said)


def _phrase(label, facts, rng, in_detail):
    """What is said of an action: a phrase with its slots filled in. In detail, the one of three
    that says most, as not every clip has something for every slot."""
    name = label.replace(' LEFT hand', '').replace(' LEFT', '')
    lines = TEXT[label if label in TEXT else name]
    phrases = [phrase.removeprefix('+') for phrase in lines if phrase.startswith('+') == in_detail]
    drawn = [phrases[rng.integers(len(phrases))] for _ in range(3 if in_detail else 1)]
    return _choose(max(drawn, key=lambda phrase: _told(phrase, facts)), facts, rng)


def _asked(phrase, rng):
    """A noun phrase, and how it is asked for: "= two jumps" -> "= show me two jumps"."""
    lines = TEXT['nouns']
    line, noun = lines[rng.integers(len(lines))], phrase.removeprefix('=').strip()
    if line[-1] == 'D' and not DONE.intersection(re.sub(r'e?s\b', '', noun).split()):
        line = '= N'  # nobody "does marching" or "performs a sip"
    bare = re.sub('^(an?|one) ', '', noun)
    return re.sub(r'\b[NDn]\b', lambda found: bare if found[0] == 'n' else noun,
                  _choose(line, {}, rng), count=1)


def _framed(phrase, rng):
    """A command, how it is asked for, and whose arm it is, if not yours: "*raise their arm" ->
    "let him *raise their arm", "his"."""
    lines = TEXT['frames']
    line = _choose(lines[rng.integers(len(lines))], {}, rng)
    who = re.match(r'(?:let|make|have) .*?(\w+) C', line)
    return line.replace('C', phrase), who and THEIR.get(who[1], 'their')


def _beside(label, phrase, facts, rng):
    """The phrase with a word or two that say nothing of the movement, sometimes."""
    if phrase[0] != '*' or rng.random() > ASIDE:
        return phrase
    kinds = ['mood', 'mood'] * (label not in UNSTEADY) + ['where', 'where', 'why', 'why']
    kind = kinds[rng.integers(len(kinds) - 2 * bool(PURPOSE.search(phrase)))]
    words = _choose('{' + kind + '}', facts, rng)
    if kind == 'mood' and rng.random() < 0.5:
        return f'@ {words} {phrase}'
    return f'{words}, @ {phrase}' if rng.random() < 0.15 else f'{phrase} {words}'


def _brief(part, mirrored, rng):
    """A short phrase for one part of a sequence: a verb and what belongs to it."""
    label, facts = part
    if facts.get('said'):
        return _choose(facts['said'], _facts(facts, mirrored), rng)
    for _ in range(60):
        phrase = _phrase(label, _facts(facts, mirrored), rng, rng.random() < 0.5)
        if phrase[0] == '*' and len(phrase.split()) < 9 and not LINKED.search(phrase):
            return phrase
    raise ValueError(f"phrases*.txt: {label!r} has no short phrase without 'and', 'then' or "
                     "'while', which sequences need.")


LINKED = re.compile(r',|~|\b(and|then|while|again|without|after|before|stand|stay)\b')
LINKS = {'then': TEXT['two'], 'while': TEXT['at once'], 'three': TEXT['three']}


def _sequence(facts, mirrored, rng):
    """What is said of several actions, one after another or at once."""
    lines = LINKS[facts['how']]
    said = _choose(lines[rng.integers(len(lines))], {}, rng)
    for number, part in enumerate(facts['parts']):
        phrase = _brief(part, mirrored, rng)
        for sign in '*~':
            said = re.sub(rf'\{sign}{"ABC"[number]}\b', phrase.replace('*', sign), said)
    return said


def captions(label, facts, mirrored, rng, short=3, detailed=5):
    """list[Caption], `short` ones and `detailed` ones; all differ, and tests/ asks none of them.

    label     an action; '' where facts hold `parts` [(action, its facts), ...] and `how` they are
              put together: then, while, three
    facts     what is true of the clip; motions are made on the left
    mirrored  whether the clip is the mirror image, on the right
    """
    found = {}
    while len(found) < short + detailed:
        in_detail = len(found) >= short
        forms = ['third'] * (5 if in_detail else 3) + ['is', 'command', 'gerund']
        if facts.get('parts'):
            phrase, forms = _sequence(facts, mirrored, rng), ['third'] * 6 + ['is', 'command']
        else:
            told = _facts(facts, mirrored)
            phrase = _phrase(label, told, rng, in_detail)
            phrase = _asked(phrase, rng) if phrase[0] == '=' else phrase
            phrase = _beside(label, phrase, told, rng)
        form, whose = forms[rng.integers(len(forms))], None
        if form == 'command' and phrase[0] in '*@' and rng.random() < FRAMED:
            phrase, whose = _framed(phrase, rng)
        caption = _sentence(phrase, rng, form, whose)
        if plain(caption.text) not in PROMPTS:
            found.setdefault(caption.text.rstrip('.'), caption)
    return list(found.values())
