//! skygate: a content-addressed gateway over storage hosts nobody has to trust.

pub mod access;
pub mod address;
pub mod cli;
pub mod config;
pub mod deny;
pub mod http;
pub mod ingest;
pub mod measure;
pub mod names;
pub mod node;
pub mod records;
pub mod renter;
pub mod sector;
pub mod site;
pub mod store;
pub mod tree;
#[cfg(test)]
mod tidy;
