"""The settings: layers, types, nearest names, rules, --help, the assets file, atomic writes."""
import dataclasses
import functools
import glob
import json
import os
import pathlib
import subprocess
import sys

import pytest
import warm

import config
import files
import flags
import presets
from config import Config, SettingError, from_dict, to_dict
from files import atomic_write
from flags import parse_args
from presets import PRESETS

ROOT = pathlib.Path(__file__).resolve().parent.parent


def resolve(*argv, options=None):
    return parse_args(list(argv), options)[0]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", presets.RECIPES)
def test_every_preset_is_valid_and_survives_json(preset, recipe):
    c = resolve("--config", preset, "--recipe", recipe)
    assert from_dict(json.loads(json.dumps(to_dict(c)))) == c


def test_four_layers_each_win_over_the_one_before(tmp_path):
    assets = tmp_path / "assets.py"
    assets.write_text(
        '"""my machine"""\nclip_path = "/models/clip"\n'
        "train_vae.batch_size = 24\ntrain_vae.lr = 3e-4\n"
    )
    assert Config().train_vae.batch_size == 64
    assert (
        resolve("--config", "toy").train_vae.batch_size
        == PRESETS["toy"]["train_vae.batch_size"]
        not in (24, 64)
    )
    c = resolve("--config", "toy", "--cfg_assets", str(assets))
    assert (c.train_vae.batch_size, c.train_vae.lr, c.assets.clip_path) == (
        24,
        3e-4,
        "/models/clip",
    )
    c = resolve("--config", "toy", "--cfg_asset", str(assets), "--train_vae.batch_size=8")
    assert (c.train_vae.batch_size, c.train_vae.lr) == (8, 3e-4)


def test_spellings_of_an_override():
    for argv in (["--vae.latent_size=7"], ["--vae.latent_size", "7"], ["vae.latent_size=7"]):
        assert resolve(*argv).vae.latent_size == 7
    assert (
        resolve("--compile").train.compile and resolve("--compile", "--seed", "3").train.seed == 3
    )
    assert not resolve("--compile", "false").train.compile
    assert resolve("--cache_latents", "0").train.cache_latents == 0
    assert resolve("--condition", "none").denoiser.condition == "none"
    assert parse_args(["a man jumps", "--seed", "3"])[1] == ["a man jumps"]


def test_dataset_picks_its_preset():
    assert resolve("--dataset", "humanml3d") == resolve("--config", "mld_humanml3d")
    kit = resolve("--dataset=kit")
    assert (kit.data.skeleton, kit.data.nfeats, kit.data.fps, kit.data.min_length) == (
        "kit",
        251,
        12.5,
        24,
    )
    c = resolve("--dataset", "humanact12")
    assert (c.denoiser.condition, c.vae.arch, c.denoiser.num_actions, c.data.nfeats) == (
        "action",
        "actor",
        12,
        150,
    )


