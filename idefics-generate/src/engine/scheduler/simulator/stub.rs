//! An executor without a model. The contents that it writes to a slot, and the token that it chooses, are hashes of all
//! earlier slots, read through the page table. A write to a wrong page therefore changes a token.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::super::{AnswerEnd, Layout, Outcome, PageId, RowFault, RowId, Scheduler, SeqId, Slice, StepPlan, Verdict};
use super::scenario::{Fault, Random, Request};

/// A token ends an answer if it is a multiple of this number.
const END: u32 = 29;

pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.rotate_left(23) ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Returns the contents of the slot at `position`. `before` is the hash of all slots before it.
fn content(before: u64, position: u32, input: u64) -> u64 {
    mix(mix(before, input), u64::from(position))
}

/// Returns the token that is chosen after `position`. `all` is the hash of all slots up to and including `position`.
fn token(all: u64, position: u32, seed: u64, answer: u32) -> u32 {
    (mix(mix(all, u64::from(position)), mix(seed, u64::from(answer))) % 997) as u32
}

impl Request {
    /// Returns the input of the model at a position of the prompt.
    fn input(&self, position: u32) -> u64 {
        let image = self.images.iter().find(|image| image.tokens().contains(&position));
        mix(
            u64::from(self.ids[position as usize]),
            image.map_or(0, |image| mix(image.key, u64::from(position - image.first))),
        )
    }

    /// Returns the tokens of an answer, and how it ends, if no other request runs.
    pub(super) fn alone(&self, answer: u32) -> (Vec<u32>, AnswerEnd) {
        let mut all = 0;
        let tokens = self.ids.len() as u32;
        (0..tokens).for_each(|position| all = mix(all, content(all, position, self.input(position))));
        let mut chosen = Vec::new();
        let length = if self.solo { self.solo_steps } else { self.max_tokens };
        for position in tokens - 1.. {
            if position >= tokens || self.solo {
                let input = if self.solo { chosen.len() as u32 } else { chosen[chosen.len() - 1] };
                let place = if self.solo { position + 1 } else { position };
                all = mix(all, content(all, place, u64::from(input)));
            }
            chosen.push(token(all, position, self.seed, answer));
            if !self.solo && chosen[chosen.len() - 1].is_multiple_of(END) {
                return (chosen, AnswerEnd::Stop);
            }
            if chosen.len() as u32 >= length {
                break;
            }
        }
        (chosen, AnswerEnd::Length)
    }
}

/// The executor, with the contents of its slots and caches.
#[derive(Debug, Default)]
pub(super) struct Stub {
    page_tokens: u32,
    text_layers: u32,
    vision_layers: u32,
    slots: Vec<u64>,
    pub(super) tokens: HashMap<RowId, Vec<u32>>,
    /// The images whose vectors are ready: the request and the index of the image in it.
    vectors: HashSet<(SeqId, u32)>,
    /// Keys of the images in the cache of image vectors.
    features: HashSet<u64>,
    /// The picture or chunk that is computed in part: its request, whether it is a picture, the index of its image or
    /// first token, and the number of layers that are done.
    at_work: Option<(SeqId, bool, u32, u32)>,
    /// The requests that were alone in a step that failed.
    pub(super) failed_alone: HashSet<SeqId>,
}

impl Stub {
    pub(super) fn new(layout: &Layout, random: &mut Random) -> Self {
        Self {
            page_tokens: layout.page_tokens,
            text_layers: layout.text_layers,
            vision_layers: layout.vision_layers,
            slots: (0..layout.pages * layout.page_tokens).map(|_| random.next()).collect(),
            ..Self::default()
        }
    }

    fn slot(&self, table: &[PageId], position: u32) -> usize {
        table[(position / self.page_tokens) as usize].index() * self.page_tokens as usize
            + (position % self.page_tokens) as usize
    }

    /// Returns the hash of the first `count` slots.
    fn read(&self, table: &[PageId], count: u32) -> u64 {
        (0..count).fold(0, |all, position| mix(all, self.slots[self.slot(table, position)]))
    }

    /// Overwrites all slots with random contents.
    pub(super) fn lose_pages(&mut self, random: &mut Random) {
        self.slots.iter_mut().for_each(|slot| *slot = random.next());
        self.at_work = None;
    }

