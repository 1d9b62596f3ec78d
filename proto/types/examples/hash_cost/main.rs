//! What naming a block costs, form against form: `cargo run --release -p mainstay-types --example hash_cost`.
//!
//! The measuring is in `rows.rs`, which takes its clock from outside; this file only prints. A first argument is the
//! number of rounds.

mod rows;

use rustix::time::{ClockId, clock_gettime};

fn thread_cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(200);
    println!("CPU time per block in ns, chains of {} blocks, {rounds} rounds", rows::BLOCKS);
    println!("{:<44} {:>6} {:>8} {:>8} {:>8}", "form", "tokens", "best", "median", "of plain");
    for row in rows::measure(thread_cpu_ns, rounds) {
        println!(
            "{:<44} {:>6} {:>8.2} {:>8.2} {:>7.2}x",
            row.form, row.block_tokens, row.best_ns, row.median_ns, row.of_plain
        );
    }
}
