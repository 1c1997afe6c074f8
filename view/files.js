/* What becomes of a motion that model.js made: the player's data, and files to keep.

     packed(made, header, "a man jumps", "seed 7")     as _pack and skin.py have it in Python
     FILES.bvh(made, header), FILES.npy(made, header)  the bytes of a file

   made: what MLD.generate gives, with joints (T, J, 3) in metres. turns.js has the rotations. */

const base64 = numbers => {
  const bytes = new Uint8Array(numbers.buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8190)
    text += btoa(String.fromCharCode(...bytes.subarray(at, at + 8190)));
  return text;
};

// ---- The player ---------------------------------------------------------------------------------

function packed({joints, frames}, header, caption, title) {
  const {body, fps, pose, mesh} = header, J = header.parents.length, size = J + body.tips.length;
  const points = new Float32Array(frames * size * 3), [x0, , z0] = joints;
  for (let t = 0; t < frames; t++) {
    const place = j => [0, 1, 2].map(k => joints[3 * (t * J + j) + k] - [x0, 0, z0][k]);
    for (let j = 0; j < J; j++) points.set(place(j), 3 * (t * size + j));
    body.tips.forEach(([j, length], i) => {  // crown and hands, in the direction of their bone
      const [a, b] = [place(header.parents[j]), place(j)], along = b.map((v, k) => v - a[k]);
      const scale = length / Math.max(Math.hypot(...along), 1e-6);
      points.set(b.map((v, k) => v + scale * along[k]), 3 * (t * size + J + i));
    });
  }
  const scale = Math.max(points.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-3)) / 32767;
  return {caption, title, fps, frames, bones: body.bones, feet: body.feet, scale,
          positions: base64(Int16Array.from(points, v => Math.round(v / scale))),
          contacts: standing(points, size, frames, body.feet, fps),
          ...mesh && turnsOf(fitBody(joints, pose, fps), pose, mesh)};
}

/** A hexadecimal digit a frame: which of the four ends of the feet move slower than 0.25 m/s and
    lie within 12 cm of their lowest point. */
function standing(points, size, frames, feet, fps) {
  const at = (t, j) => points.subarray(3 * (t * size + j), 3 * (t * size + j) + 3);
  const lowest = feet.map(j => {
    let low = Infinity;
    for (let t = 0; t < frames; t++) low = Math.min(low, at(t, j)[1]);
    return low;
  });
  return Array.from({length: frames}, (_, t) => {
    const [from, to] = [Math.max(t - 1, 0), Math.min(t + 1, frames - 1)];
    const bits = feet.map((j, i) => {
      const speed = Math.hypot(...at(to, j).map((v, k) => v - at(from, j)[k])) * fps / (to - from);
      return speed < 0.25 && at(t, j)[1] < lowest[i] + 0.12 ? 1 << i : 0;
    });
    return bits.reduce((a, b) => a | b, 0).toString(16);
  }).join("");
}

/** A body of turns.js -> the `turns` and `sizes` that mannequin.js reads. */
function turnsOf({world, offsets}, pose, {rest}) {
  const own = restPose(offsets, pose), tall = places => Math.max(...places.map(p => p[1]));
  const bone = (places, a, b) => sizeOf(minus(places[b], places[a]));
  const thick = tall(own) / tall(rest);
  const sizes = pose.children.map((bones, j) => bones.length === 1
    ? bone(own, j, bones[0]) / Math.max(bone(rest, j, bones[0]), 1e-6) : thick);
  const turns = world.flatMap(row => row.flatMap(
    m => quaternionOf(m).slice(1).map(v => Math.round(32767 * v))));
  return {turns: base64(Int16Array.from(turns)), sizes: [thick, ...sizes]};
}

// ---- Files --------------------------------------------------------------------------------------

/** As numpy writes it: joints (T, J, 3), metres, float32. */
function npy({joints, frames}, {parents}) {
  const shape = `(${frames}, ${parents.length}, 3)`, start = "\x93NUMPY\x01\0";
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': ${shape}, }`;
  const length = Math.ceil((text.length + 11) / 64) * 64 - 10;
  const head = start + String.fromCharCode(length & 255, length >> 8) + text.padEnd(length - 1)
    + "\n";
  return new Blob([Uint8Array.from(head, c => c.charCodeAt(0)), joints]);
}

