// A plot: grid, lines and marks on a canvas, words as SVG above it, so that thousands of trials are one
// picture and a handful of elements. A figure is plain data:
//   height; x and y: { title, range, ticks: [[value, text], ...], format, whole, grid, each }; view: its zoom is kept while this stays
//   layers, drawn in order: { kind: "points", x, y, size, shape, color, alpha, edge, error, labels }
//     or "line" { x, y, color, width, step } or "band" { x, low, high, color }; any with name (in the legend),
//     hover(k) -> lines, pick(k) -> what `clicked` is called with; size, shape, color, alpha: one, or one for each
//   levels: [{ y, text, color, under, end }]; ring: [x, y]; bar: { title, colors, ticks }; note; clicked; still: no zoom
const SMALL = `11px ${FONT}`;
const ruler = document.createElement("canvas").getContext("2d");
const wide = (text, font = SMALL) => {
  ruler.font = font;
  return ruler.measureText(text).width;
};

const tickText = (v, digits) => (Math.abs(v) >= 1e4 ? Math.round(v).toLocaleString("en") : minus(v.toFixed(digits)));
const ticksOf = (axis, [from, to], pixels, each) => {
  const low = Math.min(from, to), high = Math.max(from, to);
  if (axis.ticks) return axis.ticks.filter(([v]) => v >= low && v <= high);
  const rough = Math.max(axis.whole ? 1 : 0, (high - low) / Math.max(1, pixels / each)), ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * ten).find((s) => s >= 0.999 * rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step || 0);
  return found.map((v) => [v, axis.format ? axis.format(v, step) : tickText(v, digits)]);
};

const each = (value, k) => (Array.isArray(value) ? value[k] : value);
const mark = (pen, shape, x, y, r) => {
  pen.beginPath();
  if (shape === "diamond") [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]].forEach(([a, b]) => pen.lineTo(x + a * r, y + b * r));
  else if (shape === "down") [[-1, -0.8], [1, -0.8], [0, 1]].forEach(([a, b]) => pen.lineTo(x + a * r, y + b * r));
  else pen.arc(x, y, r, 0, 2 * Math.PI);
  pen.closePath();
};

const drawPoints = (pen, layer, { px, py }) => layer.x.forEach((x, k) => {
  if (x === null || layer.y[k] === null) return;
  const at = [px(x), py(layer.y[k])], color = each(layer.color, k), shape = each(layer.shape, k);
  pen.globalAlpha = each(layer.alpha, k) ?? 1;
  for (const [j, reach] of [layer.error?.x?.[k], layer.error?.y?.[k]].entries()) {
    if (!reach) continue;
    const [low, high] = Array.isArray(reach) ? reach : [-reach, reach];
    pen.strokeStyle = layer.error.color ?? color;
    pen.lineWidth = 1;
    pen.beginPath();
    if (j) [pen.moveTo(at[0], py(layer.y[k] + low)), pen.lineTo(at[0], py(layer.y[k] + high))];
    else [pen.moveTo(px(x + low), at[1]), pen.lineTo(px(x + high), at[1])];
    pen.stroke();
  }
  mark(pen, shape === "ring" ? "dot" : shape, ...at, (each(layer.size, k) ?? 6) / 2);
  if (shape === "ring" || shape === "down") {
    [pen.fillStyle, pen.strokeStyle, pen.lineWidth] = [C.paper, color, 1.3];
    [pen.fill(), pen.stroke()];
  } else {
    pen.fillStyle = color;
    pen.fill();
    if (layer.edge) [pen.strokeStyle = layer.edge, pen.lineWidth = 1.2, pen.stroke()];
  }
  pen.globalAlpha = 1;
});

// Along x, then up ("hv"), or up and then along ("vh"): a value holds until the next one.
const path = (pen, xs, ys, step, { px, py }) => {
  let last = null;
  xs.forEach((x, k) => {
    if (ys[k] === null) return (last = null);
    const at = [px(x), py(ys[k])];
    if (last && step) pen.lineTo(step === "hv" ? at[0] : last[0], step === "hv" ? last[1] : at[1]);
    pen[last ? "lineTo" : "moveTo"](...at);
    last = at;
  });
};

const drawLayer = (pen, layer, frame) => {
  if (layer.kind === "points") return drawPoints(pen, layer, frame);
  pen.beginPath();
  if (layer.kind === "band") {
    const known = layer.x.map((_, k) => k).filter((k) => layer.low[k] !== null && layer.high[k] !== null);
    const corners = (ys) => known.flatMap((k, j) => [...(j ? [[layer.x[k], ys[known[j - 1]]]] : []), [layer.x[k], ys[k]]]);
    [...corners(layer.high), ...corners(layer.low).reverse()].forEach(([x, y]) => pen.lineTo(frame.px(x), frame.py(y)));
    pen.fillStyle = layer.color;
    return pen.fill();
  }
  path(pen, layer.x, layer.y, layer.step, frame);
  [pen.strokeStyle, pen.lineWidth, pen.lineJoin] = [layer.color, layer.width ?? 2.5, "round"];
  pen.stroke();
};

const drawGrid = (pen, figure, frame) => {
  const line = (x0, y0, x1, y1, color, dash = []) => {
    [pen.strokeStyle, pen.lineWidth] = [color, 1];
    pen.setLineDash(dash);
    [pen.beginPath(), pen.moveTo(x0, y0), pen.lineTo(x1, y1), pen.stroke(), pen.setLineDash([])];
  };
  const right = frame.left + frame.width, bottom = frame.top + frame.height, sharp = (v) => Math.round(v) + 0.5;
  if (figure.x.grid !== false) frame.xs.forEach(([v]) => line(sharp(frame.px(v)), frame.top, sharp(frame.px(v)), bottom, C.rule));
  frame.ys.forEach(([v]) => line(frame.left, sharp(frame.py(v)), right, sharp(frame.py(v)), C.rule));
  (figure.levels ?? []).forEach((l) => line(frame.left, sharp(frame.py(l.y)), right, sharp(frame.py(l.y)), l.color, [2, 3]));
};

