"""A C file -> a loaded library, compiled once by the machine's own C compiler and kept.

The library is kept in $XDG_CACHE_HOME/nanomld or ~/.cache/nanomld, if nobody but this user can
write there. Otherwise each process builds a private one, and removes its file. Beside a library
lie two digests: that of its source, compiler and processor, and that of the library itself. It is
loaded only if both match, and built again if they do not.
"""
import ctypes
import glob
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings

PATIENCE = 20  # seconds that a compiler gets


def machine_flags():
    """What makes a compiler use all that this machine has, as lists that are tried in this order.
    MLD_CFLAGS="-mavx2 -mfma" compiles for another one, to measure what it would be like there."""
    own = os.environ.get("MLD_CFLAGS", "").split()
    ways = [own] if own else [["-march=native"], ["-mcpu=native"]]
    return [[*way, "-fopenmp"] for way in ways] + ways


def load(source, options, flags):
    """The ctypes library of the C file `source`, or a text that says why there is none.

    options   words for the compiler
    flags     more of them, as lists that are tried in turn until it accepts one"""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        return "there is no C compiler"
    command = [*compiler.split(), *options]
    try:
        parts = [repr((command, flags)).encode(), processor()]
        for path in (source, *sorted(glob.glob(os.path.join(os.path.dirname(source), "*.h")))):
            with open(path, "rb") as file:
                parts.append(file.read())
        made_of, folder = digest(b"|".join(parts)), cache_folder()
        if folder:
            name = os.path.splitext(os.path.basename(source))[0]
            path = os.path.join(folder, f"{name}-{made_of[:24]}.so")
            try:
                if not intact(path, made_of):
                    build(source, command, flags, path, made_of)
                return ctypes.CDLL(path)
            except OSError:
                pass  # a full disk, or one from which nothing may be run
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = os.path.join(folder, "library.so")
            build(source, command, flags, path, made_of)
            return ctypes.CDLL(path)  # it stays loaded when its file is gone
    except subprocess.TimeoutExpired as error:
        warnings.warn(f"The C compiler {compiler!r} was stopped after {PATIENCE} seconds. Plain "
                      "torch runs instead, and is slower; CC=NAME chooses another compiler.")
        return f"{source} could not be built: {error}"
    except (OSError, subprocess.SubprocessError) as error:
        return f"{source} could not be built: {error}"


def functions(name, signatures):
    """The library of kernels/NAME for this machine, its functions declared as `signatures` says,
    {function: (type of the result, types of the arguments)}; or a text that says why there is
    none."""
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    made = load(source, ["-O2"], machine_flags())
    if isinstance(made, str):
        return made
    try:
        for function, (result, arguments) in signatures.items():
            getattr(made, function).restype = result
            getattr(made, function).argtypes = arguments
    except AttributeError as error:
        return f"the C compiler made something else of {name}: {error}"
    return made


def digest(content):
    return hashlib.sha256(content).hexdigest()


def processor():
    """What "native" means here, since different machines may share a home directory."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            return next(line for line in file if line.lower().startswith((b"flags", b"features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()} {platform.node()}".encode()


# --------------------------------------------------------------------------------------------------
# Where it is kept


def cache_folder():
    """The folder of the libraries, or None where there is none that only this user can write in."""
    home = os.environ.get("HOME", os.path.expanduser("~"))
    places = os.environ.get("XDG_CACHE_HOME", ""), os.path.join(home, ".cache")
    base = next(filter(os.path.isabs, places), None)
    if base is None:
        return None
    above = [os.path.realpath(base)]
    folder = os.path.join(above[0], "nanomld")
    while above[-1] != os.path.dirname(above[-1]):
        above.append(os.path.dirname(above[-1]))

    def closed():
        return all(ours(os.lstat(name), above=True) for name in above if os.path.lexists(name))

    try:
        safe = closed()
        if safe:
            os.makedirs(folder, 0o700, exist_ok=True)
            info = os.lstat(folder)
            safe = closed() and stat.S_ISDIR(info.st_mode) and ours(info)
    except FileExistsError:
        safe = False
    except OSError:  # a home that cannot be written
        return None
    if not safe:
        warnings.warn(f"{folder} is not used, because others can write there. Each process "
                      "compiles for itself; XDG_CACHE_HOME=FOLDER chooses another place.")
    return folder if safe else None


def ours(info, above=False):
    """Whether an os.stat_result is of a file that only this user can change. A folder `above` may
    also be root's, or one like /tmp, where nobody can remove the files of others."""
    if not hasattr(os, "geteuid"):
        return True  # Windows keeps homes apart by other means
    if not above:
        return info.st_uid == os.geteuid() and not info.st_mode & 0o022
    # a group of the user's own number is, by custom, the user alone
    others = 0o002 if info.st_gid == info.st_uid else 0o022
    closed = not info.st_mode & others or info.st_mode & stat.S_ISVTX
    return bool(info.st_uid in (0, os.geteuid()) and closed)


def intact(path, made_of):
    """Whether `path` is the library that `build` made of this, and is still ours alone."""
    try:
        with open(path + ".sha256", encoding="ascii") as file:
            digests = file.read(200).split()
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb") as file:
            return ours(os.fstat(file.fileno())) and digests == [made_of, digest(file.read())]
    except (OSError, ValueError):
        return False


# --------------------------------------------------------------------------------------------------
# Making it


def build(source, command, flags, path, made_of):
    """source -> path, whole or not at all, since another process may be doing the same."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        made, note = (os.path.join(folder, name) for name in ("library.so", "sha256"))
        compile_source(source, command, flags, made)
        os.chmod(made, 0o700)
        with open(made, "r+b") as file, open(note, "w", encoding="ascii") as digests:
            digests.write(f"{made_of} {digest(file.read())}\n")
            digests.flush()
            os.fsync(digests.fileno())
            os.fsync(file.fileno())
        os.replace(made, path)
        os.replace(note, path + ".sha256")


def compile_source(source, command, flags, made):
    """source -> made, with the first of the flags that the compiler accepts."""
    end, stop = time.monotonic() + PATIENCE, getattr(signal, "SIGKILL", signal.SIGTERM)
    for more in flags:
        whole = [*command, *more, "-shared", "-fPIC", source, "-o", made, "-lm"]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(whole, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                                       start_new_session=True)
            try:
                code = process.wait(max(0, end - time.monotonic()))
            finally:
                if process.poll() is None:  # stop it with all that it started
                    getattr(os, "killpg", os.kill)(process.pid, stop)
                    process.wait()
            if code == 0 and os.path.exists(made):
                return
            said.seek(0)
            text = said.read().decode(errors="replace").strip()[-500:]
    raise subprocess.SubprocessError(text or f"{command[0]} made no library")
