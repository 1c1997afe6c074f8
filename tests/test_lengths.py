"""The rule for lengths knows verbs in all their forms, and comes nearer than one length for all."""
import numpy as np
import pytest

import lengths
from dev import fit_lengths


def test_verbs_are_known_in_all_their_forms():
    for verb, forms in {"walk": "walks walked walking", "run": "runs ran running",
                        "dance": "dances danced dancing", "sit": "sits sat sitting",
                        "jump": "Jumps JUMPED jumping", "step": "steps stepped"}.items():
        assert len(lengths.verbs(verb)) == 1, verb
        for form in forms.split():
            assert lengths.verbs(f"a person {form}.") == lengths.verbs(verb), form
    assert not lengths.verbs("a sidewalk, trunks, a cutlery fastener and a stepmother")


def test_seconds_stay_within_what_the_published_model_was_trained_on():
    assert lengths.seconds("") == lengths.seconds("a person does a backflip") == lengths.PLAIN
    assert lengths.seconds("he quickly runs, jumps, hops, kicks, steps and shakes") == 2
    assert lengths.seconds("she slowly dances, spins, sits, eats and washes twice") == 9.8
    assert lengths.seconds("a man runs") < lengths.seconds("a man walks") < \
        lengths.seconds("a man walks slowly") < lengths.seconds("a man dances slowly")


def test_the_rule_comes_nearer_than_a_constant(shared):
    """With numbers fitted to one half, on the other half: captioned windows, and file names."""
    rng, errors = np.random.default_rng(0), []
    windows, names = fit_lengths.read(shared / "data" / "cmu")
    (train, held), (train_names, held_names) = (fit_lengths.halves(rows, rng)
                                                for rows in (windows, names))
    assert not {row[0] for row in train} & {row[0] for row in held}
    constant = np.median([row[2] for row in train + train_names])
    for plain, adds in ((constant, {}), fit_lengths.fit(train + train_names, lengths.verbs)):
        errors.append([fit_lengths.error(rows, plain, adds, lengths.verbs)
                       for rows in (held, held_names)])
    assert errors[1][0] < 0.9 * errors[0][0] and errors[1][1] < 0.95 * errors[0][1]


def test_the_numbers_are_those_of_the_fit(shared):
    windows, names = fit_lengths.read(shared / "data" / "cmu")
    plain, adds = fit_lengths.fit(windows + names, lengths.verbs)
    assert plain == pytest.approx(lengths.PLAIN, abs=0.051)
    assert adds == pytest.approx(lengths.ADDS, abs=0.051)
