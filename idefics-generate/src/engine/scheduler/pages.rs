//! The pages of the KV cache, each of which is free, idle or owned, and the reservations of pages.

use std::collections::BTreeMap;

/// The number of a page: its index in the tensors of the page store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub(super) u32);

impl PageId {
    /// Returns the page's index in the page store.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A number of pages that a sequence may still allocate. Which pages it gets is decided when it allocates them.
///
/// A reservation must be returned with [`PagePool::give_back`]. If it is dropped, its pages stay reserved for ever. The
/// invariants detect this.
#[must_use]
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    pages: u32,
}

impl Reservation {
    /// Returns the number of pages that may still be allocated.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Moves `pages` pages of this reservation into a new one, or all of them if there are fewer.
    pub fn split(&mut self, pages: u32) -> Self {
        let pages = pages.min(self.pages);
        self.pages -= pages;
        Self { pages }
    }
}

/// Number of pages in each condition. Free, idle and owned pages add up to the total number of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageCounts {
    /// Pages without contents.
    pub free: u32,
    /// Pages that no sequence owns but the prefix index still knows.
    pub idle: u32,
    /// Pages that at least one sequence owns.
    pub owned: u32,
    /// Free or idle pages that are reserved for admitted sequences.
    pub reserved: u32,
}

/// A page that was allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocated {
    /// The page. It has one owner.
    pub page: PageId,
    /// Whether the page was idle. If so, the prefix index must forget its chunk.
    pub was_idle: bool,
}

/// All pages with their owners.
///
/// A page is *free*, *idle* (no owner, but kept for the prefix index, least recently used first) or *owned* by one or
/// more tables. A page with more than one owner, or in the prefix index, is never written. A sequence that has to write
/// to such a page first copies it to a page of its own.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<PageId>,
    refs: Vec<u32>,
    /// Whether the prefix index has the page.
    kept: Vec<bool>,
    /// Idle pages in the order of their release. The key is the number of the release, from 1.
    idle: BTreeMap<u64, PageId>,
    /// For each page, its key in `idle`, if it is idle.
    released: Vec<u64>,
    releases: u64,
    reserved: u32,
}

impl PagePool {
    /// Creates a pool of `pages` free pages.
    pub fn new(pages: u32) -> Self {
        Self {
            free: (0..pages).rev().map(PageId).collect(),
            refs: vec![0; pages as usize],
            kept: vec![false; pages as usize],
            idle: BTreeMap::new(),
            released: vec![0; pages as usize],
            releases: 0,
            reserved: 0,
        }
    }

    /// Returns the number of all pages.
    pub fn total(&self) -> u32 {
        self.refs.len() as u32
    }

    /// Returns the number of pages that may still be reserved.
    pub fn available(&self) -> u32 {
        (self.free.len() + self.idle.len()) as u32 - self.reserved
    }

    /// Returns the number of pages in each condition.
    pub fn counts(&self) -> PageCounts {
        let (free, idle) = (self.free.len() as u32, self.idle.len() as u32);
        PageCounts { free, idle, owned: self.total() - free - idle, reserved: self.reserved }
    }

    /// Reserves `pages` pages. Returns `None` if too few are available.
    pub fn reserve(&mut self, pages: u32) -> Option<Reservation> {
        self.reserve_and_share(pages, &[])
    }

    /// Reserves `pages` pages, and makes the caller an owner of the pages `shared`. Does nothing and returns `None` if
    /// too few pages are available. Each idle page in `shared` reduces the number of available pages by one.
    pub fn reserve_and_share(&mut self, pages: u32, shared: &[PageId]) -> Option<Reservation> {
        let revived = shared.iter().filter(|page| self.refs[page.index()] == 0).count() as u64;
        if u64::from(pages) + revived > u64::from(self.available()) {
            return None;
        }
        shared.iter().for_each(|page| self.share(*page));
        self.reserved += pages;
        Some(Reservation { pages })
    }

