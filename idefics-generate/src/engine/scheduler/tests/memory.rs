//! Tests of the page pool, of the prefix index, and of the pages that several answers share.

use proptest::prelude::*;

use super::*;

fn ids(tokens: u32) -> Vec<u32> {
    (0..tokens).collect()
}

fn with_keys(scheduler: &mut Scheduler, ask: Ask, images: Vec<ImageShape>, now: Micros) -> SeqId {
    let tokens = ask.prompt_tokens;
    let id = scheduler.submit(ask, now).unwrap();
    scheduler.prepared(id, PromptShape { tokens, images, keys: chunk_keys(b"secret", &ids(tokens), &[], 8) });
    id
}

fn cached(scheduler: &mut Scheduler) -> Vec<u32> {
    let begun = |notice| if let Notice::Begun { cached_tokens, .. } = notice { Some(cached_tokens) } else { None };
    scheduler.take_notices().into_iter().filter_map(begun).collect()
}

#[test]
fn chunk_keys_differ_if_the_keys_and_values_differ() {
    let keys = |salt: &[u8], ids: &[u32], images: &[(u32, [u8; 32])]| chunk_keys(salt, ids, images, 8);
    let plain = keys(b"a", &ids(20), &[]);
    assert_eq!(plain.len(), 2, "an incomplete chunk has no key");
    assert_ne!(plain, keys(b"b", &ids(20), &[]), "the salt differs");
    let mut other = ids(20);
    other[1] = 7;
    assert!(keys(b"a", &other, &[]).iter().zip(&plain).all(|(one, two)| one != two), "the change affects all chunks");
    other = ids(20);
    other[9] = 7;
    assert_eq!(keys(b"a", &other, &[])[0], plain[0]);
    let image = |position, key| keys(b"a", &ids(20), &[(position, [key; 32])]);
    assert_ne!(image(2, 1), image(2, 2), "the image differs");
    assert_ne!(image(2, 1), image(3, 1), "the position differs");
    assert_eq!(image(9, 1)[0], plain[0], "the image is in a later chunk");
    assert_ne!(image(9, 1)[1], plain[1]);
}

#[test]
fn a_later_prompt_shares_all_chunks_but_that_of_its_last_token() {
    let mut scheduler = scheduler(Policy::default());
    let mut now = 0;
    for (tokens, hit) in [(16, 0), (16, 8), (17, 16), (24, 16), (25, 24), (7, 0)] {
        with_keys(&mut scheduler, ask(tokens, 2), Vec::new(), now);
        until_idle(&mut scheduler, &mut now);
        assert_eq!(cached(&mut scheduler), [hit], "{tokens} tokens");
    }
}

#[test]
fn prompts_that_start_together_share_what_the_first_has_computed() {
    let mut scheduler = scheduler(Policy::default());
    let mut now = 0;
    with_keys(&mut scheduler, ask(30, 9), Vec::new(), now);
    with_keys(&mut scheduler, ask(26, 9), Vec::new(), now);
    until_idle(&mut scheduler, &mut now);
    assert_eq!(cached(&mut scheduler), [0, 24]);
}

#[test]
fn images_in_cached_chunks_are_not_encoded() {
    let mut scheduler = scheduler(Policy::default());
    let mut now = 0;
    let until = [6, 12, u32::MAX];
    let images = || until.map(|needed_until| ImageShape { needed_until, patches: 9 }).to_vec();
    let encoded = |steps: Vec<StepPlan>| {
        let image = |step| if let StepPlan::Slice(Slice::Vision { image, .. }) = step { Some(image) } else { None };
        let mut images: Vec<u32> = steps.into_iter().filter_map(image).collect();
        images.dedup();
        images
    };
    for expected in [[0, 1, 2].as_slice(), &[1, 2]] {
        with_keys(&mut scheduler, ask(16, 1), images(), now);
        assert_eq!(encoded(steps(&mut scheduler, &mut now, 20)), expected);
    }
}

#[test]
fn idle_pages_of_the_prefix_index_are_allocated_when_needed() {
    let mut scheduler = scheduler(Policy::default());
    let mut now = 0;
    with_keys(&mut scheduler, ask(32, 1), Vec::new(), now);
    until_idle(&mut scheduler, &mut now);
    assert_eq!(scheduler.counts().pages, PageCounts { free: 32, idle: 8, owned: 0, reserved: 0 });
    add(&mut scheduler, ask(120, 26), now);
    until_idle(&mut scheduler, &mut now);
    // The request took 37 pages, of which 5 were idle. The last three chunks lost pages, so they left the index.
    assert_eq!(scheduler.counts().pages, PageCounts { free: 38, idle: 2, owned: 0, reserved: 0 });
    scheduler.take_notices();
    with_keys(&mut scheduler, ask(32, 1), Vec::new(), now);
    until_idle(&mut scheduler, &mut now);
    assert_eq!(cached(&mut scheduler), [8]);
}