/** Degrees about Z, X, Y of local rotations (T), each the nearest to the frame before. */
function eulerAngles(rotations) {
  const full = 2 * Math.PI, near = (v, to) => v + full * Math.round((to - v) / full);
  let last = null;
  return rotations.map(m => {
    const b = Math.asin(clip(m[2][1], -1, 1));
    let angles = [Math.atan2(-m[0][1], m[1][1]), b, Math.atan2(-m[2][0], m[2][2])];
    if (Math.hypot(m[2][0], m[2][2]) < 1e-4) {  // only a + c or a - c is known
      const c = last ? last[2] : 0;
      angles = [Math.atan2(m[1][0], m[0][0]) - Math.sign(b) * c, b, c];
    }
    if (last) {
      const other = [angles[0] + Math.PI, Math.PI - b, angles[2] + Math.PI];
      const [one, two] = [angles, other].map(row => row.map((v, k) => near(v, last[k])));
      const gap = row => total(row, (v, k) => (v - last[k]) ** 2);
      angles = gap(two) < gap(one) ? two : one;
    }
    return last = angles;
  }).map(row => row.map(v => v * 180 / Math.PI));
}

/** As write_bvh of formats/bvh_writer.py: rotations only, metres. */
function bvh({joints, frames}, {pose, fps}) {
  const {offsets, world, placed} = fitBody(joints, pose, fps), {children, parents} = pose;
  const lines = ["HIERARCHY"], columns = [placed.map(row => row[0])];
  const row = numbers => numbers.map(v => v.toFixed(6)).join(" ");
  const write = (j, pad) => {
    columns.push(eulerAngles(world.map(turned => j
      ? composed(transposed(turned[parents[j]]), turned[j]) : turned[j])));
    const channels = j ? "3" : "6 Xposition Yposition Zposition";
    lines.push(`${pad}${j ? "JOINT" : "ROOT"} ${pose.mixamo[j]}`, `${pad}{`,
               `${pad}  OFFSET ${row(offsets[j])}`,
               `${pad}  CHANNELS ${channels} Zrotation Xrotation Yrotation`);
    for (const child of children[j]) write(child, `${pad}  `);
    if (!children[j].length) lines.push(`${pad}  End Site`, `${pad}  {`,
      `${pad}    OFFSET ${row(pose.ends[j])}`, `${pad}  }`);
    lines.push(`${pad}}`);
  };
  write(0, "");
  lines.push("MOTION", `Frames: ${frames}`, `Frame Time: ${(1 / fps).toFixed(8)}`,
             ...world.map((_, t) => row(columns.flatMap(series => series[t]))));
  return new Blob([lines.join("\n"), "\n"]);
}

/** As write_glb of formats/glb.py: the mannequin, and the motion as its animation. Feet are not
    locked, and the mesh is the player's, which is coarser. */
