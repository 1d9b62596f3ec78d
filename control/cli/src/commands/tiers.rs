//! The tiers below an engine's memory, as flags; and the key by which blocks are named, which a later cluster needs to
//! find them in a store.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mainstay_types::HashKey;
use mainstay_worker::{DiskConfig, RemoteConfig, TierConfig};

use super::engine::parse_bytes;

/// Flags about tiers, shared by `serve` and `worker`.
#[derive(clap::Args, Clone)]
pub(crate) struct TierArgs {
    /// Host memory for blocks that left the engine's, such as 8G [default: none; 64M beside a disk]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, env = "MAINSTAY_HOST_MEMORY")]
    host_memory: Option<u64>,
    /// A folder on NVMe for blocks that left host memory; each worker has its own
    #[arg(long, value_name = "DIR", requires = "disk_size", env = "MAINSTAY_DISK_TIER")]
    disk_tier: Option<PathBuf>,
    /// The most bytes of blocks in that folder, such as 100G
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "disk_tier",
          env = "MAINSTAY_DISK_SIZE")]
    disk_size: Option<u64>,
    /// A store that all workers share: s3://BUCKET/PREFIX with credentials in AWS_ACCESS_KEY_ID and its kin, or
    /// file:///FOLDER
    #[arg(long, value_name = "URL", env = "MAINSTAY_REMOTE_TIER", hide_env_values = true)]
    remote_tier: Option<String>,
    /// Where S3 is, if not at Amazon, such as http://127.0.0.1:9000
    #[arg(
        long,
        value_name = "URL",
        requires = "remote_tier",
        env = "MAINSTAY_REMOTE_ENDPOINT",
        hide_env_values = true
    )]
    remote_endpoint: Option<String>,
    /// S3's region
    #[arg(long, value_name = "NAME", requires = "remote_tier", env = "MAINSTAY_REMOTE_REGION")]
    remote_region: Option<String>,
}

impl TierArgs {
    /// The worker's form of them.
    pub(crate) fn config(&self) -> TierConfig {
        let disk = self.disk_tier.clone().zip(self.disk_size);
        TierConfig {
            host_bytes: self.host_memory.unwrap_or(0),
            disk: disk.map(|(folder, bytes)| DiskConfig { folder, bytes }),
            remote: self.remote_tier.clone().map(|address| RemoteConfig {
                address,
                endpoint: self.remote_endpoint.clone(),
                region: self.remote_region.clone(),
            }),
        }
    }
}

/// The key by which a new group names blocks.
#[derive(clap::Args, Clone)]
pub(crate) struct HashKeyArgs {
    /// A file of 32 hexadecimal digits, the key by which a new cluster names blocks; with the key of an old one it finds
    /// that one's blocks in a remote tier. Secret. It counts when a group is founded and not later [default: random]
    #[arg(long, value_name = "FILE", env = "MAINSTAY_HASH_KEY_FILE")]
    hash_key_file: Option<PathBuf>,
}

impl HashKeyArgs {
    /// Reads the file, if one is named.
    pub(crate) fn read(&self) -> anyhow::Result<Option<HashKey>> {
        self.hash_key_file.as_deref().map(read_key).transpose()
    }
}

fn read_key(file: &Path) -> anyhow::Result<HashKey> {
    let shown = file.display();
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading the hash key {shown}"))?;
    match HashKey::from_hex(text.trim()) {
        Some(key) if key != HashKey([0; 16]) => Ok(key),
        _ => bail!(
            "{shown} has no hash key; write 32 hexadecimal digits, such as by `openssl rand -hex 16 > {shown}`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(flags: &[&str]) -> Result<TierArgs, clap::Error> {
        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            tiers: TierArgs,
        }
        let all = ["program"].iter().chain(flags);
        <Program as clap::Parser>::try_parse_from(all).map(|program| program.tiers)
    }

    #[test]
    fn a_disk_has_a_size_and_an_endpoint_a_store() {
        let config = args(&["--host-memory", "2G", "--disk-tier", "/x", "--disk-size", "9M"])
            .expect("whole")
            .config();
        assert_eq!(config.host_bytes, 2 << 30);
        assert_eq!(config.disk.map(|disk| disk.bytes), Some(9 << 20));
        assert!(config.remote.is_none());
        for wrong in [
            &["--disk-tier", "/x"][..],
            &["--disk-size", "1G"],
            &["--remote-endpoint", "http://127.0.0.1:1"],
            &["--host-memory", "much"],
        ] {
            assert!(args(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_hash_key_is_32_digits() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let file = folder.path().join("key");
        for wrong in ["", "12", "00000000000000000000000000000000", "zz"] {
            std::fs::write(&file, wrong).expect("writable");
            let error = read_key(&file).expect_err("no key").to_string();
            assert!(error.contains("openssl rand"), "{error}");
        }
        std::fs::write(&file, "000102030405060708090a0b0c0d0e0f\n").expect("writable");
        let bytes = std::array::from_fn(|at| at as u8);
        assert_eq!(read_key(&file).expect("a key"), HashKey(bytes));
    }
}
