"""view/page.py, tensors.js and model.js: the page makes Python's motions, and nothing but its own
code runs in it."""
import dataclasses
import json
import math
import random
import re
import shlex
import shutil
import subprocess

import browser
import numpy as np
import pytest
import torch
import warm
from conftest import ROOT

import checkpoint
import clauses
import clip
import diffusion
import motion
import story
import test_clauses
import words
from config import from_dict
from formats.pack import Pack
from latents import diffused_shape
from test_words import ODD
from view import matmul, page

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(
    NODE is None, reason="NOT TESTED: the page's model against Python; Node.js is not installed")
needs_browser = pytest.mark.skipif(
    browser.find() is None, reason="NOT TESTED: the page in a browser; Chromium is not installed")
TOY = ROOT / "checkpoints" / "toy.pt"
TOLERANCE = 1e-4  # metres, and the features' own units
PRELUDE = """
const fs = require("fs"), read = name => fs.readFileSync(`${__dirname}/${name}`);
const INPUT = JSON.parse(read("input.json"));
const answer = value => console.log(JSON.stringify(value, (key, v) =>
  ArrayBuffer.isView(v) ? Array.from(v) : v));
"""
GENERATE = """
const model = new MLD(INPUT.header, new Uint8Array(read("weights.bin")).slice(),
                      INPUT.plain ? null : read("product.wasm"));
answer(INPUT.jobs.map(([text, settings]) => model.generate(text, settings)));
"""


