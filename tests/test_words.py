"""Word vectors and what they are for: neighbours, typos, unknown words, and the tower's rows."""
import copy
import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
import torch
import warm

import checkpoint
import clip
import sample
import words
from clip import WordEncoder
from config import Config, TextEncoderConfig, set_value
from conftest import drawn
from presets import PRESETS
from mld import MLD
from toy import word_vectors
from toy.captions import TEXT as PHRASES
from words import (SAY_NOTHING, Known, distance, drop_words, extended, row_of,
                   understand, vectors, words_of)

ROOT = pathlib.Path(__file__).resolve().parent.parent
# what a small model knows; today's weights know more, and more with each training
TOY = (ROOT / "tests" / "few_words.txt").read_text(encoding="utf-8").split("\n", 1)[1].split()
TEXT = TextEncoderConfig(kind="scratch", width=16, layers=1, heads=2, vectors=True)
VOCABULARY = ["a", "jumps", "left", "man", "strolls", "xyzzy"]  # the last has no vector


# --- the file ---


def test_the_file_is_small_whole_and_has_its_words():
    held = vectors()
    assert (ROOT / "word_vectors.bin").stat().st_size <= 1_500_000
    assert len(held.number) > 20_000 and len(held.forms) == len(held.table)
    assert {word for word in TOY if row_of(word) is None} == {"180", "360", "90", "a"}
    norms = np.linalg.norm(held.table * held.scale, axis=1)
    assert abs(norms - 1).max() < 0.03 and held.table.dtype == np.int8
    for forms in ("walk walks walking walked", "run ran runs running", "foot feet", "left"):
        assert len({held.number[word] for word in forms.split()}) == 1, forms
    assert len({held.number[word] for word in ("left", "leave", "right", "walk", "run")}) == 5


def test_files_come_back_to_half_a_step_or_are_refused(tmp_path):
    table = word_vectors.unit(np.random.default_rng(0).normal(size=(3, 5)))
    data = words.pack([["walk", "walks"], ["run"], ["hop"]], table)
    held = words.unpack(data)
    assert np.abs(held.table * held.scale - table).max() <= held.scale / 2 * 1.001
    assert held.forms == [["walk", "walks"], ["run"], ["hop"]]
    assert held.number == {"walk": 0, "walks": 0, "run": 1, "hop": 2}
    for bad in (b"", b"other\n", data[:-1], data.replace(b"run", b"ran"), data + b"x"):
        with pytest.raises(ValueError, match="the file is not a whole file of word vectors"):
            words.unpack(bad)
    with pytest.raises(FileNotFoundError, match="toy.word_vectors"):
        vectors(str(tmp_path / "no.bin"))


def test_the_program_makes_the_same_bytes_again(tmp_path):
    rng, names = np.random.default_rng(0), list("abcdefgh")
    some = ["the", "walk", "walks", "stroll", "left", "right", "forward", "backward", "cup"]
    some += [a + b + c for a in names for b in names for c in names]
    package = {"words": some, "dimensions": 100,
               "vectors": {word: rng.normal(size=100).round(4).tolist() + [1, 2] for word in some}}
    (tmp_path / "small-embeddings.json").write_text(json.dumps(package))
    made = []
    for name in ("a.bin", "b.bin"):
        word_vectors.main([str(tmp_path), str(tmp_path / name)])
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    held = words.unpack(made[0])
    assert held.number["walk"] == held.number["walks"] != held.number["stroll"]
    walk, stroll, left, right = held.unit(["walk", "stroll", "left", "right"])
    assert walk @ stroll > 0.7 and left @ right <= 0.55


# --- from words to words ---


@pytest.mark.parametrize("word, known", [
    ("saunters", "strolls"), ("ambles", "strolls"), ("tosses", "throws"), ("pirouettes", "twirls"),
    ("whirling", "twirling"), ("waltz", "dance"), ("ballet", "dance"), ("hurls", "throws"),
    ("swiftly", "quickly"), ("anticlockwise", "counterclockwise"), ("leftward", "left"),
    ("rightwards", "right"), ("gentleman", "guy"), ("walked", "walks"), ("jumped", "jumps"),
    ("ran", "runs"), ("shoves", "pushes"), ("trudges", "walks"), ("salutes", "waves")])
