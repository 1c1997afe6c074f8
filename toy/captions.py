"""Captions for the toy dataset: short sentences in the manner of HumanML3D's annotators.

phrases.txt holds what they say and explains its own notation. `captions` fills the slots of a
phrase with facts about the clip, so that every caption is true of it, and conjugates the verbs.
"""
import glob
import os
import re

from formats.pack import Caption

# Below the first pace a clip of the action is called slow, above the second one fast.
PACES = {'walk backward': (0.55, 0.85), 'march': (0.95, 1.12), 'turn': (68, 84),
         'run': (2.7, 3.2), 'crawl': (0.29, 0.39)}
WALKING_PACE = 0.8, 1.12


def _read(folder):
    """phrases*.txt of a folder -> {header: its lines}; sections of the same name are joined."""
    found = {}
    for path in sorted(glob.glob(os.path.join(folder, 'phrases*.txt'))):
        with open(path, encoding='utf-8') as file:
            text = re.sub(r'^#.*\n|\n {8}', '', file.read(), flags=re.M)
        for header, lines in re.findall(r'^(\S.*)\n((?: .*\n)+)', text, re.M):
            found.setdefault(header, []).extend(line.strip() for line in lines.splitlines())
    return found


TEXT = _read(os.path.dirname(__file__))
SUBJECTS = ', '.join(TEXT['subjects']).split(', ')
THEIR = dict(words.split(': ') for words in TEXT['their'])
POS = {word: header for header, lines in TEXT.items() if header.isupper()
       for word in ' '.join(lines).split()}
DOUBLED = ' '.join(TEXT['doubled']).split()
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
    if re.search('(s|sh|ch|x|o)$', verb):
        return verb + 'es'
    return verb[:-1] + 'ies' if re.search('[^aeiou]y$', verb) else verb + 's'


def _ing(verb):
    if verb == 'lie':
        return 'lying'
    return (verb + verb[-1] if verb in DOUBLED else re.sub('(?<=[^e])e$', '', verb)) + 'ing'


def _sentence(phrase, rng, form):
    """One caption; `form` is third (he walks), is (he is walking), command or gerund."""
    noun, phrase = phrase.startswith('='), phrase.removeprefix('=')
    form = 'command' if noun else form
    subject, named = str(rng.choice(SUBJECTS)), form in ('third', 'is')
    if named:
        their = THEIR.get(subject.split()[-1], 'their')
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
        forms = ['third'] * 6 + ['is'] if in_detail else ['third'] * 3 + ['is', 'command', 'gerund']
        phrases = [phrase for phrase in TEXT[name] if phrase.startswith('+') == in_detail]
        phrase = _choose(phrases[rng.integers(len(phrases))].removeprefix('+'), facts, rng)
        caption = _sentence(phrase, rng, forms[rng.integers(len(forms))])
        found.setdefault(caption.text.rstrip('.'), caption)
    return list(found.values())
