"""few_rows.c, a whole stack in one call of C, against the plain torch path it stands in for."""
import copy
import gc
import weakref
import zlib
from unittest import mock

import numpy as np
import pytest
import torch
import warm
from torch.utils.flop_counter import FlopCounterMode

import fast
import transformer
from config import DenoiserConfig
from conftest import GOLDEN
from kernels import backend, few_rows
from mld import Denoiser
from test_mld import LENGTHS, condition, make
from transformer import Stack

pytestmark = pytest.mark.skipif(isinstance(few_rows.library("float32", "few_rows"), str),
                                reason=f"NOT TESTED: {few_rows.library('float32', 'few_rows')}")


@pytest.fixture(autouse=True)
def all_rows(monkeypatch):
    """Also where the compiler has no OpenMP, and C therefore takes few rows only."""
    for kind in few_rows.DEFINES:
        monkeypatch.setattr(few_rows.library(kind, "few_rows"), "max_rows", few_rows.MAX_ROWS)


def stack_of(layers=3, dim=32, heads=2, ff=48, **settings):
    """A stack in eval mode whose biases and norms are not the zeros and ones that they start as."""
    torch.manual_seed(0)
    stack = Stack(layers, dim, heads, ff, **settings).eval()
    for p in stack.parameters():
        if p.dim() == 1:
            p.data += 0.3 * torch.randn_like(p)
    return stack


def ran(run):
    """-> what run() returns, and how often C ran in it."""
    before = backend.calls["few_rows", "c"]
    with torch.no_grad():
        return run(), backend.calls["few_rows", "c"] - before


def check(stack, x, **arguments):
    found, count = ran(lambda: fast.few_tokens(stack, x, **arguments))
    assert count == 1
    first = arguments.pop("n", None)
    with torch.no_grad():
        expected = stack(x, **arguments)[:, :first]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu", "quick_gelu"])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("layers, skip", [(1, False), (2, False), (1, True), (3, True), (5, True)])
def test_equals_the_stack(layers, skip, pre_norm, activation, final_norm):
    stack = stack_of(layers, skip=skip, pre_norm=pre_norm, activation=activation,
                     final_norm=final_norm)
    for arguments in ({}, {"n": 1}, {"n": 2}, {"causal": True}):
        check(stack, torch.randn(2, 4, 32), **arguments)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 3), (5, 1), (1, 7), (1, 13), (4, 8), (32, 1),
                                   (1, 32), (32, 3), (1, 96)], ids=str)
def test_every_number_of_rows_and_threads(shape, threads):
    """1 to 96 rows go through every size of tile, and 5 threads share outputs that they do not
    divide."""
    stack, x, before = stack_of(skip=True), torch.randn(*shape, 32), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(stack, x)
        check(stack, x, n=1)
    finally:
        torch.set_num_threads(before)


def test_published_sizes():
    check(stack_of(9, 256, 4, 1024, skip=True), torch.randn(2, 3, 256), n=1)
    check(stack_of(9, 256, 4, 1024, skip=True), torch.randn(32, 3, 256), n=1)
    check(stack_of(2, 768, 12, 3072, pre_norm=True, activation="quick_gelu"),
          torch.randn(1, 10, 768), causal=True)


@pytest.mark.parametrize("dim, heads", [(160, 4), (48, 2), (48, 4), (48, 16), (16, 16)])
def test_heads_of_any_size(dim, heads):
    """40, 24, 12, 3 and 1 numbers a head, which no vector divides."""
    stack = stack_of(3, dim, heads, 64, skip=True)
    for shape in ((1, 5), (3, 5), (2, 1)):
        check(stack, torch.randn(*shape, dim))
        check(stack, torch.randn(*shape, dim), n=1)


@pytest.mark.parametrize("ff", [496, 512, 528, 1040])
@pytest.mark.parametrize("rows", [1, 11, 13, 96])
def test_products_in_blocks_of_rows_and_columns(ff, rows):
    """Up to 512 columns at a time, then in parts of uneven sizes; as many rows as stay in the
    cache with them."""
    stack, x = stack_of(1, ff=ff), torch.randn(rows, 1, 32)
    check(stack, x)
    few_rows.round_to_int8(stack)
    check(stack, x)


