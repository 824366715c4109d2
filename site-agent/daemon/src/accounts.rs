//! The accounts of this machine that executions run as: who is meant, who that is here, and whether this process may become
//! it.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use atoll_model::session::{Requester, StepTemplate, TemplateWork};
use nix::unistd::{Group, User, getgrouplist};
use serde::Serialize;

use crate::config::{AccountSettings, Config, ShimProgram};
use crate::programs::ask;
use crate::shim::account::Account;

/// How long what a directory of accounts has said is taken to hold.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// How long a trial may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Folders in the data directory through which accounts must pass, to what is theirs or for all.
const PASSED_THROUGH: [&str; 6] = ["staged", "actions", "scripts", "environments", "runtimes", "components"];

/// An account that an execution cannot run as.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The administrator's rules say so.
    #[error("{0}")]
    Refused(String),
    #[error("there is no account {name} on this machine, which {rule} names: make it (useradd), or change the rule")]
    Unknown { name: String, rule: String },
    #[error("the account {name} cannot be looked up on this machine")]
    Lookup { name: String, source: nix::Error },
    #[error(
        "the account {name}, which {rule} names, has the number {uid}, and none below {uid_min} is taken on: name another, or \
         lower `uid_min` under [accounts]"
    )]
    TooLow { name: String, rule: String, uid: u32, uid_min: u32 },
}

/// Finds the accounts of executions.
#[derive(Debug)]
pub(crate) struct Accounts {
    settings: AccountSettings,
    known: BTreeMap<Option<Requester>, (Instant, Account)>,
}

/// Why a site with `[accounts]` takes no work as this user.
pub(crate) fn refuses_all(config: &Config) -> Option<String> {
    let is_root = rustix::process::geteuid().is_root();
    (config.accounts.is_some() && !is_root).then(|| {
        "its administrator has executions run as other accounts ([accounts]), which takes root: start the agent as root"
            .to_owned()
    })
}

impl Accounts {
    pub(crate) fn new(settings: AccountSettings) -> Self {
        Self { settings, known: BTreeMap::new() }
    }

    /// The account that an execution of the step runs as; nothing where nothing is run for it but the agent itself.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn of(&mut self, template: &StepTemplate) -> Result<Option<Account>, AccountError> {
        if matches!(template.work, TemplateWork::Import { .. } | TemplateWork::Export { .. } | TemplateWork::Null) {
            return Ok(None);
        }
        let requester = &template.origin.requester;
        if let Some((at, account)) = self.known.get(requester)
            && at.elapsed() < KNOWN_FOR
        {
            return Ok(Some(account.clone()));
        }
        let (account, _) = resolve(&self.settings, requester.as_ref())?;
        self.known.insert(requester.clone(), (Instant::now(), account.clone()));
        Ok(Some(account))
    }
}

/// The account for a run that this one has asked for, and by which rule.
fn resolve(settings: &AccountSettings, requester: Option<&Requester>) -> Result<(Account, String), AccountError> {
    let chosen = settings.rules.choose(requester).map_err(AccountError::Refused)?;
    Ok((look_up(&chosen.name, &chosen.rule, settings.uid_min)?, chosen.rule))
}

/// The account that packages of actions are installed as: what they bring along runs with the rights of whoever installs them.
///
/// # Errors
/// When there is none; the message says what to do.
pub(crate) fn installer(settings: &AccountSettings) -> Result<Account, String> {
    let Some(name) = &settings.installer else {
        return Err("it needs packages, and there is no account here to install them: name one that has no rights of its own as \
                    `installer` under [accounts]"
            .to_owned());
    };
    look_up(name, "`installer` under [accounts]", settings.uid_min).map_err(|error| error.to_string())
}

/// An account by its name, if it may be taken on.
pub(crate) fn look_up(name: &str, rule: &str, uid_min: u32) -> Result<Account, AccountError> {
    let unknown = || AccountError::Unknown { name: name.to_owned(), rule: rule.to_owned() };
    let failed = |source| AccountError::Lookup { name: name.to_owned(), source };
    let user = User::from_name(name).map_err(failed)?.ok_or_else(unknown)?;
    let uid = user.uid.as_raw();
    if uid < uid_min {
        return Err(AccountError::TooLow { name: name.to_owned(), rule: rule.to_owned(), uid, uid_min });
    }
    let of_list = CString::new(user.name.as_str()).map_err(|_| unknown())?;
    let groups = getgrouplist(&of_list, user.gid).map_err(failed)?;
    let mut groups: Vec<u32> = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
    groups.sort_unstable();
    groups.dedup();
    Ok(Account { name: user.name, uid, gid: user.gid.as_raw(), groups })
}

