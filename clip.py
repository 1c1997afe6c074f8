"""CLIP's text tower (Radford et al., 2021), reading its published weights, and a small tower of
the same code.

    encoder = load_clip("deps/clip-vit-large-patch14")     folder or file as published; frozen
    encoder(["a man jumps", ""])                           (2, 1, 768): pooled and projected, not normalised
    encoder = WordEncoder(config.text, vocabulary)         a small one with a vocabulary of words, to be trained here

The tower is causal: a position sees itself and what stands before it. The pooled feature is read
off the end token, so nothing that follows that token can change it: computing only as many
positions as the longest prompt needs gives the same numbers as the published 77, several times
faster. Only `last_hidden_state`, where the denoiser attends to every position, the padding
included, needs all of them. """
import json
import os
import re

import torch
import torch.nn as nn
import torch.nn.functional as F

from formats import safe_pickle
from clip_tokenizer import Tokenizer
import fast
from kernels import graphs
from transformer import Stack

# --------------------------------------------------------------------------------------------------
# The tower


class TextTower(nn.Module):
    """Token numbers -> hidden states: embedding, causal pre-norm layers, final norm; then a
    projection of the end token's."""

    def __init__(
        self,
        vocab_size,
        width,
        layers,
        heads,
        embed_dim,
        context_length=77,
        activation="quick_gelu",
    ):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.transformer = Stack(
            layers, width, heads, 4 * width, activation=activation, pre_norm=True
        )
        self.text_projection = nn.Linear(width, embed_dim, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection.weight, std=width**-0.5)

    def forward(self, ids):
        """ids (B, L) int64, L at most the context length -> hidden states (B, L, W) after the
        final norm."""
        x = self.token_embedding(ids) + self.positional_embedding[:ids.shape[1]]
        return fast.few_tokens(self.transformer, x, causal=True)

    def pooled(self, ids, end):
        """(B, E): the projected hidden state at the first `end` token of each row."""
        first = (ids == end).cumsum(1).eq(0).sum(1)  # (B,): how many tokens stand before it
        hidden = self.forward(ids)
        return self.text_projection(hidden[torch.arange(len(ids), device=ids.device), first])


PART = 16  # prompts that the CPU encodes at once
RUNG = 8  # tokens


