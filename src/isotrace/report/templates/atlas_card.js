// The card of one feature, and its examples, which are drawn when they come into view.
const EXAMPLE_GROUPS = [["Fires most", null], ["Fires at the middle of its range", null], ["Near misses",
  "Sequences that carry the feature's concept, or come close, where the feature stays silent or weak."]];
const WHY = {
  f1: "no F1: the feature was not tested, or its best concept belongs to whole sequences",
  q: "no q: the feature was not tested",
  moran: "not computed: Moran's I needs neighbouring elements on which the activation differs",
  whole: "not computed: the feature has one activation of a whole sequence",
  stability: "not computed: it needs other spellings of the same thing on which the feature fires",
  null: "no null was computed for it",
  other: "not computed",
};
const SCORES = { token: "F1", class: "AUROC", value: "Spearman ρ" };
const waiting = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting || !waiting.has(entry.target)) continue;
    const draw = waiting.get(entry.target);
    waiting.delete(entry.target);
    watcher.unobserve(entry.target);
    draw();
  }
}, { rootMargin: "200px" });

function facts(pairs) {
  const list = make("dl", { class: "facts" });
  for (const [name, ...values] of pairs) list.append(make("dt", {}, name), make("dd", {}, ...values));
  return list;
}
const nodes = (...parts) => { const all = document.createDocumentFragment(); all.append(...parts); return all; };
const block = (title, ...children) => make("section", { class: "part" }, make("h4", {}, title), ...children);
const get = (columns, row) => new Proxy(columns, { get: (target, name) => target[name].get(row) });

// Concepts that go with a feature, its best first.
function conceptTables(associations, total) {
  const parts = [];
  const lines = (list, heads, cellsOf) => make("div", { class: "scroll" }, make("table", { class: "concepts" },
    make("thead", {}, make("tr", {}, ...heads.map(([name, title]) => make("th", { title }, name)))),
    make("tbody", {}, ...list.map((a) => make("tr", {}, ...cellsOf(a).map((c, k) => make(k ? "td" : "th", {}, c)))))));
  const link = (name) => make("button", { type: "button", class: "link", "data-concept": name }, name);
  const spread = (low, high) => make("small", {}, ` ${interval(low, high)}`);
  const kindOf = (a) => concepts.kind.get(conceptRow.get(a.concept));
  const tokens = associations.filter((a) => kindOf(a) === "token"), whole = associations.filter((a) => kindOf(a) !== "token");
  if (tokens.length) {
    parts.push(lines(tokens, [["concept", null], ["F1", data.rows === "tokens" ? "per token, held out" : "per sequence, held out"],
      ["q", "Benjamini–Hochberg over concepts"], ["p", "permutation, largest over thresholds and features"],
      ["precision", "per token"], ["recall", "per token"], ["any-hit F1", "an instance counts once a token of it is touched"],
      ["full-cover F1", "an instance counts once all its tokens are covered"], ["InterPLM's F1", "per-token precision with any-hit recall"],
      ["InterMol's F1", "with full cover, as InterMol counts"], ["fires above", "threshold chosen on the selection side"]],
    (a) => [link(a.concept), nodes(cell(a.f1, WHY.other), spread(a.f1_ci_low, a.f1_ci_high)),
      ...["q", "p", "precision", "recall", "f1_any", "f1_full", "f1_interplm", "f1_intermol", "threshold"]
        .map((key) => cell(a[key], WHY.other))]));
  }
  if (whole.length) {
    parts.push(lines(whole, [["concept of whole sequences", null], ["AUROC", "held out; a class"], ["odds ratio", "a class"],
      ["Spearman ρ", "a value"], ["q", "Benjamini–Hochberg over concepts"], ["p", "permutation"], ["pooled by", "over the tokens of a sequence"]],
    (a) => [link(a.concept), nodes(cell(a.auroc, "a value, not a class"), spread(a.auroc_ci_low, a.auroc_ci_high)),
      cell(a.odds_ratio, "a value, not a class"), cell(a.spearman, "a class, not a value"),
      cell(a.q, WHY.other), cell(a.p, WHY.other), a.pooling ?? "–"]));
  }
  if (!associations.length) parts.push(make("p", { class: "note" }, "No concept was kept for this feature."));
  if (total > associations.length) parts.push(make("p", { class: "note" }, `The best ${associations.length} of ${total}.`));
  return parts;
}

// The best that every source reaches for a concept, with the feature at hand before them.
function rivals(feature, concept, own) {
  const row = conceptRow.get(concept), kind = concepts.kind.get(row), rows = [];
  if (own) {
    rows.push({ name: "this feature", value: own.value, low: own.low, high: own.high, null: own.null, strong: true, why: WHY.f1 });
  }
  for (const source of data.sources) {
    const read = (part) => concepts[`${source.key} ${part}`].get(row), value = read("score");
    const mine = source.key === "dictionary" && own && read("layer") === feature.layer && read("feature") === feature.feature;
    if (mine) continue;
    const where = read("layer") === null || read("layer") < 0 ? "" : ` ${read("layer")}.${read("feature")}`;
    const open = source.key === "dictionary" && where ? where.trim() : null;
    rows.push({ name: `${source.key === "dictionary" ? "best here" : source.name}${where}`, value, low: read("low"),
      high: read("high"), open, why: source.reason ?? "no association was kept for this concept" });
  }
  const lowest = Math.min(0, ...rows.flatMap((r) => [r.value, r.low]).filter((v) => v !== null));
  return dots(rows, { from: lowest < 0 ? -1 : 0, to: 1, label: SCORES[kind], nullName: "null" });
}

