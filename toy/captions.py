"""Captions for the toy dataset: short sentences as HumanML3D's annotators write them, true of the very clip.

A phrase is a row of words in which `*verb` is conjugated to fit the sentence, `~verb` becomes its -ing form, [a|b|] is a
choice, and {slot} is filled in from the facts of the clip. `their` follows the subject. `captions` is the way in.
"""
import re

from formats.pack import Caption

SUBJECTS = ['a person'] * 6 + ['a man'] * 5 + ['someone'] * 3 + ['the person', 'a woman'] * 2 + [
    'the man', 'the woman', 'the figure', 'a figure', 'he', 'she', 'this person', 'a human', 'person', 'a stick figure', 'a guy']
POSSESSIVE = {'man': 'his', 'he': 'his', 'guy': 'his', 'woman': 'her', 'she': 'her', 'figure': 'its'}
TIMES = ['', 'once', '[twice|two times]', '[three times|3 times]'] + [f'[{n} times|several times]' for n in ('four', 'five', 'six')]
REPEATS = ['', ''] + [f'[{n}|{n} in a row]' for n in ('[twice|two times]', 'three times')] + [
    f'[{n} times|multiple times|several times]' for n in ('four', 'five')]

# label, then plain phrases, which hold for every clip of the label, then after + phrases with details
_PHRASES = """
walk
    *walk / *walk forward / *walk [forwards|ahead|straight ahead|straight] / *stroll forward / *take steps forward / *move forward on foot
  + *walk [|straight] [forward|ahead|forwards] {pace} {style} / *walk {pace} [in a straight line|straight forward|forward] {style} /
    *take [several|a few] steps forward {pace} {style} / {startstop} / [*stroll|*walk] [forward|ahead] [at a {speed} pace|{pace}] {style}
walk backward
    *walk backward / *walk backwards / *walk back / *move backwards / *step backwards / *back up
  + *walk [backward|backwards] {pace} / *take [several|a few] steps [back|backward|backwards] {pace} / *back away {pace} /
    *walk [backward|backwards] in a straight line {pace} / *step [backward|backwards] [several times|repeatedly] {pace}
walk and turn
    *walk and *turn {side} / *walk and *turn to the {side} / *turn {side} while ~walk / *walk forward and *turn {side}
  + *walk forward {pace} [and|then|and then] *turn [to the {side}|{side}] / *walk [|forward] and *make a {sharp} {side} turn /
    *walk forward, *turn [{side}|to {their} {side}] and *keep ~walk / *walk {pace} and *curve to the {side} /
    *veer to the {side} while ~walk [|forward]
walk in a circle
    *walk in a circle / *walk around in a circle / *walk in circles / *circle around
  + *walk in a [|{turnway}] circle {pace} / *walk in a circle to the {side} / *walk [|{pace}] in a circle, ~turn {side}
turn
    *turn {side} / *turn to the {side} / *turn to {their} {side} / *rotate to the {side} / *turn {their} body to the {side}
  + *turn {angle} to the {side} {turnpace} / *turn [{side}|to the {side}] in place {turnpace} /
    *stand and [then |]*turn [{side}|to the {side}|to {their} {side}] / {around} / *take small steps to turn {side} {turnpace}
run
    *run / *run forward / {jog} / {jog} forward / *run ahead / *run straight / *run [straight ahead|forwards]
  + *run [forward|ahead|straight ahead] {runpace} / {runstart} / {jog} [forward|straight] {runpace} / *run {runpace} in a straight line /
    *run forward with bent arms / *run {runpace}
march
    *march in place / *walk in place / *march on the spot / *step in place
  + *march in place {pace} / *lift {their} knees one after [the other|another] in place / *walk in place, ~lift {their} feet {pace} /
    *march on the spot with high knees
jump
    *jump / *jump / *leap / *jump in the air / *jump into the air / *leap off the ground / *do a jump / *jump with both feet / {plainjump}
  + {jump} / {jump} / {jump} / *bend {their} knees and {jump} / *crouch [|down] [then|and] {jump} / {jump} and *land [|on both feet]
hop
    *hop / *hop on one foot / *hop on one leg / *jump on one leg / *bounce on one foot
  + *hop on {their} {other} [foot|leg] {times} {ahead} / *hop {times} on one [foot|leg] {ahead} /
    *stand on {their} {other} leg and *hop {times} {ahead}
jumping jacks
    *do jumping jacks / *perform jumping jacks / *do star jumps / *exercise with jumping jacks / *do some jumping jacks
  + *do {count} jumping jacks {jackpace} / *perform {count} jumping jacks {jackpace} / *do jumping jacks {repeats} /
    *jump [repeatedly |]while ~spread {their} arms and legs / *do jumping jacks, ~raise both arms over {their} head
wave
    *wave / *wave {their} {side} hand / *wave the {side} hand / *wave with {their} {side} hand / *wave {their} {side} arm /
    *wave hello with {their} {side} hand / *wave with the {side} hand / *wave {side} hand
  + *raise {their} {side} [hand|arm] and *wave {lowered} / *wave {their} {side} hand {wavehigh} /
    *lift {their} {side} arm [up |]and *wave [it|hello|at someone] {wavespeed} / *stand [still |]and *wave {their} {side} [hand|arm] /
    *greet someone by ~wave {their} {side} hand / *wave {wavepace} with {their} {side} [hand|arm]
wave both hands
    *wave both hands / *wave both arms / *wave with both hands / *wave {their} hands / *wave {their} arms
  + *raise both [arms|hands] and *wave [|{lowerboth}] / *wave both hands {wavehigh} /
    *wave both arms [in the air|above {their} shoulders] {wavespeed}
raise both arms
    *raise both arms / *raise {their} arms / *lift both arms up / *put both hands up / *raise both hands / *raise {their} hands /
    *lift {their} arms
  + *raise both [arms|hands] [above|over] {their} head {armway} {repeats} / *lift both arms [up |]{armway} {thenlower} /
    *raise {their} arms [up high|over {their} head] {thenlower} / *put both [hands|arms] [up |]in the air {thenlower} /
    *stretch both arms [upward|up] {thenlower}
clap
    *clap / *clap {their} hands / *applaud / *clap {their} hands together / *give applause
  + *clap {their} hands {repeats} / *stand and *clap [|{their} hands] {repeats} / *bring {their} hands together and *clap /
    *clap {their} hands in front of {their} chest
squat
    *squat / *squat down / *do a squat / *crouch down / *bend {their} knees and *squat / *perform a squat / *crouch
  + *squat [down |]{repeats} {deep} / {squats} / *squat [|down] and *stand [back |]up {repeats} /
    *lower {their} body into a {deepadj} squat / *bend {their} knees, *squat [down |]and *get back up {repeats}
bow
    *bow / *bow down / *take a bow / *bow forward / *bend forward / *bend over / *lean forward in a bow / *bend at the waist
  + *bow {deeply} {repeats} / *bend forward at the waist [and *straighten up again|then *stand up straight] {repeats} /
    *take a {deepbow} bow / *bow [down |]{repeats} and *stand [back |]up / *lean [{their} upper body |]forward {deeply} to bow
sit
    *sit / *sit down / *take a seat / *sit down on a chair / *sit on a chair / *sit in a chair / *sit on something
  + *sit down [on|in] a chair {rises} / *lower {their} body [|down] and *sit {rises} / *bend {their} knees and *sit down {rises} /
    *take a seat {rises} / *stand then *sit down {rises} / *sit [down |]with {their} hands on {their} [lap|knees] {rises}
stand up
    *stand up / *get up from a chair / *stand up from a chair / *rise from a seat
  + *stand up from a [seated|sitting] position / *sit [on a chair |]and then *stand up / *get up from {their} [seat|chair] /
    *lean forward and *stand up from a chair
pick up
    *pick something up / *pick up something / *pick something up from the floor / *bend down to pick something up / *pick an object up
  + *bend down and *pick [something|an object] up [from the [floor|ground] |]with {their} {other} hand /
    *reach down with {their} {other} hand [and *pick something up|to the floor] /
    *crouch [|down], *grab something [from|off] the [ground|floor] and *stand back up
kick
    *kick / *kick with {their} {other} leg / *kick with {their} {other} foot / *do a kick / *kick {their} {other} leg / *kick something /
    *kick out / *perform a kick
  + {kick} / {kick} / *lift {their} {other} [leg|foot] and *kick {repeats} / *kick {kickway} with {their} {other} [leg|foot] {repeats} /
    *kick {their} {other} [leg|foot] {kickway} {repeats}
punch
    *punch / *throw a punch / *box / *punch forward / *punch something / *punch the air / *do a punch / *hit something with {their} fist
  + {punch} / {punch} / {punch} / *raise {their} fists and {punch} / *take a fighting [stance|pose] and *punch
throw
    *throw / *throw something / *throw a ball / *toss something / *throw an object / *make a throw
  + *throw [something|a ball|an object] [forward |]with {their} {other} [hand|arm] /
    *throw [something|a ball] {throwway} with {their} {other} [hand|arm] /
    *[swing|move] {their} {other} arm back and *throw [something|a ball]
look around
    *look around / *look left and right / *look from side to side / *turn {their} head / *look to both sides
  + *look to the {side} [and then|then] to the {other} / *turn {their} head {side} and then {other} / *stand [still |]and *look around
stand
    *stand still / *stand / *stand in place / *stay still / *remain still / *do nothing / *stand there / *wait / *stand idle / *hold still
  + *stand [still|in place] {standway} / *stand [|calmly|quietly] without ~move [|around] / *stand [still |]and *wait /
    *stand in one place {standway} / *stay in place without ~walk
spin
    *spin / *spin around / *turn around in a circle / *spin in place / *rotate in a circle / *twirl / *do a spin / *spin in a circle /
    *twirl around
  + *spin [around |]{turns} to the {side} / *spin [|around] {turns} {spinarms} / *turn around {fullturns} [|on the spot] /
    *rotate {turnway} {turns} {spinarms} / *spin {turnway} [|in place]
step
    *step {side} / *step to the {side} / *sidestep to the {side} / *move to the {side} / *step sideways / *sidestep {side}
  + *take {steps} to the {side} / *take {steps} sideways to {their} {side} / *[shuffle|sidestep|step] sideways to the {side} /
    *move sideways to the {side} with {steps}
crawl
    *crawl / *crawl forward / *crawl on the floor / *crawl on the ground / *crawl forwards / *crawl ahead /
    *move forward on the floor by ~crawl
  + {crawl} / {crawl} / {crawl} / *crawl [forward|ahead|across the floor] {crawlpace}
dance
    *dance / *dance around / *perform a dance / *do a dance / *dance with {their} arms
  + {dance} / *dance [energetically|with {their} whole body] / *perform [|some] dance moves / *move {their} arms and legs in a dance
get up
    *get up / *get up from the floor / *stand up from the ground / *get up off the ground / *rise from the floor
  + {getup} / {getup} / *lie on the [floor|ground] and then *get up
cartwheel
    *do a cartwheel / *cartwheel / *perform a cartwheel / *do a cartwheel to the side
  + *do a cartwheel to the {side} / *put {their} hands on the [floor|ground] and *cartwheel / *perform a cartwheel to {their} {side}
backflip
    *do a backflip / *backflip / *perform a backflip / *do a back flip / *flip backwards
  + *jump [up |]and *do a backflip / *do a backward flip [in the air |]and *land on {their} feet / *flip backwards in the air
roll
    *roll / *do a forward roll / *roll forward / *roll on the floor / *do a somersault / *somersault
  + *do a forward roll [on the floor |]and *stand [back |]up / *crouch [|down] and *roll forward /
    *roll over on the [floor|ground] and *get [back |]up / *tumble forward and *stand up
spin kick
    *do a spin kick / *spin and *kick / *do a spinning kick / *perform a spin kick / *do a roundhouse kick
  + *jump and *do a spinning kick / *spin around and *kick in the air / *turn and *kick while ~jump / *perform a flying spin kick
walk and jump
    *walk and *jump / *walk then *jump / *walk forward and *jump / *walk and then *jump
  + *walk forward [and then|then|, *stop and] {jump} / *walk a few steps [and|then] {jump} / *take a few steps [forward |]and *leap
walk and wave
    *walk and *wave / *walk and *wave {their} {side} hand / *walk and *wave with {their} {side} hand / *walk forward and *wave
  + {walkwave} / {walkwave}
"""
PHRASES = {label.strip(): [[phrase.strip() for phrase in part.split(' / ')] for part in re.sub(r' /\s*\n', ' / ', text).split('\n  + ')]
           for label, text in re.findall(r'^(\S.*)\n((?:    .*\n|  \+ .*\n)+)', _PHRASES, re.M)}


