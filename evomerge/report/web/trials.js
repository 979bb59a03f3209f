// The trials, the one that is pinned, and the panel that shows its recipe.
const T = D.trials;
const at = new Map(T.number.map((n, i) => [n, i]));
const where = new Map();
D.layouts.forEach((l, k) => l.numbers.forEach((n, row) => where.set(n, [k, row])));
let passing = T.number.map(() => true);
let pinned = at.get(D.best) ?? (T.number.length ? 0 : null);

const arrow = (o) => (o.up ? "\u2191" : "\u2193");
const axisName = (k) => `${safe(clip(D.objectives[k].name, 30))} \u00b7 ${safe(clip(D.objectives[k].metric, 24))} ${arrow(D.objectives[k])}`;

const estimate = (i) => {
  const asked = T.asked[i];
  return asked && asked[1] ? `estimate from ${asked[0]} of ${asked[1]} documents` : "estimate";
};

const hover = (i) => {
  const lines = [`<b>${safe(T.name[i])}</b>`];
  if (T.kind[i] === "estimate") lines.push(`stopped early: ${estimate(i)}`);
  D.objectives.forEach((o, k) => {
    const error = T.stderr[k][i] === null ? "" : ` \u00b1${show(T.stderr[k][i])}`;
    lines.push(`${safe(clip(o.name, 30))}  ${show(T.raw[k][i])}${error}  ${safe(clip(o.metric, 20))} ${arrow(o)}`);
  });
  lines.push(`${safe(D.title)} normalised  ${show(T.scalar[i])}`);
  return [...lines, ...wrap(T.recipe[i], 46).map(safe)].join("<br>");
};

// Parameter to its matrix, layer groups down and experts across.
const matrices = (i) => {
  const [k, row] = where.get(T.number[i]);
  const values = D.layouts[k].columns[row];
  return D.layouts[k].cells.map(({ name, at }) => ({ name, z: at.map((r) => r.map((c) => values[c])) }));
};

const heat = (i, { name, z }) => {
  const own = D.layouts[where.get(T.number[i])[0]];
  const top = Math.max(1e-9, ...z.map((r) => Math.max(...r.map(Math.abs))));
  const signed = z.some((r) => r.some((v) => v < 0));
  const columns = z[0].length === 1 && own.models.length > 1 ? ["all experts"] : own.models;
  const many = z.length > 24 || columns.length > 8;
  const ticks = (names, limit) => ({
    tickvals: names.map((_, j) => j).filter((j) => j % Math.ceil(names.length / limit) === 0),
    ticktext: names.filter((_, j) => j % Math.ceil(names.length / limit) === 0).map((n) => safe(clip(n, 18))),
    showgrid: false, ticklen: 0, tickfont: { color: C.muted, size: 11 }, title: { text: "" }, fixedrange: true,
  });
  const data = [{
    type: "heatmap", z, zmin: signed ? -top : 0, zmax: top, xgap: many ? 0 : 2, ygap: many ? 0 : 2,
    colorscale: signed ? [[0, C.single], [0.5, C.card], [1, C.merged]] : [[0, C.card], [1, C.merged]],
    texttemplate: many ? "" : "%{z:.2f}", textfont: { size: 11 }, hoverinfo: "text",
    hovertext: z.map((r, g) => r.map((v, k) => `${safe(own.groups[g])}<br>${safe(columns[k])}<br><b>${show(v, 4)}</b>`)),
    colorbar: { thickness: 6, outlinewidth: 0, len: 1, ticklen: 0, tickfont: { color: C.muted, size: 10 }, nticks: 4 },
  }];
  const height = 46 + Math.min(380, Math.max(110, z.length * (many ? 12 : 26)));
  return {
    data,
    layout: layout("", "", {
      height, margin: { l: 4, r: 4, t: 24, b: 4 }, dragmode: false,
      xaxis: { ...ticks(columns, 8), side: "top" }, yaxis: { ...ticks(own.groups, 24), autorange: "reversed" },
    }),
  };
};

const command = (line, k) => {
  const button = element("button", { class: "copy", type: "button" }, "copy");
  return k ? element("details", { class: "command" }, element("summary", {}, "verify with stock lm_eval", button), element("pre", {}, line))
    : element("div", { class: "command" }, element("p", {}, "export", button), element("pre", {}, line));
};

