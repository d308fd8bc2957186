//! Content bytes become a small buffer or slabs, while they arrive.
//!
//! The first 4 MiB wait in memory, since they may fit a base sector. After that a slab's memory is held; every step of
//! it (k x 512 KiB) is encoded by a compute job as soon as it is full, and a full slab is written while the next one
//! fills. The pool of slab memory is the brake: no slab, no reading from the client.

use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::sector::{Root, SECTOR_BYTES, SlabEncoder};
use crate::store::{Store, StoreError, Written};

use super::IngestError;

/// A content that has been taken in.
pub enum Taken {
    /// Not more than a sector: may fit into the base sector.
    Small(Vec<u8>),
    Slabs {
        size: u64,
        slabs: Vec<TakenSlab>,
    },
}

/// A slab that is acknowledged, or that was only looked at.
pub struct TakenSlab {
    pub roots: Vec<Root>,
    /// `None` for [`Keep::Nothing`].
    pub written: Option<Written>,
}

/// What becomes of the slabs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    All,
    /// They are made for their roots, and let go.
    Nothing,
}

impl Taken {
    /// The slabs of a content that was made into slabs.
    pub fn into_slabs(self) -> Vec<TakenSlab> {
        match self {
            Taken::Slabs { slabs, .. } => slabs,
            Taken::Small(_) => unreachable!("the writer was told to make slabs"),
        }
    }
}

pub struct ContentWriter {
    store: Store,
    keep: Keep,
    compute: Arc<Semaphore>,
    runtime: Handle,
    size: u64,
    state: State,
    /// In the order of the content.
    slabs: Vec<Slab>,
    steps: UsedSteps,
}

enum State {
    Small(Vec<u8>),
    Slab(OpenSlab),
    /// Between two slabs.
    Between,
}

struct OpenSlab {
    encoder: Arc<SlabEncoder>,
    step: Vec<u8>,
    step_index: usize,
    content_len: u64,
    jobs: Vec<JoinHandle<()>>,
}

/// Memory of steps that were encoded, for the next ones: fresh memory costs a page fault for each 4 KiB. As many as
/// compute jobs ran at once.
#[derive(Clone, Default)]
struct UsedSteps(Arc<Mutex<Vec<Vec<u8>>>>);

