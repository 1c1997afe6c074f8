"""CLIP's byte-pair tokenizer: text <-> the token numbers that CLIP's text tower was trained on.

    tokenizer = Tokenizer()
    tokenizer.encode("a man jumps")                    [320, 786, 18911]
    tokenizer(["a man jumps", "a woman waves"])        (2, 6) array, start and end tokens added
    tokenizer.decode([320, 786, 18911])                "a man jumps"

    python clip_tokenizer.py "a man jumps"             show the tokens
    python clip_tokenizer.py bench                     prompts per second, beside the clip-anytorch package if it is there

A word is cut into bytes, each written as one printable character, the last one marked with </w>; then the pair of
neighbours that stands highest in the list of merges is joined, again and again, until no pair is in the list. A token's
number is its place in: 256 characters, the same with </w>, the merges in their order, start, end.

The merges (bpe_merges.txt.gz, 48,894 lines) are those of OpenAI's CLIP, (c) 2021 OpenAI, MIT licence.
"""
import functools
import gzip
import html
import importlib.util
import os
import sys
import time

import ftfy
import numpy as np
import regex

MERGES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bpe_merges.txt.gz")
WORDS = regex.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
                      regex.IGNORECASE)


def byte_characters():
    """A printable character for each of the 256 bytes: itself where it is one, else the next free one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def clean(text):
    """Mojibake repaired, HTML entities resolved (twice, as published), white space squeezed, lower case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else there is nothing to repair
        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


class Tokenizer:
    """CLIP's vocabulary of 49,408 tokens. Words that were cut once are remembered."""

    def __init__(self, merges_file=MERGES):
        with gzip.open(merges_file, "rt", encoding="utf-8") as file:
            merges = [tuple(line.split()) for line in file]
        self.bytes = byte_characters()
        vocabulary = list(self.bytes.values())
        vocabulary += [c + "</w>" for c in vocabulary] + ["".join(pair) for pair in merges]
        vocabulary += ["<|startoftext|>", "<|endoftext|>"]
        self.tokens = vocabulary
        self.number = {token: i for i, token in enumerate(vocabulary)}
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.start, self.end = len(vocabulary) - 2, len(vocabulary) - 1
        self.word = functools.lru_cache(maxsize=100_000)(self._word)

    def __len__(self):
        return len(self.tokens)

    def _word(self, word):
        """One word (str without white space) -> tuple of token numbers."""
        if word in ("<|startoftext|>", "<|endoftext|>"):
            return (self.number[word],)
        parts = [self.bytes[b] for b in word.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            joined, i = [], 0
            while i < len(parts):  # every place where the pair stands, from the left
                pair = tuple(parts[i:i + 2]) == best
                joined.append("".join(best) if pair else parts[i])
                i += 2 if pair else 1
            parts = joined
        return tuple(self.number[part] for part in parts)

    def encode(self, text):
        """Text -> list of token numbers, without start and end tokens, of any length. TypeError for what is no text."""
        if not isinstance(text, str):
            raise TypeError(f"A prompt must be text, found {type(text).__name__}.")
        return [number for word in WORDS.findall(clean(text)) for number in self.word(word)]

    def __call__(self, texts, context_length=77, pad_to=None):
        """B texts -> (B, L) int64: start, the tokens, end, more end tokens; L is the longest of them, or `pad_to`. What does
        not fit into `context_length` is cut off, the end token kept. Published MLD pads every text to 77, in this way."""
        if isinstance(texts, str):
            raise TypeError("Expected a list of prompts, found a single one; wrap it in a list.")
        rows = [[self.start, *self.encode(text)[:context_length - 2], self.end] for text in texts]
        ids = np.full((len(rows), pad_to or max(map(len, rows), default=2)), self.end, np.int64)
        for row, numbers in zip(ids, rows):
            row[:len(numbers)] = numbers
        return ids

    def decode(self, numbers):
        """Token numbers -> text, a space after each word; bytes that are no UTF-8 become U+FFFD."""
        back = {character: b for b, character in self.bytes.items()}
        text = "".join(self.tokens[i] for i in numbers)
        words = [bytes(back[c] for c in word).decode("utf-8", errors="replace") for word in text.split("</w>")]
        return " ".join(words)


def bench():
    """Prompts per second on captions as people write them, words seen before; beside clip-anytorch's tokenizer."""
    people = ["a man", "the figure", "someone", "a woman"]
    acts = ["walks forward", "jumps up high", "waves with the left hand", "kicks"]
    texts = [f"{p} {a} {n} times, then {b} and stops." for p in people for a in acts for b in acts for n in range(2, 40)]
    sides = {"ours": Tokenizer().encode}
    theirs = [file for folder in sys.path if os.path.exists(file := os.path.join(folder, "clip", "simple_tokenizer.py"))]
    if theirs:  # by its file: the package has the name of our clip.py, and importing it whole asks for torchvision
        spec = importlib.util.spec_from_file_location("simple_tokenizer", theirs[0])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sides["clip-anytorch"] = module.SimpleTokenizer().encode
    else:
        print("clip-anytorch is not there (pip install --no-deps --target DIR clip-anytorch; PYTHONPATH=DIR): ours alone")
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(5):
        for name, encode in sides.items():
            since = time.perf_counter()
            for text in texts:
                encode(text)
            best[name] = min(best[name], time.perf_counter() - since)
    for name, seconds in best.items():
        print(f"{name:15s} {len(texts) / seconds:10,.0f} prompts/s, one process, best of 5 over {len(texts)} captions")


if __name__ == "__main__":
    if sys.argv[1:] == ["bench"]:
        bench()
    else:
        tokenizer = Tokenizer()
        for text in sys.argv[1:] or ["a man jumps"]:
            print([(i, tokenizer.tokens[i]) for i in tokenizer.encode(text)])