def test_a_word_is_taken_for_its_neighbour(word, known):
    how, found = Known(TOY).find(word)
    if known in ("walks", "pushes", "waves", "strolls", "twirls", "twirling"):  # or a synonym
        row = vectors().unit([word, found])
        assert how in ("like", "form") and row[0] @ row[1] >= words.LIKE
    else:
        assert how in ("like", "form") and found == known


@pytest.mark.parametrize("word", ["cup", "golf", "violin", "tree", "quantum", "coffee", "not",
                                  "blorfing", "привет", "computer", "drinks"])
def test_a_word_with_no_meaning_here_is_unknown(word):
    assert Known(TOY).find(word) == (None, None)


def test_a_vague_word_stands_for_its_own_forms_and_no_other():
    book = Known(["gets", "up", "walks", "object", "somebody", "normal"])
    assert book.find("got") == ("form", "gets") and book.find("getting")[0] == "form"
    assert book.find("objects") == ("form", "object")
    assert book.find("obtains") == (None, None) and book.find("usual") == (None, None)
    both = Known(["place", "places", "in"])  # "in place" is none of the things that are placed
    assert both.find("placed") == ("form", "places") and both.find("puts")[1] != "place"
    assert understand("he got up", TOY).text in ("he gets up", "he got up")
    assert understand("she made a wave", TOY).unknown == []  # made says as little as makes


def test_opposites_never_stand_for_each_other():
    """With only the other side known, a word is unknown rather than its opposite."""
    for pair in words.OPPOSITES:
        for one, other in (pair, pair[::-1]):
            for word in one:
                found = Known(other).find(word)[1]
                assert found is None, (word, found)
    book = Known(["left", "right", "quickly", "slowly", "forward", "backward", "up", "down"])
    for word, known in (("leftwards", "left"), ("rightward", "right"), ("hastily", "quickly"),
                        ("leisurely", "slowly"), ("onward", "forward"), ("backwards", "backward"),
                        ("upward", "up"), ("downwards", "down")):
        assert book.find(word)[1] == known


@pytest.mark.parametrize("typo, word", [
    ("wlaks", "walks"), ("jmup", "jump"), ("cartwhel", "cartwheel"), ("somersalt", "somersault"),
    ("rigth", "right"), ("hnad", "hand"), ("danse", "dance"), ("kiks", "kicks"),
    ("backfilp", "backflip")])
def test_typos_are_corrected(typo, word):
    report = understand(typo, TOY)
    assert report.text == word and report.spelled == {typo: word} and not report.unknown
    assert report.notes == [f"Read {typo!r} as {word!r}."]


def test_a_typo_of_an_unknown_word_is_corrected_and_then_taken_for_a_known_one():
    report = understand("a man watlz", TOY)
    assert report.spelled == {"watlz": "waltz"} and report.text in ("a man dance", "a man dances")
    assert len(report.notes) == 2


def test_real_words_are_not_corrected():
    """They are a letter away from known words, and mean something else."""
    for word in ("cup", "golf", "lump", "bump", "hat", "talk", "stork", "want", "jam", "kitten"):
        assert not understand(f"a man jumps {word}", TOY).spelled, word


def test_distances():
    assert [distance(*pair, 3) for pair in (("walk", "walk"), ("wlak", "walk"), ("wak", "walk"),
            ("walkk", "walk"), ("walk", "talk"), ("wlaks", "walk"), ("jump", "kick"))] == [
        0, 1, 1, 1, 1, 2, 4]
    assert distance("a", "abcdef", 2) == 3


@pytest.mark.parametrize("prompt, text", [
    ("a man jumps 2 times", "a man jumps two times"), ("he jumps three times", None),
    ("a person side-steps", "a person sidesteps"), ("he\u2019s walking", "he walking"),
    ("\uff41 \uff4d\uff41\uff4e \uff4a\uff55\uff4d\uff50\uff53", "a man jumps"),
    ("a man who jumps", "a man jumps"), ("A MAN JUMPS!", None), ("jumping-jacks", None),
    ("the man's jump", "the man jump")])
def test_numbers_hyphens_and_apostrophes(prompt, text):
    report = understand(prompt, TOY)
    assert report.text == (prompt if text is None else text)
    assert not report.notes and report.says


