// Many runs: medians and bands over their seeds, and every front.
const arrow = (o) => (o.up ? "\u2191" : "\u2193");
const axisName = (k) => `${safe(clip(D.objectives[k].name, 30))} \u00b7 ${safe(clip(D.objectives[k].metric, 24))} ${arrow(D.objectives[k])}`;
const shade = (k) => C[`c${k % 8}`];
const overTime = () => $("over").value === "time";

const quantile = (sorted, q) => {
  const k = q * (sorted.length - 1), low = Math.floor(k);
  return sorted[low] + (k - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
};

// A run's value after x trials, or after x seconds: the last one known by then.
const after = (run, key, x) => {
  const done = overTime() ? run.seconds.findLastIndex((s) => s <= x * (1 + 1e-9)) : Math.min(x, run[key].length) - 1;
  return done < 0 ? (key === "volume" ? run.before : null) : run[key][done];
};

const bands = (key) => D.contenders.flatMap((one, k) => {
  const least = Math.min(...one.runs.map((r) => (overTime() ? r.seconds.at(-1) : r.best.length)));
  const n = overTime() ? 160 : least;
  const grid = Array.from({ length: n }, (_, j) => (overTime() ? (least * (j + 1)) / n : j + 1));
  const rows = grid.map((x) => one.runs.map((r) => after(r, key, x)).filter((v) => v !== null && v !== undefined).sort((a, b) => a - b));
  const few = one.runs.length < 5;
  const at = (q) => rows.map((r) => (r.length ? quantile(r, q) : null));
  const line = { type: "scatter", mode: "lines", x: grid, legendgroup: one.name, line: { color: shade(k), shape: "hv" } };
  const middle = at(0.5);
  const band = one.runs.length > 1 ? [
    { ...line, y: at(few ? 0 : 0.25), line: { ...line.line, width: 0 }, showlegend: false, hoverinfo: "skip" },
    { ...line, y: at(few ? 1 : 0.75), line: { ...line.line, width: 0 }, fill: "tonexty", fillcolor: fade(shade(k), 0.14), showlegend: false, hoverinfo: "skip" },
  ] : [];
  return [...band, { ...line, y: middle, name: safe(clip(one.name, 40)), line: { ...line.line, width: 2.5 }, hoverinfo: "text",
    hovertext: grid.map((x, j) => `<b>${safe(one.name)}</b><br>${show(middle[j])} (${show(rows[j][0])} to ${show(rows[j].at(-1))})`) }];
});

const level = (y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, layer: "below", line: { color: C.muted, width: 1, dash: "dot" } });
const marked = (name, y) => ({ xref: "paper", x: 1, xanchor: "right", y, yanchor: "bottom", text: safe(clip(name, 24)), showarrow: false, font: { size: 11, color: C.muted } });
const overTitle = () => (overTime() ? "worker time, seconds" : "search trials told");

figures.best = () => {
  const data = bands("best");
  // One seed that begins far below must not press all others against the top.
  const known = data.flatMap((t) => t.y).filter((v) => v !== null), top = known.reduce((p, q) => Math.max(p, q), -Infinity);
  const anchors = [...D.levels.map((l) => l[1]), ...data.map((t) => t.y.at(-1)).filter((v) => v !== null)];
  const least = Math.min(...anchors), floor = least - 0.6 * (top - least || 1);
  const shown = range([...known.map((v) => Math.max(v, floor)), ...anchors]);
  const seen = D.levels.filter(([, y]) => y > shown[0]);
  return { data, layout: layout(overTitle(), `${safe(D.title)} normalised score`, {
    height: 400, shapes: seen.map((l) => level(l[1])), annotations: seen.map(([name, y]) => marked(name, y)), yaxis: { range: shown },
  }) };
};

figures.volume = () => {
  const start = D.contenders[0].runs[0].before;
  return { data: bands("volume"), layout: layout(overTitle(), "hypervolume", {
    height: 400, yaxis: { tickformat: ".3~p" }, showlegend: false,
    shapes: start === null ? [] : [level(start)], annotations: start === null ? [] : [marked("reference points", start)],
  }) };
};

figures.front = () => {
  const a = Number($("across").value), b = Number($("up").value);
  const data = D.contenders.map((one, k) => {
    const points = one.runs.flatMap((r) => r.front.map((p) => ({ ...p, run: r.name })));
    return { type: "scatter", mode: "markers", name: safe(clip(one.name, 40)), x: points.map((p) => p.raw[a]), y: points.map((p) => p.raw[b]),
      marker: { color: shade(k), size: 8, opacity: 0.8, line: { width: 0 } }, hoverinfo: "text",
      hovertext: points.map((p) => [`<b>${safe(p.name)}</b> of ${safe(p.run)}`, ...D.objectives.map((o, j) => `${safe(clip(o.name, 30))}  ${show(p.raw[j])} ${arrow(o)}`), ...wrap(p.recipe, 46).map(safe)].join("<br>")) };
  });
  data.push({ type: "scatter", mode: "markers+text", name: "reference points", x: D.references.map((r) => r.raw[a]), y: D.references.map((r) => r.raw[b]),
    text: D.references.map((r) => safe(clip(r.name, 24))), textposition: "top center", textfont: { size: 11, color: C.muted }, cliponaxis: false,
    marker: { symbol: "diamond", size: 9, color: C.muted }, hoverinfo: "text", hovertext: D.references.map((r) => safe(r.name)) });
  const span = (k) => {
    const r = range(data.flatMap((t) => (k === a ? t.x : t.y)), 0.1);
    return D.objectives[k].up ? r : [r[1], r[0]];
  };
  return { data, layout: layout(axisName(a), axisName(b), { height: 560, xaxis: { range: span(a) }, yaxis: { range: span(b) }, uirevision: `${a},${b}` }) };
};

$("over").addEventListener("change", () => ["best", "volume"].forEach(draw));
for (const key of ["across", "up"]) $(key)?.addEventListener("change", () => draw("front"));
for (const key of Object.keys(figures)) if (!$(`plot-${key}`)) delete figures[key];
