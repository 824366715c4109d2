//! The batch system that the site's configuration names: its programs, and whether it answers by them.

use crate::config::BatchSettings;
use crate::doctor::commands::{Answer, Commands};
use crate::doctor::report::Check;

const NAME: &str = "batch-commands";

/// What its template has called is looked for where the agent would look.
pub(super) async fn look(settings: &BatchSettings, commands: &Commands) -> Check {
    let commands = settings.commands.as_ref().map_or_else(|| commands.clone(), |folder| commands.first_in(folder));
    let template = &settings.template;
    let missing: Vec<&str> =
        template.programs().iter().map(String::as_str).filter(|program| !commands.has(program)).collect();
    if !missing.is_empty() {
        let advice = "run the agent where jobs are submitted from, or name the folder of these programs: `commands` under [batch]";
        return Check::problem(NAME, format!("{}: there is no {}", template.title(), missing.join(", ")), advice);
    }
    let words: Vec<&str> = template.alive().iter().map(String::as_str).collect();
    let answer = match words.split_first() {
        Some((program, arguments)) => commands.ask(program, arguments).await,
        None => Answer::Missing,
    };
    match answer.complaint() {
        None => Check::ok(NAME, format!("{} answers, jobs go to {}", template.title(), settings.place())),
        Some(complaint) => {
            let advice = format!("have `{}` answer for this user: does the system's server run?", words.join(" "));
            Check::problem(NAME, format!("{}: {complaint}", template.title()), advice)
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::doctor::commands::tests::scripts;
    use crate::doctor::report::CheckState;
    use crate::executor::batch::template::Template;

    fn settings(commands: &Path) -> BatchSettings {
        BatchSettings {
            template: Arc::new(Template::shipped("pbs").unwrap().unwrap()),
            queue: Some("long".to_owned()),
            account: None,
            options: Vec::new(),
            commands: Some(commands.to_owned()),
            poll_seconds: 1,
            jobs_max: 1,
            forgotten_seconds: 1,
            pilots: None,
        }
    }

    #[tokio::test]
    async fn programs_that_are_missing_are_named_and_a_server_that_is_away_is_quoted() {
        let (_none, elsewhere) = scripts(&[]);
        let (some, _) = scripts(&[("qsub", ""), ("qstat", "")]);
        let check = look(&settings(some.path()), &elsewhere).await;
        assert_eq!((check.state, check.found.as_str()), (CheckState::Problem, "PBS: there is no qselect, qdel"));
        let away = "echo 'qstat: cannot connect to server pbs (errno=111)' >&2; exit 111";
        for (qstat, state, found) in [
            (away, CheckState::Problem, "PBS: qstat: cannot connect to server pbs (errno=111)"),
            ("echo workq", CheckState::Ok, "PBS answers, jobs go to queue long"),
        ] {
            let (all, _) = scripts(&[("qsub", ""), ("qselect", ""), ("qdel", ""), ("qstat", qstat)]);
            let check = look(&settings(all.path()), &elsewhere).await;
            assert_eq!((check.state, check.found.as_str()), (state, found));
        }
    }
}
