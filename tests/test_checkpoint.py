"""Our own checkpoints come back whole, or are refused in one sentence."""
import itertools
import os
import time

import numpy as np
import pytest
import torch

import checkpoint
from conftest import ROOT
from clip import WordEncoder
from config import AssetsConfig, Config, get_value, set_value
from presets import PRESETS
from judge.own import OwnJudge
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
        **{"text.width": 16, "text.heads": 2, "text.layers": 1, "denoiser.text_encoded_dim": 16,
           "denoiser.arch": "trans_enc"},
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
    state = tmp_path / "vae.pt"
    weights = {name: p for name, p in model.state_dict().items() if name.startswith("vae.")}
    checkpoint.save(state, tiny_config(), weights)
    with pytest.raises(ValueError, match="is no finished model: expected the model.pt"):
        checkpoint.halve(state, tmp_path / "none.pt")
    again = checkpoint.load_model(tmp_path / "half.pt")
    assert {p.dtype for p in again.parameters()} == {torch.float32} and torch.equal(
        again.mean, model.mean
    )
    made = [
        m.generate(["a man"], lengths=[40], seed=3, num_inference_steps=3)[0]
        for m in (model, again)
    ]
    assert 0 < (made[0] - made[1]).abs().max() < 0.05 * made[0].abs().max()


def test_large_matrices_are_kept_in_8_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "LARGE", 600)
    config = tiny_config()
    model = finished(config, tmp_path / "model.pt")
    checkpoint.halve(tmp_path / "model.pt", tmp_path / "half.pt")
    held = checkpoint.read(str(tmp_path / "half.pt"))["model"]
    again = checkpoint.load_model(tmp_path / "half.pt").state_dict()
    kinds = {name: value.dtype for name, value in held.items() if not name.endswith("int8_scale")}
    for name, true in model.state_dict().items():
        found, large = again[name], true.dim() == 2 and true.numel() >= 600
        assert found.dtype == true.dtype and found.shape == true.shape
        if kinds[name] == torch.int8:
            assert large and set(held[name].abs().amax(1).tolist()) <= {0, 127}
            step = true.abs().amax(1, keepdim=True) / 127  # rounding errs by half of it at most,
            # and the factor's own by a sixteenth
            assert ((found - true).abs() <= 0.5626 * step).all()
        elif large:
            assert not name.endswith("weight")
    assert sum(kind == torch.int8 for kind in kinds.values()) > 20
    name = "vae.linear_path.to_waves.weight"
    assert kinds[name] == torch.int8 and not torch.equal(again[name], model.state_dict()[name])

    factor = "vae.linear_path.to_waves.weight.int8_scale"
    for state in ({**held, factor: held[factor][:-1]},
                  {**held, "vae.linear_path.to_waves.weight": held[factor][:, None]},
                  {name: value for name, value in held.items() if name + ".int8_scale" != factor}):
        data = checkpoint.load(tmp_path / "half.pt")
        checkpoint.save(tmp_path / "bad.pt", data["config"], state, vocabulary=data["vocabulary"])
        with pytest.raises(ValueError, match="to_waves.weight.int8_scale does not fit the matrix"):
            checkpoint.load(tmp_path / "bad.pt")


def test_the_bound_on_a_networks_size_is_one():
    """Of presets, and of networks in which one size after another is much larger; and it is no
    more than four times too large, or every model would be made twice."""
    sizes = {"vae": ("latent_dim", "ff_size", "num_layers", "max_positions", "latent_size",
                     "cosines"),
             "denoiser": ("latent_dim", "ff_size", "num_layers", "max_positions",
                          "text_encoded_dim", "num_actions", "principal", "modulated_dim"),
             "text": ("width", "layers", "context_length"), "data": ("max_frames",),
             "evaluator": ("width", "layers", "embed_dim")}
    keys = ["", *(f"{part}.{key}" for part, names in sizes.items() for key in names)]
    wide = PRESETS["toy"] | {"text.kind": "clip", "denoiser.text_encoded_dim": 65_536}
    presets = PRESETS | {"wide text": wide, "wide": wide | {"denoiser.latent_dim": 2048}}
    for name, key in [*itertools.product(("toy", "mld_kit", "novae_humanml3d", "mld_uestc"), keys),
                      ("wide text", "text.width"), ("wide", "text.width")]:
        config = Config()
        for one, value in presets[name].items():
            set_value(config, one, value)
        if key == "denoiser.modulated_dim":
            config.denoiser.arch = "modulated"
        if config.vae.arch == "none" and config.denoiser.arch == "modulated":
            continue
        if config.vae.arch == "actor" and key == "vae.latent_size":
            continue
        if key:
            more = 9 if key in ("vae.num_layers", "denoiser.num_layers") else 8
            set_value(config, key, more * (get_value(config, key) or 5))
        own = config.text.kind == "scratch" and config.denoiser.condition == "text"
        norms = torch.zeros(config.data.nfeats), torch.ones(config.data.nfeats)
        words = [str(i) for i in range(50)]
        makers = {False: lambda: MLD(config, WordEncoder(config.text, words) if own else None),
                  True: lambda: OwnJudge(config, *norms, words, ["walk"])}
        if key.startswith(("vae.", "denoiser.")):
            del makers[True]  # a judge has no such sizes,
        if key.startswith("evaluator."):
            del makers[False]  # and only it has these
        for is_judge, make in makers.items():
            with torch.device("meta"):
                network = make()
            true = sum(v.nbytes for v in (*network.parameters(), *network.buffers())) / 4
            bound = checkpoint.at_most(config, 51, is_judge)
            assert true <= bound, (name, key, is_judge)
            assert key or bound < 4 * true, (name, is_judge)


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


