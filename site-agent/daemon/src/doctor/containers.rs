//! Container runtimes: which there are, and whether this user may use them.

use serde_json::Value;

use super::commands::{Answer, Commands};
use super::report::{Check, first_line};

/// Users that an image's files may belong to, beside this one.
const IDS_MIN: u64 = 65_536;
const MAP_IDS: &str = "give the user ids to map: `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`, then \
                       `podman system migrate`";

/// One check for each runtime that is there, or one that says that there is none.
pub(super) async fn look(commands: &Commands, is_root: bool, user_namespaces: bool) -> Vec<Check> {
    let mut checks = Vec::new();
    if commands.has("podman") {
        let (version, details) =
            tokio::join!(commands.ask("podman", &["--version"]), commands.ask("podman", &["info", "--format", "json"]));
        checks.push(judge_podman(&version, &details, is_root));
    }
    if commands.has("docker") {
        checks.push(judge_docker(&commands.ask("docker", &["version", "--format", "{{json .}}"]).await));
    }
    for program in ["apptainer", "singularity"] {
        // The older name is the newer program's too.
        if commands.has(program) && checks.iter().all(|check| check.name != "apptainer") {
            let version = commands.ask(program, &["--version"]).await;
            checks.push(judge_apptainer(&version, is_root || user_namespaces));
        }
    }
    if checks.is_empty() {
        let none = "none is found on PATH (podman, docker, apptainer): actions that are containers cannot run here";
        let advice = "install podman, which needs no root, if the site is to run containers";
        checks.push(Check::skipped("containers", none).with_advice(advice));
    }
    checks
}

fn judge_podman(version: &Answer, details: &Answer, is_root: bool) -> Check {
    let name = "podman";
    let title = title(name, version);
    if let Some(complaint) = details.complaint() {
        let advice = "have `podman info` answer for this user: it needs user namespaces, a home directory that can be written, \
                      and ids in /etc/subuid";
        return Check::problem(name, format!("{title}: {complaint}"), advice);
    }
    let details: Value = serde_json::from_str(details.text().unwrap_or_default()).unwrap_or_default();
    let host = &details["host"];
    // Older ones say it one level above.
    let rootless = host["security"]["rootless"].as_bool().or_else(|| host["rootless"].as_bool());
    let storage = details["store"]["graphDriverName"].as_str().unwrap_or("storage of an unknown kind");
    let found = match rootless {
        Some(true) => format!("{title}, rootless, {storage}"),
        Some(false) => format!("{title}, as root, {storage}"),
        None => format!("{title}, {storage}"),
    };
    let mapped = host["idMappings"]["uidmap"]
        .as_array()
        .map(|maps| maps.iter().filter_map(|map| map["size"].as_u64()).sum::<u64>());
    let check = match mapped {
        Some(ids) if rootless == Some(true) && !is_root && ids < IDS_MIN => Check::warning(
            name,
            format!("{found}; {ids} user ids are mapped"),
            format!("images whose files belong to several users will fail: {MAP_IDS}"),
        ),
        Some(_) | None if storage == "vfs" => Check::warning(
            name,
            found,
            "the storage copies each image whole at every start: install fuse-overlayfs, or put the storage on a local disk \
             where overlay works without root (Linux 5.11)",
        ),
        Some(_) | None => Check::ok(name, found),
    };
    check.with("rootless", rootless)
}

fn judge_docker(version: &Answer) -> Check {
    let name = "docker";
    let Some(said) = version.text() else {
        let complaint = version.complaint().unwrap_or_default();
        let advice = if complaint.contains("permission denied") {
            "add the agent's user to the group `docker` (which makes it as good as root), or install podman, which needs no root"
        } else {
            "start the daemon (`systemctl start docker`), or have DOCKER_HOST name where it listens"
        };
        return Check::warning(name, format!("docker: {complaint}"), advice);
    };
    let said: Value = serde_json::from_str(said).unwrap_or_default();
    let (client, server) = (&said["Client"]["Version"], &said["Server"]["Version"]);
    match server.as_str() {
        Some(server) => Check::ok(name, format!("docker {server} answers")),
        None => Check::warning(
            name,
            format!("docker {}: no daemon answers", client.as_str().unwrap_or_default()),
            "start the daemon (`systemctl start docker`), or install podman, which needs none",
        ),
    }
}