def node(folder, code, **given):
    """What `code` gives to answer(), run after the page's program with `given` as INPUT."""
    folder.joinpath("input.json").write_text(json.dumps(given))
    folder.joinpath("run.js").write_text(page.program_text() + PRELUDE + code)
    done = subprocess.run([NODE, folder / "run.js"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def generate(folder, model, jobs, kind="float32", plain=False):
    """jobs [(text, settings)] in JavaScript -> for each {joints, features, frames, seed, unknown},
    arrays (T, J, 3) and (T, F)."""
    tensors, weights = page.pack(model, kind)
    folder.joinpath("weights.bin").write_bytes(weights)
    folder.joinpath("product.wasm").write_bytes(matmul.kept()[2])
    header = page.header_of(model, tensors)
    made = node(folder, GENERATE, header=header, jobs=jobs, plain=plain)
    for one in made:
        for name, shape in (("joints", (one["frames"], -1, 3)), ("features", (one["frames"], -1))):
            one[name] = np.array(one[name], np.float32).reshape(shape)
    return made


def read(model, text):
    """What the model is given for a prompt: known words in place of others, as in sample.py."""
    return words.understand(text, model.text_encoder.vocabulary).text if words else text


def in_python(model, texts, lengths, seed, guidance, steps=10):
    """The same by MLD.generate and sample.py's constant bones -> [(features, joints)]."""
    texts = [read(model, text) for text in texts]
    features, joints = model.generate(texts, lengths=lengths, seed=seed, guidance_scale=guidance,
                                      sampler="dpm++", num_inference_steps=steps)
    found = []
    for f, j, n in zip(features, joints, lengths):
        j = j[:n].numpy()
        if model.config.data.skeleton == "t2m":
            bones = np.linalg.norm(motion.T2M_OFFSETS, axis=1)
            j = motion.keep_bones(j, bones, motion.T2M.parents)
        found.append((f[:n].numpy(), j))
    return found


def assert_same(made, wanted):
    assert len(made) == len(wanted)
    for one, (features, joints) in zip(made, wanted):
        assert one["features"].shape == features.shape and one["joints"].shape == joints.shape
        assert np.abs(one["features"] - features).max() < TOLERANCE
        assert np.abs(one["joints"] - joints).max() < TOLERANCE


@pytest.fixture(scope="module")
def toy():
    return checkpoint.load_model(str(TOY))


# --------------------------------------------------------------------------------------------------
# The model that ships


@needs_node
@pytest.mark.parametrize("plain", [False, True], ids=["wasm", "plain"])
def test_a_seed_gives_pythons_motion(toy, tmp_path, plain):
    """The whole chain, the length too, for words that are known and not, and seeds of any size."""
    cases = [("a man jumps", 1, 2.5), ("a person walks in a circle", 8, 1.0),
             ("Someone's ZIGZAG, gloriously!", 2**31 + 5, 2.5), ("a woman waves", 2**53 - 1, 0.0)]
    jobs = [(text, {"seed": seed, "guidance": scale}) for text, seed, scale in cases]
    made = generate(tmp_path, toy, jobs, "auto", plain)
    for one, (text, seed, scale) in zip(made, cases):
        lengths = toy.draw_lengths([read(toy, text)], seed=seed)
        assert one["frames"] == lengths[0] and one["seed"] == seed
        assert_same([one], in_python(toy, [text], lengths, seed, scale))
    found = [one["report"]["unknown"] for one in made]
    wanted = ["zigzag", "gloriously"] if words else ["someone's", "zigzag", "gloriously"]
    assert found == [[], [], wanted, []]


@needs_node
def test_lengths_steps_and_a_batch(toy, tmp_path):
    """From one frame to the most that the position tables hold; as a batch in Python, which gives
    motion i the seed s + i."""
    texts, lengths = ["a man jumps", "", "a person sits down"], [1, toy.max_frames, 60]
    jobs = [(text, {"seed": 40 + i, "frames": n, "guidance": 2.5, "steps": 4})
            for i, (text, n) in enumerate(zip(texts, lengths))]
    wanted = in_python(toy, texts, lengths, 40, 2.5, steps=4)
    assert_same(generate(tmp_path, toy, jobs, "auto"), wanted)


@needs_node
def test_lengths_are_drawn_as_python_draws_them(toy, tmp_path):
    texts = ["a man jumps", "a person walks in a circle twice", "she waves", ""]
    code = GENERATE.split("answer")[0] + """answer(INPUT.texts.map(text => Array.from({length: 40},
      (_, seed) => model.drawLength(model.encode(text), seed))));"""
    tensors, weights = page.pack(toy)
    tmp_path.joinpath("weights.bin").write_bytes(weights)
    found = node(tmp_path, code, header=page.header_of(toy, tensors), texts=texts, plain=True)
    assert found == [[toy.draw_lengths([text], seed=s)[0] for s in range(40)] for text in texts]
    assert len({n for row in found for n in row}) > 5


@needs_node
def test_given_noise_is_used_and_bad_settings_are_refused(toy, tmp_path):
    noise = torch.randn(1, *diffused_shape(toy.config), generator=torch.Generator().manual_seed(8))
    made = generate(tmp_path, toy, [("a man jumps", {"frames": 40, "seed": 0, "guidance": 2.5,
                                                     "noise": noise.flatten().tolist()})],
                    "auto")
    wanted = toy.generate(["a man jumps"], lengths=[40], x_T=noise, guidance_scale=2.5,
                          sampler="dpm++", num_inference_steps=10)[0][0].numpy()
    assert np.abs(made[0]["features"] - wanted).max() < TOLERANCE
    bad = [{"frames": toy.max_frames + 1}, {"frames": 2.5}, {"frames": -1}, {"steps": 0},
           {"steps": 1001}, {"guidance": -1}]
    code = GENERATE.split("answer")[0] + """answer(INPUT.bad.map(settings => {
      try { model.generate("a man jumps", settings); } catch (error) { return error.message; }
    }));"""
    said = node(tmp_path, code, bad=bad, plain=True,
                header=page.header_of(toy, page.pack(toy)[0]))
    for text, words in zip(said, ["1 to 492 frames"] * 3 + ["1 to 1000"] * 2 + ["Guidance"]):
        assert words in text


# --------------------------------------------------------------------------------------------------
# Other models: tiny ones, with random weights


def tiny(**changes):
    """A random model whose sizes are no multiples of 8 or 16; changes as section__key=value."""
    settings = {
        "vae": {"latent_dim": 12, "ff_size": 20, "num_layers": 3, "num_heads": 2,
                "max_positions": 40, "latent_size": 1},
        "text": {"kind": "scratch", "width": 10, "layers": 1, "heads": 2, "context_length": 9},
        "denoiser": {"latent_dim": 12, "ff_size": 28, "num_layers": 3, "num_heads": 3,
                     "max_positions": 30, "text_encoded_dim": 10},
        "data": {"max_frames": 32}, "diffusion": {}}
    for key, value in changes.items():
        section, name = key.split("__")
        settings[section][name] = value
    torch.manual_seed(len(str(changes)))
    config = from_dict(settings)
    nfeats = config.data.nfeats
    encoder = clip.WordEncoder(config.text, ["a", "jumps", "man", "walks"])
    model = checkpoint.MLD(config, encoder, torch.randn(nfeats) / 5, torch.rand(nfeats) / 5 + 0.01)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms as training leaves them: not 0 and 1
            parameter.data += 0.1 * torch.randn_like(parameter)
    if config.denoiser.normalize_latents:
        for name, buffer in model.named_buffers(recurse=False):
            if name.startswith("latent_"):
                buffer.uniform_(0.5, 2) if name == "latent_std" else buffer.normal_(0, 0.3)
        if config.denoiser.arch == "modulated":
            model.denoiser.modulated.spread.uniform_(0.2, 2)
    model.actions = []
    return model.eval()


SAME_WIDTH = {"vae__latent_dim": 20, "denoiser__latent_dim": 20}
MODELS = {
    "one token of 12 numbers": {},
    "two tokens, all our additions": {
        "vae__latent_size": 2, "vae__num_layers": 5, "vae__cosines": 7, "vae__cosine_span": 33,
        "vae__mlp_dist": True, "vae__position_embedding": "sine", "denoiser__final_linear": True,
        "denoiser__length_token": True, "denoiser__normalize_latents": True,
        "diffusion__prediction_type": "sample", **SAME_WIDTH, "denoiser__num_heads": 5},
    "four tokens, two layers without skips": {
        "vae__latent_size": 4, "denoiser__num_layers": 2, "denoiser__skip_connect": False,
        "denoiser__activation": "relu", "text__layers": 3, "vae__num_layers": 1,
        "diffusion__prediction_type": "v_prediction", "diffusion__beta_schedule": "cosine"},
    "pre-norm layers": {
        "vae__normalize_before": True, "denoiser__normalize_before": True, "vae__latent_size": 2,
        "denoiser__position_embedding": "sine", "denoiser__num_layers": 7},
    "a decoder that denoises, KIT": {
        "denoiser__arch": "trans_dec", "vae__arch": "all_encoder", "vae__latent_size": 2,
        "data__skeleton": "kit", "data__fps": 12.5, "diffusion__guidance_rescale": 0.7,
        "diffusion__beta_schedule": "linear", "vae__cosines": 3, "vae__cosine_span": 40},
    "main directions, tokens wider than what they hold": {
        "vae__latent_size": 3, "denoiser__normalize_latents": True, "denoiser__principal": 5,
        "denoiser__length_token": True},
    **{f"layers that the condition modulates, {name}": {
        "denoiser__arch": "modulated", "denoiser__modulated_dim": 26, "vae__latent_size": 3,
        "denoiser__normalize_latents": True, "denoiser__principal": principal,
        "denoiser__length_token": length, "denoiser__num_layers": layers,
        "denoiser__final_linear": True, "diffusion__prediction_type": name}
       for name, principal, length, layers in (
           ("v_prediction", 2, True, 3), ("sample", 0, True, 1), ("epsilon", 1, False, 2))},
    "ACTOR's VAE, clipped": {
        "vae__arch": "actor", "vae__num_layers": 2, "diffusion__clip_sample": True,
        "denoiser__flip_sin_to_cos": False, "denoiser__freq_shift": 1.0},
}


@needs_node
@pytest.mark.parametrize("name", MODELS)
def test_any_model_of_ours(name, tmp_path):
    model = tiny(**MODELS[name])
    texts = ["a man jumps", "a zebra walks " * 8, "", "man"]
    lengths = [1, model.max_frames, 11, 20]
    for scale in (1.0, 2.5):
        jobs = [(text, {"seed": 3 + i, "frames": n, "guidance": scale})
                for i, (text, n) in enumerate(zip(texts, lengths))]
        wanted = in_python(model, texts, lengths, 3, scale)
        assert_same(generate(tmp_path, model, jobs, plain=scale == 1.0), wanted)
    features = wanted[1][0]
    assert features.std() > 0.01 and np.isfinite(features).all()


@needs_node
def test_weights_of_8_bits_are_read_as_they_were_rounded(tmp_path):
    model = tiny(**MODELS["two tokens, all our additions"])
    jobs = [("a man jumps", {"seed": 3, "frames": 20, "guidance": 2.5})]
    made = generate(tmp_path, model, jobs, "int8")
    exact = generate(tmp_path, model, jobs)
    assert 1e-4 < np.abs(made[0]["features"] - exact[0]["features"]).max() < 1
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key in page.EXACT:
                continue
            if value.dim() < 2:
                value.copy_(value.half())
                continue
            scale = value.abs().amax(1, keepdim=True) / 127
            value.copy_((value / scale).round() * scale)
    assert_same(made, in_python(model, ["a man jumps"], [20], 3, 2.5))


# --------------------------------------------------------------------------------------------------
# Words that training never saw

PROMPTS = """a man saunters to the rigth with a cup; he does not jump; A man jumps, then walks.
someone side-steps 3 times; a person wlaks backwrads; hurries and can't stop; watlz; a man who's
jogging's; un hombre salta; cartwhel; prancing, leisurely; two jumping-jacks; he\u2019s danced;
golf; \uff41 man \uff4a\uff55\uff4d\uff50\uff53;
jumpng quikly then kiks; _ walks; the; ; she tiptoes stealthily; a gymnast somersaulted; no
""".replace("\n", " ").split(";") + [f"he jumps {n} times, {n}" for n in ODD]


SAID = ("nobody jumps; he sleeps; a man cannot jump; jumps rather than walks; he cries; "
        "walks faster; jumps thrice; 3x; jumps 3x, x2; shakes his head no; kik; three reps; "
        "first he walks; punches at nobody; surfs; 3's; the 2nd man; "
        "5 secs; barking; slooow; a man runnning juuumppps; one single kick; just a single jump; "
        "singles; a cart wheel; a way to walk; walk for ward; squat realy deep; waves frantically; "
        "extremely high; jump higher; a pair of claps; angry and vertical; "
        "two people wave_; TWO PEOPLE; \uff12 people hug each other; 12 soldiers march; "
        "he falls down; falls on his left knee; nearly falls over a stone; a figure of 8; "
        "plays the piano; take two paces; picks herself up; pick yourselves up; handclaps; "
        "sitdown; bum; bsu; doesnot walk; a man rides a bike; near the creek; " +
        " ".join(words.MEANS))


@needs_node
def test_a_prompt_is_understood_as_words_py_does(toy, tmp_path):
    vocabulary = toy.text_encoder.vocabulary
    held = [form for forms in words.vectors().forms[::29] for form in forms]
    prompts = PROMPTS + SAID.split("; ") + [" ".join(held[i:i + 6]) for i in range(0, len(held), 6)]
    found = node(tmp_path, """const book = new Book(INPUT.vocabulary, INPUT.book);
      answer(INPUT.prompts.map(prompt => book.understand(prompt)));""", prompts=prompts,
                 vocabulary=vocabulary, book=page.book_of(vocabulary))
    for prompt, one in zip(prompts, found):
        report = words.understand(prompt, vocabulary)
        assert one == {key: getattr(report, key) for key in one}, prompt


@needs_node
def test_a_model_that_reads_word_vectors(tmp_path):
    model = tiny(text__vectors=True)
    assert model.state_dict()[page.ROWS.replace("weight", "project.weight")].std() > 0
    texts = ["a man jumps", "a woman saunters", "walks"]
    jobs = [(text, {"seed": 3 + i, "frames": 12, "guidance": 2.5}) for i, text in enumerate(texts)]
    assert_same(generate(tmp_path, model, jobs), in_python(model, texts, [12] * 3, 3, 2.5))


# --------------------------------------------------------------------------------------------------
# Several things, one after the other


@needs_node
def test_a_prompt_is_taken_apart_as_clauses_py_does(tmp_path):
    pack = Pack(ROOT / "data" / "toy" / "toy.pack")
    prompts = [*test_clauses.APART, *test_clauses.WHOLE, "a" * 1001 + ", then walk"]
    prompts += [pack.captions(i)[0].text for i in range(0, len(pack), 4)]
    prompts += [f"{a.capitalize()}, and {b}" for a, b in zip(prompts[::3], prompts[1::3])]
    found = node(tmp_path, """const clauses = new Clauses(INPUT.clauses);
      answer(INPUT.prompts.map(prompt => clauses.parts(prompt)));""", prompts=prompts,
                 clauses=page.clauses_of())
    assert found == [clauses.parts(prompt) for prompt in prompts]
    assert 500 < sum(len(parts) > 1 for parts in found) < len(found) - 500


@needs_node
def test_a_tale_is_the_story_of_its_parts(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(story, "CLOSE", math.inf)  # the page has no handshake
    jobs = [(["a man walks", "he sits down"], 5, 0), (["runs", "a jump", "he waves"], 6, 131),
            (["a man walks", "he jumps"], 7, 41), (["lies down", "he waves"], 2, 0),
            (["a man walks", "he jumps", "he waves"] * 3, 3, 180)]  # more than are chosen at once
    tensors, weights = page.pack(toy)
    (tmp_path / "weights.bin").write_bytes(weights)
    (tmp_path / "product.wasm").write_bytes(matmul.kept()[2])
    found = node(tmp_path, """
      mld = new MLD(INPUT.header, new Uint8Array(read("weights.bin")).slice(),
                    read("product.wasm"));
      answer(INPUT.jobs.map(([parts, seed, frames]) => {
        const {joints, report} = tale(mld, parts, {seed, frames});
        return {joints: Array.from(joints), parts: report.parts, notes: report.notes}; }));""",
                 jobs=jobs,
                 header=page.header_of(toy, tensors))
    for (texts, seed, frames), one in zip(jobs, found):
        lengths = story.lengths_of(toy, texts, seed, frames or None)
        assert one["parts"] == lengths
        whole, _ = story.story(toy, texts, lengths=lengths, seed=seed, sampler="dpm++",
                               num_inference_steps=10)
        made = np.array(one["joints"]).reshape(-1, 22, 3)
        assert made.shape == whole.shape and np.abs(made - whole).max() < 2e-3
    assert not found[0]["notes"] and "join them better" in found[3]["notes"][0]


@needs_node
@pytest.mark.parametrize("text, parts", [
    ("runs and then jmups", ["runs", "jumps"]), ("a man walks", None), ("jump, then xqzzt", None)])
def test_what_the_page_makes_of_a_prompt(toy, tmp_path, text, parts):
    tensors, weights = page.pack(toy)
    (tmp_path / "weights.bin").write_bytes(weights)
    found = node(tmp_path, """
      mld = new MLD(INPUT.header, new Uint8Array(read("weights.bin")).slice(), null);
      answer(takenApart(mld, INPUT.text));""", text=text, header=page.header_of(toy, tensors))
    assert (found and found[0]) == parts
    wanted = clauses.taken_apart(text, toy.text_encoder.vocabulary)
    assert wanted == ((parts, found[1]) if parts else ([text], {}))


# --------------------------------------------------------------------------------------------------
# The parts


@needs_node
def test_noise_is_torchs(tmp_path):
    """The scalar path below 16 numbers, whole blocks of 16, and a last block that is drawn anew."""
    sizes, seeds = [*range(1, 36), 256, 1000], [0, 1, 1234, 2**32 - 1, 2**32 + 7, 2**53 - 1]
    found = node(tmp_path, """answer(INPUT.seeds.map(seed => INPUT.sizes.map(
        n => new Generator(seed).normal(n))));""", sizes=sizes, seeds=seeds)
    for seed, rows in zip(seeds, found):
        for n, row in zip(sizes, rows):
            wanted = torch.randn(n, generator=torch.Generator().manual_seed(seed))
            assert np.abs(np.array(row) - wanted.numpy()).max() < 1e-5


@needs_node
@pytest.mark.parametrize("predicts", diffusion.PREDICTION_TYPES)
@pytest.mark.parametrize("beta_schedule", diffusion.BETA_SCHEDULES)
def test_steps_are_those_of_diffusion_py(tmp_path, beta_schedule, predicts):
    schedule = diffusion.make_schedule(beta_schedule, prediction_type=predicts)
    counts = [*range(1, 31), 50, 100, 999, 1000]
    found = node(tmp_path, "answer(INPUT.counts.map(n => plan(INPUT.abar, n, INPUT.predicts)));",
                 counts=counts, predicts=predicts, abar=schedule.alphas_cumprod.tolist())
    for n, steps in zip(counts, found):
        wanted = diffusion.plan(schedule, "dpm++", n)
        assert [step["t"] for step in steps] == [step.t for step in wanted]
        for name in ("p_x", "p_out", "c_x", "c_0", "c_last"):
            numbers = [getattr(step, name) for step in wanted]
            assert [step[name] for step in steps] == pytest.approx(numbers, rel=1e-9, abs=1e-12)


@needs_node
def test_words_are_cut_and_the_error_function_is_exact(tmp_path):
    words_of = words.words_of if words else clip.words_of
    texts = ["A man's DOG jumps, twice!", "übermäßig 走る ٣ x_y don't 'quoted' o'er''s",
             "  \n\t", "ΟΔΟΣ naïve—dash 3.5 ½", "rock'n'roll"]
    xs = np.linspace(-6, 6, 241).tolist()
    cut, found = node(tmp_path, "answer([INPUT.texts.map(wordsOf), "
                        "INPUT.xs.map(erf)]);", texts=texts, xs=xs)
    assert cut == [words_of(text) for text in texts]
    assert found == pytest.approx([math.erf(x) for x in xs], abs=1e-8)


@needs_node
def test_both_ways_to_multiply_agree_with_numpy(tmp_path):
    """Odd numbers of rows, inputs and outputs; the memory grows while it holds weights."""
    rng, cases = random.Random(1), []
    for rows, inputs, outputs in [(1, 1, 1), (3, 5, 7), (4, 8, 8), (5, 33, 263), (601, 128, 512)]:
        cases.append([rows, inputs, outputs, [
            [rng.uniform(-1, 1) for _ in range(n)]
            for n in (rows * inputs, outputs * inputs, outputs)]])
    tmp_path.joinpath("product.wasm").write_bytes(matmul.kept()[2])
    found = node(tmp_path, """const ways = [inPlain, inWasm(read("product.wasm"))];
      const kept = ways.map(way => INPUT.cases.map(([rows, inputs, outputs, [x, w, b]]) => {
        const wide = Math.ceil(outputs / 8) * 8, bias = new Float32Array(wide);
        bias.set(b);
        return way.keep(panels(w, inputs, outputs), bias);
      }));
      answer(ways.map((way, k) => INPUT.cases.map(([rows, inputs, outputs, [x]], i) => columns(
        way.product(kept[k][i], Float32Array.from(x), rows, inputs, Math.ceil(outputs / 8) * 8),
        Math.ceil(outputs / 8) * 8, outputs))));""", cases=cases)
    for way in found:
        for (rows, inputs, outputs, (x, w, b)), y in zip(cases, way):
            wanted = np.reshape(x, (rows, inputs)) @ np.reshape(w, (outputs, inputs)).T + b
            assert np.abs(np.reshape(y, wanted.shape) - wanted).max() < 2e-5


def test_the_program_that_ships_is_built_from_its_source():
    """Where the same clang is here, byte for byte; elsewhere the digest of the source alone."""
    digest, made_by, program = matmul.kept()
    assert digest == matmul.digest() and program[:4] == b"\0asm"
    if matmul.compiler() != made_by:
        pytest.skip(f"NOT TESTED: building matmul.c anew; that takes {made_by} and lld")
    assert matmul.build() == program


# --------------------------------------------------------------------------------------------------
# The file


def test_models_that_cannot_be_in_a_page_are_refused(toy, tmp_path, monkeypatch):
    def changed(**changes):
        config = dataclasses.replace(toy.config, **{
            section: dataclasses.replace(getattr(toy.config, section), **keys)
            for section, keys in changes.items()})
        monkeypatch.setattr(toy, "config", config)
        with pytest.raises(ValueError) as error:
            page.write_page(str(tmp_path / "page.html"), toy)
        monkeypatch.undo()
        return str(error.value)

    assert "CLIP" in changed(text={"kind": "clip"})
    assert "denoiser.condition=text" in changed(denoiser={"condition": "action"})
    assert "smpl" in changed(data={"skeleton": "smpl"})
    for name, word in (("vae", "VAE"), ("length_estimator", "length estimator")):
        kept = getattr(toy, name)
        setattr(toy, name, None)
        try:
            with pytest.raises(ValueError, match=word):
                page.write_page(str(tmp_path / "page.html"), toy)
        finally:
            setattr(toy, name, kept)
    monkeypatch.setattr(page, "LARGEST", 10**6)
    with pytest.raises(ValueError, match="--weights int8"):
        page.write_page(str(tmp_path / "page.html"), toy)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit, match="error: There is no checkpoint"):
        page.main(["--ckpt", str(tmp_path / "none.pt"), "--out", str(tmp_path / "a.html")])
    page.main(["--out", str(tmp_path / "a.html"), "--weights", "int8"])
    size = tmp_path.joinpath("a.html").stat().st_size
    assert size < 21e6 and str(tmp_path / "a.html") in capsys.readouterr().out


def test_the_file_loads_nothing_and_runs_its_own_scripts_alone(toy, tmp_path):
    path = tmp_path / "page.html"
    size = page.write_page(str(path), toy, title="<b>Dances</b> & more")
    text = path.read_text(encoding="utf-8")
    assert size == path.stat().st_size <= page.LARGEST
    assert "<b>Dances" not in text and "&lt;b&gt;Dances&lt;/b&gt; &amp; more" in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1] and "http" not in policy
    for script in page.scripts(text):
        assert page.script_hash(script) in policy
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert not re.findall(r"%[A-Z]+%", text)


# --------------------------------------------------------------------------------------------------
# In a browser


READY = "!!window.studio && !!studio.made && stage.contentWindow.player?.stats.ms > 0"
JOINTS = "Array.from(studio.made[0].joints)"


@pytest.fixture(scope="module")
def opened(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    page.write_page(str(folder / "nanomld.html"), toy)
    with browser.Browser(folder) as tab:
        yield tab, (folder / "nanomld.html").as_uri()


@pytest.fixture
def site(opened):
    """(an open browser, the page's address); the page begins with the newest prompt of its history,
    so each test begins without one"""
    opened[0]("Page.navigate", url="about:blank")  # a page that is left may still write
    opened[0]("Storage.clearDataForOrigin", origin="file://", storageTypes="local_storage")
    return opened


def press_enter(tab):
    tab("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r",
        windowsVirtualKeyCode=13)
    tab("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter")


def made_by(tab, act):
    """Do something that makes a motion, and wait until it plays."""
    tab.js("studio.made = null; stage.contentDocument.body.className = 'old'")
    act()  # a player that can show other motions stays, any other is loaded anew
    tab.wait(READY + " && (!!stage.contentWindow.player.show ||"
             " stage.contentDocument.body.className != 'old')")


def slide(tab, name, share):
    """Press on a slider, at a share of its width."""
    x, y, width = tab.js("(r => [r.x, r.y + r.height / 2, r.width])"
                         f"(document.getElementById('{name}').getBoundingClientRect())")
    tab.drag((x + share * width, y), (x + share * width, y))


@needs_browser
@pytest.mark.parametrize("way", ["", "#plain"], ids=["wasm", "plain"])
def test_type_a_sentence_and_press_enter(site, toy, way):
    tab, address = site
    tab.open(address + way, ready=READY)
    assert tab.js("studio.arithmetic") == ("plain JavaScript" if way else "WebAssembly")
    assert tab.js("document.activeElement.id") == "prompt"  # and its text is selected
    for letter in "a dragon jumps":
        tab.key(letter)
    made_by(tab, lambda: press_enter(tab))
    frames, = toy.draw_lengths([read(toy, "a dragon jumps")], seed=1234)
    scale = toy.config.diffusion.guidance_scale
    wanted = in_python(toy, ["a dragon jumps"], [frames], 1234, scale)[0][1]
    found = np.reshape(tab.js(JOINTS), wanted.shape)
    assert np.abs(found - wanted).max() < TOLERANCE
    told = tab.js("said.querySelector('b').textContent")
    assert "dragon" in told and ("is taken for" in told or "has never seen" in told)
    assert tab.js("command.textContent") == (
        f'python sample.py "a dragon jumps" --seed 1234 --guidance {scale:g} --sampler dpm++ '
        '--steps 10 --format glb --no-lock-feet')
    assert tab.js("stage.contentDocument.querySelector('.cell h2').textContent") == "a dragon jumps"
    assert not tab.errors


@needs_browser
def test_a_sentence_that_says_two_things(site, toy):
    tab, address = site
    tab.open(address, ready=READY)
    made_by(tab, lambda: tab.js("studio.make('walks, then sits down')"))
    assert tab.js("said.textContent").startswith(
        "Made one after the other: \u201cwalks\u201d, then \u201csits down\u201d.")
    lengths = story.lengths_of(toy, ["walks", "sits down"], 1234)
    assert tab.js("studio.made[0].frames") == sum(lengths)

    made_by(tab, lambda: tab.click("#other"))  # and in one piece, if somebody wants that
    assert tab.js("said.textContent").endswith("s.One after the other")
    frames, = toy.draw_lengths(["walks, then sits down"], seed=[1234])
    assert tab.js("studio.made[0].frames") == frames
    assert "walks, then sits down\" --whole --seed" in tab.js("command.textContent")
    made_by(tab, lambda: tab.click("#other"))
    assert tab.js("studio.made[0].frames") == sum(lengths)
    assert "--whole" not in tab.js("command.textContent")
    assert not tab.errors


@needs_browser
def test_the_command_makes_the_same_motions(site, tmp_path):
    """The line that the page shows, run: two motions whose lengths are drawn."""
    tab, address = site
    tab.open(address, ready=READY)
    made_by(tab, lambda: tab.js("count.value = '2'; studio.make('a person waves')"))
    python, *line = shlex.split(tab.js("command.textContent"))
    joints = tab.js("studio.made.map(one => Array.from(one.joints))")
    tab("Page.navigate", url="about:blank")  # drawing takes the processor from sample.py
    done = warm.run(*line, "--format", "npy", "--out", tmp_path)
    assert python == "python" and done.returncode == 0, done.stderr
    for i, path in enumerate(sorted(tmp_path.glob("*.npy"))):
        wanted = np.load(path)
        found = np.reshape(joints[i], (-1, 22, 3))
        assert found.shape == wanted.shape and np.abs(found - wanted).max() < TOLERANCE
    assert i == 1


@needs_browser
def test_the_player_gets_what_python_would_give_it(site, toy):
    """Joints, feet that stand, bones: as view/render.py packs them."""
    from view import render
    tab, address = site
    tab.open(address, ready=READY)
    made_by(tab, lambda: tab.js("studio.make('a person walks forward')"))
    joints = np.reshape(tab.js(JOINTS), (-1, 22, 3))
    wanted = render._pack(render._check({"joints": joints, "fps": 20.0}, "test"))
    shown = tab.js("(m => ({bones: m.bones, feet: m.feet, contacts: m.contacts, frames: m.frames, "
                   "joints: Array.from(m.joints)}))(stage.contentWindow.player.motions[0])")
    assert {key: shown[key] for key in ("bones", "feet", "frames")} == {
        key: wanted[key] for key in ("bones", "feet", "frames")}
    assert shown["contacts"] == wanted["contacts"] and set(shown["contacts"]) != {"0"}
    drawn, _ = render._body(render._check({"joints": joints}, "test"))
    assert np.abs(np.array(shown["joints"]).reshape(drawn.shape) - drawn).max() < 2e-4


@needs_browser
def test_every_control(site):
    tab, address = site
    tab.open(address, ready=READY)
    first = tab.js(JOINTS)
    made_by(tab, lambda: tab.click("#again"))
    assert tab.js("seed.value") == "1235" and tab.js(JOINTS) != first
    made_by(tab, lambda: tab.js("count.value = '6'; count.dispatchEvent(new Event('change'))"))
    assert tab.js("studio.made.map(one => one.seed)") == list(range(1235, 1241))
    assert tab.js("stage.contentDocument.querySelectorAll('.cell').length") == 6
    made_by(tab, lambda: tab.click("#auto"))
    assert tab.js("studio.made[0].frames") == 60 and tab.js("long.value") == "3.0 s"
    assert "--num 6 --seconds 3 --seed 1235 " in tab.js("command.textContent")
    made_by(tab, lambda: tab.js("count.value = '1'; count.dispatchEvent(new Event('change'))"))
    made_by(tab, lambda: slide(tab, "length", 0.25))
    assert tab.js("studio.made[0].frames") < 50
    made_by(tab, lambda: slide(tab, "guidance", 0.75))
    assert "--guidance 4.8 " in tab.js("command.textContent")
    made_by(tab, lambda: tab.click("#examples button:nth-child(2)"))
    example = tab.js("examples.children[1].textContent")
    assert tab.js("document.getElementById('prompt').value") == example
    tab.js("document.getElementById('prompt').value = '?!'")
    tab.click("#make")
    assert tab.js("said.textContent") == "Write what the person does."
    made_by(tab, lambda: tab.js("studio.make('a man jumps '.repeat(30))"))
    most = tab.js("config.text.context_length - 1")
    assert f"reads {most} words of a prompt; the last {90 - most}" in tab.js("said.textContent")
    text = "a <img src=x onerror=alert(1)> jumps \"$HOME\""
    made_by(tab, lambda: tab.js(f"studio.make({json.dumps(text)})"))
    assert tab.js("stage.contentDocument.querySelector('.cell h2').textContent") == text
    assert '\\"\\$HOME\\"' in tab.js("command.textContent")
    assert not tab.errors


@needs_browser
@pytest.mark.parametrize("size", [(390, 844), (1280, 720)])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen_and_everything_has_a_name(site, size, dark):
    tab, address = site
    tab.open(address, *size, dark=dark, touch=size[0] < 500, ready=READY)
    assert tab.js("document.documentElement.scrollWidth") == size[0]
    assert tab.js("document.documentElement.scrollHeight") <= size[1]
    assert tab.js("stage.clientHeight") > size[1] * 0.45
    assert tab.js("stage.contentDocument.documentElement.scrollWidth") <= size[0]
    nameless = tab.js("""[...document.querySelectorAll("input, button, select, iframe")].filter(
      one => !(one.ariaLabel || one.title || one.textContent.trim() || one.labels?.[0]?.innerText)
      ).map(one => one.id)""")
    assert nameless == []
    bright = tab.js("getComputedStyle(document.body).backgroundColor").count("239")
    assert bool(bright) != dark


@needs_browser
def test_the_page_asks_the_network_for_nothing(site):
    tab, address = site
    tab.open(address, ready=READY)
    blocked = """new Promise(done => {
      const saw = [];
      addEventListener("securitypolicyviolation", e => saw.push(e.violatedDirective));
      fetch("http://127.0.0.1:9/").catch(() => 0);
      const s = document.createElement("script"); s.textContent = "window.hacked = 1";
      document.body.append(s); setTimeout(() => done([saw.sort(), window.hacked || 0]), 300); })"""
    saw, hacked = tab.js(blocked)
    assert hacked == 0 and saw[0] == "connect-src" and saw[1].startswith("script-src")
    tab.errors.clear()


@needs_browser
def test_the_page_does_not_freeze_while_it_makes_motions(site):
    """A batch of six long motions is under way, and the page answers all the while."""
    tab, address = site
    tab.open(address, ready=READY)
    tab.js("studio.made = null; auto.checked = false; document.getElementById('length').value = 6; "
           "count.value = '6'; studio.make('a person runs')")
    answers = 0
    while not tab.js("!!studio.made"):
        answers += 1
    tab.wait(READY)
    assert answers >= 3
