// The three ways to compute an automaton's steps. Each has the same functions: `write(cells, rows, columns)` sets the grid,
// `step(mask)` takes one step, `read(first, count)` returns some channels of the grid, by default all of them, `close()` frees the
// device. Grids are (rows, columns, channels). `mask` holds a factor for each cell's change, or is null.

// Bits that say what follows a layer's sums. A mask applies before the addition.
const ELU = 1, ADD = 2, MASK = 4;
// Cells of a model's full grid.
const area = model => model.grid[0] * model.grid[1];
const flags = (layer, masked = false) => (layer.elu ? ELU : 0) | (layer.add ? ADD : 0) | (masked ? MASK : 0);
// Milliseconds of work between two frames.
const SLICE = 12;

// Lets the browser draw and react, without the delay of a timer.
const pause = (() => {
  const channel = new MessageChannel(), waiting = [];
  channel.port1.onmessage = () => waiting.shift()();
  return () => new Promise(done => { waiting.push(done); channel.port2.postMessage(0); });
})();

function decode(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

// f16 numbers to f32, by a table.
function halves(bytes) {
  const table = new Float32Array(65536);
  for (let i = 0; i < 65536; i++) {
    const exponent = (i >> 10) & 31, fraction = i & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24
      : exponent === 31 ? (fraction ? NaN : Infinity) : (1 + fraction / 1024) * 2 ** (exponent - 15);
    table[i] = i >> 15 ? -size : size;
  }
  return Float32Array.from(new Uint16Array(bytes.buffer), bits => table[bits]);
}

// The WebAssembly of the page. It also draws random numbers, and runs the encoder.
class Kernel {
  static async open(bytes, weights, model) {
    const { instance } = await WebAssembly.instantiate(bytes, {});
    const kernel = new Kernel();
    kernel.api = instance.exports;
    kernel.weights = kernel.buffer(weights.length);
    kernel.view(kernel.weights, weights.length).set(weights);
    const sizes = [...model.encoder ?? [], ...model.decoder ?? []].flatMap(({ in: a, out: b }) => [a, b].map(([h, w, c]) => h * w * c));
    const most = Math.max(...sizes, TRIAL[0] * TRIAL[1] * model.channels, area(model));
    kernel.scratch = [kernel.buffer(most), kernel.buffer(most)];
    return kernel;
  }
  buffer(length) { return this.api.buffer(length); }
  view(buffer, length) { return new Float32Array(this.api.memory.buffer, this.api.address(buffer), length); }
  split([high, low], i) {
    const words = BigInt.asUintN(64, this.api.split(high, low, i));
    return [Number(words >> 32n), Number(words & 0xffffffffn)];
  }
  normal([high, low], count) {
    this.api.normal(high, low, count, this.scratch[0]);
    return this.view(this.scratch[0], count).slice();
  }
  bernoulli([high, low], count, probability) {
    this.api.bernoulli(high, low, count, probability, this.scratch[0]);
    return this.view(this.scratch[0], count).slice();
  }
  conv(layer, from, to, first, last, mask = -1) {
    this.api.conv(from, to, this.weights, layer.weight, layer.bias, ...layer.in, ...layer.out, layer.kernel, layer.stride,
      layer.dilation, layer.low, flags(layer), mask, first, last);
  }
  // A list of layers, one after the other, as the encoder.
  run(layers, input) {
    let [from, to] = this.scratch;
    this.view(from, input.length).set(input);
    for (const layer of layers) {
      this.conv(layer, from, to, 0, layer.out[0]);
      [from, to] = [to, from];
    }
    const [height, width, channels] = layers[layers.length - 1].out;
    return this.view(from, height * width * channels).slice();
  }
}

// `count` channels of cells that have `stride` numbers each.
function part(cells, stride, first, count) {
  const out = new Float32Array(cells.length / stride * count);
  for (let from = first, to = 0; to < out.length; from += stride)
    for (let c = 0; c < count; c++) out[to++] = cells[from + c];
  return out;
}

class Wasm {
  static name = 'wasm';
  static title = 'WebAssembly';
  static async open(model, weights, kernel) {
    const wasm = new Wasm();
    Object.assign(wasm, { model, kernel, rows: 0, columns: 0 });
    wasm.slots = [0, 1, 2].map(() => kernel.buffer(area(model) * model.width));
    wasm.mask = kernel.buffer(area(model));
    return wasm;
  }
  write(cells, rows, columns) {
    Object.assign(this, { rows, columns });
    this.kernel.view(this.slots[0], cells.length).set(cells);
  }
  async step(mask) {
    const { kernel, rows, columns } = this;
    if (mask) kernel.view(this.mask, mask.length).set(mask);
    let began = performance.now();
    for (const [i, layer] of this.model.cell.entries()) {
      const grid = { ...layer, in: [rows, columns, layer.in], out: [rows, columns, layer.out] };
      const some = Math.max(1, Math.floor(1.6e7 / (columns * layer.kernel ** 2 * layer.in * layer.out)));
      const masked = mask && i === this.model.cell.length - 1 ? this.mask : -1;
      for (let row = 0; row < rows; row += some) {
        kernel.conv(grid, this.slots[layer.from], this.slots[layer.to], row, Math.min(rows, row + some), masked);
        if (performance.now() - began > SLICE) {
          await pause();
          began = performance.now();
        }
      }
    }
  }
  async read(first = 0, count = this.model.channels) {
    const { channels } = this.model, cells = this.kernel.view(this.slots[0], this.rows * this.columns * channels);
    return count === channels ? cells.slice() : part(cells, channels, first, count);
  }
  close() {}
}

const VERTEX = `#version 300 es
void main() { gl_Position = vec4(vec2[3](vec2(-1, -1), vec2(3, -1), vec2(-1, 3))[gl_VertexID], 0, 1); }`;

const FRAGMENT = `#version 300 es
precision highp float; precision highp int; precision highp sampler2D;
uniform sampler2D cells, old, weights, mask;
uniform int rows, columns, layers, size, weightAt, biasAt, flags;
out vec4 result;
vec4 weight(int i) { return texelFetch(weights, ivec2(i & 2047, i >> 11), 0); }
void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  int layer = at.y / rows, y = at.y - layer * rows, x = at.x, low = (size - 1) / 2, taps = size * size;
  vec4 sum = weight(biasAt + layer);
  for (int tap = 0; tap < taps; tap++) {
    ivec2 from = ivec2(x + tap % size - low, y + tap / size - low);
    if (from.x < 0 || from.y < 0 || from.x >= columns || from.y >= rows) continue;
    int w = weightAt + ((layer >> 1) * taps + tap) * layers * 8 + (layer & 1);
    for (int i = 0; i < layers; i++, w += 8) {
      vec4 v = texelFetch(cells, ivec2(from.x, i * rows + from.y), 0);
      sum += v.x * weight(w) + v.y * weight(w + 2) + v.z * weight(w + 4) + v.w * weight(w + 6);
    }
  }
  if ((flags & 1) != 0) sum = mix(exp(min(sum, 0.0)) - 1.0, sum, vec4(greaterThan(sum, vec4(0))));
  if ((flags & 4) != 0) sum *= texelFetch(mask, ivec2(x, y), 0).x;
  if ((flags & 2) != 0) sum += texelFetch(old, at, 0);
  result = sum;
}`;

// Four channels are a texel. The layers of four channels lie below each other in one texture.
class WebGl {
  static name = 'webgl2';
  static title = 'WebGL2';
  static async open(model, weights) {
    const canvas = document.createElement('canvas');
    const gl = canvas.getContext('webgl2', { failIfMajorPerformanceCaveat: false });
    if (!gl || !gl.getExtension('EXT_color_buffer_float')) return null;
    const [full, width] = model.grid, height = full * model.width / 4, rows = Math.ceil(weights.length / 8192);
    if (Math.max(height, rows) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
    const self = new WebGl();
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
    gl.useProgram(program);
    const names = ['cells', 'old', 'weights', 'mask', 'rows', 'columns', 'layers', 'size', 'weightAt', 'biasAt', 'flags'];
    const at = Object.fromEntries(names.map(name => [name, gl.getUniformLocation(program, name)]));
    names.slice(0, 4).forEach((name, unit) => gl.uniform1i(at[name], unit));
    Object.assign(self, { model, gl, at, rows: 0, columns: 0, frame: gl.createFramebuffer() });
    gl.bindFramebuffer(gl.FRAMEBUFFER, self.frame);
    const padded = new Float32Array(rows * 8192);
    padded.set(weights);
    self.weights = self.texture(2048, rows, padded);
    // Each slot has a second texture, because a pass cannot read the texture that it writes.
    self.slots = [0, 1, 2].map(() => [self.texture(width, height), self.texture(width, height)]);
    self.mask = self.texture(width, full, null, gl.R32F, gl.RED);
    return gl.getError() ? null : self;
  }
  texture(width, height, data = null, inside = this.gl.RGBA32F, format = this.gl.RGBA) {
    const { gl } = this, texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.texImage2D(gl.TEXTURE_2D, 0, inside, width, height, 0, format, gl.FLOAT, data);
    return texture;
  }
  write(cells, rows, columns) {
    const { gl, model: { channels } } = this, pixels = rows * columns, layers = new Float32Array(cells.length);
    Object.assign(this, { rows, columns });
    // From (y, x, channel) to (layer, y, x, channel of four).
    for (let pixel = 0, from = 0; pixel < pixels; pixel++)
      for (let c = 0; c < channels; c++) layers[((c >> 2) * pixels + pixel) * 4 + (c & 3)] = cells[from++];
    gl.bindTexture(gl.TEXTURE_2D, this.slots[0][0]);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, columns, rows * channels / 4, gl.RGBA, gl.FLOAT, layers);
  }
  async step(mask) {
    const { gl, at, rows, columns, slots } = this, last = this.model.cell.length - 1;
    const bind = (unit, texture) => { gl.activeTexture(gl.TEXTURE0 + unit); gl.bindTexture(gl.TEXTURE_2D, texture); };
    if (mask) {
      bind(3, this.mask);
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, columns, rows, gl.RED, gl.FLOAT, mask);
    }
    bind(2, this.weights);
    gl.uniform1i(at.rows, rows);
    gl.uniform1i(at.columns, columns);
    this.model.cell.forEach((layer, i) => {
      const to = slots[layer.to];
      bind(0, slots[layer.from][0]);
      bind(1, to[0]);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, to[1], 0);
      gl.viewport(0, 0, columns, rows * layer.out / 4);
      gl.uniform1i(at.layers, layer.in / 4);
      gl.uniform1i(at.size, layer.kernel);
      gl.uniform1i(at.weightAt, layer.weight / 4);
      gl.uniform1i(at.biasAt, layer.bias / 4);
      gl.uniform1i(at.flags, flags(layer, mask && i === last));
      gl.drawArrays(gl.TRIANGLES, 0, 3);
      to.reverse();
    });
  }
  async read(first = 0, count = this.model.channels) {
    const { gl, rows, columns } = this, pixels = rows * columns, out = new Float32Array(pixels * count);
    const low = first >> 2, layers = ((first + count + 3) >> 2) - low, values = new Float32Array(layers * pixels * 4);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.slots[0][0], 0);
    gl.readPixels(0, low * rows, columns, layers * rows, gl.RGBA, gl.FLOAT, values);
    for (let pixel = 0, to = 0; pixel < pixels; pixel++)
      for (let c = first; c < first + count; c++) out[to++] = values[(((c >> 2) - low) * pixels + pixel) * 4 + (c & 3)];
    return out;
  }
  close() { this.gl.getExtension('WEBGL_lose_context')?.loseContext(); }
}

