"""Compile every kernel that the launchers can launch, ahead of time and without a GPU, and write docs/kernels.md.

    python -m dev.kernel_report            needs triton, but no GPU and no CUDA toolkit; about five minutes on two cores

Nothing is listed by hand: the launchers themselves run on tensors without memory ("meta") while their kernels are
replaced by a recorder, so what is compiled is what they launch, for every length from 1 to 512.
tests/test_kernels_compile.py compiles every tile of it and asserts on what comes out.
"""
import concurrent.futures
import os
import re
import struct
import sys
from typing import NamedTuple

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # a * b + c in one rounding, as a launch compiles it

import torch

import kernels  # noqa: F401 (brings in the modules below)
from kernels import backend
from kernels.tiles import attention_tiles

MODULES = ("attention", "layer_norm", "gelu", "denoiser_layer")
ATTENTION, LAYER_NORM, GELU, DENOISER = (sys.modules[f"kernels.{name}"] for name in MODULES)
# bytes of shared memory that one block may have; sm_80 has 163 KB, but its tiles are also those of sm_86, 89 and 120
SHARED_LIMIT = {80: 99 * 1024, 90: 227 * 1024, "gfx942": 64 * 1024}
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
            elif isinstance(value, torch.Tensor):
                signature[name] = f"*{TYPES[value.dtype]}"
                aligned.append(name)
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
                if isinstance(value, int) and value % 16 == 0:
                    aligned.append(name)
        assert {*signature, *constants} == {*self.kernel.arg_names}
        constants = tuple(sorted(constants.items()))
        launch = Launch(self.name, tuple(signature.items()), constants, tuple(aligned), num_warps, num_stages)
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


def attention_launches(arch, dtype, widths=(16, 32, 64, 128), flags=((True, True, True), (True, False, False))):
    """Every attention kernel for one type and architecture, as Launches. flags: (lengths, causal, dropout)."""
    with recorded(arch) as found:
        for D in widths:
            for B in (1, 64):
                for L in attention_lengths(D, dtype, arch, 4 * B):
                    for lengths, causal, dropout in flags:
                        run_attention(L, D, dtype, lengths, causal, dropout, B)
    return list(found)


def row_launches(arch, dtype, widths=(16, 32, 64, 128, 256, 512, 768, 1024)):
    """Layer norm and GELU of every width that has its own tile, with and without dropout, and CLIP's 768."""
    with recorded(arch) as found:
        for C in widths:
            x, w = torch.empty(12672, C, dtype=dtype, device="meta"), torch.empty(C, dtype=dtype, device="meta")
            for seed in (None, torch.empty(1, dtype=torch.int64, device="meta")):
                _, s, mean, rstd = LAYER_NORM.launch_forward(x, x, w, w, seed, 1e-5, 0.1, True, dtype)
                LAYER_NORM.launch_backward(x, x, s, w, mean, rstd, seed, 0.1, dtype)
                GELU.launch_forward(x, w, seed, 0.1)
                GELU.launch_backward(x, w, x, seed, 0.1)
    return list(found)


def denoiser_launches(arch, dtype, sizes=((3, 64, 4, 128), (4, 128, 4, 512), (3, 256, 4, 1024), (9, 256, 8, 1024))):
    """The few-token denoiser, 9 layers with skips, for (tokens, width, heads, hidden)."""
    from transformer import Stack

    with recorded(arch) as found, torch.no_grad(), torch.device("meta"):
        for L, D, H, F in sizes:
            DENOISER.denoiser_layers(torch.empty(2, L, D), Stack(9, D, H, F, skip=True).eval().to(dtype))
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


