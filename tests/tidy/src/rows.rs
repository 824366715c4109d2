//! The failure matrix: which rule each row asks for, and which tests bear its name. `docs/reliability.md` is made from it.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;

use crate::source::sources;

/// A row of the failure matrix.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub happens: &'static str,
    pub rule: &'static str,
}

const fn row(name: &'static str, happens: &'static str, rule: &'static str) -> Row {
    Row { name, happens, rule }
}

/// The rows that Atoll keeps, in the order of the table.
pub const ROWS: &[Row] = &[
    row(
        "A1",
        "the agent is killed before it journals a command",
        "nothing was acknowledged, so the control plane sends the command again under its number",
    ),
    row(
        "A2",
        "… after it journaled a command and before it acknowledged it",
        "the repeated command is recognised and acknowledged, not carried out twice",
    ),
    row("A3", "… while inputs are half fetched", "the fetch is taken up again and verified; nobody ever sees a part"),
    row(
        "A4",
        "… after it noted the intent to start and before it started",
        "started again; with `start: at-most-once` only if nothing was claimed and the lease holds",
    ),
    row(
        "A5",
        "… when the process runs and its start is not journaled",
        "the claim in the slot's log leads back to the process, and the start is journaled",
    ),
    row("A6", "… while work runs", "the agent attaches to it again; nothing is started a second time"),
    row(
        "A7",
        "the machine goes down while work runs",
        "the boot id differs and there is no outcome: interrupted, and the retry policy decides",
    ),
    row("A8", "the agent is dead when work ends", "the outcome in the slot's log is read and taken in"),
    row(
        "A9",
        "the agent is killed while it collects outputs",
        "collecting begins again, with the same result: objects are named by their content",
    ),
    row(
        "A10",
        "… after the manifest is stored and before the end is journaled",
        "the end is made again from outcome and manifest",
    ),
    row("A11", "… after the end is journaled and before it is sent", "sent after the restart"),
    row(
        "A12",
        "… after the end is sent and before it is acknowledged",
        "sent again under its number; the control plane drops the second",
    ),
    row("A13", "… after the acknowledgement and before it is noted", "acknowledged again, and noted"),
    row(
        "A14",
        "… in the middle of an upload in parts",
        "the parts that arrived are on record, and those that are missing are sent",
    ),
    row(
        "A15",
        "… while objects are let go to make room",
        "no tree is there in part, nothing goes that was used since it was proposed, and the next process says what is gone",
    ),
    row(
        "A16",
        "the agent's journal is lost or damaged",
        "noticed, set aside, and made anew under a new identity from the slots, the store and the control plane's view",
    ),
    row(
        "B1",
        "the control plane is killed, or loses power, after it decided and before it dispatched",
        "what was acknowledged is on disk, and commands go on from the last one that was acknowledged",
    ),
    row(
        "B2",
        "… after it took in a report and before it acknowledged it",
        "the report's number moves in the same batch as its effect, so the repetition changes nothing",
    ),
    row(
        "B3",
        "a leader that was superseded, cut off from the database or stopped for a while, goes on",
        "every append names the leader's epoch under a lock: the database refuses it, and the process ends",
    ),
    row(
        "B4",
        "the database has committed, and its answer is lost",
        "a batch has one number: repeated over a new connection, it is written once",
    ),
    row(
        "B5",
        "the control plane is away for hours",
        "agents go on with what they have and keep everything; back again, nobody is given up early",
    ),
    row(
        "B6",
        "the control plane's journal is restored from a backup",
        "agents show that they know more, and say again what they reported since; nothing is given out before they have",
    ),
    row(
        "B7",
        "many agents vanish at once",
        "none of them is declared lost, and people are told; it ends when they return, or a person says of one that it is gone",
    ),
    row(
        "C1",
        "the link breaks in the middle of a transfer",
        "it goes on where it was, by another way if need be, and what arrives is verified",
    ),
    row("C2", "messages arrive twice", "numbers both ways, and one (execution, attempt): the second does nothing"),
    row(
        "C3",
        "messages overtake each other or are missing",
        "a gap is never skipped; the sender goes on from the last number that was taken",
    ),
    row(
        "C4",
        "the outcome of an agent that was given up arrives late",
        "taken over if the new attempt has not started, kept as evidence otherwise",
    ),
    row("C5", "the connection is half open", "silence on both sides is noticed, and the session given up"),
    row(
        "C6",
        "the agent hears the control plane, and not the other way round",
        "only an answered heartbeat grants a lease, so the agent learns that it lost it",
    ),
    row("C7", "the link is slow or flaps", "waits grow with jitter; sessions are resumed cheaply from their numbers"),
    row(
        "D1",
        "the bucket answers with errors, or not at all, or a URL has expired",
        "asked again with growing pauses and fresh permissions, and gone on with when it is well",
    ),
    row("D2", "the bucket is slow", "what stalls is given up and asked for again from where it was"),
    row(
        "D3",
        "the bucket says that an upload has arrived, and it has not, or not all of it",
        "its size and checksum are asked for before a copy counts",
    ),
    row(
        "D4",
        "the bucket says that an object is there already",
        "it is looked at: what is absent or not whole is sent again",
    ),
    row(
        "D5",
        "an object in a site's store is damaged",
        "verified at use and by a scrub, quarantined, fetched or made again",
    ),
    row(
        "D6",
        "an object in the bucket is damaged",
        "every reader verifies the digest, reports it, and it is pushed again",
    ),
    row("D7", "an object is gone from the bucket", "said by name, and pushed again from a site that has it"),
    row(
        "D8",
        "other bytes stand under a right name",
        "whoever reads them verifies the digest: at worst nobody gets it, and never something else",
    ),
    row("D9", "the page cache hides a fault of the disk", "a scrub reads what stands on the disk"),
    row(
        "E1",
        "the disk is full",
        "starts stop, records go on from a reserve, outputs fail with a clear reason, nothing is half written",
    ),
    row(
        "E2",
        "a site's clock is wrong or jumps",
        "leases run by the time since boot; an offset is shown from one minute, and stops new work from five",
    ),
    row(
        "E3",
        "an agent is suspended or stopped for longer than its lease",
        "it is answered anew before it starts anything; what runs goes on",
    ),
    row(
        "E4",
        "memory runs out and the kernel takes the agent",
        "executions are in groups of their own and are taken first; an agent that was taken finds them again",
    ),
    row(
        "E5",
        "an action forks without end, or opens all files that it can",
        "processes of one execution are counted and limited, open files too; others get theirs, and nothing of it is left",
    ),
    row("E6", "two agents have one identity", "the newest session fences the older one"),
    row("E7", "two processes have one state directory", "a lock keeps the second out and says who holds it"),
    row(
        "F1",
        "the controller of a Slurm cluster is away while jobs run",
        "jobs go on, and their own word of their end counts; what is to start waits, and nothing has failed",
    ),
    row(
        "F2",
        "the agent is killed between the submission of a job and the note of its number, or the answer is lost",
        "the intention was durable before: the job is looked for by its comment, and its claim keeps a second copy from running",
    ),
    row(
        "F3",
        "the controller has forgotten a job",
        "one that has begun speaks for itself as long as it gives signs of life; one that has not is submitted again after a while",
    ),
    row(
        "F4",
        "a cluster begins a job again, or could not start it",
        "never at Atoll's wish; if it does, the attempt runs again unless it may start only once; a job that is held is replaced",
    ),
    row(
        "F5",
        "the controller lets go of a job before it was asked",
        "the word that the job left of its end counts; where there is none, what the cluster's accounting has of it",
    ),
    row(
        "F6",
        "a job reaches its cluster's time limit",
        "asked to end, it ends what it runs and leaves word; the attempt has timed out, with its logs",
    ),
    row(
        "G1",
        "a join token is used again, late, or altered",
        "refused with the reason; the same key may repeat a redemption whose answer was lost",
    ),
    row(
        "G2",
        "a certificate runs out while the site is dark",
        "the known key proves itself and gets a new one, within a window and a number of times",
    ),
    row(
        "G3",
        "a certificate is stolen",
        "it lives a day, and a revoked one is refused at sessions and calls; it never speaks for another site",
    ),
    row(
        "G4",
        "an execution takes its agent or its machine down, again and again",
        "given up after three times; a version of an action whose executions did it ten times at two sites or more, with \
         no success in between, is not started any more for a day",
    ),
    row("G5", "outputs are huge", "streamed and bounded; holes stay holes"),
    row(
        "G6",
        "names are odd: spaces, quotes, newlines, bytes that are no UTF-8",
        "names are bytes and arrive as they were",
    ),
    row("G7", "a symbolic link in an output leads outside", "refused by name; links inside are kept as data"),
    row("G8", "a manifest carries a path where a name belongs", "refused; archives are never unpacked"),
    row(
        "G9",
        "what is compressed unfolds to far more than it says",
        "given up where what was asked for ends, with 8 MiB of memory at most; archives are never unpacked",
    ),
    row(
        "G10",
        "an output holds pipes, devices, sockets, hard links, setuid bits, holes",
        "only files, directories and links are taken; hard links become one object; set-id bits go",
    ),
    row(
        "G11",
        "an output changes while it is taken in",
        "it is not committed, and nothing that was made from it counts; a process that stays and holds it open does not stay",
    ),
    row(
        "G12",
        "an action floods its logs",
        "the middle of a log is dropped as it grows, and the log says how much; the outcome is not held up",
    ),
];

