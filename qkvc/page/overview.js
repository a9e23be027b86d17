const RAMPS = { // from 0: even steps of lightness
  light: ["#f8fafc", "#d5e5f3", "#a3c9e4", "#62a3d0", "#2b74b3", "#12447f", "#081f45"],
  dark: ["#14191f", "#173a5c", "#1f6389", "#3a92a5", "#79c0a4", "#c4e39a", "#fbfbc8"],
};
const ROLES = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8a6fc0", "#a8932d"]; // Okabe and Ito's, and two more

// --- colours -----------------------------------------------------------------------------------------------------------------------------

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const stops = () => RAMPS[dark.matches ? "dark" : "light"];
function colour(share) {
  const ramp = stops();
  const x = Math.min(Math.max(share, 0), 1) * (ramp.length - 1);
  const low = Math.min(Math.floor(x), ramp.length - 2);
  const [a, b] = [rgb(ramp[low]), rgb(ramp[low + 1])];
  return a.map((channel, i) => Math.round(channel + (b[i] - channel) * (x - low)));
}
const css = (channels) => `rgb(${channels.join(" ")})`;
const inkOn = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#11161b" : "#ffffff");
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

function paint(cells, bins) {
  const largest = cells.reduce((a, b) => Math.max(a, b), 0) || 1;
  const table = Array.from({ length: 256 }, (_, i) => colour(i / 255));
  const image = new ImageData(bins, bins);
  cells.forEach((weight, i) => image.data.set([...table[Math.round((255 * weight) / largest)], 255], 4 * i));
  const canvas = make("canvas", { width: bins, height: bins });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// --- marks: a role or a number for each head ---------------------------------------------------------------------------------------------

const having = (name) => data.roles.flat().filter((role) => (role?.name ?? null) === name).length;
const names = [...new Set((data.roles ?? []).flat().filter(Boolean).map((role) => role.name))].sort((a, b) => having(b) - having(a));
const roleColour = (name) => (name ? rgb(ROLES[names.indexOf(name) % ROLES.length]) : null);
const roleOf = (layer, head) => data.roles?.[layer][head] ?? null;
const range = ({ values }) => {
  const all = values.flat().filter((x) => x !== null);
  return [Math.min(0, ...all), Math.max(0, ...all)];
};

function markOf(layer, head) {
  if (state.mark === "role") {
    const role = roleOf(layer, head);
    return { value: role?.score ?? (role ? 0 : null), text: role ? called(role.name) : "–", fill: role && roleColour(role.name) };
  }
  if (!state.mark) return { value: 0, text: "" };
  const number = numbers[state.mark];
  const value = number.values[layer][head];
  const [low, high] = range(number);
  return { value, text: format(value), fill: value === null ? null : colour((value - low) / (high - low || 1)) };
}

function legend() {
  if (!state.mark) return [];
  if (state.mark === "role") {
    return [...names, null].map((name) => {
      const swatch = make("i");
      swatch.style.background = name ? css(roleColour(name)) : "var(--rule)";
      return make("span", {}, swatch, `${name ? called(name) : say("noRole")} (${having(name)})`);
    });
  }
  const [low, high] = range(numbers[state.mark]);
  const ramp = make("i", { className: "ramp" });
  ramp.style.background = `linear-gradient(to right, ${stops().join(", ")})`;
  return [make("span", {}, format(low), ramp, format(high))];
}

// --- all heads ---------------------------------------------------------------------------------------------------------------------------

const places = Array.from({ length: layers * heads }, (_, n) => ({ layer: Math.floor(n / heads), head: n % heads }));
const cells = places.map(({ layer, head }) => {
  // One of them is a stop of the Tab key, the others are for the arrows.
  const parts = [make("canvas", { width: 1, height: 1 }), make("em"), make("span")];
  const cell = make("button", { className: "cell", type: "button", tabIndex: -1 }, ...parts);
  cell.addEventListener("click", () => choose(layer, head));
  cell.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -heads, ArrowDown: heads }[event.key];
    const order = [...$("heads").querySelectorAll(".cell")];
    const next = step && order[order.indexOf(cell) + ($("order").value ? Math.sign(step) : step)];
    if (next) next.focus();
    if (step) event.preventDefault();
  });
  return cell;
});
const cellOf = (layer, head) => cells[layer * heads + head];

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) thumbnail(target);
}, { rootMargin: "200px" });

async function thumbnail(cell) {
  seen.unobserve(cell);
  const { layer, head } = places[cells.indexOf(cell)];
  const bins = Math.min(length, 64);
  const picture = paint(pool(await unpack(layer), head, bins), bins);
  const canvas = cell.querySelector("canvas");
  canvas.width = canvas.height = Math.max(96, bins);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
}

function showMarks() {
  const sorted = $("order").value !== "";
  const order = places.map((place) => ({ ...place, ...markOf(place.layer, place.head) }));
  for (const { layer, head, text, fill } of order) {
    const [, place, mark] = cellOf(layer, head).children;
    place.textContent = say("short", layer, head);
    place.hidden = !sorted;
    mark.textContent = mark.title = text;
    mark.hidden = !state.mark;
    mark.style.background = fill ? css(fill) : "";
    mark.style.color = fill ? inkOn(fill) : "";
    cellOf(layer, head).setAttribute("aria-label", `${say("place", layer, head)} ${text}`);
  }
  $("legend").replaceChildren(...legend());
  const grid = $("heads");
  if (sorted) {
    // By role they stand together, the highest score first; heads without a value come last.
    const name = ({ layer, head }) => (state.mark === "role" ? names.indexOf(roleOf(layer, head)?.name) : 0);
    order.sort((a, b) => (a.value === null) - (b.value === null) || name(a) - name(b) || b.value - a.value);
    grid.style.gridTemplateColumns = "repeat(auto-fill, minmax(72px, 1fr))";
    grid.replaceChildren(...order.map(({ layer, head }) => cellOf(layer, head)));
  } else {
    grid.style.gridTemplateColumns = `auto repeat(${heads}, minmax(${heads > 16 ? 40 : 52}px, 96px))`;
    const rows = Array.from({ length: layers }, (_, layer) => [
      make("b", { textContent: say("layer", layer) }),
      ...cells.slice(layer * heads, (layer + 1) * heads),
    ]);
    const top = Array.from({ length: heads }, (_, head) => make("b", { textContent: heads > 16 ? head : say("head", head) }));
    grid.replaceChildren(make("b"), ...top, ...rows.flat());
  }
}

function choose(layer, head, scroll = false) {
  const press = (pressed) => {
    const cell = cellOf(state.layer, state.head);
    cell.setAttribute("aria-pressed", pressed);
    cell.tabIndex = pressed ? 0 : -1;
  };
  press(false);
  Object.assign(state, { layer, head });
  press(true);
  history.replaceState(null, "", `#layer-${layer}-head-${head}`);
  if (scroll) $("head-heading").scrollIntoView({ block: "start" });
  return showHead();
}
