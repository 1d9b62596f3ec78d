//! `--watch`: the same answer again and again, until somebody has seen enough.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::commands::asked_to_stop;

/// Of commands whose answer changes while one looks.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct WatchArgs {
    /// Ask again each so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

/// Cursor home, and nothing below it.
const CLEAR: &str = "\x1b[H\x1b[2J";

impl WatchArgs {
    /// Shows once, or until Ctrl-C or a closed pipe. A first failure is the command's; later ones are told, since whom
    /// one watches may be away for a while.
    pub(crate) async fn repeat(
        self,
        show: impl AsyncFn() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Some(seconds) = self.watch else { return show().await };
        let is_terminal = std::io::stdout().is_terminal();
        let mut is_first = true;
        loop {
            let between = match (is_terminal, is_first) {
                (true, _) => CLEAR,
                (false, true) => "",
                (false, false) => "\n",
            };
            let mut out = std::io::stdout();
            if out.write_all(between.as_bytes()).and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
            match show().await {
                Err(error) if is_first => return Err(error),
                Err(error) => eprintln!("error: {}", crate::output::chain(&error)),
                Ok(()) => {}
            }
            is_first = false;
            tokio::select! {
                asked = asked_to_stop() => return asked,
                () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
            }
        }
    }
}
