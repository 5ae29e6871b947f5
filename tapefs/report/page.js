"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const NS = "http://www.w3.org/2000/svg";

// Words and numbers

function bytesText(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (count >= 1024 && at < units.length - 1) { count /= 1024; at += 1; }
  return (at ? count.toFixed(1) : String(count)) + " " + units[at];
}
function countText(count) { return count.toLocaleString("en-US"); }
function dayText(ns) {
  return ns ? new Date(ns / 1e6).toLocaleString("sv-SE", { dateStyle: "short", timeStyle: "short" }) : "never";
}
function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
function shape(tag, attributes, title) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (title) {
    const told = document.createElementNS(NS, "title");
    told.textContent = title;
    made.append(told);
  }
  return made;
}

// Figures

function showFigures() {
  byId("name").textContent = data.name;
  byId("uuid").textContent = data.uuid;
  const dead = Math.max(0, data.used_bytes - data.live_bytes);
  const figures = [
    [countText(data.files_count), "files"],
    [bytesText(data.size_bytes), "content"],
    [bytesText(data.used_bytes), "written on tape"],
    [bytesText(dead), "of it index, padding, replaced"],
    [bytesText(data.waiting_bytes), "waiting, not on tape"],
    [countText(data.generations_count), "generations"],
    [data.proven_good_ns ? dayText(data.proven_good_ns) : "no", "all of it proven good since"],
    [countText(data.damage_count), "damaged places"],
    [dayText(data.created_ns), "formatted"],
    [dayText(data.last_here_ns), "last here"],
  ];
  const health = data.health;
  if (health && health.loads_count !== null) figures.push([countText(health.loads_count), "loads of the cartridge"]);
  if (health && health.lifetime_written_bytes !== null)
    figures.push([bytesText(health.lifetime_written_bytes), "written in its life"]);
  for (const [value, word] of figures) {
    const box = element("div", null, { class: "figure" });
    box.append(element("b", value), element("span", word));
    byId("figures").append(box);
  }
  const concerns = [...(health ? health.concerns : [])];
  for (const each of data.damages.slice(0, 20))
    concerns.push(`tape file ${each.sequence}, byte ${countText(each.position)}: ${each.kind}, ${each.detail}`);
  if (data.damages.length > 20) concerns.push(`and ${data.damages.length - 20} more damaged places`);
  byId("concerns").hidden = concerns.length === 0;
  for (const each of concerns) byId("concerns").querySelector("ul").append(element("li", each));
}

// The tape: rows from left to right, like lines of text

