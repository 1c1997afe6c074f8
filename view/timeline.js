/* More than a sentence, where studio.py serves the page: prompts in a row; joints that must be
   somewhere, a first and a last pose, and the path of floor.js. It runs inside the page's script.

   What is asked for stands in the controls. `asked` makes of them what a job holds beside its
   sentence, and askAgain fills them from a job. docs/editing.md says what can be asked. */

const NAMES = {seconds: "Seconds", time: "Time in seconds", x: "x, metres to the left",
               y: "y, metres of height", z: "z, metres ahead"};
let poses = [], ends = {begin: null, end: null};
let parts = [];  // frames of each prompt of the last motion

const timelineIsOpen = () => $("timeline").ariaPressed === "true";
const round = (v, unit = 1000) => Math.round(v * unit) / unit;

function element(tag, more = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(more)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value); else made[key] = value;
  }
  made.append(...inside);
  return made;
}

/** A field for a number, with a name for those who do not see where it stands. */
function number(name, value, {min = -100, max = 100, step = 0.05} = {}) {
  return element("input", {type: "number", className: name, ariaLabel: NAMES[name], min, max, step,
                           title: NAMES[name], value, onchange: () => make()});
}

/** What a job holds beside its sentence, for a motion of so many frames, 0 if the model chooses.
    An Error says what is missing. */
function asked(frames) {
  if (!timelineIsOpen()) return {then: [], loop: false, constraints: []};
  const then = [...$("then").children].map((row, i) => {
    const text = row.querySelector("input").value.trim();
    if (!text) {
      row.querySelector("input").focus();
      throw new Error(`Prompt ${i + 2} is empty: write what comes next, or remove it.`);
    }
    return {text, frames: frames && Math.round(Number(row.querySelector(".seconds").value) * fps)};
  });
  const loop = $("loop").checked, most = config.data.max_frames;
  const all = then.reduce(  // as story.parts_of has it
    (sum, one) => sum + Math.min(one.frames, Math.max(most, one.frames) - header.shared), frames);
  return {then, loop, constraints: loop ? [] : constraints(all)};
}

function constraints(frames) {
  const last = round((frames - 1) / fps), found = [];
  if (path.length > 1) found.push({path: timed(path, last)});
  for (const row of $("pins").children) {
    const value = name => round(Number(row.querySelector(`.${name}`).value));
    const [joint, kind] = [...row.querySelectorAll("select")].map(one => one.value);
    found.push({joint, time: value("time"), ...kind === "height" ? {height: value("y")}
      : {position: ["x", "y", "z"].map(value)}});
  }
  if (ends.begin) found.push({pose: [moved(ends.begin, [0, 0, 0])], time: 0});
  if (ends.end) found.push({pose: [moved(ends.end, endPlace())], time: last});
  return found;
}

/** Constraints are for a motion whose length is known. If the model has chosen it, it
    becomes that of a walk along the path, or of the motion that is shown; several prompts last as
    long as they do there, or as long as their fields say. */
function fixLength() {
  if (!$("auto").checked) return;
  $("auto").checked = false;
  if ($("then").children.length) { theirLengths(); tell(); return arrange(); }
  const {min, max} = $("length"), shown = studio.made ? studio.made[0].frames / fps : 3;
  const seconds = path.length > 1 ? Math.max(lengthOf(path) / PACE, 1.5) : shown;
  $("length").value = Math.min(Math.max(seconds, min), max);
  tell();
}

/** Whether something is asked for at a time of the motion. */
const asksForATime = () => timelineIsOpen() && !$("loop").checked
  && (path.length > 1 || ends.end || $("pins").children.length);

// ---- Prompts in a row ---------------------------------------------------------------------------

function addPrompt({text = "", frames = 0} = {}) {
  const row = element("div", {className: "row"}, "then",
    element("input", {type: "text", maxLength: 500, value: text, ariaLabel: "What comes next",
                      placeholder: "sits down", enterKeyHint: "go"}), " for ",
    number("seconds", frames ? frames / fps : 3, {min: 1, max: config.data.max_frames / fps}), " s",
    element("button", {type: "button", textContent: "✕", ariaLabel: "Remove this prompt",
                       onclick: () => { row.remove(); arrange(); $("add").focus(); make(); }}));
  $("then").append(row);
  arrange();
  return row;
}

/** One of several stories or loops is to be kept: its own seed would draw other lengths than those
    that all of them have, so these are set. */
function keepLengths() {
  const {job} = studio;
  if (job.settings.frames || !(job.then.length || job.loop)) return;
  $("auto").checked = false;
  theirLengths();
  tell(); arrange();
}

