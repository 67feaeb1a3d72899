//! Who is asked, and who is asked next.
//!
//! Lower tiers come first. Within a tier two targets are drawn by weight, and the first of them is asked unless the other is
//! clearly less loaded: so equal targets share by their weights, and a slow or busy one gets less than its share. Load is the
//! expected time to the first byte times the requests under way, those counted against the weight.

use std::sync::Arc;

use super::Target;
use super::health::{Health, Lanes};
use super::lane::{Lane, Lease, Standing};
use crate::relay::refusal::{Cause, Refusal};

/// A request's way through its model's targets.
#[derive(Debug, Default)]
pub struct Course {
    shut: Vec<Shut>,
}

/// What is not asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shut {
    Target(usize),
    Lane(usize, usize),
}

/// What is asked.
#[derive(Debug)]
pub struct Stop {
    /// Which of the model's targets.
    pub target: usize,
    /// With which of its provider's credentials.
    pub credential: usize,
    /// To be told how it went.
    pub lease: Lease,
}

/// The moment, and what is to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Microseconds.
    pub now_us: u64,
    /// Whether the answer is to be streamed.
    pub is_stream: bool,
    /// Any uniform number, so that a draw can be repeated.
    pub chance: u64,
}

/// A target that may be asked, by its least busy lane.
struct Open<'a> {
    target: usize,
    weight: u64,
    credential: usize,
    lane: &'a Arc<Lane>,
    in_flight: u64,
    first_byte_us: Option<u64>,
}

impl Course {
    /// Takes the next target, the best of those that have not been asked; `None` where none may be.
    pub fn next(&mut self, targets: &[Target], health: &Health, moment: Moment) -> Option<Stop> {
        loop {
            let open: Vec<Open<'_>> =
                (0..targets.len()).filter_map(|target| self.open(target, targets, health, moment)).collect();
            let tier = open.iter().map(|open| targets[open.target].tier).min()?;
            let peers: Vec<&Open<'_>> = open.iter().filter(|open| targets[open.target].tier == tier).collect();
            let best = peers.get(choose(&peers, moment.chance))?;
            if let Some(stop) = best.enter(moment) {
                return Some(stop);
            }
            // Another request was faster, and is the probe.
            self.shut.push(Shut::Lane(best.target, best.credential));
        }
    }

    /// Takes another credential of the same target, if there is one that has not been asked.
    pub fn another_credential(
        &mut self,
        target: usize,
        targets: &[Target],
        health: &Health,
        moment: Moment,
    ) -> Option<Stop> {
        while let Some(open) = self.open(target, targets, health, moment) {
            if let Some(stop) = open.enter(moment) {
                return Some(stop);
            }
            self.shut.push(Shut::Lane(target, open.credential));
        }
        None
    }

    /// The target is not asked again.
    pub fn shut_target(&mut self, target: usize) {
        self.shut.push(Shut::Target(target));
    }

    /// The target is not asked again with this credential.
    pub fn shut_credential(&mut self, target: usize, credential: usize) {
        self.shut.push(Shut::Lane(target, credential));
    }

    /// The target's least busy lane, if it may be asked.
    fn open<'a>(&self, target: usize, targets: &[Target], health: &'a Health, moment: Moment) -> Option<Open<'a>> {
        if self.shut.contains(&Shut::Target(target)) {
            return None;
        }
        let lanes: &Lanes = health.lanes(targets.get(target)?)?;
        let first = usize::try_from(scattered(moment.chance) % lanes.len().max(1) as u64).unwrap_or(0);
        let in_turn = (0..lanes.len()).map(|step| (first + step) % lanes.len());
        let (credential, lane) = in_turn
            .filter(|credential| !self.shut.contains(&Shut::Lane(target, *credential)))
            .filter_map(|credential| Some((credential, lanes.get(credential)?)))
            .filter(|(_, lane)| matches!(lane.standing(moment.now_us), Standing::Ready | Standing::Probing))
            .min_by_key(|(_, lane)| lane.in_flight())?;
        Some(Open {
            target,
            weight: u64::from(targets[target].weight.max(1)),
            credential,
            lane,
            in_flight: u64::from(lane.in_flight()),
            first_byte_us: lane.first_byte_us(moment.is_stream, moment.now_us),
        })
    }
}