// A thread computes four channels of four cells.
const COMPUTE = `
struct Layer { rows: u32, columns: u32, inputs: u32, outputs: u32, size: u32, weight: u32, bias: u32, flags: u32 }
@group(0) @binding(0) var<uniform> layer: Layer;
@group(0) @binding(1) var<storage, read> weights: array<vec4f>;
@group(0) @binding(2) var<storage, read> cells: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> result: array<vec4f>;
@group(0) @binding(4) var<storage, read> mask: array<f32>;
@compute @workgroup_size(8, 8) fn main(@builtin(global_invocation_id) id: vec3u) {
  let rows = i32(layer.rows);
  let columns = i32(layer.columns);
  let pixels = rows * columns;
  let first = i32(id.y) * 4;
  if (id.x >= layer.outputs || first >= pixels) { return; }
  let low = (i32(layer.size) - 1) / 2;
  let taps = i32(layer.size * layer.size);
  let bias = weights[layer.bias + id.x];
  var sums = array<vec4f, 4>(bias, bias, bias, bias);
  for (var tap = 0; tap < taps; tap++) {
    var origin = array<u32, 4>(0, 0, 0, 0);
    var inside = array<f32, 4>(0, 0, 0, 0);
    for (var p = 0; p < 4; p++) {
      let y = (first + p) / columns + tap / i32(layer.size) - low;
      let x = (first + p) % columns + tap % i32(layer.size) - low;
      if (first + p < pixels && x >= 0 && y >= 0 && x < columns && y < rows) {
        inside[p] = 1;
        origin[p] = u32(y * columns + x) * layer.inputs;
      }
    }
    var w = layer.weight + ((id.x >> 1) * u32(taps) + u32(tap)) * layer.inputs * 8 + (id.x & 1);
    for (var i = 0u; i < layer.inputs; i++) {
      let a = weights[w]; let b = weights[w + 2]; let c = weights[w + 4]; let d = weights[w + 6];
      for (var p = 0; p < 4; p++) {
        let v = inside[p] * cells[origin[p] + i];
        sums[p] += v.x * a + v.y * b + v.z * c + v.w * d;
      }
      w += 8;
    }
  }
  for (var p = 0; p < 4; p++) {
    if (first + p >= pixels) { return; }
    var sum = sums[p];
    let to = u32(first + p) * layer.outputs + id.x;
    if ((layer.flags & 1) != 0) { sum = select(exp(min(sum, vec4f(0))) - 1, sum, sum > vec4f(0)); }
    if ((layer.flags & 4) != 0) { sum *= mask[first + p]; }
    if ((layer.flags & 2) != 0) { sum += result[to]; }
    result[to] = sum;
  }
}`;

