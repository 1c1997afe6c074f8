"use strict";
/* The whole of MLD.generate (mld.py) for models with the small text tower, in plain JavaScript:
   words -> tower -> guided diffusion of latents -> the VAE's decoder -> joints in metres.

     const model = new MLD(header, bytes, wasm);   what page.py wrote; wasm null: plain JavaScript
     const {joints, frames, seed} = model.generate("a man jumps", {seed: 1});

   A seed gives the motion that it gives in Python. Functions and weights have their Python names;
   sizes come from the settings and the weights. Numbers lie in flat Float32Arrays, row after row:
   (B, L, D) means B samples of L tokens of width D. tensors.js has what torch does in Python,
   words.js what becomes of words that training never saw. */

// ---- Diffusion: DPM-Solver++(2M), as in diffusion.py --------------------------------------------

const halfLogSnr = abar => 0.5 * Math.log(abar / (1 - abar));

/** The n levels, falling, at which the network is asked: equal steps in lambda from 10 steps on. */
function timesteps(abar, n) {
  const negative = Array.from(abar, q => -halfLogSnr(q));
  const below = (value, same) => {  // how many are below it, or not above it; they rise
    const found = negative.findIndex(v => same ? v > value : v >= value);
    return found < 0 ? negative.length : found;
  };
  const top = Math.max(below(5.1, true) - 1, n - 1), result = [], share = n >= 10 ? 1 : 0.25;
  const start = negative[top], end = negative[0];
  for (let i = 0, t = top + 1; i < n; i++) {
    const inLambda = Math.min(below(start + (end - start) * i / n, false), top);
    const inT = (top + 1) * (n - i) / n - 1;
    t = Math.max(n - 1 - i, Math.min(t - 1, rounded(share * inLambda + (1 - share) * inT)));
    result.push(t);
  }
  return result;
}

/** As Python rounds: halves to the even neighbour. */
function rounded(x) {
  const low = Math.floor(x), odd = low % 2 ? 1 : 0;
  return x - low === 0.5 ? low + odd : Math.round(x);
}

/** The steps: x0 = p_x x + p_out output, then x' = c_x x + c_0 x0 + c_last (x0 of the step before).
    The first step has no step before it, and the last is better without. */
function plan(abar, n, predicts) {
  const ts = timesteps(abar, n), path = [...ts.map(t => abar[t]), abar[0]];
  return ts.map((t, i) => {
    const now = path[i], prev = path[i + 1], a = Math.sqrt(now), s = Math.sqrt(1 - now);
    const h = halfLogSnr(prev) - halfLogSnr(now);
    const k = i > 0 && i < n - 1 ? h / (2 * (halfLogSnr(now) - halfLogSnr(path[i - 1]))) : 0;
    const gain = -Math.sqrt(prev) * Math.expm1(-h);
    const recover = {epsilon: [1 / a, -s / a], sample: [0, 1], v_prediction: [a, -s]};
    const [p_x, p_out] = recover[predicts];
    return {t, p_x, p_out, c_x: Math.sqrt((1 - prev) / (1 - now)), c_0: gain * (1 + k),
            c_last: -gain * k};
  });
}

/** Classifier-free guidance; rescale moves the spread of the output back towards cond's. */
function guide(uncond, cond, scale, rescale) {
  const guided = cond.map((c, i) => uncond[i] + scale * (c - uncond[i]));
  const spread = x => {
    const mean = x.reduce((a, b) => a + b, 0) / x.length;
    return Math.sqrt(Math.max(x.reduce((a, b) => a + b * b, 0) / x.length - mean ** 2, 1e-12));
  };
  const factor = rescale ? 1 + rescale * (spread(cond) / spread(guided) - 1) : 1;
  return guided.map(v => v * factor);
}

// ---- The model ----------------------------------------------------------------------------------

class MLD {
  constructor(header, bytes, wasm = null) {
    const {config} = header, {vae, denoiser, text} = config;
    Object.assign(this, {header, config, weights: readWeights(header.tensors, bytes)});
    this.arithmetic = wasm ? inWasm(wasm) : inPlain;
    this.kept = new Map();  // matrices, as the arithmetic keeps them
    const stack = (c, more) => ({dim: c.latent_dim, heads: c.num_heads, layers: c.num_layers,
      activation: c.activation, preNorm: c.normalize_before, ...more});
    this.stacks = {
      text: {dim: text.width, heads: text.heads, layers: text.layers, activation: "quick_gelu",
             preNorm: true, causal: true},
      denoiser: stack(denoiser, {skip: denoiser.skip_connect}),
      vae: stack(vae, {skip: vae.arch !== "actor"}),
    };
    this.maxFrames = vae.max_positions - 2 * vae.latent_size;
    this.clauses = header.clauses && new Clauses(header.clauses);
    this.book = header.book ? new Book(header.vocabulary, header.book)
      : new PlainBook(header.vocabulary);
    this.numbers = new Map(header.vocabulary.map((word, i) => [word, i + 2]));
  }

