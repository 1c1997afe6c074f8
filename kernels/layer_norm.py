"""Residual add, dropout and layer norm in one pass:
s = residual + dropout(x), y = (s - mean) * rstd * weight + bias.

Forward, one program per tile of ROWS rows:

    load     x and residual tiles (ROWS, C), weight and bias (C,)
    on chip  s, its mean and its variance (two passes over registers, not memory), all in float32
    store    y; s, which the backward needs, and a pre-norm layer too; mean and rstd (ROWS,) float32

x and residual are read, s and y written: at B=64, L=198, C=256 in bfloat16 4 x 6.49 MB = 26.0 MB,
at least 8.7 us on an H100 (3.0 TB/s). Unfused, an add and then a layer norm move 32.4 MB, 10.8 us.
The backward reads dy and s and writes ds: 19.5 MB, 6.5 us.

Backward, with n = (s - mean) rstd and g = dy weight:

    ds = rstd (g - mean_c(g) - n mean_c(g n)) [+ what flows into s itself]
    dweight = sum_rows dy n      dbias = sum_rows dy

The sums over all rows need no atomics: a fixed number of programs walk over the rows, each adds up
its own (C,) part in registers and stores it, and torch sums the (programs, C) parts. So the same
input gives the same bits.
"""
import torch
import torch.nn.functional as F

from kernels.backend import tl, triton
from kernels.dropout import dropout, kept, row_keys, threshold_and_scale
from kernels.tiles import row_tiles

# --------------------------------------------------------------------------------------------------
# The plain torch twin


def torch_add_layer_norm(x, residual, weight, bias, eps=1e-5, dropout_p=0.0):
    """The same in plain torch -> (y, s); see `kernels.add_layer_norm` for the arguments."""
    s = dropout(x, dropout_p, residual)
    return F.layer_norm(s, weight.shape, weight, bias, eps), s


# --------------------------------------------------------------------------------------------------
# The kernels. All matrices are (R, C) and contiguous, weight and bias (C,), mean and rstd (R,)
# float32.


