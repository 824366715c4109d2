//! What is wrong with a file, shown in the file.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use atoll_model::diagnostic::Diagnostic;
use serde_json::{Value, json};

/// The diagnostics as text with the lines they speak of, where the source is at hand.
pub(crate) fn render(diagnostics: &[Diagnostic], source: Option<&str>) -> String {
    let renderer = Renderer::styled();
    let mut text = String::new();
    for diagnostic in diagnostics {
        let read =
            source.map_or_else(|| std::fs::read_to_string(&diagnostic.file).ok(), |source| Some(source.to_owned()));
        text.push_str(&match read {
            Some(source) => render_one(&renderer, diagnostic, &source),
            None => diagnostic.to_string(),
        });
        text.push('\n');
    }
    text
}

fn render_one(renderer: &Renderer, diagnostic: &Diagnostic, source: &str) -> String {
    let end = (diagnostic.place.end as usize).min(source.len());
    let start = (diagnostic.place.start as usize).min(end);
    let snippet =
        Snippet::source(source).path(diagnostic.file.as_str()).annotation(AnnotationKind::Primary.span(start..end));
    let mut group = Level::ERROR.primary_title(diagnostic.message.as_str()).element(snippet);
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    renderer.render(&[group])
}

/// The diagnostics as the contract's `errors`.
pub(crate) fn document(diagnostics: &[Diagnostic]) -> Value {
    diagnostics
        .iter()
        .map(|diagnostic| {
            json!({
                "file": diagnostic.file,
                "line": diagnostic.place.line,
                "column": diagnostic.place.column,
                "message": diagnostic.message,
                "help": diagnostic.help,
            })
        })
        .collect()
}
