"""edit.py and story.py: constraints are met, wrong ones refused, stories have no seams."""
import itertools
import json
import os

import numpy as np
import pytest
import torch

import checkpoint
import edit
import guidance
import motion
import sample
import story
from config import Config, DiffusionConfig, set_value
from conftest import drawn
from presets import PRESETS
from formats import constraints, pins, targets
from formats.pack import Pack
from formats.rotations import T_POSES
from mld import MLD

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
POSE, BONES = T_POSES[22], np.linalg.norm(motion.T2M_OFFSETS, axis=1)
WRIST = motion.T2M.joint_names.index("left_wrist")


@pytest.fixture(scope="module")
def model():
    return checkpoint.load_model(os.path.join(ROOT, "checkpoints", "toy.pt"))


@pytest.fixture(scope="module")
def clip():
    pack = Pack(os.path.join(ROOT, "data", "toy", "toy.pack"))
    item = next(i for i in pack.indices("test", 60, 121) if pack.action(i) == "walk")
    return pack.joints(item).astype(float)[:60]


def tiny(condition, vae=True, skeleton="t2m"):
    config = Config()
    sizes = {"vae.latent_dim": 16, "vae.ff_size": 32, "vae.num_layers": 3,
             "denoiser.latent_dim": 16, "denoiser.ff_size": 32, "denoiser.num_layers": 3,
             "denoiser.condition": condition, "denoiser.num_actions": 2 * (condition == "action"),
             "data.skeleton": skeleton}
    if not vae:
        sizes |= {"vae.arch": "none", "denoiser.normalize_latents": False,
                  "denoiser.length_token": False, "denoiser.arch": "trans_enc"}
    for key, value in {**PRESETS["toy"], **sizes}.items():
        set_value(config, key, value)
    torch.manual_seed(0)
    return drawn(MLD(config)).eval()


# --------------------------------------------------------------------------------------------------
# The banded solve


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("stretch, rest", [(0.01, 0.0), (0.0, 1e-3), (0.5, 0.1)])
def test_the_banded_solve_is_the_least_squares_solution(frames, stretch, rest):
    rng = np.random.default_rng(frames)
    wanted, pinned = rng.normal(size=(frames, 2)), rng.random((frames, 2)) < 0.4
    pinned[rng.integers(frames)] = pinned[0] = True
    found = pins.smoothest(wanted, pinned, stretch, rest, weight=1e3)
    eye = np.eye(frames)
    for column in range(2):
        here = pinned[:, column]
        rows = [np.diff(eye, 2, axis=0), np.sqrt(stretch) * np.diff(eye, axis=0),
                np.sqrt(rest + 1e-9) * eye, np.sqrt(1e3) * eye[here]]
        right = np.concatenate([np.zeros(sum(len(row) for row in rows[:3])),
                                np.sqrt(1e3) * wanted[here, column]])
        expected = np.linalg.lstsq(np.concatenate(rows), right, rcond=None)[0]
        assert np.allclose(found[:, column], expected, atol=1e-6)


def test_without_pins_nothing_is_displaced_and_heavy_pins_are_met():
    none = pins.smoothest(np.ones((9, 1)), np.zeros((9, 1), bool))
    assert np.abs(none).max() == 0
    pinned = np.zeros((30, 1), bool)
    pinned[[3, 20]] = True
    wanted = np.where(pinned, np.arange(30.0)[:, None], 0)
    assert np.abs(pins.smoothest(wanted, pinned) - wanted)[pinned].max() < 1e-4


def test_two_bones_meet_their_ends_on_the_side_of_the_pole():
    a, c = np.zeros((1, 3)), np.array([[0.0, -0.6, 0.1]])
    middle = pins.two_bone(a, c, 0.4, 0.35, np.array([[0, 0, 1.0]]))
    assert np.allclose(np.linalg.norm(middle - a, axis=-1), 0.4)
    assert np.allclose(np.linalg.norm(middle - c, axis=-1), 0.35)
    assert middle[0, 2] > 0.1


def test_a_pin_in_reach_is_met_with_constant_bones(clip):
    """A wrist and the pelvis, 10 and 30 cm from where they were."""
    joints = motion.keep_bones(clip, BONES, POSE.parents)
    places, pinned = joints.copy(), np.zeros(joints.shape, bool)
    places[30, WRIST] += (0.0, 0.1, 0.05)
    places[50, 0] += (0.3, 0, 0)
    pinned[30, WRIST] = pinned[50, 0] = True
    made = pins.meet(joints, places, pinned, BONES, POSE)
    assert np.linalg.norm((made - places)[pinned].reshape(-1, 3), axis=-1).max() < 0.002
    sizes = np.linalg.norm(made[:, 1:] - made[:, POSE.parents[1:]], axis=-1)
    assert np.abs(sizes - BONES[1:]).max() < 1e-4
    assert np.linalg.norm(np.diff(made - joints, 2, axis=0), axis=-1).max() < 0.02  # smooth
    assert np.abs(made[0] - joints[0]).max() < 0.03  # it begins where it began, but for the wrist
    assert np.abs(made[0] - joints[0])[:12].max() < 0.01


