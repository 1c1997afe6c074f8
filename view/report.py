"""A training run as one HTML page: its curves, its example motions and its settings.

    write_report("out/toy/report.html", "out/toy/log.jsonl", config)

eval.py builds its page from the same parts: curve, figure and page.
"""
import html
import itertools
import json
import math
import re
import sys
from pathlib import Path

import motion
from view import render
from config import to_dict
from files import atomic_write

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7")
STAGES = {"vae": "Stage 1: VAE", "diffusion": "Stage 2: diffusion", "distill": "Student",
          "evaluator": "Evaluator"}
FALLS = "Both curves fall and level off, val a little above train."
FITS = "Falls quickly at first, then slowly until the end."
PICTURES = {  # what is logged: title, label of the vertical axis, and what good looks like
    "loss": ("Loss", "loss", "Both curves fall and level off. If val rises while train still "
             "falls, the model is memorising its training clips."),
    "features": ("Error of the features", "error", FITS),
    "joints": ("Error of the joints", "error", FITS),
    "velocity": ("Error of the joints' speed", "metres a frame", "Falls until the end. Where it "
                 "stays high, feet that should stand slide."),
    "acceleration": ("Second differences of joints", "m/frame^2", FALLS),
    "energy": ("Speed, suddenness and jerk of joints over a clip", "squared log ratio",
               "Falls. It counts from vae.sharpen_from on, as the next ones do."),
    "spectrum": ("Strength of movements by pitch and time", "of 5 cm", FALLS),
    "power": ("Strength of a clip's movements by pitch", "squared log ratio", FALLS),
    "bones": ("Directions of bones", "of a unit vector", FALLS),
    "head": ("Directions of neck and head", "of a unit vector", FALLS),
    "kl": ("KL divergence to the unit Gaussian", "KL", "Settles clearly above zero. At zero the "
           "latent would say nothing about the motion."),
    "mpjpe_mm": ("Reconstruction error (MPJPE)", "mm", "The mean distance between a joint and its "
                 "reconstruction falls and levels off at a few centimetres or less."),
    "error_t": ("Denoising error by noise level", "squared error", "Every level falls, from t0 "
                "(nearly clean) to t3 (nearly pure noise), and val stays close to train."),
    "sampled_std_ratio": ("Spread of samples over that of real latents", "ratio", "Ends near 1. "
                          "Far below, samples are all alike; far above, sampling diverges."),
    "contrast": ("Contrastive loss", "cross-entropy", FALLS),
    "actions": ("Action loss", "cross-entropy", FALLS),
    "accuracy": ("Action accuracy", "share", "Both curves rise towards 1, val a little below."),
    "length_loss": ("Length loss", "cross-entropy", "Falls and levels off. It cannot reach zero, "
                    "because one description fits motions of many lengths."),
    "lr": ("Learning rate", "rate", "Rises during the warm-up, then follows its schedule."),
    "grad_norm": ("Gradient norm before clipping", "norm", "Settles after the warm-up. If it "
                  "jumps whenever the loss does, a lower learning rate helps."),
    "logit": ("Largest attention logit before its limit", "logit", "Stays within a few times its "
              "limit, max_logit. Logits of thousands pick one token, and nothing is learnt there."),
    "loading": ("Share of the time that making batches took", "share", "Stays near 0. On a GPU it "
                "goes on beside the GPU's work, and may be up to 1."),
    "frames_per_s": ("Training speed", "frames/s", "Stays level. Where it drops, the machine was "
                     "busy with something else or was waiting for data."),
}


def show_motions(path, motions, config):
    """Write a list of (joints (T, J, 3) in metres, caption) as one player."""
    skeleton = motion.SKELETONS.get(config.data.skeleton)
    parents = skeleton.parents if skeleton else motion.SMPL_PARENTS
    body = {"fps": config.data.fps, "parents": parents}
    render.write_player(path, [{"joints": joints, "caption": caption} | body
                               for joints, caption in motions])


def read_log(path):
    """The entries of a log.jsonl, in order: dicts of a stage, a step and numbers. Lines that are
    none, or were cut short, are left out, and counted in a warning unless it is the last one."""
    entries, odd = [], []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if is_entry(entry):
                entries.append(entry)
            else:
                odd.append(number)
    if odd and odd != [number]:
        print(f"warning: {path}, line {odd[0]}: this is no entry of a training log; {len(odd)} "
              "such line(s) are left out", file=sys.stderr)
    return entries


