"""What the kernels' launchers launch, compiled ahead of time and without a GPU, and what is wrong
with the machine code.

Nothing is listed by hand. The launchers themselves run on tensors without memory ("meta") while a
recorder takes the place of their kernels, so what is compiled is what they launch, for every length
from 1 to 512. test_kernels_compile.py checks the outcome, dev/kernel_report.py writes it down. Both
run it in a process with MLD_KERNELS=triton.
"""
import contextlib
import os
import re
import struct
import sys
from collections import namedtuple
from typing import NamedTuple
from unittest import mock

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # fused multiply-add, as in a launch
import torch

import kernels  # noqa: F401 (brings in the modules below)
from diffusion import Step
from kernels import backend
from kernels.tiles import attention_tiles
from latents import EachToken
from transformer import Stack

MODULES = {name: sys.modules[f"kernels.{name}"]
           for name in ("attention", "layer_norm", "gelu", "denoiser_layer", "denoising_step")}
ATTENTION, LAYER_NORM, GELU, DENOISER, DENOISING = MODULES.values()
# Bytes of shared memory that a block may have. sm_80 has 163 KB, but its tiles are also those of
# sm_86, sm_89 and sm_120.
SHARED_LIMIT = {80: 99 * 1024, 90: 227 * 1024, "gfx942": 64 * 1024}
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64"}
# The launches of a step of MLD's denoiser: 9 layers in two halves each, 4 joins, the last norm
STEP = ["attention_half", "ffn_half"] * 9 + ["join"] * 4 + ["finish"]

# --------------------------------------------------------------------------------------------------
# What the launchers launch


class Launch(NamedTuple):
    """One kernel with everything that its machine code depends on."""
    kernel: str  # "attention.forward"
    signature: tuple  # ((argument, type), ...), as Triton's launcher would infer it
    constants: tuple  # ((argument, value), ...)
    aligned: tuple  # arguments known to be multiples of 16
    warps: int
    stages: int

    def __getitem__(self, name):  # launch["D"]
        known = dict(self.constants)
        return known.get(name) if isinstance(name, str) else tuple.__getitem__(self, name)

    @property
    def exact(self):
        """True for exact float32, which must not use tensor cores."""
        return not any(kind in ("*bf16", "*fp16") for _, kind in self.signature)


class Recorder:
    """Takes a kernel's place, and notes each launch in `found` instead of making it."""

    def __init__(self, name, kernel, found):
        self.name, self.kernel, self.found = name, kernel, found

    def __getitem__(self, grid):
        return self

    def __call__(self, *args, num_warps, num_stages=3, **constants):
        signature, aligned = {}, []
        for name, value in zip(self.kernel.arg_names, args):
            if value is None or isinstance(value, int) and value == 1:
                constants[name] = value  # Triton compiles these in
            elif isinstance(value, torch.Tensor):
                signature[name] = f"*{TYPES[value.dtype]}"
                aligned.append(name)
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
                if isinstance(value, int) and value % 16 == 0:
                    aligned.append(name)
        assert {*signature, *constants} == {*self.kernel.arg_names}
        constants = tuple(sorted(constants.items()))
        self.found[Launch(self.name, tuple(signature.items()), constants, tuple(aligned), num_warps,
                          num_stages)] = None  # a dict keeps the order


@contextlib.contextmanager
def recorded(arch):
    """`with recorded(90) as found:` notes every launch inside in `found`, and makes none."""
    found, kind = {}, backend.triton.runtime.JITFunction
    with contextlib.ExitStack() as patches:
        def replace(module, name, value):
            patches.enter_context(mock.patch.object(module, name, value))

        for part, module in MODULES.items():
            for name, value in list(vars(module).items()):
                if isinstance(value, kind) and value.fn.__module__ == module.__name__:
                    replace(module, name, Recorder(f"{part}.{name}", value, found))
        replace(ATTENTION, "architecture", lambda device: arch)
        yield found


def meta(*shape, dtype=torch.int64):
    return torch.empty(shape, dtype=dtype, device="meta")


def run_attention(L, D, dtype, lengths=True, causal=False, dropout=False, B=64, H=4):
    """One forward and backward, where q, k and v are slices of a fused projection."""
    q, k, v = meta(B, L, 3, H, D, dtype=dtype).permute(2, 0, 3, 1, 4)
    rest = meta(B) if lengths else None, meta(1) if dropout else None, causal, 0.1
    o, lse = ATTENTION.launch_forward(q, k, v, *rest)
    ATTENTION.launch_backward(q, k, v, o, lse, o, *rest)


def attention_lengths(D, dtype, arch, programs):
    """One length for every different answer that attention_tiles gives from 1 to 512."""
    answers = {}
    for L in range(1, 513):
        for dropout in (True, False):
            tiles = attention_tiles(L, L, D, dtype, arch, programs, dropout)
            answers.setdefault(str(tiles), L)
    return sorted(set(answers.values()))


def attention_launches(arch, dtype, widths=(16, 32, 64, 128),
                       flags=((True, True, True), (True, False, False))):
    """Every attention kernel for one type and architecture. flags: (lengths, causal, dropout)."""
    with recorded(arch) as found:
        for D in widths:
            for B in (1, 64):
                for L in attention_lengths(D, dtype, arch, 4 * B):
                    for some in flags:
                        run_attention(L, D, dtype, *some, B)
    return list(found)


