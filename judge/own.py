"""Our own judge of motion, for datasets without a published one: the network and its training."""
import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.nn.functional import all_gather

from clip import WordEncoder
from config import TextEncoderConfig
from data import to_device
from transformer import Positions, Stack, zero_padding
from words import drop_words, vocabulary_of, words_of


class OwnJudge(nn.Module):
    """A motion encoder, and what the dataset has labels to train it with.

    Where there are captions, a text tower into the same space; where there are actions, a
    classifier. The classifier reads what the embedding is computed from, or the embedding itself
    if there are no captions to teach it. Embeddings have length 10, so that numbers are about as
    large as the published evaluator's.
    """

    def __init__(self, config, mean, std, vocabulary, actions):
        super().__init__()
        e, D = config.evaluator, config.evaluator.width
        for name, value in {"mean": mean, "std": std}.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.conv1 = nn.Conv1d(len(self.mean), D, 4, 2, 1)
        self.conv2 = nn.Conv1d(D, D, 4, 2, 1)
        self.positions = Positions(1024, D, learned=False)
        self.stack = Stack(e.layers, D, 4, 2 * D, dropout=0.1)
        self.project = nn.Linear(D, e.embed_dim)
        self.vocabulary, self.actions = list(vocabulary), list(actions)
        self.reads_text = bool(vocabulary)
        self.head = None
        if actions:
            self.head = nn.Linear(D if vocabulary else e.embed_dim, len(actions))
        if vocabulary:
            self.text = WordEncoder(TextEncoderConfig(width=D), vocabulary)
            self.text_project = nn.Linear(D, e.embed_dim)
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.title = f"our own evaluator, trained on {config.data.dataset}"

    def forward(self, features, lengths):
        """Normalised features (B, T, F) -> embeddings of length 1 (B, E), logits (B, A) or None."""
        # zeros follow a motion in every batch, however long the others are
        x = F.pad(zero_padding(features, lengths), (0, 0, 0, 8))
        x = F.gelu(self.conv2(F.gelu(self.conv1(x.mT)))).mT
        tokens = (lengths + 3) // 4
        x = self.stack(self.positions(x), tokens)
        x = zero_padding(x, tokens).sum(1) / tokens[:, None]
        z = self.project(x)
        logits = None if self.head is None else self.head(x if self.reads_text else z)
        return F.normalize(z, dim=-1), logits

    def embed(self, features, lengths, seeds=None):
        rows, logits = self((features - self.mean) / self.std, lengths)
        return 10 * rows, logits

    def embed_text(self, texts, tokens=None):
        return 10 * F.normalize(self.text_project(self.text(texts)[:, 0]), dim=-1)


class EvaluatorStage(nn.Module):
    """train.py's stage for OwnJudge.

    Its loss is CLIP's (Radford et al., 2021), with motions in the place of images, where there are
    captions, and the cross-entropy of actions where there are labels.
    """
    name, summary = "evaluator", staticmethod(dict)

    def __init__(self, run):
        super().__init__()
        c, pack, self.run, self.settings = run.config, run.pack, run, run.config.train_evaluator
        if self.settings.accumulate > 1:
            raise ValueError("train_evaluator.accumulate must be 1: a text is compared with all "
                             "motions of its batch.")
        self.batches = run.batches("train", self.settings.batch_size)
        said = [[" ".join(words_of(caption.text)) for caption in pack.captions(i)]
                for i in range(len(pack))]
        vocabulary = vocabulary_of(text for i in self.batches.items for text in said[i])
        if not vocabulary and not pack.actions:
            raise ValueError(f"{pack.path} has neither captions nor actions to train an "
                             "evaluator with.")
        torch.manual_seed(c.train.seed)
        self.judge = OwnJudge(c, pack.mean, pack.std, vocabulary, pack.actions).to(run.device)
        every_text = dict.fromkeys(text for texts in said for text in texts)
        self.number = {text: i for i, text in enumerate(every_text)}
        # the numbers of each item's captions
        self.said = torch.full((len(pack), max(map(len, said))), -1)
        for row, texts in zip(self.said, said):
            row[:len(texts)] = torch.tensor([self.number[t] for t in texts], dtype=torch.int64)

    def prepare(self, batch, step):
        if not self.judge.reads_text:
            return batch
        text = [self.number.get(" ".join(words_of(text)), -2) for text in batch["texts"]]
        batch = {**batch, "said": self.said[batch["items"]], "text": torch.tensor(text)}
        if self.training:
            seed, share = self.run.config.train.seed, self.run.config.text.word_dropout
            batch["texts"] = [drop_words(text, np.random.default_rng([seed, step, i]), share)
                              for text, i in zip(batch["texts"], batch["items"].tolist())]
        return batch

    def gather(self, x, n):
        """Rows rank, rank + world, ... of a batch of n -> the whole batch, with gradients."""
        world = self.run.world
        if world == 1:
            return x
        x = torch.cat((x, x[:1].expand(-(-n // world) - len(x), *x.shape[1:])))
        return torch.stack(all_gather(x), 1).flatten(0, 1)[:n]

    def contrast(self, motions, batch):
        """CLIP's loss, both ways; motions (B, E).

        A caption that is also a caption of another motion of the batch is no negative for it.
        """
        n, texts = batch["global_size"], self.judge.embed_text(batch["texts"]) / 10
        row = torch.arange(len(motions), device=motions.device)
        mine = row * self.run.world + self.run.rank  # where these clips are in the whole batch
        said, text = self.gather(batch["said"], n), self.gather(batch["text"], n)

        def one_way(a, b, right):
            """Rows of a (B, E) against all of b (n, E), except where `right` (B, n) says so."""
            right[row, mine] = False
            scale = self.judge.log_scale.exp().clamp(max=100)
            scores = scale * a @ self.gather(b, n).T
            return F.cross_entropy(scores.masked_fill(right, -math.inf), mine)

        to_text = (batch["said"][:, :, None] == text).any(1)
        to_motion = (said == batch["text"][:, None, None]).any(2)
        return (one_way(motions, texts, to_text) + one_way(texts, motions, to_motion)) / 2

    def forward(self, batch):
        motions, logits = self.judge(batch["features"], batch["lengths"])
        losses = {"loss": motions.new_zeros(())}
        if self.judge.reads_text:
            losses["contrast"] = self.contrast(motions, batch)
            losses["loss"] = losses["loss"] + losses["contrast"]
        if logits is not None:
            actions = batch["actions"]
            total = F.cross_entropy(logits, actions, ignore_index=-1, reduction="sum")
            losses["actions"] = total / len(motions)
            known = actions >= 0  # the mean over a batch is a mean over the labelled clips
            right = (logits.argmax(-1) == actions) & known
            losses["accuracy"] = right.float().sum() / known.float().sum().clamp(min=1)
            losses["loss"] = losses["loss"] + losses["actions"]
        return losses

    @torch.no_grad()
    def validate(self):
        totals, batches = {}, self.run.batches("val", self.settings.batch_size)
        for step, batch in enumerate(batches.epoch(0)):
            batch = to_device(self.prepare(batch, step), self.run.device)
            for key, value in self(batch).items():
                part = value * len(batch["ids"]) / len(batches.items)
                totals[key] = totals.get(key, 0.0) + part
        return self.run.mean(totals)

    def show(self, step):
        """There is nothing to look at."""

    def save(self, path):
        judge = self.judge
        self.run.save(path, judge.state_dict(), vocabulary=judge.vocabulary, actions=judge.actions,
                      judge=True)
