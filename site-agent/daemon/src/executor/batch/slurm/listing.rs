//! What `squeue` says of the agent's jobs.
//!
//! As text in columns of our own: `--json` lists the jobs of everybody whatever is asked for (22.05), and what it calls
//! things differs between versions.

use crate::executor::batch::system::{Over, Row, Standing};

/// Job, element of its array, state, reason, partition, comment: the comment is ours, and has none of the bars.
pub(super) const FORMAT: &str = "%F|%K|%T|%r|%P|%k";

/// The comment of what this agent submits.
pub(super) fn comment(agent: &str, token: &str) -> String {
    format!("atoll {agent} {token}")
}

/// The jobs of this agent among all that are listed.
pub(super) fn read(text: &str, agent: &str) -> Vec<Row> {
    text.lines().filter_map(|line| read_line(line, agent)).collect()
}

fn read_line(line: &str, agent: &str) -> Option<Row> {
    let mut fields = line.trim().splitn(6, '|');
    let [job, index, state, reason, partition, comment] = std::array::from_fn(|_| fields.next());
    let mut words = comment?.split(' ');
    let is_ours = words.next() == Some("atoll") && words.next() == Some(agent);
    let token = words.next().filter(|_| is_ours)?.to_owned();
    let (state, reason) = (state?, reason?);
    let why = if reason == "None" || reason.is_empty() { String::new() } else { format!(" ({reason})") };
    Some(Row {
        job: job?.to_owned(),
        // A job that is no array has no element.
        index: index?.parse().unwrap_or(0),
        standing: standing(state, reason),
        words: format!("{state}{why} in partition {}", partition?),
        token,
    })
}

/// What a state means, of the queue and of accounting alike.
pub(super) fn standing(state: &str, reason: &str) -> Standing {
    match state {
        "TIMEOUT" | "DEADLINE" => Standing::Over(Over::TimedOut),
        "OUT_OF_MEMORY" => Standing::Over(Over::OutOfMemory),
        "CANCELLED" => Standing::Over(Over::Cancelled),
        "PREEMPTED" | "NODE_FAIL" | "BOOT_FAIL" | "REVOKED" => Standing::Over(Over::Lost),
        "COMPLETED" | "FAILED" => Standing::Over(Over::Ended),
        "PENDING" if reason.replace(' ', "_").starts_with("launch_failed") => Standing::Stuck,
        "REQUEUE_HOLD" | "SPECIAL_EXIT" => Standing::Stuck,
        "PENDING" | "CONFIGURING" | "REQUEUED" | "REQUEUE_FED" => Standing::Waiting,
        // Whatever else there is, it is not over.
        _ => Standing::Running,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of Slurm 22.05.8, with two jobs of others.
    const LISTED: &str = "\
2|N/A|FAILED|BadConstraints|main|atoll agent_1 b
3|N/A|PENDING|BeginTime|main|bar
1|0|RUNNING|None|main|atoll agent_1 a
1|1|PENDING|Resources|main|atoll agent_1 a
1|2|COMPLETED|None|main|atoll agent_2 a
7|N/A|PENDING|launch failed requeued held|small|atoll agent_1 c
8|N/A|TIMEOUT|TimeLimit|small|atoll agent_1 d
9|N/A|OUT_OF_MEMORY|OutOfMemory|small|atoll agent_1 e
";

    #[test]
    fn a_listing_is_read_by_comment_and_never_by_number() {
        let rows = read(LISTED, "agent_1");
        let standings: Vec<_> = rows.iter().map(|row| (row.token.as_str(), row.index, row.standing)).collect();
        let expected = [
            ("b", 0, Standing::Over(Over::Ended)),
            ("a", 0, Standing::Running),
            ("a", 1, Standing::Waiting),
            ("c", 0, Standing::Stuck),
            ("d", 0, Standing::Over(Over::TimedOut)),
            ("e", 0, Standing::Over(Over::OutOfMemory)),
        ];
        assert_eq!(standings, expected);
        assert_eq!(rows[0].words, "FAILED (BadConstraints) in partition main");
        assert_eq!(rows[1].words, "RUNNING in partition main");
    }

    #[test]
    fn what_is_no_line_of_ours_is_none() {
        for text in ["", "\n", "1|0|RUNNING", "1|0|RUNNING|None|main|", "1|0|RUNNING|None|main|atoll agent_1"] {
            assert_eq!(read(text, "agent_1"), [], "{text:?}");
        }
    }

    #[test]
    fn a_state_that_is_not_known_is_not_over() {
        assert_eq!(standing("EXPEDITING", "None"), Standing::Running);
    }
}
