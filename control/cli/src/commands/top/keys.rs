//! What keys do: which table is shown, where in it one is, and whether looks go on.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::frame::Frame;

/// Rows of a page.
const PAGE: usize = 10;

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum View {
    Overview,
    Workers,
    Sessions,
    Pins,
    Decisions,
}

impl View {
    pub(super) const ALL: [Self; 5] =
        [Self::Overview, Self::Workers, Self::Sessions, Self::Pins, Self::Decisions];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Overview => "overview",
            Self::Workers => "workers",
            Self::Sessions => "sessions",
            Self::Pins => "pins",
            Self::Decisions => "decisions",
        }
    }

    const fn number(self) -> usize {
        self as usize
    }

    fn beside(self, steps: usize) -> Self {
        Self::ALL[(self.number() + steps) % Self::ALL.len()]
    }
}

/// Where somebody is.
#[derive(Debug)]
pub(super) struct State {
    pub(super) view: View,
    pub(super) is_paused: bool,
    pub(super) is_help_open: bool,
    /// The row that is pointed at, by view.
    rows: [usize; View::ALL.len()],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    End,
}

impl State {
    pub(super) const fn of(view: View) -> Self {
        Self { view, is_paused: false, is_help_open: false, rows: [0; View::ALL.len()] }
    }

    /// The row that is pointed at in the table that is shown.
    pub(super) const fn row(&self) -> usize {
        self.rows[self.view.number()]
    }

    /// A key was pressed while that frame was shown.
    pub(super) fn press(&mut self, key: KeyEvent, frame: Option<&Frame>) -> Next {
        let last =
            frame.and_then(|frame| frame.table(self.view)).map_or(0, |table| table.rows.len());
        let last = last.saturating_sub(1);
        let row = &mut self.rows[self.view.number()];
        match key.code {
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Next::End;
            }
            KeyCode::Char('q') => return Next::End,
            KeyCode::Esc => self.is_help_open = false,
            KeyCode::Char('?' | 'h') => self.is_help_open = !self.is_help_open,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Tab | KeyCode::Right => self.view = self.view.beside(1),
            KeyCode::BackTab | KeyCode::Left => self.view = self.view.beside(View::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='5') => {
                let number = digit as usize - '1' as usize;
                self.view = View::ALL[number];
            }
            // A table may have got shorter since.
            KeyCode::Up | KeyCode::Char('k') => *row = row.saturating_sub(1).min(last),
            KeyCode::Down | KeyCode::Char('j') => *row = row.saturating_add(1).min(last),
            KeyCode::PageUp => *row = row.saturating_sub(PAGE).min(last),
            KeyCode::PageDown => *row = row.saturating_add(PAGE).min(last),
            KeyCode::Home => *row = 0,
            KeyCode::End => *row = last,
            _ => {}
        }
        Next::Stay
    }
}
