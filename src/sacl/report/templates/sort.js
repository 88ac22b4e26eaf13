// Sorts a table by the column whose title is pressed; without this script it stays as written.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], titles = [...table.tHead.rows[0].cells];
  const value = (row, n) => {
    const cell = row.cells[n], text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text);
    return text === "" || Number.isNaN(number) ? text.toLowerCase() : number;
  };
  const compare = (a, b) => {
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1;
    if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
    return typeof a === "number" ? -1 : 1;
  };
  titles.forEach((title, n) => {
    const button = document.createElement("button");
    button.textContent = title.textContent;
    button.type = "button";
    title.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = title.getAttribute("aria-sort") !== "ascending";
      titles.forEach((other) => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [value(row, n), row]);
      rows.sort((a, b) => {
        const order = compare(a[0], b[0]);
        return up || a[0] === "" || b[0] === "" ? order : -order;
      });
      body.append(...rows.map((pair) => pair[1]));
    });
  });
}
// Nothing stays folded on paper.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));