@pytest.mark.parametrize("joint", range(22), ids=motion.T2M.joint_names)
def test_any_joint_can_be_pinned(joint, clip):
    joints = motion.keep_bones(clip, BONES, POSE.parents)
    places, pinned = joints.copy(), np.zeros(joints.shape, bool)
    places[30, joint] += (0.05, -0.04, 0.06)
    pinned[30, joint] = True
    made = pins.meet(joints, places, pinned, BONES, POSE)
    assert np.linalg.norm(made[30, joint] - places[30, joint]) < 0.004
    sizes = np.linalg.norm(made[:, 1:] - made[:, POSE.parents[1:]], axis=-1)
    assert np.abs(sizes - BONES[1:]).max() < 1e-4


def test_without_pins_the_motion_stays(clip):
    joints = motion.keep_bones(clip, BONES, POSE.parents)
    same = pins.meet(joints, joints, np.zeros(joints.shape, bool), BONES, POSE)
    assert np.allclose(same, joints)


def test_a_kept_arm_does_what_it_does_in_the_clip(clip):
    other = targets.to_world(clip, (1.0, 2.0, 0.7))
    still = np.repeat(clip[:1], 60, axis=0)
    fork, part = constraints.parts_of(POSE)["left_arm"]
    assert sorted(POSE.joint_names[j] for j in part) == [
        "left_elbow", "left_shoulder", "left_wrist"]
    made = pins.keep_part(still, fork, part, other, POSE)
    assert pins.kept_apart(still, part, fork, other, POSE).max() > 0.02
    assert pins.kept_apart(made, part, fork, other, POSE).max() < 1e-9
    rest = np.setdiff1d(np.arange(22), part)
    assert np.array_equal(made[:, rest], still[:, rest])


# --------------------------------------------------------------------------------------------------
# Frames, and what is refused


def test_the_world_and_back(clip):
    place = (1.5, -2.0, 0.8)
    assert np.allclose(targets.to_own(targets.to_world(clip, place), place), clip)
    moved = targets.to_world(clip, place)
    assert np.allclose(targets.heading(moved, POSE), targets.heading(clip, POSE) + 0.8)
    x, z, turn = targets.place_of(moved[0], POSE)
    assert np.allclose(moved[0, 0, [0, 2]], (x, z))
    assert abs(targets.heading(targets.to_own(moved, (x, z, turn))[0], POSE)) < 1e-9


def test_a_motion_begins_where_its_constraints_say(clip):
    moved = targets.to_world(clip, (3.0, 4.0, np.pi / 2))

    def place(*given):
        return targets.targets_of(list(given), 60, 20, POSE, BONES).place
    wrist = {"joint": "left_wrist", "time": 1, "position": [0, 1, 0]}
    assert place(wrist) == (0, 0, 0)
    assert place({"path": [[0, 1, 1], [2, 2, 1]]}) == pytest.approx((1, 1, np.pi / 2))
    assert place({"path": [[0, 1, 1, 30], [2, 2, 1, 30]]}) == pytest.approx((1, 1, np.pi / 6))
    first = {"pose": moved, "frame": 0, "time": 0}
    assert place(first) == pytest.approx(targets.place_of(moved[0], POSE))
    start = {"start": [5, 6], "facing": 90}
    assert place(start) == pytest.approx((5, 6, np.pi / 2))


