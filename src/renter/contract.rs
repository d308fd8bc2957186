//! One suite for every kind of host store: what the renter relies on.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, memory::InMemory, path::Path};

use super::{
    bucket::BucketOptions,
    faulty::FaultyStore,
    folder::{FolderOptions, FolderStore, MARKER_KEY},
    marker::{self, PortalId},
};

#[tokio::test]
async fn memory() {
    run(&InMemory::new(), Marked::No).await;
}

#[tokio::test]
async fn quiet_faulty() {
    run(&FaultyStore::new(Arc::new(InMemory::new()), 1), Marked::No).await;
}

#[tokio::test]
async fn folder() {
    let top = tempfile::tempdir().unwrap();
    let store = FolderStore::new(top.path(), FolderOptions::default());
    marker::create(&store, PortalId([1; 32])).await.unwrap();
    run(&store, Marked::Yes).await;
}

#[tokio::test]
async fn bucket() {
    let server = s3::Server::start(&["pool"]).await;
    run_with(&*server.open("pool", ""), Marked::No, Names::OfFiles).await;
}

#[tokio::test]
async fn part_of_a_bucket() {
    let server = s3::Server::start(&["pool"]).await;
    let beside = server.open("pool", "sky/20");
    beside.put(&record_path("beside"), "x".into()).await.unwrap();
    run_with(&*server.open("pool", "sky/2"), Marked::No, Names::OfFiles).await;
    assert_eq!(keys(&*beside, None).await, [record_path("beside").to_string()], "nothing beside it was touched");
}

/// A bucket with a wrong key, and one that is not there, are failures and not absence.
#[tokio::test]
async fn bucket_that_cannot_be_used() {
    let server = s3::Server::start(&["pool"]).await;
    let options = server.options("pool", "");
    let wrong = Some(("id".to_owned(), "another secret".to_owned(), None));
    for (what, options) in [("key", BucketOptions { key: wrong, ..options }), ("bucket", server.options("nowhere", ""))] {
        let store = super::bucket::open(options).unwrap();
        let error = store.get(&record_path("a")).await.unwrap_err();
        // A store says "not found" of a bucket, too. The marker is what tells: without it a host is down, and never empty.
        assert!(!matches!(error, Error::NotFound { .. }) || what == "bucket", "{what}: {error}");
        assert!(marker::read(&*store).await.is_err(), "{what}");
    }
}

/// An S3 server in this process, on a port of its own.
mod s3 {
    use std::sync::Arc;

    use hyper_util::rt::{TokioExecutor, TokioIo};
    use object_store::ObjectStore;
    use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
    use tokio::{net::TcpListener, task::AbortHandle};

    use crate::renter::bucket::{self, BucketOptions};

    pub struct Server {
        address: std::net::SocketAddr,
        accepting: AbortHandle,
        _folder: tempfile::TempDir,
    }

