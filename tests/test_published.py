"""Published weights, read by name: files of exactly their form, with random weights."""
import json
import os
import re
import sys
import types

import numpy as np
import pytest
import torch

import checkpoint
import published
from config import AssetsConfig, DenoiserConfig, VAEConfig
from conftest import GOLDEN
from formats.safe_pickle import load_safetensors
from mld import Denoiser
from published import norms, read_published
from test_checkpoint import Runs, preset
from test_clip import write_safetensors
from vae import MotionVAE

KEYS = json.loads((GOLDEN / "official_checkpoint_keys.json").read_text())
LIGHTNING = ["mld_humanml3d", "mld_kit", "novae_humanml3d", "mld_humanact12"]
# how many keys are not read
UNUSED = {"mld_humanml3d": 43, "mld_kit": 43, "novae_humanml3d": 42, "mld_humanact12": 3}


def random_weights(keys, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in keys.items()}


def small(keys):
    """The same keys with every width an eighth, for speed: 256 -> 32, 1024 -> 128; features and
    tokens keep their sizes."""
    return {
        name: [n // 8 if n in (256, 512, 768, 1024, 1536) else n for n in shape]
        for name, shape in keys.items()
    }


def lightning(path, monkeypatch, state, proof=None):
    """Write `state` as a Lightning file: among its own entries are objects of packages that are
    not there when it is read."""
    made = {}
    for module, name in (
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
        ("omegaconf.dictconfig", "DictConfig"),
        ("omegaconf.nodes", "AnyNode"),
        ("torchmetrics.metric", "Metric"),
    ):
        parts = module.split(".")
        for i in range(len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i + 1]), types.ModuleType(parts[i]))
        made[name] = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, made[name])
    cfg, node = made["DictConfig"](), made["AnyNode"]()
    node._val, cfg._content = 263, {"nfeats": node, "parent": cfg}
    data = {
        "epoch": 5999,
        "global_step": 2_700_000,
        "pytorch-lightning_version": "1.8.6",
        "state_dict": state,
        "loops": {"fit_loop": {}},
        "callbacks": {
            made["ModelCheckpoint"]: {"best_model_path": "x.ckpt"},
            "m": made["Metric"](),
        },
        "lr_schedulers": [],
        "optimizer_states": [
            {
                "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}},
                "param_groups": [{"lr": 1e-4}],
            }
        ],
        "hyper_parameters": {"cfg": cfg},
    }
    if proof is not None:
        data["hyper_parameters"]["run"] = Runs(proof)
    torch.save(data, path)
    monkeypatch.undo()


