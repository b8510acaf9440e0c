//! Amounts taken for one exchange, from admission to settlement.

use std::sync::Arc;

use smallvec::SmallVec;

use super::asking::Asking;
use super::ledger::{Admission, Refusal, Standings};
use super::locked::Tenant;
use crate::model::quota::{Amounts, Charge, Dimension, Standing, Unit};
use crate::model::tenant::TenantId;

/// Amounts taken for one exchange. Settled once; dropped unsettled it gives everything back.
#[derive(Debug)]
pub struct Reservation {
    id: TenantId,
    tenant: Arc<Tenant>,
    asking: Arc<Asking>,
    amounts: Amounts,
    standings: Standings,
    /// The turn of each standing's window.
    turns: SmallVec<[u16; 4]>,
    would_refuse: Option<Box<Refusal>>,
    over_soft: SmallVec<[(Dimension, bool); 2]>,
    /// Admitted by what is known here, because no lease could be had.
    unleased: bool,
    open: bool,
}

impl Reservation {
    /// Takes charge of what the ledger took for an exchange.
    pub(super) fn new(
        id: TenantId,
        tenant: Arc<Tenant>,
        asking: Arc<Asking>,
        amounts: Amounts,
        admission: Admission,
        would_refuse: Option<Box<Refusal>>,
    ) -> Self {
        asking.metrics.reservations.inc();
        let Admission { mut standings, turns, over_soft, .. } = admission;
        for standing in &mut standings {
            standing.used = standing.used.saturating_add(amounts.of(standing.dimension.unit));
        }
        let unleased = asking.is_on_its_own();
        Self { id, tenant, asking, amounts, standings, turns, would_refuse, over_soft, unleased, open: true }
    }

    /// Whether it was admitted by what this replica knows alone, because the database was away.
    pub fn is_unleased(&self) -> bool {
        self.unleased
    }

    pub(super) fn mark_unleased(&mut self) {
        self.unleased = true;
    }

    /// What was reserved.
    pub fn amounts(&self) -> Amounts {
        self.amounts
    }

    /// How the tenant stood at admission, this reservation included, in every dimension that it has.
    pub fn standings(&self) -> &[Standing] {
        &self.standings
    }

    /// In shadow mode: what would have been refused.
    pub fn would_refuse(&self) -> Option<&Refusal> {
        self.would_refuse.as_deref()
    }

    /// The soft limits that it is over, each with whether it is the first of its tenant to be in this window, as far as
    /// this replica knows.
    pub fn over_soft(&self) -> &[(Dimension, bool)] {
        &self.over_soft
    }

    /// Raises the reserved tokens to `tokens` in all, if every dimension of tokens has room for them by the limits of the
    /// admission. False: there is no room, and nothing was taken.
    pub fn extend(&mut self, tokens: u64) -> bool {
        let more = tokens.saturating_sub(self.amounts.tokens);
        if more == 0 {
            return true;
        }
        let windows = self.standings.iter().zip(&self.turns);
        let windows = windows.filter(|(standing, _)| standing.dimension.unit == Unit::Tokens);
        let windows = windows
            .map(|(standing, turn)| (standing.dimension, *turn, standing.limit.filter(|_| !standing.soft)));
        let (extended, low) = self.tenant.ledger().extend(windows, more, self.asking.rule());
        if low {
            self.asking.low(&self.id, &self.tenant, Amounts { tokens: more, ..Amounts::default() });
        }
        if extended {
            self.amounts.tokens = tokens;
        }
        extended
    }

    /// Replaces the reservation by what was used, and says what that adds to the live counters: see
    /// [`Reservation::charges`].
    pub fn settle(mut self, used: Amounts) -> Vec<Charge> {
        self.close(used);
        self.charges(used)
    }

    /// What these amounts add to the live counters: one charge for each dimension, limited or not, in the window of the
    /// reservation. Amounts of 0 make no charge, but for the cost of tokens that cost nothing: a later count may correct
    /// it.
    pub fn charges(&self, used: Amounts) -> Vec<Charge> {
        let charged = |standing: &&Standing| {
            let unit = standing.dimension.unit;
            used.of(unit) > 0 || (unit == Unit::Cost && used.tokens > 0)
        };
        let mut charges = Vec::with_capacity(self.standings.iter().filter(charged).count());
        charges.extend(self.standings.iter().filter(charged).map(|standing| Charge {
            dimension: standing.dimension,
            window_start: standing.span.start,
            window_end: standing.span.end,
            amount: i64::try_from(used.of(standing.dimension.unit)).unwrap_or(i64::MAX),
            // Who reads the counter to decide is to let pass what passes here.
            limit: standing.limit.filter(|_| !standing.soft),
        }));
        charges
    }

    fn close(&mut self, used: Amounts) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let mut ledger = self.tenant.ledger();
        for (standing, turn) in self.standings.iter().zip(&self.turns) {
            let unit = standing.dimension.unit;
            ledger.settle(standing, *turn, self.amounts.of(unit), used.of(unit));
        }
        drop(ledger);
        self.asking.metrics.reservations.dec();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.close(Amounts::default());
    }
}
