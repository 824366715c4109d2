//! What sources emit, on its way to the control plane: for each attempt one call after the other, in order, until it is
//! answered. Nothing of it is kept here: what is not answered when the agent ends, the shim tells the next one.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use atoll_model::limits::EMITTED_AT_ONCE_MAX;
use atoll_proto::v1::{EmitRequest, EmitResponse, EmittedRecord};
use storage_sync_engine::transfer::CredentialError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::executor::local::{Executor, Order};
use crate::link::LinkCredentials;
use crate::shim::protocol::{Key, Record, Taken};

/// Before a call is made again that was not answered; doubled each time up to the other.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// From the executor.
#[derive(Debug)]
pub(crate) enum Emitted {
    /// Those of an attempt that were not told before on this connection to its shim.
    Records { key: Key, records: Vec<Record> },
    /// The attempt has ended.
    Over(Key),
}

/// Hands on what comes, for as long as the agent runs.
pub(crate) async fn hand_on(
    mut emitted: UnboundedReceiver<Emitted>,
    link: LinkCredentials,
    executor: Executor,
    tasks: TaskTracker,
    stopping: CancellationToken,
) {
    let mut lines: HashMap<Key, (UnboundedSender<Vec<Record>>, CancellationToken)> = HashMap::new();
    loop {
        let next = tokio::select! {
            () = stopping.cancelled() => return,
            next = emitted.recv() => next,
        };
        match next {
            None => return,
            Some(Emitted::Over(key)) => {
                if let Some((_, over)) = lines.remove(&key) {
                    over.cancel();
                }
            }
            Some(Emitted::Records { key, records }) => {
                let (line, _) = lines.entry(key).or_insert_with(|| {
                    let (sender, records) = unbounded_channel();
                    let over = stopping.child_token();
                    let line = Line { key, waiting: VecDeque::new(), asks: false, pause: PAUSE };
                    tasks.spawn(line.run(records, link.clone(), executor.clone(), over.clone()));
                    (sender, over)
                });
                // It ends with the agent, or when it is taken out above.
                let _ = line.send(records);
            }
        }
    }
}

/// What one attempt has emitted.
struct Line {
    key: Key,
    waiting: VecDeque<Record>,
    /// It was asked how far the source has come.
    asks: bool,
    pause: Duration,
}

impl Line {
    async fn run(
        mut self,
        mut records: UnboundedReceiver<Vec<Record>>,
        link: LinkCredentials,
        executor: Executor,
        over: CancellationToken,
    ) {
        let handing_on = async {
            while let Some(new) = records.recv().await {
                self.take(new);
                while self.asks || !self.waiting.is_empty() {
                    while let Ok(new) = records.try_recv() {
                        self.take(new);
                    }
                    match link.emit(self.request()).await {
                        Ok(answer) => {
                            let taken = self.answered(answer);
                            executor.order(Order::Taken(self.key, taken));
                            executor.ring();
                        }
                        Err(error) => self.wait(&error).await,
                    }
                }
            }
        };
        tokio::select! {
            () = over.cancelled() => {}
            () = handing_on => {}
        }
    }

    /// What a shim tells on a new connection begins with what it has told on the one before.
    fn take(&mut self, new: Vec<Record>) {
        self.asks |= new.is_empty();
        let last = self.waiting.back().map_or(0, |record| record.number);
        self.waiting.extend(new.into_iter().filter(|record| record.number > last));
    }

    fn request(&self) -> EmitRequest {
        let records = self.waiting.iter().take(EMITTED_AT_ONCE_MAX);
        let record = |record: &Record| EmittedRecord {
            number: record.number,
            record: record.record.clone().into_bytes().into(),
        };
        EmitRequest {
            execution: Some(self.key.execution.into()),
            attempt: self.key.attempt.0,
            records: records.map(record).collect(),
        }
    }

    fn answered(&mut self, answer: EmitResponse) -> Taken {
        let EmitResponse { through, offset, refused } = answer;
        (self.asks, self.pause) = (false, PAUSE);
        while self.waiting.front().is_some_and(|record| record.number <= through) {
            self.waiting.pop_front();
        }
        if refused.is_some() {
            self.waiting.pop_front();
        }
        Taken { through, offset, refused }
    }

    /// The link is down, or the control plane takes nothing now; or the attempt is not the one that counts, and will be ended.
    async fn wait(&mut self, error: &CredentialError) {
        tracing::debug!(execution = %self.key.execution, %error, "records of a source wait");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};

    use super::*;

    fn line() -> Line {
        let execution = ExecutionId { run: RunId::from_bits(7), step: StepIndex(0), element: 0 };
        Line { key: Key { execution, attempt: Attempt(2) }, waiting: VecDeque::new(), asks: false, pause: PAUSE_MAX }
    }

    fn records(numbers: &[u64]) -> Vec<Record> {
        numbers.iter().map(|number| Record { number: *number, record: "{}".to_owned() }).collect()
    }

    fn asked(line: &Line) -> Vec<u64> {
        line.request().records.iter().map(|record| record.number).collect()
    }

    #[test]
    fn what_a_shim_tells_again_goes_once_and_what_is_answered_no_more() {
        let mut line = line();
        line.take(records(&[1, 2, 3]));
        line.take(records(&[1, 2, 3, 4]));
        assert_eq!(asked(&line), [1, 2, 3, 4]);
        let taken = line.answered(EmitResponse { through: 2, offset: None, refused: None });
        assert_eq!((taken.through, line.pause), (2, PAUSE));
        assert_eq!(asked(&line), [3, 4]);
        line.answered(EmitResponse { through: 2, offset: None, refused: Some("no".to_owned()) });
        assert_eq!(asked(&line), [4], "what was refused is not said again");
    }

    #[test]
    fn a_question_without_records_is_asked_until_it_is_answered() {
        let mut line = line();
        line.take(Vec::new());
        assert!(line.asks && asked(&line).is_empty());
        line.answered(EmitResponse { through: 0, offset: Some("3".to_owned()), refused: None });
        assert!(!line.asks);
    }
}