function effect(tokens, by, kind) {
  const end = Math.max(1e-12, ...by.map((v) => Math.abs(v ?? 0)));
  return make("div", { class: `effects ${kind}` }, ...tokens.map((token, k) => make("div", {}, make("code", {}, token),
    make("span", {}, make("i", { style: `width:${100 * Math.abs(by[k] ?? 0) / end}%` })), make("b", {}, num(by[k])))));
}

async function examplesOf(row, scale) {
  const [rows, sequences] = await Promise.all([table("examples"), table("sequences")]);
  const [first, last] = rowsOf(rows.row, row), parts = [];
  EXAMPLE_GROUPS.forEach(([title, note], group) => {
    const figures = [];
    for (let i = first; i < last; i++) if (rows.group.get(i) === group) figures.push(figure(get(rows, i), sequences, scale));
    if (figures.length) {
      parts.push(block(title, note ? make("p", { class: "note" }, note) : null, make("div", { class: "examples" }, ...figures)));
    }
  });
  if (!parts.length) parts.push(make("p", { class: "note" }, "No examples were kept for this feature."));
  return parts;
}
function figure(example, sequences, scale) {
  const sequence = get(sequences, example.slot), box = make("div", { class: "drawing" });
  const element = make("figure", { class: "example" }, box, make("figcaption", {}, make("b", {}, num(example.activation)), " ",
    make("span", { title: sequence.sequence }, sequence.name ?? `sequence ${sequence.index}`), make("small", {}, sequence.side === null ? "" : ` · ${sequence.side}`)));
  const activations = new Map(example.positions.map((p, k) => [p, example.values[k]]));
  waiting.set(element, async () => {
    const per = data.pictures_per_block, picture = (await pictures(Math.floor(example.slot / per)))[example.slot % per];
    box.replaceChildren(...drawPicture(picture, activations, scale));
    const drawing = box.firstChild;
    const width = Number(drawing.getAttribute("width"));
    if (picture.kind === "track" || width > 700) element.classList.add("whole");
    else if (width > 330) element.classList.add("wide");
  });
  watcher.observe(element);
  return element;
}

async function card(row) {
  const f = get(features, row);
  const [detailTable, associationTable] = await Promise.all([table("details"), table("associations")]);
  const d = get(detailTable, row), [first, last] = rowsOf(associationTable.row, row);
  const associations = [];
  for (let i = first; i < last; i++) associations.push(get(associationTable, i));
  const concept = f.concept ?? associations[0]?.concept ?? null;
  const kind = concept === null ? null : concepts.kind.get(conceptRow.get(concept));
  const own = associations.find((a) => a.concept === concept);
  const score = !own ? null : kind === "token" ? { value: own.f1, low: own.f1_ci_low, high: own.f1_ci_high, null: f.null_f1 }
    : { value: kind === "class" ? own.auroc : own.spearman, low: own.auroc_ci_low, high: own.auroc_ci_high };
  const beside = (value, chance, why) => nodes(cell(value, why), " ", make("small", {}, "null ", cell(chance, WHY.null)));
  const left = make("div", {}, facts([
    ["fires on", cell(f.density, WHY.other, share), ` of ${data.rows}`],
    ["largest activation", cell(f.max_activation, WHY.other), make("small", {}, ` mean ${num(f.mean_activation)}`)],
    ["q", cell(f.q, f.reason ?? WHY.q)],
    ["Moran's I", beside(f.moran_i, f.moran_null, data.rows === "tokens" ? WHY.moran : WHY.whole)],
    ["stability over spellings", beside(f.stability, f.stability_null, data.rows === "tokens" ? WHY.stability : WHY.whole)],
  ]), block(`Activations of ${data.rows}`, d.histogram.length && f.max_activation !== null
    ? histogram(d.histogram, f.max_activation, `Number of ${data.rows} by activation`) : make("p", { class: "note" }, "Never active.")));
  const right = make("div", {});
  if (concept !== null) {
    right.append(block(`${SCORES[kind]} for “${concept}”, held out`, rivals(f, concept, score),
      make("p", { class: "note" }, "Of each source, the feature chosen on the selection side. Null: 95 % quantile of this "
        + "feature's own F1 at its threshold when labels are shuffled.")));
  }
  if (d.promoted.length || d.suppressed.length) {
    right.append(block("What it does to the logits where it fires most (against ablating it)", make("div", { class: "pair" },
      effect(d.promoted, d.promoted_by, "up"), effect(d.suppressed, d.suppressed_by, "down"))));
  }
  const examples = make("div", { class: "groups" });
  examplesOf(row, f.max_activation ?? 0).then((parts) => examples.replaceChildren(...parts));
  return [
    make("p", { class: "kind" }, `Feature ${f.feature}, layer ${f.layer}`),
    make("h3", {}, f.label),
    d.explanation === null ? null : make("p", { class: "explanation" }, d.explanation, make("small", {}, " written by a language model")),
    f.reason === null ? null : make("p", { class: "note" }, f.reason),
    make("div", { class: "halves" }, left, right), block("Concepts", ...conceptTables(associations, f.n_associations)), examples,
  ].filter((part) => part !== null);
}
