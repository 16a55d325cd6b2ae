import { Grid, picture } from "./grid.js";

const get = (id) => document.getElementById(id);
const random = () => Math.floor(Math.random() * 2 ** 31);
const state = { model: null, example: 0, waiting: 0 };

const drawing = new Grid(get("drawing"), lookSoon);
const units = new Grid(get("units"), dreamSoon);
let lookTimer, dreamTimer;

async function ask(path, body) {
  document.body.setAttribute("aria-busy", String(++state.waiting > 0));
  try {
    const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(path, options);
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error ?? "the server failed; its terminal tells why.");
    get("message").textContent = "";
    return found;
  } catch (error) {
    get("message").textContent = error.message;
    throw error;
  } finally {
    document.body.setAttribute("aria-busy", String(--state.waiting > 0));
  }
}

// What failed is told in the message already.
const quietly = (call) => (...given) => call(...given).catch(() => {});
const cell = (width, room) => Math.max(Math.floor(room / width), 2);
const row = () => drawing.values.map((value) => (value > 0.5 ? 1 : 0));
const image = (values, label, room = 84) =>
  picture(values, ...state.model.shape, cell(state.model.shape[1], room), label);

function lookSoon() {
  clearTimeout(lookTimer);
  lookTimer = setTimeout(quietly(look), 150);
}

function dreamSoon() {
  clearTimeout(dreamTimer);
  dreamTimer = setTimeout(quietly(dream), 150);
}

const value = (found) => `${found.log_prob.toFixed(2)} ± ${found.error.toFixed(2)}`;
const number = (found) => `${value(found)} nats (K = ${found.num_samples})`;

async function look() {
  const asked = row();
  const found = await ask("/api/look", { model: state.model.uri, row: asked });
  if (asked.join() !== row().join()) return; // drawn on meanwhile: another answer follows
  state.seen = found;
  const [height, width] = state.model.shape;
  get("likelihood").textContent = `log p̂(x) = ${number(found.curve.at(-1))}`;
  curve(found.curve);
  new Grid(get("reconstruction")).show(found.reconstruction, height, width, cell(width, 168));
  get("posterior").replaceChildren(...found.samples.map((sampled, layer) => {
    const name = `layer ${layer + 1}, ${sampled[0].length} units`;
    const part = document.createElement("div");
    part.append(`${name}: `, picture(sampled.flat(), sampled.length, sampled[0].length, Math.min(cell(sampled[0].length, 280), 14), name));
    return part;
  }));
}

function curve(points) {
  const left = 46, right = 300, top = 10, bottom = 140;
  const low = Math.min(...points.map((each) => each.log_prob - (each.error ?? 0)));
  const high = Math.max(...points.map((each) => each.log_prob + (each.error ?? 0)));
  const x = (each) => left + (right - left) * Math.log(each.num_samples) / Math.log(points.at(-1).num_samples);
  const y = (value) => bottom - (bottom - top) * (value - low) / Math.max(high - low, 1e-9);
  const known = points.filter((each) => each.error !== null);
  const path = (pairs) => pairs.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(" ");
  const upper = known.map((each) => [x(each), y(each.log_prob + each.error)]);
  const lower = known.map((each) => [x(each), y(each.log_prob - each.error)]).reverse();
  const ticks = points.filter((each) => [1, 10, 100, 1000].includes(each.num_samples))
    .map((each) => `<text x="${x(each)}" y="155" text-anchor="middle">${each.num_samples}</text>`);
  get("curve").innerHTML = `
    <line class="axis" x1="${left}" y1="${bottom}" x2="${right}" y2="${bottom}"/>
    <line class="axis" x1="${left}" y1="${top}" x2="${left}" y2="${bottom}"/>
    <polygon class="band" points="${path([...upper, ...lower])}"/>
    <polyline class="line" points="${path(points.map((each) => [x(each), y(each.log_prob)]))}"/>
    <text x="${left - 4}" y="${top + 8}" text-anchor="end">${high.toFixed(1)}</text>
    <text x="${left - 4}" y="${bottom}" text-anchor="end">${low.toFixed(1)}</text>
    ${ticks.join("")}<text x="180" y="168" text-anchor="middle">K, samples of q; log p̂(x) in nats ± s.e.</text>`;
}

function showUnits(values) {
  const width = Math.min(values.length, 20);
  units.show(values, Math.ceil(values.length / width), width, Math.min(cell(width, 280), 44));
}

