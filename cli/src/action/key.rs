//! Keys that sign actions: files that their owner keeps.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use storage_sync_engine::signature::SigningKey;

use crate::failure::Failure;
use crate::files::write_private;
use crate::output::{self, outln};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key, keep it in a file that only its owner may read, and print its public key.
    New(KeyArguments),
    /// Print the public key of a key, for the policy of a site.
    Show(KeyArguments),
}

#[derive(Debug, Args)]
pub(crate) struct KeyArguments {
    file: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When the file cannot be read or written, or holds no key.
pub(super) fn key(command: KeyCommand) -> anyhow::Result<()> {
    let (arguments, key) = match command {
        KeyCommand::New(arguments) => {
            let key = make(&arguments.file)?;
            (arguments, key)
        }
        KeyCommand::Show(arguments) => {
            let key = read(&arguments.file)?;
            (arguments, key)
        }
    };
    let public_key = key.public_key().to_string();
    if arguments.json {
        output::json(&json!({ "public_key": public_key, "file": arguments.file.display().to_string() }));
    } else {
        outln!("{public_key}");
    }
    Ok(())
}

fn make(file: &Path) -> anyhow::Result<SigningKey> {
    if file.exists() {
        let message = format!("{} is there already: what it has signed would be nobody's", file.display());
        return Err(Failure::Usage(message).into());
    }
    let der = SigningKey::generate_pkcs8()?;
    let encoded = STANDARD.encode(&der);
    let lines: Vec<&str> =
        encoded.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base 64 is ASCII")).collect();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    write_private(file, pem.as_bytes())?;
    Ok(SigningKey::from_pkcs8(&der)?)
}

/// Reads a key in PEM, as `openssl genpkey -algorithm ed25519` writes it too.
///
/// # Errors
/// When it cannot be read, or is none.
pub(super) fn read(file: &Path) -> anyhow::Result<SigningKey> {
    let text = std::fs::read(file)
        .map_err(|error| Failure::Usage(format!("cannot read the key {}: {error}", file.display())))?;
    let der = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|error| {
        Failure::Usage(format!("{} holds no key in PEM ({error}); `atoll action key new` makes one", file.display()))
    })?;
    SigningKey::from_pkcs8(der.secret_pkcs8_der()).with_context(|| format!("{} cannot be used", file.display()))
}