ODD = ["-3", "\u22123", "\u20133", "2.5", "-2.5", ".5", "-.5", "1/2", "2-3", "4\u20135", "4 - 5",
       "2~3", "2:30", "1,5", "2-3-4", "2'5", "3+", ">3", "\u22642", "2 or 3", "two to three",
       "once or twice", "90 seconds", "12 s", "3 minutes", "3 seconds", "five secs", "two seconds"]


@pytest.mark.parametrize("number", ODD)
def test_a_number_that_is_no_count_is_told(number):
    """Read as the digits in it, "walk -3 steps" would be three steps, in silence; joined, 4-5
    would be 45."""
    for vocabulary in (TOY, [*TOY, "12", "45", "25", "23", "234", "15", "05", "230"]):
        report = understand(f"he jumps {number} times.", vocabulary)
        assert (report.text, report.unknown) == ("he jumps _ times", [number])
        report = understand(f"He jumps, {number}; then 2 more.", vocabulary)
        assert report.unknown[0] == number and "two" in report.text


def test_a_form_of_a_word_with_a_vector_is_no_mistake():
    """'sleeps' is near 'sweeps' by spelling alone."""
    vocabulary = [*TOY, "sweeps", "backs", "plays", "spins", "waves"]
    for word in ("sleeps", "barks", "prays", "spits", "wakes"):
        report = understand(f"a man {word} and jumps", vocabulary)
        assert row_of(word) is not None and not report.spelled, report


@pytest.mark.parametrize("prompt, text, told", [
    ("one single kick", "one kick", ""), ("just a single jump", "one jump", ""),
    ("a cart wheel", "a cartwheel", ""), ("walk for ward", "walk forward", ""),
    ("a way to walk", "a way to walk", ""),  # and not away
    ("every single kick", "every single kick", ""),  # and not everyone
    ("a single leg squat", "a single leg squat", ""),
    ("jump higher", "jump high", ""), ("squat realy deep", "squat deep", "really"),
    ("waves frantically", "waves quickly", "quickly"),
    ("a pair of claps", "couple of claps", "couple"),
    ("extremely high", "very high", "very"), ("chest horizontal", "chest _", "horizontal")])
def test_what_is_one_in_two_words_and_what_has_another_name(prompt, text, told):
    vocabulary = "a chest claps couple of cartwheel deep forward high jump kick one quickly " \
        "ready squat to very vertical walk waves way away every everyone single leg".split()
    report = understand(prompt, vocabulary)
    assert report.text.removeprefix("a ") == text.removeprefix("a ")
    assert told in " ".join(report.notes) and bool(told) == bool(report.notes)


def test_what_says_the_opposite_and_what_vectors_confuse():
    for prompt, text, unknown in (
            ("nobody jumps", "_ jumps", "nobody"), ("a man cannot jump", "a man _ jump", "cannot"),
            ("he jumps rather than walks", "he jumps _ walks", "rather than"),
            ("he falls down", "he _", "falls down"), ("he collapses", "he _", "collapses"),
            ("walk a figure of eight", "walk a _", "figure of eight"),
            ("a man plays the piano", "a man _", "plays the piano"),
            ("two people wave", "_ wave", "two people"),
            ("wave at each other", "wave at _", "each other"),
            ("a man cries and walks", "a man _ and walks", "cries"),
            ("raises a finger", "raises a _", "finger")):
        report = understand(prompt, [*TOY, "laughs", "elbow", "raises", "falls"])
        assert (report.text, report.unknown) == (text, [unknown])
    assert understand("he jumps thrice", TOY).text == "he jumps three times"
    for prompt in ("falls to his knees", "falls down on one knee", "nearly falls over a stone",
                   "falls on his hands and knees"):
        assert understand(prompt, [*TOY, *prompt.split()]).unknown == [], prompt
    for prompt in ("2 soldiers march", "12 people march", "six men march"):
        report = understand(prompt, [*TOY, "march"])
        assert report.text == "_ march" and "--seconds" not in report.notes[-1], prompt
    for prompt, text in (("four paces forward", "four steps forward"), ("a pace", "a pace"),
                         ("picks himself up", "gets up"), ("picking yourself up", "getting up"),
                         ("pick themselves up", "get up"), ("picked it up", "picked it up")):
        book = [*TOY, "paces", "pace", "steps", "gets", "getting", "get", "picked", "up", "it"]
        assert understand(prompt, book).text == text, prompt
    for often in ("3x", "x3", "3 reps"):
        assert understand(f"he jumps {often}", TOY).text == "he jumps 3 times", often
    assert understand("he is at x12", TOY).unknown == ["x12"]
    assert understand("he walks faster", [*TOY, "fast"]).text == "he walks fast"
    for seconds, said in (("90 seconds", True), ("4-5", False)):
        note, = understand(f"he walks {seconds}", TOY).notes
        assert ("--seconds" in note) == said


