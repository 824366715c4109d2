//! `atoll action`: reusable units of code.

mod folder;
mod init;
mod key;
mod registry;

use std::path::PathBuf;

use atoll_model::workflow::action_schema;
use clap::Subcommand;
use serde_json::json;

use self::folder::Folder;
pub(crate) use self::registry::{push_folder, version_path};
use crate::diagnostics;
use crate::failure::Failure;
use crate::output::{self, outln};
use crate::settings::Connection;
use crate::table;

#[derive(Debug, Subcommand)]
pub(crate) enum ActionCommand {
    /// Make the folder of an action that runs, to begin with.
    Init {
        folder: PathBuf,
        /// The name of the action; that of its folder unless given.
        #[arg(long)]
        name: Option<String>,
        /// What it is run as.
        #[arg(long, value_enum, default_value_t)]
        runtime: init::Template,
    },
    /// Say what is wrong with the folder of an action, and the digest of what it holds.
    Check {
        folder: PathBuf,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of `action.yaml`, for editors.
    Schema,
    /// Push a version of an action, for steps to name as `NAME@VERSION`. It never changes.
    Push(registry::PushArguments),
    /// List versions that were pushed.
    List(registry::ListArguments),
    /// Show a version.
    Show(registry::VersionArguments),
    /// Advise against a version: runs that use it say so, and go on working.
    Deprecate(registry::DeprecateArguments),
    /// Remove a version that no live run uses.
    Remove(registry::VersionArguments),
    /// Keys that sign actions.
    #[command(subcommand)]
    Key(key::KeyCommand),
}

/// # Errors
/// When what was asked for cannot be done.
pub(crate) async fn action(connection: &Connection, command: ActionCommand) -> anyhow::Result<()> {
    match command {
        ActionCommand::Init { folder, name, runtime } => init::init(&folder, name.as_deref(), runtime),
        ActionCommand::Check { folder, json } => check(&Folder::at(folder), json),
        ActionCommand::Schema => {
            output::json(&action_schema());
            Ok(())
        }
        ActionCommand::Push(arguments) => registry::push(&connection.client()?, &arguments).await,
        ActionCommand::List(arguments) => registry::list(&connection.client()?, &arguments).await,
        ActionCommand::Show(arguments) => registry::show(&connection.client()?, &arguments).await,
        ActionCommand::Deprecate(arguments) => registry::deprecate(&connection.client()?, &arguments).await,
        ActionCommand::Remove(arguments) => registry::remove(&connection.client()?, &arguments).await,
        ActionCommand::Key(command) => key::key(command),
    }
}

fn check(folder: &Folder, as_json: bool) -> anyhow::Result<()> {
    let packed = match folder.pack() {
        Ok(packed) => packed,
        Err(error) => {
            if let (true, Some(Failure::Invalid { diagnostics, .. })) = (as_json, error.downcast_ref::<Failure>()) {
                output::json(&json!({ "valid": false, "errors": diagnostics::document(diagnostics) }));
            }
            return Err(error);
        }
    };
    let (manifest, object) = (&packed.manifest, packed.bundle.object());
    let notes = manifest.ryax().map_or(&[][..], |ryax| &ryax.notes);
    if as_json {
        output::json(&json!({
            "valid": true, "errors": [],
            "action": manifest.name, "version": manifest.version, "digest": object.id.to_string(),
            "kind": manifest.kind.as_str(), "labels": manifest.labels, "notes": notes,
            "files": packed.bundle.files(), "bytes": object.bytes,
        }));
        return Ok(());
    }
    outln!("{} {} is valid", manifest.name, manifest.version);
    outln!("  {} files, {}, {}", packed.bundle.files(), table::bytes(object.bytes), object.id);
    notes.iter().for_each(|note| outln!("  {note}"));
    Ok(())
}
