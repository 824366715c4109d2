//! `atoll policy`: files that say where data may go, and what a site lets others have.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use atoll_model::policy::{Policy, PolicyRule, SitePolicy, SiteRule, parse, policy_schema};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::diagnostics;
use crate::failure::{Failure, SourceText};
use crate::output::{self, outln};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say what is wrong with a policy file.
    Check(CheckArguments),
    /// Print the JSON Schema of a policy file, for editors.
    Schema,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    file: PathBuf,
    /// The file is the policy of a site's own administrator, for its agent.
    #[arg(long)]
    site: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When a file is invalid, or cannot be read.
pub(crate) fn policy(command: PolicyCommand) -> anyhow::Result<()> {
    match command {
        PolicyCommand::Check(arguments) => check(&arguments),
        PolicyCommand::Schema => {
            output::json(&policy_schema());
            Ok(())
        }
    }
}

fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    let file = arguments.file.display().to_string();
    let text = read(&arguments.file)?;
    let checked = if arguments.site {
        SitePolicy::parse(&file, &text).map(|policy| (site_lines(&policy), None))
    } else {
        parse(&file, &text).map(|policy| (lines(&policy), Some(hash(&policy))))
    };
    match checked {
        Ok((lines, hash)) if arguments.json => {
            output::json(&json!({ "valid": true, "errors": [], "rules": lines, "hash": hash }));
            Ok(())
        }
        Ok((lines, hash)) => {
            outln!("{file} is valid");
            lines.iter().for_each(|line| outln!("  {line}"));
            if let Some(hash) = hash {
                outln!("policy {hash}");
            }
            Ok(())
        }
        Err(problems) => {
            if arguments.json {
                output::json(&json!({ "valid": false, "errors": diagnostics::document(&problems) }));
            }
            let source_text = Some(SourceText { file, text });
            Err(Failure::Invalid { diagnostics: problems, source_text }.into())
        }
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn hash(policy: &Policy) -> String {
    policy.hash().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What each rule speaks of, by its line.
fn lines(policy: &Policy) -> Vec<String> {
    let speaks = |rule: &PolicyRule| {
        let kinds = [
            ("confine", rule.confine.is_some()),
            ("route", rule.route.is_some()),
            ("push", rule.push.is_some()),
            ("replicate", rule.replicate.is_some()),
            ("keep", rule.keep.is_some()),
            ("pin", rule.pin.is_some()),
            ("expire", rule.expire.is_some()),
            ("encrypt", rule.encrypt.is_some()),
            ("hold", rule.hold.is_some()),
        ];
        let said: Vec<&str> = kinds.iter().filter(|(_, is_said)| *is_said).map(|(kind, _)| *kind).collect();
        format!("line {}: {}", rule.place.line, said.join(", "))
    };
    policy.rules.iter().map(speaks).collect()
}

fn site_lines(policy: &SitePolicy) -> Vec<String> {
    let line = |what: &str, rule: &SiteRule| {
        let verb = if rule.refuses { "refuses" } else { "allows" };
        format!("line {}: {verb} {what}", rule.place.line)
    };
    let run = policy.run.iter().map(|rule| line("what runs", rule));
    let leave = policy.leave.iter().map(|rule| line("what leaves", rule));
    let disk = policy
        .disk
        .iter()
        .map(|(bytes, place)| format!("line {}: {} of disk", place.line, atoll_model::units::format_size(*bytes)));
    run.chain(leave).chain(disk).collect()
}
