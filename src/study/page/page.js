// The page: grows pictures, damages them, and moves through the latents.

const $ = id => document.getElementById(id);
const model = JSON.parse($('model').textContent);
const grows = model.cell !== null;
const { latent, channels, mixture, outputs } = model;
const [rows, columns] = model.grid;
// Rows and columns of the picture, and values of a pixel. The picture is in the middle of the grid.
const [height, width, colours] = model.shown;
const [above, left] = [(rows - height) >> 1, (columns - width) >> 1];
// The shorter and the longer side of the grid.
const [short, long] = [Math.min(rows, columns), Math.max(rows, columns)];

function problem(text) {
  $('problem').textContent = text;
  $('problem').hidden = false;
}

// One picture in the course of its growth. `plan` is what happens until it is grown; afterwards there are only steps.
class Grower {
  constructor(backend, kernel) {
    Object.assign(this, { backend, kernel });
    const steps = Array(model.steps).fill('step');
    this.plan = model.doublings === null ? steps
      : Array.from({ length: model.doublings }, () => ['double', ...steps]).flat();
  }
  get grown() { return this.time >= this.plan.length; }
  start(z, key) {
    const [h, w] = model.first, cells = new Float32Array(h * w * channels);
    const [high, wide] = [h, w].map(side => Math.min(side, model.start_side ?? side));
    const [row, column] = [(h - high) >> 1, (w - wide) >> 1];
    for (let y = row; y < row + high; y++)
      for (let x = column; x < column + wide; x++) cells.set(z, (y * w + x) * channels);
    this.keys = this.kernel.split(key, latent);
    this.time = 0;
    this.write(cells, h, w);
  }
  write(cells, h, w) {
    [this.rows, this.columns] = [h, w];
    this.backend.write(cells, h, w);
  }
  async edit(change) {
    this.write(...change(await this.backend.read(), this.rows, this.columns));
  }
  async advance() {
    if (this.plan[this.time++] === 'double') return this.edit(doubled);
    let mask = null;
    if (model.update_prob < 1) {
      mask = this.kernel.bernoulli(this.kernel.split(this.keys, 1), this.rows * this.columns, model.update_prob);
      this.keys = this.kernel.split(this.keys, 0);
    }
    return this.backend.step(mask);
  }
  // Sets cells to zero. The square is in cells of the full grid.
  damage({ row, column, side }) {
    return this.edit((cells, h, w) => {
      const scale = h / rows, from = x => Math.max(0, Math.floor(x * scale));
      const to = (x, size) => Math.min(size, Math.ceil((x + side) * scale));
      for (let y = from(row); y < to(row, h); y++) {
        const [begin, end] = [from(column), to(column, w)];
        cells.fill(0, (y * w + begin) * channels, (y * w + Math.max(begin, end)) * channels);
      }
      return [cells, h, w];
    });
  }
  // Some channels of the grid.
  async sheet(first, count) {
    return { values: await this.backend.read(first, count), count, rows: this.rows, columns: this.columns };
  }
}

function doubled(cells, h, w) {
  const next = new Float32Array(cells.length * 4);
  for (let y = 0, to = 0; y < 2 * h; y++)
    for (let x = 0; x < 2 * w; x++, to += channels) {
      const from = ((y >> 1) * w + (x >> 1)) * channels;
      next.set(cells.subarray(from, from + channels), to);
    }
  return [next, 2 * h, 2 * w];
}

// --- pictures ---

// Calls `each(pixel, from)` for each pixel of the picture that has a cell, with the index of the cell's values in a sheet. A sheet
// that is smaller than the grid is in its middle.
function eachShown(sheet, each) {
  const row = above - ((rows - sheet.rows) >> 1), column = left - ((columns - sheet.columns) >> 1);
  for (let y = Math.max(0, -row); y < Math.min(height, sheet.rows - row); y++)
    for (let x = Math.max(0, -column); x < Math.min(width, sheet.columns - column); x++)
      each(y * width + x, ((y + row) * sheet.columns + x + column) * sheet.count);
}

// The first channel of a sheet for each pixel. Where there is no cell it has no value.
function firstChannel(sheet) {
  const shown = new Float32Array(height * width).fill(-Infinity);
  eachShown(sheet, (pixel, from) => { shown[pixel] = sheet.values[from]; });
  return shown;
}

