/* What page.html remembers and hands out: history with stars, two motions side by side, one chosen
   of several; and, where studio.py serves the page, its models and files. It runs inside the page's
   script, with its names. */

// ---- The server of studio.py --------------------------------------------------------------------

/** A job as studio.py takes it. */
function flat({text, seeds, settings, model, then, loop, constraints, whole}) {
  return {text, seed: seeds[0], num: seeds.length, model, ...settings, then, loop, constraints,
          whole};
}

/** The sample.py line that makes the very same file as a job. */
function commandOf({text, seeds, settings: {frames, guidance, steps}, then, loop, constraints,
                    whole}) {
  const texts = [text, ...then.map(one => one.text)];
  const all = [frames, ...then.map(one => one.frames)].map(n => n / fps);
  const flags = [
    then.length && "--story", loop && "--loop", whole && "--whole",
    seeds.length > 1 && `--num ${seeds.length}`,
    frames && `--seconds ${all}`, `--seed ${seeds[0]}`, `--guidance ${guidance}`,
    `--sampler dpm++ --steps ${steps}${chosen.ckpt}`,
    constraints.length && "--constraints constraints.json",
    $("kind").value && `--format ${$("kind").value}`,
    $("kind").value === "glb" && !header.models && "--no-lock-feet"].filter(Boolean).join(" ");
  const quoted = texts.map(one => one.includes("!") ? `'${one.replace(/'/g, "'\\''")}'`
    : `"${one.replace(/["\\$`]/g, "\\$&")}"`).join(" ");
  const written = constraints.length
    ? `echo '${JSON.stringify(constraints)}' > constraints.json && ` : "";
  // after --story or --, whatever begins with a hyphen is a prompt, too
  const line = then.length || texts.some(one => one.startsWith("-")) ? `${flags} -- ${quoted}`
    : `${quoted} ${flags}`;
  return `${written}python sample.py ${line}`;
}

