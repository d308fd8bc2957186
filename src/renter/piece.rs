//! One piece from one host: ask, check, cut.
//!
//! Only checked bytes leave this file, but for readers that prove the whole of what they read themselves ([`Check::Later`]):
//! they come back here with the bytes that were wrong ([`blame`]). The first touch of a sector also needs its hash tree; header, nodes and data are
//! then asked for side by side at guessed offsets, and once more if the guess was wrong.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    DamageKind, Shared, Spot, compute,
    forecast::Forecast,
    host::{Host, HostError, ReadRange},
    nodes::{CheckedTree, Prefix},
    sector_path,
    torn::Torn,
};
use crate::sector::{GRAIN_BYTES, SECTOR_BYTES, data_offset};

/// Sector objects up to this size are read whole at the first touch: a second request costs more than these bytes.
const WHOLE_OBJECT_MAX_BYTES: u64 = 128 << 10;
/// First touch of a sector whose length is not known: header and nodes of a full sector, and about as much data, so
/// that small sectors come whole.
const UNKNOWN_PREFIX_BYTES: u64 = 64 << 10;
/// Hashing up to this many bytes (about 0.3 ms) is done in the task itself: a piece of a 1 MiB unit. Handing the
/// worker's place to another thread for it costs more than it brings, and every thread that ever worked keeps memory.
const HASH_INLINE_MAX_BYTES: usize = 256 << 10;
/// Pause before a host is asked for the same piece again, times the number of tries so far.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Who checks what a host answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// This file does, by the sector's tree.
    Now,
    /// Who asked does, by a proof of its own over all pieces joined. The tree is not even asked for.
    Later,
}

/// Bytes of a piece that were not checked.
pub(super) struct Unchecked {
    grains: Range<u32>,
    /// Where they were looked for.
    in_object: Range<u64>,
    bytes: Bytes,
}

/// What is wanted of one spot.
#[derive(Clone)]
pub(super) struct Wanted {
    /// Bytes of the sector's data, in the sector.
    pub(super) range: Range<u32>,
    /// Data length that the object probably has; only offsets are guessed with it.
    pub(super) length_guess: Option<u32>,
    /// Tries before this one.
    pub(super) tries: u32,
    /// Serial rounds of the piece in whose stead this one is asked.
    pub(super) rounds_before: u32,
    pub(super) check: Check,
}

/// What became of it.
pub(super) struct Fetched {
    pub(super) spot: Spot,
    pub(super) wanted: Wanted,
    /// Checked bytes from the start of the range; what is missing at its end is zeros.
    pub(super) result: Result<Bytes, Fault>,
    /// With [`Check::Later`]: what the bytes of the result were cut from.
    pub(super) unchecked: Option<Unchecked>,
    /// If it is wrong: what of it is right, if anything.
    pub(super) torn: Option<Torn>,
    pub(super) cost: Cost,
}

/// What it cost, for the trace.
#[derive(Default)]
pub(super) struct Cost {
    pub(super) requests: u32,
    pub(super) bytes: u64,
    /// Requests that had to wait for one another, those of the pieces before it in the race included.
    pub(super) rounds: u32,
    /// Tree nodes were among the bytes.
    pub(super) index: bool,
}

/// Why a piece did not come. Corrupt is not missing, and late is neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The host answered that it has no such object.
    Missing,
    /// The host cannot answer now, and knows it.
    Unavailable,
    TimedOut,
    /// Asking again may help.
    Transient,
    /// Bytes came, but not those of this root.
    Wrong(String),
}

impl From<HostError> for Fault {
    fn from(error: HostError) -> Fault {
        match error {
            HostError::NotFound => Fault::Missing,
            HostError::Down(_) | HostError::ReadOnly | HostError::Full => Fault::Unavailable,
            HostError::TimedOut => Fault::TimedOut,
            HostError::Transient(_) => Fault::Transient,
            HostError::Misanswered(_) | HostError::TooLarge => Fault::Wrong(error.to_string()),
            // Our own mistake: no host is to blame, and asking again does not help.
            HostError::BadPath(_) => Fault::Unavailable,
        }
    }
}

/// What asking for a piece will cost, as far as it can be told before: (requests, bytes). The first touch of a sector costs its
/// tree, too.
pub(super) fn expected(shared: &Shared, spot: &Spot, wanted: &Wanted) -> (u64, u64) {
    match (shared.trees.get(&spot.root), wanted.check) {
        (Some(tree), _) => (1, tree.grains_of(&wanted.range).len() as u64),
        (None, Check::Later) => (1, wanted.range.len() as u64),
        (None, Check::Now) => {
            let plan = first_touch_plan(wanted);
            match &plan.apart {
                None => (1, plan.prefix_bytes),
                Some(apart) => (2, plan.prefix_bytes + apart.end - apart.start),
            }
        }
    }
}

