"""Attention among few keys, and bias + GELU, for training on a CPU: one call of C each way.

torch cuts attention into eight operations and as many copies; in the denoiser, where a clip has a
handful of tokens, that took a quarter of a training step. training.c reads q, k and v as the Linear
before it made them, side by side, and writes their gradient in the same way, so nothing is moved in
between. GELU adds the bias, and sums its gradient, on the way. Sums and probabilities are float32.
Kept for the backward is what came in.
"""
import ctypes
import functools

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import c_library
from kernels.attention import split_heads, torch_attention
from kernels.backend import calls
from kernels.dropout import MAX_THREADS, NUMBER, POINTER, SIZE, TYPES, unwatched

MOST_KEYS = 256  # from there on torch's products are as fast


class Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "bf16 B H Lq Lk D causal threads".split()] + [
        ("q_row", ctypes.c_int64), ("k_row", ctypes.c_int64), ("lengths", ctypes.c_void_p)]


GELU = [NUMBER, SIZE, SIZE, NUMBER]
SIGNATURES = {
    "attention_room": (SIZE, [ctypes.POINTER(Sizes)]),
    "attend": (None, [ctypes.POINTER(Sizes), *[POINTER] * 9]),
    "bias_gelu": (None, [POINTER] * 3 + GELU), "bias_gelu_backward": (None, [POINTER] * 5 + GELU)}


@functools.lru_cache(maxsize=None)
def library():
    """training.c with its functions declared, or a text that says why there is none."""
    return c_library.functions("training.c", SIGNATURES)


def unsupported(*tensors):
    """Why training.c cannot take these tensors, the first of which needs a gradient; empty if it
    can."""
    if not torch.is_grad_enabled() or not tensors[0].requires_grad:
        return "there is no gradient"
    why = unwatched(*tensors)
    if why:  # nor is the library looked for: what compiles a network cannot follow that
        return why
    made = library()
    return made if isinstance(made, str) else ""


# --------------------------------------------------------------------------------------------------
# Attention


def takes_attention(q, kv, heads, lengths, dropout_p):
    """Whether `attention` can take these."""
    if dropout_p or unsupported(q, kv) or q.dim() != 3:
        return False
    if q.shape[2] % (heads * (3 if kv is None else 1)):
        return False
    if kv is not None and (kv.shape != (len(q), kv.shape[1], 2 * q.shape[2]) or
                           kv.dtype != q.dtype):
        return False
    keys = (q if kv is None else kv).shape[1]
    if not q.numel() or not 0 < keys <= MOST_KEYS:
        return False
    return lengths is None or lengths.device.type == "cpu" and lengths.shape == (len(q),)


def attention(q, kv, heads, lengths=None, causal=False):
    """As kernels.packed_attention, for tensors that fit."""
    if lengths is not None:
        keys = (q if kv is None else kv).shape[1]
        lengths = lengths.detach().clamp(0, keys).to(torch.int32).contiguous()
    calls["attention", "c"] += 1
    # made contiguous here: what backward saves is then a tensor that autograd knows
    return Attention.apply(q.contiguous(), None if kv is None else kv.contiguous(), lengths, heads,
                           causal)


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, kv, lengths, heads, causal):
        ctx.save_for_backward(q, kv, lengths)
        ctx.rest = heads, causal
        sizes, pointers, room = laid_out(q, kv, lengths, heads, causal)
        o = q.new_empty(*q.shape[:2], sizes.H * sizes.D)
        library().attend(sizes, *pointers, o.data_ptr(), *[None] * 4, room.data_ptr())
        return o

    @staticmethod
    def backward(ctx, do):
        (q, kv, lengths), (heads, causal) = ctx.saved_tensors, ctx.rest
        if torch.is_grad_enabled() or unwatched(do) or do.dtype != q.dtype:
            with torch.enable_grad():  # the gradient of this gradient is asked for, or a vmap
                o = plain(q, kv, heads, lengths, causal)
                inputs = [t for t, need in zip((q, kv), ctx.needs_input_grad) if need]
                found = iter(torch.autograd.grad(o, inputs, do, create_graph=True))
            asked = ctx.needs_input_grad[:2]
            return *(next(found) if need else None for need in asked), None, None, None
        sizes, pointers, room = laid_out(q, kv, lengths, heads, causal)
        do, dq = do.contiguous(), torch.empty_like(q)
        dkv = None if kv is None else torch.empty_like(kv)
        library().attend(sizes, *pointers, None, do.data_ptr(), *places(dq, dkv, sizes),
                         room.data_ptr())
        return dq, dkv, None, None, None


