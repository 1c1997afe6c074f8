"""Fine-tuning: what carries over of a trained model, what grows, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import warm

import checkpoint
import finetune
from config import SettingError
from flags import parse_args
from formats.pack import Caption, Clip, Pack, write_pack
from test_train import clips_of, command, log, run
from train import trained_vae

NEW = ["--dataset=other", "--train_vae.steps=4", "--train_diffusion.steps=4", "--train.threads=1",
       "--precision=float32", "--train.log_every=1", "--train.eval_every=2", "--train.save_every=2",
       "--train.sample_every=0", "--train_vae.batch_size=8", "--train_diffusion.batch_size=8",
       "--train_vae.max_logit=0", "--train_diffusion.max_logit=0"]  # which moves weights by itself


def others(extra):
    """The same kind of clips with a new word, a new action, and other lengths and offsets."""
    for clip in clips_of(5):
        clip.captions = [Caption(c.text + extra) for c in clip.captions]
        clip.action = "hover" if clip.action == "walk" else clip.action
        clip.features = clip.features + np.float32(0.3)
        yield clip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """data/made and data/other, and models of `made`: by text and by action."""
    folder = tmp_path_factory.mktemp("finetune")
    for name, clips, actions in (("made", clips_of(0), ["walk", "jump"]),
                                 ("other", others(" sideways"), ["hover", "jump"])):
        write_pack(folder / "data" / name / f"{name}.pack", clips, name=name, skeleton="t2m",
                   fps=20.0, actions=actions)
    for condition in ("text", "action"):
        done = run(folder, f"--name={condition}", f"--condition={condition}",
                   "--train.sample_every=0")
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


def tune(root, source, name, *flags):
    """A fine-tuning of a run's model on `other`, by the command that the docs give."""
    place = [word for word in command(root) if "data_root" in word or "--out=" in word]
    start = f"--init_from={root / 'out' / source / 'model.pt'}"
    return warm.run("train.py", *place, start, f"--name={name}", *NEW, *flags)


def test_what_the_model_knew_is_where_the_training_starts(root):
    """A learning rate of (almost) nothing leaves every weight of the old model in its place: the
    sizes, the mean and std, the latents' too, the old words' rows."""
    done = tune(root, "text", "still", "--train_vae.lr=1e-12", "--train_diffusion.lr=1e-12")
    assert done.returncode == 0, done.stderr[-2000:]
    old, new = (checkpoint.load_model(str(root / "out" / name / "model.pt"))
                for name in ("text", "still"))
    late = replace(old.config.vae, sharpen_from=0.0)  # movements are learnt already
    assert new.config.vae == late and new.config.denoiser == old.config.denoiser
    assert new.config.diffusion == old.config.diffusion
    before, after = old.state_dict(), new.state_dict()
    for name, value in before.items():
        assert torch.allclose(after[name][:len(value)] if value.dim() else after[name], value,
                              atol=1e-6), name
    n = len(old.text_encoder.vocabulary)
    assert new.text_encoder.vocabulary[:n] == old.text_encoder.vocabulary
    assert new.text_encoder.vocabulary[n:] == ["sideways"]
    texts = ["a man jumps once", "a man walks here"]
    a, b = (m.generate(texts, lengths=[40, 44], seed=1)[1] for m in (old, new))
    assert torch.allclose(a, b, atol=1e-4)
    pack = Pack.open(root / "data" / "other" / "other.pack")
    assert np.abs(new.mean.numpy() - pack.mean).max() > 0.1, "else this test shows nothing"


def test_one_stage_after_the_other(root):
    """The VAE alone, and then the diffusion in its latents, as with both in one command."""
    done = tune(root, "text", "first", "--stage=vae", "--train_vae.lr=1e-12")
    assert done.returncode == 0, done.stderr[-2000:]
    old = checkpoint.load_model(str(root / "out" / "text" / "model.pt")).state_dict()
    for vae in ("first/vae_best.pt", "first/../text/model.pt"):  # the model's own, by another path
        done = tune(root, "text", "second", "--stage=diffusion", "--train_diffusion.lr=1e-12",
                    f"--train.vae_checkpoint={root / 'out' / vae}", "--overwrite")
        assert done.returncode == 0, done.stderr[-2000:]
        new = checkpoint.load_model(str(root / "out" / "second" / "model.pt")).state_dict()
        for name, value in old.items():
            if name.split(".")[0] in ("vae", "denoiser", "length_estimator"):
                assert torch.allclose(new[name], value, atol=1e-6), name


