//! What is wrong with a file, shown in the file.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use atoll_model::diagnostic::Diagnostic;
use serde_json::{Value, json};

use crate::failure::SourceText;

/// The diagnostics as text with the lines that they speak of, where those are at hand.
pub(crate) fn render(diagnostics: &[Diagnostic], source: Option<&SourceText>) -> String {
    let renderer = Renderer::styled();
    let mut text = String::new();
    for diagnostic in diagnostics {
        let shown = match source {
            Some(source) if source.file == diagnostic.file => Some(source.text.clone()),
            Some(_) | None => std::fs::read_to_string(&diagnostic.file).ok(),
        };
        match shown {
            Some(shown) => text.push_str(&render_one(&renderer, diagnostic, &shown)),
            None => text.push_str(&diagnostic.to_string()),
        }
        text.push_str("\n\n");
    }
    let errors = if diagnostics.len() == 1 { "error" } else { "errors" };
    text.push_str(&format!("{} {errors}\n", diagnostics.len()));
    text
}

fn render_one(renderer: &Renderer, diagnostic: &Diagnostic, source: &str) -> String {
    let inside =
        |at: u32| (0..=source.len().min(at as usize)).rev().find(|at| source.is_char_boundary(*at)).unwrap_or(0);
    let end = inside(diagnostic.place.end);
    let start = inside(diagnostic.place.start).min(end);
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
