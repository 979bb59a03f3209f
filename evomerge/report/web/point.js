// Pointing at a plot: what lies there is told, a click takes it, a drag zooms, a double click shows everything.
const REACH = matchMedia("(pointer: coarse)").matches ? 24 : 12;

// The mark next to a place on the canvas: its layer, and its number there.
const under = (place, x, y) => {
  const { figure, frame } = place;
  let best = null, least = REACH ** 2;
  for (const layer of figure.layers) {
    if (!layer.hover) continue;
    const xs = layer.x, ys = layer.y;
    for (let k = 0; k < xs.length; k++) {
      if (xs[k] === null || ys[k] === null) continue;
      const [u, v] = [frame.px(xs[k]) - x, frame.py(ys[k]) - y];
      if (u < -REACH || u > REACH || v < -REACH || v > REACH) continue;
      const gap = u * u + v * v;
      if (gap <= least) [best, least] = [{ layer, k }, gap];
    }
  }
  return best;
};

const everything = ({ x, y, layers }) => {
  const marks = layers.filter((l) => l.kind === "points" || l.kind === "line");
  const whole = (key, shown) => {
    const [low, high] = range([...marks.flatMap((l) => l[key]), ...shown], 0.02);
    return shown[0] <= shown[1] ? [low, high] : [high, low];
  };
  return { x: whole("x", x.range), y: whole("y", y.range), all: true };
};

// The view between two corners of a drag, in the direction of its axes.
const between = ({ frame, figure, view }, from, to) => {
  const shown = view ?? { x: figure.x.range, y: figure.y.range };
  const value = ([low, high], t) => low + Math.min(1, Math.max(0, t)) * (high - low);
  const [xs, ys] = [[from[0], to[0]], [from[1], to[1]]].map((v) => v.sort((a, b) => a - b));
  return {
    x: xs.map((x) => value(shown.x, (x - frame.left) / frame.width)),
    y: ys.reverse().map((y) => value(shown.y, 1 - (y - frame.top) / frame.height)),
  };
};

const build = (place) => {
  const canvas = element("canvas"), svg = document.createRange().createContextualFragment("<svg></svg>").firstChild, box = element("div", { class: "drag", hidden: true });
  const keys = element("div", { class: "keys" }), frame = element("div", { class: "frame" }, canvas, svg, box);
  place.parts = { canvas, svg, keys, frame };
  place.replaceChildren(keys, frame);
  let from = null, dragged = false;
  const at = (event) => {
    const r = frame.getBoundingClientRect();
    return [event.clientX - r.left, event.clientY - r.top];
  };
  const redraw = (view) => {
    place.view = view;
    plot(place, place.figure);
  };
  const stretch = (to) => {
    box.hidden = !(dragged ||= Math.hypot(to[0] - from[0], to[1] - from[1]) > 8);
    const [x, y] = [0, 1].map((j) => Math.min(from[j], to[j]));
    Object.assign(box.style, { left: `${x}px`, top: `${y}px`, width: `${Math.abs(to[0] - from[0])}px`, height: `${Math.abs(to[1] - from[1])}px` });
  };
  const told = (event) => {
    const found = under(place, ...at(event));
    say(found && found.layer.hover(found.k), event.clientX, event.clientY);
    return found;
  };
  frame.addEventListener("pointerdown", (event) => {
    dragged = false;
    if (event.pointerType !== "mouse" || event.button || place.figure.still) return;
    from = at(event);
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    if (from) return [say(null), stretch(at(event))];
    if (event.pointerType !== "mouse") return;
    frame.style.cursor = told(event)?.layer.pick ? "pointer" : place.figure.still ? "default" : "crosshair";
  });
  frame.addEventListener("pointerup", (event) => {
    if (dragged && from) redraw(between(place, from, at(event)));
    [from, box.hidden] = [null, true];
  });
  frame.addEventListener("pointercancel", () => [from, box.hidden] = [null, true]);
  frame.addEventListener("pointerleave", () => say(null));
  frame.addEventListener("click", (event) => {
    if (dragged) return;
    const found = told(event);
    if (found?.layer.pick && place.figure.clicked) place.figure.clicked(found.layer.pick(found.k));
  });
  frame.addEventListener("dblclick", () => !place.figure.still && redraw(place.view?.all ? null : everything(place.figure)));
  new ResizeObserver(() => place.clientWidth !== place.frame?.room && plot(place, place.figure)).observe(place);
};
addEventListener("scroll", () => say(null), { passive: true });
