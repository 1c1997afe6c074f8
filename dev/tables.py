"""The tables and the plot of docs/results.md, from eval.json files.

    python -m dev.tables table "1 token=out/one/eval.json" "no VAE=out/frames/eval.json"
        Markdown: real motion, then each run's reconstruction and generated motion
    python -m dev.tables plot docs/guidance.svg out/sweep/*/eval.json
        FID and R@3 over guidance, a line for every number of steps
"""
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from view.report import curve

REAL, RECONSTRUCTION, MODEL = "real motion", "VAE reconstruction", "generated"


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def markdown(*rows):
    """Rows of cells, the first the header -> a Markdown table with numbers on the right."""
    rows = [rows[0], ["---"] + ["---:"] * (len(rows[0]) - 1), *rows[1:]]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + "\n"


def fill(path, tables):
    """Write {heading: table} over the first table that the Markdown file has under each heading."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    for heading, table in tables.items():
        above, lines = rf"^#+ {re.escape(heading)}\n(?:[^#|\n].*\n|\n)*", r"((?:\|.*\n)+)"
        found = re.search(above + lines, text, re.M)
        if not found:
            raise ValueError(f"{path} has no table under a heading '{heading}' to be replaced.")
        text = text[:found.start(1)] + table + text[found.end(1):]
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def table(runs):
    """runs {name: eval.json} -> Markdown: judged numbers, what the joints say and how sharp motions
    are, as means with 95% intervals, then speed and size. ValueError for runs that cannot be
    compared."""
    first = next(iter(runs.values()))
    differ = [key for key in ("dataset", "split", "judge")
              if any(run[key] != first[key] for run in runs.values())]
    if differ:
        raise ValueError(f"these runs cannot share a table: they differ in {', '.join(differ)}")
    rows = {REAL: first["rows"][REAL]}
    for row in (RECONSTRUCTION, MODEL):
        rows |= {f"{row}, {n}": run["rows"][row] for n, run in runs.items() if row in run["rows"]}

    def cell(row, name):
        mean, half = row.get(name, ("", None))
        return mean if mean == "" else f"{mean:.4g}" + ("" if half is None else f" ± {half:.2g}")

    names = dict.fromkeys(name for row in rows.values() for name in row)
    joints = [name for name in names if name.endswith(("mm", "cm/s", "m/s3"))]
    sharp = [name for name in names if name.endswith((" Hz", "kinematic FID"))]
    judged = [name for name in names if name not in joints + sharp]
    for columns in filter(None, (judged, joints, sharp)):
        cells = [[name, *(cell(row, c) for c in columns)] for name, row in rows.items()]
        yield markdown(["", *columns], *cells)
    parts = dict.fromkeys(part for run in runs.values() for part in run["parts"])

    def millions(run, part):
        return f"{run['parts'][part]['parameters'] / 1e6:.2f}" if part in run["parts"] else ""

    yield markdown(["", "AITS, s", *(f"{part}, M parameters" for part in parts)],
                   *([name, f"{run['aits']['seconds']:.3f}", *(millions(run, p) for p in parts)]
                     for name, run in runs.items()))
    yield f"Judge: {first['judge']}."
    for name, run in runs.items():
        yield from (f"{name}: {note}" for note in run["notes"])


def plot(runs):
    """One SVG of two pictures: FID and R@3 of generated motion over guidance, by steps."""
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 420">'
    svg += "<style>text{font:12px sans-serif;fill:#888}</style>"
    for i, metric in enumerate(("FID", "R@3")):
        lines = {}
        for run in sorted(runs, key=lambda run: run["settings"]["diffusion"]["guidance_scale"]):
            d, value = run["settings"]["diffusion"], run["rows"][MODEL][metric][0]
            points = lines.setdefault(f"{d['num_inference_steps']} steps", [])
            points.append((d["guidance_scale"], value))
        lines = {name: lines[name] for name in sorted(lines, key=len)}
        picture = curve(f"{metric} of generated motion", lines, unit="guidance")
        place = f'<svg y="{210 * i}" width="560" height="200" '
        svg += picture.replace("<svg ", place, 1)
    return svg + "</svg>"


def main(argv):
    try:
        if argv[:1] == ["table"] and len(argv) > 1:
            pairs = (word.split("=", 1) for word in argv[1:])
            print("\n".join(table({name: read(path) for name, path in pairs})))
        elif argv[:1] == ["plot"] and len(argv) > 2:
            picture = plot([read(path) for path in argv[2:]])
            with open(argv[1], "w", encoding="utf-8") as file:
                file.write(picture)
        else:
            sys.exit("usage: python -m dev.tables table NAME=EVAL.json ... "
                     "| plot FILE.svg EVAL.json ...")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    from flags import program

    program(main)
