"""eval.py's numbers, files, gate and refusals, on small models of every kind."""
import json
import os
import pathlib
import re

import numpy as np
import pytest
import torch
import warm

import checkpoint
import data
import eval as program
import motion
from clip import WordEncoder
from config import Config, set_value
from presets import ACTION, NOVAE, TOY
from conftest import GOLDEN
from formats.pack import Caption, Clip, Pack, write_pack
from judge import evaluators, metrics, protocol, published, sharpness
from judge.own import OwnJudge
from mld import MLD
from words import vocabulary_of

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
    "diffusion.num_inference_steps": 2,
    "data.max_frames": 60,
    "data.dataset": "made",
    "evaluator.width": 16,
    "evaluator.layers": 1,
    "evaluator.embed_dim": 8,
}
QUICK = ["--eval.replications=2", "--eval.batch_size=8", "--eval.group=8", "--eval.mm_texts=3",
         "--eval.mm_samples=4", "--eval.mm_pairs=3"]


def settings(**changes):
    config = Config()
    for key, value in {**TOY, **SIZES, **changes}.items():
        set_value(config, key, value)
    return config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with made.pack (20 train, 20 test clips in two contents and two styles), models,
    and an evaluator."""
    folder, rng = tmp_path_factory.mktemp("eval"), np.random.default_rng(0)
    base = np.load(GOLDEN / "motion_features.npz")["t2m/features"].astype(np.float32)
    clips = []
    for i in range(40):
        label = ("walk", "jump")[i % 2] + "/" + ("old", "young")[i // 2 % 2]
        features = (
            base[: int(rng.integers(41, 59))] + rng.normal(size=(1, 263)).astype(np.float32) * 0.01
        )
        captions = [Caption(f"a man {label.replace('/', 's ')} {i}", "a/DET man/NOUN walk/VERB")]
        clips.append(Clip(f"{i:03d}", captions, ("train", "test")[i // 4 % 2], label, features))
    actions = sorted({clip.action for clip in clips})
    write_pack(
        folder / "made" / "made.pack", clips, name="made", skeleton="t2m", fps=20.0, actions=actions
    )
    pack = Pack.open(str(folder / "made" / "made.pack"))
    words = vocabulary_of(clip.captions[0].text for clip in clips)
    torch.manual_seed(0)
    judge = OwnJudge(settings(), pack.mean, pack.std, words, actions)
    checkpoint.save(
        folder / "judge.pt",
        settings(),
        judge.state_dict(),
        vocabulary=words,
        actions=actions,
        judge=True,
    )
    for name, changes in (
        ("text", {}),
        ("action", {"denoiser.condition": "action", "denoiser.num_actions": 4}),
        ("none", {"denoiser.condition": "none"}),
        ("novae", NOVAE | SIZES),
    ):
        config = settings(**changes)
        torch.manual_seed(1)
        encoder = WordEncoder(config.text, words) if config.denoiser.condition == "text" else None
        model = MLD(config, encoder, pack.mean, pack.std)
        checkpoint.save(
            folder / f"{name}.pt",
            config,
            model.state_dict(),
            vocabulary=words if encoder else None,
            actions=actions if name == "action" else [],
        )
    return folder


def run(root, name, *flags, out="out"):
    program.main(["--ckpt", str(root / f"{name}.pt"), "--evaluator", str(root / "judge.pt"),
                  f"--assets.data_root={root}", "--out", str(root / out), *QUICK, *flags])
    return json.loads((root / out / "eval.json").read_text())


PHYSICAL = {"jerk m/s3", "skating cm/s", "penetration mm", "bone drift mm"}
ACCURACY = {"accuracy", "accuracy 1", "accuracy 2"}
POWER = {f"power {a}-{b} Hz" for a, b in sharpness.BANDS}
COHERENCE = {f"coherence {a}-{b} Hz" for a, b in sharpness.BANDS}
SHARP = POWER | {"kinematic FID"}
RETRIEVAL = {"R@1", "R@2", "R@3", "MM-Dist"}


def test_text_model_whole(root, capsys):
    result = run(root, "text")
    rows = result["rows"]
    assert list(rows) == ["real motion", "VAE reconstruction", "generated"]
    common = PHYSICAL | SHARP | ACCURACY | RETRIEVAL | {"FID", "Diversity"}
    for name in ("VAE reconstruction", "generated"):
        # an untrained network's feet need not come near the floor
        rows[name].setdefault("skating cm/s", [0, 0])
    errors = {"mpjpe mm", "pampjpe mm", "global mm", "accel mm"} | COHERENCE
    assert (
        rows["real motion"].keys() == common
        and rows["VAE reconstruction"].keys() == common | errors
    )
    assert rows["generated"].keys() == common | {"MultiModality"}
    assert all(
        np.isfinite(value).all() and value[1] >= 0
        for row in rows.values()
        for value in row.values()
    )
    assert rows["real motion"]["FID"][0] < rows["generated"]["FID"][0]
    pack = Pack.open(str(root / "made" / "made.pack"))
    jerk = np.mean([metrics.jerk(pack.joints(i), 20) for i in pack.indices("test")])
    assert rows["real motion"]["jerk m/s3"][0] == pytest.approx(
        jerk, rel=0.1
    ), "crops are nearly whole clips"
    assert result["aits"]["seconds"] > 0 and result["aits"]["device"]
    model = checkpoint.load_model(str(root / "text.pt"))
    nets = {
        "text encoder": model.text_encoder,
        "denoiser": model.denoiser,
        "VAE (GFLOPs: decoder)": model.vae,
    }
    for part, net in nets.items():
        assert result["parts"][part]["parameters"] == sum(p.numel() for p in net.parameters())
        assert result["parts"][part]["GFLOPs"] > 0
    shown = capsys.readouterr().out
    assert "compare with no published table" in shown and "AITS" in shown
    assert "FID is of 20 clips" not in shown
    assert "GFLOPs" not in shown, "sizes are on the page; the screen has them with --verbose"
    assert f"{rows['generated']['FID'][0]:.3f}+-" in shown and "Diversity is of 20 pairs" in shown
    page, players = (
        (root / "out" / name).read_text() for name in ("eval.html", "eval-examples.html")
    )
    assert "eval-examples.html" in page and "<svg" in page
    assert f"<td>{rows['generated']['FID'][0]:.3f} ± " in page, "tables are tables"
    for name in rows["VAE reconstruction"]:  # each is explained in its row
        cells = re.search(rf"<tr><td>{name}</td>(.*?)</tr>", page)[1].split("<td>")
        assert len(cells) == 5 and cells[-1].count(" ") > 4, name
    assert (
        all(f'"{word}: a man' in players for word in ("best", "median", "worst"))
        and str(root) not in page
    )


def test_the_same_again_other_seeds_and_two_processes(root):
    one, again = run(root, "text")["rows"], run(root, "text")["rows"]
    other = run(root, "text", "--eval.seed=7")["rows"]
    assert one == again and one["generated"]["FID"] != other["generated"]["FID"]
    ended = warm.two("eval.py", "--ckpt", root / "text.pt", "--evaluator", root / "judge.pt",
                     f"--assets.data_root={root}", "--out", root / "two", *QUICK)
    assert not any(done.returncode for done in ended), [done.stderr[-2000:] for done in ended]
    assert sum(done.stdout.count("AITS") for done in ended) == 1
    two = json.loads((root / "two" / "eval.json").read_text())["rows"]
    for name, row in one.items():
        for key, value in row.items():
            assert two[name][key] == pytest.approx(value, rel=1e-5, abs=1e-6), (name, key)


def test_actions_nothing_and_frames(root, capsys):
    result = run(root, "action", "--verbose")
    assert re.search(r"denoiser +[0-9.]+ M +[0-9.]", capsys.readouterr().out)
    action = result["rows"]["generated"]
    notes = " ".join(note for note in result["notes"] if "recognised in less than half" in note)
    poor = [
        (int(share), int(count))
        for share, count in re.findall(r"\w+/\w+ \((\d+)% of (\d+)\)", notes)
    ]
    # 2 replications of 5 clips of each of 4 actions
    assert poor and all(share < 50 and count == 10 for share, count in poor)
    right = sum(share / 100 * count for share, count in poor)
    assert (
        right + 5 * (4 - len(poor))
        <= 40 * action["accuracy"][0] + 1e-6
        <= right + 10 * (4 - len(poor)) + 1e-3
    )
    assert "less than half" not in "".join(run(root, "none")["notes"])
    assert (
        action.keys() >= ACCURACY | {"FID", "Diversity", "MultiModality"}
        and not action.keys() & RETRIEVAL
    )
    nothing = run(root, "none")["rows"]
    assert nothing["generated"].keys() | PHYSICAL == PHYSICAL | SHARP | {"FID", "Diversity"}
    assert "accuracy" in nothing["real motion"]
    frames = run(root, "novae")
    assert list(frames["rows"]) == ["real motion", "generated"] and len(frames["parts"]) == 2
    assert "R@1" in frames["rows"]["generated"]


def test_a_model_that_returns_the_clips_scores_as_they_do(root, monkeypatch):
    """With real motion in the place of generated: both rows are the same, but for FID, which is
    0."""
    def cheat(self, texts, actions, lengths, seeds):
        pack, found = self.pack, torch.zeros(len(texts), int(lengths.max()), 263)
        for row, text, n in zip(found, texts, lengths.tolist()):
            i = next(i for i in range(len(pack)) if pack.captions(i)[0].text == text)
            row[:n] = torch.from_numpy(pack.features(i)[:n].copy())
        return found, lengths, seeds, motion.to_metres(found, "t2m")

    monkeypatch.setattr(protocol.Evaluation, "generate", cheat)
    monkeypatch.setattr(data.Batches, "crops", whole_clips)
    rows = run(root, "text", out="cheat")["rows"]
    for key in RETRIEVAL | PHYSICAL | ACCURACY | {"Diversity"}:
        assert rows["generated"][key] == pytest.approx(
            rows["real motion"][key], rel=1e-3, abs=1e-3
        ), key
    assert rows["generated"]["FID"][0] < 1e-3 < rows["VAE reconstruction"]["FID"][0]
    assert rows["generated"]["MultiModality"][0] < 1e-3


def whole_clips(self, epoch, items):
    return 0 * items, self.pack.lengths[items] // 4 * 4, 0.0 * items


FILES = {"weights": "finest.tar", "meta": "meta", "glove": "our_vab"}


class Gated:
    """What gate() reads of an Evaluation."""
    def __init__(self, ratio=25.0, dataset="humanml3d"):
        self.config = settings(**{"data.dataset": dataset})
        self.pack = type("Pack", (), {"std": np.full(263, 25.0), "path": "humanml3d.pack"})
        self.judge = type("Judge", (), {"std": torch.full((263,), 25 / ratio), "files": FILES})

    def batches(self, split):
        return type("Batches", (), {"items": range(4648)})


@pytest.mark.parametrize("dataset", ["humanml3d", "kit"])
def test_gate(dataset):
    right = {key: (mean, half) for key, (mean, half) in protocol.KNOWN[dataset].items()}
    assert protocol.gate(Gated(dataset=dataset), right) is None
    few = Gated(dataset=dataset)
    few.config.eval.replications, half = 1, right["R@1"][1]
    # 2.2 standard deviations of a single replication
    once = right | {"R@1": (right["R@1"][0] + 5 * half, None)}
    assert protocol.gate(few, once) is None and protocol.gate(Gated(dataset=dataset), once)
    near = right | {"R@1": (right["R@1"][0] + 0.0049, 0.003)}
    assert protocol.gate(Gated(dataset=dataset), near) is None, "the intervals overlap"
    text = protocol.gate(
        Gated(dataset=dataset), right | {"R@1": (0.3, 0.003), "MM-Dist": (5.0, 0.01)}
    )
    assert "R@1 0.300 instead of" in text and "part-of-speech tokens" in text and "our_vab" in text
    motion = protocol.gate(
        Gated(dataset=dataset), right | {"Diversity": (8.0, 0.01), "R@1": (0.2, 0.0)}
    )
    assert "finest.tar" in motion and "4648 test clips" in motion
    own = protocol.gate(Gated(1.0, dataset), right | {"Diversity": (8.0, 0.01)})
    assert "meta: its std should be 25 times smaller" in own and "it is 1 times" in own
    assert protocol.gate(
        Gated(dataset=dataset), right | {"R@1": (float("nan"), 0.0)}
    ), "NaN does not pass"


def test_the_gate_stops_before_the_model(root, monkeypatch, capsys):
    """A published judge of random weights: real motion scores wrong, nothing is generated;
    --no-gate marks the page."""
    arrays = {
        key: torch.from_numpy(value)
        for key, value in np.load(GOLDEN / "t2m_evaluators.npz").items()
    }
    states = {
        part: {
            key.split("/")[1]: value for key, value in arrays.items() if key.startswith(part + "/")
        }
        for part in ("movement_encoder", "motion_encoder", "text_encoder")
    }
    number = {word: i for i, word in enumerate(("sos", "eos", "unk", "a", "man"))}
    judge = published.T2MJudge(states, np.zeros(263), np.ones(263), np.eye(5, 30), number)
    judge.files = FILES
    monkeypatch.setattr(evaluators, "find", lambda *_: judge.eval().requires_grad_(False))
    monkeypatch.setitem(protocol.KNOWN, "made", protocol.KNOWN["humanml3d"])
    monkeypatch.setattr(protocol.Evaluation, "made", None)
    with pytest.raises(
        SystemExit, match="Real motion does not score as published.*--no-gate goes on"
    ):
        run(root, "text", out="gate")
    assert not (root / "gate").exists()
    monkeypatch.undo()
    monkeypatch.setattr(evaluators, "find", lambda *_: judge)
    monkeypatch.setitem(protocol.KNOWN, "made", protocol.KNOWN["humanml3d"])
    assert any(
        "GATE NOT PASSED" in note for note in run(root, "text", "--no-gate", out="gate")["notes"]
    )
    assert "GATE NOT PASSED" in capsys.readouterr().out
    assert "GATE NOT PASSED" in (root / "gate" / "eval.html").read_text()


def test_few_replications_and_other_splits(root, capsys):
    """One replication has no interval; the trained clips are called so; half precision and a
    flag's other form work."""
    flags = "--eval.replications 1 --eval.split train --precision bf16 --device cpu".split()
    result = run(root, "text", *flags, out="one")
    assert all(half is None for row in result["rows"].values() for _, half in row.values())
    assert (result["split"], result["precision"]) == ("train", "bf16")
    assert f"{result['rows']['generated']['FID'][0]:.3f}  " in capsys.readouterr().out
    val = run(root, "text", "--eval.split=val", out="val")
    assert (
        val["split"] == "train"
        and "There is no val split: these are the train clips." in val["notes"]
    )


