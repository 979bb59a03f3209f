// The search over evaluations or over time, and what was left of its gain on new documents.
const P = D.progress;
const overTime = () => $("over")?.value === "time";
const minutes = () => (P.seconds.at(-1) ?? 0) > 600;
const spent = (k) => (overTime() ? P.seconds[k] / (minutes() ? 60 : 1) : k + 1);
const overAxis = (last) => ({
  title: overTime() ? `worker time, ${minutes() ? "minutes" : "seconds"}` : "trials finished",
  range: last ? range([overTime() ? 0 : 1, spent(last - 1)], 0.02) : [0, 1], ...(!overTime() && last < 8 ? { dtick: 1 } : {}),
});
const steps = (y, from, more) => {
  const x = y.map((_, k) => spent(k));
  return { mode: "lines", x: from === null ? x : [0, ...x], y: from === null ? y : [from, ...y], line: { color: C.merged, width: 2.5, shape: "hv" }, ...more };
};

// Far below the references a trial only says "bad": such dots lie on the floor, so that the top has room.
const anchors = [...D.levels.map((l) => l[1]), ...P.best.filter((v) => v !== null)];
const summit = T.scalar.reduce((p, q) => (q === null ? p : Math.max(p, q)), Math.max(...anchors, -Infinity));
const least = Math.min(...anchors), floor = anchors.length ? least - 1.2 * (summit - least || 1) : -Infinity;
const rows = P.number.map((n, k) => [at.get(n), k]).filter(([i]) => i !== undefined && T.scalar[i] !== null);

const height = (i) => Math.max(T.scalar[i], floor);
rings.best = () => {
  const found = rows.find(([i]) => i === pinned);
  return found ? [spent(found[1]), height(pinned)] : [null, null];
};

const dots = (keep, more) => {
  const chosen = rows.filter(([i]) => keep(i));
  return {
    mode: "markers", x: chosen.map(([, k]) => spent(k)), y: chosen.map(([i]) => height(i)),
    customdata: chosen.map(([i]) => i), hoverinfo: "text", hovertext: chosen.map(([i]) => hover(i)), ...more,
  };
};

plot("best", () => {
  const low = (i) => T.scalar[i] < floor, guess = (i) => T.kind[i] === "estimate";
  const hollow = { size: 6, color: C.paper, line: { width: 1.3, color: C.dot } };
  const guesses = dots((i) => guess(i) && !low(i), { name: "stopped early (95% interval)", marker: hollow });
  const reach = guesses.customdata.map((i) => CONFIDENT * (T.spread[i] ?? 0));
  const data = [
    whiskers(guesses, { y: reach }, { name: "intervals" }), guesses,
    dots((i) => !guess(i) && !low(i), { name: "trials", marker: { size: 5.5, color: C.dot } }),
    dots(low, { name: "below the frame", showlegend: false, marker: { ...hollow, symbol: "triangle-down" } }),
    steps(P.best, null, { name: "best so far", hoverinfo: "skip" }),
    ring("best"),
  ];
  const span = range([...rows.map(([i]) => height(i)), ...anchors]), levels = [...D.levels].sort((p, q) => q[1] - p[1]);
  const close = (k) => k > 0 && levels[k - 1][1] - levels[k][1] < 0.06 * (span[1] - span[0]);
  const x = overAxis(P.number.length);
  return {
    data: data.filter((t) => t.x.length), clicked: pin,
    layout: layout(x.title, `${safe(D.title)} normalised score`, {
      xaxis: x, yaxis: { range: span }, uirevision: overTime(), shapes: levels.map((l) => level(l[1], C.single)),
      annotations: levels.map(([name, y], k) => marked(clip(name, 24), y, C.single, { under: close(k) })),
    }),
  };
});

plot("volume", () => {
  const start = P.before, unit = minutes() ? " min" : " s", line = steps(P.volume, start), base = line.y.map(() => start ?? 0);
  const when = line.x.map((v) => (overTime() ? `${show(v, 0)}${unit}` : `after ${v} trials`));
  const x = overAxis(P.number.length), none = { text: "no single model was scored: nothing to measure from", xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, font: { color: C.muted } };
  return {
    data: P.volume.length ? [
      { ...line, y: base, line: { ...line.line, width: 0 }, hoverinfo: "skip" },
      { ...line, fill: "tonexty", fillcolor: fade(C.merged, 0.1), customdata: when, hovertemplate: "%{y:.1%}<br>%{customdata}<extra></extra>" },
    ] : [],
    layout: layout(x.title, "hypervolume", {
      showlegend: false, uirevision: overTime(), xaxis: x, yaxis: { range: range([...P.volume, start ?? 0], 0.12), tickformat: ".3~p" },
      shapes: start === null ? [] : [level(start, C.single)], annotations: [start === null ? none : marked("reference points", start, C.single)],
    }),
  };
});

plot("luck", () => {
  const splits = ["search", "select", "test"].filter((s) => D.leads.some((l) => l.on[s]));
  const width = 0.05 * (D.leads.length - 1), values = [0], rival = clip(D.rival ?? "", 30);
  const data = [...D.leads].reverse().map((l, k) => {
    const best = l.number === D.best, color = best ? C.merged : C.dot, own = splits.map((s, j) => [j, l.on[s]]).filter(([, v]) => v);
    const shift = D.leads.length > 1 ? 2 * width * (k / (D.leads.length - 1)) - width : 0;
    values.push(...own.flatMap(([, v]) => v));
    return {
      mode: "lines+markers", name: safe(l.name), customdata: own.map(() => at.get(l.number)), showlegend: false,
      x: own.map(([j]) => j + shift), y: own.map(([, v]) => v[0]), line: { color, width: best ? 2.5 : 1.2 }, marker: { color, size: best ? 9 : 6 },
      error_y: { array: own.map(([, v]) => v[2] - v[0]), arrayminus: own.map(([, v]) => v[0] - v[1]), color, thickness: 1.2, width: 0 },
      hoverinfo: "text", hovertext: own.map(([j, v]) => told([safe(l.name), `${splits[j]}: ${show(v[0])}`, `95% CI ${show(v[1])} to ${show(v[2])}`])),
    };
  });
  return {
    data, clicked: pin,
    layout: layout("documents", `lead over ${safe(rival)}`, {
      dragmode: false, margin: { l: 60, r: 14, t: 12, b: 52 }, shapes: [level(0, C.single)], annotations: [marked(rival, 0, C.single, { end: true })],
      xaxis: { tickvals: splits.map((_, j) => j), ticktext: splits, showgrid: false, range: [-0.35, splits.length - 0.65], fixedrange: true },
      yaxis: { range: range(values, 0.1), fixedrange: true },
    }),
  };
});

$("over")?.addEventListener("change", () => ["best", "volume"].forEach(draw));
