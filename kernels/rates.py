"""How fast this device multiplies in bfloat16, beside float32: what train.py chooses by."""
import time

import torch

PAYS = 2  # times as fast as float32, from which training in bfloat16 is worth its rounding
SLOW = 1 / 8  # a processor without instructions for it is hundreds of times slower; on small
# matrices a fast one may be half as fast
SIZES = {"cpu": (64, 512), "cuda": (64, 4096)}  # of square matrices, the small ones to tell SLOW


def bf16_rate(device):
    """How many times as many products of matrices a second in bfloat16, the best of five tries
    each; 0 on a device that is not measured."""
    ratio = 0.0
    for size in SIZES.get(device.type, ()):
        tries = 5 if size > 64 else 20
        pairs = [torch.ones(2, size, size, device=device, dtype=kind)
                 for kind in (torch.float32, torch.bfloat16)]
        whole, half = (min(seconds(*pair) for _ in range(tries)) for pair in pairs)
        ratio = whole / half
        if ratio < SLOW:
            break
    return ratio


def seconds(a, b):
    start = time.perf_counter()
    (a @ b)[0, 0].item()  # which waits for a GPU
    return time.perf_counter() - start
