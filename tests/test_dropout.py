"""dropout.c drops what its definition says, with the right statistics, forward and backward."""
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import kernels
from conftest import for_avx2
from kernels import backend, dropped_attention
from transformer import Layer

dropouts = sys.modules["kernels.dropout"]  # kernels.dropout is the function
LIBRARY = dropouts.library()
pytestmark = [
    pytest.mark.skipif(isinstance(LIBRARY, str), reason=f"NOT TESTED: {LIBRARY}"),
    pytest.mark.skipif(backend.MODE != "auto", reason="about the C code")]
EDGE = 2**62 - 1


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def mix(x):
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def kept(seed, rows, columns, p, first=0):
    """The definition, in numpy -> (rows, columns) bool."""
    numbers = (np.arange(rows, dtype=np.uint64) + np.uint64(first)).astype(np.uint32)
    keys = mix(mix(numbers ^ np.uint32(seed & 0xFFFFFFFF)) + np.uint32(seed >> 32))
    spread = np.arange(columns, dtype=np.uint32) * np.uint32(0x9E3779B1)
    return torch.tensor(mix(keys[:, None] ^ spread) >> np.uint32(8) >= round(p * 2**24))


def drop(x, seed, p, first=0, made=LIBRARY):
    """dropout.c itself on x (R, C) float32, whose first row has the number `first`."""
    y = torch.full_like(x, torch.nan)
    made.drop(x.data_ptr(), None, y.data_ptr(), False, False,
              *dropouts.rule(seed, p, *x.shape, first))
    return y


@pytest.fixture(scope="module", params=["as built", "AVX2"])
def made(request, tmp_path_factory):
    """The library as it is here, and for a processor without AVX-512."""
    if request.param == "as built":
        return LIBRARY
    return for_avx2("dropout.c", dropouts.SIGNATURES, tmp_path_factory.mktemp("avx2"))


# --------------------------------------------------------------------------------------------------
# What is dropped


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32, 0x123456789ABCDEF, EDGE])
@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 15), (2, 16), (3, 17), (5, 31), (4, 198)])
def test_the_definition(rows, columns, seed, made):
    x = torch.randn(rows, columns)
    for first in (0, 2**31 - 2, 2**32 - rows):  # with 198 columns, far more than 2^31 elements
        found = drop(x, seed, 0.3, first, made)
        expected = torch.where(kept(seed, rows, columns, 0.3, first), x / 0.7, 0.0)
        assert torch.equal(found == 0, expected == 0)
        torch.testing.assert_close(found, expected)


def test_far_rows_do_not_repeat_near_ones():
    """2^31 elements on, and at every power of two of the row, others are dropped."""
    x = torch.ones(16, 256)
    masks = [drop(x, 7, 0.5, first) != 0 for first in [0, *(2**n for n in range(5, 32))]]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs((a == b).double().mean() - 0.5) < 5.5 * 0.5 / 64  # sqrt(4096)


