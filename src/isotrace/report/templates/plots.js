// Plots of the trace page: predicted against measured effects, circuit against controls, spellings, the circuit as a
// network; supernodes, and the card of the selected node.
const extent = (values) => {
  const low = Math.min(...values), high = Math.max(...values), pad = 0.06 * (high - low || Math.abs(high) || 1);
  return [low - pad, high + pad];
};

// Axes of a plot; y is null for plots whose rows are named by hand.
function axes(width, height, x, y, xLabel, yLabel, left = 52) {
  const svg = make("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": yLabel ? `${yLabel} against ${xLabel}` : xLabel });
  const [bottom, right, top] = [height - 40, width - 12, 10];
  const sx = (v) => left + (v - x[0]) / (x[1] - x[0]) * (right - left);
  const sy = (v) => bottom - (v - y[0]) / (y[1] - y[0]) * (bottom - top);
  for (const v of nice(...x)) {
    svg.append(make("line", { class: "grid", x1: sx(v), x2: sx(v), y1: top, y2: bottom }),
      make("text", { class: "axis", x: sx(v), y: bottom + 15, "text-anchor": "middle" }, plain(v)));
  }
  for (const v of y ? nice(...y) : []) {
    svg.append(make("line", { class: "grid", x1: left, x2: right, y1: sy(v), y2: sy(v) }),
      make("text", { class: "axis", x: left - 6, y: sy(v) + 4, "text-anchor": "end" }, plain(v)));
  }
  svg.append(make("text", { class: "axis name", x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel));
  if (yLabel) {
    svg.append(make("text", { class: "axis name", "text-anchor": "middle",
      transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)` }, yLabel));
  }
  return { svg, sx, sy, left, right, top, bottom };
}
function put(id, svg) { $(id).replaceChildren(svg ?? make("p", { class: "note" }, "No finite values to plot.")); }

// Exact points were measured before they were predicted, and lie on the line: they are drawn hollow.
function scatter(id, known, field, label) {
  const points = data.verification.nodes.filter((v) => v[known] !== null && v[field] !== null && byId.has(v.id));
  if (!points.length) return put(id, null);
  const span = extent(points.flatMap((v) => [v[known], v[field]]));
  const { svg, sx, sy } = axes(300, 290, span, span, `predicted fall, ${data.target.unit}`, label);
  svg.append(make("line", { class: "identity", x1: sx(span[0]), x2: sx(span[1]), y1: sy(span[0]), y2: sy(span[1]) }));
  for (const v of points) {
    const hollow = v.exact && known === "predicted" ? " exact" : "";
    svg.append(make("circle", { class: `dot${hollow}`, cx: sx(v[known]), cy: sy(v[field]), r: 4, "data-ref": v.id }));
  }
  put(id, svg);
}

function controls() {
  const { circuit } = data, rows = [["value", "alone"], ["removed", "removed"]], neurons = circuit.neurons.value;
  const all = [circuit.full, circuit.empty, neurons, ...rows.flatMap(([m]) => [circuit[m], ...circuit.control[m]])];
  const { svg, sx, top, bottom } = axes(300, 290, extent(all.filter((v) => v !== null)), null, data.target.unit, "", 76);
  for (const [value, name] of [[circuit.full, "model"], [circuit.empty, "model broken"]]) {
    svg.append(make("line", { class: name, x1: sx(value), x2: sx(value), y1: top, y2: bottom }));
  }
  rows.forEach(([m, label], row) => {
    const y = top + (bottom - top) * (0.27 + 0.46 * row);
    svg.append(make("text", { class: "axis name", x: 68, y: y + 4, "text-anchor": "end" }, label));
    // The vertical offset only keeps dots apart: golden-ratio steps fill a band evenly.
    circuit.control[m].forEach((v, k) => {
      if (v !== null) svg.append(make("circle", { class: "chance", cx: sx(v), cy: y + 34 * ((k * 0.618) % 1 - 0.5), r: 3.5 }));
    });
    if (circuit[m] !== null) {
      svg.append(diamond(sx(circuit[m]), y), make("text", { class: "axis value", x: sx(circuit[m]), y: y - 14,
        "text-anchor": "middle" }, num(circuit[m])));
    }
    if (m === "value" && neurons !== null) {
      svg.append(make("rect", { class: "neurons", x: sx(neurons) - 5, y: y - 5, width: 10, height: 10 }));
    }
  });
  put("control", svg);
}
const diamond = (x, y) => make("polygon", { class: "circuit", points: `${x},${y - 8} ${x + 8},${y} ${x},${y + 8} ${x - 8},${y}` });

function curve() {
  const { sizes, full, n_features: n, value } = data.circuit, points = sizes.filter((p) => p.value !== null);
  if (!points.length) return put("curve", null);
  const log = (n) => Math.log10(n), x = extent([log(n), ...points.map((p) => log(p.n))]);
  const { svg, sx, sy, left, right } = axes(300, 290, x, extent([full, value, ...points.map((p) => p.value)]),
    "features in the circuit (log₁₀)", data.target.unit);
  svg.append(make("line", { class: "model", x1: left, x2: right, y1: sy(full), y2: sy(full) }),
    make("path", { class: "line", d: `M${points.map((p) => `${sx(log(p.n))} ${sy(p.value)}`).join("L")}` }));
  for (const p of points) svg.append(make("circle", { class: "chance", cx: sx(log(p.n)), cy: sy(p.value), r: 3.5 }));
  svg.append(diamond(sx(log(n)), sy(value)));
  put("curve", svg);
}

function spellings() {
  const units = data.spellings.units.filter((u) => u.mean !== null && u.sd !== null);
  if (!units.length) return put("spelling", null);
  const named = new Map(data.units.map((u) => [u.index, u]));
  const y = extent([0, ...units.flatMap((u) => [u.mean - u.sd, u.mean + u.sd])]);
  const width = Math.max(360, 70 + 30 * units.length), height = 280, left = 52, bottom = height - 40;
  const svg = make("svg", { class: "plot", width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Effect of each ${data.element} over spellings` });
  const sy = (v) => bottom - (v - y[0]) / (y[1] - y[0]) * (bottom - 10);
  for (const v of nice(...y)) {
    svg.append(make("line", { class: v === 0 ? "zero" : "grid", x1: left, x2: width - 8, y1: sy(v), y2: sy(v) }),
      make("text", { class: "axis", x: left - 6, y: sy(v) + 4, "text-anchor": "end" }, plain(v)));
  }
  units.forEach((u, k) => {
    const x = left + 22 + 30 * k;
    svg.append(make("line", { class: `whisker ${sign(u.mean)}`, x1: x, x2: x, y1: sy(u.mean - u.sd), y2: sy(u.mean + u.sd) }),
      make("circle", { class: `whisker ${sign(u.mean)}`, cx: x, cy: sy(u.mean), r: 4.5 }),
      make("text", { class: "axis name", x, y: bottom + 16, "text-anchor": "middle" }, named.get(u.index)?.symbol ?? ""),
      make("text", { class: "axis", x, y: bottom + 30, "text-anchor": "middle" }, named.get(u.index)?.number ?? u.index));
  });
  put("spelling", svg);
}

// Both curves over the edges that are left, in percent of the network's own; shuffled weights as a band.
function network() {
  const view = data.circuit.network, x = (k) => Math.log10(view.mean_degree[k]), all = view.threshold.map((_, k) => k).filter((k) => view.mean_degree[k] > 0);
  const span = extent(all.map(x)), shown = [["giant", "giant component, share of nodes"], ["susceptibility",
    "susceptibility, nodes"], ["components", "components"], ["faithfulness", "faithfulness of what is left"]];
  for (const [name, label] of shown) {
    const null_ = view.null[name], known = all.filter((k) => view[name][k] !== null);
    if (known.length < 2) { put(`network-${name}`, null); continue; }
    const values = [0, ...known.map((k) => view[name][k]), ...(null_ ? [...null_.low, ...null_.high] : [1])];
    const { svg, sx, sy, top, bottom } = axes(300, 230, span, extent(values), "mean degree (log₁₀)", label);
    const line = (list, of) => list.map((k) => `${sx(x(k))} ${sy(of[k])}`).join("L");
    if (null_) {
      svg.append(make("path", { class: "null", d: `M${line(all, null_.low)}L${line([...all].reverse(), null_.high)}Z` }),
        make("path", { class: "line", d: `M${line(all, null_.mean)}` }));
    }
    for (const [k, kind] of [[view.percolates, "percolates"], [view.breaks, "breaks"]]) {
      if (k !== null) svg.append(make("line", { class: `break ${kind}`, x1: sx(x(k)), x2: sx(x(k)), y1: top, y2: bottom }));
    }
    svg.append(make("path", { class: "measured", d: `M${line(known, view[name])}` }));
    put(`network-${name}`, svg);
  }
}

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
  const list = incident[i].filter((e) => e[1 - end] === i).sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])), top = list.slice(0, 12);
  const box = make("div", {}, make("h4", {}, list.length > top.length ? `${title}, 12 of ${list.length}` : `${title}`));
  if (!list.length) box.append(make("p", { class: "note" }, "none kept"));
  for (const edge of top) {
    const other = nodes[edge[end]];
    box.append(make("button", { type: "button", class: `neighbour ${sign(edge[2])}`, "data-ref": other.id },
      make("i", { style: `width:${100 * Math.abs(edge[2]) / Math.abs(top[0][2] || 1)}%` }),
      make("span", {}, other.label), make("small", {}, other.pos === null || other.members ? "" : tokens[other.pos].text),
      make("b", {}, num(edge[2]))));
  }
  return box;
}
function example(e) {
  const figure = make("figure", { class: "example" });
  figure.innerHTML = e.svg;
  const strip = make("div", { class: "strip mini", title: e.text });
  for (const [text, activation, colour] of e.tokens) {
    strip.append(make("span", { style: `background:${colour}`, title: `activation ${num(activation)}` }, text));
  }
  figure.append(strip, make("figcaption", {}, `activation ${num(e.activation)}`));
  return figure;
}
const GROUPS = { top: "Fires most", middle: "Fires at the middle of its range", weak: "Fires weakly" };
// Every group of features becomes one node, all syntax another, the tokens of a group of atoms and the errors of a layer
// too; edges between the same two add up.
function collapsed() {
  const found = [], home = new Array(data.nodes.length), errors = new Map();
  const add = (node, members) => {
    for (const i of members) home[i] = found.length;
    found.push({ ...node, members });
  };
  const mass = (i) => data.nodes[i].influence ?? 0, known = (list) => list.filter((v) => v !== null);
  const joined = (members, own) => {
    const list = members.map((i) => data.nodes[i]), most = members.reduce((a, b) => (mass(b) > mass(a) ? b : a));
    const layers = list.map((n) => n.layer).sort((a, b) => a - b), effects = known(list.map((n) => n.effect));
    return { feature: null, f1: null, activation: null, pos: data.nodes[most].pos, effect: effects.length ? total(effects) : null,
      influence: members.reduce((sum, i) => sum + mass(i), 0), layer: layers[Math.floor(layers.length / 2)],
      layers: [layers[0], layers.at(-1)], places: [...new Set(list.map((n) => n.pos))].sort((a, b) => a - b), ...own };
  };
  groups.members.forEach((members, k) => {
    if (members.length) add(joined(members, { id: `s${k}`, kind: "supernode", label: groups.file.groups[k].name, group: k }), members);
  });
  groups.folds.forEach(({ kind, label, members }, k) => add(joined(members, { id: `fold${k}`, kind, label,
    layer: kind === "syntax" ? SYNTAX : -1 }), members));
  data.nodes.forEach((n, i) => {
    if (n.kind === "error") errors.set(n.layer, [...(errors.get(n.layer) ?? []), i]);
    else if (home[i] === undefined) add(n, [i]);
  });
  for (const [layer, members] of errors) {
    add(joined(members, { id: `errors${layer}`, kind: "error", label: `errors of layer ${layer}` }), members);
  }
  const sums = new Map();
  for (const [s, t, w] of data.edges) {
    const key = home[s] * found.length + home[t];
    if (home[s] !== home[t]) sums.set(key, (sums.get(key) ?? 0) + w);
  }
  const list = [...sums].map(([key, w]) => [Math.floor(key / found.length), key % found.length, w]);
  const ids = new Map(found.flatMap((n, k) => [[n.id, k], ...n.members.map((i) => [data.nodes[i].id, k])]));
  return { nodes: found, edges: list.sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])), byId: ids };
}
const total = (list) => list.reduce((a, b) => a + b, 0);

