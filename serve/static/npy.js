// Clips as NumPy writes them: uint8 [N, T, H, W, 3], and a canvas that plays a mixture of two.

/** The shape and the bytes of a .npy of uint8 in C order. Throws where it is another. */
export function parse(buffer) {
  const view = new DataView(buffer);
  const wide = view.getUint8(6) > 1; // version 2 has four bytes for the header's length
  const length = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const start = (wide ? 12 : 10) + length;
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, 10, start - 10));
  const shape = /'shape': \(([\d, ]+)\)/.exec(header);
  if (!shape || !/'descr': '\|u1'/.test(header)) throw new Error("not clips of bytes");
  const sizes = shape[1].split(",").filter((word) => word.trim()).map(Number);
  return { shape: sizes, data: new Uint8Array(buffer, start) };
}

/** Plays clips on a canvas; `place` in [0, 1] goes from the first to the last of them. */
export class Walk {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.place = 0;
    this.paused = false;
    this.frame = 0;
    this.timer = 0;
  }

  show(clips, fps) {
    this.clips = clips;
    const [, , height, width] = clips.shape;
    this.canvas.width = width;
    this.canvas.height = height;
    this.image = this.context.createImageData(width, height);
    clearInterval(this.timer);
    this.timer = setInterval(() => this.step(), 1000 / fps);
    this.draw();
  }

  step() {
    if (this.paused) return;
    this.frame = (this.frame + 1) % this.clips.shape[1];
    this.draw();
  }

  draw() {
    const [count, frames, height, width] = this.clips.shape;
    const at = this.place * (count - 1);
    const low = Math.min(Math.floor(at), count - 1);
    const high = Math.min(low + 1, count - 1);
    const share = at - low;
    const size = height * width * 3;
    const a = (low * frames + this.frame) * size;
    const b = (high * frames + this.frame) * size;
    const { data } = this.clips;
    const out = this.image.data;
    for (let pixel = 0, k = 0; k < size; pixel += 4, k += 3) {
      for (let c = 0; c < 3; c += 1) {
        out[pixel + c] = data[a + k + c] * (1 - share) + data[b + k + c] * share;
      }
      out[pixel + 3] = 255;
    }
    this.context.putImageData(this.image, 0, 0);
  }
}
