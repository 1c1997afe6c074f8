"""Several packs -> the clips of one, with their splits, captions and actions."""
from collections import Counter
from dataclasses import replace

import numpy as np


def settings_of(packs):
    """What write_pack needs beside the clips: skeleton, fps, encoding ("joints" if all packs have
    it), actions (of all), rest. ValueError names two packs that do not fit together."""
    first = packs[0]
    for pack in packs[1:]:
        for what in ("skeleton", "fps"):
            ours, theirs = getattr(first, what), getattr(pack, what)
            if ours != theirs:
                raise ValueError(f"{first.path} and {pack.path} cannot be joined: the {what} of "
                                 f"the one is {ours}, that of the other {theirs}.")
        if (first.rest is None) != (pack.rest is None) or not (
                first.rest is None or np.array_equal(first.rest, pack.rest)):
            raise ValueError(f"{first.path} and {pack.path} cannot be joined: their bodies at "
                             "rest differ; pack both with the same --smpl.")
    paths = Counter(pack.path for pack in packs)
    for path, times in paths.items():
        if times > 1:
            raise ValueError(f"{path} is named {times} times; name each pack once.")
    encoding = "joints" if all(pack.encoding == "joints" for pack in packs) else "features"
    return {"skeleton": first.skeleton, "fps": first.fps, "encoding": encoding,
            "rest": first.rest,
            "actions": list(dict.fromkeys(action for pack in packs for action in pack.actions))}


def joined(packs, found, times=None):
    """Yield the clips of all packs. The ids of a set that shares one with another set become
    `set_id`, and that is said. ValueError if that is no help.

    times   how often the train items of each pack are to be there, so that a small set is not lost
            in a large one; they become id.1, id.2, ... A copy takes the room of a line."""
    times = times or [1] * len(packs)
    seen = Counter(id for pack in packs for id in pack.ids)
    prefixes = [f"{pack.name}_" if any(seen[id] > 1 for id in pack.ids) else "" for pack in packs]
    after = Counter(
        prefix + id + end for pack, prefix, count in zip(packs, prefixes, times)
        for id, split in zip(pack.ids, pack.splits)
        for end in ("", *(f".{n}" for n in range(1, count if split == "train" else 1))))
    twice = [id for id, count in after.items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} ids are there twice even with the name of their set in "
                         f"front, such as {twice[0]}; give the sets names of their own (--name).")
    for pack, prefix, count in zip(packs, prefixes, times):
        if prefix:
            found.say(f"ids get {prefix} in front, because another set has some of them", pack.name)
        for clip in pack.clips():
            items = [(prefix + id, *rest) for id, *rest in clip.items]
            if clip.split == "train":
                items += [(f"{id}.{n}", *rest) for n in range(1, count) for id, *rest in items]
            features = np.asarray(clip.features, np.float32)
            yield replace(clip, id=prefix + clip.id, items=items, features=features)
