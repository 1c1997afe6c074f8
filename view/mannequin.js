/* The mannequin: a skin whose corners follow the joints (linear blend skinning).

     const mannequin = new Mannequin(mesh);        // as _mesh of render.py writes it
     mannequin.bend(motion, palette);              // sets .corners from the motion's .pose, .turned
     const raster = new Raster();                  // without a graphics card:
     raster.draw(mannequin, area, camera, slope);  // -> true, with the picture in raster.canvas

   A motion's `turns` has, for each frame and joint, x, y, z of the quaternion (w is not negative)
   that turns the joint from the T-pose, in 1/32767; its `sizes` has how many times as thick the
   body is as the mesh, then how many times as long the bone is that begins in each joint. */

const LIGHT = [0.36, 0.84, 0.41];  // towards the lamp, a unit vector
const ACCENT = 0.68;  // how bright hands, shoes and eyes are, where the body is 1

/** x, y, z of quaternions -> x, y, z, w, with the sign that is nearer to the frame before. */
function unpackTurns(given, frames) {
  const size = given.length / frames, width = size / 3 * 4;
  const turns = new Float32Array(frames * width);
  for (let i = 0, k = 0; i < given.length; i += 3, k += 4) {
    const [x, y, z] = [given[i] / 32767, given[i + 1] / 32767, given[i + 2] / 32767];
    const w = Math.sqrt(Math.max(0, 1 - x * x - y * y - z * z)), b = k - width;
    const same = b < 0 ? 1 : x * turns[b] + y * turns[b + 1] + z * turns[b + 2] + w * turns[b + 3];
    const sign = same < 0 ? -1 : 1;
    turns[k] = sign * x; turns[k + 1] = sign * y; turns[k + 2] = sign * z; turns[k + 3] = sign * w;
  }
  return turns;
}

class Mannequin {
  constructor({points, normals, joints, weights, quads, accent, rest, parents, scale}) {
    const bytes = text => numbers(text, Uint8Array);
    this.points = Float32Array.from(numbers(points), v => v * scale);
    this.normals = Float32Array.from(numbers(normals, Int8Array), v => v / 127);
    this.joints = bytes(joints); this.weights = Float32Array.from(bytes(weights), v => v / 255);
    this.accent = bytes(accent); this.rest = rest;
    this.count = this.accent.length;
    this.corners = new Float32Array(9 * this.count);  // place, normal, colour
    const q = numbers(quads, Uint16Array);
    this.faces = new Uint16Array(q.length * 1.5);
    for (let i = 0, k = 0; i < q.length; i += 4, k += 6)
      this.faces.set([q[i], q[i + 1], q[i + 2], q[i], q[i + 2], q[i + 3]], k);
    this.along = parents.map((_, j) => {  // the direction of the only bone that begins in j
      const next = parents.map((parent, child) => parent === j ? child : -1).filter(c => c >= 0);
      if (next.length !== 1) return [0, 0, 0];
      const bone = rest[next[0]].map((v, k) => v - rest[j][k]), length = Math.hypot(...bone);
      return bone.map(v => v / Math.max(length, 1e-9));
    });
    this.moves = new Float32Array(12 * parents.length);  // 3 x 4 matrices, row by row
  }

  /** Each joint's matrix: turn, stretch along its bone, and put the joint where it is seen. */
  setMoves({turned, pose, sizes}) {
    const {moves, along, rest} = this, thick = sizes[0];
    for (let j = 0; j < rest.length; j++) {
      let [x, y, z, w] = turned.subarray(4 * j, 4 * j + 4);
      const size = Math.hypot(x, y, z, w) || 1;
      x /= size; y /= size; z /= size; w /= size;
      const rows = [[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]];
      const more = sizes[1 + j] - thick;
      for (let k = 0; k < 3; k++) {
        const turnedAlong = dot(rows[k], along[j]);
        const row = rows[k].map((v, i) => thick * v + more * turnedAlong * along[j][i]);
        moves.set(row, 12 * j + 4 * k);
        moves[12 * j + 4 * k + 3] = pose[3 * j + k] - dot(row, rest[j]);
      }
    }
  }