def cubin_figures(cubin):
    """An NVIDIA program, an ELF file -> registers, stack, instructions of its one kernel; what cuobjdump would print,
    without its half second. Registers and stack are attributes 0x2F and 0x11 of section .nv.info; an instruction has 16
    bytes."""
    (table,), (size, count, names) = struct.unpack_from("<Q", cubin, 0x28), struct.unpack_from("<3H", cubin, 0x3A)
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
        if form == 4:  # followed by `value` bytes: for these two, the kernel's symbol and a number
            found[attribute] = struct.unpack_from("<2I", cubin, at)[1]
            at += value
    code, = (length for name, (_, length) in sections.items() if name.startswith(".text."))
    return found[0x2F], found[0x11], code // 16


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
        registers, stack = (int(re.search(rf"\.{name}:\s+(\d+)", code)[1])
                            for name in ("vgpr_count", "private_segment_fixed_size"))
        wgmma, mma, atomics = 0, code.count("v_mfma"), code.count("atomic_")
        instructions = len(re.findall(r"^\t[a-z]+_", code, re.M))
    else:
        code, (registers, stack, instructions) = built.asm["ptx"], cubin_figures(built.asm["cubin"])
        wgmma, mma = code.count("wgmma.mma_async"), code.count("mma.sync")
        atomics = len(re.findall(r"\b(?:atom|red)\.(?!async)", code))
    return Built(registers, stack, built.metadata.shared, wgmma, mma, atomics, instructions)


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
    if launch.exact and built.wgmma + built.mma and arch != "gfx942":  # whose matrix units do exact float32 as well
        found.append("uses tensor cores for exact float32")
    if built.atomics:
        found.append("uses atomics")
    return found


# ----------------------------------------------------------------------------------------------------------------------
# docs/kernels.md


def floors():
    """What must move, and how long that takes at least, as rows of a table. H100: 3.0 TB/s, 798 TFLOP/s in bfloat16."""
    B, H, L, D, C, F = 64, 4, 198, 64, 256, 1024
    stream, hidden, product = B * L * C * 2 / 1e6, B * L * F * 2 / 1e6, 2 * B * H * L * L * D / 1e9
    rows = [("attention forward", "q, k, v in; o out", 4 * stream, 2 * product),
            ("attention backward", "q, k, v, o, do in; dq, dk, dv out", 8 * stream, 5 * product),
            ("residual + layer norm forward", "x, residual in; y, s out", 4 * stream, 0),
            ("residual + layer norm backward", "dy, s in; ds out", 3 * stream, 0),
            ("bias + GELU forward", "h in; y out", 2 * hidden, 0),
            ("bias + GELU backward", "h, dy in; dh out", 3 * hidden, 0)]
    for name, what, megabytes, gflop in rows:
        time = f"{gflop / 0.798:.1f} us" if gflop else "-"
        yield name, what, f"{megabytes:.1f} MB", f"{megabytes / 3.0:.1f} us", time


def operation_counts():
    """How many operations (not views) 50 guided steps and a decoding dispatch -> all; those in the denoiser's stack."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from config import Config
    from mld import MLD

    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            self.operations += not (function.is_view or "empty" in function.name())
            return out

    backend.MODE, config = "torch", Config()
    for part in (config.vae, config.denoiser):
        part.latent_dim, part.ff_size, part.dropout = 16, 32, 0.0
    model = MLD(config, lambda texts: torch.zeros(len(texts), 1, config.denoiser.text_encoded_dim)).eval()
    stack, inside = model.denoiser.encoder, []
    with Count() as total:
        before = stack.register_forward_pre_hook(lambda *_: inside.append(-total.operations))
        after = stack.register_forward_hook(lambda *_: inside.append(total.operations))
        model.generate(texts=["jump"], lengths=[196], num_inference_steps=50)
    before.remove(), after.remove()
    return total.operations, sum(inside)


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def built(job):
    return job, compile_launch(*job)


def write(path="docs/kernels.md"):
    jobs = []
    for dtype in (torch.bfloat16, torch.float32):
        for arch in (80, 90):
            jobs += [(launch, arch) for launch in attention_launches(arch, dtype) + row_launches(arch, dtype)]
            jobs += [(launch, arch) for launch in denoiser_launches(arch, dtype)]
        jobs += [(launch, "gfx942") for launch in attention_launches(0, dtype, widths=(64,))]
        jobs += [(launch, "gfx942") for launch in row_launches(0, dtype, widths=(256, 1024))]
        jobs += [(launch, "gfx942") for launch in denoiser_launches(0, dtype, ((3, 256, 4, 1024),))]
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        results = []
        for job, figures in pool.map(built, jobs):
            results.append((*job, figures))
            print(f"\r{len(results)} of {len(jobs)} kernels compiled", end="", flush=True)
    print()
    wrong = [f"{launch.kernel} {dict(launch.constants)} on {arch}: {problem}" for launch, arch, figures in results
             for problem in problems(launch, figures, arch)]
    if wrong:
        raise SystemExit("\n".join(wrong))
    operations, in_stack = operation_counts()
    fused = operations - in_stack + 50 * len(STEP)
    merged = {}  # the variants with and without lengths, causal mask, dropout ... of one tile: the most that any needs
    for launch, arch, figures in results:
        sizes = " ".join(f"{name}={value}" for name, value in launch.constants
                         if name.isupper() and type(value) is int and name not in ("BD", "BC", "STAGES"))
        chip = arch if isinstance(arch, str) else f"sm_{arch}"
        key = (launch.kernel, "fp32" if launch.exact else "bf16", chip, sizes, launch.warps)
        merged.setdefault(key, []).append(figures)
    rows = [(*key, *(max(column) for column in zip(*figures))) for key, figures in sorted(merged.items())]
    text = TEXT.format(
        version=backend.triton.__version__, count=len(results), operations=operations, fused=fused, per_step=len(STEP),
        floors=table(["operation", "moves", "bytes", "at 3.0 TB/s", "products at 798 TFLOP/s"], floors()),
        kernels=table(["kernel", "type", "for", "sizes", "warps", *Built._fields], rows))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    print(f"{path}: {len(results)} kernels, no spill, no atomics")


# the launches of a step of MLD's denoiser: 4 layers in, 1 in the middle, 4 out, each in two halves, 4 joins, last norm
STEP = ["attention_half", "ffn_half"] * 9 + ["join"] * 4 + ["finish"]

TEXT = """# The kernels: what they must move, and what they compile to