impl Open<'_> {
    fn enter(&self, moment: Moment) -> Option<Stop> {
        let lease = self.lane.enter(moment.is_stream, moment.now_us)?;
        Some(Stop { target: self.target, credential: self.credential, lease })
    }
}

/// When a target may be asked again, where none may be now: microseconds, and what keeps the soonest. `None` where one may
/// be asked, or none ever.
pub fn soonest(targets: &[Target], health: &Health, now_us: u64) -> Option<(u64, Cause)> {
    let mut soonest: Option<(u64, Cause)> = None;
    for lane in targets.iter().filter_map(|target| health.lanes(target)).flat_map(|lanes| lanes.iter()) {
        let until = match lane.standing(now_us) {
            Standing::Ready | Standing::Probing => return None,
            Standing::Open { until_us } => (until_us, Cause::UpstreamError),
            Standing::Resting { until_us } => (until_us, Cause::UpstreamRateLimited),
            Standing::Refused => continue,
        };
        soonest = Some(soonest.map_or(until, |other| if until.0 < other.0 { until } else { other }));
    }
    soonest
}

/// What the client is told where nobody may be asked.
pub fn nobody(targets: &[Target], health: &Health, now_us: u64) -> Refusal {
    match soonest(targets, health, now_us) {
        Some((until_us, Cause::UpstreamRateLimited)) => {
            Refusal::new(Cause::UpstreamRateLimited, "The provider is limiting the relay's requests.")
                .retry_after_ms(wait_ms(until_us, now_us))
        }
        Some((until_us, cause)) => {
            Refusal::new(cause, "The model's providers are failing and are left alone for a while.")
                .retry_after_ms(wait_ms(until_us, now_us))
        }
        None => Refusal::new(Cause::UpstreamAuth, "The provider refused the relay's credential."),
    }
}

/// Milliseconds until then; at least one second, for what is due depends on an answer.
pub fn wait_ms(until_us: u64, now_us: u64) -> u64 {
    until_us.saturating_sub(now_us).div_ceil(1000).max(1000)
}

