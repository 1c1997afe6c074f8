"""The launches as torch operators, for autograd, torch.compile(fullgraph=True), torch.export and
opcheck.

Each operator comes with what a compiler asks for: a fake version (shapes, types and strides of the
results, without computing them) and a backward, which is an operator too. Only kernels/__init__.py
calls them, and it imports this file only where Triton can run. A seed is a tensor of one int64
drawn from torch's generator, so torch.manual_seed repeats a dropout, and a CUDA graph draws a new
one on each replay.
"""
from typing import Optional

import torch
from torch import Tensor

from kernels import attention as attention_kernels
from kernels import gelu as gelu_kernels
from kernels import layer_norm as layer_norm_kernels
from kernels.backend import launched


def new_seed(like, dropout_p):
    """-> one int64 on the device of `like`, or None if nothing is dropped."""
    return torch.randint(2**62, (1,), device=like.device) if dropout_p else None


# --------------------------------------------------------------------------------------------------
# Attention


@torch.library.custom_op("mld::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, lengths: Optional[Tensor], seed: Optional[Tensor],
              causal: bool, dropout_p: float) -> tuple[Tensor, Tensor]:
    with launched("attention", q):
        return attention_kernels.launch_forward(q, k, v, lengths, seed, causal, dropout_p)


@attention.register_fake
def _(q, k, v, lengths, seed, causal, dropout_p):
    B, H, Lq, D = q.shape
    return q.new_empty(B, Lq, H, D).transpose(1, 2), q.new_empty(B, H, Lq, dtype=torch.float32)


@torch.library.custom_op("mld::attention_backward", mutates_args=())
def attention_backward(
        q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor,
        lengths: Optional[Tensor], seed: Optional[Tensor], causal: bool, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    with launched("attention_backward", q):
        return attention_kernels.launch_backward(
            q, k, v, o, lse, do, lengths, seed, causal, dropout_p)


@attention_backward.register_fake
def _(q, k, v, o, lse, do, lengths, seed, causal, dropout_p):
    def gradient(t):
        B, H, L, D = t.shape
        return t.new_empty(B, L, H, D).transpose(1, 2)
    return gradient(q), gradient(k), gradient(v)


def _attention_setup(ctx, inputs, output):
    q, k, v, lengths, seed, ctx.causal, ctx.dropout_p = inputs
    ctx.save_for_backward(q, k, v, *output, lengths, seed)
    ctx.set_materialize_grads(False)  # lse has no gradient


def _attention_grad(ctx, do, dlse):
    q, k, v, o, lse, lengths, seed = ctx.saved_tensors
    dq, dk, dv = attention_backward(
        q, k, v, o, lse, do, lengths, seed, ctx.causal, ctx.dropout_p)
    return dq, dk, dv, None, None, None, None


attention.register_autograd(_attention_grad, setup_context=_attention_setup)

# --------------------------------------------------------------------------------------------------
# Residual + layer norm


@torch.library.custom_op("mld::add_layer_norm", mutates_args=())
def add_layer_norm(
        x: Tensor, residual: Optional[Tensor], weight: Tensor, bias: Tensor,
        seed: Optional[Tensor], eps: float, dropout_p: float, save: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with launched("add_layer_norm", x):
        return layer_norm_kernels.launch_forward(
            x, residual, weight, bias, seed, eps, dropout_p, save, dtype)


@add_layer_norm.register_fake
def _(x, residual, weight, bias, seed, eps, dropout_p, save, dtype):
    R, s_type = x.numel() // x.shape[-1], layer_norm_kernels.sum_type(x, residual)
    s = x.new_empty(x.shape if save else 0, dtype=s_type)
    mean, rstd = (x.new_empty(R, dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape, dtype=dtype), s, mean, rstd


@torch.library.custom_op("mld::add_layer_norm_backward", mutates_args=())
def add_layer_norm_backward(
        dy: Tensor, dsum: Optional[Tensor], s: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
        seed: Optional[Tensor], dropout_p: float, x_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with launched("add_layer_norm_backward", s):
        return layer_norm_kernels.launch_backward(
            dy, dsum, s, weight, mean, rstd, seed, dropout_p, x_dtype)


@add_layer_norm_backward.register_fake
def _(dy, dsum, s, weight, mean, rstd, seed, dropout_p, x_dtype):
    other = seed is not None or x_dtype != s.dtype
    dx = s.new_empty(s.shape if other else 0, dtype=x_dtype)
    dweight, dbias = (weight.new_empty(weight.shape) for _ in range(2))
    return s.new_empty(s.shape), dx, dweight, dbias


def _add_layer_norm_setup(ctx, inputs, output):
    x, residual, weight, bias, seed, _, ctx.dropout_p, save, _ = inputs
    y, s, mean, rstd = output
    ctx.has_residual, ctx.x_dtype, ctx.save = residual is not None, x.dtype, save
    ctx.save_for_backward(s if save else x, weight, mean, rstd, seed)
    ctx.set_materialize_grads(False)


def _add_layer_norm_grad(ctx, dy, dsum, dmean, drstd):
    s, weight, mean, rstd, seed = ctx.saved_tensors
    dy = torch.zeros_like(s) if dy is None else dy
    dsum = dsum if ctx.save else None
    ds, dx, dweight, dbias = add_layer_norm_backward(
        dy, dsum, s, weight, mean, rstd, seed, ctx.dropout_p, ctx.x_dtype)
    dx, dresidual = dx if dx.numel() else ds, ds if ctx.has_residual else None
    return dx, dresidual, dweight, dbias, None, None, None, None, None


add_layer_norm.register_autograd(_add_layer_norm_grad, setup_context=_add_layer_norm_setup)

# --------------------------------------------------------------------------------------------------
# Bias + GELU


@torch.library.custom_op("mld::bias_gelu", mutates_args=())
def bias_gelu(h: Tensor, bias: Tensor, seed: Optional[Tensor], dropout_p: float) -> Tensor:
    with launched("linear_gelu", h):
        return gelu_kernels.launch_forward(h, bias, seed, dropout_p)


@bias_gelu.register_fake
def _(h, bias, seed, dropout_p):
    return h.new_empty(h.shape)


@torch.library.custom_op("mld::bias_gelu_backward", mutates_args=())
def bias_gelu_backward(h: Tensor, bias: Tensor, dy: Tensor, seed: Optional[Tensor],
                       dropout_p: float) -> tuple[Tensor, Tensor]:
    with launched("linear_gelu_backward", h):
        return gelu_kernels.launch_backward(h, bias, dy, seed, dropout_p)


@bias_gelu_backward.register_fake
def _(h, bias, dy, seed, dropout_p):
    return h.new_empty(h.shape), bias.new_empty(bias.shape)


def _bias_gelu_setup(ctx, inputs, output):
    h, bias, seed, ctx.dropout_p = inputs
    ctx.save_for_backward(h, bias, seed)


def _bias_gelu_grad(ctx, dy):
    h, bias, seed = ctx.saved_tensors
    return *bias_gelu_backward(h, bias, dy, seed, ctx.dropout_p), None, None


bias_gelu.register_autograd(_bias_gelu_grad, setup_context=_bias_gelu_setup)