WRONG = [
    ({"joint": "pelvis", "time": 1, "height": 2.5}, "higher than a person brings it .1.8"),
    ({"joint": "head", "time": 1, "height": 2.9}, "head at 2.90 m at 1.00 s is higher"),
    ({"joint": "head", "time": "1", "height": 1.5}, "'time' must be a number, found '1'"),
    ({"joint": "head", "time": 1, "position": ["0", "1", "0"]}, "must be 3 numbers"),
    ({"path": [[0, 0, 0], [1, 50, 0]]}, "pelvis would have to move at 50 m/s"),
    ({"keep": ["left_arm"], "from": "no.npy"}, "Did you mean left_arm"),
    ({"joint": "left_wirst", "time": 1, "position": [0, 1, 0]}, "Did you mean left_wrist"),
    ({"jiont": "left_wrist", "time": 1}, "Did you mean joint"),
    ({"joint": "head", "time": 1, "positoin": [0, 1, 0]}, "Did you mean position"),
    ({"joint": "head", "time": 1}, "one of position, height and speed"),
    ({"joint": "head", "time": 9, "height": 1.5}, "time 9 is outside the motion"),
    ({"joint": "head", "time": -1, "height": 1.5}, "time -1 is outside"),
    ({"joint": "head", "position": [0, 1, 0]}, "needs a 'time'"),
    ({"joint": "head", "time": "soon", "height": 1}, "'time' must be a number"),
    ({"joint": "head", "time": 1, "position": [0, 1]}, "must be 3 numbers"),
    ({"joint": "head", "time": 1, "height": float("nan")}, "must be a number"),
    ({"joint": "left_foot", "time": 1, "height": -0.5}, "under the floor"),
    ({"joint": "head", "time": 1, "height": 5}, "higher than a person"),
    ({"joint": "left_wrist", "time": 1, "speed": 90}, "speed must be 0 to 12"),
    ({"joint": "head", "time": 0.1, "position": [0, 1.5, 30]}, "a person reaches 12"),
    ({"pose": "no.npy", "frame": 0, "time": 0}, "There is no file"),
    ({"keep": "left_am", "from": "no.npy"}, "Did you mean left_arm"),
    ({"path": [[1, 0, 0], [1, 1, 1]]}, "must rise"),
    ({"path": []}, "must have rows of seconds, x, z"),
    ({"path": 3}, "must have rows of seconds, x, z, found 3"),
    ({"path": [3]}, "'path' must be 3 numbers"),
    ({"keep": "left_arm", "from": 3}, "'from' must hold joints .* found no array"),
    ({"keep": "left_arm", "from": np.zeros((9, 21, 3))}, "found .9, 21, 3."),
    ({"pose": np.zeros((24, 3)), "time": 0}, "'pose' must hold .*, 22, 3. .* found .1, 24, 3."),
    ({"pose": [[[0, 1, np.nan]] * 22], "time": 0}, "not finite, in frame 0"),
    ({"pose": [[0], [1, 2]], "time": 0}, "'pose' must hold joints"),
    ({"path": [[0, 0, 0]], "facing": "back"}, "follow or free"),
    ({"floor": 3}, "true or false"),
    (7, "expected one of"),
]


@pytest.mark.parametrize("wrong, message", WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_constraint_is_refused_in_one_sentence(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        targets.targets_of([wrong], 60, 20, POSE, BONES)
    assert "\n" not in str(error.value)


def test_a_path_is_read_as_its_writer_meant_it(tmp_path):
    rows = [[0, 0, 0], [1.5, 0, 1], [3, 0, 2]]
    for text in ("0,0,0\n1.5,0,1\n3,0,2\n", "t;x;z\n0,0;0;0\n1,5;0;1\n3,0;0;2\n",
                 "seconds, x, z\n0, 0, 0\n1.5, 0, 1\n3, 0, 2\n", "0;0;0\n1.5;0;1\n3;0;2\n",
                 "x,z,Seconds\n0,0,0\n0,1,1.5\n0,2,3\n",
                 '"z","t [s]","x [m]"\n0,0,0\n1,1.5,0\n2,3,0\n'):
        (tmp_path / "way.CSV").write_text(text)
        assert constraints.read_way(tmp_path / "way.CSV") == rows, text
        assert constraints.read_constraints(tmp_path / "way.CSV") == (
            [{"path": "way.CSV"}], str(tmp_path))
    (tmp_path / "way.CSV").write_text("facing,time,x,z\n90,0,1,2\n45,1,3,4\n")
    assert constraints.read_way(tmp_path / "way.CSV") == [[0, 1, 2, 90], [1, 3, 4, 45]]
    for text, why in (("0s,0m,0m\n1,1,1\n", "could not"), ("0,0,0\nx,1,1\n", "could not"),
                      ("time,x,y,z\n0,0,1,0\n", "named time, x, y, z"),
                      ("t,x,x\n0,0,1\n", "they must be"), ("x,z\n0,0\n", "they must be")):
        (tmp_path / "way.CSV").write_text(text)
        with pytest.raises(ValueError, match=f"must have lines of numbers.*{why}"):
            constraints.read_way(tmp_path / "way.CSV")
    (tmp_path / "way.CSV").write_text("0,nan,0\n1,1,1\n")
    assert len(constraints.read_way(tmp_path / "way.CSV")) == 2  # and is refused later
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="lists in lists without end"):
        constraints.read_constraints(tmp_path / "deep.json")


def test_contradictions_and_what_is_out_of_reach_are_named():
    def pin(joint, time, *place):
        return {"joint": joint, "time": time, "position": list(place)}

    for two, message in (
            ([pin("head", 1, 0, 1.5, 0), pin("head", 1, 0.5, 1.5, 0)],
             "Constraint 2: head at 1.00 s contradicts an earlier constraint by 50 cm"),
            ([pin("pelvis", 1, 0, 0.9, 0), pin("left_wrist", 1, 3, 1, 0)],
             "left_wrist and pelvis at 1.00 s are 3.00 m apart"),
            ([{"path": [[0, 0, 0], [2, 0, 2]]}, pin("left_wrist", 1, 0, 1, 3)],
             "left_wrist and pelvis at 1.00 s are 2.00 m apart"),
            ([{"start": [0, 0]}, {"start": [5, 5]}], "Constraint 2: there is a start already"),
            ([{"start": [0, 0]}, {"path": [[0, 1, 2], [1, 2, 2]]}],
             "The start lies at x 0, z 0, and another constraint begins at x 1, z 2"),
            ([pin("pelvis", 1, 0, 0.9, 0), pin("pelvis", 1.1, 0, 0.9, 3)],
             "pelvis would have to move at 30 m/s")):
        with pytest.raises(ValueError, match=message):
            targets.targets_of(two, 60, 20, POSE, BONES)


def test_wrong_files_are_refused(tmp_path):
    for name, text, message in (
            ("a.json", "[{", "line 1: this is not JSON"), ("b.json", "3", "must hold a list"),
            ("c.json", b"\xff\xfe\x00", "not UTF-8")):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=message):
            constraints.read_constraints(str(tmp_path / name))
    np.save(tmp_path / "flat.npy", np.zeros(7))
    with pytest.raises(ValueError, match=r"shape \(frames, 22, 3\)"):
        constraints.read_clip(str(tmp_path / "flat.npy"), 22)
    np.save(tmp_path / "flipped.npy", np.full((2, 22, 3), -1.5))
    with pytest.raises(ValueError, match="goes 1.5 m under the floor.*with Y up"):
        constraints.read_clip(str(tmp_path / "flipped.npy"), 22)
    (tmp_path / "way.csv").write_text("t,x,z\n0,1,2\n1,2,three\n")
    with pytest.raises(ValueError, match="seconds, x, z"):
        constraints.read_way(str(tmp_path / "way.csv"))


