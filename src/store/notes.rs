//! Notes about damaged pieces: what the repair will read (`docs/formats.md` 12).
//!
//! Readers and checks tell what they find to the renter, which leaves it here; a task of its own writes it as a record, so
//! that no reader waits and a restart forgets nothing. A piece on a host has one note, however often it is read and by
//! however many nodes. A piece that was written anew, or looked at whole and found right, has its note struck out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::records::{Followed, Kind, Record, RecordKey};
use crate::renter::host::HostId;
use crate::renter::{DamageKind, DamageReport, FoundDamage, Noted, SlabRef};
use crate::sector::Root;

use super::{Inner, Store, StoreError};

/// Open notes that a node writes or knows; the oldest are kept. About 600 bytes each in memory. A repair works through
/// them; so many are days of its work, and by then the audit tells what else there is.
pub const NOTES_MAX: usize = 4_096;
/// Of them, about pieces that are gone: a host that lost its disk must not take the room of wrong pieces.
const MISSING_NOTES_MAX: usize = NOTES_MAX / 4 * 3;
/// How long a note that another node wrote may be unknown here. Each look reads all of them.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// Longest reason in a note, bytes.
const WHY_BYTES_MAX: usize = 256;
/// Version of the body that this program writes and reads.
const BODY_VERSION: u32 = 1;

/// One open note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub root: Root,
    pub host: HostId,
    /// Position in its slab, or number of the copy of a base sector.
    pub piece_index: u32,
    /// `None` for a base sector.
    pub slab: Option<SlabRef>,
    pub kind: DamageKind,
    /// In words.
    pub why: String,
    /// Unix time of the first sight, milliseconds.
    pub seen_ms: u64,
}

/// Body of a record, DAG-CBOR.
#[derive(Serialize, Deserialize)]
struct Body {
    v: u32,
    piece: u32,
    /// 0 for a base sector.
    k: u8,
    m: u8,
    /// Content bytes of the slab.
    len: u64,
    /// Of all pieces of the slab, data pieces first.
    roots: serde_bytes::ByteBuf,
    what: String,
    why: String,
    seen: u64,
}

impl Note {
    fn of(found: FoundDamage) -> Note {
        let mut why = found.reason;
        if why.len() > WHY_BYTES_MAX {
            why.truncate((0..=WHY_BYTES_MAX).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0));
        }
        Note {
            root: found.root,
            host: found.host,
            piece_index: found.piece_index as u32,
            slab: found.slab,
            kind: found.kind,
            why,
            seen_ms: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64),
        }
    }

    fn key(&self) -> RecordKey {
        RecordKey::damage(&self.root.0, &self.host.0)
    }

    fn encode(&self) -> Vec<u8> {
        let slab = self.slab.as_ref();
        let body = Body {
            v: BODY_VERSION,
            piece: self.piece_index,
            k: slab.map_or(0, |slab| slab.k),
            m: slab.map_or(0, |slab| slab.m),
            len: slab.map_or(0, |slab| slab.content_len),
            roots: slab.map_or_else(Vec::new, |slab| slab.roots.iter().flat_map(|root| root.0).collect()).into(),
            what: self.kind.as_str().to_owned(),
            why: self.why.clone(),
            seen: self.seen_ms,
        };
        serde_ipld_dagcbor::to_vec(&body).expect("a note is made of plain values")
    }

    /// `None` for a note of a later version, or one that makes no sense: there is nothing to be done with it here.
    fn decode(record: &Record) -> Option<Note> {
        let (root, host) = place_of(&record.key)?;
        let body: Body = serde_ipld_dagcbor::from_slice(&record.body).ok()?;
        let (roots, rest) = body.roots.as_chunks::<32>();
        let piece_count = usize::from(body.k) + usize::from(body.m);
        let slab = match body.k {
            0 => None,
            _ if roots.len() != piece_count || !rest.is_empty() || body.piece as usize >= piece_count => return None,
            _ => {
                let roots = roots.iter().map(|root| Root(*root)).collect();
                Some(SlabRef { k: body.k, m: body.m, roots, content_len: body.len })
            }
        };
        let kind = match body.what.as_str() {
            "wrong" => DamageKind::Wrong,
            "missing" => DamageKind::Missing,
            _ => return None,
        };
        if body.v != BODY_VERSION {
            return None;
        }
        Some(Note { root, host, piece_index: body.piece, slab, kind, why: body.why, seen_ms: body.seen })
    }
}

