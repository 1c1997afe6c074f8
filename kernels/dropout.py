"""Dropout that is never stored: the backward kernels repeat the forward's decisions from its seed.

A 64-bit seed and a row give a 32-bit key (`row_keys`); a key and a column give the number that
decides (`kept`). Both use a mixing function of two multiplications, after which every input bit
changes every output bit with a probability of nearly 1/2. Philox, ten rounds for each element,
would take some 100 integer instructions, more than the attention itself.
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