function glb({joints, frames}, {pose, fps, mesh}, name) {
  const {offsets, world, placed} = fitBody(joints, pose, fps), {children, parents} = pose;
  const decoded = (text, Kind = Uint8Array) =>
    new Kind(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
  const json = {asset: {version: "2.0", generator: "nanoMLD"}, scene: 0, accessors: [],
                bufferViews: []};
  const parts = [], kinds = {Float32Array: 5126, Uint16Array: 5123, Uint8Array: 5121};
  let size = 0;
  const array = (numbers, type, {target, limits, ...more} = {}) => {  // the number of its accessor
    const width = {SCALAR: 1, VEC3: 3, VEC4: 4, MAT4: 16}[type], rest = -numbers.byteLength & 3;
    const view = {buffer: 0, byteOffset: size, byteLength: numbers.byteLength};
    if (target) view.target = target;
    const found = most => Array.from({length: width}, (_, k) => numbers.reduce(
      (best, v, i) => i % width === k ? most(best, v) : best, most()));
    if (limits) Object.assign(more, {min: found(Math.min), max: found(Math.max)});
    parts.push(numbers, new Uint8Array(rest)); size += numbers.byteLength + rest;
    return json.accessors.push({bufferView: json.bufferViews.push(view) - 1, type,
      count: numbers.length / width, componentType: kinds[numbers.constructor.name], ...more}) - 1;
  };
  const floats = (rows, type, more) => array(Float32Array.from(rows.flat()), type, more);
  const own = restPose(offsets, pose), vertex = {target: 34962};

  const moves = decoded(mesh.joints), weights = decoded(mesh.weights);
  const points = Float32Array.from(decoded(mesh.points, Int16Array), v => v * mesh.scale);
  for (let i = 0; i < weights.length; i++) {  // the skin of a body whose bones are these
    const j = moves[i], v = 3 * (i >> 2), share = weights[i] / 255;
    for (let k = 0; k < 3; k++) points[v + k] += share * (own[j][k] - mesh.rest[j][k]);
  }
  const normals = decoded(mesh.normals, Int8Array), accent = decoded(mesh.accent);
  const attributes = {
    POSITION: array(points, "VEC3", {...vertex, limits: true}),
    NORMAL: floats(Array.from({length: accent.length},
      (_, v) => unitOf(Array.from(normals.subarray(3 * v, 3 * v + 3)))), "VEC3", vertex),
    JOINTS_0: array(moves.map((j, i) => weights[i] ? j : 0), "VEC4", vertex),
    WEIGHTS_0: array(weights, "VEC4", {...vertex, normalized: true})};
  const faces = [[], []], quads = decoded(mesh.quads, Uint16Array);
  for (let q = 0; q < quads.length; q += 4) {
    const [a, b, c, d] = quads.subarray(q, q + 4);
    faces[accent[a] && accent[b] && accent[c] && accent[d] ? 1 : 0].push(a, b, c, a, c, d);
  }
  json.materials = [["Body", [0.60, 0.64, 0.70, 1]], ["Accent", [0.10, 0.22, 0.42, 1]]].map(
    ([name, baseColorFactor]) => ({name, pbrMetallicRoughness: {
      baseColorFactor, metallicFactor: 0, roughnessFactor: 0.6}}));
  json.meshes = [{name: "Mannequin", primitives: faces.map((corners, material) => ({attributes,
    material, indices: array(Uint16Array.from(corners), "SCALAR", {target: 34963})}))}];
  json.nodes = offsets.map((translation, j) => ({name: pose.mixamo[j], translation,
    ...children[j].length && {children: children[j]}}));
  json.scenes = [{nodes: [0, json.nodes.push({name: "Mannequin", mesh: 0, skin: 0}) - 1]}];
  json.skins = [{skeleton: 0, joints: offsets.map((_, j) => j), inverseBindMatrices: floats(
    own.map(([x, y, z]) => [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, -x, -y, -z, 1]), "MAT4")}];

  const input = floats(world.map((_, t) => [t / fps]), "SCALAR", {limits: true});
  const animation = {name, channels: [], samplers: []};
  const track = (node, path, output) => animation.channels.push({target: {node, path},
    sampler: animation.samplers.push({input, output, interpolation: "LINEAR"}) - 1});
  track(0, "translation", floats(placed.map(row => row[0]), "VEC3"));
  offsets.forEach((_, j) => track(j, "rotation", floats(continuous(world.map(turned => j
    ? composed(transposed(turned[parents[j]]), turned[j]) : turned[j])
  ).map(([w, ...v]) => [...v, w]), "VEC4")));
  json.animations = [animation];
  json.buffers = [{byteLength: size}];
  const text = new TextEncoder().encode(JSON.stringify(json)), gap = -text.length & 3;
  const head = (...numbers) => Uint32Array.from(numbers), long = text.length + gap;
  return new Blob([head(0x46546c67, 2, 28 + long + size, long, 0x4e4f534a), text, " ".repeat(gap),
                   head(size, 0x004e4942), ...parts]);  // "glTF", "JSON", "BIN"
}

const FILES = {glb, bvh, npy};
