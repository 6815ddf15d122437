// Boots the page: what is seen at once, the two tables with their filters, selection and links.
const data = JSON.parse($("data").textContent);
let features, concepts, grids;
const conceptRow = new Map(), featureRow = new Map();

const bounds = (low, high) => make("small", { title: interval(low, high) }, interval(low, high, two));
const pair = (value, chance, why) => nodes(cell(value, why, two), " ",
  make("small", { title: chance === null ? WHY.null : "its null" }, chance === null ? "–" : two(chance)));

const narrow = matchMedia("(max-width: 600px)").matches;
function featureColumns() {
  const at = (name) => (row) => features[name].get(row);
  const why = (row, text) => at("reason")(row) ?? text;
  const plainly = (name, head, title, width, text, format) => ({ name: head, title, width, down: true, value: at(name),
    show: (row) => cell(at(name)(row), why(row, text), format) });
  return [
    { name: "feature", title: "layer.feature", width: 82, value: (row) => at("layer")(row) * 1e7 + at("feature")(row),
      show: (row) => `${at("layer")(row)}.${at("feature")(row)}` },
    { name: "label", title: "best significant concept", width: narrow ? 130 : 210, kind: "words", value: at("label"),
      show: (row) => make("span", { class: at("label")(row) === "unexplained" ? "soft" : null, title: at("label")(row) }, at("label")(row)) },
    { name: "F1", title: "per token, held out, of the best concept, with its 95 % interval", width: narrow ? 140 : 174, down: true, value: at("f1"),
      show: (row) => nodes(meter(at("f1")(row), at("null_f1")(row)), cell(at("f1")(row), why(row, WHY.f1), two), " ",
        bounds(at("f1_ci_low")(row), at("f1_ci_high")(row))) },
    plainly("null_f1", "null F1", "the same with shuffled labels", 76, WHY.null, two),
    { ...plainly("q", "q", "Benjamini–Hochberg over concepts", 76, WHY.q), down: false },
    { name: "group", title: "sort of concept", width: 140, kind: "words", value: groupOf,
      show: (row) => make("span", { title: groupOf(row) ?? why(row, "no concept") }, groupOf(row) ?? "–") },
    plainly("density", "density", `share of ${data.rows} on which it fires`, 80, WHY.other, share),
    { name: "Moran's I", title: "clustering over neighbouring elements; grey: its null", width: 102, down: true, value: at("moran_i"),
      show: (row) => pair(at("moran_i")(row), at("moran_null")(row), why(row, WHY.moran)) },
    { name: "stability", title: "over spellings; grey: its null", width: 102, down: true, value: at("stability"),
      show: (row) => pair(at("stability")(row), at("stability_null")(row), why(row, WHY.stability)) },
    plainly("max_activation", "max", "largest activation", 66, WHY.other),
    plainly("mean_activation", "mean", "mean activation where it fires", 66, WHY.other),
  ];
}
// F1 as a bar with its null as a stroke.
function meter(value, chance) {
  if (value === null) return "";
  return make("span", { class: "meter" }, make("i", { style: `width:${100 * value}%` }),
    chance === null ? null : make("b", { style: `left:${100 * chance}%` }));
}
function groupOf(row) {
  const name = features.concept.get(row);
  return name === null ? null : concepts.group.get(conceptRow.get(name));
}

function conceptColumns() {
  const at = (name) => (row) => concepts[name].get(row);
  const untested = (row, text) => at("reason")(row) ?? text;
  const best = (source) => {
    const score = at(`${source.key} score`), low = at(`${source.key} low`), high = at(`${source.key} high`);
    return { name: source.key === "dictionary" ? "best here" : source.name, title: `score of the best feature: ${source.name}`,
      width: 136, down: true, value: score,
      show: (row) => nodes(cell(score(row), untested(row, source.reason ?? "no association was kept"), two), " ", bounds(low(row), high(row))) };
  };
  const columns = [
    { name: "concept", title: null, width: narrow ? 140 : 220, kind: "words", value: at("concept"),
      show: (row) => make("span", { title: at("concept")(row) }, at("concept")(row)) },
    { name: "score is", title: "by kind of concept", width: 96, value: at("kind"), show: (row) => SCORES[at("kind")(row)] },
    { name: "positive", title: "held-out tokens, or sequences, that carry it", width: 80, down: true, value: at("n_positive"),
      show: (row) => cell(at("n_positive")(row), untested(row, WHY.other)) },
    { name: "feature", title: "best feature of the dictionary", width: 80, value: (row) => featureOf(row),
      show: (row) => (featureOf(row) === null ? "–" : keyOf(featureOf(row))) },
    best(data.sources.find((s) => s.key === "dictionary")),
    { name: "q", title: "Benjamini–Hochberg over concepts", width: 76, value: at("dictionary q"),
      show: (row) => cell(at("dictionary q")(row), untested(row, "no association was kept")) },
    ...data.sources.filter((s) => s.key !== "dictionary").map(best),
    { name: "group", title: "sort of concept", width: 140, kind: "words", value: at("group"),
      show: (row) => make("span", { title: at("group")(row) }, at("group")(row)) },
  ];
  return columns;
}
const keyOf = (row) => `${features.layer.get(row)}.${features.feature.get(row)}`;
const featureOf = (row) => featureRow.get(`${concepts["dictionary layer"].get(row)}.${concepts["dictionary feature"].get(row)}`) ?? null;