/** The answer to a job; an Error with the server's words if it refuses. */
async function post(path, job) {
  const token = new URLSearchParams(location.search).get("token");
  const answer = await fetch(path, {
    method: "POST", body: JSON.stringify(job),
    headers: {"Content-Type": "application/json", ...token && {Authorization: `Bearer ${token}`}},
  }).catch(() => { throw new Error("The studio does not answer: is studio.py still running?"); });
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

/** What is asked as the page's worker is, and asks studio.py. */
function server() {
  const worker = {postMessage: async job => {
    await null;  // the page has yet to say who listens
    let data = {ready: "Python"};
    if (job.header) return worker.onmessage({data});
    try { data = {...await (await post("make", flat(job))).json(), job}; }
    catch (error) { data = {error: error.message, job}; }
    worker.onmessage({data});
  }};
  return worker;
}

/** The last motions as a file, from studio.py or from the page's own worker. */
async function download() {
  const kind = $("kind").value, {job} = studio;
  if (!header.models && job.seeds.length > 1)
    return say([`A ${kind} file holds one motion: choose one of them first.`, true]);
  say(`Writing ${kind} …`);
  if (!header.models) return ask({...job, kind});
  try { save(await (await post("file", {...flat(job), kind})).blob(), {...job, kind}); }
  catch (error) { say([error.message, true]); }
}

/** Hand a file to the browser, with a name of the motion's words. */
function save(blob, {text, kind}) {
  const link = document.createElement("a"), url = URL.createObjectURL(blob);
  const words = text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || ["motion"];
  link.href = url; studio.file = blob;
  link.download = `${words.join("-").slice(0, 60)}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  say(`${link.download}, ${(blob.size / 1000).toFixed(0)} kB.`);
}

// ---- History: an entry is a job, and may have a star --------------------------------------------

const STORE = "nanomld", KEPT = 30;  // entries without a star
var past = recall(), held = null, last = null, inOnePiece = null;

/** What the browser has kept, as far as it is history. */
function recall() {
  try {
    return JSON.parse(localStorage.getItem(STORE)).filter(
      one => typeof one.text === "string" && one.seeds.every(Number.isSafeInteger)
        && ["frames", "guidance", "steps"].every(key => Number.isFinite(one.settings[key]))
        && (one.then ?? []).every(next => typeof next.text === "string")
    ).map(one => ({...one, then: one.then ?? [], loop: !!one.loop,
                   constraints: one.constraints ?? [], whole: !!one.whole}));
  } catch { return []; }  // nothing, or a browser that keeps nothing
}

function keep() {
  let free = 0;
  past = past.filter(one => one.star || free++ < KEPT);
  try { localStorage.setItem(STORE, JSON.stringify(past)); } catch { /* it lasts until reload */ }
  list();
}

function remember({touched, ...job}, motions) {
  [last] = motions;
  choices(job.seeds);
  if (!touched) return;
  const same = ({star, ...one}) => JSON.stringify(one) === JSON.stringify(job);
  const star = past.some(one => same(one) && one.star);
  past = [{...job, star}, ...past.filter(one => !same(one))];
  keep();
}

function button(text, more, act) {
  const made = Object.assign(document.createElement("button"), {type: "button", textContent: text},
                             more);
  made.addEventListener("click", act);
  return made;
}

function list() {
  const order = [...past.filter(one => one.star), ...past.filter(one => !one.star)];
  $("history").hidden = !past.length;
  $("history").replaceChildren(...order.map(one => {
    const group = document.createElement("span"), several = one.seeds.length;
    const texts = [one.text, ...one.then.map(next => next.text)].join(", then ");
    const asks = one.constraints.length ? " ◇" : "";
    const name = `${texts}${asks} · ${several > 1 ? `${several} from ` : ""}${one.seeds[0]}`;
    const {guidance, steps, frames} = one.settings, title = `${name} · guidance ${guidance}, ${
      steps} steps${frames ? `, ${frames / fps} s` : ""}`;  // tells apart what has the same words
    const star = {ariaPressed: !!one.star, ariaLabel: `Star: ${name}`};
    group.append(button(name, {title}, () => again(one)),
      button(one.star ? "★" : "☆", star, () => {
        one.star = !one.star; keep();
        const at = [...past.filter(x => x.star), ...past.filter(x => !x.star)].indexOf(one);
        $("history").children[at]?.lastChild.focus();
      }));
    return group;
  }));
}

/** Make a motion of the history anew: the same settings give the same motion. */
function again(job) {
  const {text, seeds, settings, model} = job;
  if (header.models?.[model] && $("model").value !== String(model)) {
    $("model").value = model; use(header.models[model]); offerKinds();
  }
  $("prompt").value = text; $("seed").value = seeds[0]; $("count").value = seeds.length;
  $("auto").checked = !settings.frames;
  if (settings.frames) $("length").value = settings.frames / fps;
  $("guidance").value = settings.guidance; $("steps").value = settings.steps;
  tell();
  if (header.models) askAgain(job);
  inOnePiece = job.whole ? text : null; make();
}

/** For a prompt that says several things: the other way to make it, one after the other or in one
    piece, which another prompt forgets. */
function otherWay({text, whole}) {
  return button(whole ? "One after the other" : "In one piece", {id: "other"}, () => {
    inOnePiece = whole ? null : text; $("prompt").value = text; make(); $("prompt").focus();
  });
}

/** A button for each of several motions, which keeps that one alone. */
function choices(seeds) {
  $("pick").hidden = seeds.length < 2;
  $("pick").replaceChildren(...seeds.map(seed => button(`Keep ${seed}`, {}, () => {
    keepLengths();
    $("count").value = 1; $("seed").value = seed; make(); $("prompt").focus();
  })));
}

// ---- Controls -----------------------------------------------------------------------------------

$("compare").addEventListener("click", () => {
  held = held ? null : last;
  $("compare").ariaPressed = !!held;
  if (held) say("The motion stays on the left; the next one plays beside it."); else make();
});
const fill = (id, names) => $(id).replaceChildren(...names.map(
  ([value, textContent]) => Object.assign(document.createElement("option"),
                                          {value, textContent})));
function offerKinds() {
  const {kinds} = chosen;
  fill("kind", kinds.map(kind => [kind, kind.toUpperCase()]));
  if (kinds.includes("glb")) $("kind").value = "glb";
}
offerKinds();
if (header.models) {
  fill("model", header.models.map((one, i) => [i, one.name]));
  $("models").hidden = header.models.length < 2;
  $("model").addEventListener("change", () => {
    use(header.models[$("model").value]); offerKinds(); make();
  });
}
$("kind").addEventListener("change", () => {
  if (studio.job) $("command").textContent = commandOf(studio.job);
});
$("download").addEventListener("click", () => { if (studio.job) download(); });
list();
