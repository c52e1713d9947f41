// Curves

const SIZE = { width: 360, height: 190, left: 44, right: 8, top: 8, bottom: 22 };

function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at++) found.push(at * step);
  return found;
}

function showChart(chart) {
  const xs = chart.lines.flatMap((line) => line.x);
  const ys = chart.lines.flatMap((line) => line.y);
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (low === high) [low, high] = [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const { width, height, left, right, top, bottom } = SIZE;
  const toX = (x) => left + ((x - first) / (last - first || 1)) * (width - left - right);
  const toY = (y) => top + ((high - y) / (high - low)) * (height - top - bottom);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", chart.title);
  for (const tick of ticks(low, high)) {
    const [y, place] = [toY(tick), { x: left - 6, y: toY(tick) + 4, "text-anchor": "end" }];
    svg.append(make("line", { class: "axis", x1: left, x2: width - right, y1: y, y2: y }));
    svg.append(make("text", place, short(tick)));
  }
  const base = { y: height - 6, "text-anchor": "end" };
  svg.append(make("text", { ...base, x: width - right }, `step ${short(last)}`));
  const now = make("line", { class: "now", y1: top, y2: height - bottom, visibility: "hidden" });
  svg.append(now);
  const legend = make("div", { class: "legend" });
  const readings = chart.lines.map((line, number) => {
    const style = `--colour: var(--line-${line.colour}); --dash: ${line.dashed ? "dashed" : "solid"}`;
    const points = line.x.map((x, at) => `${toX(x).toFixed(1)} ${toY(line.y[at]).toFixed(1)}`);
    // A single point is drawn as a dot.
    const path = make("path", { d: `M${points.join("L")}${points.length > 1 ? "" : "h0.01"}` });
    path.style.stroke = `var(--line-${line.colour})`;
    if (points.length === 1) path.setAttribute("style", `${path.getAttribute("style")};stroke-width:5;stroke-linecap:round`);
    if (line.dashed) path.setAttribute("stroke-dasharray", "5 4");
    svg.append(path);
    const entry = make("span", { style });
    legend.append(entry);
    return (step) => {
      let at = line.x.length - 1;
      while (at > 0 && line.x[at] > step) at--;
      entry.textContent = `${line.name} ${short(line.y[at])}`;
    };
  });
  const read = (step) => {
    const x = toX(Math.min(Math.max(step, first), last));
    now.setAttribute("x1", x);
    now.setAttribute("x2", x);
    now.setAttribute("visibility", "visible");
    readings.forEach((reading) => reading(step));
  };
  readings.forEach((reading) => reading(last));
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    read(first + ((x - left) / (width - left - right)) * (last - first));
  };
  followers.push(read);
  const card = make("figure", { class: "chart" }, make("h3", {}, chart.title), svg, legend);
  document.querySelector("#curves .charts").append(card);
}
