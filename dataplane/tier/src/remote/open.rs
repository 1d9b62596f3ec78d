//! The store that an address names, and what can be set about it.
//!
//! Credentials come from the environment; whoever writes them into an address or an endpoint all the same does not
//! find them in a log.

use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use crate::TierError;

/// The settings of a [`RemoteTier`]. There are no credentials in them: those come from the environment
/// (`AWS_ACCESS_KEY_ID` and its kin).
#[derive(Clone)]
pub struct RemoteSettings {
    /// `s3://BUCKET/PREFIX` or `file:///FOLDER`. A folder that is not there is made, for this user alone; of one that
    /// is there, the operator says who may read it.
    pub address: String,
    /// Where S3 is, unless it is Amazon's or the environment says so. `http://` is taken at its word.
    pub endpoint: Option<String>,
    /// S3's region, unless the environment says so.
    pub region: Option<String>,
    /// The longest that a call may take, waiting included.
    pub timeout_ms: u64,
    /// Calls at once.
    pub parallel: usize,
    /// Calls that may wait for those.
    pub waiting_max: usize,
    /// Blocks of an object; 0 for as many as make a few MiB. All workers of a cluster must agree.
    pub pack_blocks: u32,
    /// The most bytes of blocks that one [`RemoteTier::load`](super::RemoteTier::load) gives; at least a pack.
    pub load_bytes: u64,
}

impl RemoteSettings {
    /// An address, else what serves most.
    #[must_use]
    pub fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            endpoint: None,
            region: None,
            timeout_ms: 10_000,
            parallel: 32,
            waiting_max: 1024,
            pack_blocks: 0,
            load_bytes: 256 << 20,
        }
    }
}

impl fmt::Debug for RemoteSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteSettings")
            .field("address", &without_user(&self.address))
            .field("endpoint", &self.endpoint.as_deref().map(without_user))
            .field("region", &self.region)
            .field("timeout_ms", &self.timeout_ms)
            .field("parallel", &self.parallel)
            .field("waiting_max", &self.waiting_max)
            .field("pack_blocks", &self.pack_blocks)
            .field("load_bytes", &self.load_bytes)
            .finish()
    }
}

/// An address without what stands before its last "@", which may be credentials.
fn without_user(address: &str) -> String {
    let Some((before, host)) = address.rsplit_once('@') else { return address.to_owned() };
    let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
    format!("{scheme}://***@{host}")
}

/// Opens the store that the address names, and says below which name its objects are.
pub(super) fn open_store(
    settings: &RemoteSettings,
) -> Result<(Arc<dyn ObjectStore>, Path), TierError> {
    let address = settings.address.as_str();
    if let Some(folder) = address.strip_prefix("file://") {
        // Files get the process's mask, which may let others read them; the folder keeps them out.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(TierError::io("make the folder of the store"))?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|_| TierError::Store("its folder cannot be opened".to_owned()))?;
        return Ok((Arc::new(store), Path::default()));
    }
    let Some(place) = address.strip_prefix("s3://") else {
        return Err(TierError::Setting(
            "a store has an address like s3://BUCKET/PREFIX or file:///FOLDER".to_owned(),
        ));
    };
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if bucket.is_empty() || bucket.contains(['@', ':']) {
        return Err(TierError::Setting(
            "an address like s3://BUCKET/PREFIX has no credentials in it; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned(),
        ));
    }
    let prefix = Path::parse(prefix)
        .map_err(|_| TierError::Setting("the prefix in the address is no path".to_owned()))?;
    // The process may have chosen its ciphers already, which is as good.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let timeout = Duration::from_millis(settings.timeout_ms);
    let retry = RetryConfig { max_retries: 2, retry_timeout: timeout, ..RetryConfig::default() };
    let options = ClientOptions::new().with_timeout(timeout).with_connect_timeout(timeout);
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(options)
        .with_retry(retry);
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    let store = builder
        .build()
        .map_err(|_| TierError::Store("its settings do not fit together".to_owned()))?;
    Ok((Arc::new(store), prefix))
}
