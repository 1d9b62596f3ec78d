//! Spans on their way to a collector: over gRPC, in batches, from a bounded queue. What has no room, or finds no
//! collector, is lost and counted; no request ever waits for it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Uri;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler as Sampled, SdkTracer, SdkTracerProvider,
    SpanData, SpanExporter,
};

use crate::Sampling;
use crate::sampling::Sampler;

/// Spans that wait for the next batch.
const QUEUE_MAX: usize = 8_192;
/// Spans in one message.
const BATCH_MAX: usize = 512;
/// How long a span may wait.
const DELAY: Duration = Duration::from_secs(1);
/// What a collector may take for a batch.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a process that ends gives its last spans.
const END_PATIENCE: Duration = Duration::from_secs(2);

static EXPORT: OnceLock<Export> = OnceLock::new();

struct Export {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    begun: Sampler,
}

/// Why spans can't be exported.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No address of a collector.
    #[error("`{0}` is no collector's address; say http://HOST:PORT, such as http://127.0.0.1:4317")]
    Address(String),
    /// It would have to be encrypted.
    #[error(
        "`{0}`: traces go in plain text; let them go to a collector at hand (http://), which forwards over TLS"
    )]
    Encrypted(String),
    /// No share of requests.
    #[error("{0} is no share of requests; say 0.0 to 1.0")]
    Share(f64),
    /// OpenTelemetry's own words.
    #[error("no exporter of traces: {0}")]
    Build(String),
    /// This process does so already.
    #[error("this process exports traces already")]
    Twice,
}

/// Exports this process's spans to a collector from here on. To be called where the runtime is; of the traces that begin
/// here as many are exported as `sampling` says, and of others those that their clients want.
///
/// # Errors
/// An address or share that makes no sense, or an export that goes on already.
pub fn export_to(
    address: &str,
    role: &'static str,
    version: &'static str,
    sampling: Sampling,
) -> Result<(), TraceError> {
    check(address, sampling.share)?;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(address)
        .with_timeout(PATIENCE)
        .with_metadata(tonic::metadata::MetadataMap::new())
        .build()
        .map_err(|error| TraceError::Build(error.to_string()))?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE_MAX)
        .with_max_export_batch_size(BATCH_MAX)
        .with_scheduled_delay(DELAY)
        .build();
    let told = Told { inner: exporter, failing: AtomicBool::new(false) };
    let processor = BatchSpanProcessor::builder(told).with_batch_config(batches).build();
    let resource = Resource::builder()
        .with_service_name(format!("mainstay-{role}"))
        .with_attributes([
            KeyValue::new("service.version", version),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        // Which traces begin was decided before there is a span.
        .with_sampler(Sampled::ParentBased(Box::new(Sampled::AlwaysOn)))
        .with_resource(resource)
        .build();
    let tracer = provider.tracer("mainstay");
    let export = Export { provider, tracer, begun: Sampler::new(sampling) };
    EXPORT.set(export).map_err(|_| TraceError::Twice)
}

/// Sends what is left and ends the export; nothing where there was none. Blocks, for two seconds at most.
pub fn end_export() {
    if let Some(export) = EXPORT.get()
        && let Err(error) = export.provider.shutdown_with_timeout(END_PATIENCE)
    {
        tracing::debug!(%error, "the last spans were not sent");
    }
}

pub(crate) fn tracer() -> Option<&'static SdkTracer> {
    EXPORT.get().map(|export| &export.tracer)
}

/// Whether the trace that would begin now is exported.
pub(crate) fn begins() -> bool {
    EXPORT.get().is_some_and(|export| export.begun.takes())
}

fn check(address: &str, share: f64) -> Result<(), TraceError> {
    let uri: Option<Uri> = address.parse().ok();
    match uri.as_ref().and_then(Uri::scheme_str) {
        Some("http") if uri.as_ref().and_then(Uri::port_u16).is_some() => {}
        Some("https") => return Err(TraceError::Encrypted(address.to_owned())),
        _ => return Err(TraceError::Address(address.to_owned())),
    }
    if !(0.0..=1.0).contains(&share) {
        return Err(TraceError::Share(share));
    }
    Ok(())
}

/// An exporter that says so when its collector goes and comes, once each.
#[derive(Debug)]
struct Told<E> {
    inner: E,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.inner.export(batch).await;
        let ended = if result.is_ok() { "sent" } else { "lost" };
        metrics::counter!("mainstay_trace_spans_total", "ended" => ended).increment(spans);
        let was_failing = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match (&result, was_failing) {
            (Err(error), false) => {
                tracing::warn!(%error, "the collector takes no traces; they are lost meanwhile");
            }
            (Ok(()), true) => tracing::warn!("the collector takes traces again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_makes_no_sense_says_what_does() {
        assert!(check("http://127.0.0.1:4317", 1.0).is_ok());
        for wrong in ["", "127.0.0.1:4317", "ftp://x:1", "http://x", "http://x:y", "grpc://x:4317"]
        {
            let error = check(wrong, 1.0).unwrap_err();
            assert!(matches!(error, TraceError::Address(_)), "{wrong}");
            assert!(error.to_string().contains("http://127.0.0.1:4317"));
        }
        assert!(matches!(check("https://x:1", 1.0), Err(TraceError::Encrypted(_))));
        for wrong in [-0.1, 1.1, f64::NAN] {
            assert!(matches!(check("http://x:1", wrong), Err(TraceError::Share(_))), "{wrong}");
        }
    }
}
