//! The operator's page: what is up, what is slow, what is stored. Rendered here, without scripts.

use std::sync::Arc;

use ::http::StatusCode;
use ::http::header;
use ::http::request::Parts;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};

use crate::access::SESSION_LIFETIME;
use crate::http::ask::{Reader, parameter};
use crate::http::page::{human_size, page as whole_page};
use crate::http::refusal::Refusal;
use crate::http::services::{HostView, Readiness, Services};

use super::{Denied, SESSION_COOKIE, administrator};

/// Pins shown on the page; the rest are a command away.
const PINS_SHOWN: usize = 20;

/// `/`: spends a login link, or shows the dashboard, or says how to log in.
pub async fn page(State(services): State<Arc<Services>>, parts: Parts) -> Result<Response, Denied> {
    if let Some(token) = parts.uri.query().and_then(|query| parameter(query, "login")) {
        let session = services.access.log_in(&token).ok_or(Denied(Refusal::LoginSpent, Reader::Html))?;
        let cookie =
            format!("{SESSION_COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={}", SESSION_LIFETIME.as_secs());
        return Ok((StatusCode::SEE_OTHER, [(header::LOCATION, "/".to_owned()), (header::SET_COOKIE, cookie)]).into_response());
    }
    if administrator(&services, &parts).is_none() {
        return Err(Denied(Refusal::NoKey, Reader::Html));
    }
    let pins = services.operations.pins(0, PINS_SHOWN).await.map_err(Refusal::from)?;
    let status = services.operations.status().map_err(Refusal::from)?;
    let hosts = services.operations.hosts();
    let down = hosts.iter().filter(|host| host.state != "up").count();
    let aside = hosts.iter().filter(|host| host.set_aside.is_some()).count();
    let damaged: u64 = hosts.iter().map(|host| host.damage_noted).sum();
    let body = html! {
        h1 { "skygate" }
        @match services.operations.readiness() {
            Readiness::Ok if down > 0 => p { strong { (down) " of " (hosts.len()) " hosts are not up." } " Content is still read from the others." },
            Readiness::Ok => p { "Ready." },
            Readiness::Starting => p { "Starting: the catalog is being read from the hosts." },
        }
        @if aside > 0 { p { strong { (aside) " of " (hosts.len()) " hosts are set aside" } " because they gave wrong pieces again and again." } }
        @if damaged > 0 { p { strong { (damaged) " pieces are noted as damaged." } " What is whole: " code { "skygate verify" } "." } }
        (hosts_table(&hosts))
        h1 { "Latency, milliseconds" }
        (latency_table(&services))
        h1 { "Pins" }
        @if pins.pins.is_empty() { p { "Nothing is pinned. Try " code { "skygate add PATH" } "." } }
        @else {
            table {
                @for pin in &pins.pins {
                    tr {
                        td { (pin.name) br; span class="ipfs-hash" { (pin.cid.as_deref().unwrap_or("")) " " (pin.skylink.as_deref().unwrap_or("")) } }
                        td { (human_size(pin.size_bytes)) br; span class="dim" { (pin.durability) } }
                    }
                }
            }
            @if pins.next.is_some() { p class="dim" { "More: " code { "skygate pin ls" } } }
        }
        h1 { "This node" }
        pre { (serde_json::to_string_pretty(&status).unwrap_or_default()) }
        p class="dim" { "Load the page anew for new figures. The same as JSON: /api/v1/status, /api/v1/latency, /api/v1/hosts; for Prometheus: /metrics." }
    };
    Ok(Html(whole_page("skygate: this gateway", &body)).into_response())
}

fn hosts_table(hosts: &[HostView]) -> Markup {
    html! {
        h1 { "Hosts" }
        table {
            @for host in hosts {
                tr {
                    td { (host.url) br; span class="dim" { (host.state) @if let Some(reason) = &host.reason { ": " (reason) } } @if let Some(why) = &host.set_aside { br; strong { "set aside: " } (why) } }
                    td {
                        @if let Some(used) = host.used_bytes { (human_size(used)) " used" }
                        @if let Some(free) = host.free_bytes { ", " (human_size(free)) " free" }
                        br;
                        span class="dim" { (host.failures) " failures, " (host.wrong_pieces) " wrong pieces" }
                        br;
                        span class="dim" {
                            (host.checked.right) " pieces looked at and right, " (host.checked.wrong) " wrong, " (host.checked.missing) " missing; "
                            (host.damage_noted) " noted for repair"
                        }
                    }
                }
            }
        }
    }
}

fn latency_table(services: &Services) -> Markup {
    html! {
        table {
            tr { th { "what" } th { "class" } th { "count" } th { "p50" } th { "p99" } th { "p999" } }
            @for row in services.measures.summaries() {
                tr {
                    td { (endpoint_words(&row)) } td { (row.class) } td { (row.count) }
                    td { (format!("{:.2}", row.p50_ms)) } td { (format!("{:.2}", row.p99_ms)) } td { (format!("{:.2}", row.p999_ms)) }
                }
            }
        }
    }
}

fn endpoint_words(row: &crate::measure::Summary) -> String {
    serde_json::to_value(row.endpoint).ok().and_then(|word| word.as_str().map(|word| word.replace('_', " "))).unwrap_or_default()
}
