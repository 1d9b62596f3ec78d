//! The constants of one engine on one kind of GPU, and the time that a step takes by them.
//!
//! Profiles are TOML files, so that a fitted one can replace the shipped guesses without a new program. Each number
//! is checked: what is not finite, not positive or leaves no memory for blocks is an error that names the member.

use serde::Deserialize;
use thiserror::Error;

/// The profiles that are built in.
const BUILT_IN: [(&str, &str); 2] = [
    ("h200-8b", include_str!("../profiles/h200-8b.toml")),
    ("h200-70b", include_str!("../profiles/h200-70b.toml")),
];
/// No constant is larger.
const NUMBER_MAX: f64 = 1e18;
/// Tokens of a step and requests at once, at most.
const COUNT_MAX: f64 = 1e6;

/// Why there is no profile.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// No such name.
    #[error("no profile is called {0}; use h200-8b, h200-70b or a TOML file")]
    Unknown(String),
    /// Not TOML, or members that are missing or not known.
    #[error("the profile cannot be read: {0}")]
    Form(String),
    /// A number that makes no sense.
    #[error("the profile's {0}")]
    Number(&'static str),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    gpus: f64,
    parameters: f64,
    layers: f64,
    heads: f64,
    kv_heads: f64,
    head_width: f64,
    weight_bytes_per_parameter: f64,
    kv_bytes_per_value: f64,
    flops: f64,
    bytes_per_s: f64,
    memory_bytes: f64,
    linear_efficiency: f64,
    attention_efficiency: f64,
    bandwidth_efficiency: f64,
    overhead_us: f64,
    memory_share: f64,
    reserve_bytes: f64,
    step_tokens_max: f64,
    requests_max: f64,
    #[serde(default)]
    host_bytes_per_s: f64,
    #[serde(default)]
    peer_bytes_per_s: f64,
}

impl Raw {
    fn check(&self) -> Result<(), ProfileError> {
        let numbers = [
            (self.gpus, "gpus must be positive"),
            (self.parameters, "parameters must be positive"),
            (self.layers, "layers must be positive"),
            (self.heads, "heads must be positive"),
            (self.kv_heads, "kv_heads must be positive"),
            (self.head_width, "head_width must be positive"),
            (self.weight_bytes_per_parameter, "weight_bytes_per_parameter must be positive"),
            (self.kv_bytes_per_value, "kv_bytes_per_value must be positive"),
            (self.flops, "flops must be positive"),
            (self.bytes_per_s, "bytes_per_s must be positive"),
            (self.memory_bytes, "memory_bytes must be positive"),
            (self.overhead_us, "overhead_us must be positive"),
        ];
        let shares = [
            (self.linear_efficiency, "linear_efficiency must be above 0 and at most 1"),
            (self.attention_efficiency, "attention_efficiency must be above 0 and at most 1"),
            (self.bandwidth_efficiency, "bandwidth_efficiency must be above 0 and at most 1"),
            (self.memory_share, "memory_share must be above 0 and at most 1"),
        ];
        let counts = [
            (self.step_tokens_max, "step_tokens_max must be 1 to 1000000"),
            (self.requests_max, "requests_max must be 1 to 1000000"),
        ];
        let bad = |value: f64, low: f64, high: f64| !(value >= low && value <= high);
        let number = numbers.iter().find(|n| bad(n.0, f64::MIN_POSITIVE, NUMBER_MAX));
        let share = shares.iter().find(|n| bad(n.0, f64::MIN_POSITIVE, 1.0));
        let count = counts.iter().find(|n| bad(n.0, 1.0, COUNT_MAX));
        let others = [
            (self.reserve_bytes, "reserve_bytes must not be negative"),
            (self.host_bytes_per_s, "host_bytes_per_s must not be negative"),
            (self.peer_bytes_per_s, "peer_bytes_per_s must not be negative"),
        ];
        let other = others.iter().find(|n| bad(n.0, 0.0, NUMBER_MAX));
        number.or(share).or(count).or(other).map_or(Ok(()), |n| Err(ProfileError::Number(n.1)))
    }
}

/// What an engine costs by the step.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    linear_us_per_token: f64,
    weights_us: f64,
    attention_us_per_pair: f64,
    kv_us_per_token: f64,
    overhead_us: f64,
    kv_tokens: u64,
    /// Endless where there is no such way.
    host_us_per_token: f64,
    peer_us_per_token: f64,
    host_tokens: u64,
    pub(crate) step_tokens_max: u32,
    pub(crate) requests_max: usize,
}

