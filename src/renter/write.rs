//! Writing: every piece at its place, enough of them durable before anybody is told.
//!
//! A write starts all its puts at once and answers when `k + f` pieces (`f + 1` copies of a base sector) are durable,
//! where `f = ceil(m / 2)`: from then on any `f` hosts may be lost. The rest goes on in the background; a put that is
//! still out [`LAGGARD_MAX`] after the acknowledgement is given up, so that a hung host does not hold slab memory, and is left to
//! [`Renter::complete_slab`]. A write never asks whether an object is there already: existence is no acknowledgement.
//! Dropping a write before its acknowledgement stops it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};

use super::{
    DamageKind, Expect, Renter, RenterError, Shared, SlabRef, Spot, Window, compute,
    host::{Deadline, Host, HostError, ReadRange},
    read::piece_length,
    sector_path, write_refusal,
};
use crate::{
    measure::Trace,
    sector::{EncodedSlab, HEADER_BYTES, Root, SECTOR_BYTES, SectorObject, SlabEncoder, build_object, object_len, parse_header},
};

/// A write that is not acknowledged by then has failed: more than three tries of a host's own time-out for a sector.
pub const WRITE_ACK_MAX: Duration = Duration::from_secs(60);
/// How long after the acknowledgement a put may still hold its buffer: several times a slow host's 4 MiB, and short
/// enough that one hung host costs an upload some seconds of one buffer.
pub const LAGGARD_MAX: Duration = Duration::from_secs(10);
/// A piece is put at most so often; after that its host is not well enough.
const PUT_ATTEMPTS_MAX: u32 = 3;
/// Pause before the second try, twice as long before the third.
const PUT_RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Hosts named in a refusal: more do not help to understand it.
const REASONS_MAX: usize = 4;

/// What an acknowledged write still does.
pub struct Written {
    acknowledged: Vec<bool>,
    rest: oneshot::Receiver<Completion>,
}

/// Whether everything is at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Any `m` hosts may be lost.
    Complete,
    /// These pieces (numbers of copies for a base sector) are not known to be durable.
    Missing(Vec<usize>),
}

impl Completion {
    fn of(durable: &[bool]) -> Completion {
        let missing: Vec<_> = durable.iter().enumerate().filter(|(_, durable)| !**durable).map(|(index, _)| index).collect();
        if missing.is_empty() { Completion::Complete } else { Completion::Missing(missing) }
    }
}

impl Written {
    /// Pieces or copies that were durable at the acknowledgement.
    pub fn acknowledged_count(&self) -> usize {
        self.acknowledged.iter().filter(|durable| **durable).count()
    }

    /// Waits for the rest: at most about [`LAGGARD_MAX`]. Dropping it instead does not stop the rest.
    pub async fn complete(self) -> Completion {
        let at_acknowledgement = Completion::of(&self.acknowledged);
        // The sender only goes away with the runtime.
        self.rest.await.unwrap_or(at_acknowledgement)
    }
}

impl Renter {
    /// Puts the pieces of an encoded slab on their hosts.
    ///
    /// # Errors
    /// `NotEnoughHosts`: fewer than `k + f` pieces can become durable, or did within [`WRITE_ACK_MAX`].
    pub async fn write_slab(&self, slab: EncodedSlab) -> Result<Written, RenterError> {
        let options = &self.shared.options;
        let roots: Arc<[Root]> = slab.objects.iter().map(|object| object.root).collect();
        let spots = self.shared.slab_spots(&SlabRef { k: options.k, m: options.m, roots, content_len: 0 });
        let ack_count = usize::from(options.k) + self.f();
        self.write(spots.into_iter().zip(slab.objects).collect(), ack_count).await
    }

    /// Puts the copies of a base sector on their hosts.
    ///
    /// # Errors
    /// `NotEnoughHosts`: fewer than `f + 1` copies (all of them, if there are fewer) can become durable, or did in time.
    pub async fn write_base(&self, object: SectorObject) -> Result<Written, RenterError> {
        let spots = self.shared.base_spots(&object.root);
        let ack_count = (self.f() + 1).min(spots.len());
        self.write(spots.into_iter().map(|spot| (spot, object.clone())).collect(), ack_count).await
    }

