"""Data in pickles and torch files comes back, and nothing in them is run."""
import collections
import gc
import io
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch

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
