//! Line plots as SVG text, for pages that need nothing from elsewhere.
//!
//! Colours are the page's classes, so that a plot follows its light and dark forms. Values that are not finite, or
//! not above 0 on a logarithmic axis, are left out; a page leaves out a plot without any points.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
/// Classes of colours that the page has.
pub(crate) const COLOURS: usize = 8;
/// Ticks of a logarithmic axis, at most.
const TICKS_MAX: usize = 9;
/// Steps of linear axes of time, and places of long times on logarithmic ones, in seconds.
const STEPS_S: [f64; 20] = [
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1_200.0,
    1_800.0,
    3_600.0,
    7_200.0,
    14_400.0,
    28_800.0,
    86_400.0,
    172_800.0,
    604_800.0,
    1_209_600.0,
];
const DECADES_S: [f64; 6] = [60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 864_000.0];
/// Lines with fewer points show each of them.
const MARKED_MAX: usize = 14;

/// What the numbers of an axis are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Unit {
    Number,
    Percent,
    /// Milliseconds, shown as what is readable.
    Ms,
    /// Seconds, likewise.
    Seconds,
}

/// One of the two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Axis {
    pub(crate) label: &'static str,
    pub(crate) unit: Unit,
    pub(crate) log: bool,
    /// Ends that are fixed; else they follow from the points.
    pub(crate) from: Option<f64>,
    pub(crate) to: Option<f64>,
}

impl Axis {
    pub(crate) fn linear(label: &'static str, unit: Unit) -> Self {
        Self { label, unit, log: false, from: Some(0.0), to: None }
    }

    pub(crate) fn log(label: &'static str, unit: Unit) -> Self {
        Self { label, unit, log: true, from: None, to: None }
    }

    /// From 0 to 100.
    pub(crate) fn percent(label: &'static str) -> Self {
        Self { label, unit: Unit::Percent, log: false, from: Some(0.0), to: Some(100.0) }
    }

    fn can_show(self, value: f64) -> bool {
        value.is_finite() && (!self.log || value > 0.0)
    }

    fn place(self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    /// The ends that all values fit between; a linear axis ends with a tick.
    fn ends(self, values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
        let low = self.from.unwrap_or_else(|| values.clone().fold(f64::INFINITY, f64::min));
        let high = self.to.unwrap_or_else(|| values.fold(f64::NEG_INFINITY, f64::max));
        let (low, high) = (self.place(low), self.place(high));
        if high - low <= 1e-9 {
            return if self.log { (low - 0.5, low + 0.5) } else { (low, low + 1.0) };
        }
        if self.log || self.to.is_some() {
            return (low, high);
        }
        let step = self.step(high - low);
        (low, (high / step - 1e-6).ceil() * step)
    }

    /// Between ticks of a linear axis, a number or a time that people count in.
    fn step(self, range: f64) -> f64 {
        let raw = range / 6.0;
        let second = match self.unit {
            Unit::Ms => 1_000.0,
            Unit::Seconds => 1.0,
            Unit::Number | Unit::Percent => f64::INFINITY,
        };
        if raw > second * 0.5
            && let Some(step) = STEPS_S.into_iter().map(|s| s * second).find(|s| *s >= raw)
        {
            return step;
        }
        let power = 10_f64.powf(raw.log10().floor());
        let mut steps = [1.0, 2.0, 5.0].map(|factor| factor * power).into_iter();
        steps.find(|step| *step >= raw * 0.999).unwrap_or(10.0 * power)
    }

    /// Where ticks are, in values.
    fn ticks(self, (low, high): (f64, f64)) -> Vec<f64> {
        if !self.log {
            let step = self.step(high - low);
            let first = (low / step).ceil();
            let ticks = (0..12).map(|n| (first + f64::from(n)) * step);
            return ticks.filter(|tick| *tick <= high + step * 1e-6).collect();
        }
        let is_in = |value: &f64| (low - 1e-9..=high + 1e-9).contains(&value.log10());
        // A cast from a float stops at the ends of the range.
        let decades = (low.floor() as i32).max(-30)..=(high.ceil() as i32).min(30);
        let decades = decades.map(|decade| 10_f64.powi(decade));
        let second: f64 = if self.unit == Unit::Ms { 1_000.0 } else { 1.0 };
        let is_time = matches!(self.unit, Unit::Ms | Unit::Seconds);
        let (mut ticks, finer): (Vec<f64>, Vec<f64>) = if is_time && high > second.log10() + 1.1 {
            // Beyond ten seconds people count in minutes and hours.
            let short = decades.filter(|tick| *tick < second * 30.0);
            let long = DECADES_S.map(|tick| tick * second);
            let finer = STEPS_S.map(|tick| tick * second);
            (short.chain(long).filter(is_in).collect(), finer.into_iter().filter(is_in).collect())
        } else {
            let finer = decades.clone().flat_map(|d| [d, 2.0 * d, 5.0 * d]);
            (decades.filter(is_in).collect(), finer.filter(is_in).collect())
        };
        if ticks.len() < 3 {
            ticks = finer;
        }
        let every = ticks.len().div_ceil(TICKS_MAX).max(1);
        ticks.into_iter().step_by(every).collect()
    }
}

/// A number as short as it can be read.
pub(crate) fn short(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{suffix}")
}

/// A time as people say it.
pub(crate) fn time(ms: f64) -> String {
    match ms {
        0.0 => "0".to_owned(),
        ms if ms < 1_000.0 => format!("{} ms", short(ms)),
        ms if ms < 60_000.0 => format!("{} s", short(ms / 1e3)),
        ms if ms < 3_600_000.0 => format!("{} min", short(ms / 6e4)),
        ms if ms < 172_800_000.0 => format!("{} h", short(ms / 3.6e6)),
        ms => format!("{} d", short(ms / 8.64e7)),
    }
}

fn label(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Number => short(value),
        Unit::Percent => format!("{}%", short(value)),
        Unit::Ms => time(value),
        Unit::Seconds => time(value * 1_000.0),
    }
}

