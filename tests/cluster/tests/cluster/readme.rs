//! The commands of the README and of the book, run as a reader would run them.
//!
//! A command in a document rots silently, so every fence with commands says what is to be done with it: `sh server` starts
//! roles that run until the next such block (`sh server beside` adds to them), `sh test` runs to its end against them (or against a fresh `mainstay serve`),
//! `sh stopped` once these have been asked to end, and `sh norun: WHY` is not run, of which there may be only so many. A fence without an end, or of an unknown kind,
//! fails. What the README shows beyond that may only build and install; the paths and links that it names must lead
//! somewhere. Links of the book are looked at by `tests/tidy`.

use anyhow::{Result, ensure};

use crate::fences::{Block, Stage, blocks, read, root};

const README: &str = "README.md";
/// Folders and pages of the book whose commands are run. The others have none, or are printed by the program.
const BOOK: [&str; 6] = [
    "docs/start",
    "docs/operate",
    "docs/operate/deploy",
    "docs/runbooks",
    "docs/engines",
    "docs/reference",
];
/// Blocks of the book that nobody runs. Raise it only for what can't be run here, and say why in the fence.
const NORUN: usize = 17;
/// Kinds of fences without commands.
const OTHERS: [&str; 5] = ["text", "python", "json", "toml", "c"];

/// Whether a reader without a server may type this line.
fn is_offline(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["make" | "cd", ..] | ["git", "clone", ..] | ["pip", "install", ..] => true,
        [program, ..] => program.starts_with("python"),
        [] => true,
    }
}

/// Runs what a document has to be run; answers with what it printed, and how many blocks there were.
fn play(document: &str) -> Result<(String, usize)> {
    let (mut stage, mut printed, mut count) = (Stage::new()?, String::new(), 0);
    for block in blocks(document)? {
        match block.info.as_str() {
            "sh server" => stage.serve(&block, false)?,
            "sh server beside" => stage.serve(&block, true)?,
            "sh stopped" => {
                stage.stop()?;
                printed.push_str(&stage.run(&block)?);
                count += 1;
            }
            "sh test" => {
                if !stage.serves() {
                    let info = String::new();
                    let text = "mainstay serve\n".to_owned();
                    stage.serve(&Block { place: block.place.clone(), info, text }, false)?;
                }
                printed.push_str(&stage.run(&block)?);
                count += 1;
            }
            _ => {}
        }
    }
    Ok((printed, count))
}

/// The pages of a folder.
fn pages(folder: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(folder))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") {
            found.push(format!("{folder}/{name}"));
        }
    }
    ensure!(!found.is_empty(), "{folder} has no page");
    found.sort();
    Ok(found)
}

/// Runs all pages of a folder; at least so many blocks are expected.
fn folder(folder: &str, least: usize) -> Result<()> {
    let mut ran = 0;
    for page in pages(folder)? {
        ran += play(&page)?.1;
    }
    ensure!(ran >= least, "{folder} has only {ran} blocks that are run, not {least}");
    Ok(())
}

#[test]
fn the_commands_of_the_readme_work() -> Result<()> {
    let (printed, count) = play(README)?;
    assert!(count >= 4, "the README has only {count} blocks that can be tested");
    // The blocks would also pass if nobody answered anything, so a few words of the answers are looked for.
    for word in [
        "chat.completion",
        "output_text",
        "message_stop",
        "leader m1",
        "\"object\": \"pin\"",
        "lease_expired",
    ] {
        assert!(
            printed.contains(word),
            "no {word:?} in what the README's commands print:\n{printed}"
        );
    }
    Ok(())
}

#[test]
fn the_commands_of_the_first_steps_work() -> Result<()> {
    folder("docs/start", 6)
}

#[test]
fn the_commands_of_operating_work() -> Result<()> {
    folder("docs/operate", 6)?;
    folder("docs/operate/deploy", 1)
}

#[test]
fn the_commands_of_runbooks_work() -> Result<()> {
    folder("docs/runbooks", 10)
}

#[test]
fn the_commands_about_engines_work() -> Result<()> {
    folder("docs/engines", 2)
}

#[test]
fn the_commands_of_the_reference_work() -> Result<()> {
    folder("docs/reference", 1)
}

#[test]
fn other_commands_of_the_readme_only_build_and_install() -> Result<()> {
    for block in blocks(README)? {
        let kind = block.info.split_whitespace().next().unwrap_or_default();
        if kind != "sh" {
            ensure!(OTHERS.contains(&kind), "{}: commands go into `sh`, not {kind:?}", block.place);
            continue;
        }
        match block.info.as_str() {
            "sh test" | "sh server" | "sh server beside" => {}
            "sh" => {
                let odd = block.text.lines().find(|line| !is_offline(line));
                ensure!(odd.is_none(), "{}: mark it with `test`: {odd:?}", block.place);
            }
            info => anyhow::bail!("{}: unknown kind {info:?}", block.place),
        }
    }
    Ok(())
}

#[test]
fn every_block_of_the_book_says_what_is_done_with_it() -> Result<()> {
    let mut unrun = Vec::new();
    for folder in BOOK {
        for block in pages(folder)?.iter().map(|page| blocks(page)).collect::<Result<Vec<_>>>()? {
            for block in block {
                let kind = block.info.split_whitespace().next().unwrap_or_default();
                match block.info.strip_prefix("sh norun:") {
                    Some(why) => {
                        ensure!(why.split_whitespace().count() >= 3, "{}: why?", block.place);
                        unrun.push(block.place);
                    }
                    None => ensure!(
                        matches!(
                            block.info.as_str(),
                            "sh test" | "sh stopped" | "sh server" | "sh server beside"
                        ) || OTHERS.contains(&kind),
                        "{}: {:?} is neither run nor said why not",
                        block.place,
                        block.info
                    ),
                }
            }
        }
    }
    assert_eq!(unrun.len(), NORUN, "blocks that nobody runs, each with a reason: {unrun:#?}");
    Ok(())
}

/// The paths in backticks in the first column of the table below a heading.
fn table_paths(text: &str, heading: &str) -> Vec<String> {
    let section = text.lines().skip_while(|line| *line != heading).skip(1);
    let section = section.take_while(|line| !line.starts_with("## "));
    let cells = section.filter_map(|line| line.strip_prefix('|')?.split('|').next());
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[test]
fn the_places_that_the_readme_names_exist() -> Result<()> {
    let paths = table_paths(&read(README)?, "## Where things are");
    ensure!(paths.len() >= 10, "only {} paths were found: {paths:?}", paths.len());
    let missing: Vec<&String> = paths.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "the README names what is not there: {missing:?}");
    Ok(())
}
