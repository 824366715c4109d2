//! Where the agent keeps everything, which is where steps work too: its room, its file system, and how fast that is.

mod between;
mod probe;

use std::path::PathBuf;
use std::time::Duration;

use super::report::{Check, rounded, shown_bytes, shown_ms};
pub(super) use between::{Between, judge_between};
pub(super) use probe::look;

/// What is left when the site takes no new work (E1), in percent of the whole.
const FREE_PERCENT_MIN: u64 = 10;
const FREE_BYTES_FEW: u64 = 10_000_000_000;
const INODES_FEW: u64 = 100_000;
/// Each record of the journal waits for one of these.
const SYNC_SLOW_MS: f64 = 50.0;

/// File systems whose bytes are on other machines.
const NETWORKED: [&str; 14] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "afs",
    "9p",
    "glusterfs",
    "fuse.glusterfs",
    "fuse.sshfs",
    "fuse.ceph",
];
/// File systems that are gone with the machine's power, or with a container.
const FLEETING: [&str; 2] = ["tmpfs", "ramfs"];

/// What was seen of a folder.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    /// The data directory, or the nearest folder above it that is there.
    pub(super) folder: PathBuf,
    pub(super) is_there: bool,
    pub(super) room: Room,
    pub(super) kind: String,
    pub(super) trial: Result<Trial, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) free_bytes: u64,
    pub(super) all_bytes: u64,
    /// None are counted by some file systems.
    pub(super) free_inodes: u64,
    pub(super) all_inodes: u64,
}

/// What was tried out with files that are gone again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trial {
    pub(super) hard_links: bool,
    pub(super) reflinks: bool,
    pub(super) locks: bool,
    /// Half of all took less.
    pub(super) sync_ms: f64,
}

/// What became of looking.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Looked {
    Seen(Seen),
    /// Not even the room on it could be asked for.
    Failed(PathBuf, String),
    /// A disk, or a file server, that does not answer.
    Late(Duration),
}

pub(super) fn judge(looked: &Looked) -> Vec<Check> {
    let seen = match looked {
        Looked::Seen(seen) => seen,
        Looked::Failed(folder, error) => {
            let found = format!("{}: {error}", folder.display());
            return vec![Check::problem("data-dir", found, "give --data-dir a folder that this user may use")];
        }
        Looked::Late(patience) => {
            let found = format!("no answer within {} s", patience.as_secs());
            let advice = "the file system hangs: see `dmesg` and whoever runs the file server, or give --data-dir a folder on \
                          a local disk";
            return vec![Check::problem("data-dir", found, advice)];
        }
    };
    let mut checks = vec![judge_folder(seen), judge_room(seen.room), judge_kind(seen)];
    if let Ok(trial) = seen.trial {
        checks.push(judge_links(trial));
        checks.push(judge_sync(trial.sync_ms));
    }
    checks
}

/// The folder that executions work in, where it is not the data directory.
pub(super) fn judge_work(looked: &Looked) -> Check {
    let name = "work-dir";
    let another = "or give --work-dir another folder";
    match looked {
        Looked::Failed(folder, error) => {
            Check::problem(name, format!("{}: {error}", folder.display()), format!("mend that, {another}"))
        }
        Looked::Late(patience) => {
            let advice = format!("the file system hangs: see `dmesg` and whoever runs the file server, {another}");
            Check::problem(name, format!("no answer within {} s", patience.as_secs()), advice)
        }
        Looked::Seen(Seen { folder, trial: Err(error), .. }) => {
            let advice = format!("run this as the agent's user; give the folder to it (`chown`), {another}");
            Check::problem(name, format!("{} cannot be written: {error}", folder.display()), advice)
        }
        Looked::Seen(seen) => {
            let Check { state, found, advice, figures, .. } = judge_room(seen.room);
            let found = format!("{} ({}): {found}", seen.folder.display(), seen.kind);
            let advice = advice.map(|advice| advice.replace("--data-dir", "--work-dir"));
            Check { name, state, found, advice, figures }
        }
    }
}

