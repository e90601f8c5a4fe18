//! Caches image vectors by image content, so that the same image is encoded only once.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use burn::tensor::Tensor;
use idefics_processor::image::ImageTile;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::pipeline::milliseconds;
use crate::{EncodeStage, Error, Idefics, ImageVectors, Timings};

/// Key of an image: SHA-256 of its size and its preprocessed pixels.
pub type ImageKey = [u8; 32];

/// Computes the key of a preprocessed image.
pub fn image_key(tile: &ImageTile) -> ImageKey {
    let mut digest = Sha256::new();
    digest.update((tile.width() as u64).to_le_bytes());
    digest.update((tile.height() as u64).to_le_bytes());
    let mut bytes = Vec::with_capacity(4 * tile.width());
    for row in tile.pixels().chunks(tile.width().max(1)) {
        bytes.clear();
        bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
        digest.update(&bytes);
    }
    digest.finalize().into()
}

/// An LRU cache of image vectors that holds at most `budget` bytes.
#[derive(Debug)]
pub(crate) struct FeatureCache {
    budget: usize,
    bytes: usize,
    /// Number of accesses so far, used as a timestamp.
    clock: u64,
    entries: HashMap<ImageKey, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Image vectors, `[n_vectors, d]`.
    features: Tensor<2>,
    bytes: usize,
    used: u64,
}

impl FeatureCache {
    pub(crate) fn new(budget: usize) -> Self {
        Self { budget, bytes: 0, clock: 0, entries: HashMap::new() }
    }

    /// Sets the limit to `budget` bytes.
    pub(crate) fn set_budget(&mut self, budget: usize) {
        self.budget = budget;
        self.make_room(0);
    }

    /// Removes all entries.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the vectors of an image, `[n_vectors, d]`, if they are cached.
    pub(crate) fn get(&mut self, key: &ImageKey) -> Option<Tensor<2>> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(entry.features.clone())
    }

    /// Stores the vectors of several images. An image that alone exceeds the budget is not stored.
    pub(crate) fn insert(&mut self, keys: &[ImageKey], features: &ImageVectors) {
        for (index, (key, view)) in keys.iter().zip(features.images()).enumerate() {
            let bytes = view.shape().num_elements() * view.dtype().size();
            if bytes > self.budget || self.entries.contains_key(key) {
                continue;
            }
            self.make_room(bytes);
            // Copied, because a view would keep the vectors of the whole batch alive.
            let features = features.copied(index);
            self.clock += 1;
            self.bytes += bytes;
            self.entries.insert(*key, Entry { features, bytes, used: self.clock });
        }
    }

    /// Removes the least recently used entries until `bytes` more fit.
    fn make_room(&mut self, bytes: usize) {
        while self.bytes + bytes > self.budget {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key);
            let Some(entry) = oldest.and_then(|key| self.entries.remove(&key)) else { return };
            self.bytes -= entry.bytes;
        }
    }
}

impl Idefics {
    /// Sets the maximum size of the cache of image vectors to `bytes`. The default is 256 MiB. Cached images are not
    /// encoded again.
    pub fn set_feature_budget(&self, bytes: usize) {
        self.feature_cache().set_budget(bytes);
    }

    /// Returns the size of all cached image vectors in bytes.
    pub fn feature_bytes(&self) -> usize {
        self.feature_cache().bytes()
    }

    pub(crate) fn forget_features(&self) {
        self.feature_cache().clear();
    }

    fn feature_cache(&self) -> MutexGuard<'_, FeatureCache> {
        self.features.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Encodes images like [`Model::encode_images`](crate::Model::encode_images), and adds the time of each stage to
    /// `timings`. Images that are cached, or that occur several times in `images`, are not encoded again.
    pub(crate) fn encode_images(
        &self,
        images: &[ImageTile],
        timings: &mut Timings,
    ) -> Result<Option<ImageVectors>, Error> {
        if images.is_empty() {
            return Ok(None);
        }
        let clock = Instant::now();
        let keys: Vec<ImageKey> = images.par_iter().map(image_key).collect();
        let mut known: HashMap<ImageKey, Tensor<2>> = HashMap::new();
        let mut missing: Vec<usize> = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            if known.contains_key(key) || missing.iter().any(|&missing| keys[missing] == *key) {
                continue;
            }
            match self.feature_cache().get(key) {
                Some(features) => _ = known.insert(*key, features),
                None => missing.push(index),
            }
        }
        let tiles: Vec<&ImageTile> = missing.iter().map(|&index| &images[index]).collect();
        let mut since = clock;
        let encoded = self.model.encode_in_stages(&tiles, self.vision_batch, &mut |stage| {
            self.sync()?;
            match stage {
                EncodeStage::Vision => timings.vision_ms += milliseconds(since),
                EncodeStage::Connector => timings.connector_ms += milliseconds(since),
            }
            since = Instant::now();
            Ok(())
        })?;
        let clock = since;
        self.sync()?;
        if let Some(encoded) = encoded {
            let missing: Vec<ImageKey> = missing.iter().map(|&index| keys[index]).collect();
            self.feature_cache().insert(&missing, &encoded);
            if missing.len() == images.len() {
                timings.connector_ms += milliseconds(clock);
                return Ok(Some(encoded));
            }
            known.extend(missing.into_iter().zip(encoded.images()));
        }
        let in_order = keys.iter().map(|key| known[key].clone()).collect(); // each [n_vectors, d]
        timings.connector_ms += milliseconds(clock);
        Ok(ImageVectors::of_images(in_order))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn features(n_images: usize) -> ImageVectors {
        Tensor::<3>::ones([n_images, 2, 4], &Device::flex()).into()
    }

    #[test]
    fn evicts_least_recently_used_image() {
        let mut cache = FeatureCache::new(2 * 32); // two images of 2 × 4 × 4 bytes
        cache.insert(&[[1; 32], [2; 32]], &features(2));
        assert_eq!(cache.bytes(), 64);
        assert_eq!(cache.get(&[1; 32]).unwrap().dims(), [2, 4]);
        cache.insert(&[[3; 32]], &features(1));
        assert!(cache.get(&[2; 32]).is_none() && cache.get(&[1; 32]).is_some() && cache.get(&[3; 32]).is_some());
        cache.set_budget(31);
        cache.insert(&[[4; 32]], &features(1));
        assert_eq!((cache.bytes(), cache.entries.len()), (0, 0));
    }

    #[test]
    fn same_pixels_in_another_shape_have_another_key() {
        let tile = |width, height| ImageTile::new(width, height, vec![0.25; 18]).unwrap();
        assert_eq!(image_key(&tile(3, 2)), image_key(&tile(3, 2)));
        assert_ne!(image_key(&tile(3, 2)), image_key(&tile(2, 3)));
    }
}
