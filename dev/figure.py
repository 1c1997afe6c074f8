"""Draws docs/walkthrough.svg: one sentence on its way through the model that ships.

    python -m dev.figure            writes docs/walkthrough.svg

The colours are the model's own numbers, and the poses are the motion that
`python sample.py "a man jumps"` makes. docs/walkthrough.md explains each step.
"""
import numpy as np

from checkpoint import load_model
from config import HERE
from files import atomic_write
from motion import T2M
from words import words_of

SENTENCE, SEED = "a man jumps", 1234
WIDTH, LEFT, RIGHT = 440, 16, 424
# The card brings its own background, so that it can be read on a page of any colour.
STYLE = """
text { font: 15px system-ui, sans-serif; fill: #1f2328 } .soft { font-size: 14px; fill: #59636e }
.shape { font: 14px ui-monospace, monospace; fill: #59636e } .card { fill: #fff; stroke: #d1d9e0 }
.box { fill: #eef1f4; stroke: #818b98 } .line { fill: none; stroke: #818b98; stroke-width: 1.5 }
.body { fill: none; stroke: #b5491f; stroke-width: 3 } .n2 { fill: #1f5fa8 } .n1 { fill: #8db7e2 }
.n0 { fill: #e6eaee } .p1 { fill: #f0a97f } .p2 { fill: #b5491f }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .soft, .shape { fill: #9198a1 } .card { fill: #0d1117; stroke: #3d444d }
.box, .n0 { fill: #21262d } .body { stroke: #f0986a } .n2 { fill: #79b8ff } .n1 { fill: #31669c }
.p1 { fill: #94502f } .p2 { fill: #f0986a } }
"""


def walk():
    """The numbers of each step -> {name: array}."""
    model, seen = load_model(f"{HERE}/checkpoints/toy.pt"), []
    lengths = model.draw_lengths([SENTENCE], seed=SEED)
    features, joints = model.generate([SENTENCE], lengths=lengths, seed=SEED,
                                      callback=lambda i, t, x, x0: seen.append(x[0].numpy()))
    return {"ids": model.text_encoder.ids([SENTENCE])[0].tolist(), "latents": seen,
            "feature": model.text_encoder([SENTENCE])[0].detach().numpy(),
            "frames": ((features - model.mean) / model.std)[0].numpy(), "joints": joints[0].numpy(),
            "scale": model.config.diffusion.guidance_scale,
            "inputs": ["latent", "level", "text", "length"][:3 + model.denoiser.cfg.length_token]}


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def shape_of(feature):
    return f"(1, {len(feature)}, {feature.shape[-1]})"


def heading(y, words, shape):
    return text(LEFT, y, words) + text(RIGHT, y, shape, "shape", "end")


def boxes(y, words):
    step, svg = (RIGHT - LEFT + 5) / len(words), ""
    for i, word in enumerate(words):
        x = LEFT + i * step
        svg += f'<rect x="{x:.1f}" y="{y}" width="{step - 5:.1f}" height="30" rx="5" class="box"/>'
        svg += text(f"{x + step / 2 - 2.5:.1f}", y + 20, word, "", "middle")
    return svg


def arrow(y):
    return f'<path class="line" d="M{WIDTH / 2} {y}v16m-5 -6l5 6l5 -6"/>'


def cells(table, y, height, x=LEFT, width=RIGHT - LEFT):
    """table (R, C) -> its numbers as colours: blue below zero, orange above, five shades."""
    rows, columns = table.shape
    w, h, svg = width / columns, height / rows, ""
    shade = np.digitize(table / table.std(), (-1.2, -0.4, 0.4, 1.2))
    for level, name in enumerate(("n2", "n1", "n0", "p1", "p2")):
        path = "".join(f"M{x + c * w:.1f} {y + r * h:.1f}h{w:.1f}v{h:.1f}h-{w:.1f}"
                       for r, c in np.argwhere(shade == level))
        svg += f'<path class="{name}" d="{path}"/>'
    return svg


def poses(joints, floor, count=7):
    """joints (T, J, 3) -> `count` of the T poses side by side, seen from the front and right."""
    svg = []
    for i, t in enumerate(np.linspace(0, len(joints) - 1, count).round().astype(int)):
        body = joints[t] - joints[t, 0] * (1, 0, 1)
        across = LEFT + 26 + i * (RIGHT - LEFT - 52) / (count - 1)
        x = across + 62 * (body[:, 0] * np.cos(0.9) - body[:, 2] * np.sin(0.9))
        y = floor - 62 * body[:, 1]
        path = "".join(f"M{x[p]:.1f} {y[p]:.1f}L{x[j]:.1f} {y[j]:.1f}"
                       for j, p in enumerate(T2M.parents) if p >= 0)
        svg += [f'<path class="body" d="{path}"/>', text(across, floor + 20, t, "soft", "middle")]
    return "".join(svg) + f'<path class="line" d="M{LEFT} {floor + 3}H{RIGHT}"/>'


def draw(made):
    """The whole picture as SVG, from what `walk` returns."""
    N, D = made["latents"][0].shape
    words, frames, scale = [*words_of(SENTENCE), "end"], len(made["frames"]), made["scale"]
    svg = [heading(30, "The sentence, as word numbers", f"(1, {len(words)})"),
           boxes(40, [f"{word} {n}" for word, n in zip(words, made["ids"])]), arrow(75),
           heading(112, "What it means: the text feature", shape_of(made["feature"])),
           cells(made["feature"], 120, 16), arrow(141),
           heading(178, f"The denoiser, asked {len(made['latents'])} times", f"(2, {N}, {D})"),
           boxes(188, made["inputs"]),
           text(LEFT, 240, f"answer = {scale} × with the sentence − {scale - 1} × without",
                "soft"),
           heading(276, "The latent, from noise to motion", f"(1, {N}, {D})")]
    y = 286
    for i in (0, 12, 24, 36, len(made["latents"]) - 1):
        svg += [text(LEFT, y + 14, f"step {i + 1}", "soft"),
                cells(made["latents"][i], y, 18, LEFT + 64, RIGHT - LEFT - 64)]
        y += 25
    svg += [arrow(y), heading(y + 37, "Frames: time runs to the right", f"(1, {frames}, 263)"),
            cells(made["frames"][:, ::11].T, y + 46, 96), arrow(y + 147),
            heading(y + 184, "Joints, in metres", f"(1, {frames}, 22, 3)"),
            poses(made["joints"], y + 320)]
    height = y + 358
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    card = f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8" class="card"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><style>{STYLE}</style>'
    return "\n".join([head, card, *svg, "</svg>\n"])


if __name__ == "__main__":
    with atomic_write(f"{HERE}/docs/walkthrough.svg", "w") as file:
        file.write(draw(walk()))
