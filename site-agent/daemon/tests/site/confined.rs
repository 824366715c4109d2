//! Profiles of isolation, by trying: each test does under a weaker profile what the stricter one must not let it do.

use std::net::TcpListener;
use std::time::Duration;

use atoll_model::resources::{Confinement, IsolationProfile, Resources};
use atoll_model::session::{Binding, BindingSource, FailureReason, FinishedElement, Outcome, StepTemplate};
use atoll_model::value::{Type, Value};

use crate::python::Acting;
use crate::site::{Site, eventually, output};

/// A step that says something, under a profile.
fn step(site: &mut Site, script: &str, profile: IsolationProfile) -> StepTemplate {
    let step = site.step(script);
    let confinement = Confinement { isolation: Some(profile), ..Confinement::default() };
    StepTemplate {
        outputs: vec![output("said", Type::String)],
        resources: Resources { confinement, ..step.resources },
        ..step
    }
}

fn said(end: &FinishedElement) -> &str {
    match end.outputs.as_slice() {
        [Value::String(said)] => said,
        _ => panic!("{end:?}"),
    }
}

async fn run(site: &mut Site, script: &str, profile: IsolationProfile) -> String {
    let step = step(site, script, profile);
    let execution = site.run_step(step);
    said(&site.control.finished(execution).await).to_owned()
}

fn failure(end: &FinishedElement) -> (FailureReason, &str) {
    match &end.outcome {
        Outcome::Failed { reason, message, .. } => (*reason, message),
        other => panic!("it has not failed: {other:?}"),
    }
}

/// How many processes of this machine were started with these words.
fn processes_with(words: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).replace('\0', " ").contains(words)).count()
}

