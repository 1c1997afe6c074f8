"""clauses.py: what is done one after the other is found, what is one action stays whole; and what
sample.py and the studio make of it."""
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import checkpoint
import clauses
import guidance
import sample
import story
from formats.pack import Pack

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope="module")
def model():
    return checkpoint.load_model(os.path.join(ROOT, "checkpoints", "toy.pt"))


APART = dict([
    ("a man walks forward and then sits down", "a man walks forward | sits down"),
    ("A man walks, THEN sits.", "A man walks | sits"),
    ("First he claps, then he bows, and finally he waves", "he claps | he bows | he waves"),
    ("walks at first, then starts running", "walks | starts running"),
    ("sit down after walking", "walking | sit down"),
    ("after she jumps, she waves", "she jumps | she waves"),
    ("before he sits down, the man waves", "the man waves | he sits down"),
    ("wave before sitting down", "wave | sitting down"),
    ("a squat followed by a jump", "a squat | a jump"),
    ("jog on the spot, finish with a stretch", "jog on the spot | a stretch"),
    ("nod once you have finished clapping", "clapping | nod"),
    ("she walks home, once she is done she sits", "she walks home, once she is done she sits"),
    ("shaking her head and then retreating backwards", "shaking her head | retreating backwards"),
    ("punch, and then end with a kick", "punch | a kick"),
    ("walks to the other end with a limp", "walks to the other end with a limp"),
    ("walks, then jumps, finishing with hands up", "walks | jumps, finishing with hands up"),
    ("sit down once you're done walking", "walking | sit down"),
    ("a man saunters and waves", "a man saunters and waves"),
    ("scoops up a stone and lobs it", "scoops up a stone | lobs it"),
    ("run; jump", "run | jump"),
    ("He walks. He sits down.", "He walks | He sits down"),
    ("1. walk 2. jump 3. sit down", "walk | jump | sit down"), ("1) walk, 2) jump", "walk | jump"),
    ("1. a man walks", "1. a man walks"), ("he jumps 3. He sits", "he jumps 3 | He sits"),
    ("walk -> jump \u2192 wave", "walk | jump | wave"),
    ("walk --> jump ==> wave \u27a1 sit \u27f6bow", "walk | jump | wave | sit | bow"),
    ("Jump!! Then sit? Then wave!", "Jump | sit | wave"),
    ("Jump! Sit! Wave!", "Jump | Sit | Wave"), ("jump\nsit\r\nwave\n", "jump | sit | wave"),
    (" He walks. He sits. ", "He walks | He sits"), ("walk \u2014 jump", "walk | jump"),
    ("walks\uff0c then sits\u3001waves", "walks | sits | waves"),
    ("(1) walk (2) jump", "walk | jump"),
    ("First, jump. Second, sit. Thirdly, wave.", "jump | sit | wave"),
    ("a man walks, 2 seconds later he sits", "a man walks | he sits"),
    ("walk until you fall down", "walk | you fall down"),
    ("stand up and walk", "stand up | walk"),
    ("step to the left & kick", "step to the left | kick"),
    ("pick something up and throw it", "pick something up | throw it"),
    ("someone jogs, jumps and the man quickly sits", "someone jogs | jumps | the man quickly sits"),
    ("someone walks, stops and waves", "someone walks, stops | waves"),
    ("hop twice and after that turn around", "hop twice | turn around"),
    ("kneels, and a moment later gets up", "kneels, and a moment later gets up"),
    ("he walks. After jumping, he sits down", "he walks | jumping | he sits down"),
    ("a man sits down after walking. Then he waves", "walking | a man sits down | he waves"),
    ("someone walks, then runs after jumping, then sits", "someone walks | jumping | runs | sits"),
    ("Before sitting down, he walks. Then he jumps.", "he walks | sitting down | he jumps"),
    ("a person walks next to a wall and kicks", "a person walks next to a wall | kicks"),
    ("he runs after the king and jumps", "he runs after the king | jumps"),
    ("a man shakes his head no, then walks", "a man shakes his head no | walks"),
    ("walks, next jumps, and next sits", "walks | jumps | sits"),
    ("a man walks after something, then sits down", "a man walks after something | sits down"),
    ("a man walks in a circle, then he stops and waves",
     "a man walks in a circle, then he stops | waves"),
    ("goes forward and then looks left", "goes forward | looks left"),
    ("stretching after getting out of bed", "stretching after getting out of bed"),
    ("gets up and walks", "gets up | walks"),
    ("gets out of a chair, then walks forward", "gets out of a chair | walks forward"),
    ("he walks and then gets out of the way", "he walks | gets out of the way"),
    ("before jumping, the athlete squats", "the athlete squats | jumping"),
    ("after waving to them, mr Brown walks off", "waving to them | mr Brown walks off"),
    ("after a while, the tired man sits", "after a while, the tired man sits"),
    ("turn to the left, start walking", "turn to the left | start walking"),
    ("runs, then slows down to a walk", "runs | slows down to a walk"),
    ("a soldier marches, halts, salutes", "a soldier marches, halts | salutes"),
    ("he looks around to both sides and runs away", "he looks around to both sides | runs away"),
    ("looks both ways and runs", "looks both ways | runs"),
    ("he sat down and got up", "he sat down | got up"),
    ("he lay down and rose", "he lay down | rose"),
    ("after waving, he jumps and claps while walking",
     "waving | he jumps and claps while walking"),
    ("he nods and gets up out of his chair", "he nods | gets up out of his chair"),
    ("sits down in a waiting room, she stands up", "sits down in a waiting room | she stands up"),
    ("he walks, then frowns", "he walks, then frowns"),  # which may be an action that is not known
    ("walk forward, turn around, walk back", "walk forward, turn around | walk"),
    ("turns around, then jumps back", "turns around | jumps back"),
    ("lies down on the ground then gets back up", "lies down on the ground | gets back up"),
    ("clap your hands and after it make a bow", "clap your hands | make a bow"),
    ("a punch + a kick", "a punch | a kick"), ("a hook, then an uppercut", "a hook | an uppercut"),
    ("a man is pushed, then falls", "a man is pushed | falls"),
    ("turns around, then walks back and forth", "turns around | walks back and forth"),
    ("turns around, then walks with a straight back", "turns around | walks with a straight back"),
    ("turns around twice, then walks back", "turns around twice | walks back"),
    ("turns around and runs back home", "turns around | runs home"),
    ("he stops to wave, then walks on", "he stops to wave | walks on"),
    ("walks and stops to wave", "walks | wave"),
    ("walks ahead, stops to pick up a coin, and keeps walking",
     "walks ahead | pick up a coin | keeps walking"),
])