Written by `python -m dev.kernel_report` (triton {version}). **Compiled, not run on a GPU**: nobody has timed these kernels
yet, and every time below is a floor computed from bytes and operations, not a measurement. Their results are checked in
Triton's interpreter against float64 (`tests/test_kernels_interpreter.py`); on a GPU
`pytest tests/test_kernels.py tests/test_kernels_models.py` runs the same cases.

## Floors on an H100

One operation of a training step at HumanML3D's size, in bfloat16: 64 motions of 198 tokens, 4 heads of 64, width 256,
hidden layer 1024. What an operation reads and writes at least, and how long memory takes for it; float32 doubles both.

{floors}
The two-phase attention backward computes the scores twice, 7 products instead of 5, and reads q, k, v and do twice, the
second time largely from the cache.

## Launches of a sampling run

One prompt, 50 DDIM steps with guidance, the VAE's decoder, without the text encoder: operations that torch dispatches,
views not counted, counted on a CPU; each is at least one launch on a GPU.

| | launches |
| --- | --- |
| plain torch | {operations} |
| denoiser's layers in two launches each ({per_step} a step) | {fused} |

With `MLD_GRAPH=1` a whole denoising step is recorded once as a CUDA graph and replayed as one launch.

## Every configuration, compiled

{count} kernels: every tile that the launchers choose for lengths from 1 to 512, head widths 16, 32, 64 and 128, layer
widths up to 1024, in bfloat16 and float32, for sm_80 and sm_90, and the main ones for gfx942. A row is one choice of
tile, with the most that its variants (with and without lengths, causal mask and dropout; residual; ...) need. The type
is that of the weights. Registers and stack are per thread; stack is what spilled to memory: 0 everywhere. Shared memory
is in bytes per block (limits: 99 KB for sm_80's tiles, which sm_86, sm_89 and sm_120 get too, 227 KB on sm_90, 64 KB on
gfx942). wgmma and mma count tensor-core instructions (matrix instructions on gfx942): present wherever 16-bit numbers
are multiplied, absent for exact float32, except on gfx942, whose matrix units multiply float32 exactly. No kernel
contains an atomic.

{kernels}"""


if __name__ == "__main__":
    if backend.WHY_NOT and backend.MODE != "triton":  # without a GPU only a new process brings the real Triton in
        os.execve(sys.executable, [sys.executable, "-m", "dev.kernel_report"], os.environ | {"MLD_KERNELS": "triton"})
    sys.exit(backend.WHY_NOT or write())
