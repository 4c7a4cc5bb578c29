// Classifies chest X-rays in the browser. Nothing is uploaded: after loading, the page forbids itself every
// request. Steps, limits and messages are those of chestxray/data and chestxray/deployment/predict.py; the
// tests compare the numbers. The parts: reading files, JPEG, PNG, DICOM, resizing, network, decision, page.

const settings = JSON.parse(document.getElementById("settings").textContent);
const MAX_BYTES = 200e6, MAX_PIXELS = 64e6, MIN_SIDE = 16, COLOUR_ABOVE = 8, FLAT_BELOW = 5;

class NotAFrontalImage extends Error {} // readable, but refused

const rint = (value) => { // to the next whole number, halves to the even one, as NumPy and OpenCV do
  const floor = Math.floor(value), rest = value - floor;
  return rest < 0.5 || (rest === 0.5 && floor % 2 === 0) ? floor : floor + 1;
};
const clip = (value, low, high) => Math.min(high, Math.max(low, value));
const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const begins = (bytes, text, at = 0) => [...text].every((char, i) => bytes[at + i] === char.charCodeAt(0));
const latin = (bytes) => String.fromCharCode(...bytes);
const number = (value) => value.toLocaleString("en-US");

// ---------------------------------------------------------------------------------------- reading files

/** Decode a file to {width, height, pixels (grey, 0-255), problem, outside}; `size` is what will be needed. */
async function decode(file, size = settings.image.size) {
  const megabytes = number(Math.round(file.size / 1e6));
  if (file.size > MAX_BYTES) throw new Error(`too large (${megabytes} MB, at most ${MAX_BYTES / 1e6})`);
  const buffer = await file.arrayBuffer().catch(() => { throw new Error("cannot be opened (a folder?)"); });
  const bytes = new Uint8Array(buffer);
  if (!bytes.length) throw new Error("empty file");
  if (isDicom(bytes)) return decodeDicom(bytes);
  if (begins(bytes, "\x89PNG\r\n\x1a\n")) return decodePng(bytes);
  if (begins(bytes, "\xff\xd8")) return decodeJpeg(bytes, size);
  if (begins(bytes, "BM")) return decodeInBrowser(bytes, "image/bmp");
  if (begins(bytes, "RIFF") && begins(bytes, "WEBP", 8)) return decodeWebp(bytes);
  const unread = { GIF8: "GIF", "%PDF": "PDF", "\x1f\x8b": "gzip", "II*\0": "TIFF", "MM\0*": "TIFF",
    "II+\0": "TIFF", "MM\0+": "TIFF", "\0\0\0\x0cjP": "JPEG 2000", "\xff\x4f\xff\x51": "JPEG 2000" };
  const name = Object.keys(unread).find((start) => begins(bytes, start));
  if (!name && !begins(bytes, "ftyp", 4)) throw new Error("not an image (JPEG, PNG, BMP, WebP or DICOM)");
  const format = unread[name] || "HEIC or AVIF";
  throw new Error(`a format that is not supported (${format}); convert it to PNG`);
}

function checkSize(width, height) {
  const size = `${width} × ${height} pixels`, most = number(MAX_PIXELS);
  if (width * height > MAX_PIXELS) throw new Error(`too large (${size}, at most ${most} in all)`);
  if (Math.min(width, height) < MIN_SIDE) throw new Error(`too small (${size}, at least ${MIN_SIDE} a side)`);
}

const damaged = () => { throw new Error("cannot be decoded (damaged image data)"); };

/** Decode with the browser's decoder, in parts of whole blocks. */
async function decodeInBrowser(bytes, type, orientation = 0) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(new Blob([bytes], { type }), options).catch(damaged);
  const { width, height } = bitmap;
  checkSize(width, height);
  const rows = Math.min(height, Math.max(8, 8 * Math.floor(2 ** 19 / width)));
  const context = new OffscreenCanvas(width, rows).getContext("2d", { willReadFrequently: true });
  const pixels = new Uint8Array(width * height), colour = { sum: 0, blocks: 0 };
  for (let top = 0; top < height; top += rows) {
    context.drawImage(bitmap, 0, -top);
    const part = context.getImageData(0, 0, width, Math.min(rows, height - top));
    toLuma(part.data, 4, width, part.height, pixels.subarray(top * width), colour);
  }
  bitmap.close();
  return image(width, height, pixels, colour, orientation);
}

/** Decode a WebP file: browsers neither turn it nor give the pixels below transparent ones. */
async function decodeWebp(bytes) {
  let frames = 0, orientation = 0, isClear = begins(bytes, "VP8L", 12) && bytes[24] & 16;
  for (let at = 12, size; at + 8 <= bytes.length; at += 8 + size + (size % 2)) {
    size = viewOf(bytes).getUint32(at + 4, true);
    const start = at + (begins(bytes, "Exif\0\0", at + 8) ? 14 : 8);
    if (begins(bytes, "EXIF", at)) orientation = exifOrientation(bytes.subarray(start, at + 8 + size));
    if (begins(bytes, "VP8X", at)) isClear = bytes[at + 8] & 16;
    frames += begins(bytes, "ANMF", at);
  }
  if (frames > 1) throw new Error(`not one image (${frames} in the file)`);
  if (isClear) throw new Error("a format that is not supported (transparent WebP); convert it to PNG");
  return decodeInBrowser(bytes, "image/webp", orientation);
}

function image(width, height, pixels, colour = { sum: 0, blocks: 1 }, orientation = 0) {
  const problem = colour.sum / colour.blocks > COLOUR_ABOVE ? "a colour image" : "";
  return { ...turn({ width, height, pixels }, orientation), problem, outside: "" };
}

/** Write the luma of RGB values, and add the range of the channels in blocks of 8 × 8 pixels to `colour`. */
function toLuma(data, stride, width, height, target, colour, half = 16384) {
  for (let i = 0, k = 0; k < width * height; i += stride, k++) {
    target[k] = (9798 * data[i] + 19235 * data[i + 1] + 3735 * data[i + 2] + half) / 32768;
  }
  for (let top = 0; top < height; top += 8) {
    for (let left = 0; left < width; left += 8) {
      const sums = [0, 0, 0], bottom = Math.min(height, top + 8), right = Math.min(width, left + 8);
      for (let y = top; y < bottom; y++) {
        for (let i = (y * width + left) * stride; i < (y * width + right) * stride; i += stride) {
          for (let channel = 0; channel < 3; channel++) sums[channel] += data[i + channel];
        }
      }
      colour.sum += (Math.max(...sums) - Math.min(...sums)) / ((bottom - top) * (right - left));
      colour.blocks += 1;
    }
  }
}

// -------------------------------------------------------------------------------------------------- JPEG

/** Yield the segments of a JPEG file: marker, and where its content begins and ends. */
function* jpegSegments(bytes) {
  const view = viewOf(bytes);
  for (let at = 2; (at = bytes.indexOf(0xff, at)) >= 0;) { // like libjpeg, skip bytes between segments
    const marker = view.getUint8(at + 1);
    const isEmpty = marker < 2 || (marker >= 0xd0 && marker <= 0xd9); // it has no length
    const end = at + 2 + (isEmpty || marker === 0xff ? 0 : view.getUint16(at + 2));
    if (marker === 0xd9 || !(isEmpty || marker === 0xff)) yield [marker, at + 4, end];
    at = marker === 0xff ? at + 1 : end; // 255 may be repeated before a marker
  }
}

const isFrame = (marker) => marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);

/** Read size, depth and number of channels of a JPEG file, and whether its first scan is complete. */
function jpegHeader(bytes) {
  const view = viewOf(bytes);
  let header = null, scan = 0, end = bytes.length - 2;
  try {
    for (const [marker, start] of jpegSegments(bytes)) {
      if (isFrame(marker)) {
        const [height, width] = [1, 3].map((place) => view.getUint16(start + place));
        header ??= { depth: bytes[start], height, width, channels: view.getUint8(start + 5) };
      }
      if (marker === 0xda) scan = start;
      if (scan) break;
    }
  } catch { header = null; } // it reads behind the end
  if (!header || ![1, 3, 4].includes(header.channels)) throw new Error("truncated or damaged header");
  while (end > scan && !(bytes[end] === 0xff && bytes[end + 1] === 0xd9)) end--;
  if (!scan || end <= scan) throw new Error("truncated (the end of the image is missing)");
  return header;
}

