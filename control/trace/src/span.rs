//! A stretch of a request's work.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace;
use parking_lot::Mutex;

use crate::Parent;
use crate::export::{begins, tracer};

/// On which side of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It serves a call.
    Server,
    /// It waits for the answer of one.
    Client,
    /// Neither.
    Internal,
}

/// A stretch of work. It ends with its last handle; what is not exported is nothing, and its calls say nothing of it.
#[derive(Clone, Default)]
pub struct Span {
    recording: Option<Arc<Mutex<trace::Span>>>,
    own: Parent,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Span {
    /// One that serves a client: a part of its trace, or the begin of one, of which a share is exported.
    #[must_use]
    pub fn begin(name: &'static str, parent: &Parent) -> Self {
        match tracer() {
            Some(tracer) if *parent == Parent::default() && begins() => {
                Self::begin_with(tracer, name, Kind::Server, parent)
            }
            _ => Self::serve(name, parent),
        }
    }

    /// One that serves a call of another process: a part of its caller's trace, and nothing where that is not exported.
    #[must_use]
    pub fn serve(name: &'static str, parent: &Parent) -> Self {
        Self::serve_with(tracer(), name, parent)
    }

    fn serve_with(tracer: Option<&trace::SdkTracer>, name: &'static str, parent: &Parent) -> Self {
        match tracer {
            Some(tracer) if parent.is_sampled() => {
                Self::begin_with(tracer, name, Kind::Server, parent)
            }
            _ => Self::through(parent),
        }
    }

    pub(crate) fn begin_with(
        tracer: &trace::SdkTracer,
        name: &'static str,
        kind: Kind,
        parent: &Parent,
    ) -> Self {
        let kind = match kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
            Kind::Internal => SpanKind::Internal,
        };
        // A span that nobody caused has none around it: an invalid one would count as one that is not sampled.
        let around = match parent.context() {
            Some(context) => Context::new().with_remote_span_context(context.clone()),
            None => Context::new(),
        };
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        let span = tracer.build_with_context(builder, &around);
        let own = Parent::of(span.span_context().clone());
        let recording = span.is_recording().then(|| Arc::new(Mutex::new(span)));
        Self { recording, own }
    }

    /// One that is nothing itself: what would be its children are the parent's.
    #[must_use]
    pub fn through(parent: &Parent) -> Self {
        Self { recording: None, own: parent.clone() }
    }

    /// A part of this one.
    #[must_use]
    pub fn child(&self, name: &'static str, kind: Kind) -> Self {
        // Whoever is not recorded has no recorded parts.
        match (&self.recording, tracer()) {
            (Some(_), Some(tracer)) => Self::begin_with(tracer, name, kind, &self.own),
            _ => Self::through(&self.own),
        }
    }

    /// A part of it that is over, from when to when by this process's clock.
    pub fn past(&self, name: &'static str, from: Instant, to: Instant) {
        let (Some(_), Some(tracer)) = (&self.recording, tracer()) else { return };
        self.past_with(tracer, name, from, to);
    }

    fn past_with(&self, tracer: &trace::SdkTracer, name: &'static str, from: Instant, to: Instant) {
        let Some(context) = self.own.context() else { return };
        let (now, wall) = (Instant::now(), SystemTime::now());
        let at =
            |then: Instant| wall.checked_sub(now.saturating_duration_since(then)).unwrap_or(wall);
        let around = Context::new().with_remote_span_context(context.clone());
        let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Internal);
        let mut span = tracer.build_with_context(builder.with_start_time(at(from)), &around);
        span.end_with_timestamp(at(to));
    }

    /// Whether anybody will read what it is told: for what costs something to find out.
    #[must_use]
    pub const fn is_recorded(&self) -> bool {
        self.recording.is_some()
    }

    /// Says something about it.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &self.recording {
            span.lock().set_attribute(KeyValue::new(key, value));
        }
    }

    /// It went wrong.
    pub fn fail(&self, why: &'static str) {
        if let Some(span) = &self.recording {
            span.lock().set_status(Status::error(why));
        }
    }

    /// It, as the parent of others.
    #[must_use]
    pub const fn parent(&self) -> &Parent {
        &self.own
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};

    use super::*;

    fn provider() -> (SdkTracerProvider, InMemorySpanExporter) {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        (provider, exporter)
    }

    #[test]
    fn a_span_ends_with_its_last_handle_and_belongs_to_its_parent() {
        let (provider, exporter) = provider();
        let tracer = provider.tracer("test");
        let root = Span::begin_with(&tracer, "root", Kind::Server, &Parent::default());
        let part = Span::begin_with(&tracer, "part", Kind::Internal, root.parent());
        part.set("tokens", 5_i64);
        let other = root.clone();
        drop(root);
        drop(part);
        let ended = exporter.get_finished_spans().unwrap();
        assert_eq!(ended.len(), 1, "the root has a handle left");
        assert_eq!((ended[0].name.as_ref(), ended[0].attributes.len()), ("part", 1));
        let trace = other.parent().trace_id();
        drop(other);
        let ended = exporter.get_finished_spans().unwrap();
        assert_eq!(ended[0].parent_span_id, ended[1].span_context.span_id());
        assert_eq!(Parent::of(ended[1].span_context.clone()).trace_id(), trace);
    }

    #[test]
    fn what_is_over_is_told_with_its_own_times() {
        let (provider, exporter) = provider();
        let tracer = provider.tracer("test");
        let root = Span::begin_with(&tracer, "root", Kind::Server, &Parent::default());
        let ended = Instant::now();
        let began = ended.checked_sub(Duration::from_millis(250)).expect("it runs that long");
        root.past_with(&tracer, "part", began, ended);
        let told = exporter.get_finished_spans().unwrap();
        let long = told[0].end_time.duration_since(told[0].start_time).unwrap();
        assert_eq!((told[0].name.as_ref(), long), ("part", Duration::from_millis(250)));
        drop(root);
        let told = exporter.get_finished_spans().unwrap();
        assert_eq!(told[0].parent_span_id, told[1].span_context.span_id());
        assert!(told[0].start_time < told[1].start_time);
    }

    #[test]
    fn a_call_of_an_unsampled_trace_is_nothing_and_tells_others_whose_it_is() {
        let (provider, exporter) = provider();
        let tracer = provider.tracer("test");
        let of = |flags| format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
        let unsampled = Parent::from_text(&of("00"));
        for parent in [&unsampled, &Parent::default()] {
            let span = Span::serve_with(Some(&tracer), "serve", parent);
            assert!(!span.is_recorded());
            assert_eq!(span.parent(), parent);
        }
        assert!(exporter.get_finished_spans().unwrap().is_empty());
        drop(Span::serve_with(Some(&tracer), "serve", &Parent::from_text(&of("01"))));
        let told = exporter.get_finished_spans().unwrap();
        assert_eq!(told[0].parent_span_id.to_string(), "b7ad6b7169203331");
    }

    #[test]
    fn while_nothing_is_exported_a_parent_goes_through() {
        let (provider, _) = provider();
        let client =
            Span::begin_with(&provider.tracer("test"), "c", Kind::Client, &Parent::default());
        let span = Span::through(client.parent());
        assert_eq!(span.child("part", Kind::Internal).parent(), client.parent());
    }
}