/// Lets accounts pass through the agent's folders to what is theirs, and to nothing else that stands there.
///
/// # Errors
/// When modes cannot be set.
pub(crate) fn open_ways(data_dir: &Path, slots_dir: &Path) -> io::Result<()> {
    let set = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    let mut ways: Vec<PathBuf> = PASSED_THROUGH.iter().map(|name| data_dir.join(name)).collect();
    ways.extend([slots_dir.to_owned(), data_dir.to_owned()]);
    ways.extend(slots_dir.parent().map(Path::to_owned));
    for entry in fs::read_dir(data_dir)? {
        let path = entry?.path();
        let found = fs::symlink_metadata(&path)?;
        if !ways.contains(&path) && (found.is_dir() || found.is_file()) {
            set(&path, found.permissions().mode() & 0o700)?;
        }
    }
    for way in ways {
        fs::create_dir_all(&way)?;
        set(&way, 0o711)?;
    }
    Ok(())
}

/// What `atoll site idmap test` has found out.
#[derive(Debug, Serialize)]
pub struct AccountTrial {
    pub account: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<GroupOfAccount>,
    /// The rule that names it.
    pub rule: String,
    /// Why nothing can be run as it here, if it cannot.
    pub problem: Option<String>,
    /// What to do about that.
    pub advice: Option<String>,
}

/// A group that an account is in.
#[derive(Debug, Serialize)]
pub struct GroupOfAccount {
    pub gid: u32,
    pub name: Option<String>,
}

/// Finds the account for a run of this project and person, and tries whether this process can run something as it.
///
/// # Errors
/// When there is none.
pub fn try_account(config: &Config, requester: &Requester) -> Result<AccountTrial, AccountError> {
    let Some(settings) = &config.accounts else {
        return Err(AccountError::Refused(
            "the agent's configuration has no table [accounts]: everything runs as the agent's own user".to_owned(),
        ));
    };
    let (account, rule) = resolve(settings, Some(requester))?;
    let (problem, advice) = match run_trial(config, &account) {
        Ok(()) => (None, None),
        Err((problem, advice)) => (Some(problem), Some(advice)),
    };
    let name_of = |gid: u32| Group::from_gid(gid.into()).ok().flatten().map(|group| group.name);
    let groups = account.groups.iter().map(|gid| GroupOfAccount { gid: *gid, name: name_of(*gid) }).collect();
    let Account { name, uid, gid, .. } = account;
    Ok(AccountTrial { account: name, uid, gid, groups, rule, problem, advice })
}

/// Tries an account that the administrator has named.
///
/// # Errors
/// What is wrong, and what to do about it.
pub(crate) fn try_named(config: &Config, settings: &AccountSettings, name: &str) -> Result<(), (String, String)> {
    let account = look_up(name, "the agent's configuration", settings.uid_min);
    let advice = "make the account, or name another under [accounts]";
    run_trial(config, &account.map_err(|error| (error.to_string(), advice.to_owned()))?)
}

/// What is wrong, and what to do about it.
fn run_trial(config: &Config, account: &Account) -> Result<(), (String, String)> {
    let as_root = || "run the agent, and this command, as root".to_owned();
    if !rustix::process::geteuid().is_root() {
        return Err(("only root becomes another account".to_owned(), as_root()));
    }
    let told = |what: String| (what, "see that the agent's own program can be run".to_owned());
    let program =
        config.shim_program.clone().map_or_else(ShimProgram::own, Ok).map_err(|error| told(error.to_string()))?;
    let described = serde_json::to_string(account).map_err(|error| told(error.to_string()))?;
    let mut command = Command::new(&program.program);
    command.args(&program.arguments).arg(crate::shim::ACCOUNT).arg(described);
    // The agent opens its own folders; those above are the machine's.
    let above = [Some(config.data_dir.as_path()), config.work_dir.as_deref()];
    command.args(above.into_iter().flatten().filter_map(Path::parent).filter(|folder| folder.is_dir()));
    let said = ask(&mut command, PATIENCE).map_err(|error| told(error.to_string()))?;
    let numbers: Vec<Vec<u32>> = said
        .stdout
        .lines()
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .collect();
    let [uid, gid, groups] = numbers.as_slice() else {
        let words = said.stderr.trim();
        return Err((format!("nothing can be run as {}: {words}", account.name), as_root()));
    };
    let mut groups = groups.clone();
    groups.sort_unstable();
    if (uid.as_slice(), gid.as_slice(), &groups) != (&[account.uid], &[account.gid], &account.groups) {
        let problem =
            format!("what runs as {} has other numbers: {}", account.name, said.stdout.trim().replace('\n', " / "));
        return Err((
            problem,
            "see whether the machine's directory of accounts says the same each time (getent)".to_owned(),
        ));
    }
    if !said.status.success() {
        let problem = format!("{} does not get to the agent's folders: {}", account.name, said.stderr.trim());
        let advice = "let others pass through the folders above (chmod o+x), or set data_dir and work_dir elsewhere";
        return Err((problem, advice.to_owned()));
    }
    Ok(())
}