def test_a_report_tells_everything():
    report = understand("a man saunters to the rigth with a cup", TOY)
    assert report.text == "a man strolls to the right with a _"
    assert list(report.taken) == ["saunters"] and report.unknown == ["cup"] and not report.error
    read, taken, unknown = report.notes
    assert read == "Read 'rigth' as 'right'." and "'saunters' is taken for 'strolls'" in taken
    assert "'cup'" in unknown and "--list" in unknown
    assert understand("he does not jump", TOY).unknown == ["not"]
    for word in ("not", "no", "never", "without", "neither", "nor"):  # known or not
        report = understand(f"{word} jump", [*TOY, "not", "no", "never", "without", "nod"])
        assert (report.unknown, report.text) == ([word], "_ jump") and word in report.notes[0]
    plain = understand("A man jumps, then walks.", TOY)
    assert plain.text == plain.prompt and not plain.notes and not plain.error


@pytest.mark.parametrize("prompt", ["", "  ", "...", "\U0001f57a", "一个人跳", "un hombre salta",
                                    "a man", "the person is", "three", "3", "5 seconds",
                                    "twice", "a man two times", "why", "golf",
                                    "a man drinks from a cup", "прыжок"])
def test_nothing_left_to_go_on(prompt):
    report = understand(prompt, TOY)
    assert not report.says and "tells this model what to do" in report.error
    assert "--list" in report.error and "--unconditional" in report.error


def test_thresholds_keep_their_promise():
    """Of words taken for others, how many are right, and of those that have a right one, how many
    are found: on the half that the threshold was not chosen on, with two vocabularies."""
    cases, wider = word_vectors.read_cases()
    assert len(cases) > 150
    for vocabulary in (TOY, sorted({*TOY, *wider})):
        judged = word_vectors.judge(cases[1::2], Known(vocabulary))
        precision, recall = word_vectors.precision_recall(judged, words.LIKE)
        assert len(judged[0]) >= 75 and precision >= 0.85 and recall >= 0.85


# --- the tower ---


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return WordEncoder(TEXT, VOCABULARY).eval()


def test_a_word_is_its_vector_and_its_row(encoder):
    table, held = encoder.tower.token_embedding, vectors()
    (jumps, end), = encoder.ids(["jumps"]).tolist()
    assert (jumps, end) == (encoder.number["jumps"], clip.END)
    vector = torch.from_numpy(held.table[held.number["jumps"]] * held.scale).float()
    expected = table.project(vector) + table.weight[jumps]
    assert torch.allclose(table(torch.tensor([jumps]))[0], expected, atol=1e-6)
    (alone, _), = encoder.ids(["_jumps"]).tolist()
    assert alone == len(VOCABULARY) + 2 + held.number["jumps"]
    assert torch.allclose(table(torch.tensor([alone]))[0], table.project(vector), atol=1e-6)
    for special in (clip.UNKNOWN, clip.END):
        assert torch.equal(table(torch.tensor([special]))[0], table.weight[special])


def test_a_word_outside_the_vocabulary_is_read_by_its_vector(encoder):
    texts = ["a man jumps", "a man hops", "a man hopped", "a man blorfs", "a man _", "a man _xyzzy"]
    found = encoder(texts)
    assert torch.equal(found[1], found[2]), "all forms of a word share a vector"
    assert torch.equal(found[3], found[4]) and torch.equal(found[5], found[4])
    assert not torch.allclose(found[1], found[4], atol=1e-4)
    with torch.no_grad():  # with a row of zeros, a known word is its vector
        encoder.tower.token_embedding.weight[encoder.number["jumps"]] = 0
    found = encoder(["a man jumps", "a man _jumps", "a man jumped"])
    assert torch.allclose(found, found[:1].expand_as(found), atol=1e-6)
    assert encoder.ids(["3"]).tolist() == encoder.ids(["three"]).tolist()


