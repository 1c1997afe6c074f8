"""Packed datasets -> padded batches with lengths, grouped by length so that little padding is computed."""
import signal

import numpy as np
import torch

from config import pack_path
from formats.pack import Caption, Clip, Pack, write_pack  # noqa: F401, the format lives there

GROUP = 16  # batches that are sorted by length together: 7% padding instead of 51% on clips of 24 to 196 frames


def open_pack(config):
    """The Pack that a Config asks for, its index checked; ValueError if its skeleton or frame rate is not the one of the settings."""
    pack = Pack.open(pack_path(config))
    pack.check_index()
    if (pack.skeleton, pack.fps) != (config.data.skeleton, config.data.fps):
        raise ValueError(f"{pack.path} holds the {pack.skeleton} skeleton at {pack.fps:g} fps, the settings say {config.data.skeleton} at "
                         f"{config.data.fps:g}; pass --data.skeleton={pack.skeleton} --data.fps={pack.fps:g}.")
    return pack


# ----------------------------------------------------------------------------------------------------------------------
# Random numbers that can be asked for one at a time


def mixed(x):
    """x (...) uint64 -> uint64, the finaliser of SplitMix64: each bit depends on every bit of x."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def keys_of(seed, count):
    return np.random.SeedSequence(seed).generate_state(count, np.uint64)[:, None]


def uniform(seed, items, count):
    """(count, n) numbers in 0..1 for items (n,), each a pure function of seed (a tuple of ints) and item."""
    bits = mixed(mixed(items.astype(np.uint64) + keys_of(seed, 1)) + keys_of(seed, count))
    return (bits >> np.uint64(11)) * 2.0**-53


def permuted(positions, size, seed):
    """Where a random permutation of 0..size-1 sends positions (n,), without the rest of it: a Feistel network of six rounds on
    an even number of bits, applied again to what falls outside."""
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    low, keys = (np.uint64(1) << half) - np.uint64(1), keys_of(seed, 6)
    out, outside = positions.astype(np.uint64), np.ones(len(positions), bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & low
        for key in keys:
            left, right = right, left ^ mixed(right + key) & low
        out[outside] = left << half | right
        outside = out >= size
    return out.astype(np.int64)


# ----------------------------------------------------------------------------------------------------------------------
# Batches


def ignore_signals(worker):
    """Ctrl-C and SIGTERM reach the worker processes, too: the training process decides when they end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Batches:
    """Batches of one split. Everything random is a pure function of its arguments, so that runs can be repeated, resumed and split:

    the order of the items and of the batches, of (seed, epoch);
    an item's crop and caption, of (seed, epoch, item), whichever batch or process it falls into;
    the share of a process, of (rank, world): the shares of all ranks together are the batch that one process would have had.

    batch_size counts the items over all processes. An epoch has every item once, and sizes of batches differ by one at most;
    balanced, the items of actions that are rarer than the mean come so many times that their action is about as frequent as the mean.
    Crops are T2M's: with one chance in three one unit shorter than the most whole units that fit, at a random start. (A unit of 10
    frames or more is never left out, so unit_length = max_frames = 60 gives the fixed 60 frames of the action datasets.)
    """

    def __init__(self, pack, split, batch_size, *, seed=0, rank=0, world=1, by_length=True, min_length=1, max_length=10**9,
                 max_frames=196, unit_length=4, motion=True, labelled=False, balanced=False):
        self.pack, self.seed, self.rank, self.world = pack, seed, rank, world
        self.by_length, self.max_frames, self.unit_length, self.motion = by_length, max_frames, unit_length, motion
        self.items = pack.indices(split, max(min_length, unit_length), max_length)
        if labelled:  # those with an action alone
            self.items = self.items[pack.labels[self.items] >= 0]
        if balanced:
            labels = pack.labels[self.items]
            counts = np.bincount(labels + 1, minlength=len(pack.actions) + 1)  # unlabelled ones first
            mean = counts[1:].sum() / max(1, np.count_nonzero(counts[1:]))
            times = np.where(labels < 0, 1, np.maximum(1, np.round(mean / np.maximum(counts, 1)))[labels + 1])
            self.items = np.repeat(self.items, times.astype(int))
        if len(self.items) < world:
            raise ValueError(f"{pack.path}: {len(self.items)} {split} items cannot be shared by {world} processes.")
        if batch_size < world:
            raise ValueError(f"A batch of {batch_size} cannot be shared by {world} processes.")
        self.steps = max(1, min(-(-len(self.items) // batch_size), len(self.items) // world))
        self._group = None, []  # the last one drawn

    def __len__(self):
        """Batches in an epoch."""
        return self.steps

    def crops(self, epoch, items):
        """(starts, lengths, caption draws in 0..1) of some items, each (n,)."""
        draws = uniform((self.seed, epoch, 0), items, 3)
        whole = self.pack.lengths[items].astype(np.int64)
        units = np.minimum(whole, self.max_frames) // self.unit_length
        shorter = (draws[0] < 1 / 3) & (units > 1) & (self.unit_length < 10)
        lengths = (units - shorter) * self.unit_length
        return (draws[1] * (whole - lengths + 1)).astype(np.int64), lengths, draws[2]

    def items_of(self, epoch, step):
        """The items of one batch, over all ranks. No order of the whole epoch is made: the first batch of a million clips comes at once."""
        first = step // GROUP * GROUP
        if self._group[0] != (epoch, first):
            cuts = [round(n * len(self.items) / self.steps) for n in range(first, min(first + GROUP, self.steps) + 1)]
            items = self.items[permuted(np.arange(cuts[0], cuts[-1]), len(self.items), (self.seed, epoch, 1))]
            if self.by_length:  # sort by length within groups of batches: little padding, yet batches stay mixed
                items = items[np.argsort(self.crops(epoch, items)[1], kind="stable")]
            batches = np.split(items, np.subtract(cuts[1:-1], cuts[0]))
            order = np.random.default_rng([self.seed, epoch, 2, first]).permutation(len(batches))
            self._group = (epoch, first), [batches[i] for i in order]
        return self._group[1][step - first]

    def batch(self, epoch, step):
        """The share of this rank in one batch:

        features (B, T, F) float32, normalised, 0 on padding (absent with motion=False, for training on cached latents);
        lengths (B,) int64; texts, tokens list[str]; actions (B,) int64, -1 = none;
        ids list[str]; items (B,) int64, numbers in the pack; and of the batch over all ranks: global_size, global_frames, for means
        that do not depend on the number of processes.
        """
        everyone = self.items_of(epoch, step)
        starts, lengths, draws = self.crops(epoch, everyone)
        global_frames, share = int(lengths.sum()), slice(self.rank, None, self.world)
        items, starts, lengths, draws = (x[share] for x in (everyone, starts, lengths, draws))
        features = np.zeros((len(items), lengths.max(), self.pack.nfeats), np.float32) if self.motion else None
        texts, tokens = [], []
        for row, (i, start, length, draw) in enumerate(zip(*(x.tolist() for x in (items, starts, lengths, draws)))):
            captions = self.pack.captions(i) or [Caption("")]
            caption = captions[int(draw * len(captions))]
            texts.append(caption.text)
            tokens.append(caption.tokens)
            if features is None:
                continue
            frames = self.pack.features(i)[start:start + length]
            if self.pack.skeleton == "smpl":  # the root's path counts from the first frame that is drawn
                frames = frames - np.where(np.arange(self.pack.nfeats) < 144, 0, frames[0])
            features[row, :length] = (frames - self.pack.mean) / self.pack.std
        motion = {} if features is None else {"features": torch.from_numpy(features)}
        return {**motion, "lengths": torch.from_numpy(lengths), "texts": texts, "tokens": tokens,
                "actions": torch.from_numpy(self.pack.labels[items].astype(np.int64)), "ids": self.pack.ids_of(items),
                "items": torch.from_numpy(items.astype(np.int64)), "global_size": len(everyone), "global_frames": global_frames}

    def __getitem__(self, key):
        return self.batch(*key)

    def epoch(self, epoch, first_step=0, workers=0):
        """Iterate over the batches of an epoch from `first_step`; `workers` processes prepare them ahead (0: none)."""
        if not workers:
            return (self.batch(epoch, step) for step in range(first_step, self.steps))
        keys = [(epoch, step) for step in range(first_step, self.steps)]
        return iter(torch.utils.data.DataLoader(self, batch_size=None, sampler=keys, num_workers=workers, prefetch_factor=4,
                                                worker_init_fn=ignore_signals, generator=torch.Generator()))  # its own: the global one must not notice the workers

    def padded_share(self, epoch=0):
        """Share of the frames of an epoch's batches (over all ranks together) that is padding."""
        lengths = [self.crops(epoch, self.items_of(epoch, step))[1] for step in range(self.steps)]
        return 1 - sum(n.sum() for n in lengths) / sum(n.max() * len(n) for n in lengths)


def to_device(batch, device):
    return {key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for key, value in batch.items()}
