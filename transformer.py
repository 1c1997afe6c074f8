"""The transformer that every network here is built from: positions, attention, layers, stacks.

All tensors are batch first, (B, L, D). The three operations that take most of the time (attention,
residual + layer norm, linear + GELU) come from `kernels`. Parameters have the names of torch's own
layers and of the published MLD modules (self_attn.in_proj_weight, multihead_attn, linear1, norm1,
input_blocks.0, ...), so that published weights load by name. Only position tables differ in shape:
(rows, D) here, (rows, 1, D) there.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from fast import attend_to_memory
from kernels import add_layer_norm, dropout, few_rows, linear_gelu, packed_attention

# --------------------------------------------------------------------------------------------------
# Lengths and positions


def length_mask(lengths, size):
    """lengths (B,) -> (B, size) bool, True for the first lengths[i] entries of row i.

    Masks are made here and nowhere else."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def zero_padding(x, lengths):
    """x (B, T, ...) with row i set to exact zeros from lengths[i] on, even where it held NaN.

    lengths None means that nothing is padded: x is returned as it is."""
    if lengths is None:
        return x
    mask = length_mask(lengths, x.shape[1])
    return torch.where(mask.view(*mask.shape, *[1] * (x.dim() - 2)), x, 0.0)


def sinusoid(positions, dim, shift=0.0):
    """positions (L,) -> angles (L, dim // 2) of a sinusoidal embedding (Vaswani et al. 2017,
    section 3.5): position / 10000^(i / (dim / 2 - shift))."""
    half = dim // 2
    i = torch.arange(half, dtype=torch.float32, device=positions.device)
    exponents = -math.log(10000.0) * i / (half - shift)
    return positions.float()[:, None] * torch.exp(exponents)


class Positions(nn.Module):
    """Adds a position embedding to (B, L, D): a learned table, or sines and cosines interleaved."""

    def __init__(self, rows, dim, learned=True):
        super().__init__()
        if learned:
            self.pe = nn.Parameter(torch.rand(rows, dim))  # uniform on [0, 1), as published
        else:
            angles = sinusoid(torch.arange(rows), dim)
            table = torch.stack((angles.sin(), angles.cos()), -1).flatten(1)
            self.register_buffer("pe", table, persistent=False)

    def forward(self, x):
        if x.shape[1] > self.pe.shape[0]:
            raise ValueError(f"A sequence of {x.shape[1]} tokens does not fit the position table "
                             f"of {self.pe.shape[0]} rows (max_positions); use shorter motions.")
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
        h = torch.cat(halves, -1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(h)))


# --------------------------------------------------------------------------------------------------
# Layers


