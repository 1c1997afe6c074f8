"""What is here only to be fast. Every shortcut is exact: it gives the numbers of the plain way.

| shortcut         | the plain way that it replaces                      | why it is exact            |
| ---------------- | --------------------------------------------------- | -------------------------- |
| attend_to_memory | `layer.multihead_attn(x, memory)`                   | softmax over one key is 1  |
| first_tokens     | `stack(x, lengths)[:, :n]`                          | nobody reads the others    |
| few_tokens       | `stack(x, causal=causal)[:, :n]`                    | the same sums, in one call |
| shared_queries   | `stack(queries.expand(B, -1, -1), None, memory)`    | equal until they read z    |
| needed_lengths   | masking by lengths that are all the same            | nothing is masked          |
| in_parts         | `vae.decode(z, lengths)`                            | clips do not see each other|
| Guided           | two calls of the denoiser a step, and `guide`       | embeddings do not change   |
| replayed         | the sampling loop, launched operation by operation  | a CUDA graph of the same   |

The textbook code calls each at one place. `without("first_tokens")` switches one off: the tests
hold both ways against each other, and `python -m dev.bench ladder` times them one by one. """
import contextlib
import dataclasses
from functools import partial

import torch
import torch.nn.functional as F

import diffusion
import kernels
from kernels import graphs

NAMES = ("attend_to_memory", "first_tokens", "few_tokens", "shared_queries", "needed_lengths",
         "in_parts", "Guided", "replayed")
OFF = set()  # names of shortcuts that are switched off
RUNG = 28  # frames: a CUDA graph of the decoder serves lengths up to a multiple of it
DECODED_AT_ONCE = 8  # clips that a CPU decodes together: small buffers stay in its caches


@contextlib.contextmanager
def without(*names):
    """`with without("first_tokens"): ...` takes the plain way instead."""
    unknown = set(names) - set(NAMES)
    if unknown:
        raise ValueError(f"There is no shortcut of the name {unknown.pop()!r} in fast.py.")
    before = set(OFF)
    OFF.update(names)
    try:
        yield
    finally:
        OFF.clear()
        OFF.update(before)


# --------------------------------------------------------------------------------------------------
# In a layer, in a stack


def attend_to_memory(layer, x, memory):
    """layer.multihead_attn(x, memory) for x (B, L, D) and memory (B, M, D) -> (B, L, D).

    The softmax over a single key is 1, so with M = 1 every query receives that key's value. (One
    difference in training: the lone probability is never dropped.) Pre-norm layers take the plain
    way, since norm2 feeds only the queries: it would get no gradient, which DDP reports as an
    error. """
    attn = layer.multihead_attn
    if memory.shape[1] > 1 or layer.pre_norm or "attend_to_memory" in OFF:
        return attn(x, memory)
    D = x.shape[-1]
    value = F.linear(memory, attn.in_proj_weight[2 * D:], attn.in_proj_bias[2 * D:])  # (B, 1, D)
    return attn.out_proj(value).expand(-1, x.shape[1], D)


def run_layers(stack, layers, x):
    """The loop of Stack.forward over `layers`, functions of x, one for each of the stack's own."""
    joins = [*stack.linear_blocks] if stack.skip else []
    half, kept = len(joins), []
    for number, layer in enumerate(layers):
        if half and number > half:
            x = joins[number - half - 1](torch.cat((x, kept.pop()), -1))
        x = layer(x)
        if number < half:
            kept.append(x)
    last = stack.norm
    return x if last is None else kernels.add_layer_norm(x, None, last.weight, last.bias, last.eps)


def first_tokens(stack, x, n, lengths=None):
    """stack(x, lengths)[:, :n] for a stack of self-attention layers and x (B, L, D) -> (B, n, D).

    The last layer computes only these n tokens, which still attend to all the others."""
    if "first_tokens" in OFF:
        return stack(x, lengths)[:, :n]
    *layers, last = kernels.blocks_of(stack)

    def only_n(x):
        y = x[:, :n]
        if not last.pre_norm:
            y = last.add_norm(y, last.self_attn(y, x, lengths), last.norm1)
            return last.add_norm(y, last.feed_forward(y), last.norm2)
        norm1 = last.norm1
        h = kernels.add_layer_norm(x, None, norm1.weight, norm1.bias, norm1.eps)
        h, y = last.add_norm(y, last.self_attn(h[:, :n], h, lengths), last.norm2, True)
        return y + F.dropout(last.feed_forward(h), last.p)

    return run_layers(stack, [*(partial(layer, lengths=lengths) for layer in layers), only_n], x)


