// Plots of the trace page: predicted against measured effects, circuit against controls, spellings.
const extent = (values) => {
  const low = Math.min(...values), high = Math.max(...values), pad = 0.06 * (high - low || Math.abs(high) || 1);
  return [low - pad, high + pad];
};
function ticks([low, high], count = 4) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const list = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) list.push(Number((k * step).toPrecision(12)));
  return list;
}
const plain = (x) => String(x).replace("-", "−");

// Axes of a plot; y is null for plots whose rows are named by hand.
function axes(width, height, x, y, xLabel, yLabel, left = 52) {
  const svg = make("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": yLabel ? `${yLabel} against ${xLabel}` : xLabel });
  const [bottom, right, top] = [height - 40, width - 12, 10];
  const sx = (v) => left + (v - x[0]) / (x[1] - x[0]) * (right - left);
  const sy = (v) => bottom - (v - y[0]) / (y[1] - y[0]) * (bottom - top);
  for (const v of ticks(x)) {
    svg.append(make("line", { class: "grid", x1: sx(v), x2: sx(v), y1: top, y2: bottom }),
      make("text", { class: "axis", x: sx(v), y: bottom + 15, "text-anchor": "middle" }, plain(v)));
  }
  for (const v of y ? ticks(y) : []) {
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

function scatter(id, field, label) {
  const points = data.verification.nodes.filter((v) => v.predicted !== null && v[field] !== null && byId.has(v.id));
  if (!points.length) return put(id, null);
  const span = extent(points.flatMap((v) => [v.predicted, v[field]]));
  const { svg, sx, sy } = axes(300, 290, span, span, "predicted change of the target", label);
  svg.append(make("line", { class: "identity", x1: sx(span[0]), x2: sx(span[1]), y1: sy(span[0]), y2: sy(span[1]) }));
  for (const v of points) {
    svg.append(make("circle", { class: "dot", cx: sx(v.predicted), cy: sy(v[field]), r: 4, "data-ref": v.id }));
  }
  put(id, svg);
}

function controls() {
  const { circuit } = data, measures = ["sufficiency", "necessity"];
  const all = [0, 1, ...measures.flatMap((m) => [circuit[m], ...circuit.control[m]])].filter((v) => v !== null);
  const { svg, sx, top, bottom } = axes(300, 290, extent(all), null, "share of the target", "", 76);
  measures.forEach((m, row) => {
    const y = top + (bottom - top) * (0.27 + 0.46 * row);
    svg.append(make("text", { class: "axis name", x: 68, y: y + 4, "text-anchor": "end" }, m));
    // The vertical offset only keeps dots apart: golden-ratio steps fill a band evenly.
    circuit.control[m].forEach((v, k) => {
      if (v !== null) svg.append(make("circle", { class: "chance", cx: sx(v), cy: y + 34 * ((k * 0.618) % 1 - 0.5), r: 3.5 }));
    });
    const ci = circuit.control[`${m}_ci`], mean = circuit.control[`${m}_mean`];
    if (mean !== null) svg.append(make("line", { class: "mean", x1: sx(mean), x2: sx(mean), y1: y - 24, y2: y + 24 }));
    if (ci && ci[0] !== null && ci[1] !== null) {
      svg.append(make("line", { class: "mean", x1: sx(ci[0]), x2: sx(ci[1]), y1: y + 24, y2: y + 24 }));
    }
    if (circuit[m] !== null) {
      svg.append(diamond(sx(circuit[m]), y), make("text", { class: "axis value", x: sx(circuit[m]), y: y - 14,
        "text-anchor": "middle" }, num(circuit[m])));
    }
  });
  put("control", svg);
}
const diamond = (x, y) => make("polygon", { class: "circuit", points: `${x},${y - 8} ${x + 8},${y} ${x},${y + 8} ${x - 8},${y}` });

function curve() {
  const points = data.circuit.curve.filter((p) => p.sufficiency !== null);
  if (!points.length) return put("curve", null);
  const log = (p) => Math.log10(p.n), { n_features: n, sufficiency } = data.circuit;
  const x = extent([...points.map(log), Math.log10(n)]), y = extent([0, 1, sufficiency ?? 0, ...points.map((p) => p.sufficiency)]);
  const { svg, sx, sy } = axes(300, 290, x, y, "features in the circuit (log₁₀)", "sufficiency");
  svg.append(make("path", { class: "line", d: `M${points.map((p) => `${sx(log(p))} ${sy(p.sufficiency)}`).join("L")}` }));
  for (const p of points) svg.append(make("circle", { class: "chance", cx: sx(log(p)), cy: sy(p.sufficiency), r: 3.5 }));
  if (sufficiency !== null) svg.append(diamond(sx(Math.log10(n)), sy(sufficiency)));
  put("curve", svg);
}

function spellings() {
  const units = data.spellings.units.filter((u) => u.mean !== null && u.sd !== null);
  if (!units.length) return put("spelling", null);
  const symbol = new Map(data.units.map((u) => [u.index, u.symbol]));
  const y = extent([0, ...units.flatMap((u) => [u.mean - u.sd, u.mean + u.sd])]);
  const width = Math.max(360, 70 + 30 * units.length), height = 280, left = 52, bottom = height - 40;
  const svg = make("svg", { class: "plot", width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "Effect of each atom over spellings" });
  const sy = (v) => bottom - (v - y[0]) / (y[1] - y[0]) * (bottom - 10);
  for (const v of ticks(y)) {
    svg.append(make("line", { class: v === 0 ? "zero" : "grid", x1: left, x2: width - 8, y1: sy(v), y2: sy(v) }),
      make("text", { class: "axis", x: left - 6, y: sy(v) + 4, "text-anchor": "end" }, plain(v)));
  }
  units.forEach((u, k) => {
    const x = left + 22 + 30 * k;
    svg.append(make("line", { class: `whisker ${sign(u.mean)}`, x1: x, x2: x, y1: sy(u.mean - u.sd), y2: sy(u.mean + u.sd) }),
      make("circle", { class: `whisker ${sign(u.mean)}`, cx: x, cy: sy(u.mean), r: 4.5 }),
      make("text", { class: "axis name", x, y: bottom + 16, "text-anchor": "middle" }, symbol.get(u.index) ?? ""),
      make("text", { class: "axis", x, y: bottom + 30, "text-anchor": "middle" }, u.index));
  });
  put("spelling", svg);
}

scatter("frozen", "frozen", "measured, frozen");
scatter("free", "free_running", "measured, free-running");
controls();
if (data.circuit.curve.length) curve();
if (data.spellings) spellings();
