"""The denoiser and MLD equal the published code; a motion is the same alone and in a batch."""
import json

import numpy as np
import pytest
import torch

import motion
from clip import WordEncoder
from config import Config, DenoiserConfig, TextEncoderConfig
from conftest import GOLDEN
from diffusion import add_noise, make_schedule, training_target
from mld import MLD, Denoiser, pick
from test_vae import check_gradients, published_weights, relative
from transformer import length_mask
from words import vocabulary_of

TINY = {"latent_dim": 8, "ff_size": 12, "num_layers": 3, "num_heads": 2, "max_positions": 64}
LENGTHS = [20, 13, 1]


class Words(torch.nn.Module):
    """A stand-in for the text encoder: each text its own random embedding."""

    def __init__(self, table=None, width=6, tokens=1):
        super().__init__()
        self.table, self.width, self.tokens, self.calls = table or {}, width, tokens, []

    def forward(self, texts):
        self.calls.append(texts)
        for text in texts:
            seed = torch.Generator().manual_seed(sum(map(ord, text)))
            self.table.setdefault(text, torch.randn(self.tokens, self.width, generator=seed))
        return torch.stack([self.table[text] for text in texts])


def settings(**values):
    config = Config()
    for part in (config.vae, config.denoiser):
        for key, value in TINY.items():
            setattr(part, key, value)
    config.denoiser.text_encoded_dim, config.diffusion.num_inference_steps = 6, 5
    for key, value in values.items():
        section, name = key.split("__")
        assert hasattr(getattr(config, section), name)
        setattr(getattr(config, section), name, value)
    return config


def make(config=None, **values):
    torch.manual_seed(0)
    config = config or settings(**values)
    mean, std = torch.randn(config.data.nfeats) * 0.1, torch.rand(config.data.nfeats) * 0.1 + 0.05
    model = MLD(config, Words(width=config.denoiser.text_encoded_dim), mean, std,
                torch.randn(24, 3) if config.data.skeleton == "smpl" else None).eval()
    if model.normalize_latents:
        model.latent_mean.copy_(torch.randn(model.latent_mean.shape))
        model.latent_std.copy_(torch.rand(model.latent_std.shape) + 0.5)
    return model


NOVAE = dict(vae__arch="none", denoiser__skip_connect=False, diffusion__sampler="ddpm")
MODELS = [
    dict(),
    dict(vae__latent_size=3, denoiser__normalize_latents=True, denoiser__final_linear=True,
         denoiser__length_token=True, diffusion__eta=1.0),
    dict(denoiser__condition="action", denoiser__num_actions=4, diffusion__sampler="ddpm",
         vae__arch="actor", data__skeleton="smpl"),
    dict(denoiser__condition="none", vae__arch="all_encoder", denoiser__arch="trans_dec",
         diffusion__sampler="dpm++"),
    NOVAE | dict(denoiser__arch="trans_dec", denoiser__length_token=True),
    NOVAE | dict(denoiser__arch="trans_enc", denoiser__skip_connect=True,
                 denoiser__normalize_latents=True),
    dict(denoiser__arch="modulated", denoiser__length_token=True, vae__latent_size=3,
         denoiser__latent_dim=6, denoiser__modulated_dim=16, diffusion__prediction_type="sample")]


def condition(model, count=3):
    if model.config.denoiser.condition == "text":
        return {"texts": ["walk", "jump", "🕺 dance"][:count]}
    return {"actions": [1, 0, 3][:count]} if model.config.denoiser.condition == "action" else {}


# --------------------------------------------------------------------------------------------------
# The published networks


@pytest.mark.parametrize("name", [
    "text", "text_latent4", "text_noskip", "text_dec", "action", "novae_trans_enc",
    "novae_trans_dec"])
def test_equals_the_published_denoiser(name):
    arrays = np.load(GOLDEN / f"denoiser_{name}.npz")
    meta = json.loads(str(arrays["meta"]))
    meta["num_actions"] = meta.pop("nclasses", 0)
    known = {k: v for k, v in meta.items() if hasattr(DenoiserConfig, k)}
    state = published_weights(arrays)
    if meta["arch"] == "trans_enc":
        state.pop("mem_pos.pe")  # a table that this form never reads
    else:
        # the published decoder form has none, whatever its setting says
        known["skip_connect"] = False
    if "emb_proj.action_embedding" in state:
        state["emb_proj.weight"] = state.pop("emb_proj.action_embedding")
    denoiser = Denoiser(DenoiserConfig(max_positions=64, mask_padding=False, **known),
                        meta.get("nfeats")).eval()
    denoiser.load_state_dict(state)

    given = torch.from_numpy(arrays["condition"])
    if name == "action":
        given = given[:, 0].long()
        given[:2] = -1  # the unconditional half
    lengths = torch.from_numpy(arrays["lengths"]) if "lengths" in arrays else None
    with torch.inference_mode():
        output = denoiser(torch.from_numpy(arrays["sample"]), torch.from_numpy(arrays["timesteps"]),
                          given, lengths)
    assert relative(output, torch.from_numpy(arrays["output"])) < 1e-5


