//! The shared folder, as the agent reads and writes it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use atoll_model::time::Timestamp;
use rustix::fs::syncfs;

use super::Handed;
use super::system::{BatchSystem, Limits};
use crate::config::ShimProgram;
use crate::shim::job::evidence::{
    Batch, CANCEL, CLAIM, Claim, ENDED, EndedNews, JobOrder, JobsFolder, ORDER, STARTED, StartedNews, VERSION,
    read_json, to_json, write_durably,
};
use crate::shim::protocol::{Common, Key, Left, Setup, SlotCgroups};
use crate::shim::{keep_logs, make_private, remove_whatever};

/// So much of what a job said is told to people.
const SAID_BYTES_MAX: usize = 500;

/// What jobs are made of, and where.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    pub(super) system: Arc<dyn BatchSystem>,
    pub(super) limits: Limits,
    pub(super) program: ShimProgram,
    pub(super) folder: JobsFolder,
    data_dir: PathBuf,
}

impl Desk {
    pub(super) fn open(
        system: Arc<dyn BatchSystem>,
        program: ShimProgram,
        data_dir: PathBuf,
        folder: JobsFolder,
    ) -> io::Result<Self> {
        for path in [folder.path().to_owned(), folder.batches(), folder.news(), folder.said()] {
            make_private(&path)?;
        }
        Ok(Self { limits: system.limits(), system, program, folder, data_dir })
    }

    pub(super) fn batches(&self) -> io::Result<Vec<(String, Batch)>> {
        let mut found = Vec::new();
        for name in names(&self.folder.batches())? {
            // What was half written when the machine went down has another name.
            if let (false, Some(batch)) = (name.starts_with('.'), read_json(&self.folder.batches().join(&name))?) {
                found.push((name, batch));
            }
        }
        Ok(found)
    }

    /// Removes what belongs to none of these attempts and batches.
    pub(super) fn sweep(&self, attempts: &BTreeSet<String>, tokens: &BTreeSet<String>) -> io::Result<()> {
        let own = ["batches", "news", "said"];
        for name in names(self.folder.path())?.into_iter().filter(|name| !own.contains(&name.as_str())) {
            if !attempts.contains(&name) {
                remove(&self.folder.path().join(name));
            }
        }
        for (folder, wanted) in [(self.folder.news(), attempts), (self.folder.said(), tokens)] {
            for name in names(&folder)? {
                let of = name.rsplit_once('.').map_or(name.as_str(), |(of, _)| of);
                if !wanted.contains(of) {
                    remove(&folder.join(name));
                }
            }
        }
        Ok(())
    }

    /// Makes the slot of an attempt with its order. It is durable after [`Self::sync`].
    pub(super) fn write_order(&self, handed: &Handed) -> io::Result<()> {
        let slot = self.folder.slot(handed.order.key);
        // What a process before this one began is begun anew: nothing was submitted.
        remove_whatever(&slot)?;
        make_private(&slot)?;
        let mut read_only = vec![self.data_dir.clone()];
        if !self.folder.path().starts_with(&self.data_dir) {
            read_only.push(self.folder.path().to_owned());
        }
        let setup = Setup {
            slot: slot.clone(),
            read_only,
            hidden: ["identity", "journal", "workers"].map(|name| self.data_dir.join(name)).to_vec(),
            no_namespace: false,
            cgroups: SlotCgroups::default(),
        };
        let (common, order) = (handed.common.as_ref().clone(), handed.order.clone());
        let common = Common { command: self.system.command(&common), ..common };
        let call = common.worker.clone().map(|worker| (worker, order.inputs.clone()));
        let terms = common.terms.clone();
        fs::write(slot.join(ORDER), JobOrder { version: VERSION, setup, common, order, call, terms }.encode())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(syncfs(File::open(self.folder.path())?)?)
    }

    pub(super) fn try_write_batch(&self, token: &str, batch: &Batch) -> io::Result<()> {
        write_durably(&File::open(self.folder.batches())?, token, &to_json(batch)?)
    }

