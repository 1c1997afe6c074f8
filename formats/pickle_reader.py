"""The unpickler behind safe_pickle.py: it knows a few harmless builders, and counts what they make.

Nothing that a file names is imported or called. A small file cannot ask for much: what it makes
(copies, unpacked archives, tensors larger than their storage) is bounded by TIMES its size, and
only plain keys are hashed.
"""
import collections
import math
import pickle
import re
import struct

import numpy as np
import torch

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
