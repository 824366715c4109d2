//! Pushing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use atoll_model::id::TransferId;
use atoll_model::value::ObjectRef;
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use super::http::{Fault, Retry, put};
use super::progress::Listed;
use super::reading::Reading;
use super::{CredentialError, Inner, PushError, Pushed, Upload, blocking, chain};
use crate::bucket::{MultipartPlan, UploadPlan, UploadRequest};
use crate::encryption::Header;
use crate::store::error::Doing as _;
use crate::store::{SiteStore, StoreError};
use crate::stream::ObjectStream;

/// An upload in parts that has begun, as `partial/push-<transfer>` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Journal {
    object: ObjectRef,
    upload_id: String,
    part_bytes: u64,
    /// Of what is sent, if it is encrypted: gone on with, it has to be the same.
    #[serde(default)]
    header: Option<Header>,
    /// Those that have arrived.
    parts: BTreeMap<u32, SentPart>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SentPart {
    etag: String,
    /// Of the bytes that were sent: should they have been damaged ones, the part is sent again.
    digest: [u8; 32],
}

enum Failure {
    /// The upload that was begun cannot be gone on with.
    UploadLost,
    Other(PushError),
}

impl From<PushError> for Failure {
    fn from(error: PushError) -> Self {
        Self::Other(error)
    }
}

pub(super) async fn push(inner: &Inner, transfer: TransferId, object: ObjectRef) -> Result<Pushed, PushError> {
    let wire_bytes = AtomicU64::new(0);
    let listed = inner.underway.list(object, true);
    let mut tried_anew = false;
    loop {
        let push = Push { inner, transfer, object, wire_bytes: &wire_bytes, listed: &listed };
        match push.run().await {
            Ok(()) => {
                push.forget()?;
                return Ok(Pushed { wire_bytes: wire_bytes.load(Ordering::Relaxed) });
            }
            Err(Failure::Other(error)) => return Err(error),
            Err(Failure::UploadLost) => {
                push.forget()?;
                if tried_anew {
                    return Err(PushError::Unreachable {
                        tries: 2,
                        message: "the bucket forgets uploads that were begun".to_owned(),
                    });
                }
                tried_anew = true;
            }
        }
    }
}

pub(super) fn forget(store: &SiteStore, transfer: TransferId) -> Result<(), StoreError> {
    let path = journal_path(store, transfer);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", &path, error)),
        _ => Ok(()),
    }
}

fn journal_path(store: &SiteStore, transfer: TransferId) -> PathBuf {
    store.partial(&format!("push-{transfer}"))
}

struct Push<'a> {
    inner: &'a Inner,
    transfer: TransferId,
    object: ObjectRef,
    wire_bytes: &'a AtomicU64,
    listed: &'a Listed,
}