/// Text that cannot end an element or an attribute.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// A named line.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A line's name, and those of its points that its axes can show.
type Shown<'a> = (&'a str, Vec<(f64, f64)>);

/// Lines on two axes.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    pub(crate) title: String,
    /// What to see in it.
    pub(crate) note: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
}

/// From values to places on the paper.
struct Paper {
    x: (f64, f64),
    y: (f64, f64),
}

impl Paper {
    fn x(&self, plot: &Plot, value: f64) -> f64 {
        let part = (plot.x.place(value) - self.x.0) / (self.x.1 - self.x.0);
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, plot: &Plot, value: f64) -> f64 {
        let part = (plot.y.place(value) - self.y.0) / (self.y.1 - self.y.0);
        HEIGHT - BOTTOM - part.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }
}

impl Plot {
    /// Whether there is anything to show.
    pub(crate) fn has_points(&self) -> bool {
        let shown = |point: &(f64, f64)| self.x.can_show(point.0) && self.y.can_show(point.1);
        self.lines.iter().any(|line| line.points.iter().any(shown))
    }

    /// A figure with its caption, its legend and the plot.
    pub(crate) fn figure(&self) -> String {
        let can_show = |point: &(f64, f64)| self.x.can_show(point.0) && self.y.can_show(point.1);
        let lines: Vec<Shown<'_>> = self
            .lines
            .iter()
            .map(|line| {
                (line.name.as_str(), line.points.iter().copied().filter(can_show).collect())
            })
            .collect();
        let mut out = format!(
            "<figure><figcaption><b>{}</b><span>{}</span></figcaption>",
            escaped(&self.title),
            escaped(&self.note)
        );
        if lines.len() > 1 {
            let item = |(at, (name, _)): (usize, &Shown<'_>)| {
                format!("<li class=\"c{}\">{}</li>", at % COLOURS, escaped(name))
            };
            let items: String = lines.iter().enumerate().map(item).collect();
            out.push_str(&format!("<ul class=\"legend\">{items}</ul>"));
        }
        let title = escaped(&self.title);
        out.push_str(&format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
        ));
        let xs = lines.iter().flat_map(|(_, points)| points.iter().map(|point| point.0));
        let ys = lines.iter().flat_map(|(_, points)| points.iter().map(|point| point.1));
        let paper = Paper { x: self.x.ends(xs), y: self.y.ends(ys) };
        self.axes(&paper, &mut out);
        for (at, (name, points)) in lines.iter().enumerate() {
            self.line(&paper, at, name, points, &mut out);
        }
        out.push_str("</svg></figure>");
        out
    }

    fn axes(&self, paper: &Paper, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in self.y.ticks(paper.y) {
            let (y, text) = (paper.y(self, tick), label(tick, self.y.unit));
            // Writing to a string cannot fail.
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/><text x=\"{:.1}\" y=\"{:.1}\" class=\"yt\">{text}</text>",
                LEFT - 7.0,
                y + 4.0
            );
        }
        for tick in self.x.ticks(paper.x) {
            let (x, text) = (paper.x(self, tick), label(tick, self.x.unit));
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/><text x=\"{x:.1}\" y=\"{:.1}\" class=\"xt\">{text}</text>",
                bottom + 17.0
            );
        }
        let _ = write!(
            out,
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/><text x=\"{:.1}\" y=\"{:.1}\" class=\"xt name\">{}</text><text transform=\"translate(13 {:.1}) rotate(-90)\" class=\"xt name\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 8.0,
            escaped(self.x.label),
            (TOP + bottom) / 2.0,
            escaped(self.y.label)
        );
    }

    fn line(&self, paper: &Paper, at: usize, name: &str, points: &[(f64, f64)], out: &mut String) {
        let (colour, dashed) = (at % COLOURS, if at < COLOURS { "" } else { " dashed" });
        let _ = write!(out, "<g class=\"c{colour}{dashed}\"><title>{}</title>", escaped(name));
        let places: Vec<(f64, f64)> =
            points.iter().map(|(x, y)| (paper.x(self, *x), paper.y(self, *y))).collect();
        out.push_str("<polyline points=\"");
        for (x, y) in &places {
            let _ = write!(out, "{x:.1},{y:.1} ");
        }
        out.push_str("\"/>");
        if places.len() <= MARKED_MAX {
            for (x, y) in &places {
                let _ = write!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
            }
        }
        out.push_str("</g>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64)>) -> Plot {
        Plot {
            title: "a<b".to_owned(),
            note: String::new(),
            x: Axis::log("time", Unit::Ms),
            y: Axis::percent("share"),
            lines: vec![Line { name: "\"x\" & y".to_owned(), points }],
        }
    }

    #[test]
    fn points_are_where_they_belong_and_text_cannot_break_out() {
        let svg = plot(vec![(10.0, 0.0), (100.0, 50.0), (1_000.0, 100.0)]).figure();
        assert!(svg.contains("points=\"72.0,256.0 347.0,134.0 622.0,12.0 \""), "{svg}");
        assert!(svg.contains("a&lt;b") && svg.contains("&quot;x&quot; &amp; y"));
        for tick in ["10 ms", "100 ms", "1 s", "0%", "100%"] {
            assert!(svg.contains(&format!(">{tick}<")), "{tick}");
        }
    }

    #[test]
    fn what_cannot_be_shown_is_left_out() {
        let none = plot(vec![(0.0, 1.0), (f64::NAN, 1.0), (5.0, f64::INFINITY)]);
        assert!(!none.has_points() && !none.figure().contains("NaN"));
        let one = plot(vec![(7.0, 5.0)]).figure();
        assert!(one.contains("<circle") && !one.contains("NaN") && !one.contains("inf"));
    }

    #[test]
    fn ticks_are_round_and_few() {
        let linear = Axis::linear("", Unit::Number);
        assert_eq!(linear.ticks((0.0, 100.0)), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(linear.ends([3.0, 103.0].into_iter()), (0.0, 120.0), "room to the next tick");
        assert_eq!(linear.ends([0.0].into_iter()), (0.0, 1.0));
        let hours = Axis::linear("", Unit::Seconds).ticks((0.0, 8_000.0));
        assert_eq!(hours[..3], [0.0, 1_800.0, 3_600.0]);
        let log = Axis::log("", Unit::Number);
        assert_eq!(log.ticks((0.0, 1.0)), [1.0, 2.0, 5.0, 10.0]);
        let times = Axis::log("", Unit::Seconds).ticks((0.0, 86_400_f64.log10()));
        assert_eq!(times, [1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0]);
        for axis in [linear, log, Axis::log("", Unit::Ms), Axis::linear("", Unit::Ms)] {
            for ends in [(-3.0, 9.0), (0.0, 0.001), (5.0, 5.5), (-30.0, 300.0), (0.0, 1e12)] {
                assert!(axis.ticks(ends).len() <= 12, "{ends:?}");
            }
        }
        assert_eq!(
            [0.0, 12.0, 1_234.0, 56_789.0, 2.5e6].map(short),
            ["0", "12", "1234", "56.8k", "2.5M"]
        );
        assert_eq!(
            [0.5, 1_500.0, 90_000.0, 7.2e6].map(time),
            ["0.5 ms", "1.5 s", "1.5 min", "2 h"]
        );
    }
}
