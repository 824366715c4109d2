//! Frames of every kind, at random.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::action::{BundleSignature, PublicKey};
use atoll_model::diagnostic::Place;
use atoll_model::elements::ElementSet;
use atoll_model::expression::{Expression, Form};
use atoll_model::id::{
    AgentId, Attempt, CommandSeq, Epoch, ExecutionId, JournalId, ObjectId, ReportSeq, RunId, StepIndex, TransferId,
};
use atoll_model::resources::{Capacity, Confinement, Gpus, IsolationProfile, Launch, Resources, Spread};
use atoll_model::session::{
    AgentBody, AgentFrame, Binding, BindingSource, ControlBody, ControlFrame, Credits, Delegation, Deployed,
    DeployedState, DirectShare, Dispatch, DispatchElements, FailureReason, FaultLocation, FinishedElement, GivenInput,
    Goodbye, Heartbeat, Hello, Inventory, InventoryItem, LeaseGrant, LocalState, Logs, Moving, Need, NeedState,
    NotStartedReason, Origin, Other, Outcome, PushFailure, Report, Requester, SiteCommand, StartedElement,
    StepTemplate, TemplateOutput, TemplateWork, Usage, Verdict, WaitingJob, Welcome,
};
use atoll_model::time::Timestamp;
use atoll_model::value::{DirectoryRef, FileName, FileRef, ListedFile, ObjectKind, ObjectRef, Type, Value};
use atoll_model::workflow::{OnDisconnect, Retry, StartMode};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-z]{1,6}", "\\PC{0,12}"]
}

fn run() -> impl Strategy<Value = RunId> {
    prop_oneof![Just(RunId::from_bits(7)), any::<u128>().prop_map(RunId::from_bits)]
}

fn step() -> impl Strategy<Value = StepIndex> {
    prop_oneof![(0u16..3).prop_map(StepIndex), any::<u16>().prop_map(StepIndex)]
}

fn attempt() -> impl Strategy<Value = Attempt> {
    prop_oneof![Just(Attempt::FIRST), any::<u32>().prop_map(Attempt)]
}

fn element() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..20, any::<u32>(), Just(u32::MAX)]
}

fn execution() -> impl Strategy<Value = ExecutionId> {
    (run(), step(), element()).prop_map(|(run, step, element)| ExecutionId { run, step, element })
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    let now = 1_700_000_000_000_000i64;
    prop_oneof![now..now + 1_000_000, any::<i64>(), Just(i64::MIN), Just(i64::MAX)].prop_map(Timestamp::from_micros)
}

fn duration() -> impl Strategy<Value = Duration> {
    (any::<u64>(), 0u32..1_000_000_000).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn object_id() -> impl Strategy<Value = ObjectId> {
    any::<[u8; 32]>().prop_map(ObjectId::from_digest)
}

fn object_kind() -> impl Strategy<Value = ObjectKind> {
    select(&[ObjectKind::File, ObjectKind::Tree][..])
}

fn object() -> impl Strategy<Value = ObjectRef> {
    (object_id(), object_kind(), any::<u64>()).prop_map(|(id, kind, bytes)| ObjectRef { id, kind, bytes })
}

fn element_set() -> impl Strategy<Value = ElementSet> {
    vec((0u32..u32::MAX - 100, 0u32..100), 0..8).prop_map(|ranges| {
        let mut set = ElementSet::new();
        ranges.into_iter().for_each(|(start, length)| set.insert_range(start..start + length));
        set
    })
}

fn file_name() -> impl Strategy<Value = FileName> {
    vec(any::<u8>(), 1..12).prop_filter_map("not a file name", |bytes| FileName::new(&bytes).ok())
}

fn listing() -> impl Strategy<Value = Arc<Vec<ListedFile>>> {
    let file = (vec(any::<u8>(), 0..9), object_id(), any::<u64>(), any::<bool>());
    let file = file.prop_map(|(path, object, bytes, executable)| ListedFile { path, object, bytes, executable });
    vec(file, 0..4).prop_map(Arc::new)
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Boolean),
        any::<i64>().prop_map(Value::Integer),
        (-1e300f64..1e300).prop_map(Value::Number),
        Just(Value::Number(f64::NEG_INFINITY)),
        text().prop_map(Value::string),
        (object_id(), any::<u64>(), file_name(), any::<bool>())
            .prop_map(|(object, bytes, name, executable)| { Value::File(FileRef { object, bytes, name, executable }) }),
        (object_id(), any::<u64>(), any::<u64>(), file_name(), option::of(listing())).prop_map(
            |(object, bytes, files, name, listing)| Value::Directory(DirectoryRef {
                object,
                bytes,
                files,
                name,
                listing
            })
        ),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::list),
            btree_map(text(), inner, 0..4).prop_map(|fields| Value::Object(Arc::new(fields.into_iter().collect()))),
        ]
    })
}

