"""fast.py: every shortcut gives the numbers of the plain way beside it."""
import copy

import pytest
import torch

import fast
from kernels import graphs
from test_mld import LENGTHS, condition, make
from transformer import Layer, Stack

ALL = fast.NAMES


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def lively(module):
    """Biases and norms other than the zeros and ones that they start as."""
    for p in module.parameters():
        if p.dim() == 1:
            p.data += 0.3 * torch.randn_like(p)
    return module


def test_a_single_key_needs_no_softmax():
    layer = lively(Layer(16, 4, 32, cross=True))
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 1, 16)
    expected = layer.multihead_attn(x, memory)
    close(fast.attend_to_memory(layer, x, memory), expected)
    with fast.without("attend_to_memory"):
        assert torch.equal(fast.attend_to_memory(layer, x, memory), expected)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("layers, skip", [(1, False), (2, False), (1, True), (3, True), (5, True)])
def test_first_tokens(layers, skip, pre_norm):
    stack = lively(Stack(layers, 16, 4, 32, pre_norm=pre_norm, skip=skip))
    x = torch.randn(3, 7, 16)
    for lengths in (None, torch.tensor([7, 4, 3])):
        for n in (1, 3):
            close(fast.first_tokens(stack, x, n, lengths), stack(x, lengths)[:, :n])
            with fast.without("first_tokens"):
                assert torch.equal(fast.first_tokens(stack, x, n, lengths),
                                   stack(x, lengths)[:, :n])


def test_first_tokens_have_the_same_gradients():
    stack, x = lively(Stack(3, 16, 4, 32, skip=True)), torch.randn(2, 5, 16)
    found = torch.autograd.grad(fast.first_tokens(stack, x, 2).square().sum(), stack.parameters())
    plain = torch.autograd.grad(stack(x)[:, :2].square().sum(), stack.parameters())
    for a, b in zip(found, plain):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_tokens", [1, 3])
@pytest.mark.parametrize("layers, skip, pre_norm", [(1, True, False), (3, True, False),
                                                    (2, False, False), (3, True, True)])
def test_shared_queries(layers, skip, pre_norm, memory_tokens):
    stack = lively(Stack(layers, 16, 4, 32, pre_norm=pre_norm, cross=True, skip=skip)).eval()
    queries, memory = torch.randn(1, 6, 16), torch.randn(3, memory_tokens, 16)
    lengths = torch.tensor([6, 2, 4])
    for given in (None, lengths):
        expected = stack(queries.expand(3, -1, -1), given, memory)
        close(fast.shared_queries(stack, queries, given, memory), expected)
        with fast.without("shared_queries"):
            close(fast.shared_queries(stack, queries, given, memory), expected)


def test_dropout_keeps_queries_apart():
    """Shared queries would drop the same numbers in every sample."""
    stack = Stack(1, 16, 4, 32, dropout=0.5, cross=True).train()
    x = fast.shared_queries(stack, torch.randn(1, 6, 16), None, torch.zeros(2, 1, 16))
    assert not torch.equal(x[0], x[1])


def test_lengths_are_needed_where_they_differ():
    assert fast.needed_lengths(torch.tensor([5, 5])) is None
    lengths = torch.tensor([5, 4])
    assert fast.needed_lengths(lengths) is lengths
    with fast.without("needed_lengths"):
        assert fast.needed_lengths(torch.tensor([5, 5])) is not None


def shapes_seen(module, run):
    """The shapes of what a module returned while run() ran."""
    seen = []
    hook = module.register_forward_hook(lambda m, x, out: seen.append(tuple(out.shape)))
    try:
        run()
    finally:
        hook.remove()
    return seen


def test_hooks_see_what_they_see_in_the_plain_way():
    """On the stack, on its layers, and inside those that a shortcut computes in parts."""
    stack = Stack(3, 16, 4, 32, skip=True).eval()
    crossed = Stack(3, 16, 4, 32, cross=True, skip=True).eval()
    x, memory, queries = torch.randn(3, 7, 16), torch.randn(3, 1, 16), torch.randn(1, 6, 16)
    runs = [(stack, lambda: fast.first_tokens(stack, x, 2)),
            (stack, lambda: fast.few_tokens(stack, x, 2)),
            (crossed, lambda: fast.shared_queries(crossed, queries, None, memory))]
    for network, run in runs:
        for name, module in network.named_modules():
            found = shapes_seen(module, run)
            with fast.without(*ALL):
                assert found == shapes_seen(module, run), name
        assert len(shapes_seen(network, run)) == 1


def test_hooks_on_the_denoiser_are_called_when_sampling():
    model = make()
    given = dict(lengths=LENGTHS, seed=5, guidance_scale=2.5, num_inference_steps=3,
                 **condition(model))
    expected = model.generate(**given)
    d = model.denoiser
    for module in (d, d.time_embedding, d.time_embedding.linear_2, d.emb_proj):
        found = shapes_seen(module, lambda: model.generate(**given))
        with fast.without(*ALL):
            assert found == shapes_seen(module, lambda: model.generate(**given))
        assert len(found) == 6  # 3 steps, with and without the condition
    calls = []
    hook = d.register_forward_hook(lambda m, x, out: calls.append(1))
    torch.testing.assert_close(model.generate(**given), expected, rtol=1e-4, atol=1e-4)
    hook.remove()


