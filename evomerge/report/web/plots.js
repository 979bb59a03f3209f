// How plotly is called. A figure is { data, layout, clicked }; a plot is drawn when it comes near the screen.
// Marks are SVG: plotly's WebGL marks compile code at run time, which the page's security policy forbids.
const CLEAR = "rgba(0,0,0,0)";
const CONFIG = { responsive: true, displayModeBar: false };

// Margins wide enough for usual numbers: where they suffice plotly lays out once instead of twice.
const layout = (x, y, more = {}) => {
  const axis = {
    gridcolor: C.rule, zeroline: false, ticks: "outside", ticklen: 4, tickcolor: CLEAR, automargin: true,
    tickfont: { color: C.muted, size: 11 }, fixedrange: touch,
  };
  const title = (text) => ({ text, standoff: 12, font: { color: C.muted, size: 12 } });
  return {
    font: { family: FONT, color: C.ink, size: 13 }, paper_bgcolor: CLEAR, plot_bgcolor: CLEAR,
    margin: { l: 60, r: 14, t: 34, b: 52 }, hovermode: "closest", dragmode: touch ? false : "zoom",
    hoverlabel: { bgcolor: C.card, bordercolor: C.rule, align: "left", font: { color: C.ink, size: 12, family: FONT } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: 12, color: C.muted }, itemclick: false, itemdoubleclick: false },
    ...more,
    xaxis: { ...axis, ...more.xaxis, title: title(x) },
    yaxis: { ...axis, ...more.yaxis, title: title(y) },
  };
};

// What a hover says: the first line is its name. The lines are safe already.
const told = ([name, ...lines]) => [`<b>${name}</b>`, ...lines].join("<br>");

// A dotted level across a plot, and the words at one of its ends.
const level = (y, color) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, layer: "below", line: { color, width: 1.2, dash: "dot" } });
const marked = (text, y, color, { end = false, under = false } = {}) => ({
  text: safe(text), xref: "paper", x: end ? 1 : 0, xanchor: end ? "right" : "left", y, yanchor: under ? "top" : "bottom",
  showarrow: false, font: { size: 11, color },
});

// All intervals of a plot are one line with gaps, one element of the page instead of two for each point.
// `reach` says how far each point's reaches to both sides, along x, y or both.
const whiskers = (points, reach, more) => {
  const line = { x: [], y: [] };
  for (const [key, other] of [["x", "y"], ["y", "x"]]) (reach[key] ?? []).forEach((r, k) => {
    const v = points[key][k], w = points[other][k];
    if (!r || v === null || w === null) return;
    line[key].push(v - r, v + r, null);
    line[other].push(w, w, null);
  });
  return { ...line, mode: "lines", hoverinfo: "skip", showlegend: false, line: { width: 1, color: fade(C.dot, 0.6), simplify: false }, ...more };
};

// Place to what builds its figure from the state of the page. Its size is the place's, on paper too: plotly's
// own sizing comes a moment later, when the page is printed already.
const builds = new Map();
const refresh = (place) => {
  if (!place.dataset.near || !place.isConnected) return;
  const { data, layout, clicked } = builds.get(place)();
  place.clicked = clicked;
  Plotly.react(place, data, { ...layout, width: place.clientWidth, height: place.clientHeight }, CONFIG);
  if (place.dataset.drawn) return;
  place.dataset.drawn = "true";
  place.on("plotly_click", (event) => {
    const chosen = event.points[0]?.customdata;
    if (place.clicked && typeof chosen === "number") place.clicked(chosen);
  });
};

// One plot at a time, so that the page stays alive.
const nearing = new IntersectionObserver((seen) => {
  for (const { target } of seen.filter((s) => s.isIntersecting && !s.target.dataset.near)) {
    target.dataset.near = "true";
    setTimeout(() => refresh(target));
  }
}, { rootMargin: "60% 0px" });
const watch = (place, build) => {
  builds.set(place, build);
  if (window.Plotly) nearing.observe(place);
};
const watchAll = () => [...builds.keys()].forEach((place) => nearing.observe(place));
const nearAll = () => window.Plotly && builds.forEach((_, place) => (place.dataset.near = "true"));
const refreshAll = () => builds.forEach((_, place) => place.classList.contains("heat") || refresh(place));

// A plot of the page by its name, where the page has its place.
const plot = (key, build) => $(`plot-${key}`) && watch($(`plot-${key}`), build);
const draw = (key) => $(`plot-${key}`) && refresh($(`plot-${key}`));

// The ring around the pinned trial, a trace of one mark. Plotly's animations draw the traces that they are
// told and no others: thousands of marks stay as they are.
const rings = {};
const ring = (key) => {
  const [x, y] = rings[key]();
  return {
    mode: "markers", name: "pinned", x: [x], y: [y], showlegend: false, hoverinfo: "skip", cliponaxis: false,
    marker: { symbol: "circle-open", size: 18, color: C.ink, line: { width: 1.8 } },
  };
};
const AT_ONCE = { mode: "immediate", frame: { duration: 0, redraw: false }, transition: { duration: 0 } };
const moveRings = () => Object.keys(rings).forEach((key) => {
  const place = $(`plot-${key}`);
  if (!place?.dataset.drawn) return;
  const { x, y } = ring(key), traces = [place.data.findIndex((t) => t.name === "pinned")];
  Plotly.animate(place, { data: [{ x, y }], traces }, AT_ONCE).catch(() => {}); // overtaken by the next click
});

// Plotly travels gzipped and is unpacked after the first paint.
const unpack = async () => {
  const text = atob($("plotly").textContent), packed = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) packed[k] = text.charCodeAt(k);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = element("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
};
