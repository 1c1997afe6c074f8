"""The published networks that judge motion, with parameters under their published names.

They read their authors' files, so that numbers can be compared with published tables:

| judge     | for            | files                                                          |
| --------- | -------------- | -------------------------------------------------------------- |
| T2MJudge  | HumanML3D, KIT | assets.t2m_path/t2m/text_mot_match/model/finest.tar,           |
|           |                | assets.t2m_path/t2m/Comp_v6_KLD01/meta/{mean,std}.npy (in kit/ |
|           |                | Comp_v6_KLD005), assets.glove_path/our_vab_{data.npy,words.pkl,|
|           |                | idx.pkl}                                                       |
| ActionGRU | HumanAct12     | assets.classifier_path/humanact12_gru.tar                      |
| STGCN     | UESTC          | assets.classifier_path/uestc_rot6d_stgcn.tar                   |
"""
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import motion
from formats.safe_pickle import load_pickle, load_torch
from transformer import zero_padding

# --------------------------------------------------------------------------------------------------
# The published T2M evaluator (Guo et al., CVPR 2022, section 5.1)

FRAMES = 196  # motions are padded with zeros to this many frames
WORDS = 20    # of a text; the rest is not read
UNIT = 4      # frames of a movement
TAGS = ("VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV",
        "Loc_VIP", "Body_VIP", "Obj_VIP", "Act_VIP", "Desc_VIP", "OTHER")
TAG_OF = {word: tag for tag, words in {  # these words have a tag instead of a part of speech
    "Loc_VIP": "left right clockwise counterclockwise anticlockwise forward back backward up down "
               "straight curve",
    "Body_VIP": "arm chin foot feet face hand mouth leg waist eye knee shoulder thigh",
    "Obj_VIP": "stair dumbbell chair window floor car ball handrail baseball basketball",
    "Act_VIP": "walk run swing pick bring kick put squat throw hop dance jump turn stumble stop "
               "sit lift lower raise wash stand kneel stroll rub bend balance flap jog shuffle "
               "lean rotate spin spread climb",
    "Desc_VIP": "slowly carefully fast careful slow quickly happy angry sad happily angrily sadly",
}.items() for word in words.split()}


class MovementEncoder(nn.Module):
    """Frames (B, T, F) -> movements (B, T / 4, D), by two strided convolutions."""

    def __init__(self, nfeats, hidden, out):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv1d(nfeats, hidden, 4, 2, 1), nn.Dropout(0.2), nn.LeakyReLU(0.2),
            nn.Conv1d(hidden, out, 4, 2, 1), nn.Dropout(0.2), nn.LeakyReLU(0.2))
        self.out_net = nn.Linear(out, out)

    def forward(self, x):
        return self.out_net(self.main(x.mT).mT)


class BiGRU(nn.Module):
    """A sequence (B, L, I) with lengths (B,) -> (B, D), from the last states of both directions.

    With `tags`, the words' one-hot tags (B, L, tags) are embedded and added to them.
    """

    def __init__(self, size, hidden, out, tags=0):
        super().__init__()
        self.pos_emb = nn.Linear(tags, size) if tags else None
        self.input_emb = nn.Linear(size, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.output_net = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, out))
        self.hidden = nn.Parameter(torch.randn(2, 1, hidden))

    def forward(self, x, lengths, tags=None):
        x = self.input_emb(x if tags is None else x + self.pos_emb(tags))
        x = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(x, self.hidden.expand(-1, len(lengths), -1).contiguous())
        return self.output_net(torch.cat((last[0], last[1]), -1))


