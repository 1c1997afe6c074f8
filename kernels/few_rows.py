"""Builds few_rows.c with the machine's C compiler, once, and runs a transformer.Stack in it.

For the few rows of tokens of a prompt, and of up to 21 latents in the denoiser, on a CPU: there
plain torch spends more time between its operations than in them (`python -m dev.bench ladder
--batches 1,16`). Without a C compiler, and for all that `unsupported` names, plain torch runs as
before; the numbers are the same to rounding.

The library is kept in $XDG_CACHE_HOME/nanomld or ~/.cache/nanomld, under a name made of what it
was built from and for. """
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import weakref

import torch

from kernels import backend
from kernels.denoiser_layer import blocks_of

# measured with AVX2: 1.8 times as fast as torch at 48 rows, 1.4 times at 96, 1.1 times at 192,
# equal at 384
MAX_ROWS = 128
# ... where the compiler has no OpenMP: one thread is soon slower than torch with several
FEWEST = 16
MAX_THREADS = 16  # with more they wait for one another
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "few_rows.c")
# what works first
FLAGS = [
    ["-march=native", "-fopenmp"],
    ["-mcpu=native", "-fopenmp"],
    ["-march=native"],
    ["-mcpu=native"],
]
ACTIVATIONS = ("gelu", "relu", "quick_gelu")  # in few_rows.c's order
# what a stack may be made of; transformer.py, which knows its own layers, adds them
KNOWN_MODULES = {torch.nn.Linear, torch.nn.LayerNorm, torch.nn.ModuleList}
rounded = weakref.WeakSet()  # the stacks whose weights round_to_int8 has rounded

# --------------------------------------------------------------------------------------------------
# The library


@functools.lru_cache(maxsize=None)
def library(int8=False):
    """-> the C function for float32 or int8 weights, or a text that says why there is none."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        return "there is no C compiler"
    try:
        with open(SOURCE, "rb") as file:
            parts = [file.read(), compiler.encode(), repr((FLAGS, int8)).encode(), processor()]
        folder = os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nanomld"
        )
        path = os.path.join(
            folder, f"few_rows-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:24]}.so"
        )
        if not os.path.exists(path):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            build([*compiler.split(), "-O2", *["-DINT8"] * int8], path)
        made = ctypes.CDLL(path)
        function, threads = made.few_rows, ctypes.c_int.in_dll(made, "has_threads").value
    except (OSError, subprocess.SubprocessError) as error:
        return f"few_rows.c could not be built: {error}"
    pointer, number = ctypes.c_void_p, ctypes.c_int
    function.max_rows = MAX_ROWS if threads else FEWEST
    function.argtypes = [pointer, pointer, *[number] * 10, pointer, pointer, ctypes.c_float, number]
    return function


def build(command, path):
    """few_rows.c -> path, whole or not at all: another process may be doing the same."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        made = os.path.join(folder, "few_rows.so")
        for flags in FLAGS:
            result = subprocess.run(
                [*command, *flags, "-shared", "-fPIC", SOURCE, "-o", made, "-lm"],
                capture_output=True,
                text=True,
                timeout=120,
            )
            if result.returncode == 0:
                return os.replace(made, path)
        raise OSError(result.stderr.strip()[-500:])