def test_a_new_diffusion_takes_its_features_as_the_vae_does(root):
    """A VAE knows features by one mean and std, whatever pack the diffusion learns from."""
    done = tune(root, "text", "narrowed", "--stage=vae")
    assert done.returncode == 0, done.stderr[-2000:]
    known = checkpoint.load_model(str(root / "out" / "text" / "model.pt"))
    for name, vae in (("anew", "narrowed/vae_best.pt"), ("upon", "text/model.pt")):
        done = run(root, *NEW, f"--name={name}", "--stage=diffusion", "--condition=text",
                   "--denoiser.normalize_latents=true",
                   f"--train.vae_checkpoint={root / 'out' / vae}")
        assert done.returncode == 0, done.stderr[-2000:]
        new = checkpoint.load_model(str(root / "out" / name / "model.pt"))
        assert torch.equal(new.mean, known.mean) and torch.equal(new.std, known.std), name
        pack = Pack.open(root / "data" / "other" / "other.pack")
        assert np.abs(new.mean.numpy() - pack.mean).max() > 0.1, "else this test shows nothing"
        clips = [torch.tensor(pack.features(i)[:60]) for i in pack.indices("train")]
        z = torch.stack([new.encode_motion(clip[None])[0] for clip in clips])
        apart = (z.mean(0) - new.latent_mean).abs().max() / z.std()
        assert apart < 0.5, apart  # 1.7 if the clips were normalised by their own


SCALED = ["--condition=text", "--denoiser.normalize_latents=true", "--train.sample_every=0"]


@pytest.fixture(scope="module")
def scaled(root):
    """A model of `made` whose latents are normalised."""
    done = run(root, "--name=scaled", *SCALED)
    assert done.returncode == 0, done.stderr[-2000:]


