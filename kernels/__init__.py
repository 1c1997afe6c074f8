"""The three operations that a transformer spends its time in, each as a Triton kernel and as plain torch; this file picks.

    MLD_KERNELS=auto    Triton for CUDA tensors of a supported shape and type, plain torch for all else (the default)
    MLD_KERNELS=triton  Triton or an error that says why not: never a silent fallback
    MLD_KERNELS=torch   plain torch

    import kernels
    o = kernels.attention(q, k, v, lengths)
    with kernels.expect("triton"): ...   # fails if another path, or nothing, ran inside
"""
import contextlib
from collections import Counter

import torch

from kernels import backend
from kernels.attention import torch_attention
from kernels.gelu import torch_linear_gelu
from kernels.layer_norm import torch_add_layer_norm

calls = Counter()  # (operation, path) -> times it ran


def attention(q, k, v, lengths=None, causal=False, dropout_p=0.0):
    """Multi-head attention, softmax(q k^T / sqrt(D)) v.

    q (B, H, Lq, D), k and v (B, H, Lk, D): any strides, so slices of one fused projection need no copy.
    lengths (B,) int: how many of the first keys are there; the others are never read, whatever they hold. None = all.
    causal: query i sees keys 0..i. dropout_p: share of the probabilities that is dropped (0 outside training).
    Returns (B, H, Lq, D) whose memory is (B, Lq, H, D): `.transpose(1, 2).reshape(B, Lq, H * D)` is free. A query
    without any key gives 0."""
    _count("attention", "torch")
    return torch_attention(q, k, v, lengths, causal, dropout_p)


def add_layer_norm(x, residual, weight, bias, eps=1e-5, dropout_p=0.0, return_sum=False):
    """Layer norm of s = residual + dropout(x) over the last dimension.

    x and residual (..., C), residual may be None; weight and bias (C,).
    Returns LN(s) (..., C), and s as well if `return_sum` (for layers that normalise first)."""
    _count("add_layer_norm", "torch")
    y, s = torch_add_layer_norm(x, residual, weight, bias, eps, dropout_p)
    return (y, s) if return_sum else y


def linear_gelu(x, weight, bias):
    """gelu(x weight^T + bias) with the exact (erf) GELU: x (..., C), weight (F, C), bias (F,) -> (..., F)."""
    _count("linear_gelu", "torch")
    return torch_linear_gelu(x, weight, bias)


# ----------------------------------------------------------------------------------------------------------------------
# Which path ran


def _count(operation, path):
    if not torch.compiler.is_compiling():  # a compiled graph counts its Triton launches as they happen, torch's never
        calls[operation, path] += 1


@contextlib.contextmanager
def expect(path):
    """Fail unless at least one operation ran in the block, and every one of them on `path` ('triton' or 'torch')."""
    before = Counter(calls)
    yield
    ran = calls - before
    wrong = {key: count for key, count in ran.items() if key[1] != path}
    if wrong or not ran:
        raise AssertionError(f"expected the {path} path, but {f'these ran: {wrong}' if wrong else 'nothing ran'}")
