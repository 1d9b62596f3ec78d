//! Compiles the bridge to TensorRT-LLM's Executor: against our own declarations and with the double of it where the
//! feature `double` asks for that; against NVIDIA's headers where TRTLLM_ROOT is set; not at all else.

use std::path::{Path, PathBuf};

/// Where a source tree, a container or an installation of TensorRT-LLM has its parts, below its root.
const INCLUDES: &[&str] = &["cpp/include", "include"];
const LIBRARY_DIRS: &[&str] =
    &["cpp/build/tensorrt_llm", "cpp/build/tensorrt_llm/plugins", "lib", "libs", "lib64"];
const LIBRARIES: &[&str] = &["tensorrt_llm", "nvinfer_plugin_tensorrt_llm"];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(trtllm_linked)");
    for name in ["TRTLLM_ROOT", "TRTLLM_LIB_DIR", "CUDA_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let root = std::env::var("TRTLLM_ROOT").ok().filter(|root| !root.is_empty());
    if std::env::var_os("CARGO_FEATURE_DOUBLE").is_some() {
        compile(&[PathBuf::from("include")]);
        double();
    } else if let Some(root) = root {
        let root = PathBuf::from(root);
        compile(&headers(&root));
        link(&root);
    } else {
        return;
    }
    println!("cargo::rustc-cfg=trtllm_linked");
}

fn compiler(build: &mut cc::Build, includes: &[PathBuf]) {
    build.std("c++17").includes(includes).flag("-Wno-unused-parameter");
}

/// The bridge, as an archive of its own: its symbols are what the manifest is made of.
fn compile(includes: &[PathBuf]) {
    let mut build = cxx_build::bridge("src/bridge.rs");
    compiler(build.file("src/shim.cc"), includes);
    build.compile("mainstay_trtllm_shim");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo::rustc-env=TRTLLM_SHIM={out}/libmainstay_trtllm_shim.a");
    for path in ["src/bridge.rs", "src/shim.h", "src/shim.cc", "include"] {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// The executor that computes nothing.
fn double() {
    let mut build = cc::Build::new();
    build.cpp(true).files(["double/api.cc", "double/cache.cc", "double/executor.cc"]);
    compiler(&mut build, &[PathBuf::from("include")]);
    build.compile("mainstay_trtllm_double");
    println!("cargo::rerun-if-changed=double");
}

fn headers(root: &Path) -> Vec<PathBuf> {
    let found = INCLUDES.iter().map(|part| root.join(part));
    let found = found.filter(|dir| dir.join("tensorrt_llm/executor/executor.h").is_file());
    let mut includes: Vec<PathBuf> = found.collect();
    assert!(
        !includes.is_empty(),
        "no tensorrt_llm/executor/executor.h below {}/cpp/include or {}/include; set TRTLLM_ROOT to a tree of \
         TensorRT-LLM 1.2 (later ones have no C++ executor: serve by its server, --upstream)",
        root.display(),
        root.display()
    );
    let cuda = std::env::var("CUDA_HOME").unwrap_or_else(|_| "/usr/local/cuda".to_owned());
    includes.push(Path::new(&cuda).join("include"));
    includes
}

fn link(root: &Path) {
    let own = std::env::var_os("TRTLLM_LIB_DIR").map(PathBuf::from);
    let usual = LIBRARY_DIRS.iter().map(|part| root.join(part));
    // Without them the bridge can be checked (`cargo check`), and not linked: the linker says what is missing.
    for dir in own.into_iter().chain(usual).filter(|dir| dir.is_dir()) {
        println!("cargo::rustc-link-search=native={}", dir.display());
    }
    for library in LIBRARIES {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
}
