"""How big a tile each kernel works on: plain functions, so that a reader sees every choice and a test compiles all.

No autotuning: a run would start slower, differ from the next, and could pick what no test has compiled. The choices are
what ptxas keeps in registers (no spill) within a block's shared memory, for sm_80 and sm_90 (docs/kernels.md has the
table); sm_86, sm_89 and sm_120 get the tiles of sm_80, sm_100 those of sm_90. Nobody has timed them yet.
"""
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """One launch's constants: BM queries and BN keys in a tile, warps of 32 threads, software-pipeline stages."""
    BM: int
    BN: int
    warps: int
    stages: int


def power_of_two(n):
    """The least power of two that is at least n, and 16, the least side of a tensor-core product."""
    return max(16, 1 << (n - 1).bit_length())


def attention_tiles(Lq, Lk, D, dtype, arch, programs=1, dropout=False):
    """Tiles for Lq queries and Lk keys of head width D, for `programs` = batch * heads.

    Returns {"forward": Tile, "queries": Tile, "keys": Tile} for the forward and the two backward phases, or "whole" in
    place of the two where the one-pass backward fits: 16-bit numbers on sm_90 and sm_100."""
    BD, length = power_of_two(D), max(Lq, Lk)
    hopper = 90 <= arch < 120  # sm_120 has less shared memory, and multiplies as sm_80 does
    if dtype == torch.float32:  # exact float32 has no tensor cores: small tiles, the products run on the plain units
        side, warps = 16 if length <= 16 else 32, 4 if BD <= 64 else 8
        keys = Tile(16, 16, 4, 1) if BD <= 32 else Tile(16, 16, 8, 1) if BD == 64 else Tile(32, 16, 8, 1)
        return {"forward": Tile(side, side, warps, 1), "queries": Tile(16, 16, warps, 1), "keys": keys}
    if length <= 16:
        forward = queries = Tile(16, 16, 1 if BD <= 64 else 2, 2)
        keys = Tile(16, 16, max(1, BD // 32), 2)
    else:
        forward, queries = Tile(64, 64 if BD <= (64 if hopper else 32) else 32, 4, 2), Tile(64, 32, 4, 2)
        keys = Tile(32, 64, 4, 2) if BD <= 64 else Tile(32, 32, 8, 2)
    BN = max(64, power_of_two(Lk))
    if hopper and length > 16 and BN * BD <= 256 * 64 and BN <= 256 and (BN == 64 or programs >= 128):
        # all keys on chip; from 65 keys on a chip of 132 processors needs that many (batch, head) pairs to be busy
        BM = 16 if BN * BD == 256 * 64 and dropout or BD > 64 else 32
        return {"forward": forward, "whole": Tile(BM, BN, 4 if BN == 64 else 8, 1)}
    return {"forward": forward, "queries": queries, "keys": keys}


def row_tiles(R, C):
    """Layer norm of (R, C) -> rows in a tile, columns rounded up, warps, programs of the backward.

    At C = 256 a warp holds one row, 8 numbers a thread, so that a mean needs no exchange between warps. 512 programs
    keep the memory busy, and their parts of the weight gradients (1 MB at C = 256) stay in the cache."""
    BC = power_of_two(C)
    rows = max(4, 1024 // BC)
    return rows, BC, 4, min(-(-R // rows), 512)


def gelu_tiles(R, C):
    """GELU of (R, C) -> rows and columns in a tile, warps, programs along the rows in the backward."""
    BC = min(power_of_two(C), 256)
    rows = 2048 // BC
    return rows, BC, 4, min(-(-R // rows), max(1, 512 * BC // power_of_two(C)))


def denoiser_tiles(D, dtype):
    """The few-token denoiser at width D -> hidden units a program, joined columns a program, warps."""
    return 32 if D == 256 and dtype == torch.float32 else 64, 32, 8
