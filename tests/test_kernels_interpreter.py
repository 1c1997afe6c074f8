"""The kernels' tests pass in Triton's interpreter, and the harness that judges there sees faults.

The interpreter has to be chosen before triton is imported, so the cases run in a process of their
own, which the first test starts. In that process this file's other tests run too.
"""
import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from kernels import backend

if backend.INTERPRETED:
    import interpreter_harness as harness
    from kernels.backend import tl, triton
else:
    triton = tl = None
inside = pytest.mark.skipif(not backend.INTERPRETED,
                            reason="runs in the process that this file's first test starts")


def pytest_process(files, **environment):
    """Run pytest on files in a fresh process -> how many tests passed; fails with its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *files]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True,
                            text=True, timeout=1500)
    said = f"{' '.join(command)}\n{result.stdout[-12000:]}\n{result.stderr[-4000:]}"
    assert result.returncode == 0, said
    print(result.stdout[-4000:])
    return int(re.search(r"(\d+) passed", result.stdout)[1])


@pytest.mark.skipif(backend.INTERPRETED, reason="this is the process")
def test_all_cases_in_the_interpreter():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("NOT RUN: triton is not installed (requirements.txt brings it on Linux)")
    files = [f"tests/test_kernels{part}.py" for part in ("", "_interpreter", "_models")]
    assert pytest_process(files, TRITON_INTERPRET="1", MLD_KERNELS="triton") > 150


# --------------------------------------------------------------------------------------------------
# The judge is judged: one planted error of each kind

if backend.INTERPRETED:

    @triton.jit
    def copy(x, y, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + i, tl.load(x + i + SHIFT, mask=i < n, other=0.0), mask=i < n)

    @triton.jit
    def copy_without_other(x, y, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)

    @triton.jit
    def lost_update(x, y, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(y + i, tl.load(y + i) + tl.load(x + tl.program_id(0) * BLOCK + i))

    @triton.jit
    def square(x, y, IEEE: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        at = i[:, None] * BLOCK + i[None, :]
        a = tl.load(x + at)
        out = tl.dot(a, a, input_precision="ieee") if IEEE else tl.dot(a, a)
        tl.store(y + at, out.to(y.dtype.element_ty))


@inside
def test_catches_what_the_stock_interpreter_hides():
    x, y = torch.randn(64), torch.empty(64)
    assert y.isnan().all()  # an output that nobody writes is seen
    before = harness.Watch.launches
    copy[(4,)](x, y, 64, SHIFT=0, BLOCK=16)
    assert torch.equal(x, y) and harness.Watch.launches == before + 1
    # one element too far, inside the same storage
    with pytest.raises(Exception, match="outside the tensors"):
        copy[(4,)](x[:63], y[:63], 63, SHIFT=1, BLOCK=16)
    with pytest.raises(Exception, match="outside the tensors"):  # a gap between rows
        copy[(4,)](x.view(8, 8)[:, :4], y, 64, SHIFT=0, BLOCK=16)
    with pytest.raises(Exception, match="without `other`"):
        copy_without_other[(4,)](x, y, 60, BLOCK=16)
    with pytest.raises(AssertionError, match="writes where another program writes"):
        lost_update[(4,)](x, torch.zeros(16), BLOCK=16)
    with pytest.raises(AssertionError, match="reads what another program writes"):
        copy[(4,)](x, x, 48, SHIFT=16, BLOCK=16)


@inside
def test_rounds_as_a_gpu_does():
    x, y = torch.randn(16, 16), torch.empty(16, 16)
    expected = x.double() @ x.double()
    square[(1,)](x, y, IEEE=True, BLOCK=16)
    assert (y - expected).norm() / expected.norm() < 1e-6
    square[(1,)](x, y, IEEE=False, BLOCK=16)  # TF32, which a kernel gets by default
    assert 1e-4 < (y - expected).norm() / expected.norm() < 2e-3
    for dtype in (torch.bfloat16, torch.float16):
        x, y = torch.randn(16, 16).to(dtype), torch.empty(16, 16, dtype=dtype)
        square[(1,)](x, y, IEEE=True, BLOCK=16)
        # added up in float32, rounded to the nearest
        assert torch.equal(y, (x.float() @ x.float()).to(dtype))
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1 + 2**-8, 1 + 3 * 2**-8])
    values = torch.cat((torch.randn(1000), special))
    bits = torch.from_numpy(harness.float_to_bf16_bits(values.numpy()).view("int16"))
    assert torch.equal(bits.view(torch.bfloat16), values.to(torch.bfloat16))