/// Piece and host of a note's key.
fn place_of(key: &RecordKey) -> Option<(Root, HostId)> {
    let (root_hex, host_hex) = key.text().split_once('/')?;
    let (mut root, mut host) = ([0; 32], [0; 16]);
    hex::decode_to_slice(root_hex, &mut root).ok()?;
    hex::decode_to_slice(host_hex, &mut host).ok()?;
    Some((Root(root), HostId(host)))
}

/// The open notes that this node knows.
#[derive(Default)]
pub struct Notes {
    open: Mutex<HashMap<(Root, HostId), Note>>,
    /// Because there were too many, or too few hosts to write on.
    not_written: AtomicU64,
}

impl Notes {
    /// Is there room for one more of this kind?
    fn has_room(&self, kind: DamageKind) -> bool {
        let open = self.open.lock().expect("no panic under this lock");
        let max = match kind {
            DamageKind::Wrong => NOTES_MAX,
            DamageKind::Missing => MISSING_NOTES_MAX,
        };
        open.len() < max
    }

    /// True if it is known now.
    fn keep(&self, note: Note) -> bool {
        let mut open = self.open.lock().expect("no panic under this lock");
        let key = (note.root, note.host);
        if open.len() >= NOTES_MAX && !open.contains_key(&key) {
            return false;
        }
        open.insert(key, note);
        true
    }

    fn strike(&self, root: Root, host: HostId) {
        self.open.lock().expect("no panic under this lock").remove(&(root, host));
    }
}

impl Store {
    /// The open notes that this node knows, the oldest first.
    pub fn damage_notes(&self) -> Vec<Note> {
        let mut notes: Vec<Note> = self.inner.notes.open.lock().expect("no panic under this lock").values().cloned().collect();
        notes.sort_by(|one, other| one.seen_ms.cmp(&other.seen_ms).then(one.root.cmp(&other.root)));
        notes
    }

    /// Damages that were found and could not be noted.
    pub fn damages_not_noted(&self) -> u64 {
        self.inner.notes.not_written.load(Relaxed) + self.inner.renter.damages_untold()
    }
}

impl Inner {
    /// Keeps the notes until it is dropped: those there are, those that come, those that are struck out.
    pub async fn keep_notes(self: Arc<Self>) {
        let Some(reports) = self.renter.take_damage_reports() else { return };
        let follow = self.records.follow(Kind::Damage, LOOK_EVERY, |followed| {
            if let Followed::Record(record) = followed {
                self.take_note(record);
            }
        });
        tokio::join!(follow, self.write_notes(reports));
    }

    fn take_note(&self, record: &Record) {
        let Some((root, host)) = place_of(&record.key) else { return };
        let kept = match Note::decode(record).filter(|_| !record.removed) {
            Some(note) => self.notes.keep(note),
            None => {
                self.notes.strike(root, host);
                false
            }
        };
        self.renter.set_noted(root, host, if kept { Noted::Yes } else { Noted::No });
    }

