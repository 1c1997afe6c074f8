"""CLIP's byte-pair tokenizer: text <-> the token numbers that CLIP's text tower knows.

    tokenizer = Tokenizer()
    tokenizer.encode("a man jumps")                [320, 786, 18911]
    tokenizer(["a man jumps", "a woman waves"])    (2, 5) array, start and end tokens added
    tokenizer.decode([320, 786, 18911])            "a man jumps"

    python clip_tokenizer.py "a man jumps"         show the tokens of each text
    python clip_tokenizer.py bench                 prompts per second, beside clip-anytorch's

A word is cut into bytes, each written as one printable character, the last one marked with </w>.
Then the pair of neighbours that is highest in the list of merges is joined, again and again, until
no pair is in the list. The number of a token is its place in this list: 256 characters, the same
with </w>, the merges in their order, start, end.

The merges (bpe_merges.txt.gz, 48,894 lines) come from OpenAI's CLIP, (c) 2021 OpenAI, MIT licence.
"""
import argparse
import functools
import gzip
import html
import os
import runpy
import sys
import time

import ftfy
import numpy as np
import regex

MERGES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bpe_merges.txt.gz")
WORDS = regex.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
                      r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)


def byte_characters():
    """A printable character for each of the 256 bytes: itself, or the next one from U+0100 on."""
    printable = [b for a, z in ("!~", "¡¬", "®ÿ") for b in range(ord(a), ord(z) + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def clean(text):
    """Text in lower case, with broken encodings repaired, HTML entities resolved (twice, as
    published) and white space squeezed."""
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = ftfy.fix_text(text)  # slow, and plain text has nothing to repair
    text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


class Tokenizer:
    """CLIP's vocabulary of 49,408 tokens. The tokens of earlier words are cached."""

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
            pairs = zip(parts, parts[1:])
            best = min(pairs, key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            joined, i = [], 0
            while i < len(parts):  # every occurrence of the pair, from the left
                pair = tuple(parts[i:i + 2]) == best
                joined.append("".join(best) if pair else parts[i])
                i += 2 if pair else 1
            parts = joined
        return tuple(self.number[part] for part in parts)

    def encode(self, text):
        """Text of any length -> list of token numbers, without start and end tokens."""
        if not isinstance(text, str):
            raise TypeError(f"A prompt must be text, found {type(text).__name__}.")
        return [number for word in WORDS.findall(clean(text)) for number in self.word(word)]

    def __call__(self, texts, context_length=77, pad_to=None):
        """B texts -> (B, L) int64: start, the tokens, end, and end again as padding. L is `pad_to`
        (77 in published MLD) or the longest text's length. Of a text with more than
        `context_length` tokens the first are kept, and the end token."""
        if isinstance(texts, str):
            raise TypeError("Expected a list of prompts, found a string; wrap it in a list.")
        rows = [[self.start, *self.encode(text)[:context_length - 2], self.end] for text in texts]
        longest = max(map(len, rows), default=2)
        ids = np.full((len(rows), pad_to or longest), self.end, np.int64)
        for row, numbers in zip(ids, rows):
            row[:len(numbers)] = numbers
        return ids

    def decode(self, numbers):
        """Token numbers -> text, with a space after each word; invalid UTF-8 becomes U+FFFD."""
        back = {character: b for b, character in self.bytes.items()}
        words = "".join(self.tokens[i] for i in numbers).split("</w>")
        return " ".join(bytes(back[c] for c in word).decode("utf-8", "replace") for word in words)


def bench():
    """Prompts per second on captions whose words are cached, also for clip-anytorch's tokenizer."""
    people = ["a man", "the figure", "someone", "a woman"]
    acts = ["walks forward", "jumps up high", "waves with the left hand", "kicks"]
    texts = [f"{p} {a} {n} times, then {b} and stops."
             for p in people for a in acts for b in acts for n in range(2, 40)]
    sides = {"ours": Tokenizer().encode}
    files = [os.path.join(folder, "clip", "simple_tokenizer.py") for folder in sys.path]
    theirs = [file for file in files if os.path.exists(file)]
    if theirs:  # run by its path: as a package it would need torchvision, and clash with clip.py
        names = runpy.run_path(theirs[0])
        sides["clip-anytorch"] = names["SimpleTokenizer"]().encode
    else:
        print("clip-anytorch is not installed, so only our tokenizer is timed (to compare: "
              "pip install --no-deps --target DIR clip-anytorch; PYTHONPATH=DIR)")
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(5):
        for name, encode in sides.items():
            since = time.perf_counter()
            for text in texts:
                encode(text)
            best[name] = min(best[name], time.perf_counter() - since)
    for name, seconds in best.items():
        print(f"{name:15s} {len(texts) / seconds:10,.0f} prompts/s, one process, best of 5 over "
              f"{len(texts)} captions")


def main(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*", default=["a man jumps"], help="a prompt, or bench")
    texts = parser.parse_args(argv).text
    if texts == ["bench"]:
        bench()
    else:
        tokenizer = Tokenizer()
        for text in texts:
            print([(i, tokenizer.tokens[i]) for i in tokenizer.encode(text)])


if __name__ == "__main__":
    from flags import program

    program(main)
