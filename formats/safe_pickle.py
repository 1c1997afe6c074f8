"""Reads other people's pickles, torch files and safetensors without running anything in them.

A pickle is a small program: its opcodes name any importable function and call it. Here every name
is looked up in a short table of harmless builders (arrays, tensors, dicts). Any other name becomes
an inert `Foreign` placeholder (load_torch), or the file is refused (load_pickle). Nothing that a
file names is ever imported or called.

    load_pickle("humanact12poses.pkl")        lists, dicts, strings, numbers, numpy arrays
    load_torch("mld_humanml3d.ckpt")          the same with tensors, memory-mapped
    named_tensors(load_torch("ViT-L-14.pt"))  {"transformer.resblocks.0.ln_1.weight": tensor, ...}
    load_safetensors("model.safetensors")     {"text_model.final_layer_norm.weight": tensor, ...}
    load_npz("SMPL_NEUTRAL.npz")              {"J": array, ...}

A small file cannot ask for much: what it makes (copies, unpacked archives, tensors larger than
their storage) is bounded by TIMES its size, and only plain keys are hashed.
"""
import collections
import json
import io
import math
import mmap
import os
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

TIMES, FREE = 20, 1 << 20  # bytes for each byte of a file, and for any file


class Budget:
    """Counts the bytes that reading a file makes, beyond what it holds itself."""

    def __init__(self, size):
        self.left = TIMES * size + FREE

    def spend(self, size):
        self.left -= size
        if size < 0 or self.left < 0:
            raise ValueError(f"it would grow to more than {TIMES} times its size")


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


def count(shape):
    """The number of elements of a shape, which a file may have filled with anything."""
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise pickle.UnpicklingError("it holds an array whose shape is not made of numbers")
    return math.prod(shape)


class Array(np.ndarray):
    def __setstate__(self, state):
        version, shape, dtype, fortran, data = state
        # numpy reads as many objects as the shape says, past the end of a shorter list.
        if dtype.value.hasobject and (type(data) is not list or len(data) != count(shape)):
            raise pickle.UnpicklingError("it holds an array of objects without its objects")
        # Elements of no size could be any number of them.
        if not dtype.value.itemsize and count(shape):
            raise pickle.UnpicklingError("it holds an array of elements without a size")
        super().__setstate__((version, shape, dtype.value, fortran, data))


def numpy_scalar(dtype, data):
    if dtype.value.hasobject:
        raise pickle.UnpicklingError("it holds a numpy scalar that is an object")
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.value, 1)[0]


def instance(cls, *_):
    if not (isinstance(cls, type) and issubclass(cls, Foreign)):
        raise pickle.UnpicklingError(f"it tries to make an instance of a {type(cls).__name__}")
    return cls()


def never(*_):  # a class that a pickle names, but has no reason to call
    raise pickle.UnpicklingError("it makes an array of any size")


def tensor(storage, offset, size, stride, *_):
    if count(size) > max(storage.numel(), 1):  # one number, shown many times by strides of 0
        raise ValueError(f"a tensor of shape {tuple(size)} has only {storage.numel()} numbers")
    return storage.as_strided(size, stride, offset)


PLAIN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): Builder(lambda *_: {}),
    ("_codecs", "encode"): Builder(lambda text, coding="latin1": text.encode("latin1")),
    ("numpy", "ndarray"): Builder(never), ("numpy", "dtype"): Dtype}
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


PLAIN_KEYS = (str, bytes, int, float, complex, bool, type(None), np.generic)


def plain_keys(keys):
    """Hashing (((a, a), (a, a)), ...) takes for ever; of a key that holds others, that is."""
    for key in keys:
        flat = key if type(key) in (tuple, frozenset) else (key,)
        if not all(isinstance(part, PLAIN_KEYS) or type(part) is type for part in flat):
            raise pickle.UnpicklingError("it has a dict or a set whose keys are not plain")


class Source:
    """A file for a Reader that is never asked for more bytes than there are."""

    def __init__(self, file, size):
        self.file, self.size, self.readline = file, size, file.readline

    def read(self, size):
        if size > self.size:
            raise EOFError(f"{size} bytes were expected in a file of {self.size}")
        return self.file.read(size)

    def readinto(self, buffer):
        data = self.read(len(buffer))
        buffer[:len(data)] = data
        return len(data)


