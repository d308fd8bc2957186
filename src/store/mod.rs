//! store (placeholder of the http branch, dropped at the merge)

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::address::{Cid, Skylink};
use crate::measure::Trace;
use crate::tree::skyfile::SkyfileHead;
use crate::tree::{FileNode, TreeError};

#[derive(Debug, thiserror::Error)]
#[error("catalog")]
pub struct CatalogError;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("nothing is stored under this address")]
    NotFound,
    #[error("the catalog is being rebuilt and does not know this address yet")]
    Rebuilding,
    #[error("only {have} of the {need} pieces that are needed can be read")]
    TooFewPieces { have: usize, need: usize },
    #[error("the hosts did not answer in time")]
    TimedOut,
    #[error("not enough hosts to store safely: {reason} (have {have}, need {need})")]
    NotEnoughHosts { have: usize, need: usize, reason: String },
    #[error("the stored block is malformed: {0}")]
    Tree(#[from] TreeError),
    #[error("the stored file is malformed: {0}")]
    BadFile(&'static str),
    #[error("the block is {length} bytes long")]
    BlockTooLarge { length: u64 },
    #[error("the pin that holds this content cannot be used: {0}")]
    BadPin(String),
    #[error("the bytes stored for {0} do not hash to it")]
    WrongBlock(Cid),
    #[error("{0}")]
    Unsupported(&'static str),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("records cannot be read or written: {0}")]
    Records(String),
    #[error("{0}")]
    Joined(Arc<StoreError>),
}

impl StoreError {
    pub fn cause(&self) -> &StoreError {
        match self {
            StoreError::Joined(error) => error.cause(),
            error => error,
        }
    }
}

pub type BodyStream = BoxStream<'static, Result<Bytes, StoreError>>;

#[derive(Clone, Debug)]
pub struct FileSource {
    pub cid: Cid,
    pub node: Arc<FileNode>,
}

#[derive(Debug)]
pub struct OpenSkyfile {
    pub head: SkyfileHead,
}

#[derive(Clone, Copy, Debug)]
pub enum Durability {
    Acknowledged,
    Complete,
}

impl Durability {
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::Acknowledged => "acknowledged",
            Durability::Complete => "complete",
        }
    }
}

#[derive(Clone)]
pub struct Store;

impl Store {
    pub async fn block(&self, _: &Cid, _: &Arc<Trace>) -> Result<Bytes, StoreError> {
        Err(StoreError::NotFound)
    }
    pub async fn index_block(&self, _: &Cid, _: &Arc<Trace>) -> Result<Bytes, StoreError> {
        Err(StoreError::NotFound)
    }
    pub async fn block_length(&self, _: &Cid, _: &Arc<Trace>) -> Result<u64, StoreError> {
        Err(StoreError::NotFound)
    }
    pub async fn skyfile(&self, _: &Skylink, _: &Arc<Trace>) -> Result<Arc<OpenSkyfile>, StoreError> {
        Err(StoreError::NotFound)
    }
    pub fn stream_file(&self, _: FileSource, _: Range<u64>, _: Arc<Trace>) -> BodyStream {
        Box::pin(futures::stream::empty())
    }
    pub fn stream_skyfile(&self, _: &Arc<OpenSkyfile>, _: Range<u64>, _: Range<u64>, _: Arc<Trace>) -> BodyStream {
        Box::pin(futures::stream::empty())
    }
}
