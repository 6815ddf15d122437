// Interaction of the trace page: the layered graph, collapsed or not, and what lights up together.
const data = JSON.parse(document.getElementById("data").textContent);
const { tokens } = data, groups = data.circuit.supernodes;

const tokenText = (pos) => (pos === null ? "all positions" : `${tokens[pos].text} at position ${pos}`);
const sign = (w) => (w < 0 ? "down" : "up");
// Layers count the encoder's, then the decoder's, in a subject that has both.
const side = (layer) => (data.stacks.length < 2 ? "" : layer < data.stacks[0] ? "encoder" : "decoder");
const span = (n) => (n.layers[0] === n.layers[1] ? `layer ${n.layers[0]}` : `layers ${n.layers[0]} to ${n.layers[1]}`);
const layerName = (layer) => `layer ${layer}${side(layer) && ` of the ${side(layer)}`}`;

// ---- the graph shown ----
const SLOT = 16, TOP = 20, LEFT = 62, BUCKETS = 5, PAINTED = 2000;
// byId knows what a supernode holds too, so that whatever names a feature finds the node that stands for it.
let nodes, edges, byId, incident, maxInfluence, maxWeight, at, nodeElements, edgeLayer, edgeCanvas, overlay, graphBox;
const largest = (list, of) => list.reduce((most, item) => Math.max(most, of(item)), 1e-12);
function use(graph) {
  ({ nodes, edges, byId } = graph);
  incident = nodes.map(() => []);
  for (const edge of edges) { incident[edge[0]].push(edge); if (edge[1] !== edge[0]) incident[edge[1]].push(edge); }
  maxInfluence = largest(nodes, (n) => n.influence ?? 0);
  maxWeight = largest(edges, (e) => Math.abs(e[2]));
}
const whole = { nodes: data.nodes, edges: data.edges, byId: new Map(data.nodes.map((n, i) => [n.id, i])) };
use(whole);
const radius = (n) => 2.5 + 5 * Math.sqrt((n.influence ?? 0) / maxInfluence);
const places = (n) => n.places ?? (n.pos === null ? [] : [n.pos]);

// ---- drawing ----

// A cell is one layer at one position; its nodes sit in a small grid, so that none hides another.
function place() {
  const cells = new Map();
  nodes.forEach((n, i) => {
    const key = `${n.layer} ${n.pos}`;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(i);
  });
  const widest = tokens.map(() => 1), tallest = new Array(data.n_layers + 2).fill(1);
  for (const list of cells.values()) {
    list.sort((a, b) => (nodes[b].influence ?? 0) - (nodes[a].influence ?? 0));
    const { pos } = nodes[list[0]];
    if (pos !== null) widest[pos] = Math.max(widest[pos], Math.ceil(Math.sqrt(list.length / 2)));
  }
  for (const list of cells.values()) {
    const { pos, layer } = nodes[list[0]];
    const columns = pos === null ? list.length : widest[pos];
    tallest[layer + 1] = Math.max(tallest[layer + 1], Math.ceil(list.length / columns));
  }
  const natural = tokens.map((t, p) => Math.max(SLOT * widest[p] + 6, 7.4 * t.text.length + 6));
  const sum = natural.reduce((a, b) => a + b, 0);
  const stretch = Math.max(1, ($("graph").clientWidth - LEFT - 14) / sum);
  const centre = [];
  let x = LEFT;
  for (const w of natural) { centre.push(x + w * stretch / 2); x += w * stretch; }
  const width = x + 12, base = [], named = stagger(centre, width);
  let y = TOP;
  for (let layer = data.n_layers; layer >= -1; layer--) {
    const height = Math.max(tallest[layer + 1] * SLOT + 26, named.rows(layer) * 30 + 18);
    base[layer + 1] = { top: y, height };
    y += height;
  }
  for (const list of cells.values()) {
    const { pos, layer } = nodes[list[0]], columns = pos === null ? list.length : widest[pos];
    const rows = Math.ceil(list.length / columns), band = base[layer + 1];
    list.forEach((i, k) => {
      const row = Math.floor(k / columns), inRow = Math.min(columns, list.length - row * columns);
      at[i] = [(pos === null ? (LEFT + width) / 2 : centre[pos]) + (k % columns - (inRow - 1) / 2) * SLOT,
        band.top + band.height / 2 + (row - (rows - 1) / 2) * SLOT];
      if (named.x[i]) at[i] = [named.x[i], band.top + band.height - 12 - 30 * named.row[i]];
    });
  }
  return { width, height: y + 30, centre, base };
}

