"use strict";
// Names are data: they enter the page as text of nodes, never as markup.
const SVG = new Set(["svg", "g", "path", "line", "circle", "text"]);
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function make(tag, attributes = {}, ...children) {
  const node = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const rows = data.reports.flatMap((report) => report.rows.map((row) => ({ ...row, report, tr: document.getElementById(row.id) })));
const sides = [...new Set(rows.map((row) => row.side))];
const state = { shown: new Set(data.reports), metric: "kappa_plus", side: "", words: "", noted: false, only: null, beside: false, sort: null };

const cell = (row, column) => one(`[data-column="${column}"]`, row.tr.closest("table")).cellIndex;
const textOf = (row, column) => row.tr.cells[cell(row, column)].textContent;
const told = (row, metric) => (metric === "share" ? row.figures.share.toPrecision(3) : textOf(row, metric));
const look = (report) => ({ class: report.isLast ? "" : "earlier", style: `--color: var(--c${report.color % 6})` });

function passes(row) {
  const searched = `${row.block} ${row.side} ${row.status} ${row.note} ${textOf(row, "method")}`.toLowerCase();
  return state.shown.has(row.report) && (!state.only || state.only.has(row.id)) && (!state.side || row.side === state.side)
    && (!state.noted || row.note || row.status !== "CONVERGED") && state.words.split(/\s+/).every((word) => searched.includes(word));
}

// Figures ----------------------------------------------------------------------------------------------------------

const MARGIN = { left: 58, right: 14, top: 12, bottom: 34 };

function tip(event, text) {
  const box = one("#tip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
  box.style.top = `${event.clientY + 16 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 16}px`;
}

// Axes with ticks of (place from 0 to 1, text); x texts are turned where they would meet.
function axes(width, height, ticksX, ticksY, nameX, name, bottom = MARGIN.bottom) {
  const [right, low] = [width - MARGIN.right, height - bottom];
  const x = (share) => MARGIN.left + share * (right - MARGIN.left), y = (share) => low - share * (low - MARGIN.top);
  const svg = make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name });
  for (const [at, text] of ticksY) {
    svg.append(make("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(at), y2: y(at) }));
    svg.append(make("text", { x: MARGIN.left - 6, y: y(at) + 4, "text-anchor": "end" }, text));
  }
  for (const [at, text, isTurned] of ticksX) {
    const turned = isTurned ? { "text-anchor": "end", transform: `rotate(-40 ${x(at)} ${low + 12})` } : { "text-anchor": "middle" };
    svg.append(make("text", { x: x(at), y: low + (isTurned ? 12 : 15), ...turned }, text));
  }
  svg.append(make("text", { x: (MARGIN.left + right) / 2, y: height - 3, "text-anchor": "middle" }, nameX));
  return { svg, x, y };
}

function decades(least, most) {
  const every = Math.max(1, Math.ceil((most - least) / 6)), found = [];
  for (let power = least; power <= most; power += every) found.push([(power - least) / (most - least), power >= 0 && power < 4 ? `${10 ** power}` : `1e${power}`]);
  return found;
}

function line(points, report) {
  const { class: kind, style } = look(report);
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  return make("path", { class: `curve ${kind}`, style, d });
}

// A figure of every row along depth: intervals as bars, a caret where one has no end, an arrow at a lower bound, or at
// the upper edge for what is infinite, hollow where the status is another than CONVERGED.
function depth(side, width) {
  const metric = state.metric, isShare = metric === "share", [lower, upper] = data.intervals[metric] || [];
  const series = data.reports.map((report) => rows.filter((row) => row.report === report && row.side === side && passes(row))).filter((some) => some.length);
  const longest = series.reduce((a, b) => (b.length > a.length ? b : a), []);
  const names = longest.map((row) => row.block);
  const same = series.every((some) => some.every((row) => names.includes(row.block)));
  const place = (row, some) => (same ? (names.indexOf(row.block) + 0.5) / names.length : some.length > 1 ? some.indexOf(row) / (some.length - 1) : 0.5);
  const known = series.flat().flatMap((row) => [row.figures[metric], row.figures[lower], row.figures[upper]]).filter((value) => value > 0 && Number.isFinite(value));
  const least = Math.floor(Math.log10(Math.min(...known)) + 1e-9), most = Math.max(least + 1, Math.ceil(Math.log10(Math.max(...known)) - 1e-9));
  const level = (value) => (isShare ? value : (Math.log10(value) - least) / (most - least));
  const room = (width - MARGIN.left - MARGIN.right) / names.length, widest = Math.max(...longest.map((row) => row.tick.length)) * 6.2;
  const isTurned = same && widest + 8 > room, every = Math.ceil(16 / room);
  const ticksX = same ? longest.flatMap((row, i) => (i % every ? [] : [[place(row), row.tick, isTurned]])) : [[0, "0"], [0.5, "0.5"], [1, "1"]];
  const ticksY = isShare ? [0, 0.25, 0.5, 0.75, 1].map((share) => [share, `${share}`]) : known.length ? decades(least, most) : [];
  const bottom = isTurned ? Math.min(widest, 100) * 0.65 + 32 : MARGIN.bottom;
  const { svg, x, y } = axes(width, 200 + bottom, ticksX, ticksY, same ? "block" : "relative depth, first block to last", metric, bottom);
  if (!known.length) svg.append(make("text", { x: width / 2, y: 100, "text-anchor": "middle" }, "nothing to show"));
  else for (const some of series) {
    svg.append(line(some.filter((row) => row.figures[metric] > 0 && Number.isFinite(row.figures[metric])).map((row) => [x(place(row, some)), y(level(row.figures[metric]))]), some[0].report));
    for (const row of some) {
      const value = row.figures[metric], [low, high] = [row.figures[lower], row.figures[upper]], at = x(place(row, some));
      const isBound = Number.isNaN(value) && low > 0, isInfinite = value === Infinity;
      if (!(value > 0) && !isBound && !(isShare && value === 0)) continue;
      const top = isInfinite ? MARGIN.top + 14 : y(level(isBound ? low : value));
      const point = make("g", { class: "point", style: look(row.report).style, "data-row": row.id, click: () => open(row), pointermove: (event) => tip(event, words(row)), pointerleave: (event) => tip(event, "") });
      if (isBound || isInfinite) point.append(make("path", { class: "open dot", d: `M${at} ${top}v-14m-4 5l4 -5l4 5` }));
      else {
        const end = Number.isFinite(high) ? y(level(high)) : top;
        if (low > 0) point.append(make("path", { class: "open", d: `M${at} ${y(level(low))}V${end}` }));
        if (high === Infinity) point.append(make("path", { class: "open", d: `M${at - 4} ${top - 6}l4 -5l4 5` }));
        point.append(make("circle", { class: row.status === "CONVERGED" ? "dot" : "dot hollow", cx: at, cy: top, r: 3.6 }));
      }
      point.append(make("circle", { class: "target", cx: at, cy: top, r: 10 }));
      svg.append(point);
    }
  }
  return make("figure", {}, make("figcaption", {}, `${metric} of ${side}`), svg);
}

const words = (row) => [`${row.block}  ${row.side}${data.reports.length > 1 ? `  ${row.report.label}` : ""}`, `${state.metric}  ${told(row, state.metric)}`, row.status, row.note].filter(Boolean).join("\n");

// Eigenvalues over the largest by their share of the dimension; under the pointer, in numbers.
function spectrum(some, width) {
  const quarters = [0, 0.25, 0.5, 0.75, 1].map((share) => [share, `${share}`]);
  const { svg, x, y } = axes(width, 240, quarters, decades(-12, 0), "lambda / lambda_max, by the share of the dimension", "spectrum");
  for (const row of some) svg.append(line(row.curve[0].map((share, i) => [x(share), y(1 + row.curve[1][i] / 12)]), row.report));
  const under = (event) => {
    const box = svg.getBoundingClientRect(), share = ((event.clientX - box.left) * width / box.width - x(0)) / (x(1) - x(0));
    const near = (row) => row.curve[0].reduce((best, at, i) => (Math.abs(at - share) < Math.abs(row.curve[0][best] - share) ? i : best), 0);
    const lines = some.map((row) => `${some.length > 1 ? `${row.report.label}: ` : ""}${(10 ** row.curve[1][near(row)]).toPrecision(2)} at ${row.curve[0][near(row)].toPrecision(2)}`);
    tip(event, ["lambda / lambda_max", ...lines].join("\n"));
  };
  svg.addEventListener("pointermove", under);
  svg.addEventListener("pointerleave", (event) => tip(event, ""));
  return make("figure", {}, make("figcaption", {}, `${some[0].block}  ${some[0].side}`), svg);
}

// Details ----------------------------------------------------------------------------------------------------------

// Of one row, or of a block in several reports: notes, the spectrum, every column.
function detail(some, span) {
  const notes = some.filter((row) => row.note).map((row) => make("p", {}, some.length > 1 ? `${row.report.label}: ${row.note}` : row.note));
  const drawn = some.filter((row) => row.curve[0].length);
  const values = (column) => some.map((row) => make("dd", { ...look(row.report), title: row.report.label }, textOf(row, column)));
  const facts = all("th", some[0].tr.closest("table")).filter((th) => !["block", "side", "spectrum", "mark", "note"].includes(th.dataset.column))
    .filter((th) => some.some((row) => !["", "-"].includes(textOf(row, th.dataset.column))))
    .map((th) => make("div", { title: th.title }, make("dt", {}, th.dataset.column), ...values(th.dataset.column)));
  const list = make("dl", { class: some.length > 1 ? "facts together" : "facts", style: `--count: ${some.length}` }, ...facts);
  const figure = drawn.length ? spectrum(drawn, Math.min(400, innerWidth - 50)) : make("p", {}, "There is no spectrum.");
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
    if (event.target === tr && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); toggle(tr, some); }
  });
}

