"""A page on this computer where you type a sentence and see the motion.

    python studio.py --open                         the model that ships, in the browser
    python studio.py --ckpt out/mine/model.pt --ckpt humanml3d     two models to choose between
    python studio.py --port 8000
    python studio.py --host 0.0.0.0                 for others too, who need the address with its
                                                    token, as it is printed

The page is view/page.html, which `python -m view.page` writes as one file. Here Python makes the
motions, with any model that takes sentences, and writes every format of sample.py; the line under
the motion is the sample.py command that makes the very same file.

Only programs on this computer can reach the server unless --host is given. It takes one job at a
time, opens no file that a request names, and runs until Ctrl+C. The traffic is not encrypted.
"""
import argparse
import hmac
import http.server
import json
import math
import os
import secrets
import shlex
import sys
import tempfile
import threading
import time
import urllib.parse
import webbrowser
from concurrent.futures import ThreadPoolExecutor

import sample

LONGEST_TEXT, LARGEST, MOST_STEPS, MOST = 500, 10_000, 100, 6  # characters, bytes, steps, motions
WAITING, CONNECTIONS, PATIENCE = 8, 100, 15  # jobs, clients, seconds to send or to read
PORT = 8765  # the same each time: browsers keep the history of an address
LAST_SEED = 2**53 - 10  # what a page's numbers hold exactly, less the motions of a job
LOOPBACK = "127.0.0.1", "localhost"
TYPES = {"html": "text/html", "gif": "image/gif", "glb": "model/gltf-binary"}
FIELDS = {  # of a job: type, least, most
    "text": (str, 1, LONGEST_TEXT), "seed": (int, 0, LAST_SEED), "num": (int, 1, MOST),
    "frames": (int, 0, 100_000), "guidance": (float, 0, 20), "steps": (int, 1, MOST_STEPS),
    "model": (int, 0, 1000)}


class Refused(Exception):
    """What a client asks for and does not get: (HTTP status, a sentence)."""


def read_job(data, fields=FIELDS):
    """JSON as bytes -> a dict that has each of `fields`, of the right type and within its limits.
    Refused otherwise."""
    try:
        job = json.loads(data)
        if not isinstance(job, dict) or job.keys() != fields.keys():
            raise ValueError
    except (ValueError, RecursionError):
        raise Refused(400, f"Expected JSON with {', '.join(fields)}, and nothing else.") from None
    for name, (kind, least, most) in fields.items():
        value = job[name]
        right = type(value) is kind or (kind is float and type(value) is int)
        size = len(value) if right and kind is str else value
        if not right or not least <= size <= most:  # NaN fails, too
            raise Refused(400, f"{name} must be a {kind.__name__}, from {least} to {most}.")
    if any(ord(letter) < 32 or 0xd800 <= ord(letter) < 0xe000 for letter in job["text"]):
        raise Refused(400, "The text has control characters or broken letters.")
    return job


# --------------------------------------------------------------------------------------------------
# Motions, made as sample.py makes them


