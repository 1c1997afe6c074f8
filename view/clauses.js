"use strict";
/* What a prompt asks for one after the other, as clauses.py says it, and the motion that follows.

     const clauses = new Clauses(data);         data: what clauses_of of page.py wrote
     clauses.parts("walk, then sit down")       ["walk", "sit down"]
     tale(mld, ["walk", "sit down"], {seed})    one motion, joined as in story.py */

const BOUND = `(?:${START}(?=${LETTER})|(?<=${LETTER})${END})`;  // Python's \b

class Clauses {
  constructor({sets, one, patterns, most, longest, names}) {
    const asSets = lists => lists.map(list => new Set(list));
    for (const [name, words] of Object.entries(sets)) this[name] = new Set(words);
    for (const [name, source] of Object.entries(patterns))
      this[name] = new RegExp(source.replaceAll("\\b", BOUND), name === "FRONT" ? "ius" : "giu");
    Object.assign(this, {one: one.map(asSets), most, longest, names});
  }

  isAny(word, those) { return [word, ...stems(word)].some(form => those.has(form)); }
  words(text) { return text.toLowerCase().match(this.WORD) || []; }

  /** The actions of a text, in order. */
  acts(text) {
    const found = this.words(text);
    const some = [...found.keys()].filter(i => this.isAny(found[i], this.ACTIONS)
      && !(this.isAny(found[i], this.GETS) && found.slice(i + 1, i + 4).includes("bed"))
      || this.isAny(found[i], this.MOVES) && this.WHERE.has(found[i + 1]));
    const real = some.filter(i => !this.isThing(found[i - 1], found[i], found[i + 1]));
    return (real.length ? real : some).map(i => found[i]);  // "a hook" alone is one
  }

  /** Whether a word between two others is no action beside one: the answer, a waiting room, is
      called. */
  isThing(before, word, after) {
    return this.ARTICLES.has(before)
      && (this.isAny(word, this.THINGS) || word.endsWith("ing") && after !== undefined)
      || this.PASSIVE.has(before) && word.endsWith("ed");
  }

  /** Whether a text begins with an action, perhaps after its subject, of which so many words need
      not be known. */
  begins(text, names = 0) {
    const found = this.words(text), sets = [this.ACTIONS, this.MOVES, this.BEGINS];
    let others = 0;
    for (const [i, word] of found.entries()) {
      const first = sets.some(set => this.isAny(word, set))
        || found[i + 1] === "down" && this.isAny(word, new Set(["slow"]))
        || this.isAny(word, this.KEEPS)
          && found.slice(i + 1, i + 3).some(one => this.isAny(one, this.GAITS));
      if (first && !this.isThing(found[i - 1], word, found[i + 1]))
        return this.acts(text).length > 0 && (!others || word.endsWith("s"));
      if (!this.BETWEEN.has(word) && ++others > names) return false;
    }
    return false;
  }

  /** Whether a clause is an action by itself, and not the beginning of what follows. */
  isWhole(text) {
    const action = this.acts(text).at(-1), found = this.words(text);
    if (this.isAny(action, new Set(["turn", "step"])))
      return text.search(this.ASIDE) >= 0 && !found.some(word => this.isAny(word, this.PARTS));
    return !this.isAny(action, this.PREPARES)
      || this.isAny(action, this.RISES) && found.includes("up");
  }

