"""Builds few_rows.c with the machine's C compiler, once, and runs a transformer.Stack in it.

This is for a CPU and a few rows of tokens, such as a prompt's or those of up to 21 latents in the
denoiser: there plain torch spends more time between its operations than in them
(`python -m dev.bench ladder --batches 1,16`). Where there is no C compiler, and in all cases that
`unsupported` names, plain torch runs instead; the numbers are the same to rounding.

The library is kept in $XDG_CACHE_HOME/nanomld or ~/.cache/nanomld. Its name is a hash of its
source, the compiler and the processor.
"""
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

# Measured with AVX2: 1.8 times as fast as torch at 48 rows, 1.4 times at 96, 1.1 times at 192,
# equal at 384.
MAX_ROWS = 128
FEWEST = 16  # without OpenMP: a single thread soon falls behind torch's several
MAX_THREADS = 16  # more of them only wait for one another
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "few_rows.c")
# tried in this order, until one compiles
FLAGS = [["-march=native", "-fopenmp"], ["-mcpu=native", "-fopenmp"], ["-march=native"],
         ["-mcpu=native"]]
ACTIVATIONS = ("gelu", "relu", "quick_gelu")  # in few_rows.c's order
# what a stack may be made of; transformer.py adds its own layers
KNOWN_MODULES = {torch.nn.Linear, torch.nn.LayerNorm, torch.nn.ModuleList}
rounded = weakref.WeakSet()  # the stacks whose weights round_to_int8 has rounded

# --------------------------------------------------------------------------------------------------
# The library


@functools.lru_cache(maxsize=None)
def library(int8=False):
    """The C function for float32 or int8 weights, or a text that says why there is none."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        return "there is no C compiler"
    try:
        with open(SOURCE, "rb") as file:
            parts = [file.read(), compiler.encode(), repr((FLAGS, int8)).encode(), processor()]
        name = f"few_rows-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:24]}.so"
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        path = os.path.join(cache, "nanomld", name)
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            build([*compiler.split(), "-O2", *["-DINT8"] * int8], path)
        made = ctypes.CDLL(path)
        function, threads = made.few_rows, ctypes.c_int.in_dll(made, "has_threads").value
    except (OSError, subprocess.SubprocessError) as error:
        return f"few_rows.c could not be built: {error}"
    function.max_rows = MAX_ROWS if threads else FEWEST
    pointer, number = ctypes.c_void_p, ctypes.c_int
    function.argtypes = [pointer, pointer, *[number] * 10, pointer, pointer, ctypes.c_float, number]
    return function


def build(command, path):
    """few_rows.c -> path, whole or not at all, since another process may be doing the same."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        made = os.path.join(folder, "few_rows.so")
        for flags in FLAGS:
            whole = [*command, *flags, "-shared", "-fPIC", SOURCE, "-o", made, "-lm"]
            result = subprocess.run(whole, capture_output=True, text=True, timeout=120)
            if result.returncode == 0:
                return os.replace(made, path)
        raise OSError(result.stderr.strip()[-500:])


