//! The `git` of this machine, as a process that knows nothing of the machine: no configuration, hooks, helpers, prompts or
//! submodules, a private folder, a bound on what it writes, and nothing left of it when nobody waits for it any more.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use atoll_model::repository::{GitUrl, Reach, RepositorySource};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::log::ImportLog;
use crate::config::{Git as GitConfig, GitCredentials};

/// What counts of the server's own environment: by which way the world is reached, and whom it believes.
const PASSED_ON: &[&str] = &[
    "PATH",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "GIT_SSL_CAINFO",
];
/// Settings that hold whatever is in the repository. A transfer that stands still for a minute ends.
const SETTINGS: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.fsmonitor=false",
    "core.autocrlf=false",
    "credential.helper=",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "fetch.unpackLimit=1",
    "gc.auto=0",
    "maintenance.auto=false",
    "protocol.allow=never",
    "http.lowSpeedLimit=100",
    "http.lowSpeedTime=60",
    "advice.detachedHead=false",
];
/// What `git` prints that is read whole: the names of some hundred thousand files.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// Lines of what git says last that tell why it has failed.
const TOLD_LINES: usize = 3;
/// `ulimit -f` counts in these.
const BLOCK_BYTES: u64 = 512;

/// Why git did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum GitError {
    #[error("git cannot be started on the server: {0}")]
    Start(io::Error),
    #[error("what git says cannot be read: {0}")]
    Read(io::Error),
    #[error("git {what} prints more than {OUTPUT_BYTES_MAX} bytes")]
    TooMuch { what: String },
    #[error("{message}")]
    Failed { message: String },
    #[error(
        "repositories in folders of the server are not allowed: its configuration says so (`local = true` under `[git]`)"
    )]
    LocalForbidden,
    #[error("the server has no key for {url}: its configuration names one (`credentials` under `[git]`)")]
    NoKey { url: GitUrl },
    #[error("{} cannot be used: {problem}", file.display())]
    Credentials { file: PathBuf, problem: String },
}

/// One repository on its way into one folder.
#[derive(Debug)]
pub(super) struct Git {
    folder: PathBuf,
    settings: Vec<(String, String)>,
    environment: Vec<(OsString, OsString)>,
    bytes_max: u64,
    log: Arc<ImportLog>,
}

impl Git {
    pub(super) fn new(
        config: &GitConfig,
        (url, project): (&GitUrl, &str),
        folder: &Path,
        bytes_max: u64,
        log: &Arc<ImportLog>,
    ) -> Result<Self, GitError> {
        let credentials = config.credentials_for(url, project);
        let mut git = Self {
            folder: folder.to_owned(),
            settings: SETTINGS.iter().filter_map(|setting| setting.split_once('=')).map(owned).collect(),
            environment: Vec::new(),
            bytes_max,
            log: Arc::clone(log),
        };
        match url.reach() {
            Reach::Local if config.local != Some(true) => return Err(GitError::LocalForbidden),
            Reach::Local => git.set("protocol.file.allow", "always"),
            reach @ (Reach::Http | Reach::Https) => {
                git.set(if reach == Reach::Http { "protocol.http.allow" } else { "protocol.https.allow" }, "always");
                // Whoever is given a password is not to say who else is asked with it.
                git.set("http.followRedirects", if credentials.is_some() { "false" } else { "initial" });
                if let Some(credentials) = credentials {
                    git.set("http.extraHeader", &basic(credentials)?);
                }
            }
            Reach::Ssh => {
                let no_key = || GitError::NoKey { url: url.clone() };
                let (key, hosts) = credentials
                    .and_then(|known| Some((&known.file, known.known_hosts.as_ref()?)))
                    .ok_or_else(no_key)?;
                git.set("protocol.ssh.allow", "always");
                git.environment.push(("GIT_SSH_COMMAND".into(), ssh(key, hosts).into()));
            }
        }
        Ok(git)
    }

    fn set(&mut self, name: &str, value: &str) {
        self.settings.push(owned((name, value)));
    }

    /// Brings the commit that the source names, without its history; its name.
    pub(super) async fn fetch(&self, source: &RepositorySource) -> Result<String, GitError> {
        self.run("init", &["--quiet", "--bare", "--template="]).await?;
        let refspec = format!("+{}:refs/import/commit", source.branch().unwrap_or("HEAD"));
        let fetched =
            self.run("fetch", &["--quiet", "--no-tags", "--depth=1", "--", source.url.as_str(), &refspec]).await;
        fetched.map_err(|error| explained(error, &source.url))?;
        let commit = self.run("rev-parse", &["--verify", "refs/import/commit^{commit}"]).await?;
        Ok(String::from_utf8_lossy(&commit).trim().to_owned())
    }

    /// Lays a commit, or a folder of it, out in a folder of the file system.
    pub(super) async fn check_out(&self, commit: &str, subdir: Option<&str>, into: &Path) -> Result<(), GitError> {
        let worktree = format!("--work-tree={}", into.display());
        let arguments = [&worktree, "checkout", "--quiet", "--force", commit, "--", subdir.unwrap_or(".")];
        self.call("checkout", &arguments).await.map(drop)
    }

