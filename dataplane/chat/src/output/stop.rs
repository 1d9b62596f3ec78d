//! Stop strings, found across any split of the text.
//!
//! Text that could be the beginning of a stop string is held back until it is decided, so no
//! part of a stop string is ever shown. The match that ends first wins, and among those the one
//! that starts first: what a search character by character would find.

/// Watches a growing text for stop strings.
#[derive(Debug)]
pub(super) struct StopMatcher {
    stops: Vec<String>,
    held: String,
    matched: Option<usize>,
}

impl StopMatcher {
    pub(super) fn new(stops: &[String]) -> StopMatcher {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        StopMatcher { stops, held: String::new(), matched: None }
    }

    /// Takes more text, returns what may be shown.
    pub(super) fn push(&mut self, text: &str) -> String {
        if self.matched.is_some() {
            return String::new();
        }
        if self.stops.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        let found = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, index))
        });
        if let Some((_, start, index)) = found.min() {
            self.matched = Some(index);
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep_from = self.undecided_from();
        let undecided = self.held.split_off(keep_from);
        std::mem::replace(&mut self.held, undecided)
    }

    /// Shows what was held back: no more text will join it.
    pub(super) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    pub(super) fn matched(&self) -> Option<&str> {
        self.matched.map(|index| self.stops[index].as_str())
    }

    /// Where the longest tail begins that some stop string begins with.
    fn undecided_from(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        let starts = self.held.char_indices().map(|(start, _)| start);
        let mut starts = starts.skip_while(|start| *start < from);
        starts
            .find(|start| self.stops.iter().any(|stop| stop.starts_with(&self.held[*start..])))
            .unwrap_or(self.held.len())
    }
}
