//! Placement is a function: which hosts hold the pieces of a slab, the copies of a base sector, the versions of a record.
//!
//! Byte rules: `docs/formats.md` 6 (host table body) and 8 (placement). All arithmetic is on integers, so that every
//! program on every machine places alike. Choosing position by position moves about 2.0 of 9 pieces when a tenth host
//! comes; taking the first ranks of one list of scores would move about 4.5 (`design.md` 4).
//!
//! Words: *zone* = hosts that are likely to fail together (a disk, a rack, a provider); *weight* = a host's share;
//! *position* = index of the piece or copy; *epoch* = version of the host table.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::host::HostId;

/// Most hosts of one table: at [`ZONE_BYTES_MAX`] a row takes at most 115 bytes, so the table always fits one record.
pub const HOSTS_MAX: usize = 512;
/// Longest zone text, see [`HOSTS_MAX`].
pub const ZONE_BYTES_MAX: usize = 64;
/// Longest encoded table a reader looks at: the size of a whole record.
pub const TABLE_BYTES_MAX: usize = 65_536;

/// What a host's row says about its use. Draining and leaving come with changes of the host table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowState {
    /// Takes new objects and is asked for old ones.
    Active,
}

/// One host of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRow {
    /// The id in the host's marker.
    pub id: HostId,
    /// Hosts with equal text count as one zone; the empty text is a zone like any other.
    pub zone: String,
    /// Share relative to the other hosts, 1..=65535.
    pub weight: u16,
    pub state: RowState,
}

/// The hosts of a portal. Its version is the epoch, starting at 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTable {
    pub epoch: u64,
    pub hosts: Vec<HostRow>,
}

/// Why a host table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the host table has format version {0}, this program knows version 1: use a newer skygate")]
    NewerFormat(u64),
    #[error("the host table has no hosts")]
    NoHosts,
    #[error("the host table has {0} hosts, more than {HOSTS_MAX}")]
    TooManyHosts(usize),
    #[error("the host table's epoch is 0")]
    NoEpoch,
    #[error("host {} stands twice in the host table", hex::encode(.0.0))]
    Twice(HostId),
    #[error("host {} has weight 0", hex::encode(.0.0))]
    NoWeight(HostId),
    #[error("the zone of host {} is longer than {ZONE_BYTES_MAX} bytes", hex::encode(.0.0))]
    ZoneTooLong(HostId),
    #[error("a host id has {0} bytes instead of 16")]
    BadId(usize),
    #[error("the host table has a host in state {0:?}, unknown to this program: use a newer skygate")]
    UnknownState(String),
    #[error("the host table has {0} bytes, more than {TABLE_BYTES_MAX}")]
    TooLong(usize),
    #[error("the host table is not well-formed DAG-CBOR: {0}")]
    Malformed(String),
}

/// The table as DAG-CBOR.
#[derive(Serialize, Deserialize)]
struct TableBody {
    v: u64,
    epoch: u64,
    hosts: Vec<RowBody>,
}

#[derive(Serialize, Deserialize)]
struct RowBody {
    id: serde_bytes::ByteBuf,
    zone: String,
    weight: u16,
    state: String,
}

/// Read before the rest, because a later version may have another shape.
#[derive(Deserialize)]
struct VersionBody {
    v: u64,
}

impl HostTable {
    /// Checks what [`place`] and the format rely on.
    pub fn check(&self) -> Result<(), TableError> {
        if self.epoch == 0 {
            return Err(TableError::NoEpoch);
        }
        if self.hosts.is_empty() {
            return Err(TableError::NoHosts);
        }
        if self.hosts.len() > HOSTS_MAX {
            return Err(TableError::TooManyHosts(self.hosts.len()));
        }
        let mut seen = BTreeSet::new();
        for row in &self.hosts {
            if !seen.insert(row.id) {
                return Err(TableError::Twice(row.id));
            }
            if row.weight == 0 {
                return Err(TableError::NoWeight(row.id));
            }
            if row.zone.len() > ZONE_BYTES_MAX {
                return Err(TableError::ZoneTooLong(row.id));
            }
        }
        Ok(())
    }

