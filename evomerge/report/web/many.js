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
  const line = { mode: "lines", x: grid, line: { color: shade(k), width: 2.5, shape: "hv" } }, edge = { ...line, line: { ...line.line, width: 0 }, showlegend: false, hoverinfo: "skip" };
  const middle = at(0.5), spread = grid.map((_, j) => `${show(middle[j])} (${show(rows[j][0])} to ${show(rows[j].at(-1))})`);
  const band = [{ ...edge, y: at(few ? 0 : 0.25) }, { ...edge, y: at(few ? 1 : 0.75), fill: "tonexty", fillcolor: fade(shade(k), 0.14) }];
  return [...(one.runs.length > 1 ? band : []), {
    ...line, y: middle, name: safe(clip(one.name, 40)), hoverinfo: "text", hovertext: spread.map((text) => told([safe(one.name), text])),
  }];
});

const overAxis = (data) => ({
  title: overTime() ? "worker time, seconds" : "trials finished", range: range(data.flatMap((t) => t.x), 0.02),
  ...(!overTime() && data.every((t) => t.x.length < 8) ? { dtick: 1 } : {}),
});
const heights = (data) => data.flatMap((t) => t.y).filter((v) => v !== null);
const levels = (shown) => ({
  shapes: shown.map(([, y]) => level(y, C.muted)), annotations: shown.map(([name, y]) => marked(clip(name, 24), y, C.muted, { end: true })),
});

plot("best", () => {
  const data = bands("best"), x = overAxis(data);
  // One seed that begins far below must not press all others against the top.
  const known = heights(data), top = known.reduce((p, q) => Math.max(p, q), -Infinity);
  const anchors = [...D.levels.map((l) => l[1]), ...data.map((t) => t.y.at(-1)).filter((v) => v !== null)];
  const least = Math.min(...anchors), floor = least - 0.6 * (top - least || 1);
  const shown = range([...known.map((v) => Math.max(v, floor)), ...anchors]);
  return { data, layout: layout(x.title, `${safe(D.title)} normalised score`, {
    xaxis: x, yaxis: { range: shown }, uirevision: overTime(), ...levels(D.levels.filter(([, y]) => y > shown[0])),
  }) };
});

plot("volume", () => {
  const start = D.contenders[0].runs[0].before, data = bands("volume"), x = overAxis(data);
  return { data, layout: layout(x.title, "hypervolume", {
    xaxis: x, yaxis: { range: range([...heights(data), start]), tickformat: ".3~p" }, uirevision: overTime(),
    showlegend: false, ...levels(start === null ? [] : [["reference points", start]]),
  }) };
});

plot("front", () => {
  const a = Number($("across").value), b = Number($("up").value);
  const all = D.contenders.map((one) => one.runs.flatMap((r) => r.front.map((p) => ({ ...p, run: r.name }))));
  const data = all.map((points, k) => ({
    mode: "markers", name: safe(clip(D.contenders[k].name, 40)), x: points.map((p) => p.raw[a]), y: points.map((p) => p.raw[b]),
    marker: { color: shade(k), size: 8, opacity: 0.8 }, hoverinfo: "text",
    hovertext: points.map((p) => told([
      `${p.name} of ${p.run}`, ...D.objectives.map((o, i) => `${clip(o.name, 30)}  ${show(p.raw[i])} ${arrow(o)}`), ...wrap(p.recipe, 46),
    ].map(safe))),
  }));
  data.push({
    mode: "markers+text", name: "reference points", marker: { symbol: "diamond", size: 9, color: C.muted },
    x: D.references.map((r) => r.raw[a]), y: D.references.map((r) => r.raw[b]),
    text: D.references.map((r) => safe(clip(r.name, 24))), textposition: "top center", textfont: { size: 11, color: C.muted }, cliponaxis: false,
    hoverinfo: "text", hovertext: D.references.map((r) => safe(r.name)),
  });
  const span = (k, key) => {
    const r = range(data.flatMap((t) => t[key]), 0.1);
    return D.objectives[k].up ? r : [r[1], r[0]];
  };
  return { data, layout: layout(axisName(a), axisName(b), { xaxis: { range: span(a, "x") }, yaxis: { range: span(b, "y") }, uirevision: `${a},${b}` }) };
});

$("over").addEventListener("change", () => ["best", "volume"].forEach(draw));
for (const key of ["across", "up"]) $(key)?.addEventListener("change", () => draw("front"));
