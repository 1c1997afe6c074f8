"""Published weights come whole and unchanged from a hub that does wrong whatever a hub can."""
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from urllib import request

import numpy as np
import pytest
import torch

import checkpoint
from config import AssetsConfig
from conftest import GOLDEN, ROOT
from formats import download, hub, safetensors_part
from formats.safe_pickle import load_safetensors
from hub_server import Hub, clip_shapes, published, safetensors
from published_clip import load_clip

KEYS = json.loads((GOLDEN / "official_checkpoint_keys.json").read_text())
FILES = published(KEYS)
TOWER = "openai/clip-vit-large-patch14/model.safetensors"
VAE = "blanchon/motion-latent-diffusion-standalone-vae/model.safetensors"
# our small files are not the real ones, whose digest the table knows
WORDS = {word: entry._replace(files=tuple(file._replace(sha256="") for file in entry.files))
         for word, entry in hub.WORDS.items()}


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setattr(hub, "WORDS", WORDS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Hub(FILES) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def get(server, tmp_path, name=TOWER, faults=(), **options):
    """Fetch one file in the face of `faults`; its bytes."""
    server.faults = list(faults)
    file = next(f for f in WORDS["humanml3d"].files if f"{f.repo}/{f.name}" == name)
    path = str(tmp_path / "one" / file.name)
    hub.get(file, path, [str(tmp_path / "lock")], options.get("clip_dtype", "float32"))
    assert not server.faults, "not all faults have happened"
    assert sorted(os.listdir(tmp_path / "one")) == [file.name], "something else was left behind"
    return (tmp_path / "one" / file.name).read_bytes()


def tower_is_right(path):
    found, whole = load_safetensors(path), safetensors_of(FILES[TOWER])
    return found.keys() == clip_shapes().keys() and all(
        torch.equal(value, whole[name]) for name, value in found.items())


def safetensors_of(data):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return {name: value.clone() for name, value in load_safetensors(file.name).items()}


# --------------------------------------------------------------------------------------------------
# All goes well


def test_one_word_fetches_a_model_that_makes_motions(server, tmp_path, capsys):
    model, clip = hub.fetch("humanml3d")
    assert model == str(tmp_path / "nanomld" / "humanml3d")
    assert "Fetching humanml3d, once" in capsys.readouterr().err
    assert tower_is_right(os.path.join(clip, "model.safetensors"))
    made = checkpoint.load_model(model, AssetsConfig(clip_path=clip))
    features, joints = made.generate(["a man jumps"], lengths=[40], seed=1, num_inference_steps=2)
    assert features.shape == (1, 40, 263) and joints.isfinite().all()
    before = len(server.requests)
    assert hub.fetch("humanml3d", offline=True) == (model, clip), "nothing is fetched twice"
    assert len(server.requests) == before and not capsys.readouterr().err


def test_sample_py_takes_the_word(server, tmp_path, monkeypatch, capsys):
    import sample
    monkeypatch.chdir(tmp_path)
    line = ["a person does a backflip", "--ckpt", "humanml3d", "--steps", "2", "--format", "npy"]
    with pytest.raises(SystemExit, match="offline.*into .*nanomld.humanml3d.vae"):
        sample.main([*line, "--offline"])
    sample.main(line)
    found = capsys.readouterr()
    assert "rule that looks at the verbs" in found.err and "1 motion (7.0 s)" in found.out
    assert np.load(tmp_path / "out" / "a-person-does-a-backflip.npy").shape == (140, 22, 3)
    sample.main([*line, "--seconds", "2", "--assets.cache", "elsewhere", "--assets.lock", "a.lock",
                 "--assets.clip_dtype", "float16"])
    assert os.path.exists("elsewhere/clip-vit-large-patch14-text-float16/model.safetensors")
    assert "rule" not in capsys.readouterr().err and TOWER in json.loads(open("a.lock").read())
    assert np.load(tmp_path / "out" / "a-person-does-a-backflip-2.npy").shape == (40, 22, 3)
    with pytest.raises(SystemExit, match="CLIP's weights are not at nowhere"):
        sample.main([*line, "--clip", "nowhere"])
    sample.main(["--list", "--assets.cache", "elsewhere"])
    assert "humanml3d" in capsys.readouterr().out


def test_eval_py_takes_the_word(server, tmp_path, monkeypatch):
    import eval
    monkeypatch.chdir(tmp_path)
    for flag in ("--offline", "--assets.offline=true"):
        with pytest.raises(SystemExit, match="humanml3d cannot be fetched .offline"):
            eval.main(["--ckpt", "humanml3d", flag])
    with pytest.raises(SystemExit, match="humanml3d.*prepare.py|HumanML3D|humanml3d.pack"):
        eval.main(["--ckpt", "humanml3d", f"--assets.data_root={tmp_path}"])


def test_without_a_home_a_cache_is_asked_for(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert os.path.isabs(hub.default_cache())
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(FileNotFoundError, match="--assets.cache"):
        hub.default_cache()


def test_only_the_text_half_of_clip_is_fetched(server, tmp_path):
    get(server, tmp_path)
    text = sum(4 * int(np.prod(shape)) for shape in clip_shapes().values())
    table = int.from_bytes(FILES[TOWER][:8], "little") + 8
    assert len(clip_shapes()) == 197 and server.sent == text + table + 1  # a byte to ask what it is
    assert len(server.asked(TOWER)) == 3, "the table's length, the table, all tensors at once"


def test_sizes_in_the_table_are_those_of_the_published_shapes():
    for part, weights in (("vae", hub.NETWORKS[1]), ("denoiser", hub.NETWORKS[3])):
        size = 4 * sum(int(np.prod(shape)) for shape in KEYS[f"hub_{part}_humanml3d"].values())
        assert size < weights.size < 1.01 * size, part
    size = 4 * sum(int(np.prod(s)) for s in clip_shapes(768, 12, 768).values())
    assert size < hub.TOWER[1].size < 1.01 * size


def test_float16_is_half_the_size_and_nearly_the_same_feature(server, tmp_path):
    texts = ["a man jumps", "a person walks in a circle and then sits down", ""]
    _, whole = hub.fetch("humanml3d")
    _, half = hub.fetch("humanml3d", clip_dtype="float16")
    sizes = [os.path.getsize(os.path.join(folder, "model.safetensors")) for folder in (whole, half)]
    assert 1.95 < sizes[0] / sizes[1] < 2
    a, b = (load_clip(folder)(texts) for folder in (whole, half))
    assert 0 < (a - b).norm() / a.norm() < 1e-3


def test_a_number_too_large_for_float16_is_refused(tmp_path):
    data = safetensors({"text_model.a": np.array([1e5], "f4")})
    (tmp_path / "part").write_bytes(data)
    with pytest.raises(ValueError, match="does not fit into float16"):
        safetensors_part.write(tmp_path / "part", tmp_path / "new", ("text_",), len(data), True)
    assert not (tmp_path / "new").exists()


def test_the_token_is_for_the_hub_only(server, tmp_path, monkeypatch):
    server.token = "secret"
    with pytest.raises(ConnectionError, match="401.*HF_TOKEN"):
        get(server, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "secret")
    get(server, tmp_path)
    for place, _, headers in server.requests[1:]:
        assert headers.get("Authorization") == ("Bearer secret" if place == "hub" else None)


def test_a_redirect_that_drops_encryption_is_refused():
    old = request.Request("https://hub.example/a")
    with pytest.raises(ValueError, match="without encryption"):
        download.Redirects().redirect_request(old, None, 302, "", {}, "http://hub.example/a")


def test_a_proxy_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    get(server, tmp_path)


# --------------------------------------------------------------------------------------------------
# All goes wrong


@pytest.mark.parametrize("faults", [
    ["503", "500", "502"], ["429", "429"], ["408"], ["416"], ["wrong length"], ["long"],
    [("short", 1000)], [("trickle", 300_000, 0.01)], [("cut", 0)] * 3], ids=str)
@pytest.mark.parametrize("name", [TOWER, VAE])
def test_faults_that_pass(server, tmp_path, name, faults):
    if name == TOWER:
        faults = [None, None, *faults]  # let the table come through
    got = get(server, tmp_path, name, faults)
    path = tmp_path / "one" / "model.safetensors"
    assert tower_is_right(path) if name == TOWER else got == FILES[VAE]


def test_a_bar_shows_bytes_and_the_time_left(server, tmp_path, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    get(server, tmp_path, VAE, [("trickle", 100_000, 0.05)])
    shown = r"standalone-vae/model.safetensors: .*%.*[\d.]+M/[\d.]+M \[00:0\d<00:0\d, .*MB/s"
    assert re.search(shown, screen.getvalue())


def test_connections_cut_at_every_tenth(server, tmp_path):
    tenth = len(FILES[VAE]) // 10
    get(server, tmp_path / "clip", TOWER, [("cut", len(FILES[TOWER]) // 10)] * 5)
    assert tower_is_right(tmp_path / "clip" / "one" / "model.safetensors")
    server.sent = 0
    assert get(server, tmp_path, VAE, [("cut", tenth)] * 10) == FILES[VAE]
    starts = [int(asked[6:].split("-")[0]) for asked in server.asked(VAE)]
    assert starts == [i * tenth for i in range(11)], "each goes on where the one before ended"
    assert server.sent == len(FILES[VAE]) + 1


def test_a_server_that_stays_away_is_given_up(server, tmp_path, monkeypatch):
    with pytest.raises(ConnectionError, match=f"{VAE.split('/')[1]}.* 503 "):
        get(server, tmp_path, VAE, ["503"] * 99)
    assert len(server.faults) == 99 - download.TRIES
    part, = (tmp_path / "one").iterdir()
    assert part.suffix == ".part" and not part.stat().st_size


def test_what_has_come_is_kept_for_the_next_time(server, tmp_path):
    half = len(FILES[VAE]) // 2
    with pytest.raises(ConnectionError, match="too early"):
        get(server, tmp_path, VAE, [("cut", half)] + [("cut", 0)] * download.TRIES)
    assert get(server, tmp_path, VAE) == FILES[VAE]
    assert server.asked(VAE)[-1] == f"bytes={half}-{len(FILES[VAE]) - 1}"


@pytest.mark.parametrize("name", [TOWER, VAE])
@pytest.mark.parametrize("fault", ["no ranges", "whole", "wrong range"])
def test_without_ranges_the_whole_file_is_fetched_and_said_before(
        server, tmp_path, capsys, name, fault):
    server.ranges = fault != "no ranges"
    faults = [] if fault == "no ranges" else [None, None, fault] if name == TOWER else \
        [("cut", 1000), fault]
    got = get(server, tmp_path, name, faults)
    path = tmp_path / "one" / "model.safetensors"
    assert tower_is_right(path) if name == TOWER else got == FILES[VAE]
    assert "all of it is fetched" in capsys.readouterr().err
    pinned = json.loads((tmp_path / "lock").read_text())[name]
    get(server, tmp_path / "again", name)
    assert json.loads((tmp_path / "again" / "lock").read_text())[name] == pinned


def test_whole_files_are_begun_anew_after_a_cut(server, tmp_path):
    server.ranges = False
    assert get(server, tmp_path, VAE, [None, ("cut", 5000), "503"]) == FILES[VAE]


def test_a_file_that_changes_between_two_ranges_is_begun_anew(server, tmp_path):
    got = get(server, tmp_path, VAE, [("cut", len(FILES[VAE]) // 2, VAE)])
    assert got == server.files[VAE] != FILES[VAE]
    assert len(server.asked(VAE)) == 3, "the half that came, another file's half, all of that"


def test_a_file_that_keeps_changing_is_given_up(server, tmp_path):
    with pytest.raises(ConnectionError, match="keeps changing"):
        get(server, tmp_path, VAE, [("cut", 1000, VAE), None] * 4)
    assert not list((tmp_path / "one").iterdir())


def test_bytes_that_are_not_the_files_are_refused(server, tmp_path):
    with pytest.raises(ValueError, match=f"{VAE.split('/')[1]}.*SHA-256"):
        get(server, tmp_path, VAE, ["spoilt"])
    assert not list((tmp_path / "one").iterdir()) and not (tmp_path / "lock").exists()


def test_a_trickle_is_left_for_another_connection(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    started = time.monotonic()
    assert get(server, tmp_path, VAE, [("trickle", 10, 0.1)] * 2) == FILES[VAE]
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff" * 99, safetensors({}),
                                  b"\x02" + bytes(7) + b"[]"])
def test_what_is_no_text_tower_is_refused(server, tmp_path, data):
    server.files[TOWER] = data
    with pytest.raises((ValueError, ConnectionError), match="clip-vit-large-patch14") as caught:
        get(server, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "one" / "model.safetensors").exists()


# --------------------------------------------------------------------------------------------------
# Locks


def test_a_shared_lock_gives_others_the_same_files(server, tmp_path):
    lock = str(tmp_path / "shared.lock")
    hub.fetch("humanml3d", str(tmp_path / "a"), lock)
    pinned = open(lock).read()
    assert pinned == (tmp_path / "a" / "assets.lock").read_text()
    assert json.loads(pinned)[VAE]["sha256"] == hashlib.sha256(FILES[VAE]).hexdigest()
    server.files[VAE] = server.files[VAE][:-1] + b"!"  # main goes on
    model, _ = hub.fetch("humanml3d", str(tmp_path / "b"), lock)
    with open(os.path.join(model, "vae", "model.safetensors"), "rb") as file:
        assert file.read() == FILES[VAE], "the commit that was pinned"
    assert open(lock).read() == pinned
    # a cache that has the new file takes the pinned one, as soon as the lock is named
    model, _ = hub.fetch("humanml3d", str(tmp_path / "c"))
    file = os.path.join(model, "vae", "model.safetensors")
    assert open(file, "rb").read() == server.files[VAE]
    hub.fetch("humanml3d", str(tmp_path / "c"), lock)
    assert open(file, "rb").read() == FILES[VAE]


def test_what_differs_from_the_lock_is_refused(server, tmp_path):
    get(server, tmp_path, VAE)
    lock = json.loads((tmp_path / "lock").read_text())
    lock[VAE] |= {"sha256": "0" * 64, "whole": "0" * 64}
    (tmp_path / "lock").write_text(json.dumps(lock))
    with pytest.raises(ValueError, match="and 0000.* was expected; .*delete its entry from .*lock"):
        get(server, tmp_path, VAE)
    get(server, tmp_path / "clip", TOWER)
    for faults in [None, None, "spoilt"], ["whole", None, "spoilt"]:
        with pytest.raises(ValueError, match="clip-vit-large-patch14.*SHA-256"):
            get(server, tmp_path / "clip", TOWER, faults)
    for text in ("{", "[1, 2]", json.dumps({VAE: {}}), json.dumps({VAE: 3})):
        (tmp_path / "lock").write_text(text)
        with pytest.raises(ValueError, match="no lock file"):
            get(server, tmp_path, VAE)


def test_the_digest_in_the_table_counts(server, monkeypatch):
    monkeypatch.setattr(hub, "WORDS", {"humanml3d": hub.Word("", "m", hub.TOWER)})
    with pytest.raises(ValueError, match="SHA-256 is .*, and a2bf730a.* was expected"):
        hub.fetch("humanml3d")
    assert len(server.asked(TOWER)) == 0, "seen before anything is fetched"


PROGRAM = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from formats import hub
hub.WORDS = {{word: entry._replace(files=tuple(f._replace(sha256="") for f in entry.files))
             for word, entry in hub.WORDS.items()}}
print(*hub.fetch("humanml3d", {cache!r}))
"""


def start(tmp_path):
    code = PROGRAM.format(root=str(ROOT), cache=str(tmp_path / "cache"))
    return subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)


def test_two_processes_fetch_once(server, tmp_path):
    server.faults = [("trickle", 200_000, 0.05)] * 4
    processes = [start(tmp_path) for _ in range(2)]
    ended = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    assert ended[0][0] == ended[1][0]
    assert sum("waiting for it" in err for _, err in ended) == 1
    assert len(server.asked(VAE)) == 1


def test_a_killed_process_leaves_no_lock_and_loses_no_bytes(server, tmp_path):
    server.faults = [("trickle", 20_000, 0.05)]
    process, folder = start(tmp_path), tmp_path / "cache" / "humanml3d" / "vae"
    while not any(part.stat().st_size > 50_000 for part in folder.glob("model*.part")):
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    part, = folder.glob("model*.part")
    came = part.stat().st_size
    process = start(tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "waiting" not in err, err
    assert server.asked(VAE)[-1].startswith(f"bytes={came}-")
    assert (folder / "model.safetensors").read_bytes() == FILES[VAE]


# --------------------------------------------------------------------------------------------------
# Without a network


def places_of(message):
    return [f"{repo} into" in message for repo in (
        "blanchon/motion-latent-diffusion-standalone-vae",
        "blanchon/motion-latent-diffusion-standalone-denoiser", "openai/clip-vit-large-patch14")]


@pytest.mark.parametrize("how", ["flag", "environment", "no network", "no name"])
def test_offline_says_what_to_get_and_where_to_put_it(server, tmp_path, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif how != "flag":
        away = "http://127.0.0.1:9" if how == "no network" else "http://hub.invalid"
        monkeypatch.setenv("HF_ENDPOINT", away)
    with pytest.raises(ConnectionError) as caught:
        hub.fetch("humanml3d", offline=how == "flag")
    message = str(caught.value)
    assert all(places_of(message)) and str(tmp_path / "nanomld" / "humanml3d" / "vae") in message
    assert "\n" not in message and not server.requests


def test_files_put_there_by_hand_are_used(server, tmp_path):
    cache = tmp_path / "by-hand"
    for file in WORDS["humanml3d"].files:
        (cache / file.folder).mkdir(parents=True, exist_ok=True)
        (cache / file.folder / file.name).write_bytes(FILES[f"{file.repo}/{file.name}"])
    model, clip = hub.fetch("humanml3d", str(cache), offline=True)
    checkpoint.load_model(model, AssetsConfig(clip_path=clip))
    assert not server.requests
    # a shared lock holds for them, too
    lock = tmp_path / "lock"
    hub.fetch("humanml3d", str(tmp_path / "fetched"), str(lock))
    hub.fetch("humanml3d", str(cache), str(lock), offline=True)
    (cache / "humanml3d" / "vae" / "model.safetensors").write_bytes(b"another")
    with pytest.raises(ConnectionError, match="offline"):
        hub.fetch("humanml3d", str(cache), str(lock), offline=True)


def test_weights_that_are_not_on_the_hub_are_put_there_by_hand(server, tmp_path):
    with pytest.raises(FileNotFoundError, match="KIT.*drive.google.com.*kit.mld_kit.ckpt"):
        hub.fetch("kit")
    (tmp_path / "nanomld" / "humanact12").mkdir(parents=True)
    file = tmp_path / "nanomld" / "humanact12" / "mld_humanact12.ckpt"
    file.write_bytes(b"")
    assert hub.fetch("humanact12") == (str(file), None) and not server.requests


def test_whoever_has_clip_already_fetches_none(server, tmp_path):
    assert hub.fetch("humanml3d", clip=False) == (str(tmp_path / "nanomld" / "humanml3d"), None)
    assert not [path for _, path, _ in server.requests if "clip" in path]


def test_listing_says_what_each_word_needs(server):
    lines = list(hub.listing())
    assert [line.split()[0] for line in lines] == list(hub.WORDS)
    assert "600 MB" in lines[0] and "by hand" in lines[1]
    hub.fetch("humanml3d")
    assert list(hub.listing())[0].endswith("is here")
