"""Compile every kernel that the launchers can launch, ahead of time and without a GPU, and write docs/kernels.md.

    python -m kernels.report            needs triton, but no GPU and no CUDA toolkit; about five minutes on two cores

Nothing is listed by hand: the launchers themselves run on tensors without memory ("meta") while their kernels are replaced
by a recorder, so what is compiled is what they launch, for every length from 1 to 512. tests/test_kernels_compile.py
compiles the same set and asserts on it.
"""
import concurrent.futures
import functools
import os
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

if __name__ == "__main__":  # before torch and kernels are imported: without a GPU only this brings the real Triton in
    os.environ["MLD_KERNELS"] = "triton"
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # a * b + c in one rounding, as a launch compiles it

import torch

import kernels.attention
import kernels.denoiser_layer
import kernels.gelu
import kernels.layer_norm
from kernels import backend
from kernels.tiles import attention_tiles

ATTENTION, LAYER_NORM, GELU, DENOISER = (sys.modules[f"kernels.{name}"] for name in ("attention", "layer_norm", "gelu", "denoiser_layer"))
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, "gfx942": 64 * 1024}  # bytes of shared memory that one block may have
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64"}


# ----------------------------------------------------------------------------------------------------------------------
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
        return dict(self.constants).get(name) if isinstance(name, str) else tuple.__getitem__(self, name)

    @property
    def exact(self):
        """True for exact float32, which must not use tensor cores."""
        return not any(kind in ("*bf16", "*fp16") for _, kind in self.signature)


class Recorder:
    """Stands in for a kernel, and notes the launch instead of making it."""

    def __init__(self, module, name, found):
        self.name, self.found, self.kernel = f"{module.__name__.split('.')[1]}.{name}", found, getattr(module, name)

    def __getitem__(self, grid):
        return self

    def __call__(self, *args, num_warps, num_stages=3, **constants):
        signature, aligned = {}, []
        for name, value in zip(self.kernel.arg_names, args):
            if value is None or (isinstance(value, int) and value == 1):
                constants[name] = value  # Triton compiles these in
            else:
                signature[name] = (f"*{TYPES[value.dtype]}" if isinstance(value, torch.Tensor) else "fp32" if isinstance(value, float) else "i32")
                if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                    aligned.append(name)
        assert len(args) + len(constants) - sum(n in constants for n in self.kernel.arg_names[:len(args)]) == len(self.kernel.arg_names)
        launch = Launch(self.name, tuple(signature.items()), tuple(sorted(constants.items())), tuple(aligned), num_warps, num_stages)
        self.found[launch] = None  # a dict keeps the order


class recorded:
    """`with recorded(90) as found:` every launch inside is noted in `found`, and none is made."""

    def __init__(self, arch):
        self.arch = arch

    def __enter__(self):
        found, self.saved = {}, []
        for module in (ATTENTION, LAYER_NORM, GELU, DENOISER):
            for name, value in list(vars(module).items()):
                if isinstance(value, backend.triton.runtime.JITFunction) and value.fn.__module__ == module.__name__:
                    self.replace(module, name, Recorder(module, name, found))
        self.replace(ATTENTION, "architecture", lambda device: self.arch)
        return found

    def replace(self, module, name, value):
        self.saved.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def __exit__(self, *_):
        for saved in self.saved:
            setattr(*saved)


def run_attention(L, D, dtype, lengths=True, causal=False, dropout=False, B=64, H=4):
    """One forward and backward through the launchers, q, k, v being slices of a fused projection."""
    q, k, v = torch.empty(B, L, 3, H, D, dtype=dtype, device="meta").permute(2, 0, 3, 1, 4)
    n = torch.empty(B, dtype=torch.int64, device="meta") if lengths else None
    seed = torch.empty(1, dtype=torch.int64, device="meta") if dropout else None
    o, lse = ATTENTION.launch_forward(q, k, v, n, seed, causal, 0.1)
    ATTENTION.launch_backward(q, k, v, o, lse, o, n, seed, causal, 0.1)


def attention_lengths(D, dtype, arch, programs):
    """One length for every different answer that attention_tiles gives from 1 to 512."""
    answers = {}
    for L in range(1, 513):
        for dropout in (True, False):
            answers.setdefault(str(attention_tiles(L, L, D, dtype, arch, programs, dropout)), L)
    return sorted(set(answers.values()))


def attention_launches(arch, dtype, widths=(16, 32, 64, 128), flags=None):
    """Every attention kernel for one type and architecture, as Launches."""
    flags = flags or [(lengths, causal, dropout) for lengths in (True, False) for causal in (False, True) for dropout in (False, True)]
    with recorded(arch) as found:
        for D in widths:
            for B in (1, 64):
                for L in attention_lengths(D, dtype, arch, 4 * B):
                    for lengths, causal, dropout in flags:
                        run_attention(L, D, dtype, lengths, causal, dropout, B)
    return list(found)


