"""Our own checkpoints come back whole, or are refused in one sentence."""
import os

import numpy as np
import pytest
import torch

import checkpoint
from clip import WordEncoder
from config import PRESETS, AssetsConfig, Config, set_value
from mld import MLD


def preset(name, **changes):
    config = Config()
    for key, value in (PRESETS[name] | changes).items():
        set_value(config, key, value)
    return config


class Runs:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def tiny_config(**changes):
    sizes = {"latent_dim": 16, "ff_size": 32, "num_layers": 3, "num_heads": 2}
    config = preset(
        "toy",
        **{f"{part}.{key}": value for part in ("vae", "denoiser") for key, value in sizes.items()},
        **{"text.width": 16, "text.heads": 2, "text.layers": 1, "denoiser.text_encoded_dim": 16},
        **changes,
    )
    return config


def finished(config, path, vocabulary=("a", "jumps", "man")):
    torch.manual_seed(0)
    model = MLD(config, WordEncoder(config.text, list(vocabulary))).eval()
    checkpoint.save(path, config, model.state_dict(), vocabulary=list(vocabulary))
    return model


def test_a_finished_model_comes_back(tmp_path):
    config = tiny_config()
    model = finished(config, tmp_path / "model.pt")
    again = checkpoint.load_model(tmp_path / "model.pt")
    assert (
        again.length_estimator is not None
        and again.config == config
        and again.text_encoder.vocabulary == ["a", "jumps", "man"]
    )
    a = model.generate(["a man hovers"], lengths=[40], seed=3, num_inference_steps=3)
    b = again.generate(["a man hovers"], lengths=[40], seed=3, num_inference_steps=3)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert (
        checkpoint.load_model(
            tmp_path / "model.pt", AssetsConfig(clip_path="here")
        ).config.assets.clip_path
        == "here"
    )


def test_half_the_size_and_nearly_the_same_motion(tmp_path):
    model = finished(tiny_config(), tmp_path / "model.pt")
    checkpoint.halve(tmp_path / "model.pt", tmp_path / "half.pt")
    # names weigh as much as so small a net
    assert os.path.getsize(tmp_path / "half.pt") < 0.8 * os.path.getsize(tmp_path / "model.pt")
    again = checkpoint.load_model(tmp_path / "half.pt")
    assert {p.dtype for p in again.parameters()} == {torch.float32} and torch.equal(
        again.mean, model.mean
    )
    made = [
        m.generate(["a man"], lengths=[40], seed=3, num_inference_steps=3)[0]
        for m in (model, again)
    ]
    assert 0 < (made[0] - made[1]).abs().max() < 0.05 * made[0].abs().max()


def test_training_state_comes_back(tmp_path):
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    config = Config()
    checkpoint.save(
        tmp_path / "a.pt",
        config,
        net.state_dict(),
        optimizer=optimizer.state_dict(),
        ema=[torch.ones(2)],
        step=7,
        best=0.5,
    )
    data = checkpoint.load(tmp_path / "a.pt")
    assert (
        data["config"] == config
        and (data["step"], data["best"]) == (7, 0.5)
        and torch.equal(data["ema"][0], torch.ones(2))
    )
    assert all(torch.equal(data["model"][name], value) for name, value in net.state_dict().items())
    again = torch.optim.AdamW(net.parameters())
    again.load_state_dict(data["optimizer"])
    assert torch.equal(
        again.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )
    assert torch.load(tmp_path / "a.pt", weights_only=True)["step"] == 7


def test_clip_is_not_stored(tmp_path):
    config = Config()
    checkpoint.save(
        tmp_path / "a.pt",
        config,
        {"text_encoder.tower.x": torch.ones(3), "denoiser.y": torch.ones(2)},
    )
    assert list(checkpoint.load(tmp_path / "a.pt")["model"]) == ["denoiser.y"]


