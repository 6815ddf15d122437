"use strict";
// Interaction of the trace page: the layered graph, what lights up together, and the card of the selected node.
const data = JSON.parse(document.getElementById("data").textContent);
const { nodes, edges, tokens } = data;
const byId = new Map(nodes.map((node, i) => [node.id, i]));
const incident = nodes.map(() => []);
for (const edge of edges) { incident[edge[0]].push(edge); if (edge[1] !== edge[0]) incident[edge[1]].push(edge); }
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const svg = /^(svg|g|path|circle|rect|line|text|polygon)$/.test(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function num(x) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  let text = x === 0 ? "0" : size < 1e-3 || size >= 1e5 ? x.toExponential(1) : x.toPrecision(3);
  if (!text.includes("e") && size >= 100) text = String(Math.round(x));
  return text.replaceAll("-", "−");
}

const tokenText = (pos) => (pos === null ? "all positions" : `${tokens[pos].text} at position ${pos}`);
const share = (x) => (x === null ? "–" : `${num(100 * x)} %`);
const sign = (w) => (w < 0 ? "down" : "up");
// Layers count the encoder's, then the decoder's, in a subject that has both.
const side = (layer) => (data.stacks.length < 2 ? "" : layer < data.stacks[0] ? "encoder" : "decoder");
const layerName = (layer) => `layer ${layer}${side(layer) && ` of the ${side(layer)}`}`;

// ---- graph ----
const SLOT = 16, TOP = 20, LEFT = 62, BUCKETS = 5;
const maxInfluence = Math.max(1e-12, ...nodes.map((n) => n.influence ?? 0));
const maxWeight = Math.max(1e-12, ...edges.map((e) => Math.abs(e[2])));
const radius = (n) => 2.5 + 5 * Math.sqrt((n.influence ?? 0) / maxInfluence);
const at = new Array(nodes.length);
const nodeElements = new Map();
let edgeLayer, overlay, graphBox;

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
  const width = x + 12, base = [];
  let y = TOP;
  for (let layer = data.n_layers; layer >= -1; layer--) {
    const height = tallest[layer + 1] * SLOT + 26;
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
    });
  }
  return { width, height: y + 30, centre, base };
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
  overlay = make("g", { class: "overlay" });
  tokens.forEach((t, p) => marks.append(make("text",
    { class: `label ${t.kind}`, x: centre[p], y: height - 14, "text-anchor": "middle", "data-column": p }, t.text)));
  nodes.forEach((n, i) => {
    const element = shape(n, at[i]);
    nodeElements.set(n.id, element);
    marks.append(element);
    if (n.kind === "target") {
      marks.append(make("text", { class: "goal", x: at[i][0], y: at[i][1] - 16, "text-anchor": "middle" }, n.label));
    }
  });
  graphBox = make("div", { class: "canvas", style: `width:${width}px;height:${height}px` },
    make("svg", { ...size, "aria-hidden": "true" }, back), edgeLayer,
    make("svg", { ...size, role: "img", "aria-label": "Attribution graph; the table below lists its features" }, overlay, marks),
    names);
  $("graph").replaceChildren(graphBox);
  const goal = at[nodes.findIndex((n) => n.kind === "target")];
  if (goal) $("graph").scrollLeft = goal[0] - $("graph").clientWidth / 2;
}

// One path per sign and strength: ten elements, however many edges there are.
function drawEdges(parent, list, floor) {
  const paths = new Map();
  for (const [s, t, w] of list) {
    const bucket = Math.min(BUCKETS - 1, Math.floor(BUCKETS * Math.sqrt(Math.abs(w) / maxWeight)));
    const key = `${bucket} ${sign(w)}`, [x1, y1] = at[s], [x2, y2] = at[t], middle = (y1 + y2) / 2;
    if (!paths.has(key)) paths.set(key, []);
    paths.get(key).push(`M${x1.toFixed(1)} ${y1.toFixed(1)}C${x1.toFixed(1)} ${middle.toFixed(1)} ${x2.toFixed(1)} `
      + `${middle.toFixed(1)} ${x2.toFixed(1)} ${y2.toFixed(1)}`);
  }
  parent.replaceChildren(...[...paths].sort().map(([key, d]) => {
    const [bucket, direction] = key.split(" ");
    return make("path", { class: direction, d: d.join(""), "stroke-width": 0.7 + 0.75 * bucket,
      opacity: Math.min(1, floor + 0.16 * bucket) });
  }));
}

const slider = $("threshold");
const shown = () => Math.round(edges.length * (slider.value / 1000) ** 2);
function refreshEdges() {
  const n = shown();
  drawEdges(edgeLayer, edges.slice(0, n), 0.16);
  $("shown").textContent = `${n.toLocaleString("en")} of ${edges.length.toLocaleString("en")}, most influential first`;
}
let pending = 0;
slider.addEventListener("input", () => {
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(refreshEdges);
});

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
  const { id, pos } = nodes[i];
  light(pos === null ? [] : tokens[pos].atoms, pos === null ? [] : [pos], [id]);
  drawEdges(overlay, incident[i], 0.45);
  graphBox.classList.add("focus");
}
function lightPositions(positions, atoms) {
  light(atoms, positions, nodes.filter((n) => positions.includes(n.pos)).map((n) => n.id));
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
  const place = n.layer < 0 ? "input" : n.layer >= data.n_layers ? "target" : layerName(n.layer);
  tip(event, n.label, [`${place} · ${tokenText(n.pos)}`, `activation ${num(n.activation)} · influence ${num(n.influence)}`
    + (n.effect === null ? "" : ` · effect ${num(n.effect)}`)]);
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
      `mass ${share(t.score)} · signed effect ${num(t.signed)}`]);
  }
  const atom = Number(hit.dataset.atom);
  const own = tokens.filter((t) => t.kind === "atom" && t.atoms.includes(atom));
  lightPositions(own.map((t) => t.pos), [atom]);
  tip(event, `atom ${atom}`, own.map((t) => `${tokenText(t.pos)} · mass ${share(t.score)} · signed ${num(t.signed)}`));
}
document.addEventListener("pointerover", point);
document.addEventListener("focusin", (event) => { if (nodeOf(event.target) !== undefined) point(event); });
document.addEventListener("pointerleave", rest);