def test_clips_without_an_action_are_left_out(root, tmp_path):
    clips = [
        Clip(
            f"{i:03d}",
            [Caption("a man", "a/DET man/NOUN")],
            "train",
            action,
            np.random.default_rng(i).normal(size=(48, 263)).astype(np.float32),
        )
        for i, action in enumerate(["jump/old", ""] * 10)
    ]
    actions = Pack.open(str(root / "made" / "made.pack")).actions
    write_pack(
        tmp_path / "made" / "made.pack",
        clips,
        name="made",
        skeleton="t2m",
        fps=20.0,
        actions=actions,
    )
    for name, n in (("action", 10), ("text", 20)):
        result = run(root, name, f"--assets.data_root={tmp_path}", out="part")
        assert "accuracy" in result["rows"]["real motion"]
        assert ("Clips without an action are left out." in result["notes"]) == (name == "action")
    with pytest.raises(SystemExit, match="embeddings are not finite"):
        data = checkpoint.load(str(root / "text.pt"))
        data["model"] = {
            key: value * 1e38 if key.startswith("vae.final_layer") else value
            for key, value in data["model"].items()
        }
        checkpoint.save(
            root / "nan.pt",
            data["config"],
            data["model"],
            vocabulary=data["vocabulary"],
            actions=[],
        )
        run(root, "nan", out="nan")


