//! House rules as tests: layers, file and function length, module docs, words that must not be in the tree.
//! The rules live in `tests/`; here is what they share.
#![forbid(unsafe_code)]

/// The platform of this build: only its packages are sure to be in cargo's cache.
#[must_use]
pub fn host() -> String {
    let out = std::process::Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8(out.stdout).expect("rustc prints UTF-8");
    let host = text.lines().find_map(|l| l.strip_prefix("host: ")).expect("rustc tells its host");
    host.to_owned()
}