const layer = () => Number(get("layer").value);

async function dream() {
  const found = await ask("/api/dream", { model: state.model.uri, layer: layer(), units: units.values, seed: random() });
  showDreams(found);
}

async function redraw() {
  const found = await ask("/api/dream", { model: state.model.uri, layer: layer(), seed: random() });
  showUnits(found.units);
  showDreams(found);
}

function showDreams(found) {
  get("dreams").replaceChildren(...found.rows.map((each, place) => image(each, `dream ${place + 1}`)));
}

async function fromDrawing() {
  await look();
  showUnits(state.seen.means[layer() - 1].map(Math.round));
  await dream();
}

async function complete() {
  const [height, width] = state.model.shape;
  const kept = {
    top: (y) => y < height / 2, bottom: (y) => y >= height / 2,
    left: (y, x) => x < width / 2, right: (y, x) => x >= width / 2,
  }[get("half").value];
  const known = row().map((_, unit) => kept(Math.floor(unit / width), unit % width));
  const found = await ask("/api/complete", { model: state.model.uri, row: row(), known, seed: random() });
  get("completions").replaceChildren(...found.rows.map((each, place) => image(each, `completion ${place + 1}`)));
}

async function compare() {
  const both = [];
  for (const model of [state.model.uri, get("other").value]) {
    const { dim } = await ask(`/api/model?uri=${encodeURIComponent(model)}`);
    if (dim !== state.model.dim) throw say(`${model} has ${dim} units, ${state.model.uri} ${state.model.dim}: they cannot be compared.`);
    const seen = await ask("/api/look", { model, row: row() });
    const dreamt = await ask("/api/dream", { model, layer: 1, num: 1, seed: random() });
    both.push({ model, seen, dreamt });
  }
  get("comparison").hidden = false;
  get("comparison").tBodies[0].replaceChildren(...both.map(({ model, seen, dreamt }) => {
    const line = document.createElement("tr");
    const cells = [model, value(seen.curve.at(-1)), image(seen.reconstruction, `reconstruction by ${model}`, 56),
      image(dreamt.rows[0], `dream of ${model}`, 56)];
    for (const content of cells) line.insertCell().append(content);
    return line;
  }));
  const [one, two] = both.map(({ seen }) => seen.curve.at(-1));
  const gap = one.log_prob - two.log_prob, error = Math.hypot(one.error, two.error);
  get("difference").textContent = `difference ${gap.toFixed(2)} ± ${error.toFixed(2)} nats on this drawing (K = ${one.num_samples})`;
}

function say(sentence) {
  get("message").textContent = sentence;
  return new Error(sentence);
}

async function example() {
  const found = await ask(`/api/examples/${state.example++}`);
  show(found.row);
}

function show(values) {
  const [height, width] = state.model.shape;
  drawing.show(values, height, width, cell(width, 280));
  lookSoon();
}

async function choose(uri) {
  const before = state.model;
  state.model = await ask(`/api/model?uri=${encodeURIComponent(uri)}`);
  const { dim, shape, layers } = state.model;
  get("facts").textContent = `${dim} units (${shape.join(" × ")}), hidden layers of ${layers.join(", ")}`;
  get("layer").replaceChildren(...layers.map((width, place) => new Option(`${place + 1} (${width} units)`, place + 1)));
  get("layer").value = layers.length;
  if (before?.dim !== dim) show(new Array(dim).fill(0));
  lookSoon();
  await redraw();
}

async function open() {
  const found = await ask("/api/models");
  for (const menu of ["model", "other"]) get(menu).replaceChildren(...found.uris.map((uri) => new Option(uri)));
  get("other").selectedIndex = found.uris.length > 1 ? 1 : 0;
  get("example").disabled = found.num_examples === 0;
  await choose(found.uris[0]);
  if (found.num_examples) await example();
  document.body.dataset.ready = "yes";
}

get("model").addEventListener("change", quietly(() => choose(get("model").value)));
get("layer").addEventListener("change", quietly(redraw));
get("clear").addEventListener("click", () => show(new Array(state.model.dim).fill(0)));
const buttons = { example, redraw, dream, "from-drawing": fromDrawing, complete, compare };
for (const [id, call] of Object.entries(buttons)) get(id).addEventListener("click", quietly(call));
quietly(open)();
