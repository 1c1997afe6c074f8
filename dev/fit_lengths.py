"""Where the numbers of lengths.py come from, and how far off they are.

    python dev/fit_lengths.py ../shared/data/cmu

Two sources of lengths: captioned windows of CMU recordings (windows.csv, cut by hand), and the
clips of HumanML3D's own index, whose captions are not there: their files' names stand for them. A
ridge regression on the kinds of verbs, fitted to half of both, is measured on the other half (split
by trial, and by name). So are a constant, and the same regression on all words of the windows.
"""
import collections
import csv
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402

import lengths  # noqa: E402

# the parts of HumanML3D whose files' names say what is done
NAMED = ("KIT", "ACCAD", "BioMotionLab_NTroje", "DFaust_67", "Transitions_mocap", "EKUT",
         "TotalCapture", "SFU")
NAMES_WEIGH, RIDGE = 0.1, 3.0  # a name of a file against a window, whose captions share a weight


def read(folder):
    """(windows, names), each a list of (group, text, seconds, weight)."""
    windows, names = [], []
    with open(os.path.join(folder, "windows.csv"), encoding="utf-8") as file:
        for row in csv.DictReader(file):
            captions = row["captions"].split("|")
            long = min(float(row["end_s"]) - float(row["start_s"]), lengths.LONGEST)
            windows += [(row["trial"].replace("61_", "60_"), text.strip(), long, 1 / len(captions))
                        for text in captions]  # 60 and 61 are two dancers of one take
    with open(os.path.join(folder, "humanml3d", "index.csv"), encoding="utf-8") as file:
        for row in csv.DictReader(file):
            _, _, source, *_, name = row["source_path"].split("/")
            frames = int(row["end_frame"]) - int(row["start_frame"])
            if source in NAMED and frames > 0:
                text = re.sub("([a-z])([A-Z])", r"\1 \2", name.removesuffix("_poses.npy"))
                text = re.sub("[^a-z]+", " ", text.lower()).strip()
                group = re.sub(r" (left|right)\b", "", text)
                long = min(max(frames / 20, lengths.SHORTEST), lengths.LONGEST)
                names.append((group, text, long, NAMES_WEIGH))
    return windows, names


def halves(rows, rng):
    groups = sorted({row[0] for row in rows})
    chosen = set(rng.permutation(groups)[:len(groups) // 2])
    return [row for row in rows if row[0] in chosen], [row for row in rows if row[0] not in chosen]


def kinds(text):
    return lengths.verbs(text)


def words(text):
    return set(re.findall(r"[a-z']+", text.lower()))


def fit(rows, features):
    """Ridge regression: (plain seconds, {feature: seconds it adds})."""
    found = [features(text) for _, text, _, _ in rows]
    counts = collections.Counter(name for row in found for name in set(row))
    known = {name: i for i, name in enumerate(sorted(n for n in counts if counts[n] >= 3))}
    X = np.zeros((len(rows), len(known)))
    for x, row in zip(X, found):
        x[[known[name] for name in row if name in known]] = 1
    y, weight = (np.array([row[i] for row in rows]) for i in (2, 3))
    mean, middle = np.average(X, axis=0, weights=weight), np.average(y, weights=weight)
    C = X - mean
    adds = np.linalg.solve(C.T @ (weight[:, None] * C) + RIDGE * np.eye(len(known)),
                           C.T @ (weight * (y - middle)))
    return middle - mean @ adds, dict(zip(known, adds))


def error(rows, plain, adds, features):
    """Mean absolute error in seconds."""
    made = [plain + sum(adds.get(name, 0) for name in features(row[1])) for row in rows]
    made = np.clip(made, lengths.SHORTEST, lengths.LONGEST)
    y, weight = (np.array([row[i] for row in rows]) for i in (2, 3))
    return np.average(abs(made - y), weights=weight)


def main(argv):
    if len(argv) != 1:
        sys.exit("usage: python dev/fit_lengths.py FOLDER, with CMU's windows.csv in it")
    folder, = argv
    windows, names = read(folder)
    found = collections.defaultdict(list)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        (train, held), (train_names, held_names) = halves(windows, rng), halves(names, rng)
        for title, rows, features in (
                ("a constant", None, kinds), ("all words, of windows", train, words),
                ("verbs, of windows", train, kinds), ("verbs, of names", train_names, kinds),
                ("verbs, of both", train + train_names, kinds)):
            plain, adds = fit(rows, features) if rows else (
                np.median([row[2] for row in train + train_names]), {})
            found[title].append([error(part, plain, adds, features)
                                 for part in (held, held_names)])
    print("mean absolute error, seconds     held windows   held names of HumanML3D")
    for title, rows in found.items():
        print(f"{title:32s}" + "".join(f"{m:8.2f} +- {s:.2f} " for m, s in
                                       zip(np.mean(rows, 0), np.std(rows, 0))))
    plain, adds = fit(windows + names, kinds)
    print(f"PLAIN = {plain:.1f}")
    for kind in lengths.ADDS:
        print(f'    "{kind}": {adds.get(kind, 0):.1f},')


if __name__ == "__main__":
    from flags import program

    program(main)
