//! Other names of models: clients have a model's name built in, and a cluster serves another model under it.
//!
//! A name that a worker serves is never an alias. Among the rest the most exact pattern wins, so that an order in
//! a file means nothing. Unknown targets are told like unknown names, since the worker may join later.

/// Aliases at most.
const ALIASES_MAX: usize = 256;
/// The longest pattern or target, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Patterns of names, and the models that they stand for.
#[derive(Clone, Debug, Default)]
pub struct ModelAliases {
    /// Most exact first.
    patterns: Vec<(String, String)>,
    any: bool,
}

impl ModelAliases {
    /// Aliases from pairs of a pattern and a model's name. A pattern is a name with at most one `*`, which stands
    /// for any text.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let mut patterns: Vec<(String, String)> = pairs.into_iter().collect();
        if patterns.len() > ALIASES_MAX {
            return Err(format!("{} aliases; at most {ALIASES_MAX} are kept", patterns.len()));
        }
        for (pattern, target) in &patterns {
            let long = |name: &String| name.is_empty() || name.len() > NAME_BYTES_MAX;
            if long(pattern) || long(target) || pattern.matches('*').count() > 1 {
                return Err(format!(
                    "alias {pattern:?} = {target:?}; write a name of 1 to {NAME_BYTES_MAX} bytes with one `*` at most"
                ));
            }
        }
        let rank = |pattern: &str| (pattern.contains('*'), std::cmp::Reverse(pattern.len()));
        patterns.sort_by(|(a, _), (b, _)| rank(a).cmp(&rank(b)).then_with(|| a.cmp(b)));
        Ok(Self { patterns, any: false })
    }

    /// The same, and any other name stands for the first model that is served.
    #[must_use]
    pub fn with_any(mut self, any: bool) -> Self {
        self.any = any;
        self
    }

    /// Patterns and what they stand for, the most exact first.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = &(String, String)> {
        self.patterns.iter()
    }

    /// Whether any other name stands for the first model that is served.
    pub(crate) fn takes_any(&self) -> bool {
        self.any
    }

    /// The model that `name` stands for; `served` are the names of those served, sorted.
    pub(crate) fn target<'a>(&'a self, name: &str, served: &'a [String]) -> Option<&'a str> {
        let matching = self.patterns.iter().find(|(pattern, _)| matches(pattern, name));
        let any = || served.first().filter(|_| self.any).map(String::as_str);
        matching.map(|(_, target)| target.as_str()).or_else(any)
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aliases(pairs: &[(&str, &str)]) -> Result<ModelAliases, String> {
        ModelAliases::new(pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())))
    }

    #[test]
    fn the_most_exact_pattern_wins_in_whatever_order() {
        let mut pairs =
            [("*", "all"), ("claude-*", "c"), ("claude-opus-*-x", "o"), ("claude-1", "one")];
        for _ in 0..2 {
            let known = aliases(&pairs).expect("sound");
            for (name, target) in [
                ("claude-1", "one"),
                ("claude-12", "c"),
                ("claude-opus-4-x", "o"),
                ("claude-opus-x", "c"),
                ("gpt-5", "all"),
            ] {
                assert_eq!(known.target(name, &[]), Some(target), "{name}");
            }
            pairs.reverse();
        }
    }

    #[test]
    fn without_a_pattern_only_any_model_helps() {
        let served = ["demo".to_owned(), "other".to_owned()];
        let none = aliases(&[("claude-*", "demo")]).expect("sound");
        assert_eq!(none.target("gpt", &served), None);
        let any = none.with_any(true);
        assert_eq!(any.target("gpt", &served), Some("demo"));
        assert_eq!(any.target("gpt", &[]), None);
        // A head and a tail may not share letters.
        assert!(!matches("ab*ba", "aba"));
    }

    #[test]
    fn patterns_have_limits() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for bad in [("a*b*", "demo"), ("", "demo"), ("a", ""), (long.as_str(), "demo")] {
            assert!(aliases(&[bad]).is_err(), "{bad:?}");
        }
        let many = vec![("a", "b"); ALIASES_MAX + 1];
        assert!(aliases(&many).is_err());
    }
}
