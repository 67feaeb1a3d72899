//! What node and store say to each other about leases.

use std::sync::Arc;

use crate::relay::meter::NanoUsd;

/// Of what is free a node gets at most one of so many parts beyond what it needs at once.
const PARTS: i64 = 4;

/// What a node may spend of an account's balance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lease {
    /// How much.
    pub amount: NanoUsd,
    /// The ledger's number as of which it is so.
    pub seq: i64,
}

/// More of an account's credit is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAsk {
    /// Whose.
    pub account_id: Arc<str>,
    /// How much more is needed at once.
    pub need: NanoUsd,
    /// How much of that some of those who wait need, ever more of them. Anything in between helps nobody, and might help others.
    pub steps: Vec<NanoUsd>,
    /// How much more would be good to have, `need` included.
    pub target: NanoUsd,
    /// What a request holds. What is given beyond the need is so many times that, or what is left over would help nobody.
    pub unit: NanoUsd,
    /// Where less than a step is free, and nothing will come back, so much is of use still.
    pub useful: NanoUsd,
    /// The want that it is asked again for, by the ledger's number.
    pub since: Option<i64>,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// Whose credit it is.
    pub account_id: Arc<str>,
    /// What is leased now, in all.
    pub lease: Lease,
    /// What nobody has leased.
    pub free: NanoUsd,
    /// Less was given than was needed.
    pub is_short: bool,
    /// Too little was free, and other nodes may give some back: the want's number, to ask again with.
    pub wanted: Option<i64>,
}

impl LeaseAsk {
    /// How much of what is free is given: what all who wait need, and beyond that what would be good to have, but of that a part only,
    /// so that something is left for others, and nothing where credit is `scarce`; or else what some of them need. Less than that only
    /// when nothing more `may_come`: in many hands it would be of no use to anyone.
    pub fn granted(&self, free: NanoUsd, scarce: bool, may_come: bool) -> NanoUsd {
        let (free, need) = (free.0, self.need.0);
        let beyond = if scarce { 0 } else { self.target.0.min(free / PARTS).saturating_sub(need).max(0) };
        let beyond = beyond - beyond % self.unit.0.max(1);
        let step = self.steps.iter().map(|step| step.0).filter(|step| *step <= free).max().unwrap_or(0);
        NanoUsd(match free {
            ..=0 => 0,
            _ if free >= need && (need > 0 || free >= self.useful.0) => need.saturating_add(beyond),
            _ if step > 0 || may_come || free < self.useful.0 => step.max(0),
            _ => free,
        })
    }
}

/// Something is given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseReturn {
    /// Of which account.
    pub account_id: Arc<str>,
    /// How much; nothing, where others want some and all of it is in use.
    pub amount: NanoUsd,
    /// The ledger's number by which the lease is known. If it has changed since, nothing is given back.
    pub seq: i64,
    /// The want that is answered.
    pub wanted: Option<i64>,
}

/// What became of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseReturned {
    /// Of which account.
    pub account_id: Arc<str>,
    /// The lease as it is now.
    pub lease: Lease,
    /// It was given back.
    pub taken: bool,
}