/// Which of the peers, at least one, is asked.
fn choose(peers: &[&Open<'_>], chance: u64) -> usize {
    let weights: Vec<u64> = peers.iter().map(|open| open.weight).collect();
    let first = draw(&weights, chance, None);
    if peers.len() < 2 {
        return first;
    }
    let second = draw(&weights, scattered(chance), Some(first));
    let total: u64 = weights.iter().sum();
    let (ours, other) = (peers[first], peers[second]);
    // Of what was never measured nothing is expected: then only what is under way counts.
    let expected = ours.first_byte_us.zip(other.first_byte_us).unwrap_or((1, 1));
    let load = |open: &Open<'_>, expected_us: u64, against: &Open<'_>| {
        let share = u128::from(open.in_flight) * u128::from(total) + u128::from(open.weight) * peers.len() as u128;
        u128::from(expected_us).saturating_mul(share).saturating_mul(u128::from(against.weight))
    };
    // Differences below a fifth are noise; without this the weights would not be kept.
    let is_clear = load(other, expected.1, ours).saturating_mul(5) < load(ours, expected.0, other).saturating_mul(4);
    if is_clear { second } else { first }
}

/// Whose share of the weights the chance falls into, of all but one.
fn draw(weights: &[u64], chance: u64, without: Option<usize>) -> usize {
    let of = |at: usize| if Some(at) == without { 0 } else { weights[at] };
    let total: u64 = (0..weights.len()).map(of).sum();
    let point = chance % total.max(1);
    let mut below = 0;
    (0..weights.len())
        .position(|at| {
            below += of(at);
            point < below
        })
        .unwrap_or(0)
}

/// Other bits, that do not follow from these in any simple way (SplitMix64).
pub fn scattered(chance: u64) -> u64 {
    let mut bits = chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::relay::route::testing::{model, provider, target};
    use crate::relay::route::{Catalogue, Verdict};

    const SECOND: u64 = 1_000_000;

    /// A model with a target a provider, by weight and tier; the credentials are as many as said.
    fn catalogue(targets: &[(u32, u32)], credentials: usize) -> Catalogue {
        let secrets: Vec<String> = (0..credentials).map(|number| number.to_string()).collect();
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        let providers: Vec<_> = (0..targets.len()).map(|number| provider(&format!("p{number}"), &secrets)).collect();
        let targets =
            targets.iter().zip(&providers).map(|((weight, tier), provider)| target(provider, "m", *weight, *tier));
        Catalogue::new(vec![model(targets.collect())], providers.clone(), Vec::new())
    }

    fn targets(catalogue: &Catalogue) -> &[Target] {
        &catalogue.models()[0].targets
    }

    fn moment(chance: u64) -> Moment {
        Moment { now_us: 0, is_stream: true, chance: scattered(chance) }
    }

    fn first(catalogue: &Catalogue, chance: u64) -> Option<Stop> {
        Course::default().next(targets(catalogue), catalogue.health(), moment(chance))
    }

    fn share(catalogue: &Catalogue, target: usize) -> usize {
        (0..4000).filter(|chance| first(catalogue, *chance).unwrap().target == target).count()
    }

    /// What the target has shown so far: its time to the first byte.
    fn measured(catalogue: &Catalogue, number: usize, took_us: u64) {
        let mut lease = lane(catalogue, number, 0).enter(true, 0).unwrap();
        lease.began(took_us);
        lease.end(Verdict::Succeeded, took_us);
    }

    fn lane(catalogue: &Catalogue, number: usize, credential: usize) -> Arc<Lane> {
        Arc::clone(&catalogue.health().lanes(&targets(catalogue)[number]).unwrap()[credential])
    }

    fn fails(lane: &Arc<Lane>, verdict: Verdict, times: usize) {
        (0..times).for_each(|_| lane.enter(true, 0).unwrap().end(verdict, 0));
    }

    #[test]
    fn equal_targets_share_by_their_weights() {
        let catalogue = catalogue(&[(3, 0), (1, 0)], 1);
        for measured_us in [None, Some(SECOND)] {
            if let Some(took_us) = measured_us {
                (0..2).for_each(|number| measured(&catalogue, number, took_us));
            }
            let share = share(&catalogue, 0);
            assert!((2900..3100).contains(&share), "{share}");
        }
    }

    #[test]
    fn a_slow_target_loses_to_a_fast_one_and_a_busy_one_to_an_idle_one() {
        let slow = catalogue(&[(1, 0), (1, 0)], 1);
        measured(&slow, 0, 3 * SECOND);
        measured(&slow, 1, SECOND);
        assert_eq!(share(&slow, 0), 0);
        let busy = catalogue(&[(3, 0), (1, 0)], 1);
        let leases: Vec<_> = (0..4).map(|_| lane(&busy, 0, 0).enter(true, 0)).collect();
        assert_eq!(share(&busy, 0), 0);
        drop(leases);
        let leases: Vec<_> = [0, 0, 0, 1].map(|number| lane(&busy, number, 0).enter(true, 0)).into();
        let share = share(&busy, 0);
        assert!((2900..3100).contains(&share), "each as busy as its weight says: {share}");
        drop(leases);
    }

    #[test]
    fn higher_tiers_wait_until_the_lower_ones_cannot_be_asked() {
        let catalogue = catalogue(&[(1, 7), (1, 1), (1, 1)], 1);
        let mut course = Course::default();
        let mut order = Vec::new();
        while let Some(stop) = course.next(targets(&catalogue), catalogue.health(), moment(1)) {
            course.shut_target(stop.target);
            order.push(stop.target);
        }
        order[..2].sort_unstable();
        assert_eq!(order, [1, 2, 0]);
        fails(&lane(&catalogue, 1, 0), Verdict::Failed, 5);
        fails(&lane(&catalogue, 2, 0), Verdict::Rest { after_ms: 1 }, 1);
        assert_eq!(share(&catalogue, 0), 4000);
    }

    #[test]
    fn credentials_are_used_in_turn_and_another_is_found() {
        let catalogue = &catalogue(&[(1, 0)], 3);
        let with =
            |credential| (0..3000).filter(move |chance| first(catalogue, *chance).unwrap().credential == credential);
        assert!((0..3).all(|credential| (900..1100).contains(&with(credential).count())));
        let mut course = Course::default();
        course.shut_credential(0, 1);
        lane(catalogue, 0, 2).enter(true, 0).unwrap().end(Verdict::CredentialRefused, 0);
        let other = |course: &mut Course| {
            course.another_credential(0, targets(catalogue), catalogue.health(), moment(9)).map(|stop| stop.credential)
        };
        assert_eq!(other(&mut course), Some(0));
        course.shut_credential(0, 0);
        assert_eq!(other(&mut course), None);
    }

    #[test]
    fn the_soonest_is_told_where_all_have_to_be_waited_for() {
        let catalogue = catalogue(&[(1, 0), (1, 0), (1, 1)], 1);
        let told = || nobody(targets(&catalogue), catalogue.health(), 0);
        fails(&lane(&catalogue, 0, 0), Verdict::Failed, 5);
        fails(&lane(&catalogue, 2, 0), Verdict::CredentialRefused, 1);
        assert_eq!(soonest(targets(&catalogue), catalogue.health(), 0), None, "one may be asked");
        fails(&lane(&catalogue, 1, 0), Verdict::Rest { after_ms: 7_000 }, 1);
        assert!(first(&catalogue, 3).is_none());
        assert_eq!((told().cause, told().retry_after_ms), (Cause::UpstreamRateLimited, Some(7_000)));
        fails(&lane(&catalogue, 2, 0), Verdict::Failed, 0);
    }

    #[test]
    fn refused_credentials_are_not_waited_for() {
        let catalogue = catalogue(&[(1, 0)], 1);
        fails(&lane(&catalogue, 0, 0), Verdict::CredentialRefused, 1);
        let told = nobody(targets(&catalogue), catalogue.health(), 0);
        assert_eq!((told.cause, told.retry_after_ms), (Cause::UpstreamAuth, None));
    }

    proptest! {
        #[test]
        fn only_what_may_be_asked_is_asked_and_nothing_twice(
            rows in prop::collection::vec((1u32..9, 0u32..3, 0usize..4), 1..7),
            credentials in 1usize..4,
            chance: u64,
        ) {
            let weights: Vec<(u32, u32)> = rows.iter().map(|(weight, tier, _)| (*weight, *tier)).collect();
            let catalogue = catalogue(&weights, credentials);
            let verdicts = [None, Some((Verdict::Failed, 5)), Some((Verdict::CredentialRefused, 1)), Some((Verdict::Rest { after_ms: 1 }, 1))];
            for (number, (_, _, fate)) in rows.iter().enumerate() {
                for credential in 0..credentials {
                    if let Some((verdict, times)) = verdicts[*fate] {
                        fails(&lane(&catalogue, number, credential), verdict, times);
                    }
                }
            }
            let mut course = Course::default();
            let mut asked = Vec::new();
            while let Some(stop) = course.next(targets(&catalogue), catalogue.health(), Moment { chance, ..moment(0) }) {
                course.shut_target(stop.target);
                asked.push(stop.target);
            }
            let tiers: Vec<u32> = asked.iter().map(|target| rows[*target].1).collect();
            prop_assert!(tiers.is_sorted());
            asked.sort_unstable();
            let well: Vec<usize> = (0..rows.len()).filter(|number| rows[*number].2 == 0).collect();
            prop_assert_eq!(asked, well);
        }
    }
}
