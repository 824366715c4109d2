//! The folder of an action that was written for Ryax: its code, which is parsed and never run, and its logo.

use std::fs;
use std::io;
use std::path::Path;

use atoll_model::action::{Python, Ryax, RyaxKind};
use atoll_model::diagnostic::{Diagnostic, Place};
use atoll_model::limits::HANDLER_BYTES_MAX;
use ruff_python_ast::visitor::{Visitor, walk_stmt};
use ruff_python_ast::{Expr, Stmt, StmtFunctionDef};
use ruff_python_parser::parse_module;
use ruff_text_size::{Ranged as _, TextRange};

/// Width and height of a logo, in pixels.
const LOGO_PIXELS_MAX: u32 = 250;

/// Everything that is wrong with what the metadata in `file` speaks of.
pub(super) fn faults(file: &str, folder: &Path, python: &Python, ryax: &Ryax) -> Vec<Diagnostic> {
    let said = |place: Place, message: String, help: Option<String>| Diagnostic {
        file: file.to_owned(),
        place,
        message,
        help,
    };
    let mut faults = Vec::new();
    match fs::read(folder.join(&python.file)) {
        Ok(code) => {
            let shown = Path::new(file).with_file_name(&python.file).display().to_string();
            faults.extend(code_fault(&shown, &code, ryax.kind));
        }
        Err(error) => {
            let message = format!("there is no `{}` in the folder of the action: {error}", python.file);
            faults.push(said(python.place, message, Some(format!("add it, with `{}`", ryax.kind.declaration()))));
        }
    }
    if let Some((logo, place)) = &ryax.logo
        && let Err(message) = check_logo(&folder.join(logo), logo)
    {
        faults.push(said(*place, message, None));
    }
    faults
}

fn code_fault(shown: &str, code: &[u8], kind: RyaxKind) -> Option<Diagnostic> {
    let beginning = Place { line: 1, column: 1, start: 0, end: 0 };
    let (place, message, help) = match std::str::from_utf8(code) {
        Ok(text) if code.len() <= HANDLER_BYTES_MAX => {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            on_a_large_stack(text.len(), || look_at(text, kind)).unwrap_or_else(|error| {
                let message = format!("it cannot be parsed: {error}");
                Some((beginning, message, None))
            })?
        }
        Ok(_) => {
            let message = format!("it has {} bytes, more than {HANDLER_BYTES_MAX}", code.len());
            (beginning, message, Some("keep the function in it, and move the rest to modules beside".to_owned()))
        }
        Err(_) => (beginning, "it is no text in UTF-8".to_owned(), None),
    };
    Some(Diagnostic { file: shown.to_owned(), place, message, help })
}

/// Whatever nests in a text takes some stack, when it is parsed and when what came of that is dropped.
fn on_a_large_stack<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    const SHALLOW_BYTES: usize = 8 << 20;
    const BYTES_PER_LEVEL: usize = 512;
    std::thread::scope(|scope| {
        let size = SHALLOW_BYTES + bytes * BYTES_PER_LEVEL;
        let thread = std::thread::Builder::new().stack_size(size).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| io::Error::other("the parser has given up"))
    })
}

/// What is wrong with the code: where, what, and what would be right.
fn look_at(text: &str, kind: RyaxKind) -> Option<(Place, String, Option<String>)> {
    let module = match parse_module(text) {
        Ok(module) => module.into_syntax(),
        Err(error) => return Some((place_of(text, error.location), format!("syntax error: {}", error.error), None)),
    };
    let mut found = Functions { name: kind.function(), found: Vec::new() };
    found.visit_body(&module.body);
    let is_source = kind == RyaxKind::Source;
    let wanted = if is_source { 2 } else { 1 };
    let help = Some(format!("write `{}`", kind.declaration()));
    let of_kind = found.found.iter().filter(|function| function.is_async == is_source);
    let functions: Vec<&&StmtFunctionDef> = of_kind.collect();
    if functions.iter().any(|function| function.parameters.len() == wanted) {
        return None;
    }
    if let Some(function) = functions.first() {
        let count = function.parameters.len();
        let arguments = if wanted == 1 { "one argument" } else { "two arguments" };
        let message = format!("wrong number of arguments: `{}` takes {arguments}, not {count}", kind.function());
        return Some((place_of(text, function.name.range()), message, help));
    }
    if let Some(function) = found.found.first() {
        let is = if is_source { "is no `async` function" } else { "is an `async` function" };
        let message = format!("`{}` {is}, and so is not what is called", kind.function());
        return Some((place_of(text, function.name.range()), message, help));
    }
    let beginning = Place { line: 1, column: 1, start: 0, end: 0 };
    Some((beginning, format!("there is no function `{}`", kind.function()), help))
}

