// The page: grows digits, damages them, and moves through the latents.

const $ = id => document.getElementById(id);
const model = JSON.parse($('model').textContent);
const grows = model.cell !== null;
const { side, latent, channels } = model;

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
    const first = model.first_side, square = Math.min(first, model.start_side), low = (first - square) >> 1;
    const cells = new Float32Array(first * first * channels);
    for (let y = low; y < low + square; y++)
      for (let x = low; x < low + square; x++) cells.set(z, (y * first + x) * channels);
    this.keys = this.kernel.split(key, latent);
    this.time = 0;
    this.side = first;
    this.backend.write(cells, first);
  }
  async edit(change) {
    const cells = await this.backend.read();
    const [next, size] = change(cells, this.side);
    this.side = size;
    this.backend.write(next, size);
  }
  async advance() {
    if (this.plan[this.time++] === 'double') return this.edit(doubled);
    let mask = null;
    if (model.update_prob < 1) {
      mask = this.kernel.bernoulli(this.kernel.split(this.keys, 1), this.side ** 2, model.update_prob);
      this.keys = this.kernel.split(this.keys, 0);
    }
    return this.backend.step(mask);
  }
  // Sets cells to zero. The square is in cells of the full grid.
  damage({ row, column, side: width }) {
    return this.edit((cells, size) => {
      const scale = size / side, from = x => Math.floor(x * scale), to = x => Math.min(size, Math.ceil((x + width) * scale));
      for (let y = Math.max(0, from(row)); y < to(row); y++) {
        const begin = Math.max(0, from(column));
        cells.fill(0, (y * size + begin) * channels, Math.max(begin, to(column)) * channels + y * size * channels);
      }
      return [cells, size];
    });
  }
  // One channel as a full grid; a smaller grid is in the middle, and the margin has no value.
  async channel(index) {
    const cells = await this.backend.read(), low = (side - this.side) >> 1;
    const shown = new Float32Array(side * side).fill(-Infinity);
    for (let y = 0; y < this.side; y++)
      for (let x = 0; x < this.side; x++)
        shown[(y + low) * side + x + low] = cells[(y * this.side + x) * channels + index];
    return shown;
  }
}

function doubled(cells, size) {
  const next = new Float32Array(cells.length * 4);
  for (let y = 0; y < 2 * size; y++)
    for (let x = 0; x < 2 * size; x++) {
      const from = ((y >> 1) * size + (x >> 1)) * channels;
      next.set(cells.subarray(from, from + channels), (y * 2 * size + x) * channels);
    }
  return [next, 2 * size];
}

// Index in the full grid of a pixel of a 28 x 28 image.
const framed = i => (Math.floor(i / 28) + 2) * side + i % 28 + 2;

// The baseline's decoder: 28 x 28 logits, framed.
function decodeAll(kernel, z) {
  const out = kernel.run(model.decoder, z), shown = new Float32Array(side * side).fill(-Infinity);
  const width = out.length / 784;
  for (let i = 0; i < 784; i++) shown[framed(i)] = out[i * width];
  return shown;
}

function encode(kernel, image) {
  const padded = new Float32Array(side * side);
  image.forEach((on, i) => { padded[framed(i)] = on; });
  const out = kernel.run(model.encoder, padded);
  return { mean: out.slice(0, latent), logvar: out.slice(latent, 2 * latent) };
}

function sample(kernel, seed, index) {
  const key = kernel.split([Math.floor(seed / 2 ** 32), seed >>> 0], index);
  return { z: kernel.normal(key, latent), key };
}