@pytest.mark.parametrize("name", LIGHTNING)
def test_published_keys_at_their_full_sizes(tmp_path, monkeypatch, name):
    keys = KEYS[name]
    lightning(
        tmp_path / "a.ckpt",
        monkeypatch,
        {key: torch.zeros(shape, dtype=torch.float16) for key, shape in keys.items()},
    )
    config, state = read_published(tmp_path / "a.ckpt")
    known = preset(name)
    # padded frames were attended to when it was trained
    known.denoiser.mask_padding = name != "novae_humanml3d"
    assert (config.vae, config.data, config.diffusion) == (
        known.vae,
        known.data,
        known.diffusion,
    )
    assert config.denoiser == known.denoiser
    # every number is read, or belongs to what is knowingly not
    unused = [
        key
        for key in keys
        if any(re.search(pattern, key) for pattern, _ in published.UNUSED)
        or (key == "denoiser.mem_pos.pe" and name != "novae_humanml3d")
    ]
    assert len(unused) == UNUSED[name]
    assert sum(value.numel() for value in state.values()) == sum(
        int(np.prod(s)) for key, s in keys.items() if key not in unused
    )
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize("name", LIGHTNING)
def test_published_weights_arrive_where_they_belong(tmp_path, monkeypatch, name):
    """The loaded networks give what networks give into which the same weights were put directly,
    name by name."""
    weights = random_weights(small(KEYS[name]))
    proof = tmp_path / "proof"
    lightning(tmp_path / "a.ckpt", monkeypatch, weights, proof)
    config, state = read_published(tmp_path / "a.ckpt")
    assert not proof.exists(), "a call hidden in the file was carried out"
    nfeats = config.data.nfeats
    lengths, frames = torch.tensor([40, 60]), torch.randn(2, 60, nfeats)

    def part(prefix):
        return {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key.startswith(prefix)
        }

    def sizes(cfg):
        return {key: getattr(cfg, key) for key in ("latent_dim", "ff_size", "num_layers")}

    if config.vae.arch != "none":
        ours, direct = (
            MotionVAE(config.vae, nfeats).eval(),
            MotionVAE(
                VAEConfig(
                    arch="actor" if name == "mld_humanact12" else "encoder_decoder",
                    latent_dim=32,
                    ff_size=128,
                    num_layers=6 if name == "mld_humanact12" else 9,
                ),
                nfeats,
            ).eval(),
        )
        assert (config.vae.latent_dim, config.vae.ff_size) == (32, 128)
        checkpoint.fill(ours, part("vae."), "a.ckpt")
        put_directly(
            direct,
            {
                key.removeprefix("vae."): value
                for key, value in weights.items()
                if key.startswith("vae.")
            },
        )
        for a, b in zip(ours.encode(frames, lengths), direct.encode(frames, lengths)):
            assert torch.equal(a, b)
        z = torch.randn(2, 1, 32)
        assert (
            torch.equal(ours.decode(z, lengths), direct.decode(z, lengths))
            and ours.decode(z, lengths).std() > 1e-3
        )
    d = {
        "latent_dim": 64 if name == "novae_humanml3d" else 32,
        "ff_size": 128,
        "text_encoded_dim": 96,
        "num_layers": 9,
    }
    if name == "novae_humanml3d":
        d |= {"arch": "trans_dec", "skip_connect": False, "mask_padding": False}
    if name == "mld_humanact12":
        d |= {"condition": "action", "num_actions": 12, "num_layers": 15, "text_encoded_dim": 32}
    direct_cfg = DenoiserConfig(**d)
    assert sizes(config.denoiser) == sizes(direct_cfg)
    novae = nfeats if config.vae.arch == "none" else None
    ours, direct = Denoiser(config.denoiser, novae).eval(), Denoiser(direct_cfg, novae).eval()
    checkpoint.fill(ours, part("denoiser."), "a.ckpt")
    put_directly(
        direct,
        {
            key.removeprefix("denoiser."): value
            for key, value in weights.items()
            if key.startswith("denoiser.")
        },
    )
    x = frames if novae else torch.randn(2, 1, 32)
    condition = torch.tensor([3, -1]) if name == "mld_humanact12" else torch.randn(2, 1, 96)
    t = torch.tensor([999, 1])
    assert torch.equal(ours(x, t, condition, lengths), direct(x, t, condition, lengths))


def put_directly(net, weights):
    """Copy published weights into a network by hand, parameter by parameter."""
    aside = {
        "encoder.mu_token",
        "encoder.logvar_token",
        "encoder.sequence_pos_encoding.pe",
        "decoder.sequence_pos_encoding.pe",
    }
    own = dict(net.named_parameters())
    filled = set()
    with torch.no_grad():
        for name, value in weights.items():
            if name == "encoder.mu_token":
                own["global_motion_token"][0] = value
                filled.add("global_motion_token")
            elif name == "encoder.logvar_token":
                own["global_motion_token"][1] = value
            elif name == "mem_pos.pe" and not hasattr(net, "mem_pos") or name in aside:
                continue
            else:
                ours = (
                    name.replace("seqTransEncoder.", "")
                    .replace("seqTransDecoder.", "")
                    .replace("encoder.skel", "skel")
                )
                ours = ours.replace("decoder.final_layer", "final_layer").replace(
                    "emb_proj.action_embedding", "emb_proj.weight"
                )
                own[ours].copy_(value.reshape(own[ours].shape))
                filled.add(ours)
    assert filled == own.keys()


def hub(folder, keys=None, **vae_config):
    """The hub's two folders, as they are downloaded; returns their tensors."""
    tensors = {}
    for part in ("vae", "denoiser"):
        os.makedirs(folder / part)
        tensors[part] = random_weights(
            (keys or small)(KEYS[f"hub_{part}_humanml3d"]), seed=len(part)
        )
        if part == "vae":
            tensors[part]["std"] = tensors[part]["std"].abs() + 0.5
        write_safetensors(folder / part / "model.safetensors", tensors[part])
        settings = {
            "nfeats": 263,
            "latent_dim": [1, 32],
            "num_heads": 4,
            "arch": "encoder_decoder",
            "dropout": 0.1,
            "activation": "gelu",
            "normalize_before": False,
            "position_embedding": "learned",
            "freq_shift": 0,
            "flip_sin_to_cos": True,
        } | vae_config
        (folder / part / "config.json").write_text(json.dumps(settings))
    return tensors


