//! When a read is late, and how many spares it then gets: reckoned from how its hosts' times are spread. Pure.
//!
//! A read of `need` pieces has one deadline for the whole of it: the moment by which all `need` answers are in with the chance
//! [`in_time`], the product of the single chances. When it passes, as many spares are asked as pieces are missing, and
//! [`SPARES_MORE`] more. The chance is chosen so that spares cost the budget's share and no more: a deadline that is too
//! early spends the budget on reads that are a little late, and has nothing left for the one that hangs.
//!
//! Compared on the same seeded traces (`benches/hedging.rs`, table in `docs/hedging.md`) with k only, fixed spares, a spare
//! at each host's own p95, and a deadline at a fixed factor of the slowest host's p90, which this replaced.

use std::time::Duration;

use super::host::Spread;

/// Spares beyond the missing pieces: with none, a spare that is late itself costs another deadline.
pub const SPARES_MORE: usize = 1;
/// The share of requests that deadlines are set to cost: a little below what the budget allows, for what it reckons wrong.
const SPARE_SHARE: f64 = 0.045;
/// Pieces missing when a deadline passes, on the average.
const MISSING_MEAN: f64 = 1.15;
/// A read of one piece would get its spare at the median by the rule above; a little later serves as well.
const IN_TIME_MIN: f64 = 0.70;
const IN_TIME_MAX: f64 = 0.95;
/// No deadline is later than this: nobody waits longer for a hung host.
const DEADLINE_MAX: Duration = Duration::from_secs(10);
/// Halvings of the interval that the deadline is sought in: to about one part in a thousand.
const STEPS: u32 = 24;

/// The chance that a read of `need` pieces has all of them by its deadline.
pub fn in_time(need: usize) -> f64 {
    let spares = MISSING_MEAN + SPARES_MORE as f64;
    (1.0 - SPARE_SHARE * need as f64 / spares).clamp(IN_TIME_MIN, IN_TIME_MAX)
}

/// When the read is late: the moment by which all of these requests have answered with this chance, not before `least`.
pub fn deadline(asked: &[Spread], chance: f64, least: Duration) -> Duration {
    let all_within = |took: Duration| asked.iter().map(|spread| spread.within(took)).product::<f64>();
    // Hosts on this machine: nothing to reckon.
    if all_within(least) >= chance {
        return least;
    }
    let (mut early, mut late) = (least, DEADLINE_MAX.max(least));
    for _ in 0..STEPS {
        let middle = (early + late) / 2;
        if all_within(middle) >= chance { late = middle } else { early = middle }
    }
    late
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chance_follows_from_the_budget() {
        let rows = [(1, 0.95), (6, 0.874), (10, 0.79), (30, IN_TIME_MIN)];
        for (need, expect) in rows {
            assert!((in_time(need) - expect).abs() < 0.01, "{need}: {}", in_time(need));
        }
    }

    #[test]
    fn a_deadline_is_the_moment_of_that_chance() {
        let steady = |ms: u64| Spread::of((0..100).map(|i| Duration::from_micros(ms * 1000 + 10 * i))).expect("samples");
        let deadline = |asked: &[Spread], chance| deadline(asked, chance, Duration::ZERO);
        let one = deadline(&[steady(20)], 0.9);
        assert!((19..25).contains(&one.as_millis()), "{one:?}");
        // The slowest decides.
        let six = [steady(20), steady(10), steady(10), steady(10), steady(40), steady(10)];
        let all = deadline(&six, 0.9);
        assert!((38..50).contains(&all.as_millis()), "{all:?}");
        // More of the same come later together than alone.
        let spread = Spread::of((1..=100).map(Duration::from_millis)).expect("samples");
        let many = vec![spread.clone(); 6];
        assert!(deadline(&many, 0.87) > deadline(&many[..1], 0.87));
        assert_eq!(deadline(&[], 0.9), Duration::ZERO, "nothing asked is never late");
        assert_eq!(super::deadline(&[steady(20)], 0.9, Duration::from_millis(30)).as_millis(), 30);
    }
}
