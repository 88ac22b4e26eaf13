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
    if (title.classList.contains("drawn")) return;
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

// Shows the scans that have all words that are looked for, and the columns of one organ.
for (const table of document.querySelectorAll("table.scans")) {
  const form = table.closest("section").querySelector("form.tools");
  const rows = [...table.tBodies[0].rows].map((row) => ({
    row, text: row.textContent.toLowerCase(), tags: row.dataset.tags.split(" "),
    organs: (row.dataset.organs ?? "").split("|").map((organ) => organ.split(";")),
    own: [1, 3, 4].map((n) => [row.cells[n].textContent, row.cells[n].dataset.value]),
  }));
  const shown = (text) => Number.isFinite(Number(text)) && text ? text : text === "inf" ? "∞" : "–";
  const sorted = (text) => text === "inf" ? "1e9" : shown(text) === "–" ? "" : text;
  const find = () => {
    const words = form.querySelector("input").value.toLowerCase().split(/\s+/);
    const tag = form.elements.show.value;
    let count = 0;
    for (const { row, text, tags } of rows) {
      row.hidden = !words.every((word) => text.includes(word)) || (tag && !tags.includes(tag));
      count += !row.hidden;
    }
    form.querySelector("output").textContent = `${count} of ${rows.length}`;
  };
  const choose = () => {
    const organ = form.elements.organ.value;
    table.classList.toggle("one-organ", organ !== "");
    for (const { row, organs, own } of rows) {
      const [dice, hd95, ml, times, z] = organ === "" ? [] : organs[organ];
      const of = organ === "" ? own : [
        [shown(dice), sorted(dice)], [shown(hd95), sorted(hd95)],
        [ml ? `${ml} mL, ${shown(times)}\u00a0×` : "–", ml ? sorted(String(Math.abs(Number(z)))) : ""],
      ];
      [1, 3, 4].forEach((n, i) => {
        [row.cells[n].textContent, row.cells[n].dataset.value] = of[i];
      });
      row.cells[1].classList.toggle("bad", Number(of[0][1] || 1) < 0.5);
    }
  };
  form.addEventListener("input", find);
  form.elements.organ?.addEventListener("input", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  find();
}

// Scrolls through the slices of a scan, and hides outlines.
for (const viewer of document.querySelectorAll(".viewer")) {
  for (const figure of viewer.querySelectorAll("figure")) {
    const slider = figure.querySelector("input"), slices = slider.dataset.slices.split(",");
    const show = () => {
      figure.style.setProperty("--k", slider.value);
      const slice = `slice ${Number(slices[slider.value]) + 1} of ${slider.dataset.depth}`;
      figure.querySelector("output").textContent = slice;
      slider.setAttribute("aria-valuetext", slice);
    };
    slider.addEventListener("input", show);
    figure.querySelector(".window").addEventListener("wheel", (event) => {
      const before = slider.value;
      slider.value = Number(before) + Math.sign(event.deltaY);
      if (slider.value !== before) event.preventDefault();
      show();
    }, { passive: false });
  }
  const form = viewer.querySelector("form.tools");
  form.hidden = false;
  form.addEventListener("input", (event) => {
    viewer.classList.toggle(`without-${event.target.name}`, !event.target.checked);
  });
}

// Where the page was sent alone, the pictures beside it are left out.
addEventListener("error", (event) => {
  if (event.target.loading === "lazy") event.target.remove();
}, true);

// On paper nothing stays folded, and every picture is there.
let folded = [];
addEventListener("beforeprint", () => {
  document.querySelectorAll("img[loading]").forEach((image) => { image.loading = "eager"; });
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));
