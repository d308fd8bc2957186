use super::super::testing::{Draft, key, keys, mutations, name_of, put_bytes};
use super::*;
use crate::address::test_shared::shared_file;

const ED: &str = "12D3KooWLQzUv2FHWGVPXTXSZpdHs7oHbXub2G5WC8Tx4NQhyd2d";
const RSA: &str = "QmVujd5Vb7moysJj8itnGufN7MEtPRCNHkKpNuA4onsRa3";

#[test]
fn names_in_all_their_forms() {
    for text in [ED, RSA] {
        let name = IpnsName::parse(text).expect(text);
        let cid = name.cid();
        let as_dag_pb = Cid::new_v1(codec::DAG_PB, *cid.hash());
        for form in [
            name.to_string(),
            name.to_string().to_uppercase(),
            cid.to_string(),
            cid.to_string_of_base(Base::Base16Lower).unwrap(),
            as_dag_pb.to_string(),
        ] {
            assert_eq!(IpnsName::parse(&form), Some(name), "{form}");
        }
        assert!(name.to_string().starts_with('k') && name.record_key().text() == name.to_string());
        assert_eq!(IpnsName::parse(&Cid::new_v1(codec::RAW, *cid.hash()).to_string()), None);
    }
    // The base36 form in the suite's table of DNSLinks is of this length, and fits a DNS label.
    assert_eq!(IpnsName::parse(ED).unwrap().to_string().len(), 62);
    let long = "1".repeat(PEER_ID_TEXT_MAX + 1);
    // An empty key, a key that is too long to be inlined, and digests of other lengths or kinds.
    let odd =
        ["bafzaaa", "f01720014", "f017212021234", "f017213201111111111111111111111111111111111111111111111111111111111111111"];
    for bad in ["", "1", "12D3", "Qm", "QmInvalid", "example.org", "k", "kü", "bafkqaaa", &long].into_iter().chain(odd) {
        assert_eq!(IpnsName::parse(bad), None, "{bad}");
    }
    let long_key = format!("f017200{:02x}{}", INLINE_KEY_BYTES_MAX + 1, "00".repeat(INLINE_KEY_BYTES_MAX + 1));
    assert_eq!(IpnsName::parse(&long_key), None);
}

#[test]
fn times() {
    let nanos = |text: &str| Moment::parse(text).map(|moment| (moment.seconds, moment.nanos));
    let rows = [
        ("1970-01-01T00:00:00Z", Some((0, 0))),
        ("2123-08-14T12:17:03.694052Z", Some((4_847_689_023, 694_052_000))),
        ("2000-02-29T23:59:59.123456789Z", Some((951_868_799, 123_456_789))),
        ("2026-11-22T21:33:17+02:00", Some((1_795_375_997, 0))),
        ("2026-11-22t21:33:17-00:30", Some((1_795_384_997, 0))),
        ("9999-12-31T23:59:59Z", Some((YEAR_10000 - 1, 0))),
        ("9999-12-31T23:59:59-00:01", None),
        ("1969-12-31T23:59:59Z", None),
        ("2001-02-29T00:00:00Z", None),
        ("2001-13-01T00:00:00Z", None),
        ("2001-01-00T00:00:00Z", None),
        ("2001-01-01T24:00:00Z", None),
        ("2001-01-01T00:60:00Z", None),
        ("2001-01-01T00:00:60Z", None),
        ("2001-01-01T00:00:00", None),
        ("2001-01-01T00:00:00.Z", None),
        ("2001-01-01T00:00:00.1234567890Z", None),
        ("2001-01-01T00:00:00.1", None),
        ("2001-01-01T00:00:00+0100", None),
        ("2001-01-01T00:00:00+24:00", None),
        ("2001-01-01 00:00:00Z", None),
        ("+001-01-01T00:00:00Z", None),
        ("2001-01-01", None),
        ("2001-01-01T00:00:0\u{fc}", None),
        ("", None),
    ];
    for (text, expect) in rows {
        assert_eq!(nanos(text), expect, "{text}");
    }
    // The vector of `docs/formats.md` 5.
    let moment = Moment::parse("2123-08-14T12:17:03.694052Z").expect("a time");
    assert_eq!(hex::encode(moment.sortable()), "0000000120f1dd3f295e64a0");
}

