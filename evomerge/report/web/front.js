// The trade-off: any two objectives across and up, a third as colour. A third axis in space would hide
// points behind others and does not print; colour keeps two axes to read values from.
const indices = (keep) => T.number.map((_, i) => i).filter(keep);

const scatter = (chosen, a, b, more) => ({
  type: "scatter", mode: "markers", x: chosen.map((i) => T.raw[a][i]), y: chosen.map((i) => T.raw[b][i]),
  customdata: chosen, hoverinfo: "text", hovertext: chosen.map(hover), ...more,
});

const paintOf = (choice) => {
  if (choice === "scalar") return { values: T.scalar, title: `${safe(D.title)} normalised`, sign: 1 };
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
    const half = (3.2 * clip(T.name[i], 24).length) / width, [u, v] = spots[j];
    const places = { "top center": [0, 0.03], "bottom center": [0, -0.03], "middle right": [half + 0.015, 0], "middle left": [-half - 0.015, 0] };
    const best = Object.entries(places).map(([name, [du, dv]]) => {
      const [x, y] = [u + du, v + dv];
      const near = Math.min(1, ...taken.filter((q) => q !== spots[j]).map((q) => Math.max(Math.abs(q[0] - x) / (2 * half), Math.abs(q[1] - y) / 0.035)));
      return { name, x, y, room: near - (x - half < 0 || x + half > 1 || y > 0.98 || y < 0.02 ? 1 : 0) };
    }).sort((p, q) => q.room - p.room)[0];
    taken.push([best.x, best.y]);
    return best.name;
  });
};

// Better is up, on the colour bar too: a loss is painted by its negative and labelled by itself. The
// worst twentieth shares the palest shade, so that one bad trial does not make all others look alike.
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
const colourAxis = (paint, span, phone) => ({
  colorscale: [[0, C.low], [0.5, C.merged], [1, C.high]], cmin: span[0], cmax: span[1],
  colorbar: {
    ...ticks(span, paint.sign), ...(phone ? { orientation: "h", y: -0.18, yanchor: "top" } : {}), thickness: 8, len: phone ? 1 : 0.9,
    title: { text: paint.title, side: phone ? "bottom" : "right", font: { size: 12, color: C.muted } },
    outlinewidth: 0, ticklen: 0, tickfont: { size: 11, color: C.muted },
  },
});

// What the frame holds at first: the front, the references, and all but the worst tenth of the rest, which
// would press what matters into a corner.
const focus = (k) => {
  const sign = D.objectives[k].up ? 1 : -1, known = indices((i) => T.raw[k][i] !== null);
  const sorted = known.map((i) => sign * T.raw[k][i]).sort((p, q) => p - q);
  const kept = known.filter((i) => T.front[i] || T.kind[i] === "reference").map((i) => sign * T.raw[k][i]);
  return [Math.min(sorted[Math.floor(sorted.length / 10)], ...kept), sorted.at(-1)].map((v) => sign * v);
};

// What a brush on the parallel coordinates leaves out is faint.
const opacity = (chosen, most) => (passing.every(Boolean) ? most : chosen.map((i) => (passing[i] ? most : 0.07)));

// Estimates are hollow, below everything else, with their intervals as one line.
const crowd = (a, b, colors, full) => {
  const off = indices((i) => T.kind[i] === "trial"), guesses = indices((i) => T.kind[i] === "estimate");
  const hollow = scatter(guesses, a, b, {
    name: "stopped early (95% interval)",
    marker: { size: 6, color: C.paper, line: { width: 1.3, color: C.dot }, opacity: opacity(guesses, 0.8) },
  });
  const reach = (k) => guesses.map((i) => (passing[i] ? CONFIDENT * (T.stderr[k][i] ?? 0) : 0));
  const trials = scatter(off, a, b, {
    name: "trials", showlegend: !colors.painted,
    marker: { size: 6.5, line: { width: 0 }, opacity: opacity(off, full), ...colors(off, C.dot) },
  });
  return [...(guesses.length ? [whiskers(hollow, { x: reach(a), y: reach(b) }, { name: "intervals" }), hollow] : []), trials];
};

rings.front = () => [$("across"), $("up")].map((s) => T.raw[Number(s.value)][pinned] ?? null);

const frontFigure = () => {
  const a = Number($("across").value), b = Number($("up").value), choice = $("paint").value, phone = innerWidth < 640;
  const flip = (k, r) => (D.objectives[k].up ? r : [r[1], r[0]]);
  const xs = flip(a, range(focus(a), 0.12)), ys = flip(b, range(focus(b), 0.08));
  const paint = choice === "front" ? null : paintOf(choice), span = paint && shadesOf(paint.values);
  const colors = (chosen, plain) => (paint ? { color: chosen.map((i) => paint.values[i]), coloraxis: "coloraxis" } : { color: plain });
  colors.painted = Boolean(paint);
  const references = indices((i) => T.kind[i] === "reference");
  const both = D.searched.length === 2 && [a, b].every((k) => D.objectives[k].searched) && a !== b;
  const on = indices((i) => T.kind[i] === "front" || (both && T.front[i])).sort((i, j) => T.raw[a][i] - T.raw[a][j]);
  // A painted mark has no colour of its own to show in the legend.
  const keys = paint ? [["trials", C.dot, 6.5], ["Pareto front", C.merged, 10]] : [];
  const data = [
    ...keys.map(([name, color, size]) => ({ mode: "markers", x: [null], y: [null], name, hoverinfo: "skip", marker: { color, size } })),
    ...crowd(a, b, colors, paint ? 0.65 : 0.8),
    scatter(on, a, b, {
      name: "Pareto front", showlegend: !paint, mode: both ? "lines+markers" : "markers", line: { color: C.merged, width: 1.5, shape: "vh" },
      marker: { size: 10, line: { width: paint ? 1.2 : 0, color: C.ink }, opacity: opacity(on, 1), ...colors(on, C.merged) },
    }),
    scatter(references, a, b, {
      name: "reference points", mode: "markers+text", marker: { symbol: "diamond", size: 10, color: C.single },
      text: references.map((i) => safe(clip(T.name[i], 24))), textfont: { size: 11, color: C.single }, cliponaxis: false,
      textposition: labels(references, on, a, b, xs, ys, Math.max(120, $("plot-front").clientWidth - 140)),
    }),
    ring("front"),
  ];
  return {
    data: data.filter((t) => t.x.length), clicked: pin,
    layout: layout(axisName(a), axisName(b), {
      xaxis: { range: xs }, yaxis: { range: ys }, uirevision: `${a},${b}`,
      ...(paint ? { coloraxis: colourAxis(paint, span, phone) } : {}),
    }),
  };
};

if ($("across")) plot("front", frontFigure);
for (const key of ["across", "up", "paint"]) $(key)?.addEventListener("change", () => {
  const a = $("across"), b = $("up");
  if (a.value === b.value) { // the same twice says nothing: the other axis takes what this one was
    const other = key === "across" ? b : a;
    other.value = [...other.options].map((o) => o.value).find((v) => v !== a.value) ?? other.value;
  }
  draw("front");
});
