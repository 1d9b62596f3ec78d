//! Bandwidth of the tiers at block granularity, beside what the machine itself gives: the disk read and written in
//! order past the page cache (by `fio` where it is installed, by a loop of ours always), memory by `memcpy`.
//!
//! `tier_speed FOLDER [BLOCK_KIB] [GIB] [THREADS]`. Rounds of all of them follow each other; medians are printed.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use aligned_vec::{AVec, ConstAlign};
use anyhow::{Context, ensure};
use mainstay_tier::{
    BlockKey, DiskSettings, DiskTier, Get, HostSettings, HostTier, Layout, Put, Record, Retention,
    sum,
};
use mainstay_types::{NamespaceId, SequenceHash};

const ROUNDS: usize = 9;
const RAW_BYTES: usize = 2 << 20;

/// What is held against what, in the same round: a shared disk changes its speed by the minute.
const RATIOS: [(&str, &str); 7] = [
    ("disk tier: put", "disk, loop: write"),
    ("disk tier: put", "disk, fio: write"),
    ("disk tier: get", "disk, loop: read"),
    ("disk tier: get", "disk, fio: read"),
    ("host tier: put", "memcpy: in"),
    ("host tier: get", "memcpy: out"),
    ("host tier: get, checked", "memcpy: out"),
];

#[derive(Clone, Copy)]
struct Shape {
    block_bytes: usize,
    blocks: u64,
    threads: u64,
}

impl Shape {
    fn gbs(self, seconds: f64) -> f64 {
        self.block_bytes as f64 * self.blocks as f64 / seconds / 1e9
    }

    /// The share of a thread: a stretch of its own, as of a prompt that is read beside others.
    fn share(self, thread: u64) -> std::ops::Range<u64> {
        self.blocks * thread / self.threads..self.blocks * (thread + 1) / self.threads
    }

    fn record<'a>(self, layout: &Layout, number: u64, payload: &'a [u8], sum: u64) -> Record<'a> {
        Record {
            key: key(layout, number),
            parent: SequenceHash(u128::from(number)),
            retention: Retention::default(),
            payload,
            sum: Some(sum),
        }
    }
}

fn key(layout: &Layout, number: u64) -> BlockKey {
    let hash = SequenceHash(u128::from(number) + 1);
    BlockKey { namespace: NamespaceId(1), hash, layout: layout.id }
}

/// Runs a share of the numbers on each thread; the time of all.
fn timed(
    shape: Shape,
    work: impl Fn(std::ops::Range<u64>) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    let ends: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..shape.threads)
            .map(|thread| {
                let work = &work;
                scope.spawn(move || work(shape.share(thread)))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    });
    ends.into_iter().collect::<anyhow::Result<()>>()?;
    Ok(start.elapsed().as_secs_f64())
}

/// The disk in order: each thread a stretch of one file.
fn raw(path: &Path, shape: Shape, write: bool) -> anyhow::Result<f64> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(direct)
        .open(path)?;
    let pieces = shape.block_bytes as u64 * shape.blocks / RAW_BYTES as u64;
    let shape = Shape { block_bytes: RAW_BYTES, blocks: pieces, ..shape };
    let seconds = timed(shape, |share| {
        let mut buffer: AVec<u8, ConstAlign<4096>> = AVec::with_capacity(4096, RAW_BYTES);
        buffer.resize(RAW_BYTES, share.start as u8 + 1);
        for piece in share {
            let at = piece * RAW_BYTES as u64;
            if write {
                file.write_all_at(&buffer, at)?
            } else {
                file.read_exact_at(&mut buffer, at)?
            }
        }
        if write {
            file.sync_data()?;
        }
        Ok(())
    })?;
    Ok(shape.gbs(seconds))
}

/// The disk by `fio`, if it is there.
fn fio(path: &Path, shape: Shape, write: bool) -> Option<f64> {
    let output = Command::new("fio")
        .args(["--name=tier", "--direct=1", "--bs=2M", "--ioengine=psync", "--thread"])
        .args(["--group_reporting", "--output-format=terse", "--terse-version=3"])
        .arg(format!("--numjobs={}", shape.threads))
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--size={}", shape.block_bytes as u64 * shape.blocks / shape.threads))
        .arg(format!(
            "--offset_increment={}",
            shape.block_bytes as u64 * shape.blocks / shape.threads
        ))
        .arg(if write { "--rw=write" } else { "--rw=read" })
        .args(write.then_some("--end_fsync=1"))
        .output()
        .ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    let kib: f64 = line.split(';').nth(if write { 47 } else { 6 })?.parse().ok()?;
    Some(kib * 1024.0 / 1e9)
}

