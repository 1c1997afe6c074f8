"""CLIP's text tower (Radford et al., 2021), and a small tower of the same code that trains here.

    encoder = published_clip.load_clip("deps/clip-vit-large-patch14")   # frozen
    encoder(["a man jumps", ""])            # (2, 1, 768): pooled and projected, not normalised
    encoder = WordEncoder(config.text, vocabulary)   # small, with a vocabulary of words

The tower is causal: a position sees itself and the positions before it. The pooled feature is read
off the end token, so nothing after that token can change it. Computing only as many positions as
the longest prompt needs gives the same numbers as the published 77, several times faster. Only
`last_hidden_state`, where the denoiser attends to all positions, padding included, needs all 77.
"""
from itertools import accumulate

import torch
import torch.nn as nn
import torch.nn.functional as F

import fast
import words
from kernels import graphs
from transformer import Stack

# --------------------------------------------------------------------------------------------------
# The tower


class TextTower(nn.Module):
    """Token numbers -> hidden states: embedding, causal pre-norm layers, final norm. The end
    token's hidden state, projected, stands for the whole text."""

    def __init__(self, vocab_size, width, layers, heads, embed_dim, context_length=77,
                 activation="quick_gelu"):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.transformer = Stack(layers, width, heads, 4 * width, activation=activation,
                                 pre_norm=True)
        self.text_projection = nn.Linear(width, embed_dim, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection.weight, std=width**-0.5)

    def forward(self, ids):
        """ids (B, L) int64, L at most the context length -> hidden states (B, L, W)."""
        x = self.token_embedding(ids) + self.positional_embedding[:ids.shape[1]]
        return fast.few_tokens(self.transformer, x, causal=True)

    def pooled(self, ids, end):
        """(B, E): the projected hidden state at the first `end` token of each row."""
        first = (ids == end).cumsum(1).eq(0).sum(1)  # (B,): how many tokens come before it
        hidden = self.forward(ids)
        return self.text_projection(hidden[torch.arange(len(ids), device=ids.device), first])


PART = 16  # prompts that a CPU encodes at once
RUNG = 8  # tokens: a CUDA graph of the tower serves prompts up to a multiple of it


