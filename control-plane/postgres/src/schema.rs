//! The tables, and how those of an older version become those of this one.

use crate::address::Address;
use crate::error::StoreError;
use crate::session::{ANSWER_MAX, Session};

/// What was added to the tables, version by version. A step that was released is never changed.
const STEPS: [&str; 3] = [
    include_str!("schema/0001_journal.sql"),
    include_str!("schema/0002_history.sql"),
    include_str!("schema/0003_disks.sql"),
];

/// Version of the tables that this program makes and uses.
pub const SCHEMA_VERSION: u32 = STEPS.len() as u32;

/// Serves for all schemas of a database: two servers that start at once must not both make the tables.
const MIGRATION_LOCK: i64 = 0x0061_746f_6c6c;

/// Makes the tables, or brings them up to this version.
pub(crate) fn migrate(session: &mut Session, address: &Address) -> Result<(), StoreError> {
    let schema = address.schema();
    session.execute_all(&format!("BEGIN; SELECT pg_advisory_xact_lock({MIGRATION_LOCK});"))?;
    let migrated = migrate_locked(session, schema);
    match &migrated {
        Ok(()) => session.execute_all("COMMIT")?,
        // The connection is given up when this fails as well.
        Err(_) => drop(session.execute_all("ROLLBACK")),
    }
    migrated
}

fn migrate_locked(session: &mut Session, schema: &str) -> Result<(), StoreError> {
    let exists = "SELECT to_regclass($1::text || '.schema_version') IS NOT NULL";
    let found = if session.query_one(exists, &[&schema])?.get::<_, bool>(0) {
        let version = session.query_one("SELECT coalesce(max(version), 0) FROM schema_version", &[])?;
        u32::try_from(version.get::<_, i32>(0)).unwrap_or(0)
    } else {
        session.execute_all(&format!("CREATE SCHEMA IF NOT EXISTS {schema}"))?;
        session.execute_all(
            "CREATE TABLE schema_version (
                 version integer PRIMARY KEY,
                 applied_at timestamptz NOT NULL DEFAULT now()
             )",
        )?;
        0
    };
    if found > SCHEMA_VERSION {
        return Err(StoreError::NewerSchema { found, supported: SCHEMA_VERSION });
    }
    for (version, step) in (1..=SCHEMA_VERSION).zip(STEPS).skip(found as usize) {
        session.execute_all(step)?;
        session.execute_all(&format!("INSERT INTO schema_version (version) VALUES ({version})"))?;
        tracing::info!(version, schema, "brought the tables up to date");
    }
    Ok(())
}

/// Removes the schema that the address names, with everything in it.
///
/// # Errors
/// When the database cannot be reached, or refuses.
pub fn drop_schema(address: &Address) -> Result<(), StoreError> {
    Session::open(address, ANSWER_MAX)?.execute_all(&format!("DROP SCHEMA IF EXISTS {} CASCADE", address.schema()))
}
