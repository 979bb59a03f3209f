"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const dark = read("dark");
  const night = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)").matches;

  // The figures carry light colours; at night each is exchanged for its dark counterpart.
  const paint = (v) => {
    if (Array.isArray(v)) return v.map(paint);
    if (v && typeof v === "object") return Object.fromEntries(Object.entries(v).map(([k, w]) => [k, paint(w)]));
    return typeof v === "string" && Object.hasOwn(dark, v) ? dark[v] : v;
  };
  const draw = () => {
    for (const [id, figure] of Object.entries(figures)) {
      const { data, layout } = night.matches ? paint(figure) : structuredClone(figure);
      if (coarse) { // a finger scrolls the page, it does not zoom the plot
        layout.dragmode = false;
        for (const axis of ["xaxis", "yaxis"]) layout[axis].fixedrange = true;
      }
      Plotly.react(id, data, layout, { responsive: true, displayModeBar: false });
    }
  };
  draw();
  night.addEventListener("change", draw);

  for (const button of document.querySelectorAll("button.more")) {
    button.addEventListener("click", () => {
      const row = document.getElementById(button.getAttribute("aria-controls"));
      row.hidden = !row.hidden;
      button.setAttribute("aria-expanded", String(!row.hidden));
    });
  }
})();
