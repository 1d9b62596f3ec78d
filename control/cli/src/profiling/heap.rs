//! What was allocated while somebody looked, and still lives: where memory goes that does not come back.
//!
//! The allocator samples one allocation in so many bytes with its stack. It samples nothing but while it is asked to, and
//! forgets what it sampled afterwards.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jemalloc_pprof::{JemallocProfCtl, PROF_CTL};
use tokio::sync::OwnedMutexGuard;

/// The allocator's sampling, which ends with it however that comes about.
struct Sampling(OwnedMutexGuard<JemallocProfCtl>);

impl Sampling {
    async fn begin() -> anyhow::Result<Self> {
        // The allocator writes its samples to a file: better to know before an hour is over.
        let place = std::env::temp_dir();
        let file = place.join(format!("mainstay-heap-{}", std::process::id()));
        std::fs::write(&file, []).and_then(|()| std::fs::remove_file(&file)).with_context(
            || format!("nothing can be written in {}; set TMPDIR", place.display()),
        )?;
        let control = PROF_CTL.as_ref().context(
            "the allocator can't sample here; build in a checkout, whose .cargo/config.toml lets it, and unset MALLOC_CONF",
        )?;
        let mut control = Arc::clone(control).lock_owned().await;
        control.activate().map_err(|error| anyhow::anyhow!("sampling could not begin: {error}"))?;
        Ok(Self(control))
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        if let Err(error) = self.0.deactivate() {
            tracing::warn!(%error, "the allocator goes on sampling");
        }
    }
}

/// A profile in pprof's form, compressed, of so long a time. Whoever goes away earlier ends it.
pub(super) async fn take(seconds: u64) -> anyhow::Result<Vec<u8>> {
    let mut sampling = Sampling::begin().await?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let dumped = tokio::task::spawn_blocking(move || sampling.0.dump_pprof());
    dumped.await.context("writing the profile broke off")?.context("no profile could be made")
}
