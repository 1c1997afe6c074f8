"""CUDA graphs: a function of tensors is recorded once and replayed, so that it costs one launch.

    MLD_GRAPH=auto   record where it pays: CUDA tensors, no random draws or callbacks inside
    MLD_GRAPH=1      the same, and an error where recording fails
    MLD_GRAPH=0      never

A graph replays what was launched, with the same addresses: inputs are copied into tensors of its
own, and the caller's key has to name everything else that the launches depend on (settings, and
where the weights lie: `addresses`). Recorded code must not wait for the GPU or copy to it from
pageable memory. """
import os
import warnings
from collections import OrderedDict

import torch

MODE = os.environ.get("MLD_GRAPH", "auto")
BOUND = 32  # graphs kept; the least recently used one goes first
recorded = OrderedDict()  # key -> Recording, or None where recording failed


class Recording:
    """A graph, the tensors that it reads its inputs from, and what it leaves its results in."""

    def __init__(self, function, tensors):
        self.inputs = [t.clone() for t in tensors]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles kernels, sets up cuBLAS: not while recording
            for _ in range(2):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def __call__(self, *tensors):
        for held, given in zip(self.inputs, tensors):
            held.copy_(given)
        self.graph.replay()
        if torch.is_tensor(self.outputs):
            return self.outputs.clone()
        return tuple(t.clone() for t in self.outputs)


def wanted(*tensors):
    """Whether a function of these tensors may be recorded: all of them lie on one GPU."""
    if MODE not in ("auto", "0", "1"):
        raise ValueError(f"MLD_GRAPH must be auto, 0 or 1, not {MODE!r}.")
    return (MODE != "0" and all(t.is_cuda for t in tensors) and torch.version.cuda is not None
            and not torch.compiler.is_compiling() and not torch.cuda.is_current_stream_capturing())


@torch.inference_mode()
def replay(function, key, *tensors):
    """function(*tensors) -> tensor or tuple of tensors, by a graph for this key and these
    shapes."""
    key = (key, *((t.shape, t.dtype, t.device) for t in tensors))
    with torch.cuda.device_of(tensors[0]):
        if key not in recorded:
            recorded[key] = record(function, tensors)
            while len(recorded) > BOUND:
                recorded.popitem(last=False)
        recorded.move_to_end(key)
        return (recorded[key] or function)(*tensors)


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


def addresses(*modules):
    """Where the parameters and buffers of these modules lie, for a key."""
    tensors = (t for m in modules if m is not None for t in (*m.parameters(), *m.buffers()))
    return tuple(t.data_ptr() for t in tensors)