class Maker:
    """The models, and one thread that uses them, so that jobs are done one at a time."""

    def __init__(self, names, device="auto"):
        """names: as --ckpt takes them; the first one is loaded and tried at once. ValueError or
        OSError for a model that does not load, or takes no sentences."""
        from view import page, render  # torch takes most of the start

        self.names, self.device, self.page, self.render = names, device, page, render
        self.models, self.mesh, self.waiting = {}, None, threading.BoundedSemaphore(WAITING + 1)
        self.thread = ThreadPoolExecutor(1)
        self.headers = [self.header_of(i) for i in range(len(names))]

    def header_of(self, number):
        """What the page has to know about a model, which is tried with one short motion."""
        import motion

        name, model = self.names[number], self.model(number)
        c = model.config
        if c.denoiser.condition != "text":
            raise ValueError(f"{name} is told {c.denoiser.condition}, and the studio takes "
                             "sentences; choose a model with denoiser.condition=text.")
        ships = name == sample.arguments([]).ckpt
        words = getattr(model.text_encoder, "vocabulary", None)
        examples = [text for text in self.page.EXAMPLES
                    if not words or {*text.split()} <= {*words}] or model.actions[:6]
        full = motion.SKELETONS.get(c.data.skeleton) is motion.T2M
        kinds = [kind for kind in sample.FORMATS if full or kind in ("html", "npy", "gif")]
        try:
            from PIL import Image  # noqa: F401
        except Exception:  # a broken installation raises whatever it likes
            kinds.remove("gif")
        if number == 0 and examples:  # the first motion takes longest, and has the mesh
            job = {"text": examples[0], "seed": 0, "num": 1, "frames": 0, "guidance": 2.0,
                   "steps": 2, "model": 0}
            _, shown = self.thread.submit(self.motions, job).result()
            self.mesh = self.render.player_data(shown)["mesh"]
        return {
            "name": "toy" if ships else name, "kinds": kinds, "examples": examples,
            "ckpt": "" if ships else f" --ckpt {shlex.quote(name)}",
            "fps": c.data.fps, "most": model.max_frames,
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

    def do(self, task, *given):
        """task(*given) in the thread of the models. Refused if too many wait already."""
        if not self.waiting.acquire(blocking=False):
            raise Refused(429, "Too many motions are being made; try again in a moment.")
        try:
            return self.thread.submit(task, *given).result()
        finally:
            self.waiting.release()

    def arguments(self, job):
        """The job as sample.py's command line has it."""
        name = self.names[job["model"]]
        fps = self.model(job["model"]).config.data.fps
        length = ["--seconds", repr(job["frames"] / fps)] if job["frames"] else []
        way = ["--guidance", repr(job["guidance"]), "--sampler", "dpm++", "--steps",
               str(job["steps"])]
        if self.model(job["model"]).config.diffusion.built_in_guidance:
            way = []  # a student has its own
        return sample.arguments([
            "--num", str(job["num"]), *length, "--seed", str(job["seed"]), *way, "--ckpt", name,
            "--", job["text"]])

    def motions(self, job):
        """A job -> (the words.Report or None, the player's dicts), as sample.run has them. Refused
        for what the model cannot do."""
        import numpy as np

        import motion
        import words

        try:
            if job["model"] >= len(self.names):
                raise ValueError("There is no such model.")
            args, model = self.arguments(job), self.model(job["model"])
            texts, report = sample.read_prompts(args), None
            vocabulary = getattr(model.text_encoder, "vocabulary", None)
            if vocabulary:
                report = words.understand(texts[0], vocabulary)
                if report.error:
                    unknown = f"; it does not know: {', '.join(report.unknown)}."
                    raise ValueError("Nothing in this tells the model what to do"
                                     + (unknown if report.unknown else "."))
                texts = [report.text]
            texts = texts * args.num
            lengths = sample.lengths_of(args, model, texts, None, args.num)
            model.check_lengths(lengths)
            sample.check_trained(args, model.config, lengths)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        _, joints = model.generate(
            texts, None, lengths=lengths, guidance_scale=args.guidance, sampler=args.sampler,
            num_inference_steps=args.steps, seed=args.seed)
        made = [j[:n].cpu().numpy() for j, n in zip(joints, lengths)]
        skeleton = model.config.data.skeleton
        if skeleton == "t2m":
            bones = np.linalg.norm(motion.T2M_OFFSETS, axis=1)
            made = [motion.keep_bones(j, bones, motion.T2M.parents) for j in made]
        parents = motion.SKELETONS[skeleton].parents if skeleton in motion.SKELETONS \
            else motion.SMPL_PARENTS
        return report, [{"joints": j, "caption": job["text"], "fps": model.config.data.fps,
                         "parents": parents} for j in made]

    def make(self, job):
        """A job -> the JSON that the page shows."""
        start = time.perf_counter()
        report, shown = self.motions(job)
        ms = 1000 * (time.perf_counter() - start)
        for i, one in enumerate(shown):
            one["title"] = f"seed {job['seed'] + i}" if len(shown) > 1 else ""
        told = {"spelled": {}, "taken": {}, "unknown": []} if report is None else {
            name: getattr(report, name) for name in ("spelled", "taken", "unknown")}
        made = [{"seed": job["seed"] + i, "frames": len(one["joints"]), "report": told}
                for i, one in enumerate(shown)]
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
        _, shown = self.motions(job)
        args = self.arguments(job)
        with tempfile.TemporaryDirectory() as args.out:
            args.format = kind
            path, = sample.write_motions(args, shown, shown[0]["fps"])
            with open(path, "rb") as file:
                return file.read()

    def page_text(self, title="nanoMLD"):
        header = self.headers[0] | {"camera": self.render.CAMERA, "mesh": self.mesh,
                                    "models": self.headers}
        return self.page.page_text(header, title, connect="'self'").encode()


# --------------------------------------------------------------------------------------------------
# The server


class Server(http.server.ThreadingHTTPServer):
    """maker: a Maker; token: what requests must know, or an empty string."""
    daemon_threads, request_queue_size = True, 128

    def __init__(self, address, maker, token=""):
        self.maker, self.token, self.until = maker, token, {}  # connection -> when it is closed
        self.body = maker.page_text()
        super().__init__(address, Handler)
        port = self.server_port
        self.hosts = None if token else {f"{name}:{port}" for name in LOOPBACK} | (
            {*LOOPBACK} if port == 80 else set())

    def process_request(self, request, address):
        if len(self.until) >= CONNECTIONS:
            return self.shutdown_request(request)
        self.until[request] = time.monotonic() + PATIENCE
        super().process_request(request, address)

    def shutdown_request(self, request):
        self.until.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self):  # twice a second: clients that send or read too slowly go
        for request, end in list(self.until.items()):
            if time.monotonic() > end and self.until.pop(request, None):
                try:
                    request.shutdown(2)
                except OSError:
                    pass  # it has gone by itself

    def handle_error(self, request, address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, address)  # a client that has gone is no news


