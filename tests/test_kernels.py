"""Each kernel equals its definition in float64, and the path that is asked for is what runs.

On a machine with a GPU `pytest tests/test_kernels.py` runs every case on it. Without one the same
cases run in Triton's interpreter, in a process of their own that test_kernels_interpreter.py
starts; what remains here is the torch path.
"""
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import warm

import kernels
from conftest import ROOT
from kernels import backend, tiles

if backend.INTERPRETED:
    import interpreter_harness  # noqa: F401 (every launch is watched, and torch.empty gives NaN)
DEVICE = "cpu" if backend.INTERPRETED else "cuda" if torch.cuda.is_available() else None
on_kernels = pytest.mark.skipif(
    DEVICE is None,
    reason="NOT RUN on a GPU, there is none: test_kernels_interpreter.py "
    "runs these cases in Triton's interpreter",
)
on_torch = pytest.mark.skipif(backend.INTERPRETED, reason="about the torch path")
attention_kernels = sys.modules["kernels.attention"]
# relative L2 error against float64
BOUND = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def setup(monkeypatch):
    torch.manual_seed(0)
    if DEVICE == "cuda":  # as in the interpreter: what nobody wrote is NaN
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        monkeypatch.setattr(backend, "MODE", "triton")
    yield
    if DEVICE == "cuda":
        torch.use_deterministic_algorithms(False)


def close(found, expected, dtype, looser=1.0):
    assert found.shape == expected.shape and found.isfinite().all()
    expected, unit = expected.double(), math.sqrt(expected.numel())
    # a single key's gradient is nothing but rounding
    size = expected.norm() if expected.norm() > 1e-6 * unit else unit
    error = (found.double() - expected).norm() / size
    assert error < looser * BOUND[dtype], f"relative error {error:.1e}"


# --------------------------------------------------------------------------------------------------
# Attention


def plain_attention(q, k, v, lengths=None, causal=False, keep=1.0):
    """The definition, in the type of its arguments; keep (B, H, Lq, Lk): dropout's factors."""
    s = q @ k.mT / math.sqrt(q.shape[-1])
    i, j = (torch.arange(n, device=s.device) for n in s.shape[2:])
    seen = torch.ones_like(s, dtype=torch.bool)
    if lengths is not None:
        seen = seen & (j < lengths[:, None, None, None])
    if causal:
        seen = seen & (j <= i[:, None])
    # a row without keys: NaN, then 0
    p = s.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)
    return (p * keep) @ v


def choose_form(monkeypatch, whole):
    """Make the backward run in one pass (where it exists), or in two phases."""
    if whole and DEVICE == "cuda" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("the one-pass backward needs sm_90")

    def chosen(Lq, Lk, D, dtype, arch, programs=1, dropout=False):
        return tiles.attention_tiles(Lq, Lk, D, dtype, 90 if whole else 80, 256, dropout)

    monkeypatch.setattr(attention_kernels, "attention_tiles", chosen)


def check_attention(q, k, v, lengths, causal, dtype, keep=1.0, dropout_p=0.0, seed=None):
    """Forward and gradients of the kernels against the definition in float64."""
    inputs = [t.detach().requires_grad_() for t in (q, k, v)]
    if seed is not None:
        torch.manual_seed(seed)
    o = kernels.attention(*inputs, lengths, causal, dropout_p)
    do = torch.randn(o.shape, dtype=dtype, device=o.device)
    found = torch.autograd.grad(o, inputs, do)
    exact = [t.detach().double() for t in (q, k, v)]
    if lengths is not None:  # the definition does not see what stands behind a length
        behind = torch.arange(k.shape[2], device=k.device) >= lengths[:, None]
        exact[1:] = [t.masked_fill(behind[:, None, :, None], 0) for t in exact[1:]]
    exact = [t.requires_grad_() for t in exact]
    expected = plain_attention(*exact, lengths, causal, keep)
    close(o, expected, dtype)
    exact_gradients = torch.autograd.grad(expected, exact, do.double())
    for name, gradient, exact_gradient in zip("qkv", found, exact_gradients):
        # bfloat16 at few keys, where ds nearly cancels: up to 9e-3
        close(gradient, exact_gradient, dtype, looser=1.5)
        if lengths is not None and name != "q":
            assert not gradient.masked_select(behind[:, None, :, None]).any()
    if lengths is not None:
        assert not o[lengths == 0].any()
    assert o.transpose(1, 2).is_contiguous()


