// The trade-off: any two objectives across and up, a third as colour. A third axis in space would hide
// points behind others and does not print; colour keeps two axes to read values from.
const indices = (keep) => T.number.map((_, i) => i).filter(keep);

const marks = (chosen, a, b, more) => ({
  kind: "points", x: chosen.map((i) => T.raw[a][i]), y: chosen.map((i) => T.raw[b][i]), size: 6.5,
  hover: (k) => hover(chosen[k]), pick: (k) => chosen[k], ...more,
});

const paintOf = (choice) => {
  if (choice === "scalar") return { values: T.scalar, title: `${D.title} normalised`, sign: 1 };
  if (choice === "number") return { values: T.number, title: "trial", sign: 1 };
  const k = Number(choice), sign = D.objectives[k].up ? 1 : -1;
  return { values: T.raw[k].map((v) => (v === null ? null : sign * v)), title: axisName(k), sign };
};

// A place for each label inside the frame, where no other label, reference or member of the front lies, as far
// as there is one.
const labels = (chosen, others, a, b, xs, ys, width) => {
  const share = (v, r) => (v - r[0]) / (r[1] - r[0]), spot = (i) => [share(T.raw[a][i], xs), share(T.raw[b][i], ys)];
  const spots = chosen.map(spot), taken = [...spots, ...others.map(spot)];
  return chosen.map((i, j) => {
    const text = clip(T.name[i], 24), half = wide(text) / 2 / width, [u, v] = spots[j];
    const places = [
      { du: 0, dv: 0.03, dx: 0, dy: -14, anchor: "middle" }, { du: 0, dv: -0.03, dx: 0, dy: 14, anchor: "middle" },
      { du: half + 0.015, dv: 0, dx: 10, dy: 0, anchor: "start" }, { du: -half - 0.015, dv: 0, dx: -10, dy: 0, anchor: "end" },
    ];
    const best = places.map((p) => {
      const [x, y] = [u + p.du, v + p.dv];
      const near = Math.min(1, ...taken.filter((q) => q !== spots[j]).map((q) => Math.max(Math.abs(q[0] - x) / (2 * half), Math.abs(q[1] - y) / 0.035)));
      return { ...p, text, x, y, room: near - (x - half < 0 || x + half > 1 || y > 0.98 || y < 0.02 ? 1 : 0) };
    }).sort((p, q) => q.room - p.room)[0];
    taken.push([best.x, best.y]);
    return best;
  });
};

// Better is to the right of the colour scale too: a loss is painted by its negative and labelled by itself. The
// worst twentieth shares the palest shade, so that one bad trial does not make all others look alike.
const shadesOf = (values) => {
  const sorted = values.filter((v) => v !== null).sort((p, q) => p - q);
  const [low, high] = [sorted[Math.floor(0.05 * sorted.length)], sorted.at(-1)];
  return high > low ? [low, high, low > sorted[0]] : [...range(sorted, 0), false];
};

// What the frame holds at first: the front, the references, and all but the worst tenth of the rest, which
// would press what matters into a corner.
const focus = (k) => {
  const sign = D.objectives[k].up ? 1 : -1, known = indices((i) => T.raw[k][i] !== null);
  const sorted = known.map((i) => sign * T.raw[k][i]).sort((p, q) => p - q);
  const kept = known.filter((i) => T.front[i] || T.kind[i] === "reference").map((i) => sign * T.raw[k][i]);
  return [Math.min(sorted[Math.floor(sorted.length / 10)], ...kept), sorted.at(-1)].map((v) => sign * v);
};

figures.front = () => {
  const a = Number($("across").value), b = Number($("up").value), choice = $("paint").value, phone = innerWidth < 640;
  const flip = (k, r) => (D.objectives[k].up ? r : [r[1], r[0]]);
  const xs = flip(a, range(focus(a), 0.12)), ys = flip(b, range(focus(b), 0.08));
  const paint = choice === "front" ? null : paintOf(choice), span = paint && shadesOf(paint.values);
  const shades = [C.low, C.merged, C.high], tone = painter(shades);
  const colors = (chosen, plain) => (paint ? chosen.map((i) => tone((paint.values[i] - span[0]) / (span[1] - span[0]))) : plain);
  const alpha = (chosen, full) => chosen.map((i) => (passing[i] ? full : 0.07));
  const off = indices((i) => T.kind[i] === "trial"), guesses = indices((i) => T.kind[i] === "estimate");
  const references = indices((i) => T.kind[i] === "reference");
  const both = D.searched.length === 2 && [a, b].every((k) => D.objectives[k].searched) && a !== b;
  const on = indices((i) => T.kind[i] === "front" || (both && T.front[i])).sort((i, j) => T.raw[a][i] - T.raw[a][j]);
  const bars = (k) => guesses.map((i) => CONFIDENT * (T.stderr[k][i] ?? 0));
  const layers = [
    marks(guesses, a, b, { name: "stopped early (95% interval)", shape: "ring", size: 6, color: C.dot, alpha: alpha(guesses, 0.8), error: { x: bars(a), y: bars(b), color: fade(C.dot, 0.6) } }),
    marks(off, a, b, { name: "trials", color: colors(off, C.dot), swatch: C.dot, alpha: alpha(off, paint ? 0.65 : 0.8) }),
    marks(on, a, b, { name: "Pareto front", size: 10, color: colors(on, C.merged), swatch: C.merged, alpha: alpha(on, 1), edge: paint ? C.ink : null }),
  ];
  if (both) layers.splice(2, 0, { kind: "line", x: layers[2].x, y: layers[2].y, color: C.merged, width: 1.5, step: "vh" });
  if (references.length) layers.push(marks(references, a, b, {
    name: "reference points", shape: "diamond", size: 9, color: C.single,
    labels: labels(references, on, a, b, xs, ys, Math.max(120, $("plot-front").clientWidth - 70)),
  }));
  const word = (v) => show(paint.sign * v, span[1] - span[0] > 20 ? 0 : 2);
  const [x, y] = [T.raw[a][pinned] ?? null, T.raw[b][pinned] ?? null];
  return {
    layers, clicked: pin, height: phone ? 460 : 600, view: `${a},${b}`,
    x: { title: axisName(a), range: xs }, y: { title: axisName(b), range: ys },
    ring: x === null || y === null ? null : [x, y],
    bar: paint && { title: paint.title, colors: shades, ticks: [(span[2] ? (paint.sign < 0 ? "\u2265 " : "\u2264 ") : "") + word(span[0]), word(span[1])] },
  };
};

for (const key of ["across", "up", "paint"]) $(key)?.addEventListener("change", () => {
  const a = $("across"), b = $("up");
  if (a.value === b.value) { // the same twice says nothing: the other axis takes what this one was
    const other = key === "across" ? b : a;
    other.value = [...other.options].map((o) => o.value).find((v) => v !== a.value) ?? other.value;
  }
  draw("front");
});
if (!$("across")) delete figures.front;
