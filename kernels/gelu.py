"""Bias, exact GELU and dropout in one pass over the product of a Linear:
y = dropout(z Phi(z)), z = h + bias, h = x W^T.

Phi(z) = (1 + erf(z / sqrt 2)) / 2 is the normal distribution function, and
(z Phi)' = Phi(z) + z exp(-z^2/2) / sqrt(2 pi).

cuBLAS makes the product. What remains is to read h (R, F) and to write y (R, F): at B=64, L=198,
F=1024 in bfloat16 2 x 25.95 MB = 51.9 MB, at least 17.3 us on an H100 (3.0 TB/s). The backward
reads h and dy and writes dh: 77.9 MB, 26.0 us. That is more than attention's floor, since the
hidden layer is four times as wide; torch's dropout behind it would move another 65 MB each way. The
bias gradient, sum_rows dh, is added up on the way, in parts, as in layer_norm.py.
"""
import torch
import torch.nn.functional as F

from kernels.backend import tl, triton
from kernels.dropout import dropout, kept, row_keys, threshold_and_scale
from kernels.tiles import gelu_tiles

# --------------------------------------------------------------------------------------------------
# The plain torch twin


def torch_linear_gelu(x, weight, bias, dropout_p=0.0):
    """The same function in plain torch; see `kernels.linear_gelu` for the arguments."""
    return dropout(F.gelu(F.linear(x, weight, bias)), dropout_p, in_place=True)


# --------------------------------------------------------------------------------------------------
# The kernels. h, y, dy, dh (R, C) contiguous, bias (C,). seed: pointer to one int64, read if
# DROPOUT.


@triton.jit
def forward(h, bias, seed, y, R, threshold, rescale,
            C: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr):
    """Grid (ceil(R / ROWS), ceil(C / BC))."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (rows < R)[:, None] & (columns < C)[None, :]
    at = rows.to(tl.int64)[:, None] * C + columns[None, :]
    z = tl.load(h + at, mask=mask, other=0.0).to(tl.float32)
    z += tl.load(bias + columns, mask=columns < C, other=0.0).to(tl.float32)[None, :]
    out = z * (0.5 + 0.5 * tl.erf(z * 0.7071067811865476))
    if DROPOUT:
        keep = kept(row_keys(seed, rows)[:, None], columns[None, :], threshold)
        out = tl.where(keep, out * rescale, 0.0)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def backward(h, bias, dy, seed, dh, dbiases, R, threshold, rescale,
             C: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr):
    """Grid (programs, ceil(C / BC)): each takes every programs-th tile of rows. dbiases
    (programs, C) float32."""
    columns = tl.program_id(1) * BC + tl.arange(0, BC)
    shift = tl.load(bias + columns, mask=columns < C, other=0.0).to(tl.float32)
    db = tl.zeros((ROWS, BC), tl.float32)  # see layer_norm.py's backward
    for start in tl.range(tl.program_id(0) * ROWS, R, tl.num_programs(0) * ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < R)[:, None] & (columns < C)[None, :]
        at = rows.to(tl.int64)[:, None] * C + columns[None, :]
        z = tl.load(h + at, mask=mask, other=0.0).to(tl.float32) + shift[None, :]
        g = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        if DROPOUT:
            keep = kept(row_keys(seed, rows)[:, None], columns[None, :], threshold)
            g = tl.where(keep, g * rescale, 0.0)
        g *= (0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
              + z * tl.exp(-0.5 * z * z) * 0.3989422804014327)
        db += g
        tl.store(dh + at, g.to(dh.dtype.element_ty), mask=mask)
    tl.store(dbiases + tl.program_id(0) * C + columns, tl.sum(db, 0), mask=columns < C)


# --------------------------------------------------------------------------------------------------
# Launches


def unsupported(x, weight, bias):
    """Why these tensors cannot go through the kernels; empty if they can."""
    types = torch.float32, torch.float16, torch.bfloat16
    if any(t.dtype not in types for t in (x, weight, bias)):
        return (f"it takes float32, float16 and bfloat16, not {x.dtype} "
                f"with weights of {weight.dtype}")
    if bias.shape != weight.shape[:1] or not bias.is_contiguous():
        return (f"bias must be {len(weight)} contiguous numbers, not {tuple(bias.shape)} "
                f"with strides {bias.stride()}")
    return "" if x.numel() else f"x is empty, {tuple(x.shape)}"


def launch_forward(h, bias, seed, dropout_p):
    """h (..., C), bias (C,) -> y (..., C)."""
    h, C = h.contiguous(), h.shape[-1]
    y, R = torch.empty_like(h), h.numel() // C
    rows, BC, warps, _ = gelu_tiles(R, C)
    forward[(triton.cdiv(R, rows), triton.cdiv(C, BC))](
        h, bias, seed, y, R, *threshold_and_scale(dropout_p),
        C=C, DROPOUT=seed is not None, ROWS=rows, BC=BC, num_warps=warps)
    return y


def launch_backward(h, bias, dy, seed, dropout_p):
    """-> dh (..., C), dbias (C,)."""
    h, dy, C = h.contiguous(), dy.contiguous(), h.shape[-1]
    dh, R = torch.empty_like(h), h.numel() // C
    rows, BC, warps, programs = gelu_tiles(R, C)
    parts = torch.empty(programs, C, dtype=torch.float32, device=h.device)
    backward[(programs, triton.cdiv(C, BC))](
        h, bias, dy, seed, dh, parts, R, *threshold_and_scale(dropout_p),
        C=C, DROPOUT=seed is not None, ROWS=rows, BC=BC, num_warps=warps)
    return dh, parts.sum(0).to(bias.dtype)