function paint(canvas, values, logits) {
  const context = canvas.getContext('2d'), image = context.createImageData(side, side);
  const most = logits ? 1 : values.reduce((m, v) => Number.isFinite(v) ? Math.max(m, Math.abs(v)) : m, 1e-6);
  values.forEach((value, i) => {
    let colour = [0, 0, 0];
    if (logits) {
      const p = 255 / (1 + Math.exp(-value));
      colour = [p, p, p];
    } else if (Number.isFinite(value)) {
      // Orange is positive, blue negative, black zero.
      const v = value / most;
      colour = v > 0 ? [255 * v, 160 * v, 50 * v] : [-70 * v, -150 * v, -255 * v];
    }
    image.data.set([...colour, 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
}

// Work that must not run between the parts of a step. The loop does it before the next step.
const todo = [];
const enqueue = work => new Promise((done, failed) => todo.push(async () => {
  try { done(await work()); } catch (error) { failed(error); }
}));

const PACES = [1, 3, 8, 20, 40, 80, Infinity];
const state = { playing: true, fast: false, events: [], applied: 0, changed: true, z: null, key: null, name: '', until: null,
  // A doubling automaton goes on until this step. Where on the plane of latents the digit lies, until it is grown.
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
    const [time, row, column, width] = e.split('.').map(Number);
    return { time, row, column, side: width };
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

function hurt(row, column, width) {
  if (!grows) return;
  enqueue(async () => {
    // What a link would still do later is dropped: the person decides from here on.
    state.events.length = state.applied;
    state.events.push({ time: grower.time, row, column, side: width });
    await applyDue();
    state.until = null;
    state.playing = true;
    state.after = grower.time + Math.max(16, model.steps);
  });
}

async function redraw() {
  state.changed = false;
  const shown = grows ? await grower.channel(Number($('channel').value)) : decodeAll(kernel, state.z);
  const picture = !grows || $('channel').value === '0';
  paint($('grid'), shown, picture);
  if (state.spot && picture && (!grows || grower.grown)) {
    leave(state.spot);
    state.spot = null;
  }
  if (!grows) return;
  $('time').value = Math.min(1, grower.time / grower.plan.length);
  $('clock').textContent = `${grower.side} x ${grower.side}, step ${grower.time}${grower.grown ? ', grown' : ''}`;
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

// Leaves a small picture of the digit that is shown where it lies on the plane.
function leave(at) {
  const picture = document.createElement('canvas');
  [picture.width, picture.height] = [side, side];
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

const COLOURS = ['#4e79a7', '#f28e2b', '#e15759', '#76b7b2', '#59a14f', '#edc948', '#b07aa1', '#ff9da7', '#9c755f', '#8c8c8c'];

function drawMap() {
  const canvas = $('map'), c = canvas.getContext('2d'), size = canvas.width;
  c.clearRect(0, 0, size, size);
  const place = ([x, y]) => [size * (0.5 + 0.47 * x), size * (0.5 - 0.47 * y)];
  if (model.map) {
    model.map.points.forEach(([x, y], i) => {
      const [px, py] = place([x, y]);
      c.fillStyle = COLOURS[model.map.labels[i] % 10];
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
    c.drawImage(picture, 6, 6, side - 12, side - 12, x - THUMB / 2, y - THUMB / 2, THUMB, THUMB);
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
  $(end).getContext('2d').drawImage($('grid'), 0, 0);
}

const drawing = new Float32Array(784);

function pen(x, y) {
  const centre = [x * 28, y * 28];
  for (let i = 0; i < 784; i++) {
    const distance = Math.hypot(i % 28 + 0.5 - centre[0], Math.floor(i / 28) + 0.5 - centre[1]);
    if (distance < 1.4) drawing[i] = 1;
  }
  showDrawing();
}

function showDrawing() {
  const c = $('draw').getContext('2d'), image = c.createImageData(28, 28);
  drawing.forEach((on, i) => image.data.set([255 * on, 255 * on, 255 * on, 255], 4 * i));
  c.putImageData(image, 0, 0);
}

const anew = () => { showSample(Math.floor(Math.random() * 1e9), 0); newPlane(); };
const again = () => show(state.z, state.key, state.name);
const cut = () => hurt(Math.floor(Math.random() * (side / 2 + 1)), Math.floor(Math.random() * (side / 2 + 1)), side / 2);
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
    Object.assign(fresh, { time: old.time, side: old.side, keys: old.keys });
    next.write(await old.backend.read(), old.side);
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
    const width = () => Number($('brush').value);
    dragged($('grid'), (x, y) => {
      const corner = v => Math.max(0, Math.min(side - 1, Math.round(v * side - width() / 2)));
      hurt(corner(y), corner(x), width());
    });
    const pace = () => { const p = PACES[$('speed').value]; $('pace').textContent = p === Infinity ? 'as fast as it can' : `${p} steps a second`; };
    on('speed', 'input', pace);
    pace();
    $('channel').max = latent - 1;
    const channel = () => {
      $('shown').textContent = $('channel').value === '0' ? '0: the picture' : `${$('channel').value}: hidden`;
      state.changed = true;
    };
    on('channel', 'input', channel);
    channel();
    Object.assign(keys, { ' ': toggle, ArrowRight: oneStep, g: again, d: cut });
    for (let i = 0; i < Math.min(10, latent); i++) keys[i] = () => { $('channel').value = i; channel(); };
  }
  document.addEventListener('keydown', event => {
    const then = keys[event.key];
    if (!then || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|BUTTON)$/.test(event.target.tagName)) return;
    event.preventDefault();
    then();
  });
  if (model.encoder) {
    dragged($('draw'), pen);
    on('clear', 'click', () => { drawing.fill(0); showDrawing(); });
    on('find', 'click', () => enqueue(() => encode(kernel, drawing)).then(({ mean }) => showLatent(mean)));
    showDrawing();
  } else {
    $('drawing').hidden = true;
  }
  on('backend', 'change', () => use($('backend').value));
}

function describe() {
  const kind = !grows
    ? 'One decoder draws the whole digit from a random code, the latent. Drag on the map to move through the latents, or draw a digit and see what the encoder understands.'
    : model.doublings === null
      ? 'Every cell of this grid runs the same small neural network and sees only its neighbours; together they grow a digit from a random code, the latent. Drag over the digit to destroy cells, and watch what the others do.'
      : 'One cell holds a random code, the latent; it divides five times, and every cell runs the same small neural network that sees only its neighbours. Drag over the digit to destroy cells, or on the map to grow another one.';
  $('about').textContent = kind.replace('divides five times', `divides ${['no times', 'once', 'twice', 'three times', 'four times', 'five times'][model.doublings] ?? ''}`);
  $('maptext').textContent = model.map
    ? `t-SNE map of ${model.map.labels.length} images' latents, coloured by class. Drag to grow the nearest one.`
    : 'A plane of latents through the first digit; the rings are one, two and three standard deviations. Drag to grow what lies there; the digits stay on the map.';
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
    if (!grows) return { logits: list(decodeAll(kernel, Float32Array.from(z))) };
    const one = new Grower(await openBackend(BACKENDS.find(b => b.name === backend), model, weights, kernel, reference), kernel);
    const began = performance.now();
    one.start(Float32Array.from(z), key);
    while (!one.grown) await one.advance();
    if (damage) await one.damage(damage);
    for (let i = 0; i < after; i++) await one.advance();
    const logits = list(await one.channel(0)), milliseconds = performance.now() - began;
    one.backend.close();
    return { logits, milliseconds };
  })),
};
