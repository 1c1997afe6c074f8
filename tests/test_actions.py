"""HumanAct12 and UESTC work from published files to the table, by the programs alone."""
import json

import pytest
import warm

from conftest import ROOT
from test_prepare import dump, humanact12, uestc

SMALL = [
    "--vae.latent_dim=16",
    "--vae.ff_size=32",
    "--vae.num_layers=2",
    "--denoiser.latent_dim=16",
    "--denoiser.ff_size=32",
    "--denoiser.num_layers=3",
    "--denoiser.text_encoded_dim=16",
    "--train_vae.steps=3",
    "--train_diffusion.steps=3",
    "--train_vae.batch_size=4",
    "--train_diffusion.batch_size=4",
    "--cache_latents=1",
    "--train.threads=1",
    "--precision=float32",
    "--train.device=cpu",
    "--train_evaluator.steps=3",
    "--train_evaluator.batch_size=4",
    "--evaluator.width=16",
    "--evaluator.layers=1",
]


def program(folder, *words):
    done = warm.run(ROOT / words[0], *words[1:], cwd=folder)
    assert done.returncode == 0, (words, done.stderr[-2000:])
    return done.stdout


@pytest.mark.parametrize("name, action", [("humanact12", "throw"), ("uestc", "action 7")])
def test_from_published_files_to_the_table(tmp_path, name, action):
    if name == "humanact12":
        source = dump(
            tmp_path / "source" / "humanact12poses.pkl",
            humanact12((60, 70, 95, 60, 64, 80), y=[0, 8, 11, 0, 8, 11]),
        )
    else:
        source, people = tmp_path / "source", ("001", "118", "113", "003", "001", "118")
        uestc(
            source,
            [f"a{7 + i}_d0_p{person}_c1" for i, person in enumerate(people)],
            [80, 70, 90, 64, 75, 100],
        )
    root = tmp_path / "data"
    program(tmp_path, "prepare.py", name, source, "--out", root / name / f"{name}.pack")
    where = ["--dataset", name, f"--assets.data_root={root}", "--train.out=out"]
    for stage in ((), ("--stage", "evaluator")):
        program(tmp_path, "train.py", *where, *stage, *SMALL)
    model = tmp_path / "out" / name / "model.pt"
    assert "1 motion (" in program(
        tmp_path,
        "sample.py",
        "--ckpt",
        model,
        "--action",
        action,
        "--steps",
        3,
        "--format",
        "html,npy",
        "--device",
        "cpu",
    )
    told = program(
        tmp_path,
        "eval.py",
        "--ckpt",
        model,
        "--dataset",
        name,
        *where[2:],
        "--eval.replications=2",
        "--diffusion.num_inference_steps=2",
    )
    written = json.loads((model.parent / "eval.json").read_text())
    rows, notes = written["rows"], " ".join(written["notes"])
    assert all({"FID", "accuracy", "Diversity"} <= row.keys() for row in rows.values()), rows
    left_out = [name for name, row in rows.items() if "MultiModality" not in row]
    assert not left_out or "MultiModality leaves out actions of a single clip" in notes, rows
    assert len(rows) == (3 if name == "humanact12" else 6) and "our own evaluator" in told
