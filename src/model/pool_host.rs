//! The host part of the pool: its initial entries, its inputs for each device call, and its order in checkpoints.

use anyhow::{Context, Result, ensure};

use super::elbo::Latents;
use super::exchange::{Location, Plan, Sizes as PoolSizes};
use super::pool::{Entries, GRIDS, IMAGES, KEY, Pooled, Shuffle};
use super::vae::Vae;
use crate::engine::array::Array;
use crate::engine::compile::compile;
use crate::engine::ir::{Function, Graph};
use crate::engine::random::{Key, graph as draw};
use crate::engine::runtime::{Arg, Buffers, Mesh};
use crate::engine::shape::Shape;
use crate::nn::params::Params;
use crate::nn::tree::Tree;
use crate::train::state::{State, words};
use crate::train::task::{Host, Hosted, Sizes};

/// Names of the state entries that hold the pool.
const PARTS: [&str; 2] = [IMAGES, GRIDS];

/// The host part of [`Pooled`].
pub(super) struct PoolHost {
    model: Vae,
    shuffle: Shuffle,
    sizes: PoolSizes,
    chunk: usize,
    /// Locations of the entries as long as there is no plan.
    locations: Vec<Location>,
    planned: Option<Planned>,
    /// The replicas' indices.
    replica: Buffers,
}

struct Planned {
    /// First step of the plan.
    first: usize,
    plan: Plan,
    inputs: [Buffers; 3],
}

/// Builds the computation of a replica's initial entries: `share` entries, padded to `rows` rows.
///
/// # Errors
/// When the model has no automaton or builds an invalid graph.
pub fn initial_pool(model: &Vae, share: usize, rows: usize) -> Result<Function> {
    let leaves = model.leaves();
    let g = Graph::new("pool");
    let params = Params::new(&leaves, &Params::inputs(&g, &leaves, ""));
    let images = g.input("images", &model.frame.pixels(share));
    let pixels =
        model.likelihood.training_pixels(images, &|| draw::split(draw::constant(&g, Key::new(42)), share));
    let eps = g.input("eps", &Shape::f32(&[share, 1, model.latent]));
    let z = Latents::from_images(model, &params, model.padded(pixels), eps).z.reshape(&[share, model.latent]);
    let grids = model.automaton()?.start(&model.frame, z).pad_rows(rows);
    let outputs = PARTS.map(String::from).into_iter().zip([images.pad_rows(rows), grids]);
    g.finish(&outputs.collect::<Vec<_>>(), &[])
}

impl PoolHost {
    pub fn new(task: &Pooled, mesh: &Mesh, sizes: &Sizes) -> Result<PoolHost> {
        let (pool, replicas) = (&task.pool, sizes.replicas);
        let (share, rows) = (pool.size / replicas, pool.rows(replicas));
        let indices: Vec<Array> = (0..replicas).map(|r| Array::scalar(r as i32)).collect();
        let sizes_of_pool = PoolSizes { replicas, share, rows, batch: sizes.each() };
        Ok(PoolHost {
            model: task.elbo.model.clone(),
            shuffle: pool.shuffle,
            sizes: sizes_of_pool,
            chunk: sizes.chunk,
            locations: sizes_of_pool.initial_locations(),
            planned: None,
            replica: mesh.shard(&indices)?,
        })
    }

    /// Uploads images and grids of all entries to the replicas, in order.
    ///
    /// # Errors
    /// When the arrays have other shapes, or a device fails.
    fn upload(&mut self, mesh: &Mesh, images: &Array, grids: &Array) -> Result<[Buffers; 2]> {
        let PoolSizes { replicas, share, rows, .. } = self.sizes;
        (self.locations, self.planned) = (self.sizes.initial_locations(), None);
        let put = |array: &Array, shape: Shape| {
            let whole = shape.with_dims(&[&[replicas * share], &shape.dims[1..]].concat());
            ensure!(*array.shape() == whole, "expected a pool of {whole}, got {}", array.shape());
            let part = |r: usize| {
                let size = array.bytes().len() / replicas;
                let mut bytes = array.bytes()[r * size..(r + 1) * size].to_vec();
                bytes.resize(shape.bytes(), 0);
                Array::from_bytes(shape.clone(), bytes)
            };
            mesh.shard(&(0..replicas).map(part).collect::<Result<Vec<_>>>()?)
        };
        let [image_shape, grid_shape] = Entries::shapes(&self.model, rows);
        Ok([put(images, image_shape)?, put(grids, grid_shape)?])
    }

    /// Returns the locations of the entries before a step.
    fn locations(&self, step: usize) -> &[Location] {
        match &self.planned {
            Some(Planned { first, plan, .. }) => plan.locations(step - first),
            None => &self.locations,
        }
    }

