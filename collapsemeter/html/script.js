"use strict";
// Sorting: a header becomes a button, so that it works by keyboard, too.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.querySelectorAll("thead th")];
  const body = table.tBodies[0];
  const key = (row, column) => {
    const order = row.cells[column].dataset.order;
    return order === undefined ? null : Number(order);
  };
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const falling = header.getAttribute("aria-sort") !== "descending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => {
        const x = key(a, column), y = key(b, column);
        if (x === null || y === null) return (x === null) - (y === null);
        return falling ? y - x : x - y;
      });
      body.append(...rows);
    });
  });
}
// What explains the figures is printed, too, also where it is folded.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details.explains")) folded.open = true;
});
// The report that the page was made from, as a file.
const link = document.createElement("a");
link.textContent = "Download the report as JSON";
link.download = "report.json";
const json = document.getElementById("report").textContent;
link.href = URL.createObjectURL(new Blob([json], { type: "application/json" }));
document.getElementById("download").append(link, ".");