def test_paths_of_this_machine_are_not_stored(tmp_path):
    config, place = tiny_config(), tmp_path / "some.where"
    for asset in vars(config.assets):
        setattr(config.assets, asset, str(place))
    config.train.out = config.train.vae_checkpoint = str(place)
    finished(config, tmp_path / "model.pt")
    assert b"some.where" not in (tmp_path / "model.pt").read_bytes()
    loaded = checkpoint.load(tmp_path / "model.pt")["config"]
    assert loaded.assets == AssetsConfig() and (loaded.train.out, loaded.train.vae_checkpoint) == (
        Config().train.out,
        "",
    )
    assert loaded.vae == config.vae and loaded.train.seed == config.train.seed


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    checkpoint.save(tmp_path / "a.pt", Config(), {"x": torch.ones(2)}, step=1)
    before = (tmp_path / "a.pt").read_bytes()
    for value in (np.float64(1.0), {"deep": [Config()]}, {1, 2}):
        with pytest.raises(TypeError, match="best.*tensors and plain data only"):
            checkpoint.save(tmp_path / "a.pt", Config(), {"x": torch.ones(2)}, best=value)
    assert (tmp_path / "a.pt").read_bytes() == before and os.listdir(tmp_path) == ["a.pt"]


def test_a_save_that_dies_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "a.pt", Config(), {"x": torch.ones(2)}, step=1)

    def dies(data, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "a.pt", Config(), {"x": torch.zeros(2)}, step=2)
    assert checkpoint.load(tmp_path / "a.pt")["step"] == 1 and os.listdir(tmp_path) == ["a.pt"]


def test_own_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "model.pt"
    finished(tiny_config(), path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        for read in (checkpoint.load, checkpoint.load_model):
            with pytest.raises(ValueError, match="model.pt is not a whole") as caught:
                read(path)
            assert "\n" not in str(caught.value)
    proof = tmp_path / "proof"
    torch.save(
        {"format": checkpoint.FORMAT, "version": 1, "config": {}, "model": {}, "x": Runs(proof)},
        path,
    )
    for read in (checkpoint.load, checkpoint.load_model):
        with pytest.raises(ValueError, match="not a whole nanoMLD checkpoint"):
            read(path)
    assert not proof.exists()
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        checkpoint.load(tmp_path / "nothing.pt")
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="no nanoMLD checkpoint"):
        checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT}, path)
    with pytest.raises(ValueError, match="version None"):
        checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT, "version": 99}, path)
    with pytest.raises(ValueError, match="version 99"):
        checkpoint.load(path)
    torch.save(
        {
            "format": checkpoint.FORMAT,
            "version": 1,
            "config": {"vae": {"latent_sise": 1}},
            "model": {},
        },
        path,
    )
    with pytest.raises(ValueError, match="another version of nanoMLD.*latent_sise"):
        checkpoint.load(path)


def test_own_weights_that_do_not_fit(tmp_path):
    config = tiny_config()
    model = finished(config, tmp_path / "a.pt")
    with pytest.raises(
        ValueError,
        match=r"a.pt does not fit: it has weights of other shapes: x is \(3,\) instead of \(2,\)\.",
    ):
        checkpoint.fill(torch.nn.ParameterDict({"x": torch.ones(2)}), {"x": torch.ones(3)}, "a.pt")
    checkpoint.save(tmp_path / "vae.pt", config, model.vae.state_dict())
    with pytest.raises(ValueError, match="vae.pt lacks the vocabulary.*stage"):
        checkpoint.load_model(tmp_path / "vae.pt")
    checkpoint.save(
        tmp_path / "vae.pt",
        config,
        {"vae." + k: v for k, v in model.vae.state_dict().items()},
        vocabulary=["a", "jumps", "man"],
    )
    with pytest.raises(ValueError, match="vae.pt does not fit: it lacks weights: .* more"):
        checkpoint.load_model(tmp_path / "vae.pt")
    checkpoint.save(tmp_path / "b.pt", config, model.state_dict(), vocabulary=["a"])
    with pytest.raises(ValueError, match="token_embedding.weight is"):
        checkpoint.load_model(tmp_path / "b.pt")
