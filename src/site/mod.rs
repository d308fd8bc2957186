//! The site: a path inside a tree becomes an answer.
//!
//! *Does*: walks UnixFS directories ([`unixfs`]) and skyfile metadata ([`skynet`]): slash rule ([`slash`]), index.html,
//! listings, missing names; guesses content types ([`content_type`]).
//! *Hides*: plain and HAMT directories look alike from outside.
//! *Must never know*: where blocks come from, HTTP statuses and headers, clocks. It never awaits: it says which block it
//! needs, and is given it.
//! *Words*: a **walk** goes from a root along a [`SitePath`](crate::address::SitePath) to an **answer**; a **listing** is what a
//! directory without index.html answers with.
//! *Limits*: [`car_walk::CAR_BLOCKS_MAX`], [`car_walk::CAR_WAITING_MAX`], [`unixfs::WALK_BLOCKS_MAX`], [`unixfs::LISTING_SHARDS_MAX`], and those of the rooms below.

#[cfg(test)]
mod attacks;
pub mod car_walk;
pub mod content_type;
pub mod redirects;
pub mod skynet;
pub mod slash;
pub mod unixfs;

use crate::tree::TreeError;

/// Why there is no answer. What is merely absent is an answer, not an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// A block on the way is no good, and never will be.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The walk or listing would take more blocks than its limit.
    #[error("this takes more than {max} blocks")]
    TooManyBlocks {
        /// The limit.
        max: usize,
    },
}
