"""A page on this computer where you type a sentence and see the motion.

    python studio.py --open                         the model that ships, in the browser
    python studio.py --ckpt out/mine/model.pt --ckpt humanml3d     two models to choose between
    python studio.py --port 8000
    python studio.py --host 0.0.0.0                 for others too, who need the address with its
                                                    token, as it is printed

The page is view/page.html, which `python -m view.page` writes as one file. Here Python makes the
motions, with any model that takes sentences, and writes every format of sample.py; the line under
the motion is the sample.py command that makes the very same file. Its timeline has several prompts
in a row, a path drawn on the floor, pins on joints, a first and a last pose (docs/page.md).

Only programs on this computer can reach the server unless --host is given. It takes one job at a
time, opens no file that a request names, and runs until Ctrl+C. The traffic is not encrypted.
view/server.py is the server.
"""
import argparse
import contextlib
import io
import json
import re
import secrets
import shlex
import sys
import tempfile
import time
import webbrowser

import sample
from view.server import LOOPBACK, MORE, PORT, Queue, Refused, listen


class Maker:
    """The models, and what is made with them, as sample.py makes it: `queue` makes one job's
    motions at a time, and `files` writes one file, so that nobody waits for another's GIF."""

    def __init__(self, names, device="auto"):
        """names: as --ckpt takes them; the first one is loaded and tried at once. ValueError or
        OSError for a model that does not load, or takes no sentences."""
        from view import page, render  # torch takes most of the start

        self.names, self.device, self.page, self.render = names, device, page, render
        self.models, self.mesh, self.queue, self.files = {}, None, Queue(), Queue()
        self.headers = [self.header_of(i) for i in range(len(names))]

    def header_of(self, number):
        """What the page has to know about a model, which is tried with one short motion."""
        import motion
        import story

        name, model = self.names[number], self.model(number)
        c = model.config
        if c.denoiser.condition != "text":
            raise ValueError(f"{name} is told {c.denoiser.condition}, and the studio takes "
                             "sentences; choose a model with denoiser.condition=text.")
        ships = name == sample.arguments([]).ckpt
        words = getattr(model.text_encoder, "vocabulary", None)
        examples = [text for text in self.page.EXAMPLES
                    if not words or {*text.split()} <= {*words}] or model.actions[:6]
        skeleton = motion.SKELETONS.get(c.data.skeleton)
        full = skeleton is motion.T2M
        kinds = [kind for kind in sample.FORMATS if full or kind in ("html", "npy", "gif")]
        try:
            from PIL import Image  # noqa: F401
        except Exception:  # a broken installation raises whatever it likes
            kinds.remove("gif")
        if number == 0 and examples:  # the first motion takes longest, and has the mesh
            job = {"text": examples[0], "seed": 0, "num": 1, "frames": 0, "guidance": 2.0,
                   "steps": 2, "model": 0} | MORE
            _, shown = self.queue.do(self.motions, job)
            self.mesh = self.render.player_data(shown)["mesh"]
        return {
            "name": "toy" if ships else name, "kinds": kinds, "examples": examples,
            "ckpt": "" if ships else f" --ckpt {shlex.quote(name)}",
            "fps": c.data.fps, "most": model.max_frames, "shared": story.SHARED,
            "joints": skeleton.joint_names if skeleton else [],  # that can be pinned
            "config": {"data": {"unit_length": c.data.unit_length,
                                "max_frames": c.data.max_frames},
                       "diffusion": {"guidance_scale": c.diffusion.guidance_scale}}}

    def model(self, number):
        if number not in self.models:
            import checkpoint
            from config import AssetsConfig

            self.models[number] = checkpoint.load_model(
                self.names[number], AssetsConfig(), checkpoint.find_device(self.device))
        return self.models[number]

    def arguments(self, job):
        """The job as sample.py's command line has it; constraints are a list here."""
        name = self.names[job["model"]]
        fps = self.model(job["model"]).config.data.fps
        frames = [job["frames"], *(one["frames"] for one in job["then"])]
        if any(frames) != all(frames):
            raise ValueError("Give every prompt its seconds, or none of them.")
        length = ["--seconds", ",".join(repr(n / fps) for n in frames)] if any(frames) else []
        way = ["--guidance", repr(job["guidance"]), "--sampler", "dpm++", "--steps",
               str(job["steps"])]
        if self.model(job["model"]).config.diffusion.built_in_guidance:
            way = []  # a student has its own
        args = sample.arguments([
            *["--story"] * bool(job["then"]), *["--loop"] * job["loop"],
            *["--whole"] * job["whole"], "--num", str(job["num"]), *length,
            "--seed", str(job["seed"]), *way, "--ckpt", name, "--", job["text"],
            *(one["text"] for one in job["then"])])
        args.constraints = job["constraints"] or None
        return args

    def understood(self, texts, vocabulary):
        """Prompts -> what the model reads, and what the page says about words it does not know;
        vocabulary: None for a model that takes any. ValueError if nothing is left of a prompt."""
        import words

        told = {"spelled": {}, "taken": {}, "unknown": [], "notes": []}
        if not vocabulary:
            return texts, told
        read = []
        for text in texts:
            report = words.understand(text, vocabulary)
            if report.error:
                which = f"“{text[:60]}”" if len(texts) > 1 else "this"
                unknown = f"; it does not know: {', '.join(report.unknown)}."
                raise ValueError(f"Nothing in {which} tells the model what to do"
                                 + (unknown if report.unknown else "."))
            read.append(report.text)
            told["spelled"] |= report.spelled
            told["taken"] |= report.taken
            told["unknown"] += [word for word in report.unknown if word not in told["unknown"]]
        return read, told

    def motions(self, job):
        """A job -> (what the page says about it, the player's dicts), made as sample.run makes
        them. Refused for what the model cannot do."""
        import clauses
        import edit
        import story

        try:
            if job["model"] >= len(self.names):
                raise ValueError("There is no such model.")
            args, model, num = self.arguments(job), self.model(job["model"]), job["num"]
            vocabulary = getattr(model.text_encoder, "vocabulary", None)
            with contextlib.redirect_stderr(io.StringIO()) as said:  # what sample.py says there
                prompts = parts = sample.read_prompts(args)
                spelled = {}
                if not (edit.wanted(args) or args.whole):
                    parts, spelled = clauses.taken_apart(prompts[0], vocabulary)
                read, told = self.understood(parts, vocabulary)
                told["spelled"] |= spelled
                sample.say_what_is_cut_off(model.text_encoder, dict.fromkeys(read))
                if apart := len(parts) > len(prompts):
                    each = [read] * num
                    frames = [story.lengths_of(model, read, args.seed + i, job["frames"] or None)
                              for i in range(num)]
                else:
                    each = [[text] for text in read for _ in range(num)]
                    lengths = sample.lengths_of(args, model, sum(each, []), None, len(each))
                    frames = [[n] for n in edit.long_enough(args, model, lengths)]
                model.check_lengths(lengths := sum(frames, []))
                sample.check_trained(args, model.config, frames)
            made, missed = self.generated(args, model, each, frames)
        except ValueError as error:
            raise Refused(400, without_flags(str(error))) from None
        told["notes"], told["texts"] = said.getvalue().splitlines() + missed, parts
        told["parts"] = story.parts_of(model, frames[0] if apart else lengths[::num]) \
            if apart or job["then"] else [len(made[0])]
        return told, self.as_shown(made, ", then ".join(prompts), model.config.data)

    def generated(self, args, model, each, frames):
        """Lists of texts and of frames, as story.scenes takes them -> motions (T, J, 3), and
        sentences about the constraints that they do not meet."""
        import edit
        import story

        settings = {"guidance_scale": args.guidance, "sampler": args.sampler,
                    "num_inference_steps": args.steps}
        texts, lengths = sum(each, []), sum(frames, [])
        if args.constraints:
            if args.loop:
                raise ValueError("Pins, poses and a path are for a motion that does not repeat.")
        if args.story is not None or args.loop:
            made, reports = edit.stories(args, model, texts, None, lengths, **settings)
            return made, edit.missed(reports)
        if args.constraints:
            made, reports = edit.edit(model, texts, constraints=args.constraints, lengths=lengths,
                                      seed=args.seed, **settings)
            return made, edit.missed(reports)
        seeds = [args.seed + i for i in range(len(each))]
        return story.scenes(model, each, frames, seeds, **settings), []

    def as_shown(self, made, caption, config):
        """Motions (T, J, 3) -> the player's dicts."""
        import numpy as np

        import motion

        if config.skeleton == "t2m":
            bones = np.linalg.norm(motion.T2M_OFFSETS, axis=1)
            made = [motion.keep_bones(joints, bones, motion.T2M.parents) for joints in made]
        parents = motion.SKELETONS[config.skeleton].parents \
            if config.skeleton in motion.SKELETONS else motion.SMPL_PARENTS
        return [{"joints": joints, "caption": caption, "fps": config.fps, "parents": parents}
                for joints in made]

    def make(self, job):
        """A job -> the JSON that the page shows."""
        return self.queue.do(self.made, job)

    def made(self, job):
        start = time.perf_counter()
        told, shown = self.motions(job)
        ms = 1000 * (time.perf_counter() - start)
        step = 1 + len(job["then"])  # as sample.py --story --num has it
        made = [{"seed": job["seed"] + i * step, "frames": len(one["joints"]), "report": told}
                for i, one in enumerate(shown)]
        for one, entry in zip(shown, made):
            one["title"] = f"seed {entry['seed']}" if len(shown) > 1 else ""
        motions = self.render.player_data(shown, mesh=self.mesh)["motions"]
        return json.dumps({"made": made, "motions": motions, "ms": ms}).encode()

    def file(self, job):
        """A job with its `kind` -> the bytes of the file that sample.py writes for it. Refused for
        several motions in a format of which a file holds one."""
        kind = job["kind"]
        if job["model"] >= len(self.names) or kind not in self.headers[job["model"]]["kinds"]:
            raise Refused(400, f"This model's motions cannot be written as {kind}.")
        if job["num"] > 1 and kind not in sample.TOGETHER:
            raise Refused(400, f"A {kind} file holds one motion: choose one of them first.")
        _, shown = self.queue.do(self.motions, job)
        return self.files.do(self.written, self.arguments(job), kind, shown)

    def written(self, args, kind, shown):
        with tempfile.TemporaryDirectory() as args.out:
            args.format = kind
            path, = sample.write_motions(args, shown, shown[0]["fps"])
            with open(path, "rb") as file:
                return file.read()

    def page_text(self, title="nanoMLD"):
        header = self.headers[0] | {"camera": self.render.CAMERA, "mesh": self.mesh,
                                    "models": self.headers}
        return self.page.page_text(header, title, connect="'self'").encode()