# --------------------------------------------------------------------------------------------------
# Edits


def asked(clip):
    return [{"joint": "left_wrist", "time": 1.5, "position": clip[30, WRIST] + (0.05, 0.1, 0)},
            {"joint": "head", "time": 2.5, "height": clip[50, 15, 1]},
            {"joint": "right_wrist", "time": 1, "speed": 2.0}, {"floor": True},
            {"path": [[t, *clip[int(20 * t), 0, [0, 2]]] for t in (0, 1, 2, 2.9)]}]


def test_what_is_asked_is_met_and_the_guiding_alone_comes_near(model, clip):
    prompt, how = ["a man walks forward"], {"lengths": [60], "seed": 3}
    wanted = asked(clip)[:1]
    _, [[free]] = edit.edit(model, prompt, constraints=wanted, exactly=False, effort="low", **how)
    plain = model.generate(prompt, **how)[1][0, 30, WRIST].numpy()
    before = np.linalg.norm(plain - wanted[0]["position"])
    assert free["error"] < before
    [joints], [report] = edit.edit(model, prompt, constraints=asked(clip), **how)
    assert [row["kind"] for row in report] == ["position", "height", "speed", "floor", "path"]
    errors = {row["kind"]: row["error"] for row in report}
    assert max(errors[kind] for kind in ("position", "height", "path")) < 0.01
    assert errors["floor"] < 0.03
    assert joints.shape == (60, 22, 3) and np.isfinite(joints).all()
    found = np.linalg.norm(joints[30, WRIST] - asked(clip)[0]["position"])
    assert found == pytest.approx(errors["position"], abs=1e-9)


def test_a_seed_repeats_and_a_motion_is_the_same_alone_and_in_a_batch(model, clip):
    def make(prompts, lengths, each, seed):
        return edit.edit(model, prompts, constraints=each, lengths=lengths, seed=seed,
                         effort="low")[0]
    other = [{"joint": "head", "time": 1, "height": 1.2}]
    both = make(["a man walks", "a man squats"], [60, 44], [asked(clip), other], 5)
    alone = make(["a man squats"], [44], other, 6)
    assert np.abs(both[1] - alone[0]).max() < 2e-3
    again = make(["a man walks", "a man squats"], [60, 44], [asked(clip), other], 5)
    assert np.array_equal(both[0], again[0])
    assert np.abs(make(["a man squats"], [44], other, 7)[0] - alone[0]).max() > 0.01


def test_the_world_s_frame_changes_nothing(model, clip):
    """The same poses, moved and turned: the same motion, moved and turned."""
    place = (2.0, -1.0, 1.0)
    moved = targets.to_world(clip, place)

    def make(clip):
        poses = [{"pose": clip, "frame": i, "time": t} for i, t in ((0, 0), (-1, 2.45))]
        return edit.edit(model, ["a man walks"], constraints=poses, lengths=[50], effort="low")
    [here], [report] = make(clip)
    [there], _ = make(moved)
    assert np.abs(targets.to_own(there, place) - here).max() < 0.005
    assert max(row["error"] for row in report) < 0.03  # the clip's bones differ by up to a cm
    assert np.linalg.norm(here[0] - clip[0], axis=-1).mean() < 0.01


@pytest.mark.parametrize("condition", ["action", "none"])
@pytest.mark.parametrize("vae", [True, False])
def test_any_kind_of_model_takes_constraints(condition, vae):
    model = tiny(condition, vae)
    given = {"actions": [1]} if condition == "action" else {}
    wanted = [{"joint": "pelvis", "time": 0.5, "position": [0.1, 0.9, 0.3]}]
    [joints], [report] = edit.edit(model, **given, constraints=wanted, lengths=[20], effort="low")
    assert report[0]["error"] < 0.01 and np.isfinite(joints).all()


