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
        data = data.filter((trace) => trace.meta.epoch).map((trace) => ({ ...trace, x: trace.meta.epoch })); // bands are over time
        layout.xaxis.title.text = "epoch";
      }
      Plotly.react(plot, inked(data), layout, { responsive: true, displaylogo: false, displayModeBar: false });
    }
  };
  draw();
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
      const text = (row) => row.cells[column].dataset.value ?? row.cells[column].firstChild?.textContent ?? "";
      const number = (row) => parseFloat(text(row).replaceAll(",", "").replace("\u2212", "-"));
      const numbers = head.classList.contains("number");
      const rows = [...table.tBodies[0].rows].sort((a, b) => (numbers ? number(a) - number(b) : 0) || text(a).localeCompare(text(b)));
      const known = rows.filter((row) => !numbers || !isNaN(number(row))); // what says "unknown" stays at the end
      const ordered = [...(down ? known.reverse() : known), ...rows.filter((row) => numbers && isNaN(number(row)))];
      table.tBodies[0].append(...ordered);
    });
  });
}

// Each row has an address made of its first cells, so that it can be linked to.
function linkable(table) {
  const seen = new Map();
  for (const row of table.tBodies[0].rows) {
    const words = [...row.cells].slice(0, 4).map((cell) => cell.textContent).join(" ");
    const name = `${table.id}:${words.toLowerCase().match(/[a-z0-9]+/g)?.join("-") ?? "row"}`;
    seen.set(name, (seen.get(name) ?? 0) + 1);
    row.id = seen.get(name) > 1 ? `${name}-${seen.get(name)}` : name;
    const link = Object.assign(document.createElement("a"), { href: `#${encodeURIComponent(row.id)}`, className: "link", textContent: "#" });
    link.setAttribute("aria-label", `Link to the row ${words.replace(/\s+/g, " ").trim().slice(0, 80)}`);
    row.cells[0].append(" ", link);
  }
}

function showLinked() {
  const row = byId(decodeURIComponent(location.hash.slice(1)));
  document.querySelectorAll("tr.linked").forEach((other) => other.classList.remove("linked"));
  if (row?.tagName === "TR") {
    row.classList.add("linked");
    row.scrollIntoView({ block: "center" });
  }
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("table.sortable").forEach(linkable);
addEventListener("hashchange", showLinked);
showLinked();
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
const drawn = byId("figure-data") ? drawFigures() : Promise.resolve();
drawn
  .then(() => (document.documentElement.dataset.ready = "yes"))
  .catch(() => {
    for (const plot of document.querySelectorAll(".plot")) plot.textContent = "This browser cannot unpack the figures; a current one can.";
  });
