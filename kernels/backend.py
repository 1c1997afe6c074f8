"""`triton` and `tl` for the kernel files: the real modules, or stand-ins where kernels cannot run.

Importing Triton takes a third of a second and is impossible on macOS and Windows, so it happens
only where a kernel may be launched: where there is a GPU, or MLD_KERNELS=triton asks for the
kernels. With the stand-ins the kernel files can be imported all the same; their torch twins need
nothing more.
"""
import functools
import os
from collections import Counter
from types import SimpleNamespace

import torch

MODE = os.environ.get("MLD_KERNELS", "auto")  # or triton, torch; fixed when the process starts
WHY_NOT = ""  # why Triton cannot be used here; empty when it can

if MODE == "triton" or (MODE == "auto" and torch.cuda.is_available()):
    try:
        import triton
        import triton.language as tl
    except ImportError as error:  # nothing else is caught: an error in a kernel must be seen
        WHY_NOT = f"triton cannot be imported ({error})"
    nvidia = torch.version.cuda and torch.cuda.is_available()
    if not WHY_NOT and nvidia and torch.cuda.get_device_capability() < (8, 0):
        WHY_NOT = "the GPU is older than sm_80"
elif MODE == "auto":
    WHY_NOT = "triton was not imported, since there is no GPU"
else:
    WHY_NOT = f"MLD_KERNELS={MODE}"
if WHY_NOT:
    triton, tl = SimpleNamespace(jit=lambda function: function), SimpleNamespace(constexpr=object)

calls = Counter()  # (operation, "triton", "c" or "torch") -> how often it ran
# for tests: kernels run on the CPU
INTERPRETED = not WHY_NOT and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def launched(operation, tensor):
    """`with launched("attention", q):` counts a launch, and sends it to the GPU of q."""
    calls[operation, "triton"] += 1
    return torch.cuda.device_of(tensor)


@functools.lru_cache
def architecture(device):
    """What the tiles are chosen for: CUDA's compute capability times 10, 80, 90, ...; 0 for GPUs
    of other makers."""
    if torch.device(device).type != "cuda" or torch.version.cuda is None:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