@pytest.mark.parametrize("full", [True, False])
def test_hub_folders(tmp_path, full):
    tensors = hub(tmp_path, (lambda keys: keys) if full else small)
    config, state = read_published(tmp_path)
    if full:
        assert (config.vae, config.denoiser) == (
            preset("mld_humanml3d").vae,
            preset("mld_humanml3d").denoiser,
        )
    read = {f"{part}.{name}": value for part in tensors for name, value in tensors[part].items()}
    assert torch.equal(state["mean"], read.pop("vae.mean")) and torch.equal(
        state["std"], read.pop("vae.std")
    )
    read.pop("denoiser.mem_pos.pe")
    assert state.keys() - {"mean", "std"} == read.keys(), "the hub's names are ours"
    assert all(torch.equal(state[name].flatten(), value.flatten()) for name, value in read.items())


def test_hub_settings_that_shapes_do_not_tell(tmp_path):
    hub(tmp_path, num_heads=8, activation="relu", normalize_before=True, flip_sin_to_cos=False)
    config, _ = read_published(tmp_path)
    assert (config.vae.num_heads, config.vae.activation, config.vae.normalize_before) == (
        8,
        "relu",
        True,
    )
    assert (config.denoiser.num_heads, config.denoiser.flip_sin_to_cos) == (8, False)


def test_load_model_from_the_hub_with_clip(tmp_path):
    from test_clip import tiny
    hub(tmp_path / "mld")
    (tmp_path / "clip").mkdir()
    write_safetensors(tmp_path / "clip" / "model.safetensors", tiny(embed_dim=96)[0])
    assets = AssetsConfig(clip_path=str(tmp_path / "clip"))
    model = checkpoint.load_model(tmp_path / "mld", assets)
    features, joints = model.generate(["a man jumps"], lengths=[40], seed=1, num_inference_steps=2)
    assert (
        features.shape == (1, 40, 263)
        and joints.shape == (1, 40, 22, 3)
        and joints.isfinite().all()
    )
    assert model.length_estimator is None, "the published system has none: lengths must be given"
    assert not model.training and torch.equal(
        model.mean, load_safetensors(tmp_path / "mld" / "vae" / "model.safetensors")["mean"]
    )
    with pytest.raises(FileNotFoundError, match="CLIP's weights are not at"):
        checkpoint.load_model(tmp_path / "mld", AssetsConfig(clip_path=str(tmp_path / "nowhere")))


def test_load_model_of_the_action_model(tmp_path, monkeypatch):
    lightning(tmp_path / "a.ckpt", monkeypatch, random_weights(small(KEYS["mld_humanact12"])))
    model = checkpoint.load_model(tmp_path / "a.ckpt")
    features, joints = model.generate(
        actions=[3, 7], lengths=[60, 60], seed=1, num_inference_steps=2
    )
    assert (
        features.shape == (2, 60, 150)
        and joints.shape == (2, 60, 24, 3)
        and joints.isfinite().all()
    )


def test_mean_and_std_of_a_published_file_lie_beside_it(tmp_path, monkeypatch):
    lightning(tmp_path / "a.ckpt", monkeypatch, random_weights(small(KEYS["mld_kit"])))
    config, state = read_published(tmp_path / "a.ckpt")
    config.assets = AssetsConfig(data_root=str(tmp_path / "data"))
    with pytest.raises(ValueError, match="does not hold the mean and std.*Mean.npy"):
        norms(tmp_path / "a.ckpt", config)
    np.save(tmp_path / "Mean.npy", np.arange(251.0)), np.save(tmp_path / "Std.npy", np.ones(251))
    assert norms(tmp_path / "a.ckpt", config)["mean"][7] == 7
    config.data.skeleton, config.assets.smpl_path = "smpl", str(tmp_path / "smpl.npz")
    default, joints = norms(tmp_path / "a.ckpt", config)["rest"], np.random.default_rng(
        0
    ).normal(size=(24, 3))
    np.savez(config.assets.smpl_path, J=joints)
    body = norms(tmp_path / "a.ckpt", config)["rest"]
    np.testing.assert_allclose(body, joints - joints[0], atol=1e-6)
    assert (body - default).abs().max() > 0.1