def test_own_packed_dataset_is_known_by_its_pack(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.pack").touch()
    assert resolve("--dataset", "mine", "--assets.data_root", str(tmp_path)).data.dataset == "mine"
    with pytest.raises(
        SettingError, match="Unknown dataset 'humanml'.*prepare.py.*Did you mean humanml3d"
    ):
        resolve("--dataset", "humanml")


def test_modules_swap_as_a_set():
    c = resolve("--config", "mld_humanml3d", "--modules", "novae")
    assert (c.vae.arch, c.denoiser.arch, c.denoiser.skip_connect, c.train.cache_latents) == (
        "none",
        "trans_dec",
        False,
        0,
    )
    assert resolve("--config", "mld_humanml3d", "model.target=modules_novae") == c
    assert resolve("--config", "novae_humanml3d").denoiser.latent_dim == 512
    assert resolve("--dataset", "toy", "--modules", "novae").vae.arch == "none"
    with pytest.raises(SettingError, match="Unknown --modules .*Did you mean novae"):
        resolve("--modules", "novea")


def test_paper_recipe():
    c = resolve("--dataset", "humanml3d", "--recipe", "paper")
    assert (c.train_vae.lr, c.train_vae.schedule, c.train_vae.grad_clip, c.train_diffusion.ema) == (
        1e-4,
        "constant",
        0,
        0,
    )


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--vae.latnt_size=3"], "Unknown setting 'vae.latnt_size'.*vae.latent_size"),
        (["--vea.latent_size=3"], "vae.latent_size"),
        (["--num_heads=3"], "num_heads"),
        (["--stag", "vae"], "Did you mean stage"),
        (["--config", "mld_humanml"], "Unknown --config .*mld_humanml3d"),
        (["--recipe", "papers"], "Did you mean paper"),
        (["--vae.latent_size=big"], "vae.latent_size must be a whole number, got 'big'"),
        (["--vae.latent_size=1.5"], "whole number"),
        (["--train_vae.lr=nan"], "train_vae.lr must be a number"),
        (["--train.compile=maybe"], "true or false"),
        (["--stage", "vaes"], "one of all, vae, diffusion"),
        (["--vae.latent_size"], "needs a value"),
        (["--vae.num_layers=4"], "vae.num_layers must be odd"),
        (["--denoiser.num_layers=4", "--denoiser.arch=trans_enc"],
         "denoiser.num_layers must be odd"),
        (["--vae.num_heads=5"], "must divide vae.latent_dim"),
        (["--vae.latent_dim=64", "--denoiser.principal=0", "--denoiser.arch=trans_enc"],
         "must be equal; found denoiser.latent_dim=256, vae"),
        (["--vae.latent_size=11"], "1 to 10"),
        (["--vae.max_positions=100"], "must hold data.max_frames"),
        (["--modules", "novae", "--stage", "vae"], "needs a VAE to train"),
        (["--modules", "novae", "--cache_latents", "4"], "cache_latents needs a VAE"),
        (["--data.min_length=300"], "below data.max_length"),
        (["--diffusion.num_inference_steps=0"], "num_inference_steps must be positive"),
        (["--seed=-1"], "train.seed must not be negative; found train.seed=-1"),
        (["--data.unit_length=0"], "data.unit_length must be positive"),
        (["--train_vae.ema=1"], "train_vae.ema must be below 1"),
        (["--diffusion.eta=2"], "diffusion.eta must be at most 1"),
        (["--train.log_every=0"], "train.log_every must be positive"),
        (["--text.heads=0"], "text.heads must be positive"),
        (["--text.context_length=2"], "text.context_length must be at least 3"),
        (["--train_vae.lr=0"], "train_vae.lr must be positive"),
        (
            ["--text.last_hidden_state", "1", "--denoiser.max_positions=50"],
            "must hold 79 tokens and denoiser.principal",
        ),
        (
            ["--modules", "novae", "--denoiser.max_positions=122"],
            "must hold 3 tokens and data.max_frames: 123",
        ),
        (["--data.max_frames=132"], "must hold data.max_frames; found vae.cosine_span=120, data"),
        (["-stag", "vae"], "Did you mean stage"),
        (["--diffusion.num_inference_steps=1001"], "num_inference_steps must be 1 to"),
        (["--diffusion.guidance_scale=-1"], "guidance_scale"),
        (["--train_vae.accumulate=7"], "must divide train_vae.batch_size"),
        (["--text.width=64"], "text.width"),
        (["--seed", str(2**63)], f"train.seed must be at most {2**63 - 1}; found train.seed=92233"),
        (["--seed", "9" * 400], "train.seed must be at most"),
        (["--seed", "9" * 5000], "train.seed must be a whole number"),
        (["--seed=1e17"], "train.seed must be a whole number"),
        (["--train_vae.lr=1e300"], "train_vae.lr must be at most 100"),
        (["--train_vae.lr=1e400"], "train_vae.lr must be a number"),
        (["--train_vae.weight_decay=1e30"], "train_vae.weight_decay must be at most 1000000"),
        (["--train.threads=1000000"], "train.threads must be at most 1024"),
        (["--data.workers=100000"], "data.workers must be at most 256"),
        (["--data.fps=1e-30"], "data.fps must be at least 1"),
        (["--denoiser.freq_shift=-1e9"], "freq_shift must be at most 1000000 in size"),
        (["--train_vae.steps=1e10"], "train_vae.steps must be at most 1000000000"),
        (["--vae.max_positions=60000000"], "vae.max_positions must be at most 1000000"),
        (["--vae.dropout=1.5"], "vae.dropout must be below 1"),
        (["--denoiser.length_token=false"], "denoiser.length_dropout needs denoiser.length_token"),
        (["--dataset=toy", "--vae.arch=none"], "denoiser.length_dropout needs"),
        (["--dataset=toy", "--vae.arch=none", "--denoiser.length_dropout=0",
          "--denoiser.arch=modulated"], "denoiser.arch=modulated needs a VAE"),
        (["--cfg_assets", "/no/such/file.py"], "Assets file /no/such/file.py cannot be read"),
    ],
)
def test_refusals_name_the_setting(argv, message):
    with pytest.raises(SettingError, match=message):
        resolve(*argv)


