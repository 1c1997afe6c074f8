"""Packed datasets -> padded batches with lengths, in which clips of similar length are together."""
import atexit
import ctypes
import functools
import gc
import multiprocessing
import os
import signal
import sys

import numpy as np
import torch

from config import pack_path
from formats.pack import Caption, Pack

PR_SET_PDEATHSIG = 1  # of Linux: the signal that this process gets when its parent ends
# Batches that are sorted by length together: 7% padding instead of 51% on clips of 24..196 frames
GROUP = 16


def open_pack(config):
    """The Pack that a Config names; ValueError if it is damaged or the settings don't fit it."""
    pack, wanted = Pack.open(pack_path(config)), config.data
    pack.check_index()
    if (pack.skeleton, pack.fps) != (wanted.skeleton, wanted.fps):
        raise ValueError(f"{pack.path} holds the {pack.skeleton} skeleton at {pack.fps:g} fps, the "
                         f"settings say {wanted.skeleton} at {wanted.fps:g}; pass "
                         f"--data.skeleton={pack.skeleton} --data.fps={pack.fps:g}.")
    return pack


# --------------------------------------------------------------------------------------------------
# Random numbers, each of which can be had without the others

def mixed(x):
    """x (...) uint64 -> uint64, the finaliser of SplitMix64: each bit depends on every bit of x."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def keys_of(seed, count):
    return np.random.SeedSequence(seed).generate_state(count, np.uint64)[:, None]


def uniform(seed, items, count):
    """(count, n) numbers in 0..1 for items (n,), which depend on seed (tuple of ints) and item."""
    bits = mixed(mixed(items.astype(np.uint64) + keys_of(seed, 1)) + keys_of(seed, count))
    return (bits >> np.uint64(11)) * 2.0**-53


def permuted(positions, size, seed):
    """Where a random permutation of 0..size-1 sends positions (n,), without making all of it: a
    Feistel network of six rounds on an even number of bits, applied again to results >= size."""
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


# --------------------------------------------------------------------------------------------------
# Batches


def begin_work(worker):
    """Ctrl-C and SIGTERM reach the workers too; the training process decides when they end, and
    where it is killed, Linux kills them with it (with the thread that made them, which is the main
    one), as they might wait for it forever. And what was in
    memory when a worker was forked is never collected there, since CUDA's objects must not be freed
    outside the process that made them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != multiprocessing.parent_process().pid:  # it was killed just before
            os._exit(1)
    gc.freeze()


@functools.cache
def end_with_us():
    """From now on, worker processes are killed when this one exits. What multiprocessing sends them
    then is SIGTERM, and it would wait for them forever."""
    def end():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # to torch, a killed worker is an error
        for worker in multiprocessing.active_children():
            worker.kill()

    atexit.register(end)