def processor():
    """What "native" stands for here, since different machines may share a home directory."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            return next(line for line in file if line.lower().startswith((b"flags", b"features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()} {platform.node()}".encode()


# --------------------------------------------------------------------------------------------------
# A stack's weights

# stack -> the modules in it, their children, where its weights are
layouts = weakref.WeakKeyDictionary()
# stack -> what lay there, addresses for few_rows.c, tensors to keep alive
packed = weakref.WeakKeyDictionary()


def layout(stack):
    """-> (all modules in the stack, slots), the latter None where some are of other kinds than
    transformer.py's.

    Slots say where the weights sit: for each of few_rows.c's layers 5 linears and 2 norms, then
    the stack's own norm, each a weight and a bias, as (a module's parameters, name, shape), or
    None twice. Made anew when a module was replaced."""
    def children():
        return [child for module in (stack, *modules) for child in module._modules.values()]

    modules, before, slots = layouts.get(stack) or ([], None, None)
    if children() != before:
        # the stack itself is the key, and would never be freed as a part of the value
        _, *modules = stack.modules()
        slots = slots_of(stack) if {type(module) for module in modules} <= KNOWN_MODULES else None
        layouts[stack] = modules, children(), slots
    return modules, slots


def slots_of(stack):
    def pair(module, *shape, prefix=""):
        names = {prefix + "weight": shape, prefix + "bias": shape[:1]}
        return [
            None if module is None else (module._parameters, name, size)
            for name, size in names.items()
        ]

    blocks, slots = blocks_of(stack), []
    D, F = blocks[0].linear2.out_features, blocks[0].linear1.out_features
    joins = [*stack.linear_blocks] if stack.skip else []
    for join, layer in zip([None] * (len(blocks) - len(joins)) + joins, blocks):
        a = layer.self_attn
        slots += [
            *pair(join, D, 2 * D),
            *pair(a, 3 * D, D, prefix="in_proj_"),
            *pair(a.out_proj, D, D),
            *pair(layer.linear1, F, D),
            *pair(layer.linear2, D, F),
            *pair(layer.norm1, D),
            *pair(layer.norm2, D),
        ]
    return slots + pair(stack.norm, D)


def address(tensor):
    return None if tensor is None else tensor.data_ptr()


def pack(stack, slots):
    """-> (layers, last norm or None), arrays of addresses, or a text that says what few_rows.c
    does not read. Made anew when a weight has moved, or, as int8, has changed."""
    before, made, _ = packed.get(stack) or (None, None, None)
    tensors = [slot and slot[0][slot[1]] for slot in slots]
    now = [t if t is None else (t.data_ptr(), t.numel(), t.is_contiguous()) for t in tensors]
    if stack in rounded:
        now += [t._version for t in tensors if t is not None and not t.is_inference()]
    if now != before:
        made, keep = unlike(stack, slots, tensors), []
        if not made:
            *pairs, last = zip(tensors[::2], tensors[1::2])
            flat = []
            for i, (weight, bias) in enumerate(pairs):
                if i % 7 > 4:  # a norm
                    flat += [weight, bias]
                    continue
                scale = None
                if stack in rounded and weight is not None:
                    keep += [weight]  # no other weight comes to lie where this one lay, unnoticed
                    weight, scale = to_int8(weight)
                    keep += [weight, scale]
                flat += [weight, scale, bias]
            made = ((ctypes.c_void_p * len(flat))(*map(address, flat)),
                    last[0] is not None and (ctypes.c_void_p * 2)(*map(address, last)) or None)
        packed[stack] = now, made, keep
    return made


def unlike(stack, slots, tensors):
    """What makes this stack another than few_rows.c takes for given; empty if nothing does."""
    for slot, t in zip(slots, tensors):
        if slot and (
            t is None
            or t.shape != slot[2]
            or t.dtype != torch.float32
            or t.device.type != "cpu"
            or not t.is_contiguous()
        ):
            return f"every {slot[1]} must be there, float32, contiguous, on the CPU, this one of shape {slot[2]}"
    blocks = blocks_of(stack)
    norms = [norm for block in blocks for norm in (block.norm1, block.norm2)] + [stack.norm] * (
        stack.norm is not None
    )
    if (
        len({(b.activation, b.pre_norm, b.cross, b.self_attn.heads) for b in blocks}) > 1
        or len({norm.eps for norm in norms}) > 1
    ):
        return "all layers must have the same settings"
    return ""


def to_int8(weight):
    """weight (out, in) -> int8 (out, in) and scale (out,): weight ~ int8 * scale, the largest of
    each row exact."""
    scale = weight.detach().abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight.detach() / scale[:, None]).round().to(torch.int8), scale


@torch.no_grad()
def round_to_int8(stack):
    """From now on this stack's products are made of int8 weights: its own are rounded to what
    int8 can say, so that every path gives the same numbers; here they are also read as int8, a
    quarter of the bytes. To be called again when weights change."""
    rounded.add(stack)
    for weight in stack.parameters():
        if weight.dim() == 2:
            numbers, scale = to_int8(weight)
            weight.copy_(numbers * scale[:, None])


# --------------------------------------------------------------------------------------------------
# Running it


def unsupported(x, stack, first=None):
    """Why `run` cannot run this stack on x (B, L, D); empty if it can."""
    if backend.MODE != "auto" or x.device.type != "cpu":
        return f"MLD_KERNELS is {backend.MODE}, and the tokens are on {x.device}; it must be auto, and a CPU"
    if (
        torch.is_grad_enabled()
        or stack.training
        or torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()
    ):
        return "it has no backward, no dropout and no other type than float32, and cannot be traced"
    (B, L, D), layer = x.shape, blocks_of(stack)[0]
    function = library(stack in rounded)
    if isinstance(function, str):
        return function
    if not 1 <= B * L <= function.max_rows or not 1 <= (L if first is None else first) <= L:
        return f"it is for up to {function.max_rows} rows of tokens and some of them, not {B * L} and {first} of {L}"
    if x.dtype != torch.float32:
        return f"tokens must be float32, not {x.dtype}"
    if (
        layer.cross
        or D != layer.linear2.out_features
        or D % (16 * layer.self_attn.heads)
        or layer.linear1.out_features % 16
    ):
        return "it takes self-attention layers only, of widths that 16 divides"
    modules, slots = layout(stack)
    if slots is None or any(m._forward_hooks or m._forward_pre_hooks for m in (stack, *modules)):
        return "hooks and modules of other kinds than transformer.py's would not run"
    made = pack(stack, slots)
    return made if isinstance(made, str) else ""


def run(x, stack, first=None, causal=False):
    """stack(x, causal=causal, first=first), for what `unsupported` has had nothing against just
    now."""
    (B, L, D), blocks, weights = x.shape, blocks_of(stack), packed[stack][1]
    layer, x = blocks[0], x.contiguous()
    out = x.new_empty(B, first or L, D)
    failed = library(stack in rounded)(
        x.data_ptr(),
        out.data_ptr(),
        B,
        L,
        out.shape[1],
        D,
        layer.self_attn.heads,
        layer.linear1.out_features,
        len(blocks),
        layer.pre_norm,
        ACTIVATIONS.index(layer.activation),
        causal,
        *weights,
        layer.norm1.eps,
        min(torch.get_num_threads(), MAX_THREADS),
    )
    if failed:
        raise MemoryError("few_rows.c found no memory for its buffers")
    return out
