"""Data in pickles and torch files comes back, nothing in them is run, and small ones stay small."""
import collections
import gc
import io
import json
import os
import pickle
import sys
import time
import types
import zipfile

import numpy as np
import pytest
import torch

from formats import safe_pickle
from formats.safe_pickle import Foreign, dense, load_pickle, load_torch, named_tensors


class Runs:
    """What a malicious file does: unpickling it calls os.system."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def foreign_class(monkeypatch, module, name, body=None):
    """A class of a package that is not installed, there while the file is written and gone when
    it is read."""
    parts = module.split(".")
    for i in range(len(parts)):
        monkeypatch.setitem(
            sys.modules, ".".join(parts[: i + 1]), types.ModuleType(".".join(parts[: i + 1]))
        )
    cls = type(name, (), {"__module__": module, **(body or {})})
    setattr(sys.modules[module], name, cls)
    return cls


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back(tmp_path, protocol):
    data = {
        "poses": np.random.randn(3, 4),
        "big": np.arange(3, dtype=">f4"),
        "fortran": np.asfortranarray(np.eye(3)[:2]),
        "objects": np.array([np.arange(2), "a", None], dtype=object),
        "words": np.array(["ab", "c"]),
        "empty": np.zeros((0, 3)),
        "list": [np.float32(3), np.int64(2), {1, 2}, (np.arange(2), b"bytes", 1.5, True, None)],
        "ordered": collections.OrderedDict(a=1),
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(data, protocol))
    read = load_pickle(path)
    for key, value in data.items():
        assert type(read[key]) is type(value)
        # numpy itself may bring numbers into the machine's byte order
        if isinstance(value, np.ndarray):
            assert (
                read[key].dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
                and read[key].shape == value.shape
            )
            assert str(read[key].tolist()) == str(value.tolist())
        else:
            assert str(read[key]) == str(value)
    assert type(read["list"][3][0]) is np.ndarray and type(read["objects"][0]) is np.ndarray


def test_python_2_pickle(tmp_path):
    # what Python 2's cPickle wrote for {'a': numpy.array([1., 2.])}: strings of bytes, modules
    # under their old names
    body = (
        b"(dp1\nS'a'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n"
        b"(I0\ntS'b'\ntRp5\n(I1\n(I2\ntcnumpy\ndtype\n"
        b"p6\n(S'f8'\nI0\nI1\ntRp7\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS"
        + repr(np.array([1.0, 2.0]).tobytes())[1:].encode()
        + b"\ntbs."
    )
    (tmp_path / "a.pkl").write_bytes(body)
    assert np.array_equal(load_pickle(tmp_path / "a.pkl")["a"], [1.0, 2.0])


def test_smpl_objects(tmp_path, monkeypatch):
    ch = foreign_class(monkeypatch, "chumpy.ch", "Ch")
    csc = foreign_class(monkeypatch, "scipy.sparse.csc", "csc_matrix")
    value, matrix = ch(), csc()
    value.x = np.arange(6.0).reshape(2, 3)
    matrix.__dict__ = {
        "_shape": (2, 3),
        "data": np.array([1.0, 2.0, 3.0]),
        "indices": np.array([0, 1, 0]),
        "indptr": np.array([0, 2, 2, 3]),
    }
    path = tmp_path / "smpl.pkl"
    path.write_bytes(pickle.dumps({"v": value, "j": matrix, "f": np.eye(2)}, 2))
    read = load_pickle(path)
    assert np.array_equal(dense(read["v"]), np.arange(6.0).reshape(2, 3))
    assert np.array_equal(dense(read["j"]), [[1, 0, 3], [2, 0, 0]])
    assert np.array_equal(dense(read["f"]), np.eye(2))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_runs(tmp_path, protocol):
    proof = tmp_path / "proof"
    raw = pickle.dumps({"poses": np.eye(3), "x": Runs(proof)}, protocol)
    (tmp_path / "bad.pkl").write_bytes(raw)
    with pytest.raises(ValueError, match=r"bad\.pkl.*posix\.system|nt\.system"):
        load_pickle(tmp_path / "bad.pkl")
    assert not proof.exists()
    pickle.loads(raw)  # the same bytes do run where they are trusted
    assert proof.exists()


@pytest.mark.parametrize(
    "body",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\ngetattr\n.",
        b"ccollections\nOrderedDict.__init__\n.",
        b"ccollections\nOrderedDict\n(N}S'fromkeys'\nI1\nstb.",  # sets an attribute of a class
        b"c_codecs\nencode\n(N}S'function'\nI1\nstb.",  # sets an attribute of a builder
        b"ccopyreg\n_reconstructor\n(cbuiltins\nlist\ncbuiltins\nobject\nNtR.",
        # raw bytes as an object's address
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRS'12345678'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(I0\ntR(I1\n(I1\ntcnumpy\ndtype\n(S'O'\ntRI00\n"
        b"S'12345678'\ntb.",
        # nine objects, of which none is there
        b"cnumpy.core.multiarray\n_reconstruct\n(I0\ntR(I1\n(I9\ntcnumpy\ndtype\n(S'O'\ntRI00\n"
        b"(ltb.",
        b"Pid\n.",
        b"",
        b"garbage",
        b"\x80\x04\x95",
    ],
)
def test_crafted_pickles_are_refused(tmp_path, body):
    (tmp_path / "bad.pkl").write_bytes(body)
    with pytest.raises(ValueError, match=r"bad\.pkl") as caught:
        load_pickle(tmp_path / "bad.pkl")
    assert "\n" not in str(caught.value)
    assert collections.OrderedDict.fromkeys("a") == {"a": None}  # and left nothing changed behind
    (tmp_path / "good.pkl").write_bytes(pickle.dumps(np.array([b"x"]), 2))
    assert load_pickle(tmp_path / "good.pkl")[0] == b"x"


DOUBLED = b"\x80\x04K\x01\x94" + b"".join(  # ((((1, 1), (1, 1)), ...), ...): 2^60 ones
    b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(60))
LAST = b"h\x3c"
HEAD = b"\x80\x04"


@pytest.mark.parametrize("body, says", [
    (DOUBLED + b"}" + LAST + b"K\x01s.", "keys are not plain"),
    (DOUBLED + b"}(" + LAST + b"K\x01u.", "keys are not plain"),
    (DOUBLED + b"(" + LAST + b"K\x01d.", "keys are not plain"),
    (DOUBLED + b"\x8f(" + LAST + b"\x90.", "keys are not plain"),
    (DOUBLED + b"(" + LAST + b"\x91.", "keys are not plain"),
    (DOUBLED + b"cbuiltins\nset\n(" + LAST + b"l\x85R.", "keys are not plain"),
    (DOUBLED + b"cbuiltins\nfrozenset\n(" + LAST + b"l\x85\x81.", "keys are not plain"),
    (DOUBLED + b"cbuiltins\nfrozenset\n(" + LAST + b"l\x85}\x92.", "keys are not plain"),
    (DOUBLED + b"(cbuiltins\nset\n(" + LAST + b"lo.", "keys are not plain"),
    (DOUBLED + b"((" + LAST + b"libuiltins\nset\n.", "keys are not plain"),
    (DOUBLED + b"cbuiltins\ndict\n((" + LAST + b"K\x01tl\x85R.", "keys are not plain"),
    (DOUBLED + b"ccollections\nOrderedDict\n((" + LAST + b"K\x01tl\x85R.", "keys are not plain"),
    (DOUBLED + b"ccopyreg\n_reconstructor\n(" + LAST + b"NNtR.", "an instance of a tuple"),
    (b"cnumpy\nndarray\n(I2000000000\ntR.", "an array of any size"),
    (HEAD + b"cnumpy\nndarray\nJ\x00\x00\x00\x70\x85\x81.", "is not a type"),
    (b"\x80\x05\x96" + (4 << 30).to_bytes(8, "little") + b"a.", "4294967296 bytes were expected"),
    (HEAD + b"\x8e" + (4 << 40).to_bytes(8, "little") + b"a.", "4398046511104 bytes were"),
    (HEAD + b"](" + b"K\x01" * 50_000 + b"e\x94cbuiltins\nlist\n\x94("  # copies of one long list
     + b"h\x01h\x00\x85R" * 50_000 + b"l.", "more than 20 times its size"),
    (pickle.dumps(np.array(["ab"]), 2).replace(b"U2", b"U0").replace(
        b"K\x01\x85", b"J\x00\xc2\xeb\x0b\x85"), "an array of shape"),
    (pickle.dumps(np.array(["ab"]), 2).replace(b"U2", b"U0").replace(
        b"K\x01\x85", b"J\x10\x00\x01\x00\x85"), "elements without a size"),
    (pickle.dumps(np.zeros(7), 2).replace(b"K\x07\x85", b"K\x00\x85J\xff\xff\xff\x7f\x86"),
     "shape is not made of numbers"),
    (HEAD + b"]" * 100_000 + b"a" * 99_999 + b".", "recursion"),
])
def test_small_pickles_that_want_a_lot_are_refused_at_once(tmp_path, body, says):
    (tmp_path / "bad.pkl").write_bytes(body)
    start = time.perf_counter()
    with pytest.raises(ValueError, match="bad.pkl.*" + says) as caught:
        load_pickle(tmp_path / "bad.pkl")
    assert time.perf_counter() - start < 5 and len(str(caught.value)) < 600


def test_reading_pickles_is_linear(tmp_path):
    def seconds(n):
        data = {"arrays": [np.zeros(3) for _ in range(n)], "words": {str(i): i for i in range(n)}}
        path, times = tmp_path / "a.pkl", []
        path.write_bytes(pickle.dumps(data, 2))
        for _ in range(3):
            start = time.perf_counter()
            load_pickle(path)
            times.append(time.perf_counter() - start)
        return min(times)
    assert seconds(20_000) < 25 * seconds(2_000)


def test_npz_files_are_bounded_too(tmp_path):
    np.savez_compressed(tmp_path / "bad.npz", J=np.zeros(10_000_000))
    with pytest.raises(ValueError, match="more than 20 times its size"):
        safe_pickle.load_npz(tmp_path / "bad.npz")
    np.savez_compressed(tmp_path / "good.npz", J=np.eye(3))
    assert np.array_equal(safe_pickle.load_npz(tmp_path / "good.npz")["J"], np.eye(3))


def test_a_matrix_that_is_larger_than_its_numbers_is_refused(tmp_path, monkeypatch):
    csc = foreign_class(monkeypatch, "scipy.sparse.csc", "csc_matrix")
    for shape, indptr in (((10**9, 10**9), [0, 1]), ((2, 1), [0, 10**12]), ((2, 2), [2, 0, 1])):
        matrix = csc()
        matrix.__dict__ = {"_shape": shape, "data": np.ones(1), "indices": np.array([0]),
                           "indptr": np.array(indptr)}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(matrix, 2))
        with pytest.raises(ValueError, match="other numbers than its index says"):
            dense(load_pickle(tmp_path / "a.pkl"))


# --------------------------------------------------------------------------------------------------
# Torch files


def tensors():
    shared = torch.randn(10)
    return {
        "a": torch.randn(3, 4),
        "part": shared[2:5],
        "whole": shared,
        "t": torch.randn(4, 5).t(),
        "half": torch.arange(5).half(),
        "bf16": torch.randn(3).bfloat16(),
        "bool": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path, monkeypatch, zipped):
    cls = foreign_class(monkeypatch, "pytorch_lightning.callbacks", "ModelCheckpoint")
    thing, proof = cls(), tmp_path / "proof"
    thing.best = torch.ones(2)
    data = {
        "state_dict": tensors(),
        "net": torch.nn.Linear(3, 2).state_dict(),
        "epoch": 3,
        "thing": thing,
        "size": torch.Size([2, 3]),
        "x": Runs(proof),
        "dtype": torch.float16,
    }
    path = tmp_path / "a.ckpt"
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    read = load_torch(path)
    for key, value in {**data["state_dict"], **data["net"]}.items():
        got = {**read["state_dict"], **read["net"]}[key]
        assert torch.equal(got, value) and got.dtype == value.dtype and got.shape == value.shape
    assert (read["epoch"], read["size"], read["dtype"]) == (3, (2, 3), torch.float16)
    assert (
        isinstance(read["thing"], Foreign)
        and read["thing"].name == "pytorch_lightning.callbacks.ModelCheckpoint"
    )
    assert isinstance(read["x"], Foreign) and not proof.exists()
    names = named_tensors(read)
    assert torch.equal(names["thing.best"], torch.ones(2)) and torch.equal(
        names["state_dict.a"], data["state_dict"]["a"]
    )
    before = path.read_bytes()
    read["state_dict"]["a"].zero_()  # private to this process
    assert path.read_bytes() == before
    del read, names, got
    gc.collect()


def test_torchscript_archive_without_its_code(tmp_path):
    net = torch.jit.script(
        torch.nn.Sequential(
            torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.LayerNorm(3))
        ).half()
    )
    net.save(str(tmp_path / "a.pt"))
    read = named_tensors(load_torch(tmp_path / "a.pt"))
    assert read.keys() == net.state_dict().keys()
    assert all(
        torch.equal(read[key], value) and read[key].dtype == torch.float16
        for key, value in net.state_dict().items()
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_and_foreign_files(tmp_path, zipped):
    buffer = io.BytesIO()
    torch.save(tensors(), buffer, _use_new_zipfile_serialization=zipped)
    whole, path = buffer.getvalue(), tmp_path / "cut.ckpt"
    for size in (
        0,
        1,
        3,
        10,
        100,
        len(whole) // 3,
        len(whole) // 2,
        len(whole) - 30,
        len(whole) - 1,
    ):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.ckpt.*cut short") as caught:
            load_torch(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="cut.ckpt"):
        load_torch(path)
    with pytest.raises(FileNotFoundError):
        load_torch(tmp_path / "absent")


def test_tensor_outside_its_storage(tmp_path):
    torch.save({"a": torch.arange(4.0)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "a.pt").read_bytes()
    at = raw.index(b"K\x04\x85") if b"K\x04\x85" in raw else raw.index(b"(K\x04t")
    patched = raw[:at] + raw[at:].replace(b"K\x04", b"K\x7f", 1)
    (tmp_path / "a.pt").write_bytes(patched)
    with pytest.raises(ValueError):
        load_torch(tmp_path / "a.pt")


def test_torch_files_that_want_a_lot_are_refused_at_once(tmp_path):
    path = tmp_path / "bad.pt"
    torch.save({"a": torch.zeros(1).expand(1, 10**9)}, path)  # one number, a thousand million times
    with pytest.raises(ValueError, match=r"bad.pt.*has only 1 numbers"):
        load_torch(path)
    doubled, endless = {"w": torch.ones(1)}, {}
    for _ in range(60):
        doubled = {"a": doubled, "b": doubled}
    endless["a"] = endless
    for data in (doubled, endless):
        torch.save(data, path)
        with pytest.raises(ValueError, match="nested without end"):
            named_tensors(load_torch(path))
    deep = {"w": torch.ones(1)}
    for _ in range(300):
        deep = {"a": deep}
    torch.save(deep, path)
    assert list(named_tensors(load_torch(path))) == [".".join(["a"] * 300 + ["w"])]
    # a small archive with a lot inside
    torch.save({"a": torch.zeros(5_000_000)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(
            tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for info in source.infolist():
            bomb.writestr(info.filename, source.read(info))
    with pytest.raises(ValueError, match="bomb.pt.*more than 20 times its size"):
        load_torch(tmp_path / "bomb.pt")


@pytest.mark.parametrize("entries, body, says", [
    ({f"a{i}": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]} for i in range(9999)},
     4000, "overlap"),
    ({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, 4, "overlaps"),
    ({"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}, 16, "invalid shape"),
    ({"a": {"dtype": "F0", "shape": [10**9], "data_offsets": [0, 0]}}, 0, "F0"),
    ({"a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}, 4, "100 dimens"),
])
def test_crafted_safetensors_are_refused_at_once(tmp_path, entries, body, says):
    header = json.dumps(entries).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(body))
    with pytest.raises(ValueError, match="bad.safetensors.*" + says):
        safe_pickle.load_safetensors(path)
