//! A PostgreSQL server of a test's own, so that it can be restarted and cut off.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Database {
    directory: TempDir,
    port: u16,
}

impl Database {
    /// Nothing, loudly, where PostgreSQL is not installed.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start() -> Result<Option<Self>> {
        if std::env::var_os("ATOLL_TEST_POSTGRES").is_none() {
            println!("SKIPPED: no PostgreSQL; tests/run.sh starts one and sets ATOLL_TEST_POSTGRES");
            return Ok(None);
        }
        let directory = tempfile::Builder::new().prefix("atoll-pg-").tempdir()?;
        let mut database = Self { directory, port: 0 };
        database.script("postgres-up.sh")?;
        let env = std::fs::read_to_string(database.directory.path().join("env"))?;
        let port = env.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('/').next()).context("a port")?;
        database.port = port.parse()?;
        Ok(Some(database))
    }

    /// Stops it as a crash would, and starts it again.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn restart(&self) -> Result<()> {
        self.script("postgres-restart.sh")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What PostgreSQL's own client says to a query.
    ///
    /// # Errors
    /// When it is refused.
    pub fn query(&self, sql: &str) -> Result<String> {
        let server = format!("postgres://atoll@127.0.0.1:{}/atoll", self.port);
        let output = Command::new("psql").args(["-X", "-q", "-A", "-t", "-c", sql, &server]).output()?;
        ensure!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn script(&self, name: &str) -> Result<()> {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../parts").join(name);
        // To a file: what the script starts keeps its output open for good.
        let said = self.directory.path().join("said");
        let log = std::fs::File::create(&said)?;
        let mut command = Command::new("bash");
        command.arg(script).arg(self.directory.path()).stdin(Stdio::null());
        let status = command.stdout(log.try_clone()?).stderr(log).status()?;
        ensure!(status.success(), "{name}: {}", std::fs::read_to_string(said)?);
        Ok(())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../parts/postgres-down.sh");
        let ended = Command::new("bash").arg(script).arg("--keep").arg(self.directory.path()).status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("the database in {} was left behind", self.directory.path().display());
        }
    }
}