def test_vae_alone(tmp_path):
    tensors = hub(tmp_path)
    config, state = read_published(tmp_path / "vae")
    assert {name.split(".")[0] for name in state} == {
        "vae",
        "mean",
        "std",
    } and config.vae.latent_dim == 32
    assert torch.equal(state["vae.final_layer.bias"], tensors["vae"]["final_layer.bias"])
    with pytest.raises(ValueError, match="denoiser of latents without its VAE"):
        read_published(tmp_path / "denoiser")


@pytest.mark.parametrize(
    "file, arch, size",
    [
        ("vae_all_encoder_latent1", "all_encoder", 1),
        ("vae_encoder_decoder_latent2", "encoder_decoder", 2),
        ("vae_encoder_decoder_latent1_mlpdist", "encoder_decoder", 1),
    ],
)
def test_other_forms_of_the_vae(tmp_path, file, arch, size):
    golden = np.load(GOLDEN / f"{file}.npz")
    weights = {
        f"vae.{name[6:]}": torch.from_numpy(golden[name])
        for name in golden.files
        if name.startswith("state/")
    }
    # the golden files have the first rows only
    for name in ("vae.query_pos_encoder.pe", "vae.query_pos_decoder.pe"):
        weights[name] = torch.cat(
            [weights[name], torch.zeros(500 - len(weights[name]), *weights[name].shape[1:])]
        )
    torch.save({"state_dict": weights}, tmp_path / "a.ckpt")
    config, state = read_published(tmp_path / "a.ckpt")
    assert (config.vae.arch, config.vae.latent_size, config.vae.num_layers) == (arch, size, 5)
    assert config.vae.mlp_dist == ("mlpdist" in file)
    vae = MotionVAE(config.vae, 263).eval()
    checkpoint.fill(vae, {name[4:]: value for name, value in state.items()}, "a.ckpt")
    with torch.no_grad():
        mu, _ = vae.encode(
            torch.from_numpy(golden["features"]), torch.from_numpy(golden["lengths"]).long()
        )
    assert torch.allclose(mu.transpose(0, 1), torch.from_numpy(golden["mu"]), rtol=1e-5, atol=1e-5)


def test_published_weights_that_do_not_fit(tmp_path, monkeypatch):
    good = random_weights(small(KEYS["mld_humanml3d"]))

    def read(change):
        weights = dict(good)
        change(weights)
        lightning(tmp_path / "bad.ckpt", monkeypatch, weights)
        with pytest.raises(ValueError, match="bad.ckpt") as caught:
            read_published(tmp_path / "bad.ckpt")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "lacks weights: vae.final_layer.bias." in read(lambda w: w.pop("vae.final_layer.bias"))
    assert "does not have: vae.extra" in read(lambda w: w.update({"vae.extra": torch.zeros(3)}))
    assert "does not have: what.is.this" in read(
        lambda w: w.update({"what.is.this": torch.zeros(3)})
    )
    assert "(96, 31) instead of (96, 32)" in read(
        lambda w: w.update(
            {"vae.encoder.input_blocks.2.self_attn.in_proj_weight": torch.zeros(96, 31)}
        )
    )
    assert "sizes" in read(lambda w: w.pop("vae.skel_embedding.weight"))
    assert "100 features" in read(
        lambda w: w.update({"vae.skel_embedding.weight": torch.zeros(32, 100)})
    )
    assert "odd" in read(
        lambda w: [
            w.pop(name) for name in list(w) if name.startswith("denoiser.encoder.input_blocks.3.")
        ]
    )
    assert "neither a VAE nor a denoiser" in read(
        lambda w: [w.pop(name) for name in list(w) if not name.startswith("t2m_")]
    )


