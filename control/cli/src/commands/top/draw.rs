//! A picture of a frame, in so many columns and lines. It reads nothing but what it is given.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{self, Block, Clear, Paragraph, StatefulWidget, TableState, Widget};

use super::frame::{Frame, Row, Table, Tone};
use super::keys::{State, View};

/// Lines of figures at most.
const FIGURE_LINES_MAX: usize = 3;
/// Between two columns.
const GAP: u16 = 2;
/// Between two figures.
const DOT: &str = " · ";

const KEYS: [(&str, &str); 7] = [
    ("1-5, Tab", "another view"),
    ("up, down", "a row on; also k, j, PgUp, PgDn, Home, End"),
    ("p", "pause, and go on"),
    ("?", "this help"),
    ("q", "quit; also Ctrl-C"),
    ("", "HITS: of prompt tokens since the worker's start; NOW and /S: since the look before"),
    ("", "Prompts are never shown."),
];

/// What is drawn.
pub(super) struct Picture<'a> {
    pub(super) server: &'a str,
    pub(super) frame: Option<&'a Frame>,
    pub(super) state: &'a State,
    /// The gateway does not answer, and why.
    pub(super) away: Option<&'a str>,
    /// For somebody with keys.
    pub(super) is_live: bool,
}

impl Picture<'_> {
    /// Lines that show all there is.
    pub(super) fn lines_wanted(&self) -> u16 {
        let Some(frame) = self.frame else { return 4 };
        let tables: Vec<&Table> = match frame.table(self.state.view) {
            Some(one) => vec![one],
            None => frame.tables().to_vec(),
        };
        let rows: usize = tables.iter().map(|table| wanted(table) + 1).sum();
        let lines = 2 + FIGURE_LINES_MAX + frame.problems.len() + rows;
        u16::try_from(lines).unwrap_or(u16::MAX)
    }
}

/// Draws into an area of any size; what has no room is left out.
pub(super) fn draw(picture: &Picture<'_>, area: Rect, buffer: &mut Buffer) {
    let mut lines = Lines { left: area };
    title(picture, lines.take(1), buffer);
    if let Some(away) = picture.away {
        let line = Line::styled(away, bad().add_modifier(Modifier::BOLD));
        line.render(lines.take(1), buffer);
    }
    if picture.is_live {
        tabs(picture.state, lines.take_last(1), buffer);
    }
    if let Some(frame) = picture.frame {
        for line in flow(&frame.figures, area.width, FIGURE_LINES_MAX) {
            line.render(lines.take(1), buffer);
        }
        for problem in &frame.problems {
            Line::styled(format!("! {problem}"), bad()).render(lines.take(1), buffer);
        }
        lines.take(1);
        match frame.table(picture.state.view) {
            Some(table) => {
                let row = picture.is_live.then(|| picture.state.row());
                draw_table(table, row, lines.left, buffer);
            }
            None => overview(frame, lines.left, buffer),
        }
    } else if picture.away.is_none() {
        Line::raw("looking …").render(lines.take(1), buffer);
    }
    if picture.state.is_help_open {
        help(area, buffer);
    }
}

/// What is left of an area from top and bottom.
struct Lines {
    left: Rect,
}

impl Lines {
    fn take(&mut self, lines: u16) -> Rect {
        let lines = lines.min(self.left.height);
        let taken = Rect { height: lines, ..self.left };
        self.left.y += lines;
        self.left.height -= lines;
        taken
    }

    fn take_last(&mut self, lines: u16) -> Rect {
        let lines = lines.min(self.left.height);
        self.left.height -= lines;
        Rect { y: self.left.bottom(), height: lines, ..self.left }
    }
}

fn bad() -> Style {
    Style::new().fg(Color::Red)
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Wait => Style::new().fg(Color::Yellow),
        Tone::Bad => bad(),
        Tone::Past => Style::new().add_modifier(Modifier::DIM),
    }
}

