"""training.c: attention among few keys, and bias + GELU, forward and backward, on a CPU."""
import pytest
import torch
import torch.nn.functional as F

import kernels
from conftest import for_avx2
from kernels import backend, split_heads, training
from transformer import Stack

LIBRARY = training.library()
pytestmark = [
    pytest.mark.skipif(isinstance(LIBRARY, str), reason=f"NOT TESTED: {LIBRARY}"),
    pytest.mark.skipif(backend.MODE != "auto", reason="about the C code")]
EXACT, ROUNDED = 2e-6, 1e-2  # of the largest number: float32, bfloat16


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=["as built", "AVX2"])
def made(request, tmp_path_factory):
    """The library as it is here, and for a processor without AVX-512."""
    if request.param == "as built":
        yield LIBRARY
        return
    other = for_avx2("training.c", training.SIGNATURES, tmp_path_factory.mktemp("avx2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "library", lambda: other)
        yield other


def reference(q, kv, heads, lengths=None, causal=False):
    """The definition, in float64, sample by sample and query by query."""
    q, k, v = (t.double() for t in split_heads(q, kv, heads))
    o = torch.zeros_like(q)
    for b in range(len(q)):
        keys = k.shape[2] if lengths is None else int(lengths[b])
        for i in range(q.shape[2]):
            n = min(keys, i + 1) if causal else keys
            if n:
                s = q[b, :, i:i + 1] @ k[b, :, :n].mT / q.shape[3]**0.5
                o[b, :, i] = (s.softmax(-1) @ v[b, :, :n])[:, 0]
    return o.transpose(1, 2).flatten(2)


def near(found, expected, limit):
    error = (found.double() - expected.double()).abs().max()
    assert error <= limit * max(expected.abs().max().item(), 1e-3), error


def packed(B, Lq, Lk, heads, D, dtype):
    """q and kv; q alone, with all three in it, where Lk is 0"""
    q = torch.randn(B, Lq, (1 if Lk else 3) * heads * D).to(dtype).requires_grad_()
    return q, torch.randn(B, Lk, 2 * heads * D).to(dtype).requires_grad_() if Lk else None


def check(q, kv, heads, lengths=None, causal=False):
    given = [t for t in (q, kv) if t is not None]
    with kernels.expect("c"):
        o = kernels.packed_attention(q, kv, heads, lengths, causal)
    exact = [t.detach().double().requires_grad_() for t in given]
    expected = reference(exact[0], exact[1] if kv is not None else None, heads, lengths, causal)
    limit = EXACT if q.dtype == torch.float32 else ROUNDED
    assert o.dtype == q.dtype and o.is_contiguous()
    near(o, expected, limit)
    do = torch.randn_like(o)
    found = torch.autograd.grad(o, given, do)
    for a, b in zip(found, torch.autograd.grad(expected, exact, do.double())):
        assert a.dtype == q.dtype
        near(a, b, limit)


# --------------------------------------------------------------------------------------------------
# Attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("L", [1, 2, 7, 8, 9, 16, 17, 33, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention(made, L, causal, dtype):
    check(*packed(3, L, 0, 2, 16, dtype), 2, None, causal)


@pytest.mark.parametrize("D", [1, 5, 16, 20, 32, 48, 64, 96])
def test_any_width_of_a_head(made, D):
    for dtype in (torch.float32, torch.bfloat16):
        check(*packed(2, 11, 0, 3, D, dtype), 3, torch.tensor([11, 4]), D % 2 == 0)


@pytest.mark.parametrize("Lq, Lk", [(1, 1), (5, 1), (120, 4), (3, 40), (17, 256)])
def test_cross_attention(made, Lq, Lk):
    check(*packed(2, Lq, Lk, 4, 32, torch.float32), 4)
    check(*packed(2, Lq, Lk, 4, 32, torch.bfloat16), 4)


def test_padding_is_never_read_and_gets_no_gradient(made):
    """NaN behind a sample's own keys; none at all; and the sample after them is not touched."""
    lengths = torch.tensor([9, 0, 3, 12])
    q, kv = packed(4, 6, 12, 2, 16, torch.float32)
    with torch.no_grad():
        for row, n in zip(kv, lengths):
            row[n:] = torch.nan
    o = kernels.packed_attention(q, kv, 2, lengths)
    dq, dkv = torch.autograd.grad(o, (q, kv), torch.randn_like(o))
    assert o.isfinite().all() and dq.isfinite().all() and dkv.isfinite().all()
    assert not o[1].any() and not dq[1].any()
    for row, n in zip(dkv, lengths):
        assert not row[n:].any() and (not n or row[:n].any())
    with torch.no_grad():
        kv.nan_to_num_(0.0)
    check(q, kv, 2, lengths)


def test_lengths_beyond_the_keys_and_below_none(made):
    q, kv = packed(2, 4, 6, 1, 16, torch.float32)
    o = kernels.packed_attention(q, kv, 1, torch.tensor([99, -3]))
    assert torch.equal(o, kernels.packed_attention(q, kv, 1, torch.tensor([6, 0])))


def test_large_scores(made):
    """No overflow: a softmax that is all but one-hot. float32 scores of 500 are right to 3e-5."""
    q, _ = packed(2, 7, 0, 2, 16, torch.float32)
    q = (q.detach() * 12).requires_grad_()
    near(kernels.packed_attention(q, None, 2), reference(q, None, 2), 1e-4)


def test_no_number_is_too_small_for_a_normal_float(made):
    """Scores far below the largest leave zeros, and no denormal numbers, which are a hundred times
    as slow: a trained denoiser's scores are thousands apart."""
    q, kv = packed(2, 6, 9, 2, 16, torch.float32)
    with torch.no_grad():
        q *= 200
    o = kernels.packed_attention(q, kv, 2)
    for x in (o, *torch.autograd.grad(o, (q, kv), 1e-6 * torch.randn_like(o))):
        assert ((x == 0) | (x.abs() > torch.finfo(torch.float32).tiny)).all()


def test_the_number_of_threads_changes_nothing():
    q, _ = packed(16, 30, 0, 4, 32, torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            o = kernels.packed_attention(q, None, 4)
            found.append((o, *torch.autograd.grad(o.sin().sum(), q)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_inputs_that_are_not_contiguous():
    q = torch.randn(9, 3, 96, requires_grad=True)
    o = kernels.packed_attention(q.transpose(0, 1), None, 2)
    again = kernels.packed_attention(q.transpose(0, 1).contiguous(), None, 2)
    assert torch.equal(o, again)
    grad = torch.randn(9, 3, 32).transpose(0, 1)
    assert torch.equal(*(torch.autograd.grad(x, q, grad)[0] for x in (o, again)))


def test_gradients_of_gradients():
    """q is no tensor of one piece: what backward saves must still lead to it."""
    q, kv = packed(2, 8, 7, 1, 5, torch.float32)[0], packed(2, 5, 7, 2, 4, torch.float32)[1]
    found, lengths = [], torch.tensor([7, 2])
    for attend in (kernels.packed_attention, reference):
        o = attend(q.transpose(1, 2), kv, 2, lengths)
        first = torch.autograd.grad(o.sin().sum(), (q, kv), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), (q, kv)))
    for a, b in zip(*found):
        near(a, b, 1e-5)


@pytest.mark.parametrize("why", ["too many keys", "dropout", "no gradient", "float16", "float64",
                                 "MLD_KERNELS", "vmap", "empty"])
def test_what_goes_to_torch(why, monkeypatch):
    """Nothing that training.c is not made for reaches it."""
    if why == "MLD_KERNELS":
        monkeypatch.setattr(backend, "MODE", "torch")
    monkeypatch.setattr(training.Attention, "apply", lambda *_: pytest.fail("it was called"))
    dtype = {"float16": torch.float16, "float64": torch.float64}.get(why, torch.float32)
    L = training.MOST_KEYS + 1 if why == "too many keys" else 0 if why == "empty" \
        else 6
    q = torch.randn(2, L, 3 * 8).to(dtype).requires_grad_(why != "no gradient")
    if why == "vmap":
        found = torch.func.vmap(lambda x: kernels.packed_attention(x[None], None, 2)[0])(q)
    else:
        found = kernels.packed_attention(q, None, 2, dropout_p=0.1 * (why == "dropout"))
    assert found.shape == (2, L, 8) and found.dtype == dtype


def test_without_a_compiler_torch_trains(monkeypatch):
    monkeypatch.setattr(training, "library", lambda: "there is no C compiler")
    q, _ = packed(2, 5, 0, 2, 8, torch.float32)
    with kernels.expect("torch"):
        o = kernels.packed_attention(q, None, 2)
    near(o, reference(q, None, 2), EXACT)


def test_heads_and_lengths_that_do_not_fit_are_torchs_to_refuse():
    q, kv = packed(4, 5, 5, 2, 25, torch.float32)
    with pytest.raises(RuntimeError):
        kernels.packed_attention(torch.randn(2, 6, 50, requires_grad=True), None, 2)
    with kernels.expect("torch"):  # which repeats them
        o = kernels.packed_attention(q, kv, 2, torch.tensor([3]))
    near(o, reference(q, kv, 2, torch.tensor([3] * 4)), EXACT)


def test_other_defaults_of_torch_leave_the_memory_of_the_c_code_alone():
    q, _ = packed(3, 9, 0, 2, 8, torch.float32)
    weight, bias = torch.randn(70, 9), torch.randn(70, requires_grad=True)
    found = []
    for kind, device in ((torch.float32, "cpu"), (torch.bfloat16, "cpu"), (torch.float32, "meta")):
        torch.set_default_dtype(kind)
        try:
            with torch.device(device):
                o = kernels.packed_attention(q, None, 2)
                y = training.linear_gelu(q.transpose(1, 2).contiguous(), weight, bias)
                loss = o.square().sum() + y.square().sum()
                found.append([o, y, *torch.autograd.grad(loss, (q, bias))])
        finally:
            torch.set_default_dtype(torch.float32)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_samples_that_do_not_match_are_torchs_to_refuse_or_to_repeat():
    q, kv = packed(1, 4, 3, 2, 8, torch.float32)[0], packed(5, 1, 3, 2, 8, torch.float32)[1]
    with kernels.expect("torch"):
        o = kernels.packed_attention(q, kv, 2)
    near(o, reference(q.expand(5, -1, -1), kv, 2), EXACT)


# --------------------------------------------------------------------------------------------------
# Bias + GELU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("R, C", [(1, 1), (2, 15), (3, 16), (7, 100), (700, 64)])
def test_gelu(made, R, C, dtype):
    h = (3 * torch.randn(R, C)).to(dtype).requires_grad_()
    bias = torch.randn(C, requires_grad=True)
    y = training.BiasGelu.apply(h, bias)
    exact = [t.detach().double().requires_grad_() for t in (h, bias)]
    expected = F.gelu(exact[0] + exact[1])
    limit = EXACT if dtype == torch.float32 else ROUNDED
    assert y.dtype == dtype
    near(y, expected, limit)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, (h, bias), dy)
    for a, b in zip(found, torch.autograd.grad(expected, exact, dy.double())):
        near(a, b, limit)
    assert found[1].dtype == torch.float32


def test_gelu_far_out(made):
    z = torch.tensor([-torch.inf, -1e30, -100, -9, -5, -4, -3, -0.0, 1e-30, 3, 5.8, 100, 1e30,
                      torch.inf, torch.nan], requires_grad=True)
    y = training.BiasGelu.apply(z, torch.zeros(15))
    expected = F.gelu(z.detach().double())
    assert torch.allclose(y[1:-2].double(), expected[1:-2], rtol=1e-6, atol=3e-7 * 5)
    assert y[-2] == torch.inf and y[-1].isnan()
    slope, = torch.autograd.grad(y[1:-2].sum(), z)
    exact = z.detach().double()[1:-2].requires_grad_()
    expected, = torch.autograd.grad(F.gelu(exact).sum(), exact)
    assert torch.allclose(slope[1:-2].double(), expected, atol=2e-6)


def test_linear_gelu_in_training():
    x, weight = torch.randn(4, 5, 12), torch.randn(20, 12, requires_grad=True)
    bias = torch.randn(20, requires_grad=True)
    with kernels.expect("c"):
        y = kernels.linear_gelu(x, weight, bias)
    near(y, F.gelu(F.linear(x.double(), weight.double(), bias.double())), EXACT)
    with torch.no_grad(), kernels.expect("torch"):
        kernels.linear_gelu(x, weight, bias)
    with torch.autocast("cpu", torch.bfloat16), kernels.expect("c"):
        assert kernels.linear_gelu(x, weight, bias).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.float16):  # not what the C code reads
        half = kernels.linear_gelu(x, weight, bias)
    assert half.dtype == torch.float16
    near(half, y, ROUNDED)


def test_a_bias_of_another_size_is_refused():
    x, weight = torch.randn(3, 12), torch.randn(20, 12, requires_grad=True)
    with pytest.raises(RuntimeError):
        kernels.linear_gelu(x, weight, torch.randn(7))


def test_gradients_of_gelus_gradients():
    found = []
    for mode in ("auto", "torch"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "MODE", mode)
            torch.manual_seed(1)
            x, weight, bias = (torch.randn(*s, requires_grad=True)
                               for s in ((3, 6), (8, 6), (8,)))
            y = kernels.linear_gelu(x, weight, bias)
            first = torch.autograd.grad(y.sum(), (x, weight, bias), create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight)))
            y = kernels.linear_gelu(x, weight, bias.detach())  # a frozen bias
            first = torch.autograd.grad(y.sum(), (x, weight), create_graph=True)
            found[-1] += torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight))
    for a, b in zip(*found):
        near(a, b, 1e-5)


# --------------------------------------------------------------------------------------------------
# A network


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_a_stack_trains_alike(autocast, cross):
    """The same loss and gradients as through torch; all of it in C but the norms."""
    stack = Stack(3, 32, 4, 64, cross=cross, skip=True)
    x, memory = torch.randn(6, 20, 32), torch.randn(6, 3, 32) if cross else None
    lengths, found = torch.tensor([20, 5, 1, 20, 13, 8]), []
    for mode in ("auto", "torch"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "MODE", mode)
            before = backend.calls.copy()
            stack.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = stack(x, lengths, memory).float().square().mean()
            loss.backward()
            ran = backend.calls - before
            found.append([loss.detach(), *(p.grad.clone() for p in stack.parameters())])
        c = ran["attention", "c"], ran["linear_gelu", "c"]
        assert c == ((6 if cross else 3, 3) if mode == "auto" else (0, 0))
    for a, b in zip(*found):
        near(a, b, 0.05 if autocast else 1e-5)