    /// Makes the caller an owner of the pages `shared`, which replace the same number of reserved pages. Does nothing
    /// and returns false if fewer pages are reserved.
    pub fn share_instead(&mut self, reservation: &mut Reservation, shared: &[PageId]) -> bool {
        let pages = shared.len() as u32;
        if pages > reservation.pages {
            return false;
        }
        reservation.pages -= pages;
        self.reserved -= pages;
        shared.iter().for_each(|page| self.share(*page));
        true
    }

    /// Gives up the pages that are left in a reservation.
    pub fn give_back(&mut self, reservation: Reservation) {
        self.reserved -= reservation.pages;
    }

    /// Allocates a reserved page: a free page, or if there is none, the idle page that was released first. Returns
    /// `None` if the reservation is used up.
    pub fn allocate(&mut self, reservation: &mut Reservation) -> Option<Allocated> {
        if reservation.pages == 0 {
            return None;
        }
        let allocated = match self.free.pop() {
            Some(page) => Allocated { page, was_idle: false },
            None => Allocated { page: self.idle.pop_first()?.1, was_idle: true },
        };
        reservation.pages -= 1;
        self.reserved -= 1;
        self.kept[allocated.page.index()] = false;
        self.refs[allocated.page.index()] = 1;
        Some(allocated)
    }

    /// Adds an owner. Only [`reserve_and_share`](Self::reserve_and_share) and [`share_instead`](Self::share_instead)
    /// may add an owner to an idle page, because idle pages may be reserved for others.
    pub fn share(&mut self, page: PageId) {
        let refs = &mut self.refs[page.index()];
        if *refs == 0 {
            self.idle.remove(&self.released[page.index()]);
        }
        *refs += 1;
    }

    /// Removes an owner. A page without owners becomes idle if the prefix index has it, and free otherwise.
    pub fn release(&mut self, page: PageId) {
        let refs = &mut self.refs[page.index()];
        debug_assert!(*refs > 0, "page {} is released, but has no owner", page.0);
        *refs = refs.saturating_sub(1);
        if *refs > 0 {
            return;
        }
        if self.kept[page.index()] {
            self.releases += 1;
            self.released[page.index()] = self.releases;
            self.idle.insert(self.releases, page);
        } else {
            self.free.push(page);
        }
    }

    /// Notes that the prefix index has the page. The page must have an owner.
    pub fn keep(&mut self, page: PageId) {
        debug_assert!(self.refs[page.index()] > 0, "page {} has no owner", page.0);
        self.kept[page.index()] = true;
    }

    /// Notes that the prefix index no longer has the page. An idle page becomes free.
    pub fn forget(&mut self, page: PageId) {
        if std::mem::take(&mut self.kept[page.index()]) && self.refs[page.index()] == 0 {
            self.idle.remove(&self.released[page.index()]);
            self.free.push(page);
        }
    }

    /// Returns the number of owners of a page.
    pub fn refs(&self, page: PageId) -> u32 {
        self.refs[page.index()]
    }

    /// Whether a page may be written: it has one owner, and the prefix index does not know it.
    pub fn is_writable(&self, page: PageId) -> bool {
        self.refs[page.index()] == 1 && !self.kept[page.index()]
    }

    /// Describes the first inconsistency of the lists. `owners` is the number of tables that own each page.
    pub(super) fn broken(&self, owners: &[u32]) -> Option<String> {
        if owners != self.refs {
            return Some(format!("the tables own the pages {owners:?} times, but the pool counts {:?}", self.refs));
        }
        let mut listed = vec![false; self.refs.len()];
        for (page, idle) in
            self.free.iter().map(|page| (page, false)).chain(self.idle.values().map(|page| (page, true)))
        {
            if self.refs[page.index()] > 0 || self.kept[page.index()] != idle || listed[page.index()] {
                return Some(format!("page {} is wrongly listed as {}", page.0, if idle { "idle" } else { "free" }));
            }
            listed[page.index()] = true;
        }
        if (0..listed.len()).any(|page| !listed[page] && self.refs[page] == 0) {
            return Some("a page without owners is neither free nor idle".to_owned());
        }
        if self.reserved as usize > self.free.len() + self.idle.len() {
            return Some(format!(
                "{} pages are reserved, more than are free or idle: {:?}",
                self.reserved,
                self.counts()
            ));
        }
        None
    }
}