/** Decode a JPEG file, at 1/2 or 1/4 of its size if its sides remain at least twice those that are needed. */
async function decodeJpeg(bytes, size) {
  const { width, height, channels } = jpegHeader(bytes);
  checkSize(width, height);
  const least = Math.max(2 * size, 256);
  const factor = [4, 2].find((scale) => Math.floor(Math.min(width, height) / scale) >= least);
  let reduced = null;
  try {
    if (factor) reduced = decodeReduced(bytes, factor);
  } catch {} // damaged, or of an unusual kind: the browser may do better
  if (reduced && channels === 1) return image(reduced.width, reduced.height, reduced.pixels);
  return { ...(await decodeInBrowser(bytes, "image/jpeg")), ...reduced };
}

const diagonal = (i) => (i >> 3) + (i & 7); // the places of a block in their order: up and down by turns
const ZIGZAG = Uint8Array.from(Array(64).keys()).sort(
  (a, b) => diagonal(a) - diagonal(b) || (diagonal(a) % 2 ? a - b : b - a));

/**
 * Decode the luma of a JPEG file at 1/2 or 1/4 of its size, bit for bit as libjpeg does it in Python. Browsers
 * decode whole images only, and means of their pixels differ by 1 here and there, which moves the lung box and
 * changes probabilities by up to 0.2. Throws if only the browser can decode the file.
 */
function decodeReduced(bytes, factor) {
  const view = viewOf(bytes), scales = [], tables = [];
  let frame = null, interval = 0, orientation = 0, transform = 1;
  for (const [marker, start, end] of jpegSegments(bytes)) {
    let at = start;
    if (marker === 0xd9) break;
    const isExif = marker === 0xe1 && begins(bytes, "Exif\0\0", start);
    if (isExif) orientation ||= exifOrientation(bytes.subarray(start + 6, end));
    if (marker === 0xee && begins(bytes, "Adobe", start)) transform = bytes[start + 11];
    if (isFrame(marker)) frame = jpegFrame(bytes, start, marker, transform);
    while (marker === 0xdb && at < end) { // quantisation
      const wide = bytes[at] >> 4, scale = scales[bytes[at] & 15] = new Int32Array(64);
      for (let i = 0; i < 64; i++) {
        scale[ZIGZAG[i]] = wide ? view.getUint16(at + 1 + 2 * i) : bytes[at + 1 + i];
      }
      at += 1 + 64 * (1 + wide);
    }
    while (marker === 0xc4 && at < end) { // Huffman codes: length and symbol by the next 16 bits
      const table = tables[bytes[at]] = new Uint16Array(65536);
      let symbol = at + 17, code = 0;
      for (let length = 1; length <= 16; length++) {
        for (let i = 0; i < bytes[at + length]; i++, symbol++) {
          table.fill((length << 8) | bytes[symbol], code, code += 1 << (16 - length));
        }
      }
      at = symbol;
    }
    if (marker === 0xdd) interval = view.getUint16(start);
    if (marker === 0xda) decodeScan(bytes, start, end, frame, tables, interval);
  }
  if (frame.precision.some((bits) => bits)) throw new Error("scans are missing"); // libjpeg smooths the blocks
  return turn(inverseTransform(frame, scales[frame.luma.scale], factor), orientation);
}

/** Read the header of a frame, and make room for the coefficients of its luma, 64 a block. */
function jpegFrame(bytes, start, marker, transform) {
  const view = viewOf(bytes), height = view.getUint16(start + 1), width = view.getUint16(start + 3);
  const channels = Array.from({ length: bytes[start + 5] }, (_, i) => {
    const [id, sides, scale] = bytes.subarray(start + 6 + 3 * i);
    return { id, across: sides >> 4, down: sides & 15, scale, last: 0 };
  });
  const [luma] = channels, names = latin(channels.map(({ id }) => id)), progressive = marker === 0xc2;
  const hasNoLuma = channels.length === 4 || (channels.length === 3 && (transform === 0 || names === "RGB"));
  const isFiner = ({ across, down }) => across > luma.across || down > luma.down;
  const isUnread = marker > 0xc2 || bytes[start] !== 8; // lossless, of arithmetic coding, or of 12 bits
  if (isUnread || hasNoLuma || channels.some(isFiner)) throw new Error("an unusual kind of JPEG");
  if (channels.length === 1) luma.across = luma.down = 1;
  const unitsAcross = Math.ceil(width / (8 * luma.across)), unitsDown = Math.ceil(height / (8 * luma.down));
  const stride = unitsAcross * luma.across; // blocks in a line
  const coefficients = new Int16Array(64 * stride * unitsDown * luma.down);
  const precision = new Int8Array(64).fill(-1); // bits of each coefficient that are still missing
  const sizes = { width, height, unitsAcross, unitsDown, stride };
  return { ...sizes, progressive, channels, luma, coefficients, precision };
}

/** Decode the scan whose header lies between two places into the coefficients of the luma. */
function decodeScan(bytes, start, headerEnd, frame, tables, interval) {
  const { luma, coefficients } = frame, unused = new Int16Array(64);
  const channels = Array.from({ length: bytes[start] }, (_, i) => {
    const [name, codes] = bytes.subarray(start + 1 + 2 * i);
    const channel = frame.channels.find(({ id }) => id === name);
    return Object.assign(channel, { dc: tables[codes >> 4], ac: tables[16 + (codes & 15)] });
  });
  if (!channels.includes(luma)) return;
  const spectrum = bytes.subarray(start + 1 + 2 * channels.length);
  const [first, last, precision] = frame.progressive ? spectrum : [0, 63, 0];
  frame.precision.fill(precision & 15, first, last + 1);
  const refines = precision >> 4 > 0; // it has one bit more of numbers that earlier scans began
  const unit = 1 << (precision & 15);
  let end = headerEnd, data = null, at = 0, run = 0; // `at` counts bits; `run`: blocks without further values

  function readBlock(channel, target, offset) {
    if (first === 0 && refines) target[offset] |= readBit() * unit;
    if (first === 0 && !refines) {
      const entry = channel.dc[peek(data, at)], length = entry & 15;
      at += entry >> 8;
      target[offset] = (channel.last += signed(peek(data, at), length)) * unit;
      at += length;
    }
    if (last > 0) (refines ? refineBlock : readValues)(channel.ac, target, offset);
  }

  function readValues(table, target, offset) {
    for (let i = Math.max(1, first); run === 0 && i <= last; i++) {
      const entry = table[peek(data, at)], length = entry & 15, skip = (entry >> 4) & 15;
      at += entry >> 8;
      if (length === 0 && skip < 15) readRun(skip);
      i += skip;
      if (length > 0) target[offset + ZIGZAG[i & 63]] = signed(peek(data, at), length) * unit;
      at += length;
    }
    if (run > 0) run--;
  }

  function readRun(length) { // of blocks, this one included
    run = (1 << length) + (peek(data, at) >> (16 - length));
    at += length;
  }

  function refineBlock(table, target, offset) {
    let i = Math.max(1, first);
    const passZeros = (zeros) => { // one bit more of each number; stops behind so many zeros
      for (; i <= last; i++) {
        const k = offset + ZIGZAG[i];
        if (target[k] === 0 && zeros-- === 0) return;
        if (target[k] !== 0 && readBit() && !(target[k] & unit)) target[k] += target[k] > 0 ? unit : -unit;
      }
    };
    for (; run === 0 && i <= last; i++) {
      const entry = table[peek(data, at)], length = entry & 15, skip = (entry >> 4) & 15;
      at += entry >> 8;
      if (length === 0 && skip < 15) readRun(skip);
      if (run > 0) break;
      const value = length === 0 ? 0 : readBit() ? unit : -unit;
      passZeros(skip);
      if (value && i <= last) target[offset + ZIGZAG[i]] = value;
    }
    if (run === 0) return;
    passZeros(Infinity);
    run--;
  }

  const readBit = () => peek(data, at++) >> 15;

  const single = channels.length === 1; // then the blocks are in the order of their lines
  const across = single ? Math.ceil(frame.width / 8) : frame.unitsAcross;
  const units = across * (single ? Math.ceil(frame.height / 8) : frame.unitsDown);
  for (let number = 0; number < units; number++) {
    if (number === 0 || (interval && number % interval === 0)) {
      [data, end] = unstuffed(bytes, number ? end + 2 : end); // behind the marker of a restart
      at = run = 0;
      for (const channel of channels) channel.last = 0;
    }
    if (at > 8 * (data.length - 4)) continue; // data are missing: libjpeg leaves these blocks as they are
    const x = number % across, y = Math.floor(number / across);
    if (single) readBlock(luma, coefficients, 64 * (y * frame.stride + x));
    else for (const channel of channels) {
      for (let part = 0; part < channel.across * channel.down; part++) {
        const column = x * luma.across + (part % luma.across);
        const row = y * luma.down + Math.floor(part / luma.across);
        if (channel === luma) readBlock(luma, coefficients, 64 * (row * frame.stride + column));
        else readBlock(channel, unused.fill(0), 0);
      }
    }
  }
}