#[tokio::test]
async fn what_is_strict_reads_neither_files_of_others_nor_keys_nor_the_journal() {
    let mut site = Site::start().await;
    let neighbour = site.run("echo secret > mine; echo > @/ready; until [ -e @/gate ]; do sleep 0.02; done");
    site.control.started(neighbour).await;
    site.trace("ready").await;
    let (data, agent) = (site.data().display().to_string(), site.agent_pid());
    let look = format!(
        "{{ cat {data}/slots/*/*/mine
for root in '' /proc/{agent}/root; do find $root{data}/identity $root{data}/journal $root{data}/store -type f; done
}} > found 2>/dev/null || :
if [ -s found ]; then echo something; else echo nothing; fi > $ATOLL_OUTPUTS/said"
    );
    assert_eq!(run(&mut site, &look, IsolationProfile::Standard).await, "something");
    assert_eq!(run(&mut site, &look, IsolationProfile::Strict).await, "nothing");
    site.open_gate("gate");
    assert_eq!(site.control.finished(neighbour).await.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn what_is_strict_reaches_the_network_only_if_it_asks_for_it() {
    let mut site = Site::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = format!(
        "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 5)' 2>/dev/null \
         && echo reached > $ATOLL_OUTPUTS/said || echo not > $ATOLL_OUTPUTS/said"
    );
    assert_eq!(run(&mut site, &connect, IsolationProfile::Standard).await, "reached");
    assert_eq!(run(&mut site, &connect, IsolationProfile::Strict).await, "not");
    let mut asking = step(&mut site, &connect, IsolationProfile::Strict);
    asking.resources.confinement.network = true;
    let execution = site.run_step(asking);
    assert_eq!(said(&site.control.finished(execution).await), "reached");
    // It reaches itself.
    let own = "python3 -c '
import socket
listener = socket.create_server((\"127.0.0.1\", 0))
socket.create_connection(listener.getsockname(), 5)' && echo own > $ATOLL_OUTPUTS/said";
    assert_eq!(run(&mut site, own, IsolationProfile::Strict).await, "own");
}

#[tokio::test]
async fn what_is_strict_sees_no_other_process_and_leaves_none_behind() {
    let mut site = Site::start().await;
    let name = format!("30{}", std::process::id());
    let script = format!(
        "setsid sleep {name} >/dev/null 2>&1 &
until [ -e @/gate ] || [ -e go ]; do sleep 0.02; [ -e started ] && touch go; touch started; done
sleep 1; ls -d /proc/[0-9]* | wc -l > $ATOLL_OUTPUTS/said"
    );
    let strict = step(&mut site, &script, IsolationProfile::Strict);
    let execution = site.run_step(strict);
    eventually("the process that stays", || (processes_with(&format!("sleep {name}")) > 0).then_some(())).await;
    let end = site.control.finished(execution).await;
    let seen: usize = said(&end).parse().unwrap();
    assert!(seen < 8, "it saw {seen} processes");
    assert_eq!(processes_with(&format!("sleep {name}")), 0, "nothing is left when the end is told");
    let count = "ls -d /proc/[0-9]* | wc -l > $ATOLL_OUTPUTS/said";
    assert!(run(&mut site, count, IsolationProfile::Standard).await.parse::<usize>().unwrap() > 8);
}

#[tokio::test]
async fn what_is_strict_writes_nowhere_but_to_its_own_folders() {
    let mut site = Site::start().await;
    let script = "for folder in @ / /etc /usr /var /run /dev /proc/sys/kernel /sys/fs/cgroup; do
touch $folder/atoll-trial 2>/dev/null && echo $folder
rm -f $folder/atoll-trial 2>/dev/null
done > written || :
echo x > /tmp/mine && echo x > mine && cat /dev/null /dev/urandom 2>/dev/null | head -c 1 > drawn
[ -s /dev/vda ] || [ -b /dev/sda ] && echo a disk >> written || :
cat written > $ATOLL_OUTPUTS/said; ls -l $TMPDIR/mine > /dev/null";
    let written = run(&mut site, script, IsolationProfile::Strict).await;
    assert_eq!(written, "");
    assert_eq!(std::fs::read_dir(site.scratch()).unwrap().count(), 1, "but for the agent's number");
    let script = "touch @/atoll-trial && echo written > $ATOLL_OUTPUTS/said";
    assert_eq!(run(&mut site, script, IsolationProfile::Standard).await, "written");
}

#[tokio::test]
async fn scratch_space_is_no_more_than_was_asked_for_however_it_is_used() {
    let mut site = Site::start().await;
    let ways = [
        "head -c 100000000 /dev/zero > large; sleep 30",
        "for i in 1 2 3 4 5 6 7 8 9; do head -c 10000000 /dev/zero > $TMPDIR/$i; sleep 0.05; done; sleep 30",
        "for i in 1 2 3 4 5 6 7 8 9; do head -c 10000000 /dev/zero > $ATOLL_OUTPUTS/$i; done",
        "exec python3 -c '
import os, time
files = [open(str(number), \"wb\") for number in range(9)]
[os.unlink(str(number)) for number in range(9)]
[file.write(bytes(10_000_000)) for file in files]
[file.flush() for file in files]
time.sleep(30)'",
    ];
    for profile in [IsolationProfile::Standard, IsolationProfile::Strict] {
        for way in ways {
            let mut greedy = step(&mut site, way, profile);
            greedy.resources.confinement.scratch_bytes = Some(40_000_000);
            let execution = site.run_step(greedy);
            let end = site.control.finished(execution).await;
            let (reason, message) = failure(&end);
            assert_eq!(reason, FailureReason::NoSpace, "{way}: {message}");
            assert!(message.contains("40000000 bytes of scratch space"), "{message}");
        }
    }
    let enough = "head -c 30000000 /dev/zero > large; sleep 0.3; echo fits > $ATOLL_OUTPUTS/said";
    let mut modest = step(&mut site, enough, IsolationProfile::Strict);
    modest.resources.confinement.scratch_bytes = Some(40_000_000);
    let execution = site.run_step(modest);
    assert_eq!(said(&site.control.finished(execution).await), "fits");
}

#[tokio::test]
async fn what_is_strict_takes_no_more_memory_than_it_may() {
    let mut site = Site::start().await;
    let take = "head -c 400000000 /dev/zero | tail -n 1 | wc -c > $ATOLL_OUTPUTS/said";
    let mut greedy = step(&mut site, &format!("{take}; exit 9"), IsolationProfile::Strict);
    greedy.resources.memory_bytes = Some(48 << 20);
    let execution = site.run_step(greedy);
    let end = site.control.finished(execution).await;
    let limited = !site.agent_log().contains("may not make control groups");
    assert_eq!(failure(&end).0, if limited { FailureReason::OutOfMemory } else { FailureReason::ExitCode });
    assert_eq!(run(&mut site, take, IsolationProfile::Strict).await, "400000000");
}

#[tokio::test]
async fn an_input_that_is_written_to_stays_in_the_store_as_it_was() {
    let mut site = Site::start().await;
    let mut make = site.step("printf original > \"$ATOLL_OUTPUTS/text\"");
    make.outputs = vec![output("text", Type::File)];
    let made = site.run_step(make);
    let end = site.control.finished(made).await;
    let [Value::File(file)] = end.outputs.as_slice() else { panic!("{end:?}") };
    let hex = file.object.hex();
    let object = site.data().join("store/objects").join(&hex[..2]).join(&hex[2..]);
    let data = site.data().display().to_string();
    let write = format!(
        "mount -o remount,bind,rw {data} 2>/dev/null || :
chmod u+w \"$text\" 2>/dev/null || :
if printf changed 2>/dev/null > \"$text\"; then echo changed; else cat \"$text\"; fi > $ATOLL_OUTPUTS/said 2>/dev/null"
    );
    let strict = step(&mut site, &write, IsolationProfile::Strict);
    let binding = || Binding { name: "text".to_owned(), source: BindingSource::Value(end.outputs[0].clone()) };
    let execution = site.run_bound(strict, vec![binding()]);
    assert_eq!(said(&site.control.finished(execution).await), "original");
    assert_eq!(std::fs::read(&object).unwrap(), b"original");
    if rustix::process::geteuid().is_root() {
        // Who may mount can undo what a weaker profile shows read-only.
        let open = step(&mut site, &write, IsolationProfile::None);
        let execution = site.run_bound(open, vec![binding()]);
        assert_eq!(said(&site.control.finished(execution).await), "changed");
    }
}

#[tokio::test]
async fn each_profile_gives_up_the_rights_that_it_says_and_a_new_agent_knows_which_shim_has_which() {
    let mut site = Site::start().await;
    let ask = "awk '/^(NoNewPrivs|Seccomp|CapBnd):/ { printf \"%s \", $2 }' /proc/self/status > $ATOLL_OUTPUTS/said";
    let before = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = |name: &str| before.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let open = format!("{} {} {} ", own("CapBnd:"), own("NoNewPrivs:"), own("Seccomp:"));
    for _ in 0..2 {
        for profile in [IsolationProfile::None, IsolationProfile::Standard, IsolationProfile::None] {
            let expected = match profile {
                IsolationProfile::None => open.clone(),
                _ => format!("{} 1 2 ", own("CapBnd:")),
            };
            assert_eq!(run(&mut site, ask, profile).await, expected, "{profile}");
        }
        assert_eq!(run(&mut site, ask, IsolationProfile::Strict).await, "0000000000000000 1 2 ");
        site.kill_agent();
        site.start_agent().await;
    }
}

#[tokio::test]
async fn what_is_strict_makes_no_namespaces_and_mounts_nothing() {
    let mut site = Site::start().await;
    let script = "{ unshare -rm true && echo unshared; mount -t tmpfs none $TMPDIR && echo mounted
nsenter -t 1 -m true && echo entered; } 2>/dev/null >> done || :
cat done > $ATOLL_OUTPUTS/said";
    assert_eq!(run(&mut site, script, IsolationProfile::Strict).await, "");
    if rustix::process::geteuid().is_root() {
        assert!(run(&mut site, script, IsolationProfile::Standard).await.contains("mounted"));
    }
}

#[tokio::test]
async fn a_strict_execution_is_found_again_by_the_next_agent() {
    let mut site = Site::start().await;
    let waiting = step(&mut site, "sleep 3; echo done > $ATOLL_OUTPUTS/said", IsolationProfile::Strict);
    let execution = site.run_step(waiting);
    site.control.started(execution).await;
    site.kill_agent();
    site.start_agent().await;
    assert_eq!(said(&site.control.finished(execution).await), "done");
}

#[tokio::test]
async fn a_handler_that_is_strict_sees_its_inputs_and_not_the_next_one_what_it_has_left() {
    let module = "
import glob, os
kept = []
def handle(number):
    kept.append(number)
    found = len(glob.glob('@/*'))
    return {'seen': f'{number} {len(kept)} {found}'}
";
    let mut acting =
        Acting::at(Site::start().await, "{ number: integer }", &[("seen", "string", Type::String)], module, &[]).await;
    for profile in [IsolationProfile::Strict, IsolationProfile::Standard] {
        let mut seen = Vec::new();
        for number in 0..2 {
            let mut step = acting.step();
            step.resources.confinement.isolation = Some(profile);
            let execution = acting.begin_step(step, &[("number", Value::Integer(number))]);
            seen.push(said(&acting.site.control.finished(execution).await).to_owned());
        }
        let is_strict = profile == IsolationProfile::Strict;
        assert_eq!(seen == ["0 1 0", "1 1 0"], is_strict, "{seen:?}");
    }
}

#[tokio::test]
async fn a_site_gives_no_less_than_its_administrator_demands() {
    let mut site = Site::start_with("[isolation]\nminimum = \"strict\"\nscratch = \"20MB\"").await;
    let hello = site.control.look(|state| state.hellos[0].clone());
    assert!(hello.runtimes.iter().any(|runtime| runtime == IsolationProfile::STRICT_RUNTIME), "{hello:?}");
    let script = "ls -d /proc/[0-9]* | wc -l > $ATOLL_OUTPUTS/said";
    assert!(run(&mut site, script, IsolationProfile::None).await.parse::<usize>().unwrap() < 8);
    let greedy = step(&mut site, "head -c 50000000 /dev/zero > large; sleep 30", IsolationProfile::None);
    let execution = site.run_step(greedy);
    assert_eq!(failure(&site.control.finished(execution).await).0, FailureReason::NoSpace);
}

#[tokio::test]
async fn e5_an_action_that_forks_without_end_or_opens_all_files_takes_them_from_nobody_else() {
    let mut site = Site::start_with("[isolation]\nprocesses = 40").await;
    let neighbour = site.run("until [ -e @/gate ]; do sleep 0.02; done; sh -c 'exit 0'");
    site.control.started(neighbour).await;
    // Each process starts others, up to 256 of them where nothing stops it.
    let name = format!("bomb{}", std::process::id());
    let bomb = format!(
        "exec python3 -c '
import os, time
depth = 0
while True:
    try:
        if depth < 8:
            if os.fork() > 0: os.waitpid(-1, os.WNOHANG)
            depth += 1
            continue
    except OSError:
        pass
    time.sleep(0.01)' {name}"
    );
    let mut forking = site.step(&bomb);
    forking.resources.time = Some(Duration::from_secs(4));
    let forking = site.run_step(forking);
    let opening = site.run(
        "exec python3 -c '
import os, resource
count = 0
try:
    while True:
        os.dup(0)
        count += 1
except OSError:
    pass
print(resource.getrlimit(resource.RLIMIT_NOFILE))
raise SystemExit(0 if 200 < count <= 65536 else 1)'",
    );
    assert_eq!(site.control.finished(opening).await.outcome, Outcome::Succeeded);
    let counted = !site.agent_log().contains("may not make control groups");
    let bombs = || processes_with(&name);
    if counted {
        eventually("the bomb", || (bombs() > 20).then_some(())).await;
        assert!(bombs() <= 40, "{} processes", bombs());
    }
    // Whatever it does, another gets a process.
    let other = site.run("sh -c 'exit 3'");
    assert_eq!(failure(&site.control.finished(other).await).0, FailureReason::ExitCode);
    let end = site.control.finished(forking).await;
    assert_eq!(failure(&end).0, FailureReason::TimedOut, "{end:?}");
    assert_eq!(bombs(), 0, "nothing of it is left");
    site.open_gate("gate");
    assert_eq!(site.control.finished(neighbour).await.outcome, Outcome::Succeeded);
}
