//! Ends requests that have reached a time limit, and starts waiting requests.

use std::collections::BTreeMap;

use super::Scheduler;
use super::pages::{PageId, Reservation};
use super::plan::{Ending, Notice};
use super::policy::Micros;
use super::sequence::{Answer, SeqId, Sequence, Tenant};

impl Scheduler {
    /// Ends the requests whose deadline has passed, or that have been in the queue for too long.
    pub(super) fn end_late(&mut self, now: Micros) {
        let late = |sequence: &Sequence| {
            let ending = if sequence.ask.deadline.is_some_and(|deadline| deadline <= now) {
                Ending::Deadline
            } else if sequence.is_queued() && self.queue_limit(sequence) <= now {
                Ending::QueueTimeout
            } else {
                return None;
            };
            Some((sequence.id, ending))
        };
        let late: Vec<(SeqId, Ending)> = self.sequences.values().filter_map(late).collect();
        late.into_iter().for_each(|(id, ending)| self.end(id, ending));
    }

    /// Returns the time at which the next request reaches a time limit. `None` if no request has one.
    pub(super) fn next_limit(&self) -> Option<Micros> {
        let queued = self.sequences.values().filter(|sequence| sequence.is_queued());
        let deadlines = self.sequences.values().filter_map(|sequence| sequence.ask.deadline);
        queued.map(|sequence| self.queue_limit(sequence)).chain(deadlines).min()
    }

    fn queue_limit(&self, sequence: &Sequence) -> Micros {
        sequence.submitted.saturating_add(self.policy.queue_timeout)
    }

    /// Starts waiting requests in their order, until the first one does not fit. Then starts others that fit, until no
    /// more may start before the first.
    pub(super) fn admit(&mut self, now: Micros) {
        let mut order;
        let first = loop {
            order = self.waiting_order();
            let Some(first) = self.queue.first(&order, now) else { return };
            if !self.start_if_it_fits(first.id, now) {
                break first;
            }
        };
        for id in order.into_iter().filter(|id| *id != first.id) {
            if !self.queue.first(&[], now).is_some_and(|first| first.may_be_passed(now, &self.policy)) {
                return;
            }
            if self.start_if_it_fits(id, now) {
                self.queue.passed();
            }
        }
    }

    /// Returns the waiting requests in the order of their turns. Tenants that use more than their share of the pages
    /// come last.
    fn waiting_order(&self) -> Vec<SeqId> {
        let share = self.policy.tenant_share * f64::from(self.layout.pages);
        let mut owned: BTreeMap<Tenant, u64> = BTreeMap::new();
        for sequence in self.sequences.values().filter(|sequence| !sequence.is_queued()) {
            *owned.entry(sequence.ask.tenant).or_default() += sequence.worst_case(&self.layout);
        }
        self.queue.order(|tenant| owned.get(&tenant).is_some_and(|pages| *pages as f64 > share))
    }

    /// Reserves the pages of a waiting request's worst case. Chunks in the prefix cache are shared instead. Returns the
    /// shared pages and the reservation, or `None` if the request does not fit.
    fn reserve(&mut self, id: SeqId) -> Option<(Vec<PageId>, Reservation)> {
        let sequence = self.sequences.get(&id)?;
        if sequence.ask.slabs > self.memory.slabs {
            return None;
        }
        let shared = self.memory.prefix.find(sequence.sharable_keys(&self.layout));
        let own = u32::try_from(sequence.worst_case(&self.layout)).ok()?.saturating_sub(shared.len() as u32);
        let reservation = self.memory.pages.reserve_and_share(own, &shared)?;
        Some((shared, reservation))
    }

    fn start_if_it_fits(&mut self, id: SeqId, now: Micros) -> bool {
        let Some((table, reservation)) = self.reserve(id) else { return false };
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };
        sequence.cached = table.len() as u32 * self.layout.page_tokens;
        let written = sequence.cached;
        sequence.answers = vec![Answer { table, reservation, written, ..Answer::default() }];
        sequence.state = sequence.next_image(0);
        self.memory.slabs -= sequence.ask.slabs;
        self.queue.leave(id, sequence.ask.tenant, sequence.prompt.tokens);
        self.queue.started(sequence.ask.tenant, sequence.prompt.tokens, now);
        self.notices.push(Notice::Admitted { id, queued: now.saturating_sub(sequence.submitted) });
        true
    }

    /// Begins to compute a prompt. Pages of chunks that other requests have computed since the admission replace
    /// reserved pages.
    pub(super) fn begin(&mut self, id: SeqId) {
        let Some(sequence) = self.sequences.get_mut(&id).filter(|sequence| !sequence.begun) else { return };
        sequence.begun = true;
        let found = self.memory.prefix.find(sequence.sharable_keys(&self.layout));
        let answer = &mut sequence.answers[0];
        let more = found.get(answer.table.len()..).unwrap_or_default();
        if self.memory.pages.share_instead(&mut answer.reservation, more) {
            answer.table.extend(more);
            sequence.cached = answer.table.len() as u32 * self.layout.page_tokens;
            answer.written = sequence.cached;
            sequence.state = sequence.next_image(0);
        }
        self.notices.push(Notice::Begun { id, cached_tokens: sequence.cached });
    }
}