def row_launches(arch, dtype, widths=(16, 32, 64, 128, 256, 512, 768, 1024)):
    """Layer norm and GELU with and without dropout, at every width that has a tile of its own, and
    at CLIP's 768."""
    with recorded(arch) as found:
        for C in widths:
            x, w = meta(12672, C, dtype=dtype), meta(C, dtype=dtype)
            for seed in (None, meta(1)):
                _, s, *statistics = LAYER_NORM.launch_forward(
                    x, x, w, w, seed, 1e-5, 0.1, True, dtype)
                LAYER_NORM.launch_backward(x, x, s, w, *statistics, seed, 0.1, dtype)
                GELU.launch_forward(x, w, seed, 0.1)
                GELU.launch_backward(x, w, x, seed, 0.1)
    return list(found)


def denoiser_launches(arch, dtype, sizes=((3, 64, 4, 128), (4, 128, 4, 512), (3, 256, 4, 1024),
                                          (9, 256, 8, 1024))):
    """The few-token denoiser, 9 layers with skips, for (tokens, width, heads, hidden)."""
    with recorded(arch) as found, torch.no_grad(), torch.device("meta"):
        for L, D, H, F in sizes:
            stack = Stack(9, D, H, F, skip=True).eval().to(dtype)
            DENOISER.denoiser_layers(torch.empty(2, L, D), stack)
    return list(found)


def denoising_launches(arch, dtype, sizes=((1, 3, 256), (2, 5, 160), (4, 7, 48), (4, 7, 256, 128),
                                           (2, 5, 80, 24))):
    """What lies between two calls of the denoiser, for (latent tokens, all tokens, width) and, of
    narrower latent tokens, their width."""
    with recorded(arch) as found, torch.no_grad(), torch.device("meta"):
        for N, L, D, *W in sizes:
            narrow = [EachToken(N, *size).to(dtype) for width in W
                      for size in ((width, D), (D, width))]
            for scale, last in ((None, 0.0), (7.5, 0.0), (7.5, 0.1)):
                copies = 1 + (scale is not None)
                x, pe = torch.empty(2, N, *(W or [D])), torch.empty(L, D, dtype=dtype)
                tokens = torch.empty(2 * copies, L, D, dtype=dtype)
                plan = [Step(1, 1.0, 1.0, 1.0, 1.0, last, 0.0)] * 2
                DENOISING.walk(plan, x, tokens, pe, pe, lambda t: t[:, :N], scale, bool(last),
                               narrow)
    return list(found)


# --------------------------------------------------------------------------------------------------
# Compile, and look at the machine code

# Registers and stack are per thread, and any stack means that registers spilled to memory. Shared
# memory is in bytes per block. wgmma are sm_90's tensor-core instructions of four warps, mma those
# of one warp.
Built = namedtuple("Built", "registers stack shared wgmma mma atomics instructions")


def cubin_figures(cubin):
    """An NVIDIA program, an ELF file -> registers, stack and instructions of its one kernel, as
    cuobjdump prints them. Registers and stack are attributes 0x2F and 0x11 of section .nv.info; an
    instruction has 16 bytes."""
    table, = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<3H", cubin, 0x3A)
    # each header: name, type, flags, address, offset, length
    headers = [struct.unpack_from("<2I4Q", cubin, table + i * size) for i in range(count)]
    sections = {}
    for name, _, _, _, offset, length in headers:
        start = headers[names][4] + name
        sections[cubin[start:cubin.index(b"\0", start)].decode()] = offset, length
    (at, length), found = sections[".nv.info"], {}
    end = at + length
    while at < end:
        form, attribute, value = struct.unpack_from("<2BH", cubin, at)
        at += 4
        if form == 4:  # `value` bytes follow: for these two, the kernel's symbol and a number
            found[attribute] = struct.unpack_from("<2I", cubin, at)[1]
            at += value
    code, = (length for name, (_, length) in sections.items() if name.startswith(".text."))
    return found[0x2F], found[0x11], code // 16


def compile_launch(launch, arch):
    """-> Built. arch: 80 or 90 (ptxas comes with Triton), or 'gfx942'."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = launch.kernel.split(".")
    kernel, constants = getattr(MODULES[module], name), dict(launch.constants)
    kinds = dict(launch.signature) | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, constexprs=constants,
                       signature={name: kinds[name] for name in kernel.arg_names},
                       attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]]
                              for name in launch.aligned})
    amd = isinstance(arch, str)
    built = backend.triton.compile(
        source, target=GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", arch, 32),
        options=dict(num_warps=launch.warps, num_stages=launch.stages))
    shared = built.metadata.shared
    if amd:
        code = built.asm["amdgcn"]
        registers, stack = (int(re.search(rf"\.{name}:\s+(\d+)", code)[1])
                            for name in ("vgpr_count", "private_segment_fixed_size"))
        return Built(registers, stack, shared, 0, code.count("v_mfma"), code.count("atomic_"),
                     len(re.findall(r"^\t[a-z]+_", code, re.M)))
    code, (registers, stack, size) = built.asm["ptx"], cubin_figures(built.asm["cubin"])
    return Built(registers, stack, shared, code.count("wgmma.mma_async"), code.count("mma.sync"),
                 len(re.findall(r"\b(?:atom|red)\.(?!async)", code)), size)


def problems(launch, built, arch):
    """What is wrong with a compiled kernel, as a list of sentences; empty if nothing is."""
    tensor_cores, found, (module, name) = built.wgmma + built.mma, [], launch.kernel.split(".")
    multiplies = module in ("attention", "denoiser_layer") and name != "finish"
    if built.stack:
        found.append(f"spills {built.stack} bytes of registers")
    if built.shared > SHARED_LIMIT[arch]:
        found.append(f"needs {built.shared} bytes of shared memory")
    if multiplies and not launch.exact and not tensor_cores:
        found.append("uses no tensor cores")
    if launch.exact and tensor_cores and arch != "gfx942":  # which multiplies float32 exactly
        found.append("uses tensor cores for exact float32")
    if built.atomics:
        found.append("uses atomics")
    return found
