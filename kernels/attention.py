"""Multi-head attention over keys that are masked by length: o = softmax(q k^T / sqrt(D)) v.

Forward, one program per (batch, head, tile of BM queries):

    load     a q tile (BM, D), once; k and v in tiles of BN keys, as many as `lengths` says
    on chip  scores (BM, BN), each row's running maximum m and sum l, and the sum of its outputs
             acc (BM, D), all in float32
    store    an o tile (BM, D); lse (BM), log2 of the sum of a row's exponentials, for the backward

The scores never reach memory: q, k and v are read, o is written, and that is all. At HumanML3D's
training size (B=64, H=4, L=198, D=64, bfloat16) these are 4 x 6.49 MB = 26.0 MB, at least 8.7 us on
an H100 (3.0 TB/s), against 3.2 us for the 2.57 GFLOP (798 TFLOP/s). The backward reads q, k, v, o
and do and writes dq, dk and dv: 8 x 6.49 = 51.9 MB, 17.3 us, against 8.0 us.

Backward, with p = softmax, z = dropout's keep / (1 - rate) and
delta_i = sum_d do_id o_id (= sum_j p_ij z_ij dp_ij):

    dv = (p z)^T do      dp = do v^T             ds = p (z dp - delta)
    dq = ds k / sqrt(D)  dk = ds^T q / sqrt(D)

- In two phases: `backward_queries` takes a tile of queries, loops over keys, and writes dq and
  delta; `backward_keys` takes a tile of keys, loops over queries, and writes dk and dv. The scores
  are computed twice (7 matrix products instead of 5), but it runs on any chip.
- In one pass: `backward_whole` takes one (batch, head), keeps all its keys on chip and loops over
  queries, so a dq tile is complete after one step while dk and dv stay in registers: 5 products,
  and everything is read once. It needs the registers and the shared memory of sm_90, at most 256
  keys, and enough (batch, head) pairs to fill the chip.

Each program is the only writer of its tiles, so there are no atomics, and the same input gives the
same gradients, bit for bit. docs/gpu.md has what an H100 measured; docs/kernels.md what sm_80 and
sm_90 compile to.
"""
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.backend import architecture, tl, triton
from kernels import dropped_attention
from kernels.dropout import kept, row_keys, threshold_and_scale
from kernels.tiles import attention_tiles, power_of_two

FEW_KEYS, A_BATCH = 128, 16

# --------------------------------------------------------------------------------------------------
# The plain torch twin


def torch_attention(q, k, v, lengths=None, causal=False, dropout_p=0.0):
    """The same function in plain torch; see `kernels.attention` for the arguments."""
    if dropped_attention.fits(q, k, v, causal, dropout_p):
        return dropped_attention.dropped_attention(q, k, v, lengths, dropout_p)
    mask = None
    if lengths is not None:
        keys = torch.arange(k.shape[2], device=k.device)
        absent = (keys >= lengths[:, None])[:, None, :, None]  # (B, 1, Lk, 1)
        # padding may hold NaN, and NaN * 0 is NaN, so zeros replace it before the mask removes it
        k, v = k.masked_fill(absent, 0), v.masked_fill(absent, 0)
        # a row without keys attends to its first one, whose value is now 0, and gives 0, not 0 / 0
        mask = (keys < lengths.clamp(min=1)[:, None])[:, None, None, :]  # (B, 1, 1, Lk)
        if causal:
            queries = torch.arange(q.shape[2], device=q.device)
            mask = mask & (keys <= queries[:, None])  # (B, 1, Lq, Lk)
    # on CPUs, torch's fused backward pass takes twice the time of plain products for few keys
    plain = q.device.type == "cpu" and q.requires_grad
    plain = plain and k.shape[2] <= FEW_KEYS and len(q) >= A_BATCH
    with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        o = F.scaled_dot_product_attention(q, k, v, mask, dropout_p,
                                           is_causal=causal and mask is None)
    # copies only where torch chose another memory order
    return o.transpose(1, 2).contiguous().transpose(1, 2)


