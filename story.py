"""One motion from several prompts, loops, and what lies between or around motions.

    motion, joins = story(model, ["a man walks", "he turns left", "he sits"], lengths=[60, 40, 60])

Up to eight segments are sampled as one batch, sixteen of each, and of these the ones are taken that
meet best. Where even they do not meet, as one who sits and one who walks, they are sampled again,
and a handshake loss makes the end of each the beginning of the next. Then they are laid on each
other, and blended in rotations over the frames they share.
"""
from functools import partial

import numpy as np
import torch

import diffusion
import motion
from conditions import pick
from diffusion import draw_noise, make_generators, plan
from formats import targets as targets_
from guidance import body_of, bones_of, decoded, guided_walk, heading, sampled, tried, turned
from latents import to_diffused

SHARED = 10  # frames that neighbours of a story have in common
CLOSE = 0.15  # metres: neighbours that meet so nearly need no handshake
NEXT = 1_000_003  # from a segment's seed to the next one's, so that motions 1, 2, ... share none
AT_ONCE = 8  # segments of a story that are made together; memory does not grow with more


def align(joints, to):
    """Joints (n, J, 3) turned about Y and moved over the floor to lie as near `to` as they can ->
    (x, z, turn) for targets.to_world."""
    a, b = to[..., ::2].reshape(-1, 2), joints[..., ::2].reshape(-1, 2)
    middle_a, middle_b = a.mean(0), b.mean(0)
    (ax, az), (bx, bz) = (a - middle_a).T, (b - middle_b).T
    turn = np.arctan2((ax * bz - az * bx).sum(), (ax * bx + az * bz).sum())
    moved = motion.turn_about_y(turn, np.array([middle_b[0], 0, middle_b[1]]))
    return middle_a[0] - moved[0], middle_a[1] - moved[2], float(turn)


def blended(a, b, parents):
    """Joints a (h, J, 3) that become b: each bone turns from one to the other, and keeps the length
    that it has in a."""
    u = (np.arange(len(a)) + 1) / (len(a) + 1)
    share = (u * u * (3 - 2 * u))[:, None]
    placed = [a[:, 0] + share * (b[:, 0] - a[:, 0])]
    for j, p in enumerate(parents[1:], start=1):
        one, two = a[:, j] - a[:, p], b[:, j] - b[:, p]
        way = motion.unit_rows(one) * (1 - share) + motion.unit_rows(two) * share
        size = np.linalg.norm(one, axis=-1, keepdims=True)
        placed.append(placed[p] + motion.unit_rows(way) * size)
    return np.stack(placed, axis=1)


def handshake(pairs, pose):
    """A loss for `pulled`: SHARED frames of one motion do the same as those of another, wherever
    both are and face. pairs: ((motion, first frame), (motion, first frame)), where joints
    (SHARED, J, 3) may stand for motions that are made already."""
    middle = SHARED // 2

    def seen(joints):
        at = joints[middle, :1] * joints.new_tensor([1, 0, 1])
        return turned(joints - at, -heading(joints[middle], pose))

    def loss_of(joints):
        own, total = [joints.sum() * 0] * len(joints), 0.0
        for pair in pairs:
            a, b = (seen(k if torch.is_tensor(k) else joints[k[0], k[1]:k[1] + SHARED])
                    for k in pair)
            loss = (a - b).square().sum(-1).mean() + 9 * (a - b).diff(dim=0).square().sum(-1).mean()
            total = total + loss
            for k in pair:
                if not torch.is_tensor(k):
                    own[k[0]] = own[k[0]] + loss
        return total, torch.stack(own)
    return loss_of


def both(*losses):
    """The sum of losses for `pulled`, some of which, but not all, may be None."""
    losses = [loss for loss in losses if loss]
    if len(losses) == 1:
        return losses[0]
    return lambda joints: map(sum, zip(*(loss(joints) for loss in losses)))