@pytest.mark.parametrize("text, parts", APART.items())
def test_parts_in_their_order(text, parts):
    wanted = parts.split(" | ")
    assert clauses.parts(text) == (wanted if len(wanted) > 1 else [text])


@pytest.mark.parametrize("text, acts", [
    ("sits in the waiting room", "sits"), ("a running", "running"), ("a hook", "hook"),
    ("his name is called, he waves", "waves"), ("is called", "called"),
    ("he called and waves", "called waves"), ("knows the answer and waits", "waits"),
    ("gets out of bed", ""), ("go back", "go")])
def test_the_actions_of_a_text(text, acts):
    assert clauses.acts(text) == acts.split()


@pytest.mark.parametrize("text, names, whether", [
    ("mr Brown sits", 3, True), ("mr Brown sits", 0, False), ("mr Brown sit", 3, False),
    ("my good old dear mr Brown sits", 3, False), ("slows down to a walk", 0, True),
    ("slow strides", 0, False), ("keeps walking", 0, True), ("keep on running", 0, True),
    ("keeps his arms crossed and waves", 0, False), ("the answer", 0, False)])
def test_whether_a_text_begins_with_an_action(text, names, whether):
    assert clauses.begins(text, names) is whether


WHOLE = """
a man walks
a man walks and waves
walks while waving, then
walk forward and turn left
a person walks, waving both hands
crouches down and stands up again
jumps up and down
raises his left hand and waves
bends her knees and jumps high
steps forward and kicks with the right foot
jump and spin
looks left and right
walk back and forth
bends down and stands up
picks it up and stands up
he sits and stands up
stumbles and gets up
lies on the floor and gets up
runs and keeps running
walk and continue to walk
walks, stops to the left
after being kicked, the man
he walks. Slowly.
She won! Jumps, then claps
Jumps, then claps. Three times.
He walks forward. Then he golfs. Then he bows.
a man walks with long, slow strides
walks to the bus stop to wait
he runs to the stop to catch the bus
sits down and gets comfortable
walks forward and stands still
sit down and stand up three times
walks and keeps his arms crossed
walk + wave at the same time
He walks. The crowd cheers.
walks until the road turns left
before the bus stops, he stands up
one, two, three
a man lifts his arms and then lowers them
walks forward and then stops
he runs after a dog
lowers and raises both arms at the same time
squat then stand
go and sit down
a man walks to the next room
a person walks until tired
a person picks up a ball and a box
a person jumps over a block and a box
a person dances, spinning and jumping
don't jump, walk
a man cannot jump, then he sits
nobody walks, then sits
jump rather than walk, then sit
a man walks!
RUN! Run!
a man walks
a man never jumps, then walks
no jumping, then walk
a person waves, and another person bows
turns his head and nods
then
and then
, and ,
after
stumbles and falls

\u8d70\u308b
""".strip("\n").splitlines()