  // -- layers, as in transformer.py

  /** x (rows, inputs) -> (rows, outputs), with the weight's rows `from` to `to`, or all. */
  linear(x, name, joint = ".", from = 0, to = this.weights[`${name}${joint}weight`].shape[0]) {
    const {shape: [, inputs], data} = this.weights[`${name}${joint}weight`];
    const outputs = to - from, wide = Math.ceil(outputs / PANEL) * PANEL;
    const key = `${name} ${from} ${to}`;
    if (!this.kept.has(key)) {
      const bias = new Float32Array(wide), given = this.weights[`${name}${joint}bias`];
      if (given) bias.set(given.data.subarray(from, to));
      const packed = panels(data.subarray(from * inputs, to * inputs), inputs, outputs);
      this.kept.set(key, this.arithmetic.keep(packed, bias));
    }
    const rows = x.length / inputs;
    const y = this.arithmetic.product(this.kept.get(key), x, rows, inputs, wide);
    return wide === outputs ? y : columns(y, wide, outputs);
  }

  norm(x, name) {
    const [weight, bias] = ["weight", "bias"].map(part => this.weights[`${name}.${part}`].data);
    const C = weight.length, y = new Float32Array(x.length);
    for (let at = 0; at < x.length; at += C) {
      let mean = 0, square = 0;
      for (let c = 0; c < C; c++) mean += x[at + c] / C;
      for (let c = 0; c < C; c++) square += (x[at + c] - mean) ** 2 / C;
      const scale = 1 / Math.sqrt(square + 1e-5);
      for (let c = 0; c < C; c++) y[at + c] = (x[at + c] - mean) * scale * weight[c] + bias[c];
    }
    return y;
  }

  attend(x, memory, name, {dim: D, heads, causal}, B) {
    let q, k, v;
    if (memory === x) {
      const all = this.linear(x, `${name}.in_proj`, "_");
      [q, k, v] = [0, 1, 2].map(part => [all, 3 * D, part * D]);
    } else {
      const both = this.linear(memory, `${name}.in_proj`, "_", D, 3 * D);
      q = [this.linear(x, `${name}.in_proj`, "_", 0, D), D, 0];
      [k, v] = [0, 1].map(part => [both, 2 * D, part * D]);
    }
    return this.linear(attention(q, k, v, B, D, heads, causal), `${name}.out_proj`);
  }

  /** x (B, L, D) -> the same; memory (B, M, D) is for layers with cross-attention. */
  layer(x, name, s, B, memory) {
    const changes = [
      x => this.attend(x, x, `${name}.self_attn`, s, B),
      x => this.attend(x, memory, `${name}.multihead_attn`, s, B),
      x => this.linear(this.linear(x, `${name}.linear1`).map(ACTIVATIONS[s.activation]),
                       `${name}.linear2`)];
    if (!memory) changes.splice(1, 1);
    changes.forEach((change, i) => {
      const norm = `${name}.norm${i + 1}`;
      x = s.preNorm ? add(change(this.norm(x, norm)), x) : this.norm(add(change(x), x), norm);
    });
    return x;
  }

  /** Layers in a row; with s.skip, what goes into the first half is joined to the second. */
  stack(x, name, s, B, memory = null) {
    const layer = part => { x = this.layer(x, `${name}.${part}`, s, B, memory); };
    const half = s.skip ? s.layers >> 1 : 0, kept = [];
    if (!s.skip) for (let i = 0; i < s.layers; i++) layer(`layers.${i}`);
    for (let i = 0; i < half; i++) { layer(`input_blocks.${i}`); kept.push(x); }
    if (s.skip) layer("middle_block");
    for (let i = 0; i < half; i++) {
      x = this.linear(beside(x, kept.pop(), s.dim), `${name}.linear_blocks.${i}`);
      layer(`output_blocks.${i}`);
    }
    return `${name}.norm.weight` in this.weights ? this.norm(x, `${name}.norm`) : x;
  }

