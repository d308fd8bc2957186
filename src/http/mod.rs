//! HTTP: the only room that speaks it.
//!
//! What it does: reads request heads ([`ask`]), walks trees and skyfiles to an answer ([`walk`]), decides the reply's head
//! ([`plan`]), streams bodies and stamps where they came from ([`reply`]), and turns every error into a status and a
//! sentence ([`refusal`]). A folder per surface: [`gateway`] (`/ipfs/`), [`skynet`] (`/{skylink}`), [`admin`] (the second
//! listener, which serves no content).
//!
//! What it hides: status codes, headers, hyper. What it must never know: hosts, pieces, records, how bytes are stored.
//!
//! Words: *ask* = a parsed request; *plan* = everything about a file's reply that does not depend on the request;
//! *refusal* = a reply that is not what was asked for; *surface* = what a Host serves; *reader* = who reads an error.
//!
//! Limits: `serve` (connections, grace), `connection` (head bytes, streams), `pace` (times of
//! heads, bodies and idle connections), [`plan::RANGES_MAX`], [`services::HttpOptions`] (answer
//! cache), `gateway::listing` (rows), `admin` (page sizes).

pub mod admin;
pub mod ask;
mod caller;
mod connection;
pub mod gateway;
pub mod hosts;
mod pace;
pub mod page;
pub mod plan;
pub mod refusal;
pub mod reply;
mod routing;
mod serve;
pub mod services;
pub mod skynet;
#[cfg(test)]
mod testing;
mod tunnel;
mod walk;

pub use reply::AnswerCache;
pub use serve::{Listeners, answer, run};
pub use services::{
    CheckedView, Content, HostView, HttpOptions, Naming, Operations, Overdrive, PinPage, PinView, PortalNumbers, PublicWrites,
    Readiness, Services, SkyParts, Skyfile, UploadStream, Uploads,
};
pub use skynet::Subscriptions;