def processor():
    """What "native" means here, since different machines may share a home directory."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            return next(line for line in file if line.lower().startswith((b"flags", b"features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()} {platform.node()}".encode()


# --------------------------------------------------------------------------------------------------
# A stack's weights

layouts = weakref.WeakKeyDictionary()  # stack -> its modules, their children, its slots
packed = weakref.WeakKeyDictionary()  # stack -> state of its weights, addresses, tensors to keep


def layout(stack):
    """-> all modules in the stack, and its slots: None if a module is of an unknown kind.

    Slots say where the weights are: for each layer of few_rows.c 5 linears and 2 norms, then the
    stack's own norm. Each has two slots, weight and bias: (a module's parameters, name, shape),
    or None where there is no such module. All is made anew once a module has been replaced."""
    def children():
        return [child for module in (stack, *modules) for child in module._modules.values()]

    modules, before, slots = layouts.get(stack) or ([], None, None)
    if children() != before:
        _, *modules = stack.modules()  # without the stack: a key kept in its value is never freed
        slots = slots_of(stack) if {type(module) for module in modules} <= KNOWN_MODULES else None
        layouts[stack] = modules, children(), slots
    return modules, slots


def slots_of(stack):
    def pair(module, *shape, prefix=""):
        if module is None:
            return [None, None]
        names = {prefix + "weight": shape, prefix + "bias": shape[:1]}
        return [(module._parameters, name, size) for name, size in names.items()]

    blocks, slots = blocks_of(stack), []
    D, F = blocks[0].linear2.out_features, blocks[0].linear1.out_features
    joins = [*stack.linear_blocks] if stack.skip else []
    for join, layer in zip([None] * (len(blocks) - len(joins)) + joins, blocks):
        a = layer.self_attn
        slots += pair(join, D, 2 * D)
        slots += pair(a, 3 * D, D, prefix="in_proj_") + pair(a.out_proj, D, D)
        slots += pair(layer.linear1, F, D) + pair(layer.linear2, D, F)
        slots += pair(layer.norm1, D) + pair(layer.norm2, D)
    return slots + pair(stack.norm, D)


def addresses(tensors):
    """A C array of where these tensors (or None) lie."""
    array = ctypes.c_void_p * len(tensors)
    return array(*[None if t is None else t.data_ptr() for t in tensors])


def pack(stack, slots):
    """-> arrays of addresses: the layers', and the last norm's or None. Or a text that says what
    few_rows.c cannot read. Made anew once a weight has moved or, where it is int8, changed."""
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
                    keep.append(weight)  # or another could take its address, unnoticed
                    weight, scale = to_int8(weight)
                    keep += [weight, scale]
                flat += [weight, scale, bias]
            made = addresses(flat), None if last[0] is None else addresses(last)
        packed[stack] = now, made, keep
    return made


def unlike(stack, slots, tensors):
    """How this stack differs from what few_rows.c assumes; empty if it does not."""
    for slot, t in zip(slots, tensors):
        if slot is None:
            continue
        _, name, shape = slot
        fits = t is not None and t.shape == shape and t.is_contiguous()
        if not fits or t.dtype != torch.float32 or t.device.type != "cpu":
            return f"this {name} must be there, of shape {shape}, float32, contiguous, on the CPU"
    blocks = blocks_of(stack)
    settings = {(b.activation, b.pre_norm, b.cross, b.self_attn.heads) for b in blocks}
    norms = [norm for b in blocks for norm in (b.norm1, b.norm2)]
    norms += [] if stack.norm is None else [stack.norm]
    if len(settings) > 1 or len({norm.eps for norm in norms}) > 1:
        return "all layers must have the same settings"
    return ""


def to_int8(weight):
    """weight (out, in) -> int8 (out, in), scale (out,), so that weight is about int8 * scale; the
    largest number of each row is exact."""
    scale = weight.detach().abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight.detach() / scale[:, None]).round().to(torch.int8), scale


@torch.no_grad()
def round_to_int8(stack):
    """Round this stack's weights to 8 bits, in place, so that every path gives the same numbers.
    The C path then also reads them as int8, a quarter of the bytes. Call it again when the
    weights change."""
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
        return ("MLD_KERNELS must be auto and the tokens on a CPU, not "
                f"{backend.MODE} and {x.device}")
    autocast = torch.is_autocast_enabled("cpu")
    if torch.is_grad_enabled() or stack.training or autocast or torch.jit.is_tracing():
        return "it has no backward, no dropout, no type but float32, and cannot be traced"
    (B, L, D), layer = x.shape, blocks_of(stack)[0]
    function = library(stack in rounded)
    if isinstance(function, str):
        return function
    if not 1 <= B * L <= function.max_rows:
        return f"it takes up to {function.max_rows} rows of tokens, not {B * L}"
    if first is not None and not 1 <= first <= L:
        return f"it computes 1 to {L} of {L} tokens, not {first}"
    if x.dtype != torch.float32:
        return f"tokens must be float32, not {x.dtype}"
    odd = D % (16 * layer.self_attn.heads) or layer.linear1.out_features % 16
    if layer.cross or odd or D != layer.linear2.out_features:
        return "it takes only self-attention layers, of widths that are multiples of 16"
    modules, slots = layout(stack)
    if slots is None or any(m._forward_hooks or m._forward_pre_hooks for m in (stack, *modules)):
        return "hooks, and modules that are not transformer.py's, would not run"
    made = pack(stack, slots)
    return made if isinstance(made, str) else ""


def run(x, stack, first=None, causal=False):
    """stack(x, causal=causal)[:, :first]; `unsupported` must have returned "" just before."""
    (B, L, D), blocks, weights = x.shape, blocks_of(stack), packed[stack][1]
    layer, x = blocks[0], x.contiguous()
    out = x.new_empty(B, first or L, D)
    failed = library(stack in rounded)(
        x.data_ptr(), out.data_ptr(), B, L, out.shape[1], D,
        layer.self_attn.heads, layer.linear1.out_features, len(blocks), layer.pre_norm,
        ACTIVATIONS.index(layer.activation), causal, *weights, layer.norm1.eps,
        min(torch.get_num_threads(), MAX_THREADS))
    if failed:
        raise MemoryError("few_rows.c found no memory for its buffers.")
    return out