  /** Whether two clauses tell of one motion. */
  oneMotion(a, b, then) {
    const first = this.acts(a).at(-1), [second] = this.acts(b), found = this.words(b);
    const is = (word, set) => this.isAny(word, set);
    const rises = is(second, this.RISES)
      && (found.includes("up") || is(second, new Set(["rise", "rose"])));
    if (is(first, this.RESTS) && this.words(a).includes("down") && rises
        && b.search(this.TIMES) < 0) return false;
    if (is(second, this.ENDS)
        || found.includes("back") && (is(second, this.RISES) || is(second, new Set(["bring"]))))
      return true;
    if (this.acts(a).every(word => is(word, new Set(["stand"]))) && !this.words(a).includes("up"))
      return true;
    if (then) return is(first, this.one[0][0]) && is(second, this.one[0][1]);
    if (is(second, this.RISES) && !rises || this.one.some(
      ([one, two]) => is(first, one) && this.acts(b).some(word => is(word, two)))) return true;
    const same = new Set([first, ...stems(first)]);
    return second.endsWith("ing") && !this.acts(a).every(word => word.endsWith("ing"))
        && !found.slice(0, found.indexOf(second)).some(
          word => is(word, this.BEGINS) || is(word, this.KEEPS))
      || !this.isWhole(a)
      || found.slice(0, 3).some(word => is(word, this.KEEPS)) && is(second, same);
  }

  /** Split a text at the commas and "and"s that an action follows. */
  listed(text) {
    if (text.search(this.TOGETHER) >= 0) return [text];
    let found = [text], at = 0;
    for (const {0: link, index} of text.matchAll(this.JOINT)) {
      const a = found.at(-1).slice(0, index - at), b = text.slice(index + link.length);
      const [rest] = b.split(this.JOINT);
      if (this.acts(a).length && a.search(this.WHEN) !== 0 && this.begins(rest)
          && !this.oneMotion(a, rest, false)) {
        found = [...found.slice(0, -1), a, b];
        at = index + link.length;
      }
    }
    return found;
  }

  /** The two parts of "sits down after walking", as they are done; [text] if there are not two. */
  ordered(text) {
    const front = text.match(this.FRONT), after = text.split(this.AFTER);
    const before = text.split(this.BEFORE), two = parts => parts.length === 2
      && this.acts(parts[0]).length && this.begins(parts[1]);
    if (front && this.begins(front[2]) && this.begins(front[3], this.names))
      return front[1].toLowerCase() === "after" ? [front[2], front[3]] : [front[3], front[2]];
    return two(after) ? after.reverse() : two(before) ? before : [text];
  }

  /** The parts of a prompt, in their order; [text] where it asks for one thing. */
  parts(text) {
    const whole = text;
    if ([...text].length > this.longest || text.search(this.NEGATED) >= 0) return [whole];
    text = text.trim();
    if (new Set(this.words(text)).size === 1) return [whole];
    if (["1. ", "1) ", "(1) "].some(begin => text.startsWith(begin)))
      text = text.replace(this.ITEM, ". ").slice(2);
    const links = [...text.matchAll(this.THEN)].map(
      ({0: link, index}) => [index, index + link.length]);
    const ends = [[0, 0], ...links, [text.length, text.length]];
    const spans = ends.slice(1).map(([stop], i) => [ends[i][1], stop]);
    const [begin, ...rest] = spans.map(span => text.slice(...span));
    if (!this.acts(begin).length || !rest.every(piece => this.begins(this.ordered(piece)[0])))
      return [whole];
    const joined = [];
    let first = 0;
    rest.forEach((piece, i) => {
      const before = text.slice(first, spans[i][1]);
      if (!this.oneMotion(before, piece, true)) { joined.push(before); first = spans[i + 1][0]; }
    });
    const found = [...joined, text.slice(first)].flatMap(piece => this.ordered(piece)).flatMap(
      part => this.listed(part)).map(
      part => part.replace(this.FIRST, "")
        .replace(/^[ \t\n,;.!?\uff0c]+|[ \t\n,;.!?\uff0c]+$/g, ""));
    found.forEach((part, i) => {  // who has turned round and walks back walks forward
      const [act] = this.acts(part);
      if (this.isAny(act, this.GAITS) && found.slice(0, i).some(one => one.search(this.ROUND) >= 0))
        found[i] = part.replace(
          new RegExp(`${BOUND}(${act})\\s+back${BOUND}(?!\\s+and${BOUND})`, "giu"), "$1");
    });
    return found.length > 1 && found.length <= this.most ? found : [whole];
  }
}

