"""The tables and the plot of docs/results.md, from eval.json files.

    python -m dev.tables table "1 token=out/one/eval.json" "no VAE=out/frames/eval.json"     Markdown: real motion, then
                                                                  each run's reconstruction and generated motion
    python -m dev.tables plot docs/guidance.svg out/sweep/*/eval.json                      FID and R@3 over guidance,
                                                                  a line for every number of steps
"""
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from view.report import curve  # noqa: E402

REAL, RECONSTRUCTION, MODEL = "real motion", "VAE reconstruction", "generated"


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def cell(mean, half):
    return f"{mean:.4g}" + ("" if half is None else f" ± {half:.2g}")


def table(runs):
    """runs {name: eval.json} -> Markdown: judged numbers first, then what the joints say; means with 95% intervals."""
    rows = {REAL: next(iter(runs.values()))["rows"][REAL]}
    for row in (RECONSTRUCTION, MODEL):
        rows |= {f"{row}, {name}": run["rows"][row] for name, run in runs.items() if row in run["rows"]}
    differ = [key for key in ("dataset", "split", "judge") if len({run[key] for run in runs.values()}) > 1]
    if differ:
        raise ValueError(f"these runs are no rows of one table: they differ in {', '.join(differ)}")
    names = list(dict.fromkeys(key for row in rows.values() for key in row))
    joints = [name for name in names if name.endswith(("mm", "cm/s", "m/s3"))]
    for columns in ([name for name in names if name not in joints], joints):
        yield f"| | {' | '.join(columns)} |"
        yield "| --- |" + " ---: |" * len(columns)
        for name, row in rows.items():
            cells = (cell(*row[c]) if c in row else "" for c in columns)
            yield f"| {name} | {' | '.join(cells)} |"
        yield ""
    parts = list(dict.fromkeys(part for run in runs.values() for part in run["parts"]))
    yield "| | AITS, s | " + " | ".join(f"{part}, M parameters" for part in parts) + " |"
    yield "| --- |" + " ---: |" * (1 + len(parts))
    for name, run in runs.items():
        cells = (f"{run['parts'][part]['parameters'] / 1e6:.2f}" if part in run["parts"] else "" for part in parts)
        yield f"| {name} | {run['aits']['seconds']:.3f} | {' | '.join(cells)} |"
    yield ""
    yield f"Judge: {next(iter(runs.values()))['judge']}."
    for name, run in runs.items():
        yield from (f"{name}: {note}" for note in run["notes"])


def plot(runs):
    """One SVG of two pictures: FID and R@3 of generated motion over the guidance scale, by number of steps."""
    pictures = []
    for metric in ("FID", "R@3"):
        lines = {}
        for run in runs:
            d = run["settings"]["diffusion"]
            lines.setdefault(f"{d['num_inference_steps']} steps", []).append((d["guidance_scale"], run["rows"][MODEL][metric][0]))
        pictures.append(curve(f"{metric} of generated motion", {name: sorted(lines[name]) for name in sorted(lines, key=len)}, unit="guidance"))
    stacked = "".join(picture.replace("<svg ", f'<svg y="{210 * i}" width="560" height="200" ', 1) for i, picture in enumerate(pictures))
    style = "<style>text{font:12px sans-serif;fill:#888}</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 420">{style}{stacked}</svg>'


def main(argv):
    try:
        if argv[:1] == ["table"] and len(argv) > 1:
            print("\n".join(table({name: read(path) for name, path in (word.split("=", 1) for word in argv[1:])})))
        elif argv[:1] == ["plot"] and len(argv) > 2:
            with open(argv[1], "w", encoding="utf-8") as file:
                file.write(plot([read(path) for path in argv[2:]]))
        else:
            sys.exit("usage: python -m dev.tables table NAME=EVAL.json ... | plot FILE.svg EVAL.json ...")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
