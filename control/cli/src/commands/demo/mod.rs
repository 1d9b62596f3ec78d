//! `mainstay demo`: a whole cluster in one process, agents with tool pauses, and the same without help.
//!
//! Every role talks over loopback exactly as separate processes do. The first run places requests at random, makes
//! no pins and moves no blocks between workers, as a fleet does whose engines know nothing of each other; the second
//! routes by cache, keeps pins and transfers; both see the same agents and the same flood. Placing
//! in turn would be no baseline: with eight agents and four workers it often finds the same worker by accident.

mod agents;
mod cluster;
mod report;

use std::net::SocketAddr;

use mainstay_gateway::Policy;

use crate::output::print;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Members of the control plane
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=7))]
    members: u64,
    /// Workers, each with an engine of its own
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=16))]
    workers: u64,
    /// Agents
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=64))]
    agents: u64,
    /// Turns of each agent
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(2..=12))]
    turns: u64,
    /// Where the gateway listens; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Keep the cluster of the first run up at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// One of the two runs.
#[derive(Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) policy: Policy,
    pub(crate) pins: bool,
    /// Workers fetch blocks from each other.
    pub(crate) transfer: bool,
}

const WITH: Setting =
    Setting { name: "kv routing, pins", policy: Policy::Kv, pins: true, transfer: true };
const WITHOUT: Setting =
    Setting { name: "random, no pins", policy: Policy::Random, pins: false, transfer: false };

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    print(&format!(
        "mainstay demo: {} control members, {} workers (native engine, CPU, bundled 2.4 M parameter model), {} agents × {} turns",
        args.members, args.workers, args.agents, args.turns
    ));
    let mut results = Vec::new();
    for setting in [WITHOUT, WITH] {
        print(&format!("\n{}", setting.name));
        let cluster = cluster::Cluster::start(&args, setting).await?;
        print(&cluster.describe());
        let result = agents::run(&cluster, args.agents, args.turns, setting).await?;
        results.push(result);
        if args.keep && setting.pins {
            print(&report::table(&results));
            print(&format!(
                "\nThe cluster stays up: http://{} (Ctrl-C ends it)",
                cluster.address()
            ));
            super::asked_to_stop().await?;
            return cluster.stop().await;
        }
        cluster.stop().await?;
    }
    print(&report::table(&results));
    print("\nTry next: mainstay serve · mainstay pin ls · mainstay request explain last");
    Ok(())
}