def is_entry(entry):
    """Whether it is a dict of a stage, whose name is one word, of a step, and of numbers that a
    curve can show."""
    def can_be_shown(value):
        usual = type(value) in (int, float) and (not value or 1e-300 < abs(value) < 1e300)
        return usual or type(value) is float and not math.isfinite(value)

    return (isinstance(entry, dict) and type(entry.get("stage")) is str
            and re.fullmatch(r"\w+", entry["stage"]) is not None
            and type(entry.get("step")) is int and 0 < entry["step"] < 2**53
            and all(can_be_shown(value) for key, value in entry.items() if key != "stage"))


# --------------------------------------------------------------------------------------------------
# Curves


def _ticks(low, high):
    """About five round numbers; the first is at most `low`, the last at least `high`."""
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(n * size for n in (1, 2, 5, 10) if n * size > 0.2499 * (high - low))
    return [n * step for n in range(math.floor(low / step), math.ceil(high / step - 1e-6) + 1)]


def _log_ticks(low, high):
    """The same in equal ratios: 1, 2, 5, 10 ..., or powers of ten if those would be too many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if high < 150 * low else (1,)
    ticks = [n * 10.0**k for k in range(first, last + 1, 1 + (last - first) // 6) for n in steps]
    begin = max(i for i, tick in enumerate(ticks) if tick <= low * 1.0001)
    end = next((i for i, tick in enumerate(ticks) if tick >= high * 0.9999), len(ticks) - 1)
    return ticks[begin:end + 1]


def curve(title, series, width=560, height=200, unit="step", label=""):
    """SVG of {name: [(x, y)]}; `unit` names the horizontal axis, `label` the vertical one.

    The vertical axis starts at zero, so that a curve that hardly changes looks flat. It is
    logarithmic if the values are positive and span more than a factor of ten. A name that begins
    with "val" is drawn dashed, "val NAME" in the colour of NAME.
    """
    series = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    xs, ys = zip(*itertools.chain(*series.values(), () if any(series.values()) else [(1, 0)]))
    scale, ticks = float, _ticks(min(0, *ys), max(0, *ys) or 1)
    if min(ys) > 0 and max(ys) > 10 * min(ys):
        scale, ticks = math.log10, _log_ticks(min(ys), max(ys))
    left, right, top, bottom, end = 70, width - 26, 28, height - 38, max(xs)
    low, high = scale(min(ticks[0], *ys)), scale(max(ticks[-1], *ys))

    def place(point):
        across, up = point[0] / end, (scale(point[1]) - low) / (high - low)
        return round(left + (right - left) * across, 1), round(bottom - (bottom - top) * up, 1)

    drawn, legend, colours, words = [], [], {}, html.escape(title)
    for tick in ticks:
        _, y = place((0, tick))
        drawn.append(f'<path d="M{left} {y}H{right}" stroke="#8885"/><text x="{left - 6}" '
                     f'y="{y + 4}" text-anchor="end">{tick:,.10g}</text>')
    for tick in (tick for tick in _ticks(0, end) if tick <= end):
        x, _ = place((tick, ys[0]))
        drawn.append(f'<path d="M{x} {bottom}v4" stroke="#888"/><text x="{x}" y="{bottom + 16}" '
                     f'text-anchor="middle">{tick:,.10g}</text>')
    for name, points in series.items():
        plain = name.removeprefix("val ")
        if plain not in colours:
            colours[plain] = COLOURS[len(colours) % len(COLOURS)]
            legend.append(f'<tspan fill="{colours[plain]}">{html.escape(plain)}</tspan>')
        places = [place(point) for point in points[::max(1, len(points) // 400)] + points[-1:]]
        line, dash = " ".join(f"{x},{y}" for x, y in places), "5 3" if name[:3] == "val" else "none"
        drawn.append(f'<polyline fill="none" stroke="{colours[plain]}" stroke-width="1.5" '
                     f'stroke-dasharray="{dash}" points="{line}"/>')
        if len(points) == 1:  # a line of one point cannot be seen
            (x, y), *_ = places
            drawn.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colours[plain]}"/>')
    legend += ["(val dashed)"] * any(name.startswith("val ") for name in series)
    across, down = (left + right) / 2, (top + bottom) / 2
    return (f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{words}">'
            f'<text x="2" y="13" font-weight="600">{words}</text>'
            f'<text x="{right}" y="13" text-anchor="end">{" ".join(legend)}</text>'
            f'<text transform="translate(11 {down}) rotate(-90)" text-anchor="middle">'
            f'{html.escape(label)}</text><text x="{across}" y="{height - 4}" '
            f'text-anchor="middle">{html.escape(unit)}</text>{"".join(drawn)}</svg>')


# --------------------------------------------------------------------------------------------------
# The page


STYLE = """
:root { color-scheme: light dark }
body { max-width: 1240px; margin: auto; padding: 1rem; font: 15px/1.45 system-ui, sans-serif }
svg { width: min(100%, 560px) } svg text { font-size: 12px; fill: currentColor }
.pictures { display: grid; gap: 1.5rem;
            grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)) }
