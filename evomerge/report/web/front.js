// The trade-off: any two objectives across and up, a third as colour. A third axis in space would hide
// points behind others, needs WebGL and does not print; colour keeps two axes to read values from.
const indices = (keep) => T.number.map((_, i) => i).filter(keep);

const scatter = (chosen, a, b, more) => ({
  type: "scatter", mode: "markers", x: chosen.map((i) => T.raw[a][i]), y: chosen.map((i) => T.raw[b][i]),
  customdata: chosen, hoverinfo: "text", hovertext: chosen.map(hover), ...more,
});

const paintOf = (choice) => {
  if (choice === "scalar") return { values: T.scalar, title: `${safe(D.title)} normalised` };
  if (choice === "number") return { values: T.number, title: "trial" };
  const k = Number(choice), sign = D.objectives[k].up ? 1 : -1;
  return { values: T.raw[k].map((v) => (v === null ? null : sign * v)), title: axisName(k), sign };
};

// A place for each label inside the frame, where no other label or reference lies, as far as there is one.
const labels = (chosen, a, b, xs, ys, width) => {
  const onScreen = (k, v, r) => {
    const t = (v - r[0]) / (r[1] - r[0]);
    return D.objectives[k].up ? t : 1 - t;
  };
  const marks = chosen.map((i) => [onScreen(a, T.raw[a][i], xs), onScreen(b, T.raw[b][i], ys)]);
  const taken = [...marks];
  return chosen.map((i, j) => {
    const [u, v] = marks[j], half = (3.2 * clip(T.name[i], 24).length) / width;
    const places = { "top center": [0, 0.045], "bottom center": [0, -0.045], "middle right": [half + 0.02, 0], "middle left": [-half - 0.02, 0] };
    const best = Object.entries(places).map(([name, [dx, dy]]) => {
      const x = u + dx, y = v + dy;
      const near = Math.min(1, ...taken.filter((p) => p !== marks[j]).map((p) => Math.max(Math.abs(p[0] - x) / (2 * half), Math.abs(p[1] - y) / 0.04)));
      return { name, x, y, room: near - (x - half < 0 || x + half > 1 || y > 0.97 ? 1 : 0) };
    }).sort((p, q) => q.room - p.room)[0];
    taken.push([best.x, best.y]);
    return best.name;
  });
};

// Better is up, on the colour bar too: a loss is painted by its negative and labelled by itself. The worst
// twentieth shares the palest shade, so that one bad trial does not make all others look alike.
const shadesOf = (values) => {
  const sorted = values.filter((v) => v !== null).sort((p, q) => p - q);
  const [low, high] = [sorted[Math.floor(0.05 * sorted.length)], sorted.at(-1)];
  return high > low ? [low, high, low > sorted[0]] : [...range(sorted, 0), false];
};
const ticks = ([low, high, clipped], sign) => {
  const tickvals = [0, 0.25, 0.5, 0.75, 1].map((t) => low + t * (high - low));
  const beyond = clipped ? (sign < 0 ? "\u2265 " : "\u2264 ") : "";
  return { tickvals, ticktext: tickvals.map((v, k) => (k ? "" : beyond) + show(sign * v, high - low > 20 ? 0 : 2)) };
};

// What the frame holds at first: the front, the references, and all but the worst tenth of the rest, which
// would press what matters into a corner.
const focus = (k) => {
  const sign = D.objectives[k].up ? 1 : -1, known = indices((i) => T.raw[k][i] !== null);
  const sorted = known.map((i) => sign * T.raw[k][i]).sort((p, q) => p - q);
  const kept = known.filter((i) => T.front[i] || T.kind[i] === "reference").map((i) => sign * T.raw[k][i]);
  return [Math.min(sorted[Math.floor(sorted.length / 10)], ...kept), sorted.at(-1)].map((v) => sign * v);
};

shapes.front = () => {
  const [x, y] = [$("across"), $("up")].map((s) => T.raw[Number(s.value)][pinned]);
  return x === null || y === null ? [] : [ring(x, y)];
};

