//! Names of records: kind, key, order, group, and the path of a version on a host (`docs/formats.md` 5).

use std::fmt;

/// Longest order bytes of any kind: a registry entry's.
const ORDER_BYTES_MAX: usize = 40;
/// Longest IPNS name in base36: a key of 128 bytes inlined in a CIDv1 takes 208 digits.
const IPNS_TEXT_MAX: usize = 220;
/// Longest multihash in hex: varints of 10 and 2 bytes, a digest of 128.
const MULTIHASH_HEX_MAX: usize = 280;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Skynet registry entry; signed by its owner.
    Entry,
    /// IPNS record; signed by its owner.
    Ipns,
    /// What keeps an upload alive.
    Pin,
    /// A domain's site.
    Site,
    /// The host table; its version is the epoch.
    Hosts,
    /// API key, hashed.
    Key,
    /// Certificate or IPNS key, encrypted.
    Secret,
    /// What the portal does not serve, by the hash of a sector root.
    Block,
    /// A piece that is wrong or gone: what the repair reads.
    Damage,
}

/// Who signs the records of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    Portal,
    /// The signature is inside the body; the caller of this room brings the check.
    Owner,
}

impl Kind {
    pub const ALL: [Kind; 9] =
        [Kind::Entry, Kind::Ipns, Kind::Pin, Kind::Site, Kind::Hosts, Kind::Key, Kind::Secret, Kind::Block, Kind::Damage];