@pytest.mark.parametrize("text", WHOLE)
def test_one_thing_stays_whole(text):
    assert clauses.parts(text) == [text]


def test_a_tale_stays_whole_and_nothing_takes_long():
    tale = ", then ".join(["he jumps", "he walks"] * 11)
    assert clauses.parts(tale) == [tale]
    assert len(clauses.parts(", then ".join(["he jumps", "he walks"] * 10))) == clauses.MOST
    for text in ("walk and " * 20_000, "," * 50_000, "after " * 20_000, "then " * 20_000,
                 "a" * 100_000, "before he " * 20_000, " " * 100_000 + "then walk"):
        assert clauses.parts(text) == [text]


def test_the_shares_that_docs_words_md_gives():
    """Captions of the toy set: of two or three actions in a row, and of one."""
    pack = Pack(os.path.join(ROOT, "data", "toy", "toy.pack"))
    row, one = [], []
    for item in range(len(pack)):
        for caption in pack.captions(item):
            text = caption.text
            if pack.action(item):
                one.append(len(clauses.parts(text)) > 1)
            elif not re.search(r"while|same time|as (they|s?he|you|it) go|, \w+ing ", text):
                row.append(len(clauses.parts(text)) > 1)
    print(f"{np.mean(row):.1%} of {len(row)}, {np.mean(one):.1%} of {len(one)}")
    assert np.mean(row) > 0.8 and np.mean(one) < 0.025 and len(row) > 10_000 < len(one)


# --------------------------------------------------------------------------------------------------
# What is made of it


@pytest.mark.parametrize("total", [None, 40, 41, 47, 200])
def test_parts_share_the_time(model, total):
    found = story.lengths_of(model, ["a man walks", "he sits"], 3, total)
    assert found == story.lengths_of(model, ["a man walks", "he sits"], 3, total)
    assert min(found) >= 2 * story.SHARED and (total is None or sum(found) == total)
    with pytest.raises(ValueError, match="2 things one after the other need at least 2 s"):
        story.lengths_of(model, ["a man walks", "he sits"], 3, 39)


def test_no_part_is_longer_than_the_training_s_motions_if_the_time_allows_it(model):
    most = model.config.data.max_frames
    for seed in range(20):
        for total in (180, 200, 2 * most - story.SHARED):
            shares = story.lengths_of(model, ["walks in a circle", "jumps"], seed, total)
            assert sum(shares) == total and max(shares) <= most
            assert shares[1] <= most - story.SHARED
    assert sum(story.lengths_of(model, ["walks", "jumps"], 3, 300)) == 300  # and is refused


def test_scenes_are_the_same_alone_and_in_a_batch(model):
    each = [["a man jumps"], ["a man walks", "he sits down"], ["a woman waves"]]
    lengths, seeds = [[40], [30, 24], [44]], [5, 6, 7]
    made = story.scenes(model, each, lengths, seeds)
    assert [len(joints) for joints in made] == [40, 54, 44]
    for i, joints in enumerate(made):
        alone, = story.scenes(model, each[i:i + 1], lengths[i:i + 1], seeds[i:i + 1])
        assert np.allclose(joints, alone, atol=1e-4)
    assert np.allclose(made[1], story.story(model, each[1], lengths=lengths[1], seed=6)[0])


