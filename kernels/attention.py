"""Multi-head attention over keys that are masked by length: softmax(q k^T / sqrt(D)) v."""
import torch
import torch.nn.functional as F

# ----------------------------------------------------------------------------------------------------------------------
# The plain torch twin


def torch_attention(q, k, v, lengths=None, causal=False, dropout_p=0.0):
    """The same function in plain torch; see `kernels.attention` for the arguments."""
    mask = None
    if lengths is not None:
        keys = torch.arange(k.shape[2], device=k.device)
        absent = (keys >= lengths[:, None])[:, None, :, None]  # (B, 1, Lk, 1)
        # what lies behind a length may be NaN, and NaN * 0 is NaN: so zeros take its place, and a mask removes it
        k, v = k.masked_fill(absent, 0), v.masked_fill(absent, 0)
        # a row without any key attends to its first one, whose value is now 0: the result is 0, not 0 / 0
        mask = (keys < lengths.clamp(min=1)[:, None])[:, None, None, :]  # (B, 1, 1, Lk)
        if causal:
            mask = mask & (keys <= torch.arange(q.shape[2], device=q.device)[:, None])  # (B, 1, Lq, Lk)
    o = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal=causal and mask is None)
    return o.transpose(1, 2).contiguous().transpose(1, 2)  # a copy only where torch chose another memory order
