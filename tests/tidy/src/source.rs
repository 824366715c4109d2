//! A Rust file, read just well enough: comments and texts are told from code, and functions from what is around them.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::workspace::{files, read};

/// A Rust file.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
    /// The text with every comment, string and character literal blanked, of the same length and lines.
    pub code: String,
    /// Where the tests of the file begin, if they stand in it.
    tests_at: usize,
    /// Whether the whole file is a module of tests.
    of_tests: bool,
}

/// A function with a body.
#[derive(Debug)]
pub struct Function<'a> {
    pub name: &'a str,
    pub line: usize,
    pub lines: usize,
    pub is_test: bool,
}

/// Every Rust file of the workspace.
///
/// # Errors
/// When a file can't be read.
pub fn sources() -> Result<Vec<Source>> {
    let read_source = |path: PathBuf| Ok(Source::new(path.clone(), read(&path)?));
    let mut sources: Vec<Source> = files(&[".rs"])?.into_iter().map(read_source).collect::<Result<_>>()?;
    let test_modules: Vec<PathBuf> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut sources {
        source.of_tests = test_modules.iter().any(|module| source.path.with_extension("").starts_with(module));
    }
    Ok(sources)
}

impl Source {
    pub fn new(path: PathBuf, text: String) -> Self {
        let code = blank(&text);
        let inline = test_modules_of(&code).find(|(_, _, is_inline)| *is_inline);
        let tests_at = inline.map_or(code.len(), |(at, _, _)| at);
        Self { path, text, code, tests_at, of_tests: false }
    }

    /// The modules of tests that stand in files of their own, as paths without an ending.
    fn test_modules(&self) -> Vec<PathBuf> {
        let stem = self.path.file_stem().unwrap_or_default();
        let is_root = ["lib", "main", "mod"].iter().any(|root| stem == *root);
        let folder =
            if is_root { self.path.parent().unwrap_or(Path::new("")).to_owned() } else { self.path.with_extension("") };
        let modules = test_modules_of(&self.code).filter(|(_, _, is_inline)| !is_inline);
        modules.map(|(_, name, _)| folder.join(name)).collect()
    }

    /// Whether the file belongs to what is shipped, and not to its tests, examples or benchmarks.
    pub fn is_product(&self) -> bool {
        let beside = ["tests", "examples", "benches"];
        !self.of_tests && !self.path.iter().any(|part| beside.iter().any(|name| Path::new(name) == Path::new(part)))
    }

    /// The code above the file's own tests, blanked.
    pub fn product_code(&self) -> &str {
        &self.code[..self.tests_at]
    }

    /// Lines of code above the file's own tests: neither empty nor comment.
    pub fn code_lines(&self) -> usize {
        let code = self.product_code().lines().zip(self.text.lines());
        code.filter(|(blanked, line)| !blanked.trim().is_empty() || (!line.trim().is_empty() && !is_comment(line)))
            .count()
    }

    /// The line, from 1, on which the byte at `offset` stands.
    pub fn line_of(&self, offset: usize) -> usize {
        self.code[..offset].matches('\n').count() + 1
    }

