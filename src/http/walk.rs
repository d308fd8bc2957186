//! The one loop that goes forth and back between a pure walk and the store.

use std::sync::Arc;

use crate::address::{Cid, SitePath};
use crate::measure::Trace;
use crate::site::unixfs::{Answer, Step, Walk};

use super::refusal::Refusal;
use super::services::Content;

/// Follows `path` from `root` to its answer, fetching each node on the way.
pub async fn walk(content: &dyn Content, root: Cid, path: SitePath, trace: &Arc<Trace>) -> Result<Answer, Refusal> {
    let mut walk = Walk::new(root, path);
    loop {
        match walk.step() {
            Step::Done(answer) => return Ok(answer),
            Step::Need(cid) => walk.give(content.index_block(&cid, trace).await?)?,
        }
    }
}
