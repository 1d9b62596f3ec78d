//! The model's folder, the engine, and whether both fit.

use std::path::{Path, PathBuf};

use super::checks::{CUDA, ENGINE, MEMORY, MODEL_FILES};
use super::{Finding, Setup};
use crate::config::{model_files, weights_bytes};
use mainstay_native::{Found, Unavailable};

/// The native engine's cache unless told otherwise, as in `docs/reference/cli.md`.
const KV_BYTES_USUAL: u64 = 1 << 30;
/// The driver's library, as engines load it.
const CUDA_LIBRARY: &str = "libcuda.so.1";
const LIBRARY_DIRS: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/compat",
];

pub(super) fn look(setup: &Setup, memory_available: Option<u64>) -> Vec<Finding> {
    let Some(engine) = setup.engine.as_deref() else { return Vec::new() };
    let is_vendors = !matches!(engine, "native" | "sim");
    let mut found = vec![library(engine, is_vendors)];
    if let Some(dir) = &setup.model_dir {
        found.push(files(dir, engine));
    }
    // Only the native engine holds weights and cache in this machine's memory as far as is known here.
    if engine == "native" {
        let weights = setup.model_dir.as_deref().map_or(0, weights_bytes);
        let kv_bytes = setup.kv_bytes.unwrap_or(KV_BYTES_USUAL);
        found.push(judge_memory(weights, kv_bytes, memory_available));
    }
    found.push(match engine {
        "native" => gpu(setup.device.as_deref().unwrap_or("cpu"), mainstay_native::probe),
        _ => cuda(&library_dirs(), is_vendors),
    });
    found
}

fn library(engine: &str, is_vendors: bool) -> Finding {
    if !is_vendors {
        return Finding::ok(&ENGINE, format!("{engine} is part of this program"));
    }
    let cure = "--engine native, --engine sim, or a vendor's FILE.so";
    match std::fs::read(engine) {
        Ok(bytes) if bytes.starts_with(b"\x7fELF") => Finding::ok(
            &ENGINE,
            format!("{engine} is a library; `mainstay engine check {engine}` tries it"),
        ),
        Ok(_) => Finding::failure(&ENGINE, format!("{engine} is no library of this system"), cure),
        Err(error) => Finding::failure(&ENGINE, format!("{engine}: {error}"), cure),
    }
}

fn files(dir: &Path, engine: &str) -> Finding {
    let cure = "a folder in Hugging Face layout, such as `hf download NAME --local-dir DIR` makes";
    if let Err(error) = model_files(Some(dir), None) {
        return Finding::failure(&MODEL_FILES, crate::output::chain(&error), cure);
    }
    // The simulated engine takes the words of a model and not its weights.
    if engine != "sim" && weights_bytes(dir) == 0 {
        let what =
            format!("{} has no weights: no *.safetensors with anything in it", dir.display());
        return Finding::failure(&MODEL_FILES, what, cure);
    }
    Finding::ok(&MODEL_FILES, format!("{} is a checkpoint", dir.display()))
}

fn judge_memory(weights: u64, kv_bytes: u64, available: Option<u64>) -> Finding {
    let Some(available) = available else {
        return Finding::skipped(&MEMORY, "the system does not tell how much memory is free");
    };
    let needed = weights.saturating_add(kv_bytes);
    let what = format!(
        "weights {} MiB and cache {} MiB, {} MiB available",
        weights >> 20,
        kv_bytes >> 20,
        available >> 20
    );
    if needed > available {
        let room = available.saturating_sub(weights) / 2;
        let next = if room >> 20 > 0 {
            format!("--kv-bytes {}M, or a smaller model", room >> 20)
        } else {
            "a smaller model, or a larger machine".to_owned()
        };
        return Finding::failure(&MEMORY, what, next);
    }
    if needed > available / 10 * 9 {
        return Finding::warning(&MEMORY, what, "--kv-bytes with less");
    }
    Finding::ok(&MEMORY, what)
}