def test_an_unknown_shortcut_is_refused():
    with pytest.raises(ValueError, match="no shortcut of the name 'one_key'"):
        with fast.without("one_key"):
            pass
    with fast.without(*ALL):
        assert fast.OFF == set(ALL)
    assert not fast.OFF


KINDS = [{}, {"denoiser__condition": "action", "denoiser__num_actions": 4},
         {"denoiser__condition": "none"}, {"denoiser__length_token": True},
         {"denoiser__arch": "modulated", "denoiser__length_token": True, "vae__latent_size": 2},
         {"vae__arch": "none", "denoiser__arch": "trans_dec"}, {"vae__latent_size": 2},
         {"vae__cosines": 8}]


@pytest.mark.parametrize("values", KINDS, ids=str)
@pytest.mark.parametrize("scale", [0, 1, 2.5])
def test_generate_with_and_without_every_shortcut(values, scale):
    model = make(**values)
    given = dict(lengths=LENGTHS, seed=5, guidance_scale=scale, guidance_rescale=0.3,
                 num_inference_steps=4, **condition(model))
    expected = model.generate(**given)
    for name in ALL:
        with fast.without(name):
            for a, b in zip(model.generate(**given), expected):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with fast.without(*ALL):
        for a, b in zip(model.generate(**given), expected):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_plain_loop_tells_the_length_token_lengths_that_are_all_the_same():
    model = make(denoiser__length_token=True)
    given = dict(lengths=[12, 12, 12], seed=5, num_inference_steps=2, **condition(model))
    expected = model.generate(**given)
    with fast.without("Guided"):
        for a, b in zip(model.generate(**given), expected):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------
# CUDA graphs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(),
                               reason="NOT RUN on a GPU, there is none: a CUDA graph needs one")


def test_no_graph_without_a_gpu():
    assert not graphs.wanted(torch.zeros(1))
    assert torch.equal(fast.replayed(lambda x: x + 1, "key", torch.zeros(1)), torch.ones(1))


@pytest.fixture
def at_once(monkeypatch):
    """Recorded at the first call, and an error where that fails."""
    monkeypatch.setattr(graphs, "MODE", "1")


@needs_gpu
def test_a_function_as_a_graph(at_once):
    def function(x, y):
        return x @ y, x + 1
    for size in (2, 2, 3):
        x, y = torch.randn(size, 4, device="cuda"), torch.randn(4, 5, device="cuda")
        found = graphs.replay(function, "test", x, y)
        for a, b in zip(found, function(x, y)):
            torch.testing.assert_close(a, b)


@needs_gpu
def test_graphs_are_few(at_once):
    for i in range(graphs.BOUND + 3):
        graphs.replay(torch.neg, ("few", i), torch.zeros(1, device="cuda"))
    assert len(graphs.recorded) <= graphs.BOUND


@needs_gpu
@pytest.mark.parametrize("values", KINDS, ids=str)
def test_the_loop_as_a_graph(values, at_once):
    """The first call records, the second replays with other noise; weights changed in place are
    seen, weights that moved are recorded anew."""
    model = make(**values).cuda()
    given = dict(lengths=LENGTHS, num_inference_steps=4, **condition(model))
    for seed in (5, 6):
        found = model.generate(**given, seed=seed)
        with fast.without("replayed"):
            expected = model.generate(**given, seed=seed)
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        for p in model.denoiser.parameters():
            p.mul_(1.1)
    other = copy.deepcopy(model)
    for m in (model, other):
        found = m.generate(**given, seed=7)
        with fast.without("replayed"):
            expected = m.generate(**given, seed=7)
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@needs_gpu
def test_what_cannot_be_recorded_runs_all_the_same(monkeypatch):
    def function(x):
        return x * float(x.sum())  # waits for the GPU
    monkeypatch.setattr(graphs, "MODE", "auto")
    graphs.replay(function, "waits", torch.ones(2, device="cuda"))  # seen once, not recorded
    with pytest.warns(UserWarning, match="CUDA graphs are not used"):
        assert graphs.replay(function, "waits", torch.ones(2, device="cuda")).tolist() == [2, 2]
    monkeypatch.setattr(graphs, "MODE", "1")
    with pytest.raises(RuntimeError):
        graphs.replay(function, "waits, too", torch.ones(2, device="cuda"))
    torch.rand(2, device="cuda")  # random draws work after a failure


@needs_gpu
def test_a_graph_recorded_under_autocast_outlives_it(at_once):
    """Autocast's cached 16-bit weights are freed with its context; a replay must not read them."""
    layer = torch.nn.Linear(64, 64).cuda().requires_grad_()
    x = torch.randn(3, 64, device="cuda")
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            found = graphs.replay(lambda x: layer(layer(x)), ("autocast", id(layer)), x)
            with torch.no_grad():
                torch.testing.assert_close(found, layer(layer(x)))
        [torch.randn(64, 64, device="cuda").bfloat16() for _ in range(50)]  # over freed memory
