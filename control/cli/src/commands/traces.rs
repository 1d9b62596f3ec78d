//! The flags of traces, the same for every role that is on a request's way.

use anyhow::Context;
use mainstay_trace::Sampling;

/// Of a role in which no trace begins.
#[derive(clap::Args)]
pub(crate) struct CollectorArgs {
    /// Send traces of requests to an OpenTelemetry collector there (OTLP over gRPC), such as http://127.0.0.1:4317
    /// [default: off]
    #[arg(long, value_name = "URL")]
    traces: Option<String>,
}

impl CollectorArgs {
    /// Spans go out from here on; without the flag none do. The last ones go when the program ends.
    pub(crate) fn start(&self, role: &'static str) -> anyhow::Result<()> {
        self.start_with(role, Sampling::default())
    }

    fn start_with(&self, role: &'static str, sampling: Sampling) -> anyhow::Result<()> {
        let Some(address) = &self.traces else { return Ok(()) };
        mainstay_trace::export_to(address, role, env!("CARGO_PKG_VERSION"), sampling)
            .context("--traces")
    }
}

/// Of a role in which traces begin.
#[derive(clap::Args)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    collector: CollectorArgs,
    /// The share of requests whose traces are sent, where the client does not say so itself
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = parse_share, requires = "traces")]
    traces_sample: f64,
    /// How many of them are sent in a second at most
    #[arg(long, value_name = "N", default_value_t = Sampling::default().per_second, requires = "traces")]
    traces_per_second: u32,
}

impl TraceArgs {
    pub(crate) fn start(&self, role: &'static str) -> anyhow::Result<()> {
        let sampling = Sampling { share: self.traces_sample, per_second: self.traces_per_second };
        self.collector.start_with(role, sampling)
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share of requests, from 0 to 1, such as 0.1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_makes_no_sense_says_what_does() {
        assert_eq!(parse_share("0.25"), Ok(0.25));
        for wrong in ["", "-1", "1.5", "nan", "all"] {
            assert!(parse_share(wrong).unwrap_err().contains("such as 0.1"), "{wrong}");
        }
    }
}
