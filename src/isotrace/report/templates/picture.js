// Draws what a domain's `picture` describes (docs/atlas.md), coloured by activation per token.
const UNIT = 21, MARGIN = 14, LETTER = 8;  // pixels: a bond, around the drawing, a letter

// activations: Map of token position → value; scale: the value drawn at full colour.
function drawPicture(picture, activations, scale) {
  const parts = picture.kind === "track" ? [track(picture, activations, scale)] : [graph(picture, activations, scale)];
  const strip = tokenStrip(picture, activations, scale);
  if (strip) parts.push(strip);
  return parts;
}
const shade = (value, scale) => heat(scale > 0 ? value / scale : 0);

// What every element carries: the largest activation among the tokens that write it.
function perElement(picture, activations) {
  const found = new Map();
  for (const [position, value] of activations) {
    for (const e of picture.tokens[position][1]) found.set(e, Math.max(found.get(e) ?? 0, value));
  }
  return found;
}

// ---- molecules and reactions ----
function graph(picture, activations, scale) {
  const { atoms, bonds, marks = [] } = picture;
  const near = atoms.map(() => []);
  for (const [i, j] of bonds) { near[i].push(j); near[j].push(i); }
  const written = atoms.map((atom, i) => atomText(atom, near[i].map((n) => atoms[n])));
  const all = [...atoms, ...marks.map(([, x, y]) => ["", x, y])].map(([, x, y], i) => {
    const wide = LETTER / UNIT * Math.max(0, (written[i]?.text.length ?? 1) - 1);
    return { left: x - (written[i]?.back ? wide : 0), right: x + (written[i]?.back ? 0 : wide), y };
  });
  const left = Math.min(...all.map((p) => p.left)), top = Math.max(...all.map((p) => p.y));
  const width = Math.round((Math.max(...all.map((p) => p.right)) - left) * UNIT + 2 * MARGIN);
  const height = Math.round((top - Math.min(...all.map((p) => p.y))) * UNIT + 2 * MARGIN);
  const at = (x, y) => [MARGIN + (x - left) * UNIT, MARGIN + (top - y) * UNIT];  // y of a picture points up
  const points = atoms.map(([, x, y]) => at(x, y));
  // Drawings shrink to three quarters and no further, so that letters stay readable; then they scroll.
  const svg = make("svg", { class: "graph", width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    style: `min-width:${Math.round(0.75 * width)}px`, "aria-label": picture.text });
  const discs = make("g"), letters = make("g", { class: "letters" });
  for (const [e, value] of perElement(picture, activations)) {
    if (value > 0) {
      discs.append(make("circle", { cx: points[e][0], cy: points[e][1], r: 0.46 * UNIT, fill: shade(value, scale) },
        make("title", {}, `${atoms[e][0]}, atom ${e}: ${num(value)}`)));
    }
  }
  let lines = "", dashed = "", solid = "";
  for (const [i, j, order, wedge] of bonds) {
    const clear = (atom) => (written[atom].text ? 0.36 * UNIT : 0);
    const [[x1, y1], [x2, y2]] = [points[i], points[j]], size = Math.hypot(x2 - x1, y2 - y1) || 1;
    const [ux, uy] = [(x2 - x1) / size, (y2 - y1) / size], [px, py] = [-uy, ux];
    const from = [x1 + ux * clear(i), y1 + uy * clear(i)], to = [x2 - ux * clear(j), y2 - uy * clear(j)];
    const line = (shift, cut = 0) => `M${spot(from[0] + px * shift + ux * cut, from[1] + py * shift + uy * cut)}`
      + `L${spot(to[0] + px * shift - ux * cut, to[1] + py * shift - uy * cut)}`;
    if (wedge === "wedge") {
      solid += `M${spot(...from)}L${spot(to[0] + 3.4 * px, to[1] + 3.4 * py)}L${spot(to[0] - 3.4 * px, to[1] - 3.4 * py)}Z`;
    } else if (wedge === "dash") {
      for (let k = 0.5; k <= 6; k++) {
        const [x, y, half] = [from[0] + (to[0] - from[0]) * k / 6, from[1] + (to[1] - from[1]) * k / 6, 3.6 * k / 6];
        lines += `M${spot(x + half * px, y + half * py)}L${spot(x - half * px, y - half * py)}`;
      }
    } else if (order === 2 || order === 1.5) {
      // The second line lies where the neighbours are: inside a ring. Between two ends of like kind it lies astride.
      const side = [...near[i], ...near[j]].reduce((sum, n) => sum
        + Math.sign(Math.round(1e3 * ((points[n][0] - x1) * px + (points[n][1] - y1) * py))), 0);
      if (side === 0 && order === 2) lines += line(1.9) + line(-1.9);
      else {
        lines += line(0);
        if (order === 2) lines += line(3.6 * Math.sign(side), 2.4); else dashed += line(3.6 * Math.sign(side || 1), 2.4);
      }
    } else {
      lines += line(0);
      if (order === 3) lines += line(3.2) + line(-3.2);
    }
  }
  written.forEach(({ text, first, back }, i) => {
    // The letter of the atom stands on the atom, whatever is written beside it.
    const shift = text === first ? 0 : back ? LETTER / 2 * first.length : -LETTER / 2 * first.length;
    if (text) letters.append(make("text", { x: points[i][0] + shift, y: points[i][1], class: text === first ? null : back ? "back" : "long" }, text));
  });
  for (const [text, x, y] of marks) {
    const [cx, cy] = at(x, y);
    letters.append(make("text", { class: /[→⟶]/.test(text) ? "mark arrow" : "mark", x: cx, y: cy, "text-anchor": "middle" }, text));
  }
  svg.append(discs, make("path", { class: "bonds", d: lines }), make("path", { class: "bonds dashed", d: dashed }),
    make("path", { class: "wedges", d: solid }), letters);
  return svg;
}
const spot = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;

