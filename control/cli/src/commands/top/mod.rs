//! `mainstay top`: the cluster in a terminal, looked at again each second.
//!
//! What it shows comes from the gateway's JSON, as the console's does: a [`look::Look`] is asked for, a [`frame::Frame`]
//! is made of it and of the one before, and `draw` puts that on a screen. Asking, drawing and keys are apart, so that a
//! gateway that does not answer keeps nobody from quitting.

mod draw;
mod frame;
mod keys;
mod look;
mod screen;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use tokio::sync::mpsc;

use crate::http::Target;
use crate::output::{Failure, Format, chain, duration, print};
use draw::Picture;
use frame::Frame;
use keys::{Next, State, View};
use look::{Look, Looker};
use screen::{Pressed, Screen, Signals};

/// Width of a frame for programs, and the most lines of it.
const ONCE_COLUMNS: u16 = 160;
const ONCE_LINES_MAX: u16 = 1_000;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The gateway to ask
    #[arg(long, env = "MAINSTAY_ADDR", default_value = "http://127.0.0.1:8000")]
    addr: String,
    /// The API key to send
    #[arg(long, env = "MAINSTAY_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Seconds between two looks, 0.2 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    interval: f64,
    /// What to show first
    #[arg(long, value_enum, default_value = "overview")]
    view: View,
    /// Print one frame as plain text, and end; it takes two looks, since rates are differences
    #[arg(long)]
    once: bool,
}

fn parse_interval(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.2..=3_600.0).contains(seconds));
    seconds.ok_or_else(|| "seconds from 0.2 to 3600, such as 1 or 0.5".to_owned())
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let target = Target::of(args.addr.clone(), args.api_key.clone(), Format::Table);
    let looker = Looker::new(target)?;
    let interval = Duration::from_secs_f64(args.interval);
    let state = State::of(args.view);
    if args.once {
        return once(&looker, interval, &state).await;
    }
    if !std::io::stdout().is_terminal() {
        let message = "standard output is no terminal; say --once for one frame as text".to_owned();
        return Err(Failure { message, exit: 2 }.into());
    }
    live(looker, interval, state).await
}

async fn once(looker: &Looker, interval: Duration, state: &State) -> anyhow::Result<()> {
    let before = looker.look().await?;
    tokio::time::sleep(interval).await;
    let look = looker.look().await?;
    let frame = Frame::of(&look, Some(&before));
    let picture =
        Picture { server: looker.server(), frame: Some(&frame), state, away: None, is_live: false };
    print(&plain(&picture));
    Ok(())
}

/// A picture without colours, as long as it needs to be.
fn plain(picture: &Picture<'_>) -> String {
    let lines = picture.lines_wanted().min(ONCE_LINES_MAX);
    let mut buffer = Buffer::empty(Rect::new(0, 0, ONCE_COLUMNS, lines));
    draw::draw(picture, buffer.area, &mut buffer);
    let text = draw::text_of(&buffer);
    text.trim_end().to_owned()
}

/// Since when nobody answers, and what was said instead.
struct Away {
    since: SystemTime,
    why: String,
}

impl Away {
    fn text(&self, now: SystemTime) -> String {
        let since = clock(self.since);
        let long = now.duration_since(self.since).unwrap_or_default();
        let long = duration(u64::try_from(long.as_millis()).unwrap_or(u64::MAX));
        format!("unreachable since {since} UTC ({long}): {}", self.why)
    }
}

/// `12:03:59`, of a day in UTC.
fn clock(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60)
}

/// What there is to show so far.
struct Shown {
    server: String,
    state: State,
    before: Option<Look>,
    frame: Option<Frame>,
    away: Option<Away>,
}

impl Shown {
    fn take(&mut self, looked: anyhow::Result<Look>) {
        match looked {
            Ok(look) => {
                self.away = None;
                self.frame = Some(Frame::of(&look, self.before.as_ref()));
                self.before = Some(look);
            }
            Err(error) => {
                let since = self.away.as_ref().map_or_else(SystemTime::now, |away| away.since);
                self.away = Some(Away { since, why: frame::plain_text(&chain(&error)) });
            }
        }
    }

    fn draw(&self, screen: &mut Screen) -> std::io::Result<()> {
        let away = self.away.as_ref().map(|away| away.text(SystemTime::now()));
        let picture = Picture {
            server: &self.server,
            frame: self.frame.as_ref(),
            state: &self.state,
            away: away.as_deref(),
            is_live: true,
        };
        screen.draw(&picture)
    }
}

/// Looks until somebody takes no more of them.
async fn look_on(looker: Looker, interval: Duration, out: mpsc::Sender<anyhow::Result<Look>>) {
    loop {
        let looked = looker.look().await;
        if out.send(looked).await.is_err() {
            return;
        }
        tokio::time::sleep(interval).await;
    }
}

async fn live(looker: Looker, interval: Duration, state: State) -> anyhow::Result<()> {
    let server = looker.server().to_owned();
    let mut signals = Signals::open()?;
    let (mut screen, mut keys) = Screen::open()?;
    // One look ahead: whoever pauses takes none, and then none is asked for.
    let (out, mut looks) = mpsc::channel(1);
    let mut looking = tokio::task::JoinSet::new();
    looking.spawn(look_on(looker, interval, out));
    let mut shown = Shown { server, state, before: None, frame: None, away: None };
    loop {
        shown.draw(&mut screen)?;
        tokio::select! {
            () = signals.any() => return Ok(()),
            looked = looks.recv(), if !shown.state.is_paused => match looked {
                Some(looked) => shown.take(looked),
                None => return Ok(()),
            },
            key = keys.recv() => {
                let Some(pressed) = key else { return Ok(()) };
                if let Pressed::Key(key) = pressed
                    && shown.state.press(key, shown.frame.as_ref()) == Next::End
                {
                    return Ok(());
                }
            }
        }
    }
}