// Supernodes carry their names: each takes the lowest row of its layer in which its name overlaps no other.
const NAME = 24, short = (text) => (text.length > NAME ? `${text.slice(0, NAME - 1)}…` : text);
function stagger(centre, width) {
  const ends = new Map(), row = new Array(nodes.length), x = new Array(nodes.length);
  const order = nodes.map((_, i) => i).filter((i) => nodes[i].kind === "supernode").sort((a, b) => nodes[a].pos - nodes[b].pos);
  for (const i of order) {
    const half = 3.2 * short(nodes[i].label).length + 5, { layer, pos } = nodes[i];
    x[i] = Math.max(LEFT + half, Math.min(width - half, centre[pos]));
    if (!ends.has(layer)) ends.set(layer, []);
    const list = ends.get(layer), free = list.findIndex((end) => end < x[i] - half);
    row[i] = free < 0 ? list.length : free;
    list[row[i]] = x[i] + half;
  }
  return { x, row, rows: (layer) => ends.get(layer)?.length ?? 0 };
}

function shape(n, [x, y]) {
  const r = radius(n), common = { class: `node ${n.kind} ${n.effect === null ? "" : sign(n.effect)}`, "data-node-id": n.id };
  if (n.kind === "token") return make("rect", { ...common, x: x - r, y: y - r, width: 2 * r, height: 2 * r });
  if (n.kind === "error") {
    const d = Math.min(r, 5) + 1;
    return make("polygon", { ...common, points: `${x},${y - d} ${x + d},${y} ${x},${y + d} ${x - d},${y}` });
  }
  return make("circle", { ...common, cx: x, cy: y, r: n.kind === "target" ? 9 : r });
}

function drawGraph() {
  at = new Array(nodes.length);
  nodeElements = new Map();
  const { width, height, centre, base } = place();
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  const back = make("g"), names = make("svg", { class: "names", width: 54, height }), marks = make("g", { class: "marks" });
  names.append(make("rect", { width: 54, height }));
  base.forEach(({ top, height: h }, k) => {
    const name = k === 0 ? "tokens" : k === data.n_layers + 1 ? "target" : `${side(k - 1).slice(0, 3) || "layer"} ${k - 1}`;
    if (k % 2) back.append(make("rect", { class: "band", x: 0, y: top, width, height: h }));
    names.append(make("text", { class: "axis", x: 6, y: top + h / 2 + 4 }, name));
  });
  // Edges lie in a layer of their own, which the browser composes: dimming it on hover repaints nothing.
  edgeLayer = make("svg", { ...size, class: "edges", "aria-hidden": "true" });
  edgeCanvas = make("canvas", { width, height, class: "edges", "aria-hidden": "true" });
  overlay = make("g", { class: "overlay" });
  tokens.forEach((t, p) => marks.append(make("text",
    { class: `label ${t.kind}`, x: centre[p], y: height - 14, "text-anchor": "middle", "data-column": p }, t.text)));
  nodes.forEach((n, i) => {
    const element = shape(n, at[i]);
    nodeElements.set(n.id, element);
    marks.append(element);
    if (n.kind === "target" || n.kind === "supernode") {
      const lift = n.kind === "target" ? 16 : radius(n) + 4, small = n.kind === "target" ? "" : " small";
      marks.append(make("text", { class: `goal${small}`, x: at[i][0], y: at[i][1] - lift, "text-anchor": "middle",
        "data-name": n.id }, n.kind === "target" ? n.label : short(n.label)));
    }
  });
  graphBox = make("div", { class: "canvas", style: `width:${width}px;height:${height}px` },
    make("svg", { ...size, "aria-hidden": "true" }, back), edgeLayer, edgeCanvas,
    make("svg", { ...size, role: "img", "aria-label": "Attribution graph; the table below lists its features" }, overlay, marks),
    names);
  $("graph").replaceChildren(graphBox);
  const goal = at[nodes.findIndex((n) => n.kind === "target")];
  if (goal) $("graph").scrollLeft = goal[0] - $("graph").clientWidth / 2;
}

