"""Bytes of a file on a web server, fetched so that nothing goes wrong in silence.

    remote, part, spans = download(url, "vae/model.safetensors")

What has come lies beside the target in `part`, which is named after the file's ETag: after a cut,
or when the program is started again, only the rest is asked for. After a lost connection, 429 or
5xx it is tried again, later each time. All answers must be about the same file, or it is begun
anew. The caller checks the digest and moves `part` to its place. Proxies of the environment are
used; HF_TOKEN goes to the server of `url` and to no other.
"""
import contextlib
import hashlib
import http.client
import io
import os
import re
import shutil
import ssl
import sys
import time
from urllib import error, request

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows: of two processes that fetch one file, one may fail
    fcntl = None

TIMEOUT, SLOWEST = 30, 1024  # seconds without a byte; bytes a second that are worth waiting for
TRIES = 6  # in a row that bring nothing
PAUSE, LONGEST = 1.0, 120  # seconds before the first new try, and at most
AGAIN = error.URLError, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException


class Changed(Exception):
    """The file is not the one that earlier answers were about."""


class NoRanges(Exception):
    """The server sends whole files, or other bytes than those asked for."""


class Redirects(request.HTTPRedirectHandler):
    """Keeps the headers X-... of the hub, which say what the file is: the server that it redirects
    to does not know."""

    def redirect_request(self, old, file, code, message, headers, url):
        new = super().redirect_request(old, file, code, message, headers, url)
        if old.type == "https" != new.type:
            raise ValueError(f"{old.host} redirects to {new.host} without encryption")
        self.said |= {key.lower(): value for key, value in headers.items()
                      if key.lower().startswith("x-")}
        return new


class Remote:
    """A file at an address. What the first answer says about it must hold for all later ones."""

    def __init__(self, url, ranges=True):
        self.url, self.ranges = url, ranges
        self.etag, self.size, self.commit, self.sha256 = None, None, None, ""

    def ask(self, start, end):
        """The open answer with the bytes start to end; without ranges, with the whole file."""
        asked, redirects = request.Request(self.url), Redirects()
        redirects.said = {}
        if self.ranges:
            asked.add_header("Range", f"bytes={start}-{end - 1}")
        if token := os.environ.get("HF_TOKEN"):  # unredirected: it is not for other servers
            asked.add_unredirected_header("Authorization", f"Bearer {token}")
        answer = request.build_opener(redirects).open(asked, timeout=TIMEOUT)
        said = {key.lower(): value for key, value in answer.headers.items()} | redirects.said
        try:
            self.check(said, answer.status, start)
        except BaseException:
            answer.close()
            raise
        return answer

    def check(self, said, status, start):
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", said.get("content-range", ""))
        if self.ranges and not (status == 206 and span and int(span[1]) == start):
            raise NoRanges
        size = span[2] if self.ranges else said.get("content-length") or said.get("x-linked-size")
        if not size:
            raise ValueError("its server does not say how large it is")
        linked = said.get("x-linked-etag", "").strip('"')
        etag = linked or said.get("etag", "").removeprefix("W/").strip('"')
        if said.get("x-linked-size", size) != size or \
                self.size is not None and (self.etag, self.size) != (etag, int(size)):
            raise Changed
        self.etag, self.size = etag, int(size)
        self.commit = said.get("x-repo-commit")
        if re.fullmatch("[0-9a-f]{64}", linked):
            self.sha256 = linked  # no other kind of ETag is known to be a digest


