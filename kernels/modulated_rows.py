"""Runs a step of modulated layers (modulated.py) in modulated.c: for a few latents on a CPU.

What the condition and the level say to the layers does not depend on the latent, so it is computed
for all steps at once, before the first one. The rest of a step is one call of C, which reads each
weight once; where all of them are numbers of 8 bits, as in a file of `checkpoint.py halve`, it
reads those. The results are those of plain torch, to rounding.
"""
import weakref

import torch
import torch.nn.functional as F

from kernels import few_rows

MAX_ROWS = 32  # of latents, twice a motion with guidance
MOST = 2**24  # numbers of what is said to all latents in all steps: 64 MB
ACTIVATIONS = {F.gelu: "gelu", F.relu: "relu"}
OWN = {"ModulatedLayers.forward", "ModulatedLayer.forward"}

packed = weakref.WeakKeyDictionary()  # layers -> state of their weights, what C gets


def unsupported(layers, x, rows, steps=1):
    """Why modulated.c cannot run these layers on `rows` latents like those of x (B, N, D), in so
    many steps; empty if it can."""
    why_not = few_rows.elsewhere(x, layers)
    if why_not:
        return why_not
    modules = [*layers.modules()]
    forwards = {type(m).forward.__qualname__ for m in (layers, *layers.layers)}
    kinds = {type(m) for m in modules} - {type(m) for m in (layers, *layers.layers)}
    if forwards != OWN or kinds - few_rows.KNOWN_MODULES:
        return "it knows no modules but modulated.py's"
    if any([m.training for m in modules]) or few_rows.altered(layers, modules):
        return "hooks would not run, and nothing is dropped"
    made = pack(layers)
    if isinstance(made, str):
        return made
    most = min(MAX_ROWS, made[0].max_rows)
    if not 1 <= rows <= most or x.shape[1] * x.shape[2] != layers.token_in.in_features:
        return f"it takes 1 to {most} latents, of the layers' own width"
    if rows * steps * len(made[3][1]) > MOST:
        return "there is too much to say beforehand"
    return ""


def shapes(layers):
    """[(a module of these layers, the shape that its weight must have)]"""
    W, numbers = layers.token_in.weight.shape
    F, D = layers.layers[0].linear1.weight.shape[0], layers.modulation.weight.shape[1]
    found = [(layers.final_linear, (numbers, W)), (layers.norm, (W,)),
             (layers.modulation, (2 * W, D)), (layers.mix, (D, D)), (layers.token_in, (W, numbers))]
    for one in layers.layers:
        found += [(one.norm, (W,)), (one.linear1, (F, W)), (one.linear2, (W, F)),
                  (one.modulation, (2 * F, D))]
    return found


def pack(layers):
    """-> (function, addresses, tensors to keep, the Linear of all modulations, sizes, eps), made
    anew once a weight has changed or moved, as far as torch tells (a write to .data it does not);
    or a text that says why not."""
    whole = [(m.weight, m.bias, shape) for m, shape in shapes(layers)]
    if any(w is None or b is None or w.shape != shape or b.shape != shape[:1]
           for w, b, shape in whole):
        return "all weights and biases must be there, in all layers of the same shapes"
    if layers.token_in.out_features % 16 or layers.token_in.in_features % 16:
        return "it takes only widths that are multiples of 16"
    tensors = [*layers.parameters()]
    if any(t.is_inference() or t.device.type != "cpu" for t in tensors):
        return "weights elsewhere, or of inference mode, which do not say when they change"
    kinds = {t.dtype for t in tensors}
    settings = {(layer.activation, layer.norm.eps) for layer in layers.layers}
    if len(kinds) > 1 or kinds.pop() not in few_rows.TYPES.values() or len(settings) > 1:
        return "all weights must be float32, or all bfloat16, and all layers alike"
    activation, eps = settings.pop()
    if ACTIVATIONS.get(activation) is None or layers.norm.eps != eps:
        return "it knows GELU and ReLU, and one eps"
    now = [(t.data_ptr(), t._version, t.shape, t.stride(), t.dtype) for t in tensors]
    now += [activation, eps]
    before, made = packed.get(layers) or (None, None)
    if now != before:
        made = packed_anew(layers, ACTIVATIONS[activation])
        packed[layers] = now, made
    return made


