// Images as the server speaks of them, { shape: [C, H, W], data: base64 of bytes }, and as a canvas shows them.

/** Bytes as base64. */
export function toBase64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

const fromBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** Numbers in [0, 1] as the server takes them. */
export const encode = (values, shape) => ({ shape, data: toBase64(Uint8Array.from(values, (v) => Math.round(255 * Math.min(1, Math.max(0, v))))) });

/** Yes and no as the server takes it. */
export const encodeMask = (mask, shape) => ({ shape, data: toBase64(Uint8Array.from(mask, (on) => (on ? 1 : 0))) });

/** { shape, values } of what the server sent: bytes over [low, high], [0, 1] where it does not say, or nested lists. */
export function decode(sent) {
  if (Array.isArray(sent)) {
    const shape = [];
    for (let part = sent; Array.isArray(part); part = part[0]) shape.push(part.length);
    return { shape, values: Float32Array.from(sent.flat(Infinity)) };
  }
  const { shape, data, low = 0, high = 1 } = sent;
  const bytes = fromBase64(data);
  return { shape, values: Float32Array.from(bytes, (byte) => low + ((high - low) * byte) / 255) };
}

/** The rows of a batch (N, …), each as { shape, values }. */
export function rows({ shape, values }) {
  const [n, ...rest] = shape;
  const size = rest.reduce((a, b) => a * b, 1);
  return Array.from({ length: n }, (_, i) => ({ shape: rest, values: values.subarray(i * size, (i + 1) * size) }));
}

/** (C, H, W) of what may lack channels. */
export const imageShape = (shape) => (shape.length === 2 ? [1, ...shape] : shape);

/** Shows an image, values (C, H, W) in [0, 1], on a canvas of its size. */
export function paint(canvas, { shape, values }) {
  const [channels, height, width] = imageShape(shape);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const picture = new ImageData(width, height);
  const size = width * height;
  const second = channels >= 3 ? size : 0;
  for (let i = 0; i < size; i++) {
    picture.data[4 * i] = 255 * values[i];
    picture.data[4 * i + 1] = 255 * values[i + second];
    picture.data[4 * i + 2] = 255 * values[i + 2 * second];
    picture.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
  canvas.classList.toggle("pixels", Math.max(width, height) <= 96);
}

const FEW = 0.02; // the share of pixels that are shown in full colour

/** Shows how much each pixel raises the energy, (H, W), in one colour; below `strong` it stays pale. Gives the most. */
export function paintHeat(canvas, { shape, values }, [red, green, blue], strong = 0) {
  const [height, width] = shape.slice(-2);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const picture = new ImageData(width, height);
  const ranked = Float32Array.from(values).sort();
  const top = Math.max(0, ranked[ranked.length - 1]);
  const full = Math.max(strong, ranked[Math.floor((1 - FEW) * (ranked.length - 1))]);
  for (let i = 0; i < width * height; i++) {
    const dense = full > 0 ? Math.min(1, Math.max(0, values[i]) / full) : 0;
    picture.data.set([red, green, blue, 235 * Math.max(0, (dense - 0.04) / 0.96)], 4 * i);
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
  canvas.classList.toggle("pixels", Math.max(width, height) <= 96);
  return top;
}