fn title(picture: &Picture<'_>, area: Rect, buffer: &mut Buffer) {
    let mut parts = vec![Span::styled("mainstay top", Style::new().add_modifier(Modifier::BOLD))];
    parts.push(Span::raw(format!("{DOT}{}", picture.server)));
    if picture.state.is_paused {
        parts.push(Span::raw(DOT));
        parts.push(Span::styled("paused", Style::new().add_modifier(Modifier::REVERSED)));
    }
    Line::from(parts).render(area, buffer);
}

/// Which views there are, which one it is, and the keys that one has to know.
fn tabs(state: &State, area: Rect, buffer: &mut Buffer) {
    let mut parts = Vec::new();
    for (at, view) in View::ALL.into_iter().enumerate() {
        let is_shown = view == state.view;
        let style =
            if is_shown { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        parts.push(Span::styled(format!(" {} {} ", at + 1, view.name()), style));
    }
    parts.push(Span::raw(" p pause  ? help  q quit"));
    Line::from(parts).render(area, buffer);
}

/// Figures one after another, in as many lines as that takes and there are.
fn flow(figures: &[String], width: u16, lines_max: usize) -> Vec<Line<'static>> {
    let wide = |text: &str| Line::raw(text).width();
    let mut lines: Vec<String> = Vec::new();
    for figure in figures {
        let is_full = lines.len() == lines_max;
        match lines.last_mut() {
            Some(line) if wide(line) + wide(DOT) + wide(figure) <= usize::from(width) => {
                line.push_str(DOT);
                line.push_str(figure);
            }
            _ if is_full => break,
            _ => lines.push(figure.clone()),
        }
    }
    lines.into_iter().map(Line::raw).collect()
}

/// Rows of a table with its head and, where there is more, the line that says so.
fn wanted(table: &Table) -> usize {
    1 + table.rows.len() + usize::from(table.has_more)
}

/// Shares out room: nobody gets more than it wants, and what one leaves the others get.
fn shares<const N: usize>(wants: [usize; N], room: usize) -> [usize; N] {
    let mut shares = [0; N];
    let mut left = room;
    while left > 0 {
        let hungry: Vec<usize> = (0..N).filter(|at| shares[*at] < wants[*at]).collect();
        if hungry.is_empty() {
            break;
        }
        let each = (left / hungry.len()).max(1);
        for at in hungry.into_iter().take(left) {
            let more = each.min(wants[at] - shares[at]);
            shares[at] += more;
            left -= more;
        }
    }
    shares
}

fn overview(frame: &Frame, area: Rect, buffer: &mut Buffer) {
    let tables = frame.tables();
    let mut lines = Lines { left: area };
    // A line between them where there is room for it.
    let wants = tables.map(|table| wanted(table) + 1);
    let got = shares(wants, usize::from(area.height) + 1);
    for (table, got) in tables.into_iter().zip(got) {
        let gap = usize::from(got > 3);
        let height = u16::try_from(got - gap).unwrap_or(u16::MAX);
        draw_table(table, None, lines.take(height), buffer);
        lines.take(u16::from(gap > 0));
    }
}

/// The columns that have room: those that can be spared go first. Their places and widths.
fn fit(table: &Table, rows: &[Row], width: u16) -> Vec<(usize, u16)> {
    let wide = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.cells.get(at));
        let longest = cells.map(|cell| Line::raw(cell.as_str()).width()).max().unwrap_or_default();
        u16::try_from(longest.max(table.columns[at].head.len())).unwrap_or(u16::MAX)
    };
    let mut columns: Vec<(usize, u16)> =
        (0..table.columns.len()).map(|at| (at, wide(at))).collect();
    loop {
        let needed: u32 = columns.iter().map(|(_, wide)| u32::from(*wide) + u32::from(GAP)).sum();
        let spare =
            columns.iter().map(|(at, _)| table.columns[*at].spare).max().unwrap_or_default();
        if needed <= u32::from(width) + u32::from(GAP) || spare == 0 {
            return columns;
        }
        columns.retain(|(at, _)| table.columns[*at].spare < spare);
    }
}

