//! Each published minor of the ABI against the header of today: what was published is still there, as it was.
//!
//! A plain reading of both files, comments aside: macros keep their values, a struct with a header begins with the very
//! members it had and another one has them and no more, functions and other types keep their declarations. What a compiler sees of them is [`header`](header.rs)'s affair.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mainstay_engine_abi::layout::PUBLISHED;
use mainstay_engine_abi::raw::{ABI_MAJOR, ABI_MINOR};

/// What changes from minor to minor.
const MOVING: [&str; 2] = ["MSE_ABI_MINOR", "MSE_LAYOUT"];

/// A header's promises.
#[derive(Debug, Default, PartialEq, Eq)]
struct Promises {
    macros: BTreeMap<String, String>,
    /// Members by struct, in order.
    structs: BTreeMap<String, Vec<String>>,
    others: Vec<String>,
}

fn without_comments(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("/*") {
        plain.push_str(before);
        plain.push(' ');
        rest = after.split_once("*/").expect("a comment ends").1;
    }
    plain + rest
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn read(header: &str) -> Promises {
    let mut promises = Promises::default();
    let mut code = String::new();
    for line in without_comments(header).lines() {
        match line.trim_start().strip_prefix("#define ") {
            Some(definition) => {
                let (name, value) = definition.split_once(' ').unwrap_or((definition, ""));
                promises.macros.insert(name.to_owned(), one_line(value));
            }
            None if line.trim_start().starts_with('#') => {}
            None => code.push_str(&format!("{line}\n")),
        }
    }
    let mut rest = code.as_str();
    while let Some(end) = rest.find(';') {
        let body = rest.find('{').filter(|at| *at < end && rest[..*at].contains("struct"));
        let Some(open) = body else {
            promises.others.push(one_line(&rest[..end]));
            rest = &rest[end + 1..];
            continue;
        };
        let (members, after) = rest[open + 1..].split_once('}').expect("a struct ends");
        let name = one_line(after.split_once(';').expect("a struct has a name").0);
        let members = members.split(';').map(one_line).filter(|member| !member.is_empty());
        promises.structs.insert(name, members.collect());
        rest = after.split_once(';').expect("as above").1;
    }
    promises
}

/// What of `before` is not kept by `now`.
fn broken(before: &Promises, now: &Promises) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in before.macros.iter().filter(|(name, _)| !MOVING.contains(&name.as_str())) {
        if now.macros.get(name) != Some(value) {
            found.push(format!("{name} was {value}, is {:?}", now.macros.get(name)));
        }
    }
    for (name, members) in &before.structs {
        let has = now.structs.get(name).map_or(&[][..], Vec::as_slice);
        let grows = members.first().is_some_and(|first| first == "mse_hdr h");
        if !has.starts_with(members) || (!grows && has.len() > members.len()) {
            found.push(format!("{name} was {members:?}, is {has:?}"));
        }
    }
    let gone = before.others.iter().filter(|other| !now.others.contains(other));
    found.extend(gone.map(|other| format!("`{other}` is gone")));
    found
}

fn folder() -> PathBuf {
    PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test"))
}

fn header(path: &Path) -> Promises {
    read(
        &std::fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    )
}

fn published(minor: u32) -> Promises {
    let file = format!("tests/frozen/mainstay_engine_{ABI_MAJOR}.{minor}.h");
    header(&folder().join(file))
}

#[test]
fn what_was_published_is_kept() {
    let now = header(&folder().join("include/mainstay_engine.h"));
    for minor in 0..=ABI_MINOR {
        let before = published(minor);
        assert!(before.structs.len() > 20 && before.macros.len() > 90 && before.others.len() >= 4);
        assert_eq!(broken(&before, &now), Vec::<String>::new(), "minor {minor}");
        let layout = format!("{:#018x}ull", PUBLISHED[minor as usize]);
        assert_eq!(before.macros["MSE_LAYOUT"], layout, "minor {minor}");
    }
    assert_eq!(published(ABI_MINOR), now, "what changes the present header is a new minor");
}

#[test]
fn breaks_are_found_and_growth_is_none() {
    let text = std::fs::read_to_string(folder().join("include/mainstay_engine.h")).unwrap();
    let before = read(&text);
    let says = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        broken(&before, &read(&text.replacen(from, to, 1)))
    };
    for (from, to, word) in [
        ("#define MSE_CAP_PIN (1ull << 3)", "#define MSE_CAP_PIN (1ull << 30)", "MSE_CAP_PIN was"),
        ("#define MSE_KV_RESET 3u", "", "MSE_KV_RESET was"),
        ("uint32_t start, end;", "uint32_t end, start;", "mse_range was"),
        ("int32_t top_k;", "int64_t top_k;", "mse_sampling was"),
        ("uint64_t ttl_ms;", "", "mse_pin was"),
        ("uint64_t ttl_ms;", "uint64_t grace_ms; uint64_t ttl_ms;", "mse_pin was"),
        ("uint64_t id);", "uint32_t id);", "mse_vtable was"),
        ("} mse_ages;", "uint64_t more; } mse_ages;", "mse_ages was"),
        ("} mse_out;", "  uint64_t more; } mse_out;", "mse_out was"),
        ("} mse_magic;", "  uint64_t more; } mse_magic;", "mse_magic was"),
        ("typedef int32_t mse_rc;", "typedef int64_t mse_rc;", "is gone"),
        ("mse_magic_v1(void)", "mse_magic_v2(void)", "is gone"),
    ] {
        let found = says(from, to);
        assert!(found.iter().any(|line| line.contains(word)), "{from}: {found:?}");
    }
    for (from, to) in [
        ("#define MSE_KV_RESET 3u", "#define MSE_KV_RESET 3u\n#define MSE_KV_NEW 5u"),
        ("#define MSE_ABI_MINOR 0u", "#define MSE_ABI_MINOR 1u"),
        ("} mse_pin;", "  uint64_t grace_ms; } mse_pin;"),
        ("} mse_vtable;", "  mse_rc (*added)(mse_engine *); } mse_vtable;"),
        (
            "typedef int32_t mse_rc;",
            "typedef int32_t mse_rc; /* else */ typedef struct mse_new { int n; } mse_new;",
        ),
        ("/* index in this output */", "/* other words; and a ; in them */"),
    ] {
        assert_eq!(says(from, to), Vec::<String>::new(), "{from}");
    }
}
