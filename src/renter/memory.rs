//! The one pool of memory for slabs being written or rebuilt.
//!
//! A slab in flight takes `k + m` object buffers of about 4.2 MiB, from the first byte encoded until the last put of it
//! has ended or was given up. So many slabs are in flight, in the whole process, as fit the pool; who wants one more waits,
//! first come first served. The buffers carry their share of the pool with them: nobody can forget to give it back, and nobody gets
//! it while a hung put still holds the bytes.
//!
//! Used buffers are kept for the next slab: fresh memory costs a page fault for each 4 KiB, some 5 % of encoding a slab.
//! The encoder overwrites what it uses and zeroes the rest, so nothing is cleared here. After [`IDLE`] without a slab the
//! kept buffers are freed: an idle gateway does not sit on 150 MiB.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Renter;
use crate::sector::{BufferPool, SECTOR_BYTES, SlabBuffers, object_len};

/// Slabs in flight by default: two are encoded while two are written. In the prototype, which wrote 651 MiB/s with four, six were no
/// faster and took 74 MiB more.
const SLABS_IN_FLIGHT_DEFAULT: u64 = 4;
/// With fewer, nothing is encoded while a slab is written.
const SLABS_IN_FLIGHT_MIN: u64 = 2;
/// Memory of the default number of slabs at the default redundancy, 6 + 3.
pub const SLAB_MEMORY_DEFAULT_BYTES: u64 = SLABS_IN_FLIGHT_DEFAULT * 9 * PIECE_BUFFER_BYTES;
/// A full sector object, in whole pages.
const PIECE_BUFFER_BYTES: u64 = object_len(SECTOR_BYTES as u32).next_multiple_of(4096) as u64;
/// Unused buffers are freed after this long without a slab. Longer than the gaps between the files of one upload.
const IDLE: Duration = Duration::from_secs(10);

/// Counts in piece buffers, because a rebuilt slab may have another redundancy than new ones.
pub(super) struct SlabPool {
    pieces: Arc<Semaphore>,
    piece_count: u32,
    buffers: BufferPool,
    /// A task waits to free unused buffers.
    is_watched: Arc<AtomicBool>,
}

impl SlabPool {
    pub(super) fn new(k: u8, m: u8, max_bytes: u64) -> SlabPool {
        let pieces_a_slab = u64::from(k) + u64::from(m);
        let slabs = (max_bytes / (pieces_a_slab * PIECE_BUFFER_BYTES)).max(SLABS_IN_FLIGHT_MIN);
        let piece_count = (slabs * pieces_a_slab).min(u64::from(u32::MAX)) as u32;
        let pieces = Arc::new(Semaphore::new(piece_count as usize));
        SlabPool { pieces, piece_count, buffers: BufferPool::new(piece_count as usize), is_watched: Arc::default() }
    }

    /// A slab larger than the whole pool waits until it is alone.
    pub(super) async fn acquire(&self, k: u8, m: u8) -> SlabBuffers {
        let wanted = (u32::from(k) + u32::from(m)).min(self.piece_count);
        let share = self.pieces.clone().acquire_many_owned(wanted).await.expect("the pool is never closed");
        if !self.is_watched.swap(true, SeqCst) {
            let watch = release_when_idle(self.pieces.clone(), self.piece_count, self.buffers.clone(), self.is_watched.clone());
            tokio::spawn(watch);
        }
        self.buffers.take(k, m).hold(Arc::<OwnedSemaphorePermit>::new(share))
    }
}

impl Renter {
    /// Memory for one new slab, in its turn. It is free again when the last bytes made of it are dropped.
    pub async fn acquire_slab(&self) -> SlabBuffers {
        self.shared.memory.acquire(self.shared.options.k, self.shared.options.m).await
    }
}

/// Frees the kept buffers when no slab was in flight at two looks [`IDLE`] apart, and ends; the next slab starts it anew.
async fn release_when_idle(pieces: Arc<Semaphore>, piece_count: u32, buffers: BufferPool, is_watched: Arc<AtomicBool>) {
    let mut was_unused = false;
    loop {
        tokio::time::sleep(IDLE).await;
        let is_unused = pieces.available_permits() == piece_count as usize;
        if is_unused && was_unused {
            // First, so that a slab acquired meanwhile starts its own watch.
            is_watched.store(false, SeqCst);
            buffers.release_unused();
            return;
        }
        was_unused = is_unused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slabs_wait_in_turn_and_reuse_memory() {
        let pool = SlabPool::new(6, 3, 0);
        let first = pool.acquire(6, 3).await;
        let second = pool.acquire(6, 3).await;
        let mut third = Box::pin(pool.acquire(6, 3));
        let mut fourth = Box::pin(pool.acquire(1, 0));
        assert!(futures::poll!(&mut third).is_pending());
        assert!(futures::poll!(&mut fourth).is_pending(), "a small one does not overtake");
        drop(first);
        assert_eq!(pool.buffers.unused(), 9);
        let third = third.await;
        assert_eq!(pool.buffers.unused(), 0);
        drop(second);
        let fourth = fourth.await;
        drop((third, fourth));
        assert_eq!(pool.buffers.unused(), 18);
        tokio::time::sleep(IDLE * 3).await;
        assert_eq!(pool.buffers.unused(), 0, "an idle pool frees its memory");
        drop(pool.acquire(6, 3).await);
        assert_eq!(pool.buffers.unused(), 9);
        tokio::time::sleep(IDLE * 3).await;
        assert_eq!(pool.buffers.unused(), 0);
    }

    #[tokio::test]
    async fn a_slab_larger_than_the_pool_gets_all_of_it() {
        let pool = SlabPool::new(1, 0, 0);
        let large = pool.acquire(10, 20).await;
        assert_eq!(large.piece_count(), 30);
        assert!(futures::poll!(Box::pin(pool.acquire(1, 0))).is_pending());
    }
}
