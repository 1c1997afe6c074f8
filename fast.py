"""What is only here to be fast. Every shortcut is exact: it gives the numbers of the plain way.

| shortcut         | the plain way                                    | why both agree             |
| ---------------- | ------------------------------------------------ | -------------------------- |
| attend_to_memory | `layer.multihead_attn(x, memory)`                | softmax over one key is 1  |
| first_tokens     | `stack(x, lengths)[:, :n]`                       | nobody reads the others    |
| few_tokens       | `stack(x, causal=causal)[:, :n]`                 | the same sums, in one call |
| shared_queries   | `stack(queries.expand(B, -1, -1), None, memory)` | equal until they read z    |
| needed_lengths   | masks, though all lengths are the same           | nothing is masked          |
| in_parts         | `vae.decode(z, lengths)`                         | clips don't see each other |
| Guided           | two calls of the denoiser a step, then `guide`   | embeddings do not change   |
| modulated        | Guided with modulated layers, on a CPU           | the same sums, in one call |
| fused            | diffusion.walk with Guided, on a GPU             | the same sums, in one call |
| replayed         | the sampling loop, operation by operation        | a CUDA graph repeats it    |

The textbook code calls each of them at one place. `without("first_tokens")` switches one off: the
tests compare both ways, and `python -m dev.bench ladder` times the shortcuts one by one. Modules
with forward hooks take the plain way, so that hooks see all that they would see there.
"""
import contextlib
import dataclasses
import functools
from functools import partial

import torch
import torch.nn.functional as F

import diffusion
import kernels
from kernels import graphs

NAMES = ("attend_to_memory", "first_tokens", "few_tokens", "shared_queries", "needed_lengths",
         "in_parts", "decode", "Guided", "modulated", "fused", "replayed")
OFF = set()  # names of the shortcuts that are switched off
RUNG = 28  # frames: a CUDA graph of the decoder serves lengths up to a multiple of this
DECODED_AT_ONCE = 8  # clips that a CPU decodes together: small buffers stay in its caches


@contextlib.contextmanager
def without(*names):
    """`with without("first_tokens"): ...` takes the plain way instead."""
    unknown = set(names) - set(NAMES)
    if unknown:
        raise ValueError(f"fast.py has no shortcut of the name {unknown.pop()!r}, only "
                         f"{', '.join(NAMES)}.")
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
    thing differs in training: attention dropout never drops this lone probability.) Pre-norm
    layers take the plain way: their norm2 feeds the queries alone, so it would get no gradient,
    and DDP calls that an error."""
    attn = layer.multihead_attn
    hooked = watched(attn, attn.out_proj)
    if memory.shape[1] > 1 or layer.pre_norm or hooked or "attend_to_memory" in OFF:
        return attn(x, memory)
    D = x.shape[-1]
    value = F.linear(memory, attn.in_proj_weight[2 * D:], attn.in_proj_bias[2 * D:])  # (B, 1, D)
    return attn.out_proj(value).expand(-1, x.shape[1], D)


def watched(*modules):
    """Whether one of these modules has forward hooks, or a forward of its own. torch.compile, which
    sees to hooks by itself, is not held up by this."""
    return not torch.compiler.is_compiling() and kernels.few_rows.watched(modules)


def run_layers(stack, layers, x):
    """The loop of Stack.forward, with a function of x in `layers` for each of its own layers."""
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

    The last layer computes only these n tokens. They still attend to all the others."""
    *layers, last = kernels.blocks_of(stack)
    if "first_tokens" in OFF or watched(stack, *last.modules()):
        return stack(x, lengths)[:, :n]

    def only_n(x):
        y = x[:, :n]
        if not last.pre_norm:
            y = last.add_norm(y, last.self_attn(y, x, lengths), last.norm1)
            return last.add_norm(y, last.feed_forward(y), last.norm2)
        norm1 = last.norm1
        h = kernels.add_layer_norm(x, None, norm1.weight, norm1.bias, norm1.eps)
        h, y = last.add_norm(y, last.self_attn(h[:, :n], h, lengths), last.norm2, True)
        return kernels.dropout(last.feed_forward(h), last.p, y)

    return run_layers(stack, [*(partial(layer, lengths=lengths) for layer in layers), only_n], x)


