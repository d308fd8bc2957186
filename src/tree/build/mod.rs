//! Placeholder; written in another branch.