class T2MJudge(nn.Module):
    """Movement, motion and text encoder; the weights say how large they are.

    states     {"movement_encoder", "motion_encoder", "text_encoder": state dict}
    mean, std  (F,), those that it was trained with. Their std is 25 times smaller than the
               dataset's for the root's four numbers and the four contacts, so motion that is
               normalised with the dataset's own looks wrong to it.
    vectors    (V, 300), GloVe
    number     {word: row of vectors}
    """
    title, reads_text = "the published T2M evaluator", True

    def __init__(self, states, mean, std, vectors, number):
        super().__init__()

        def sizes(state):
            width, hidden = reversed(state["input_emb.weight"].shape)
            return width, hidden, len(state["output_net.3.bias"])

        move = states["movement_encoder"]
        out, hidden, _ = move["main.3.weight"].shape
        self.movement_encoder = MovementEncoder(move["main.0.weight"].shape[1], hidden, out)
        self.motion_encoder = BiGRU(*sizes(states["motion_encoder"]))
        self.text_encoder = BiGRU(*sizes(states["text_encoder"]), len(TAGS))
        for name, state in states.items():
            getattr(self, name).load_state_dict(state)
        for name, value in {"mean": mean, "std": std, "vectors": vectors}.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.number = number

    def embed(self, features, lengths, seeds=None):
        x = zero_padding((features - self.mean) / self.std, lengths)
        # as in its training, and so that a motion's embedding is the same in every batch
        x = F.pad(x, (0, 0, 0, max(0, FRAMES - x.shape[1])))
        movements = self.movement_encoder(x[..., :-4])  # without the contacts
        return self.motion_encoder(movements, lengths // UNIT), None

    def embed_text(self, texts, tokens):
        rows, tags, counts = [], [], []
        for text, line in zip(texts, tokens):
            if not line:
                raise ValueError(f"{text!r} has no part-of-speech tokens, which the T2M evaluator "
                                 "reads; pack a set that has them, or use --evaluator.kind=own.")
            words = ["sos/OTHER", *line.split()[:WORDS], "eos/OTHER"]
            counts.append(len(words))
            words += ["unk/OTHER"] * (WORDS + 2 - len(words))
            pairs = [word.rsplit("/", 1) for word in words]
            pairs = [(word, TAG_OF.get(word, tag)) if word in self.number else ("unk", "OTHER")
                     for word, tag in pairs]
            rows.append([self.number[word] for word, _ in pairs])
            tags.append([TAGS.index(tag if tag in TAGS else "OTHER") for _, tag in pairs])
        rows, tags = (torch.tensor(x, device=self.mean.device) for x in (rows, tags))
        tags = F.one_hot(tags, len(TAGS)).float()
        return self.text_encoder(self.vectors[rows], torch.tensor(counts), tags)


def load_t2m(assets, dataset):
    """T2MJudge from the published files.

    FileNotFoundError names one that is missing, ValueError one that holds something else.
    """
    name, meta = ("kit", "Comp_v6_KLD005") if dataset == "kit" else ("t2m", "Comp_v6_KLD01")
    folder = os.path.join(assets.t2m_path, name)
    weights, meta = f"{folder}/text_mot_match/model/finest.tar", f"{folder}/{meta}/meta"
    mean, std = f"{meta}/mean.npy", f"{meta}/std.npy"
    data, words, index = (f"{assets.glove_path}/our_vab_{name}"
                          for name in ("data.npy", "words.pkl", "idx.pkl"))
    for path in (weights, mean, std, data, words, index):
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"The T2M evaluator needs {path}: get it from its authors (EricGuo5513/"
                "text-to-motion on GitHub), point elsewhere with --assets.t2m_path and "
                "--assets.glove_path, or use --evaluator.kind=own.")
    states, rows = load_torch(weights), load_pickle(index)
    try:
        parts = ("movement_encoder", "motion_encoder", "text_encoder")
        states = {part: states[part] for part in parts}
        number = {word: int(rows[word]) for word in load_pickle(words)}
        judge = T2MJudge(states, np.load(mean), np.load(std), np.load(data), number)
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{weights} and {data} do not hold the T2M evaluator ({reason}).") from None
    judge.files = {"weights": weights, "meta": meta, "glove": data}
    return judge


# --------------------------------------------------------------------------------------------------
# The published action classifiers


class ActionGRU(nn.Module):
    """HumanAct12's (action2motion): joints -> GRU -> 30 numbers, which FID is taken of -> actions.

    rest (24, 3): the joints of a body at rest, metres.
    """
    title, reads_text = "the published HumanAct12 classifier (GRU)", False

    def __init__(self, rest=None, size=72, hidden=128, layers=2, actions=12):
        super().__init__()
        self.recurrent = nn.GRU(size, hidden, layers)
        self.linear1, self.linear2 = nn.Linear(hidden, 30), nn.Linear(30, actions)
        self.rest = rest

    def classify(self, joints, lengths, hidden):
        """joints (B, T, 24, 3), hidden (2, B, 128) -> features (B, 30), logits (B, A)."""
        out, _ = self.recurrent(joints.flatten(2).transpose(0, 1), hidden)
        last = out[lengths - 1, torch.arange(len(lengths), device=out.device)]
        features = self.linear1(last).tanh()
        return features, self.linear2(features)

    def embed(self, features, lengths, seeds):
        """As `judge.embed` in evaluators.py; motion i's first hidden state is drawn from seeds[i].

        The published code draws it anew in every run, so its numbers cannot be repeated.
        """
        shape = self.recurrent.num_layers, self.recurrent.hidden_size
        hidden = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed))
                              for seed in seeds], 1)
        joints = motion.to_metres(features, "smpl", self.rest)
        return self.classify(joints, lengths, hidden.to(features))


