//! What tells the weights of one checkpoint from those of another: a digest of their content.
//!
//! Blocks of a KV cache are right for one set of weights alone, and sizes say nothing: a folder whose weights were
//! exchanged for others of the same size would be served blocks that the old ones made. So each file is read to its
//! end, as quickly as the disk gives it; the engine maps the same pages right after. A digest that was taken before
//! is believed as long as device, inode, size, time of change and time of status change are the same, the last of
//! which nobody can set back; a file that changed a moment ago could change again within the clock's tick, so
//! its digest is not kept. XXH3 finds an exchange, not a forgery: who may write the weights is trusted.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Files with these endings are weights.
const ENDINGS: [&str; 5] = ["safetensors", "gguf", "bin", "pt", "pth"];
/// Files that are read at once.
const READERS: usize = 4;
const READ_BYTES: usize = 4 << 20;
/// A file is left alone for so long before its digest is kept.
const SETTLED: Duration = Duration::from_secs(2);
/// How often a long reading says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Folds digests of named files into one; whoever has the same files gets the same.
pub(crate) fn fold(files: &mut [(String, u128)]) -> u128 {
    files.sort();
    let mut digest = Xxh3::new();
    for (name, content) in files.iter() {
        digest.update(&(name.len() as u64).to_le_bytes());
        digest.update(name.as_bytes());
        digest.update(&content.to_le_bytes());
    }
    digest.digest128()
}

/// The digest of weights that are in memory.
pub(crate) fn digest_in_memory<'a>(files: impl Iterator<Item = (&'a str, &'a [u8])>) -> u128 {
    let named = files.filter(|(name, _)| is_weights(Path::new(name)));
    let mut files: Vec<_> =
        named.map(|(name, content)| (name.to_owned(), xxh3_128(content))).collect();
    fold(&mut files)
}

/// The digest of all weights in a folder. `kept` is where digests are kept for the next start; without it, or where
/// it can't be written, all is read each time.
pub(crate) fn digest_of_folder(folder: &Path, kept: Option<&Path>) -> anyhow::Result<u128> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
        // Through links: caches of checkpoints are made of them.
        if is_weights(&path) && path.is_file() {
            files.push(path);
        }
    }
    let total = files.iter().filter_map(|path| path.metadata().ok()).map(|m| m.len()).sum();
    let progress = Progress { begun: Instant::now(), read: AtomicU64::new(0), total };
    let next = AtomicUsize::new(0);
    let read_some = || {
        let mut done = Vec::new();
        while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push(digest_of_file(path, kept, &progress)?);
        }
        anyhow::Ok(done)
    };
    let parts = std::thread::scope(|scope| {
        let readers: Vec<_> =
            (0..READERS.min(files.len())).map(|_| scope.spawn(read_some)).collect();
        readers.into_iter().map(|reader| reader.join()).collect::<Vec<_>>()
    });
    let mut digests = Vec::new();
    for part in parts {
        digests.extend(part.map_err(|_| anyhow::anyhow!("a reader of weights panicked"))??);
    }
    Ok(fold(&mut digests))
}

fn is_weights(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
}

/// How far the reading of all files is.
struct Progress {
    begun: Instant,
    read: AtomicU64,
    total: u64,
}

impl Progress {
    /// Counts, and says how far it is if that was not said for a while.
    fn add(&self, bytes: u64, said: &mut Instant) {
        let read = self.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if said.elapsed() >= PROGRESS_EVERY {
            *said = Instant::now();
            let (read_mib, total_mib) = (read >> 20, self.total >> 20);
            tracing::info!(read_mib, total_mib, took = ?self.begun.elapsed(), "reading weights");
        }
    }
}

fn digest_of_file(
    path: &Path,
    kept: Option<&Path>,
    progress: &Progress,
) -> anyhow::Result<(String, u128)> {
    let reading = || format!("reading the weights {}", path.display());
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut file = File::open(path).with_context(reading)?;
    let before = file.metadata().with_context(reading)?;
    let place = kept.map(|folder| folder.join(format!("{:x}-{:x}", before.dev(), before.ino())));
    if let Some(digest) = place.as_deref().and_then(|place| recall(place, &before)) {
        return Ok((name, digest));
    }
    let mut digest = Xxh3::new();
    let mut bytes = vec![0; READ_BYTES];
    let mut said = Instant::now();
    loop {
        let count = file.read(&mut bytes).with_context(reading)?;
        if count == 0 {
            break;
        }
        digest.update(&bytes[..count]);
        progress.add(count as u64, &mut said);
    }
    let digest = digest.digest128();
    let after = file.metadata().with_context(reading)?;
    if let Some(place) = place
        && stamp(&before) == stamp(&after)
        && has_settled(&before)
        && let Err(error) = keep(&place, &before, digest)
    {
        tracing::debug!(%error, "the digest of weights is not kept; the next start reads them again");
    }
    Ok((name, digest))
}

