"""transformer.py equals torch's own layers; its masks, skips, positions and initial weights."""
import math

import pytest
import torch
import torch.nn as nn

from transformer import Attention, Layer, Positions, Stack, length_mask, zero_padding

torch.manual_seed(0)
LENGTHS = torch.tensor([7, 4, 1])


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("memory_tokens", [0, 1, 3])
def test_layer_equals_torchs_own(pre_norm, activation, memory_tokens):
    x, memory = torch.randn(3, 7, 16), torch.randn(3, memory_tokens, 16)
    absent = ~length_mask(LENGTHS, 7)
    kind = nn.TransformerDecoderLayer if memory_tokens else nn.TransformerEncoderLayer
    # kept in training mode, without dropout: torch's fused inference path would zero the padded
    # rows
    theirs = kind(16, 4, 32, 0.0, activation, batch_first=True, norm_first=pre_norm)
    cross = memory_tokens > 0
    ours = Layer(16, 4, 32, activation=activation, pre_norm=pre_norm, cross=cross).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.3)
    ours.load_state_dict(theirs.state_dict())  # the same names
    with torch.no_grad():
        if memory_tokens:
            expected = theirs(x, memory, tgt_key_padding_mask=absent)
        else:
            expected = theirs(x, src_key_padding_mask=absent)
        found = ours(x, LENGTHS, memory)
    real = length_mask(LENGTHS, 7)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_stack_ignores_what_stands_behind_a_length(pre_norm, skip):
    stack = Stack(3, 16, 4, 32, pre_norm=pre_norm, skip=skip).eval()
    x = torch.randn(3, 7, 16)
    y = stack(x, LENGTHS)
    other = torch.where(length_mask(LENGTHS, 7)[:, :, None], x, torch.full_like(x, 1e6))
    for i, n in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(stack(other, LENGTHS)[i, :n], y[i, :n], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stack(x[i:i + 1, :n])[0], y[i, :n], rtol=1e-5, atol=1e-5)


def test_causal_stack_does_not_see_the_future():
    stack = Stack(2, 16, 4, 32, activation="quick_gelu", pre_norm=True).eval()
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(
        stack(x, causal=True)[:, :4], stack(x[:, :4], causal=True), rtol=1e-5, atol=1e-5)
    assert (stack(x)[:, :4] - stack(x, causal=True)[:, :4]).abs().max() > 1e-2


def test_skip_connections_mirror_the_layers():
    stack, x = Stack(5, 8, 2, 16, skip=True, final_norm=False).eval(), torch.randn(1, 3, 8)
    a = stack.input_blocks[0](x)
    b = stack.input_blocks[1](a)
    y = stack.output_blocks[0](stack.linear_blocks[0](torch.cat((stack.middle_block(b), b), -1)))
    y = stack.output_blocks[1](stack.linear_blocks[1](torch.cat((y, a), -1)))
    assert torch.equal(stack(x), y)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu", "quick_gelu"])
def test_gradients_of_a_layer(pre_norm, activation):
    layer = Layer(4, 2, 6, activation=activation, pre_norm=pre_norm, cross=True).double()
    x, memory = (torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    assert torch.autograd.gradcheck(lambda x, m, *_: layer(x, torch.tensor([3, 2]), m),
                                    (x, memory, *layer.parameters()))


def test_dropout_only_in_training():
    layer, x = Layer(16, 4, 32, dropout=0.5), torch.randn(2, 5, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    attention = Attention(16, 4, dropout=0.5)
    assert not torch.equal(attention(x), attention(x))
    assert torch.equal(attention.eval()(x), attention(x))


def test_initial_weights_as_published():
    table = Positions(500, 64).pe
    assert (table.shape == (500, 64) and table.min() >= 0 and 0.99 < table.max() <= 1
            and abs(table.mean() - 0.5) < 0.01)
    stack = Stack(3, 64, 4, 128, cross=True, skip=True)
    for name, p in stack.named_parameters():
        if p.dim() > 1:  # xavier-uniform: +-sqrt(6 / (in + out))
            bound = math.sqrt(6 / sum(p.shape))
            assert 0.98 * bound < p.abs().max() <= bound, name
        if name.endswith("in_proj_bias") or name.endswith("out_proj.bias"):
            assert not p.any(), name


def test_sinusoidal_positions():
    rows, x = Positions(50, 8, learned=False), torch.zeros(1, 50, 8)
    y = rows(x)[0]
    for t, i in ((0, 0), (7, 1), (49, 3)):
        assert y[t, 2 * i].item() == pytest.approx(math.sin(t / 10000 ** (2 * i / 8)), abs=1e-5)
        assert y[t, 2 * i + 1].item() == pytest.approx(math.cos(t / 10000 ** (2 * i / 8)), abs=1e-5)
    assert not rows.state_dict()


def test_zero_padding_removes_nan_from_values_and_gradients():
    x = torch.randn(3, 7, 2)
    x[~length_mask(LENGTHS, 7)] = torch.nan
    x.requires_grad_()
    y = zero_padding(x, LENGTHS)
    (y ** 2).sum().backward()
    assert (y.isfinite().all() and x.grad.isfinite().all() and torch.equal(y[0], x[0])
            and not y[1, 4:].any())
    assert zero_padding(x, None) is x


def test_refusals():
    with pytest.raises(ValueError, match="odd number of layers, got 4"):
        Stack(4, 8, 2, 16, skip=True)
    with pytest.raises(ValueError, match="3 attention heads do not divide the width 8"):
        Layer(8, 3, 16)
    with pytest.raises(ValueError, match="gelu, relu or quick_gelu, got 'gelu_new'"):
        Layer(8, 2, 16, activation="gelu_new")
    with pytest.raises(ValueError, match="11 tokens does not fit the position table of 10 rows"):
        Positions(10, 4)(torch.zeros(1, 11, 4))
