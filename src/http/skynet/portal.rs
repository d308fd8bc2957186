//! What a portal says of itself: statistics, its domains, its blocklist, its health (`skynet.md` 6, 11). All of it is for
//! everybody to read; nothing is changed here. The meaning of each figure stands in `docs/portal.md`.

use std::time::{Instant, SystemTime};

use ::http::header::{self, HeaderValue};
use ::http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::http::ask::Ask;
use crate::http::refusal::Refusal;
use crate::http::reply::{Reply, made_here};
use crate::http::services::{Overdrive, PublicWrites, Readiness, Services};
use crate::measure::Tracked;

/// Lines of the blocklist on one page, and when the reader names no number.
const PAGE_MAX: usize = 1000;
const PAGE: usize = 100;

/// Is it one of these routes?
pub fn answers(path: &str) -> bool {
    route(path).is_some()
}

#[derive(Clone, Copy)]
enum Page {
    Stats,
    Portals,
    Blocklist,
    HashesInPages,
    Health(Health),
    ServerLoad,
    Accounts,
    Moved(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    All,
    Critical,
    Extended,
    Disabled,
}

fn route(path: &str) -> Option<Page> {
    Some(match path {
        "/skynet/stats" => Page::Stats,
        "/skynet/portals" => Page::Portals,
        "/skynet/blocklist" => Page::Blocklist,
        "/skynet/portal/blocklist" => Page::HashesInPages,
        "/health-check" => Page::Health(Health::All),
        "/health-check/critical" => Page::Health(Health::Critical),
        "/health-check/extended" => Page::Health(Health::Extended),
        "/health-check/disabled" => Page::Health(Health::Disabled),
        "/serverload" => Page::ServerLoad,
        "/__internal/do/not/use/accounts" => Page::Accounts,
        "/skynet/blacklist" => Page::Moved("/skynet/blocklist"),
        "/stats" => Page::Moved("/skynet/stats"),
        "/portals" => Page::Moved("/skynet/portals"),
        _ => return None,
    })
}

/// Answers one of these routes.
pub async fn answer(services: &Services, ask: &Ask) -> Result<Reply, Refusal> {
    let page = route(&ask.path).ok_or(Refusal::NoRoute)?;
    if !matches!(ask.method, Method::GET | Method::HEAD) {
        return Err(Refusal::Method);
    }
    let mut status = StatusCode::OK;
    let body = match page {
        Page::Stats => stats(services).await?,
        Page::Portals => portals(services),
        // The first field is what the list was called before; clients read either.
        Page::Blocklist => json!({ "blacklist": null, "blocklist": hashes(services) }),
        Page::HashesInPages => blocklist_page(services, ask)?,
        Page::Health(Health::Disabled) => json!({ "disabled": false }),
        Page::Health(which) => {
            let (up, body) = health(services, which);
            if !up {
                status = StatusCode::SERVICE_UNAVAILABLE;
            }
            body
        }
        Page::ServerLoad => {
            let (max, free) = (services.options.requests_max, services.requests.available_permits());
            json!({ "requests": max.saturating_sub(free), "requestsmax": max })
        }
        Page::Accounts => json!({
            "enabled": false,
            "auth_required": services.options.public_writes == PublicWrites::Refused,
            "subscription_required": false,
            "authenticated": false,
            "subscription": null,
        }),
        Page::Moved(to) => return Ok(moved(ask, to)),
    };
    let mut reply = made_here(status, "application/json; charset=utf-8", &ask.method, format!("{body}\n"));
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(reply)
}

fn moved(ask: &Ask, to: &'static str) -> Reply {
    let mut reply = made_here(StatusCode::MOVED_PERMANENTLY, "text/plain; charset=utf-8", &ask.method, format!("{to}\n"));
    reply.headers_mut().insert(header::LOCATION, HeaderValue::from_static(to));
    reply
}

async fn stats(services: &Services) -> Result<Value, Refusal> {
    let numbers = services.operations.portal_numbers().await?;
    let mut stats = Map::new();
    for tracked in Tracked::ALL {
        let quarter = services.measures.last_quarter(tracked);
        for (name, value) in [
            ("datapoints", quarter.datapoints),
            ("p99ms", quarter.p99_ms),
            ("p999ms", quarter.p999_ms),
            ("p9999ms", quarter.p9999_ms),
        ] {
            stats.insert(format!("{}15m{name}", tracked.field()), json!(value));
        }
    }
    for (name, overdrive) in [("basesector", numbers.base_overdrive), ("fanoutsector", numbers.slab_overdrive)] {
        let Overdrive { share, average } = overdrive;
        stats.insert(format!("{name}overdrivepct"), json!(share));
        stats.insert(format!("{name}overdriveavg"), json!(average));
    }
    let rest = json!({
        "contractstorage": numbers.host_bytes,
        "maxhealthpercentage": if numbers.damaged_pieces == 0 { 100 } else { 0 },
        "numcritalerts": numbers.hosts_down,
        "numfiles": numbers.pins,
        "storage": numbers.content_bytes,
        "stuckchunks": numbers.damaged_pieces,
        "uptime": services.measures.uptime().as_secs(),
        "versioninfo": { "version": env!("CARGO_PKG_VERSION"), "gitrevision": option_env!("SKYGATE_REVISION").unwrap_or("") },
        // What a portal on hosts of its own does not have: no contracts, no wallet, no scans that take hours.
        "allowancestatus": "none",
        "maxstorageprice": "0",
        "portalmode": true,
        "repair": 0,
        "systemhealthscandurationhours": 0,
        "walletstatus": "none",
    });
    if let Value::Object(rest) = rest {
        stats.extend(rest);
    }
    Ok(Value::Object(stats))
}

fn portals(services: &Services) -> Value {
    let public = services.options.public_writes == PublicWrites::Taken;
    let domains = services.options.hosts.portal_domains.iter();
    json!({ "portals": domains.map(|name| json!({ "address": format!("{name}:443"), "public": public })).collect::<Vec<_>>() })
}

fn hashes(services: &Services) -> Vec<String> {
    services.operations.blocklist().iter().map(|line| hex::encode(line.hash)).collect()
}

/// `?sort=asc|desc&offset=&limit=`, by the time at which lines were added; the newest first unless asked otherwise.
fn blocklist_page(services: &Services, ask: &Ask) -> Result<Value, Refusal> {
    let number = |name: &str, otherwise: usize| {
        let text = ask.parameter(name).filter(|text| !text.is_empty());
        text.map_or(Ok(otherwise), |text| text.parse().map_err(|_| Refusal::BadQuery("offset and limit are numbers")))
    };
    let (offset, limit) = (number("offset", 0)?, number("limit", PAGE)?.clamp(1, PAGE_MAX));
    let mut all = hashes(services);
    match ask.parameter("sort").as_deref() {
        None | Some("" | "desc") => all.reverse(),
        Some("asc") => {}
        Some(_) => return Err(Refusal::BadQuery("sort is asc or desc")),
    }
    let page: Vec<Value> = all.iter().skip(offset).take(limit).map(|hash| json!({ "hash": hash, "tags": [] })).collect();
    Ok(json!({ "entries": page, "hasmore": offset.saturating_add(page.len()) < all.len() }))
}

/// Looked at now, not some minutes ago.
fn health(services: &Services, which: Health) -> (bool, Value) {
    let check = |name: &str, critical: bool, look: &dyn Fn() -> bool| {
        let begun = Instant::now();
        let up = look();
        let ms = begun.elapsed().as_millis() as u64;
        (
            up,
            critical,
            json!({ "name": name, "up": up, "statusCode": if up { 200 } else { 503 }, "time": ms, "critical": critical }),
        )
    };
    let hosts = services.operations.hosts();
    let up = hosts.iter().filter(|host| host.state == "up").count();
    let mut checks = vec![
        check("catalog", true, &|| services.operations.readiness() == Readiness::Ok),
        check("uploads", true, &|| up >= services.operations.hosts_to_write()),
        check("hosts", false, &|| up == hosts.len()),
    ];
    checks.retain(|(_, critical, _)| match which {
        Health::All => true,
        Health::Critical => *critical,
        Health::Extended => !critical,
        Health::Disabled => false,
    });
    // A host may be down: that is what the others are for.
    let healthy = checks.iter().all(|(up, critical, _)| *up || !critical);
    let checks: Vec<Value> = checks.into_iter().map(|(.., check)| check).collect();
    let date = httpdate::fmt_http_date(SystemTime::now());
    (healthy, json!({ "disabled": false, "entry": { "date": date, "checks": checks } }))
}