/// The functions of a name, wherever they are.
struct Functions<'a> {
    name: &'static str,
    found: Vec<&'a StmtFunctionDef>,
}

impl<'a> Visitor<'a> for Functions<'a> {
    fn visit_stmt(&mut self, statement: &'a Stmt) {
        if let Stmt::FunctionDef(function) = statement
            && function.name.as_str() == self.name
        {
            self.found.push(function);
        }
        walk_stmt(self, statement);
    }

    /// No function is defined in an expression.
    fn visit_expr(&mut self, _: &'a Expr) {}
}

fn place_of(text: &str, range: TextRange) -> Place {
    let (start, end) = (range.start().to_usize().min(text.len()), range.end().to_usize().min(text.len()));
    let before = text.get(..start).unwrap_or(text);
    let line_begin = before.rfind('\n').map_or(0, |at| at + 1);
    Place {
        line: before.matches('\n').count() as u32 + 1,
        column: before[line_begin..].chars().count() as u32 + 1,
        start: start as u32,
        end: end as u32,
    }
}

/// What is wrong with a logo.
fn check_logo(path: &Path, shown: &str) -> Result<(), String> {
    if Path::new(shown)
        .components()
        .any(|part| !matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir))
    {
        return Err(format!("the logo `{shown}` is outside of the folder of the action"));
    }
    let bytes = fs::read(path).map_err(|error| format!("the logo `{shown}` cannot be read: {error}"))?;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase();
    let is_known = ["png", "jpg", "jpeg"].contains(&extension.as_str());
    let size = if is_known { png_size(&bytes).or_else(|| jpeg_size(&bytes)) } else { None };
    let (width, height) = size.ok_or_else(|| format!("the logo `{shown}` is neither a PNG nor a JPEG"))?;
    if width.max(height) > LOGO_PIXELS_MAX {
        let most = format!("{LOGO_PIXELS_MAX}x{LOGO_PIXELS_MAX}");
        return Err(format!(
            "the logo `{shown}` is too large: it has {width}x{height} pixels, and {most} are the most"
        ));
    }
    Ok(())
}

/// Of the header that every PNG begins with.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let header = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    let number = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
    (header.get(4..8)? == b"IHDR").then_some((number(8)?, number(12)?))
}

