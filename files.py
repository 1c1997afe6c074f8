"""The one way in which files are written: whole, or not at all."""
import contextlib
import os
import tempfile

PART, SWEPT = ".nanomld.part", set()  # SWEPT: folders where this process has looked for such files


def lock(file, wait=False):
    """Whether this process now holds the lock of an open file, until it closes it or dies. True,
    too, where there are no locks: on some network drives, and on Windows."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
    return True


def remove_parts(folder):
    """Remove what killed processes left of files that they were writing. A living writer holds a
    lock on its own."""
    for name in os.listdir(folder) if os.name == "posix" else ():
        if name.endswith(PART):
            with contextlib.suppress(OSError), open(os.path.join(folder, name), "rb") as file:
                if lock(file):
                    os.unlink(file.name)


def check_place(path, begins=b""):
    """OSError for a path at which atomic_write could not make a file, or where there is a file that
    does not begin with these bytes, as one of ours would. For programs that work long before they
    write: they should say it first."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file to write.")
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{path} cannot be written: {folder} is a file, no folder.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{path} cannot be written: {folder} belongs to somebody else.")
    if begins and os.path.exists(path):
        with open(path, "rb") as file:
            if file.read(len(begins)) not in (b"", begins):
                raise FileExistsError(f"{path} is there already, and no file that this program "
                                      "wrote: give --out another name.")


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """`with atomic_write(path) as file`: the file appears under its name whole, or not at all, in
    which case an older one stays as it was."""
    check_place(path)
    folder = os.path.dirname(os.path.abspath(path))
    new = [folder]  # folders that are made for it, and go again if nothing comes into them
    while not os.path.isdir(new[-1]):
        new.append(os.path.dirname(new[-1]))
    os.makedirs(folder, exist_ok=True)
    if folder not in SWEPT:
        SWEPT.add(folder)
        remove_parts(folder)
    links = 0
    while not links:  # until it is ours: somebody who looks for left parts may be faster
        handle, part = tempfile.mkstemp(PART, os.path.basename(path) + ".", folder)
        file = os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8")
        lock(file, wait=True)
        links = os.fstat(handle).st_nlink
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        with contextlib.suppress(OSError):  # one that is not empty stays, with those above it
            for one in new[:-1]:
                os.rmdir(one)
        raise
