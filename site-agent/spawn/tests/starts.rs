//! What a program that was started finds, and what is told of its end.
#![expect(clippy::unwrap_used, reason = "a failed assertion is the result of a test")]

use std::ffi::{CString, OsStr};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use site_agent_spawn::{Child, Circumstances, Ended, Identity, Program, Spawner};

const NOTHING_MORE: &[(&[u8], &[u8])] = &[];

fn shell(script: &str, environment: &[(&str, &str)]) -> Program {
    let environment = environment.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    Program::new(&["/bin/sh", "-c", script], environment).unwrap()
}

fn wait(mut child: Child) -> Ended {
    poll(&mut [PollFd::new(child.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
    child.try_wait().unwrap().expect("its handle is readable, so it has ended")
}

fn run(program: &Program, more: &[(&[u8], &[u8])]) -> Ended {
    wait(Spawner::new().spawn(program, more).unwrap())
}

/// What a script writes to the path that it finds in `TO`.
fn written(script: &str, environment: &[(&str, &str)], more: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    let mut all = vec![("TO", to.to_str().unwrap())];
    all.extend(environment);
    let more: Vec<(&[u8], &[u8])> = more.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    assert!(run(&shell(script, &all), &more).status.success(), "{script}");
    fs::read_to_string(to).unwrap()
}

#[test]
fn it_ends_with_its_code_or_by_its_signal_and_says_what_it_used() {
    let ended = run(&shell("exit 7", &[]), NOTHING_MORE);
    assert_eq!((ended.status.code(), ended.status.signal()), (Some(7), None));
    assert!((100_000..1 << 30).contains(&ended.max_rss_bytes), "{ended:?}");
    let ended = run(&shell("kill -9 $$", &[]), NOTHING_MORE);
    assert_eq!((ended.status.code(), ended.status.signal()), (None, Some(9)));
}

#[test]
fn one_that_runs_has_not_ended_and_is_reaped_once() {
    let mut child = Spawner::new().spawn(&shell("exec sleep 600", &[]), NOTHING_MORE).unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id()), Signal::SIGTERM).unwrap();
    poll(&mut [PollFd::new(child.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
    assert_eq!(child.try_wait().unwrap().unwrap().status.signal(), Some(15));
    assert_eq!(child.try_wait().unwrap_err().raw_os_error(), Some(nix::libc::ECHILD));
}

#[test]
fn it_has_its_environment_and_nothing_else_and_what_is_more_counts_instead() {
    let own = [("A", "first"), ("B", "a=b c"), ("A", "last"), ("AB", "")];
    let print = "/usr/bin/env | /usr/bin/sort | /bin/grep -v -e ^PWD= -e ^TO= -e ^_= >\"$TO\"";
    assert_eq!(written(print, &own, &[]), "A=last\nAB=\nB=a=b c\n");
    assert_eq!(written(print, &own, &[("B", "more"), ("C", "new")]), "A=last\nAB=\nB=more\nC=new\n");
}

#[test]
fn a_program_is_started_again_and_again_with_the_environment_of_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let program = shell("echo \"$N\" >\"$TO\"/\"$N\"", &[("TO", folder.path().to_str().unwrap()), ("N", "none")]);
    let mut spawner = Spawner::new();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for n in 0..200 {
        let more = [("N", n.to_string())];
        assert!(wait(spawner.spawn(&program, &more).unwrap()).status.success());
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 200);
    assert_eq!(fs::read_to_string(folder.path().join("199")).unwrap(), "199\n");
    assert!(open() <= before + 8, "as many handles as other tests beside this have open, and not one for each process");
}

#[test]
fn it_has_all_signals_by_default_whatever_its_parent_ignores_catches_or_blocks() {
    // Rust's runtime ignores SIGPIPE and catches SIGSEGV. And this thread blocks one.
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGUSR1);
    blocked.thread_block().unwrap();
    let status = written(
        "while read -r line; do case $line in Sig*) echo \"$line\";; esac; done </proc/self/status >\"$TO\"",
        &[],
        &[],
    );
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    // Signals 32 and 33 are the C library's own, which it lets be ignored and tells nobody of.
    assert_eq!((value("SigBlk:"), value("SigIgn:") & !(0b11 << 31)), (0, 0), "{status}");
    let own = fs::read_to_string("/proc/thread-self/status").unwrap();
    assert!(own.contains("SigBlk:\t0000000000000200"), "this thread's own are as they were: {own}");
}

#[test]
fn it_leads_a_process_group_of_its_own() {
    // The fifth field, after the name in parentheses.
    let group =
        written("read -r pid name state parent group rest </proc/self/stat; echo \"$pid $group\" >\"$TO\"", &[], &[]);
    let (pid, group) = group.trim().split_once(' ').unwrap();
    assert_eq!(pid, group);
}

#[test]
fn what_cannot_be_started_is_an_error_that_leaves_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, mode: u32, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let error_of = |path: &Path| {
        let program = Program::new(&[path.as_os_str().as_bytes()], []).unwrap();
        Spawner::new().spawn(&program, NOTHING_MORE).unwrap_err()
    };
    assert_eq!(error_of(&folder.path().join("missing")).kind(), ErrorKind::NotFound);
    assert_eq!(error_of(Path::new("sh")).kind(), ErrorKind::NotFound, "it is looked for nowhere else");
    assert_eq!(error_of(&file("not-executable", 0o644, b"#!/bin/sh\n")).kind(), ErrorKind::PermissionDenied);
    assert_eq!(error_of(&file("nonsense", 0o755, &[0, 1, 2, 3])).raw_os_error(), Some(nix::libc::ENOEXEC));
    let children = fs::read_to_string("/proc/thread-self/children").unwrap();
    assert_eq!(children, "", "nobody is left to be reaped");
}

#[test]
fn bytes_0_and_nothing_at_all_are_refused() {
    let program = |command: &[&str], name: &'static str| Program::new(command, [(name.as_bytes(), b"".as_slice())]);
    for refused in [program(&[], "A"), program(&["/bin/true", "a\0b"], "A"), program(&["/bin/true"], "A\0")] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let program = program(&["/bin/true"], "A").unwrap();
    let refused = Spawner::new().spawn(&program, &[("A", "\0")]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
}

#[test]
fn arguments_are_handed_on_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    let odd = OsStr::from_bytes(b"\xff $HOME \n");
    let command =
        [b"/bin/sh", b"-c".as_slice(), b"printf %s \"$2\" >\"$1\"", b"sh", to.as_os_str().as_bytes(), odd.as_bytes()];
    assert!(run(&Program::new(&command, []).unwrap(), NOTHING_MORE).status.success());
    assert_eq!(fs::read(to).unwrap(), odd.as_bytes());
}

#[test]
fn a_folder_is_shown_as_tmp_to_what_is_started_and_to_nobody_else() {
    // Not below `/tmp`, where it would hide itself.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::create_dir(folder.path().join("tmp")).unwrap();
    let tmp = CString::new(folder.path().join("tmp").as_os_str().as_bytes()).unwrap();
    let program = shell("echo seen > /tmp/atoll-spawn-test", &[]);
    match Spawner::new().spawn_under(
        &program,
        NOTHING_MORE,
        Circumstances { tmp: Some(&tmp), ..Circumstances::default() },
    ) {
        // Who may make no mount namespace is told so, and nothing is started.
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
        Ok(child) => {
            assert!(wait(child).status.success());
            assert_eq!(fs::read_to_string(folder.path().join("tmp/atoll-spawn-test")).unwrap(), "seen\n");
            assert!(!Path::new("/tmp/atoll-spawn-test").exists());
        }
    }
}

#[test]
fn who_runs_as_an_account_is_that_with_its_groups_and_no_rights_or_is_not_started() {
    let identity = Identity { user: 65_001, group: 65_002, groups: vec![65_002, 65_003] };
    let circumstances = Circumstances { identity: Some(&identity), ..Circumstances::default() };
    // Where it runs with the rights of root nothing of that is left.
    let script = "[ \"$(id -u) $(id -g) $(id -G)\" = '65001 65002 65002 65003' ] || exit 3
        [ \"$(awk '/^CapPrm|^CapEff|^CapAmb/ { print $2 }' /proc/self/status | sort -u)\" = 0000000000000000 ] || exit 4
        grep -q '^NoNewPrivs:.1' /proc/self/status || exit 5";
    match Spawner::new().spawn_under(&shell(script, &[("PATH", "/usr/bin:/bin")]), NOTHING_MORE, circumstances) {
        Err(error) => {
            assert!(!nix::unistd::geteuid().is_root(), "{error}");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
        Ok(child) => assert_eq!(wait(child).status.code(), Some(0)),
    }
    assert_ne!(nix::unistd::getuid().as_raw(), identity.user, "it is the child that becomes it");
}
