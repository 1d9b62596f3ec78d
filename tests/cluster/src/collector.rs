//! An OpenTelemetry collector for tests: gRPC on loopback, and what comes is handed on.

use anyhow::Result;
use futures::StreamExt;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tonic::{Request, Response, Status};

struct Collector<F>(F);

#[tonic::async_trait]
impl<F: Fn(ExportTraceServiceRequest) + Send + Sync + 'static> TraceService for Collector<F> {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        (self.0)(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Listens as long as the runtime lives, and hands on whatever is sent; the address to send to.
pub async fn collect(
    take: impl Fn(ExportTraceServiceRequest) + Send + Sync + 'static,
) -> Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let incoming = futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let service = TraceServiceServer::new(Collector(take));
    tokio::spawn(async move {
        let served = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming.boxed())
            .await;
        assert!(served.is_ok(), "{served:?}");
    });
    Ok(address)
}