    async fn write(&self, puts: Vec<(Spot, SectorObject)>, ack_count: usize) -> Result<Written, RenterError> {
        let refusals: Vec<_> = puts.iter().filter_map(|(spot, _)| write_refusal(spot.host.as_ref())).collect();
        if puts.len() - refusals.len() < ack_count {
            return Err(not_enough(puts.len() - refusals.len(), ack_count, refusals));
        }
        let (ack, acknowledged) = oneshot::channel();
        let (done, rest) = oneshot::channel();
        let put_all = PutAll::new(self.shared.clone(), puts.len(), ack_count);
        tokio::spawn(put_all.run(puts, ack, done));
        let acknowledged =
            acknowledged.await.unwrap_or_else(|_| Err(not_enough(0, ack_count, vec!["the gateway is stopping".to_owned()])));
        Ok(Written { acknowledged: acknowledged?, rest })
    }

    /// Pieces that are not at their place now: not there, of a size that cannot be right, or on a host that does not
    /// answer. Asks for sizes, not for bytes: whether they are right shows when they are read.
    pub async fn missing_pieces(&self, slab: &SlabRef) -> Vec<usize> {
        absent(&self.look_at_slab(slab).await)
    }

    /// Copies of a base sector that are not at their place now.
    pub async fn missing_copies(&self, root: &Root) -> Vec<usize> {
        absent(&self.look_at_base(root, Expect::default()).await)
    }

    /// How many copies of a base sector are at their place now.
    pub async fn copies_there(&self, root: &Root) -> usize {
        let looked = self.look_at_base(root, Expect::default()).await;
        present(&looked).into_iter().filter(|there| *there).count()
    }

    /// Brings a slab to completion: looks which pieces are there, rebuilds the others from any `k` right ones, and
    /// writes them where their host takes writes. Used after a restart and by whoever finds damage.
    ///
    /// # Errors
    /// As [`Renter::read_slab`], if a piece has to be rebuilt and fewer than `k` can be had.
    pub async fn complete_slab(&self, slab: &SlabRef) -> Result<Completion, RenterError> {
        let looked = self.look_at_slab(slab).await;
        if !looked.iter().any(Looked::can_be_filled) {
            return Ok(Completion::of(&present(&looked)));
        }
        let objects = self.rebuild(slab).await?;
        Ok(self.fill(looked, |piece_index| objects[piece_index].clone()).await)
    }

    /// The same for a base sector: its copies from any right one.
    ///
    /// # Errors
    /// As [`Renter::read_sector`].
    pub async fn complete_base(&self, root: &Root, expect: Expect) -> Result<Completion, RenterError> {
        let looked = self.look_at_base(root, expect).await;
        if !looked.iter().any(Looked::can_be_filled) {
            return Ok(Completion::of(&present(&looked)));
        }
        let data = self.read_sector(root, expect, 0..SECTOR_BYTES as u32, &Trace::default()).await?;
        let epoch = self.shared.table.epoch;
        let object = compute(|| build_object(&data, 0, 0, epoch));
        assert_eq!(object.root, *root, "checked data has its root");
        Ok(self.fill(looked, |_| object.clone()).await)
    }

    /// Encodes the slab anew from what can be read of it: one slab's memory, one step more, and the roots prove the
    /// result before anything is written.
    async fn rebuild(&self, slab: &SlabRef) -> Result<Vec<SectorObject>, RenterError> {
        let memory = self.shared.memory.acquire(slab.k, slab.m).await;
        let encoder = SlabEncoder::new(slab.k, slab.m, self.shared.table.epoch, memory)
            .expect("a slab's redundancy is checked where it is parsed");
        let step_bytes = encoder.step_bytes() as u64;
        for step in 0..slab.content_len.div_ceil(step_bytes) {
            let content =
                self.read_slab(slab, step * step_bytes..(step + 1) * step_bytes, Window::Later, &Trace::default()).await?;
            compute(|| encoder.encode_step(step as usize, &content));
        }
        let encoded = compute(|| encoder.finish(slab.content_len));
        let same = encoded.objects.iter().map(|object| &object.root).eq(slab.roots.iter());
        // Every byte read was checked, so only a slab that no encoder wrote can differ: its parity is not that of its data.
        if !same {
            return Err(RenterError::TooFewPieces { have: 0, need: slab.k.into() });
        }
        Ok(encoded.objects)
    }

