"""CLIP's tokenizer equals the published one, even on awkward texts; batches, bad input, help."""
import json
import pathlib

import pytest
import warm

from clip_tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
CASES = json.loads((ROOT / "tests" / "golden" / "clip_tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_equal_to_the_published_tokenizer(tokenizer, case):
    assert tokenizer.encode(case["text"]) == case["ids"]
    assert tokenizer.decode(case["ids"]) == case["decoded"]


def test_vocabulary(tokenizer):
    assert len(tokenizer) == 49408 and (tokenizer.start, tokenizer.end) == (49406, 49407)
    assert tokenizer.number["<|startoftext|>"] == 49406 and tokenizer.tokens[320] == "a</w>"


def test_batches_are_padded_to_the_longest_or_as_asked(tokenizer):
    ids = tokenizer(["a man jumps", ""])
    assert ids.tolist() == [[49406, 320, 786, 18911, 49407], [49406, 49407, 49407, 49407, 49407]]
    assert tokenizer(["a man jumps"], pad_to=77).shape == (1, 77)
    assert tokenizer([]).shape == (0, 2)


def test_truncation_keeps_the_end_token(tokenizer):
    ids = tokenizer(["word " * 500])
    assert (
        ids.shape == (1, 77)
        and ids[0, -1] == tokenizer.end
        and (ids[0, 1:-1] == tokenizer.encode("word")[0]).all()
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "🕺🏽🤸",
        "他在跳舞",
        "прыгает вверх",
        "\x00\x01",
        "<|endoftext|>",
        "‍",
        "&amp;amp;amp;",
    ],
)
def test_any_text_is_tokens_and_comes_back_stable(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(0 <= i < len(tokenizer) for i in ids)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_special_tokens_written_out_are_those_tokens(tokenizer):
    assert tokenizer.encode("a <|endoftext|> b")[1] == tokenizer.end


def test_what_is_no_text_is_refused(tokenizer):
    with pytest.raises(TypeError, match="A prompt must be text, found int"):
        tokenizer([3])
    with pytest.raises(TypeError, match="list of prompts"):
        tokenizer("a man jumps")


def program(argument, folder):
    return warm.run(ROOT / "clip_tokenizer.py", argument, cwd=folder).stdout


def test_as_a_program(tmp_path):
    assert program("a man", tmp_path).strip() == "[(320, 'a</w>'), (786, 'man</w>')]"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_help(tmp_path, flag):
    shown = program(flag, tmp_path)
    assert shown.startswith("usage: clip_tokenizer.py") and "clip_tokenizer.py bench" in shown