def test_of_a_single_clip_the_rest_is_measured(root, tmp_path):
    """Neither 0.000 nor an error of numpy: what has no number is left out, and said."""
    actions = Pack.open(str(root / "made" / "made.pack")).actions
    rng = np.random.default_rng(0)

    def pack(names):
        clips = [Clip(f"{i:03d}", [Caption("a man", "a/DET man/NOUN")],
                      "test" if i else "train", action, rng.normal(size=(48, 263)).astype("f4"))
                 for i, action in enumerate(["jump/old", *names])]
        write_pack(tmp_path / "made" / "made.pack", clips, name="made", skeleton="t2m", fps=20.0,
                   actions=actions)

    pack(["jump/old"])
    for name in ("action", "none"):
        result = run(root, name, f"--assets.data_root={tmp_path}", out="single")
        for row in result["rows"].values():
            assert not row.keys() & {"FID", "Diversity", "MultiModality"} and "jerk m/s3" in row
        assert "FID and Diversity are left out" in " ".join(result["notes"])
    pack(["jump/old", "walk/old", "walk/young", "walk/young"])
    result = run(root, "action", f"--assets.data_root={tmp_path}", out="single")
    assert result["rows"]["generated"].keys() >= {"FID", "Diversity", "MultiModality"}
    assert any(note.endswith("no distance: jump/old, walk/old.") for note in result["notes"])
    pack(["jump/old", "walk/old"])
    result = run(root, "action", f"--assets.data_root={tmp_path}", out="single")
    assert result["rows"]["generated"].keys() & {"Diversity", "MultiModality"} == {"Diversity"}


