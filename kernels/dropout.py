"""Dropout that is never stored: the backward kernels compute the forward's decisions again, from its seed.

A 64-bit seed and a row give a 32-bit key (`row_keys`), a key and a column the number that decides (`kept`); both by a
mixing function of two multiplications, after which every input bit changes every output bit with probability 1/2,
nearly. Philox, ten rounds for every element, would take some 100 integer instructions, more than the attention itself.
"""
from kernels.backend import tl, triton


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
    return mix(mix(rows.to(tl.uint32, bitcast=True) ^ seed.to(tl.uint32)) + (seed >> 32).to(tl.uint32))


@triton.jit
def kept(keys, columns, threshold):
    """keys: uint32 block from row_keys, columns: int32 block of a shape that broadcasts with it -> bool block, True
    with probability 1 - threshold / 2^24."""
    return (mix(keys ^ (columns.to(tl.uint32, bitcast=True) * 0x9E3779B1)) >> 8).to(tl.int32) >= threshold


def threshold_and_scale(dropout_p):
    """The kernels' two arguments for a share `dropout_p` of elements to drop: threshold of 2^24, scale of the rest."""
    return round(dropout_p * 2**24), 1.0 / (1.0 - dropout_p)
