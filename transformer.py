"""The transformer that every network here is built from: attention, layers, stacks, positions, masks.

All tensors are batch first, (B, L, D). The three operations that take the time (attention, residual + layer norm,
linear + gelu) are called from `kernels` here and nowhere else. Parameter names are those of torch's own layers and of
the published MLD modules (self_attn.in_proj_weight, multihead_attn, linear1, norm1, input_blocks.0, ...), so published
weights load by name; only position tables differ in shape, (rows, D) here and (rows, 1, D) there.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from kernels import add_layer_norm, attention, linear_gelu

# ----------------------------------------------------------------------------------------------------------------------
# Lengths and positions


def length_mask(lengths, size):
    """lengths (B,) -> (B, size) bool, True on row i's first lengths[i] entries: the one place where masks are made."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def zero_padding(x, lengths):
    """x (B, T, ...) with exact zeros from lengths[i] on, whatever stood there, NaN included; lengths None leaves x be."""
    if lengths is None:
        return x
    mask = length_mask(lengths, x.shape[1])
    return torch.where(mask.view(*mask.shape, *[1] * (x.dim() - 2)), x, 0.0)


def sinusoid(positions, dim, shift=0.0):
    """positions (L,) -> angles (L, dim // 2) = position / 10000^(i / (dim / 2 - shift)) of a sinusoidal embedding."""
    half = dim // 2
    exponents = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=positions.device) / (half - shift)
    return positions.float()[:, None] * torch.exp(exponents)


class Positions(nn.Module):
    """Adds a position embedding to (B, L, D): a learned table, or sines and cosines interleaved."""

    def __init__(self, rows, dim, learned=True):
        super().__init__()
        if learned:
            self.pe = nn.Parameter(torch.rand(rows, dim))  # uniform on [0, 1), as published
        else:
            angles = sinusoid(torch.arange(rows), dim)
            self.register_buffer("pe", torch.stack((angles.sin(), angles.cos()), -1).flatten(1), persistent=False)

    def forward(self, x):
        if x.shape[1] > self.pe.shape[0]:
            raise ValueError(f"A sequence of {x.shape[1]} tokens does not fit the position table of {self.pe.shape[0]} rows "
                             "(max_positions); use shorter motions.")
        return x + self.pe[:x.shape[1]].to(x.dtype)


class TimestepEmbedding(nn.Module):
    """Sinusoidal embedding of the noise level, then Linear, SiLU, Linear."""

    def __init__(self, dim_in, dim, flip_sin_to_cos=True, freq_shift=0.0):
        super().__init__()
        self.dim_in, self.flip, self.shift = dim_in // 2 * 2, flip_sin_to_cos, freq_shift
        self.linear_1, self.linear_2 = nn.Linear(self.dim_in, dim), nn.Linear(dim, dim)

    def forward(self, timesteps):
        """timesteps (B,) -> (B, D)"""
        angles = sinusoid(timesteps, self.dim_in, self.shift)
        halves = (angles.cos(), angles.sin()) if self.flip else (angles.sin(), angles.cos())
        return self.linear_2(F.silu(self.linear_1(torch.cat(halves, -1).to(self.linear_1.weight.dtype))))


# ----------------------------------------------------------------------------------------------------------------------
# Layers


class Attention(nn.Module):
    """Multi-head attention of x on itself, or on a memory."""

    def __init__(self, dim, heads, dropout=0.0, one_key_shortcut=True):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} attention heads do not divide the width {dim}.")
        self.heads, self.dropout, self.one_key_shortcut = heads, dropout, one_key_shortcut
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # rows: query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x, memory=None, lengths=None, causal=False):
        """x (B, L, D), memory (B, M, D) or None -> (B, L, D); lengths (B,): how many keys count, from the first one on."""
        B, L, D = x.shape
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if self.one_key_shortcut and memory is not None and memory.shape[1] == 1 and lengths is None:
            # The softmax over a single key is 1, so every query receives the value itself: exact, and free of (B, L) work
            # (but for one thing: training does not drop that lone probability, as the published code does).
            return self.out_proj(F.linear(memory, weight[2 * D:], bias[2 * D:])).expand(-1, L, D)

        def heads(t, n):  # (B, *, n * D) -> n tensors (B, H, *, D / H)
            return t.view(B, -1, n, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)

        if memory is None:
            q, k, v = heads(F.linear(x, weight, bias), 3)
        else:
            q, = heads(F.linear(x, weight[:D], bias[:D]), 1)
            k, v = heads(F.linear(memory, weight[D:], bias[D:]), 2)
        o = attention(q, k, v, lengths, causal, self.dropout if self.training else 0.0)  # (B, H, L, D / H)
        return self.out_proj(o.transpose(1, 2).reshape(B, L, D))