fn judge_folder(seen: &Seen) -> Check {
    let name = "data-dir";
    let folder = seen.folder.display();
    match (&seen.trial, seen.is_there) {
        (Ok(_), true) => Check::ok(name, format!("{folder} can be written")),
        (Ok(_), false) => Check::ok(name, format!("not there yet; it can be made below {folder}")),
        (Err(error), is_there) => {
            let what = if is_there { "cannot be written" } else { "is where it would be made, and cannot be written" };
            let advice =
                "run this as the agent's user; give the folder to it (`chown`), or name another with --data-dir";
            Check::problem(name, format!("{folder} {what}: {error}"), advice)
        }
    }
}

fn judge_room(room: Room) -> Check {
    let name = "free-space";
    let inodes = if room.all_inodes == 0 {
        "files are not counted".to_owned()
    } else {
        format!("{} files of {}", room.free_inodes, room.all_inodes)
    };
    let found = format!("{} of {} free; {inodes}", shown_bytes(room.free_bytes), shown_bytes(room.all_bytes));
    let is_full = room.free_bytes.saturating_mul(100) < room.all_bytes.saturating_mul(FREE_PERCENT_MIN);
    let few_inodes = room.all_inodes > 0 && room.free_inodes < INODES_FEW;
    let free_some = "free some room, or give --data-dir a larger file system";
    let check = if is_full || room.free_bytes == 0 {
        let advice = format!("{free_some}: with less than {FREE_PERCENT_MIN} % free the site takes no new work");
        Check::problem(name, found, advice)
    } else if few_inodes {
        Check::warning(
            name,
            found,
            "every file that a step makes takes one: remove files, or make the file system with more inodes",
        )
    } else if room.free_bytes < FREE_BYTES_FEW {
        Check::warning(name, found, format!("{free_some}: all outputs of the site stay there"))
    } else {
        Check::ok(name, found)
    };
    let check = check.with("free_bytes", room.free_bytes).with("all_bytes", room.all_bytes);
    check.with("free_inodes", room.free_inodes).with("all_inodes", room.all_inodes)
}

fn judge_kind(seen: &Seen) -> Check {
    let name = "file-system";
    let kind = seen.kind.as_str();
    let locks = seen.trial.as_ref().is_ok_and(|trial| trial.locks);
    let check = if FLEETING.contains(&kind) {
        let advice =
            "give --data-dir a folder on a disk: all outputs and the journal are lost with the machine's memory";
        Check::warning(name, format!("{kind}, in the machine's memory"), advice)
    } else if NETWORKED.contains(&kind) && seen.trial.is_ok() && !locks {
        let advice = "give each machine a data directory of its own, better on a local disk: nothing here keeps two agents apart";
        Check::warning(name, format!("{kind}, over the network, without locks"), advice)
    } else if NETWORKED.contains(&kind) {
        let advice = "better a local disk, if it is large enough; if not, give each machine a data directory of its own, and see \
                      `sync`";
        Check::warning(name, format!("{kind}, over the network"), advice)
    } else {
        Check::ok(name, format!("{kind}, local"))
    };
    check.with("kind", kind)
}

fn judge_links(trial: Trial) -> Check {
    let name = "links";
    let yes = |has: bool| if has { "yes" } else { "no" };
    let found = format!("hard links: {}; reflinks: {}", yes(trial.hard_links), yes(trial.reflinks));
    let check = if trial.hard_links || trial.reflinks {
        Check::ok(name, found)
    } else {
        let advice = "give --data-dir a file system with hard links (ext4, xfs, btrfs): here every input is copied";
        Check::warning(name, found, advice)
    };
    check.with("hard_links", trial.hard_links).with("reflinks", trial.reflinks)
}

fn judge_sync(ms: f64) -> Check {
    let found = format!("{} for a small file to be on the disk (p50)", shown_ms(ms));
    let check = if ms > SYNC_SLOW_MS {
        let advice = "every step that begins or ends waits for this: give --data-dir a local disk, best an SSD";
        Check::warning("sync", found, advice)
    } else {
        Check::ok("sync", found)
    };
    check.with("p50_ms", rounded(ms))
}

#[cfg(test)]
mod tests {
    use super::super::report::CheckState;
    use super::*;

    const TRIAL: Trial = Trial { hard_links: true, reflinks: false, locks: true, sync_ms: 2.0 };
    const ROOM: Room = Room {
        free_bytes: 500_000_000_000,
        all_bytes: 1_000_000_000_000,
        free_inodes: 1_000_000,
        all_inodes: 2_000_000,
    };