class GraphBlock(nn.Module):
    """A convolution along the body, then one over 9 frames, with a residual around both."""

    def __init__(self, nin, nout, kinds, stride, residual):
        super().__init__()
        self.gcn = nn.ModuleDict({"conv": nn.Conv2d(nin, nout * kinds, 1)})
        self.tcn = nn.Sequential(
            nn.BatchNorm2d(nout), nn.ReLU(),
            nn.Conv2d(nout, nout, (9, 1), (stride, 1), (4, 0)), nn.BatchNorm2d(nout))
        self.add, self.residual = residual, nn.Identity()
        if residual and (nin != nout or stride > 1):
            self.residual = nn.Sequential(
                nn.Conv2d(nin, nout, 1, (stride, 1)), nn.BatchNorm2d(nout))

    def forward(self, x, adjacency):
        """x (B, C, T, J), adjacency (K, J, J) -> (B, C', T', J).

        Each of the K kinds of neighbour has weights of its own.
        """
        y = self.gcn["conv"](x).unflatten(1, (len(adjacency), -1))
        y = self.tcn(torch.einsum("bkctv,kvw->bctw", y, adjacency))
        return F.relu(y + self.residual(x) if self.add else y)


def partitions(parents):
    """ST-GCN's "spatial" partition of a body: three adjacency matrices, (3, J, J), row to column.

    They connect a joint with itself; with neighbours as far from the root as it is, or farther; and
    with nearer neighbours. Together they take the mean over a joint and its neighbours. As in the
    UESTC weights, all joints beyond the root's neighbours count as equally far from it.
    """
    itself = np.eye(len(parents))
    near = itself.copy()
    for joint, parent in enumerate(parents[1:], 1):
        near[joint, parent] = near[parent, joint] = 1
    depth = np.where(near[0] > 0, 1, 2)
    depth[0] = 0
    share, nearer = near / near.sum(0), depth[:, None] < depth
    return np.stack([share * itself, share * (1 - itself) * ~nearer, share * (1 - itself) * nearer])


class STGCN(nn.Module):
    """UESTC's (ACTOR): graph convolutions in space and time over the rotations of 24 joints."""
    title, reads_text = "the published UESTC classifier (ST-GCN)", False

    def __init__(self, actions=40):
        super().__init__()
        adjacency = torch.tensor(partitions(motion.SMPL_PARENTS), dtype=torch.float32)
        self.register_buffer("A", adjacency)
        widths = 6, 64, 64, 64, 64, 128, 128, 128, 256, 256, 256
        strides = 1, 1, 1, 1, 2, 1, 1, 2, 1, 1
        self.data_bn = nn.BatchNorm1d(144)
        self.st_gcn_networks = nn.ModuleList(
            GraphBlock(nin, nout, len(self.A), stride, residual=nin != 6)
            for nin, nout, stride in zip(widths, widths[1:], strides))
        self.edge_importance = nn.ParameterList(torch.ones_like(self.A) for _ in strides)
        self.fcn = nn.Conv2d(256, actions, 1)

    def embed(self, features, lengths, seeds=None):
        """Features (B, T, 150) -> (B, 256), logits (B, A).

        The last six features, the root's path, are not looked at.
        """
        x = self.data_bn(features[..., :144].mT)  # (B, 24 x 6, T)
        x = x.unflatten(1, (24, 6)).permute(0, 2, 3, 1)  # (B, 6, T, 24)
        for block, weight in zip(self.st_gcn_networks, self.edge_importance):
            x = block(x, self.A * weight)
        rows = x.mean((2, 3))
        return rows, self.fcn(rows[..., None, None]).flatten(1)


CLASSIFIERS = {"humanact12": "humanact12_gru.tar", "uestc": "uestc_rot6d_stgcn.tar"}
