//! `skygate check`: what a configuration means, in words, before it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{bytes, counted, line};
use super::serve::ListenArgs;
use super::{CliError, Global};
use crate::config::{
    Audit, Checked, EMBEDDED_HOSTS, HostPlace, HostStore, Hosts, NameResolver, Redundancy, SharedHosts, TrustedProxies,
};
use crate::node::ListRead;

/// Bad lines of one deny list that are told one by one: a screen has room for the rest.
const FAULTS_SHOWN_MAX: usize = 10;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "SKYGATE_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    listen: ListenArgs,
}

pub fn run(global: &Global, args: &CheckArgs) -> Result<(), CliError> {
    let checked = global.configuration(args.config.as_deref(), &args.listen)?;
    crate::node::check_names(&checked).map_err(|error| CliError::failed(error.to_string()))?;
    // A start refuses what cannot be read.
    let lists = crate::node::check_lists(&checked).map_err(|error| CliError::failed(error.to_string()))?;
    let explained = Explained {
        stores: stores(&checked),
        survives: survives(&checked).into_iter().chain([audits(&checked)]).collect(),
        listens: listens(&checked),
        names: names(&checked, &lists),
        risks: risks(&checked, &devices(&checked)).into_iter().chain(list_risks(&lists)).collect(),
    };
    if global.json {
        let Explained { stores, survives, listens, names, risks } = explained;
        let said = serde_json::json!({
            "stores": stores, "survives": survives, "listens": listens, "names": names, "risks": risks
        });
        return line(&said.to_string());
    }
    for (title, sentences) in [
        ("What is stored where", &explained.stores),
        ("What it survives", &explained.survives),
        ("Who can reach it", &explained.listens),
        ("Which names it serves and follows", &explained.names),
        ("What is risky", &explained.risks),
    ] {
        line(title)?;
        match sentences.as_slice() {
            [] => line("  nothing that can be seen from here")?,
            sentences => sentences.iter().try_for_each(|sentence| line(&format!("  - {sentence}")))?,
        }
    }
    Ok(())
}

struct Explained {
    stores: Vec<String>,
    survives: Vec<String>,
    listens: Vec<String>,
    names: Vec<String>,
    risks: Vec<String>,
}

fn stores(checked: &Checked) -> Vec<String> {
    let Redundancy { base_copies, data_pieces, parity_pieces, .. } = checked.redundancy;
    let factor = f64::from(checked.redundancy.pieces()) / f64::from(data_pieces);
    let mut said = vec![
        format!(
            "data directory {}: portal key, API key, catalog (a cache, it can be rebuilt from the hosts)",
            checked.data.display()
        ),
        match &checked.hosts {
            Hosts::Embedded => format!("content: {EMBEDDED_HOSTS} host folders in {}", checked.data.join("hosts").display()),
            Hosts::Configured(places) => format!("content: {} named in the configuration", counted(places.len() as u64, "host")),
        },
    ];
    if let Hosts::Configured(places) = &checked.hosts {
        said.extend(places.iter().map(describe_host));
    }
    said.push(format!(
        "large files: {data_pieces} data and {parity_pieces} parity pieces on hosts of their own, {factor:.2} times their size"
    ));
    said.push(format!("small files and the heads of large ones: {base_copies} whole copies, without the zeros at their end"));
    said.push("pieces are plain bytes: what is stored is public to its hosts".to_owned());
    let memory = match checked.store.memory_bytes {
        0 => "no content is kept in memory (memory_bytes = 0): every read goes to the hosts".to_owned(),
        memory_bytes => format!("in memory: up to {} of content", bytes(memory_bytes)),
    };
    said.push(format!(
        "{memory}; up to {} of index, up to {} of slabs being written",
        bytes(checked.store.metadata_bytes),
        bytes(checked.limits.slab_memory_bytes)
    ));
    said.extend(
        checked
            .limits
            .free_space_floor_bytes
            .map(|floor| format!("a host with less than {} of free space takes nothing more", bytes(floor))),
    );
    said
}

fn describe_host(place: &HostPlace) -> String {
    let zone = place.zone.as_ref().map(|zone| format!(", zone {zone}")).unwrap_or_default();
    let there = match &place.store {
        HostStore::Folder(folder) if folder.is_dir() => folder.display().to_string(),
        HostStore::Folder(folder) => format!("{} (not there yet)", folder.display()),
        HostStore::Bucket(bucket) => {
            let at = bucket.endpoint.as_deref().unwrap_or("Amazon S3");
            let key = bucket.key.as_ref().map_or("without a key".to_owned(), |key| format!("key {}", key.id));
            format!("bucket {} at {at}, region {}, {key}", bucket.bucket, bucket.region)
        }
    };
    format!("host {}: {there}{zone}, weight {}", place.url, place.weight)
}