#[test]
fn chunks_of_non_finite_requests_are_not_shared() {
    let mut scheduler = scheduler(Policy::default());
    let mut now = 0;
    let fails = |scheduler: &mut Scheduler, now: &mut Micros, fault| {
        let id = with_keys(scheduler, ask(17, 9), Vec::new(), *now);
        while scheduler.counts().rows == 0 {
            step(scheduler, now);
        }
        scheduler.plan(*now);
        scheduler.done(Outcome::Rows(vec![(id.answer(0), Verdict::Failed(fault))]), 1_000, *now);
        scheduler.counts().pages
    };
    assert_eq!(fails(&mut scheduler, &mut now, RowFault::NoAllowedToken).idle, 4);
    assert_eq!(fails(&mut scheduler, &mut now, RowFault::NonFinite).free, 40);
    assert_eq!(cached(&mut scheduler), [0, 16]);
}

#[test]
fn answers_share_full_pages_and_copy_the_partial_one() {
    for (tokens, copied) in [(10, 2), (8, 0)] {
        let mut scheduler = scheduler(Policy::default());
        let mut now = 0;
        let id = add(&mut scheduler, Ask { job: Job::Answers(3), ..ask(tokens, 6) }, now);
        let worst = scheduler.layout().worst_case(tokens, 6, 3);
        // The prompt has two full pages. Each answer needs two more pages.
        assert_eq!(worst, 2 + 3 * 2);
        let mut copies = Vec::new();
        until_decode_noting(&mut scheduler, &mut now, &mut copies);
        assert_eq!(copies.len(), copied);
        assert!(copies.iter().all(|copy| copy.slots == tokens % 4));
        let tables: Vec<_> = scheduler.sequence(id).unwrap().answers().iter().map(Answer::table).collect();
        assert!(
            tables
                .iter()
                .all(|table| table[..2] == tables[0][..2] && table[2..] != tables[0][2..] || *table == tables[0])
        );
        let pages = scheduler.counts().pages;
        assert_eq!(u64::from(pages.owned + pages.reserved), worst);
        until_idle(&mut scheduler, &mut now);
        assert_eq!(endings(&mut scheduler), [(id, Ending::Finished)]);
    }
}

fn until_decode_noting(scheduler: &mut Scheduler, now: &mut Micros, copies: &mut Vec<PageCopy>) {
    loop {
        match step(scheduler, now) {
            StepPlan::Fork { copies: more, .. } => copies.extend(more),
            StepPlan::Decode(_) => return,
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn pages_are_consistent_after_any_calls(calls in prop::collection::vec((0_u8..6, 0_u32..12), 0..200)) {
        let mut pool = PagePool::new(10);
        let mut reservation = pool.reserve(0).unwrap();
        let mut owned: Vec<PageId> = Vec::new();
        for (call, number) in calls {
            let page = (!owned.is_empty()).then(|| number as usize % owned.len().max(1));
            match (call, page) {
                (0, _) => {
                    let before = pool.available();
                    match pool.reserve(number) {
                        Some(more) => {
                            pool.give_back(std::mem::replace(&mut reservation, more));
                        }
                        None => prop_assert!(number > before),
                    }
                }
                (1, _) => {
                    let promised = reservation.pages();
                    let allocated = pool.allocate(&mut reservation);
                    prop_assert_eq!(allocated.is_some(), promised > 0);
                    owned.extend(allocated.map(|allocated| allocated.page));
                }
                (2, Some(page)) => {
                    pool.share(owned[page]);
                    owned.push(owned[page]);
                }
                (3, Some(page)) => pool.release(owned.swap_remove(page)),
                (4, Some(page)) => pool.keep(owned[page]),
                (5, Some(page)) => pool.forget(owned[page]),
                _ => {}
            }
            let mut refs = vec![0; 10];
            owned.iter().for_each(|page| refs[page.index()] += 1);
            prop_assert_eq!(pool.broken(&refs), None);
            let counts = pool.counts();
            prop_assert_eq!(counts.reserved, reservation.pages());
            prop_assert_eq!(counts.owned as usize, refs.iter().filter(|refs| **refs > 0).count());
        }
    }

    #[test]
    fn a_reservation_with_shared_pages_is_all_or_nothing(idle in 0_u32..10, taken in 0_u32..10, wanted in 0_u32..12) {
        let mut pool = PagePool::new(10);
        let mut reservation = pool.reserve(idle).unwrap();
        let pages: Vec<PageId> = (0..idle).map(|_| pool.allocate(&mut reservation).unwrap().page).collect();
        pages.iter().for_each(|page| { pool.keep(*page); pool.release(*page) });
        let shared = &pages[..taken.min(idle) as usize];
        let got = pool.reserve_and_share(wanted, shared);
        prop_assert_eq!(got.is_some(), wanted as usize + shared.len() <= 10);
        let owners = if got.is_some() { shared.len() } else { 0 };
        prop_assert_eq!(pool.counts().owned as usize, owners);
    }
}