/** Return the 16 bits that begin at a bit. */
const peek = (data, bit) =>
  (((data[bit >> 3] << 16) | (data[(bit >> 3) + 1] << 8) | data[(bit >> 3) + 2]) >> (8 - (bit & 7))) & 0xffff;

/** Return the number in the first bits of 16, as JPEG codes signs. */
const signed = (word, length) => (word >> (16 - length)) + (word >> 15 ? 0 : 1 - (1 << length));

/** Copy coded data up to the next marker, without the zeros behind bytes of 255; return copy and end. */
function unstuffed(bytes, start) {
  let end = start, length = 0;
  while ((end = bytes.indexOf(0xff, end)) >= 0 && bytes[end + 1] === 0) end += 2;
  if (end < 0) end = bytes.length;
  const data = new Uint8Array(end - start + 4); // zeros at the end
  for (let i = start; i < end; i++) {
    data[length++] = bytes[i];
    if (bytes[i] === 0xff) i++;
  }
  return [data.subarray(0, length + 4), end];
}

/** Inverse cosine transform to means of 2 × 2 or 4 × 4 pixels, as in jidctred.c of libjpeg. */
function inverseTransform({ width, height, stride, coefficients }, scale, factor) {
  const columns = Math.ceil(width / factor), rows = Math.ceil(height / factor);
  const pixels = new Uint8Array(columns * rows), weights = WEIGHTS[factor], shift = factor === 2 ? 12 : 13;
  const block = new Int32Array(64), half = new Int32Array(32), result = new Int32Array(16), side = 8 / factor;
  for (let top = 0, line = 0; top < rows; top += side, line++) {
    for (let left = 0, offset = 64 * line * stride; left < columns; left += side, offset += 64) {
      for (let i = 0; i < 64; i++) block[i] = coefficients[offset + i] * scale[i];
      for (let i = 0; i < 8; i++) transformLine(weights, block, i, 8, half, i, 8, shift);
      for (let i = 0; i < side; i++) transformLine(weights, half, 8 * i, 1, result, side * i, 1, shift + 7);
      for (let y = top; y < Math.min(top + side, rows); y++) {
        for (let x = left; x < Math.min(left + side, columns); x++) {
          pixels[y * columns + x] = clip(result[(y - top) * side + x - left] + 128, 0, 255);
        }
      }
    }
  }
  return { width: columns, height: rows, pixels };
}

const WEIGHTS = { // of the 8 frequencies in the first half of the means; the other half is their mirror image
  2: [
    [16384, 20995, 15137, 7373, 0, -4926, -6270, -4176],
    [16384, 8697, -15137, -17799, 0, 11893, 6270, -1730],
  ],
  4: [[32768, 29692, 0, -10426, 0, 6967, 0, -5906]],
};
const descale = (value, shift) => (value + (1 << (shift - 1))) >> shift;

function transformLine(weights, source, from, step, target, to, stride, shift) {
  for (let i = 0, last = 2 * weights.length - 1; i < weights.length; i++) {
    let even = 0, odd = 0;
    for (let k = 0, at = from; k < 8; k += 2, at += 2 * step) {
      even += weights[i][k] * source[at];
      odd += weights[i][k + 1] * source[at + step];
    }
    target[to + i * stride] = descale(even + odd, shift);
    target[to + (last - i) * stride] = descale(even - odd, shift);
  }
}

/** Return the orientation, 1 to 8, in EXIF data; 0 without one. */
function exifOrientation(data) {
  const view = viewOf(data), little = begins(data, "II");
  if (data.length < 8) return 0;
  for (let at = 2 + view.getUint32(4, little); at + 12 <= data.length; at += 12) {
    if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
  }
  return 0;
}

/** Turn and mirror an image as its EXIF orientation says: 5 to 8 exchange rows and columns. */
function turn({ width, height, pixels }, orientation) {
  if (!(orientation > 1 && orientation < 9)) return { width, height, pixels };
  const [columns, rows] = orientation > 4 ? [height, width] : [width, height];
  const turned = Uint8Array.from(pixels, (_, i) => {
    let [x, y] = [i % columns, Math.floor(i / columns)];
    if (orientation > 4) [x, y] = [y, x];
    if ([2, 3, 7, 8].includes(orientation)) x = width - 1 - x;
    if ([3, 4, 6, 7].includes(orientation)) y = height - 1 - y;
    return pixels[y * width + x];
  });
  return { width: columns, height: rows, pixels: turned };
}

// -------------------------------------------------------------------------------------------------- PNG

/** Decode a PNG file. A canvas would lose 16-bit values and the grey below transparent pixels. */
async function decodePng(bytes) {
  const view = viewOf(bytes), parts = [];
  if (bytes.length < 33) throw new Error("truncated or damaged header");
  const width = view.getUint32(16), height = view.getUint32(20), [depth, type] = bytes.subarray(24);
  const channels = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }[type];
  if (!channels) throw new Error("truncated or damaged header");
  checkSize(width, height);
  let palette = null, orientation = 0, kind = "", at = 8, isWhole = [1, 2, 4, 8, 16].includes(depth);
  while (kind !== "IEND" && at + 12 <= bytes.length) {
    const start = at + 4, end = start + 4 + view.getUint32(at), content = bytes.subarray(start + 4, end);
    kind = latin(bytes.subarray(start, start + 4));
    at = end + 4;
    const isSound = at <= bytes.length && checksum(bytes.subarray(start, end)) === view.getInt32(end);
    if (["IHDR", "PLTE", "IDAT"].includes(kind)) isWhole &&= isSound;
    if (kind === "IDAT") parts.push(content);
    if (kind === "PLTE") palette = content;
    if (kind === "eXIf" && isSound && !parts.length) orientation = exifOrientation(content);
  }
  if (kind !== "IEND" || at > bytes.length) throw new Error("truncated (the end of the image is missing)");
  if (!isWhole || (type === 3 && !palette)) damaged();

  const kept = channels < 3 && type !== 3 ? 1 : 3; // without alpha
  const samples = new (depth === 16 ? Uint16Array : Uint8Array)(width * height * kept);
  const pixelBits = depth * channels, step = Math.max(1, pixelBits >> 3);
  const interlaced = [ // left, top and steps of each pass
    [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
  ];
  const passes = (bytes[28] ? interlaced : [[0, 0, 1, 1]]).map(([left, top, dx, dy]) => {
    const columns = Math.ceil((width - left) / dx), rows = Math.ceil((height - top) / dy);
    return { left, top, dx, dy, columns, rows, length: Math.ceil((columns * pixelBits) / 8) };
  });
  const data = await inflate(parts, passes.reduce((sum, { rows, length }) => sum + rows * (length + 1), 0));
  let start = 0;
  for (const { left, top, dx, dy, columns, rows, length } of passes) {
    let above = new Uint8Array(length);
    for (let row = 0; row < rows; row++, start += length + 1) {
      const line = data.subarray(start + 1, start + 1 + length);
      unfilter(data[start], line, above, step);
      above = line;
      let to = ((top + row * dy) * width + left) * kept;
      for (let column = 0; column < columns; column++, to += dx * kept) {
        for (let channel = 0; channel < kept; channel++) {
          if (type === 3) samples[to + channel] = palette[3 * sample(line, column, depth) + channel];
          else samples[to + channel] = sample(line, column * channels + channel, depth, true);
        }
      }
    }
  }
  if (kept === 1) return image(width, height, toGrey(samples), undefined, orientation);
  const colour = { sum: 0, blocks: 0 }, grey = new samples.constructor(width * height);
  toLuma(samples, 3, width, height, grey, colour, 0); // libpng does not round
  colour.sum /= depth === 16 ? 257 : 1;
  return image(width, height, toGrey(grey), colour, orientation);
}