    /// Writes what is missing and can be written, and says what is still missing then.
    async fn fill(&self, looked: Vec<Looked>, object: impl Fn(usize) -> SectorObject) -> Completion {
        let mut durable = present(&looked);
        let fillable: Vec<_> = looked.into_iter().filter(Looked::can_be_filled).collect();
        let indexes: Vec<_> = fillable.iter().map(|looked| looked.spot.piece_index).collect();
        let puts = fillable.into_iter().map(|looked| (looked.spot.clone(), object(looked.spot.piece_index))).collect();
        let missing = match self.write(puts, 0).await {
            Ok(written) => written.complete().await,
            Err(_) => return Completion::of(&durable),
        };
        let still = match missing {
            Completion::Complete => Vec::new(),
            Completion::Missing(still) => still,
        };
        for (put_index, piece_index) in indexes.into_iter().enumerate() {
            durable[piece_index] = !still.contains(&put_index);
        }
        Completion::of(&durable)
    }

    /// Asks every host at once about its piece.
    async fn look_at_slab(&self, slab: &SlabRef) -> Vec<Looked> {
        let spots = self.shared.slab_spots(slab);
        join_all(spots.into_iter().map(|spot| {
            let length_guess = piece_length(slab, spot.piece_index);
            self.shared.look(spot, Some(length_guess))
        }))
        .await
    }

    async fn look_at_base(&self, root: &Root, expect: Expect) -> Vec<Looked> {
        join_all(self.shared.base_spots(root).into_iter().map(|spot| self.shared.look(spot, expect.data_length))).await
    }
}

impl Shared {
    async fn look(&self, spot: Spot, length_guess: Option<u32>) -> Looked {
        let presence = match &spot.host {
            None => Presence::Unknown,
            Some(host) => match object_fault(host, &sector_path(&spot.root), length_guess).await {
                Ok(None) => Presence::Present,
                Ok(Some(reason)) => {
                    self.report_damage(&spot, DamageKind::Wrong, &reason);
                    Presence::Absent
                }
                Err(HostError::NotFound) => Presence::Absent,
                Err(_) => Presence::Unknown,
            },
        };
        Looked { spot, presence }
    }
}

/// Whether an object is cut or is none, by its size: that of the expected length, or else the one its own header asks
/// for (trailing zeros are cut, so it may be shorter than expected). `None` if it seems whole.
async fn object_fault(host: &Host, path: &str, length_guess: Option<u32>) -> Result<Option<String>, HostError> {
    let object_bytes = host.size(path).await?;
    if length_guess.is_some_and(|length| object_len(length) as u64 == object_bytes) {
        return Ok(None);
    }
    if object_bytes < HEADER_BYTES as u64 {
        return Ok(Some(format!("the object has only {object_bytes} bytes")));
    }
    let header = host.get(path, ReadRange::Prefix(HEADER_BYTES as u64)).await?;
    Ok(match parse_header(&header) {
        Ok(header) if header.object_len() as u64 == object_bytes => None,
        Ok(header) => Some(format!("the object has {object_bytes} bytes of {}", header.object_len())),
        Err(error) => Some(error.to_string()),
    })
}

/// What a host says about a piece.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Present,
    Absent,
    /// The host does not answer.
    Unknown,
}

struct Looked {
    spot: Spot,
    presence: Presence,
}

impl Looked {
    fn can_be_filled(&self) -> bool {
        self.presence == Presence::Absent && write_refusal(self.spot.host.as_ref()).is_none()
    }
}

fn present(looked: &[Looked]) -> Vec<bool> {
    looked.iter().map(|looked| looked.presence == Presence::Present).collect()
}

fn absent(looked: &[Looked]) -> Vec<usize> {
    match Completion::of(&present(looked)) {
        Completion::Complete => Vec::new(),
        Completion::Missing(missing) => missing,
    }
}

