"""few_rows.c, a whole stack in one call of C, against the plain torch path it stands in for."""
import copy
import gc
import os
import subprocess
import sys
import weakref
from unittest import mock

import pytest
import torch

import fast
from conftest import ROOT
from kernels import backend, few_rows
from test_mld import LENGTHS, condition, make
from transformer import Stack

pytestmark = pytest.mark.skipif(isinstance(few_rows.library(), str),
                                reason=f"NOT TESTED: {few_rows.library()}")


@pytest.fixture(autouse=True)
def all_rows(monkeypatch):
    """Also where the compiler has no OpenMP, and C therefore takes few rows only."""
    for int8 in (False, True):
        monkeypatch.setattr(few_rows.library(int8), "max_rows", few_rows.MAX_ROWS)


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
        assert "float32" in few_rows.unsupported(x, stack)
    with torch.no_grad(), mock.patch.object(backend, "MODE", "torch"):
        assert "must be auto" in few_rows.unsupported(x, stack)


def test_one_thread_takes_fewer_rows(monkeypatch):
    monkeypatch.setattr(few_rows.library(False), "max_rows", few_rows.FEWEST)
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
    assert count == 0 and torch.equal(found, stack(x))
    change(stack)
    assert ran(lambda: fast.few_tokens(stack, x))[1] == 0


@pytest.mark.parametrize("change", [of_another_activation, of_another_eps])
def test_layers_of_different_settings_run_as_the_stack(change):
    stack, x = stack_of(), torch.randn(1, 3, 32)
    change(stack)
    found, count = ran(lambda: fast.few_tokens(stack, x))
    assert count == 0 and torch.equal(found, stack(x))


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
print(kernels.summary(), "|", few_rows.library())
"""


def build(tmp_path, **env):
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **env}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True,
                         check=True)
    return run.stdout


def test_built_once_and_kept(tmp_path):
    assert "few_rows c x1" in build(tmp_path)
    library, = (tmp_path / "nanomld").iterdir()
    before = library.stat().st_mtime_ns
    assert "few_rows c x1" in build(tmp_path)
    assert [f.stat().st_mtime_ns for f in (tmp_path / "nanomld").iterdir()] == [before]


def test_without_a_compiler_plain_torch_runs(tmp_path):
    assert ("few_rows c" not in (out := build(tmp_path, CC="/no/such/compiler"))
            and "could not be built" in out)
    assert "few_rows c" not in (out := build(tmp_path, CC="false")) and "could not be built" in out
    assert not list((tmp_path / "nanomld").iterdir())  # nothing half built stays behind
    assert "there is no C compiler" in build(tmp_path, CC="", PATH="")
    (tmp_path / "file").write_text("")
    assert "could not be built" in build(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file"))
