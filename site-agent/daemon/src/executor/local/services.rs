//! The services of a site: at which port each listens, and who waits for one. What listens is noted in a file, so that the next
//! process of the agent knows it of what still runs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use atoll_model::action::{PORT_VARIABLE, Port, Probe, SERVICE_VARIABLE, Service};
use atoll_model::limits::SERVICE_PATIENCE;
use atoll_model::session::StepTemplate;
use serde::{Deserialize, Serialize};
use site_agent_core::command::StartInput;
use site_agent_core::event::{FoundAttempt, FoundState};

use super::actions::ReadyAction;
use crate::shim::container::{Container, Engine};
use crate::shim::protocol::{Common, Kept, Key};

/// Says to an engine that what it starts shares the network of the machine, where others reach its port.
const HOST_NETWORK: &str = "--network=host";

/// Why a service cannot be begun; the message says what is wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    #[error("the action's own action.yaml does not say `kind: service`")]
    NoService,
    #[error("port {port} is that of the service {other} at this site: let it listen at `port: any`")]
    Taken { port: u16, other: String },
    #[error("port {port} cannot be listened at")]
    Unusable { port: u16, source: io::Error },
    #[error("there is no port to listen at")]
    NoPort(#[source] io::Error),
    #[error("where it listens cannot be noted in {path}", path = .path.display())]
    Note { path: PathBuf, source: io::Error },
    #[error(
        "its health is asked by a command, which this site would have to run outside of what keeps it apart (`isolation: strict`): let its port be asked"
    )]
    Outside,
    #[error("it needs the service {0}, which is not ready at this site: is its workflow deployed?")]
    NotReady(String),
}

/// A service as it stands at the site.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Listening {
    key: Key,
    port: Option<u16>,
    #[serde(skip)]
    is_ready: bool,
}

/// What waits for a service, with all that it is handed over with.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) key: Key,
    pub(super) template: Arc<StepTemplate>,
    pub(super) inputs: Vec<StartInput>,
    pub(super) action: Option<ReadyAction>,
    pub(super) ahead: Option<u32>,
    pub(super) until: Instant,
}

#[derive(Debug)]
pub(super) struct Services {
    path: PathBuf,
    /// By their names: project, workflow, and the name in it.
    known: BTreeMap<String, Listening>,
    waiting: Vec<Waiting>,
}

