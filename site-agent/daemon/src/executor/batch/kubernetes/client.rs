//! The way to the API of a cluster.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use crate::config::KubernetesSettings;

/// How long the API may be silent within an answer.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Why nobody knows where the cluster is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("kubernetes: {path} says of no cluster that can be used", path = .0.display())]
    File(PathBuf, #[source] KubeconfigError),
    #[error("kubernetes: the context {0:?} is in no file of this user that says where a cluster is")]
    Context(String, #[source] KubeconfigError),
    #[error("kubernetes: this is no pod with a service account, and no file says where the cluster is (`kubeconfig`)")]
    Nowhere(#[source] Box<InferConfigError>),
    #[error("kubernetes: what is said of the cluster cannot be used")]
    Unusable(#[source] kube::Error),
}

/// A client, and the namespace in which the agent's Jobs are. Nothing is asked of the cluster yet.
///
/// # Errors
/// When nothing says where the cluster is, or what does is wrong.
pub(crate) async fn connect(settings: &KubernetesSettings) -> Result<(Client, String), ConnectError> {
    let options = KubeConfigOptions { context: settings.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match (&settings.kubeconfig, &settings.context) {
        (Some(path), _) => {
            let wrong = |error| ConnectError::File(path.clone(), error);
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)?
        }
        (None, Some(context)) => {
            let wrong = |error| ConnectError::Context(context.clone(), error);
            Config::from_kubeconfig(&options).await.map_err(wrong)?
        }
        (None, None) => Config::infer().await.map_err(|error| ConnectError::Nowhere(Box::new(error)))?,
    };
    config.read_timeout = Some(SILENCE_MAX);
    // A pooled connection was idle before it is used again.
    config.reset_reader_on_write = true;
    let namespace = settings.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(ConnectError::Unusable)?;
    Ok((client, namespace))
}

/// What the API says that went wrong, or what kept it from saying anything.
pub(crate) fn said(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return if status.message.is_empty() { status.reason.clone() } else { status.message.clone() };
    }
    let mut innermost: &dyn Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Whether it is certain that the API has heard nothing.
pub(super) fn is_unreached(error: &kube::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let mut next: Option<&dyn Error> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return [AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable].contains(&error.kind());
        }
        next = error.source();
    }
    false
}