def test_the_noise_is_searched_with_high_effort(model, clip, monkeypatch):
    monkeypatch.setattr(guidance, "TRIES", 12)
    pose, bones = guidance.body_of(model)
    t = targets.targets_of(asked(clip)[:1], 60, 20, pose, bones)
    loss_of = edit.loss_on([t], pose, 20, "cpu")
    lengths = torch.tensor([60])
    cond, uncond = model.condition.encode(model, ["a man walks"], 1)
    ask = model.guided(cond, uncond, lengths, model.config.diffusion)
    x = model.start(lengths, None, torch.randn(model.start(lengths, None).shape))

    def loss(x):
        steps = guidance.plan(model.schedule, "dpm++", guidance.TRIED_STEPS)
        with torch.no_grad():
            z = guidance.guided_walk(model, steps, x, ask, lengths, None, None, 0)
            return loss_of(guidance.decoded(model, z, lengths))[0].item()
    better = guidance.best_noise(model, x, ask, lengths, loss_of)
    assert loss(better) < 0.8 * loss(x)
    assert 0.5 < better.square().mean() < 1.6


# --------------------------------------------------------------------------------------------------
# Stories


def largest_steps(joints):
    return np.linalg.norm(np.diff(joints, axis=0), axis=-1).max(1)


def test_a_story_has_no_jump_and_the_length_that_was_asked_for(model):
    prompts = ["a man walks forward", "he turns left", "he sits down"]
    whole, joins = story.story(model, prompts, lengths=[50, 40, 50], seed=1)
    assert whole.shape == (140, 22, 3) and joins == [45, 85]
    steps = largest_steps(whole)
    near = np.concatenate([steps[j - 8:j + 8] for j in joins])
    assert near.max() <= 1.2 * np.delete(steps, [k for j in joins
                                                 for k in range(j - 8, j + 8)]).max()
    sizes = np.linalg.norm(whole[:, 1:] - whole[:, POSE.parents[1:]], axis=-1)
    assert np.abs(sizes - BONES[1:]).max() < 1e-6
    again, _ = story.story(model, prompts, lengths=[50, 40, 50], seed=1)
    assert np.array_equal(whole, again)


@pytest.mark.parametrize("loop", [False, True])
def test_the_best_chain_is_that_of_all(loop):
    rng = np.random.default_rng(0)
    for count in (1, 2, 4):
        starts, ends = rng.random(3), rng.random((3, 3)) if loop else np.zeros((3, 3))
        costs = [rng.random((3, 3)) for _ in range(count - 1)]
        sums = {way: starts[way[0]] + ends[way[-1], way[0]] + sum(
            cost[a, b] for cost, a, b in zip(costs, way, way[1:]))
            for way in itertools.product(range(3), repeat=count)}
        assert tuple(story.best_chain(starts, costs, ends if loop else None)) == min(
            sums, key=sums.get)


def test_of_sixteen_tries_those_are_taken_that_meet():
    rng, h = np.random.default_rng(0), story.SHARED
    made = rng.normal(size=(3, 4, 40, 22, 3))
    made[1, 2, :h] = made[0, 3, 40 - h:]  # the third try of the second segment
    made[2, 1, :h] = made[1, 2, 40 - h:] + (1, 0, 2)  # and elsewhere
    pairs = [((i, 40 - h), (i + 1, 0)) for i in (0, 1)]
    assert story.nearest(made, pairs) == [3, 2, 1]
    before = rng.normal(size=(h, 22, 3))
    made[0, 1, :h], before = before, torch.from_numpy(before)  # as of parts made earlier
    assert story.nearest(made[:1], [(before, (0, 0))]) == [1]
    made[0, 2, 40 - h:] = made[0, 2, 5:5 + h]  # one that meets itself in a loop
    assert story.nearest(made[:1], [((0, 40 - h), (0, 5))]) == [2]


def test_a_long_story_is_made_in_parts_without_a_seam_between_them(model, monkeypatch):
    monkeypatch.setattr(story, "AT_ONCE", 2)
    whole, joins = story.story(model, ["a man walks"] * 5, lengths=[30] * 5, effort="low")
    assert len(whole) == 150 and len(joins) == 4
    steps = largest_steps(whole)
    near = np.concatenate([np.arange(j - 3, j + 8) for j in joins])  # a join lasts five frames
    assert steps[near].max() < 1.2 * np.delete(steps, near).max() < 0.4