// Copies some texels of four channels of each cell.
const GATHER = `
struct Part { pixels: u32, layers: u32, first: u32, count: u32 }
@group(0) @binding(0) var<uniform> part: Part;
@group(0) @binding(1) var<storage, read> cells: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> result: array<vec4f>;
@compute @workgroup_size(8, 8) fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= part.count || id.y >= part.pixels) { return; }
  result[id.y * part.count + id.x] = cells[id.y * part.layers + part.first + id.x];
}`;

class WebGpu {
  static name = 'webgpu';
  static title = 'WebGPU';
  static async open(model, weights) {
    const adapter = await navigator.gpu?.requestAdapter();
    if (!adapter) return null;
    const bytes = weights.byteLength, length = area(model) * model.width * 4, most = Math.max(bytes, length);
    if (most > adapter.limits.maxStorageBufferBindingSize) return null;
    const device = await adapter.requestDevice({
      requiredLimits: { maxStorageBufferBindingSize: Math.max(most, 1 << 27), maxBufferSize: Math.max(most, 1 << 28) },
    });
    const [pipeline, gather] = await Promise.all([COMPUTE, GATHER].map(code => {
      const module = device.createShaderModule({ code });
      return device.createComputePipelineAsync({ layout: 'auto', compute: { module, entryPoint: 'main' } });
    }));
    const self = new WebGpu();
    const buffer = (size, usage) => device.createBuffer({ size, usage });
    const { STORAGE, COPY_DST, COPY_SRC, UNIFORM, MAP_READ } = GPUBufferUsage;
    const slots = [0, 1, 2].map(() => buffer(length, STORAGE | COPY_DST | COPY_SRC));
    const all = buffer(bytes, STORAGE | COPY_DST), mask = buffer(area(model) * 4, STORAGE | COPY_DST);
    device.queue.writeBuffer(all, 0, weights);
    const group = (pipeline, buffers) => device.createBindGroup({
      layout: pipeline.getBindGroupLayout(0),
      entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })),
    });
    const layers = model.cell.map(layer => {
      const uniform = buffer(32, UNIFORM | COPY_DST);
      return { layer, uniform, group: group(pipeline, [uniform, all, slots[layer.from], slots[layer.to], mask]) };
    });
    // What is read is collected in a slot that only steps use, from which it is copied.
    const range = buffer(16, UNIFORM | COPY_DST), ranges = group(gather, [range, slots[0], slots[1]]);
    const back = buffer(length, COPY_DST | MAP_READ);
    return Object.assign(self, { model, device, pipeline, slots, mask, layers, gather, range, ranges, back, rows: 0, columns: 0 });
  }
  write(cells, rows, columns) {
    this.device.queue.writeBuffer(this.slots[0], 0, cells);
    Object.assign(this, { rows, columns });
  }
  async step(mask) {
    const { device, rows, columns } = this, last = this.layers.length - 1;
    if (mask) device.queue.writeBuffer(this.mask, 0, mask);
    const encoder = device.createCommandEncoder(), pass = encoder.beginComputePass();
    pass.setPipeline(this.pipeline);
    this.layers.forEach(({ layer, uniform, group }, i) => {
      const values = [rows, columns, layer.in / 4, layer.out / 4, layer.kernel, layer.weight / 4, layer.bias / 4, flags(layer, mask && i === last)];
      device.queue.writeBuffer(uniform, 0, Uint32Array.from(values));
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(Math.ceil(layer.out / 32), Math.ceil(rows * columns / 32));
    });
    pass.end();
    device.queue.submit([encoder.finish()]);
  }
  async read(first = 0, count = this.model.channels) {
    const { device, back, rows, columns, model: { channels } } = this, pixels = rows * columns;
    const low = first >> 2, texels = ((first + count + 3) >> 2) - low, bytes = pixels * texels * 16;
    device.queue.writeBuffer(this.range, 0, Uint32Array.of(pixels, channels / 4, low, texels));
    const encoder = device.createCommandEncoder(), pass = encoder.beginComputePass();
    pass.setPipeline(this.gather);
    pass.setBindGroup(0, this.ranges);
    pass.dispatchWorkgroups(Math.ceil(texels / 8), Math.ceil(pixels / 8));
    pass.end();
    encoder.copyBufferToBuffer(this.slots[1], 0, back, 0, bytes);
    device.queue.submit([encoder.finish()]);
    await back.mapAsync(GPUMapMode.READ, 0, bytes);
    const values = part(new Float32Array(back.getMappedRange(0, bytes)), texels * 4, first - low * 4, count);
    back.unmap();
    return values;
  }
  close() { this.device.destroy(); }
}