    fn seen() -> Seen {
        Seen { folder: "/data/atoll".into(), is_there: true, room: ROOM, kind: "ext4".to_owned(), trial: Ok(TRIAL) }
    }

    fn state(seen: Seen, name: &str) -> CheckState {
        let checks = judge(&Looked::Seen(seen));
        checks.iter().find(|check| check.name == name).map(|check| check.state).unwrap_or(CheckState::Skipped)
    }

    #[test]
    fn a_local_disk_with_room_is_as_it_should_be() {
        let checks = judge(&Looked::Seen(seen()));
        assert!(checks.iter().all(|check| check.state == CheckState::Ok), "{checks:#?}");
        assert_eq!(checks[1].found, "500.0 GB of 1.0 TB free; 1000000 files of 2000000");
        assert_eq!(checks[4].figures["p50_ms"].as_f64(), Some(2.0));
    }

    #[test]
    fn a_disk_on_which_the_site_would_close_is_a_problem_and_a_small_one_a_warning() {
        let with = |room| Seen { room, ..seen() };
        let room = |free_bytes, free_inodes| Room { free_bytes, free_inodes, ..ROOM };
        assert_eq!(state(with(room(99_000_000_000, 1_000_000)), "free-space"), CheckState::Problem);
        assert_eq!(state(with(room(500_000_000_000, 99_999)), "free-space"), CheckState::Warning);
        let small = Room { free_bytes: 5_000_000_000, all_bytes: 20_000_000_000, ..ROOM };
        assert_eq!(state(with(small), "free-space"), CheckState::Warning);
        let uncounted = Room { free_inodes: 0, all_inodes: 0, ..ROOM };
        assert_eq!(state(with(uncounted), "free-space"), CheckState::Ok);
    }

    #[test]
    fn file_systems_that_others_serve_or_that_forget_are_warned_of() {
        for kind in ["nfs4", "lustre", "gpfs", "tmpfs"] {
            assert_eq!(state(Seen { kind: kind.to_owned(), ..seen() }, "file-system"), CheckState::Warning, "{kind}");
        }
        let unlocked = Seen { kind: "nfs4".to_owned(), trial: Ok(Trial { locks: false, ..TRIAL }), ..seen() };
        let check = judge_kind(&unlocked);
        assert!(check.found.ends_with("without locks"), "{}", check.found);
    }

    #[test]
    fn what_cannot_be_written_is_a_problem_and_nothing_more_is_said_of_it() {
        let checks = judge(&Looked::Seen(Seen { trial: Err("permission denied".to_owned()), ..seen() }));
        let names: Vec<&str> = checks.iter().map(|check| check.name).collect();
        assert_eq!(names, ["data-dir", "free-space", "file-system"]);
        assert_eq!(checks[0].state, CheckState::Problem);
        let failed = judge(&Looked::Failed("/data".into(), "no such device".to_owned()));
        assert_eq!(failed[0].state, CheckState::Problem);
        assert_eq!(judge(&Looked::Late(Duration::from_secs(20)))[0].state, CheckState::Problem);
    }

    #[test]
    fn a_work_directory_that_is_full_or_cannot_be_written_is_a_problem() {
        let check = judge_work(&Looked::Seen(seen()));
        assert_eq!((check.name, check.state), ("work-dir", CheckState::Ok));
        let full = Seen { room: Room { free_bytes: 99_000_000_000, ..ROOM }, ..seen() };
        let check = judge_work(&Looked::Seen(full));
        assert_eq!(check.state, CheckState::Problem);
        assert!(check.advice.is_some_and(|advice| advice.contains("--work-dir")));
        let forbidden = Seen { trial: Err("permission denied".to_owned()), ..seen() };
        for bad in [Looked::Seen(forbidden), Looked::Late(Duration::from_secs(20))] {
            assert_eq!(judge_work(&bad).state, CheckState::Problem, "{bad:?}");
        }
    }

    #[test]
    fn a_slow_disk_and_one_without_links_are_warned_of() {
        let slow = Trial { sync_ms: 80.0, ..TRIAL };
        assert_eq!(state(Seen { trial: Ok(slow), ..seen() }, "sync"), CheckState::Warning);
        let bare = Trial { hard_links: false, ..TRIAL };
        assert_eq!(state(Seen { trial: Ok(bare), ..seen() }, "links"), CheckState::Warning);
    }
}
