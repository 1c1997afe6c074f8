"use strict";
/* What torch does in Python, for model.js: noise from seeds, weights, products, and the few
   functions between them. Numbers lie in flat Float32Arrays, row after row. */

// ---- Noise: torch's generator, a Mersenne twister (Matsumoto & Nishimura 1998) ------------------

class Generator {
  constructor(seed) {  // a whole number; torch, too, takes its lowest 32 bits
    const s = this.state = new Uint32Array(624);
    s[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < 624; i++) s[i] = Math.imul(1812433253, s[i - 1] ^ s[i - 1] >>> 30) + i;
    this.next = 624;
  }
  bits() {  // the next 32
    const s = this.state;
    if (this.next === 624) {
      for (let i = 0; i < 624; i++) {
        const y = s[i] & 0x80000000 | s[(i + 1) % 624] & 0x7fffffff;
        s[i] = s[(i + 397) % 624] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.next = 0;
    }
    let y = s[this.next++];
    y ^= y >>> 11; y ^= y << 7 & 0x9d2c5680; y ^= y << 15 & 0xefc60000;
    return (y ^ y >>> 18) >>> 0;
  }
  uniform() {  // of 53 bits, in [0, 1)
    const high = this.bits() & 0x1fffff;
    return (high * 2 ** 32 + this.bits()) / 2 ** 53;
  }
  exponential() { return Math.fround(-Math.log1p(-this.uniform())); }
  /** torch.randn(n): pairs of uniform numbers make pairs of normal ones (Box & Muller 1958). */
  normal(n) {
    const x = new Float32Array(n), turn = 2 * Math.PI;
    const block = at => {  // 16 numbers of 24 bits: 8 radii, 8 angles
      for (let j = at; j < at + 8; j++) {
        const radius = Math.sqrt(-2 * Math.log(1 - x[j])), angle = turn * x[j + 8];
        x[j] = radius * Math.cos(angle); x[j + 8] = radius * Math.sin(angle);
      }
    };
    const draw = at => { for (let i = at; i < n; i++) x[i] = (this.bits() & 0xffffff) / 2 ** 24; };
    if (n >= 16) {
      draw(0);
      for (let at = 0; at + 16 <= n; at += 16) block(at);
      if (n % 16) { draw(n - 16); block(n - 16); }  // the last 16 are drawn anew
    } else for (let i = 0; i < n; i += 2) {
      const angle = turn * this.uniform(), radius = Math.sqrt(-2 * Math.log1p(-this.uniform()));
      x[i] = radius * Math.cos(angle);
      if (i + 1 < n) x[i + 1] = radius * Math.sin(angle);
    }
    return x;
  }
}

// ---- Weights, and products with them ------------------------------------------------------------

/** bytes -> {name: {shape, data}}. tensors: [name, shape, kind] of each, in their order. int8 has
    a float32 scale for each row before it; each tensor begins at a multiple of 4 bytes. */
function readWeights(tensors, bytes) {
  const half = Float32Array.from({length: 65536}, (_, h) => {  // what each 16 bits mean
    const sign = h >> 15 ? -1 : 1, exponent = h >> 10 & 31, part = (h & 1023) / 1024;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + part) : 2 ** -14 * part);
  });
  const weights = {};
  let at = bytes.byteOffset;
  const take = (Kind, n) => {
    const found = new Kind(bytes.buffer, at, n);
    at += Math.ceil(found.byteLength / 4) * 4;
    return found;
  };
  for (const [name, shape, kind] of tensors) {
    const n = shape.reduce((a, b) => a * b, 1), data = new Float32Array(n);
    if (kind === "float32") data.set(take(Float32Array, n));
    else if (kind === "float16") {
      const bits = take(Uint16Array, n);
      for (let i = 0; i < n; i++) data[i] = half[bits[i]];
    } else {
      const scale = take(Float32Array, shape[0]), steps = take(Int8Array, n), width = n / shape[0];
      for (let i = 0; i < n; i++) data[i] = steps[i] * scale[Math.floor(i / width)];
    }
    weights[name] = {shape, data};
  }
  return weights;
}

const PANEL = 8;  // outputs that are computed together

/** Rows of a weight (outputs, inputs) -> panels: 8 outputs side by side for each input, so that a
    product reads them in order. Zeros fill up the last panel. */
function panels(weight, inputs, outputs) {
  const packed = new Float32Array(Math.ceil(outputs / PANEL) * PANEL * inputs);
  for (let o = 0; o < outputs; o++) {
    const at = (o - o % PANEL) * inputs + o % PANEL;
    for (let i = 0; i < inputs; i++) packed[at + i * PANEL] = weight[o * inputs + i];
  }
  return packed;
}

/** x (rows, inputs) times packed weights, plus bias -> (rows, wide), wide a multiple of 8. */
const inPlain = {
  keep: (packed, bias) => ({packed, bias}),
  product({packed: w, bias}, x, rows, inputs, wide) {
    const y = new Float32Array(rows * wide);
    for (let p = 0; p < wide; p += PANEL) for (let r = 0; r < rows; r++) {
      let a = bias[p], b = bias[p + 1], c = bias[p + 2], d = bias[p + 3];
      let e = bias[p + 4], f = bias[p + 5], g = bias[p + 6], h = bias[p + 7];
      for (let i = r * inputs, k = p * inputs; i < (r + 1) * inputs; i++, k += PANEL) {
        const v = x[i];
        a += v * w[k]; b += v * w[k + 1]; c += v * w[k + 2]; d += v * w[k + 3];
        e += v * w[k + 4]; f += v * w[k + 5]; g += v * w[k + 6]; h += v * w[k + 7];
      }
      y.set([a, b, c, d, e, f, g, h], r * wide + p);
    }
    return y;
  },
};

