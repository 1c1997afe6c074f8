"""What guides the diffusion: a sentence, an action, or nothing. One small class each.

A new kind (a style code, say, or a keyframe) is one more class here, a line in CONDITIONS, and its
name among the choices of denoiser.condition in config.py. A class answers for:

    keyword            what generate() and diffusion_loss() call it
    projection(cfg)    the denoiser's parameters for it (kept as `emb_proj`, the published name)
    time_width(cfg)    width of the sinusoid of the noise level, which the published code ties to it
    encode(...)        what the user gave -> (with, without): the condition, and the empty one
    tokens(...)        a condition -> tokens (B, L, D), or None
    summary(...)       a condition -> (B, C), what the length estimator sees
    of_batch(batch)    a training batch -> what `encode` takes
    of_clip(pack, i)   one clip of a pack -> the same, for one motion, and how a person would say it
"""
import torch
import torch.nn as nn


class Text:
    """A sentence: the embeddings of a text encoder, ReLU -> Linear (section 3.2)."""
    keyword, needs_list_of = "texts", "texts"

    def projection(self, cfg):
        return nn.Sequential(nn.ReLU(), nn.Linear(cfg.text_encoded_dim, cfg.latent_dim))

    def time_width(self, cfg):
        return cfg.text_encoded_dim

    def summary_width(self, cfg):
        return cfg.text_encoded_dim

    def encode(self, model, texts, count, known_only=False):
        """B sentences, None = empty ones -> their embeddings and the empty one's, (B, L, E)
        each."""
        if texts is not None:
            check_list(texts, count, "texts", all_are=str)
        if model.text_encoder is None:
            raise ValueError("This model takes texts, but has no text encoder; give MLD a "
                             "text_encoder.")
        texts = [""] * count if texts is None else list(texts)
        unique = {text: i for i, text in enumerate(dict.fromkeys([*texts, ""]))}
        table = model.text_encoder(list(unique)).to(model.dtype)
        wanted = model.config.denoiser.text_encoded_dim
        if table.shape[-1] != wanted:
            raise ValueError(f"The text encoder's output has width {table.shape[-1]}, but the "
                             f"denoiser takes {wanted}; use the text encoder that it was trained "
                             "with.")
        rows = [unique[text] for text in texts]
        return table[rows], table[unique[""]].expand(count, -1, -1)

    def tokens(self, projection, embeddings):
        return projection(embeddings)

    def summary(self, projection, embeddings):
        return embeddings.mean(1)

    def of_batch(self, batch):
        return batch["texts"]

    def of_clip(self, pack, item):
        captions = pack.captions(item)
        text = captions[0].text if captions else ""
        return [text], text


class Action:
    """An action's number: a learned embedding. That of -1, "no action", is zero."""
    keyword, needs_list_of = "actions", "action numbers"

    def projection(self, cfg):
        if cfg.num_actions < 1:
            raise ValueError("denoiser.condition is action, but denoiser.num_actions is 0; set it "
                             "to the number of the dataset's actions.")
        table = nn.Embedding(cfg.num_actions, cfg.latent_dim)
        nn.init.xavier_uniform_(table.weight)
        return table

    def time_width(self, cfg):
        return cfg.latent_dim

    def summary_width(self, cfg):
        return cfg.latent_dim

    def encode(self, model, actions, count, known_only=False):
        """B action numbers, None = all unknown -> they and -1, (B,) int64 each. ValueError with
        known_only for a number that is no action of this model, such as -1."""
        device = model.mean.device
        unknown = torch.full((count,), -1, device=device)
        if actions is None:
            return unknown, unknown
        check_list(actions, count, "actions")
        actions = torch.as_tensor(actions, device=device)
        n = model.config.denoiser.num_actions
        if known_only and (
            actions.is_floating_point() or not 0 <= actions.min() <= actions.max() < n
        ):
            raise ValueError(f"Unknown action: this model knows the actions 0 to {n - 1}, found "
                             f"{actions.tolist()}.")
        return actions, unknown

    def embed(self, projection, actions):
        """(B,) -> (B, D)"""
        return torch.where(actions[:, None] < 0, 0.0, projection(actions.clamp(min=0)))

    def tokens(self, projection, actions):
        return self.embed(projection, actions)[:, None]

    def summary(self, projection, actions):
        return self.embed(projection, actions)

    def of_batch(self, batch):
        return batch["actions"]

    def of_clip(self, pack, item):
        label = int(pack.labels[item])
        return [max(label, 0)], pack.action(item)


class Nothing:
    """No condition at all: the diffusion learns the distribution of motions alone."""
    keyword, needs_list_of = None, "no condition"

    def projection(self, cfg):
        return None

    def time_width(self, cfg):
        return cfg.latent_dim

    def summary_width(self, cfg):
        return 1

    def encode(self, model, given, count, known_only=False):
        return None, None

    def tokens(self, projection, condition):
        return None

    def summary(self, projection, condition):
        return None

    def of_batch(self, batch):
        return None

    def of_clip(self, pack, item):
        return None, "no condition"


CONDITIONS = {"text": Text, "action": Action, "none": Nothing}


def check_list(given, count, name, all_are=object):
    wrong = isinstance(given, str) or len(given) != count
    if wrong or not all(isinstance(one, all_are) for one in given):
        raise ValueError(f"Expected a list of {count} {name}, one per motion, found {given!r}.")


def pick(condition, **given):
    """What was given under this condition's keyword, or None; ValueError if under another's."""
    for keyword, value in given.items():
        if value is not None and keyword != condition.keyword:
            takes = condition.keyword or "no condition"
            raise ValueError(f"This model takes {takes}, but was given {keyword}.")
    return given.get(condition.keyword)


def drop(given, empty, dropped):
    """The empty condition for the samples where dropped (B,) is true: both sides of guidance are
    learned by one network (section 3.3). None stays None."""
    if given is None:
        return None
    return torch.where(dropped.view(-1, *[1] * (given.dim() - 1)), empty, given)
