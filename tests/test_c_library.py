"""c_library.py: only what this user compiled is loaded, whole; and a compiler may fail or hang."""
import _ctypes
import os
import shutil
import stat
import time
import warnings

import pytest

from kernels import c_library, few_rows

pytestmark = pytest.mark.skipif(not (hasattr(os, "geteuid") and shutil.which("cc")),
                                reason="NOT TESTED: there is no C compiler cc, or no POSIX")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache, and a C file of one function; `home.compiled` counts compilations."""
    (tmp_path / "small.c").write_text("int answer(void) { return 42; }\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "cc")
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path, monkeypatch)


class Home:
    def __init__(self, path, monkeypatch):
        self.path, self.folder, self.compiled = path, path / "cache" / "nanomld", 0
        compile_source = c_library.compile_source

        def counted(*args):
            self.compiled += 1
            compile_source(*args)

        monkeypatch.setattr(c_library, "compile_source", counted)

    def load(self):
        return c_library.load(str(self.path / "small.c"), ["-O1"], [[]])

    def answer(self):
        """What the library's function says, and how often it was compiled for that."""
        before, made = self.compiled, self.load()
        try:
            return made.answer(), self.compiled - before
        finally:  # or the next of the same name would be this one
            _ctypes.dlclose(made._handle)

    def kept(self):
        library, = self.folder.glob("*.so")
        return library, library.with_name(library.name + ".sha256")


def test_compiled_once_and_private(home):
    assert home.answer() == (42, 1) and home.answer() == (42, 0)
    for path in (home.folder, home.kept()[0]):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert len(list(home.folder.iterdir())) == 2  # the library and its digests


def cut(share):
    def damage(library, note):
        content = library.read_bytes()
        library.write_bytes(content[:int(share * len(content))])
    return damage


def flipped(library, note):
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def linked(library, note):
    library.rename(library.with_suffix(".elsewhere"))
    library.symlink_to(library.with_suffix(".elsewhere"))


DAMAGES = {
    "empty": cut(0), "a tenth": cut(0.1), "half": cut(0.5), "nearly all": cut(0.99),
    "flipped": flipped, "linked": linked,
    "gone": lambda library, note: library.unlink(),
    "no digests": lambda library, note: note.unlink(),
    "empty digests": lambda library, note: note.write_text(""),
    "no text": lambda library, note: note.write_bytes(b"\xff\xfe"),
    "of another source": lambda library, note: note.write_text(
        ("1" if note.read_text()[0] == "0" else "0") + note.read_text()[1:]),
    "writable by others": lambda library, note: library.chmod(0o777)}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_built_again(home, damage):
    """Loading a truncated library kills the process; here it is made again, once."""
    c_library.cache_folder()
    home.answer()
    damage(*home.kept())
    assert home.answer() == (42, 1) and home.answer() == (42, 0)


def test_another_source_or_option_is_another_library(home):
    home.answer()
    (home.path / "small.c").write_text("int answer(void) { return 43; }\n")
    assert home.answer() == (43, 1)


def plant(home):
    """A library in the right place, with the right digests, that somebody else made."""
    (home.path / "small.c").rename(home.path / "right.c")
    (home.path / "small.c").write_text("int answer(void) { return 13; }\n")
    assert home.answer() == (13, 1)
    planted, note = home.kept()
    made = note.read_text().split()[1]
    (home.path / "right.c").replace(home.path / "small.c")
    home.answer()
    right, note = (path for path in home.folder.iterdir()
                   if path.name.startswith("small") and not path.name.startswith(planted.stem))
    right, note = sorted((right, note))
    os.replace(planted, right)
    note.write_text(f"{note.read_text().split()[0]} {made}\n")
    assert home.answer()[0] == 13  # it would be believed
    return right


def open_to_all(home, monkeypatch):
    home.folder.chmod(0o777)


def in_a_folder_open_to_all(home, monkeypatch):
    home.folder.parent.chmod(0o777)


def behind_a_link(home, monkeypatch):
    home.folder.rename(home.path / "elsewhere")
    home.folder.symlink_to(home.path / "elsewhere")


def of_somebody_else(home, monkeypatch):
    """As with sudo -E, and in a container with another user's home."""
    monkeypatch.setattr(os, "geteuid", lambda other=os.geteuid() + 12345: other)


@pytest.mark.parametrize("how", [open_to_all, in_a_folder_open_to_all, behind_a_link,
                                 of_somebody_else])
def test_what_others_can_write_is_not_loaded(home, monkeypatch, how):
    planted = plant(home)
    how(home, monkeypatch)
    before = sorted(os.listdir(home.folder)), planted.read_bytes()
    with pytest.warns(UserWarning, match="others can write there"):
        assert home.answer() == (42, 1)
    assert (sorted(os.listdir(home.folder)), planted.read_bytes()) == before


