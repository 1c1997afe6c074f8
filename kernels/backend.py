"""`triton` and `tl` for the kernel files: the real modules where kernels can run, plain stand-ins
elsewhere.

Importing Triton costs a third of a second and is impossible on macOS and Windows, so it happens
only where a kernel may be launched: a GPU is there, or MLD_KERNELS=triton demands the kernels.
The stand-ins let the kernel files be imported all the same; their torch twins need nothing more.
"""
import functools
import os
from collections import Counter
from types import SimpleNamespace

import torch

# auto, triton or torch; fixed for the life of the process
MODE = os.environ.get("MLD_KERNELS", "auto")
WHY_NOT = ""  # why Triton cannot be used here; empty when it can

if MODE == "triton" or (MODE == "auto" and torch.cuda.is_available()):
    try:
        import triton
        import triton.language as tl

        if (
            torch.version.cuda
            and torch.cuda.is_available()
            and torch.cuda.get_device_capability() < (8, 0)
        ):
            WHY_NOT = "the GPU is older than sm_80"
    # only absence is survivable: an error in a kernel must always be seen
    except ImportError as error:
        WHY_NOT = f"triton cannot be imported ({error})"
else:
    WHY_NOT = (
        "triton was not imported, since there is no GPU"
        if MODE == "auto"
        else f"MLD_KERNELS={MODE}"
    )
if WHY_NOT:
    triton, tl = SimpleNamespace(jit=lambda function: function), SimpleNamespace(constexpr=object)

calls = Counter()  # (operation, "triton", "c" or "torch") -> how often it ran
# kernels run on the CPU: tests
INTERPRETED = not WHY_NOT and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def launched(operation, tensor):
    """`with launched("attention", q):` counts a launch, and makes it go to the tensor's own GPU."""
    calls[operation, "triton"] += 1
    return torch.cuda.device_of(tensor)


@functools.lru_cache
def architecture(device):
    """What the tiles are chosen for: 80, 90, ... (CUDA's compute capability times 10); 0 for
    other makes."""
    if torch.device(device).type != "cuda" or torch.version.cuda is None:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