impl Profile {
    /// The names of the built-in profiles.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        BUILT_IN.iter().map(|(name, _)| *name).collect()
    }

    /// A built-in profile.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn named(name: &str) -> Result<Self, ProfileError> {
        let found = BUILT_IN.iter().find(|(known, _)| *known == name);
        found.map_or_else(
            || Err(ProfileError::Unknown(name.to_owned())),
            |(_, text)| Self::parse(text),
        )
    }

    /// Reads the text of a profile.
    ///
    /// # Errors
    /// If it is not of the form, or a number makes no sense.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let raw: Raw =
            toml::from_str(text).map_err(|e| ProfileError::Form(e.message().to_owned()))?;
        raw.check()?;
        let (flops, bytes_per_s) = (raw.flops * raw.gpus, raw.bytes_per_s * raw.gpus);
        let bytes_per_s = bytes_per_s * raw.bandwidth_efficiency;
        let weights = raw.parameters * raw.weight_bytes_per_parameter;
        let kv_bytes = 2.0 * raw.layers * raw.kv_heads * raw.head_width * raw.kv_bytes_per_value;
        let pair = 4.0 * raw.layers * raw.heads * raw.head_width;
        let memory = (raw.memory_bytes * raw.memory_share - raw.reserve_bytes) * raw.gpus - weights;
        let kv_tokens = memory / kv_bytes;
        if kv_tokens < 1.0 {
            return Err(ProfileError::Number("memory_bytes leave nothing for blocks"));
        }
        Ok(Self {
            linear_us_per_token: 2e6 * raw.parameters / (flops * raw.linear_efficiency),
            weights_us: 1e6 * weights / bytes_per_s,
            attention_us_per_pair: 1e6 * pair / (flops * raw.attention_efficiency),
            kv_us_per_token: 1e6 * kv_bytes / bytes_per_s,
            overhead_us: raw.overhead_us,
            kv_tokens: kv_tokens as u64,
            // By nothing is endless.
            host_us_per_token: 1e6 * kv_bytes / raw.host_bytes_per_s / raw.gpus,
            peer_us_per_token: 1e6 * kv_bytes / raw.peer_bytes_per_s / raw.gpus,
            host_tokens: 0,
            step_tokens_max: raw.step_tokens_max as u32,
            requests_max: raw.requests_max as usize,
        })
    }

    /// The same engine with so many times the arithmetic and so many times the bandwidth: to see whether a result
    /// hangs on a constant. Factors that are not positive count as 1.
    #[must_use]
    pub fn scaled(mut self, arithmetic: f64, bandwidth: f64) -> Self {
        let sane = |factor: f64| if factor > 0.0 && factor < NUMBER_MAX { factor } else { 1.0 };
        self.linear_us_per_token /= sane(arithmetic);
        self.attention_us_per_pair /= sane(arithmetic);
        self.weights_us /= sane(bandwidth);
        self.kv_us_per_token /= sane(bandwidth);
        self.host_us_per_token /= sane(bandwidth);
        self.peer_us_per_token /= sane(bandwidth);
        self
    }

    /// The same engine with a cache so many times as large, of one token at least. What is not positive counts as 1.
    #[must_use]
    pub fn with_cache(mut self, times: f64) -> Self {
        if times > 0.0 && times < NUMBER_MAX {
            // A cast from a float stops at the ends of the range.
            self.kv_tokens = ((self.kv_tokens as f64 * times) as u64).max(1);
        }
        self
    }

    /// The same engine with host memory for so many times the tokens of its cache. What is not positive is none.
    #[must_use]
    pub fn with_host(mut self, times: f64) -> Self {
        // A cast from a float stops at the ends of the range, and what is no number becomes 0.
        self.host_tokens = (self.kv_tokens as f64 * times) as u64;
        self
    }

    /// What a token from another engine takes; `None` where the profile knows no way.
    #[must_use]
    pub fn peer_us_per_token(&self) -> Option<f64> {
        Some(self.peer_us_per_token).filter(|us| us.is_finite())
    }

    /// Tokens that its host memory holds.
    #[must_use]
    pub fn host_tokens(&self) -> u64 {
        self.host_tokens
    }

    /// The same for host memory, where there is any.
    pub(crate) fn host_us_per_token(&self) -> Option<f64> {
        Some(self.host_us_per_token).filter(|us| us.is_finite() && self.host_tokens > 0)
    }

    /// Blocks that host memory holds.
    pub(crate) fn host_blocks(&self, block_tokens: u32) -> usize {
        let blocks = self.host_us_per_token().map_or(0, |_| self.host_tokens);
        (blocks / u64::from(block_tokens.max(1))) as usize
    }

    /// Tokens that its cache holds.
    #[must_use]
    pub fn kv_tokens(&self) -> u64 {
        self.kv_tokens
    }

    /// A step: `tokens` in all, `pairs` of a prompt's new tokens with all before them, `context` tokens that
    /// decoding requests read.
    pub(crate) fn step_us(&self, tokens: u32, pairs: f64, context: u64) -> f64 {
        let linear = (f64::from(tokens) * self.linear_us_per_token).max(self.weights_us);
        let attention = pairs * self.attention_us_per_pair;
        self.overhead_us + linear + attention + context as f64 * self.kv_us_per_token
    }

    /// `steps` steps of `requests` decoding requests, whose contexts were `context` tokens together at first.
    pub(crate) fn decode_us(&self, steps: u32, requests: u32, context: u64) -> f64 {
        let steps = f64::from(steps);
        let grown = f64::from(requests) * steps * (steps - 1.0) / 2.0;
        let read = steps * context as f64 + grown;
        steps * self.step_us(requests, 0.0, 0) + read * self.kv_us_per_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_profiles_are_of_the_right_size() {
        let small = Profile::named("h200-8b").unwrap();
        // (141e9 * 0.9 - 6e9 - 16.06e9) / 131072 bytes.
        assert_eq!(small.kv_tokens(), 799_865);
        let large = Profile::named("h200-70b").unwrap();
        assert!((1_000_000..1_100_000).contains(&large.kv_tokens()), "{}", large.kv_tokens());
        // A step of 8,192 tokens: 2 * 8.03e9 * 8192 / 593.4e12 s, and 1.5 ms.
        assert!((small.step_us(8_192, 0.0, 0) - 223_211.0).abs() < 10.0);
        // One token waits for 16 GB at 3.84 TB/s.
        assert!((small.step_us(1, 0.0, 0) - 5_682.0).abs() < 1.0);
    }

    #[test]
    fn many_decode_steps_take_as_long_as_each_of_them() {
        let profile = Profile::named("h200-8b").unwrap();
        let each: f64 = (0..50).map(|step| profile.step_us(3, 0.0, 1_000 + 3 * step)).sum();
        assert!((profile.decode_us(50, 3, 1_000) - each).abs() < 0.01);
    }

    #[test]
    fn scaling_divides_times() {
        let plain = Profile::named("h200-8b").unwrap();
        let half = plain.clone().scaled(0.5, f64::NAN);
        let (a, b) = (plain.step_us(8_192, 1e6, 0), half.step_us(8_192, 1e6, 0));
        assert!((b - 1_500.0 - 2.0 * (a - 1_500.0)).abs() < 1e-6);
        assert!((plain.step_us(1, 0.0, 9) - half.step_us(1, 0.0, 9)).abs() < 1e-9);
    }

    #[test]
    fn a_cache_is_scaled_and_never_empty() {
        let tokens = |times| Profile::named("h200-8b").unwrap().with_cache(times).kv_tokens();
        assert_eq!(
            [0.5, 1.0, -1.0, f64::NAN, 1e-12].map(tokens),
            [399_932, 799_865, 799_865, 799_865, 1]
        );
    }

    #[test]
    fn mistakes_are_named() {
        let text = BUILT_IN[0].1;
        for (from, to, word) in [
            ("layers = 32", "layers = -1", "layers"),
            ("layers = 32", "layers = nan", "layers"),
            ("layers = 32", "lairs = 32", "lairs"),
            ("memory_share = 0.90", "memory_share = 0.01", "nothing for blocks"),
            ("memory_share = 0.90", "memory_share = 1.5", "memory_share"),
            ("requests_max = 256", "requests_max = 0", "requests_max"),
        ] {
            let error = Profile::parse(&text.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(word), "{to}: {error}");
        }
        assert!(Profile::named("b300").unwrap_err().to_string().contains("h200-70b"));
    }
}