def test_a_part_of_a_story_is_asked_for_what_falls_into_its_time(clip):
    """The whole's constraints, seen from a part that lies elsewhere, are met by its frames."""
    asks = [{"joint": "left_wrist", "time": t, "position": clip[int(20 * t), WRIST]} for t in
            (0.5, 2)] + [{"joint": "head", "time": 2.2, "height": clip[44, 15, 1]},
                         {"joint": "head", "time": 2.5,
                          "speed": targets.speed_at(clip, 15, 50, 20)},
                         {"keep": "left_arm", "from": clip}, {"keep": "head", "from": clip[:20]},
                         {"path": [[t / 20, *clip[t, 0, [0, 2]], np.degrees(targets.heading(
                             clip[t], POSE))] for t in range(60)]}]
    t = targets.targets_of(asks, 60, 20, POSE, BONES)
    clip = targets.to_own(clip, t.place)
    start, stop = 25, 52
    place = targets.place_of(clip[start], POSE)
    part = targets.cut(t, start, stop, place)
    assert part.pinned.shape == (27, 22, 3) and part.pinned.any(-1)[:, 1:].sum() == 2
    assert part.speeds == [(15, 25, pytest.approx(t.speeds[0][2]))] and not part.rows
    own = torch.tensor(targets.to_own(clip[start:stop], place)).float()[None]
    assert len(t.kept) == 2 and len(part.kept) == 1  # the head's clip has ended
    loss = edit.loss_on([part], POSE, 20, "cpu")
    assert loss(own)[0] < 1e-5 < 1e-3 < loss(own + torch.tensor([0.1, 0.1, 0]))[0]
    assert not targets.cut(t, start, 50, place).speeds  # which would need the frame after


def test_a_story_meets_constraints_in_all_of_its_parts(model, monkeypatch):
    how = {"texts": ["a man walks forward", "he jumps", "a man walks forward"],
           "lengths": [40, 40, 40], "seed": 1}
    free, _ = story.story(model, **how)
    asks = [{"joint": "left_wrist", "time": t / 20, "position": free[t, WRIST] + (0.1, 0.15, 0)}
            for t in (20, 60, 100)] + [{"joint": "pelvis", "time": 5.95, "position":
                                        free[119, 0] + (0.5, 0, 0)}]

    def off(joints):
        return [np.linalg.norm(joints[round(20 * one["time"]), 0 if one["joint"] == "pelvis" else
                                      WRIST] - one["position"]) for one in asks]

    rough, _ = edit.edit_story(model, **how, constraints=asks, exactly=False)
    assert np.mean(off(rough)) < 0.8 * np.mean(off(free)), (off(rough), off(free))
    made, report = edit.edit_story(model, **how, constraints=asks)
    assert made.shape == (120, 22, 3) and max(off(made)) < 0.01
    assert [row["error"] for row in report] == pytest.approx(off(made), abs=1e-9)
    again, _ = edit.edit_story(model, **how, constraints=asks)
    assert np.array_equal(made, again)
    monkeypatch.setattr(story, "AT_ONCE", 2)  # the third is made when the others lie there
    parts, _ = edit.edit_story(model, **how, constraints=asks, exactly=False)
    assert np.mean(off(parts)) < 0.8 * np.mean(off(free)), off(parts)
    place = {"start": [2, 3], "facing": 90}
    there, report = edit.edit_story(model, **how, constraints=[place])
    assert np.abs(there - targets.to_world(free, (2, 3, np.pi / 2))).max() < 0.02 and not report
    with pytest.raises(ValueError, match="A loop takes no constraints"):
        edit.edit_story(model, **how, constraints=asks, loop=True)
    with pytest.raises(ValueError, match="outside the motion, which has 6 seconds"):
        edit.edit_story(model, **how, constraints=[asks[0] | {"time": 7}])


@pytest.mark.parametrize("condition, vae, skeleton, effort", [
    ("action", True, "t2m", "low"), ("none", False, "t2m", "low"), ("none", True, "t2m", "high"),
    ("none", True, "kit", "low"), ("student", True, "t2m", "high")])
def test_any_kind_of_model_takes_constraints_within_a_story(condition, vae, skeleton, effort):
    student = condition == "student"
    model = tiny("none" if student else condition, vae, skeleton)
    if student:
        model.config.diffusion = DiffusionConfig(built_in_guidance=2.0, guidance_scale=1.0,
                                                 sampler="lcm", num_inference_steps=4)
    given = {"actions": [0, 1]} if condition == "action" else {}
    asks = [{"joint": "pelvis", "time": t, "position": [0.1 * t, 0.9, 0.2 * t]} for t in (0.5, 1.5)]
    joints, report = edit.edit_story(model, **given, constraints=asks, lengths=[20, 20],
                                     effort=effort)
    n = len(motion.SKELETONS[skeleton].parents)
    fps = model.config.data.fps
    assert joints.shape == (40, n, 3) and max(row["error"] for row in report) < 0.01
    assert np.allclose(joints[round(1.5 * fps), 0], [0.15, 0.9, 0.3], atol=0.01)


