//! What a source asks for while it is called: that its records start runs, and how far it has come.

use std::collections::VecDeque;

use atoll_model::limits::EMITTED_AT_ONCE_MAX;
use serde_json::{Value as Json, json};

use super::protocol::{Record, Taken};

const REFUSED: i64 = -32_006;

/// One thing that a source asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// A record, as JSON.
    Emit(String),
    /// How far it has come.
    Offset,
}

impl Asked {
    /// # Errors
    /// When the protocol has no such request of a worker; the message says so.
    pub(super) fn new(method: &str, params: Json) -> Result<Self, String> {
        match method {
            "emit" => Ok(Self::Emit(params.to_string())),
            "offset" => Ok(Self::Offset),
            other => Err(format!("it asks for {other:?}, of which nothing is known")),
        }
    }
}

/// What was asked for during one call and is not answered, in order.
#[derive(Debug, Default)]
pub(super) struct Emitting {
    waiting: VecDeque<Waiting>,
    /// Of the last record.
    last: u64,
    /// Those at the front that somebody was told of.
    told: usize,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    /// The number of the record; nothing for the other question.
    record: Option<Record>,
}

impl Emitting {
    /// # Errors
    /// When more waits for an answer than may.
    pub(super) fn ask(&mut self, id: u64, asked: Asked) -> Result<(), String> {
        if self.waiting.len() >= EMITTED_AT_ONCE_MAX {
            return Err(format!("it emits more than {EMITTED_AT_ONCE_MAX} records without waiting for an answer"));
        }
        let record = match asked {
            Asked::Emit(record) => {
                self.last += 1;
                Some(Record { number: self.last, record })
            }
            Asked::Offset => None,
        };
        self.waiting.push_back(Waiting { id, record });
        Ok(())
    }

    /// What is to be told; nothing if all was.
    pub(super) fn take(&mut self) -> Option<Vec<Record>> {
        let from = std::mem::replace(&mut self.told, self.waiting.len());
        let new = self.waiting.range(from..).filter_map(|waiting| waiting.record.clone()).collect();
        (from < self.waiting.len()).then_some(new)
    }

    pub(super) fn again(&mut self) {
        self.told = 0;
    }

    /// The answers that follow. How far the source has come is answered only as long as nothing before it waits.
    pub(super) fn answers(&mut self, taken: &Taken) -> Vec<String> {
        let (mut answers, mut refused) = (Vec::new(), taken.refused.as_ref());
        while let Some(Waiting { id, record }) = self.waiting.front() {
            let answer = match record {
                None => {
                    let offset = taken.offset.as_deref().and_then(|offset| serde_json::from_str(offset).ok());
                    json!({ "jsonrpc": "2.0", "id": id, "result": { "offset": offset.unwrap_or(Json::Null) } })
                }
                Some(record) if record.number <= taken.through => json!({ "jsonrpc": "2.0", "id": id, "result": {} }),
                Some(_) => {
                    let Some(reason) = refused.take() else { break };
                    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": REFUSED, "message": reason } })
                }
            };
            answers.push(answer.to_string());
            self.waiting.pop_front();
            self.told = self.told.saturating_sub(1);
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emit(emitting: &mut Emitting, id: u64) {
        emitting.ask(id, Asked::Emit(format!("{{\"values\":{id}}}"))).expect("there is room");
    }

    fn taken(through: u64, refused: Option<&str>) -> Taken {
        Taken { through, offset: Some("{\"line\":3}".to_owned()), refused: refused.map(str::to_owned) }
    }

    fn numbers(records: Option<Vec<Record>>) -> Option<Vec<u64>> {
        records.map(|records| records.iter().map(|record| record.number).collect())
    }

    #[test]
    fn a_record_is_told_once_to_each_agent_until_it_is_answered() {
        let mut emitting = Emitting::default();
        assert_eq!(emitting.take(), None);
        (1..=3).for_each(|id| emit(&mut emitting, 10 + id));
        assert_eq!(numbers(emitting.take()), Some(vec![1, 2, 3]));
        assert_eq!(emitting.take(), None);
        assert_eq!(emitting.answers(&taken(2, None)).len(), 2);
        emit(&mut emitting, 14);
        assert_eq!(numbers(emitting.take()), Some(vec![4]));
        emitting.again();
        assert_eq!(numbers(emitting.take()), Some(vec![3, 4]));
        assert_eq!(emitting.answers(&taken(4, None)).len(), 2);
        assert!(emitting.answers(&taken(4, None)).is_empty(), "each is answered once");
    }

    #[test]
    fn what_starts_no_run_is_answered_by_the_reason_and_the_next_waits_on() {
        let mut emitting = Emitting::default();
        (1..=3).for_each(|id| emit(&mut emitting, id));
        let answers = emitting.answers(&taken(1, Some("no site can run it")));
        assert_eq!(answers.len(), 2);
        assert!(answers[1].contains("no site can run it") && answers[1].contains("-32006"), "{answers:?}");
        assert!(emitting.answers(&taken(1, None)).is_empty());
        assert_eq!(emitting.answers(&taken(3, None)).len(), 1);
    }

    #[test]
    fn a_source_hears_how_far_it_has_come() {
        let mut emitting = Emitting::default();
        emitting.ask(1, Asked::new("offset", Json::Null).expect("known")).expect("there is room");
        assert_eq!(numbers(emitting.take()), Some(vec![]), "it is asked, without a record");
        let answers = emitting.answers(&taken(0, None));
        assert!(answers[0].contains("\"offset\":{\"line\":3}"), "{answers:?}");
        assert!(Asked::new("exit", Json::Null).is_err());
    }

    #[test]
    fn more_than_may_be_on_the_way_is_refused() {
        let mut emitting = Emitting::default();
        (0..EMITTED_AT_ONCE_MAX as u64).for_each(|id| emit(&mut emitting, id));
        assert!(emitting.ask(100, Asked::Offset).is_err());
    }
}
