//! The files of a layout on a static web server.
//!
//! Blobs are read through the same transfers as those of a registry. A server that asks for a password gets the one that the
//! credential files have for its host; without a challenge nothing is sent.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::{Method, StatusCode};
use sluice_format::BlobDigest;
use url::Url;

use super::RegistryClient;
use super::auth::Scope;
use super::endpoint::authority;
use super::hosts::Host;
use super::hosts::health::Standing;
use super::pull::RemoteBlob;
use super::retry::{Failure, Patience};
use super::route::Route;
use super::transfer::Place;
use super::transport::Request;
use crate::layout::{Objects, RemotePlace};
use crate::{Blob, Error, ErrorKind};

/// A directory of a web server.
#[derive(Debug)]
pub(crate) struct WebDirectory {
    client: Arc<RegistryClient>,
    location: String,
    host: Arc<Host>,
}

impl WebDirectory {
    pub(super) fn new(client: &Arc<RegistryClient>, place: &RemotePlace) -> Result<Self, Error> {
        let base = place.url().ok_or_else(|| {
            let message = format!("{place} is not the URL of a directory");
            Error::new(ErrorKind::InvalidInput, message)
        })?;
        Ok(Self {
            client: client.clone(),
            location: place.to_string(),
            host: Arc::new(Host::of_web(base, client.transport.clone())),
        })
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.host.base.clone();
        // An https or http URL always has path segments.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        url
    }

    async fn try_fetch(&self, path: &str, max_len: u64) -> Result<Bytes, Failure> {
        let request = Request::new(Method::GET, format!("{path} of {}", self.location));
        let exchange = &self.client.exchange;
        let answer = exchange
            .send(
                &self.host.transport,
                &request,
                &self.url(path),
                &Scope::password_only(),
            )
            .await?;
        match answer.status() {
            StatusCode::OK => answer.bytes(max_len).await,
            _ => Err(answer.refuse().await),
        }
    }
}

impl Objects for WebDirectory {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn fetch<'a>(&'a self, path: &'a str, max_len: u64) -> BoxFuture<'a, Result<Bytes, Error>> {
        async move {
            let patience = Patience::new(&self.client.options);
            let mut route = Route::new(vec![Standing::default()], patience);
            loop {
                match self.try_fetch(path, max_len).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(failure) => route.after(route.next(), failure).await?,
                }
            }
        }
        .boxed()
    }

    fn open(&self, path: &str, digest: BlobDigest, stored_len: u64) -> Arc<dyn Blob> {
        let place = Place::new(
            self.host.clone(),
            Standing::default(),
            self.url(path),
            Scope::password_only(),
        );
        Arc::new(RemoteBlob::new(
            &self.client,
            self.location.clone(),
            authority(&self.host.base).into(),
            (digest, stored_len),
            vec![place],
        ))
    }
}
