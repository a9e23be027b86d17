const ROW = 24; // px a token, as in the style sheet
const SHOWN = 6, LEAST = 0.05; // of a query's links while no token is chosen
const MOST = 60; // lines of a token
const BINS = 512; // rows and columns of a heat map: beyond, a cell is the largest of several tokens

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const { tokens, layers, heads, causal, links } = data;
const length = tokens.length;
const dark = matchMedia("(prefers-color-scheme: dark)");
const numbers = [...data.statistics, ...data.ablation];
const state = { language: data.language, layer: 0, head: 0, mark: data.roles ? "role" : numbers.length ? "0" : "" };
Object.assign(state, { side: "query", at: -1, across: -1, held: false }); // the token that is pointed at; of a link its other end

const say = (key, ...values) => WORDS[state.language][key].replace(/\{(\d)\}/g, (_, n) => values[n]);
const called = (name) => (state.language === "zh" && CHINESE[name]) || name.replaceAll("_", " ");
function format(x) {
  if (x === null) return "–";
  const size = Math.abs(x);
  return size > 0 && size < 0.0005 ? x.toExponential(1) : x.toFixed(size < 10 ? 3 : size < 1000 ? 1 : 0);
}
const whole = (n) => n.toLocaleString("en");
const percent = (x) => `${(100 * x).toFixed(x < 0.0995 ? 2 : 1)} %`;
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// A token as it can be seen: a space at its ends, an end of a line, a tab by their signs; by number what has no width or turns the writing.
const SIGNS = { "\n": "↵", "\t": "⇥" };
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udfff]/gu;
const visible = (token) =>
  token
    .replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length))
    .replace(HIDDEN, (c) => SIGNS[c] ?? `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`) || "∅";
const label = (index) => visible(tokens[index]);
const short = (index, most = 12) => {
  const letters = [...label(index)];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : letters.join("");
};
const isolated = (index) => `“\u2068${short(index, 40)}\u2069” (${index})`; // its direction of writing stays its own

// --- weights: a layer is unpacked when a head of it is first seen ------------------------------------------------------------------------

class Matrix {
  constructor(buffer) {
    this.scale = new Float32Array(buffer, 0, heads * length);
    this.levels = new Uint8Array(buffer, 4 * heads * length);
    this.size = causal ? (length * (length + 1)) / 2 : length * length;
  }
  each(head, query, visit) {
    const start = head * this.size + (causal ? (query * (query + 1)) / 2 : query * length);
    const unit = this.scale[head * length + query] / 255;
    for (let key = 0, end = causal ? query + 1 : length; key < end; key++) {
      if (this.levels[start + key]) visit(key, this.levels[start + key] * unit);
    }
  }
}

class Links {
  constructor(buffer) {
    const rows = heads * length;
    this.scale = new Float32Array(buffer, 0, rows);
    this.keys = new Uint16Array(buffer, 4 * rows, rows * links);
    this.levels = new Uint8Array(buffer, (4 + 2 * links) * rows);
  }
  each(head, query, visit) {
    const row = head * length + query;
    for (let n = row * links; n < (row + 1) * links; n++) {
      if (this.levels[n]) visit(this.keys[n], (this.levels[n] * this.scale[row]) / 255);
    }
  }
}

const unpacked = [];
const ready = []; // the same, once they are there
function unpack(layer) {
  unpacked[layer] ??= (async () => {
    const text = atob($(`layer-${layer}`).textContent);
    const packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    $(`layer-${layer}`).remove();
    return (ready[layer] = links ? new Links(buffer) : new Matrix(buffer));
  })();
  return unpacked[layer];
}

/** The links of a token, the heaviest first: of a query to its keys, of a key from its queries. */
function linksOf(weights, head, side, index) {
  const found = [];
  if (side === "query") weights.each(head, index, (other, weight) => found.push({ other, weight }));
  else {
    for (let query = 0; query < length; query++) {
      weights.each(head, query, (key, weight) => key === index && found.push({ other: query, weight }));
    }
  }
  return found.sort((a, b) => b.weight - a.weight || a.other - b.other);
}

/** The largest weight of each cell of a picture of so many bins. */
function pool(weights, head, bins) {
  const cells = new Float32Array(bins * bins);
  const bin = (index) => Math.floor((index * bins) / length);
  for (let query = 0; query < length; query++) {
    const row = bin(query) * bins;
    weights.each(head, query, (key, weight) => {
      const cell = row + bin(key);
      if (weight > cells[cell]) cells[cell] = weight;
    });
  }
  return cells;
}