def download(url, path, layout=None):
    """Fetch the file at `url`, or the bytes of it that `layout` wants, beside `path`.

    layout  function (remote, fetch) -> spans [(start, end)] of bytes, the first from 0. It may look
            at the file's beginning: fetch(n) gives an open file with the first n bytes.
    Returns (Remote, name of the part, spans): the part is these spans laid end to end. A server
    without ranges sends the whole file, which is said before.
    ConnectionError if they cannot be had, and what has come stays; OSError if the disk is full."""
    ranges = True
    for _ in range(4):
        remote, part = Remote(url, ranges), None
        try:
            fill(remote, [(0, 1)], io.BytesIO())
            name = hashlib.sha1(f"{remote.etag} {remote.size} {ranges}".encode()).hexdigest()[:8]
            part = f"{path}.{name}.part"
            with open(part, "a+b") as store:
                def fetch(n):
                    fill(remote, [(0, n if ranges else remote.size)], store)
                    store.seek(0)
                    return store
                spans = layout(remote, fetch) if layout else [(0, remote.size)]
                spans = spans if ranges else [(0, remote.size)]
                lacks = sum(end - start for start, end in spans) - store.seek(0, 2)
                if shutil.disk_usage(os.path.dirname(part)).free < lacks:
                    raise OSError(f"{path} needs {lacks / 1e6:.0f} MB of free disk space.")
                fill(remote, spans, store)
                store.flush()
                os.fsync(store.fileno())
            return remote, part, spans
        except NoRanges:
            ranges = False
            say(f"{url} comes whole only: its server cannot send parts of it, so all of it is "
                "fetched, and after a cut anew.")
        except Changed:
            if part:
                os.unlink(part)
    raise ConnectionError(f"{url} keeps changing while it is fetched; try again later.")


def say(text):
    print(text, file=sys.stderr, flush=True)


def fill(remote, spans, store):
    """Append to the open file `store` what it lacks of these spans of bytes, laid end to end."""
    total, failed, names = sum(end - start for start, end in spans), 0, remote.url.split("/")
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"{names[-4]}/{names[-1]}",
              disable=None if total > 1e6 else True, leave=False) as bar:
        while (done := store.seek(0, 2)) < total:
            if not remote.ranges:
                done = store.truncate(0)
            bar.n = left = done
            for start, end in spans:
                if left < end - start:
                    break
                left -= end - start
            try:
                with remote.ask(start + left, end) as answer:
                    copy(answer, store, end - start - left, bar)
            except AGAIN as problem:
                useful = remote.ranges and store.seek(0, 2) - done > total // 100
                failed = 0 if useful else failed + 1
                wait(remote, problem, failed)


def copy(answer, store, wanted, bar):
    since, came = time.monotonic(), 0
    while wanted:
        data = answer.read1(min(wanted, 1 << 20))
        if not data:
            raise ConnectionError(f"the connection ended {wanted} bytes too early")
        store.write(data)
        bar.update(len(data))
        wanted, came = wanted - len(data), came + len(data)
        if (passed := time.monotonic() - since) > TIMEOUT:
            if came < SLOWEST * passed:
                raise TimeoutError(f"only {came / passed:.0f} bytes came in a second")
            since, came = time.monotonic(), 0


def wait(remote, problem, failed):
    """Sleep before the next try. ConnectionError if trying again cannot help, or has not helped."""
    code, reason = getattr(problem, "code", None), getattr(problem, "reason", problem)
    if code == 416 and remote.size:
        raise Changed
    lasting = isinstance(reason, ssl.SSLCertVerificationError) or \
        code and code < 500 and code not in (408, 416, 429)
    # a server that has never answered is tried twice: there may be no network at all
    if lasting or failed >= (TRIES if remote.size or code else 2):
        answer = f"HTTP {code} {reason}" if code else reason
        token = "; it wants a token, in HF_TOKEN, that may read it" * (code in (401, 403))
        raise ConnectionError(f"{remote.url}: {answer}{token}") from None
    asked = problem.headers.get("Retry-After", "") if code else ""
    pause = max(2 ** failed, int(asked) if asked.isdigit() else 0)
    time.sleep(PAUSE * min(pause, LONGEST))


@contextlib.contextmanager
def held(folder):
    """A folder for this process alone; the system lets go of it when the process ends."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "ab") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"Another process is fetching into {folder}; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