class Batches:
    """The batches of one split. Whatever is random depends only on a few numbers, so that a run can
    be repeated, resumed, and split over processes:

    - the order of items and batches, on (seed, epoch);
    - an item's crop and caption, on (seed, epoch, item), in whatever batch or process it is;
    - the share of a process, on (rank, world): together, the shares are one process's batch.

    batch_size counts the items over all processes. An epoch has every item once, in batches whose
    sizes differ by at most one. `balanced` repeats the items of actions that are rarer than the
    mean until these are about as frequent as the mean; `labelled` leaves out items without an
    action. Crops are T2M's: as many whole units as fit, or one less with a chance of one in three,
    from a random start. A unit of 10 frames or more is always kept, so that unit_length =
    max_frames = 60 gives the fixed 60 frames of the action datasets."""

    def __init__(self, pack, split, batch_size, *, seed=0, rank=0, world=1, by_length=True,
                 min_length=1, max_length=10**9, max_frames=196, unit_length=4, motion=True,
                 labelled=False, balanced=False):
        self.pack, self.seed, self.rank, self.world = pack, seed, rank, world
        self.by_length, self.max_frames, self.unit_length = by_length, max_frames, unit_length
        self.motion = motion
        self.items = pack.indices(split, max(min_length, unit_length), max_length)
        if labelled:
            self.items = self.items[pack.labels[self.items] >= 0]
        if balanced:
            labels = pack.labels[self.items]
            counts = np.bincount(labels + 1, minlength=len(pack.actions) + 1)  # unlabelled first
            mean = counts[1:].sum() / max(1, np.count_nonzero(counts[1:]))
            times = np.maximum(1, np.round(mean / np.maximum(counts, 1)))
            times[0] = 1
            self.items = np.repeat(self.items, times[labels + 1].astype(int))
        if len(self.items) < world:
            raise ValueError(f"{pack.path}: {len(self.items)} {split} items cannot be shared by "
                             f"{world} processes.")
        if batch_size < world:
            raise ValueError(f"A batch of {batch_size} cannot be shared by {world} processes.")
        self.steps = max(1, min(-(-len(self.items) // batch_size), len(self.items) // world))
        self._group = None, []  # the group of batches that was drawn last

    def __len__(self):
        """The number of batches in an epoch."""
        return self.steps

    def crops(self, epoch, items):
        """(starts, lengths, caption draws in 0..1) of some items, each (n,)."""
        shorten, start, caption = uniform((self.seed, epoch, 0), items, 3)
        whole = self.pack.lengths[items].astype(np.int64)
        units = np.minimum(whole, self.max_frames) // self.unit_length
        units -= (shorten < 1 / 3) & (units > 1) & (self.unit_length < 10)
        lengths = units * self.unit_length
        return (start * (whole - lengths + 1)).astype(np.int64), lengths, caption

    def items_of(self, epoch, step):
        """The items of one batch, over all ranks. Only the order of its group is drawn, so that the
        first batch of a million clips comes at once."""
        first = step // GROUP * GROUP
        if self._group[0] != (epoch, first):
            cuts = [round(n * len(self.items) / self.steps)
                    for n in range(first, min(first + GROUP, self.steps) + 1)]
            places = np.arange(cuts[0], cuts[-1])
            items = self.items[permuted(places, len(self.items), (self.seed, epoch, 1))]
            if self.by_length:
                items = items[np.argsort(self.crops(epoch, items)[1], kind="stable")]
            batches = np.split(items, np.subtract(cuts[1:-1], cuts[0]))
            order = np.random.default_rng([self.seed, epoch, 2, first]).permutation(len(batches))
            self._group = (epoch, first), [batches[i] for i in order]
        return self._group[1][step - first]

    def batch(self, epoch, step):
        """The share of this rank in one batch:

        features (B, T, F) float32, normalised, 0 on padding; not there if motion=False, for
        training on cached latents. lengths (B,) int64; actions (B,) int64 ids, -1 for none; items
        (B,) int64 numbers in the pack; texts, tokens, ids: list[str]. global_size, global_frames:
        of the whole batch, for means that do not depend on the number of processes."""
        everyone, pack = self.items_of(epoch, step), self.pack
        starts, lengths, draws = self.crops(epoch, everyone)
        global_frames, share = int(lengths.sum()), slice(self.rank, None, self.world)
        items, starts, lengths, draws = (x[share] for x in (everyone, starts, lengths, draws))
        features = np.zeros((len(items), lengths.max(), pack.nfeats), np.float32)
        captions = []
        drawn = zip(*(x.tolist() for x in (items, starts, lengths, draws)))
        for row, (i, start, length, draw) in enumerate(drawn):
            choices = pack.captions(i) or [Caption("")]
            captions.append(choices[int(draw * len(choices))])
            if not self.motion:
                continue
            frames = pack.features(i)[start:start + length]
            if pack.skeleton == "smpl":  # the root's path starts at the first frame drawn
                frames = frames - np.where(np.arange(pack.nfeats) < 144, 0, frames[0])
            features[row, :length] = (frames - pack.mean) / pack.std
        return {**({"features": torch.from_numpy(features)} if self.motion else {}),
                "lengths": torch.from_numpy(lengths),
                "texts": [caption.text for caption in captions],
                "tokens": [caption.tokens for caption in captions],
                "actions": torch.from_numpy(pack.labels[items].astype(np.int64)),
                "ids": pack.ids_of(items), "items": torch.from_numpy(items.astype(np.int64)),
                "global_size": len(everyone), "global_frames": global_frames}

    def epoch(self, epoch, workers=0):
        """Iterate over an epoch's batches."""
        return self.stream(epoch * self.steps, (epoch + 1) * self.steps, workers)

    def stream(self, first, last, workers=0, prepare=lambda batch, step: batch):
        """Iterate over prepare(batch, step) for the steps first ... last - 1 of a training, epoch
        after epoch; `workers` processes make them ahead of time."""
        steps, ahead = range(first, last), Ahead(self, prepare)
        if not workers or sys.platform != "linux":  # others can't share a training by forking
            return (ahead[step] for step in steps)
        self.pack.share()
        end_with_us()
        return plainly(torch.utils.data.DataLoader(
            ahead, batch_size=None, sampler=steps, num_workers=workers, prefetch_factor=4,
            collate_fn=as_arrays, worker_init_fn=begin_work, multiprocessing_context="fork",
            generator=torch.Generator()))  # of its own: the global one must not be drawn from

    def padded_share(self, epoch=0):
        """The share of padding in the frames of an epoch's batches, over all ranks."""
        lengths = [self.crops(epoch, self.items_of(epoch, step))[1] for step in range(self.steps)]
        return 1 - sum(n.sum() for n in lengths) / sum(n.max() * len(n) for n in lengths)


class Ahead:
    """What the worker processes of a stream share: step -> what is made for it."""

    def __init__(self, batches, prepare):
        self.batches, self.prepare = batches, prepare

    def __getitem__(self, step):
        return self.prepare(self.batches.batch(*divmod(step, len(self.batches))), step)


def as_arrays(batch):
    """Tensors as NumPy arrays, which go through a worker's pipe as bytes. Tensors would go through
    shared memory: a connection to a thread of the busy worker for each of them."""
    return {key: value.numpy() if torch.is_tensor(value) else value for key, value in batch.items()}


def plainly(batches):
    """The batches of a DataLoader, as tensors again. It puts a worker's traceback into its
    ValueError: the last line is what was wrong, such as a damaged clip.

    Read it to its end or close it. If Python's garbage collector comes first, it closes the queues
    to the workers before it tells them to end: 10 seconds pass for each of them."""
    gc.collect()  # no garbage goes to the workers; see begin_work
    reason = None
    try:
        for batch in batches:
            yield {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                   for key, value in batch.items()}
    except ValueError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
        error.__traceback__ = None  # which holds the DataLoader, in a circle
    if reason is not None:  # only now, when that is gone
        raise ValueError(reason)


def to_device(batch, device):
    """A batch with its tensors on the device; what is not a tensor stays."""
    def moved(value):
        if torch.device(device).type == "cuda" and not value.is_cuda:
            value = value.pin_memory()  # else the copy waits for the GPU
        return value.to(device, non_blocking=True)
    return {key: moved(value) if torch.is_tensor(value) else value for key, value in batch.items()}