class Handler(http.server.BaseHTTPRequestHandler):
    """GET / is the page; POST /make and /file take a job as JSON. One request a connection."""
    timeout, server_version, sys_version = PATIENCE, "nanoMLD", ""

    def do_GET(self):
        try:
            url = urllib.parse.urlsplit(self.path)
            given = urllib.parse.parse_qs(url.query).get("token", [""])[0]
            self.check(given)
            if url.path != "/":
                raise Refused(404, "There is only one page here, at /.")
            self.answer(200, self.server.body, "text/html; charset=utf-8")
        except (Refused, ValueError) as error:
            self.refuse(error)

    def do_POST(self):
        maker = self.server.maker
        try:
            self.check(self.headers.get("Authorization", "").removeprefix("Bearer "))
            if self.path not in ("/make", "/file"):
                raise Refused(404, "Jobs go to /make or /file.")
            if self.headers.get_content_type() != "application/json":
                raise Refused(415, "Expected Content-Type: application/json.")
            length = self.headers.get("Content-Length", "")
            if not length.isascii() or not length.isdigit():
                raise Refused(411, "Expected a Content-Length.")
            if len(length) > 6 or int(length) > LARGEST:
                raise Refused(413, f"A job has at most {LARGEST} bytes.")
            wants = FIELDS | ({"kind": (str, 1, 10)} if self.path == "/file" else {})
            job = read_job(self.rfile.read(int(length)), wants)
            self.server.until[self.request] = math.inf  # waiting for us is no fault of theirs
            if self.path == "/make":
                self.answer(200, maker.do(maker.make, job), "application/json")
            else:
                data = maker.do(maker.file, job)
                self.answer(200, data, TYPES.get(job["kind"], "application/octet-stream"),
                            f'attachment; filename="motion.{job["kind"]}"')
        except (Refused, ValueError) as error:
            self.refuse(error)
        except OSError:
            raise  # the client has gone
        except Exception as error:
            self.log_error("%r", error)
            self.refuse(Refused(500, "The studio failed; its terminal says why."))

    def check(self, given):
        """Refused for requests that other pages caused, or that lack the token."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if self.server.hosts is not None and host.lower() not in self.server.hosts:
            raise Refused(403, "This server answers to 127.0.0.1 and localhost only.")
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            raise Refused(403, "This server answers its own page only.")
        token = self.server.token
        if token and not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
            raise Refused(401, "This needs the address with the token that studio.py printed.")

    def answer(self, status, data, kind, disposition=""):
        self.server.until[self.request] = time.monotonic() + PATIENCE
        self.send_response(status)
        for name, value in {
                "Content-Type": kind, "Content-Length": len(data), "Cache-Control": "no-store",
                "Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY",
                "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
                "Cross-Origin-Resource-Policy": "same-origin",
                "Content-Disposition": disposition}.items():
            if value != "":
                self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, error):
        status, text = error.args if isinstance(error, Refused) else (400, "No such request.")
        self.answer(status, json.dumps({"error": text}).encode(), "application/json")

    def send_error(self, code, message=None, explain=None):  # what http.server itself refuses
        self.answer(code, json.dumps({"error": message or "No such request."}).encode(),
                    "application/json")

    def log_message(self, text, *values):
        if "500" in str(values) or text == "%r":
            super().log_message(text, *values)


def listen(host, port, maker, token=""):
    """A Server at that port; None: at PORT, or at a free one. OSError if there is none."""
    try:
        return Server((host, PORT if port is None else port), maker, token)
    except OSError:
        if port is not None:
            raise
        return Server((host, 0), maker, token)


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
        server = listen(args.host or LOOPBACK[0], args.port, maker, token)
    except (ValueError, OSError, Refused) as error:
        sys.exit(f"error: {error}")
    url = f"http://{args.host or LOOPBACK[0]}:{server.server_port}/{token and '?token=' + token}"
    print(f"{url}\nCtrl+C ends it.", flush=True)
    if args.open:
        webbrowser.open(url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    from config import program

    program(main)
