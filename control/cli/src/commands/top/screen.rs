//! The terminal: taken while this program draws, and given back however it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::draw::{Picture, draw};

/// Keys that were pressed and not looked at yet; who holds one down waits for the picture.
const KEYS_MAX: usize = 16;
/// How long the thread that reads keys may not notice that it is over.
const KEYS_PAUSE: Duration = Duration::from_millis(100);

/// A terminal in raw mode, on its second screen. It is as before once this is dropped, and before a panic is printed.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    is_over: Arc<AtomicBool>,
}

/// Gives the terminal back.
struct Taken;

impl Drop for Taken {
    fn drop(&mut self) {
        // Whoever took the terminal away has it.
        let _ = ratatui::try_restore();
    }
}

impl Screen {
    /// Takes the terminal; what somebody does comes through the other end.
    pub(super) fn open() -> std::io::Result<(Self, mpsc::Receiver<Pressed>)> {
        let taken = Taken;
        let terminal = ratatui::try_init()?;
        std::mem::forget(taken);
        let is_over = Arc::new(AtomicBool::new(false));
        let (out, keys) = mpsc::channel(KEYS_MAX);
        let screen = Self { terminal, is_over: Arc::clone(&is_over) };
        std::thread::Builder::new()
            .name("keys".to_owned())
            .spawn(move || read_keys(&is_over, &out))?;
        Ok((screen, keys))
    }

    pub(super) fn draw(&mut self, picture: &Picture<'_>) -> std::io::Result<()> {
        self.terminal.draw(|frame| draw(picture, frame.area(), frame.buffer_mut()))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        drop(Taken);
    }
}

/// What somebody did.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pressed {
    Key(KeyEvent),
    Resized,
}

fn read_keys(is_over: &AtomicBool, out: &mpsc::Sender<Pressed>) {
    while !is_over.load(Ordering::Relaxed) {
        let pressed = match event::poll(KEYS_PAUSE) {
            Ok(false) => continue,
            Ok(true) => match event::read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Pressed::Key(key),
                Ok(Event::Resize(..)) => Pressed::Resized,
                Ok(_) => continue,
                Err(_) => return,
            },
            // The terminal is gone; so is this end of the channel then, which ends the program.
            Err(_) => return,
        };
        if out.blocking_send(pressed).is_err() {
            return;
        }
    }
}

/// The signals that end a program. They are waited for from here on, so that none comes while the terminal is taken and
/// does what it does by itself. A raw terminal sends no SIGINT, but whoever knows the process may.
pub(super) struct Signals([Signal; 4]);

impl Signals {
    pub(super) fn open() -> std::io::Result<Self> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
        ];
        let [a, b, c, d] = kinds.map(signal);
        Ok(Self([a?, b?, c?, d?]))
    }

    /// Resolves at any of them.
    pub(super) async fn any(&mut self) {
        let [a, b, c, d] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
            _ = d.recv() => {}
        }
    }
}