/** Inflate as many bytes as the image needs, whatever follows them: a small file could hold any number. */
async function inflate(parts, length) {
  const data = new Uint8Array(length), inflated = new DecompressionStream("deflate");
  const reader = new Blob(parts).stream().pipeThrough(inflated).getReader();
  for (let at = 0; at < length;) {
    const { value = damaged() } = await reader.read().catch(damaged);
    data.set(value.subarray(0, length - at), at);
    at += value.length;
  }
  reader.cancel().catch(() => {});
  return data;
}

const CHECKS = Int32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  return value;
});

/** Return the CRC-32 of a chunk. */
const checksum = (chunk) => ~chunk.reduce((sum, byte) => CHECKS[(sum ^ byte) & 255] ^ (sum >>> 8), -1);

function sample(line, index, depth, scaled = false) {
  if (depth === 8) return line[index];
  if (depth === 16) return (line[2 * index] << 8) | line[2 * index + 1];
  const most = (1 << depth) - 1, bit = index * depth;
  const value = (line[bit >> 3] >> (8 - depth - (bit & 7))) & most;
  return scaled ? (value * 255) / most : value;
}

function unfilter(filter, line, above, step) {
  for (let i = 0; filter && i < line.length; i++) {
    const left = i < step ? 0 : line[i - step], up = above[i], corner = i < step ? 0 : above[i - step];
    if (filter === 1) line[i] += left;
    else if (filter === 2) line[i] += up;
    else if (filter === 3) line[i] += (left + up) >> 1;
    else if (filter > 4) damaged();
    else {
      const a = Math.abs(up - corner), b = Math.abs(left - corner), c = Math.abs(left + up - 2 * corner);
      line[i] += a <= b && a <= c ? left : b <= c ? up : corner;
    }
  }
}

/** Scale values of 16 bits from their 0.5th to 99.5th percentile to 0-255; values of 8 bits stay. */
function toGrey(values) {
  if (values instanceof Uint8Array) return values;
  const counts = new Uint32Array(65536);
  for (const value of values) counts[value]++;
  const [low, high] = robustRange(counts), range = Math.max(high - low, 1e-12);
  return translate(values, counts.map((_, value) => grey8((value - low) / range)), 0);
}

/** Look up every value in a table that begins with the entry of `lowest`. */
function translate(values, table, lowest) {
  const result = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) result[i] = table[values[i] - lowest];
  return result;
}

const grey8 = (share) => rint(255 * clip(share, 0, 1));

/** Return the 0.5th and 99.5th percentiles of a histogram, or the extremes if these are equal. */
function robustRange(counts) {
  let total = 0;
  const sums = Array.from(counts, (count) => total += count);
  const ranked = (rank) => sums.findIndex((sum) => sum > rank);
  const [low, high] = [0.5, 99.5].map((percent) => {
    const rank = (percent / 100) * (total - 1), share = rank - Math.floor(rank);
    const below = ranked(Math.floor(rank)), above = ranked(Math.ceil(rank));
    return share < 0.5 ? below + (above - below) * share : above - (above - below) * (1 - share);
  });
  return low < high ? [low, high] : [ranked(0), ranked(total - 1)];
}

// ------------------------------------------------------------------------------------------------ DICOM

const TAGS = {
  modality: 0x00080060, sopClass: 0x00080016, mediaClass: 0x00020002, syntax: 0x00020010, age: 0x00101010,
  view: 0x00185101, orientation: 0x00200020, samples: 0x00280002, interpretation: 0x00280004,
  planar: 0x00280006, frames: 0x00280008, rows: 0x00280010, columns: 0x00280011, allocated: 0x00280100,
  stored: 0x00280101, highBit: 0x00280102, signed: 0x00280103, padding: 0x00280120, paddingEnd: 0x00280121,
  centre: 0x00281050, width: 0x00281051, intercept: 0x00281052, slope: 0x00281053, voiFunction: 0x00281056,
  modalityTable: 0x00283000, voiTable: 0x00283010, descriptor: 0x00283002, entries: 0x00283006,
  pixels: 0x7fe00010,
};
const SYNTAXES = "1.2.840.10008.1.2", READABLE = ["", ".1", ".4.50", ".4.51"]; // plain, or JPEG
const UNREADABLE = {
  ".2": "big-endian", ".1.99": "deflated", ".5": "RLE", ".4.57": "lossless JPEG", ".4.70": "lossless JPEG",
  ".4.80": "JPEG-LS", ".4.81": "JPEG-LS", ".4.90": "JPEG 2000", ".4.91": "JPEG 2000",
};
const LONG = "OB OD OF OL OV OW SQ SV UC UN UR UT UV".split(" "); // lengths of 32 bits
const { lateral, modalities, others, radiographs, unseen } = settings.dicom;

/** Say whether a file begins like DICOM, or with an element of its first two groups in either byte order. */
const isDicom = (bytes) => begins(bytes, "DICM", 128) || (bytes.length > 3 && [0, 1].some((low) =>
  [2, 8].includes(bytes[low]) && bytes[1 - low] === 0 && bytes[3 - low] < 16));

/**
 * Read little-endian elements into {tag: bytes, or a list}, and return where they end. `explicit`: they name
 * their types; else the first one behind the meta header shows it, because some files say it wrongly.
 */
function readElements(bytes, at, end, elements, explicit = null) {
  const view = viewOf(bytes);
  while (at + 8 <= end) {
    const group = view.getUint16(at, true), tag = group * 65536 + view.getUint16(at + 2, true);
    const representation = latin(bytes.subarray(at + 4, at + 6));
    if (group !== 2) explicit ??= /[A-Z]{2}/.test(representation);
    let length = view.getUint32(at + 4, true), inside = explicit;
    let isSequence = tag === TAGS.modalityTable || tag === TAGS.voiTable;
    at += 8;
    if (tag === 0xfffee00d || tag === 0xfffee0dd) break; // the end of an item or of a sequence
    if (group === 2 || explicit) {
      length = view.getUint16(at - 2, true);
      if (LONG.includes(representation)) {
        length = view.getUint32(at, true);
        at += 4;
      }
      isSequence = representation === "SQ";
      inside = representation !== "UN";
    }
    const open = length === 0xffffffff; // until a delimiter
    const stop = open ? end : Math.min(end, at + length);
    if (!isSequence && !open) {
      elements[tag] = bytes.subarray(at, stop);
      at = stop;
      continue;
    }
    elements[tag] = []; // data sets of a sequence, or fragments of the pixels
    while (at + 8 <= stop) {
      const isItem = view.getUint16(at + 2, true) === 0xe000, size = view.getUint32(at + 4, true);
      const last = size === 0xffffffff ? stop : Math.min(stop, at + 8 + size);
      at += 8;
      if (!isItem) break;
      const item = tag === TAGS.pixels ? bytes.subarray(at, last) : {};
      const next = tag === TAGS.pixels ? last : readElements(bytes, at, last, item, inside);
      at = size === 0xffffffff ? next : last;
      elements[tag].push(item);
    }
    at = open ? at : stop;
  }
  return at;
}

/** Return the values of a text. */
function textsOf(elements, name) {
  const value = elements[TAGS[name]];
  return value instanceof Uint8Array ? latin(value.subarray(0, 1024)).replace(/\0/g, "").split("\\") : [];
}

const textOf = (elements, name) => (textsOf(elements, name)[0] ?? "").trim().toUpperCase();
const decimalsOf = (elements, name) =>
  textsOf(elements, name).map((text) => (text.trim() ? Number(text) : NaN));

