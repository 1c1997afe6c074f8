"""The joints of a clip, packed small: about 1.5 kB a second, a twentieth of its features.

Positions are rounded to a grid of 0.5 mm, with which everything after is exact. Each joint is then
taken relative to its parent (a hand moves less against its elbow than in the room), and of that
the change of the step from frame to frame is stored, which is small because bodies are heavy.
Differences are 16-bit numbers that wrap round, which undoes itself when they are added up again.
"""
import lzma

import numpy as np

from formats.pack_index import VERSION

GRID = 0.0005  # metres
REACH = 16  # metres that a joint may start off the origin, or move in a frame: 16 bits hold them
LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 4, "lp": 0, "pb": 0, "dict_size": 1 << 16}]
# Version 1 stored plain steps of each joint, as 16-bit numbers.
LZMA_1 = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 1, "pb": 1, "dict_size": 1 << 16}]


def on_grid(joints):
    """Positions in metres -> whole numbers of the grid, int64. Mirror images stay exact ones."""
    return np.rint(np.asarray(joints) / GRID).astype(np.int64)


def encode_joints(joints, parents):
    """(T, J, 3) metres, within REACH -> bytes. parents (J,), each before its children."""
    grid = on_grid(joints)
    steps = np.diff(grid, axis=0, prepend=np.zeros_like(grid[:1])).astype("<i2")
    steps[:, 1:] -= steps[:, list(parents[1:])]
    steps[2:] -= steps[1:-1].copy()  # row 0 is the first pose, row 1 the first step
    codes = ((steps << 1) ^ (steps >> 15)).view("<u2")  # 0, -1, 1, -2, ... -> 0, 1, 2, 3, ...
    codes = codes.transpose(1, 2, 0).ravel()  # coordinate by coordinate
    split = np.concatenate([codes & 255, codes >> 8]).astype("u1")  # low bytes, then high bytes
    return lzma.compress(split.tobytes(), lzma.FORMAT_RAW, filters=LZMA)


def decode_joints(blob, parents, frames, version=VERSION):
    """The inverse of encode_joints: bytes -> (frames, J, 3) float64 metres, on the grid.
    version: of the pack. ValueError if they hold another number of frames, of which no more is
    unpacked."""
    shape = len(parents), 3, frames
    filters, size = (LZMA_1 if version == 1 else LZMA), 2 * 3 * len(parents) * frames
    unpacked = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(blob, size + 1)
    if len(unpacked) != size:
        raise ValueError(f"its joints are not {frames} frames")
    if version == 1:
        steps = np.frombuffer(unpacked, "<i2").reshape(shape).transpose(2, 0, 1)
        return steps.cumsum(0, dtype=np.int64) * GRID
    low, high = np.frombuffer(unpacked, "u1").reshape(2, -1).astype("<u2")
    codes = low | high << 8
    steps = ((codes >> 1) ^ (0 - (codes & 1))).view("<i2").reshape(shape).transpose(2, 0, 1)
    steps = np.concatenate([steps[:1], steps[1:].cumsum(0, dtype="<i2")])
    for joint, parent in enumerate(parents[1:], start=1):
        steps[:, joint] += steps[:, parent]
    return steps.cumsum(0, dtype=np.int64) * GRID
