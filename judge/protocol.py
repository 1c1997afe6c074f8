"""How a model is measured: its rows of the field's table, replication by replication.

Rows: real motion, whose FID is to other crops of the same clips; the VAE's reconstruction; and what
the model generates for the clips' captions (or actions, or nothing) and lengths.

All that is random (crops, captions, noise, groups, pairs) depends on eval.seed, the replication and
the clip alone, so the numbers are the same however many processes share the work.
"""
import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import data
import motion
from judge import metrics, sharpness
from judge.published import T2MJudge

KNOWN = {  # what real motion scores with the published evaluators, with its interval
    "humanml3d": {"R@1": (.511, .003), "R@2": (.703, .003), "R@3": (.797, .002),
                  "MM-Dist": (2.974, .008), "Diversity": (9.503, .065)},
    "kit": {"R@1": (.424, .005), "R@2": (.649, .006), "R@3": (.779, .006),
            "MM-Dist": (2.788, .012), "Diversity": (11.08, .097)}}
REAL, RECONSTRUCTION, MODEL = "real motion", "VAE reconstruction", "generated"
ACTOR_PAIRS = 200, 20  # of Diversity; of MultiModality, for each action


def to_numpy(x):
    return x.float().cpu().numpy()


class Evaluation:
    """A model, a judge and a dataset; its work is cut into jobs that any process can do."""

    def __init__(self, model, judge, pack, device, rank=0, world=1):
        self.model, self.judge, self.pack, self.device = model, judge, pack, device
        self.config, self.rank, self.world = model.config, rank, world
        self.kind = model.config.denoiser.condition
        self.rest = None if pack.rest is None else torch.from_numpy(pack.rest).to(device)
        self.mean, self.std = (torch.from_numpy(x).to(device) for x in (pack.mean, pack.std))

    def batches(self, split):
        d, e = self.config.data, self.config.eval
        return data.Batches(self.pack, split, e.batch_size, seed=e.seed, min_length=d.min_length,
                            max_length=d.max_length, max_frames=d.max_frames,
                            unit_length=d.unit_length, labelled=self.kind == "action")

    def collect(self, jobs, work, title):
        """[work(*job) for each job], shared among the processes; each of them gets all of it."""
        mine = jobs[self.rank::self.world]
        bar = tqdm(mine, title, unit="batch", disable=True if self.rank else None)
        mine = [work(*job) for job in bar]
        if self.world == 1:
            return mine
        shares = [None] * self.world
        dist.all_gather_object(shares, mine)
        return [shares[i % self.world][i // self.world] for i in range(len(jobs))]

    def seeds(self, replication, items, sample=0):
        first, n = 1000 * sample + replication, len(self.pack)
        return [self.config.eval.seed + 1_000_003 * (first * n + i) for i in items]

    def metres(self, features):
        return motion.to_metres(features, self.pack.skeleton, self.rest)

    def judged(self, name, features, lengths, seeds, joints=None):
        """What is kept of motions, a row each.

        {name: embeddings, name/logp: log p of the actions, name/...: physical quality,
        name:kinematics and name:power: what sharpness.py compares as sets}
        """
        rows, logits = self.judge.embed(features, lengths, seeds)
        if not rows.isfinite().all():
            raise ValueError(f"{name or MODEL}: the evaluator's embeddings are not finite; check "
                             "the motions and its weights for NaN.")
        out = {name: to_numpy(rows)}
        if logits is not None:
            out[f"{name}/logp"] = to_numpy(logits.float().log_softmax(-1))
        if joints is not None:
            moved = [j[:n] for j, n in zip(joints.cpu().numpy(), lengths.tolist())]
            values = [self.physics(j) for j in moved]
            out |= {f"{name}/{key}": np.array([v[key] for v in values]) for key in values[0]}
            toes, fps = self.toes(), self.pack.fps
            out |= {f"{name}:kinematics": np.stack([sharpness.kinematics(j, toes, fps)
                                                    for j in moved]),
                    f"{name}:power": np.stack([sharpness.spectra(j, fps) for j in moved])}
        return out

    def toes(self):
        """The toes' joint numbers; none for SMPL, whose features have no floor."""
        skeleton = motion.SKELETONS.get(self.pack.skeleton)
        return [foot[1] for foot in skeleton.feet] if skeleton else []

    def physics(self, joints):
        values = {"jerk m/s3": metrics.jerk(joints, self.pack.fps)}
        skeleton = motion.SKELETONS.get(self.pack.skeleton)
        if skeleton:  # SMPL's features have no floor, and its bones cannot change
            toes = self.toes()
            values |= {"skating cm/s": metrics.foot_skating(joints, toes, self.pack.fps),
                       "penetration mm": metrics.floor_penetration(joints),
                       "bone drift mm": metrics.bone_drift(joints, skeleton.parents)}
        return values

    def clips(self, batches, replication, step):
        """-> batch, features (B, T, F), not normalised, lengths (B,), seeds"""
        batch = batches.batch(replication, step)
        features = batch["features"].to(self.device) * self.std + self.mean
        seeds = self.seeds(replication, batch["items"].tolist())
        return batch, features, batch["lengths"].to(self.device), seeds

    @torch.inference_mode()
    def real(self, batches, replication, step):
        batch, features, lengths, seeds = self.clips(batches, replication, step)
        out = {"items": batch["items"].numpy(), "labels": batch["actions"].numpy(),
               "lengths": batch["lengths"].numpy(), "texts": np.array(batch["texts"], object)}
        if self.judge.reads_text:
            out["text"] = to_numpy(self.judge.embed_text(batch["texts"], batch["tokens"]))
        out |= self.judged(REAL, features, lengths, seeds, self.metres(features))
        _, *again = self.clips(batches, self.config.eval.replications + replication, step)
        return out | self.judged("again", *again, self.metres(again[0]))

    @torch.inference_mode()
    def made(self, batches, replication, step):
        batch, features, lengths, seeds = self.clips(batches, replication, step)
        out = self.judged(MODEL, *self.generate(batch["texts"], batch["actions"], lengths, seeds))
        if self.model.vae:
            latents = self.model.encode_motion(features, lengths)
            decoded, joints = self.model.decode_latent(latents, lengths)
            pairs = zip(self.metres(features).cpu().numpy(), joints.cpu().numpy(), lengths.tolist())
            pairs = [(true[:n], made[:n]) for true, made, n in pairs]
            errors = [metrics.reconstruction_errors(true, made) for true, made in pairs]
            out |= self.judged(RECONSTRUCTION, decoded, lengths, seeds, joints)
            out |= {f"{RECONSTRUCTION}/{key} mm": np.array([error[key] for error in errors])
                    for key in errors[0]}
            out[f"{RECONSTRUCTION}:cross"] = np.stack(
                [sharpness.spectra(true, self.pack.fps, made) for true, made in pairs])
        return out

    def generate(self, texts, actions, lengths, seeds):
        """-> features, lengths, seeds, joints: what `judged` takes"""
        given = {"text": {"texts": texts}, "action": {"actions": actions}, "none": {}}[self.kind]
        features, joints = self.model.generate(**given, lengths=lengths, seed=seeds)
        return features, lengths, seeds, joints

    @torch.inference_mode()
    def samples(self, replication, item, text, length):
        """eval.mm_samples motions of one text -> (samples, D)"""
        n = self.config.eval.mm_samples
        seeds = [self.seeds(replication, [item], 1 + k)[0] for k in range(n)]
        lengths = torch.full((n,), int(length), device=self.device)
        return self.judged("", *self.generate([text] * n, None, lengths, seeds)[:3])[""]


# --------------------------------------------------------------------------------------------------
# Numbers


def score(run, name, rows, reference, replication):
    """One replication of a row of the table -> {metric: number}, without those that so few motions
    do not have; `_notes` says which.

    rows: {name: array}, from `Evaluation.real` and `made`; reference: the motions that FID is to.
    """
    e, x, labels = run.config.eval, rows[name], rows["labels"]
    rng, out = np.random.default_rng([e.seed, replication]), {}
    order = rng.permutation(len(x))
    if "text" in rows and run.kind == "text":
        precision, distance = metrics.matching(rows["text"][order], x[order], e.group)
        out |= {f"R@{k}": p for k, p in enumerate(precision, 1)} | {"MM-Dist": distance}
    several = len(x) > 1
    if several:
        out["FID"] = metrics.fid(x, rows[reference])
    if several and run.kind == "action":
        out["Diversity"] = metrics.diversity(x, *rng.integers(len(x), size=(2, ACTOR_PAIRS[0])))
        if np.unique(labels, return_counts=True)[1].max() > 1:
            pairs = metrics.draw_action_pairs(rng, labels, ACTOR_PAIRS[1])
            out["MultiModality"] = metrics.diversity(x, *pairs)
    elif several:
        out["Diversity"] = metrics.diversity(
            x, *metrics.draw_pairs(rng, len(x), e.diversity_pairs))
    known = labels >= 0
    if f"{name}/logp" in rows and known.any() and (run.kind != "none" or name != MODEL):
        said, labels = rows[f"{name}/logp"].argmax(1)[known], labels[known]
        out["accuracy"] = np.mean(said == labels)
        parts = [action.split("/") for action in run.pack.actions]
        if len(parts[0]) > 1 and len(set(map(len, parts))) == 1:  # walk/tired: each part as well
            out |= {f"accuracy {k + 1}": np.mean([parts[a][k] == parts[b][k]
                                                  for a, b in zip(said, labels)])
                    for k in range(len(parts[0]))}
    for key, values in rows.items():
        if key.startswith(f"{name}/") and key != f"{name}/logp" and np.isfinite(values).any():
            out[key.partition("/")[2]] = np.nanmean(values)
    if f"{name}:power" in rows:
        out |= sharp(rows, name, reference)
    return out


def sharp(rows, name, reference):
    """The numbers of sharpness.py -> {metric: number}, without those that these motions lack."""
    made, real = (rows[f"{who}:power"] for who in (name, reference))
    found = dict(zip(sharpness.band_names("power"), sharpness.power_ratio(made, real)))
    if f"{name}:cross" in rows:
        values = sharpness.coherence(rows[f"{name}:cross"], made, real)
        found |= zip(sharpness.band_names("coherence"), values)
    made, real = (rows[f"{who}:kinematics"] for who in (name, reference))
    if len(made) > 1:
        found = {"kinematic FID": sharpness.kinematic_fid(made, real)} | found
    return {key: value for key, value in found.items() if np.isfinite(value)}


def gate(run, row):
    """Compare real motion's row, {metric: (mean, interval)}, with the published one.

    None if it agrees, or else one or two sentences: what differs, and what is probably wrong.
    """
    known, files = KNOWN[run.config.data.dataset], run.judge.files
    here = np.sqrt(20 / run.config.eval.replications)  # the published intervals are of 20
    wrong = [key for key, (mean, half) in known.items()
             if not abs(row[key][0] - mean) <= half * (1 + here)]
    if not wrong:
        return None
    ratio = float(np.median(run.pack.std[:4] / run.judge.std[:4].cpu().numpy()))
    if not 15 < ratio < 40:
        cause = (f"{files['meta']}: its std should be 25 times smaller than the dataset's for the "
                 f"root, it is {ratio:.2g} times")
    elif "Diversity" in wrong:
        cause = (f"{files['weights']}, or the motion in {run.pack.path} "
                 f"({len(run.batches('test').items)} test clips)")
    else:
        cause = f"the texts' part-of-speech tokens, or {files['glove']} and the two files beside it"
    numbers = ", ".join(f"{key} {row[key][0]:.3f} instead of {known[key][0]:g}" for key in wrong)
    return f"Real motion does not score as published: {numbers}. Probably wrong: {cause}."


def evaluate(run, use_gate=True):
    """Measure -> table {row: {metric: (mean, half interval)}}, notes, the first replication's rows.

    ValueError if use_gate is set and real motion does not score as published, or for settings that
    leave nothing to measure.
    """
    e = run.config.eval
    if run.kind == "text" and e.mm_samples < 2:
        raise ValueError("MultiModality is the distance between motions for one text: "
                         f"eval.mm_samples must be at least 2, found {e.mm_samples}.")
    if run.kind == "text" and run.judge.reads_text and e.group < 4:
        raise ValueError("R@3 is the share of texts that find their motion among the nearest 3: "
                         f"eval.group must be at least 4, found {e.group}.")
    table, notes = {}, []
    # ACTOR also measures UESTC on its train split.
    both = run.config.data.dataset == "uestc" and run.kind == "action"
    for split in ("train", "test") if both else (run.config.eval.split,):
        suffix = f" ({split})" if both else ""
        rows = _measure_split(run, split, suffix, use_gate, table, notes)
    return table, notes, rows[0]


def _measure_split(run, split, suffix, use_gate, table, notes):
    """Add the rows and notes of one split; returns the rows of each replication."""
    e, batches = run.config.eval, run.batches(split)
    replications, n = range(e.replications), len(batches)
    jobs = [(batches, r, step) for r in replications for step in range(n)]

    def do(work, title):
        done = run.collect(jobs, work, title)
        return [{key: np.concatenate([part[key] for part in done[r * n:(r + 1) * n]])
                 for key in done[0]} for r in replications]

    def add(name, reference):
        values = [score(run, name, rows[r], reference, r) for r in replications]
        table[name + suffix] = {key: metrics.interval([v[key] for v in values if key in v])
                                for key in values[0]}

    rows = do(run.real, "real motion")
    add(REAL, "again")
    if isinstance(run.judge, T2MJudge):
        notes += _check_judge(run, split, table[REAL], use_gate)
    rows = [row | more for row, more in zip(rows, do(run.made, "the model's motion"))]
    for name in (RECONSTRUCTION, MODEL):
        if name in rows[0]:
            add(name, REAL)
    if run.kind == "text":
        table[MODEL]["MultiModality"] = _multimodality(run, rows)
    notes += _notes(run, split, rows)
    return rows


def _check_judge(run, split, row, use_gate):
    if run.config.data.dataset not in KNOWN or split != "test":
        return [f"NO GATE: there are no published scores of real motion on the {split} clips of "
                f"{run.pack.name}."]
    problem = gate(run, row)
    if problem and use_gate:
        raise ValueError(f"{problem} Such a judge cannot measure a model; --no-gate goes on "
                         "nevertheless.")
    return [f"GATE NOT PASSED, so these numbers are not the field's. {problem}"] * bool(problem)


def _multimodality(run, rows):
    e, rng, jobs = run.config.eval, np.random.default_rng, []
    for r, row in enumerate(rows):
        drawn = rng([e.seed, r, 1]).permutation(len(row["items"]))[:e.mm_texts]
        jobs += [(r, int(row["items"][k]), row["texts"][k], row["lengths"][k]) for k in drawn]
    x = np.stack(run.collect(jobs, run.samples, "MultiModality"))
    x = x.reshape(len(rows), -1, *x.shape[1:])  # (replications, texts, samples, D)
    pairs = [metrics.draw_pairs(rng([e.seed, r, 2]), e.mm_samples, e.mm_pairs)
             for r in range(len(rows))]
    return metrics.interval([metrics.multimodality(a, *b) for a, b in zip(x, pairs)])


def _notes(run, split, rows):
    """What a reader of the numbers has to know."""
    notes = []
    if f"{MODEL}/logp" in rows[0] and run.kind != "none":
        labels = np.concatenate([row["labels"] for row in rows])
        said = np.concatenate([row[f"{MODEL}/logp"].argmax(1) for row in rows])
        right = {a: said[labels == a] == a for a in range(len(run.pack.actions)) if a in labels}
        poor = [f"{run.pack.actions[a]} ({found.mean():.0%} of {len(found)})"
                for a, found in right.items() if found.mean() < 0.5]
        if poor:
            notes.append(f"Generated for the {split} clips, recognised in less than half: "
                         f"{', '.join(poor)}.")
    if split not in run.pack.splits:
        notes.append(f"There is no {split} split: these are the train clips.")
    if run.kind == "action" and (run.pack.labels < 0).any():
        notes.append("Clips without an action are left out.")
    n, D = rows[0][REAL].shape
    if run.kind == "action":
        names, counts = np.unique(rows[0]["labels"], return_counts=True)
        alone = [run.pack.actions[a] for a in names[counts == 1]]
        if alone:
            notes.append("MultiModality leaves out actions of a single clip, between which there "
                         f"is no distance: {', '.join(alone)}.")
    if n < 2:
        notes.append("FID and Diversity are left out: they need 2 clips, and there is 1.")
    elif n <= D:
        notes.append(f"FID is of {n} clips in {D} dimensions, so it compares only with values of "
                     "as many clips.")
    if 1 < n < run.config.eval.diversity_pairs and run.kind != "action":
        notes.append(f"Diversity is of {n} pairs, because there are no more clips.")
    return notes
