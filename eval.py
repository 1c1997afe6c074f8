"""Measure a model: the field's table with 95% intervals, on screen, in eval.json and in eval.html.

    python eval.py --ckpt out/toy/model.pt                          the T2M protocol, 20 replications, test clips
    python eval.py --ckpt out/toy/model.pt --eval.replications=3 --eval.mm_texts=20                        quicker
    python eval.py --ckpt out/toy/model.pt --diffusion.guidance_scale=4 --diffusion.num_inference_steps=20
    python eval.py --ckpt deps/mld --assets.clip_path=deps/clip-vit-large-patch14                published weights
    torchrun --standalone --nproc_per_node=2 eval.py --ckpt out/toy/model.pt             the same numbers, sooner

The judge is the dataset's published evaluator where its files are (see evaluators.py), else our own, which
`python train.py --dataset NAME --stage evaluator` trains; --evaluator FILE names one. With the published judge of
HumanML3D or KIT, real motion must score as published before a model is measured; --no-gate goes on regardless.

Rows: real motion (its FID is to other crops of the same clips), the VAE's reconstruction, and what the model generates
for the clips' captions (actions, or nothing) and lengths. All that is drawn (crops, captions, noise, groups, pairs) is
a function of eval.seed, the replication and the clip.
"""
import argparse
import html
import json
import os
import platform
import re
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import checkpoint
import data
from judge import evaluators
from judge import metrics
import motion
from view import report
from config import SAMPLING, Config, atomic_write, set_value, to_dict, validate
from config import read_assets

KNOWN = {  # what real motion scores under the published evaluators, with its interval
    "humanml3d": {"R@1": (.511, .003), "R@2": (.703, .003), "R@3": (.797, .002), "MM-Dist": (2.974, .008),
                  "Diversity": (9.503, .065)},
    "kit": {"R@1": (.424, .005), "R@2": (.649, .006), "R@3": (.779, .006), "MM-Dist": (2.788, .012),
            "Diversity": (11.08, .097)}}
REAL, RECONSTRUCTION, MODEL = "real motion", "VAE reconstruction", "generated"
ACTOR_PAIRS = 200, 20  # of Diversity; of MultiModality, for each action

# ----------------------------------------------------------------------------------------------------------------------
# The work, cut into jobs that any process can do: what a job draws depends on the job alone