    /// Returns all images and grids before a step, in the pool's order.
    ///
    /// # Errors
    /// When a device fails.
    fn in_order(&self, state: &State, step: usize) -> Result<[Array; 2]> {
        let gather = |name: &str| -> Result<Array> {
            let parts = state.get(name)?;
            let shape = parts[0].shape();
            let size = shape.bytes() / self.sizes.rows;
            let row = |p: &Location| &parts[p.replica].bytes()[p.row * size..(p.row + 1) * size];
            let bytes: Vec<u8> = self.locations(step).iter().flat_map(row).copied().collect();
            let entries = self.sizes.replicas * self.sizes.share;
            Array::from_bytes(shape.with_dims(&[&[entries], &shape.dims[1..]].concat()), bytes)
        };
        Ok([gather(PARTS[0])?, gather(PARTS[1])?])
    }

    /// Returns the first step that is not planned.
    fn planned_until(&self) -> Option<usize> {
        self.planned.as_ref().map(|p| p.first + p.plan.len())
    }
}

impl Host for PoolHost {
    /// Fills the pool with the first training images. Every cell of an image's grid is the image's latent. The noise of the
    /// latents is one normal draw of (size, Z) from the data key.
    fn begin(&mut self, run: &mut Hosted<'_>, key: Key) -> Result<()> {
        let PoolSizes { replicas, share, rows, .. } = self.sizes;
        let executable = compile(run.mesh, &initial_pool(&self.model, share, rows)?)?;
        let normal = key.normal(replicas * share * self.model.latent);
        let latents = Array::new(&[replicas * share, 1, self.model.latent], &normal).split_rows(replicas)?;
        let pixels = run.examples.context("the pool needs training images")?.bytes();
        let shape = self.model.frame.pixels(share);
        let images: Vec<Array> = (pixels.chunks_exact(shape.bytes()).take(replicas))
            .map(|part| Array::new(&shape.dims, part))
            .collect();
        let mut arguments: Vec<Arg<'_>> = run.state.parameters().into_iter().map(Into::into).collect();
        arguments.extend([run.mesh.shard(&images)?.into(), run.mesh.shard(&latents)?.into()]);
        let results = executable.call(arguments)?;
        for (name, buffers) in PARTS.iter().zip(results) {
            run.state.set(name, buffers);
        }
        Ok(())
    }

    fn enter_chunk(&mut self, run: &mut Hosted<'_>, key: Key) -> Result<()> {
        run.state.set(KEY, run.mesh.replicate(&Array::new(&[2], &key.0))?);
        Ok(())
    }

    /// Plans up to the end of the chunk, if the step is not yet planned. If a replica lacks rows, first moves the entries back
    /// into the pool's order.
    fn prepare(&mut self, run: &mut Hosted<'_>, step: usize) -> Result<Option<usize>> {
        if self.shuffle != Shuffle::Exchange || self.planned_until().is_some_and(|end| step < end) {
            return Ok(self.planned_until());
        }
        let (mesh, within) = (run.mesh, step % self.chunk);
        let key = Key(words(&run.state.get(KEY)?[0])?);
        let plan = |locations: &[Location]| Plan::new(self.sizes, locations, key, self.chunk - within);
        let mut next = plan(self.locations(step));
        if next.is_empty() {
            log::info!("the pool's rows are used up: moved its entries back into order");
            let [images, grids] = self.in_order(run.state, step)?;
            next = plan(&self.sizes.initial_locations());
            for (name, buffers) in PARTS.iter().zip(self.upload(mesh, &images, &grids)?) {
                run.state.set(name, buffers);
            }
        }
        let arrays = next.arrays(within, self.chunk);
        let inputs = arrays.iter().map(|parts| mesh.shard(parts)).collect::<Result<Vec<_>>>()?;
        let inputs = inputs.try_into().ok().context("a plan has three inputs")?;
        self.planned = Some(Planned { first: step, plan: next, inputs });
        Ok(self.planned_until())
    }

    fn inputs(&self) -> Vec<&Buffers> {
        let planned = self.planned.iter().flat_map(|p| &p.inputs);
        std::iter::once(&self.replica).chain(planned).collect()
    }

    fn save(&self, state: &State, step: usize) -> Result<Vec<(String, Array)>> {
        let arrays = self.in_order(state, step)?;
        Ok(PARTS.map(String::from).into_iter().zip(arrays).collect())
    }

    fn restore(&mut self, mesh: &Mesh, arrays: &mut Tree<Array>) -> Result<Vec<(String, Buffers)>> {
        let mut take =
            |name: &str| arrays.remove(name).with_context(|| format!("the checkpoint has no {name}"));
        let (images, grids) = (take(IMAGES)?, take(GRIDS)?);
        Ok(PARTS.map(String::from).into_iter().zip(self.upload(mesh, &images, &grids)?).collect())
    }
}
