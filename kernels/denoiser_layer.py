"""Few tokens, many layers: MLD's denoiser in two launches per layer, for sampling.

With one latent token the denoiser sees 3 tokens (latent, time, condition), twice for guidance: 6
rows of 256 numbers. Its 9 layers of plain torch are 10 operations each, 99 a step with the skips
and the last norm, and nearly all of their time is spent waiting for launches. The work itself,
reading 7.6 M weights (15.2 MB in bfloat16) once a step, takes at least 5.1 us a step on an H100
(3.0 TB/s), or 0.25 ms for 50 steps, and less once the weights lie in its 50 MB cache. So each
layer becomes two launches, with everything in between kept on chip:

    attention_half  one program per head. x = LN2(what the previous half left); q, k, v of this
                    head; softmax; its share of the output projection -> parts (H, rows, D)
    ffn_half        one program per BF hidden units. x = LN1(x + parts + bias); its hidden units;
                    GELU; their share of the second Linear -> parts (F / BF, rows, D)
    join            one program per BD columns. Linear([x, kept]) before an output block
    finish          one program. The last LN2, and the stack's own norm

A sum over programs is left in memory as parts, and whatever reads it next adds them up, in a fixed
order: no atomics, no barrier across the chip, the same bits every time. Each program computes the
cheap layer norm again for itself. 9 layers, 4 joins and 1 finish are 23 launches instead of 99.
The residual stream stays in float32 between launches.

A launch from Python costs more than one of torch's own, so the full gain comes with a CUDA graph
of the sampling loop (graphs.py): shapes are static, and nothing here synchronises. 16 // L
sequences share a tile of 16 rows, so any batch works. The plain torch twin is the stack itself,
transformer.Stack. docs/gpu.md says where this is the faster one on an H100.
"""
import torch

from kernels.backend import tl, triton
from kernels.tiles import denoiser_tiles

# --------------------------------------------------------------------------------------------------
# The kernels
#
# base, x_out, y_out (N, D)   float32, N = B * L rows; the first base is the input, of any type
# parts (P, N, D)             float32: what P programs of the launch before left to add to base
# add_bias, norm_w, norm_b    (D,)
# all other weights           row-major (out, in), as torch's Linear has them; the in-projection
#                             is (3 D, D) with rows query, key, value
#
# A program works on 16 // L whole sequences, rows [tile * (16 // L) * L, ...), as a block (16, D).


@triton.jit
def rows_of(number, N, L: tl.constexpr):
    """Rows of tile `number`, which of the 16 are there, and how many."""
    per_tile: tl.constexpr = 16 // L * L
    count = tl.minimum(N - number * per_tile, per_tile)
    r = tl.arange(0, 16)
    return number * per_tile + r, r < count, count


@triton.jit
def normalised(base, parts, add_bias, norm_w, norm_b, rows, there, N, eps,
               D: tl.constexpr, P: tl.constexpr):
    """LN(base + sum of parts + add_bias) of these rows -> (16, D) float32; with P = 0, when there
    are no parts, base itself."""
    d = tl.arange(0, D)
    at = rows[:, None] * D + d[None, :]
    mask = there[:, None]
    x = tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
    if P > 0:
        for p in range(0, P, 4):  # four reads are under way at once
            for more in tl.static_range(4):
                x += tl.load(parts + (p + more) * N * D + at, mask=mask & (p + more < P), other=0.0)
        x += tl.load(add_bias + d).to(tl.float32)[None, :]
        x = layer_norm(x, norm_w, norm_b, eps, D)
    return x


@triton.jit
def layer_norm(x, norm_w, norm_b, eps, D: tl.constexpr):
    """x (16, D) float32 -> its layer norm."""
    d = tl.arange(0, D)
    x -= (tl.sum(x, 1) / D)[:, None]
    x *= tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
    return x * row(norm_w, d) + row(norm_b, d)


@triton.jit
def product(x, w, count):
    """x (16, K), w (OUT, K) of the same type -> x w^T (16, OUT) float32; rows from `count` on are
    not meaningful."""
    # exact, row by row: an unrolled float32 tl.dot of this depth does not fit the registers
    if w.dtype == tl.float32:
        row = tl.arange(0, 16)[:, None]
        out = tl.zeros((16, w.shape[0]), tl.float32)
        for r in range(count):
            one = tl.sum(tl.where(row == r, x, 0.0), 0)  # (K,)
            out = tl.where(row == r, tl.sum(w * one[None, :], 1)[None, :], out)
        return out
    return tl.dot(x, tl.trans(w))