def few_tokens(stack, x, n=None, causal=False):
    """stack(x, causal=causal)[:, :n] for a few tokens x (B, L, D), none of them padded.

    When sampling, one kernel runs all the layers, if there is one for them: Triton on a GPU, C on
    a CPU. Otherwise the stack runs as usual."""
    if "few_tokens" not in OFF:
        done = kernels.few_tokens(stack, x, n, causal)
        if done is not None:
            return done
    if n is None or causal or stack.training or torch.is_grad_enabled():
        return stack(x, causal=causal)[:, :n]
    return first_tokens(stack, x, n)


def shared_queries(stack, queries, lengths, memory):
    """stack(queries, lengths, memory) for queries (B, T, D), or (1, T, D) for all samples.

    When sampling on a CPU, one call of C runs all the layers, if it can. Otherwise, queries that
    start out equal stay equal until the first cross-attention, so the first self-attention is
    computed only once. Padding or dropout would make them differ earlier."""
    if "decode" not in OFF:
        done = kernels.decode(stack, queries, lengths, memory)
        if done is not None:
            return done
    B = len(memory)
    if len(queries) == B:
        return stack(queries, lengths, memory)
    first, *layers = kernels.blocks_of(stack)
    apart = lengths is not None or stack.training or first.pre_norm
    if "shared_queries" in OFF or apart or watched(stack, *first.modules()):
        return stack(queries.expand(B, -1, -1), lengths, memory)

    def once(x):
        x = first.add_norm(x, first.self_attn(x), first.norm1).expand(B, -1, -1)
        x = first.add_norm(x, attend_to_memory(first, x, memory), first.norm2)
        return first.add_norm(x, first.feed_forward(x), first.norm3)

    return run_layers(stack, [once, *(partial(layer, memory=memory) for layer in layers)], queries)


# --------------------------------------------------------------------------------------------------
# In a batch


def needed_lengths(lengths):
    """lengths (B,), or None if all are the same: then nothing is padded and needs a mask."""
    same = "needed_lengths" not in OFF and len(lengths.unique()) == 1
    return None if same else lengths


def in_parts(vae, z, lengths):
    """vae.decode(z, lengths) -> (B, T, F).

    A CPU decodes a few clips of similar length at a time: little padding, small buffers. A GPU
    decodes all of them at once."""
    in_turn = z.device.type == "cpu" and "in_parts" not in OFF
    order, T, frames = lengths.argsort(stable=True), int(lengths.max()), None
    for part in order.split(DECODED_AT_ONCE if in_turn else len(z)):
        longest = int(lengths[part[-1]])
        made = vae.decode(z[part], needed_lengths(lengths[part]), longest)
        if frames is None:
            # here and not before the loop, since autocast may choose the type
            frames = made.new_empty(len(z), T, made.shape[2])
        frames[part] = F.pad(made, (0, 0, 0, T - longest))
    return frames