// ---- One motion of several ----------------------------------------------------------------------

const SHARED = 10;  // frames that neighbours have in common
const NEXT = 1_000_003;  // from a part's seed to the next one's
const CLOSE = 0.15;  // metres: sample.py changes what does not meet so nearly
const TRIED = 16, OTHER = 997 * NEXT;  // motions of each part, from one's seed to the next one's
const AT_ONCE = 8;  // parts that are chosen together

/** Joints b (T, J, 3) turned about Y and moved over the floor to lie on the end of a. */
function laidOn(b, a, J) {
  const n = SHARED * J, end = a.length - 3 * n, mean = (x, from, k) => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += x[from + 3 * i + k];
    return sum / n;
  };
  const [ax, az, bx, bz] = [mean(a, end, 0), mean(a, end, 2), mean(b, 0, 0), mean(b, 0, 2)];
  let across = 0, along = 0;
  for (let i = 0; i < 3 * n; i += 3) {
    const [x, z, u, v] = [a[end + i] - ax, a[end + i + 2] - az, b[i] - bx, b[i + 2] - bz];
    across += x * v - z * u; along += x * u + z * v;
  }
  const size = Math.hypot(across, along) || 1, s = across / size, c = along / size || +!across;
  const laid = new Float64Array(b);
  for (let i = 0; i < b.length; i += 3) {
    const u = b[i] - bx, v = b[i + 2] - bz;
    laid[i] = c * u + s * v + ax; laid[i + 2] = c * v - s * u + az;
  }
  return laid;
}

/** Metres between the joints in the middle of what two motions share: the mean. */
function gap(a, b, J) {
  const start = 3 * J * (SHARED >> 1);
  let sum = 0;
  for (let i = start; i < start + 3 * J; i += 3)
    sum += Math.hypot(a[i] - b[i], a[i + 1] - b[i + 1], a[i + 2] - b[i + 2]);
  return sum / J;
}

/** The joints a of SHARED frames that become b: each bone turns from one to the other, and keeps
    the length that it has in a. */
function blended(a, b, parents) {
  const J = parents.length, placed = new Float64Array(a);
  const direction = v => v.map(x => x / Math.max(Math.hypot(...v), 1e-9));
  for (let t = 0; t < SHARED; t++) {
    const u = (t + 1) / (SHARED + 1), share = u * u * (3 - 2 * u), root = 3 * t * J;
    for (let k = 0; k < 3; k++) placed[root + k] += share * (b[root + k] - a[root + k]);
    for (let j = 1; j < J; j++) {
      const own = root + 3 * j, parent = root + 3 * parents[j];
      const bone = from => [0, 1, 2].map(k => from[own + k] - from[parent + k]);
      const [one, two] = [bone(a), bone(b)], [from, to] = [direction(one), direction(two)];
      const way = direction(from.map((v, k) => v * (1 - share) + to[k] * share));
      way.forEach((v, k) => { placed[own + k] = placed[parent + k] + v * Math.hypot(...one); });
    }
  }
  return placed;
}

/** Frames of parts whose own lengths were drawn; about in these shares of `total`, if it is not 0.
    As lengths_of of story.py. */
function sharesOf(drawn, total, longest) {
  const least = 2 * SHARED, most = drawn.map((_, k) => longest - (k ? SHARED : 0));
  if (!total) return drawn.map((n, k) => Math.max(Math.min(n, most[k]), least));
  const shares = drawn.map(() => least), all = drawn.map((_, k) => k);
  for (let left = total - least * drawn.length; left > 0; left--) {
    const room = all.filter(k => shares[k] < most[k]);
    const lack = k => shares[k] / drawn[k];
    shares[(room.length ? room : all).reduce((a, b) => lack(b) < lack(a) ? b : a)] += 1;
  }
  return shares;
}

/** starts (K) and costs [(K) of each of K] of neighbours -> which one of K tries each part takes,
    so that their sum is least. As best_chain of story.py. */