    /// One after the other: a note is not urgent, and a burst of them must not be a burst of writes.
    async fn write_notes(&self, mut reports: mpsc::Receiver<DamageReport>) {
        // While hosts are too few, each look at a piece fails to be noted: it is said once.
        let mut said = false;
        while let Some(report) = reports.recv().await {
            let written = match report {
                DamageReport::Found(found) => self.write_note(Note::of(found)).await,
                DamageReport::Mended { root, host } => self.strike_note(root, host).await,
            };
            match written {
                Ok(()) => said = false,
                Err(error) => {
                    self.notes.not_written.fetch_add(1, Relaxed);
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, "damage cannot be noted for repair now; it is tried again when a piece is met again");
                    }
                }
            }
        }
    }

    async fn write_note(&self, note: Note) -> Result<(), StoreError> {
        if !self.notes.has_room(note.kind) {
            self.notes.not_written.fetch_add(1, Relaxed);
            return Ok(());
        }
        let key = note.key();
        match self.records.newest(&key).await? {
            // Noted by this node before, or by another one.
            Some(newest) if !newest.removed => self.take_note(&newest),
            _ => {
                let record = Record::new(key.clone(), self.records.next_version(&key).await?, note.encode());
                self.records.put(record.clone()).await?;
                self.take_note(&record);
            }
        }
        Ok(())
    }

    async fn strike_note(&self, root: Root, host: HostId) -> Result<(), StoreError> {
        self.records.remove(&RecordKey::damage(&root.0, &host.0)).await?;
        self.notes.strike(root, host);
        self.renter.set_noted(root, host, Noted::No);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Order;

    fn slab() -> SlabRef {
        SlabRef { k: 1, m: 1, roots: [Root([1; 32]), Root([2; 32])].into(), content_len: 5 }
    }

    fn note() -> Note {
        let why = "the data does not match its node".to_owned();
        let (root, host) = (Root([2; 32]), HostId([7; 16]));
        Note { root, host, piece_index: 1, slab: Some(slab()), kind: DamageKind::Wrong, why, seen_ms: 1_700_000_000_000 }
    }

    fn record(note: &Note, body: Vec<u8>) -> Record {
        Record::new(note.key(), Order::version(1), body)
    }

    #[test]
    fn bodies_round_trip() {
        let wrong = note();
        let rows = [
            wrong.clone(),
            Note { kind: DamageKind::Missing, why: String::new(), ..wrong.clone() },
            Note { slab: None, piece_index: 3, ..wrong },
        ];
        for note in rows {
            assert_eq!(Note::decode(&record(&note, note.encode())), Some(note));
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_taken() {
        let good = note();
        let body = |change: fn(&mut Body)| {
            let mut body: Body = serde_ipld_dagcbor::from_slice(&good.encode()).expect("decodes");
            change(&mut body);
            record(&good, serde_ipld_dagcbor::to_vec(&body).expect("encodes"))
        };
        assert!(Note::decode(&body(|_| ())).is_some());
        let rows: [fn(&mut Body); 6] = [
            |body| body.v = 2,
            |body| body.piece = 2,
            |body| _ = body.roots.pop(),
            |body| body.roots.truncate(32),
            |body| body.k = 2,
            |body| body.what = "odd".to_owned(),
        ];
        for (index, change) in rows.into_iter().enumerate() {
            assert_eq!(Note::decode(&body(change)), None, "row {index}");
        }
        assert_eq!(Note::decode(&record(&good, b"no CBOR".to_vec())), None);
    }

    /// The vector of `docs/formats.md` 12, written down by hand from the specification of CBOR (RFC 8949).
    #[test]
    fn bytes_of_a_body() {
        let roots = format!("{}{}", "01".repeat(32), "02".repeat(32));
        let words = [
            "a9".to_owned(),
            "616b01".to_owned(),
            "616d01".to_owned(),
            "617601".to_owned(),
            "636c656e05".to_owned(),
            format!("63776879 7820{}", hex::encode("the data does not match its node")),
            "647365656e1b0000018bcfe56800".to_owned(),
            format!("6477686174 65{}", hex::encode("wrong")),
            "65706965636501".to_owned(),
            format!("65726f6f7473 5840{roots}"),
        ];
        assert_eq!(hex::encode(note().encode()), words.concat().replace(' ', ""));
    }

    #[test]
    fn a_book_keeps_the_oldest_and_room_for_wrong_pieces() {
        let notes = Notes::default();
        let numbered = |number: usize| {
            let mut root = [0; 32];
            root[..8].copy_from_slice(&number.to_be_bytes());
            Note { root: Root(root), ..note() }
        };
        assert!((0..MISSING_NOTES_MAX).all(|number| notes.keep(numbered(number))));
        assert!(!notes.has_room(DamageKind::Missing) && notes.has_room(DamageKind::Wrong));
        assert!((MISSING_NOTES_MAX..NOTES_MAX).all(|number| notes.keep(numbered(number))));
        assert!(!notes.has_room(DamageKind::Wrong) && !notes.keep(numbered(NOTES_MAX)));
        assert!(notes.keep(numbered(0)), "it is known");
        notes.strike(numbered(0).root, note().host);
        assert!(notes.keep(numbered(NOTES_MAX)));
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let found = FoundDamage {
            root: Root([1; 32]),
            host: HostId([1; 16]),
            piece_index: 0,
            slab: None,
            kind: DamageKind::Wrong,
            reason: format!("{}é", "x".repeat(WHY_BYTES_MAX - 1)),
        };
        assert_eq!(Note::of(found).why, "x".repeat(WHY_BYTES_MAX - 1));
    }
}
