/* Joints -> how each is turned, which the mannequin and BVH files need: formats/rotations.py,
   trunk.py and ends.py in JavaScript, for one motion of HumanML3D's 22 joints.

     const body = fitBody(joints, pose, fps);   // joints (T, J, 3) in a flat array, metres
     body.world[t][j]                           // 3 x 3, relative to the room; a list of rows
     body.placed[t][j]                          // where this rigid body has the joint
     body.offsets[j]                            // from its parent at rest, in a T-pose

   `pose` is what page.py writes of a TPose: names, parents, children, directions, mirror, hinges,
   forks, spine, levels. The Python says why each step is as it is. */

const SLOW = 0.25, LOW = 0.05, SMOOTH = 0.1, ROLL = 40 * Math.PI / 180;  // ends.py
const SPREAD = 0.25, EASE = 0.06, BENT = [10, 35].map(a => Math.sin(a * Math.PI / 180));
const LOOSE = 0.01, ROUNDS = 5, LEAST = 0.05, SHORT = 0.003, BENDS = 3;  // trunk.py

// ---- Vectors [x, y, z], matrices as three rows, quaternions [w, x, y, z] ------------------------

const plus = (a, b, scale = 1) => a.map((v, k) => v + scale * b[k]);
const minus = (a, b) => plus(a, b, -1);
const inner = (a, b) => a.reduce((sum, v, k) => sum + v * b[k], 0);
const cross = ([a, b, c], [x, y, z]) => [b * z - c * y, c * x - a * z, a * y - b * x];
const sizeOf = v => Math.hypot(...v);
const unitOf = v => { const size = Math.max(sizeOf(v), 1e-9); return v.map(x => x / size); };
const clip = (v, low, high) => Math.min(Math.max(v, low), high);
const column = (m, k) => m.map(row => row[k]);
const transposed = m => [0, 1, 2].map(k => column(m, k));
const applied = (m, v) => m.map(row => inner(row, v));
const composed = (a, b) => {
  const across = transposed(b);
  return a.map(row => across.map(col => inner(row, col)));
};
const total = (values, of = v => v) => values.reduce((sum, v, i) => sum + of(v, i), 0);

/** The shortest rotation from unit vector u to v. */
function between(u, v) {
  const half = plus(u, v), size = sizeOf(half);
  const h = size < 1e-9 ? [u[2], u[0], u[1]] : half.map(x => x / size);
  return [0, 1, 2].map(i => [0, 1, 2].map(
    k => (i === k ? 1 : 0) - 2 * h[i] * h[k] + 2 * v[i] * u[k]));
}

function turnAbout([x, y, z], angle) {
  const c = Math.cos(angle), s = Math.sin(angle), d = 1 - c;
  return [[c + d * x * x, d * x * y - s * z, d * x * z + s * y],
          [d * x * y + s * z, c + d * y * y, d * y * z - s * x],
          [d * x * z - s * y, d * y * z + s * x, c + d * z * z]];
}

function fromQuaternion(q) {
  const [w, x, y, z] = q.map(v => v * Math.SQRT2 / sizeOf(q));
  return [[1 - y * y - z * z, x * y - w * z, x * z + w * y],
          [x * y + w * z, 1 - x * x - z * z, y * z - w * x],
          [x * z - w * y, y * z + w * x, 1 - x * x - y * y]];
}

/** A rotation -> its quaternion with w >= 0. */
function quaternionOf([[a, b, c], [d, e, f], [g, h, i]]) {
  const rows = [[1 + a + e + i, h - f, c - g, d - b], [h - f, 1 + a - e - i, b + d, c + g],
                [c - g, b + d, 1 - a + e - i, f + h], [d - b, c + g, f + h, 1 - a - e + i]];
  const own = rows.map((row, k) => row[k]), best = rows[own.indexOf(Math.max(...own))];
  const size = sizeOf(best) * (best[0] < 0 ? -1 : 1);
  return best.map(v => v / size);
}

/** Eigenvalues and vectors of a symmetric 4 x 4 matrix, largest first, by Jacobi's rotations. */
function eigen(given) {
  const a = given.map(row => row.slice()), v = a.map((_, i) => a.map((_, k) => i === k ? 1 : 0));
  const scale = Math.max(...a.flat().map(Math.abs));
  for (let sweep = 0; sweep < 30; sweep++) {
    let off = 0;
    for (let p = 0; p < 3; p++) for (let q = p + 1; q < 4; q++) {
      off = Math.max(off, Math.abs(a[p][q]));
      const angle = Math.atan2(2 * a[p][q], a[q][q] - a[p][p]) / 2;
      const c = Math.cos(angle), s = Math.sin(angle);
      const mix = (x, y) => [c * x - s * y, s * x + c * y];
      for (let k = 0; k < 4; k++) [a[k][p], a[k][q]] = mix(a[k][p], a[k][q]);
      for (let k = 0; k < 4; k++) [a[p][k], a[q][k]] = mix(a[p][k], a[q][k]);
      for (let k = 0; k < 4; k++) [v[k][p], v[k][q]] = mix(v[k][p], v[k][q]);
    }
    if (off <= 1e-15 * scale) break;
  }
  return [0, 1, 2, 3].map(i => [a[i][i], v.map(row => row[i])]).sort((x, y) => y[0] - x[0]);
}