def test_threads_share_the_rows(monkeypatch):
    x = torch.randn(37, 5000)
    expected = drop(x, 5, 0.1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(drop(x, 5, 0.1), expected)


# --------------------------------------------------------------------------------------------------
# Statistics. Bounds are five standard deviations or more; seeds are fixed, so nothing flickers.


@pytest.mark.parametrize("p", [1e-4, 0.1, 0.5, 0.9, 0.9999])
def test_share_and_mean(p):
    y, N = kernels.dropout(torch.ones(1000, 1000), p).double(), 10**6
    deviation = math.sqrt(p * (1 - p) / N)
    assert abs((y == 0).double().mean() - p) < 5 * deviation
    assert abs(y.mean() - 1) < 5 * deviation / (1 - p)
    assert len(y.unique()) == 2 and abs(y.max() * (1 - p) - 1) < 1e-3


def correlation(a, b, p):
    """In standard deviations of what independent masks would have."""
    a, b = a.double() - (1 - p), b.double() - (1 - p)
    return abs((a * b).sum() / (p * (1 - p) * math.sqrt(a.numel())))


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("columns", [3, 64, 198, 1024])
def test_elements_are_independent(columns, p):
    """Along a row, along a column and across both, near and far."""
    mask = drop(torch.ones(400_000 // columns, columns), 11, p) != 0
    for down in (0, 1, 2, 3, 16, 198):
        for right in (0, 1, 2, 7, 8, 15, 16, 32, 64, 512):
            if (down or right) and right < columns:
                a, b = mask[down:, right:], mask[:len(mask) - down, :columns - right]
                assert correlation(a, b, p) < 5


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_rows_and_columns_vary_as_independent_elements_do(p):
    mask = (drop(torch.ones(2000, 500), 12, p) != 0).double()
    for sums, count in ((mask.sum(0), 2000), (mask.sum(1), 500)):
        ratio = (sums - count * (1 - p)).square().mean() / (count * p * (1 - p))
        assert abs(ratio - 1) < 5 * math.sqrt(2 / len(sums))


def test_every_pattern_of_eight_neighbours_is_equally_likely():
    mask = (drop(torch.ones(4096, 64), 13, 0.5) != 0).view(4096, 8, 8)
    for eight in (mask, mask.mT):
        found = (eight.long() * 2**torch.arange(8)).sum(-1).flatten().bincount(minlength=256)
        mean = 4096 * 8 / 256
        chi_square = ((found - mean)**2 / mean).sum()
        assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


def test_seeds_are_independent():
    """Also those that differ in one bit, or by one."""
    x = torch.ones(256, 256)
    seeds = [2**40 + 5, *(2**40 + 5 ^ 1 << bit for bit in range(62)), 2**40 + 6, EDGE]
    masks = [drop(x, seed, 0.3) != 0 for seed in seeds]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert correlation(a, b, 0.3) < 6  # the largest of 2,000


def test_calls_are_independent_and_repeated_by_their_seed():
    x = torch.ones(300, 300)
    before = torch.get_rng_state()
    first = [kernels.dropout(x, 0.2) for _ in range(8)]
    assert all(correlation(a != 0, b != 0, 0.2) < 5
               for i, a in enumerate(first) for b in first[:i])
    torch.set_rng_state(before)  # as when a training resumes
    assert all(torch.equal(a, kernels.dropout(x, 0.2)) for a in first)
    torch.set_rng_state(before)
    torch.randint(2**62, (8,))  # one draw a call
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    [kernels.dropout(x, 0.2) for _ in range(8)]
    assert torch.equal(torch.get_rng_state(), after)


# --------------------------------------------------------------------------------------------------
# Every kind of tensor


def seed_of(call, seed=3):
    """-> what call() gives, and the seed that it drew."""
    torch.manual_seed(seed)
    drawn = dropouts.draw_seed()
    torch.manual_seed(seed)
    return call(), drawn


@pytest.mark.parametrize("dtype, dtype_r", [
    (torch.float32, None), (torch.bfloat16, None), (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("shape", [(1,), (37,), (5, 16), (3, 5, 50), (2, 3, 4, 33)], ids=str)
def test_forward_and_backward(shape, dtype, dtype_r):
    x = torch.randn(shape).to(dtype).requires_grad_()
    r = None if dtype_r is None else torch.randn(shape).to(dtype_r).requires_grad_()
    y, seed = seed_of(lambda: kernels.dropout(x, 0.4, r))
    z = dropouts.factors(shape, seed, 0.4)
    assert y.dtype == (dtype_r or dtype) and y.grad_fn.name() == "DropoutBackward"
    exact = x.detach().float() * z + (0 if r is None else r.detach().float())
    torch.testing.assert_close(y, exact.to(y.dtype), rtol=0.01 if y.dtype == torch.bfloat16 else
                               1e-6, atol=1e-6)
    dy = torch.randn(shape).to(y.dtype)
    dx, *dr = torch.autograd.grad(y, [x] if r is None else [x, r], dy)
    assert dx.dtype == x.dtype and torch.equal(dx == 0, (z == 0).view(shape))
    torch.testing.assert_close(dx, (dy.float() * z).to(dtype), rtol=2**-7, atol=0)
    assert r is None or torch.equal(dr[0], dy)


def test_bfloat16_is_rounded_to_the_nearest():
    x = torch.arange(-2**15, 2**15).to(torch.int16).view(torch.bfloat16)  # all there are
    y = kernels.dropout(x, 0.3).view(torch.int16)
    expected = (x.float() * (1 / torch.tensor(0.7))).bfloat16()
    stays = (y != 0) & ~expected.isnan()
    assert torch.equal(y[stays], expected.view(torch.int16)[stays]) and stays.sum() > 40_000
    nan = (y != 0) & expected.isnan()
    assert y.view(torch.bfloat16)[nan].isnan().all() and nan.sum() > 100


@pytest.mark.parametrize("change", [
    lambda t: t.mT, lambda t: t[:, ::2], lambda t: t[1:, 1:], lambda t: t[:, :1].expand(-1, 9),
    lambda t: t.flatten()[1:], lambda t: t.bfloat16().flatten()[1:]])
def test_strides_and_odd_addresses(change):
    x = change(torch.randn(20, 34) + 10)
    before = x.clone()
    y, seed = seed_of(lambda: kernels.dropout(x, 0.3))
    torch.testing.assert_close(y.float(), x.float() * dropouts.factors(x.shape, seed, 0.3),
                               rtol=2**-7, atol=0)
    assert torch.equal(x, before)
    y, seed = seed_of(lambda: kernels.dropout(x, 0.3, in_place=True))
    torch.testing.assert_close(y.float(), before.float() * dropouts.factors(x.shape, seed, 0.3),
                               rtol=2**-7, atol=0)


def test_ends_of_the_range():
    x = torch.randn(40, 40)
    assert kernels.dropout(x, 0.0) is x and torch.equal(kernels.dropout(x, 0.0, x), x + x)
    assert not kernels.dropout(x, 1.0).any()
    y = kernels.dropout(torch.ones(2048, 1024), 1 - 2**-16)  # 32 stay
    assert 4 < (y != 0).sum() < 60 and set(y.unique().tolist()) == {0, 2**16}
    for empty in (torch.zeros(0), torch.zeros(3, 0), torch.zeros(0, 3)):
        assert kernels.dropout(empty, 0.5).shape == empty.shape
    assert kernels.dropout(torch.tensor(3.0), 0.5).item() in (0, 6)


def test_nan_and_infinity_stay_visible():
    y = kernels.dropout(torch.full((50, 50), torch.nan), 0.2)
    assert y.isnan().sum() > 1800 and not y[~y.isnan()].any()
    assert kernels.dropout(torch.full((50, 50), torch.inf), 0.2).isinf().sum() > 1800


def test_second_derivatives():
    x = torch.randn(6, 20, requires_grad=True)
    y, seed = seed_of(lambda: kernels.dropout(x, 0.3))
    z = dropouts.factors(x.shape, seed, 0.3)
    first, = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    second, = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, 6 * z**3 * x.detach())
    dy = torch.randn(4, 6, 20)  # four gradients at once
    found, = torch.autograd.grad(y, x, dy, is_grads_batched=True)
    torch.testing.assert_close(found, dy * z)


# --------------------------------------------------------------------------------------------------
# Attention


@pytest.mark.parametrize("threads", [1, 6])  # with 6, four samples at a time
@pytest.mark.parametrize("lengths", [None, [5, 0, 17, 3, 1], [33, 33, 33, 33, 33]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_equals_plain_torch(lengths, threads, dtype, monkeypatch):
    (B, H, L, M, D), p = (5, 3, 19, 33, 8), 0.3
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    q, k, v = (torch.randn(B, size, H, D).to(dtype).transpose(1, 2).requires_grad_()
               for size in (L, M, M))
    n = None if lengths is None else torch.tensor(lengths)
    o, seed = seed_of(lambda: kernels.attention(q, k, v, n, dropout_p=p))
    assert o.grad_fn.name() == "DroppedAttentionBackward" and o.dtype == dtype
    assert o.transpose(1, 2).is_contiguous()
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    z = kept(seed, B * H * L, M, p).view(B, H, L, M) / (1 - p)
    probabilities = []
    for b, count in enumerate(lengths or [M] * B):
        s = exact[0][b] @ exact[1][b, :, :count].mT / math.sqrt(D)
        probabilities.append((s.softmax(-1) * z[b, :, :, :count]) @ exact[2][b, :, :count])
    expected, do = torch.stack(probabilities), torch.randn_like(o)
    found = o, *torch.autograd.grad(o, (q, k, v), do)
    expected = expected, *torch.autograd.grad(expected, exact, do.double())
    for a, e in zip(found, expected):
        error = (a.double() - e).norm() / e.norm()
        assert error < (1e-6 if dtype == torch.float32 else 5e-3)


def test_attention_never_reads_padding():
    q, k, v = (torch.randn(4, 2, 20, 8) for _ in range(3))
    lengths = torch.tensor([20, 7, 12, 1])
    found = []
    for filling in (0.0, torch.nan):
        for b, count in enumerate(lengths):
            k[b, :, count:] = v[b, :, count:] = filling
        for threads in (1, 4):
            inputs = [t.clone().requires_grad_() for t in (q, k, v)]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "get_num_threads", lambda: threads)
                torch.manual_seed(1)
                o = kernels.attention(*inputs, lengths, dropout_p=0.2)
                found.append((o, *torch.autograd.grad(o.square().sum(), inputs)))
    for other in found[1:]:
        for a, b in zip(found[0], other):
            assert a.isfinite().all()
            torch.testing.assert_close(a, b)


def test_attention_preserves_the_mean():
    q, k, v = (torch.randn(1, 1, 6, 8).expand(4000, 1, 6, 8) for _ in range(3))
    o = kernels.attention(q, k, v, dropout_p=0.2)
    expected = kernels.attention(q[:1], k[:1], v[:1])[0]
    assert ((o.mean(0) - expected).abs() < 5 * o.std(0) / math.sqrt(4000)).all()


def test_second_derivatives_of_attention():
    q, k, v = (torch.randn(2, 2, 5, 4, requires_grad=True) for _ in range(3))
    n, w = torch.tensor([5, 3]), torch.randn(2, 2, 5, 4)
    o, seed = seed_of(lambda: kernels.attention(q, k, v, n, dropout_p=0.3))
    plain = dropped_attention.plain(q, k, v, [5, 3], seed, 0.3)
    torch.testing.assert_close(o, plain)
    results = []
    for out in (o, plain):
        first = torch.autograd.grad(out, (q, k, v), w, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), (q, k, v),
                                           retain_graph=True))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)
    found, = torch.autograd.grad(o, v, torch.stack((w, 2 * w)), is_grads_batched=True)
    torch.testing.assert_close(found[1], 2 * torch.autograd.grad(plain, v, w)[0])


# --------------------------------------------------------------------------------------------------
# Where it is used, and where not


@pytest.mark.parametrize("settings", [
    {}, {"cross": True}, {"pre_norm": True}, {"pre_norm": True, "cross": True},
    {"activation": "relu"}, {"activation": "quick_gelu"}], ids=str)
def test_layers_in_training_use_it(settings, monkeypatch):
    """They never call torch's own, and every gradient is that of a second run with the same seed,
    by differences along a random direction."""
    monkeypatch.setattr(torch, "dropout", pytest.fail)
    monkeypatch.setattr(F, "dropout", pytest.fail)
    monkeypatch.setattr(F, "scaled_dot_product_attention", pytest.fail)
    layer = Layer(16, 2, 32, 0.1, 0.1, **settings).train()
    x, memory, lengths = torch.randn(3, 7, 16), torch.randn(3, 2, 16), torch.tensor([7, 2, 5])

    def loss():
        torch.manual_seed(9)
        return layer(x, lengths, memory if settings.get("cross") else None).double().sin().sum()

    loss().backward()
    direction = [torch.randn_like(p) for p in layer.parameters()]
    slope = sum((p.grad * d).double().sum() for p, d in zip(layer.parameters(), direction))
    sides = []
    for step in (1e-3, -2e-3):
        with torch.no_grad():
            for p, d in zip(layer.parameters(), direction):
                p += step * d
            sides.append(loss())
    relu = settings.get("activation") == "relu"  # has corners
    assert abs((sides[0] - sides[1]) / 2e-3 - slope) < (0.05 if relu else 0.01) * max(abs(slope), 1)


def test_autocast():
    """A bfloat16 change is added to a float32 residual, and each gets a gradient of its type."""
    layer = Layer(16, 2, 32, 0.1, 0.1).train()
    x = torch.randn(3, 7, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.float32 and y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def torchs_own(x, **settings):
    torch.manual_seed(4)
    expected = F.dropout(x, 0.4)
    torch.manual_seed(4)
    return torch.equal(kernels.dropout(x, 0.4, **settings), expected)


def test_torchs_own_where_c_cannot(monkeypatch):
    x = torch.randn(30, 40)
    assert not torchs_own(x)
    assert torchs_own(x.double()) and torchs_own(x.half())
    for owner, name, value in (
            (dropouts, "library", lambda: "there is no C compiler"), (backend, "MODE", "torch"),
            (torch.compiler, "is_compiling", lambda: True),
            (torch.jit, "is_tracing", lambda: True)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert torchs_own(x) and torchs_own(x, in_place=True)
            q = torch.randn(2, 2, 5, 4)
            assert not dropped_attention.fits(q, q, q, False, 0.1)
    with FlopCounterMode(display=False):
        assert dropouts.unsupported(x, 0.1)
    q = torch.randn(2, 2, 5, 4)
    assert dropped_attention.fits(q, q, q, False, 0.1)
    assert not dropped_attention.fits(q, q, q, True, 0.1)
    assert not dropped_attention.fits(q, q, q, False, 0.0)
    for shape in ((2**32, 1), (1, 2**32)):
        assert "32 bits" in dropouts.unsupported(torch.zeros(1, 1).expand(shape), 0.1)


def test_transforms_of_functions():
    x = torch.randn(5, 30)
    y = torch.func.vmap(lambda row: kernels.dropout(row, 0.3), randomness="different")(x)
    assert y.shape == x.shape and (y == 0).any()
    g = torch.func.grad(lambda t: kernels.dropout(t, 0.3).sum())(x)
    _, tangent = torch.func.jvp(lambda t: kernels.dropout(t, 0.3), (x,), (torch.ones_like(x),))
    for found in (g, tangent):
        torch.testing.assert_close(found.unique(), torch.tensor([0, 1 / 0.7]))
