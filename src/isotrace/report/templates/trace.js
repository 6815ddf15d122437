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
let nodes, edges, byId, closed, incident, maxInfluence, maxWeight, at, nodeElements, edgeLayer, edgeCanvas, overlay, graphBox;
const largest = (list, of) => list.reduce((most, item) => Math.max(most, of(item)), 1e-12);
function use(graph) {
  ({ nodes, edges, byId } = graph);
  closed = graph !== whole;
  incident = nodes.map(() => []);
  for (const edge of edges) { incident[edge[0]].push(edge); if (edge[1] !== edge[0]) incident[edge[1]].push(edge); }
  maxInfluence = largest(nodes, (n) => n.influence ?? 0);
  maxWeight = largest(edges, (e) => Math.abs(e[2]));
}
const whole = { nodes: data.nodes, edges: data.edges, byId: new Map(data.nodes.map((n, i) => [n.id, i])) };
const SYNTAX = -0.5;  // the lane of syntax lies between the tokens and the first layer
const laneName = (layer) => (layer === -1 ? (closed ? `${data.element}s` : "tokens") : layer === SYNTAX ? "syntax"
  : layer === data.n_layers ? "target" : `${side(layer).slice(0, 3) || "layer"} ${layer}`);
const radius = (n) => 2.5 + 5 * Math.sqrt((n.influence ?? 0) / maxInfluence);
const places = (n) => n.places ?? (n.pos === null ? [] : [n.pos]);

// ---- drawing ----
// Lanes from the target down to the tokens; of closed graphs those that hold something.
function lanes() {
  const all = [data.n_layers, ...Array.from({ length: data.n_layers }, (_, k) => data.n_layers - 1 - k), SYNTAX, -1];
  const held = new Set(nodes.map((n) => n.layer));
  return all.filter((layer) => (closed ? held.has(layer) : layer !== SYNTAX));
}
function stack(heightOf) {
  const base = new Map();
  let y = TOP;
  for (const layer of lanes()) { base.set(layer, { top: y, height: heightOf(layer) }); y += heightOf(layer); }
  return { base, bottom: y };
}

// A cell is one layer at one position; its nodes sit in a small grid, so that none hides another.
function place() {
  const cells = new Map();
  nodes.forEach((n, i) => {
    const key = `${n.layer} ${n.pos}`;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(i);
  });
  const widest = tokens.map(() => 1), tallest = new Map();
  for (const list of cells.values()) {
    list.sort((a, b) => (nodes[b].influence ?? 0) - (nodes[a].influence ?? 0));
    const { pos } = nodes[list[0]];
    if (pos !== null) widest[pos] = Math.max(widest[pos], Math.ceil(Math.sqrt(list.length / 2)));
  }
  for (const list of cells.values()) {
    const { pos, layer } = nodes[list[0]];
    const columns = pos === null ? list.length : widest[pos];
    tallest.set(layer, Math.max(tallest.get(layer) ?? 1, Math.ceil(list.length / columns)));
  }
  const natural = tokens.map((t, p) => Math.max(SLOT * widest[p] + 6, 7.4 * t.text.length + 6));
  const sum = natural.reduce((a, b) => a + b, 0);
  const stretch = Math.max(1, (room() - LEFT - 14) / sum);
  const centre = [];
  let x = LEFT;
  for (const w of natural) { centre.push(x + w * stretch / 2); x += w * stretch; }
  const width = x + 12, { base, bottom } = stack((layer) => (tallest.get(layer) ?? 1) * SLOT + 26);
  for (const list of cells.values()) {
    const { pos, layer } = nodes[list[0]], columns = pos === null ? list.length : widest[pos];
    const rows = Math.ceil(list.length / columns), band = base.get(layer);
    list.forEach((i, k) => {
      const row = Math.floor(k / columns), inRow = Math.min(columns, list.length - row * columns);
      at[i] = [(pos === null ? (LEFT + width) / 2 : centre[pos]) + (k % columns - (inRow - 1) / 2) * SLOT,
        band.top + band.height / 2 + (row - (rows - 1) / 2) * SLOT];
    });
  }
  return { width, height: bottom + 30, centre, base };
}

