"""The networks that judge motion: published ones, read from their authors' files, and our own, trained here.

    judge = find(config, pack)                           the one that fits the dataset; judge.title says which
    rows, logits = judge.embed(features, lengths, seeds) (B, T, F) features as they are -> (B, D), (B, actions) or None
    rows = judge.embed_text(texts, tokens)               (B, D), in the same space; judge.reads_text says whether it can

| judge     | for             | files                                                                                |
| --------- | --------------- | ------------------------------------------------------------------------------------ |
| T2MJudge  | HumanML3D, KIT  | assets.t2m_path/t2m (or kit)/text_mot_match/model/finest.tar, Comp_v6_KLD01 (or      |
|           |                 | KLD005)/meta/{mean,std}.npy; assets.glove_path/our_vab_{data.npy,words.pkl,idx.pkl}  |
| ActionGRU | HumanAct12      | assets.classifier_path/humanact12_gru.tar                                            |
| STGCN     | UESTC           | assets.classifier_path/uestc_rot6d_stgcn.tar                                         |
| OwnJudge  | everything else | evaluator_model.pt, made by `python train.py --dataset NAME --stage evaluator`       |

Parameters of the published ones carry their published names.
"""
import math
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.nn.functional import all_gather

import checkpoint
import motion
from clip import WordEncoder, drop_words, vocabulary_of, words_of
from config import HERE, TextEncoderConfig
from formats.safe_pickle import load_pickle, load_torch
from data import to_device
from transformer import Positions, Stack, zero_padding

# ----------------------------------------------------------------------------------------------------------------------
# The published T2M evaluator (Guo et al., CVPR 2022, section 5.1)

FRAMES, WORDS, UNIT = 196, 20, 4  # its motions end in zeros up to 196 frames; words of a text; frames of a movement
TAGS = ("VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV", "Loc_VIP", "Body_VIP", "Obj_VIP", "Act_VIP",
        "Desc_VIP", "OTHER")
TAG_OF = {word: tag for tag, words in {  # words with a tag of their own, whatever part of speech they are
    "Loc_VIP": "left right clockwise counterclockwise anticlockwise forward back backward up down straight curve",
    "Body_VIP": "arm chin foot feet face hand mouth leg waist eye knee shoulder thigh",
    "Obj_VIP": "stair dumbbell chair window floor car ball handrail baseball basketball",
    "Act_VIP": "walk run swing pick bring kick put squat throw hop dance jump turn stumble stop sit lift lower raise "
               "wash stand kneel stroll rub bend balance flap jog shuffle lean rotate spin spread climb",
    "Desc_VIP": "slowly carefully fast careful slow quickly happy angry sad happily angrily sadly",
}.items() for word in words.split()}


class MovementEncoder(nn.Module):
    """Frames (B, T, F) -> movements (B, T / 4, D), by two strided convolutions."""

    def __init__(self, nfeats, hidden, out):
        super().__init__()
        self.main = nn.Sequential(nn.Conv1d(nfeats, hidden, 4, 2, 1), nn.Dropout(0.2), nn.LeakyReLU(0.2),
                                  nn.Conv1d(hidden, out, 4, 2, 1), nn.Dropout(0.2), nn.LeakyReLU(0.2))
        self.out_net = nn.Linear(out, out)

    def forward(self, x):
        return self.out_net(self.main(x.mT).mT)


class BiGRU(nn.Module):
    """A sequence (B, L, I) with lengths (B,) -> (B, D) from the last states of both directions. With `tags`, the words'
    one-hot tags (B, L, tags) are embedded and added to them."""

    def __init__(self, size, hidden, out, tags=0):
        super().__init__()
        self.pos_emb = nn.Linear(tags, size) if tags else None
        self.input_emb = nn.Linear(size, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.output_net = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(0.2),
                                        nn.Linear(hidden, out))
        self.hidden = nn.Parameter(torch.randn(2, 1, hidden))

    def forward(self, x, lengths, tags=None):
        x = self.input_emb(x if tags is None else x + self.pos_emb(tags))
        x = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(x, self.hidden.expand(-1, len(lengths), -1).contiguous())
        return self.output_net(torch.cat((last[0], last[1]), -1))