figure { margin: 0 } figcaption { opacity: .75; font-size: 13px }
iframe { width: 100%; height: min(70vh, 900px); border: 1px solid #8888; border-radius: 6px }
pre { overflow: auto } summary { margin: 1.5rem 0 .5rem; cursor: pointer; font-weight: 600 }
table { border-collapse: collapse } th, td { text-align: left; border-bottom: 1px solid #8884 }
td { padding: .15rem 1.5rem .15rem 0; overflow-wrap: anywhere } th { padding-top: .8rem }
"""


def figure(picture, words):
    """An SVG with a sentence under it."""
    return f"<figure>{picture}<figcaption>{html.escape(words)}</figcaption></figure>"


def page(title, body, settings):
    """An HTML page: title, body (HTML), and a table of the settings to unfold at its end."""
    rows = []
    for section, values in settings.items():
        rows.append(f'<tr><th colspan="2">{html.escape(section)}</th></tr>')
        rows += [f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>"
                 for key, value in values.items()]
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}'
            '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>{body}<details><summary>Settings"
            f'</summary><table>{"".join(rows)}</table></details></html>\n')


def _pictures(entries):
    """Every number of one stage's entries, with train and val in the same picture."""
    groups = {}
    for entry in entries:
        for key, value in entry.items():
            if key in ("stage", "step"):
                continue
            name, split = key.removeprefix("val_"), "val" if key.startswith("val_") else "train"
            if name.startswith("error_t"):  # error_t0 ... error_t3 are four curves of one picture
                level = name.removeprefix("error_")
                name, split = "error_t", level if split == "train" else f"val {level}"
            groups.setdefault(name, {}).setdefault(split, []).append((entry["step"], value))
    order = list(PICTURES)
    for name in sorted(groups, key=lambda name: order.index(name) if name in order else -1):
        title, label, good = PICTURES.get(name, (name, name, FALLS))
        yield figure(curve(title, groups[name], width=400, height=230, label=label), good)


def _motions(folder, stage, last):
    """The stage's players up to step `last`: the newest inside the page, the others as links."""
    found = {}
    for path in folder.glob(f"{stage}-*.html"):
        step = re.fullmatch(rf"{re.escape(stage)}-(\d+)\.html", path.name)
        if step and int(step[1]) <= last:  # a later one is of a longer run that was overwritten
            found[int(step[1])] = path
    if not found:
        return ""
    links = [f'<a href="{path.name}">step {step}</a>' for step, path in sorted(found.items())]
    newest = max(found)
    player = html.escape(found[newest].read_text(encoding="utf-8"))  # the page can travel alone
    return (f"<h3>Motions at step {newest}</h3><p>Each in a page of its own: {', '.join(links)}</p>"
            f'<iframe title="Motions of {stage} at step {newest}" sandbox="allow-scripts" '
            f'srcdoc="{player}"></iframe>')


def write_report(path, log, config):
    """Write a run's report beside its players, STAGE-STEP.html: for each stage every number of
    `log` (the run's log.jsonl) and the motions of the newest player; then the settings."""
    entries, parts = read_log(log), []
    for stage in dict.fromkeys(entry["stage"] for entry in entries):
        own = [entry for entry in entries if entry["stage"] == stage]
        parts.append(f"<h2>{html.escape(STAGES.get(stage, stage))}</h2>"
                     f'<div class="pictures">{"".join(_pictures(own))}</div>')
        parts.append(_motions(Path(path).parent, stage, max(entry["step"] for entry in own)))
    title = config.train.name or config.data.dataset
    with atomic_write(path, "w") as file:
        file.write(page(f"Training run: {title}", "".join(parts), to_dict(config)))
