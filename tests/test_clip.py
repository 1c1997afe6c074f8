"""CLIP's text tower equals the published one, from every published form; the small tower."""
import json
import os
import pathlib
import struct

import numpy as np
import pytest
import torch

import clip
from clip import WordEncoder
from clip_tokenizer import Tokenizer
from config import TextEncoderConfig
from conftest import GOLDEN
from published_clip import build_tower, load_clip, rename
from words import drop_words, vocabulary_of

golden = np.load(GOLDEN / "clip_text_tower.npz")
meta = json.loads(str(golden["meta"]))
NAMINGS = ("hf", "openai")


def published(naming):
    return {
        name.split("/", 1)[1]: torch.from_numpy(golden[name]) for name in golden.files
        if name.startswith(naming + "/")}


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("naming", NAMINGS)
def test_equal_to_the_published_tower(naming):
    tower = build_tower(rename(published(naming)), meta["heads"])
    ids = torch.from_numpy(golden["input_ids"])
    end = int(ids.max())
    assert relative(tower(ids), torch.from_numpy(golden["last_hidden_state"])) < 1e-5
    assert relative(tower.pooled(ids, end), torch.from_numpy(golden["text_embeds"])) < 1e-5
    # as many positions as the longest prompt needs: the same numbers
    where = (ids == end).int().argmax(1)
    rows = where < 70
    short = ids[rows, :int(where[rows].max()) + 1]
    expected = torch.from_numpy(golden["text_embeds"])[rows]
    assert rows.any() and relative(tower.pooled(short, end), expected) < 1e-5


def test_parameters_of_vit_l_14():
    with torch.device("meta"):
        tower = clip.TextTower(49408, 768, 12, 12, 768)
    assert sum(p.numel() for p in tower.parameters()) == 123_650_304


# --- files ---


