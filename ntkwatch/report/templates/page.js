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

  document.addEventListener("change", (event) => {
    if (event.target.name !== "steps") return;
    for (const [id, drawing] of Object.entries(drawings)) {
      // A plot against the loss and one of single steps keep their own axes.
      const axis = drawing.layout.xaxis;
      if (axis.autorange === "reversed" || axis.type === "category") continue;
      const change = { "xaxis.type": event.target.value, "xaxis.autorange": true };
      Plotly.relayout("plot-" + id, change);
    }
  });
})();