# --------------------------------------------------------------------------------------------------
# Files that are damaged, or made to do harm


def crafted(path, change, whole=True):
    """The small model's file at `path` with a change; whole: with a checksum that fits it."""
    finished(tiny_config(), path)
    data = torch.load(path, weights_only=True)
    data.pop("checksum")
    change(data)
    if whole:
        data["checksum"] = checkpoint.checksum(data)
    torch.save(data, path)


def refusal(path):
    with pytest.raises(ValueError) as caught:
        checkpoint.load_model(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    return a == b


def test_flipped_bytes_are_refused_or_change_nothing(tmp_path):
    path = tmp_path / "model.pt"
    finished(tiny_config(), path)
    good, whole, accepted = checkpoint.load(path), path.read_bytes(), 0
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 150):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            found = checkpoint.load(path)
        except ValueError as error:
            assert "model.pt" in str(error) and "\n" not in str(error)
        else:  # between the parts of a zip file there are bytes that mean nothing
            assert equal(found, good), f"byte {place}"
            accepted += 1
    assert accepted < 30


def test_a_checksum_cannot_get_lost(tmp_path):
    path = tmp_path / "model.pt"
    crafted(path, lambda data: data["model"]["mean"].add_(1), whole=False)
    assert "is damaged: its checksum does not match" in refusal(path)
    crafted(path, lambda data: data.update(version=1), whole=False)
    assert checkpoint.load_model(path) is not None, "written before there were checksums"
    for name in ("toy.pt", "toy-evaluator.pt"):
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        assert checkpoint.load(os.path.join(root, "checkpoints", name))["model"]


def test_tensors_of_every_kind_and_training_state_have_a_checksum(tmp_path):
    state = {"half": torch.ones(3).half(), "bf16": torch.ones(2, 2, dtype=torch.bfloat16),
             "flag": torch.tensor(True), "none": torch.ones(0, 4), "turned": torch.rand(3, 4).T}
    checkpoint.save(tmp_path / "a.pt", Config(), state, step=3, best=float("inf"),
                    since={"sums": {"loss": torch.tensor(2.0)}, "steps": 4})
    data = checkpoint.load(tmp_path / "a.pt")
    assert equal(data["model"], state) and data["best"] == float("inf") and "checksum" not in data
    names = [checkpoint.checksum(x) for x in (
        [1, 2], [2, 1], ["1", 2], [1, [2]], {"a": 1}, {"b": 1}, {"a": 1.0}, {"a": True},
        torch.ones(4), torch.ones(2, 2), torch.ones(4).half(), torch.zeros(4), [-0.0], [0.0])]
    assert len(set(names)) == len(names)


def settings(**changes):
    def change(data):
        for key, value in changes.items():
            section, name = key.split("__")
            data["config"][section][name] = value
    return change


@pytest.mark.parametrize("change, message", [
    (settings(vae__max_positions=60_000_000), "vae.max_positions must be at most 1000000"),
    (settings(vae__max_positions=1_000_000), "ask for 274 MB, but it holds 0.4 MB"),
    (settings(denoiser__num_layers=999_999), "denoiser.num_layers must be at most 1000"),
    (settings(denoiser__num_layers=999), "num_layers is 999, but it has no more than 193 weights"),
    (settings(text__layers=900), "text.layers is 900, but it has no more than"),
    (settings(vae__cosines=1_000_000), "has weights of other shapes"),
    (settings(diffusion__num_train_timesteps=10**8), "must be at most 100000"),
    (settings(text__context_length=10**400), "text.context_length must be at most 1000000"),
    (settings(vae__latent_size=[1]), "vae.latent_size must be a whole number"),
])
def test_sizes_are_refused_before_a_network_is_built(tmp_path, change, message):
    path = tmp_path / "model.pt"
    crafted(path, change)
    start = time.perf_counter()
    assert message in refusal(path)
    assert time.perf_counter() - start < 5


