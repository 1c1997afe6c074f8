"""The training report: axes that tell the truth, train and val together, and the motions in it."""
import json
import re
import shutil
from pathlib import Path

import pytest

import browser
from flags import parse_args
from test_render import walk
from view.report import PICTURES, curve, read_log, show_motions, write_report

LOG = Path(__file__).resolve().parent.parent / "checkpoints" / "toy.log.jsonl"


def ticks(svg):
    """The labels of the vertical axis, from the bottom."""
    return re.findall(r'text-anchor="end">([^<]*)</text>', svg)[-svg.count("H534"):]


def heights(svg, k=0):
    """The vertical places of the k-th curve, in pixels."""
    points = re.findall(r'<polyline[^>]* points="([^"]*)"', svg)[k].split()
    return [float(point.split(",")[1]) for point in points]


def write(folder, entries, *players, name=""):
    config, _ = parse_args(["--dataset", "toy"] + [f"--name={name}"] * bool(name), None, "")
    for player in players:
        shown = [(walk(20).astype("float32"), "a man walks")]
        show_motions(folder / f"{player}.html", shown, config)
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, entries)))
    write_report(folder / "report.html", folder / "log.jsonl", config)
    return (folder / "report.html").read_text()


def entries(stage="vae", steps=(10, 20), **values):
    return [{"stage": stage, "step": step, **values} for step in steps]


def test_a_curve_that_hardly_changes_is_flat():
    svg = curve("R@3", {"10 steps": [(1, 0.978), (7.5, 0.983)]}, unit="guidance")
    assert ticks(svg) == ["0", "0.5", "1"] and ">guidance</text>" in svg
    assert 0.3 < heights(svg)[0] - heights(svg)[1] < 1.5  # of the 134 pixels that 1 takes
    svg = curve("speed", {"train": [(1, 2000.0), (2, 2000.0)]})
    assert ticks(svg)[0] == "0" and len(set(heights(svg))) == 1


def test_what_falls_over_decades_is_drawn_in_equal_ratios():
    svg = curve("loss", {"train": [(1, 10.0), (2, 1.0), (3, 0.1), (4, 0.01)]})
    first, second, third, last = heights(svg)[:4]
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert last - third == pytest.approx(second - first, abs=0.2)
    assert ticks(svg) == ["0.01", "0.1", "1", "10"]
    assert ticks(curve("x", {"x": [(1, 0.3), (2, 0.02)]})) == ["0.02", "0.05", "0.1", "0.2", "0.5"]
    many = ticks(curve("x", {"x": [(1, 1e-9), (2, 1e9)]}))
    assert 4 <= len(many) <= 8 and float(many[0]) <= 1e-9


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [-3.0, -1.0], [5.0], [float("nan"), 2.0],
                                    [float("inf")], [-1.0, 0.0, 1.0], [1e-30, 1e30], [1e-12]])
def test_odd_values_still_make_a_picture(values):
    svg = curve("x", {"x": list(enumerate(values, 1))})
    assert "nan" not in svg and "inf" not in svg
    assert all(28 <= y <= 162 for y in heights(svg)) and len(ticks(svg)) >= 2


def test_train_and_val_share_a_picture_and_every_picture_has_its_sentence(tmp_path):
    shutil.copy(LOG, tmp_path / "log.jsonl")
    logged = [json.loads(line) for line in LOG.read_text().splitlines()]
    page = write(tmp_path, logged)
    known = {"error_t" if "error_t" in key else key.removeprefix("val_")
             for entry in logged for key in entry} - {"stage", "step"}
    assert known <= PICTURES.keys()
    figures = re.findall(r"<figure>(.*?)</figure>", page, re.S)
    assert len(figures) == 15 + 9  # of the VAE and of diffusion
    titles = [re.search('aria-label="([^"]*)"', figure)[1] for figure in figures]
    assert titles.count("Loss") == 2 and titles[0] == "Loss"
    for title, figure in zip(titles, figures):
        assert re.search(r"<figcaption>[A-Z][^<]{20,}\.</figcaption>", figure), title
        solid, dashed = (figure.count(f'dasharray="{dash}"') for dash in ("none", "5 3"))
        wanted = {"Loss": (1, 1), "Length loss": (1, 1), "Denoising error by noise level": (4, 4),
                  "Reconstruction error (MPJPE)": (0, 1)}
        if title in wanted:
            assert (solid, dashed) == wanted[title], title


