// The tables: sorted, filtered, opened, side by side.
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

const textOf = (row, column) => row.tr.cells[columns[column]].textContent;
const share = (row) => (Number.isNaN(row.figures.share) ? "-" : row.figures.share.toPrecision(3));
const told = (row, metric) => (metric === "share" ? share(row) : textOf(row, metric));

const columns = Object.fromEntries(all("section:first-of-type th").map((th) => [th.dataset.column, th.cellIndex]));
const rows = data.reports.flatMap((report) =>
  report.rows.map((row) => ({ ...row, report, tr: document.getElementById(row.id) })),
);
for (const row of rows)
  row.searched = `${row.block} ${row.side} ${row.status} ${row.note} ${textOf(row, "method")}`.toLowerCase();
const sides = [...new Set(rows.map((row) => row.side))];
const state = {
  shown: new Set(data.reports),
  metric: "kappa_plus",
  side: "",
  words: "",
  noted: false,
  only: null,
  beside: false,
  sort: null,
};

// Rows of a finding are shown whatever else is chosen.
function passes(row) {
  if (state.only) return state.only.has(row.id);
  return (
    state.shown.has(row.report) &&
    (!state.side || row.side === state.side) &&
    (!state.noted || row.note || row.status !== "CONVERGED") &&
    state.words.split(/\s+/).every((word) => row.searched.includes(word))
  );
}

// What a point of a figure tells and does.
function events(row) {
  const whose = data.reports.length > 1 ? `  ${row.report.label}` : "";
  const lines = [
    `${row.block}  ${row.side}${whose}`,
    `${state.metric}  ${told(row, state.metric)}`,
    row.status,
    row.note,
  ];
  const text = lines.filter(Boolean).join("\n");
  return { click: () => open(row), pointermove: (event) => tip(event, text), pointerleave: (event) => tip(event, "") };
}

// Of one row, or of a block in several reports: notes, the spectrum, every column.
function detail(some, span) {
  const notes = some
    .filter((row) => row.note)
    .map((row) => make("p", {}, some.length > 1 ? `${row.report.label}: ${row.note}` : row.note));
  const drawn = some.filter((row) => row.curve[0].length);
  const values = (column) =>
    some.map((row) => make("dd", { ...look(row.report), title: row.report.label }, textOf(row, column)));
  const facts = all("th", some[0].tr.closest("table"))
    .filter((th) => !["block", "side", "spectrum", "mark", "note"].includes(th.dataset.column))
    .filter((th) => some.some((row) => !["", "-"].includes(textOf(row, th.dataset.column))))
    .map((th) => make("div", { title: th.title }, make("dt", {}, th.dataset.column), ...values(th.dataset.column)));
  const list = make(
    "dl",
    { class: some.length > 1 ? "facts together" : "facts", style: `--count: ${some.length}` },
    ...facts,
  );
  const figure = drawn.length
    ? spectrum(drawn, Math.min(400, innerWidth - 50))
    : make("p", {}, "There is no spectrum.");
  return make("tr", { class: "detail" }, make("td", { colspan: span }, make("div", {}, ...notes, figure, list)));
}

function toggle(tr, some) {
  const isOpen = tr.getAttribute("aria-expanded") === "true";
  if (isOpen) tr.nextSibling.remove();
  else tr.after(detail(some, tr.cells.length));
  tr.setAttribute("aria-expanded", String(!isOpen));
}

function openable(tr, some) {
  tr.classList.add("open-able");
  tr.tabIndex = 0;
  tr.setAttribute("aria-expanded", "false");
  tr.addEventListener("click", () => toggle(tr, some));
  tr.addEventListener("keydown", (event) => {
    if (event.target === tr && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      toggle(tr, some);
    }
  });
}

// From a point of a figure to its row.
function open(row) {
  const tr = state.beside
    ? all(".beside tbody tr").find((found) => found.dataset.rows.split(" ").includes(row.id))
    : row.tr;
  if (tr.getAttribute("aria-expanded") === "false") tr.click();
  tr.scrollIntoView({ block: "center" });
  tr.focus({ preventScroll: true });
}

function beside(passing) {
  const reports = data.reports.filter((report) => passing.some((row) => row.report === report));
  const byLength = [...data.reports].sort((a, b) => b.rows.length - a.rows.length),
    keys = new Map();
  for (const row of byLength.flatMap((report) => passing.filter((row) => row.report === report)))
    keys.set(`${row.block}\n${row.side}`, [...(keys.get(`${row.block}\n${row.side}`) || []), row]);
  const body = [...keys.values()].map((some) => {
    const tr = make(
      "tr",
      { "data-rows": some.map((row) => row.id).join(" ") },
      make("td", { class: "block" }, some[0].block),
      make("td", { class: "side" }, some[0].side),
      ...reports
        .map((report) => some.find((row) => row.report === report))
        .map((row) => make("td", {}, row ? told(row, state.metric) : "")),
    );
    openable(
      tr,
      reports.flatMap((report) => some.filter((row) => row.report === report)),
    );
    return tr;
  });
  const heads = ["block", "side"].map((name) => make("th", { class: name }, name));
  const head = make("tr", {}, ...heads, ...reports.map((report) => make("th", {}, report.label)));
  one(".beside").replaceChildren(
    make("h2", {}, `${state.metric}, side by side`),
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)),
  );
}