// A closed graph is as wide as its box: nodes carry their names and stand as near to their tokens as names that do not
// touch allow. Errors stand at the right edge.
const ROW = 30, EDGE = 20;
function placeNamed() {
  const width = room(), right = width - EDGE, rows = new Map(), row = new Array(nodes.length);
  const longest = Math.floor((right - LEFT - 10) / 6.4);
  const middle = (n) => LEFT + (right - LEFT) * ((n.places ?? [n.pos]).reduce((a, b) => a + b, 0) / (n.places ?? [0]).length + 0.5) / tokens.length;
  nodes.forEach((n, i) => {
    n.shown = short(n.label, Math.min(NAME, longest));
    if (n.kind === "error") at[i] = [width - EDGE / 2, 0];
    if (n.kind === "target") at[i] = [(LEFT + right) / 2, 0];
  });
  const named = nodes.map((_, i) => i).filter((i) => at[i] === undefined).sort((a, b) => middle(nodes[a]) - middle(nodes[b]));
  const half = (i) => 3.2 * nodes[i].shown.length + 6;
  for (const i of named) rows.set(nodes[i].layer, [...(rows.get(nodes[i].layer) ?? []), i]);
  for (const [layer, list] of rows) {
    // As few rows as there must be, dealt in turn, so that each spans the width.
    let dealt = [list];
    for (let n = 2; dealt.some((part) => part.reduce((sum, i) => sum + 2 * half(i), 0) > right - LEFT); n++) {
      dealt = Array.from({ length: n }, (_, r) => list.filter((_, k) => k % n === r));
    }
    dealt.forEach((part, r) => {
      let end = LEFT;
      const x = part.map((i) => { const left = Math.max(end, middle(nodes[i]) - half(i)); end = left + 2 * half(i); return left; });
      let limit = right;
      for (let k = part.length - 1; k >= 0; k--) { x[k] = Math.min(x[k], limit - 2 * half(part[k])); limit = x[k]; }
      part.forEach((i, k) => { at[i] = [x[k] + half(i), 0]; row[i] = r; });
    });
    rows.set(layer, dealt);
  }
  const { base, bottom } = stack((layer) => Math.max(1, rows.get(layer)?.length ?? 0) * ROW + 12);
  nodes.forEach((n, i) => {
    const { top, height } = base.get(n.layer);
    at[i][1] = row[i] === undefined ? top + height / 2 : top + height - 12 - ROW * row[i];
  });
  return { width, height: bottom + 8, centre: null, base };
}
const room = () => $("graph").clientWidth;
const NAME = 28, short = (text, most = NAME) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

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
  const { width, height, centre, base } = closed ? placeNamed() : place();
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  const back = make("g"), names = make("svg", { class: "names", width: 54, height }), marks = make("g", { class: "marks" });
  names.append(make("rect", { width: 54, height }));
  [...base].forEach(([layer, { top, height: h }], k) => {
    if (k % 2) back.append(make("rect", { class: "band", x: 0, y: top, width, height: h }));
    names.append(make("text", { class: "axis", x: 6, y: top + h / 2 + 4 }, laneName(layer)));
  });
  // Edges lie in a layer of their own, which the browser composes: dimming it on hover repaints nothing.
  edgeLayer = make("svg", { ...size, class: "edges", "aria-hidden": "true" });
  edgeCanvas = make("canvas", { width, height, class: "edges", "aria-hidden": "true" });
  overlay = make("g", { class: "overlay" });
  if (centre) tokens.forEach((t, p) => marks.append(make("text",
    { class: `label ${t.kind}${t.writes.length ? " element" : ""}`, x: centre[p], y: height - 14, "text-anchor": "middle", "data-column": p }, t.text)));
  nodes.forEach((n, i) => {
    const element = shape(n, at[i]);
    nodeElements.set(n.id, element);
    marks.append(element);
    if (n.kind === "target" || (closed && n.kind !== "error")) {
      const lift = n.kind === "target" ? 14 : radius(n) + 4, small = n.kind === "target" ? "" : " small";
      marks.append(make("text", { class: `goal${small}`, x: at[i][0], y: at[i][1] - lift, "text-anchor": "middle",
        "data-name": n.id }, make("title", {}, n.label), closed && n.shown ? n.shown : n.label));
    }
  });
  const scale = closed ? 1 : Math.min(1, Math.max(LEAST, room() / width));
  graphBox = make("div", { class: "canvas", style: `width:${width}px;height:${height}px;transform:scale(${scale})` },
    make("svg", { ...size, "aria-hidden": "true" }, back), edgeLayer, edgeCanvas,
    make("svg", { ...size, role: "img", "aria-label": "Attribution graph; the table below lists its features" }, overlay, marks),
    names);
  $("graph").replaceChildren(make("div", { style: `width:${width * scale}px;height:${height * scale}px` }, graphBox));
  $("wide").hidden = width * scale <= room() + 1;
}
const LEAST = 0.7;  // a graph of single features shrinks to fit its box, no further than one can read; then it scrolls

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
  const order = !closed ? "most influential" : "largest sum";
  $("shown").textContent = `${n.toLocaleString("en")} of ${edges.length.toLocaleString("en")}, ${order} first`;
}
let pending = 0;
slider.addEventListener("input", () => { cancelAnimationFrame(pending); pending = requestAnimationFrame(refreshEdges); });

