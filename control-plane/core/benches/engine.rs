//! What the core itself costs for each execution: `cargo bench -p control-plane-core`. No network, no disk.

#![expect(clippy::disallowed_types, reason = "a measurement needs a clock")]
#![expect(clippy::wildcard_enum_match_arm, reason = "only a few commands matter here")]

use std::sync::Arc;
use std::time::Instant;

use atoll_model::id::{AgentId, CommandSeq, Epoch, JournalId, ReportSeq, RunId, TokenId};
use atoll_model::resources::Capacity;
use atoll_model::session::{
    AgentBody, AgentFrame, ControlBody, DispatchElements, FinishedElement, Hello, Inventory, Outcome, Report,
    SiteCommand, StartedElement,
};
use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use atoll_model::workflow::{Surroundings, Work, parse};
use control_plane_core::{Command, Config, ConnectionId, ControlPlane, Event, Fact, Request, RequestId};

struct Nothing;

impl Surroundings for Nothing {
    fn action(&self, reference: &str) -> Result<Work, String> {
        Err(format!("there is no action {reference}"))
    }
}

const SITES: u64 = 4;
const NOW: Timestamp = Timestamp(1_800_000_000_000_000);
/// Elements that an agent names in one report.
const BATCH: usize = 512;

struct Bench {
    core: ControlPlane,
    epochs: Vec<Epoch>,
    commands: Vec<CommandSeq>,
    reports: Vec<ReportSeq>,
    dispatched: Vec<Vec<(RunId, SiteCommand)>>,
    facts: u64,
    fact_bytes: u64,
    kept: Vec<Fact>,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            core: ControlPlane::recover(Config::default(), None, Vec::new(), NOW),
            epochs: vec![Epoch(0); SITES as usize],
            commands: vec![CommandSeq(0); SITES as usize],
            reports: vec![ReportSeq(0); SITES as usize],
            dispatched: vec![Vec::new(); SITES as usize],
            facts: 0,
            fact_bytes: 0,
            kept: Vec::new(),
        };
        for site in 0..SITES {
            bench.join(site);
        }
        bench
    }

    fn join(&mut self, site: u64) {
        let (token, agent) = (TokenId::from_bits(u128::from(site) + 1), AgentId::from_bits(u128::from(site) + 1));
        let requests = [
            Request::CreateToken {
                token,
                secret_hash: [0; 32],
                site: format!("site-{site}").parse().expect("a name"),
                labels: Default::default(),
                lifetime: std::time::Duration::from_secs(60),
            },
            Request::Enrol { token, secret_hash: [0; 32], identity_key: [site as u8; 32], agent },
        ];
        for body in requests {
            self.handle(Event::Request { request: RequestId(0), body });
        }
        let hello = Hello {
            agent,
            journal: JournalId::from_bits(u128::from(site) + 1),
            incarnation: 1,
            boot_nonce: site,
            protocol_min: 1,
            protocol_max: 1,
            agent_version: String::new(),
            capacity: Capacity {
                cpu_millis: 4_000,
                memory_bytes: 8 << 30,
                disk_free_bytes: 1 << 40,
                ..Capacity::default()
            },
            runtimes: vec!["command".to_owned()],
            last_command: CommandSeq(0),
            acknowledged_report: ReportSeq(0),
            first_report: ReportSeq(0),
            last_report: ReportSeq(0),
            clock: NOW,
            wall_clock: NOW,
        };
        self.frame(site, AgentBody::Hello(hello));
        self.frame(site, AgentBody::Inventory(Inventory::default()));
    }

    fn frame(&mut self, site: u64, body: AgentBody) {
        let place = site as usize;
        let frame = AgentFrame { epoch: self.epochs[place], acknowledged: self.commands[place], body };
        let agent = AgentId::from_bits(u128::from(site) + 1);
        self.handle(Event::FrameReceived { connection: ConnectionId(site), agent, frame });
    }

    fn handle(&mut self, event: Event) {
        let step = self.core.handle(event, NOW);
        self.facts += step.facts.len() as u64;
        self.kept.extend(step.facts);
        for command in step.commands {
            let Command::Send { connection, frame } = command else { continue };
            let site = connection.0 as usize;
            match frame.body {
                ControlBody::Welcome(_) => self.epochs[site] = frame.epoch,
                ControlBody::Commands { first, commands } => {
                    self.commands[site] = CommandSeq(first.0 + commands.len() as u64 - 1);
                    let dispatches = commands.into_iter().filter_map(|command| match &command {
                        SiteCommand::Dispatch(dispatch) => Some((dispatch.run, command)),
                        _ => None,
                    });
                    self.dispatched[site].extend(dispatches);
                }
                _ => {}
            }
        }
    }

    fn submit(&mut self, number: u128, source: &str) {
        let workflow = Arc::new(parse("bench", source, &Nothing).unwrap_or_else(|errors| panic!("{errors:?}")));
        let body = Request::Submit {
            run: RunId::from_bits(number),
            workflow,
            source: source.into(),
            inputs: Default::default(),
            submitted_by: "bench".to_owned(),
            traceparent: None,
            tags: Default::default(),
        };
        self.handle(Event::Request { request: RequestId(0), body });
    }

    /// Agents end everything that they have, in batches, until there is nothing more.
    fn drain(&mut self, outputs: &[Value]) -> u64 {
        let mut ended = 0;
        loop {
            let mut idle = true;
            for site in 0..SITES {
                for (run, command) in std::mem::take(&mut self.dispatched[site as usize]) {
                    let SiteCommand::Dispatch(dispatch) = command else { continue };
                    idle = false;
                    let elements: Vec<u32> = match dispatch.elements {
                        DispatchElements::Plain(elements) => elements.iter().collect(),
                        DispatchElements::Bound(bound) => bound.into_iter().map(|(element, _)| element).collect(),
                    };
                    for batch in elements.chunks(BATCH) {
                        ended += batch.len() as u64;
                        let started = |element| StartedElement { element, attempt: dispatch.attempt, at: NOW };
                        let finished = |element| FinishedElement {
                            element,
                            attempt: dispatch.attempt,
                            started_at: Some(NOW),
                            finished_at: NOW,
                            outcome: Outcome::Succeeded,
                            outputs: outputs.to_vec(),
                            usage: Default::default(),
                            logs: Default::default(),
                        };
                        let step = dispatch.step;
                        let reports = vec![
                            Report::Started { run, step, elements: batch.iter().copied().map(started).collect() },
                            Report::Finished { run, step, elements: batch.iter().copied().map(finished).collect() },
                        ];
                        let first = self.reports[site as usize].next();
                        self.reports[site as usize] = ReportSeq(first.0 + 1);
                        self.frame(site, AgentBody::Reports { first, reports });
                    }
                }
            }
            if idle {
                return ended;
            }
        }
    }
}

