/* What the page asks of its worker: to load the model, to make motions, to write a file, to measure
   its time. The answer to a motion is what studio.py answers. */

const bytesOf = text => {
  const letters = atob(text), found = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) found[i] = letters.charCodeAt(i);
  return found;
};
let mld;
globalThis.onmessage = ({data}) => {
  try {
    if (data.header) {
      const product = bytesOf(data.product);  // an old browser has no SIMD: plain does the same
      const fast = !data.plain && WebAssembly.validate(product);
      mld = new MLD(data.header, bytesOf(data.weights), fast ? product : null);
      return postMessage({ready: fast ? "WebAssembly" : "plain JavaScript"});
    }
    if (data.time) {
      const times = Array.from({length: data.time}, (_, seed) => {
        const start = performance.now();
        mld.generate("a man jumps", {seed, frames: Math.round(3 * data.fps)});
        return performance.now() - start;
      });
      return postMessage({median: times.sort((a, b) => a - b)[data.time >> 1], times});
    }
    const {says, unknown} = mld.book.understand(data.text);
    const apart = data.whole ? null : takenApart(mld, data.text);
    if (!says) throw new Error("Nothing in this tells the model what to do"
      + (unknown.length ? `; it does not know: ${unknown.join(", ")}.` : "."));
    const start = performance.now(), made = data.seeds.map(seed => apart
      ? tale(mld, apart[0], {...data.settings, seed})
      : mld.generate(data.text, {...data.settings, seed}));
    if (apart) Object.assign(made[0].report.spelled, apart[1]);
    if (data.kind) {  // a file
      const file = FILES[data.kind](made[0], mld.header, data.text);
      return postMessage({job: data, file});
    }
    const most = mld.config.text.context_length - 1, {report} = made[0];
    for (const text of apart ? apart[0] : [data.text]) {
      const read = wordsOf(mld.book.understand(text).text).length;
      if (read > most) report.notes = [...report.notes || [],
        `This model reads ${most} words of a prompt; the last ${read - most} are left out.`];
    }
    const ms = performance.now() - start, several = made.length > 1;
    postMessage({job: data, made, ms, motions: made.map(
      one => packed(one, mld.header, data.text, several ? `seed ${one.seed}` : ""))});
  } catch (error) { postMessage({job: data, error: error.message}); }
};
