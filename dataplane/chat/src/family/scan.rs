//! Where a value in brackets ends, found while its text grows.
//!
//! Each byte is looked at once, however the text is cut: a model's answer of a megabyte must not cost
//! a megabyte of scanning for every token of it.

/// A search for the end of one value that is an object or a list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scan {
    depth: usize,
    quote: Option<u8>,
    escaped: bool,
    /// Text may be quoted by `'` too.
    single_quotes: bool,
}

impl Scan {
    pub(crate) fn new(single_quotes: bool) -> Scan {
        Scan { single_quotes, ..Scan::default() }
    }

    /// Whether the value has begun.
    pub(crate) fn is_inside(&self) -> bool {
        self.depth > 0
    }

    /// Takes one more byte; whether the value ends with it.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        if let Some(quote) = self.quote {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                _ if byte == quote => self.quote = None,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' if self.is_inside() => self.quote = Some(byte),
            b'\'' if self.is_inside() && self.single_quotes => self.quote = Some(byte),
            b'{' | b'[' | b'(' => self.depth += 1,
            b'}' | b']' | b')' if self.depth > 0 => {
                self.depth -= 1;
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str, single_quotes: bool) -> Option<usize> {
        let mut scan = Scan::new(single_quotes);
        text.bytes().position(|byte| scan.take(byte)).map(|at| at + 1)
    }

    #[test]
    fn brackets_within_strings_do_not_count() {
        assert_eq!(end(r#"{"a": "}\"]", "b": [1]} rest"#, false), Some(23));
        assert_eq!(end("[f(a=')]')] rest", true), Some(11));
        assert_eq!(end("[f(a='", true), None);
        assert_eq!(end("} ] none", false), None);
    }
}
