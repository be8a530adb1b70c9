// Frames (envs/frames.py, as JSON) on a canvas: x to the right, y up, the whole view centred.

const LABEL_FONT = '12px system-ui, "DejaVu Sans", sans-serif';
const BAR_HEIGHT = 5;

export class Film {
  constructor(data) {
    this.steps = data.steps;
    this.frames = data.frames;
    this.end = this.steps.at(-1);
    this.images = new Map(); // of the frames that are pictures
    for (const { shapes } of this.frames) {
      for (const { kind, jpeg } of shapes) {
        if (kind !== "picture" || this.images.has(jpeg)) continue;
        const image = new Image();
        image.src = `data:image/jpeg;base64,${jpeg}`;
        this.images.set(jpeg, image);
      }
    }
    this.ready = Promise.all(
      [...this.images.values()].map((image) => image.decode().catch(() => {})));
    this.secondsPerStep = this.frames[0].seconds_per_step;
  }

  // The frame at a time in steps; between two frames, shapes of the same kinds glide.
  at(time) {
    let low = 0;
    let high = this.steps.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.steps[middle] <= time) low = middle;
      else high = middle - 1;
    }
    const now = this.frames[low];
    if (low + 1 >= this.frames.length) return now;
    const then = this.frames[low + 1];
    const share = (time - this.steps[low]) / (this.steps[low + 1] - this.steps[low]);
    if (share <= 0 || !alike(now.shapes, then.shapes)) return now;
    return {
      view: between(now.view, then.view, share),
      shapes: now.shapes.map((shape, i) => between(shape, then.shapes[i], share)),
    };
  }
}

function alike(some, others) {
  return some.length === others.length && some.every((shape, i) => {
    const other = others[i];
    return shape.kind === other.kind && shape.kind !== "picture" && shape.colour === other.colour &&
      shape.points?.length === other.points?.length;
  });
}

function between(a, b, share) {
  if (typeof a === "number") return a + (b - a) * share;
  if (Array.isArray(a)) return a.map((item, i) => between(item, b[i], share));
  if (a === null || typeof a !== "object") return a;
  return Object.fromEntries(Object.keys(a).map((key) => [key, between(a[key], b[key], share)]));
}

export function draw(canvas, frame, images = null) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const [left, bottom, right, top] = frame.view;
  const scale = Math.min(width / (right - left), height / (top - bottom));
  const x0 = width / 2 - (scale * (left + right)) / 2;
  const y0 = height / 2 + (scale * (bottom + top)) / 2;
  const place = ([x, y]) => [x0 + scale * x, y0 - scale * y];
  for (const shape of frame.shapes) PAINTERS[shape.kind]?.(pen, shape, place, scale, images);
}

const PAINTERS = {
  segment(pen, { start, end, colour, width }, place, scale) {
    pen.strokeStyle = colour;
    pen.lineWidth = width > 0 ? Math.max(width * scale, 1) : 1.25;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(...place(start));
    pen.lineTo(...place(end));
    pen.stroke();
  },
  circle(pen, { centre, radius, colour, filled }, place, scale) {
    pen.beginPath();
    pen.arc(...place(centre), Math.max(radius * scale, 0.5), 0, 2 * Math.PI);
    if (filled) {
      pen.fillStyle = colour;
      pen.fill();
    } else {
      pen.strokeStyle = colour;
      pen.lineWidth = 2;
      pen.stroke();
    }
  },
  polygon(pen, { points, colour }, place) {
    pen.fillStyle = colour;
    pen.beginPath();
    for (const point of points) pen.lineTo(...place(point));
    pen.closePath();
    pen.fill();
  },
  picture(pen, { corner: [left, bottom], width, height, jpeg }, place, scale, images) {
    const image = images?.get(jpeg);
    if (!image?.naturalWidth) return;
    const [x, y] = place([left, bottom + height]);
    pen.drawImage(image, x, y, width * scale, height * scale);
  },
  caption(pen, { position, text, colour }, place) {
    pen.fillStyle = colour;
    pen.font = LABEL_FONT;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(text, ...place(position));
  },
  health_bar(pen, { position, width, share, colour }, place, scale) {
    const [x, y] = place(position);
    const whole = width * scale;
    const left = x - whole / 2;
    pen.fillStyle = "#d9d5cc";
    pen.fillRect(left, y - BAR_HEIGHT / 2, whole, BAR_HEIGHT);
    pen.fillStyle = colour;
    pen.fillRect(left, y - BAR_HEIGHT / 2, whole * Math.min(Math.max(share, 0), 1), BAR_HEIGHT);
  },
};
