"use strict";
// Figures of rows, as SVG. Names are data: they enter the page as text of nodes, never as markup.
const SVG = new Set(["svg", "g", "path", "line", "circle", "text"]);
const MARGIN = { left: 58, right: 14, top: 12, bottom: 34 };
const LETTER = 6.2; // pixels of a tick's
const QUARTERS = [0, 0.25, 0.5, 0.75, 1].map((share) => [share, `${share}`]);

function make(tag, attributes = {}, ...children) {
  const node = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// Color by network; stages before the last are dashed.
const look = (report) => ({ class: report.isLast ? "" : "earlier", style: `--color: var(--c${report.color % 6})` });

// What stands beside the pointer; nothing for an empty text.
function tip(event, text) {
  const box = document.getElementById("tip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  const { width, height } = box.getBoundingClientRect();
  const isLow = event.clientY + 16 + height > innerHeight;
  box.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
  box.style.top = `${event.clientY + (isLow ? -height - 10 : 16)}px`;
}

// Axes with ticks at (place from 0 to 1, text), and the pixels of places.
function axes({ width, height = 200, ticksX, isTurned = false, nameX, ticksY, name }) {
  const turned = Math.min(Math.max(...ticksX.map(([, text]) => text.length)), 16) * LETTER * 0.65;
  const [right, low] = [width - MARGIN.right, height - MARGIN.bottom];
  const [x, y] = [(at) => MARGIN.left + at * (right - MARGIN.left), (at) => low - at * (low - MARGIN.top)];
  const whole = isTurned ? height + turned : height;
  const svg = make("svg", { width, height: whole, viewBox: `0 0 ${width} ${whole}`, role: "img", "aria-label": name });
  for (const [at, text] of ticksY) {
    svg.append(make("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(at), y2: y(at) }));
    svg.append(make("text", { x: MARGIN.left - 6, y: y(at) + 4, "text-anchor": "end" }, text));
  }
  for (const [at, text] of ticksX) {
    const flat = { y: low + 15, "text-anchor": "middle" };
    const steep = { y: low + 12, "text-anchor": "end", transform: `rotate(-40 ${x(at)} ${low + 12})` };
    svg.append(make("text", { x: x(at), ...(isTurned ? steep : flat) }, text));
  }
  svg.append(make("text", { x: (MARGIN.left + right) / 2, y: whole - 3, "text-anchor": "middle" }, nameX));
  return { svg, x, y };
}

function decades(least, most) {
  const every = Math.max(1, Math.ceil((most - least) / 6));
  const powers = Array.from({ length: Math.floor((most - least) / every) + 1 }, (_, i) => least + i * every);
  const text = (power) => (power >= 0 && power < 4 ? `${10 ** power}` : `1e${power}`);
  return powers.map((power) => [(power - least) / (most - least), text(power)]);
}

function line(points, report) {
  const { class: kind, style } = look(report);
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  return make("path", { class: `curve ${kind}`, style, d });
}

// Where the blocks of several reports stand: by their names, or over relative depth where those are others.
function places(series, width) {
  const longest = series.reduce((a, b) => (b.length > a.length ? b : a), []);
  const names = longest.map((row) => row.block);
  if (!series.every((some) => some.every((row) => names.includes(row.block)))) {
    const place = (row, some) => (some.length > 1 ? some.indexOf(row) / (some.length - 1) : 0.5);
    return { place, ticksX: QUARTERS, isTurned: false, nameX: "relative depth, first block to last" };
  }
  const place = (row) => (names.indexOf(row.block) + 0.5) / names.length;
  const room = (width - MARGIN.left - MARGIN.right) / names.length;
  const every = Math.ceil(16 / room);
  const ticksX = longest.flatMap((row, i) => (i % every ? [] : [[place(row), row.tick]]));
  return {
    place,
    ticksX,
    isTurned: Math.max(...ticksX.map(([, text]) => text.length)) * LETTER + 8 > room,
    nameX: "block",
  };
}

// From figures to places: whole decades, or 0 to 1; null where there is nothing.
function levels(series, metric, interval) {
  if (metric === "share") return { level: (value) => value, ticksY: QUARTERS };
  const figures = series.flat().flatMap((row) => [metric, ...interval].map((name) => row.figures[name]));
  const known = figures.filter((value) => value > 0 && Number.isFinite(value)).map(Math.log10);
  if (!known.length) return null;
  const least = Math.floor(Math.min(...known) + 1e-9);
  const most = Math.max(least + 1, Math.ceil(Math.max(...known) - 1e-9));
  return { level: (value) => (Math.log10(value) - least) / (most - least), ticksY: decades(least, most) };
}

// A figure of every row along depth: bars are intervals, with a caret where one has no end; an arrow starts at a lower
// bound, or stands at the edge for what is infinite; hollow is what did not converge.
function depth(series, { metric, side, width, events }) {
  const interval = data.intervals[metric] || [];
  const found = levels(series, metric, interval);
  const { place, ...below } = places(series, width);
  const { svg, x, y } = axes({ width, ...below, ticksY: found ? found.ticksY : [], name: `${metric} of ${side}` });
  const figure = make("figure", {}, make("figcaption", {}, `${metric} of ${side}`), svg);
  if (!found) {
    svg.append(make("text", { x: width / 2, y: 90, "text-anchor": "middle" }, "nothing to show"));
    return figure;
  }
  const isKnown = (value) => Number.isFinite(value) && (value > 0 || metric === "share");
  for (const some of series) {
    const known = some.filter((row) => isKnown(row.figures[metric]));
    svg.append(
      line(
        known.map((row) => [x(place(row, some)), y(found.level(row.figures[metric]))]),
        some[0].report,
      ),
    );
    for (const row of some) {
      const marks = marksOf(row, metric, interval, x(place(row, some)), (value) => y(found.level(value)), isKnown);
      if (marks)
        svg.append(
          make("g", { class: "point", style: look(row.report).style, "data-row": row.id, ...events(row) }, ...marks),
        );
    }
  }
  return figure;
}

function marksOf(row, metric, interval, x, y, isKnown) {
  const value = row.figures[metric];
  const [low, high] = interval.map((name) => row.figures[name]);
  const path = (d, kind = "") => make("path", { class: `open ${kind}`, d });
  const target = (top) => make("circle", { class: "target", cx: x, cy: top, r: 10 });
  if (value === Infinity || (Number.isNaN(value) && low > 0)) {
    const top = value === Infinity ? MARGIN.top + 14 : y(low);
    return [path(`M${x} ${top}v-14m-4 5l4 -5l4 5`, "dot"), target(top)];
  }
  if (!isKnown(value)) return null;
  const top = y(value);
  const bar = low > 0 ? [path(`M${x} ${y(low)}V${Number.isFinite(high) ? y(high) : top}`)] : [];
  const caret = high === Infinity ? [path(`M${x - 4} ${top - 6}l4 -5l4 5`)] : [];
  const kind = row.status === "CONVERGED" ? "dot" : "dot hollow";
  return [...bar, ...caret, make("circle", { class: kind, cx: x, cy: top, r: 3.6 }), target(top)];
}

// Eigenvalues over the largest by their share of the dimension; under the pointer, in numbers.
function spectrum(some, width) {
  const nameX = "lambda / lambda_max, by the share of the dimension";
  const { svg, x, y } = axes({
    width,
    height: 240,
    ticksX: QUARTERS,
    nameX,
    ticksY: decades(-12, 0),
    name: "spectrum",
  });
  for (const row of some) {
    const [shares, powers] = row.curve;
    svg.append(
      line(
        shares.map((share, i) => [x(share), y(1 + powers[i] / 12)]),
        row.report,
      ),
    );
  }
  const under = (row, at) => {
    const [shares, powers] = row.curve;
    const near = shares.reduce((best, share, i) => (Math.abs(share - at) < Math.abs(shares[best] - at) ? i : best), 0);
    const whose = some.length > 1 ? `${row.report.label}: ` : "";
    return `${whose}${(10 ** powers[near]).toPrecision(2)} at ${shares[near].toPrecision(2)}`;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = (((event.clientX - box.left) * width) / box.width - x(0)) / (x(1) - x(0));
    tip(event, ["lambda / lambda_max", ...some.map((row) => under(row, at))].join("\n"));
  });
  svg.addEventListener("pointerleave", (event) => tip(event, ""));
  return make("figure", {}, make("figcaption", {}, `${some[0].block}  ${some[0].side}`), svg);
}