function showTape() {
  const files = data.tape_files;
  const total = files.reduce((sum, each) => sum + each.size_bytes, 0);
  if (!total) { byId("tape").append(element("p", "Nothing is on the tape yet.")); return; }
  const width = 1000, rowHeight = 34, rows = files.length > 60 ? 6 : files.length > 12 ? 3 : 1;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${rows * (rowHeight + 8)}` });
  const perRow = total / rows;
  let at = 0;
  for (const file of files) {
    let left = file.size_bytes;
    while (left > 0) {
      const row = Math.min(rows - 1, Math.floor(at / perRow + 1e-9));
      const room = row === rows - 1 ? left : Math.min(left, (row + 1) * perRow - at);
      drawPiece(svg, file, (at - row * perRow) / perRow * width, row * (rowHeight + 8), room / perRow * width, rowHeight);
      at += Math.max(room, 1e-6 * total);
      left -= room;
      if (room <= 0) break;
    }
  }
  byId("tape").append(svg);
  const legend = byId("tape-legend");
  for (const [color, word] of [["live", "content of today"], ["dead", "replaced, deleted, index"],
    ["index", "checkpoint or closing: end of a generation"], ["torn", "torn"], ["proof", "read back and found good"]])
    legend.append(element("i", null, { style: `background:var(--${color})` }), word);
}
function drawPiece(svg, file, x, y, width, height) {
  const group = shape("g", { class: "piece", "data-sequence": file.sequence });
  const base = file.kind === "torn" ? "torn" : file.kind === "segment" ? "dead" : "index";
  const wide = Math.max(width - (width > 3 ? 1 : 0), 0.6);
  group.append(shape("rect", { x, y, width: wide, height: height - 6, fill: `var(--${base})` }));
  const share = file.size_bytes ? Math.min(1, file.live_bytes / file.size_bytes) : 0;
  if (file.kind === "segment" && share > 0) {
    const tall = (height - 6) * share;
    group.append(shape("rect", { x, y: y + height - 6 - tall, width: wide, height: tall, fill: "var(--live)" }));
  }
  if (file.verified_ns) group.append(shape("rect", { x, y: y + height - 4, width: wide, height: 4, fill: "var(--proof)" }));
  group.addEventListener("mouseenter", () => { byId("tape-told").textContent = tellTapeFile(file); });
  svg.append(group);
}
function tellTapeFile(file) {
  const words = [`Tape file ${file.sequence}, ${file.kind}, ${bytesText(file.size_bytes)}`];
  if (file.generation) words.push(`end of generation ${file.generation}`);
  if (file.written_ns) words.push(`written ${dayText(file.written_ns)}`);
  if (file.kind === "segment") words.push(`${countText(file.files_count)} files, ${bytesText(file.live_bytes)} of today`);
  words.push(file.verified_ns ? `read back ${dayText(file.verified_ns)}` : "never read back");
  const largest = file.largest.map(([path, size]) => `${path} (${bytesText(size)})`);
  return words.join("; ") + (largest.length ? ". Largest: " + largest.join(", ") : "") + ".";
}

// Contents: a squarified treemap

function squares(nodes, x, y, width, height) {
  const placed = [];
  let rest = nodes.filter((each) => each.bytes > 0).sort((one, other) => other.bytes - one.bytes);
  let sum = rest.reduce((total, each) => total + each.bytes, 0);
  while (rest.length) {
    const side = Math.min(width, height), area = (width * height) / sum;
    let row = [], rowSum = 0, worst = Infinity;
    for (const each of rest) {
      const nextSum = rowSum + each.bytes, thick = (nextSum * area) / side;
      const ratio = Math.max(...[...row, each].map((one) => {
        const long = (one.bytes * area) / thick;
        return Math.max(long / thick, thick / long);
      }));
      if (ratio > worst) break;
      row.push(each); rowSum = nextSum; worst = ratio;
    }
    const thick = (rowSum * area) / side;
    let along = 0;
    for (const each of row) {
      const long = (each.bytes * area) / thick;
      placed.push(width >= height
        ? { node: each, x, y: y + along, width: thick, height: long }
        : { node: each, x: x + along, y, width: long, height: thick });
      along += long;
    }
    if (width >= height) { x += thick; width -= thick; } else { y += thick; height -= thick; }
    rest = rest.slice(row.length);
    sum -= rowSum;
  }
  return placed;
}
const COLORS = ["#2f7d6b", "#3b6fb6", "#8a5aa8", "#a8563f", "#6b7a2f", "#2f6f8a", "#96652a", "#5b5fa8"];
function showContents(trail) {
  const node = trail[trail.length - 1], box = byId("contents");
  box.replaceChildren();
  const known = node.in.reduce((sum, each) => sum + each.bytes, 0);
  const parts = [...node.in];
  if (node.bytes > known) parts.push({ name: node.in.length ? "(files and smaller ones here)" : "(files here)", bytes: node.bytes - known, files: null, in: [] });
  const width = box.clientWidth || 1000, height = 420;
  squares(parts, 0, 0, width, height).forEach((place, index) => {
    const each = place.node;
    const button = element("button", null, {
      style: `left:${place.x}px;top:${place.y}px;width:${place.width}px;height:${place.height}px;background:${COLORS[index % COLORS.length]}`,
      title: `${each.name}: ${bytesText(each.bytes)}`,
    });
    if (place.width > 30 && place.height > 22) button.append(element("span", each.name));
    if (place.height > 42 && place.width > 60) button.append(element("span", bytesText(each.bytes)));
    button.disabled = each.files === null;
    button.addEventListener("mouseenter", () => {
      const files = each.files === null ? "" : `, ${countText(each.files)} files`;
      byId("contents-told").textContent = `${each.name}: ${bytesText(each.bytes)}${files}`;
    });
    button.addEventListener("click", () => showContents([...trail, each]));
    box.append(button);
  });
  byId("where").replaceChildren(...trail.map((each, index) => {
    const button = element("button", index ? each.name : data.name);
    button.addEventListener("click", () => showContents(trail.slice(0, index + 1)));
    return button;
  }));
}

// History

function showHistory() {
  const ends = data.tape_files.filter((each) => each.generation);
  const box = byId("history");
  if (!ends.length) box.append(element("p", "No mount has ended on this tape yet."));
  else {
    const width = 1000, height = 130, svg = shape("svg", { viewBox: `0 0 ${width} ${height}` });
    let sum = 0, number = 0;
    const bars = [];
    for (const file of data.tape_files) {
      if (file.generation) { bars.push([file, sum]); sum = 0; } else sum += file.size_bytes;
    }
    const most = Math.max(1, ...bars.map(([, count]) => count)), step = Math.min(60, width / bars.length);
    for (const [file, count] of bars) {
      const tall = Math.max(2, (count / most) * 96);
      svg.append(shape("rect", { x: number * step, y: 100 - tall, width: Math.max(1, step - 3), height: tall, fill: "var(--index)" },
        `Generation ${file.generation}, ${dayText(file.written_ns)}: ${bytesText(count)} more`));
      number += 1;
    }
    const text = (x, anchor, words) => {
      const made = shape("text", { x, y: 122, "text-anchor": anchor, "font-size": 15, fill: "var(--soft)" });
      made.textContent = words;
      svg.append(made);
    };
    text(0, "start", dayText(ends[0].written_ns));
    if (bars.length > 3) text(Math.min(width, number * step), "end", dayText(ends[ends.length - 1].written_ns));
    box.append(svg, element("p", "What each generation brought to the tape.", { class: "told" }));
  }
  const health = data.health, table = byId("sessions");
  if (!health || !health.sessions.length) return;
  const head = element("tr");
  for (const [word, kind] of [["Mounted", ""], ["Drive", ""], ["Written", "number"], ["Read", "number"],
    ["Corrected errors", "number"], ["Uncorrected", "number"]])
    head.append(element("th", word, kind ? { class: kind } : {}));
  table.append(head);
  const known = (...counts) => counts.some((each) => each !== null)
    ? countText(counts.reduce((sum, each) => sum + (each || 0), 0)) : "not told";
  for (const each of [...health.sessions].reverse()) {
    const row = element("tr");
    row.append(element("td", dayText(each.started_ns)), element("td", each.drive),
      ...[bytesText(each.written_bytes), bytesText(each.read_bytes),
        known(each.corrected_writing, each.corrected_reading), known(each.uncorrected)]
        .map((text) => element("td", text, { class: "number" })));
    table.append(row);
  }
  for (const each of health.alerts)
    table.append(element("caption", `TapeAlert ${each.flag}: ${each.text}; last ${dayText(each.last_ns)}`, { style: "caption-side:bottom;text-align:left" }));
}

// Files

const SHOWN = 200;
const COLUMNS = [["Path", 0, "path"], ["Size", 1, "number"], ["Changed", 2, ""], ["Tape file", 3, "number"], ["SHA-256", 4, "hash"]];
let order = { column: 1, down: true };
function showFiles() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = data.files.filter((each) =>
    words.every((word) => each[0].toLowerCase().includes(word) || (each[4] || "").startsWith(word)));
  const sign = order.down ? -1 : 1;
  fits.sort((one, other) => {
    const [left, right] = [one[order.column], other[order.column]];
    if (left === right) return 0;
    if (left === null) return 1;
    if (right === null) return -1;
    return (left < right ? -1 : 1) * sign;
  });
  byId("files").querySelector("tbody").replaceChildren(...fits.slice(0, SHOWN).map((each) => {
    const row = element("tr");
    const cells = [each[0], bytesText(each[1]), dayText(each[2] * 1e9), each[3] === null ? "spool" : each[3], (each[4] || "").slice(0, 16)];
    cells.forEach((text, index) => row.append(element("td", text, { class: COLUMNS[index][2], ...(index === 4 && each[4] ? { title: each[4] } : {}) })));
    return row;
  }));
  const all = data.files_complete ? "" : ` The table has the ${countText(data.files.length)} largest; tapefs find knows all.`;
  byId("found").textContent = `${countText(fits.length)} found${fits.length > SHOWN ? `, ${SHOWN} shown` : ""}.${all}`;
}
function showFileHead() {
  const row = element("tr");
  for (const [word, column, kind] of COLUMNS) {
    const cell = element("th", null, kind === "number" ? { class: "number" } : {});
    const button = element("button", word, { type: "button" });
    button.addEventListener("click", () => {
      order = { column, down: order.column === column ? !order.down : column === 1 };
      showFiles();
    });
    cell.append(button);
    row.append(cell);
  }
  byId("files").querySelector("thead").append(row);
}

showFigures();
showTape();
showContents([data.contents]);
showHistory();
showFileHead();
// A link can ask for a search: page.html#q=words.
if (location.hash.startsWith("#q=")) byId("search").value = decodeURIComponent(location.hash.slice(3));
showFiles();
byId("search").addEventListener("input", showFiles);
window.addEventListener("resize", () => showContents([data.contents]));
byId("made").textContent = `Made by tapefs ${data.tapefs_version}, ${dayText(data.made_ns)}, from the catalog of the computer it was made on.`;
document.documentElement.dataset.ready = "yes";
