// Reads the blocks of the page (their format: atlas_payload.py). A block is unpacked once, when first asked for.
const BLOCK_NULL = -(2 ** 31);
const unpacked = new Map();
const parsed = document.readyState === "loading"
  ? new Promise((resolve) => { document.addEventListener("DOMContentLoaded", resolve, { once: true }); }) : Promise.resolve();

async function unpack(name) {
  // The script runs before the parser has reached the blocks that are needed later.
  if (!$(`block-${name}`)) await parsed;
  const text = $(`block-${name}`).textContent;
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(raw.buffer).getUint32(0, true);
  return { header: JSON.parse(new TextDecoder().decode(raw.subarray(4, 4 + length))), raw, at: 4 + length };
}

function once(name, read) {
  if (!unpacked.has(name)) unpacked.set(name, unpack(name).then(read));
  return unpacked.get(name);
}

function unshuffle(raw, at, n) {
  const bytes = new Uint8Array(4 * n);
  for (let k = 0; k < 4; k++) for (let i = 0, from = at + k * n; i < n; i++) bytes[4 * i + k] = raw[from + i];
  return bytes.buffer;
}

// A column answers `get(row)` with a number, a string, a list or null. Arrays are made when first read: a table of
// 30 columns costs nothing for those that nobody looks at.
function column({ kind, n, words }, raw, at, items) {
  let made = null, starts = null;
  const values = () => {
    made ??= kind === "number" ? new Float32Array(unshuffle(raw, at, n)) : new Int32Array(unshuffle(raw, at, n));
    return made;
  };
  const offsets = () => {
    if (starts) return starts;
    starts = new Int32Array(n + 1);
    values().forEach((length, i) => { starts[i + 1] = starts[i] + length; });
    return starts;
  };
  const get = {
    number: (i) => (Number.isNaN(values()[i]) ? null : values()[i]),
    integer: (i) => (values()[i] === BLOCK_NULL ? null : values()[i]),
    text: (i) => (values()[i] === BLOCK_NULL ? null : words[values()[i]]),
    list: (i) => {
      const list = [];
      for (let k = offsets()[i]; k < offsets()[i + 1]; k++) list.push(items.get(k));
      return list;
    },
  }[kind];
  return { kind, n, words, get, values };
}

// A table as {column name: column}.
function table(name) {
  return once(name, ({ header, raw, at }) => {
    const columns = {}, made = [];
    for (const part of header) { made.push([part, at]); at += 4 * part.n; }
    let items = null;
    for (const [part, start] of made.reverse()) {
      const one = column(part, raw, start, items);
      items = one;
      if (part.name) columns[part.name] = one;
    }
    return columns;
  });
}
const pictures = (block) => once(`pictures-${block}`, ({ header }) => header);

// Rows of a table sorted by `row` that belong to one row of the features: [first, past the last].
function rowsOf(column, row) {
  const values = column.values();
  const bound = (wanted) => {
    let low = 0, high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] < wanted) low = middle + 1; else high = middle;
    }
    return low;
  };
  return [bound(row), bound(row + 1)];
}