#[test]
fn records_of_every_kind_of_key() {
    for key in keys() {
        let name = name_of(&key);
        let hashed = name.cid().hash().code() == hash::SHA2_256;
        for (with_v1, with_key) in [(false, false), (true, false), (false, true), (true, true)] {
            let draft = Draft { with_v1, with_key, ..Draft::of("/ipfs/bafkqaaa/a b") };
            let bytes = draft.sign(&key);
            let read = verify(&name, &bytes);
            if hashed && !with_key {
                assert_eq!(read, Err(BadIpnsRecord::NoKey));
                continue;
            }
            let read = read.expect("verifies");
            assert_eq!((read.value.as_slice(), read.sequence), (&b"/ipfs/bafkqaaa/a b"[..], 1));
            assert_eq!(read.ttl, Some(Duration::from_secs(1800)));
            let stored = Record::new(name.record_key(), read.order(), bytes.clone());
            assert_eq!(owner_check(&stored), Ok(()));
            let other = Record { order: Order::ipns(2, &[0; 12]), ..stored.clone() };
            assert!(owner_check(&other).is_err(), "the order is signed, too");
            let foreign = Record { key: name_of(&super::super::testing::key(9)).record_key(), ..stored };
            assert!(owner_check(&foreign).is_err());
        }
    }
}

#[test]
fn each_check_in_its_turn() {
    let key = key(1);
    let name = name_of(&key);
    let good = Draft::of("/ipfs/bafkqaaa");
    let check = |draft: &Draft| verify(&name, &draft.sign(&key));
    let with_tail = |draft: &Draft, field: u8, bytes: &[u8]| {
        let mut record = draft.sign(&key);
        put_bytes(field, bytes, &mut record);
        verify(&name, &record).map(|_| ())
    };
    assert_eq!(verify(&name, &vec![0; IPNS_RECORD_BYTES_MAX + 1]), Err(BadIpnsRecord::TooLong(IPNS_RECORD_BYTES_MAX + 1)));
    assert_eq!(verify(&name, b""), Err(BadIpnsRecord::NoSignature));
    assert!(matches!(verify(&name, &[0xff; 40]), Err(BadIpnsRecord::Malformed(_))));
    assert!(matches!(verify(&name, &[0x08, 0x01]), Err(BadIpnsRecord::Malformed(_))), "a number in field 1");
    assert_eq!(verify(&name_of(&super::super::testing::key(2)), &good.sign(&key)), Err(BadIpnsRecord::Signature));
    assert_eq!(with_tail(&good, 7, b"rubbish"), Err(BadIpnsRecord::Key));
    let foreign = super::super::testing::key(2).public().encode_protobuf();
    assert_eq!(with_tail(&good, 7, &foreign), Err(BadIpnsRecord::OtherKey));
    assert!(matches!(with_tail(&good, 9, b"\xa1"), Err(BadIpnsRecord::Malformed(_))));
    assert_eq!(with_tail(&good, 9, b"\xa0"), Err(BadIpnsRecord::Field("Value")));
    assert_eq!(with_tail(&good, 8, &[0; 64]), Err(BadIpnsRecord::Signature));
    // A copy that is there must be right, and then all five must be.
    assert_eq!(with_tail(&good, 1, b"/ipfs/bafkqaab"), Err(BadIpnsRecord::Copy("value")));
    assert_eq!(with_tail(&good, 1, b"/ipfs/bafkqaaa"), Err(BadIpnsRecord::Copy("validity")));
    assert_eq!(with_tail(&good, 2, b"v1"), Err(BadIpnsRecord::Copy("value")));
    let copied = Draft { with_v1: true, ..good.clone() };
    for (field, name) in [(1, "value"), (4, "validity")] {
        assert_eq!(with_tail(&copied, field, b"other"), Err(BadIpnsRecord::Copy(name)));
    }
    // Unknown fields, and keys of the owner's own.
    assert_eq!(with_tail(&good, 12, b"anything"), Ok(()));
    assert!(check(&Draft { more: (1, vec![0x62, b'_', b'x', 0x81, 0xa0]), ..good.clone() }).is_ok());
    assert_eq!(
        check(&Draft { more: (1, vec![0x63, b'T', b'T', b'L', 0x20]), ..good.clone() }),
        Err(BadIpnsRecord::Malformed(Malformed("a key comes twice")))
    );
    assert_eq!(check(&Draft { validity_type: 1, ..good.clone() }), Err(BadIpnsRecord::ValidityType(1)));
    assert_eq!(check(&Draft { validity: "tomorrow".to_owned(), ..good.clone() }), Err(BadIpnsRecord::Validity));
}

