//! What goes on in the process at the moment, loaded anew every other second by a script, every five without.
//!
//! A rate is what has happened since somebody looked before, at least a second ago: nothing is counted while nobody looks.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use askama::Template;

use crate::admin::api::{Moment, Traffic};
use crate::admin::dashboard::Dashboard;
use crate::admin::dashboard::answer::{Answer, page};
use crate::admin::dashboard::guard::Operator;
use crate::admin::dashboard::layout::Frame;
use crate::admin::dashboard::map::Map;

const PATH: &str = "/operator/live";

const SECOND_US: u64 = 1_000_000;
/// A look that is older tells nothing of the moment.
const AGE_MAX_US: u64 = 15 * SECOND_US;

pub(super) fn map(map: Map) -> Map {
    map.page(PATH, show).page("/operator/live/numbers", numbers)
}

#[derive(Template)]
#[template(path = "operator_live.html")]
struct LivePage {
    frame: Frame,
    numbers: String,
}

#[derive(Template)]
#[template(path = "operator_live_numbers.html")]
struct Numbers {
    traffic: Traffic,
    /// Requests a second, and those that failed; empty where there was no look before.
    rate: String,
    failures: String,
}

/// When somebody looked of late, and how many requests there had been.
#[derive(Debug, Default)]
pub(in crate::admin::dashboard) struct Looks(Mutex<VecDeque<(u64, Traffic)>>);

impl Looks {
    /// Looks again. Answers with the tenths of requests a second since a look before, of all and of those that failed.
    fn look(&self, now: Moment, traffic: Traffic) -> Option<(u64, u64)> {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        looks.retain(|(at_us, _)| now.us.saturating_sub(*at_us) <= AGE_MAX_US);
        let before = looks.iter().rev().find(|(at_us, _)| now.us.saturating_sub(*at_us) >= SECOND_US).copied();
        if looks.back().is_none_or(|(at_us, _)| now.us.saturating_sub(*at_us) >= SECOND_US) {
            looks.push_back((now.us, traffic));
        }
        let (at_us, before) = before?;
        let tenths = |now_all: u64, before: u64| {
            now_all.saturating_sub(before).saturating_mul(10 * SECOND_US) / now.us.saturating_sub(at_us).max(1)
        };
        Some((tenths(traffic.requests, before.requests), tenths(traffic.failed, before.failed)))
    }
}

async fn show(Operator(who): Operator) -> Answer {
    let numbers = numbers_of(&who.dashboard).render().unwrap_or_default();
    let frame = Frame { refresh_seconds: 5, ..Frame::of(&who, "Live", PATH) };
    page(&LivePage { frame, numbers })
}

async fn numbers(Operator(who): Operator) -> Answer {
    page(&numbers_of(&who.dashboard))
}

fn numbers_of(dashboard: &Dashboard) -> Numbers {
    let (process, shown) = (dashboard.process(), |tenths: u64| format!("{}.{}", tenths / 10, tenths % 10));
    let traffic = process.traffic();
    let rates = dashboard.looks().look(process.now(), traffic);
    let [rate, failures] = rates.map(|(all, failed)| [shown(all), shown(failed)]).unwrap_or_default();
    Numbers { traffic, rate, failures }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_over_the_time_since_somebody_looked() {
        let looks = Looks::default();
        let look = |milliseconds: u64, requests, failed| {
            let now = Moment { us: milliseconds * 1_000, unix_ms: 0 };
            looks.look(now, Traffic { requests, failed, ..Traffic::default() })
        };
        assert_eq!(look(0, 100, 0), None, "the first look");
        assert_eq!(look(500, 150, 0), None, "too soon");
        assert_eq!(look(2_000, 300, 3), Some((1_000, 15)));
        assert_eq!(look(2_500, 300, 3), Some((800, 12)), "others who look do not disturb");
        assert_eq!(look(60_000, 900, 3), None, "too long ago");
        for at in 61..2_000 {
            look(at * 1_000, 900, 3);
        }
        assert!(looks.0.lock().unwrap().len() <= 16);
    }
}