@triton.jit
def weights(w, out, inside, STRIDE: tl.constexpr):
    """Rows `out` and columns `inside` of a Linear's weights, (.., STRIDE) in memory."""
    return tl.load(w + out[:, None] * STRIDE + inside[None, :])


@triton.jit
def row(b, out):
    """Entries `out` of a bias, as a row in float32."""
    return tl.load(b + out).to(tl.float32)[None, :]


@triton.jit
def attention_half(base, parts, add_bias, norm_w, norm_b, in_w, in_b, out_w, x_out, parts_out,
                   N, eps, scale, L: tl.constexpr, D: tl.constexpr, DH: tl.constexpr,
                   P: tl.constexpr):
    """Grid (H, tiles). x_out: the layer's input, written by head 0; parts_out (H, N, D)."""
    h = tl.program_id(0)
    rows, there, count = rows_of(tl.program_id(1), N, L)
    x = normalised(base, parts, add_bias, norm_w, norm_b, rows, there, N, eps, D, P)
    at = rows[:, None] * D + tl.arange(0, D)[None, :]
    if h == 0:
        tl.store(x_out + at, x, mask=there[:, None])
    dtype = in_w.dtype.element_ty
    x = x.to(dtype)
    d, mine = tl.arange(0, D), h * DH + tl.arange(0, DH)
    q = (product(x, weights(in_w, mine, d, D), count) + row(in_b, mine)).to(dtype)  # (16, DH)
    k = (product(x, weights(in_w, D + mine, d, D), count) + row(in_b, D + mine)).to(dtype)
    v = (product(x, weights(in_w, 2 * D + mine, d, D), count) + row(in_b, 2 * D + mine)).to(dtype)
    s = product(q, k, count) * (scale * 1.4426950408889634)  # (16, 16)
    # a row sees its own sequence; the rows after the last one form harmless sequences of zeros
    sequence = tl.arange(0, 16) // L
    s = tl.where(sequence[:, None] == sequence[None, :], s, float("-inf"))
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    p = p / tl.sum(p, 1)[:, None]
    o = product(p.to(dtype), tl.trans(v), count).to(dtype)  # (16, DH)
    share = product(o, weights(out_w, d, mine, D), count)
    tl.store(parts_out + h * N * D + at, share, mask=there[:, None])


@triton.jit
def ffn_half(base, parts, add_bias, norm_w, norm_b, w1, b1, w2, y_out, parts_out, N, eps,
             L: tl.constexpr, D: tl.constexpr, F: tl.constexpr, BF: tl.constexpr, P: tl.constexpr):
    """Grid (F / BF, tiles). y_out: the feed-forward's input, written by program 0;
    parts_out (F / BF, N, D)."""
    f = tl.program_id(0)
    rows, there, count = rows_of(tl.program_id(1), N, L)
    y = normalised(base, parts, add_bias, norm_w, norm_b, rows, there, N, eps, D, P)
    at = rows[:, None] * D + tl.arange(0, D)[None, :]
    if f == 0:
        tl.store(y_out + at, y, mask=there[:, None])
    dtype = w1.dtype.element_ty
    d, mine = tl.arange(0, D), f * BF + tl.arange(0, BF)
    z = product(y.to(dtype), weights(w1, mine, d, D), count) + row(b1, mine)  # (16, BF)
    z = z * (0.5 + 0.5 * tl.erf(z * 0.7071067811865476))
    out = product(z.to(dtype), weights(w2, d, mine, F), count)
    tl.store(parts_out + f * N * D + at, out, mask=there[:, None])


@triton.jit
def join(base, parts, add_bias, norm_w, norm_b, kept, w, b, x_out, N, eps,
         L: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, P: tl.constexpr):
    """Grid (D / BD, tiles): BD columns of Linear([x, kept]).

    kept (N, D) float32, w (D, 2 D), b (D,)."""
    rows, there, count = rows_of(tl.program_id(1), N, L)
    x = normalised(base, parts, add_bias, norm_w, norm_b, rows, there, N, eps, D, P)
    d, o = tl.arange(0, D), tl.program_id(0) * BD + tl.arange(0, BD)
    old = tl.load(kept + rows[:, None] * D + d[None, :], mask=there[:, None], other=0.0)
    dtype = w.dtype.element_ty
    out = product(x.to(dtype), weights(w, o, d, 2 * D), count) + row(b, o)
    out += product(old.to(dtype), weights(w, o, D + d, 2 * D), count)
    tl.store(x_out + rows[:, None] * D + o[None, :], out, mask=there[:, None])


