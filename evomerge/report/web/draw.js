// What every plot shares: the data, colours that follow the theme, words, and elements of the page.
const D = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const $ = (id) => document.getElementById(id);
const SHADES = ["paper", "card", "ink", "muted", "rule", "dot", "merged", "single", "low", "high",
  "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"];
const FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
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
const parts = (color) => color.match(/[\d.]+/g).slice(0, 3).map(Number);

// A colour of a scale, t from 0 to 1; in 64 steps, so that thousands of marks share a few.
const painter = (colors) => {
  const ends = colors.map(parts), made = Array.from({ length: 64 }, (_, k) => {
    const s = (k / 63) * (ends.length - 1), low = Math.min(Math.floor(s), ends.length - 2);
    return `rgb(${ends[low].map((v, j) => Math.round(v + (s - low) * (ends[low + 1][j] - v))).join(", ")})`;
  });
  return (t) => made[Math.round(63 * Math.min(1, Math.max(0, t)))];
};

const clip = (text, n) => ([...String(text)].length > n ? [...String(text)].slice(0, n - 1).join("") + "\u2026" : String(text));
const minus = (text) => text.replace("-", "\u2212");
const show = (v, digits = 3) => (v === null || v === undefined || !isFinite(v) ? "\u2013"
  : minus(Math.abs(v) >= 1e4 ? v.toExponential(2) : v.toFixed(Math.abs(v) < 100 ? digits : 1)));

const percent = (v, step = 0.001) => `${minus((100 * v).toFixed(Math.max(0, -Math.floor(Math.log10(100 * step) + 1e-9))))}%`;

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

// What is pointed at, in words: the first line is its name.
const tip = document.body.appendChild(element("div", { id: "tip", hidden: true }));
const say = (lines, x, y) => {
  tip.hidden = !lines;
  if (!lines) return;
  tip.replaceChildren(element("b", {}, lines[0]), ...lines.slice(1).map((line) => element("div", {}, line)));
  const left = x + 16 + tip.offsetWidth > innerWidth ? x - 16 - tip.offsetWidth : x + 16;
  tip.style.left = `${Math.max(6, left)}px`;
  tip.style.top = `${Math.max(6, Math.min(y + 12, innerHeight - tip.offsetHeight - 6))}px`;
};

// A plot is a name and a function that builds it from the state of the page.
const figures = {};
const draw = (key) => {
  const place = $(`plot-${key}`);
  if (place && figures[key] && C.ink) plot(place, figures[key]());
};