class T2MJudge(nn.Module):
    """Movement, motion and text encoder, of the sizes of the weights.

    states      {"movement_encoder", "motion_encoder", "text_encoder": state dict}
    mean, std   (F,), those it was trained with. Their std is 25 times smaller than the dataset's on the root's four
                numbers and the four contacts: motion normalised with the dataset's own would be another motion to it
    vectors     (V, 300) GloVe, and number {word: row}
    """
    title, reads_text = "the published T2M evaluator", True

    def __init__(self, states, mean, std, vectors, number):
        super().__init__()
        move, act, text = (states[name + "_encoder"] for name in ("movement", "motion", "text"))
        sizes = [(*reversed(s["input_emb.weight"].shape), len(s["output_net.3.bias"])) for s in (act, text)]
        out, hidden, _ = move["main.3.weight"].shape
        self.movement_encoder = MovementEncoder(move["main.0.weight"].shape[1], hidden, out)
        self.motion_encoder, self.text_encoder = BiGRU(*sizes[0]), BiGRU(*sizes[1], len(TAGS))
        for name, state in states.items():
            getattr(self, name).load_state_dict(state)
        for name, value in (("mean", mean), ("std", std), ("vectors", vectors)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.number = number

    def embed(self, features, lengths, seeds=None):
        x = zero_padding((features - self.mean) / self.std, lengths)
        x = F.pad(x, (0, 0, 0, max(0, FRAMES - x.shape[1])))  # as in its training, and the same in any batch
        return self.motion_encoder(self.movement_encoder(x[..., :-4]), lengths // UNIT), None  # without the contacts

    def embed_text(self, texts, tokens):
        rows, tags, counts = [], [], []
        for text, line in zip(texts, tokens):
            if not line:
                raise ValueError(f"{text!r} has no part-of-speech tokens, which the T2M evaluator reads; pack a set "
                                 "that has them, or use --evaluator.kind=own.")
            words = ["sos/OTHER", *line.split()[:WORDS], "eos/OTHER"]
            counts.append(len(words))
            pairs = [word.rsplit("/", 1) for word in words + ["unk/OTHER"] * (WORDS + 2 - len(words))]
            pairs = [(word, TAG_OF.get(word, tag)) if word in self.number else ("unk", "OTHER") for word, tag in pairs]
            rows.append([self.number[word] for word, _ in pairs])
            tags.append([TAGS.index(tag if tag in TAGS else "OTHER") for _, tag in pairs])
        rows, tags = (torch.tensor(x, device=self.mean.device) for x in (rows, tags))
        return self.text_encoder(self.vectors[rows], torch.tensor(counts), F.one_hot(tags, len(TAGS)).float())


def load_t2m(assets, dataset):
    """T2MJudge from the published files; FileNotFoundError names one that is missing."""
    folder = os.path.join(assets.t2m_path, "kit" if dataset == "kit" else "t2m")
    meta = os.path.join(folder, "Comp_v6_KLD005" if dataset == "kit" else "Comp_v6_KLD01", "meta")
    weights, mean, std = f"{folder}/text_mot_match/model/finest.tar", f"{meta}/mean.npy", f"{meta}/std.npy"
    data, words, index = (f"{assets.glove_path}/our_vab_{name}" for name in ("data.npy", "words.pkl", "idx.pkl"))
    missing = [path for path in (weights, mean, std, data, words, index) if not os.path.exists(path)]
    if missing:
        raise FileNotFoundError(f"The T2M evaluator needs {missing[0]}: get it from its authors (EricGuo5513/text-to-"
                                "motion on GitHub), point elsewhere with --assets.t2m_path and --assets.glove_path, or "
                                "use --evaluator.kind=own.")
    states, rows = load_torch(weights), load_pickle(index)
    try:
        states = {name: states[name] for name in ("movement_encoder", "motion_encoder", "text_encoder")}
        number = {word: int(rows[word]) for word in load_pickle(words)}
        judge = T2MJudge(states, np.load(mean), np.load(std), np.load(data), number)
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{weights} and {data} do not hold the T2M evaluator ({reason}).") from None
    judge.files = {"weights": weights, "meta": meta, "glove": data}
    return judge


# ----------------------------------------------------------------------------------------------------------------------
# The published action classifiers


class ActionGRU(nn.Module):
    """HumanAct12's (action2motion): joints -> GRU -> 30 numbers, FID's -> actions. rest (24, 3): a body in metres."""
    title, reads_text = "the published HumanAct12 classifier (GRU)", False

    def __init__(self, rest=None, size=72, hidden=128, layers=2, actions=12):
        super().__init__()
        self.recurrent = nn.GRU(size, hidden, layers)
        self.linear1, self.linear2 = nn.Linear(hidden, 30), nn.Linear(30, actions)
        self.rest = rest

    def classify(self, joints, lengths, hidden):
        """joints (B, T, 24, 3), hidden (2, B, 128) -> features (B, 30), logits (B, A)."""
        out, _ = self.recurrent(joints.flatten(2).transpose(0, 1), hidden)
        features = self.linear1(out[lengths - 1, torch.arange(len(lengths), device=out.device)]).tanh()
        return features, self.linear2(features)

    def embed(self, features, lengths, seeds):
        """The published code starts from a random state, so that its numbers are others in every run; here motion i's
        state is drawn from seeds[i]."""
        shape = self.recurrent.num_layers, self.recurrent.hidden_size
        hidden = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds], 1)
        return self.classify(motion.to_metres(features, "smpl", self.rest), lengths, hidden.to(features))


