"use strict";
// The list of all sentences: filtered, sorted, a page at a time. Texts are set as text, never as HTML.
const PAGE = 100;
const TEXT = 0, IOU = 1, SIZE = 2, CATEGORY = 3, PICTURE = 4;
const { rows, pictureHeads, alt } = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filter");
const body = document.querySelector("#sentences tbody");
const heads = [...document.querySelectorAll("#sentences th")];
const earlier = document.getElementById("earlier"), later = document.getElementById("later");
let column = null, direction = 1, start = 0;

function element(name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function limits(name) {
  const bound = (end, otherwise) => form.elements[`${name}_${end}`].value === "" ? otherwise
    : Number(form.elements[`${name}_${end}`].value);
  return [bound("from", -Infinity), bound("to", Infinity)];
}

function found() {
  const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const category = form.elements.category.value;
  const [iouFrom, iouTo] = limits("iou"), [sizeFrom, sizeTo] = limits("size");
  const kept = rows.filter((row) => words.every((word) => row[TEXT].toLowerCase().includes(word))
    && (category === "" || row[CATEGORY] === category)
    && row[IOU] >= iouFrom && row[IOU] <= iouTo && row[SIZE] >= sizeFrom && row[SIZE] <= sizeTo);
  if (column === null) return kept;
  return kept.sort((one, other) => direction * (typeof one[column] === "number" ? one[column] - other[column]
    : one[column].localeCompare(other[column])));
}

function toggle(line, row, button) {
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) {
    line.nextSibling.remove();
    return;
  }
  const shown = element("tr"), cell = element("td"), columns = element("div"), picture = element("img");
  columns.className = "heads";
  columns.append(...pictureHeads.map((head) => element("span", head)));
  cell.colSpan = heads.length;
  picture.src = row[PICTURE];
  picture.alt = alt + row[TEXT];
  cell.append(columns, picture);
  shown.append(cell);
  line.after(shown);
}

function lineOf(row) {
  const line = element("tr"), cells = [element("td"), element("td", row[IOU].toFixed(2)),
    element("td", row[SIZE].toFixed(2)), element("td", row[CATEGORY])];
  const button = element("button", row[TEXT]);
  button.dir = "auto";
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => toggle(line, row, button));
  cells[TEXT].className = cells[CATEGORY].className = "words";
  cells[TEXT].append(button);
  line.append(...cells);
  return line;
}

function show() {
  const kept = found();
  start = Math.max(0, Math.min(start, kept.length - 1));
  start -= start % PAGE;
  const end = Math.min(start + PAGE, kept.length);
  body.replaceChildren(...kept.slice(start, end).map(lineOf));
  document.getElementById("found").textContent =
    `${kept.length} of ${rows.length} expressions` + (kept.length > PAGE ? `, shown: ${start + 1} to ${end}` : "");
  earlier.disabled = start === 0;
  later.disabled = end === kept.length;
}

heads.forEach((head, number) => head.firstChild.addEventListener("click", () => {
  direction = column === number ? -direction : 1;
  column = number;
  heads.forEach((one) => one.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
  start = 0;
  show();
}));
form.addEventListener("input", () => { start = 0; show(); });
form.addEventListener("submit", (event) => event.preventDefault());
earlier.addEventListener("click", () => { start -= PAGE; show(); });
later.addEventListener("click", () => { start += PAGE; show(); });
show();