def places(q, kv, sizes):
    """Where q, k and v begin."""
    step = sizes.H * sizes.D * q.element_size()
    if kv is None:
        return [q.data_ptr() + i * step for i in range(3)]
    return q.data_ptr(), kv.data_ptr(), kv.data_ptr() + step


def laid_out(q, kv, lengths, heads, causal):
    """-> what training.c asks for: Sizes, where q, k and v begin, and memory for its threads"""
    (B, Lq, q_row), (_, Lk, k_row) = q.shape, (q if kv is None else kv).shape
    D = (q_row // 3 if kv is None else q_row) // heads
    threads = min(torch.get_num_threads(), MAX_THREADS, 1 + B * heads * Lq * Lk * D // 2**17)
    sizes = Sizes(q.dtype == torch.bfloat16, B, heads, Lq, Lk, D, causal, threads, q_row, k_row,
                  None if lengths is None else lengths.data_ptr())
    room = torch.zeros(threads * library().attention_room(sizes), dtype=torch.float32, device="cpu")
    return sizes, places(q, kv, sizes), room


def plain(q, kv, heads, lengths, causal):
    """The same in torch's own operations, those that have a second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        o = torch_attention(*split_heads(q, kv, heads), lengths, causal)
    return o.transpose(1, 2).flatten(2)


# --------------------------------------------------------------------------------------------------
# Bias + GELU


def takes_gelu(x, weight, bias):
    """Whether `linear_gelu` can take these."""
    if unsupported(weight, x, bias) or not x.numel():
        return False
    return bias.dtype == torch.float32 and bias.shape == weight.shape[:1]


def linear_gelu(x, weight, bias):
    """As kernels.linear_gelu, without dropout, for tensors that fit."""
    h = F.linear(x, weight)
    if h.dtype not in TYPES:  # autocast's choice
        return F.gelu(h + bias.to(h.dtype))
    calls["linear_gelu", "c"] += 1
    return BiasGelu.apply(h.contiguous(), bias.contiguous())


class BiasGelu(torch.autograd.Function):
    """gelu(h + bias): h (..., C), bias (C,) float32"""

    @staticmethod
    def forward(ctx, h, bias):
        ctx.save_for_backward(h, bias)
        y, (rows, C, threads) = torch.empty_like(h), shared(h)
        library().bias_gelu(h.data_ptr(), bias.data_ptr(), y.data_ptr(), h.dtype == torch.bfloat16,
                            rows, C, threads)
        return y

    @staticmethod
    def backward(ctx, dy):
        h, bias = ctx.saved_tensors
        if torch.is_grad_enabled() or unwatched(dy) or dy.dtype != h.dtype:
            with torch.enable_grad():
                y = F.gelu(h + bias.to(h.dtype))
                inputs = [t for t, need in zip((h, bias), ctx.needs_input_grad) if need]
                found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
            return tuple(next(found) if need else None for need in ctx.needs_input_grad)
        dy, dh, (rows, C, threads) = dy.contiguous(), torch.empty_like(h), shared(h)
        dbiases = torch.zeros(threads, C, dtype=torch.float32, device="cpu")
        library().bias_gelu_backward(
            h.data_ptr(), bias.data_ptr(), dy.data_ptr(), dh.data_ptr(), dbiases.data_ptr(),
            h.dtype == torch.bfloat16, rows, C, threads)
        return dh, dbiases.sum(0)


def shared(h):
    """-> rows, columns, and how many threads they are worth"""
    C = h.shape[-1]
    return h.numel() // C, C, min(torch.get_num_threads(), MAX_THREADS, 1 + h.numel() // 2**14)