const scoreTable = (i) => {
  const held = D.held[T.number[i]] ?? {};
  const splits = ["test", "select"].filter((s) => held[s]).slice(0, 1);
  const head = element("tr", {}, ...["", "search", "normalised", ...splits].map((h, j) => element("th", { scope: "col", class: j ? "num" : "" }, h)));
  const rows = D.objectives.map((o, k) => element("tr", {},
    element("th", { scope: "row", title: o.metric }, `${o.name} ${arrow(o)}`),
    element("td", { class: "num" }, show(T.raw[k][i]), element("small", {}, T.stderr[k][i] === null ? "" : ` \u00b1${show(T.stderr[k][i])}`)),
    element("td", { class: "num muted" }, show(T.normal[k][i])),
    ...splits.map((s) => element("td", { class: "num" }, show(held[s][k])))));
  const total = element("tr", { class: "total" }, element("th", { scope: "row" }, D.title), element("td"),
    element("td", { class: "num" }, show(T.scalar[i])), ...splits.map(() => element("td")));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows, total));
};

const neighbours = () => {
  const key = Number($("across")?.value ?? 0);
  const on = T.front[pinned] ? T.number.map((_, i) => i).filter((i) => T.front[i]) : T.number.map((_, i) => i);
  return on.sort((a, b) => (T.front[pinned] ? T.raw[key][a] - T.raw[key][b] : T.number[a] - T.number[b]));
};
const step = (by) => {
  const on = neighbours();
  pin(on[(on.indexOf(pinned) + by + on.length) % on.length]);
};

const fill = () => {
  const panel = $("panel");
  if (!panel || pinned === null) return;
  const i = pinned, own = D.layouts[where.get(T.number[i])[0]];
  const kinds = { front: "on the Pareto front", reference: "reference point", estimate: estimate(i), trial: "" };
  const chips = [T.number[i] === D.best ? "the best merge" : "", T.front[i] ? kinds.front : kinds[T.kind[i]], T.kept[i] ? "" : "breaks a bound"];
  const maps = matrices(i).map((m) => ({ m, place: element("div", { class: "heat" }) }));
  const find = element("input", { type: "number", id: "find", value: T.number[i], "aria-label": "trial number", min: 0 });
  find.addEventListener("change", () => (at.has(Number(find.value)) ? pin(at.get(Number(find.value))) : (find.value = T.number[pinned])));
  const along = T.front[i] ? "along the front" : "by number";
  panel.replaceChildren(
    element("div", { class: "who" }, element("h3", {}, T.name[i]),
      element("span", { class: "steps" },
        element("button", { type: "button", "aria-label": `previous, ${along}`, title: `previous, ${along}`, onclick: () => step(-1) }, "\u2039"),
        find,
        element("button", { type: "button", "aria-label": `next, ${along}`, title: `next, ${along}`, onclick: () => step(1) }, "\u203a"))),
    element("p", { class: "chips" }, ...chips.filter(Boolean).map((c) => element("span", {}, c))),
    scoreTable(i),
    ...maps.flatMap(({ m, place }) => [element("p", { class: "of" }, element("b", {}, m.name), " by layer group and expert"), place]),
    element("p", { class: "fixed" }, [own.method, ...Object.entries(own.fixed).map(([k, v]) => `${k} ${v}`)].join(" \u00b7 ")),
    ...D.commands.map((line, k) => command(line.replaceAll("TRIAL_NUMBER", T.number[i]), k)),
  );
  panel.dataset.trial = T.number[i];
  if (!window.Plotly) return;
  for (const { m, place } of maps) {
    const { data, layout } = heat(i, m);
    Plotly.react(place, data, layout, { responsive: true, displayModeBar: false });
    place.dataset.drawn = "true";
  }
};

// The ring around the pinned trial is a shape, not a mark: moving it leaves thousands of marks as they are.
const shapes = {};
const ring = (x, y) => ({
  type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y, x0: -9, x1: 9, y0: -9, y1: 9,
  line: { color: C.ink, width: 1.8 },
});

// Pins a trial everywhere: the panel and a ring in every plot.
const pin = (i) => {
  pinned = i;
  fill();
  for (const key of Object.keys(shapes)) {
    if ($(`plot-${key}`)?.dataset.drawn) Plotly.relayout($(`plot-${key}`), { shapes: shapes[key]() });
  }
  drawParallel();
};
