//! Certificates from `hosts.toml`: whom to trust, and what to show.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sluice_storage::{Error, ErrorKind, Manifest, ManifestName, RegistryClient, RegistryOptions, Repository};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const DOCUMENT: &str = r#"{"layers":[]}"#;

/// A private authority and what it signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        Self { issuer }
    }

    /// A certificate for `name` and its key, as PEM and DER.
    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        (certificate, key)
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a root");
        Arc::new(roots)
    }
}

/// A host that answers every request with one document, to whoever shows a certificate of `clients` if that is asked for.
async fn start(authority: &Authority, clients: Option<&Authority>) -> String {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (certificate, key) = authority.sign("localhost");
    let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let builder = ServerConfig::builder();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let verifier = WebPkiClientVerifier::builder(clients.roots()).build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        }
    };
    let config = builder.with_single_cert(chain, key).expect("a configuration");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut connection = acceptor.accept(connection).await?;
                let mut request = [0; 4096];
                let _ = connection.read(&mut request).await?;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{DOCUMENT}",
                    DOCUMENT.len()
                );
                connection.write_all(answer.as_bytes()).await?;
                connection.shutdown().await
            });
        }
    });
    format!("https://localhost:{port}")
}

/// Asks a registry whose only host is that of the `hosts.toml`.
async fn fetch(dir: &Path, hosts: &str) -> Result<Manifest, Error> {
    let registry = dir.join("r.example");
    std::fs::create_dir_all(&registry).expect("made");
    std::fs::write(registry.join("hosts.toml"), hosts).expect("written");
    let options = RegistryOptions {
        hosts_dir: dir.to_owned(),
        auth_file: Some("/nonexistent/auth.json".into()),
        first_retry_delay: Duration::from_millis(5),
        ..RegistryOptions::default()
    };
    let client = RegistryClient::new(options);
    let repository = client.repository(&"r.example/a:t".parse()?)?;
    let name = ManifestName::Tag("t".to_owned());
    repository.fetch_manifest(&name).await
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_it_is_named() {
    let authority = Authority::new();
    let server = start(&authority, None).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let refused = fetch(dir.path(), &format!("server = \"{server}\"\n")).await;
    let error = refused.expect_err("not trusted");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("is not trusted"), "{error}");
    let careless = fetch(
        dir.path(),
        &format!("server = \"{server}\"\nskip_verify = true\n"),
    )
    .await;
    assert_eq!(careless.expect("not verified").bytes, DOCUMENT);
    let ca = dir.path().join("r.example/ca.pem");
    std::fs::write(ca, authority.issuer.pem()).expect("written");
    let trusted = fetch(dir.path(), &format!("server = \"{server}\"\nca = \"ca.pem\"\n")).await;
    assert_eq!(trusted.expect("trusted").bytes, DOCUMENT);
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_its_host() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let server = start(&authority, Some(&clients)).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let registry = dir.path().join("r.example");
    std::fs::create_dir_all(&registry).expect("made");
    let (certificate, key) = clients.sign("client");
    std::fs::write(registry.join("ca.pem"), authority.issuer.pem()).expect("written");
    std::fs::write(registry.join("client.cert"), certificate.pem()).expect("written");
    std::fs::write(registry.join("client.key"), key.serialize_pem()).expect("written");
    let both = format!("{}{}", certificate.pem(), key.serialize_pem());
    std::fs::write(registry.join("both.pem"), both).expect("written");
    let hosts = |client: &str| format!("server = \"{server}\"\nca = \"ca.pem\"\n{client}");
    let refused = fetch(dir.path(), &hosts("")).await;
    refused.expect_err("nothing is shown");
    for client in [
        "client = [[\"client.cert\", \"client.key\"]]",
        "client = \"both.pem\"",
    ] {
        let found = fetch(dir.path(), &hosts(client)).await;
        assert_eq!(found.expect(client).bytes, DOCUMENT);
    }
}

#[tokio::test]
async fn certificates_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hosts = "server = \"https://localhost:1\"\n";
    for (line, kind) in [
        ("ca = \"missing.pem\"", ErrorKind::NotFound),
        ("client = \"missing.pem\"", ErrorKind::NotFound),
        ("client = \"hosts.toml\"", ErrorKind::InvalidInput),
    ] {
        let error = fetch(dir.path(), &format!("{hosts}{line}\n"))
            .await
            .expect_err(line);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("r.example/"), "{error}");
    }
}