class GraphBlock(nn.Module):
    """A convolution along the body, then one along 9 frames, around a residual."""

    def __init__(self, nin, nout, kinds, stride, residual):
        super().__init__()
        self.gcn = nn.ModuleDict({"conv": nn.Conv2d(nin, nout * kinds, 1)})
        self.tcn = nn.Sequential(nn.BatchNorm2d(nout), nn.ReLU(), nn.Conv2d(nout, nout, (9, 1), (stride, 1), (4, 0)),
                                 nn.BatchNorm2d(nout))
        self.add = residual
        self.residual = nn.Identity() if not residual or nin == nout and stride == 1 else nn.Sequential(
            nn.Conv2d(nin, nout, 1, (stride, 1)), nn.BatchNorm2d(nout))

    def forward(self, x, adjacency):
        """x (B, C, T, J), adjacency (K, J, J) -> (B, C', T', J); each kind of neighbour has its own weights."""
        y = self.gcn["conv"](x).unflatten(1, (len(adjacency), -1))
        y = self.tcn(torch.einsum("bkctv,kvw->bctw", y, adjacency))
        return F.relu(y + self.residual(x) if self.add else y)


def partitions(parents):
    """(3, J, J), from row to column: each joint itself; its neighbours that are as far from the root, or farther; those
    nearer. Each joint takes the mean over itself and its neighbours. This is ST-GCN's "spatial" partition as the UESTC
    weights have it: distances to the root are known up to 1 only, so all joints beyond are equally far."""
    itself = np.eye(len(parents))
    near = itself.copy()
    for joint, parent in enumerate(parents[1:], 1):
        near[joint, parent] = near[parent, joint] = 1
    depth = np.where(near[0] > 0, 1, 2)
    depth[0] = 0
    share, nearer = near / near.sum(0), depth[:, None] < depth
    return np.stack([share * itself, share * (1 - itself) * ~nearer, share * (1 - itself) * nearer])


class STGCN(nn.Module):
    """UESTC's (ACTOR): a spatio-temporal graph convolution network over 24 joints' six numbers of rotation."""
    title, reads_text = "the published UESTC classifier (ST-GCN)", False

    def __init__(self, actions=40):
        super().__init__()
        self.register_buffer("A", torch.tensor(partitions(motion.SMPL_PARENTS), dtype=torch.float32))
        widths, strides = (6, 64, 64, 64, 64, 128, 128, 128, 256, 256, 256), (1, 1, 1, 1, 2, 1, 1, 2, 1, 1)
        self.data_bn = nn.BatchNorm1d(144)
        self.st_gcn_networks = nn.ModuleList(GraphBlock(a, b, len(self.A), stride, a != 6)
                                             for a, b, stride in zip(widths, widths[1:], strides))
        self.edge_importance = nn.ParameterList(torch.ones_like(self.A) for _ in strides)
        self.fcn = nn.Conv2d(256, actions, 1)

    def embed(self, features, lengths, seeds=None):
        """Features (B, T, 150), the last six of which, the root's path, are not seen -> (B, 256), logits (B, A)."""
        x = self.data_bn(features[..., :144].mT)  # (B, 24 x 6, T)
        x = x.unflatten(1, (24, 6)).permute(0, 2, 3, 1)  # (B, 6, T, 24)
        for block, weight in zip(self.st_gcn_networks, self.edge_importance):
            x = block(x, self.A * weight)
        rows = x.mean((2, 3))
        return rows, self.fcn(rows[..., None, None]).flatten(1)