#[test]
fn newer_and_expired() {
    let key = key(1);
    let order = |sequence: u64, validity: &str| {
        let draft = Draft { sequence, validity: validity.to_owned(), ..Draft::of("/ipfs/bafkqaaa") };
        verify(&name_of(&key), &draft.sign(&key)).expect("good").order()
    };
    let rising = [
        order(0, "2099-01-01T00:00:00Z"),
        order(1, "2050-01-01T00:00:00Z"),
        order(1, "2050-01-01T00:00:00.000000001Z"),
        order(1, "2050-01-01T00:00:01-01:00"),
        order(u64::MAX, "1999-01-01T00:00:00Z"),
    ];
    assert!(rising.windows(2).all(|pair| pair[0] < pair[1]));
    let draft = Draft { validity: "2050-01-01T00:00:00Z".to_owned(), ..Draft::of("/ipfs/bafkqaaa") };
    let record = verify(&name_of(&key), &draft.sign(&key)).expect("good");
    let end = record.valid_until();
    let second = Duration::from_secs(1);
    assert!(!record.expired(end - second) && record.expired(end));
    assert_eq!(record.lifetime(end - Duration::from_secs(7200), second), Duration::from_secs(1800));
    assert_eq!(record.lifetime(end - 5 * second, second), 5 * second, "never past its end");
    let without = IpnsRecord { ttl: None, ..record };
    assert_eq!(without.lifetime(end - 5 * second, second), second);
}

/// Verdicts as `conformance/fixtures/README.md` tells them.
#[test]
fn records_of_the_suite() {
    let rows = [
        ("ipns_records/k51qzi5uqu5dm4tm0wt8srkg9h9suud4wuiwjimndrkydqm81cqtlb5ak6p7ku_v1", Err(BadIpnsRecord::NoSignature)),
        ("ipns_records/k51qzi5uqu5dlkw8pxuw9qmqayfdeh4kfebhmreauqdc6a7c3y7d5i9fi8mk9w_v1-v2", Ok(())),
        ("ipns_records/k51qzi5uqu5dit2ku9mutlfgwyz8u730on38kd10m97m36bjt66my99hb6103f_v2", Ok(())),
        ("ipns_records/k51qzi5uqu5dilgf7gorsh9vcqqq4myo6jd4zmqkuy9pxyxi5fua3uf7axph4y_v1-v2-broken-signature-v1", Ok(())),
        (
            "ipns_records/k51qzi5uqu5diamp7qnnvs1p1gzmku3eijkeijs3418j23j077zrkok63xdm8c_v1-v2-broken-signature-v2",
            Err(BadIpnsRecord::Signature),
        ),
        (
            "ipns_records/k51qzi5uqu5dlmit2tuwdvnx4sbnyqgmvbxftl0eo3f33wwtb9gr7yozae9kpw_v1-v2-broken-v1-value",
            Err(BadIpnsRecord::Copy("value")),
        ),
        ("gateway-cache/k51qzi5uqu5dlxdsdu5fpuu7h69wu4ohp32iwm9pdt9nq3y5rpn3ln9j12zfhe", Ok(())),
        ("gateway-cache/k51qzi5uqu5djokp3m1keo36hoxtd6u3a1d2rg1camf6al7p3huy63dojlm57c", Ok(())),
        ("path_gateway_dag/k51qzi5uqu5dghjous0agrwavl8vzl64xckoqzwqeqwudfr74kfd11zcyk3b7l", Ok(())),
        ("path_gateway_dag/k51qzi5uqu5dhjghbwdvbo6mi40htrq6e2z4pwgp15pgv3ho1azvidttzh8yy2", Ok(())),
        ("subdomain_gateway/QmVujd5Vb7moysJj8itnGufN7MEtPRCNHkKpNuA4onsRa3", Ok(())),
        ("subdomain_gateway/12D3KooWLQzUv2FHWGVPXTXSZpdHs7oHbXub2G5WC8Tx4NQhyd2d", Ok(())),
    ];
    for (file, expect) in rows {
        let Some(bytes) = shared_file(&format!("conformance/fixtures/{file}.ipns-record")) else { return };
        let name = file.split_once('/').map(|(_, name)| name.split('_').next().unwrap_or(name)).expect("a folder");
        let name = IpnsName::parse(name).expect("a name");
        assert_eq!(verify(&name, &bytes).map(|_| ()), expect, "{file}");
    }
}

#[test]
fn fuzz_corpus() {
    let name = "k51qzi5uqu5dlkw8pxuw9qmqayfdeh4kfebhmreauqdc6a7c3y7d5i9fi8mk9w";
    let shared = shared_file(&format!("conformance/fixtures/ipns_records/{name}_v1-v2.ipns-record"));
    let corpus = [
        Draft { with_v1: true, with_key: true, ..Draft::of("/ipfs/bafkqaaa") }.sign(&key(1)),
        Draft { more: (1, vec![0x62, b'_', b'x', 0x81, 0xa0]), ..Draft::of("/ipns/example.org/x") }.sign(&key(1)),
        b"2123-08-14T12:17:03.694052Z".to_vec(),
        ED.as_bytes().to_vec(),
        name.as_bytes().to_vec(),
    ];
    for good in corpus.iter().chain(&shared) {
        for seed in 0..200 {
            println!("seed {seed} of {} bytes", good.len());
            fuzz(&mutations(seed, good));
        }
    }
}