  /** Set .corners, nine numbers a corner, to the pose of the motion. palette: four colours, of the
      trunk, left and right limbs, and of feet that stand. */
  bend(motion, palette) {
    this.setMoves(motion);
    const {points, normals, joints, weights, accent, moves, corners} = this;
    const blend = new Float32Array(12);
    const kinds = new Uint8Array(this.rest.length);
    motion.bones.forEach(([from, to], b) => {  // a joint moves the bone that begins there
      if (from < kinds.length) kinds[from] = motion.kinds[b];
      if (to < kinds.length) kinds[to] = motion.kinds[b];
    });
    for (let v = 0, p = 0, c = 0; v < this.count; v++, p += 3, c += 9) {
      let from = 12 * joints[4 * v], m = moves, [red, green, blue] = palette[kinds[joints[4 * v]]];
      if (weights[4 * v] < 1) {  // several joints move it; the heaviest comes first
        blend.fill(0); red = green = blue = 0;
        for (let k = 4 * v; k < 4 * v + 4 && weights[k] > 0; k++) {
          const share = weights[k], colour = palette[kinds[joints[k]]];
          from = 12 * joints[k];
          for (let i = 0; i < 12; i++) blend[i] += share * moves[from + i];
          red += share * colour[0]; green += share * colour[1]; blue += share * colour[2];
        }
        m = blend; from = 0;
      }
      const x = points[p], y = points[p + 1], z = points[p + 2];
      const a = normals[p], b = normals[p + 1], d = normals[p + 2];
      const m0 = m[from], m1 = m[from + 1], m2 = m[from + 2], m4 = m[from + 4], m5 = m[from + 5];
      const m6 = m[from + 6], m8 = m[from + 8], m9 = m[from + 9], m10 = m[from + 10];
      const nx = m0 * a + m1 * b + m2 * d, ny = m4 * a + m5 * b + m6 * d;
      const nz = m8 * a + m9 * b + m10 * d, long = 1 / Math.sqrt(nx * nx + ny * ny + nz * nz);
      const bright = accent[v] ? ACCENT : 1;
      corners[c] = m0 * x + m1 * y + m2 * z + m[from + 3];
      corners[c + 1] = m4 * x + m5 * y + m6 * z + m[from + 7];
      corners[c + 2] = m8 * x + m9 * y + m10 * z + m[from + 11];
      corners[c + 3] = nx * long; corners[c + 4] = ny * long; corners[c + 5] = nz * long;
      corners[c + 6] = red * bright; corners[c + 7] = green * bright;
      corners[c + 8] = blue * bright;
    }
  }
}