    /// The body of the record `hosts` (`docs/formats.md` 6), canonical DAG-CBOR.
    pub fn encode(&self) -> Result<Vec<u8>, TableError> {
        self.check()?;
        let row = |row: &HostRow| RowBody {
            id: serde_bytes::ByteBuf::from(row.id.0.to_vec()),
            zone: row.zone.clone(),
            weight: row.weight,
            state: match row.state {
                RowState::Active => "active".to_owned(),
            },
        };
        let body = TableBody { v: 1, epoch: self.epoch, hosts: self.hosts.iter().map(row).collect() };
        serde_ipld_dagcbor::to_vec(&body).map_err(|error| TableError::Malformed(error.to_string()))
    }

    /// Reads and checks a body; refuses a newer version or an unknown state in words.
    pub fn decode(body: &[u8]) -> Result<HostTable, TableError> {
        if body.len() > TABLE_BYTES_MAX {
            return Err(TableError::TooLong(body.len()));
        }
        let malformed = |error: &dyn std::fmt::Display| TableError::Malformed(error.to_string());
        let version: VersionBody = serde_ipld_dagcbor::from_slice(body).map_err(|error| malformed(&error))?;
        if version.v != 1 {
            return Err(TableError::NewerFormat(version.v));
        }
        let body: TableBody = serde_ipld_dagcbor::from_slice(body).map_err(|error| malformed(&error))?;
        let hosts = body.hosts.into_iter().map(HostRow::from_body).collect::<Result<Vec<_>, _>>()?;
        let table = HostTable { epoch: body.epoch, hosts };
        table.check()?;
        Ok(table)
    }
}

impl HostRow {
    fn from_body(body: RowBody) -> Result<HostRow, TableError> {
        let id: [u8; 16] = body.id.as_slice().try_into().map_err(|_| TableError::BadId(body.id.len()))?;
        let state = match body.state.as_str() {
            "active" => RowState::Active,
            _ => return Err(TableError::UnknownState(body.state)),
        };
        Ok(HostRow { id: HostId(id), zone: body.zone, weight: body.weight, state })
    }
}

/// The hosts of positions 0..`n` for `id` (slab id, sector root or group id), as indexes in `table.hosts`.
///
/// The hosts differ unless `n` exceeds the number of active hosts; then all are used once before any is used again.
/// Empty if the table has no active host. Costs at most `n` x hosts hashes (about 10 us for 9 of 10 hosts).
pub fn place(table: &HostTable, id: &[u8; 32], n: usize) -> Vec<usize> {
    let active: Vec<usize> = (0..table.hosts.len()).filter(|index| table.hosts[*index].state == RowState::Active).collect();
    if active.is_empty() {
        return Vec::new();
    }
    let mut taken_by_zone: BTreeMap<&str, usize> = active.iter().map(|index| (table.hosts[*index].zone.as_str(), 0)).collect();
    let mut cap = n.div_ceil(taken_by_zone.len());
    let mut unused = active.clone();
    let mut chosen = Vec::with_capacity(n);
    for position in 0..n {
        if unused.is_empty() {
            unused.clone_from(&active);
        }
        let fullest_allowed = |index: &usize| taken_by_zone[table.hosts[*index].zone.as_str()];
        // Only zones at the cap have unused hosts left: the cap rises just enough, so the load stays level.
        let least = unused.iter().map(fullest_allowed).min().expect("refilled above");
        cap = cap.max(least + 1);
        let best = (0..unused.len())
            .filter(|slot| fullest_allowed(&unused[*slot]) < cap)
            .map(|slot| (Score::of(&table.hosts[unused[slot]], id, position), slot))
            .min_by(|(left, _), (right, _)| left.compare(right))
            .expect("the zone with the least taken is below the cap");
        let index = unused.swap_remove(best.1);
        *taken_by_zone.get_mut(table.hosts[index].zone.as_str()).expect("filled from the active hosts") += 1;
        chosen.push(index);
    }
    chosen
}

/// `-log2(draw / 2^64) / weight` as an exact fraction, with the host id for ties. The least wins.
struct Score {
    draw: u64,
    weight: u16,
    id: HostId,
}

/// Draws that differ by more than a part in 2^24 differ in their logarithms, too, which have 32 fractional bits and lose the last few:
/// then nobody has to reckon them.
const CLEARLY_APART_BITS: u32 = 24;