def split_heads(q, kv, heads):
    """q (B, L, H D) and kv (B, M, 2 H D), keys before values, or q (B, L, 3 H D) and None -> q, k
    and v (B, H, *, D), without a copy."""
    def parts(t, n):
        return t.unflatten(-1, (n, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    return parts(q, 3) if kv is None else (*parts(q, 1), *parts(kv, 2))


# --------------------------------------------------------------------------------------------------
# What all kernels share
#
# q (B, H, Lq, D), k, v (B, H, Lk, D), do like q: pointers, each with the strides of its first three
# dimensions; the last stride is 1. o, dq (B, Lq, H, D) and dk, dv (B, Lk, H, D): contiguous. lse,
# delta (B, H, Lq): float32, contiguous. lengths: pointer to (B,) ints, read if HAS_LENGTHS. seed:
# pointer to one int64, read if DROPOUT; threshold, rescale: from threshold_and_scale(). scale is
# 1 / sqrt(D), and scores are q k^T * scale * log2(e), since exp2 is one instruction. BM, BN:
# queries and keys in a tile. BD: D rounded up to a power of two.


@triton.jit
def key_count(lengths, b, Lk, HAS_LENGTHS: tl.constexpr):
    """How many keys sequence b has; the others are never read."""
    if HAS_LENGTHS:
        return tl.minimum(tl.maximum(tl.load(lengths + b), 0), Lk).to(tl.int32)
    return Lk


@triton.jit
def tile(pointer, stride, rows, count, D: tl.constexpr, BD: tl.constexpr):
    """Load rows x (0..D) -> (len(rows), BD); rows beyond count and columns beyond D are 0."""
    columns = tl.arange(0, BD)
    mask = (rows < count)[:, None] & (columns < D)[None, :]
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_tile(pointer, stride, rows, count, value, D: tl.constexpr, BD: tl.constexpr):
    """Store (len(rows), BD) to rows x (0..D), rounding to the type of the memory."""
    columns = tl.arange(0, BD)
    mask = (rows < count)[:, None] & (columns < D)[None, :]
    value = value.to(pointer.dtype.element_ty)
    tl.store(pointer + rows[:, None] * stride + columns[None, :], value, mask=mask)


# --------------------------------------------------------------------------------------------------
# Forward


@triton.jit
def forward(q, k, v, o, lse, lengths, seed, qb, qh, ql, kb, kh, kl, vb, vh, vl,
            H, Lq, Lk, scale, threshold, rescale,
            D: tl.constexpr, HAS_LENGTHS: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
            BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr):
    """Grid (ceil(Lq / BM), B * H): one tile of queries against all keys."""
    bh = tl.program_id(1)
    b, h = (bh // H).to(tl.int64), bh % H
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    q_tile = tile(q + b * qb + h * qh, ql, i, Lq, D, BD)  # (BM, BD)
    k += b * kb + h * kh
    v += b * vb + h * vh
    count = key_count(lengths, b, Lk, HAS_LENGTHS)
    end = tl.minimum(count, (tl.program_id(0) + 1) * BM) if CAUSAL else count
    m = tl.full((BM,), float("-inf"), tl.float32)
    l = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    if DROPOUT:
        keys = row_keys(seed, bh * Lq + i)
    for start in tl.range(0, end, BN, num_stages=STAGES):
        j = start + tl.arange(0, BN)
        k_tile = tile(k, kl, j, count, D, BD)  # (BN, BD)
        # (BM, BN)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * (scale * 1.4426950408889634)
        seen = (j < count)[None, :]
        if CAUSAL:
            seen = seen & (j[None, :] <= i[:, None])
        s = tl.where(seen, s, float("-inf"))
        # finite, since every query sees key 0, which is in the first tile
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, 1)
        if DROPOUT:  # after the sum, because what is dropped still counts in the softmax
            p = tl.where(kept(keys[:, None], j[None, :], threshold), p * rescale, 0.0)
        v_tile = tile(v, vl, j, count, D, BD)
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision="ieee")
        m = m_new
    some = l > 0  # a query without any key never entered the loop, and gives 0
    l = tl.where(some, l, 1.0)
    store_tile(o + (b * Lq * H + h) * D, H * D, i, Lq, acc / l[:, None], D, BD)
    tl.store(lse + bh * Lq + i, tl.where(some, m, 0.0) + tl.log2(l), mask=i < Lq)


# --------------------------------------------------------------------------------------------------
# Backward in two phases


@triton.jit
def backward_queries(q, k, v, o, do, lse, delta, dq, lengths, seed,
                     qb, qh, ql, kb, kh, kl, vb, vh, vl, gb, gh, gl,
                     H, Lq, Lk, scale, threshold, rescale,
                     D: tl.constexpr, HAS_LENGTHS: tl.constexpr, CAUSAL: tl.constexpr,
                     DROPOUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
                     STAGES: tl.constexpr):
    """Grid (ceil(Lq / BM), B * H): dq and delta of one tile of queries, over all keys.
    gb, gh, gl: strides of do."""
    bh = tl.program_id(1)
    b, h = (bh // H).to(tl.int64), bh % H
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    own = (b * Lq * H + h) * D  # where this (batch, head) starts in o and dq
    q_tile = tile(q + b * qb + h * qh, ql, i, Lq, D, BD)
    do_tile = tile(do + b * gb + h * gh, gl, i, Lq, D, BD)
    o_tile = tile(o + own, H * D, i, Lq, D, BD)
    delta_i = tl.sum(o_tile.to(tl.float32) * do_tile.to(tl.float32), 1)
    tl.store(delta + bh * Lq + i, delta_i, mask=i < Lq)
    lse_i = tl.load(lse + bh * Lq + i, mask=i < Lq, other=0.0)
    k += b * kb + h * kh
    v += b * vb + h * vh
    count = key_count(lengths, b, Lk, HAS_LENGTHS)
    end = tl.minimum(count, (tl.program_id(0) + 1) * BM) if CAUSAL else count
    acc = tl.zeros((BM, BD), tl.float32)
    if DROPOUT:
        keys = row_keys(seed, bh * Lq + i)
    for start in tl.range(0, end, BN, num_stages=STAGES):
        j = start + tl.arange(0, BN)
        k_tile = tile(k, kl, j, count, D, BD)
        v_tile = tile(v, vl, j, count, D, BD)
        # (BM, BN)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * (scale * 1.4426950408889634)
        seen = (j < count)[None, :]
        if CAUSAL:
            seen = seen & (j[None, :] <= i[:, None])
        p = tl.where(seen, tl.exp2(s - lse_i[:, None]), 0.0)  # the forward's probabilities
        dp = tl.dot(do_tile, tl.trans(v_tile), input_precision="ieee")
        if DROPOUT:
            dp = tl.where(kept(keys[:, None], j[None, :], threshold), dp * rescale, 0.0)
        ds = p * (dp - delta_i[:, None])
        acc = tl.dot(ds.to(k_tile.dtype), k_tile, acc, input_precision="ieee")
    store_tile(dq + own, H * D, i, Lq, acc * scale, D, BD)


@triton.jit
def backward_keys(q, k, v, do, lse, delta, dk, dv, lengths, seed,
                  qb, qh, ql, kb, kh, kl, vb, vh, vl, gb, gh, gl,
                  H, Lq, Lk, scale, threshold, rescale,
                  D: tl.constexpr, HAS_LENGTHS: tl.constexpr, CAUSAL: tl.constexpr,
                  DROPOUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
                  STAGES: tl.constexpr):
    """Grid (ceil(Lk / BN), B * H): dk and dv of one tile of keys, over all queries. Scores are held
    as (keys, queries), the form in which both products take them. Keys beyond the length get 0."""
    bh = tl.program_id(1)
    b, h = (bh // H).to(tl.int64), bh % H
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    count = key_count(lengths, b, Lk, HAS_LENGTHS)
    k_tile = tile(k + b * kb + h * kh, kl, j, count, D, BD)
    v_tile = tile(v + b * vb + h * vh, vl, j, count, D, BD)
    q += b * qb + h * qh
    do += b * gb + h * gh
    dk_tile = tl.zeros((BN, BD), tl.float32)
    dv_tile = tl.zeros((BN, BD), tl.float32)
    begin = tl.program_id(0) * BN // BM * BM if CAUSAL else 0
    end = tl.where(tl.program_id(0) * BN < count, Lq, 0)  # a tile without keys has nothing to sum
    for start in tl.range(begin, end, BM, num_stages=STAGES):
        i = start + tl.arange(0, BM)
        q_tile = tile(q, ql, i, Lq, D, BD)
        do_tile = tile(do, gl, i, Lq, D, BD)
        lse_i = tl.load(lse + bh * Lq + i, mask=i < Lq, other=0.0)
        delta_i = tl.load(delta + bh * Lq + i, mask=i < Lq, other=0.0)
        # (BN, BM)
        s = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * (scale * 1.4426950408889634)
        seen = (j < count)[:, None] & (i < Lq)[None, :]
        if CAUSAL:
            seen = seen & (j[:, None] <= i[None, :])
        p = tl.where(seen, tl.exp2(s - lse_i[None, :]), 0.0)
        dp = tl.dot(v_tile, tl.trans(do_tile), input_precision="ieee")
        pz = p
        if DROPOUT:
            keep = kept(row_keys(seed, bh * Lq + i)[None, :], j[:, None], threshold)
            pz = tl.where(keep, p * rescale, 0.0)
            dp = tl.where(keep, dp * rescale, 0.0)
        dv_tile = tl.dot(pz.to(do_tile.dtype), do_tile, dv_tile, input_precision="ieee")
        ds = p * (dp - delta_i[None, :])
        dk_tile = tl.dot(ds.to(q_tile.dtype), q_tile, dk_tile, input_precision="ieee")
    own = (b * Lk * H + h) * D
    store_tile(dk + own, H * D, j, Lk, dk_tile * scale, D, BD)
    store_tile(dv + own, H * D, j, Lk, dv_tile, D, BD)


# --------------------------------------------------------------------------------------------------
# Backward in one pass


@triton.jit
def backward_whole(q, k, v, o, do, lse, dq, dk, dv, lengths, seed,
                   qb, qh, ql, kb, kh, kl, vb, vh, vl, gb, gh, gl,
                   H, Lq, Lk, scale, threshold, rescale,
                   D: tl.constexpr, HAS_LENGTHS: tl.constexpr, CAUSAL: tl.constexpr,
                   DROPOUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
                   STAGES: tl.constexpr):
    """Grid (B * H,): all gradients of one (batch, head); Lk <= BN."""
    bh = tl.program_id(0)
    b, h = (bh // H).to(tl.int64), bh % H
    j = tl.arange(0, BN)
    count = key_count(lengths, b, Lk, HAS_LENGTHS)
    k_tile = tile(k + b * kb + h * kh, kl, j, count, D, BD)
    v_tile = tile(v + b * vb + h * vh, vl, j, count, D, BD)
    q += b * qb + h * qh
    do += b * gb + h * gh
    own = (b * Lq * H + h) * D
    dk_tile = tl.zeros((BN, BD), tl.float32)
    dv_tile = tl.zeros((BN, BD), tl.float32)
    for start in tl.range(0, Lq, BM, num_stages=STAGES):
        i = start + tl.arange(0, BM)
        q_tile = tile(q, ql, i, Lq, D, BD)
        do_tile = tile(do, gl, i, Lq, D, BD)
        o_tile = tile(o + own, H * D, i, Lq, D, BD)
        delta_i = tl.sum(o_tile.to(tl.float32) * do_tile.to(tl.float32), 1)
        lse_i = tl.load(lse + bh * Lq + i, mask=i < Lq, other=0.0)
        # (BN, BM)
        s = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * (scale * 1.4426950408889634)
        seen = (j < count)[:, None] & (i < Lq)[None, :]
        if CAUSAL:
            seen = seen & (j[:, None] <= i[None, :])
        p = tl.where(seen, tl.exp2(s - lse_i[None, :]), 0.0)
        dp = tl.dot(v_tile, tl.trans(do_tile), input_precision="ieee")
        pz = p
        if DROPOUT:
            keep = kept(row_keys(seed, bh * Lq + i)[None, :], j[:, None], threshold)
            pz = tl.where(keep, p * rescale, 0.0)
            dp = tl.where(keep, dp * rescale, 0.0)
        dv_tile = tl.dot(pz.to(do_tile.dtype), do_tile, dv_tile, input_precision="ieee")
        ds = (p * (dp - delta_i[None, :])).to(q_tile.dtype)
        dk_tile = tl.dot(ds, q_tile, dk_tile, input_precision="ieee")
        dq_tile = tl.dot(tl.trans(ds), k_tile, input_precision="ieee")  # complete: over all keys
        store_tile(dq + own, H * D, i, Lq, dq_tile * scale, D, BD)
    own = (b * Lk * H + h) * D
    store_tile(dk + own, H * D, j, Lk, dk_tile * scale, D, BD)
    store_tile(dv + own, H * D, j, Lk, dv_tile, D, BD)


# --------------------------------------------------------------------------------------------------
# Launches


def unsupported(q, k, v, lengths):
    """Why these tensors cannot go through the kernels; empty if they can."""
    (B, H, Lq, D), types = q.shape, (torch.float32, torch.float16, torch.bfloat16)
    if not k.shape == v.shape == (B, H, k.shape[2], D):
        return (f"k and v must be (B, H, Lk, D), not {tuple(k.shape)} and {tuple(v.shape)}, "
                f"as q is {tuple(q.shape)}")
    if lengths is not None and not (lengths.shape == (B,) and lengths.is_contiguous()):
        return (f"lengths must be {B} contiguous numbers, not {tuple(lengths.shape)} "
                f"with strides {lengths.stride()}")
    if q.dtype not in types or not q.dtype == k.dtype == v.dtype:
        return ("q, k and v must all be float32, float16 or bfloat16, "
                f"not {q.dtype}, {k.dtype}, {v.dtype}")
    if not 16 <= D <= 128:
        return f"the head width must be 16 to 128, not {D}"
    if not (1 <= Lq <= 512 and 1 <= k.shape[2] <= 512):
        return f"1 to 512 queries and keys are supported, not {Lq} and {k.shape[2]}"
    if not 1 <= B * H <= 65535:
        return f"1 to 65535 (batch, head) pairs are supported, not {B * H}"
    if not q.stride(3) == k.stride(3) == v.stride(3) == 1:
        return ("q, k and v must be contiguous in D, "
                f"their strides are {q.stride()}, {k.stride()} and {v.stride()}")
    return ""


def constants(lengths, seed, causal, D, t):
    """The compile-time arguments, for the Tile t."""
    return dict(D=D, HAS_LENGTHS=lengths is not None, CAUSAL=causal, DROPOUT=seed is not None,
                BM=t.BM, BN=t.BN, BD=power_of_two(D), STAGES=t.stages, num_warps=t.warps,
                num_stages=t.stages)


def launch_forward(q, k, v, lengths, seed, causal, dropout_p):
    """-> o (B, H, Lq, D) whose memory is (B, Lq, H, D), lse (B, H, Lq) float32."""
    (B, H, Lq, D), Lk = q.shape, k.shape[2]
    o = q.new_empty(B, Lq, H, D)
    lse = q.new_empty(B, H, Lq, dtype=torch.float32)
    t = attention_tiles(Lq, Lk, D, q.dtype, architecture(q.device))["forward"]
    forward[(triton.cdiv(Lq, t.BM), B * H)](
        q, k, v, o, lse, lengths, seed, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        H, Lq, Lk, D**-0.5, *threshold_and_scale(dropout_p),
        **constants(lengths, seed, causal, D, t))
    return o.transpose(1, 2), lse


def launch_backward(q, k, v, o, lse, do, lengths, seed, causal, dropout_p):
    """-> dq, dk, dv, laid out in memory as o is."""
    (B, H, Lq, D), Lk = q.shape, k.shape[2]
    do = do if do.stride(3) == 1 else do.contiguous()
    o = o.transpose(1, 2).contiguous()  # free, since this is its memory's order
    dq, dk, dv = (q.new_empty(B, L, H, D) for L in (Lq, Lk, Lk))
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *do.stride()[:3])
    rest = (lengths, seed, *strides, H, Lq, Lk, D**-0.5, *threshold_and_scale(dropout_p))
    arch = architecture(q.device)
    tiles = attention_tiles(Lq, Lk, D, q.dtype, arch, B * H, seed is not None)

    def launch(kernel, grid, t, *tensors):
        kernel[grid](*tensors, *rest, **constants(lengths, seed, causal, D, t))

    if "whole" in tiles:
        launch(backward_whole, (B * H,), tiles["whole"], q, k, v, o, do, lse, dq, dk, dv)
    else:
        t, delta = tiles["queries"], torch.empty_like(lse)
        grid = triton.cdiv(Lq, t.BM), B * H
        launch(backward_queries, grid, t, q, k, v, o, do, lse, delta, dq)
        t = tiles["keys"]
        grid = triton.cdiv(Lk, t.BN), B * H
        launch(backward_keys, grid, t, q, k, v, do, lse, delta, dk, dv)
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)
