/* The player: people who move, each in a cell of one canvas, with one clock and one camera.

     const player = new Player(document.body, {camera, mesh, motions});
     player.show(motions)            other people from now on; the clock starts again
     player.seek(seconds)            stop there
     player.redraw()                 draw again, after a change of what follows
     player.clock                    {time in s, playing, speed}
     player.view                     {yaw and pitch in radians, zoom, follow, mannequin}
     player.stats, player.fast       {ms to draw a frame, fps}; does a graphics card draw?

   The element holds the stage and the bar of player.html. `camera` and `mesh` are what render.py
   writes; without a mesh, everybody is a stick figure. A motion is what _pack of render.py makes:
     {caption, title, fps, frames, bones: [[from, to, radius at each, side]], feet: [4 joints],
      contacts: a hexadecimal digit a frame, positions, scale, turns, sizes}
   `positions` (frames x joints x 3, times `scale` metres, Y up) and `turns` are 16-bit numbers in
   base64, or typed arrays. `turns` and `sizes` are what the mannequin needs (see mannequin.js); a
   motion that has none is a stick figure. All people share one context of WebGL 2, or of the plain
   2D canvas where there is no graphics card; #gl or #2d at the end of the address forces one. */

const FRAME = {high: 2.3, wide: 1.6};  // metres that are always in view, so people keep their size
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

// ---- Motions ------------------------------------------------------------------------------------

/** 16-bit numbers in base64, or a typed array, which is given back. */
function numbers(given, Kind = Int16Array) {
  if (typeof given !== "string") return given;
  return new Kind(Uint8Array.from(atob(given), c => c.charCodeAt(0)).buffer);
}

/** Decode 16-bit positions into .joints (frames x joints x 3), find the smoothed .path that the
    camera follows, and the upright cylinder .outline that holds the body in every frame. */
function unpack(motion) {
  const joints = Float32Array.from(numbers(motion.positions), v => v * motion.scale);
  const {frames, fps} = motion, size = joints.length / frames, reach = Math.round(0.6 * fps);
  const ground = Array.from({length: frames},  // x, z of the root
                            (_, t) => [joints[t * size], joints[t * size + 2]]);
  const mean = points => [0, 1].map(k => points.reduce((sum, p) => sum + p[k], 0) / points.length);
  const smooth = points => points.map((_, t) => {  // over 1.2 s, less towards the ends
    const r = Math.min(reach, t, frames - 1 - t);
    return mean(points.slice(t - r, t + r + 1));
  });
  const bound = most => [0, 1].map(k => ground.reduce((m, p) => most(m, p[k]), ground[0][k]));
  const path = smooth(smooth(ground)), low = bound(Math.min), high = bound(Math.max);
  const corners = Array.from({length: 64}, (_, k) => {  // of the path, in 64 directions
    const way = [Math.cos(k * Math.PI / 32), Math.sin(k * Math.PI / 32)];
    const along = p => p[0] * way[0] + p[1] * way[1];
    return path.reduce((best, p) => along(p) > along(best) ? p : best);
  });

  let bottom = 0, top = 0, radius = 0;
  for (let k = 0; k < joints.length; k += 3) {
    const [x, z] = path[Math.floor(k / size)];
    bottom = Math.min(bottom, joints[k + 1]);
    top = Math.max(top, joints[k + 1]);
    radius = Math.max(radius, Math.hypot(joints[k] - x, joints[k + 2] - z));
  }
  const half = (top - bottom) / 2 + 0.12, r = radius + 0.12;  // joints lie inside the flesh
  const outline = Array.from({length: 32}, (_, k) =>
    [r * Math.cos(k * Math.PI / 16), k % 2 ? half : -half, r * Math.sin(k * Math.PI / 16)]);
  const turns = motion.turns ? unpackTurns(numbers(motion.turns), frames) : null;
  return {...motion, joints, size, ground, low, high, path, corners, outline, turns,
          height: (top + bottom) / 2, pose: new Float32Array(size), kinds: [],
          turned: turns && new Float32Array(turns.length / frames)};
}

const secondsOf = motion => (motion.frames - 1) / motion.fps;

/** Set the motion's .pose, .turned, .kinds (each bone's colour), .marks (x, z of the ankle and of
    the toe of each standing foot) and .centre (x, z) for `time`. */
