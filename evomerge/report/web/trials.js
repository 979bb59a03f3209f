// The trials, the one that is pinned, and the panel that shows its recipe.
const T = D.trials;
const at = new Map(T.number.map((n, i) => [n, i]));
const where = new Map();
D.layouts.forEach((l, k) => l.numbers.forEach((n, row) => where.set(n, [k, row])));
let passing = T.number.map(() => true);
let pinned = at.get(D.best) ?? (T.number.length ? 0 : null);

const arrow = (o) => (o.up ? "\u2191" : "\u2193");
const axisName = (k) => `${clip(D.objectives[k].name, 30)} \u00b7 ${clip(D.objectives[k].metric, 24)} ${arrow(D.objectives[k])}`;

const CONFIDENT = 1.96; // standard errors to each side of an estimate: 95%
const estimate = (i) => {
  const asked = T.asked[i];
  return asked && asked[1] ? `after ${asked[0]} of ${asked[1]} documents` : "early";
};
const interval = (v, error) => (error === null || v === null ? "" : `${show(v - CONFIDENT * error)} to ${show(v + CONFIDENT * error)}`);

const hover = (i) => {
  const lines = [T.name[i]];
  if (T.kind[i] === "estimate") lines.push(`stopped ${estimate(i)}: an estimate`);
  D.objectives.forEach((o, k) => {
    const error = T.stderr[k][i] === null ? "" : ` \u00b1${show(T.stderr[k][i])}`;
    lines.push(`${clip(o.name, 30)}  ${show(T.raw[k][i])}${error}  ${clip(o.metric, 20)} ${arrow(o)}`);
  });
  lines.push(`${D.title} normalised  ${show(T.scalar[i])}`);
  return [...lines, ...wrap(T.recipe[i], 46)];
};

// Parameter to its matrix, layer groups down and experts across.
const matrices = (i) => {
  const [k, row] = where.get(T.number[i]);
  const values = D.layouts[k].columns[row];
  return D.layouts[k].cells.map(({ name, at }) => ({ name, z: at.map((r) => r.map((c) => values[c])) }));
};

// Ink or paper, whichever is easier to read on a cell of that tone.
const light = (color) => color.map((c) => ((c / 255 + 0.055) / 1.055) ** 2.4).reduce((sum, c, j) => sum + [0.2126, 0.7152, 0.0722][j] * c, 0);
const readable = (tone, part) => {
  const below = parts(C.paper), cell = light(parts(tone).map((c, j) => part * c + (1 - part) * below[j]));
  const contrast = (color) => (Math.max(cell, light(parts(color))) + 0.05) / (Math.min(cell, light(parts(color))) + 0.05);
  return contrast(C.ink) > contrast(C.paper) ? C.ink : C.paper;
};

// Many cells carry no numbers: the darkest one says what the colours mean.
const crowded = ({ z }) => z.length > 24 || z[0].length > 8;
const peak = ({ z }) => Math.max(1e-9, ...z.map((r) => Math.max(...r.map(Math.abs))));
const darkest = (matrix) => (crowded(matrix) ? `, darkest: ${show(peak(matrix), 2)}` : "");

// A heat map: one cell per layer group and expert, in colours that CSS mixes. Of many groups few are named.
const heat = (i, { name, z }) => {
  const own = D.layouts[where.get(T.number[i])[0]];
  const top = peak({ z }), many = crowded({ z }), every = Math.ceil(z.length / 24);
  const columns = z[0].length === 1 && own.models.length > 1 ? ["all experts"] : own.models;
  const cell = (v, g, k) => element("i", {
    "data-value": v, "data-at": `${g},${k}`,
    style: `--part: ${((100 * Math.abs(v)) / top).toFixed(1)}%; --tone: var(--${v < 0 ? "single" : "merged"}); color: ${readable(v < 0 ? C.single : C.merged, Math.abs(v) / top)}`,
  }, many ? "" : show(v, 2));
  const cells = z.flatMap((r, g) => [element("b", {}, g % every ? "" : clip(own.groups[g], 22)), ...r.map((v, k) => cell(v, g, k))]);
  const made = element("div", {
    class: `heat${many ? " many" : ""}`, "data-drawn": "true", role: "img", "aria-label": `${name} by layer group and expert`,
    style: `--columns: ${columns.length}; --row: ${Math.max(3, Math.min(many ? 12 : 26, 380 / z.length))}px`,
  }, element("b"), ...columns.map((c) => element("b", { class: "column", title: c }, clip(c, 18))), ...cells);
  made.addEventListener("pointermove", (event) => {
    const at = event.target.dataset.at?.split(",").map(Number);
    say(at && [show(z[at[0]][at[1]], 4), own.groups[at[0]], columns[at[1]]], event.clientX, event.clientY);
  });
  made.addEventListener("pointerleave", () => say(null));
  return made;
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
    ...matrices(i).flatMap((m) => [element("p", { class: "of" }, element("b", {}, m.name), " by layer group and expert", darkest(m)), heat(i, m)]),
    element("p", { class: "fixed" }, [own.method, ...Object.entries(own.fixed).map(([k, v]) => `${k} ${v}`)].join(" \u00b7 ")),
    ...D.commands.map((line, k) => command(line.replaceAll("TRIAL_NUMBER", T.number[i]), k)),
  );
  panel.dataset.trial = T.number[i];
};

// Pins a trial everywhere: the panel, and a ring in every plot.
const pin = (i) => {
  pinned = i;
  fill();
  Object.keys(figures).forEach(draw);
  drawParallel();
};