def test_flops_are_counted_where_c_does_the_work():
    """A step of the denoiser is 2 flops for each weight and token, whatever runs it. Tokens, with
    and without the condition: the latent's, the noise level, the text, the length."""
    config = settings(**{"denoiser.latent_dim": 64, "vae.latent_dim": 64, "vae.latent_size": 2,
                         "denoiser.arch": "trans_enc"})
    model = MLD(config, WordEncoder(config.text, ["a", "man"])).eval()
    found = program.sizes(model, ["a man"])["denoiser"]["GFLOPs"] * 1e9
    weights = sum(p.numel() for p in model.denoiser.encoder.parameters() if p.dim() == 2)
    steps, tokens = config.diffusion.num_inference_steps, 2 * (config.denoiser.principal + 3)
    assert 0.7 < found / (2 * weights * tokens * steps) < 2  # embeddings and attention beside them
    config.denoiser.arch = "modulated"
    model = MLD(config, WordEncoder(config.text, ["a", "man"])).eval()
    found = program.sizes(model, ["a man"])["denoiser"]["GFLOPs"] * 1e9
    weights = sum(p.numel() for p in model.denoiser.modulated.parameters() if p.dim() == 2)
    assert 0.7 < found / (2 * weights * 2 * steps) < 2


@pytest.mark.parametrize(
    "name, actions, split", [("humanact12", 12, "train"), ("uestc", 40, "both")]
)
def test_published_action_datasets(tmp_path, name, actions, split):
    """From a pack to the table, judged by classifiers in files of the published form (random
    weights)."""
    rng = np.random.default_rng(0)
    clips = [
        Clip(
            f"{i:03d}",
            split="train" if i % 2 or name == "humanact12" else "test",
            action=str(i % 4),
            features=rng.normal(size=(60, 150)).astype(np.float32),
        )
        for i in range(16)
    ]
    write_pack(tmp_path / name / f"{name}.pack", clips, name=name, skeleton="smpl", fps=20.0,
               actions=[str(k) for k in range(actions)], rest=rng.normal(size=(24, 3)))
    config = settings(
        **{
            **ACTION,
            **SIZES,
            "vae.latent_size": 1,
            "vae.mlp_dist": False,
            "denoiser.principal": 0,
            "data.dataset": name,
            "denoiser.num_actions": actions,
        }
    )
    model = MLD(config, rest=rng.normal(size=(24, 3)))
    checkpoint.save(
        tmp_path / "model.pt", config, model.state_dict(), actions=[str(k) for k in range(actions)]
    )
    state = (
        {"model": published.ActionGRU().state_dict()}
        if name == "humanact12"
        else published.STGCN().state_dict()
    )
    (tmp_path / "act").mkdir()
    torch.save(state, tmp_path / "act" / published.CLASSIFIERS[name])
    program.main(["--ckpt", str(tmp_path / "model.pt"), f"--assets.data_root={tmp_path}",
                  f"--assets.classifier_path={tmp_path / 'act'}", *QUICK])
    result = json.loads((tmp_path / "eval.json").read_text())
    names = ["real motion", "VAE reconstruction", "generated"]
    both = [f"{name} ({split})" for split in ("train", "test") for name in names]
    assert (
        list(result["rows"]) == (names if split == "train" else both)
        and "published" in result["judge"]
    )
    row = list(result["rows"].values())[-1]
    judged = {"FID", "Diversity", "MultiModality", "accuracy"}
    assert row.keys() == judged | {"jerk m/s3"} | SHARP


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--ckpt", "none.pt"], "no checkpoint"),
        (["--ckpt", "CKPT", "word"], "Unknown flag 'word'"),
        (["--ckpt", "CKPT", "--eval.replication=3"], "Did you mean"),
        (["--ckpt", "CKPT", "--eval.replications=0"], "must be positive"),
        (
            ["--ckpt", "CKPT", "--evaluator", "nowhere.pt"],
            "There is no evaluator for made at nowhere.pt",
        ),
        (["--ckpt", "CKPT", "--evaluator", "CKPT"], "is no evaluator"),
        (["--ckpt", "CKPT", "--evaluator", "JUDGE", "--eval.group=3"], "eval.group must be at lea"),
        (["--ckpt", "CKPT", "--evaluator", "JUDGE", "--eval.mm_samples=1"],
         "eval.mm_samples must be at least 2, found 1"),
        (["--ckpt", "CKPT", "--evaluator", "JUDGE"], "groups of 32 pairs, found 20"),
        (["--ckpt", "CKPT", "--evaluator", "JUDGE", "--evaluator.kind", "t2m"], "Which judge"),
        (
            ["--ckpt", "CKPT", "--denoiser.length_token=0"],
            "--denoiser.length_token was settled by training",
        ),
        (["--ckpt", "CKPT", "--eval.seed"], "eval.seed must be a whole number"),
        (["--ckpt", "CKPT", "--cfg_assets", "none.py"], "Assets file none.py cannot be read"),
        (["--ckpt", "CKPT", "--dataset", "other"], "other.pack does not exist"),
        (["--ckpt", "CKPT", "--dataset", "other", "--out", "JUDGE"], "is a file, no folder"),
    ],
)
def test_refusals(root, flags, words):
    names = {"CKPT": str(root / "text.pt"), "JUDGE": str(root / "judge.pt")}
    before = sorted(os.listdir(root))
    with pytest.raises(SystemExit) as error:
        program.main([names.get(word, word) for word in flags] + [f"--assets.data_root={root}"])
    assert (
        words in str(error.value)
        and "\n" not in str(error.value)
        and sorted(os.listdir(root)) == before
    )
