//! A git repository, and a machine that serves it over HTTP to those who know its password.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// A repository that a test commits to.
#[derive(Debug)]
pub struct Repository(TempDir);

impl Repository {
    /// # Errors
    /// When git is not there.
    pub fn new() -> Result<Self> {
        let repository = Self(tempfile::Builder::new().prefix("atoll-git-").tempdir()?);
        repository.git(&["init", "--quiet", "--initial-branch=main"])?;
        Ok(repository)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().context("a folder")?)?;
        Ok(std::fs::write(path, text)?)
    }

    /// Commits all that was written; the commit.
    ///
    /// # Errors
    /// When nothing has changed.
    pub fn commit(&self) -> Result<String> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", "test"])?;
        self.git(&["rev-parse", "HEAD"])
    }

    fn git(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(self.path());
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "test").env(format!("GIT_{who}_EMAIL"), "test@example.org");
        }
        let output = command.output().context("git is needed")?;
        ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

/// Serves the repositories of a folder, by `git http-backend`.
#[derive(Debug)]
pub struct GitServer {
    address: SocketAddr,
    gate: Arc<Gate>,
}

/// Whether requests are answered, and how many wait because they are not.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<(bool, u32)>,
    opened: Condvar,
}

impl GitServer {
    /// `authorization` is the whole header that requests are to have.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn new(folder: &Path, authorization: Option<&str>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let gate = Arc::new(Gate::default());
        let (folder, authorization, serving) = (folder.to_owned(), authorization.map(str::to_owned), Arc::clone(&gate));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (folder, authorization, gate) = (folder.clone(), authorization.clone(), Arc::clone(&serving));
                std::thread::spawn(move || {
                    gate.pass();
                    // Whoever asked and went away needs no answer.
                    let _ = answer(client, &folder, authorization.as_deref());
                });
            }
        });
        Ok(Self { address, gate })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Holds back what is asked from now on.
    pub fn close(&self) {
        self.gate.state.lock().unwrap_or_else(PoisonError::into_inner).0 = true;
    }

    pub fn open(&self) {
        self.gate.state.lock().unwrap_or_else(PoisonError::into_inner).0 = false;
        self.gate.opened.notify_all();
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        self.gate.state.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0 {
            state.1 += 1;
            state = self.opened.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.1 -= 1;
        }
    }
}

/// What a client asks for.
struct Asked {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Asked {
    fn read(client: &TcpStream) -> Result<Self> {
        let mut reader = BufReader::new(client);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().context("a method")?.to_owned(), words.next().context("a path")?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (path, query) = (path.to_owned(), query.to_owned());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut asked = Self { method, path, query, headers, body: Vec::new() };
        let length = asked.header("content-length").parse().unwrap_or(0);
        asked.body = vec![0; length];
        reader.read_exact(&mut asked.body)?;
        Ok(asked)
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

fn answer(mut client: TcpStream, folder: &Path, authorization: Option<&str>) -> Result<()> {
    let asked = Asked::read(&client)?;
    if authorization.is_some_and(|wanted| asked.header("authorization") != wanted) {
        let refused = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\nContent-Length: 0\r\n\
                       Connection: close\r\n\r\n";
        return Ok(client.write_all(refused.as_bytes())?);
    }
    let output = backend(&asked, folder)?;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").context("headers")?;
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    write!(client, "HTTP/1.1 {status}\r\n{head}\r\nConnection: close\r\n\r\n")?;
    Ok(client.write_all(&output[end + 4..])?)
}

fn backend(asked: &Asked, folder: &Path) -> Result<Vec<u8>> {
    let folder: PathBuf = folder.to_owned();
    let mut command = Command::new("git");
    command.args(["-c", "safe.directory=*", "http-backend"]);
    command.env("GIT_PROJECT_ROOT", folder).env("GIT_HTTP_EXPORT_ALL", "1").env("REMOTE_ADDR", "127.0.0.1");
    command.env("REQUEST_METHOD", &asked.method).env("PATH_INFO", &asked.path).env("QUERY_STRING", &asked.query);
    command.env("CONTENT_TYPE", asked.header("content-type")).env("CONTENT_LENGTH", asked.body.len().to_string());
    command.env("HTTP_CONTENT_ENCODING", asked.header("content-encoding"));
    command.env("GIT_PROTOCOL", asked.header("git-protocol"));
    let mut backend = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    backend.stdin.take().context("its input")?.write_all(&asked.body)?;
    Ok(backend.wait_with_output()?.stdout)
}