impl Score {
    fn of(row: &HostRow, id: &[u8; 32], position: usize) -> Score {
        let position = u16::try_from(position).expect("n is at most a few times 255");
        let hash = blake2b_simd::Params::new()
            .hash_length(32)
            .to_state()
            .update(b"skygate place v1")
            .update(id)
            .update(&position.to_le_bytes())
            .update(&row.id.0)
            .finalize();
        let draw = u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"));
        Score { draw: draw.max(1), weight: row.weight.max(1), id: row.id }
    }

    fn compare(&self, other: &Score) -> std::cmp::Ordering {
        // Hosts mostly weigh the same: the greater draw wins then, and logarithms would be a third of the cost of a placement.
        if self.weight == other.weight && self.draw.abs_diff(other.draw) > self.draw.max(other.draw) >> CLEARLY_APART_BITS {
            return other.draw.cmp(&self.draw);
        }
        self.compare_exactly(other)
    }

    fn compare_exactly(&self, other: &Score) -> std::cmp::Ordering {
        let length = |score: &Score| u128::from((64 << 32) - log2_32(score.draw));
        let (left, right) = (length(self) * u128::from(other.weight), length(other) * u128::from(self.weight));
        left.cmp(&right).then(self.id.cmp(&other.id))
    }
}

/// log2 of `max(u, 1)` with 32 fractional bits, rounded down after every step; part of the format (`docs/formats.md` 8).
///
/// The whole part is the index of the highest set bit. The mantissa is `u` shifted left until bit 63 is set: a number
/// in 1..2 with 63 fractional bits. 32 times: square it as a 128-bit product and drop the low 63 bits; if the result is
/// 2 or more (bit 64 is set), the next fractional bit is 1 and the result is halved (its lowest bit dropped), else the
/// bit is 0.
pub fn log2_32(u: u64) -> u64 {
    let u = u.max(1);
    let whole = u64::from(63 - u.leading_zeros());
    let mut mantissa = u << u.leading_zeros();
    let mut fraction = 0u64;
    for _ in 0..32 {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        let carry = u64::from(square >> 64 != 0);
        fraction = fraction << 1 | carry;
        mantissa = (square >> carry) as u64;
    }
    whole << 32 | fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The short way says what the long one does, above all of draws that are close.
    #[test]
    fn draws_are_compared_without_logarithms() {
        use rand::RngExt;
        let mut random = rand::rng();
        for round in 0..20_000u32 {
            let draw: u64 = random.random::<u64>() >> random.random_range(0..64);
            let near = draw.saturating_add(random.random::<u64>() >> random.random_range(0..64));
            let other = if round % 2 == 0 { near } else { draw ^ (1u64 << random.random_range(0..64)) };
            let score = |draw: u64, weight: u16, id: u8| Score { draw: draw.max(1), weight, id: HostId([id; 16]) };
            for (weight, other_weight) in [(1, 1), (7, 7), (1, 2)] {
                let (one, two) = (score(draw, weight, 1), score(other, other_weight, 2));
                assert_eq!(one.compare(&two), one.compare_exactly(&two), "{draw} {other} {weight} {other_weight}");
                assert_eq!(two.compare(&one), two.compare_exactly(&one), "{other} {draw} {other_weight} {weight}");
            }
        }
    }

    /// Host ids of the vectors: 16 bytes, each the host's index.
    fn row(index: usize, zone: &str, weight: u16) -> HostRow {
        HostRow { id: HostId([index as u8; 16]), zone: zone.to_owned(), weight, state: RowState::Active }
    }

    fn table(zones_and_weights: &[(&str, u16)]) -> HostTable {
        let hosts = zones_and_weights.iter().enumerate().map(|(index, (zone, weight))| row(index, zone, *weight));
        HostTable { epoch: 1, hosts: hosts.collect() }
    }

    fn slab(number: u32) -> [u8; 32] {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        id
    }

    #[test]
    fn log2_vectors() {
        // Made with an independent program in Python's big integers; so were those of `placement_vectors`.
        let expected: [(u64, u64); 12] = [
            (0, 0),
            (1, 0),
            (2, 1 << 32),
            (3, 0x1_95c0_1a39),
            (5, 0x2_5269_e12f),
            (10, 0x3_5269_e12f),
            (1_000_003, 0x13_ee7b_8fb8),
            (u32::MAX as u64, 0x1f_ffff_fffe),
            (1 << 32, 0x20_0000_0000),
            (0x0123_4567_89ab_cdef, 0x38_2fac_092d),
            (1 << 63, 0x3f_0000_0000),
            (u64::MAX, 0x3f_ffff_ffff),
        ];
        for (u, log2) in expected {
            assert_eq!(log2_32(u), log2, "{u:#x}: {:#x}", log2_32(u));
        }
    }

    #[test]
    fn log2_is_right_and_never_falls() {
        let mut before = 0;
        for step in 0..20_000u64 {
            let u = step * step * step + 1;
            let got = log2_32(u);
            let right = (u as f64).log2() * 4_294_967_296.0;
            assert!((got as f64 - right).abs() < 40.0, "{u}: {got} {right}");
            assert!(got >= before);
            before = got;
        }
        assert!(64 << 32 > log2_32(u64::MAX), "a score is never 0");
    }

    #[test]
    fn placement_vectors() {
        let alike = table(&[("", 1); 9]);
        let mixed = table(&[("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5), ("c", 6), ("c", 65_535)]);
        let few = table(&[("", 1), ("", 1), ("", 1)]);
        let lopsided = table(&[("a", 1), ("a", 1), ("a", 1), ("a", 1), ("a", 1), ("b", 1), ("b", 1), ("c", 1)]);
        let vectors: &[(&str, &HostTable, u32, usize, &[usize])] = &[
            ("nine alike", &alike, 0, 9, &[3, 8, 5, 2, 6, 4, 0, 7, 1]),
            ("nine alike", &alike, 1, 9, &[0, 5, 7, 4, 2, 3, 1, 6, 8]),
            ("nine alike", &alike, 1, 4, &[0, 5, 7, 4]),
            ("weights and zones", &mixed, 0, 6, &[6, 4, 5, 2, 3, 1]),
            ("weights and zones", &mixed, 7, 7, &[6, 3, 5, 4, 1, 2, 0]),
            ("fewer hosts than positions", &few, 0, 7, &[1, 2, 0, 2, 1, 0, 2]),
            ("an exhausted zone", &lopsided, 0, 8, &[3, 4, 5, 2, 6, 7, 0, 1]),
        ];
        let mut wrong = String::new();
        for (name, table, number, n, expected) in vectors {
            let got = place(table, &slab(*number), *n);
            if got != *expected {
                wrong += &format!("{name}, slab {number}, n {n}: {got:?}\n");
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }

    #[test]
    fn positions_differ_while_hosts_last() {
        let table = table(&[("", 1), ("", 5), ("", 9), ("", 2), ("", 2)]);
        for number in 0..200 {
            let hosts = place(&table, &slab(number), 12);
            assert_eq!(hosts.len(), 12);
            for round in [&hosts[..5], &hosts[5..10]] {
                assert_eq!(round.iter().collect::<BTreeSet<_>>().len(), 5, "{hosts:?}");
            }
            assert_ne!(hosts[10], hosts[11]);
            assert_eq!(place(&table, &slab(number), 4), hosts[..4], "one zone: a prefix of the longer placement");
        }
        assert!(place(&HostTable { epoch: 1, hosts: Vec::new() }, &slab(0), 3).is_empty());
    }

    fn moved(before: &HostTable, after: &HostTable, n: usize, slabs: u32) -> f64 {
        let mut moved = 0;
        for number in 0..slabs {
            let old = place(before, &slab(number), n);
            let new = place(after, &slab(number), n);
            moved += old.iter().zip(&new).filter(|(old, new)| before.hosts[**old].id != after.hosts[**new].id).count();
        }
        moved as f64 / f64::from(slabs)
    }

    #[test]
    fn a_tenth_host_moves_about_two_of_nine_pieces() {
        let nine = table(&[("", 1); 9]);
        let ten = table(&[("", 1); 10]);
        let rate = moved(&nine, &ten, 9, 4_000);
        assert!((1.9..2.15).contains(&rate), "{rate}");
        // The same the other way round: a host leaves.
        let rate = moved(&ten, &nine, 9, 4_000);
        assert!((1.9..2.15).contains(&rate), "{rate}");
        // Base sectors: 4 copies; ideal would be 0.4.
        let rate = moved(&nine, &ten, 4, 4_000);
        assert!((0.4..0.75).contains(&rate), "{rate}");
    }

    #[test]
    fn weights_are_shares() {
        let weights = [1u16, 2, 3, 4, 10];
        let table = table(&weights.map(|weight| ("", weight)));
        let slabs = 20_000;
        let mut counts = [0u32; 5];
        for number in 0..slabs {
            counts[place(&table, &slab(number), 1)[0]] += 1;
        }
        for (weight, count) in weights.iter().zip(counts) {
            let share = f64::from(count) / f64::from(slabs);
            let wanted = f64::from(*weight) / 20.0;
            assert!((share - wanted).abs() < 0.015, "weight {weight}: {share} instead of {wanted}");
        }
    }

    #[test]
    fn a_zone_takes_at_most_its_cap() {
        let even = table(&[("a", 9), ("a", 9), ("a", 9), ("b", 1), ("b", 1), ("b", 1), ("c", 1), ("c", 1), ("c", 1)]);
        for number in 0..500 {
            for n in 1..=9 {
                let mut by_zone = BTreeMap::new();
                for index in place(&even, &slab(number), n) {
                    *by_zone.entry(even.hosts[index].zone.as_str()).or_insert(0) += 1;
                }
                assert!(by_zone.values().all(|count| *count <= n.div_ceil(3)), "{n}: {by_zone:?}");
            }
        }
        // c has one host only: a and b share what it cannot take.
        let uneven =
            table(&[("a", 1), ("a", 1), ("a", 1), ("a", 1), ("a", 1), ("b", 1), ("b", 1), ("b", 1), ("b", 1), ("b", 1), ("c", 1)]);
        for number in 0..200 {
            let hosts = place(&uneven, &slab(number), 9);
            let of = |zone: &str| hosts.iter().filter(|index| uneven.hosts[**index].zone == zone).count();
            assert_eq!((of("a"), of("b"), of("c")), (4, 4, 1));
        }
    }

    #[test]
    fn table_round_trip_and_bytes() {
        let one = table(&[("rack", 258)]);
        let bytes = one.encode().unwrap();
        // Keys by length, then bytes: v, epoch, hosts; id, zone, state, weight.
        let expected = "a3617601\
            6565706f636801\
            65686f73747381a4\
            62696450\
            00000000000000000000000000000000\
            647a6f6e65647261636b\
            65737461746566616374697665\
            66776569676874190102";
        assert_eq!(hex::encode(&bytes), expected);
        assert_eq!(HostTable::decode(&bytes).unwrap(), one);

        let mut large = HostTable { epoch: u64::MAX, hosts: Vec::new() };
        for index in 0..HOSTS_MAX {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(index as u64).to_le_bytes());
            let zone = "z".repeat(ZONE_BYTES_MAX);
            large.hosts.push(HostRow { id: HostId(id), zone, weight: u16::MAX, state: RowState::Active });
        }
        let bytes = large.encode().unwrap();
        assert!(bytes.len() < 60_000, "{}", bytes.len());
        assert_eq!(HostTable::decode(&bytes).unwrap(), large);
    }

    #[test]
    fn bad_tables_are_refused() {
        let good = table(&[("", 1), ("", 1)]);
        let spoil = |change: fn(&mut HostTable)| {
            let mut bad = good.clone();
            change(&mut bad);
            bad.encode().unwrap_err().to_string()
        };
        assert!(spoil(|table| table.epoch = 0).contains("epoch"));
        assert!(spoil(|table| table.hosts.clear()).contains("no hosts"));
        assert!(spoil(|table| table.hosts[1].id = table.hosts[0].id).contains("twice"));
        assert!(spoil(|table| table.hosts[1].weight = 0).contains("weight 0"));
        assert!(spoil(|table| table.hosts[1].zone = "z".repeat(65)).contains("zone"));

        let text = |body: &[u8]| HostTable::decode(body).unwrap_err().to_string();
        assert!(text(&[0xa1, 0x61, b'v', 2]).contains("newer skygate"));
        assert!(text(&vec![0; TABLE_BYTES_MAX + 1]).contains("bytes"));
        // Nested deeply, to break a reader that recurses without a bound.
        let mut nested = vec![0xa2, 0x61, b'a'];
        nested.extend(std::iter::repeat_n(0x81, 60_000));
        assert!(text(&nested).contains("well-formed"));
        let state = good.encode().unwrap();
        let at = state.windows(6).position(|window| window == b"active").unwrap();
        let mut other = state.clone();
        other[at..at + 6].copy_from_slice(b"retire");
        assert!(text(&other).contains("retire"));
        for cut in 0..state.len() {
            assert!(HostTable::decode(&state[..cut]).is_err());
        }
    }
}