def test_motions_of_several_parts_share_no_noise(model, monkeypatch):
    """The second part of the first motion and the first part of the second had the same."""
    asked, own = [], guidance.sampled

    def sampled(model, texts, lengths, seeds, *more):
        asked.extend(seeds)
        return own(model, texts, lengths, seeds, *more)

    monkeypatch.setattr(guidance, "sampled", sampled)
    monkeypatch.setattr(story, "sampled", sampled)
    story.scenes(model, [["a man walks", "he jumps"]] * 3, [[30, 30]] * 3, [5, 6, 7])
    N, other = story.NEXT, guidance.OTHER
    assert {seed + N * k + other * way for seed in (5, 6, 7) for k in (0, 1)
            for way in range(guidance.TRIED)} == {*asked}
    drawn = []
    monkeypatch.setattr(type(model), "draw_lengths", lambda self, texts, seed: drawn.extend(
        seed) or [40] * len(texts))
    story.lengths_of(model, ["a man walks", "he jumps"], 5)
    assert drawn == [5, 5 + story.NEXT]


def test_a_part_that_says_nothing_keeps_the_prompt_whole(model, capsys):
    read = sample.as_read(model, ["a man jumps, then xqzzt", "run and then jmup"])
    assert [len(parts) for parts in read] == [1, 1 + 1] and read[1] == ["run", "jump"]
    said = capsys.readouterr().err
    assert "Read 'jmup' as 'jump'. Made one after the other: 'run', then 'jump'" in said
    assert sample.as_read(model, ["run, then jump"], apart=False) == [["run, then jump"]]
    model_of_any_words = type("", (), {"text_encoder": None})
    assert sample.as_read(model_of_any_words, ["run, then jump"]) == [["run, then jump"]]


def sampled(tmp_path, *words):
    run = subprocess.run([sys.executable, "sample.py", *words, "--out", tmp_path, "--format", "npy",
                          "--steps", "2", "--sampler", "dpm++"], cwd=ROOT, capture_output=True,
                         text=True)
    files = sorted(tmp_path.glob("*.npy"), key=os.path.getmtime)
    return run, [np.load(path) for path in files]


def test_sample_py_makes_what_is_said_one_after_the_other(tmp_path):
    prompts = "a man walks, then sits down", "a man jumps"
    run, made = sampled(tmp_path, *prompts, "--num", "2", "--seconds", "6,2")
    assert run.returncode == 0 and [len(joints) for joints in made] == [120, 120, 40, 40]
    assert run.stderr.count("Made one after the other: 'a man walks', then 'sits down'") == 1
    again, alone = sampled(tmp_path / "b", prompts[0], "--seconds", "6", "--seed", "1235")
    assert np.allclose(alone[0], made[1], atol=1e-3)  # motion i is drawn from seed + i
    run, whole = sampled(tmp_path / "c", prompts[0], "--seconds", "6", "--whole")
    assert "one after" not in run.stderr and not np.allclose(whole[0], made[0], atol=0.1)


def test_the_length_of_each_part_is_checked(tmp_path):
    run, _ = sampled(tmp_path, "a man walks, then sits down", "--seconds", "1.9")
    assert run.returncode == 1 and "need at least 2 s, found 1.9 s" in run.stderr
    run, _ = sampled(tmp_path, "a man walks, then sits down", "--seconds", "30")
    assert run.returncode == 1 and "--seconds 11.5 or less" in run.stderr
    assert "30 s is longer than" in run.stderr and "2 things one after the other" in run.stderr
    run, _ = sampled(tmp_path, "a man walks, then sits down", "--seconds", "12")
    assert run.returncode == 1 and "--seconds 11.5 or less" in run.stderr
    run, made = sampled(tmp_path / "b", "a man walks, then sits down", "--seconds", "11.5")
    assert run.returncode == 0 and len(made[0]) == 230
    run, made = sampled(tmp_path, "a man walks, then sits down", "--seconds", "10")
    assert run.returncode == 0 and len(made[0]) == 200  # each part fits in six seconds
