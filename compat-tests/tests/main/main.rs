//! Black-box tests of the real binary. One program with a module for each subject, since linking is slow.
//!
//! Each test has a gateway of its own in a folder of its own. Nothing waits by the clock alone: what takes time is asked
//! for until it is so, with a limit. What is random comes from a printed seed.

mod browser;
mod buckets;
mod catalog;
mod classes;
mod clients;
mod command_line;
mod crash;
mod denied;
mod dnslink;
mod expectations;
mod faults;
mod gateway;
mod http2;
mod imports;
mod ipfs;
mod losses;
mod portal_api;
mod portal_content;
mod portal_registry;
mod portal_sectors;
mod portal_tus;
mod portal_uploads;
mod security;
mod serve;
mod skylinks;
mod skynet_clients;
mod slash_routing;
mod uploads;
mod vectors;
