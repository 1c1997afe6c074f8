"""Attention with dropout on its probabilities, for training on a CPU.

torch's fast attention drops nothing: with dropout it keeps scores, probabilities and random numbers
of the whole batch in memory, and takes twice the time. Here a few samples at a time go through, so
that what is between the products stays in the processor's caches, and only their own keys are
looked at, none of the padding. dropout.c makes probabilities of scores and drops some of them in
one pass; the products are torch's. Kept for the backward are the probabilities.

With p = softmax(q k^T / sqrt(D)) and dropout's factors z: o = (p z) v, and attention.py has the
backward.
"""
import torch

from kernels.dropout import draw_seed, factors, library, rule, unsupported


def fits(q, k, v, causal, dropout_p):
    """Whether dropped_attention can take these."""
    if not dropout_p or causal or q.device.type != "cpu":
        return False
    alike = q.dim() == 4 and q.dtype == k.dtype == v.dtype and k.shape == v.shape and k.numel()
    alike = alike and q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3]
    return bool(alike) and not unsupported(q, dropout_p, k, v)


def dropped_attention(q, k, v, lengths, dropout_p):
    """As `kernels.attention`, for tensors that fit."""
    counts = [k.shape[2]] * len(q) if lengths is None else lengths.clamp(0, k.shape[2]).tolist()
    return DroppedAttention.apply(q, k, v, counts, draw_seed(), dropout_p)


def parts(counts, heads):
    """-> (samples as a slice, how many keys they need, their counts as C wants them), with enough
    matrices in each part for all threads."""
    size = max(1, 2 * torch.get_num_threads() // heads)
    for b in range(0, len(counts), size):
        own = counts[b:b + size]
        yield slice(b, b + len(own)), max(own), torch.tensor(own, dtype=torch.int32)


def matrices(t, part, count):
    """The first `count` rows of some samples of t (B, H, L, D) -> (samples * H, count, D) float32,
    without a copy where there is one sample of float32."""
    return t[part, :, :count].flatten(0, 1).float()


def without_padding(t, own, heads):
    """t (n * H, L, D) with zeros behind each sample's own rows, since NaN * 0 is NaN."""
    if int(own.min()) == t.shape[1]:
        return t
    absent = torch.arange(t.shape[1]) >= own.repeat_interleave(heads)[:, None]
    return t.masked_fill(absent[:, :, None], 0)


class DroppedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, counts, seed, dropout_p):
        (B, H, L, D), kept, ctx.parts = q.shape, [], list(parts(counts, q.shape[1]))
        o = torch.empty(B, L, H, D, dtype=q.dtype).transpose(1, 2)
        with torch.autocast("cpu", enabled=False):
            for part, K, own in ctx.parts:
                values = without_padding(matrices(v, part, K), own, H)
                s = matrices(q, part, L) @ matrices(k, part, K).mT  # (n * H, L, K)
                d = torch.empty_like(s)
                library().softmax_drop(
                    s.data_ptr(), d.data_ptr(), own.data_ptr(), H * L, D**-0.5,
                    *rule(seed, dropout_p, len(s) * L, K, part.start * H * L))
                o[part] = (d @ values).unflatten(0, (-1, H))
                kept.append(s)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.rest = counts, seed, dropout_p
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, *kept = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        # a gradient of this gradient is asked for, or one in a vmap
        if torch.is_grad_enabled() or unsupported(do, ctx.rest[2]):
            with torch.enable_grad():
                o = plain(q, k, v, *ctx.rest)
            inputs = [t for t, need in zip((q, k, v), needed) if need]
            found = iter(torch.autograd.grad(o, inputs, do, create_graph=torch.is_grad_enabled()))
            return *(next(found) if need else None for need in needed), None, None, None
        (_, seed, dropout_p), (B, H, L, D) = ctx.rest, q.shape
        dq, dk, dv = (t.new_zeros(B, t.shape[2], H, D).transpose(1, 2) for t in (q, k, v))
        with torch.autocast("cpu", enabled=False):
            for (part, K, own), p in zip(ctx.parts, kept):
                values = without_padding(matrices(v, part, K), own, H)
                keys = without_padding(matrices(k, part, K), own, H)
                g = matrices(do, part, L)
                ds, d = g @ values.mT, torch.empty_like(p)
                library().softmax_drop_backward(
                    p.data_ptr(), ds.data_ptr(), d.data_ptr(), own.data_ptr(), H * L, D**-0.5,
                    *rule(seed, dropout_p, len(p) * L, K, part.start * H * L))
                dq[part] = (ds @ keys).unflatten(0, (-1, H))
                dk[part, :, :K] = (ds.mT @ matrices(q, part, L)).unflatten(0, (-1, H))
                dv[part, :, :K] = (d.mT @ g).unflatten(0, (-1, H))
        return dq, dk, dv, None, None, None


def plain(q, k, v, counts, seed, dropout_p):
    """The same in torch's own operations, with the same seed's decisions."""
    z = factors((*q.shape[:3], k.shape[2]), seed, dropout_p)
    absent = (torch.arange(k.shape[2]) >= torch.tensor(counts)[:, None])[:, None]  # (B, 1, Lk)
    k, v = (t.float().masked_fill(absent[..., None], 0) for t in (k, v))
    s = q.float() @ k.mT * q.shape[3]**-0.5
    p = s.masked_fill(absent[:, :, None], -torch.inf).softmax(-1)
    p = p.masked_fill(absent[:, :, None], 0)  # where there is no key, the softmax is 0 / 0
    return ((p * z) @ v).to(q.dtype)