def test_lengths_that_were_drawn_grow_until_all_constraints_fit(model):
    """In about the drawn shares; a segment of the longest that training had gives up what it
    shares, and only then is any longer."""
    most = model.config.data.max_frames
    for lengths, frames in (([40, 80], 100), ([40, 80], 150), ([80, 116], 194), ([110, 115], 230),
                            ([60, 60], 250), ([30], 70)):
        longer = story.stretched(model, lengths, frames)
        parts = story.parts_of(model, longer)
        assert sum(parts) == max(frames, sum(story.parts_of(model, lengths))), (lengths, frames)
        assert max(longer) <= most or frames > len(lengths) * most - story.SHARED
        if max(longer) <= most:
            whole, _ = story.story(model, ["a man walks"] * len(longer), lengths=longer)
            assert len(whole) == sum(parts)
    assert story.stretched(model, [40, 80], 150) == [50, 100]


def test_a_loop_s_last_frame_leads_into_its_first(model):
    loop, _ = story.story(model, ["a man walks forward"], lengths=[60], seed=2, loop=True)
    assert loop.shape == (60, 22, 3)
    again = targets.to_world(loop, story.align(loop[:1], 2 * loop[-1:] - loop[-2:-1]))
    twice = np.concatenate([loop, again])
    steps = largest_steps(twice)
    assert steps[55:65].max() <= 1.2 * largest_steps(loop).max()
    assert np.linalg.norm(again[0] - (2 * loop[-1] - loop[-2]), axis=-1).max() < 0.05
    x, z, turn = targets.place_of(loop[0], POSE)
    assert max(map(abs, (x, z, turn))) < 1e-9


def test_blending_turns_bones_and_keeps_their_lengths(clip):
    a, b = motion.keep_bones(clip[:10], BONES, POSE.parents), clip[20:30]
    made = story.blended(a, b, POSE.parents)
    sizes = np.linalg.norm(made[:, 1:] - made[:, POSE.parents[1:]], axis=-1)
    assert np.allclose(sizes, BONES[1:])
    assert np.abs(made[0] - a[0]).max() < np.abs(made[0] - b[0]).max()
    assert np.allclose(story.blended(a, a, POSE.parents), a)


def test_aligning_undoes_a_turn_and_a_move(clip):
    moved = targets.to_world(clip, (1.0, -2.0, 2.5))
    assert np.allclose(targets.to_world(clip, story.align(clip, moved)), moved)


def test_what_comes_next_begins_where_the_clip_ends(model, clip):
    moved = targets.to_world(clip, (1.0, 1.0, -1.0))
    [joints], [report] = edit.continued(model, moved, ["a man walks"], lengths=[40], effort="low")
    assert len(joints) == 100 and np.array_equal(joints[:50], moved[:50])
    assert largest_steps(joints)[48:62].max() < 1.3 * largest_steps(joints).max()
    assert len(report) == 10


def test_between_two_prompts_and_around_a_clip(model, clip):
    made = story.interpolate(model, ["a man walks", "a man runs"], lengths=[60, 40], num=3, seed=4)
    assert [len(joints) for joints in made] == [60, 50, 40]
    first = model.generate(["a man walks"], lengths=[60], seed=4)[1][0].numpy()
    assert np.abs(made[0] - first).max() < 1e-3
    moved = targets.to_world(clip, (1.0, 2.0, 0.5))
    same, = story.vary(model, moved, strength=0)
    assert np.linalg.norm(same - moved[:-1], axis=-1).mean() < 0.1  # as the VAE has it
    little, much = (np.linalg.norm(story.vary(
        model, moved, ["a man walks"], strength=s, seed=1)[0] - moved[:-1], axis=-1).mean()
        for s in (0.3, 1.0))
    assert little < much
    with pytest.raises(ValueError, match="strength must be from 0 to 1"):
        story.vary(model, clip, strength=2)


# --------------------------------------------------------------------------------------------------
# sample.py