    /// The functions of the file that have a body.
    pub fn functions(&self) -> Vec<Function<'_>> {
        let mut functions = Vec::new();
        let mut from = 0;
        while let Some(at) = self.code[from..].find("fn ").map(|at| from + at) {
            from = at + 3;
            if at > 0 && is_word(self.code.as_bytes()[at - 1]) {
                continue;
            }
            let name_end =
                self.code[from..].find(|letter: char| !is_word_char(letter)).map_or(self.code.len(), |end| from + end);
            if let (true, Some((open, close))) = (name_end > from, self.body(name_end)) {
                functions.push(Function {
                    name: &self.code[from..name_end],
                    line: self.line_of(at),
                    lines: self.code[at..close].matches('\n').count() + 1,
                    is_test: at > self.tests_at || self.has_test_attribute(at),
                });
                from = open;
            }
        }
        functions
    }

    /// The braces of the body that follows a signature; none if it ends with a semicolon.
    fn body(&self, from: usize) -> Option<(usize, usize)> {
        let mut depth = 0;
        let mut open = None;
        for (at, letter) in self.code[from..].char_indices() {
            match letter {
                '(' | '[' => depth += 1,
                ')' | ']' => depth -= 1,
                ';' if depth == 0 && open.is_none() => return None,
                '{' => {
                    open = open.or(Some((from + at, depth)));
                    depth += 1;
                }
                '}' => {
                    depth -= 1;
                    if let Some((open, before)) = open
                        && depth == before
                    {
                        return Some((open, from + at));
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn has_test_attribute(&self, function_at: usize) -> bool {
        let before = &self.code[..function_at];
        let attributes = before.lines().rev().skip(usize::from(!before.ends_with('\n')));
        attributes.take_while(|line| line.trim().starts_with("#[")).any(|line| {
            let name = line.trim().trim_start_matches("#[").trim_end_matches(']');
            name == "test" || name.starts_with("tokio::test")
        })
    }
}

/// The modules that are only built for tests: where, their names, and whether their code follows.
fn test_modules_of(code: &str) -> impl Iterator<Item = (usize, &str, bool)> {
    code.match_indices("#[cfg(test)]").filter_map(|(at, mark)| {
        let declared = code[at + mark.len()..].trim_start();
        let name =
            declared.split_once("mod ").filter(|(before, _)| before.is_empty() || before.trim().starts_with("pub"))?.1;
        let end = name.find(|letter: char| !is_word_char(letter))?;
        Some((at, &name[..end], name[end..].trim_start().starts_with('{')))
    })
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn is_word_char(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Blanks comments and the insides of literals, and keeps every line where it was.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let length = skipped_length(rest, out.as_bytes().last().copied());
        let (taken, after) = rest.split_at(length.unwrap_or(letter.len_utf8()));
        if length.is_some() {
            out.extend(taken.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
        } else if letter.is_ascii() {
            out.push(letter);
        } else {
            out.extend(std::iter::repeat_n('_', letter.len_utf8()));
        }
        rest = after;
    }
    out
}

/// How many bytes of `rest` are one comment or literal, if it begins with one.
fn skipped_length(rest: &str, before: Option<u8>) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(rest.find("*/").map_or(rest.len(), |end| end + 2));
    }
    let in_word = before.is_some_and(is_word);
    if !in_word && (rest.starts_with("r\"") || rest.starts_with("r#") || rest.starts_with("br")) {
        let start = rest.find(|letter| letter != 'b' && letter != 'r')?;
        let hashes = rest[start..].bytes().take_while(|byte| *byte == b'#').count();
        let open = start + hashes;
        if rest[open..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            return Some(rest[open + 1..].find(&close).map_or(rest.len(), |end| open + 1 + end + close.len()));
        }
    }
    if rest.starts_with('"') {
        return Some(quoted_length(rest, b'"'));
    }
    if let Some(inside) = rest.strip_prefix('\'') {
        // A lifetime is no literal.
        let mut letters = inside.chars();
        let (first, second) = (letters.next()?, letters.next());
        if first == '\\' || second == Some('\'') {
            return Some(quoted_length(rest, b'\''));
        }
    }
    None
}

fn quoted_length(rest: &str, quote: u8) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new(PathBuf::from("x/src/lib.rs"), text.to_owned())
    }

    #[test]
    fn comments_and_texts_are_no_code() {
        let source = source("let a = \"fn x() {\"; // fn y() {\nlet b = r#\"} \" \"#; let c = '{'; fn z<'a>() { b }\n");
        let names: Vec<&str> = source.functions().iter().map(|function| function.name).collect();
        assert_eq!(names, ["z"]);
        assert_eq!(source.code.len(), source.text.len());
    }

    #[test]
    fn lines_of_a_function_run_from_its_name_to_its_end() {
        let source = source("fn a();\n#[test]\nfn b(\n    x: [u8; 3],\n) {\n    if x {\n    }\n}\nfn c() {}\n");
        let found: Vec<_> =
            source.functions().iter().map(|found| (found.name, found.line, found.lines, found.is_test)).collect();
        assert_eq!(found, [("b", 3, 6, true), ("c", 9, 1, false)]);
    }

    #[test]
    fn modules_of_tests_are_found_in_their_files() {
        let source = source("#[cfg(test)]\nmod tests;\n#[cfg(test)]\npub(crate) mod testing;\nfn a() {}\n");
        assert_eq!(source.test_modules(), [PathBuf::from("x/src/tests"), PathBuf::from("x/src/testing")]);
        assert_eq!(source.product_code(), source.code);
    }

    #[test]
    fn lines_of_tests_and_comments_are_not_counted() {
        let source = source(
            "//! Doc.\n\nfn a() {\n    // why\n    \"text\";\n}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n",
        );
        assert_eq!(source.code_lines(), 3);
    }
}
