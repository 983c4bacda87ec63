// A box on the first frame of an upload, drawn by mouse, pen or finger.

const LEAST_PIXELS = 640; // of the longer side of the canvas, so that the box's lines are thin
const pictures = new WeakMap(); // canvas → {image, size, scale}

// Shows the first frame with a box [left, top, width, height]; `ondraw` gets each one that is drawn, in pixels.
export function initBox(canvas, upload, box, ondraw) {
  const image = new Image();
  image.onload = () => {
    const scale = Math.max(1, Math.ceil(LEAST_PIXELS / Math.max(image.width, image.height)));
    [canvas.width, canvas.height] = [image.width * scale, image.height * scale];
    pictures.set(canvas, { image, size: [upload.width, upload.height] });
    drawBox(canvas, box);
  };
  image.src = `/api/uploads/${upload.id}/picture`;
  const size = [upload.width, upload.height];
  let start = null;
  const point = (event) => {
    const frame = canvas.getBoundingClientRect();
    const share = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
    return share.map((value, axis) => Math.min(1, Math.max(0, value)) * size[axis]);
  };
  canvas.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    start = point(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!start) return;
    const end = point(event);
    const low = start.map((value, axis) => Math.min(size[axis] - 1, Math.floor(Math.min(value, end[axis]))));
    const high = start.map((value, axis) => Math.ceil(Math.max(value, end[axis])));
    ondraw([...low, ...high.map((value, axis) => Math.max(1, value - low[axis]))]);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (start = null));
}

// Draws the frame, darkened outside of the box, if it is complete.
export function drawBox(canvas, box) {
  const picture = pictures.get(canvas);
  if (!picture) return; // not there yet
  const { image, size } = picture;
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, width, height);
  if (box.includes(null)) return;
  context.fillStyle = "#000a";
  context.fillRect(0, 0, width, height);
  const [left, top, across, down] = box.map((value, i) => value / size[i % 2]);
  const inside = [left * width, top * height, across * width, down * height];
  const part = [left * image.width, top * image.height, across * image.width, down * image.height];
  context.drawImage(image, ...part, ...inside);
  for (const [color, dash] of [["#000", []], ["#fff", [8, 8]]]) {
    context.strokeStyle = color;
    context.lineWidth = 3;
    context.setLineDash(dash);
    context.strokeRect(...inside);
  }
}