fn not_enough(have: usize, need: usize, mut reasons: Vec<String>) -> RenterError {
    let unnamed = reasons.len().saturating_sub(REASONS_MAX);
    reasons.truncate(REASONS_MAX);
    let more = if unnamed > 0 { format!("; and {unnamed} more") } else { String::new() };
    RenterError::NotEnoughHosts { have, need, reason: format!("{}{more}", reasons.join("; ")) }
}

/// One write under way: owns its puts, outlives the caller's interest in them.
struct PutAll {
    shared: Arc<Shared>,
    ack_count: usize,
    durable: Vec<bool>,
    failures: Vec<String>,
}

type Acknowledgement = Result<Vec<bool>, RenterError>;

impl PutAll {
    fn new(shared: Arc<Shared>, put_count: usize, ack_count: usize) -> PutAll {
        PutAll { shared, ack_count, durable: vec![false; put_count], failures: Vec::new() }
    }

    async fn run(
        mut self,
        puts: Vec<(Spot, SectorObject)>,
        ack: oneshot::Sender<Acknowledgement>,
        done: oneshot::Sender<Completion>,
    ) {
        let mut running: FuturesUnordered<_> = puts
            .into_iter()
            .enumerate()
            .map(|(put_index, (spot, object))| {
                let shared = self.shared.clone();
                async move { (put_index, put(&shared, spot, object.bytes).await) }
            })
            .collect();
        let mut ack = Some(ack);
        let deadline = sleep_until(Instant::now() + WRITE_ACK_MAX);
        tokio::pin!(deadline);
        loop {
            if let Some(sender) = ack.take() {
                if self.durable_count() >= self.ack_count {
                    let _ = sender.send(Ok(self.durable.clone()));
                    deadline.as_mut().reset(Instant::now() + LAGGARD_MAX);
                } else if self.durable.len() - self.failures.len() < self.ack_count {
                    let _ = sender.send(Err(not_enough(self.durable_count(), self.ack_count, std::mem::take(&mut self.failures))));
                    return;
                } else {
                    ack = Some(sender);
                }
            }
            tokio::select! {
                biased;
                put = running.next() => match put {
                    Some((put_index, Ok(()))) => self.durable[put_index] = true,
                    Some((_, Err(failure))) => self.failures.push(failure),
                    None => break,
                },
                () = abandoned(&mut ack) => return,
                () = &mut deadline => {
                    if let Some(sender) = ack {
                        self.failures.push(format!("{} hosts did not answer within {WRITE_ACK_MAX:?}", running.len()));
                        let _ = sender.send(Err(not_enough(self.durable_count(), self.ack_count, self.failures)));
                        return;
                    }
                    break;
                }
            }
        }
        let _ = done.send(Completion::of(&self.durable));
    }

    fn durable_count(&self) -> usize {
        self.durable.iter().filter(|durable| **durable).count()
    }
}

/// Ends when the caller gave up before the acknowledgement; never afterwards.
async fn abandoned(ack: &mut Option<oneshot::Sender<Acknowledgement>>) {
    match ack {
        Some(ack) => ack.closed().await,
        None => std::future::pending().await,
    }
}

/// Puts one object, again if the failure may pass.
async fn put(shared: &Shared, spot: Spot, bytes: Bytes) -> Result<(), String> {
    let Some(host) = &spot.host else { return Err("a host of the table is not configured here".to_owned()) };
    shared.retries.earn();
    let path = sector_path(&spot.root);
    let mut tries = 0;
    loop {
        tries += 1;
        match host.put(&path, bytes.clone(), Deadline::Sector).await {
            Ok(()) => {
                shared.forget_damage(&spot);
                return Ok(());
            }
            Err(HostError::Transient(_)) if tries < PUT_ATTEMPTS_MAX && shared.retries.spend() => {
                sleep(PUT_RETRY_PAUSE * tries).await;
            }
            Err(error) => return Err(put_failure(host, &error)),
        }
    }
}

fn put_failure(host: &Host, error: &HostError) -> String {
    format!("{}: {error}", host.url())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_some_hosts() {
        let reasons = (0..6).map(|host| format!("host {host} is down")).collect();
        let RenterError::NotEnoughHosts { reason, .. } = not_enough(3, 8, reasons) else { panic!() };
        assert_eq!(reason, "host 0 is down; host 1 is down; host 2 is down; host 3 is down; and 2 more");
    }
}