/// The rows around the one that is pointed at, and what is not shown of the others.
fn draw_table(table: &Table, pointed: Option<usize>, area: Rect, buffer: &mut Buffer) {
    let height = usize::from(area.height);
    if height == 0 {
        return;
    }
    let is_cut = table.has_more || table.rows.len() + 1 > height;
    let room = height.saturating_sub(1 + usize::from(is_cut));
    let pointed = pointed.map(|row| row.min(table.rows.len().saturating_sub(1)));
    let first = pointed.map_or(0, |row| (row + 1).saturating_sub(room));
    let shown = &table.rows[first..(first + room).min(table.rows.len())];
    let columns = fit(table, shown, area.width);
    let cell = |at: usize, text: &str| {
        let line = Line::raw(text.to_owned());
        let line = if table.columns[at].is_number { line.right_aligned() } else { line };
        widgets::Cell::from(line)
    };
    let head = columns.iter().map(|(at, _)| cell(*at, table.columns[*at].head));
    let head = widgets::Row::new(head).style(Style::new().add_modifier(Modifier::BOLD));
    let rows = shown.iter().map(|row| {
        let of = |(at, _): &(usize, u16)| cell(*at, row.cells.get(*at).map_or("", String::as_str));
        widgets::Row::new(columns.iter().map(of)).style(style(row.tone))
    });
    let widths = columns.iter().map(|(_, wide)| Constraint::Length(*wide));
    let drawn = widgets::Table::new(rows, widths)
        .header(head)
        .column_spacing(GAP)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(pointed.map(|row| row - first));
    let mut lines = Lines { left: area };
    let last = lines.take_last(u16::from(is_cut));
    StatefulWidget::render(drawn, lines.left, buffer, &mut state);
    if is_cut {
        let hidden = table.rows.len() - shown.len();
        let and = if table.has_more { " and more at the gateway" } else { "" };
        Line::styled(format!("… {hidden} more{and}"), style(Tone::Past)).render(last, buffer);
    }
}

fn help(area: Rect, buffer: &mut Buffer) {
    let lines: Vec<Line<'_>> =
        KEYS.iter().map(|(key, what)| Line::raw(format!("{key:<9} {what}"))).collect();
    let wide = lines.iter().map(Line::width).max().unwrap_or_default() + 2;
    let width = u16::try_from(wide).unwrap_or(u16::MAX).min(area.width);
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let over = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    Clear.render(over, buffer);
    Paragraph::new(lines).block(Block::bordered().title(" keys ")).render(over, buffer);
}

/// What a picture says, line by line, without colours.
pub(super) fn text_of(buffer: &Buffer) -> String {
    let mut lines = Vec::new();
    for y in buffer.area.top()..buffer.area.bottom() {
        let (mut line, mut x) = (String::new(), buffer.area.left());
        while let Some(cell) = buffer.cell((x, y)).filter(|_| x < buffer.area.right()) {
            line.push_str(cell.symbol());
            // The cell behind a wide letter is part of it.
            x += u16::try_from(Line::raw(cell.symbol()).width().max(1)).unwrap_or(1);
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_shared_out_whole() {
        assert_eq!(shares([2, 9, 9], 30), [2, 9, 9]);
        assert_eq!(shares([2, 9, 9], 12), [2, 5, 5]);
        assert_eq!(shares([5, 5, 5], 2), [1, 1, 0]);
        assert_eq!(shares([0, 0], 5), [0, 0]);
        for room in 0..60 {
            let got = shares([3, 1, 20, 7, 2], room);
            assert_eq!(got.iter().sum::<usize>(), room.min(33), "{room}");
        }
    }

    #[test]
    fn figures_flow_and_those_without_room_are_left_out() {
        let figures: Vec<String> = ["leader m1", "term 2", "log index 9"].map(str::to_owned).into();
        let text = |width, lines| {
            flow(&figures, width, lines).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(text(80, 4), ["leader m1 · term 2 · log index 9"]);
        assert_eq!(text(18, 4), ["leader m1 · term 2", "log index 9"]);
        assert_eq!(text(5, 2), ["leader m1", "term 2"]);
    }
}
