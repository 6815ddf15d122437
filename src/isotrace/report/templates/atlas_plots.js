// Dots with intervals, bars per layer, and the histogram of activations.

// Rows {name, value, low, high, null, text, why, strong, open} on one axis from `from` to `to`. Laid out by the browser,
// so that letters keep their size on a narrow screen.
function dots(rows, { from, to, label, nullName }) {
  const at = (x) => `${100 * (x - from) / (to - from)}%`;
  const marks = nice(from, to);
  const box = make("div", { class: "dots", role: "img",
    "aria-label": `${label}: ${rows.map((r) => `${r.name} ${num(r.value)} ${interval(r.low, r.high)}`).join("; ")}` });
  for (const row of rows) {
    const track = make("div", { class: "track" }, ...marks.map((x) => make("i", { class: "tick", style: `left:${at(x)}` })));
    const known = row.value !== null;
    if (known && row.low !== null && row.high !== null) {
      track.append(make("i", { class: "ci", style: `left:${at(row.low)};width:calc(${at(row.high)} - ${at(row.low)})` }));
    }
    if (row.null !== null && row.null !== undefined) {
      track.append(make("i", { class: "chance", style: `left:${at(row.null)}`, title: `${nullName} ${num(row.null)}` }));
    }
    if (known) track.append(make("i", { class: "dot", style: `left:${at(row.value)}` }));
    const value = make("span", { class: "value" }, cell(row.value, row.why), " ",
      make("small", {}, known ? interval(row.low, row.high) : ""));
    if (row.null !== undefined) value.append(make("small", { class: "null" }, ` ${nullName} ${num(row.null)}`));
    const name = row.open ? make("button", { type: "button", class: "link", "data-open": row.open }, row.name) : row.name;
    box.append(make("div", { class: `row${row.strong ? " strong" : ""}` }, make("span", { class: "name" }, name), track, value));
  }
  box.append(make("div", { class: "row axis" }, make("span", { class: "name" }),
    make("div", { class: "track" }, ...marks.map((x) => make("span", { class: "mark", style: `left:${at(x)}` }, plain(x)))),
    make("span", { class: "value" })));
  return box;
}

// The end of an axis from 0 that holds every value.
function ceiling(values) {
  const high = Math.max(0, ...values.filter((v) => v !== null && Number.isFinite(v)));
  if (high === 0) return 1;
  const step = nice(0, high)[1];
  return Math.ceil(high / step - 1e-9) * step;
}

// nConcepts: token concepts tested, the only ones that have an F1.
function compare(sources, nConcepts) {
  const shown = ["concepts_f1_50", "concepts_f1_80"];
  const end = ceiling(sources.flatMap((s) => shown.flatMap((key) => [s[key], s[`${key}_ci`]?.[1] ?? null])));
  return shown.map((key, k) => make("figure", {},
    make("h3", {}, `Held-out F1 ≥ ${["0.5", "0.8"][k]} and q < 0.05, of ${num(nConcepts)} concepts of ${data.rows}`),
    dots(sources.map((s) => ({ name: s.name, value: s[key], low: s[`${key}_ci`]?.[0] ?? null, high: s[`${key}_ci`]?.[1] ?? null,
      why: s.reason ?? "not computed", strong: s.key === "dictionary" })),
    { from: 0, to: end, label: "concepts" })));
}

