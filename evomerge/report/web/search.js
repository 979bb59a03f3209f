// The search over evaluations or over time, and what was left of its gain on new documents.
const P = D.progress;
const overTime = () => $("over")?.value === "time";
const minutes = () => (P.seconds.at(-1) ?? 0) > 600;
const told = (k) => (overTime() ? P.seconds[k] / (minutes() ? 60 : 1) : k + 1);
const overTitle = () => (overTime() ? `worker time, ${minutes() ? "minutes" : "seconds"}` : "search trials told");
const stepLine = (y, from) => {
  const x = y.map((_, k) => told(k));
  return { type: "scatter", mode: "lines", x: from === null ? x : [0, ...x], y: from === null ? y : [from, ...y],
    line: { color: C.merged, width: 2.5, shape: "hv" }, hoverinfo: "skip" };
};
const level = (y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, layer: "below", line: { color: C.single, width: 1.2, dash: "dot" } });

// Far below the references a trial only says "bad": such dots lie on the floor, so that the top has room.
const anchors = [...D.levels.map((l) => l[1]), ...P.best.filter((v) => v !== null)];
const summit = T.scalar.reduce((p, q) => (q === null ? p : Math.max(p, q)), Math.max(...anchors, -Infinity));
const least = Math.min(...anchors), floor = anchors.length ? least - 1.2 * (summit - least || 1) : -Infinity;
const rows = P.number.map((n, k) => [at.get(n), k]).filter(([i]) => i !== undefined && T.scalar[i] !== null);

shapes.best = () => {
  const found = rows.find(([i]) => i === pinned);
  return [...D.levels.map((l) => level(l[1])), ...(found ? [ring(told(found[1]), Math.max(T.scalar[pinned], floor))] : [])];
};

figures.best = () => {
  const dots = (estimates, more) => {
    const chosen = rows.filter(([i]) => (T.kind[i] === "estimate") === estimates);
    return { type: "scatter", mode: "markers", x: chosen.map(([, k]) => told(k)), y: chosen.map(([i]) => Math.max(T.scalar[i], floor)),
      customdata: chosen.map(([i]) => i), hoverinfo: "text", hovertext: chosen.map(([i]) => hover(i)), ...more };
  };
  const symbols = (estimate) => rows.filter(([i]) => (T.kind[i] === "estimate") === estimate)
    .map(([i]) => (T.scalar[i] < floor ? "triangle-down-open" : estimate ? "circle-open" : "circle"));
  const span = range([...rows.map(([i]) => Math.max(T.scalar[i], floor)), ...anchors]);
  const data = [
    dots(false, { name: "trials", marker: { color: C.dot, size: 5.5, symbol: symbols(false) } }),
    dots(true, { name: "stopped early (estimate)", marker: { color: C.dot, size: 5.5, symbol: symbols(true) } }),
    { ...stepLine(P.best, null), name: "best so far" },
  ].filter((t) => t.x.length);
  const sorted = [...D.levels].sort((p, q) => q[1] - p[1]);
  const close = (k) => k > 0 && sorted[k - 1][1] - sorted[k][1] < 0.06 * (span[1] - span[0]);
  return {
    data, clicked: pin,
    layout: layout(overTitle(), `${safe(D.title)} normalised score`, {
      height: 380, shapes: shapes.best(), yaxis: { range: span },
      annotations: sorted.map(([name, y], k) => ({ xref: "paper", x: 0, xanchor: "left", y, yanchor: close(k) ? "top" : "bottom",
        text: safe(clip(name, 24)), showarrow: false, font: { size: 11, color: C.single } })),
    }),
  };
};

figures.volume = () => ({
  data: P.volume.length ? [{ ...stepLine(P.volume, P.before), name: "hypervolume", hoverinfo: "x+y", fill: "tozeroy", fillcolor: fade(C.merged, 0.08) }] : [],
  layout: layout(overTitle(), "hypervolume", {
    height: 380, showlegend: false, shapes: P.before === null ? [] : [level(P.before)],
    yaxis: { range: range([...P.volume, P.before ?? 0], 0.12), tickformat: ".3~p" },
    annotations: P.before === null ? [{ xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, text: "no single model was scored: nothing to measure from", font: { color: C.muted } }]
      : [{ xref: "paper", x: 0, xanchor: "left", y: P.before, yanchor: "bottom", text: "reference points", showarrow: false, font: { size: 11, color: C.single } }],
  }),
});

figures.luck = () => {
  const splits = ["search", "select", "test"].filter((s) => D.leads.some((l) => l.on[s]));
  const width = 0.05 * (D.leads.length - 1);
  const data = [...D.leads].reverse().map((l, k) => {
    const best = l.number === D.best, own = splits.map((s, j) => [j, l.on[s]]).filter(([, v]) => v);
    const shift = D.leads.length > 1 ? 2 * width * (k / (D.leads.length - 1)) - width : 0;
    return {
      type: "scatter", mode: "lines+markers", name: safe(l.name), customdata: own.map(() => at.get(l.number)),
      x: own.map(([j]) => j + shift), y: own.map(([, v]) => v[0]), showlegend: false,
      error_y: { array: own.map(([, v]) => v[2] - v[0]), arrayminus: own.map(([, v]) => v[0] - v[1]), color: best ? C.merged : C.dot, thickness: 1.2, width: 0 },
      line: { color: best ? C.merged : C.dot, width: best ? 2.5 : 1.2 }, marker: { color: best ? C.merged : C.dot, size: best ? 9 : 6 },
      hoverinfo: "text", hovertext: own.map(([j, v]) => `<b>${safe(l.name)}</b><br>${splits[j]}: ${show(v[0])}<br>95% CI ${show(v[1])} to ${show(v[2])}`),
    };
  });
  return {
    data, clicked: (i) => i !== undefined && pin(i),
    layout: layout("documents", `lead over ${safe(clip(D.rival ?? "", 30))}`, {
      height: 320, margin: { l: 8, r: 12, t: 12, b: 8 }, shapes: [level(0)],
      xaxis: { tickvals: splits.map((_, j) => j), ticktext: splits, showgrid: false, range: [-0.35, splits.length - 0.65], tickfont: { color: C.muted, size: 12 } },
      annotations: [{ xref: "paper", x: 1, xanchor: "right", y: 0, yanchor: "bottom", text: safe(clip(D.rival ?? "", 30)), showarrow: false, font: { size: 11, color: C.single } }],
    }),
  };
};

$("over")?.addEventListener("change", () => ["best", "volume"].forEach(draw));
for (const key of ["best", "volume", "luck"]) if (!$(`plot-${key}`)) [figures, shapes].forEach((all) => delete all[key]);
