//! The prefix cache, which knows which pages hold which chunks of prompts.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::pages::{PageId, PagePool};

/// The key of a chunk. It depends on the chunk and on everything before it in the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkKey([u8; 32]);

/// Computes the keys of all whole chunks of a prompt. A key is the SHA-256 hash of the salt, the key of the previous
/// chunk, the ids of the chunk, and the positions and keys of the images that begin in the chunk.
///
/// - `salt`: a tenant's secret, so that response times do not reveal what other tenants asked;
/// - `ids`: the tokens of the prompt;
/// - `images`: for each image in the prompt's order, the position of its first token and its key;
/// - `chunk_tokens`: [`Layout::chunk_tokens`](super::Layout::chunk_tokens).
pub fn chunk_keys(salt: &[u8], ids: &[u32], images: &[(u32, [u8; 32])], chunk_tokens: u32) -> Vec<ChunkKey> {
    let mut before = [0; 32];
    let chunks = ids.chunks_exact(chunk_tokens.max(1) as usize);
    let firsts = (0_u32..).step_by(chunk_tokens.max(1) as usize);
    let key = |(chunk, first): (&[u32], u32)| {
        let mut digest = Sha256::new();
        digest.update((salt.len() as u64).to_le_bytes());
        digest.update(salt);
        digest.update(before);
        digest.update((chunk.len() as u64).to_le_bytes());
        chunk.iter().for_each(|id| digest.update(id.to_le_bytes()));
        for (position, image) in
            images.iter().filter(|(position, _)| (first..first.saturating_add(chunk_tokens)).contains(position))
        {
            digest.update(position.to_le_bytes());
            digest.update(image);
        }
        before = digest.finalize().into();
        ChunkKey(before)
    };
    chunks.zip(firsts).map(key).collect()
}

/// The pages of all chunks whose keys and values are completely computed.
///
/// A chunk is found only if all chunks before it are found. If an earlier chunk is evicted, the later chunks stay until
/// they are the least recently used. They can be found again once the earlier chunk has been computed again.
#[derive(Debug, Default)]
pub struct PrefixIndex {
    by_chunk: HashMap<ChunkKey, Box<[PageId]>>,
    by_page: HashMap<PageId, ChunkKey>,
}

impl PrefixIndex {
    /// Returns the pages of the longest run of known chunks from the start of the prompt.
    pub fn find(&self, keys: &[ChunkKey]) -> Vec<PageId> {
        keys.iter().map_while(|key| self.by_chunk.get(key)).flatten().copied().collect()
    }

    /// Adds a chunk whose pages are all written, and tells the pool to keep them. Does nothing if the index already has
    /// the chunk or one of the pages.
    pub fn insert(&mut self, key: ChunkKey, pages: &[PageId], pool: &mut PagePool) {
        if self.by_chunk.contains_key(&key) || pages.iter().any(|page| self.by_page.contains_key(page)) {
            return;
        }
        for page in pages {
            self.by_page.insert(*page, key);
            pool.keep(*page);
        }
        self.by_chunk.insert(key, pages.into());
    }

    /// Removes a chunk. Sequences that own its pages keep them.
    pub fn remove(&mut self, key: &ChunkKey, pool: &mut PagePool) {
        for page in self.by_chunk.remove(key).unwrap_or_default() {
            self.by_page.remove(&page);
            pool.forget(page);
        }
    }

    /// Removes the chunk to which a page belongs.
    pub fn remove_page(&mut self, page: PageId, pool: &mut PagePool) {
        if let Some(key) = self.by_page.get(&page).copied() {
            self.remove(&key, pool);
        }
    }

    /// Returns the number of chunks in the index.
    pub fn len(&self) -> usize {
        self.by_chunk.len()
    }

    /// Whether the index has no chunk.
    pub fn is_empty(&self) -> bool {
        self.by_chunk.is_empty()
    }
}