@triton.jit
def forward(x, residual, weight, bias, seed, y, s, mean, rstd, R, eps, threshold, rescale,
            C: tl.constexpr, HAS_RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, SAVE: tl.constexpr,
            ROWS: tl.constexpr, BC: tl.constexpr):
    """Grid (ceil(R / ROWS),). SAVE: store s. BC: C rounded up to a power of two."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BC)
    there = columns < C
    mask = (rows < R)[:, None] & there[None, :]
    at = rows.to(tl.int64)[:, None] * C + columns[None, :]
    t = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if DROPOUT:
        keep = kept(row_keys(seed, rows)[:, None], columns[None, :], threshold)
        t = tl.where(keep, t * rescale, 0.0)
    if HAS_RESIDUAL:
        t += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if SAVE:
        tl.store(s + at, t.to(s.dtype.element_ty), mask=mask)
    mu = tl.sum(t, 1) / C
    t = tl.where(there[None, :], t - mu[:, None], 0.0)
    r = tl.rsqrt(tl.sum(t * t, 1) / C + eps)
    w = tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=there, other=0.0).to(tl.float32)
    out = t * r[:, None] * w[None, :] + shift[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=mask)
    tl.store(mean + rows, mu, mask=rows < R)
    tl.store(rstd + rows, r, mask=rows < R)


@triton.jit
def backward(dy, dsum, s, weight, mean, rstd, seed, ds, dx, dweights, dbiases,
             R, threshold, rescale,
             C: tl.constexpr, HAS_DSUM: tl.constexpr, DROPOUT: tl.constexpr,
             WRITE_DX: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr):
    """Grid (programs,): each takes every programs-th tile of rows. dsum: gradient of the second
    output, s. ds: gradient of the residual. dx: written if WRITE_DX, where dropout or another type
    makes it differ from ds. dweights, dbiases (programs, C), float32."""
    columns = tl.arange(0, BC)
    there = columns < C
    w = tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    # summed row by row: adding rows up in the loop would exchange numbers between warps each time
    dw = tl.zeros((ROWS, BC), tl.float32)
    db = tl.zeros((ROWS, BC), tl.float32)
    for start in tl.range(tl.program_id(0) * ROWS, R, tl.num_programs(0) * ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < R)[:, None] & there[None, :]
        at = rows.to(tl.int64)[:, None] * C + columns[None, :]
        mu = tl.load(mean + rows, mask=rows < R, other=0.0)
        r = tl.load(rstd + rows, mask=rows < R, other=0.0)
        g = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        n = (tl.load(s + at, mask=mask, other=0.0).to(tl.float32) - mu[:, None]) * r[:, None]
        n = tl.where(mask, n, 0.0)
        dw += g * n
        db += g
        g = g * w[None, :]
        d = (g - (tl.sum(g, 1) / C)[:, None] - n * (tl.sum(g * n, 1) / C)[:, None]) * r[:, None]
        if HAS_DSUM:
            d += tl.load(dsum + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(ds + at, d.to(ds.dtype.element_ty), mask=mask)
        if WRITE_DX:
            if DROPOUT:
                keep = kept(row_keys(seed, rows)[:, None], columns[None, :], threshold)
                d = tl.where(keep, d * rescale, 0.0)
            tl.store(dx + at, d.to(dx.dtype.element_ty), mask=mask)
    part = tl.program_id(0) * C + columns
    tl.store(dweights + part, tl.sum(dw, 0), mask=there)
    tl.store(dbiases + part, tl.sum(db, 0), mask=there)


# --------------------------------------------------------------------------------------------------
# Launches


def unsupported(x, residual, weight, bias):
    """Why these tensors cannot go through the kernels; empty if they can."""
    types, C = (torch.float32, torch.float16, torch.bfloat16), x.shape[-1]
    if any(t.dtype not in types for t in (x, weight, bias)):
        return (f"it takes float32, float16 and bfloat16, not {x.dtype} "
                f"with weights of {weight.dtype}")
    if not (weight.shape == bias.shape == (C,) and weight.is_contiguous() and bias.is_contiguous()):
        return (f"weight and bias must be {C} contiguous numbers each, "
                f"not {weight.shape} and {bias.shape}")
    if C > 1024 or not x.numel():
        return f"it takes 1 to 1024 columns, not a tensor of shape {tuple(x.shape)}"
    if residual is not None and (residual.shape != x.shape
                                 or residual.dtype not in (torch.float32, x.dtype)):
        return (f"residual {tuple(residual.shape)} {residual.dtype} does not go with "
                f"x {tuple(x.shape)} {x.dtype}")
    return ""


def sum_type(x, residual):
    """The type of s = residual + x."""
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


def launch_forward(x, residual, weight, bias, seed, eps, dropout_p, save, dtype):
    """-> y (x.shape) of type `dtype`; s like it, but of the sum's own type, empty unless `save`;
    mean and rstd (R,) float32."""
    C = x.shape[-1]
    x, R = x.contiguous(), x.numel() // C
    residual = None if residual is None else residual.contiguous()
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    s = torch.empty(x.shape if save else 0, dtype=sum_type(x, residual), device=x.device)
    mean, rstd = (torch.empty(R, dtype=torch.float32, device=x.device) for _ in range(2))
    rows, BC, warps, _ = row_tiles(R, C)
    forward[(triton.cdiv(R, rows),)](
        x, residual, weight, bias, seed, y, s, mean, rstd, R, eps,
        *threshold_and_scale(dropout_p), C=C, HAS_RESIDUAL=residual is not None,
        DROPOUT=seed is not None, SAVE=save, ROWS=rows, BC=BC, num_warps=warps)
    return y, s, mean, rstd


def launch_backward(dy, dsum, s, weight, mean, rstd, seed, dropout_p, x_dtype):
    """-> ds (s.shape), dx of type `x_dtype` (empty where it is ds), dweight (C,), dbias (C,)."""
    C = s.shape[-1]
    s, dy, R = s.contiguous(), dy.contiguous(), s.numel() // C
    dsum = None if dsum is None else dsum.contiguous()
    write_dx = seed is not None or x_dtype != s.dtype
    ds = torch.empty_like(s)
    dx = torch.empty(s.shape if write_dx else 0, dtype=x_dtype, device=s.device)
    rows, BC, warps, programs = row_tiles(R, C)
    parts = torch.empty(2, programs, C, dtype=torch.float32, device=s.device)
    backward[(programs,)](
        dy, dsum, s, weight, mean, rstd, seed, ds, dx, parts[0], parts[1], R,
        *threshold_and_scale(dropout_p), C=C, HAS_DSUM=dsum is not None,
        DROPOUT=seed is not None, WRITE_DX=write_dx, ROWS=rows, BC=BC, num_warps=warps)
    return ds, dx, *(part.sum(0).to(weight.dtype) for part in parts)