fn judge_apptainer(version: &Answer, user_namespaces: bool) -> Check {
    let name = "apptainer";
    let title = title(name, version);
    if let Some(complaint) = version.complaint() {
        return Check::warning(
            name,
            format!("{title}: {complaint}"),
            "have `apptainer --version` answer for this user",
        );
    }
    if user_namespaces {
        return Check::ok(name, format!("{title}, by user namespaces"));
    }
    let advice = "allow user namespaces (see `user-namespaces`), or see that its setuid part is installed";
    Check::warning(name, format!("{title}; this user may make no user namespace"), advice)
}

/// The runtime with its version.
fn title(name: &str, version: &Answer) -> String {
    let said = version.text().map(first_line).unwrap_or_default();
    let version = said.split_whitespace().find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()));
    version.map_or_else(|| name.to_owned(), |version| format!("{name} {version}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::commands::tests::scripts;
    use super::super::report::CheckState;
    use super::*;

    fn said(text: &str) -> Answer {
        Answer::Said(text.to_owned())
    }

    fn podman(rootless: bool, ids: u64, storage: &str) -> Check {
        let details = json!({
            "host": {
                "security": { "rootless": rootless },
                "idMappings": { "uidmap": [{ "size": 1 }, { "size": ids }] },
            },
            "store": { "graphDriverName": storage },
        });
        judge_podman(&said("podman version 4.3.1\n"), &said(&details.to_string()), !rootless)
    }

    #[test]
    fn podman_is_judged_by_what_it_says_of_itself() {
        let check = podman(true, 65_536, "overlay");
        assert_eq!((check.state, check.found.as_str()), (CheckState::Ok, "podman 4.3.1, rootless, overlay"));
        assert_eq!(check.figures["rootless"], true);
        assert_eq!(podman(true, 0, "overlay").state, CheckState::Warning);
        assert_eq!(podman(true, 65_536, "vfs").state, CheckState::Warning);
        assert_eq!(podman(false, 0, "overlay").state, CheckState::Ok);
        let broken = Answer::Failed("cannot clone: Operation not permitted".to_owned());
        assert_eq!(judge_podman(&said("podman version 4.3.1"), &broken, false).state, CheckState::Problem);
        assert_eq!(judge_podman(&said("podman version 4.3.1"), &said("no JSON"), false).state, CheckState::Ok);
    }

    #[test]
    fn docker_without_its_daemon_is_a_warning_with_the_way_out() {
        let answers = json!({ "Client": { "Version": "24.0.7" }, "Server": { "Version": "24.0.7" } });
        assert_eq!(judge_docker(&said(&answers.to_string())).found, "docker 24.0.7 answers");
        let denied =
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock";
        let check = judge_docker(&Answer::Failed(denied.to_owned()));
        assert_eq!(check.state, CheckState::Warning);
        assert!(check.advice.is_some_and(|advice| advice.contains("group `docker`")));
        let nobody = json!({ "Client": { "Version": "24.0.7" }, "Server": null });
        assert_eq!(judge_docker(&said(&nobody.to_string())).state, CheckState::Warning);
    }

    #[test]
    fn apptainer_needs_user_namespaces() {
        let version = said("apptainer version 1.2.5-1.el8\n");
        assert_eq!(judge_apptainer(&version, true).found, "apptainer 1.2.5-1.el8, by user namespaces");
        assert_eq!(judge_apptainer(&version, false).state, CheckState::Warning);
    }

    #[tokio::test]
    async fn a_runtime_is_asked_once_though_it_has_two_names() {
        let (_folder, commands) =
            scripts(&[("apptainer", "echo apptainer version 1.2.5"), ("singularity", "echo apptainer version 1.2.5")]);
        let checks = look(&commands, false, true).await;
        assert_eq!(checks.iter().map(|check| check.name).collect::<Vec<_>>(), ["apptainer"]);
        let (_folder, nothing) = scripts(&[]);
        let none = look(&nothing, false, true).await;
        assert_eq!((none[0].name, none[0].state), ("containers", CheckState::Skipped));
    }
}