// One small panel: bars per layer, next to one another or one in front of the other. parts: [column, class, words].
function panel(rows, parts, end, caption, nested) {
  const width = 230, height = 116, left = 38, bottom = 94, top = 8, step = (width - left - 4) / Math.max(1, rows.length);
  const y = (v) => bottom - (bottom - top) * v / end, every = Math.ceil(rows.length / 12);
  const wide = nested ? Math.min(26, step * 0.78) : Math.min(13, step * 0.38);
  const svg = make("svg", { class: "panel", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": caption });
  for (const mark of nice(0, end, 2)) {
    svg.append(make("line", { class: "grid", x1: left, x2: width - 4, y1: y(mark), y2: y(mark) }),
      make("text", { class: "axis", x: left - 5, y: y(mark) + 4, "text-anchor": "end" }, plain(mark)));
  }
  rows.forEach((row, k) => {
    const middle = left + step * (k + 0.5), layer = row.layer < 0 ? "all" : String(row.layer);
    const known = parts.filter(([name]) => row[name] !== null && row[name] !== undefined);
    const ends = (name) => [row[`${name}_ci_low`] ?? null, row[`${name}_ci_high`] ?? null];
    const said = known.map(([name, , words]) => `${words} ${num(row[name])} ${interval(...ends(name))}`.trim());
    const group = make("g", {}, make("title", {}, `${layer === "all" ? "" : `layer ${layer}: `}${said.join(", ")}`),
      make("rect", { x: middle - step / 2, y: top, width: step, height: bottom - top, fill: "transparent" }));
    for (const [name, kind] of known) {
      const x = nested ? middle : middle + wide * 0.52 * (2 * parts.findIndex((p) => p[0] === name) - 1), [low, high] = ends(name);
      group.append(make("rect", { class: kind, x: x - wide / 2, width: wide, y: y(row[name]), height: bottom - y(row[name]) }));
      if (low !== null && high !== null) group.append(make("line", { class: "error", x1: x, x2: x, y1: y(low), y2: y(high) }));
    }
    if (k % every === 0) group.append(make("text", { class: "axis", x: middle, y: bottom + 14, "text-anchor": "middle" }, layer));
    svg.append(group);
  });
  return svg;
}

function coverage(rows, sources) {
  const most = ceiling(rows.flatMap((r) => [r.concepts_f1_50, r.concepts_f1_50_ci_high ?? null]));
  return sources.map((source) => {
    const list = rows.filter((r) => r.source === source.key).sort((a, b) => a.layer - b.layer);
    return make("figure", { class: "source" }, make("h3", {}, source.name), ...(list.length ? [
      panel(list, [["n_features", "whole", "features"], ["n_alive", "alive", "alive"], ["n_labelled", "labelled", "labelled"]],
        ceiling(list.flatMap((r) => [r.n_features ?? null, r.n_alive])), `${source.name}: features alive and labelled, per layer`, true),
      panel(list, [["concepts_f1_50", "half", "F1 ≥ 0.5:"], ["concepts_f1_80", "high", "F1 ≥ 0.8:"]], most,
        `${source.name}: concepts found, per layer`, false),
    ] : [make("p", { class: "note" }, source.reason ?? "no rows in the table of coverage")]));
  });
}

// Counts on a logarithmic axis: most activations are small, and the few large ones are what a feature is read by.
function histogram(counts, highest, caption) {
  const width = 400, height = 130, left = 54, bottom = 104, top = 8;
  const end = Math.max(1, Math.ceil(Math.log10(1 + Math.max(...counts))));
  const y = (v) => bottom - (bottom - top) * Math.log10(1 + v) / end, step = (width - left - 8) / counts.length;
  const svg = make("svg", { class: "histogram", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": caption });
  for (let power = 0; power <= end; power += Math.ceil(end / 4)) {
    svg.append(make("line", { class: "grid", x1: left, x2: width - 8, y1: y(10 ** power), y2: y(10 ** power) }),
      make("text", { class: "axis", x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end" }, num(10 ** power)));
  }
  counts.forEach((n, k) => svg.append(make("g", {}, make("title", {},
    `${num(n)} ${data.rows} at ${num(highest * k / counts.length)} to ${num(highest * (k + 1) / counts.length)}`),
  make("rect", { x: left + k * step, y: top, width: step, height: bottom - top, fill: "transparent" }),
  make("rect", { class: "bin", x: left + k * step + 0.5, y: y(n), width: step - 1, height: bottom - y(n) }))));
  svg.append(make("line", { class: "zero", x1: left, x2: width - 8, y1: bottom, y2: bottom }));
  for (const part of [0, 0.5, 1]) {
    svg.append(make("text", { class: "axis", x: left + part * (width - left - 8), y: bottom + 15,
      "text-anchor": part === 1 ? "end" : "middle" }, num(part * highest)));
  }
  return svg;
}
