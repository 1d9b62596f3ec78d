//! Whom a span belongs to, in the words of W3C's `traceparent`.

use std::sync::Arc;

use http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use tonic::metadata::{MetadataMap, MetadataValue};

/// The header, and the key of gRPC metadata.
const NAME: &str = "traceparent";
/// What our own headers begin with.
const VERSION: &str = "00";

/// Whom a span belongs to; nobody by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parent(Option<Arc<SpanContext>>);

impl Parent {
    /// What a client says of its own trace. What cannot be read says nothing, as the specification has it.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Self {
        Self::read(headers.get(NAME).and_then(|value| value.to_str().ok()))
    }

    /// What a caller over gRPC says.
    #[must_use]
    pub fn from_metadata(metadata: &MetadataMap) -> Self {
        Self::read(metadata.get(NAME).and_then(|value| value.to_str().ok()))
    }

    /// What a message says that has it among its own words; empty for nobody.
    #[must_use]
    pub fn from_text(header: &str) -> Self {
        Self::read(Some(header))
    }

    /// Goes with a call over gRPC.
    pub fn go_with(&self, metadata: &mut MetadataMap) {
        let value = self.header().and_then(|header| MetadataValue::try_from(header).ok());
        if let Some(value) = value {
            metadata.insert(NAME, value);
        }
    }

    /// The header's value, where there is a trace.
    #[must_use]
    pub fn header(&self) -> Option<String> {
        self.0.as_ref().map(|own| {
            let flags = own.trace_flags().to_u8();
            format!("{VERSION}-{}-{}-{flags:02x}", own.trace_id(), own.span_id())
        })
    }

    /// The trace's number.
    #[must_use]
    pub fn trace_id(&self) -> Option<u128> {
        self.0.as_ref().map(|own| u128::from_be_bytes(own.trace_id().to_bytes()))
    }

    /// Whether its spans are recorded somewhere.
    pub(crate) fn is_sampled(&self) -> bool {
        self.0.as_ref().is_some_and(|own| own.is_sampled())
    }

    pub(crate) fn of(context: SpanContext) -> Self {
        Self(context.is_valid().then(|| Arc::new(context)))
    }

    /// As OpenTelemetry has it.
    pub(crate) fn context(&self) -> Option<&SpanContext> {
        self.0.as_deref()
    }

    fn read(header: Option<&str>) -> Self {
        header.and_then(parse).map_or_else(Self::default, Self::of)
    }
}

/// Digits in lower case, so many, as a number.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == digits && text.bytes().all(is_hex))
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

fn parse(header: &str) -> Option<SpanContext> {
    let mut parts = header.splitn(5, '-');
    let version = hex(parts.next()?, 2)?;
    let (trace, span) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?);
    let flags = hex(parts.next()?, 2)?;
    // Later versions may say more; the first one may not, and the last number is none.
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let (trace, span) = (TraceId::from(trace), SpanId::from(u64::try_from(span).ok()?));
    let flags = TraceFlags::new(flags as u8) & TraceFlags::SAMPLED;
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    Some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_parent_goes_over_the_wire_and_back() {
        let parent = Parent::read(Some(GOOD));
        assert_eq!(parent.header().as_deref(), Some(GOOD));
        assert_eq!(parent.trace_id(), Some(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c));
        let mut metadata = MetadataMap::new();
        parent.go_with(&mut metadata);
        assert_eq!(Parent::from_metadata(&metadata), parent);
        let mut headers = HeaderMap::new();
        headers.insert(NAME, http::HeaderValue::from_static(GOOD));
        assert_eq!(Parent::from_headers(&headers), parent);
        let mut none = MetadataMap::new();
        Parent::default().go_with(&mut none);
        assert!(none.is_empty(), "nobody is not told");
    }

    #[test]
    fn what_is_no_parent_is_nobody() {
        let zero = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        let no_span = "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01";
        for wrong in ["", "00", "x", &GOOD.to_uppercase(), &GOOD[1..], zero, no_span] {
            assert_eq!(Parent::read(Some(wrong)), Parent::default(), "{wrong}");
        }
        for wrong in ["ff-", "00-"] {
            let header = format!("{wrong}{}-more", &GOOD[3..]);
            assert_eq!(Parent::read(Some(&header)), Parent::default(), "{header}");
        }
        let later = format!("cc-{}-more", &GOOD[3..]);
        assert_eq!(
            Parent::read(Some(&later)),
            Parent::read(Some(GOOD)),
            "a later version says more"
        );
        assert_eq!(Parent::read(None).header(), None);
    }
}