/// The tests that bear the name of each row, as `package: test`.
///
/// # Errors
/// When a file can't be read.
pub fn tests_by_row() -> Result<BTreeMap<String, Vec<String>>> {
    let mut tests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources()? {
        for function in source.functions().into_iter().filter(|function| function.is_test) {
            let Some((row, _)) = function.name.split_once('_') else { continue };
            let letter_and_number = row.len() > 1 && row[1..].bytes().all(|byte| byte.is_ascii_digit());
            if letter_and_number && row.starts_with(|letter: char| letter.is_ascii_lowercase()) {
                let place = source.path.display();
                tests.entry(row.to_uppercase()).or_default().push(format!("[`{}`](../{place})", function.name));
            }
        }
    }
    for found in tests.values_mut() {
        found.sort();
        found.dedup();
    }
    Ok(tests)
}

/// The table of `docs/reliability.md`.
///
/// # Errors
/// When a file can't be read.
pub fn table() -> Result<String> {
    let tests = tests_by_row()?;
    let mut table = String::from("| row | what happens | what Atoll does | tests | count |\n|---|---|---|---|---|\n");
    for Row { name, happens, rule } in ROWS {
        let found = tests.get(*name).map(Vec::as_slice).unwrap_or_default();
        writeln!(table, "| {name} | {happens} | {rule} | {} | {} |", found.join("<br>"), found.len())?;
    }
    Ok(table)
}

/// The document with its table replaced by `table`.
///
/// # Errors
/// When it has no place for one.
pub fn with_table(document: &str, table: &str) -> Result<String> {
    const BEGIN: &str = "<!-- table: made by `just reliability-table` -->\n";
    const END: &str = "<!-- end of table -->\n";
    let parts = document.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = parts.ok_or_else(|| anyhow::anyhow!("docs/reliability.md has no marks for its table"))?;
    Ok(format!("{head}{BEGIN}{table}{END}{tail}"))
}
