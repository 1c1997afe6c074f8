"""Students of few steps: the right answers where they are known, exact resume, wrong settings."""
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import warm

import checkpoint
import edit
import guidance
import story
from conditions import CONDITIONS
from config import SettingError, from_dict, to_dict
from diffusion import PREDICTION_TYPES, make_schedule, plan, take_step
from distill import DistillStage, path_steps
from formats.pack import write_pack
from test_edit import tiny
from test_train import KILLER, ROOT, clips_of, command, log, run

# --------------------------------------------------------------------------------------------------
# The sampler


def test_the_sampler_answers_and_is_noised_anew():
    """By hand, on a schedule of two levels: abar = 0.9 and 0.9 * 0.6 = 0.54."""
    schedule = make_schedule("linear", 2, 0.1, 0.4, "v_prediction")
    first, last = plan(schedule, "lcm", 2)
    assert (first.t, last.t) == (1, 0)
    x, v, noise = (torch.full((1, 1, 1), value) for value in (2.0, 0.5, -1.0))
    x0 = 2 * math.sqrt(0.54) - 0.5 * math.sqrt(0.46)
    now, found = take_step(first, x, v, None, noise)
    assert found.item() == pytest.approx(x0, rel=1e-6)
    assert now.item() == pytest.approx(x0 * math.sqrt(0.9) - math.sqrt(0.1), rel=1e-6)
    end, _ = take_step(last, now, v, None, None)
    assert end.item() == pytest.approx(now.item() * math.sqrt(0.9) - 0.5 * math.sqrt(0.1), rel=1e-6)
    assert last.c_noise == 0


@pytest.mark.parametrize("steps, levels", [(1, [999]), (2, [999, 499]), (4, [999, 749, 499, 249])])
def test_its_levels_are_among_those_that_are_trained(steps, levels):
    assert [step.t for step in plan(make_schedule(), "lcm", steps)] == levels
    for count in (4, 12, 40):
        assert set(levels) <= {step.t for step in path_steps(make_schedule(), count)}


# --------------------------------------------------------------------------------------------------
# The loss, where paths are straight maps: data from N(2, 0.5^2), whose perfect denoiser is linear

MEAN, SPREAD, LEVELS = 2.0, 0.5, 12


class Linear(nn.Module):
    """A denoiser that answers with gain[t] x + offset[t]."""

    def __init__(self, gain, offset):
        super().__init__()
        self.gain, self.offset = nn.Parameter(gain), nn.Parameter(offset)

    def forward(self, x, t, condition=None, lengths=None):
        return self.gain[t].view(-1, 1, 1) * x + self.offset[t].view(-1, 1, 1)


def as_output(schedule, gain, offset):
    """x0 = gain x + offset at every level -> the network that says so, in eps, x0 or v."""
    abar = schedule.alphas_cumprod.to(gain)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    kind = schedule.prediction_type
    if kind == "epsilon":
        gain, offset = (1 - a * gain) / s, -a * offset / s
    elif kind == "v_prediction":
        gain, offset = (a - gain) / s, -offset / s
    return Linear(gain.clone(), offset.clone())


def perfect(schedule):
    """E[x0 | x_t] = MEAN + a SPREAD^2 / (a^2 SPREAD^2 + s^2) (x_t - a MEAN)"""
    abar = schedule.alphas_cumprod.double()
    gain = abar.sqrt() * SPREAD**2 / (abar * SPREAD**2 + 1 - abar)
    return gain, MEAN - gain * abar.sqrt() * MEAN


def path_ends(schedule):
    """Where the true paths end, in closed form: x0 = MEAN + SPREAD (x_t - a MEAN) / std of x_t."""
    abar = schedule.alphas_cumprod.double()
    gain = SPREAD / (abar * SPREAD**2 + 1 - abar).sqrt()
    return gain, MEAN - gain * abar.sqrt() * MEAN


def stage_of(schedule, student, levels=LEVELS, dtype=torch.float64):
    """A DistillStage of these networks on one number per sample, without run or model."""
    stage = DistillStage.__new__(DistillStage)
    nn.Module.__init__(stage)
    config = from_dict({"diffusion": {"built_in_guidance": 1.0, "sampler": "lcm",
                                      "guidance_scale": 1.0, "num_inference_steps": 4}})
    stage.model = [SimpleNamespace(schedule=schedule, vae=True, dtype=dtype, config=config,
                                   condition=CONDITIONS["none"]())]
    teacher = as_output(schedule, *(x.to(dtype) for x in perfect(schedule)))
    stage.teacher, stage.denoiser = [teacher.requires_grad_(False)], student
    stage.steps, stage.paths = path_steps(schedule, levels), None
    stage.settings = SimpleNamespace(levels=levels)
    stage.run = SimpleNamespace(device="cpu", mean=lambda values: {
        key: float(value) for key, value in values.items()})
    return stage