figures.front = () => {
  const a = Number($("across").value), b = Number($("up").value), choice = $("paint").value;
  const xs = range(focus(a), 0.12), ys = range(focus(b), 0.08);
  const paint = choice === "front" ? null : paintOf(choice);
  const span = paint ? shadesOf(paint.values) : null;
  const colors = (chosen, plain) => (paint ? {
    color: chosen.map((i) => paint.values[i]), cmin: span[0], cmax: span[1], coloraxis: "coloraxis",
  } : { color: plain });
  const opacity = (chosen, full) => chosen.map((i) => (passing[i] ? full : 0.07));
  const off = indices((i) => T.kind[i] === "trial"), guesses = indices((i) => T.kind[i] === "estimate");
  const references = indices((i) => T.kind[i] === "reference");
  const both = D.searched.length === 2 && [a, b].every((k) => D.objectives[k].searched) && a !== b;
  const on = indices((i) => T.kind[i] === "front" || (both && T.front[i])).sort((i, j) => T.raw[a][i] - T.raw[a][j]);
  const data = [], phone = innerWidth < 640;
  if (paint) for (const [name, color, size] of [["trials", C.dot, 6.5], ["Pareto front", C.merged, 10]]) {
    data.push({ type: "scatter", mode: "markers", x: [null], y: [null], name, hoverinfo: "skip", marker: { color, size } });
  }
  if (guesses.length) {
    const bar = (k) => ({ array: guesses.map((i) => T.stderr[k][i]), color: fade(C.dot, 0.5), thickness: 1, width: 0 });
    data.push(scatter(guesses, a, b, {
      name: "stopped early (estimate)", error_x: bar(a), error_y: bar(b),
      marker: { symbol: "circle-open", size: 6, color: C.dot, line: { width: 1.2 }, opacity: opacity(guesses, 0.8) },
    }));
  }
  data.push(scatter(off, a, b, { name: "trials", showlegend: !paint, marker: { size: 6.5, line: { width: 0 }, opacity: opacity(off, paint ? 0.55 : 0.8), ...colors(off, C.dot) } }));
  data.push(scatter(on, a, b, {
    name: "Pareto front", showlegend: !paint, mode: both ? "lines+markers" : "markers", line: { color: C.merged, width: 1.5, shape: "vh" },
    marker: { size: 10, line: { width: paint ? 1.2 : 0, color: C.ink }, opacity: opacity(on, 1), ...colors(on, C.merged) },
  }));
  data.push(scatter(references, a, b, {
    name: "reference points", mode: "markers+text", marker: { symbol: "diamond", size: 10, color: C.single },
    text: references.map((i) => safe(clip(T.name[i], 24))), textposition: labels(references, a, b, xs, ys, $("plot-front").clientWidth - 80),
    textfont: { size: 11, color: C.single }, cliponaxis: false,
  }));
  const bar = paint ? {
    colorscale: [[0, C.low], [0.5, C.merged], [1, C.high]], cmin: span[0], cmax: span[1],
    colorbar: { ...ticks(span, paint.sign ?? 1), ...(phone ? { orientation: "h", y: -0.18, yanchor: "top" } : {}), title: { text: paint.title, side: phone ? "bottom" : "right", font: { size: 12, color: C.muted } }, thickness: 8, outlinewidth: 0, ticklen: 0, tickfont: { size: 11, color: C.muted }, len: phone ? 1 : 0.9 },
  } : undefined;
  const flip = (k, r) => (D.objectives[k].up ? r : [r[1], r[0]]);
  return {
    data, clicked: pin,
    layout: layout(axisName(a), axisName(b), {
      coloraxis: bar, shapes: shapes.front(), height: phone ? 520 : 620,
      xaxis: { range: flip(a, xs) }, yaxis: { range: flip(b, ys) },
      uirevision: `${a},${b}`,
    }),
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
if (!$("across")) [figures, shapes].forEach((all) => delete all.front);