fn measure(name: &str, work: impl FnOnce(&mut Bench) -> u64) {
    let mut bench = Bench::new();
    let begin = Instant::now();
    let executions = work(&mut bench);
    let elapsed = begin.elapsed();
    let begin = Instant::now();
    for fact in &bench.kept {
        bench.fact_bytes += postcard::to_stdvec(fact).expect("facts can be encoded").len() as u64;
    }
    let encoded = begin.elapsed();
    let (facts, fact_bytes) = (bench.facts, bench.fact_bytes);
    let live = bench.core.snapshot();
    let begin = Instant::now();
    let recovered = ControlPlane::recover(Config::default(), None, std::mem::take(&mut bench.kept), NOW);
    let replayed = begin.elapsed();
    assert!(recovered.snapshot() == live);
    println!(
        "{name:<28} {executions:>8} executions  {:>7.3} µs each  {facts:>7} facts  {:>5} bytes each  encode {:>6.3} µs  \
         replay {:>6.3} µs",
        elapsed.as_secs_f64() * 1e6 / executions as f64,
        fact_bytes / executions,
        encoded.as_secs_f64() * 1e6 / executions as f64,
        replayed.as_secs_f64() * 1e6 / executions as f64,
    );
}

fn main() {
    for count in [100_000, 1_000_000] {
        measure(&format!("fan-out of {count}"), |bench| {
            let steps = format!("  a: {{ executor: null, foreach: \"${{{{ range({count}) }}}}\" }}\n");
            bench.submit(1, &format!("workflow: w\nsteps:\n{steps}"));
            bench.drain(&[])
        });
    }
    measure("fan-out with own inputs", |bench| {
        let source = "workflow: w\nsteps:\n  a: { run: x, foreach: \"${{ range(100000) }}\", with: { n: \"${{ item }}\" }, outputs: { n: integer } }\n";
        bench.submit(1, source);
        bench.drain(&[Value::Integer(1)])
    });
    measure("runs of one step", |bench| {
        let mut ended = 0;
        for run in 0..20_000u128 {
            bench.submit(run + 1, "workflow: w\nsteps:\n  a: { run: x }\n");
            if run % 100 == 99 {
                ended += bench.drain(&[]);
            }
        }
        ended
    });
    measure("chain", |bench| {
        let mut source = "workflow: w\nsteps:\n  s0: { run: x, outputs: { n: integer } }\n".to_owned();
        for step in 1..5_000 {
            let with = format!("with: {{ n: \"${{{{ steps.s{}.outputs.n }}}}\" }}", step - 1);
            source += &format!("  s{step}: {{ run: x, {with}, outputs: {{ n: integer }} }}\n");
        }
        bench.submit(1, &source);
        bench.drain(&[Value::Integer(1)])
    });
}
