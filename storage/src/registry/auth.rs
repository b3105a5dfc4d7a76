//! Answers to authentication challenges.
//!
//! What a registry accepted is kept per origin (scheme, host, port) and scope until it expires; origins never see each
//! other's. A `401` brings a challenge: *Bearer* is answered with a token from the realm it names (anonymous, with a
//! password, or for an identity token), *Basic* with the password itself. The challenge is remembered, so an expired token
//! is renewed without a `401` in between. Requests that need the same token wait for one token request.
//!
//! Source: Docker registry v2 token authentication; its OAuth2 form for identity tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_auth::ChallengeParser;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use tokio::time::Instant;
use url::{Url, form_urlencoded};

use super::answer::Answer;
use super::credentials::{Credential, CredentialFiles, Found};
use super::endpoint::authority;
use super::handed_over::HandedOver;
use super::retry::Failure;
use super::transport::{Request, Transport};
use crate::sync::lock;
use crate::{Error, ErrorKind};

/// Lifetime of a token that comes without one, from the token specification.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// Longest token document, in bytes.
const TOKEN_LEN: u64 = 1 << 20;
/// Name under which tokens are asked for.
const CLIENT_ID: &str = "sluice";

/// What a request needs to be allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    /// Repository that the credentials are looked up for.
    repository: String,
    /// In the form `repository:<name>:<actions>`.
    access: Vec<String>,
}

impl Scope {
    pub(super) fn pull(repository: &str) -> Self {
        Self {
            repository: repository.to_owned(),
            access: vec![format!("repository:{repository}:pull")],
        }
    }

    pub(super) fn push(repository: &str) -> Self {
        Self {
            repository: repository.to_owned(),
            access: vec![format!("repository:{repository}:pull,push")],
        }
    }

    /// For a server that is no registry: a password at most.
    pub(super) fn password_only() -> Self {
        Self {
            repository: String::new(),
            access: Vec::new(),
        }
    }

    /// The same and reading another repository.
    pub(super) fn and_pull(mut self, repository: &str) -> Self {
        self.access.push(format!("repository:{repository}:pull"));
        self
    }

    /// The scopes to ask a token for when the challenge names `challenged`.
    fn with_challenged(&self, challenged: &str) -> Vec<String> {
        let mut access = self.access.clone();
        let missing = challenged.split_whitespace().filter(|scope| !self.covers(scope));
        access.extend(missing.map(str::to_owned));
        access
    }

    fn covers(&self, scope: &str) -> bool {
        let Some((resource, actions)) = scope.rsplit_once(':') else {
            return false;
        };
        self.access.iter().any(|own| {
            own.rsplit_once(':').is_some_and(|(own_resource, own_actions)| {
                let has = |action| own_actions.split(',').any(|own| own == action);
                own_resource == resource && actions.split(',').all(has)
            })
        })
    }
}

/// What goes into a request.
#[derive(Clone, Debug)]
pub(super) struct Authorization {
    /// Marked sensitive, so that no `Debug` output shows it.
    pub(super) header: HeaderValue,
    /// Where the credentials came from, for messages.
    pub(super) credentials: String,
    expires: Option<Instant>,
}

impl Authorization {
    fn new(text: &str, credentials: String, lifetime: Option<Duration>) -> Result<Self, Error> {
        let mut header = HeaderValue::from_str(text).map_err(|_| {
            let message = "a token or password has characters that no header can hold";
            Error::new(ErrorKind::Corrupt, message)
        })?;
        header.set_sensitive(true);
        Ok(Self {
            header,
            credentials,
            expires: lifetime.map(|lifetime| Instant::now() + lifetime),
        })
    }

    fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|expires| Instant::now() < expires)
    }
}

/// A challenge that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: Url,
        service: Option<String>,
        scope: String,
    },
}

/// The answer to a `401`.
#[derive(Debug)]
pub(super) enum Renewal {
    /// Ask again with this.
    Granted(Authorization),
    /// There is nothing to answer with; why, for messages.
    Impossible(String),
}

/// What is known about one origin and scope.
#[derive(Debug, Default)]
struct Slot {
    challenge: Option<Challenge>,
    granted: Option<Authorization>,
}

type Slots = HashMap<(String, Scope), Arc<tokio::sync::Mutex<Slot>>>;

/// The tokens of all registries.
#[derive(Debug)]
pub(super) struct Authorizer {
    handed_over: HandedOver,
    files: CredentialFiles,
    slots: Mutex<Slots>,
}

