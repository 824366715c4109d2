//! Reading a selector: `region == 'eu' && !(tier > 2) || site in ['juliet', 'edge']`.

use super::selector::{AttributeKind, Attributes, Comparison, Literal, SITE, Selector};
use crate::id::SiteName;
use crate::suggestion::did_you_mean;

/// How deep parentheses and `!` may be nested, so that reading and evaluating take a bounded stack.
const DEPTH_MAX: u32 = 32;

/// What is wrong with a selector, and where: offsets of bytes in its text.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A name, a number, a size or a version.
    Word(String),
    Quoted(String),
    Sign(&'static str),
}

struct Spanned {
    token: Token,
    start: usize,
    end: usize,
}

/// Reads the text; a single name is that of a site.
pub(super) fn read(text: &str, attributes: &Attributes) -> Result<Selector, Problem> {
    let tokens = tokens(text)?;
    if let [Spanned { token: Token::Word(word), start, end }] = tokens.as_slice() {
        return site_named(word, *start, *end);
    }
    let mut reader = Reader { tokens: &tokens, next: 0, length: text.len(), attributes };
    let selector = reader.either(0)?;
    match reader.peek() {
        None => Ok(selector),
        Some(more) => Err(problem(more, "nothing is expected here", Some("join comparisons with `&&` or `||`"))),
    }
}

pub(super) fn site_named(name: &str, start: usize, end: usize) -> Result<Selector, Problem> {
    let name: SiteName =
        name.parse().map_err(|error| Problem { start, end, message: format!("{error}"), help: None })?;
    let literal = Literal::Text(name.as_str().to_owned());
    let (attribute, kind) = (SITE.to_owned(), AttributeKind::Enum(Vec::new()));
    Ok(Selector::Compare { attribute, kind, comparison: Comparison::Equal, literal })
}

struct Reader<'a> {
    tokens: &'a [Spanned],
    next: usize,
    length: usize,
    attributes: &'a Attributes,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&'a Spanned> {
        self.tokens.get(self.next)
    }

    fn takes(&mut self, sign: &str) -> bool {
        let is_next = self.peek().is_some_and(|next| matches!(next.token, Token::Sign(found) if found == sign));
        self.next += usize::from(is_next);
        is_next
    }

    fn take(&mut self, wanted: &str) -> Result<&'a Spanned, Problem> {
        let next = self.peek().ok_or_else(|| Problem {
            start: self.length,
            end: self.length,
            message: format!("{wanted} is missing at the end"),
            help: None,
        })?;
        self.next += 1;
        Ok(next)
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), Problem> {
        let wanted = format!("`{sign}`");
        let next = self.take(&wanted)?;
        match next.token {
            Token::Sign(found) if found == sign => Ok(()),
            Token::Sign(_) | Token::Word(_) | Token::Quoted(_) => {
                Err(problem(next, format!("{wanted} is expected here"), None))
            }
        }
    }

    fn either(&mut self, depth: u32) -> Result<Selector, Problem> {
        let mut parts = vec![self.both(depth)?];
        while self.takes("||") {
            parts.push(self.both(depth)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Selector::Some(parts) })
    }

    fn both(&mut self, depth: u32) -> Result<Selector, Problem> {
        let mut parts = vec![self.single(depth)?];
        while self.takes("&&") {
            parts.push(self.single(depth)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Selector::All(parts) })
    }

    fn single(&mut self, depth: u32) -> Result<Selector, Problem> {
        if depth == DEPTH_MAX {
            let next = self.take("a comparison")?;
            return Err(problem(next, format!("this is nested more than {DEPTH_MAX} deep"), None));
        }
        if self.takes("!") {
            return Ok(Selector::Not(Box::new(self.single(depth + 1)?)));
        }
        if self.takes("(") {
            let inner = self.either(depth + 1)?;
            self.expect(")")?;
            return Ok(inner);
        }
        let first = self.take("the name of an attribute")?;
        let Token::Word(name) = &first.token else {
            let help = Some("write the attribute first: `region == 'eu'`");
            return Err(problem(first, "the name of an attribute is expected here", help));
        };
        if name == "has" && self.takes("(") {
            let attribute = self.take("the name of an attribute")?;
            let Token::Word(name) = &attribute.token else {
                return Err(problem(attribute, "the name of an attribute is expected here", None));
            };
            self.kind(name, attribute)?;
            self.expect(")")?;
            return Ok(Selector::Has(name.clone()));
        }
        let kind = self.kind(name, first)?;
        self.comparison(name.clone(), kind)
    }

    fn comparison(&mut self, attribute: String, kind: AttributeKind) -> Result<Selector, Problem> {
        let operator = self.take("`==`, `!=`, `<`, `<=`, `>`, `>=` or `in`")?;
        if operator.token == Token::Word("in".to_owned()) {
            self.expect("[")?;
            let mut literals = vec![self.literal(&attribute, &kind)?];
            while self.takes(",") {
                literals.push(self.literal(&attribute, &kind)?);
            }
            self.expect("]")?;
            return Ok(Selector::In { attribute, kind, literals });
        }
        let comparison = match operator.token {
            Token::Sign("==") => Comparison::Equal,
            Token::Sign("!=") => Comparison::NotEqual,
            Token::Sign("<") => Comparison::Less,
            Token::Sign("<=") => Comparison::LessOrEqual,
            Token::Sign(">") => Comparison::Greater,
            Token::Sign(">=") => Comparison::GreaterOrEqual,
            Token::Sign(_) | Token::Word(_) | Token::Quoted(_) => {
                return Err(problem(operator, "`==`, `!=`, `<`, `<=`, `>`, `>=` or `in` is expected here", None));
            }
        };
        let is_order = !matches!(comparison, Comparison::Equal | Comparison::NotEqual);
        if is_order && !kind.is_ordered() {
            let message = format!("`{attribute}` has no order: it is {}", kind_of(&attribute, &kind));
            return Err(problem(operator, message, Some("compare it with `==`, `!=` or `in`")));
        }
        let literal = self.literal(&attribute, &kind)?;
        Ok(Selector::Compare { attribute, kind, comparison, literal })
    }

    fn kind(&self, name: &str, at: &Spanned) -> Result<AttributeKind, Problem> {
        if name == SITE {
            return Ok(AttributeKind::Enum(Vec::new()));
        }
        match self.attributes.get(name) {
            Some(attribute) => Ok(attribute.kind.clone()),
            None => {
                let known = std::iter::once(SITE).chain(self.attributes.keys().map(String::as_str));
                let help = did_you_mean(name, known).unwrap_or_else(|| {
                    format!("declare it: `attributes: {{ {name}: {{ type: enum, values: [a, b] }} }}`")
                });
                Err(problem(at, format!("no attribute `{}` is declared", name.escape_debug()), Some(&help)))
            }
        }
    }

    fn literal(&mut self, attribute: &str, kind: &AttributeKind) -> Result<Literal, Problem> {
        let next = self.take("a value")?;
        let text = match &next.token {
            Token::Word(text) | Token::Quoted(text) => text,
            Token::Sign(_) => return Err(problem(next, "a value is expected here", None)),
        };
        if attribute == SITE {
            return match text.parse::<SiteName>() {
                Ok(name) => Ok(Literal::Text(name.as_str().to_owned())),
                Err(error) => Err(problem(next, format!("{error}"), None)),
            };
        }
        kind.read(text).ok_or_else(|| {
            let help = match kind {
                AttributeKind::Enum(words) => did_you_mean(text, words.iter().map(String::as_str)),
                AttributeKind::Integer | AttributeKind::Bytes | AttributeKind::Version | AttributeKind::Boolean => None,
            };
            let help = help.unwrap_or_else(|| format!("it is {}", kind.described()));
            problem(next, format!("`{attribute}` cannot be `{}`", text.escape_debug()), Some(&help))
        })
    }
}

