//! The order of the images and the keys of the steps. Both follow from the data key, so that any step can be repeated.

use crate::engine::random::Key;

/// The images of each step of a chunk, for each replica.
#[derive(Clone, Debug, PartialEq)]
pub struct ChunkOrder {
    /// Indices of the images: (replica, step, image), row-major.
    pub images: Vec<i32>,
    /// Data key of the next chunk.
    pub next: Key,
}

/// Returns the order of a chunk of `steps` steps, each with `batch` images over all replicas, from a data set of `images`
/// images.
///
/// The chunk's key is split into the key of the next chunk and one key per epoch. An epoch is the first
/// `(images // batch) · batch` entries of a permutation. The order is empty if the set is smaller than a batch.
pub fn chunk_order(key: Key, images: usize, batch: usize, steps: usize) -> ChunkOrder {
    let next = key.split_at(0);
    let per_epoch = images / batch;
    if per_epoch == 0 {
        return ChunkOrder { images: vec![], next };
    }
    let epochs = steps / per_epoch + 1;
    let mut order = Vec::with_capacity(epochs * per_epoch * batch);
    for epoch in 0..epochs {
        if order.len() < steps * batch {
            let permutation = key.split_at(1 + epoch as u64).permutation(images);
            order.extend(permutation[..per_epoch * batch].iter().map(|i| *i as i32));
        }
    }
    order.truncate(steps * batch);
    ChunkOrder { images: order, next }
}

/// Returns a replica's key at the beginning of a chunk.
pub fn replica_key(data: Key, chunk: usize, replicas: usize, replica: usize) -> Key {
    data.split_at((chunk * replicas + replica) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_batch_equals_that_of_jax() {
        // JAX 0.10.2: data key 1, 256 images, 2 replicas of 8 images, 16 steps.
        let order = chunk_order(Key::new(1), 256, 16, 16);
        assert_eq!(order.images.len(), 256);
        assert_eq!(order.images[..8], [94, 54, 132, 230, 95, 11, 255, 200]);
    }

    #[test]
    fn an_epoch_takes_each_image_once() {
        let mut images = chunk_order(Key::new(5), 10, 3, 3).images;
        images.sort_unstable();
        images.dedup();
        assert_eq!(images.len(), 9);
    }
}