def weights(make):
    def change(data):
        data["model"]["denoiser.query_pos.pe"] = make(data["model"]["denoiser.query_pos.pe"])
    return change


def entry(name, value):
    return lambda data: data.update({name: value})


@pytest.mark.parametrize("change, message", [
    (lambda data: data.pop("config"), "its entry 'config' is missing"),
    (lambda data: data.pop("model"), "its entry 'model' is missing"),
    (entry("config", 1), "entry 'config'"),
    (entry("config", {"vae": 3}), "entry 'config'"),
    (entry("config", {3: {}}), "entry 'config'"),
    (entry("model", [torch.ones(2)]), "entry 'model'"),
    (entry("model", {"x": 1}), "entry 'model'"),
    (entry("model", {1: torch.ones(2)}), "entry 'model'"),
    (entry("vocabulary", 7), "entry 'vocabulary'"),
    (entry("vocabulary", [1, 2]), "entry 'vocabulary'"),
    (entry("actions", "walk"), "entry 'actions'"),
    (entry("version", [1]), "of version [1]"),
    (entry("version", torch.ones(2)), "of version tensor"),
    (weights(lambda w: w * float("nan")), "query_pos.pe must be finite"),
    (weights(lambda w: w / 0), "query_pos.pe must be finite"),
    (weights(lambda w: w.int()), "not of its type: denoiser.query_pos.pe (torch.int32)"),
    (weights(lambda w: w[:0]), "query_pos.pe is (0, 16) instead of"),
    (lambda data: data["model"]["std"].zero_(), "std must be finite and positive"),
    (lambda data: data["model"]["latent_out"].fill_(float("inf")), "latent_out must be finite"),
])
def test_entries_of_another_kind_get_one_sentence(tmp_path, change, message):
    crafted(tmp_path / "model.pt", change)
    assert message in refusal(tmp_path / "model.pt")


def nested(times, make):
    inner = [1]
    for _ in range(times):
        inner = make(inner)
    return inner


def test_data_that_grows_or_never_ends_is_refused_soon(tmp_path):
    endless = {}
    endless["again"] = endless
    odd = {"endless": endless, "twice": nested(18, lambda x: [x, x]),
           "deep": nested(60, lambda x: [x]), "doubled": nested(40, lambda x: {"a": x, "b": x}),
           "wide": torch.ones(1).as_strided((10**5, 10**5), (0, 0)),
           "sparse": torch.eye(3).to_sparse(), "digits": 10**5000, "bytes": b"x"}
    for name, value in odd.items():
        crafted(tmp_path / "model.pt", entry(name, value), whole=False)
        start = time.perf_counter()
        assert "is not a whole" in refusal(tmp_path / "model.pt"), name
        assert time.perf_counter() - start < 3, name
    with pytest.raises(ValueError, match="cannot be read as a checkpoint: Is a directory"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["meta", "hpu", "xla", "lazy", "cuda:-1", "cpu ", "", "mkldnn"])
def test_devices_that_are_none(name):
    with pytest.raises(ValueError, match="cannot be used here") as caught:
        checkpoint.find_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, value", [
    ("WORLD_SIZE", "0"), ("WORLD_SIZE", "two"), ("WORLD_SIZE", "-1"), ("WORLD_SIZE", ""),
    ("RANK", "1"), ("RANK", "-1"), ("LOCAL_RANK", "x"), ("WORLD_SIZE", "9" * 5000)])
def test_numbers_of_processes_that_cannot_be(monkeypatch, name, value):
    assert checkpoint.processes() == (0, 1, 0)
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"The environment says {name}=") as caught:
        checkpoint.processes()
    assert len(str(caught.value)) < 300


def test_the_weights_that_ship_are_checked(tmp_path):
    """They are older than checksums in checkpoints: SHA256SUMS beside them lists theirs."""
    for name in ("toy.pt", "SHA256SUMS"):
        (tmp_path / name).write_bytes((ROOT / "checkpoints" / name).read_bytes())
    checkpoint.load(str(tmp_path / "toy.pt"))
    content = bytearray((tmp_path / "toy.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "toy.pt").write_bytes(content)
    with pytest.raises(ValueError, match="toy.pt is damaged: it is not the file that .*SHA256SUMS"):
        checkpoint.load(str(tmp_path / "toy.pt"))