def test_gradients_reach_rows_of_known_words_only(encoder):
    encoder(["a man jumps", "_left hops"]).sum().backward()
    table = encoder.tower.token_embedding
    rows = table.weight.grad.abs().sum(1) > 0
    assert [word for word in VOCABULARY if rows[encoder.number[word]]] == ["a", "jumps", "man"]
    assert table.project.weight.grad.abs().sum() > 0 and not rows[clip.UNKNOWN]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_types_and_copies(encoder, kind):
    texts = ["a man jumps", "a man saunters", ""]
    expected = encoder(texts)
    copied = copy.deepcopy(encoder).to(kind)
    found = copied(texts)
    assert found.dtype == kind and copied.tower.token_embedding.table.dtype == torch.int8
    close = 1e-5 if kind == torch.float64 else 0.1
    assert (found - expected).abs().max() < close * expected.abs().max()
    assert torch.equal(encoder(texts), expected)
    ids = encoder.ready(texts)
    assert ids.shape == (3, 8) and torch.allclose(encoder.of_ready(ids), expected, atol=1e-6)


def test_the_table_is_not_in_the_weights(encoder):
    assert not any("table" in name for name in encoder.state_dict())
    again = WordEncoder(TEXT, VOCABULARY).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(["a man saunters"]), encoder(["a man saunters"]))


def test_shares_of_dropped_words_and_rows():
    text = " ".join(["jumps"] * 5000)
    made = words_of(drop_words(text, np.random.default_rng(0), 0.1, 0.3))
    counts = {word: made.count(word) / 5000 for word in ("_", "_jumps", "jumps")}
    assert counts == pytest.approx({"_": 0.1, "_jumps": 0.3, "jumps": 0.6}, abs=0.02)
    # the same words are unknown with and without rows that are dropped, and a seed is itself
    plain = words_of(drop_words(text, np.random.default_rng(0), 0.1))
    assert [word == "_" for word in plain] == [word == "_" for word in made]
    assert made == words_of(drop_words(text, np.random.default_rng(0), 0.1, 0.3))


def test_training_makes_the_vector_alone_suffice():
    """Of words seen with rows that are dropped at times, what the tower says without the row is
    nearer to what it says with it than to what it says of other words."""
    torch.manual_seed(0)
    said = ["jumps", "walks", "kicks", "waves", "crawls", "spins"]
    encoder, goal = WordEncoder(TEXT, said), torch.eye(6, 16)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    for step in range(300):
        texts = [drop_words(word, np.random.default_rng([step, i]), 0, 0.3)
                 for i, word in enumerate(said)]
        optimizer.zero_grad()
        (encoder(texts)[:, 0] - goal).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        with_rows, alone = encoder(said)[:, 0], encoder(["_" + word for word in said])[:, 0]
        unseen = encoder(["hops", "strolls"])[:, 0]
    assert (with_rows - alone).norm(dim=1).max() < 0.3
    assert torch.cdist(unseen, with_rows).argmin(1).tolist() == [0, 1]


def test_a_vocabulary_is_extended(encoder):
    texts = ["a man jumps left", "xyzzy", "a man blorfs", ""]
    rows, vocabulary = extended(encoder.tower.token_embedding.weight.detach(),
                                encoder.vocabulary, ["wriggles", "a", "blorfs"])
    assert vocabulary == [*VOCABULARY, "blorfs", "wriggles"] and len(rows) == len(vocabulary) + 2
    longer = WordEncoder(TEXT, vocabulary).eval()
    state = encoder.state_dict() | {"tower.token_embedding.weight": rows}
    longer.load_state_dict(state)
    assert torch.allclose(longer(texts), encoder(texts), atol=1e-6)
    assert torch.allclose(longer(["a wriggles"]), encoder(["a wriggles"]), atol=1e-6)
    plain, _ = extended(rows, vocabulary, ["hops"], vectors=False)
    assert torch.equal(plain[-1], rows[clip.UNKNOWN])
    assert longer.ids(["wriggles"])[0, 0] == len(vocabulary) + 1 and row_of("blorfs") is None


def test_without_vectors_the_tower_is_as_it_was():
    torch.manual_seed(0)
    plain = WordEncoder(dataclasses.replace(TEXT, vectors=False), VOCABULARY).eval()
    assert type(plain.tower.token_embedding) is torch.nn.Embedding
    assert plain.ids(["a saunters _jumps"]).tolist() == [[2, 0, 0, 1]]


