//! What may be wrong with a configuration.

use std::path::PathBuf;

use atoll_model::diagnostic::Diagnostic;

use crate::executor::batch::template::TemplateError;

/// Why a configuration cannot be used; the message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a configuration of an agent", path = path.display())]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("{variable}={value:?}: {message}")]
    Variable { variable: String, value: String, message: String },
    #[error("{path} is not a path to use: it must be absolute", path = .0.display())]
    RelativePath(PathBuf),
    #[error(
        "import_urls: {0} is not what a URL begins with that can be fetched: https://, http://, s3://, gs:// or az://"
    )]
    ImportUrl(String),
    #[error("exports: {0} is neither an absolute path nor what the URL of a bucket begins with: s3://, gs:// or az://")]
    Export(String),
    #[error("cpus = {0}: an agent offers at least a hundredth of a CPU, and at most 4,000,000")]
    Cpus(f64),
    #[error("{}", lines(.0))]
    Policy(Vec<Diagnostic>),
    #[error("scrub_hours = {0}")]
    Hours(String),
    #[error("work_dir = {work}: it must be neither the data directory ({data}) nor above it", work = work.display(), data = data.display())]
    WorkDir { work: PathBuf, data: PathBuf },
    #[error("resources: {name} = {amount}: an amount is from 0 to 1,000,000, and its name has no space")]
    Amount { name: String, amount: f64 },
    #[error("slurm: {0}")]
    Slurm(String),
    #[error("batch: {0}")]
    Batch(String),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("kubernetes: {0}")]
    Kubernetes(String),
    #[error("workers: {0}")]
    Workers(String),
    #[error("accounts: {0}")]
    Accounts(String),
    #[error("container: {0}")]
    Container(String),
    #[error("pilots are workers: say where they join, `[workers] listen`")]
    Pilots,
    #[error("no data directory is given, and there is no HOME to put it in")]
    NoHome,
}

fn lines(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
