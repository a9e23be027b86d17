// --- tables ------------------------------------------------------------------------------------------------------------------------------

/** A row for each head, sorted by the column that is chosen: the largest first, then the smallest; roles in order of the alphabet. */
function table(section, given, roles) {
  section.hidden = !given.length && !roles;
  const columns = given.map(({ name, values }) => {
    const value = ({ layer, head }) => values[layer][head];
    return { text: called(name), value, show: (place) => format(value(place)) };
  });
  if (roles) {
    const role = ({ layer, head }) => roles[layer][head];
    columns.unshift(
      { text: say("role"), word: true, value: (p) => -names.indexOf(role(p)?.name), show: (p) => called(role(p)?.name ?? "–") },
      { text: say("score"), value: (p) => role(p)?.score, show: (p) => format(role(p)?.score ?? null) },
    );
  }
  const rows = places.map((place) => {
    const look = make("button", { type: "button", textContent: say("place", place.layer, place.head) });
    look.addEventListener("click", () => choose(place.layer, place.head, true));
    const cells = columns.map(({ word, show }) => make("td", { className: word ? "word" : "", textContent: show(place) }));
    const row = make("tr", {}, make("td", {}, look), ...cells);
    row.dataset.place = `${place.layer}-${place.head}`;
    return row;
  });
  const body = make("tbody", {}, ...rows);
  const heading = make("tr");
  columns.unshift({ text: say("tableHead"), value: ({ layer, head }) => -layer * heads - head });
  for (const { text, word, value } of columns) {
    const sort = make("button", { type: "button", textContent: text });
    const cell = make("th", { scope: "col", className: word ? "word" : "" }, sort);
    sort.addEventListener("click", () => {
      const up = cell.getAttribute("aria-sort") === "descending";
      for (const other of heading.children) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (n) => value(places[n]) ?? -Infinity;
      const order = places.map((_, n) => n).sort((a, b) => (up ? key(a) - key(b) : key(b) - key(a)) || a - b);
      body.append(...order.map((n) => rows[n]));
    });
    heading.append(cell);
  }
  section.querySelector(".scroll").replaceChildren(make("table", {}, make("thead", {}, heading), body));
}

// --- language ----------------------------------------------------------------------------------------------------------------------------

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value, textContent: text, selected: value === chosen })));
}

function speak() {
  document.documentElement.lang = state.language;
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = say(element.dataset.text, SHOWN, 100 * LEAST);
  }
  $("language").textContent = say("other");
  $("language").lang = state.language === "en" ? "zh" : "en";
  $("sizes").textContent = say("sizes", layers, heads, whole(length)) + (causal ? ` · ${say("causal")}` : "");
  $("note").textContent = links ? say("noteLinks", whole(length), links) : say("note");
  for (const id of ["previous", "next"]) $(id).setAttribute("aria-label", ($(id).title = say(id)));
  const named = numbers.map(({ name }, index) => [String(index), called(name)]);
  options($("mark"), [...(data.roles ? [["role", say("role")]] : []), ...named, ["", say("none")]], state.mark);
  options($("order"), [["", say("byPlace")], ["mark", say("byMark")]], $("order").value);
  table($("statistics"), data.statistics, data.roles);
  table($("ablation"), data.ablation);
  showMarks();
  return choose(state.layer, state.head);
}

// --- what the reader does ----------------------------------------------------------------------------------------------------------------

$("language").addEventListener("click", () => {
  state.language = state.language === "en" ? "zh" : "en";
  speak();
});
$("mark").addEventListener("change", () => {
  state.mark = $("mark").value;
  showMarks();
});
$("order").addEventListener("change", showMarks);
for (const [id, step] of [["previous", -1], ["next", 1]]) {
  $(id).addEventListener("click", () => {
    const { layer, head } = places[(state.layer * heads + state.head + step + places.length) % places.length];
    choose(layer, head);
  });
}

const panel = $("links"), map = $("map");
panel.addEventListener("scroll", show);
const tokenAt = (event) => event.target.closest("[data-side]")?.dataset;
panel.addEventListener("pointermove", (event) => {
  const token = tokenAt(event);
  if (token && !state.held) point(token.side, Number(token.index));
});
panel.addEventListener("click", (event) => {
  const token = tokenAt(event);
  const same = token && state.held && state.side === token.side && state.at === Number(token.index);
  state.held = Boolean(token) && !same;
  if (token) point(token.side, Number(token.index));
});

function leave(event) {
  if (!state.held && event.pointerType !== "touch") point("query", -1);
}
panel.addEventListener("pointerleave", leave);
map.addEventListener("pointerleave", leave);

/** Query and key under the pointer; where a cell is several tokens, the heaviest link in it. */
function linkAt(event) {
  const box = map.getBoundingClientRect(), edge = Number(map.dataset.edge);
  const bin = (x) => Math.floor(((x - edge) / (box.width - edge)) * bins);
  const row = bin(event.clientY - box.top), column = bin(event.clientX - box.left);
  if (!weights || Math.min(row, column) < 0 || Math.max(row, column) >= bins) return null;
  const first = (n) => Math.ceil((n * length) / bins);
  let best = { query: first(row), key: first(column), weight: 0 };
  for (let query = first(row); query < first(row + 1); query++) {
    weights.each(state.head, query, (key, weight) => {
      if (key >= first(column) && key < first(column + 1) && weight > best.weight) best = { query, key, weight };
    });
  }
  return best;
}
map.addEventListener("pointermove", (event) => {
  const link = linkAt(event);
  if (link && !state.held) point("query", link.query, link.key);
});
map.addEventListener("click", (event) => {
  const link = linkAt(event);
  state.held = Boolean(link) && !state.held;
  if (!link) return;
  point("query", link.query, link.key);
  reveal(link.query);
});

function walk(event) {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-20, 0], PageDown: [20, 0] };
  const within = (index) => Math.min(Math.max(index, 0), length - 1);
  if (event.key === "Escape") {
    state.held = false;
    point("query", -1);
  } else if (event.key === "Enter") {
    state.held = !state.held && state.at >= 0;
  } else if (event.key in steps) {
    const [down, right] = steps[event.key];
    const start = state.at < 0;
    state.held = true;
    if (event.currentTarget === map) {
      point("query", within(start ? 0 : state.at + down), within(start ? 0 : Math.max(state.across, 0) + right));
    } else {
      point(right ? (right > 0 ? "key" : "query") : state.side, within(start ? 0 : state.at + down));
    }
    reveal(state.at);
  } else return;
  event.preventDefault();
}
panel.addEventListener("keydown", walk);
map.addEventListener("keydown", walk);

dark.addEventListener("change", () => {
  for (const cell of cells) seen.observe(cell);
  speak();
});
new ResizeObserver(show).observe($("lines").parentElement.parentElement);

// --- the beginning -----------------------------------------------------------------------------------------------------------------------

const [, layer, head] = location.hash.match(/^#layer-(\d+)-head-(\d+)$/) ?? [];
if (layer < layers && head < heads) Object.assign(state, { layer: Number(layer), head: Number(head) });
document.querySelector("main").hidden = false;
for (const cell of cells) seen.observe(cell);
speak().catch((error) => {
  $("trouble").textContent = say("trouble", error);
  $("trouble").hidden = false;
});
