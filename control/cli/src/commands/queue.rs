//! The flags of the router's queue, the same for gateways and for the laboratory.

use mainstay_replay::{QueueOrder, QueueSettings};

#[derive(clap::Args)]
pub(crate) struct QueueArgs {
    /// Requests wait at the router while every worker has more than this share of one step's tokens waiting, such as
    /// 1.0; without it they are sent at once
    #[arg(long, value_name = "SHARE", value_parser = parse_threshold)]
    pub(crate) router_queue_threshold: Option<f64>,
    /// In which order they go on, within a tenant: arrival (with priorities in seconds), wspt (the least to compute
    /// first) or least-attained (the session that got the least first)
    #[arg(long, value_name = "ORDER", value_parser = parse_order, default_value = "arrival")]
    pub(crate) router_queue_policy: QueueOrder,
    /// Tokens that a worker computes in one step at most
    #[arg(long, value_name = "TOKENS", default_value_t = QueueSettings::default().step_tokens,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) router_step_tokens: u32,
}

impl QueueArgs {
    pub(crate) fn settings(&self) -> QueueSettings {
        QueueSettings {
            threshold: self.router_queue_threshold,
            order: self.router_queue_policy,
            step_tokens: self.router_step_tokens,
            ..QueueSettings::default()
        }
    }
}

fn parse_order(text: &str) -> Result<QueueOrder, String> {
    let names = QueueOrder::ALL.map(QueueOrder::name).join(", ");
    QueueOrder::from_name(text).ok_or_else(|| format!("one of {names}"))
}

fn parse_threshold(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1_000.0).contains(share));
    share.ok_or_else(|| "a share of one step's tokens, from 0 to 1000, such as 1.0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_says_what_does() {
        assert_eq!(parse_threshold("1.5"), Ok(1.5));
        for wrong in ["", "-1", "nan", "inf", "1e9", "many"] {
            assert!(parse_threshold(wrong).unwrap_err().contains("such as 1.0"), "{wrong}");
        }
        assert_eq!(parse_order("wspt"), Ok(QueueOrder::Shortest));
        assert!(parse_order("lifo").unwrap_err().contains("least-attained"));
    }
}
