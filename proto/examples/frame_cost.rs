//! Measures what the frames of a large fan-out cost: `cargo run --release -p atoll-proto --example frame_cost`.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, CommandSeq, Epoch, ExecutionId, ObjectId, ReportSeq, RunId, StepIndex};
use atoll_model::session::{
    AgentBody, AgentFrame, Binding, BindingSource, ControlBody, ControlFrame, Dispatch, DispatchElements,
    FinishedElement, Logs, Outcome, Report, SiteCommand, Usage,
};
use atoll_model::time::Timestamp;
use atoll_model::value::{FileName, FileRef, ObjectKind, ObjectRef, Value};
use atoll_proto::{Received, v1};
use prost::Message;

const ELEMENTS: u32 = 10_000;
const ROUNDS: u32 = 50;

fn main() -> Result<(), Box<dyn Error>> {
    println!("{:<44} {:>8} {:>8} {:>10}", "frame of 10,000 elements", "encode", "decode", "bytes");
    println!("{:<44} {:>8} {:>8} {:>10}", "", "ns/elem", "ns/elem", "per elem");
    let every_second = (0..ELEMENTS).map(|element| element * 2).collect::<ElementSet>();
    measure_control("dispatch, one range", dispatch(DispatchElements::Plain(ElementSet::from_range(0..ELEMENTS))))?;
    measure_control("dispatch, every second element", dispatch(DispatchElements::Plain(every_second)))?;
    measure_control(
        "dispatch, a text for each element",
        dispatch(bound(|_| BindingSource::Value(Value::string("word")))),
    )?;
    measure_control("dispatch, an output for each element", dispatch(bound(output)))?;
    measure_agent("finished, nothing but times", finished(|_| {}))?;
    measure_agent("finished, with usage and one log", finished(with_usage_and_log))?;
    measure_agent("finished, with usage, log and a file", finished(with_file))?;
    Ok(())
}

fn run() -> RunId {
    RunId::from_bits(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef)
}

fn dispatch(elements: DispatchElements) -> ControlFrame {
    let dispatch =
        Dispatch { run: run(), step: StepIndex(1), attempt: Attempt::FIRST, elements, fragment: false, start_by: None };
    let commands = vec![SiteCommand::Dispatch(dispatch)];
    let body = ControlBody::Commands { first: CommandSeq(1), commands };
    ControlFrame { epoch: Epoch(1), acknowledged: ReportSeq(0), lease: None, body }
}

fn bound(source: fn(u32) -> BindingSource) -> DispatchElements {
    let binding = |element| Binding { name: "input".to_owned(), source: source(element) };
    DispatchElements::Bound((0..ELEMENTS).map(|element| (element, vec![binding(element)])).collect())
}

fn output(element: u32) -> BindingSource {
    let execution = ExecutionId { run: run(), step: StepIndex(0), element };
    BindingSource::Output { execution, attempt: Attempt::FIRST, output: "table".to_owned() }
}

fn finished(fill: fn(&mut FinishedElement)) -> AgentFrame {
    let elements = (0..ELEMENTS).map(|element| {
        let started = 1_700_000_000_000_000 + i64::from(element) * 17;
        let mut finished = FinishedElement {
            element,
            attempt: Attempt::FIRST,
            started_at: Some(Timestamp::from_micros(started)),
            finished_at: Timestamp::from_micros(started + 900),
            outcome: Outcome::Succeeded,
            outputs: Vec::new(),
            usage: Usage::default(),
            logs: Logs::default(),
        };
        fill(&mut finished);
        finished
    });
    let reports = vec![Report::Finished { run: run(), step: StepIndex(1), elements: elements.collect() }];
    let body = AgentBody::Reports { first: ReportSeq(1), reports };
    AgentFrame { epoch: Epoch(1), acknowledged: CommandSeq(0), body }
}

fn with_usage_and_log(element: &mut FinishedElement) {
    element.usage = Usage { cpu_micros: 812, max_rss_bytes: 3_400_000, bytes_out: 100, ..Usage::default() };
    let id = ObjectId::from_digest([element.element as u8; 32]);
    element.logs.stdout = Some(ObjectRef { id, kind: ObjectKind::File, bytes: 40 });
}

fn with_file(element: &mut FinishedElement) {
    with_usage_and_log(element);
    if let Ok(name) = FileName::new(b"table.csv") {
        let object = ObjectId::from_digest([!element.element as u8; 32]);
        element.outputs = vec![Value::File(FileRef { object, bytes: 4_000, name, executable: false })];
    }
}

fn measure_control(name: &str, frame: ControlFrame) -> Result<(), Box<dyn Error>> {
    measure(
        name,
        frame,
        |frame| v1::ControlFrame::from(frame).encode_to_vec(),
        |bytes| Ok(Received::<ControlFrame>::try_from(v1::ControlFrame::decode(bytes)?)?.frame),
    )
}

fn measure_agent(name: &str, frame: AgentFrame) -> Result<(), Box<dyn Error>> {
    measure(
        name,
        frame,
        |frame| v1::AgentFrame::from(frame).encode_to_vec(),
        |bytes| Ok(Received::<AgentFrame>::try_from(v1::AgentFrame::decode(bytes)?)?.frame),
    )
}

fn measure<F: Clone + PartialEq>(
    name: &str,
    frame: F,
    encode: impl Fn(F) -> Vec<u8>,
    decode: impl Fn(bytes::Bytes) -> Result<F, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let copies = vec![frame.clone(); ROUNDS as usize];
    let start = Instant::now();
    let mut encoded = Vec::new();
    for copy in copies {
        encoded = black_box(encode(copy));
    }
    let encoding = start.elapsed();
    let encoded = bytes::Bytes::from(encoded);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        black_box(decode(encoded.clone())?);
    }
    let decoding = start.elapsed();
    if decode(encoded.clone())? != frame {
        return Err("the frame did not survive".into());
    }
    let each = |nanos: u128| nanos as f64 / f64::from(ROUNDS) / f64::from(ELEMENTS);
    let bytes = encoded.len() as f64 / f64::from(ELEMENTS);
    println!("{name:<44} {:>8.1} {:>8.1} {bytes:>10.2}", each(encoding.as_nanos()), each(decoding.as_nanos()));
    Ok(())
}
