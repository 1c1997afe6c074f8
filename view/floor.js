/* A path over the floor: drawn with the mouse or a finger, or set point by point with the keys. The
   map is seen from above; ahead is up, and left is left. It runs inside the page's script, with the
   names of timeline.js. */

const PACE = 1.2, APART = 0.4;  // metres a second of a path, and between its rows
const MAP = {wide: 4, low: -1.5, high: 4.5};  // metres to either side, behind and ahead
let path = [], cursor = [0, 0];  // x and z in metres

const dist = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
const lengthOf = points => points.slice(1).reduce((sum, p, i) => sum + dist(p, points[i]), 0);

/** Points -> rows of seconds, x, z, at one pace, for so many seconds. */
function timed(points, seconds) {
  const whole = lengthOf(points);
  return points.map((p, i) => [round(seconds * lengthOf(points.slice(0, i + 1)) / whole), ...p]);
}

/** x and z in metres of a place on the page, within the map. */
function floorAt({clientX, clientY}) {
  const {left, top, width, height} = $("floor").getBoundingClientRect();
  const across = (clientX - left) / width, down = (clientY - top) / height;
  return onMap([(1 - 2 * across) * MAP.wide, MAP.high - down * (MAP.high - MAP.low)]);
}

function onMap([x, z]) {
  return [round(Math.min(Math.max(x, -MAP.wide), MAP.wide), 100),
          round(Math.min(Math.max(z, MAP.low), MAP.high), 100)];
}

function drawPath() {
  const points = path.map(([x, z]) => `${-x},${-z}`).join(" "), [x, z] = cursor;
  $("way").setAttribute("points", points);
  $("spot").setAttribute("transform", `translate(${-x} ${-z})`);
  $("where").value = `${Math.abs(x).toFixed(2)} m ${x < 0 ? "right" : "left"}, ${
    Math.abs(z).toFixed(2)} m ${z < 0 ? "behind" : "ahead"}`
    + (path.length > 1 ? ` · ${lengthOf(path).toFixed(1)} m of path` : "");
  arrange();
}

/** The same path in steps of equal length, so that the person goes at one pace. */
function even(points) {
  const whole = lengthOf(points), count = Math.min(Math.max(Math.round(whole / APART), 1), 24);
  const result = [points[0]];
  for (let i = 1, k = 0, done = 0; i <= count; i++) {
    const at = whole * i / count;
    while (k < points.length - 2 && done + dist(points[k], points[k + 1]) < at)
      done += dist(points[k], points[++k]);
    const share = (at - done) / Math.max(dist(points[k], points[k + 1]), 1e-9);
    result.push(points[k].map((v, axis) => round(v + share * (points[k + 1][axis] - v), 100)));
  }
  return result;
}

/** A path is there, or gone: the motion is made anew. */
function pathIsDone() {
  if (path.length > 1 && lengthOf(path) >= 0.3) fixLength(); else path = [];
  drawPath();
  make();
}

function listenToFloor() {
  const floor = $("floor");
  let drawing = false;
  floor.addEventListener("pointerdown", event => {
    if ($("asked").disabled) return;
    drawing = true; path = [[0, 0]];
    floor.setPointerCapture(event.pointerId);
  });
  floor.addEventListener("pointermove", event => {
    if (!drawing) return;
    cursor = floorAt(event);
    if (dist(cursor, path.at(-1)) > 0.1) path.push(cursor);
    drawPath();
  });
  for (const name of ["pointerup", "pointercancel"]) floor.addEventListener(name, () => {
    if (!drawing) return;
    drawing = false;
    if (path.length > 1) path = even(path);
    pathIsDone();
  });
  const steps = {ArrowLeft: [0.25, 0], ArrowRight: [-0.25, 0], ArrowUp: [0, 0.25],
                 ArrowDown: [0, -0.25]};
  floor.addEventListener("keydown", event => {
    const step = steps[event.key];
    if ($("asked").disabled || event.ctrlKey || event.metaKey || event.altKey) return;
    if (step) { cursor = onMap(cursor.map((v, k) => v + step[k])); drawPath(); }
    else if (event.key === "Enter" || event.key === " ") {
      if (!path.length) path = [[0, 0]];
      if (dist(cursor, path.at(-1)) > 0.01) path.push(cursor);
      pathIsDone();
    } else if (event.key === "Backspace" || event.key === "Delete") { path.pop(); pathIsDone(); }
    else return;
    event.preventDefault();
  });
}
