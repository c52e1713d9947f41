// The page

for (const [name, value] of run.facts) {
  document
    .getElementById("facts")
    .append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
}
for (const alarm of run.alarms) {
  const section = document.getElementById("alarms");
  section.hidden = false;
  const title = make("b", {}, `Alarm at epoch ${alarm.epoch}, ${alarm.title}: `);
  section.append(make("p", { class: "alarm" }, title, alarm.text));
}
if (run.curves.length) document.getElementById("curves").hidden = false;
run.curves.forEach(showChart);
run.heatmaps.forEach(showHeatmaps);
run.reconstructions.forEach(showReconstructions);
for (const figure of run.figures) {
  const section = document.getElementById("figures");
  section.hidden = false;
  const picture = make("img", { src: figure.picture, alt: figure.title });
  section.append(make("p", { class: "about" }, figure.title), make("figure", {}, picture));
}
