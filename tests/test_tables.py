"""What eval.json files say arrives in the tables, the plot and the FID of docs/results.md."""
import json
import re
import types
import xml.dom.minidom

import numpy as np
import pytest
import torch
import warm

from conftest import ROOT
from dev.floor import floor, stand_ins
from dev.tables import fill, markdown
from view.report import curve


def eval_json(path, fid, guidance=2.5, steps=50, vae=True, judge="our own", notes=(),
              parts=("denoiser",), half=0.1):
    rows = {
        "real motion": {"FID": [0.0, 0.0], "R@3": [0.9, 0.01]},
        "generated": {"FID": [fid, half], "R@3": [0.5, 0.02], "jerk m/s3": [80.0, 1.0]},
    }
    if vae:
        rows["VAE reconstruction"] = {"FID": [0.5, 0.1], "mpjpe mm": [21.0, 0.0]}
    diffusion = {"guidance_scale": guidance, "num_inference_steps": steps}
    path.write_text(json.dumps({
        "rows": rows, "dataset": "made", "split": "test", "judge": judge, "notes": notes,
        "aits": {"seconds": 0.25},
        "parts": {part: {"parameters": 1.5e6, "GFLOPs": 1} for part in parts},
        "settings": {"diffusion": diffusion},
    }))
    return path


def run(*words, program="tables", cwd=ROOT):
    """Run a program of dev/ by its path."""
    return warm.run(ROOT / "dev" / f"{program}.py", *words, cwd=cwd)


def test_table(tmp_path):
    a = eval_json(tmp_path / "a.json", 1.25, parts=("text encoder", "denoiser"), notes=["NO GATE"])
    b = eval_json(tmp_path / "b.json", 3.5, vae=False, half=None)
    lines = run("table", f"one token={a}", f"no VAE={b}").stdout.splitlines()
    assert lines[0] == "|  | FID | R@3 |"
    assert lines[2:6] == [
        "| real motion | 0 ± 0 | 0.9 ± 0.01 |",
        "| VAE reconstruction, one token | 0.5 ± 0.1 |  |",
        "| generated, one token | 1.25 ± 0.1 | 0.5 ± 0.02 |",
        "| generated, no VAE | 3.5 | 0.5 ± 0.02 |",
    ]
    assert "| generated, no VAE |  | 80 ± 1 |" in lines
    assert lines[-6:] == [
        "| --- | ---: | ---: | ---: |",
        "| one token | 0.250 | 1.50 | 1.50 |",
        "| no VAE | 0.250 |  | 1.50 |",
        "",
        "Judge: our own.",
        "one token: NO GATE",
    ]
    other = eval_json(tmp_path / "c.json", 1.0, judge="another")
    assert "differ in judge" in run("table", f"a={a}", f"c={other}").stderr


def test_plot(tmp_path):
    files = [eval_json(tmp_path / f"{g}-{s}.json", g + s / 100, g, s)
             for s in (5, 10, 20, 50, 100) for g in (4.0, 1.0)]
    assert run("plot", "p.svg", *files, cwd=tmp_path).returncode == 0
    lines = xml.dom.minidom.parse(str(tmp_path / "p.svg")).getElementsByTagName("polyline")
    assert len(lines) == 10  # two pictures, five numbers of steps
    xs = [float(point.split(",")[0]) for point in lines[0].getAttribute("points").split()]
    assert xs == sorted(xs)


def test_fill_replaces_the_first_table_under_each_heading(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# A\n\nwords\n\n| old |\n| --- |\n\n## B\n| old |\n\n| kept |\n")
    fill(path, {"A": markdown(["x", "y"], ["a", 1]), "B": "| new |\n"})
    assert path.read_text() == ("# A\n\nwords\n\n| x | y |\n| --- | ---: |\n| a | 1 |\n"
                                "\n## B\n| new |\n\n| kept |\n")
    with pytest.raises(ValueError, match="no table under a heading 'C'"):
        fill(path, {"C": ""})


@pytest.mark.parametrize("name, headings", [
    ("kernels.md", 3), ("scaling.md", 8)])
def test_the_pages_that_programs_fill_have_their_tables(name, headings, tmp_path):
    """Every heading that kernel_report.py and scaling.py write under exists in the page."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    source = (ROOT / "dev" / {"kernels.md": "kernel_report.py", "scaling.md": "scaling.py"}[name])
    written = [h for h in re.findall(r"^#+ (.+)$", text, re.M) if f'"{h}"' in source.read_text()]
    assert len(written) == headings
    (tmp_path / name).write_text(text)
    fill(tmp_path / name, {heading: "| filled |\n" for heading in written})
    assert (tmp_path / name).read_text().count("| filled |") == headings


def test_an_axis_has_numbers_and_a_name():
    drawn = curve("R@3", {"10 steps": [(1, 0.9781), (7.5, 0.9826)]}, unit="guidance")
    assert ">0<" in drawn and ">1<" in drawn and ">6<" in drawn and ">guidance<" in drawn


def test_bad_input(tmp_path):
    for words in ((), ("table",), ("plot", "x.svg"), ("table", f"a={tmp_path / 'none.json'}"),
                  ("table", "a")):
        done = run(*words)
        assert done.returncode == 1 and "Traceback" not in done.stderr


def test_stand_ins_have_the_wanted_labels_and_none_comes_twice():
    wanted, labels = np.array([2, 0, 2, 1]), np.array([0, 0, 1, 2, 2, 2])
    draws = [stand_ins(np.random.default_rng(k), wanted, labels) for k in range(8)]
    assert all((labels[chosen] == wanted).all() and len(set(chosen)) == 4 for chosen in draws)
    assert len({tuple(chosen) for chosen in draws}) > 1
    with pytest.raises(ValueError, match="2 test clips have label 1, but only 1"):
        stand_ins(np.random.default_rng(0), np.array([1, 1]), labels)


def test_floor_refuses_what_it_cannot_say():
    run = types.SimpleNamespace(pack=types.SimpleNamespace(path="a.pack", splits=["train"] * 3))
    with pytest.raises(ValueError, match="a.pack has no test split"):
        floor(run)
    run.pack.splits, run.batches = ["train", "test"], lambda split: range(1)
    run.clips = lambda *_: ({"actions": torch.tensor([-1, -1])}, None, None, None)
    run.judged = lambda name, *_: {name: np.zeros((2, 3))}
    with pytest.raises(ValueError, match="a.pack: no test clip has an action label"):
        floor(run)


def test_floor_of_the_toy_set(tmp_path):
    done = run("--ckpt", ROOT / "checkpoints" / "toy.pt", program="floor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0.1 < float(done.stdout.split()[-1].split("+-")[0]) < 1.0
    assert "error: " in run("--ckpt", "nowhere.pt", program="floor").stderr


def test_the_kernels_report_counts_launches_where_triton_is_demanded():
    """The program runs with MLD_KERNELS=triton, which no operation on a CPU can satisfy."""
    pytest.importorskip("triton", reason="NOT TESTED: triton is not installed")
    code = "from dev.kernel_report import operation_counts; print(*operation_counts())"
    done = warm.run("-c", code, MLD_KERNELS="triton")
    assert not done.returncode, done.stderr
    every, in_layers = map(int, done.stdout.split())
    assert every > in_layers > 50 * 23