  /** Adds positions to x (B, L, D): a learned table, or sines and cosines in turn. */
  positions(x, name, D, B) {
    const table = this.weights[`${name}.pe`], L = x.length / D / B;
    for (let i = 0; i < L; i++) {
      const row = table ? table.data.subarray(i * D, (i + 1) * D)
        : sinusoid(i, D).flatMap(angle => [Math.sin(angle), Math.cos(angle)]);
      for (let b = 0; b < B; b++) for (let c = 0; c < D; c++) x[(b * L + i) * D + c] += row[c];
    }
    return x;
  }

  /** The embedding (D) of a noise level, or of a length. */
  embedding(value, name) {
    const {flip_sin_to_cos: flip, freq_shift: shift} = this.config.denoiser;
    const angles = sinusoid(value, this.weights[`${name}.linear_1.weight`].shape[1], shift);
    const halves = [angles.map(Math.sin), angles.map(Math.cos)];
    let h = Float32Array.from((flip ? halves.reverse() : halves).flat());
    h = this.linear(h, `${name}.linear_1`).map(ACTIVATIONS.silu);
    return this.linear(h, `${name}.linear_2`);
  }

  // -- sentences, as in clip.py

  /** A text -> its embedding (1, E). */
  encode(text) {
    const {width: D, context_length: most} = this.config.text, name = "text_encoder.tower";
    const numbers = wordsOf(text).slice(0, most - 1).map(word => this.numbers.get(word) ?? 0);
    const x = this.wordRows([...numbers, 1]);  // 0: unknown, 1: the end
    add(x, this.weights[`${name}.positional_embedding`].data);
    const hidden = this.stack(x, `${name}.transformer`, this.stacks.text, 1);
    return this.linear(hidden.slice(-D), `${name}.text_projection`);
  }

  /** Numbers of words -> what the tower begins with, (L, D). */
  wordRows(numbers) {
    const {shape: [, D], data} = this.weights["text_encoder.tower.token_embedding.weight"];
    return join(numbers.map(n => data.subarray(n * D, (n + 1) * D)));
  }

  /** How many frames a motion for this embedding has, drawn like those of the training set. */
  drawLength(embedding, seed) {
    const name = "length_estimator.net", {unit_length: unit} = this.config.data;
    const h = this.linear(this.norm(embedding, `${name}.0`), `${name}.1`).map(ACTIVATIONS.gelu);
    const logits = this.linear(h, `${name}.3`), most = Math.max(...logits);
    // torch.multinomial: the largest share over an exponential number; small shares are doubt
    const shares = logits.map(v => Math.exp(v - most)), draws = new Generator(seed);
    const race = shares.map(share => (share < 0.1 ? 0 : share) / draws.exponential());
    return (race.indexOf(Math.max(...race)) + 1) * unit;
  }

  // -- the denoiser and the decoder, as in mld.py and vae.py

  /** x_t (N, D), the noise level t, and tokens of B conditions -> B outputs (N, D). */
  denoise(x_t, t, conditions) {
    const {latent_dim: D, arch} = this.config.denoiser, s = this.stacks.denoiser;
    const time = this.embedding(t, "denoiser.time_embedding");
    if (arch === "modulated")
      return this.modulated(x_t, time, this.weights.alphas_cumprod.data[t], conditions);
    const B = conditions.length, name = "denoiser";
    x_t = this.eachToken(x_t, `${name}.token_in`);
    const n = x_t.length;
    let x;
    if (arch === "trans_dec") {
      const memory = join(conditions.map(tokens => join([time, tokens])));
      x = this.positions(join(conditions.map(() => x_t)), `${name}.query_pos`, D, B);
      x = this.stack(x, `${name}.decoder`, s, B,
                     this.positions(memory, `${name}.mem_pos`, D, B));
    } else {
      x = join(conditions.map(tokens => join([x_t, time, tokens])));
      x = this.stack(this.positions(x, `${name}.query_pos`, D, B), `${name}.encoder`, s, B);
    }
    x = columns(x, x.length / B, n);
    if (`${name}.final_linear.weight` in this.weights) x = this.linear(x, `${name}.final_linear`);
    return conditions.map(
      (_, b) => this.eachToken(x.subarray(b * n, (b + 1) * n), `${name}.final_linear`));
  }

