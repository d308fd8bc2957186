//! Opaque sectors and objects on hosts.

#[cfg(test)]
mod contract;
pub mod faulty;
pub mod folder;
pub mod host;
pub mod marker;
