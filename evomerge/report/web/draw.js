// What every plot shares: the data, colours that follow the theme, words, and elements of the page.
const D = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const $ = (id) => document.getElementById(id);
const SHADES = ["paper", "card", "ink", "muted", "rule", "dot", "merged", "single", "low", "high",
  "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"];
const FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const touch = matchMedia("(pointer: coarse)").matches;
let C = {};

// Custom properties resolve only where they are used: a probe is coloured with each.
const readShades = () => {
  const probe = document.body.appendChild(document.createElement("i"));
  for (const name of SHADES) {
    probe.style.color = `var(--${name})`;
    C[name] = getComputedStyle(probe).color;
  }
  probe.remove();
};

const fade = (color, alpha) => color.replace(/^rgb\(([^)]*)\)$/, `rgba($1, ${alpha})`);

// Plotly reads its labels as HTML: every name goes through here.
const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const clip = (text, n) => ([...String(text)].length > n ? [...String(text)].slice(0, n - 1).join("") + "\u2026" : String(text));
const minus = (text) => text.replace("-", "\u2212");
const show = (v, digits = 3) => (v === null || v === undefined || !isFinite(v) ? "\u2013"
  : minus(Math.abs(v) >= 1e4 ? v.toExponential(2) : v.toFixed(Math.abs(v) < 100 ? digits : 1)));

const wrap = (text, width) => {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1).length + word.length > width && lines.at(-1)) lines.push("");
    lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return lines;
};

const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
};

const range = (values, pad = 0.08) => {
  const known = values.filter((v) => v !== null && isFinite(v));
  const low = known.reduce((a, b) => Math.min(a, b), Infinity), high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  const margin = high > low ? pad * (high - low) : 0.05 * Math.max(Math.abs(high), 0.1);
  return known.length ? [low - margin, high + margin] : [0, 1];
};
