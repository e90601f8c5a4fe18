//! The memory that sequences take and release: pages of the KV cache, the prefix index and context slabs.

use super::pages::{PageId, PagePool, Reservation};
use super::prefix::{ChunkKey, PrefixIndex};

/// The memory that sequences share.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) pages: PagePool,
    pub(super) prefix: PrefixIndex,
    pub(super) slabs: u32,
}

impl Memory {
    pub(super) fn new(pages: u32, slabs: u32) -> Self {
        Self { pages: PagePool::new(pages), prefix: PrefixIndex::default(), slabs }
    }

    /// Allocates a reserved page. If the page was idle, its chunk leaves the prefix index.
    pub(super) fn allocate(&mut self, reservation: &mut Reservation) -> Option<PageId> {
        let allocated = self.pages.allocate(reservation)?;
        if allocated.was_idle {
            self.prefix.remove_page(allocated.page, &mut self.pages);
        }
        Some(allocated.page)
    }

    /// Extends `table` to `pages` pages. Returns false if too few pages were reserved.
    pub(super) fn extend(&mut self, table: &mut Vec<PageId>, reservation: &mut Reservation, pages: u64) -> bool {
        while (table.len() as u64) < pages {
            let Some(page) = self.allocate(reservation) else { return false };
            table.push(page);
        }
        true
    }

    /// Adds the whole chunks of a prompt to the index.
    pub(super) fn index(&mut self, keys: &[ChunkKey], table: &[PageId], pages_per_chunk: usize) {
        for (key, pages) in keys.iter().zip(table.chunks_exact(pages_per_chunk)) {
            self.prefix.insert(*key, pages, &mut self.pages);
        }
    }

    /// Removes chunks from the index.
    pub(super) fn forget(&mut self, keys: &[ChunkKey]) {
        keys.iter().for_each(|key| self.prefix.remove(key, &mut self.pages));
    }

    /// Releases the pages and the reservation of an answer. The last page is released first, so that the end of a
    /// prefix is evicted before its beginning.
    pub(super) fn release(&mut self, table: Vec<PageId>, reservation: Reservation) {
        table.into_iter().rev().for_each(|page| self.pages.release(page));
        self.pages.give_back(reservation);
    }
}
