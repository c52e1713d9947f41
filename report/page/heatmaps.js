
// Sections with an epoch slider.

function controls(stops, changed) {
  const slider = make("input", { type: "range", min: 0, max: stops.length - 1, step: 1 });
  const output = make("output");
  const play = make("button", { type: "button" }, "Play");
  let timer = 0;
  const move = () => {
    const stop = stops[slider.value];
    output.textContent = `epoch ${stop.epoch}`;
    followers.forEach((follow) => follow(stop.step));
    changed(Number(slider.value));
  };
  const halt = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  };
  play.onclick = () => {
    if (timer) return halt();
    play.textContent = "Pause";
    if (Number(slider.value) === stops.length - 1) slider.value = -1;
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      move();
      if (Number(slider.value) === stops.length - 1) halt();
    }, 400);
  };
  slider.oninput = () => {
    halt();
    move();
  };
  slider.value = stops.length - 1;
  const label = make("label", { class: "epoch" }, "Epoch", slider, output);
  const bar = make("div", { class: "controls" });
  bar.append(...(stops.length > 1 ? [play, label] : []));
  return { bar, move, at: () => Number(slider.value) };
}

function openSection(name, group, panel, grid) {
  const section = document.getElementById(name);
  section.hidden = false;
  const about = make("p", { class: "about" }, group.about);
  section.append(make("h2", {}, group.title), about, panel.bar, grid);
  panel.move();
}

function showHeatmaps(group) {
  const grid = make("div", { class: "grid" });
  const views = make("select", { "aria-label": "map of" });
  views.append(...group.views.map((view) => make("option", { value: view }, view)));
  const strength = make("input", { type: "range", min: 0, max: 100, value: 50 });
  const cards = group.images.map((image) => {
    const canvas = make("canvas", { role: "img", "aria-label": `heatmap of ${image.name}` });
    const caption = make("figcaption");
    const button = make("button", { type: "button", title: "Every epoch of this image" }, canvas);
    const photo = loadPhoto(image.photo, () => draw());
    button.onclick = () => openFilm(group, image, photo, views.value, strength.value / 100);
    grid.append(make("figure", {}, button, caption));
    return { image, canvas, caption, photo };
  });
  const draw = () => {
    for (const { image, canvas, caption, photo } of cards) {
      const shown = (image.maps[views.value] || [])[panel.at()];
      paint(canvas, photo, shown, strength.value / 100);
      caption.replaceChildren(make("b", {}, image.true || image.name), ...describe(shown));
    }
  };
  const panel = controls(group.stops, draw);
  panel.bar.append(make("label", {}, "Map of", views), make("label", {}, "Heatmap", strength));
  views.onchange = strength.oninput = draw;
  openSection("heatmaps", group, panel, grid);
}

function openFilm(group, image, photo, view, weight) {
  const film = document.getElementById("film");
  film.querySelector("h3").textContent = `${image.name}, map of ${view}, every epoch`;
  const grid = make("div", { class: "grid" });
  group.stops.forEach((stop, at) => {
    const shown = (image.maps[view] || [])[at];
    const canvas = make("canvas");
    paint(canvas, photo, shown, weight);
    const caption = make("figcaption", {}, make("b", {}, `epoch ${stop.epoch}`));
    caption.append(...describe(shown));
    grid.append(make("figure", {}, canvas, caption));
  });
  film.querySelector("div").replaceChildren(grid);
  film.showModal();
}

function showReconstructions(group) {
  const grid = make("div", { class: "grid wide" });
  const cards = group.images.map((image) => {
    const guess = make("img", { alt: "what the network makes of it" });
    const caption = make("figcaption");
    const row = make("div", { class: "row" }, make("img", { src: image.masked, alt: "masked" }));
    row.append(guess, make("img", { src: image.original, alt: "as it is" }));
    grid.append(make("figure", {}, row, caption));
    return { image, guess, caption };
  });
  const panel = controls(group.stops, (at) => {
    for (const { image, guess, caption } of cards) {
      const made = image.made[at];
      guess.src = made ? made.picture : image.masked;
      const psnr = made ? `hidden cells guessed to ${short(made.psnr)} dB` : "not drawn here";
      caption.replaceChildren(make("b", {}, image.name), psnr);
    }
  });
  openSection("reconstructions", group, panel, grid);
}
