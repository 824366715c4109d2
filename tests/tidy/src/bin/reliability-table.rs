//! Writes the table of `docs/reliability.md` from the tests that exist.

use anyhow::Result;
use tidy_tests::rows::{table, with_table};
use tidy_tests::workspace::root;

fn main() -> Result<()> {
    let path = root().join("docs/reliability.md");
    let document = std::fs::read_to_string(&path)?;
    std::fs::write(&path, with_table(&document, &table()?)?)?;
    Ok(())
}
