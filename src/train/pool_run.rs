//! The pool of a run: how it begins, what the host feeds to the devices for it, and its order for checkpoints.

use anyhow::{Context, Result, ensure};

use super::exchange::{Place, Plan, Sizes};
use super::pool::{Entries, PoolSpec, Shuffle};
use super::state::{State, words};
use super::step::StepSpec;
use crate::data::Split;
use crate::engine::array::Array;
use crate::engine::compile::compile;
use crate::engine::ir::{Function, Graph};
use crate::engine::random::Key;
use crate::engine::runtime::{Buffers, Mesh};
use crate::engine::shape::{DType, Shape};
use crate::model::loss::Latents;
use crate::model::vnca::start;
use crate::model::{Model, padded};
use crate::nn::params::Params;

/// The state's entries of the pool.
pub const PARTS: [&str; 2] = ["pool.images", "pool.grids"];

pub struct PoolRun {
    spec: StepSpec,
    shuffle: Shuffle,
    sizes: Sizes,
    /// Where the entries are before the step up to which nothing is planned.
    places: Vec<Place>,
    planned: Option<Planned>,
    /// The replicas' indices.
    replica: Buffers,
}

struct Planned {
    /// The step that the plan begins with.
    first: usize,
    plan: Plan,
    inputs: [Buffers; 3],
}

/// Makes a replica's entries of the pool that a run begins with: `share` of them, in so many `rows`.
///
/// # Errors
/// None, unless the model is ill-formed.
pub fn seeding(model: &Model, share: usize, rows: usize) -> Result<Function> {
    let leaves = model.leaves();
    let g = Graph::new("pool");
    let params = Params::new(&leaves, &Params::inputs(&g, &leaves, ""));
    let images = g.input("images", &Shape::new(DType::U8, &[share, 28, 28]));
    let eps = g.input("eps", &Shape::f32(&[share, 1, model.latent]));
    let z = Latents::of(&params, padded(&g, images), eps).z.reshape(&[share, model.latent]);
    let grids = start(model, z).pad_rows(rows);
    let outputs = PARTS.map(String::from).into_iter().zip([images.pad_rows(rows), grids]);
    g.finish(&outputs.collect::<Vec<_>>(), &[])
}

impl PoolRun {
    /// # Errors
    /// When a device fails.
    pub fn new(spec: &StepSpec, pool: &PoolSpec, mesh: &Mesh) -> Result<PoolRun> {
        let replicas = spec.replicas;
        let sizes =
            Sizes { replicas, share: pool.size / replicas, rows: pool.rows(replicas), batch: spec.each() };
        let indices: Vec<Array> = (0..replicas).map(|r| Array::scalar(r as i32)).collect();
        Ok(PoolRun {
            spec: spec.clone(),
            shuffle: pool.shuffle,
            sizes,
            places: sizes.in_order(),
            planned: None,
            replica: mesh.shard(&indices)?,
        })
    }

    /// The pool that a run begins with: the first training images, each with a latent of its own at every place of its
    /// grid, drawn as one normal of (size, Z) from the data key.
    ///
    /// # Errors
    /// When the program does not compile, or a device fails.
    pub fn seed(&self, mesh: &Mesh, state: &mut State, train: &Split, key: Key) -> Result<()> {
        let Sizes { replicas, share, rows, .. } = self.sizes;
        let model = &self.spec.model;
        let executable = compile(mesh, &seeding(model, share, rows)?)?;

        let normal = key.normal(self.spec.pool.map_or(0, |p| p.size) * model.latent);
        let parts = |values: &[f32]| {
            let parts = values.chunks_exact(share * model.latent);
            parts.map(|part| Array::new(&[share, 1, model.latent], part)).collect::<Vec<_>>()
        };
        let pixels = |r: usize| Array::new(&[share, 28, 28], &train.pixels[r * share * 784..][..share * 784]);
        let pixels: Vec<Array> = (0..replicas).map(pixels).collect();
        let mut arguments: Vec<crate::engine::runtime::Arg<'_>> =
            state.parameters().iter().map(Into::into).collect();
        arguments.extend([mesh.shard(&pixels)?.into(), mesh.shard(&parts(&normal))?.into()]);
        let results = executable.call(arguments)?;
        for (name, buffers) in PARTS.iter().zip(results) {
            state.set(name, buffers);
        }
        Ok(())
    }

