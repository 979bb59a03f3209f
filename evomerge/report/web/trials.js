// The trials, the one that is pinned, and the panel that shows its recipe.
const T = D.trials;
const at = new Map(T.number.map((n, i) => [n, i]));
const where = new Map();
D.layouts.forEach((l, k) => l.numbers.forEach((n, row) => where.set(n, [k, row])));
let passing = T.number.map(() => true);
let pinned = at.get(D.best) ?? (T.number.length ? 0 : null);

const arrow = (o) => (o.up ? "\u2191" : "\u2193");
const axisName = (k) => `${safe(clip(D.objectives[k].name, 30))} \u00b7 ${safe(clip(D.objectives[k].metric, 24))} ${arrow(D.objectives[k])}`;

const CONFIDENT = 1.96; // standard errors to each side of an estimate: 95%
const estimate = (i) => {
  const asked = T.asked[i];
  return asked && asked[1] ? `after ${asked[0]} of ${asked[1]} documents` : "early";
};
const interval = (v, error) => (error === null || v === null ? "" : `${show(v - CONFIDENT * error)} to ${show(v + CONFIDENT * error)}`);

// What a trial says when it is pointed at, worked out once.
const said = [];
const hover = (i) => {
  if (said[i]) return said[i];
  const lines = [T.name[i]];
  if (T.kind[i] === "estimate") lines.push(`stopped ${estimate(i)}: an estimate`);
  D.objectives.forEach((o, k) => {
    const error = T.stderr[k][i] === null ? "" : ` \u00b1${show(T.stderr[k][i])}`;
    lines.push(`${clip(o.name, 30)}  ${show(T.raw[k][i])}${error}  ${clip(o.metric, 20)} ${arrow(o)}`);
  });
  lines.push(`${D.title} normalised  ${show(T.scalar[i])}`);
  return (said[i] = told([...lines, ...wrap(T.recipe[i], 46)].map(safe)));
};

// Parameter to its matrix, layer groups down and experts across.
const matrices = (i) => {
  const [k, row] = where.get(T.number[i]);
  const values = D.layouts[k].columns[row];
  return D.layouts[k].cells.map(({ name, at }) => ({ name, z: at.map((r) => r.map((c) => values[c])) }));
};

// Many cells carry no numbers: the darkest one says what the colours mean.
const crowded = ({ z }) => z.length > 24 || z[0].length > 8;
const peak = ({ z }) => Math.max(1e-9, ...z.map((r) => Math.max(...r.map(Math.abs))));
const darkest = (matrix) => (crowded(matrix) ? `, darkest: ${show(peak(matrix), 2)}` : "");
const tall = (matrix) => 32 + Math.min(380, Math.max(30, matrix.z.length * (crowded(matrix) ? 12 : 26)));

// One cell per layer group and expert. Of many groups few are named.
const heatFigure = (i, matrix) => {
  const own = D.layouts[where.get(T.number[i])[0]], { z } = matrix, top = peak(matrix), many = crowded(matrix);
  const columns = z[0].length === 1 && own.models.length > 1 ? ["all experts"] : own.models;
  const ticks = (names, limit, n) => {
    const named = names.map((_, j) => j).filter((j) => j % Math.ceil(names.length / limit) === 0);
    return { tickvals: named, ticktext: named.map((j) => safe(clip(names[j], n))), showgrid: false, ticklen: 0, fixedrange: true };
  };
  return {
    data: [{
      type: "heatmap", z, zmin: -top, zmax: top, xgap: many ? 1 : 2, ygap: many ? 0 : 2, showscale: false,
      colorscale: [[0, C.single], [0.5, C.paper], [1, C.merged]], texttemplate: many ? "" : "%{z:.2f}", textfont: { size: 11 }, hoverinfo: "text",
      hovertext: z.map((r, g) => r.map((v, k) => told([show(v, 4), safe(own.groups[g]), safe(columns[k])]))),
    }],
    layout: layout("", "", {
      margin: { l: 60, r: 4, t: 28, b: 4 }, dragmode: false,
      xaxis: { ...ticks(columns, 8, 18), side: "top" }, yaxis: { ...ticks(own.groups, 24, 22), autorange: "reversed" },
    }),
  };
};

// The place of a parameter's heat map; it stays when another recipe is pinned.
const heats = new Map();
const heat = (matrix) => {
  if (!heats.has(matrix.name)) {
    const place = element("div", { class: "heat", role: "img", "aria-label": `${matrix.name} by layer group and expert` });
    heats.set(matrix.name, place);
    watch(place, () => heatFigure(pinned, matrices(pinned).find((m) => m.name === matrix.name)));
  }
  const place = heats.get(matrix.name);
  place.style.height = `${tall(matrix)}px`;
  return place;
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

// Why a trial was stopped, and how far its score may lie from the estimate.
const stopped = (i) => {
  if (T.kind[i] !== "estimate") return null;
  const rival = T.rival[i], spread = interval(T.scalar[i], T.spread[i]);
  const why = rival === null ? "it could not win any more" : `it could not overtake ${T.name[at.get(rival)] ?? `trial ${rival}`} any more`;
  return element("p", { class: "stopped" }, `Stopped ${estimate(i)}: ${why}. The scores are estimates`,
    spread ? `: ${D.title} normalised ${spread} (95% interval).` : ".");
};

const fill = () => {
  const panel = $("panel");
  if (!panel || pinned === null) return;
  const i = pinned, own = D.layouts[where.get(T.number[i])[0]];
  const kinds = { front: "on the Pareto front", reference: "reference point", estimate: "stopped early", trial: "" };
  const chips = [T.number[i] === D.best ? "the best merge" : "", T.front[i] ? kinds.front : kinds[T.kind[i]], T.kept[i] ? "" : "breaks a bound"];
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
    ...[stopped(i)].filter(Boolean),
    scoreTable(i),
    ...matrices(i).flatMap((m) => [element("p", { class: "of" }, element("b", {}, m.name), " by layer group and expert", darkest(m)), heat(m)]),
    element("p", { class: "fixed" }, [own.method, ...Object.entries(own.fixed).map(([k, v]) => `${k} ${v}`)].join(" \u00b7 ")),
    ...D.commands.map((line, k) => command(line.replaceAll("TRIAL_NUMBER", T.number[i]), k)),
  );
  panel.dataset.trial = T.number[i];
  heats.forEach(refresh);
};

// Pins a trial everywhere: the panel, and a ring in every plot.
const pin = (i) => {
  pinned = i;
  fill();
  moveRings();
  drawParallel();
};