impl Authorizer {
    pub(super) fn new(files: CredentialFiles) -> Self {
        Self {
            handed_over: HandedOver::default(),
            files,
            slots: Mutex::default(),
        }
    }

    pub(super) fn handed_over(&self) -> &HandedOver {
        &self.handed_over
    }

    async fn find(&self, host: &str, repository: &str) -> Result<Found, Error> {
        match self.handed_over.get(host, repository) {
            Some(found) => Ok(found),
            None => self.files.find(host, repository).await,
        }
    }

    fn slot(&self, url: &Url, scope: &Scope) -> Arc<tokio::sync::Mutex<Slot>> {
        let key = (url.origin().ascii_serialization(), scope.clone());
        lock(&self.slots).entry(key).or_default().clone()
    }

    /// What the origin of `url` accepted before, renewed when it has expired.
    pub(super) async fn current(
        &self,
        transport: &Transport,
        url: &Url,
        scope: &Scope,
    ) -> Result<Option<Authorization>, Failure> {
        let slot = self.slot(url, scope);
        let mut slot = slot.lock().await;
        match (&slot.granted, slot.challenge.clone()) {
            (Some(granted), _) if granted.is_fresh() => Ok(Some(granted.clone())),
            (Some(_), Some(challenge)) => {
                let renewal = self.answer(transport, url, scope, &challenge).await?;
                slot.granted = renewal.granted();
                Ok(slot.granted.clone())
            }
            _ => Ok(None),
        }
    }

    /// Answers the challenge in a `401` that was given to a request with `refused`.
    pub(super) async fn renew(
        &self,
        transport: &Transport,
        answer: &Answer,
        scope: &Scope,
        refused: Option<&Authorization>,
    ) -> Result<Renewal, Failure> {
        let slot = self.slot(&answer.url, scope);
        let mut slot = slot.lock().await;
        if let Some(granted) = &slot.granted {
            // Another request may have renewed it while this one was under way.
            let is_other = refused.is_none_or(|refused| refused.header != granted.header);
            if is_other && granted.is_fresh() {
                return Ok(Renewal::Granted(granted.clone()));
            }
        }
        let Some(challenge) = parse_challenge(answer) else {
            let why = "it asks for credentials in a way that is not understood".to_owned();
            return Ok(Renewal::Impossible(why));
        };
        let renewal = self.answer(transport, &answer.url, scope, &challenge).await?;
        slot.challenge = Some(challenge);
        slot.granted = renewal.granted();
        Ok(renewal)
    }

    async fn answer(
        &self,
        transport: &Transport,
        url: &Url,
        scope: &Scope,
        challenge: &Challenge,
    ) -> Result<Renewal, Failure> {
        let found = self.find(&authority(url), &scope.repository).await?;
        match challenge {
            Challenge::Basic => Ok(answer_basic(found)?),
            Challenge::Bearer {
                realm,
                service,
                scope: challenged,
            } => {
                if url.scheme() == "https" && realm.scheme() != "https" {
                    let message = format!("{} wants credentials sent without encryption", authority(url));
                    return Err(Error::new(ErrorKind::Denied, message).into());
                }
                let access = scope.with_challenged(challenged);
                let what = format!("the token request of {} for {}", authority(url), scope.repository);
                let (request, realm, password) =
                    token_request(what, realm, service.as_deref(), &access, found.credential)?;
                let mut answer = transport.send(&request, &realm, password).await?;
                answer.credentials = Some(found.origin.clone());
                Ok(Renewal::Granted(parse_token(answer, found.origin).await?))
            }
        }
    }
}

fn answer_basic(found: Found) -> Result<Renewal, Error> {
    match found.credential {
        Some(Credential::Password { user, password }) => {
            let granted = Authorization::new(&basic(&user, &password), found.origin, None)?;
            Ok(Renewal::Granted(granted))
        }
        Some(Credential::IdentityToken(_)) => {
            let why = "it asks for a password and there is only an identity token";
            Ok(Renewal::Impossible(format!("{why}, {}", found.origin)))
        }
        None => Ok(Renewal::Impossible(found.origin)),
    }
}