def test_equals_the_published_pipeline():
    arrays = np.load(GOLDEN / "pipeline_ddim50_cfg7.5.npz")
    state = {
        k: v[:, 0] if k.endswith(".pe") else v for k, v in ((k[6:], torch.from_numpy(v))
                                                            for k, v in arrays.items()
                                                            if k.startswith("state/"))}
    state.pop("denoiser.mem_pos.pe")
    config = Config()
    for part in (config.vae, config.denoiser):
        part.latent_dim, part.ff_size, part.max_positions = 32, 64, 64
        part.num_layers, part.num_heads = 5, 4
    config.denoiser.text_encoded_dim = 48
    embeddings = torch.from_numpy(arrays["embeddings_uncond_then_cond"])
    model = MLD(
        config,
        Words({"": embeddings[0], "a": embeddings[3], "b": embeddings[4], "c": embeddings[5]}),
    ).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not any(key.startswith(("vae.", "denoiser.")) for key in missing) and not unexpected
    trajectory = []
    features, joints = model.generate(["a", "b", "c"], lengths=arrays["lengths"].tolist(),
                                      x_T=torch.from_numpy(arrays["noise"]),
                                      callback=lambda i, t, x, x0: trajectory.append((t, x)))
    assert [t for t, _ in trajectory] == arrays["timesteps"].tolist()
    assert torch.equal(embeddings[0], embeddings[2])  # one empty text for the whole batch, then
    for (_, x), expected in zip(trajectory, arrays["latent_trajectory"], strict=True):
        assert relative(x, torch.from_numpy(expected)) < 1e-4
    assert relative(features, torch.from_numpy(arrays["features"])) < 1e-4
    assert joints.shape == (3, 40, 22, 3)


def test_size_of_the_published_denoiser():
    # the published 8.35 M count a second position table that this form never reads; ours leaves
    # it out
    unread = 500 * 256
    assert sum(p.numel() for p in Denoiser(DenoiserConfig()).parameters()) + unread == 8_349_184


# --------------------------------------------------------------------------------------------------
# The denoiser


MODULATED = dict(arch="modulated", modulated_dim=10)
DENOISERS = [
    dict(),
    dict(condition="action", num_actions=4, skip_connect=False),
    dict(condition="none", final_linear=True),
    dict(width=8, principal=2, latent_dim=12),
    dict(arch="trans_dec", skip_connect=True, normalize_before=True),
    dict(arch="trans_dec", condition="none"),
    dict(skip_connect=False, normalize_before=True, position_embedding="sine", length_token=True),
    dict(condition="none", length_token=True),
    MODULATED | dict(latent_dim=6, length_token=True)]


def tiny_denoiser(nfeats=None, width=None, **values):
    torch.manual_seed(0)
    config = DenoiserConfig(**TINY | {"text_encoded_dim": 6} | values)
    if config.arch != "modulated":
        return Denoiser(config, nfeats, width).eval()
    denoiser = Denoiser(config, None, 8, 2, make_schedule(prediction_type="v_prediction"))
    denoiser.modulated.spread.copy_(torch.rand(16) + 0.5)
    for p in denoiser.parameters():  # it starts with zeros, which would hide the rest
        torch.nn.init.normal_(p, std=0.3)
    return denoiser.eval()


def denoiser_inputs(denoiser, dtype=torch.float32, T=5):
    x = torch.randn(2, T if denoiser.nfeats else 2, denoiser.nfeats or 8, dtype=dtype)
    given = {
        "text": torch.randn(2, T - 2, 6, dtype=dtype), "action": torch.tensor([2, -1]),
        "none": None}[denoiser.cfg.condition]
    return x, torch.tensor([3, 900]), given


@pytest.mark.parametrize("nfeats", [None, 7])
@pytest.mark.parametrize("values", DENOISERS, ids=str)
def test_gradients_match_finite_differences(values, nfeats):
    if nfeats and values.get("arch") == "modulated":
        pytest.skip("it has no frames")
    denoiser = tiny_denoiser(nfeats, **values).double()
    x, t, given = denoiser_inputs(denoiser, torch.float64)
    lengths = torch.tensor([5, 2]) if nfeats or denoiser.cfg.length_token else None
    target = torch.randn_like(x)
    # float32 inside the time sinusoid is a constant to every parameter
    check_gradients(lambda: (denoiser(x, t, given, lengths) - target).square().mean(),
                    denoiser.named_parameters())


