//! site (placeholder of this branch, dropped at the merge)

pub mod content_type;
pub mod skynet;