const limited = x => Math.max(-1, Math.min(1, x));
// Faster than Math.tanh, and as exact as the picture needs.
const tanh = x => 1 - 2 / (Math.exp(2 * x) + 1);
const average = new Float32Array(4);

// The mean of a mixture of logistic distributions, from -1 to 1, in `average`. The outputs are logits of the components; means and
// logarithms of scales for each colour; and coefficients of green by red, blue by red, and blue by green.
function mixtureMean(values, from) {
  const K = mixture.components, means = from + K, factors = from + K * (1 + 2 * colours);
  let most = -Infinity, total = 0, red = 0, green = 0, blue = 0, opacity = 0;
  for (let k = 0; k < K; k++) most = Math.max(most, values[from + k]);
  for (let k = 0; k < K; k++) {
    const weight = Math.exp(values[from + k] - most);
    if (weight < 1e-9) continue;
    // A colour is at most the opacity, with which it is multiplied.
    const top = colours === 4 ? limited(values[means + 3 * K + k]) : 1;
    const r = Math.min(top, limited(values[means + k]));
    total += weight;
    red += weight * r;
    if (colours === 1) continue;
    const g = Math.min(top, limited(values[means + K + k] + tanh(values[factors + k]) * r));
    const b = values[means + 2 * K + k] + tanh(values[factors + K + k]) * r + tanh(values[factors + 2 * K + k]) * g;
    green += weight * g;
    blue += weight * Math.min(top, limited(b));
    opacity += weight * top;
  }
  [average[0], average[1], average[2], average[3]] = [red / total, green / total, blue / total, opacity / total];
}

// Brightness of each pixel and colour, from 0 to 1. Where there is no cell it is -1.
function brightness(sheet) {
  const shown = new Float32Array(height * width * colours).fill(-1);
  eachShown(sheet, (pixel, from) => {
    if (!mixture) {
      shown[pixel] = 1 / (1 + Math.exp(-sheet.values[from]));
      return;
    }
    mixtureMean(sheet.values, from);
    for (let c = 0; c < colours; c++) shown[pixel * colours + c] = (limited(average[c]) + 1) / 2;
  });
  return shown;
}

// Colours are multiplied by the opacity.
function paintPicture(canvas, shown, [h, w, c]) {
  const context = canvas.getContext('2d'), image = context.createImageData(w, h), data = image.data;
  for (let i = 0, from = 0; i < data.length; i += 4, from += c) {
    const opacity = c === 4 ? shown[from + 3] : 1;
    if (shown[from] < 0) {
      // Pictures of bits are black around the cells.
      data[i + 3] = mixture ? 0 : 255;
      continue;
    }
    const factor = opacity > 0 ? 255 / opacity : 0;
    data[i] = factor * shown[from];
    data[i + 1] = factor * shown[c > 1 ? from + 1 : from];
    data[i + 2] = factor * shown[c > 1 ? from + 2 : from];
    data[i + 3] = 255 * opacity;
  }
  context.putImageData(image, 0, 0);
}