class Reader(pickle._Unpickler):
    """Python's own unpickler, whose steps can be looked at before they are taken. `size`: bytes of
    the file that the pickle is in."""

    def __init__(self, file, table=PLAIN, refuse_foreign=True, storage=None, size=0, budget=None):
        super().__init__(Source(file, size), encoding="latin1")  # for the strings of Python 2
        self.table, self.refuse_foreign, self.storage = table, refuse_foreign, storage
        self.budget = budget or Budget(size)

    def look(self, function, args):
        """Before a call: most builders copy what they get, and some hash it."""
        for arg in args if isinstance(args, tuple) else ():
            if isinstance(arg, (str, bytes, bytearray)):
                self.budget.spend(len(arg))
            elif isinstance(arg, (list, tuple, dict, set, frozenset)):
                self.budget.spend(8 * len(arg))
            if function in (set, frozenset):
                plain_keys(arg)
            elif function in (dict, collections.OrderedDict) and not isinstance(arg, dict):
                plain_keys(pair[0] for pair in arg)

    def step_reduce(self):
        self.look(*self.stack[-2:])
        self.load_reduce()

    def step_newobj(self):
        self.look(*self.stack[-2:])
        self.load_newobj()

    def step_newobj_ex(self):
        self.look(*self.stack[-3:-1])
        self.load_newobj_ex()

    def _instantiate(self, function, args):
        self.look(function, tuple(args))
        super()._instantiate(function, args)

    def step_bytearray(self):
        size, = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    def step_build(self):
        state, instance = self.stack[-1], self.stack[-2]
        if isinstance(instance, Array) and isinstance(state, tuple) and len(state) == 5:
            if count(state[1]) > self.budget.left:
                raise ValueError(f"it holds an array of shape {state[1]}")
            self.budget.spend(len(state[4]))
        elif isinstance(state, (tuple, dict)):
            self.budget.spend(8 * len(state))
        self.load_build()

    def step_setitem(self):
        plain_keys(self.stack[-2:-1])
        self.load_setitem()

    def step_setitems(self):
        plain_keys(self.stack[::2])
        self.load_setitems()

    def step_additems(self):
        plain_keys(self.stack)
        self.load_additems()

    def step_frozenset(self):
        plain_keys(self.stack)
        self.load_frozenset()

    def step_dict(self):
        plain_keys(self.stack[::2])
        self.load_dict()

    dispatch = pickle._Unpickler.dispatch | {code[0]: step for code, step in (
        (pickle.REDUCE, step_reduce), (pickle.NEWOBJ, step_newobj),
        (pickle.NEWOBJ_EX, step_newobj_ex), (pickle.BYTEARRAY8, step_bytearray),
        (pickle.BUILD, step_build), (pickle.DICT, step_dict),
        (pickle.SETITEM, step_setitem), (pickle.SETITEMS, step_setitems),
        (pickle.ADDITEMS, step_additems), (pickle.FROZENSET, step_frozenset))}

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
        plain_keys(pid[2:3])
        return self.storage(*pid[1:])


# --------------------------------------------------------------------------------------------------
# Plain pickles

def load_pickle(path):
    """Read a pickle of plain data: dicts, lists, strings, numbers, numpy arrays (Python 2's too).

    Objects of scipy and chumpy come out as Foreign placeholders. ValueError, with nothing run, if
    the file names anything else or is not a whole pickle."""
    with open(path, "rb") as file:
        try:
            return base_arrays(Reader(file, size=os.path.getsize(path)).load())
        except READ_ERRORS as error:
            reason = short(error)
            raise ValueError(f"{path} is not a pickle of plain data: {reason}. Use the file as its "
                             "authors published it.") from None