@pytest.mark.parametrize("activation", ["gelu", "relu", "quick_gelu"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e4])
def test_activations_of_any_size(activation, size):
    """The exponential's ends: sums of hidden units from far below -87 to far above 87, the
    softmax's likewise."""
    check(stack_of(1, activation=activation, pre_norm=True, final_norm=True),
          size * torch.randn(1, 5, 32))
    stack = stack_of(1, activation=activation)
    stack.layers[0].linear1.weight.data *= size
    stack.layers[0].self_attn.in_proj_weight.data *= min(size, 30)
    check(stack, torch.randn(1, 5, 32))


@pytest.mark.parametrize("activation", ["gelu", "relu", "quick_gelu"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_so(activation, bad):
    x = torch.randn(2, 3, 32)
    x[1, 2, 5] = bad
    found, _ = ran(lambda: fast.few_tokens(stack_of(activation=activation), x))
    assert found[0].isfinite().all() and found[1].isnan().all()
    stack = stack_of(1, activation=activation)
    stack.layers[0].linear1.bias.data[0] = float("nan")
    assert ran(lambda: fast.few_tokens(stack, x))[0].isnan().all()


def test_x_may_be_a_view():
    stack, wide = stack_of(), torch.randn(2, 4, 64)
    check(stack, wide[..., ::2])
    check(stack, wide[:, ::2, :32])


def test_weights_that_change_or_move_are_seen():
    stack, x = stack_of(), torch.randn(1, 3, 32)
    check(stack, x)
    with torch.no_grad():
        stack.layers[0].linear1.weight.add_(1.0)
    check(stack, x)
    stack.load_state_dict(stack_of(final_norm=True, activation="relu").state_dict())
    check(stack, x)
    stack.load_state_dict({k: v + 0.1 for k, v in stack.state_dict().items()}, assign=True)
    check(stack, x)
    twin = copy.deepcopy(stack)
    with torch.no_grad():
        twin.norm.bias.add_(1.0)
    check(twin, x)
    check(stack, x)


def test_unsupported_ones_run_as_the_stack():
    x, stack = torch.randn(1, 3, 32), stack_of()
    cases = {
        f"{few_rows.MAX_ROWS} rows": (torch.randn(1, few_rows.MAX_ROWS + 1, 32), stack),
        "float32": (x.double(), stack_of().double()),
        "widths": (torch.randn(1, 3, 24), stack_of(dim=24)),
        "no dropout": (x, stack_of().train()),
        "self-attention": (x, stack_of(cross=True)),
    }
    for why, (rows, other) in cases.items():
        with torch.no_grad():
            assert why in few_rows.unsupported(rows, other)
        if why != "self-attention":  # the stack needs a memory, which few_tokens does not take
            assert ran(lambda: fast.few_tokens(other, rows))[1] == 0
    assert "backward" in few_rows.unsupported(x, stack)  # grad mode
    fast.few_tokens(stack, x).sum().backward()
    assert stack.layers[0].linear1.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in few_rows.unsupported(x, stack)
    with torch.no_grad(), mock.patch.object(backend, "MODE", "torch"):
        assert "must be auto" in few_rows.unsupported(x, stack)


def test_one_thread_takes_fewer_rows(monkeypatch):
    monkeypatch.setattr(few_rows.library("float32", "few_rows"), "max_rows", few_rows.FEWEST)
    stack = stack_of()
    check(stack, torch.randn(few_rows.FEWEST, 1, 32))
    with torch.no_grad():
        assert "up to 16 rows" in few_rows.unsupported(torch.randn(few_rows.FEWEST + 1, 1, 32),
                                                       stack)


def test_hooks_and_replaced_modules_run():
    """Attention maps are read by hooks, and adapters take a Linear's place, also after C has
    run."""
    stack, x, seen = stack_of(), torch.randn(1, 3, 32), []
    check(stack, x)
    hook = stack.layers[1].self_attn.register_forward_hook(lambda *_: seen.append(1))
    assert ran(lambda: fast.few_tokens(stack, x))[1] == 0 and seen == [1]
    hook.remove()
    check(stack, x)
    stack.layers[0].linear2 = torch.nn.Linear(48, 32)
    check(stack, x)
    torch.nn.utils.parametrizations.weight_norm(stack.layers[1].linear2)
    assert ran(lambda: fast.few_tokens(stack, x))[1] == 0


def test_stacks_are_freed():
    stack = stack_of()
    assert ran(lambda: fast.few_tokens(stack, torch.randn(1, 3, 32)))[1] == 1
    gone = weakref.ref(stack)
    del stack
    gc.collect()
    assert gone() is None


def without_bias(stack):
    stack.layers[0].linear2 = torch.nn.Linear(48, 32, bias=False)


def of_another_width(stack):
    stack.layers[1].linear1 = torch.nn.Linear(32, 64)
    stack.layers[1].linear2 = torch.nn.Linear(64, 32)


def transposed(stack):
    weight = stack.layers[2].self_attn.out_proj.weight
    weight.data = weight.data.t().contiguous().t()


def of_another_activation(stack):
    stack.layers[1].activation = "relu"


def of_another_eps(stack):
    stack.norm.eps = 0.5


@pytest.mark.parametrize("after_a_run", [False, True])
@pytest.mark.parametrize("change", [without_bias, of_another_width, transposed])
def test_weights_that_c_does_not_read_run_as_the_stack(change, after_a_run):
    stack, x = stack_of(), torch.randn(1, 3, 32)
    if after_a_run:
        check(stack, x)
    change(stack)
    found, count = ran(lambda: fast.few_tokens(stack, x))
    with torch.no_grad():  # with gradients, training.c computes it
        assert count == 0 and torch.equal(found, stack(x))
    change(stack)
    assert ran(lambda: fast.few_tokens(stack, x))[1] == 0


@pytest.mark.parametrize("change", [of_another_activation, of_another_eps])
def test_layers_of_different_settings_run_as_the_stack(change):
    stack, x = stack_of(), torch.randn(1, 3, 32)
    change(stack)
    found, count = ran(lambda: fast.few_tokens(stack, x))
    with torch.no_grad():
        assert count == 0 and torch.equal(found, stack(x))


def in_all_layers(**settings):
    def change(stack):
        for module in stack.modules():
            vars(module).update({k: v for k, v in settings.items() if k in vars(module)})
    return change


def in_one_layer(**settings):
    def change(stack):
        in_all_layers(**settings)(stack.layers[1])
    return change


SETTINGS = [dict(activation="relu"), dict(heads=1), dict(pre_norm=True), dict(eps=0.5)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("where, times", [(in_all_layers, 1), (in_one_layer, 0)])
def test_settings_that_change_after_a_run_are_seen(where, times, settings):
    stack, x = stack_of(dim=64), torch.randn(1, 3, 64)
    check(stack, x)
    with torch.no_grad():
        before = stack(x)
    where(**settings)(stack)
    found, count = ran(lambda: fast.few_tokens(stack, x))
    with torch.no_grad():
        expected = stack(x)
    assert count == times and not torch.allclose(expected, before, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_layer_that_goes_back_to_training_drops_again():
    stack, x = stack_of(dropout=0.5, attention_dropout=0.5), torch.randn(1, 3, 32)
    check(stack, x)
    for module in (stack.layers[1], stack.layers[1].self_attn):
        module.training = True
        first, second = (ran(lambda: fast.few_tokens(stack, x)) for _ in range(2))
        assert first[1] == second[1] == 0 and not torch.equal(first[0], second[0])
        module.training = False
    check(stack, x)


def test_an_activation_that_c_does_not_know():
    stack, x = stack_of(), torch.randn(1, 3, 32)
    check(stack, x)
    in_all_layers(activation="of your own")(stack)
    with torch.no_grad():
        assert "one that it knows" in few_rows.unsupported(x, stack)


def test_weights_of_another_shape_at_the_same_address():
    stack, x = stack_of(ff=64), torch.randn(1, 3, 32)
    check(stack, x)
    stack.layers[0].linear1.weight.data = stack.layers[0].linear1.weight.data.view(32, 64)
    with torch.no_grad():
        assert "of shape (64, 32)" in few_rows.unsupported(x, stack)


def test_hooks_of_every_kind():
    stack, x, seen = stack_of(), torch.randn(1, 3, 32), []
    check(stack, x)
    hooks = [lambda: stack.register_forward_hook(lambda *_: seen.append(1)),
             lambda: torch.nn.modules.module.register_module_forward_hook(
                 lambda *_: seen.append(1)),
             lambda: torch.nn.modules.module.register_module_forward_pre_hook(
                 lambda *_: seen.append(1))]
    for register in hooks:
        hook = register()
        assert ran(lambda: fast.few_tokens(stack, x, n=2))[1] == 0 and seen
        hook.remove()
        seen.clear()
    check(stack, x)
    layer = stack.layers[1]
    layer.forward = lambda x, *rest: type(layer).forward(layer, x, *rest) + 1.0
    found, count = ran(lambda: fast.few_tokens(stack, x))
    with torch.no_grad():
        assert count == 0 and torch.equal(found, stack(x))


def test_a_counter_of_flops_counts_them():
    """eval.py counts the denoiser's; C does its work unseen."""
    stack, x = stack_of(1), torch.randn(1, 3, 32)
    check(stack, x)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fast.few_tokens(stack, x)
    linears = 2 * 3 * (4 * 32 * 32 + 2 * 32 * 48)
    assert linears <= counter.get_total_flops() <= linears + 4 * 3 * 3 * 32


def test_tokens_that_do_not_fit_are_the_stacks_affair():
    stack = stack_of()
    with torch.no_grad():
        assert "1 to 3 of 3 tokens" in few_rows.unsupported(torch.randn(1, 3, 32), stack, 5)
        assert "1 to 3 of 3 tokens" in few_rows.unsupported(torch.randn(1, 3, 32), stack, 0)
        assert "widths" in few_rows.unsupported(torch.randn(1, 3, 64), stack)
        assert fast.few_tokens(stack, torch.randn(1, 3, 32), n=5).shape == (1, 3, 32)
        with pytest.raises(RuntimeError):
            fast.few_tokens(stack, torch.randn(1, 3, 64))


def test_the_first_tokens_see_no_later_ones_where_causal():
    stack, x = stack_of(), torch.randn(2, 4, 32)
    with torch.no_grad():
        expected = stack(x, causal=True)[:, :2]
        with mock.patch.object(backend, "MODE", "torch"):
            torch.testing.assert_close(fast.few_tokens(stack, x, n=2, causal=True), expected)
    torch.testing.assert_close(
        ran(lambda: fast.few_tokens(stack, x, n=2, causal=True))[0], expected, rtol=1e-5, atol=1e-5)


WIDE = dict(denoiser__ff_size=32, denoiser__latent_dim=32, denoiser__num_heads=2,
            vae__latent_dim=32, vae__num_heads=2)


@pytest.mark.parametrize("values", [
    {},
    dict(denoiser__normalize_before=True),
    dict(denoiser__skip_connect=False),
    dict(denoiser__length_token=True),
    dict(denoiser__condition="action", denoiser__num_actions=5),
    dict(vae__latent_size=2),
    dict(denoiser__activation="relu")], ids=str)
def test_generate_gives_the_plain_paths_numbers(values):
    """Within 1e-4, with and without guidance; and in C, but for the VAE."""
    model = make(**WIDE | values)
    for scale in (1.0, 2.5):
        given = dict(lengths=LENGTHS, seed=5, guidance_scale=scale, num_inference_steps=5,
                     **condition(model))
        (features, joints), count = ran(lambda: model.generate(**given))
        assert count >= 5
        with mock.patch.object(backend, "MODE", "torch"):
            (expected, expected_joints), count = ran(lambda: model.generate(**given))
        assert count == 0
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(joints, expected_joints, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------
# Numbers that are kept


def numbers(name, shape):
    """Weights in -1..1, the same everywhere: a hash of each place, seeded with the name."""
    i = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()))
    i = i * np.uint64(2654435761) % np.uint64(2**32)
    i = (i ^ (i >> np.uint64(16))) * np.uint64(73244475) % np.uint64(2**32)
    i = i ^ (i >> np.uint64(16))
    return torch.from_numpy(i.astype(np.float64).reshape(shape) / 2.0**31 - 1)


KEPT = {"post_norm": {}, "pre_norm": dict(normalize_before=True, activation="relu"),
        "three_latents": dict(final_linear=True)}


def kept_case(name):
    """A denoiser in float64, of a width that C takes, and its inputs."""
    cfg = DenoiserConfig(latent_dim=64, num_heads=4, ff_size=96, num_layers=5, max_positions=16,
                         text_encoded_dim=48, **KEPT[name])
    denoiser = Denoiser(cfg).double().eval()
    for key, p in denoiser.named_parameters():
        fan = p.shape[-1] if p.dim() > 1 else 10
        p.data = (p.dim() == 1 and key.endswith("weight")) + numbers(key, p.shape) * (3 / fan)**0.5
    x_t = 1.5 * numbers("x_t", (4, 3 if name == "three_latents" else 1, 64))
    condition = numbers("condition", (4, 1, 48))
    return denoiser, (x_t, torch.tensor([981, 500, 21, 1]), condition)


def exact_sinusoid(positions, dim, shift=0.0):
    """transformer.sinusoid in float64: float32's exp differs by its last bit between processors,
    and a noise level of 981 makes 2e-6 of that."""
    i = torch.arange(dim // 2, dtype=torch.float64)
    return positions.double()[:, None] / 10000.0 ** (i / (dim // 2 - shift))


def exact_angles():
    return mock.patch.object(transformer, "sinusoid", exact_sinusoid)


def keep():
    """Writes the golden file: `python tests/test_few_rows.py`, in float64 by the plain way."""
    with torch.no_grad(), fast.without(*fast.NAMES), exact_angles(), \
            mock.patch.object(backend, "MODE", "torch"):
        outputs = {name: denoiser(*inputs) for name in KEPT
                   for denoiser, inputs in [kept_case(name)]}
    np.savez_compressed(GOLDEN / "denoiser_few_rows.npz", **outputs)


@pytest.mark.parametrize("name", KEPT)
def test_equals_the_kept_denoiser(name):
    """The plain way to 1e-10 in float64; C, and the plain way, to 1e-5 in float32."""
    expected = torch.from_numpy(np.load(GOLDEN / "denoiser_few_rows.npz")[name])
    denoiser, inputs = kept_case(name)
    with torch.no_grad():
        with exact_angles():
            torch.testing.assert_close(denoiser(*inputs), expected, rtol=1e-10, atol=1e-10)
        denoiser, inputs = denoiser.float(), [t.float() for t in inputs]
        found, count = ran(lambda: denoiser(*inputs))
        assert count == 1
        with fast.without(*fast.NAMES), mock.patch.object(backend, "MODE", "torch"):
            plain = denoiser(*inputs)
    for one in (found, plain):
        assert (one - expected).abs().max() < 1e-5 * expected.abs().max()
    assert expected.std() > 0.5  # alive


# --------------------------------------------------------------------------------------------------
# int8


@pytest.mark.parametrize("pre_norm", [False, True])
def test_int8_weights(pre_norm):
    """C reads int8, torch the same weights rounded: one answer, near the exact one; and a change
    of weights is seen."""
    stack, x = stack_of(5, skip=True, pre_norm=pre_norm), torch.randn(2, 3, 32)
    exact, _ = ran(lambda: fast.few_tokens(stack, x))
    few_rows.round_to_int8(stack)
    near, _ = ran(lambda: fast.few_tokens(stack, x))
    assert 1e-4 < (near - exact).norm() / exact.norm() < 0.05
    check(stack, x)
    check(stack, x, n=1)
    stack.load_state_dict({k: v.roll(1, 0) for k, v in stack.state_dict().items()})
    few_rows.round_to_int8(stack)
    check(stack, x)


def read_as_int8(stack):
    """Whether C read this stack's weights as int8 in its last run."""
    return few_rows.packed[stack][1][2] == "int8"


def test_copies_of_an_int8_stack_are_int8():
    stack, x = stack_of(), torch.randn(1, 3, 32)
    few_rows.round_to_int8(stack)
    check(stack, x)
    twin = copy.deepcopy(stack)
    check(twin, x)
    assert read_as_int8(stack) and read_as_int8(twin)
    with torch.no_grad():  # the copy has weights of its own
        twin.layers[0].linear1.weight.neg_()
    check(twin, x)
    check(stack, x)
    assert stack.state_dict().keys() == stack_of().state_dict().keys()


def test_weights_that_are_no_longer_rounded_are_read_as_they_are():
    """Training goes on, or a checkpoint is loaded: the numbers are torch's, not rounded ones."""
    stack, x = stack_of(), torch.randn(1, 3, 32)
    few_rows.round_to_int8(stack)
    check(stack, x)
    stack.load_state_dict({k: v + 0.013 * torch.randn_like(v)
                           for k, v in stack.state_dict().items()})
    check(stack, x)
    assert not read_as_int8(stack)
    few_rows.round_to_int8(stack)
    check(stack, x)
    assert read_as_int8(stack)


def test_int8_weights_of_inference_mode_that_change():
    """They do not say when they change, so C reads them in float32 each time."""
    x = torch.randn(1, 3, 32)
    with torch.inference_mode():
        stack = stack_of()
        few_rows.round_to_int8(stack)
        check(stack, x)
        for change in (lambda w: w.mul_(-1.0), lambda w: w.copy_(torch.randn_like(w))):
            change(stack.layers[0].linear1.weight)
            check(stack, x)
    stack = stack_of()  # of ordinary weights, changed in there
    few_rows.round_to_int8(stack)
    check(stack, x)
    with torch.inference_mode():
        stack.layers[0].linear1.weight.mul_(-1.0)
        check(stack, x)
    assert read_as_int8(stack)


def test_rounding_to_int8():
    weight = torch.tensor([[1.0, -2.54, 0.011], [0.0, 0.0, 0.0]])
    numbers, scale = few_rows.to_int8(weight)
    assert numbers.tolist() == [[50, -127, 1], [0, 0, 0]] and scale[0] == pytest.approx(0.02)
    again, _ = few_rows.to_int8(numbers * scale[:, None])
    assert torch.equal(again, numbers)


def test_int8_models_sample_the_same_in_c_and_torch():
    model = make(**WIDE)
    given = dict(lengths=LENGTHS, seed=5, guidance_scale=2.5, num_inference_steps=5,
                 **condition(model))
    exact = model.generate(**given)[0]
    model.to_precision("int8")
    near = model.generate(**given)[0]
    with mock.patch.object(backend, "MODE", "torch"):
        torch.testing.assert_close(near, model.generate(**given)[0], rtol=1e-4, atol=1e-4)
    assert not torch.equal(near, exact)
    with pytest.raises(ValueError, match="float32, bf16, int8"):
        model.to_precision("int4")


# --------------------------------------------------------------------------------------------------
# bfloat16


def check_bf16(stack, x, **arguments):
    """C's numbers are those of float32 sums over the same weights, rounded once, at the end."""
    found, count = ran(lambda: fast.few_tokens(stack, x, **arguments))
    assert count == 1 and found.dtype == torch.bfloat16
    first = arguments.pop("n", None)
    with torch.no_grad():
        expected = copy.deepcopy(stack).float()(x.float(), **arguments)[:, :first]
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 13), (32, 3)], ids=str)
def test_bf16_weights(shape, pre_norm):
    stack = stack_of(5, skip=True, pre_norm=pre_norm, ff=528).bfloat16()
    x = torch.randn(*shape, 32).bfloat16()
    for arguments in ({}, {"n": 1}, {"causal": True}):
        check_bf16(stack, x, **arguments)


def test_bf16_weights_that_change_are_seen():
    """A weight is read where it lies; a bias and a norm are copied, and copied again."""
    stack, x = stack_of().bfloat16(), torch.randn(1, 3, 32).bfloat16()
    check_bf16(stack, x)
    layer = stack.layers[0]
    for changed in (layer.linear1.weight, layer.linear1.bias, layer.norm2.weight, stack.norm.bias):
        with torch.no_grad():
            changed.mul_(-1)
        check_bf16(stack, x)
    stack.load_state_dict({k: v.roll(1, 0) for k, v in stack.state_dict().items()})
    check_bf16(stack, x)
    check(stack.float(), x.float())  # the same stack in another type
    check_bf16(stack.bfloat16(), x)


def test_bf16_that_c_does_not_read_runs_as_the_stack():
    stack, x = stack_of().bfloat16(), torch.randn(1, 3, 32).bfloat16()
    with torch.no_grad():
        assert "weights' type" in few_rows.unsupported(x, stack_of())
        assert "weights' type" in few_rows.unsupported(x.float(), stack)
        stack.layers[0].norm1.float()
        assert "bfloat16, contiguous" in few_rows.unsupported(x, stack)
    with torch.inference_mode():
        made = stack_of().bfloat16()
        for _ in range(2):
            assert "inference mode" in few_rows.unsupported(x, made)
            found, count = ran(lambda: fast.few_tokens(made, x))
            assert count == 0 and torch.equal(found, made(x))
            made.layers[0].linear1.bias.mul_(-1)


def test_bf16_models_sample_in_c():
    model = make(**WIDE)
    given = dict(lengths=LENGTHS, seed=5, guidance_scale=2.5, num_inference_steps=5,
                 **condition(model))
    exact = model.generate(**given)[0]
    model.to_precision("bf16")
    near, count = ran(lambda: model.generate(**given)[0])
    assert count >= 5 and near.dtype == torch.float32
    assert 1e-4 < (near - exact).norm() / exact.norm() < 0.05


# --------------------------------------------------------------------------------------------------
# Building

SCRIPT = """
import torch
import fast, kernels
from kernels import few_rows
from transformer import Stack
torch.manual_seed(0)
stack, x = Stack(1, 32, 2, 32).eval(), torch.randn(1, 3, 32)
with torch.no_grad():
    torch.testing.assert_close(fast.few_tokens(stack, x), stack(x))
print(kernels.summary(), "|", few_rows.library("float32", "few_rows"))
"""


def build(tmp_path, **env):
    done = warm.run("-c", SCRIPT, **{"XDG_CACHE_HOME": tmp_path, **env})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_built_once_and_kept(tmp_path):
    assert "few_rows c x1" in build(tmp_path)
    def times():
        return {f.name: f.stat().st_mtime_ns for f in (tmp_path / "nanomld").iterdir()}

    before = times()
    assert "few_rows c x1" in build(tmp_path) and times() == before
    library, = (tmp_path / "nanomld").glob("*.so")
    library.write_bytes(library.read_bytes()[:5000])  # loading this kills a process
    assert "few_rows c x1" in build(tmp_path) and library.stat().st_size > 5000


def test_without_a_compiler_plain_torch_runs(tmp_path):
    assert ("few_rows c" not in (out := build(tmp_path, CC="/no/such/compiler"))
            and "could not be built" in out)
    assert "few_rows c" not in (out := build(tmp_path, CC="false")) and "could not be built" in out
    assert not list((tmp_path / "nanomld").iterdir())  # nothing half built stays behind
    assert "there is no C compiler" in build(tmp_path, CC="", PATH="")
    (tmp_path / "file").write_text("")  # no folder, but a private library will do
    assert "few_rows c x1" in build(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file"))


if __name__ == "__main__":
    keep()
