//! The servers of an installation, as a person names them: one URL, or several with commas between them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Request, Response, StatusCode, Url};

use super::unreachable;
use crate::failure::Failure;

/// Header in which a server that stands by names the leader.
const LEADER: &str = "atoll-leader";
/// How long one is waited for that is about to lead.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long one of several is waited for that has taken a request and says nothing: it may be a leader that was.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(300);

/// Requests go to the one that worked last. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Servers {
    known: Arc<[String]>,
    current: Arc<Mutex<String>>,
}

impl Servers {
    /// # Errors
    /// When a URL is not one that may be used: all are of one scheme, and plain HTTP is for this machine only.
    pub(super) fn of(urls: &str) -> Result<Self, Failure> {
        let known: Arc<[String]> = urls.split(',').map(|url| url.trim().trim_end_matches('/').to_owned()).collect();
        for url in known.iter() {
            check(url)?;
        }
        let secure = known.iter().filter(|url| url.starts_with("https://")).count();
        if secure != 0 && secure != known.len() {
            return Err(Failure::Usage(format!("{urls} mixes https and http")));
        }
        let current = known.first().cloned().unwrap_or_default();
        Ok(Self { known, current: Arc::new(Mutex::new(current)) })
    }

    pub(super) fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All of them, as they were given.
    pub(super) fn all(&self) -> String {
        self.known.join(",")
    }

    fn turn_to(&self, url: &str) {
        url.clone_into(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The one after the current one.
    fn turn(&self) {
        let current = self.current();
        let place = self.known.iter().position(|url| *url == current).map_or(0, |place| place + 1);
        self.turn_to(&self.known[place % self.known.len()]);
    }

    /// Sends a request to the server that leads. One that was not received goes to the next server, one that a server does
    /// not take because it stands by to the leader; a body that is read as it is sent can go only once.
    pub(super) async fn send(&self, http: &reqwest::Client, request: Request) -> Result<Response, Failure> {
        let began = Instant::now();
        let mut request = request;
        let mut unreached = 0;
        loop {
            let again = request.try_clone();
            let url = self.current();
            let may_repeat = may_repeat(&request);
            let answer = http.execute(request);
            let answer = match &again {
                Some(_) if self.known.len() > 1 && may_repeat => tokio::time::timeout(ANSWER_MAX, answer).await,
                Some(_) | None => Ok(answer.await),
            };
            let Ok(answer) = answer else {
                self.turn();
                unreached += 1;
                match again {
                    Some(next) if unreached <= self.known.len() => request = next,
                    Some(_) | None => return Err(Failure::Unreachable(format!("{url} does not answer"))),
                }
                move_to(&mut request, &self.current());
                continue;
            };
            match answer {
                Ok(response) => {
                    let Some(leader) = standing_by(&response) else { return Ok(response) };
                    let Some(next) = again else { return Ok(response) };
                    if began.elapsed() > PATIENCE {
                        return Ok(response);
                    }
                    match leader {
                        Some(leader) if leader != url && check(&leader).is_ok() && unreached == 0 => {
                            self.turn_to(&leader)
                        }
                        Some(_) | None => tokio::time::sleep(PAUSE).await,
                    }
                    unreached = 0;
                    request = next;
                }
                Err(error) => {
                    self.turn();
                    unreached += 1;
                    match again {
                        Some(next) if error.is_connect() && unreached <= self.known.len() => request = next,
                        Some(_) | None => return Err(unreachable(&url, &error)),
                    }
                }
            }
            move_to(&mut request, &self.current());
        }
    }
}

/// Whether it is answered at once, and it changes nothing if two servers take it in. An output may have to come to the
/// bucket first.
fn may_repeat(request: &Request) -> bool {
    let reads = request.method().is_safe() && !request.url().path().contains("/outputs/");
    reads || request.headers().contains_key("idempotency-key")
}

/// Whether the server stands by, and whom it names.
fn standing_by(response: &Response) -> Option<Option<String>> {
    let named = response.headers().get(LEADER).and_then(|url| url.to_str().ok()).map(str::to_owned);
    let is_none_yet = response.headers().contains_key("atoll-standby");
    (response.status() == StatusCode::SERVICE_UNAVAILABLE && (named.is_some() || is_none_yet)).then_some(named)
}

/// The same path at another server.
fn move_to(request: &mut Request, server: &str) {
    let old = request.url();
    let query = old.query().map(|query| format!("?{query}")).unwrap_or_default();
    if let Ok(url) = Url::parse(&format!("{server}{}{query}", old.path())) {
        *request.url_mut() = url;
    }
}

fn check(url: &str) -> Result<(), Failure> {
    if url.starts_with("https://") || (url.starts_with("http://") && is_loopback(url)) {
        return Ok(());
    }
    Err(Failure::Usage(if url.starts_with("http://") {
        format!("{url} would send the token in the open: only https is spoken to other machines")
    } else {
        format!("{url} is no URL of a server: it begins with https://")
    }))
}

fn is_loopback(url: &str) -> bool {
    let host = reqwest::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