// ---- filters ----
// Text is looked up among the distinct words first: 10,000 rows share a few hundred labels.
function matching(column, text) {
  const hits = new Set(column.words.flatMap((word, i) => (word.toLowerCase().includes(text) ? [i] : [])));
  const codes = column.values();
  return (row) => hits.has(codes[row]);
}
function filterFeatures() {
  const text = $("text").value.trim().toLowerCase(), layer = $("layer").value, state = $("state").value, group = $("group").value;
  const least = $("least").value === "" ? null : Number($("least").value), tests = [];
  if (text) {
    const byLabel = matching(features.label, text), byConcept = matching(features.concept, text);
    tests.push((row) => byLabel(row) || byConcept(row) || keyOf(row) === text);
  }
  if (layer !== "") tests.push((row) => features.layer.get(row) === Number(layer));
  if (state) tests.push((row) => (features.label.get(row) === "unexplained") === (state === "unexplained"));
  if (group) tests.push((row) => groupOf(row) === group);
  if (least !== null) tests.push((row) => features.f1.get(row) !== null && features.f1.get(row) >= least);
  grids.features.filter(tests.length ? (row) => tests.every((test) => test(row)) : null);
  count();
}
function filterConcepts() {
  const text = $("concept-text").value.trim().toLowerCase(), group = $("concept-group").value;
  const byName = matching(concepts.concept, text);
  grids.concepts.filter((row) => (!text || byName(row)) && (!group || concepts.group.get(row) === group));
  count();
}
function count() {
  $("count").textContent = `${num(grids.features.count())} of ${num(features.layer.n)} features`;
  $("concept-count").textContent = `${num(grids.concepts.count())} of ${num(concepts.concept.n)} concepts`;
}
const options = (select, values, name = String) => select.append(...values.map((v) => make("option", { value: v }, name(v))));

// ---- selection ----
let selected = null;
async function open(row, { scroll = false } = {}) {
  selected = row;
  grids.features.select(row);
  history.replaceState(null, "", `#f=${keyOf(row)}`);
  const parts = await card(row);
  if (selected !== row) return;  // another row was chosen while this one was read
  $("card").replaceChildren(...parts);
  if (scroll) $("card").scrollIntoView({ block: "start" });
}
function show(view) {
  $(`view-${view}`).checked = true;
  $("features-view").hidden = view !== "features";
  $("concepts-view").hidden = view !== "concepts";
}
function follow() {
  const [, kind, value] = /^#(f|c)=(.*)$/.exec(decodeURIComponent(location.hash)) ?? [];
  if (kind === "f" && featureRow.has(value)) open(featureRow.get(value), { scroll: true });
  if (kind === "f" && !featureRow.has(value)) $("card").replaceChildren(make("p", { class: "note" }, `This atlas has no feature ${value}.`));
  if (kind === "c") { show("concepts"); $("concept-text").value = value; filterConcepts(); }
}
document.addEventListener("click", (event) => {
  const key = event.target.closest("[data-open]")?.dataset.open, concept = event.target.closest("[data-concept]")?.dataset.concept;
  if (key !== undefined && featureRow.has(key)) open(featureRow.get(key), { scroll: true });
  if (concept === undefined) return;
  show("concepts");
  $("concept-text").value = concept;
  filterConcepts();
  $("atlas").scrollIntoView({ block: "start" });
});
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select") || event.ctrlKey || event.altKey || event.metaKey) return;
  const by = { j: 1, k: -1 }[event.key];
  if (by) grids.features.step(by);
  if (event.key === "/") { event.preventDefault(); show("features"); $("text").focus(); }
});

async function boot() {
  $("compare").replaceChildren(...compare(data.sources, data.n_token_concepts));
  [features, concepts] = await Promise.all([table("features"), table("concepts")]);
  for (let i = 0; i < concepts.concept.n; i++) conceptRow.set(concepts.concept.get(i), i);
  for (let i = 0; i < features.layer.n; i++) featureRow.set(keyOf(i), i);
  const small = matchMedia("(max-width: 900px)").matches;
  grids = {
    features: grid($("feature-grid"), { columns: featureColumns(), n: features.layer.n, label: "Features",
      open: (row) => open(row) }),
    concepts: grid($("concept-grid"), { columns: conceptColumns(), n: concepts.concept.n, label: "Concepts",
      open: (row) => { if (featureOf(row) !== null) open(featureOf(row), { scroll: small }); grids.concepts.select(row); } }),
  };
  options($("layer"), [...new Set(features.layer.values())].sort((a, b) => a - b), (v) => `layer ${v}`);
  const groups = [...new Set(concepts.group.words)].sort();
  options($("group"), groups);
  options($("concept-group"), groups);
  grids.features.sort(2);
  grids.concepts.sort(4);
  for (const id of ["text", "layer", "state", "group", "least"]) $(id).addEventListener("input", filterFeatures);
  for (const id of ["concept-text", "concept-group"]) $(id).addEventListener("input", filterConcepts);
  for (const view of ["features", "concepts"]) $(`view-${view}`).addEventListener("change", () => show(view));
  addEventListener("hashchange", follow);
  count();
  performance.mark("usable");
  $("coverage").replaceChildren(...coverage(data.coverage, data.sources));
  follow();
}
boot().catch((error) => {
  $("feature-grid").replaceChildren(make("p", { class: "warning" }, typeof DecompressionStream === "undefined"
    ? "This browser is too old to unpack the tables: use a version from 2023 or later." : `The tables could not be read: ${error.message}`));
  throw error;
});