class CLIPTextEncoder(nn.Module):
    """The published tower with its tokenizer: B texts -> (B, 1, E), or (B, 77, W) hidden states.

    It is frozen, and always in eval mode."""

    def __init__(self, tower, last_hidden_state=False):
        super().__init__()
        from clip_tokenizer import Tokenizer  # here, since it takes a tenth of sample.py's start
        self.tower, self.tokenizer = tower.eval().requires_grad_(False), Tokenizer()
        self.last_hidden_state, self.empty, self.weights = last_hidden_state, None, None
        self.context_length, self.width = tower.positional_embedding.shape
        self.embed_dim = self.width if last_hidden_state else tower.text_projection.out_features
        found = tower.token_embedding.num_embeddings
        if len(self.tokenizer) != found:
            raise ValueError(f"CLIP's vocabulary has {len(self.tokenizer)} tokens, these weights "
                             f"have {found}; they are not a CLIP text tower's.")

    def train(self, mode=True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, texts):
        """A list of B texts of any length (cut off at 77 tokens) -> (B, L, E)."""
        given, empty = [text for text in texts if text], self.encode_empty()
        # each text's row; told first, since a copy to a GPU waits for what runs there
        rows = [i * bool(text) for i, text in zip(accumulate(map(bool, texts)), texts)]
        rows = torch.tensor(rows, device=empty.device)
        return torch.cat((empty, self.encode(given)) if given else (empty,))[rows]

    def encode_empty(self):
        """The empty text -> (1, L, E). Guidance asks for it every time, so it is kept until a
        weight changes or moves."""
        weights = [(p.data_ptr(), 0 if p.is_inference() else p._version)
                   for p in graphs.tensors_of(self)]
        weights.append(fast.autocast(self.tower.positional_embedding))
        if weights != self.weights:
            self.weights, self.empty = weights, self.encode([""])
        return self.empty

    def encode(self, texts):
        device = self.tower.positional_embedding.device
        L, whole = self.context_length, self.last_hidden_state
        ids = torch.from_numpy(self.tokenizer(texts, L, pad_to=L if whole else None))
        if whole:
            return self.tower(ids.to(device))
        ends = (ids == self.tokenizer.end).int().argmax(1)
        if device.type != "cpu":
            return self.on_gpu(ids, ends)
        # prompts of similar length together, so that a long one does not lengthen the others
        order = ends.argsort(stable=True)
        found = [self.tower.pooled(ids[part, :ends[part].max() + 1], self.tokenizer.end)
                 for part in order.split(PART)]
        return torch.cat(found)[order.argsort(), None]

    def on_gpu(self, ids, ends):
        """All prompts at once; one CUDA graph serves lengths up to a multiple of RUNG tokens."""
        tower, end = self.tower, self.tokenizer.end
        L = min(self.context_length, -(-(int(ends.max()) + 1) // RUNG) * RUNG)
        ids = F.pad(ids[:, :L], (0, max(0, L - ids.shape[1])))
        ids = ids.to(tower.positional_embedding.device)
        key = "text", graphs.addresses(tower)
        found = fast.replayed(lambda ids: tower.pooled(ids, end), key, ids)
        return found[:, None].clone()  # a graph gives inference tensors, which autograd refuses


# --------------------------------------------------------------------------------------------------
# The small tower: a vocabulary of words

UNKNOWN, END = 0, 1  # "a word that training never saw", and the end token; the words follow


class WordEmbedding(nn.Embedding):
    """With text.vectors, a word is Linear(its vector) + its row. The ids from len(weight) on are
    rows of word_vectors.bin: words that training never saw, or whose row is dropped."""

    def __init__(self, vocabulary, width):
        super().__init__(len(vocabulary) + 2, width)
        self.scale, table = words.vectors().scale, words.table_of(vocabulary)
        self.register_buffer("table", torch.from_numpy(table), persistent=False)  # int8
        self.project = nn.Linear(table.shape[1], width, bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.02)  # the vectors have length 1

    def forward(self, ids):
        known = ids < len(self.weight)
        rows = super().forward(ids * known) * known[..., None]
        return rows + self.project(self.table[ids].to(rows.dtype) * self.scale)


class WordEncoder(nn.Module):
    """B texts -> (B, 1, W), trained from scratch.

    vocabulary: list of words. It belongs to the weights: keep it beside them. A word outside it is
    read by its vector, if cfg.vectors, and else as the unknown word."""

    def __init__(self, cfg, vocabulary):
        super().__init__()
        self.cfg, self.vocabulary = cfg, list(vocabulary)
        self.number = {word: i for i, word in enumerate(self.vocabulary, start=END + 1)}
        self.tower = TextTower(len(vocabulary) + 2, cfg.width, cfg.layers, cfg.heads, cfg.width,
                               cfg.context_length)
        if cfg.vectors:
            self.tower.token_embedding = WordEmbedding(self.vocabulary, cfg.width)

    def id(self, word):
        row = words.row_of(word) if self.cfg.vectors and word not in self.number else None
        return self.number.get(word, UNKNOWN) if row is None else len(self.number) + 2 + row

    def ids(self, texts):
        """(B, L) int64: the words' numbers, then END; L is what the longest text needs."""
        room = self.cfg.context_length - 1
        rows = [torch.tensor([*map(self.id, words.words_of(text)[:room]), END]) for text in texts]
        return nn.utils.rnn.pad_sequence(rows, True, END)

    def forward(self, texts):
        return self.of_ready(self.ids(texts))

    def ready(self, texts):
        """forward in two parts: what is done for a text on the host, a tensor of few shapes ..."""
        ids = self.ids(texts)
        short = min(-ids.shape[1] % RUNG, self.cfg.context_length - ids.shape[1])
        return F.pad(ids, (0, short), value=END)

    def of_ready(self, ids):
        """... and what is computed of it: (B, L) -> (B, 1, W)."""
        return self.tower.pooled(ids.to(self.tower.positional_embedding.device), END)[:, None]
