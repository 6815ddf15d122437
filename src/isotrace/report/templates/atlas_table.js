// A table of any length: only the rows in view exist. Sorting and filtering work on row numbers.
const ROW = 30, SPARE = 6;

// columns: [{key, name, title, width, value(row) → number | string | null, show(row) → node, down: largest first}].
function grid(box, { columns, n, label, open }) {
  const body = make("tbody"), above = make("td", { colspan: columns.length }), below = make("td", { colspan: columns.length });
  const heads = columns.map((c, k) => make("th", { scope: "col", title: c.title, "aria-sort": "none" },
    make("button", { type: "button", "data-sort": k, tabindex: "-1" }, c.name, make("i", { "aria-hidden": "true" }))));
  const element = make("table", { role: "grid", "aria-label": label, style: `width:${columns.reduce((s, c) => s + c.width, 0)}px` },
    make("colgroup", {}, ...columns.map((c) => make("col", { style: `width:${c.width}px` }))),
    make("thead", {}, make("tr", {}, ...heads)), body);
  box.replaceChildren(element);
  box.tabIndex = 0;
  let rows = Int32Array.from({ length: n }, (_, i) => i), order = rows, keep = null;
  let sorted = { column: -1, down: false }, current = null, from = -1, to = -1;

  function draw(force) {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - SPARE);
    const last = Math.min(rows.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + SPARE);
    if (!force && first === from && last === to) return;
    [from, to] = [first, last];
    above.style.height = `${first * ROW}px`;
    below.style.height = `${(rows.length - last) * ROW}px`;
    const shown = Array.from(rows.subarray(first, last), (row, k) => make("tr", { "data-row": row, "aria-rowindex": first + k + 2,
      "aria-selected": String(row === current), class: row === current ? "current" : null },
    ...columns.map((c) => make("td", { class: c.kind ?? null }, c.show(row)))));
    body.replaceChildren(make("tr", { class: "gap", "aria-hidden": "true" }, above), ...shown,
      make("tr", { class: "gap", "aria-hidden": "true" }, below));
    element.setAttribute("aria-rowcount", rows.length + 1);
  }
  function arrange() {
    rows = keep ? order.filter((row) => keep[row]) : order;
    draw(true);
  }
  // Missing values come last either way: nobody sorts in order to read dashes.
  function sort(k, down = columns[k].down ?? false) {
    const values = Array.from({ length: n }, (_, i) => columns[k].value(i)), sign = down ? -1 : 1;
    const text = values.some((v) => typeof v === "string");
    const compare = text ? new Intl.Collator("en", { numeric: true }).compare : (a, b) => a - b;
    order = Int32Array.from({ length: n }, (_, i) => i).sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * compare(x, y) || a - b;
    });
    sorted = { column: k, down };
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== k ? "none" : down ? "descending" : "ascending"));
    box.scrollTop = 0;
    arrange();
  }
  function reveal(row) {
    const place = rows.indexOf(row), head = element.tHead.offsetHeight, y = place * ROW;
    if (place < 0) return;
    if (y < box.scrollTop) box.scrollTop = y;
    else if (y + ROW + head > box.scrollTop + box.clientHeight) box.scrollTop = y + ROW + head - box.clientHeight;
  }
  function select(row) {
    current = row;
    if (row !== null) reveal(row);
    draw(true);
  }
  function step(by) {
    if (!rows.length) return;
    const place = rows.indexOf(current), last = rows.length - 1;
    open(rows[place < 0 ? (by < n ? 0 : last) : Math.max(0, Math.min(last, place + by))]);
  }
  box.addEventListener("scroll", () => draw(false), { passive: true });
  box.addEventListener("click", (event) => {
    const head = event.target.closest("[data-sort]"), row = event.target.closest("[data-row]");
    if (head) {
      const k = Number(head.dataset.sort);
      sort(k, sorted.column === k ? !sorted.down : undefined);
    } else if (row) open(Number(row.dataset.row));
  });
  box.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(box.clientHeight / ROW) - 2);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -n, End: n }[event.key];
    if (by === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    step(by);
  });
  new ResizeObserver(() => draw(false)).observe(box);
  return { sort, select, step, count: () => rows.length, filter(test) {
    keep = test && Uint8Array.from({ length: n }, (_, i) => (test(i) ? 1 : 0));
    box.scrollTop = 0;
    arrange();
  } };
}
