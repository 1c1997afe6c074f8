"""Captions for the toy dataset: short sentences as HumanML3D's annotators write them, true of the very clip.

A phrase is a row of words in which `*verb` is conjugated to fit the sentence, `~verb` becomes its -ing form, [a|b|] is a
choice, and {slot} is filled in from the facts of the clip. `their` follows the subject. `captions` is the way in.
"""
import re

from pack import Caption

SUBJECTS = (['a person'] * 6 + ['a man'] * 5 + ['someone'] * 3 + ['the person'] * 2 + ['a woman'] * 2 + ['the man', 'the woman', 'the figure', 'a figure',
            'he', 'she', 'this person', 'a human', 'person', 'a stick figure', 'a guy'])
POSSESSIVE = {'man': 'his', 'he': 'his', 'guy': 'his', 'woman': 'her', 'she': 'her', 'figure': 'its'}
TIMES = ['', 'once', '[twice|two times]', '[three times|3 times]', '[four times|several times]', '[five times|several times]', '[six times|several times]']
REPEATS = ['', '', '[twice|two times|two times in a row]', '[three times|three times in a row]', '[four times|multiple times|several times]',
           '[five times|multiple times|several times]']

# label -> (plain phrases, which hold for every clip of the label; phrases with details)
PHRASES = {
    'walk': (['*walk', '*walk forward', '*walk [forwards|ahead|straight ahead|straight]', '*stroll forward', '*take steps forward', '*move forward on foot'],
             ['*walk [|straight] [forward|ahead|forwards] {pace} {style}', '*walk {pace} [in a straight line|straight forward|forward] {style}',
              '*take [several|a few] steps forward {pace} {style}', '{startstop}', '[*stroll|*walk] [forward|ahead] [at a {speed} pace|{pace}] {style}']),
    'walk backward': (['*walk backward', '*walk backwards', '*walk back', '*move backwards', '*step backwards', '*back up'],
                      ['*walk [backward|backwards] {pace}', '*take [several|a few] steps [back|backward|backwards] {pace}', '*back away {pace}',
                       '*walk [backward|backwards] in a straight line {pace}', '*step [backward|backwards] [several times|repeatedly] {pace}']),
    'walk and turn': (['*walk and *turn {side}', '*walk and *turn to the {side}', '*turn {side} while ~walk', '*walk forward and *turn {side}'],
                      ['*walk forward {pace} [and|then|and then] *turn [to the {side}|{side}]', '*walk [|forward] and *make a {sharp} {side} turn',
                       '*walk forward, *turn [{side}|to {their} {side}] and *keep ~walk', '*walk {pace} and *curve to the {side}', '*veer to the {side} while ~walk [|forward]']),
    'walk in a circle': (['*walk in a circle', '*walk around in a circle', '*walk in circles', '*circle around'],
                         ['*walk in a [|{turnway}] circle {pace}', '*walk in a circle to the {side}', '*walk [|{pace}] in a circle, ~turn {side}']),
    'turn': (['*turn {side}', '*turn to the {side}', '*turn to {their} {side}', '*rotate to the {side}', '*turn {their} body to the {side}'],
             ['*turn {angle} to the {side} {turnpace}', '*turn [{side}|to the {side}] in place {turnpace}', '*stand and [then |]*turn [{side}|to the {side}|to {their} {side}]',
              '{around}', '*take small steps to turn {side} {turnpace}']),
    'run': (['*run', '*run forward', '{jog}', '{jog} forward', '*run ahead', '*run straight', '*run [straight ahead|forwards]'],
            ['*run [forward|ahead|straight ahead] {runpace}', '{runstart}', '{jog} [forward|straight] {runpace}', '*run {runpace} in a straight line',
             '*run forward with bent arms', '*run {runpace}']),
    'run and stop': (['*run and *stop', '*run forward and *stop', '*run then *stop', '*run and then *stand still'],
                     ['*run forward [then|and then] *come to a stop', '*run {runpace} and *stop', '*jog forward, *slow down and *stop', '*run ahead and then *stand']),
    'march': (['*march in place', '*walk in place', '*march on the spot', '*step in place'],
              ['*march in place {pace}', '*lift {their} knees one after [the other|another] in place', '*walk in place, ~lift {their} feet {pace}', '*march on the spot with high knees']),
    'jump': (['*jump', '*jump', '*leap', '*jump in the air', '*jump into the air', '*leap off the ground', '*do a jump', '*jump with both feet', '{plainjump}'],
             ['{jump}', '{jump}', '{jump}', '*bend {their} knees and {jump}', '*crouch [|down] [then|and] {jump}', '{jump} and *land [|on both feet]']),
    'hop': (['*hop', '*hop on one foot', '*hop on one leg', '*jump on one leg', '*bounce on one foot'],
            ['*hop on {their} {other} [foot|leg] {times} {ahead}', '*hop {times} on one [foot|leg] {ahead}', '*stand on {their} {other} leg and *hop {times} {ahead}']),
    'jumping jacks': (['*do jumping jacks', '*perform jumping jacks', '*do star jumps', '*exercise with jumping jacks', '*do some jumping jacks'],
                      ['*do {count} jumping jacks {jackpace}', '*perform {count} jumping jacks {jackpace}', '*do jumping jacks {repeats}',
                       '*jump [repeatedly |]while ~spread {their} arms and legs', '*do jumping jacks, ~raise both arms over {their} head']),
    'wave': (['*wave', '*wave {their} {side} hand', '*wave the {side} hand', '*wave with {their} {side} hand', '*wave {their} {side} arm', '*wave hello with {their} {side} hand',
              '*wave with the {side} hand', '*wave {side} hand'],
             ['*raise {their} {side} [hand|arm] and *wave {lowered}', '*wave {their} {side} hand {wavehigh}', '*lift {their} {side} arm [up |]and *wave [it|hello|at someone] {wavespeed}',
              '*stand [still |]and *wave {their} {side} [hand|arm]', '*greet someone by ~wave {their} {side} hand', '*wave {wavepace} with {their} {side} [hand|arm]']),
    'wave both hands': (['*wave both hands', '*wave both arms', '*wave with both hands', '*wave {their} hands', '*wave {their} arms'],
                        ['*raise both [arms|hands] and *wave [|{lowerboth}]', '*wave both hands {wavehigh}', '*wave both arms [in the air|above {their} shoulders] {wavespeed}']),
    'raise both arms': (['*raise both arms', '*raise {their} arms', '*lift both arms up', '*put both hands up', '*raise both hands', '*raise {their} hands', '*lift {their} arms'],
                        ['*raise both [arms|hands] [above|over] {their} head {armway} {repeats}', '*lift both arms [up |]{armway} {thenlower}', '*raise {their} arms [up high|over {their} head] {thenlower}',
                         '*put both [hands|arms] [up |]in the air {thenlower}', '*stretch both arms [upward|up] {thenlower}']),
    'arm circles': (['*make circles with {their} arms', '*do arm circles', '*rotate {their} arms', '*swing {their} arms in circles', '*circle {their} arms'],
                    ['*rotate both arms in [big |large |]circles {repeats}', '*swing both arms [around |]in [full |]circles {repeats}', '*circle both arms {circleway} {repeats}']),
    'clap': (['*clap', '*clap {their} hands', '*applaud', '*clap {their} hands together', '*give applause'],
             ['*clap {their} hands {repeats}', '*stand and *clap [|{their} hands] {repeats}', '*bring {their} hands together and *clap', '*clap {their} hands in front of {their} chest']),
    'squat': (['*squat', '*squat down', '*do a squat', '*crouch down', '*bend {their} knees and *squat', '*perform a squat', '*crouch'],
              ['*squat [down |]{repeats} {deep}', '{squats}', '*squat [|down] and *stand [back |]up {repeats}', '*lower {their} body into a {deepadj} squat', '*bend {their} knees, *squat [down |]and *get back up {repeats}']),
    'bow': (['*bow', '*bow down', '*take a bow', '*bow forward', '*bend forward', '*bend over', '*lean forward in a bow', '*bend at the waist'],
            ['*bow {deeply} {repeats}', '*bend forward at the waist [and *straighten up again|then *stand up straight] {repeats}', '*take a {deepbow} bow', '*bow [down |]{repeats} and *stand [back |]up',
             '*lean [{their} upper body |]forward {deeply} to bow']),
    'sit': (['*sit', '*sit down', '*take a seat', '*sit down on a chair', '*sit on a chair', '*sit in a chair', '*sit on something'],
            ['*sit down [on|in] a chair {rises}', '*lower {their} body [|down] and *sit {rises}', '*bend {their} knees and *sit down {rises}', '*take a seat {rises}', '*stand then *sit down {rises}',
             '*sit [down |]with {their} hands on {their} [lap|knees] {rises}']),
    'stand up': (['*stand up', '*get up from a chair', '*stand up from a chair', '*rise from a seat', '*get up'],
                 ['*stand up from a [seated|sitting] position', '*sit [on a chair |]and then *stand up', '*get up from {their} [seat|chair]', '*lean forward and *stand up from a chair']),
    'kneel': (['*kneel', '*kneel down', '*get down on one knee', '*kneel on one knee', '*go down on one knee'],
              ['*kneel [down |]on {their} {other} knee {rises}', '*step back and *kneel [|down] {rises}', '*go down on {their} {other} knee {rises}', '*lower {their} body onto one knee {rises}']),
    'pick up': (['*pick something up', '*pick up something', '*pick something up from the floor', '*bend down to pick something up', '*pick an object up'],
                ['*bend down and *pick [something|an object] up [from the [floor|ground] |]with {their} {other} hand', '*reach down with {their} {other} hand [and *pick something up|to the floor]',
                 '*crouch [|down], *grab something [from|off] the [ground|floor] and *stand back up']),
    'lunge': (['*lunge', '*lunge forward', '*do a lunge', '*perform a lunge', '*do lunges'],
              ['*lunge forward with {their} {side} [leg|foot] {repeats}', '*step forward with {their} {side} [foot|leg] and *lunge {repeats}', '*take a big step forward into a lunge and *step back {repeats}']),
    'kick': (['*kick', '*kick with {their} {other} leg', '*kick with {their} {other} foot', '*do a kick', '*kick {their} {other} leg', '*kick something', '*kick out', '*perform a kick'],
             ['{kick}', '{kick}', '*lift {their} {other} [leg|foot] and *kick {repeats}', '*kick {kickway} with {their} {other} [leg|foot] {repeats}', '*kick {their} {other} [leg|foot] {kickway} {repeats}']),
    'punch': (['*punch', '*throw a punch', '*box', '*punch forward', '*punch something', '*punch the air', '*do a punch', '*hit something with {their} fist'],
              ['{punch}', '{punch}', '{punch}', '*raise {their} fists and {punch}', '*take a fighting [stance|pose] and *punch']),
    'throw': (['*throw', '*throw something', '*throw a ball', '*toss something', '*throw an object', '*make a throw'],
              ['*throw [something|a ball|an object] [forward |]with {their} {other} [hand|arm]', '*throw [something|a ball] {throwway} with {their} {other} [hand|arm]', '*[swing|move] {their} {other} arm back and *throw [something|a ball]']),
    'point': (['*point', '*point at something', '*point with {their} {other} hand', '*point with {their} {other} arm', '*point a finger'],
              ['*point {pointway} with {their} {other} [hand|arm]', '*raise {their} {other} [arm|hand] and *point {pointway}', '*[extend|lift] {their} {other} arm to point {pointway}']),
    'look around': (['*look around', '*look left and right', '*look from side to side', '*turn {their} head', '*look to both sides'],
                    ['*look to the {side} [and then|then] to the {other}', '*turn {their} head {side} and then {other}', '*stand [still |]and *look around']),
    'stretch': (['*stretch', '*stretch {their} body', '*stretch to the side', '*do a stretch', '*do stretches'],
                ['{stretch}', '{stretch}', '*stretch {their} [body|torso] sideways']),
    'stand': (['*stand still', '*stand', '*stand in place', '*stay still', '*remain still', '*do nothing', '*stand there', '*wait', '*stand idle', '*hold still'],
              ['*stand [still|in place] {standway}', '*stand [|calmly|quietly] without ~move [|around]', '*stand [still |]and *wait', '*stand in one place {standway}', '*stay in place without ~walk']),
    'spin': (['*spin', '*spin around', '*turn around in a circle', '*spin in place', '*rotate in a circle', '*twirl', '*do a spin', '*spin in a circle', '*twirl around'],
             ['*spin [around |]{turns} to the {side}', '*spin [|around] {turns} {spinarms}', '*turn around {fullturns} [|on the spot]', '*rotate {turnway} {turns} {spinarms}', '*spin {turnway} [|in place]']),
    'step': (['*step {side}', '*step to the {side}', '*sidestep to the {side}', '*move to the {side}', '*step sideways', '*sidestep {side}'],
             ['*take {steps} to the {side}', '*take {steps} sideways to {their} {side}', '*[shuffle|sidestep|step] sideways to the {side}', '*move sideways to the {side} with {steps}']),
    'crawl': (['*crawl', '*crawl forward', '*crawl on the floor', '*crawl on the ground', '*crawl forwards', '*crawl ahead', '*move forward on the floor by ~crawl'],
              ['{crawl}', '{crawl}', '{crawl}', '*crawl [forward|ahead|across the floor] {crawlpace}', '*get down and *crawl [forward|ahead]']),
    'dance': (['*dance', '*dance around', '*perform a dance', '*do a dance', '*dance with {their} arms'],
              ['{dance}', '*dance [energetically|with {their} whole body]', '*perform [|some] dance moves', '*move {their} arms and legs in a dance']),
    'get up': (['*get up', '*get up from the floor', '*stand up from the ground', '*get up off the ground', '*rise from the floor'],
               ['{getup}', '{getup}', '*lie on the [floor|ground] and then *get up']),
    'cartwheel': (['*do a cartwheel', '*cartwheel', '*perform a cartwheel', '*do a cartwheel to the side'],
                  ['*do a cartwheel to the {side}', '*put {their} hands on the [floor|ground] and *cartwheel', '*perform a cartwheel to {their} {side}']),
    'backflip': (['*do a backflip', '*backflip', '*perform a backflip', '*do a back flip', '*flip backwards'],
                 ['*jump [up |]and *do a backflip', '*do a backward flip [in the air |]and *land on {their} feet', '*flip backwards in the air']),
    'roll': (['*roll', '*do a forward roll', '*roll forward', '*roll on the floor', '*do a somersault', '*somersault'],
             ['*do a forward roll [on the floor |]and *stand [back |]up', '*crouch [|down] and *roll forward', '*roll over on the [floor|ground] and *get [back |]up', '*tumble forward and *stand up']),
    'spin kick': (['*do a spin kick', '*spin and *kick', '*do a spinning kick', '*perform a spin kick', '*do a roundhouse kick'],
                  ['*jump and *do a spinning kick', '*spin around and *kick in the air', '*turn and *kick while ~jump', '*perform a flying spin kick']),
    'walk and jump': (['*walk and *jump', '*walk then *jump', '*walk forward and *jump', '*walk and then *jump'],
                      ['*walk forward [and then|then|, *stop and] {jump}', '*walk a few steps [and|then] {jump}', '*take a few steps [forward |]and *leap']),
    'walk and wave': (['*walk and *wave', '*walk and *wave {their} {side} hand', '*walk and *wave with {their} {side} hand', '*walk forward and *wave'],
                      ['{walkwave}', '{walkwave}']),
}


