//! A blob on its way into containerd's content store.
//!
//! One stream carries the bytes; the digest is told with the commit, where containerd compares it with what has arrived. A task of its own
//! hears the answers. An ingest that is dropped before its commit is noted as unfinished: containerd keeps it locked until the stream has
//! ended, so it is called off later, by whoever owns the store.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sluice_format::BlobDigest;
use sluice_storage::{BlobWriter, Error, ErrorKind};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::super::client::Client;
use super::super::proto::content::v1::{AbortRequest, WriteAction, WriteContentRequest};
use super::refused;

/// Longest message, in bytes: containerd takes up to 16 MiB.
const PIECE_LEN: usize = 1 << 20;

/// Messages on their way.
const MESSAGES_AHEAD: usize = 4;

/// How often, and after which pause, an ingest is called off that containerd still has locked.
const CALL_OFF_ATTEMPTS: usize = 40;
const CALL_OFF_PAUSE: Duration = Duration::from_millis(50);

/// Tells the ingests of this process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// An ingest.
#[derive(Debug)]
pub(super) struct Upload {
    reference: String,
    sender: mpsc::Sender<WriteContentRequest>,
    answers: Option<JoinHandle<Result<(), Status>>>,
    offset: i64,
    unfinished: Arc<Mutex<BTreeSet<String>>>,
}

impl Upload {
    /// Begins one, and notes it in `unfinished`.
    pub(super) fn begin(client: &Client, unfinished: &Arc<Mutex<BTreeSet<String>>>) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let reference = format!("sluice-export-{}-{number}", std::process::id());
        noted(unfinished).insert(reference.clone());
        let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
        let answers = tokio::spawn(hear(client.clone(), receiver));
        Self {
            reference,
            sender,
            answers: Some(answers),
            offset: 0,
            unfinished: unfinished.clone(),
        }
    }

    async fn send(&mut self, message: WriteContentRequest) -> Result<(), Error> {
        if self.sender.send(message).await.is_ok() {
            return Ok(());
        }
        // The stream has ended; its answer says why.
        self.answer().await?;
        let message = "containerd ended an upload early";
        Err(Error::new(ErrorKind::Io, message))
    }

    async fn answer(&mut self) -> Result<(), Error> {
        let what = || "writing into containerd's content store".to_owned();
        let Some(answers) = self.answers.take() else {
            return Err(Error::new(ErrorKind::Io, what()));
        };
        match answers.await {
            Ok(answer) => answer.map_err(|status| refused(what(), &status)),
            Err(error) => Err(Error::new(ErrorKind::Io, what()).with_source(error)),
        }
    }

    async fn commit(mut self, digest: BlobDigest) -> Result<(), Error> {
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: self.reference.clone(),
            expected: digest.to_string(),
            total: self.offset,
            offset: self.offset,
            ..WriteContentRequest::default()
        };
        self.send(message).await?;
        self.answer().await?;
        noted(&self.unfinished).remove(&self.reference);
        Ok(())
    }
}

/// Carries messages to containerd until a commit is answered.
async fn hear(client: Client, messages: mpsc::Receiver<WriteContentRequest>) -> Result<(), Status> {
    let request = client.request(ReceiverStream::new(messages));
    let heard = async {
        let mut answers = client.content().write(request).await?.into_inner();
        while let Some(answer) = answers.next().await {
            if answer?.action() == WriteAction::Commit {
                return Ok(());
            }
        }
        Err(Status::aborted("the content store ended the upload early"))
    };
    match heard.await {
        // Somebody else has stored the same bytes meanwhile.
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

/// Removes an unfinished ingest.
pub(super) async fn call_off(client: &Client, reference: &str) -> Result<(), Status> {
    let mut attempts = 0;
    loop {
        let request = client.request(AbortRequest {
            r#ref: reference.to_owned(),
        });
        attempts += 1;
        match client.content().abort(request).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            Err(status) if status.code() == Code::Unavailable && attempts < CALL_OFF_ATTEMPTS => {
                tokio::time::sleep(CALL_OFF_PAUSE).await;
            }
            Err(status) => return Err(status),
        }
    }
}

fn noted(unfinished: &Mutex<BTreeSet<String>>) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
    unfinished.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlobWriter for Upload {
    fn write(&mut self, mut bytes: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(PIECE_LEN));
                let len = piece.len() as i64;
                let message = WriteContentRequest {
                    action: WriteAction::Write.into(),
                    r#ref: self.reference.clone(),
                    offset: self.offset,
                    data: piece.into(),
                    ..WriteContentRequest::default()
                };
                self.send(message).await?;
                self.offset += len;
            }
            Ok(())
        }
        .boxed()
    }

    fn finish(self: Box<Self>, digest: BlobDigest) -> BoxFuture<'static, Result<(), Error>> {
        self.commit(digest).boxed()
    }
}
