/* Drawing without WebGL: the same camera on a plain 2D canvas. The mannequin comes from Raster of
   mannequin.js; the bones of a stick figure are thick lines, far to near.

     const paint = canvas2d(player);                        // on player.canvas
     paint(motion, n, [x, y, width, height], head, camera)  // a cell of it, in pixels */

const BUSY = 8;  // milliseconds a frame, above which the mannequin is drawn with larger pixels

function canvas2d(player) {
  const {colours, view, clock, mannequin} = player, raster = new Raster();
  const pen = player.canvas.getContext("2d");
  let sharp = 2;  // pixels of the mannequin in one of the canvas, on each side: it is smoothed
  let drawn = 0;  // the first frames are slow everywhere, and say nothing
  const toned = (v, tone) => Math.round(255 * (tone > 0 ? v + (1 - v) * tone : v * (1 + tone)));
  const css = (colour, tone = 0, alpha = 1) => `rgba(${colour.map(v => toned(v, tone))},${alpha})`;

  return (motion, n, [x, y, width, height], head, camera) => {
    const {matrix: m, target, right, up} = camera;
    const size = height * (1 - head) / 2 / player.slope;  // pixels of a metre, one metre away
    const project = p => {
      const row = k => m[k] * p[0] + m[4 + k] * p[1] + m[8 + k] * p[2] + m[12 + k], w = row(3);
      return [x + (row(0) / w + 1) / 2 * width, y + (1 - row(1) / w) / 2 * height, w];
    };
    const flat = (px, pz) => project([px, 0, pz]);
    const stroke = (wide, colour, lines, cap = "butt") => {
      Object.assign(pen, {lineWidth: wide, strokeStyle: colour, lineCap: cap, lineJoin: "round"});
      pen.beginPath();
      for (const line of lines) if (line.every(p => p[2] > 0.1))
        line.forEach(([px, py], i) => i ? pen.lineTo(px, py) : pen.moveTo(px, py));
      pen.stroke();
    };
    pen.save(); pen.beginPath(); pen.rect(x, y, width, height); pen.clip();
    pen.fillStyle = css(colours.background); pen.fillRect(x, y, width, height);

    const [gx, gz] = [Math.round(target[0]), Math.round(target[2])];
    const floor = Array.from({length: 9}, () => []);  // lines by their distance from the middle
    for (let i = -5; i <= 5; i++) for (let j = -5; j < 5; j++)
      floor[Math.floor(Math.hypot(i, j + 0.5))].push(
        [flat(gx + i, gz + j), flat(gx + i, gz + j + 1)],
        [flat(gx + j, gz + i), flat(gx + j + 1, gz + i)]);
    floor.slice(0, 5).forEach(
      (lines, away) => stroke(1, css(colours.line, 0, 1 - away / 5), lines));
    const now = Math.floor(clock.time * motion.fps);
    const visible = points => [points.map(p => flat(...p)).filter(p => p[2] > 0.1)];
    stroke(2, css(colours.trail, 0, 0.25), visible(motion.ground));
    stroke(2.5, css(colours.trail, 0, 0.8), visible(motion.ground.slice(0, now + 2)));
    const circle = Array.from({length: 25}, (_, k) => Math.PI * k / 12);
    for (const [ax, az, bx, bz] of [motion.marks.slice(0, 4), motion.marks.slice(4)])
      if (ax < 1e4) stroke(2.5, css(colours.contact, 0, 0.9), [circle.map(turn => flat(
        (ax + bx) / 2 + 0.15 * Math.cos(turn), (az + bz) / 2 + 0.15 * Math.sin(turn)))]);

    const joints = Array.from({length: motion.size / 3},
                              (_, j) => motion.pose.slice(3 * j, 3 * j + 3));
    const seen = joints.map(project), slant = k => LIGHT[k] / LIGHT[1];
    const fallen = joints.map(p => flat(p[0] - slant(0) * p[1], p[2] - slant(2) * p[1]));
    stroke(0.13 * size / project(target)[2], css([0, 0, 0], 0, colours.shadow / 2),
      motion.bones.map(bone => [fallen[bone[0]], fallen[bone[1]]]), "round");
    if (player.isMannequin(motion)) {
      if (n === 0 && clock.playing && ++drawn > 45 && player.stats.ms > BUSY) sharp = 1;
      mannequin.bend(motion, [colours.middle, colours.left, colours.right, colours.contact]);
      const fine = clock.playing ? sharp : 2;  // a still picture has the time
      if (raster.draw(mannequin, width * fine, height * fine, camera)) {
        const {left, top, wide, high} = raster;
        pen.drawImage(raster.canvas, 0, 0, wide, high,
                      x + left / fine, y + top / fine, wide / fine, high / fine);
      }
      return pen.restore();
    }
    const lamp = [right, up].map(axis => dot(LIGHT, axis));

    // Far parts are drawn first. The trunk is one part, so that no rims cross it. Height counts
    // only when looking from above: legs are not behind the trunk because they are lower. Limbs
    // count as 6 cm nearer, since each encloses the joint where it begins.
    const toward = [Math.sin(view.yaw), Math.sin(view.pitch) ** 3, Math.cos(view.yaw)];
    const nearness = b => dot(joints[motion.bones[b][0]], toward)
      + dot(joints[motion.bones[b][1]], toward);
    const order = part => part.reduce((sum, b) => sum + nearness(b), 0) / part.length / 2
      + (part.length > 1 ? 0 : 0.06);
    const numbers = motion.bones.map((_, b) => b), limb = b => motion.bones[b][4];
    const parts = [...numbers.filter(limb).map(b => [b]), numbers.filter(b => !limb(b))];
    // Layers from the dark rim to the lit middle make it look round; fewer where there are many.
    const kinds = [colours.middle, colours.left, colours.right, colours.contact];
    const count = player.motions.length > 4 ? 3 : 9;
    const tones = k => kinds.map(kind => css(kind, 0.58 * Math.sqrt(k / count) - 0.36));
    const layers = Array.from({length: count}, (_, k) => [1 - 0.85 * k / count, tones(k)]);
    parts.sort((p, q) => order(p) - order(q));
    for (const part of parts) for (const [grow, colour] of layers) {
      pen.fillStyle = colour[motion.kinds[part[0]]]; pen.beginPath();
      for (const b of part) {
        const bone = motion.bones[b], [from, to] = [seen[bone[0]], seen[bone[1]]];
        const r = [from, to].map((end, k) => bone[2 + k] * size / Math.max(end[2], 0.2));
        const move = (r[0] + r[1]) / 2 * (1 - grow) * 0.55;
        const [dx, dy] = [lamp[0] * move, -lamp[1] * move];
        const turn = Math.atan2(to[1] - from[1], to[0] - from[0]) + Math.PI / 2;
        const [a, z] = [r[0] * grow, r[1] * grow];
        pen.moveTo(from[0] + dx + a * Math.cos(turn), from[1] + dy + a * Math.sin(turn));
        pen.arc(from[0] + dx, from[1] + dy, a, turn, turn + Math.PI);
        pen.arc(to[0] + dx, to[1] + dy, z, turn + Math.PI, turn + 2 * Math.PI);
        pen.closePath();
      }
      pen.fill();
    }
    pen.restore();
  };
}