// From a point of a figure to its row.
function open(row) {
  const tr = state.beside ? all(".beside tbody tr").find((found) => found.dataset.rows.split(" ").includes(row.id)) : row.tr;
  if (tr.getAttribute("aria-expanded") === "false") tr.click();
  tr.scrollIntoView({ block: "center" });
  tr.focus({ preventScroll: true });
}

// The whole --------------------------------------------------------------------------------------------------------

function beside() {
  const reports = data.reports.filter((report) => state.shown.has(report));
  const byLength = [...data.reports].sort((a, b) => b.rows.length - a.rows.length), keys = new Map();
  for (const row of byLength.flatMap((report) => rows.filter((row) => row.report === report && passes(row)))) keys.set(`${row.block}\n${row.side}`, [...(keys.get(`${row.block}\n${row.side}`) || []), row]);
  const body = [...keys.values()].map((some) => {
    const tr = make("tr", { "data-rows": some.map((row) => row.id).join(" ") }, make("td", { class: "block" }, some[0].block), make("td", { class: "side" }, some[0].side),
      ...reports.map((report) => some.find((row) => row.report === report)).map((row) => make("td", {}, row ? told(row, state.metric) : "")));
    openable(tr, reports.flatMap((report) => some.filter((row) => row.report === report)));
    return tr;
  });
  const heads = ["block", "side"].map((name) => make("th", { class: name }, name));
  const head = make("tr", {}, ...heads, ...reports.map((report) => make("th", {}, report.label)));
  one(".beside").replaceChildren(make("h2", {}, `${state.metric}, side by side`), make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

function draw() {
  const box = one(".figures"), there = sides.filter((side) => rows.some((row) => row.side === side && passes(row)));
  const width = Math.floor(innerWidth < 900 || there.length < 2 ? box.clientWidth : (box.clientWidth - 24) / 2);
  box.replaceChildren(...there.map((side) => depth(side, width)));
}

function update() {
  for (const row of rows) {
    row.tr.hidden = !passes(row);
    if (row.tr.getAttribute("aria-expanded") === "true") row.tr.nextSibling.hidden = row.tr.hidden;
  }
  all("section").forEach((section, i) => { section.hidden = state.beside || !rows.some((row) => row.report === data.reports[i] && passes(row)); });
  one(".beside").hidden = !state.beside;
  if (state.beside) beside();
  draw();
  one(".count").textContent = `${rows.filter(passes).length} of ${rows.length} rows`;
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
    return Number.isNaN(first) - Number.isNaN(second) || (first === second ? 0 : state.sort.sign * (first < second ? -1 : 1)) || 0;
  };
  for (const row of state.sort ? [...rows].sort(compare) : rows) {
    const below = row.tr.getAttribute("aria-expanded") === "true" ? row.tr.nextSibling : null;
    row.tr.parentNode.append(row.tr, ...(below ? [below] : []));
  }
  for (const th of all("th[data-column]")) {
    if (state.sort?.column === th.dataset.column) th.setAttribute("aria-sort", state.sort.sign > 0 ? "ascending" : "descending");
    else th.removeAttribute("aria-sort");
  }
}

function controls() {
  const set = (change) => { Object.assign(state, change); update(); };
  const choice = (label, options, chosen) => make("select", { "aria-label": label, change: (event) => chosen(event.target.value) }, ...options.map(([value, text]) => make("option", { value }, text)));
  const check = (label, chosen) => make("label", {}, make("input", { type: "checkbox", change: (event) => chosen(event.target.checked) }), label);
  const chips = data.reports.map((report) => {
    const { class: kind, style } = look(report);
    const flip = (event) => {
      if (!state.shown.delete(report)) state.shown.add(report);
      event.currentTarget.setAttribute("aria-pressed", String(state.shown.has(report)));
      update();
    };
    return make("button", { class: `chip ${kind}`, style, "aria-pressed": "true", click: flip }, report.label);
  });
  const several = data.reports.length > 1 ? [...chips, check("side by side", (on) => set({ beside: on }))] : [];
  one(".controls").append(
    ...several,
    make("input", { type: "search", placeholder: "filter", "aria-label": "filter", input: (event) => set({ words: event.target.value.trim().toLowerCase() }) }),
    ...(sides.length > 1 ? [choice("side", [["", "every side"], ...sides.map((side) => [side, side])], (side) => set({ side }))] : []),
    choice("figure", data.metrics.map((metric) => [metric, metric]), (metric) => set({ metric })),
    check("doubtful only", (noted) => set({ noted })),
    check("all columns", (on) => document.body.classList.toggle("wide", on)),
    make("button", { class: "all-rows", hidden: true, click: () => set({ only: null }) }, "show all rows again"),
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
  const name = make("button", { click: () => sort(th.dataset.column) }, ...th.childNodes, ...(th.dataset.column === "mark" ? ["?"] : []));
  th.replaceChildren(name);
}
rows.forEach((row) => openable(row.tr, [row]));
controls();
update();
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
