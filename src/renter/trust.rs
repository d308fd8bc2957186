//! Which hosts are set aside because they gave wrong pieces again and again.
//!
//! A wrong piece costs a reader a round, and the same host will give the next one. So a host from which several
//! *different* pieces were wrong within a short time is asked after all others: it still gives what nobody else can, and
//! it still takes writes. It comes back when enough answers in a row were right (readers that had nobody else, and audits,
//! ask it), or when nothing wrong was heard of it for some hours.
//!
//! One piece counts once however often it is read: a rotten object is a fault of a disk and is noted for repair; that many
//! are rotten, or that answers are made up, is a fault of the host. What is known of a host is forgotten at a restart.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::lock;
use crate::sector::Root;

/// A wrong object weighs one, and half of that after this time.
const HALF_LIFE: Duration = Duration::from_secs(3600);
/// Weight at which a host is set aside, and which it never exceeds: four different objects within some twenty minutes
/// weigh more than 3.5. Three of them may be bad luck with one disk.
const ASIDE_AT: f64 = 3.5;
const WEIGHT_MAX: f64 = 4.0;
/// Weight at which it comes back by itself: three half-lives after the last wrong object.
const BACK_AT: f64 = 0.5;
/// Right answers, with none wrong between, after which it comes back.
const RIGHT_ANSWERS_MIN: u32 = 32;
/// What still weighs then: two more wrong objects set it aside again.
const WEIGHT_ON_TRIAL: f64 = 2.0;
/// Wrong objects remembered of a host, so that each counts once. 32 KiB.
const OBJECTS_MAX: usize = 1_024;

/// What is held against one host.
#[derive(Default)]
pub(super) struct Trust {
    /// Also in `state`; alone here so that reads, which ask each time, take no lock.
    aside: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    weight: f64,
    at: Option<Instant>,
    objects: VecDeque<Root>,
    right_answers: u32,
    aside: Option<Aside>,
}

#[derive(Clone, Copy)]
struct Aside {
    since: SystemTime,
}

/// Why and for how long a host is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    pub since: SystemTime,
    /// Right answers that bring it back sooner.
    pub right_answers_missing: u32,
    /// Unless another wrong object comes from it.
    pub back_after: Duration,
}

/// What happened to a host's standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    SetAside,
    /// For its right answers.
    BackForAnswers,
    /// For the time that passed.
    BackForTime,
}

impl Change {
    /// The rest of a sentence about the host.
    pub(super) fn words(self) -> &'static str {
        match self {
            Change::SetAside => {
                "a host is set aside: several different pieces from it were wrong lately; it is asked only for what nobody else gives"
            }
            Change::BackForAnswers => "a host that was set aside is asked like the others again: its last 32 answers were right",
            Change::BackForTime => {
                "a host that was set aside is asked like the others again: nothing wrong was heard of it for three hours"
            }
        }
    }
}

impl Trust {
    /// An object from it was wrong.
    pub(super) fn wrong(&self, root: &Root) -> Option<Change> {
        let now = Instant::now();
        let mut state = lock(&self.state);
        if state.objects.contains(root) {
            return None;
        }
        if state.objects.len() == OBJECTS_MAX {
            state.objects.pop_front();
        }
        state.objects.push_back(*root);
        state.weight = (state.weight_at(now) + 1.0).min(WEIGHT_MAX);
        state.at = Some(now);
        state.right_answers = 0;
        if state.aside.is_some() || state.weight < ASIDE_AT {
            return None;
        }
        state.aside = Some(Aside { since: SystemTime::now() });
        self.aside.store(true, Relaxed);
        Some(Change::SetAside)
    }

    /// An answer from it was checked and right.
    pub(super) fn right(&self) -> Option<Change> {
        if !self.aside.load(Relaxed) {
            return None;
        }
        let mut state = lock(&self.state);
        state.right_answers += 1;
        if state.aside.is_none() || state.right_answers < RIGHT_ANSWERS_MIN {
            return None;
        }
        (state.weight, state.at) = (WEIGHT_ON_TRIAL, Some(Instant::now()));
        self.come_back(&mut state);
        Some(Change::BackForAnswers)
    }