const decimalOf = (elements, name, otherwise = 0) =>
  decimalsOf(elements, name).slice(0, 1).find(Number.isFinite) ?? otherwise;

/** Return a 16-bit number without sign. */
function wordOf(elements, name, otherwise = 0) {
  const value = elements[TAGS[name]];
  return value instanceof Uint8Array && value.length > 1 ? viewOf(value).getUint16(0, true) : otherwise;
}

/** Decode one image: modality table, then window or table of values, then the polarity; see data/dicom.py. */
async function decodeDicom(bytes) {
  const start = begins(bytes, "DICM", 128) ? 132 : 0, elements = {}; // a preamble may be missing
  try {
    readElements(bytes, start, bytes.length, elements);
  } catch { throw new Error("damaged, or without a tag that describes the pixels"); }
  const modality = textOf(elements, "modality"), syntax = textOf(elements, "syntax").replace(SYNTAXES, "");
  let data = elements[TAGS.pixels];
  if (!data && unseen.includes(modality)) {
    throw new NotAFrontalImage(`modality ${modality}, without an image`);
  }
  if (!data && !(syntax in UNREADABLE)) throw new Error("truncated, or without pixel data");
  const frames = decimalOf(elements, "frames", 1);
  if (frames > 1) throw new NotAFrontalImage(`${frames} frames, not one image`);
  const unread = (name) =>
    new Error(`stored in a way that this page cannot read (${name}); convert it to PNG`);
  if (syntax && !READABLE.includes(syntax)) throw unread(UNREADABLE[syntax] || "unknown");
  const [rows, columns, bits] = ["rows", "columns", "allocated"].map((name) => wordOf(elements, name));
  if (!(rows && columns && bits)) throw new Error("damaged (Rows, Columns or BitsAllocated is missing)");
  checkSize(columns, rows);
  const samples = wordOf(elements, "samples") || 1, interpretation = textOf(elements, "interpretation");
  if (bits !== 8 && bits !== 16) throw new NotAFrontalImage("not one image of at most 16 bits");
  const isMixed = interpretation.startsWith("YBR") && !Array.isArray(data); // brightness and two colours
  if (![1, 3].includes(samples) || interpretation === "PALETTE COLOR" || (samples === 3 && isMixed)) {
    throw new Error("a kind of colour image that this page cannot read");
  }
  let decoded = null;
  if (Array.isArray(data)) {
    const encoded = new Uint8Array(await new Blob(data.slice(1)).arrayBuffer()), header = jpegHeader(encoded);
    if (header.width !== columns || header.height !== rows) {
      throw new Error("damaged (the compressed image has another size than the header says)");
    }
    if (header.depth !== 8) throw unread("JPEG of 12 bits");
    if (header.channels !== samples || bits !== 8) {
      throw new Error("damaged (the compressed image has other channels or bits than the header says)");
    }
    for (const [marker, start] of jpegSegments(encoded)) { // EXIF data must not turn an image of DICOM
      if (marker === 0xda) break;
      if (marker === 0xe1) encoded[start] = 0;
    }
    decoded = await decodeInBrowser(encoded, "image/jpeg");
    data = decoded.pixels;
  }
  const length = rows * columns * (decoded ? 1 : samples), size = bits / 8;
  const missing = length * size - data.length;
  if (missing > 0) throw new Error(`truncated (pixel data too short by ${number(missing)} bytes)`);
  const type = wordOf(elements, "signed") === 1 ? [Int8Array, Int16Array] : [Uint8Array, Uint16Array];
  const stored = new type[size - 1](data.slice(0, length * size).buffer);
  if (samples === 1) decoded = image(columns, rows, showStored(elements, stored, bits));
  if (!decoded) {
    const area = rows * columns, values = toGrey(stored), grey = new Uint8Array(area);
    const colour = { sum: 0, blocks: 0 }, isPlanar = wordOf(elements, "planar") === 1;
    const mixed = isPlanar ? values.map((_, i) => values[(i % 3) * area + Math.floor(i / 3)]) : values;
    toLuma(mixed, 3, columns, rows, grey, colour);
    decoded = image(columns, rows, grey, colour);
  }
  const problem = decoded.problem || notFrontal(elements);
  return { ...decoded, problem, outside: outsidePopulation(elements) };
}

function showStored(elements, stored, bits) {
  let used = wordOf(elements, "stored");
  if (!(used >= 1 && used <= bits)) used = bits;
  const unused = wordOf(elements, "highBit") + 1 - used; // bits below those in use
  const above = 32 - Math.min(bits, used + Math.max(unused, 0)); // bits above them, of numbers of 32 bits
  const isSigned = wordOf(elements, "signed") === 1;
  stored = stored.map((value) => (isSigned ? (value << above) >> above : (value << above) >>> above));
  if (unused > 0 && unused < 16 && stored.every((value) => !(value & (2 ** unused - 1)))) {
    stored = stored.map((value) => value >> unused);
  }
  const [lowest, highest] = [Math.min, Math.max].map((end) => stored.reduce((a, b) => end(a, b)));
  let values = Float64Array.from({ length: highest - lowest + 1 }, (_, i) => lowest + i); // mapped once each
  const modalityTable = tableOf(elements, "modalityTable"), voiTable = tableOf(elements, "voiTable");
  const slope = decimalOf(elements, "slope", 1) || 1, intercept = decimalOf(elements, "intercept");
  values = modalityTable ? lookUp(modalityTable, values) : values.map((value) => value * slope + intercept);
  let shares;
  if (voiTable) {
    const sorted = voiTable.entries.toSorted(), white = sorted[sorted.length - 1]; // a typed array: by value
    const usual = between(sorted, 0.995 * (sorted.length - 1)); // an entry far above it is none
    const most = white <= 1.5 * usual || !usual ? white : usual;
    shares = lookUp(voiTable, values).map((value) => value / most);
  } else shares = applyWindow(elements, values) || applyRange(elements, stored, lowest, values);
  const isInverted = textOf(elements, "interpretation") === "MONOCHROME1";
  if (isInverted) shares = shares.map((share) => 1 - clip(share, 0, 1));
  return translate(stored, shares.map(grey8), lowest);
}

/** Return the value at a place between two entries. */
const between = (values, place) =>
  values[Math.floor(place)] + (values[Math.ceil(place)] - values[Math.floor(place)]) * (place % 1);

/** Return the first possible lookup table of a sequence: the first mapped value and the entries. */
function tableOf(elements, name) {
  for (const item of Array.isArray(elements[TAGS[name]]) ? elements[TAGS[name]] : []) {
    const descriptor = item[TAGS.descriptor], data = item[TAGS.entries];
    if (!(descriptor?.length >= 6 && data instanceof Uint8Array)) continue;
    const count = wordOf(item, "descriptor") || 65536, first = viewOf(descriptor).getUint16(2, true);
    const packed = data.length === count || data.length === count + 1; // one byte for each entry
    const stored = packed ? data : new Uint16Array(data.slice(0, data.length & ~1).buffer);
    const entries = Float64Array.from(stored.subarray(0, count));
    if (entries.length > 0.9 * count && entries.some((entry) => entry !== entries[0])) {
      return { first: first > 32767 && wordOf(elements, "signed") === 1 ? first - 65536 : first, entries };
    }
  }
  return null;
}

function lookUp({ first, entries }, values) {
  const start = first > 32767 && values.some((value) => value < 0) ? first - 65536 : first;
  return values.map((value) => entries[clip(rint(value - start), 0, entries.length - 1)]);
}

/** Map values with the first possible window (PS3.3 C.11.2.1.2) to 0-1; null without one. */
function applyWindow(elements, values) {
  const voiFunction = textOf(elements, "voiFunction"), widths = decimalsOf(elements, "width");
  const linear = !["SIGMOID", "LINEAR_EXACT"].includes(voiFunction);
  for (const [i, centre] of decimalsOf(elements, "centre").entries()) {
    const width = widths[i];
    if (!Number.isFinite(centre) || !Number.isFinite(width) || width <= 0 || (width < 1 && linear)) continue;
    const [start, range] = linear ? [centre - 0.5, Math.max(width - 1, 1e-9)] : [centre, width];
    const shares = values.map((value) => (voiFunction === "SIGMOID"
      ? 1 / (1 + Math.exp(clip((-4 * (value - centre)) / width, -60, 60)))
      : clip((value - start) / range + 0.5, 0, 1)));
    const differs = (array) => array.some((value) => value !== array[0]);
    if (differs(shares) || !differs(values)) return shares; // the window contains some of the values
  }
  return null;
}

