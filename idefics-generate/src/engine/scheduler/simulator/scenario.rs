//! The random scenario of one simulation. It depends only on the seed.

use std::ops::Range;

use super::super::{Ask, ImageShape, Job, Layout, Micros, Policy, PromptShape, RowFault, SECOND, Tenant, chunk_keys};
use super::stub::mix;

/// A generator of pseudo-random numbers, similar to SplitMix64.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0, 0x5851_f42d_4c95_7f2d)
    }

    /// Returns a random number in the range.
    pub(super) fn from(&mut self, range: Range<u32>) -> u32 {
        range.start + (self.next() % u64::from(range.end - range.start)) as u32
    }

    /// Returns true with a probability of 1 / `times`.
    pub(super) fn chance(&mut self, times: u32) -> bool {
        self.from(0..times) == 0
    }

    pub(super) fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.from(0..values.len() as u32) as usize]
    }
}

#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) first: u32,
    pub(super) length: u32,
    pub(super) key: u64,
}

impl Image {
    pub(super) fn tokens(&self) -> Range<u32> {
        self.first..self.first + self.length
    }
}

/// A fault that the stub executor causes in a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// An answer fails with `fault` after `after` tokens.
    Row { answer: u32, after: u32, fault: RowFault },
    /// Every step with this answer panics once the answer has `after` tokens.
    Panics { answer: u32, after: u32 },
    /// Every slice of the chunk that contains position `at` panics.
    PromptPanics { at: u32 },
}

impl Fault {
    pub(super) fn applies(self, row: u32, generated: u32) -> bool {
        match self {
            Self::Row { answer, after, .. } | Self::Panics { answer, after } => answer == row && generated >= after,
            Self::PromptPanics { .. } => false,
        }
    }

    pub(super) fn prompt_panics(self, tokens: &Range<u32>) -> bool {
        matches!(self, Self::PromptPanics { at } if tokens.contains(&at))
    }
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) tenant: u32,
    pub(super) ids: Vec<u32>,
    pub(super) images: Vec<Image>,
    /// Whether the images are read by cross-attention.
    pub(super) context: bool,
    pub(super) max_tokens: u32,
    pub(super) answers: u32,
    pub(super) solo: bool,
    pub(super) solo_steps: u32,
    pub(super) seed: u64,
    pub(super) deadline: Option<Micros>,
    pub(super) fault: Option<Fault>,
    /// Number of tokens by which the announced prompt is shorter than the prepared prompt.
    pub(super) announced_less: u32,
}

impl Request {
    pub(super) fn ask(&self) -> Ask {
        Ask {
            tenant: Tenant(self.tenant),
            prompt_tokens: (self.ids.len() as u32).saturating_sub(self.announced_less).max(1),
            max_tokens: self.max_tokens,
            job: if self.solo { Job::Solo } else { Job::Answers(self.answers) },
            slabs: if self.context { self.images.len() as u32 } else { 0 },
            deadline: self.deadline,
        }
    }

    pub(super) fn prompt(&self, chunk_tokens: u32) -> PromptShape {
        let mut keys = Vec::new();
        let mut images = Vec::new();
        for image in &self.images {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&image.key.to_le_bytes());
            keys.push((image.first, key));
            let needed_until = if self.context { u32::MAX } else { image.tokens().end };
            images.push(ImageShape { needed_until, patches: image.length });
        }
        let keys = chunk_keys(&self.tenant.to_le_bytes(), &self.ids, &keys, chunk_tokens);
        PromptShape { tokens: self.ids.len() as u32, images, keys }
    }
}

/// How a request is ended from outside the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outside {
    Cancelled,
    SlowReader,
    BadInput,
}

/// A request, the times when it is submitted and prepared, and how it is ended from outside the scheduler.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) at: Micros,
    pub(super) preparation: Micros,
    pub(super) request: Request,
    pub(super) end: Option<(Micros, Outside)>,
}

#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) layout: Layout,
    pub(super) policy: Policy,
    pub(super) arrivals: Vec<Arrival>,
    /// One step in `transient` steps fails at random; 0 if none does.
    pub(super) transient: u32,
    pub(super) loses_pages_at: Option<Micros>,
    pub(super) drains_at: Option<Micros>,
    /// Whether tokens are proposed.
    pub(super) speculates: bool,
    pub(super) tenants: u32,
}