impl Renewal {
    fn granted(&self) -> Option<Authorization> {
        match self {
            Self::Granted(granted) => Some(granted.clone()),
            Self::Impossible(_) => None,
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The request for a token, its URL, and the password to send with it.
fn token_request(
    what: String,
    realm: &Url,
    service: Option<&str>,
    access: &[String],
    credential: Option<Credential>,
) -> Result<(Request, Url, Option<HeaderValue>), Error> {
    let password = match credential {
        Some(Credential::IdentityToken(token)) => {
            let body = refresh_form(&token, service, access);
            let request = Request::new(Method::POST, what)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(body);
            return Ok((request, realm.clone(), None));
        }
        Some(Credential::Password { user, password }) => {
            Some(Authorization::new(&basic(&user, &password), String::new(), None)?.header)
        }
        None => None,
    };
    let mut url = realm.clone();
    let mut query = url.query_pairs_mut();
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    for scope in access {
        query.append_pair("scope", scope);
    }
    drop(query);
    Ok((Request::new(Method::GET, what), url, password))
}

fn refresh_form(token: &str, service: Option<&str>, access: &[String]) -> Bytes {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token")
        .append_pair("refresh_token", token)
        .append_pair("client_id", CLIENT_ID)
        .append_pair("scope", &access.join(" "));
    if let Some(service) = service {
        form.append_pair("service", service);
    }
    form.finish().into()
}

async fn parse_token(answer: Answer, credentials: String) -> Result<Authorization, Failure> {
    #[derive(Deserialize)]
    struct Document {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
    }
    if !answer.status().is_success() {
        return Err(answer.refuse().await);
    }
    let what = answer.what.clone();
    let body = answer.bytes(TOKEN_LEN).await?;
    let document: Option<Document> = serde_json::from_slice(&body).ok();
    let lifetime = document.as_ref().and_then(|document| document.expires_in);
    let lifetime = lifetime.map_or(DEFAULT_LIFETIME, Duration::from_secs);
    let token = document.and_then(|document| document.token.or(document.access_token));
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        let message = format!("{what} was answered without a token");
        return Err(Error::new(ErrorKind::Corrupt, message).into());
    };
    // A tenth is kept back for clocks that differ and requests under way.
    let lifetime = lifetime.mul_f32(0.9);
    Ok(Authorization::new(
        &format!("Bearer {token}"),
        credentials,
        Some(lifetime),
    )?)
}

/// The challenge to answer among those of a response; Bearer before Basic.
fn parse_challenge(answer: &Answer) -> Option<Challenge> {
    let headers = answer.response.headers().get_all(WWW_AUTHENTICATE);
    let texts = headers.iter().filter_map(|header| header.to_str().ok());
    let mut basic = None;
    for challenge in texts.flat_map(ChallengeParser::new).flatten() {
        let parameter = |name: &str| {
            let mut parameters = challenge.params.iter();
            let found = parameters.find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        } else if challenge.scheme.eq_ignore_ascii_case("bearer") {
            let Some(realm) = parameter("realm").and_then(|realm| answer.url.join(&realm).ok()) else {
                continue;
            };
            return Some(Challenge::Bearer {
                realm,
                service: parameter("service"),
                scope: parameter("scope").unwrap_or_default(),
            });
        }
    }
    basic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_not_asked_for_twice() {
        let push = Scope::push("a/b").and_pull("c");
        assert_eq!(push.with_challenged("repository:a/b:pull"), push.access);
        assert_eq!(
            push.with_challenged("repository:a/b:pull repository:c:pull"),
            push.access
        );
        let more = push.with_challenged("repository:c:push registry:catalog:*");
        assert_eq!(more[2..], ["repository:c:push", "registry:catalog:*"]);
    }

    #[test]
    fn secrets_are_not_shown() {
        let granted = Authorization::new(&basic("user", "hunter2"), "x".into(), None).unwrap();
        let shown = format!("{granted:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains(&STANDARD.encode("user:hunter2")),
            "{shown}"
        );
    }

    #[test]
    fn identity_tokens_travel_in_the_body() {
        let realm = Url::parse("https://auth.example/token").unwrap();
        let secret = Some(Credential::IdentityToken("a&b".into()));
        let (request, url, password) = token_request(
            "x".into(),
            &realm,
            Some("s"),
            &["repository:a:pull".into()],
            secret,
        )
        .unwrap();
        assert_eq!((request.method, url, password), (Method::POST, realm, None));
        let form = refresh_form("a&b", Some("s"), &["x".into()]);
        assert_eq!(
            form,
            "grant_type=refresh_token&refresh_token=a%26b&client_id=sluice&scope=x&service=s"
        );
    }
}