@pytest.mark.parametrize("arch", ["trans_enc", "trans_dec"])
def test_frames_behind_a_length_are_no_keys(arch):
    denoiser = tiny_denoiser(7, arch=arch)
    x, t, given = denoiser_inputs(denoiser, T=9)
    lengths = torch.tensor([9, 4])
    y = denoiser(x, t, given, lengths)
    x[1, 4:] = torch.nan
    assert torch.equal(denoiser(x, t, given, lengths), y) and not y[1, 4:].any()
    torch.testing.assert_close(
        denoiser(x[1:, :4], t[1:], given[1:])[0], y[1, :4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ["trans_enc", "trans_dec", "modulated"])
@pytest.mark.parametrize("kind", ["text", "action", "none"])
def test_a_token_tells_the_length(kind, arch):
    denoiser = tiny_denoiser(condition=kind, num_actions=4, arch=arch, length_token=True)
    x, t, given = denoiser_inputs(denoiser)
    short, long = (denoiser(x, t, given, torch.tensor([n, 80])) for n in (20, 40))
    assert (short[0] - long[0]).abs().max() > 1e-3 and torch.equal(short[1], long[1])
    with pytest.raises(ValueError, match="lengths, found none"):
        denoiser(x, t, given)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_modulated_layers_start_from_the_best_linear_estimate(kind):
    """Of Gaussian latents nobody knows more than it: it is what least squares finds, number by
    number, and what it lacks has the size that it gives the layers' output."""
    torch.manual_seed(0)
    schedule, n = make_schedule(prediction_type=kind), 40_000
    config = DenoiserConfig(**TINY | MODULATED, condition="none")
    denoiser = Denoiser(config, None, 3, 2, schedule).eval()
    spread = torch.tensor([9.0, 4.0, 1.0, 0.3, 0.05, 0.01])
    denoiser.modulated.spread.copy_(spread)
    end = denoiser.modulated.final_linear.bias
    nothing = torch.zeros(1000, 2, 3), torch.arange(1000)
    assert not denoiser(*nothing).any(), "a fresh one adds something to the linear estimate"
    layer = denoiser.modulated.layers[0]
    x, c = torch.randn(2, layer.norm.weight.numel()), torch.randn(2, layer.modulation.in_features)
    assert torch.equal(layer(x, c), x)
    x0, eps = torch.randn(n, 6) * spread.sqrt(), torch.randn(n, 6)
    for level in (0, 60, 400, 999):
        t = torch.full((n,), level)
        x_t, wanted = add_noise(schedule, x0, eps, t), training_target(schedule, x0, eps, t)
        slope = (x_t * wanted).sum(0) / x_t.square().sum(0)
        with torch.no_grad():
            torch.nn.init.zeros_(end)
            linear = denoiser(x_t.view(n, 2, 3), t).flatten(1)
            torch.nn.init.ones_(end)
            size = (denoiser(x_t.view(n, 2, 3), t).flatten(1) - linear)[0]
        torch.testing.assert_close(linear[0] / x_t[0], slope, rtol=0.03, atol=0.03)
        torch.testing.assert_close((wanted - linear).std(0), size.abs(), rtol=0.03, atol=0.003)


def test_a_condition_chooses_the_features_of_modulated_layers():
    """Two conditions differ by more than a constant, which is all that a sum could do."""
    denoiser = tiny_denoiser(**MODULATED)
    x, t, given = denoiser_inputs(denoiser)
    x, t = x[:1].repeat(2, 1, 1), t[:1].repeat(2)
    other = x + torch.randn(1, 2, 8)
    change = denoiser(x, t, given) - denoiser(other, t, given)
    assert (change[0] - change[1]).abs().max() > 1e-2


def test_one_level_for_all_or_one_each():
    denoiser = tiny_denoiser()
    x, t, given = denoiser_inputs(denoiser)
    torch.testing.assert_close(denoiser(x, torch.tensor(7), given),
                               denoiser(x, torch.tensor([7, 7]), given))
    assert (denoiser(x, t, given) - denoiser(x, torch.tensor(7), given)).abs().max() > 1e-3


@pytest.mark.parametrize("backend, nfeats, values", [("inductor", None, dict(num_layers=1)),
                                                     ("aot_eager", 7, dict(arch="trans_dec")),
                                                     ("aot_eager", None, MODULATED)],
                         ids=str)
def test_compiles_without_graph_breaks(backend, nfeats, values):
    """torch.compile of the denoiser, over latents and over frames, on the CPU. Slow, so C++ is
    made for one layer only."""
    denoiser = tiny_denoiser(nfeats, **values)
    torch.compiler.reset()
    compiled = torch.compile(denoiser, fullgraph=True, dynamic=True, backend=backend)
    with torch.inference_mode():
        for T in (5, 9):
            x, t, given = denoiser_inputs(denoiser, T=T)
            lengths = torch.tensor([T, 3]) if nfeats else None
            torch.testing.assert_close(compiled(x, t, given, lengths),
                                       denoiser(x, t, given, lengths), rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# Generation


@pytest.mark.parametrize("values", MODELS, ids=str)
def test_a_motion_is_the_same_alone_and_in_a_batch(values):
    model = make(**values)
    features, joints = model.generate(**condition(model), lengths=LENGTHS, seed=5,
                                      guidance_scale=2.0)
    assert features.shape == (3, 20, model.config.data.nfeats) and joints.shape == (
        3, 20, 24 if values.get("data__skeleton") else 22, 3)
    assert features.isfinite().all() and joints.isfinite().all()
    for i, n in enumerate(LENGTHS):
        one = {key: [value[i]] for key, value in condition(model).items()}
        alone, alone_joints = model.generate(**one, lengths=[n], seed=5 + i, guidance_scale=2.0)
        assert (relative(features[i, :n], alone[0]) < 1e-5
                and relative(joints[i, :n], alone_joints[0]) < 1e-5)
        assert not features[i, n:].any() and not joints[i, n:].any()
    assert (features[0, 0] - features[1, 0]).abs().max() > 1e-4


def test_nan_in_the_padding_changes_nothing_through_the_whole_sampler():
    for values in (MODELS[4], MODELS[5]):
        model, lengths = make(**values), torch.tensor(LENGTHS)
        x_T = torch.randn(3, 20, 263)
        # noqa: E731
        run = lambda: model.generate(**condition(model), lengths=LENGTHS, x_T=x_T, seed=0,
                                     guidance_scale=2.0, guidance_rescale=0.5)
        clean = run()
        x_T[~length_mask(lengths, 20)] = torch.nan
        assert all(torch.equal(a, b) for a, b in zip(run(), clean))


def test_joints_are_those_of_the_features():
    model = make()
    features, joints = model.generate(["walk"], lengths=[20], seed=0)
    torch.testing.assert_close(joints, motion.features_to_joints(features, motion.T2M))
    kit = make(data__skeleton="kit")
    features, joints = kit.generate(["walk"], lengths=[20], seed=0)
    torch.testing.assert_close(joints, motion.features_to_joints(features, motion.KIT) / 1000)


def test_smpl_joints_stand_on_the_rest_pose():
    model = make(**MODELS[2])
    still = torch.zeros(1, 2, 150)
    still[..., :144] = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(24)
    still[..., 144:147] = torch.tensor([1.0, 2.0, 3.0])
    joints = model.to_joints((still - model.mean) / model.std)
    expected = model.rest - model.rest[0] + torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(joints[0, 1], expected)


def test_seeds():
    model = make()
    # noqa: E731
    run = lambda **named: model.generate(["walk", "walk"], lengths=[10, 10], **named)[0]
    assert torch.equal(run(seed=3), run(seed=3)) and torch.equal(run(seed=3), run(seed=[3, 4]))
    assert not torch.equal(run(seed=3)[0], run(seed=3)[1]) and torch.equal(
        run(seed=[3, 3])[0], run(seed=[3, 3])[1]
    )
    torch.manual_seed(1)
    first = run()
    torch.manual_seed(1)
    assert torch.equal(first, run()) and not torch.equal(first, run())


def test_guidance_scales():
    model = make()
    run = lambda **named: model.generate(lengths=[10, 10], seed=0, **named)[0]  # noqa: E731
    texts = ["walk", "jump"]
    # 0: the condition plays no part
    torch.testing.assert_close(run(texts=texts, guidance_scale=0), run())
    nearly = run(texts=texts, guidance_scale=1 + 1e-6)
    torch.testing.assert_close(run(texts=texts, guidance_scale=1), nearly, rtol=1e-4, atol=1e-4)
    assert (run(texts=texts, guidance_scale=7.5) - nearly).abs().max() > 1e-3
    assert torch.equal(run(texts=texts), run(texts=texts, guidance_scale=7.5))
    rescaled = run(texts=texts, guidance_scale=7.5, guidance_rescale=0.7)
    assert rescaled.isfinite().all() and not torch.equal(rescaled, run(texts=texts))
    batches = []
    predict = model.denoiser.predict
    model.denoiser.predict = lambda x, *args: batches.append(len(x)) or predict(x, *args)
    for scale, rows in ((7.5, 4), (1, 2), (0, 2)):
        batches.clear()
        run(texts=texts, guidance_scale=scale)
        assert batches == [rows] * 5


def test_awkward_prompts_with_the_small_text_tower():
    """Empty, 500 words, emoji, other scripts: in one batch, and each the same as alone."""
    model = make()
    model.text_encoder = WordEncoder(TextEncoderConfig(width=6, heads=2),
                                     vocabulary_of(["a man walks"])).eval()
    prompts = ["", "a man walks", "walks " * 500, "🕺🕺", "一个人在走路", "\x00\n"]
    features, _ = model.generate(prompts, lengths=[10] * 6, seed=1)
    for i, prompt in enumerate(prompts):
        alone = model.generate([prompt], lengths=[10], seed=1 + i)[0][0]
        assert relative(alone, features[i]) < 1e-5


def test_each_text_is_encoded_once():
    model = make()
    model.generate(["walk", "jump", "walk", ""], lengths=[5] * 4)
    assert model.text_encoder.calls == [["walk", "jump", ""]]


def test_encode_decode_and_interpolate():
    model = make(vae__latent_size=2)
    features = torch.randn(3, 20, 263)
    for i, n in enumerate(LENGTHS):
        features[i, n:] = torch.nan
    z = model.encode_motion(features, LENGTHS)
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(
            model.encode_motion(features[i:i + 1, :n])[0], z[i], rtol=1e-5, atol=1e-5)
    decoded, joints = model.decode_latent(z, LENGTHS)
    assert (decoded.shape == (3, 20, 263) and joints.shape == (3, 20, 22, 3)
            and joints.isfinite().all())
    alone, _ = model.decode_latent(z[1:2], [13])
    torch.testing.assert_close(decoded[1, :13], alone[0], rtol=1e-5, atol=1e-5)
    path = model.interpolate(z[0], z[1], 5)
    assert path.shape == (5, 2, 8) and torch.equal(path[0], z[0])
    torch.testing.assert_close(path[4], z[1])
    torch.testing.assert_close(path[2], (z[0] + z[1]) / 2)
    assert model.decode_latent(path, [10] * 5)[0].shape == (5, 10, 263)


def test_normalised_latents_come_back_as_the_vaes():
    """A denoiser that always answers x0 = 0 stands for the mean latent."""
    model = make(denoiser__normalize_latents=True, denoiser__final_linear=True,
                 diffusion__prediction_type="sample")
    torch.nn.init.zeros_(model.denoiser.final_linear.weight)
    torch.nn.init.zeros_(model.denoiser.final_linear.bias)
    features, _ = model.generate(["walk"], lengths=[10], sampler="ddpm", seed=0)
    torch.testing.assert_close(features, model.decode_latent(model.latent_mean[None], [10])[0])


@pytest.mark.parametrize("values", MODELS, ids=str)
def test_bfloat16_is_near(values):
    model = make(**values)
    given = dict(lengths=LENGTHS, seed=5, guidance_scale=2.0, num_inference_steps=3,
                 **condition(model))
    exact = model.generate(**given)[0]
    near = model.to_precision("bf16").generate(**given)[0]
    assert near.dtype == torch.float32 and 1e-6 < relative(near, exact) < 0.1
    assert len(model.draw_lengths(**condition(model), count=3, seed=1)) == 3
    if model.vae:
        assert model.encode_motion(near[:, :13], [13] * 3).isfinite().all()


@pytest.mark.parametrize("values", MODELS, ids=str)
@pytest.mark.parametrize("kind, near", [("double", 1e-4), ("bfloat16", 0.1), ("half", 0.02)])
def test_weights_of_another_type(values, kind, near):
    """double() computes everything in float64; 16 bits hold the weights alone, as with
    to_precision, and not what the sampler and the paths of the joints are summed up in."""
    model = make(**values)
    # without noise on the way, of which another type draws another
    given = dict(lengths=LENGTHS, guidance_scale=2.0, sampler="ddim", eta=0.0,
                 num_inference_steps=3, **condition(model))
    given["x_T"] = torch.randn_like(model.start(torch.tensor(LENGTHS), None))
    exact, joints = model.generate(**given)
    given["x_T"] = given["x_T"].double() if kind == "double" else given["x_T"]
    mean = model.mean.clone()
    getattr(model, kind)()
    found, found_joints = model.generate(**given)
    wanted = torch.float64 if kind == "double" else torch.float32
    assert found.dtype == found_joints.dtype == wanted and torch.equal(model.mean, mean.to(wanted))
    assert relative(found, exact) < near and relative(found_joints, joints) < 10 * near
    assert len(model.draw_lengths(**condition(model), count=3, seed=1)) == 3
    if model.vae:
        assert model.encode_motion(found[:, :13], [13] * 3).isfinite().all()
    if kind == "bfloat16":
        rounded = make(**values)
        rounded.load_state_dict(model.state_dict())
        assert torch.equal(rounded.to_precision("bf16").generate(**given)[0], found)
    model.float()
    assert model.generate(**given | {"x_T": given["x_T"].float()})[0].dtype == torch.float32


def test_parts_of_different_types_are_refused():
    model = make()
    model.denoiser.half()
    with pytest.raises(ValueError, match="torch.float16 and the VAE torch.float32; convert both"):
        model.generate(["walk"], lengths=[10])


def test_the_loss_of_a_model_in_float64():
    model, x0 = make(), torch.randn(3, 1, 8)
    given = dict(t=torch.tensor([5, 100, 900]), eps=torch.randn(3, 1, 8),
                 dropped=torch.tensor([True, False, False]), **condition(model))
    loss = model.diffusion_loss(x0, **given)["loss"]
    assert relative(model.double().diffusion_loss(x0, **given)["loss"], loss) < 1e-5


def test_whole_numbers_of_numpy_are_whole_numbers():
    model = make()
    expected, _ = model.generate(["walk"] * 2, lengths=[10, 12], seed=7, num_inference_steps=3)
    for seed in (np.int64(7), np.array([7, 8]), torch.tensor(7), [np.int32(7), torch.tensor(8)]):
        found, _ = model.generate(["walk"] * 2, lengths=np.array([10, 12]), seed=seed,
                                  num_inference_steps=np.int64(3))
        assert torch.equal(found, expected)


def test_published_frames_see_the_padding_of_their_batch():
    """Without denoiser.mask_padding a motion depends on its batch, which `generate` says."""
    assert "the published weights without a VAE: there\n" in MLD.generate.__doc__
    for mask, same in ((True, True), (False, False)):
        model = make(**MODELS[4] | dict(denoiser__mask_padding=mask))
        lengths, texts = [12, 20], ["walk", "jump"]
        batch, _ = model.generate(texts, lengths=lengths, seed=5, guidance_scale=2.0)
        alone, _ = model.generate(texts[:1], lengths=lengths[:1], seed=5, guidance_scale=2.0)
        assert (relative(batch[0, :12], alone[0]) < 1e-5) == same


# --------------------------------------------------------------------------------------------------
# Training


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("values", MODELS, ids=str)
def test_loss_of_a_batch_is_the_mean_of_its_clips(values, prediction_type):
    model = make(**values | dict(diffusion__prediction_type=prediction_type))
    frames = model.vae is None
    x0 = torch.randn(3, 20, 263) if frames else torch.randn(3, model.config.vae.latent_size, 8)
    t, eps = torch.tensor([3, 500, 999]), torch.randn_like(x0)
    dropped = torch.tensor([False, True, False])
    batch = dict(lengths=torch.tensor(LENGTHS), t=t, eps=eps, dropped=dropped, **condition(model))
    loss = model.diffusion_loss(x0, **batch)
    for i, n in enumerate(LENGTHS):
        one = {key: value[i:i + 1] for key, value in batch.items()}
        n = n if frames else None
        one["eps"] = one["eps"][:, :n]
        if not model.config.denoiser.length_token:
            one["lengths"] = None
        torch.testing.assert_close(loss["error"][i],
                                   model.diffusion_loss(x0[i:i + 1, :n], **one)["loss"].detach(),
                                   rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss["loss"].detach(), loss["error"].mean())
    if frames:
        x0[1, 13:] = torch.nan
        torch.testing.assert_close(
            model.diffusion_loss(x0, **batch)["loss"], loss["loss"], rtol=0, atol=0)


@pytest.mark.parametrize("values", [MODELS[2], MODELS[5] | dict(denoiser__condition="none")],
                         ids=str)
def test_gradients_of_the_loss_match_finite_differences(values):
    model = make(**values).double()
    x0 = torch.randn(3, *((20, 263) if model.vae is None else (1, 8)), dtype=torch.float64)
    batch = dict(lengths=torch.tensor(LENGTHS), t=torch.tensor([3, 500, 999]),
                 eps=torch.randn_like(x0), dropped=torch.tensor([False, True, False]),
                 **condition(model))
    check_gradients(lambda: model.diffusion_loss(x0, **batch)["loss"],
                    model.denoiser.named_parameters())


def test_dropped_conditions():
    model = make()
    x0, t = torch.randn(2, 1, 8), torch.tensor([10, 10])
    eps = torch.randn_like(x0)
    # noqa: E731
    def run(texts, *dropped):
        dropped = torch.tensor(dropped)
        return model.diffusion_loss(x0, texts=texts, t=t, eps=eps, dropped=dropped)["error"]

    kept, empty = run(["walk", "jump"], False, False), run(["", ""], False, False)
    torch.testing.assert_close(run(["walk", "jump"], False, True), torch.stack((kept[0], empty[1])))
    assert (kept - empty).abs().min() > 1e-5
    action = make(**MODELS[2])
    # unlabelled clips train the unconditional side
    assert action.diffusion_loss(x0, actions=torch.tensor([2, -1]))["loss"].isfinite()


def test_share_of_dropped_conditions():
    model = make(denoiser__condition="action", denoiser__num_actions=4,
                 denoiser__condition_dropout=0.25)
    seen = []
    model.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    model.diffusion_loss(torch.randn(4000, 1, 8), actions=torch.ones(4000, dtype=torch.int64))
    assert abs((seen[0] == -1).float().mean() - 0.25) < 0.03


@pytest.mark.parametrize("values", MODELS, ids=str)
def test_every_parameter_of_the_denoiser_learns(values):
    model = make(**values).train()
    shape = (20, 263) if model.vae is None else (model.config.vae.latent_size, 8)
    x0 = torch.randn(3, *shape)
    model.diffusion_loss(x0, lengths=torch.tensor(LENGTHS), **condition(model))["loss"].backward()
    assert all(p.grad is not None for p in model.denoiser.parameters())
    assert model.vae is None or all(p.grad is None for p in model.vae.parameters())


# --------------------------------------------------------------------------------------------------
# Lengths


KINDS = [
    dict(),
    dict(denoiser__condition="action", denoiser__num_actions=4),
    dict(denoiser__condition="none")]


def length_loss(model, lengths, **given):
    cond, _ = model.condition.encode(model, pick(model.condition, **given), len(lengths))
    return model.length_loss(cond, torch.tensor(lengths))


def tell_lengths_apart(model, given, lengths):
    optimizer = torch.optim.Adam(model.length_estimator.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        length_loss(model, lengths, **given).backward()
        optimizer.step()


@pytest.mark.parametrize("values, given, lengths", [
    (KINDS[0], dict(texts=["walk", "jump"]), [40, 120]),
    (KINDS[0] | dict(text__last_hidden_state=True), dict(texts=["walk", "jump"]), [40, 120]),
    (KINDS[1], dict(actions=[0, 3]), [60, 196]), (KINDS[2], dict(), [80, 80])], ids=str)
def test_lengths_are_learnt_from_conditions(values, given, lengths):
    model = make(**values)
    if "text__last_hidden_state" in values:  # every sentence starts with the same token
        table = {
            text: torch.cat((torch.ones(1, 6), torch.randn(2, 6))) for text in ("walk", "jump", "")}
        model.text_encoder = Words(table, tokens=3)
    given = {
        key: torch.tensor(value) if key == "actions" else value for key, value in given.items()}
    before = {name: p.clone() for name, p in model.named_parameters()}
    tell_lengths_apart(model, given, lengths)
    for seed in (0, 1, None):
        assert model.draw_lengths(**given, count=2, seed=seed) == lengths
    changed = {
        name.split(".")[0] for name, p in model.named_parameters()
        if not torch.equal(p, before[name])}
    assert changed == {"length_estimator"}
    # the gradient reaches what reads the condition, and nothing else of the denoiser
    reached = {name for name, p in model.denoiser.named_parameters() if p.grad is not None}
    assert reached == ({"emb_proj.weight"} if "actions" in given else set())


def test_length_loss_is_the_cross_entropy_in_units():
    model = make()
    logits = model.length_estimator(model.text_encoder(["walk", "jump", "sit"])[:, 0])
    assert logits.shape == (3, 49)  # 196 frames in units of 4
    # shorter than a unit is one, longer than all is all
    expected = -logits.log_softmax(-1)[[0, 1, 2], [0, 9, 48]].mean()
    torch.testing.assert_close(
        length_loss(model, [3, 43, 300], texts=["walk", "jump", "sit"]), expected)
    action = make(**KINDS[1])
    labels = torch.tensor([2, -1])
    assert length_loss(action, [40, 60], actions=labels).isfinite(), "clips without a label"


def test_seeds_of_lengths():
    model = make()
    texts = ["walk"] * 8
    drawn = model.draw_lengths(texts, seed=3)
    assert len(set(drawn)) > 1 and all(n % 4 == 0 and 4 <= n <= 196 for n in drawn)
    assert drawn == model.draw_lengths(texts, seed=3)
    assert drawn == model.draw_lengths(texts, seed=list(range(3, 11)))
    assert drawn[2] == model.draw_lengths(["walk"], seed=5)[0], "the same alone and in a batch"
    assert drawn != model.draw_lengths(texts, seed=4)
    torch.manual_seed(0)
    first = model.draw_lengths(texts)
    torch.manual_seed(0)
    assert first == model.draw_lengths(texts)
    assert len(model.draw_lengths()) == 1 and len(model.draw_lengths(count=5)) == 5


def test_unlikely_lengths_are_never_drawn():
    model = make(**KINDS[2])
    last = model.length_estimator.net[-1]
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.fill_(-3)  # a twentieth each of the likeliest, together more than it
        last.bias[9] = 0
    assert model.draw_lengths(count=50, seed=0) == [40] * 50
    with torch.no_grad():
        last.bias.fill_(0)  # none is likelier than another: all are possible
    assert len(set(model.draw_lengths(count=50, seed=0))) > 15


# --------------------------------------------------------------------------------------------------
# What cannot be


@pytest.mark.parametrize("values, arguments, message", [
    (dict(), dict(texts=["walk"], lengths=[0]), "1 to 62 frames here, found 0"),
    (dict(), dict(texts=["walk"], lengths=[-3]), "1 to 62 frames here, found -3"),
    (dict(), dict(texts=["walk"], lengths=[63]), "1 to 62 frames here, found 63"),
    (dict(), dict(texts=["walk"], lengths=[2.5]), "whole numbers of frames"),
    (dict(), dict(texts=["walk"], lengths=[]), "whole numbers of frames"),
    (dict(), dict(texts=["walk"], lengths=5), "whole numbers of frames"),
    (dict(), dict(texts=["walk"], lengths=[5, 6]), "list of 2 texts"),
    (dict(), dict(texts="walk", lengths=[5, 6, 7, 8]), "list of 4 texts"),
    (dict(), dict(texts=[None], lengths=[5]), r"list of 1 texts, one per motion, found \[None\]"),
    (dict(), dict(actions=[0], lengths=[5]), "takes texts, but was given actions"),
    (MODELS[2], dict(texts=["walk"], lengths=[5]), "takes actions, but was given texts"),
    (MODELS[2], dict(actions=[4], lengths=[5]),
     r"Unknown action: this model knows the actions 0 to 3, found \[4\]"),
    (MODELS[2], dict(actions=[1, -1], lengths=[5, 5]), "Unknown action"),
    (MODELS[2], dict(actions=[0.5], lengths=[5]), "Unknown action"),
    (MODELS[3], dict(texts=["walk"], lengths=[5]), "takes no condition, but was given texts"),
    (dict(), dict(texts=["walk"], lengths=[5], guidance_scale=-1), "guidance_scale must be"),
    (dict(), dict(texts=["walk"], lengths=[5], guidance_scale=float("nan")),
     "guidance_scale must be"),
    (dict(), dict(texts=["walk"], lengths=[5], num_inference_steps=0),
     "num_inference_steps must be"),
    (dict(), dict(texts=["walk"], lengths=[5], sampler="ddmi"), "sampler must be one of"),
    (dict(), dict(texts=["walk"], lengths=[5], seed=[1, 2]), "or 1 of them, one per motion, got"),
    (dict(), dict(texts=["walk"], lengths=[5], seed=True), "seed must be a whole number"),
    (dict(), dict(texts=["walk"], lengths=[5], seed=1.5), "seed must be a whole number"),
    (dict(), dict(texts=["walk"], lengths=[5], seed=2**64), "from -2.63 to 2.64 - 1, or 1 of"),
    (dict(), dict(texts=["walk"], lengths=[5], num_inference_steps=True),
     "num_inference_steps must be a whole number, got True"),
    (dict(), dict(texts=["walk"], lengths=[True]), "whole numbers of frames"),
    (dict(), dict(texts=["walk"], lengths=[5], x_T=torch.zeros(1, 1, 9)),
     r"x_T must have shape \(1, 1, 8\), found \(1, 1, 9\)")])
def test_refusals_of_generate(values, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**values).generate(**arguments)


@pytest.mark.parametrize("values, call, message", [
    (dict(), lambda m: m.decode_latent(torch.zeros(1, 1, 9), [5]),
     r"latents of shape \(B, 1, 8\), found \(1, 1, 9\)"),
    (dict(), lambda m: m.decode_latent(torch.zeros(1, 1, 8), [63]), "found 63"),
    (dict(), lambda m: m.encode_motion(torch.zeros(1, 5, 262)),
     "takes 263 features per frame, found 262"),
    (dict(), lambda m: m.encode_motion(torch.zeros(1, 5, 263), [6]), "1 to 5 frames here, found 6"),
    (dict(), lambda m: m.denoiser(torch.zeros(1, 1, 9), torch.tensor(0), torch.zeros(1, 1, 6)),
     r"\(B, N, 8\), found \(1, 1, 9\)"),
    (MODELS[4], lambda m: m.denoiser(torch.zeros(1, 1, 8), torch.tensor(0), torch.zeros(1, 1, 6)),
     r"\(B, T, 263\), found \(1, 1, 8\)"),
    (MODELS[4], lambda m: m.encode_motion(torch.zeros(1, 5, 263)), "has no VAE"),
    (MODELS[4], lambda m: m.decode_latent(torch.zeros(1, 1, 8), [5]), "has no VAE"),
    (dict(), lambda m: m.draw_lengths(actions=[1]), "takes texts, but was given actions"),
    (MODELS[2], lambda m: m.draw_lengths(actions=[4]),
     r"Unknown action: this model knows the actions 0 to 3, found \[4\]"),
    (MODELS[2], lambda m: m.draw_lengths(actions=[-1]), "Unknown action"),
    (dict(), lambda m: m.train().generate(["walk"], lengths=[5]), "model.eval"),
    (dict(), lambda m: MLD(m.config).eval().generate(["walk"], lengths=[5]), "has no text encoder"),
    (dict(denoiser__text_encoded_dim=9),
     lambda m: MLD(m.config, Words(width=6)).eval().generate(["walk"], lengths=[5]),
     "width 6, but the denoiser takes 9"),
    (MODELS[2], lambda m: MLD(m.config).to_joints(torch.zeros(1, 2, 150)), "need a rest pose"),
    (dict(), lambda m: Denoiser(DenoiserConfig(condition="action")), "num_actions is 0")])
def test_refusals(values, call, message):
    with pytest.raises(ValueError, match=message):
        call(make(**values))
