"""What lies between two calls of the denoiser's layers, when sampling latents, in one launch.

Between them the textbook code takes eleven: it casts the output, leads it (guidance), makes x0 and
the next x of it, casts that, doubles it for the two halves of guidance, joins it with the tokens of
the noise level and the condition, and adds positions. All of it works on a few hundred numbers, so
the time is that of the launches, and of the memory that each waits for. Here

    o = lerp(uncond, cond, scale)      x0 = p_x x + p_out o
    x = c_x x + c_0 x0 + c_last (x0 of the step before)      tokens = [x, time] + positions

is one kernel, which writes x, x0 and the next tokens where the old ones were. Where latent tokens
are narrower than the layers (latents.EachToken), `advance_narrow` multiplies with their Linears as
well: o is made of the layers' output, and the tokens of the new x. The coefficients are numbers of
the plan (diffusion.Step), so a CUDA graph holds them as they are. The twin in torch is the sampling
loop itself: diffusion.walk with fast.Guided.
"""
import torch

from kernels.backend import launched, tl, triton

TYPES = torch.float32, torch.float16, torch.bfloat16


@triton.jit
def guided(o, c, scale):
    """torch.lerp, which starts from the nearer end."""
    return tl.where(scale < 0.5, o + scale * (c - o), c - (c - o) * (1.0 - scale))


@triton.jit
def advanced(o, x, x0, p_x, p_out, c_x, c_0, c_last, mask, CLIP: tl.constexpr, LAST: tl.constexpr):
    """The new x of the network's output o. x, x0: addresses, which are written to."""
    old = tl.load(x, mask=mask, other=0.0)
    now = p_x * old + p_out * o
    if CLIP:
        now = tl.minimum(tl.maximum(now, -1.0), 1.0)
    new = c_x * old + c_0 * now
    if LAST:
        new += c_last * tl.load(x0, mask=mask, other=0.0)
    tl.store(x, new, mask=mask)
    tl.store(x0, now, mask=mask)
    return new


@triton.jit
def advance(out, x, x0, tokens, time, pe, p_x, p_out, c_x, c_0, c_last, scale, B, out_stride,
            N: tl.constexpr, L: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
            BOTH: tl.constexpr, CLIP: tl.constexpr, LAST: tl.constexpr):
    """Grid (B, N + 1): a program for each of a motion's N latent tokens, and one for its token of
    time.

    out         (2 B, >= N, D), or (B, ...) without BOTH, rows of out_stride numbers between motions
    x, x0       (B, N, D) float32: the sampler's, in place
    tokens      (2 B, L, D) or (B, L, D): the next input's tokens 0..N, in place
    time, pe    (D,) with its position added, and the positions (>= N, D)
    BOTH        both halves of guidance; CLIP: x0 to -1..1; LAST: read the x0 of the step before"""
    b, n = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, BD)
    there = d < D
    dtype = tokens.dtype.element_ty
    at = tokens + (b * L + n) * D + d
    if n == N:
        row = tl.load(time + d, mask=there, other=0.0)
        tl.store(at, row, mask=there)
        if BOTH:
            tl.store(at + B * L * D, row, mask=there)
    else:
        o = tl.load(out + b * out_stride + n * D + d, mask=there, other=0.0).to(tl.float32)
        if BOTH:
            c = tl.load(out + (B + b) * out_stride + n * D + d, mask=there, other=0.0)
            o = guided(o, c.to(tl.float32), scale)
        mine = (b * N + n) * D + d
        new = advanced(o, x + mine, x0 + mine, p_x, p_out, c_x, c_0, c_last, there, CLIP, LAST)
        position = tl.load(pe + n * D + d, mask=there, other=0.0).to(tl.float32)
        row = (new.to(dtype).to(tl.float32) + position).to(dtype)
        tl.store(at, row, mask=there)
        if BOTH:
            tl.store(at + B * L * D, row, mask=there)