class Layer(nn.Module):
    """One transformer layer: self-attention, with `cross` also attention on a memory, feed-forward; post- or pre-norm."""

    def __init__(self, dim, heads, ff, dropout=0.0, attention_dropout=0.0, activation="gelu", pre_norm=False, cross=False):
        super().__init__()
        if activation not in ("gelu", "relu", "quick_gelu"):
            raise ValueError(f"The activation must be gelu, relu or quick_gelu, got {activation!r}.")
        self.dropout, self.activation, self.pre_norm, self.cross = dropout, activation, pre_norm, cross
        self.self_attn = Attention(dim, heads, attention_dropout)
        self.linear1, self.linear2 = nn.Linear(dim, ff), nn.Linear(ff, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        if cross:
            # pre-norm feeds norm2 to nothing but the query: it would get no gradient, which DDP takes for an error
            self.multihead_attn = Attention(dim, heads, attention_dropout, one_key_shortcut=not pre_norm)
            self.norm3 = nn.LayerNorm(dim)

    def feed_forward(self, x):
        p = self.dropout if self.training else 0.0
        if self.activation == "gelu":
            return self.linear2(linear_gelu(x, self.linear1.weight, self.linear1.bias, p))
        h = self.linear1(x)
        h = F.relu(h) if self.activation == "relu" else h * torch.sigmoid(1.702 * h)  # quick_gelu: CLIP's
        return self.linear2(F.dropout(h, p))

    def forward(self, x, lengths=None, memory=None, causal=False, first=None):
        """x (B, L, D) -> (B, L, D); lengths (B,) valid tokens of x, memory (B, M, D) for the cross-attention.

        first: compute this many tokens only, the first ones, which see all the others: -> (B, first, D). An x of (1, L, D)
        goes with any memory: what comes before the cross-attention is then the same for every sample, and computed once."""
        p = self.dropout if self.training else 0.0
        h = norm(x, self.norm1) if self.pre_norm else x
        a = self.self_attn(h, None, lengths, causal) if first is None else self.self_attn(h[:, :first], h, lengths)
        x = x if first is None else x[:, :first]
        if self.cross and len(x) < len(memory):
            a, x = (t.expand(len(memory), -1, -1) for t in (a, x))
        if self.pre_norm:
            h, x = norm(a, self.norm2, x, p, return_sum=True)
            if self.cross:
                h, x = norm(self.multihead_attn(h, memory), self.norm3, x, p, return_sum=True)
            return x + F.dropout(self.feed_forward(h), p)
        x = norm(a, self.norm1, x, p)
        if self.cross:
            x = norm(self.multihead_attn(x, memory), self.norm2, x, p)
        return norm(self.feed_forward(x), self.norm3 if self.cross else self.norm2, x, p)


def norm(x, layer, residual=None, dropout_p=0.0, return_sum=False):
    """Layer norm of residual + dropout(x) with the parameters of `layer` (an nn.LayerNorm); with return_sum the sum too."""
    return add_layer_norm(x, residual, layer.weight, layer.bias, layer.eps, dropout_p, return_sum)


# ----------------------------------------------------------------------------------------------------------------------
# Stacks


class Stack(nn.Module):
    """Layers in a row; with `skip`, long connections as in a U-Net: what input block i put out is joined to the input of
    the output block that mirrors it, [x, kept] -> Linear(2D, D). (MLD's 9 layers: 4 in, 1 middle, 4 out.)"""

    def __init__(self, num_layers, dim, heads, ff, dropout=0.0, attention_dropout=0.0, activation="gelu", pre_norm=False,
                 cross=False, skip=False, final_norm=True):
        super().__init__()
        if skip and num_layers % 2 == 0:
            raise ValueError(f"A stack with skip connections needs an odd number of layers, got {num_layers}.")

        def layers(n):
            settings = (dim, heads, ff, dropout, attention_dropout, activation, pre_norm, cross)
            return nn.ModuleList(Layer(*settings) for _ in range(n))

        self.skip, self.int8 = skip, False  # int8: kernels.few_rows.round_to_int8 was here
        if skip:
            half = num_layers // 2
            self.input_blocks, self.output_blocks = layers(half), layers(half)
            self.middle_block, = layers(1)
            self.linear_blocks = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(half))
        else:
            self.layers = layers(num_layers)
        self.norm = nn.LayerNorm(dim) if final_norm else None
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, x, lengths=None, memory=None, causal=False, first=None):
        """x (B, L, D) -> (B, L, D); arguments as for Layer, `first` for the last one: -> (B, first, D)."""
        if self.skip:
            kept = []
            for block in self.input_blocks:
                x = block(x, lengths, memory, causal)
                kept.append(x)
            x = self.middle_block(x, lengths, memory, causal, None if kept else first)
            for block, linear in zip(self.output_blocks, self.linear_blocks):
                x = block(linear(torch.cat((x, kept.pop()), -1)), lengths, memory, causal, None if kept else first)
        else:
            for i, layer in enumerate(self.layers, 1):
                x = layer(x, lengths, memory, causal, first if i == len(self.layers) else None)
        return x if self.norm is None else norm(x, self.norm)