function draw(passing) {
  const box = one(".figures");
  const there = sides.filter((side) => passing.some((row) => row.side === side));
  const width = Math.floor(innerWidth < 900 || there.length < 2 ? box.clientWidth : (box.clientWidth - 24) / 2);
  const figures = there.map((side) => {
    const of = (report) => passing.filter((row) => row.report === report && row.side === side);
    const series = data.reports.map(of).filter((some) => some.length);
    return depth(series, { metric: state.metric, side, width, events });
  });
  box.replaceChildren(...figures);
}

function update() {
  const passing = rows.filter(passes);
  for (const row of rows) {
    row.tr.hidden = !passes(row);
    if (row.tr.getAttribute("aria-expanded") === "true") row.tr.nextSibling.hidden = row.tr.hidden;
  }
  all("section").forEach((section, i) => {
    section.hidden = state.beside || !passing.some((row) => row.report === data.reports[i]);
  });
  one(".beside").hidden = !state.beside;
  if (state.beside) beside(passing);
  draw(passing);
  one(".count").textContent = `${passing.length} of ${rows.length} rows`;
  one(".all-rows").hidden = !state.only;
}

// Unknown figures last in either direction; a third click gives the order of the network.
function sort(column) {
  const before = state.sort;
  state.sort = before?.column !== column ? { column, sign: 1 } : before.sign === 1 ? { column, sign: -1 } : null;
  const key = (row) => {
    const figure = row.figures[column === "rank/size" ? "share" : column];
    if (figure === undefined) return textOf(row, column);
    return Number.isNaN(figure) && data.intervals[column] ? row.figures[data.intervals[column][0]] : figure;
  };
  const compare = (a, b) => {
    const [first, second] = [key(a), key(b)];
    if (typeof first === "string") return state.sort.sign * first.localeCompare(second, "en", { numeric: true });
    return (
      Number.isNaN(first) - Number.isNaN(second) ||
      (first === second ? 0 : state.sort.sign * (first < second ? -1 : 1)) ||
      0
    );
  };
  for (const row of state.sort ? [...rows].sort(compare) : rows) {
    const below = row.tr.getAttribute("aria-expanded") === "true" ? row.tr.nextSibling : null;
    row.tr.parentNode.append(row.tr, ...(below ? [below] : []));
  }
  for (const th of all("th[data-column]")) {
    if (state.sort?.column === th.dataset.column)
      th.setAttribute("aria-sort", state.sort.sign > 0 ? "ascending" : "descending");
    else th.removeAttribute("aria-sort");
  }
}

function controls() {
  const set = (change) => {
    Object.assign(state, { only: null }, change);
    update();
  };
  const choice = (label, options, chosen) =>
    make(
      "select",
      { "aria-label": label, change: (event) => chosen(event.target.value) },
      ...options.map(([value, text]) => make("option", { value }, text)),
    );
  const check = (label, chosen) =>
    make("label", {}, make("input", { type: "checkbox", change: (event) => chosen(event.target.checked) }), label);
  const chips = data.reports.map((report) => {
    const { class: kind, style } = look(report);
    const flip = (event) => {
      if (!state.shown.delete(report)) state.shown.add(report);
      event.currentTarget.setAttribute("aria-pressed", String(state.shown.has(report)));
      set({});
    };
    return make("button", { class: `chip ${kind}`, style, "aria-pressed": "true", click: flip }, report.label);
  });
  const several =
    data.reports.length > 1 ? [...chips, check("side by side", (on) => set({ beside: on, only: state.only }))] : [];
  one(".controls").append(
    ...several,
    make("input", {
      type: "search",
      placeholder: "filter",
      "aria-label": "filter",
      input: (event) => set({ words: event.target.value.trim().toLowerCase() }),
    }),
    ...(sides.length > 1
      ? [choice("side", [["", "every side"], ...sides.map((side) => [side, side])], (side) => set({ side }))]
      : []),
    choice(
      "figure",
      data.metrics.map((metric) => [metric, metric]),
      (metric) => set({ metric, only: state.only }),
    ),
    check("doubtful only", (noted) => set({ noted })),
    check("all columns", (on) => document.body.classList.toggle("wide", on)),
    make("button", { class: "all-rows", hidden: true, click: () => set({}) }, "show all rows again"),
    make("span", { class: "count meta" }),
  );
  for (const link of all("a.rows")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      set({ only: new Set(link.dataset.rows.split(" ")) });
      one(state.beside ? ".beside" : "section:not([hidden]) tr:not([hidden])").scrollIntoView({ block: "center" });
    });
  }
}

for (const th of all("th[data-column]")) {
  if (th.dataset.column === "spectrum") continue;
  const name = make(
    "button",
    { click: () => sort(th.dataset.column) },
    ...th.childNodes,
    ...(th.dataset.column === "mark" ? ["?"] : []),
  );
  th.replaceChildren(name);
}
rows.forEach((row) => openable(row.tr, [row]));
controls();
update();
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) {
    width = innerWidth;
    draw(rows.filter(passes));
  }
});
