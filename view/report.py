"""A training run as one HTML page: curves drawn from log.jsonl, the settings, and the example motions of the run."""
import contextlib
import glob
import html
import itertools
import json
import math
import os

import motion
from view import render
from config import atomic_write, to_dict

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7")


def show_motions(path, motions, config):
    """Write a list of (joints (T, J, 3) in metres, caption) as one player."""
    parents = motion.SKELETONS[config.data.skeleton].parents if config.data.skeleton in motion.SKELETONS else motion.SMPL_PARENTS
    render.write_player(path, [{"joints": joints, "caption": caption, "fps": config.data.fps, "parents": parents} for joints, caption in motions])


def read_log(path):
    """The entries of a log.jsonl, in order; a line that was cut short is left out."""
    entries = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
    return entries


def curve(title, series, width=560, height=200, unit="step"):
    """SVG of {name: [(step, value)]}, on a logarithmic axis if the values span more than a factor of ten."""
    points = [(x, y) for values in series.values() for x, y in values]
    x1, low, high = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)
    scale = math.log10 if low > 0 and high > 10 * low else float
    low, high = scale(low), scale(high) if high > low else scale(low) + 1

    def place(x, y):
        return f"{40 + (width - 50) * x / x1:.1f},{20 + (height - 40) * (1 - (scale(y) - low) / (high - low)):.1f}"

    lines = []
    for colour, (name, values) in zip(itertools.cycle(COLOURS), series.items()):
        every = max(1, len(values) // 400)
        lines.append(f'<polyline fill="none" stroke="{colour}" points="{" ".join(place(*p) for p in values[::every] + values[-1:])}"/>')
    names = " ".join(f'<tspan fill="{colour}">{html.escape(name)}</tspan>' for colour, name in zip(itertools.cycle(COLOURS), series))
    ends = [10**v if scale is math.log10 else v for v in (low, high)]
    digits = next((n for n in range(2, 6) if f"{ends[0]:.{n}g}" != f"{ends[1]:.{n}g}"), 6)
    return (f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}"><text x="40" y="12">{html.escape(title)}: {names}</text>'
            f'<text x="0" y="{height - 20}">{ends[0]:.{digits}g}</text><text x="0" y="26">{ends[1]:.{digits}g}</text>'
            f'<text x="40" y="{height - 4}">0</text><text x="{width - 10}" y="{height - 4}" text-anchor="end">{unit} {x1}</text>{"".join(lines)}</svg>')


def page(title, body, settings):
    """An HTML page: title, body (HTML), and the settings (plain data) to unfold at its end."""
    return f"""<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>nanoMLD run</title>
<style>:root{{color-scheme:light dark}}body{{font:15px system-ui;max-width:1200px;margin:auto;padding:1rem}}svg{{width:min(100%,560px);margin:.5rem}}
text{{font-size:12px;fill:currentColor}}pre{{overflow:auto}}iframe{{width:100%;height:70vh;border:1px solid #8888}}</style>
<h1>{html.escape(title)}</h1>{body}
<details><summary>settings</summary><pre>{html.escape(json.dumps(settings, indent=1))}</pre></details>"""


def write_report(path, log, config):
    """Draw every number of `log` (log.jsonl of a run), by stage, with the settings, into one HTML file beside the example motions."""
    entries, parts = read_log(log), []
    for stage in dict.fromkeys(entry["stage"] for entry in entries):
        mine = [entry for entry in entries if entry["stage"] == stage]
        series = {}
        for entry in mine:
            for key, value in entry.items():
                if key not in ("stage", "step"):
                    series.setdefault(key, []).append((entry["step"], value))
        groups = {}
        for key, values in series.items():  # the same quantity on train and val in one picture; noise levels in another
            title = "error by noise level" if key.startswith("error_t") else key.removeprefix("val_")
            groups.setdefault(title, {})[key] = values
        parts.append(f"<h2>{stage}</h2><div>{''.join(curve(title, group) for title, group in groups.items() if not title.startswith('val_error'))}</div>")
    examples = [os.path.basename(file) for file in sorted(glob.glob(os.path.join(os.path.dirname(path), "*-*.html")))][-2:]
    frames = "".join(f'<h2>{name}</h2><iframe src="{name}" loading="lazy"></iframe>' for name in examples)
    with atomic_write(path, "w") as file:
        file.write(page(config.train.name or config.data.dataset, "".join(parts) + frames, to_dict(config)))
