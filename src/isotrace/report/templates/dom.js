"use strict";
// Elements and numbers. Text only ever becomes text nodes and attributes, never markup.
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const svg = /^(svg|g|path|circle|rect|line|text|title|polygon)$/.test(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function num(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  const size = Math.abs(x);
  if (size === Infinity) return x < 0 ? "−∞" : "∞";
  let text = Number.isInteger(x) && size < 1e6 ? x.toLocaleString("en")
    : size < 1e-3 || size >= 1e5 ? x.toExponential(1) : x.toPrecision(3);
  if (!text.includes("e") && !Number.isInteger(x) && size >= 100) text = String(Math.round(x));
  return text.replaceAll("-", "−").replace("e+", "e");
}
const two = (x) => x.toFixed(2).replace("-", "−");
const interval = (low, high, format = num) => (low === null || high === null ? "" : `[${format(low)}, ${format(high)}]`);
const share = (x) => (x === null ? "–" : `${num(100 * x)} %`);

const plain = (x) => x.toLocaleString("en", { maximumSignificantDigits: 10 }).replace("-", "−");

// Round values for the ticks of an axis, about `count` of them.
function nice(from, to, count = 4) {
  const raw = (to - from) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999);
  const list = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= to + 1e-9 * step; k++) list.push(Number((k * step).toPrecision(10)));
  return list;
}

// A number as an element; a missing one reads "–" and says why when pointed at.
const cell = (x, why, format = num) => (x === null || Number.isNaN(x)
  ? make("span", { class: "none", title: why }, "–") : make("span", {}, format(x)));

// White at 0, orange at 1: the scale of the drawings made in Python.
function heat(part) {
  const p = Math.max(0, Math.min(1, part));
  return `rgb(${[232, 131, 42].map((end) => Math.round(255 + (end - 255) * p)).join(" ")})`;
}
