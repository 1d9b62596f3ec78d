//! The header against the mirror: a C compiler's view of every struct, constant and name.
//!
//! The program that asks is generated from the mirror's own tables, so a field missing in Rust shows
//! as a size that differs, and a field missing in C does not compile. Needs `gcc` and `g++`.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use mainstay_engine_abi::layout::{LAYOUT, STRUCTS};
use mainstay_engine_abi::sdk::{Code, RetentionClass, caps};
use mainstay_engine_abi::{limits, raw};

fn include_dir() -> PathBuf {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    Path::new(&here).join("include")
}

/// Compiles and runs a C program; returns what it printed.
fn run_c(source: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join("ask.c"), dir.path().join("ask"));
    std::fs::write(&file, source).unwrap();
    let built = Command::new("gcc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(include_dir())
        .arg(&file)
        .arg("-o")
        .arg(&program)
        .output()
        .expect("gcc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let ran = Command::new(&program).output().unwrap();
    assert!(ran.status.success());
    String::from_utf8(ran.stdout).unwrap()
}

const PROLOGUE: &str = "#include \"mainstay_engine.h\"\n#include <stdio.h>\nint main(void) {\n";

#[test]
fn every_size_and_offset_is_what_gcc_says() {
    let mut source = PROLOGUE.to_owned();
    let mut expected = String::new();
    for layout in STRUCTS {
        let name = layout.name;
        writeln!(source, "printf(\"{name} %zu\\n\", sizeof({name}));").unwrap();
        writeln!(expected, "{name} {}", layout.size).unwrap();
        for field in layout.fields {
            let f = field.name;
            writeln!(
                source,
                "printf(\"{name}.{f} %zu %zu\\n\", offsetof({name}, {f}), sizeof((({name} *)0)->{f}));"
            )
            .unwrap();
            writeln!(expected, "{name}.{f} {} {}", field.offset, field.size).unwrap();
        }
    }
    source.push_str("return 0; }\n");
    assert_eq!(run_c(&source), expected);
}

#[test]
fn every_constant_is_what_gcc_says() {
    let constants: &[(&str, i128)] = &[
        ("MSE_LAYOUT", i128::from(LAYOUT)),
        ("MSE_ABI_MAJOR", i128::from(raw::ABI_MAJOR)),
        ("MSE_ABI_MINOR", i128::from(raw::ABI_MINOR)),
        ("MSE_OK", i128::from(raw::OK)),
        ("MSE_E_INVALID", i128::from(Code::Invalid.rc())),
        ("MSE_E_NOT_FOUND", i128::from(Code::NotFound.rc())),
        ("MSE_E_EXISTS", i128::from(Code::Exists.rc())),
        ("MSE_E_EXHAUSTED", i128::from(Code::Exhausted.rc())),
        ("MSE_E_PRECONDITION", i128::from(Code::Precondition.rc())),
        ("MSE_E_UNIMPLEMENTED", i128::from(Code::Unimplemented.rc())),
        ("MSE_E_INTERNAL", i128::from(Code::Internal.rc())),
        ("MSE_E_UNAVAILABLE", i128::from(Code::Unavailable.rc())),
        ("MSE_E_TOO_NEW", i128::from(Code::TooNew.rc())),
        ("MSE_EXT_CRITICAL", i128::from(raw::EXT_CRITICAL)),
        ("MSE_ERR_FATAL", i128::from(raw::ERR_FATAL)),
        ("MSE_CAP_NAMESPACE", i128::from(caps::NAMESPACE)),
        ("MSE_CAP_KV_EVENTS", i128::from(caps::KV_EVENTS)),
        ("MSE_CAP_KV_SNAPSHOT", i128::from(caps::KV_SNAPSHOT)),
        ("MSE_CAP_PIN", i128::from(caps::PIN)),
        ("MSE_CAP_PRIORITY", i128::from(caps::PRIORITY)),
        ("MSE_CAP_RETENTION", i128::from(caps::RETENTION)),
        ("MSE_CAP_LOGPROBS", i128::from(caps::LOGPROBS)),
        ("MSE_CAP_CANONICAL_HASH", i128::from(caps::CANONICAL_HASH)),
        ("MSE_SAMPLING_SEED", i128::from(raw::SAMPLING_SEED)),
        ("MSE_SAMPLING_IGNORE_EOS", i128::from(raw::SAMPLING_IGNORE_EOS)),
        ("MSE_CAP_GUIDED", i128::from(caps::GUIDED)),
        ("MSE_CAP_TRANSFER", i128::from(caps::TRANSFER)),
        ("MSE_CAP_LEASE", i128::from(caps::LEASE)),
        ("MSE_LEASE_AMEND", i128::from(raw::LEASE_AMEND)),
        ("MSE_LEASE_RELEASE", i128::from(raw::LEASE_RELEASE)),
        ("MSE_LEASE_FINISH", i128::from(raw::LEASE_FINISH)),
        ("MSE_LEASE_COMPACT", i128::from(raw::LEASE_COMPACT)),
        ("MSE_LEASES_MAX", i128::from(limits::LEASES_MAX)),
        ("MSE_KIND_PLAIN", RetentionClass::Plain as i128),
        ("MSE_KIND_SYSTEM", RetentionClass::System as i128),
        ("MSE_KIND_TOOLS", RetentionClass::Tools as i128),
        ("MSE_KIND_HISTORY", RetentionClass::History as i128),
        ("MSE_KIND_USER_TURN", RetentionClass::UserTurn as i128),
        ("MSE_KIND_OUTPUT", RetentionClass::Output as i128),
        ("MSE_KIND_REASONING", RetentionClass::Reasoning as i128),
        ("MSE_KIND_SIDE", RetentionClass::Side as i128),
        ("MSE_CAP_RESUME", i128::from(caps::RESUME)),
        ("MSE_GUIDED_JSON_SCHEMA", i128::from(raw::GUIDED_JSON_SCHEMA)),
        ("MSE_GUIDED_REGEX", i128::from(raw::GUIDED_REGEX)),
        ("MSE_GUIDED_LARK", i128::from(raw::GUIDED_LARK)),
        ("MSE_LANE_OUT", i128::from(raw::LANE_OUT)),
        ("MSE_LANE_KV", i128::from(raw::LANE_KV)),
        ("MSE_LANE_OP", i128::from(raw::LANE_OP)),
        ("MSE_OUT_FIRST", i128::from(raw::OUT_FIRST)),
        ("MSE_OUT_FINAL", i128::from(raw::OUT_FINAL)),
        ("MSE_FINISH_NONE", i128::from(raw::FINISH_NONE)),
        ("MSE_FINISH_STOP", i128::from(raw::FINISH_STOP)),
        ("MSE_FINISH_LENGTH", i128::from(raw::FINISH_LENGTH)),
        ("MSE_FINISH_CANCELLED", i128::from(raw::FINISH_CANCELLED)),
        ("MSE_FINISH_ERROR", i128::from(raw::FINISH_ERROR)),
        ("MSE_KV_STORED", i128::from(raw::KV_STORED)),
        ("MSE_KV_REMOVED", i128::from(raw::KV_REMOVED)),
        ("MSE_KV_RESET", i128::from(raw::KV_RESET)),
        ("MSE_KV_PIN_EXPIRED", i128::from(raw::KV_PIN_EXPIRED)),
        ("MSE_KV_SNAPSHOT", i128::from(raw::KV_SNAPSHOT)),
        ("MSE_TIER_DEVICE", i128::from(mainstay_engine_abi::sdk::TIER_DEVICE)),
        ("MSE_TIER_HOST", i128::from(mainstay_engine_abi::sdk::TIER_HOST)),
        ("MSE_TIER_DISK", i128::from(mainstay_engine_abi::sdk::TIER_DISK)),
        ("MSE_TIER_REMOTE", i128::from(mainstay_engine_abi::sdk::TIER_REMOTE)),
        ("MSE_CAUSE_NONE", i128::from(raw::CAUSE_NONE)),
        ("MSE_CAUSE_CAPACITY", i128::from(raw::CAUSE_CAPACITY)),
        ("MSE_CAUSE_EXPIRY", i128::from(raw::CAUSE_EXPIRY)),
        ("MSE_CAUSE_LIFECYCLE", i128::from(raw::CAUSE_LIFECYCLE)),
        ("MSE_CAUSE_ADMIN", i128::from(raw::CAUSE_ADMIN)),
        ("MSE_AGE_POWERS", raw::AGE_POWERS as i128),
        ("MSE_CAUSES", raw::CAUSES as i128),
        ("MSE_AGES_TOLD", i128::from(raw::AGES_TOLD)),
        ("MSE_HEALTH_STARTING", i128::from(raw::HEALTH_STARTING)),
        ("MSE_HEALTH_OK", i128::from(raw::HEALTH_OK)),
        ("MSE_HEALTH_DRAINING", i128::from(raw::HEALTH_DRAINING)),
        ("MSE_HEALTH_FATAL", i128::from(raw::HEALTH_FATAL)),
        ("MSE_REQUEST_TOKENS_MAX", i128::from(limits::REQUEST_TOKENS_MAX)),
        ("MSE_RANGES_MAX", i128::from(limits::RANGES_MAX)),
        ("MSE_STOP_TOKENS_MAX", i128::from(limits::STOP_TOKENS_MAX)),
        ("MSE_LOGPROBS_MAX", i128::from(limits::LOGPROBS_MAX)),
        ("MSE_GUIDED_BYTES_MAX", i128::from(limits::GUIDED_BYTES_MAX)),
        ("MSE_PIN_BLOCKS_MAX", i128::from(limits::PIN_BLOCKS_MAX)),
        ("MSE_TRANSFER_BLOCKS_MAX", i128::from(limits::TRANSFER_BLOCKS_MAX)),
        ("MSE_TRANSFER_BYTES_MAX", i128::from(limits::TRANSFER_BYTES_MAX)),
        ("MSE_CONFIG_BYTES_MAX", i128::from(limits::CONFIG_BYTES_MAX)),
        ("MSE_STRING_BYTES_MAX", i128::from(limits::STRING_BYTES_MAX)),
        ("MSE_BATCH_ITEMS_MAX", i128::from(limits::BATCH_ITEMS_MAX)),
        ("MSE_BATCH_ENTRIES_MAX", i128::from(limits::BATCH_ENTRIES_MAX)),
        ("MSE_STRUCT_BYTES_MAX", i128::from(limits::STRUCT_BYTES_MAX)),
        ("MSE_EXT_NODES_MAX", limits::EXT_NODES_MAX as i128),
    ];
    let mut source = PROLOGUE.to_owned();
    let mut expected = String::new();
    for (name, value) in constants {
        // Hexadecimal of the 64-bit pattern serves signed and unsigned alike.
        writeln!(source, "printf(\"{name} %llx\\n\", (unsigned long long)({name}));").unwrap();
        writeln!(expected, "{name} {:x}", *value as u64).unwrap();
    }
    source.push_str("printf(\"%s\\n\", MSE_MAGIC);\nreturn 0; }\n");
    writeln!(expected, "{}", std::str::from_utf8(&raw::MAGIC).unwrap()).unwrap();
    assert_eq!(run_c(&source), expected, "the layout number in hex is {LAYOUT:#018x}");

    let header = std::fs::read_to_string(include_dir().join("mainstay_engine.h")).unwrap();
    for line in header.lines().filter_map(|line| line.strip_prefix("#define MSE_")) {
        let name = format!("MSE_{}", line.split(' ').next().unwrap());
        let is_number = !["MSE_MAGIC", "MSE_EXPORT"].contains(&name.as_str());
        let known = constants.iter().any(|(constant, _)| *constant == name);
        assert!(known || !is_number, "{name} of the header is not compared here");
    }
}

#[test]
fn every_struct_of_the_header_is_in_the_mirror() {
    let header = std::fs::read_to_string(include_dir().join("mainstay_engine.h")).unwrap();
    let mut found = 0;
    for rest in header.split("typedef struct ").skip(1) {
        let name = rest.split([' ', '{']).next().unwrap();
        let is_opaque = rest.split(';').next().unwrap().trim() == "mse_engine mse_engine";
        found += usize::from(!is_opaque);
        assert!(is_opaque || STRUCTS.iter().any(|s| s.name == name), "{name} is not mirrored");
    }
    assert_eq!(found, STRUCTS.len());
}

#[test]
fn the_header_is_clean_c_and_c_plus_plus() {
    for (compiler, language, standard) in
        [("gcc", "c", "-std=c11"), ("gcc", "c", "-std=c99"), ("g++", "c++", "-std=c++17")]
    {
        let checked = Command::new(compiler)
            .args(["-x", language, standard, "-Wall", "-Wextra", "-Wpadded", "-Werror"])
            .arg("-fsyntax-only")
            .arg(include_dir().join("mainstay_engine.h"))
            .output()
            .expect("the compiler runs");
        let said = String::from_utf8_lossy(&checked.stderr);
        // A header given as the main file draws no warning but those about its content.
        assert!(checked.status.success(), "{compiler} {standard}: {said}");
    }
}
