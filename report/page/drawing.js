"use strict";
const run = JSON.parse(document.getElementById("run").textContent);
const followers = []; // what moves along with an epoch slider

// Text goes in by textContent only: names come from data.
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "g"].includes(tag);
  const node = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function short(number) {
  if (number === null || number === undefined) return "?";
  if (number !== 0 && (Math.abs(number) < 1e-3 || Math.abs(number) >= 1e5)) {
    return number.toExponential(1);
  }
  return String(Number(number.toPrecision(3)));
}

// Heatmaps: the maps are here at the layer's grid, and are drawn as litcam draws them.

const colours = bytes(run.colours); // red, green, blue of 256 levels

/** Bilinear weights of a row of `size` pixels over `cells` cells, aligned at the edges. */
function spread(size, cells) {
  const places = [];
  for (let at = 0; at < size; at++) {
    const place = Math.max(0, ((at + 0.5) * cells) / size - 0.5);
    const low = Math.min(Math.floor(place), cells - 1);
    places.push([low, Math.min(low + 1, cells - 1), place - low]);
  }
  return places;
}

/** A map `(rows, columns)` stretched to [0, 1] at `height` x `width`; null where it is flat. */
function enlarge(map, [rows, columns], height, width) {
  const across = spread(width, columns);
  const heat = new Float32Array(height * width);
  let [low, high] = [Infinity, -Infinity];
  spread(height, rows).forEach(([top, bottom, part], y) => {
    across.forEach(([left, right, share], x) => {
      const upper = map[top * columns + left] * (1 - share) + map[top * columns + right] * share;
      const lower =
        map[bottom * columns + left] * (1 - share) + map[bottom * columns + right] * share;
      // In float32 like `heat`, or the lowest would come out below 0.
      const value = Math.fround(upper * (1 - part) + lower * part);
      heat[y * width + x] = value;
      low = Math.min(low, value);
      high = Math.max(high, value);
    });
  });
  if (!(high > low)) return null;
  return heat.map((value) => (value - low) / (high - low));
}

/** Draws `shown` over the photo, with `weight` of the heatmap; grey where it shows nothing. */
function paint(canvas, photo, shown, weight) {
  const [width, height] = [photo.naturalWidth, photo.naturalHeight];
  if (!width) return;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(photo, 0, 0);
  if (!shown || weight === 0) return;
  const picture = context.getImageData(0, 0, width, height);
  const heat = shown.map ? enlarge(bytes(shown.map), shown.grid, height, width) : null;
  const mixed = new Float32Array(width * height * 3);
  let brightest = 0;
  for (let pixel = 0; pixel < width * height; pixel++) {
    const level = heat ? Math.floor(heat[pixel] * 255) * 3 : 0;
    for (let channel = 0; channel < 3; channel++) {
      const value = picture.data[pixel * 4 + channel];
      const mix = heat ? colours[level + channel] * weight + value * (1 - weight) : 0;
      mixed[pixel * 3 + channel] = mix;
      brightest = Math.max(brightest, mix);
    }
  }
  for (let pixel = 0; pixel < width * height; pixel++) {
    const at = pixel * 4;
    const grey = (picture.data[at] + picture.data[at + 1] + picture.data[at + 2]) / 3;
    for (let channel = 0; channel < 3; channel++) {
      const bright = brightest ? (mixed[pixel * 3 + channel] * 255) / brightest : 0;
      picture.data[at + channel] = heat ? bright : grey;
    }
  }
  context.putImageData(picture, 0, 0);
}

function loadPhoto(source, loaded) {
  const photo = new Image();
  photo.onload = loaded;
  photo.src = source;
  return photo;
}

function share(probability) {
  return probability === null ? "?" : probability.toFixed(2);
}

function describe(shown) {
  if (!shown) return [make("span", { class: "quiet" }, "not explained at this epoch")];
  const lines = [];
  if (shown.correct !== null) {
    const verdict = shown.correct ? "right" : "wrong";
    lines.push(make("span", { class: verdict }, `${verdict}: `));
  }
  lines.push(`${shown.predicted} ${share(shown.confidence)}`, make("br"));
  const other = shown.class === shown.predicted ? "map" : `${shown.class} ${share(shown.probability)}`;
  const about = shown.problem || `${other}, max ${short(shown.max)}`;
  lines.push(make("span", { class: "quiet" }, about));
  return lines;
}