def test_the_flags_of_sample_py(clip, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("clip.npy", clip.astype(np.float32))
    with open("c.json", "w") as file:
        json.dump([{"joint": "left_wrist", "time": 2.9, "position": [0.3, 1.4, 1.5]},
                   {"pose": "clip.npy", "frame": 0, "time": 0}], file)
    with open("way.csv", "w") as file:
        file.write("seconds,x,z\n0,1,1\n2,2,2\n")
    for name, end in (("long", 30), ("endless", "inf")):
        with open(f"{name}.csv", "w") as file:
            file.write(f"seconds,x,z\n0,1,1\n{end},2,2\n")

    def run(*flags):
        effort = ["--effort", "low"] * bool({"--constraints", "--path", "--start"} & {*flags})
        sample.main([*flags, *effort, "--format", "npy", "--out", "o", "--force"])
        captured = capsys.readouterr()
        return np.load(captured.out.splitlines()[0]), captured.err
    joints, said = run("a man walks", "--constraints", "c.json")
    assert "2 of 2" in said or "asked for" in said
    assert len(joints) >= 59  # long enough for 2.9 s
    assert np.linalg.norm(joints[58, WRIST] - (0.3, 1.4, 1.5)) < 0.02
    joints, said = run("a man walks", "--path", "way.csv")
    assert "1 of 1 constraints met to 1 cm" in said
    assert np.abs(joints[[0, 40], 0][:, [0, 2]] - [[1, 1], [2, 2]]).max() < 0.01
    joints, _ = run("a man jumps", "--start", "clip.npy", "--end", "clip.npy", "--seconds", "3")
    assert np.linalg.norm(joints[0] - clip[-1], axis=-1).mean() < 0.01
    assert np.linalg.norm(joints[-1] - clip[0], axis=-1).mean() < 0.02
    assert len(run("--story", "a man walks", "he sits down", "--seconds", "2")[0]) == 80
    joints, said = run("--story", "a man walks", "he jumps", "--path", "way.csv", "--end",
                       "clip.npy", "--seconds", "1.5,2", "--num", "2")
    assert len(joints) == 70 and "of 4 constraints met" in said  # of two motions
    assert np.linalg.norm(joints[-1] - clip[0], axis=-1).mean() < 0.02
    assert np.abs(joints[[0, 40], 0][:, [0, 2]] - [[1, 1], [2, 2]]).max() < 0.01
    joints, _ = run("--story", "a man walks", "a man jumps", "--constraints", "c.json")
    assert len(joints) >= 59 and np.linalg.norm(joints[58, WRIST] - (0.3, 1.4, 1.5)) < 0.02
    assert len(run("he sits down", "--continue", "clip.npy", "--seconds", "2")[0]) == 100
    assert len(run("a man walks", "--loop", "--seconds", "2")[0]) == 40
    middle = run("--interpolate", "a man walks", "a man runs", "--seconds", "2")[0]
    ends = [run("--interpolate", "a man walks", "a man runs", "--seconds", "2", "--num", "3")[0],
            *(np.load(f"o/a-man-walks-to-a-man-runs-00{i}.npy") for i in (1, 2))]
    assert np.allclose(middle, ends[1], atol=1e-4) and not np.allclose(middle, ends[0], atol=0.1)
    said = run("a man walks, then sits", "--loop", "--seconds", "6")[1]
    assert "made as one motion here: 2 prompts of a --story" in said
    assert "5 s of the 6 s asked for" in said
    for name, array in {"cm": 100 * clip, "long": np.concatenate([clip] * 3), "nan":
                        np.where(np.arange(60)[:, None, None] == 7, np.nan, clip)}.items():
        np.save(f"{name}.npy", array.astype(np.float32))
    np.save("words.npy", np.array(["a"]))
    np.savez("two.npz", a=clip, b=clip)
    assert len(run("a man walks", "--vary", "clip.npy")[0]) == 59
    for flags, message in (
            (["a man walks", "--loop", "--vary", "clip.npy"], "cannot be combined"),
            (["a man walks", "--loop", "--path", "long.csv"], "cannot be combined"),
            (["a man walks", "--path", "long.csv"], "is 30 s, and a motion has at most 24.6 s"),
            (["a man walks", "--path", "endless.csv"], "'path' must be 3 numbers, found .inf"),
            (["--interpolate", "a man walks"], "takes two prompts"),
            (["a man walks", "--path", ""], "--path is empty"),
            (["a man walks", "--vary", "clip.npy", "--seconds", "3"], "leave out --seconds"),
            (["a man walks", "--vary", "words.npy"], "must hold joints of shape .* found .1,. of"),
            (["a man walks", "--vary", "two.npz"], "holds several arrays; expected a .npy"),
            (["a man walks", "--vary", "c.json"], "is not a whole .npy file of joints"),
            (["a man walks", "--start", "nan.npy"], "that is not finite, in frame 7"),
            *[(["a man walks", flag, "cm.npy"], "a body [\\d.]+ times as large .* joints in metres")
              for flag in ("--vary", "--continue", "--start", "--end")],
            (["a man walks", "--constraints", "no.json"], "no.json"),
            (["a man walks", "--constraints", "c.json", "--seconds", "1"], "outside the motion")):
        with pytest.raises(SystemExit, match=message):
            run(*flags)
    for flags, most in ((["a man walks"], "a motion has at most 6 s"),
                        (["--story", "a man walks", "he runs"], "2 prompts has at most 11.5 s")):
        with pytest.raises(SystemExit, match=f"constraints name is 30 s, and .*{most} here"):
            sample.main([*flags, "--path", "long.csv", "--out", "o"])
    for flags, message in (
            (["--vary", "long.npy"], "lasts 9 s, and the motions .* at most 6 s: give a part"),
            (["--continue", "clip.npy", "--seconds", "6"], "take --seconds 5.5 or less")):
        with pytest.raises(SystemExit, match=message):
            sample.main(["a man walks", *flags, "--out", "o"])
    monkeypatch.setattr(MLD, "draw_lengths", lambda self, texts, *_: [120] * len(texts))
    sample.main(["a man walks", "--continue", "clip.npy", "--out", "p", "--format", "npy"])
    assert len(np.load("p/a-man-walks.npy")) == 60 + 110  # with ten frames of the clip, six seconds