# slot: fact, its values -> words
BY_FACT = {
    'style': ('style', {'hips': '[with {their} hands on {their} hips|with hands on hips]', 'proud': '[|with {their} head up|upright]',
                        'tired': '[|while ~lean forward|with {their} head down|hunched over]',
                        'aside': '[while ~look around|while ~look left and right]'}),
    'armway': ('way', {'front': '[|in front of {their} body|forward and up]', 'side': '[|from the sides|sideways]'}),
    'spinarms': ('arms', {'side': '[with arms spread out|with {their} arms out to the sides|with {their} arms raised to the sides]'}),
    'plainjump': ('kind', {'up': '[*jump up|*hop up|*leap up|*jump in place|*jump straight up]', 'forward': '*jump forward', 'back': '*jump backward',
                           'side': '*jump {side}', 'turn': '*jump and *turn'}),
    'jump': ('kind', {'up': '[*jump [up|up in the air|straight up|in place|up and down]|*leap [up|into the air]|*hop up] {jumphow}',
                      'forward': '[*jump|*leap|*hop] [forward|forwards|ahead] {jumphow}',
                      'back': '[*jump|*leap|*hop] [backward|backwards|back] {jumphow}',
                      'side': '[*jump|*leap|*hop] [to the {side}|sideways to the {side}|{side}] {jumphow}',
                      'turn': '*jump [up |]and *[turn|spin] [{angle}|to the {side}] in the air'}),
    'kickway': ('kind', {'front': '[forward|in front of {their} body|straight ahead]', 'high': '[high|high in the air|up high]',
                         'low': '[forward|low|near the ground]', 'side': '[to the side|sideways|to the {other}]'}),
    'kick': ('kind', {'front': '*do a front kick with {their} {other} [leg|foot] {repeats}',
                      'high': '*do a high kick with {their} {other} [leg|foot] {repeats}',
                      'low': '[*kick a ball with {their} {other} [foot|leg]|*swing {their} {other} leg [back |]and *kick forward] {repeats}',
                      'side': '*do a side kick with {their} {other} [leg|foot] {repeats}'}),
    'punch': ('kind', {'straight': '[*punch|*jab|*punch forward|*punch straight ahead]', 'hook': '*throw {hooks}', 'upper': '*throw {uppercuts}'}),
    'throwway': ('kind', {'overhand': '[overhand|]', 'underhand': '[underhand|]'}),
    'standway': ('kind', {'hips': 'with {their} hands on {their} hips', 'shift': '[|while ~shift {their} weight]',
                          '': '[|with {their} arms at {their} sides]'}),
    'dance': ('name', {'spin': '*spin and *leap in a dance', 'dance_a': '*dance while ~swing {their} arms high',
                       'dance_b': '*dance and *kick from side to side'}),
    'getup': ('name', {'getup_facedown': '[*[get|stand] up from {their} [stomach|belly]|*push up from the [floor|ground] and *stand up]',
                       'getup_faceup': '[*[get|stand] up from {their} back|*lie on {their} back and [then |]*get up]'})}