impl Push<'_> {
    async fn run(&self) -> Result<(), Failure> {
        let (store, object) = (self.inner.store.clone(), self.object);
        let opened = blocking(move || {
            // A copy that was touched is found here; one that the disk has changed while it is read.
            store.verify(object)?;
            ObjectStream::of(&store, object)
        });
        let stream = opened.await.map_err(|error| self.store_error(error))?;
        let journal = self.read_journal();
        let request = UploadRequest {
            object: self.object,
            stream_bytes: stream.stream_bytes(),
            upload_id: journal.as_ref().map(|journal| journal.upload_id.clone()),
            first_part: 0,
        };
        let Upload { plan, key } = self.plan(&request).await?;
        match plan {
            UploadPlan::AlreadyThere => Ok(()),
            UploadPlan::Single { url, headers } => {
                let reading = Reading::new(stream, key.map(|key| (key, Header::random())));
                self.single(&request, reading, url, headers).await
            }
            UploadPlan::Multipart(plan) => {
                let known = journal.filter(|journal| {
                    journal.object == self.object
                        && journal.upload_id == plan.upload_id
                        && journal.part_bytes == plan.part_bytes
                        && journal.header.is_some() == key.is_some()
                });
                let journal = known.unwrap_or_else(|| Journal {
                    object: self.object,
                    upload_id: plan.upload_id.clone(),
                    part_bytes: plan.part_bytes,
                    header: key.is_some().then(Header::random),
                    parts: BTreeMap::new(),
                });
                let reading = Reading::new(stream, key.zip(journal.header));
                self.multipart(request, reading, plan, journal).await
            }
        }
    }

    fn store_error(&self, error: StoreError) -> PushError {
        match error {
            StoreError::NotFound(id) if id == self.object.id => PushError::Missing(self.object),
            StoreError::Damaged { message, .. } => PushError::Damaged { object: self.object, message },
            StoreError::NotFound(id) => {
                PushError::Damaged { object: self.object, message: format!("{id} of it is missing") }
            }
            StoreError::NoSpace { .. } | StoreError::UnknownSeal(_) | StoreError::InUse(_) | StoreError::Io { .. } => {
                PushError::Store(chain(&error))
            }
        }
    }

    async fn plan(&self, request: &UploadRequest) -> Result<Upload, PushError> {
        self.asked(|| self.inner.credentials.upload_plan(self.transfer, request)).await.map_err(PushError::Credentials)
    }

    /// Asks the control plane, again and again while it cannot be asked.
    async fn asked<T, F: Future<Output = Result<T, CredentialError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, CredentialError> {
        let mut retry = Retry::new(&self.inner.config);
        loop {
            match ask().await {
                Err(CredentialError::Unavailable(message)) => {
                    if !retry.wait().await {
                        return Err(CredentialError::Unavailable(message));
                    }
                }
                result => return result,
            }
        }
    }

    async fn complete(&self, request: &UploadRequest, etags: &[String]) -> Result<(), Failure> {
        match self.asked(|| self.inner.credentials.complete(self.transfer, request, etags)).await {
            Ok(()) => Ok(()),
            Err(CredentialError::Refused(message)) if request.upload_id.is_some() => {
                tracing::warn!(transfer = %self.transfer, message, "an upload could not be completed; it begins again");
                Err(Failure::UploadLost)
            }
            Err(error) => Err(PushError::Credentials(error).into()),
        }
    }

    async fn single(
        &self,
        request: &UploadRequest,
        reading: Reading,
        mut url: String,
        mut headers: Vec<(String, String)>,
    ) -> Result<(), Failure> {
        let length = reading.length(request.stream_bytes) as usize;
        let (_, bytes) = self.next(reading, length).await?;
        let mut retry = Retry::new(&self.inner.config);
        loop {
            let fault = match put(self.inner, &url, &headers, bytes.clone()).await {
                Ok(_) => break,
                Err(fault) => fault,
            };
            if !retry.wait().await {
                return Err(PushError::Unreachable { tries: retry.tries, message: fault.message() }.into());
            }
            if !matches!(fault, Fault::Passing(_)) {
                match self.plan(request).await?.plan {
                    // An answer was lost, or somebody else pushed it.
                    UploadPlan::AlreadyThere => return Ok(()),
                    UploadPlan::Single { url: fresh, headers: with } => (url, headers) = (fresh, with),
                    UploadPlan::Multipart(_) => return Err(Failure::UploadLost),
                }
            }
        }
        self.wire_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.complete(request, &[]).await
    }

    async fn multipart(
        &self,
        mut request: UploadRequest,
        mut reading: Reading,
        plan: MultipartPlan,
        mut journal: Journal,
    ) -> Result<(), Failure> {
        request.upload_id = Some(plan.upload_id.clone());
        let urls = tokio::sync::Mutex::new(plan.clone());
        let mut sending = FuturesUnordered::new();
        let known: u64 = journal.parts.len() as u64 * plan.part_bytes;
        self.listed.missing_bytes.store(reading.length(request.stream_bytes).saturating_sub(known), Ordering::Relaxed);
        self.listed.arrived_bytes.store(0, Ordering::Relaxed);
        self.write_journal(&journal)?;
        for part in 0..plan.part_count {
            // Parts that arrived before are read as well: their bytes count for the digest of the whole.
            let (read, bytes) = self.next(reading, plan.part_bytes as usize).await?;
            reading = read;
            let digest = *blake3::hash(&bytes).as_bytes();
            if journal.parts.get(&part).is_some_and(|sent| sent.digest == digest) {
                continue;
            }
            sending.push(self.send_part(&request, &urls, part, bytes, digest));
            // What has arrived while this was read.
            while let Some(Some(sent)) = sending.next().now_or_never() {
                let (part, sent) = sent?;
                journal.parts.insert(part, sent);
                self.write_journal(&journal)?;
            }
            while sending.len() >= self.inner.config.parts_max.max(1) {
                if let Some((part, sent)) = sending.try_next().await? {
                    journal.parts.insert(part, sent);
                    self.write_journal(&journal)?;
                }
            }
        }
        while let Some((part, sent)) = sending.try_next().await? {
            journal.parts.insert(part, sent);
            self.write_journal(&journal)?;
        }
        let etags: Vec<String> = journal.parts.into_values().map(|sent| sent.etag).collect();
        self.complete(&request, &etags).await
    }

    async fn send_part(
        &self,
        request: &UploadRequest,
        urls: &tokio::sync::Mutex<MultipartPlan>,
        part: u32,
        bytes: Bytes,
        digest: [u8; 32],
    ) -> Result<(u32, SentPart), Failure> {
        let mut retry = Retry::new(&self.inner.config);
        let mut refused: Option<String> = None;
        loop {
            let url = self.part_url(request, urls, part, refused.take()).await?;
            let fault = match put(self.inner, &url, &[], bytes.clone()).await {
                Ok(etag) => {
                    self.wire_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    self.listed.arrived(bytes.len() as u64);
                    return Ok((part, SentPart { etag, digest }));
                }
                // S3 says so of an upload that it does not know any more.
                Err(Fault::Missing) => return Err(Failure::UploadLost),
                Err(fault) => fault,
            };
            if let Fault::Url(_) | Fault::Broken(_) = &fault {
                refused = Some(url);
            }
            if !retry.wait().await {
                return Err(PushError::Unreachable { tries: retry.tries, message: fault.message() }.into());
            }
        }
    }

    /// The URL of a part, asked for anew if it is not known or is the one that was refused.
    async fn part_url(
        &self,
        request: &UploadRequest,
        urls: &tokio::sync::Mutex<MultipartPlan>,
        part: u32,
        refused: Option<String>,
    ) -> Result<String, Failure> {
        let mut plan = urls.lock().await;
        let known = part.checked_sub(plan.first_part).and_then(|index| plan.urls.get(index as usize));
        if let Some(url) = known.filter(|url| refused.as_ref() != Some(*url)) {
            return Ok(url.clone());
        }
        let request = UploadRequest { first_part: part, ..request.clone() };
        match self.plan(&request).await?.plan {
            UploadPlan::Multipart(fresh) if fresh.upload_id == plan.upload_id => *plan = fresh,
            // Somebody else's push was faster, or the bucket has changed its mind: the next round finds out.
            UploadPlan::AlreadyThere | UploadPlan::Single { .. } | UploadPlan::Multipart(_) => {
                return Err(Failure::UploadLost);
            }
        }
        let url = part.checked_sub(plan.first_part).and_then(|index| plan.urls.get(index as usize)).cloned();
        url.ok_or_else(|| {
            let message = "the control plane gives no URL for a part".to_owned();
            PushError::Credentials(CredentialError::Refused(message)).into()
        })
    }

    /// The next bytes to send, verified as far as they complete a file.
    async fn next(&self, mut reading: Reading, length: usize) -> Result<(Reading, Bytes), Failure> {
        let (reading, result) = blocking(move || {
            let result = reading.next(length);
            (reading, result)
        })
        .await;
        match result {
            Ok(bytes) => Ok((reading, bytes)),
            Err(message) => {
                let (store, object) = (self.inner.store.clone(), self.object);
                // Nothing that was sent of it is of use, and nobody may use it any more.
                self.forget()?;
                let scrubbed = blocking(move || store.scrub(object)).await;
                if let Err(error) = scrubbed {
                    return Err(self.store_error(error).into());
                }
                Err(PushError::Store(message).into())
            }
        }
    }

    fn read_journal(&self) -> Option<Journal> {
        let bytes = std::fs::read(journal_path(&self.inner.store, self.transfer)).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|journal: &Journal| journal.object == self.object)
    }

    fn write_journal(&self, journal: &Journal) -> Result<(), PushError> {
        let path = journal_path(&self.inner.store, self.transfer);
        let temporary = self.inner.store.temporary();
        let bytes = serde_json::to_vec(journal).expect("a journal has an encoding");
        // It outlives the process; after a power cut, what it does not know is sent again.
        std::fs::write(&temporary, bytes)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .doing("write", &path)
            .map_err(|error| self.store_error(error))
    }

    fn forget(&self) -> Result<(), PushError> {
        forget(&self.inner.store, self.transfer).map_err(|error| self.store_error(error))
    }
}