/** The prompts get the seconds that they have in the motion that is shown. */
function theirLengths() {
  const rows = [...$("then").children];
  if (parts.length !== rows.length + 1) return;
  $("length").value = parts[0] / fps;
  rows.forEach((row, i) => { row.querySelector(".seconds").value = parts[i + 1] / fps; });
}

/** What cannot be asked for is switched off: a motion that repeats takes no constraints, and the
    model chooses the seconds of all prompts or of none. */
function arrange() {
  const {checked: auto} = $("auto");
  $("asked").disabled = $("loop").checked || !chosen.joints?.length;
  for (const field of $("then").querySelectorAll(".seconds")) field.disabled = auto;
  $("place").hidden = !ends.end || path.length > 1;
  $("only").hidden = !$("asked").disabled;
}

/** The prompts, as long as they last, with a mark for each pin; the line follows the player. */
function drawStrip(job, made) {
  let from = 0;
  ({parts} = made[0].report);
  $("strip").replaceChildren(...made[0].report.texts.map((text, i) => {
    const start = from / fps, seconds = parts[i] / fps;
    from += parts[i];
    return element("button", {type: "button", textContent: text, title: `${text}: go there`,
                              style: `flex: ${parts[i]} 1 0`, ariaLabel: `${text}, from ${
                                start.toFixed(1)} to ${(start + seconds).toFixed(1)} s`,
                              onclick: () => $("stage").contentWindow.player.seek(start)});
  }), ...job.constraints.filter(one => one.joint).map(({time}) =>
    element("i", {style: `left: ${100 * time * fps / Math.max(from - 1, 1)}%`})),
  element("hr", {ariaHidden: "true"}));
}

function follow() {
  const player = $("stage").contentWindow?.player, line = $("strip").querySelector("hr");
  if (player?.duration && line)
    line.style.left = `${100 * Math.min(player.clock.time / player.duration, 1)}%`;
  if (timelineIsOpen()) requestAnimationFrame(follow);
}

// ---- Joints and poses ---------------------------------------------------------------------------

/** The joints [[x, y, z]] of frame t of a motion as the player has it. */
function jointsAt(motion, t) {
  const text = atob(motion.positions), size = text.length / 6 / motion.frames;
  const at = (j, k) => {
    const byte = 2 * (3 * (t * size + j) + k);
    return (text.charCodeAt(byte) | text.charCodeAt(byte + 1) << 8) << 16 >> 16;
  };
  return chosen.joints.map((_, j) => [0, 1, 2].map(k => round(at(j, k) * motion.scale, 1e4)));
}

/** The frame that the player shows now, of the motion that was made last. */
function shownFrame() {
  const time = $("stage").contentWindow?.player?.clock.time ?? 0;
  return Math.min(Math.round(time * fps), last.frames - 1);
}

/** Joints -> x, z, and degrees to the left that they face, as formats/targets.py has it. */
function placeOf(joints) {
  const side = name => ["hip", "shoulder"].map(
    part => joints[chosen.joints.indexOf(`${name}_${part}`)]);
  const [left, right] = [side("left"), side("right")];
  const across = [0, 2].map(k => left[0][k] + left[1][k] - right[0][k] - right[1][k]);
  return [joints[0][0], joints[0][2], Math.atan2(-across[1], across[0]) * 180 / Math.PI];
}

/** The same pose somewhere else; one that is there already stays as it is. */
function moved(joints, [x, z, degrees]) {
  const [x0, z0, facing] = placeOf(joints), turn = (degrees - facing) * Math.PI / 180;
  const [s, c] = [Math.sin(turn), Math.cos(turn)];
  if (Math.hypot(x - x0, z - z0) < 0.008 && c > 0.9999) return joints;
  return joints.map(([a, y, b]) => [c * (a - x0) + s * (b - z0) + x, y,
                                    c * (b - z0) - s * (a - x0) + z].map(v => round(v, 1e4)));
}

/** Where the motion ends: where the path does, looking along it, or where the fields say. */
function endPlace() {
  if (path.length < 2) return ["x", "z", "turned"].map(
    name => Number($("place").querySelector(`.${name}`).value));
  const [a, b] = path.slice(-2);
  return [...b, Math.atan2(b[0] - a[0], b[1] - a[1]) * 180 / Math.PI];
}

function setPlace(place) {
  ["x", "z", "turned"].forEach((name, i) => {
    $("place").querySelector(`.${name}`).value = round(place[i], i < 2 ? 100 : 1);
  });
}