def _how_fast(value, low, high, normal='[|||at a normal pace|at a steady pace]'):
    return '[slowly|at a slow pace]' if value < low else '[quickly|fast|at a quick pace|briskly]' if value > high else normal


def _slots(label, f, side):
    """The words for {slots} from the facts of a clip."""
    count, pace, angle = f.get('count', 1), f.get('pace', 0), f.get('angle', 0)
    many, start, stop = count > 1, f.get('start'), f.get('stop')
    s = {slot: words.get(f.get(fact), '') for slot, (fact, words) in BY_FACT.items()}
    s.update(side=side, other='right' if side == 'left' else 'left', their='their', times=TIMES[min(count, 6)], repeats=REPEATS[min(count, 5)],
             count=['a', 'one', 'two', 'three', 'four', 'five', 'six'][min(count, 6)],
             turnway='counterclockwise' if side == 'left' else 'clockwise')
    # on foot
    low, high = {'walk backward': (0.55, 0.85), 'march': (0.95, 1.12)}.get(label, (0.8, 1.12))
    s['pace'] = _how_fast(pace, low, high)
    s['speed'] = 'slow' if pace < low else '[quick|brisk]' if pace > high else '[normal|steady|moderate]'
    s['startstop'] = ('*stand, *walk forward and *stop' if stop else '*start to walk forward') if start else \
        '*walk forward and [then |]*stop' if stop else '*walk [forward|straight] without ~stop'
    s['sharp'] = 'sharp' if angle > 110 else '[|slight]' if angle < 80 else ''
    s['angle'] = '90 degrees' if 82 < angle < 98 else '180 degrees' if angle > 168 else 'halfway' if angle > 150 else ''
    s['around'] = '*turn around [|to face the other way|to the {side}|by ~turn {side}]' if angle > 150 else '*turn {side}'
    s['turnpace'] = _how_fast(pace, 68, 84)
    s['runpace'] = '[at a slow jog|slowly|at an easy pace]' if pace < 2.7 else '[fast|quickly|at full speed]' if pace > 3.2 else '[|||steadily]'
    s['jog'] = '*jog' if pace < 2.9 else '[*sprint|*run fast]' if pace > 3.2 else '[*run|*jog]'
    s['runstart'] = '*[start|begin] to run forward' if start else '*run [forward|straight] without ~stop'
    s['ahead'] = '[while ~move forward|forward]' if f.get('ahead') else '[in place|on the spot|]'
    s['turns'] = '[twice|two times]' if many else '[once|one time|]'
    s['fullturns'] = 'two [full |]times' if many else '[a full turn|in a full circle|360 degrees]'
    s['steps'] = ['', '[a step|one step]', 'two steps', 'three steps', '[four|several] steps'][min(count, 4)]
    s['crawl'] = '*crawl [forward |]on {their} [stomach|belly|elbows]' if f.get('low') else '*crawl [forward |ahead |]on [{their} |]hands and knees'
    s['crawlpace'] = '[slowly|low to the ground]' if f.get('low') else _how_fast(pace, 0.29, 0.39)
    s['walkwave'] = '[*walk forward while ~wave {their} {side} [hand|arm]|*wave {their} {side} hand while ~walk]' if f.get('together') else \
        '[*walk forward, *stop and *wave {their} {side} [hand|arm]|*walk [forward |]and then *wave {their} {side} hand]'
    # the rest
    s['jumphow'] = '{times}' if many else '[high|very high|]' if f.get('high', 0) > 0.34 else ''
    s['jackpace'] = _how_fast(pace, 1.03, 1.17)
    s['wavehigh'] = '[high |]above {their} head' if f.get('high') else '[at shoulder height|in the air|from side to side|back and forth]'
    s['wavepace'], s['wavespeed'] = (_how_fast(pace, 1.95, 2.45, normal) for normal in ('[||back and forth|side to side]', ''))
    s['lowerboth'], s['lowered'] = ('then *lower them', '[|then *lower it|and *put it down]') if f.get('lowered') else ('', '')
    s['thenlower'] = '{repeats}' if many else \
        '[|and [then |]*lower them|and *bring them back down]' if f.get('lowered') else '[|and *hold them there]'
    depth, deep = f.get('depth', 0), f.get('deep', 0)
    s['deep'] = '[low|deeply|very low]' if depth > 0.43 else '[slightly|a little|halfway]' if depth < 0.36 else ''
    s['deepadj'] = '[deep|low]' if depth > 0.43 else '[shallow|half]' if depth < 0.36 else ''
    s['squats'] = '*do {count} squats' if many else '*squat [down |]and *hold [it|the position]' if f.get('hold', 0) > 0.6 else '*do one squat'
    s['deeply'] = '[deeply|low|very low]' if deep > 74 else '[slightly|a little]' if deep < 54 else ''
    s['deepbow'] = '[deep|low]' if deep > 74 else '[slight|small]' if deep < 54 else '[polite|respectful]'
    s['rises'] = '[and then *stand [back |]up|then *get up again]' if f.get('rises') else '[|and *stay there|]'
    s['hooks'], s['uppercuts'] = ('[a hook|hooks]', '[uppercuts|an uppercut]') if many else ('a hook', 'an uppercut')
    if len(set(f.get('sides', 'R'))) == 1:
        s['punch'] += ' with {their} ' + ('{other}' if f.get('sides', 'R')[0] == 'R' else '{side}') + ' [hand|fist|arm] {repeats}'
    else:
        s['punch'] = '[' + s['punch'] + (' with both [hands|fists|arms]|*punch {repeats}, ~alternate hands|'
                                         '*punch with {their} {other} and [then |]{side} hand]')
    return s


