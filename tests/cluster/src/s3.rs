//! A store that speaks S3, for tests: a folder behind a real server on loopback. Other crates' tests take this file in,
//! too.

use std::path::Path;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

/// Serves a folder, whose folders are the buckets, to whoever has this key, and says where.
pub async fn serve(folder: &Path, key_id: &str, secret: &str) -> String {
    let store = s3s_fs::FileSystem::new(folder).expect("a folder");
    let mut builder = S3ServiceBuilder::new(store);
    builder.set_auth(SimpleAuth::from_single(key_id, secret));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let http = Builder::new(TokioExecutor::new());
                // A client that goes away in the middle is the client's affair.
                let _ = http.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    format!("http://{address}")
}
