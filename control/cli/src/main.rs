//! The `mainstay` binary: the only place that sees every part and puts roles together.
#![forbid(unsafe_code)]

mod commands;
mod config;
mod doctor;
mod http;
mod logging;
mod monitoring;
mod output;
mod profiling;
mod settings;
mod watching;
mod weights;

use clap::{Parser, Subcommand};

/// Frames of blocks are large buffers that live for a millisecond; the system's allocator returns each to the kernel
/// and faults it in again. This one keeps pages for some seconds and gives back what is not used. `.cargo/config.toml`
/// has its settings.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Serves LLM inference to agents: KV-aware routing and cache pins that the cluster keeps.
#[derive(Parser)]
#[command(name = "mainstay", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  mainstay demo                       a whole cluster and agent traffic, with and without Mainstay's help
  mainstay serve                      the bundled model on http://127.0.0.1:8000
  mainstay serve ./Qwen3-0.6B         your own checkpoint
  mainstay pin ls                     what is pinned, and for how long";

#[derive(Subcommand)]
enum Command {
    /// Serve a model: control plane, gateway, worker and engine in one process
    Serve(commands::serve::Args),
    /// Run a whole cluster with agent traffic and compare
    Demo(commands::demo::Args),
    /// Run a control member, or look after the members
    Control(Box<commands::control::Args>),
    /// Run a gateway
    Gateway(commands::gateway::Args),
    /// Run a worker
    Worker(commands::worker::Args),
    /// Make, list and end pins
    Pin(commands::pin::Args),
    /// Where blocks are
    Block(commands::block::Args),
    /// Sessions: how they stand, and what there is to say of one
    Session(commands::session::Args),
    /// Tenants: quotas and keys
    Tenant(commands::tenant::Args),
    /// One screen about the cluster
    Status(commands::status::Args),
    /// The cluster, live in a terminal
    Top(commands::top::Args),
    /// Why a request went where it went
    Request(commands::request::Args),
    /// Compare routing policies on a trace, over modelled engines, in virtual time
    Replay(Box<commands::replay::Args>),
    /// Put an engine to the test
    Engine(commands::engine_check::Args),
    /// What recorded traffic says
    Trace(commands::trace::Args),
    /// What roles are started with: a file, the environment and flags
    Config(commands::config::Args),
    /// What is wrong with this machine, a role's settings, or a cluster, and what to type
    Doctor(Box<commands::doctor::Args>),
    /// What support asks for, in one folder, without secrets or prompts
    Bundle(commands::bundle::Args),
    /// Print completions for a shell
    Completions(commands::reference::CompletionsArgs),
    /// Print a page of the reference, or write man pages
    Reference(commands::reference::Args),
    /// Measure
    Bench(commands::bench::Args),
    /// The process that isolates a vendor's engine; started by a worker
    #[command(hide = true)]
    EngineChild,
}

fn main() -> std::process::ExitCode {
    match settings::parse::<Cli>().and_then(|cli| run(cli.command)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", output::chain(&error));
            std::process::ExitCode::from(output::exit_code(&error))
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    // The engine's child speaks on its standard streams and needs no runtime.
    if let Command::EngineChild = command {
        return Ok(mainstay_engine_host::child::run()?);
    }
    // Nor do cases of the conformance kit, which count the threads of their process.
    if let Command::Engine(args) = command {
        return commands::engine_check::run(&args);
    }
    match &command {
        Command::Config(args) => return commands::config::run(args),
        Command::Completions(args) => return commands::reference::completions(args),
        Command::Reference(args) => return commands::reference::run(args),
        _ => {}
    }
    // Nor does what happens in virtual time.
    if let Command::Replay(args) = command {
        return commands::replay::run(&args);
    }
    logging::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match command {
            Command::Serve(args) => commands::serve::run(args).await,
            Command::Demo(args) => commands::demo::run(args).await,
            Command::Control(args) => commands::control::run(*args).await,
            Command::Gateway(args) => commands::gateway::run(args).await,
            Command::Worker(args) => commands::worker::run(args).await,
            Command::Pin(args) => commands::pin::run(args).await,
            Command::Block(args) => commands::block::run(args).await,
            Command::Session(args) => commands::session::run(args).await,
            Command::Tenant(args) => commands::tenant::run(args).await,
            Command::Status(args) => commands::status::run(args).await,
            Command::Top(args) => commands::top::run(args).await,
            Command::Request(args) => commands::request::run(args).await,
            Command::Trace(args) => commands::trace::run(args).await,
            Command::Doctor(args) => commands::doctor::run(*args).await,
            Command::Bundle(args) => commands::bundle::run(args).await,
            Command::Bench(args) => commands::bench::run(args).await,
            Command::Replay(_)
            | Command::Engine(_)
            | Command::Config(_)
            | Command::Completions(_)
            | Command::Reference(_)
            | Command::EngineChild => Ok(()),
        }
    });
    // While there are threads to send them: the last spans.
    mainstay_trace::end_export();
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}