    impl Server {
        pub async fn start(buckets: &[&str]) -> Server {
            let folder = tempfile::tempdir().unwrap();
            for bucket in buckets {
                std::fs::create_dir(folder.path().join(bucket)).unwrap();
            }
            let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
            builder.set_auth(SimpleAuth::from_single("id", "secret"));
            let service = builder.build();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let accepting = tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    let service = service.clone();
                    tokio::spawn(async move {
                        let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                        let _ = server.serve_connection(TokioIo::new(socket), service).await;
                    });
                }
            });
            Server { address, accepting: accepting.abort_handle(), _folder: folder }
        }

        pub fn options(&self, bucket: &str, prefix: &str) -> BucketOptions {
            BucketOptions {
                bucket: bucket.to_owned(),
                prefix: prefix.to_owned(),
                endpoint: Some(format!("http://{}", self.address)),
                region: "us-east-1".to_owned(),
                key: Some(("id".to_owned(), "secret".to_owned(), None)),
                virtual_hosted: false,
            }
        }

        pub fn open(&self, bucket: &str, prefix: &str) -> Arc<dyn ObjectStore> {
            bucket::open(self.options(bucket, prefix)).unwrap()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.accepting.abort();
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Marked {
    Yes,
    No,
}

/// How long the parts of a key may be.
#[derive(Clone, Copy, PartialEq)]
enum Names {
    Any,
    /// The S3 server of these tests makes a file name of twice the whole key. Others take keys of 1,024 bytes.
    OfFiles,
}

async fn run(store: &dyn ObjectStore, marked: Marked) {
    run_with(store, marked, Names::Any).await;
}

async fn run_with(store: &dyn ObjectStore, marked: Marked, names: Names) {
    put_and_get(store).await;
    ranges(store).await;
    overwrite(store).await;
    put_modes(store).await;
    delete(store).await;
    lists(store).await;
    odd_keys(store, marked, names).await;
    at_once(store).await;
}

fn bytes_of(len: usize, seed: u8) -> Bytes {
    (0..len).map(|index| (index * 31 + index / 257) as u8 ^ seed).collect::<Vec<u8>>().into()
}

fn sector_path(seed: u8) -> Path {
    Path::from(format!("sectors/{seed:02x}/{}", hex::encode([seed; 32])))
}

fn record_path(name: &str) -> Path {
    Path::from(format!("records/entry/5a/{name}/0123"))
}

async fn read(store: &dyn ObjectStore, path: &Path) -> Bytes {
    store.get(path).await.unwrap().bytes().await.unwrap()
}

async fn keys(store: &dyn ObjectStore, prefix: Option<&str>) -> Vec<String> {
    let prefix = prefix.map(Path::from);
    store.list(prefix.as_ref()).map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap()
}

async fn remove_all(store: &dyn ObjectStore) {
    for key in keys(store, None).await {
        if key != MARKER_KEY {
            store.delete(&Path::from(key)).await.unwrap();
        }
    }
}

/// Lengths around every limit: small and large, whole pages and not.
const LENGTHS: [usize; 9] = [1, 100, 4096, 65_535, 65_536, 65_537, 131_072, 1_000_001, 4_227_136];

async fn put_and_get(store: &dyn ObjectStore) {
    for (index, len) in LENGTHS.into_iter().enumerate() {
        for path in [sector_path(index as u8), record_path(&format!("a{index}"))] {
            assert!(matches!(store.get(&path).await, Err(Error::NotFound { .. })), "{path}");
            assert!(matches!(store.head(&path).await, Err(Error::NotFound { .. })), "{path}");
            let bytes = bytes_of(len, index as u8);
            store.put(&path, bytes.clone().into()).await.unwrap();
            assert!(read(store, &path).await == bytes, "{path}");
            let meta = store.head(&path).await.unwrap();
            assert_eq!((meta.size, meta.location.as_ref()), (len as u64, path.as_ref()));
        }
    }
    // A payload of several parts.
    let parts: object_store::PutPayload = [bytes_of(70_000, 1), bytes_of(3, 2), bytes_of(90_000, 3)].into_iter().collect();
    store.put(&sector_path(0xee), parts.clone()).await.unwrap();
    assert!(read(store, &sector_path(0xee)).await == Bytes::from(parts));
    remove_all(store).await;
}

async fn ranges(store: &dyn ObjectStore) {
    for len in [100u64, 300_000] {
        let (path, bytes) = (sector_path(1), bytes_of(len as usize, 9));
        store.put(&path, bytes.clone().into()).await.unwrap();
        let table: Vec<(GetRange, Option<std::ops::Range<u64>>)> = vec![
            (GetRange::Bounded(0..1), Some(0..1)),
            (GetRange::Bounded(0..len), Some(0..len)),
            (GetRange::Bounded(7..50), Some(7..50)),
            (GetRange::Bounded(len - 1..len), Some(len - 1..len)),
            (GetRange::Bounded(50..len + 1_000), Some(50..len)),
            (GetRange::Offset(60), Some(60..len)),
            (GetRange::Suffix(20), Some(len - 20..len)),
            (GetRange::Bounded(len..len + 1), None),
            (GetRange::Offset(len), None),
        ];
        for (range, expect) in table {
            let options = GetOptions { range: Some(range.clone()), ..GetOptions::default() };
            let got = store.get_opts(&path, options).await;
            match expect {
                None => assert!(got.is_err(), "{range} of {len}"),
                Some(expect) => {
                    let got = got.unwrap();
                    assert_eq!((got.range.clone(), got.meta.size), (expect.clone(), len), "{range} of {len}");
                    let slice = bytes.slice(expect.start as usize..expect.end as usize);
                    assert!(got.bytes().await.unwrap() == slice, "{range} of {len}");
                }
            }
        }
        assert_eq!(store.get_ranges(&path, &[3..5, 90..92]).await.unwrap(), [bytes.slice(3..5), bytes.slice(90..92)]);
    }
    remove_all(store).await;
}

async fn overwrite(store: &dyn ObjectStore) {
    // Small and large in every order: from the log to a file and back.
    let path = record_path("over");
    for (turn, len) in [10, 20, 100_000, 200_000, 30, 100_000, 5].into_iter().enumerate() {
        let bytes = bytes_of(len, turn as u8);
        store.put(&path, bytes.clone().into()).await.unwrap();
        assert!(read(store, &path).await == bytes, "turn {turn}");
        assert_eq!(store.head(&path).await.unwrap().size, len as u64);
    }
    remove_all(store).await;
}

async fn put_modes(store: &dyn ObjectStore) {
    let create = || PutOptions::from(PutMode::Create);
    for (seed, len) in [(1, 10), (2, 100_000)] {
        let path = sector_path(seed);
        store.put_opts(&path, bytes_of(len, 1).into(), create()).await.unwrap();
        for other in [5, 100_001] {
            let again = store.put_opts(&path, bytes_of(other, 2).into(), create()).await;
            assert!(matches!(again, Err(Error::AlreadyExists { .. })));
        }
        assert!(read(store, &path).await == bytes_of(len, 1));
        store.delete(&path).await.unwrap();
        store.put_opts(&path, bytes_of(len, 3).into(), create()).await.unwrap();
        assert!(read(store, &path).await == bytes_of(len, 3));
    }
    remove_all(store).await;
}

async fn delete(store: &dyn ObjectStore) {
    for len in [10, 100_000] {
        let path = sector_path(3);
        // Removing what is not there may be an error or not, but must not be any other.
        match store.delete(&path).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        store.put(&path, bytes_of(len, 1).into()).await.unwrap();
        store.delete(&path).await.unwrap();
        assert!(matches!(store.get(&path).await, Err(Error::NotFound { .. })));
        assert_eq!(keys(store, Some("sectors")).await, Vec::<String>::new());
        store.put(&path, bytes_of(len + 1, 2).into()).await.unwrap();
        assert!(read(store, &path).await == bytes_of(len + 1, 2));
        store.delete(&path).await.unwrap();
    }
    let paths: Vec<Path> = (0..200).map(|index| record_path(&format!("d{index}"))).collect();
    for path in &paths {
        store.put(path, "x".into()).await.unwrap();
    }
    let removed: Vec<Path> =
        store.delete_stream(stream::iter(paths.clone().into_iter().map(Ok)).boxed()).try_collect().await.unwrap();
    assert_eq!(removed, paths);
    assert_eq!(keys(store, Some("records")).await, Vec::<String>::new());
}

async fn lists(store: &dyn ObjectStore) {
    let mut all: Vec<String> = Vec::new();
    for index in 0..40u8 {
        all.push(sector_path(index.wrapping_mul(37)).to_string());
        all.push(format!("records/pin/{index:02x}/k{}/id{}/o", index % 5, index));
        all.push(format!("records/entry/{:02x}/k-{index}/o", index % 3));
        // Names that sort around a slash.
        all.push(format!("records/entry/{:02x}/k/o{index}", index % 3));
    }
    all.sort();
    all.dedup();
    for (index, key) in all.iter().enumerate() {
        let len = if index % 7 == 0 { 70_000 } else { 10 };
        store.put(&Path::from(key.as_str()), bytes_of(len, 0).into()).await.unwrap();
    }
    let of = |start: &str| all.iter().filter(|key| key.starts_with(start)).cloned().collect::<Vec<_>>();
    for (prefix, start) in [
        ("records", "records/"),
        ("sectors", "sectors/"),
        ("records/pin", "records/pin/"),
        ("records/pin/07", "records/pin/07/"),
        ("records/entry/00/k", "records/entry/00/k/"),
        ("records/entry/00/k-", "records/entry/00/k-/"),
        ("records/nothing", "records/nothing/"),
    ] {
        assert_eq!(keys(store, Some(prefix)).await, of(start), "{prefix}");
    }
    assert_eq!(keys(store, None).await.into_iter().filter(|key| key != MARKER_KEY).collect::<Vec<_>>(), all);
    // Paging from every key.
    let prefix = Path::from("records");
    let records = of("records/");
    for (index, after) in records.iter().enumerate() {
        let rest: Vec<String> = store
            .list_with_offset(Some(&prefix), &Path::from(after.as_str()))
            .map_ok(|meta| meta.location.to_string())
            .try_collect()
            .await
            .unwrap();
        assert_eq!(rest, records[index + 1..], "after {after}");
    }
    let tops = store.list_with_delimiter(None).await.unwrap();
    assert_eq!(tops.common_prefixes, [Path::from("records"), Path::from("sectors")]);
    remove_all(store).await;
    assert!(keys(store, Some("records")).await.is_empty() && keys(store, Some("sectors")).await.is_empty());
}

async fn odd_keys(store: &dyn ObjectStore, marked: Marked, names: Names) {
    let (length, shorter) = if names == Names::Any { (262, 200) } else { (60, 40) };
    let long = "f".repeat(length);
    let long2 = format!("{}e", "f".repeat(length - 1));
    let paths = [
        format!("records/pin/00/{long}/{}/ffff", "0".repeat(32)),
        format!("records/pin/00/{long2}/{}/ffff", "0".repeat(32)),
        format!("records/pin/00/{}/{}/ffff", "f".repeat(shorter), "0".repeat(32)),
        "records/ipns/00/k2-odd_name.x/0".to_owned(),
    ];
    for path in &paths {
        for len in [5, 70_000] {
            store.put(&Path::from(path.as_str()), bytes_of(len, 4).into()).await.unwrap();
            assert!(read(store, &Path::from(path.as_str())).await == bytes_of(len, 4));
        }
    }
    let mut expect = paths.to_vec();
    expect.sort();
    assert_eq!(keys(store, Some("records")).await, expect);
    assert_eq!(keys(store, Some(&format!("records/pin/00/{long}"))).await, [paths[0].clone()]);
    if marked == Marked::Yes {
        for bad in ["tmp/1", "log/0000000000000001.log", "records/entry/00/key", "sectors/00/short", "other"] {
            assert!(store.put(&Path::from(bad), "x".into()).await.is_err(), "{bad}");
            assert!(store.get(&Path::from(bad)).await.is_err(), "{bad}");
            assert!(store.delete(&Path::from(bad)).await.is_err(), "{bad}");
        }
        assert!(store.delete(&Path::from(MARKER_KEY)).await.is_err());
    }
    remove_all(store).await;
}

async fn at_once(store: &dyn ObjectStore) {
    let work = stream::iter(0..300u32).map(|index| async move {
        let path = record_path(&format!("c{}", index % 60));
        let large = sector_path((index % 11) as u8);
        store.put(&path, bytes_of(200, index as u8).into()).await.unwrap();
        store.put(&large, bytes_of(70_000, (index % 11) as u8).into()).await.unwrap();
        assert_eq!(read(store, &path).await.len(), 200);
        assert!(read(store, &large).await == bytes_of(70_000, (index % 11) as u8));
    });
    work.buffer_unordered(32).collect::<Vec<()>>().await;
    assert_eq!(keys(store, Some("records")).await.len(), 60);
    remove_all(store).await;
}
