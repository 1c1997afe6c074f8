"""Builds few_rows.c, decode.c and modulated.c with the machine's C compiler, once, and runs a
transformer.Stack in the first two.

This is for a CPU and a few rows of tokens, such as a prompt's or those of up to 21 latents in the
denoiser: there plain torch spends more time between its operations than in them
(`python -m dev.bench ladder --batches 1,16`). Where there is no C compiler, and in all cases that
`unsupported` names, plain torch runs instead; the numbers are the same to rounding.
"""
import ctypes
import functools
import os
import weakref

import torch
from torch.nn.modules import module as global_hooks

from kernels import backend, c_library
from kernels.denoiser_layer import blocks_of

# Measured with AVX2: 1.8 times as fast as torch at 48 rows, 1.4 times at 96, 1.1 times at 192,
# equal at 384.
MAX_ROWS = 128
FEWEST = 16  # without OpenMP: a single thread soon falls behind torch's several
MAX_THREADS = 16  # more of them only wait for one another
FOLDER = os.path.dirname(os.path.abspath(__file__))
DEFINES = {"float32": [], "bf16": ["-DBF16"], "int8": ["-DINT8"]}  # by the kind of weights
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}  # of tokens
FLAGS = c_library.machine_flags()
ACTIVATIONS = ("gelu", "relu", "quick_gelu")  # in few_rows.c's order
# what a stack may be made of; transformer.py adds its own layers
KNOWN_MODULES = {torch.nn.Linear, torch.nn.LayerNorm, torch.nn.ModuleList}
# what a module computes with, besides its weights
SETTINGS = ("activation", "pre_norm", "cross", "heads", "eps")

# --------------------------------------------------------------------------------------------------
# The library


@functools.lru_cache(maxsize=None)
def library(kind, name):
    """The C function for weights of a kind of DEFINES, or a text that says why there is none."""
    made = c_library.load(os.path.join(FOLDER, f"{name}.c"), ["-O2", *DEFINES[kind]], FLAGS)
    if isinstance(made, str):
        return made
    try:
        function, threads = getattr(made, name), ctypes.c_int.in_dll(made, "has_threads").value
    except (AttributeError, ValueError) as error:
        return f"the C compiler made something else of {name}.c: {error}"
    function.max_rows = MAX_ROWS if threads else FEWEST
    pointer, number = ctypes.c_void_p, ctypes.c_int
    function.argtypes = {
        "few_rows": [pointer, pointer, *[number] * 10],
        "decode": [pointer, number, pointer, pointer, number, number, pointer, *[number] * 6],
        "modulated": [*[pointer] * 4, *[number] * 6, pointer, pointer]}[name]
    function.argtypes += [pointer, pointer, ctypes.c_float, number]
    return function


# --------------------------------------------------------------------------------------------------
# A stack's weights

layouts = weakref.WeakKeyDictionary()  # stack -> its modules, their children, slots, settings
packed = weakref.WeakKeyDictionary()  # stack -> state of its weights, what C gets, tensors to keep


def layout(stack):
    """-> all modules in the stack; its slots, None if a module is of an unknown kind; and where
    its settings are, as (attributes of a module, name of one).

    Slots say where the weights are: for each layer its linears and norms, in the order of the C
    file's Layer, then the stack's own norm. Each has two slots, weight and bias: (a module's
    parameters, name, shape), or None where there is no such module. All is made anew once a module
    has been replaced."""
    def children():
        below = [child for module in (stack, *modules) for child in module._modules.values()]
        return stack.skip, below

    modules, before, slots, settings = layouts.get(stack) or ([], None, None, None)
    if children() != before:
        _, *modules = stack.modules()  # without the stack: a key kept in its value is never freed
        slots = slots_of(stack) if {type(module) for module in modules} <= KNOWN_MODULES else None
        settings = [(vars(m), name) for m in modules for name in SETTINGS if name in vars(m)]
        layouts[stack] = modules, children(), slots, settings
    return modules, slots, settings


def uneven(settings):
    """The name of a setting that is not the same in all layers; else empty."""
    values = {}
    for attributes, name in settings:
        if values.setdefault(name, attributes[name]) != attributes[name]:
            return name
    return ""


def watched(modules):
    """Whether calling these modules does more than their forward: by hooks, or by a forward that
    was put in its place on one of them."""
    return any([m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__
                for m in modules])


def altered(stack, modules):
    """Why these modules of this stack have to be called one by one; else empty."""
    everywhere = global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks
    if everywhere or watched((stack, *modules)):
        return "its hooks would not run"
    if any([m.training for m in modules if "dropout" in m.__dict__]):
        return "it would drop nothing in a layer in training mode"
    return ""


