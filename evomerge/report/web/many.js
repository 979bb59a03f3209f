// Many runs: medians and bands over their seeds, and every front.
const arrow = (o) => (o.up ? "\u2191" : "\u2193");
const axisName = (k) => `${clip(D.objectives[k].name, 30)} \u00b7 ${clip(D.objectives[k].metric, 24)} ${arrow(D.objectives[k])}`;
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
  const band = { kind: "band", x: grid, low: at(few ? 0 : 0.25), high: at(few ? 1 : 0.75), color: fade(shade(k), 0.14) }, middle = at(0.5);
  return [...(one.runs.length > 1 ? [band] : []), {
    kind: "line", x: grid, y: middle, color: shade(k), step: "hv", name: clip(one.name, 40),
    hover: (j) => [one.name, `${show(middle[j])} (${show(rows[j][0])} to ${show(rows[j].at(-1))})`],
  }];
});

const marked = (text, y) => ({ y, text: clip(text, 24), color: C.muted, end: true });
const overAxis = (layers) => ({ title: overTime() ? "worker time, seconds" : "trials finished", range: range(layers.flatMap((l) => l.x), 0.02), whole: !overTime() });
const heights = (layers) => layers.flatMap((l) => (l.kind === "band" ? [...l.low, ...l.high] : l.y)).filter((v) => v !== null);

figures.best = () => {
  const layers = bands("best");
  // One seed that begins far below must not press all others against the top.
  const known = heights(layers), top = known.reduce((p, q) => Math.max(p, q), -Infinity);
  const anchors = [...D.levels.map((l) => l[1]), ...layers.map((l) => (l.high ?? l.y).at(-1)).filter((v) => v !== null)];
  const least = Math.min(...anchors), floor = least - 0.6 * (top - least || 1);
  const shown = range([...known.map((v) => Math.max(v, floor)), ...anchors]);
  return {
    layers, height: 400, view: overTime(), x: overAxis(layers), y: { title: `${D.title} normalised score`, range: shown },
    levels: D.levels.filter(([, y]) => y > shown[0]).map(([name, y]) => marked(name, y)),
  };
};

figures.volume = () => {
  const start = D.contenders[0].runs[0].before, layers = bands("volume");
  return {
    layers: layers.map((l) => ({ ...l, name: "" })), height: 400, view: overTime(), x: overAxis(layers),
    y: { title: "hypervolume", range: range([...heights(layers), start]), format: percent }, levels: start === null ? [] : [marked("reference points", start)],
  };
};

figures.front = () => {
  const a = Number($("across").value), b = Number($("up").value);
  const layers = D.contenders.map((one, k) => {
    const points = one.runs.flatMap((r) => r.front.map((p) => ({ ...p, run: r.name })));
    return {
      kind: "points", name: clip(one.name, 40), x: points.map((p) => p.raw[a]), y: points.map((p) => p.raw[b]), color: shade(k), size: 8, alpha: 0.8,
      hover: (j) => [`${points[j].name} of ${points[j].run}`, ...D.objectives.map((o, i) => `${clip(o.name, 30)}  ${show(points[j].raw[i])} ${arrow(o)}`), ...wrap(points[j].recipe, 46)],
    };
  });
  layers.push({
    kind: "points", name: "reference points", shape: "diamond", size: 9, color: C.muted, x: D.references.map((r) => r.raw[a]), y: D.references.map((r) => r.raw[b]),
    labels: D.references.map((r) => ({ text: clip(r.name, 24), dx: 0, dy: -14, anchor: "middle" })), hover: (j) => [D.references[j].name],
  });
  const span = (k, key) => {
    const r = range(layers.flatMap((l) => l[key]), 0.1);
    return D.objectives[k].up ? r : [r[1], r[0]];
  };
  return { layers, height: 560, view: `${a},${b}`, x: { title: axisName(a), range: span(a, "x") }, y: { title: axisName(b), range: span(b, "y") } };
};

$("over").addEventListener("change", () => ["best", "volume"].forEach(draw));
for (const key of ["across", "up"]) $(key)?.addEventListener("change", () => draw("front"));
for (const key of Object.keys(figures)) if (!$(`plot-${key}`)) delete figures[key];