/// Gets and checks a piece. A wrong one is charged to its host here, whether or not anybody still waits for it.
pub(super) async fn fetch(shared: Arc<Shared>, spot: Spot, wanted: Wanted) -> Fetched {
    let mut cost = Cost { rounds: wanted.rounds_before, ..Cost::default() };
    let (mut unchecked, mut torn) = (None, None);
    let result = match &spot.host {
        Some(host) => {
            if wanted.tries > 0 {
                tokio::time::sleep(RETRY_PAUSE * wanted.tries).await;
            }
            let line = Line { host, forecast: &shared.forecasts[spot.row], path: sector_path(&spot.root) };
            match wanted.check {
                Check::Now => fetch_checked(&shared, &spot, &wanted, &line, &mut cost, &mut torn).await,
                Check::Later => fetch_unchecked(&shared, &spot, &wanted, &line, &mut cost).await.map(|(bytes, held)| {
                    unchecked = held;
                    bytes
                }),
            }
        }
        None => Err(Fault::Unavailable),
    };
    if cost.requests == 0 {
        cost.rounds = wanted.rounds_before;
    }
    match &result {
        // What nobody has checked proves nothing: an object may be shorter than was guessed.
        Err(Fault::Wrong(reason)) if wanted.check == Check::Now => charge(&shared, &spot, reason),
        Ok(_) if wanted.check == Check::Now => shared.right(&spot),
        _ => {}
    }
    if result == Err(Fault::Missing) {
        shared.missing.insert(spot.root, ());
    }
    Fetched { spot, wanted, result, unchecked, torn, cost }
}

/// A wrong answer costs its host: counted, told for repair, and held against it.
pub(super) fn charge(shared: &Shared, spot: &Spot, reason: &str) {
    let Some(host) = &spot.host else { return };
    host.charge_wrong();
    shared.forecasts[spot.row].failed();
    shared.wrong(spot);
    shared.report_damage(spot, DamageKind::Wrong, reason);
}

/// The pieces of a read did not make what they should: each is checked by its tree, and whoever lied is charged. A host that
/// cannot be asked for the tree, or whose object is laid out in another way than was guessed, is not.
pub(super) async fn blame(shared: &Shared, spot: &Spot, held: &Unchecked) {
    let Some(host) = &spot.host else { return };
    let line = Line { host, forecast: &shared.forecasts[spot.row], path: sector_path(&spot.root) };
    let wanted = Wanted { range: held.grains.clone(), length_guess: None, tries: 0, rounds_before: 0, check: Check::Now };
    let tree = match shared.trees.get(&spot.root) {
        Some(tree) => Ok(tree),
        None => touch_first(spot, &wanted, &line, &mut Vec::new(), &mut Cost::default()).await,
    };
    let checked = tree.and_then(|tree| {
        shared.trees.keep(spot.root, tree.clone());
        let grains = tree.grains_of(&held.grains);
        match tree.in_object(&grains) == held.in_object {
            true => compute(|| tree.check(&grains, &held.bytes)).map_err(Fault::Wrong),
            false => Ok(()),
        }
    });
    if let Err(Fault::Wrong(reason)) = checked {
        charge(shared, spot, &reason);
    }
}

/// One request for whole grains, at the place where a tree that is at hand says they are, or where an object of the expected
/// length has them. `None` beside bytes that need no check.
async fn fetch_unchecked(
    shared: &Shared,
    spot: &Spot,
    wanted: &Wanted,
    line: &Line<'_>,
    cost: &mut Cost,
) -> Result<(Bytes, Option<Unchecked>), Fault> {
    let (grains, in_object) = match shared.trees.get(&spot.root) {
        Some(tree) => {
            let grains = tree.grains_of(&wanted.range);
            let in_object = tree.in_object(&grains);
            (grains, in_object)
        }
        None => {
            let grain = GRAIN_BYTES as u32;
            let length = wanted.length_guess.unwrap_or(SECTOR_BYTES as u32).next_multiple_of(grain);
            let start = (wanted.range.start / grain * grain).min(length);
            let grains = start..wanted.range.end.next_multiple_of(grain).min(length).max(start);
            let offset = data_offset(length) as u64;
            (grains.clone(), offset + u64::from(grains.start)..offset + u64::from(grains.end))
        }
    };
    if grains.is_empty() {
        return Ok((Bytes::new(), None));
    }
    cost.rounds += 1;
    let bytes = line.ask(ReadRange::Range(in_object.clone()), cost).await?;
    let at = |byte: u32| (byte.saturating_sub(grains.start) as usize).min(bytes.len());
    let cut = bytes.slice(at(wanted.range.start)..at(wanted.range.end));
    Ok((cut, Some(Unchecked { grains, in_object, bytes })))
}

