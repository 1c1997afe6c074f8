"""The operations that a transformer spends its time in, in Triton, C and plain torch.

    import kernels
    o = kernels.attention(q, k, v, lengths)
    with kernels.expect("triton"): ...   # fails if another path, or nothing, ran inside
    print(kernels.summary())             # which path ran, how often

This file picks the path. Environment variables overrule it:

    MLD_KERNELS=auto      the default: Triton for CUDA tensors of a supported shape and type; C
                          on a CPU, for a few rows of tokens and in training; else plain torch
    MLD_KERNELS=triton    Triton, or an error that says why not: never a silent fallback
    MLD_KERNELS=torch     plain torch
    MLD_GRAPH=auto, 0, 1  CUDA graphs of the sampler (graphs.py)

The Triton path has run on an H100 and an H200 (docs/gpu.md); it is also checked in Triton's
interpreter, and compiled for sm_80 and sm_90.
"""
import contextlib
from collections import Counter

import torch
import torch.nn.functional as F

from kernels import attention as attention_kernels  # below, a function takes its name
from kernels import backend, denoiser_layer, denoising_step, few_rows, graphs  # noqa: F401
from kernels import gelu as gelu_kernels
from kernels import layer_norm as layer_norm_kernels
from kernels import modulated_rows
from kernels import training
from kernels.attention import split_heads
from kernels.backend import calls, launched
from kernels.denoiser_layer import blocks_of  # noqa: F401
from kernels.dropout import dropout  # noqa: F401

if not backend.WHY_NOT:
    from kernels import operators


def attention(q, k, v, lengths=None, causal=False, dropout_p=0.0):
    """Multi-head attention, softmax(q k^T / sqrt(D)) v; a query without any key gives 0.

    q (B, H, Lq, D), k and v (B, H, Lk, D): any strides, so slices of one fused projection need no
    copy. lengths (B,) int: how many of a sample's keys count, from the first one on; None: all.
    causal: query i sees keys 0..i. dropout_p: share of the probabilities that is dropped, below 1
    (0 outside training). Returns (B, H, Lq, D) with the memory layout of (B, Lq, H, D), so that
    `.transpose(1, 2).reshape(B, Lq, H * D)` is free."""
    if q.dtype == torch.float32 and q.is_cuda and backend.MODE == "auto":
        # measured (docs/gpu.md): exact float32 products are slow in Triton, 7 times in the backward
        calls["attention", "torch"] += not torch.compiler.is_compiling()
        return attention_kernels.torch_attention(q, k, v, lengths, causal, dropout_p)
    if path("attention", q, attention_kernels.unsupported, k, v, lengths) == "torch":
        return attention_kernels.torch_attention(q, k, v, lengths, causal, dropout_p)
    seed = operators.new_seed(q, dropout_p)
    return operators.attention(q, k, v, lengths, seed, causal, dropout_p)[0]


def packed_attention(q, kv, heads, lengths=None, causal=False, dropout_p=0.0):
    """The same for numbers as a Linear makes them: q (B, L, H D) and kv (B, M, 2 H D), keys before
    values, or q (B, L, 3 H D) and None -> (B, L, H D)."""
    if training.takes_attention(q, kv, heads, lengths, dropout_p):
        return training.attention(q, kv, heads, lengths, causal)
    o = attention(*split_heads(q, kv, heads), lengths, causal, dropout_p)
    return o.transpose(1, 2).flatten(2)


def add_layer_norm(x, residual, weight, bias, eps=1e-5, dropout_p=0.0, return_sum=False):
    """Layer norm of s = residual + dropout(x) over the last dimension.

    x and residual (..., C), residual may be None; weight and bias (C,).
    Returns LN(s) (..., C), and s as well if return_sum (pre-norm layers need it)."""
    inputs = (x, residual, weight, bias)
    if path("add_layer_norm", x, layer_norm_kernels.unsupported, *inputs[1:]) == "torch":
        y, s = layer_norm_kernels.torch_add_layer_norm(*inputs, eps, dropout_p)
        return (y, s) if return_sum else y
    changed = residual is not None or dropout_p > 0  # else s is x itself
    needs_grad = any(t is not None and t.requires_grad for t in inputs)
    keep = changed and (return_sum or torch.is_grad_enabled() and needs_grad)
    # torch's layer norm gives float32 under autocast, and so does ours
    autocast = x.is_cuda and torch.is_autocast_enabled("cuda")
    dtype = torch.float32 if autocast else layer_norm_kernels.sum_type(x, residual)
    seed = operators.new_seed(x, dropout_p)
    y, s, _, _ = operators.add_layer_norm(*inputs, seed, eps, dropout_p, keep, dtype)
    return (y, s if changed else x) if return_sum else y


def linear_gelu(x, weight, bias, dropout_p=0.0):
    """dropout(gelu(x weight^T + bias)), exact (erf) GELU: x (..., C), weight (F, C) -> (..., F)."""
    if training.takes_gelu(x, weight, bias):
        return dropout(training.linear_gelu(x, weight, bias), dropout_p, in_place=True)
    if path("linear_gelu", x, gelu_kernels.unsupported, weight, bias) == "torch":
        return gelu_kernels.torch_linear_gelu(x, weight, bias, dropout_p)
    seed = operators.new_seed(x, dropout_p)
    return operators.bias_gelu(F.linear(x, weight), bias, seed, dropout_p)


