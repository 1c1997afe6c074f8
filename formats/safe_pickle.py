"""Reads other people's pickles, torch files and safetensors without running anything in them.

A pickle is a small program: its opcodes name any importable function and call it. Here every name
is looked up in a short table of harmless builders (arrays, tensors, dicts). Any other name becomes
an inert `Foreign` placeholder (load_torch), or the file is refused (load_pickle). Nothing that a
file names is ever imported or called.

    load_pickle("humanact12poses.pkl")        lists, dicts, strings, numbers, numpy arrays
    load_torch("mld_humanml3d.ckpt")          the same with tensors, memory-mapped
    named_tensors(load_torch("ViT-L-14.pt"))  {"transformer.resblocks.0.ln_1.weight": tensor, ...}
    load_safetensors("model.safetensors")     {"text_model.final_layer_norm.weight": tensor, ...}
"""
import collections
import json
import math
import mmap
import pickle
import re
import struct
import zipfile
import zlib

import numpy as np
import torch

# What reading a broken or malicious file may raise.
READ_ERRORS = (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError,
               ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError,
               MemoryError)

# --------------------------------------------------------------------------------------------------
# What a name in a pickle stands for

class Foreign:
    """Stands for an object of a class that is not ours to run: keeps its state, does nothing."""
    name = ""  # module.class in the file, set on a subclass per name

    def __new__(cls, *args, **kwargs):
        self = object.__new__(cls)
        self.state = {}
        return self

    def __setstate__(self, state):
        self.state = state

    def append(self, item):  # as a list
        pass

    def __setitem__(self, key, value):  # as a dict
        pass

    def __repr__(self):
        return f"<{self.name}, not loaded>"


class Builder:
    """A function that a pickle may call. A bare function would let it set attributes, too."""
    __slots__ = ("function",)

    def __init__(self, function):
        object.__setattr__(self, "function", function)

    def __call__(self, *args):
        return self.function(*args)

    def __setattr__(self, *_):
        raise pickle.UnpicklingError("it tries to set an attribute of a builder")

    __setstate__ = __setattr__


class Dtype:
    """numpy.dtype for numbers, strings and objects only: a crafted one could corrupt memory."""

    def __init__(self, code, *_):
        if not re.fullmatch(r"[<>|=]?(\?|[bhilqBHILQefdgFDO]|[biufcO]\d{1,2}|[SUa]\d{0,9})", code):
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not read")
        self.value = np.dtype(code)

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class Array(np.ndarray):
    def __setstate__(self, state):
        version, shape, dtype, fortran, data = state
        # numpy reads as many objects as the shape says, past the end of a shorter list.
        if dtype.value.hasobject and (type(data) is not list or len(data) != math.prod(shape)):
            raise pickle.UnpicklingError("it holds an array of objects without its objects")
        super().__setstate__((version, shape, dtype.value, fortran, data))


def numpy_scalar(dtype, data):
    if dtype.value.hasobject:
        raise pickle.UnpicklingError("it holds a numpy scalar that is an object")
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.value, 1)[0]


def instance(cls, *_):
    if not (isinstance(cls, type) and issubclass(cls, Foreign)):
        raise pickle.UnpicklingError(f"it tries to make an instance of {cls!r}")
    return cls()


def tensor(storage, offset, size, stride, *_):
    return storage.as_strided(size, stride, offset)


PLAIN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): Builder(lambda *_: {}),
    ("_codecs", "encode"): Builder(lambda text, coding="latin1": text.encode("latin1")),
    ("numpy", "ndarray"): Array, ("numpy", "dtype"): Dtype}
for module in ("builtins", "__builtin__"):
    for kind in (set, frozenset, list, dict, complex, object):
        PLAIN[module, kind.__name__] = kind
    PLAIN[module, "bytes"] = Builder(lambda: b"")  # how old protocols write empty bytes
for module in ("numpy.core", "numpy._core"):
    PLAIN[module + ".multiarray", "_reconstruct"] = Builder(lambda *_: np.ndarray.__new__(Array, 0))
    PLAIN[module + ".multiarray", "scalar"] = Builder(numpy_scalar)
    PLAIN[module + ".numeric", "_frombuffer"] = Builder(
        lambda data, kind, shape, order: np.frombuffer(bytes(data), kind.value).reshape(
            shape, order=order))