def test_assets_file_executes_nothing(tmp_path):
    witness, assets = tmp_path / "witness", tmp_path / "assets.py"
    for line in (
        "clip_path = {[]: 1}",
        f"clip_path = open({str(witness)!r}, 'w').name",
        f"open({str(witness)!r}, 'w')",
        "import os",
        "a = b = 1",
        "x[0] = 1",
        "nothing.here = 1",
    ):
        assets.write_text("t2m_path = 'ok'\n" + line)
        with pytest.raises(SettingError, match="literal|Unknown setting"):
            resolve("--cfg_assets", str(assets))
    assert not witness.exists()
    assets.write_text("clip_path = ")
    with pytest.raises(SettingError, match="cannot be read"):
        resolve("--cfg_assets", str(assets))


@pytest.mark.parametrize("line", ["-" * 1000 + "1", "-" * 100_000 + "1", "1" + "+1" * 100_000,
                                  "[" * 1000, "(-" * 150 + "1" + ")" * 150, "x" * 10**6 + "()"])
def test_assets_that_are_nested_deeply_get_one_sentence(tmp_path, line):
    assets = tmp_path / "assets.py"
    assets.write_text("train_vae.lr = " + line)
    said = "Assets file .*(nested too|literal|cannot be)"
    with pytest.raises(SettingError, match=said) as caught:
        resolve("--cfg_assets", str(assets))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../toy", "/tmp/toy", "a/b", "..", ".", "", "a\\b", "a\0b"])
def test_a_dataset_is_a_name_and_no_path(name):
    """The name in a checkpoint's settings leads to files: of the pack, of its evaluator."""
    with pytest.raises(SettingError, match="data.dataset must be a name, not a path"):
        from_dict({"data": {"dataset": name}})


def test_whole_numbers_stay_whole():
    for seed in (2**53 + 1, 2**62 + 3, 2**63 - 1):
        assert resolve("--seed", str(seed)).train.seed == seed
    for text in ("5000", "5e3", "5000.0", "+5_000"):
        assert resolve("--train_vae.steps", text).train_vae.steps == 5000
    assert from_dict({"train": {"seed": 2**53 + 1}}).train.seed == 2**53 + 1


def test_programs_own_flags():
    @dataclasses.dataclass
    class Options:
        resume: bool = False  # go on from the last checkpoint
        num: int = 1  # motions per prompt

    options = Options()
    _, words = parse_args(["a man", "--resume", "--num", "4"], options)
    assert (options.resume, options.num, words) == (True, 4, ["a man"])
    with pytest.raises(SettingError, match="--num must be a whole number"):
        parse_args(["--num", "four"], Options())
    assert "--num " not in flags.help_text("doc")
    assert "--num           motions per prompt" in flags.help_text("doc", Options())


def printed(capsys, *argv):
    """What a --help among the words prints: {flag: its value}, and the lines."""
    with pytest.raises(SystemExit) as stop:
        resolve(*argv)
    assert not stop.value.code
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line.split()[1] for line in lines if line.startswith("  --")}, lines


def test_help_all_lists_every_setting_with_its_meaning(capsys):
    _, lines = printed(capsys, "--help", "all")
    short = {key: name for name, key in flags.SHORT.items()}
    for key in config.FIELDS:
        line = next(line for line in lines if line.startswith(f"  --{short.get(key, key)} "))
        assert len(line[43:]) > 8, line
    _, same = printed(capsys, "--stage", "all", "-h", "all", "--dataset", "toy")
    assert same == lines


def test_help_is_short_and_shows_the_values_at_hand(capsys):
    values, lines = printed(capsys, "--dataset", "humanml3d", "--help", "--train_vae.lr=3e-4")
    assert values["--train_diffusion.steps"] == "550000" and values["--train_vae.lr"] == "0.0003"
    settings = lines[lines.index("Settings, with the values of the preset mld_humanml3d:"):]
    assert 10 <= len(settings) - 3 <= 14 and "--help all" in lines[-1]
    assert printed(capsys, "--help")[0]["--train_vae.steps"] == "8000"
    # a dataset that is not packed yet has help, too
    assert printed(capsys, "--dataset", "mine", "--help")[0]["--train_vae.steps"] == "4000"


def test_an_unknown_flag_names_one_other_flag_not_all():
    for flag in ("--zzzzzz", "--stag", "--resum"):
        with pytest.raises(SettingError) as caught:
            resolve(flag, "1", options=dataclasses.make_dataclass("O", [("resume", bool, False)])())
        assert len(str(caught.value)) < 90