fn disk(folder: &Path, layout: Layout, shape: Shape) -> anyhow::Result<[f64; 2]> {
    let slot_bytes = (shape.block_bytes + 128).next_multiple_of(4096) as u64;
    let settings = DiskSettings::new(folder.join("tier"), slot_bytes * shape.blocks);
    let tier = DiskTier::open(layout, settings, 0)?;
    let payload = vec![7; shape.block_bytes];
    let known = sum(&payload);
    let write = timed(shape, |share| {
        for number in share {
            let put = tier.put(&shape.record(&layout, number, &payload, known), 0)?;
            ensure!(put == Put::Stored, "block {number}: {put:?}");
        }
        ensure!(tier.flush(0), "the flush failed");
        Ok(())
    })?;
    let read = timed(shape, |share| {
        // As of a prompt: its blocks are asked for together, large ones one by one.
        let run = (RAW_BYTES / shape.block_bytes).max(1) as u64;
        let mut into = vec![0; shape.block_bytes * run as usize];
        for first in share.clone().step_by(run as usize) {
            let keys: Vec<BlockKey> =
                (first..(first + run).min(share.end)).map(|n| key(&layout, n)).collect();
            let told = tier.get_run(&keys, &mut into[..keys.len() * shape.block_bytes], 0)?;
            ensure!(told.len() == keys.len(), "block {first}: {} of {}", told.len(), keys.len());
        }
        Ok(())
    })?;
    for number in 0..shape.blocks {
        tier.remove(&key(&layout, number));
    }
    ensure!(tier.flush(0), "the flush failed");
    Ok([shape.gbs(write), shape.gbs(read)])
}

/// `memcpy` between the caller's block and as many places as the tier has, then the tier with and without sums.
fn host(layout: Layout, shape: Shape) -> anyhow::Result<[f64; 5]> {
    let mut payload = vec![7; shape.block_bytes];
    let known = sum(&payload);
    let stride = shape.block_bytes.next_multiple_of(4096);
    let mut plain = vec![1; stride * shape.blocks as usize];
    let start = Instant::now();
    for place in plain.chunks_exact_mut(stride) {
        place[..shape.block_bytes].copy_from_slice(std::hint::black_box(&payload));
    }
    let copy_in = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for place in plain.chunks_exact(stride) {
        payload.copy_from_slice(std::hint::black_box(&place[..shape.block_bytes]));
        std::hint::black_box(&mut payload);
    }
    let copy_out = start.elapsed().as_secs_f64();
    drop(plain);
    let mut times = [copy_in, copy_out, 0.0, 0.0, 0.0];
    for (check_reads, at) in [(false, 3), (true, 4)] {
        let budget_bytes = stride as u64 * shape.blocks;
        let tier = HostTier::new(layout, HostSettings { budget_bytes, check_reads })?;
        let start = Instant::now();
        for number in 0..shape.blocks {
            let put = tier.put(&shape.record(&layout, number, &payload, known), 0)?;
            ensure!(put == Put::Stored, "block {number}: {put:?}");
        }
        times[2] = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for number in 0..shape.blocks {
            let got = tier.get(&key(&layout, number), &mut payload)?;
            ensure!(matches!(got, Get::Hit(_)), "block {number}: {got:?}");
        }
        times[at] = start.elapsed().as_secs_f64();
    }
    Ok(times.map(|seconds| shape.gbs(seconds)))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let folder = words.next().context("tier_speed FOLDER [BLOCK_KIB] [GIB] [THREADS]")?;
    let folder = Path::new(&folder);
    let mut number = |default: u64| words.next().map_or(Ok(default), |word| word.parse());
    let block_bytes = number(2048)? as usize * 1024;
    let total_bytes = (number(2)?) << 30;
    let threads = number(4)?;
    let shape = Shape { block_bytes, blocks: total_bytes / block_bytes as u64, threads };
    let layout = Layout::new("m", "r", "bf16", "plain", 16, block_bytes as u32)?;
    std::fs::create_dir_all(folder)?;
    let scratch = folder.join("raw");
    let mut rows: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut note = |name: &'static str, value: f64| match rows.iter_mut().find(|r| r.0 == name) {
        Some(row) => row.1.push(value),
        None => rows.push((name, vec![value])),
    };
    raw(&scratch, shape, true)?;
    for _ in 0..ROUNDS {
        note("disk, loop: write", raw(&scratch, shape, true)?);
        note("disk, loop: read", raw(&scratch, shape, false)?);
        if let (Some(write), Some(read)) = (fio(&scratch, shape, true), fio(&scratch, shape, false))
        {
            note("disk, fio: write", write);
            note("disk, fio: read", read);
        }
        let [write, read] = disk(folder, layout, shape)?;
        note("disk tier: put", write);
        note("disk tier: get", read);
        let names = [
            "memcpy: in",
            "memcpy: out",
            "host tier: put",
            "host tier: get",
            "host tier: get, checked",
        ];
        for (name, value) in names.into_iter().zip(host(layout, shape)?) {
            note(name, value);
        }
    }
    println!(
        "blocks of {} KiB, {} of them, {threads} threads on the disk, one on memory; GB/s, medians of {ROUNDS}",
        block_bytes >> 10,
        shape.blocks
    );
    let of = |name: &str| rows.iter().find(|row| row.0 == name).map(|row| row.1.as_slice());
    for (name, beside) in RATIOS {
        if let (Some(ours), Some(theirs)) = (of(name), of(beside)) {
            let ratios = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
            println!("{name} / {beside}: {:.2}, the median of the rounds", median(ratios));
        }
    }
    for (name, values) in rows {
        let (least, most) =
            values.iter().fold((f64::MAX, 0.0f64), |(a, b), v| (a.min(*v), b.max(*v)));
        println!("{name:<26}{:>8.2}   ({least:.2} to {most:.2})", median(values));
    }
    std::fs::remove_file(scratch)?;
    Ok(())
}