function posePerson(motion, time) {
  const {joints, size, pose, frames, feet, turns, turned} = motion;
  const at = Math.min(time * motion.fps + 1e-6, frames - 1);
  const i = Math.floor(at), j = Math.min(i + 1, frames - 1), w = at - i;
  for (let k = 0; k < size; k++)
    pose[k] = joints[i * size + k] * (1 - w) + joints[j * size + k] * w;
  for (let k = 0, n = turned ? turned.length : 0; k < n; k++)  // mannequin.js makes them units
    turned[k] = turns[i * n + k] * (1 - w) + turns[j * n + k] * w;
  motion.centre = [0, 1].map(k => motion.path[i][k] * (1 - w) + motion.path[j][k] * w);
  // one bit each for left ankle, left toe, right ankle, right toe
  const bits = parseInt(motion.contacts[i] || "0", 16), stands = f => bits >> f & 1;
  const place = f => [pose[3 * feet[f]], pose[3 * feet[f] + 2]], nowhere = [1e4, 1e4];
  const mark = f => stands(f) ? place(f) : stands(f ^ 1) ? place(f ^ 1) : nowhere;
  motion.marks = feet.length ? [0, 1, 2, 3].flatMap(mark) : Array(8).fill(1e4);
  motion.kinds = motion.bones.map(bone => {
    const toe = feet.indexOf(bone[1]);
    return toe % 2 === 1 && (stands(toe) || stands(toe - 1)) ? 3 : bone[4];
  });
}

// ---- Camera: one direction for all cells, aimed at each person or whole path --------------------

/** A camera that looks against `back` and sees `tan` to either side along `axis`: how far aside and
    how far back must it be for the body's outline, put on every point of the path, to just fit? */
function fit(axis, back, tan, outline, path) {
  const most = (points, sign) =>
    Math.max(...points.map(p => sign * dot(axis, p) + tan * dot(back, p)));
  const [more, less] = [1, -1].map(sign => most(outline, sign) + most(path, sign));
  return [(more - less) / 2, (more + less) / 2 / tan];
}

/** The camera of a cell, for a `view` {yaw, pitch, zoom, follow} and `slope`, the tangent of half
    the field of view. `head` is the share of its height that the caption takes; the rest, which is
    `aspect` times as wide as high, shows the person. */
function look(motion, aspect, head, view, slope) {
  const [sy, cy] = [Math.sin(view.yaw), Math.cos(view.yaw)];
  const [sp, cp] = [Math.sin(view.pitch), Math.cos(view.pitch)];
  const right = [cy, 0, -sy, 0], up = [-sy * sp, cp, -cy * sp, 0], back = [sy * cp, sp, cy * cp, 0];
  const {low, high, corners, outline, height} = motion;
  const [x, z] = view.follow ? motion.centre : [0, 1].map(k => (low[k] + high[k]) / 2);
  const path = view.follow ? [[0, 0, 0]] : corners.map(p => [p[0] - x, 0, p[1] - z]);
  const reach = view.follow ? 0 : Math.hypot(high[0] - low[0], high[1] - low[1]);
  const sides = [[right, slope * aspect], [up, slope]];
  const needed = sides.map(([axis, tan]) => fit(axis, back, tan, outline, path)[1]);
  const away = Math.max(FRAME.high / 2 / slope, FRAME.wide / 2 / slope / aspect, ...needed);
  const [aside, above] = sides.map(([axis, tan], side) => {
    let [offset, far] = [0, needed[side]];
    for (let k = 0; k < 3; k++)  // centre it in a view that is just wide enough from there
      [offset, far] = fit(axis, back, tan *= far / away, outline, path);
    return offset;
  });
  const target = [x, height, z], distance = away * view.zoom;
  const eye = target.map((v, k) => v + aside * right[k] + above * up[k] + distance * back[k]);
  const near = 0.1, far = 80;
  for (const axis of [right, up, back]) axis[3] = -dot(axis, eye);
  const matrix = new Float32Array([0, 1, 2, 3].flatMap(k => [  // column k
    right[k] / slope / aspect, up[k] / slope * (1 - head) + back[k] * head,
    (back[k] * (far + near) + (k === 3 ? 2 * far * near : 0)) / (near - far), -back[k]]));
  return {eye, matrix, target, reach, right, up};
}

// ---- The page: cells, time, controls ------------------------------------------------------------

