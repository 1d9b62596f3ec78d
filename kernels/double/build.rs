//! Compiles the double of the CUDA driver, and every kernel for the emulator, into one library.

use std::path::Path;

const SOURCES: [&str; 3] = ["driver.cc", "fibers.cc", "table.cc"];

fn main() {
    for watched in [
        "build.rs",
        "driver.cc",
        "fibers.cc",
        "fibers.h",
        "emulate.h",
        "table.cc",
        "table.h",
        "../cuda",
    ] {
        println!("cargo::rerun-if-changed={watched}");
    }
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let library = Path::new(&out).join("libcuda.so");
    println!("cargo::rustc-env=MAINSTAY_CUDA_DOUBLE={}", library.display());
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        // Fibers are switched by hand; elsewhere `load` says so.
        return;
    }
    let mut command = cc::Build::new().cpp(true).opt_level(2).get_compiler().to_command();
    // Its own name is what cudarc looks for, so that who loads it by its path finds it by that name afterwards.
    command.args([
        "-std=c++17",
        "-O2",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-Wl,-soname,libcuda.so",
    ]);
    command.args([
        "-DMAINSTAY_EMULATE",
        "-I.",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-x",
        "c++",
    ]);
    // No sum of a product is joined with an addition behind the kernels' back, as they ask a GPU's compiler, too.
    command.arg("-ffp-contract=off").args(SOURCES).arg("-o").arg(&library);
    let status = command.status().expect("a C++ compiler runs");
    assert!(status.success(), "the double of the CUDA driver does not compile: {command:?}");
}
