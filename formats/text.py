"""Text files and file names as other people write them."""
import codecs
import os

MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"),
         (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path, encoding=None):
    """The text of a file, with \\n at the end of every line: UTF-8 with or without a byte-order
    mark, UTF-16 with one, or `encoding` for a file that is neither.

    ValueError names the file and the line that cannot be read."""
    with open(path, "rb") as file:
        data = file.read()
    marked = next((name for mark, name in MARKS if data.startswith(mark)), None)
    tried, error = [marked] if marked else ["utf-8", *[encoding] * bool(encoding)], None
    for name in tried:
        try:
            text = data.decode(name).removeprefix("\ufeff")
        except LookupError:
            raise ValueError(f"--encoding {encoding}: there is no such text encoding; expected a "
                             "name such as gbk, cp1252 or utf-16-le.") from None
        except UnicodeError as caught:
            line, error = data.count(b"\n", 0, getattr(caught, "start", 0)) + 1, caught
            continue
        # UTF-16 without a mark passes for UTF-8 in which every other character is a NUL.
        if "\0" not in text:
            return text.replace("\r\n", "\n").replace("\r", "\n")
        line = text.count("\n", 0, text.index("\0")) + 1
    kinds = " or ".join(name.upper() for name in tried)
    raise ValueError(f"{path}, line {line}: this is not {kinds} text; name its encoding with "
                     "--encoding, for example --encoding gbk or cp1252.") from error


def read_lines(path, encoding=None):
    """The lines of a text file, stripped; errors as in `read_text`."""
    lines = [line.strip() for line in read_text(path, encoding).split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines


def inside(name):
    """A file's name as another file gives it -> the same with / between folders, or None if it
    leads out of its folder. Names from files are names, never paths to elsewhere."""
    name = name.strip().replace("\\", "/").removeprefix("./")
    parts = name.split("/")
    if not name or ".." in parts or "" in parts[:1] or "\0" in name or parts[0].endswith(":"):
        return None
    return os.path.normpath(name).replace(os.sep, "/")


def visible(folder, ending):
    """The files below `folder` whose names have this ending, as sorted names relative to it.
    Hidden ones (`._000001.npy`, which macOS leaves beside every file it copies) are left aside."""
    found = []
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.relpath(os.path.join(top, name), folder).replace(os.sep, "/")
                  for name in names
                  if name.lower().endswith(ending) and not name.startswith(".")]
    return sorted(found)


def kinds_of(text, known):
    """What --format says, such as 'glb, BVH' -> ['glb', 'bvh']. ValueError for a kind of file that
    is not among the known ones."""
    kinds = list(dict.fromkeys(kind.strip().lower() for kind in text.split(",")))
    wrong = [repr(kind) for kind in kinds if kind not in known]
    if wrong:
        raise ValueError(f"--format must be of {', '.join(known)}, found {', '.join(wrong)}.")
    return kinds