/** Draws the mannequin on the processor: triangles with a depth for each pixel. */
class Raster {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.pen = this.canvas.getContext("2d");
    this.seen = new Float32Array(0);
  }

  /** Project and light the corners: x and y in pixels of an area of width x height, nearness
      (1 / depth), red, green, blue; and the box that holds them. */
  project({corners, count}, width, height, {matrix: m, eye}) {
    if (this.seen.length !== 6 * count) this.seen = new Float32Array(6 * count);
    const {seen} = this, box = [1e9, 1e9, -1e9, -1e9];
    for (let v = 0, c = 0, s = 0; v < count; v++, c += 9, s += 6) {
      const x = corners[c], y = corners[c + 1], z = corners[c + 2];
      const near = 1 / Math.max(m[3] * x + m[7] * y + m[11] * z + m[15], 0.1);
      const px = (1 + (m[0] * x + m[4] * y + m[8] * z + m[12]) * near) / 2 * width;
      const py = (1 - (m[1] * x + m[5] * y + m[9] * z + m[13]) * near) / 2 * height;
      seen[s] = px; seen[s + 1] = py; seen[s + 2] = near;
      if (px < box[0]) box[0] = px;
      if (py < box[1]) box[1] = py;
      if (px > box[2]) box[2] = px;
      if (py > box[3]) box[3] = py;
      // the light of SHADE in webgl.js
      const nx = corners[c + 3], ny = corners[c + 4], nz = corners[c + 5];
      let ex = eye[0] - x, ey = eye[1] - y, ez = eye[2] - z;
      const away = 1 / Math.sqrt(ex * ex + ey * ey + ez * ez);
      ex *= away; ey *= away; ez *= away;
      const lamp = nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2], sky = 0.5 + 0.5 * ny;
      const facing = Math.max(nx * ex + ny * ey + nz * ez, 0), edge = 1 - facing;
      const hx = LIGHT[0] + ex, hy = LIGHT[1] + ey, hz = LIGHT[2] + ez;
      const half = (nx * hx + ny * hy + nz * hz) / Math.sqrt(hx * hx + hy * hy + hz * hz);
      const lit = 0.54 + 0.18 * sky + 0.4 * Math.max(0.25 + 0.75 * lamp, 0);
      const shine = 0.12 * edge * edge * edge * sky + (half > 0.8 ? 0.12 * half ** 40 : 0);
      for (let k = 0; k < 3; k++)
        seen[s + 3 + k] = 255 * Math.min(corners[c + 6 + k] * lit + shine, 1);
    }
    return box;
  }

  /** Draw into .canvas, whose left and top are .left and .top in the area; false if nothing of
      the mannequin is in an area of width x height pixels. */
  draw(mannequin, width, height, camera) {
    const box = this.project(mannequin, width, height, camera);
    this.left = Math.max(Math.floor(box[0]), 0); this.top = Math.max(Math.floor(box[1]), 0);
    const wide = Math.min(Math.ceil(box[2]) + 1, width) - this.left;
    const high = Math.min(Math.ceil(box[3]) + 1, height) - this.top;
    if (!(wide > 0 && high > 0)) return false;
    // a rim of 2 pixels is cleared, too: whoever draws the picture smaller looks at neighbours
    const [across, down] = [wide + 2, high + 2];
    if (!this.image || across > this.image.width || down > this.image.height) {
      const more = (need, side) => Math.max(need + 32, this.image ? this.image[side] : 0);
      this.image = new ImageData(more(across, "width"), more(down, "height"));
      this.canvas.width = this.image.width; this.canvas.height = this.image.height;
      this.pixels = new Uint32Array(this.image.data.buffer);
      this.nearest = new Float32Array(this.pixels.length);
    }
    const all = this.image.width;
    for (let y = 0; y < down; y++) {
      this.pixels.fill(0, y * all, y * all + across);
      this.nearest.fill(0, y * all, y * all + across);
    }
    const {faces} = mannequin;
    for (let f = 0; f < faces.length; f += 3)
      this.triangle(6 * faces[f], 6 * faces[f + 1], 6 * faces[f + 2], wide, high);
    this.wide = wide; this.high = high;
    this.pen.putImageData(this.image, 0, 0, 0, 0, across, down);
    return true;
  }

  /** Fill the pixels whose middle lies in the triangle and that nothing nearer has; a, b, c: where
      its corners begin in .seen. Those that face away are left out. */
  triangle(a, b, c, wide, high) {
    const {seen, pixels, nearest, left, top} = this, all = this.image.width;
    const ax = seen[a] - left - 0.5, ay = seen[a + 1] - top - 0.5;
    const bx = seen[b] - left - 0.5, by = seen[b + 1] - top - 0.5;
    const cx = seen[c] - left - 0.5, cy = seen[c + 1] - top - 0.5;
    const area = (bx - ax) * (ay - cy) - (by - ay) * (ax - cx);  // Y points down here
    if (!(area > 0)) return;
    const x0 = Math.max(Math.ceil(Math.min(ax, bx, cx)), 0);
    const x1 = Math.min(Math.floor(Math.max(ax, bx, cx)), wide - 1);
    const y0 = Math.max(Math.ceil(Math.min(ay, by, cy)), 0);
    const y1 = Math.min(Math.floor(Math.max(ay, by, cy)), high - 1);
    if (x0 > x1 || y0 > y1) return;
    // shares of corner b and c in a pixel, and how they change to the right and downward
    const bRight = (ay - cy) / area, bDown = (cx - ax) / area;
    const cRight = (by - ay) / area, cDown = (ax - bx) / area;
    const step = (at, k) => seen[at + k] - seen[a + k];
    const [bn, bred, bgreen, bblue] = [step(b, 2), step(b, 3), step(b, 4), step(b, 5)];
    const [cn, cred, cgreen, cblue] = [step(c, 2), step(c, 3), step(c, 4), step(c, 5)];
    for (let y = y0; y <= y1; y++) {
      let u = (x0 - ax) * bRight + (y - ay) * bDown, v = (x0 - ax) * cRight + (y - ay) * cDown;
      for (let x = x0, at = y * all + x0; x <= x1; x++, at++, u += bRight, v += cRight) {
        if (u < -1e-5 || v < -1e-5 || u + v > 1.00001) continue;
        const near = seen[a + 2] + u * bn + v * cn;
        if (near <= nearest[at]) continue;
        nearest[at] = near;
        pixels[at] = (255 << 24 | seen[a + 5] + u * bblue + v * cblue << 16
          | seen[a + 4] + u * bgreen + v * cgreen << 8 | seen[a + 3] + u * bred + v * cred) >>> 0;
      }
    }
  }
}