def few_tokens(stack, x, n=None, causal=False):
    """stack(x, causal=causal)[:, :n] for a few tokens x (B, L, D), none of them padded.

    While sampling, a kernel runs all the layers where there is one for them: Triton on a GPU, C
    on a CPU. Otherwise the stack runs as usual."""
    if "few_tokens" not in OFF:
        done = kernels.few_tokens(stack, x, n, causal)
        if done is not None:
            return done
    if n is None or causal or stack.training or torch.is_grad_enabled():
        return stack(x, causal=causal)[:, :n]
    return first_tokens(stack, x, n)


def shared_queries(stack, queries, lengths, memory):
    """stack(queries, lengths, memory) for queries (B, T, D), or (1, T, D): the same for all
    samples.

    The same queries stay the same until the first cross-attention, so the first self-attention is
    computed once. Padding or dropout make them differ from the start."""
    B = len(memory)
    if len(queries) == B:
        return stack(queries, lengths, memory)
    first, *layers = kernels.blocks_of(stack)
    if "shared_queries" in OFF or lengths is not None or stack.training or first.pre_norm:
        return stack(queries.expand(B, -1, -1), lengths, memory)

    def once(x):
        x = first.add_norm(x, first.self_attn(x), first.norm1).expand(B, -1, -1)
        x = first.add_norm(x, attend_to_memory(first, x, memory), first.norm2)
        return first.add_norm(x, first.feed_forward(x), first.norm3)

    return run_layers(stack, [once, *(partial(layer, memory=memory) for layer in layers)], queries)


# --------------------------------------------------------------------------------------------------
# In a batch


def needed_lengths(lengths):
    """lengths (B,), or None if all are the same: then nothing is padded, and nothing needs a
    mask."""
    alike = "needed_lengths" not in OFF and len(lengths.unique()) == 1
    return None if alike else lengths


def in_parts(vae, z, lengths):
    """vae.decode(z, lengths) -> (B, T, F).

    A CPU decodes a few clips of similar length at a time: little padding, small buffers. A GPU
    decodes all at once."""
    at_once = DECODED_AT_ONCE if z.device.type == "cpu" and "in_parts" not in OFF else len(z)
    order, T, frames = lengths.argsort(stable=True), int(lengths.max()), None
    for part in order.split(at_once):
        longest = int(lengths[part[-1]])
        made = vae.decode(z[part], needed_lengths(lengths[part]), longest)
        if frames is None:
            frames = made.new_empty(len(z), T, made.shape[2])  # autocast may have chosen the type
        frames[part] = F.pad(made, (0, 0, 0, T - longest))
    return frames