impl Scenario {
    pub(super) fn draw(random: &mut Random) -> Self {
        let page_tokens = random.one_of(&[2, 4]);
        let layout = Layout {
            pages: random.from(12..90),
            page_tokens,
            chunk_tokens: page_tokens * random.one_of(&[1, 2, 4]),
            text_layers: random.from(1..6),
            vision_layers: random.from(1..5),
            slabs: random.one_of(&[0, 0, 5]),
        };
        let policy = Policy {
            max_batch: random.from(1..7) as usize,
            turn_steps: random.one_of(&[1, 3, 8]),
            decode_share: random.one_of(&[0.2, 0.5, 0.8]),
            slice_floor: random.one_of(&[100, 500, 3_000]),
            max_queue: random.from(3..25) as usize,
            max_queue_tokens: random.one_of(&[60, 400, 10_000]),
            tenant_share: random.one_of(&[1.0, 0.5]),
            queue_timeout: random.one_of(&[8_000, 30 * SECOND, 30 * SECOND]),
            max_passes: random.one_of(&[8, 2]),
            pass_window: random.one_of(&[2_000, 10_000, 2 * SECOND]),
            min_gain: random.one_of(&[0.0, 1.1]),
        };
        let tenants = random.one_of(&[1, 1, 3]);
        let bases: Vec<Vec<u32>> = (0..3).map(|_| (0..100).map(|_| random.from(1..50)).collect()).collect();
        let hurry = random.one_of(&[300, 2_000, 8_000]);
        let faults = random.chance(2);
        let mut now = 0;
        let mut arrival = |_| {
            now += Micros::from(random.from(0..hurry));
            let request = draw_request(random, &layout, &bases, tenants, now, faults);
            let ends = random.chance(6).then(|| {
                random.one_of(&[Outside::Cancelled, Outside::Cancelled, Outside::SlowReader, Outside::BadInput])
            });
            let end = ends.map(|outside| (now + Micros::from(random.from(0..40_000)), outside));
            Arrival { at: now, preparation: random.one_of(&[0, 0, 900, 7_000]), request, end }
        };
        let count = mix(u64::from(layout.pages), u64::from(hurry)) % 18 + 4;
        let arrivals = (0..count).map(&mut arrival).collect();
        let late = |random: &mut Random, times| random.chance(times).then(|| Micros::from(random.from(0..60_000)));
        Self {
            transient: if faults { random.one_of(&[0, 0, 60, 15]) } else { 0 },
            loses_pages_at: if faults { late(random, 6) } else { None },
            drains_at: late(random, 10),
            speculates: random.chance(2),
            layout,
            policy,
            arrivals,
            tenants,
        }
    }
}

fn draw_request(
    random: &mut Random,
    layout: &Layout,
    bases: &[Vec<u32>],
    tenants: u32,
    now: Micros,
    faults: bool,
) -> Request {
    let length = random.one_of(&[1, layout.chunk_tokens, 2 * layout.chunk_tokens + 1, 12, 30]) + random.from(0..6);
    let mut ids = bases[random.from(0..bases.len() as u32) as usize][..length as usize].to_vec();
    let own = random.from(0..length + 1).min(random.from(0..length + 1));
    (length - own..length).for_each(|position| ids[position as usize] = random.from(1..50));
    let context = layout.slabs > 0 && random.chance(2);
    let mut images = Vec::new();
    let mut first = random.from(0..6);
    while random.chance(3) && images.len() < 3 && first < length {
        let length = if context { 1 } else { random.from(1..7).min(length - first) };
        images.push(Image { first, length, key: u64::from(random.from(1..3)) });
        ids[first as usize..(first + length) as usize].fill(99);
        first += length + random.from(0..5);
    }
    let answers = random.one_of(&[1, 1, 1, 2, 4]);
    let max_tokens = random.one_of(&[1, 3, 10, 25]) + random.from(0..4);
    let solo = random.chance(6);
    let fault = (faults && random.chance(5)).then(|| {
        let (answer, after) = (random.from(0..answers), random.from(0..8));
        match random.from(0..4) {
            0 => Fault::Row { answer, after, fault: RowFault::NonFinite },
            1 => Fault::Row { answer, after, fault: RowFault::NoAllowedToken },
            2 => Fault::Panics { answer, after: after.max(1) },
            _ => Fault::PromptPanics { at: random.from(0..length) },
        }
    });
    Request {
        tenant: random.from(0..tenants),
        ids,
        images,
        context,
        max_tokens,
        answers: if solo { 1 } else { answers },
        solo,
        solo_steps: random.from(1..max_tokens + 1),
        seed: random.next(),
        deadline: random.chance(7).then(|| now + Micros::from(random.from(0..50_000))),
        fault: fault.filter(|fault| !solo || matches!(fault, Fault::PromptPanics { .. })),
        announced_less: if random.chance(10) { random.from(0..20) } else { 0 },
    }
}