/// All that changes with a file's content, and its place.
fn stamp(metadata: &Metadata) -> String {
    format!(
        "{:x} {:x} {} {}.{} {}.{}",
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}

fn has_settled(metadata: &Metadata) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let changed = u64::try_from(metadata.ctime()).unwrap_or(u64::MAX);
    now.as_secs().checked_sub(changed).is_some_and(|age| age > SETTLED.as_secs())
}

/// The digest that was kept of exactly this file.
fn recall(place: &Path, metadata: &Metadata) -> Option<u128> {
    let text = std::fs::read_to_string(place).ok()?;
    let (digest, of) = text.trim_end().split_once(' ')?;
    if of != stamp(metadata) || digest.len() != 32 {
        return None;
    }
    u128::from_str_radix(digest, 16).ok()
}

fn keep(place: &Path, metadata: &Metadata, digest: u128) -> std::io::Result<()> {
    if let Some(folder) = place.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let fresh: PathBuf = place.with_extension(format!("new-{}", std::process::id()));
    std::fs::write(&fresh, format!("{digest:032x} {}\n", stamp(metadata)))?;
    std::fs::rename(&fresh, place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a scratch folder");
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).expect("writable");
        }
        folder
    }

    fn digest(folder: &tempfile::TempDir) -> u128 {
        digest_of_folder(folder.path(), None).expect("readable")
    }

    #[test]
    fn content_counts_and_not_size_order_or_place() {
        let one = folder(&[("a.safetensors", b"1234"), ("b.safetensors", b"5678")]);
        let same = folder(&[("b.safetensors", b"5678"), ("a.safetensors", b"1234")]);
        assert_eq!(digest(&one), digest(&same));
        let files: [(&str, &[u8]); 3] =
            [("b.safetensors", b"5678"), ("a.safetensors", b"1234"), ("note.txt", b"x")];
        assert_eq!(digest(&one), digest_in_memory(files.into_iter()));
        for other in [
            folder(&[("a.safetensors", b"1235"), ("b.safetensors", b"5678")]),
            folder(&[("a.safetensors", b"5678"), ("b.safetensors", b"1234")]),
            folder(&[("a.safetensors", b"12345678")]),
            folder(&[("a.gguf", b"1234"), ("b.safetensors", b"5678")]),
            folder(&[]),
        ] {
            assert_ne!(digest(&one), digest(&other));
        }
    }

    #[test]
    fn a_kept_digest_is_of_one_file_at_one_time() {
        let one = folder(&[("a.safetensors", b"1234")]);
        let path = one.path().join("a.safetensors");
        let place = one.path().join("kept/digest");
        let metadata = path.metadata().expect("there");
        keep(&place, &metadata, 77).expect("writable");
        assert_eq!(recall(&place, &metadata), Some(77));
        // Exchanged for a file of equal size, with the old time of change put back: the inode's own time tells.
        let modified = metadata.modified().expect("told");
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&path, b"4321").expect("writable");
        let file = File::options().write(true).open(&path).expect("there");
        file.set_modified(modified).expect("settable");
        let now = path.metadata().expect("there");
        assert_eq!((now.len(), now.modified().expect("told")), (metadata.len(), modified));
        assert_eq!(recall(&place, &now), None);
        // Nothing that was damaged is believed.
        std::fs::write(&place, "77").expect("writable");
        assert_eq!(recall(&place, &now), None);
    }

    #[test]
    fn what_changed_a_moment_ago_is_read_again() {
        let one = folder(&[("a.safetensors", b"1234")]);
        let kept = one.path().join("kept");
        let first = digest_of_folder(one.path(), Some(&kept)).expect("readable");
        assert!(!kept.exists(), "it is too new to be sure of");
        assert!(!has_settled(&one.path().join("a.safetensors").metadata().expect("there")));
        assert_eq!(first, digest(&one));
    }
}
