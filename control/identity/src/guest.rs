//! Connections of those who have no certificate: an operator with the admin token, a node that joins by a token.
//!
//! The member must show a certificate that the authority in the token has signed; it sends that authority's own
//! certificate along, whose fingerprint is compared. So a token is shown to its cluster and to nobody else.

use std::sync::Arc;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
};
use tonic::transport::{Channel, Endpoint};

use crate::connect::open;
use crate::identity::{ALPN_H2, library};
use crate::name::Peer;
use crate::secret::{ClusterSecret, hex, sha256};
use crate::{IdentityError, Role};

/// Opens connections without a certificate.
#[derive(Clone)]
pub struct Guest {
    client: Arc<ClientConfig>,
}

impl Guest {
    /// A guest of the cluster that the token is for.
    ///
    /// # Errors
    /// If the library that speaks TLS refuses.
    pub fn new(token: &ClusterSecret) -> Result<Self, IdentityError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = Fingerprint {
            authority: token.authority().to_owned(),
            provider: Arc::clone(&provider),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(library)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { client: Arc::new(config) })
    }

    /// Opens a lazy channel to a node that must have the role `expected`; times and keepalives are `endpoint`'s.
    #[must_use]
    pub fn channel(&self, endpoint: &Endpoint, expected: Role) -> Channel {
        let client = Arc::clone(&self.client);
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let client = Arc::clone(&client);
            async move {
                let named = |chain: Option<&[CertificateDer<'static>]>| {
                    Peer::of(chain.and_then(<[_]>::first).ok_or("it has no certificate")?)
                };
                open(client, &uri, expected, named).await.map(TokioIo::new)
            }
        }))
    }
}

/// Trusts the authority with that fingerprint.
#[derive(Debug)]
struct Fingerprint {
    authority: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Fingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let mut shown = intermediates.iter();
        let authority = shown.find(|c| hex(&sha256(c)) == self.authority);
        let unknown = || TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let mut roots = RootCertStore::empty();
        roots.add(authority.ok_or_else(unknown)?.clone().into_owned()).map_err(|_| unknown())?;
        let provider = Arc::clone(&self.provider);
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().map_err(|e| TlsError::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let schemes = &self.provider.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls13_signature(message, cert, dss, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
