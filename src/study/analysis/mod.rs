//! What the report studies beside the bound: labels of binarized images, latents, their map, and a probe of cells.

pub mod latents;
pub mod neighbours;
pub mod originals;
pub mod probe;
pub mod tsne;

use std::num::NonZero;
use std::thread;

/// Fills each place with what `of` gives for its index, on all cores.
fn fill<T: Send>(places: &mut [T], of: impl Fn(usize) -> T + Sync) {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = places.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        for (part, places) in places.chunks_mut(share).enumerate() {
            let of = &of;
            scope.spawn(move || {
                places.iter_mut().enumerate().for_each(|(i, place)| *place = of(part * share + i));
            });
        }
    });
}
