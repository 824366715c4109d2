//! What those wait for that have not begun, for people who ask.

use atoll_model::limits::WAITING_TOLD_MAX;
use atoll_model::session::WaitingJob;

use super::{Job, Queue, Wish};
use crate::shim::protocol::Key;

/// A system may have more to say than anybody reads.
const WORDS_MAX: usize = 200;

impl Queue {
    pub(in super::super) fn reasons(&self) -> Vec<WaitingJob> {
        let is_waiting = |job: &Job| !job.ended && job.started.is_none() && job.wish != Wish::End;
        let submitted = self.jobs.iter().filter(|(_, job)| is_waiting(job));
        let submitted = submitted.filter_map(|(key, job)| Some((*key, self.reason(job)?)));
        let room = (self.room() == 0).then(|| {
            let (most, title) = (self.desk.limits.jobs_max, self.desk.system.title());
            format!("room among the {most} jobs that the site may have in the queue of {title}")
        });
        let kept_back = self.waiting.iter().filter_map(|handed| Some((handed.order.key, room.clone()?)));
        submitted.chain(kept_back).take(WAITING_TOLD_MAX).map(told).collect()
    }

    fn reason(&self, job: &Job) -> Option<String> {
        let title = self.desk.system.title();
        if let Some(trouble) = &self.trouble {
            return Some(format!("{title} to be reached: {trouble}"));
        }
        let (row, submitted) = (job.row.as_ref()?, self.batches.get(&job.token)?);
        let number = self.desk.system.number(&row.job, job.index, submitted.batch.keys.len());
        Some(format!("{title}: job {number} is {}", row.words))
    }
}

fn told((key, why): (Key, String)) -> WaitingJob {
    WaitingJob { execution: key.execution, attempt: key.attempt, why: why.chars().take(WORDS_MAX).collect() }
}
