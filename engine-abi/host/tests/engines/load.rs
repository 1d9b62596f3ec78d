//! Every way in which a file is not an engine for this host, in words an operator can act on.

use std::path::{Path, PathBuf};

use mainstay_engine_host::{LoadError, Source, open};

use crate::support::{c_echo, child, compile, run, rust_echo};

/// Opens a library in this process and in a child; both must say the same.
fn refused(path: &Path) -> LoadError {
    run(async {
        let here = open(Source::Library(path.to_path_buf()), "{}").await.err().unwrap();
        let there = open(child(Some(path.to_path_buf())), "{}").await.err().unwrap();
        assert_eq!(here, there);
        here
    })
}

fn says(error: &LoadError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

#[test]
fn a_file_that_is_not_there() {
    let error = refused(Path::new("nowhere/engine.so"));
    assert!(matches!(error, LoadError::FileMissing { .. }), "{error}");
    says(&error, &["no engine at nowhere/engine.so", "give the path"]);
}

#[test]
fn files_that_are_no_libraries() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let library = std::fs::read(c_echo().path).unwrap();
    let mut other_machine = library.clone();
    other_machine[18] = 40;
    let mut narrow = library.clone();
    narrow[4] = 1;
    let mut program = library.clone();
    program[16] = 2;
    let mut far_sections = library.clone();
    far_sections[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases: [(PathBuf, &str); 7] = [
        (
            file(
                "text.so",
                b"this is not an engine, but it is long enough to hold a header, really.",
            ),
            "does not begin as an ELF",
        ),
        (file("empty.so", b""), "does not begin as an ELF"),
        (file("machine.so", &other_machine), "another processor"),
        (file("narrow.so", &narrow), "64-bit"),
        (file("program.so", &program), "not a shared one"),
        (file("far.so", &far_sections), "truncated"),
        (folder.path().to_path_buf(), "is not a file"),
    ];
    for (path, words) in cases {
        let error = refused(&path);
        assert!(matches!(error, LoadError::NotALibrary { .. }), "{error}");
        says(&error, &["is not a shared library", words, "again"]);
    }
    for parts in 1..10 {
        let cut = library.len() * parts / 10;
        let error = refused(&file("cut.so", &library[..cut]));
        assert!(matches!(error, LoadError::NotALibrary { .. }), "cut at {cut}: {error}");
        says(&error, &["truncated at"]);
    }
}

#[test]
fn a_library_that_the_loader_refuses() {
    let engine = compile("echo.c", &["-Dfree=mainstay_no_such_function"]);
    let error = refused(&engine.path);
    assert!(matches!(error, LoadError::Refused { .. }), "{error}");
    says(&error, &["mainstay_no_such_function", "ldd"]);
}

#[test]
fn a_library_that_is_no_engine() {
    let error = refused(&compile("plain.c", &[]).path);
    assert!(matches!(error, LoadError::NotAnEngine { .. }), "{error}");
    says(&error, &["exports no mse_magic_v1", "mainstay_engine.h"]);
    let half = compile("echo.c", &["-Dmse_open_v1=mse_open_later"]);
    says(&refused(&half.path), &["exports no mse_open_v1"]);
}

#[test]
fn an_engine_of_another_version() {
    let by_magic = refused(&compile("echo.c", &["-DWRONG_MAJOR"]).path);
    assert!(matches!(by_magic, LoadError::OtherVersion { .. }), "{by_magic}");
    says(&by_magic, &["speaks engine ABI 7.0, this host 1.0"]);
    let by_symbol =
        compile("echo.c", &["-Dmse_magic_v1=mse_magic_v3", "-Dmse_open_v1=mse_open_v3"]);
    says(&refused(&by_symbol.path), &["speaks engine ABI 3.x, this host 1.0"]);
    let newer = refused(&compile("echo.c", &["-DHOST_TOO_OLD"]).path);
    says(&newer, &["speaks engine ABI 1.1, this host 1.0"]);
}

#[test]
fn an_engine_of_another_layout_or_kind() {
    let error = refused(&compile("echo.c", &["-DWRONG_LAYOUT"]).path);
    assert!(matches!(error, LoadError::OtherLayout { .. }), "{error}");
    says(&error, &["not built against engine ABI 1.0", "layout 0x", "rebuild"]);
    let error = refused(&compile("echo.c", &["-DWRONG_MAGIC"]).path);
    assert!(matches!(error, LoadError::OtherMagic { .. }), "{error}");
    says(&error, &["SOMETHNG"]);
    let error = refused(&compile("echo.c", &["-DNO_NAMESPACE"]).path);
    assert!(matches!(error, LoadError::MissingCapability { .. }), "{error}");
    says(&error, &["NAMESPACE", "tenants"]);
    let error = refused(&compile("echo.c", &["-DLYING_CAPS"]).path);
    assert!(matches!(error, LoadError::Contract { .. }), "{error}");
    says(&error, &["its pin does not agree with its capabilities"]);
}

#[test]
fn an_engine_that_can_not_start_says_why() {
    let engine = c_echo();
    run(async {
        for source in [
            Source::Library(engine.path.clone()),
            child(Some(engine.path.clone())),
            Source::Linked(rust_echo()),
            child(None),
        ] {
            let error = open(source, "fail").await.err().unwrap();
            assert!(matches!(error, LoadError::Create { .. }), "{error}");
            says(&error, &["did not start", "exhausted", "no memory for the weights"]);
        }
        let long = " ".repeat((1 << 20) + 1);
        for source in [Source::Linked(rust_echo()), child(None)] {
            let error = open(source, &long).await.err().unwrap();
            assert!(matches!(error, LoadError::ConfigTooLong { .. }), "{error}");
        }
    });
}

#[test]
fn a_child_that_is_no_child() {
    run(async {
        let open_with = async |program: &str, args: &[&str]| {
            let args = args.iter().map(|arg| (*arg).to_owned()).collect();
            let source = Source::Child { library: None, host_program: program.into(), args };
            open(source, "{}").await.err().unwrap()
        };
        let error = open_with("nowhere/mainstay", &[]).await;
        assert!(matches!(error, LoadError::ChildNotStarted { .. }), "{error}");
        let error = open_with("false", &[]).await;
        assert_eq!(error, LoadError::ChildCrashed { how: "exit code 1".into() });
        // It writes our own frame back, which is not what a child says.
        let error = open_with("sh", &["-c", "cat >&0"]).await;
        assert!(
            matches!(error, LoadError::ChildProtocol { .. } | LoadError::ChildCrashed { .. }),
            "{error}"
        );
    });
}