@triton.jit
def advance_narrow(out, x, x0, tokens, time, pe, w_in, b_in, w_out, b_out, p_x, p_out, c_x, c_0,
                   c_last, scale, B, out_stride, N: tl.constexpr, L: tl.constexpr, D: tl.constexpr,
                   W: tl.constexpr, BW: tl.constexpr, CHUNK: tl.constexpr, BOTH: tl.constexpr,
                   CLIP: tl.constexpr, LAST: tl.constexpr):
    """`advance` for x, x0 (B, N, W), where `out` is what the layers give, (2 B, >= N, D).

    w_in, b_in    (N, D, W), (N, D): latent token n -> the layers' token n
    w_out, b_out  (N, W, D), (N, W): and back
    The Linears round what they give to the type of the tokens, as they do in torch."""
    b, n = tl.program_id(0), tl.program_id(1)
    dtype = tokens.dtype.element_ty
    at = tokens + (b * L + n) * D
    w = tl.arange(0, BW)
    inside = w < W
    if n == N:
        for start in range(0, D, CHUNK):
            d = start + tl.arange(0, CHUNK)
            row = tl.load(time + d, mask=d < D, other=0.0)
            tl.store(at + d, row, mask=d < D)
            if BOTH:
                tl.store(at + B * L * D + d, row, mask=d < D)
    else:
        o = tl.load(b_out + n * W + w, mask=inside, other=0.0).to(tl.float32)
        c = o
        for start in range(0, D, CHUNK):
            d = start + tl.arange(0, CHUNK)
            each = inside[:, None] & (d < D)[None, :]
            weight = tl.load(w_out + (n * W + w[:, None]) * D + d[None, :], mask=each, other=0.0)
            weight = weight.to(tl.float32)
            hidden = tl.load(out + b * out_stride + n * D + d, mask=d < D, other=0.0)
            o += tl.sum(weight * hidden.to(tl.float32)[None, :], 1)
            if BOTH:
                hidden = tl.load(out + (B + b) * out_stride + n * D + d, mask=d < D, other=0.0)
                c += tl.sum(weight * hidden.to(tl.float32)[None, :], 1)
        o = o.to(dtype).to(tl.float32)
        if BOTH:
            o = guided(o, c.to(dtype).to(tl.float32), scale)
        mine = (b * N + n) * W + w
        new = advanced(o, x + mine, x0 + mine, p_x, p_out, c_x, c_0, c_last, inside, CLIP, LAST)
        new = new.to(dtype).to(tl.float32)
        for start in range(0, D, CHUNK):
            d = start + tl.arange(0, CHUNK)
            each = (d < D)[:, None] & inside[None, :]
            weight = tl.load(w_in + (n * D + d[:, None]) * W + w[None, :], mask=each, other=0.0)
            row = tl.load(b_in + n * D + d, mask=d < D, other=0.0).to(tl.float32)
            row += tl.sum(weight.to(tl.float32) * new[None, :], 1)
            position = tl.load(pe + n * D + d, mask=d < D, other=0.0).to(tl.float32)
            row = (row.to(dtype).to(tl.float32) + position).to(dtype)
            tl.store(at + d, row, mask=d < D)
            if BOTH:
                tl.store(at + B * L * D + d, row, mask=d < D)


MANY = 128  # motions, from which on the products for narrow tokens are cuBLAS's
NUMBERS = 2**13  # of a Linear's weight that a program holds at once


def unsupported(x_T, tokens, pe, narrow=None):
    """Why `walk` cannot take these; empty if it can."""
    if narrow and len(x_T) > MANY:
        return f"for more than {MANY} motions, Linears of their own are faster"
    if x_T.dtype != torch.float32 or tokens.dtype not in TYPES or pe.dtype != tokens.dtype:
        return "it takes float32 latents, and tokens and positions of float32, float16 or bfloat16"
    if not 1 <= x_T.shape[2] <= 4096 or not x_T.numel():
        return f"it takes widths of 1 to 4096, not {x_T.shape[2]}"
    return ""


def walk(steps, x_T, tokens, times, pe, ask, scale=None, clip=False, narrow=None):
    """The sampling loop -> x0 (B, N, D), float32. `unsupported` must have returned "".

    steps    diffusion.Steps without noise
    x_T      (B, N, D) float32
    tokens   (2 B, L, D) with both halves of guidance, or (B, L, D): the first step's, positions and
             all; they are written over
    times    (steps, D): the tokens of time, with their position
    pe       (>= N, D): the positions of the latent tokens
    ask      tokens -> the network's output for the first N of them
    scale    of guidance; None without
    narrow   for latent tokens of W < D numbers, x_T (B, N, W): the N Linears W -> D before what
             `ask` computes, and the N Linears D -> W behind it"""
    (B, N, W), both, D = x_T.shape, scale is not None, tokens.shape[2]
    x, x0, pe = x_T.clone(), torch.zeros_like(x_T), pe.contiguous()
    kernel, more, sizes = advance, (), {"BD": max(16, triton.next_power_of_2(D))}
    if narrow:
        kernel = advance_narrow
        more = [torch.stack([getattr(linear, name) for linear in side])
                for side in narrow for name in ("weight", "bias")]
        BW = max(16, triton.next_power_of_2(W))
        sizes = {"W": W, "BW": BW, "CHUNK": max(1, min(triton.next_power_of_2(D), NUMBERS // BW))}
    assert tokens.is_contiguous() and times.is_contiguous() and x.is_contiguous()
    for i, step in enumerate(steps):
        out = ask(tokens)
        if out.stride()[1:] != (D, 1):
            out = out.contiguous()
        time = times[min(i + 1, len(steps) - 1)]  # nobody reads what the last step writes
        with launched("denoising_step", x):
            kernel[(B, N + 1)](
                out, x, x0, tokens, time, pe, *more, step.p_x, step.p_out, step.c_x, step.c_0,
                step.c_last, float(scale or 0), B, out.stride(0), N=N, L=tokens.shape[1], D=D,
                **sizes, BOTH=both, CLIP=clip, LAST=step.c_last != 0,
                num_warps=8 if narrow else 4 if D > 128 else 1)
    return x