impl Services {
    /// Finds those of attempts that go on, and whether they are ready.
    ///
    /// # Errors
    /// When what was noted cannot be read.
    pub(super) fn open(data_dir: &Path, found: &[FoundAttempt]) -> io::Result<Self> {
        let path = data_dir.join("services.json");
        let noted: BTreeMap<String, Listening> = match fs::read(&path) {
            // A file that is damaged says nothing; its services are begun again when they end.
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let known = noted.into_iter().filter_map(|(name, listening)| {
            let key = listening.key;
            let found = found.iter().find(|found| (found.execution, found.attempt) == (key.execution, key.attempt))?;
            let is_ready = match found.state {
                FoundState::Running { .. } => true,
                FoundState::Queued => false,
                FoundState::Exited(_) => return None,
            };
            Some((name, Listening { is_ready, ..listening }))
        });
        Ok(Self { path, known: known.collect(), waiting: Vec::new() })
    }

    /// What is started for a service: it knows where to listen, and is kept alive.
    pub(super) fn begin(
        &mut self,
        key: Key,
        name: &str,
        action: Option<&ReadyAction>,
        common: &Common,
    ) -> Result<Arc<Common>, ServiceError> {
        let manifest = action.and_then(|action| Some((action.manifest.as_deref()?, action.folder.as_path())));
        let service = manifest.and_then(|(manifest, folder)| Some((manifest.service.as_deref()?, folder)));
        let (service, folder) = service.ok_or(ServiceError::NoService)?;
        let service = with_command(service, folder);
        if matches!(service.health.probe, Probe::Command(_)) && common.terms.enclosed.is_some() {
            return Err(ServiceError::Outside);
        }
        let port = self.port(name, service.port)?;
        self.known.insert(name.to_owned(), Listening { key, port, is_ready: false });
        self.note()?;
        let mut common = common.clone();
        if let Some(port) = port {
            common.environment.push((PORT_VARIABLE.into(), port.to_string().into_bytes()));
            common = on_machine(common);
        }
        common.kept = Some(Kept { service, port });
        Ok(Arc::new(common))
    }

    /// The port that is asked for; one that the site chooses is the one of the last time, if it can be.
    fn port(&self, name: &str, wanted: Option<Port>) -> Result<Option<u16>, ServiceError> {
        let is_taken = |port: u16| self.known.iter().find(|(other, known)| *other != name && known.port == Some(port));
        match wanted {
            None => Ok(None),
            Some(Port::Fixed(port)) => match is_taken(port) {
                Some((other, _)) => Err(ServiceError::Taken { port, other: other.clone() }),
                None => match listen(port) {
                    Ok(port) => Ok(Some(port)),
                    Err(source) => Err(ServiceError::Unusable { port, source }),
                },
            },
            Some(Port::Any) => {
                let former = self.known.get(name).and_then(|known| known.port);
                let free = former.and_then(|port| listen(port).ok()).map_or_else(|| listen(0), Ok);
                free.map(Some).map_err(ServiceError::NoPort)
            }
        }
    }

    /// Where the services of a site are that the step uses, in its environment.
    pub(super) fn fill_in(&self, template: &StepTemplate) -> Result<Option<StepTemplate>, ServiceError> {
        if !template.environment.iter().any(|(variable, _)| is_address(variable)) {
            return Ok(None);
        }
        let mut filled = template.clone();
        for (_, value) in filled.environment.iter_mut().filter(|(variable, _)| is_address(variable)) {
            let known = self.known.get(value).filter(|known| known.is_ready);
            let Some(known) = known else { return Err(ServiceError::NotReady(shown(value))) };
            *value = known.port.map(|port| format!("127.0.0.1:{port}")).unwrap_or_default();
        }
        Ok(Some(filled))
    }

    pub(super) fn wait(&mut self, waiting: Waiting) {
        self.waiting.push(waiting);
    }

    /// It waits no more, if it did.
    pub(super) fn forget(&mut self, key: Key) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.key != key);
        self.waiting.len() < before
    }

    /// What has waited so far, to be handed over or to wait again.
    pub(super) fn take_waiting(&mut self) -> Vec<Waiting> {
        std::mem::take(&mut self.waiting)
    }

    /// An attempt has started: whether it is a service, and ready now.
    pub(super) fn ready(&mut self, key: Key) -> bool {
        let known = self.known.values_mut().find(|known| known.key == key);
        known.is_some_and(|known| !std::mem::replace(&mut known.is_ready, true))
    }

    /// An attempt is over: whether it was a service that was ready. Its port stays its own, for the next one.
    pub(super) fn over(&mut self, key: Key) -> bool {
        let known = self.known.values_mut().find(|known| known.key == key);
        known.is_some_and(|known| std::mem::replace(&mut known.is_ready, false))
    }

    fn note(&self) -> Result<(), ServiceError> {
        let next = self.path.with_extension("next");
        let text = serde_json::to_vec(&self.known).map_err(io::Error::other);
        let noted = text.and_then(|text| fs::write(&next, text)).and_then(|()| fs::rename(&next, &self.path));
        noted.map_err(|source| ServiceError::Note { path: self.path.clone(), source })
    }
}

/// The service that a step is, if it is one.
pub(super) fn name_of(template: &StepTemplate) -> Option<&str> {
    let own = template.environment.iter().find(|(variable, _)| variable == SERVICE_VARIABLE);
    own.map(|(_, name)| name.as_str())
}

/// The same, with the network of the machine if it is a container that has one: there services listen.
pub(super) fn on_machine(mut common: Common) -> Common {
    let has_own = |container: &&mut Box<Container>| container.network && container.engine != Engine::Apptainer;
    if let Some(container) = common.container.as_mut().filter(has_own) {
        container.arguments.push(HOST_NETWORK.to_owned());
    }
    common
}

/// How long what uses services waits for them.
pub(super) fn patience(now: Instant) -> Instant {
    now + SERVICE_PATIENCE
}

fn is_address(variable: &str) -> bool {
    variable.strip_prefix(SERVICE_VARIABLE).is_some_and(|rest| rest.starts_with('_'))
}

/// As people know it: without its project.
fn shown(name: &str) -> String {
    let (workflow, service) = name.rsplit_once('/').unwrap_or(("", name));
    format!("{service} of the workflow {}", workflow.rsplit('/').next().unwrap_or(workflow))
}

