"""decode.c, the VAE's decoder in one call of C, against the plain torch path it stands in for."""
from unittest import mock

import pytest
import torch

import fast
from kernels import backend, few_rows
from test_few_rows import stack_of
from test_mld import LENGTHS, condition, make

pytestmark = pytest.mark.skipif(isinstance(few_rows.library("float32", "decode"), str),
                                reason=f"NOT TESTED: {few_rows.library('float32', 'decode')}")


def decoded(stack, x, lengths, memory):
    """-> shared_queries, and how often C ran in it."""
    before = backend.calls["decode", "c"]
    lengths = None if lengths is None else torch.tensor(lengths)
    with torch.no_grad():
        return (fast.shared_queries(stack, x, lengths, memory),
                backend.calls["decode", "c"] - before)


def check(stack, x, lengths, memory):
    """Each motion alone, and not padded, by the plain stack; behind it, zeros."""
    found, count = decoded(stack, x, lengths, memory)
    assert count == 1 and found.shape == (len(memory), *x.shape[1:])
    for i, one in enumerate(memory):
        n = lengths[i] if lengths else x.shape[1]
        with torch.no_grad():
            expected = stack(x[i % len(x), None, :n], None, one[None])[0]
        torch.testing.assert_close(found[i, :n], expected, rtol=1e-4, atol=2e-5)
        assert not found[i, n:].any()


@pytest.mark.parametrize("tokens", [1, 2, 4])
@pytest.mark.parametrize("layers, skip", [(1, False), (2, False), (1, True), (5, True)])
@pytest.mark.parametrize("final_norm", [True, False])
def test_equals_the_stack(layers, skip, final_norm, tokens):
    stack = stack_of(layers, skip=skip, cross=True, final_norm=final_norm)
    x, memory = torch.randn(3, 21, 32), torch.randn(3, tokens, 32)
    check(stack, x, [21, 1, 16], memory)
    check(stack, x[:1], None, memory)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_number_of_motions_and_threads(count, threads):
    """As many as the threads are done by one each, the rest by all of them; 2 heads and 13 frames
    are no multiple of 5."""
    stack, before = stack_of(3, skip=True, cross=True), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for lengths in (None, [13 - 2 * i for i in range(count)]):
            for tokens in (1, 3):
                check(stack, torch.randn(count, 13, 32), lengths, torch.randn(count, tokens, 32))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("frames", [1, 11, 12, 13, 16, 17, 32, 196, 600])
def test_every_number_of_frames(frames):
    """Scores are of 12 queries at a time and of whole vectors of keys; products in parts of 512."""
    stack = stack_of(1, ff=528, cross=True)
    check(stack, torch.randn(1, frames, 32), None, torch.randn(2, 4, 32))


@pytest.mark.parametrize("activation", ["gelu", "relu", "quick_gelu"])
def test_sizes_and_activations(activation):
    stack = stack_of(3, 128, 4, 512, skip=True, cross=True, activation=activation)
    check(stack, torch.randn(2, 60, 128), [60, 47], torch.randn(2, 4, 128))
    check(stack_of(3, 256, 4, 1024, skip=True, cross=True, activation=activation),
          torch.randn(1, 50, 256), [50, 50], torch.randn(2, 1, 256))


def test_large_scores():
    """A softmax of one key, and of scores from -1e4 to 1e4."""
    stack = stack_of(1, cross=True)
    with torch.no_grad():
        stack.layers[0].self_attn.in_proj_weight.mul_(60)
    check(stack, 3 * torch.randn(1, 21, 32), None, torch.randn(1, 4, 32))


def test_weights_that_change_are_seen():
    stack, x, memory = stack_of(cross=True), torch.randn(1, 9, 32), torch.randn(1, 2, 32)
    check(stack, x, None, memory)
    with torch.no_grad():
        stack.layers[1].multihead_attn.in_proj_weight.neg_()
        stack.layers[1].norm3.weight.neg_()
    check(stack, x, None, memory)
    stack.layers[0].linear2 = torch.nn.Linear(48, 32)
    check(stack, x, None, memory)


def test_what_c_does_not_decode_runs_as_the_stack():
    x, memory = torch.randn(1, 9, 32), torch.randn(2, 2, 32)
    rounded, hooked = stack_of(cross=True), stack_of(cross=True)
    few_rows.round_to_int8(rounded)
    seen = []
    hooked.layers[0].linear2.register_forward_hook(lambda *_: seen.append(1))
    halves = stack_of(cross=True).bfloat16()
    for stack, q, m, lengths, why in (
            (stack_of(cross=True, pre_norm=True), x, memory, None, "norms behind"),
            (rounded, x, memory, None, "no int8"),
            (halves, x.bfloat16(), memory.bfloat16(), None, "float32 only"),
            (stack_of(cross=True).double(), x.double(), memory.double(), None, "float32 only"),
            (stack_of(cross=True).train(), x, memory, None, "no dropout"),
            (hooked, x, memory, None, "hooks"),
            (stack_of(cross=True), x, memory, [9, 0], "1 frame at least"),
            (stack_of(dim=24, cross=True), x[..., :24], memory[..., :24], None, "multiples of 16")):
        with torch.no_grad():
            given = None if lengths is None else torch.tensor(lengths)
            assert why in few_rows.undecodable(q, stack, given, m)
        assert decoded(stack, q, lengths, m)[1] == 0
    assert seen
    assert "backward" in few_rows.undecodable(x, stack_of(cross=True), None, memory)  # grad mode
    with torch.no_grad():
        stack, three = stack_of(cross=True), x.expand(3, -1, -1)
        assert "fit" in few_rows.undecodable(three, stack, None, memory)
        assert "self-attention" in few_rows.unsupported(x, stack)
        with mock.patch.object(backend, "MODE", "torch"):
            assert "must be auto" in few_rows.undecodable(x, stack, None, memory)


@pytest.mark.parametrize("values", [{}, {"vae__latent_size": 3}, {"vae__cosines": 6},
                                    {"vae__arch": "actor"}], ids=str)
def test_generate_gives_the_plain_paths_numbers(values):
    sizes = {f"{part}__{key}": value for part in ("vae", "denoiser")
             for key, value in {"latent_dim": 32, "ff_size": 48, "num_heads": 2}.items()}
    model = make(**{**sizes, **values})
    given = dict(lengths=LENGTHS, seed=5, num_inference_steps=3, **condition(model))
    before = backend.calls["decode", "c"]
    found = model.generate(**given)
    assert backend.calls["decode", "c"] > before
    with fast.without("decode"):
        expected = model.generate(**given)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