def test_a_checkpoint_from_another_version_is_refused():
    data = to_dict(Config())
    data["vae"]["depth"] = 3
    with pytest.raises(SettingError, match="vae.depth"):
        from_dict(data)


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    with atomic_write(path) as f:
        f.write(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as f:
        f.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["file.bin"]


def test_a_write_that_fails_leaves_no_new_folder(tmp_path):
    (tmp_path / "old").mkdir()
    for path in (tmp_path / "a" / "b" / "c.pack", tmp_path / "old" / "d" / "e.pack"):
        with pytest.raises(ZeroDivisionError), atomic_write(path):
            assert path.parent.is_dir() and 1 / 0
        with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "f" / "g.pack"):
            (tmp_path / "f" / "kept").touch()
            assert 1 / 0
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["f", "kept", "old"]
    with atomic_write(tmp_path / "a" / "b" / "c.pack") as file:
        file.write(b"x")
    assert (tmp_path / "a" / "b" / "c.pack").read_bytes() == b"x"


WRITER = """
import os, signal, sys
sys.path.insert(0, {root!r})
from files import atomic_write
with atomic_write({path!r}) as file:
    file.write(b"half")
    file.flush()
    {then}
"""


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    def writer(name, then):
        script = WRITER.format(root=str(ROOT), path=str(tmp_path / name), then=then)
        return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True)

    (tmp_path / "a stranger's.part").touch()
    alive = writer("alive", "print('writing', flush=True); input()")
    alive.stdout.readline()
    writer("dead", "os.kill(os.getpid(), signal.SIGKILL)").communicate()
    assert len(list(tmp_path.glob("*" + files.PART))) == 2
    with atomic_write(tmp_path / "new") as file:
        file.write(b"whole")
    assert [path.name[:6] for path in tmp_path.glob("*" + files.PART)] == ["alive."]
    alive.communicate("\n")
    assert sorted(os.listdir(tmp_path)) == ["a stranger's.part", "alive", "new"]


def test_as_a_program():
    run = functools.partial(warm.run, "flags.py")
    assert json.loads(run("--dataset", "kit").stdout)["data"]["fps"] == 12.5
    assert (
        run("stage=vae").stderr
        == "error: flags.py takes flags only, found 'stage=vae'; see --help.\n"
    )
    bad = run("--vae.num_layers=4")
    assert (
        bad.returncode == 1
        and bad.stderr.startswith("error: vae.num_layers must be odd")
        and bad.stderr.count("\n") == 1
    )


# --------------------------------------------------------------------------------------------------
# A program whose reader has gone


def without_a_reader(*words, unbuffered="1"):
    """`python words | head -0` -> exit status, what was said as an error."""
    nobody, end = os.pipe()
    os.close(nobody)
    try:
        if words[0] in ("flags.py", "dev/tables.py"):  # these need no torch
            done = subprocess.run([sys.executable, *words], stdout=end, stderr=subprocess.PIPE,
                                  cwd=config.HERE, text=True, timeout=300,
                                  env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
        else:
            done = warm.run(*words, stdout=end, PYTHONUNBUFFERED=unbuffered)
    finally:
        os.close(end)
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["1", ""])
@pytest.mark.parametrize("words", [
    ["flags.py"], ["flags.py", "--help"], ["train.py", "--help", "all"], ["eval.py", "--help"],
    ["prepare.py", "--help"], ["mld.py"], ["diffusion.py"], ["sample.py", "--help"],
    ["clip_tokenizer.py", "a", "b"], ["dev/tables.py"]], ids=" ".join)
def test_a_closed_pipe_is_no_error(words, unbuffered):
    """As in `| head -1`; and what is an error remains one."""
    status, said = without_a_reader(*words, unbuffered=unbuffered)
    if words == ["dev/tables.py"]:
        assert status == 1 and said.startswith("usage: ")
    else:
        assert (status, said) == (0, "")


def test_every_program_ends_so():
    for path in [*glob.glob(f"{config.HERE}/*.py"), *glob.glob(f"{config.HERE}/dev/*.py")]:
        with open(path, encoding="utf-8") as file:
            _, guard, last = file.read().partition('\nif __name__ == "__main__":\n')
        # these only write a file or run another program; the last runs inside Blender, without ours
        silent = "checkpoint.py", "figure.py", "stacks.py", "blender_check.py"
        prints = not path.endswith(silent)
        assert not (guard and prints) or "    program(" in last, path