def alike(stack):
    """Whether one kernel may stand in for all the layers of this stack."""
    modules, _, settings = layout(stack)
    return not (altered(stack, modules) or uneven(settings))


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
        if layer.cross:
            a = layer.multihead_attn
            slots += pair(a, 3 * D, D, prefix="in_proj_") + pair(a.out_proj, D, D)
        slots += pair(layer.linear1, F, D) + pair(layer.linear2, D, F)
        slots += pair(layer.norm1, D) + pair(layer.norm2, D)
        slots += pair(layer.norm3, D) if layer.cross else []
    return slots + pair(stack.norm, D)


def addresses(tensors):
    """A C array of where these tensors (or None) lie."""
    array = ctypes.c_void_p * len(tensors)
    return array(*[None if t is None else t.data_ptr() for t in tensors])


def pack(stack, slots, settings):
    """-> arrays of addresses, the layers' and the last norm's or None, and the kind of the
    weights. Or a text that says what few_rows.c cannot read. Made anew once a weight has moved, a
    setting has changed or a weight that was copied has changed: all of them with int8, biases and
    norms with bf16."""
    before, made, _ = packed.get(stack) or (None, None, None)
    tensors = [slot and slot[0].get(slot[1]) for slot in slots]
    there = [t for t in tensors if t is not None]
    now = [(t.data_ptr(), t.shape, t.dtype, t.is_contiguous()) for t in there]
    now += [attributes[name] for attributes, name in settings]
    # an inference tensor does not say when it changes, so no copy of it is kept
    watchable = not any(t.is_inference() for t in there)
    int8, bf16 = is_int8(stack) and watchable, there[0].dtype == torch.bfloat16
    if int8 or bf16 and watchable:
        now += [t._version for t in there]
    if now != before:
        made, keep = unlike(stack, slots, tensors, uneven(settings)), []
        if not made and bf16 and not watchable:
            made = "bf16 weights made in inference mode do not say when they change"
        if not made:
            if bf16:
                keep += there  # or another could take an address, unnoticed
                tensors = [t if t is None or t.dim() == 2 else t.detach().float() for t in tensors]
                keep += tensors
            *pairs, last = zip(tensors[::2], tensors[1::2])
            linears, size = (7, 10) if blocks_of(stack)[0].cross else (5, 7)  # of a layer's pairs
            copies = int8_copies([w for i, (w, _) in enumerate(pairs) if i % size < linears
                                  and int8])
            flat = []
            for i, (weight, bias) in enumerate(pairs):
                if i % size >= linears:  # a norm
                    flat += [weight, bias]
                    continue
                scale = None
                if copies and weight is not None:
                    keep.append(weight)  # or another could take its address, unnoticed
                    weight, scale = copies[id(weight)]
                    keep += [weight, scale]
                flat += [weight, scale, bias]
            kind = "int8" if copies else "bf16" if bf16 else "float32"
            made = addresses(flat), None if last[0] is None else addresses(last), kind
        packed[stack] = now, made, keep
    return made


def unlike(stack, slots, tensors, setting):
    """How this stack differs from what few_rows.c assumes; empty if it does not."""
    kind = next(t.dtype for t in tensors if t is not None)
    kind = kind if kind == torch.bfloat16 else torch.float32
    for slot, t in zip(slots, tensors):
        if slot is None:
            continue
        _, name, shape = slot
        fits = t is not None and t.shape == shape and t.is_contiguous()
        if not fits or t.dtype != kind or t.device.type != "cpu":
            return (f"this {name} must be there, of shape {shape}, {str(kind)[6:]}, contiguous, on "
                    "the CPU")
    if setting or blocks_of(stack)[0].activation not in ACTIVATIONS:
        return f"all layers must have the same {setting or 'activation, one that it knows'}"
    return ""


def int8_copies(weights):
    """{id: (int8, scale)} of these weights (or None). Empty if one is no longer as round_to_int8
    left it: then C reads the float32 weights, as torch does."""
    copies = {}
    for weight in weights:
        if weight is not None:
            copies[id(weight)] = exactly_int8(weight)
            if copies[id(weight)] is None:
                return {}
    return copies


