//! Memory of slabs being written.
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Renter;
use crate::sector::SlabBuffers;

pub const SLAB_MEMORY_DEFAULT_BYTES: u64 = 4 * 9 * ((4 << 20) + (36 << 10));

pub struct SlabMemory {
    pub buffers: SlabBuffers,
    pub permit: OwnedSemaphorePermit,
}
pub(super) struct SlabPool {
    slabs: Arc<Semaphore>,
}
impl SlabPool {
    pub(super) fn new(k: u8, m: u8, bytes: u64) -> SlabPool {
        let slab = (u64::from(k) + u64::from(m)) * ((4 << 20) + (36 << 10));
        SlabPool { slabs: Arc::new(Semaphore::new((bytes / slab).max(2) as usize)) }
    }
}
impl Renter {
    pub async fn acquire_slab(&self) -> SlabMemory {
        let permit = self.shared.memory.slabs.clone().acquire_owned().await.expect("never closed");
        SlabMemory { buffers: SlabBuffers::allocate(self.shared.options.k, self.shared.options.m), permit }
    }
}
