//! `mainstay demo` shows what it is for: with cache-aware routing, pins and transfers an agent finds what it wrote.

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::run_cli;

/// The percentages of a row of the demo's table, one per run.
fn percentages(table: &str, row: &str) -> Result<Vec<u64>> {
    let line = table.lines().find(|line| line.starts_with(row)).context("the row is there")?;
    let found = line.split('%').filter_map(|cell| cell.split_whitespace().last()?.parse().ok());
    Ok(found.collect())
}

#[test]
fn the_demo_finds_what_a_plain_fleet_loses() -> Result<()> {
    let (code, out, err) = run_cli(&["demo"])?;
    ensure!(code == 0, "{code}: {out}{err}");
    let achieved = percentages(&out, "hit rate achieved")?;
    let available = percentages(&out, "hit rate available")?;
    let (&[plain, with], &[_, most]) = (achieved.as_slice(), available.as_slice()) else {
        anyhow::bail!("two runs have two rates each: {out}");
    };
    // Four workers: a random one of them seldom is the one that has the history.
    ensure!(plain * 3 < most * 2, "{plain} of {most} % at random: {out}");
    ensure!(with * 10 >= most * 9, "{with} of {most} % by cache: {out}");
    let pins = out.lines().find(|line| line.starts_with("pins kept")).context("pins are told")?;
    ensure!(pins.ends_with("8 of 8"), "{out}");
    Ok(())
}