// ---- card ----
function select(i) {
  if (selected !== null) nodeElements.get(nodes[selected].id).classList.remove("selected");
  selected = i;
  if (i === null) $("card").replaceChildren(make("p", { class: "note" }, "Click a node, or a name in the table of features."));
  else {
    nodeElements.get(nodes[i].id).classList.add("selected");
    $("card").replaceChildren(...card(i));
    $("card").scrollTop = 0;
  }
  rest();
}
document.addEventListener("click", (event) => {
  const i = nodeOf(event.target);
  if (i === undefined) return;
  select(i);
  if (matchMedia("(max-width: 900px)").matches) $("card").scrollIntoView({ behavior: "smooth", block: "nearest" });
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") select(null); });

function rows(pairs) {
  const list = make("dl", { class: "facts" });
  for (const [name, value] of pairs) list.append(make("dt", {}, name), make("dd", {}, value));
  return list;
}
function neighbours(title, i, end) {
  const list = incident[i].filter((e) => e[1 - end] === i), top = list.slice(0, 12);
  const box = make("div", {}, make("h4", {}, list.length > top.length ? `${title}, 12 of ${list.length}` : `${title}`));
  if (!list.length) box.append(make("p", { class: "note" }, "none kept"));
  for (const edge of top) {
    const other = nodes[edge[end]];
    box.append(make("button", { type: "button", class: `neighbour ${sign(edge[2])}`, "data-ref": other.id },
      make("i", { style: `width:${100 * Math.abs(edge[2]) / Math.abs(top[0][2] || 1)}%` }),
      make("span", {}, other.label), make("small", {}, other.pos === null ? "" : tokens[other.pos].text),
      make("b", {}, num(edge[2]))));
  }
  return box;
}
function example(e) {
  const figure = make("figure", { class: "example" });
  figure.innerHTML = e.svg;
  const strip = make("div", { class: "strip mini", title: e.smiles });
  for (const [text, activation, colour] of e.tokens) {
    strip.append(make("span", { style: `background:${colour}`, title: `activation ${num(activation)}` }, text));
  }
  figure.append(strip, make("figcaption", {}, `activation ${num(e.activation)}`));
  return figure;
}
const GROUPS = { top: "Fires most", middle: "Fires at the middle of its range", weak: "Fires weakly" };
function card(i) {
  const n = nodes[i], feature = data.features[`${n.layer}_${n.feature}`];
  const check = data.verification.nodes.find((v) => v.id === n.id);
  const facts = [["where", tokenText(n.pos)], ["activation", num(n.activation)], ["influence", num(n.influence)]];
  if (n.effect !== null) facts.push(["effect on target", num(n.effect)]);
  if (check) {
    facts.push(["removing it", `predicted ${num(check.predicted)}, frozen ${num(check.frozen)}, `
      + `free-running ${num(check.free_running)}`]);
  }
  const kind = n.kind === "feature" ? `Feature ${n.feature}, ${layerName(n.layer)}` : n.kind === "error" ? `Error, ${layerName(n.layer)}` : n.kind;
  const parts = [make("p", { class: "kind" }, kind), make("h3", {}, n.label)];
  if (feature && n.kind === "feature") {
    const interval = feature.f1_ci ? ` [${num(feature.f1_ci[0])}, ${num(feature.f1_ci[1])}]` : "";
    parts.push(make("p", { class: "note" }, feature.concept === null ? "No concept matched beyond chance."
      : `${feature.concept}: F1 ${num(feature.f1)}${interval}, null ${num(feature.null_f1)}, q ${num(feature.q)}`));
    facts.push(["density", `${share(feature.density)} of tokens`]);
  }
  parts.push(rows(facts));
  if (n.kind === "feature" && !feature) parts.push(make("p", { class: "note" }, "No card was computed for this feature."));
  if (feature?.top_outputs.length && n.kind === "feature") {
    parts.push(make("h4", {}, "Outputs it promotes"), make("p", { class: "outputs" }, ...feature.top_outputs.map((o) =>
      make("code", { class: sign(o.weight), title: num(o.weight) }, o.token))));
  }
  parts.push(make("div", { class: "pair" }, neighbours("Inputs", i, 0), neighbours("Outputs", i, 1)));
  for (const group of feature && n.kind === "feature" ? Object.keys(GROUPS) : []) {
    const found = feature.examples.filter((e) => e.group === group);
    if (found.length) parts.push(make("h4", {}, GROUPS[group]), make("div", { class: "examples" }, ...found.map(example)));
  }
  return parts;
}

drawGraph();
slider.value = String(1000 * Math.sqrt(Math.min(1, 300 / Math.max(1, edges.length))));
refreshEdges();
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => { drawGraph(); refreshEdges(); if (selected !== null) select(selected); }, 150);
});