# what a length is a multiple of means something to the compiler, and nothing to the interpreter,
# which takes as long for 199 keys as for all the shorter ones
LENGTHS = [1, 3, 17, 63, 64, 65, *(() if backend.INTERPRETED else (16, 198, 199, 200))]
CASES = [
    (L, dtype, causal, whole)
    for L in LENGTHS
    for causal in (False, True)
    for dtype, whole in [
        (torch.bfloat16, True),
        (torch.bfloat16, False),
        (torch.float16, L % 2 == causal),
        (torch.float32, False),
    ]
]
if backend.INTERPRETED:
    CASES += [(199, torch.bfloat16, False, True), (199, torch.bfloat16, True, False),
              (199, torch.float32, False, False)]


@on_kernels
@pytest.mark.parametrize("L, dtype, causal, whole", CASES)
def test_attention(L, dtype, causal, whole, monkeypatch):
    """A full row, a half-full one and one without any key; q, k, v are slices of one fused
    projection, without copies; what stands behind a length is NaN."""
    choose_form(monkeypatch, whole)
    D = 64 if dtype != torch.float32 or L < 100 else 32
    q, k, v = torch.randn(3, L, 3, 1, D, device=DEVICE).to(dtype).permute(2, 0, 3, 1, 4)
    lengths = torch.tensor([L, (L + 1) // 2, 0], device=DEVICE)
    for i, n in enumerate(lengths.tolist()):
        k[i, :, n:], v[i, :, n:] = torch.nan, torch.nan
    with kernels.expect("triton"):
        check_attention(q, k, v, lengths, causal, dtype)


@on_kernels
@pytest.mark.parametrize("D", [16, 24, 32, 48, 96, 128])
@pytest.mark.parametrize("whole", [True, False])
def test_attention_of_any_head_width(D, whole, monkeypatch):
    choose_form(monkeypatch, whole)
    for dtype in (torch.bfloat16, torch.float32)[:1 if whole else 2]:
        q, k, v = (torch.randn(1, 2, 33, D, device=DEVICE).to(dtype) for _ in range(3))
        check_attention(q, k, v, torch.tensor([30], device=DEVICE), D % 32 == 0, dtype)


@on_kernels
@pytest.mark.parametrize("Lq, Lk, whole", [
    (198, 7, True), (198, 7, False), (5, 130, True), (5, 130, False), (64, 1, False),
    (1, 300, True)])
def test_cross_attention(Lq, Lk, whole, monkeypatch):
    choose_form(monkeypatch, whole)
    q, k, v = (torch.randn(2, 2, L, 16, device=DEVICE).to(torch.bfloat16) for L in (Lq, Lk, Lk))
    check_attention(q, k, v, None, False, torch.bfloat16)
    check_attention(q, k, v, torch.tensor([Lk, Lk // 2], device=DEVICE), False, torch.bfloat16)


@on_kernels
def test_attention_of_512_and_of_expanded_gradients(monkeypatch):
    q, k, v = (torch.randn(1, 1, 512, 16, device=DEVICE, dtype=torch.float16) for _ in range(3))
    check_attention(q, k, v, torch.tensor([500], device=DEVICE), True, torch.float16)
    q, k, v = (torch.randn(2, 1, 5, 16, device=DEVICE, requires_grad=True) for _ in range(3))
    # a gradient with strides of 0
    found = torch.autograd.grad(kernels.attention(q, k, v).sum(), (q, k, v))
    expected = plain_attention(q.double(), k.double(), v.double()).sum()
    expected = torch.autograd.grad(expected, (q, k, v))
    for a, b in zip(found, expected):
        close(a, b, torch.float32)


def dropout_factors(L, p, seed):
    """The factors that kernels.attention applies, seen from outside: equal scores, values that
    tell the keys apart."""
    zero, found = torch.zeros(1, 2, L, 64, device=DEVICE), []
    for first in range(0, L, 64):
        torch.manual_seed(seed)
        v = torch.eye(L, 64 + first, device=DEVICE)[:, first:].expand(1, 2, L, 64)
        # (1, 2, L, 64): each probability is 1 / L
        found.append(kernels.attention(zero, zero, v, dropout_p=p) * L)
    return torch.cat(found, -1)[..., :L].double()


@on_kernels
def test_attention_dropout():
    """Its rate is right, its seed repeats it, another seed changes it, and every key and query
    has its own."""
    factors = dropout_factors(100, 0.1, seed=5)
    values = factors.unique()
    assert len(values) == 2 and values[0] == 0 and abs(values[1] - 1 / 0.9) < 1e-6
    dropped = (factors == 0).double()
    assert abs(dropped.mean() - 0.1) < 4 * math.sqrt(0.09 / dropped.numel())
    for dim in (2, 3):  # over queries, over keys: no row and no column stands out
        rates = dropped.mean(dim)
        assert rates.max() < 0.27 and 0.02 < rates.std() < 0.04  # 100 draws each: 0.1 +- 0.03
    assert torch.equal(factors, dropout_factors(100, 0.1, seed=5))
    others = [factors.roll(1, dim) for dim in (1, 2, 3)]
    for other in (dropout_factors(100, 0.1, seed=6), *others):
        both = ((factors == 0) & (other == 0)).double().mean()
        assert abs(both - 0.01) < 0.004  # independent: 0.1 * 0.1


@on_kernels
@pytest.mark.parametrize(
    "dtype, whole", [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
def test_attention_dropout_backward_drops_what_the_forward_dropped(dtype, whole, monkeypatch):
    choose_form(monkeypatch, whole)
    L = 40 if dtype == torch.float32 else 140
    factors = dropout_factors(L, 0.3, seed=7)
    q, k, v = (torch.randn(1, 2, L, 32, device=DEVICE).to(dtype) for _ in range(3))
    lengths = torch.tensor([L - 3], device=DEVICE)
    check_attention(q, k, v, lengths, True, dtype, factors, dropout_p=0.3, seed=7)


# --------------------------------------------------------------------------------------------------
# Residual + layer norm, linear + GELU


@on_kernels
@pytest.mark.parametrize("C", [256, 200, 33, 768])
@pytest.mark.parametrize("R", [1, 5, 37])
@pytest.mark.parametrize("x_dtype, r_dtype", [
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16), (torch.bfloat16, torch.float32), (torch.float32, None),
    (torch.bfloat16, None)])
def test_add_layer_norm(R, C, x_dtype, r_dtype):
    """Forward and gradients, the second output used or not; x and residual of different types, as
    under autocast."""
    x, weight, bias = torch.randn(R, C) * 3 + 1, torch.randn(C), torch.randn(C)
    inputs = [t.to(DEVICE, x_dtype) for t in (x, weight, bias)]
    inputs += [torch.randn(R, C).to(DEVICE, r_dtype)] if r_dtype else []
    inputs = [t.requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    for return_sum in (False, True):
        with kernels.expect("triton"):
            residual = inputs[3] if r_dtype else None
            y = kernels.add_layer_norm(inputs[0], residual, *inputs[1:3], return_sum=return_sum)
        s = exact[0] + exact[3] if r_dtype else exact[0]
        outputs = (F.layer_norm(s, (C,), exact[1], exact[2]), s)[:1 + return_sum]
        y = y if return_sum else (y,)
        grads = [torch.randn(R, C, device=DEVICE).to(t.dtype) for t in y]
        for a, b in zip(y, outputs):
            close(a, b, x_dtype)
        expected = torch.autograd.grad(outputs, exact, [g.double() for g in grads])
        for a, b in zip(torch.autograd.grad(y, inputs, grads), expected):
            close(a, b, x_dtype)


@on_kernels
def test_add_layer_norm_of_many_rows(monkeypatch):
    """There are more tiles than programs in the backward, so each adds up several; the result is
    the same each time, bit for bit."""
    layer_norm_kernels = sys.modules["kernels.layer_norm"]
    seven = lambda R, C: (*tiles.row_tiles(R, C)[:3], 7)
    monkeypatch.setattr(layer_norm_kernels, "row_tiles", seven)
    inputs = [torch.randn(2, 61, 64), torch.randn(2, 61, 64).mT.contiguous().mT, torch.randn(64),
              torch.randn(64)]
    inputs = [t.to(DEVICE).requires_grad_() for t in inputs]
    grads = [torch.autograd.grad(kernels.add_layer_norm(*inputs).square().sum(), inputs)
             for _ in range(2)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = F.layer_norm(exact[0] + exact[1], (64,), *exact[2:]).square().sum()
    expected = torch.autograd.grad(expected, exact)
    for a, b, c in zip(*grads, expected):
        assert torch.equal(a, b)
        close(a, c, torch.float32)


@on_kernels
@pytest.mark.parametrize("seed", [3, 2**61 + 12345])
def test_a_cpu_drops_the_same_elements(seed):
    """dropout.c and the Triton kernels use the same numbers for the same seed."""
    from kernels import operators
    from kernels.dropout import factors

    drawn, w = torch.tensor([seed], device=DEVICE), torch.ones(96, device=DEVICE)
    x = torch.ones(50, 96, device=DEVICE)
    s = operators.add_layer_norm(x, None, w, w, drawn, 1e-5, 0.2, True, x.dtype)[1]
    torch.testing.assert_close(s.cpu(), factors((50, 96), seed, 0.2))
    q, k = torch.zeros(2, 3, 16, 32, device=DEVICE), torch.zeros(2, 3, 32, 32, device=DEVICE)
    v = torch.eye(32, device=DEVICE).expand(2, 3, 32, 32)  # so the output is the probabilities
    o = operators.attention(q, k, v, None, drawn, False, 0.2)[0] * 32
    torch.testing.assert_close(o.cpu().contiguous(), factors((2, 3, 16, 32), seed, 0.2))


@on_kernels
@pytest.mark.parametrize("r_dtype", [torch.float32, None])
def test_add_layer_norm_dropout(r_dtype):
    x, r, w, b = (torch.randn(size, device=DEVICE, requires_grad=True)
                  for size in ((50, 96), (50, 96), 96, 96))
    residual = r if r_dtype else None
    torch.manual_seed(3)
    y, s = kernels.add_layer_norm(x, residual, w, b, dropout_p=0.2, return_sum=True)
    factors = ((s - (r if r_dtype else 0)) / x).detach().double().mul(0.8).round() / 0.8
    assert abs((factors == 0).double().mean() - 0.2) < 4 * math.sqrt(0.16 / x.numel())
    assert len(factors.unique()) == 2
    exact = [t.detach().double().requires_grad_() for t in (x, r, w, b)]
    expected_s = exact[0] * factors + (exact[1] if r_dtype else 0)
    expected_y = F.layer_norm(expected_s, (96,), exact[2], exact[3])
    close(y, expected_y, torch.float32)
    dy, ds = torch.randn_like(y), torch.randn_like(s)
    used = [0, 1, 2, 3] if r_dtype else [0, 2, 3]
    found = torch.autograd.grad((y, s), [(x, r, w, b)[i] for i in used], (dy, ds))
    expected = torch.autograd.grad((expected_y, expected_s), [exact[i] for i in used],
                                   (dy.double(), ds.double()))
    for a, e in zip(found, expected):
        close(a, e, torch.float32)
    torch.manual_seed(3)
    assert torch.equal(y, kernels.add_layer_norm(x, residual, w, b, dropout_p=0.2))
    assert not torch.equal(y, kernels.add_layer_norm(x, residual, w, b, dropout_p=0.2))


@on_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("R, C", [(1, 40), (19, 256), (70, 300)])
def test_linear_gelu(R, C, dtype):
    inputs = torch.randn(R, 8) * 2, torch.randn(C, 8), torch.randn(C)
    inputs = [t.to(DEVICE, dtype).requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    with kernels.expect("triton"):
        y = kernels.linear_gelu(*inputs)
    expected = F.gelu(F.linear(*exact))
    close(y, expected, dtype)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, dy)
    for a, b in zip(found, torch.autograd.grad(expected, exact, dy.double())):
        close(a, b, dtype)


@on_kernels
def test_linear_gelu_dropout():
    x, weight, bias = (torch.rand(size, device=DEVICE, requires_grad=True)
                       for size in ((60, 64), (64, 64), 64))
    torch.manual_seed(3)
    y = kernels.linear_gelu(x, weight, bias, dropout_p=0.2)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = F.gelu(F.linear(*exact))
    factors = (y != 0).double() / 0.8
    assert abs((factors == 0).double().mean() - 0.2) < 4 * math.sqrt(0.16 / y.numel())
    close(y, expected * factors, torch.float32)
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(expected * factors, exact, dy.double())
    for a, b in zip(torch.autograd.grad(y, (x, weight, bias), dy), expected):
        close(a, b, torch.float32)
    torch.manual_seed(3)
    assert torch.equal(y, kernels.linear_gelu(x, weight, bias, dropout_p=0.2))


# --------------------------------------------------------------------------------------------------
# As torch operators


def all_three(q, k, v, x, w, lengths):
    o = kernels.attention(q, k, v, lengths, True)
    y, s = kernels.add_layer_norm(x, x, w, w, return_sum=True)
    return o.sum() + (kernels.linear_gelu(y, torch.diag(w), w) * s).sum()


def operands(L=5):
    return [torch.randn(size, device=DEVICE, requires_grad=True)
            for size in [(1, 2, L, 16)] * 3 + [(L, 64), 64]]


@on_kernels
def test_opcheck():
    from kernels import operators

    q, k, v, x, w = operands()
    seed, n = torch.tensor([4], device=DEVICE), torch.tensor([3], device=DEVICE)
    for sample in ((q, k, v, n, seed, True, 0.1), (q, k, v, None, None, False, 0.0)):
        torch.library.opcheck(operators.attention, sample)
    r, b = x.detach().clone().requires_grad_(), w.detach().clone()
    for sample in ((x, r, w, b, seed, 1e-5, 0.1, True, torch.float32),
                   (x, None, w, b, None, 1e-5, 0.0, False, torch.float32)):
        torch.library.opcheck(operators.add_layer_norm, sample)
    torch.library.opcheck(operators.bias_gelu, (x, w, seed, 0.1))
    with torch.no_grad():  # the backwards have no backward
        kinds = ("test_schema", "test_faketensor")
        o, lse = operators.attention(q, k, v, n, seed, True, 0.1)
        sample = q, k, v, o, lse, o, n, seed, True, 0.1
        torch.library.opcheck(operators.attention_backward, sample, test_utils=kinds)
        sample = x, x, w, w, seed, 1e-5, 0.1, True, torch.float32
        y, s, mean, rstd = operators.add_layer_norm(*sample)
        for n, dtype in ((seed, torch.float32), (None, torch.float32), (None, torch.bfloat16)):
            sample = (y, s, s, w, mean, rstd, n, 0.1, dtype)
            torch.library.opcheck(operators.add_layer_norm_backward, sample, test_utils=kinds)
        torch.library.opcheck(operators.bias_gelu_backward, (x, w, x, None, 0.0), test_utils=kinds)


@on_kernels
@pytest.mark.parametrize("r_dtype", [torch.float32, torch.bfloat16, None])
def test_types_under_autocast_are_those_of_the_torch_path(r_dtype, monkeypatch):
    x, w = torch.randn(4, 32, device=DEVICE, dtype=torch.bfloat16), torch.randn(32, device=DEVICE)
    residual = None if r_dtype is None else torch.randn(4, 32, device=DEVICE).to(r_dtype)
    results = {}
    for mode in ("torch", "triton"):
        monkeypatch.setattr(backend, "MODE", mode)
        with torch.autocast(DEVICE, torch.bfloat16), kernels.expect(mode):
            y, s = kernels.add_layer_norm(x, residual, w, w, return_sum=True)
            results[mode] = y, s, kernels.linear_gelu(y, torch.diag(w), w)
    for found, expected in zip(results["triton"], results["torch"]):
        assert found.dtype == expected.dtype
        close(found, expected, torch.bfloat16, looser=2)  # two roundings, each path its own


@on_kernels
def test_compiles_without_graph_breaks():
    compiled = torch.compile(all_three, fullgraph=True)
    for L in (5, 9):
        inputs, lengths = operands(L), torch.tensor([3], device=DEVICE)
        with kernels.expect("triton"):
            found = compiled(*inputs, lengths)
            gradients = torch.autograd.grad(found, inputs)
        expected = all_three(*inputs, lengths)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(gradients, torch.autograd.grad(expected, inputs)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@on_kernels
def test_no_gradients_no_sum():
    """Without gradients the sum is written only when asked for; either way the results are the
    same."""
    *_, x, w = operands()
    y, s = kernels.add_layer_norm(x, x, w, w, return_sum=True)
    with torch.no_grad():
        assert torch.equal(kernels.add_layer_norm(x, x, w, w), y)
        assert torch.equal(kernels.add_layer_norm(x, x, w, w, return_sum=True)[1], s)
        assert kernels.add_layer_norm(x, None, w, w, return_sum=True)[1] is x


# --------------------------------------------------------------------------------------------------
# Which path


@on_kernels
def test_triton_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(backend, "MODE", "triton")
    q, n = torch.randn(2, 1, 4, 16, device=DEVICE), torch.tensor([3], device=DEVICE)
    long = torch.randn(1, 1, 513, 16, device=DEVICE)
    for inputs, reason in (
        ((q.double(),) * 3, "float64"),
        ((q[..., :8],) * 3, "head width"),
        ((long,) * 3, "1 to 512"),
        ((q.mT.contiguous().mT,) * 3, "contiguous"),
        ((q, q.half(), q), "must all be"),
        ((q[:0],) * 3, "pairs"),
        ((q, q[:1], q[:1]), "as q is"),
        ((q, q[:, :, :3], q), "as q is"),
        ((q, q, q, n), "2 contiguous numbers"),
        ((q, q, q, n.expand(2)), "2 contiguous numbers"),
    ):
        message = f"MLD_KERNELS=triton, but attention cannot.*{reason}"
        with pytest.raises(RuntimeError, match=message):
            kernels.attention(*inputs)
    wide, w = torch.randn(2, 1025, device=DEVICE), torch.randn(1025, device=DEVICE)
    x = wide[:, :8]
    for inputs, reason in (
        ((wide, wide, w, w), "1 to 1024 columns"),
        ((x.double(), x, w[:8], w[:8]), "float64"),
        ((x, None, w[:8], w[::129]), "contiguous numbers"),
        ((x, x[:1], w[:8], w[:8]), "not go"),
        ((x, None, w[:7], w[:7]), "contiguous numbers"),
    ):
        with pytest.raises(RuntimeError, match=f"add_layer_norm cannot.*{reason}"):
            kernels.add_layer_norm(*inputs)
    for inputs, reason in (
        ((x[:0], x, w[:2]), "empty"),
        ((x, x, w[:3]), "2 contiguous numbers"),
        ((x, x, w[::1000]), "2 contiguous numbers"),
        ((x, x, w.double()), "takes float32"),
    ):
        with pytest.raises(RuntimeError, match=f"linear_gelu cannot.*{reason}"):
            kernels.linear_gelu(*inputs)
    monkeypatch.setattr(backend, "MODE", "auto")
    with kernels.expect("torch"):
        kernels.attention(long, long, long)


@on_kernels
def test_an_error_in_a_launch_is_not_swallowed(monkeypatch):
    class Broken:
        def __getitem__(self, grid):
            raise RuntimeError("does not compile")

    monkeypatch.setattr(attention_kernels, "forward", Broken())
    q = torch.randn(1, 1, 4, 16, device=DEVICE, dtype=torch.float16)  # float32 may go to torch
    for mode in ("auto", "triton"):
        monkeypatch.setattr(backend, "MODE", mode)
        with pytest.raises(RuntimeError, match="does not compile"):
            kernels.attention(q, q, q)


def python(code, **environment):
    """Run code in a fresh process; -> its output, or the last line of its error."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MLD_KERNELS", "TRITON_INTERPRET")}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=kept | environment,
                            capture_output=True, text=True, timeout=300)
    if result.returncode:
        return result.stderr.strip().splitlines()[-1]
    return result.stdout.strip()


ONE_CALL = ("import torch, kernels; q = torch.randn(1, 1, 4, 16); kernels.attention(q, q, q); "
            "print(kernels.summary())")


@on_torch
def test_modes():
    """Each in its own process, since the mode is read once. CUDA_VISIBLE_DEVICES hides any GPU."""
    hidden, expected = {"CUDA_VISIBLE_DEVICES": ""}, "attention torch x1"
    assert python(ONE_CALL, **hidden) == expected
    assert warm.run("-c", ONE_CALL, MLD_KERNELS="torch").stdout.strip() == expected
    error = warm.run("-c", ONE_CALL, MLD_KERNELS="fast").stderr.strip().splitlines()[-1]
    assert error == "ValueError: MLD_KERNELS must be auto, triton or torch, not 'fast'."
    without = "import sys; sys.modules['triton'] = None; "
    assert python(without + "import mld, clip, train, sample; " + ONE_CALL, **hidden) == expected
    error = python(without + ONE_CALL, MLD_KERNELS="triton")
    assert error.startswith("RuntimeError: MLD_KERNELS=triton, but attention cannot run as a "
                            "Triton kernel: triton cannot be imported")


@on_torch
def test_the_torch_path_does_not_import_triton():
    code = "import sys, transformer; print([m for m in sys.modules if m.startswith('triton')])"
    assert python(code, CUDA_VISIBLE_DEVICES="") == "[]"


@on_torch
def test_expect(monkeypatch):
    monkeypatch.setattr(backend, "MODE", "torch")
    x, w = torch.randn(3, 8), torch.ones(8)
    with kernels.expect("torch"):
        kernels.add_layer_norm(x, x, w, w)
    assert "add_layer_norm torch x" in kernels.summary()
    message = "expected the triton path, but these ran: .*add_layer_norm.*torch"
    with pytest.raises(AssertionError, match=message):
        with kernels.expect("triton"):
            kernels.add_layer_norm(x, x, w, w)
    with pytest.raises(AssertionError, match="nothing ran"):
        with kernels.expect("torch"):
            pass


# --------------------------------------------------------------------------------------------------
# The torch path


@on_torch
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, [7, 3, 0]])
def test_torch_attention(lengths, causal, monkeypatch):
    """The definition, whatever stands behind a length; gradients, compiled too; the promised
    order in memory."""
    monkeypatch.setattr(backend, "MODE", "torch")
    lengths = None if lengths is None else torch.tensor(lengths)
    behind = torch.zeros(()) > 0
    if lengths is not None:
        behind = (torch.arange(7) >= lengths[:, None])[:, None, :, None]
    q, k, v = torch.randn(3, 7, 3, 2, 4, dtype=torch.float64).permute(2, 0, 3, 1, 4)
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))

    def masked(q, k, v):
        k, v = (t.masked_fill(behind, torch.nan) for t in (k, v))
        return kernels.attention(q, k, v, lengths, causal)

    assert torch.autograd.gradcheck(masked, (q, k, v))
    o = masked(q, k, v)
    expected = plain_attention(q, *(t.masked_fill(behind, 0) for t in (k, v)), lengths, causal)
    torch.testing.assert_close(o, expected)
    assert o.transpose(1, 2).is_contiguous() and (lengths is None or not o[lengths == 0].any())
    torch.testing.assert_close(torch.compile(masked, fullgraph=True)(q, k, v), o)


@on_torch
def test_torch_twins_compile_and_differentiate(monkeypatch):
    monkeypatch.setattr(backend, "MODE", "torch")
    x, r, w, b = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True) for _ in range(4))

    def both(x, r, w, b):
        y, s = kernels.add_layer_norm(x, r, w[0], b[0], return_sum=True)
        return kernels.linear_gelu(y, w, b[:, 0]), s

    assert torch.autograd.gradcheck(both, (x, r, w, b))
    torch.testing.assert_close(torch.compile(both, fullgraph=True)(x, r, w, b), both(x, r, w, b))
    s = x + r
    y = F.gelu(F.layer_norm(s, (6,), w[0], b[0]) @ w.T + b[:, 0])
    torch.testing.assert_close(both(x, r, w, b), (y, s))