def noise(count, seed=0, dtype=torch.float64):
    eps = torch.randn(count, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return {"eps": eps, "lengths": torch.ones(count).long(),
            "dropped": torch.zeros(count, dtype=bool), "global_size": count, "ids": ["c"] * count}


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("levels, near", [(12, 0.04), (40, 0.015)])
def test_the_teachers_paths_are_the_true_ones(kind, levels, near):
    """From any level to the end, as the ordinary differential equation has it; more steps come
    nearer."""
    schedule = make_schedule(prediction_type=kind)
    stage, batch = stage_of(schedule, None, levels), noise(50)
    points, end, _ = stage.path(batch)
    gain, offset = path_ends(schedule)
    assert len(points) == levels <= len(stage.steps) and torch.equal(points[0], batch["eps"])
    for step, x in zip(stage.steps, points):
        assert (gain[step.t] * x + offset[step.t] - end).abs().max() < near
    assert end.std().item() == pytest.approx(SPREAD * batch["eps"].std().item(), rel=0.03)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_loss_is_zero_where_paths_end_and_nowhere_else(kind):
    schedule = make_schedule(prediction_type=kind)
    right = stage_of(schedule, as_output(schedule, *path_ends(schedule)), 40)
    assert right(noise(50))["loss"] < 1e-5
    wrong = stage_of(schedule, as_output(schedule, *perfect(schedule)))
    assert wrong(noise(50))["loss"] > 1e-2


def test_the_loss_by_hand():
    """A student that always says 1.5: the mean of (1.5 - end)^2, the same at each level."""
    schedule = make_schedule(prediction_type="sample")
    said = torch.full((1000,), 1.5, dtype=torch.float64)
    stage = stage_of(schedule, Linear(torch.zeros_like(said), said))
    batch = noise(3)
    _, end, _ = stage.path(batch)
    loss = stage(batch)["loss"]
    assert loss.item() == pytest.approx((1.5 - end).square().mean().item())
    loss.backward()
    asked = stage.denoiser.offset.grad.nonzero().flatten().tolist()
    assert asked == sorted(step.t for step in plan(schedule, "lcm", LEVELS))
    expected = 2 * (1.5 - end).mean().item() / LEVELS
    assert stage.denoiser.offset.grad[999].item() == pytest.approx(expected)


def test_a_small_student_finds_the_ends_from_the_teachers_weights():
    schedule = make_schedule(prediction_type="v_prediction")
    student = as_output(schedule, *(x.float() for x in perfect(schedule)))
    stage = stage_of(schedule, student, dtype=torch.float32)
    optimizer = torch.optim.Adam(student.parameters(), 0.02)
    before = stage(noise(200, 99, torch.float32))["loss"].item()
    for step in range(300):
        optimizer.zero_grad()
        stage(noise(50, step, torch.float32))["loss"].backward()
        optimizer.step()
    after = stage(noise(200, 99, torch.float32))["loss"].item()
    assert before > 0.02 and after < 0.01 * before
    # and so one step has the data's spread, and nearly its mean: x_T is not quite pure noise
    z, (_, offset) = noise(5000, 5, torch.float32)["eps"], path_ends(schedule)
    x, _ = take_step(plan(schedule, "lcm", 1)[0], z, student(z, torch.full((5000,), 999)))
    assert abs(x.std() / z.std() - SPREAD) < 0.02 and abs(x.mean() - offset[999]) < 0.02


def test_a_path_is_guided():
    """By hand: a teacher that answers x0 = its condition, and guidance 3."""
    schedule = make_schedule(prediction_type="sample")
    stage = stage_of(schedule, None)
    model = stage.model[0]
    model.config.diffusion.built_in_guidance = 3.0
    model.condition = SimpleNamespace(keyword="texts", of_batch=lambda batch: batch["texts"],
                                      encode=lambda *_: (torch.tensor([0.7, 0.7]).double(),
                                                         torch.tensor([0.2, 0.2]).double()))
    stage.teacher = [lambda x, t, condition, lengths: x * 0 + condition.view(-1, 1, 1)]
    batch = noise(2) | {"texts": ["a", "b"], "dropped": torch.tensor([False, True])}
    _, end, _ = stage.path(batch)
    assert end.flatten().tolist() == pytest.approx([0.2 + 3 * (0.7 - 0.2), 0.2])


def test_val_measures_the_distance_to_the_paths_ends():
    schedule = make_schedule(prediction_type="sample")
    stage = stage_of(schedule, None, 40)
    gain, offset = path_ends(schedule)
    stage.denoiser = as_output(schedule, gain, offset + 0.1)
    stage.prepare = lambda batch, step, name: batch
    stage.run.batches = lambda *_, **__: SimpleNamespace(epoch=lambda k: [noise(6), noise(2, 1)])
    values = stage.validate()
    assert values == pytest.approx(dict.fromkeys(
        ("loss", "error_999", "error_749", "error_499", "error_249"), 0.01), rel=0.05)
    stage.denoiser = as_output(schedule, gain, offset)
    stage.paths = None
    assert stage.validate()["loss"] < 1e-5


# --------------------------------------------------------------------------------------------------
# The program

FEW = ["--stage=distill", "--train_distill.steps=6", "--train_distill.batch_size=8",
       "--train_distill.levels=8", "--train_distill.lr=1e-3", "--train_distill.warmup=0",
       "--train.eval_every=3", "--train.save_every=3", "--train.log_every=1",
       "--train.sample_every=0", "--train.threads=1", "--precision=float32"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """data/made, and models by text, by action, and without VAE or condition."""
    folder = tmp_path_factory.mktemp("distill")
    write_pack(folder / "data" / "made" / "made.pack", clips_of(0), name="made", skeleton="t2m",
               fps=20.0, actions=["walk", "jump"])
    for name, *flags in (["text"], ["action", "--condition=action"],
                         ["frames", "--modules=novae", "--condition=none", "--cache_latents=0",
                          "--diffusion.prediction_type=epsilon", "--stage=diffusion",
                          "--diffusion.sampler=ddpm"]):
        done = run(folder, f"--name={name}", "--train.sample_every=0", *flags)
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


def distilled(root, name, *flags, start=warm.run):
    place = [word for word in command(root) if "data_root" in word or "--out=" in word]
    return start("train.py", "--dataset=made", *place, f"--name={name}", *FEW, *flags)


@pytest.fixture(scope="module")
def student(root):
    done = distilled(root, "text")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (root / "out" / "text" / "model.pt").exists()
    return checkpoint.load_model(str(root / "out" / "text" / "student.pt"))


def test_a_student_is_an_ordinary_model(root, student):
    teacher = checkpoint.load_model(str(root / "out" / "text" / "model.pt"))
    d = student.config.diffusion
    assert (d.sampler, d.num_inference_steps, d.guidance_scale) == ("lcm", 4, 1)
    assert d.built_in_guidance == teacher.config.diffusion.guidance_scale == 1.5
    before, after = teacher.state_dict(), student.state_dict()
    assert before.keys() == after.keys()
    for name in before:  # only the denoiser has learned
        same = torch.equal(before[name], after[name])
        assert same or name.startswith("denoiser."), name
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 10
    assert student.text_encoder.vocabulary == teacher.text_encoder.vocabulary


@pytest.mark.parametrize("steps", [1, 2, 4, None])
def test_it_keeps_what_generate_promises(student, steps):
    def made(texts, lengths, seed):
        return student.generate(texts, lengths=lengths, seed=seed, num_inference_steps=steps)[1]

    both = made(["a man walks", "a man jumps here"], [40, 52], 3)
    assert both.isfinite().all() and both.shape == (2, 52, 22, 3)
    torch.testing.assert_close(made(["a man jumps here"], [52], 4)[0], both[1], rtol=1e-4,
                               atol=1e-4)
    assert torch.equal(made(["a man walks", "a man jumps here"], [40, 52], 3), both)
    other = made(["a man walks", "a man jumps here"], [40, 52], 9)
    assert not torch.allclose(other, both, atol=1e-4)


@pytest.mark.parametrize("settings, words", [
    ({"guidance_scale": 2.5}, "guidance 1.5 is built in.*must be 1, not 2.5"),
    ({"num_inference_steps": 5}, "1 to 4 steps, and num_inference_steps=5"),
    ({"sampler": "ddim"}, "sampler is lcm, not ddim"),
])
def test_what_a_student_cannot_do_is_told_in_one_sentence(student, settings, words):
    with pytest.raises(ValueError, match=words) as error:
        student.generate(["a man walks"], lengths=[40], **settings)
    assert "\n" not in str(error.value)


def test_a_teacher_does_not_sample_as_students_do(root):
    teacher = checkpoint.load_model(str(root / "out" / "text" / "model.pt"))
    with pytest.raises(ValueError, match="lcm is for students"):
        teacher.generate(["a man walks"], lengths=[40], sampler="lcm")


def test_a_stopped_run_goes_on_exactly(root, student):
    done = distilled(root, "halves", f"--init_from={root / 'out' / 'text' / 'model.pt'}",
                     "--train_distill.steps=3", "--train_distill.schedule=constant")
    assert done.returncode == 0, done.stderr[-2000:]
    whole = distilled(root, "whole", f"--init_from={root / 'out' / 'text' / 'model.pt'}",
                      "--train_distill.schedule=constant")
    assert whole.returncode == 0, whole.stderr[-2000:]
    other = distilled(root, "halves", f"--init_from={root / 'out' / 'action' / 'model.pt'}",
                      "--resume", "--allow-change=steps", "--train_distill.schedule=constant")
    assert other.returncode == 1 and other.stderr.startswith("error: ")
    changed = distilled(root, "halves", f"--init_from={root / 'out' / 'text' / 'model.pt'}",
                        "--resume", "--allow-change=steps", "--train_distill.schedule=constant",
                        "--diffusion.guidance_scale=3")
    assert changed.returncode == 1 and "built_in_guidance" in changed.stderr
    more = distilled(root, "halves", f"--init_from={root / 'out' / 'text' / 'model.pt'}",
                     "--resume", "--allow-change=steps", "--train_distill.schedule=constant")
    assert more.returncode == 0, more.stderr[-2000:]
    assert log(root, "halves") == log(root, "whole")
    a, b = (checkpoint.load(root / "out" / name / "distill.pt") for name in ("halves", "whole"))
    for one, two in zip(a["ema"], b["ema"]):
        assert torch.equal(one, two)


@pytest.mark.parametrize("where, count", [("distill", 4), ("write", 3)])
def test_a_killed_run_goes_on_exactly(root, student, tmp_path, where, count):
    """By SIGKILL after a step, and in the middle of writing a checkpoint."""
    killer, teacher = tmp_path / "killer.py", f"--init_from={root / 'out' / 'text' / 'model.pt'}"
    killer.write_text(KILLER.format(root=str(ROOT), where=where, count=count))
    name = f"killed-{where}"
    killed = distilled(root, name, teacher,
                       start=lambda _, *words: warm.run(str(killer), *words))
    folder = root / "out" / name
    assert killed.returncode and not (folder / "student.pt").exists()
    done = distilled(root, name, teacher, "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert log(root, name) == {key: value for key, value in log(root, "text").items()
                               if key[0] == "distill"}
    made = checkpoint.load(folder / "student.pt")["model"]
    assert all(torch.equal(made[key], value) for key, value in student.state_dict().items())


def test_a_teacher_of_main_directions_has_a_student_in_the_same(root):
    done = run(root, "--name=main", "--denoiser.principal=1", "--train.sample_every=0")
    assert done.returncode == 0, done.stderr[-2000:]
    teacher = root / "out" / "main" / "model.pt"
    done = distilled(root, "main-few", f"--init_from={teacher}")
    assert done.returncode == 0, done.stderr[-2000:]
    few = checkpoint.load_model(str(root / "out" / "main-few" / "student.pt"))
    kept = checkpoint.load_model(str(teacher))
    assert torch.equal(few.latent_in, kept.latent_in) and few.latent_in.shape == (32, 16)
    _, (joints, *_) = few.generate(["a person walks"], lengths=[24], seed=0)
    assert joints.shape == (24, 22, 3) and joints.isfinite().all()


def test_two_processes_see_what_one_would(root, student):
    flags = (f"--init_from={root / 'out' / 'text' / 'model.pt'}", "--train_distill.steps=3")
    for done in (distilled(root, "one", *flags), *distilled(root, "two", *flags, start=warm.two)):
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = log(root, "one"), log(root, "two")
    assert one.keys() == two.keys()
    for key in one:
        for name in ("loss", "val_loss", "val_error_999"):
            if name in one[key]:
                assert one[key][name] == pytest.approx(two[key][name], rel=1e-4)


@pytest.mark.parametrize("name", ["action", "frames"])
def test_actions_and_frames_have_students_too(root, name):
    flags = ["--cache_latents=0"] if name == "frames" else []
    done = distilled(root, name, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    model = checkpoint.load_model(str(root / "out" / name / "student.pt"))
    given = {"actions": [0, 1]} if name == "action" else {}
    _, joints = model.generate(**given, lengths=[40, 44], seed=1)
    assert joints.shape == (2, 44, 22, 3) and joints.isfinite().all()
    assert model.config.diffusion.built_in_guidance == (1.5 if name == "action" else 1.0)


@pytest.mark.parametrize("flags, words", [
    (["--name=nobody"], "nobody/model.pt"),
    (["--train_distill.levels=10"], "train_distill.levels must be a multiple of 4"),
    (["--diffusion.guidance_scale=0"], "guidance_scale"),
    (["--init_from={root}/out/text/student.pt"], "is a student"),
    (["--init_from={root}/out/text/student.pt", "--stage=all"], "is a student"),
    (["--diffusion.sampler=lcm"], "lcm is for students"),
    ([], "holds a run already"),
])
def test_bad_settings_are_refused(root, student, flags, words):
    done = distilled(root, "text", *(flag.format(root=root) for flag in flags))
    assert done.returncode == 1 and done.stderr.startswith("error: ") and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_config_says_what_it_is():
    config = from_dict({"diffusion": {"built_in_guidance": 2.0, "sampler": "lcm",
                                      "guidance_scale": 1.0, "num_inference_steps": 2}})
    assert from_dict(to_dict(config)) == config
    with pytest.raises(SettingError, match="sampler"):
        from_dict({"diffusion": {"built_in_guidance": 2.0, "guidance_scale": 1.0,
                                 "num_inference_steps": 4}})


# --------------------------------------------------------------------------------------------------
# Edits


def few_steps(condition, vae=True):
    """A student with random weights."""
    model = tiny(condition, vae)
    model.config.diffusion = dataclasses.replace(
        model.config.diffusion, sampler="lcm", num_inference_steps=4, guidance_scale=1.0, eta=0.0,
        built_in_guidance=2.0)
    return model


@pytest.mark.parametrize("condition, vae", [("action", True), ("none", False)])
def test_edits_of_a_student(condition, vae):
    model = few_steps(condition, vae).double()  # random weights make much of a rounding
    given = {"actions": [1, 0]} if condition == "action" else {}
    pin = [{"joint": "pelvis", "time": 0.5, "position": [0.1, 0.9, 0.3]}]
    motions, reports = edit.edit(model, **given, constraints=pin, lengths=[30, 40], seed=2,
                                 effort="low")
    assert all(row["error"] < 0.011 for report in reports for row in report)
    alone = {"actions": [0]} if condition == "action" else {}
    [one], _ = edit.edit(model, **alone, constraints=pin, lengths=[40], seed=3, effort="low")
    assert np.abs(one - motions[1]).max() < 1e-6
    with pytest.raises(ValueError, match="sampler is lcm"):
        edit.edit(model, **given, constraints=pin, lengths=[30, 40], sampler="dpm++")


def test_the_noise_is_searched_through_the_students_own_steps(monkeypatch):
    """What the search promises is what the walk then does, its new noise included."""
    monkeypatch.setattr(guidance, "TRIES", 12)
    model, lengths = few_steps("none"), torch.tensor([30, 24])

    def loss_of(joints):
        own = (joints[:, 20, 20] - torch.tensor([0.2, 1.0, 0.3])).square().sum(-1)
        return own.sum(), own

    def generators():
        return [torch.Generator().manual_seed(s) for s in (5, 6)]

    steps = plan(model.schedule, "lcm", 4)
    ask = model.guided(None, None, lengths, model.config.diffusion)

    def reached(x):
        z = guidance.guided_walk(model, steps, x, ask, lengths, generators(), None, 0)
        return loss_of(guidance.decoded(model, z, lengths))[1]

    x = model.start(lengths, [torch.Generator().manual_seed(s) for s in (1, 2)])
    own = generators()
    better = guidance.best_noise(model, x, ask, lengths, loss_of, False, steps, own)
    assert (reached(better) < reached(x)).all()
    # the generators are as they were
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(own, generators()))


def test_variations_of_a_student():
    model, clip = few_steps("action"), np.zeros((30, 22, 3))
    clip += np.random.default_rng(0).normal(size=(30, 22, 3)) * 0.1 + [0, 1, 0]
    for strength in (0, 0.1, 1):
        [made] = story.vary(model, clip, actions=[1], strength=strength, seed=1)
        assert np.isfinite(made).all() and made.shape == (29, 22, 3)
