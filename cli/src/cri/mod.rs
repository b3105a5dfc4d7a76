//! CRI's image service in front of containerd's, for the credentials that kubelet sends with a pull.
//!
//! containerd uses them for what it fetches itself and tells a snapshotter nothing. So kubelet is pointed here: every call goes to
//! containerd as it came, byte for byte and whatever its name, and so does the answer. Of `PullImage` alone the request is looked into:
//! its credentials are handed to the registries' client *before* containerd pulls, because the pull asks this process for the
//! layers. When containerd answers with an error, the credentials of before are put back: they may have been the wrong ones.

mod credentials;
mod proto;

use std::convert::Infallible;
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use axum::body::{self, Bytes};
use axum::http::{Request, Response};
use futures_util::future::BoxFuture;
use prost::Message as _;
use sluice_storage::Reference;
use sluice_storage::registry::{Credential, RegistryClient};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint};

use self::proto::PullImageRequest;

/// The call whose request is looked into.
const PULL: &str = "/runtime.v1.ImageService/PullImage";
/// Longest request that is looked into: what gRPC servers take unless told otherwise, and its prefix.
const REQUEST_LEN: usize = (4 << 20) + PREFIX_LEN;
/// Flag and length before a message, in bytes.
const PREFIX_LEN: usize = 5;
/// The flag of a message that is not compressed.
const PLAIN: u8 = 0;
/// The header that has the status of an answer without a message.
const STATUS: &str = "grpc-status";

/// Passes calls on to containerd.
#[derive(Clone, Debug)]
pub(crate) struct ImageServiceProxy {
    containerd: Channel,
    registries: Arc<RegistryClient>,
}

/// Credentials that a pull brought, and what they replaced.
#[derive(Debug)]
struct HandedOver {
    reference: Reference,
    before: Option<Credential>,
}

impl ImageServiceProxy {
    /// In front of the containerd that listens on `socket`, now or later.
    ///
    /// # Errors
    /// When no URL can hold the path.
    pub(crate) fn new(socket: &Path, registries: Arc<RegistryClient>) -> anyhow::Result<Self> {
        let path = socket
            .to_str()
            .context("the path of containerd's socket is not UTF-8")?;
        Ok(Self {
            containerd: Endpoint::try_from(format!("unix:{path}"))?.connect_lazy(),
            registries,
        })
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        if request.uri().path() != PULL {
            return self.pass_on(request).await;
        }
        let (head, body) = request.into_parts();
        let bytes = body::to_bytes(body::Body::new(body), REQUEST_LEN).await;
        let bytes = bytes.map_err(|error| Status::resource_exhausted(format!("a pull request: {error}")))?;
        let handed_over = self.hand_over(&bytes);
        let request = Request::from_parts(head, Body::new(body::Body::from(bytes)));
        let answer = self.pass_on(request).await;
        if !is_accepted(&answer)
            && let Some(HandedOver { reference, before }) = handed_over
        {
            self.registries.hand_over(&reference, before);
        }
        answer
    }

    async fn pass_on(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let mut containerd = self.containerd.clone();
        let unreachable = |error| Status::unavailable(format!("containerd does not answer: {error}"));
        poll_fn(|context| containerd.poll_ready(context))
            .await
            .map_err(unreachable)?;
        containerd.call(request).await.map_err(unreachable)
    }

    /// Uses what a pull brings. One that cannot be read is containerd's to refuse.
    fn hand_over(&self, message: &Bytes) -> Option<HandedOver> {
        let (image, auth) = match parse(message) {
            Ok(PullImageRequest { image, auth }) => (image?.image, auth?),
            Err(reason) => {
                tracing::warn!(reason, "a pull's credentials are not used");
                return None;
            }
        };
        let reference: Reference = image.parse().ok()?;
        match credentials::credential(auth, &reference) {
            Ok(credential) => Some(HandedOver {
                before: self.registries.hand_over(&reference, Some(credential?)),
                reference,
            }),
            Err(reason) => {
                tracing::warn!(image, reason, "a pull's credentials are not used");
                None
            }
        }
    }
}

/// The one message of a unary request.
fn parse(body: &[u8]) -> Result<PullImageRequest, &'static str> {
    let (prefix, message) = body.split_at_checked(PREFIX_LEN).ok_or("the request is cut")?;
    if prefix[0] != PLAIN {
        return Err("the request is compressed");
    }
    // What the decoder says may show what it read.
    PullImageRequest::decode(message).map_err(|_| "the request cannot be decoded")
}

/// Whether the pull took place: an error has its status in the head of an answer without a message.
fn is_accepted(answer: &Result<Response<Body>, Status>) -> bool {
    let Ok(answer) = answer else { return false };
    let status = answer.headers().get(STATUS);
    answer.status().is_success() && status.is_none_or(|status| status == "0")
}

impl NamedService for ImageServiceProxy {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<Request<Body>> for ImageServiceProxy {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let proxy = self.clone();
        Box::pin(async move { Ok(proxy.answer(request).await.unwrap_or_else(Status::into_http)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_requests_are_not_understood_and_not_shown() {
        for body in [
            &b""[..],
            b"\0\0\0",
            b"\x01\0\0\0\x02\x0a\0",
            b"\0\0\0\0\x03\x12\x7fs3cret",
        ] {
            let reason = parse(body).unwrap_err();
            assert!(!reason.contains("s3cret"));
        }
    }
}
