//! When a read asks for spares, and how many: reckoned from how its hosts' times are spread and from what it may spend. Pure.
//!
//! A read of `need` pieces has one deadline for the whole of it: the moment by which `need` answers are in with a certain chance.
//! When it passes, as many spares are asked as pieces are missing, and one more. The chance is chosen so
//! that spares cost the read's share of the purse ([`Purse::begin`](super::budget::Purse::begin)) and no more: a deadline that
//! is too early spends the purse on reads that are a little late, and has nothing left for the one that hangs.
//!
//! Where some answers are many times slower than the others, there is a chance that no deadline reaches before them. A share that
//! asks for more than that would have every slow answer waited for, to save a spare in a hundred reads. Then the one more is
//! left out, which halves the price and brings the deadline back before the slow answers ([`patience`]).
//!
//! The first window of a reply may spend more. Nothing that is learnt while it runs comes early enough to bring its slowest
//! thousandth near what can be had at all, so it asks [`Plan::eager`] hosts more from the start, and its deadline is for what
//! hangs.
//!
//! Compared on the same seeded traces (`benches/hedging`, tables in `docs/hedging.md`) with k only, fixed spares, a spare
//! at each host's own p95, and a deadline at a fixed factor of the slowest host's p90.

use std::{iter::repeat_n, time::Duration};

use super::host::Spread;

/// What a read is to the reply that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Somebody waits for its first bytes: nothing of the reply is there yet.
    First,
    /// Read ahead, or for nobody in particular.
    Later,
}

/// A read that has taken so many times its deadline, and so long at all, is overdue: it may go into debt.
const OVERDUE_FACTOR: u32 = 3;
const OVERDUE_MIN: Duration = Duration::from_millis(100);
/// And after this it gets its spares whatever the purse says: waiting for a hung host is never right.
const HUNG_MIN: Duration = Duration::from_secs(2);
/// With fewer spares from the start than this a deadline that passes is the usual end of the slowest reads.
const WHOLE_SPARES_FEW: usize = 2;
/// Spares that a deadline which passes costs, on the average: pieces missing, and one more.
const SPARES_MEAN: f64 = 2.15;
/// Without the one more, but with what the next look costs where a spare is late itself.
const BARE_SPARES_MEAN: f64 = 1.35;
/// A deadline so many times later than what is usual waits for what is slow, and not for what is a little late.
const USUAL_FACTOR: u32 = 2;
/// With a later deadline little is gained, with an earlier one much is spent on reads that end by themselves.
const IN_TIME_MIN: f64 = 0.70;
/// However little there is to spend, one read in a hundred may: it meets a host that hangs.
const IN_TIME_MAX: f64 = 0.99;
/// No deadline is later than this: nobody waits longer for a hung host.
const DEADLINE_MAX: Duration = Duration::from_secs(10);
/// Halvings of the interval that the deadline is sought in: to about one part in a thousand.
const STEPS: u32 = 24;

/// What one read may do about late hosts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Spares to ask from the start.
    pub eager: usize,
    /// Spares that such a read may ask later, on the average.
    pub late: f64,
}

/// How long a read waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// When it is late, after its beginning.
    pub deadline: Duration,
    /// Spares that it asks then beyond those for what is missing.
    pub more: usize,
}

impl Patience {
    /// Between the deadline and the next look at what is missing; each wait after that is twice as long, for what came so late is a
    /// worse guide than before. Spares of which one may be late are looked at sooner.
    pub fn next(self) -> Duration {
        if self.more == 0 { self.deadline } else { self.deadline * 2 }
    }

    /// The spares to ask when so much is missing after so long, `more` beyond that: how each is to be paid, those for what is missing
    /// first.
    pub fn spares(self, took: Duration, missing: usize, more: usize) -> impl Iterator<Item = Spare> {
        repeat_n(lateness(took, self.deadline), missing).chain(repeat_n(Spare::Eager, more))
    }
}

/// Spares beyond those for what is missing once the deadline has passed, at each later look.
pub fn more_later(need: usize) -> usize {
    usize::from(need > 1)
}

