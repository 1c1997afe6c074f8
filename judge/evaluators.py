"""Finds the network that judges a dataset's motion: published.py has the field's, own.py ours.

    judge = find(config, pack)                            judge.title says which one it is
    rows, logits = judge.embed(features, lengths, seeds)  (B, T, F), not normalised -> (B, D), and
                                                          (B, actions) or None
    rows = judge.embed_text(texts, tokens)                (B, D), in the same space, if
                                                          judge.reads_text

Our own is evaluator_model.pt, which `python train.py --dataset NAME --stage evaluator` trains.
"""
import os

import torch

import checkpoint
from config import HERE
from formats.safe_pickle import load_torch, named_tensors
from judge.own import OwnJudge
from judge.published import CLASSIFIERS, STGCN, ActionGRU, load_t2m


def find(config, pack, path=None, device="cpu"):
    """The judge for a dataset, in eval mode.

    That is the published one where its files are, and otherwise our own; always our own if its
    `path` is given or evaluator.kind is "own". FileNotFoundError says what to get or to train,
    ValueError what is wrong with the file.
    """
    name, kind, assets = config.data.dataset, config.evaluator.kind, config.assets
    if path and kind == "t2m":
        raise ValueError(f"Which judge, {path} or the published one? Leave out --evaluator or "
                         "--evaluator.kind=t2m.")
    auto = kind == "auto" and not path
    has_t2m = name in ("humanml3d", "kit") and os.path.isdir(assets.t2m_path)
    classifier = os.path.join(assets.classifier_path, CLASSIFIERS.get(name, ""))
    if kind == "t2m" or auto and has_t2m:
        judge = load_t2m(assets, name)
    elif auto and os.path.isfile(classifier):
        judge = STGCN() if name == "uestc" else ActionGRU(torch.as_tensor(pack.rest))
        state = load_torch(classifier)
        state = state.get("model", state) if isinstance(state, dict) else state
        checkpoint.fill(judge, named_tensors(state), classifier)
    else:
        judge = load_own(config, pack, path)
    return judge.to(device).eval().requires_grad_(False)


def load_own(config, pack, path=None):
    """OwnJudge from `path`, or from where train.py puts it, or the one that ships."""
    name = config.data.dataset
    places = [path] if path else [os.path.join(config.train.out, name, "evaluator_model.pt"),
                                  os.path.join(HERE, "checkpoints", f"{name}-evaluator.pt")]
    path = next(filter(os.path.exists, places), None)
    how = f"train one with: python train.py --dataset {name} --stage evaluator"
    if path is None:
        raise FileNotFoundError(f"There is no evaluator for {name} at {' or '.join(places)}; {how}")
    data = checkpoint.load(path)
    if not data.get("judge") or data["config"].data.skeleton != pack.skeleton:
        raise ValueError(f"{path} is no evaluator for motion of the {pack.skeleton} skeleton; "
                         f"{how}")
    names = [data.get(key) or [] for key in ("vocabulary", "actions")]
    return checkpoint.fitted(lambda: OwnJudge(data["config"], pack.mean, pack.std, *names),
                             data["config"], data["model"], path, words=sum(names, []), judge=True)
