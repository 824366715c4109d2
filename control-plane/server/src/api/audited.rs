//! Changes that a person asks for: made, and noted with their outcome.

use control_plane_core::{Rejection, Request, Response};

use super::App;
use super::tokens::Person;

impl App {
    /// Makes a request in a person's name.
    ///
    /// # Errors
    /// When the core refuses it, which is noted too.
    pub(super) async fn change(
        &self,
        person: &Person,
        action: &str,
        subject: &str,
        detail: Option<&str>,
        request: Request,
    ) -> Result<Response, Rejection> {
        let result = self.handle.request(request).await;
        match &result {
            Ok(_) => self.audit.record(&person.name, action, subject, "done", detail),
            Err(rejection) => {
                let refused = format!("refused: {rejection}");
                self.audit.record(&person.name, action, subject, &refused, detail);
            }
        }
        result
    }
}