  /** denoise for layers that the condition modulates, as in modulated.py. */
  modulated(x_t, time, abar, conditions) {
    const name = "denoiser.modulated", {num_layers, activation} = this.config.denoiser;
    const a = Math.sqrt(abar), s = Math.sqrt(1 - abar);
    const spread = this.weights[`${name}.spread`].data;
    const [p, r] = {epsilon: [1, 0], sample: [0, 1], v_prediction: [a, -s]}[
      this.config.diffusion.prediction_type];
    const q = spread.map(v => abar * v + 1 - abar), row = x_t.map((v, i) => v / Math.sqrt(q[i]));
    let c = join(conditions.map(tokens => time.map((v, i) => {
      for (let at = i; at < tokens.length; at += time.length) v += tokens[at];
      return v;
    })));
    c = this.linear(c.map(ACTIVATIONS.silu), `${name}.mix`).map(ACTIVATIONS.silu);
    const modulate = (h, part) => {
      const all = this.linear(c, `${part}.modulation`), W = h.length / conditions.length;
      return h.map((v, i) => {
        const at = i % W + 2 * (i - i % W);
        return v * (1 + all[at]) + all[at + W];
      });
    };
    let h = this.linear(join(conditions.map(() => row)), `${name}.token_in`);
    for (let i = 0; i < num_layers; i++) {
      const part = `${name}.layers.${i}`;
      const u = modulate(this.linear(this.norm(h, `${part}.norm`), `${part}.linear1`), part);
      h = add(this.linear(u.map(ACTIVATIONS[activation]), `${part}.linear2`), h);
    }
    const out = this.linear(modulate(this.norm(h, `${name}.norm`), name), `${name}.final_linear`);
    return conditions.map((_, b) => x_t.map((x, i) => (p * s + r * a * spread[i]) / q[i] * x
      + Math.sqrt(spread[i] / q[i]) * (p * a - r * s) * out[b * x_t.length + i]));
  }

  /** Tokens (N, ...), each through its own of N Linears, if there are any. */
  eachToken(x, name) {
    const N = this.config.denoiser.principal, width = x.length / N;
    if (!(`${name}.0.weight` in this.weights)) return x;
    return join(Array.from({length: N}, (_, i) =>
      this.linear(x.subarray(i * width, (i + 1) * width), `${name}.${i}`)));
  }

  /** z (N, D) -> normalised features (T, F) of T frames. */
  decode(z, T) {
    const {latent_dim: D, latent_size: N, arch} = this.config.vae, s = this.stacks.vae;
    const start = this.linearPath(z, T), name = "vae.decoder", pe = "vae.query_pos_decoder";
    let x;
    if (arch === "all_encoder") {
      x = this.stack(this.positions(join([z, start]), pe, D, 1), name, s, 1).slice(N * D);
    } else x = this.stack(this.positions(start.slice(), pe, D, 1), name, s, 1, z);
    return this.linear(add(x, start), "vae.final_layer");
  }

  /** z (N, D) -> (T, D): slow cosines whose amplitudes the latent holds; zeros without the path. */
  linearPath(z, T) {
    const {latent_dim: D, cosines: K, cosine_span: span} = this.config.vae, R = D >> 1;
    if (!K) return new Float32Array(T * D);
    const amplitudes = this.linear(z, "vae.linear_path.to_waves"), f = Math.fround;
    const waves = new Float32Array(T * R), pace = f(Math.PI / span);
    for (let t = 0; t < T; t++) for (let k = 0; k < K; k++) {
      const wave = f(Math.cos(f(f(pace * (t + 0.5)) * k))) / 2;
      for (let r = 0; r < R; r++) waves[t * R + r] += wave * amplitudes[k * R + r];
    }
    return this.linear(waves, "vae.linear_path.widen");
  }

  // -- generation, as in mld.py

  /** How many numbers of a latent are diffused. */
  get diffused() {
    const {denoiser: c, vae: v} = this.config;
    const all = v.latent_size * v.latent_dim;
    return c.principal ? c.principal * Math.min(c.latent_dim, Math.floor(all / c.principal)) : all;
  }

  fromDiffused(x) {
    const {latent_mean: mean, latent_std: std, latent_out: out} = this.weights;
    if (!mean) return x;
    if (!out) return x.map((v, i) => v * std.data[i] + mean.data[i]);
    const z = Float32Array.from(mean.data), n = z.length;
    for (let k = 0; k < x.length; k++)
      for (let i = 0; i < n; i++) z[i] += x[k] * out.data[k * n + i];
    return z;
  }

