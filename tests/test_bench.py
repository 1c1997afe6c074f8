"""What the benchmark compares gives the same numbers: baseline, each rung of the ladder, ours."""
import json

import pytest
import torch
import warm

from conftest import ROOT
from dev.baseline import RUNGS, Sides, climb, draw_lengths, prompts
from dev.measure import line, row
from vae import vae_loss


@pytest.fixture(scope="module")
def sides():
    return Sides(quick=True, device="cpu")


def close(found, expected):
    error = (found - expected).norm() / expected.norm()
    assert error <= 1e-4, error


def test_the_prompts_differ_and_have_ten_tokens(sides):
    texts = prompts(1024)
    assert len(set(texts)) == 1024
    assert sides.model.text_encoder.tokenizer(texts, 77).shape == (1024, 10)


def test_lengths_have_the_mean_of_humanml3d():
    lengths = draw_lengths(10_000)
    assert lengths.min() == 40 and lengths.max() == 196 and not (lengths % 4).any()
    assert abs(lengths.float().mean() - 142) < 3


def test_each_part_equals_the_baseline(sides):
    m, b, texts, lengths = sides.model, sides.baseline, prompts(11), torch.arange(11) + 14
    texts[3], texts[7] = "a man walks " + "and then walks on " * 30, ""
    with torch.no_grad():
        text = m.text_encoder(texts)
        close(text, b.text(texts))
        x_T = sides.noise(11)
        both = torch.cat((sides.empty.expand(11, -1, -1), text))
        close(sides.denoise(text, x_T), b.denoise(both, x_T))
        # of different lengths, in parts that are sorted; of one length
        for some in (lengths, sides.lengths(11)):
            for found, expected in zip(m.decode_latent(x_T, some), b.decode(x_T, some)):
                there = torch.arange(some.max()) < some[:, None]
                close(found[there], expected[there])
        features = torch.randn(11, 24, 263)
        expected = b.encode(features, lengths)
        for a, e in zip(m.vae.encode(features, lengths), expected):
            close(a, e)


@pytest.mark.parametrize("rung", range(1, len(RUNGS)))
def test_each_rung_equals_the_baseline(sides, rung):
    texts, x_T = prompts(9), sides.noise(9)
    for found, expected in zip(climb(sides, rung, texts, x_T), climb(sides, 0, texts, x_T)):
        close(found, expected)


def test_training_losses_equal_the_baseline_where_nothing_is_padded(sides, monkeypatch):
    m, b, lengths, features = sides.model, sides.baseline, sides.lengths(3), torch.randn(3, 24, 263)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    mu, logvar = m.vae.encode(features, lengths)
    recon = m.vae.decode(mu, lengths, 24)
    loss = vae_loss(features, recon, mu, logvar, lengths, m.config.vae, m.to_joints)
    close(loss["loss"], b.vae_loss(features, lengths))


def test_the_empty_prompt_is_encoded_again_when_the_weights_change():
    encoder = Sides(quick=True, device="cpu").model.text_encoder
    calls = []
    encoder.tower.transformer.register_forward_hook(lambda *_: calls.append(1))
    before = encoder([""])
    assert torch.equal(encoder(["", "a man walks", ""])[[0, 2]], before.repeat(2, 1, 1))
    calls_before = len(calls)
    with torch.inference_mode():
        assert torch.equal(encoder([""]), before) and len(calls) == calls_before
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(["", "a man walks"]).dtype == torch.bfloat16
        assert len(calls) == calls_before + 2
    close(encoder([""]), before)  # to rounding: with the hook another path runs than before it
    calls_before = len(calls)
    with torch.no_grad():
        encoder.tower.transformer.layers[0].linear1.weight.add_(0.1)
    assert not torch.equal(encoder([""]), before) and len(calls) == calls_before + 1


def bench(*words, where=("-m", "dev.bench"), cwd=ROOT):
    return warm.run(*where, *words, cwd=cwd, PYTHONPATH=ROOT)


SOME = {"text", "sentence", "sentence, dpm++ 10 steps", "train diffusion, bfloat16, cached latents"}


@pytest.mark.parametrize("words, parts", [
    (["text", "denoise", "decode", "sentence", "steps", "train"], SOME),
    (["ladder", "--batches", "2"], {RUNGS[0], RUNGS[-1]})])
def test_bench_prints_json(words, parts):
    run = bench(*words, "--quick", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["machine"]["float32_flop_s"] > 0 and parts <= {r["part"] for r in found["rows"]}
    for r in found["rows"]:
        low, middle, high = r["ours"]
        assert 0 < low <= middle <= high and r["ratio"] > 0


def test_a_row_as_text():
    """The table shows what was measured, frames/s the other way round than seconds."""
    times = {"ours": [0.25, 0.5, 0.75], "baseline": [1.0, 1.0, 2.0]}
    text = line(row("sentence", 4, times, floor=0.25, spent={"Python": 0.5}))
    for wanted in ("500 ms [250 ms..750 ms]", "2.00x; 2.0 times its floor; floor 250 ms",
                   "Python 50%"):
        assert wanted in text
    text = line(row("train", 4, times, {"ours": 10, "baseline": 20}, floor=40,
                    peak_mb={"ours": 7.4, "baseline": None}))
    for wanted in ("20 [13..40]", "20 [10..20]", "1.00x; 2.0 times its floor; floor 40",
                   "7 / ? MB"):
        assert wanted in text


def test_the_kernels_need_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = bench("kernels")
    assert run.returncode and "needs a GPU" in run.stderr


@pytest.mark.parametrize("where", [("-m", "dev.bench"), (ROOT / "dev" / "bench.py",)])
def test_it_runs_from_another_folder(where, tmp_path):
    run = bench("tex", where=where, cwd=tmp_path)
    assert run.returncode == 2 and "parts are text" in " ".join(run.stderr.split())