    /// Runs a step. If `transient` is true, the step fails although its requests cause no fault.
    pub(super) fn run(
        &mut self,
        step: &StepPlan,
        scheduler: &Scheduler,
        requests: &HashMap<SeqId, Request>,
        transient: bool,
        random: &mut Random,
    ) -> Outcome {
        let outcome = match step {
            StepPlan::Idle { .. } => unreachable!("an idle step does not run"),
            StepPlan::Decode(rows) => self.decode(rows, scheduler, requests, transient, random),
            StepPlan::Verify { row, tokens } => {
                self.verify(*row, *tokens, scheduler, &requests[&row.id], transient, random)
            }
            StepPlan::Slice(Slice::Vision { id, image, layers }) => {
                let request = &requests[id];
                let verdict = self.vision(scheduler, *id, request, *image, layers, random);
                one(id.answer(0), verdict, transient)
            }
            StepPlan::Slice(Slice::Chunk { id, tokens, layers }) => {
                let panics = requests[id].fault.is_some_and(|fault| fault.prompt_panics(tokens));
                if panics {
                    Outcome::Failed(RowFault::Panic)
                } else if transient {
                    Outcome::Failed(RowFault::Device)
                } else {
                    self.chunk(scheduler, *id, &requests[id], tokens, layers)
                }
            }
            StepPlan::Fork { id, copies } => {
                for copy in copies {
                    let size = self.page_tokens as usize;
                    let (from, to) = (copy.from.index() * size, copy.to.index() * size);
                    self.slots.copy_within(from..from + copy.slots as usize, to);
                }
                one(id.answer(0), Verdict::Done, transient)
            }
            StepPlan::Solo(id) => {
                let verdict = self.solo(scheduler, *id, &requests[id]);
                one(id.answer(0), verdict, transient)
            }
        };
        if matches!(outcome, Outcome::Failed(_)) {
            let alone = match step {
                StepPlan::Decode(rows) => (rows.len() == 1).then(|| rows[0].id),
                StepPlan::Idle { .. } | StepPlan::Verify { .. } => None,
                StepPlan::Slice(Slice::Vision { id, .. } | Slice::Chunk { id, .. })
                | StepPlan::Fork { id, .. }
                | StepPlan::Solo(id) => Some(*id),
            };
            self.failed_alone.extend(alone);
        }
        outcome
    }

    fn decode(
        &mut self,
        rows: &[RowId],
        scheduler: &Scheduler,
        requests: &HashMap<SeqId, Request>,
        transient: bool,
        random: &mut Random,
    ) -> Outcome {
        let fault = |row: &RowId| {
            let generated = scheduler.answer(*row).map_or(0, |answer| answer.generated());
            requests[&row.id].fault.filter(|fault| fault.applies(row.answer, generated))
        };
        let panics = rows.iter().any(|row| matches!(fault(row), Some(Fault::Panics { .. })));
        if panics || transient {
            for row in rows {
                let answer = scheduler.answer(*row).expect("the row has an answer");
                let slot = self.slot(answer.table(), answer.written());
                self.slots[slot] = random.next();
            }
            return Outcome::Failed(if panics { RowFault::Panic } else { RowFault::Device });
        }
        let mut written_rows = Vec::new();
        for row in rows {
            let answer = scheduler.answer(*row).expect("the row has an answer");
            let (table, written) = (answer.table(), answer.written());
            let last = *self.tokens[row].last().expect("there is a first token");
            let before = self.read(table, written);
            let slot = self.slot(table, written);
            self.slots[slot] = content(before, written, u64::from(last));
            written_rows.push((*row, (written, fault(row))));
        }
        // Tokens are chosen after all rows have written, so that a row that writes into a page of another row is
        // noticed.
        let choose = |(row, (written, fault)): (RowId, (u32, Option<Fault>))| {
            let answer = scheduler.answer(row).expect("the row has an answer");
            let chosen = token(self.read(answer.table(), written + 1), written, requests[&row.id].seed, row.answer);
            (row, self.choose(row, chosen, fault))
        };
        Outcome::Rows(written_rows.into_iter().map(choose).collect())
    }

    /// Writes the last token of a row and the proposals after it. Two in three proposals are right. Chooses tokens
    /// until one differs from its proposal. A proposal may be the cause of a panic.
    fn verify(
        &mut self,
        row: RowId,
        tokens: u32,
        scheduler: &Scheduler,
        request: &Request,
        transient: bool,
        random: &mut Random,
    ) -> Outcome {
        assert!(tokens > 1, "a step of one token is a decode step");
        let answer = scheduler.answer(row).expect("the row has an answer");
        let (table, written, generated) = (answer.table(), answer.written(), answer.generated());
        assert_eq!(generated as usize, self.tokens[&row].len());
        let fault = |generated| request.fault.filter(|fault| fault.applies(row.answer, generated));
        let panics = matches!(fault(generated + tokens - 1), Some(Fault::Panics { .. }));
        if panics || transient {
            for position in written..written + tokens {
                let slot = self.slot(table, position);
                self.slots[slot] = random.next();
            }
            return Outcome::Failed(if panics { RowFault::Panic } else { RowFault::Device });
        }
        let (right, _) = request.alone(row.answer);
        let proposal = |place: u32| right.get(place as usize).copied().filter(|_| !random.chance(3)).unwrap_or(1);
        let proposals: Vec<u32> = (generated..generated + tokens - 1).map(proposal).collect();
        let last = *self.tokens[&row].last().expect("there is a first token");
        let mut all = self.read(table, written);
        for (position, token) in (written..).zip(std::iter::once(&last).chain(&proposals)) {
            let slot = self.slot(table, position);
            self.slots[slot] = content(all, position, u64::from(*token));
            all = mix(all, self.slots[slot]);
        }
        for count in 1..=tokens {
            let position = written + count - 1;
            let chosen = token(self.read(table, position + 1), position, request.seed, row.answer);
            match self.choose(row, chosen, fault(generated + count - 1)) {
                Verdict::Token => {}
                Verdict::Ended { end, .. } => {
                    return Outcome::Rows(vec![(row, Verdict::Ended { tokens: count, end })]);
                }
                other => return Outcome::Rows(vec![(row, other)]),
            }
            if proposals.get(count as usize - 1) != Some(&chosen) {
                return Outcome::Rows(vec![(row, Verdict::Tokens(count))]);
            }
        }
        unreachable!("after the last token there is no proposal")
    }

