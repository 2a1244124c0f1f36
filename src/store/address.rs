//! TLS to Postgres, by the words of libpq: `sslmode` and `sslrootcert` of the URL mean what they mean there.
//!
//! The client library knows only `disable`, `prefer` and `require`, and refuses the rest; so the two parameters are
//! read here and taken out of the URL before it sees it.

use std::{fs, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_postgres::{Config, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Where and how to connect.
#[derive(Clone)]
pub struct Address {
    pub config: Config,
    pub tls: MakeRustlsConnect,
}

/// Why a URL cannot be used. The URL may hold a password, so no text shows it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the address of postgres is not understood: {0}")]
    Url(#[source] tokio_postgres::Error),
    #[error("sslmode={0} in postgres.url is not known: use disable, prefer, require, verify-ca or verify-full")]
    Mode(String),
    #[error("sslrootcert={path} in postgres.url cannot be used: {why}")]
    Roots { path: String, why: String },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// Reads a URL with its TLS parameters.
pub fn address(url: &str) -> Result<Address, Error> {
    let (url, mode, roots) = split(url);
    let mut config: Config = url.parse().map_err(Error::Url)?;
    let (ssl, verify) = match mode.as_deref().unwrap_or("prefer") {
        "disable" => (SslMode::Disable, false),
        "allow" | "prefer" => (SslMode::Prefer, false),
        // As libpq: with a root certificate at hand, `require` checks it too.
        "require" => (SslMode::Require, roots.is_some()),
        "verify-ca" | "verify-full" => (SslMode::Require, true),
        other => return Err(Error::Mode(other.to_owned())),
    };
    config.ssl_mode(ssl);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let client = if verify {
        builder.with_root_certificates(root_store(roots.as_deref())?).with_no_client_auth()
    } else {
        let verifier = Arc::new(AnyCertificate(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    };
    Ok(Address { config, tls: MakeRustlsConnect::new(client) })
}

/// The URL of another database on the same server, for the same user.
pub fn with_database(url: &str, database: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let authority = base.find("://").map_or(0, |at| at + 3);
    let end = base[authority..].find('/').map_or(base.len(), |at| authority + at);
    let query = query.map_or(String::new(), |query| format!("?{query}"));
    format!("{}/{database}{query}", &base[..end])
}

/// The URL without the two parameters, and their values.
fn split(url: &str) -> (String, Option<String>, Option<String>) {
    let Some((base, query)) = url.split_once('?') else { return (url.to_owned(), None, None) };
    let (mut mode, mut roots, mut rest) = (None, None, Vec::new());
    for parameter in query.split('&') {
        match parameter.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value.to_owned()),
            Some(("sslrootcert", value)) => roots = Some(value.replace("%2F", "/").replace("%2f", "/")),
            _ => rest.push(parameter),
        }
    }
    let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    (url, mode, roots)
}

/// The certificates of a PEM file, or those that browsers trust.
fn root_store(path: Option<&str>) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    let Some(path) = path else {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok(store);
    };
    let refuse = |why: String| Error::Roots { path: path.to_owned(), why };
    let pem = fs::read(path).map_err(|e| refuse(e.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| refuse(e.to_string()))?;
        store.add(certificate).map_err(|e| refuse(e.to_string()))?;
    }
    if store.is_empty() { Err(refuse("it holds no certificate".to_owned())) } else { Ok(store) }
}

/// Encrypts without asking who the other side is, which is what `prefer` and `require` mean. Signatures of the
/// handshake are checked all the same.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_libpq() {
        let mode = |url: &str| address(url).map(|a| a.config.get_ssl_mode());
        assert_eq!(mode("postgres://h/d").unwrap(), SslMode::Prefer);
        assert_eq!(mode("postgres://h/d?sslmode=disable").unwrap(), SslMode::Disable);
        assert_eq!(mode("postgres://h/d?connect_timeout=3&sslmode=verify-full").unwrap(), SslMode::Require);
        assert!(matches!(mode("postgres://h/d?sslmode=yes"), Err(Error::Mode(m)) if m == "yes"));
    }

    #[test]
    fn another_database_keeps_everything_else() {
        assert_eq!(with_database("postgres://u:p@h:5/d?sslmode=require", "x"), "postgres://u:p@h:5/x?sslmode=require");
        assert_eq!(with_database("postgres://u@h", "x"), "postgres://u@h/x");
    }

    #[test]
    fn faulty_roots_are_named_and_the_password_is_not() {
        let error = address("postgres://u:hush@h/d?sslmode=verify-full&sslrootcert=%2Fnowhere").err().unwrap();
        let text = error.to_string();
        assert!(text.contains("/nowhere") && !text.contains("hush"), "{text}");
    }
}
