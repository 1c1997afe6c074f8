"use strict";
/* What a prompt's words are taken for, as words.py says it: known words, other forms of them, words
   that are like them, words that are misspelled.

     const book = new Book(vocabulary, data);   data: what book_of of page.py wrote
     book.understand("a man saunters")          {text, spelled, taken, unknown, says} */

const LETTER = "[\\p{L}\\p{N}_]";
const WORD = new RegExp(`${LETTER}+(?:'${LETTER}+)?`, "gu");
// what is one word in a prompt, unknown to all: numbers that no count is (-3, .5, 2.5, 2-3, 2 or
// 3), times, more than one body, what no clip does, and what turns the rest into its opposite
const DASH = "-\u2010-\u2015\u2212~", D = "\\p{Nd}+";
const START = `(?<!${LETTER})`, END = `(?!${LETTER})`;
const ONE = `(?:${D}|two|three|four|five|once|twice)`;
const ODD = new RegExp(`${D}(?: ?[${DASH}] ?${D}|[.,:/'\u2044]${D})+|${D}\\+`
  + `|${START}(?:[${DASH}<>\u2264\u2265\xb1][.,]?|[.,])${D}(?:[.,]${D})*`
  + `|${START}(?:${ONE}|one) (?:or|to) ${ONE}${END}`
  + `|${START}${D} ?(?:s|secs?|seconds?|mins?|minutes?|hours?)${END}`
  + `|${START}(?:one|two|three|four|five|six|seven|eight|nine|ten) `
  + `(?:secs?|seconds?|minutes?)${END}`
  + `|${START}(?:rather than|instead of|each other|one another)${END}`
  + `|${START}(?:two|three|four|five|six|seven|eight|nine|ten|several|many|${D}) (?:people|persons`
  + "|men|women|kids|children|guys|girls|boys|friends|dancers|boxers|fighters|players|actors"
  + `|soldiers|wrestlers)${END}`
  + `|(?<!nearly )(?<!almost )${START}(?:falls?|fell|falling) (?:down|over|to|on|onto|flat|off`
  + `|forwards?|backwards?)${END}(?! (?:(?:on|to) )?(?:${LETTER}+ ){0,3}knees?${END})`
  + `|${START}figure (?:of )?(?:eight|8)${END}`
  + `|${START}play(?:s|ed|ing)? (?:the |a |his |her |my |your |their )?piano${END}`
  + `|${WORD.source}`, "gu");
const HYPHENS = new RegExp(`${LETTER}+(?:-${LETTER}+)+`, "gu");
const ONLY = new RegExp(`(?<!every )${START}(?:(?:an?|one|just|only) )?single${END}`
  + "(?! (?:leg|foot|arm|hand|file|man|woman|mother|parent|person))", "gu");
const PACES = new RegExp(`${START}([1-9]|one|two|three|four|five) pace(s?)${END}`, "gu");
const HIMSELF = new RegExp(
  `${START}pick(ing|s|ed)? (?:him|her|my|your|it|them)sel(?:f|ves) up${END}`, "gu");
const wordsOf = text => text.toLowerCase().match(WORD) || [];

/** What a word may be a form of: walks, walking, walked -> walk; hurries -> hurry. */
function stems(word) {
  const endings = [["'s", [""]], ["ies", ["y", "ie"]], ["es", ["", "e"]], ["s", [""]],
                   ["ing", ["", "e", "ie"]], ["ied", ["y", "ie"]], ["ed", ["", "e"]]];
  return endings.flatMap(([ending, others]) => {
    const stem = word.slice(0, -ending.length);
    if (!word.endsWith(ending) || stem.length < 2) return [];
    const twice = /^(ing|ed)$/.test(ending) && stem.at(-1) === stem.at(-2);
    return [...others.map(other => stem + other), ...twice ? [stem.slice(0, -1)] : []];
  });
}

/** How many letters must be put in, left out, changed or swapped with the next one to turn a into
    b; most + 1 if they are more than `most`. */