// What is written at an atom: nothing at a carbon that has bonds and no label, else its label, which starts with the
// symbol. Hydrogens go to the side without bonds: OH or HO. `first` is the part that must stand near the atom.
function atomText([symbol, x, , label], neighbours) {
  if (!label && symbol === "C" && neighbours.length) return { text: "", first: "", back: false };
  const text = label || symbol, [, hydrogens, rest] = /^(H[₀-₉]*)?(.*)$/.exec(text.slice(symbol.length));
  const back = hydrogens !== undefined && neighbours.reduce((sum, n) => sum + n[1] - x, 0) > 0.1;
  return { text: back ? hydrogens + symbol + rest : text, first: back ? symbol + rest : symbol, back };
}

// ---- proteins ----
function track(picture, activations, scale) {
  const values = perElement(picture, activations), n = 1 + Math.max(-1, ...picture.tokens.flatMap(([, e]) => e));
  const letters = new Array(n).fill("·"), lanes = [];
  for (const [text, elements] of picture.tokens) elements.forEach((e, k) => { letters[e] = elements.length === 1 ? text : text[k]; });
  // Bands that overlap lie in lanes below one another.
  for (const band of [...picture.bands].sort((a, b) => a.start - b.start)) {
    const lane = lanes.find((l) => l.at(-1).end <= band.start);
    if (lane) lane.push(band); else lanes.push([band]);
  }
  const groups = [...new Set(picture.bands.map((b) => b.group))];
  const cells = letters.map((letter, e) => {
    const value = values.get(e) ?? 0;
    return make("span", { class: "residue", title: `${letter} ${e + 1}: ${num(value)}` },
      make("small", {}, (e + 1) % 10 === 0 ? String(e + 1) : ""),
      make("b", value > 0 ? { style: `background:${shade(value, scale)}` } : {}, letter),
      ...lanes.map((lane) => {
        const band = lane.find((b) => b.start <= e && e < b.end);
        if (!band) return make("i");
        return make("i", { class: `band g${groups.indexOf(band.group) % 4}`, title: `${band.name} (${band.group})` },
          band.start === e ? make("em", {}, band.name) : "");
      }));
  });
  return make("div", { class: "residues", role: "img", "aria-label": picture.text }, ...cells);
}

// ---- every token in a row; of a protein only those that write no residue, for the track shows the others ----
function tokenStrip(picture, activations, scale) {
  const strip = make("div", { class: "strip mini" });
  picture.tokens.forEach(([text, elements], position) => {
    const value = activations.get(position);
    if (picture.kind === "track" && (elements.length || !(value > 0))) return;
    strip.append(make("span", { title: `${text} at position ${position}: ${num(value ?? 0)}`, class: value > 0 ? "on" : null,
      style: value > 0 ? `background:${shade(value, scale)}` : null }, text));
  });
  return strip.childNodes.length ? strip : null;
}
