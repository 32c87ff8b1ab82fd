// What test_page.py does on the page, and sees.
const told = {};
const inside = (width, use) => {
  const frame = document.querySelector(`iframe[width="${width}"]`).contentWindow,
    page = frame.document;
  const all = (selector, root = page) => [...root.querySelectorAll(selector)];
  return use(page, all, frame, (node) => node.getClientRects().length > 0);
};
for (const width of WIDTHS)
  told[width] = inside(width, (page, all, frame, seen) => {
    const box = all("td.kappa_plus")[0].getBoundingClientRect();
    return {
      kappa:
        seen(all("td.kappa_plus")[0]) && box.left >= 0 && box.right <= width && all("td.kappa_plus")[0].textContent,
      note: seen(all("td.note")[1]),
      extra: all("td.extra").some(seen),
      scrolls: page.documentElement.scrollWidth > width,
    };
  });
told.steps = inside(1280, (page, all, frame, seen) => {
  const steps = {},
    button = (name) => all(`section th[data-column="${name}"] button`)[0];
  const order = () =>
    all("section:first-of-type tbody tr:not(.detail)")
      .filter(seen)
      .map((tr) => tr.id);
  const type = (words) => {
    const box = all("input[type=search]")[0];
    box.value = words;
    box.dispatchEvent(new Event("input"));
  };
  const check = (name) =>
    all("label")
      .find((label) => label.textContent === name)
      .firstChild.click();
  steps.images = all("img").length;
  steps.hacked = frame.hacked === undefined;
  steps.names = all("section:first-of-type td.block").map((td) => td.textContent);
  steps.sorted = [1, 2, 3].map(() => {
    button("kappa_plus").click();
    return order();
  });
  steps.byName = (button("block").click(), order());
  (button("block").click(), button("block").click());
  type("gap onerror");
  steps.filtered = order();
  type("");
  check("doubtful only");
  steps.doubtful = order();
  check("doubtful only");
  check("all columns");
  steps.wide = all("th.trace").every(seen);
  check("all columns");
  const row = page.getElementById("r0-1");
  row.click();
  const detail = row.nextSibling;
  steps.detail = detail.className;
  steps.note = detail.querySelector("p").textContent;
  steps.facts = Object.fromEntries(
    all(".facts > div", detail).map((fact) => [...fact.children].map((node) => node.textContent)),
  );
  steps.curve = detail.querySelectorAll("path.curve").length;
  const svg = detail.querySelector("svg"),
    at = svg.getBoundingClientRect(),
    tip = page.getElementById("tip");
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: at.left + 60, clientY: at.top + 40 }));
  steps.spectrumTip = tip.textContent;
  svg.dispatchEvent(new PointerEvent("pointerleave"));
  steps.tipGone = tip.hidden;
  row.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  steps.closed = !row.nextSibling.classList.contains("detail");
  const point = (id) => all(`.point[data-row="${id}"]`)[0];
  steps.points = all(".point")
    .map((node) => node.dataset.row)
    .sort();
  steps.hollow = all(".hollow").length;
  const target = point("r0-1").querySelector(".target");
  target.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 300, clientY: 300 }));
  steps.tip = tip.textContent;
  target.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  steps.opened = row.getAttribute("aria-expanded") === "true" && page.activeElement === row;
  const card = all("a.rows").find((link) => link.dataset.rows.split(" ").length < 8);
  card.click();
  steps.card = [
    card.dataset.rows.split(" ").sort(),
    all("section tbody tr[id]")
      .filter(seen)
      .map((tr) => tr.id)
      .sort(),
  ];
  all(".all-rows")[0].click();
  steps.again = order();
  check("side by side");
  steps.beside = all(".beside tbody tr").map((tr) => [...tr.cells].map((td) => td.textContent));
  steps.sections = all("section").filter(seen).length;
  all(".beside tbody tr")[0].click();
  steps.together = all(".beside .detail path.curve").length;
  all(".chip")[1].click();
  steps.shown = all(".beside th").map((th) => th.textContent);
  check("side by side");
  steps.left = all("section h2")
    .filter(seen)
    .map((node) => node.textContent);
  return steps;
});
const colors = getComputedStyle(document.querySelector("iframe").contentDocument.body);
told.colors = [colors.color, colors.backgroundColor];
document.body.textContent = JSON.stringify(told);
