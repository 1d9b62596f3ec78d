//! Logs on standard error: `warn` and above unless `MAINSTAY_LOG` says otherwise.

use tracing_subscriber::EnvFilter;

/// The Raft library warns of elections and of messages that came late; both are normal.
const DEFAULT: &str = "warn,openraft=error";

/// Starts logging. A filter that cannot be read is told and replaced by the default.
pub(crate) fn start() {
    let wanted = std::env::var("MAINSTAY_LOG").unwrap_or_else(|_| DEFAULT.to_owned());
    let filter = EnvFilter::try_new(&wanted).unwrap_or_else(|error| {
        eprintln!("MAINSTAY_LOG={wanted}: {error}; using {DEFAULT}");
        EnvFilter::new(DEFAULT)
    });
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
