"""How big a tile each kernel works on: plain functions, so that a reader sees every choice and a
test compiles all of them.

There is no autotuning: a run would start slower, differ from the next, and could pick what no test
has compiled. The choices are what ptxas keeps in registers, without spills, within a block's shared
memory, for sm_80 and sm_90 (docs/kernels.md has the table). sm_86, sm_89 and sm_120 get the tiles
of sm_80, and sm_100 those of sm_90. They have been timed on an H100 only
(docs/gpu.md).
"""
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """One launch's constants: BM queries and BN keys in a tile, warps of 32 threads, stages of the
    software pipeline."""
    BM: int
    BN: int
    warps: int
    stages: int


def power_of_two(n):
    """The smallest power of two that holds n, but at least 16, a tensor-core product's side."""
    return max(16, 1 << (n - 1).bit_length())


def attention_tiles(Lq, Lk, D, dtype, arch, programs=1, dropout=False):
    """Tiles for Lq queries and Lk keys of head width D, for `programs` = batch * heads.

    Returns {"forward": Tile, "queries": Tile, "keys": Tile} for the forward and the two phases of
    the backward. Where the one-pass backward fits (16-bit numbers on sm_90 and sm_100), "whole"
    takes the place of the two."""
    BD, length = power_of_two(D), max(Lq, Lk)
    hopper = 90 <= arch < 120  # sm_120 has less shared memory, and multiplies as sm_80 does
    if dtype == torch.float32:  # exact products run on the plain units: small tiles
        side, warps = 16 if length <= 16 else 32, 4 if BD <= 64 else 8
        keys = Tile(32 if BD > 64 else 16, 16, 4 if BD <= 32 else 8, 1)
        return {"forward": Tile(side, side, warps, 1), "queries": Tile(16, 16, warps, 1),
                "keys": keys}
    if length <= 16:
        forward = queries = Tile(16, 16, 1 if BD <= 64 else 2, 2)
        keys = Tile(16, 16, max(1, BD // 32), 2)
    else:
        forward = Tile(64, 64 if BD <= (64 if hopper else 32) else 32, 4, 2)
        queries = Tile(64, 32, 4, 2)
        keys = Tile(32, 64, 4, 2) if BD <= 64 else Tile(32, 32, 8, 2)
    BN = max(64, power_of_two(Lk))
    fits = hopper and length > 16 and BN <= 256 and BN * BD <= 256 * 64
    # beyond 64 keys, one program per (batch, head) needs that many to keep 132 processors busy
    if fits and (BN == 64 or programs >= 128):
        BM = 16 if BN * BD == 256 * 64 and dropout or BD > 64 else 32
        return {"forward": forward, "whole": Tile(BM, BN, 4 if BN == 64 else 8, 1)}
    return {"forward": forward, "queries": queries, "keys": keys}


def row_tiles(R, C):
    """Layer norm of (R, C) -> rows in a tile, columns rounded up, warps, programs of the backward.

    At C = 256 a warp holds one row, 8 numbers a thread, so a mean needs no exchange between warps.
    512 programs keep the memory busy, and their parts of the weight gradients (1 MB at C = 256)
    stay in the cache."""
    BC = power_of_two(C)
    rows = max(4, 1024 // BC)
    return rows, BC, 4, min(-(-R // rows), 512)


def gelu_tiles(R, C):
    """GELU of (R, C) -> rows and columns in a tile, warps, programs along the backward's rows."""
    BC = min(power_of_two(C), 256)
    rows = 2048 // BC
    return rows, BC, 4, min(-(-R // rows), max(1, 512 * BC // power_of_two(C)))


def denoiser_tiles(D, dtype):
    """The few-token denoiser at width D -> hidden units and joined columns of a program, warps."""
    return 32 if D == 256 and dtype == torch.float32 else 64, 32, 8