function addPin({joint = "right_wrist", time, height, position} = {}) {
  const shown = time === undefined;
  if (shown) fixLength();
  time ??= round(shownFrame() / fps, 100);
  const here = () => jointsAt(last, Math.min(Math.round(row.querySelector(".time").value * fps),
    last.frames - 1))[chosen.joints.indexOf(row.querySelector("select").value)];
  const fill = place => ["x", "y", "z"].forEach((name, k) => {
    row.querySelector(`.${name}`).value = round(place[k], 100);
  });
  const sort = () => { for (const name of ["x", "z"])
    row.querySelector(`.${name}`).hidden = row.querySelectorAll("select")[1].value === "height"; };
  const choice = (ariaLabel, options, value, onchange) => {
    const made = element("select", {ariaLabel, onchange}, ...options.map(
      ([value, textContent]) => element("option", {value, textContent})));
    made.value = value;
    return made;
  };
  const row = element("div", {className: "row"},
    choice("Joint", chosen.joints.map(name => [name, name.replace("_", " ")]), joint,
           () => { fill(here()); make(); }),
    " at ", number("time", time, {min: 0}), " s: ",
    choice("What is asked of it", [["position", "is at"], ["height", "is as high as"]],
           height === undefined ? "position" : "height", () => { sort(); make(); }),
    ...["x", "y", "z"].map(name => number(name, 0)),
    element("button", {type: "button", textContent: "✕", ariaLabel: "Remove this pin",
                       onclick: () => { row.remove(); $("pin").focus(); make(); }}));
  $("pins").append(row);
  fill(position ?? (shown ? here() : [0, height, 0]));
  sort();
  return row;
}

/** Which poses can be chosen: the frame that is shown, and both ends of the latest motions. */
function offerPoses() {
  for (const id of ["begin", "end"]) {
    const kept = ends[id], options = [["", "as it comes"], ["shown", "as in the frame shown"]];
    poses.forEach(({name}, i) => options.push([`${i} 1`, `like the end of ${name}`],
                                              [`${i} 0`, `like the start of ${name}`]));
    if (kept) options.push(["kept", "in the pose that was chosen"]);
    $(id).replaceChildren(...options.map(([value, textContent]) =>
      element("option", {value, textContent})));
    $(id).value = kept ? "kept" : "";
  }
}

function choosePose(id) {
  const {value} = $(id);
  if (value === "kept") return;
  const [i, end] = value.split(" ").map(Number);
  ends[id] = value === "" ? null : value === "shown" ? jointsAt(last, shownFrame())
    : poses[i][end ? "end" : "start"];
  if (ends[id]) fixLength();
  if (id === "end" && ends.end) setPlace(placeOf(jointsAt(last, last.frames - 1)));
  arrange();
  make();
}

// ---- What was made, and what is made again ------------------------------------------------------

/** A motion was made: its prompts are drawn, and its ends can be asked for. */
function drawTimeline(job, found, [motion]) {
  drawStrip(job, found);
  arrange();
  const name = `“${job.text}${job.then?.length ? " …" : ""}” · ${job.seeds[0]}`;
  poses = [{name, start: jointsAt(motion, 0), end: jointsAt(motion, motion.frames - 1)},
           ...poses.filter(one => one.name !== name)].slice(0, 8);
  offerPoses();
}

/** The controls as they were for a job. */
function askAgain({settings: {frames}, then = [], loop = false, constraints: all = []}) {
  path = []; cursor = [0, 0]; ends = {begin: null, end: null};
  $("then").replaceChildren(); $("pins").replaceChildren();
  $("loop").checked = loop;
  if (then.length || loop || all.length) openTimeline(true);
  then.forEach(addPrompt);
  for (const one of all) {
    if (one.path) path = one.path.map(row => row.slice(1));
    else if (one.joint) addPin(one);
    else if (one.time === 0) ends.begin = one.pose[0];
    else { ends.end = one.pose[0]; setPlace(placeOf(one.pose[0])); }
  }
  offerPoses(); drawPath();
}

function openTimeline(wanted) {
  $("timeline").ariaPressed = wanted;
  $("more").hidden = !wanted;
  if (wanted) follow();
}

if (header.models) {
  $("timeline").hidden = false;
  $("timeline").addEventListener("click", () => {
    openTimeline(!timelineIsOpen());
    const used = $("then").children.length || $("pins").children.length || path.length
      || $("loop").checked || ends.begin || ends.end;
    if (used) make();
  });
  $("add").addEventListener("click", () => addPrompt().querySelector("input").focus());
  $("pin").addEventListener("click", () => { addPin().querySelector("select").focus(); make(); });
  $("loop").addEventListener("change", () => { arrange(); make(); });
  $("auto").addEventListener("input", arrange);
  $("clear").addEventListener("click", () => { path = []; cursor = [0, 0]; pathIsDone(); });
  for (const id of ["begin", "end"]) $(id).addEventListener("change", () => choosePose(id));
  $("place").addEventListener("change", () => make());
  listenToFloor(); offerPoses(); drawPath();
}