/// Why a spare is asked: who goes on longest while the purse empties comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spare {
    /// From the start, so that nobody is late; also of hosts that nobody asked lately, and one more than are missing.
    Eager,
    /// The read's deadline has passed.
    Late,
    /// It has passed long ago.
    Overdue,
    /// So long ago that only a host that hangs explains it: never refused.
    Hung,
}

/// Some calls in a hundred take unusually long on any host; so many of them in a row do not happen by chance, even at a
/// thousand reads a second.
const SUSPICIOUS_MIN: u32 = 4;
/// Slower than any healthy host looks, and few enough doublings to stay a number.
const SUSPICION_MAX: u32 = 12;

/// How much slower a host is taken for that has left so many reads in a row unanswered. Thousands of samples from before
/// it hung say that it is quick, and a purse is empty long before they are outweighed.
pub fn suspicion(unanswered_in_a_row: u32) -> f64 {
    if unanswered_in_a_row < SUSPICIOUS_MIN { 1.0 } else { f64::from(1 << unanswered_in_a_row.min(SUSPICION_MAX)) }
}

/// What a read may spend on spares, of what it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    pub own: f64,
    /// What a later window may spend just now.
    pub later: f64,
    /// Evenly spread from zero to one over the reads: whose turn it is to have the part of a spare that a share leaves.
    pub turn: f64,
}

/// For a read of `need` pieces. `take` asks the purse for one spare more from the start.
pub fn plan(window: Window, need: usize, share: Share, mut take: impl FnMut() -> bool) -> Plan {
    let requests = share.own * need as f64;
    // Of a base sector none: twice the bytes for each read would be paid for the one that hangs.
    let whole = if window == Window::First && need > 1 { requests.floor() } else { 0.0 };
    // What is left of the share makes the deadline earlier, unless there are so many spares that hardly a deadline passes: then
    // some reads have one more.
    let left = requests - whole;
    let (wished, left) = match whole as usize {
        whole if whole < WHOLE_SPARES_FEW => (whole, left),
        whole => (whole + usize::from(share.turn < left), 0.0),
    };
    let eager = (0..wished).take_while(|_| take()).count();
    // What was refused is not spent in another way: the purse is low, and a later window's deadline is what it keeps money for.
    let late = if eager < wished { left.max(share.later * need as f64) } else { left };
    Plan { eager, late }
}

/// One more spare than pieces are missing, for with none a spare that is late itself costs another wait; unless the deadline that
/// pays for it came after that wait. Of a base sector it is one host and then another. And nobody waits longer than twice
/// what such reads usually take: if that asks more than there is, the purse stops what is needed least.
///
/// `late` is the read's of [`Plan`]; nothing is late before `least`.
pub fn patience(asked: &[Spread], need: usize, late: f64, least: Duration) -> Patience {
    let at = |spares: f64| deadline(asked, need, (1.0 - late / spares).clamp(IN_TIME_MIN, IN_TIME_MAX), least);
    let not_late = |patience: Patience| {
        let usual = deadline(asked, need, 0.5, least);
        Patience { deadline: patience.deadline.min(usual * USUAL_FACTOR), ..patience }
    };
    if need == 1 {
        return not_late(Patience { deadline: at(1.0), more: 0 });
    }
    let with_more = Patience { deadline: at(SPARES_MEAN), more: more_later(need) };
    // Hosts on this machine: nothing else comes before it.
    if with_more.deadline == least {
        return with_more;
    }
    let bare = not_late(Patience { deadline: at(BARE_SPARES_MEAN), more: 0 });
    if with_more.deadline <= bare.deadline + bare.next() { with_more } else { bare }
}

/// How a spare is to be paid that is asked after so long, when `patience` was the deadline.
fn lateness(took: Duration, patience: Duration) -> Spare {
    match took {
        took if took < OVERDUE_MIN || took < patience * OVERDUE_FACTOR => Spare::Late,
        took if took < HUNG_MIN => Spare::Overdue,
        _ => Spare::Hung,
    }
}

