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

What is made of a file is bounded by 20 times its size, see pickle_reader.py.
"""
import io
import json
import math
import mmap
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import torch

from formats.pickle_reader import (
    PLAIN, TENSORS, Array, Budget, Builder, Foreign, Reader, plain_keys)

# What reading a broken or malicious file may raise.
READ_ERRORS = (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError,
               OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError,
               ArithmeticError, MemoryError)

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

ZIP = b"PK\x03\x04"  # how a file of torch 1.6 or later begins; an older one is a pickle: 0x80


def load_torch(path):
    """Read what torch.save wrote (zip, or the format before 1.6), or a TorchScript archive's data.

    Tensors are on the CPU, have their stored type and are mapped from the file: parts that are not
    used are not read, and writing to a tensor does not change the file. Objects other than tensors
    and plain data are Foreign placeholders. ValueError if it is another kind of file or cut short.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(0)
        try:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return (read_zip if head == ZIP else read_legacy)(file, memory)
        except READ_ERRORS as error:
            if not ZIP.startswith(head) and head[:1] != b"\x80":
                raise ValueError(f"{path} is no torch file: it begins with {head!r}.") from None
            raise ValueError(f"{path} is not a whole torch file ({short(error)}); "
                             "it was cut short or is damaged: get it again.") from None


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
