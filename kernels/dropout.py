"""Dropout that is never stored: the backward kernels compute the forward's decisions again, from its seed.

Philox gives one strong number per row (`row_keys`), and three multiply-xor-shift steps turn it and a column into the
number that decides (`kept`). Philox for every element would cost 100 integer instructions each, more than the attention.
"""
from kernels.backend import tl, triton


@triton.jit
def row_keys(seed, rows):
    """seed: pointer to one int64; rows: int32 block -> uint32 block."""
    return tl.randint(tl.load(seed), rows).to(tl.uint32, bitcast=True)


@triton.jit
def kept(keys, columns, threshold):
    """keys: uint32 block from row_keys, columns: int32 block of a shape that broadcasts with it -> bool block, True with
    probability 1 - threshold / 2^24."""
    x = keys ^ (columns.to(tl.uint32, bitcast=True) * 0x9E3779B1)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return ((x ^ (x >> 16)) >> 8).to(tl.int32) >= threshold


def threshold_and_scale(dropout_p):
    """The kernels' two arguments for a share `dropout_p` of elements to drop: threshold of 2^24, scale of what stays."""
    return round(dropout_p * 2**24), 1.0 / (1.0 - dropout_p)