/// When the read is late: the moment by which `need` of these requests have answered with this chance, not before `least`.
pub fn deadline(asked: &[Spread], need: usize, chance: f64, least: Duration) -> Duration {
    let need = need.min(asked.len());
    let all_within = |took: Duration| at_least(need, asked.iter().map(|spread| spread.within(took)));
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

/// The chance that at least `need` of these happen.
fn at_least(need: usize, chances: impl ExactSizeIterator<Item = f64>) -> f64 {
    // By how many have not happened: no more than may be missing are kept apart.
    let mut missing = vec![0.0; chances.len() - need + 1];
    missing[0] = 1.0;
    for chance in chances {
        for count in (0..missing.len()).rev() {
            let one_less = if count == 0 { 0.0 } else { missing[count - 1] };
            missing[count] = missing[count] * chance + one_less * (1.0 - chance);
        }
    }
    missing.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_follow_from_what_may_be_spent() {
        use Window::{First, Later};
        let rows = [
            (Later, 1, 0.045, 9, 0, 0.045),
            (Later, 6, 0.045, 9, 0, 0.27),
            (Later, 10, 0.045, 9, 0, 0.45),
            // The most a first window may spend.
            (First, 1, 0.30, 9, 0, 0.30),
            (First, 6, 0.30, 9, 1, 0.80),
            (First, 10, 0.30, 9, 3, 0.0),
            // Less.
            (First, 10, 0.27, 9, 3, 0.0),
            (First, 10, 0.25, 9, 2, 0.0),
            (First, 10, 0.12, 9, 1, 0.20),
            (First, 10, 0.05, 9, 0, 0.50),
            // The purse has no more at hand.
            (First, 10, 0.30, 2, 2, 0.45),
            (First, 10, 0.30, 0, 0, 0.45),
            (First, 10, 0.0, 9, 0, 0.0),
        ];
        for (window, need, own, eager_max, eager, late) in rows {
            let mut left: i32 = eager_max;
            let take = || {
                left -= 1;
                left >= 0
            };
            let plan = plan(window, need, Share { own, later: 0.045, turn: 0.6 }, take);
            let share = own;
            assert_eq!(plan.eager, eager, "{window:?} {need} {share}");
            assert!((plan.late - late).abs() < 0.01, "{window:?} {need} {share}: {plan:?}");
        }
    }

    /// Ten hosts that answer within 10 to 20 ms, but for a part of their answers, which take half a second.
    #[test]
    fn no_deadline_waits_for_slow_answers() {
        let host = |slow_percent: u64| {
            let samples = (0..1_000u64).map(|i| if i % 100 < slow_percent { 500_000 } else { 10_000 + 10 * i });
            Spread::of(samples.map(Duration::from_micros)).expect("samples")
        };
        let patience = |slow_percent, late| patience(&vec![host(slow_percent); 10], 10, late, Duration::ZERO);
        // (slow answers in a hundred, spares the read may ask, spares at the deadline beyond what is missing)
        let rows = [
            // All of ten are quick with a chance of 0.904, 0.817 and 0.737.
            (0, 0.2, 1),
            (1, 0.45, 1),
            (1, 0.27, 1),
            (1, 0.2, 0),
            (2, 0.45, 1),
            (2, 0.27, 0),
            (3, 0.45, 0),
            // Nothing that it may spend would do: it is late nevertheless.
            (3, 0.2, 0),
            (3, 0.0, 0),
        ];
        for (slow_percent, late, more) in rows {
            let patience = patience(slow_percent, late);
            assert!((18..45).contains(&patience.deadline.as_millis()), "{slow_percent} {late}: {patience:?}");
            assert_eq!(patience.more, more, "{slow_percent} {late}: {patience:?}");
        }
        // Of a base sector another host is asked, whoever is late.
        let of_base = super::patience(&[host(5)], 1, 0.027, Duration::ZERO);
        assert!((18..45).contains(&of_base.deadline.as_millis()) && of_base.more == 0, "{of_base:?}");
        // What is spread widely of itself is waited for.
        let wide = Spread::of((1..=1_000).map(Duration::from_millis)).expect("samples");
        let wide = super::patience(&vec![wide; 10], 10, 0.45, Duration::ZERO);
        assert!(wide.more == 1 && wide.deadline > Duration::from_millis(930), "{wide:?}");
    }

    #[test]
    fn a_bare_deadline_is_looked_after_sooner() {
        let at = |more| Patience { deadline: Duration::from_millis(40), more }.next().as_millis();
        assert_eq!([at(0), at(1)], [40, 80]);
    }

    #[test]
    fn what_is_missing_is_paid_first() {
        let patience = Patience { deadline: Duration::from_millis(40), more: 1 };
        let spares = |took_ms, missing, more| patience.spares(Duration::from_millis(took_ms), missing, more).collect::<Vec<_>>();
        assert_eq!(spares(40, 2, 1), [Spare::Late, Spare::Late, Spare::Eager]);
        assert_eq!(spares(120, 1, 0), [Spare::Overdue]);
    }

    #[test]
    fn a_read_is_late_then_overdue_then_hung() {
        let rows = [
            (50, 50, Spare::Late),
            (99, 10, Spare::Late),
            (100, 10, Spare::Overdue),
            (149, 50, Spare::Late),
            (150, 50, Spare::Overdue),
            (2_000, 50, Spare::Hung),
            // Where everything is slow nothing hangs yet.
            (5_000, 5_000, Spare::Late),
            (15_000, 5_000, Spare::Hung),
        ];
        for (took, patience, expect) in rows {
            assert_eq!(lateness(Duration::from_millis(took), Duration::from_millis(patience)), expect, "{took} {patience}");
        }
    }

    #[test]
    fn suspicion_grows() {
        assert_eq!([0, 1, 3, 4, 6, 1_000].map(suspicion), [1.0, 1.0, 1.0, 16.0, 64.0, 4096.0]);
    }

    #[test]
    fn at_least_so_many() {
        let check = |need, chances: &[f64], expect: f64| {
            let got = at_least(need, chances.iter().copied());
            assert!((got - expect).abs() < 1e-9, "{need} of {chances:?}: {got}");
        };
        check(2, &[0.5, 0.5], 0.25);
        check(1, &[0.5, 0.5], 0.75);
        check(0, &[], 1.0);
        check(2, &[0.9, 0.8, 0.7], 0.9 * 0.8 * 0.7 + 0.1 * 0.8 * 0.7 + 0.9 * 0.2 * 0.7 + 0.9 * 0.8 * 0.3);
    }

    #[test]
    fn a_deadline_is_the_moment_of_that_chance() {
        let steady = |ms: u64| Spread::of((0..100).map(|i| Duration::from_micros(ms * 1000 + 10 * i))).expect("samples");
        let deadline = |asked: &[Spread], chance| deadline(asked, asked.len(), chance, Duration::ZERO);
        let one = deadline(&[steady(20)], 0.9);
        assert!((19..25).contains(&one.as_millis()), "{one:?}");
        // The slowest decides.
        let six = [steady(20), steady(10), steady(10), steady(10), steady(40), steady(10)];
        let all = deadline(&six, 0.9);
        assert!((38..50).contains(&all.as_millis()), "{all:?}");
        // But not if it was a spare from the start.
        let five = super::deadline(&six, 5, 0.9, Duration::ZERO);
        assert!((18..25).contains(&five.as_millis()), "{five:?}");
        // More of the same come later together than alone.
        let spread = Spread::of((1..=100).map(Duration::from_millis)).expect("samples");
        let many = vec![spread.clone(); 6];
        assert!(deadline(&many, 0.87) > deadline(&many[..1], 0.87));
        assert_eq!(deadline(&[], 0.9), Duration::ZERO, "nothing asked is never late");
        assert_eq!(super::deadline(&[steady(20)], 1, 0.9, Duration::from_millis(30)).as_millis(), 30);
    }
}
