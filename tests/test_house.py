"""The house: which file may import which, no circle, nothing else in the hall, narrow lines."""
import ast
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = {"kernels", "formats", "toy", "judge", "view", "dev", "tests"}
HALL = {
    "config", "motion", "words", "clauses", "clip_tokenizer", "clip", "transformer", "vae",
    "diffusion", "modulated", "mld", "fast", "conditions", "latents", "guidance", "story", "edit",
    "lengths",
    "data", "checkpoint", "published", "published_clip", "train", "stages", "losses",
    "finetune", "distill", "sample", "resume", "eval", "prepare", "studio", "optimizers",
    "presets", "flags", "files", "run", "loop"}
SETTINGS = {"config", "presets", "files", "flags"}
FORMATS = SETTINGS | {"motion", "formats"}
EDITS = {"guidance", "story", "edit"}
MODEL = {"kernels", "fast", "transformer", "clip_tokenizer", "clip", "vae", "diffusion",
         "conditions", "latents", "modulated", "mld", "words", "clauses"} | EDITS
STORED = MODEL | {"data", "checkpoint", "published", "published_clip"} | FORMATS
MAY_IMPORT = {  # what a file, or a room's files, may import of ours; its own room always
    "config": set(), "presets": set(), "files": set(), "flags": {"config", "presets"},
    "kernels": set(), "clip_tokenizer": set(), "lengths": set(), "words": set(),
    "clauses": {"words"},
    "diffusion": set(), "conditions": set(), "latents": set(),
    "motion": {"config"},
    "formats": FORMATS, "toy": FORMATS | {"words"}, "data": FORMATS,
    "fast": {"kernels", "diffusion"},
    "transformer": {"kernels", "fast"},
    "clip": {"kernels", "fast", "transformer", "clip_tokenizer", "words"},
    "vae": {"kernels", "fast", "transformer"},
    "modulated": {"fast", "diffusion"},
    "mld": FORMATS | MODEL - EDITS,
    "guidance": FORMATS | MODEL - EDITS, "story": FORMATS | MODEL - {"edit"},
    "edit": FORMATS | MODEL,
    "checkpoint": STORED - EDITS, "published": STORED - EDITS,
    "published_clip": FORMATS | MODEL - EDITS - {"mld"},
    "judge": STORED,
    "view": STORED,
    "optimizers": {"kernels", "transformer"},
    "loop": {"kernels", "optimizers", "checkpoint", "config", "data"},
    "run": STORED | {"finetune", "resume", "view"},
    "finetune": STORED, "resume": {"config", "files", "checkpoint"},
    "losses": {"motion", "transformer", "vae"},
    "stages": STORED | {"losses", "judge", "view"}, "distill": STORED | {"stages"},
}
# for other files of the hall
PROGRAMS = STORED | {"lengths", "finetune", "run", "loop", "resume", "stages", "optimizers",
                     "distill", "judge", "view", "toy"}
MAY_IMPORT["studio"] = PROGRAMS | {"sample"}  # its files are those of sample.py
# Tables whose rows are read as tables; nothing else is wider than 100 columns.
WIDE = set()


def files(*patterns):
    command = ["git", "ls-files", "-co", "--exclude-standard", *(patterns or ["*.py"])]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]


def name_of(path):
    """path -> its dotted name, as an import says it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, known):
    """The modules of ours that a file imports, inside functions too; `known`: all dotted names.

    What stands under `if __name__ == "__main__":` is left out: there the file is a program."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    tree.body = [node for node in tree.body if not (
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in names]
        else:
            continue
        found |= {name for name in names if name in known}
    return found


def graph():
    paths = {name_of(path): path for path in files()}
    return {name: imports(path, paths) - {name} for name, path in paths.items()}


def place(module):
    return module.split(".")[0]


def test_only_what_belongs_there_stands_in_the_hall():
    modules = {place(name) for name in graph()}
    assert modules - HALL - ROOMS == set()


def test_arrows_go_down():
    wrong = []
    for module, imported in graph().items():
        here = place(module)
        if here in ("dev", "tests"):
            continue  # they look at everything, and nobody looks at them
        allowed = MAY_IMPORT.get(here, PROGRAMS) | ({here} if here in ROOMS else set())
        wrong += [f"{module} imports {other}" for other in imported if place(other) not in allowed]
    assert not wrong


def test_no_import_runs_in_a_circle():
    edges = graph()
    done, path = set(), []

    def visit(module):
        if module in path:
            pytest.fail("a circle: " + " -> ".join([*path[path.index(module):], module]))
        if module not in done:
            path.append(module)
            for other in sorted(edges[module]):
                visit(other)
            done.add(path.pop())

    for module in sorted(edges):
        visit(module)


def test_the_guards_see_a_planted_fault(tmp_path):
    """Lazy imports count, and so do imports of a submodule through its package."""
    file = tmp_path / "lazy.py"
    file.write_text("def f():\n    from formats import pack\n    import mld\n")
    assert imports(file, {"formats", "formats.pack", "mld", "vae"}) == {"formats.pack", "mld"}


def test_lines_have_at_most_100_columns():
    wide = [
        f"{path.relative_to(ROOT)}:{number} has {len(line)} columns"
        for path in files("*.py", "*.c", "*.html", "*.js", "*.sh")
        if str(path.relative_to(ROOT)) not in WIDE
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100]
    assert not wide, f"{len(wide)} lines: " + "; ".join(wide[:10])
