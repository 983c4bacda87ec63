// The path of what a picture shows, drawn on it.

import { drawFrame, initSurface, strokeTwice } from "./surface.js";

const POINTS = 100; // of a drawn path

// The middle of a picture that has the form of the weights' videos: left, top, width and height.
export function middle({ width, height }, [rows, columns]) {
  const scale = Math.min(height / rows, width / columns);
  const [across, down] = [Math.round(scale * columns), Math.round(scale * rows)];
  return [Math.floor((width - across) / 2), Math.floor((height - down) / 2), across, down];
}

// `count` points along a path, as far from one another.
export function spaced(path, count) {
  if (path.length === count) return path; // they are
  const lengths = path.map((point, i) => (i ? Math.hypot(point[0] - path[i - 1][0], point[1] - path[i - 1][1]) : 0));
  const whole = lengths.reduce((sum, each) => sum + each, 0);
  let [next, passed] = [1, 0];
  return Array.from({ length: count }, (_, i) => {
    const wanted = (whole * i) / (count - 1);
    while (next < path.length - 1 && passed + lengths[next] < wanted) passed += lengths[next++];
    const share = lengths[next] ? Math.min(1, (wanted - passed) / lengths[next]) : 0;
    return path[next].map((value, axis) => Number((path[next - 1][axis] + share * (value - path[next - 1][axis])).toFixed(4)));
  });
}

// Shows the middle of a picture with a path of points, shares of its width and height; `ondraw` gets each drawn one.
export function initPath(canvas, upload, size, path, ondraw) {
  let points = [];
  initSurface(canvas, upload, middle(upload, size), {
    ready: () => drawPath(canvas, path),
    begin: (point) => (points = [point]),
    go: (point) => {
      const last = points.at(-1);
      if (Math.hypot(point[0] - last[0], point[1] - last[1]) < 0.01) return;
      points.push(point);
      ondraw(spaced(points, POINTS));
    },
  });
}

// Draws the picture, the path with an arrow's head at its end.
export function drawPath(canvas, path) {
  const drawn = drawFrame(canvas);
  if (!drawn || path.length < 2) return;
  const points = path.map(([x, y]) => [x * canvas.width, y * canvas.height]);
  const shape = new Path2D();
  points.forEach((point, i) => (i ? shape.lineTo(...point) : shape.moveTo(...point)));
  const end = points.at(-1);
  const from = points.findLast(([x, y]) => Math.hypot(end[0] - x, end[1] - y) > 12) ?? points[0];
  const angle = Math.atan2(end[1] - from[1], end[0] - from[0]);
  for (const turn of [2.6, -2.6]) {
    shape.moveTo(...end);
    shape.lineTo(end[0] + 24 * Math.cos(angle + turn), end[1] + 24 * Math.sin(angle + turn));
  }
  strokeTwice(drawn.context, shape);
}