class Attention(nn.Module):
    """Multi-head attention of x on itself, or on a memory (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, dim, heads, dropout=0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} attention heads do not divide the width {dim}.")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # rows: query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x, memory=None, lengths=None, causal=False):
        """x (B, L, D), memory (B, M, D) or None -> (B, L, D).

        lengths (B,): only the first lengths[i] keys of sample i are attended to; None: all of them.
        causal: token i sees tokens 0..i only."""
        p = self.dropout if self.training else 0.0
        o = packed_attention(*self.packed(x, memory), self.heads, lengths, causal, p)
        return self.out_proj(o)

    def packed(self, x, memory):
        """-> queries (B, L, D) of x, and keys and values (B, M, 2 D) of the memory; without one all
        three (B, L, 3 D) of x, which takes one product, and None."""
        D, (weight, bias) = x.shape[-1], (self.in_proj_weight, self.in_proj_bias)
        if memory is None:
            return F.linear(x, weight, bias), None
        return F.linear(x, weight[:D], bias[:D]), F.linear(memory, weight[D:], bias[D:])


class Layer(nn.Module):
    """One transformer layer: self-attention, with `cross` attention on a memory, feed-forward.

    Post-norm as in the paper, x = LN(x + f(x)), or pre-norm as in CLIP, x = x + f(LN(x))."""

    def __init__(self, dim, heads, ff, dropout=0.0, attention_dropout=0.0, activation="gelu",
                 pre_norm=False, cross=False):
        super().__init__()
        if activation not in ("gelu", "relu", "quick_gelu"):
            raise ValueError("The activation must be gelu, relu or quick_gelu, "
                             f"got {activation!r}.")
        self.dropout, self.activation = dropout, activation
        self.pre_norm, self.cross = pre_norm, cross
        self.self_attn = Attention(dim, heads, attention_dropout)
        self.linear1, self.linear2 = nn.Linear(dim, ff), nn.Linear(ff, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        if cross:
            self.multihead_attn = Attention(dim, heads, attention_dropout)
            self.norm3 = nn.LayerNorm(dim)

    def forward(self, x, lengths=None, memory=None, causal=False):
        """x (B, L, D) -> (B, L, D).

        lengths (B,): only the first lengths[i] tokens of sample i are attended to; None: all.
        memory (B, M, D): for `cross`. causal: token i sees tokens 0..i only."""
        if self.pre_norm:
            return self.pre_norm_forward(x, lengths, memory, causal)
        x = self.add_norm(x, self.self_attn(x, None, lengths, causal), self.norm1)
        if self.cross:
            x = self.add_norm(x, attend_to_memory(self, x, memory), self.norm2)
        return self.add_norm(x, self.feed_forward(x), self.norm3 if self.cross else self.norm2)

    def pre_norm_forward(self, x, lengths, memory, causal):
        h = norm(x, self.norm1)
        h, x = self.add_norm(x, self.self_attn(h, None, lengths, causal), self.norm2, True)
        if self.cross:
            h, x = self.add_norm(x, attend_to_memory(self, h, memory), self.norm3, True)
        return dropout(self.feed_forward(h), self.p, x)

    @property
    def p(self):
        """The current dropout rate: 0 outside training."""
        return self.dropout if self.training else 0.0

    def add_norm(self, x, change, layer_norm, return_sum=False):
        """LN(x + dropout(change)); with return_sum, x + dropout(change) as well."""
        return norm(change, layer_norm, x, self.p, return_sum)

    def feed_forward(self, x):
        if self.activation == "gelu":
            h = linear_gelu(x, self.linear1.weight, self.linear1.bias, self.p)
            return self.linear2(h)
        h = self.linear1(x)
        if self.activation == "relu":
            h = F.relu(h)
        else:  # quick_gelu, CLIP's
            h = h * torch.sigmoid(1.702 * h)
        return self.linear2(dropout(h, self.p))


def norm(x, layer, residual=None, dropout_p=0.0, return_sum=False):
    """Layer norm of residual + dropout(x) with the parameters of `layer`, an nn.LayerNorm."""
    return add_layer_norm(x, residual, layer.weight, layer.bias, layer.eps, dropout_p, return_sum)


# --------------------------------------------------------------------------------------------------
# Stacks


class Stack(nn.Module):
    """Layers in a row; with `skip`, long connections as in a U-Net (MLD, section 3.1).

    The output of input block i is joined to the input of the output block that mirrors it:
    x = Linear(2D, D)([x, kept]). MLD's 9 layers are 4 in, 1 in the middle, 4 out."""

    def __init__(self, num_layers, dim, heads, ff, dropout=0.0, attention_dropout=0.0,
                 activation="gelu", pre_norm=False, cross=False, skip=False, final_norm=True):
        super().__init__()
        if skip and num_layers % 2 == 0:
            raise ValueError("A stack with skip connections needs an odd number of layers, "
                             f"got {num_layers}.")

        def layers(n):
            sizes = (dim, heads, ff, dropout, attention_dropout, activation, pre_norm, cross)
            return nn.ModuleList(Layer(*sizes) for _ in range(n))

        self.skip = skip
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

    def forward(self, x, lengths=None, memory=None, causal=False):
        """x (B, L, D) -> (B, L, D); the arguments are those of Layer."""
        if not self.skip:
            for layer in self.layers:
                x = layer(x, lengths, memory, causal)
        else:
            kept = []
            for block in self.input_blocks:
                x = block(x, lengths, memory, causal)
                kept.append(x)
            x = self.middle_block(x, lengths, memory, causal)
            for block, linear in zip(self.output_blocks, self.linear_blocks):
                x = linear(torch.cat((x, kept.pop()), -1))
                x = block(x, lengths, memory, causal)
        return x if self.norm is None else norm(x, self.norm)


few_rows.KNOWN_MODULES.update((Layer, Attention))  # told, as the kernels import nothing of ours
