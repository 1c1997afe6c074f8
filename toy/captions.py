"""Captions for the toy dataset: short sentences in the manner of HumanML3D's annotators.

phrases.txt holds what they say, and explains how it is written. `captions` fills the slots of a
phrase with facts about the clip, so that every caption is true of it, and conjugates the verbs.
"""
import os
import re

from formats.pack import Caption

SUBJECTS = (['a person'] * 6 + ['a man'] * 5 + ['someone'] * 3 + ['the person', 'a woman'] * 2
            + ['the man', 'the woman', 'the figure', 'a figure', 'he', 'she', 'this person',
               'a human', 'person', 'a stick figure', 'a guy'])
POSSESSIVE = {'man': 'his', 'he': 'his', 'guy': 'his', 'woman': 'her', 'she': 'her',
              'figure': 'its'}
# Below the first pace a clip of the action is called slow, above the second one fast.
PACES = {'walk backward': (0.55, 0.85), 'march': (0.95, 1.12), 'turn': (68, 84),
         'run': (2.7, 3.2), 'crawl': (0.29, 0.39), 'jumping jacks': (1.03, 1.17),
         'wave': (1.95, 2.45), 'wave both hands': (1.95, 2.45)}
WALKING_PACE = 0.8, 1.12


def read_phrases(path):
    """phrases.txt -> {action: (short phrases, detailed ones)}, {slot: [(conditions, words)]}."""
    phrases, slots = {}, {}
    with open(path, encoding='utf-8') as file:
        lines = re.sub(r'\n {8}', '', file.read()).splitlines()
    for line in lines:
        text = line.strip()
        if not text or text[0] == '#':
            continue
        if line[0] == '{':
            rows = slots.setdefault(text.strip('{}'), [])
        elif line[0] != ' ':
            rows = phrases.setdefault(text, ([], []))
        elif isinstance(rows, tuple):
            rows[text[0] == '+'].append(text.removeprefix('+ '))
        else:
            conditions, _, words = text.partition(':')
            rows.append((conditions.split(), words.strip()))
    return phrases, slots


PHRASES, SLOTS = read_phrases(os.path.join(os.path.dirname(__file__), 'phrases.txt'))


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
    for conditions, words in SLOTS.get(slot, ()):
        if all(_holds(condition, facts) for condition in conditions):
            return words
    return '' if slot in SLOTS else facts[slot]


def _choose(text, facts, rng):
    """Fill in the slots and take one of each choice, the innermost first."""
    while '{' in text:
        text = re.sub(r'\{(\w+)\}', lambda match: _words(match[1], facts), text)
    while '[' in text:
        text = re.sub(r'\[([^\[\]]*)\]', lambda match: str(rng.choice(match[1].split('|'))),
                      text, count=1)
    return re.sub(r'\s+([,.])', r'\1', ' '.join(text.split()))


# --------------------------------------------------------------------------------------------------
# From phrase to sentence

DOUBLED = ('run sit hop jog step clap get spin stop squat flip put begin grab jab hit sidestep '
           'backflip').split()


def _third(verb):
    if re.search('(s|sh|ch|x|o)$', verb):
        return verb + 'es'
    return verb[:-1] + 'ies' if re.search('[^aeiou]y$', verb) else verb + 's'


def _ing(verb):
    if verb == 'lie':
        return 'lying'
    return (verb + verb[-1] if verb in DOUBLED else re.sub('(?<=[^e])e$', '', verb)) + 'ing'


POS = {word: pos for pos, words in {
    'DET': 'a an the this some both another',
    'NUM': 'one two three four five six 3 90 180 360',
    'CCONJ': 'and',
    'SCONJ': 'while',
    'PRON': 'someone something he she it them his her its their your nothing each other',
    'ADP': 'in on with to from of at by over above into off without around across near onto after '
           'for out down up',
    'ADV': 'forward forwards backward backwards back ahead straight then slowly quickly fast '
           'briskly steadily once twice again together sideways there deeply halfway very away '
           'upward upwards repeatedly calmly quietly energetically slightly low high still hunched '
           'upright clockwise counterclockwise overhand underhand here',
    'ADJ': 'left right slow quick brisk normal steady moderate sharp slight small easy full big '
           'large same several few multiple deep shallow half seated sitting polite respectful '
           'bent idle raised little spread hard fighting flying whole upper front spinning forth',
}.items() for word in words.split()}
PLURALS = {word + 's': word for word in (
    'knee hand arm leg step hip time degree circle jack jump squat fist side elbow move hook '
    'uppercut').split()} | {'feet': 'foot'}


def _sentence(phrase, rng, form):
    """One caption; `form` is third (he walks), is (he is walking), command or gerund."""
    subject, named = str(rng.choice(SUBJECTS)), form in ('third', 'is')
    if named:
        their = POSSESSIVE.get(subject.split()[-1], 'their')
    else:
        their = ('the', 'your' if form == 'command' else 'their')[rng.integers(2)]
    said = [(word, word, POS.get(word, 'NOUN')) for word in subject.split()] * named
    said += [('is', 'be', 'AUX')] * (form == 'is')
    for word in phrase.split():
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


def captions(label, facts, mirrored, rng, short=2, detailed=3):
    """list[Caption], all different: `short` ones and `detailed` ones.

    label, facts  an action and what motions.py says about the clip; motions are made on the left
    mirrored      whether the clip is the mirror image, on the right
    """
    name = label.replace(' LEFT hand', '').replace(' LEFT', '')
    pace, (slow, fast) = facts.get('pace', 0), PACES.get(name, WALKING_PACE)
    side, other = ('right', 'left') if mirrored else ('left', 'right')
    facts = {'count': 1, 'side': side, 'other': other, **facts,
             'tempo': 'slow' if pace < slow else 'fast' if pace > fast else 'even'}
    found = {}
    while len(found) < short + detailed:
        in_detail = len(found) >= short
        forms = (('third',) * 6 + ('is',) if in_detail
                 else ('third', 'third', 'third', 'is', 'command', 'gerund'))
        phrases = PHRASES[name][in_detail]
        phrase = _choose(phrases[rng.integers(len(phrases))], facts, rng)
        caption = _sentence(phrase, rng, forms[rng.integers(len(forms))])
        found.setdefault(caption.text.rstrip('.'), caption)
    return list(found.values())
