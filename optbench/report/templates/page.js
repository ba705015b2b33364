"use strict";
// Draw, sort, copy. All text is put in by the server; nothing here makes markup of data.

const config = {
  background: "transparent",
  font: "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
  view: { stroke: null },
  axis: {
    labelColor: "currentColor", titleColor: "currentColor", domainColor: "currentColor", tickColor: "currentColor", gridColor: "currentColor",
    gridOpacity: 0.12, domainOpacity: 0.4, tickOpacity: 0.4, labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal",
  },
  axisX: { labelOverlap: "greedy", labelSeparation: 6 },
  legend: { labelColor: "currentColor", titleColor: "currentColor", labelFontSize: 12 },
};

async function draw() {
  const failures = [];
  for (const holder of document.querySelectorAll("[data-spec]")) {
    // The page can be read and scrolled while its figures are drawn one after another.
    await new Promise((next) => setTimeout(next));
    const spec = JSON.parse(document.getElementById(holder.dataset.spec).textContent);
    // ast: expressions are interpreted, so that the page needs no eval.
    // Names take at most two fifths of the width, so that on a phone there is room for the figure.
    const axisY = { labelLimit: Math.round(holder.clientWidth * 0.4) };
    const options = { actions: false, renderer: "svg", ast: true, mode: "vega-lite", config: { ...config, axisY }, defaultStyle: false };
    try {
      await vegaEmbed(holder, spec, options);
      const svg = holder.querySelector("svg");
      // One picture with the caption's words; the figures themselves are in the tables, which readers can walk through.
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", holder.dataset.label);
      for (const inner of svg.querySelectorAll("[role],[aria-roledescription],[aria-label]")) {
        for (const name of ["role", "aria-roledescription", "aria-label"]) inner.removeAttribute(name);
      }
    } catch (error) {
      failures.push(`${holder.dataset.spec}: ${error.message}`);
      holder.textContent = "This figure could not be drawn; its values are in the tables.";
    }
  }
  if (failures.length) console.error(failures.join("\n"));
  document.documentElement.dataset.drawn = String(failures.length === 0);
}

// A table wider than its card is shown row by row; the width that it needs is kept, so that it comes back when there is room.
function fit() {
  for (const card of document.querySelectorAll(".table")) {
    const scroll = card.querySelector(".scroll");
    if (!scroll.clientWidth) continue; // collapsed
    if (card.dataset.need === undefined) {
      if (scroll.scrollWidth <= scroll.clientWidth) continue;
      card.dataset.need = scroll.scrollWidth + card.clientWidth - scroll.clientWidth;
    }
    card.classList.toggle("stacked", card.parentNode.clientWidth < Number(card.dataset.need));
  }
}

// Roles keep a table a table to screen readers, however it is shown.
function label() {
  for (const table of document.querySelectorAll("table")) {
    const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    table.setAttribute("role", "table");
    for (const group of [table.tHead, table.tBodies[0]]) group.setAttribute("role", "rowgroup");
    for (const row of table.rows) row.setAttribute("role", "row");
    for (const cell of table.tHead.rows[0].cells) cell.setAttribute("role", "columnheader");
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, index) => {
        cell.setAttribute("role", index ? "cell" : "rowheader");
        if (index) cell.dataset.label = names[index];
      });
    }
  }
}

function say(text) {
  document.getElementById("said").textContent = text;
}

function sortBy(button) {
  const head = button.closest("th");
  const table = head.closest("table");
  const index = [...head.parentNode.children].indexOf(head);
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  const value = (row) => row.cells[index].dataset.value;
  // A column of figures is sorted by its figures; cells without one come last either way.
  const figures = rows.every((row) => value(row) !== undefined || row.cells[index].textContent === "");
  rows.sort((one, two) => {
    const [a, b] = [value(one), value(two)];
    if (figures && (a === undefined || b === undefined)) return (a === undefined) - (b === undefined);
    const order = figures ? a - b : one.cells[index].textContent.localeCompare(two.cells[index].textContent, undefined, { numeric: true });
    return ascending ? order : -order;
  });
  table.tBodies[0].append(...rows);
  say(`Sorted by ${button.textContent}, ${ascending ? "ascending" : "descending"}`);
}

async function copy(button) {
  const code = button.parentNode.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // Not every browser lets a file use the clipboard: leave the text selected.
    getSelection().selectAllChildren(code);
    say("Selected: press Ctrl+C to copy");
    return;
  }
  say("Command copied");
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.closest("thead")) sortBy(button);
  if (button?.classList.contains("copy")) copy(button);
});
addEventListener("resize", fit);
// The event does not bubble: it is caught on its way down.
document.addEventListener("toggle", fit, true);
label();
fit();
draw();
