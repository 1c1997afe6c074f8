"""The schedules and samplers equal those of diffusers, and agree with closed forms."""
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import diffusion
from diffusion import (BETA_SCHEDULES, PREDICTION_TYPES, SAMPLERS, add_noise, ddim_step, ddpm_step,
                       dpmpp_step, draw_noise, guide, make_generators, make_schedule, plan, sample,
                       take_step, training_target)
from view.samplers import sampler_table

GOLDEN = np.load(Path(__file__).parent / "golden" / "schedulers.npz")
THEIR_NAME = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def golden(*path):
    return torch.from_numpy(GOLDEN["/".join(map(str, path))])


def golden_output(x, t):
    return torch.tanh(1.3 * x + 0.001 * t.view(-1, *[1] * (x.dim() - 1)))


def close(found, expected, relative=1e-5):
    """Equal to `relative` of the largest expected number: what float32 can promise where large
    terms cancel."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= relative * expected.abs().max()


# --------------------------------------------------------------------------------------------------
# Equal to the published system


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_schedule_and_noising_equal_golden(name):
    schedule, theirs = make_schedule(name), THEIR_NAME[name]
    torch.testing.assert_close(schedule.betas, golden("betas", theirs), rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.alphas_cumprod, golden("alphas_cumprod", theirs), rtol=1e-6,
                               atol=0)
    x0, noise, t, xt = (golden("ddpm", theirs, "add_noise", k) for k in ("x0", "noise", "t", "xt"))
    torch.testing.assert_close(add_noise(schedule, x0, noise, t), xt, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("t", [999, 500, 1, 0])
@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_ddpm_steps_equal_golden(name, t):
    x_t, noise, x_prev, pred_x0 = (golden("ddpm", THEIR_NAME[name], "step", t, k)
                                   for k in ("x_t", "noise", "x_prev", "pred_x0"))
    step = plan(make_schedule(name), "ddpm", 1000)[999 - t]
    assert step.t == t
    x, x0 = take_step(step, x_t, golden_output(x_t, torch.tensor([t, t])), noise=noise)
    close(x0, pred_x0)
    close(x, x_prev)


@pytest.mark.parametrize("n, eta", [(50, 0.0), (20, 0.0), (50, 1.0)])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_ddim_runs_equal_golden(name, kind, n, eta, monkeypatch):
    case = ("ddim", THEIR_NAME[name], kind, n, f"eta{eta}")
    given, asked = iter(golden(*case, "noise")), []
    monkeypatch.setattr(diffusion, "draw_noise", lambda *a: next(given))

    def denoise(x, t):
        asked.append(t[0].item())
        return golden_output(x, t)

    x = sample(denoise, golden(*case, "x_T"), make_schedule(name, prediction_type=kind), "ddim", n,
               eta)
    assert asked == golden(*case, "timesteps").tolist()
    close(x, golden(*case, "x_0"))


@pytest.mark.parametrize("n", [1, 2, 4, 5, 7, 10, 20, 30, 50, 100, 300, 500, 900, 1000])
def test_where_the_levels_are_those_of_diffusers(n):
    """diffusers ("leading" spacing, offset 1 for DDIM and 0 for DDPM) asks at i * (1000 // n). So
    does ours for DDIM from 5 steps on that divide 1000, and DDPM of 1000. Elsewhere theirs starts
    further from pure noise than ours."""
    abar = make_schedule().alphas_cumprod.tolist()
    theirs = [i * (1000 // n) for i in reversed(range(n))]
    ddim, ddpm = diffusion.timesteps(abar, "ddim", n), diffusion.timesteps(abar, "ddpm", n)
    assert (ddim == [t + 1 for t in theirs]) == (n >= 5 and 1000 % n == 0 and n < 1000)
    assert (ddpm == theirs) == (n == 1000)
    assert ddpm[0] == 999 >= theirs[0]
    assert ddim[0] == 999 if n < 5 else ddim[0] >= min(theirs[0] + 1, 999)


@pytest.mark.parametrize("n", [np.int64(10), np.int8(10), np.uint16(10), torch.tensor(10)])
def test_numbers_of_steps_from_numpy(n):
    assert plan(make_schedule(), "ddim", n) == plan(make_schedule(), "ddim", 10)


# --------------------------------------------------------------------------------------------------
# The mathematics


def gaussian(schedule, mean=0.5, deviation=0.7):
    """The perfect denoiser of data ~ N(mean, deviation^2), and where the noise-free path from x_T
    (level T-1) ends (level 0)."""
    def x0_of(x, t):
        abar = schedule.alphas_cumprod[t].to(x.dtype).view(-1, 1)
        gain = abar.sqrt() * deviation**2 / (abar * deviation**2 + 1 - abar)
        return mean + gain * (x - abar.sqrt() * mean)

    def denoise(x, t):  # as the schedule wants it said
        abar, x0 = schedule.alphas_cumprod[t].to(x.dtype).view(-1, 1), x0_of(x, t)
        eps = (x - abar.sqrt() * x0) / (1 - abar).sqrt()
        return training_target(schedule, x0, eps, t)

    def end(x_T):  # (x - a mean) / sqrt(a^2 deviation^2 + s^2) stays what it is along the path
        (a0, v0), (a1, v1) = ((q**0.5, q * deviation**2 + 1 - q)
                              for q in schedule.alphas_cumprod[[0, -1]].tolist())
        return a0 * mean + (x_T - a1 * mean) * (v0 / v1) ** 0.5

    return denoise, end


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_x0_comes_back_from_what_the_network_is_trained_to_say(name, kind):
    schedule = make_schedule(name, prediction_type=kind)
    x0, eps = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    for step in plan(schedule, "ddpm", 1000)[::37]:
        t = torch.full((3,), step.t)
        found = take_step(step, add_noise(schedule, x0, eps, t),
                          training_target(schedule, x0, eps, t), noise=eps)[1]
        torch.testing.assert_close(found, x0, rtol=0,
                                   atol=1e-6 / schedule.alphas_cumprod[step.t].sqrt().item())


def test_samplers_agree_where_they_must():
    for abar, prev in [(0.01, 0.02), (0.3, 0.9), (0.9, 0.999), (1e-6, 0.5)]:
        np.testing.assert_allclose(ddim_step(abar, prev, eta=1.0), ddpm_step(abar, prev), rtol=1e-4)
        np.testing.assert_allclose(dpmpp_step(abar, prev)[:2], ddim_step(abar, prev)[:2], rtol=1e-9)
        # second order with nothing new in x0 is first order
        c_x, c_0, c_last = dpmpp_step(abar, prev, abar / 2)
        np.testing.assert_allclose((c_x, c_0 + c_last), ddim_step(abar, prev)[:2], rtol=1e-9)
        # exact x0 and eps in, the right mean and variance of q(x' | x0) out
        for eta in (0.0, 0.5, 1.0):
            c_x, c_0, c_noise = ddim_step(abar, prev, eta)
            assert c_0 + c_x * math.sqrt(abar) == pytest.approx(math.sqrt(prev))
            assert c_x**2 * (1 - abar) + c_noise**2 == pytest.approx(1 - prev)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_order_of_convergence_to_the_exact_path(kind):
    # fine enough for equal steps in lambda
    schedule = make_schedule("scaled_linear", 20_000, 0.00085 / 20, 0.012 / 20, kind)
    denoise, end = gaussian(schedule)
    x_T = torch.randn(64, 3, dtype=torch.float64)
    error = {(s, n): (sample(denoise, x_T, schedule, s, n) - end(x_T)).abs().mean().item()
             for s in ("ddim", "dpm++") for n in (10, 20, 40)}
    # second order: a quarter for twice the steps
    assert error["dpm++", 10] > 3 * error["dpm++", 20] > 9 * error["dpm++", 40]
    # first: half
    assert 1.5 < error["ddim", 10] / error["ddim", 20] < 3
    assert 1.5 < error["ddim", 20] / error["ddim", 40] < 3


@pytest.mark.parametrize("sampler, n, eta", [("ddpm", 1000, 0.0), ("ddpm", 200, 0.0),
                                             ("ddim", 100, 1.0), ("ddim", 100, 0.0),
                                             ("dpm++", 20, 0.0)])
def test_samples_have_the_datas_mean_and_deviation(sampler, n, eta):
    schedule, g = make_schedule(), torch.Generator().manual_seed(0)
    x = sample(
        gaussian(schedule)[0], torch.randn(20_000, 1, generator=g), schedule, sampler, n, eta,
        generator=g)
    assert x.mean().item() == pytest.approx(0.5, abs=0.05)
    assert x.std().item() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_dpm_solver_is_nearer_than_ddim_with_more_steps(scale):
    table = sampler_table("scaled_linear", scale, (5, 10, 20, 50), batch=128)
    ddim, dpmpp = ([distance for distance, _ in table[s]] for s in ("ddim", "dpm++"))
    assert ddim == sorted(ddim, reverse=True) and dpmpp == sorted(dpmpp, reverse=True)
    assert all(b < a for a, b in zip(ddim, dpmpp))  # 5 against 5, 10 against 10 ...
    assert dpmpp[1] < ddim[2]  # 10 against 20
    assert 3 * dpmpp[2] < ddim[3]  # 20 against 50
    assert scale > 1 or 2 * dpmpp[1] < ddim[3]  # without guidance even 10 against 50


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name, total",
                         [*((name, 1000) for name in BETA_SCHEDULES), ("linear", 7), ("cosine", 1)])
def test_plans_fall_through_distinct_levels(name, total, sampler):
    schedule = make_schedule(name, total)
    for n in (1, 2, 3, 4, 5, 9, 10, 13, 20, 50, 333, 501, 999, 1000):
        if n > total:
            continue
        steps = plan(schedule, sampler, n)
        ts = [s.t for s in steps]
        assert len(ts) == n and all(a > b for a, b in zip(ts, ts[1:]))
        assert 0 <= ts[-1] and ts[0] < total
        assert np.isfinite(np.array(steps)).all()
        # pure noise is not taken for a half-clean sample
        assert schedule.alphas_cumprod[ts[0]] < 0.1 or total < 10
        assert all(s.c_noise >= 0 for s in steps)
        assert sampler in ("ddpm", "lcm") or not any(s.c_noise for s in steps)
        assert steps[-1].c_noise == 0


# --------------------------------------------------------------------------------------------------
# The loop


def steer(x, t):
    return torch.tanh(x + 0.002 * t.view(-1, 1, 1))


NOISY = [("ddim", 1.0), ("ddpm", 0.0), ("lcm", 0.0)]


@pytest.mark.parametrize("sampler, eta", [*NOISY, ("dpm++", 0.0)])
def test_a_sample_with_its_own_generator_does_not_depend_on_the_batch(sampler, eta):
    def run(seeds):
        gs = [torch.Generator().manual_seed(s) for s in seeds]
        return sample(steer, draw_noise((len(seeds), 1, 19), gs), make_schedule(), sampler, 12, eta,
                      generator=gs)

    together, turned = run([5, 6, 7]), run([7, 6, 5])
    assert torch.equal(turned.flip(0), together)
    for i, seed in enumerate([5, 6, 7]):
        torch.testing.assert_close(run([seed])[0], together[i], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("sampler, eta", NOISY)
def test_padding_does_not_change_a_samples_noise(sampler, eta):
    def run(seeds, lengths, T):
        gs, lengths = [torch.Generator().manual_seed(s) for s in seeds], torch.tensor(lengths)
        x_T = draw_noise((len(seeds), T, 5), gs, lengths=lengths)
        assert all(
            (x_T[b, n:] == 0).all() and (x_T[b, :n] != 0).all() for b, n in enumerate(lengths))
        return sample(steer, x_T, make_schedule(), sampler, 8, eta, generator=gs, lengths=lengths)

    together = run([1, 2], [4, 11], 11)
    torch.testing.assert_close(run([1], [4], 4)[0], together[0, :4], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampler, eta", NOISY)
def test_one_generator_repeats_itself_and_noise_is_used(sampler, eta):
    def run(seed):
        return sample(steer, torch.ones(2, 3, 4), make_schedule(), sampler, 9, eta,
                      generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(3), run(3)) and not torch.allclose(run(3), run(4))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_callback_sees_every_step_and_the_bar_is_shown_when_asked(sampler, capfd):
    seen = []
    x_T = torch.randn(2, 3, 4)
    before = x_T.clone()
    x = sample(steer, x_T, make_schedule(), sampler, 7, callback=lambda *a: seen.append(a))
    assert capfd.readouterr().err == ""
    assert torch.equal(x_T, before)  # the caller's noise is left alone
    assert [s[0] for s in seen] == list(range(7)) and [s[1] for s in seen] == [
        s.t for s in plan(make_schedule(), sampler, 7)]
    assert torch.equal(seen[-1][2], x) and len({s[2].data_ptr() for s in seen}) == 7
    sample(steer, x_T, make_schedule(), sampler, 7, progress=True)
    assert re.search(r"sampling.*0/7", capfd.readouterr().err)


def test_a_denoiser_may_reuse_its_output_buffer():
    schedule = make_schedule(prediction_type="sample")
    x_T, buffer = torch.randn(2, 3, 4), torch.empty(2, 3, 4)
    expected = sample(steer, x_T, schedule, "dpm++", 10)
    found = sample(lambda x, t: buffer.copy_(steer(x, t)), x_T, schedule, "dpm++", 10)
    assert torch.equal(found, expected)


def test_dtype_of_the_noise_is_kept_and_no_graph_is_built():
    weight = torch.ones(1, requires_grad=True)
    x = sample(lambda x, t: (weight * steer(x, t)).bfloat16(), torch.randn(2, 3, 4),
               make_schedule(), "dpm++", 10)
    assert x.dtype == torch.float32 and not x.requires_grad
    x = sample(steer, torch.randn(2, 3, 4).double(), make_schedule(), "ddpm", 10)
    assert x.dtype == torch.float64


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clip_sample_keeps_x0_in_range(sampler):
    clipped, free = [], []
    for clip, seen in ((True, clipped), (False, free)):
        sample(steer, 3 * torch.ones(2, 3, 4), make_schedule(), sampler, 20, clip_sample=clip,
               callback=lambda i, t, x, x0: seen.append(x0))
    assert max(x0.abs().max() for x0 in clipped) == 1 < max(x0.abs().max() for x0 in free)


# --------------------------------------------------------------------------------------------------
# Guidance


def test_guidance_is_the_formula():
    uncond, cond = torch.randn(2, 3, 2, 8)
    torch.testing.assert_close(guide(uncond, cond, 7.5), uncond + 7.5 * (cond - uncond), rtol=1e-5,
                               atol=1e-5)
    assert torch.equal(guide(uncond, cond, 1), cond) and torch.equal(guide(uncond, cond, 0), uncond)


def test_rescale_sets_the_deviation_back():
    uncond, cond = torch.randn(2, 3, 2, 8) + 0.3
    guided, full, half = (guide(uncond, cond, 7.5, r) for r in (0.0, 1.0, 0.5))
    torch.testing.assert_close(full.std((1, 2)), cond.std((1, 2)), rtol=1e-4, atol=0)
    torch.testing.assert_close(half, (guided + full) / 2, rtol=1e-5, atol=1e-6)
    assert guide(uncond.bfloat16(), cond.bfloat16(), 7.5, 0.5).dtype == torch.bfloat16
    zero = torch.zeros(1, 1, 4)
    assert torch.equal(guide(zero, zero, 7.5, 1.0), zero)


def test_rescale_is_blind_to_padding():
    uncond, cond = torch.randn(2, 1, 5, 8) + 0.3
    pad = torch.zeros(1, 4, 8)
    padded = guide(torch.cat((uncond, pad), 1), torch.cat((cond, pad), 1), 7.5, 0.7,
                   torch.tensor([5]))
    torch.testing.assert_close(padded[:, :5], guide(uncond, cond, 7.5, 0.7), rtol=1e-5, atol=1e-6)
    assert not padded[:, 5:].any()


# --------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize("call, words", [
    (lambda: make_schedule("cosin"), "beta_schedule.*'cosin'.*Did you mean cosine"),
    (lambda: make_schedule(prediction_type="eps"), "prediction_type.*'eps'.*Did you mean epsilon"),
    (lambda: make_schedule(prediction_type="v"), "Did you mean v_prediction"),
    (lambda: make_schedule(beta_start=0.0), "beta_start"),
    (lambda: make_schedule(beta_start=0.5, beta_end=0.1), "beta_start"),
    (lambda: make_schedule(beta_end=float("nan")), "beta_end"),
    (lambda: make_schedule(num_train_timesteps=0), "num_train_timesteps >= 1.*got 0"),
    (lambda: plan(make_schedule(), "dpm+"), r"sampler.*'dpm\+'.*Did you mean dpm\+\+"),
    (lambda: plan(make_schedule(), "DDIM "), "Did you mean ddim"),
    (lambda: plan(make_schedule(), "ddim", 0), "num_inference_steps.*1 to the 1000.*got 0"),
    (lambda: plan(make_schedule(), "ddim", -3), "got -3"),
    (lambda: plan(make_schedule(), "ddpm", 1001), "got 1001"),
    (lambda: plan(make_schedule(), "ddpm", 2.5), "got 2.5"),
    (lambda: plan(make_schedule(), "ddim", True), "whole number, got True"),
    (lambda: plan(make_schedule(), "ddim", np.bool_(True)), "whole number, got"),
    (lambda: plan(make_schedule(), "ddim", torch.tensor(True)), "whole number, got"),
    (lambda: plan(make_schedule(), "ddim", np.float64(10)), "whole number, got"),
    (lambda: plan(make_schedule(), "ddim", "10"), "whole number, got '10'"),
    (lambda: plan(make_schedule(), "ddim", None), "whole number, got None"),
    (lambda: make_generators([1, 2], 3), "or 3 of them, one per motion, got"),
    (lambda: make_generators([1, -2**63 - 1], 2), "-2.63 to 2.64 - 1, .*-92"),
    (lambda: plan(make_schedule(), "ddim", 50, 1.5), "eta.*0 to 1.*1.5"),
    (lambda: plan(make_schedule(), "ddim", 50, -0.1), "eta"),
    (lambda: plan(make_schedule(), "ddim", 50, float("nan")), "eta"),
    (lambda: plan(make_schedule(), "dpm++", 50, 0.5), "eta.*0.5 for dpm"),
    (lambda: plan(make_schedule(), "ddpm", 50, 1.0), "eta.*for ddpm"),
    (lambda: guide(torch.ones(1, 2), torch.ones(1, 2), -1), "guidance_scale.*-1"),
    (lambda: guide(torch.ones(1, 2), torch.ones(1, 2), float("nan")), "guidance_scale.*nan"),
    (lambda: guide(torch.ones(1, 2), torch.ones(1, 2), float("inf")), "guidance_scale.*inf"),
    (lambda: guide(torch.ones(1, 2), torch.ones(1, 2), 2, 1.5), "guidance_rescale.*1.5"),
    (lambda: sample(lambda x, t: x[..., :3], torch.ones(2, 1, 4), make_schedule()),
     r"\(2, 1, 4\).*\(2, 1, 3\)"),
    (lambda: sample(lambda x, t: x[:1], torch.ones(2, 1, 4), make_schedule()),
     r"\(2, 1, 4\).*\(1, 1, 4\)"),
    (lambda: sample(steer, torch.ones(2, 1, 4).long(), make_schedule()), "x_T.*int64"),
    (lambda: sample(steer, torch.ones(4), make_schedule()), r"x_T.*\(4,\)"),
    (lambda: draw_noise((3, 1, 4), [torch.Generator()] * 2), "got 2 for a batch of 3")])
def test_bad_settings_are_refused_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