class Evaluation:
    def __init__(self, model, judge, pack, device, rank=0, world=1):
        self.model, self.judge, self.pack, self.config, self.device = model, judge, pack, model.config, device
        self.rank, self.world, self.kind = rank, world, model.config.denoiser.condition
        self.rest = None if pack.rest is None else torch.from_numpy(pack.rest).to(device)
        self.mean, self.std = (torch.from_numpy(x).to(device) for x in (pack.mean, pack.std))

    def batches(self, split):
        d, e = self.config.data, self.config.eval
        return data.Batches(self.pack, split, e.batch_size, seed=e.seed, min_length=d.min_length, max_length=d.max_length,
                            max_frames=d.max_frames, unit_length=d.unit_length, labelled=self.kind == "action")

    def collect(self, jobs, work, title):
        """[work(*job) for each job], shared out over the processes; each of them gets all of it, in the jobs' order."""
        bar = tqdm(jobs[self.rank::self.world], title, unit="batch", disable=True if self.rank else None)
        mine = [work(*job) for job in bar]
        if self.world == 1:
            return mine
        shares = [None] * self.world
        dist.all_gather_object(shares, mine)
        return [shares[i % self.world][i // self.world] for i in range(len(jobs))]

    def seeds(self, replication, items, sample=0):
        return [self.config.eval.seed + 1_000_003 * ((1000 * sample + replication) * len(self.pack) + i) for i in items]

    def judged(self, name, features, lengths, seeds, joints=None):
        """Motions -> {name: embeddings, name/logp: of the actions, name/...: physical quality}, a row each."""
        rows, logits = self.judge.embed(features, lengths, seeds)
        if not rows.isfinite().all():
            raise ValueError(f"{name or MODEL}: the evaluator's embeddings are not finite; are the motions or its weights NaN?")
        out = {name: rows.float().cpu().numpy()}
        if logits is not None:
            out[f"{name}/logp"] = logits.float().log_softmax(-1).cpu().numpy()
        if joints is not None:
            values = [self.physics(j[:n]) for j, n in zip(joints.cpu().numpy(), lengths.tolist())]
            out |= {f"{name}/{key}": np.array([v[key] for v in values]) for key in values[0]}
        return out

    def physics(self, joints):
        values = {"jerk m/s3": metrics.jerk(joints, self.pack.fps)}
        if skeleton := motion.SKELETONS.get(self.pack.skeleton):  # SMPL's know no floor; their bones cannot change
            toes = [foot[1] for foot in skeleton.feet]
            values |= {"skating cm/s": metrics.foot_skating(joints, toes, self.pack.fps),
                       "penetration mm": metrics.floor_penetration(joints),
                       "bone drift mm": metrics.bone_drift(joints, skeleton.parents)}
        return values

    def clips(self, batches, replication, step):
        """-> batch, features (B, T, F) as they are, lengths (B,), seeds"""
        batch = batches.batch(replication, step)
        features = batch["features"].to(self.device) * self.std + self.mean
        return batch, features, batch["lengths"].to(self.device), self.seeds(replication, batch["items"].tolist())

    @torch.inference_mode()
    def real(self, batches, replication, step):
        batch, features, lengths, seeds = self.clips(batches, replication, step)
        out = {"items": batch["items"].numpy(), "labels": batch["actions"].numpy(), "lengths": batch["lengths"].numpy(),
               "texts": np.array(batch["texts"], object)}
        if self.judge.reads_text:
            out["text"] = self.judge.embed_text(batch["texts"], batch["tokens"]).float().cpu().numpy()
        out |= self.judged(REAL, features, lengths, seeds, motion.to_metres(features, self.pack.skeleton, self.rest))
        return out | self.judged("again", *self.clips(batches, self.config.eval.replications + replication, step)[1:])

    @torch.inference_mode()
    def made(self, batches, replication, step):
        batch, features, lengths, seeds = self.clips(batches, replication, step)
        out = self.judged(MODEL, *self.generate(batch["texts"], batch["actions"], lengths, seeds))
        if self.model.vae:
            recon, joints = self.model.decode_latent(self.model.encode_motion(features, lengths), lengths)
            true = motion.to_metres(features, self.pack.skeleton, self.rest)
            errors = [metrics.reconstruction_errors(a[:n], b[:n])
                      for a, b, n in zip(true.cpu().numpy(), joints.cpu().numpy(), lengths.tolist())]
            out |= self.judged(RECONSTRUCTION, recon, lengths, seeds, joints)
            out |= {f"{RECONSTRUCTION}/{key} mm": np.array([e[key] for e in errors]) for key in errors[0]}
        return out

    def generate(self, texts, actions, lengths, seeds):
        """-> features, lengths, seeds, joints: what `judged` takes"""
        given = texts if self.kind == "text" else None, actions if self.kind == "action" else None
        features, joints = self.model.generate(*given, lengths=lengths, seed=seeds)
        return features, lengths, seeds, joints

    @torch.inference_mode()
    def samples(self, replication, item, text, length):
        """eval.mm_samples motions of one text -> (samples, D)"""
        n = self.config.eval.mm_samples
        seeds = [self.seeds(replication, [item], 1 + k)[0] for k in range(n)]
        lengths = torch.full((n,), int(length), device=self.device)
        return self.judged("", *self.generate([text] * n, None, lengths, seeds)[:3])[""]


# ----------------------------------------------------------------------------------------------------------------------
# Numbers


def score(run, name, rows, reference, replication):
    """The numbers of one replication of a row of the table. rows {name: array}; reference: the motions FID is to."""
    e, x, out, rng = run.config.eval, rows[name], {}, np.random.default_rng([run.config.eval.seed, replication])
    order, labels = rng.permutation(len(x)), rows["labels"]
    if "text" in rows and run.kind == "text":
        precision, distance = metrics.matching(rows["text"][order], x[order], e.group)
        out |= {f"R@{k}": p for k, p in enumerate(precision, 1)} | {"MM-Dist": distance}
    out["FID"] = metrics.fid(x, rows[reference])
    if run.kind == "action":
        out["Diversity"] = metrics.diversity(x, *rng.integers(len(x), size=(2, ACTOR_PAIRS[0])))
        out["MultiModality"] = metrics.diversity(x, *metrics.draw_action_pairs(rng, labels, ACTOR_PAIRS[1]))
    else:
        out["Diversity"] = metrics.diversity(x, *metrics.draw_pairs(rng, len(x), e.diversity_pairs))
    if f"{name}/logp" in rows and (labels >= 0).any() and (run.kind != "none" or name != MODEL):
        said, names = rows[f"{name}/logp"].argmax(1)[labels >= 0], [action.split("/") for action in run.pack.actions]
        labels = labels[labels >= 0]
        out["accuracy"] = np.mean(said == labels)
        if len(names[0]) > 1 and len({len(parts) for parts in names}) == 1:  # walk/tired: each part apart, too
            out |= {f"accuracy {k + 1}": np.mean([names[a][k] == names[b][k] for a, b in zip(said, labels)])
                    for k in range(len(names[0]))}
    for key, values in rows.items():
        if key.startswith(f"{name}/") and not key.endswith("/logp") and np.isfinite(values).any():
            out[key.partition("/")[2]] = np.nanmean(values)
    return out


def gate(run, row):
    """Hold the row of real motion, {metric: (mean, interval)}, against the published one -> None, or what is wrong."""
    known, files, here = KNOWN[run.config.data.dataset], run.judge.files, np.sqrt(20 / run.config.eval.replications)
    wrong = [key for key, (mean, half) in known.items() if not abs(row[key][0] - mean) <= half * (1 + here)]  # theirs is of 20
    ratio = float(np.median(run.pack.std[:4] / run.judge.std[:4].cpu().numpy()))
    if not 15 < ratio < 40:
        cause = (f"{files['meta']}: its std should be 25 times smaller than the dataset's for the root, it is "
                 f"{ratio:.2g} times")
    elif "Diversity" in wrong:
        cause = f"{files['weights']}, or the motion in {run.pack.path} ({len(run.batches('test').items)} test clips)"
    else:
        cause = f"the texts' part-of-speech tokens, or {files['glove']} and the two files beside it"
    numbers = ", ".join(f"{key} {row[key][0]:.3f} instead of {known[key][0]:g}" for key in wrong)
    return f"Real motion does not score as published: {numbers}. Probably wrong: {cause}." if wrong else None


def evaluate(run, use_gate):
    """-> table {row: {metric: (mean, half interval)}}, notes, the rows of the first replication."""
    e, table, notes, rng = run.config.eval, {}, [], np.random.default_rng
    both = run.config.data.dataset == "uestc" and run.kind == "action"  # ACTOR measures UESTC on its train split, too
    for split in ("train", "test") if both else (e.split,):
        batches, replications = run.batches(split), range(e.replications)
        jobs = [(batches, r, step) for r in replications for step in range(len(batches))]

        def do(work, title):
            done, n = run.collect(jobs, work, title), len(batches)
            return [{key: np.concatenate([part[key] for part in done[r * n:(r + 1) * n]]) for key in done[0]}
                    for r in replications]

        def add(name, reference):
            values = [score(run, name, rows[r], reference, r) for r in replications]
            table[f"{name} ({split})" if both else name] = {
                key: metrics.interval([v[key] for v in values if key in v]) for key in values[0]}

        rows = do(run.real, "real motion")
        add(REAL, "again")
        if isinstance(run.judge, evaluators.T2MJudge) and not (run.config.data.dataset in KNOWN and split == "test"):
            notes.append(f"NO GATE: what real motion scores on the {split} clips of {run.pack.name} is not published.")
        elif isinstance(run.judge, evaluators.T2MJudge):
            if problem := gate(run, table[REAL]):
                if use_gate:
                    raise ValueError(f"{problem} No model is measured by such a judge; --no-gate goes on all the same.")
                notes.append(f"GATE NOT PASSED, these numbers are not the field's. {problem}")
        rows = [row | more for row, more in zip(rows, do(run.made, "the model's motion"))]
        for name in (RECONSTRUCTION, MODEL):
            if name in rows[0]:
                add(name, REAL)
        if f"{MODEL}/logp" in rows[0] and run.kind != "none":
            labels, said = (np.concatenate(parts) for parts in zip(*((row["labels"], row[f"{MODEL}/logp"].argmax(1)) for row in rows)))
            poor = [f"{name} ({np.mean(said[labels == a] == a):.0%} of {np.sum(labels == a)})" for a, name in enumerate(run.pack.actions)
                    if a in labels and np.mean(said[labels == a] == a) < 0.5]
            notes += [f"Generated for the {split} clips, recognised in less than half: {', '.join(poor)}."] * bool(poor)
        if run.kind == "text":
            jobs = [(r, int(row["items"][k]), row["texts"][k], row["lengths"][k]) for r, row in enumerate(rows)
                    for k in rng([e.seed, r, 1]).permutation(len(row["items"]))[:e.mm_texts]]
            x = np.stack(run.collect(jobs, run.samples, "MultiModality"))
            x = x.reshape(e.replications, -1, *x.shape[1:])  # (replications, texts, samples, D)
            pairs = [metrics.draw_pairs(rng([e.seed, r, 2]), e.mm_samples, e.mm_pairs) for r in replications]
            table[MODEL]["MultiModality"] = metrics.interval([metrics.multimodality(a, *b) for a, b in zip(x, pairs)])
        if split not in run.pack.splits:
            notes.append(f"There is no {split} split: these are the train clips.")
        if run.kind == "action" and (run.pack.labels < 0).any():
            notes.append("Clips without an action are left out.")
        n, D = rows[0][REAL].shape
        notes += [f"FID is of {n} clips in {D} dimensions: comparable with values of as many clips only."] * (n <= D)
        few = n < e.diversity_pairs and run.kind != "action"
        notes += [f"Diversity is of {n} pairs: there are no more clips."] * few
    return table, notes, rows[0]


# ----------------------------------------------------------------------------------------------------------------------
# Speed and size


def sizes(model, text):
    """{part: {"parameters", "GFLOPs"}} for one motion of the longest length; the denoiser's are those of all steps."""
    kind, steps = model.config.denoiser.condition, model.config.diffusion.num_inference_steps
    given = [text] if kind == "text" else None, [0] if kind == "action" else None

    def gflops(call, *args, **named):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            call(*args, **named)
        return counter.get_total_flops() / 1e9

    encode = gflops(model.conditions, *given, 1)
    settings = {"lengths": [model.config.data.max_frames], "num_inference_steps": 1, "seed": 0}
    latent, whole = (gflops(model.generate, *given, latents=stop, **settings) for stop in (True, False))
    found = {"text encoder": (model.text_encoder, encode), "denoiser": (model.denoiser, steps * (latent - encode)),
             "VAE (GFLOPs: decoder)": (model.vae, whole - latent)}
    return {part: {"parameters": sum(p.numel() for p in net.parameters()), "GFLOPs": count}
            for part, (net, count) in found.items() if net is not None}


def speed(run, rows):
    """AITS: the mean seconds from one sentence (or action) to its motion at batch 1, text encoding included."""
    seconds = []
    for k in [0] * 3 + list(range(min(20, len(rows["items"])))):  # three to warm up
        start = time.perf_counter()
        run.generate([rows["texts"][k]], rows["labels"][k:k + 1], torch.from_numpy(rows["lengths"][k:k + 1]), [k])
        if run.device.type != "cpu":
            torch.get_device_module(run.device).synchronize()
        seconds.append(time.perf_counter() - start)
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    name = {"cpu": lambda: cpu, "cuda": lambda: torch.cuda.get_device_name(run.device)}.get(run.device.type, lambda: str(run.device))
    return {"seconds": float(np.mean(seconds[3:])), "motions": len(seconds) - 3, "torch": torch.__version__, "device": name()}


# ----------------------------------------------------------------------------------------------------------------------
# Output


def cell(value):
    """(mean, half interval or None), or None where there is no such number -> words."""
    return "-" if value is None else f"{value[0]:.3f}" + ("" if value[1] is None else f"+-{value[1]:.3f}")


def lines_of(table):
    """The table as lines: first what the judge says, then what the joints say."""
    names = list(dict.fromkeys(key for row in table.values() for key in row))
    physical = [name for name in names if name.endswith(("mm", "cm/s", "m/s3"))]
    for columns in ([name for name in names if name not in physical], physical):
        cells = [["", *columns]] + [[name, *(cell(row.get(c)) for c in columns)] for name, row in table.items()]
        wide = [max(map(len, column)) for column in zip(*cells)]
        yield from ("  ".join([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])]) for row in cells)
        yield ""


