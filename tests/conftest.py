"""Fixtures used by several test files."""
import os
import pathlib
import pickle
import shutil

# the tests run in parallel processes: one thread each is fastest
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared():
    """Folder with real motion capture and published weights that are too big, or not free enough,
    for this repository."""
    folder = pathlib.Path(os.environ.get("NANOMLD_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(
            f"NOT TESTED on real data: {folder} is absent (point NANOMLD_SHARED at the folder "
            "that holds data/ and golden/)"
        )
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """once(name, make): what make() gives, made by one of the tests' processes for all of them."""
    from files import lock

    here = tmp_path_factory.getbasetemp()
    folder = here if worker_id == "master" else here.parent

    def once(name, make):
        path = folder / f"{name}.pickle"
        with open(folder / f"{name}.lock", "w") as file:
            lock(file, wait=True)
            if not path.exists():
                path.write_bytes(pickle.dumps(make()))
        return pickle.loads(path.read_bytes())
    return once


@pytest.fixture(scope="session")
def toy_joints(once):
    """The joints (T, 22, 3) in float64 of each clip of the toy set, unpacked once for all tests."""
    import numpy as np

    from formats.pack import Pack

    pack = Pack.open(str(ROOT / "data" / "toy" / "toy.pack"))
    return once("toy_joints", lambda: [pack.joints(i).astype(np.float64) for i in range(len(pack))])


def drawn(model):
    """The model, with random weights also where modulated layers start as zeros, as if trained: so
    that its latents depend on the condition."""
    import torch

    with torch.no_grad():
        for p in model.denoiser.modulated.parameters() if model.denoiser.modulated else ():
            if not p.any():
                p.normal_(std=0.1)
    return model


# Each takes a minute or so: first, or one process would wait for the other at the end.
LONG = {"test_all_cases_in_the_interpreter", "test_all_configurations_compile", "test_a_dry_run",
        "test_twenty_kills_leave_every_line_of_the_log_as_it_is"}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.name not in LONG)


def for_avx2(name, signatures, folder):
    """The library of the C file kernels/NAME for a processor without AVX-512."""
    from kernels import c_library

    if "avx2" not in open("/proc/cpuinfo").read() or not shutil.which("cc"):
        pytest.skip("NOT TESTED: this processor has no AVX2, or there is no C compiler cc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLD_CFLAGS", "-mavx2 -mfma")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        made = c_library.functions(name, signatures)
    assert not isinstance(made, str), made
    return made