/** Map the range from the 0.5th to the 99.5th percentile, without padding, to 0-1. */
function applyRange(elements, stored, lowest, values) {
  let counts = new Uint32Array(values.length);
  for (const value of stored) counts[value - lowest]++;
  if (elements[TAGS.padding]) {
    const padding = wordOf(elements, "padding"), other = wordOf(elements, "paddingEnd", padding);
    const [low, high] = new stored.constructor([padding, other]).toSorted(); // with the sign of the pixels
    const inside = counts.map((count, i) => (i + lowest < low || i + lowest > high ? count : 0));
    if (inside.some((count) => count)) counts = inside;
  }
  const [low, high] = robustRange(counts).map((place) => between(values, place));
  return values.map((value) => (value - Math.min(low, high)) / Math.max(Math.abs(high - low), 1e-9));
}

function notFrontal(elements) {
  const modality = textOf(elements, "modality");
  const sopClass = textOf(elements, "sopClass") || textOf(elements, "mediaClass");
  if (!modalities.includes(modality) && (modality || !radiographs.includes(sopClass))) {
    const name = others.includes(modality) ? modality : "unknown";
    return `modality ${name}, not one of ${modalities.join(", ")}`;
  }
  const isLateral = lateral.includes(textOf(elements, "view"));
  return isLateral || /^[AP]/.test(textOf(elements, "orientation")) ? "a lateral view" : "";
}

/** Name the properties that are known to lie outside the training population: age, view. */
function outsidePopulation(elements) {
  const { ages, views } = settings.population || {}, view = textOf(elements, "view"), outside = [];
  const age = textOf(elements, "age").match(/^(\d{1,3})([DWMY])$/);
  const years = age && Number(age[1]) * { D: 1 / 365.25, W: 7 / 365.25, M: 1 / 12, Y: 1 }[age[2]];
  if (age && ages && !(ages[0] <= years && years < ages[1])) outside.push("age");
  if (view && views && !views.includes(view)) outside.push("view");
  return outside.join(" ");
}

// --------------------------------------------------------------------------------------------- resizing

