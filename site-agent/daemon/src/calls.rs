//! How fast handlers in Python are called, from the order to the end as the core of an agent hears it, on an executor of its
//! own: what `atoll bench python` measures.

use std::collections::BTreeSet;
use std::num::NonZero;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use atoll_model::id::{Attempt, ExecutionId, RunId, SiteName, StepIndex};
use atoll_model::resources::Resources;
use atoll_model::session::{Origin, StepTemplate, TemplateOutput, TemplateWork};
use atoll_model::value::{ObjectRef, Type, Value};
use site_agent_core::Event;
use site_agent_core::command::{StartInput, StartValue};
use site_agent_core::event::{ExitKind, NodeId};
use storage_sync_engine::store::SiteStore;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ShimProgram};
use crate::executor::local::{self, Confining, Executor, Interpreter, LocalOptions, Order, key};
use crate::shim::protocol::Key;
use crate::telemetry::Meters;
use crate::withheld::Withheld;

const MANIFEST: &str = "name: next\nversion: '1'\nruntime: python\nhandler: main.py:handle\ninputs: { number: integer }\noutputs: { next: integer }\n";
const MODULE: &str = "def handle(number):\n    return {\"next\": number + 1}\n";
/// Longer than anything here takes that goes well.
const PATIENCE: Duration = Duration::from_secs(60);
/// Calls that warm everything up and do not count.
const WARM_UP: u32 = 20;

/// What was measured.
#[derive(Debug, Clone)]
pub struct CallFigures {
    /// From the first order to the end of its call, with all that is started for it.
    pub cold_start: Duration,
    /// Calls one after the other, each from its order to its end.
    pub alone: Vec<Duration>,
    /// Of calls that were ordered all at once.
    pub per_second: f64,
    /// How many of them at a time.
    pub lanes: u32,
}

/// Measures the executor of an agent in an empty folder: calls one after the other, then so many at once.
///
/// # Errors
/// When there is no Python, or a call does not end as it must.
pub fn measure_calls(data_dir: &Path, alone: u32, at_once: u32) -> anyhow::Result<CallFigures> {
    let config = Config::for_data_dir(data_dir.to_owned());
    let python = Interpreter::find(&config.python, data_dir)?;
    let store = SiteStore::open(&data_dir.join("store"))?;
    let folder = data_dir.join("action");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("action.yaml"), MANIFEST)?;
    std::fs::write(folder.join("main.py"), MODULE)?;
    let bundle = store.ingest(&folder)?.object;
    let (sender, told) = channel();
    let sender = Mutex::new(sender);
    let tell = move |events: Vec<Event>| {
        // Nobody listens any more once everything is measured.
        let _ = sender.lock().unwrap_or_else(PoisonError::into_inner).send(events);
    };
    let slots_dir = config.slots_dir();
    let program = ShimProgram::own()?;
    let isolation = Confining::try_out(config.isolation, &program);
    let local::Started { executor, thread, .. } = local::start(LocalOptions {
        site: "bench".parse::<SiteName>()?,
        data_dir: data_dir.to_owned(),
        slots_dir: slots_dir.clone(),
        program,
        isolation,
        gpus: Vec::new(),
        imports: config.imports,
        exports: config.exports,
        withheld: Withheld::new(store.clone()),
        store,
        python: Some(python),
        emitted: tokio::sync::mpsc::unbounded_channel().0,
        engine: None,
        components: None,
        accounts: None,
        nodes: None,
        pilots: None,
        batch: None,
        log_bytes_max: 1 << 20,
        logs: Arc::default(),
        ledger: Default::default(),
        tell: Arc::new(tell),
        meters: Arc::new(Meters::new()),
        spans: None,
        failed: CancellationToken::new(),
    })?;
    let lanes = std::thread::available_parallelism().map_or(1, NonZero::get).min(64) as u32;
    let calls = Calls { executor: executor.clone(), told, template: Arc::new(template(bundle)), next: 0, lanes };
    let measured = calls.measure(alone, at_once);
    executor.order(Order::Quit);
    executor.ring();
    thread.join().ok().context("the executor's thread has panicked")?;
    local::stop_work(data_dir, &slots_dir)?;
    measured
}

fn template(bundle: ObjectRef) -> StepTemplate {
    StepTemplate {
        run: RunId::from_bits(uuid::Uuid::now_v7().as_u128()),
        step: StepIndex(0),
        step_name: "next".to_owned(),
        workflow: "bench".to_owned(),
        work: TemplateWork::Python { bundle, signatures: Vec::new() },
        resources: Resources::default(),
        outputs: vec![TemplateOutput {
            name: "next".to_owned(),
            r#type: Type::Integer,
            optional: false,
            listed: false,
        }],
        bindings: Vec::new(),
        environment: Vec::new(),
        start: Default::default(),
        on_disconnect: Default::default(),
        priority: 0,
        origin: Origin::default(),
    }
}

struct Calls {
    executor: Executor,
    told: Receiver<Vec<Event>>,
    template: Arc<StepTemplate>,
    next: u32,
    lanes: u32,
}

impl Calls {
    fn measure(mut self, alone: u32, at_once: u32) -> anyhow::Result<CallFigures> {
        let cold_start = self.call(1)?;
        for _ in 0..WARM_UP {
            self.call(1)?;
        }
        let alone = (0..alone).map(|_| self.call(1)).collect::<anyhow::Result<_>>()?;
        self.call(at_once.min(1_000))?;
        let took = self.call(at_once)?;
        Ok(CallFigures { cold_start, alone, per_second: f64::from(at_once) / took.as_secs_f64(), lanes: self.lanes })
    }

    /// Orders so many calls, and waits for all of them. How long it took.
    fn call(&mut self, count: u32) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let mut waiting = BTreeSet::new();
        for element in self.next..self.next + count {
            let execution = ExecutionId { run: self.template.run, step: self.template.step, element };
            let key = key(execution, Attempt::FIRST);
            waiting.insert(key);
            let number = StartValue::Value(Value::Integer(element.into()));
            let inputs = vec![StartInput { name: "number".to_owned(), value: number }];
            let ahead = (count > 1).then_some(self.lanes);
            self.executor.order(Order::Start {
                key,
                template: Arc::clone(&self.template),
                inputs,
                node: NodeId::HOME,
                ahead,
            });
        }
        self.executor.ring();
        self.next += count;
        while !waiting.is_empty() {
            for event in self.told.recv_timeout(PATIENCE).context("a call does not end")? {
                if let Some(ended) = ended(event)? {
                    waiting.remove(&ended);
                    self.executor.order(Order::Release(ended));
                }
            }
        }
        Ok(began.elapsed())
    }
}

/// The call that has ended with this, if one has, and as it must.
fn ended(event: Event) -> anyhow::Result<Option<Key>> {
    if let Event::NotStarted { message, .. } = &event {
        bail!("a call was not started: {message}");
    }
    let Event::Exited { execution, attempt, exit, stored } = event else { return Ok(None) };
    let expected = Value::Integer(i64::from(execution.element) + 1);
    let is_right = stored.is_some_and(|stored| stored.outputs == [expected]);
    if exit.how != ExitKind::Code(0) || !is_right {
        bail!("{execution} ended otherwise: {exit:?}");
    }
    Ok(Some(key(execution, attempt)))
}