// ---- what lights up together ----
let selected = null, lit = [];
function light(elements, positions, ids) {
  for (const element of lit) element.classList.remove("lit");
  lit = ids.map((id) => nodeElements.get(id));
  for (const pos of positions) lit.push(...document.querySelectorAll(`#strip [data-pos="${pos}"], [data-column="${pos}"]`));
  for (const e of elements) lit.push(...document.querySelectorAll(`#drawing .hit[data-element="${e}"]`));
  for (const element of lit) element.classList.add("lit");
}
function lightNode(i) {
  const here = places(nodes[i]);
  light(here.flatMap((pos) => tokens[pos].about), here, [nodes[i].id]);
  drawEdges(overlay, incident[i], 0.45);
  graphBox.classList.add("focus");
}
function lightPositions(positions, elements) {
  light(elements, positions, nodes.filter((n) => places(n).some((p) => positions.includes(p))).map((n) => n.id));
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
  if (n.layers) return tip(event, n.label, groupLines(n));
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
  const hit = event.target.closest("#drawing .hit");
  if (!token && !hit) return rest();
  if (token) {
    const t = tokens[token.dataset.pos];
    lightPositions([t.pos], t.about);
    return tip(event, t.text, [`${t.kind}${t.masked ? ", masked" : ""} · position ${t.pos}`,
      `effect ${num(t.signed)} · hiding it ${num(t.hidden)} · mass ${share(t.score)}`]);
  }
  const element = Number(hit.dataset.element);
  const own = tokens.filter((t) => t.writes.includes(element));
  lightPositions(own.map((t) => t.pos), [element]);
  const u = data.units.find((unit) => unit.index === element);
  const told = u === undefined ? [] : [`effect ${num(u.score)}${u.sd === null ? "" : ` ± ${num(u.sd)}`} ${data.target.unit}`,
    `hiding it ${num(u.hidden)} · mass ${share(u.mass)}`];
  tip(event, u?.name ?? `${data.element} ${element}`, [...(u?.imgt ? [`${u.chain} chain, IMGT ${u.imgt}`] : []), ...told, ...own.map((t) => tokenText(t.pos))]);
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
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => { drawGraph(); refreshEdges(); if (selected !== null) select(selected); }, 150);
});