class CLIPTextEncoder(nn.Module):
    """The published tower with its tokenizer: B texts -> (B, 1, E), or (B, 77, W) hidden states.
    Frozen, always in eval."""

    def __init__(self, tower, last_hidden_state=False):
        super().__init__()
        self.tower, self.tokenizer = tower.eval().requires_grad_(False), Tokenizer()
        self.last_hidden_state, self.empty, self.weights = last_hidden_state, None, None
        self.context_length, self.width = tower.positional_embedding.shape
        self.embed_dim = self.width if last_hidden_state else tower.text_projection.out_features
        if len(self.tokenizer) != tower.token_embedding.num_embeddings:
            raise ValueError(
                f"CLIP's vocabulary has {len(self.tokenizer)} tokens, these weights have "
                f"{tower.token_embedding.num_embeddings}; they are not a CLIP text tower's."
            )

    def train(self, mode=True):
        return super().train(False)

    def encode(self, texts):
        device = self.tower.positional_embedding.device
        ids = self.tokenizer(
            texts,
            self.context_length,
            pad_to=self.context_length if self.last_hidden_state else None,
        )
        ids = torch.from_numpy(ids)
        if self.last_hidden_state:
            return self.tower(ids.to(device))
        ends = (ids == self.tokenizer.end).int().argmax(1)
        if device.type != "cpu":
            return self.on_gpu(ids, ends)
        order = ends.argsort(stable=True)
        # prompts of similar length together: a long one does not lengthen the others
        found = [self.tower.pooled(ids[part, :ends[part].max() + 1], self.tokenizer.end)
                 for part in order.split(PART)]
        return torch.cat(found)[order.argsort(), None]

    def on_gpu(self, ids, ends):
        """The same in one go; one CUDA graph serves all prompts up to a multiple of RUNG tokens."""
        L = min(self.context_length, -(-(int(ends.max()) + 1) // RUNG) * RUNG)
        ids = F.pad(ids[:, :L], (0, max(0, L - ids.shape[1]))).to(
            self.tower.positional_embedding.device
        )
        key = "text", graphs.addresses(self.tower)
        return fast.replayed(lambda ids: self.tower.pooled(ids, self.tokenizer.end), key, ids)[
            :, None
        ]

    @torch.no_grad()
    def forward(self, texts):
        """list of B texts of any length (cut off at 77 tokens) -> (B, L, E)"""
        given = [i for i, text in enumerate(texts) if text]
        if len(given) == len(texts):
            return self.encode(texts)
        weights = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.parameters()]
        kind = self.tower.positional_embedding.device.type
        weights.append(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
        # guidance asks for the empty prompt every time: it is encoded once and kept
        if weights != self.weights:
            self.weights, self.empty = weights, self.encode([""])
        result = self.empty.repeat(len(texts), 1, 1)
        if given:
            result[given] = self.encode([texts[i] for i in given])
        return result


# --------------------------------------------------------------------------------------------------
# The small tower: a vocabulary of words

# numbers of "a word that training never saw" and of the end token; words follow
UNKNOWN, END = 0, 1
WORD = re.compile(r"\w+(?:'\w+)?")


def words_of(text):
    return WORD.findall(text.lower())


def vocabulary_of(texts):
    """The sorted list of words in an iterable of texts, for WordEncoder."""
    return sorted({word for text in texts for word in words_of(text)})


def drop_words(text, share, rng):
    """Replace a `share` of the words by the unknown one (written _), so that the unknown word is
    trained, and a prompt is understood without any one of its words. rng: numpy Generator."""
    words = words_of(text)
    return " ".join(
        "_" if drop else word for word, drop in zip(words, rng.random(len(words)) < share)
    )


class WordEncoder(nn.Module):
    """B texts -> (B, 1, W), trained from scratch. `vocabulary` (list of words) belongs to the
    weights: keep it beside them. A word outside it becomes the unknown word; word dropping has
    taught the tower to do without."""

    def __init__(self, cfg, vocabulary):
        super().__init__()
        self.vocabulary = list(vocabulary)
        self.number = {word: i for i, word in enumerate(self.vocabulary, start=END + 1)}
        self.context_length = cfg.context_length
        self.tower = TextTower(
            len(vocabulary) + 2, cfg.width, cfg.layers, cfg.heads, cfg.width, cfg.context_length
        )

    def ids(self, texts):
        """(B, L) int64: word numbers, END; L as long as the longest text needs."""
        room = self.context_length - 1
        rows = [
            [self.number.get(word, UNKNOWN) for word in words_of(text)[:room]] + [END]
            for text in texts
        ]
        ids = torch.full((len(rows), max(map(len, rows))), END)
        for row, numbers in zip(ids, rows):
            row[:len(numbers)] = torch.tensor(numbers)
        return ids.to(self.tower.positional_embedding.device)

    def forward(self, texts):
        return self.tower.pooled(self.ids(texts), END)[:, None]


# --------------------------------------------------------------------------------------------------
# Published weights

HOW = (
    "Get `config.json` and `model.safetensors` (or `pytorch_model.bin`) of openai/clip-vit-large-patch14 from the "
    "Hugging Face hub, or OpenAI's ViT-L-14.pt, put them there, or point to another place with --assets.clip_path=PATH."
)

# published name -> ours, as (pattern, replacement); a name that no pattern matches is not the
# text tower's
HF_LAYER, LAYER = r"text_model\.encoder\.layers\.(\d+)\.", r"transformer.layers.\1."
HUGGING_FACE = [
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (HF_LAYER + r"self_attn\.([qkv])_proj\.(weight|bias)", LAYER + r"self_attn.in_proj_\3.\2"),
    (HF_LAYER + r"self_attn\.out_proj\.(weight|bias)", LAYER + r"self_attn.out_proj.\2"),
    (HF_LAYER + r"layer_norm([12])\.(weight|bias)", LAYER + r"norm\2.\3"),
    (HF_LAYER + r"mlp\.fc([12])\.(weight|bias)", LAYER + r"linear\2.\3"),
    (r"text_model\.final_layer_norm\.(weight|bias)", r"transformer.norm.\1"),
    (r"text_projection\.weight", "text_projection.weight"),
]
OPENAI_LAYER = r"transformer\.resblocks\.(\d+)\."
OPENAI = [
    (r"token_embedding\.weight", "token_embedding.weight"),
    (r"positional_embedding", "positional_embedding"),
    (OPENAI_LAYER + r"attn\.in_proj_(weight|bias)", LAYER + r"self_attn.in_proj_\2"),
    (OPENAI_LAYER + r"attn\.out_proj\.(weight|bias)", LAYER + r"self_attn.out_proj.\2"),
    (OPENAI_LAYER + r"ln_([12])\.(weight|bias)", LAYER + r"norm\2.\3"),
    (OPENAI_LAYER + r"mlp\.c_fc\.(weight|bias)", LAYER + r"linear1.\2"),
    (OPENAI_LAYER + r"mlp\.c_proj\.(weight|bias)", LAYER + r"linear2.\2"),
    (r"ln_final\.(weight|bias)", r"transformer.norm.\1"),
    (r"text_projection", "text_projection.weight"),
]


def rename(tensors):
    """Published tensors of either naming -> ours, in float32. Everything else in them (the image
    tower) is not even read."""
    hugging_face = any(name.startswith("text_model.") for name in tensors)
    table, found = HUGGING_FACE if hugging_face else OPENAI, {}
    for name, tensor in tensors.items():
        for pattern, ours in table:
            if match := re.fullmatch(pattern, name):
                # OpenAI multiplies from the left
                tensor = tensor.T if name == "text_projection" else tensor
                found[match.expand(ours)] = tensor.float().contiguous()
                break
    for name in [n for n in found if n.endswith(".q")]:  # three projections -> one product
        found[name[:-2]] = torch.cat([found.pop(f"{name[:-1]}{part}") for part in "qkv"])
    return found


def build_tower(tensors, heads=None, activation="quick_gelu"):
    """TextTower with these weights (our names); its sizes are read off them. heads: width / 64 in
    every published CLIP."""
    vocab_size, width = tensors["token_embedding.weight"].shape
    layers = len(
        [name for name in tensors if re.fullmatch(r"transformer\.layers\.\d+\.norm1\.weight", name)]
    )
    with torch.device("meta"):
        tower = TextTower(
            vocab_size,
            width,
            layers,
            heads or max(1, width // 64),
            tensors["text_projection.weight"].shape[0],
            len(tensors["positional_embedding"]),
            activation,
        )
    tower.load_state_dict(tensors, assign=True)
    return tower


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON: {error}; get it again.") from None


def load_clip(path, last_hidden_state=False):
    """CLIPTextEncoder from published weights: a Hugging Face folder (config.json with
    model.safetensors, one file or several, or pytorch_model.bin), one such file, or OpenAI's
    ViT-L-14.pt. Only the text tower is read, and nothing in the file is run. FileNotFoundError
    says what to get; ValueError what is wrong with the file."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"CLIP's weights are not at {path}. {HOW}")
    heads, activation, file = None, "quick_gelu", path
    if os.path.isdir(path):
        names = (
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "ViT-L-14.pt",
        )
        file = next((f for name in names if os.path.exists(f := os.path.join(path, name))), None)
        if file is None:
            raise FileNotFoundError(
                f"{path} holds no model.safetensors, pytorch_model.bin or ViT-L-14.pt. {HOW}"
            )
        if os.path.exists(settings := os.path.join(path, "config.json")):
            settings = read_json(settings)
            settings = settings.get("text_config", settings)
            heads, activation = settings.get("num_attention_heads"), settings.get(
                "hidden_act", activation
            )
    if file.endswith(".index.json"):
        shards = sorted(
            {os.path.basename(shard) for shard in read_json(file).get("weight_map", {}).values()}
        )
        tensors = {
            k: v
            for shard in shards
            for k, v in safe_pickle.load_safetensors(os.path.join(path, shard)).items()
        }
    elif file.endswith(".safetensors"):
        tensors = safe_pickle.load_safetensors(file)
    else:
        tensors = safe_pickle.named_tensors(safe_pickle.load_torch(file))
    tensors = rename(tensors)
    try:
        tower = build_tower(tensors, heads, activation)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file} does not hold a whole CLIP text tower ({reason[:200]}). {HOW}"
        ) from None
    return CLIPTextEncoder(tower, last_hidden_state)