/** Cut a window [left, top, right, bottom], fractions of the sides, out of an image; it must lie inside. */
function crop({ width, height, pixels }, window) {
  const [left, top, right, bottom] = window.map((edge, i) => rint(edge * (i % 2 ? height : width)));
  const cut = new Uint8Array((right - left) * (bottom - top));
  for (let y = top; y < bottom; y++) {
    cut.set(pixels.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  }
  return { width: right - left, height: bottom - top, pixels: cut };
}

/** Shrink by averaging over areas, as OpenCV's INTER_AREA does, with its 32-bit rounding. */
function shrink({ width, height, pixels }, columns, rows) {
  if (columns === width && rows === height) return { width, height, pixels };
  const isWhole = width % columns === 0 && height % rows === 0; // then it adds whole numbers
  const isHalf = width === 2 * columns && height === 2 * rows;
  const part = Math.fround((columns * rows) / (width * height));
  const rounded = (sum) => (isHalf ? (sum + 2) >> 2 : rint(isWhole ? Math.fround(sum * part) : sum));
  const across = areas(width, columns, isWhole), down = areas(height, rows, isWhole);
  const target = new Uint8Array(columns * rows);
  const line = new Float32Array(columns), sums = new Float32Array(columns);
  for (let i = 0; i < down.target.length; i++) {
    line.fill(0);
    for (let k = 0, start = down.source[i] * width; k < across.target.length; k++) {
      line[across.target[k]] += Math.fround(pixels[start + across.source[k]] * across.weight[k]);
    }
    const share = down.weight[i], row = down.target[i];
    for (let column = 0; column < columns; column++) sums[column] += Math.fround(line[column] * share);
    if (row === down.target[i + 1]) continue;
    for (let column = 0; column < columns; column++) target[row * columns + column] = rounded(sums[column]);
    sums.fill(0);
  }
  return { width: columns, height: rows, pixels: target };
}

/** Return which source pixels contribute to each target pixel of a side that shrinks, and their weights. */
function areas(from, to, isWhole) {
  const step = from / to, target = [], source = [], weight = [];
  for (let i = 0; i < to; i++) {
    const start = i * step, end = start + step, length = Math.min(step, from - start);
    const last = Math.min(Math.floor(end), from - 1), first = Math.min(Math.ceil(start), last);
    const add = (place, share) => {
      target.push(i);
      source.push(place);
      weight.push(isWhole ? 1 : share / length);
    };
    if (first - start > 1e-3) add(first - 1, first - start);
    for (let place = first; place < last; place++) add(place, 1);
    if (end - last > 1e-3) add(last, Math.min(end - last, 1, length));
  }
  return { target: new Int32Array(target), source: new Int32Array(source), weight: new Float32Array(weight) };
}

/** Enlarge with cubic interpolation, as OpenCV's INTER_CUBIC does, with its weights of 11 bits. */
function enlarge({ width, height, pixels }, columns, rows, weightsOf = cubicWeights, sumOf = cubicSum) {
  if (columns === width && rows === height) return { width, height, pixels };
  const across = weightsOf(width, columns), down = weightsOf(height, rows);
  const lines = Int32Array.from({ length: columns * height }, (_, i) => {
    const start = Math.floor(i / columns) * width, { first, weights } = across[i % columns];
    return weights.reduce((sum, weight, k) => sum + weight * pixels[start + clip(first + k, 0, width - 1)], 0);
  });
  const target = Uint8ClampedArray.from({ length: columns * rows }, (_, i) => {
    const column = i % columns, { first, weights } = down[Math.floor(i / columns)];
    return sumOf(weights, (k) => lines[clip(first + k, 0, height - 1) * columns + column]);
  });
  return { width: columns, height: rows, pixels: new Uint8Array(target.buffer) };
}

const cubicSum = (weights, value) =>
  rint(weights.reduce((sum, weight, k) => sum + weight * value(k), 0) / 2 ** 22);

function cubicWeights(from, to) {
  return Array.from({ length: to }, (_, i) => {
    const place = Math.fround(((i + 0.5) * from) / to - 0.5), first = Math.floor(place), x = place - first;
    const near = (t) => (1.25 * t - 2.25) * t * t + 1, far = (t) => ((-0.75 * t + 3.75) * t - 6) * t + 3;
    const weights = [far(x + 1), near(x), near(1 - x)];
    weights.push(1 - weights[0] - weights[1] - weights[2]);
    return { first: first - 1, weights: weights.map((weight) => rint(weight * 2048)) };
  });
}

/** Enlarge, or change the sides, by means of two neighbours, as OpenCV's INTER_AREA does if a side grows. */
function mix(decoded, columns, rows) {
  const weightsOf = (from, to) => Array.from({ length: to }, (_, i) => {
    const first = Math.floor((i * from) / to), place = Math.fround(i + 1 - (first + 1) * (to / from));
    const share = Math.max(0, place) % 1;
    return { first, weights: [Math.fround(1 - share), share].map((weight) => rint(2048 * weight)) };
  });
  const sumOf = (weights, value) =>
    (weights.reduce((sum, weight, k) => sum + (((value(k) >> 4) * weight) >> 16), 0) + 2) >> 2;
  return enlarge(decoded, columns, rows, weightsOf, sumOf);
}

/** Return the pixels that the network gets, size × size, from the part of the image that it sees. */
function fit(decoded, window) {
  const { size, resize } = settings.image;
  const cut = resize === "lung_box" ? crop(decoded, window) : decoded, { width, height } = cut;
  const longer = Math.max(width, height), scaled = (side) => Math.max(1, rint((side * size) / longer));
  const [columns, rows] = resize === "letterbox" ? [scaled(width), scaled(height)] : [size, size];
  const { pixels } = enlarge(shrink(cut, Math.min(width, columns), Math.min(height, rows)), columns, rows);
  const left = Math.floor((size - columns) / 2), top = Math.floor((size - rows) / 2);
  return Uint8Array.from({ length: size * size }, (_, i) => { // outside the image its edge is repeated
    const x = clip((i % size) - left, 0, columns - 1), y = clip(Math.floor(i / size) - top, 0, rows - 1);
    return pixels[y * columns + x];
  });
}

// ---------------------------------------------------------------------------------------------- network

let ort, network, lungNetwork;

const missing = (name) => new Error(`${name} is missing, or is not the file that this page was made with`);

async function load(name) {
  const { url, integrity } = settings.files[name];
  const response = await fetch(url, { integrity }).catch(() => null);
  if (!response?.ok) throw missing(name);
  return response.arrayBuffer();
}

async function openNetwork(name) {
  const content = new Uint8Array(await load(name));
  return ort.InferenceSession.create(content, { executionProviders: ["wasm"] })
    .catch(() => { throw new Error(`${name} cannot be loaded`); });
}

/** Load runtime and networks, and compare the result of a drawn image with that of the card. */
async function start() {
  ort = await import("ort").catch(() => { throw missing("ONNX Runtime Web (from the internet, or copied by --runtime)"); });
  ort.env.wasm.numThreads = 1; // static hosts do not send the headers that threads need
  ort.env.wasm.wasmBinary = await load("ort-wasm-simd-threaded.wasm");
  network = await openNetwork("model.onnx");
  if (settings.image.resize === "lung_box") lungNetwork = await openNetwork("lungs.onnx");
  const pixels = Uint8Array.from({ length: 300 * 400 }, (_, i) => {
    const x = i % 400, y = Math.floor(i / 400);
    return clip(40 + 0.35 * x + 45 * Math.cos(Math.hypot(x - 150, y - 120) / 6), 0, 255);
  });
  const expected = settings.self_test, { logit } = await score(image(400, 300, pixels));
  if (!(Math.abs(logit - expected) <= 0.01 * Math.max(1, Math.abs(expected)))) {
    throw new Error(`self-test failed: logit ${logit.toFixed(4)} instead of ${expected.toFixed(4)}`);
  }
}

/** Estimate the box of both lungs with a small margin, in fractions; the whole image if it is implausible. */
async function lungWindow(decoded) {
  const small = (Math.min(decoded.width, decoded.height) < 64 ? mix : shrink)(decoded, 64, 64).pixels;
  const input = new ort.Tensor("float32", Float32Array.from(small), [1, 1, 64, 64]);
  const { box } = await lungNetwork.run({ image: input });
  const edges = Array.from(box.data, (edge) => clip(edge / 256, 0, 1));
  const sides = [edges[2] - edges[0], edges[3] - edges[1]], shorter = Math.min(...sides);
  if (shorter < 0.3 || Math.max(...sides) > 2.5 * shorter) return [0, 0, 1, 1];
  return edges.map((edge, i) => clip(edge + 0.02 * sides[i % 2] * (i < 2 ? -1 : 1), 0, 1));
}

/** Score a decoded image: window, pixels, logit, calibrated probability, measures, reason of refusal, map. */
async function score(decoded) {
  const { size, resize } = settings.image, { width, height } = decoded;
  const margin = (side) => (resize === "letterbox" ? (Math.max(width, height) / side - 1) / 2 : 0);
  const [across, down] = [width, height].map(margin), plain = [-across, -down, 1 + across, 1 + down];
  const window = resize === "lung_box" ? await lungWindow(decoded) : plain;
  const pixels = fit(decoded, window);
  const input = new ort.Tensor("float32", Float32Array.from(pixels), [1, size, size, 1]);
  const outputs = await network.run({ image: input });
  const [logit, brightness, contrast, sharpness, likeness, ...turned] = outputs.measures.data;
  const { slope, intercept } = settings.calibration, distance = outputs.distance.data[0];
  const measures = { brightness, contrast, sharpness, likeness, distance };
  const probability = 1 / (1 + Math.exp(-(slope * logit + intercept)));
  const [, rows, columns] = outputs.map?.dims || [];
  const map = outputs.map && { rows, columns, values: outputs.map.data.map((value) => Math.max(0, value)) };
  return { window, pixels, logit, probability, measures, reason: refusal(measures, turned), map };
}

/** Say why an image is refused; empty if it is accepted. */
function refusal({ contrast, likeness, distance }, turned) {
  const { least_likeness: least, least_margin: margin, most_distance: most, turns } = settings.check;
  const best = Math.max(...turned);
  if (contrast < FLAT_BELOW) return "shows nothing: all pixels are nearly equal";
  if (likeness - best < margin && best >= least) return `looks ${turns[turned.indexOf(best)]}`;
  if (likeness < least) {
    const limits = `${likeness.toFixed(2)}, at least ${least.toFixed(2)}`;
    return `does not look like a frontal chest image (correlation with the mean ${limits})`;
  }
  if (distance <= most) return "";
  return `unlike the training images (distance ${distance.toFixed(1)}, at most ${most.toFixed(1)})`;
}

/** Decode and score a file: a row with status ok, refused or unreadable, and the reason as `problem`. */
async function classify(file) {
  const row = { path: file.name, file, status: "ok", problem: "", outside: "" };
  try {
    const decoded = await decode(file), scored = await score(decoded);
    Object.assign(row, scored, { outside: decoded.outside, problem: decoded.problem || scored.reason });
    row.preview = preview(decoded);
    if (row.problem) row.status = "refused";
  } catch (error) {
    const isNamed = error instanceof NotAFrontalImage || error.constructor === Error;
    row.status = error instanceof NotAFrontalImage ? "refused" : "unreadable";
    row.problem = isNamed ? error.message : "damaged"; // a damaged file can fail in any way
  }
  return row;
}

/** Shrink an image to what the table shows: 224 pixels high, in its own aspect ratio. */
function preview(decoded) {
  const { width, height } = decoded, scale = Math.min(1, 224 / height, 672 / width);
  return shrink(decoded, Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
}

// --------------------------------------------------------------------------------------------- decision

/** Decide at a threshold: class name and triage group, unless the image is refused or unreadable. */
function decide(row, rule) {
  if (row.status !== "ok") return { decision: "", group: "" };
  const positive = row.probability >= settings.thresholds[rule], { rule_in, rule_out } = settings.triage;
  const group = positive ? row.probability >= rule_in && "rule_in" : row.probability < rule_out && "rule_out";
  return { decision: settings.classes[Number(positive)], group: group || "refer" };
}

/** Return the table as CSV, with the columns of `chestxray predict --output` except `seen`. */
function csv(rows, rule) {
  const names = ["brightness", "contrast", "sharpness", "likeness", "distance"];
  const lines = [["path", "status", "probability", "decision", "problem", "outside", "logit", ...names]];
  for (const row of rows) {
    const { decision } = decide(row, rule), probability = row.status === "ok" ? row.probability : "";
    const path = row.path.replace(/^[=+\-@]/, "'$&"); // else a spreadsheet takes it for a formula
    const line = [path, row.status, probability, decision, row.problem, row.outside, row.logit ?? ""];
    lines.push([...line, ...names.map((name) => row.measures?.[name] ?? "")]);
  }
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  return lines.map((line) => line.map(quoted).join(",") + "\r\n").join("");
}

// ------------------------------------------------------------------------------------------------- page

const byId = (id) => document.getElementById(id);
const [body, rule, viewer] = ["rows", "rule", "viewer"].map(byId);
const INFERNO = [[0, 0, 4], [22, 11, 57], [66, 10, 104], [106, 23, 110], [147, 38, 103], [188, 55, 84],
  [221, 81, 58], [243, 120, 25], [252, 165, 10], [246, 215, 70], [252, 255, 164]];
const STATUSES = ["ok", "refused", "unreadable"];
const rows = [], waiting = [];
let shown = null, running = true, removals = 0; // it runs from the end of loading

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function grayCanvas({ width, height, pixels }) {
  const canvas = element("canvas", { width, height }), context = canvas.getContext("2d");
  const colours = context.createImageData(width, height), words = new Uint32Array(colours.data.buffer);
  for (let i = 0; i < pixels.length; i++) words[i] = 0xff000000 | (pixels[i] * 0x010101); // opaque
  context.putImageData(colours, 0, 0);
  return canvas;
}

/** Image with its map, one canvas over the other; the browser enlarges the map smoothly. */
function framed(row, decoded) {
  const frame = element("span", { className: "frame" }, grayCanvas(decoded));
  if (row.map && row.status === "ok") {
    const [left, top, right, bottom] = row.window.map((edge) => `${100 * edge}%`);
    const canvas = element("canvas", { className: "map", width: row.map.columns, height: row.map.rows });
    const sides = { width: `calc(${right} - ${left})`, height: `calc(${bottom} - ${top})` };
    Object.assign(canvas.style, { left, top, ...sides });
    frame.append(canvas);
    paintMap(row, canvas);
  }
  return frame;
}

/** Colour a map on one scale for all images of the table; it is transparent where it is 0. */
function paintMap(row, canvas) {
  const peaks = rows.map((other) => (other.status === "ok" ? other.peak : 0));
  const strongest = Math.max(1e-9, row.peak, ...peaks);
  const context = canvas.getContext("2d"), colours = context.createImageData(canvas.width, canvas.height);
  row.map.values.forEach((value, i) => {
    const place = (value / strongest) * (INFERNO.length - 1);
    const from = Math.min(INFERNO.length - 2, Math.floor(place));
    const mixed = INFERNO[from].map((low, c) => low + (INFERNO[from + 1][c] - low) * (place - from));
    colours.data.set([...mixed, 255 * Math.sqrt(value / strongest)], 4 * i);
  });
  context.putImageData(colours, 0, 0);
}

/** Make the line of an image in the table. */
function makeLine(row) {
  row.peak = row.map ? Math.max(...row.map.values) : 0;
  row.result = element("td", { role: "cell" }); // roles, because narrow pages lay tables out in another way
  const name = element("th", { scope: "row", role: "rowheader", textContent: row.path });
  row.line = element("tr", { role: "row" }, element("td", { role: "cell" }), name, row.result);
  if (row.preview) {
    const button = element("button", { type: "button", className: "open", ariaLabel: `Enlarge ${row.path}` });
    button.append(framed(row, row.preview));
    button.addEventListener("click", () => enlargeRow(row));
    row.line.firstChild.append(button);
  }
}

/** Write what has been decided about an image; `place` is the result cell or the viewer's text. */
function describe(row, place) {
  const { decision, group } = decide(row, rule.value), threshold = settings.thresholds[rule.value];
  if (row.status === "ok") {
    const bar = element("span", { className: "bar", role: "img" });
    bar.ariaLabel = `probability ${row.probability.toFixed(3)}, threshold ${threshold.toFixed(3)}`;
    bar.style.setProperty("--probability", row.probability);
    bar.style.setProperty("--threshold", threshold);
    const probability = element("strong", { textContent: row.probability.toFixed(3) });
    place.replaceChildren(probability, ` ${decision}, ${settings.groups[group]}`, bar);
    place.dataset.decision = decision === settings.classes[1] ? "positive" : "negative";
  } else {
    place.replaceChildren(element("strong", { textContent: row.status }), ` ${row.problem}`);
    place.dataset.decision = row.status;
  }
  const outside = `Outside the training population: ${row.outside.replace(" ", ", ")}.`;
  if (row.outside) place.append(element("span", { className: "hint", textContent: outside }));
}

/** Sort and write the table: most suspicious first, then refused and unreadable images. */
function render() {
  const rank = (row) => (row.status === "ok" ? -row.probability : STATUSES.indexOf(row.status));
  rows.sort((a, b) => rank(a) - rank(b));
  for (const row of rows) {
    describe(row, row.result);
    const map = row.line.querySelector(".map");
    if (map) paintMap(row, map);
  }
  for (const [i, { line }] of rows.entries()) { // a line that stays where it is keeps the focus
    if (body.children[i] !== line) body.insertBefore(line, body.children[i]);
  }
  while (body.children.length > rows.length) body.lastChild.remove();
  byId("results").hidden = !rows.length;
  if (shown) describe(shown, byId("viewer-text"));
}

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

/** Classify files one after the other; more may be added meanwhile. */
async function add(files) {
  waiting.push(...files);
  if (running || !waiting.length) return;
  running = true;
  let done = 0, rendered = 0;
  while (waiting.length) {
    const before = removals, row = await classify(waiting.shift());
    if (before !== removals) continue;
    makeLine(row);
    rows.push(row);
    done++;
    if (performance.now() - rendered > 500 || !waiting.length) {
      render();
      say(`${done} of ${images(done + waiting.length)} done`);
      rendered = performance.now();
      await new Promise((resume) => setTimeout(resume)); // let the browser paint
    }
  }
  running = false;
  summarise();
}

const images = (count) => `${count} image${count === 1 ? "" : "s"}`;

function summarise() {
  const count = (name) => rows.filter(({ status }) => status === name).length;
  const [ok, refused, unreadable] = STATUSES.map(count);
  const text = `${images(rows.length)}: ${ok} classified, ${refused} refused, ${unreadable} unreadable.`;
  say(rows.length ? text : "Ready.");
}

function removeAll() {
  rows.length = waiting.length = 0;
  removals++;
  render();
  summarise();
  byId("files").focus(); // the button is hidden now
}

/** Show an image in full resolution; its file is read again. */
async function enlargeRow(row) {
  shown = row;
  byId("viewer-name").textContent = row.path;
  describe(row, byId("viewer-text"));
  byId("viewer-image").replaceChildren(framed(row, row.preview));
  for (const slider of viewer.querySelectorAll(".opacity")) slider.disabled = row.status !== "ok";
  if (!viewer.open) viewer.showModal();
  const decoded = await decode(row.file, Infinity).catch(() => null); // it may have been removed
  if (decoded && shown === row) byId("viewer-image").replaceChildren(framed(row, decoded));
}

function enlargeNext(step) {
  const pictures = rows.filter((row) => row.preview);
  enlargeRow(pictures[(pictures.indexOf(shown) + step + pictures.length) % pictures.length]);
}

function setOpacity(value) {
  for (const slider of document.querySelectorAll(".opacity")) slider.value = value;
  document.documentElement.style.setProperty("--map", value / 100);
}

function download() {
  const url = URL.createObjectURL(new Blob([csv(rows, rule.value)], { type: "text/csv" }));
  element("a", { href: url, download: "predictions.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

function listen() {
  byId("files").addEventListener("change", ({ target }) => {
    add(target.files);
    target.value = ""; // the same file may be chosen again
  });
  rule.addEventListener("change", render);
  for (const slider of document.querySelectorAll(".opacity")) {
    slider.addEventListener("input", () => setOpacity(slider.value));
  }
  const steps = { previous: () => enlargeNext(-1), next: () => enlargeNext(1), close: () => viewer.close() };
  const actions = Object.entries({ download, clear: removeAll, ...steps });
  for (const [id, action] of actions) byId(id).addEventListener("click", action);
  viewer.addEventListener("close", () => { shown = null; });
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && event.target.type !== "range") enlargeNext(step);
  });
  for (const type of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(type, (event) => {
      event.preventDefault();
      byId("drop").classList.toggle("over", type === "dragover");
      if (type === "drop") add(event.dataTransfer.files);
    });
  }
}

/** From here on the browser refuses every request of this page, whatever the script would do. */
function forbidRequests() {
  const content = "default-src 'none'; style-src 'self'";
  document.head.append(element("meta", { httpEquiv: "Content-Security-Policy", content }));
}

listen();
try {
  await start();
  const samples = await Promise.all(settings.samples.map(async (name) => new File([await load(name)], name)));
  byId("samples").addEventListener("click", () => add(samples));
  forbidRequests();
  for (const control of document.querySelectorAll("[disabled]")) control.disabled = false;
  say("Ready.");
  performance.mark("ready");
  running = false;
  add([]); // files that were dropped meanwhile
} catch (error) {
  say(`This page cannot be used: ${error.message}.`, true);
}

export { classify, decode, enlarge, mix, rows, shrink }; // for the tests