def few_tokens(stack, x, first=None, causal=False):
    """stack(x, causal=causal)[:, :first] by one kernel for all the layers; None where none fits.

    stack: a transformer.Stack; x (B, L, D): a few tokens, none padded; there is no gradient.
    Two launches a layer on a GPU (denoiser_layer.py), one call of C on a CPU (few_rows.py)."""
    if torch.compiler.is_compiling():
        return None
    triton = backend.MODE != "torch" and not backend.WHY_NOT and (x.is_cuda or backend.INTERPRETED)
    if (triton and not causal and not denoiser_layer.unsupported(x, stack) and pays(x, stack)
            and few_rows.alike(stack)):
        with launched("denoiser_layers", x):
            return denoiser_layer.denoiser_layers(x, stack)[:, :first]
    if few_rows.unsupported(x, stack, first):
        return None
    calls["few_rows", "c"] += 1
    return few_rows.run(x, stack, first, causal)


def denoising_steps(steps, x_T, tokens, times, pe, ask, scale=None, clip=False, narrow=None):
    """The sampling loop with one launch between two calls of the network (denoising_step.py); None
    where that does not fit, or would not be faster: launched one by one it is not."""
    triton = backend.MODE != "torch" and not backend.WHY_NOT
    fits = backend.INTERPRETED or x_T.is_cuda and graphs.MODE != "0"
    if not triton or not fits or denoising_step.unsupported(x_T, tokens, pe, narrow):
        return None
    return denoising_step.walk(steps, x_T, tokens, times, pe, ask, scale, clip, narrow)


def modulated_steps(layers, x, rows, times, condition):
    """What `modulated_step` takes in each step of the sampling loop, for modulated.ModulatedLayers
    and `rows` latents like those of x (B, N, D), on a CPU (modulated_rows.py); None where that does
    not fit."""
    if torch.compiler.is_compiling() or modulated_rows.unsupported(layers, x, rows, len(times)):
        return None
    return modulated_rows.prepare(layers, times, condition)


def modulated_step(x, *step):
    """The layers' answer to latents x (R, N, D) in one of these steps, by one call of C."""
    calls["modulated", "c"] += 1
    return modulated_rows.run(x, *step)


def decode(stack, queries, lengths, memory):
    """stack(queries, lengths, memory) by one call of C on a CPU (few_rows.py); None where that does
    not fit.

    queries (B, T, D), or (1, T, D) for all; lengths (B,) or None; memory (B, N, D). What lies
    behind a motion's own length is zero."""
    if torch.compiler.is_compiling() or few_rows.undecodable(queries, stack, lengths, memory):
        return None
    calls["decode", "c"] += 1
    return few_rows.decode(queries, stack, lengths, memory)


def pays(x, stack):
    """Whether denoiser_layer.py is faster than the stack's own operations, as measured on an H100
    (docs/gpu.md): with 16-bit weights, up to 1,024 rows at width 256; with float32 ones only where
    no CUDA graph saves the launches."""
    if backend.INTERPRETED:
        return True
    rows = x.shape[0] * x.shape[1]
    if next(stack.parameters()).dtype == torch.float32:
        return graphs.MODE == "0" and rows <= 384
    return x.shape[2] < 256 or rows <= 1024


# --------------------------------------------------------------------------------------------------
# Which path to take, and which ran


def path(operation, x, unsupported, *others):
    """-> "triton" or "torch" for these tensors; RuntimeError where MLD_KERNELS=triton asks for
    what is not possible."""
    if backend.MODE not in ("auto", "triton", "torch"):
        raise ValueError(f"MLD_KERNELS must be auto, triton or torch, not '{backend.MODE}'.")
    why_not = backend.WHY_NOT or ("MLD_KERNELS=torch" if backend.MODE == "torch" else "")
    if not why_not and not (x.is_cuda or backend.INTERPRETED):
        why_not = f"its tensors are on {x.device}, not on a GPU"
    why_not = why_not or unsupported(x, *others)
    if why_not and backend.MODE == "triton":
        raise RuntimeError(f"MLD_KERNELS=triton, but {operation} cannot run as a Triton kernel: "
                           f"{why_not}.")
    if why_not and not torch.compiler.is_compiling():  # launches of Triton count themselves
        calls[operation, "torch"] += 1
    return "torch" if why_not else "triton"


def summary():
    """What ran so far, e.g. 'add_layer_norm torch x18, attention torch x9'. Plain torch inside
    torch.compile is not counted, and a CUDA graph only while it is recorded."""
    counts = (f"{operation} {path} x{count}" for (operation, path), count in sorted(calls.items()))
    return ", ".join(counts) or "nothing ran"


@contextlib.contextmanager
def expect(wanted):
    """Fail unless something ran in the block, and all of it on the path `wanted`: "triton",
    "torch" or "c"."""
    before = Counter(calls)
    yield
    ran = calls - before
    wrong = {key: count for key, count in ran.items() if key[1] != wanted}
    if wrong or not ran:
        found = f"these ran: {wrong}" if wrong else "nothing ran"
        raise AssertionError(f"expected the {wanted} path, but {found}")
