// A box on the first frame of an upload.

import { drawFrame, initSurface, strokeTwice } from "./surface.js";

// Shows the first frame with a box [left, top, width, height]; `ondraw` gets each one that is drawn, in pixels.
export function initBox(canvas, upload, box, ondraw) {
  const size = [upload.width, upload.height];
  let start = null;
  initSurface(canvas, upload, [0, 0, ...size], {
    ready: () => drawBox(canvas, box),
    begin: (point) => (start = point),
    go: (end) => {
      const [first, last] = [Math.min, Math.max].map((choose) => size.map((side, axis) => choose(start[axis], end[axis]) * side));
      const low = first.map((value, axis) => Math.min(size[axis] - 1, Math.floor(value)));
      ondraw([...low, ...last.map((value, axis) => Math.max(1, Math.ceil(value) - low[axis]))]);
    },
  });
}

// Draws the frame, darkened outside of the box, if it is complete.
export function drawBox(canvas, box) {
  const drawn = drawFrame(canvas);
  if (!drawn || box.includes(null)) return;
  const { context, image, part, scaled } = drawn;
  const { width, height } = canvas;
  context.fillStyle = "#000a";
  context.fillRect(0, 0, width, height);
  const inside = box.map((value, i) => (value / part[2 + (i % 2)]) * (i % 2 ? height : width));
  context.drawImage(image, ...scaled(box), ...inside);
  const shape = new Path2D();
  shape.rect(...inside);
  strokeTwice(context, shape, [8, 8]);
}