function bestChain(starts, costs) {
  const least = row => row.reduce((best, v, i) => v < row[best] ? i : best, 0), ways = [];
  let sums = starts;
  for (const cost of costs) {
    const all = cost[0].map((_, to) => sums.map((sum, from) => sum + cost[from][to]));
    ways.push(all.map(least));
    sums = all.map(row => Math.min(...row));
  }
  return ways.reduceRight((chain, way) => [way[chain[0]], ...chain], [least(sums)]);
}

/** Parts of a prompt that are done one after the other -> what MLD.generate returns, of all. Of
    the tries of each part those are taken that meet best. As story of story.py, without its
    handshake. */
function tale(mld, parts, {seed = 1234, frames = 0, ...settings} = {}) {
  const {header, book} = mld, {max_frames: longest} = mld.config.data, J = header.parents.length;
  if (frames && frames < 2 * SHARED * parts.length)
    throw new Error(`${parts.length} things one after the other need at least ${
      2 * SHARED * parts.length / header.fps} s.`);
  const reports = parts.map(part => book.understand(part));
  const drawn = reports.map(({text}, i) => mld.drawLength(mld.encode(text), seed + NEXT * i));
  const shares = sharesOf(drawn, frames, longest), n = 3 * J * SHARED;
  const tries = (part, i) => Array.from({length: TRIED}, (_, way) => mld.generate(part, {
    ...settings, seed: seed + NEXT * i + OTHER * way, bones: null,
    frames: Math.min(shares[i] + (i ? SHARED : 0), Math.max(longest, shares[i]))}).joints);
  const apart = (a, b) => gap(a.subarray(a.length - n), laidOn(b.subarray(0, n), a, J), J);
  const between = (ones, others) => ones.map(a => others.map(b => apart(a, b) ** 2));
  let whole = null, far = 0, last = null;
  for (let at = 0; at < parts.length; at += AT_ONCE) {
    const made = parts.slice(at, at + AT_ONCE).map((part, k) => tries(part, at + k));
    const starts = last ? between([last], made[0])[0] : made[0].map(() => 0);
    const taken = bestChain(starts, made.slice(1).map((more, k) => between(made[k], more)));
    for (const free of made.map((ways, k) => ways[taken[k]])) {
      if (last) far = Math.max(far, apart(last, free));
      last = free;
      const joints = Float64Array.from(keepBones(free, header.bones, header.parents));
      if (!whole) { whole = joints; continue; }
      const laid = laidOn(joints, whole, J), end = whole.length - n;
      const seam = blended(whole.subarray(end), laid.subarray(0, n), header.parents);
      const longer = new Float64Array(whole.length + laid.length - n);
      longer.set(whole); longer.set(seam, end); longer.set(laid.subarray(n), end + n);
      whole = longer;
    }
  }
  const all = key => Object.assign({}, ...reports.map(report => report[key]));
  const report = {text: reports.map(({text}) => text).join(", "), texts: parts, parts: shares,
                  spelled: all("spelled"), taken: all("taken"), says: true,
                  unknown: [...new Set(reports.flatMap(({unknown}) => unknown))],
                  notes: far > CLOSE ? ["One part does not begin as the one before it ends: "
                    + "sample.py and studio.py join them better."] : []};
  return {joints: Float32Array.from(whole), frames: whole.length / 3 / J, seed, report};
}

/** The parts of a prompt that `tale` takes; null where it asks for one thing, or where the model
    understands nothing of a part. As taken_apart of clauses.py. */
function takenApart(mld, text) {
  const {spelled} = mld.book.understand(text);
  const right = text.replace(WORDS, 
    word => Object.hasOwn(spelled, word.toLowerCase()) ? spelled[word.toLowerCase()] : word);
  const parts = mld.clauses ? mld.clauses.parts(right) : [];
  return parts.length > 1 && parts.every(part => mld.book.understand(part).says)
    ? [parts, spelled] : null;
}
const WORDS = /[\p{L}\p{N}_]+/gu;
