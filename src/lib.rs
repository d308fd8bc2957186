//! skygate: a content-addressed gateway over storage hosts nobody has to trust.
//!
//! One binary. Bytes come in as an upload, become a tree with a CID and a skyfile with a skylink over the same content,
//! are cut into slabs, erasure-coded into pieces, and put on hosts. They go out again from any k of n pieces, each byte
//! checked by a chain of hashes that begins at the address that was asked for.
//!
//! # The rooms
//!
//! | room | does | must never know |
//! |---|---|---|
//! | [`address`] | CIDs, skylinks, paths: parse, print, check bytes | anything else |
//! | [`sector`] | roots, hash trees, Reed-Solomon, sector objects; pure | any other room |
//! | [`tree`] | UnixFS, dag-pb, HAMT, CAR, packs, skyfiles: bytes to files and back; pure | where bytes come from |
//! | [`site`] | a path inside a tree to its answer; pure | HTTP |
//! | [`deny`] | does a rule hit this address? pure | who asks |
//! | [`renter`] | hosts, markers, placement, writing and reading pieces | what the bytes mean |
//! | [`records`] | what moves: versions, signatures, quorum | what a record says |
//! | [`names`] | names that change to fixed roots with a lifetime: DNSLink, IPNS | HTTP, content |
//! | [`store`] | addresses to verified bytes; catalog, pins, caches; stamps the class | HTTP, which host is which |
//! | [`ingest`] | uploads to slabs, packs, pins | HTTP, hosts |
//! | [`access`] | who may do what | what they do |
//! | [`http`] | the only room that serves HTTP | hosts, pieces, records |
//! | [`measure`] | traces of requests, histograms by class | addresses, host names |
//! | [`config`] | what was written, then what can run | the rooms it configures |
//! | [`node`] | the wiring: start and stop | content |
//! | [`cli`] | commands; talks to a running gateway over HTTP | the rooms behind it |
//!
//! Data goes one way through them; `tidy` holds the arrows and fails the build of a new one. The formats they write
//! are in `docs/formats.md`, byte by byte.
//!
//! # A read: `GET /ipfs/CID/docs/`
//!
//! `http::ask` (head to value) → `http::walk` with `site` and `tree` (needs and gives, the one loop that goes forth and
//! back) → `http::plan` (answer and conditions to a head; 304, 416 and HEAD end here) → `store` (which pin, which row,
//! memory or hosts) → `renter` (k pieces, spares, checks, decode) → `http::reply` (stream, class, histograms).
//!
//! # A write: `skygate add`
//!
//! `http::admin` → `ingest` (leaves hashed, slabs encoded while bytes arrive) → `store` → `renter` (k + f pieces durable)
//! → base sector, pack → `records` (the pin at its quorum: the commit point) → catalog. Before the pin nothing is
//! visible, after it everything is.
//!
//! # What always holds
//!
//! - A wrong byte is never served: every byte is checked on its way in, by a chain that starts at its address.
//! - Corrupt is not missing, and lost is not absent: an absence is only told when it is known.
//! - What was acknowledged survives a crash of this process and any f hosts; what is complete, any m hosts.
//! - A node's disk holds caches and keys; with the portal key and the host list a new one serves everything.
//! - Every queue, cache and loop has a named limit.

pub mod access;
pub mod address;
pub mod cli;
pub mod config;
#[cfg(test)]
mod counting;
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
#[cfg(test)]
mod tidy;
pub mod tree;
