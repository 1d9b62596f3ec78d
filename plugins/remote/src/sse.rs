//! Server-sent events out of a stream of bytes, however it is cut: pure, and bounded in each line and event.

/// The longest event: a server may repeat the whole prompt in its last one.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// The stream is not one of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {EVENT_BYTES_MAX} bytes")]
pub(crate) struct TooLong;

/// The part of a stream that was read, and not yet given out.
#[derive(Debug, Default)]
pub(crate) struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return, whose line feed may follow.
    after_return: bool,
}

impl Events {
    /// Takes bytes in; each whole event's data is given to `out`.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        mut out: impl FnMut(Vec<u8>),
    ) -> Result<(), TooLong> {
        for byte in bytes {
            let is_feed_of_return = std::mem::take(&mut self.after_return) && *byte == b'\n';
            match byte {
                b'\n' if is_feed_of_return => {}
                b'\n' | b'\r' => {
                    self.after_return = *byte == b'\r';
                    if let Some(data) = self.end_line() {
                        out(data);
                    }
                }
                byte => self.line.push(*byte),
            }
            if self.line.len() + self.data.len() > EVENT_BYTES_MAX {
                return Err(TooLong);
            }
        }
        Ok(())
    }

    /// Ends a line; answers with the event that an empty one ends.
    fn end_line(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return std::mem::take(&mut self.has_data).then_some(data);
        }
        // Names, ids and comments say nothing to us.
        if let Some(value) = line.strip_prefix(b"data:") {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend(value.strip_prefix(b" ").unwrap_or(value));
        }
        None
    }

    /// Whether the stream may end here without something being lost.
    pub(crate) fn is_between(&self) -> bool {
        self.line.is_empty() && !self.has_data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parts: &[&[u8]]) -> Vec<String> {
        let (mut events, mut out) = (Events::default(), Vec::new());
        for part in parts {
            events.feed(part, |data| out.push(String::from_utf8(data).unwrap())).unwrap();
        }
        out
    }

    #[test]
    fn events_of_every_line_ending_are_read() {
        let text =
            b": hello\n\ndata: {\"a\": 1}\n\ndata:x\r\ndata: y\r\n\r\nevent: e\rdata:\r\r\n\n";
        assert_eq!(read(&[text]), ["{\"a\": 1}", "x\ny", ""]);
    }

    #[test]
    fn an_event_is_given_out_when_it_is_whole() {
        let mut events = Events::default();
        events.feed(b"data: 1\n", |data| panic!("{data:?}")).unwrap();
        assert!(!events.is_between());
        let mut count = 0;
        events.feed(b"\n", |_| count += 1).unwrap();
        assert!(events.is_between() && count == 1);
    }

    #[test]
    fn an_endless_line_is_an_error() {
        let mut events = Events::default();
        let part = [b'x'; 1 << 20];
        let fed = (0..20).map(|_| events.feed(&part, |_| ())).find(Result::is_err);
        assert_eq!(fed, Some(Err(TooLong)));
    }

    proptest::proptest! {
        #[test]
        fn cuts_change_nothing(cuts in proptest::collection::vec(0_usize..60, 0..6)) {
            let text: &[u8] = b"data: one\r\n\r\ndata: t\ndata: wo\n\n:c\n\ndata: three\r\r";
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(text.len())).collect();
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut before = 0;
            for at in cuts.into_iter().chain([text.len()]) {
                parts.push(&text[before..at]);
                before = at;
            }
            proptest::prop_assert_eq!(read(&parts), ["one", "t\nwo", "three"]);
        }
    }
}
