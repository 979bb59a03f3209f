// The search over evaluations or over time, and what was left of its gain on new documents.
const P = D.progress;
const overTime = () => $("over")?.value === "time";
const minutes = () => (P.seconds.at(-1) ?? 0) > 600;
const told = (k) => (overTime() ? P.seconds[k] / (minutes() ? 60 : 1) : k + 1);
const overAxis = () => ({
  title: overTime() ? `worker time, ${minutes() ? "minutes" : "seconds"}` : "trials finished",
  range: P.number.length ? range([overTime() ? 0 : 1, told(P.number.length - 1)], 0.02) : [0, 1], each: 64, whole: !overTime(),
});
const holds = (y, from, more) => {
  const x = y.map((_, k) => told(k));
  return { kind: "line", x: from === null ? x : [0, ...x], y: from === null ? y : [from, ...y], color: C.merged, step: "hv", ...more };
};

// Far below the references a trial only says "bad": such dots lie on the floor, so that the top has room.
const anchors = [...D.levels.map((l) => l[1]), ...P.best.filter((v) => v !== null)];
const summit = T.scalar.reduce((p, q) => (q === null ? p : Math.max(p, q)), Math.max(...anchors, -Infinity));
const least = Math.min(...anchors), floor = anchors.length ? least - 1.2 * (summit - least || 1) : -Infinity;
const rows = P.number.map((n, k) => [at.get(n), k]).filter(([i]) => i !== undefined && T.scalar[i] !== null);

figures.best = () => {
  const height = (i) => Math.max(T.scalar[i], floor);
  const dots = (estimates, more) => {
    const chosen = rows.filter(([i]) => (T.kind[i] === "estimate") === estimates);
    return {
      kind: "points", x: chosen.map(([, k]) => told(k)), y: chosen.map(([i]) => height(i)), color: C.dot, size: 5.5,
      shape: chosen.map(([i]) => (T.scalar[i] < floor ? "down" : estimates ? "ring" : "dot")), legend: estimates ? "ring" : "dot",
      error: estimates ? { y: chosen.map(([i]) => (T.scalar[i] < floor ? 0 : CONFIDENT * (T.spread[i] ?? 0))), color: fade(C.dot, 0.6) } : null,
      hover: (k) => hover(chosen[k][0]), pick: (k) => chosen[k][0], ...more,
    };
  };
  const span = range([...rows.map(([i]) => height(i)), ...anchors]), found = rows.find(([i]) => i === pinned);
  const levels = [...D.levels].sort((p, q) => q[1] - p[1]);
  const close = (k) => k > 0 && levels[k - 1][1] - levels[k][1] < 0.06 * (span[1] - span[0]);
  return {
    layers: [dots(true, { name: "stopped early (95% interval)" }), dots(false, { name: "trials" }), holds(P.best, null, { name: "best so far" })],
    x: overAxis(), y: { title: `${D.title} normalised score`, range: span }, height: 380, clicked: pin, view: overTime(),
    levels: levels.map(([name, y], k) => ({ y, text: clip(name, 24), color: C.single, under: close(k) })),
    ring: found ? [told(found[1]), height(pinned)] : null,
  };
};

figures.volume = () => {
  const start = P.before === null ? [] : [{ y: P.before, text: "reference points", color: C.single }];
  const line = holds(P.volume, P.before), unit = overTime() ? (minutes() ? " min" : " s") : "";
  return {
    layers: P.volume.length ? [
      { kind: "band", x: line.x, low: line.y.map(() => P.before ?? 0), high: line.y, color: fade(C.merged, 0.1) },
      { ...line, hover: (k) => [percent(line.y[k]), overTime() ? `${show(line.x[k], 0)}${unit}` : `after ${line.x[k]} trials`] },
    ] : [],
    x: overAxis(), y: { title: "hypervolume", range: range([...P.volume, P.before ?? 0], 0.12), format: percent }, height: 380,
    levels: start, view: overTime(), note: P.before === null ? "no single model was scored: nothing to measure from" : "",
  };
};

figures.luck = () => {
  const splits = ["search", "select", "test"].filter((s) => D.leads.some((l) => l.on[s]));
  const width = 0.05 * (D.leads.length - 1), values = [0];
  const layers = [...D.leads].reverse().flatMap((l, k) => {
    const color = l.number === D.best ? C.merged : C.dot, own = splits.map((s, j) => [j, l.on[s]]).filter(([, v]) => v);
    const shift = D.leads.length > 1 ? 2 * width * (k / (D.leads.length - 1)) - width : 0;
    const [x, y] = [own.map(([j]) => j + shift), own.map(([, v]) => v[0])];
    values.push(...own.flatMap(([, v]) => v));
    return [
      { kind: "line", x, y, color, width: l.number === D.best ? 2.5 : 1.2 },
      { kind: "points", x, y, color, size: l.number === D.best ? 9 : 6, error: { y: own.map(([, v]) => [v[1] - v[0], v[2] - v[0]]) },
        hover: (j) => [l.name, `${splits[own[j][0]]}: ${show(y[j])}`, `95% CI ${show(own[j][1][1])} to ${show(own[j][1][2])}`], pick: () => at.get(l.number) },
    ];
  });
  return {
    layers, clicked: (i) => i !== undefined && pin(i), height: 320, still: true,
    x: { title: "documents", ticks: splits.map((s, j) => [j, s]), range: [-0.35, splits.length - 0.65], grid: false },
    y: { title: `lead over ${clip(D.rival ?? "", 30)}`, range: range(values, 0.1) },
    levels: [{ y: 0, text: clip(D.rival ?? "", 30), color: C.single, end: true }],
  };
};

$("over")?.addEventListener("change", () => ["best", "volume"].forEach(draw));
for (const key of ["best", "volume", "luck"]) if (!$(`plot-${key}`)) delete figures[key];