    fn vision(
        &mut self,
        scheduler: &Scheduler,
        id: SeqId,
        request: &Request,
        image: u32,
        layers: &Range<u32>,
        random: &mut Random,
    ) -> Verdict {
        let key = request.images[image as usize].key;
        if layers.start == 0 && self.features.contains(&key) && random.chance(2) {
            self.vectors.insert((id, image));
            return Verdict::ImageReady;
        }
        self.go_on(scheduler, (id, true, image), layers, self.vision_layers);
        if layers.end == self.vision_layers {
            self.vectors.insert((id, image));
            self.features.insert(key);
        }
        Verdict::Done
    }

    fn chunk(
        &mut self,
        scheduler: &Scheduler,
        id: SeqId,
        request: &Request,
        tokens: &Range<u32>,
        layers: &Range<u32>,
    ) -> Outcome {
        assert!(!tokens.is_empty(), "the chunk has no tokens");
        self.go_on(scheduler, (id, false, tokens.start), layers, self.text_layers);
        for (number, image) in (0..).zip(&request.images) {
            let here = image.tokens().start < tokens.end && tokens.start < image.tokens().end || request.context;
            assert!(!here || self.vectors.contains(&(id, number)), "image {number} of {id:?} has not been encoded");
        }
        let table = scheduler.answer(id.answer(0)).expect("the prompt has pages").table();
        let mut all = self.read(table, tokens.start);
        let complete = layers.end == self.text_layers;
        for position in tokens.clone() {
            let written = content(all, position, request.input(position));
            all = mix(all, written);
            let slot = self.slot(table, position);
            self.slots[slot] = if complete { written } else { mix(written, u64::from(layers.end)) };
        }
        if !(complete && tokens.end as usize == request.ids.len()) || request.solo {
            return Outcome::Rows(vec![(id.answer(0), Verdict::Done)]);
        }
        let first = |answer: u32| {
            let row = id.answer(answer);
            self.tokens.insert(row, Vec::new());
            let chosen = token(self.read(table, tokens.end), tokens.end - 1, request.seed, answer);
            (row, self.choose(row, chosen, request.fault.filter(|fault| fault.applies(answer, 0))))
        };
        Outcome::Rows((0..request.answers).map(first).collect())
    }

    fn choose(&mut self, row: RowId, chosen: u32, fault: Option<Fault>) -> Verdict {
        if let Some(Fault::Row { fault, .. }) = fault {
            return Verdict::Failed(fault);
        }
        self.tokens.get_mut(&row).expect("the answer has a list of tokens").push(chosen);
        if chosen.is_multiple_of(END) { Verdict::Ended { tokens: 1, end: AnswerEnd::Stop } } else { Verdict::Token }
    }

    fn solo(&mut self, scheduler: &Scheduler, id: SeqId, request: &Request) -> Verdict {
        let row = id.answer(0);
        let table = scheduler.answer(row).expect("the solo job has pages").table();
        let step = self.tokens.entry(row).or_default().len() as u32;
        let place = request.ids.len() as u32 + step;
        let slot = self.slot(table, place);
        self.slots[slot] = content(self.read(table, place), place, u64::from(step));
        let chosen = token(self.read(table, place + 1), place - 1, request.seed, 0);
        self.tokens.entry(row).or_default().push(chosen);
        if step + 1 == request.solo_steps { Verdict::Solved } else { Verdict::Done }
    }

    /// Checks that layers run in order, and that only one picture or chunk is computed in part at a time.
    fn go_on(&mut self, scheduler: &Scheduler, (id, vision, place): (SeqId, bool, u32), layers: &Range<u32>, all: u32) {
        assert!(layers.start < layers.end && layers.end <= all, "the slice has the layers {layers:?} of {all} layers");
        match self.at_work.take().filter(|(other, ..)| scheduler.sequence(*other).is_some()) {
            Some(at_work) => assert_eq!(at_work, (id, vision, place, layers.start), "another slice must come first"),
            None => assert_eq!(layers.start, 0, "the slice of {id:?} does not begin with layer 0"),
        }
        self.at_work = (layers.end < all).then_some((id, vision, place, layers.end));
    }
}

fn one(row: RowId, verdict: Verdict, transient: bool) -> Outcome {
    if transient { Outcome::Failed(RowFault::Device) } else { Outcome::Rows(vec![(row, verdict)]) }
}