def distances(run, name, rows):
    """How far each motion is from what was asked (N,): from its text; -log p of its action; or of the nearest clip."""
    if run.kind == "text" and "text" in rows:
        return np.linalg.norm(rows["text"] - rows[name], axis=1)
    if run.kind == "action" and f"{name}/logp" in rows:
        return -rows[f"{name}/logp"][np.arange(len(rows["labels"])), rows["labels"]]
    return np.array([np.linalg.norm(rows["again"] - x, axis=1).min() for x in rows[name]])


def write(run, folder, result, lines, rows):
    """eval.json, eval.html, and its examples in eval-examples.html."""
    far, shown = {name: distances(run, name, rows) for name in (REAL, RECONSTRUCTION, MODEL) if name in rows}, []
    order = np.argsort(far[MODEL])
    for word, k in zip(("best", "median", "worst"), order[[0, len(order) // 2, -1]]):
        item, length = rows["items"][k], torch.from_numpy(rows["lengths"][k:k + 1])
        asked = {"text": rows["texts"][k], "action": run.pack.action(item), "none": "no condition"}[run.kind]
        joints = run.generate([rows["texts"][k]], rows["labels"][k:k + 1], length, run.seeds(0, [int(item)]))[3][0]
        shown.append((joints.cpu().numpy(), f"{word}: {asked}"))
        shown.append((run.pack.joints(item)[:length], f"real: {run.pack.ids[item]}"))
    report.show_motions(os.path.join(folder, "eval-examples.html"), shown, run.config)
    curves = []
    for key in ("", "/jerk m/s3", "/skating cm/s", "/mpjpe mm"):
        found = {name: far[name] if not key else rows[name + key] for name in far if name + key in rows}
        found = {name: list(enumerate(np.sort(x[np.isfinite(x)]).tolist(), 1)) for name, x in found.items()}
        if any(found.values()):
            curves.append(report.curve(key[1:] or "distance from what was asked",
                                       {name: points for name, points in found.items() if points}, unit="clip"))
    body = (f"<pre>{html.escape(chr(10).join(lines))}</pre><div>{''.join(curves)}</div><h2>best, median and "
            'worst, each beside its real clip</h2><iframe src="eval-examples.html" loading="lazy"></iframe>')
    page = report.page(f"{result['checkpoint']} on {result['dataset']}", body, result["settings"])
    for name, text in (("eval.json", json.dumps(result, indent=1)), ("eval.html", page)):
        with atomic_write(os.path.join(folder, name), "w") as file:
            file.write(text)


def measure(args, words):
    given, words = {f"eval.{name}": value for name, value in (("device", args.device),) if value}, list(words)
    given |= read_assets(args.cfg_assets) if args.cfg_assets else {}
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not re.fullmatch(r"--\w+\.\w+", word.partition("=")[0]) or not (equals or words):
            raise ValueError(f"Unknown flag {word!r}; settings are given like --eval.replications=3.")
        given[key] = value if equals else words.pop(0)
    settings = Config()
    for key, value in given.items():
        set_value(settings, key, value)
        section, name = key.split(".")
        if not (section in ("eval", "assets") or section == "diffusion" and name in SAMPLING
                or key in ("data.min_length", "data.max_length", "evaluator.kind", "train.out")):
            raise ValueError(f"--{key} is a matter of training, which is over; diffusion's {', '.join(SAMPLING)} can be changed, "
                             "and eval's and assets' settings.")
    model = checkpoint.load_model(args.ckpt, settings.assets)
    c = model.config
    for key, value in given.items():
        set_value(c, key, value)
    c.data.dataset = args.dataset or c.data.dataset
    validate(c)
    rank, world, local = (int(os.environ.get(key, n)) for key, n in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = checkpoint.find_device(c.eval.device, local)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    pack = data.open_pack(c)
    judge = evaluators.find(c, pack, args.evaluator, device)
    conditioned = c.denoiser.condition == "action"
    for who, known in (("model", model.actions if conditioned else []), ("evaluator", getattr(judge, "actions", []))):
        if known and list(known) != list(pack.actions) and not known[0].isdigit():
            raise ValueError(f"The {who} knows other actions ({', '.join(known[:4])} ...) than {pack.path} has "
                             f"({', '.join(pack.actions[:4])} ...); measure on the dataset that it was trained on.")
    captions = pack.captions(pack.indices(c.eval.split)[0])
    parts = sizes(model, captions[0].text if captions else "")  # on the CPU, where every operation can be counted
    run = Evaluation(model.to_precision(args.precision).to(device), judge, pack, device, rank, world)
    table, notes, rows = evaluate(run, not args.no_gate)
    if rank:
        return
    own = " Its numbers compare with no published table." if isinstance(judge, evaluators.OwnJudge) else ""
    aits = speed(run, rows)
    lines = [*lines_of(table), f"Judge: {judge.title}.{own}", *notes,
             f"{c.eval.replications} replication(s) of {len(rows['items'])} clips of {pack.name}; mean+-95% interval.",
             f"AITS {aits['seconds']:.4f} s at batch 1, {c.diffusion.num_inference_steps} steps, {args.precision}, on {aits['device']}."]
    lines += [f"{part}: {n['parameters'] / 1e6:.2f} M parameters, {n['GFLOPs']:.3g} GFLOPs"
              for part, n in parts.items()]
    print("\n".join(lines))
    folder = args.out or (args.ckpt if os.path.isdir(args.ckpt) else os.path.dirname(args.ckpt))
    result = {"checkpoint": os.path.basename(os.path.normpath(args.ckpt)), "dataset": pack.name, "split": c.eval.split if c.eval.split in pack.splits else "train",
              "precision": args.precision, "judge": judge.title, "rows": table, "notes": notes, "aits": aits, "parts": parts,
              "settings": {key: value for key, value in to_dict(c).items() if key != "assets"}}
    write(run, folder, result, lines, rows)
    print(f"wrote {os.path.join(folder, 'eval.html')} and eval.json beside it")


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="model.pt of train.py, or published weights")
    parser.add_argument("--dataset", help="packed dataset to measure on; otherwise the model's own")
    parser.add_argument("--evaluator", help="evaluator_model.pt of train.py --stage evaluator")
    parser.add_argument("--out", help="folder for eval.json and eval.html; otherwise the checkpoint's")
    parser.add_argument("--precision", choices=("float32", "bf16", "int8"), default="float32", help="of the model's weights, as sample.py takes it")
    parser.add_argument("--device", help="cpu, cuda, mps; otherwise a GPU where there is one")
    parser.add_argument("--cfg_assets", help="file of `name = literal` lines: paths, or any eval.key")
    parser.add_argument("--no-gate", action="store_true", help="go on although real motion does not score as published")
    try:
        measure(*parser.parse_known_args(argv))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