def test_another_vae_is_told_and_its_latents_are_measured_anew(root, scaled):
    done = run(root, "--name=another", "--stage=vae", "--train.seed=5", *SCALED)
    assert done.returncode == 0, done.stderr[-2000:]
    vae = root / "out" / "another" / "vae_best.pt"
    done = tune(root, "scaled", "swapped", "--stage=diffusion", "--train_diffusion.lr=1e-12",
                f"--train.vae_checkpoint={vae}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the denoiser begins with weights that know other latents" in done.stdout
    old, new = (checkpoint.load_model(str(root / "out" / name / "model.pt"))
                for name in ("scaled", "swapped"))
    other, before, after = checkpoint.load(vae)["model"], old.state_dict(), new.state_dict()
    for name, value in before.items():
        if name.startswith("vae."):
            assert torch.equal(after[name], other[name]), name
        if name.startswith("denoiser."):
            assert torch.allclose(after[name], value, atol=1e-6), name
    pack = Pack.open(root / "data" / "other" / "other.pack")
    clips = [torch.tensor(pack.features(i)[:60]) for i in pack.indices("train")]
    z = torch.stack([new.encode_motion(clip[None])[0] for clip in clips])
    assert (z.mean(0) - new.latent_mean).abs().max() < 0.5 * z.std()
    assert (z.mean(0) - old.latent_mean).abs().max() > z.std(), "else this test shows nothing"


def test_a_denoiser_of_another_arch_begins_anew(root, scaled):
    """The VAE, the text tower and the estimator of lengths carry over; what the denoiser is to see
    of the latents is measured, since its layers start from their spread."""
    done = tune(root, "scaled", "modulated", "--stage=diffusion", "--denoiser.arch=modulated",
                "--denoiser.num_layers=2", "--denoiser.modulated_dim=24", "--denoiser.principal=1",
                "--train_diffusion.freeze_text=true", "--train_diffusion.lr=1e-2",
                "--train_diffusion.length_weight=0")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "of another arch than that of" in done.stdout
    old, new = (checkpoint.load_model(str(root / "out" / name / "model.pt")).state_dict()
                for name in ("scaled", "modulated"))
    for name, value in old.items():
        if name.startswith(("vae.", "text_encoder.")):  # the latter is frozen
            assert torch.equal(new[name][:len(value)], value), name
        if name.startswith("length_estimator."):  # without loss, but for the weights' decay
            assert torch.allclose(new[name], value, atol=1e-2), name
    assert not torch.allclose(new["latent_mean"], old["latent_mean"], atol=1e-3)
    spread = new["denoiser.modulated.spread"]
    assert (spread != 1).all() and spread.min() > 0
    done = run(root, "--name=frozen", "--stage=diffusion", "--train_diffusion.freeze_text=true")
    assert done.returncode == 1 and "needs a text tower of ours that has learnt" in done.stderr
    done = tune(root, "scaled", "student", "--stage=distill", "--denoiser.arch=modulated")
    assert done.returncode == 1 and "denoiser.arch" in done.stderr


def test_a_vae_of_other_motion_is_refused(root):
    path, pack = root / "out" / "text" / "vae_best.pt", root / "data" / "other" / "other.pack"
    data = checkpoint.load(path)
    with pytest.raises(SettingError, match="20 fps, but .* holds t2m at 30"):
        pack = Pack.open(pack)
        pack.fps = 30.0
        trained_vae(path, pack)
    pack.fps = 20.0
    state, norms, _ = trained_vae(path, pack)
    made = Pack.open(root / "data" / "made" / "made.pack")
    assert all(map(np.array_equal, norms, (made.mean, made.std)))
    assert state.keys() == data["model"].keys()
    older = root / "out" / "older.pt"
    kept = {name: data[name] for name in ("run", "pack", "init")}
    checkpoint.save(older, data["config"], data["model"], **kept)
    with pytest.raises(SettingError, match="does not say with which"):
        trained_vae(older, pack)
    assert all(map(np.array_equal, trained_vae(older, made)[1], norms))
    checkpoint.save(older, data["config"], data["model"], **kept | {"init": "of another"})
    with pytest.raises(SettingError, match="does not say with which"):
        trained_vae(older, made)
    assert all(map(np.array_equal, trained_vae(older, made, "of another")[1], norms))
    assert trained_vae(path, made)[2] and not trained_vae(path, made, "of another")[2]
    for bad in ([norms[0]], [norms[0], 0 * norms[1]], [norms[0][:1], norms[1][:1]]):
        checkpoint.save(older, data["config"], data["model"], **kept, norms=bad)
        with pytest.raises(SettingError, match="is damaged"):
            trained_vae(older, made)


def test_it_learns_the_new_set_and_goes_on_after_a_stop(root):
    whole = tune(root, "text", "tuned")
    assert whole.returncode == 0, whole.stderr[-2000:]
    done = tune(root, "text", "halves", "--train_diffusion.steps=2")
    assert done.returncode == 0, done.stderr[-2000:]
    more = ["--resume", "--allow-change=steps"]
    refused = tune(root, "action", "halves", *more)
    assert refused.returncode and "error: " in refused.stderr and "Traceback" not in refused.stderr
    assert tune(root, "text", "halves", *more).returncode == 0
    entries = log(root, "tuned")
    assert entries["vae", 4]["val_loss"] < entries["vae", 2]["val_loss"]


def test_new_actions_come_behind_the_old_ones(root):
    done = tune(root, "action", "actions")
    assert done.returncode == 0, done.stderr[-2000:]
    model = checkpoint.load_model(str(root / "out" / "actions" / "model.pt"))
    assert model.actions == ["walk", "jump", "hover"]
    assert model.config.denoiser.num_actions == 3
    pack = Pack.open(root / "data" / "other" / "other.pack")
    names = [pack.action(i) for i in range(len(pack))]
    finetune.adopt(pack, str(root / "out" / "action" / "model.pt"))
    assert [pack.action(i) for i in range(len(pack))] == names
    assert set(pack.labels.tolist()) == {1, 2}


def test_unlabelled_clips_stay_unlabelled(root, tmp_path):
    clips = list(clips_of(1))[:10]
    for clip in clips[::2]:
        clip.action = ""
    write_pack(tmp_path / "p.pack", clips, name="p", skeleton="t2m", fps=20.0,
               actions=["walk", "jump"])
    pack = Pack.open(tmp_path / "p.pack")
    finetune.adopt(pack, str(root / "out" / "action" / "model.pt"))
    assert (pack.labels[::2] == -1).all() and (pack.labels[1::2] >= 0).all()


@pytest.mark.parametrize("flags, words", [
    (["--vae.latent_size=4"], "vae.latent_size"),
    (["--denoiser.num_layers=5"], "denoiser.num_layers"),
    (["--init_from=nowhere.pt"], "nowhere.pt"),
    (["--stage=vae", "--init_from={root}/out/text/vae.pt"], "vae.pt"),
])
def test_what_does_not_fit_is_refused(root, flags, words):
    flags = [flag.format(root=root) for flag in flags]
    done = tune(root, "text", "refused", *flags)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and words in done.stderr
    assert not (root / "out" / "refused" / "model.pt").exists()


def test_clips_of_another_kind_are_refused(root, tmp_path):
    clips = [Clip("a", features=np.zeros((50, 251), np.float32)),
             Clip("b", split="val", features=np.zeros((50, 251), np.float32))]
    write_pack(tmp_path / "kit.pack", clips, name="kit", skeleton="kit", fps=12.5)
    with pytest.raises(ValueError, match="12.5"):
        finetune.adopt(Pack.open(tmp_path / "kit.pack"), str(root / "out" / "text" / "model.pt"))


def test_flags_still_have_the_last_word(root):
    source = str(root / "out" / "text" / "model.pt")
    place = [f"--assets.data_root={root / 'data'}", "--dataset=other", f"--init_from={source}"]
    config, _ = parse_args(place, carried=finetune.settings)
    assert (config.vae.latent_dim, config.train_vae.steps) == (16, 400)
    assert config.train_vae.lr == pytest.approx(0.2e-3) and config.data.max_frames == 60
    config, _ = parse_args([*place, "--train_vae.lr=0.5"], carried=finetune.settings)
    assert config.train_vae.lr == 0.5
