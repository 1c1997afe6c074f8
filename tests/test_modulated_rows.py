"""modulated.c, a step of modulated layers in one call of C, against the plain torch path."""
from unittest import mock

import pytest
import torch

import fast
import kernels
from config import DenoiserConfig
from diffusion import make_schedule
from kernels import backend, few_rows, modulated_rows
from loop import averaged
from modulated import ModulatedLayers
from test_mld import LENGTHS, condition, make

pytestmark = pytest.mark.skipif(isinstance(few_rows.library("float32", "modulated"), str),
                                reason=f"NOT TESTED: {few_rows.library('float32', 'modulated')}")
TOKENS, WIDTH, DIM = 2, 16, 24  # of a latent, and of its condition
SCHEDULE = make_schedule("scaled_linear", 1000, 0.00085, 0.012, "v_prediction")


def layers_of(hidden=40, width=48, count=3, activation="gelu", **others):
    """Layers in eval mode whose parameters are not the zeros that some of them start as."""
    cfg = DenoiserConfig(arch="modulated", latent_dim=DIM, modulated_dim=width, ff_size=hidden,
                         num_layers=count, activation=activation, **others)
    torch.manual_seed(0)
    layers = ModulatedLayers(cfg, TOKENS * WIDTH, SCHEDULE).eval()
    for p in layers.parameters():
        p.data += 0.15 * torch.randn_like(p)
    layers.spread.copy_(torch.rand(TOKENS * WIDTH) + 0.5)
    return layers


def inputs(rows, levels=(999, 400, 1), told=True):
    """Latents, the levels' embeddings as `level` gives them, a condition of two tokens or None."""
    g = torch.Generator().manual_seed(rows)
    x, condition = (torch.randn(rows, 2, n, generator=g) for n in (WIDTH, DIM))
    times = torch.randn(len(levels), DIM, generator=g)
    return x, times, torch.tensor(levels), condition if told else None


@torch.no_grad()
def both(layers, rows=3, **given):
    """-> answers of C and of torch, (steps, rows, ...), or None and torch's."""
    x, embedding, levels, condition = inputs(rows, **given)
    kind = layers.mix.weight.dtype
    x, condition = x.to(kind), None if condition is None else condition.to(kind)
    times = layers.level(embedding.to(kind), levels)
    plain = torch.stack([layers(x, t.expand(rows, -1), condition) for t in times])
    steps = kernels.modulated_steps(layers, x, rows, times, condition)
    if steps is None:
        return None, plain
    return torch.stack([kernels.modulated_step(x, *step) for step in steps]), plain


def check(layers, *args, rtol=1e-5, **given):
    found, plain = both(layers, *args, **given)
    torch.testing.assert_close(found, plain.float(), rtol=rtol, atol=rtol)


def kind_of(layers):
    """The library that the last run took."""
    function = modulated_rows.packed[layers][1][0]
    return next(k for k in few_rows.DEFINES if few_rows.library(k, "modulated") is function)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 13, 32])