for module in ("copyreg", "copy_reg"):
    PLAIN[module, "_reconstructor"] = PLAIN[module, "__newobj__"] = Builder(instance)

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool}
TENSORS = {("torch", name): dtype for name, dtype in STORAGES.items()}
TENSORS |= {("torch", str(dtype).split(".")[1]): dtype for dtype in STORAGES.values()}
TENSORS |= {
    ("torch._utils", "_rebuild_tensor"): Builder(tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Builder(tensor),
    ("torch._utils", "_rebuild_parameter"): Builder(lambda data, *_: data),
    ("torch", "Size"): Builder(tuple)}


class Reader(pickle.Unpickler):
    def __init__(self, file, table=PLAIN, refuse_foreign=True, storage=None):
        super().__init__(file, encoding="latin1")  # for the strings of Python 2
        self.table, self.refuse_foreign, self.storage = table, refuse_foreign, storage

    def find_class(self, module, name):
        if (module, name) in self.table:
            return self.table[module, name]
        # SMPL's files hold arrays in objects of these two packages, see `dense`.
        if self.refuse_foreign and module.split(".")[0] not in ("scipy", "chumpy"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")
        return type("Foreign", (Foreign,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid):
        if self.storage is None or not isinstance(pid, tuple) or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to data outside of itself")
        return self.storage(*pid[1:])


# --------------------------------------------------------------------------------------------------
# Plain pickles

def load_pickle(path):
    """Read a pickle of plain data: dicts, lists, strings, numbers, numpy arrays (Python 2's too).

    Objects of scipy and chumpy come out as Foreign placeholders. ValueError, with nothing run, if
    the file names anything else or is not a whole pickle."""
    with open(path, "rb") as file:
        try:
            return base_arrays(Reader(file).load())
        except READ_ERRORS as error:
            reason = error or type(error).__name__
            raise ValueError(f"{path} is not a pickle of plain data: {reason}. Use the file as its "
                             "authors published it.") from None


def base_arrays(data, seen=None):
    """The same data, changed in place, with plain ndarrays in place of the reader's Array."""
    seen = {} if seen is None else seen
    if id(data) in seen:
        return seen[id(data)][0]
    result = data
    if isinstance(data, Array):
        result = data.view(np.ndarray)
    elif isinstance(data, (tuple, frozenset)):
        result = type(data)(base_arrays(v, seen) for v in data)
    seen[id(data)] = result, data  # keeps `data` alive, so that its id stays its own
    items = data.state if isinstance(data, Foreign) else result
    if isinstance(items, dict):
        for key in items:
            items[key] = base_arrays(items[key], seen)
    elif isinstance(items, list) or (isinstance(items, np.ndarray) and items.dtype == object):
        flat = items if isinstance(items, list) else items.reshape(-1)
        for i, value in enumerate(flat):
            flat[i] = base_arrays(value, seen)
    return result


def dense(value):
    """An entry of an SMPL file as an array: an ndarray, a chumpy object or a scipy csc matrix."""
    if not isinstance(value, Foreign):
        return np.asarray(value)
    state = value.state
    if "x" in state:
        return np.asarray(state["x"])
    if "indptr" not in state or not value.name.rsplit(".", 1)[-1].startswith("csc"):
        raise ValueError(f"a {value.name} object was found where an array was expected")
    matrix = np.zeros(state.get("_shape", state.get("shape")), state["data"].dtype)
    columns = np.repeat(np.arange(matrix.shape[1]), np.diff(state["indptr"]))
    np.add.at(matrix, (state["indices"], columns), state["data"])
    return matrix


# --------------------------------------------------------------------------------------------------
# Torch files

def load_torch(path):
    """Read what torch.save wrote (zip, or the format before 1.6), or a TorchScript archive's data.

    Tensors are on the CPU, have their stored type and are mapped from the file: parts that are not
    used are not read, and writing to a tensor does not change the file. Objects other than tensors
    and plain data are Foreign placeholders. ValueError if it is another kind of file or cut short.
    """
    with open(path, "rb") as file:
        try:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return (read_zip if memory[:4] == b"PK\x03\x04" else read_legacy)(file, memory)
        except READ_ERRORS as error:
            raise ValueError(f"{path} is not a whole torch file ({error or type(error).__name__}); "
                             "it is of another kind or was cut short: get it again.") from None


def mapped(memory, start, numel, dtype):
    """numel numbers of the mapped file as a tensor (numel,)."""
    size = numel * dtype.itemsize
    if numel < 0 or start + size > len(memory):
        raise EOFError(f"{size} bytes of a tensor were expected at byte {start} of {len(memory)}")
    numbers = torch.empty(0, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=numel, offset=start) if numel else numbers


def read_zip(file, memory):
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise ValueError("its numbers are big-endian")

        def storage(dtype, key, location, numel, *_):
            info = entries[f"data/{key}"]
            if info.compress_type != zipfile.ZIP_STORED:
                return torch.frombuffer(bytearray(archive.read(info)), dtype=dtype, count=numel)
            name, extra = struct.unpack_from("<HH", memory, info.header_offset + 26)
            if numel * dtype.itemsize > info.file_size:
                raise EOFError(f"storage {key} is too short")
            return mapped(memory, info.header_offset + 30 + name + extra, numel, dtype)

        with archive.open(entries["data.pkl"]) as pickled:
            return Reader(pickled, TENSORS | PLAIN, False, storage).load()


def read_legacy(file, memory):
    """Five pickles (magic number, protocol, system, the object, the keys of its storages), then
    the length and the numbers of each storage."""
    if Reader(file).load() != 0x1950a86a20f9469cfc6c:
        raise ValueError("it has no torch header")
    for _ in range(2):
        Reader(file).load()
    # The numbers come after the object: read past it to find them, then read it with them.
    start, dtypes = file.tell(), {}

    def skip(dtype, key, location, numel, *_):
        dtypes[key] = dtype
        return torch.empty(0, dtype=dtype)

    no_tensors = {key: Builder(lambda *_: None) for key in TENSORS if key[0] == "torch._utils"}
    Reader(file, TENSORS | PLAIN | no_tensors, False, skip).load()
    keys, place, found = Reader(file).load(), file.tell(), {}
    for key in keys:
        numel, = struct.unpack_from("<q", memory, place)
        found[key] = mapped(memory, place + 8, numel, dtypes[key])
        place += 8 + numel * dtypes[key].itemsize

    def storage(dtype, key, location, numel, view=None):
        if view is not None:
            raise ValueError("it has storages inside storages, as written by torch before 0.4")
        return found[key]

    file.seek(start)
    return Reader(file, TENSORS | PLAIN, False, storage).load()


def named_tensors(data, prefix=""):
    """{dotted name: tensor} of every tensor in nested dicts and placeholders, such as the modules
    of a TorchScript archive."""
    if isinstance(data, torch.Tensor):
        return {prefix: data}
    data = data.state if isinstance(data, Foreign) else data
    found = {}
    for key, value in data.items() if isinstance(data, dict) else ():
        found |= named_tensors(value, f"{prefix}.{key}" if prefix else str(key))
    return found


# --------------------------------------------------------------------------------------------------
# Safetensors

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool}


def load_safetensors(path):
    """{name: tensor} of a .safetensors file (8 bytes with the length of a JSON header, the header
    with types, shapes and places, the numbers), mapped from the file as in load_torch. ValueError
    if it is another kind of file or cut short."""
    with open(path, "rb") as file:
        try:
            memory, tensors = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), {}
            size, = struct.unpack_from("<Q", memory)
            if size > len(memory) - 8:
                raise EOFError("its header is not whole")
            for name, entry in json.loads(memory[8:8 + size]).items():
                if name == "__metadata__":
                    continue
                dtype, shape, (start, end) = (
                    DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"])
                if start < 0 or end - start != math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"{name} has {end - start} bytes for the shape {shape}")
                flat = mapped(memory, 8 + size + start, math.prod(shape), dtype)
                tensors[name] = flat.view(shape)
            return tensors
        except READ_ERRORS as error:
            reason = error or type(error).__name__
            raise ValueError(f"{path} is not a whole safetensors file ({reason}); it is of another "
                             "kind or was cut short: get it again.") from None