def laid(parts, pose):
    """Segments (n, J, 3), each of which begins at the origin -> one motion, with SHARED frames of
    neighbours laid on each other and blended, and the frames at which they are joined."""
    whole, joins, h = parts[0], [], SHARED
    for joints in parts[1:]:
        joints = targets_.to_world(joints, align(joints[:h], whole[-h:]))
        joins.append(len(whole) - h // 2)
        seam = blended(whole[-h:], joints[:h], pose.parents)
        whole = np.concatenate([whole[:-h], seam, joints[h:]])
    return whole, joins


def gap(made, pair):
    """Metres between the joints of the frames that a pair of `handshake` shares, when one is laid
    on the other: the mean in the middle, where they are blended half and half."""
    a, b = (k.double().cpu().numpy() if torch.is_tensor(k) else made[k[0]][k[1]:k[1] + SHARED]
            for k in pair)
    b = targets_.to_world(b, align(b, a))
    return np.linalg.norm(a - b, axis=-1)[SHARED // 2].mean()


def best_chain(starts, costs, ends=None):
    """Which one of the K tries of each of S segments to take, so that the sum of costs is least:
    starts (K,) of the first, costs S - 1 times (K, K) of neighbours, ends (K, K) of the last and
    the first of a loop."""
    found = []
    for first, start in enumerate(starts):
        sums, ways = np.full(len(starts), np.inf), []
        sums[first] = start
        for cost in costs:
            ways.append((sums[:, None] + cost).argmin(0))
            sums = (sums[:, None] + cost).min(0)
        sums = sums if ends is None else sums + ends[:, first]
        chain = [int(sums.argmin())]
        for way in reversed(ways):
            chain.append(int(way[chain[-1]]))
        found.append((sums.min(), chain[::-1]))
    return min(found)[1]


def nearest(made, pairs):
    """Which of the tries made (S, K, T, J, 3) of each of S segments meet best, where pairs of
    segments meet as for `handshake`: S numbers."""
    (count, tries), flat = made.shape[:2], made.reshape(-1, *made.shape[2:])
    starts, costs, ends = np.zeros(tries), [np.zeros((tries, tries))] * (count - 1), None
    for one, two in pairs:
        pick = [[k] * tries if torch.is_tensor(k) else
                [(k[0] * tries + way, k[1]) for way in range(tries)] for k in (one, two)]
        cost = np.square([[gap(flat, (a, b)) for b in pick[1]] for a in pick[0]])
        if torch.is_tensor(one):
            starts = starts + cost[0]
        elif not torch.is_tensor(two) and two[0] == one[0] + 1:
            costs[one[0]] = cost
        else:  # of a loop
            ends = cost
    if count == 1 and ends is not None:  # which meets itself
        starts, ends = starts + ends.diagonal(), None
    return best_chain(starts, costs, ends)


def parts_of(model, lengths):
    """What segments of so many frames add to a story: S numbers of frames, whose sum it has."""
    most = model.config.data.max_frames
    return [min(n, max(most, n) - SHARED * (i > 0)) for i, n in enumerate(lengths)]


def stretched(model, lengths, frames):
    """S lengths, in about the same shares, that make a story of at least so many frames. None is
    longer than the training's motions as long as others can grow."""
    drawn, longer, most = list(lengths), list(lengths), model.config.data.max_frames
    while sum(parts_of(model, longer)) < frames:
        room = [i for i, n in enumerate(longer) if n < most - SHARED * (i > 0)]
        longer[min(room or range(len(longer)), key=lambda i: longer[i] / drawn[i])] += 1
    return longer


def story(model, texts=None, actions=None, *, lengths, seed=0, loop=False, effort="low",
          guidance_scale=None, sampler=None, num_inference_steps=None, progress=False, pull=None,
          **others):
    """One motion of several segments without seams: (T, J, 3) metres, float64, from the origin and
    facing +Z, and the frames at which segments are joined.

    texts or actions of the S segments, and S lengths in frames; T is their sum. Each segment but
    the first begins SHARED frames earlier, while the one before it still goes on; where that would
    be longer than the training's motions, its own time, and T, is that much shorter. loop: the last
    leads into the first, so that the motion can be repeated for ever, each time from where it has
    come to. It is cut from the middle of a longer motion, where people walk and do not set off or
    stop.
    effort: more would make softer joins of less action. Other settings as in edit.edit.
    pull: pull(the story so far or None, lengths of the next segments) -> a loss for `pulled` on
    these segments' joints."""
    c, h = model.config.data, SHARED
    asked = model.check_lengths(lengths).tolist()
    if min(asked) < 2 * h:
        raise ValueError(f"A segment of a story needs at least {2 * h / c.fps:g} s, found "
                         f"{min(asked) / c.fps:g} s.")
    given = pick(model.condition, texts=texts, actions=actions, **others)
    if given is not None and len(given) != len(asked):
        raise ValueError(f"A story of {len(given)} {model.condition.keyword} needs as many "
                         f"lengths, found {len(asked)}.")
    last, longer = len(asked) - 1, [n + h * (i > 0) for i, n in enumerate(asked)]
    lead = trail = 0
    if loop:  # frames before the first segment and after the last, which are cut off
        lead = h
        longer[0] += h + lead
        trail = min(h, max(c.max_frames - longer[last], 0))
        longer[last] += trail
    longer = [min(n, max(c.max_frames, own)) for n, own in zip(longer, asked)]
    pose, _ = body_of(model)
    settings = {"guidance_scale": guidance_scale, "sampler": sampler,
                "num_inference_steps": num_inference_steps}
    parts, device = [], model.mean.device
    for at in range(0, len(asked), AT_ONCE):
        part = model.check_lengths(longer[at:at + AT_ONCE])
        some = None if given is None else given[at:at + AT_ONCE]
        pairs = [((i, n - h), (i + 1, 0)) for i, n in enumerate(part.tolist()[:-1])]
        if parts:
            pairs.append((torch.as_tensor(parts[-1][-h:], device=device).float(), (0, 0)))
        if loop and at + len(part) > last:
            first = torch.as_tensor(parts[0][lead:lead + h], device=device).float() if parts \
                else (0, lead)
            pairs.append(((len(part) - 1, longer[last] - trail - h), first))
        seeds = [seed + NEXT * k for k in range(at, at + len(part))]
        asks = pull and pull(laid(parts, pose)[0] if parts else None, part.tolist())
        made, ask = None, partial(sampled, model, some, part)
        if model.vae and pairs:
            each, made = tried(model, some, part, seeds, effort, settings, progress)
            taken = nearest(made, pairs)
            seeds, made = [[one[way] for one, way in zip(all_, taken)] for all_ in (each, made)]
        if made is None or asks:
            made = ask(seeds, asks, effort, settings, progress)
        apart = [pair for pair in pairs if gap(made, pair) > CLOSE]
        if apart:
            moved = {k[0] for pair in apart for k in pair if not torch.is_tensor(k)}
            near = [pair for pair in pairs
                    if moved.intersection(k[0] for k in pair if not torch.is_tensor(k))]
            made = ask(seeds, both(handshake(near, pose), asks), effort, settings, progress)
        parts += [joints[:n] for joints, n in zip(made, part.tolist())]
    bones = bones_of(model, np.concatenate(parts))
    parts = [motion.keep_bones(joints, bones, pose.parents) for joints in parts]
    parts[last] = parts[last][:len(parts[last]) - trail]
    whole, joins = laid([parts[0][lead:], *parts[1:]], pose)
    if loop:
        first = targets_.to_world(whole[:h], align(whole[:h], whole[-h:]))
        whole = np.concatenate([whole[h:-h], blended(whole[-h:], first, pose.parents)])
        joins = [join - h for join in joins]
        whole = targets_.to_own(whole, targets_.place_of(whole[0], pose))
    return whole, joins


# --------------------------------------------------------------------------------------------------
# Prompts that say several things, one after the other (clauses.py)


def lengths_of(model, texts, seed, total=None):
    """Frames of the parts of a prompt: drawn from `seed` on, or `total` frames in about the shares
    that are drawn. A part has at least 2 * SHARED and, if `total` allows it, no more than can be
    made with what it shares. ValueError for a `total` too short for so many parts."""
    c, least = model.config.data, 2 * SHARED
    most = [c.max_frames - SHARED * (k > 0) for k in range(len(texts))]
    if total is not None and total < least * len(texts):
        raise ValueError(f"{len(texts)} things one after the other need at least "
                         f"{least * len(texts) / c.fps:g} s, found {total / c.fps:g} s.")
    drawn = [1] * len(texts)
    if total is None or model.length_estimator is not None:
        drawn = model.draw_lengths(texts, seed=[seed + NEXT * k for k in range(len(texts))])
    if total is None:
        return [max(min(n, top), least) for n, top in zip(drawn, most)]
    shares = [least] * len(texts)
    for _ in range(total - sum(shares)):  # to the one that lacks most, frame by frame
        room = [k for k in range(len(texts)) if shares[k] < most[k]] or range(len(texts))
        shares[min(room, key=lambda k: shares[k] / drawn[k])] += 1
    return shares


def scenes(model, each, lengths, seeds, progress=False, **settings):
    """Motions (T, J, 3) of B prompts, each a list of the parts that are done one after the other.

    each, lengths   B lists of texts, and as many lists of frames
    seeds           B; that of a story's first part, the next part's is NEXT more
    settings        guidance_scale, sampler, num_inference_steps

    What has one part is made by model.generate, all of it as one batch, the others are stories."""
    made, alone = [None] * len(each), [i for i, texts in enumerate(each) if len(texts) == 1]
    if alone:
        _, joints = model.generate([each[i][0] for i in alone], progress=progress,
                                   lengths=[lengths[i][0] for i in alone],
                                   seed=[seeds[i] for i in alone], **settings)
        for i, j in zip(alone, joints):
            made[i] = j[:lengths[i][0]].cpu().numpy()
    for i in set(range(len(each))).difference(alone):
        made[i] = story(model, each[i], lengths=lengths[i], seed=seeds[i], progress=progress,
                        **settings)[0]
    return made


# --------------------------------------------------------------------------------------------------
# Through the VAE


def interpolate(model, texts=None, actions=None, *, lengths, num, seed=0, **settings):
    """`num` motions on the line between the latents of two texts or actions, from one noise, or the
    one in the middle: a list of (T, J, 3). lengths: of both ends; settings as in `generate`."""
    model.need_vae()
    a, b = model.generate(texts, actions, lengths=lengths, seed=[seed, seed], latents=True,
                          **settings)
    steps, part = (num, slice(None)) if num > 1 else (3, slice(1, 2))
    between = np.linspace(*lengths, steps)[part].round().astype(int).tolist()
    _, joints = model.decode_latent(model.interpolate(a, b, steps)[part], between)
    return [j[:n].double().cpu().numpy() for j, n in zip(joints, between)]


def vary(model, clip, texts=None, actions=None, *, strength=0.4, seed=0, num=1, **settings):
    """`num` variations of a clip (T, J, 3) in metres: noised to a level and denoised again.

    texts, actions   one, or `num`, or none
    strength         the level, from 0 (the clip as the VAE has it) to 1 (nothing is left of it)
    settings         guidance_scale, sampler, num_inference_steps

    Returns a list of (T - 1, J, 3), float64, in the clip's place. ValueError for a clip that the
    model cannot read."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be from 0 to 1, got {strength}.")
    name = model.config.data.skeleton
    if name not in motion.SKELETONS:
        raise ValueError(f"Only motions of t2m and kit can be varied, not of {name}.")
    body, (pose, _) = motion.SKELETONS[name], body_of(model)
    features = torch.as_tensor(motion.joints_to_features(clip / body.unit, body)).float()
    features = features.to(model.mean.device)[None]
    lengths = model.check_lengths([features.shape[1]] * num)
    with torch.no_grad():
        x0 = (features - model.mean) / model.std if model.vae is None else \
            to_diffused(model, model.encode_motion(features, lengths[:1]))
        given = pick(model.condition, texts=texts, actions=actions)
        given = given and list(given) * (num // len(given))
        d = model.sampling(**settings, **{"guidance_scale": 1.0} if given is None else {})
        cond, uncond = model.condition.encode(model, given, num, known_only=True)
        steps = [step for step in plan(model.schedule, d.sampler, d.num_inference_steps, d.eta)
                 if step.t < strength * len(model.schedule)]
        if d.sampler == "lcm":  # one answer, from the level itself: four are far apart
            steps = [step._replace(c_0=1.0, c_noise=0.0) for step in plan(model.schedule, "lcm", 40)
                     if step.t < strength * len(model.schedule)][:1]
        x0, generators = x0.repeat(num, 1, 1).clone(), make_generators(seed, num)
        if steps:
            eps = draw_noise(x0.shape, generators, x0.device, x0.dtype)
            x0 = diffusion.add_noise(model.schedule, x0, eps, torch.full_like(lengths, steps[0].t))
            first = steps[0]  # a multistep sampler has nothing to extrapolate from
            steps[0] = first._replace(c_0=first.c_0 + first.c_last, c_last=0.0)
            ask = model.guided(cond, uncond, lengths, d)
            x0 = guided_walk(model, steps, x0, ask, lengths, generators, None, 0)
        joints = decoded(model, x0, lengths).double().cpu().numpy()
    place = targets_.place_of(clip[0], pose)
    return [targets_.to_world(j, place) for j in joints]