    /// The word in paths.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Entry => "entry",
            Kind::Ipns => "ipns",
            Kind::Pin => "pin",
            Kind::Site => "site",
            Kind::Hosts => "hosts",
            Kind::Key => "key",
            Kind::Secret => "secret",
            Kind::Block => "block",
            Kind::Damage => "damage",
        }
    }

    /// The code in objects.
    pub fn code(self) -> u8 {
        match self {
            Kind::Entry => 1,
            Kind::Ipns => 2,
            Kind::Pin => 3,
            Kind::Site => 4,
            Kind::Hosts => 5,
            Kind::Key => 6,
            Kind::Secret => 7,
            // 8 and 9 are kept for leases and logs.
            Kind::Block => 10,
            Kind::Damage => 11,
        }
    }

    pub fn from_word(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.word() == word)
    }

    pub fn from_code(code: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.code() == code)
    }

    pub fn signer(self) -> Signer {
        match self {
            Kind::Entry | Kind::Ipns => Signer::Owner,
            Kind::Pin | Kind::Site | Kind::Hosts | Kind::Key | Kind::Secret | Kind::Block | Kind::Damage => Signer::Portal,
        }
    }

    /// Length of the order, the same for all records of a kind.
    pub fn order_bytes(self) -> usize {
        match self {
            Kind::Entry => 40,
            Kind::Ipns => 20,
            Kind::Pin | Kind::Site | Kind::Hosts | Kind::Key | Kind::Secret | Kind::Block | Kind::Damage => 8,
        }
    }

    /// Index in [`Kind::ALL`], for tables by kind.
    pub(super) fn index(self) -> usize {
        match self {
            Kind::Block => 7,
            Kind::Damage => 8,
            _ => usize::from(self.code()) - 1,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

/// Place of a version among the versions of its record: the greatest wins. Compared as bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Order {
    // The bytes behind the length are zero; orders that are compared have the same kind, so the same length.
    bytes: [u8; ORDER_BYTES_MAX],
    length: u8,
}

impl Order {
    /// For the kinds signed by the portal.
    pub fn version(version: u64) -> Order {
        Order::from_parts(&[&version.to_be_bytes()])
    }

    /// For [`Kind::Entry`]. Greater wins here, while in Skynet the smaller hash has more work: pass the hash with every
    /// bit inverted.
    pub fn entry(revision: u64, work: &[u8; 32]) -> Order {
        Order::from_parts(&[&revision.to_be_bytes(), work])
    }

    /// For [`Kind::Ipns`]. `validity` is the end of validity in a form that sorts by time.
    pub fn ipns(sequence: u64, validity: &[u8; 12]) -> Order {
        Order::from_parts(&[&sequence.to_be_bytes(), validity])
    }

    fn from_parts(parts: &[&[u8]]) -> Order {
        let mut order = Order { bytes: [0; ORDER_BYTES_MAX], length: 0 };
        for part in parts {
            let at = usize::from(order.length);
            order.bytes[at..at + part.len()].copy_from_slice(part);
            order.length += part.len() as u8;
        }
        order
    }

    /// None if the length is not the kind's.
    pub fn from_bytes(kind: Kind, bytes: &[u8]) -> Option<Order> {
        (bytes.len() == kind.order_bytes()).then(|| Order::from_parts(&[bytes]))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The first 8 bytes as a number: the version, revision or sequence.
    pub fn number(&self) -> u64 {
        u64::from_be_bytes(self.bytes[..8].try_into().expect("the array has 40 bytes"))
    }

    /// The last part of a path: hex of the inverted bytes, so that the newest lists first.
    pub fn path_text(&self) -> String {
        hex::encode(self.as_bytes().iter().map(|byte| !byte).collect::<Vec<u8>>())
    }

    fn from_path_text(kind: Kind, text: &str) -> Option<Order> {
        if !is_hex(text, 2 * kind.order_bytes()..=2 * kind.order_bytes()) {
            return None;
        }
        let mut bytes = hex::decode(text).ok()?;
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        Order::from_bytes(kind, &bytes)
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Order({})", hex::encode(self.as_bytes()))
    }
}

/// Why a text is no key of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a key of a record of kind {kind}")]
pub struct BadKey {
    pub kind: Kind,
    pub text: String,
}

/// Kind and key text of a record, checked against the kind's grammar.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    kind: Kind,
    text: String,
}

impl RecordKey {
    pub fn new(kind: Kind, text: &str) -> Result<RecordKey, BadKey> {
        let fits = match (kind, text.split_once('/')) {
            (Kind::Pin | Kind::Damage, Some((group, id))) => is_group(kind, group) && is_hex(id, 32..=32),
            (Kind::Pin | Kind::Damage, None) | (_, Some(_)) => false,
            (_, None) => is_group(kind, text),
        };
        match fits {
            true => Ok(RecordKey { kind, text: text.to_owned() }),
            false => Err(BadKey { kind, text: text.to_owned() }),
        }
    }

    /// The key of a registry entry by its entry id.
    pub fn entry(entry_id: &[u8; 32]) -> RecordKey {
        RecordKey { kind: Kind::Entry, text: hex::encode(entry_id) }
    }

    /// The key of a pin. `target` is a multihash or a sector root.
    pub fn pin(target: &[u8], pin_id: &[u8; 16]) -> Result<RecordKey, BadKey> {
        RecordKey::new(Kind::Pin, &format!("{}/{}", hex::encode(target), hex::encode(pin_id)))
    }

    /// The key of a line of the blocklist: BLAKE2b-256 of a sector root.
    pub fn block(hash: &[u8; 32]) -> RecordKey {
        RecordKey { kind: Kind::Block, text: hex::encode(hash) }
    }

    /// The key of a note about a piece on a host, by the piece's sector root.
    pub fn damage(root: &[u8; 32], host_id: &[u8; 16]) -> RecordKey {
        RecordKey { kind: Kind::Damage, text: format!("{}/{}", hex::encode(root), hex::encode(host_id)) }
    }

    /// The one key of kind `hosts`.
    pub fn host_table() -> RecordKey {
        RecordKey { kind: Kind::Hosts, text: "table".to_owned() }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the record is placed by, and found by together with others: the key up to the first slash.
    pub fn group(&self) -> Group {
        let text = self.text.split_once('/').map_or(self.text.as_str(), |(group, _)| group);
        Group { kind: self.kind, text: text.to_owned() }
    }

    /// Where the versions lie: `records/<kind>/<2 hex>/<key>/`.
    pub fn folder(&self) -> String {
        let shard = self.group().id()[0];
        format!("records/{}/{shard:02x}/{}/", self.kind, self.text)
    }

    /// Where one version lies.
    pub fn path(&self, order: &Order) -> String {
        self.folder() + &order.path_text()
    }

    /// The key and order of a path; None unless the path is exactly what [`RecordKey::path`] gives.
    pub fn from_path(path: &str) -> Option<(RecordKey, Order)> {
        let (kind, rest) = path.strip_prefix("records/")?.split_once('/')?;
        let kind = Kind::from_word(kind)?;
        let (shard, rest) = rest.split_once('/')?;
        let (key, order) = rest.rsplit_once('/')?;
        let key = RecordKey::new(kind, key).ok()?;
        let order = Order::from_path_text(kind, order)?;
        (shard == format!("{:02x}", key.group().id()[0])).then_some((key, order))
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.kind, self.text)
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "RecordKey({self})")
    }
}