    /// Puts images (size, 28, 28) and grids (size, 32, 32, Z) on the replicas in their order.
    ///
    /// # Errors
    /// When they are not of these sizes, or a device fails.
    pub fn put(&mut self, mesh: &Mesh, images: &Array, grids: &Array) -> Result<[Buffers; 2]> {
        let Sizes { replicas, share, rows, .. } = self.sizes;
        (self.places, self.planned) = (self.sizes.in_order(), None);
        let put = |array: &Array, shape: Shape| {
            let whole = shape.with_dims(&[&[replicas * share], &shape.dims[1..]].concat());
            ensure!(*array.shape() == whole, "a pool of {whole} is needed, not {}", array.shape());
            let part = |r: usize| {
                let size = array.bytes().len() / replicas;
                let mut bytes = array.bytes()[r * size..(r + 1) * size].to_vec();
                bytes.resize(shape.bytes(), 0);
                Array::from_bytes(shape.clone(), bytes)
            };
            mesh.shard(&(0..replicas).map(part).collect::<Result<Vec<_>>>()?)
        };
        let [image_shape, grid_shape] = Entries::shapes(&self.spec.model, rows);
        Ok([put(images, image_shape)?, put(grids, grid_shape)?])
    }

    /// Where the entries are before a step.
    fn places(&self, step: usize) -> &[Place] {
        match &self.planned {
            Some(Planned { first, plan, .. }) => plan.places(step - first),
            None => &self.places,
        }
    }

    /// All images and grids in the pool's order, as they are before a step.
    ///
    /// # Errors
    /// When a device fails.
    pub fn in_order(&self, state: &State, step: usize) -> Result<[Array; 2]> {
        let gather = |name: &str| -> Result<Array> {
            let parts = state.get(name)?;
            let shape = parts[0].shape();
            let size = shape.bytes() / self.sizes.rows;
            let row = |p: &Place| &parts[p.replica].bytes()[p.row * size..(p.row + 1) * size];
            let bytes: Vec<u8> = self.places(step).iter().flat_map(row).copied().collect();
            let entries = self.sizes.replicas * self.sizes.share;
            Array::from_bytes(shape.with_dims(&[&[entries], &shape.dims[1..]].concat()), bytes)
        };
        Ok([gather(PARTS[0])?, gather(PARTS[1])?])
    }

    /// Plans from a step on, up to its chunk's end, if it is not planned yet. Where a replica's rows are short, the
    /// entries are first put back in their order.
    ///
    /// # Errors
    /// When a device fails.
    pub fn prepare(&mut self, mesh: &Mesh, state: &mut State, step: usize) -> Result<()> {
        if self.shuffle != Shuffle::Exchange || self.planned_until().is_some_and(|end| step < end) {
            return Ok(());
        }
        let within = step % self.spec.chunk;
        let key = Key(words(&state.get("pool.key")?[0])?);
        let plan = |places: &[Place]| Plan::new(self.sizes, places, key, self.spec.chunk - within);
        let mut next = plan(self.places(step));
        if next.is_empty() {
            log::info!("the pool's entries are put back in their order");
            let [images, grids] = self.in_order(state, step)?;
            next = plan(&self.sizes.in_order());
            for (name, buffers) in PARTS.iter().zip(self.put(mesh, &images, &grids)?) {
                state.set(name, buffers);
            }
        }
        let arrays = next.arrays(within, self.spec.chunk);
        let inputs = arrays.iter().map(|parts| mesh.shard(parts)).collect::<Result<Vec<_>>>()?;
        let inputs = inputs.try_into().ok().context("a plan has three inputs")?;
        self.planned = Some(Planned { first: step, plan: next, inputs });
        Ok(())
    }

    /// The step before which a new plan is needed.
    pub fn planned_until(&self) -> Option<usize> {
        self.planned.as_ref().map(|p| p.first + p.plan.len())
    }

    /// The train program's inputs for the pool.
    pub fn inputs(&self) -> Vec<&Buffers> {
        let planned = self.planned.iter().flat_map(|p| &p.inputs);
        std::iter::once(&self.replica).chain(planned).collect()
    }
}
