//! One connection to the database, used from one thread without `async`.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row, Statement};

use crate::address::Address;
use crate::error::StoreError;
use crate::tls::Tls;

/// How long one statement may take, usually. Even the largest batch is written within it.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(20);
/// A maintenance of the tables goes through everything that was deleted.
const MAINTENANCE_MAX: Duration = Duration::from_secs(600);

pub(crate) type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// The connection lives on a runtime of its own, which turns only while a statement is waited for.
pub(crate) struct Session {
    /// There until it is dropped.
    runtime: Option<Runtime>,
    client: Client,
    prepared: HashMap<&'static str, Statement>,
    patience: Duration,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("prepared", &self.prepared.len()).finish_non_exhaustive()
    }
}

impl Session {
    /// Connects, and lets nothing take longer than `patience`.
    pub(crate) fn open(address: &Address, patience: Duration) -> Result<Self, StoreError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StoreError::Runtime)?;
        let mut config = address.config();
        if let Some(path) = address.password_file() {
            let password =
                std::fs::read_to_string(path).map_err(|source| StoreError::File { path: path.clone(), source })?;
            config.password(password.trim_end_matches(['\r', '\n']));
        }
        let client = runtime.block_on(async {
            tokio::time::timeout(patience, connect(&runtime, address, &config))
                .await
                .map_err(|_| StoreError::TimedOut)?
        })?;
        let session = Self { runtime: Some(runtime), client, prepared: HashMap::new(), patience };
        // The server gives up a client that is gone as soon as the client does: a lock that it held would hold up others.
        session.execute_all(&format!(
            "SET search_path TO {}; SET tcp_keepalives_idle = 1; SET tcp_keepalives_interval = 1;
             SET tcp_keepalives_count = 2; SET statement_timeout = 0; SET client_min_messages = warning;
             SET synchronous_commit = on;",
            address.schema()
        ))?;
        Ok(session)
    }

    /// Rows of a statement, which is prepared at its first use.
    pub(crate) fn query(&mut self, sql: &'static str, parameters: Parameters<'_>) -> Result<Vec<Row>, StoreError> {
        let Self { runtime, client, prepared, patience } = self;
        let answer = async {
            let statement = match prepared.get(sql) {
                Some(statement) => statement.clone(),
                None => {
                    let statement = client.prepare(sql).await?;
                    prepared.insert(sql, statement.clone());
                    statement
                }
            };
            Ok::<_, StoreError>(client.query(&statement, parameters).await?)
        };
        turning(runtime)
            .block_on(async { tokio::time::timeout(*patience, answer).await })
            .unwrap_or(Err(StoreError::TimedOut))
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// The only row of a statement.
    pub(crate) fn query_one(&mut self, sql: &'static str, parameters: Parameters<'_>) -> Result<Row, StoreError> {
        let mut rows = self.query(sql, parameters)?;
        // Only statements that always yield one row are asked this way.
        Ok(rows.pop().expect("the statement yields one row"))
    }

    /// Carries out statements without parameters.
    pub(crate) fn execute_all(&self, sql: &str) -> Result<(), StoreError> {
        self.within(self.patience, sql)
    }

    /// As [`Self::execute_all`], for what may take long.
    pub(crate) fn maintain(&self, sql: &str) -> Result<(), StoreError> {
        self.within(MAINTENANCE_MAX, sql)
    }

    fn within(&self, patience: Duration, sql: &str) -> Result<(), StoreError> {
        let answer = async { Ok::<_, StoreError>(self.client.batch_execute(sql).await?) };
        turning(&self.runtime)
            .block_on(async { tokio::time::timeout(patience, answer).await })
            .unwrap_or(Err(StoreError::TimedOut))
    }
}

fn turning(runtime: &Option<Runtime>) -> &Runtime {
    runtime.as_ref().expect("a session has its runtime until it is dropped")
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It may be dropped where nothing may block.
            runtime.shutdown_background();
        }
    }
}

async fn connect(runtime: &Runtime, address: &Address, config: &tokio_postgres::Config) -> Result<Client, StoreError> {
    let client = match address.authority() {
        Some(authority) if address.is_encrypted() => {
            let (client, connection) = config.connect(Tls::trusting(authority)?).await.map_err(StoreError::Connect)?;
            // How it ended is said by the statement that it ended under.
            runtime.spawn(async { drop(connection.await) });
            client
        }
        Some(_) | None => {
            let (client, connection) = config.connect(NoTls).await.map_err(StoreError::Connect)?;
            runtime.spawn(async { drop(connection.await) });
            client
        }
    };
    Ok(client)
}