/// Records that are placed and found together: all pins of one content, all notes about one piece, or a single record of
/// another kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    kind: Kind,
    text: String,
}

impl Group {
    pub fn new(kind: Kind, text: &str) -> Result<Group, BadKey> {
        match is_group(kind, text) {
            true => Ok(Group { kind, text: text.to_owned() }),
            false => Err(BadKey { kind, text: text.to_owned() }),
        }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the group is placed by.
    pub fn id(&self) -> [u8; 32] {
        super::hash_of(&[b"skygate group v1", self.kind.word().as_bytes(), &[0], self.text.as_bytes()])
    }

    /// Where the records of the group lie.
    pub fn folder(&self) -> String {
        format!("records/{}/{:02x}/{}/", self.kind, self.id()[0], self.text)
    }
}

fn is_group(kind: Kind, text: &str) -> bool {
    match kind {
        Kind::Entry | Kind::Block | Kind::Damage => is_hex(text, 64..=64),
        Kind::Ipns => {
            let base36 = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
            (2..=IPNS_TEXT_MAX).contains(&text.len()) && text.starts_with('k') && text.bytes().all(base36)
        }
        // The shortest multihash is the empty identity hash: two varints of a byte.
        Kind::Pin => is_hex(text, 4..=MULTIHASH_HEX_MAX),
        Kind::Hosts => text == "table",
        Kind::Site | Kind::Key | Kind::Secret => is_hex(text, 32..=32),
    }
}

/// Whole bytes in lower-case hex, with a number of digits in `lengths`.
fn is_hex(text: &str, lengths: std::ops::RangeInclusive<usize>) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    lengths.contains(&text.len()) && text.len().is_multiple_of(2) && text.bytes().all(digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_round_trip() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(Kind::from_word(kind.word()), Some(kind));
            assert_eq!(Kind::from_code(kind.code()), Some(kind));
            assert_eq!(kind.index(), index);
        }
        for reserved in [0, 8, 9, 255] {
            assert_eq!(Kind::from_code(reserved), None);
        }
    }

    #[test]
    fn key_grammar() {
        let hex64 = "ab".repeat(32);
        let hex32 = "0f".repeat(16);
        let pin = format!("1220{hex64}/{hex32}");
        let ipns = "k51qzi5uqu5dgutdk6i1ynyzgkqngpha5xpgia3a5qqp4jsh0u4csozksxel2r";
        let long_pin = format!("{}/{hex32}", "00".repeat(140));
        let note = format!("{hex64}/{hex32}");
        let good = [
            (Kind::Entry, hex64.as_str()),
            (Kind::Ipns, ipns),
            (Kind::Pin, &pin),
            (Kind::Pin, &long_pin),
            (Kind::Site, &hex32),
            (Kind::Hosts, "table"),
            (Kind::Key, &hex32),
            (Kind::Secret, &hex32),
            (Kind::Block, &hex64),
            (Kind::Damage, &note),
        ];
        for (kind, text) in good {
            let key = RecordKey::new(kind, text).unwrap();
            let order = Order::from_bytes(kind, &vec![3; kind.order_bytes()]).unwrap();
            let path = key.path(&order);
            assert_eq!(RecordKey::from_path(&path), Some((key.clone(), order)), "{path}");
            assert!(path.starts_with(&key.group().folder()));
            assert!(path.len() < 400, "far below the 1,024 bytes of an S3 key");
        }
        let upper = hex64.to_uppercase();
        let too_long = format!("{}/{hex32}", "00".repeat(141));
        let odd = format!("122/{hex32}");
        let deep = format!("{pin}/{hex32}");
        let bad = [
            (Kind::Entry, ""),
            (Kind::Entry, &hex64[1..]),
            (Kind::Entry, &upper),
            (Kind::Entry, "../../../../../../../../../../../../../../../../../../../../etc/x"),
            (Kind::Ipns, "k"),
            (Kind::Ipns, "K51qzi"),
            (Kind::Ipns, "bafyrei"),
            (Kind::Ipns, "k51/qzi"),
            (Kind::Pin, &hex64),
            (Kind::Pin, &too_long),
            (Kind::Pin, &odd),
            (Kind::Pin, &deep),
            (Kind::Pin, "1220/"),
            (Kind::Hosts, "tables"),
            (Kind::Site, "0f0f"),
            (Kind::Damage, &hex64),
            (Kind::Damage, &pin),
        ];
        for (kind, text) in bad {
            assert!(RecordKey::new(kind, text).is_err(), "{kind} {text}");
        }
    }

    #[test]
    fn paths_and_groups() {
        // Group ids made with an independent program (Python's hashlib).
        let entry = RecordKey::entry(&[0xab; 32]);
        assert_eq!(hex::encode(entry.group().id()), "1ac9930d751007786f0e2556064702d11080b03ffd568d6962a0daad763e1f5d");
        let pin = RecordKey::pin(&[&[0x12, 0x20][..], &[0xcd; 32]].concat(), &[1; 16]).unwrap();
        assert_eq!(hex::encode(pin.group().id()), "f11d555fe4daee9145b6c7c06d2126e2d398a470440deb0ac670f6512c34e147");
        assert_eq!(pin.group(), Group::new(Kind::Pin, &format!("1220{}", "cd".repeat(32))).unwrap());
        assert_eq!(RecordKey::host_table().path(&Order::version(1)), "records/hosts/e0/table/fffffffffffffffe");
        let good = entry.path(&Order::entry(1, &[0; 32]));
        assert!(RecordKey::from_path(&good).is_some());
        let bad = [
            good.replace("/1a/", "/1b/"),
            good.replace("entry", "site"),
            good.replace("entry", "lease"),
            format!("{good}0"),
            format!("{good}/"),
            good.to_uppercase(),
            good[..good.len() - 2].to_owned(),
            format!("/{good}"),
            "records".to_owned(),
            String::new(),
        ];
        for path in bad {
            assert_eq!(RecordKey::from_path(&path), None, "{path}");
        }
    }

    #[test]
    fn newer_orders_list_first() {
        let orders = [
            Order::entry(0, &[0; 32]),
            Order::entry(0, &[1; 32]),
            Order::entry(1, &[0; 32]),
            Order::entry(256, &[0; 32]),
            Order::entry(u64::MAX, &[255; 32]),
        ];
        for pair in orders.windows(2) {
            assert!(pair[0] < pair[1]);
            assert!(pair[0].path_text() > pair[1].path_text());
        }
        assert_eq!(orders[3].number(), 256);
        assert_eq!(Order::ipns(7, &[9; 12]).as_bytes().len(), Kind::Ipns.order_bytes());
        assert_eq!(Order::from_bytes(Kind::Pin, &[0; 9]), None);
    }
}