@triton.jit
def finish(base, parts, add_bias, norm_w, norm_b, last_w, last_b, x_out, N, eps,
           L: tl.constexpr, D: tl.constexpr, P: tl.constexpr, LAST_NORM: tl.constexpr):
    """Grid (1, tiles): the last layer's norm, and the stack's own if LAST_NORM.

    x_out (N, D) of any type."""
    rows, there, count = rows_of(tl.program_id(1), N, L)
    x = normalised(base, parts, add_bias, norm_w, norm_b, rows, there, N, eps, D, P)
    if LAST_NORM:
        x = layer_norm(x, last_w, last_b, eps, D)
    at = rows[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(x_out + at, x.to(x_out.dtype.element_ty), mask=there[:, None])


# --------------------------------------------------------------------------------------------------
# Launches


def blocks_of(stack):
    """The layers of a transformer.Stack in the order they run."""
    if not stack.skip:
        return [*stack.layers]
    return [*stack.input_blocks, stack.middle_block, *stack.output_blocks]


def unsupported(x, stack):
    """Why `denoiser_layers` cannot run this stack on x (B, L, D); empty if it can."""
    (_, L, D), layer = x.shape, blocks_of(stack)[0]
    head, hidden = D // layer.self_attn.heads, layer.linear1.out_features
    dtype = layer.linear1.weight.dtype
    if layer.pre_norm or layer.cross or layer.activation != "gelu":
        return "the layers must be post-norm self-attention layers with GELU"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the weights must be float32, float16 or bfloat16, not {dtype}"
    if not 2 <= L <= 15:  # with 1 and 16 the compiler spills a register here and there
        return f"2 to 15 tokens are supported, not {L}"
    if D not in (64, 128, 256) or head not in (16, 32, 64) or hidden % 64:
        return ("widths of 64, 128, 256, heads of 16, 32, 64 and multiples of 64 hidden units are "
                f"supported, not {D}, {head} and {hidden}")
    if stack.training or torch.is_grad_enabled():
        return ("it has no backward and no dropout: call eval() on the stack, and run it under "
                "torch.no_grad()")
    return ""


def denoiser_layers(x, stack):
    """stack(x) for a whole transformer.Stack of post-norm layers, without dropout or mask.

    x (B, L, D) of 2 to 15 tokens -> (B, L, D) of x's type. The stack's weights may be float32
    (exact) or 16-bit (tensor cores). `unsupported` must have returned ""."""
    B, L, D = x.shape
    N, blocks = B * L, blocks_of(stack)
    heads, hidden = blocks[0].self_attn.heads, blocks[0].linear1.out_features
    BF, BD, warps = denoiser_tiles(D, blocks[0].linear1.weight.dtype)
    tiles = triton.cdiv(B, 16 // L)

    def buffer(*shape):
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    # What a launch leaves for the next one, which makes x of it: base, P parts, a bias, and a
    # norm's weight and bias.
    state, P = (x.contiguous().view(N, D), None, None, None, None), 0
    kept, joins = [], [*stack.linear_blocks] if stack.skip else []
    half = len(joins)
    for number, layer in enumerate(blocks):
        a, eps = layer.self_attn, layer.norm1.eps
        if number > half and half:
            linear, x_out = joins[number - half - 1], buffer(N, D)
            join[(D // BD, tiles)](
                *state, kept.pop(), linear.weight, linear.bias, x_out,
                N, eps, L=L, D=D, BD=BD, P=P, num_warps=warps)
            state, P = (x_out, None, None, None, None), 0
        x_out, parts = buffer(N, D), buffer(heads, N, D)
        attention_half[(heads, tiles)](
            *state, a.in_proj_weight, a.in_proj_bias, a.out_proj.weight, x_out, parts,
            N, eps, (D // heads) ** -0.5, L=L, D=D, DH=D // heads, P=P, num_warps=warps)
        if 0 < number <= half:
            kept.append(x_out)  # the output of the input block before this one
        norm1, norm2, linear1, linear2 = layer.norm1, layer.norm2, layer.linear1, layer.linear2
        y_out, parts_out = buffer(N, D), buffer(hidden // BF, N, D)
        ffn_half[(hidden // BF, tiles)](
            x_out, parts, a.out_proj.bias, norm1.weight, norm1.bias, linear1.weight, linear1.bias,
            linear2.weight, y_out, parts_out,
            N, eps, L=L, D=D, F=hidden, BF=BF, P=heads, num_warps=warps)
        state = (y_out, parts_out, linear2.bias, norm2.weight, norm2.bias)
        P = hidden // BF
    out, last = torch.empty_like(x, memory_format=torch.contiguous_format), stack.norm
    finish[(1, tiles)](
        *state, last and last.weight, last and last.bias, out,
        N, eps, L=L, D=D, P=P, LAST_NORM=last is not None, num_warps=warps)
    return out