def tiny(width=64, layers=2, embed_dim=12):
    """A random tower of CLIP's vocabulary, under both published namings."""
    torch.manual_seed(0)
    w, hf, oa = width, {}, {}
    table, positions, projection = (torch.randn(49408, w) * 0.02, torch.randn(77, w) * 0.01,
                                    torch.randn(embed_dim, w))
    hf["text_model.embeddings.token_embedding.weight"] = oa["token_embedding.weight"] = table
    hf["text_model.embeddings.position_embedding.weight"] = oa["positional_embedding"] = positions
    hf["text_projection.weight"], oa["text_projection"] = projection, projection.T.contiguous()
    for i in range(layers):
        a, b = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for ours, theirs, shape in (("self_attn.out_proj", "attn.out_proj", (w, w)),
                                    ("mlp.fc1", "mlp.c_fc", (4 * w, w)),
                                    ("mlp.fc2", "mlp.c_proj", (w, 4 * w))):
            hf[a + ours + ".weight"] = oa[b + theirs + ".weight"] = torch.randn(shape) * 0.1
            hf[a + ours + ".bias"] = oa[b + theirs + ".bias"] = torch.randn(shape[0]) * 0.1
        for n in "12":
            hf[f"{a}layer_norm{n}.weight"] = oa[f"{b}ln_{n}.weight"] = torch.rand(w) + 0.5
            hf[f"{a}layer_norm{n}.bias"] = oa[f"{b}ln_{n}.bias"] = torch.randn(w)
        qkv, bias = torch.randn(3 * w, w) * 0.1, torch.randn(3 * w) * 0.1
        oa[b + "attn.in_proj_weight"], oa[b + "attn.in_proj_bias"] = qkv, bias
        for part, weight, offset in zip("qkv", qkv.chunk(3), bias.chunk(3)):
            hf[f"{a}self_attn.{part}_proj.weight"], hf[f"{a}self_attn.{part}_proj.bias"] = (
                weight.contiguous(), offset.contiguous())
    for end in ("weight", "bias"):
        hf[f"text_model.final_layer_norm.{end}"] = oa[f"ln_final.{end}"] = torch.rand(w)
    image = {"visual.proj": torch.randn(4, 4), "logit_scale": torch.tensor(2.0)}
    return {
        **hf, "vision_model.post_layernorm.weight": torch.ones(3),
        "logit_scale": torch.tensor(2.0)}, {**oa, **image}


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, t in tensors.items():
        size = t.numel() * t.element_size()
        header[name] = {
            "dtype": {torch.float32: "F32", torch.float16: "F16", torch.int32: "I32"}[t.dtype],
            "shape": list(t.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            file.write(t.numpy().tobytes())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights in every published form."""
    root, (hf, oa) = tmp_path_factory.mktemp("clip"), tiny()
    settings = json.dumps({"text_config": {"num_attention_heads": 1, "hidden_act": "quick_gelu"}})
    for name in ("one", "shards", "bin"):
        (root / name).mkdir()
        (root / name / "config.json").write_text(settings)
    write_safetensors(root / "one" / "model.safetensors", hf)
    names = list(hf)
    write_safetensors(root / "shards" / "a.safetensors", {n: hf[n] for n in names[::2]})
    write_safetensors(root / "shards" / "b.safetensors", {n: hf[n] for n in names[1::2]})
    (root / "shards" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {n: "ab"[i % 2] + ".safetensors" for i, n in enumerate(names)}}))
    torch.save(hf, root / "bin" / "pytorch_model.bin")
    torch.save(oa, root / "openai.pt")
    # ViT-L-14.pt is a TorchScript archive: a module whose parameters carry these names
    module = torch.nn.Module()
    for name, t in oa.items():
        *parents, leaf = name.split(".")
        at = module
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, torch.nn.Module())
            at = getattr(at, parent)
        at.register_parameter(leaf, torch.nn.Parameter(t))
    module.forward = lambda: None
    (root / "folder").mkdir()
    torch.jit.save(torch.jit.script(Script(module)), root / "folder" / "ViT-L-14.pt")
    return root


class Script(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        for name, child in module.named_children():
            setattr(self, name, child)
        for name, parameter in module.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    def forward(self, x: torch.Tensor):
        return x


FORMS = [
    "one", "one/model.safetensors", "shards", "bin", "bin/pytorch_model.bin", "openai.pt", "folder",
    "folder/ViT-L-14.pt"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_gives_the_same_tower(files, form):
    texts = ["a man jumps", "", "waves " * 500, "🕺🏽 一个人"]
    encoder = load_clip(str(files / form))
    expected = build_tower(rename(tiny()[1]), 1)
    ids = torch.from_numpy(Tokenizer()(texts, pad_to=77))
    assert encoder(texts).shape == (4, 1, 12)
    assert relative(encoder(texts)[:, 0], expected.pooled(ids, 49407)) < 1e-5


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"),
                    reason="NOT TESTED: how much of a file is in memory is read from /proc")
def test_the_image_tower_is_not_read(files, tmp_path):
    text = (files / "one" / "model.safetensors").read_bytes()
    size, = struct.unpack("<Q", text[:8])
    header, image = json.loads(text[8:8 + size]), 1 << 29
    end = max(entry["data_offsets"][1] for entry in header.values())
    header["vision_model.big"] = {
        "dtype": "F32", "shape": [image // 4], "data_offsets": [end, end + image]}
    header = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + text[8 + size:])
        file.truncate(8 + len(header) + end + image)  # half a GB that takes no place on the disk

    def resident():
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    encoder = load_clip(str(tmp_path))
    assert encoder(["a man"]).isfinite().all() and resident() - before < image / 4


def test_hidden_states_keep_all_77_positions(files):
    assert load_clip(str(files / "one"), last_hidden_state=True)(["a man"]).shape == (1, 77, 64)


def test_a_prompt_alone_and_in_a_batch_are_the_same(files):
    encoder = load_clip(str(files / "one"))
    together = encoder(["a man jumps", "a much longer prompt than that one is"])
    assert relative(together[:1], encoder(["a man jumps"])) < 1e-5


def test_frozen_and_always_in_eval(files):
    encoder = load_clip(str(files / "one")).train()
    assert not encoder.training and not encoder.tower.training
    assert (not any(p.requires_grad for p in encoder.parameters())
            and not encoder(["a"]).requires_grad)


def test_half_precision_files_become_float32(tmp_path):
    write_safetensors(tmp_path / "half.safetensors", {k: v.half() for k, v in tiny()[0].items()})
    encoder = load_clip(str(tmp_path / "half.safetensors"))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_what_is_missing_or_wrong_is_said(files, tmp_path):
    with pytest.raises(FileNotFoundError,
                       match="not at .*nowhere.*model.safetensors.*--assets.clip_path"):
        load_clip(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors"):
        load_clip(str(tmp_path))
    broken = {k: v for k, v in tiny()[0].items() if "layers.1.mlp.fc2.weight" not in k}
    write_safetensors(tmp_path / "model.safetensors", broken)
    with pytest.raises(ValueError, match="whole CLIP text tower.*linear2.weight"):
        load_clip(str(tmp_path))
    write_safetensors(tmp_path / "model.safetensors", {"other": torch.ones(3)})
    with pytest.raises(ValueError, match="whole CLIP text tower"):
        load_clip(str(tmp_path))
    cut = (files / "one" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(cut[:len(cut) // 2])
    with pytest.raises(ValueError, match="model.safetensors"):
        load_clip(str(tmp_path))
    (tmp_path / "config.json").write_text('{"text_config": {')
    with pytest.raises(ValueError, match="config.json is not whole JSON"):
        load_clip(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="b.safetensors"):
        (files / "shards" / "b.safetensors").rename(tmp_path / "elsewhere")
        load_clip(str(files / "shards"))


@pytest.mark.parametrize("text, message", [
    ("[1]", "not JSON with settings, but a list"), ("[" * 100_000, "is not whole JSON"),
    ('{"text_config": {"num_attention_heads": "x"}}', "num_attention_heads='?x"),
    ('{"num_attention_heads": 7}', "7 attention heads do not divide"),
    ('{"num_attention_heads": -1}', "num_attention_heads=-1"),
    ('{"num_attention_heads": 1e9}', "num_attention_heads"),
    ('{"hidden_act": "swish"}', "activation must be"), ('{"hidden_act": ["gelu"]}', "activation"),
])
def test_settings_of_another_kind_get_one_sentence(tmp_path, text, message):
    write_safetensors(tmp_path / "model.safetensors", tiny()[0])
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_clip(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [
    lambda w: w.int(), lambda w: w * float("nan"), lambda w: w[0], lambda w: w[:, :3]])
@pytest.mark.parametrize("name", ["embeddings.token_embedding.weight",
                                  "encoder.layers.1.mlp.fc2.weight"])
def test_weights_of_another_kind_get_one_sentence(tmp_path, name, make):
    tensors = tiny()[0]
    tensors[f"text_model.{name}"] = make(tensors[f"text_model.{name}"])
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match="whole CLIP text tower") as caught:
        load_clip(str(tmp_path))
    assert "model.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_of_another_kind_gets_one_sentence(tmp_path):
    for text in ("{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 3}}', "[]"):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match="index.json"):
            load_clip(str(tmp_path))


# --- the small tower ---


def test_word_encoder():
    torch.manual_seed(0)
    vocabulary = vocabulary_of(["A man jumps.", "the man's left hand"])
    assert vocabulary == ["a", "hand", "jumps", "left", "man", "man's", "the"]
    encoder = WordEncoder(TextEncoderConfig(kind="scratch", width=16, layers=1, heads=2),
                          vocabulary).eval()
    out = encoder(["a man jumps", "A MAN, jumps!", "a man leaps", "a man hovers", "", "man " * 500])
    assert out.shape == (6, 1, 16) and out.isfinite().all()
    assert torch.equal(out[0], out[1]), "case and punctuation do not matter"
    assert torch.equal(out[2], out[3]), "all unknown words are one"
    assert torch.allclose(encoder(["a man jumps"]), out[:1],
                          atol=1e-6), "the same alone and in a batch"
    encoder(["a man leaps"]).sum().backward()
    gradient = encoder.tower.token_embedding.weight.grad
    assert gradient[clip.UNKNOWN].abs().sum() > 0
    assert gradient[encoder.number["jumps"]].abs().sum() == 0


def test_word_dropping_makes_words_unknown_at_its_rate():
    rng = np.random.default_rng(0)
    text = "jump " * 4000
    dropped = drop_words(text, rng, 0.1).split()
    assert len(dropped) == 4000 and 300 < dropped.count("_") < 500
    assert drop_words("a man", rng, 0.0) == "a man" and drop_words("", rng, 0.5) == ""
    encoder = WordEncoder(TextEncoderConfig(width=16, layers=1, heads=2), ["jump"])
    assert encoder.ids(["_ jump"]).tolist() == [[clip.UNKNOWN, 2, clip.END]]
