"""Some tensors of a safetensors file, without the rest of it.

The file is 8 bytes with the length of a table, the table (JSON: types, shapes, places), and the
numbers. `layout` reads the table and says which bytes to fetch; `write` makes a small safetensors
file of them. Nothing but the bytes of the table and of the tensors wanted is touched.
"""
import json
import math
import struct

from files import atomic_write

SIZES = {"F32": 4, "F16": 2, "BF16": 2}  # bytes; what is whole numbers is no weight


def read_table(size, opened, wanted):
    """(where the numbers begin, {name: entry} in the order of the numbers) of the tensors whose
    names begin with one of `wanted`.

    size    of the whole file
    opened  function n -> open file, at 0, with the first n bytes
    ValueError if this is no safetensors file, or has no such tensors."""
    start = 8 + struct.unpack("<Q", opened(8).read(8))[0]
    if start > min(size, 100_000_000):  # the format's own bound on its table
        raise ValueError("it is not a safetensors file")
    try:
        table = json.loads(opened(start).read(start)[8:])
        table = {name: entry for name, entry in table.items()
                 if name.startswith(wanted) and entry["dtype"] in SIZES}
        for entry in table.values():
            first, last = entry["data_offsets"]
            numbers = math.prod(entry["shape"]) * SIZES[entry["dtype"]]
            if not (0 <= first <= last <= size - start and last - first == numbers):
                raise ValueError("places do not fit shapes")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its table of tensors cannot be read ({error})") from None
    if not table:
        raise ValueError(f"it has no tensors {', '.join(name + '...' for name in wanted)}")
    return start, dict(sorted(table.items(), key=lambda item: item[1]["data_offsets"]))


def layout(size, opened, wanted):
    """The spans of bytes [(start, end)] that hold the table and the tensors; see read_table."""
    start, table = read_table(size, opened, wanted)
    spans = [(0, start)]
    for first, last in (entry["data_offsets"] for entry in table.values()):
        if start + first == spans[-1][1]:
            spans[-1] = spans[-1][0], start + last
        else:
            spans.append((start + first, start + last))
    return spans


def cut(whole, part, wanted, size):
    """Write to `part` what layout's spans of the file `whole`, which has this size, hold."""
    with open(whole, "rb") as source, open(part, "wb") as target:
        def opened(n):
            source.seek(0)
            return source
        for start, end in layout(size, opened, wanted):
            source.seek(start)
            while start < end:
                data = source.read(min(end - start, 1 << 20))
                target.write(data)
                start += len(data)


def write(part, path, wanted, size, half=False):
    """Write the tensors of `part`, layout's spans laid end to end of a file of this size, as the
    safetensors file `path`. half: float32 becomes float16; ValueError if a number does not fit."""
    import numpy as np  # not for those who only ask what there is
    with open(part, "rb") as source:
        def opened(n):
            source.seek(0)
            return source
        start, table = read_table(size, opened, wanted)
        header, place = {}, 0
        for name, entry in table.items():
            kind = "F16" if half and entry["dtype"] == "F32" else entry["dtype"]
            end = place + math.prod(entry["shape"]) * SIZES[kind]
            header[name] = {"dtype": kind, "shape": entry["shape"], "data_offsets": [place, end]}
            place = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        source.seek(start)
        with atomic_write(path) as target:
            target.write(struct.pack("<Q", len(text)) + text)
            for name, entry in table.items():
                first, last = entry["data_offsets"]
                data = source.read(last - first)
                if half and entry["dtype"] == "F32":
                    numbers = np.frombuffer(data, "<f4")
                    with np.errstate(over="ignore"):
                        data = numbers.astype("<f2")
                    if not np.isfinite(data).all():
                        raise ValueError(f"{name} does not fit into float16; use float32")
                    data = data.tobytes()
                target.write(data)
