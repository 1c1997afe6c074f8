"""matmul.c for the page: built with clang, kept as text in matmul.wasm.txt.

    python -m view.matmul          builds it anew; needs clang and lld, for WebAssembly

The page works without a compiler: the text that ships is what was built. Its first lines say from
which source (its SHA-256) and by which compiler.
"""
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap

from files import atomic_write

FOLDER = os.path.dirname(os.path.abspath(__file__))
SOURCE, BUILT = os.path.join(FOLDER, "matmul.c"), os.path.join(FOLDER, "matmul.wasm.txt")
FLAGS = ("--target=wasm32", "-O3", "-msimd128", "-ffreestanding", "-nostdlib", "-Wl,--no-entry",
         "-Wl,--export=product", "-Wl,--strip-all", "-Wl,-z,stack-size=16384")


def digest():
    """Of the source as it is now."""
    with open(SOURCE, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def compiler():
    """What clang calls itself, such as "clang version 14.0.6"; None without clang or lld."""
    if not (shutil.which("clang") and shutil.which("wasm-ld")):
        return None
    said = subprocess.run(["clang", "--version"], capture_output=True, text=True).stdout
    return re.search(r"clang version [\d.]+", said)[0]


def build():
    """The program's bytes. ValueError where it cannot be compiled."""
    if not compiler():
        raise ValueError("Building matmul.c needs clang and its linker wasm-ld, on Debian: "
                         "apt install clang lld")
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "matmul.wasm")
        done = subprocess.run(["clang", *FLAGS, "-o", made, SOURCE], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"clang could not compile {SOURCE}: {done.stderr.strip()}")
        with open(made, "rb") as file:
            return file.read()


def kept():
    """(digest of the source, compiler, bytes) of the program that ships. ValueError if the source
    has changed since."""
    with open(BUILT, encoding="utf-8") as file:
        source, made_by, *text = file.read().splitlines()
    if source.split()[-1] != digest():
        raise ValueError(f"{BUILT} was built from another matmul.c; run python -m view.matmul")
    return source.split()[-1], made_by, base64.b64decode("".join(text))


def main():
    try:
        text = textwrap.fill(base64.b64encode(build()).decode(), 100)
    except ValueError as error:
        sys.exit(f"error: {error}")
    with atomic_write(BUILT, "w") as file:
        file.write(f"matmul.c of SHA-256 {digest()}\n{compiler()}\n{text}\n")
    print(BUILT)


if __name__ == "__main__":
    main()
