"use strict";
// Structure views: 3Dmol draws, this colours by the chosen feature and ties the strip of letters to the residues.
// Numbers are written by dom.js, which stands before it.
globalThis.isotraceStructures = (() => {
  const REST = [243, 245, 248], FULL = [232, 131, 42], OTHER = "#dfe4ea";
  const mixed = (share) => `#${REST.map((low, i) => Math.round(low + (FULL[i] - low) * share).toString(16).padStart(2, "0")).join("")}`;
  const element = (tag, className, text) => Object.assign(document.createElement(tag), { className, textContent: text ?? "" });

  let webgl = null;
  const hasWebgl = () => (webgl ??= Boolean(document.createElement("canvas").getContext("webgl2")));

  // Which residue of the sequence an atom belongs to. A CIF atom keeps no insertion letter, but its row as serial.
  function finder({ format, chains }) {
    const at = new Map();
    for (const { name, residues } of chains) for (const [number, insertion, index, first, last] of residues) {
      if (format === "pdb") at.set(`${name}|${number}|${insertion}`, index);
      else for (let row = first; row <= last; row++) at.set(row, index);
    }
    return (atom) => at.get(format === "pdb" ? `${atom.chain}|${atom.resi}|${(atom.icode ?? "").trim()}` : atom.serial);
  }

  function strip(root, data, shown, point) {
    const letters = [];
    let group;
    [...data.sequence].forEach((letter, i) => {
      if (i % 10 === 0) {
        const last = Math.min(i + 10, data.sequence.length);
        group = element("span", "");
        const count = element("small", "", String(last));
        count.style.gridColumn = last - i;
        group.append(count);
        root.append(group);
      }
      const cell = element("b", shown.has(i) ? "" : "absent", letter);
      cell.addEventListener("mouseenter", () => point(i));
      cell.addEventListener("mouseleave", () => point(null));
      group.append(cell);
      letters.push(cell);
    });
    return letters;
  }

  function mount(root) {
    if (root.dataset.mounted) return;
    root.dataset.mounted = "true";
    const part = (name) => root.querySelector(`.structure-${name}`);
    const data = JSON.parse(part("data").textContent);
    const residueOf = finder(data);
    const shown = new Set(data.chains.flatMap((chain) => chain.residues.map((residue) => residue[2])));
    let track = data.tracks[0], viewer = null, marked = null, label = null;
    const value = (index) => track.values[index];
    const colour = (index) => mixed(track.scale ? (value(index) ?? 0) / track.scale : 0);

    function point(index) {
      if (marked !== null) letters[marked].classList.remove("lit");
      marked = index;
      part("at").textContent = "";
      if (viewer && label) { viewer.removeLabel(label); label = null; }
      if (index === null) return void viewer?.render();
      letters[index].classList.add("lit");
      const text = `${data.sequence[index]}${index + 1}`;
      part("at").textContent = `${text}: ${num(value(index))}${shown.has(index) ? "" : ", not resolved"}`;
      const alpha = viewer?.selectedAtoms({ predicate: (atom) => atom.atom === "CA" && residueOf(atom) === index })[0];
      if (alpha) label = viewer.addLabel(text, {
        position: alpha, fontSize: 13, fontColor: "white", backgroundColor: "#1d2733", backgroundOpacity: 0.85 });
      viewer?.render();
    }

    function draw() {
      part("scale").textContent = num(track.scale);
      letters.forEach((cell, i) => { cell.style.background = value(i) ? mixed(value(i) / track.scale) : ""; });
      if (!viewer) return;
      const paint = (atom) => colour(residueOf(atom));
      const sides = part("sides").checked;
      viewer.setStyle({}, {});
      viewer.setStyle({ hetflag: false }, { cartoon: { color: OTHER, opacity: 0.45 } });
      viewer.setStyle({ hetflag: true, not: { resn: ["HOH", "DOD", "WAT"] } }, { stick: { radius: 0.1, color: "#9aa5b1", opacity: 0.6 } });
      const mine = { predicate: (atom) => residueOf(atom) !== undefined };
      viewer.setStyle(mine, { cartoon: { colorfunc: paint } });
      if (sides) viewer.addStyle(
        { predicate: (atom) => (value(residueOf(atom)) ?? 0) > 0 && atom.elem !== "H" },
        { stick: { radius: 0.14, colorfunc: paint } });
      viewer.render();
    }

    const letters = strip(part("strip"), data, shown, point);
    try {
      if (!hasWebgl()) throw new Error("this browser offers no WebGL 2");
      viewer = $3Dmol.createViewer(part("canvas"), { backgroundColor: "white", disableFog: true });
      viewer.addModel(data.text, data.format);
      viewer.setHoverable({}, true, (atom) => { const i = residueOf(atom); if (i !== undefined) point(i); }, () => point(null));
      draw();
      viewer.zoomTo({ predicate: (atom) => residueOf(atom) !== undefined });
      viewer.zoom(1.1);
      viewer.render();
    } catch (error) {
      viewer = null;
      part("canvas").replaceChildren(element("p", "", `The structure cannot be drawn here (${error?.message ?? error}). The letters below carry the same colours.`));
      draw();
    }
    part("track").addEventListener("change", (event) => { track = data.tracks[event.target.selectedIndex]; draw(); point(marked); });
    part("sides").addEventListener("change", draw);
  }

  // A view is built when it comes near the screen: parsing and meshes of many structures take their time.
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watch.unobserve(entry.target); mount(entry.target); }
  }, { rootMargin: "200px" });
  for (const root of document.querySelectorAll(".structure")) watch.observe(root);
  return { mount };
})();