def test_equals_the_layers(rows, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check(layers_of(), rows)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("hidden", [1, 16, 24, 744])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_any_hidden_width(hidden, activation):
    """One that is no multiple of 16 is filled up with zeros."""
    check(layers_of(hidden, activation=activation), 2)
    check(layers_of(hidden, count=1, activation=activation), 2, told=False)


def test_the_sizes_that_ship():
    torch.manual_seed(1)
    cfg = DenoiserConfig(arch="modulated", latent_dim=256, ff_size=744, num_layers=5)
    layers = ModulatedLayers(cfg, 512, SCHEDULE).eval()
    for p in layers.parameters():
        p.data += 0.03 * torch.randn_like(p)
    x, told = torch.randn(4, 4, 128), torch.randn(4, 2, 256)
    times = layers.level(torch.randn(2, 256), torch.tensor([981, 61]))
    with torch.no_grad():
        steps = kernels.modulated_steps(layers, x, 4, times, told)
        for step, time in zip(steps, times):
            torch.testing.assert_close(kernels.modulated_step(x, *step),
                                       layers(x, time.expand(4, -1), told), rtol=1e-4, atol=1e-4)


def test_weights_of_8_bits_are_read_as_such():
    """Where all of them are: then the numbers are the same, and a change of one is seen."""
    layers = layers_of()
    check(layers)
    assert kind_of(layers) == "float32"
    with torch.no_grad():
        for p in layers.parameters():
            if p.dim() == 2:
                numbers, scale = few_rows.to_int8(p)
                p.copy_(numbers * scale[:, None].half().float())  # as a file keeps its factors
    check(layers)
    assert kind_of(layers) == "int8"
    with torch.no_grad():
        layers.layers[1].linear2.weight[3, 5] += 0.01
    check(layers)
    assert kind_of(layers) == "float32"


def test_bf16_weights():
    layers = layers_of().bfloat16()
    found, plain = both(layers)
    assert kind_of(layers) == "bf16"
    exact = both(layers.float())[1]
    assert (found - exact).norm() < (plain - exact).norm() + 1e-3 * exact.norm()
    assert (found - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("name", ["mix", "token_in", "final_linear", "norm", "modulation",
                                  "layers.0.linear1", "layers.2.linear2", "layers.1.norm",
                                  "layers.1.modulation"])
def test_weights_that_change_or_move_are_seen(name):
    layers = layers_of()
    before = both(layers)[0]
    part = layers.get_submodule(name)
    with torch.no_grad():
        part.weight += 0.1
    check(layers)
    part.bias = torch.nn.Parameter(part.bias + 0.1)
    check(layers)
    assert not torch.allclose(both(layers)[0], before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_so(bad):
    layers = layers_of()
    layers.layers[0].linear1.bias.data[0] = bad
    found, plain = both(layers)
    assert not plain.isfinite().any() and not found.isfinite().any()


class Other(torch.nn.Linear):
    pass


def test_unsupported_ones_run_as_the_layers():
    def refused(layers, rows=3):
        return both(layers, rows)[0] is None

    assert refused(layers_of(width=40)) and refused(layers_of(), modulated_rows.MAX_ROWS + 1)
    assert refused(layers_of().train()) and refused(layers_of().double())
    layers = layers_of()
    assert not refused(layers)
    layers.layers[0].linear1 = Other(48, 40)
    assert refused(layers)
    layers = layers_of()
    layers.layers[1].norm.eps = 1e-3
    assert refused(layers)
    layers.layers[1].norm.eps = 1e-5
    hook = layers.norm.register_forward_hook(lambda *_: None)
    assert refused(layers)
    hook.remove()
    layers.layers[2].train()
    assert refused(layers)
    layers.eval()
    assert not refused(layers)
    with mock.patch.object(backend, "MODE", "torch"):
        assert refused(layers)
    layers.mix.weight.requires_grad_(True)
    x, embedding, levels, told = inputs(3)
    assert modulated_rows.unsupported(layers, x, 3), "a gradient may be asked for"


class Twice(ModulatedLayers):
    def forward(self, *given):
        return 2 * super().forward(*given)


def test_layers_of_other_shapes_or_kinds_run_as_themselves(monkeypatch):
    layers = layers_of()
    narrow = layers_of(16).layers[1]
    layers.layers[1] = narrow
    assert both(layers)[0] is None, "C would take the first one's width for all"
    layers = layers_of()
    layers.layers[2].norm = torch.nn.LayerNorm(48, bias=False).eval()
    assert both(layers)[0] is None
    twice = Twice.__new__(Twice)
    twice.__dict__.update(layers_of().__dict__)
    assert both(twice)[0] is None
    layers = layers_of()
    with torch.no_grad():
        layers.final_linear.weight = torch.nn.Parameter(layers.final_linear.weight.T.contiguous().T)
    check(layers)
    monkeypatch.setattr(few_rows.library("float32", "modulated"), "max_rows", 2)
    assert both(layers, 3)[0] is None and both(layers, 2)[0] is not None
    monkeypatch.setattr(modulated_rows, "MOST", 2 * 2 * 300)
    assert both(layers, 2)[0] is None, "too much for so many steps"


def test_int8_weights_that_lie_otherwise():
    layers = layers_of()
    with torch.no_grad():
        for p in layers.parameters():
            if p.dim() == 2:
                numbers, scale = few_rows.to_int8(p)
                p.copy_(numbers * scale[:, None])
        for one in (layers.token_in, layers.final_linear):
            one.weight = torch.nn.Parameter(one.weight.T.contiguous().T)
    check(layers)
    assert kind_of(layers) == "int8"


def test_the_moving_average_of_a_training_is_seen():
    """loop.averaged puts other numbers into the same tensors, and its samples must show it."""
    layers = layers_of()
    before, params = both(layers)[0], [*layers.parameters()]
    with averaged(params, [p.detach() + 0.1 for p in params]):
        check(layers)
        assert not torch.allclose(both(layers)[0], before)
    torch.testing.assert_close(both(layers)[0], before)


@pytest.mark.parametrize("values", [{}, dict(denoiser__condition="none"),
                                    dict(denoiser__condition="action", denoiser__num_actions=5),
                                    dict(diffusion__sampler="ddpm")], ids=str)
@pytest.mark.parametrize("scale", [0, 1, 2.5])
def test_generate_gives_the_plain_paths_numbers(values, scale):
    model = make(denoiser__arch="modulated", denoiser__length_token=True, vae__latent_size=2,
                 denoiser__modulated_dim=32, denoiser__ff_size=24, vae__latent_dim=16,
                 vae__num_heads=2, **values)
    with torch.no_grad():
        for p in model.denoiser.modulated.parameters():
            p += 0.1 * torch.randn_like(p)
    given = dict(lengths=LENGTHS, seed=5, guidance_scale=scale, num_inference_steps=5,
                 **condition(model))
    before, seen = backend.calls["modulated", "c"], []
    features, joints = model.generate(**given, callback=lambda *step: seen.append(step))
    assert backend.calls["modulated", "c"] - before == len(seen) == 5, "watched or not"
    with fast.without("modulated"):
        expected, places = model.generate(**given)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(joints, places, rtol=1e-4, atol=1e-4)
    own = model.denoiser.predict
    model.denoiser.predict = lambda *a: own(*a) + 1  # as torch.compile replaces it
    before = backend.calls["modulated", "c"]
    assert not torch.allclose(model.generate(**given)[0], features)
    assert backend.calls["modulated", "c"] == before


def test_a_model_rounded_to_8_bits():
    model = make(denoiser__arch="modulated", vae__latent_size=2, denoiser__modulated_dim=32,
                 vae__latent_dim=16, vae__num_heads=2)
    torch.nn.init.normal_(model.denoiser.modulated.final_linear.weight)
    given = dict(lengths=LENGTHS, seed=5, num_inference_steps=3, **condition(model))
    exact = model.generate(**given)[0]
    fast.to_precision(model, "int8")
    found = model.generate(**given)[0]
    assert kind_of(model.denoiser.modulated) == "int8"
    assert 1e-5 < (found - exact).norm() / exact.norm() < 0.05
    with fast.without("modulated"):
        torch.testing.assert_close(found, model.generate(**given)[0], rtol=1e-4, atol=1e-4)
