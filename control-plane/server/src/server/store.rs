//! From the store that the configuration names to a running driver.

use std::sync::Arc;

use anyhow::Context as _;
use control_plane_postgres::{Address, Contents, Member, Standby, Taken};
use storage_sync_journal::{Backend, Opened, Options};
use tokio::sync::mpsc;

use crate::config::{Config, Store};
use crate::driver::{self, Beginning, BucketOrder, Driver, Following, Handle, JOURNAL_FORMAT, Notices, wall_clock};
use crate::history::{FileHistory, History, Keep, PostgresHistory};
use crate::telemetry::Meters;

/// The running driver, and what it asks for.
pub(super) struct Started {
    pub(super) handle: Handle,
    pub(super) driver: Driver,
    pub(super) deletions: mpsc::UnboundedReceiver<BucketOrder>,
    pub(super) kept: mpsc::UnboundedReceiver<Keep>,
    pub(super) history: Arc<dyn History>,
}

/// Opens the store and starts the driver: as the leader, or as one that stands by.
pub(super) async fn start_driver(
    config: &Config,
    member: Member,
    notices: Notices,
    meters: &Arc<Meters>,
) -> anyhow::Result<Started> {
    let core = config.core(wall_clock());
    let (bucket_orders, deletions) = mpsc::unbounded_channel();
    let (history, kept) = mpsc::unbounded_channel();
    let start = Start { core, deletions: bucket_orders, history, notices, meters: Arc::clone(meters) };
    let embedded = |backend| Options::new(config.data_dir.join("journal"), backend, JOURNAL_FORMAT);
    let store = match &config.store {
        Store::Sled => Ok(embedded(Backend::Sled)),
        Store::Redb => Ok(embedded(Backend::Redb)),
        Store::Postgres(address) => Err(address.clone()),
    };
    let starting = move || match store {
        Ok(options) => start.embedded(options).map(|(handle, driver)| (handle, driver, None)),
        Err(address) => start.shared(address, member).map(|(handle, driver, history)| (handle, driver, Some(history))),
    };
    let starting = tokio::task::spawn_blocking(starting).await;
    let (handle, driver, tables) = starting.context("the driver could not be started")??;
    // After the journal, which says who else has the data directory.
    let history: Arc<dyn History> = match tables {
        Some(tables) => Arc::new(tables),
        None => Arc::new(open_history(config)?),
    };
    Ok(Started { handle, driver, deletions, kept, history })
}

struct Start {
    core: control_plane_core::Config,
    deletions: mpsc::UnboundedSender<BucketOrder>,
    history: mpsc::UnboundedSender<Keep>,
    notices: Notices,
    meters: Arc<Meters>,
}

impl Start {
    fn embedded(self, options: Options) -> anyhow::Result<(Handle, Driver)> {
        let Opened { journal, checkpoint, batches, format, repaired, created } = storage_sync_journal::open(options)?;
        repaired.iter().for_each(|repair| tracing::warn!(%repair, "the journal was put right"));
        let bytes: usize = batches.iter().map(|(_, batch)| batch.len()).sum();
        tracing::info!(created, batches = batches.len(), bytes, "opened the journal");
        let Self { core, deletions, history, notices, meters } = self;
        let log = Box::new(journal);
        let beginning = Beginning {
            config: core,
            log,
            deposed: None,
            checkpoint,
            batches,
            format,
            deletions,
            history,
            notices,
            meters,
        };
        Ok(driver::start(beginning)?)
    }

    /// Leads at once if nobody else does, so that a server that is alone answers as soon as it listens.
    fn shared(self, address: Address, member: Member) -> anyhow::Result<(Handle, Driver, PostgresHistory)> {
        let opened = Standby::open(address.clone(), member, JOURNAL_FORMAT);
        let (mut standby, mut contents) = opened.with_context(|| format!("cannot use {address}"))?;
        let bytes: usize = contents.batches.iter().map(|(_, batch)| batch.len()).sum();
        let created = standby.is_created();
        tracing::info!(created, batches = contents.batches.len(), bytes, "opened the journal");
        let taken = standby.try_lead()?;
        let tables = PostgresHistory::new(address, standby.fence());
        let Self { core, deletions, history, notices, meters } = self;
        let (handle, driver) = match taken {
            Some(Taken { mut journal, news }) => {
                tracing::info!(epoch = journal.epoch(), "this server leads");
                news.into_iter().for_each(|news| contents.extend(news));
                let deposed = journal.take_end();
                let Contents { checkpoint, batches, format } = contents;
                let log = Box::new(journal);
                let beginning = Beginning {
                    config: core,
                    log,
                    deposed,
                    checkpoint,
                    batches,
                    format,
                    deletions,
                    history,
                    notices,
                    meters,
                };
                driver::start(beginning)?
            }
            None => {
                let leader = standby.leader();
                tracing::info!(leader = leader.name, url = leader.api_url, "this server stands by");
                let following = Following { config: core, standby, contents, deletions, history, notices, meters };
                driver::follow(following)?
            }
        };
        Ok((handle, driver, tables))
    }
}

/// Where runs are kept when they leave the core's memory, unless the store is shared.
fn open_history(config: &Config) -> anyhow::Result<FileHistory> {
    let path = FileHistory::path(&config.data_dir);
    FileHistory::open(&config.data_dir).with_context(|| {
        format!(
            "the history of runs cannot be opened; move {} elsewhere to start with an empty one, which loses nothing but \
             the runs in it",
            path.display()
        )
    })
}
