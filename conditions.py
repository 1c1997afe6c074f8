"""What guides the diffusion: a sentence, an action, or nothing. One small class each.

A new kind (a style code, say, or a keyframe) is one more class here, a line in CONDITIONS, and its
name among the choices of denoiser.condition in config.py. A class answers for:

    keyword             its name as an argument of generate() and diffusion_loss()
    projection(cfg)     the denoiser's parameters for it (kept as `emb_proj`, the published name)
    time_width(cfg)     width of the noise level's sinusoid, which the published code ties to it
    encode(...)         what the user gave -> the condition and the empty one, for B motions
    tokens(...)         a condition -> tokens (B, L, D), or None
    summary(...)        a condition -> (B, C), what the length estimator sees, or None
    summary_width(cfg)  C
    of_batch(batch)     a training batch -> what `encode` takes
    of_clip(pack, i)    one clip of a pack -> the same for one motion, and how a person would say it

What it says of a motion's length is read off by LengthEstimator.
"""
import torch
import torch.nn as nn


class Text:
    """A sentence: the embeddings of a text encoder, then ReLU and Linear (section 3.3)."""
    keyword = "texts"

    def projection(self, cfg):
        return nn.Sequential(nn.ReLU(), nn.Linear(cfg.text_encoded_dim, cfg.latent_dim))

    def time_width(self, cfg):
        return cfg.text_encoded_dim

    def summary_width(self, cfg):
        return cfg.text_encoded_dim

    def encode(self, model, texts, count, known_only=False):
        """B sentences (None: empty ones) -> their embeddings and the empty one's, (B, L, E) each.

        ValueError without a text encoder, or for one of another width."""
        if torch.is_tensor(texts):  # what the encoder's `ready` made of texts and the empty one
            table = model.text_encoder.of_ready(texts).to(model.dtype)
            times = count // (len(table) - 1)  # that each of them stands for, in a row
            return table[:-1].repeat_interleave(times, 0), table[-1:].expand(count, -1, -1)
        if texts is not None:
            check_list(texts, count, "texts", all_are=str)
        if model.text_encoder is None:
            raise ValueError("This model takes texts, but has no text encoder; give MLD a "
                             "text_encoder.")
        texts = [""] * count if texts is None else list(texts)
        unique = {text: i for i, text in enumerate(dict.fromkeys([*texts, ""]))}
        # before the encoder runs, since a copy to a GPU waits for what runs there
        rows = torch.tensor([unique[text] for text in texts], device=model.mean.device)
        table = model.text_encoder(list(unique)).to(model.mean.device, model.dtype)
        wanted = model.config.denoiser.text_encoded_dim
        if table.shape[-1] != wanted:
            raise ValueError(f"The text encoder's output has width {table.shape[-1]}, but the "
                             f"denoiser takes {wanted}; use the one that it was trained with.")
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
    keyword = "actions"

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
        """B action numbers (None: unknown ones) -> these numbers, and -1s; (B,) int64 each.

        known_only: ValueError for a number that is not an action of this model, such as -1."""
        device = model.mean.device
        unknown = torch.full((count,), -1, device=device)
        if actions is None:
            return unknown, unknown
        check_list(actions, count, "actions")
        actions = torch.as_tensor(actions, device=device)
        n, whole = model.config.denoiser.num_actions, not actions.is_floating_point()
        if known_only and not (whole and 0 <= actions.min() <= actions.max() < n):
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
    keyword = None

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


def check_list(given, count, name, all_are=None):
    wrong = isinstance(given, str) or len(given) != count
    if wrong or all_are and not all(isinstance(one, all_are) for one in given):
        raise ValueError(f"Expected a list of {count} {name}, one per motion, found {given!r}.")


def pick(condition, **given):
    """What was given under this condition's keyword, or None; ValueError for another keyword."""
    for keyword, value in given.items():
        if value is not None and keyword != condition.keyword:
            takes = condition.keyword or "no condition"
            raise ValueError(f"This model takes {takes}, but was given {keyword}.")
    return given.get(condition.keyword)


def drop(given, empty, dropped):
    """The empty condition where dropped (B,) is true, else the given one; None stays None.

    This is how one network learns both sides of guidance (section 3.3)."""
    if given is None:
        return None
    return torch.where(dropped.view(-1, *[1] * (given.dim() - 1)), empty, given)


class LengthEstimator(nn.Module):
    """Condition (B, C) -> logits of the motion's length: 1, 2, ... times data.unit_length frames.
    Ours: the published system asks the user for it."""

    def __init__(self, dim, data, width=128):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU(),
                                 nn.Linear(width, data.max_frames // data.unit_length))

    def forward(self, condition):
        return self.net(condition)
