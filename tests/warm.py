"""Runs a program in a process of its own that need not import torch first.

Python and torch take two to five seconds to start, and programs are started some hundred times
here. So a process that has imported torch, and nothing of ours, waits for command lines and forks:
the child has the directory, arguments, environment and files that it is given, and runs the
program as `__main__`. It shares with its siblings what the import of torch leaves behind, and the
seed of Python's hashes; a test of either needs `subprocess`.
"""
import atexit
import contextlib
import gc
import io
import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
# what Python, torch and Triton read as they start
EARLY = ("PYTHONH", "PYTHONI", "PYTHONUT", "PYTHONW", "OMP_", "MKL_", "TORCH", "TRITON", "LD_")
lock, waiting = threading.Lock(), []  # once started: the process, and the socket to it


def start():
    """The socket on which the waiting process takes requests."""
    with lock:
        if not waiting or waiting[0].poll() is not None:
            ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with its:
                process = subprocess.Popen(
                    [sys.executable, __file__, str(its.fileno())], pass_fds=[its.fileno()],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT)
            waiting[:] = process, ours
        return waiting[1]


def run(*argv, cwd=ROOT, timeout=300, stdout=None, **environment):
    """`python argv`, which is a script, -m module or -c code and their words, with further
    variables in its environment -> what subprocess.run returns, with the text of stdout and stderr.
    stdout: a file descriptor to write to instead. What runs longer than `timeout` seconds is
    killed."""
    argv = [str(word) for word in argv]
    early = [name for name in environment if name.startswith(EARLY)]
    assert not early, f"{early} would come too late: use subprocess"
    changed = os.environ | {name: str(value) for name, value in environment.items()}
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        path = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), "request")
        path.write_text(json.dumps({"argv": argv, "cwd": str(cwd), "environment": changed}))
        answer, its = socket.socketpair()
        answer = stack.enter_context(answer)
        with its:
            fds = [its.fileno(), out.fileno() if stdout is None else stdout, err.fileno()]
            socket.send_fds(start(), [os.fsencode(path)], fds)
        answer.settimeout(timeout)
        lines = answer.makefile()
        child = int(lines.readline())
        try:
            code = int(lines.readline())
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            raise subprocess.TimeoutExpired(argv, timeout) from None
        for file in (out, err):
            file.seek(0)
        texts = (file.read().decode().replace("\r\n", "\n") for file in (out, err))
        return subprocess.CompletedProcess(argv, code, *texts)


def two(*argv, other=None, timeout=200):
    """Two processes that share nothing but a port and train or evaluate together, the second with a
    command line of its own if there is an `other` -> what run() gives for each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def process(rank):
        return run(*(other if rank and other else argv), timeout=timeout, RANK=rank, WORLD_SIZE=2,
                   LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(process, (0, 1)))


def serve(requests):
    """Waits for requests and forks for each; returns in the child, with what it is to run."""
    while True:
        message, fds, _, _ = socket.recv_fds(requests, 4096, 3)
        if not message:
            os._exit(0)  # whoever started us has ended
        request = json.loads(pathlib.Path(os.fsdecode(message)).read_bytes())
        if not os.fork():  # watches the child, so that this process need not
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            child = os.fork()
            if not child:
                os.close(fds[0])
                for fd, place in zip(fds[1:], (1, 2)):
                    os.dup2(fd, place)
                    os.close(fd)
                return request
            with contextlib.suppress(OSError):  # nobody waits for the answer any more
                os.write(fds[0], b"%d\n" % child)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                os.write(fds[0], b"%d\n" % status)
            os._exit(0)
        for fd in fds:
            os.close(fd)


def execute(first, *words):
    """As python does with these words."""
    sys.path[0] = ""
    if first == "-c":
        sys.argv = ["-c", *words[1:]]
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = [*words]
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *words], os.path.dirname(os.path.abspath(first))
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    import numpy
    import torch._dynamo  # optimisers need it: half of what training imports
    import torch.distributed
    import tqdm  # noqa: F401

    gc.freeze()  # or the children's collector would visit, and so copy, all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    numpy.random.seed()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout = io.TextIOWrapper(open(1, "wb", 0, closefd=False), write_through=True)
    code, ended = 0, None
    try:
        execute(*request["argv"])
    except SystemExit as end:
        ended = end  # keeps its frames: progress bars in them must not print after the message
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    # Python's own way out takes a second to visit all that was imported
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)