def _pace(value, low, high, slow='[slowly|at a slow pace]', fast='[quickly|fast|at a quick pace|briskly]', normal='[|||at a normal pace|at a steady pace]'):
    return slow if value < low else fast if value > high else normal


def _slots(label, f, side):
    """The words for {slots} from the facts of a clip."""
    other = {'left': 'right', 'right': 'left'}[side]
    s = dict(side=side, other=other, their='their', turnway={'left': 'counterclockwise', 'right': 'clockwise'}[side])
    count, pace, angle, kind = f.get('count', 1), f.get('pace', 0), f.get('angle', 0), f.get('kind', '')
    s['times'], s['repeats'] = TIMES[min(count, 6)], REPEATS[min(count, 5)]
    s['count'] = ['a', 'one', 'two', 'three', 'four', 'five', 'six'][min(count, 6)]
    if label in ('walk', 'walk backward', 'walk and turn', 'walk in a circle'):
        low, high = (0.55, 0.85) if label == 'walk backward' else (0.8, 1.12)
        s['pace'] = _pace(pace, low, high)
        s['speed'] = 'slow' if pace < low else '[quick|brisk]' if pace > high else '[normal|steady|moderate]'
        s['style'] = {'hips': '[with {their} hands on {their} hips|with hands on hips]', 'tired': '[|while ~lean forward|with {their} head down|hunched over]',
                      'proud': '[|with {their} head up|upright]', 'aside': '[while ~look around|while ~look left and right]'}.get(f.get('style'), '')
        start, stop = f.get('start'), f.get('stop')
        s['startstop'] = '*start to walk forward' if start and not stop else '*walk forward and [then |]*stop' if stop and not start else \
            '*stand, *walk forward and *stop' if start else '*walk [forward|straight] without ~stop'
        s['sharp'] = 'sharp' if angle > 110 else '[|slight]' if angle < 80 else ''
    s.setdefault('pace', _pace(pace, 0.95, 1.12) if label == 'march' else '')
    s['angle'] = '90 degrees' if 82 < angle < 98 else '180 degrees' if angle > 168 else 'halfway' if angle > 150 else ''
    s['around'] = '*turn around [|to face the other way|to the {side}|by ~turn {side}]' if angle > 150 else '*turn {side}'
    s['turnpace'] = _pace(pace, 68, 84)
    s['runpace'] = '[at a slow jog|slowly|at an easy pace]' if pace < 2.7 else '[fast|quickly|at full speed|at a fast pace]' if pace > 3.2 else '[|||steadily]'
    s['jog'] = '*jog' if pace < 2.9 else '[*sprint|*run fast]' if pace > 3.2 else '[*run|*jog]'
    s['runstart'] = '*[start|begin] to run forward' if f.get('start') else '*run [forward|straight] without ~stop'
    s['ahead'] = '[while ~move forward|forward]' if f.get('ahead') else '[in place|on the spot|]'
    s['jackpace'] = _pace(pace, 1.03, 1.17)
    s['wavehigh'] = '[high |]above {their} head' if f.get('high') else '[at shoulder height|in the air|from side to side|back and forth]'
    s['wavepace'] = _pace(pace, 1.95, 2.45, normal='[||back and forth|side to side]')
    s['wavespeed'] = _pace(pace, 1.95, 2.45, normal='')
    s['lowerboth'] = 'then *lower them' if f.get('lowered') else ''
    s['lowered'] = '[|then *lower it|and *put it down]' if f.get('lowered') else ''
    s['armway'] = {'front': '[|in front of {their} body|forward and up]', 'side': '[|from the sides|sideways]'}.get(f.get('way'), '')
    s['thenlower'] = '[|and [then |]*lower them|and *bring them back down]' if f.get('lowered') and count == 1 else '{repeats}' if count > 1 else '[|and *hold them there]'
    s['circleway'] = f'[{f.get("way")}|]'
    depth = f.get('depth', 0)
    s['deep'] = '[low|deeply|very low]' if depth > 0.43 else '[slightly|a little|halfway]' if depth < 0.36 else ''
    s['deepadj'] = '[deep|low]' if depth > 0.43 else '[shallow|half]' if depth < 0.36 else ''
    s['squats'] = f'*do {s["count"]} squats' if count > 1 else '*squat [down |]and *hold [it|the position]' if f.get('hold', 0) > 0.6 else '*do one squat'
    s['deeply'] = '[deeply|low|very low]' if f.get('deep', 0) > 74 else '[slightly|a little]' if f.get('deep', 0) < 54 else ''
    s['deepbow'] = '[deep|low]' if f.get('deep', 0) > 74 else '[slight|small]' if f.get('deep', 0) < 54 else '[polite|respectful]'
    s['rises'] = '[and then *stand [back |]up|then *get up again]' if f.get('rises') else '[|and *stay there|]'
    s['jump'] = {'up': '[*jump [up|up in the air|straight up|in place|up and down]|*leap [up|into the air]|*hop up]', 'forward': '[*jump|*leap|*hop] [forward|forwards|ahead]',
                 'back': '[*jump|*leap|*hop] [backward|backwards|back]', 'side': '[*jump|*leap|*hop] [to the {side}|sideways to the {side}|{side}]',
                 'turn': f'*jump [up |]and *[turn|spin] [{"around" if angle > 150 else "90 degrees"}|to the {{side}}] in the air'}.get(kind, '*jump')
    s['plainjump'] = {'forward': '*jump forward', 'back': '*jump backward', 'side': '*jump {side}', 'turn': '*jump and *turn'}.get(kind, '[*jump up|*hop up|*leap up|*jump in place|*jump straight up]')
    s['jump'] += ' {times}' if count > 1 else ' [high |very high |]' if f.get('high', 0) > 0.34 else ''
    s['kickway'] = {'front': '[forward|in front of {their} body|straight ahead]', 'high': '[high|high in the air|up high]', 'low': '[forward|low|near the ground]', 'side': '[to the side|sideways|to the {other}]'}.get(kind, '')
    s['kick'] = {'front': '*do a front kick with {their} {other} [leg|foot] {repeats}', 'high': '*do a high kick with {their} {other} [leg|foot] {repeats}',
                 'low': '[*kick a ball with {their} {other} [foot|leg] {repeats}|*swing {their} {other} leg [back |]and *kick forward {repeats}]',
                 'side': '*do a side kick with {their} {other} [leg|foot] {repeats}'}.get(kind, '')
    sides = f.get('sides', 'R')
    fists = 'both [hands|fists|arms]' if len(set(sides)) > 1 else '{their} ' + (other if sides[0] == 'R' else side) + ' [hand|fist|arm]'
    name = {'straight': '[*punch|*jab|*punch forward|*punch straight ahead]', 'hook': '*throw [a hook|hooks]' if count > 1 else '*throw a hook',
            'upper': '*throw [uppercuts|an uppercut]' if count > 1 else '*throw an uppercut'}.get(kind, '*punch')
    s['punch'] = f'{name} with {fists} {{repeats}}' if len(set(sides)) < 2 else f'[{name} with {fists}|*punch {{repeats}}, ~alternate hands|*punch with {{their}} {other} and [then |]{side} hand]'
    s['throwway'] = f'[{kind}|]'
    s['pointway'] = {'front': '[forward|ahead|in front|straight ahead]', 'side': '[to the {other}|to {their} {other}|sideways]', 'up': '[up|at the sky|upwards|at the ceiling]'}.get(f.get('way'), '')
    s['stretch'] = '*raise both arms and *lean [to both sides|from side to side|to the {other} and [then |]the {side}]' if f.get('both') else \
        '*raise {their} {side} arm [over {their} head |]and *lean to the {other}'
    s['standway'] = {'hips': 'with {their} hands on {their} hips', 'shift': '[|while ~shift {their} weight]'}.get(kind, '[|with {their} arms at {their} sides]')
    s['turns'] = '[once|one time|]' if count == 1 else '[twice|two times]'
    s['fullturns'] = '[a full turn|in a full circle|360 degrees]' if count == 1 else 'two [full |]times'
    s['spinarms'] = '[with arms spread out|with {their} arms out to the sides|with {their} arms raised to the sides]' if f.get('arms') else ''
    s['steps'] = ['', '[a step|one step]', 'two steps', 'three steps', '[four|several] steps'][min(count, 4)]
    s['crawl'] = '*crawl [forward |]on {their} [stomach|belly|elbows]' if f.get('low') else '*crawl [forward |ahead |]on [{their} |]hands and knees'
    s['crawlpace'] = '[slowly|low to the ground]' if f.get('low') else _pace(pace, 0.29, 0.39)
    s['dance'] = {'spin': '*spin and *leap in a dance', 'dance_a': '*dance while ~swing {their} arms high', 'dance_b': '*dance and *kick from side to side'}.get(f.get('name'), '*dance')
    s['getup'] = {'getup_facedown': '*[get|stand] up from {their} [stomach|belly]|*push up from the [floor|ground] and *stand up',
                  'getup_faceup': '*[get|stand] up from {their} back|*lie on {their} back and [then |]*get up'}.get(f.get('name'), '*get up')
    s['getup'] = f'[{s["getup"]}]'
    s['walkwave'] = '[*walk forward while ~wave {their} {side} [hand|arm]|*wave {their} {side} hand while ~walk]' if f.get('together') else \
        '[*walk forward, *stop and *wave {their} {side} [hand|arm]|*walk [forward |]and then *wave {their} {side} hand]'
    return s