# ----------------------------------------------------------------------------------------------------------------------
# From phrase to sentence

DOUBLED = 'run sit hop jog step clap get spin stop squat flip put begin grab jab hit sidestep backflip'.split()


def _third(verb):
    if re.search('(s|sh|ch|x|o)$', verb):
        return verb + 'es'
    return verb[:-1] + 'ies' if re.search('[^aeiou]y$', verb) else verb + 's'


def _ing(verb):
    if verb == 'lie':
        return 'lying'
    return (verb + verb[-1] if verb in DOUBLED else re.sub('(?<=[^e])e$', '', verb)) + 'ing'


def _choose(text, slots, rng):
    """Fill in the slots and take one of each choice, inside out."""
    while '{' in text:
        text = re.sub(r'\{(\w+)\}', lambda m: slots[m[1]], text)
    while '[' in text:
        text = re.sub(r'\[([^\[\]]*)\]', lambda m: str(rng.choice(m[1].split('|'))), text, count=1)
    return re.sub(r'\s+([,.])', r'\1', ' '.join(text.split()))


WORDS = {
    'DET': 'a an the this some both another', 'NUM': 'one two three four five six 3 90 180 360', 'CCONJ': 'and', 'SCONJ': 'while',
    'PRON': 'someone something he she it them his her its their your nothing each other',
    'ADP': 'in on with to from of at by over above into off without around across near onto after for out down up',
    'ADV': 'forward forwards backward backwards back ahead straight then slowly quickly fast briskly steadily once twice again together sideways '
           'there deeply halfway very away upward upwards repeatedly calmly quietly energetically slightly low high still hunched upright '
           'clockwise counterclockwise overhand underhand here',
    'ADJ': 'left right slow quick brisk normal steady moderate sharp slight small easy full big large same several few multiple deep shallow half '
           'seated sitting polite respectful bent idle raised little spread hard fighting flying whole upper front spinning forth'}
