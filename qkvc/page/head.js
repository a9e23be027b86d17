// --- one head ----------------------------------------------------------------------------------------------------------------------------

let weights, picture, largest; // of the head that is shown
const bins = Math.min(length, BINS);

async function showHead() {
  const { layer, head } = state;
  const arrived = await unpack(layer);
  if (state.layer !== layer || state.head !== head) return; // another was chosen meanwhile
  weights = arrived;
  const pooled = pool(weights, head, bins);
  largest = pooled.reduce((a, b) => Math.max(a, b), 0);
  picture = paint(pooled, bins);
  const title = say("place", layer, head);
  $("head-heading").textContent = title;
  $("map").setAttribute("aria-label", say("map", title, length));
  const role = roleOf(layer, head);
  const fact = (name, ...children) => make("li", {}, make("small", { textContent: name }), ...children);
  const facts = numbers.map(({ name, values }) => fact(called(name), format(values[layer][head])));
  if (data.roles) {
    const swatch = make("i");
    swatch.style.background = role ? css(roleColour(role.name)) : "var(--rule)";
    const text = role ? `${called(role.name)}${role.score === null ? "" : ` ${format(role.score)}`}` : say("noRole");
    facts.unshift(make("li", {}, swatch, make("small", { textContent: say("role") }), text));
  }
  $("facts").replaceChildren(...facts);
  for (const row of document.querySelectorAll("tr[data-place]")) row.classList.toggle("at", row.dataset.place === `${layer}-${head}`);
  const binned = length > bins ? ` · ${say("ofBin", format(length / bins))}` : "";
  const ramp = make("i", { className: "ramp" });
  ramp.style.background = `linear-gradient(to right, ${stops().join(", ")})`;
  $("scale").replaceChildren(`${say("scale")} 0`, ramp, format(largest), binned);
  show();
}

let asked = false;
function show() {
  if (asked || !weights) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    const found = state.at < 0 ? [] : linksOf(weights, state.head, state.side, state.at);
    showTokens(found);
    showMap();
    showReading(found);
  });
}

/** Only the rows in view exist: a text of 10,000 tokens costs what one of 40 does. */
function showTokens(found) {
  const panel = $("links");
  $("rows").style.height = `${length * ROW}px`;
  const from = Math.max(0, Math.floor(panel.scrollTop / ROW) - 2);
  const to = Math.min(length, Math.ceil((panel.scrollTop + panel.clientHeight) / ROW) + 2);
  const strength = new Map(found.map(({ other, weight }) => [other, weight]));
  const top = found.length ? found[0].weight : 1;
  const rows = [];
  for (let index = from; index < to; index++) {
    const cell = (side) => {
      const span = make("span", { className: side }, make("bdi", { textContent: label(index), title: label(index) }));
      span.dataset.side = side;
      span.dataset.index = index;
      const weight = side === state.side ? 0 : strength.get(index) ?? 0;
      if (state.at === index && side === state.side) span.classList.add("at");
      if (weight) {
        span.style.background = `rgb(var(--tint) / ${((0.5 * weight) / top).toFixed(3)})`;
        if (weight >= 0.005) span[side === "key" ? "append" : "prepend"](make("small", { textContent: percent(weight) }));
      }
      return span;
    };
    const row = make("div", { className: "row" }, cell("query"), cell("key"));
    row.style.top = `${index * ROW}px`;
    rows.push(row);
  }
  $("rows").replaceChildren(...rows);
  showLines(found, from, to);
}