def without_flags(text):
    """What sample.py says, without the sentences that name its flags, which the page does not have;
    all of it where no other is left."""
    kept = [part for part in re.split(r"(?<=\.) ", text) if "--" not in part]
    return " ".join(kept) or text


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--open", action="store_true", help="open the page in the browser")
    add("--port", type=int, help=f"otherwise {PORT}, or a free one where that is taken")
    add("--host", help="address to listen on, for others too; they need the token that is printed")
    add("--ckpt", action="append", help="a model as sample.py takes it; may be repeated")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    args = parser.parse_args(argv)
    try:
        if args.port is not None and not 0 <= args.port <= 65535:
            raise ValueError(f"--port must be from 0 to 65535, got {args.port}.")
        maker = Maker(args.ckpt or [sample.arguments([]).ckpt], args.device)
        token = secrets.token_urlsafe(24) if args.host else ""
    except Refused as error:
        sys.exit(f"error: {error.args[1]}")  # args[0] is for HTTP
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    host = args.host or LOOPBACK[0]
    try:
        server = listen(host, args.port, maker, token)
    except OSError as error:
        sys.exit(f"error: The studio cannot listen on {host}, port {args.port or 'any'} "
                 f"({error.strerror}); --host takes an IPv4 address of this computer, and --port "
                 "one that no other program uses.")
    url = f"http://{host}:{server.server_port}/{token and '?token=' + token}"
    others = "\nOn other computers, this one's address stands in place of 0.0.0.0."
    print(f"{url}{others if host == '0.0.0.0' else ''}\nCtrl+C ends it.", flush=True)
    if args.open:
        webbrowser.open(url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    from flags import program

    program(main)