    pub(super) async fn run(&self, what: &str, arguments: &[&str]) -> Result<Vec<u8>, GitError> {
        self.call(what, &[&[what], arguments].concat()).await
    }

    async fn call(&self, what: &str, arguments: &[&str]) -> Result<Vec<u8>, GitError> {
        // The shell stays only to set the bound on files, and becomes git.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -f \"$0\" && exec git \"$@\"", &(self.bytes_max / BLOCK_BYTES).to_string()]);
        command.arg("--literal-pathspecs").arg(git_directory(&self.folder)).args(arguments);
        command.env_clear().envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(self.environment.iter().cloned());
        for (name, value) in [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", ""),
            ("SSH_ASKPASS", ""),
            ("LC_ALL", "C"),
        ] {
            command.env(name, value);
        }
        // In the environment, for the command line of a process is public.
        command.env("GIT_CONFIG_COUNT", self.settings.len().to_string());
        for (number, (name, value)) in self.settings.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{number}"), name).env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        command.env("HOME", &self.folder).env("TMPDIR", &self.folder).current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut running = Running::start(&mut command).map_err(GitError::Start)?;
        let (stdout, stderr) = (running.child.stdout.take(), running.child.stderr.take());
        let (output, said) = tokio::try_join!(read(stdout, what), self.listen(stderr))?;
        let status = running.end().await.map_err(GitError::Read)?;
        if status.success() {
            return Ok(output);
        }
        let advice = ["Please make sure", "and the repository exists", "hint:"];
        let told = said.iter().filter(|line| !line.is_empty() && !advice.iter().any(|words| line.starts_with(words)));
        let told: Vec<&str> = told.map(String::as_str).collect();
        let told = told[told.len().saturating_sub(TOLD_LINES)..].join("; ");
        let said = if told.is_empty() { format!("it ended with {status}") } else { told };
        Err(GitError::Failed { message: format!("git {what}: {said}") })
    }

    /// Puts what git says into the log; the last lines of it.
    async fn listen(&self, stderr: Option<impl AsyncRead + Unpin>) -> Result<Vec<String>, GitError> {
        const KEPT: usize = 20;
        const LINE_BYTES_MAX: u64 = 4_096;
        let mut said: Vec<String> = Vec::new();
        let Some(stderr) = stderr else { return Ok(said) };
        let mut stderr = BufReader::new(stderr);
        loop {
            let mut line = Vec::new();
            let read = (&mut stderr).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
            if read.map_err(GitError::Read)? == 0 {
                return Ok(said);
            }
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            self.log.say(&format!("git: {line}"));
            said.push(line);
            if said.len() > KEPT {
                said.remove(0);
            }
        }
    }
}

async fn read(stdout: Option<impl AsyncRead + Unpin>, what: &str) -> Result<Vec<u8>, GitError> {
    let mut output = Vec::new();
    if let Some(stdout) = stdout {
        stdout.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut output).await.map_err(GitError::Read)?;
    }
    if output.len() as u64 > OUTPUT_BYTES_MAX {
        return Err(GitError::TooMuch { what: what.to_owned() });
    }
    Ok(output)
}

fn git_directory(folder: &Path) -> OsString {
    let mut argument = OsString::from("--git-dir=");
    argument.push(folder.join("repository"));
    argument
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// The header that says who asks.
fn basic(credentials: &GitCredentials) -> Result<String, GitError> {
    let file = &credentials.file;
    let unusable = |problem: String| GitError::Credentials { file: file.clone(), problem };
    let text = std::fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?;
    let line = text.trim();
    if !line.contains(':') || line.chars().any(char::is_control) {
        return Err(unusable("it holds one line, USER:PASSWORD".to_owned()));
    }
    Ok(format!("Authorization: Basic {}", STANDARD.encode(line)))
}

/// A call of ssh that asks nobody, believes nobody but these hosts, and shows no other key.
fn ssh(key: &Path, hosts: &Path) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    format!(
        "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=/dev/null -o \
         IdentitiesOnly=yes -o IdentityAgent=none -o ConnectTimeout=30 -o ServerAliveInterval=15 -o UserKnownHostsFile={} -i {}",
        quoted(hosts),
        quoted(key)
    )
}

/// What would help, where git speaks of what people cannot see.
fn explained(error: GitError, url: &GitUrl) -> GitError {
    let GitError::Failed { message } = error else { return error };
    let help = if message.contains("could not read Username") || message.contains("Authentication failed") {
        format!(" (the server has no right to {url}: its configuration names credentials, under `[git]`)")
    } else if message.contains("invalid index-pack output") {
        " (it may have more bytes than the server takes)".to_owned()
    } else {
        String::new()
    };
    GitError::Failed { message: format!("{message}{help}") }
}

/// A process with its helpers, all of which end when nobody waits for it any more.
struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Running {
    fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { child, group })
    }

    async fn end(&mut self) -> io::Result<std::process::ExitStatus> {
        let status = self.child.wait().await?;
        // Its number may be another's from now on.
        self.group = None;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // What has ended meanwhile needs no signal.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
