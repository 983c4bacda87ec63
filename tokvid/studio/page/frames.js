// Frames of takes, fetched as they are generated and kept as pictures: those that are shown, and of others those used last, up to a size.

import { bytes } from "./api.js";

const MOST_BYTES = 2 ** 28;
const kept = new Map(); // id → {images, busy, round}; the first was used the longest ago
let round = 0; // of asking for all that is shown
let arrived = () => {};

// What to do when frames have come.
export function onFrames(act) {
  arrived = act;
}

// The page asks anew for the frames of all that it shows.
export function newRound() {
  round++;
}

function entry(id) {
  const own = kept.get(id) ?? { images: [], busy: false };
  own.round = round;
  kept.delete(id);
  kept.set(id, own);
  return own;
}

// What is shown stays, however large: it would be fetched again at once, and push out the rest of it.
function makeRoom() {
  const size = ({ images }) => images.length * (images[0]?.data.length ?? 0);
  let total = [...kept.values()].reduce((sum, own) => sum + size(own), 0);
  for (const [other, own] of kept) {
    if (total <= MOST_BYTES) return;
    if (own.round === round) continue;
    kept.delete(other);
    total -= size(own);
  }
}

function images(buffer, [height, width]) {
  const size = height * width;
  const pixels = new Uint8Array(buffer);
  const result = [];
  for (let start = 0; start + 3 * size <= pixels.length; start += 3 * size) {
    const rgba = new Uint8ClampedArray(4 * size);
    for (let i = 0, j = start; i < 4 * size; i += 4, j += 3) {
      rgba[i] = pixels[j];
      rgba[i + 1] = pixels[j + 1];
      rgba[i + 2] = pixels[j + 2];
      rgba[i + 3] = 255;
    }
    result.push(new ImageData(rgba, width, height));
  }
  return result;
}

// Fetches the frames of a take that are new.
export async function fetchFrames(take) {
  const own = entry(take.id);
  if (own.busy || own.images.length >= take.done || !take.size[0]) return;
  own.busy = true;
  const before = own.images.length;
  try {
    while (own.images.length < take.done) {
      const more = images(await bytes(`/api/takes/${take.id}/frames?first=${own.images.length}`), take.size);
      if (!more.length) break;
      own.images.push(...more);
    }
  } catch {
    // asked for again at the next change
  } finally {
    own.busy = false;
  }
  makeRoom();
  if (own.images.length > before) arrived();
}

export const framesOf = (take) => (take ? (kept.get(take.id)?.images ?? []) : []);

export async function oneFrame(take, index) {
  const own = kept.get(take.id)?.images[index];
  if (own) return own;
  return images(await bytes(`/api/takes/${take.id}/frames?first=${index}&count=1`), take.size)[0];
}

// Draws a picture on a canvas of its own size; the style sheet enlarges it.
export function draw(canvas, image) {
  if (!image) return;
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Draws `count` evenly spaced pictures of frames first to end - 1 side by side, as far as they are there.
export function drawStrip(canvas, all, [first, end], count, [height, width]) {
  const gap = 2;
  canvas.width = count * width + (count - 1) * gap;
  canvas.height = height;
  const context = canvas.getContext("2d");
  for (let i = 0; i < count; i++) {
    const image = all[Math.round(first + ((end - 1 - first) * i) / Math.max(1, count - 1))];
    if (image) context.putImageData(image, i * (width + gap), 0);
  }
}