/// Of the first frame of a JPEG: segments follow each other, each with its length.
fn jpeg_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut rest = bytes.strip_prefix(b"\xff\xd8")?;
    loop {
        let [0xff, marker, after @ ..] = rest else { return None };
        if *marker == 0xff {
            // Any number of these may stand before a marker.
            rest = &rest[1..];
            continue;
        }
        let number = |at: usize| Some(u32::from(u16::from_be_bytes(after.get(at..at + 2)?.try_into().ok()?)));
        let is_frame = (0xc0..=0xcf).contains(marker) && ![0xc4, 0xc8, 0xcc].contains(marker);
        if is_frame {
            return Some((number(5)?, number(3)?));
        }
        rest = after.get(number(0)?.max(2) as usize..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: RyaxKind, code: &str, expected: &str) {
        let found = code_fault("a/ryax_handler.py", code.as_bytes(), kind);
        let shown = code.get(..200).unwrap_or(code);
        assert_eq!(found.map(|fault| fault.to_string()).unwrap_or_default(), expected, "{shown}");
    }

    #[test]
    fn a_handler_is_found_wherever_it_is_and_whatever_it_imports() {
        check(RyaxKind::Handler, "import absent\ndef handle(inputs: dict) -> dict:\n    return {}\n", "");
        check(RyaxKind::Handler, "try:\n    import a\nexcept ImportError:\n    def handle(x):\n        pass\n", "");
        check(RyaxKind::Handler, "\u{feff}match 1:\n    case 1:\n        def handle(x, /): pass\n", "");
        check(RyaxKind::Source, "async def run(service, input_values): pass\n", "");
    }

    #[test]
    fn what_is_wrong_with_code_is_said_with_its_place() {
        check(
            RyaxKind::Handler,
            "x = 1\ndef handle(inputs:\n    pass\n",
            "a/ryax_handler.py:3:5: syntax error: Expected an expression",
        );
        check(
            RyaxKind::Handler,
            "import os\n\ndef handle(inputs, more):\n    pass\n",
            "a/ryax_handler.py:3:5: wrong number of arguments: `handle` takes one argument, not 2 (write `def handle(inputs):`)",
        );
        check(
            RyaxKind::Handler,
            "async def handle(inputs): pass\n",
            "a/ryax_handler.py:1:11: `handle` is an `async` function, and so is not what is called (write `def handle(inputs):`)",
        );
        check(
            RyaxKind::Handler,
            "from core import handle\n",
            "a/ryax_handler.py:1:1: there is no function `handle` (write `def handle(inputs):`)",
        );
        check(
            RyaxKind::Source,
            "def run(service, input_values): pass\n",
            "a/ryax_handler.py:1:5: `run` is no `async` function, and so is not what is called (write `async def run(service, input_values):`)",
        );
        check(
            RyaxKind::Source,
            "async def run(service): pass\n",
            "a/ryax_handler.py:1:11: wrong number of arguments: `run` takes two arguments, not 1 (write `async def run(service, input_values):`)",
        );
    }

    #[test]
    fn no_code_is_nested_too_deep() {
        let most = HANDLER_BYTES_MAX - 64;
        for (level, close) in
            [("-", ""), ("(", ")"), ("not ", ""), (".a", ""), ("()", ""), ("1+", ""), ("lambda:", ""), ("[", "]")]
        {
            let levels = most / (level.len() + close.len());
            let nested = format!("x = a{}1{}\n", level.repeat(levels), close.repeat(levels));
            let nested = if level.starts_with(['.', '(']) && close.is_empty() {
                nested.replace("1\n", "\n")
            } else {
                nested.replace("= a", "= ")
            };
            check(RyaxKind::Handler, &format!("{nested}def handle(x): pass\n"), "");
            // What cannot be parsed is dropped as well.
            assert!(code_fault("f", format!("{nested}def").as_bytes(), RyaxKind::Handler).is_some());
        }
        let large = " ".repeat(HANDLER_BYTES_MAX + 1);
        let fault = code_fault("f", large.as_bytes(), RyaxKind::Handler).expect("it is too large");
        assert!(fault.message.contains("more than 524288"), "{fault}");
    }

    #[test]
    fn a_logo_is_a_small_picture() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let png = |width: u32, height: u32| {
            let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
            bytes.extend_from_slice(&width.to_be_bytes());
            bytes.extend_from_slice(&height.to_be_bytes());
            bytes
        };
        let jpeg = b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xc2\0\x0b\x08\0\x10\x01\0\x01".to_vec();
        let logo = |name: &str, bytes: Option<Vec<u8>>| {
            let path = folder.path().join(name);
            bytes.into_iter().for_each(|bytes| fs::write(&path, bytes).expect("a file"));
            check_logo(&path, name).err().unwrap_or_default()
        };
        assert_eq!(logo("a.png", Some(png(250, 250))), "");
        assert!(logo("b.png", Some(png(251, 10))).contains("too large: it has 251x10"));
        assert!(logo("c.jpeg", Some(jpeg)).contains("too large: it has 256x16"));
        assert!(logo("d.gif", Some(b"GIF89a".to_vec())).contains("neither a PNG nor a JPEG"));
        assert!(logo("e.png", Some(b"no picture".to_vec())).contains("neither"));
        assert!(logo("f.png", None).contains("cannot be read"));
        assert!(logo("../a.png", None).contains("outside"));
    }
}
