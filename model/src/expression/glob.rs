//! Patterns for the paths of files: `*`, `?` and `[…]` within a name, `**` across directories.

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pattern(Vec<Token>);

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Byte(u8),
    /// `?`: one character of a name, of UTF-8 in up to four bytes.
    One,
    /// `*`
    Any,
    /// `**`, or `**/`, which also stands for nothing.
    Deep {
        slash: bool,
    },
    Class {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            rest = after;
            match first {
                b'*' if rest.first() == Some(&b'*') => {
                    rest = &rest[1..];
                    let slash = rest.first() == Some(&b'/');
                    if slash {
                        rest = &rest[1..];
                    }
                    tokens.push(Token::Deep { slash });
                }
                b'*' => tokens.push(Token::Any),
                b'?' => tokens.push(Token::One),
                b'[' => {
                    let (class, after) =
                        class(rest).ok_or_else(|| format!("the pattern {text:?} has a `[` without its `]`"))?;
                    tokens.push(class);
                    rest = after;
                }
                byte => tokens.push(Token::Byte(byte)),
            }
        }
        Ok(Self(tokens))
    }

    /// What a match costs, in steps of an evaluation.
    pub(super) fn cost(&self, path: &[u8]) -> u64 {
        1 + (self.0.len() * path.len() / 16) as u64
    }

    /// Whether the whole path matches. Takes time proportional to pattern times path.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        // reachable[i]: the tokens so far match the first i bytes.
        let mut reachable = vec![false; path.len() + 1];
        reachable[0] = true;
        for token in &self.0 {
            let mut next = vec![false; path.len() + 1];
            for start in (0..=path.len()).filter(|start| reachable[*start]) {
                token.extend(path, start, &mut next);
            }
            reachable = next;
        }
        reachable[path.len()]
    }
}

impl Token {
    fn extend(&self, path: &[u8], start: usize, next: &mut [bool]) {
        let first = path.get(start).copied();
        match self {
            Self::Byte(byte) => {
                if first == Some(*byte) {
                    next[start + 1] = true;
                }
            }
            Self::Class { negated, ranges } => {
                if let Some(byte) = first
                    && byte != b'/'
                    && ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte)) != *negated
                {
                    next[start + 1] = true;
                }
            }
            Self::One => {
                if first.is_some_and(|byte| byte != b'/') {
                    let continues = |byte: &&u8| **byte & 0xc0 == 0x80;
                    next[start + 1 + path[start + 1..].iter().take(3).take_while(continues).count()] = true;
                }
            }
            Self::Any => {
                next[start] = true;
                for (offset, byte) in path[start..].iter().enumerate() {
                    if *byte == b'/' || next[start + offset + 1] {
                        break;
                    }
                    next[start + offset + 1] = true;
                }
            }
            Self::Deep { slash } => {
                if !*slash || start == 0 || path[start - 1] == b'/' {
                    next[start] = true;
                }
                let ends = (start + 1..=path.len()).filter(|end| !*slash || path[*end - 1] == b'/');
                for end in ends {
                    // An earlier start has reached all that follows already.
                    if std::mem::replace(&mut next[end], true) {
                        break;
                    }
                }
            }
        }
    }
}

fn class(text: &[u8]) -> Option<(Token, &[u8])> {
    let (negated, body) = match text.first()? {
        b'!' | b'^' => (true, &text[1..]),
        _ => (false, text),
    };
    // A `]` that comes first is one of the characters.
    let end = 1 + body.get(1..)?.iter().position(|byte| *byte == b']')?;
    let mut ranges = Vec::new();
    let mut rest = &body[..end];
    while let Some((&low, after)) = rest.split_first() {
        match after {
            [b'-', high, remaining @ ..] => {
                ranges.push((low, *high));
                rest = remaining;
            }
            _ => {
                ranges.push((low, low));
                rest = after;
            }
        }
    }
    Some((Token::Class { negated, ranges }, &body[end + 1..]))
}