CLASSIFIERS = {"humanact12": "humanact12_gru.tar", "uestc": "uestc_rot6d_stgcn.tar"}

# ----------------------------------------------------------------------------------------------------------------------
# Our own


class OwnJudge(nn.Module):
    """A motion encoder; a text tower into the same space where the dataset has captions; a head for actions where it
    has labels, behind the embedding where nothing else would teach it. Embeddings have length 10, for numbers of about
    the size of the published evaluator's."""

    def __init__(self, config, mean, std, vocabulary, actions):
        super().__init__()
        e, D = config.evaluator, config.evaluator.width
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.conv1, self.conv2 = nn.Conv1d(len(self.mean), D, 4, 2, 1), nn.Conv1d(D, D, 4, 2, 1)
        self.positions = Positions(1024, D, learned=False)
        self.stack = Stack(e.layers, D, 4, 2 * D, dropout=0.1)
        self.project = nn.Linear(D, e.embed_dim)
        self.vocabulary, self.actions, self.reads_text = list(vocabulary), list(actions), bool(vocabulary)
        self.head = nn.Linear(D if vocabulary else e.embed_dim, len(actions)) if actions else None
        if vocabulary:
            self.text = WordEncoder(TextEncoderConfig(width=D), vocabulary)
            self.text_project = nn.Linear(D, e.embed_dim)
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.title = f"our own evaluator, trained on {config.data.dataset}"

    def forward(self, features, lengths):
        """Normalised features (B, T, F) -> embeddings of length 1 (B, E), logits (B, A) or None."""
        x = F.pad(zero_padding(features, lengths), (0, 0, 0, 8))  # behind its end, a motion sees zeros in any batch
        x = F.gelu(self.conv2(F.gelu(self.conv1(x.mT)))).mT
        tokens = (lengths + 3) // 4
        x = self.stack(self.positions(x), tokens)
        x = zero_padding(x, tokens).sum(1) / tokens[:, None]
        z = self.project(x)
        return F.normalize(z, dim=-1), None if self.head is None else self.head(x if self.reads_text else z)

    def embed(self, features, lengths, seeds=None):
        rows, logits = self((features - self.mean) / self.std, lengths)
        return 10 * rows, logits

    def embed_text(self, texts, tokens=None):
        return 10 * F.normalize(self.text_project(self.text(texts)[:, 0]), dim=-1)