@torch.no_grad()
def packed_anew(layers, activation):
    hidden = layers.layers[0].linear1.out_features
    more = -hidden % 16  # the C code works in sixteens; what is added is zero
    ups = [(F.pad(one.linear1.weight, (0, 0, 0, more)), F.pad(one.linear1.bias, (0, more)))
           for one in layers.layers]
    downs = [(F.pad(one.linear2.weight, (0, more)), one.linear2.bias) for one in layers.layers]
    pairs = [(layers.token_in.weight, layers.token_in.bias),
             *(pair for both in zip(ups, downs) for pair in both),
             (layers.final_linear.weight, layers.final_linear.bias)]
    kind, linears = "float32", []
    keep = [*layers.parameters()]  # or another could take the address of one, unnoticed
    if pairs[0][0].dtype == torch.bfloat16:
        kind = "bf16"
    else:
        int8 = [few_rows.exactly_int8(weight) for weight, _ in pairs]
        if None not in int8:
            kind = "int8"
    function = few_rows.library(kind, "modulated")
    if isinstance(function, str):
        return function
    for i, (weight, bias) in enumerate(pairs):
        numbers, scale = int8[i] if kind == "int8" else (weight.detach(), None)
        keep += [numbers.contiguous(), scale, bias.detach().float().contiguous()]
        linears.append(keep[-3:])
    norms = [[one.weight.detach().float(), one.bias.detach().float()]
             for one in (*(layer.norm for layer in layers.layers), layers.norm)]
    keep += sum(norms, [])
    flat = []
    for i, norm in enumerate(norms[:-1]):
        flat += [*linears[1 + 2 * i], *linears[2 + 2 * i], *norm]
    arrays = [few_rows.addresses(one) for one in (linears[0], flat, norms[-1], linears[-1])]

    def padded(table):  # scales and shifts of a layer, each with room for `more`
        return torch.cat([F.pad(half, (*[0, 0] * (half.dim() - 1), 0, more))
                          for half in table.chunk(2)])

    said = [layer.modulation for layer in layers.layers]
    weight = torch.cat([*(padded(one.weight) for one in said), layers.modulation.weight])
    bias = torch.cat([*(padded(one.bias) for one in said), layers.modulation.bias])
    sizes = len(layers.token_in.bias), hidden + more, len(layers.layers), \
        few_rows.ACTIVATIONS.index(activation)
    return function, arrays, keep, (weight, bias), sizes, layers.norm.eps


def prepare(layers, times, condition):
    """What `run` takes in each of n steps: [(packed weights, factors (3, N * D), told (R, K))]. A
    weight that changes in between is not seen.

    times      (n, D + 2), as ModulatedLayers.level gives them
    condition  (R, L, D) or None: then one row serves all latents"""
    made = pack(layers)
    weight, bias = made[3]
    embedding, a, s = times[:, None, :-2], times[:, -2:-1], times[:, -1:]
    told = F.linear(layers.choice(embedding, condition), weight, bias).float()  # (n, R, K)
    factors = torch.stack(layers.factors(a, s), 1)
    return [(made, *step) for step in zip(factors.float().contiguous(), told.contiguous())]


def run(x, made, factors, told):
    """The layers' answer to x (R, N, D), float32, in a step of `prepare`'s."""
    function, (first, middle, last, end), _, _, (W, hidden, count, activation), eps = made
    x, told = x.float().contiguous(), told.expand(len(x), -1).contiguous()
    out = torch.empty_like(x)
    failed = function(x.data_ptr(), out.data_ptr(), factors.data_ptr(), told.data_ptr(), len(x),
                      x[0].numel(), W, hidden, count, activation, first, middle, last, end, eps,
                      min(torch.get_num_threads(), few_rows.MAX_THREADS))
    if failed:
        raise MemoryError("modulated.c found no memory for its buffers.")
    return out