const strength = (w) => Math.min(BUCKETS - 1, Math.floor(BUCKETS * Math.sqrt(Math.abs(w) / maxWeight)));
const thickness = (bucket) => 0.7 + 0.75 * bucket, opacity = (bucket, floor) => Math.min(1, floor + 0.16 * bucket);
// One path per sign and strength: ten elements, however many edges there are.
function drawEdges(parent, list, floor) {
  const paths = new Map();
  for (const [s, t, w] of list) {
    const key = `${strength(w)} ${sign(w)}`, [x1, y1] = at[s], [x2, y2] = at[t], middle = (y1 + y2) / 2;
    if (!paths.has(key)) paths.set(key, []);
    paths.get(key).push(`M${x1.toFixed(1)} ${y1.toFixed(1)}C${x1.toFixed(1)} ${middle.toFixed(1)} ${x2.toFixed(1)} `
      + `${middle.toFixed(1)} ${x2.toFixed(1)} ${y2.toFixed(1)}`);
  }
  parent.replaceChildren(...[...paths].sort().map(([key, d]) => {
    const [bucket, direction] = key.split(" ");
    return make("path", { class: direction, d: d.join(""), "stroke-width": thickness(bucket), opacity: opacity(bucket, floor) });
  }));
}

// Thousands of edges are painted once, weakest first, a slice per frame, so that the page answers meanwhile.
let painting = 0;
function paintEdges(list) {
  const brush = edgeCanvas.getContext("2d"), style = getComputedStyle(document.body);
  const colours = { up: style.getPropertyValue("--orange"), down: style.getPropertyValue("--blue") };
  let next = list.length - 1;
  brush.clearRect(0, 0, edgeCanvas.width, edgeCanvas.height);
  delete edgeCanvas.dataset.painted;
  function slice() {
    const end = performance.now() + 30;
    for (; next >= 0 && performance.now() < end; next--) {
      const [s, t, w] = list[next], [x1, y1] = at[s], [x2, y2] = at[t], middle = (y1 + y2) / 2, bucket = strength(w);
      Object.assign(brush, { strokeStyle: colours[sign(w)], lineWidth: thickness(bucket), globalAlpha: opacity(bucket, 0.16) });
      brush.beginPath();
      brush.moveTo(x1, y1);
      brush.bezierCurveTo(x1, middle, x2, middle, x2, y2);
      brush.stroke();
    }
    if (next >= 0) painting = requestAnimationFrame(slice);
    else if (list.length) edgeCanvas.dataset.painted = list.length;
  }
  slice();
}

const slider = $("threshold");
const shown = () => Math.round(edges.length * (slider.value / 1000) ** 2);
function refreshEdges() {
  const n = shown(), list = edges.slice(0, n), many = n > PAINTED;
  cancelAnimationFrame(painting);
  drawEdges(edgeLayer, many ? [] : list, 0.16);
  paintEdges(many ? list : []);
  const order = edges === data.edges ? "most influential" : "largest sum";
  $("shown").textContent = `${n.toLocaleString("en")} of ${edges.length.toLocaleString("en")}, ${order} first`;
}
let pending = 0;
slider.addEventListener("input", () => { cancelAnimationFrame(pending); pending = requestAnimationFrame(refreshEdges); });