def test_how_the_weights_that_ship_read():
    encoder = checkpoint.load_model(ROOT / "checkpoints" / "toy.pt").text_encoder
    number = {word: i for i, word in enumerate(encoder.vocabulary, 2)}
    assert "elephant" not in number and row_of("elephant") is not None
    far = len(number) + 2 + row_of("elephant") if encoder.cfg.vectors else 0
    ids = encoder.ids(["a man jumps, elephant!", "blorfs"])
    assert ids.tolist() == [[*(number[word] for word in ("a", "man", "jumps")), far, 1],
                            [0, 1, 1, 1, 1]]


# --- checkpoints and sample.py ---


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The path of a small model with vectors and random weights."""
    config = Config()
    sizes = {"vae.latent_dim": 16, "vae.ff_size": 32, "vae.num_layers": 3, "text.width": 16,
             "denoiser.latent_dim": 16, "denoiser.ff_size": 32, "denoiser.num_layers": 3,
             "denoiser.text_encoded_dim": 16, "text.layers": 1,
             "diffusion.num_inference_steps": 2}
    for key, value in {**PRESETS["toy"], **sizes}.items():
        set_value(config, key, value)
    torch.manual_seed(0)
    made = drawn(MLD(config, WordEncoder(config.text, ["a", "jumps", "man", "strolls"])))
    path = tmp_path_factory.mktemp("model") / "model.pt"
    checkpoint.save(path, config, made.state_dict(), vocabulary=made.text_encoder.vocabulary,
                    actions=["jump", "stroll"])
    return path


def test_of_words_as_near_one_who_acts_comes_last():
    vocabulary = ("a", "kid", "kick", "kicks", "man")
    assert understand("kik", vocabulary).spelled == {"kik": "kick"}
    assert understand("a mna kicks", vocabulary).spelled == {"mna": "man"}


def test_drawn_out_words_are_read():
    vocabulary = ("a", "jump", "man", "running", "slow", "walk")
    for drawn, word in (("slooow", "slow"), ("juuumppp", "jump"), ("runnning", "running"),
                        ("walkkkkkk", "walk")):
        assert understand(f"a {drawn}", vocabulary).spelled == {drawn: word}
    assert understand("a man walks zzzz", vocabulary).unknown == ["zzzz"]


def test_heads_are_shaken_no():
    vocabulary = ("a", "head", "his", "man", "no", "shakes", "walks")
    assert not understand("a man shakes his head no", vocabulary).notes
    assert understand("no man walks", vocabulary).unknown == ["no"]


def test_two_words_that_are_written_as_one():
    report = understand("five handclaps", ["five", "hand", "claps", "king", "wall", "walking"])
    assert report.text == "five hand claps" and report.spelled == {"handclaps": "hand claps"}
    for word in ("wallking", "walkking"):  # which is rather a slip
        assert understand(word, ["king", "wall", "walk", "walking"]).text == "walking"
    assert understand("bustable", ["bus", "table", "a"]).error  # two words of which none is done


def test_scenery_stands_for_no_verb():
    """Who rides is no bike, but a creek is like a lake."""
    vocabulary = ["a", "bike", "bus", "jumps", "lake", "man", "near", "river", "the"]
    report = understand("a man rides", vocabulary)
    assert report.unknown == ["rides"] and report.error
    assert understand("a man jumps near the creek", vocabulary).taken == {"creek": "lake"}
    assert understand("bum", vocabulary).unknown == ["bum"]  # three letters are no bus
    assert understand("near a rivre", vocabulary).spelled == {"rivre": "river"}
    assert understand("bsu", vocabulary).spelled == {"bsu": "bus"}


def test_moods_and_places_alone_are_no_prompt(model):
    """They are said beside any action in the toy set, so all of them are known words."""
    slots = "mood where why whom who clause thing place".split()
    beside = " ".join(line for slot in slots for line in PHRASES["{" + slot + "}"])
    found = set(re.findall("[a-z]+", re.sub(r"\S+:|{.*?}", "", beside)))
    also = set("""greet welcome exercise box dance down get gets hurry not past place play rock
        say stay stop up waiting""".split())  # by themselves they may ask for something
    assert len(found) > 120 and not found - SAY_NOTHING - also
    vocabulary = (*sorted(found), "a", "man", "walks", "wipes")
    for prompt in ("in the park", "happily", "a man is outside", "a man carefully", "slowly",
                   "against an opponent", "like a robot", "after lunch", "a man with a smile"):
        assert not understand(prompt, vocabulary).says, prompt
    for prompt in ("walks happily", "a man wipes a mirror in the park"):
        assert understand(prompt, vocabulary).says, prompt


def test_checkpoints_name_their_vectors(model, tmp_path, monkeypatch):
    data = checkpoint.load(model)
    assert data["vectors"] == vectors().digest
    loaded = checkpoint.load_model(model)
    _, joints = loaded.generate(["a man saunters"], lengths=[40], seed=1)
    assert joints.isfinite().all()
    empty, _ = loaded.generate([""], lengths=[40], seed=1), None
    unconditional = loaded.generate(lengths=[40], seed=1)
    assert torch.allclose(empty[1], unconditional[1], atol=1e-3), "the empty prompt is no prompt"
    checkpoint.halve(model, tmp_path / "half.pt")
    assert checkpoint.load(tmp_path / "half.pt")["vectors"] == vectors().digest
    other = vectors()._replace(digest="0" * 64)
    monkeypatch.setattr(checkpoint, "vectors", lambda: other)
    with pytest.raises(ValueError, match="other word vectors"):
        checkpoint.load_model(model)


def run(*argv, **kwargs):
    return warm.run("sample.py", *argv, "--device", "cpu", **kwargs)


def test_sample_py_tells_what_it_understood(model, tmp_path):
    flags = ["--ckpt", model, "--format", "npy", "--out", tmp_path, "--seconds", "2"]
    done = run("a man saunters wlith a jmups", *flags)
    assert done.returncode == 0, done.stderr
    assert "'saunters' is taken for 'strolls'" in done.stderr
    assert "Read 'jmups' as 'jumps'" in done.stderr
    assert (tmp_path / "a-man-saunters-wlith-a-jmups.npy").exists()
    done = run("a man drinks from a cup", *flags)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1 and "'drinks' and 'cup'" in done.stderr
    assert "quotes" not in done.stderr
    done = run("a", "man", "jumps", *flags)
    assert done.returncode == 1 and 'goes in quotes: "a man jumps"' in done.stderr


def test_sample_py_takes_the_understood_words(model, tmp_path):
    made = []
    for prompt in ("a man strolls", "a man sauntered", "a man jumps"):
        sample.main([prompt, "--ckpt", str(model), "--format", "npy", "--out", str(tmp_path),
                     "--seconds", "2", "--force"])
        made.append(np.load(tmp_path / f"{sample.file_name(prompt)}.npy"))
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_lengths_beyond_training_are_refused_without_force(model, tmp_path, capsys):
    flags = ["a man jumps", "--ckpt", str(model), "--format", "npy", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="20 s is longer .* at most 6 s.*--force"):
        sample.main([*flags, "--seconds", "20"])
    assert not list(tmp_path.iterdir())
    sample.main([*flags, "--seconds", "8", "--force"])
    assert len(np.load(tmp_path / "a-man-jumps.npy")) == 160
    assert "8 s is longer than any motion" in capsys.readouterr().err
    sample.main([*flags, "--seconds", "1"])
    assert "shorter than any motion" in capsys.readouterr().err
    sample.main([*flags, "--seconds", "6"])
    assert not capsys.readouterr().err


def test_list_has_the_models_actions(model, capsys):
    sample.main(["--list", "--ckpt", str(model)])
    out = capsys.readouterr().out.splitlines()
    at = out.index(f"{model} knows these actions:")
    assert out[at + 1].split(maxsplit=1)[0] == "jump" and out[at + 2].startswith("stroll")
    sample.main(["--list"])
    out = capsys.readouterr().out
    assert all(f"\n{action} " in out for action in ("walk", "wave left hand", "backflip"))
    lines = [line for line in out.splitlines() if line.startswith("backflip ")]
    assert len(lines) == 1 and "flip" in lines[0].removeprefix("backflip")


def test_list_needs_no_whole_pack(model, capsys, monkeypatch, tmp_path):
    (tmp_path / "some.pack").write_bytes(b"no pack")
    for path in ("some.pack", "none.pack"):
        monkeypatch.setattr("config.pack_path", lambda _: str(tmp_path / path))
        sample.main(["--list", "--ckpt", str(model)])
        assert capsys.readouterr().out.splitlines()[-2:] == ["jump", "stroll"]
