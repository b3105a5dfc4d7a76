//! One attempt at a request: authentication and redirects.
//!
//! Every hop is authorised by its own origin: a redirect to another host carries no header of this one, but that host may
//! ask for, and get, credentials of its own. A `401` is answered once per hop. Whatever status comes in the end is
//! returned; judging it is the caller's part, and so is retrying.

use std::sync::Arc;

use reqwest::header::LOCATION;
use reqwest::{Method, StatusCode};
use url::Url;

use super::answer::Answer;
use super::auth::{Authorizer, Renewal, Scope};
use super::credentials::CredentialFiles;
use super::endpoint::authority;
use super::retry::Failure;
use super::transport::{Request, Transport};
use super::{RegistryOptions, TrafficCounters};
use crate::{Error, ErrorKind};

/// Redirects followed for one request; ten is what browsers' and Go's clients allow.
const MAX_REDIRECTS: usize = 10;

/// The connections and tokens of a client.
#[derive(Debug)]
pub(super) struct Exchange {
    transport: Transport,
    authorizer: Authorizer,
}

impl Exchange {
    pub(super) fn new(options: &RegistryOptions, traffic: &Arc<TrafficCounters>) -> Result<Self, Error> {
        let files = CredentialFiles::new(options.auth_file.as_deref());
        Ok(Self {
            transport: Transport::new(traffic)?,
            authorizer: Authorizer::new(files),
        })
    }

    /// Sends `request` to `url`, answers challenges and follows redirects.
    pub(super) async fn send(&self, request: &Request, url: &Url, scope: &Scope) -> Result<Answer, Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.send_authorized(request, &url, scope).await?;
            match redirect(request, &answer)? {
                None => return Ok(answer),
                Some(next) => url = next,
            }
        }
        let message = format!("{} redirects {} in a circle", authority(&url), request.what);
        Err(Error::new(ErrorKind::Unsupported, message).into())
    }

    async fn send_authorized(&self, request: &Request, url: &Url, scope: &Scope) -> Result<Answer, Failure> {
        let known = self.authorizer.current(&self.transport, url, scope).await?;
        let header = known.as_ref().map(|known| known.header.clone());
        let mut answer = self.transport.send(request, url, header).await?;
        answer.credentials = known.as_ref().map(|known| known.credentials.clone());
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let renewal = self
            .authorizer
            .renew(&self.transport, &answer, scope, known.as_ref());
        match renewal.await? {
            Renewal::Impossible(why) => {
                answer.credentials = Some(why);
                Ok(answer)
            }
            Renewal::Granted(granted) => {
                let mut answer = self.transport.send(request, url, Some(granted.header)).await?;
                answer.credentials = Some(granted.credentials);
                Ok(answer)
            }
        }
    }
}

/// Where an answer sends the request.
fn redirect(request: &Request, answer: &Answer) -> Result<Option<Url>, Failure> {
    let keeps_method = matches!(request.method, Method::GET | Method::HEAD);
    let follow = match answer.status() {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => keeps_method,
        _ => false,
    };
    if !follow {
        return Ok(None);
    }
    let target = answer
        .header(LOCATION)
        .and_then(|location| answer.url.join(location).ok());
    let target = target.filter(|target| matches!(target.scheme(), "http" | "https"));
    target.map(Some).ok_or_else(|| {
        let message = format!("{} redirects {} to nowhere", authority(&answer.url), request.what);
        Error::new(ErrorKind::Unsupported, message).into()
    })
}