    /// Whether it is set aside now, and whether that has just ended.
    pub(super) fn standing(&self) -> (Option<SetAside>, Option<Change>) {
        if !self.aside.load(Relaxed) {
            return (None, None);
        }
        let mut state = lock(&self.state);
        let Some(aside) = state.aside else { return (None, None) };
        let weight = state.weight_at(Instant::now());
        if weight <= BACK_AT {
            self.come_back(&mut state);
            return (None, Some(Change::BackForTime));
        }
        let standing = SetAside {
            since: aside.since,
            right_answers_missing: RIGHT_ANSWERS_MIN.saturating_sub(state.right_answers),
            back_after: HALF_LIFE.mul_f64((weight / BACK_AT).log2()),
        };
        (Some(standing), None)
    }

    fn come_back(&self, state: &mut State) {
        state.aside = None;
        state.right_answers = 0;
        self.aside.store(false, Relaxed);
    }
}

impl State {
    fn weight_at(&self, now: Instant) -> f64 {
        let Some(at) = self.at else { return 0.0 };
        self.weight * 0.5_f64.powf((now - at).as_secs_f64() / HALF_LIFE.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn root(number: u8) -> Root {
        Root([number; 32])
    }

    /// What is heard of a host, one after the other.
    enum Heard {
        Wrong(u8),
        Right(u32),
        Nothing(Duration),
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_set_aside_and_when_it_comes_back() {
        use Heard::{Nothing, Right, Wrong};
        let rows: [(&str, Vec<Heard>, bool); 11] = [
            ("three wrong objects", vec![Wrong(1), Wrong(2), Wrong(3)], false),
            ("four", vec![Wrong(1), Wrong(2), Wrong(3), Wrong(4)], true),
            ("one object four times", vec![Wrong(1), Wrong(1), Wrong(1), Wrong(1)], false),
            (
                "four in fifteen minutes",
                vec![Wrong(1), Nothing(5 * MINUTE), Wrong(2), Nothing(5 * MINUTE), Wrong(3), Nothing(5 * MINUTE), Wrong(4)],
                true,
            ),
            (
                "four in three hours",
                vec![Wrong(1), Nothing(60 * MINUTE), Wrong(2), Nothing(60 * MINUTE), Wrong(3), Nothing(60 * MINUTE), Wrong(4)],
                false,
            ),
            ("almost enough right answers", vec![Wrong(1), Wrong(2), Wrong(3), Wrong(4), Right(31)], true),
            ("enough of them", vec![Wrong(1), Wrong(2), Wrong(3), Wrong(4), Right(32)], false),
            ("enough, with a lie between", vec![Wrong(1), Wrong(2), Wrong(3), Wrong(4), Right(31), Wrong(5), Right(31)], true),
            ("two more soon after it came back", vec![Wrong(1), Wrong(2), Wrong(3), Wrong(4), Right(32), Wrong(5), Wrong(6)], true),
            ("hours of nothing wrong", vec![Wrong(1), Wrong(2), Wrong(3), Wrong(4), Nothing(181 * MINUTE)], false),
            ("however many were wrong", (0..200).map(Wrong).chain([Nothing(181 * MINUTE)]).collect(), false),
        ];
        for (what, heard, expect) in rows {
            let trust = Trust::default();
            for heard in heard {
                match heard {
                    Wrong(number) => _ = trust.wrong(&root(number)),
                    Right(count) => (0..count).for_each(|_| _ = trust.right()),
                    Nothing(time) => tokio::time::advance(time).await,
                }
            }
            assert_eq!(trust.standing().0.is_some(), expect, "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_change_is_told_once() {
        let trust = Trust::default();
        let told: Vec<_> = (0..6).filter_map(|number| trust.wrong(&root(number))).collect();
        assert_eq!(told, [Change::SetAside]);
        let (standing, _) = trust.standing();
        let standing = standing.expect("set aside");
        assert_eq!(standing.right_answers_missing, 32);
        assert_eq!(standing.back_after.as_secs(), 3 * 3600);
        let told: Vec<_> = (0..40).filter_map(|_| trust.right()).collect();
        assert_eq!(told, [Change::BackForAnswers]);
        assert_eq!([trust.wrong(&root(20)), trust.wrong(&root(21))], [None, Some(Change::SetAside)]);
        tokio::time::advance(Duration::from_secs(4 * 3600)).await;
        assert_eq!(trust.standing(), (None, Some(Change::BackForTime)));
        assert_eq!(trust.standing(), (None, None));
    }
}
