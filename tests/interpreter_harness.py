"""Makes Triton's interpreter a strict judge of a kernel: it rounds as a GPU does, and checks the
addresses of every launch.

Import it before any kernel, in a process with TRITON_INTERPRET=1 and MLD_KERNELS=triton. From then
on

- bfloat16 numbers are rounded to the nearest, and products of 16-bit numbers are added up in
  float32 (the stock interpreter truncates, and multiplies the bits of bfloat16 as integers);
- a product of float32 matrices that does not ask for "ieee" is rounded to TF32, as on a GPU, which
  the stock interpreter hides;
- every launch is watched (`Watch`). A test fails on an access outside the tensors passed, on a
  masked load that leaves the masked lanes undefined, where two programs write one address, and
  where one reads what another writes. The interpreter runs programs one after the other, so such
  races would otherwise go unseen;
- torch.empty gives NaN, so a result that nobody wrote is seen.

The names replaced are Triton's private ones, as of 3.7. tests/test_kernels_interpreter.py plants
one error of each kind and demands that it is caught, so a version that moved them fails loudly.
"""
import os

assert os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("MLD_KERNELS") == "triton"

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = True  # torch.empty gives NaN

# --------------------------------------------------------------------------------------------------
# Arithmetic


def float_to_bf16_bits(x):
    """float32 array -> uint16 bits of bfloat16, to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def bf16_bits_to_float(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_to_tf32(x):
    """float32 array -> float32 with the 10 mantissa bits that a TF32 product looks at."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


stock_cast = InterpreterBuilder.cast_impl


def cast(self, source, to):
    was, now = source.dtype.scalar, to.scalar
    if was == tl.float32 and now == tl.bfloat16:
        return TensorHandle(float_to_bf16_bits(source.data), now)
    if was == tl.bfloat16 and now == tl.float32:
        return TensorHandle(bf16_bits_to_float(source.data), now)
    known = tl.bfloat16 not in (was, now) or was == now
    assert known, f"the harness has no cast from {was} to {now}"
    return stock_cast(self, source, to)


def dot(self, a, b, add, precision, _):
    def numbers(handle):
        kind = handle.dtype.scalar
        if kind == tl.bfloat16:
            return bf16_bits_to_float(handle.data)
        if kind == tl.float32 and "IEEE" not in str(precision):
            return round_to_tf32(handle.data)
        return handle.data.astype(np.float32)

    return TensorHandle((numbers(a) @ numbers(b) + add.data).astype(np.float32), add.dtype.scalar)


def erf(self, x):  # the stock one calls Python's math.erf for every element
    return TensorHandle(torch.erf(torch.from_numpy(np.array(x.data))).numpy(), x.dtype.scalar)


def refuse_bf16(name):
    """Triton's own arithmetic on the bits of bfloat16 gives garbage, so kernels must go to float32
    first."""
    stock = getattr(InterpreterBuilder, name)

    def checked(self, a, b):
        assert a.dtype.scalar != tl.bfloat16, f"{name} on bfloat16"
        return stock(self, a, b)

    return checked


for name in ("create_fadd", "create_fsub", "create_fmul", "create_fdiv", "create_fcmpOLT",
             "create_fcmpOGT"):
    setattr(InterpreterBuilder, name, refuse_bf16(name))
for name in ("cast_impl", "create_fp_ext", "create_fp_trunc"):
    setattr(InterpreterBuilder, name, cast)
InterpreterBuilder.create_dot, InterpreterBuilder.create_erf = dot, erf


def call(self, *args, **kwargs):
    """A kernel calls another @triton.jit function. The stock one patches all of triton.language
    again at every call, which takes most of a kernel's time; once per launch and module is
    enough."""
    module = self.fn.__globals__["__name__"]
    if module not in current.patched:
        interpreter._patch_lang(self.fn)
        current.patched.add(module)
    return self.rewrite()(*args, **kwargs)


interpreter.InterpretedFunction.__call__ = call

# --------------------------------------------------------------------------------------------------
# Addresses


def addresses(tensor):
    """The byte address of every element of a tensor, whatever its strides."""
    offsets = np.zeros(1, np.int64)
    for size, stride in zip(tensor.shape, tensor.stride()):
        offsets = (offsets[:, None] + np.arange(size) * stride).ravel()
    return (tensor.data_ptr() + offsets * tensor.element_size()).astype(np.uint64)


class Watch:
    """Records what one launch reads and writes, by program; `judge` looks for races at its end."""
    launches = 0

    def __init__(self, tensors):
        self.allowed = np.unique(np.concatenate([addresses(t) for t in tensors]))
        self.reads, self.writes, self.patched = {}, {}, set()

    def record(self, into, program, pointers, mask):
        shape = np.broadcast_shapes(pointers.data.shape, mask.data.shape)
        touched = np.broadcast_to(pointers.data, shape)[np.broadcast_to(mask.data, shape)]
        touched = touched.astype(np.uint64)
        place = np.minimum(np.searchsorted(self.allowed, touched), self.allowed.size - 1)
        outside = int((self.allowed[place] != touched).sum())
        assert not outside, f"program {program}: {outside} addresses outside the tensors passed"
        into.setdefault(program, []).append(place)  # positions in `allowed`: smaller than addresses

    def judge(self):
        owner = np.full(self.allowed.size, -1)
        for number, (program, places) in enumerate(self.writes.items()):
            places = np.unique(np.concatenate(places))
            free = (owner[places] == -1).all()
            assert free, f"program {program} writes where another program writes"
            owner[places] = number
        numbers = {program: number for number, program in enumerate(self.writes)}
        for program, places in self.reads.items():
            foreign = owner[np.concatenate(places)]
            foreign = (foreign != -1) & (foreign != numbers.get(program, -2))
            assert not foreign.any(), f"program {program} reads what another program writes"
        Watch.launches += 1


current = None  # the Watch of the launch that is running
stock_load = InterpreterBuilder.create_masked_load
stock_store = InterpreterBuilder.create_masked_store
stock_launch = GridExecutor.__call__


def load(self, pointers, mask, other, *rest):
    defined = other is not None or mask.data.all()
    assert defined, "a masked load without `other`: masked lanes are undefined on a GPU"
    current.record(current.reads, tuple(self.grid_idx), pointers, mask)
    return stock_load(self, pointers, mask, other, *rest)


def store(self, pointers, value, mask, *rest):
    current.record(current.writes, tuple(self.grid_idx), pointers, mask)
    return stock_store(self, pointers, value, mask, *rest)


def launch(self, *args, **kwargs):
    global current
    passed = (*args, *kwargs.values())
    current = Watch([t for t in passed if isinstance(t, torch.Tensor) and t.numel()])
    stock_launch(self, *args, **kwargs)
    current.judge()


InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
GridExecutor.__call__ = launch
assert interpreter.interpreter_builder.__class__ is InterpreterBuilder
