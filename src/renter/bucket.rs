//! Hosts that are buckets of an S3-compatible store: its client, set up so that one call is one request.
//!
//! The client's own retries and time-outs are off: time-outs are [`Host`](super::host::Host)'s (one table), retries are the
//! layer's above it, with a budget. Connections are kept and used again, since a new one costs two or three round trips.
//!
//! Nothing rests on conditional puts but the making of the marker, where a store that ignores them costs nothing: what is there afterwards counts.

use std::{sync::Arc, time::Duration};

use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder, path::Path, prefix::PrefixStore};

/// Longer than any round trip on earth with one lost packet; a host that takes longer is as good as down.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Shorter than the idle times after which servers close connections by themselves, and longer than gaps between requests.
const IDLE_MAX: Duration = Duration::from_secs(50);
/// Connections kept for a bucket: the reads of some dozen replies at once.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// Where a bucket is, and what its requests are signed with.
#[derive(Clone)]
pub struct BucketOptions {
    pub bucket: String,
    /// Of all keys, without slashes at its ends; empty for the whole bucket.
    pub prefix: String,
    /// `None`: Amazon's own, by region.
    pub endpoint: Option<String>,
    pub region: String,
    /// Id, secret and session token. `None`: requests are not signed.
    pub key: Option<(String, String, Option<String>)>,
    /// The bucket's name stands in the host name, not in the path.
    pub virtual_hosted: bool,
}

/// A client of this bucket. Touches nothing yet.
pub fn open(options: BucketOptions) -> object_store::Result<Arc<dyn ObjectStore>> {
    // The client takes the process's crypto library; there is only this one. It is an error to set it twice, and no harm.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let plain = options.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let client = ClientOptions::new()
        .with_allow_http(plain)
        .with_connect_timeout(CONNECT_MAX)
        .with_timeout_disabled()
        .with_pool_idle_timeout(IDLE_MAX)
        .with_pool_max_idle_per_host(IDLE_CONNECTIONS_MAX);
    let once = RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&options.bucket)
        .with_region(&options.region)
        .with_virtual_hosted_style_request(options.virtual_hosted)
        // One object at a time is removed here, and not every store knows the call for many.
        .with_disable_bulk_delete(true)
        .with_client_options(client)
        .with_retry(once);
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder = match options.key {
        None => builder.with_skip_signature(true),
        Some((id, secret, session)) => {
            let builder = builder.with_access_key_id(id).with_secret_access_key(secret);
            match session {
                Some(session) => builder.with_token(session),
                None => builder,
            }
        }
    };
    let store = builder.build()?;
    Ok(match options.prefix.as_str() {
        "" => Arc::new(store),
        prefix => Arc::new(PrefixStore::new(store, Path::from(prefix))),
    })
}