// Words above the canvas; CSS colours them, so that they follow the theme.
const words = (svg, text, x, y, more = {}) => {
  const made = document.createElementNS(svg.namespaceURI, "text");
  for (const [key, value] of Object.entries({ x, y, ...more })) made.setAttribute(key, value);
  made.textContent = text;
  svg.append(made);
};
const writeWords = (svg, figure, frame) => {
  const right = frame.left + frame.width, bottom = frame.top + frame.height;
  const inside = (x, y) => x >= frame.left - 1 && x <= right + 1 && y >= frame.top - 1 && y <= bottom + 1;
  frame.xs.forEach(([v, text]) => words(svg, text, frame.px(v), bottom + 17, { class: "tick xtick", "text-anchor": "middle" }));
  frame.ys.forEach(([v, text]) => words(svg, text, frame.left - 8, frame.py(v) + 4, { class: "tick ytick", "text-anchor": "end" }));
  words(svg, figure.x.title, frame.left + frame.width / 2, bottom + 39, { class: "title xtitle", "text-anchor": "middle" });
  const middle = frame.top + frame.height / 2;
  words(svg, figure.y.title, 0, 0, { class: "title ytitle", "text-anchor": "middle", transform: `translate(13 ${middle}) rotate(-90)` });
  for (const l of figure.levels ?? []) {
    const y = frame.py(l.y) + (l.under ? 13 : -5);
    if (l.text && inside(frame.left, y)) words(svg, l.text, l.end ? right - 2 : frame.left + 4, y, { class: "level", style: `fill: ${l.color}`, "text-anchor": l.end ? "end" : "start" });
  }
  for (const layer of figure.layers) (layer.labels ?? []).forEach(({ text, dx, dy, anchor }, k) => {
    const [x, y] = [frame.px(layer.x[k]), frame.py(layer.y[k])];
    if (inside(x, y)) words(svg, text, x + dx, y + dy + 4, { class: "label", style: `fill: ${each(layer.color, k)}`, "text-anchor": anchor });
  });
  if (figure.note) words(svg, figure.note, frame.left + frame.width / 2, middle, { class: "title", "text-anchor": "middle" });
};

const legend = (figure) => {
  const swatch = (layer) => {
    const shape = layer.kind === "line" ? "line" : layer.legend ?? (typeof layer.shape === "string" ? layer.shape : "dot");
    return element("i", { class: `swatch ${shape}`, style: `--color: ${layer.swatch ?? each(layer.color, 0)}` });
  };
  const items = figure.layers.filter((l) => l.name && l.x.length).map((l) => element("span", {}, swatch(l), l.name));
  if (figure.bar) {
    const { title, colors, ticks } = figure.bar;
    const strip = element("i", { class: "strip", style: `background: linear-gradient(to right, ${colors.join(", ")})` });
    items.push(element("span", { class: "scale" }, element("b", {}, title), ticks[0], strip, ticks[1]));
  }
  return items;
};

// Where everything lies: as much room on the left as the longest number there takes.
const framed = (figure, view, width, height) => {
  const frame = { room: width, top: 8, height: height - 8 - (figure.x.title ? 48 : 26) };
  frame.ys = ticksOf(figure.y, view.y, frame.height, 52);
  frame.left = Math.max(34, 30 + Math.max(0, ...frame.ys.map(([, text]) => wide(text))));
  frame.width = Math.max(40, width - frame.left - 12);
  frame.xs = ticksOf(figure.x, view.x, frame.width, figure.x.each ?? 84);
  frame.px = (v) => frame.left + (frame.width * (v - view.x[0])) / (view.x[1] - view.x[0]);
  frame.py = (v) => frame.top + frame.height * (1 - (v - view.y[0]) / (view.y[1] - view.y[0]));
  return frame;
};

const plot = (place, figure) => {
  if (!place.parts) build(place);
  if (place.figure?.view !== figure.view) place.view = null;
  place.figure = figure;
  const { canvas, svg, keys, frame: holder } = place.parts, width = place.clientWidth;
  keys.replaceChildren(...legend(figure));
  if (!width) return;
  holder.style.height = `${figure.height}px`;
  const frame = framed(figure, place.view ?? { x: figure.x.range, y: figure.y.range }, width, figure.height);
  place.frame = frame;
  const ratio = Math.max(2, devicePixelRatio || 1);
  [canvas.width, canvas.height] = [width * ratio, figure.height * ratio];
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  drawGrid(pen, figure, frame);
  pen.save();
  [pen.beginPath(), pen.rect(frame.left - 4, frame.top - 4, frame.width + 8, frame.height + 8), pen.clip()];
  figure.layers.forEach((layer) => drawLayer(pen, layer, frame));
  if (figure.ring) {
    [pen.strokeStyle, pen.lineWidth] = [C.ink, 1.8];
    mark(pen, "dot", frame.px(figure.ring[0]), frame.py(figure.ring[1]), 9);
    pen.stroke();
  }
  pen.restore();
  svg.setAttribute("viewBox", `0 0 ${width} ${figure.height}`);
  svg.replaceChildren();
  writeWords(svg, figure, frame);
  place.dataset.drawn = "true";
};