const BACKENDS = [WebGpu, WebGl, Wasm];
// Rows and columns of the grid that a backend is checked with.
const TRIAL = [4, 6];

// Takes a step on a small grid and returns the result.
async function attempt(backend, kernel) {
  const { channels, latent } = backend.model, cells = new Float32Array(TRIAL[0] * TRIAL[1] * channels);
  kernel.normal([1, 2], cells.length).forEach((x, i) => { if (i % channels < latent) cells[i] = x; });
  backend.write(cells, ...TRIAL);
  await backend.step(null);
  return backend.read();
}

// Opens a backend, or returns null if it does not compute what WebAssembly, the given `reference`, does.
async function openBackend(kind, model, weights, kernel, reference) {
  try {
    const backend = await kind.open(model, weights, kernel);
    if (!backend || kind === Wasm) return backend;
    const [right, result] = [await attempt(reference, kernel), await attempt(backend, kernel)];
    const scale = right.reduce((most, x) => Math.max(most, Math.abs(x)), 1);
    if (right.every((x, i) => Math.abs(x - result[i]) <= 1e-3 * scale)) return backend;
    backend.close();
  } catch {
    // A browser may offer what its device then refuses.
  }
  return null;
}

// Milliseconds of a step on a grid of half the rows and columns, after one that warms up. GPUs in software are slower than WebAssembly.
async function timed(backend) {
  const [rows, columns] = backend.model.grid.map(side => side >> 1);
  backend.write(new Float32Array(rows * columns * backend.model.channels), rows, columns);
  let began;
  for (let i = 0; i < 3; i++) {
    if (i === 1) began = performance.now();
    await backend.step(null);
    await backend.read(0, backend.model.outputs);
  }
  return (performance.now() - began) / 2;
}
