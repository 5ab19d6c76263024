(() => {
  "use strict";
  const drawings = JSON.parse(document.getElementById("drawings").textContent);
  // On a touch screen a finger over a plot scrolls the page; dragging would catch it.
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  for (const [id, drawing] of Object.entries(drawings)) {
    if (touch) drawing.layout.dragmode = false;
    Plotly.newPlot("plot-" + id, drawing.data, drawing.layout, config);
  }

  const press = (button, shown) => {
    const traces = button.dataset.traces.split(" ").map(Number);
    button.setAttribute("aria-pressed", String(shown));
    return Plotly.restyle(button.dataset.plot, { visible: shown }, traces);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-plot]");
    if (!button) return;
    if (!button.dataset.every) {
      press(button, button.getAttribute("aria-pressed") !== "true");
      return;
    }
    const others = button.closest(".legend").querySelectorAll("button[data-traces]");
    for (const other of others) press(other, button.dataset.every === "true");
  });

  // A click on a head sorts its table by that column; a second one turns the order around.
  const value = (row, place) => row.cells[place].dataset.value ?? row.cells[place].textContent;
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.sort");
    if (!button) return;
    const head = button.closest("th");
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const rows = [...body.rows].sort((first, second) => {
      const [a, b] = [first, second].map((row) => value(row, head.cellIndex));
      // What was not measured comes last in either order.
      if (a === "" || b === "") return (a === "") - (b === "");
      const [x, y] = [Number(a), Number(b)];
      const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
      return down ? -order : order;
    });
    body.append(...rows);
  });

  document.addEventListener("change", (event) => {
    if (event.target.name !== "steps") return;
    for (const [id, drawing] of Object.entries(drawings)) {
      // A plot against the loss and one of single steps keep their own axes.
      const { xaxis: axis, meta } = drawing.layout;
      if (axis.autorange === "reversed" || axis.type === "category" || meta) continue;
      const change = { "xaxis.type": event.target.value, "xaxis.autorange": true };
      Plotly.relayout("plot-" + id, change);
    }
  });
})();
