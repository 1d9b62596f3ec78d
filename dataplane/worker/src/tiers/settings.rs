//! Which tiers a worker has, and how large they are.

use std::path::PathBuf;

/// The least that a tier in memory or on a disk may be set to.
const BYTES_MIN: u64 = 1 << 20;

/// The tiers below the engine's memory; none unless set.
#[derive(Debug, Clone, Default)]
pub struct TierConfig {
    /// Bytes of host memory for blocks; 0 is none, or a small buffer where there is a disk.
    pub host_bytes: u64,
    /// A disk.
    pub disk: Option<DiskConfig>,
    /// A store that all workers share.
    pub remote: Option<RemoteConfig>,
}

/// A disk tier.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// Its folder, which no other worker has.
    pub folder: PathBuf,
    /// The most bytes of blocks.
    pub bytes: u64,
}

/// A store of objects.
#[derive(Clone)]
pub struct RemoteConfig {
    /// `s3://BUCKET/PREFIX` or `file:///FOLDER`.
    pub address: String,
    /// Where S3 is, unless it is Amazon's or the environment says so.
    pub endpoint: Option<String>,
    /// S3's region, unless the environment says so.
    pub region: Option<String>,
}

impl std::fmt::Debug for RemoteConfig {
    /// Without the addresses, in which somebody may have written credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteConfig").field("region", &self.region).finish_non_exhaustive()
    }
}

impl TierConfig {
    pub(crate) const fn is_empty(&self) -> bool {
        self.host_bytes == 0 && self.disk.is_none() && self.remote.is_none()
    }

    /// Refuses what can never work, with what to change.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.host_bytes != 0 && self.host_bytes < BYTES_MIN {
            return Err(format!("--host-memory of {} bytes; set 1M or more", self.host_bytes));
        }
        if let Some(disk) = &self.disk
            && disk.bytes < BYTES_MIN
        {
            return Err(format!("--disk-size of {} bytes; set 1M or more", disk.bytes));
        }
        Ok(())
    }
}
