"""Dropout that is never stored: the backward repeats the forward's decisions from its seed.

A 64-bit seed and a row give a 32-bit key (`row_keys`); a key and a column give the number that
decides (`kept`). Both use a mixing function of two multiplications, after which every input bit
changes every output bit with a probability of nearly 1/2. Philox, ten rounds for each element,
would take some 100 integer instructions, more than the attention itself.

On a GPU the kernels for attention, layer norm and GELU drop on their way. On a CPU dropout.c does,
for float32 and bfloat16: torch's own dropout draws one number after another, which took a third of
a training step. Both drop the same elements for the same seed.
"""
import ctypes
import functools

import torch
import torch.nn.functional as F

from kernels import backend, c_library
from kernels.backend import tl, triton

# --------------------------------------------------------------------------------------------------
# On a GPU


@triton.jit
def mix(x):
    """uint32 block -> uint32 block, one to one."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def row_keys(seed, rows):
    """seed: pointer to one int64; rows: int32 block -> uint32 block."""
    seed = tl.load(seed)
    low = mix(rows.to(tl.uint32, bitcast=True) ^ seed.to(tl.uint32))
    return mix(low + (seed >> 32).to(tl.uint32))


@triton.jit
def kept(keys, columns, threshold):
    """keys: uint32 block from row_keys; columns: int32 block of a shape that broadcasts with it ->
    bool block, True with probability 1 - threshold / 2^24."""
    drawn = mix(keys ^ (columns.to(tl.uint32, bitcast=True) * 0x9E3779B1)) >> 8
    return drawn.to(tl.int32) >= threshold


def threshold_and_scale(dropout_p):
    """The kernels' two arguments for dropping a share `dropout_p` of the elements: threshold out of
    2^24, scale of the rest."""
    return round(dropout_p * 2**24), 1.0 / (1.0 - dropout_p)


# --------------------------------------------------------------------------------------------------
# On a CPU

MAX_THREADS = 16  # these are short calls
TYPES = torch.float32, torch.bfloat16


POINTER, NUMBER, SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
RULE = [SIZE, SIZE, SIZE, SIZE, NUMBER, ctypes.c_float, NUMBER]  # what `rule` gives
SOFTMAX = [POINTER, POINTER, POINTER, SIZE, ctypes.c_float, *RULE]
SIGNATURES = {"drop": (None, [POINTER, POINTER, POINTER, NUMBER, NUMBER, *RULE]),
              "softmax_drop": (None, SOFTMAX), "softmax_drop_backward": (None, [POINTER, *SOFTMAX])}


@functools.lru_cache(maxsize=None)
def library():
    """dropout.c with its functions declared, or a text that says why there is none."""
    return c_library.functions("dropout.c", SIGNATURES)


def unwatched(*tensors):
    """Why C cannot work on these tensors (None is none) behind torch's back; empty if it can."""
    if backend.MODE != "auto" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "MLD_KERNELS must be auto, and nothing compiled or traced"
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.maybe_current_level():
        return "torch's operations are being watched or transformed"
    if torch.autograd.forward_ad._current_level >= 0:
        return "it has no forward-mode derivative"
    for t in tensors:
        if t is not None and (type(t) not in (torch.Tensor, torch.nn.Parameter)
                              or t.device.type != "cpu" or t.dtype not in TYPES
                              or t.layout != torch.strided or t.is_neg()
                              or not torch._C._has_storage(t)):  # as in a vmap over gradients
            return "it takes float32 and bfloat16 tensors on a CPU"
    return ""


def unsupported(x, dropout_p, *others):
    """Why dropout.c cannot drop a share `dropout_p` of x; empty if it can. others: tensors that
    take part, or None."""
    why = unwatched(x, *others)
    if why:
        return why
    if not x.numel() or x.dim() == 0:
        return "there is nothing to drop"
    if x.shape[-1] >= 2**32 or x.numel() // x.shape[-1] >= 2**32:
        return "rows and columns are counted in 32 bits"
    if not 0 < round(dropout_p * 2**24) < 2**24:
        return "the share is 0 or 1 to 24 bits"
    made = library()
    return made if isinstance(made, str) else ""


def rule(seed, dropout_p, rows, columns, first=0):
    """The last arguments of dropout.c's functions, for a matrix (rows, columns)."""
    threads = min(torch.get_num_threads(), MAX_THREADS, 1 + rows * columns // 2**15)
    threshold = round(dropout_p * 2**24)
    return rows, columns, first, seed, threshold, 2**24 / (2**24 - threshold), threads


def draw_seed():
    """From torch's own generator, so that torch.manual_seed repeats a dropout."""
    return int(torch.randint(2**62, (1,)))


def factors(shape, seed, dropout_p):
    """-> what a dropout of this seed multiplies a tensor of this shape by."""
    z = torch.ones(shape, dtype=torch.float32, device="cpu")
    library().drop(z.data_ptr(), None, z.data_ptr(), False, False,
                   *rule(seed, dropout_p, z.numel() // shape[-1], shape[-1]))
    return z


class Dropout(torch.autograd.Function):
    """residual + dropout(x), where residual may be None. It is linear in x, so its backward is
    another dropout of the same seed, and has a backward in turn."""

    @staticmethod
    def forward(ctx, x, residual, seed, dropout_p, dtype, in_place):
        ctx.rest = seed, dropout_p, x.dtype
        ctx.set_materialize_grads(False)
        if in_place:
            ctx.mark_dirty(x)
            y = x
        else:
            x = x.contiguous()
            y = torch.empty(x.shape, dtype=dtype)
        if residual is not None:
            residual = residual.contiguous()
        library().drop(x.data_ptr(), None if residual is None else residual.data_ptr(),
                       y.data_ptr(), x.dtype == torch.bfloat16, y.dtype == torch.bfloat16,
                       *rule(seed, dropout_p, x.numel() // x.shape[-1], x.shape[-1]))
        return y

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return (None,) * 6
        dx, (seed, dropout_p, dtype) = None, ctx.rest
        if ctx.needs_input_grad[0] and unsupported(dy, dropout_p):
            dx = (dy * factors(dy.shape, seed, dropout_p)).to(dtype)
        elif ctx.needs_input_grad[0]:
            dx = Dropout.apply(dy, None, seed, dropout_p, dtype, False)
        return dx, dy if ctx.needs_input_grad[1] else None, None, None, None, None


def dropout(x, dropout_p, residual=None, in_place=False):
    """residual + dropout(x), or dropout(x) where residual is None. x (..., C), residual of the same
    shape, dropout_p below 1.

    The result has the type that torch's sum has. in_place: x may be overwritten, since nobody else
    has it. torch's own dropout runs where dropout.c cannot."""
    if not dropout_p:
        return x if residual is None else residual + x
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    fits = residual is None or residual.shape == x.shape and residual.dtype == dtype
    if not fits or unsupported(x, dropout_p, residual):
        y = F.dropout(x, dropout_p)
        return y if residual is None else residual + y
    return Dropout.apply(x, residual, draw_seed(), dropout_p, dtype,
                         in_place and x.is_contiguous())