# ----------------------------------------------------------------------------------------------------------------------
# From phrase to sentence

DOUBLED = ('run', 'sit', 'hop', 'jog', 'step', 'clap', 'get', 'spin', 'stop', 'squat', 'flip', 'put', 'begin', 'grab', 'jab', 'hit', 'sidestep', 'backflip')


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
    'DET': 'a an the this some both another', 'PRON': 'someone something he she it them his her its their your nothing each other', 'NUM': 'one two three four five six 3 90 180 360',
    'ADP': 'in on with to from of at by over above into off without around across near onto after for out down up', 'CCONJ': 'and', 'SCONJ': 'while',
    'ADV': 'forward forwards backward backwards back ahead straight then slowly quickly fast briskly steadily once twice again together sideways there deeply halfway very away '
           'upward upwards repeatedly calmly quietly energetically slightly low high still hunched upright apart clockwise counterclockwise overhand underhand here',
    'ADJ': 'left right slow quick brisk normal steady moderate sharp slight small easy full big large same several few multiple deep shallow half seated sitting polite respectful bent '
           'idle raised little spread hard fighting flying whole upper front spinning forth',
    'AUX': 'be'}
POS = {word: pos for pos, words in WORDS.items() for word in words.split()}
PLURALS = {'feet': 'foot', 'knees': 'knee', 'hands': 'hand', 'arms': 'arm', 'legs': 'leg', 'steps': 'step', 'hips': 'hip', 'times': 'time', 'degrees': 'degree', 'circles': 'circle',
           'jacks': 'jack', 'jumps': 'jump', 'squats': 'squat', 'lunges': 'lunge', 'fists': 'fist', 'sides': 'side', 'elbows': 'elbow', 'moves': 'move', 'stretches': 'stretch',
           'hooks': 'hook', 'uppercuts': 'uppercut'}