def test_a_planted_folder_is_not_made_in_another_users_home(home, monkeypatch):
    (home.path / "cache").mkdir()
    real = os.lstat

    def lstat(path, **rest):
        found = list(real(path, **rest))
        found[4] += 6789 * (str(path) == str(home.folder.parent))  # its owner
        return os.stat_result(found)

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.warns(UserWarning, match="others can write there"):
        assert home.answer() == (42, 1)
    assert not home.folder.exists()


@pytest.mark.parametrize("mode, owner, group, safe", [
    (0o755, 5, 5, True), (0o755, 0, 0, True), (0o755, 7, 5, False), (0o777, 5, 5, False),
    (0o1777, 0, 0, True), (0o1777, 7, 7, False), (0o775, 5, 5, True), (0o775, 5, 100, False)])
def test_folders_above(monkeypatch, mode, owner, group, safe):
    """5 is this user, 7 another one; 0o1777 is /tmp's; group 5 is the user's own."""
    monkeypatch.setattr(os, "geteuid", lambda: 5)
    info = os.stat_result([stat.S_IFDIR | mode, 0, 0, 1, owner, group, 0, 0, 0, 0])
    assert c_library.ours(info, above=True) is safe
    assert c_library.ours(info) is (owner == 5 and mode == 0o755)


@pytest.mark.parametrize("variables", [
    dict(XDG_CACHE_HOME="", HOME=""), dict(XDG_CACHE_HOME="here", HOME="there"),
    dict(XDG_CACHE_HOME="", HOME=None)], ids=str)
def test_without_an_absolute_folder_nothing_is_left_behind(home, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.delenv(name)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without an entry
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert home.answer() == (42, 1) and home.answer() == (42, 1)
    assert os.listdir(home.path) == ["small.c"]


def test_home_is_used_where_no_cache_is_named(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(home.path / "me"))
    assert home.answer() == (42, 1) and home.answer() == (42, 0)
    assert (home.path / "me" / ".cache" / "nanomld").is_dir()


def test_a_cache_that_cannot_be_written(home):
    (home.path / "cache").write_text("a file")
    assert home.answer() == (42, 1)


def test_a_folder_from_which_nothing_runs(home, monkeypatch):
    """Like a disk mounted noexec: a private library may still do."""
    load = c_library.ctypes.CDLL

    def refuse(path):
        if str(home.folder) in path:
            raise OSError("failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(c_library.ctypes, "CDLL", refuse)
    assert home.answer() == (42, 2)


# --------------------------------------------------------------------------------------------------
# The compiler


def script(home, text):
    path = home.path / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    os.environ["CC"] = str(path)


def test_a_compiler_that_hangs_is_stopped_with_what_it_started(home, monkeypatch):
    monkeypatch.setattr(c_library, "PATIENCE", 0.5)
    script(home, f"trap '' TERM\nsleep 50 & echo $! > {home.path}/pid\nwait")
    start = time.monotonic()
    with pytest.warns(UserWarning, match="was stopped after 0.5 seconds") as told:
        assert "could not be built" in home.load()
    assert time.monotonic() - start < 5 and len(told) == 1 and "\n" not in str(told[0].message)
    child = int((home.path / "pid").read_text())
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.05)
    assert not alive(child)


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("text, reason", [
    ("exit 1", "made no library"), ("exit 0", "made no library"),
    ("echo wrong word >&2; exit 3", "wrong word"), ("echo hello > $5", "could not be built")])
def test_a_compiler_that_fails(home, text, reason):
    script(home, text)
    found = home.load()
    assert isinstance(found, str) and reason in found
    assert not list(home.folder.glob("*.tmp*"))


def test_a_library_of_something_else(home, monkeypatch):
    monkeypatch.setattr(c_library, "load", lambda *args, made=home.load(): made)
    assert "something else" in few_rows.library.__wrapped__("float32", "few_rows")


def test_flags_for_another_processor(monkeypatch):
    """With OpenMP first, then without; MLD_CFLAGS takes the place of what this machine has."""
    monkeypatch.delenv("MLD_CFLAGS", raising=False)
    assert c_library.machine_flags() == [
        ["-march=native", "-fopenmp"], ["-mcpu=native", "-fopenmp"], ["-march=native"],
        ["-mcpu=native"]]
    monkeypatch.setenv("MLD_CFLAGS", "-mavx2 -mfma")
    assert c_library.machine_flags() == [["-mavx2", "-mfma", "-fopenmp"], ["-mavx2", "-mfma"]]
