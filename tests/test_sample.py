"""sample.py on small models with random weights: its files, seeds, lengths, and wrong calls."""
import os
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import warm

import checkpoint
import sample
from clip_tokenizer import Tokenizer
from clip import WordEncoder
from config import Config, set_value
from conftest import drawn
from presets import PRESETS
from mld import MLD

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = {
    "vae.latent_dim": 16,
    "vae.ff_size": 32,
    "vae.num_layers": 3,
    "denoiser.latent_dim": 16,
    "denoiser.ff_size": 32,
    "denoiser.num_layers": 3,
    "denoiser.text_encoded_dim": 16,
    "text.width": 16,
    "text.layers": 1,
    "diffusion.num_inference_steps": 3,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{kind of condition: path of a model}"""
    paths = {}
    for kind in ("text", "action", "none"):
        config = Config()
        for key, value in {
            **PRESETS["toy"],
            **SIZES,
            "denoiser.condition": kind,
            "denoiser.num_actions": 2 if kind == "action" else 0,
        }.items():
            set_value(config, key, value)
        torch.manual_seed(0)
        vocabulary = ["a", "jumps", "man", "一个人跳"] if kind == "text" else None
        model = drawn(MLD(config, WordEncoder(config.text, vocabulary) if vocabulary else None))
        paths[kind] = str(tmp_path_factory.mktemp("models") / f"{kind}.pt")
        checkpoint.save(
            paths[kind],
            config,
            model.state_dict(),
            vocabulary=vocabulary,
            actions=["walk", "jump"] if kind == "action" else [],
        )
    return paths


def files(folder):
    return sorted(os.listdir(folder))


def test_as_a_program(models, tmp_path):
    done = warm.run(ROOT / "sample.py", "a man jumps", "--ckpt", models["text"], "--format",
                    "html,bvh,npy,gif", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == [
        "a-man-jumps.bvh",
        "a-man-jumps.gif",
        "a-man-jumps.html",
        "a-man-jumps.npy",
    ]
    *paths, last = done.stdout.splitlines()
    assert paths == [f"out/a-man-jumps.{kind}" for kind in ("html", "bvh", "npy", "gif")]
    assert re.fullmatch(r"1 motion \([\d.]+ s\) made in [\d.]+ s", last)
    joints = np.load(tmp_path / "out" / "a-man-jumps.npy")
    assert joints.shape[1:] == (22, 3) and 4 <= len(joints) <= 196 and np.isfinite(joints).all()


def test_only_verbose_tells_of_kernels(models, tmp_path, capsys):
    for flags in ([], ["--verbose"]):
        sample.main(["a man jumps", "--ckpt", models["text"], "--out", str(tmp_path), *flags])
        out = capsys.readouterr().out
        assert ("s to load" in out and "attention torch" in out) == bool(flags)


def test_seeds_numbers_and_lengths(models, tmp_path):
    def make(*flags):
        sample.main(
            [
                "a man jumps",
                "--ckpt",
                models["text"],
                "--format",
                "npy",
                "--out",
                str(tmp_path / "o"),
                "--device",
                "cpu",
                "--force",
                *flags,
            ]
        )
        return {name: np.load(tmp_path / "o" / name) for name in files(tmp_path / "o")}

    one = make("--seconds", "3")["a-man-jumps.npy"]
    assert len(one) == 60
    four = make("--seconds", "3", "--num", "4")
    # joints add up 60 turns and steps of the root, and with them the rounding of different batches;
    # random weights go far in that time
    near = 1e-4 * np.abs(one).max()
    assert np.abs(four["a-man-jumps-000.npy"] - one).max() < near, "it depends on its company"
    assert not np.allclose(four["a-man-jumps-001.npy"], one, atol=10 * near)
    other = make("--seconds", "3", "--seed", "1235")["a-man-jumps.npy"]
    assert np.abs(other - four["a-man-jumps-001.npy"]).max() < near
    for flags in (["--steps", "2"], ["--sampler", "dpm++"], ["--guidance", "1"]):
        other = make("--seconds", "3", *flags)["a-man-jumps.npy"]
        assert not np.allclose(other, one, atol=10 * near), flags


def test_prompts_from_a_file_actions_and_nothing(models, tmp_path):
    (tmp_path / "prompts.txt").write_text("a man jumps\n\n一个人跳\n", encoding="utf-8")
    sample.main(
        [
            "--file",
            str(tmp_path / "prompts.txt"),
            "--ckpt",
            models["text"],
            "--out",
            str(tmp_path / "o"),
            "--format",
            "html,npy",
        ]
    )
    assert files(tmp_path / "o") == [
        "a-man-jumps-000.npy",
        "a-man-jumps-and-1-more.html",
        "一个人跳-001.npy",
    ]
    sample.main(["--action", "jump", "--ckpt", models["action"], "--out", str(tmp_path / "a")])
    sample.main(
        ["--unconditional", "--num", "2", "--ckpt", models["none"], "--out", str(tmp_path / "n")]
    )
    assert files(tmp_path / "a") == ["jump.html"] and files(tmp_path / "n") == [
        "unconditional.html"
    ]


def test_file_names():
    assert [sample.file_name(t) for t in ("A man jumps!", "../../etc/passwd", "🕺", "")] == [
        "a-man-jumps",
        "etc-passwd",
        "motion",
        "motion",
    ]
    assert len(sample.file_name("word " * 500)) <= 80
    # letters of three bytes: cut between two of them, within what a file system allows
    chinese = sample.file_name("一个人跳" * 20)
    assert chinese == ("一个人跳" * 20)[:26] and len(chinese.encode()) == 78
    assert sample.file_name("cafe\u0301") == sample.file_name("café") == "café"


def test_nothing_is_overwritten_unless_asked(models, tmp_path):
    def make(*argv):
        sample.main([*argv, "--ckpt", models["text"], "--out", str(tmp_path), "--seconds", "2"])
        return files(tmp_path)

    assert make("a man jumps!") == ["a-man-jumps.html"]
    first = (tmp_path / "a-man-jumps.html").read_bytes()
    assert make("a man jumps?") == ["a-man-jumps-2.html", "a-man-jumps.html"]
    # all files of a run have one number: the first that is free for each of them
    made = make("A man jumps", "--format", "html,npy,npy", "--num", "2")
    assert {"a-man-jumps-3.html", "a-man-jumps-3-000.npy", "a-man-jumps-3-001.npy"} < set(made)
    assert len(made) == 5 and (tmp_path / "a-man-jumps.html").read_bytes() == first
    assert make("a man jumps?", "--force") == made
    assert b"a man jumps?" in (tmp_path / "a-man-jumps.html").read_bytes()


def test_long_prompts_of_any_script_have_files(models, tmp_path):
    for prompt in ("一个人跳" * 20, "🕺" * 300, "прыжок " * 60, "word " * 200):
        sample.main([prompt + " jumps", prompt + " jumps2 jumps", "--ckpt", models["text"],
                     "--out", str(tmp_path),
                     "--seconds", "1", "--format", "html,npy"])
    assert len(files(tmp_path)) == 12
    assert max(len(name.encode()) for name in files(tmp_path)) < 120


@pytest.mark.parametrize(
    "kind, argv, message",
    [
        ("text", [], "Give prompts"),
        ("text", ["a man jumps", "--unconditional"], "one of the three"),
        ("text", ["a man jumps", "--num", "0"], "--num must be at least 1"),
        ("text", ["a man jumps", "--seconds", "0"], "--seconds must be positive"),
        ("text", ["a man jumps", "--seconds", "1000"], "1000 s is longer than"),
        ("text", ["a man", "--seconds", "inf"], "--seconds must be positive and at most 3600"),
        ("text", ["a man jumps", "--seconds", "nan"], "--seconds must be positive"),
        ("text", ["a man jumps", "--seconds", "1e308"], "--seconds must be positive"),
        ("text", ["a man jumps", "--seconds", "0.001"], "must have 1 to"),
        ("text", ["a man jumps", "--seconds", "2,0"], "--seconds must be positive"),
        ("text", ["a man jumps", "--seconds", "2,3"], "one for each prompt; found 2 for 1"),
        ("text", ["a man jumps", "--num", "1000000000"], "at most 10000 motions"),
        ("text", ["a man jumps", "--seed", str(2**64)], "--seed must be a whole number from 0 to"),
        ("text", ["a man jumps", "--seed", "-1"], "--seed must be a whole number from 0 to"),
        ("text", ["a man jumps", "--guidance", "inf"], "--guidance must be 0 to 100"),
        ("text", ["a man jumps", "--guidance", "nan"], "--guidance must be 0 to 100"),
        ("text", ["a man jumps", "--guidance", "1000"], "--guidance must be 0 to 100"),
        ("text", ["a man jumps", "--unit", "cm"], "--unit is of BVH files"),
        ("text", ["a man jumps", "--bvh", "exact"], "--bvh is of BVH files"),
        ("text", ["a man jumps", "--strength", "0.9"], "--strength is of --vary"),
        ("text", ["a man jumps", "--effort", "high"], "--effort is of --constraints"),
        ("text", ["a man jumps", "--encoding", "latin-1"], "--encoding is of --file"),
        ("text", ["a man jumps", "--format", "npy", "--open"], "--open shows the player"),
        ("text", ["a man \udcff"], "no text in this terminal's encoding"),
        ("text", ["a man jumps", "--format", "fbx"], "--format must be of"),
        ("text", ["a man jumps", "--format", "glb,"], "found ''"),
        ("text", ["a man jumps", "--steps", "0"], "--steps must be 1 to"),
        ("text", ["a man jumps", "--steps", "5000"], "num_inference_steps"),
        ("text", ["a man jumps", "--out", str(ROOT / "README.md")], "README.md is a file"),
        ("text", ["a man jumps", "--device", "meta"], "expected auto or one of cpu, cuda"),
        ("text", ["a man jumps", "--device", "hpu"], "The device hpu cannot be used here"),
        ("text", ["a man jumps", "--guidance", "-1"], "guidance_scale"),
        ("text", ["--file", "nowhere.txt"], "nowhere.txt"),
        ("text", ["--action", "jump"], "trained with another condition"),
        ("action", ["--action", "jmup"], "it knows walk, jump"),
        ("action", ["a man"], "takes actions"),
        ("text", ["a man jumps", "--ckpt", "nowhere.pt"], "nowhere.pt"),
        (
            "text",
            ["a man jumps", "--ckpt", str(ROOT / "checkpoints" / "toy-evaluator.pt")],
            "is an evaluator",
        ),
        ("text", ["a man jumps", "--device", "cuda:77"], "The device cuda:77 cannot be used here"),
        ("text", ["a man jumps", "--device", "gpu"], "The device gpu cannot be used here"),
    ],
)
def test_wrong_calls_get_one_sentence(models, tmp_path, kind, argv, message):
    with pytest.raises(SystemExit) as stop:
        sample.main(["--ckpt", models[kind], "--out", str(tmp_path), *argv])
    assert (
        message in str(stop.value)
        and str(stop.value).startswith("error: ")
        and "\n" not in str(stop.value)
    )
    assert files(tmp_path) == []


@pytest.mark.parametrize("argv, message", [
    (["--format", "gif"], "--format gif needs Pillow"),
    (["--seed", str(2**63)], "--seed must be"),
    (["--out", "/proc/nowhere"], "proc"),
])
def test_what_can_be_refused_is_refused_before_sampling(models, monkeypatch, argv, message):
    def never(*_, **__):
        raise AssertionError("it sampled first")

    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr(MLD, "generate", never)
    with pytest.raises(SystemExit, match=message) as stop:
        sample.main(["a man jumps", "--ckpt", models["text"], *argv])
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("skeleton, joints", [("kit", 21), ("smpl", 24)])
def test_bvh_of_another_skeleton(tmp_path, skeleton, joints):
    config = Config()
    for key, value in {**PRESETS["toy"], **SIZES, "data.skeleton": skeleton,
                       "denoiser.condition": "none"}.items():
        set_value(config, key, value)
    model = MLD(config, rest=torch.randn(24, 3) if skeleton == "smpl" else None)
    checkpoint.save(tmp_path / "other.pt", config, model.state_dict())
    sample.main(["--unconditional", "--ckpt", str(tmp_path / "other.pt"), "--format", "bvh,npy",
                 "--seconds", "3", "--out", str(tmp_path / "o")])
    made = np.load(next((tmp_path / "o").glob("*.npy")))
    text = next((tmp_path / "o").glob("*.bvh")).read_text()
    assert made.shape[1] == joints == text.count("ROOT") + text.count("JOINT")
    assert f"Frames: {len(made)}" in text


def test_a_large_seed_is_itself(models, tmp_path):
    """2^53 + 1 is no float; the last seed and the motions after it have seeds, too."""
    made = []
    for seed in (2**53, 2**53 + 1, 2**63 - 1):
        sample.main(["a man jumps", "--ckpt", models["text"], "--out", str(tmp_path),
                     "--seconds", "2",
                     "--format", "npy", "--num", "2", "--force", "--seed", str(seed)])
        made.append([np.load(tmp_path / f"a-man-jumps-00{i}.npy") for i in range(2)])
    assert np.allclose(made[0][1], made[1][0], atol=1e-4)
    assert not np.allclose(made[0][0], made[1][0], atol=1e-3)


@pytest.mark.parametrize("prompt", ["", "  ", "!!!"])
def test_a_prompt_without_a_word_is_refused(prompt):
    done = warm.run("sample.py", "a man jumps", prompt)
    assert done.returncode and "says nothing: give it words" in done.stderr


def test_what_is_cut_off_is_said(capsys):
    """The small tower reads 76 words, CLIP's 75 tokens."""
    tower = types.SimpleNamespace(positional_embedding=torch.zeros(77, 8))
    own = types.SimpleNamespace(vocabulary=["a"], tower=tower)
    clip = types.SimpleNamespace(tower=tower, tokenizer=Tokenizer())
    for encoder, most, unit in ((own, 76, "words"), (clip, 75, "tokens")):
        sample.say_what_is_cut_off(encoder, ["jump " * most])
        assert capsys.readouterr().err == ""
        sample.say_what_is_cut_off(encoder, ["jump " * (most + 3)])
        said = capsys.readouterr().err
        assert f"reads {most} {unit}" in said and "the last 3 of 'jump" in said


def test_the_start_imports_no_compiler(models, tmp_path):
    """torch imports it for some operations on the meta device, and then takes twice as long."""
    code = ("import runpy, sys\nsys.argv = sys.argv[1:]\ntry:\n    runpy.run_path(sys.argv[0], "
            "run_name='__main__')\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
            "print([name for name in ('torch._dynamo', 'sympy', 'torch._inductor', 'regex', "
            "'formats.hub', 'PIL') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / "sample.py"), "a man jumps",
                           "--ckpt", str(models["text"]), "--out", str(tmp_path)],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr[-800:]