async fn fetch_checked(
    shared: &Shared,
    spot: &Spot,
    wanted: &Wanted,
    line: &Line<'_>,
    cost: &mut Cost,
    torn: &mut Option<Torn>,
) -> Result<Bytes, Fault> {
    let mut held = Vec::new();
    let tree = match shared.trees.get(&spot.root) {
        Some(tree) => tree,
        None => {
            let tree = touch_first(spot, wanted, line, &mut held, cost).await?;
            // Only what was fetched is index; an answer that nothing is there brings none.
            cost.index = true;
            shared.trees.keep(spot.root, tree.clone());
            tree
        }
    };
    let grains = tree.grains_of(&wanted.range);
    if grains.is_empty() {
        return Ok(Bytes::new());
    }
    let in_object = tree.in_object(&grains);
    let bytes = match held.iter().find_map(|held| held.cut(&in_object)) {
        Some(bytes) => bytes,
        None => {
            cost.rounds += 1;
            line.ask(ReadRange::Range(in_object), cost).await?
        }
    };
    let check = || tree.check(&grains, &bytes).map_err(|reason| (reason, tree.right_in(&grains, &bytes)));
    let checked = if bytes.len() > HASH_INLINE_MAX_BYTES { compute(check) } else { check() };
    let at = |byte: u32| (byte.saturating_sub(grains.start) as usize).min(bytes.len());
    let cut = bytes.slice(at(wanted.range.start)..at(wanted.range.end));
    checked.map(|()| cut.clone()).map_err(|(reason, right)| {
        *torn = Torn::within(&wanted.range, spot.piece_index, cut, &right);
        Fault::Wrong(reason)
    })
}

/// Gets and checks the hash tree; data that came along is in `held`.
async fn touch_first(
    spot: &Spot,
    wanted: &Wanted,
    line: &Line<'_>,
    held: &mut Vec<Held>,
    cost: &mut Cost,
) -> Result<Arc<CheckedTree>, Fault> {
    let plan = first_touch_plan(wanted);
    cost.rounds += 1;
    let prefix = match &plan.apart {
        None => line.ask(ReadRange::Prefix(plan.prefix_bytes), cost).await?,
        Some(apart) => {
            let mut apart_cost = Cost::default();
            let (prefix, data) = tokio::join!(
                line.ask(ReadRange::Prefix(plan.prefix_bytes), cost),
                line.ask(ReadRange::Range(apart.clone()), &mut apart_cost),
            );
            cost.requests += apart_cost.requests;
            cost.bytes += apart_cost.bytes;
            // If the guess was wrong this range may lie beyond the object: not an error. It is asked for anew below.
            held.extend(data.ok().map(|bytes| Held { asked: apart.clone(), bytes }));
            prefix?
        }
    };
    held.push(Held { asked: 0..plan.prefix_bytes, bytes: prefix.clone() });
    let need_bytes = match parse(spot, &prefix) {
        Prefix::Tree(tree) => return Ok(tree),
        Prefix::TooShort(need_bytes) if prefix.len() as u64 >= plan.prefix_bytes => need_bytes,
        Prefix::TooShort(_) => return Err(Fault::Wrong("the object ends within its nodes".to_owned())),
        Prefix::Wrong(reason) => return Err(Fault::Wrong(reason)),
    };
    cost.rounds += 1;
    let prefix = line.ask(ReadRange::Prefix(need_bytes), cost).await?;
    match parse(spot, &prefix) {
        Prefix::Tree(tree) => Ok(tree),
        Prefix::TooShort(_) => Err(Fault::Wrong("the object ends within its nodes".to_owned())),
        Prefix::Wrong(reason) => Err(Fault::Wrong(reason)),
    }
}

/// Folding the nodes hashes twice their bytes.
fn parse(spot: &Spot, prefix: &Bytes) -> Prefix {
    let work = || CheckedTree::parse(&spot.root, prefix);
    if 2 * prefix.len() > HASH_INLINE_MAX_BYTES { compute(work) } else { work() }
}

/// What to ask for before anything is known.
#[derive(Debug, PartialEq, Eq)]
struct FirstTouch {
    /// From the start of the object: header, nodes, and maybe data.
    prefix_bytes: u64,
    /// Asked side by side with the prefix.
    apart: Option<Range<u64>>,
}