def short(error):
    """What an error says, in one line; a file may have a say in how long it is."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def load_npz(path):
    """{name: array} of an .npz file, without objects and within the bound of its size."""
    with zipfile.ZipFile(path) as archive:
        Budget(os.path.getsize(path)).spend(sum(info.file_size for info in archive.infolist()))
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


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
    state = value.state if isinstance(value, Foreign) else {"x": value}
    if isinstance(state.get("x"), (np.ndarray, np.generic)):
        return np.asarray(state["x"])
    if not isinstance(value, Foreign):
        raise ValueError(f"a {type(value).__name__} was found where an array was expected")
    if "indptr" not in state or not value.name.rsplit(".", 1)[-1].startswith("csc"):
        raise ValueError(f"a {value.name} object was found where an array was expected")
    shape, counts = state.get("_shape", state.get("shape")), np.diff(state["indptr"])
    if math.prod(shape) > 1e7 or counts.min() < 0 or counts.sum() != len(state["indices"]):
        raise ValueError(f"its matrix of shape {shape} has other numbers than its index says")
    matrix = np.zeros(shape, state["data"].dtype)
    columns = np.repeat(np.arange(matrix.shape[1]), counts)
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
            raise ValueError(f"{path} is not a whole torch file ({short(error)}); "
                             "it is of another kind or was cut short: get it again.") from None


def mapped(memory, start, numel, dtype):
    """numel numbers of the mapped file as a tensor (numel,)."""
    size = numel * dtype.itemsize
    if numel < 0 or start + size > len(memory):
        raise EOFError(f"{size} bytes of a tensor were expected at byte {start} of {len(memory)}")
    numbers = torch.empty(0, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=numel, offset=start) if numel else numbers


def read_zip(file, memory):
    budget = Budget(len(memory))

    def unpack(info):
        budget.spend(info.file_size)
        return archive.read(info)

    with zipfile.ZipFile(file) as archive:
        entries = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
        if "byteorder" in entries and unpack(entries["byteorder"]) != b"little":
            raise ValueError("its numbers are big-endian")

        def storage(dtype, key, location, numel, *_):
            info = entries[f"data/{key}"]
            if info.compress_type != zipfile.ZIP_STORED:
                return torch.frombuffer(bytearray(unpack(info)), dtype=dtype, count=numel)
            name, extra = struct.unpack_from("<HH", memory, info.header_offset + 26)
            if numel * dtype.itemsize > info.file_size:
                raise EOFError(f"storage {key} is too short")
            return mapped(memory, info.header_offset + 30 + name + extra, numel, dtype)

        pickled = unpack(entries["data.pkl"])
        return Reader(io.BytesIO(pickled), TENSORS | PLAIN, False, storage, len(pickled)).load()


def read_legacy(file, memory):
    """Five pickles (magic number, protocol, system, the object, the keys of its storages), then
    the length and the numbers of each storage."""
    size = len(memory)
    if Reader(file, size=size).load() != 0x1950a86a20f9469cfc6c:
        raise ValueError("it has no torch header")
    for _ in range(2):
        Reader(file, size=size).load()
    # The numbers come after the object: read past it to find them, then read it with them.
    start, dtypes = file.tell(), {}

    def skip(dtype, key, location, numel, *_):
        dtypes[key] = dtype
        return torch.empty(0, dtype=dtype)

    no_tensors = {key: Builder(lambda *_: None) for key in TENSORS if key[0] == "torch._utils"}
    Reader(file, TENSORS | PLAIN | no_tensors, False, skip, size).load()
    keys, place, found = Reader(file, size=size).load(), file.tell(), {}
    plain_keys(keys)
    for key in keys:
        numel, = struct.unpack_from("<q", memory, place)
        found[key] = mapped(memory, place + 8, numel, dtypes[key])
        place += 8 + numel * dtypes[key].itemsize

    def storage(dtype, key, location, numel, view=None):
        if view is not None:
            raise ValueError("it has storages inside storages, as written by torch before 0.4")
        return found[key]

    file.seek(start)
    return Reader(file, TENSORS | PLAIN, False, storage, size).load()


PLACES = 1_000_000  # in nested dicts, before a file is thought to have no end


def named_tensors(data, prefix=""):
    """{dotted name: tensor} of every tensor in nested dicts and placeholders, such as the modules
    of a TorchScript archive. ValueError if these are nested without end."""
    found, waiting, places = {}, [(prefix, data)], 0
    while waiting:
        name, value = waiting.pop()
        places += 1
        if places > PLACES or len(name) > 10_000:
            raise ValueError("its dicts are nested without end; get the file again.")
        if isinstance(value, torch.Tensor):
            found[name] = value
            continue
        value = value.state if isinstance(value, Foreign) else value
        inner = value.items() if isinstance(value, dict) else ()
        waiting += [(f"{name}.{key}" if name else str(key), part)
                    for key, part in reversed(list(inner))]
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
            budget = len(memory)
            for name, entry in json.loads(memory[8:8 + size]).items():
                if name == "__metadata__":
                    continue
                dtype, shape, (start, end) = (
                    DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"])
                if start < 0 or end - start != math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"{name} has {end - start} bytes for the shape {shape}")
                budget -= end - start
                if budget < 0 or len(shape) > 64:
                    raise ValueError(f"{name} overlaps another tensor" if budget < 0 else
                                     f"{name} has {len(shape)} dimensions")
                flat = mapped(memory, 8 + size + start, math.prod(shape), dtype)
                tensors[name] = flat.view(shape)
            return tensors
        except READ_ERRORS as error:
            raise ValueError(f"{path} is not a whole safetensors file ({short(error)}); it is of "
                             "another kind or was cut short: get it again.") from None