// What a node that stands for several says: where they are, what they do summed, and the strongest of them.
function groupLines(n) {
  const list = n.members.map((i) => data.nodes[i]).sort((a, b) => Math.abs(b.effect ?? 0) - Math.abs(a.effect ?? 0));
  const where = n.layer < 0 && n.kind === "token" ? "" : `, ${span(n)}`, features = list.filter((m) => m.kind === "feature");
  const lines = [`${list.length} nodes${where}, at ${n.places.length} positions`, `influence ${num(n.influence)}, summed`
    + (n.effect === null ? "" : ` · effects ${num(n.effect)} ${data.target.unit}, summed`)];
  for (const m of features.slice(0, 5)) lines.push(`${m.label}, layer ${m.layer}, ${tokens[m.pos].text}: ${num(m.effect)}`);
  if (features.length > 5) lines.push(`and ${features.length - 5} more: click`);
  return lines;
}

// A supernode's name is edited here and travels with the file that is downloaded; other groups keep theirs.
function groupCard(i) {
  const n = nodes[i], parts = [make("p", { class: "kind" }, groupLines(n)[0])];
  if (n.kind === "supernode") {
    const input = make("input", { type: "text", class: "rename", value: n.label, "aria-label": "Name of the supernode" });
    input.addEventListener("input", () => {
      n.label = groups.file.groups[n.group].name = input.value;
      document.querySelector(`[data-name="${n.id}"]`).textContent = short(input.value);
    });
    parts.push(input);
  } else parts.push(make("h3", {}, n.label));
  if (n.effect !== null) parts.push(rows([["effects, summed", `${num(n.effect)} ${data.target.unit}`], ["influence, summed", num(n.influence)]]));
  const members = n.members.map((m) => data.nodes[m]).sort((a, b) => Math.abs(b.effect ?? 0) - Math.abs(a.effect ?? 0));
  if (n.kind !== "error") {
    parts.push(make("h4", {}, "What is in it"), make("ul", { class: "members" }, ...members.map((m) => make("li", {},
      m.kind === "feature" ? `${m.label} (layer ${m.layer}, ${tokens[m.pos].text} ${m.pos}): ${num(m.effect)}` : `${m.label} ${m.pos}: ${num(m.effect)}`))));
  }
  parts.push(make("div", { class: "pair" }, neighbours("Inputs, summed", i, 0), neighbours("Outputs, summed", i, 1)));
  return parts;
}
function card(i) {
  if (nodes[i].layers) return groupCard(i);
  const n = nodes[i], feature = data.features[`${n.layer}_${n.feature}`];
  const check = data.verification.nodes.find((v) => v.id === n.id);
  const facts = [["where", tokenText(n.pos)], ["activation", num(n.activation)], ["influence", num(n.influence)]];
  const unit = data.target.unit;
  if (n.measured === null) { if (n.effect !== null) facts.push(["effect in the frozen graph", `${num(n.effect)} ${unit}`]); }
  else {
    facts.push([n.measured ? "ablated, the target falls by (measured)" : "ablated, the target falls by (first order)",
      `${num(n.effect)} ${unit}`], ["predicted, first order", num(n.first_order)], ["predicted, frozen graph", num(n.graph_effect)]);
  }
  if (check) facts.push(["ablated in the frozen model", num(check.frozen)]);
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

function download() {
  const link = make("a", { href: URL.createObjectURL(new Blob([JSON.stringify(groups.file, null, 2)])), download: "supernodes.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
$("save-groups")?.addEventListener("click", download);

use($("collapse")?.checked ? collapsed() : whole);
start();
scatter("free", "predicted", "free_running", "measured, running");
scatter("graph-free", "graph", "free_running", "measured, running");
scatter("frozen", "graph", "frozen", "measured, frozen");
controls();
curve();
if (data.spellings) spellings();
if (data.circuit.network) network();