class Player {
  constructor(root, {camera, mesh, motions}) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.$ = id => root.querySelector("#" + id);
    this.canvas = root.querySelector("canvas"); this.cells = this.$("cells");
    this.home = {yaw: camera.yaw, pitch: camera.pitch, zoom: 1};
    this.slope = Math.tan(camera.field_of_view / 2);
    this.view = {...this.home, follow: true, mannequin: true};
    this.clock = {time: 0, playing: !still, speed: 1};
    this.stats = {ms: 0, fps: 0};
    this.mannequin = mesh ? new Mannequin(mesh) : null;
    this.colours = {}; this.dense = 2; this.stale = true; this.before = 0; this.played = 0;
    this.motions = [];
    this.fast = location.hash !== "#2d" && graphicsCard();
    this.setUpCanvas(); this.listen();
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", () => this.setTheme(dark.matches ? "dark" : "light"));
    this.setTheme(dark.matches ? "dark" : "light");
    this.show(motions);
    new ResizeObserver(() => this.arrange()).observe(this.cells);
    requestAnimationFrame(now => { this.before = now; this.tick(now); });
  }

  setUpCanvas() {
    const start = () => { this.paint = (this.fast ? webgl : canvas2d)(this); };
    start();
    this.canvas.addEventListener("webglcontextlost", event => event.preventDefault());
    this.canvas.addEventListener("webglcontextrestored", () => { start(); this.redraw(); });
  }

  /** Show these motions from now on. */
  show(motions) {
    this.motions = motions.map(unpack);
    this.longest = this.motions.reduce((a, b) => secondsOf(b) > secondsOf(a) ? b : a);
    this.duration = secondsOf(this.longest);
    this.clock.time = 0; this.clock.playing &&= this.duration > 0;
    this.$("scrub").max = this.duration; this.$("scrub").step = "any";
    this.$("figure").hidden = !this.motions.some(motion => this.isMannequin(motion, true));
    this.cells.replaceChildren(...this.motions.map(motion => {
      const [cell, caption, note] = ["div", "h2", "small"].map(tag => document.createElement(tag));
      cell.className = "cell"; note.textContent = motion.title;
      caption.textContent = caption.title = motion.caption;
      cell.append(caption, note); motion.cell = cell;
      return cell;
    }));
    this.arrange();
  }

  isMannequin(motion, may = this.view.mannequin) {
    return may && !!motion.turns && !!this.mannequin;
  }

  /** Lay out the cells in as many columns as make the largest, for people taller than wide. */
  arrange() {
    const {clientWidth: width, clientHeight: height} = this.cells, n = this.motions.length;
    const largest = columns => Math.min(width / columns, 0.75 * height / Math.ceil(n / columns));
    const sizes = this.motions.map((_, i) => largest(i + 1));
    const columns = sizes.indexOf(Math.max(...sizes)) + 1;
    this.cells.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
    const dense = Math.min(window.devicePixelRatio || 1, this.dense);
    this.canvas.width = Math.round(width * dense); this.canvas.height = Math.round(height * dense);
    const scrolls = this.cells.scrollHeight > this.cells.clientHeight;
    this.cells.style.touchAction = scrolls ? "pan-y" : "none";
    this.refresh();  // at once, since a new size has emptied the canvas
  }

  setTheme(name) {
    document.documentElement.dataset.theme = name;
    const style = getComputedStyle(document.documentElement);
    for (const key of ["background", "line", "middle", "left", "right", "contact", "trail"])
      this.colours[key] = style.getPropertyValue("--" + key).match(/[0-9a-f]{2}/gi).map(
        byte => parseInt(byte, 16) / 255);
    this.colours.shadow = parseFloat(style.getPropertyValue("--shadow"));
    this.redraw();
  }

  draw() {
    const start = performance.now(), frame = this.cells.getBoundingClientRect();
    const dense = this.canvas.width / frame.width;
    this.motions.forEach((motion, n) => {
      const box = motion.cell.getBoundingClientRect();
      if (box.bottom <= frame.top || box.top >= frame.bottom) return;
      posePerson(motion, this.clock.time);
      const text = motion.cell.lastChild.getBoundingClientRect().bottom - box.top;
      const head = Math.min(text / box.height, 0.4);
      const [x, y, width, height] = [box.left - frame.left, box.top - frame.top, box.width,
                                     box.height].map(v => Math.round(v * dense));
      const camera = look(motion, width / height / (1 - head), head, this.view, this.slope);
      this.paint(motion, n, [x, y, width, height], head, camera);
    });
    this.stats.ms += (performance.now() - start - this.stats.ms) * (this.stats.ms ? 0.05 : 1);
  }

  tell() {  // controls and read-out follow the clock
    const {$, clock, longest, duration, stats} = this, time = Math.min(clock.time, duration);
    const frame = Math.floor(time * longest.fps + 1e-4) + 1;
    const bold = text => Object.assign(document.createElement("b"), {textContent: text});
    $("scrub").value = time;
    $("frame").replaceChildren("frame ", bold(frame), ` of ${longest.frames}`);
    $("time").replaceChildren(bold(time.toFixed(2)), ` of ${duration.toFixed(2)} s`);
    $("play").querySelector("path").setAttribute(
      "d", clock.playing ? "M3 2h4v14H3zM11 2h4v14h-4z" : "M4 1.5v15l12-7.5z");
    $("follow").setAttribute("aria-pressed", this.view.follow);
    $("figure").setAttribute("aria-pressed", this.view.mannequin);
    $("stats").textContent =
      `${stats.ms.toFixed(2)} ms a frame · ${stats.fps.toFixed(0)} frames a second`;
  }

  redraw() { this.stale = true; }
  refresh() { this.stale = false; this.draw(); this.tell(); }

  tick(now) {
    const {clock, stats} = this, seconds = Math.min((now - this.before) / 1000, 0.25);
    this.before = now;
    if (clock.playing && this.duration > 0) {
      clock.time += seconds * clock.speed;
      if (clock.time > this.duration + 0.4) clock.time = 0;  // after a rest in the last pose
      stats.fps += (1 / Math.max(seconds, 1e-3) - stats.fps) / 30;
      this.played += 1;
      if (this.fast && this.dense > 1 && this.played > 90 && stats.fps < 45) {
        this.dense = 1; this.arrange();  // a weak graphics card has fewer pixels to fill
      }
      this.redraw();
    }
    if (this.stale) this.refresh();
    requestAnimationFrame(next => this.tick(next));
  }

  seek(time) {
    this.clock.time = Math.min(Math.max(time, 0), this.duration);
    this.clock.playing = false; this.redraw();
  }

  step(frames) {
    const frame = Math.round(Math.min(this.clock.time, this.duration) * this.longest.fps);
    this.seek((frame + frames) / this.longest.fps);
  }

  zoom(factor) {
    this.view.zoom = Math.min(Math.max(this.view.zoom * factor, 0.3), 4); this.redraw();
  }

  listen() {
    const {$, clock, view} = this;
    const toggle = (object, key) => () => { object[key] = !object[key]; this.redraw(); };
    const play = toggle(clock, "playing"), follow = toggle(view, "follow");
    const figure = toggle(view, "mannequin");
    const theme = () =>
      this.setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    const home = () => { Object.assign(view, this.home); this.redraw(); };
    const keys = {
      " ": play, f: follow, t: theme, m: figure, r: home,
      ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1),
      ArrowUp: () => this.zoom(1 / 1.1), ArrowDown: () => this.zoom(1.1),
      Home: () => this.seek(0), End: () => this.seek(this.duration),
      i: () => { $("stats").hidden = !$("stats").hidden; },
    };
    addEventListener("keydown", event => {
      const tag = event.target.tagName;  // what has its own use for the key
      if (/SELECT|TEXTAREA/.test(tag) || (event.key === " " && tag === "BUTTON")) return;
      if (tag === "INPUT" && event.target.type !== "range") return;
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault(); keys[event.key]();
    });
    for (const [id, run] of Object.entries({play, follow, theme, figure}))
      $(id).addEventListener("click", event => {
        run();
        if (event.detail) $(id).blur();  // after a real click the space bar must play again
      });
    $("scrub").addEventListener("input", () => this.seek(Number($("scrub").value)));
    $("speed").addEventListener("change", () => {
      clock.speed = Number($("speed").value); $("speed").blur();
    });
    this.listenToFingers(home);
  }

  listenToFingers(home) {
    const {cells, view} = this, fingers = new Map();  // pointers that are down -> where they are
    const spread = () => {
      const [a, b] = fingers.values();
      return Math.hypot(a.x - b.x, a.y - b.y);
    };
    cells.addEventListener("pointerdown", event => {
      cells.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, {x: event.clientX, y: event.clientY});
    });
    cells.addEventListener("pointermove", event => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      const wide = fingers.size === 2 ? spread() : 0;
      const dx = event.clientX - last.x, dy = event.clientY - last.y;
      Object.assign(last, {x: event.clientX, y: event.clientY});
      if (wide) return this.zoom(wide / Math.max(spread(), 1));
      view.yaw -= dx * 0.008; view.pitch = Math.min(Math.max(view.pitch + dy * 0.006, -0.12), 1.5);
      this.redraw();
    });
    for (const name of ["pointerup", "pointercancel"])
      cells.addEventListener(name, event => fingers.delete(event.pointerId));
    cells.addEventListener("wheel", event => {
      if (cells.scrollHeight > cells.clientHeight && !event.ctrlKey) return;
      event.preventDefault(); this.zoom(Math.exp(event.deltaY * 0.0012));
    }, {passive: false});
    cells.addEventListener("scroll", () => this.redraw());
    cells.addEventListener("dblclick", home);
  }
}
