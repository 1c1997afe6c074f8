"""Every tile that the launchers can choose compiles for sm_80 and sm_90 (the main ones for gfx942),
without a GPU.

compile_harness.py records the launches and compiles them with the real compiler. Asserted here:
nothing spills, shared memory fits the chip, tensor cores are used for 16-bit numbers and not for
exact float32, and there are no atomics. This needs a process in which Triton is neither absent nor
interpreted, which the first test starts.
"""
import importlib.util
import itertools

import pytest
import torch

from kernels import backend, tiles
from test_kernels_interpreter import pytest_process

COMPILING = not backend.WHY_NOT and not backend.INTERPRETED
inside = pytest.mark.skipif(not COMPILING,
                            reason="runs in the process that the first test of this file starts")
if COMPILING:
    import compile_harness as report
    from kernels.backend import tl, triton

    @triton.jit
    def with_an_atomic(x):
        tl.atomic_add(x + tl.program_id(0), 1.0)

TYPES = [torch.bfloat16, torch.float32]


@pytest.mark.skipif(COMPILING, reason="this is the process")
def test_all_configurations_compile():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("NOT RUN: triton is not installed (requirements.txt brings it on Linux)")
    files = ["tests/test_kernels_compile.py"]
    assert pytest_process(files, TRITON_INTERPRET="0", MLD_KERNELS="triton") > 30


def compile_all(launches, arch):
    assert launches
    wrong = [f"{launch.kernel} {dict(launch.constants)}: {problem}" for launch in launches
             for problem in report.problems(launch, report.compile_launch(launch, arch), arch)]
    assert not wrong, "\n".join(wrong)


@inside
@pytest.mark.parametrize("arch, dtype, D", [
    (a, t, D) for D in (128, 64, 32, 16) for a in (90, 80) for t in TYPES])
def test_attention(arch, dtype, D):
    flags = ((True, True, True), (True, False, False)) if D == 64 else ((True, True, True),)
    launches = report.attention_launches(arch, dtype, (D,), flags)
    whole = [launch for launch in launches if launch.kernel == "attention.backward_whole"]
    assert bool(whole) == (arch == 90 and dtype == torch.bfloat16)
    compile_all(launches, arch)


@inside
@pytest.mark.parametrize("arch", [80, 90])
def test_attention_of_clip_and_of_odd_widths(arch):
    """Causal without lengths; a head width that is no power of two."""
    clip = report.attention_launches(arch, torch.bfloat16, (64,), ((False, True, False),))
    odd = report.attention_launches(arch, torch.float32, (48,), ((True, False, False),))
    compile_all([launch for launch in clip if launch["BM"] == 64] + odd[-3:], arch)


@inside
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", TYPES)
def test_layer_norm_and_gelu(arch, dtype):
    """All widths with dropout, which needs most; the others are in docs/kernels.md."""
    launches = report.row_launches(arch, dtype, (16, 32, 64, 128, 256, 512, 1024))
    every = {tiles.row_tiles(1, C)[1] for C in range(1, 1025)}
    assert {launch["BC"] for launch in launches} == every
    compile_all([launch for launch in launches if launch["DROPOUT"]
                 and (launch["C"] <= 256 or launch.kernel.startswith("layer_norm"))], arch)


@inside
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [(3, 64, 4, 128), (4, 128, 4, 512), (3, 256, 4, 1024)])
def test_denoiser_layers(arch, dtype, size):
    launches = report.denoiser_launches(arch, dtype, (size,))
    assert {launch.kernel.split(".")[1] for launch in launches} == set(report.STEP)
    compile_all(launches, arch)


@inside
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_lies_between_two_calls_of_the_denoiser(arch, dtype):
    launches = report.denoising_launches(arch, dtype)
    assert len(launches) == 15 and {launch.kernel for launch in launches} == {
        "denoising_step.advance", "denoising_step.advance_narrow"}
    compile_all(launches, arch)


@inside
@pytest.mark.parametrize("dtype", TYPES)
def test_gfx942(dtype):
    launches = report.attention_launches(0, dtype, (64,), ((True, False, False),))
    launches = launches[-3:] + report.row_launches(0, dtype, (256,))[-2:]
    compile_all(launches + report.denoiser_launches(0, dtype, ((3, 256, 4, 1024),))[1:3], "gfx942")


@inside
def test_every_answer_of_the_tile_function_is_compiled():
    """The launches above come from the launchers, and cover the answers for every supported
    shape."""
    for arch in (80, 86, 89, 90, 100, 120, 0):
        as_compiled = 90 if arch in (90, 100) else 80
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            kind = torch.float32 if dtype == torch.float32 else torch.bfloat16
            for D in (16, 17, 32, 33, 64, 65, 96, 128):
                BD, known = tiles.power_of_two(D), set()
                for programs in (4, 256):
                    for L in report.attention_lengths(BD, kind, as_compiled, programs):
                        for dropout in (True, False):
                            size = L, L, BD, kind, as_compiled, programs, dropout
                            known |= tiles.attention_tiles(*size).items()
                some = 1, 16, 17, 64, 65, 128, 129, 256, 257, 512
                for Lq, Lk in itertools.product(some, repeat=2):
                    for programs, dropout in itertools.product((1, 127, 128, 4096), (True, False)):
                        found = tiles.attention_tiles(Lq, Lk, D, dtype, arch, programs, dropout)
                        assert found.items() <= known


@inside
def test_a_spill_and_an_atomic_would_be_seen(monkeypatch):
    """The check itself: a tile that is too big for the registers is reported, and an atomic."""
    monkeypatch.setattr(report.GELU, "forward", with_an_atomic)
    for arch in (80, 90, "gfx942"):
        launch = report.Launch("gelu.forward", (("x", "*fp32"),), (), ("x",), 1, 1)
        built = report.compile_launch(launch, arch)
        assert report.problems(launch, built, arch) == ["uses atomics"]
    big = dict.fromkeys(("forward", "queries", "keys"), tiles.Tile(64, 64, 1, 1))
    monkeypatch.setattr(report.ATTENTION, "attention_tiles", lambda *_: big)
    with report.recorded(80) as found:
        report.run_attention(200, 64, torch.bfloat16)
    launch = next(launch for launch in found if launch.kernel == "attention.forward")
    found = report.problems(launch, report.compile_launch(launch, 80), 80)
    assert any("spills" in problem for problem in found)
