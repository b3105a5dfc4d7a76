//! Certificates from files.

use std::path::{Path, PathBuf};

use reqwest::{Certificate, Identity};

use crate::{Error, ErrorKind};

/// Longest file that is read, in bytes: the bundles of distributions have a quarter of it.
const FILE_LEN: u64 = 1 << 20;

/// The certificates in files of PEM.
pub(super) fn trusted(files: &[PathBuf]) -> Result<Vec<Certificate>, Error> {
    let mut certificates = Vec::new();
    for file in files {
        let found =
            Certificate::from_pem_bundle(&load(file)?).map_err(|error| refuse(file, "certificate", error))?;
        certificates.extend(found);
    }
    Ok(certificates)
}

/// The certificate and key to show to a host. Of several pairs the first is used.
pub(super) fn identity(pairs: &[(PathBuf, Option<PathBuf>)]) -> Result<Option<Identity>, Error> {
    let Some((certificate, key)) = pairs.first() else {
        return Ok(None);
    };
    if pairs.len() > 1 {
        tracing::warn!(used = %certificate.display(), "a host has several client certificates; the first is used");
    }
    let mut pem = load(certificate)?;
    if let Some(key) = key {
        pem.push(b'\n');
        pem.extend(load(key)?);
    }
    let identity = Identity::from_pem(&pem).map_err(|error| refuse(certificate, "client key", error))?;
    Ok(Some(identity))
}

fn load(file: &Path) -> Result<Vec<u8>, Error> {
    let what = |error| Error::io(format!("read {}", file.display()), error);
    if std::fs::metadata(file).map_err(what)?.len() > FILE_LEN {
        let message = format!("{} is too long for a certificate", file.display());
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    std::fs::read(file).map_err(what)
}

fn refuse(file: &Path, what: &str, error: reqwest::Error) -> Error {
    let message = format!("{} holds no valid {what}", file.display());
    Error::new(ErrorKind::InvalidInput, message).with_source(error)
}
