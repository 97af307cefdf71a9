"use strict";
const byId = (id) => document.getElementById(id);

// Embedded files are gzip in base64: plotly.js shrinks from 4.8 MB to 2.0 MB.
async function inflate(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
}

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, line, surface] = ["--ink", "--soft", "--line", "--surface"].map((n) => style.getPropertyValue(n).trim());
  const themed = structuredClone(layout);
  themed.font = { family: style.getPropertyValue("--sans"), size: 12.5, color: soft };
  themed.hoverlabel = { bgcolor: surface, bordercolor: line, font: { color: ink } };
  for (const axis of [themed.xaxis, themed.yaxis]) Object.assign(axis, { gridcolor: line, linecolor: line, tickcolor: line });
  for (const shape of themed.shapes || []) shape.line.color = soft;
  for (const note of themed.annotations || []) note.font = { color: soft };
  if (matchMedia("(max-width: 600px)").matches) Object.assign(themed.margin, { l: 44, r: 6 });
  return themed;
}

function inked(traces) {
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  return traces.map((trace) => {
    if (trace.meta !== "ink") return trace;
    const marker = { ...trace.marker, color: ink, line: { ...trace.marker.line, color: ink } };
    return { ...trace, marker, error_x: { ...trace.error_x, color: ink } };
  });
}

async function drawFigures() {
  const figures = JSON.parse(byId("figure-data").textContent);
  const url = URL.createObjectURL(new Blob([await inflate("plotly-js")], { type: "text/javascript" }));
  await new Promise((resolve, reject) => {
    const script = Object.assign(document.createElement("script"), { src: url, onload: resolve, onerror: reject });
    document.head.append(script);
  });
  let axis = "time";
  const draw = () => {
    for (const plot of document.querySelectorAll(".plot")) {
      let { data, layout } = figures[plot.dataset.figure].figure;
      layout = themed(layout);
      if (plot.dataset.figure === "accuracy" && axis === "epoch") {
        data = data.map((trace) => ({ ...trace, x: trace.meta.epoch }));
        layout.xaxis.title.text = "epoch";
      }
      Plotly.react(plot, inked(data), layout, { responsive: true, displaylogo: false, displayModeBar: false });
    }
  };
  draw();
  document.documentElement.dataset.ready = "yes";
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.addEventListener("click", () => {
      axis = button.dataset.axis;
      for (const other of document.querySelectorAll("[data-axis]")) other.setAttribute("aria-pressed", String(other === button));
      draw();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", draw);
  addEventListener("afterprint", draw);
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) => key(a).localeCompare(key(b), undefined, { numeric: false }));
      if (head.classList.contains("number")) rows.sort((a, b) => Number(key(a)) - Number(key(b)));
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("[data-filter]").forEach((input) => {
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of byId(input.dataset.filter).tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
});
byId("download")?.addEventListener("click", async () => {
  const blob = new Blob([await inflate("samples-csv")], { type: "text/csv" });
  Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: "samples.csv" }).click();
});
if (byId("figure-data")) {
  drawFigures().catch(() => {
    for (const plot of document.querySelectorAll(".plot")) plot.textContent = "This browser cannot unpack the figures; a current one can.";
  });
}