fn kind_of(attribute: &str, kind: &AttributeKind) -> String {
    if attribute == SITE { "the name of a site".to_owned() } else { kind.described() }
}

fn problem(at: &Spanned, message: impl Into<String>, help: Option<&str>) -> Problem {
    Problem { start: at.start, end: at.end, message: message.into(), help: help.map(str::to_owned) }
}

const SIGNS: [&str; 14] = ["==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "(", ")", "[", "]", ","];

fn tokens(text: &str) -> Result<Vec<Spanned>, Problem> {
    let mut tokens = Vec::new();
    let mut start = 0;
    while let Some(first) = text[start..].chars().next() {
        let rest = &text[start..];
        let (token, length) = if first.is_whitespace() {
            start += first.len_utf8();
            continue;
        } else if first == '\'' || first == '"' {
            let inner = &rest[1..];
            let Some(end) = inner.find(first) else {
                let message = format!("the text that begins here has no closing {first}");
                return Err(Problem { start, end: text.len(), message, help: None });
            };
            (Token::Quoted(inner[..end].to_owned()), end + 2)
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            (Token::Sign(sign), sign.len())
        } else {
            let is_word = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '-' | '.');
            let length = rest.find(|letter| !is_word(letter)).unwrap_or(rest.len());
            if length == 0 {
                let end = start + first.len_utf8();
                let message = format!("`{}` means nothing here", first.escape_debug());
                let help = (first == '=').then(|| "write `==`".to_owned());
                return Err(Problem { start, end, message, help });
            }
            (Token::Word(rest[..length].to_owned()), length)
        };
        tokens.push(Spanned { token, start, end: start + length });
        start += length;
    }
    if tokens.is_empty() {
        return Err(Problem { start: 0, end: text.len(), message: "it selects nothing".to_owned(), help: None });
    }
    Ok(tokens)
}
