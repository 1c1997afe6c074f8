"""What a reader finds beside the clips: what it leaves out and why, what does not meet, what it
took for granted. Nothing wrong passes in silence, and one broken file does not stop a set."""


def some(names, most=3):
    """The first few of some names, for a sentence."""
    names = list(names)
    return shown(", ".join([*map(str, names[:most]), *["..."] * (len(names) > most)]))


def shown(text):
    """Text that can be printed, whatever bytes the names of files in it are made of."""
    return "".join(c if c.isprintable() else "?" for c in text)


class Found(dict):
    """{why clips are left out: [ids]}, and

    broken  {file or clip: why it cannot be used}
    beyond  {clip: what no person can do in it}
    good    the number of files or clips that could be used
    said    sentences to print once each
    """

    def __init__(self):
        super().__init__()
        self.broken, self.beyond, self.good, self.said = {}, {}, 0, {}

    def __missing__(self, reason):
        return self.setdefault(reason, [])

    def say(self, sentence, name=None):
        """Keep a sentence, and the names that it is about."""
        self.said.setdefault(sentence, []).extend([] if name is None else [name])

    def fail(self, name, error):
        """Leave out one file or clip that cannot be used; `error` becomes one line."""
        self.broken[shown(name)] = shown(" ".join(str(error).split()))

    def leave(self, name, reason):
        """Leave out one clip in which something happens that no person can do."""
        self.beyond[name] = reason

    def meet(self, here, ours, there, theirs):
        """Two lists of names that ought to be the same: say how many of them are, and show three
        of each that are not. ValueError if none is."""
        ours, theirs = dict.fromkeys(ours), dict.fromkeys(theirs)
        met = [name for name in ours if name in theirs]
        alone = [name for name in ours if name not in theirs]
        others = [name for name in theirs if name not in ours]
        lines = [f"{len(names):,d} only in {where} ({some(names)})"
                 for where, names in ((here, alone), (there, others)) if names]
        line = f"{here} and {there}: {len(met):,d} names are in both" + "".join(
            "; " + part for part in lines)
        if not met:
            raise ValueError(f"{line}. The names must be equal, with all their zeros.")
        few = max(len(alone), len(others)) < 0.01 * len(met)
        self.say(line if few else f"warning: {line}")

    def judge(self, strict=False):
        """ValueError if more than half of all clips are left out as broken or impossible, or any
        with `strict`."""
        bad = self.broken | self.beyond
        if not bad or not strict and len(bad) <= self.good:
            return
        name, error = next(iter(bad.items()))
        share = "and --strict allows none" if strict else "which is more than half"
        flag = "" if self.broken else " (--keep packs them anyway)"
        raise ValueError(f"{len(bad)} of {len(bad) + self.good} cannot be used, {share}{flag}. The "
                         f"first is {name}: {error}")

    def report(self):
        """The lines to print: what was said, what is left out, and every broken file."""
        for sentence, names in self.said.items():
            yield f"{sentence}: {len(names):,d} ({some(names, 6)})" if names else sentence
        for reason, ids in self.items():
            if ids:
                yield f"left out, {reason}: {len(ids):,d} ({some(ids, 6)})"
        for title, listed in (("cannot be used", self.broken),
                              ("no person can move like this (--keep takes it)", self.beyond)):
            if listed:
                yield f"left out, {title}: {len(listed):,d}"
                yield from (f"    {name}: {error}" for name, error in listed.items())
