// The page itself: theme, buttons, paper, and the order in which things appear.
const night = matchMedia("(prefers-color-scheme: dark)");
const repaint = (everything = false) => {
  readShades();
  if (everything) nearAll();
  if (typeof fill === "function") [fill(), drawParallel()];
  refreshAll();
};
night.addEventListener("change", () => repaint());
$("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : night.matches;
  root.dataset.theme = dark ? "light" : "dark";
  repaint();
});

let before;
addEventListener("beforeprint", () => {
  before = root.dataset.theme;
  root.dataset.theme = "light";
  root.dataset.paper = "true"; // the wide layout, before plots are drawn to its measure
  repaint(true);
});
addEventListener("afterprint", () => {
  delete root.dataset.paper;
  if (before) root.dataset.theme = before;
  else delete root.dataset.theme;
  repaint();
});

const copy = async (button) => {
  const pre = button.closest(".command").querySelector("pre");
  try {
    await navigator.clipboard.writeText(pre.textContent);
    button.textContent = "copied";
  } catch { // not allowed here: selected, a key press copies it
    getSelection().selectAllChildren(pre);
    button.textContent = "selected";
  }
  setTimeout(() => (button.textContent = "copy"), 1500);
};
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.classList.contains("copy")) copy(button);
  if (button.classList.contains("more")) {
    const row = $(button.getAttribute("aria-controls"));
    row.hidden = !row.hidden;
    button.setAttribute("aria-expanded", String(!row.hidden));
  }
  if (button.classList.contains("unfold")) {
    button.previousElementSibling.querySelector("table").classList.remove("folded");
    button.remove();
  }
  if (button.classList.contains("pin") && typeof pin === "function" && at.has(Number(button.dataset.pin))) {
    pin(at.get(Number(button.dataset.pin)));
    const box = $("panel")?.getBoundingClientRect();
    if (box && (box.bottom < 80 || box.top > innerHeight - 80)) $("panel").scrollIntoView({ block: "center" });
  }
});

const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
const start = async () => {
  await frame();
  repaint();
  await unpack();
  watchAll();
  for (let k = 0; k < 2; k++) await frame(); // what is near is told between frames
  performance.mark("drawn");
  root.dataset.ready = "true";
};
start();