POS = {word: pos for pos, words in WORDS.items() for word in words.split()}
PLURALS = {word + 's': word for word in 'knee hand arm leg step hip time degree circle jack jump squat fist side elbow move hook uppercut'.split()}
PLURALS['feet'] = 'foot'


def _sentence(phrase, rng, form):
    """One caption: `form` is third, is, command or gerund."""
    subject, named = str(rng.choice(SUBJECTS)), form in ('third', 'is')
    their = POSSESSIVE.get(subject.split()[-1], 'their') if named else ('the', 'your' if form == 'command' else 'their')[rng.integers(2)]
    said = [(word, word, POS.get(word, 'NOUN')) for word in subject.split()] * named + [('is', 'be', 'AUX')] * (form == 'is')
    for word in phrase.split():
        comma, word = ',' * word.endswith(','), word.rstrip(',')
        lemma = PLURALS.get(word, word)
        if word[0] in '*~':
            lemma, pos = word[1:], 'VERB'
            word = _ing(lemma) if word[0] == '~' or form in ('is', 'gerund') else _third(lemma) if form == 'third' else lemma
        elif word == 'their':
            word = lemma = their
            pos = POS[their]
        else:
            pos = 'VERB' if said and said[-1][0] == 'to' and word in ('walk', 'run', 'bow', 'pick', 'face') else POS.get(word, 'NOUN')
        said.append((word + comma, lemma, pos))
    stop = '.' * (form == 'third' and rng.random() < 0.15)
    return Caption(' '.join(word for word, _, _ in said) + stop, ' '.join(f'{lemma}/{pos}' for _, lemma, pos in said))


def captions(label, facts, mirrored, rng, plain=2, detailed=3):
    """list[Caption] of different texts: `plain` short ones and `detailed` ones. mirrored: left and right change places."""
    name = label.replace(' LEFT hand', '').replace(' LEFT', '')
    slots, found = _slots(name, facts, 'right' if mirrored else 'left'), {}
    while len(found) < plain + detailed:
        short = len(found) < plain
        form = ('third', 'third', 'third', 'is', 'command', 'gerund') if short else ('third',) * 6 + ('is',)
        phrases = PHRASES[name][0 if short else 1]
        phrase = _choose(phrases[rng.integers(len(phrases))], slots, rng)
        caption = _sentence(phrase, rng, form[rng.integers(len(form))])
        found.setdefault(caption.text.rstrip('.'), caption)
    return list(found.values())