// A channel: orange is positive, blue negative, black zero.
function paintChannel(canvas, values) {
  const context = canvas.getContext('2d'), image = context.createImageData(width, height);
  const most = values.reduce((m, v) => Number.isFinite(v) ? Math.max(m, Math.abs(v)) : m, 1e-6);
  values.forEach((value, i) => {
    const v = Number.isFinite(value) ? value / most : 0;
    image.data.set(v > 0 ? [255 * v, 160 * v, 50 * v, 255] : [-70 * v, -150 * v, -255 * v, 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
}

// What the baseline's decoder computes.
function decodeAll(kernel, z) {
  const [h, w, padded] = model.decoder[model.decoder.length - 1].out;
  return { values: part(kernel.run(model.decoder, z), padded, 0, outputs), count: outputs, rows: h, columns: w };
}

// The image has values from 0 to 1.
function encode(kernel, image) {
  const [h, w, c] = model.image, [row, column] = [(rows - h) >> 1, (columns - w) >> 1];
  const padded = new Float32Array(rows * columns * c);
  image.forEach((value, i) => {
    const y = Math.floor(i / (w * c)) + row, at = (y * columns + column) * c + i % (w * c);
    padded[at] = mixture ? 2 * value - 1 : value;
  });
  const out = kernel.run(model.encoder, padded);
  return { mean: out.slice(0, latent), logvar: out.slice(latent, 2 * latent) };
}

function sample(kernel, seed, index) {
  const key = kernel.split([Math.floor(seed / 2 ** 32), seed >>> 0], index);
  return { z: kernel.normal(key, latent), key };
}

// Work that must not run between the parts of a step. The loop does it before the next step.
const todo = [];
const enqueue = work => new Promise((done, failed) => todo.push(async () => {
  try { done(await work()); } catch (error) { failed(error); }
}));

// What the slider of channels shows for the picture. A picture of bits is the first channel.
const PICTURE = mixture ? -1 : 0;
const PACES = [1, 3, 8, 20, 40, 80, Infinity];
const state = { playing: true, fast: false, events: [], applied: 0, changed: true, z: null, key: null, name: '', until: null,
  // A doubling automaton goes on until this step. Where on the plane of latents the picture lies, until it is grown.
  after: 0, spot: null };
let kernel, weights, reference, grower;

const floats = text => new Float32Array(decode(text.replaceAll('-', '+').replaceAll('_', '/')).buffer);
const text = values => btoa(String.fromCharCode(...new Uint8Array(Float32Array.from(values).buffer)))
  .replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');

// Shows another latent. `name` is how a link names it.
function show(z, key, name, { fast = false, events = [], until = null, spot = null } = {}) {
  Object.assign(state, { z, key, name, fast, events, until, spot, applied: 0, after: 0, playing: true });
  enqueue(async () => {
    if (grows) {
      grower.start(z, key);
      await applyDue();
    }
    state.changed = true;
  });
  drawMap();
}

function showSample(seed, index, options) {
  const { z, key } = sample(kernel, seed, index);
  show(z, key, `seed=${seed}.${index}`, options);
}

// A link to it holds no key.
const showLatent = (z, options) => show(z, [0, 0], `z=${text(z)}`, options);

function link() {
  const damage = state.events.map(e => [e.time, e.row, e.column, e.side].join('.')).join(',');
  const steps = grows && grower.grown ? `&steps=${grower.time}` : '';
  return `#${state.name}${damage && `&damage=${damage}`}${steps}`;
}

function follow(hash) {
  const fields = new URLSearchParams(hash.replace(/^#/, ''));
  const whole = word => /^\d{1,16}$/.test(word ?? '') && Number.isSafeInteger(Number(word)) ? Number(word) : null;
  const events = (fields.get('damage') ?? '').split(',').filter(Boolean).map(e => {
    const [time, row, column, side] = e.split('.').map(Number);
    return { time, row, column, side };
  });
  if (events.length > 5000 || events.some(e => Object.values(e).some(v => !Number.isInteger(v)))) return false;
  const options = { events, until: whole(fields.get('steps')) };
  if (fields.has('z')) {
    try {
      const z = floats(fields.get('z'));
      if (z.length !== latent || !z.every(Number.isFinite)) return false;
      showLatent(z, options);
      return true;
    } catch { return false; }
  }
  const [seed, index] = (fields.get('seed') ?? '').split('.').map(whole);
  if (seed === null || index === null || seed === undefined) return false;
  showSample(seed, index ?? 0, options);
  return true;
}

// Applies the damage whose time is reached. It follows each start, step and new damage.
async function applyDue() {
  while (state.applied < state.events.length && state.events[state.applied].time <= grower.time) {
    await grower.damage(state.events[state.applied++]);
    state.changed = true;
  }
}

async function advance() {
  await grower.advance();
  await applyDue();
  state.changed = true;
}

function hurt(row, column, side) {
  if (!grows) return;
  enqueue(async () => {
    // What a link would still do later is dropped: the person decides from here on.
    state.events.length = state.applied;
    state.events.push({ time: grower.time, row, column, side });
    await applyDue();
    state.until = null;
    state.playing = true;
    state.after = grower.time + Math.max(16, model.steps);
  });
}

async function redraw() {
  state.changed = false;
  const channel = Number($('channel').value), picture = !grows || channel === PICTURE;
  if (picture) paintPicture($('grid'), brightness(grows ? await grower.sheet(0, outputs) : decodeAll(kernel, state.z)), model.shown);
  else paintChannel($('grid'), firstChannel(await grower.sheet(channel, 1)));
  if (state.spot && picture && (!grows || grower.grown)) {
    leave(state.spot);
    state.spot = null;
  }
  if (!grows) return;
  $('time').value = Math.min(1, grower.time / grower.plan.length);
  $('clock').textContent = `${grower.rows} x ${grower.columns}, step ${grower.time}${grower.grown ? ', grown' : ''}`;
  $('play').textContent = state.playing ? 'Pause' : 'Play';
}

// A doubling automaton is not trained to keep its picture: it stops where it is grown, and some steps after damage.
function due() {
  if (!grows || !state.playing) return false;
  const stop = state.until ?? (model.doublings !== null ? Math.max(grower.plan.length, state.after) : Infinity);
  if (grower.time < stop) return true;
  Object.assign(state, { playing: false, until: null, changed: true });
  return false;
}

async function loop() {
  let owed = 0, before = performance.now(), steps = 0, since = before;
  for (;;) {
    await new Promise(requestAnimationFrame);
    const now = performance.now(), pace = state.fast ? Infinity : PACES[$('speed').value];
    while (todo.length) await todo.shift()();
    owed = Math.min(pace === Infinity ? 1000 : 8, owed + pace * (now - before) / 1000);
    before = now;
    while (due() && owed >= 1 && performance.now() - now < SLICE) {
      await advance();
      if (grower.grown) state.fast = false;
      owed -= 1;
      steps += 1;
      if (todo.length) break;
    }
    if (state.changed) await redraw();
    if (now - since > 1000) {
      $('rate').textContent = steps ? `${(steps * 1000 / (now - since)).toFixed(0)} steps a second` : '';
      [steps, since] = [0, now];
    }
  }
}

// --- the map of latents ---

const plane = { at: [0, 0], trail: [] };
const THUMB = 44, TRAIL = 300;

const still = () => {
  const picture = document.createElement('canvas');
  [picture.width, picture.height] = [width, height];
  return picture;
};

// Leaves a small copy of the picture where it lies on the plane.
function leave(at) {
  const picture = still();
  picture.getContext('2d').drawImage($('grid'), 0, 0);
  plane.trail.push({ at, picture });
  if (plane.trail.length > TRAIL) plane.trail.shift();
  drawMap();
}

function newPlane() {
  // Around a sample, in the directions of two others. The length stays that of samples of the prior.
  plane.at = [0, 0];
  plane.trail = [];
  state.spot = model.map ? null : [0, 0];
  plane.base = state.z;
  plane.axes = [1, 2].map(i => kernel.normal(kernel.split(state.key, latent + 10 + i), latent));
  drawMap();
}

function onPlane([a, b]) {
  const norm = Math.sqrt(1 + a * a + b * b);
  return plane.base.map((z, i) => (z + a * plane.axes[0][i] + b * plane.axes[1][i]) / norm);
}

// Colours of classes. Those after the tenth are spread over the circle of hues.
const COLOURS = ['#4e79a7', '#f28e2b', '#e15759', '#76b7b2', '#59a14f', '#edc948', '#b07aa1', '#ff9da7', '#9c755f', '#8c8c8c'];

const colourOf = (label, classes) =>
  classes <= COLOURS.length ? COLOURS[label] : `hsl(${Math.round(label * 137.508) % 360} 60% ${[45, 60, 72][label % 3]}%)`;

function drawMap() {
  const canvas = $('map'), c = canvas.getContext('2d'), size = canvas.width;
  c.clearRect(0, 0, size, size);
  const place = ([x, y]) => [size * (0.5 + 0.47 * x), size * (0.5 - 0.47 * y)];
  if (model.map) {
    const classes = model.map.labels.reduce((most, label) => Math.max(most, label + 1), 0);
    model.map.points.forEach(([x, y], i) => {
      const [px, py] = place([x, y]);
      c.fillStyle = colourOf(model.map.labels[i], classes);
      c.fillRect(px - 2, py - 2, 4, 4);
    });
  } else {
    c.strokeStyle = '#8888';
    for (const r of [1, 2, 3]) {
      c.beginPath();
      c.arc(size / 2, size / 2, 0.47 * size * r / 3, 0, 2 * Math.PI);
      c.stroke();
    }
  }
  for (const { at, picture } of plane.trail) {
    const [x, y] = place(at);
    // Digits have a wide margin.
    const cut = model.thing === 'digit' ? 4 + (height - imageHeight) / 2 : 0, [w, h] = [width - 2 * cut, height - 2 * cut];
    const [wide, high] = [w, h].map(side => THUMB * side / Math.max(w, h));
    c.drawImage(picture, cut, cut, w, h, x - wide / 2, y - high / 2, wide, high);
  }
  const [x, y] = place(plane.at);
  c.beginPath();
  c.arc(x, y, 9, 0, 2 * Math.PI);
  c.lineWidth = 3;
  c.strokeStyle = '#d33';
  c.stroke();
}

function moveTo(x, y) {
  plane.at = [x, y].map(v => Math.max(-1, Math.min(1, v)));
  if (!model.map) return showLatent(onPlane(plane.at.map(v => 3 * v)), { fast: true, spot: [...plane.at] });
  let best = 0, least = Infinity;
  model.map.points.forEach(([px, py], i) => {
    const d = (px - plane.at[0]) ** 2 + (py - plane.at[1]) ** 2;
    if (d < least) [best, least] = [i, d];
  });
  showLatent(model.map.means.subarray(best * latent, (best + 1) * latent), { fast: true });
}

// Calls `each(x, y)` with positions from 0 to 1 while a finger or the mouse is down.
function dragged(canvas, each) {
  const at = event => {
    const box = canvas.getBoundingClientRect();
    each((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  canvas.addEventListener('pointerdown', event => { canvas.setPointerCapture(event.pointerId); at(event); event.preventDefault(); });
  canvas.addEventListener('pointermove', event => { if (event.buttons) at(event); });
}

// --- the rest of the page ---

const ends = { a: null, b: null };

function keep(end) {
  ends[end] = state.z;
  const c = $(end).getContext('2d');
  c.clearRect(0, 0, width, height);
  c.drawImage($('grid'), 0, 0);
}

// --- drawing ---

const PAINTS = colours === 1
  ? { black: [0, 0, 0], 'dark grey': [85, 85, 85], 'light grey': [170, 170, 170], white: [255, 255, 255] }
  : { black: [26, 26, 26], white: [255, 255, 255], red: [221, 46, 68], orange: [244, 144, 12], yellow: [255, 204, 77],
    green: [92, 145, 59], blue: [59, 136, 195], violet: [146, 102, 204], brown: [154, 78, 28] };
const [imageHeight, imageWidth] = model.image;
const drawing = new Float32Array(imageHeight * imageWidth * colours);
// Images are black, those of colours white, and those with opacity empty.
const BLANK = Array(colours).fill(colours === 3 ? 1 : 0);
let paint = colours === 1 ? [1] : null;

function pen(x, y) {
  const reach = Math.max(1, 1.4 * Math.max(imageHeight, imageWidth) / 28);
  for (let row = 0, i = 0; row < imageHeight; row++)
    for (let column = 0; column < imageWidth; column++, i += colours)
      if (Math.hypot(column + 0.5 - x * imageWidth, row + 0.5 - y * imageHeight) < reach) drawing.set(paint, i);
  showDrawing();
}

const showDrawing = () => paintPicture($('draw'), drawing, model.image);

function clear() {
  for (let i = 0; i < drawing.length; i += colours) drawing.set(BLANK, i);
  showDrawing();
}

// A pixel of the drawing, from levels of red, green, blue and opacity.
function pixelOf([red, green, blue, opacity = 255]) {
  const of = level => Math.round(level * opacity / 255) / 255;
  if (colours === 1) return [of(0.299 * red + 0.587 * green + 0.114 * blue)];
  return colours === 3 ? [red, green, blue].map(level => level / 255) : [of(red), of(green), of(blue), opacity / 255];
}

// Buttons for a few colours, one for any other, and one that erases.
function palette() {
  const any = document.createElement('input'), swatches = [];
  const choose = (swatch, colour) => {
    paint = colour;
    for (const other of [...swatches, any]) other.setAttribute('aria-pressed', other === swatch);
  };
  const swatch = (name, colour, back) => {
    const button = document.createElement('button');
    button.className = 'swatch';
    button.style.background = back;
    button.title = name;
    button.setAttribute('aria-label', name);
    button.addEventListener('click', () => choose(button, colour));
    swatches.push(button);
    return button;
  };
  for (const [name, levels] of Object.entries(PAINTS)) swatch(name, pixelOf(levels), `rgb(${levels})`);
  if (colours === 4) swatch('erase', BLANK, '').classList.add('checked');
  Object.assign(any, { type: 'color', value: '#ff69b4', title: 'another colour' });
  any.setAttribute('aria-label', 'another colour');
  const pick = () => choose(any, pixelOf([1, 3, 5].map(i => parseInt(any.value.slice(i, i + 2), 16))));
  any.addEventListener('input', pick);
  any.addEventListener('click', pick);
  $('palette').replaceChildren(...swatches, ...colours === 1 ? [] : [any]);
  (colours === 1 ? swatches[3] : swatches[2]).click();
}

// Takes an image file as the drawing. An image with opacity is shown whole; of another one the middle is shown.
async function take(file) {
  if (!file) return;
  let image;
  try { image = await createImageBitmap(file); } catch {
    $('file').setCustomValidity('This file is no image that the browser knows.');
    $('file').reportValidity();
    $('file').setCustomValidity('');
    return;
  }
  const canvas = document.createElement('canvas'), c = canvas.getContext('2d');
  [canvas.width, canvas.height] = [imageWidth, imageHeight];
  const ratios = [imageWidth / image.width, imageHeight / image.height];
  const scale = colours === 4 ? Math.min(...ratios) : Math.max(...ratios), [w, h] = [image.width * scale, image.height * scale];
  if (colours === 3) {
    c.fillStyle = '#fff';
    c.fillRect(0, 0, imageWidth, imageHeight);
  }
  c.imageSmoothingQuality = 'high';
  c.drawImage(image, (imageWidth - w) / 2, (imageHeight - h) / 2, w, h);
  const { data } = c.getImageData(0, 0, imageWidth, imageHeight);
  for (let i = 0; i < imageHeight * imageWidth; i++) drawing.set(pixelOf(data.subarray(4 * i, 4 * i + 4)), i * colours);
  showDrawing();
  find();
}

const find = () => enqueue(() => encode(kernel, drawing)).then(({ mean }) => showLatent(mean));

const anew = () => { showSample(Math.floor(Math.random() * 1e9), 0); newPlane(); };
const again = () => show(state.z, state.key, state.name);
const cut = () => {
  const side = short >> 1, corner = size => Math.floor(Math.random() * (size - side + 1));
  hurt(corner(rows), corner(columns), side);
};
const toggle = () => {
  state.playing = !state.playing;
  if (state.playing && grows && grower.grown) state.after = Infinity;
  state.changed = true;
};
const oneStep = () => enqueue(async () => {
  state.playing = false;
  await advance();
});

// Goes on with another backend, from the grid as it is.
async function use(name) {
  const kind = BACKENDS.find(b => b.name === name);
  const next = await enqueue(() => openBackend(kind, model, weights, kernel, reference));
  if (!next) return;
  await enqueue(async () => {
    const old = grower, fresh = new Grower(next, kernel);
    Object.assign(fresh, { time: old.time, keys: old.keys });
    fresh.write(await old.backend.read(), old.rows, old.columns);
    old.backend.close();
    grower = fresh;
    state.changed = true;
  });
}

function connect() {
  const on = (id, what, then) => $(id).addEventListener(what, then);
  on('new', 'click', anew);
  on('share', 'click', async () => {
    history.replaceState(null, '', link());
    try { await navigator.clipboard.writeText(location.href); $('share').textContent = 'Copied'; }
    catch { $('share').textContent = 'In the address bar'; }
    setTimeout(() => { $('share').textContent = 'Copy link'; }, 1500);
  });
  dragged($('map'), (x, y) => moveTo((x - 0.5) / 0.47, (0.5 - y) / 0.47));
  on('map', 'keydown', event => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    moveTo(plane.at[0] + 0.05 * move[0], plane.at[1] + 0.05 * move[1]);
  });
  on('keepA', 'click', () => keep('a'));
  on('keepB', 'click', () => keep('b'));
  on('between', 'input', () => {
    if (!ends.a || !ends.b) return;
    const t = Number($('between').value);
    showLatent(ends.a.map((z, i) => (1 - t) * z + t * ends.b[i]), { fast: true });
  });
  window.addEventListener('hashchange', () => follow(location.hash));
  const keys = { n: anew };
  if (grows) {
    on('play', 'click', toggle);
    on('step', 'click', oneStep);
    on('again', 'click', again);
    on('cut', 'click', cut);
    const brush = share => Math.max(1, Math.round(share * long / 32));
    Object.assign($('brush'), { max: Math.max(3, brush(10)), value: brush(3) });
    dragged($('grid'), (x, y) => {
      const side = Number($('brush').value), corner = (v, size) => Math.max(0, Math.min(size - 1, Math.round(v - side / 2)));
      hurt(corner(y * height + above, rows), corner(x * width + left, columns), side);
    });
    const pace = () => { const p = PACES[$('speed').value]; $('pace').textContent = p === Infinity ? 'as fast as it can' : `${p} steps a second`; };
    on('speed', 'input', pace);
    pace();
    Object.assign($('channel'), { min: PICTURE, max: latent - 1, value: PICTURE });
    const channel = () => {
      $('shown').textContent = meaning(Number($('channel').value));
      state.changed = true;
    };
    on('channel', 'input', channel);
    channel();
    Object.assign(keys, { ' ': toggle, ArrowRight: oneStep, g: again, d: cut });
    for (let i = 0; i < Math.min(10, latent); i++) keys[i] = () => { $('channel').value = PICTURE + i; channel(); };
  }
  document.addEventListener('keydown', event => {
    const then = keys[event.key];
    if (!then || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|BUTTON)$/.test(event.target.tagName)) return;
    event.preventDefault();
    then();
  });
  if (model.encoder) {
    dragged($('draw'), pen);
    on('clear', 'click', clear);
    on('find', 'click', find);
    for (const part of document.querySelectorAll('[data-for=levels]')) part.hidden = !mixture;
    if (mixture) {
      palette();
      on('file', 'change', () => { take($('file').files[0]); $('file').value = ''; });
      on('drawing', 'dragover', event => event.preventDefault());
      on('drawing', 'drop', event => { event.preventDefault(); take(event.dataTransfer.files[0]); });
    }
    clear();
  } else {
    $('drawing').hidden = true;
  }
  on('backend', 'change', () => use($('backend').value));
}

// What a channel is.
function meaning(channel) {
  if (channel === PICTURE) return mixture ? 'the picture' : '0: the picture';
  if (channel >= outputs) return `${channel}: hidden`;
  const group = Math.floor(channel / mixture.components), names = ['red', 'green', 'blue', 'opacity'].slice(0, colours > 1 ? colours : 0);
  const of = i => names.length ? ` of ${names[i]}` : '';
  const name = group === 0 ? 'share' : group <= colours ? `mean${of(group - 1)}`
    : group <= 2 * colours ? `spread${of(group - 1 - colours)}`
      : ['green by red', 'blue by red', 'blue by green'][group - 1 - 2 * colours];
  return mixture.components === 1 ? `${channel}: ${name}` : `${channel}: ${name}, component ${channel % mixture.components + 1}`;
}

// Sizes of the canvases.
function arrange() {
  for (const id of ['grid', 'a', 'b']) [$(id).width, $(id).height] = [width, height];
  [$('draw').width, $('draw').height] = [imageWidth, imageHeight];
  $('grid').style.aspectRatio = `${width} / ${height}`;
  // A high picture is not higher than the window.
  if (height > width) $('grid').style.width = `min(100%, ${(80 * width / height).toFixed(1)}vh)`;
  const [w, h] = [imageWidth, imageHeight].map(side => 168 * side / Math.max(imageHeight, imageWidth));
  Object.assign($('draw').style, { width: `${w}px`, height: `${h}px` });
  if (colours === 4) for (const id of ['grid', 'a', 'b', 'draw']) $(id).classList.add('checked');
}

const NUMBERS = ['no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'];

function describe() {
  const { thing } = model, [h, w] = model.first ?? [], times = ['no times', 'once', 'twice'][model.doublings] ?? `${NUMBERS[model.doublings]} times`;
  const start = h * w === 1 ? 'One cell holds a random code, the latent; it divides'
    : `${h} x ${w} cells hold a random code, the latent; they divide`;
  $('about').textContent = !grows
    ? `One decoder draws the whole ${thing} from a random code, the latent. Drag on the map to move through the latents, or draw a ${thing} and see what the encoder understands.`
    : model.doublings === null
      ? `Every cell of this grid runs the same small neural network and sees only its neighbours; together they grow a ${thing} from a random code, the latent. Drag over the ${thing} to destroy cells, and watch what the others do.`
      : `${start} ${times}, and every cell runs the same small neural network that sees only its neighbours. Drag over the ${thing} to destroy cells, or on the map to grow another one.`;
  $('maptext').textContent = model.map
    ? `t-SNE map of ${model.map.labels.length} images' latents, coloured by class. Drag to grow the nearest one.`
    : `A plane of latents through the first ${thing}; the rings are one, two and three standard deviations. Drag to grow what lies there; the ${thing}s stay on the map.`;
  $('origin').textContent = model.origin;
  for (const part of document.querySelectorAll('[data-for=cells]')) part.hidden = !grows;
}

async function main() {
  if (typeof WebAssembly !== 'object' || typeof BigInt !== 'function')
    return problem('This browser has no WebAssembly, which the page needs to compute. A current Chromium, Firefox or Safari has it.');
  weights = halves(decode($('weights').textContent));
  try {
    kernel = await Kernel.open(decode($('kernel').textContent), weights, model);
  } catch (error) {
    return problem(`This browser cannot run the page's WebAssembly (${error.message}). A current Chromium, Firefox or Safari can.`);
  }
  if (model.map) model.map.means = halves(decode(model.map.means));
  describe();
  arrange();
  const found = [];
  if (grows) {
    reference = await Wasm.open(model, weights, kernel);
    for (const kind of BACKENDS) {
      const backend = await openBackend(kind, model, weights, kernel, reference);
      if (backend) found.push({ kind, backend, time: await timed(backend) });
    }
    found.sort((a, b) => a.time - b.time);
    found.slice(1).forEach(({ backend }) => backend.close());
    grower = new Grower(found[0].backend, kernel);
  } else {
    found.push({ kind: Wasm });
  }
  $('backend').replaceChildren(...found.map(({ kind }) => new Option(kind.title, kind.name)));
  connect();
  if (!follow(location.hash)) showSample(model.seed, 0);
  newPlane();
  $('app').hidden = false;
  loop().catch(error => problem(`The page stopped: ${error.message}. Reload it, or choose another way to compute.`));
  return found.map(({ kind }) => kind.name);
}

const started = main();

// For tests and for whoever opens the console. Everything runs between the steps of the page itself.
window.vnca = {
  model,
  ready: started.then(() => {}),
  backends: () => started,
  sample: (seed, index) => sample(kernel, seed, index),
  encode: image => started.then(() => enqueue(() => {
    const { mean, logvar } = encode(kernel, Float32Array.from(image));
    return { mean: [...mean], logvar: [...logvar] };
  })),
  grow: ({ backend, z, key, after = 0, damage = null }) => started.then(() => enqueue(async () => {
    const list = values => Array.from(values, v => Number.isFinite(v) ? v : null);
    // Logits of bits, or brightness.
    const result = sheet => mixture ? { means: list(brightness(sheet)) } : { logits: list(firstChannel(sheet)) };
    if (!grows) return result(decodeAll(kernel, Float32Array.from(z)));
    const one = new Grower(await openBackend(BACKENDS.find(b => b.name === backend), model, weights, kernel, reference), kernel);
    const began = performance.now();
    one.start(Float32Array.from(z), key);
    while (!one.grown) await one.advance();
    if (damage) await one.damage(damage);
    for (let i = 0; i < after; i++) await one.advance();
    const sheet = await one.sheet(0, outputs), milliseconds = performance.now() - began;
    one.backend.close();
    return { ...result(sheet), milliseconds };
  })),
};