impl UsedSteps {
    fn empty(&self, bytes: usize) -> Vec<u8> {
        self.0.lock().expect("no panic under this lock").pop().unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    fn put(&self, mut step: Vec<u8>) {
        step.clear();
        self.0.lock().expect("no panic under this lock").push(step);
    }
}

enum Slab {
    /// Being encoded or written.
    Running(Task<TakenSlab>),
    Taken(TakenSlab),
}

/// A task that stops when nobody waits for it any more.
struct Task<T>(JoinHandle<Result<T, StoreError>>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ContentWriter {
    /// Must be used on a thread that may block, inside the runtime.
    pub fn new(store: Store, compute: Arc<Semaphore>, runtime: Handle, keep: Keep) -> ContentWriter {
        ContentWriter { state: State::Small(Vec::new()), ..ContentWriter::in_slabs(store, compute, runtime, keep) }
    }

    /// A writer that makes slabs of however little comes.
    pub fn in_slabs(store: Store, compute: Arc<Semaphore>, runtime: Handle, keep: Keep) -> ContentWriter {
        ContentWriter {
            store,
            keep,
            compute,
            runtime,
            size: 0,
            state: State::Between,
            slabs: Vec::new(),
            steps: UsedSteps::default(),
        }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), IngestError> {
        self.size += bytes.len() as u64;
        if let State::Small(small) = &mut self.state {
            if small.len() + bytes.len() <= SECTOR_BYTES {
                small.extend_from_slice(bytes);
                return Ok(());
            }
            let small = std::mem::take(small);
            self.state = State::Between;
            self.push_to_slabs(&small)?;
        }
        while !bytes.is_empty() {
            let taken = bytes.len().min(SECTOR_BYTES);
            self.push_to_slabs(&bytes[..taken])?;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn push_to_slabs(&mut self, mut bytes: &[u8]) -> Result<(), IngestError> {
        while !bytes.is_empty() {
            if !matches!(self.state, State::Slab(_)) {
                self.state = State::Slab(self.open_slab()?);
            }
            let State::Slab(slab) = &mut self.state else { unreachable!("a slab was just opened") };
            let room = slab.encoder.step_bytes() - slab.step.len();
            let taken = bytes.len().min(room);
            slab.step.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if taken == room {
                self.close_step();
            }
        }
        Ok(())
    }

    fn open_slab(&mut self) -> Result<OpenSlab, IngestError> {
        self.check_earlier_slabs()?;
        let encoder = Arc::new(self.runtime.block_on(self.store.slab_encoder()));
        let step = self.steps.empty(encoder.step_bytes());
        Ok(OpenSlab { encoder, step, step_index: 0, content_len: 0, jobs: Vec::new() })
    }

    /// A slab that failed makes the rest of the upload pointless: tell at once.
    fn check_earlier_slabs(&mut self) -> Result<(), IngestError> {
        for slab in &mut self.slabs {
            if let Slab::Running(task) = slab
                && task.0.is_finished()
            {
                *slab = Slab::Taken(self.runtime.block_on(&mut task.0).expect("writing a slab does not panic")?);
            }
        }
        Ok(())
    }

    /// Hands a full (or the last) step to the compute jobs. At most as many run, in the whole process, as there are
    /// cores: this waits for a free one.
    fn close_step(&mut self) {
        let permit = self.runtime.block_on(self.compute.clone().acquire_owned()).expect("the semaphore is never closed");
        let State::Slab(slab) = &mut self.state else { return };
        let step = std::mem::take(&mut slab.step);
        slab.content_len += step.len() as u64;
        let (encoder, index, used_steps) = (slab.encoder.clone(), slab.step_index, self.steps.clone());
        slab.jobs.push(self.runtime.spawn_blocking(move || {
            encoder.encode_step(index, &step);
            used_steps.put(step);
            drop(permit);
        }));
        slab.step_index += 1;
        if slab.step_index == slab.encoder.steps() {
            self.close_slab();
        } else {
            slab.step = self.steps.empty(slab.encoder.step_bytes());
        }
    }

    fn close_slab(&mut self) {
        let State::Slab(slab) = std::mem::replace(&mut self.state, State::Between) else { return };
        let (store, keep) = (self.store.clone(), self.keep);
        self.slabs.push(Slab::Running(Task(self.runtime.spawn(async move {
            for job in slab.jobs {
                job.await.expect("encoding does not panic");
            }
            let encoder = Arc::into_inner(slab.encoder).expect("all jobs have ended");
            let encoded = encoder.finish(slab.content_len);
            let roots = encoded.roots();
            let written = match keep {
                Keep::All => Some(store.write_slab(encoded).await?),
                Keep::Nothing => None,
            };
            Ok(TakenSlab { roots, written })
        }))));
    }

    /// Waits until everything is acknowledged.
    pub fn finish(mut self) -> Result<Taken, IngestError> {
        if let State::Small(small) = self.state {
            return Ok(Taken::Small(small));
        }
        if let State::Slab(slab) = &self.state {
            if !slab.step.is_empty() {
                self.close_step();
            }
            self.close_slab();
        }
        let mut slabs = Vec::with_capacity(self.slabs.len());
        for slab in std::mem::take(&mut self.slabs) {
            slabs.push(match slab {
                Slab::Running(mut task) => self.runtime.block_on(&mut task.0).expect("writing a slab does not panic")?,
                Slab::Taken(slab) => slab,
            });
        }
        Ok(Taken::Slabs { size: self.size, slabs })
    }
}
