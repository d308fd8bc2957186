//! tree (placeholder of this branch, dropped at the merge)

pub mod skyfile;