fn survives(checked: &Checked) -> Vec<String> {
    let redundancy = &checked.redundancy;
    let records = redundancy.parity_pieces.min(3);
    vec![
        format!("when an upload is acknowledged: a crash of the gateway, and the loss of any {}", hosts(redundancy.ack_losses())),
        format!("when it is complete: the loss of any {}", hosts(complete_losses(redundancy))),
        format!("pins and names stay readable and writable while at most {} of those that hold them are away", hosts(records)),
        "a lost data directory: with the host list and the recovery phrase of the portal key nothing is lost".to_owned(),
    ]
}

/// What is known of pieces that nobody reads.
fn audits(checked: &Checked) -> String {
    let Audit { period, bytes_per_second, new_after } = checked.audit;
    if period.is_zero() {
        return "pieces that nobody reads are not looked at ([audit] period_hours = 0)".to_owned();
    }
    let reach = bytes_per_second.saturating_mul(period.as_secs());
    format!(
        "audits look at each new upload {} s after it was made, and at everything once in {} hours, at up to {} a second; of more than \
         {} on the hosts, each piece is sampled",
        new_after.as_secs(),
        period.as_secs() / 3600,
        bytes(bytes_per_second),
        bytes(reach)
    )
}

/// Small files live as copies, large ones as pieces: the weaker of the two counts.
fn complete_losses(redundancy: &Redundancy) -> u8 {
    redundancy.parity_pieces.min(redundancy.base_copies - 1)
}

fn hosts(count: u8) -> String {
    counted(count.into(), "host")
}