def exactly_int8(weight):
    """to_int8 of a weight that is of 8 bits already; None of another."""
    numbers, scale = to_int8(weight)
    same = torch.allclose(numbers * scale[:, None], weight, rtol=1e-6, atol=0)
    return (numbers, scale) if same else None


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
    weights change: until then C reads the new ones in float32."""
    stack.int8 = True  # an attribute, so that a deep copy has it as well
    packed.pop(stack, None)
    for weight in stack.parameters():
        if weight.dim() == 2:
            numbers, scale = to_int8(weight)
            weight.copy_(numbers * scale[:, None])


def is_int8(stack):
    """Whether round_to_int8 has rounded this stack, or the one that it is a copy of."""
    return vars(stack).get("int8", False)


# --------------------------------------------------------------------------------------------------
# Running it


def unsupported(x, stack, first=None):
    """Why `run` cannot run this stack on x (B, L, D); empty if it can."""
    B, L, D = x.shape
    if first is not None and not 1 <= first <= L:
        return f"it computes 1 to {L} of {L} tokens, not {first}"
    if blocks_of(stack)[0].cross:
        return "it takes only self-attention layers"
    return unfit(x, stack, B * L, "few_rows")


def undecodable(x, stack, lengths, memory):
    """Why `decode` cannot run this stack on x (B or 1, T, D) and memory (B, N, D); empty if it
    can."""
    layer = blocks_of(stack)[0]
    if not layer.cross or layer.pre_norm or is_int8(stack):
        return "it takes only cross-attention layers with norms behind, and no int8"
    if x.dtype != torch.float32 or memory.dtype != torch.float32:
        return "a motion's many frames are decoded in float32 only"
    if x.device.type != "cpu":  # asked here, since lengths on a GPU cannot be read in a recording
        return f"the tokens must be on a CPU, not {x.device}"
    if memory.device != x.device or len(x) not in (1, len(memory)) or not memory.numel():
        return "queries and memory do not fit"
    if lengths is not None and not 1 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]:
        return "a motion has 1 frame at least"
    return unfit(x, stack, 1, "decode")


def elsewhere(x, network):
    """Why no C file can run this network on x, whatever it is made of; empty if one may."""
    if backend.MODE != "auto" or x.device.type != "cpu":
        return ("MLD_KERNELS must be auto and the tokens on a CPU, not "
                f"{backend.MODE} and {x.device}")
    autocast = torch.is_autocast_enabled("cpu")
    if torch.is_grad_enabled() or network.training or autocast or torch.jit.is_tracing():
        return "it has no backward, no dropout, no autocast, and cannot be traced"
    if torch._C._len_torch_dispatch_stack():
        return "torch's operations are being watched, as by a counter of FLOPs"
    return ""


def unfit(x, stack, rows, name):
    """Why the C file of this name cannot run this stack on x; empty if it can."""
    why_not = elsewhere(x, stack)
    if why_not:
        return why_not
    D, layer = x.shape[-1], blocks_of(stack)[0]
    if x.dtype not in TYPES.values():
        return f"tokens must be float32 or bfloat16, not {x.dtype}"
    bf16 = x.dtype == torch.bfloat16
    function = library("int8" if is_int8(stack) else "bf16" if bf16 else "float32", name)
    if isinstance(function, str):
        return function
    if not 1 <= rows <= function.max_rows:
        return f"it takes up to {function.max_rows} rows of tokens, not {rows}"
    odd = D % (16 * layer.self_attn.heads if name == "decode" else 16)
    odd = odd or layer.linear1.out_features % 16
    if odd or D != layer.linear2.out_features:
        return "it takes only widths that are multiples of 16"
    modules, slots, settings = layout(stack)
    if slots is None:
        return "it knows no modules but transformer.py's"
    made = altered(stack, modules) or pack(stack, slots, settings)
    if isinstance(made, str):
        return made
    if x.dtype != TYPES[made[2]]:
        return f"tokens must be of the weights' type, not {x.dtype}"
    function = library(made[2], name)  # float32, where weights are no longer rounded
    return function if isinstance(function, str) else ""


def run(x, stack, first=None, causal=False):
    """stack(x, causal=causal)[:, :first]; `unsupported` must have returned "" just before."""
    (B, L, D), blocks, (*weights, kind) = x.shape, blocks_of(stack), packed[stack][1]
    layer, given, x = blocks[0], x.dtype, x.float().contiguous()
    out = x.new_empty(B, first or L, D)
    failed = library(kind, "few_rows")(
        x.data_ptr(), out.data_ptr(), B, L, out.shape[1], D,
        layer.self_attn.heads, layer.linear1.out_features, len(blocks), layer.pre_norm,
        ACTIVATIONS.index(layer.activation), causal, *weights, layer.norm1.eps,
        min(torch.get_num_threads(), MAX_THREADS))
    if failed:
        raise MemoryError("few_rows.c found no memory for its buffers.")
    return out.to(given)


def decode(x, stack, lengths, memory):
    """stack(x, lengths, memory) for x (B, T, D) or (1, T, D), and zeros behind each motion's own
    length; `undecodable` must have returned "" just before."""
    (B, N, D), T, blocks = memory.shape, x.shape[1], blocks_of(stack)
    x, memory, layer, (*weights, kind) = x.contiguous(), memory.contiguous(), blocks[0], packed[
        stack][1]
    whole = torch.full((B,), T) if lengths is None else lengths
    whole, out = whole.to(torch.int32).contiguous(), x.new_empty(B, T, D)
    failed = library(kind, "decode")(
        x.data_ptr(), len(x) == 1, out.data_ptr(), whole.data_ptr(), B, T, memory.data_ptr(), N, D,
        layer.self_attn.heads, layer.linear1.out_features, len(blocks),
        ACTIVATIONS.index(layer.activation), *weights, layer.norm1.eps,
        min(torch.get_num_threads(), MAX_THREADS))
    if failed:
        raise MemoryError("decode.c found no memory for its buffers.")
    return out
