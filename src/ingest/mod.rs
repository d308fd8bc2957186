//! ingest (placeholder of the http branch, dropped at the merge)

use crate::address::{Cid, Skylink};
use crate::store::{Durability, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error("{0}")]
    Bad(String),
    #[error("the upload ended before its last frame")]
    Cut,
    #[error("the upload could not be received: {0}")]
    Body(String),
    #[error("nothing came")]
    Stalled,
    #[error("busy")]
    Busy,
    #[error("an upload with this idempotency key is under way")]
    SameKeyUnderWay,
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Clone, Debug)]
pub struct AddReport {
    pub cid: Cid,
    pub skylink: Option<Skylink>,
    pub size_bytes: u64,
    pub files: u64,
    pub durability: Durability,
}