fn listens(checked: &Checked) -> Vec<String> {
    let proxies = match &checked.listen.trusted_proxies {
        TrustedProxies::Loopback => "peers on this machine".to_owned(),
        TrustedProxies::These(peers) if peers.is_empty() => "nobody".to_owned(),
        TrustedProxies::These(peers) => peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    vec![
        format!(
            "public listener http://{}: reading, no key needed; at most {}",
            checked.listen.public,
            counted(checked.limits.connections as u64, "connection")
        ),
        format!("admin listener http://{}: always with the API key", checked.listen.admin),
        format!("X-Forwarded headers are believed from {proxies}"),
        format!("at a stop, requests under way have {} s to end", checked.limits.grace.as_secs()),
    ]
}

fn names(checked: &Checked, lists: &[ListRead]) -> Vec<String> {
    let resolver = match checked.names.resolver {
        NameResolver::System => "DNSLink records are looked up at the system's resolvers (/etc/resolv.conf)".to_owned(),
        NameResolver::At(address) => format!("DNSLink records are looked up at {address}"),
        NameResolver::Nobody => "DNS is not asked (resolver = \"none\"): only names written here, and IPNS keys".to_owned(),
    };
    let fixed = checked.names.fixed.iter();
    let domains = checked.gateway.domains.iter().map(|domain| match domain.subdomains {
        true => format!("{0} serves each root at an origin of its own, below *.ipfs.{0} and *.ipns.{0}", domain.name),
        false => format!("{} serves all roots by path, on one origin", domain.name),
    });
    let others = match checked.gateway.dnslink {
        true => "any other host is answered by its DNSLink, if it has one".to_owned(),
        false => "other hosts are path gateways, whatever their DNSLink says ([gateway] dnslink = false)".to_owned(),
    };
    let denied = lists.iter().map(|list| {
        format!(
            "what {} denies ({}) is not served in any format; the file is read again when it changes",
            list.path.display(),
            counted(list.rule_count as u64, "rule")
        )
    });
    domains
        .chain([others, resolver])
        .chain(denied)
        .chain(fixed.map(|(name, target)| format!("{name} is {target}, whatever DNS says")))
        .collect()
}

/// Lines of deny lists that do not do what whoever wrote them wanted.
fn list_risks(lists: &[ListRead]) -> Vec<String> {
    let mut risks = Vec::new();
    for list in lists {
        risks.extend(
            list.faults.iter().take(FAULTS_SHOWN_MAX).map(|fault| format!("{}, {fault}: it denies nothing", list.path.display())),
        );
        if list.fault_count > FAULTS_SHOWN_MAX {
            let more = counted((list.fault_count - FAULTS_SHOWN_MAX) as u64, "line");
            risks.push(format!("{}: {more} more that are no rules", list.path.display()));
        }
        if list.rule_count == 0 {
            risks.push(format!("{} has no rules: it denies nothing", list.path.display()));
        }
    }
    risks
}

/// Hosts by the file system that their folders lie on, for those that exist.
fn devices(checked: &Checked) -> BTreeMap<u64, usize> {
    let device = |folder: &Path| std::fs::metadata(folder).ok().map(|meta| meta.dev());
    let mut devices = BTreeMap::new();
    if let Hosts::Configured(places) = &checked.hosts {
        for device in places.iter().filter_map(HostPlace::folder).filter_map(device) {
            *devices.entry(device).or_default() += 1;
        }
    }
    devices
}

fn risks(checked: &Checked, devices: &BTreeMap<u64, usize>) -> Vec<String> {
    let redundancy = &checked.redundancy;
    let mut risks = Vec::new();
    match &checked.hosts {
        Hosts::Embedded => {
            risks.push("nine folders on one disk protect against nothing but bugs: name real hosts with [[hosts]]".to_owned())
        }
        Hosts::Configured(places) => host_risks(places, redundancy, devices, &mut risks),
    }
    if complete_losses(redundancy) == 0 {
        risks.push("one lost host loses content: raise [redundancy] parity_pieces and base_copies".to_owned());
    }
    if redundancy.base_copies <= redundancy.ack_losses() {
        risks.push(format!(
            "{} for small files are fewer than an acknowledgement wants ({}): raise [redundancy] base_copies",
            redundancy.base_copies,
            redundancy.ack_losses() + 1
        ));
    }
    if !checked.listen.public.ip().is_loopback() {
        risks.push("the public listener is open to the network without TLS: put a proxy with TLS before it".to_owned());
    }
    if !checked.listen.admin.ip().is_loopback() {
        risks.push("the admin listener is open to the network, and its key travels unencrypted: keep it on 127.0.0.1".to_owned());
    }
    if checked.audit.period.is_zero() {
        risks.push(
            "audits are off: what rots on a host is only known when somebody reads it, which may be after too many pieces have"
                .to_owned(),
        );
    }
    if checked.public_writes {
        risks.push(
            "[portal] public_writes takes content from everybody: you serve what strangers upload, see [limits] and `skygate block`"
                .to_owned(),
        );
    }
    if checked.store.memory_bytes == 0 {
        risks.push("memory_bytes = 0 makes every read go to the hosts: meant for measuring, slow for visitors".to_owned());
    }
    risks
}

fn host_risks(places: &[HostPlace], redundancy: &Redundancy, devices: &BTreeMap<u64, usize>, risks: &mut Vec<String>) {
    let pieces = usize::from(redundancy.pieces());
    if redundancy.shared_hosts == SharedHosts::Allowed && places.len() < pieces {
        let each = pieces.div_ceil(places.len());
        risks.push(format!(
            "{pieces} pieces on {}: one lost host takes up to {each} pieces of a slab with it",
            counted(places.len() as u64, "host")
        ));
    }
    let together = devices.values().copied().max().unwrap_or(0);
    if together > usize::from(redundancy.parity_pieces).max(1) {
        risks.push(format!("{together} hosts are folders on one file system: if that disk is lost, so is content"));
    }
    let plain = places.iter().filter(|place| match &place.store {
        HostStore::Folder(_) => false,
        HostStore::Bucket(bucket) => bucket.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")),
    });
    let plain = plain.count();
    if plain > 0 {
        risks.push(format!(
            "{} reached without TLS: whoever sits between can read what is stored, and delay or drop it",
            counted(plain as u64, "bucket")
        ));
    }
    let zones: BTreeSet<&str> = places.iter().filter_map(|place| place.zone.as_deref()).collect();
    let in_zone = pieces.div_ceil(zones.len().max(1));
    if zones.len() > 1 && in_zone > usize::from(redundancy.parity_pieces) {
        risks.push(format!(
            "a zone may hold {in_zone} of {pieces} pieces: with {} zones, losing one can make content unreadable",
            zones.len()
        ));
    }
    if zones.len() > 1 && places.iter().any(|place| place.zone.is_none()) {
        risks.push("some hosts name no zone: those count as one zone together".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Typed};

    fn checked(text: &str) -> Checked {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("c.toml");
        std::fs::write(&file, text).expect("written");
        let flags = Flags { data: Some("data".into()), ..Flags::default() };
        Typed::read(&file).expect("parses").check(flags, Path::new("/srv")).expect("can run")
    }

    fn hosts(count: usize, more: &str) -> String {
        (0..count).map(|i| format!("[[hosts]]\nurl = \"file:h{i}\"\n{}\n", more.replace('#', &(i % 2).to_string()))).collect()
    }

    #[test]
    fn what_is_risky_is_said_and_what_is_not_is_not() {
        let rows = [
            (String::new(), vec!["nothing but bugs"]),
            (hosts(9, ""), vec![]),
            (hosts(9, "zone = \"z#\""), vec!["a zone may hold 5 of 9"]),
            ("[redundancy]\nallow_shared_hosts = true\n".to_owned() + &hosts(3, ""), vec!["up to 3 pieces"]),
            (
                "[redundancy]\nparity_pieces = 0\ndata_pieces = 1\nbase_copies = 1\n".to_owned() + &hosts(1, ""),
                vec!["one lost host loses"],
            ),
            (
                "[redundancy]\nbase_copies = 1\n".to_owned() + &hosts(9, ""),
                vec!["one lost host loses", "raise [redundancy] base_copies"],
            ),
            (
                "[listen]\npublic = \"0.0.0.0:80\"\nadmin = \"[::]:81\"\n".to_owned() + &hosts(9, ""),
                vec!["without TLS", "unencrypted"],
            ),
            ("[store]\nmemory_bytes = 0\n".to_owned() + &hosts(9, ""), vec!["meant for measuring"]),
            ("[portal]\npublic_writes = true\n".to_owned() + &hosts(9, ""), vec!["what strangers upload"]),
            ("[audit]\nperiod_hours = 0\n".to_owned() + &hosts(9, ""), vec!["audits are off"]),
        ];
        for (text, expect) in rows {
            let risks = risks(&checked(&text), &BTreeMap::new());
            assert_eq!(risks.len(), expect.len(), "{text}: {risks:?}");
            for (risk, expect) in risks.iter().zip(expect) {
                assert!(risk.contains(expect), "{text}: {risk:?} should say {expect:?}");
            }
        }
    }

    #[test]
    fn lines_that_deny_nothing_are_told() {
        let list = |rule_count: usize, fault_count: usize| ListRead {
            path: "a.deny".into(),
            rule_count,
            fault_count,
            faults: (0..fault_count).map(|line| format!("line {line}: no rule")).collect(),
        };
        for (list, count, last) in [
            (list(1, 0), 0, ""),
            (list(1, 2), 2, "a.deny, line 1: no rule: it denies nothing"),
            (list(1, 12), 11, "a.deny: 2 lines more"),
            (list(0, 0), 1, "a.deny has no rules"),
        ] {
            let risks = list_risks(std::slice::from_ref(&list));
            assert_eq!(risks.len(), count, "{risks:?}");
            assert!(risks.last().map_or("", String::as_str).starts_with(last), "{risks:?}");
        }
    }

    #[test]
    fn hosts_on_one_disk_are_noticed() {
        let checked = checked(&hosts(9, ""));
        assert!(risks(&checked, &BTreeMap::from([(1, 5), (2, 4)]))[0].contains("5 hosts are folders on one file system"));
        assert!(risks(&checked, &BTreeMap::from([(1, 3), (2, 3), (3, 3)])).is_empty());
    }

    #[test]
    fn audits_are_explained() {
        for (text, expect) in [
            ("", "120 s after it was made, and at everything once in 720 hours, at up to 4.0 MiB a second; of more than 9.9 TiB"),
            ("[audit]\nbytes_per_second = \"1 MiB\"\nperiod_hours = 24\nnew_after_seconds = 5", "5 s after it was made"),
            ("[audit]\nperiod_hours = 0", "not looked at"),
        ] {
            let said = audits(&checked(text));
            assert!(said.contains(expect), "{text:?}: {said}");
        }
    }

    #[test]
    fn losses_are_counted_by_the_weaker_part() {
        let said = survives(&checked("")).join("\n");
        assert!(said.contains("acknowledged: a crash of the gateway, and the loss of any 2 hosts"), "{said}");
        assert!(said.contains("complete: the loss of any 3 hosts"), "{said}");
    }
}
