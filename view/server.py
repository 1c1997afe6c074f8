"""The studio's server: who is answered, what a request may hold, and how many wait.

    server = listen("127.0.0.1", None, maker)   # maker: studio.py's; it has page_text(), and makes
    server.serve_forever()                      # in Queues what make(job) and file(job) answer

GET / is the page; POST /make and /file take a job as JSON, which read_job checks to the last
number. Only programs on this computer reach it unless a token is given; other pages are refused by
Host and Origin. No file that a request names is ever opened: a job holds words and numbers alone.
"""
import hmac
import http.server
import json
import math
import sys
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

LONGEST_TEXT, LARGEST, MOST_STEPS, MOST = 500, 10_000, 100, 6  # characters, bytes, steps, motions
PROMPTS, ASKED, FAR = 8, 30, 1000  # prompts in a row, constraints, metres or seconds
WAITING, CONNECTIONS, PATIENCE = 8, 100, 15  # jobs, clients, seconds to send or to read
PORT = 8765  # the same each time: browsers keep the history of an address
LAST_SEED = 2**53 - 2**24  # a page's numbers hold it and the seeds of parts (story.NEXT)
LOOPBACK = "127.0.0.1", "localhost"
TYPES = {"html": "text/html", "gif": "image/gif", "glb": "model/gltf-binary"}
TEXT, FRAMES = (str, 1, LONGEST_TEXT), (int, 0, 100_000)
FIELDS = {  # of a job: type, least, most
    "text": TEXT, "seed": (int, 0, LAST_SEED), "num": (int, 1, MOST), "frames": FRAMES,
    "guidance": (float, 0, 20), "steps": (int, 1, MOST_STEPS), "model": (int, 0, 1000)}
KIND = {"kind": (str, 1, 10)}  # of a job that asks for a file
# of a job that is more than a sentence: prompts that follow, whether the end leads to the
# beginning, constraints as formats/constraints.py has them, whether a prompt stays in one piece
MORE = {"then": [], "loop": False, "constraints": [], "whole": False}
SHAPES = {  # what a constraint may hold; None is any number of rows
    "joint": str, "facing": str, "time": (), "height": (), "speed": (), "position": (3,),
    "path": (None, 3), "pose": (1, None, 3)}


class Refused(Exception):
    """What a client asks for and does not get: (HTTP status, a sentence)."""


# --------------------------------------------------------------------------------------------------
# Jobs


def read_job(data, fields=FIELDS):
    """JSON as bytes -> a dict that has each of `fields`, of the right type and within its limits,
    and MORE. Refused otherwise."""
    try:
        job = json.loads(data)
        if not isinstance(job, dict) or not fields.keys() <= job.keys() <= {*fields, *MORE}:
            raise ValueError
    except (ValueError, RecursionError):
        raise Refused(400, f"Expected JSON with {', '.join(fields)}, and nothing else but "
                           f"{', '.join(MORE)}.") from None
    check_fields(job, fields)
    job = MORE | job
    for name in ("loop", "whole"):
        if not isinstance(job[name], bool):
            raise Refused(400, f"{name} must be true or false.")
    for name, most in (("then", PROMPTS - 1), ("constraints", ASKED)):
        if not isinstance(job[name], list) or len(job[name]) > most:
            raise Refused(400, f"{name} must be a list of at most {most}.")
    for one in job["then"]:
        if not isinstance(one, dict) or one.keys() != {"text", "frames"}:
            raise Refused(400, "A prompt that follows has text and frames, and nothing else.")
        check_fields(one, {"text": TEXT, "frames": FRAMES})
    for one in job["constraints"]:
        if not isinstance(one, dict) or not one.keys() <= SHAPES.keys() or not all(
                fits(value, SHAPES[key]) for key, value in one.items()):
            raise Refused(400, "A constraint is a joint, a pose or a path, in numbers from "
                               f"{-FAR} to {FAR}.")
    return job


def check_fields(job, fields):
    """Refused for values that are not of the types and within the limits of `fields`."""
    for name, (kind, least, most) in fields.items():
        value = job[name]
        right = type(value) is kind or (kind is float and type(value) is int)
        size = len(value) if right and kind is str else value
        if not right or not least <= size <= most:  # NaN fails, too
            raise Refused(400, f"{name} must be a {kind.__name__}, from {least} to {most}.")
    if any(ord(letter) < 32 or 0xd800 <= ord(letter) < 0xe000 for letter in job["text"]):
        raise Refused(400, "The text has control characters or broken letters.")


def fits(value, shape):
    """Whether JSON has this shape and numbers that are not too far off, or is a short text."""
    if shape is str:
        return isinstance(value, str) and len(value) <= 40
    if not shape:
        return type(value) in (int, float) and abs(value) <= FAR  # NaN fails, too
    return isinstance(value, list) and len(value) == (shape[0] or len(value)) > 0 and all(
        fits(one, shape[1:]) for one in value)


class Queue:
    """One thread that does jobs one at a time, while WAITING more may wait."""

    def __init__(self):
        self.waiting, self.thread = threading.BoundedSemaphore(WAITING + 1), ThreadPoolExecutor(1)

    def do(self, task, *given):
        """task(*given) in that thread. Refused if too many wait already."""
        if not self.waiting.acquire(blocking=False):
            raise Refused(429, "Too many motions are being made; try again in a moment.")
        try:
            return self.thread.submit(task, *given).result()
        finally:
            self.waiting.release()


# --------------------------------------------------------------------------------------------------
# The server


class Server(http.server.ThreadingHTTPServer):
    """maker: makes motions, see the top; token: what requests must know, or an empty string."""
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
            wants = FIELDS | (KIND if self.path == "/file" else {})
            job = read_job(self.rfile.read(int(length)), wants)
            self.server.until[self.request] = math.inf  # waiting for us is no fault of theirs
            if self.path == "/make":
                self.answer(200, maker.make(job), "application/json")
            else:
                data = maker.file(job)
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