def decode(model, z, lengths):
    """model.finish(model.vae.decode(z, lengths), lengths) -> features (B, T, F) and joints
    (B, T, J, 3).

    On a GPU one CUDA graph serves all lengths up to a multiple of RUNG frames."""
    recordable = graphs.wanted(z, lengths) and not watched(*model.vae.modules())
    if not recordable or "replayed" in OFF or model.rest is not None:
        return model.finish(in_parts(model.vae, z, lengths), needed_lengths(lengths))
    # before the next line, which waits for the GPU: it is still busy with the sampling loop
    weights = state(model.vae), model.mean.data_ptr(), model.std.data_ptr()
    T = int(lengths.max())
    rung = min(model.max_frames, -(-T // RUNG) * RUNG)

    def run(z, lengths):
        return model.finish(model.vae.decode(z, lengths, rung), lengths)

    settings = rung, dataclasses.astuple(model.config.vae), model.config.data.skeleton
    features, joints = replayed(run, ("decode", settings, weights), z, lengths)
    return features[:, :T], joints[:, :T]


# --------------------------------------------------------------------------------------------------
# In the sampling loop


class Guided:
    """MLD.guided for a whole run: what is the same in every step is computed beforehand.

    That is the embeddings of the noise levels and the condition's tokens. And both halves of
    guidance, with and without the condition, run as one batch.

    tokens   (2B, L, D): without, then with the condition; (B, L, D) where there is no guidance
    lengths  (B,) or None: the denoiser's
    d        DiffusionConfig
    frames   (B,) lengths for `guide`, where the diffusion is on frames
    """

    def __init__(self, denoiser, tokens, lengths, d, dtype, frames=None):
        self.denoiser, self.tokens, self.d, self.dtype = denoiser, tokens, d, dtype
        self.both, self.lengths, self.frames = guides(d), lengths, frames
        if self.both and lengths is not None:
            self.lengths = lengths.repeat(2)

    def __call__(self, x_t, time):
        """x_t (B, ...), time (D,): the embedding of its noise level, or a step that
        kernels.modulated_steps prepared -> output (B, ...)."""
        x = x_t.to(self.dtype)
        x = torch.cat((x, x)) if self.both else x
        if isinstance(time, tuple):
            out = kernels.modulated_step(x, *time)
        else:
            out = self.denoiser.predict(x, time, self.tokens, self.lengths)
        out = out.to(x_t.dtype)
        if not self.both:
            return out
        d = self.d
        return diffusion.guide(*out.chunk(2), d.guidance_scale, d.guidance_rescale, self.frames)


def guides(d):
    return d.guidance_scale not in (0, 1)


def walk(model, steps, x_T, cond, uncond, lengths, d, generator=None, callback=None,
         progress=False):
    """diffusion.walk with MLD.guided -> x0 like x_T; on a GPU the whole loop is one CUDA graph.

    A loop over frames, or one that draws noise or is watched, is launched step by step."""
    denoiser, frames = model.denoiser, None if model.vae else lengths
    rest = d.clip_sample, generator, None if frames is None else frames.cpu(), callback, progress
    called_once = denoiser.time_embedding, denoiser.emb_proj
    inside = [m for part in called_once if part is not None for m in part.modules()]
    if "Guided" in OFF or watched(denoiser, *inside):
        plain = model.guided(cond, uncond, lengths, d)
        times = diffusion.levels(steps, x_T.device)[:, None].repeat(1, len(x_T))
        return diffusion.walk(steps, times, plain, x_T, *rest)
    conditions = (uncond, cond) if guides(d) else (cond if d.guidance_scale else uncond,)
    conditions = conditions if cond is not None else ()
    ragged = None if frames is None else needed_lengths(frames)
    seen = callback is not None or progress or any(step.c_noise for step in steps)
    hooked = watched(*denoiser.modules()) or "predict" in vars(denoiser)
    seen = seen or frames is not None or watched(*denoiser.modules())

    def run(x_T, lengths, levels, *conditions):
        tokens = denoiser.condition_tokens(torch.cat(conditions) if conditions else None,
                                           lengths.repeat(2) if guides(d) else lengths)
        times = denoiser.level(levels)  # (n, D)
        done = None if seen else fused(denoiser, steps, x_T, tokens, times, d, model.dtype)
        if done is not None:
            return done
        guided = Guided(denoiser, tokens, ragged, d, model.dtype, frames)
        if denoiser.modulated and not (hooked or "modulated" in OFF):
            said = kernels.modulated_steps(denoiser.modulated, x_T, len(x_T) * (1 + guides(d)),
                                           times, tokens)
            times = times if said is None else said
        return diffusion.walk(steps, times, guided, x_T, *rest)

    inputs = x_T, lengths, levels_on(tuple(steps), x_T.device), *conditions
    if seen:
        return run(*inputs)
    settings = tuple(steps), dataclasses.astuple(d), dataclasses.astuple(denoiser.cfg), model.dtype
    return replayed(run, ("walk", settings, state(denoiser)), *inputs)


@functools.lru_cache(maxsize=64)
def levels_on(steps, device):
    """diffusion.levels, copied to a GPU once: the copy would wait for all that runs there."""
    return diffusion.levels(steps, device)


def fused(denoiser, steps, x_T, tokens, times, d, dtype):
    """The loop with one launch between two calls of the layers (kernels/denoising_step.py) -> x0;
    None where that does not fit. tokens, times: of the condition, of all steps."""
    if ("fused" in OFF or denoiser.nfeats or denoiser.cfg.arch != "trans_enc" or autocast(x_T)
            or guides(d) and d.guidance_rescale or "predict" in vars(denoiser)):
        return None
    n, pe, copies = x_T.shape[1], denoiser.query_pos.pe, 1 + guides(d)
    x, last, narrow = x_T.to(dtype).repeat(copies, 1, 1), denoiser.final_linear, None
    if denoiser.token_in is not None:  # the kernel multiplies with these Linears, too
        x, last, narrow = denoiser.token_in(x), None, (denoiser.token_in, last)
    first = [x, times[:1].expand(len(x), -1)[:, None], tokens]  # as in Denoiser.predict
    first = denoiser.query_pos(torch.cat([part for part in first if part is not None], 1))

    def ask(tokens):
        x = few_tokens(denoiser.encoder, tokens, n)
        return x if last is None else last(x)

    return kernels.denoising_steps(steps, x_T, first, times + pe[n].to(dtype), pe.to(dtype), ask,
                                   d.guidance_scale if guides(d) else None, d.clip_sample, narrow)


def replayed(function, key, *tensors):
    """function(*tensors) -> a tensor or several; on a GPU recorded as a CUDA graph, and replayed.

    key: whatever else the function's launches depend on, such as its settings and where its
    weights lie (`state`)."""
    if "replayed" in OFF or not graphs.wanted(*tensors):
        return function(*tensors)
    return graphs.replay(function, (key, autocast(tensors[0]), frozenset(OFF)), *tensors)


def state(network):
    """What a recording depends on: where a network's weights lie, and its modules' settings."""
    settings = (vars(m) for m in graphs.modules_of(network))
    names = "training", *kernels.few_rows.SETTINGS
    return graphs.addresses(network), tuple([s[name] for s in settings for name in names
                                             if name in s])


def autocast(x):
    """The type that autocast computes in on x's device, or None where it is off."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


# --------------------------------------------------------------------------------------------------
# Not exact


PRECISIONS = ("float32", "bf16", "int8")


def to_precision(model, precision):
    """Give the model weights of fewer bits, for sampling; returns it.

    bf16   all networks compute in 16 bits, of about three digits, and take half the memory
    int8   the weights of the denoiser's and the text tower's layers are rounded to 8 bits, with a
           scale for each output. They compute in float32; a few rows of tokens on a CPU read a
           quarter of the bytes

    The sampler, the joints and what `generate` returns stay float32. ValueError for another name.
    """
    parts = [model.text_encoder, model.denoiser, model.vae, model.length_estimator]
    parts = [part for part in parts if part is not None]
    if precision == "bf16":
        for part in parts:
            part.bfloat16()
    elif precision == "int8":
        layers = [m for part in parts if part is not model.vae for m in part.modules()
                  if hasattr(m, "skip") or m is model.denoiser.modulated]
        for one in layers:
            kernels.few_rows.round_to_int8(one)
    elif precision != "float32":
        raise ValueError(f"The precision must be one of {', '.join(PRECISIONS)}, "
                         f"not {precision!r}.")
    return model


def keep_buffers(module, convert):
    """convert(), except that a module's own buffers (mean, std, ...) are never of 16 bits. These
    are too few for the sampler, and for joints that are summed up over a whole path."""
    before = dict(module._buffers)
    result = convert()
    for name, held in before.items():
        now = module._buffers[name]
        if now is not None and now.dtype in (torch.float16, torch.bfloat16):
            module._buffers[name] = held.to(now.device)
    return result


def compile_denoiser(model):
    """torch.compile the denoising step, which pays for many prompts in one process.

    The first call of `generate` for each number of motions then takes half a minute or more, less
    if torch's cache on disk has the result. The weights are packed as they are at that time:
    later changes to them are not seen."""
    model.denoiser.predict = torch.compile(model.denoiser.predict, dynamic=False,
                                           options={"freezing": True})