function showLines(found, from, to) {
  const panel = $("links"), svg = $("lines");
  svg.style.top = `${panel.scrollTop}px`;
  const height = Math.min(panel.clientHeight, length * ROW);
  svg.style.height = `${height}px`;
  const width = svg.clientWidth;
  svg.setAttribute("viewBox", `0 ${panel.scrollTop} ${width} ${height}`);
  const drawn = [];
  const line = (query, key, weight, share) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const [y, z] = [(query + 0.5) * ROW, (key + 0.5) * ROW];
    path.setAttribute("d", `M0 ${y}C${width / 2} ${y} ${width / 2} ${z} ${width} ${z}`);
    path.setAttribute("stroke-width", (0.6 + 6 * weight).toFixed(2));
    path.setAttribute("stroke-opacity", share.toFixed(3));
    Object.assign(path.dataset, { query, key, weight: weight.toFixed(5) });
    drawn.push(path);
  };
  if (state.at >= 0) {
    for (const { other, weight } of found.slice(0, MOST)) {
      const [query, key] = state.side === "query" ? [state.at, other] : [other, state.at];
      line(query, key, weight, 0.2 + 0.8 * Math.sqrt(weight));
    }
  } else {
    for (let query = from; query < to; query++) {
      const heaviest = linksOf(weights, state.head, "query", query).slice(0, SHOWN);
      for (const { other, weight } of heaviest) if (weight >= LEAST) line(query, other, weight, 0.1 + 0.75 * weight);
    }
  }
  svg.replaceChildren(...drawn);
}

/** The heat map with its cross; tokens at its edges where they are few enough to be read. */
function showMap() {
  const canvas = $("map"), dots = devicePixelRatio || 1;
  const side = canvas.clientWidth || 480;
  const named = length <= 40;
  const edge = named ? 92 : 44;
  const size = side - edge;
  canvas.width = canvas.height = Math.round(side * dots);
  canvas.style.height = `${side}px`;
  const context = canvas.getContext("2d");
  context.scale(dots, dots);
  context.imageSmoothingEnabled = size < bins;
  context.drawImage(picture, edge, edge, size, size);
  context.strokeStyle = style("--rule");
  context.strokeRect(edge - 0.5, edge - 0.5, size + 1, size + 1);
  context.fillStyle = style("--quiet");
  context.font = `${named ? Math.min(13, Math.max(9, (size / length) * 0.8)) : 11}px ${getComputedStyle(canvas).fontFamily}`;
  context.textBaseline = "middle";
  const step = named ? 1 : 10 ** Math.ceil(Math.log10(length / 12));
  for (let index = 0; index < length; index += step) {
    const text = named ? short(index) : String(index);
    const middle = edge + ((index + 0.5) * size) / length;
    context.textAlign = "right";
    context.fillText(text, edge - 6, middle, edge - 8);
    context.save();
    context.translate(middle, edge - 6);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(text, 0, 0, edge - 8);
    context.restore();
  }
  canvas.dataset.edge = edge;
  const cross = (index, horizontal) => {
    const middle = edge + ((index + 0.5) * size) / length;
    context.beginPath();
    context.moveTo(horizontal ? edge : middle, horizontal ? middle : edge);
    context.lineTo(horizontal ? edge + size : middle, horizontal ? middle : edge + size);
    context.stroke();
  };
  context.strokeStyle = style("--key");
  if (state.at >= 0) cross(state.at, state.side === "query");
  if (state.at >= 0 && state.across >= 0) cross(state.across, state.side !== "query");
}

function showReading(found) {
  const { at, side, across } = state;
  const reading = $("reading");
  if (at < 0) {
    reading.textContent = "";
    $("strongest").replaceChildren();
    return;
  }
  if (across >= 0) {
    const weight = found.find(({ other }) => other === across)?.weight ?? 0;
    const [query, key] = side === "query" ? [at, across] : [across, at];
    reading.textContent = `${isolated(query)} → ${isolated(key)}: ${weight.toFixed(4)}`;
  } else {
    reading.textContent = `${say(side === "query" ? "looksAt" : "seenBy", isolated(at))}${found.length ? "" : `: ${say("nowhere")}`}`;
  }
  const heaviest = found.slice(0, 10).map(({ other, weight }) =>
    make("li", {}, make("small", { textContent: other }), make("bdi", { textContent: label(other) }), percent(weight)));
  $("strongest").replaceChildren(...heaviest);
}

function point(side, at, across = -1) {
  if (state.side === side && state.at === at && state.across === across) return;
  Object.assign(state, { side, at, across });
  show();
}

function reveal(index) {
  const panel = $("links");
  const y = index * ROW;
  if (y < panel.scrollTop || y + ROW > panel.scrollTop + panel.clientHeight) panel.scrollTop = y - panel.clientHeight / 2;
}
