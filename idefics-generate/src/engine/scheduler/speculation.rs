//! Decides whether proposals for the tokens of a row are verified.

use super::Scheduler;
use super::cost::{Cost, CostModel};
use super::plan::{RowId, StepPlan};

/// Expected time of a proposal as a share of the time of a decode step, used until a step with proposals has run.
const UNKNOWN: f64 = 0.25;

/// Lowest acceptance with which an offer is promising. After [`PATIENCE`] promising offers that were declined, one is
/// accepted on trial, because the known times may have been measured while other programs were running.
const PROMISING: f64 = 0.8;

/// See [`PROMISING`].
const PATIENCE: u32 = 64;

/// Proposals for the next tokens of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offer {
    /// The row.
    pub row: RowId,
    /// Number of proposed tokens.
    pub tokens: u32,
    /// Expected share of right proposals, from 0 to 1, among those whose predecessors are all right.
    pub acceptance: f64,
}

impl Offer {
    /// Returns the expected number of tokens that a step gives if it verifies the first `tokens` proposals.
    fn expected(&self, tokens: u32) -> f64 {
        let acceptance = self.acceptance.clamp(0.0, 1.0);
        (0..=tokens as i32).map(|right| acceptance.powi(right)).sum()
    }

    /// Returns the number of proposals with which the most tokens per second are expected, and how many times more
    /// tokens per second these are than without proposals. `None` if the time of a decode step is not known.
    fn best(&self, costs: &CostModel, most: u32) -> Option<(u32, f64)> {
        let one = costs.expect(Cost::Step { rows: 1 })?;
        let gain = |tokens: u32| {
            let unknown = one * (1.0 + UNKNOWN * f64::from(tokens));
            let time = costs.expect(Cost::Verify { tokens: tokens + 1 }).unwrap_or(unknown);
            (tokens, self.expected(tokens) * one / time.max(f64::MIN_POSITIVE))
        };
        (1..=most).map(gain).max_by(|one, two| one.1.total_cmp(&two.1))
    }
}

impl Scheduler {
    /// Offers proposals for the next [`plan`](Self::plan). They are dropped if the plan does not verify them.
    pub fn offer(&mut self, offer: Offer) {
        self.offer = Some(offer);
    }

    /// Returns the row that decodes, if there is only one.
    pub fn only_row(&self) -> Option<RowId> {
        let rows = self.turns.rows();
        rows.front().copied().filter(|_| rows.len() == 1)
    }

    /// Plans a decode step of `rows`, or a step that verifies proposals if only one row decodes. There is no other work.
    pub(super) fn decode_or_verify(&mut self, rows: Vec<RowId>) -> Option<StepPlan> {
        let Some((row, tokens)) = self.verified_tokens() else { return self.decode(rows) };
        let written = self.answer(row).map_or(0, |answer| answer.written);
        if !self.extend(row, u64::from(written) + u64::from(tokens)) {
            return None;
        }
        Some(StepPlan::Verify { row, tokens })
    }

    /// Returns the only row that decodes and the number of tokens of its next step, if proposals are verified.
    fn verified_tokens(&mut self) -> Option<(RowId, u32)> {
        let offer = self.offer.take()?;
        let row = self.only_row().filter(|row| *row == offer.row)?;
        let answer = self.answer(row).filter(|answer| !answer.refuses_proposals)?;
        let left = self.sequence(row.id)?.ask.max_tokens.saturating_sub(answer.generated);
        let (proposals, gain) = offer.best(&self.costs, offer.tokens.min(left.saturating_sub(1)))?;
        if gain < self.policy.min_gain {
            self.declined += u32::from(offer.acceptance >= PROMISING);
            if self.declined < PATIENCE {
                return None;
            }
        }
        self.declined = 0;
        self.offered = offer.tokens;
        Some((row, proposals + 1))
    }
}