  /** The latent z (N, D) for an embedding; noise: what z_T is diffused from. */
  sample(embedding, frames, noise, {guidance, steps}) {
    const {denoiser: c, diffusion: d} = this.config, names = "denoiser.length_embedding";
    const length = c.length_token ? [this.embedding(frames, names)] : [];
    const side = feature => join(
      [this.linear(feature.map(ACTIVATIONS.relu), "denoiser.emb_proj.1"), ...length]);
    this.empty ??= this.encode("");
    const features = {0: [this.empty], 1: [embedding]}[guidance] || [this.empty, embedding];
    const sides = features.map(side);
    let x = noise, last = x;
    for (const step of plan(this.weights.alphas_cumprod.data, steps, d.prediction_type)) {
      const outputs = this.denoise(x, step.t, sides);
      const output = outputs.length === 1 ? outputs[0]
        : guide(...outputs, guidance, d.guidance_rescale);
      let x0 = output.map((o, i) => step.p_x * x[i] + step.p_out * o);
      if (d.clip_sample) x0 = x0.map(v => Math.min(Math.max(v, -1), 1));
      x = x.map((v, i) => step.c_x * v + step.c_0 * x0[i] + step.c_last * last[i]);
      last = x0;
    }
    return this.fromDiffused(x);
  }

  /** A sentence -> {joints (T, J, 3) in metres, features (T, F), frames, seed, report on
      its words}. Without `frames` the length is drawn, by the seed as well. */
  generate(text, {seed = 1234, frames = 0, steps = 10, noise = null, bones = this.header.bones,
                  guidance = this.config.diffusion.guidance_scale} = {}) {
    const report = this.book.understand(text);
    const embedding = this.encode(report.text);
    frames = frames || this.drawLength(embedding, seed);
    const levels = this.config.diffusion.num_train_timesteps;
    const need = (good, text) => { if (!good) throw new Error(text); };
    need(Number.isInteger(frames) && frames >= 1 && frames <= this.maxFrames,
         `A motion must have 1 to ${this.maxFrames} frames here, found ${frames}.`);
    need(Number.isInteger(steps) && steps >= 1 && steps <= levels,
         `The number of steps must be a whole number from 1 to ${levels}, got ${steps}.`);
    need(guidance >= 0 && guidance < Infinity, `Guidance must be 0 or more, got ${guidance}.`);
    noise = noise || new Generator(seed).normal(this.diffused);
    const z = this.sample(embedding, frames, noise, {guidance, steps});
    const features = this.decode(z, frames), {mean, std} = this.weights, F = mean.data.length;
    for (let i = 0; i < features.length; i++)
      features[i] = features[i] * std.data[i % F] + mean.data[i % F];
    const {unit, parents} = this.header;
    const joints = keepBones(toJoints(features, F, unit), bones, parents);
    return {joints, features, frames, seed, report};
  }
}

// ---- Features -> joints, as in motion.py --------------------------------------------------------

/** Features (T, F) -> joints (T, J, 3) in metres, F = 12 J - 1: half a turn, the root's step in x
    and z, its height, then the other joints as the body sees them. Steps lead to the next frame. */
function toJoints(features, F, unit) {
  const T = features.length / F, J = (F + 1) / 12, joints = new Float32Array(T * J * 3);
  let turn = 0, x = 0, z = 0;
  for (let t = 0; t < T; t++) {
    const now = features.subarray(t * F, (t + 1) * F);
    const [half, dx, dz] = t ? features.subarray((t - 1) * F, t * F) : [0, 0, 0];
    turn += 2 * half;
    const c = Math.cos(turn), s = Math.sin(turn);
    x += c * dx - s * dz; z += s * dx + c * dz;
    joints.set([x * unit, now[3] * unit, z * unit], 3 * t * J);
    for (let j = 1; j < J; j++) {
      const [px, py, pz] = now.subarray(3 * j + 1, 3 * j + 4);
      const place = [c * px - s * pz + x, py, s * px + c * pz + z];
      joints.set(place.map(v => v * unit), 3 * (t * J + j));
    }
  }
  return joints;
}

/** The same joints with constant bone lengths (J): each moves along the line to its parent. */
function keepBones(joints, lengths, parents) {
  if (!lengths) return joints;
  const J = parents.length, placed = joints.slice();
  for (let at = 0; at < joints.length; at += 3 * J) for (let j = 1; j < J; j++) {
    const own = at + 3 * j, parent = at + 3 * parents[j];
    const bone = [0, 1, 2].map(k => joints[own + k] - placed[parent + k]);
    const size = Math.max(Math.hypot(...bone), 1e-9);
    bone.forEach((v, k) => { placed[own + k] = placed[parent + k] + v * lengths[j] / size; });
  }
  return placed;
}
