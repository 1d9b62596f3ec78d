//! Times to live as clients write them: `"5m"`, `"1h"`, `"90s"`, or plain seconds.
//!
//! Kept apart because hints, blocks and tools all carry them. A form that can't be read yields
//! nothing; one out of bounds is clipped and said to be, so that a hint never fails a request.

use serde_json::Value;

use crate::limits::{TTL_MS_MAX, TTL_MS_MIN};

/// Milliseconds within the limits, and whether they had to be clipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ttl {
    pub(crate) ttl_ms: u64,
    pub(crate) clipped: bool,
}

/// Reads a JSON string like `"5m"` or a number of seconds.
pub(crate) fn parse_ttl(value: &Value) -> Option<Ttl> {
    let ms = match value {
        Value::String(text) => parse_text(text.trim())?,
        Value::Number(number) => {
            let seconds = number.as_f64().filter(|s| *s > 0.0)?;
            // The cast saturates, and the clip below bounds what is left.
            (seconds * 1_000.0) as u64
        }
        _ => return None,
    };
    let ttl_ms = ms.clamp(TTL_MS_MIN, TTL_MS_MAX);
    Some(Ttl { ttl_ms, clipped: ttl_ms != ms })
}

fn parse_text(text: &str) -> Option<u64> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    if digits.is_empty() {
        return None;
    }
    // More digits than fit are a very long time, which the limit clips.
    let count: u64 = digits.parse().unwrap_or(u64::MAX);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(count.saturating_mul(unit_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ttl_forms() {
        let cases = [
            (json!("5m"), Some((300_000, false))),
            (json!("1h"), Some((3_600_000, false))),
            (json!("90s"), Some((90_000, false))),
            (json!("24h"), Some((86_400_000, false))),
            (json!(300), Some((300_000, false))),
            (json!("1"), Some((1_000, false))),
            (json!("0s"), Some((1_000, true))),
            (json!("900h"), Some((TTL_MS_MAX, true))),
            (json!("99999999999999999999999h"), Some((TTL_MS_MAX, true))),
            (json!(1e300), Some((TTL_MS_MAX, true))),
            (json!(-5), None),
            (json!("-5m"), None),
            (json!("soon"), None),
            (json!("5 parsecs"), None),
            (json!(""), None),
            (json!(null), None),
            (json!({"s": 1}), None),
        ];
        for (form, expected) in cases {
            let got = parse_ttl(&form).map(|ttl| (ttl.ttl_ms, ttl.clipped));
            assert_eq!(got, expected, "{form}");
        }
    }
}
