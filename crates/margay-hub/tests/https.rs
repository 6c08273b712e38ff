//! Pulling from a hub that speaks TLS and has a certificate of its own making.
#![allow(clippy::unwrap_used, reason = "a test")]

mod server;

use margay_hub::{HubError, HubOptions, pull};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use server::Hub;
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

/// An EC key and a certificate for `localhost` and 127.0.0.1 that it signed itself (`openssl ca -selfsign`), valid from 2020 to
/// 2120. It guards nothing.
fn certificate(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(file)
}

/// Speaks TLS before a hub that does not; gives its port.
fn tls_before(hub: u16) -> u16 {
    let chain = vec![CertificateDer::from_pem_file(certificate("localhost.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(certificate("localhost.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            // A client that trusts nobody hangs up.
            std::thread::spawn(move || pass_on(tls, hub, port));
        }
    });
    port
}

/// One request and its answer, whose address of the other store becomes one of this side.
fn pass_on(
    mut tls: StreamOwned<ServerConnection, TcpStream>,
    hub: u16,
    port: u16,
) -> Result<(), std::io::Error> {
    let mut request = vec![];
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    let mut plain = TcpStream::connect(("127.0.0.1", hub))?;
    plain.write_all(&request)?;
    let mut answer = vec![];
    plain.read_to_end(&mut answer)?;
    let store = format!("http://localhost:{hub}/");
    let at = answer.windows(store.len()).position(|window| window == store.as_bytes());
    if let Some(at) = at {
        answer.splice(at..at + store.len(), format!("https://localhost:{port}/").into_bytes());
    }
    tls.write_all(&answer)?;
    tls.conn.send_close_notify();
    tls.flush()
}

#[test]
fn a_certificate_that_nobody_signed_is_trusted_where_it_is_given() {
    let numbers: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let files = [("config.json", b"{}".to_vec()), ("model.safetensors", numbers.clone())];
    let files: BTreeMap<String, Vec<u8>> = files.map(|(name, bytes)| (name.to_owned(), bytes)).into();
    let hub = Hub { files, ..Hub::default() }.start();
    let port = tls_before(hub.port);
    let cache = tempfile::tempdir().unwrap();
    let pulled = |certificates: Option<&Path>| {
        let options = HubOptions {
            endpoint: format!("https://localhost:{port}"),
            certificates: certificates.map(Path::to_owned),
            ..HubOptions::new(cache.path().to_owned())
        };
        pull(&options, &"owner/model".parse().unwrap(), &mut |_| ControlFlow::Continue(()))
    };

    let stranger = pulled(None).unwrap_err();
    assert!(matches!(stranger, HubError::Connection { .. }), "{stranger}");
    assert!(stranger.to_string().contains("SSL_CERT_FILE"), "{stranger}");
    assert_eq!(hub.asked(), [], "nothing is said to a stranger");

    let empty = cache.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    for (file, why) in [(empty, "no certificate"), (certificate("none.pem"), "cannot be read")] {
        let error = pulled(Some(&file)).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(file.to_str().unwrap()), "{error}");
    }

    let model = pulled(Some(&certificate("localhost.pem"))).unwrap();
    assert!(std::fs::read(model.path.join("model.safetensors")).unwrap() == numbers);
    assert!(hub.asked().iter().any(|request| request.path == "/store/model.safetensors"));
}