/// A word of the health command that is the path of a file of the action stands for that file.
fn with_command(service: &Service, folder: &Path) -> Service {
    let mut service = service.clone();
    if let Probe::Command(command) = &mut service.health.probe {
        for word in command.iter_mut().filter(|word| !word.is_empty() && !word.starts_with('/')) {
            let path = folder.join(&*word);
            if path.is_file() {
                *word = path.to_string_lossy().into_owned();
            }
        }
    }
    service
}

/// That a port can be listened at, and which that is.
fn listen(port: u16) -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use atoll_model::action::parse;
    use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
    use atoll_model::session::{Origin, TemplateWork};
    use atoll_model::workflow::{OnDisconnect, StartMode};

    use super::*;

    const NAME: &str = "default/rivers/word-index";

    fn key(attempt: u32) -> Key {
        let execution = ExecutionId { run: RunId::from_bits(7), step: StepIndex(0), element: 0 };
        Key { execution, attempt: Attempt(attempt) }
    }

    fn action(more: &str) -> ReadyAction {
        let text = format!("name: a\nversion: '1'\nkind: service\ncommand: [serve]\n{more}");
        let manifest = Some(Arc::new(parse("action.yaml", &text).unwrap()));
        ReadyAction { folder: PathBuf::from("/"), manifest, programs: None, image: None }
    }

    fn user() -> StepTemplate {
        StepTemplate {
            run: RunId::from_bits(1),
            step: StepIndex(0),
            step_name: "ask".to_owned(),
            workflow: "rivers".to_owned(),
            work: TemplateWork::Null,
            resources: atoll_model::resources::Resources::default(),
            outputs: Vec::new(),
            bindings: Vec::new(),
            environment: vec![("ATOLL_SERVICE_WORD_INDEX".to_owned(), NAME.to_owned())],
            start: StartMode::default(),
            on_disconnect: OnDisconnect::default(),
            priority: 0,
            origin: Origin::default(),
        }
    }

    fn address(services: &Services) -> Result<String, String> {
        let filled = services.fill_in(&user()).map_err(|error| error.to_string())?;
        Ok(filled.unwrap().environment[0].1.clone())
    }

    #[test]
    fn a_service_that_is_ready_is_found_by_those_that_use_it_after_a_restart_of_the_agent_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut services = Services::open(folder.path(), &[]).unwrap();
        let action = action("port: any\n");
        let missing = "it needs the service word-index of the workflow rivers, which is not ready at this site: is its \
                       workflow deployed?";
        assert_eq!(address(&services).unwrap_err(), missing);
        let common = services.begin(key(1), NAME, Some(&action), &Common::default()).unwrap();
        let port = common.kept.as_ref().unwrap().port.unwrap();
        assert!(common.environment.contains(&(PORT_VARIABLE.into(), port.to_string().into_bytes())));
        assert!(address(&services).is_err(), "it is not ready");
        assert!(services.ready(key(1)) && !services.ready(key(1)) && !services.ready(key(2)));
        assert_eq!(address(&services), Ok(format!("127.0.0.1:{port}")));
        let Key { execution, attempt } = key(1);
        let state = FoundState::Running { since: atoll_model::time::Timestamp::ZERO };
        let runs = FoundAttempt { execution, attempt, node: site_agent_core::event::NodeId::HOME, state };
        let mut services = Services::open(folder.path(), &[runs]).unwrap();
        assert_eq!(address(&services), Ok(format!("127.0.0.1:{port}")));
        assert!(services.over(key(1)) && !services.over(key(1)));
        assert!(address(&services).is_err());
        let again = services.begin(key(2), NAME, Some(&action), &Common::default()).unwrap();
        assert_eq!(again.kept.as_ref().unwrap().port, Some(port), "it keeps its port");
    }

    #[test]
    fn two_services_of_a_site_do_not_share_a_port_and_one_that_somebody_has_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut services = Services::open(folder.path(), &[]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fixed = action(&format!("port: {}\n", listener.local_addr().unwrap().port()));
        let mut begin = |name: &str| services.begin(key(1), name, Some(&fixed), &Common::default()).map(drop);
        assert!(matches!(begin("default/a/one"), Err(ServiceError::Unusable { .. })));
        drop(listener);
        begin("default/a/one").unwrap();
        assert!(matches!(begin("default/a/two"), Err(ServiceError::Taken { .. })));
    }
}
