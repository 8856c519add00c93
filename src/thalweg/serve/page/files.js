// Files of images: read by the browser, fitted to the model's size here. Nothing of a file but these pixels is sent.

import { count } from "./format.js";

const MAX_BYTES = 32 * 2 ** 20;
const MAX_PIXELS = 16e6; // as many as the server reads

/** A file that cannot be taken; `message` is one line for people. */
export class WrongFile extends Error {}

/** { values (C, H, W) in [0, 1], note }: the file's image at the model's size. WrongFile for what is none. */
export async function readImage(file, shape) {
  const name = file.name || "The pasted image";
  if (file.size === 0) throw new WrongFile(`${name} is empty.`);
  if (file.size > MAX_BYTES) throw new WrongFile(`${name} has ${count(file.size / 2 ** 20)} MiB; at most ${MAX_BYTES / 2 ** 20} are read.`);
  if (file.type && !file.type.startsWith("image/")) throw new WrongFile(`${name} is not an image. PNG and JPEG are read.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new WrongFile(`${name} cannot be read as an image. PNG and JPEG are read.`);
  }
  try {
    return fitted(bitmap, shape, name);
  } finally {
    bitmap.close();
  }
}

function fitted(bitmap, [channels, height, width], name) {
  const { width: w, height: h } = bitmap;
  if (w * h > MAX_PIXELS) throw new WrongFile(`${name} has ${count(w)} × ${count(h)} pixels; at most 16 million are read.`);
  const canvas = new OffscreenCanvas(w, h);
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; // what shows through transparent parts, as the server reads them
  pen.fillRect(0, 0, w, h);
  pen.drawImage(bitmap, 0, 0);
  const { data } = pen.getImageData(0, 0, w, h);
  const planes = Array.from({ length: channels }, (_, c) => plane(data, w * h, channels === 1 ? -1 : Math.min(c, 2)));
  const values = new Float32Array(channels * height * width);
  planes.forEach((source, c) => values.set(areaAverage(source, w, h, width, height), c * height * width));
  const same = w === width && h === height;
  return { values, note: same ? `${name}, as it is` : `${name}, ${count(w)} × ${count(h)} pixels, resized to ${width} × ${height}` };
}

/** One channel of RGBA bytes as numbers in [0, 1]; -1: the luma of ITU-R BT.601. */
function plane(data, size, channel) {
  const found = new Float32Array(size);
  for (let i = 0, k = 0; i < size; i++, k += 4) {
    found[i] = (channel < 0 ? 0.299 * data[k] + 0.587 * data[k + 1] + 0.114 * data[k + 2] : data[k + channel]) / 255;
  }
  return found;
}

/** The mean of what lies below each new pixel, first along rows, then along columns. */
export function areaAverage(source, w, h, width, height) {
  const across = resample(source, h, w, width, w, 1, width, 1);
  return resample(across, width, h, height, 1, width, 1, width);
}

// `lines` lines of `from` values become lines of `to`; steps between lines and between values, before and after.
function resample(source, lines, from, to, line, step, newLine, newStep) {
  const found = new Float32Array(lines * to);
  const ratio = from / to;
  for (let j = 0; j < to; j++) {
    const start = j * ratio;
    const end = start + ratio;
    const first = Math.floor(start);
    const last = Math.min(from - 1, Math.ceil(end - 1e-9) - 1);
    for (let l = 0; l < lines; l++) {
      let sum = 0;
      for (let i = first; i <= last; i++) sum += (Math.min(end, i + 1) - Math.max(start, i)) * source[l * line + i * step];
      found[l * newLine + j * newStep] = sum / ratio;
    }
  }
  return found;
}

/** The images among what was pasted. */
export const pastedImages = (event) => [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
