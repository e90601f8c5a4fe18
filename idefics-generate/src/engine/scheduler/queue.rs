//! The queue of requests that are in preparation or wait: its limits, the turns of tenants, and which requests may
//! start before the first one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::policy::{Policy, SECOND};
use super::sequence::{SeqId, Tenant};
use super::{Micros, Refusal};

/// Time over which the rate of started prompt tokens is measured.
const MINUTE: Micros = 60 * SECOND;

/// The first waiting request, which starts as soon as it fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct First {
    pub(super) id: SeqId,
    /// When it became the first.
    pub(super) since: Micros,
    /// Number of requests that have started before it since then.
    pub(super) passed: u32,
}

impl First {
    /// Whether another request may start before this one.
    pub(super) fn may_be_passed(&self, now: Micros, policy: &Policy) -> bool {
        self.passed < policy.max_passes && now.saturating_sub(self.since) < policy.pass_window
    }
}

/// The queued requests of one tenant.
#[derive(Debug, Default)]
struct Line {
    requests: usize,
    tokens: u64,
    /// Requests that are prepared and wait for pages.
    waiting: BTreeSet<SeqId>,
}

/// The queue. It knows only ids and lengths; the scheduler owns the sequences.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: BTreeMap<Tenant, Line>,
    /// Tenants in the order of their turns.
    turns: VecDeque<Tenant>,
    requests: usize,
    tokens: u64,
    first: Option<First>,
    /// Time and prompt tokens of the requests that started in the last minute.
    starts: VecDeque<(Micros, u32)>,
}

impl Queue {
    /// Adds a request in preparation, unless the queue or the tenant's share of it is full.
    pub(super) fn enter(&mut self, tenant: Tenant, tokens: u32, policy: &Policy, now: Micros) -> Result<(), Refusal> {
        let full = |requests: usize, queued: u64, share: f64| {
            let most = (policy.max_queue as f64 * share).ceil() as usize;
            let most_tokens = (policy.max_queue_tokens as f64 * share) as u64;
            requests >= most || (requests > 0 && queued + u64::from(tokens) > most_tokens)
        };
        if full(self.requests, self.tokens, 1.0) {
            return Err(Refusal::QueueFull { retry_after: self.retry_after(self.tokens, now) });
        }
        if let Some(line) = self.lines.get(&tenant)
            && full(line.requests, line.tokens, policy.tenant_share)
        {
            return Err(Refusal::TenantLimit { retry_after: self.retry_after(line.tokens, now) });
        }
        if !self.lines.contains_key(&tenant) {
            self.turns.push_back(tenant);
        }
        let line = self.lines.entry(tenant).or_default();
        line.requests += 1;
        line.tokens += u64::from(tokens);
        self.requests += 1;
        self.tokens += u64::from(tokens);
        Ok(())
    }

    /// Notes that a request is prepared and waits from now on. Replaces its announced number of prompt tokens by the
    /// exact one.
    pub(super) fn prepared(&mut self, id: SeqId, tenant: Tenant, announced: u32, tokens: u32) {
        let Some(line) = self.lines.get_mut(&tenant) else { return };
        line.waiting.insert(id);
        line.tokens = line.tokens - u64::from(announced) + u64::from(tokens);
        self.tokens = self.tokens - u64::from(announced) + u64::from(tokens);
    }

    /// Removes a request that starts or ends.
    pub(super) fn leave(&mut self, id: SeqId, tenant: Tenant, tokens: u32) {
        let Some(line) = self.lines.get_mut(&tenant) else { return };
        line.waiting.remove(&id);
        line.requests -= 1;
        line.tokens -= u64::from(tokens);
        self.requests -= 1;
        self.tokens -= u64::from(tokens);
        if line.requests == 0 {
            self.lines.remove(&tenant);
            self.turns.retain(|other| *other != tenant);
        }
        if self.first.is_some_and(|first| first.id == id) {
            self.first = None;
        }
    }

    /// Notes that a request of `tenant` starts. The tenant's next turn comes after those of all others.
    pub(super) fn started(&mut self, tenant: Tenant, tokens: u32, now: Micros) {
        if let Some(place) = self.turns.iter().position(|other| *other == tenant) {
            self.turns.remove(place);
            self.turns.push_back(tenant);
        }
        self.starts.push_back((now, tokens));
        self.drop_old_starts(now);
    }

    /// Notes that a request starts before the first waiting request.
    pub(super) fn passed(&mut self) {
        if let Some(first) = &mut self.first {
            first.passed += 1;
        }
    }

    /// Returns the waiting requests in the order in which they start. Tenants take turns, and the requests of a tenant
    /// are in order of arrival. Tenants for which `gives_way` returns true come after the others.
    pub(super) fn order(&self, gives_way: impl Fn(Tenant) -> bool) -> Vec<SeqId> {
        let mut order = Vec::new();
        for later in [false, true] {
            let tenants = self.turns.iter().filter(|tenant| gives_way(**tenant) == later);
            let mut lines: Vec<_> =
                tenants.filter_map(|tenant| self.lines.get(tenant)).map(|line| line.waiting.iter()).collect();
            loop {
                let round = order.len();
                order.extend(lines.iter_mut().filter_map(Iterator::next));
                if order.len() == round {
                    break;
                }
            }
        }
        order
    }

    /// Returns the first waiting request. It stays the first until it starts or ends. If there is none, the first
    /// request of `order` becomes the first waiting request.
    pub(super) fn first(&mut self, order: &[SeqId], now: Micros) -> Option<First> {
        if self.first.is_none() {
            self.first = order.first().map(|id| First { id: *id, since: now, passed: 0 });
        }
        self.first
    }

    /// Returns the first waiting request of the last plan, if it still waits.
    pub(super) fn known_first(&self) -> Option<First> {
        self.first
    }

    /// Returns the number of requests in the queue and the sum of their prompt tokens.
    pub(super) fn len(&self) -> (usize, u64) {
        (self.requests, self.tokens)
    }

    /// Whether the request `id` is prepared and waits for pages.
    pub(super) fn waits(&self, id: SeqId, tenant: Tenant) -> bool {
        self.lines.get(&tenant).is_some_and(|line| line.waiting.contains(&id))
    }

    /// Estimates the time until requests with `tokens` prompt tokens in total have started, at the rate of the last
    /// minute. The result is between 1 and 60 s.
    fn retry_after(&mut self, tokens: u64, now: Micros) -> Micros {
        self.drop_old_starts(now);
        let started: u64 = self.starts.iter().map(|(_, tokens)| u64::from(*tokens)).sum();
        let since = self.starts.front().map_or(now, |(time, _)| *time);
        let rate = started as f64 / (now.saturating_sub(since)).max(SECOND) as f64;
        ((tokens as f64 / rate.max(f64::MIN_POSITIVE)) as Micros).clamp(SECOND, MINUTE)
    }

    fn drop_old_starts(&mut self, now: Micros) {
        while self.starts.front().is_some_and(|(time, _)| time + MINUTE < now) {
            self.starts.pop_front();
        }
    }
}
