//! Tables of a test's own on a real PostgreSQL.

use control_plane_postgres::{Address, Contents, Member, PostgresJournal, Standby};

use super::fresh;
use crate::driver::JOURNAL_FORMAT;

/// Removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Schema(Address);

impl Schema {
    /// Nothing, loudly, where there is no such store.
    pub(crate) fn fresh() -> Option<Self> {
        let Ok(server) = std::env::var("ATOLL_TEST_POSTGRES") else {
            println!("SKIPPED: no PostgreSQL; tests/run.sh starts one and sets ATOLL_TEST_POSTGRES");
            return None;
        };
        let name = format!("t_{:x}", fresh());
        Some(Self(server.parse::<Address>().unwrap().with_schema(&name).unwrap()))
    }

    pub(crate) fn address(&self) -> Address {
        self.0.clone()
    }

    /// Takes the lead; blocks.
    pub(crate) fn lead(&self) -> (PostgresJournal, Contents, Standby) {
        let [name, api_url, agent_address, authority] = ["one", "https://one", "one:1", "ca"].map(str::to_owned);
        let member = Member { name, api_url, agent_address, authority };
        PostgresJournal::open(self.address(), member, JOURNAL_FORMAT).unwrap()
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        if let Err(error) = control_plane_postgres::drop_schema(&self.0) {
            println!("a schema was left behind: {error}");
        }
    }
}
