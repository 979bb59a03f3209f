// Parallel coordinates: thousands of lines are redrawn in milliseconds on a canvas.
const canvas = $("lines");
const PAD = { top: 54, bottom: 22, side: 54 };
const main = D.layouts[D.main];
const rowOf = new Map((main?.numbers ?? []).map((n, r) => [n, r]));
const axes = canvas ? [
  ...D.objectives.map((o, k) => ({ name: `${o.name} ${arrow(o)}`, flip: !o.up, of: (i) => T.raw[k][i] })),
  { name: D.title, of: (i) => T.scalar[i] },
  ...D.axes.map((x) => ({ name: x.name, coefficient: true, of: (i) => (rowOf.has(T.number[i]) ? main.columns[rowOf.get(T.number[i])][x.column] : null) })),
] : [];
for (const axis of axes) {
  axis.values = T.number.map((_, i) => axis.of(i));
  axis.range = range(axis.values, 0);
  axis.keep = null;
}
const lines = T.number.map((_, i) => i).filter((i) => axes.every((x) => x.values[i] !== null) && T.kind[i] !== "estimate");
let box = { width: 0, height: 0 }, dragging = null, near = null;

const axisX = (k) => PAD.side + (k * (box.width - 2 * PAD.side)) / Math.max(1, axes.length - 1);
const share = (axis, v) => {
  const t = (v - axis.range[0]) / (axis.range[1] - axis.range[0] || 1);
  return axis.flip ? 1 - t : t;
};
const axisY = (axis, v) => box.height - PAD.bottom - share(axis, v) * (box.height - PAD.top - PAD.bottom);
const pass = (i) => axes.every((x) => !x.keep || (axisY(x, x.values[i]) >= x.keep[0] && axisY(x, x.values[i]) <= x.keep[1]));

const stroke = (pen, i) => {
  pen.beginPath();
  axes.forEach((x, k) => (k ? pen.lineTo(axisX(k), axisY(x, x.values[i])) : pen.moveTo(axisX(k), axisY(x, x.values[i]))));
  pen.stroke();
};

const drawAxes = (pen) => {
  pen.font = `11px ${FONT}`;
  axes.forEach((x, k) => {
    const at = axisX(k);
    pen.strokeStyle = C.rule;
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(at, PAD.top);
    pen.lineTo(at, box.height - PAD.bottom);
    pen.stroke();
    const ends = x.flip ? [x.range[1], x.range[0]] : x.range;
    pen.textAlign = "center";
    pen.fillStyle = x.coefficient ? C.muted : C.ink;
    const fit = Math.min(17, Math.max(4, Math.floor(((box.width - 2 * PAD.side) / Math.max(1, axes.length - 1)) / 6.6)));
    const text = wrap(x.name.replaceAll(" \u00b7 ", " "), fit).slice(0, 3);
    text.forEach((w, j) => pen.fillText(clip(w, fit + 1), at, PAD.top - 10 - 13 * (text.length - 1 - j)));
    pen.fillStyle = C.muted;
    pen.fillText(show(ends[0], 2), at, box.height - 6);
    pen.textAlign = "left";
    pen.fillText(show(ends[1], 2), at + 4, PAD.top + 9);
    if (x.keep) {
      pen.fillStyle = fade(C.ink, 0.14);
      pen.fillRect(at - 6, x.keep[0], 12, x.keep[1] - x.keep[0]);
    }
  });
};

const drawParallel = () => {
  if (!canvas || !C.ink) return;
  const ratio = Math.max(2, devicePixelRatio || 1);
  box = { width: canvas.clientWidth, height: canvas.clientHeight };
  canvas.width = box.width * ratio;
  canvas.height = box.height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const kept = lines.filter((i) => passing[i]), dim = lines.filter((i) => !passing[i]);
  const alpha = Math.min(0.7, Math.max(0.08, 60 / Math.max(1, kept.length)));
  const layer = (chosen, color, width) => {
    pen.strokeStyle = color;
    pen.lineWidth = width;
    chosen.forEach((i) => stroke(pen, i));
  };
  layer(dim, fade(C.dot, 0.05), 1);
  layer(kept.filter((i) => T.kind[i] === "trial"), fade(C.dot, alpha), 1);
  layer(kept.filter((i) => T.kind[i] === "front"), fade(C.merged, Math.min(0.8, Math.max(0.25, 2 * alpha))), 1.2);
  layer(kept.filter((i) => T.kind[i] === "reference"), fade(C.single, 0.9), 1.2);
  if (near !== null) layer([near], C.ink, 1.2);
  if (lines.includes(pinned)) layer([pinned], C.ink, 2.4);
  drawAxes(pen);
  canvas.dataset.drawn = "true";
  canvas.dataset.lines = kept.length;
};

// The line that passes nearest to a point, within a few pixels.
const nearest = (x, y) => {
  const k = axes.findIndex((_, j) => axisX(j + 1) >= x);
  if (k < 0 || k + 1 >= axes.length) return null;
  const t = (x - axisX(k)) / (axisX(k + 1) - axisX(k));
  let best = null, least = 9;
  for (const i of lines) {
    if (!passing[i]) continue;
    const gap = Math.abs((1 - t) * axisY(axes[k], axes[k].values[i]) + t * axisY(axes[k + 1], axes[k + 1].values[i]) - y);
    if (gap < least) [best, least] = [i, gap];
  }
  return best;
};

const position = (event) => {
  const r = canvas.getBoundingClientRect();
  return [event.clientX - r.left, event.clientY - r.top];
};
canvas?.addEventListener("pointerdown", (event) => {
  const [x, y] = position(event), k = axes.findIndex((_, j) => Math.abs(axisX(j) - x) < 14);
  if (k < 0) {
    const i = nearest(x, y);
    if (i !== null) pin(i);
    return;
  }
  dragging = { axis: axes[k], from: y };
  axes[k].keep = null;
  canvas.setPointerCapture(event.pointerId);
});
canvas?.addEventListener("pointermove", (event) => {
  const [x, y] = position(event);
  if (dragging) {
    dragging.axis.keep = Math.abs(y - dragging.from) < 4 ? null : [Math.min(y, dragging.from), Math.max(y, dragging.from)];
    passing = T.number.map((_, i) => !axes.some((a) => a.keep) || (axes.every((a) => a.values[i] !== null) && pass(i)));
  } else {
    const i = nearest(x, y);
    canvas.title = i === null ? "" : T.name[i];
    canvas.style.cursor = axes.some((_, j) => Math.abs(axisX(j) - x) < 14) ? "ns-resize" : i === null ? "default" : "pointer";
    if (i === near) return;
    near = i;
  }
  requestAnimationFrame(drawParallel);
});
canvas?.addEventListener("pointerup", () => {
  if (!dragging) return;
  dragging = null;
  passing = T.number.map((_, i) => !axes.some((a) => a.keep) || (axes.every((a) => a.values[i] !== null) && pass(i)));
  drawParallel();
  draw("front");
});
canvas?.addEventListener("pointerleave", () => {
  near = null;
  drawParallel();
});
if (canvas) new ResizeObserver(() => drawParallel()).observe(canvas);