function distance(a, b, most) {
  if (Math.abs(a.length - b.length) > most) return most + 1;
  let last = null, before = null, row = Array.from({length: b.length + 1}, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    [last, before, row] = [before, row, [i]];
    for (let j = 1; j <= b.length; j++) {
      const change = before[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(before[j] + 1, row[j - 1] + 1, change);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        row[j] = Math.min(row[j], last[j - 2] + 1);
    }
    if (Math.min(...row) > most) return most + 1;
  }
  return Math.min(row[b.length], most + 1);
}

/** The smallest of some lists: by their first entries, then by their second ones ... */
const least = lists => lists.reduce((best, list) => {
  const k = list.findIndex((value, i) => value !== best[i]);
  return k >= 0 && list[k] < best[k] ? list : best;
}, [Infinity]);

class Book {
  constructor(vocabulary, {rows, small, not, numbers, quiet, subjects, unlike, nobody, scenery}) {
    this.scenery = new Set(scenery);
    this.unlike = new Set(unlike); this.nobody = new Set(nobody);
    this.words = new Set(vocabulary); this.small = new Set(small); this.not = new Set(not);
    this.quiet = new Set(quiet); this.subjects = new Set(subjects);
    this.numbers = new Map(Object.entries(numbers));
    this.rows = rows.split("\n").map(line => {  // forms, then known ones, or known words like them
      const [forms, same, like] = line.split("|").map(part => part.split(" ").filter(Boolean));
      return {forms, same, like};
    });
    this.row = new Map(this.rows.flatMap(({forms}, i) => forms.map(form => [form, i])));
  }

  /** [how, known word] of a word: "same", "small", "form", "like" or null. */
  find(word) {
    const digit = this.numbers.get(word), options = [word, ...stems(word)];
    if (this.not.has(word)) return [null, null];
    if (this.words.has(word)) return ["same", word];
    if (this.words.has(digit)) return ["same", digit];
    if (this.small.has(word)) return ["small", null];
    const group = option => this.rows[this.row.get(option)];
    const form = options.find(option => this.words.has(option));
    if (form) {
      const same = group(form)?.same;
      return ["form", this.sameEnding(word, same?.length ? same : [form])];
    }
    const found = group(options.find(option => this.row.has(option)));
    if (found?.same.length) return ["form", this.sameEnding(word, found.same)];
    if (this.unlike.has(word)) return [null, null];
    return found?.like.length ? ["like", this.sameEnding(word, found.like)] : [null, null];
  }

  /** Of several forms of a word, the one that ends as `word` does; or that with an s, in which
      most captions are written. */
  sameEnding(word, others) {
    const ending = one => ["ing", "ed", "s"].find(end => one.endsWith(end)) || "";
    const forms = this.rows[this.row.get(word)]?.forms;
    const wanted = ending(word) || (forms && forms[0] !== word ? "s" : "");  // ran
    return least(others.map(one => [ending(one) === wanted ? 0 : 1, one.endsWith("s") ? 0 : 1,
                                    one.length, one])).at(-1);
  }

  /** The known word that a misspelled one stands for, or one that is like a known word. */
  spell(word) {
    if (!/^[a-z]{3,40}$/.test(word)) return null;
    for (const once of ["$1$1", "$1"]) {  // slooow, runnning
      const shorter = word.replace(/(.)\1{2,}/g, once);
      if (shorter !== word && (this.words.has(shorter) || this.row.has(shorter))) return shorter;
    }
    for (let i = 0; i < word.length; i++) {
      const twice = word.slice(0, i + 1) + word.slice(i);
      if (this.small.has(twice)) return twice;
    }
    const most = word.length >= 7 ? 2 : 1, letters = [...new Set(word)].sort().join("");
    const sorted = text => [...text].sort().join("");
    const rank = other => [distance(word, other, most) + (word[0] === other[0] ? 0 : 1),
                           sorted(word) === sorted(other) ? 0 : 1,
                           this.subjects.has(other) ? 1 : 0, word.length === other.length ? 0 : 1,
                           this.row.get(other) ?? this.rows.length, other];
    let near = least([...this.words].map(rank));
    if (near[0] <= most && (word.length > 3 || !this.quiet.has(near.at(-1))
                            || sorted(word) === sorted(near.at(-1)))) return near.at(-1);
    near = least([...this.row.keys()].filter(other => other[0] === word[0]
      && Math.abs(other.length - word.length) <= 1
      && [...new Set(other)].sort().join("") === letters).map(rank));
    if (near[0] <= 1) return near.at(-1);
    for (let i = 3; i < word.length - 2; i++)  // handclap, sitdown
      if ([word.slice(0, i), word.slice(i)].every(one => this.words.has(one) && !this.not.has(one)))
        return `${word.slice(0, i)} ${word.slice(i)}`;
    return null;
  }

  /** The words of a prompt, contractions taken apart: can't -> can, not; side-step -> sidestep. */
  tokens(prompt) {
    let text = prompt.normalize("NFKC").toLowerCase().replaceAll("\u2019", "'");
    text = text.replaceAll("can't", "can not");
    text = text.replace(HYPHENS, found => {
      const joined = found.replaceAll("-", "");
      return this.words.has(joined) && /\p{L}|_/u.test(found) ? joined : found;
    });
    text = text.replace(/(?<![\p{L}\p{N}_])(?:([1-9])x|x([1-9]))(?![\p{L}\p{N}_])/gu,
                        (_, a, b) => `${a ?? b} times`);
    text = text.replace(ONLY, "one").replace(PACES, "$1 step$2");
    text = text.replace(HIMSELF, (_, end) => end === "ing" ? "getting up"
      : end ? "gets up" : "get up");
    text = text.replace(/(?<![\p{L}\p{N}_])([\p{L}\p{N}_]{3,}) (?=([\p{L}\p{N}_]{3,}))/gu,
                        (whole, a, b) => this.words.has(a + b)
                          && !(this.words.has(a) && this.words.has(b)) ? a : whole);
    text = text.replace(/(?<![\p{L}\p{N}_])thrice(?![\p{L}\p{N}_])/gu, "three times").trim();
    return (text.match(ODD) || []).flatMap(word => {
      if (this.words.has(word) || !/\P{Nd}'/u.test(word)) return [word];
      return word.endsWith("n't") ? [word.slice(0, -3), "not"] : [word.split("'")[0]];
    });
  }

  /** What a model with this vocabulary makes of a prompt: the text that it reads ("_" is a missing
      word), and what the user should be told. `says`: is there anything to do? */
  understand(prompt) {
    const found = this.tokens(prompt).map(word => [word, ...this.find(word)]);
    if (found.length && this.nobody.has(found[0][0])) found[0] = [found[0][0], null, null];
    const strange = found.map(([word, how]) => !how
      && ![word, ...stems(word)].some(one => this.row.has(one)));
    const may = strange.filter(Boolean).length <= Math.max(1, Math.floor(found.length / 2));
    const read = [], spelled = {}, taken = {}, unknown = new Set();
    found.forEach(([word, how, other], i) => {
      if (word === "no" && i && found[i - 1][0] === "head" && this.words.has(word))
        [how, other] = ["same", word];
      if (how === "like" && this.scenery.has(other) && !(i && this.small.has(found[i - 1][0])))
        [how, other] = [null, null];
      const meant = strange[i] && may ? this.spell(word) : null;
      if (meant) {
        spelled[word] = meant;
        [how, other] = meant.includes(" ") ? ["same", meant] : this.find(meant);
        if (how === "like") taken[meant] = other;
      } else if (how === "like" || how === "form") taken[word] = other;
      if (!how) { other = "_"; unknown.add(word); }
      if (other) read.push(other);
    });
    const same = read.join(" ") === wordsOf(prompt).join(" ");
    return {text: same ? prompt : read.join(" "), spelled, taken, unknown: [...unknown],
            says: read.join(" ").split(" ").some(word => word && !this.quiet.has(word))};
  }
}

/** Without word vectors (data null): words are known or not. */
class PlainBook {
  constructor(vocabulary) { this.words = new Set(vocabulary); }
  understand(text) {
    const unknown = new Set(wordsOf(text).filter(word => !this.words.has(word)));
    return {text, spelled: {}, taken: {}, unknown: [...unknown], says: true};
  }
}
