"""The documentation is true: its links, files, commands, settings and Python examples exist, and
the README is one page."""
import ast
import importlib.util
import pathlib
import re

import pytest
import warm

import config

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md")), ROOT / "data/toy/README.md",
         ROOT / "tests/README.md"]
LESSON = ("transformer", "vae", "diffusion", "mld", "clip", "clip_tokenizer")
# Kinds of files that only the repository has; what a user or a run makes is elsewhere.
FILE = re.compile(r"(?<![\w./~-])((?:[\w-]+/)*[\w.-]+\.(?:py|md|c|svg|gif|sh)\b"
                  r"|checkpoints/[\w./-]+\w)")
ENDINGS = ("py", "pt", "html", "json", "svg", "txt")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def text_of(page):
    return page.read_text(encoding="utf-8")


def anchors(page):
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if target.startswith(("http://", "https://")):
            continue
        if not path.exists() or anchor and anchor not in anchors(path):
            broken.append(target)
    return broken


def missing_files(page):
    """Names of files that stand neither beside the page nor in the root."""
    names = {name for name in FILE.findall(text_of(page)) if not name.startswith("out/")}
    places = (ROOT, page.parent)
    return sorted(name for name in names if not any((at / name).exists() for at in places))


def unknown_programs(page):
    """What `python ...` and `torchrun ...` commands name and nobody can run."""
    text, unknown = text_of(page), []
    for name in re.findall(r"python3? -m ([\w.]+)", text):
        ours = ROOT / (name.replace(".", "/") + ".py")
        if not ours.exists() and ("." in name or importlib.util.find_spec(name) is None):
            unknown.append(name)
    for name in re.findall(r"python3? ((?:[\w-]+/)*[\w-]+\.py)", text):
        unknown += [] if (ROOT / name).exists() else [name]
    return unknown


def unknown_settings(page):
    sections = vars(config.Config())
    named = set(re.findall(r"--([a-z_]+)\.([a-z_]+)", text_of(page))) - {("section", "key")}
    return [f"{a}.{b}" for a, b in named if a not in sections or not hasattr(sections[a], b)]


def names_in(path):
    """Everything that a file defines: functions, classes, and Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inside = (item for item in node.body if isinstance(item, ast.FunctionDef))
            found |= {f"{node.name}.{item.name}" for item in inside}
    return found


def unknown_functions(page):
    """Names such as `vae.MotionVAE.decode` or `view.render.write_gif` that no file defines."""
    unknown = []
    for dotted in re.findall(r"`((?:[a-z_]+\.)+[A-Za-z_][\w.]*)`", text_of(page)):
        parts = dotted.split(".")
        for cut in (1, 2):
            path = ROOT.joinpath(*parts[:cut]).with_suffix(".py")
            if path.exists() and len(parts) > cut and parts[-1] not in ENDINGS:
                section = vars(config.Config()).get(parts[0])  # vae.cosines is a setting
                if not (".".join(parts[cut:]) in names_in(path) or hasattr(section, parts[-1])):
                    unknown.append(dotted)
    return unknown


@each_page
def test_a_page_names_only_what_exists(page):
    checks = (broken_links, missing_files, unknown_programs, unknown_settings, unknown_functions)
    found = {check.__name__: check(page) for check in checks}
    assert not any(found.values()), found


def test_the_checks_see_planted_faults(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](no.md) [b](#nowhere) `vae.MotionVAE.sing` `vae.cosines` `dev/none.py`\n"
                    "python nothing.py; python -m dev.nothing; python -m pytest --vae.colour 3\n"
                    "# A heading: here\n[c](#a-heading-here) [d](https://example.org/no.md)\n")
    assert broken_links(page) == ["no.md", "#nowhere"]
    assert missing_files(page) == ["dev/none.py", "no.md", "nothing.py"]
    assert unknown_programs(page) == ["dev.nothing", "nothing.py"]
    assert unknown_settings(page) == ["vae.colour"]
    assert unknown_functions(page) == ["vae.MotionVAE.sing"]


def test_the_readme_is_one_page():
    assert len(text_of(README).splitlines()) <= 150
    assert README.stat().st_size <= 10_000


def test_the_readme_counts_the_other_lines():
    """All Python but the tests and the lesson, to the nearest thousand or two."""
    told = int(re.search(r"The other ([\d,]+) lines", text_of(README))[1].replace(",", ""))
    others = [path for path in ROOT.rglob("*.py")
              if not {"tests", ".venv", "out", "deps"} & set(path.relative_to(ROOT).parts)]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in others)
    assert abs(lines - 1600 - told) < 2000


def test_the_lesson_can_be_read_in_an_afternoon():
    lines = {name: len(text_of(ROOT / f"{name}.py").splitlines()) for name in LESSON}
    assert sum(lines.values()) < 1_600, lines
    assert all(f"`{name}.py`" in text_of(README) for name in LESSON)


def test_every_page_and_every_file_of_the_root_is_in_the_readme():
    text = text_of(README)
    pages = [page.name for page in ROOT.glob("docs/*.md")]
    assert not [name for name in pages if f"docs/{name}" not in text]
    assert not [path.name for path in ROOT.glob("*.py") if path.name not in text]


def test_every_test_file_has_its_line():
    listed = set(re.findall(r"^\| `(test_\w+\.py)` \|", text_of(ROOT / "tests/README.md"), re.M))
    assert listed == {path.name for path in ROOT.glob("tests/test_*.py")}


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_the_python_examples_run(name, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", text_of(ROOT / name), re.S)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    program = "\n".join(blocks) + "\nassert joints.shape[1:] in {(48, 22, 3), (22, 3)}\n"
    done = warm.run("-c", program, cwd=tmp_path, PYTHONPATH=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/jump.html").stat().st_size > 10_000


def test_the_figure_is_drawn_from_the_model(tmp_path):
    """The same numbers as in the file that ships, up to the rounding of another machine."""
    from dev import figure
    drawn, kept = figure.draw(figure.walk()), text_of(ROOT / "docs/walkthrough.svg")
    words = re.compile(r">([^<>\n]+)</text>")
    assert words.findall(drawn) == words.findall(kept)
    assert abs(len(drawn) - len(kept)) < 2_000
