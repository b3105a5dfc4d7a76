//! One attempt at a request: authentication and redirects.
//!
//! Every hop is authorised by its own origin: a redirect to another host carries no header of this one, but that host may
//! ask for, and get, credentials of its own. A `401` is answered once per hop. Whatever status comes in the end is
//! returned; judging it is the caller's part, and so is retrying.

use reqwest::header::LOCATION;
use reqwest::{Method, StatusCode};
use url::Url;

use super::RegistryOptions;
use super::answer::Answer;
use super::auth::{Authorizer, Renewal, Scope};
use super::credentials::CredentialFiles;
use super::endpoint::authority;
use super::handed_over::HandedOver;
use super::retry::Failure;
use super::transport::{Request, Transport};
use crate::{Error, ErrorKind};

/// Redirects followed for one request; ten is what browsers' and Go's clients allow.
const MAX_REDIRECTS: usize = 10;

/// The tokens of a client.
#[derive(Debug)]
pub(super) struct Exchange {
    authorizer: Authorizer,
}

impl Exchange {
    pub(super) fn new(options: &RegistryOptions) -> Self {
        let files = CredentialFiles::new(options.auth_file.as_deref());
        Self {
            authorizer: Authorizer::new(files),
        }
    }

    /// Credentials that go before those of files.
    pub(super) fn handed_over(&self) -> &HandedOver {
        self.authorizer.handed_over()
    }

    /// Sends `request` to `url` over the connections of its host, answers challenges and follows redirects.
    pub(super) async fn send(
        &self,
        transport: &Transport,
        request: &Request,
        url: &Url,
        scope: &Scope,
    ) -> Result<Answer, Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.send_authorized(transport, request, &url, scope).await?;
            match redirect(request, &answer)? {
                None => return Ok(answer),
                Some(next) => url = next,
            }
        }
        let message = format!("{} redirects {} in a circle", authority(&url), request.what);
        Err(Error::new(ErrorKind::Unsupported, message).into())
    }

    async fn send_authorized(
        &self,
        transport: &Transport,
        request: &Request,
        url: &Url,
        scope: &Scope,
    ) -> Result<Answer, Failure> {
        let known = self.authorizer.current(transport, url, scope).await?;
        let header = known.as_ref().map(|known| known.header.clone());
        let mut answer = transport.send(request, url, header).await?;
        answer.credentials = known.as_ref().map(|known| known.credentials.clone());
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let renewal = self.authorizer.renew(transport, &answer, scope, known.as_ref());
        match renewal.await? {
            Renewal::Impossible(why) => {
                answer.credentials = Some(why);
                Ok(answer)
            }
            Renewal::Granted(granted) => {
                let mut answer = transport.send(request, url, Some(granted.header)).await?;
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