    pub(super) fn write_batch(&self, token: &str, batch: &Batch) {
        if let Err(error) = self.try_write_batch(token, batch) {
            // It is looked for by its comment by the next process, as if the answer had been lost.
            tracing::warn!(token, %error, "the number of a job cannot be noted");
        }
    }

    pub(super) fn remove_batch(&self, token: &str) {
        remove(&self.folder.batches().join(token));
        remove(&self.folder.script(token));
    }

    /// From now on the attempt does not begin, and ends if it has.
    pub(super) fn write_cancel(&self, key: Key) {
        let path = self.folder.slot(key).join(CANCEL);
        if let Err(error) = fs::write(&path, "") {
            // The cluster is asked to end it as well.
            tracing::warn!(path = %path.display(), %error, "a job cannot be told to end");
        }
    }

    pub(super) fn claim_of(&self, key: Key) -> Option<Claim> {
        // One that is being written says nothing yet, and soon will.
        read_json(&self.folder.slot(key).join(CLAIM)).ok().flatten()
    }

    /// When the attempt last gave a sign of life, by the clock of where it runs.
    pub(super) fn pulse(&self, key: Key) -> Option<SystemTime> {
        fs::metadata(self.news_path(key, STARTED)).and_then(|found| found.modified()).ok()
    }

    pub(super) fn started(&self, key: Key) -> Option<Timestamp> {
        self.started_news(key).ok().flatten().map(|news| news.at)
    }

    pub(super) fn started_news(&self, key: Key) -> io::Result<Option<StartedNews>> {
        read_json(&self.news_path(key, STARTED))
    }

    pub(super) fn ended_news(&self, key: Key) -> io::Result<Option<EndedNews>> {
        read_json(&self.news_path(key, ENDED))
    }

    /// Of which attempts there is word of the start, and after these of which of the end.
    pub(super) fn news(&self) -> io::Result<Vec<(String, bool)>> {
        let split = |name: String| match name.rsplit_once('.') {
            Some((of, STARTED)) => Some((of.to_owned(), false)),
            Some((of, ENDED)) => Some((of.to_owned(), true)),
            Some(_) | None => None,
        };
        let mut news: Vec<(String, bool)> = names(&self.folder.news())?.into_iter().filter_map(split).collect();
        news.sort_by_key(|(_, is_end)| *is_end);
        Ok(news)
    }

    pub(super) fn remove_news(&self, key: Key) {
        [STARTED, ENDED].iter().for_each(|what| remove(&self.news_path(key, what)));
    }

    fn news_path(&self, key: Key, what: &str) -> PathBuf {
        self.folder.news().join(format!("{}.{what}", key.folder()))
    }

    /// What a job said before it was a shim: why it could not become one.
    pub(super) fn said(&self, token: &str, index: usize) -> Option<String> {
        let text = fs::read(self.said_path(token, index)).ok()?;
        let text = String::from_utf8_lossy(&text[..text.len().min(SAID_BYTES_MAX)]).trim().replace('\n', "; ");
        (!text.is_empty()).then_some(text)
    }

    pub(super) fn remove_said(&self, token: &str, index: usize) {
        remove(&self.said_path(token, index));
    }

    fn said_path(&self, token: &str, index: usize) -> PathBuf {
        self.folder.said().join(format!("{token}.{index}"))
    }

    /// Keeps what an attempt had written to its logs that nobody watches over any more.
    pub(super) fn keep_logs(&self, key: Key) -> Left {
        keep_logs(&self.folder.slot(key), key)
    }
}

/// Names what is submitted together, in every file and for the cluster.
pub(super) fn new_token() -> String {
    format!("{:016x}", uuid::Uuid::now_v7().as_u64_pair().1)
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    Ok(fs::read_dir(folder)?.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn remove(path: &Path) {
    if let Err(error) = remove_whatever(path) {
        tracing::warn!(path = %path.display(), %error, "what a job left cannot be removed");
    }
}