fn library_dirs() -> Vec<PathBuf> {
    let told = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let told = std::env::split_paths(&told).filter(|dir| !dir.as_os_str().is_empty());
    told.chain(LIBRARY_DIRS.iter().map(PathBuf::from)).collect()
}

/// Whether the GPU that the native engine shall have will do.
fn gpu(device: &str, probe: impl Fn(usize) -> Result<Found, Unavailable>) -> Finding {
    let ordinal = device.strip_prefix("cuda:").and_then(|number| number.parse().ok()).unwrap_or(0);
    match (probe(ordinal), device) {
        (Ok(found), _) => {
            let (major, minor) = found.capability;
            let hint = if device == "cpu" { "; --device cuda would compute there" } else { "" };
            Finding::ok(
                &CUDA,
                format!("GPU {ordinal}: {}, compute capability {major}.{minor}{hint}", found.name),
            )
        }
        (Err(why), "cpu") => Finding::ok(&CUDA, format!("computes on the CPU; {why}")),
        (Err(why), "auto") => Finding::warning(
            &CUDA,
            format!("computes on the CPU; {why}"),
            "what the message says, or --device cpu",
        ),
        (Err(why), _) => Finding::failure(&CUDA, why.to_string(), "--device cpu computes without"),
    }
}

fn cuda(dirs: &[PathBuf], is_vendors: bool) -> Finding {
    if let Some(dir) = dirs.iter().find(|dir| dir.join(CUDA_LIBRARY).exists()) {
        return Finding::ok(&CUDA, format!("{CUDA_LIBRARY} is in {}", dir.display()));
    }
    if is_vendors {
        return Finding::warning(
            &CUDA,
            format!("there is no {CUDA_LIBRARY}; an engine that needs a GPU will not open"),
            "install the GPU's driver, or --engine native for the CPU",
        );
    }
    Finding::ok(&CUDA, format!("no {CUDA_LIBRARY}; this engine needs none"))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn memory_is_judged_by_weights_and_cache() {
        let gib = |n: u64| n << 30;
        assert_eq!(judge_memory(gib(4), gib(1), Some(gib(16))).level, Level::Ok);
        assert_eq!(judge_memory(gib(14), gib(1), Some(gib(16))).level, Level::Warning);
        let short = judge_memory(gib(10), gib(8), Some(gib(16)));
        assert_eq!(short.level, Level::Failure);
        assert_eq!(short.next.as_deref(), Some("--kv-bytes 3072M, or a smaller model"));
        assert_eq!(judge_memory(gib(20), 0, Some(gib(16))).level, Level::Failure);
        assert_eq!(judge_memory(0, 0, None).level, Level::Skipped);
    }

    #[test]
    fn a_gpu_is_told_and_missed_where_it_is_wanted() {
        let none = |_| Err(Unavailable::NoDriver);
        let levels = ["cpu", "auto", "cuda", "cuda:1"].map(|device| gpu(device, none).level);
        assert_eq!(levels, [Level::Ok, Level::Warning, Level::Failure, Level::Failure]);
        let there = |ordinal| {
            let name = "a GPU".to_owned();
            let capability = (9, 0);
            Ok(Found { ordinal, name, capability, multiprocessors: 1, driver_version: 12_040 })
        };
        assert_eq!(gpu("cuda:1", there).level, Level::Ok);
        assert!(gpu("cpu", there).what.contains("--device cuda"));
    }

    #[test]
    fn a_missing_driver_matters_to_vendors_engines_alone() {
        let dir = tempfile::tempdir().expect("a scratch folder");
        let dirs = [dir.path().to_owned()];
        assert_eq!(cuda(&dirs, true).level, Level::Warning);
        assert_eq!(cuda(&dirs, false).level, Level::Ok);
        std::fs::write(dir.path().join(CUDA_LIBRARY), "").expect("room");
        assert_eq!(cuda(&dirs, true).level, Level::Ok);
    }
}