def test_published_files_cut_short_or_missing(tmp_path, monkeypatch):
    lightning(tmp_path / "a.ckpt", monkeypatch, random_weights(small(KEYS["mld_kit"])))
    whole = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(whole[:len(whole) // 2])
    for read in (checkpoint.load_model, read_published):
        with pytest.raises(ValueError, match="a.ckpt is not a whole torch file"):
            read(tmp_path / "a.ckpt")
    for text in ("# a page of text", "hi", "mind the gap\n"):
        (tmp_path / "readme").write_text(text)
        with pytest.raises(ValueError, match=f"is no torch file: it begins with b'{text[:4]}'"):
            checkpoint.load_model(tmp_path / "readme")
    hub(tmp_path / "hub")
    file = tmp_path / "hub" / "vae" / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
            checkpoint.load_model(tmp_path / "hub")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        checkpoint.load_model(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        checkpoint.load_model(tmp_path / "empty")
    file.write_bytes(whole)
    (file.parent / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not whole JSON"):
        checkpoint.load_model(tmp_path / "hub")


@pytest.mark.parametrize("text, message", [
    ("[1, 2]", "is not JSON with settings, but a list"), ("3", "but a int"), ("null", "NoneType"),
    ("[" * 100_000, "is not whole JSON"), ('{"num_heads": "many"}', "must be a whole number"),
    ('{"num_heads": {"a": 1}}', "must be a whole number"), ('{"num_heads": 0}', "positive"),
    ('{"num_heads": ' + "9" * 400 + "}", "num_heads"), ('{"num_heads": 7}', "must divide"),
    ('{"activation": ["gelu"]}', "activation must be one of"), ("\ufeff{}\0", "is not whole JSON"),
])
def test_settings_of_another_kind_get_one_sentence(tmp_path, text, message):
    hub(tmp_path)
    (tmp_path / "vae" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("make", [
    lambda path: path.write_bytes(b""), lambda path: path.write_text("text"),
    lambda path: np.save(path, np.zeros(0)), lambda path: np.save(path, np.zeros((251, 2))),
    lambda path: np.save(path, np.zeros(251, int)), lambda path: np.save(path, np.zeros(263)),
    lambda path: np.savez(open(path, "wb"), a=np.zeros(251)),
    lambda path: np.save(path, np.array([{}] * 251), allow_pickle=True),
])
def test_a_mean_of_another_kind_gets_one_sentence(tmp_path, monkeypatch, make):
    lightning(tmp_path / "a.ckpt", monkeypatch, random_weights(small(KEYS["mld_kit"])))
    config, _ = read_published(tmp_path / "a.ckpt")
    make(tmp_path / "Mean.npy"), np.save(tmp_path / "Std.npy", np.ones(251))
    with pytest.raises(ValueError, match="Mean.npy should be an .npy file of 251") as caught:
        norms(tmp_path / "a.ckpt", config)
    assert "\n" not in str(caught.value)


def test_a_std_that_cannot_be(tmp_path):
    for name, value in (("std", 0.0), ("std", -1.0), ("std", float("nan")), ("mean", np.inf)):
        tensors = hub(tmp_path / f"{name}{value}")["vae"]
        tensors[name][3] = value
        write_safetensors(tmp_path / f"{name}{value}" / "vae" / "model.safetensors", tensors)
        with pytest.raises(ValueError, match=f"numbers of {name} must be finite"):
            checkpoint.load_model(tmp_path / f"{name}{value}")


def test_published_weights_of_another_kind(tmp_path, monkeypatch):
    good = random_weights(small(KEYS["mld_humanact12"]))
    name = "vae.decoder.final_layer.bias"
    for change, message in (
            ({name: good[name].int()}, "final_layer.bias holds torch.int32"),
            ({name: torch.ones(())}, "shapes"),
            ({name: good[name] * float("nan")}, "must be finite"),
            ({"vae.encoder.mu_token": torch.ones(2, 3)}, "differ in shape"),
            ({"vae.encoder.mu_token": torch.ones(32).int()}, "holds torch.int32"),
            ({"denoiser.query_pos.pe": torch.ones(())}, "networks' sizes"),
            ({"vae.encoder.skel_embedding.weight": torch.ones(3)}, "networks' sizes")):
        lightning(tmp_path / "a.ckpt", monkeypatch, good | change)
        with pytest.raises(ValueError, match=message) as caught:
            checkpoint.load_model(tmp_path / "a.ckpt")
        assert "a.ckpt" in str(caught.value) and "\n" not in str(caught.value)


def test_dicts_without_end_get_one_sentence(tmp_path):
    endless = {}
    endless["state_dict"] = {"again": endless}
    torch.save(endless, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="a.ckpt holds dicts that are nested without end"):
        checkpoint.load_model(tmp_path / "a.ckpt")
