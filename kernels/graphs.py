"""CUDA graphs: what a function of tensors launches is recorded once and replayed as one launch.

    MLD_GRAPH=auto   record what is asked for a second time: a single call would not pay for it
    MLD_GRAPH=1      record at the first call, and raise where recording fails
    MLD_GRAPH=0      never

A graph repeats its launches with the same addresses. Inputs are copied into tensors of its own, and
the caller's key has to name everything else that the launches depend on: settings, and where the
weights lie (`addresses`). A recorded function must not wait for the GPU, and must not copy to it
from memory that is not pinned.
"""
import math
import os
import threading
import warnings
from collections import OrderedDict

import torch

from kernels import backend

MODE = os.environ.get("MLD_GRAPH", "auto")
BOUND = 32  # recordings kept; the least recently used one goes first
recorded = OrderedDict()  # key -> Recording; SEEN after one call; None where recording failed
SEEN = "seen once"
spoiled = set()  # pools in which a recording failed: torch refuses to record there again
one_at_a_time = threading.RLock()  # a graph's inputs and results are the same tensors for everyone


class Recording:
    """A graph, the tensors that it reads its inputs from, and those that it leaves results in."""

    def __init__(self, function, tensors):
        self.inputs = [t.clone() for t in tensors]
        self.graph, self.outputs = capture(lambda: function(*self.inputs), tensors[0].device)

    def __call__(self, *tensors):
        for held, given in zip(self.inputs, tensors):
            held.copy_(given)
        self.graph.replay()
        if torch.is_tensor(self.outputs):
            return self.outputs.clone()  # the next replay of any graph may write over them
        return tuple(t.clone() for t in self.outputs)


def capture(run, device, warm_ups=2, pool=None):
    """-> a graph of what run() launches, and what it returned while it was recorded."""
    pool = shared_pool(device) if pool is None else pool
    before = torch.cuda.current_stream()
    generator = torch.cuda.default_generators[device.index]
    state = generator.clone_state()
    cached = torch.is_autocast_cache_enabled()
    # the cached 16-bit copies of weights die with the autocast context; a graph outlives it
    torch.set_autocast_cache_enabled(False)
    try:
        side = torch.cuda.Stream()
        side.wait_stream(before)
        with torch.cuda.stream(side):  # compiles kernels, sets up cuBLAS: not while recording
            for _ in range(warm_ups):
                run()
        before.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = run()
        return graph, outputs
    except BaseException:  # torch leaves stream, generator and pool as they were in between
        spoiled.add(pool)
        torch.cuda.set_stream(before)
        generator.graphsafe_set_state(state)
        raise
    finally:
        torch.set_autocast_cache_enabled(cached)


def shared_pool(device):
    """Memory of the living recordings on this device, which never run at the same time."""
    for other in recorded.values():
        if isinstance(other, Recording) and other.inputs[0].device == device:
            if other.graph.pool() not in spoiled:
                return other.graph.pool()
    return torch.cuda.graph_pool_handle()


def in_place(run, kept):
    """A graph of run(), which changes the tensors `kept` and nothing else. Recording it leaves them
    as they were."""
    before = [t.clone() for t in kept]
    graph, _ = capture(run, kept[0].device)
    torch._foreach_copy_(kept, before)
    return graph


class TrainingGraph:
    """A loss and its gradients, forward and backward, as one graph for each shape of the batch.

    loss_of(names, *tensors) -> dict of scalars, with "loss" among them. A call returns them and
    leaves the gradients in the parameters' .grad, which must stay the tensors that they are. They
    are clipped to a norm of `clip` for all of them together; `norm` is what it was before. Random
    numbers are those of `seed`, whether a call records or only replays. An older loss of these
    parameters must be gone when a call records: as long as it can be differentiated, torch adds
    their gradients up on the stream of back then, and CUDA refuses that while it records."""

    def __init__(self, loss_of, parameters, clip=math.inf):
        self.loss_of, self.parameters, self.recorded = loss_of, list(parameters), {}
        self.clip, self.norm = clip, None
        for p in self.parameters:
            p.grad = torch.zeros_like(p)

    def __call__(self, seed, names, *tensors):
        key = names, *((t.shape, t.dtype) for t in tensors)
        if key not in self.recorded:
            inputs, grads = [t.clone() for t in tensors], [p.grad for p in self.parameters]

            def run():
                torch._foreach_zero_(grads)
                losses = self.loss_of(names, *inputs)
                losses["loss"].backward()
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
                torch._foreach_mul_(grads, (self.clip / (norm + 1e-6)).clamp(max=1.0))
                return norm, {name: value.detach() for name, value in losses.items()}

            pool = next((graph.pool() for graph, *_ in self.recorded.values()), None)
            pool = torch.cuda.graph_pool_handle() if pool is None else pool
            self.recorded[key] = *capture(run, tensors[0].device, pool=pool), inputs
        graph, (norm, losses), inputs = self.recorded[key]
        for held, given in zip(inputs, tensors):
            held.copy_(given)
        torch.manual_seed(seed)  # recording has drawn from the generator
        graph.replay()
        self.norm = norm.clone()
        return {name: value.clone() for name, value in losses.items()}


def wanted(*tensors):
    """Whether a function of these tensors may be recorded: all of them lie on a GPU."""
    if MODE not in ("auto", "0", "1"):
        raise ValueError(f"MLD_GRAPH must be auto, 0 or 1, not {MODE!r}.")
    return (MODE != "0" and all(t.is_cuda for t in tensors) and torch.version.cuda is not None
            and not torch.compiler.is_compiling()
            and not torch.cuda.is_current_stream_capturing())


@torch.inference_mode()
def replay(function, key, *tensors):
    """function(*tensors) -> tensor or tuple, from the graph of this key and these shapes.

    What it returns are inference tensors."""
    key = (key, backend.MODE, torch.get_float32_matmul_precision(),
           *((t.shape, t.dtype, t.device) for t in tensors))
    with one_at_a_time, torch.cuda.device_of(tensors[0]):
        found = recorded.get(key)
        if key not in recorded and MODE == "auto":
            found = recorded[key] = SEEN
            keep_few()
            return function(*tensors)
        if key not in recorded or found is SEEN:
            found = recorded[key] = record(function, tensors)
            keep_few()
        recorded.move_to_end(key)
        return (found or function)(*tensors)


def keep_few():
    while len(recorded) > BOUND:
        recorded.popitem(last=False)


def record(function, tensors):
    """-> Recording, or None with a warning where this function cannot be recorded."""
    try:
        return Recording(function, tensors)
    except RuntimeError as error:
        if MODE == "1":
            raise
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"CUDA graphs are not used here: {reason} (MLD_GRAPH=0 silences this).")
        return None


def modules_of(*networks):
    """Their modules in a fixed order. torch's own walk, which makes names, takes several times as
    long, and every call of `generate` asks."""
    found = [m for m in networks if m is not None]
    for m in found:  # which grows
        found += [child for child in m._modules.values() if child is not None]
    return found


def tensors_of(*networks):
    """Their parameters and buffers, in a fixed order."""
    return [t for m in modules_of(*networks) for held in (m._parameters, m._buffers)
            for t in held.values() if t is not None]


def addresses(*networks):
    """Where the parameters and buffers of these modules lie, for a key."""
    return tuple([t.data_ptr() for t in tensors_of(*networks)])