/** The same by matmul.c in WebAssembly: weights move into its memory once, numbers in and out. */
function inWasm(bytes) {
  const {memory, product} = new WebAssembly.Instance(new WebAssembly.Module(bytes), {}).exports;
  let used = memory.buffer.byteLength;  // below is the program's own
  const room = end => {
    const missing = Math.ceil((end - memory.buffer.byteLength) / 65536);
    if (missing > 0) memory.grow(missing + 64);
  };
  const put = (numbers, at) => new Float32Array(memory.buffer, at, numbers.length).set(numbers);
  const keep = numbers => {
    const at = used;
    room(used += Math.ceil(numbers.byteLength / 16) * 16);
    put(numbers, at);
    return at;
  };
  return {
    keep: (packed, bias) => ({packed: keep(packed), bias: keep(bias)}),
    product(kept, x, rows, inputs, wide) {
      const from = used, to = from + Math.ceil(x.byteLength / 16) * 16;
      room(to + 4 * rows * wide);
      put(x, from);
      product(from, kept.packed, kept.bias, to, rows, inputs, wide);
      return new Float32Array(memory.buffer, to, rows * wide).slice();
    },
  };
}

// ---- Arithmetic ---------------------------------------------------------------------------------

const join = parts => {
  const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => { all.set(part, at); return at + part.length; }, 0);
  return all;
};

/** The first n numbers of each row of x (rows, width). */
function columns(x, width, n) {
  const y = new Float32Array(x.length / width * n);
  for (let r = 0; r * width < x.length; r++) y.set(x.subarray(r * width, r * width + n), r * n);
  return y;
}

/** (rows, D) and (rows, D) -> (rows, 2 D) */
function beside(a, b, D) {
  const y = new Float32Array(2 * a.length);
  for (let at = 0; at < a.length; at += D) {
    y.set(a.subarray(at, at + D), 2 * at); y.set(b.subarray(at, at + D), 2 * at + D);
  }
  return y;
}

const add = (a, b) => { for (let i = 0; i < a.length; i++) a[i] += b[i]; return a; };

/** The error function to 1e-8: Taylor's polynomial around the nearest of 400 places, where it is
    known from its series 2 / sqrt(pi) e^(-x^2) sum over k of 2^k x^(2k+1) / (1 3 5 ... (2k+1)). */
const PLACES = 64, KNOWN = Array.from({length: 400}, (_, n) => {
  const x = n / PLACES, slope = 2 / Math.sqrt(Math.PI) * Math.exp(-x * x);
  let sum = 0;
  for (let k = 0, term = x; term > 1e-17 * sum; term *= 2 * x * x / (2 * ++k + 1)) sum += term;
  return [slope * sum, slope];
});
const VALUES = Float64Array.from(KNOWN, pair => pair[0]);
const SLOPES = Float64Array.from(KNOWN, pair => pair[1]);
function erf(x) {
  const size = Math.min(Math.abs(x), 6.2), n = Math.round(size * PLACES);
  const at = n / PLACES, h = size - at;
  const value = VALUES[n] + SLOPES[n] * h * (1 + h * (h * (2 * at * at - 1) / 3 - at));
  return x < 0 ? -value : value;
}

const ACTIVATIONS = {
  gelu: x => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  quick_gelu: x => x / (1 + Math.exp(-1.702 * x)),
  relu: x => Math.max(x, 0),
  silu: x => x / (1 + Math.exp(-x)),
};

/** Angles of a sinusoidal embedding, dim / 2 of them, rounded to float32 where torch rounds. */
function sinusoid(position, dim, shift = 0) {
  const half = dim >> 1, f = Math.fround, slope = f(-Math.log(10000));
  return Array.from({length: half}, (_, i) =>
    f(position * f(Math.exp(f(f(slope * i) / f(half - shift))))));
}

/** Softmax attention of q on k and v, a head at a time -> (B, Lq, D). Each of the three is
    [numbers, width of their rows, where in a row they begin]. causal: token i sees 0..i only. */
function attention([q, qw, q0], [k, kw, k0], [v, vw, v0], B, D, heads, causal) {
  const Lq = q.length / qw / B, Lk = k.length / kw / B, d = D / heads;
  const out = new Float32Array(B * Lq * D), share = new Float64Array(Lk);
  for (let b = 0; b < B; b++) for (let h = 0; h < D; h += d) for (let i = 0; i < Lq; i++) {
    const seen = causal ? i + 1 : Lk, row = (b * Lq + i) * qw + q0 + h, to = (b * Lq + i) * D + h;
    let most = -Infinity, sum = 0;
    for (let j = 0; j < seen; j++) {
      let dot = 0;
      for (let c = 0, at = (b * Lk + j) * kw + k0 + h; c < d; c++) dot += q[row + c] * k[at + c];
      share[j] = dot / Math.sqrt(d);
      most = Math.max(most, share[j]);
    }
    for (let j = 0; j < seen; j++) sum += share[j] = Math.exp(share[j] - most);
    for (let j = 0; j < seen; j++) {
      const s = share[j] / sum, at = (b * Lk + j) * vw + v0 + h;
      for (let c = 0; c < d; c++) out[to + c] += s * v[at + c];
    }
  }
  return out;
}

