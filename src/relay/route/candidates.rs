//! The order in which a model's targets are asked.

use super::Target;

/// The targets in the order in which they are asked: by tier, and within a tier drawn by weight. `chance` is any uniform
/// number, so that the draw can be repeated.
pub fn candidates(targets: &[Target], chance: u64) -> Vec<Target> {
    let mut left: Vec<&Target> = targets.iter().collect();
    left.sort_by_key(|target| target.tier);
    let mut order = Vec::with_capacity(left.len());
    let mut chance = chance;
    while let Some(tier) = left.first().map(|target| target.tier) {
        let peers = left.iter().take_while(|target| target.tier == tier).count();
        let total: u64 = left.iter().take(peers).map(|target| u64::from(target.weight)).sum();
        let drawn = draw(&left[..peers], chance % total.max(1));
        order.push(left.remove(drawn).clone());
        // The next draw is from other bits, so that it does not follow from this one.
        chance = chance.rotate_left(23) ^ 0x9e37_79b9_7f4a_7c15;
    }
    order
}

/// Whose share of the weights `point` falls into.
fn draw(peers: &[&Target], point: u64) -> usize {
    let mut below = 0;
    peers
        .iter()
        .position(|target| {
            below += u64::from(target.weight);
            point < below
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::relay::route::{Dialect, Endpoint, ModelRules, Provider, ProviderTimes, Quirks};

    fn target(name: &str, weight: u32, tier: u32) -> Target {
        let provider = Arc::new(Provider {
            name: name.into(),
            dialect: Dialect::OpenAi,
            endpoint: Endpoint::Demo,
            credentials: Vec::new(),
            quirks: Quirks::NONE,
            times: ProviderTimes::default(),
        });
        Target { provider, model: "m".into(), weight, tier, rules: ModelRules::default() }
    }

    fn names(targets: &[Target]) -> Vec<&str> {
        targets.iter().map(|target| &*target.provider.name).collect()
    }

    #[test]
    fn lower_tiers_come_first_whatever_the_file_says() {
        let targets = [target("late", 1, 2), target("first", 1, 0), target("second", 1, 1)];
        assert_eq!(names(&candidates(&targets, 7)), ["first", "second", "late"]);
    }

    #[test]
    fn shares_follow_the_weights_and_everyone_has_a_place() {
        let targets = [target("a", 3, 0), target("b", 1, 0)];
        let first_a = (0..4000_u64).filter(|chance| names(&candidates(&targets, *chance))[0] == "a").count();
        assert_eq!(first_a, 3000);
        assert!((0..100).all(|chance| candidates(&targets, chance).len() == 2));
    }
}