def _sentence(phrase, rng, form):
    """One caption: `form` is third, is, command or gerund."""
    subject = str(rng.choice(SUBJECTS))
    owner = subject.split()[-1]
    their = POSSESSIVE.get(owner, 'their') if form in ('third', 'is') else str(rng.choice(['the', 'your' if form == 'command' else 'their']))
    words, tokens = [], []

    def say(word, lemma, pos):
        words.append(word)
        tokens.append(f'{lemma}/{pos}')

    if form in ('third', 'is'):
        for word in subject.split():
            say(word, word, POS.get(word, 'NOUN'))
        if form == 'is':
            say('is', 'be', 'AUX')
    for word in phrase.split():
        comma, word = word.endswith(','), word.rstrip(',')
        if word[0] in '*~':
            verb = word[1:]
            said = _ing(verb) if word[0] == '~' or form in ('is', 'gerund') else _third(verb) if form == 'third' else verb
            say(said, verb, 'VERB')
        elif word == 'their':
            say(their, their, POS.get(their, 'PRON'))
        else:
            after_to = words and words[-1] == 'to' and word in ('walk', 'run', 'turn', 'bow', 'pick', 'point', 'face')
            say(word, PLURALS.get(word, word), 'VERB' if after_to else POS.get(word, 'NOUN'))
        if comma:
            words[-1] += ','
    text = ' '.join(words)
    return Caption(text + ('.' if form == 'third' and rng.random() < 0.15 else ''), ' '.join(tokens))


def captions(label, facts, mirrored, rng, plain=2, detailed=3):
    """list[Caption] of different texts: `plain` short ones and `detailed` ones. mirrored: left and right change places."""
    name = label.replace(' LEFT hand', '').replace(' LEFT', '')
    slots = _slots(name, facts, 'right' if mirrored else 'left')
    found = {}
    while len(found) < plain + detailed:
        forms, phrases = (['third', 'third', 'third', 'is', 'command', 'gerund'], PHRASES[name][0]) if len(found) < plain else (['third'] * 6 + ['is'], PHRASES[name][1])
        caption = _sentence(_choose(str(rng.choice(phrases)), slots, rng), rng, str(rng.choice(forms)))
        found.setdefault(caption.text.rstrip('.'), caption)
    return list(found.values())