def other_launches(arch, dtype, widths=(64, 128, 256, 512, 768, 1024)):
    """Layer norm and GELU of every power of two (and CLIP's 768), and the denoiser's layers."""
    with recorded(arch) as found, torch.no_grad():
        for C in widths:
            x, w = torch.empty(12672, C, dtype=dtype, device="meta"), torch.empty(C, dtype=dtype, device="meta")
            for seed in (None, torch.empty(1, dtype=torch.int64, device="meta")):
                for residual in (None, x):
                    y, s, mean, rstd = LAYER_NORM.launch_forward(x, residual, w, w, seed, 1e-5, 0.1, residual is not None, dtype)
                    for dsum in (None, x):
                        LAYER_NORM.launch_backward(x, dsum, x, w, mean, rstd, seed, 0.1, dtype)
                GELU.launch_forward(x, w, seed, 0.1)
                GELU.launch_backward(x, w, x, seed, 0.1)
    return list(found)


def denoiser_launches(arch, dtype, sizes=((64, 4, 128), (64, 1, 256), (128, 4, 512), (256, 4, 1024), (256, 8, 1024))):
    """The few-token denoiser, 9 layers with skips, for (width, heads, hidden)."""
    from transformer import Stack

    with recorded(arch) as found, torch.no_grad():
        for D, H, F in sizes:
            with torch.device("meta"):
                DENOISER.denoiser_layers(torch.empty(2, 3, D), Stack(9, D, H, F, skip=True).eval().to(dtype))
    return list(found)


# ----------------------------------------------------------------------------------------------------------------------
# Compile, and look at the machine code


class Built(NamedTuple):
    """What a compiled kernel needs, and what it is made of."""
    registers: int  # per thread
    stack: int  # bytes per thread: anything but 0 means that registers spilled to memory
    shared: int  # bytes of shared memory per block
    wgmma: int  # sm_90's tensor-core instructions, of four warps
    mma: int  # tensor-core instructions of one warp
    atomics: int
    instructions: int


def compile_launch(launch, arch):
    """-> Built. arch: 80 or 90 (ptxas comes with Triton), or 'gfx942'."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = launch.kernel.split(".")
    kernel = getattr(sys.modules[f"kernels.{module}"], name)
    constants, kinds = dict(launch.constants), dict(launch.signature)
    source = ASTSource(fn=kernel, constexprs=constants,
                       signature={n: "constexpr" if n in constants else kinds[n] for n in kernel.arg_names},
                       attrs={(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in launch.aligned})
    target = GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)
    options = dict(num_warps=launch.warps, num_stages=launch.stages)
    built = backend.triton.compile(source, target=target, options=options)
    if isinstance(arch, str):
        code = built.asm["amdgcn"]
        return Built(int(re.search(r"\.vgpr_count:\s+(\d+)", code)[1]), int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", code)[1]),
                     built.metadata.shared, 0, code.count("v_mfma"), len(re.findall(r"\b\w*atomic_\w+", code)), len(re.findall(r"^\t[vs]_", code, re.M)))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run([backend.triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
                               capture_output=True, text=True, check=True).stdout
        code = subprocess.run([backend.triton.knobs.nvidia.nvdisasm.path, "-c", file.name],
                              capture_output=True, text=True, check=True).stdout
    return Built(int(re.search(r"REG:(\d+)", usage)[1]), int(re.search(r"STACK:(\d+)", usage)[1]), built.metadata.shared,
                 len(re.findall(r"\bHGMMA", code)), len(re.findall(r"\b(?:HMMA|IMMA|DMMA)", code)),
                 len(re.findall(r"\b(?:ATOM|ATOMG|ATOMS|RED|REDG)\b", code)), len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.M)))


def problems(launch, built, arch):
    """What is wrong with a compiled kernel, as a list of sentences; empty if nothing is."""
    dots = launch.kernel.startswith(("attention.", "denoiser_layer.")) and launch.kernel != "denoiser_layer.finish"
    found = []
    if built.stack:
        found.append(f"spills {built.stack} bytes of registers")
    if built.shared > SHARED_LIMIT[arch]:
        found.append(f"needs {built.shared} bytes of shared memory")
    if dots and not launch.exact and not built.wgmma + built.mma:
        found.append("uses no tensor cores")
    if launch.exact and built.wgmma + built.mma:
        found.append("uses tensor cores for exact float32")
    if built.atomics:
        found.append("uses atomics")
    return found