def decode(model, z, lengths):
    """model.finish(model.vae.decode(z, lengths), lengths) -> features (B, T, F), joints (B, T, J,
    3).

    On a GPU one CUDA graph serves all lengths up to a multiple of RUNG frames."""
    if not graphs.wanted(z, lengths) or "replayed" in OFF or model.rest is not None:
        return model.finish(in_parts(model.vae, z, lengths), needed_lengths(lengths))
    T = int(lengths.max())
    rung = min(model.max_frames, -(-T // RUNG) * RUNG)

    def run(z, lengths):
        return model.finish(model.vae.decode(z, lengths, rung), lengths)

    key = "decode", rung, graphs.addresses(model.vae)
    features, joints = replayed(run, key, z, lengths)
    return features[:, :T], joints[:, :T]


# --------------------------------------------------------------------------------------------------
# In the sampling loop


class Guided:
    """The guided denoiser of a run: MLD.guided, with all that a step does not change done
    beforehand.

    The embeddings of the noise levels and the condition's tokens are computed once, and both halves
    of guidance, with and without the condition, run as one batch.

    tokens (2B, L, D): without and with the condition; (B, L, D) where there is no guidance.
    d: DiffusionConfig; frames (B,): lengths for `guide`, where the diffusion is on frames.
    """

    def __init__(self, denoiser, tokens, lengths, d, dtype, frames=None):
        self.denoiser, self.tokens, self.d, self.dtype = denoiser, tokens, d, dtype
        self.both, self.lengths, self.frames = guides(d), lengths, frames
        if self.both and lengths is not None:
            self.lengths = lengths.repeat(2)

    def __call__(self, x_t, time):
        """x_t (B, ...), time (D,): the embedding of its noise level -> output (B, ...)."""
        x = x_t.to(self.dtype)
        x = torch.cat((x, x)) if self.both else x
        out = self.denoiser.predict(x, time, self.tokens, self.lengths).to(x_t.dtype)
        if not self.both:
            return out
        d = self.d
        return diffusion.guide(*out.chunk(2), d.guidance_scale, d.guidance_rescale, self.frames)


def guides(d):
    return d.guidance_scale not in (0, 1)


def walk(
    model, steps, x_T, cond, uncond, lengths, d, generator=None, callback=None, progress=False
):
    """diffusion.walk with MLD.guided -> x0 like x_T; on a GPU the whole loop is one CUDA graph.

    Loops that draw noise, or that somebody watches, are launched step by step."""
    frames = None if model.vae else lengths
    rest = d.clip_sample, generator, None if frames is None else frames.cpu(), callback, progress
    if "Guided" in OFF:
        plain = model.guided(cond, uncond, needed_lengths(lengths), d)
        times = diffusion.levels(steps, x_T.device)[:, None].repeat(1, len(x_T))
        return diffusion.walk(steps, times, plain, x_T, *rest)
    denoiser = model.denoiser
    if guides(d):
        both = None if cond is None else torch.cat((uncond, cond))
        tokens = denoiser.condition_tokens(both, lengths.repeat(2))
    else:
        tokens = denoiser.condition_tokens(cond if d.guidance_scale else uncond, lengths)
    times = denoiser.time_embedding(diffusion.levels(steps, x_T.device))  # (n, D)
    ragged = None if frames is None else needed_lengths(frames)

    def run(x_T, times, *tokens):
        guided = Guided(denoiser, *(tokens or [None]), ragged, d, model.dtype, frames)
        return diffusion.walk(steps, times, guided, x_T, *rest)

    inputs = (x_T, times) if tokens is None else (x_T, times, tokens)
    watched = callback is not None or progress or any(step.c_noise for step in steps)
    if watched or frames is not None:
        return run(*inputs)
    key = "walk", tuple(steps), dataclasses.astuple(d), model.dtype
    return replayed(run, (key, graphs.addresses(denoiser)), *inputs)


def replayed(function, key, *tensors):
    """function(*tensors) -> a tensor or several; on a GPU recorded as a CUDA graph, then
    replayed."""
    if "replayed" in OFF or not graphs.wanted(*tensors):
        return function(*tensors)
    return graphs.replay(function, (key, autocast(tensors[0])), *tensors)


def autocast(x):
    """The type that autocast computes in on x's device, or None: a part of a recording's key."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


# --------------------------------------------------------------------------------------------------
# Not exact


PRECISIONS = ("float32", "bf16", "int8")


def to_precision(model, precision):
    """Weights of fewer bits, for sampling; returns the model. What the sampler and the joints are
    computed in, and what generate returns, stay float32.

    bf16   all networks' weights and operations in half the bytes, three digits each
    int8   the weights of the denoiser's and the text tower's layers rounded to 8 bits with a scale
           for each output. Operations stay float32; a few rows of tokens on a CPU read a quarter of
           the bytes.
    """
    parts = [model.text_encoder, model.denoiser, model.vae, model.length_estimator]
    parts = [part for part in parts if part is not None]
    if precision == "bf16":
        model.dtype = torch.bfloat16
        for part in parts:
            part.bfloat16()
    elif precision == "int8":
        for part in (part for part in parts if part is not model.vae):
            for stack in (m for m in part.modules() if hasattr(m, "skip")):
                kernels.few_rows.round_to_int8(stack)
    elif precision != "float32":
        raise ValueError(
            f"The precision must be one of {', '.join(PRECISIONS)}, not {precision!r}."
        )
    return model


def compile_denoiser(model):
    """For many prompts in one process: torch.compile makes a denoising step of today's weights,
    packed, at the first call of generate for each number of motions. That takes half a minute or
    more, and less where torch's cache on disk knows it."""
    model.denoiser.predict = torch.compile(model.denoiser.predict, dynamic=False,
                                           options={"freezing": True})