def test_a_single_evaluation_can_be_seen(tmp_path):
    page = write(tmp_path, entries(loss=1.0) + entries(steps=[20], val_loss=2.0))
    assert page.count("<circle") == 1


def test_the_newest_motions_of_each_stage_are_in_the_page(tmp_path):
    logged = entries(steps=(200, 600), loss=1.0) + entries("diffusion", (200, 400), loss=1.0)
    (tmp_path / "vae-notes.html").write_text("something else")
    page = write(tmp_path, logged, "vae-0000200", "vae-0000600", "diffusion-0000400",
                 "diffusion-0009000")  # the last is of a longer run that was overwritten
    frames = re.findall(r'<iframe title="([^"]*)"[^>]* srcdoc="([^"]*)"', page)
    assert [title for title, _ in frames] == ["Motions of vae at step 600",
                                              "Motions of diffusion at step 400"]
    assert all("a man walks" in player for _, player in frames)
    links = re.findall('href="([^"]*)"', page)
    assert links == ["vae-0000200.html", "vae-0000600.html", "diffusion-0000400.html"]


def test_settings_are_a_table_and_names_are_text(tmp_path):
    page = write(tmp_path, entries(loss=1.0, new_quantity=3), name="<b>&run")
    assert "&lt;b&gt;&amp;run</h1>" in page and "<b>" not in page
    assert "<tr><td>latent_size</td><td>4</td></tr>" in page and "<details>" in page
    assert '<th colspan="2">train_diffusion</th>' in page and 'aria-label="new_quantity"' in page
    assert "<h1>Training run: toy</h1>" in write(tmp_path, [])  # nothing was logged yet


def test_in_a_browser(tmp_path):
    """Nothing is cut off or too small to read, on a desk and on a phone, in light and dark."""
    if not browser.find():
        pytest.skip("NOT TESTED in a browser: no Chromium is installed (apt-get install chromium)")
    logged = [json.loads(line) for line in LOG.read_text().splitlines()]
    write(tmp_path, logged, "vae-0006000", "diffusion-0005000", name="long-" * 30)
    with browser.Browser(tmp_path / "profile") as page:
        for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
            page.open((tmp_path / "report.html").as_uri(), width, 900, dark=dark, ready="true")
            page.js("document.querySelector('details').open = true")
            assert page.js("document.documentElement.scrollWidth") <= width
            cut = page.js("""[...document.querySelectorAll("svg text")].filter(text => {
                const a = text.getBoundingClientRect();
                const b = text.ownerSVGElement.getBoundingClientRect();
                return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1;
            }).map(text => text.textContent)""")
            assert cut == []
            high = page.js("[...document.querySelectorAll('svg text')].map("
                           "text => text.getBoundingClientRect().height)")
            assert min(filter(None, high)) > 10
            colours = page.js("(s => [s.color, s.backgroundColor])(getComputedStyle("
                              "document.documentElement))")
            assert (colours[0] == "rgb(255, 255, 255)") is dark
        assert page.errors == []


def test_lines_that_are_no_entries_are_left_out_and_said(tmp_path, capsys):
    good = {"stage": "vae", "step": 10, "loss": 1.5, "val_loss": float("nan")}
    odd = ["7", "[]", "null", "{}", "\"text\"", "{\"stage\": \"vae\"}", "[" * 100_000, "\0",
           "1" * 10_000]
    odd += [json.dumps(good | change) for change in (
        {"step": "10"}, {"step": -1}, {"step": 0}, {"step": 1e9}, {"step": True}, {"loss": "low"},
        {"step": 10**400}, {"loss": 10**400}, {"loss": [1]}, {"loss": {}}, {"loss": 5e-324},
        {"stage": 3}, {"stage": "../vae"}, {"stage": "\"><script>"})]
    for line in odd:
        (tmp_path / "log.jsonl").write_text(f"{line}\n{json.dumps(good)}\n")
        assert str(read_log(tmp_path / "log.jsonl")) == str([good]), line[:100]
        assert "log.jsonl, line 1: this is no entry" in capsys.readouterr().err
    page = write(tmp_path, [good, *({"odd": line} for line in odd)])
    assert "<script>" not in page and page.count("<figure>") == 1
    capsys.readouterr()
    (tmp_path / "log.jsonl").write_bytes(json.dumps(good).encode() + b'\n\xff{"stage": "v')
    assert str(read_log(tmp_path / "log.jsonl")) == str([good])
    assert not capsys.readouterr().err, "the last line of a killed run is cut short"