fn first_touch_plan(wanted: &Wanted) -> FirstTouch {
    let whole_grains = |bytes: u32| bytes.next_multiple_of(GRAIN_BYTES as u32);
    let length = whole_grains(wanted.length_guess.unwrap_or(SECTOR_BYTES as u32));
    let offset = data_offset(length) as u64;
    let start = wanted.range.start / GRAIN_BYTES as u32 * GRAIN_BYTES as u32;
    let end = whole_grains(wanted.range.end).min(length);
    if wanted.length_guess.is_some() && offset + u64::from(length) <= WHOLE_OBJECT_MAX_BYTES {
        return FirstTouch { prefix_bytes: offset + u64::from(length), apart: None };
    }
    let up_to_end = offset + u64::from(end);
    // One request while the bytes before the range are few, or fewer than the range has itself.
    let one = up_to_end <= WHOLE_OBJECT_MAX_BYTES || start <= end.saturating_sub(start);
    match (one, wanted.length_guess) {
        (true, None) => FirstTouch { prefix_bytes: up_to_end.max(UNKNOWN_PREFIX_BYTES), apart: None },
        (true, Some(_)) => FirstTouch { prefix_bytes: up_to_end, apart: None },
        (false, _) => FirstTouch {
            prefix_bytes: offset,
            apart: Some(offset + u64::from(start)..up_to_end.max(offset + u64::from(start) + 1)),
        },
    }
}

/// Bytes of an object at hand.
struct Held {
    asked: Range<u64>,
    bytes: Bytes,
}

impl Held {
    /// The part of them that lies in `range`, if they reach its end, or the object ended first.
    fn cut(&self, range: &Range<u64>) -> Option<Bytes> {
        let end = self.asked.start + self.bytes.len() as u64;
        let object_ended = end < self.asked.end;
        let covers = self.asked.start <= range.start && range.start < end && (range.end <= end || object_ended);
        let at = |byte: u64| (byte.min(end) - self.asked.start) as usize;
        covers.then(|| self.bytes.slice(at(range.start)..at(range.end)))
    }
}

/// One object on one host, with what is learnt from asking for it.
struct Line<'a> {
    host: &'a Host,
    forecast: &'a Forecast,
    path: String,
}

impl Line<'_> {
    async fn ask(&self, range: ReadRange, cost: &mut Cost) -> Result<Bytes, Fault> {
        let answer = self.host.get(&self.path, range).await.map_err(Fault::from);
        // A host that is known to be down refuses by itself: nobody was asked.
        if answer != Err(Fault::Unavailable) {
            cost.requests += 1;
        }
        match &answer {
            Ok(bytes) => cost.bytes += bytes.len() as u64,
            Err(Fault::Missing) => (),
            Err(_) => self.forecast.failed(),
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_touch_is_one_round() {
        const KIB: u64 = 1 << 10;
        let full = 64 + 32 * 1024;
        let check = |range: Range<u64>, length_guess: Option<u32>, prefix_bytes: u64, apart: Option<Range<u64>>| {
            let range = range.start as u32..range.end as u32;
            let plan =
                first_touch_plan(&Wanted { range: range.clone(), length_guess, tries: 0, rounds_before: 0, check: Check::Now });
            assert_eq!(plan, FirstTouch { prefix_bytes, apart }, "{range:?} of {length_guess:?}");
        };
        let sector = Some(SECTOR_BYTES as u32);
        check(0..100, Some(100), 96 + 4 * KIB, None);
        check(0..100, Some(100_000), 64 + 25 * 32 + 100 * KIB, None);
        check(0..100, None, 64 * KIB, None);
        check(0..44 * KIB, None, full + 44 * KIB, None);
        check(0..44 * KIB, sector, full + 44 * KIB, None);
        check(0..4096 * KIB, sector, full + 4096 * KIB, None);
        check(2048 * KIB..2048 * KIB + 1, sector, full, Some(full + 2048 * KIB..full + 2052 * KIB));
        check(2048 * KIB + 5000..2100 * KIB, None, full, Some(full + 2052 * KIB..full + 2100 * KIB));
        check(300 * KIB..310 * KIB, Some(200 << 10), 64 + 50 * 32, Some(64 + 1600 + 300 * KIB..64 + 1600 + 300 * KIB + 1));
    }

    #[test]
    fn held_bytes_serve_what_they_cover() {
        let held =
            |asked: Range<u64>, len: usize| Held { asked, bytes: Bytes::from((0..len).map(|i| i as u8).collect::<Vec<_>>()) };
        let check = |held: &Held, range: Range<u64>, expect: Option<(u8, usize)>| {
            assert_eq!(held.cut(&range).map(|bytes| (bytes[0], bytes.len())), expect, "{range:?}");
        };
        let complete = held(10..50, 40);
        check(&complete, 10..50, Some((0, 40)));
        check(&complete, 20..30, Some((10, 10)));
        check(&complete, 20..51, None);
        check(&complete, 9..20, None);
        let ended = held(10..50, 15);
        check(&ended, 20..60, Some((10, 5)));
        check(&ended, 25..60, None);
    }
}