fn declared_type() -> impl Strategy<Value = Type> {
    let base = prop_oneof![
        Just(Type::String),
        Just(Type::Integer),
        Just(Type::Number),
        Just(Type::Boolean),
        vec(text(), 0..4).prop_map(Type::Enum),
        Just(Type::List(None)),
        Just(Type::Object),
        Just(Type::File),
        Just(Type::Directory),
        Just(Type::Any),
    ];
    (base, 0usize..4).prop_map(|(base, lists)| (0..lists).fold(base, |inner, _| Type::List(Some(Box::new(inner)))))
}

fn binding() -> impl Strategy<Value = Binding> {
    let source = prop_oneof![
        value().prop_map(BindingSource::Value),
        (execution(), attempt(), text()).prop_map(|(execution, attempt, output)| BindingSource::Output {
            execution,
            attempt,
            output
        }),
    ];
    (text(), source).prop_map(|(name, source)| Binding { name, source })
}

fn signature() -> impl Strategy<Value = BundleSignature> {
    (any::<[u8; 32]>(), any::<[[u8; 32]; 2]>()).prop_map(|(key, halves)| {
        BundleSignature::from_bytes(PublicKey::from_bytes(key), halves.as_flattened()).expect("64 bytes")
    })
}

fn template() -> impl Strategy<Value = StepTemplate> {
    let work = prop_oneof![
        text().prop_map(TemplateWork::Script),
        (vec(text(), 0..4), option::of(object()))
            .prop_map(|(command, bundle)| TemplateWork::Command { command, bundle }),
        (vec(text(), 0..4), object(), vec(signature(), 1..3))
            .prop_map(|(command, bundle, signatures)| { TemplateWork::SignedCommand { command, bundle, signatures } }),
        (object(), vec(signature(), 0..3)).prop_map(|(bundle, signatures)| TemplateWork::Python { bundle, signatures }),
        (object(), vec(signature(), 0..3))
            .prop_map(|(bundle, signatures)| TemplateWork::Container { bundle, signatures }),
        (object(), vec(signature(), 0..3)).prop_map(|(bundle, signatures)| TemplateWork::Wasm { bundle, signatures }),
        (text(), any::<bool>())
            .prop_map(|(source, directory)| TemplateWork::Import { source: source.into(), directory }),
        Just(TemplateWork::Null),
        (text(), any::<bool>())
            .prop_map(|(target, overwrite)| TemplateWork::Export { target: target.into(), overwrite }),
    ];
    let isolation = option::of(select(&IsolationProfile::ALL[..]));
    let confinement = (isolation, any::<bool>(), option::of(any::<u64>()))
        .prop_map(|(isolation, network, scratch_bytes)| Confinement { isolation, network, scratch_bytes });
    let gpus = option::of((1u32.., option::of("[a-z0-9-]{1,9}")).prop_map(|(count, kind)| Gpus { count, kind }));
    let spread = (1u32.., 1u32.., option::of(select(&Launch::ALL[..])))
        .prop_map(|(nodes, tasks_per_node, launch)| Spread { nodes, tasks_per_node, launch });
    let others = (gpus, btree_map(text(), any::<u32>(), 0..3), option::of(spread), vec(text(), 0..3));
    let resources = (any::<u32>(), option::of(any::<u64>()), option::of(duration()), confinement, others).prop_map(
        |(cpu_millis, memory_bytes, time, confinement, (gpus, named, spread, sbatch))| Resources {
            cpu_millis,
            memory_bytes,
            time,
            confinement,
            gpus,
            named,
            spread,
            sbatch,
        },
    );
    let output = (text(), declared_type(), any::<bool>(), any::<bool>())
        .prop_map(|(name, r#type, optional, listed)| TemplateOutput { name, r#type, optional, listed });
    let modes = (
        select(&[StartMode::AtLeastOnce, StartMode::AtMostOnce][..]),
        select(&[OnDisconnect::Finish, OnDisconnect::Stop][..]),
        option::of(text()),
        any::<i16>(),
        option::of((text(), text()).prop_map(|(project, person)| Requester { project, person })),
    );
    let names = (run(), step(), text(), text());
    (names, work, resources, vec(output, 0..4), vec(binding(), 0..4), vec((text(), text()), 0..4), modes).prop_map(
        |((run, step, step_name, workflow), work, resources, outputs, bindings, environment, modes)| StepTemplate {
            run,
            step,
            step_name,
            workflow,
            work,
            resources,
            outputs,
            bindings,
            environment,
            start: modes.0,
            on_disconnect: modes.1,
            origin: Origin { traceparent: modes.2, requester: modes.4 },
            priority: modes.3,
        },
    )
}

fn dispatch() -> impl Strategy<Value = Dispatch> {
    let elements = prop_oneof![
        element_set().prop_map(DispatchElements::Plain),
        btree_map(element(), vec(binding(), 0..3), 0..6)
            .prop_map(|bound| DispatchElements::Bound(bound.into_iter().collect())),
    ];
    (run(), step(), attempt(), elements, any::<bool>(), option::of(duration())).prop_map(
        |(run, step, attempt, elements, fragment, start_by)| Dispatch {
            run,
            step,
            attempt,
            elements,
            fragment,
            start_by,
        },
    )
}

fn transfer() -> impl Strategy<Value = TransferId> {
    any::<u128>().prop_map(TransferId::from_bits)
}

fn expression() -> impl Strategy<Value = Expression> {
    let form = prop_oneof![
        value().prop_map(Form::Literal),
        text().prop_map(Form::Input),
        (step(), text()).prop_map(|(step, output)| Form::Output { step, output }),
        Just(Form::Item),
        Just(Form::Index),
    ];
    (form, any::<bool>(), vec(text(), 0..3), vec(step(), 0..3)).prop_map(
        |(form, reads_item, reads_inputs, reads_steps)| Expression {
            form,
            place: Place::default(),
            r#type: Type::Any,
            reads_steps,
            reads_inputs,
            reads_item,
        },
    )
}

fn delegation() -> impl Strategy<Value = Delegation> {
    let state = prop_oneof![
        vec((text(), value()), 0..3).prop_map(|outputs| NeedState::Ended { outputs }),
        any::<u32>().prop_map(|count| NeedState::Dispatched { count }),
        Just(NeedState::Delegated),
    ];
    let need = (step(), any::<bool>(), state).prop_map(|(step, fans_out, state)| Need { step, fans_out, state });
    let input = prop_oneof![
        value().prop_map(GivenInput::Value),
        (step(), text()).prop_map(|(step, output)| GivenInput::Output { step, output }),
    ];
    let retry = (1_u32..9, duration(), any::<bool>()).prop_map(|(attempts, backoff, other_site)| Retry {
        attempts,
        backoff,
        other_site,
        memory: None,
    });
    let conditions = (option::of(expression()), option::of(expression()));
    let bindings = (vec((text(), expression()), 0..3), vec((text(), expression()), 0..3));
    (template(), attempt(), retry, vec(need, 0..3), vec((text(), input), 0..3), conditions, bindings).prop_map(
        |(template, attempt, retry, needs, inputs, (when, foreach), (shared, own))| Delegation {
            template,
            attempt,
            retry,
            needs,
            inputs,
            when,
            foreach,
            shared,
            own,
        },
    )
}

fn command() -> impl Strategy<Value = SiteCommand> {
    prop_oneof![
        template().prop_map(|template| SiteCommand::Prepare(Box::new(template))),
        dispatch().prop_map(SiteCommand::Dispatch),
        (run(), step(), element_set(), text()).prop_map(|(run, step, elements, reason)| SiteCommand::Cancel {
            run,
            step,
            elements,
            reason
        }),
        (transfer(), object()).prop_map(|(transfer, object)| SiteCommand::Push { transfer, object }),
        transfer().prop_map(|transfer| SiteCommand::CancelPush { transfer }),
        run().prop_map(|run| SiteCommand::Forget { run }),
        (any::<u64>(), vec(object(), 0..8), any::<u32>(), option::of(text()))
            .prop_map(|(proposal, objects, refused, reason)| SiteCommand::Evict { proposal, objects, refused, reason }),
        vec(object(), 0..8).prop_map(|objects| SiteCommand::ProposeEviction { objects }),
        vec(object(), 0..8).prop_map(|objects| SiteCommand::Verify { objects }),
        text().prop_map(|reason| SiteCommand::Unknown { reason }),
        delegation().prop_map(|delegation| SiteCommand::Delegate(Box::new(delegation))),
        (run(), step(), any::<bool>()).prop_map(|(run, step, stop)| SiteCommand::Withdraw { run, step, stop }),
        (object(), execution()).prop_map(|(object, execution)| SiteCommand::Replicate { object, execution }),
        template().prop_map(|template| SiteCommand::MakeReady(Box::new(template))),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    use FailureReason as F;
    use NotStartedReason as N;
    let failure = select(
        &[
            F::ExitCode,
            F::Signal,
            F::TimedOut,
            F::OutOfMemory,
            F::MissingOutput,
            F::InvalidOutput,
            F::NoSpace,
            F::NotExecutable,
            F::ImportFailed,
            F::Agent,
            F::ExportFailed,
            F::ActionFailed,
        ][..],
    );
    let not_started = select(
        &[
            N::Expired,
            N::Cancelled,
            N::InputUnavailable,
            N::PredecessorFailed,
            N::Closed,
            N::Impossible,
            N::AttemptKnown,
            N::Refused,
        ][..],
    );
    prop_oneof![
        4 => Just(Outcome::Succeeded),
        1 => (failure, option::of(any::<i32>()), text())
            .prop_map(|(reason, exit_code, message)| Outcome::Failed { reason, exit_code, message }),
        1 => Just(Outcome::Cancelled),
        1 => text().prop_map(|message| Outcome::Interrupted { message }),
        1 => (not_started, text()).prop_map(|(reason, message)| Outcome::NotStarted { reason, message }),
    ]
}

fn usage() -> impl Strategy<Value = Usage> {
    let some = any::<([u64; 4], [u64; 2])>().prop_map(|(used, [disk_read_bytes, disk_written_bytes])| {
        let [cpu_micros, max_rss_bytes, bytes_in, bytes_out] = used;
        Usage { cpu_micros, max_rss_bytes, bytes_in, bytes_out, disk_read_bytes, disk_written_bytes }
    });
    prop_oneof![Just(Usage::default()), some]
}

fn finished() -> impl Strategy<Value = FinishedElement> {
    let numbers = (element(), attempt(), option::of(timestamp()), timestamp());
    let logs = (option::of(object()), option::of(object())).prop_map(|(stdout, stderr)| Logs { stdout, stderr });
    (numbers, outcome(), vec(value(), 0..3), usage(), logs).prop_map(
        |((element, attempt, started_at, finished_at), outcome, outputs, usage, logs)| FinishedElement {
            element,
            attempt,
            started_at,
            finished_at,
            outcome,
            outputs,
            usage,
            logs,
        },
    )
}

fn report() -> impl Strategy<Value = Report> {
    let started =
        (element(), attempt(), timestamp()).prop_map(|(element, attempt, at)| StartedElement { element, attempt, at });
    let failure =
        select(&[PushFailure::Unavailable, PushFailure::Refused, PushFailure::Cancelled, PushFailure::Forbidden][..]);
    let location = select(&[FaultLocation::SiteStore, FaultLocation::Bucket][..]);
    prop_oneof![
        (run(), step(), vec(started, 0..8)).prop_map(|(run, step, elements)| Report::Started { run, step, elements }),
        (run(), step(), vec(finished(), 0..8)).prop_map(|(run, step, elements)| Report::Finished {
            run,
            step,
            elements
        }),
        (object(), any::<u64>(), execution(), timestamp()).prop_map(|(object, wire_bytes, execution, at)| {
            let direct = (wire_bytes % 2 == 1)
                .then(|| DirectShare { holder: AgentId::from_bits(wire_bytes.into()), wire_bytes: wire_bytes / 2 });
            Report::Fetched { object, wire_bytes, direct, execution, at }
        }),
        (transfer(), object(), any::<u64>(), timestamp())
            .prop_map(|(transfer, object, wire_bytes, at)| { Report::Pushed { transfer, object, wire_bytes, at } }),
        (transfer(), object(), failure, text()).prop_map(|(transfer, object, reason, message)| Report::PushFailed {
            transfer,
            object,
            reason,
            message
        }),
        (object_id(), object_kind(), location, text()).prop_map(|(object, kind, location, message)| Report::Fault {
            object,
            kind,
            location,
            message
        }),
        (any::<u64>(), vec(object(), 0..8)).prop_map(|(proposal, objects)| Report::Evictable { proposal, objects }),
        (vec(object(), 0..4), vec(object(), 0..4)).prop_map(|(gone, kept)| Report::Evicted { gone, kept }),
        any::<(u64, u64, u64)>().prop_map(|(files, bytes, damaged)| Report::Verified { files, bytes, damaged }),
        text().prop_map(|reason| Report::Unknown { reason }),
        (run(), step(), vec(finished(), 0..8)).prop_map(|(run, step, elements)| Report::Retried {
            run,
            step,
            elements
        }),
        (run(), step(), vec((attempt(), element_set()), 0..3), text())
            .prop_map(|(run, step, kept, reason)| { Report::DelegationEnded { run, step, kept, reason } }),
        (object(), option::of(text())).prop_map(|(object, failure)| Report::ReplicaEnded { object, failure }),
    ]
}

fn capacity() -> impl Strategy<Value = Capacity> {
    let amounts = || btree_map(text(), any::<u32>(), 0..3);
    (any::<(u32, u64, u64)>(), amounts(), amounts()).prop_map(
        |((cpu_millis, memory_bytes, disk_free_bytes), gpus, named)| Capacity {
            cpu_millis,
            memory_bytes,
            disk_free_bytes,
            gpus,
            named,
        },
    )
}

fn hello() -> impl Strategy<Value = Hello> {
    (
        any::<(u128, u128, u64, u64, u32, u32)>(),
        text(),
        capacity(),
        vec(text(), 0..3),
        any::<(u64, u64, u64)>(),
        (timestamp(), timestamp()),
    )
        .prop_map(|(numbers, agent_version, capacity, runtimes, positions, (clock, wall_clock))| Hello {
            agent: AgentId::from_bits(numbers.0),
            journal: JournalId::from_bits(numbers.1),
            incarnation: numbers.2,
            boot_nonce: numbers.3,
            protocol_min: numbers.4,
            protocol_max: numbers.5,
            agent_version,
            capacity,
            runtimes,
            last_command: CommandSeq(positions.0),
            acknowledged_report: ReportSeq(positions.1),
            last_report: ReportSeq(positions.2),
            first_report: ReportSeq(positions.1),
            clock,
            wall_clock,
        })
}

fn heartbeat() -> impl Strategy<Value = Heartbeat> {
    let moving = vec(moving(), 0..3);
    let numbers = any::<(u32, u32, u64, u64, u32, Option<u32>)>();
    let waiting = vec((execution(), any::<u32>(), text()), 0..3);
    let lists = (moving, waiting, vec(deployed(), 0..3));
    ((timestamp(), timestamp()), capacity(), numbers, option::of(text()), lists).prop_map(
        |((sent_at, wall_clock), capacity, numbers, closed, (moving, waiting, deployed))| Heartbeat {
            sent_at,
            wall_clock,
            capacity,
            running: numbers.0,
            queued: numbers.1,
            store_objects: numbers.2,
            store_bytes: numbers.3,
            load_millis: numbers.4,
            closed,
            moving,
            batch_wait: numbers.5.map(|wait| Duration::from_millis(u64::from(wait))),
            waiting: waiting
                .into_iter()
                .map(|(execution, attempt, why)| WaitingJob { execution, attempt: Attempt(attempt), why })
                .collect(),
            deployed,
        },
    )
}

fn deployed() -> impl Strategy<Value = Deployed> {
    let state = prop_oneof![
        Just(DeployedState::Deploying),
        Just(DeployedState::Ready),
        text().prop_map(DeployedState::Failed),
        Just(DeployedState::Draining),
    ];
    (object(), state, timestamp()).prop_map(|(object, state, since)| Deployed { bundle: object.id, state, since })
}

fn moving() -> impl Strategy<Value = Moving> {
    let other = prop_oneof![
        Just(Other::FromBucket),
        Just(Other::ToBucket),
        any::<u128>().prop_map(|agent| Other::FromAgent(AgentId::from_bits(agent))),
    ];
    (any::<[u8; 32]>(), other, any::<(u64, u64, u64)>()).prop_map(|(object, other, numbers)| Moving {
        object: ObjectId::from_digest(object),
        other,
        bytes: numbers.0,
        moved_bytes: numbers.1,
        bytes_per_second: numbers.2,
    })
}

pub(crate) fn agent_frame() -> impl Strategy<Value = AgentFrame> {
    let state = select(&[LocalState::Accepted, LocalState::Running, LocalState::Finished][..]);
    let item = (execution(), attempt(), state).prop_map(|(execution, attempt, state)| InventoryItem {
        execution,
        attempt,
        state,
    });
    let body = prop_oneof![
        hello().prop_map(AgentBody::Hello),
        (any::<u64>(), vec(item, 0..20))
            .prop_map(|(last, items)| AgentBody::Inventory(Inventory { items, last_report: ReportSeq(last) })),
        (any::<u64>(), vec(report(), 0..4))
            .prop_map(|(first, reports)| AgentBody::Reports { first: ReportSeq(first), reports }),
        heartbeat().prop_map(AgentBody::Heartbeat),
        Just(AgentBody::Acknowledge),
    ];
    (any::<(u64, u64)>(), body).prop_map(|((epoch, acknowledged), body)| AgentFrame {
        epoch: Epoch(epoch),
        acknowledged: CommandSeq(acknowledged),
        body,
    })
}

pub(crate) fn control_frame() -> impl Strategy<Value = ControlFrame> {
    let welcome = any::<(u32, u64, bool, u32)>().prop_map(|(protocol, resume_after, new_journal, reports)| Welcome {
        protocol,
        resume_after: ReportSeq(resume_after),
        new_journal,
        credits: Credits { reports },
    });
    let goodbye = prop_oneof![
        Just(Goodbye::Superseded),
        text().prop_map(|reason| Goodbye::Revoked { reason }),
        text().prop_map(|reason| Goodbye::Refused { reason }),
        Just(Goodbye::ShuttingDown),
    ];
    let verdict = select(&[Verdict::Keep, Verdict::Cancel, Verdict::Forget][..]);
    let body = prop_oneof![
        welcome.prop_map(ControlBody::Welcome),
        vec(verdict, 0..20).prop_map(ControlBody::Verdicts),
        (any::<u64>(), vec(command(), 0..4))
            .prop_map(|(first, commands)| ControlBody::Commands { first: CommandSeq(first), commands }),
        Just(ControlBody::Ready),
        Just(ControlBody::Acknowledge),
        goodbye.prop_map(ControlBody::Goodbye),
    ];
    let lease = (timestamp(), duration(), duration(), duration())
        .prop_map(|(answers, session, work, heartbeat)| LeaseGrant { answers, session, work, heartbeat });
    (any::<(u64, u64)>(), option::of(lease), body).prop_map(|((epoch, acknowledged), lease, body)| ControlFrame {
        epoch: Epoch(epoch),
        acknowledged: ReportSeq(acknowledged),
        lease,
        body,
    })
}
