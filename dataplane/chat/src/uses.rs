//! Hints that came with a request, and whether they change anything here.
//!
//! A client can't see whether its hint was understood: servers that know another dialect drop it without a word. So
//! each one that was read is named, apart from those that were read and change nothing. Names are of a fixed set,
//! never a client's text, so they may stand in a header.

/// A hint that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintUse {
    /// The member or header that it came in.
    pub name: &'static str,
    /// Whether it changes what happens to the request.
    pub effective: bool,
}

/// The hints of one request, each named once, in the order they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses(Vec<HintUse>);

impl Uses {
    /// Notes a hint that changes something.
    pub(crate) fn used(&mut self, name: &'static str) {
        self.note(HintUse { name, effective: true });
    }

    /// Notes a hint that was understood and changes nothing.
    pub(crate) fn idle(&mut self, name: &'static str) {
        self.note(HintUse { name, effective: false });
    }

    fn note(&mut self, hint: HintUse) {
        match self.0.iter_mut().find(|known| known.name == hint.name) {
            Some(known) => known.effective |= hint.effective,
            None => self.0.push(hint),
        }
    }

    /// Notes that these changed nothing after all, where they came.
    pub fn had_no_effect(&mut self, names: &[&str]) {
        for hint in self.0.iter_mut().filter(|hint| names.contains(&hint.name)) {
            hint.effective = false;
        }
    }

    /// Those that change something.
    pub fn effective(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter(|hint| hint.effective).map(|hint| hint.name)
    }

    /// Those that change nothing.
    pub fn ineffective(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter(|hint| !hint.effective).map(|hint| hint.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_named_once_and_the_stronger_word_stands() {
        let mut uses = Uses::default();
        uses.idle("a");
        uses.used("b");
        uses.used("a");
        uses.idle("b");
        assert_eq!(uses.effective().collect::<Vec<_>>(), ["a", "b"]);
        uses.had_no_effect(&["b", "never-seen"]);
        assert_eq!(uses.effective().collect::<Vec<_>>(), ["a"]);
        assert_eq!(uses.ineffective().collect::<Vec<_>>(), ["b"]);
    }
}