class EvaluatorStage(nn.Module):
    """train.py's stage for OwnJudge: CLIP's objective (Radford et al., 2021) with motion in the place of images where
    there are captions, and cross-entropy on actions where there are labels."""
    name, summary = "evaluator", staticmethod(dict)

    def __init__(self, run):
        super().__init__()
        c, pack, self.run, self.settings = run.config, run.pack, run, run.config.train_evaluator
        if self.settings.accumulate > 1:
            raise ValueError("train_evaluator.accumulate must be 1: a text is held against all motions of its batch.")
        self.batches = run.batches("train", self.settings.batch_size)
        said = [[" ".join(words_of(caption.text)) for caption in pack.captions(i)] for i in range(len(pack))]
        vocabulary = vocabulary_of(text for i in self.batches.items for text in said[i])
        if not vocabulary and not pack.actions:
            raise ValueError(f"{pack.path} has neither captions nor actions to train an evaluator with.")
        torch.manual_seed(c.train.seed)
        self.judge = OwnJudge(c, pack.mean, pack.std, vocabulary, pack.actions).to(run.device)
        self.number = {text: i for i, text in enumerate(dict.fromkeys(text for texts in said for text in texts))}
        self.said = torch.full((len(pack), max(map(len, said))), -1)  # the numbers of each item's captions
        for row, texts in zip(self.said, said):
            row[:len(texts)] = torch.tensor([self.number[text] for text in texts], dtype=torch.int64)

    def prepare(self, batch, step):
        if not self.judge.reads_text:
            return batch
        text = torch.tensor([self.number.get(" ".join(words_of(text)), -2) for text in batch["texts"]])
        batch = {**batch, "said": self.said[batch["items"]], "text": text}
        if self.training:
            rngs = (np.random.default_rng([self.run.config.train.seed, step, i]) for i in batch["items"].tolist())
            share = self.run.config.text.word_dropout
            batch["texts"] = [drop_words(text, share, rng) for text, rng in zip(batch["texts"], rngs)]
        return batch

    def gather(self, x, n):
        """This process' share (rows rank, rank + world, ...) of a batch of n -> the whole batch, with gradients."""
        if self.run.world == 1:
            return x
        x = torch.cat((x, x[:1].expand(-(-n // self.run.world) - len(x), *x.shape[1:])))
        return torch.stack(all_gather(x), 1).flatten(0, 1)[:n]

    def forward(self, batch):
        motions, logits = self.judge(batch["features"], batch["lengths"])
        n, B, losses = batch["global_size"], len(motions), {"loss": motions.new_zeros(())}
        if self.judge.reads_text:
            texts = self.judge.embed_text(batch["texts"]) / 10
            row = torch.arange(B, device=motions.device)
            mine = row * self.run.world + self.run.rank  # where this process' clips are in the whole batch
            said, text = self.gather(batch["said"], n), self.gather(batch["text"], n)

            def contrast(a, b, right):
                """Rows of a (B, E) against all of b (n, E); a text that is right for another motion is no negative."""
                right[row, mine] = False
                scale = self.judge.log_scale.exp().clamp(max=100)
                return F.cross_entropy((scale * a @ self.gather(b, n).T).masked_fill(right, -math.inf), mine)

            losses["contrast"] = (contrast(motions, texts, (batch["said"][:, :, None] == text).any(1)) +
                                  contrast(texts, motions, (said == batch["text"][:, None, None]).any(2))) / 2
            losses["loss"] = losses["loss"] + losses["contrast"]
        if logits is not None:
            losses["actions"] = F.cross_entropy(logits, batch["actions"], ignore_index=-1, reduction="sum") / B
            losses["accuracy"] = (logits.argmax(-1) == batch["actions"]).float().mean()
            losses["loss"] = losses["loss"] + losses["actions"]
        return losses

    @torch.no_grad()
    def validate(self):
        totals, batches = {}, self.run.batches("val", self.settings.batch_size)
        for step, batch in enumerate(batches.epoch(0)):
            for key, value in self(to_device(self.prepare(batch, step), self.run.device)).items():
                totals[key] = totals.get(key, 0.0) + value * len(batch["ids"]) / len(batches.items)
        return self.run.mean(totals)

    def show(self, step):
        """There is nothing to look at."""

    def save(self, path):
        self.run.save(path, self.judge.state_dict(), vocabulary=self.judge.vocabulary,
                      actions=self.judge.actions, judge=True)


# ----------------------------------------------------------------------------------------------------------------------


def find(config, pack, path=None, device="cpu"):
    """The judge for a dataset, in eval mode: the published one where its files are, else ours; ours alone if its `path`
    is given or evaluator.kind is own. FileNotFoundError says what to get or to train."""
    name, kind, assets = config.data.dataset, config.evaluator.kind, config.assets
    if path and kind == "t2m":
        raise ValueError(f"Which judge, {path} or the published one? evaluator.kind=t2m goes without --evaluator.")
    classifier = os.path.join(assets.classifier_path, CLASSIFIERS.get(name, ""))
    if kind == "t2m" or kind == "auto" and not path and name in ("humanml3d", "kit") and os.path.isdir(assets.t2m_path):
        judge = load_t2m(assets, name)
    elif kind == "auto" and not path and os.path.isfile(classifier):
        judge, state = STGCN() if name == "uestc" else ActionGRU(torch.as_tensor(pack.rest)), load_torch(classifier)
        checkpoint.fill(judge, dict(state.get("model", state)), classifier)
    else:
        places = [path] if path else [os.path.join(config.train.out, name, "evaluator_model.pt"),
                                      os.path.join(HERE, "checkpoints", f"{name}-evaluator.pt")]
        path = next(filter(os.path.exists, places), None)
        how = f"train one with: python train.py --dataset {name} --stage evaluator"
        if path is None:
            raise FileNotFoundError(f"There is no evaluator for {name} at {' or '.join(places)}; {how}")
        data = checkpoint.load(path)
        if not data.get("judge") or data["config"].data.skeleton != pack.skeleton:
            raise ValueError(f"{path} is no evaluator for motion of the {pack.skeleton} skeleton; {how}")
        judge = OwnJudge(data["config"], pack.mean, pack.std, data["vocabulary"], data["actions"])
        checkpoint.fill(judge, data["model"], path)
    return judge.to(device).eval().requires_grad_(False)