// ---- what lights up together ----
let selected = null, lit = [];
function light(atoms, positions, ids) {
  for (const element of lit) element.classList.remove("lit");
  lit = ids.map((id) => nodeElements.get(id));
  for (const pos of positions) lit.push(...document.querySelectorAll(`#strip [data-pos="${pos}"], [data-column="${pos}"]`));
  for (const atom of atoms) lit.push(...document.querySelectorAll(`#molecule .hit[data-atom="${atom}"]`));
  for (const element of lit) element.classList.add("lit");
}
function lightNode(i) {
  const here = places(nodes[i]);
  light(here.flatMap((pos) => tokens[pos].atoms), here, [nodes[i].id]);
  drawEdges(overlay, incident[i], 0.45);
  graphBox.classList.add("focus");
}
function lightPositions(positions, atoms) {
  light(atoms, positions, nodes.filter((n) => places(n).some((p) => positions.includes(p))).map((n) => n.id));
}
function rest() {
  $("tooltip").hidden = true;
  if (selected !== null) return lightNode(selected);
  light([], [], []);
  overlay.replaceChildren();
  graphBox.classList.remove("focus");
}

function tip(event, title, lines) {
  const box = $("tooltip");
  box.replaceChildren(make("b", {}, title), ...lines.map((line) => make("div", {}, line)));
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  box.style.top = `${event.clientY + height + 24 > innerHeight ? event.clientY - height - 12 : event.clientY + 16}px`;
}
function tipNode(event, i) {
  const n = nodes[i];
  if (n.layers) {
    const lines = [`${n.members.length} nodes, ${span(n)}, at ${n.places.length} positions`, `influence ${num(n.influence)}, summed`];
    return tip(event, n.label, lines);
  }
  const place = n.layer < 0 ? "input" : n.layer >= data.n_layers ? "target" : layerName(n.layer);
  tip(event, n.label, [`${place} · ${tokenText(n.pos)}`, `activation ${num(n.activation)} · influence ${num(n.influence)}`
    + (n.effect === null ? "" : ` · effect ${num(n.effect)}${n.measured ? ", measured" : ""}`)]);
}

function nodeOf(target) {
  const element = target.closest("[data-node-id], [data-ref]");
  return element ? byId.get(element.dataset.nodeId ?? element.dataset.ref) : undefined;
}
function point(event) {
  const i = nodeOf(event.target);
  if (i !== undefined) { lightNode(i); if (event.type === "pointerover") tipNode(event, i); return; }
  const token = event.target.closest("#strip [data-pos]");
  const hit = event.target.closest("#molecule .hit");
  if (!token && !hit) return rest();
  if (token) {
    const t = tokens[token.dataset.pos];
    lightPositions([t.pos], t.atoms);
    return tip(event, t.text, [`${t.kind}${t.masked ? ", masked" : ""} · position ${t.pos}`,
      `effect ${num(t.signed)} · hiding it ${num(t.hidden)} · mass ${share(t.score)}`]);
  }
  const atom = Number(hit.dataset.atom);
  const own = tokens.filter((t) => t.kind === "atom" && t.atoms.includes(atom));
  lightPositions(own.map((t) => t.pos), [atom]);
  const u = data.units.find((unit) => unit.index === atom);
  const told = u === undefined ? [] : [`effect ${num(u.score)}${u.sd === null ? "" : ` ± ${num(u.sd)}`} ${data.target.unit}`,
    `hiding it ${num(u.hidden)} · mass ${share(u.mass)}`];
  tip(event, `${u?.symbol ?? "atom"}${atom}`, [...told, ...own.map((t) => tokenText(t.pos))]);
}
document.addEventListener("pointerover", point);
document.addEventListener("focusin", (event) => { if (nodeOf(event.target) !== undefined) point(event); });
document.addEventListener("pointerleave", rest);

function start() {
  drawGraph();
  slider.value = String(1000 * Math.sqrt(Math.min(1, 300 / Math.max(1, edges.length))));
  refreshEdges();
}
function show(graph) {
  const id = selected === null ? null : nodes[selected].id, member = selected !== null && nodes[selected].members?.[0];
  selected = null;
  use(graph);
  start();
  select(id === null ? null : byId.get(id) ?? byId.get(data.nodes[member].id));
}
$("collapse")?.addEventListener("change", (event) => show(event.target.checked ? collapsed() : whole));
start();
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => { drawGraph(); refreshEdges(); if (selected !== null) select(selected); }, 150);
});