// ---- Over time ----------------------------------------------------------------------------------

function median(values) {
  const sorted = Float64Array.from(values).sort(), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** Sums of a series weighted by a bell curve of time. */
function spread(values, seconds, fps) {
  const radius = Math.min(Math.ceil(3 * seconds * fps), values.length);
  const bell = k => Math.exp(-0.5 * (k / seconds / fps) ** 2);
  const taps = Array.from({length: radius + 1}, (_, k) => bell(k));
  return values.map((_, t) => {
    let sum = 0;
    for (let k = Math.max(t - radius, 0); k <= Math.min(t + radius, values.length - 1); k++)
      sum += taps[Math.abs(k - t)] * values[k];
    return sum;
  });
}

/** The mean of a series over a bell curve of time. */
function blurred(values, seconds, fps) {
  const whole = spread(values.map(() => 1), seconds, fps);
  return spread(values, seconds, fps).map((v, t) => v / whole[t]);
}

/** Places of an ankle or ball -> 0, in the air, to 1, standing, for each frame. */
function stands(places, fps) {
  const low = Math.min(...places.map(p => p[1])), last = places.length - 1;
  return blurred(places.map((p, t) => {
    const [from, to] = [Math.max(t - 1, 0), Math.min(t + 1, last)];
    const speed = to > from ? sizeOf(minus(places[to], places[from])) * fps / (to - from) : 0;
    return clip(2 - speed / SLOW, 0, 1) * clip(2 - (p[1] - low) / LOW, 0, 1);
  }), SMOOTH, fps);
}

/** Rotations (T) -> quaternions whose signs never jump. */
function continuous(rotations) {
  const turned = rotations.map(quaternionOf);
  for (let t = 1; t < turned.length; t++)
    if (inner(turned[t], turned[t - 1]) < 0) turned[t] = turned[t].map(v => -v);
  return turned;
}

// ---- Bones --------------------------------------------------------------------------------------

/** Bones to left, right and middle -> axes to left, up and forward; null if they define none. */
function forkAxes([left, right, middle]) {
  const across = unitOf(minus(left, right));
  const forward = unitOf(cross(across, minus(middle, plus(left, right).map(v => v / 2))));
  return sizeOf(across) * sizeOf(forward) > 0.5 ? [across, cross(forward, across), forward] : null;
}

function restPose(offsets, {parents}) {
  const places = [];
  offsets.forEach((offset, j) => places.push(j ? plus(places[parents[j]], offset) : offset));
  return places;
}

function measureBones(frames, pose) {
  const lengths = pose.parents.map((parent, j) => j
    ? median(frames.map(places => sizeOf(minus(places[j], places[parent])))) : 0);
  const offsets = pose.directions.map((direction, j) =>
    direction.map(v => v * (lengths[j] + lengths[pose.mirror[j]]) / 2));
  for (const [fork, ...bones] of pose.forks) {
    const seen = frames.map(places => bones.map(j => minus(places[j], places[fork])))
      .map(vectors => [vectors, forkAxes(vectors)]).filter(([, axes]) => axes)
      .map(([vectors, axes]) => vectors.map(vector => applied(axes, vector)));
    if (!seen.length) continue;
    const [left, right, middle] = [0, 1, 2].map(
      b => [0, 1, 2].map(k => median(seen.map(one => one[b][k]))));
    const [x, y, z] = plus(left, [-right[0], right[1], right[2]]).map(v => v / 2);
    [[x, y, z], [-x, y, z], [0, middle[1], middle[2]]].forEach(
      (offset, b) => { offsets[bones[b]] = offset; });
  }
  offsets[0] = [0, 0, 0];
  offsets[0] = [0, -Math.min(...restPose(offsets, pose).map(place => place[1])), 0];
  return offsets;
}

// ---- Pelvis, chest, and the spine between -------------------------------------------------------

/** The rotation and the place that take rest to seen best, with weights, and how far each is off;
    the rotation is null where the joints define none. */
function fitted(rest, seen, weight) {
  const whole = total(weight), share = weight.map(w => w / whole);
  const middle = points => [0, 1, 2].map(k => total(points, (p, i) => share[i] * p[k]));
  const [a, b] = [middle(rest), middle(seen)], around = rest.map(p => minus(p, a));
  const s = [0, 1, 2].map(i => [0, 1, 2].map(
    k => total(around, (p, n) => share[n] * p[i] * (seen[n][k] - b[k]))));
  const [[xx, xy, xz], [yx, yy, yz], [zx, zy, zz]] = s;
  const [[first, q], [second]] = eigen([  // Horn 1987
    [xx + yy + zz, yz - zy, zx - xz, xy - yx], [yz - zy, xx - yy - zz, xy + yx, zx + xz],
    [zx - xz, xy + yx, yy - xx - zz, yz + zy], [xy - yx, zx + xz, yz + zy, zz - xx - yy]]);
  const size = total(around, (p, i) => share[i] ** 2 * inner(p, p));
  const rotation = (first - second) / 2 > 1e-6 * size + 1e-12 ? fromQuaternion(q) : null;
  return {rotation, place: turn => minus(b, applied(turn, a)), away(turn) {
    const place = this.place(turn);
    return rest.map((p, i) => sizeOf(minus(plus(applied(turn, p), place), seen[i])));
  }};
}

/** Sets world and targets of a fork, in every frame, as its four joints are best met. */
function placeFork([fork, ...bones], offsets, targets, world) {
  const rest = [[0, 0, 0], ...bones.map(j => offsets[j])];
  let last = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
  targets.forEach((places, t) => {
    const seen = [fork, ...bones].map(j => places[j]);
    let weight = [1, 1, 1, 1], fit = fitted(rest, seen, weight);
    let turn = last = fit.rotation ?? last, away = fit.away(turn);
    const power = clip(Math.max(...away) / LOOSE - 1, 0, 1);
    for (let round = 0; round < ROUNDS && power > 0; round++) {  // who is far off counts more
      weight = weight.map((w, i) => w * away[i] ** power);
      const most = Math.max(...weight);
      weight = weight.map(w => Math.max(w / most, LEAST));
      fit = fitted(rest, seen, weight); turn = fit.rotation ?? turn; away = fit.away(turn);
    }
    world[t][fork] = turn; places[fork] = fit.place(turn);
  });
}

/** Moves the targets of a chain that begins at `start` so that its last joint is met, by FABRIK. */
function reach(start, places, joints, lengths) {
  const chain = [start, ...joints.map(j => places[j])];
  const misses = (length, i) => Math.abs(sizeOf(minus(chain[i + 1], chain[i])) - length) > SHORT;
  if (!lengths.some(misses)) return;
  const goal = chain.at(-1), pull = (i, towards, length) => {
    chain[i] = plus(chain[towards], unitOf(minus(chain[i], chain[towards])), length);
  };
  for (let round = 0; round < BENDS; round++) {
    chain[joints.length] = goal;
    for (let i = joints.length - 1; i >= 0; i--) pull(i, i + 1, lengths[i]);
    chain[0] = start;
    lengths.forEach((length, i) => pull(i + 1, i, length));
  }
  joints.forEach((j, i) => { places[j] = chain[i + 1]; });
}

// ---- Limbs --------------------------------------------------------------------------------------

/** How far a limb is twisted about its upper bone in each frame; see _twist_of_hinges. */
function twists(upper, lower, axis, isLeg, fps) {
  const angles = upper.map((u, t) => {
    const bend = cross(u, lower[t]), size = sizeOf(bend), along = inner(u, lower[t]);
    const x = inner(bend, axis[t]), y = inner(bend, cross(u, axis[t])), [low, high] = BENT;
    let weight = along < 0 ? 1 : clip((size - low) / (high - low), 0, 1);
    if (isLeg && x < -0.3 * size && along >= 0.5) weight = 0;  // overstretched
    const scale = weight / Math.max(size, 1e-9);
    return {along, weight, x: x * scale, y: y * scale};
  });
  const average = () => {
    const [x, y, w] = ["x", "y", "weight"].map(key => spread(angles.map(a => a[key]), SPREAD, fps));
    return w.map((v, t) => [(x[t] + 0.02) / (v + 0.02), y[t] / (v + 0.02)]);
  };
  average().forEach(([x, y], t) => {
    const one = angles[t];
    if (one.x * x + one.y * y < -0.3 * one.weight * Math.hypot(x, y) && one.along > 0.7)
      one.weight = 0;
    if (!(one.weight > 0)) one.x = one.y = 0;
  });
  let before = 0;
  const angle = average().map(([x, y], t) => {
    const {weight, x: ownX, y: ownY} = angles[t];
    const now = Math.atan2(ownY + (1 - weight) * y, ownX + (1 - weight) * x);
    return before = t ? now + 2 * Math.PI * Math.round((before - now) / 2 / Math.PI) : now;
  });
  if (isLeg) return angle;
  const slow = blurred(angle, EASE, fps);
  return angle.map((v, t) => v + (1 - angles[t].weight) * (slow[t] - v));
}

function rollFoot(turned, direction, share) {
  const bone = applied(turned, direction), side = column(turned, 0), level = [bone[2], 0, -bone[0]];
  const angle = Math.atan2(inner(cross(side, level), bone), inner(side, level));
  if (Math.abs(angle) >= 2 * ROLL) return turned;
  const less = share * clip(3 * sizeOf(level) - 1, 0, 1);
  return composed(turnAbout(bone, clip(angle, -ROLL, ROLL) * less), turned);
}

function layToes(foot, share) {
  const up = column(foot, 1), flat = share * clip(2 * up[1], 0, 1);
  return composed(between(up, unitOf(plus(up, minus([0, 1, 0], up), flat))), foot);
}

function steadyHead(neck, chest, fps) {
  const turned = continuous(neck.map((m, t) => composed(transposed(chest[t]), m)));
  const smooth = [0, 1, 2, 3].map(k => spread(turned.map(q => q[k]), SMOOTH, fps));
  return chest.map((m, t) => composed(m, fromQuaternion(smooth.map(series => series[t]))));
}

// ---- The body -----------------------------------------------------------------------------------

function fitBody(joints, pose, fps) {
  const {names, parents, children, levels, forks, spine} = pose, J = parents.length;
  const frames = Array.from({length: joints.length / 3 / J}, (_, t) => Array.from({length: J},
    (_, j) => Array.from(joints.subarray(3 * (t * J + j), 3 * (t * J + j) + 3))));
  const offsets = measureBones(frames, pose), lengths = offsets.map(sizeOf);
  const directions = offsets.map((v, j) => lengths[j] > 1e-9 ? unitOf(v) : pose.directions[j]);
  const world = frames.map(() => []), placed = frames.map(() => []), targets = frames;
  const moving = levels.slice(1);
  for (const level of moving.slice().reverse()) for (const j of level) {  // misfits are shared
    if (children[j].length !== 1) continue;
    const [next] = children[j];
    for (const places of targets) {
      const bone = minus(places[next], places[j]);
      places[j] = plus(places[j], bone, 0.5 * (1 - lengths[next] / Math.max(sizeOf(bone), 1e-9)));
    }
  }
  for (const fork of forks) placeFork(fork, offsets, targets, world);
  const [[pelvis], [chest]] = forks, [first, ...rest] = [...spine, chest];
  const spineTurns = targets.map((places, t) => {
    const start = plus(places[pelvis], applied(world[t][pelvis], offsets[first]));
    reach(start, places, rest, rest.map(j => lengths[j]));
    const [w, ...v] = quaternionOf(composed(transposed(world[t][pelvis]), world[t][chest]));
    const angle = 2 * Math.atan2(sizeOf(v), w);
    return spine.map((_, i) => composed(world[t][pelvis],
      turnAbout(unitOf(v), angle * (i + 1) / (spine.length + 1))));
  });
  placed.forEach((places, t) => { places[pelvis] = targets[t][pelvis]; });
  for (const level of moving) for (const j of level) {
    const series = of => frames.map((_, t) => of(t)), parent = parents[j], [next] = children[j];
    placed.forEach((places, t) => {
      places[j] = plus(places[parent], applied(world[t][parent], offsets[j]));
    });
    if (children[j].length > 1) continue;  // a fork
    let turned = series(t => world[t][parent]);
    if (next === undefined) {
      if (names[j].endsWith("foot")) {
        const share = stands(series(t => targets[t][j]), fps);
        turned = turned.map((m, t) => layToes(m, share[t]));
      } else if (names[j] === "head")
        turned = steadyHead(turned, series(t => world[t][chest]), fps);
    } else {
      if (spine.includes(j)) turned = series(t => spineTurns[t][spine.indexOf(j)]);
      turned = turned.map((before, t) => {
        const now = applied(before, directions[next]);
        const bone = plus(minus(targets[t][next], placed[t][j]), now, 1e-8);
        return composed(between(now, unitOf(bone)), before);
      });
      const axis = pose.hinges[j];
      if (axis) {
        const [end] = children[next], upper = turned.map(m => applied(m, directions[next]));
        const lower = upper.map((u, t) =>
          unitOf(minus(targets[t][end], plus(placed[t][j], u, lengths[next]))));
        const angle = twists(upper, lower, turned.map(m => applied(m, axis)),
                             names[j].endsWith("hip"), fps);
        turned = turned.map((m, t) => composed(m, turnAbout(directions[next], angle[t])));
      }
      if (names[j].endsWith("ankle")) {
        const share = stands(series(t => targets[t][next]), fps);
        turned = turned.map((m, t) => rollFoot(m, directions[next], share[t]));
      }
    }
    turned.forEach((m, t) => { world[t][j] = m; });
  }
  return {offsets, world, placed};
}
