// The first frame of an upload on a canvas, to draw on by mouse, pen or finger.

const LEAST_PIXELS = 640; // of the longer side of the canvas, so that lines are thin
const frames = new WeakMap(); // canvas → {image, part, scaled}

// Shows a part [left, top, width, height] of the frame, in pixels of the upload. `begin` gets the point where drawing begins, `go`
// those after it, as shares of the part's width and height; `ready` is called once the frame is there.
export function initSurface(canvas, upload, part, { begin, go, ready }) {
  const image = new Image();
  image.onload = () => {
    // The picture of a large upload has fewer pixels.
    const scaled = (box) => box.map((value, i) => value * (i % 2 ? image.height / upload.height : image.width / upload.width));
    const [, , width, height] = scaled(part);
    const scale = Math.max(1, Math.ceil(LEAST_PIXELS / Math.max(width, height)));
    [canvas.width, canvas.height] = [width, height].map((side) => Math.round(scale * side));
    frames.set(canvas, { image, part, scaled });
    ready();
  };
  image.src = `/api/uploads/${upload.id}/picture`;
  let drawing = false;
  const point = (event) => {
    const place = canvas.getBoundingClientRect();
    const share = [(event.clientX - place.left) / place.width, (event.clientY - place.top) / place.height];
    return share.map((value) => Math.min(1, Math.max(0, value)));
  };
  canvas.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    drawing = true;
    begin(point(event));
  });
  canvas.addEventListener("pointermove", (event) => drawing && go(point(event)));
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (drawing = false));
}

// Draws the frame on the canvas; returns it and the canvas's context, or null where it isn't there yet. `scaled` gives
// the image's pixels of a box in the upload's.
export function drawFrame(canvas) {
  const frame = frames.get(canvas);
  if (!frame) return null;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(frame.image, ...frame.scaled(frame.part), 0, 0, canvas.width, canvas.height);
  return { ...frame, context };
}

// Strokes a shape so that it shows on anything: white on black, `dash` as `setLineDash`.
export function strokeTwice(context, shape, dash = []) {
  const lines = dash.length ? [["#000", 3, []], ["#fff", 3, dash]] : [["#000", 7, []], ["#fff", 3, []]];
  for (const [color, width, pattern] of lines) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.setLineDash(pattern);
    context.stroke(shape);
  }
}
